//! What an environment of Nango is set to, and which server answers.

use serde::Deserialize;

/// Which server answers. Later ones send webhooks that earlier ones do not (nango.md §5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum NangoVersion {
    #[default]
    #[serde(rename = "0.71.4")]
    V0_71_4,
    /// A `refresh` webhook when a refresh succeeds after a recorded failure.
    #[serde(rename = "0.71.5")]
    V0_71_5,
    /// A `deletion` webhook, where switched on; API keys may be 4,096 characters long.
    #[serde(rename = "0.71.6")]
    V0_71_6,
}

impl NangoVersion {
    /// As the webhooks' user agent names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V0_71_4 => "0.71.4",
            Self::V0_71_5 => "0.71.5",
            Self::V0_71_6 => "0.71.6",
        }
    }
}

/// An environment's settings (nango.md §5.2), which Nango keeps on its dashboard.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NangoSettings {
    pub version: NangoVersion,
    /// The environment's name, as webhooks tell it.
    pub environment: String,
    /// Gets each webhook after the primary address has finished its attempts.
    pub secondary_webhook_url: Option<String>,
    pub on_auth_creation: bool,
    pub on_auth_refresh_error: bool,
    /// Off in environments that are older than the event.
    pub on_connection_deletion: bool,
    /// The plan's cap on connections. Absent: none.
    pub connections_max: Option<u32>,
    /// The dashboard is served, so an unknown GET path is 200 with its page instead of a 500.
    pub dashboard: bool,
}

impl Default for NangoSettings {
    fn default() -> Self {
        Self {
            version: NangoVersion::default(),
            environment: "prod".to_owned(),
            secondary_webhook_url: None,
            on_auth_creation: true,
            on_auth_refresh_error: true,
            on_connection_deletion: false,
            connections_max: None,
            dashboard: false,
        }
    }
}
