//! Nango's routes. Checks run in the order auth, rate limit, scope, validation (nango.md §1.3).

use serde_json::{Value, json};

use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::world::World;

use super::views::{View, show_integration};
use super::webhooks::KEY_CACHE_MS;
use super::{Connection, NangoIntegration};

/// What the verifier's key may do: its reads never refresh.
const VERIFY_SCOPES: [&str; 2] = ["connections:list", "connections:read"];
/// Rows of a list without `limit` (§2.1).
const LIST_DEFAULT: usize = 10_000;

/// What a key may do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    /// `environment:*`
    Full,
    /// Scopes without `environment:`, such as `connections:list` or `connections:*`.
    Scoped(Vec<String>),
}

impl Key {
    fn has(&self, scope: &str) -> bool {
        let Self::Scoped(scopes) = self else { return true };
        let covers = |held: &String| match held.strip_suffix('*') {
            Some(prefix) => scope.starts_with(prefix),
            None => held == scope,
        };
        scopes.iter().any(covers)
    }
}

pub(super) fn error(status: u16, code: &str) -> Reply {
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
            [""] if get && call.param("session_token").is_some() => return self.nango_connect_page(call),
            ["oauth", "connect", key] if get => return self.nango_oauth_connect(call, key),
            ["oauth", "callback"] if get => return self.nango_oauth_callback(call),
            [first, ..] if get && !is_api_root(first) => return self.nango_unknown_route(),
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
            self.nango_route(&key, call, &route)
        };
        reply
            .with_header("x-ratelimit-limit", shown_limit)
            .with_header("x-ratelimit-remaining", shown_limit.saturating_sub(used))
            .with_header("x-ratelimit-reset", reset)
    }

    /// Recorded at 0.71.4: an unknown GET path is a 500 in JSON where no dashboard is served, and 200
    /// with its page where one is.
    fn nango_unknown_route(&self) -> Reply {
        if self.options().nango.dashboard {
            return Reply::html(200, "<!doctype html><html><head><title>Nango</title></head><body></body></html>");
        }
        self.nango_incident()
    }

    /// A failure of Nango's own: the id is all that it tells.
    pub(in crate::sandbox) fn nango_incident(&self) -> Reply {
        let id = draw::uuid(self.seed(), &["incident"], self.request_number());
        let message = format!("An error occurred. Please contact support with this unique id: \"{id}\"");
        Reply::json(500, &json!({"error": {"message": message, "code": "generic_error_support", "payload": id}}))
    }

    /// A further API key with these scopes, as the dashboard makes them.
    pub fn add_nango_key(&mut self, scopes: Vec<String>) -> String {
        let key = draw::uuid(self.seed(), &["key", "nango-scoped"], self.nango.scoped_keys.len() as u64);
        self.nango.scoped_keys.insert(key.clone(), scopes);
        key
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
            Ok(Key::Scoped(VERIFY_SCOPES.map(str::to_owned).to_vec()))
        } else if let Some(scopes) = self.nango.scoped_keys.get(key) {
            Ok(Key::Scoped(scopes.clone()))
        } else {
            refuse("unknown_account", "The provided authorization header does not match any account.")
        }
    }

    fn nango_route(&mut self, key: &Key, call: &Call, route: &[&str]) -> Reply {
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
            ("PATCH", ["integrations", _]) => needs("integrations:update"),
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
            ("POST", ["connections"]) => self.nango_import(call),
            ("POST", ["connection"]) => self.nango_import_flat(call),
            ("POST", ["connections" | "connection", "metadata"]) => self.nango_metadata(call, false),
            ("PATCH", ["connections" | "connection", "metadata"]) => self.nango_metadata(call, true),
            ("PATCH", ["connections" | "connection", id]) => self.nango_patch(call, id),
            ("DELETE", ["connections" | "connection", id]) => self.nango_delete(call, id),
            ("GET", ["integrations"]) => {
                // Recorded: by provider, then by age.
                let order = |i: &(&String, &NangoIntegration)| (i.1.provider.clone(), i.1.created_at, i.0.clone());
                let mut all: Vec<_> = self.nango.integrations.iter().collect();
                all.sort_by_key(order);
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
            ("PATCH", ["integrations", unique_key]) => self.nango_patch_integration(call, unique_key),
            ("DELETE", ["integrations", unique_key]) => self.nango_delete_integration(unique_key),
            ("POST", ["connect", "sessions"]) => self.nango_session(call),
            ("POST", ["connect", "sessions", "reconnect"]) => self.nango_reconnect(call),
            ("POST", ["environment", "webhook-signing-key", "rotate"]) => {
                let fresh = draw::uuid(self.seed(), &["key", "nango-webhook"], self.request_number());
                let old = std::mem::replace(&mut self.nango.signing_key, fresh);
                self.nango.old_signing_key = Some((old, self.now().plus_ms(KEY_CACHE_MS)));
                Reply::json(200, &json!({"data": {"webhook_signing_key": self.nango.signing_key}}))
            }
            _ => error_with(404, "not_found", "Not found"),
        }
    }

    fn nango_list(&mut self, call: &Call) -> Reply {
        let number = |name: &str, min: u32, max: u32| match call.param(name) {
            None => Ok(None),
            Some(text) => match text.parse::<i64>() {
                Ok(n) if n > i64::from(max) => {
                    let message = format!("Too big: expected number to be <={max}");
                    Err(invalid("invalid_query_params", "too_big", &message, &[name]))
                }
                Ok(n) if n >= i64::from(min) => Ok(usize::try_from(n).ok()),
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
        let (limit, page) = match (number("limit", 1, 2_000), number("page", 0, 1_000_000_000)) {
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
    pub(super) fn nango_lookup(&self, call: &Call, id: &str, missing: fn() -> Reply) -> Result<usize, Reply> {
        let Some(key) = call.param("provider_config_key") else {
            let message = "Invalid input: expected string, received undefined";
            return Err(invalid("invalid_query_params", "invalid_type", message, &["provider_config_key"]));
        };
        let readable = |c: char| c.is_ascii_alphanumeric() || ",.;:=+~[]|@${}\"'\\/_ -".contains(c);
        if id.is_empty() || id.len() > 255 || !id.chars().all(readable) {
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

    fn nango_get(&mut self, key: &Key, call: &Call, id: &str) -> Reply {
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
