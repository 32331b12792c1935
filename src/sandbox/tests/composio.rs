//! composio.md, section by section.

use super::*;

fn config_of(client: &mut Client, scheme: &str) -> String {
    let mut wanted = json!({"type": "use_custom_auth", "name": scheme, "authScheme": scheme, "credentials": {}});
    if scheme == "OAUTH2" {
        let app = client.world.keys().composio_clients["hubspot"].clone();
        wanted["credentials"] = json!({"client_id": app.client_id, "client_secret": app.client_secret, "scopes": ["oauth", "crm.objects.contacts.read"]});
    }
    let made =
        client.composio("POST", "/auth_configs", &json!({"toolkit": {"slug": "hubspot"}, "auth_config": wanted}));
    assert_eq!(made.status, 201, "{}", made.value());
    made.value()["auth_config"]["id"].as_str().unwrap().to_owned()
}

fn bearer_body(config: &str, alias: &str, token: &str) -> Value {
    json!({"auth_config": {"id": config}, "connection": {"user_id": "kahuna", "alias": alias,
           "state": {"authScheme": "BEARER_TOKEN", "val": {"status": "ACTIVE", "token": token}}}})
}

fn get(client: &mut Client, target: &str) -> Reply {
    client.call(Api::Composio, "GET", &format!("/api/v3.1{target}"))
}

fn link(client: &mut Client, alias: &str) -> String {
    let config = config_of(client, "OAUTH2");
    let body = json!({"auth_config_id": config, "user_id": "kahuna", "alias": alias});
    let made = client.composio("POST", "/connected_accounts/link", &body);
    assert_eq!(made.status, 201, "{}", made.value());
    made.value()["connected_account_id"].as_str().unwrap().to_owned()
}

/// A consented OAuth2 account for [`TRIPLET`].
pub(super) fn consented(client: &mut Client) -> String {
    let id = link(client, "cutover-final");
    client.advance(6 * MINUTE_MS);
    assert_eq!(get(client, &format!("/connected_accounts/{id}")).value()["status"], "ACTIVE");
    id
}

/// §1.1 and §1.2: exactly one credential header, both prefixes, the envelope.
#[test]
fn one_credential_header_and_two_prefixes() {
    let mut client = Client::new(hubspot());
    let key = client.world.keys().composio_api_key;
    for prefix in ["/api/v3", "/api/v3.1"] {
        let call = Call::new("GET", &format!("{prefix}/auth_configs")).with_header("x-api-key", &key);
        assert_eq!(client.ask(Api::Composio, &call).status, 200);
        let twice = client.ask(Api::Composio, &call.with_header("x-org-api-key", "oak_1"));
        assert_eq!((twice.status, &twice.value()["error"]["slug"]), (401, &json!("HTTP_Unauthorized")));
    }
    for wrong in ["", "ak_x", "uak_x"] {
        let call = Call::new("GET", "/api/v3.1/auth_configs").with_header("x-api-key", wrong);
        let error = client.ask(Api::Composio, &call).value()["error"].clone();
        assert!(error["code"].is_number() && error["status"] == 401 && error["request_id"].is_string());
    }
    let gone = Call::new("GET", "/api/v1/apps").with_header("x-api-key", &key);
    assert_eq!(client.ask(Api::Composio, &gone).status, 410);
    let shown = get(&mut client, "/toolkits");
    assert!(
        ["x-ratelimit", "x-ratelimit-remaining", "x-ratelimit-window-size"].iter().all(|h| shown.header(h).is_some())
    );
}

/// §1.4: the limiter's 429 is bare and carries `Retry-After`.
#[test]
fn the_limiter_answers_outside_the_envelope() {
    let options = WorldOptions { composio_per_minute: Some(1), ..WorldOptions::default() };
    let mut client = Client::new(World::with_options(config(vec![]), options));
    assert_eq!(get(&mut client, "/toolkits").status, 200);
    let limited = get(&mut client, "/toolkits");
    assert_eq!((limited.status, limited.value().get("error")), (429, None));
    assert!(limited.value()["message"].is_string() && limited.header("retry-after").is_some());
    client.advance(MINUTE_MS);
    assert_eq!(get(&mut client, "/toolkits").status, 200);
}

/// §3.5, §3.6: a bearer account is ACTIVE at once; the alias is the only unique handle.
#[test]
fn bearer_accounts_are_active_at_once_and_aliases_are_unique() {
    let mut client = Client::new(hubspot());
    let config = config_of(&mut client, "BEARER_TOKEN");
    let token = client.poll();
    let made = client.composio("POST", "/connected_accounts", &bearer_body(&config, "m", &token));
    assert_eq!((made.status, &made.value()["status"]), (201, &json!("ACTIVE")));
    assert_eq!(client.composio("POST", "/connected_accounts", &bearer_body(&config, "m", &token)).status, 409);
    let mut bare = bearer_body(&config, "n", &token);
    bare["connection"]["state"]["val"] = json!(token);
    assert_eq!(client.composio("POST", "/connected_accounts", &bare).status, 400, "val must be an object");
    bare["connection"]["state"]["val"] = json!({"token": token});
    assert_eq!(client.composio("POST", "/connected_accounts", &bare).status, 400, "val.status is required");
    assert_eq!(client.composio("POST", "/connected_accounts", &bearer_body("ac_none", "n", &token)).status, 404);
    assert_eq!(client.world.ledger().deliveries, 1);
}

/// §3.2: no answer shows a token; §3.4: PATCH keeps, removes, refuses.
#[test]
fn tokens_go_in_and_never_come_out() {
    let mut client = Client::new(hubspot());
    let config = config_of(&mut client, "BEARER_TOKEN");
    let token = client.poll();
    let made = client.composio("POST", "/connected_accounts", &bearer_body(&config, "m", &token));
    let id = made.value()["id"].as_str().unwrap().to_owned();
    let patch = json!({"connection": {"state": {"authScheme": "BEARER_TOKEN", "val": {"token": token}}}});
    let patched = client.composio("PATCH", &format!("/connected_accounts/{id}"), &patch);
    assert_eq!(patched.value(), json!({"success": true, "id": id, "status": "ACTIVE"}));
    let one = get(&mut client, &format!("/connected_accounts/{id}"));
    let list = get(&mut client, "/connected_accounts?account_type=ALL");
    for reply in [&made, &patched, &one, &list] {
        assert!(!String::from_utf8(reply.body.clone()).unwrap().contains(&token));
    }
    assert_eq!(one.value()["state"]["val"]["token"], format!("{}...", &token[..4]));
    for bad in [
        json!({"connection": {"state": {"authScheme": "OAUTH2", "val": {"token": "x"}}}}),
        json!({"connection": {"state": {"authScheme": "BEARER_TOKEN", "val": token}}}),
        json!({"connection": {"state": {"authScheme": "BEARER_TOKEN", "val": {"nope": "x"}}}}),
        json!({"connection": {"state": {"authScheme": "BEARER_TOKEN", "val": {"token": ""}}}}),
    ] {
        assert_eq!(client.composio("PATCH", &format!("/connected_accounts/{id}"), &bad).status, 400, "{bad}");
    }
    assert_eq!(client.world.ledger().deliveries, 2);
    assert_eq!(client.composio("PATCH", "/connected_accounts/ca_none", &patch).status, 404);
}

/// §3.7: bearer accounts never expire by themselves; the inner status tells (§7).
#[test]
fn a_dead_bearer_token_stays_active_and_the_proxy_shows_the_inner_refusal() {
    let mut client = Client::new(hubspot());
    let config = config_of(&mut client, "BEARER_TOKEN");
    let token = client.poll();
    let made = client.composio("POST", "/connected_accounts", &bearer_body(&config, "m", &token)).value();
    let id = made["id"].as_str().unwrap();
    let call = json!({"connected_account_id": id, "endpoint": "https://api.hubapi.com/account-info/v3/details", "method": "GET"});
    let alive = client.composio("POST", "/tools/execute/proxy", &call);
    assert_eq!((alive.status, &alive.value()["status"]), (200, &json!(200)));
    assert!(alive.value()["data"]["portalId"].is_u64());
    let mut relative = call.clone();
    relative["endpoint"] = "/account-info/v3/details".into();
    assert_eq!(client.composio("POST", "/tools/execute/proxy", &relative).value()["data"], alive.value()["data"]);
    client.advance(2 * HOUR_MS);
    let dead = client.composio("POST", "/tools/execute/proxy", &call);
    assert_eq!((dead.status, &dead.value()["status"]), (200, &json!(401)));
    assert_eq!(get(&mut client, &format!("/connected_accounts/{id}")).value()["status"], "ACTIVE");
    let mut elsewhere = call.clone();
    elsewhere["endpoint"] = "https://evil.example/".into();
    assert_eq!(client.composio("POST", "/tools/execute/proxy", &elsewhere).value()["error"]["slug"], "OriginMismatch");
    let unknown = json!({"connected_account_id": "ca_none", "endpoint": "/x", "method": "GET"});
    assert_eq!(client.composio("POST", "/tools/execute/proxy", &unknown).value()["error"]["code"], 1803);
}

/// §3.6, §3.7: ACTIVE only after the person consented, then refreshed before expiry.
#[test]
fn a_link_becomes_active_through_consent_only_and_then_refreshes_itself() {
    let mut client = Client::new(hubspot());
    let id = link(&mut client, "cutover-final");
    client.advance(19_000);
    assert_eq!(get(&mut client, &format!("/connected_accounts/{id}")).value()["status"], "INITIALIZING");
    client.advance(6 * MINUTE_MS);
    let shown = get(&mut client, &format!("/connected_accounts/{id}")).value();
    assert_eq!(
        (&shown["status"], &shown["state"]["val"]["scope"]),
        (&json!("ACTIVE"), &json!("oauth crm.objects.contacts.read"))
    );
    client.advance(3 * DAY_MS);
    let call = json!({"connected_account_id": id, "endpoint": "/account-info/v3/details", "method": "GET"});
    assert_eq!(client.composio("POST", "/tools/execute/proxy", &call).value()["status"], 200);
    let status = format!("/connected_accounts/{id}/status");
    assert_eq!(client.composio("PATCH", &status, &json!({"enabled": false})).status, 200);
    assert_eq!(client.composio("POST", "/tools/execute/proxy", &call).status, 422);
    assert_eq!(client.composio("PATCH", &status, &json!({"enabled": true})).status, 200);
    let deleted = client.call(Api::Composio, "DELETE", &format!("/api/v3.1/connected_accounts/{id}"));
    assert_eq!(deleted.value(), json!({"success": true}));
    assert_eq!(get(&mut client, &format!("/connected_accounts/{id}")).status, 404);
    assert!(client.world.providers.grants.iter().all(|g| g.revoked_at.is_none()), "delete does not revoke upstream");
}

/// §3.6: ten minutes, then EXPIRED. Nobody opens a link that is addressed to nobody.
#[test]
fn an_unused_link_expires_after_ten_minutes() {
    let rows = vec![row("kahuna", "hubspot", &["hubspot"]), row("pointfield", "hubspot", &["hubspot"])];
    let mut client = Client::new(World::new(config(rows)));
    let config = config_of(&mut client, "OAUTH2");
    let body = json!({"auth_config_id": config, "user_id": "stranger"});
    let made = client.composio("POST", "/connected_accounts/link", &body).value();
    let target = format!("/connected_accounts/{}", made["connected_account_id"].as_str().unwrap());
    client.advance(10 * MINUTE_MS - 1);
    assert_eq!(get(&mut client, &target).value()["status"], "INITIALIZING");
    client.advance(1);
    assert_eq!(get(&mut client, &target).value()["status"], "EXPIRED");
}

/// §3.7: a permanent error on background refresh ends the account, with a signed webhook (§5.2).
#[test]
fn a_lost_grant_expires_the_account_and_tells_the_subscriber() {
    let mut client = Client::new(hubspot());
    let subscription =
        json!({"webhook_url": "https://x.example", "enabled_events": ["composio.connected_account.expired"]});
    assert_eq!(client.composio("POST", "/webhook_subscriptions", &subscription).status, 201);
    assert_eq!(client.composio("POST", "/webhook_subscriptions", &subscription).status, 409, "one per project");
    let id = consented(&mut client);
    let grant = client.world.providers.grants.len() - 1;
    client.world.revoke_grant(grant);
    client.advance(HOUR_MS);
    assert_eq!(get(&mut client, &format!("/connected_accounts/{id}")).value()["status"], "EXPIRED");
    let sent = client.world.take_outbound();
    let body: Value = serde_json::from_slice(&sent[0].body).unwrap();
    assert_eq!((&body["type"], &body["data"]["id"]), (&json!("composio.connected_account.expired"), &json!(id)));
}

/// §1.3, §3.3: opaque cursors to the end, filters joined by commas.
#[test]
fn lists_page_by_cursor_and_filter() {
    let mut client = Client::new(hubspot());
    let config = config_of(&mut client, "BEARER_TOKEN");
    for n in 0..7 {
        client.advance(1_000);
        assert_eq!(
            client.composio("POST", "/connected_accounts", &bearer_body(&config, &format!("m{n}"), "t")).status,
            201
        );
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = get(&mut client, &format!("/connected_accounts?limit=3&cursor={cursor}")).value();
        seen.extend(page["items"].as_array().unwrap().iter().map(|a| a["alias"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(seen, ["m6", "m5", "m4", "m3", "m2", "m1", "m0"]);
    let count = |client: &mut Client, query: &str| {
        get(client, &format!("/connected_accounts?{query}")).value()["total_items"].clone()
    };
    assert_eq!(count(&mut client, "user_ids=kahuna,x&statuses=ACTIVE,EXPIRED"), 7);
    assert_eq!(count(&mut client, "user_ids=x"), 0);
    assert_eq!(count(&mut client, "toolkit_slugs=gmail"), 0);
    assert_eq!(get(&mut client, "/connected_accounts?cursor=%%%").status, 400);
}

/// §2 and §6: managed apps where Composio has one; secrets of auth configs are masked.
#[test]
fn auth_configs_follow_the_toolkit_and_hide_their_secrets() {
    let mut client = Client::new(hubspot());
    let id = config_of(&mut client, "OAUTH2");
    let secret = client.world.keys().composio_clients["hubspot"].client_secret.clone();
    let shown = get(&mut client, &format!("/auth_configs/{id}"));
    assert!(!String::from_utf8(shown.body.clone()).unwrap().contains(&secret));
    assert!(shown.value()["credentials"]["client_id"].as_str().unwrap().ends_with(".apps.example"));
    for (slug, status) in [("gmail", 201), ("linkedin_ads", 400), ("microsoft_advertising", 404), ("nope", 404)] {
        let made = client.composio("POST", "/auth_configs", &json!({"toolkit": {"slug": slug}}));
        assert_eq!(made.status, status, "{slug}");
    }
    assert_eq!(get(&mut client, "/toolkits/gmail").status, 200);
    assert_eq!(get(&mut client, "/toolkits/microsoft_advertising").status, 404);
    assert_eq!(client.composio("PATCH", &format!("/auth_configs/{id}/DISABLED"), &json!({})).status, 200);
    assert_eq!(get(&mut client, "/auth_configs?toolkit_slug=hubspot").value()["total_items"], 0);
    assert_eq!(get(&mut client, "/auth_configs?toolkit_slug=hubspot&show_disabled=true").value()["total_items"], 1);
}

/// §3.4: the deprecated route knocks a working account out of ACTIVE.
#[test]
fn refresh_restarts_consent() {
    let mut client = Client::new(hubspot());
    let id = consented(&mut client);
    let reply = client.composio("POST", &format!("/connected_accounts/{id}/refresh"), &json!({}));
    assert_eq!((&reply.value()["status"], reply.header("deprecation")), (&json!("INITIATED"), Some("true")));
}
