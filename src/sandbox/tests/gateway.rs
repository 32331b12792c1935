//! `docs/gateway.md`: the hot path, the admin routes, the alarm modes.

use super::*;

fn alarm(client: &mut Client) -> Value {
    client.call(Api::Gateway, "GET", &format!("/admin/alarms/{TRIPLET}")).value()
}

fn smoke(client: &mut Client) -> Value {
    client.send(Api::Gateway, "POST", "/admin/smoke", &json!({"triplets": [TRIPLET]})).value()["results"][0].clone()
}

fn at(value: &Value) -> Timestamp {
    Timestamp::parse(value.as_str().unwrap()).unwrap()
}

#[test]
fn admin_routes_need_their_key_and_known_triplets() {
    let mut client = Client::new(hubspot());
    let bare = client.ask(Api::Gateway, &Call::new("GET", "/admin/alarms"));
    assert_eq!((bare.status, bare.value()), (401, json!({"error": "unauthorized"})));
    let unknown = client.call(Api::Gateway, "GET", "/admin/alarms/a%3Ab%3Ac");
    assert_eq!((unknown.status, unknown.value()), (404, json!({"error": "unknown_triplet"})));
    assert_eq!(client.set_alarm("sleep").value()["error"], "bad_request");
    assert_eq!(client.call(Api::Gateway, "GET", "/admin/alarms?limit=1001").status, 400);
    assert_eq!(client.send(Api::Gateway, "POST", "/admin/smoke", &json!({})).status, 400);
}

#[test]
fn the_hot_path_answers_the_upstream_s_whoami() {
    let mut client = Client::new(hubspot());
    let key = format!("Bearer {}", client.world.keys().gateway_key);
    let call = Call::new("GET", "/v1/kahuna/hubspot/default/whoami").with_header("authorization", &key);
    let fresh = client.ask(Api::Gateway, &call);
    assert!(fresh.status == 200 && fresh.value()["portalId"].is_u64());
    assert_eq!((fresh.header("x-read-authority"), fresh.header("x-token-stale")), (Some("source"), Some("false")));
    client.set_alarm("disarmed");
    client.advance(2 * HOUR_MS);
    let stale = client.ask(Api::Gateway, &call);
    assert_eq!((stale.status, stale.header("x-token-stale")), (401, Some("true")));
    client.kv("DELETE", "source", "/values/tokens%3Akahuna%3Ahubspot%3Adefault", &json!({}));
    client.advance(1_000);
    assert_eq!(client.ask(Api::Gateway, &call).value(), json!({"error": "no_token"}));
    assert_eq!(client.ask(Api::Gateway, &Call::new("GET", "/v1/kahuna/hubspot/default/whoami")).status, 401);
}

#[test]
fn refresh_fires_ten_minutes_ahead_and_writes_without_metadata() {
    let mut client = Client::new(hubspot());
    let before = alarm(&mut client);
    assert_eq!((&before["mode"], &before["fires"]), (&json!("refresh"), &json!(0)));
    let expiry = client.expiry();
    assert_eq!(at(&before["alarm_at"]), expiry.plus_ms(-10 * MINUTE_MS));
    client.world.advance_to(expiry);
    let after = alarm(&mut client);
    assert_eq!((&after["fires"], at(&after["alarm_at"])), (&json!(1), expiry.plus_ms(30 * MINUTE_MS + 10 * MINUTE_MS)));
    let listed = client.kv("GET", "source", "/keys", &json!({})).value();
    assert_eq!(listed["result"][0].get("metadata"), None);
    let fires = client.call(Api::Gateway, "GET", "/admin/fires").value();
    assert_eq!((&fires["fires"][0]["wrote"], &fires["fires"][0]["mode"]), (&json!(true), &json!("refresh")));
}

#[test]
fn standby_follows_the_entry_in_kv_and_takes_over_when_it_grows_old() {
    let mut client = Client::new(hubspot());
    let token = client.poll();
    let first = client.expiry();
    client.mirror_until("source", &token, first);
    client.advance(2_000);
    client.set_alarm("standby");
    assert_eq!(at(&alarm(&mut client)["alarm_at"]), first.plus_ms(-5 * MINUTE_MS));
    client.world.advance_to(first.plus_ms(-14 * MINUTE_MS));
    let token = client.poll();
    let second = client.expiry();
    client.mirror_until("source", &token, second);
    client.world.advance_to(second.plus_ms(-5 * MINUTE_MS - 1));
    assert_eq!(client.world.ledger().foreign_writes, 0);
    client.advance(1);
    assert_eq!(client.world.ledger().foreign_writes, 1, "nobody refreshed, so the fallback did");
    assert_eq!(smoke(&mut client)["ok"], true);
}

#[test]
fn report_fires_once_more_and_disarmed_never() {
    let mut client = Client::new(hubspot());
    assert!(client.set_alarm("report").value()["alarm_at"].is_string());
    client.advance(HOUR_MS);
    let shown = alarm(&mut client);
    assert_eq!((&shown["fires"], &shown["alarm_at"]), (&json!(1), &json!(null)));
    let fires = client.call(Api::Gateway, "GET", "/admin/fires").value();
    assert_eq!(fires["fires"][0]["wrote"], false);
    client.set_alarm("refresh");
    let disarmed = client.set_alarm("disarmed").value();
    assert_eq!((&disarmed["mode"], &disarmed["alarm_at"]), (&json!("disarmed"), &json!(null)));
    client.advance(DAY_MS);
    assert_eq!(alarm(&mut client)["fires"], 1);
}

#[test]
fn setting_a_mode_after_the_expiry_fires_at_once() {
    let mut client = Client::new(hubspot());
    client.set_alarm("disarmed");
    client.advance(2 * HOUR_MS);
    assert_eq!(smoke(&mut client)["stale"], true);
    client.set_alarm("refresh");
    client.advance(2_000);
    assert_eq!((&smoke(&mut client)["ok"], &smoke(&mut client)["stale"]), (&json!(true), &json!(false)));
}

/// cloudflare.md §5.3: seven runs, then the alarm is gone without a word.
#[test]
fn a_failing_alarm_is_dropped_after_seven_runs() {
    let mut client = Client::new(hubspot());
    let grant = client.world.rows[0].grant;
    client.world.revoke_grant(grant);
    let fired_at = at(&alarm(&mut client)["alarm_at"]);
    client.world.advance_to(fired_at.plus_ms(147_499));
    assert_eq!((&alarm(&mut client)["fires"], alarm(&mut client)["alarm_at"].is_string()), (&json!(6), true));
    client.advance(1);
    assert_eq!((&alarm(&mut client)["fires"], &alarm(&mut client)["alarm_at"]), (&json!(7), &json!(null)));
    client.advance(DAY_MS);
    assert_eq!(alarm(&mut client)["fires"], 7);
}

#[test]
fn fires_page_by_cursor_and_since() {
    let rows: Vec<Row> = (0..60).map(|n| row(&format!("t{n}"), "hubspot", &["hubspot"])).collect();
    let mut client = Client::new(World::new(config(rows)));
    client.advance(DAY_MS);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.call(Api::Gateway, "GET", &format!("/admin/fires?cursor={cursor}")).value();
        seen.extend(page["fires"].as_array().unwrap().iter().map(|f| at(&f["at"])));
        match page["cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert!(seen.len() > 1_500 && seen.is_sorted());
    let since = START.plus_ms(DAY_MS / 2);
    let late = client.call(Api::Gateway, "GET", &format!("/admin/fires?since={}", since.to_rfc3339())).value();
    assert!(late["fires"].as_array().unwrap().iter().all(|f| at(&f["at"]) >= since));
}

#[test]
fn the_webhook_route_checks_the_signature_and_syncs() {
    let mut client = Client::new(hubspot());
    client.set_alarm("disarmed");
    client.advance(2 * HOUR_MS);
    let body = json!({"connectionId": "kahuna__hubspot__default", "providerConfigKey": "hubspot", "success": true})
        .to_string();
    let (hmac, _) = client.world.nango.signatures(body.as_bytes(), START);
    let call = Call::new("POST", "/admin/sync/nango").with_body("application/json", body);
    assert_eq!(client.ask(Api::Gateway, &call).status, 401);
    let signed = call.with_header("x-nango-hmac-sha256", &hmac);
    assert_eq!(client.ask(Api::Gateway, &signed).value(), json!({"synced": true}));
    client.advance(1_000);
    assert_eq!(smoke(&mut client)["ok"], true);
}

/// cloudflare.md §2.6: the Worker sees a write later, and finding nothing is cached as well.
#[test]
fn the_worker_s_view_lags_and_caches_absence() {
    let options = WorldOptions { kv_lag_ms: 60_000, ..WorldOptions::default() };
    let mut client = Client::new(World::with_options(config(vec![row("kahuna", "hubspot", &["hubspot"])]), options));
    let account = super::composio::consented(&mut client);
    let record = json!({"read": "target", "epoch": 1, "connected_account_id": account}).to_string();
    assert_eq!(smoke(&mut client)["read_authority"], "source");
    client.advance(30_000);
    client.kv("PUT", "source", "/bulk", &json!([{"key": format!("authority:{TRIPLET}"), "value": record}]));
    client.advance(59_999);
    assert_eq!(smoke(&mut client)["read_authority"], "source");
    client.advance(1);
    assert_eq!((&smoke(&mut client)["read_authority"], &smoke(&mut client)["ok"]), (&json!("target"), &json!(true)));
}
