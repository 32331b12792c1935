//! Composio's switches: what its contract leaves open, its verifier, leases, links and keys.

use super::consent::webhooks;
use super::*;
use crate::domain::time::SECOND_MS;
use crate::sandbox::{ComposioSettings, Oauth2Import, UnknownQuery};

fn composio_world(change: impl FnOnce(&mut ComposioSettings)) -> Client {
    let mut options = WorldOptions::default();
    change(&mut options.composio);
    Client::new(World::with_options(config(vec![row("kahuna", "hubspot", &["hubspot"])]), options))
}

fn auth_config(client: &mut Client, scheme: &str) -> String {
    let app = client.world.keys().legacy_clients["hubspot"].clone();
    let credentials = json!({"client_id": app.client_id, "client_secret": app.client_secret, "scopes": ["oauth"]});
    let wanted = json!({"type": "use_custom_auth", "name": scheme, "authScheme": scheme, "credentials": credentials});
    let body = json!({"toolkit": {"slug": "hubspot"}, "auth_config": wanted});
    client.composio("POST", "/auth_configs", &body).value()["auth_config"]["id"].as_str().unwrap().to_owned()
}

fn account(client: &mut Client, scheme: &str, val: &Value) -> Reply {
    let config = auth_config(client, scheme);
    let state = json!({"authScheme": scheme, "val": val});
    let body = json!({"auth_config": {"id": config}, "connection": {"user_id": "kahuna", "state": state}});
    client.composio("POST", "/connected_accounts", &body)
}

fn bearer(client: &mut Client) -> String {
    let token = client.poll();
    account(client, "BEARER_TOKEN", &json!({"status": "ACTIVE", "token": token})).value()["id"].as_str().unwrap().into()
}

fn status_of(client: &mut Client, id: &str) -> String {
    let shown = client.call(Api::Composio, "GET", &format!("/api/v3.1/connected_accounts/{id}")).value();
    shown["status"].as_str().unwrap_or("gone").to_owned()
}

fn push(client: &mut Client, id: &str, token: &str) -> Reply {
    let body = json!({"connection": {"state": {"authScheme": "BEARER_TOKEN", "val": {"token": token}}}});
    client.composio("PATCH", &format!("/connected_accounts/{id}"), &body)
}

/// §4: four outcomes of bringing an OAuth2 grant along.
#[test]
fn an_imported_oauth2_grant_ends_as_the_switch_says() {
    for (switch, status, later) in [
        (Oauth2Import::Reject, 400, ""),
        (Oauth2Import::StuckInitiated, 201, "INITIATED"),
        (Oauth2Import::ActiveNoRefresh, 201, "ACTIVE"),
        (Oauth2Import::ActiveRefresh, 201, "ACTIVE"),
    ] {
        let mut client = composio_world(|composio| composio.oauth2_import = switch);
        client.set_alarm("disarmed");
        let shown = client.nango("GET", &format!("{CONNECTION}&refresh_token=true")).value();
        let val = json!({"status": "ACTIVE", "access_token": shown["credentials"]["access_token"],
                         "refresh_token": shown["credentials"]["refresh_token"]});
        let made = account(&mut client, "OAUTH2", &val);
        assert_eq!(made.status, status, "{switch:?}");
        if status == 400 {
            continue;
        }
        let id = made.value()["id"].as_str().unwrap().to_owned();
        client.advance(3 * HOUR_MS);
        assert_eq!(status_of(&mut client, &id), later, "{switch:?}");
        let served = client.world.composio.served_token(&id).and_then(|text| client.world.providers.find(text));
        let works =
            served.is_some_and(|t| client.world.providers.dead_from(&t).is_none_or(|at| at > client.world.now()));
        assert_eq!(works, switch == Oauth2Import::ActiveRefresh, "{switch:?}");
    }
}

/// §3.4: one writer at a time, and nothing that Composio itself has shown.
#[test]
fn a_write_lease_keeps_the_second_writer_out() {
    let mut client = composio_world(|composio| composio.write_lease_ms = 500);
    let id = bearer(&mut client);
    let token = client.poll();
    assert_eq!(push(&mut client, &id, &token).status, 200);
    let held = push(&mut client, &id, &token);
    assert_eq!((held.status, &held.value()["error"]["slug"]), (409, &json!("ConnectedAccount_WriteLeaseHeld")));
    let status = format!("/connected_accounts/{id}/status");
    assert_eq!(client.composio("PATCH", &status, &json!({"enabled": false})).status, 409);
    client.advance(500);
    assert_eq!(push(&mut client, &id, &token).status, 200);
    client.advance(500);
    for shown in ["REDACTED", "ya29..."] {
        assert_eq!(push(&mut client, &id, shown).status, 400, "{shown}");
    }
    assert_eq!(push(&mut client, &id, &token).status, 200, "a refused write holds nothing");
}

/// §3.4, §3.5: whether the provider is asked before a credential is stored.
#[test]
fn credentials_are_checked_where_the_switches_say() {
    let mut client = composio_world(|composio| {
        composio.credential_check_on_create = true;
        composio.patch_validates = true;
    });
    client.set_alarm("disarmed");
    let (id, old) = (bearer(&mut client), client.poll());
    client.advance(2 * HOUR_MS);
    let refused = push(&mut client, &id, &old);
    let slug = json!("ConnectedAccount_CredentialValidationRejected");
    assert_eq!((refused.status, &refused.value()["error"]["slug"]), (400, &slug));
    let created = account(&mut client, "BEARER_TOKEN", &json!({"status": "ACTIVE", "token": old}));
    assert_eq!((created.status, &created.value()["error"]["slug"]), (400, &slug));
    let fresh = client.poll();
    assert_eq!(push(&mut client, &id, &fresh).status, 200);
}

/// §3.6: with a verifier the account waits for it, and the wrong user ends the attempt for good.
#[test]
fn a_verifier_decides_who_the_person_is() {
    for (user, status, ends) in [("kahuna", 200, "ACTIVE"), ("somebody", 400, "FAILED")] {
        let mut client = composio_world(|composio| composio.verifier_url = Some("https://app.example/verify".into()));
        let config = auth_config(&mut client, "OAUTH2");
        let link = |client: &mut Client, user: &str| {
            let body = json!({"auth_config_id": config, "user_id": user, "callback_url": "https://app.example/cb"});
            client.composio("POST", "/connected_accounts/link", &body)
        };
        assert_eq!(link(&mut client, "default").status, 400);
        let made = link(&mut client, "kahuna").value();
        let id = made["connected_account_id"].as_str().unwrap().to_owned();
        let page = made["redirect_url"].as_str().unwrap().strip_prefix("https://connect.composio.example").unwrap();
        let sent = client.call(Api::Composio, "GET", page).header("location").unwrap().to_owned();
        let uri = sent.strip_prefix("https://app.example/verify?session_uri=").unwrap();
        let uri = percent_encoding::percent_decode_str(uri).decode_utf8().unwrap().into_owned();
        assert_eq!(status_of(&mut client, &id), "INITIATED");
        let body = json!({"session_uri": uri, "user_id": user});
        assert_eq!(client.composio("POST", "/connected_accounts/complete_auth", &body).status, status);
        assert_eq!(status_of(&mut client, &id), ends);
        assert_eq!(client.composio("POST", "/connected_accounts/complete_auth", &body).status, 404, "single use");
    }
    // Nobody redeems it: the attempt ends with the link's life.
    let mut client = composio_world(|composio| composio.verifier_url = Some("https://app.example/verify".into()));
    let config = auth_config(&mut client, "OAUTH2");
    let body = json!({"auth_config_id": config, "user_id": "kahuna"});
    let made = client.composio("POST", "/connected_accounts/link", &body).value();
    client.advance(11 * MINUTE_MS);
    assert_eq!(status_of(&mut client, made["connected_account_id"].as_str().unwrap()), "EXPIRED");
}

/// §3.6: the browser comes back with the outcome beside the caller's own parameters.
#[test]
fn a_followed_link_activates_and_returns_to_the_caller() {
    let mut client = Client::new(hubspot());
    let config = auth_config(&mut client, "OAUTH2");
    let body = json!({"auth_config_id": config, "user_id": "kahuna", "callback_url": "https://app.example/cb?flow=1"});
    let made = client.composio("POST", "/connected_accounts/link", &body).value();
    let page =
        made["redirect_url"].as_str().unwrap().strip_prefix("https://connect.composio.example").unwrap().to_owned();
    let id = made["connected_account_id"].as_str().unwrap();
    let back = client.call(Api::Composio, "GET", &page);
    let expected = format!("https://app.example/cb?flow=1&status=success&connected_account_id={id}");
    assert_eq!((back.status, back.header("location")), (302, Some(expected.as_str())));
    assert_eq!(status_of(&mut client, id), "ACTIVE");
    assert_eq!(client.call(Api::Composio, "GET", &page).status, 404, "a link works once");
}

/// §3.7 and §5: ACTIVE outlives a dead grant, the webhook comes in copies, signed for its attempt.
#[test]
fn a_dead_grant_shows_late_and_its_webhook_is_signed_anew_for_each_attempt() {
    let mut client = composio_world(|composio| {
        composio.failures_before_expired = 3;
        composio.duplicate_webhooks = true;
        composio.rotation_overlap_secs = 3_600;
        composio.webhook_retry_schedule_ms = vec![10 * SECOND_MS];
    });
    client.nango("DELETE", CONNECTION);
    webhooks(&mut client);
    let wanted =
        json!({"webhook_url": "https://hooks.example/c", "enabled_events": ["composio.connected_account.expired"]});
    let made = client.composio("POST", "/webhook_subscriptions", &wanted).value();
    let rotated = client
        .composio("POST", &format!("/webhook_subscriptions/{}/rotate_secret", made["id"].as_str().unwrap()), &json!({}))
        .value();
    assert_ne!(rotated["secret"], made["secret"]);
    let config = auth_config(&mut client, "OAUTH2");
    let link =
        client.composio("POST", "/connected_accounts/link", &json!({"auth_config_id": config, "user_id": "kahuna"}));
    let id = link.value()["connected_account_id"].as_str().unwrap().to_owned();
    client.advance(6 * MINUTE_MS);
    let grant = client.world.composio.accounts[client.world.composio.by_id[&id]].grant.unwrap();
    client.world.providers.grants[grant].revoked_at = Some(client.world.now());
    let mut expired_after = 0;
    while status_of(&mut client, &id) == "ACTIVE" {
        client.advance(MINUTE_MS);
        expired_after += 1;
    }
    assert!((60..75).contains(&expired_after), "{expired_after}: ten minutes after the first failure");
    let sent = client.world.take_outbound();
    assert_eq!((sent.len(), &sent[0].body), (2, &sent[1].body), "a copy");
    let header = |w: &crate::sandbox::OutboundWebhook, name: &str| {
        w.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()).unwrap_or_default()
    };
    // An hour has passed since the rotation, so the old secret does not sign along any more.
    assert_eq!(header(&sent[0], "webhook-signature").split(' ').count(), 1);
    client.world.webhook_answered(sent[1].id, Some(200));
    client.world.webhook_answered(sent[0].id, Some(500));
    client.advance(10 * SECOND_MS);
    let again = client.world.take_outbound();
    assert_eq!((again.len(), header(&again[0], "webhook-id")), (1, header(&sent[0], "webhook-id")));
    let at = |w| header(w, "webhook-timestamp").parse::<i64>().unwrap();
    assert_eq!(at(&again[0]) - at(&sent[0]), 10);
    assert_ne!(header(&again[0], "webhook-signature"), header(&sent[0], "webhook-signature"));
}

/// §1.1: the permission matrix of a scoped key, and what a member's key opens.
#[test]
fn a_scoped_composio_key_opens_its_areas_only() {
    let mut client = composio_world(|composio| composio.session_info_accepts_project_key = false);
    let reader = client.world.add_composio_key(vec!["connected_accounts:read".into(), "auth_configs:write".into()]);
    let member = client.world.keys().composio_user_key;
    let project = client.world.keys().composio_api_key;
    let ask = |client: &mut Client, header: &str, key: &str, method: &str, target: &str| {
        let call = Call::new(method, &format!("/api/v3.1{target}")).with_header(header, key);
        client.ask(Api::Composio, &call).status
    };
    for (method, target, status) in [
        ("GET", "/connected_accounts", 200),
        ("DELETE", "/connected_accounts/ca_x", 403),
        ("GET", "/auth_configs", 200),
        ("DELETE", "/auth_configs/ac_x", 404),
        ("GET", "/toolkits", 403),
        ("POST", "/tools/execute/proxy", 403),
        ("GET", "/webhook_subscriptions", 403),
        ("GET", "/org/project/config", 403),
        ("GET", "/auth/session/info", 403),
    ] {
        assert_eq!(ask(&mut client, "x-api-key", &reader, method, target), status, "{method} {target}");
    }
    assert_eq!(ask(&mut client, "x-user-api-key", &member, "GET", "/auth/session/info"), 200);
    assert_eq!(ask(&mut client, "x-user-api-key", &member, "GET", "/auth_configs"), 401);
    assert_eq!(ask(&mut client, "x-api-key", &project, "GET", "/auth/session/info"), 403);
    assert_eq!(ask(&mut client, "x-api-key", &project, "GET", "/org/project/config"), 200);
}

/// §1.3: an unknown parameter is ignored, or refused where the switch says so.
#[test]
fn unknown_query_parameters_follow_the_switch() {
    for (switch, status) in [(UnknownQuery::Ignore, 200), (UnknownQuery::Reject, 400)] {
        let mut client = composio_world(|composio| composio.unknown_query = switch);
        let reply = client.call(Api::Composio, "GET", "/api/v3.1/connected_accounts?user_id=x");
        assert_eq!(reply.status, status, "{switch:?}");
        assert_eq!(client.call(Api::Composio, "GET", "/api/v3.1/connected_accounts?user_ids=x&limit=2").status, 200);
    }
}

/// §3.4: whether a new token wakes an account that is down.
#[test]
fn a_new_token_wakes_an_account_where_the_switch_says() {
    for (switch, after) in [(false, "INACTIVE"), (true, "ACTIVE")] {
        let mut client = composio_world(|composio| composio.patch_reactivates_expired = switch);
        let id = bearer(&mut client);
        client.composio("PATCH", &format!("/connected_accounts/{id}/status"), &json!({"enabled": false}));
        let token = client.poll();
        assert_eq!(push(&mut client, &id, &token).value()["status"], after, "{switch}");
    }
}

/// §5: the old secret signs along for as long as the switch says; copies may arrive apart.
#[test]
fn the_old_secret_signs_along_and_copies_arrive_apart() {
    let mut client = composio_world(|composio| {
        composio.rotation_overlap_secs = 48 * 3_600;
        composio.duplicate_webhooks = true;
        composio.webhook_delay_max_ms = 30 * MINUTE_MS;
    });
    client.nango("DELETE", CONNECTION);
    webhooks(&mut client);
    let wanted =
        json!({"webhook_url": "https://hooks.example/c", "enabled_events": ["composio.connected_account.expired"]});
    let made = client.composio("POST", "/webhook_subscriptions", &wanted).value();
    let target = format!("/webhook_subscriptions/{}", made["id"].as_str().unwrap());
    client.composio("POST", &format!("{target}/rotate_secret"), &json!({}));
    for bad in
        [json!({"webhook_url": "http://far.example/"}), json!({"enabled_events": ["x"]}), json!({"version": "V4"})]
    {
        assert_eq!(client.composio("PATCH", &target, &bad).status, 400, "{bad}");
    }
    let config = auth_config(&mut client, "OAUTH2");
    client.composio("POST", "/connected_accounts/link", &json!({"auth_config_id": config, "user_id": "kahuna"}));
    // Every custodian is refused, the alarm that stands by as well.
    let script = json!({"integration": "hubspot", "token_answer": "invalid-grant", "times": 1_000});
    client.world.add_token_script(serde_json::from_value(script).unwrap()).unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 * 3_600 {
        client.advance(SECOND_MS);
        for webhook in client.world.take_outbound() {
            let signatures = webhook.headers.iter().find(|(n, _)| n == "webhook-signature").unwrap().1.clone();
            assert_eq!(signatures.split(' ').count(), 2);
            seen.push(client.world.now());
            client.world.webhook_answered(webhook.id, Some(200));
        }
    }
    assert!(seen.len() == 2 && seen[0] < seen[1], "{seen:?}");
}

/// §1.3: pages are offsets, so a row that comes in between is not seen and another is seen twice.
#[test]
fn pages_drift_when_something_is_made_between_them() {
    let mut client = Client::new(hubspot());
    for n in 0..4 {
        auth_config(&mut client, "BEARER_TOKEN");
        client.advance(n + 1);
    }
    let page = |client: &mut Client, cursor: &str| {
        let reply =
            client.call(Api::Composio, "GET", &format!("/api/v3.1/auth_configs?limit=2&cursor={cursor}")).value();
        let ids: Vec<String> =
            reply["items"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap().to_owned()).collect();
        (ids, reply["next_cursor"].as_str().unwrap_or_default().to_owned())
    };
    let (first, cursor) = page(&mut client, "");
    auth_config(&mut client, "BEARER_TOKEN");
    let (second, _) = page(&mut client, &cursor.replace('=', "%3D").replace('+', "%2B"));
    assert_eq!(first[1], second[0]);
}
