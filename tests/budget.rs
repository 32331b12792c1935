//! The request budget, kept by the real engine and the real clients in virtual time, against a
//! Nango that counts. `cargo test --test budget -- --nocapture` prints the figures.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use cutover::catalogue::Catalogue;
use cutover::clients::{
    CloudflareEndpoint, ComposioEndpoint, Endpoints, GatewayEndpoint, HttpOutside, NangoEndpoint, ProviderEndpoint,
};
use cutover::domain::budget::Lane;
use cutover::domain::custody::Route;
use cutover::domain::schedule;
use cutover::domain::secret::Secret;
use cutover::domain::time::Timestamp;
use cutover::domain::token::{KvEntry, Writer};
use cutover::domain::triplet::Triplet;
use cutover::engine::{Engine, EngineConfig};
use cutover::plan::Policy;
use cutover::ports::{Api, Outside};
use cutover::store::{Capture, Durability, NewTriplet, NewVersion, Sink, Store, Vault};
use reqwest::Url;
use serde_json::{Value, json};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const START: i64 = 1_790_000_000_000;

/// Requests a minute that this Nango takes, whoever sends them.
const NANGO_PER_MINUTE: u64 = 1_000;

/// What the outside is, and what it saw.
#[derive(Default)]
struct World {
    /// When each connection's token ends, and how long a new one lives.
    connections: HashMap<String, (i64, i64)>,
    /// When requests of ours came to Nango.
    ours: Vec<i64>,
    /// Requests a minute that others send with the same account, evenly.
    live_per_minute: u64,
    refused: u64,
    /// Answers 429 with these seconds of `Retry-After`, once.
    refuse_once: Option<u64>,
    reading: usize,
    most_reading: usize,
    /// The least that a token had left when it was read.
    closest_ms: Option<i64>,
    /// Metadata, value and end by key. Both namespaces are given the same.
    kv: BTreeMap<String, (Value, String, i64)>,
    /// Puts that replaced a token which had ended.
    lost: u64,
    /// When accounts at Composio were given a new token.
    patches: Vec<i64>,
    compared: usize,
}

impl World {
    /// Counts a request of ours in Nango's minute. `Err` is a 429.
    fn count(&mut self, now: i64) -> Result<HeaderMap, Box<Response>> {
        self.ours.push(now);
        let minute = now - now.rem_euclid(MINUTE);
        let ours = self.ours.len() - self.ours.partition_point(|at| *at < minute);
        let live = self.live_per_minute * (now - minute) as u64 / MINUTE as u64;
        let used = ours as u64 + live;
        let reset = (minute + MINUTE) / 1_000;
        let mut headers = HeaderMap::new();
        headers.insert("x-ratelimit-limit", NANGO_PER_MINUTE.into());
        headers.insert("x-ratelimit-remaining", NANGO_PER_MINUTE.saturating_sub(used).into());
        headers.insert("x-ratelimit-reset", reset.into());
        let wait = self.refuse_once.take().or((used > NANGO_PER_MINUTE).then_some((reset - now / 1_000) as u64));
        let Some(wait) = wait else { return Ok(headers) };
        self.refused += 1;
        headers.insert("retry-after", wait.into());
        let body = json!({"error": {"code": "too_many_request", "method": "GET", "path": "/connections"}});
        Err(Box::new((StatusCode::TOO_MANY_REQUESTS, headers, Json(body)).into_response()))
    }

    fn read(&mut self, id: &str, now: i64) -> Response {
        let headers = match self.count(now) {
            Ok(headers) => headers,
            Err(refused) => return *refused,
        };
        let (ends, life) = self.connections[id];
        self.closest_ms = Some(self.closest_ms.map_or(ends - now, |least| least.min(ends - now)));
        let ends = if ends - now < 15 * MINUTE { now + life } else { ends };
        self.connections.insert(id.to_owned(), (ends, life));
        let body = json!({
            "connection_id": id, "errors": [], "connection_config": {},
            "credentials": {"type": "OAUTH2", "access_token": format!("{id}-{ends}"),
                            "expires_at": Timestamp::from_millis(ends).to_rfc3339(), "raw": {}},
        });
        (headers, Json(body)).into_response()
    }

    fn put(&mut self, entries: &[Value], now: i64) {
        for entry in entries {
            let value: Value = serde_json::from_str(entry["value"].as_str().unwrap()).unwrap();
            let ends = Timestamp::parse(value["expires_at"].as_str().unwrap()).unwrap().millis();
            let row = (entry["metadata"].clone(), value.to_string(), ends);
            let old = self.kv.insert(entry["key"].as_str().unwrap().to_owned(), row);
            self.lost += u64::from(old.is_some_and(|(_, _, ended)| ended < now));
        }
    }

    fn keys(&self, query: &str) -> Value {
        let parameter = |name: &str| {
            let found = form_urlencoded::parse(query.as_bytes()).find(|(n, _)| n == name);
            found.map(|(_, value)| value.into_owned()).unwrap_or_default()
        };
        let (prefix, from) = (parameter("prefix"), parameter("cursor"));
        let rows: Vec<Value> = self
            .kv
            .range(from..)
            .filter(|(name, _)| name.starts_with(&prefix))
            .take(1_001)
            .map(|(name, (metadata, ..))| json!({"name": name, "metadata": metadata}))
            .collect();
        let cursor = rows.get(1_000).map_or(json!(""), |row| row["name"].clone());
        let rows = &rows[..rows.len().min(1_000)];
        json!({"success": true, "errors": [], "messages": [], "result": rows, "result_info": {"cursor": cursor}})
    }
}

struct Outer {
    world: Mutex<World>,
    clock: AtomicI64,
}

impl Outer {
    fn now(&self) -> i64 {
        self.clock.load(Ordering::SeqCst)
    }
}

async fn answer(State(outer): State<Arc<Outer>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let (path, now) = (uri.path(), outer.now());
    let world = || outer.world.lock().unwrap();
    let done =
        |result: Value| Json(json!({"success": true, "errors": [], "messages": [], "result": result})).into_response();
    if let Some(id) = path.strip_prefix("/nango/connections/") {
        {
            let mut world = world();
            world.reading += 1;
            world.most_reading = world.most_reading.max(world.reading);
        }
        // Long enough for the others that are under way to arrive.
        tokio::task::yield_now().await;
        let mut world = world();
        world.reading -= 1;
        return world.read(id, now);
    }
    match (method, path) {
        (Method::GET, "/nango/integrations") => match world().count(now) {
            Ok(headers) => (headers, Json(json!({"data": []}))).into_response(),
            Err(refused) => *refused,
        },
        (Method::PUT, path) if path.ends_with("source/bulk") => {
            world().put(&serde_json::from_slice::<Vec<Value>>(&body).unwrap(), now);
            done(Value::Null)
        }
        (Method::PUT, path) if path.ends_with("target/bulk") => done(Value::Null),
        (Method::GET, path) if path.ends_with("/keys") => {
            Json(world().keys(uri.query().unwrap_or_default())).into_response()
        }
        (Method::POST, path) if path.ends_with("/raw") => done(json!([{"success": true, "results": {"rows": []}}])),
        (Method::POST, path) if path.ends_with("/bulk/get") => {
            let asked: Value = serde_json::from_slice(&body).unwrap();
            let asked = asked["keys"].as_array().unwrap();
            let mut world = world();
            world.compared += asked.len();
            let value = |key: &Value| (key.as_str().unwrap().to_owned(), world.kv.get(key.as_str().unwrap()));
            let values: HashMap<_, _> =
                asked.iter().map(value).map(|(key, found)| (key, found.map(|(_, value, _)| value.clone()))).collect();
            done(json!({"values": values}))
        }
        (Method::PATCH, path) if path.starts_with("/composio/") => {
            world().patches.push(now);
            let id = path.rsplit('/').next().unwrap();
            Json(json!({"id": id, "status": "ACTIVE", "success": true})).into_response()
        }
        (Method::GET, path) if path.ends_with("/toolkits/gmail") => Json(json!({"slug": "gmail"})).into_response(),
        (Method::GET, path) if path.starts_with("/composio/") => Json(json!({"items": []})).into_response(),
        (Method::GET, "/gateway/admin/alarms") => Json(json!({"alarms": []})).into_response(),
        (Method::GET, "/gateway/admin/fires") => Json(json!({"fires": []})).into_response(),
        (method, path) => panic!("nobody should ask for {method} {path}"),
    }
}

struct Trial {
    outer: Arc<Outer>,
    engine: Engine<HttpOutside>,
    _directory: tempfile::TempDir,
}

/// A shim in the soak with one connection per life (milliseconds): all tokens were made at
/// `START`, so that those of one life end at one instant.
async fn soaking(lives: &[i64], world: World) -> Trial {
    let mut world = world;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cutover.db");
    let store = Store::open(&path, Durability::ProcessCrash, Vault::from_master(&[7; 32])).await.unwrap();
    let start = Timestamp::from_millis(START);
    let mut triplets = Vec::new();
    let mut lives_by_id = HashMap::new();
    for (n, life) in lives.iter().enumerate() {
        let triplet = Triplet::parse(&format!("t{n:05}:slack:default")).unwrap();
        let connection_id = format!("t{n:05}__slack__default");
        lives_by_id.insert(connection_id.clone(), (triplet.clone(), *life));
        world.connections.insert(connection_id.clone(), (START + life, *life));
        triplets.push(NewTriplet {
            triplet,
            integration_key: "slack".into(),
            connection_id,
            route: Route::Reconsent,
            wave: Some(1),
            toolkit: Some("slack".into()),
            scopes: Vec::new(),
        });
    }
    store.begin_plan("p-000000000001", "{}", &triplets, start).await.unwrap();
    for new in &triplets {
        store.save_mirror_account(&new.triplet, &format!("ca_{}", new.triplet.tenant)).await.unwrap();
    }
    let capture = |connection: cutover::store::ConnectionRow| {
        let (triplet, life) = &lives_by_id[&connection.connection_id];
        let expires_at = Some(start.plus_ms(*life));
        let access_token = Secret::new(format!("{}-first", connection.connection_id));
        let entry = KvEntry { access_token, expires_at, token_type: None, scope: None, other: serde_json::Map::new() };
        Capture {
            connection: connection.id,
            claim: connection.claim,
            fingerprint: store.vault().fingerprints().fingerprint(&entry.access_token),
            expires_at,
            // The same draw for all: no jitter helps.
            poll_at: schedule::poll_at(expires_at, start, 0),
            versions: vec![NewVersion { triplet: triplet.clone(), epoch: 1, writer: Writer::Nango, entry }],
            scheduled: None,
        }
    };
    let captures: Vec<Capture> = store.load_connections().await.unwrap().into_iter().map(capture).collect();
    for some in captures.chunks(100) {
        store.append_captures(some, &Sink::ALL, start).await.unwrap();
    }
    store.save_meta("soaking", "1").await.unwrap();

    let outer = Arc::new(Outer { world: Mutex::new(world), clock: AtomicI64::new(START) });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(answer).with_state(Arc::clone(&outer));
    tokio::spawn(axum::serve(listener, router).into_future());

    let url = |path: &str| Url::parse(&format!("{base}{path}")).unwrap();
    let key = || Secret::new("key");
    let endpoints = Endpoints {
        nango: NangoEndpoint { base: url("/nango"), key: key() },
        composio: ComposioEndpoint { base: url("/composio"), key: key(), oauth_apps: BTreeMap::new() },
        cloudflare: CloudflareEndpoint {
            base: url("/cloudflare"),
            token: key(),
            kv_source: "source".into(),
            kv_target: "target".into(),
            d1: "d1".into(),
        },
        gateway: GatewayEndpoint { base: url("/gateway"), admin_key: key(), gateway_key: key() },
        provider: ProviderEndpoint { base_override: Some(url("/provider")) },
        allow_insecure_http: false,
    };
    let clock = Arc::clone(&outer);
    let outside = HttpOutside::new(endpoints, Arc::new(move || Timestamp::from_millis(clock.now()))).unwrap();
    let config = EngineConfig::new(Policy::default());
    let engine = Engine::new(store, outside, Catalogue::built_in(), config).await.unwrap();
    Trial { outer, engine, _directory: directory }
}

impl Trial {
    /// Runs the duties for so long in virtual time; returns how many rounds it took.
    async fn run_ms(&self, ms: i64) -> u64 {
        let (end, mut rounds) = (self.outer.now() + ms, 0);
        while self.outer.now() < end {
            let now = Timestamp::from_millis(self.outer.now());
            let next = self.engine.run_due(now).await.unwrap().unwrap();
            self.outer.clock.store(next.millis().min(end), Ordering::SeqCst);
            rounds += 1;
        }
        rounds
    }
}

/// Most of the ascending `times` in any window of this length, both ends included.
fn most_in_a_window(times: &[i64], window_ms: i64) -> usize {
    (0..times.len()).map(|i| times[i..].partition_point(|at| *at <= times[i] + window_ms)).max().unwrap_or(0)
}

#[tokio::test]
async fn ten_thousand_connections_stay_within_a_thousand_a_minute_and_lose_no_token() {
    // Four in five live an hour, the others half an hour; each kind ends at one instant.
    let lives: Vec<i64> = (0..10_000).map(|n| if n % 5 == 0 { HOUR / 2 } else { HOUR }).collect();
    let trial = soaking(&lives, World { live_per_minute: 100, ..World::default() }).await;
    let began = std::time::Instant::now();
    let hours = 1.1;
    let rounds = trial.run_ms((hours * HOUR as f64) as i64).await;
    assert_eq!(trial.engine.store().load_counters().await.unwrap().get("limited:nango"), None);
    let world = trial.outer.world.lock().unwrap();
    let (now, minute) = (trial.outer.now(), most_in_a_window(&world.ours, MINUTE));
    println!(
        "10,000 connections, {} h: {} requests in {rounds} rounds, at most {minute} in any minute (limit \
         {NANGO_PER_MINUTE}, {} of them others'), {} refused, {} read at once, closest token {} s before its end, \
         {} tokens lost; {} patches at Composio, at most {} a minute; {} entries compared ({:.1} s of wall time)",
        hours,
        world.ours.len(),
        world.live_per_minute,
        world.refused,
        world.most_reading,
        world.closest_ms.unwrap() / 1_000,
        world.lost,
        world.patches.len(),
        most_in_a_window(&world.patches, MINUTE),
        world.compared / 2,
        began.elapsed().as_secs_f64(),
    );
    assert!(minute as u64 <= NANGO_PER_MINUTE, "{minute}");
    assert_eq!(world.refused, 0, "no request met a 429");
    assert_eq!(world.lost, 0, "no token ended in KV before the next one was there");
    assert_eq!(world.kv.len(), lives.len());
    assert!(world.kv.values().all(|(_, _, ends)| *ends > now), "and none is past its end now");
    assert!(world.closest_ms.unwrap() > 0);
    // Each half-hour token was renewed at least three times, each other one once.
    assert!(world.ours.len() >= 2_000 * 3 + 8_000, "{}", world.ours.len());
    assert!(world.patches.len() >= world.ours.len() && most_in_a_window(&world.patches, MINUTE) <= 1_900);
    assert!(world.compared >= 2 * lives.len(), "the comparison came to its end: {}", world.compared);
    assert!(world.most_reading <= 16, "{}", world.most_reading);
}

#[tokio::test]
async fn a_429_shuts_the_reads_until_its_time_and_is_held_against_no_connection() {
    let trial = soaking(&[HOUR; 40], World { refuse_once: Some(20), ..World::default() }).await;
    // Up to the first look: the probe at the start meets the 429.
    trial.run_ms(1_000).await;
    {
        let world = trial.outer.world.lock().unwrap();
        assert_eq!((world.ours.len(), world.refused), (1, 1));
    }
    let now = Timestamp::from_millis(trial.outer.now());
    let shut = trial.engine.outside().allowance(Api::Nango, Lane::Urgent, now);
    assert_eq!((shut.now, shut.next_at.millis() / 1_000), (0, START / 1_000 + 20));

    trial.outer.world.lock().unwrap().refuse_once = Some(30);
    trial.run_ms(46 * MINUTE).await;
    let connections = trial.engine.store().load_connections().await.unwrap();
    assert!(connections.iter().all(|c| c.failures == 0 && c.failing_since.is_none()));
    let world = trial.outer.world.lock().unwrap();
    assert_eq!(world.refused, 2);
    assert!(world.connections.values().all(|(ends, _)| *ends > START + HOUR), "all were read after all");
}
