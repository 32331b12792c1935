//! What is known about each provider, as dated data: token lifetimes, rotation, whoami, scopes,
//! toolkits, and how a dead grant looks. Facts live in `providers.toml`; this module reads them,
//! [`extend`] lays a user's own facts over them, and [`classify`] reads provider errors with them.

pub mod classify;
mod extend;
pub mod identity;
mod quirk;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use extend::Error;
pub use quirk::Quirk;

use crate::domain::time::Timestamp;

/// The catalogue that is built in.
pub const BUILT_IN: &str = include_str!("providers.toml");

/// All integrations, by Nango integration key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// The day the facts were checked, `YYYY-MM-DD`.
    pub checked_on: String,
    #[serde(rename = "integration")]
    pub integrations: BTreeMap<String, Integration>,
}

/// One Nango integration key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Integration {
    /// Nango's auth mode: `OAUTH2`, `API_KEY`, …
    pub auth_mode: String,
    /// Usual life of an access token in seconds; absent: no scheduled expiry.
    pub access_token_ttl_s: Option<u64>,
    /// Shortest documented life of an untouched refresh token in seconds; absent: none documented.
    pub refresh_token_ttl_s: Option<u64>,
    /// What starts the clock of `refresh_token_ttl_s`.
    pub refresh_token_life: Option<Life>,
    pub rotation: Rotation,
    pub reuse: Reuse,
    /// Live grants per user and client before the oldest is evicted.
    pub grants_max: Option<u32>,
    /// Live grants that a plan may leave behind, where sources disagree on which one evicts.
    pub grants_plan_max: Option<u32>,
    pub same_client_reconsent: Reconsent,
    pub token_url: String,
    pub revoke_url: Option<String>,
    pub whoami: Whoami,
    /// Who must consent, where not every user of the account can.
    pub consent_by: Option<String>,
    /// Who must approve a client that the customer's side does not know yet.
    pub approval: Option<String>,
    /// Whether Nango reports when the access token expires.
    #[serde(default = "yes")]
    pub expiry_at_source: bool,
    /// Other names under which a provider lists a granted scope; no names: it never lists it.
    #[serde(default)]
    pub scope_alias: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub deadline: Vec<Deadline>,
    #[serde(default)]
    pub quirk: Vec<Quirk>,
    /// V5 providers fed by this integration.
    pub provider: BTreeMap<String, Provider>,
    /// Ordered: the first match wins.
    #[serde(default)]
    pub error: Vec<ErrorRule>,
    #[serde(default)]
    pub sources: Vec<String>,
}

/// One V5 provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    pub scopes: Vec<String>,
    /// Composio toolkit slug; absent: none exists.
    pub toolkit: Option<String>,
    /// The slug has not been confirmed: probe before depending on it.
    #[serde(default)]
    pub toolkit_unconfirmed: bool,
    /// Auth schemes that the toolkit's page lists; `BEARER_TOKEN` is offered beside `OAUTH2` and not listed.
    #[serde(default)]
    pub auth_schemes: Vec<String>,
    /// Composio offers its own OAuth app; absent: unknown.
    pub managed_oauth: Option<bool>,
    /// What is needed besides the grant, such as a developer token.
    #[serde(default)]
    pub extra_credential: Vec<String>,
    #[serde(default)]
    pub quirk: Vec<Quirk>,
    /// When and where the toolkit's abilities were looked up.
    pub ability: Option<Ability>,
}

/// Evidence for what the target can do with a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ability {
    /// `YYYY-MM-DD`
    pub checked_on: String,
    pub source: String,
    /// The day from which it must be looked up again, `YYYY-MM-DD`.
    pub expires_on: String,
}

/// A day on which something that the bridge depends on ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deadline {
    /// `YYYY-MM-DD`
    pub on: String,
    pub what: String,
    /// Only a secondary source names the day.
    #[serde(default)]
    pub secondary: bool,
}

/// What starts the clock of a refresh token's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Life {
    /// Each use.
    Idle,
    /// The consent; refreshing does not extend it.
    Absolute,
}

const fn yes() -> bool {
    true
}

/// Midnight UTC of a day written `YYYY-MM-DD`.
pub fn date(text: &str) -> Option<Timestamp> {
    if text.len() != 10 {
        return None;
    }
    Timestamp::parse(&format!("{text}T00:00:00Z")).ok()
}

/// Whether a refresh answers with a new refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rotation {
    Never,
    /// A setting of the client decides.
    Optional,
    Always,
}

/// What happens when a spent refresh token is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reuse {
    Harmless,
    /// Works for a short time after rotation.
    Grace,
    RevokesFamily,
    /// Not documented: plan for family loss.
    Unknown,
}

/// What a second consent with the same OAuth client does to the first grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reconsent {
    KeepsOld,
    InvalidatesOld,
    /// Not documented: plan as `InvalidatesOld`.
    Unknown,
}

/// How to ask who a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Whoami {
    pub method: String,
    /// May hold `{placeholders}` that the connection's configuration fills.
    pub url: String,
    /// Paths such as `elements[].account` that may be compared between two OAuth clients.
    pub identity_fields: Vec<String>,
    /// Identity fields that mean something only within one OAuth client when another field is there.
    #[serde(default)]
    pub client_scoped: BTreeMap<String, String>,
    /// What the call needs beside the token. `{placeholders}` as in `url`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The request body of a POST.
    pub body: Option<String>,
    /// How the new identity must relate to the old one where a field is a set.
    #[serde(default)]
    pub rule: IdentityRule,
    /// The call is signed with AWS keys and not sent with a bearer token.
    #[serde(default)]
    pub signed: bool,
    /// What a reader of the answer must know.
    pub note: Option<String>,
}

/// How two sets of identity values must relate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdentityRule {
    #[default]
    Equal,
    /// The new set must hold everything of the old one.
    Superset,
}

/// How one provider error is to be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorRule {
    pub status: u16,
    /// The status is not settled by a source, or varies: match on the body alone.
    #[serde(default)]
    pub any_status: bool,
    /// Terms joined by ` && `: `path=v`, `a|b`, `path^=prefix`, `path*=contains`, `header.X`, `body*=raw`, `*`.
    #[serde(rename = "match")]
    pub matcher: String,
    /// `permanent`, `transient`, `config`, `clock-skew` or `ambiguous`.
    pub class: String,
    /// `token`, `api`, `consent` or `introspect`.
    pub phase: String,
    pub meaning: String,
    /// It tells of an access token's end: refresh once before judging the grant.
    #[serde(default)]
    pub refresh: bool,
}

impl Integration {
    /// Whether a second refresher on the same refresh token does no harm: spent tokens are not
    /// rotated away, or presenting one again has no consequence. Undocumented counts as harm.
    pub fn tolerates_second_refresher(&self) -> bool {
        self.rotation == Rotation::Never || self.reuse == Reuse::Harmless
    }

    /// Which of the needed scopes a grant lacks, under the provider's own names for them.
    pub fn lacking(&self, needed: &[String], granted: &BTreeSet<String>) -> Vec<String> {
        let has = |scope: &String| {
            let alias = self.scope_alias.get(scope);
            granted.contains(scope)
                || alias.is_some_and(|names| names.is_empty() || names.iter().any(|name| granted.contains(name)))
        };
        needed.iter().filter(|scope| !has(scope)).cloned().collect()
    }
}

impl Catalogue {
    /// The built-in catalogue.
    pub fn built_in() -> Self {
        toml::from_str(BUILT_IN).expect("the built-in catalogue is checked by a test")
    }

    pub fn integration(&self, key: &str) -> Option<&Integration> {
        self.integrations.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_covers_adr_038() {
        let catalogue = Catalogue::built_in();
        let providers: usize = catalogue.integrations.values().map(|i| i.provider.len()).sum();
        assert_eq!((catalogue.integrations.len(), providers), (10, 14));
    }
}
