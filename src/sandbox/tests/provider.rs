//! The providers over HTTP: providers.md §1 to §3.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::*;

fn form(client: &mut Client, target: &str, pairs: &[(&str, &str)]) -> Reply {
    let body: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    client.ask(Api::Provider, &Call::new("POST", target).with_body("application/x-www-form-urlencoded", body))
}

/// Every integration of the catalogue: a live token shows its identity, a dead one is refused in
/// the provider's own words.
#[test]
fn every_whoami_of_the_catalogue_answers_with_its_identity_fields() {
    let catalogue = Catalogue::built_in();
    for (key, facts) in &catalogue.integrations {
        let providers: Vec<&str> = facts.provider.keys().map(String::as_str).collect();
        let mut client = Client::new(World::new(config(vec![row("kahuna", key, &providers)])));
        let shown =
            client.nango("GET", &format!("/connections/kahuna__{key}__default?provider_config_key={key}")).value();
        let token = shown["credentials"]["access_token"].as_str().unwrap();
        let mut url = facts.whoami.url.clone();
        for (name, value) in shown["connection_config"].as_object().unwrap() {
            url = url.replace(&format!("{{{name}}}"), value.as_str().unwrap());
        }
        let target = format!("/{}", url.strip_prefix("https://").unwrap());
        let call = Call::new(&facts.whoami.method, &target).with_header("authorization", &format!("Bearer {token}"));
        let reply = client.ask(Api::Provider, &call);
        assert_eq!(reply.status, 200, "{key}: {}", reply.value());
        assert!(
            crate::catalogue::identity::Identity::extract(
                &reply.value(),
                &facts.whoami,
                &crate::domain::secret::FingerprintKey::new([7; 32])
            )
            .is_ok(),
            "{key}"
        );
        let unknown = Call::new(&facts.whoami.method, &target).with_header("authorization", "Bearer nope");
        let refused = client.ask(Api::Provider, &unknown);
        assert!(matches!(refused.status, 401 | 403) || refused.value()["ok"] == false, "{key}");
        assert!(token.len() >= 40 && token.contains(crate::sandbox::CANARY), "{key}");
    }
}

/// §3.2: another org's host does not take this org's token.
#[test]
fn a_salesforce_token_works_at_its_own_instance_only() {
    let mut client = Client::new(World::new(config(vec![row("kahuna", "salesforce", &["salesforce"])])));
    let shown = client.nango("GET", "/connections/kahuna__salesforce__default?provider_config_key=salesforce").value();
    let bearer = format!("Bearer {}", shown["credentials"]["access_token"].as_str().unwrap());
    for (host, status) in [("kahuna.my.salesforce.example", 200), ("other.my.salesforce.example", 401)] {
        let call = Call::new("GET", &format!("/{host}/services/oauth2/userinfo")).with_header("authorization", &bearer);
        assert_eq!(client.ask(Api::Provider, &call).status, status, "{host}");
    }
}

#[test]
fn an_authorization_code_needs_its_verifier_and_works_once() {
    let mut client = Client::new(hubspot());
    let app = client.world.keys().legacy_clients["hubspot"].clone();
    let verifier = "a-verifier-of-some-length-0123456789-abcdefgh";
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
    let authorize = |client: &mut Client, state: &str| {
        let target = format!(
            "/app.hubspot.com/oauth/authorize?response_type=code&client_id={}&redirect_uri=https%3A%2F%2Fx.example%2Fcb&state={state}&scope=oauth&code_challenge={challenge}&code_challenge_method=S256",
            app.client_id
        );
        let reply = client.ask(Api::Provider, &Call::new("GET", &target));
        assert_eq!(reply.status, 302);
        let location = reply.header("location").unwrap().to_owned();
        assert!(location.starts_with("https://x.example/cb?code=") && location.ends_with(&format!("&state={state}")));
        location["https://x.example/cb?code=".len()..].split('&').next().unwrap().to_owned()
    };
    let exchange = |client: &mut Client, code: &str, verifier: &str| {
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", "https://x.example/cb"),
            ("client_id", &app.client_id),
            ("client_secret", &app.client_secret),
            ("code_verifier", verifier),
        ];
        form(client, "/api.hubapi.com/oauth/2026-03/token", &pairs)
    };
    let code = authorize(&mut client, "1");
    let made = exchange(&mut client, &code, verifier);
    assert_eq!((made.status, made.value()["expires_in"].as_i64()), (200, Some(3_600)));
    assert_eq!(exchange(&mut client, &code, verifier).status, 400, "a code works once");
    let code = authorize(&mut client, "2");
    assert_eq!(exchange(&mut client, &code, "another").status, 400);
    assert_eq!(exchange(&mut client, &code, verifier).status, 400, "a failed exchange spends the code");
    let code = authorize(&mut client, "3");
    client.advance(61_000);
    assert_eq!(exchange(&mut client, &code, verifier).status, 400);
}

#[test]
fn the_token_endpoint_checks_the_client_and_revocation_ends_the_grant() {
    let mut client = Client::new(hubspot());
    let keys = client.world.keys();
    let (own, other) = (keys.legacy_clients["hubspot"].clone(), keys.composio_clients["hubspot"].clone());
    let shown = client.nango("GET", &format!("{CONNECTION}&refresh_token=true")).value();
    let (access, refresh) =
        (shown["credentials"]["access_token"].clone(), shown["credentials"]["refresh_token"].clone());
    let (access, refresh) = (access.as_str().unwrap(), refresh.as_str().unwrap());
    let ask = |client: &mut Client, id: &str, secret: &str| {
        let pairs =
            [("grant_type", "refresh_token"), ("refresh_token", refresh), ("client_id", id), ("client_secret", secret)];
        form(client, "/api.hubapi.com/oauth/2026-03/token", &pairs)
    };
    assert_eq!(ask(&mut client, &own.client_id, &own.client_secret).status, 200);
    assert_eq!(client.world.ledger().double_refreshes, 1, "somebody besides Nango refreshed");
    assert_eq!(ask(&mut client, &own.client_id, "wrong").status, 401);
    let foreign = ask(&mut client, &other.client_id, &other.client_secret);
    assert_eq!((foreign.status, &foreign.value()["status"]), (400, &json!("BAD_REFRESH_TOKEN")));
    let whoami = |client: &mut Client| {
        let call = Call::new("GET", "/api.hubapi.com/account-info/v3/details")
            .with_header("authorization", &format!("Bearer {access}"));
        client.ask(Api::Provider, &call).status
    };
    assert_eq!(whoami(&mut client), 200);
    assert_eq!(form(&mut client, "/api.hubapi.com/oauth/2026-03/token/revoke", &[("token", refresh)]).status, 200);
    assert_eq!(whoami(&mut client), 401);
    assert_eq!(ask(&mut client, &own.client_id, &own.client_secret).status, 400);
}

#[test]
fn slack_says_no_with_200() {
    let mut client = Client::new(World::new(config(vec![row("kahuna", "slack", &["slack"])])));
    let reply = client
        .ask(Api::Provider, &Call::new("POST", "/slack.com/api/auth.test").with_header("authorization", "Bearer x"));
    assert_eq!((reply.status, reply.value()), (200, json!({"ok": false, "error": "invalid_auth"})));
}

#[test]
fn integrations_that_the_catalogue_does_not_know_work_too() {
    let mut client = Client::new(World::new(config(vec![row("kahuna", "acme-crm", &["acme"])])));
    let shown = client.nango("GET", "/connections/kahuna__acme-crm__default?provider_config_key=acme-crm").value();
    let bearer = format!("Bearer {}", shown["credentials"]["access_token"].as_str().unwrap());
    let call = Call::new("GET", "/acme-crm.example/whoami").with_header("authorization", &bearer);
    assert_eq!(client.ask(Api::Provider, &call).status, 200);
}

/// What a second use of a refresh token does.
#[derive(Debug, PartialEq)]
enum Second {
    Works,
    /// Within the grace period only.
    WorksForAMinute,
    KillsTheGrant,
}

/// providers.md §2: per integration, whether a refresh rotates (with the client's setting on), what
/// a second use of the old token does then, and how many grants of one user live side by side.
const BEHAVIOURS: [(&str, Option<bool>, Second, usize); 10] = [
    ("google", Some(false), Second::Works, 100),
    ("salesforce", Some(true), Second::KillsTheGrant, 5),
    ("hubspot", Some(false), Second::Works, 1),
    ("linkedin", Some(false), Second::Works, 1),
    ("microsoft", Some(true), Second::Works, usize::MAX),
    ("microsoft-ads", Some(true), Second::Works, usize::MAX),
    ("gong-oauth", Some(true), Second::KillsTheGrant, 1),
    ("slack", Some(true), Second::WorksForAMinute, 1),
    ("aws", Some(true), Second::WorksForAMinute, usize::MAX),
    ("github", None, Second::Works, 10),
];

#[test]
fn every_provider_rotates_forgives_and_caps_as_its_contract_says() {
    for (key, rotates, second, cap) in BEHAVIOURS {
        let options = WorldOptions { optional_rotation: true, ..WorldOptions::default() };
        let mut client = Client::new(World::with_options(config(vec![row("kahuna", key, &["p"])]), options));
        let app = client.world.keys().legacy_clients[key].clone();
        let url = Catalogue::built_in().integration(key).unwrap().token_url.clone();
        let url = url.replace("{subdomain}", "kahuna").replace("{region}", "us-west-2");
        let token = format!("/{}", url.strip_prefix("https://").unwrap());
        let consent = |client: &mut Client| {
            let query = form_urlencoded::Serializer::new(String::new())
                .extend_pairs([("client_id", app.client_id.as_str()), ("redirect_uri", "https://x.example/cb")])
                .extend_pairs([("response_type", "code"), ("scope", "a")])
                .finish();
            let back = client.call(Api::Provider, "GET", &format!("/x.example/authorize?{query}"));
            let code = back.header("location").unwrap().split("code=").nth(1).unwrap().to_owned();
            client.advance(1);
            let pairs =
                [("grant_type", "authorization_code"), ("code", &code), ("redirect_uri", "https://x.example/cb")];
            let pairs = [&pairs[..], &[("client_id", &app.client_id), ("client_secret", &app.client_secret)]].concat();
            let answer = form(client, &token, &pairs).value();
            assert!(answer["access_token"].is_string(), "{key}: {answer}");
            answer
        };
        let refresh = |client: &mut Client, refresh_token: &Value| {
            let pairs =
                [("grant_type", "refresh_token"), ("refresh_token", refresh_token.as_str().unwrap_or_default())];
            let pairs = [&pairs[..], &[("client_id", &app.client_id), ("client_secret", &app.client_secret)]].concat();
            form(client, &token, &pairs).value()
        };

        let first = consent(&mut client)["refresh_token"].clone();
        assert_eq!(first.is_null(), rotates.is_none(), "{key}");
        if let Some(rotates) = rotates {
            let next = refresh(&mut client, &first)["refresh_token"].clone();
            assert_eq!(!next.is_null(), rotates, "{key}");
            let again = refresh(&mut client, &first);
            let works = again["access_token"].is_string();
            assert_eq!(works, second != Second::KillsTheGrant, "{key}: {again}");
            if rotates {
                client.advance(2 * MINUTE_MS);
                let late = refresh(&mut client, &first)["access_token"].is_string();
                assert_eq!(late, second == Second::Works, "{key}");
                let newest = if second == Second::WorksForAMinute { again["refresh_token"].clone() } else { next };
                let alive = refresh(&mut client, &newest)["access_token"].is_string();
                assert_eq!(alive, second != Second::KillsTheGrant, "{key}");
            }
        }

        // Grants of one user and client: the oldest dies when one too many comes.
        let user = client.world.rows[0].user;
        let live = |client: &Client| {
            client.world.providers.grants.iter().filter(|g| g.user == user && g.revoked_at.is_none()).count()
        };
        for _ in 0..cap.min(101) {
            consent(&mut client);
        }
        let before = live(&client);
        consent(&mut client);
        let expected = if cap == usize::MAX { before + 1 } else { cap };
        assert_eq!(live(&client), expected, "{key}");
    }
}
