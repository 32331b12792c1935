//! Nango (app 0.71.4): connections, the refresh engine and the keep-alive job.
//!
//! Reading a connection *is* the refresh trigger: inside the last 15 minutes of a token's life
//! the read refreshes, and no webhook tells anybody. Routes are in `http`, webhooks in `webhooks`.

mod http;
mod input;
mod oauth;
mod sessions;
mod settings;
mod views;
mod webhooks;
mod writes;

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value};

use crate::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, Timestamp};

use super::draw;
use super::http::Call;
use super::keys::SandboxKeys;
use super::ledger::Sink;
use super::provider::http::token_answer_body;
use super::provider::{Party, TokenRef};
use super::world::{Event, World};

pub use self::settings::{NangoSettings, NangoVersion};
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
        /// The OAuth app of this connection alone, instead of its integration's.
        config_override: Option<Map<String, Value>>,
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
    pub updated_at: Timestamp,
    pub forward_webhooks: bool,
    pub client_id: String,
    pub client_secret: String,
    pub scopes: String,
    pub auth_mode: String,
}

/// A failed read of a connection: status and message (§6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RefreshFailure {
    pub status: u16,
    pub message: &'static str,
    /// `error.type` of the webhook that tells of it.
    kind: &'static str,
    /// Nango asked the provider (as opposed to backing off).
    pub attempted: bool,
}

pub(super) const FAILED: &str =
    "The external API returned an error when trying to refresh the access token. Please try again later.";
/// The provider refused, failed, or answered with something else than JSON.
const PROVIDER_REFUSED: RefreshFailure =
    RefreshFailure { status: 400, message: FAILED, kind: "refresh_token_external_error", attempted: true };
/// The provider answered 200 without a token: Nango fails over it.
const NO_TOKEN_ANSWERED: RefreshFailure =
    RefreshFailure { status: 500, message: UNUSABLE, kind: "unhandled_refresh_token_parsing_error", attempted: true };
const UNUSABLE: &str = "An unhandled error of type 'unhandled_refresh_token_parsing_error' occurred.";
const COOLING_DOWN: &str = "A recent refresh attempt failed. Backing off before retrying.";
const EXHAUSTED: &str = "The refresh limit has been reached for this connection.";

#[derive(Clone, Debug)]
pub(super) struct Nango {
    pub connections: Vec<Connection>,
    /// Live connections by integration key and id.
    index: BTreeMap<(String, String), usize>,
    pub integrations: BTreeMap<String, NangoIntegration>,
    sessions: BTreeMap<String, sessions::Session>,
    /// Consents that a browser has begun, by `state`.
    flows: BTreeMap<String, oauth::Flow>,
    /// Further API keys: scopes by key.
    pub scoped_keys: BTreeMap<String, Vec<String>>,
    pub signing_key: String,
    /// The key before, and until when processes that cached it sign with it.
    old_signing_key: Option<(String, Timestamp)>,
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
            flows: BTreeMap::new(),
            scoped_keys: BTreeMap::new(),
            signing_key: keys.nango_webhook_signing_key.clone(),
            old_signing_key: None,
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

    /// What exhaustion looks like once the failures that led there are forgotten.
    #[cfg(test)]
    pub fn exhaust(&mut self, integration_key: &str, connection_id: &str) {
        if let Some(place) = self.find(integration_key, connection_id) {
            self.connections[place].exhausted = true;
        }
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
                updated_at: created_at,
                forward_webhooks: true,
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
                let answer = token_answer_body(&self.providers.answer(token, true));
                self.nango_oauth2(answer, None, None, token.minted_at)
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
        if self.nango_probe(&self.nango.connections[place].credential).is_err() {
            let kind = "connection_test_failed";
            let failure = RefreshFailure { status: 400, message: FAILED, kind, attempted: true };
            self.nango_note_failure(place, &failure);
            return Err(failure);
        }
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
            let backing_off = |message| Err(RefreshFailure { status: 424, message, kind: "", attempted: false });
            if connection.exhausted {
                return backing_off(EXHAUSTED);
            }
            if connection.failed_at.is_some_and(|at| now.since(at) < COOLDOWN_MS) {
                connection.last_fetched_at = now;
                return backing_off(COOLING_DOWN);
            }
        }
        match self.nango_ask_to_refresh(place, &refresh_token) {
            Ok(answer) => {
                let config_override = match &self.nango.connections[place].credential {
                    Credential::Oauth2 { config_override, .. } => config_override.clone(),
                    Credential::Static(_) => None,
                };
                // No refresh token in the answer: the old one is kept.
                let credential = self.nango_oauth2(answer, Some(refresh_token), config_override, now);
                let connection = &mut self.nango.connections[place];
                connection.credential = credential;
                let had_failed = connection.auth_error.is_some();
                connection.clear_failures();
                connection.updated_at = now;
                if had_failed && self.options().nango.version >= NangoVersion::V0_71_5 {
                    self.nango_send_auth(place, "refresh", None);
                }
                Ok(())
            }
            Err(failure) => {
                self.nango_note_failure(place, &failure);
                Err(failure)
            }
        }
    }

    /// Sends the refresh token to the provider, with the connection's own OAuth app or its integration's.
    fn nango_ask_to_refresh(
        &mut self,
        place: usize,
        refresh_token: &str,
    ) -> Result<Map<String, Value>, RefreshFailure> {
        let connection = &self.nango.connections[place];
        let Some(integration) = self.nango.integrations.get(&connection.integration_key) else {
            return Err(PROVIDER_REFUSED);
        };
        let own = match &connection.credential {
            Credential::Oauth2 { config_override, .. } => config_override.as_ref(),
            Credential::Static(_) => None,
        };
        let own = |name: &str| own.and_then(|o| o.get(name)).and_then(Value::as_str);
        let id = own("client_id").unwrap_or(&integration.client_id);
        let secret = own("client_secret").unwrap_or(&integration.client_secret);
        let provider = self.providers.find_integration(&integration.provider).ok_or(PROVIDER_REFUSED)?;
        let form = refresh_form(refresh_token, id, secret);
        if self.scripts.take_slow(&self.providers.integrations[provider].0) {
            // The lock ended before the answer came. The other process's answer is written first and
            // lost under this one's, whatever that is.
            let _lost = self.nango_ask_provider(provider, form.clone());
        }
        self.nango_ask_provider(provider, form)
    }

    /// A call to a provider's token endpoint, and Nango's reading of the answer (§6.4).
    fn nango_ask_provider(&mut self, provider: usize, form: String) -> Result<Map<String, Value>, RefreshFailure> {
        let call = Call::new("POST", "/token").with_body("application/x-www-form-urlencoded", form);
        let reply = self.token_endpoint(&[provider], &call, Party::Nango);
        let is_json = reply.header("content-type").is_some_and(|kind| kind.starts_with("application/json"));
        if reply.status != 200 || !is_json {
            return Err(PROVIDER_REFUSED);
        }
        match reply.value() {
            Value::Object(body) if body.get("access_token").is_some_and(Value::is_string) => Ok(body),
            _ => Err(NO_TOKEN_ANSWERED),
        }
    }

    /// A token answer as Nango stores it. `kept`: the refresh token to keep where none came.
    fn nango_oauth2(
        &self,
        mut raw: Map<String, Value>,
        kept: Option<String>,
        config_override: Option<Map<String, Value>>,
        now: Timestamp,
    ) -> Credential {
        let text = |name: &str| raw.get(name).and_then(Value::as_str).map(str::to_owned);
        let (access_token, refresh_token) = (text("access_token").unwrap_or_default(), text("refresh_token"));
        let life_s = raw.get("expires_in").and_then(Value::as_i64);
        let expires_at = life_s.map(|s| now.plus_ms(s * SECOND_MS));
        if let Some(at) = expires_at {
            raw.insert("expires_at".into(), at.to_rfc3339().into());
        }
        let token = self.providers.find(&access_token);
        let hidden = token.filter(|t| self.providers.hides_expiry(self.providers.grants[t.grant].integration));
        Credential::Oauth2 {
            introspected_expiry: hidden.and_then(|t| t.expires_at),
            access_token,
            refresh_token: refresh_token.or(kept),
            expires_at,
            raw,
            config_override,
        }
    }

    /// Books a failed refresh or probe, and tells the webhook's receiver.
    fn nango_note_failure(&mut self, place: usize, failure: &RefreshFailure) {
        let now = self.now();
        let day = now.millis().div_euclid(DAY_MS);
        let labels = ["log", self.nango.connections[place].connection_id.as_str()];
        let log = draw::text(self.seed(), &labels, now.millis().unsigned_abs(), 8);
        let connection = &mut self.nango.connections[place];
        connection.auth_error = Some(format!("{}_{log}", now.millis()));
        connection.failed_at = Some(now);
        if connection.last_failing_day != Some(day) {
            connection.last_failing_day = Some(day);
            connection.failing_days += 1;
            connection.exhausted = connection.failing_days >= FAILING_DAYS_MAX;
        }
        self.nango_send_auth(place, "refresh", Some((failure.kind, failure.message)));
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

/// The form that Nango sends to renew a token (§6.1).
pub(super) fn refresh_form(refresh_token: &str, client_id: &str, client_secret: &str) -> String {
    form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "refresh_token")
        .append_pair("refresh_token", refresh_token)
        .append_pair("client_id", client_id)
        .append_pair("client_secret", client_secret)
        .finish()
}

/// A queue of recent things, bounded.
pub(super) fn push_bounded<T>(queue: &mut VecDeque<T>, item: T, max: usize) {
    if queue.len() >= max {
        queue.pop_front();
    }
    queue.push_back(item);
}
