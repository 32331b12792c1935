//! The gateway's routes (`docs/gateway.md`).

use serde_json::{Value, json};

use crate::domain::secret::{hex, hmac_sha256, same_secret};
use crate::domain::time::Timestamp;
use crate::ports::AlarmMode;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::serving::Reads;
use crate::sandbox::world::World;

const PAGE_MAX: usize = 1_000;
const SMOKE_MAX: usize = 100;

fn bad(message: &str) -> Reply {
    Reply::json(400, &json!({"error": "bad_request", "message": message}))
}

fn unauthorized() -> Reply {
    Reply::json(401, &json!({"error": "unauthorized"}))
}

fn unknown_triplet() -> Reply {
    Reply::json(404, &json!({"error": "unknown_triplet"}))
}

fn mode_name(mode: AlarmMode) -> &'static str {
    match mode {
        AlarmMode::Refresh => "refresh",
        AlarmMode::Standby => "standby",
        AlarmMode::Report => "report",
        AlarmMode::Disarmed => "disarmed",
    }
}

/// What the hot path served.
struct Served {
    reads: &'static str,
    stale: bool,
    /// `None`: KV has no entry.
    upstream: Option<Reply>,
}

impl Served {
    /// Slack says `ok: false` with 200.
    fn ok(&self) -> bool {
        let answered = |r: &Reply| (200..300).contains(&r.status) && r.value().get("ok") != Some(&Value::Bool(false));
        self.upstream.as_ref().is_some_and(answered)
    }
}

impl World {
    /// Answers a request to the gateway.
    pub(in crate::sandbox) fn gateway_http(&mut self, call: &Call) -> Reply {
        let route = call.route();
        if let ("GET", ["v1", tenant, provider, account, "whoami"]) = (call.method.as_str(), route.as_slice()) {
            let key = call.bearer().unwrap_or_default();
            if !same_secret(key.as_bytes(), self.keys_ref().gateway_key.as_bytes()) {
                return unauthorized();
            }
            let name = format!("{tenant}:{provider}:{account}");
            let Some(served) = self.serve(&name) else { return unknown_triplet() };
            let reply = served.upstream.unwrap_or_else(|| Reply::json(503, &json!({"error": "no_token"})));
            return reply.with_header("x-read-authority", served.reads).with_header("x-token-stale", served.stale);
        }
        if let ("POST", ["admin", "sync", "nango"]) = (call.method.as_str(), route.as_slice()) {
            return self.gateway_webhook(call);
        }
        let ["admin", rest @ ..] = route.as_slice() else {
            return Reply::json(404, &json!({"error": "not_found"}));
        };
        let key = call.header("x-admin-key").unwrap_or_default();
        if !same_secret(key.as_bytes(), self.keys_ref().gateway_admin_key.as_bytes()) {
            return unauthorized();
        }
        match (call.method.as_str(), rest) {
            ("GET", ["alarms"]) => self.list_alarms(call),
            ("GET", ["alarms", name]) => match self.by_name.get(*name).copied() {
                Some(object) => Reply::json(200, &self.show_alarm(object)),
                None => unknown_triplet(),
            },
            ("POST", ["alarms", name, "mode"]) => {
                let Some(object) = self.by_name.get(*name).copied() else { return unknown_triplet() };
                let mode = match call.json().as_ref().and_then(|b| b["mode"].as_str()) {
                    Some("refresh") => AlarmMode::Refresh,
                    Some("standby") => AlarmMode::Standby,
                    Some("report") => AlarmMode::Report,
                    Some("disarmed") => AlarmMode::Disarmed,
                    _ => return bad("mode must be refresh, standby, report or disarmed"),
                };
                self.gateway_set_mode(object, mode);
                Reply::json(200, &self.show_alarm(object))
            }
            ("GET", ["fires"]) => self.list_fires(call),
            ("POST", ["smoke"]) if self.faults.smoke_silent(self.now()) => {
                Reply::json(503, &json!({"error": "unavailable"}))
            }
            ("POST", ["smoke"]) => self.smoke(call),
            _ => Reply::json(404, &json!({"error": "not_found"})),
        }
    }

    /// The hot path: authority, then the credential, then the provider. `None`: the gateway does
    /// not know the triplet's provider.
    fn serve(&mut self, name: &str) -> Option<Served> {
        let now = self.now();
        let Some(triplet) = self.by_name.get(name).copied() else {
            let provider = name.split(':').nth(1)?;
            let known = self.providers.integrations.iter().any(|(_, facts)| facts.provider.contains_key(provider));
            return known.then_some(Served { reads: "source", stale: true, upstream: None });
        };
        let (reads, entry) = self.worker_view(triplet);
        let integration = self.rows[self.triplets[triplet].row].integration;
        let whoami = self.providers.integration(integration).whoami.clone();
        let url = self.fill_placeholders(triplet, &whoami.url);
        Some(match reads {
            Reads::Source => {
                let Some(entry) = entry else { return Some(Served { reads: "source", stale: true, upstream: None }) };
                let stale = entry.expires_at.is_some_and(|e| e <= now);
                let upstream = self.call_provider_url(&whoami.method, &url, &entry.access_token);
                Served { reads: "source", stale, upstream }
            }
            Reads::Target { account } => {
                let token = self.composio.served_token(&account).map(str::to_owned);
                let upstream = token.and_then(|token| self.call_provider_url(&whoami.method, &url, &token));
                // The gateway cannot see a token that Composio holds; a 401 tells.
                let stale = upstream.as_ref().is_none_or(|reply| reply.status == 401);
                Served { reads: "target", stale, upstream }
            }
        })
    }

    fn fill_placeholders(&self, triplet: usize, url: &str) -> String {
        let config = &self.providers.users[self.rows[self.triplets[triplet].row].user].config;
        config.iter().fold(url.to_owned(), |url, (name, value)| {
            url.replace(&format!("{{{name}}}"), value.as_str().unwrap_or_default())
        })
    }

    fn show_alarm(&self, object: usize) -> Value {
        let manager = &self.gateway.objects[object];
        json!({
            "triplet": self.triplets[manager.triplet].name,
            "object_id": manager.id,
            "mode": mode_name(manager.mode),
            "alarm_at": manager.alarm_at.map(Timestamp::to_rfc3339),
            "last_fired_at": manager.last_fired_at.map(Timestamp::to_rfc3339),
            "fires": manager.fires,
        })
    }

    fn list_alarms(&self, call: &Call) -> Reply {
        let limit = match call.param("limit").map(str::parse::<usize>) {
            None => PAGE_MAX,
            Some(Ok(n)) if (1..=PAGE_MAX).contains(&n) => n,
            Some(_) => return bad("limit must be between 1 and 1000"),
        };
        let first = match call.param("cursor").filter(|c| !c.is_empty()).map(str::parse::<usize>) {
            None => 0,
            Some(Ok(n)) => n,
            Some(Err(_)) => return bad("cursor is not valid"),
        };
        let all = self.gateway.objects.len();
        let end = first.saturating_add(limit).min(all);
        let alarms: Vec<Value> = (first.min(end)..end).map(|o| self.show_alarm(o)).collect();
        let cursor = (end < all).then(|| end.to_string());
        Reply::json(200, &json!({"alarms": alarms, "cursor": cursor}))
    }

    fn list_fires(&self, call: &Call) -> Reply {
        let since = match call.param("since").map(Timestamp::parse) {
            None => Timestamp::from_millis(0),
            Some(Ok(at)) => at,
            Some(Err(_)) => return bad("since must be an RFC 3339 time"),
        };
        let after = match call.param("cursor").filter(|c| !c.is_empty()).map(str::parse::<u64>) {
            None => 0,
            Some(Ok(n)) => n,
            Some(Err(_)) => return bad("cursor is not valid"),
        };
        // Fires are in the order of time and number, so both bounds are found by bisection.
        let first = self.gateway.fires.partition_point(|f| f.number <= after || f.at < since);
        let mut found = self.gateway.fires.range(first..);
        let page: Vec<_> = found.by_ref().take(PAGE_MAX).collect();
        let cursor = page.last().filter(|_| found.next().is_some()).map(|f| f.number.to_string());
        let fires: Vec<Value> = page
            .iter()
            .map(|f| {
                let triplet = &self.triplets[self.gateway.objects[f.object].triplet].name;
                json!({"triplet": triplet, "at": f.at.to_rfc3339(), "mode": mode_name(f.mode), "wrote": f.wrote})
            })
            .collect();
        Reply::json(200, &json!({"fires": fires, "cursor": cursor}))
    }

    fn smoke(&mut self, call: &Call) -> Reply {
        let body = call.json().unwrap_or(Value::Null);
        let names: Option<Vec<&str>> =
            body["triplets"].as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        let Some(names) = names.filter(|n| n.len() <= SMOKE_MAX) else {
            return bad("triplets must be an array of at most 100 texts");
        };
        let mut results = Vec::with_capacity(names.len());
        for name in names {
            let Some(served) = self.serve(name) else { return unknown_triplet() };
            results.push(json!({
                "triplet": name,
                "read_authority": served.reads,
                "ok": served.ok(),
                "stale": served.stale,
                "upstream_status": served.upstream.as_ref().map_or(503, |r| r.status),
            }));
        }
        Reply::json(200, &json!({"results": results}))
    }

    /// ADR-038's webhook: HMAC over the exact body, then the credential is fetched and written.
    fn gateway_webhook(&mut self, call: &Call) -> Reply {
        let expected = hex(&hmac_sha256(self.nango.signing_key.as_bytes(), &[&call.body]));
        let given = call.header("x-nango-hmac-sha256").unwrap_or_default();
        if !same_secret(given.as_bytes(), expected.as_bytes()) {
            return unauthorized();
        }
        let Some(body) = call.json() else { return bad("the body is not JSON") };
        let (key, id) = (body["providerConfigKey"].as_str(), body["connectionId"].as_str());
        let (Some(key), Some(id)) = (key, id) else { return bad("providerConfigKey and connectionId are required") };
        let synced = body["success"] == true && self.gateway_sync_from_nango(key, id);
        Reply::json(200, &json!({"synced": synced}))
    }
}
