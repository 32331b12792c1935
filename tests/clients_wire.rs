//! What the clients put on the wire and how they walk listings, against small servers that
//! answer by script and remember every request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use cutover::clients::cloudflare::INSERT_AUDIT_SQL;
use cutover::clients::{
    CloudflareEndpoint, ComposioEndpoint, Endpoints, GatewayEndpoint, HttpOutside, NangoEndpoint, OauthApp,
    ProviderEndpoint,
};
use cutover::domain::secret::Secret;
use cutover::domain::time::Timestamp;
use cutover::domain::triplet::Triplet;
use cutover::ports::{
    AccountStatus, AlarmMode, Api, ApiErrorKind, AuditRow, AuditSink, GatewayAdmin, GatewayRead, KvPut, KvRead,
    KvWrite, Namespace, Outside, ProviderCall, ProviderRead, SourceCustody, SourceRead, TargetCustody, TargetRead,
    TargetScheme,
};
use reqwest::Url;
use serde_json::{Value, json};

/// One request as it arrived.
#[derive(Clone, Debug)]
struct Seen {
    method: Method,
    /// Path and query, still encoded.
    target: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Seen {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn query(&self, name: &str) -> Option<String> {
        let url = Url::parse(&format!("http://h{}", self.target)).unwrap();
        url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Answers the nth request (from 0) with a status and a JSON body.
type Script = dyn Fn(usize, &Seen) -> (u16, Value) + Send + Sync;

#[derive(Clone)]
struct Server {
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn last(&self) -> Seen {
        self.seen().pop().unwrap()
    }
}

async fn answer(
    State(server): State<Server>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, [(&'static str, &'static str); 2], String) {
    let request = Seen { method, target: uri.to_string(), headers, body: body.to_vec() };
    let n = {
        let mut seen = server.seen.lock().unwrap();
        seen.push(request.clone());
        seen.len() - 1
    };
    let (status, body) = (server.script)(n, &request);
    let headers = [("content-type", "application/json; charset=utf-8"), ("date", "Sun, 06 Nov 1994 08:49:37 GMT")];
    (StatusCode::from_u16(status).unwrap(), headers, body.to_string())
}

async fn world(script: impl Fn(usize, &Seen) -> (u16, Value) + Send + Sync + 'static) -> (Server, HttpOutside) {
    let server = Server { script: Arc::new(script), seen: Arc::default() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = Url::parse(&format!("http://{}/base", listener.local_addr().unwrap())).unwrap();
    let router = Router::new().fallback(answer).with_state(server.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let app = OauthApp { client_id: "77-abc".into(), client_secret: Secret::new("GSX") };
    let endpoints = Endpoints {
        nango: NangoEndpoint { base: base.clone(), key: Secret::new("nk") },
        composio: ComposioEndpoint {
            base: base.clone(),
            key: Secret::new("ak"),
            oauth_apps: BTreeMap::from([("gmail".to_owned(), app)]),
        },
        cloudflare: CloudflareEndpoint {
            base: base.clone(),
            token: Secret::new("cf"),
            kv_source: "kv1".into(),
            kv_target: "kv2".into(),
            d1: "db".into(),
        },
        gateway: GatewayEndpoint { base: base.clone(), admin_key: Secret::new("adm"), gateway_key: Secret::new("gw") },
        provider: ProviderEndpoint { base_override: Some(base) },
        allow_insecure_http: false,
    };
    // A minute behind the server.
    let outside = HttpOutside::new(endpoints, Arc::new(|| Timestamp::from_secs(784_111_777 - 60))).unwrap();
    (server, outside)
}

fn connection(id: usize) -> Value {
    json!({"id": id, "connection_id": format!("c{id}"), "provider_config_key": "k", "provider": "p", "errors": [],
           "end_user": null, "tags": {}, "metadata": null, "created": "2026-09-14T08:02:11.4+00:00"})
}

fn asked(method: &str, url: &str, headers: &BTreeMap<String, String>) -> ProviderCall {
    ProviderCall { method: method.into(), url: url.into(), headers: headers.clone(), body: None }
}

#[tokio::test]
async fn nango_pages_are_read_until_a_short_one_and_shifted_rows_count_once() {
    let (server, outside) = world(|_, seen| {
        let rows = match seen.query("page").as_deref() {
            Some("0") => (0..2_000).map(connection).collect::<Vec<_>>(),
            // Two connections were made since: the last two rows come again.
            _ => (1_998..2_005).map(connection).collect(),
        };
        (200, json!({"connections": rows}))
    })
    .await;
    let connections = outside.source().list_connections().await.unwrap();
    assert_eq!(connections.len(), 2_005);
    let targets: Vec<String> = server.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/base/connections?limit=2000&page=0", "/base/connections?limit=2000&page=1"]);
    assert_eq!(server.last().header("authorization"), "Bearer nk");
    let traffic = outside.take_traffic();
    assert_eq!((traffic[&Api::Nango].requests, traffic[&Api::Nango].skew_ms), (2, Some(60_000)));
    assert_eq!(outside.take_traffic()[&Api::Nango].requests, 0, "counted once");
}

#[tokio::test]
async fn a_server_that_ignores_the_page_number_does_not_keep_us_forever() {
    let (server, outside) =
        world(|_, _| (200, json!({"connections": (0..2_000).map(connection).collect::<Vec<_>>()}))).await;
    let error = outside.source().list_connections().await.unwrap_err();
    assert!(matches!(error.kind, ApiErrorKind::Contract { .. }));
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn nango_ids_travel_as_one_segment_and_no_refresh_token_is_asked_for() {
    let (server, outside) = world(|_, _| {
        let credentials =
            json!({"type": "OAUTH2", "access_token": "at", "expires_at": "2026-10-02T10:45:00+00:00", "raw": {}});
        (200, json!({"connection_id": "tenant:x/../y?z", "errors": [{"type": "auth"}], "credentials": credentials}))
    })
    .await;
    let credential = outside.source().fetch_credential("a key&b", "tenant:x/../y?z").await.unwrap();
    assert_eq!(credential.expires_at, Some(Timestamp::parse("2026-10-02T10:45:00Z").unwrap()));
    assert!(credential.auth_error);
    assert_eq!(server.last().target, "/base/connections/tenant%3Ax%2F..%2Fy%3Fz?provider_config_key=a+key%26b");

    for id in ["", ".", ".."] {
        let error = outside.source().delete_connection("k", id).await.unwrap_err();
        assert_eq!(error.kind, ApiErrorKind::Rejected { status: 0, code: "unusable_id".into() });
    }
    assert_eq!(server.seen().len(), 1, "refused before sending");
}

#[tokio::test]
async fn nango_writes_say_which_connection() {
    let (server, outside) = world(|_, _| (200, json!({"success": true}))).await;
    outside.source().skip_revocation("hubspot", "c1", &json!(true)).await.unwrap();
    let seen = server.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PATCH", "/base/connections/metadata"));
    let expected =
        json!({"connection_id": "c1", "provider_config_key": "hubspot", "metadata": {"skipTokenRevocation": true}});
    assert_eq!(seen.json(), expected);
    outside.source().delete_connection("hubspot", "c1").await.unwrap();
    let seen = server.last();
    let expected = ("DELETE", "/base/connections/c1?provider_config_key=hubspot");
    assert_eq!((seen.method.as_str(), seen.target.as_str()), expected);
}

fn account(id: &str, user_id: &str) -> Value {
    json!({"id": id, "toolkit": {"slug": "gmail"}, "auth_config": {"id": "ac_1"}, "alias": "m-1", "user_id": user_id,
           "status": "ACTIVE", "status_reason": null, "is_disabled": false, "updated_at": "2026-05-02T10:00:00.000Z",
           "state": {"authScheme": "BEARER_TOKEN", "val": {"status": "ACTIVE", "token": "REDACTED"}}, "data": {}})
}

#[tokio::test]
async fn composio_listings_are_repeated_until_two_scans_agree() {
    // A deletion during the first scan shifts `ca_3` out of sight; the later scans see all.
    let (server, outside) = world(|n, _| {
        let page = |ids: &[&str], next: Option<&str>| {
            let items: Vec<Value> = ids.iter().map(|id| account(id, "u")).collect();
            (200, json!({"items": items, "next_cursor": next, "total_pages": 2}))
        };
        match n {
            0 => page(&["ca_1", "ca_2"], Some("p2")),
            1 => page(&["ca_4"], Some("")),
            n if n % 2 == 0 => page(&["ca_1", "ca_2"], Some("p2")),
            _ => page(&["ca_3", "ca_4"], None),
        }
    })
    .await;
    let ids: Vec<String> = outside.target().list_accounts().await.unwrap().into_iter().map(|a| a.id).collect();
    assert_eq!(ids, ["ca_1", "ca_2", "ca_3", "ca_4"]);
    let seen = server.seen();
    assert_eq!(seen.len(), 6);
    let expected =
        "/base/api/v3.1/connected_accounts?account_type=ALL&order_by=created_at&order_direction=asc&limit=50";
    assert_eq!(seen[0].target, expected);
    assert_eq!(seen[1].target, format!("{expected}&cursor=p2"));
    assert_eq!((seen[0].header("x-api-key"), seen[0].header("authorization")), ("ak", ""));
}

#[tokio::test]
async fn a_composio_listing_of_one_page_is_read_once_and_one_that_never_settles_ends() {
    let (server, outside) = world(|_, _| (200, json!({"items": [account("ca_1", "u")]}))).await;
    assert_eq!(outside.target().list_accounts().await.unwrap().len(), 1);
    assert_eq!(server.seen().len(), 1);

    let (server, outside) = world(|n, _| {
        let row = account(&format!("ca_{n}"), "u");
        (200, json!({"items": [row], "next_cursor": if n % 2 == 0 { Some("next") } else { None }}))
    })
    .await;
    assert_eq!(outside.target().list_accounts().await.unwrap().len(), 8, "the union of four scans");
    assert_eq!(server.seen().len(), 8);
}

#[tokio::test]
async fn a_filter_that_composio_ignored_is_applied_here() {
    let (server, outside) =
        world(|_, _| (200, json!({"items": [account("ca_1", "u 1"), account("ca_2", "other")], "next_cursor": null})))
            .await;
    let accounts = outside.target().list_accounts_of("u 1").await.unwrap();
    assert_eq!(accounts.iter().map(|a| a.id.as_str()).collect::<Vec<_>>(), ["ca_1"]);
    assert_eq!(server.last().query("user_ids").as_deref(), Some("u 1"));
    assert!(outside.target().list_accounts_of("u,1").await.is_err(), "Composio would read two users");
}

#[tokio::test]
async fn composio_writes_follow_the_schema_of_each_call() {
    let (server, outside) = world(|_, seen| match (seen.method.as_str(), seen.target.split('?').next().unwrap()) {
        ("POST", "/base/api/v3.1/connected_accounts") => {
            (201, json!({"id": "ca_1", "connectionData": {"val": {"status": "ACTIVE", "token": "REDACTED"}}}))
        }
        ("POST", "/base/api/v3.1/connected_accounts/link") => {
            let url = "https://connect.composio.dev/link/lk_1";
            let expires_at = "2026-06-01T12:10:00.000Z";
            (201, json!({"link_token": "lk_1", "redirect_url": url, "expires_at": expires_at, "connected_account_id": "ca_9"}))
        }
        ("PATCH", "/base/api/v3.1/connected_accounts/ca_1") => {
            (200, json!({"success": true, "id": "ca_1", "status": "EXPIRED"}))
        }
        ("POST", "/base/api/v3.1/auth_configs") => {
            let slug = seen.json()["toolkit"]["slug"].clone();
            (201, json!({"toolkit": {"slug": slug}, "auth_config": {"id": "ac_1", "is_composio_managed": false}}))
        }
        _ => (200, json!({"success": true})),
    })
    .await;
    let target = outside.target();
    let token = Secret::new("ya29");

    let account = target.create_bearer_account("ac_1", "u1", "m-1", &token).await.unwrap();
    assert_eq!((account.id.as_str(), account.status), ("ca_1", AccountStatus::Active));
    let state = json!({"authScheme": "BEARER_TOKEN", "val": {"status": "ACTIVE", "token": "ya29"}});
    let expected =
        json!({"auth_config": {"id": "ac_1"}, "connection": {"user_id": "u1", "alias": "m-1", "state": state}});
    assert_eq!(server.last().json(), expected);

    assert_eq!(target.patch_bearer("ca_1", &token).await.unwrap(), AccountStatus::Expired);
    let expected = json!({"connection": {"state": {"authScheme": "BEARER_TOKEN", "val": {"token": "ya29"}}}});
    assert_eq!(server.last().json(), expected);

    let link = target.create_link("ac_1", "u1", "f-1", Some("https://a.example/cb")).await.unwrap();
    assert_eq!((link.account_id.as_str(), link.url.expose()), ("ca_9", "https://connect.composio.dev/link/lk_1"));
    assert!(!format!("{link:?}").contains("lk_1"));
    let expected =
        json!({"auth_config_id": "ac_1", "user_id": "u1", "alias": "f-1", "callback_url": "https://a.example/cb"});
    assert_eq!(server.last().json(), expected);

    let scopes = ["a".to_owned(), "b".to_owned()];
    let config = target.create_auth_config("gmail", "mirror", TargetScheme::BearerToken, &scopes).await.unwrap();
    assert_eq!((config.id.as_str(), config.scheme.as_str()), ("ac_1", "BEARER_TOKEN"));
    let mirror = json!({"type": "use_custom_auth", "name": "mirror", "authScheme": "BEARER_TOKEN", "credentials": {}});
    assert_eq!(server.last().json(), json!({"toolkit": {"slug": "gmail"}, "auth_config": mirror}));

    target.create_auth_config("gmail", "own", TargetScheme::Oauth2, &scopes).await.unwrap();
    let own = server.last().json()["auth_config"].clone();
    assert_eq!((&own["type"], &own["authScheme"]), (&json!("use_custom_auth"), &json!("OAUTH2")));
    assert_eq!(
        (&own["credentials"]["client_id"], &own["credentials"]["scopes"]),
        (&json!("77-abc"), &json!(["a", "b"]))
    );
    let callback = own["credentials"]["oauth_redirect_uri"].as_str().unwrap();
    assert!(callback.ends_with("/api/v3/toolkits/auth/callback"));

    target.create_auth_config("slack", "managed", TargetScheme::Oauth2, &scopes).await.unwrap();
    let managed =
        json!({"type": "use_composio_managed_auth", "name": "managed", "credentials": {"scopes": ["a", "b"]}});
    assert_eq!(server.last().json()["auth_config"], managed);

    target.set_account_enabled("ca_1", false).await.unwrap();
    assert_eq!(server.last().target, "/base/api/v3.1/connected_accounts/ca_1/status");
    assert_eq!(server.last().json(), json!({"enabled": false}));
    target.delete_account("ca_1").await.unwrap();
    assert_eq!(server.last().target, "/base/api/v3.1/connected_accounts/ca_1?revoke_on_delete=false");
}

#[tokio::test]
async fn a_provider_refusing_inside_composios_200_is_an_answer() {
    let (server, outside) = world(|_, _| (200, json!({"data": {"error": "x"}, "status": 401, "headers": {}}))).await;
    let headers = BTreeMap::from([("linkedin-version".to_owned(), "202601".to_owned())]);
    let answer =
        outside.target().proxy("ca_1", &asked("GET", "https://api.linkedin.com/v2/userinfo", &headers)).await.unwrap();
    assert_eq!(answer.status, 401);
    let expected = json!({"connected_account_id": "ca_1", "endpoint": "https://api.linkedin.com/v2/userinfo", "method": "GET",
                          "parameters": [{"name": "linkedin-version", "value": "202601", "type": "header"}]});
    assert_eq!(server.last().json(), expected);

    let own = BTreeMap::from([("Authorization".to_owned(), "Bearer x".to_owned())]);
    assert!(outside.target().proxy("ca_1", &asked("GET", "https://a.example", &own)).await.is_err());
    assert!(outside.target().proxy("ca_1", &asked("DELETE", "https://a.example", &BTreeMap::new())).await.is_err());
    assert_eq!(server.seen().len(), 1, "refused before sending");
}

#[tokio::test]
async fn a_toolkit_is_absent_only_when_composio_itself_says_so() {
    let (_, outside) = world(|_, seen| match seen.target.rsplit('/').next().unwrap() {
        "gmail" => (200, json!({"slug": "gmail", "name": "Gmail"})),
        "odd" => (200, json!({"slug": "gmail", "name": "Gmail"})),
        "lost" => (404, json!("not found")),
        _ => (404, json!({"error": {"message": "m", "code": 1, "slug": "Toolkit_NotFound", "status": 404}})),
    })
    .await;
    assert_eq!(outside.target().find_toolkit("gmail").await, Ok(true));
    assert_eq!(outside.target().find_toolkit("microsoft_ads").await, Ok(false));
    assert!(outside.target().find_toolkit("odd").await.is_err());
    assert!(outside.target().find_toolkit("lost").await.is_err());
}

fn envelope(result: Value) -> (u16, Value) {
    (200, json!({"success": true, "errors": [], "messages": [], "result": result}))
}

#[tokio::test]
async fn kv_pages_repeat_prefix_and_limit_and_may_be_empty_before_the_end() {
    let (server, outside) = world(|n, _| {
        let (rows, cursor) = match n {
            0 => (json!([]), "c2"),
            _ => (json!([{"name": "tokens:a:b:c", "metadata": {"src": "unknown"}}, {"name": "tokens:a:b:d"}]), ""),
        };
        let info = json!({"count": 0, "cursor": cursor});
        (200, json!({"success": true, "errors": [], "messages": [], "result": rows, "result_info": info}))
    })
    .await;
    let first = outside.cloudflare().list_keys(Namespace::Target, "tokens:", None).await.unwrap();
    assert!(first.keys.is_empty());
    let second = outside.cloudflare().list_keys(Namespace::Target, "tokens:", first.cursor.as_deref()).await.unwrap();
    assert_eq!((second.keys.len(), second.cursor), (2, None));
    assert!(second.keys.iter().all(|key| key.metadata.is_none()));
    let path = "/base/storage/kv/namespaces/kv2/keys?limit=1000&prefix=tokens%3A";
    assert_eq!(server.seen()[0].target, path);
    assert_eq!(server.seen()[1].target, format!("{path}&cursor=c2"));
}

#[tokio::test]
async fn kv_values_are_read_in_bulk_and_broken_ones_say_why() {
    let (server, outside) =
        world(|_, _| envelope(json!({"values": {"k1": r#"{"access_token":"at"}"#, "k2": null, "k3": "canary"}}))).await;
    let keys: Vec<String> = ["k1", "k2", "k3", "k4"].map(str::to_owned).to_vec();
    let values = outside.cloudflare().bulk_get(Namespace::Source, &keys).await.unwrap();
    assert_eq!(values["k1"].as_ref().unwrap().as_ref().unwrap().access_token.expose(), "at");
    assert!(values["k2"].is_none() && values["k4"].is_none());
    let why = values["k3"].as_ref().unwrap().as_ref().unwrap_err().to_string();
    assert!(!why.contains("canary"));
    assert_eq!(server.last().json(), json!({"keys": keys, "type": "text", "withMetadata": false}));

    let many: Vec<String> = (0..101).map(|n| format!("k{n}")).collect();
    assert!(outside.cloudflare().bulk_get(Namespace::Source, &many).await.is_err());
    assert!(outside.cloudflare().bulk_get(Namespace::Source, &[]).await.unwrap().is_empty());
    assert_eq!(server.seen().len(), 1, "neither was sent");
}

#[tokio::test]
async fn kv_writes_carry_metadata_and_tell_what_was_not_written() {
    let (server, outside) = world(|_, seen| match (seen.method.as_str(), seen.target.ends_with("/bulk")) {
        ("PUT", true) => envelope(json!({"successful_key_count": 1, "unsuccessful_keys": ["b"]})),
        ("PUT", false) => envelope(Value::Null),
        _ => (404, json!({"success": false, "errors": [{"code": 10009, "message": "get: 'key not found'"}]})),
    })
    .await;
    let put = |key: &str, metadata: Option<Value>| KvPut { key: key.into(), value: Secret::new("{\"x\":1}"), metadata };
    let cloudflare = outside.cloudflare();
    let unwritten = cloudflare.bulk_put(Namespace::Source, &[put("a", Some(json!({"v": 1}))), put("b", None)]).await;
    assert_eq!(unwritten, Ok(vec!["b".to_owned()]));
    let expected =
        json!([{"key": "a", "value": "{\"x\":1}", "metadata": {"v": 1}}, {"key": "b", "value": "{\"x\":1}"}]);
    assert_eq!(server.last().json(), expected);

    cloudflare.put(Namespace::Source, &put("authority:a:b:c", Some(json!({"v": 2})))).await.unwrap();
    let seen = server.last();
    assert_eq!(seen.target, "/base/storage/kv/namespaces/kv1/values/authority%3Aa%3Ab%3Ac");
    assert!(seen.header("content-type").starts_with("multipart/form-data; boundary="));
    let body = String::from_utf8(seen.body).unwrap();
    assert!(
        body.contains("name=\"value\"\r\n\r\n{\"x\":1}\r\n") && body.contains("name=\"metadata\"\r\n\r\n{\"v\":2}\r\n")
    );

    cloudflare
        .put_until(Namespace::Source, &put("tombstone", None), Timestamp::from_secs(1_790_000_000))
        .await
        .unwrap();
    assert_eq!(server.last().target, "/base/storage/kv/namespaces/kv1/values/tombstone?expiration=1790000000");

    // One write a second to a key: what was just written is not sent again, what was refused is.
    let before = server.seen().len();
    let again = cloudflare.put(Namespace::Source, &put("tombstone", None)).await.unwrap_err();
    assert_eq!(again.kind, ApiErrorKind::OverBudget { wait_ms: 1_000 });
    let unwritten = cloudflare.bulk_put(Namespace::Source, &[put("a", None), put("b", None)]).await;
    assert_eq!(unwritten, Ok(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(server.last().json(), json!([{"key": "b", "value": "{\"x\":1}"}]));
    assert_eq!(server.seen().len(), before + 1);

    cloudflare.delete(Namespace::Source, "gone").await.unwrap();
    assert_eq!(server.last().method, Method::DELETE);
}

#[tokio::test]
async fn audit_rows_travel_as_one_parameter() {
    let (server, outside) =
        world(|_, _| envelope(json!([{"success": true, "results": {"columns": [], "rows": []}, "meta": {}}]))).await;
    let row = AuditRow {
        op_id: "op-1".into(),
        at: Timestamp::from_secs(1_790_000_000),
        key: "tokens:a:b:c".into(),
        action: "put".into(),
        source: "nango".into(),
        fingerprint: None,
    };
    outside.cloudflare().append_audit(&[]).await.unwrap();
    assert!(server.seen().is_empty());
    outside.cloudflare().append_audit(&[row]).await.unwrap();
    let seen = server.last();
    assert_eq!(seen.target, "/base/d1/database/db/raw");
    assert_eq!(seen.json()["sql"], INSERT_AUDIT_SQL);
    let rows: Value = serde_json::from_str(seen.json()["params"][0].as_str().unwrap()).unwrap();
    assert_eq!(rows[0]["at"], "2026-09-21T14:13:20.000Z");
}

#[tokio::test]
async fn gateway_listings_follow_cursors_and_writes_read_back() {
    let alarm = |triplet: &str, mode: &str| json!({"triplet": triplet, "object_id": "00", "mode": mode, "alarm_at": null, "last_fired_at": "2026-05-02T10:00:00Z", "fires": 3});
    let (server, outside) = world(move |_, seen| match seen.target.split('?').next().unwrap() {
        "/base/admin/alarms" if seen.query("cursor").is_none() => {
            (200, json!({"alarms": [alarm("a:b:c", "refresh")], "cursor": "2"}))
        }
        "/base/admin/alarms" => (200, json!({"alarms": [alarm("a:b:c", "refresh"), alarm("a:b:d", "standby")], "cursor": null})),
        "/base/admin/alarms/a%3Ab%3Ac/mode" => (200, alarm("a:b:c", seen.json()["mode"].as_str().unwrap())),
        "/base/admin/fires" => {
            (200, json!({"fires": [{"triplet": "a:b:c", "at": "2026-05-02T10:00:00Z", "mode": "report", "wrote": false}], "cursor": null}))
        }
        "/base/admin/smoke" => {
            let result = |t: &Value| json!({"triplet": t, "read_authority": "target", "ok": true, "stale": false, "upstream_status": 200});
            let results: Vec<Value> = seen.json()["triplets"].as_array().unwrap().iter().map(result).collect();
            (200, json!({"results": results}))
        }
        _ => (404, json!({"error": "unknown_triplet"})),
    })
    .await;
    let gateway = outside.gateway();
    let alarms = gateway.list_alarms().await.unwrap();
    assert_eq!(alarms.iter().map(|a| a.mode).collect::<Vec<_>>(), [AlarmMode::Refresh, AlarmMode::Standby]);
    assert_eq!(server.seen()[1].target, "/base/admin/alarms?limit=1000&cursor=2");
    assert_eq!(server.last().header("x-admin-key"), "adm");

    let triplet = Triplet::parse("a:b:c").unwrap();
    let set = gateway.set_alarm_mode(&triplet, AlarmMode::Disarmed).await.unwrap();
    assert_eq!((set.mode, server.last().json()), (AlarmMode::Disarmed, json!({"mode": "disarmed"})));
    let fires = gateway.list_fires(Timestamp::from_secs(0)).await.unwrap();
    assert_eq!((fires.len(), fires[0].wrote), (1, false));
    assert_eq!(server.last().query("since").as_deref(), Some("1970-01-01T00:00:00.000Z"));
    assert_eq!(
        gateway.read_alarm(&triplet).await.unwrap_err().kind,
        ApiErrorKind::NotFound { code: "unknown_triplet".into() }
    );

    let before = server.seen().len();
    let many: Vec<Triplet> = (0..250).map(|n| Triplet::parse(&format!("t{n}:b:c")).unwrap()).collect();
    assert_eq!(gateway.smoke(&many).await.unwrap().len(), 250);
    assert_eq!(server.seen().len() - before, 3, "100 triplets at a time");
}

#[tokio::test]
async fn a_provider_is_called_with_the_token_and_the_headers_it_asks_for() {
    let (server, outside) = world(|_, _| (200, json!({"sub": "42"}))).await;
    let headers = BTreeMap::from([("developer-token".to_owned(), "d".to_owned())]);
    let token = Secret::new("ya29");
    let found =
        outside.provider().whoami(&token, &asked("POST", "https://api.example.com/me?fields=id", &headers)).await;
    assert_eq!(found, Ok(json!({"sub": "42"})));
    let seen = server.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/base/api.example.com/me?fields=id"));
    assert_eq!((seen.header("authorization"), seen.header("developer-token")), ("Bearer ya29", "d"));
    assert!(seen.header("user-agent").starts_with("cutover/"));

    for (method, url, token, headers) in [
        ("PUT", "https://a.example", "t", BTreeMap::new()),
        ("GET", "http://a.example", "t", BTreeMap::new()),
        ("GET", "no url", "t", BTreeMap::new()),
        ("GET", "https://a.example", "t\n", BTreeMap::new()),
        ("GET", "https://a.example", "t", BTreeMap::from([("AUTHORIZATION".to_owned(), "x".to_owned())])),
    ] {
        let error = outside.provider().whoami(&Secret::new(token), &asked(method, url, &headers)).await.unwrap_err();
        assert!(matches!(error.kind, ApiErrorKind::Rejected { status: 0, .. }), "{error}");
    }
    assert_eq!(server.seen().len(), 1, "refused before sending");
}
