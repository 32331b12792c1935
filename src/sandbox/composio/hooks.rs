//! Composio's webhook subscription and its one event that matters here (composio.md §5).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::domain::secret::hmac_sha256;
use crate::domain::time::Timestamp;
use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::nango::OutboundWebhook;
use crate::sandbox::provider::CANARY;
use crate::sandbox::world::World;

use super::http::{Outcome, Refused};

const ID_HEADER: &str = "webhook-id";
const EXPIRED: &str = "composio.connected_account.expired";
/// Every event that there is (§5.2), with the versions of the payload that carry it.
const EVENTS: [(&str, &str, &[&str]); 3] = [
    ("composio.trigger.message", "A trigger fired", &["V1", "V2", "V3"]),
    (EXPIRED, "An account expired", &["V3"]),
    ("composio.trigger.disabled", "A trigger was disabled", &["V3"]),
];

/// The project's only subscription.
#[derive(Clone, Debug)]
pub(in crate::sandbox) struct Subscription {
    id: String,
    url: String,
    version: String,
    events: Vec<String>,
    secret: String,
    /// The secret before the last rotation, and until when it signs along.
    old_secret: Option<(String, Timestamp)>,
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
    let known = |event: &String| EVENTS.iter().any(|(name, ..)| name == event);
    (!list.is_empty() && list.iter().all(known)).then_some(list)
}

/// `V1`, `V2` or `V3`, where given.
fn version(body: &Value) -> Result<Option<&str>, &'static str> {
    match body.get("version").map(Value::as_str) {
        None => Ok(None),
        Some(Some(version @ ("V1" | "V2" | "V3"))) => Ok(Some(version)),
        Some(_) => Err("version must be V1, V2 or V3"),
    }
}

/// Composio wants https; loopback, which it could never reach, is what a sandbox is for.
fn is_public_or_loopback(url: &str) -> bool {
    let local = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
    url.len() <= 2_048 && (url.starts_with("https://") || local.iter().any(|start| url.starts_with(start)))
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
                let items = EVENTS.map(|(name, description, versions)| {
                    json!({"event_type": name, "description": description, "supported_versions": versions})
                });
                return Ok(Reply::json(200, &json!({"items": items})));
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
                    .filter(|url| is_public_or_loopback(url))
                    .ok_or_else(|| bad("webhook_url must be an https address"))?;
                let events = events(&body).ok_or_else(|| bad("enabled_events needs at least one that exists"))?;
                let version = version(&body).map_err(bad)?.unwrap_or("V3");
                let subscription = Subscription {
                    id: format!("ws_{}", draw::text(self.seed(), &["ws"], self.request_number(), 12)),
                    url: url.to_owned(),
                    version: version.to_owned(),
                    events,
                    secret: secret(self),
                    old_secret: None,
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
        let overlap_ms = self.options().composio.rotation_overlap_secs * 1_000;
        let Some(subscription) = self.composio.subscription.as_mut().filter(|s| rest.first() == Some(&s.id.as_str()))
        else {
            return Err(Refused::new(404, "WebhookSubscription_NotFound", "Subscription not found"));
        };
        match (call.method.as_str(), &rest[1..]) {
            ("GET", []) => Ok(Reply::json(200, &subscription.show())),
            ("PATCH", []) => {
                let url = body.get("webhook_url").map(|url| url.as_str().filter(|url| is_public_or_loopback(url)));
                let list = body.get("enabled_events").map(|_| events(&body));
                let version = version(&body).map_err(bad)?;
                if url == Some(None) || list == Some(None) {
                    return Err(bad("webhook_url or enabled_events is not valid"));
                }
                if let Some(url) = url.flatten() {
                    url.clone_into(&mut subscription.url);
                }
                if let Some(list) = list.flatten() {
                    subscription.events = list;
                }
                if let Some(version) = version {
                    version.clone_into(&mut subscription.version);
                }
                subscription.updated_at = now;
                Ok(Reply::json(200, &subscription.show()))
            }
            ("POST", ["rotate_secret"]) => {
                let old = std::mem::replace(&mut subscription.secret, new_secret);
                subscription.old_secret = Some((old, now.plus_ms(overlap_ms)));
                subscription.updated_at = now;
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
        let headers = [
            ("content-type", "application/json".to_owned()),
            (ID_HEADER, id),
            ("x-composio-webhook-version", "V3".to_owned()),
        ];
        let headers: Vec<_> = headers.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
        let settings = self.options().composio.clone();
        let copies = if settings.duplicate_webhooks { 2 } else { 1 };
        for copy in 0..copies {
            let waits = settings.webhook_retry_schedule_ms.clone();
            let labels = ["webhook-delay", self.composio.accounts[place].id.as_str()];
            let delay_ms = draw::between(self.seed(), &labels, copy, 0, settings.webhook_delay_max_ms);
            self.enqueue_webhook(subscription.url.clone(), headers.clone(), body.clone(), waits, delay_ms);
        }
    }

    /// Signs a webhook of Composio's for the attempt that is made now: the timestamp is the attempt's.
    pub(in crate::sandbox) fn composio_sign(&self, webhook: &mut OutboundWebhook) {
        let id = webhook.headers.iter().find(|(name, _)| name == ID_HEADER).map(|(_, id)| id.clone());
        let (Some(id), Some(subscription)) = (id, &self.composio.subscription) else { return };
        let now = self.now();
        let old = subscription.old_secret.as_ref().filter(|(_, until)| now < *until).map(|(secret, _)| secret);
        let signatures: Vec<String> = [Some(&subscription.secret), old]
            .into_iter()
            .flatten()
            .map(|secret| sign(secret, &id, now.secs(), &webhook.body))
            .collect();
        webhook.headers.push(("webhook-timestamp".to_owned(), now.secs().to_string()));
        webhook.headers.push(("webhook-signature".to_owned(), signatures.join(" ")));
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
