//! The sandbox without a driver: control routes, and a loop that ties virtual to real time.

use serde_json::{Value, json};

use super::faults::Fault;
use super::http::{Call, Reply};
use super::world::World;

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
        _ => Reply::json(404, &json!({"error": "not_found"})),
    };
    Some(reply)
}
