//! The sandbox over real sockets: every router answers, crashes hang, stopping ends everything.

use std::collections::BTreeSet;
use std::sync::Once;

use cutover::catalogue::Catalogue;
use cutover::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};
use cutover::domain::triplet::Part;
use cutover::inventory::Row;
use cutover::sandbox::{Fault, Sandbox, TokenLife, World, WorldConfig};
use reqwest::Client;
use serde_json::{Value, json};

const START: Timestamp = Timestamp::from_secs(1_778_058_000);

fn client() -> Client {
    static RING: Once = Once::new();
    // Another test of this process may have been first; either way a provider is there.
    RING.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    Client::builder().no_proxy().tls_certs_only([]).build().unwrap()
}

fn world(seed: u64, faults: &[&str]) -> World {
    let row = |tenant: &str, key: &str, provider: &str| Row {
        tenant: Part::new(tenant).unwrap(),
        integration_key: key.to_owned(),
        connection_id: format!("{tenant}__{key}__default"),
        providers: vec![Part::new(provider).unwrap()],
        account: Part::new("default").unwrap(),
        auth_mode: None,
    };
    World::new(WorldConfig {
        seed,
        start: START,
        rows: vec![row("kahuna", "hubspot", "hubspot"), row("pointfield", "google", "gmail")],
        catalogue: Catalogue::built_in(),
        retained: BTreeSet::new(),
        faults: faults.iter().map(|f| Fault::parse(f).unwrap()).collect(),
        fault_from: START,
        fault_until: START.plus_ms(DAY_MS),
        token_life: TokenLife::Fixed(HOUR_MS),
        shim_url: None,
    })
}

async fn json(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn every_system_answers_on_its_own_port_with_the_virtual_date() {
    let sandbox = Sandbox::start(world(1, &[])).await.unwrap();
    let (http, keys, urls) = (client(), sandbox.lock().keys(), sandbox.urls.clone());
    let connection = format!("{}/connections/kahuna__hubspot__default?provider_config_key=hubspot", urls.nango);
    let response = http.get(&connection).bearer_auth(&keys.nango_api_key).send().await.unwrap();
    assert_eq!(response.headers()["date"], "Wed, 06 May 2026 09:00:00 GMT");
    assert!(response.headers().contains_key("x-ratelimit-remaining"));
    let shown: Value = response.json().await.unwrap();
    let token = shown["credentials"]["access_token"].as_str().unwrap();

    let whoami = format!("{}/api.hubapi.com/account-info/v3/details", urls.provider);
    let (status, identity) = json(http.get(whoami).bearer_auth(token)).await;
    assert!(status == 200 && identity["portalId"].is_u64());

    let configs = format!("{}/api/v3.1/auth_configs", urls.composio);
    let body = json!({"toolkit": {"slug": "hubspot"},
                      "auth_config": {"type": "use_custom_auth", "authScheme": "BEARER_TOKEN", "credentials": {}}});
    let (status, made) = json(http.post(configs).header("x-api-key", &keys.composio_api_key).json(&body)).await;
    assert_eq!((status, &made["auth_config"]["auth_scheme"]), (201, &json!("BEARER_TOKEN")));

    let account = format!("{}/client/v4/accounts/{}", urls.cloudflare, keys.cloudflare_account_id);
    let value =
        format!("{account}/storage/kv/namespaces/{}/values/tokens%3Akahuna%3Ahubspot%3Adefault", keys.kv_source);
    let form = reqwest::multipart::Form::new()
        .text("value", json!({"access_token": token}).to_string())
        .text("metadata", r#"{"v":1}"#);
    let (status, put) = json(http.put(&value).bearer_auth(&keys.cloudflare_token).multipart(form)).await;
    assert_eq!((status, &put["success"]), (200, &json!(true)));
    let stored = http.get(&value).bearer_auth(&keys.cloudflare_token).send().await.unwrap();
    let stored: Value = stored.json().await.unwrap();
    assert_eq!(stored["access_token"], token);

    let smoke = http.post(format!("{}/admin/smoke", urls.gateway)).header("X-Admin-Key", &keys.gateway_admin_key);
    let (status, smoked) = json(smoke.json(&json!({"triplets": ["kahuna:hubspot:default"]}))).await;
    assert_eq!((status, &smoked["results"][0]["ok"]), (200, &json!(true)));

    let (_, control) = json(http.get(format!("{}/_sandbox/ledger", urls.gateway))).await;
    assert_eq!(
        (&control["ledger"]["deliveries"], &control["ledger"]["requests"]["gateway"]["POST"]),
        (&json!(1), &json!(1))
    );
    sandbox.stop().await;
    assert!(http.get(connection).send().await.is_err(), "the port is closed");
}

#[tokio::test]
async fn a_crash_is_signalled_and_its_request_never_answered() {
    let sandbox = Sandbox::start(world(1, &["crash=1"])).await.unwrap();
    let (http, url) = (client(), format!("{}/health", sandbox.urls.nango));
    let mut answered = 0;
    loop {
        tokio::select! {
            biased;
            () = sandbox.crash.crashed() => break,
            response = http.get(&url).send() => answered += u32::from(response.is_ok()),
        }
    }
    assert!((29..600).contains(&answered));
    sandbox.crash.reset();
    assert!(!sandbox.crash.is_up());
    assert!(http.get(&url).send().await.is_ok());
    sandbox.stop().await;
}

/// Two worlds of one seed, the same requests sent at once in whatever order they arrive.
#[tokio::test]
async fn concurrent_requests_of_one_seed_give_one_ledger() {
    let mut ledgers = Vec::new();
    for seed in [5, 5, 6] {
        let sandbox = Sandbox::start(world(seed, &["composio-429", "kv-lag"])).await.unwrap();
        let (http, keys, urls) = (client(), sandbox.lock().keys(), sandbox.urls.clone());
        let mut tokens = BTreeSet::new();
        for _ in 0..20 {
            let ids = [("kahuna__hubspot__default", "hubspot"), ("pointfield__google__default", "google")];
            let reads = ids.map(|(id, key)| {
                let url = format!("{}/connections/{id}?provider_config_key={key}", urls.nango);
                tokio::spawn(json(http.get(url).bearer_auth(&keys.nango_api_key)))
            });
            let toolkits = (0..5).map(|n| {
                let url = format!("{}/api/v3.1/toolkits?limit={}", urls.composio, n + 1);
                tokio::spawn(json(http.get(url).header("x-api-key", &keys.composio_api_key)))
            });
            let limited: Vec<_> = toolkits.collect();
            for read in reads {
                tokens.insert(read.await.unwrap().1["credentials"]["access_token"].to_string());
            }
            for task in limited {
                tokens.insert(format!("{}", task.await.unwrap().0));
            }
            let mut world = sandbox.lock();
            let to = world.now().plus_ms(11 * MINUTE_MS);
            world.advance_to(to);
        }
        let ledger = serde_json::to_string(&sandbox.lock().ledger()).unwrap();
        ledgers.push((ledger, tokens));
        sandbox.stop().await;
    }
    assert_eq!(ledgers[0], ledgers[1]);
    assert_ne!(ledgers[0].1, ledgers[2].1);
}
