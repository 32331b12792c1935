//! The gateway on the real Workers runtime: our clients against its KV, D1, objects and admin
//! routes, alarms that really fire, the same answers as the emulated gateway, and the whole
//! rehearsal. The runtime is installed by the program itself; Node.js 20 or newer must be there.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use cutover::catalogue::Catalogue;
use cutover::clients::HttpOutside;
use cutover::domain::secret::{FingerprintKey, Secret, hex, hmac_sha256};
use cutover::domain::time::{HOUR_MS, MINUTE_MS, Timestamp};
use cutover::domain::token::{KvMetadata, Writer};
use cutover::domain::triplet::{Part, Triplet};
use cutover::inventory::Row;
use cutover::ports::{
    AlarmMode, ApiErrorKind, AuditRead, AuditRow, AuditSink, GatewayAdmin, GatewayRead, KvPut, KvRead, KvWrite,
    Namespace, Outside,
};
use cutover::sandbox::{
    GatewayKind, LiveClock, ReadLoad, Sandbox, SandboxKeys, TokenLife, Workerd, World, WorldConfig, WorldOptions,
};
use reqwest::{Client, Url};
use serde_json::{Value, json};
use tokio::sync::{RwLock, RwLockReadGuard};

const START: Timestamp = Timestamp::from_secs(1_778_058_000);

/// A rehearsal against the wall clock wants the machine for itself: it writes, the others read.
static MACHINE: RwLock<()> = RwLock::const_new(());

/// Below everything that Cargo removes with the target folder, so that one installation serves all runs.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("workerd")
}

fn row(tenant: &str, key: &str, provider: &str) -> Row {
    Row {
        tenant: Part::new(tenant).unwrap(),
        integration_key: key.to_owned(),
        connection_id: format!("{tenant}__{key}__default"),
        providers: vec![Part::new(provider).unwrap()],
        account: Part::new("default").unwrap(),
        auth_mode: None,
    }
}

fn config(rows: Vec<Row>, life_ms: i64) -> WorldConfig {
    WorldConfig {
        seed: 38,
        start: START,
        rows,
        catalogue: Catalogue::built_in(),
        retained: BTreeSet::new(),
        faults: Vec::new(),
        fault_from: START,
        fault_until: START,
        token_life: TokenLife::Fixed(life_ms),
        shim_url: None,
    }
}

fn rows() -> Vec<Row> {
    vec![
        row("kahuna", "hubspot", "hubspot"),
        row("kahuna", "salesforce", "salesforce"),
        row("kahuna", "slack", "slack"),
    ]
}

/// A served sandbox whose gateway is the Workers runtime.
struct Live {
    _shared: RwLockReadGuard<'static, ()>,
    sandbox: Sandbox,
    keys: SandboxKeys,
    world: tokio::task::JoinHandle<()>,
    http: Client,
}

impl Live {
    async fn start(rows: Vec<Row>, life_ms: i64, speed: f64) -> Self {
        let shared = MACHINE.read().await;
        let _ = rustls::crypto::ring::default_provider().install_default();
        // The runtime closes connections whose body it did not read.
        let http = Client::builder().no_proxy().tls_certs_only([]).pool_max_idle_per_host(0).build().unwrap();
        let workerd = tokio::task::spawn_blocking(|| Workerd::install(&cache()).unwrap()).await.unwrap();
        let world = World::with_options(config(rows, life_ms), WorldOptions::of(GatewayKind::Workerd));
        let keys = world.keys();
        let clock = LiveClock::start(START, speed);
        let sandbox = Sandbox::start_on_workerd(world, &workerd, &clock).await.unwrap();
        let world = tokio::spawn(sandbox.run_live(clock, http.clone()));
        Self { _shared: shared, sandbox, keys, world, http }
    }

    /// Our clients, with Cloudflare at `cloudflare` and the gateway past the sandbox's relay.
    fn clients(&self, cloudflare: &str) -> HttpOutside {
        let url = |text: &str| Url::parse(text).unwrap();
        let mut endpoints = cutover::rehearse::endpoints(&self.sandbox);
        endpoints.cloudflare.base = url(cloudflare);
        endpoints.gateway.base = url(&self.sandbox.runtime_urls().unwrap().gateway);
        // Two seconds pass at each look, so that a key may be written again at once.
        let looks = AtomicI64::new(0);
        let clock = move || START.plus_ms(looks.fetch_add(2_000, Ordering::Relaxed));
        HttpOutside::new(endpoints, Arc::new(clock)).unwrap()
    }

    /// The API that miniflare itself serves: nothing of ours is in between.
    fn own_api(&self) -> String {
        format!("{}/cdn-cgi/explorer/api", self.sandbox.runtime_urls().unwrap().gateway)
    }

    /// The same API as the runner completes it, with the paths of production.
    fn completed_api(&self) -> String {
        let urls = self.sandbox.runtime_urls().unwrap();
        format!("{}/client/v4/accounts/{}", urls.cloudflare, self.keys.cloudflare_account_id)
    }

    async fn rows_in(&self, table: &str) -> u64 {
        let url = format!("{}/d1/database/{}/query", self.completed_api(), self.keys.d1_database);
        let sql = json!({"sql": format!("SELECT count(*) AS n FROM {table}")});
        let answer = self.http.post(url).bearer_auth(&self.keys.cloudflare_token).json(&sql).send().await.unwrap();
        let body: Value = answer.json().await.unwrap();
        body["result"][0]["results"][0]["n"].as_u64().unwrap_or_else(|| panic!("{body}"))
    }

    async fn stop(self) {
        self.world.abort();
        self.sandbox.stop().await;
    }
}

/// Asks again until `look` gives something. Fails after a minute.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    for _ in 0..600 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what} did not happen within a minute");
}

fn triplet(text: &str) -> Triplet {
    Triplet::parse(text).unwrap()
}

fn metadata(v: u64) -> Value {
    let fp = FingerprintKey::new([7; 32]).fingerprint(&Secret::new("x"));
    serde_json::to_value(KvMetadata { v, fp, ep: 1, src: Writer::Nango, exp: Some(1_790_000_000) }).unwrap()
}

fn put(key: &str, value: &str, metadata: Option<Value>) -> KvPut {
    KvPut { key: key.to_owned(), value: Secret::new(value), metadata }
}

async fn all_keys(kv: &impl KvRead, prefix: &str) -> (Vec<(String, Option<u64>)>, usize) {
    let (mut keys, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = kv.list_keys(Namespace::Target, prefix, cursor.as_deref()).await.unwrap();
        pages += 1;
        keys.extend(page.keys.into_iter().map(|key| (key.name, key.metadata.map(|m| m.v))));
        match page.cursor {
            Some(next) => cursor = Some(next),
            None => return (keys, pages),
        }
    }
}

#[tokio::test]
async fn our_client_speaks_to_the_runtimes_own_kv_and_d1() {
    let live = Live::start(rows(), HOUR_MS, 1.0).await;
    let outside = live.clients(&live.own_api());
    let cloudflare = outside.cloudflare();

    // One entry, with metadata and without, and keys that need encoding.
    let token = r#"{"access_token":"at-1","expires_at":"2026-10-02T10:45:00.000Z","instance_url":"https://x"}"#;
    cloudflare.put(Namespace::Target, &put("tokens:a:b:c", token, Some(metadata(3)))).await.unwrap();
    cloudflare.put(Namespace::Target, &put("other/100% ü?:!", "{}", None)).await.unwrap();
    assert_eq!(all_keys(cloudflare, "tokens:").await.0, [("tokens:a:b:c".to_owned(), Some(3))]);
    assert_eq!(all_keys(cloudflare, "other").await.0, [("other/100% ü?:!".to_owned(), None)]);
    let keys = ["tokens:a:b:c", "tokens:absent:b:c", "other/100% ü?:!"].map(str::to_owned);
    let mut found = cloudflare.bulk_get(Namespace::Target, &keys).await.unwrap();
    let entry = found.remove("tokens:a:b:c").unwrap().unwrap().unwrap();
    assert_eq!((entry.access_token.expose(), &entry.other["instance_url"]), ("at-1", &json!("https://x")));
    assert_eq!(found["tokens:absent:b:c"], None);
    assert!(found["other/100% ü?:!"].as_ref().unwrap().is_err(), "it is not a token");

    // A put without metadata clears what was there.
    cloudflare.put(Namespace::Target, &put("tokens:a:b:c", token, None)).await.unwrap();
    assert_eq!(all_keys(cloudflare, "tokens:").await.0, [("tokens:a:b:c".to_owned(), None)]);
    for _ in 0..2 {
        cloudflare.delete(Namespace::Target, "tokens:a:b:c").await.unwrap();
    }
    assert_eq!(all_keys(cloudflare, "tokens:").await.0, []);

    // Rows go in once, however often they are sent.
    let audit = |n: usize| AuditRow {
        op_id: format!("op-{n}"),
        at: START,
        key: "tokens:a:b:it's \"quoted\"".into(),
        action: "put".into(),
        source: "nango".into(),
        fingerprint: n.is_multiple_of(2).then(|| "ab".repeat(12)),
    };
    for n in [3, 7, 7] {
        cloudflare.append_audit(&(0..n).map(audit).collect::<Vec<_>>()).await.unwrap();
    }
    assert_eq!(live.rows_in("kv_audit").await, 7);
    // They are read in the order of their insertion, behind a place, and by their operation.
    assert_eq!(cloudflare.audit_end().await.unwrap(), 7);
    let behind = cloudflare.read_audit(5).await.unwrap();
    let shown: Vec<_> = behind.iter().map(|row| (row.place, row.op_id.as_str(), row.at)).collect();
    assert_eq!(shown, [(6, "op-5", Some(START)), (7, "op-6", Some(START))]);
    assert_eq!(
        (behind[0].fingerprint.as_deref(), behind[1].fingerprint.as_deref()),
        (None, Some("ab".repeat(12).as_str()))
    );
    let found = cloudflare.find_audit(&["op-2".to_owned(), "op-9".to_owned()]).await.unwrap();
    assert_eq!(found.iter().map(|row| row.op_id.as_str()).collect::<Vec<_>>(), ["op-2"]);
    live.stop().await;
}

#[tokio::test]
async fn our_client_pages_through_the_runtimes_kv_and_its_limits_hold() {
    let live = Live::start(rows(), HOUR_MS, 1.0).await;
    let outside = live.clients(&live.completed_api());
    let cloudflare = outside.cloudflare();
    let name = |n: usize| format!("tokens:t{n:04}:ü:default");
    let puts: Vec<KvPut> = (0..1_234).map(|n| put(&name(n), "{}", Some(metadata(n as u64 + 1)))).collect();
    assert_eq!(cloudflare.bulk_put(Namespace::Target, &puts).await.unwrap(), Vec::<String>::new());
    let (keys, pages) = all_keys(cloudflare, "tokens:").await;
    assert_eq!((keys.len(), pages), (1_234, 2));
    assert!(keys.iter().enumerate().all(|(n, key)| *key == (name(n), Some(n as u64 + 1))), "in order, with metadata");
    let (part, _) = all_keys(cloudflare, "tokens:t00").await;
    assert_eq!(part.len(), 100);

    // An expiry is kept and shown; one that is too near is refused.
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let now = Timestamp::from_secs(i64::try_from(wall).unwrap());
    let expiring = put("expiring", "x", Some(metadata(1)));
    cloudflare.put_until(Namespace::Target, &expiring, now.plus_ms(HOUR_MS)).await.unwrap();
    let refused = cloudflare.put_until(Namespace::Target, &expiring, now.plus_ms(10_000)).await.unwrap_err();
    assert!(matches!(refused.kind, ApiErrorKind::Rejected { status: 400, .. }), "{refused}");
    let namespace = format!("{}/storage/kv/namespaces/{}", live.completed_api(), live.keys.kv_target);
    let get = |path: &str, token: &str| live.http.get(format!("{namespace}/{path}")).bearer_auth(token).send();
    let listed: Value = get("keys?prefix=exp", &live.keys.cloudflare_token).await.unwrap().json().await.unwrap();
    assert_eq!(listed["result"][0]["expiration"], now.secs() + 3_600, "{listed}");
    let shown: Value = get("metadata/expiring", &live.keys.cloudflare_token).await.unwrap().json().await.unwrap();
    assert_eq!(shown["result"]["v"], 1, "{shown}");

    // A wrong token.
    assert_eq!(get("values/expiring", "wrong").await.unwrap().status().as_u16(), 403);
    live.stop().await;
}

#[tokio::test]
async fn our_client_lists_the_runtimes_objects_and_joins_them_with_triplets() {
    let many = (0..23).map(|n| row(&format!("t{n:02}"), "hubspot", "hubspot")).collect();
    let live = Live::start(many, HOUR_MS, 1.0).await;
    for base in [live.own_api(), live.completed_api()] {
        let outside = live.clients(&base);
        let cloudflare = outside.cloudflare();
        let namespaces = cloudflare.list_object_namespaces().await.unwrap();
        assert_eq!(namespaces.len(), 1, "{namespaces:?}");
        assert_eq!(namespaces[0].class.as_deref(), Some("TokenManager"));
        let objects = cloudflare.list_objects(&namespaces[0].id).await.unwrap();
        let ids: BTreeSet<&str> = objects.iter().map(|object| object.id.as_str()).collect();

        // The gateway says which id is whose; walked in pages of ten.
        let (mut shown, mut cursor) = (BTreeSet::new(), String::new());
        loop {
            let gateway = live.sandbox.runtime_urls().unwrap().gateway;
            let url = format!("{gateway}/admin/alarms?limit=10&cursor={}", cursor.replace(':', "%3A"));
            let page = live.http.get(url).header("x-admin-key", &live.keys.gateway_admin_key).send().await.unwrap();
            let page: Value = page.json().await.unwrap();
            let alarms = page["alarms"].as_array().unwrap();
            assert!(alarms.len() <= 10);
            shown.extend(alarms.iter().map(|alarm| alarm["object_id"].as_str().unwrap().to_owned()));
            match page["cursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(shown.len(), 23);
        assert_eq!(ids, shown.iter().map(String::as_str).collect());
    }
    live.stop().await;
}

#[tokio::test]
async fn our_client_reads_and_sets_the_alarms_of_the_runtime() {
    let live = Live::start(rows(), HOUR_MS, 1.0).await;
    let outside = live.clients(&live.own_api());
    let (gateway, hubspot) = (outside.gateway(), triplet("kahuna:hubspot:default"));
    let alarms = gateway.list_alarms().await.unwrap();
    assert_eq!(alarms.len(), 3);
    for alarm in &alarms {
        assert_eq!((alarm.mode, alarm.fires, alarm.last_fired_at), (AlarmMode::Refresh, 0, None));
    }
    // Ten minutes before the expiry in KV, five in standby; nothing in disarmed.
    let entry = {
        let keys = [hubspot.kv_key()];
        let mut found = outside.cloudflare().bulk_get(Namespace::Source, &keys).await.unwrap();
        found.remove(&keys[0]).unwrap().unwrap().unwrap()
    };
    let ends_at = entry.expires_at.unwrap();
    for (mode, ahead) in [
        (AlarmMode::Standby, Some(5)),
        (AlarmMode::Report, Some(5)),
        (AlarmMode::Refresh, Some(10)),
        (AlarmMode::Disarmed, None),
        (AlarmMode::Standby, Some(5)),
    ] {
        let set = gateway.set_alarm_mode(&hubspot, mode).await.unwrap();
        assert_eq!(set, gateway.read_alarm(&hubspot).await.unwrap());
        assert_eq!((set.mode, set.alarm_at), (mode, ahead.map(|m| ends_at.plus_ms(-m * MINUTE_MS))), "{mode:?}");
    }
    let absent = gateway.read_alarm(&triplet("no:such:one")).await.unwrap_err();
    assert_eq!(absent.kind, ApiErrorKind::NotFound { code: "unknown_triplet".into() });

    let smoke = gateway.smoke(&[hubspot.clone(), triplet("kahuna:slack:default")]).await.unwrap();
    assert!(smoke.iter().all(|s| s.ok && !s.stale && s.read_authority == Namespace::Source), "{smoke:?}");
    let served = gateway.fetch_whoami(&triplet("kahuna:salesforce:default")).await.unwrap();
    assert!(served.ok && served.read_authority == Namespace::Source, "{served:?}");
    assert!(gateway.list_fires(START).await.unwrap().is_empty());
    live.stop().await;
}

/// Tokens of 12 minutes at sixty times real time: an alarm in `refresh` is some two seconds away.
#[tokio::test]
async fn an_alarm_of_the_runtime_fires_and_does_what_its_mode_says() {
    const LIFE_MS: i64 = 12 * MINUTE_MS;
    let live = Live::start(vec![row("kahuna", "hubspot", "hubspot")], LIFE_MS, 60.0).await;
    let outside = live.clients(&live.own_api());
    let (gateway, hubspot) = (outside.gateway(), triplet("kahuna:hubspot:default"));
    let fires = async |mode: AlarmMode, since: Timestamp| {
        let fires = gateway.list_fires(since).await.unwrap();
        fires.into_iter().filter(|fire| fire.mode == mode).collect::<Vec<_>>()
    };

    // `refresh`: a new token at the provider and in KV, armed for the next one, again and again.
    let refreshes = async |n: usize| {
        let seen = eventually("refreshes by the alarm", async || {
            let seen = fires(AlarmMode::Refresh, START).await;
            (seen.len() >= n).then_some(seen)
        })
        .await;
        assert!(seen.iter().all(|fire| fire.wrote && fire.triplet == hubspot), "{seen:?}");
        live.sandbox.close_books().await.unwrap();
        (seen.len(), live.sandbox.lock().ledger())
    };
    let (n, before) = refreshes(3).await;
    let served = gateway.fetch_whoami(&hubspot).await.unwrap();
    assert!(served.ok && !served.stale, "the provider takes what the alarm put there: {served:?}");
    // The sandbox's books have those tokens, although no request to Cloudflare brought them: while
    // further ones come and older ones end, it counts no minute without a good one.
    let (_, after) = refreshes(n + 6).await;
    assert_eq!((after.stale_reads, after.kv_writes), (before.stale_reads, 0));

    // `report`: the alarm that is set still fires, is recorded, touches nothing and ends.
    gateway.set_alarm_mode(&hubspot, AlarmMode::Report).await.unwrap();
    let ended = eventually("the last fire", async || {
        let alarm = gateway.read_alarm(&hubspot).await.unwrap();
        alarm.alarm_at.is_none().then_some(alarm)
    })
    .await;
    assert_eq!(ended.mode, AlarmMode::Report);
    let reported = fires(AlarmMode::Report, START).await;
    assert_eq!((reported.len(), reported[0].wrote), (1, false));
    assert_eq!(ended.last_fired_at, Some(reported[0].at));

    // `standby`: where somebody brought a newer token, it only arms again; where nobody did, it
    // refreshes after all.
    let bring = async |minutes: i64| {
        let ends_at = live.sandbox.lock().now().plus_ms(minutes * MINUTE_MS).to_rfc3339();
        let value = json!({"access_token": "brought", "expires_at": ends_at}).to_string();
        outside.cloudflare().put(Namespace::Source, &put(&hubspot.kv_key(), &value, None)).await.unwrap();
    };
    bring(15).await;
    gateway.set_alarm_mode(&hubspot, AlarmMode::Standby).await.unwrap();
    bring(22).await;
    let stood_by = eventually("a fire in standby", async || fires(AlarmMode::Standby, START).await.into_iter().next());
    assert!(!stood_by.await.wrote, "the newer token lives for twelve more minutes");
    let second = eventually("the next fire", async || fires(AlarmMode::Standby, START).await.into_iter().nth(1));
    assert!(second.await.wrote, "nobody brought another one");
    let served = gateway.fetch_whoami(&hubspot).await.unwrap();
    assert!(served.ok && !served.stale, "{served:?}");

    // `disarmed`: nothing any more.
    let disarmed = gateway.set_alarm_mode(&hubspot, AlarmMode::Disarmed).await.unwrap();
    assert_eq!((disarmed.mode, disarmed.alarm_at), (AlarmMode::Disarmed, None));
    live.stop().await;
}

#[tokio::test]
async fn the_signed_webhook_copies_the_token_and_writes_an_audit_row() {
    let live = Live::start(rows(), HOUR_MS, 1.0).await;
    let url = format!("{}/admin/sync/nango", live.sandbox.runtime_urls().unwrap().gateway);
    let send = async |body: &str, signature: &str| {
        let sent = live.http.post(&url).header("x-nango-hmac-sha256", signature).body(body.to_owned()).send();
        let answer = sent.await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let sign = |body: &str| hex(&hmac_sha256(live.keys.nango_webhook_signing_key.as_bytes(), &[body.as_bytes()]));
    let body = json!({"type": "auth", "operation": "refresh", "success": true,
                      "providerConfigKey": "hubspot", "connectionId": "kahuna__hubspot__default"})
    .to_string();
    assert_eq!(send(&body, &sign("other")).await.0, 401);
    assert_eq!(send(&body, "").await.0, 401);
    assert_eq!(send(&body, &sign(&body)).await, (200, json!({"synced": true})));
    assert_eq!(live.rows_in("kv_audit").await, 1);
    let absent = body.replace("kahuna__", "nobody__");
    assert_eq!(send(&absent, &sign(&absent)).await, (200, json!({"synced": false})));
    assert_eq!(send("[]", &sign("[]")).await.0, 400);
    assert_eq!(live.rows_in("kv_audit").await, 1);
    live.stop().await;
}

/// One request, and what came back without what differs from run to run.
async fn shape_of(http: &Client, base: &str, keys: &SandboxKeys, ask: &Ask) -> (u16, Option<String>, Value) {
    let method = ask.method.parse().unwrap();
    let mut request = http.request(method, format!("{base}{}", ask.target));
    request = match ask.key {
        Key::None => request,
        Key::Wrong => request.header("x-admin-key", "wrong").bearer_auth("wrong"),
        Key::Right => request.header("x-admin-key", &keys.gateway_admin_key).bearer_auth(&keys.gateway_key),
    };
    if let Some(body) = ask.body {
        request = request.body(body);
    }
    let answer = request.send().await.unwrap();
    let reads = answer.headers().get("x-read-authority").map(|v| v.to_str().unwrap().to_owned());
    (answer.status().as_u16(), reads, without_values(answer.json().await.unwrap_or(Value::Null)))
}

/// Keeps keys, truths and the texts that are codes; ids, times and tokens become their type.
fn without_values(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(k, v)| {
                let coded = ["error", "mode", "read_authority", "triplet", "message"].contains(&k.as_str());
                let v = if coded { v } else { without_values(v) };
                (k, v)
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(without_values).collect(),
        Value::String(_) => json!("text"),
        other => other,
    }
}

#[derive(Clone, Copy)]
enum Key {
    None,
    Wrong,
    Right,
}

struct Ask {
    method: &'static str,
    target: &'static str,
    key: Key,
    body: Option<&'static str>,
}

const fn ask(method: &'static str, target: &'static str, key: Key, body: Option<&'static str>) -> Ask {
    Ask { method, target, key, body }
}

const ALARM: &str = "/admin/alarms/kahuna%3Ahubspot%3Adefault";
const MODE: &str = "/admin/alarms/kahuna%3Ahubspot%3Adefault/mode";

/// Every route, used well and badly.
const ASKS: [Ask; 36] = [
    ask("GET", "/v1/kahuna/hubspot/default/whoami", Key::Right, None),
    ask("GET", "/v1/kahuna/salesforce/default/whoami", Key::Right, None),
    ask("GET", "/v1/kahuna/hubspot/default/whoami", Key::Wrong, None),
    ask("GET", "/v1/kahuna/hubspot/default/whoami", Key::None, None),
    ask("GET", "/v1/nobody/hubspot/default/whoami", Key::Right, None),
    ask("GET", "/v1/kahuna/nothing/default/whoami", Key::Right, None),
    ask("POST", "/v1/kahuna/hubspot/default/whoami", Key::Right, None),
    ask("GET", "/elsewhere", Key::Right, None),
    ask("GET", "/admin/alarms", Key::None, None),
    ask("GET", "/admin/alarms", Key::Wrong, None),
    ask("GET", "/admin/alarms", Key::Right, None),
    ask("GET", "/admin/alarms?limit=0", Key::Right, None),
    ask("GET", "/admin/alarms?limit=1001", Key::Right, None),
    ask("GET", "/admin/alarms?limit=x", Key::Right, None),
    ask("GET", ALARM, Key::Right, None),
    ask("GET", "/admin/alarms/no%3Asuch%3Aone", Key::Right, None),
    ask("POST", MODE, Key::Right, Some(r#"{"mode":"standby"}"#)),
    ask("POST", MODE, Key::Right, Some(r#"{"mode":"asleep"}"#)),
    ask("POST", MODE, Key::Right, Some(r#"{"mode":7}"#)),
    ask("POST", MODE, Key::Right, Some("[]")),
    ask("POST", MODE, Key::Right, Some("not json")),
    ask("POST", MODE, Key::Right, None),
    ask("POST", "/admin/alarms/no%3Asuch%3Aone/mode", Key::Right, Some(r#"{"mode":"standby"}"#)),
    ask("POST", MODE, Key::Right, Some(r#"{"mode":"disarmed"}"#)),
    ask("GET", ALARM, Key::Right, None),
    ask("GET", "/admin/fires", Key::Right, None),
    ask("GET", "/admin/fires?since=2026-05-06T09%3A00%3A00.000Z", Key::Right, None),
    ask("GET", "/admin/fires?since=yesterday", Key::Right, None),
    ask("GET", "/admin/fires?cursor=x", Key::Right, None),
    ask("POST", "/admin/smoke", Key::Right, Some(r#"{"triplets":["kahuna:hubspot:default","kahuna:slack:default"]}"#)),
    ask("POST", "/admin/smoke", Key::Right, Some(r#"{"triplets":["nobody:hubspot:default"]}"#)),
    ask("POST", "/admin/smoke", Key::Right, Some(r#"{"triplets":["kahuna:nothing:default"]}"#)),
    ask("POST", "/admin/smoke", Key::Right, Some(r#"{"triplets":"all"}"#)),
    ask("POST", "/admin/smoke", Key::Wrong, Some(r#"{"triplets":[]}"#)),
    ask("POST", "/admin/nothing", Key::Right, None),
    ask("POST", "/admin/sync/nango", Key::Right, Some("{}")),
];

#[tokio::test]
async fn the_emulated_gateway_and_the_one_on_the_runtime_answer_alike() {
    let live = Live::start(rows(), HOUR_MS, 1.0).await;
    let emulated = Sandbox::start(World::new(config(rows(), HOUR_MS))).await.unwrap();
    let real = live.sandbox.runtime_urls().unwrap().gateway;
    let mut different = Vec::new();
    for ask in &ASKS {
        let there = shape_of(&live.http, &real, &live.keys, ask).await;
        let here = shape_of(&live.http, &emulated.urls.gateway, &live.keys, ask).await;
        if there != here {
            let (method, target, body) = (ask.method, ask.target, ask.body.unwrap_or_default());
            different.push(format!("{method} {target} {body}\n  runtime  {there:?}\n  emulated {here:?}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    emulated.stop().await;
    live.stop().await;
}

/// Fifty triplets read all the time while their entries and read-authority records are rewritten:
/// nothing fails. And the readers notice when one token dies.
#[tokio::test]
async fn reads_under_load_are_counted_under_either_gateway() {
    let fifty = || (0..50).map(|n| row(&format!("t{n:02}"), "hubspot", "hubspot")).collect::<Vec<_>>();
    let triplets: Vec<Triplet> = (0..50).map(|n| triplet(&format!("t{n:02}:hubspot:default"))).collect();
    let live = Live::start(fifty(), HOUR_MS, 1.0).await;
    let emulated = Sandbox::start(World::with_options(
        config(fifty(), HOUR_MS),
        WorldOptions { kv_lag_ms: 0, ..WorldOptions::default() },
    ))
    .await
    .unwrap();
    for sandbox in [&live.sandbox, &emulated] {
        let url = |key: &str| {
            let key = key.replace(':', "%3A");
            format!("{}/storage/kv/namespaces/{}/values/{key}", sandbox.urls.cloudflare, live.keys.kv_source)
        };
        let write = async |key: &str, value: String| {
            let sent =
                live.http.put(url(key)).bearer_auth(&live.keys.cloudflare_token).body(value).send().await.unwrap();
            assert_eq!(sent.status().as_u16(), 200);
        };
        let load =
            ReadLoad::start(&sandbox.urls.gateway, &live.keys.gateway_key, &triplets, 8, Duration::from_millis(5));
        let load = load.unwrap();
        for (n, triplet) in triplets.iter().enumerate() {
            write(&format!("authority:{triplet}"), json!({"read": "source", "epoch": n}).to_string()).await;
        }
        eventually("two rounds of reads", async || (load.counts().ok >= 100).then_some(())).await;
        let counts = load.counts();
        assert_eq!((counts.failed, counts.from_target), (0, 0), "{:?}", counts.failures);
        write("tokens:t07:hubspot:default", json!({"access_token": "never-issued"}).to_string()).await;
        eventually("a failed read", async || (load.counts().failed > 0).then_some(())).await;
        let counts = load.stop().await;
        assert!(counts.failures.iter().all(|failure| failure.starts_with("t07:hubspot:default: status 401")));
        assert_eq!(counts.ok, counts.from_source);
    }
    emulated.stop().await;
    live.stop().await;
}

fn cutover(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command.env_clear().current_dir(folder).stdin(Stdio::null());
    for name in ["PATH", "HOME"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("CUTOVER_CACHE_DIR", cache());
    command
}

/// The whole job: alarms fire for real, the gateway serves all the time, the gate passes, the
/// world counts no damage.
#[test]
fn the_whole_cutover_is_rehearsed_on_the_runtime() {
    let _alone = MACHINE.blocking_write();
    let dir = tempfile::tempdir().unwrap();
    let output = cutover(dir.path()).args(["rehearse", "--gateway", "workerd", "--format", "json"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"));
    let told = format!("{report:#}\n{stderr}");
    assert_eq!((output.status.code(), report["verdict"].as_str()), (Some(0), Some("pass")), "{told}");
    for name in ["lost", "stale_reads", "regressions", "double_refreshes"] {
        assert_eq!(report[name], 0, "{name}: {told}");
    }
    assert_eq!(report["stages"], json!({"retained": 4, "retired": 24}));
    let real = &report["real_time"];
    assert_eq!(real["reads"]["failed"], 0, "{told}");
    let served = |name: &str| real["reads"][name].as_u64().unwrap();
    assert!(served("from_source") > 200 && served("from_target") > 50, "{}", real["reads"]);
    assert!(real["alarms"]["fires"].as_u64().unwrap() > 24, "{}", real["alarms"]);
    let scaled = real["scaled"].to_string();
    assert!(scaled.contains("soak-duration: 2h instead of 30 d") && scaled.contains("mirror-lag"), "{scaled}");
}

#[test]
fn what_the_runtime_cannot_do_is_refused_and_a_missing_node_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (args, expected) in [
        (&["rehearse", "--gateway", "workerd", "--faults", "kv-lag"][..], "fault `kv-lag` needs the emulated gateway"),
        (&["rehearse", "--gateway", "workerd", "--days", "3"], "--days is virtual time"),
        (&["rehearse", "--gateway", "workerd", "--soak", "3s"], "is shorter than 20s"),
        (&["rehearse", "--soak", "60s"], "add `--gateway workerd`"),
        (&["rehearse", "--gateway", "workerd", "--speed", "0"], "a number from 1"),
        (&["sandbox", "--gateway", "workerd", "--speed", "0"], "cannot stand still"),
        (&["sandbox", "--gateway", "workerd", "--faults", "do-alarm-zombie"], "needs the emulated gateway"),
    ] {
        let output = cutover(dir.path()).args(args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && error.contains(expected), "{args:?}: {error}");
    }
    let output =
        cutover(dir.path()).env("PATH", dir.path()).args(["sandbox", "--gateway", "workerd"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot run `node`") && error.contains("install Node.js 20"), "{error}");
}
