//! Nango (app 0.71.4): connections, the refresh engine and the keep-alive job.
//!
//! Reading a connection *is* the refresh trigger: inside the last 15 minutes of a token's life
//! the read refreshes, and no webhook tells anybody. Routes are in `http`, webhooks in `webhooks`.

mod http;
mod sessions;
mod views;
mod webhooks;

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value};

use crate::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, Timestamp};

use super::draw;
use super::keys::SandboxKeys;
use super::ledger::Sink;
use super::provider::http::token_answer_body;
use super::provider::{Party, TokenRef};
use super::world::{Event, World};

pub use self::webhooks::OutboundWebhook;

/// A read refreshes when less than this is left (nango.md §6.1).
pub(super) const REFRESH_MARGIN_MS: i64 = 15 * MINUTE_MS;
/// No second attempt within this time after a failure (§6.4).
const COOLDOWN_MS: i64 = 30 * SECOND_MS;
/// Failing days after which a connection is exhausted (§6.4).
const FAILING_DAYS_MAX: u32 = 4;
/// The keep-alive job looks at connections that nobody read for this long (§6.1).
const KEEP_ALIVE_MS: i64 = DAY_MS;
/// How often the keep-alive job runs (§6.1).
const CRON_EVERY_MS: i64 = 10 * MINUTE_MS;

/// What Nango stores for one connection.
#[derive(Clone, Debug)]
pub(super) enum Credential {
    Oauth2 {
        access_token: String,
        refresh_token: Option<String>,
        expires_at: Option<Timestamp>,
        /// Where the provider names no life (Salesforce): what introspection finds at each read.
        introspected_expiry: Option<Timestamp>,
        /// The provider's last answer, or the submitted credential.
        raw: Map<String, Value>,
    },
    /// `API_KEY`, `BASIC` and other modes that never refresh, as submitted (with `type`).
    Static(Map<String, Value>),
}

#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub number: i64,
    pub connection_id: String,
    pub integration_key: String,
    pub end_user: Value,
    pub tags: Map<String, Value>,
    /// `null` after OAuth, `{}` after an import without metadata.
    pub metadata: Value,
    pub connection_config: Map<String, Value>,
    pub webhook_url_override: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub last_fetched_at: Timestamp,
    pub credential: Credential,
    /// Id of the operation log of the last failed refresh.
    pub auth_error: Option<String>,
    failed_at: Option<Timestamp>,
    failing_days: u32,
    last_failing_day: Option<i64>,
    exhausted: bool,
    pub deleted: bool,
    /// The inventory row that it feeds; `None` for connections made later.
    pub row: Option<usize>,
}

#[derive(Clone, Debug)]
pub(super) struct NangoIntegration {
    pub provider: String,
    pub display_name: String,
    pub created_at: Timestamp,
    pub client_id: String,
    pub client_secret: String,
    pub scopes: String,
    pub auth_mode: String,
}

/// A Connect session (30 minutes).
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub allowed: Vec<String>,
    pub end_user: Value,
    pub expires_at: Timestamp,
}

/// A failed read of a connection: status and message (§6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RefreshFailure {
    pub status: u16,
    pub message: &'static str,
    /// Nango asked the provider (as opposed to backing off).
    pub attempted: bool,
}

pub(super) const FAILED: &str =
    "The external API returned an error when trying to refresh the access token. Please try again later.";
const COOLING_DOWN: &str = "A recent refresh attempt failed. Backing off before retrying.";
const EXHAUSTED: &str = "The refresh limit has been reached for this connection.";

#[derive(Clone, Debug)]
pub(super) struct Nango {
    pub connections: Vec<Connection>,
    /// Live connections by integration key and id.
    index: BTreeMap<(String, String), usize>,
    pub integrations: BTreeMap<String, NangoIntegration>,
    pub sessions: BTreeMap<String, Session>,
    pub signing_key: String,
    pub webhook_url: Option<String>,
    /// The rate limit's window (begin, used).
    window: (i64, u32),
    pub cron_at: Option<Timestamp>,
    webhooks: webhooks::Queue,
    started_at: Timestamp,
}

impl Nango {
    pub fn new(keys: &SandboxKeys, webhook_url: Option<String>, start: Timestamp) -> Self {
        Self {
            connections: Vec::new(),
            index: BTreeMap::new(),
            integrations: BTreeMap::new(),
            sessions: BTreeMap::new(),
            signing_key: keys.nango_webhook_signing_key.clone(),
            webhook_url,
            window: (i64::MIN, 0),
            cron_at: None,
            webhooks: webhooks::Queue::default(),
            started_at: start,
        }
    }

    pub fn find(&self, integration_key: &str, connection_id: &str) -> Option<usize> {
        self.index.get(&(integration_key.to_owned(), connection_id.to_owned())).copied()
    }

    /// Stores a new connection and returns its place.
    fn insert(&mut self, mut connection: Connection) -> usize {
        let place = self.connections.len();
        connection.number = place as i64 + 1;
        self.index.insert((connection.integration_key.clone(), connection.connection_id.clone()), place);
        self.connections.push(connection);
        place
    }

    /// A soft delete: the id can be used again at once (§8).
    pub fn delete(&mut self, place: usize) {
        let connection = &mut self.connections[place];
        connection.deleted = true;
        connection.credential = Credential::Static(Map::new());
        self.index.remove(&(connection.integration_key.clone(), connection.connection_id.clone()));
    }

    /// Counts a call against the fixed window of 60 s (§1.4): used so far, and the window's end.
    fn spend(&mut self, now: Timestamp) -> (u32, i64) {
        let begin = now.secs().div_euclid(60) * 60;
        if self.window.0 != begin {
            self.window = (begin, 0);
        }
        self.window.1 = self.window.1.saturating_add(1);
        (self.window.1, begin + 60)
    }
}

impl Connection {
    fn blank(integration_key: &str, connection_id: &str, credential: Credential, now: Timestamp) -> Self {
        Self {
            number: 0,
            connection_id: connection_id.to_owned(),
            integration_key: integration_key.to_owned(),
            end_user: Value::Null,
            tags: Map::new(),
            metadata: Value::Object(Map::new()),
            connection_config: Map::new(),
            webhook_url_override: None,
            created_at: now,
            updated_at: now,
            last_fetched_at: now,
            credential,
            auth_error: None,
            failed_at: None,
            failing_days: 0,
            last_failing_day: None,
            exhausted: false,
            deleted: false,
            row: None,
        }
    }

    fn clear_failures(&mut self) {
        self.auth_error = None;
        self.failed_at = None;
        self.failing_days = 0;
        self.last_failing_day = None;
        self.exhausted = false;
    }
}

impl World {
    /// One integration per catalogue key, with the team's own OAuth app.
    pub(super) fn nango_create_integrations(&mut self) {
        let created_at = self.start().plus_ms(-200 * DAY_MS);
        for (key, facts) in &self.providers.integrations {
            let client = self.keys_ref().legacy_clients.get(&**key).cloned();
            let scopes: std::collections::BTreeSet<&str> =
                facts.provider.values().flat_map(|p| &p.scopes).map(String::as_str).collect();
            let mut display_name = key.replace('-', " ");
            if let Some(first) = display_name.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            let integration = NangoIntegration {
                provider: key.to_string(),
                display_name,
                created_at,
                client_id: client.as_ref().map(|c| c.client_id.clone()).unwrap_or_default(),
                client_secret: client.map(|c| c.client_secret).unwrap_or_default(),
                scopes: scopes.into_iter().collect::<Vec<_>>().join(","),
                auth_mode: facts.auth_mode.clone(),
            };
            self.nango.integrations.insert(key.to_string(), integration);
        }
    }

    /// The connection of an inventory row, made days before the world starts.
    pub(super) fn nango_create_connection(&mut self, row: usize, token: TokenRef) {
        let state = &self.rows[row];
        let key = state.row.integration_key.clone();
        let id = state.row.connection_id.clone();
        let conventional = format!("{}__{key}__{}", state.row.tenant, state.row.account);
        let tenant = state.row.tenant.to_string();
        let is_session_made = id != conventional;
        let age_ms = draw::between(self.seed(), &["connection-age", &key, &id], 0, HOUR_MS, 100 * DAY_MS);
        let created_at = self.start().plus_ms(-age_ms);
        let config = self.providers.users[state.user].config.clone();
        let credential = self.nango_credential_of(state.integration, token);
        let mut connection = Connection::blank(&key, &id, credential, created_at);
        connection.row = Some(row);
        connection.connection_config = config;
        connection.tags.insert("end_user_id".into(), conventional.clone().into());
        connection.tags.insert("organization_id".into(), tenant.clone().into());
        connection.updated_at = token.minted_at.max(created_at);
        connection.last_fetched_at = self.start();
        if is_session_made {
            connection.metadata = Value::Null;
            connection.end_user = views::end_user(&conventional, None, None, Some((&tenant, None)));
        }
        self.nango.insert(connection);
    }

    fn nango_credential_of(&self, integration: usize, token: TokenRef) -> Credential {
        let text = self.providers.access_text(token.grant, token.number);
        match self.providers.integration(integration).auth_mode.as_str() {
            "OAUTH2" => {
                let answer = self.providers.answer(token, true);
                let hidden = self.providers.hides_expiry(integration);
                let mut raw = token_answer_body(&answer);
                let expires_at = token.expires_at.filter(|_| !hidden);
                if let Some(at) = expires_at {
                    raw.insert("expires_at".into(), at.to_rfc3339().into());
                }
                Credential::Oauth2 {
                    access_token: text,
                    refresh_token: answer.refresh_token,
                    expires_at,
                    introspected_expiry: token.expires_at.filter(|_| hidden),
                    raw,
                }
            }
            mode => {
                let mut fields = Map::new();
                fields.insert("type".into(), mode.into());
                let name = if mode == "BASIC" { "password" } else { "apiKey" };
                if mode == "BASIC" {
                    fields.insert("username".into(), "sandbox".into());
                }
                fields.insert(name.into(), text.into());
                Credential::Static(fields)
            }
        }
    }

    /// Refreshes a connection if a read must (§6.1), or when forced.
    pub(super) fn nango_ensure_fresh(&mut self, place: usize, force: bool) -> Result<(), RefreshFailure> {
        let now = self.now();
        let connection = &mut self.nango.connections[place];
        let Credential::Oauth2 { refresh_token, expires_at, introspected_expiry, .. } = &connection.credential else {
            return Ok(());
        };
        let due = expires_at.or(*introspected_expiry).is_some_and(|e| e.since(now) <= REFRESH_MARGIN_MS);
        if !due && !force {
            return Ok(());
        }
        let Some(refresh_token) = refresh_token.clone() else {
            // Expired without a refresh token: served stale with 200, and the row counts as touched.
            connection.updated_at = now;
            return Ok(());
        };
        if !force {
            let backing_off = |message| Err(RefreshFailure { status: 424, message, attempted: false });
            if connection.exhausted {
                return backing_off(EXHAUSTED);
            }
            if connection.failed_at.is_some_and(|at| now.since(at) < COOLDOWN_MS) {
                connection.last_fetched_at = now;
                return backing_off(COOLING_DOWN);
            }
        }
        match self.refresh_grant(&refresh_token, Party::Nango) {
            Ok(answer) => {
                let hidden = answer.expires_in_s.is_none();
                let mut raw = token_answer_body(&answer);
                let expires_at = answer.expires_in_s.map(|s| now.plus_ms(s * SECOND_MS));
                if let Some(at) = expires_at {
                    raw.insert("expires_at".into(), at.to_rfc3339().into());
                }
                let connection = &mut self.nango.connections[place];
                connection.credential = Credential::Oauth2 {
                    access_token: answer.access_token,
                    // No refresh token in the answer: the old one is kept.
                    refresh_token: Some(answer.refresh_token.unwrap_or(refresh_token)),
                    expires_at,
                    introspected_expiry: answer.token.expires_at.filter(|_| hidden),
                    raw,
                };
                let had_failed = connection.auth_error.is_some();
                connection.clear_failures();
                connection.updated_at = now;
                if had_failed && self.options().nango_recovery_webhooks {
                    self.nango_send_auth(place, "refresh", None);
                }
                Ok(())
            }
            Err(_) => {
                let day = now.millis().div_euclid(DAY_MS);
                let log = draw::text(
                    self.seed(),
                    &["log", self.nango.connections[place].connection_id.as_str()],
                    now.millis().unsigned_abs(),
                    8,
                );
                let connection = &mut self.nango.connections[place];
                connection.auth_error = Some(format!("{}_{log}", now.millis()));
                connection.failed_at = Some(now);
                if connection.last_failing_day != Some(day) {
                    connection.last_failing_day = Some(day);
                    connection.failing_days += 1;
                    connection.exhausted = connection.failing_days >= FAILING_DAYS_MAX;
                }
                self.nango_send_auth(place, "refresh", Some(("refresh_token_external_error", FAILED)));
                Err(RefreshFailure { status: 400, message: FAILED, attempted: true })
            }
        }
    }

    /// The token version that a connection holds, if this world made it.
    pub(super) fn nango_token(&self, place: usize) -> Option<TokenRef> {
        match &self.nango.connections[place].credential {
            Credential::Oauth2 { access_token, .. } => self.providers.find(access_token),
            Credential::Static(fields) => {
                let text = fields.get("apiKey").or_else(|| fields.get("password"))?;
                self.providers.find(text.as_str()?)
            }
        }
    }

    /// The keep-alive job: refreshes what nobody has read for 24 h and is inside the margin.
    pub(super) fn nango_cron(&mut self) {
        let now = self.now();
        self.nango.cron_at = None;
        if !self.faults.outage_at(now) {
            for place in 0..self.nango.connections.len() {
                let c = &self.nango.connections[place];
                if c.deleted || c.exhausted || now.since(c.last_fetched_at) < KEEP_ALIVE_MS {
                    continue;
                }
                // A failure leaves its mark on the connection; the job itself goes on.
                let outcome = self.nango_ensure_fresh(place, false);
                if outcome.is_ok() {
                    self.nango.connections[place].last_fetched_at = now;
                }
            }
        }
        self.nango_schedule_cron();
    }

    /// Schedules the keep-alive job for the first run that can find something to do.
    pub(super) fn nango_schedule_cron(&mut self) {
        if self.nango.cron_at.is_some() {
            return;
        }
        let oldest = self
            .nango
            .connections
            .iter()
            .filter(|c| !c.deleted && !c.exhausted && matches!(c.credential, Credential::Oauth2 { .. }))
            .map(|c| c.last_fetched_at)
            .min();
        let Some(oldest) = oldest else { return };
        let grid = self.nango.started_at;
        let wanted = oldest.plus_ms(KEEP_ALIVE_MS).max(self.now().plus_ms(1)).since(grid);
        let runs = (wanted + CRON_EVERY_MS - 1).div_euclid(CRON_EVERY_MS);
        let at = grid.plus_ms(runs * CRON_EVERY_MS);
        self.nango.cron_at = Some(at);
        self.schedule(at, Event::NangoCron);
    }

    /// ADR-038's webhook handler in the gateway: reads the connection and writes KV, no metadata.
    pub(super) fn gateway_sync_from_nango(&mut self, integration_key: &str, connection_id: &str) -> bool {
        let Some(place) = self.nango.find(integration_key, connection_id) else { return false };
        if self.nango_ensure_fresh(place, false).is_err() {
            return false;
        }
        self.nango.connections[place].last_fetched_at = self.now();
        let (Some(row), Some(token)) = (self.nango.connections[place].row, self.nango_token(place)) else {
            return false;
        };
        for triplet in self.rows[row].triplets.clone() {
            self.kv_put_token_from_worker(triplet, token, Sink::KvSource, "the webhook route");
        }
        true
    }
}

/// Finished sessions are forgotten.
pub(super) fn prune_sessions(sessions: &mut BTreeMap<String, Session>, now: Timestamp) {
    sessions.retain(|_, s| s.expires_at >= now);
}

/// A queue of recent things, bounded.
pub(super) fn push_bounded<T>(queue: &mut VecDeque<T>, item: T, max: usize) {
    if queue.len() >= max {
        queue.pop_front();
    }
    queue.push_back(item);
}
