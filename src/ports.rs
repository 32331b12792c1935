//! What the engine asks of the outside world, in domain terms.
//!
//! Each trait is one system, split so that a part which must not write cannot: a dry run and
//! the verifier hold only types that implement the `Read` half. `clients` implements all of
//! them over HTTP; wire shapes never cross this line. No call sleeps or retries on its own
//! clock: an error says whether and when to try again, and the duty that called decides.

mod preflight;

use std::collections::BTreeMap;
use std::future::Future;

use serde_json::{Map, Value};

pub use self::preflight::{AuditColumn, AuditShape, AuditTable, Counter, SourceRights, TargetAbilities};
pub use crate::domain::api::Api;
use crate::domain::budget::{Allowance, BudgetState, Lane, Limit};
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::domain::token::{KvEntry, KvMetadata};
use crate::domain::triplet::Triplet;
use crate::domain::upstream::Upstream;

/// The result of one call to an outside system.
pub type ApiResult<T> = Result<T, ApiError>;

/// A call that did not do what was asked. Never holds a body, a token or a signed URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{method} {path} at {}: {kind}", api.name())]
pub struct ApiError {
    pub api: Api,
    pub method: &'static str,
    /// The path without query or secrets, such as `/connections/{id}`.
    pub path: String,
    pub kind: ApiErrorKind,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiErrorKind {
    /// No answer: refused, reset, timed out. `sent` tells whether the request may have had an effect.
    #[error("no answer ({detail})")]
    Unreachable { sent: bool, detail: String },
    /// 429. `retry_after_ms` is 0 or more when the server said so.
    #[error("rate limited{}", retry_after_ms.map(|ms| format!(", retry after {} s", ms / 1000)).unwrap_or_default())]
    RateLimited { retry_after_ms: Option<i64> },
    /// Not sent: the request budget has no room for it within `wait_ms`, at least 1.
    #[error("held back for {wait_ms} ms to stay within the request budget")]
    OverBudget { wait_ms: i64 },
    /// 401 or 403: the key is wrong or may not do this.
    #[error("refused the key ({status} `{code}`)")]
    Unauthorized { status: u16, code: String },
    /// 404, or the system's own way of saying that the thing does not exist.
    #[error("not found (`{code}`)")]
    NotFound { code: String },
    /// 409: a lease is held or a unique name is taken.
    #[error("conflict (`{code}`)")]
    Conflict { code: String },
    /// Nango could not refresh: `invalid_credentials` in any of its four guises.
    #[error("could not refresh ({status} `{code}`)")]
    RefreshFailed { status: u16, code: String, cooldown: bool, exhausted: bool },
    /// Any other 4xx: repeating the same request cannot help. Status 0: refused before sending,
    /// because the arguments cannot make a valid request.
    #[error("rejected the request ({status} `{code}`)")]
    Rejected { status: u16, code: String },
    /// 5xx: it may or may not have taken effect.
    #[error("failed ({status} `{code}`)")]
    Server { status: u16, code: String },
    /// An answer that does not follow the contract: HTML, cut JSON, wrong type, oversized, redirect.
    #[error("answered something that is not in its contract: {detail}")]
    Contract { detail: String },
}

impl ApiError {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            ApiErrorKind::Unreachable { .. }
                | ApiErrorKind::RateLimited { .. }
                | ApiErrorKind::OverBudget { .. }
                | ApiErrorKind::Server { .. }
                | ApiErrorKind::Contract { .. }
                | ApiErrorKind::Conflict { .. }
        )
    }

    /// Whether it was held back here: the API was not asked and nothing is known of it.
    pub fn is_held_back(&self) -> bool {
        matches!(self.kind, ApiErrorKind::OverBudget { .. })
    }

    /// Whether the request may have had its effect although no success came back.
    pub fn may_have_taken_effect(&self) -> bool {
        matches!(
            self.kind,
            ApiErrorKind::Unreachable { sent: true, .. } | ApiErrorKind::Server { .. } | ApiErrorKind::Contract { .. }
        )
    }

    /// Whether the system as a whole was out of reach (an outage), as opposed to refusing this request.
    pub fn is_outage(&self) -> bool {
        matches!(
            self.kind,
            ApiErrorKind::Unreachable { .. } | ApiErrorKind::Server { .. } | ApiErrorKind::Contract { .. }
        )
    }
}

impl ApiErrorKind {
    /// How long everybody must leave the API alone, where that is known: a 429 that says so, or
    /// the request budget.
    pub const fn wait_ms(&self) -> Option<i64> {
        match self {
            Self::RateLimited { retry_after_ms } => *retry_after_ms,
            Self::OverBudget { wait_ms } => Some(*wait_ms),
            _ => None,
        }
    }

    /// Whether there were too many requests, by the API's count or by ours.
    pub const fn is_limit(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::OverBudget { .. })
    }
}

/// A connection at Nango as its list shows it: no credential, no expiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConnection {
    /// Nango's internal number, the key for de-duplicating pages.
    pub number: i64,
    pub connection_id: String,
    pub integration_key: String,
    pub provider: String,
    /// `tags.end_user_id`, then `end_user.id`.
    pub end_user_id: Option<String>,
    pub organization_id: Option<String>,
    /// Nango recorded an auth error and has not succeeded since.
    pub auth_error: bool,
    pub created_at: Option<Timestamp>,
    /// What `skipTokenRevocation` in its metadata says, if anything.
    pub skip_token_revocation: Option<Value>,
}

/// An integration at Nango.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceIntegration {
    pub key: String,
    pub provider: String,
    pub display_name: String,
}

/// A credential that Nango handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceCredential {
    /// `OAUTH2`, `API_KEY`, …
    pub auth_mode: String,
    pub access_token: Secret,
    pub expires_at: Option<Timestamp>,
    pub scope: Option<String>,
    pub token_type: Option<String>,
    /// Connection-time values that a KV entry or a whoami URL needs, such as `instance_url`. No secrets.
    pub connection_config: Map<String, Value>,
    pub auth_error: bool,
}

/// A Connect session at Nango: whoever opens the link connects an account.
#[derive(Clone, Debug)]
pub struct ConnectSession {
    pub url: Secret,
    pub expires_at: Timestamp,
}

/// Nango without refreshing reads: safe for planners, dry runs and verifiers.
pub trait SourceRead: Send + Sync {
    /// Every connection, all pages, de-duplicated.
    fn list_connections(&self) -> impl Future<Output = ApiResult<Vec<SourceConnection>>> + Send;
    fn list_integrations(&self) -> impl Future<Output = ApiResult<Vec<SourceIntegration>>> + Send;
}

/// Nango with the read that refreshes inside the last 15 minutes of a token's life.
pub trait SourceCustody: SourceRead {
    /// `GET /connections/{id}`: *counts as refreshing*. Only the poller may call it.
    fn fetch_credential(
        &self,
        integration_key: &str,
        connection_id: &str,
    ) -> impl Future<Output = ApiResult<SourceCredential>> + Send;
    /// Makes the connection's metadata say whether a delete skips the revocation upstream.
    fn skip_revocation(
        &self,
        integration_key: &str,
        connection_id: &str,
        skip: &Value,
    ) -> impl Future<Output = ApiResult<()>> + Send;
    fn delete_connection(
        &self,
        integration_key: &str,
        connection_id: &str,
    ) -> impl Future<Output = ApiResult<()>> + Send;
    /// Opens a Connect session for one integration; nothing is connected before a person uses it.
    fn open_session(
        &self,
        end_user_id: &str,
        display_name: Option<&str>,
        integration_key: &str,
    ) -> impl Future<Output = ApiResult<ConnectSession>> + Send;
}

/// A webhook subscription at Composio (`ws_…`), without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookSubscription {
    pub id: String,
    /// Without query and fragment, which may hold a key.
    pub url: String,
}

/// How an auth config at Composio authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetScheme {
    /// A mirror of tokens that someone else refreshes.
    BearerToken,
    /// Final custody: Composio refreshes.
    Oauth2,
}

/// An auth config (`ac_…`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    pub id: String,
    pub name: String,
    pub toolkit: String,
    pub scheme: String,
    pub enabled: bool,
}

/// A connected account (`ca_…`) without its secrets, which Composio redacts anyway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectedAccount {
    pub id: String,
    pub alias: Option<String>,
    pub user_id: String,
    /// Empty right after a create, whose answer does not say it.
    pub toolkit: String,
    pub auth_config_id: String,
    pub scheme: String,
    pub status: AccountStatus,
    pub status_reason: Option<String>,
    /// Scopes asked for at consent, where Composio shows them.
    pub requested_scopes: Option<Vec<String>>,
    /// Scopes that the provider granted (`state.val.scope`), where Composio shows them.
    pub granted_scopes: Option<Vec<String>>,
    pub updated_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountStatus {
    Initializing,
    Initiated,
    Active,
    Failed,
    Expired,
    Inactive,
    Revoked,
    /// A value that this version does not know, kept as found.
    Other(String),
}

impl AccountStatus {
    /// As Composio writes it.
    pub fn name(&self) -> &str {
        match self {
            Self::Initializing => "INITIALIZING",
            Self::Initiated => "INITIATED",
            Self::Active => "ACTIVE",
            Self::Failed => "FAILED",
            Self::Expired => "EXPIRED",
            Self::Inactive => "INACTIVE",
            Self::Revoked => "REVOKED",
            Self::Other(name) => name,
        }
    }
}

/// A consent link: lives 10 minutes, made when a person is about to use it.
#[derive(Clone, Debug)]
pub struct ConsentLink {
    pub account_id: String,
    /// Opening it consents for whoever opens it: treated as a secret.
    pub url: Secret,
    pub expires_at: Timestamp,
}

/// A question to a provider that changes nothing there: who does this token belong to?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderCall {
    /// `GET` or `POST`.
    pub method: String,
    /// An absolute `https` address.
    pub url: String,
    /// Beside the credential, which the caller's side adds.
    pub headers: BTreeMap<String, String>,
    /// JSON, for a `POST` that needs one.
    pub body: Option<Value>,
}

/// The inner answer of a proxied call: Composio answers 200 even when the provider refuses.
#[derive(Clone, Debug)]
pub struct ProxyAnswer {
    pub status: u16,
    pub data: Value,
}

/// Composio without writes.
pub trait TargetRead: Send + Sync {
    fn list_auth_configs(&self) -> impl Future<Output = ApiResult<Vec<AuthConfig>>> + Send;
    /// All accounts of the project (`account_type=ALL`), all pages, re-scanned until two scans agree.
    fn list_accounts(&self) -> impl Future<Output = ApiResult<Vec<ConnectedAccount>>> + Send;
    /// Accounts of one user (all statuses).
    fn list_accounts_of(&self, user_id: &str) -> impl Future<Output = ApiResult<Vec<ConnectedAccount>>> + Send;
    fn get_account(&self, account_id: &str) -> impl Future<Output = ApiResult<ConnectedAccount>> + Send;
    /// The project's webhook subscriptions, wherever they point.
    fn list_webhook_subscriptions(&self) -> impl Future<Output = ApiResult<Vec<WebhookSubscription>>> + Send;
    /// Whether the toolkit exists.
    fn find_toolkit(&self, slug: &str) -> impl Future<Output = ApiResult<bool>> + Send;
    /// A call through the account at the provider (whoami).
    fn proxy(&self, account_id: &str, call: &ProviderCall) -> impl Future<Output = ApiResult<ProxyAnswer>> + Send;
}

/// Composio with writes.
pub trait TargetCustody: TargetRead {
    fn create_auth_config(
        &self,
        toolkit: &str,
        name: &str,
        scheme: TargetScheme,
        scopes: &[String],
    ) -> impl Future<Output = ApiResult<AuthConfig>> + Send;
    /// Not safe to repeat blindly: look for the alias first.
    fn create_bearer_account(
        &self,
        auth_config_id: &str,
        user_id: &str,
        alias: &str,
        token: &Secret,
    ) -> impl Future<Output = ApiResult<ConnectedAccount>> + Send;
    /// Last write wins at Composio: callers must order writes per account.
    fn patch_bearer(&self, account_id: &str, token: &Secret) -> impl Future<Output = ApiResult<AccountStatus>> + Send;
    /// Always makes a new account id.
    fn create_link(
        &self,
        auth_config_id: &str,
        user_id: &str,
        alias: &str,
        callback_url: Option<&str>,
    ) -> impl Future<Output = ApiResult<ConsentLink>> + Send;
    fn set_account_enabled(&self, account_id: &str, enabled: bool) -> impl Future<Output = ApiResult<()>> + Send;
    /// Soft delete, never with `revoke_on_delete`.
    fn delete_account(&self, account_id: &str) -> impl Future<Output = ApiResult<()>> + Send;
}

/// One of the gateway's two KV namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    Source,
    Target,
}

/// A key as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvKey {
    pub name: String,
    /// `None`: no metadata, or not ours (foreign).
    pub metadata: Option<KvMetadata>,
}

/// One page of a listing. The end is `cursor == None`; a page may be empty and not the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPage {
    pub keys: Vec<KvKey>,
    pub cursor: Option<String>,
}

/// A put of one token entry.
#[derive(Clone, Debug)]
pub struct KvPut {
    pub key: String,
    pub value: Secret,
    /// JSON, at most 1,024 bytes. `None` clears it.
    pub metadata: Option<Value>,
}

/// KV without writes.
pub trait KvRead: Send + Sync {
    fn list_keys(
        &self,
        namespace: Namespace,
        prefix: &str,
        cursor: Option<&str>,
    ) -> impl Future<Output = ApiResult<KvPage>> + Send;
    /// At most 100 keys. A value that is absent or does not parse is `None` (parse failures say why).
    fn bulk_get(
        &self,
        namespace: Namespace,
        keys: &[String],
    ) -> impl Future<Output = ApiResult<BTreeMap<String, Option<Result<KvEntry, crate::domain::token::KvEntryError>>>>> + Send;
    /// The same out of the urgent part of the budget: a write that keeps a served token alive waits for it.
    fn bulk_get_urgent(
        &self,
        namespace: Namespace,
        keys: &[String],
    ) -> impl Future<Output = ApiResult<BTreeMap<String, Option<Result<KvEntry, crate::domain::token::KvEntryError>>>>> + Send
    {
        self.bulk_get(namespace, keys)
    }
}

/// KV with writes.
pub trait KvWrite: KvRead {
    /// At most 10,000 entries of different keys, safe to repeat. Returns the keys that were not
    /// written, or less than a second ago, and must be sent again.
    fn bulk_put(&self, namespace: Namespace, puts: &[KvPut]) -> impl Future<Output = ApiResult<Vec<String>>> + Send;
    /// One entry, any text (the read-authority record is not a token).
    fn put(&self, namespace: Namespace, put: &KvPut) -> impl Future<Output = ApiResult<()>> + Send;
    /// The same, and the entry goes away by itself at `expires_at`, at least a minute ahead. Not
    /// for tokens: an ended token can be diagnosed, an absent one cannot.
    fn put_until(
        &self,
        namespace: Namespace,
        put: &KvPut,
        expires_at: Timestamp,
    ) -> impl Future<Output = ApiResult<()>> + Send;
    fn delete(&self, namespace: Namespace, key: &str) -> impl Future<Output = ApiResult<()>> + Send;
}

/// A KV namespace of the account, whichever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvPlace {
    Gateway(Namespace),
    /// Any other, by its id at Cloudflare.
    Id(String),
}

/// A key as a listing shows it, nothing interpreted.
#[derive(Clone, Debug, PartialEq)]
pub struct ListedKey {
    pub name: String,
    /// Unix seconds.
    pub expiration: Option<i64>,
    pub metadata: Option<Value>,
}

/// One page of a listing. The end is `cursor == None`; a page may be empty and not the last.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyListing {
    pub keys: Vec<ListedKey>,
    pub cursor: Option<String>,
}

/// What stands under a key, nothing interpreted.
#[derive(Clone, Debug)]
pub struct StoredValue {
    /// All of it may be secret.
    pub value: Secret,
    pub metadata: Option<Value>,
    /// Unix seconds.
    pub expiration: Option<i64>,
}

/// KV as it is, for whoever compares: neither metadata nor values are judged here.
pub trait KvInspect: Send + Sync {
    /// Up to 1,000 keys, in the order of their UTF-8 bytes.
    fn list_page(
        &self,
        place: &KvPlace,
        prefix: &str,
        cursor: Option<&str>,
    ) -> impl Future<Output = ApiResult<KeyListing>> + Send;
    /// At most 100 keys, each with its value and metadata as of one moment; `None` when it is not there.
    fn read_values(
        &self,
        place: &KvPlace,
        keys: &[String],
    ) -> impl Future<Output = ApiResult<BTreeMap<String, Option<StoredValue>>>> + Send;
}

/// A row for D1 `kv_audit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// Unique: a repeat after a lost answer inserts nothing.
    pub op_id: String,
    pub at: Timestamp,
    pub key: String,
    pub action: String,
    pub source: String,
    pub fingerprint: Option<String>,
}

/// A row as `kv_audit` has it. Others write there too: nothing in it is more than what they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Its place in the table, which grows with every insertion.
    pub place: u64,
    /// Empty when it has none.
    pub op_id: String,
    /// `None` when it is no time.
    pub at: Option<Timestamp>,
    pub key: String,
    pub action: String,
    pub source: String,
    pub fingerprint: Option<String>,
}

/// Rows that [`AuditRead::read_audit`] gives at most.
pub const AUDIT_PAGE: usize = 1_000;

/// D1 `kv_audit`, reading.
pub trait AuditRead: Send + Sync {
    /// The place of the newest row, 0 when there is none.
    fn audit_end(&self) -> impl Future<Output = ApiResult<u64>> + Send;
    /// The rows behind a place in the order of their insertion. Fewer than [`AUDIT_PAGE`]: that is all.
    fn read_audit(&self, after: u64) -> impl Future<Output = ApiResult<Vec<AuditRecord>>> + Send;
    /// Which of these operations have a row. At most 1,000 are asked for at once.
    fn find_audit(&self, op_ids: &[String]) -> impl Future<Output = ApiResult<Vec<AuditRecord>>> + Send;
}

/// D1 `kv_audit`, writing.
pub trait AuditSink: AuditRead {
    /// Inserts with `ON CONFLICT DO NOTHING`; safe to repeat.
    fn append_audit(&self, rows: &[AuditRow]) -> impl Future<Output = ApiResult<()>> + Send;
}

/// What a TokenManager object does when its alarm fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlarmMode {
    /// As ADR-038 left it: refresh at the provider 10 minutes before expiry, write KV, arm again.
    Refresh,
    /// Fallback: refresh only when KV shows that custody has not; else arm again for the new expiry.
    Standby,
    /// Reporting no-op: record that it fired, touch nothing, do not arm again.
    Report,
    /// Persisted flag set and alarm deleted in one call.
    Disarmed,
}

/// One TokenManager object as the gateway's admin route shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlarmState {
    pub triplet: Triplet,
    pub mode: AlarmMode,
    pub alarm_at: Option<Timestamp>,
    pub last_fired_at: Option<Timestamp>,
    pub fires: u64,
}

/// One firing of an alarm, as the gateway recorded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlarmFire {
    pub triplet: Triplet,
    pub at: Timestamp,
    pub mode: AlarmMode,
    /// It refreshed at the provider and wrote KV.
    pub wrote: bool,
}

/// The gateway's answer to a smoke test of one triplet: what its hot path would serve right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmokeResult {
    pub triplet: Triplet,
    pub read_authority: Namespace,
    /// The upstream answered 2xx to a whoami.
    pub ok: bool,
    /// The credential served was past its expiry or absent.
    pub stale: bool,
    pub upstream_status: u16,
}

impl SmokeResult {
    /// What it says about the credential that was served. A provider may refuse one with 200.
    pub fn upstream(&self) -> Upstream {
        match Upstream::of(self.upstream_status) {
            _ if self.stale => Upstream::Refused,
            Upstream::Works if !self.ok => Upstream::Refused,
            said => said,
        }
    }
}

/// The gateway's admin routes, reading.
pub trait GatewayRead: Send + Sync {
    fn list_alarms(&self) -> impl Future<Output = ApiResult<Vec<AlarmState>>> + Send;
    fn read_alarm(&self, triplet: &Triplet) -> impl Future<Output = ApiResult<AlarmState>> + Send;
    fn list_fires(&self, since: Timestamp) -> impl Future<Output = ApiResult<Vec<AlarmFire>>> + Send;
    fn smoke(&self, triplets: &[Triplet]) -> impl Future<Output = ApiResult<Vec<SmokeResult>>> + Send;
}

/// The gateway's admin routes, writing.
pub trait GatewayAdmin: GatewayRead {
    /// Sets the mode; `Disarmed` also deletes the alarm, the others arm it. Returns the state read back.
    fn set_alarm_mode(&self, triplet: &Triplet, mode: AlarmMode) -> impl Future<Output = ApiResult<AlarmState>> + Send;
}

/// What a provider answered, whatever it was.
#[derive(Clone, Debug)]
pub struct ProviderAnswer {
    pub status: u16,
    /// Names in lower case. Without cookies.
    pub headers: Vec<(String, String)>,
    /// As text; it may repeat what was sent.
    pub body: Secret,
}

/// A provider's own API, called with a token that is ours to use.
pub trait ProviderRead: Send + Sync {
    /// Calls a whoami URL with a bearer token. 401/403 come back as `Unauthorized`.
    fn whoami(&self, token: &Secret, call: &ProviderCall) -> impl Future<Output = ApiResult<Value>> + Send;
    /// The same call, and the answer as it is: only the catalogue knows what a provider's refusals mean.
    /// An error means that none came: an outage, a limit.
    fn ask(&self, token: &Secret, call: &ProviderCall) -> impl Future<Output = ApiResult<ProviderAnswer>> + Send;
}

/// The reading halves of the outside world, and nothing else.
pub trait OutsideRead: Send + Sync + 'static {
    type Source: SourceRead;
    type Target: TargetRead;
    type Cloudflare: KvRead;
    type Gateway: GatewayRead;

    fn read_source(&self) -> &Self::Source;
    fn read_target(&self) -> &Self::Target;
    fn read_cloudflare(&self) -> &Self::Cloudflare;
    fn read_gateway(&self) -> &Self::Gateway;
}

/// Everything the engine talks to, and the wall clock skew that each API's `Date` header showed.
pub trait Outside: Send + Sync + 'static {
    type Source: SourceCustody;
    type Target: TargetCustody;
    type Cloudflare: KvWrite + AuditSink;
    type Gateway: GatewayAdmin;
    type Provider: ProviderRead;

    fn source(&self) -> &Self::Source;
    fn target(&self) -> &Self::Target;
    fn cloudflare(&self) -> &Self::Cloudflare;
    fn gateway(&self) -> &Self::Gateway;
    fn provider(&self) -> &Self::Provider;

    /// Per API since the last call: requests sent, and the last `Date` header minus the time of receipt, in ms.
    fn take_traffic(&self) -> BTreeMap<Api, Traffic>;

    /// Holds the requests to each API to its limit from now on; what has no room is not sent and
    /// comes back as [`ApiErrorKind::OverBudget`]. An outside that sends nothing has no budget.
    fn limit_requests(&self, _limits: &BTreeMap<Api, Limit>) {}

    /// How many requests may go to an API now, and when the next.
    fn allowance(&self, _api: Api, _lane: Lane, now: Timestamp) -> Allowance {
        Allowance::unlimited(now)
    }

    /// What each API's last answer said of its own request counter, where it said something.
    fn counters(&self) -> BTreeMap<Api, Counter> {
        BTreeMap::new()
    }

    /// What is left of each budget, for metrics and the dashboard.
    fn budgets(&self, _now: Timestamp) -> Vec<BudgetState> {
        Vec::new()
    }
}

/// Requests to one API since last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub requests: u64,
    /// 429 answers among them.
    pub limited: u64,
    /// The server's clock minus ours, ms, from the last `Date` header; the time that the answer took is
    /// no difference.
    pub skew_ms: Option<i64>,
}
