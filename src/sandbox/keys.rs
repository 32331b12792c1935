//! The keys and ids of one world, all drawn from its seed.

use std::collections::BTreeMap;
use std::fmt;

use crate::catalogue::Catalogue;

use super::draw;
use super::provider::CANARY;

/// An OAuth app at a provider.
#[derive(Clone, PartialEq, Eq)]
pub struct OauthClient {
    pub client_id: String,
    pub client_secret: String,
}

impl fmt::Debug for OauthClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OauthClient").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

/// What a client needs to talk to the sandbox. The secrets open nothing outside of it, but are
/// kept out of `Debug` all the same: leak tests search for them.
#[derive(Clone, PartialEq, Eq)]
pub struct SandboxKeys {
    /// A UUID with scope `environment:*`.
    pub nango_api_key: String,
    /// A UUID with only `connections:list` and `connections:read`: its reads never refresh.
    pub nango_verify_key: String,
    /// Key of both webhook signatures.
    pub nango_webhook_signing_key: String,
    /// A project key, `ak_…`.
    pub composio_api_key: String,
    /// A member's key, `uak_…`: says who asks, and opens nothing of the project.
    pub composio_user_key: String,
    /// An API token, `cfut_…`.
    pub cloudflare_token: String,
    pub cloudflare_account_id: String,
    /// Id of the KV namespace that the gateway reads.
    pub kv_source: String,
    /// Id of the KV namespace of the new custody.
    pub kv_target: String,
    /// Id of the D1 database with `kv_audit`.
    pub d1_database: String,
    /// Id of the Durable Object namespace of class `TokenManager`.
    pub do_namespace: String,
    /// For `X-Admin-Key`.
    pub gateway_admin_key: String,
    /// Bearer key of the gateway's hot path.
    pub gateway_key: String,
    /// The team's OAuth apps, shared by TokenManager objects and Nango, by integration key.
    pub legacy_clients: BTreeMap<String, OauthClient>,
    /// The team's OAuth apps for Composio, by toolkit.
    pub composio_clients: BTreeMap<String, OauthClient>,
}

impl SandboxKeys {
    pub(super) fn draw(seed: u64, catalogue: &Catalogue, integrations: &[String]) -> Self {
        let text = |label: &str, len| draw::text(seed, &["key", label], 0, len);
        let hex = |label: &str| draw::hex(seed, &["id", label], 0, 32);
        let uuid = |label: &str| draw::uuid(seed, &["key", label], 0);
        let client = |owner: &str, of: &str| OauthClient {
            client_id: format!("{}.apps.example", draw::hex(seed, &["client", owner, of], 0, 16)),
            client_secret: format!("GSX-{CANARY}-{}", draw::text(seed, &["client-secret", owner, of], 0, 24)),
        };
        let toolkits =
            catalogue.integrations.values().flat_map(|i| i.provider.values()).filter_map(|p| p.toolkit.clone());
        Self {
            nango_api_key: uuid("nango"),
            nango_verify_key: uuid("nango-verify"),
            nango_webhook_signing_key: uuid("nango-webhook"),
            composio_api_key: format!("ak_{CANARY}{}", text("composio", 20)),
            composio_user_key: format!("uak_{CANARY}{}", text("composio-user", 20)),
            cloudflare_token: format!("cfut_{CANARY}{}", text("cloudflare", 34)),
            cloudflare_account_id: hex("account"),
            kv_source: hex("kv-source"),
            kv_target: hex("kv-target"),
            d1_database: draw::uuid(seed, &["id", "d1"], 0),
            do_namespace: hex("token-manager"),
            gateway_admin_key: format!("admin-{CANARY}-{}", text("gateway-admin", 24)),
            gateway_key: format!("gw-{CANARY}-{}", text("gateway", 24)),
            legacy_clients: integrations.iter().map(|key| (key.clone(), client("legacy", key))).collect(),
            composio_clients: toolkits.map(|t| (t.clone(), client("composio", &t))).collect(),
        }
    }
}

impl fmt::Debug for SandboxKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxKeys")
            .field("cloudflare_account_id", &self.cloudflare_account_id)
            .field("kv_source", &self.kv_source)
            .field("kv_target", &self.kv_target)
            .field("d1_database", &self.d1_database)
            .finish_non_exhaustive()
    }
}
