//! Nango's integrations and Connect sessions (nango.md §3, §4).

use serde_json::{Map, Value, json};

use crate::domain::time::{MINUTE_MS, Timestamp};
use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::world::World;

use super::NangoIntegration;
use super::http::{error, error_with, invalid};
use super::input::{self, EndUser};
use super::views::show_integration;

/// Life of a Connect session (§3).
const SESSION_LIFE_MS: i64 = 30 * MINUTE_MS;

/// A Connect session: what a person may connect, and for whom.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Integration keys; empty: all.
    pub allowed: Vec<String>,
    pub end_user: Value,
    pub tags: Map<String, Value>,
    /// By integration key: scopes, authorization parameters, connection configuration.
    pub defaults: Map<String, Value>,
    pub webhook_url_override: Option<String>,
    /// The connection to renew: integration key and id.
    pub reconnect: Option<(String, String)>,
    pub expires_at: Timestamp,
}

impl World {
    pub(super) fn nango_create_integration(&mut self, call: &Call) -> Reply {
        self.nango_try_create_integration(call).unwrap_or_else(|refused| refused)
    }

    fn nango_try_create_integration(&mut self, call: &Call) -> Result<Reply, Reply> {
        let body = input::strict_body(
            call,
            &[
                "provider",
                "unique_key",
                "display_name",
                "credentials",
                "forward_webhooks",
                "integration_config",
                "custom",
            ],
        )?;
        let (provider, unique_key) = (input::required(&body, "provider")?, input::required(&body, "unique_key")?);
        let display_name = input::optional(&body, "display_name")?.unwrap_or(provider).to_owned();
        if self.nango.integrations.contains_key(unique_key) {
            return Err(invalid("invalid_body", "invalid_string", "Unique key already exists", &["uniqueKey"]));
        }
        let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '~' | ':' | '.' | '@' | ' ' | '_' | '-');
        if unique_key.is_empty() || unique_key.len() > 255 || !unique_key.chars().all(usable) {
            return Err(invalid("invalid_body", "invalid_format", "Invalid string", &["unique_key"]));
        }
        let Some(auth_mode) =
            self.providers.find_integration(provider).map(|i| self.providers.integration(i).auth_mode.clone())
        else {
            return Err(invalid("invalid_body", "invalid_string", "Invalid provider", &["provider"]));
        };
        let now = self.now();
        let mut integration = NangoIntegration {
            provider: provider.to_owned(),
            display_name,
            created_at: now,
            updated_at: now,
            forward_webhooks: body.get("forward_webhooks").and_then(Value::as_bool).unwrap_or(true),
            client_id: String::new(),
            client_secret: String::new(),
            scopes: String::new(),
            auth_mode,
        };
        set_app(&mut integration, input::optional_object(&body, "credentials")?.as_ref())?;
        let shown = show_integration(unique_key, &integration, false, false);
        self.nango.integrations.insert(unique_key.to_owned(), integration);
        Ok(Reply::json(200, &json!({"data": shown})))
    }

    pub(super) fn nango_patch_integration(&mut self, call: &Call, unique_key: &str) -> Reply {
        self.nango_try_patch_integration(call, unique_key).unwrap_or_else(|refused| refused)
    }

    fn nango_try_patch_integration(&mut self, call: &Call, unique_key: &str) -> Result<Reply, Reply> {
        let body = input::strict_body(
            call,
            &["unique_key", "display_name", "credentials", "forward_webhooks", "integration_config", "custom"],
        )?;
        let Some(mut integration) = self.nango.integrations.get(unique_key).cloned() else {
            return Err(error_with(404, "not_found", "Integration does not exist"));
        };
        let renamed = input::optional(&body, "unique_key")?.filter(|new| *new != unique_key);
        if let Some(new) = renamed {
            let in_use = self.nango.connections.iter().any(|c| !c.deleted && c.integration_key == unique_key);
            let message = if in_use {
                Some("Can't rename an integration with active connections")
            } else if self.nango.integrations.contains_key(new) {
                Some("Unique key already exists")
            } else {
                None
            };
            if let Some(message) = message {
                return Err(invalid("invalid_body", "invalid_string", message, &["uniqueKey"]));
            }
        }
        if let Some(name) = input::optional(&body, "display_name")? {
            integration.display_name = name.to_owned();
        }
        if let Some(forward) = body.get("forward_webhooks").and_then(Value::as_bool) {
            integration.forward_webhooks = forward;
        }
        set_app(&mut integration, input::optional_object(&body, "credentials")?.as_ref())?;
        integration.updated_at = self.now();
        let key = renamed.unwrap_or(unique_key);
        let shown = show_integration(key, &integration, false, false);
        self.nango.integrations.remove(unique_key);
        self.nango.integrations.insert(key.to_owned(), integration);
        Ok(Reply::json(200, &json!({"data": shown})))
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
        self.nango_try_session(call).unwrap_or_else(|refused| refused)
    }

    fn nango_try_session(&mut self, call: &Call) -> Result<Reply, Reply> {
        let body = input::strict_body(
            call,
            &[
                "tags",
                "end_user",
                "organization",
                "allowed_integrations",
                "integrations_config_defaults",
                "overrides",
                "webhook_url_override",
            ],
        )?;
        let (tags, end_user) = (input::tags(&body)?, input::end_user(&body)?);
        if tags.is_none() && end_user.is_none() {
            let message = "Invalid input: expected object, received undefined";
            return Err(invalid("invalid_body", "invalid_type", message, &["end_user"]));
        }
        let allowed: Vec<String> = body
            .get("allowed_integrations")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        if let Some(i) = allowed.iter().position(|key| !self.nango.integrations.contains_key(key)) {
            let path = ["allowed_integrations", &i.to_string()];
            return Err(invalid("invalid_body", "custom", "Integration does not exist", &path));
        }
        if self.nango_is_capped() {
            return Err(error(400, "resource_capped"));
        }
        self.nango_open_session(&body, allowed, tags, end_user, None)
    }

    pub(super) fn nango_reconnect(&mut self, call: &Call) -> Reply {
        self.nango_try_reconnect(call).unwrap_or_else(|refused| refused)
    }

    fn nango_try_reconnect(&mut self, call: &Call) -> Result<Reply, Reply> {
        let body = input::strict_body(
            call,
            &[
                "connection_id",
                "integration_id",
                "tags",
                "end_user",
                "organization",
                "integrations_config_defaults",
                "overrides",
                "webhook_url_override",
            ],
        )?;
        let (id, key) = (input::required(&body, "connection_id")?, input::required(&body, "integration_id")?);
        let (tags, end_user) = (input::tags(&body)?, input::end_user(&body)?);
        if self.nango.find(key, id).is_none() {
            return Err(invalid("invalid_body", "custom", "Connection does not exist", &["connection_id"]));
        }
        let renews = Some((key.to_owned(), id.to_owned()));
        self.nango_open_session(&body, vec![key.to_owned()], tags, end_user, renews)
    }

    fn nango_open_session(
        &mut self,
        body: &Map<String, Value>,
        allowed: Vec<String>,
        tags: Option<Map<String, Value>>,
        end_user: Option<EndUser>,
        reconnect: Option<(String, String)>,
    ) -> Result<Reply, Reply> {
        let webhook_url_override = input::webhook_url(body)?.filter(|url| !url.is_empty());
        let defaults = input::optional_object(body, "integrations_config_defaults")?.unwrap_or_default();
        let now = self.now();
        self.nango.sessions.retain(|_, s| s.expires_at >= now);
        let expires_at = now.plus_ms(SESSION_LIFE_MS);
        let token =
            format!("nango_connect_session_{}", draw::hex(self.seed(), &["session"], self.request_number(), 64));
        let page = self.address_of(|urls| &urls.nango, "https://connect.nango.example");
        let link = format!("{page}/?session_token={token}");
        let shown = json!({"data": {"token": token, "connect_link": link, "expires_at": expires_at.to_rfc3339()}});
        let EndUser { shown: end_user, tags: own_tags } = end_user.unwrap_or_default();
        let mut tags = tags.unwrap_or_default();
        tags.extend(own_tags);
        let session = Session { allowed, end_user, tags, defaults, webhook_url_override, reconnect, expires_at };
        self.nango.sessions.insert(token, session);
        Ok(Reply::json(201, &shown))
    }

    /// The live session of a token.
    pub(super) fn nango_find_session(&self, token: &str) -> Result<&Session, Reply> {
        let live = self.nango.sessions.get(token).filter(|s| s.expires_at >= self.now());
        live.ok_or_else(|| {
            error_with(401, "unknown_connect_session_token", "The session token is unknown or has expired.")
        })
    }

    /// `GET` and `DELETE /connect/session` authenticate with the session token itself.
    pub(super) fn nango_own_session(&mut self, call: &Call) -> Reply {
        let token = call.bearer().unwrap_or_default();
        let session = match self.nango_find_session(token) {
            Ok(session) => session,
            Err(refused) => return refused,
        };
        if call.method == "DELETE" {
            self.nango.sessions.remove(token);
            return Reply::raw(204, "application/json", "");
        }
        let theme = json!({"light": {"primary": "#00B2E3"}, "dark": {"primary": "#00B2E3"}});
        let settings = json!({"showWatermark": true, "defaultTheme": "system", "theme": theme});
        let mut shown = json!({"endUser": session.end_user, "connectUISettings": settings, "websocketsPath": "/"});
        if !session.allowed.is_empty() {
            shown["allowed_integrations"] = json!(session.allowed);
        }
        if session.reconnect.is_some() {
            shown["isReconnecting"] = true.into();
        }
        self.nango_session_limits(Reply::json(200, &json!({"data": shown})))
    }

    /// A session's calls are counted in a window of their own.
    pub(super) fn nango_session_limits(&self, reply: Reply) -> Reply {
        let (limit, now) = (self.options().nango_per_minute.unwrap_or(1_000_000), self.now());
        reply
            .with_header("x-ratelimit-limit", limit)
            .with_header("x-ratelimit-remaining", limit.saturating_sub(1))
            .with_header("x-ratelimit-reset", now.secs().div_euclid(60) * 60 + 60)
    }
}

/// Takes over the OAuth app that a body brings, field by field.
fn set_app(integration: &mut NangoIntegration, given: Option<&Map<String, Value>>) -> Result<(), Reply> {
    let Some(given) = given else { return Ok(()) };
    if given.get("type").is_some_and(|kind| *kind != integration.auth_mode.as_str()) {
        let message = "incompatible credentials auth type and provider auth";
        return Err(invalid("invalid_body", "invalid_string", message, &["credentials"]));
    }
    for (name, field) in [
        ("client_id", &mut integration.client_id),
        ("client_secret", &mut integration.client_secret),
        ("scopes", &mut integration.scopes),
    ] {
        if let Some(text) = input::optional(given, name)? {
            text.clone_into(field);
        }
    }
    Ok(())
}
