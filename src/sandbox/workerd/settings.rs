//! What the Worker is told, and what it begins with, taken from the world.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::sandbox::cloudflare::SOURCE;
use crate::sandbox::live::LiveClock;
use crate::sandbox::serve::SandboxUrls;
use crate::sandbox::world::World;

/// One TokenManager object to be made.
pub(super) struct Grant {
    pub triplet: String,
    /// For `POST /admin/objects/{triplet}`.
    pub body: Value,
}

impl World {
    /// The runner's settings: the Worker's bindings, and names for the API.
    pub(super) fn workerd_settings(&self, urls: &SandboxUrls, clock: &LiveClock) -> Value {
        let keys = self.keys_ref();
        let mut providers = Map::new();
        for (integration, facts) in &self.providers.integrations {
            let whoami = &facts.whoami;
            let body: Option<Value> = whoami.body.as_ref().and_then(|text| serde_json::from_str(text).ok());
            for provider in facts.provider.keys() {
                providers.insert(
                    provider.clone(),
                    json!({
                        "integration": integration.as_ref(),
                        "token_url": facts.token_url,
                        "whoami": {
                            "method": whoami.method, "url": whoami.url, "headers": whoami.headers, "body": body,
                        },
                    }),
                );
            }
        }
        let clients: BTreeMap<&str, Value> = keys
            .legacy_clients
            .iter()
            .map(|(key, app)| (key.as_str(), json!({"client_id": app.client_id, "client_secret": app.client_secret})))
            .collect();
        json!({
            "account": keys.cloudflare_account_id,
            "token": keys.cloudflare_token,
            "kv_source": keys.kv_source,
            "kv_target": keys.kv_target,
            "d1": keys.d1_database,
            "do_namespace": keys.do_namespace,
            "bindings": {
                "ADMIN_KEY": keys.gateway_admin_key,
                "GATEWAY_KEY": keys.gateway_key,
                "NANGO_URL": urls.nango,
                "NANGO_KEY": keys.nango_api_key,
                "NANGO_WEBHOOK_KEY": keys.nango_webhook_signing_key,
                "COMPOSIO_URL": urls.composio,
                "COMPOSIO_KEY": keys.composio_api_key,
                "PROVIDER_BASE": urls.provider,
                "PROVIDERS": providers,
                "OAUTH_CLIENTS": serde_json::to_string(&clients).expect("a map of texts is JSON"),
                "CLOCK": clock.to_json(),
            },
        })
    }

    /// KV as the world begins, as the body of a bulk put.
    pub(super) fn workerd_entries(&self) -> Value {
        let entries = &self.cloudflare.namespaces[SOURCE];
        let item = |(key, entry): (&String, &crate::sandbox::cloudflare::Entry)| json!({"key": key, "value": String::from_utf8_lossy(&entry.value)});
        entries.iter().map(item).collect()
    }

    /// The objects with the grants that they hold.
    pub(super) fn workerd_grants(&self) -> Vec<Grant> {
        let grant = |object: &crate::sandbox::gateway::TokenManager| {
            let triplet = &self.triplets[object.triplet];
            let values = &self.providers.users[self.rows[triplet.row].user].config;
            Grant {
                triplet: triplet.name.clone(),
                body: json!({"refresh_token": object.refresh_token, "values": values}),
            }
        };
        self.gateway.objects.iter().map(grant).collect()
    }
}
