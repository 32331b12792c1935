//! Nango's webhooks: bodies, signatures and the delivery schedule (nango.md §5).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::domain::secret::{hex, hmac_sha256};
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::sandbox::draw;
use crate::sandbox::world::{Event, World};

use super::settings::NangoVersion;

/// Waits before the second and third attempt.
const RETRY_AFTER_MS: [i64; 2] = [3 * SECOND_MS, 6 * SECOND_MS];
/// For how long processes sign with a key that was rotated away (§5.3).
pub(super) const KEY_CACHE_MS: i64 = 300 * SECOND_MS;
/// Nango gives up on an attempt after this long.
const TIMEOUT_MS: i64 = 20 * SECOND_MS;
/// Webhooks under way at once; beyond that the oldest is forgotten (Nango keeps no queue).
const IN_FLIGHT_MAX: usize = 10_000;

/// One attempt to deliver a webhook.
#[derive(Clone, PartialEq, Eq)]
pub struct OutboundWebhook {
    pub id: u64,
    pub url: String,
    pub headers: Vec<(String, String)>,
    /// The exact bytes that were signed.
    pub body: Vec<u8>,
    /// From 1.
    pub attempt: u32,
}

impl fmt::Debug for OutboundWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "webhook {} attempt {} to {}", self.id, self.attempt, self.url)
    }
}

/// A webhook that has not finished its attempts.
#[derive(Clone, Debug)]
struct Underway {
    webhook: OutboundWebhook,
    /// Waits before each further attempt, ms.
    waits: Vec<i64>,
    /// Gets the same once this address is done with.
    secondary: Option<String>,
}

/// What an `auth` webhook tells beside what is stored.
#[derive(Debug, Default)]
pub(super) struct AuthEvent<'a> {
    pub operation: &'a str,
    /// Type and description.
    pub error: Option<(&'a str, &'a str)>,
    /// Who came through a Connect session, in the webhook's form.
    pub end_user: Option<Value>,
}

#[derive(Clone, Debug, Default)]
pub(in crate::sandbox) struct Queue {
    next_id: u64,
    open: BTreeMap<u64, Underway>,
    /// Due, waiting for the driver.
    ready: VecDeque<u64>,
}

impl super::Nango {
    pub fn has_outbound(&self) -> bool {
        !self.webhooks.ready.is_empty()
    }

    /// A webhook's time has come.
    pub fn release(&mut self, id: u64) {
        if self.webhooks.open.contains_key(&id) {
            self.webhooks.ready.push_back(id);
        }
    }

    /// Both signatures over the exact body (§5.3): HMAC-SHA-256, and the legacy SHA-256(key ‖ body).
    pub(in crate::sandbox) fn signatures(&self, body: &[u8], now: Timestamp) -> (String, String) {
        let cached = self.old_signing_key.as_ref().filter(|(_, until)| now < *until);
        let key = cached.map_or(&self.signing_key, |(old, _)| old).as_bytes();
        let mut legacy = Sha256::new();
        legacy.update(key);
        legacy.update(body);
        let legacy: [u8; 32] = legacy.finalize().into();
        (hex(&hmac_sha256(key, &[body])), hex(&legacy))
    }
}

impl World {
    /// Sends an `auth` webhook about a stored connection. `error`: type and description.
    pub(super) fn nango_send_auth(&mut self, place: usize, operation: &str, error: Option<(&str, &str)>) {
        self.nango_send_event(place, &AuthEvent { operation, error, end_user: None });
    }

    /// Sends an `auth` webhook about a stored connection.
    pub(super) fn nango_send_event(&mut self, place: usize, event: &AuthEvent<'_>) {
        let c = &self.nango.connections[place];
        let (key, id, tags) = (c.integration_key.clone(), c.connection_id.clone(), c.tags.clone());
        let url = c.webhook_url_override.clone();
        self.nango_send(&key, &id, Some(tags), url, event);
    }

    /// Sends an `auth` webhook about an attempt that stored nothing.
    pub(super) fn nango_send_failed(&mut self, key: &str, id: &str, url: Option<String>, error: (&str, &str)) {
        let event = AuthEvent { operation: "creation", error: Some(error), end_user: None };
        self.nango_send(key, id, None, url, &event);
    }

    fn nango_send(
        &mut self,
        key: &str,
        id: &str,
        tags: Option<Map<String, Value>>,
        url_override: Option<String>,
        event: &AuthEvent<'_>,
    ) {
        let settings = self.options().nango.clone();
        let wanted = match event.operation {
            "creation" => settings.on_auth_creation,
            "refresh" => settings.on_auth_refresh_error,
            "deletion" => settings.on_connection_deletion && settings.version >= NangoVersion::V0_71_6,
            _ => true,
        };
        // A connection's own address replaces both of the environment's.
        let (url, secondary) = match url_override {
            Some(url) => (Some(url), None),
            None => (self.nango.webhook_url.clone(), settings.secondary_webhook_url),
        };
        let Some(url) = url.filter(|_| wanted) else { return };
        let integration = self.nango.integrations.get(key);
        let mut body = Map::new();
        let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
        put("from", "nango".into());
        put("type", "auth".into());
        put("operation", event.operation.into());
        put("success", event.error.is_none().into());
        put("connectionId", id.into());
        put("providerConfigKey", key.into());
        put("provider", integration.map_or("unknown", |i| i.provider.as_str()).into());
        put("environment", settings.environment.into());
        put("authMode", integration.map_or("unknown", |i| i.auth_mode.as_str()).into());
        if let Some(tags) = tags {
            put("tags", Value::Object(tags));
        }
        if let Some(end_user) = &event.end_user {
            put("endUser", end_user.clone());
        }
        if let Some((kind, description)) = event.error {
            put("error", serde_json::json!({"type": kind, "description": description}));
        }
        let label = format!("{key}/{id}/{}", event.operation);
        let now = self.now();
        let lost = self.faults.webhook_loss_per_mille;
        if lost > 0 && draw::happens(self.seed(), &["webhook-loss", &label], now.millis().unsigned_abs(), lost) {
            return;
        }
        // `Map` keeps its keys sorted, which is the stable form that Nango signs.
        let body = Value::Object(body).to_string().into_bytes();
        let (hmac, legacy) = self.nango.signatures(&body, now);
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("accept", "application/json, text/plain, */*".to_owned()),
            ("user-agent", format!("nango/{} (linux/6.1; node.js/v22.14.0)", settings.version.name())),
            ("x-nango-signature", legacy),
            ("x-nango-hmac-sha256", hmac),
        ];
        let headers = headers.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
        let webhook = OutboundWebhook { id: 0, url, headers, body, attempt: 1 };
        self.nango_put_underway(Underway { webhook, waits: RETRY_AFTER_MS.to_vec(), secondary }, 0);
    }

    /// Puts a webhook on its way, `delay_ms` from now. `waits`: before each further attempt, ms.
    pub(in crate::sandbox) fn enqueue_webhook(
        &mut self,
        url: String,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
        waits: Vec<i64>,
        delay_ms: i64,
    ) {
        let webhook = OutboundWebhook { id: 0, url, headers, body, attempt: 1 };
        self.nango_put_underway(Underway { webhook, waits, secondary: None }, delay_ms);
    }

    fn nango_put_underway(&mut self, mut entry: Underway, delay_ms: i64) {
        let queue = &mut self.nango.webhooks;
        queue.next_id += 1;
        let id = queue.next_id;
        entry.webhook.id = id;
        queue.open.insert(id, entry);
        if queue.open.len() > IN_FLIGHT_MAX {
            queue.open.pop_first();
        }
        self.schedule(self.now().plus_ms(delay_ms), Event::Webhook { id });
    }

    pub(in crate::sandbox) fn nango_take_outbound(&mut self) -> Vec<OutboundWebhook> {
        // Webhooks sent at this very instant are due although no time has passed since.
        self.advance_to(self.now());
        let ids = std::mem::take(&mut self.nango.webhooks.ready);
        let mut taken: Vec<OutboundWebhook> =
            ids.iter().filter_map(|id| Some(self.nango.webhooks.open.get(id)?.webhook.clone())).collect();
        let at = self.now().plus_ms(TIMEOUT_MS);
        for webhook in &mut taken {
            self.composio_sign(webhook);
            self.schedule(at, Event::WebhookTimeout { id: webhook.id, attempt: webhook.attempt });
        }
        taken
    }

    pub(in crate::sandbox) fn nango_webhook_answered(&mut self, id: u64, status: Option<u16>) {
        let Some(entry) = self.nango.webhooks.open.get_mut(&id) else { return };
        let wait = entry.waits.get(entry.webhook.attempt as usize - 1).copied();
        match wait.filter(|_| status.is_none_or(|s| s >= 500)) {
            Some(wait) => {
                entry.webhook.attempt += 1;
                let at: Timestamp = self.now().plus_ms(wait);
                self.schedule(at, Event::Webhook { id });
            }
            None => {
                if let Some(Underway { webhook, waits, secondary: Some(url) }) = self.nango.webhooks.open.remove(&id) {
                    let webhook = OutboundWebhook { url, attempt: 1, ..webhook };
                    self.nango_put_underway(Underway { webhook, waits, secondary: None }, 0);
                }
            }
        }
    }

    /// Nobody answered: counts as no answer, unless the attempt was answered meanwhile.
    pub(in crate::sandbox) fn nango_webhook_timeout(&mut self, id: u64, attempt: u32) {
        if self.nango.webhooks.open.get(&id).is_some_and(|w| w.webhook.attempt == attempt) {
            self.nango_webhook_answered(id, None);
        }
    }
}
