//! Cloudflare's transport: auth, rate limit, envelope, and the routes (cloudflare.md §1, §4).

use serde_json::{Value, json};

use crate::domain::time::{MINUTE_MS, Timestamp};
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::world::World;

use super::{SOURCE, TARGET};

/// Calls of one token are counted in windows of five minutes (§1.3).
const WINDOW_S: i64 = 300;

pub(super) fn success(result: Value, info: Option<Value>) -> Reply {
    let mut body = json!({"success": true, "errors": [], "messages": [], "result": result});
    if let Some(info) = info {
        body["result_info"] = info;
    }
    Reply::json(200, &body)
}

pub(super) fn failure(status: u16, code: u32, message: &str) -> Reply {
    let error = json!({"code": code, "message": message});
    Reply::json(status, &json!({"success": false, "errors": [error], "messages": [], "result": null}))
}

impl World {
    /// Answers a request to Cloudflare. The path may start with `/client/v4` or not, and with
    /// `/accounts/{id}` or not, because clients keep that prefix in their base URL.
    pub(in crate::sandbox) fn cloudflare_http(&mut self, call: &Call) -> Reply {
        let route = call.route();
        let route = route.strip_prefix(&["client", "v4"]).unwrap_or(&route);
        let now = self.now();
        let Some(token) = call.header("authorization") else {
            return failure(400, 6003, "Invalid request headers");
        };
        if token.strip_prefix("Bearer ") != Some(self.keys_ref().cloudflare_token.as_str()) {
            return failure(403, 10000, "Authentication error");
        }
        let limit = self.options().cloudflare_per_5_minutes;
        let (used, reset_s) = self.cloudflare.spend(now);
        let allowed = limit.unwrap_or(1_200);
        let blocked = self.cloudflare.blocked_until.is_some_and(|until| now < until);
        let reply = if limit.is_some() && (blocked || used > allowed) {
            let until = *self.cloudflare.blocked_until.get_or_insert(now.plus_ms(5 * MINUTE_MS));
            let wait_s = (until.since(now) + 999).div_euclid(1_000).max(1);
            failure(429, 971, "Please wait and consider throttling your request speed")
                .with_header("retry-after", wait_s)
        } else {
            self.cloudflare.blocked_until = None;
            match route {
                ["user", "tokens", "verify"] => self.cloudflare_verify_token(),
                ["accounts", account, rest @ ..] if *account == self.keys_ref().cloudflare_account_id => {
                    self.cloudflare_route(call, rest)
                }
                ["accounts", ..] => failure(403, 9109, "Unauthorized to access requested resource"),
                rest => self.cloudflare_route(call, rest),
            }
        };
        let left = if limit.is_some() { allowed.saturating_sub(used) } else { allowed };
        reply
            .with_header("ratelimit", format!("\"default\";r={left};t={reset_s}"))
            .with_header("ratelimit-policy", format!("\"default\";q={allowed};w={WINDOW_S}"))
    }

    fn cloudflare_verify_token(&self) -> Reply {
        let message = json!([{"code": 10000, "message": "This API Token is valid and active"}]);
        let result = json!({"id": self.keys_ref().cloudflare_account_id, "status": "active"});
        Reply::json(200, &json!({"success": true, "errors": [], "messages": message, "result": result}))
    }

    fn cloudflare_route(&mut self, call: &Call, route: &[&str]) -> Reply {
        let keys = self.keys_ref();
        match (call.method.as_str(), route) {
            ("GET", ["tokens", "verify"]) => self.cloudflare_verify_token(),
            ("GET", ["storage", "kv", "namespaces"]) => {
                let all = [(&keys.kv_source, "TOKENS"), (&keys.kv_target, "TOKENS_NEXT")]
                    .map(|(id, title)| json!({"id": id, "title": title, "supports_url_encoding": true}));
                paged(call, all.to_vec(), 20)
            }
            (_, ["storage", "kv", "namespaces", id, rest @ ..]) => {
                let namespace = if *id == keys.kv_source {
                    SOURCE
                } else if *id == keys.kv_target {
                    TARGET
                } else {
                    return failure(404, 10013, "get namespace: 'namespace not found'");
                };
                self.kv_route(call, namespace, rest)
            }
            ("GET", ["d1", "database"]) => {
                let database = json!({"uuid": keys.d1_database, "name": "kv-audit", "version": "production",
                                      "created_at": self.start().to_rfc3339(), "jurisdiction": null});
                let wanted = call.param("name").is_none_or(|n| n == "kv-audit");
                paged(call, if wanted { vec![database] } else { vec![] }, 100)
            }
            ("POST", ["d1", "database", id, form @ ("query" | "raw")]) => {
                if !id.contains('-') {
                    return failure(400, 7400, "The request is malformed: database id must be a UUID");
                }
                if *id != keys.d1_database {
                    return failure(404, 7404, "The database could not be found");
                }
                if self.faults.audit_silent(self.now()) {
                    return failure(500, 7500, "D1 is unavailable");
                }
                self.d1_query(call, *form == "raw")
            }
            ("GET", ["workers", "durable_objects", "namespaces"]) => {
                let namespace = json!({"id": keys.do_namespace, "name": "gateway_TokenManager", "script": "gateway",
                                       "class": "TokenManager", "use_sqlite": true});
                paged(call, vec![namespace], 20)
            }
            ("GET", ["workers", "durable_objects", "namespaces", id, "objects"]) => {
                if *id != keys.do_namespace {
                    return failure(404, 10066, "Durable Object namespace not found");
                }
                self.list_objects(call)
            }
            ("GET", ["workers", "scripts"]) => {
                let named = json!([{"name": "TokenManager", "handlers": ["alarm", "fetch"]}]);
                success(
                    json!([{"id": "gateway", "handlers": ["fetch"], "named_handlers": named, "migration_tag": "v1"}]),
                    None,
                )
            }
            _ => {
                failure(404, 7003, "Could not route to the requested path, perhaps your object identifier is invalid?")
            }
        }
    }

    /// §4.1: 64 hex digits and `hasStoredData`, no names; the cursor sits in two places.
    fn list_objects(&self, call: &Call) -> Reply {
        let limit = match call.param("limit").map(str::parse::<usize>) {
            None => 1_000,
            Some(Ok(n)) if (10..=10_000).contains(&n) => n,
            Some(_) => return failure(400, 10001, "limit must be between 10 and 10000"),
        };
        let mut ids: Vec<&str> = self.gateway.objects.iter().map(|o| o.id.as_str()).collect();
        ids.sort_unstable();
        let after = call.param("cursor").unwrap_or_default();
        let rest: Vec<&str> = ids.into_iter().filter(|id| *id > after).collect();
        let cursor = if rest.len() > limit { rest[limit - 1] } else { "" };
        let shown: Vec<Value> = rest.iter().take(limit).map(|id| json!({"id": id, "hasStoredData": true})).collect();
        let info = json!({"count": shown.len(), "cursor": cursor, "cursors": {"after": cursor}});
        success(shown.into(), Some(info))
    }
}

impl super::Cloudflare {
    /// Counts a call: used in this window, and seconds to its end.
    fn spend(&mut self, now: Timestamp) -> (u32, i64) {
        let begin = now.secs().div_euclid(WINDOW_S) * WINDOW_S;
        if self.window.0 != begin {
            self.window = (begin, 0);
        }
        self.window.1 = self.window.1.saturating_add(1);
        (self.window.1, begin + WINDOW_S - now.secs())
    }
}

/// A page-style listing.
fn paged(call: &Call, items: Vec<Value>, default: usize) -> Reply {
    let number =
        |name: &str, default: usize| call.param(name).and_then(|v| v.parse::<usize>().ok()).unwrap_or(default).max(1);
    let (page, per_page) = (number("page", 1), number("per_page", default).min(1_000));
    let total = items.len();
    let shown: Vec<Value> = items.into_iter().skip((page - 1).saturating_mul(per_page)).take(per_page).collect();
    let info = json!({"page": page, "per_page": per_page, "count": shown.len(), "total_count": total});
    success(shown.into(), Some(info))
}
