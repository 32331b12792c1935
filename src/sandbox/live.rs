//! The sandbox without a driver: control routes, and a loop that ties virtual to real time.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::domain::time::Timestamp;

use super::composio::ComposioSettings;
use super::faults::Fault;
use super::http::{Call, Reply};
use super::nango::NangoSettings;
use super::serve::Sandbox;
use super::world::{GatewayKind, World};

/// How often virtual time catches up with real time.
const TICK: Duration = Duration::from_millis(25);

/// The longest step of `POST /_sandbox/advance`: a year.
const ADVANCE_MS_MAX: i64 = 366 * crate::domain::time::DAY_MS;

/// Answers `/_sandbox/…` on the gateway's port; `None` for every other path. These routes are the
/// sandbox's own, so the ledger does not count them.
pub(super) fn control(world: &mut World, call: &Call) -> Option<Reply> {
    let route = call.route();
    let ["_sandbox", rest @ ..] = route.as_slice() else { return None };
    let bad = |message: String| Reply::json(400, &json!({"error": "bad_request", "message": message}));
    let reply = match (call.method.as_str(), rest) {
        ("GET", ["ledger"]) => Reply::json(200, &json!({"now": world.now().to_rfc3339(), "ledger": world.ledger()})),
        ("GET", ["faults"]) => Reply::json(200, &json!({"faults": world.fault_notes()})),
        ("POST", ["advance"]) if world.options().gateway == GatewayKind::Workerd => {
            bad("the Workers runtime lives in real time; its clock cannot be moved".to_owned())
        }
        ("POST", ["advance"]) => {
            let ms = call.json().and_then(|b| b["ms"].as_i64()).filter(|ms| (0..=ADVANCE_MS_MAX).contains(ms));
            match ms {
                Some(ms) => {
                    world.advance_to(world.now().plus_ms(ms));
                    Reply::json(200, &json!({"now": world.now().to_rfc3339()}))
                }
                None => bad("ms must be a whole number from 0 to 366 days".to_owned()),
            }
        }
        ("POST", ["faults"]) => {
            let body = call.json().unwrap_or(Value::Null);
            let names: Vec<&str> = body["faults"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            match names.into_iter().map(Fault::parse).collect::<Result<Vec<_>, _>>() {
                Ok(faults) => {
                    world.add_faults(&faults);
                    Reply::json(200, &json!({"faults": world.fault_notes()}))
                }
                Err(error) => bad(error.to_string()),
            }
        }
        ("POST", ["script"]) => match script(world, &call.body) {
            Ok(()) => Reply::json(200, &json!({"ok": true})),
            Err(error) => bad(error),
        },
        ("POST", ["settings"]) => match serde_json::from_slice::<Settings>(&call.body) {
            Ok(Settings { nango, composio }) => {
                world.set_settings(nango, composio);
                Reply::json(200, &json!({"ok": true}))
            }
            Err(error) => bad(error.to_string()),
        },
        ("POST", ["keys"]) => match serde_json::from_slice::<NewKey>(&call.body) {
            Ok(NewKey::Nango { scopes }) => Reply::json(200, &json!({"key": world.add_nango_key(scopes)})),
            Ok(NewKey::Composio { areas }) => Reply::json(200, &json!({"key": world.add_composio_key(areas)})),
            Err(error) => bad(error.to_string()),
        },
        _ => Reply::json(404, &json!({"error": "not_found"})),
    };
    Some(reply)
}

/// A key with few permissions, as `POST /_sandbox/keys` asks for it.
#[derive(Deserialize)]
#[serde(tag = "api", rename_all = "lowercase", deny_unknown_fields)]
enum NewKey {
    /// Scopes without `environment:`, such as `connections:list`.
    Nango { scopes: Vec<String> },
    /// Areas with `:read` or `:write`, such as `connected_accounts:write`.
    Composio { areas: Vec<String> },
}

/// Settings of two systems, as `POST /_sandbox/settings` sets them. What a part leaves out goes
/// back to its default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    nango: Option<NangoSettings>,
    composio: Option<ComposioSettings>,
}

/// Takes a script for an API or for a token endpoint.
fn script(world: &mut World, body: &[u8]) -> Result<(), String> {
    let value: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let taken = if value.get("token_answer").is_some() {
        world.add_token_script(serde_json::from_value(value).map_err(|error| error.to_string())?)
    } else {
        world.add_script(serde_json::from_value(value).map_err(|error| error.to_string())?)
    };
    taken.map_err(|error| error.to_string())
}

/// A virtual clock that goes with the wall clock, at a speed.
#[derive(Clone, Copy, Debug)]
pub struct LiveClock {
    began: Instant,
    /// The wall clock at that instant, ms since 1970: for a process that has no part in ours.
    began_wall_ms: i64,
    world_start: Timestamp,
    speed: f64,
}

impl LiveClock {
    /// Starts now at `world_start`, `speed` virtual seconds a second (from 0 up; other values
    /// count as 1).
    pub fn start(world_start: Timestamp, speed: f64) -> Self {
        let speed = if speed.is_finite() && speed >= 0.0 { speed } else { 1.0 };
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let began_wall_ms = i64::try_from(wall.as_millis()).unwrap_or(i64::MAX);
        Self { began: Instant::now(), began_wall_ms, world_start, speed }
    }

    pub fn now(&self) -> Timestamp {
        self.world_start.plus_ms(self.elapsed_ms())
    }

    fn elapsed_ms(&self) -> i64 {
        (self.began.elapsed().as_secs_f64() * 1_000.0 * self.speed) as i64
    }

    /// How long it really takes until a virtual time. A clock that stands still never gets there.
    pub fn wait(&self, until: Timestamp) -> Duration {
        let virtual_s = until.since(self.now()).max(0) as f64 / 1_000.0;
        Duration::try_from_secs_f64(virtual_s / self.speed).unwrap_or(Duration::MAX)
    }

    /// The clock as a process beside this one can follow it.
    pub(super) fn to_json(self) -> Value {
        json!({
            "real_start_ms": self.began_wall_ms,
            "world_start_ms": self.world_start.millis(),
            "speed": self.speed,
        })
    }
}

impl Sandbox {
    /// Ties the world's clock to `clock`, delivers webhooks through `client` and keeps the books of
    /// a gateway outside of the world. Never ends: drop it to stop.
    pub fn run_live(&self, clock: LiveClock, client: reqwest::Client) -> impl Future<Output = ()> + Send + use<> {
        let (world, relay) = (Arc::clone(&self.world), Arc::clone(&self.relay));
        async move {
            let watch = async {
                match relay.get() {
                    Some(relay) => relay.watch(&world).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tick(&world, &clock, &client) => {}
                () = watch => {}
            }
        }
    }
}

async fn tick(world: &Mutex<World>, clock: &LiveClock, client: &reqwest::Client) {
    let lock = || world.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut moved_ms = 0;
    loop {
        ticks.tick().await;
        let target_ms = clock.elapsed_ms();
        let outbound = {
            let mut world = lock();
            // Steps, so that the control route may move the clock as well.
            let to = world.now().plus_ms(target_ms - moved_ms);
            world.advance_to(to);
            world.take_outbound()
        };
        moved_ms = target_ms;
        for webhook in outbound {
            let mut request = client.post(&webhook.url).body(webhook.body);
            for (name, value) in &webhook.headers {
                request = request.header(name, value);
            }
            let status = request.send().await.ok().map(|r| r.status().as_u16());
            lock().webhook_answered(webhook.id, status);
        }
    }
}
