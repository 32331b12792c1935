//! Composio's webhook subscription and its one event that matters here (composio.md §5).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::domain::secret::hmac_sha256;
use crate::domain::time::Timestamp;
use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::provider::CANARY;
use crate::sandbox::world::World;

use super::http::{Outcome, Refused};

const EXPIRED: &str = "composio.connected_account.expired";

/// The project's only subscription.
#[derive(Clone, Debug)]
pub(in crate::sandbox) struct Subscription {
    id: String,
    url: String,
    version: String,
    events: Vec<String>,
    secret: String,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl Subscription {
    fn show(&self) -> Value {
        json!({"id": self.id, "webhook_url": self.url, "version": self.version, "enabled_events": self.events,
               "secret": self.secret, "created_at": self.created_at.to_rfc3339(), "updated_at": self.updated_at.to_rfc3339()})
    }
}

fn events(body: &Value) -> Option<Vec<String>> {
    let list: Vec<String> =
        body["enabled_events"].as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    (!list.is_empty()).then_some(list)
}

impl World {
    pub(super) fn composio_subscriptions(&mut self, call: &Call, rest: &[&str]) -> Outcome {
        let body = call.json().unwrap_or(Value::Null);
        let bad = |message: &str| Refused::new(400, "HTTP_BadRequest", message);
        let now = self.now();
        let secret = |world: &World| {
            format!("whsec_{CANARY}{}", draw::text(world.seed(), &["whsec"], world.request_number(), 24))
        };
        match (call.method.as_str(), rest) {
            ("GET", ["event_types"]) => {
                let kind =
                    json!({"event_type": EXPIRED, "description": "An account expired", "supported_versions": ["V3"]});
                return Ok(Reply::json(200, &json!({"items": [kind]})));
            }
            ("GET", []) => {
                let items: Vec<Value> = self.composio.subscription.iter().map(Subscription::show).collect();
                return super::http::page(call, items, 20, 50);
            }
            ("POST", []) => {
                if self.composio.subscription.is_some() {
                    return Err(Refused::new(409, "WebhookSubscription_Exists", "A project has one subscription"));
                }
                let url = body["webhook_url"]
                    .as_str()
                    .filter(|u| u.len() <= 2_048)
                    .ok_or_else(|| bad("webhook_url is required"))?;
                let events = events(&body).ok_or_else(|| bad("enabled_events needs at least one"))?;
                let subscription = Subscription {
                    id: format!("ws_{}", draw::text(self.seed(), &["ws"], self.request_number(), 12)),
                    url: url.to_owned(),
                    version: body["version"].as_str().unwrap_or("V3").to_owned(),
                    events,
                    secret: secret(self),
                    created_at: now,
                    updated_at: now,
                };
                let shown = subscription.show();
                self.composio.subscription = Some(subscription);
                return Ok(Reply::json(201, &shown));
            }
            _ => {}
        }
        let new_secret = secret(self);
        let Some(subscription) = self.composio.subscription.as_mut().filter(|s| rest.first() == Some(&s.id.as_str()))
        else {
            return Err(Refused::new(404, "WebhookSubscription_NotFound", "Subscription not found"));
        };
        match (call.method.as_str(), &rest[1..]) {
            ("GET", []) => Ok(Reply::json(200, &subscription.show())),
            ("PATCH", []) => {
                if let Some(url) = body["webhook_url"].as_str() {
                    subscription.url = url.to_owned();
                }
                if let Some(list) = events(&body) {
                    subscription.events = list;
                }
                subscription.updated_at = now;
                Ok(Reply::json(200, &subscription.show()))
            }
            ("POST", ["rotate_secret"]) => {
                subscription.secret = new_secret;
                Ok(Reply::json(200, &json!({"id": subscription.id, "secret": subscription.secret})))
            }
            ("DELETE", []) => {
                self.composio.subscription = None;
                Ok(Reply::json(200, &json!({"success": true})))
            }
            _ => Err(Refused::new(404, "HTTP_NotFound", "Route not found")),
        }
    }

    /// Sends `connected_account.expired`, signed as §5.3 says.
    pub(super) fn composio_send_expired(&mut self, place: usize) {
        let Some(subscription) = self.composio.subscription.clone() else { return };
        if subscription.version != "V3" || !subscription.events.iter().any(|e| e == EXPIRED) {
            return;
        }
        let now = self.now();
        let id = format!(
            "msg_{}",
            draw::uuid(self.seed(), &["msg", &self.composio.accounts[place].id], now.millis().unsigned_abs())
        );
        let body = json!({"id": id, "timestamp": now.to_rfc3339(), "type": EXPIRED,
                          "metadata": {"project_id": "pr_sandbox", "org_id": "ok_sandbox"},
                          "data": self.composio_show_account(place, true)})
        .to_string()
        .into_bytes();
        let signature = sign(&subscription.secret, &id, now.secs(), &body);
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("webhook-id", id),
            ("webhook-timestamp", now.secs().to_string()),
            ("webhook-signature", signature),
            ("x-composio-webhook-version", "V3".to_owned()),
        ];
        self.enqueue_webhook(subscription.url, headers.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(), body);
    }
}

/// HMAC-SHA-256 over `id.timestamp.body`; the key is the secret's own bytes.
fn sign(secret: &str, id: &str, timestamp_s: i64, body: &[u8]) -> String {
    let head = format!("{id}.{timestamp_s}.");
    format!("v1,{}", STANDARD.encode(hmac_sha256(secret.as_bytes(), &[head.as_bytes(), body])))
}

#[cfg(test)]
mod tests {
    /// The test vector of composio.md §5.3.
    #[test]
    fn signatures_agree_with_the_contract() {
        let id = "msg_5b0c6f7e-1d2a-4c3b-9e8f-0a1b2c3d4e5f";
        let body = format!(r#"{{"id":"{id}","type":"composio.connected_account.expired"}}"#);
        let signature = super::sign("cutover-test-secret-01", id, 1_790_000_000, body.as_bytes());
        assert_eq!(signature, "v1,5EDp/xP+0Ug10Ajm6e6gCPDyvqGUhdRu8PfSX13Oatk=");
    }
}
