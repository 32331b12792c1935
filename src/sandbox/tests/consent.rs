//! People's consent through Nango, told answers, and the settings of an environment.

use super::*;
use crate::domain::time::SECOND_MS;
use crate::sandbox::{NangoSettings, NangoVersion};

fn nango_world(change: impl FnOnce(&mut NangoSettings)) -> Client {
    let mut options = WorldOptions::default();
    change(&mut options.nango);
    Client::new(World::with_options(config(vec![row("kahuna", "hubspot", &["hubspot"])]), options))
}

fn told(client: &mut Client, what: &str) {
    let script = json!({"integration": "hubspot", "token_answer": what});
    client.world.add_token_script(serde_json::from_value(script).unwrap()).unwrap();
}

fn script(client: &mut Client, value: Value) {
    client.world.add_script(serde_json::from_value(value).unwrap()).unwrap();
}

/// What was sent, as JSON; each answered with 200.
pub(super) fn webhooks(client: &mut Client) -> Vec<Value> {
    let sent = client.world.take_outbound();
    sent.iter().for_each(|w| client.world.webhook_answered(w.id, Some(200)));
    sent.iter().map(|w| serde_json::from_slice(&w.body).unwrap()).collect()
}

fn session(client: &mut Client, body: &Value) -> String {
    let made = client.send(Api::Nango, "POST", "/connect/sessions", body);
    assert_eq!(made.status, 201, "{}", made.value());
    made.value()["data"]["token"].as_str().unwrap().to_owned()
}

/// The browser's way to the provider and back: the callback's target.
fn consent(client: &mut Client, token: &str) -> String {
    let target = format!("/oauth/connect/hubspot?connect_session_token={token}");
    let to_provider = client.nango("GET", &target).header("location").unwrap().to_owned();
    let call = Call::new("GET", to_provider.strip_prefix("https:/").unwrap());
    let back = client.ask(Api::Provider, &call).header("location").unwrap().to_owned();
    back.strip_prefix("https://api.nango.example").unwrap().to_owned()
}

/// §3: the id is Nango's, the triplet stands in the tags, and the person is the one whom they name.
#[test]
fn a_consent_through_nango_makes_a_connection_that_only_the_tags_name() {
    let mut client = Client::new(hubspot());
    client.nango("DELETE", CONNECTION);
    webhooks(&mut client);
    let body = json!({"tags": {"end_user_id": "kahuna__hubspot__default"}, "allowed_integrations": ["hubspot"]});
    let token = session(&mut client, &body);
    let back = consent(&mut client, &token);
    assert_eq!(client.nango("GET", &back).status, 200);
    assert_eq!(client.nango("GET", &back).status, 400, "a state works once");
    let sent = webhooks(&mut client);
    let creation = &sent[0];
    assert_eq!((&creation["operation"], creation.get("endUser")), (&json!("creation"), None));
    let found = client.nango("GET", "/connections?tags[end_user_id]=kahuna__hubspot__default").value();
    let made = &found["connections"][0];
    assert_eq!(made["connection_id"], creation["connectionId"]);
    assert_eq!((&made["metadata"], made["connection_id"].as_str().unwrap().len()), (&json!(null), 36));
    let shown = client
        .nango("GET", &format!("/connections/{}?provider_config_key=hubspot", made["connection_id"].as_str().unwrap()))
        .value();
    let token = client.world.providers.find(shown["credentials"]["access_token"].as_str().unwrap()).unwrap();
    assert_eq!(client.world.providers.grants[token.grant].user, client.world.rows[0].user);
    assert_eq!(client.world.rows[0].grant, token.grant, "the row's grant is the new one");
}

/// §3 and §5.1: what came with the session is told; a reconnect without tags wipes them.
#[test]
fn a_session_s_end_user_is_told_and_a_reconnect_without_tags_wipes_them() {
    let mut client = Client::new(hubspot());
    let body = json!({"end_user": {"id": "u", "email": "u@example.com"}, "organization": {"id": "o"},
                      "webhook_url_override": "http://127.0.0.1:1/own"});
    let token = session(&mut client, &body);
    let back = consent(&mut client, &token);
    client.nango("GET", &back);
    let sent = client.world.take_outbound();
    assert_eq!((sent.len(), sent[0].url.as_str()), (1, "http://127.0.0.1:1/own"));
    let creation: Value = serde_json::from_slice(&sent[0].body).unwrap();
    client.world.webhook_answered(sent[0].id, Some(200));
    assert_eq!(
        creation["endUser"],
        json!({"endUserId": "u", "endUserEmail": "u@example.com", "organizationId": "o", "tags": {}})
    );
    let id = creation["connectionId"].as_str().unwrap().to_owned();
    let target = format!("/connections/{id}?provider_config_key=hubspot");
    let before = client.nango("GET", &target).value();
    let body = json!({"connection_id": id, "integration_id": "hubspot"});
    let made = client.send(Api::Nango, "POST", "/connect/sessions/reconnect", &body).value();
    let back = consent(&mut client, made["data"]["token"].as_str().unwrap());
    assert_eq!(client.nango("GET", &back).status, 200);
    let sent = webhooks(&mut client);
    assert_eq!(
        (&sent[0]["operation"], &sent[0]["tags"], sent[0].get("endUser")),
        (&json!("override"), &json!({}), None)
    );
    let after = client.nango("GET", &target).value();
    assert_eq!((&after["tags"], &after["webhook_url_override"]), (&json!({}), &json!(null)));
    assert_eq!(
        (&after["id"], &after["end_user"], &after["updated_at"]),
        (&before["id"], &before["end_user"], &before["updated_at"])
    );
    assert_ne!(after["credentials"]["access_token"], before["credentials"]["access_token"]);
}

/// §4 and §5.2: a failed attempt stores nothing and is told under an id that nobody finds.
#[test]
fn a_failed_consent_is_told_as_a_failed_creation() {
    let mut client = Client::new(hubspot());
    let before = client.nango("GET", "/connections").value();
    let token = session(&mut client, &json!({"tags": {"a": "b"}}));
    let back = consent(&mut client, &token);
    told(&mut client, "invalid-grant");
    assert_eq!(client.nango("GET", &back).status, 400);
    let back = consent(&mut client, &token);
    let state = back.split("state=").nth(1).unwrap();
    assert_eq!(client.nango("GET", &format!("/oauth/callback?error=access_denied&state={state}")).status, 400);
    let sent = webhooks(&mut client);
    let kinds: Vec<&Value> = sent.iter().map(|b| &b["error"]["type"]).collect();
    assert_eq!(kinds, ["unknown", "invalid_callback"]);
    assert!(sent.iter().all(|b| b["operation"] == "creation" && b["success"] == false && b.get("tags").is_none()));
    assert_eq!(client.nango("GET", "/connections").value(), before);
}

/// §3: what a session does not allow, and what a frontend may not say.
#[test]
fn a_session_opens_only_what_it_allows() {
    let mut client = Client::new(hubspot());
    let token = session(&mut client, &json!({"tags": {"a": "b"}, "allowed_integrations": ["google"]}));
    let ask = |client: &mut Client, target: String| {
        let reply = client.nango("GET", &target);
        (reply.status, reply.value()["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    let refused = ask(&mut client, format!("/oauth/connect/hubspot?connect_session_token={token}"));
    assert_eq!(refused, (400, "integration_not_allowed".into()));
    let named = ask(&mut client, format!("/oauth/connect/google?connect_session_token={token}&connection_id=x"));
    assert_eq!(named, (400, "invalid_query_params".into()));
    assert_eq!(ask(&mut client, "/oauth/connect/google?connect_session_token=x".into()).0, 401);
    let page = client.nango("GET", &format!("/?session_token={token}"));
    let page = String::from_utf8(page.body).unwrap();
    assert!(page.contains("/oauth/connect/google?") && !page.contains("/oauth/connect/hubspot"));
    for bad in [
        json!({"tags": {"a": 1}}),
        json!({"tags": {"1a": "x"}}),
        json!({"tags": {"a": ""}}),
        json!({"tags": {"end_user_email": "nobody"}}),
        json!({"tags": (0..11).map(|n| (format!("t{n}"), json!("x"))).collect::<serde_json::Map<_, _>>()}),
        json!({"tags": {}, "unknown": 1}),
        json!({"end_user": {"email": "a@b"}}),
        json!({"tags": {}, "webhook_url_override": "https://api.nango.dev/x"}),
    ] {
        assert_eq!(client.send(Api::Nango, "POST", "/connect/sessions", &bad).status, 400, "{bad}");
    }
}

/// §6.4: what the provider answers decides between 400 and 500, and every answer is told.
#[test]
fn each_kind_of_provider_failure_has_its_answer() {
    for (what, status, kind) in [
        ("invalid-grant", 400, "refresh_token_external_error"),
        ("invalid-client", 400, "refresh_token_external_error"),
        ("too-many-requests", 400, "refresh_token_external_error"),
        ("unavailable", 400, "refresh_token_external_error"),
        ("html", 400, "refresh_token_external_error"),
        ("no-token", 500, "unhandled_refresh_token_parsing_error"),
    ] {
        let mut client = Client::new(hubspot());
        told(&mut client, what);
        let reply = client.nango("GET", &format!("{CONNECTION}&force_refresh=true"));
        assert_eq!((reply.status, &reply.value()["error"]["code"]), (status, &json!("invalid_credentials")), "{what}");
        assert_eq!(webhooks(&mut client)[0]["error"]["type"], kind, "{what}");
        assert_eq!(client.nango("GET", &format!("{CONNECTION}&force_refresh=true")).status, 200, "told once");
    }
}

/// §6.1: no life in the answer ends refreshing by reads; no refresh token in it keeps the old one.
#[test]
fn what_an_answer_leaves_out_is_kept_or_lost() {
    let mut client = Client::new(hubspot());
    let rotating = format!("{CONNECTION}&force_refresh=true&refresh_token=true");
    told(&mut client, "rotate");
    let first = client.nango("GET", &rotating).value()["credentials"].clone();
    told(&mut client, "rotate");
    let second = client.nango("GET", &rotating).value()["credentials"].clone();
    assert_ne!(first["refresh_token"], second["refresh_token"]);
    told(&mut client, "keep-refresh-token");
    let third = client.nango("GET", &rotating).value()["credentials"].clone();
    assert_eq!(third["refresh_token"], second["refresh_token"]);
    assert!(third["raw"].get("refresh_token").is_none() && third["access_token"] != second["access_token"]);
    told(&mut client, "no-expiry");
    let endless = client.nango("GET", &rotating).value()["credentials"].clone();
    assert!(endless.get("expires_at").is_none());
    client.set_alarm("disarmed");
    client.advance(3 * HOUR_MS);
    assert_eq!(client.nango("GET", CONNECTION).value()["credentials"]["access_token"], endless["access_token"]);
}

/// §2.2: a connection's own OAuth app wins; one that the grant does not belong to is refused.
#[test]
fn a_refresh_with_another_oauth_app_is_refused_by_the_provider() {
    let mut client = Client::new(hubspot());
    let before = client.nango("GET", &format!("{CONNECTION}&refresh_token=true")).value();
    let other = client.world.keys().composio_clients["hubspot"].clone();
    let app = json!({"type": "OAUTH2", "client_id": other.client_id, "client_secret": other.client_secret});
    let patched = client.send(Api::Nango, "PATCH", "/integrations/hubspot", &json!({"credentials": app}));
    assert_eq!(patched.status, 200);
    assert_eq!(client.nango("GET", &format!("{CONNECTION}&force_refresh=true")).status, 400);
    let own = client.world.keys().legacy_clients["hubspot"].clone();
    let credentials = json!({"type": "OAUTH2", "access_token": before["credentials"]["access_token"],
                             "refresh_token": before["credentials"]["refresh_token"],
                             "config_override": {"client_id": own.client_id, "client_secret": own.client_secret}});
    let body = json!({"provider_config_key": "hubspot", "connection_id": "kahuna__hubspot__default", "credentials": credentials});
    assert_eq!(client.send(Api::Nango, "POST", "/connections", &body).status, 201);
    assert_eq!(client.nango("GET", &format!("{CONNECTION}&force_refresh=true")).status, 200);
}

/// §4: an integration's name, its secret switches, and who may rename it.
#[test]
fn an_integration_is_patched_field_by_field_and_not_renamed_while_in_use() {
    let mut client = Client::new(hubspot());
    let patch = |client: &mut Client, body: Value| client.send(Api::Nango, "PATCH", "/integrations/hubspot", &body);
    assert_eq!(patch(&mut client, json!({"unique_key": "other"})).status, 400);
    assert_eq!(patch(&mut client, json!({"unknown": 1})).status, 400);
    assert_eq!(patch(&mut client, json!({"credentials": {"type": "API_KEY"}})).status, 400);
    client.advance(SECOND_MS);
    let shown = patch(&mut client, json!({"display_name": "CRM", "forward_webhooks": false})).value()["data"].clone();
    assert_eq!((&shown["display_name"], &shown["forward_webhooks"]), (&json!("CRM"), &json!(false)));
    assert!(shown["updated_at"].as_str() > shown["created_at"].as_str());
    client.nango("DELETE", CONNECTION);
    assert_eq!(patch(&mut client, json!({"unique_key": "other"})).value()["data"]["unique_key"], "other");
    assert_eq!(client.nango("GET", "/integrations/hubspot").status, 404);
    assert_eq!(client.send(Api::Nango, "PATCH", "/integrations/none", &json!({})).status, 404);
}

/// §2.3 and §2.5: odd ids are taken, long ones fail, the flat body still works, the plan caps.
#[test]
fn imports_take_odd_ids_and_the_older_body_up_to_the_plan_s_cap() {
    let mut client = nango_world(|nango| nango.connections_max = Some(3));
    let import = |client: &mut Client, id: &str| {
        let credentials = json!({"type": "OAUTH2", "access_token": "a"});
        let body = json!({"provider_config_key": "hubspot", "connection_id": id, "credentials": credentials});
        let reply = client.send(Api::Nango, "POST", "/connections", &body);
        (reply.status, reply.value()["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(import(&mut client, &"x".repeat(256)).0, 500);
    assert_eq!(import(&mut client, "bad#id?").0, 201);
    let flat = json!({"provider_config_key": "hubspot", "connection_id": "flat", "access_token": "a"});
    assert_eq!(client.send(Api::Nango, "POST", "/connection", &flat).status, 201);
    assert_eq!(import(&mut client, "one-more"), (400, "resource_capped".into()));
    assert_eq!(import(&mut client, "flat").0, 201, "an override adds none");
    assert_eq!(client.send(Api::Nango, "POST", "/connect/sessions", &json!({"tags": {"a": "b"}})).status, 400);
}

/// §5.2: which webhooks a version and a switch send.
#[test]
fn later_servers_tell_of_recoveries_and_deletions() {
    for (version, deletion, expected) in [
        (NangoVersion::V0_71_4, true, vec![]),
        (NangoVersion::V0_71_5, true, vec!["refresh"]),
        (NangoVersion::V0_71_6, false, vec!["refresh"]),
        (NangoVersion::V0_71_6, true, vec!["refresh", "deletion"]),
    ] {
        let mut client = nango_world(|nango| {
            nango.version = version;
            nango.on_auth_refresh_error = true;
            nango.on_connection_deletion = deletion;
        });
        told(&mut client, "invalid-grant");
        client.nango("GET", &format!("{CONNECTION}&force_refresh=true"));
        assert_eq!(webhooks(&mut client)[0]["success"], false);
        client.nango("GET", &format!("{CONNECTION}&force_refresh=true"));
        client.nango("DELETE", CONNECTION);
        let sent: Vec<String> =
            webhooks(&mut client).iter().map(|b| b["operation"].as_str().unwrap().to_owned()).collect();
        assert_eq!(sent, expected, "{version:?} {deletion}");
    }
    let mut client = nango_world(|nango| nango.on_auth_refresh_error = false);
    told(&mut client, "invalid-grant");
    client.nango("GET", &format!("{CONNECTION}&force_refresh=true"));
    assert_eq!(webhooks(&mut client), Vec::<Value>::new());
}

/// §5.4: the second address waits until the first has had its attempts.
#[test]
fn the_secondary_address_comes_after_the_primary_s_last_attempt() {
    let mut client = nango_world(|nango| nango.secondary_webhook_url = Some("http://second.example/w".into()));
    told(&mut client, "invalid-grant");
    client.nango("GET", &format!("{CONNECTION}&force_refresh=true"));
    let mut seen = Vec::new();
    for _ in 0..40 {
        loop {
            let due = client.world.take_outbound();
            if due.is_empty() {
                break;
            }
            for webhook in due {
                seen.push((client.world.now().since(START) / SECOND_MS, webhook.url.contains("second")));
                client.world.webhook_answered(webhook.id, Some(503));
            }
        }
        client.advance(SECOND_MS);
    }
    let expected = [(0, false), (3, false), (9, false), (9, true), (12, true), (18, true)];
    assert_eq!(seen, expected);
}

/// §5.3: for five minutes after a rotation webhooks may still carry the old key's signature.
#[test]
fn a_rotated_signing_key_is_cached_for_five_minutes() {
    let mut client = Client::new(hubspot());
    let old = client.world.nango.signatures(b"x", client.world.now());
    let rotated = client.nango("POST", "/environment/webhook-signing-key/rotate").value();
    assert!(rotated["data"]["webhook_signing_key"].is_string());
    assert_eq!(client.world.nango.signatures(b"x", client.world.now()), old);
    client.advance(5 * MINUTE_MS);
    assert_ne!(client.world.nango.signatures(b"x", client.world.now()), old);
}

/// §1.2: a key does what its scopes say, by prefix too.
#[test]
fn scoped_keys_do_what_their_scopes_say() {
    let mut client = Client::new(hubspot());
    let key = client.world.add_nango_key(vec!["connections:*".into(), "integrations:read".into()]);
    let mut ask = |method: &str, target: &str| {
        let call = Call::new(method, target).with_header("authorization", &format!("Bearer {key}"));
        let reply = client.ask(Api::Nango, &call);
        (reply.status, reply.value())
    };
    assert_eq!(ask("GET", CONNECTION).0, 200);
    let (status, shown) = ask("GET", "/integrations/hubspot?include=credentials");
    assert!(status == 200 && shown["data"].get("credentials").is_none(), "left out without a word");
    let (status, refused) = ask("GET", "/integrations");
    assert_eq!((status, &refused["error"]["code"]), (403, &json!("forbidden")));
}

/// Told answers strike the requests that they name, as often as told.
#[test]
fn told_answers_strike_once_and_after_the_effect_where_told() {
    let mut client = Client::new(hubspot());
    script(&mut client, json!({"api": "nango", "method": "DELETE", "path": "/connections/", "answer": "fail-after"}));
    assert_eq!(client.nango("GET", CONNECTION).status, 200);
    assert_eq!(client.nango("DELETE", CONNECTION).status, 500);
    assert_eq!(client.nango("GET", CONNECTION).status, 404, "it was deleted all the same");
    for (api, answer, status) in [
        ("nango", "rate-limited", 429),
        ("nango", "html", 200),
        ("composio", "rate-limited-bare", 429),
        ("composio", "lease-held", 409),
        ("cloudflare", "fail-before", 500),
        ("gateway", "fail-before", 500),
        ("provider", "rate-limited", 429),
    ] {
        script(&mut client, json!({"api": api, "answer": answer, "times": 2}));
        let of = Api::ALL.into_iter().find(|a| a.name() == api).unwrap();
        for _ in 0..2 {
            assert_eq!(client.call(of, "GET", "/health").status, status, "{api} {answer}");
        }
        let then = client.call(of, "GET", "/health");
        assert!(then.status != status || then.header("content-type") != Some("text/html; charset=utf-8"), "{api}");
    }
    for bad in [json!({"api": "nango", "answer": "x"}), json!({"api": "nango", "answer": "html", "time": 2})] {
        assert!(serde_json::from_value::<crate::sandbox::Script>(bad).is_err());
    }
    let nobody = json!({"api": "nanga", "answer": "html"});
    assert!(client.world.add_script(serde_json::from_value(nobody).unwrap()).is_err());
    let nobody = json!({"integration": "hubspat", "token_answer": "html"});
    assert!(client.world.add_token_script(serde_json::from_value(nobody).unwrap()).is_err());
}

/// §6.2: a provider that takes longer than the lock lets two processes refresh one grant.
#[test]
fn a_slow_provider_is_asked_twice_which_kills_a_grant_that_spends_its_tokens() {
    for (key, status) in [("hubspot", 200), ("gong-oauth", 400)] {
        let mut client = Client::new(World::new(config(vec![row("kahuna", key, &["p"])])));
        let script = json!({"integration": key, "token_answer": "slow"});
        client.world.add_token_script(serde_json::from_value(script).unwrap()).unwrap();
        let target = format!("/connections/kahuna__{key}__default?provider_config_key={key}&force_refresh=true");
        assert_eq!(client.nango("GET", &target).status, status, "{key}");
    }
}
