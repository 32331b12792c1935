//! Nango's routes. Checks run in the order auth, rate limit, scope, validation (nango.md §1.3).

use serde_json::{Map, Value, json};

use crate::domain::time::Timestamp;
use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::world::World;

use super::views::{View, end_user, show_integration};
use super::{Connection, Credential, NangoIntegration};

/// Rows of a list without `limit` (§2.1).
const LIST_DEFAULT: usize = 10_000;

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    /// `environment:*`
    Full,
    /// `connections:list` and `connections:read`.
    Verify,
}

impl Key {
    fn has(self, scope: &str) -> bool {
        match self {
            Self::Full => true,
            Self::Verify => matches!(scope, "connections:list" | "connections:read"),
        }
    }
}

fn error(status: u16, code: &str) -> Reply {
    Reply::json(status, &json!({"error": {"code": code}}))
}

pub(super) fn error_with(status: u16, code: &str, message: &str) -> Reply {
    Reply::json(status, &json!({"error": {"code": code, "message": message}}))
}

/// One validation failure.
pub(super) fn invalid(what: &str, code: &str, message: &str, path: &[&str]) -> Reply {
    Reply::json(400, &json!({"error": {"code": what, "errors": [{"code": code, "message": message, "path": path}]}}))
}

impl World {
    /// Answers a request to Nango.
    pub(in crate::sandbox) fn nango_http(&mut self, call: &Call) -> Reply {
        if self.faults.outage_at(self.now()) {
            return Reply::html(503, "<html><head><title>503 Service Temporarily Unavailable</title></head></html>");
        }
        let route = call.route();
        let get = call.method == "GET";
        match route.as_slice() {
            ["health"] if get => return Reply::json(200, &json!({"result": "ok"})),
            ["ready"] if get => return Reply::json(200, &json!({"result": "ready"})),
            ["connect", "session"] => return self.nango_own_session(call),
            [first, ..] if get && !is_api_root(first) => return self.nango_unknown_route(call),
            _ => {}
        }
        if let Some(kind) = call.header("content-type").filter(|_| !call.body.is_empty())
            && !kind.starts_with("application/json")
        {
            return error_with(415, "invalid_content_type", "Content-Type header must be application/json");
        }
        if !call.body.is_empty() && call.json().is_none() {
            return error_with(400, "invalid_json", "Invalid JSON");
        }
        let key = match self.nango_authenticate(call) {
            Ok(key) => key,
            Err(reply) => return reply,
        };
        let limit = self.options().nango_per_minute;
        let now = self.now();
        let (used, reset) = self.nango.spend(now);
        let shown_limit = limit.unwrap_or(1_000_000);
        let reply = if used > shown_limit {
            let body = json!({"error": {"code": "too_many_request", "method": call.method, "path": call.path}});
            Reply::json(429, &body).with_header("retry-after", (reset - now.secs()).max(0))
        } else {
            self.nango_route(key, call, &route)
        };
        reply
            .with_header("x-ratelimit-limit", shown_limit)
            .with_header("x-ratelimit-remaining", shown_limit.saturating_sub(used))
            .with_header("x-ratelimit-reset", reset)
    }

    /// Recorded at 0.71.4: an unknown GET path is a 500 in JSON where no dashboard is served.
    fn nango_unknown_route(&self, call: &Call) -> Reply {
        if call.header("accept").is_some_and(|a| a.contains("text/html")) {
            return Reply::html(200, "<!doctype html><html><head><title>Nango</title></head><body></body></html>");
        }
        let id = draw::uuid(self.seed(), &["incident"], self.request_number());
        let message = format!("An error occurred. Please contact support with this unique id: \"{id}\"");
        Reply::json(500, &json!({"error": {"message": message, "code": "generic_error_support", "payload": id}}))
    }

    fn nango_authenticate(&self, call: &Call) -> Result<Key, Reply> {
        let refuse = |code: &str, message: &str| {
            let message = format!("Authentication failed. {message}");
            Err(Reply::json(401, &json!({"error": {"message": message, "code": code, "payload": {}}})))
        };
        let Some(header) = call.header("authorization") else {
            return refuse("missing_auth_header", "The request is missing the Authorization header.");
        };
        // The server takes whatever follows the last `Bearer `, so a bare key passes too.
        let key = header.rsplit("Bearer ").next().unwrap_or_default().trim();
        if key.is_empty() {
            return refuse("malformed_auth_header", "The Authorization header is malformed.");
        }
        if !is_uuid(key) {
            return refuse("invalid_secret_key_format", "The provided secret key is not a UUID v4.");
        }
        let keys = self.keys_ref();
        if key == keys.nango_api_key {
            Ok(Key::Full)
        } else if key == keys.nango_verify_key {
            Ok(Key::Verify)
        } else {
            refuse("unknown_account", "The provided authorization header does not match any account.")
        }
    }

    fn nango_route(&mut self, key: Key, call: &Call, route: &[&str]) -> Reply {
        let needs = |scope: &str| {
            (!key.has(scope))
                .then(|| error_with(403, "forbidden", &format!("Insufficient scope. Required: environment:{scope}")))
        };
        let either = |a: &str, b: &str| {
            let message = format!("Insufficient scope. Required one of: environment:{a} or environment:{b}");
            (!key.has(a) && !key.has(b)).then(|| error_with(403, "forbidden", &message))
        };
        let refused = match (call.method.as_str(), route) {
            ("GET", ["connections" | "connection"]) => either("connections:list", "connections:list_credentials"),
            ("GET", ["connections" | "connection", _]) => either("connections:read", "connections:read_credentials"),
            ("POST", ["connections" | "connection"]) => needs("connections:create"),
            ("POST" | "PATCH", ["connections" | "connection", "metadata"]) => needs("connections:update"),
            ("PATCH", ["connections" | "connection", _]) => needs("connections:update"),
            ("DELETE", ["connections" | "connection", _]) => needs("connections:delete"),
            ("GET", ["integrations"]) => either("integrations:list", "integrations:list_credentials"),
            ("GET", ["integrations", _]) => either("integrations:read", "integrations:read_credentials"),
            ("POST", ["integrations"]) => needs("integrations:create"),
            ("DELETE", ["integrations", _]) => needs("integrations:delete"),
            ("POST", ["connect", "sessions"] | ["connect", "sessions", "reconnect"]) => needs("connect_sessions:write"),
            ("POST", ["environment", "webhook-signing-key", "rotate"]) => needs("webhook_signing_key:rotate"),
            _ => None,
        };
        if let Some(reply) = refused {
            return reply;
        }
        match (call.method.as_str(), route) {
            ("GET", ["connections" | "connection"]) => self.nango_list(call),
            ("GET", ["connections" | "connection", id]) => self.nango_get(key, call, id),
            ("POST", ["connections" | "connection"]) => self.nango_import(call),
            ("POST", ["connections" | "connection", "metadata"]) => self.nango_metadata(call, false),
            ("PATCH", ["connections" | "connection", "metadata"]) => self.nango_metadata(call, true),
            ("PATCH", ["connections" | "connection", id]) => self.nango_patch(call, id),
            ("DELETE", ["connections" | "connection", id]) => self.nango_delete(call, id),
            ("GET", ["integrations"]) => {
                let newest_first = |a: &(&String, &NangoIntegration), b: &(&String, &NangoIntegration)| {
                    b.1.created_at.cmp(&a.1.created_at).then(a.0.cmp(b.0))
                };
                let mut all: Vec<_> = self.nango.integrations.iter().collect();
                all.sort_by(newest_first);
                let data: Vec<Value> = all.into_iter().map(|(k, i)| show_integration(k, i, false, false)).collect();
                Reply::json(200, &json!({"data": data}))
            }
            ("GET", ["integrations", unique_key]) => match self.nango.integrations.get(*unique_key) {
                Some(i) => {
                    let include = call.list("include");
                    let credentials = include.contains(&"credentials") && key.has("integrations:read_credentials");
                    let data = show_integration(unique_key, i, credentials, include.contains(&"webhook"));
                    Reply::json(200, &json!({"data": data}))
                }
                None => error_with(404, "not_found", "Integration does not exist"),
            },
            ("POST", ["integrations"]) => self.nango_create_integration(call),
            ("DELETE", ["integrations", unique_key]) => self.nango_delete_integration(unique_key),
            ("POST", ["connect", "sessions"]) => self.nango_session(call),
            ("POST", ["connect", "sessions", "reconnect"]) => self.nango_reconnect(call),
            ("POST", ["environment", "webhook-signing-key", "rotate"]) => {
                self.nango.signing_key = draw::uuid(self.seed(), &["key", "nango-webhook"], self.request_number());
                Reply::json(200, &json!({"data": {"webhook_signing_key": self.nango.signing_key}}))
            }
            _ => error_with(404, "not_found", "Not found"),
        }
    }

    fn nango_list(&mut self, call: &Call) -> Reply {
        let number = |name: &str, min: usize, max: usize| match call.param(name) {
            None => Ok(None),
            Some(text) => match text.parse::<usize>() {
                Ok(n) if n > max => {
                    let message = format!("Too big: expected number to be <={max}");
                    Err(invalid("invalid_query_params", "too_big", &message, &[name]))
                }
                Ok(n) if n >= min => Ok(Some(n)),
                Ok(_) => {
                    let message = format!("Too small: expected number to be >={min}");
                    Err(invalid("invalid_query_params", "too_small", &message, &[name]))
                }
                Err(_) => Err(invalid(
                    "invalid_query_params",
                    "invalid_type",
                    "Invalid input: expected number, received NaN",
                    &[name],
                )),
            },
        };
        let known = ["connectionId", "search", "endUserId", "endUserOrganizationId", "integrationId", "limit", "page"];
        if let Some((name, _)) =
            call.query.iter().find(|(n, _)| !known.contains(&n.as_str()) && !n.starts_with("tags["))
        {
            let message = format!("Unrecognized key: \"{name}\"");
            return invalid("invalid_query_params", "unrecognized_keys", &message, &[]);
        }
        let (limit, page) = match (number("limit", 1, 2_000), number("page", 0, usize::MAX / 10_000)) {
            (Ok(limit), Ok(page)) => (limit.unwrap_or(LIST_DEFAULT), page.unwrap_or(0)),
            (Err(reply), _) | (_, Err(reply)) => return reply,
        };
        let integrations = call.list("integrationId");
        let tags: Vec<(String, &str)> = call
            .query
            .iter()
            .filter_map(|(n, v)| Some((n.strip_prefix("tags[")?.strip_suffix(']')?.to_ascii_lowercase(), v.as_str())))
            .collect();
        let has_end_user = |c: &Connection, wanted: &str| {
            c.end_user["id"] == wanted || c.tags.get("end_user_id").is_some_and(|t| t == wanted)
        };
        let mut found: Vec<usize> = (0..self.nango.connections.len())
            .filter(|place| {
                let c = &self.nango.connections[*place];
                !c.deleted
                    && call.param("connectionId").is_none_or(|id| c.connection_id == id)
                    && call.param("search").is_none_or(|s| c.connection_id.contains(s) || has_end_user(c, s))
                    && call.param("endUserId").is_none_or(|id| has_end_user(c, id))
                    && call
                        .param("endUserOrganizationId")
                        .is_none_or(|id| c.tags.get("organization_id").is_some_and(|t| t == id))
                    && (integrations.is_empty() || integrations.contains(&c.integration_key.as_str()))
                    && tags.iter().all(|(name, value)| c.tags.get(name).is_some_and(|t| t == value))
            })
            .collect();
        found.sort_by_key(|place| {
            let c = &self.nango.connections[*place];
            (std::cmp::Reverse(c.created_at), std::cmp::Reverse(c.number))
        });
        let rows: Vec<Value> = found
            .into_iter()
            .skip(page.saturating_mul(limit))
            .take(limit)
            .map(|p| self.nango.show_in_list(p))
            .collect();
        Reply::json(200, &json!({"connections": rows}))
    }

    /// The integration and place of a connection named by path and query.
    fn nango_lookup(&self, call: &Call, id: &str, missing: fn() -> Reply) -> Result<usize, Reply> {
        let Some(key) = call.param("provider_config_key") else {
            let message = "Invalid input: expected string, received undefined";
            return Err(invalid("invalid_query_params", "invalid_type", message, &["provider_config_key"]));
        };
        if id.is_empty() || id.len() > 255 {
            return Err(invalid("invalid_uri_params", "invalid_string", "Invalid connection id", &["connectionId"]));
        }
        self.nango.find(key, id).ok_or_else(|| {
            if self.nango.integrations.contains_key(key) || call.method == "DELETE" {
                missing()
            } else {
                error_with(400, "unknown_provider_config", "Provider does not exists")
            }
        })
    }

    fn nango_get(&mut self, key: Key, call: &Call, id: &str) -> Reply {
        let known = ["provider_config_key", "force_refresh", "refresh_token", "refresh_github_app_jwt_token"];
        if let Some((name, _)) = call.query.iter().find(|(n, _)| !known.contains(&n.as_str())) {
            return invalid("invalid_query_params", "unrecognized_keys", &format!("Unrecognized key: \"{name}\""), &[]);
        }
        let mut flags = [false; 3];
        for (flag, name) in flags.iter_mut().zip(&known[1..]) {
            *flag = match call.param(name) {
                None | Some("false" | "0" | "no" | "off") => false,
                Some("true" | "1" | "yes" | "on") => true,
                Some(_) => {
                    return invalid(
                        "invalid_query_params",
                        "invalid_value",
                        "Invalid input: expected boolean",
                        &[name],
                    );
                }
            };
        }
        let [force, with_refresh_token, _] = flags;
        let reads_credentials = key.has("connections:read_credentials");
        if !reads_credentials && flags.contains(&true) {
            let message = "Credential and refresh options require the environment:connections:read_credentials scope";
            return error_with(403, "forbidden", message);
        }
        let place = match self.nango_lookup(call, id, || error_with(404, "not_found", "Failed to find connection")) {
            Ok(place) => place,
            Err(reply) => return reply,
        };
        if !reads_credentials {
            return Reply::json(200, &self.nango.show(place, View::Bare));
        }
        self.ledger.counts.refreshing_reads += 1;
        let now = self.now();
        if let Err(failure) = self.nango_ensure_fresh(place, force) {
            let connection = self.nango.show(place, View::Bare);
            let body = json!({"error": {"code": "invalid_credentials", "message": failure.message,
                                        "payload": {"connection": connection}}});
            if failure.attempted {
                // The answer still shows the row as it was before the attempt.
                let c = &mut self.nango.connections[place];
                c.updated_at = now;
                c.last_fetched_at = now;
            }
            return Reply::json(failure.status, &body);
        }
        self.nango.connections[place].last_fetched_at = now;
        if let (Some(row), Some(token)) = (self.nango.connections[place].row, self.nango_token(place)) {
            self.ledger_handed_out(row, token);
        }
        Reply::json(200, &self.nango.show(place, View::Get { with_refresh_token }))
    }

    fn nango_import(&mut self, call: &Call) -> Reply {
        let Some(Value::Object(body)) = call.json() else {
            return invalid("invalid_body", "invalid_type", "Invalid input: expected object", &[]);
        };
        let known = [
            "provider_config_key",
            "connection_id",
            "credentials",
            "metadata",
            "connection_config",
            "webhook_url_override",
            "tags",
            "end_user",
        ];
        if let Some(name) = body.keys().find(|k| !known.contains(&k.as_str())) {
            return invalid("invalid_body", "unrecognized_keys", &format!("Unrecognized key: \"{name}\""), &[]);
        }
        let Some(key) = body.get("provider_config_key").and_then(Value::as_str) else {
            let message = "Invalid input: expected string, received undefined";
            return invalid("invalid_body", "invalid_type", message, &["provider_config_key"]);
        };
        let Some(integration) = self.nango.integrations.get(key) else {
            return error_with(404, "not_found", "Integration does not exist");
        };
        let credential = match read_credential(body.get("credentials"), &integration.auth_mode) {
            Ok(credential) => credential,
            Err(reply) => return reply,
        };
        let now = self.now();
        let id = match body.get("connection_id").and_then(Value::as_str) {
            Some(id) => id.to_owned(),
            None => draw::uuid(self.seed(), &["connection", key], self.nango.connections.len() as u64),
        };
        let end = body.get("end_user").filter(|v| v.is_object());
        let mut tags = body.get("tags").and_then(Value::as_object).cloned().unwrap_or_default();
        let text = |name: &str| end.and_then(|e| e[name].as_str());
        for (tag, field) in
            [("end_user_id", "id"), ("end_user_email", "email"), ("end_user_display_name", "display_name")]
        {
            if let Some(value) = text(field) {
                tags.insert(tag.into(), value.into());
            }
        }
        let shown_end_user =
            text("id").map_or(Value::Null, |id| end_user(id, text("email"), text("display_name"), None));
        let object = |name: &str| body.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
        let existing = self.nango.find(key, &id);
        let mut fresh = Connection::blank(key, &id, credential, now);
        fresh.tags = tags;
        fresh.metadata = Value::Object(object("metadata"));
        fresh.connection_config = object("connection_config");
        fresh.webhook_url_override = body.get("webhook_url_override").and_then(Value::as_str).map(str::to_owned);
        fresh.end_user = shown_end_user.clone();
        let place = match existing {
            Some(place) => {
                // Everything is replaced, except that a later GET still shows the old end user.
                let old = &self.nango.connections[place];
                fresh.number = old.number;
                fresh.created_at = old.created_at;
                fresh.row = old.row;
                if fresh.end_user.is_null() {
                    fresh.end_user = old.end_user.clone();
                }
                self.nango.connections[place] = fresh;
                place
            }
            None => self.nango.insert(fresh),
        };
        self.nango_send_auth(place, if existing.is_some() { "override" } else { "creation" }, None);
        let mut shown = self.nango.show(place, View::Post);
        shown["end_user"] = shown_end_user;
        Reply::json(201, &shown)
    }

    fn nango_patch(&mut self, call: &Call, id: &str) -> Reply {
        let place = match self.nango_lookup(call, id, || error_with(404, "not_found", "Failed to find connection")) {
            Ok(place) => place,
            Err(reply) => return reply,
        };
        let Some(Value::Object(body)) = call.json() else {
            return invalid("invalid_body", "invalid_type", "Invalid input: expected object", &[]);
        };
        if let Some(name) = body.keys().find(|k| !["end_user", "tags", "webhook_url_override"].contains(&k.as_str())) {
            return invalid("invalid_body", "unrecognized_keys", &format!("Unrecognized key: \"{name}\""), &[]);
        }
        let connection = &mut self.nango.connections[place];
        if let Some(Value::Object(tags)) = body.get("tags") {
            connection.tags = tags.iter().map(|(k, v)| (k.to_ascii_lowercase(), v.clone())).collect();
        }
        if let Some(url) = body.get("webhook_url_override").and_then(Value::as_str) {
            connection.webhook_url_override = (!url.is_empty()).then(|| url.to_owned());
        }
        if let Some(end) = body.get("end_user").filter(|v| v.is_object()) {
            connection.end_user = end_user(
                end["id"].as_str().unwrap_or_default(),
                end["email"].as_str(),
                end["display_name"].as_str(),
                None,
            );
        }
        Reply::json(200, &json!({"success": true}))
    }

    fn nango_delete(&mut self, call: &Call, id: &str) -> Reply {
        let place = match self.nango_lookup(call, id, || error(400, "unknown_connection")) {
            Ok(place) => place,
            Err(reply) => return reply,
        };
        // §8: the deletion hook revokes the refresh token at HubSpot unless metadata says not to.
        let connection = &self.nango.connections[place];
        let spared = connection.metadata["skipTokenRevocation"] == true;
        if connection.integration_key == "hubspot"
            && !spared
            && let Credential::Oauth2 { refresh_token: Some(token), .. } = &connection.credential
            && let Some(grant) = self.providers.grant_of_refresh(token)
        {
            self.revoke_grant(grant);
        }
        if self.options().nango_deletion_webhooks {
            self.nango_send_auth(place, "deletion", None);
        }
        self.nango.delete(place);
        Reply::json(200, &json!({"success": true}))
    }

    fn nango_metadata(&mut self, call: &Call, merge: bool) -> Reply {
        let Some(body) = call.json().filter(Value::is_object) else {
            return invalid("invalid_body", "invalid_type", "Invalid input: expected object", &[]);
        };
        let ids: Vec<&str> = match &body["connection_id"] {
            Value::String(id) => vec![id.as_str()],
            Value::Array(ids) => ids.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let (Some(key), Some(metadata)) = (body["provider_config_key"].as_str(), body["metadata"].as_object()) else {
            return invalid("invalid_body", "invalid_type", "Invalid input", &["metadata"]);
        };
        if ids.is_empty() {
            return invalid("invalid_body", "invalid_type", "Invalid input", &["connection_id"]);
        }
        let Some(places) = ids.iter().map(|id| self.nango.find(key, id)).collect::<Option<Vec<_>>>() else {
            return error(404, "unknown_connection");
        };
        for place in places {
            let mut next = match &self.nango.connections[place].metadata {
                Value::Object(old) if merge => old.clone(),
                _ => Map::new(),
            };
            next.extend(metadata.clone());
            self.nango.connections[place].metadata = Value::Object(next);
        }
        Reply::json(if merge { 200 } else { 201 }, &body)
    }
}

fn is_api_root(segment: &str) -> bool {
    matches!(segment, "connections" | "connection" | "integrations" | "connect" | "environment")
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

/// The submitted credential of an import (§2.3).
fn read_credential(value: Option<&Value>, auth_mode: &str) -> Result<Credential, Reply> {
    let Some(Value::Object(fields)) = value else {
        return Err(invalid("invalid_body", "invalid_type", "Invalid input: expected object", &["credentials"]));
    };
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind != auth_mode {
        return Err(error_with(400, "invalid_body", "The credentials type does not match the provider's auth mode"));
    }
    if kind != "OAUTH2" {
        return Ok(Credential::Static(fields.clone()));
    }
    let known = ["type", "access_token", "refresh_token", "expires_at", "config_override"];
    if let Some(name) = fields.keys().find(|k| !known.contains(&k.as_str())) {
        let message = format!("Unrecognized key: \"{name}\"");
        return Err(invalid("invalid_body", "unrecognized_keys", &message, &["credentials"]));
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let Some(access_token) = text("access_token").filter(|t| t.len() <= 16_384) else {
        let message = "Invalid input: expected string, received undefined";
        return Err(invalid("invalid_body", "invalid_type", message, &["credentials", "access_token"]));
    };
    // Coerced like a JavaScript date: numbers are milliseconds, null is 1970.
    let expires_at = match fields.get("expires_at") {
        None => None,
        Some(Value::Null) => Some(Timestamp::from_millis(0)),
        Some(Value::Number(n)) => n.as_i64().map(Timestamp::from_millis),
        Some(Value::String(text)) => match Timestamp::parse(text) {
            Ok(at) => Some(at),
            Err(_) => {
                let message = "Invalid input: expected date, received Date";
                return Err(invalid("invalid_body", "invalid_type", message, &["credentials", "expires_at"]));
            }
        },
        Some(_) => {
            return Err(invalid(
                "invalid_body",
                "invalid_type",
                "Invalid input: expected date",
                &["credentials", "expires_at"],
            ));
        }
    };
    let mut raw = fields.clone();
    if let Some(at) = expires_at {
        raw.insert("expires_at".into(), at.to_rfc3339().into());
    }
    let refresh_token = text("refresh_token");
    Ok(Credential::Oauth2 { access_token, refresh_token, expires_at, introspected_expiry: None, raw })
}
