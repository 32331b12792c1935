//! Auth configs (composio.md §2) and toolkits (§6).

use serde_json::{Map, Value, json};

use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::world::World;

use super::AuthConfig;
use super::http::{Outcome, Refused, page};

const SCHEMES: [&str; 15] = [
    "OAUTH2",
    "OAUTH1",
    "API_KEY",
    "BASIC",
    "BILLCOM_AUTH",
    "BEARER_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT",
    "NO_AUTH",
    "BASIC_WITH_JWT",
    "CALCOM_AUTH",
    "SERVICE_ACCOUNT",
    "SAML",
    "DCR_OAUTH",
    "CIMD_OAUTH",
    "S2S_OAUTH2",
];

fn bad(message: impl Into<String>) -> Refused {
    Refused::new(400, "HTTP_BadRequest", message)
}

fn no_config() -> Refused {
    Refused::new(404, "AuthConfig_NotFound", "Auth config not found")
}

/// `"a b"`, `"a,b"` or `["a","b"]`.
fn scope_list(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => text.split([' ', ',']).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

impl World {
    pub(super) fn composio_create_config(&mut self, call: &Call) -> Outcome {
        let body = call.json().unwrap_or(Value::Null);
        let toolkit = body["toolkit"]["slug"].as_str().unwrap_or_default().to_ascii_lowercase();
        let Some(offers_own_app) = self.composio.toolkits.get(&toolkit).copied() else {
            return Err(Refused::new(404, "Toolkit_NotFound", format!("Toolkit {toolkit} not found")));
        };
        let wanted = &body["auth_config"];
        let managed = match wanted["type"].as_str() {
            None | Some("use_composio_managed_auth") => true,
            Some("use_custom_auth") => false,
            Some(_) => return Err(bad("auth_config.type is not valid")),
        };
        let scheme = wanted["authScheme"].as_str().unwrap_or("OAUTH2").to_owned();
        if !SCHEMES.contains(&scheme.as_str()) {
            return Err(bad("auth_config.authScheme is not valid"));
        }
        let credentials = wanted["credentials"].as_object().cloned().unwrap_or_default();
        if managed && !offers_own_app {
            return Err(bad(format!("Toolkit {toolkit} has no Composio-managed OAuth app, use use_custom_auth")));
        }
        if !managed && scheme == "OAUTH2" {
            for field in ["client_id", "client_secret"] {
                if !credentials.get(field).is_some_and(Value::is_string) {
                    return Err(bad(format!("auth_config.credentials.{field} is required")));
                }
            }
        }
        let now = self.now();
        let name = wanted["name"].as_str().map_or_else(|| format!("{toolkit} {scheme}"), str::to_owned);
        let same = self.composio.configs.iter().filter(|c| c.toolkit == toolkit && c.name == name).count();
        let id = format!("ac_{}", draw::text(self.seed(), &["ac", &toolkit, &name, &scheme], same as u64, 12));
        let scopes = scope_list(credentials.get("scopes").unwrap_or(&Value::Null));
        let shown = json!({
            "toolkit": {"slug": toolkit},
            "auth_config": {"id": id, "auth_scheme": scheme, "is_composio_managed": managed, "restrict_to_following_tools": []},
        });
        self.composio.configs.push(AuthConfig {
            id,
            name,
            toolkit,
            scheme,
            managed,
            enabled: true,
            deleted: false,
            credentials,
            scopes,
            created_at: now,
            updated_at: now,
        });
        Ok(Reply::json(201, &shown))
    }

    pub(super) fn composio_list_configs(&mut self, call: &Call) -> Outcome {
        let toolkits = call.list("toolkit_slug");
        let managed = call.param("is_composio_managed").map(|v| v == "true");
        let disabled = call.param("show_disabled") == Some("true");
        let mut found: Vec<usize> = (0..self.composio.configs.len())
            .filter(|place| {
                let c = &self.composio.configs[*place];
                !c.deleted
                    && (disabled || c.enabled)
                    && (toolkits.is_empty() || toolkits.contains(&c.toolkit.as_str()))
                    && managed.is_none_or(|m| c.managed == m)
                    && call.param("search").is_none_or(|s| c.name.contains(s) || c.id.contains(s))
            })
            .collect();
        // Newest first; the id breaks ties so that the order of requests at one instant is invisible.
        found.sort_by(|a, b| {
            let (a, b) = (&self.composio.configs[*a], &self.composio.configs[*b]);
            b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id))
        });
        page(call, found.into_iter().map(|place| self.composio_show_config(place)).collect(), 20, 200)
    }

    pub(super) fn composio_get_config(&mut self, id: &str) -> Outcome {
        let place = self.composio.find_config(id).ok_or_else(no_config)?;
        Ok(Reply::json(200, &self.composio_show_config(place)))
    }

    fn composio_show_config(&self, place: usize) -> Value {
        let c = &self.composio.configs[place];
        // §2: managed: all redacted; custom: only public ids are readable.
        let credentials: Map<String, Value> = c
            .credentials
            .iter()
            .map(|(name, value)| {
                let public = matches!(name.as_str(), "client_id" | "consumer_key" | "scopes" | "oauth_redirect_uri");
                (name.clone(), if public && !c.managed { value.clone() } else { "REDACTED".into() })
            })
            .collect();
        let accounts = self.composio.accounts.iter().filter(|a| a.config == place && !a.deleted).count();
        json!({
            "id": c.id,
            "uuid": draw::uuid(self.seed(), &["ac-uuid", &c.id], 0),
            "type": if c.managed { "default" } else { "custom" },
            "toolkit": {"slug": c.toolkit, "logo": format!("https://logos.composio.example/{}.svg", c.toolkit)},
            "name": c.name,
            "auth_scheme": c.scheme,
            "is_composio_managed": c.managed,
            "credentials": credentials,
            "status": if c.enabled { "ENABLED" } else { "DISABLED" },
            "created_at": c.created_at.to_rfc3339(),
            "last_updated_at": c.updated_at.to_rfc3339(),
            "no_of_connections": accounts,
            "expected_input_fields": [],
            "tool_access_config": {"tools_for_connected_account_creation": [], "tools_available_for_execution": []},
            "is_enabled_for_tool_router": true,
        })
    }

    pub(super) fn composio_patch_config(&mut self, call: &Call, id: &str) -> Outcome {
        let place = self.composio.find_config(id).ok_or_else(no_config)?;
        let body = call.json().unwrap_or(Value::Null);
        let now = self.now();
        let config = &mut self.composio.configs[place];
        match body["type"].as_str() {
            Some("custom") if !config.managed => {
                for (name, value) in body["credentials"].as_object().into_iter().flatten() {
                    // Omitted is kept; empty is cleared.
                    if *value == json!("") || *value == json!([]) {
                        config.credentials.remove(name);
                    } else {
                        config.credentials.insert(name.clone(), value.clone());
                    }
                }
                if let Some(scopes) = body["credentials"].get("scopes") {
                    config.scopes = scope_list(scopes);
                }
            }
            Some("default") if config.managed => {
                if let Some(scopes) = body.get("scopes") {
                    config.scopes = scope_list(scopes);
                }
            }
            _ => return Err(bad("type must match the auth config: custom or default")),
        }
        if let Some(name) = body["name"].as_str() {
            config.name = name.to_owned();
        }
        config.updated_at = now;
        Ok(Reply::json(200, &json!({"success": true, "message": "Auth config updated"})))
    }

    pub(super) fn composio_enable_config(&mut self, id: &str, enabled: bool) -> Outcome {
        let place = self.composio.find_config(id).ok_or_else(no_config)?;
        for account in 0..self.composio.accounts.len() {
            if self.composio.accounts[account].config == place {
                self.settle_account(account);
            }
        }
        self.composio.configs[place].enabled = enabled;
        self.composio.configs[place].updated_at = self.now();
        Ok(Reply::json(200, &json!({"success": true, "message": "Auth config status updated"})))
    }

    pub(super) fn composio_delete_config(&mut self, call: &Call, id: &str) -> Outcome {
        let place = self.composio.find_config(id).ok_or_else(no_config)?;
        self.composio_enable_config(id, false)?;
        self.composio.configs[place].deleted = true;
        let mut shown = json!({"success": true, "message": "Auth config deleted"});
        if call.param("revoke_on_delete") == Some("true") {
            for account in 0..self.composio.accounts.len() {
                if self.composio.accounts[account].config == place {
                    self.composio_revoke_upstream(account);
                }
            }
            shown["revoke_job_id"] = format!("pj_{}", draw::text(self.seed(), &["revoke", id], 0, 12)).into();
        }
        Ok(Reply::json(200, &shown))
    }

    pub(super) fn composio_list_toolkits(&mut self, call: &Call) -> Outcome {
        if call.param("search").is_some_and(|s| s.chars().count() < 3) {
            return Err(bad("search needs at least 3 characters"));
        }
        let search = call.param("search").unwrap_or_default();
        let slugs: Vec<String> = self.composio.toolkits.keys().filter(|s| s.contains(search)).cloned().collect();
        page(call, slugs.iter().map(|s| self.composio_show_toolkit(s)).collect(), 20, 1_000)
    }

    pub(super) fn composio_get_toolkit(&mut self, slug: &str) -> Outcome {
        if !self.composio.toolkits.contains_key(slug) {
            return Err(Refused::new(404, "Toolkit_NotFound", format!("Toolkit {slug} not found")));
        }
        let mut shown = self.composio_show_toolkit(slug);
        let whoami = self
            .providers
            .integrations
            .iter()
            .find(|(_, i)| i.provider.values().any(|p| p.toolkit.as_deref() == Some(slug)))
            .map(|(_, i)| &i.whoami);
        let field = |name: &str| json!({"name": name, "displayName": name, "type": "string", "description": name, "required": true});
        if let Some(item) = shown.as_object_mut() {
            // Only items of the list say which schemes there are in one word.
            item.remove("auth_schemes");
            item.remove("no_auth");
        }
        let managed = self.composio.toolkits.get(slug) == Some(&true);
        let scopes = self.composio_toolkit_scopes(slug);
        let offered = json!({"mode": "OAUTH2", "scopes": {"available": scopes}});
        shown["composio_managed_auth"] = if managed { json!([offered]) } else { json!([]) };
        shown["deprecated"]["rawProxyInfoByAuthSchemes"] = json!([]);
        shown["meta"]["available_versions"] = json!(["20260901_00"]);
        shown["enabled"] = true.into();
        shown["auth_config_details"] = json!([{
            "mode": "OAUTH2", "name": "OAuth2",
            "fields": {
                "auth_config_creation": {"required": [field("client_id"), field("client_secret")], "optional": []},
                "connected_account_initiation": {"required": [], "optional": []},
            },
        }]);
        if let Some(whoami) = whoami {
            shown["get_current_user_endpoint"] = whoami.url.as_str().into();
            shown["get_current_user_endpoint_method"] = whoami.method.as_str().into();
        }
        Ok(Reply::json(200, &shown))
    }

    /// Every scope that the catalogue asks for with this toolkit.
    fn composio_toolkit_scopes(&self, slug: &str) -> Vec<String> {
        let all = self.providers.integrations.iter().flat_map(|(_, i)| i.provider.values());
        let scopes: std::collections::BTreeSet<String> =
            all.filter(|p| p.toolkit.as_deref() == Some(slug)).flat_map(|p| p.scopes.iter().cloned()).collect();
        scopes.into_iter().collect()
    }

    fn composio_show_toolkit(&self, slug: &str) -> Value {
        let managed: Vec<&str> = if self.composio.toolkits.get(slug) == Some(&true) { vec!["OAUTH2"] } else { vec![] };
        json!({
            "slug": slug, "name": slug, "type": "native", "auth_schemes": ["OAUTH2"],
            "composio_managed_auth_schemes": managed, "no_auth": false, "is_local_toolkit": false,
            "deprecated": {"toolkitId": draw::uuid(self.seed(), &["toolkit", slug], 0)},
            "meta": {"created_at": "2025-06-01T00:00:00.000Z", "updated_at": "2026-09-01T00:00:00.000Z",
                     "description": slug, "logo": format!("https://logos.composio.example/{slug}.svg"),
                     "categories": [], "triggers_count": 0, "tools_count": 20, "version": "20260901_00"},
        })
    }
}
