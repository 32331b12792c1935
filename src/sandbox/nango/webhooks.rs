//! Nango's webhooks: bodies, signatures and the delivery schedule (nango.md §5).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::domain::secret::{hex, hmac_sha256};
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::sandbox::draw;
use crate::sandbox::world::{Event, World};

/// Waits before the second and third attempt.
const RETRY_AFTER_MS: [i64; 2] = [3 * SECOND_MS, 6 * SECOND_MS];
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

#[derive(Clone, Debug, Default)]
pub(in crate::sandbox) struct Queue {
    next_id: u64,
    /// Not finished yet.
    open: BTreeMap<u64, OutboundWebhook>,
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
    pub(in crate::sandbox) fn signatures(&self, body: &[u8]) -> (String, String) {
        let key = self.signing_key.as_bytes();
        let mut legacy = Sha256::new();
        legacy.update(key);
        legacy.update(body);
        let legacy: [u8; 32] = legacy.finalize().into();
        (hex(&hmac_sha256(key, &[body])), hex(&legacy))
    }
}

impl World {
    /// Sends an `auth` webhook about a stored connection. `error`: type and description.
    pub(in crate::sandbox) fn nango_send_auth(&mut self, place: usize, operation: &str, error: Option<(&str, &str)>) {
        let c = &self.nango.connections[place];
        let integration = self.nango.integrations.get(&c.integration_key);
        let mut body = Map::new();
        let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
        put("from", "nango".into());
        put("type", "auth".into());
        put("operation", operation.into());
        put("success", error.is_none().into());
        put("connectionId", c.connection_id.as_str().into());
        put("providerConfigKey", c.integration_key.as_str().into());
        put("provider", integration.map_or("unknown", |i| i.provider.as_str()).into());
        put("environment", "prod".into());
        put("authMode", integration.map_or("unknown", |i| i.auth_mode.as_str()).into());
        put("tags", Value::Object(c.tags.clone()));
        if let Some((kind, description)) = error {
            put("error", serde_json::json!({"type": kind, "description": description}));
        }
        let url = c.webhook_url_override.clone().or_else(|| self.nango.webhook_url.clone());
        let label = format!("{}/{}/{operation}", c.integration_key, c.connection_id);
        let Some(url) = url else { return };
        let now = self.now();
        let lost = self.faults.webhook_loss_per_mille;
        if lost > 0 && draw::happens(self.seed(), &["webhook-loss", &label], now.millis().unsigned_abs(), lost) {
            return;
        }
        // `Map` keeps its keys sorted, which is the stable form that Nango signs.
        let body = Value::Object(body).to_string().into_bytes();
        self.nango_enqueue(url, body);
    }

    fn nango_enqueue(&mut self, url: String, body: Vec<u8>) {
        let (hmac, legacy) = self.nango.signatures(&body);
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("accept", "application/json, text/plain, */*".to_owned()),
            ("user-agent", "nango/0.71.4 (linux/6.1; node.js/v22.14.0)".to_owned()),
            ("x-nango-signature", legacy),
            ("x-nango-hmac-sha256", hmac),
        ];
        self.enqueue_webhook(url, headers.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(), body);
    }

    /// Puts a signed webhook (of Nango or Composio) on its way.
    pub(in crate::sandbox) fn enqueue_webhook(&mut self, url: String, headers: Vec<(String, String)>, body: Vec<u8>) {
        let queue = &mut self.nango.webhooks;
        queue.next_id += 1;
        let id = queue.next_id;
        queue.open.insert(id, OutboundWebhook { id, url, headers, body, attempt: 1 });
        if queue.open.len() > IN_FLIGHT_MAX {
            queue.open.pop_first();
        }
        self.schedule(self.now(), Event::Webhook { id });
    }

    pub(in crate::sandbox) fn nango_take_outbound(&mut self) -> Vec<OutboundWebhook> {
        // Webhooks sent at this very instant are due although no time has passed since.
        self.advance_to(self.now());
        let ids = std::mem::take(&mut self.nango.webhooks.ready);
        let taken: Vec<OutboundWebhook> =
            ids.iter().filter_map(|id| self.nango.webhooks.open.get(id).cloned()).collect();
        let at = self.now().plus_ms(TIMEOUT_MS);
        for webhook in &taken {
            self.schedule(at, Event::WebhookTimeout { id: webhook.id, attempt: webhook.attempt });
        }
        taken
    }

    pub(in crate::sandbox) fn nango_webhook_answered(&mut self, id: u64, status: Option<u16>) {
        let Some(webhook) = self.nango.webhooks.open.get_mut(&id) else { return };
        let wait = RETRY_AFTER_MS.get(webhook.attempt as usize - 1).copied();
        match wait.filter(|_| status.is_none_or(|s| s >= 500)) {
            Some(wait) => {
                webhook.attempt += 1;
                let at: Timestamp = self.now().plus_ms(wait);
                self.schedule(at, Event::Webhook { id });
            }
            None => {
                self.nango.webhooks.open.remove(&id);
            }
        }
    }

    /// Nobody answered: counts as no answer, unless the attempt was answered meanwhile.
    pub(in crate::sandbox) fn nango_webhook_timeout(&mut self, id: u64, attempt: u32) {
        if self.nango.webhooks.open.get(&id).is_some_and(|w| w.attempt == attempt) {
            self.nango_webhook_answered(id, None);
        }
    }
}
