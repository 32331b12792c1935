//! The sandbox without a driver: control routes, and a loop that ties virtual to real time.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::composio::ComposioSettings;
use super::faults::Fault;
use super::http::{Call, Reply};
use super::nango::NangoSettings;
use super::serve::Sandbox;
use super::world::World;

/// How often virtual time catches up with real time.
const TICK: Duration = Duration::from_millis(100);

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
            Err(error) => bad(error.to_string()),
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
fn script(world: &mut World, body: &[u8]) -> Result<(), serde_json::Error> {
    let value: Value = serde_json::from_slice(body)?;
    if value.get("token_answer").is_some() {
        world.add_token_script(serde_json::from_value(value)?);
    } else {
        world.add_script(serde_json::from_value(value)?);
    }
    Ok(())
}

impl Sandbox {
    /// Ties the world's clock to the wall clock, `speed` virtual seconds a second (from 0 up; other
    /// values count as 1), and delivers webhooks through `client`. Runs until the future is dropped.
    pub async fn run_live(&self, speed: f64, client: &reqwest::Client) {
        let speed = if speed.is_finite() && speed >= 0.0 { speed } else { 1.0 };
        let began = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        let mut moved_ms = 0;
        loop {
            ticks.tick().await;
            let target_ms = (began.elapsed().as_secs_f64() * 1_000.0 * speed) as i64;
            let outbound = {
                let mut world = self.lock();
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
                self.lock().webhook_answered(webhook.id, status);
            }
        }
    }
}
