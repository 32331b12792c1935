//! nango.md, section by section.

use super::*;

fn fetch(client: &mut Client, options: &str) -> Reply {
    client.nango("GET", &format!("{CONNECTION}{options}"))
}

/// §1.2: which key problems give which code, and no rate headers on a 401.
#[test]
fn authentication_comes_first_and_shows_no_rate_headers() {
    let mut client = Client::new(hubspot());
    let plain = Call::new("GET", "/connections");
    let cases = [
        (plain.clone(), "missing_auth_header"),
        (plain.clone().with_header("authorization", "Bearer "), "malformed_auth_header"),
        (plain.clone().with_header("authorization", "Bearer abc"), "invalid_secret_key_format"),
        (plain.clone().with_header("authorization", "Bearer 00000000-0000-4000-8000-000000000000"), "unknown_account"),
    ];
    for (call, code) in cases {
        let reply = client.ask(Api::Nango, &call);
        assert_eq!((reply.status, reply.value()["error"]["code"].as_str()), (401, Some(code)));
        assert_eq!(reply.header("x-ratelimit-limit"), None);
        assert_eq!(reply.value()["error"]["payload"], json!({}));
    }
    let bare = plain.with_header("authorization", &client.world.keys().nango_api_key);
    assert_eq!(client.ask(Api::Nango, &bare).status, 200, "a bare key passes");
}

/// §1.3: auth → rate limit → scope → validation; 403 and 400 cost a point. §1.4: fixed window.
#[test]
fn the_rate_limit_counts_every_authenticated_call_and_resets_with_the_minute() {
    let options = WorldOptions { nango_per_minute: Some(3), ..WorldOptions::default() };
    let mut client = Client::new(World::with_options(config(vec![row("kahuna", "hubspot", &["hubspot"])]), options));
    assert_eq!(client.nango("GET", "/connections/x").status, 400);
    let verify = format!("Bearer {}", client.world.keys().nango_verify_key);
    let forbidden = Call::new("POST", "/connections").with_header("authorization", &verify).with_json(&json!({}));
    assert_eq!(client.ask(Api::Nango, &forbidden).status, 403);
    let third = client.nango("GET", "/connections");
    assert_eq!((third.status, third.header("x-ratelimit-remaining")), (200, Some("0")));
    let limited = client.nango("GET", "/connections?limit=1");
    assert_eq!(
        limited.value(),
        json!({"error": {"code": "too_many_request", "method": "GET", "path": "/connections"}})
    );
    let wait: i64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert_eq!(limited.header("x-ratelimit-reset").unwrap().parse::<i64>().unwrap(), START.secs() + wait);
    client.advance(wait * 1_000);
    assert_eq!(client.nango("GET", "/connections").status, 200);
}

/// §1.2, second table: a key without credential scope never refreshes and shows `{}`.
#[test]
fn a_verify_only_key_reads_without_refreshing() {
    let mut client = Client::new(hubspot());
    let expiry = client.expiry();
    client.world.advance_to(expiry.plus_ms(-5 * MINUTE_MS));
    let before = client.world.ledger();
    let key = format!("Bearer {}", client.world.keys().nango_verify_key);
    let reply = client.ask(Api::Nango, &Call::new("GET", CONNECTION).with_header("authorization", &key));
    assert_eq!((reply.status, &reply.value()["credentials"]), (200, &json!({})));
    for option in ["&force_refresh=true", "&refresh_token=true"] {
        let call = Call::new("GET", &format!("{CONNECTION}{option}")).with_header("authorization", &key);
        assert_eq!(client.ask(Api::Nango, &call).status, 403);
    }
    let after = client.world.ledger();
    assert_eq!((after.rotations, after.refreshing_reads), (before.rotations, before.refreshing_reads));
}

/// §6.1: refreshed at 10 minutes before expiry, not at 20; and no webhook tells (§5.2).
#[test]
fn a_read_refreshes_inside_the_last_fifteen_minutes_only_and_silently() {
    let mut client = Client::new(hubspot());
    let first = client.poll();
    let expiry = client.expiry();
    client.world.advance_to(expiry.plus_ms(-15 * MINUTE_MS - 1));
    assert_eq!(client.poll(), first);
    client.world.advance_to(expiry.plus_ms(-15 * MINUTE_MS));
    assert_ne!(client.poll(), first);
    assert_eq!(client.world.take_outbound(), []);
    assert_eq!(client.world.ledger().rotations, 1);
}

/// §2.2: refresh tokens only on request; `updated_at` moves on refresh and not on reads.
#[test]
fn refresh_tokens_show_only_on_request() {
    let mut client = Client::new(hubspot());
    assert!(!String::from_utf8(fetch(&mut client, "").body).unwrap().contains("refresh_token"));
    let shown = fetch(&mut client, "&refresh_token=true").value();
    assert!(
        shown["credentials"]["refresh_token"].is_string() && shown["credentials"]["raw"]["refresh_token"].is_string()
    );
    assert!(shown["updated_at"].as_str().unwrap().ends_with("+00:00"));
    assert!(shown["credentials"]["expires_at"].as_str().unwrap().ends_with('Z'));
    client.advance(MINUTE_MS);
    let read = fetch(&mut client, "").value();
    assert_eq!(read["updated_at"], shown["updated_at"]);
    assert_ne!(read["last_fetched_at"], shown["last_fetched_at"]);
    assert_ne!(fetch(&mut client, "&force_refresh=true").value()["updated_at"], shown["updated_at"]);
    assert_eq!(fetch(&mut client, "&nope=1").status, 400);
    assert_eq!(fetch(&mut client, "&force_refresh=maybe").status, 400);
}

/// §6.4: 400 and a webhook, 424 for 30 s without one, exhausted after four failing days.
#[test]
fn failures_cool_down_exhaust_after_four_days_and_recover_by_force() {
    let mut client = Client::new(hubspot());
    let grant = client.world.rows[0].grant;
    client.set_alarm("disarmed");
    client.world.providers.grants[grant].revoked_at = Some(START);
    client.advance(HOUR_MS);
    for day in 0..4 {
        let reply = fetch(&mut client, "");
        assert_eq!(reply.status, 400, "day {day}");
        let error = &reply.value()["error"];
        assert_eq!(error["code"], "invalid_credentials");
        assert_eq!(error["payload"]["connection"]["credentials"], json!({}));
        assert_eq!(error["payload"]["connection"]["errors"][0]["type"], "auth");
        let sent = client.world.take_outbound();
        assert_eq!(sent.len(), 1);
        client.world.webhook_answered(sent[0].id, Some(200));
        let again = fetch(&mut client, "");
        if day < 3 {
            assert_eq!(again.status, 424);
            assert!(again.value()["error"]["message"].as_str().unwrap().starts_with("A recent refresh"));
        } else {
            assert!(again.value()["error"]["message"].as_str().unwrap().starts_with("The refresh limit"));
        }
        assert_eq!(client.world.take_outbound(), []);
        // One point a day, however often it fails.
        client.advance(31_000);
        if day < 3 {
            assert_eq!(fetch(&mut client, "").status, 400);
            for webhook in client.world.take_outbound() {
                client.world.webhook_answered(webhook.id, Some(200));
            }
        }
        client.advance(DAY_MS - 31_000);
    }
    assert_eq!(fetch(&mut client, "").status, 424);
    client.world.providers.grants[grant].revoked_at = None;
    assert_eq!(fetch(&mut client, "&force_refresh=true").status, 200);
    assert_eq!(fetch(&mut client, "").value()["errors"], json!([]));
}

/// §6.1: expired without a refresh token is 200 with the stale token, also when forced.
#[test]
fn an_imported_access_token_without_refresh_token_is_served_stale() {
    let mut client = Client::new(hubspot());
    let body = json!({"provider_config_key": "hubspot", "connection_id": "nort",
                      "credentials": {"type": "OAUTH2", "access_token": "at", "expires_at": "2026-01-01T00:00:00Z"}});
    let made = client.send(Api::Nango, "POST", "/connections", &body);
    assert_eq!((made.status, &made.value()["credentials"]["raw"]["type"]), (201, &json!("OAUTH2")));
    for option in ["", "&force_refresh=true"] {
        let reply = client.nango("GET", &format!("/connections/nort?provider_config_key=hubspot{option}"));
        assert_eq!((reply.status, &reply.value()["credentials"]["access_token"]), (200, &json!("at")));
    }
}

/// §2.3: an import over an existing id replaces everything and sends `override`; unknown keys are refused.
#[test]
fn imports_upsert_and_validate() {
    let mut client = Client::new(hubspot());
    let credentials = json!({"type": "OAUTH2", "access_token": "a", "refresh_token": "r", "expires_at": null});
    let body = json!({"provider_config_key": "hubspot", "connection_id": "kahuna__hubspot__default", "credentials": credentials});
    let reply = client.send(Api::Nango, "POST", "/connections", &body);
    assert_eq!((reply.status, &reply.value()["tags"], &reply.value()["end_user"]), (201, &json!({}), &json!(null)));
    assert_eq!(reply.value()["credentials"]["expires_at"], "1970-01-01T00:00:00.000Z");
    let sent = client.world.take_outbound();
    assert!(String::from_utf8(sent[0].body.clone()).unwrap().contains(r#""operation":"override""#));
    for (pointer, bad) in [("raw", json!({})), ("type", json!("API_KEY")), ("access_token", json!(7))] {
        let mut wrong = body.clone();
        wrong["credentials"][pointer] = bad;
        assert_eq!(client.send(Api::Nango, "POST", "/connections", &wrong).status, 400, "{pointer}");
    }
    let mut unknown = body.clone();
    unknown["provider_config_key"] = "nope".into();
    assert_eq!(client.send(Api::Nango, "POST", "/connections", &unknown).status, 404);
}

/// §2.1: newest first, pages by number, filters; §1.3: which ids are unknown how.
#[test]
fn lists_page_and_filter_and_unknown_ids_have_their_codes() {
    let rows: Vec<Row> = (0..5).map(|n| row(&format!("t{n}"), "hubspot", &["hubspot"])).collect();
    let mut client = Client::new(World::new(config(rows)));
    let numbers = |reply: &Reply| -> Vec<i64> {
        reply.value()["connections"].as_array().unwrap().iter().map(|c| c["id"].as_i64().unwrap()).collect()
    };
    let all = numbers(&client.nango("GET", "/connections"));
    assert_eq!(all.len(), 5);
    assert_eq!(numbers(&client.nango("GET", "/connections?limit=2&page=1")), all[2..4]);
    assert!(numbers(&client.nango("GET", "/connections?limit=2&page=999")).is_empty());
    assert_eq!(numbers(&client.nango("GET", "/connections?tags[end_user_id]=t1__hubspot__default")).len(), 1);
    assert_eq!(numbers(&client.nango("GET", "/connections?endUserId=t1__hubspot__default")).len(), 1);
    assert!(numbers(&client.nango("GET", "/connections?integrationId=google,slack")).is_empty());
    let too_big = client.nango("GET", "/connections?limit=2001").value();
    assert_eq!(too_big["error"]["errors"][0]["code"], "too_big");
    for (wrong, kind) in
        [("limit=0", "too_small"), ("page=-1", "too_small"), ("limit=x", "invalid_type"), ("x=1", "unrecognized_keys")]
    {
        let refused = client.nango("GET", &format!("/connections?{wrong}")).value();
        assert_eq!(refused["error"]["errors"][0]["code"], kind, "{wrong}");
    }
    let code = |client: &mut Client, method, target| {
        let reply = client.nango(method, target);
        (reply.status, reply.value()["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(code(&mut client, "GET", "/connections/none?provider_config_key=hubspot"), (404, "not_found".into()));
    assert_eq!(
        code(&mut client, "GET", "/connections/none?provider_config_key=zzz"),
        (400, "unknown_provider_config".into())
    );
    assert_eq!(code(&mut client, "GET", "/connections/none"), (400, "invalid_query_params".into()));
    assert_eq!(
        code(&mut client, "DELETE", "/connections/none?provider_config_key=hubspot"),
        (400, "unknown_connection".into())
    );
    assert_eq!(
        code(&mut client, "GET", "/connections/bad%23id?provider_config_key=hubspot"),
        (400, "invalid_uri_params".into())
    );
    assert_eq!(code(&mut client, "GET", "/nope"), (500, "generic_error_support".into()));
    assert_eq!(client.nango("GET", "/health").value(), json!({"result": "ok"}));
}

/// §2.4 and §8: metadata merges or replaces; HubSpot's deletion hook revokes unless told not to.
#[test]
fn deleting_a_hubspot_connection_revokes_upstream_unless_metadata_says_not_to() {
    for spared in [false, true] {
        let mut client = Client::new(hubspot());
        let grant = client.world.rows[0].grant;
        let metadata = json!({"connection_id": "kahuna__hubspot__default", "provider_config_key": "hubspot",
                              "metadata": {"skipTokenRevocation": spared}});
        assert_eq!(client.send(Api::Nango, "PATCH", "/connections/metadata", &metadata).status, 200);
        assert_eq!(client.nango("DELETE", CONNECTION).value(), json!({"success": true}));
        assert_eq!(client.nango("DELETE", CONNECTION).status, 400);
        assert_eq!(client.nango("GET", CONNECTION).status, 404);
        assert_eq!(client.world.providers.grants[grant].revoked_at.is_none(), spared);
    }
}

/// §6.1: the keep-alive job touches only what nobody has read for 24 h.
#[test]
fn the_keep_alive_job_refreshes_unread_connections_once_a_day() {
    let mut client = Client::new(hubspot());
    client.set_alarm("disarmed");
    client.advance(23 * HOUR_MS);
    assert_eq!(client.world.ledger().rotations, 0);
    client.advance(3 * DAY_MS);
    assert_eq!(client.world.ledger().rotations, 3);
    // A poller resets the clock, so the job never acts on polled connections.
    client.poll();
    client.advance(HOUR_MS);
    let before = client.world.ledger().rotations;
    for _ in 0..100 {
        client.poll();
        client.advance(HOUR_MS / 2);
    }
    assert!(client.world.ledger().rotations <= before + 100);
}

/// §5.3: both signatures over the exact bytes, keys sorted; §5.4: 0, 3 and 9 s, 4xx is final.
#[test]
fn webhooks_are_signed_sorted_and_retried_on_the_documented_schedule() {
    use crate::domain::secret::{hex, hmac_sha256};
    let mut client = Client::new(hubspot());
    let body = json!({"provider_config_key": "hubspot", "connection_id": "x", "tags": {"z": "1", "a": "2"},
                      "credentials": {"type": "OAUTH2", "access_token": "a"}});
    client.send(Api::Nango, "POST", "/connections", &body);
    let sent = client.world.take_outbound();
    let key = client.world.keys().nango_webhook_signing_key;
    let mac = hex(&hmac_sha256(key.as_bytes(), &[&sent[0].body]));
    assert!(sent[0].headers.contains(&("x-nango-hmac-sha256".to_owned(), mac)));
    assert_eq!(
        String::from_utf8(sent[0].body.clone()).unwrap(),
        r#"{"authMode":"OAUTH2","connectionId":"x","environment":"prod","from":"nango","operation":"creation","provider":"hubspot","providerConfigKey":"hubspot","success":true,"tags":{"a":"2","z":"1"},"type":"auth"}"#
    );
    let mut at = Vec::new();
    client.world.webhook_answered(sent[0].id, Some(503));
    while let Some(due) = client.world.next_due().filter(|d| d.since(START) < MINUTE_MS) {
        client.world.advance_to(due);
        for webhook in client.world.take_outbound() {
            assert_eq!((webhook.id, &webhook.body), (sent[0].id, &sent[0].body));
            at.push(due.since(START));
            client.world.webhook_answered(webhook.id, None);
        }
    }
    assert_eq!(at, [3_000, 9_000]);
    let mut other = body.clone();
    other["connection_id"] = "y".into();
    client.send(Api::Nango, "POST", "/connections", &other);
    let id = client.world.take_outbound()[0].id;
    client.world.webhook_answered(id, Some(429));
    client.advance(MINUTE_MS);
    assert_eq!(client.world.take_outbound(), [], "4xx is never retried, 429 included");
}

/// §5.4: an attempt that nobody answers times out after 20 s and is tried again.
#[test]
fn an_unanswered_webhook_times_out() {
    let mut client = Client::new(hubspot());
    let body = json!({"provider_config_key": "hubspot", "credentials": {"type": "OAUTH2", "access_token": "a"}});
    client.send(Api::Nango, "POST", "/connections", &body);
    assert_eq!(client.world.take_outbound().len(), 1);
    client.advance(20_000);
    assert_eq!(client.world.take_outbound(), []);
    client.advance(3_000);
    assert_eq!(client.world.take_outbound()[0].attempt, 2);
}

/// §5.3, the contract's own vectors for both headers.
#[test]
fn signatures_agree_with_the_contract() {
    let body = r#"{"authMode":"OAUTH2","connectionId":"b7a3d0c4-52f1-4a68-9c0e-1f6d2e8a7713","endUser":{"endUserEmail":null,"endUserId":"acme__hubspot__default","tags":{}},"environment":"prod","from":"nango","operation":"creation","provider":"hubspot","providerConfigKey":"hubspot","success":true,"tags":{"end_user_id":"acme__hubspot__default"},"type":"auth"}"#;
    let mut world = hubspot();
    world.nango.signing_key = "7b0d9f52-3c41-4e8a-9d26-5a1f0c3e7b48".into();
    assert_eq!(
        world.nango.signatures(body.as_bytes(), START),
        (
            "93b494e71bfb8ff61dfc62f545874e2157a9b86ea206547229840b1c0c3ec030".into(),
            "a12757d580052348ec06f4b25832ef42bc16bf372cf341a0fcc5799d65fbbf85".into()
        )
    );
}

/// §6.1: Salesforce names no expiry; each read introspects and refreshes inside the hidden margin.
#[test]
fn salesforce_hides_its_expiry_under_the_catalogue_s_lives() {
    let mut settings = config(vec![row("kahuna", "salesforce", &["salesforce"])]);
    settings.token_life = TokenLife::Catalogue;
    let mut client = Client::new(World::new(settings));
    let target = "/connections/kahuna__salesforce__default?provider_config_key=salesforce";
    let first = client.nango("GET", target).value();
    assert!(first["credentials"].get("expires_at").is_none());
    assert_eq!(first["connection_config"]["instance_url"], "https://kahuna.my.salesforce.example");
    client.advance(2 * HOUR_MS - 14 * MINUTE_MS);
    assert_ne!(client.nango("GET", target).value()["credentials"], first["credentials"]);
}

/// §3: sessions need tags or an end user, known integrations, and live 30 minutes.
#[test]
fn connect_sessions_are_opaque_and_short() {
    let mut client = Client::new(hubspot());
    assert_eq!(client.send(Api::Nango, "POST", "/connect/sessions", &json!({})).status, 400);
    let unknown = json!({"tags": {"a": "b"}, "allowed_integrations": ["zzz"]});
    let refused = client.send(Api::Nango, "POST", "/connect/sessions", &unknown).value();
    assert_eq!(refused["error"]["errors"][0]["path"], json!(["allowed_integrations", "0"]));
    let made = client.send(Api::Nango, "POST", "/connect/sessions", &json!({"tags": {"a": "b"}})).value();
    let token = made["data"]["token"].as_str().unwrap().to_owned();
    assert_eq!(token.len(), "nango_connect_session_".len() + 64);
    let own = Call::new("GET", "/connect/session").with_header("authorization", &format!("Bearer {token}"));
    assert_eq!(client.ask(Api::Nango, &own).status, 200);
    client.advance(30 * MINUTE_MS + 1);
    assert_eq!(client.ask(Api::Nango, &own).status, 401);
}
