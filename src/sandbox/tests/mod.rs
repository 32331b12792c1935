//! What the emulators must do, rule by rule, and what the ledger must notice.

mod cloudflare;
mod composio;
mod consent;
mod faults;
mod gateway;
mod ledger;
mod nango;
mod provider;
mod recordings;
mod switches;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::catalogue::Catalogue;
use crate::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};
use crate::domain::triplet::Part;
use crate::inventory::Row;
use crate::ports::Api;

use super::http::{Call, Reply};
use super::world::{Answer, TokenLife, World, WorldConfig, WorldOptions};

const START: Timestamp = Timestamp::from_secs(1_778_058_000);

fn part(text: &str) -> Part {
    Part::new(text).unwrap()
}

fn row(tenant: &str, key: &str, providers: &[&str]) -> Row {
    Row {
        tenant: part(tenant),
        integration_key: key.to_owned(),
        connection_id: format!("{tenant}__{key}__default"),
        providers: providers.iter().map(|p| part(p)).collect(),
        account: part("default"),
        auth_mode: None,
    }
}

fn config(rows: Vec<Row>) -> WorldConfig {
    WorldConfig {
        seed: 38,
        start: START,
        rows,
        catalogue: Catalogue::built_in(),
        retained: BTreeSet::new(),
        faults: Vec::new(),
        fault_from: START,
        fault_until: START.plus_ms(30 * DAY_MS),
        token_life: TokenLife::Fixed(HOUR_MS),
        shim_url: Some("http://shim.example/w".into()),
    }
}

/// One tenant with one HubSpot connection.
fn hubspot() -> World {
    World::new(config(vec![row("kahuna", "hubspot", &["hubspot"])]))
}

const TRIPLET: &str = "kahuna:hubspot:default";
const CONNECTION: &str = "/connections/kahuna__hubspot__default?provider_config_key=hubspot";

/// A client with every key, talking to a world without sockets.
struct Client {
    world: World,
}

impl Client {
    fn new(world: World) -> Self {
        Self { world }
    }

    fn ask(&mut self, api: Api, call: &Call) -> Reply {
        match self.world.answer(api, call) {
            Answer::Reply(reply) => reply,
            Answer::Crash => panic!("the client was killed"),
        }
    }

    fn with_key(&self, api: Api, call: Call) -> Call {
        let keys = self.world.keys();
        match api {
            Api::Nango => call.with_header("authorization", &format!("Bearer {}", keys.nango_api_key)),
            Api::Composio => call.with_header("x-api-key", &keys.composio_api_key),
            Api::Cloudflare => call.with_header("authorization", &format!("Bearer {}", keys.cloudflare_token)),
            Api::Gateway => call.with_header("x-admin-key", &keys.gateway_admin_key),
            Api::Provider => call,
        }
    }

    /// A call with the right key and without a body.
    fn call(&mut self, api: Api, method: &str, target: &str) -> Reply {
        let call = self.with_key(api, Call::new(method, target));
        self.ask(api, &call)
    }

    /// A call with the right key and a JSON body.
    fn send(&mut self, api: Api, method: &str, target: &str, body: &Value) -> Reply {
        let call = self.with_key(api, Call::new(method, target).with_json(body));
        self.ask(api, &call)
    }

    fn nango(&mut self, method: &str, target: &str) -> Reply {
        self.call(Api::Nango, method, target)
    }

    fn composio(&mut self, method: &str, target: &str, body: &Value) -> Reply {
        self.send(Api::Composio, method, &format!("/api/v3.1{target}"), body)
    }

    fn kv(&mut self, method: &str, namespace: &str, rest: &str, body: &Value) -> Reply {
        let keys = self.world.keys();
        let id = if namespace == "source" { &keys.kv_source } else { &keys.kv_target };
        let target = format!("/client/v4/accounts/{}/storage/kv/namespaces/{id}{rest}", keys.cloudflare_account_id);
        self.send(Api::Cloudflare, method, &target, body)
    }

    /// Reads the connection at Nango, as the poller does, and returns its access token.
    fn poll(&mut self) -> String {
        let reply = self.nango("GET", CONNECTION);
        assert_eq!(reply.status, 200, "{}", reply.value());
        reply.value()["credentials"]["access_token"].as_str().unwrap().to_owned()
    }

    fn expiry(&mut self) -> Timestamp {
        let reply = self.nango("GET", CONNECTION);
        Timestamp::parse(reply.value()["credentials"]["expires_at"].as_str().unwrap()).unwrap()
    }

    /// Puts a token to a KV namespace the way the mirror does.
    fn mirror(&mut self, namespace: &str, token: &str) {
        self.mirror_until(namespace, token, self.world.now().plus_ms(HOUR_MS));
    }

    fn mirror_until(&mut self, namespace: &str, token: &str, expires_at: Timestamp) {
        let value = json!({"access_token": token, "expires_at": expires_at.to_rfc3339()}).to_string();
        let puts = json!([{"key": format!("tokens:{TRIPLET}"), "value": value, "metadata": {"v": 1}}]);
        let reply = self.kv("PUT", namespace, "/bulk", &puts);
        assert_eq!(reply.value()["result"]["unsuccessful_keys"], json!([]), "{}", reply.value());
    }

    fn set_alarm(&mut self, mode: &str) -> Reply {
        self.send(Api::Gateway, "POST", &format!("/admin/alarms/{TRIPLET}/mode"), &json!({"mode": mode}))
    }

    fn advance(&mut self, ms: i64) {
        self.world.advance_to(self.world.now().plus_ms(ms));
    }

    /// Polls and mirrors to both namespaces every 40 minutes, alarms disarmed.
    fn run_a_healthy_mirror(&mut self, rounds: usize) {
        self.set_alarm("disarmed");
        for _ in 0..rounds {
            let token = self.poll();
            self.mirror("source", &token);
            self.mirror("target", &token);
            self.advance(10 * MINUTE_MS);
        }
    }
}
