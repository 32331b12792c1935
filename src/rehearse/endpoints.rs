//! Our clients, pointed at a sandbox.

use reqwest::Url;

use crate::clients::{
    CloudflareEndpoint, ComposioEndpoint, Endpoints, GatewayEndpoint, NangoEndpoint, OauthApp, ProviderEndpoint,
};
use crate::domain::secret::Secret;
use crate::sandbox::Sandbox;

/// Where `sandbox` is and the keys that it takes, with the team's own OAuth app for every toolkit.
pub fn endpoints(sandbox: &Sandbox) -> Endpoints {
    let (urls, keys) = (&sandbox.urls, sandbox.lock().keys());
    let url = |text: &str| Url::parse(text).expect("the sandbox's own addresses are URLs");
    let apps = keys.composio_clients.into_iter().map(|(toolkit, app)| {
        let client_secret = Secret::new(app.client_secret);
        (toolkit, OauthApp { client_id: app.client_id, client_secret })
    });
    Endpoints {
        nango: NangoEndpoint { base: url(&urls.nango), key: Secret::new(keys.nango_api_key) },
        composio: ComposioEndpoint {
            base: url(&urls.composio),
            key: Secret::new(keys.composio_api_key),
            oauth_apps: apps.collect(),
        },
        cloudflare: CloudflareEndpoint {
            base: url(&format!("{}/client/v4/accounts/{}", urls.cloudflare, keys.cloudflare_account_id)),
            token: Secret::new(keys.cloudflare_token),
            kv_source: keys.kv_source,
            kv_target: keys.kv_target,
            d1: keys.d1_database,
        },
        gateway: GatewayEndpoint {
            base: url(&urls.gateway),
            admin_key: Secret::new(keys.gateway_admin_key),
            gateway_key: Secret::new(keys.gateway_key),
        },
        provider: ProviderEndpoint { base_override: Some(url(&urls.provider)) },
        allow_insecure_http: false,
    }
}
