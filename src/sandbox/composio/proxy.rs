//! Calls through an account to its provider's API (composio.md §7).

use serde_json::{Map, Value, json};

use crate::sandbox::http::{Call, Reply};
use crate::sandbox::world::World;

use super::http::{Outcome, Refused};

fn bad(message: &str) -> Refused {
    Refused::new(400, "HTTP_BadRequest", message)
}

impl World {
    /// §7: HTTP 200 outside, the provider's own status inside.
    pub(super) fn composio_proxy(&mut self, call: &Call) -> Outcome {
        let body = call.json().unwrap_or(Value::Null);
        let unusable = |message: &str| Refused::new(404, "ActionExecute_ConnectedAccountNotFound", message);
        let Some(id) = body["connected_account_id"].as_str() else {
            return Err(Refused::new(400, "MissingAuthContext", "connected_account_id is required"));
        };
        let place = self.composio.find_account(id).ok_or_else(|| unusable("No connected account found"))?;
        let Some(token) = self.composio.served_token(id).map(str::to_owned) else {
            let status = self.composio.accounts[place].status.name();
            return Err(Refused::new(422, "ConnectedAccount_NotActive", format!("The account is {status}")));
        };
        let endpoint = body["endpoint"].as_str().unwrap_or_default();
        let method = body["method"].as_str().unwrap_or_default();
        if !["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"].contains(&method) || endpoint.is_empty() {
            return Err(bad("endpoint and method are required"));
        }
        let toolkit = &self.composio.configs[self.composio.accounts[place].config].toolkit;
        let facts = self
            .providers
            .integrations
            .iter()
            .find(|(_, i)| i.provider.values().any(|p| p.toolkit.as_deref() == Some(toolkit)))
            .map(|(_, i)| i.whoami.url.clone())
            .unwrap_or_default();
        let own_host = self.composio_base_host(&facts, &token);
        let url = if endpoint.starts_with('/') {
            format!("https://{own_host}{endpoint}")
        } else {
            let host = endpoint.strip_prefix("https://").and_then(|r| r.split(['/', '?']).next()).unwrap_or_default();
            if registrable(host) != registrable(&own_host) {
                return Err(Refused::new(
                    400,
                    "OriginMismatch",
                    "The endpoint is on another domain than the account's",
                ));
            }
            endpoint.to_owned()
        };
        let inner = self
            .call_provider_url(method, &url, &token)
            .ok_or_else(|| Refused::new(400, "ExternalProxy_SSRFBlocked", "Only https URLs can be called"))?;
        let headers: Map<String, Value> = inner.headers.iter().map(|(n, v)| (n.clone(), v.as_str().into())).collect();
        Ok(Reply::json(200, &json!({"data": inner.value(), "status": inner.status, "headers": headers})))
    }

    /// The host that an account's relative endpoints go to.
    fn composio_base_host(&self, whoami_url: &str, token: &str) -> String {
        if let Some(rest) = whoami_url.strip_prefix("https://") {
            return rest.split('/').next().unwrap_or_default().to_owned();
        }
        let user = self.providers.find(token).map(|t| self.providers.grants[t.grant].user);
        user.and_then(|u| self.providers.users[u].host()).unwrap_or_default().to_owned()
    }
}

/// The last two labels of a host.
fn registrable(host: &str) -> &str {
    let mut dots = host.rmatch_indices('.').skip(1);
    dots.next().map_or(host, |(i, _)| &host[i + 1..])
}
