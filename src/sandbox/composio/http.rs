//! Composio's transport: credentials, prefixes, rate limit, envelope (composio.md §1).

use serde_json::{Value, json};

use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::world::World;

/// A refusal in Composio's envelope.
pub(super) struct Refused {
    pub status: u16,
    pub slug: &'static str,
    pub message: String,
}

impl Refused {
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
            Ok(()) => {
                self.composio.window.1 = self.composio.window.1.saturating_add(1);
                match self.composio_limited(call, limit) {
                    Some(reply) => reply,
                    None => match self.composio_route(call, rest) {
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

    fn composio_authenticate(&self, call: &Call) -> Result<(), Refused> {
        let refuse = |message: &str| Err(Refused::new(401, "HTTP_Unauthorized", message));
        let present =
            ["x-api-key", "x-org-api-key", "x-user-api-key"].iter().filter(|h| call.header(h).is_some()).count();
        match call.header("x-api-key") {
            _ if present > 1 => refuse("Send exactly one credential header"),
            Some(key) if key.starts_with("uak_") => refuse("This is a user API key; send it as x-user-api-key"),
            Some(key) if key == self.keys_ref().composio_api_key => Ok(()),
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

    pub(super) fn composio_refuse(&self, refused: &Refused) -> Reply {
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

    fn composio_route(&mut self, call: &Call, route: &[&str]) -> Outcome {
        if !call.body.is_empty() && call.json().is_none() {
            return Err(Refused::new(400, "HTTP_BadRequest", "The body is not JSON"));
        }
        match (call.method.as_str(), route) {
            ("GET", ["auth_configs"]) => self.composio_list_configs(call),
            ("POST", ["auth_configs"]) => self.composio_create_config(call),
            ("GET", ["auth_configs", id]) => self.composio_get_config(id),
            ("PATCH", ["auth_configs", id]) => self.composio_patch_config(call, id),
            ("PATCH", ["auth_configs", id, status @ ("ENABLED" | "DISABLED")]) => {
                self.composio_enable_config(id, *status == "ENABLED")
            }
            ("DELETE", ["auth_configs", id]) => self.composio_delete_config(id),
            ("GET", ["connected_accounts"]) => self.composio_list_accounts(call),
            ("POST", ["connected_accounts"]) => self.composio_create_account(call),
            ("POST", ["connected_accounts", "link"]) => self.composio_link(call),
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
            ("GET", ["auth", "session", "info"]) => Ok(Reply::json(
                200,
                &json!({"project": {"id": "pr_sandbox", "name": "sandbox", "webhook_secret": null}, "api_key": null, "org_member": null}),
            )),
            ("GET", ["org", "project", "config"]) => Ok(Reply::json(
                200,
                &json!({"is_2FA_enabled": false, "mask_secret_keys_in_connected_account": true, "log_visibility_setting": "dont_store_data"}),
            )),
            _ => Err(Refused::new(404, "HTTP_NotFound", "Route not found")),
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
