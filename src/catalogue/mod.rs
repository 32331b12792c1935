//! What is known about each provider, as dated data: token lifetimes, rotation, whoami, scopes,
//! toolkits, and how a dead grant looks. Facts live in `providers.toml`; this module reads them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
    pub rotation: Rotation,
    pub reuse: Reuse,
    /// Live grants per user and client before the oldest is evicted.
    pub grants_max: Option<u32>,
    pub same_client_reconsent: Reconsent,
    pub token_url: String,
    pub revoke_url: Option<String>,
    pub whoami: Whoami,
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
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// How one provider error is to be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorRule {
    pub status: u16,
    /// Terms joined by ` && `: `path=v`, `a|b`, `path^=prefix`, `path*=contains`, `header.X`, `body*=raw`, `*`.
    #[serde(rename = "match")]
    pub matcher: String,
    /// `permanent`, `transient`, `config`, `clock-skew` or `ambiguous`.
    pub class: String,
    /// `token`, `api`, `consent` or `introspect`.
    pub phase: String,
    pub meaning: String,
}

impl Integration {
    /// Whether a second refresher on the same refresh token does no harm: spent tokens are not
    /// rotated away, or presenting one again has no consequence. Undocumented counts as harm.
    pub fn tolerates_second_refresher(&self) -> bool {
        self.rotation == Rotation::Never || self.reuse == Reuse::Harmless
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
