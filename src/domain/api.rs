//! The outside systems, by name.

/// Which outside system a call went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    Nango,
    Composio,
    Cloudflare,
    Gateway,
    Provider,
}

impl Api {
    pub const ALL: [Self; 5] = [Self::Nango, Self::Composio, Self::Cloudflare, Self::Gateway, Self::Provider];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Nango => "nango",
            Self::Composio => "composio",
            Self::Cloudflare => "cloudflare",
            Self::Gateway => "gateway",
            Self::Provider => "provider",
        }
    }
}
