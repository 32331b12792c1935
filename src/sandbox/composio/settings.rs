//! How Composio behaves where its contract leaves a choice, or could not be established.

use serde::Deserialize;

use crate::domain::time::SECOND_MS;

/// How secrets of custom auth configs are shown (composio.md §3.2). Managed ones are always redacted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Masking {
    /// The first four characters and `...`.
    #[default]
    Mask4,
    Redacted,
    /// As they are: some projects had this before April 2026.
    Raw,
}

/// What becomes of an OAuth2 token that is imported into a custom auth config (composio.md §4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oauth2Import {
    /// 400.
    Reject,
    /// The account stays in INITIATED, as reported in March 2026.
    #[default]
    StuckInitiated,
    /// ACTIVE until the access token ends, and never refreshed.
    ActiveNoRefresh,
    /// ACTIVE and refreshed.
    ActiveRefresh,
}

/// Whether a query parameter that the contract does not name is ignored or refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownQuery {
    #[default]
    Ignore,
    Reject,
}

/// One switch for each point that composio.md marks UNCONFIRMED, and the dated changes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ComposioSettings {
    pub masking: Masking,
    pub oauth2_import: Oauth2Import,
    /// Before 2026-07-03: OAuth accounts can be created directly on a managed auth config.
    pub managed_direct_create: bool,
    /// A new token lifts an EXPIRED or INACTIVE account to ACTIVE.
    pub patch_reactivates_expired: bool,
    /// The provider is asked before a patched token is stored.
    pub patch_validates: bool,
    /// The provider is asked before a new account's credential is stored.
    pub credential_check_on_create: bool,
    /// `GET /auth/session/info` takes a project key, as v3.0 did.
    pub session_info_accepts_project_key: bool,
    /// Project keys with few permissions may read the project's configuration.
    pub config_route_for_scoped_key: bool,
    pub unknown_query: UnknownQuery,
    /// How long the old webhook secret signs along after a rotation.
    pub rotation_overlap_secs: i64,
    /// Waits before each further attempt to deliver a webhook, ms.
    pub webhook_retry_schedule_ms: Vec<i64>,
    /// For how long a write keeps other writers of one account out, ms. 0: never.
    pub write_lease_ms: i64,
    /// Background refreshes that must fail in a row before an account leaves ACTIVE.
    pub failures_before_expired: u32,
    /// Each webhook is delivered twice.
    pub duplicate_webhooks: bool,
    /// Webhooks leave up to this much later, each on its own, so that they overtake each other, ms.
    pub webhook_delay_max_ms: i64,
    /// The project has a verifier: consent waits for `complete_auth`, and this address gets the browser.
    pub verifier_url: Option<String>,
}

impl Default for ComposioSettings {
    fn default() -> Self {
        Self {
            masking: Masking::default(),
            oauth2_import: Oauth2Import::default(),
            managed_direct_create: false,
            patch_reactivates_expired: false,
            patch_validates: false,
            credential_check_on_create: false,
            session_info_accepts_project_key: true,
            config_route_for_scoped_key: false,
            unknown_query: UnknownQuery::default(),
            rotation_overlap_secs: 0,
            webhook_retry_schedule_ms: vec![3 * SECOND_MS, 6 * SECOND_MS],
            write_lease_ms: 0,
            failures_before_expired: 1,
            duplicate_webhooks: false,
            webhook_delay_max_ms: 0,
            verifier_url: None,
        }
    }
}
