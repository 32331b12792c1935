//! What points the binary at a sandbox.

use super::serve::{Sandbox, SandboxUrls};

impl Sandbox {
    /// The environment variables of a client of this sandbox, by name, the provider's address last.
    /// A toolkit without an OAuth app of Composio's gets the team's (composio.md §2).
    pub fn environment(&self) -> Vec<(String, String)> {
        let world = self.lock();
        let (keys, SandboxUrls { nango, composio, cloudflare, gateway, provider }) = (world.keys(), self.urls.clone());
        let mut variables = Vec::new();
        let mut set = |name: &str, value: String| variables.push((format!("CUTOVER_{name}"), value));
        set("NANGO_URL", nango);
        set("NANGO_KEY", keys.nango_api_key);
        set("NANGO_WEBHOOK_KEY", keys.nango_webhook_signing_key);
        set("COMPOSIO_URL", composio);
        set("COMPOSIO_KEY", keys.composio_api_key);
        for (toolkit, app) in keys.composio_clients {
            if world.needs_own_app(&toolkit) {
                let app_of = format!("COMPOSIO_OAUTH_{}", toolkit.to_ascii_uppercase());
                set(&format!("{app_of}_CLIENT_ID"), app.client_id);
                set(&format!("{app_of}_CLIENT_SECRET"), app.client_secret);
            }
        }
        set("CLOUDFLARE_URL", format!("{cloudflare}/client/v4/accounts/{}", keys.cloudflare_account_id));
        set("CLOUDFLARE_TOKEN", keys.cloudflare_token);
        set("KV_SOURCE", keys.kv_source);
        set("KV_TARGET", keys.kv_target);
        set("D1", keys.d1_database);
        set("GATEWAY_URL", gateway);
        set("GATEWAY_ADMIN_KEY", keys.gateway_admin_key);
        set("GATEWAY_KEY", keys.gateway_key);
        set("PROVIDER_URL", provider);
        variables
    }
}
