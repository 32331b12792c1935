//! Composio's transport: credentials, prefixes, rate limit, envelope (composio.md §1).

use serde_json::{Value, json};

use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::provider::CANARY;
use crate::sandbox::world::World;

use super::settings::UnknownQuery;

/// A refusal in Composio's envelope.
pub(in crate::sandbox) struct Refused {
    pub status: u16,
    pub slug: &'static str,
    pub message: String,
}

impl Refused {
    /// Another writer is at this account: try again (§3.4).
    pub fn lease_held() -> Self {
        Self::new(409, "ConnectedAccount_WriteLeaseHeld", "Another write to this connected account is under way")
    }

    pub fn new(status: u16, slug: &'static str, message: impl Into<String>) -> Self {
        Self { status, slug, message: message.into() }
    }
}

pub(super) type Outcome = Result<Reply, Refused>;

impl World {
    /// Answers a request to Composio.
    pub(in crate::sandbox) fn composio_http(&mut self, call: &Call) -> Reply {
        let route = call.route();
        let rest = match route.as_slice() {
            ["api", "v3" | "v3.1", rest @ ..] => rest,
            ["api", "v1" | "v2", ..] => {
                return self.composio_refuse(&Refused::new(410, "HTTP_Gone", "This API version was removed"));
            }
            ["link", token] if call.method == "GET" => return self.composio_open_link(token),
            _ => return self.composio_refuse(&Refused::new(404, "HTTP_NotFound", "Route not found")),
        };
        let now = self.now();
        let limit = self.options().composio_per_minute.unwrap_or(1_000_000);
        let begin = now.secs().div_euclid(60) * 60;
        if self.composio.window.0 != begin {
            self.composio.window = (begin, 0);
        }
        let reply = match self.composio_authenticate(call) {
            Err(refused) => self.composio_refuse(&refused),
            Ok(key) => {
                self.composio.window.1 = self.composio.window.1.saturating_add(1);
                match self.composio_limited(call, limit) {
                    Some(reply) => reply,
                    None => match self.composio_route(&key, call, rest) {
                        Ok(reply) => reply,
                        Err(refused) => self.composio_refuse(&refused),
                    },
                }
            }
        };
        reply
            .with_header("x-ratelimit", limit)
            .with_header("x-ratelimit-remaining", limit.saturating_sub(self.composio.window.1))
            .with_header("x-ratelimit-window-size", "60s")
    }

    /// A further project key with these permissions, as the dashboard makes them: areas with
    /// `:read` or `:write`, such as `connected_accounts:write`, which includes reading.
    pub fn add_composio_key(&mut self, areas: Vec<String>) -> String {
        let number = self.composio.scoped_keys.len() as u64;
        let key = format!("ak_{CANARY}{}", draw::text(self.seed(), &["key", "composio-scoped"], number, 20));
        self.composio.scoped_keys.insert(key.clone(), areas);
        key
    }

    fn composio_authenticate(&self, call: &Call) -> Result<Key, Refused> {
        let refuse = |message: &str| Err(Refused::new(401, "HTTP_Unauthorized", message));
        let headers = ["x-api-key", "x-org-api-key", "x-user-api-key"];
        let mut present = headers.iter().filter_map(|name| Some((*name, call.header(name)?)));
        let (Some((name, key)), None) = (present.next(), present.next()) else {
            return refuse("Send exactly one credential header");
        };
        let keys = self.keys_ref();
        match name {
            "x-user-api-key" if key == keys.composio_user_key => Ok(Key::User),
            "x-api-key" if key == keys.composio_api_key => Ok(Key::Project),
            "x-api-key" if key.starts_with("uak_") => refuse("This is a user API key; send it as x-user-api-key"),
            "x-api-key" => match self.composio.scoped_keys.get(key) {
                Some(areas) => Ok(Key::Scoped(areas.clone())),
                None => refuse("Invalid API key"),
            },
            _ => refuse("Invalid API key"),
        }
    }

    /// The platform limiter: a bare 429, not in the envelope. Also the `composio-429` fault.
    fn composio_limited(&mut self, call: &Call, limit: u32) -> Option<Reply> {
        let now = self.now();
        let bare = Reply::json(429, &json!({"message": "Rate limit exceeded"}));
        if self.composio.window.1 > limit {
            return Some(bare.with_header("retry-after", 60 - now.secs().rem_euclid(60)));
        }
        let per_mille = self.faults.composio_429_per_mille;
        if per_mille == 0 || !self.faults.in_window(now) {
            return None;
        }
        // Keyed by the request and how often it came at this instant: the order of independent
        // requests does not matter, and a retry draws anew.
        let body = String::from_utf8_lossy(&call.body);
        let labels = ["composio-429", call.method.as_str(), call.path.as_str(), &body];
        let question = draw::draw(self.seed(), &labels, now.millis().unsigned_abs());
        if self.composio.seen_now.0 != now {
            self.composio.seen_now = (now, std::collections::HashMap::new());
        }
        let times = self.composio.seen_now.1.entry(question).or_default();
        *times += 1;
        let asked = question.wrapping_add(*times);
        if !draw::happens(self.seed(), &["limited"], asked, per_mille) {
            return None;
        }
        let with_header = draw::draw(self.seed(), &["retry-after"], asked).is_multiple_of(2);
        Some(if with_header { bare.with_header("retry-after", 2) } else { bare })
    }

    pub(in crate::sandbox) fn composio_refuse(&self, refused: &Refused) -> Reply {
        let id = draw::text(self.seed(), &["request"], self.request_number(), 12);
        let code = match refused.slug {
            "ActionExecute_ConnectedAccountNotFound" => 1803,
            _ => u32::from(refused.status) + 10_000,
        };
        let mut body = json!({"error": {
            "message": refused.message, "code": code, "slug": refused.slug, "status": refused.status,
            "request_id": format!("req_{id}"),
        }});
        if refused.status == 401 {
            body["error"]["suggested_fix"] = "Check the API key and send it in one header only".into();
        }
        Reply::json(refused.status, &body)
    }

    fn composio_route(&mut self, key: &Key, call: &Call, route: &[&str]) -> Outcome {
        if !call.body.is_empty() && call.json().is_none() {
            return Err(Refused::new(400, "HTTP_BadRequest", "The body is not JSON"));
        }
        let settings = &self.options().composio;
        let allowed = match (area(route), key) {
            (Area::SessionInfo, Key::Project) => settings.session_info_accepts_project_key,
            (Area::SessionInfo, Key::User) | (_, Key::Project) => true,
            (Area::Project, Key::Scoped(_)) => settings.config_route_for_scoped_key,
            (Area::Named(name), Key::Scoped(areas)) => {
                let held = |right: &str| areas.iter().any(|area| *area == format!("{name}:{right}"));
                held("write") || (call.method == "GET" && held("read"))
            }
            (Area::SessionInfo | Area::Unknown, Key::Scoped(_)) | (_, Key::User) => false,
        };
        if !allowed {
            // A user key that asks for a project's things has proven nothing about the project.
            let (status, slug) = if *key == Key::User { (401, "HTTP_Unauthorized") } else { (403, "HTTP_Forbidden") };
            return Err(Refused::new(status, slug, "This key may not do that"));
        }
        if settings.unknown_query == UnknownQuery::Reject
            && let Some((name, _)) = call.query.iter().find(|(name, _)| !KNOWN_QUERY.contains(&name.as_str()))
        {
            return Err(Refused::new(400, "HTTP_BadRequest", format!("Unknown query parameter {name}")));
        }
        match (call.method.as_str(), route) {
            ("GET", ["auth_configs"]) => self.composio_list_configs(call),
            ("POST", ["auth_configs"]) => self.composio_create_config(call),
            ("GET", ["auth_configs", id]) => self.composio_get_config(id),
            ("PATCH", ["auth_configs", id]) => self.composio_patch_config(call, id),
            ("PATCH", ["auth_configs", id, status @ ("ENABLED" | "DISABLED")]) => {
                self.composio_enable_config(id, *status == "ENABLED")
            }
            ("DELETE", ["auth_configs", id]) => self.composio_delete_config(call, id),
            ("GET", ["connected_accounts"]) => self.composio_list_accounts(call),
            ("POST", ["connected_accounts"]) => self.composio_create_account(call),
            ("POST", ["connected_accounts", "link"]) => self.composio_link(call),
            ("POST", ["connected_accounts", "complete_auth"]) => self.composio_complete_auth(call),
            ("GET", ["connected_accounts", id]) => self.composio_get_account(id),
            ("PATCH", ["connected_accounts", id]) => self.composio_patch_account(call, id),
            ("PATCH", ["connected_accounts", id, "status"]) => self.composio_account_status(call, id),
            ("POST", ["connected_accounts", id, "revoke"]) => self.composio_revoke_account(id),
            ("POST", ["connected_accounts", id, "refresh"]) => self.composio_restart_account(id),
            ("DELETE", ["connected_accounts", id]) => self.composio_delete_account(call, id),
            ("GET", ["toolkits"]) => self.composio_list_toolkits(call),
            ("GET", ["toolkits", slug]) => self.composio_get_toolkit(slug),
            ("POST", ["tools", "execute", "proxy"]) => self.composio_proxy(call),
            (_, ["webhook_subscriptions", rest @ ..]) => self.composio_subscriptions(call, rest),
            ("GET", ["auth", "session", "info"]) => Ok(Reply::json(200, &self.composio_session_info(key))),
            ("GET", ["org", "project", "config"]) => Ok(Reply::json(200, &self.composio.project.show())),
            ("PATCH", ["org", "project", "config"]) => self.composio_patch_project(call),
            _ => Err(Refused::new(404, "HTTP_NotFound", "Route not found")),
        }
    }
}

/// What a credential may do (§1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    /// Everything in its project.
    Project,
    /// The areas named.
    Scoped(Vec<String>),
    /// A member's identity: session info, and nothing of a project.
    User,
}

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Area {
    Named(&'static str),
    SessionInfo,
    Project,
    Unknown,
}

fn area(route: &[&str]) -> Area {
    match route {
        ["auth_configs", ..] => Area::Named("auth_configs"),
        ["connected_accounts", ..] => Area::Named("connected_accounts"),
        ["toolkits", ..] => Area::Named("toolkits"),
        // Not included in tool execution, and off unless granted.
        ["tools", "execute", "proxy"] => Area::Named("proxy_execute"),
        ["tools", ..] => Area::Named("tool_execution"),
        ["webhook_subscriptions", ..] => Area::Named("webhooks"),
        ["auth", "session", "info"] => Area::SessionInfo,
        ["org", "project", ..] => Area::Project,
        _ => Area::Unknown,
    }
}

/// Query parameters that some route names.
const KNOWN_QUERY: [&str; 22] = [
    "account_type",
    "auth_config_ids",
    "category",
    "connected_account_ids",
    "cursor",
    "include_deprecated",
    "is_composio_managed",
    "limit",
    "managed_by",
    "order_by",
    "order_direction",
    "redirect_url",
    "revoke_on_delete",
    "search",
    "show_disabled",
    "sort_by",
    "statuses",
    "toolkit_slug",
    "toolkit_slugs",
    "type",
    "user_ids",
    "version",
];

/// The project's switches (§8).
#[derive(Clone, Copy, Debug)]
pub(super) struct ProjectConfig {
    two_factor: bool,
    mask_secrets: bool,
    keep_data: bool,
}

impl Default for ProjectConfig {
    fn default() -> Self {
        Self { two_factor: false, mask_secrets: true, keep_data: false }
    }
}

impl ProjectConfig {
    fn show(self) -> Value {
        let visibility = if self.keep_data { "show_all" } else { "dont_store_data" };
        json!({"is_2FA_enabled": self.two_factor, "mask_secret_keys_in_connected_account": self.mask_secrets,
               "log_visibility_setting": visibility})
    }
}

impl World {
    /// Any subset of the switches; answers with all of them.
    fn composio_patch_project(&mut self, call: &Call) -> Outcome {
        let body = call.json().unwrap_or(Value::Null);
        let project = &mut self.composio.project;
        if let Some(on) = body["is_2FA_enabled"].as_bool() {
            project.two_factor = on;
        }
        if let Some(on) = body["mask_secret_keys_in_connected_account"].as_bool() {
            project.mask_secrets = on;
        }
        match body.get("log_visibility_setting").map(|v| v.as_str()) {
            None => {}
            Some(Some("show_all")) => project.keep_data = true,
            Some(Some("dont_store_data")) => project.keep_data = false,
            Some(_) => return Err(Refused::new(400, "HTTP_BadRequest", "log_visibility_setting is not valid")),
        }
        Ok(Reply::json(200, &self.composio.project.show()))
    }

    /// Whose key this is. The webhook secret is never told here.
    fn composio_session_info(&self, key: &Key) -> Value {
        let began = self.start().to_rfc3339();
        let uuid = |of: &str| draw::uuid(self.seed(), &["composio", of], 0);
        let org = json!({"id": uuid("org"), "name": "sandbox", "plan": "PRO"});
        let project = json!({
            "auto_id": 1, "id": uuid("project"), "org_id": uuid("org"), "name": "sandbox",
            "email": "sandbox@example.com", "nano_id": "pr_sandbox", "webhook_url": null, "event_webhook_url": null,
            "webhook_secret": null, "triggers_enabled": true, "last_subscribed_at": null, "deleted": false,
            "is_new_webhook": true, "webhook_version": "V3", "org": org, "created_at": began, "updated_at": began,
        });
        let member = json!({"id": uuid("member"), "email": "sandbox@example.com", "name": "sandbox", "role": "admin",
                            "metadata": {}});
        match key {
            Key::User => json!({"project": null, "api_key": null, "org_member": member}),
            Key::Project | Key::Scoped(_) => json!({"project": project, "api_key": null, "org_member": null}),
        }
    }
}

/// One page of `items`, in Composio's shape: the cursor is base64 of page and limit (§1.3).
pub(super) fn page(call: &Call, items: Vec<Value>, default: usize, max: usize) -> Outcome {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let bad = |what: &str| Refused::new(400, "HTTP_BadRequest", format!("{what} is not valid"));
    let limit = match call.param("limit") {
        None => default,
        Some(text) => {
            let wanted = text.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 1.0).ok_or_else(|| bad("limit"))?;
            (wanted as usize).clamp(1, max)
        }
    };
    let number = match call.param("cursor").filter(|c| !c.is_empty()) {
        None => 1,
        Some(cursor) => {
            let bytes = STANDARD.decode(cursor).map_err(|_| bad("cursor"))?;
            let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad("cursor"))?;
            value["page"]
                .as_u64()
                .filter(|n| *n >= 1)
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| bad("cursor"))?
        }
    };
    let total = items.len();
    let pages = total.div_ceil(limit).max(1);
    let shown: Vec<Value> = items.into_iter().skip((number - 1).saturating_mul(limit)).take(limit).collect();
    let next = (number < pages).then(|| STANDARD.encode(json!({"page": number + 1, "limit": limit}).to_string()));
    Ok(Reply::json(
        200,
        &json!({"items": shown, "next_cursor": next, "total_pages": pages, "current_page": number, "total_items": total}),
    ))
}
