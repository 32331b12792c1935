//! Nango's integrations and Connect sessions (nango.md §3, §4).

use serde_json::{Value, json};

use crate::domain::time::MINUTE_MS;
use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::world::World;

use super::http::{error_with, invalid};
use super::views::show_integration;
use super::{NangoIntegration, Session, prune_sessions};

/// Life of a Connect session (§3).
const SESSION_LIFE_MS: i64 = 30 * MINUTE_MS;

impl World {
    pub(super) fn nango_create_integration(&mut self, call: &Call) -> Reply {
        let body = call.json().unwrap_or(Value::Null);
        let provider = body["provider"].as_str().unwrap_or_default();
        let unique_key = body["unique_key"].as_str().unwrap_or_default();
        if self.nango.integrations.contains_key(unique_key) {
            return invalid("invalid_body", "invalid_string", "Unique key already exists", &["uniqueKey"]);
        }
        let mode = self.providers.find_integration(provider).map(|i| self.providers.integration(i).auth_mode.clone());
        let (Some(auth_mode), false) = (mode, unique_key.is_empty()) else {
            return invalid("invalid_body", "invalid_string", "Invalid provider", &["provider"]);
        };
        let text = |name: &str| body["credentials"][name].as_str().unwrap_or_default().to_owned();
        let integration = NangoIntegration {
            provider: provider.to_owned(),
            display_name: body["display_name"].as_str().unwrap_or(provider).to_owned(),
            created_at: self.now(),
            client_id: text("client_id"),
            client_secret: text("client_secret"),
            scopes: text("scopes"),
            auth_mode,
        };
        let shown = show_integration(unique_key, &integration, false, false);
        self.nango.integrations.insert(unique_key.to_owned(), integration);
        Reply::json(200, &json!({"data": shown}))
    }

    pub(super) fn nango_delete_integration(&mut self, unique_key: &str) -> Reply {
        if self.nango.integrations.remove(unique_key).is_none() {
            return error_with(404, "not_found", "Integration does not exist");
        }
        for place in 0..self.nango.connections.len() {
            if !self.nango.connections[place].deleted && self.nango.connections[place].integration_key == unique_key {
                self.nango.delete(place);
            }
        }
        Reply::json(200, &json!({"success": true}))
    }

    pub(super) fn nango_session(&mut self, call: &Call) -> Reply {
        let body = call.json().unwrap_or(Value::Null);
        if !body["tags"].is_object() && !body["end_user"].is_object() {
            let message = "Invalid input: expected object, received undefined";
            return invalid("invalid_body", "invalid_type", message, &["end_user"]);
        }
        let allowed: Vec<String> = body["allowed_integrations"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        if let Some(i) = allowed.iter().position(|key| !self.nango.integrations.contains_key(key)) {
            let place = i.to_string();
            return invalid("invalid_body", "custom", "Integration does not exist", &["allowed_integrations", &place]);
        }
        let end = body["end_user"].clone();
        self.nango_open_session(allowed, end)
    }

    pub(super) fn nango_reconnect(&mut self, call: &Call) -> Reply {
        let body = call.json().unwrap_or(Value::Null);
        let (id, key) =
            (body["connection_id"].as_str().unwrap_or_default(), body["integration_id"].as_str().unwrap_or_default());
        if self.nango.find(key, id).is_none() {
            return invalid("invalid_body", "custom", "Connection does not exist", &["connection_id"]);
        }
        self.nango_open_session(vec![key.to_owned()], body["end_user"].clone())
    }

    fn nango_open_session(&mut self, allowed: Vec<String>, end_user: Value) -> Reply {
        let now = self.now();
        prune_sessions(&mut self.nango.sessions, now);
        let expires_at = now.plus_ms(SESSION_LIFE_MS);
        let token =
            format!("nango_connect_session_{}", draw::hex(self.seed(), &["session"], self.request_number(), 64));
        let link = format!("https://connect.nango.example/?session_token={token}");
        let shown = json!({"data": {"token": token, "connect_link": link, "expires_at": expires_at.to_rfc3339()}});
        self.nango.sessions.insert(token, Session { allowed, end_user, expires_at });
        Reply::json(201, &shown)
    }

    /// `GET` and `DELETE /connect/session` authenticate with the session token itself.
    pub(super) fn nango_own_session(&mut self, call: &Call) -> Reply {
        let now = self.now();
        prune_sessions(&mut self.nango.sessions, now);
        let token = call.bearer().unwrap_or_default();
        let Some(session) = self.nango.sessions.get(token) else {
            return error_with(401, "unknown_connect_session_token", "The session token is unknown or has expired.");
        };
        if call.method == "DELETE" {
            self.nango.sessions.remove(token);
            return Reply::raw(204, "application/json", "");
        }
        let theme = json!({"light": {"primary": "#00B2E3"}, "dark": {"primary": "#00B2E3"}});
        let settings = json!({"showWatermark": true, "defaultTheme": "system", "theme": theme});
        let body = json!({"data": {"endUser": session.end_user, "connectUISettings": settings,
                                   "allowed_integrations": session.allowed, "websocketsPath": "/"}});
        Reply::json(200, &body)
    }
}
