//! Every endpoint of every client against every way in which an answer can go wrong: one table of
//! calls, one table of faults. `cargo test --test clients_faults -- --nocapture` prints the number
//! of cases.
//!
//! The server speaks raw TCP, because a well-behaved HTTP library cannot be made to break off in
//! the middle of a body. Each fault must come out as its documented error after exactly one
//! request, so with at most one effect, and nothing that was planted (keys, tokens, ids, bodies)
//! may show in the error.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cutover::clients::{
    CloudflareEndpoint, ComposioEndpoint, Endpoints, GatewayEndpoint, HttpOutside, NangoEndpoint, ProviderEndpoint,
    SetupError, Timeouts,
};
use cutover::domain::secret::Secret;
use cutover::domain::time::Timestamp;
use cutover::domain::triplet::Triplet;
use cutover::ports::{
    AlarmMode, ApiError, ApiErrorKind, ApiResult, AuditRead, AuditRow, AuditSink, GatewayAdmin, GatewayRead, KvInspect,
    KvPlace, KvPut, KvRead, KvWrite, Namespace, Outside, ProviderCall, ProviderRead, SourceCustody, SourceRead,
    TargetCustody, TargetRead, TargetScheme,
};
use reqwest::Url;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Part of everything that must not show.
const CANARY: &str = "canary";

/// What the server does with a request.
#[derive(Clone, Debug)]
enum Fault {
    /// Does what was asked, answers with these bytes, then closes.
    Answer(Vec<u8>),
    /// Answers with these bytes without having done anything, then closes.
    Refusal(Vec<u8>),
    /// Answers with a head and this many bytes of body in chunks.
    Stream(usize),
    /// Answers nothing for longer than the client waits.
    Silence,
    /// Sends these bytes, then nothing.
    Stall(Vec<u8>),
    /// Sends these bytes, then resets the connection.
    Reset(Vec<u8>),
}

struct Server {
    base: String,
    fault: Arc<Mutex<Fault>>,
    connections: Arc<AtomicUsize>,
    /// Requests that arrived whole: each may have had its effect.
    requests: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Server {
    async fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server =
            Self { base, fault: Arc::new(Mutex::new(fault)), connections: Arc::default(), requests: Arc::default() };
        let (fault, connections) = (Arc::clone(&server.fault), Arc::clone(&server.connections));
        let requests = Arc::clone(&server.requests);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let fault = fault.lock().unwrap().clone();
                let requests = Arc::clone(&requests);
                // A client that hangs up in the middle is part of the test.
                tokio::spawn(async move { serve(stream, fault, &requests).await.ok() });
            }
        });
        server
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
        self.connections.store(0, Ordering::SeqCst);
        self.requests.lock().unwrap().clear();
    }

    /// The requests since the last fault was set.
    fn requests(&self) -> Vec<Vec<u8>> {
        self.requests.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, fault: Fault, requests: &Mutex<Vec<Vec<u8>>>) -> std::io::Result<()> {
    let request = read_request(&mut stream).await?;
    requests.lock().unwrap().push(request);
    match fault {
        Fault::Refusal(bytes) => {
            requests.lock().unwrap().pop();
            stream.write_all(&bytes).await?;
            stream.shutdown().await?;
        }
        Fault::Answer(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await?;
        }
        Fault::Stream(total) => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            let block = vec![b' '; 1 << 16];
            for _ in 0..total.div_ceil(block.len()) {
                stream.write_all(b"10000\r\n").await?;
                stream.write_all(&block).await?;
                stream.write_all(b"\r\n").await?;
            }
            stream.write_all(b"2\r\n{}\r\n0\r\n\r\n").await?;
        }
        Fault::Silence => wait_for_hang_up(&mut stream).await?,
        Fault::Stall(bytes) => {
            stream.write_all(&bytes).await?;
            wait_for_hang_up(&mut stream).await?;
        }
        Fault::Reset(bytes) => {
            stream.write_all(&bytes).await?;
            stream.set_zero_linger()?;
        }
    }
    Ok(())
}

async fn wait_for_hang_up(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut rest = [0; 64];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut block = [0; 4096];
    loop {
        let count = stream.read(&mut block).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&block[..count]);
        let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
        let length = text.lines().find_map(|l| l.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
        if bytes.len() >= head + 4 + length.unwrap_or_default() {
            return Ok(bytes);
        }
    }
}

fn answer(status: u16, headers: &str, body: &str) -> Fault {
    Fault::Answer(raw(status, headers, body.len(), body))
}

fn refusal(status: u16, headers: &str, body: &str) -> Fault {
    Fault::Refusal(raw(status, headers, body.len(), body))
}

fn raw(status: u16, headers: &str, length: usize, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}").into_bytes()
}

const JSON: &str = "content-type: application/json\r\n";

/// Shorter than any wait that the tests can notice, longer than a loopback answer takes.
const IMPATIENT: Timeouts = Timeouts { connect: Duration::from_secs(5), total: Duration::from_millis(60) };

fn outside(base: &str, timeouts: Timeouts) -> HttpOutside {
    build(base, timeouts).unwrap()
}

fn build(base: &str, timeouts: Timeouts) -> Result<HttpOutside, SetupError> {
    let url = Url::parse(base).unwrap();
    let key = |name: &str| Secret::new(format!("{CANARY}-{name}"));
    let endpoints = Endpoints {
        nango: NangoEndpoint { base: url.clone(), key: key("nango") },
        composio: ComposioEndpoint { base: url.clone(), key: key("composio"), oauth_apps: BTreeMap::new() },
        cloudflare: CloudflareEndpoint {
            base: url.clone(),
            token: key("cloudflare"),
            kv_source: "kv1".into(),
            kv_target: "kv2".into(),
            d1: "db".into(),
        },
        gateway: GatewayEndpoint { base: url.clone(), admin_key: key("admin"), gateway_key: key("gateway") },
        provider: ProviderEndpoint { base_override: Some(url) },
        allow_insecure_http: false,
    };
    HttpOutside::with_timeouts(endpoints, Arc::new(|| Timestamp::from_secs(1_790_000_000)), timeouts)
}

type Calling<'a> = Pin<Box<dyn Future<Output = Result<(), ApiError>> + 'a>>;

/// A call and the Rust that makes it.
struct Call {
    name: &'static str,
    code: &'static str,
    run: for<'a> fn(&'a HttpOutside) -> Calling<'a>,
}

impl Call {
    /// The client's method: `list_keys` of `o.cloudflare().list_keys(…)`.
    fn method(&self) -> String {
        let after = self.code.split_once("().").expect("a client comes before the method").1;
        after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    }
}

fn unit<'a, T>(call: impl Future<Output = ApiResult<T>> + 'a) -> Calling<'a> {
    Box::pin(async { call.await.map(|_| ()) })
}

/// A call in which every argument that can hold one holds a canary.
macro_rules! calls {
    ($($name:literal: |$o:ident| $call:expr;)*) => {
        vec![$(Call {
            name: $name,
            code: stringify!($call),
            run: |$o| unit(async move { $call.await }),
        }),*]
    };
}

fn token() -> Secret {
    Secret::new("canary-token")
}

fn triplet() -> Triplet {
    Triplet::parse("canary:hubspot:default").unwrap()
}

fn put(key: &str) -> KvPut {
    KvPut { key: key.to_owned(), value: token(), metadata: Some(json!({"v": 1})) }
}

fn asked(url: &str) -> ProviderCall {
    ProviderCall { method: "GET".into(), url: url.into(), headers: BTreeMap::new(), body: None }
}

fn calls() -> Vec<Call> {
    calls! {
        "nango list": |o| o.source().list_connections();
        "nango integrations": |o| o.source().list_integrations();
        "nango fetch": |o| o.source().fetch_credential("canary-key", "canary-id");
        "nango metadata": |o| o.source().skip_revocation("canary-key", "canary-id", &CANARY.into());
        "nango delete": |o| o.source().delete_connection("canary-key", "canary-id");
        "nango session": |o| o.source().open_session("canary", Some("canary"), "canary");
        "composio auth configs": |o| o.target().list_auth_configs();
        "composio accounts": |o| o.target().list_accounts();
        "composio accounts of": |o| o.target().list_accounts_of("canary-user");
        "composio subscriptions": |o| o.target().list_webhook_subscriptions();
        "composio account": |o| o.target().get_account("ca_canary");
        "composio toolkit": |o| o.target().find_toolkit("canary");
        "composio proxy": |o| o.target().proxy("ca_canary", &asked("https://a.example/canary"));
        "composio create auth config": |o|
            o.target().create_auth_config("canary", "canary", TargetScheme::Oauth2, &["canary".to_owned()]);
        "composio create account": |o| o.target().create_bearer_account("ac_canary", "canary", "canary", &token());
        "composio patch": |o| o.target().patch_bearer("ca_canary", &token());
        "composio link": |o| o.target().create_link("ac_canary", "canary", "canary", Some("https://a.example/canary"));
        "composio status": |o| o.target().set_account_enabled("ca_canary", false);
        "composio delete": |o| o.target().delete_account("ca_canary");
        "kv list": |o| o.cloudflare().list_keys(Namespace::Source, "tokens:canary", Some("canary"));
        "kv bulk get urgent": |o| o.cloudflare().bulk_get_urgent(Namespace::Target, &["tokens:canary".to_owned()]);
        "kv bulk get": |o| o.cloudflare().bulk_get(Namespace::Target, &["tokens:canary".to_owned()]);
        "object namespaces": |o| o.cloudflare().list_object_namespaces();
        "objects": |o| o.cloudflare().list_objects("canary");
        "kv inspect page": |o|
            o.cloudflare().list_page(&KvPlace::Gateway(Namespace::Source), "tokens:canary", Some("canary"));
        "kv inspect values": |o|
            o.cloudflare().read_values(&KvPlace::Id("canary".into()), &["tokens:canary".to_owned()]);
        "kv bulk put": |o| o.cloudflare().bulk_put(Namespace::Source, &[put("tokens:canary")]);
        "kv put": |o| o.cloudflare().put(Namespace::Source, &put("tokens:canary"));
        "kv put until": |o|
            o.cloudflare().put_until(Namespace::Source, &put("tokens:canary"), Timestamp::from_secs(1_800_000_000));
        "kv delete": |o| o.cloudflare().delete(Namespace::Source, "tokens:canary");
        "d1 audit": |o| o.cloudflare().append_audit(&[AuditRow {
            op_id: "canary".into(),
            at: Timestamp::from_secs(1),
            key: "canary".into(),
            action: "put".into(),
            source: "nango".into(),
            fingerprint: None,
        }]);
        "d1 audit end": |o| o.cloudflare().audit_end();
        "d1 audit rows": |o| o.cloudflare().read_audit(7);
        "d1 audit of operations": |o| o.cloudflare().find_audit(&["canary".to_owned()]);
        "gateway alarms": |o| o.gateway().list_alarms();
        "gateway alarm": |o| o.gateway().read_alarm(&triplet());
        "gateway fires": |o| o.gateway().list_fires(Timestamp::from_secs(1));
        "gateway smoke": |o| o.gateway().smoke(&[triplet()]);
        "gateway mode": |o| o.gateway().set_alarm_mode(&triplet(), AlarmMode::Disarmed);
        "gateway whoami": |o| o.gateway().fetch_whoami(&triplet());
        "provider whoami": |o|
            o.provider().whoami(&token(), &asked("https://api.example.com/canary?canary=1"));
        "provider ask": |o|
            o.provider().ask(&token(), &asked("https://api.example.com/canary?canary=1"));
    }
}

/// A fault, and what must come of it.
struct Case {
    name: &'static str,
    fault: Fault,
    /// Requests that may have had their effect when it is over: never more than one.
    effects: usize,
    expect: fn(&str, &ApiErrorKind) -> bool,
    /// The answer is whole: a call that hands answers on as they are has nothing to complain of.
    is_answer: bool,
}

impl Case {
    fn whole(mut self) -> Self {
        self.is_answer = true;
        self
    }
}

/// The hot path's body belongs to the upstream; its headers are what is missing in a bad answer.
const HOT_PATH: &str = "gateway whoami";

/// Returns a provider's answer as it is, so only the absence of one is an error.
const RAW: &str = "provider ask";

fn faults(elsewhere: &str) -> Vec<Case> {
    let case = |name, fault, expect| Case { name, fault, effects: 1, expect, is_answer: false };
    let refused = |name, fault, expect| Case { name, fault, effects: 0, expect, is_answer: false };
    let json_error = r#"{"error":{"code":"server_error","slug":"S","message":"canary"},"success":false,"errors":[{"message":"canary"}]}"#;
    let is_server: fn(&str, &ApiErrorKind) -> bool = |_, kind| matches!(kind, ApiErrorKind::Server { status: 500, .. });
    let limited_for_7_s: fn(&str, &ApiErrorKind) -> bool =
        |_, kind| *kind == ApiErrorKind::RateLimited { retry_after_ms: Some(7_000) };
    let timed_out: fn(&str, &ApiErrorKind) -> bool =
        |_, kind| matches!(kind, ApiErrorKind::Unreachable { sent: true, detail } if detail == "timed out");
    let lost: fn(&str, &ApiErrorKind) -> bool =
        |_, kind| matches!(kind, ApiErrorKind::Unreachable { sent: true, detail } if detail.starts_with("connection"));
    let too_large: fn(&str, &ApiErrorKind) -> bool = |name, kind| match name {
        // A hundred values may be larger than that; what came is whitespace around nothing.
        "kv bulk get" | "kv bulk get urgent" | "kv inspect values" => is_contract(kind, ""),
        _ => is_contract(kind, "more than"),
    };
    let odd_type: fn(&str, &ApiErrorKind) -> bool =
        |name, kind| is_contract(kind, if name == HOT_PATH { "x-read-authority" } else { "content type" });
    let html: fn(&str, &ApiErrorKind) -> bool =
        |name, kind| is_contract(kind, if name == HOT_PATH { "x-read-authority" } else { "HTML instead of JSON" });
    let to = |status| answer(status, &format!("location: {elsewhere}/canary?canary=1\r\n"), "");
    let redirected: fn(&str, &ApiErrorKind) -> bool = |_, kind| is_contract(kind, "redirect to another origin");
    vec![
        refused(
            "429 with Retry-After",
            refusal(429, &format!("{JSON}retry-after: 7\r\n"), r#"{"message":"canary"}"#),
            limited_for_7_s,
        ),
        case("429 with Retry-After and HTML", answer(429, "retry-after: 7\r\n", "<html>canary"), limited_for_7_s),
        refused("429 without Retry-After", refusal(429, "", ""), |_, kind| {
            *kind == ApiErrorKind::RateLimited { retry_after_ms: None }
        }),
        case("429 cut off in its body", Fault::Reset(raw(429, "retry-after: 0\r\n", 500, "{\"canary")), |_, kind| {
            *kind == ApiErrorKind::RateLimited { retry_after_ms: Some(1_000) }
        }),
        refused("500 before the effect", refusal(500, JSON, json_error), is_server),
        case("500 after the effect", answer(500, JSON, json_error), is_server),
        case("500 with HTML", answer(500, "content-type: text/html\r\n", "<html>canary</html>"), is_server),
        case("500 with broken JSON", answer(500, JSON, "{\"canary"), is_server),
        case("500 with nothing", answer(500, "", ""), is_server),
        case("timeout", Fault::Silence, timed_out),
        case("timeout in the body", Fault::Stall(raw(200, JSON, 500, "{\"canary")), timed_out),
        case("reset before the answer", Fault::Reset(Vec::new()), lost),
        case("reset in the body", Fault::Reset(raw(200, JSON, 500, "{\"canary")), lost),
        case("end in the body", Fault::Answer(raw(200, JSON, 500, "{\"canary")), lost),
        case("no HTTP", Fault::Answer(b"canary\r\n\r\n".to_vec()), lost),
        case("truncated JSON", answer(200, JSON, "{\"canary\":\"cana"), |name, kind| {
            is_contract(kind, if name == HOT_PATH { "x-read-authority" } else { "broken JSON" })
        })
        .whole(),
        case("HTML 200", answer(200, "content-type: text/html\r\n", "<html>canary</html>"), html).whole(),
        case("wrong content type", answer(200, "content-type: text/plain; canary\r\n", "{}"), odd_type).whole(),
        case("no content type", answer(200, "", "{}"), odd_type).whole(),
        case("301 to another origin", to(301), redirected),
        case("302 to another origin", to(302), redirected),
        case("303 to another origin", to(303), redirected),
        case("307 to another origin", to(307), redirected),
        case("308 to another origin", to(308), redirected),
        case("redirect", answer(302, "location: /canary\r\n", ""), |_, kind| {
            *kind == ApiErrorKind::Contract { detail: "redirect".into() }
        }),
        case("10 MB body announced", Fault::Stall(raw(200, JSON, 40 * 1024 * 1024, "{")), |_, kind| {
            is_contract(kind, "more than")
        }),
        case("10 MB body", Fault::Stream(11 * 1024 * 1024), too_large),
        case("401 with HTML", answer(401, "content-type: text/html\r\n", "<html>canary</html>"), |_, kind| {
            matches!(kind, ApiErrorKind::Unauthorized { status: 401, .. })
        })
        .whole(),
        case("403 with HTML", answer(403, "content-type: text/html\r\n", "<html>canary</html>"), |_, kind| {
            matches!(kind, ApiErrorKind::Unauthorized { status: 403, .. })
        })
        .whole(),
        // Something before the system answered: that does not mean that the thing is gone.
        case("404 with HTML", answer(404, "content-type: text/html\r\n", "<html>canary</html>"), |_, kind| {
            is_contract(kind, "404")
        })
        .whole(),
        case("418 with HTML", answer(418, "content-type: text/html\r\n", "<html>canary</html>"), |_, kind| {
            matches!(kind, ApiErrorKind::Rejected { status: 418, .. })
        })
        .whole(),
    ]
}

#[tokio::test]
async fn every_endpoint_meets_every_fault_with_its_documented_error_after_one_request() {
    let elsewhere = Server::start(answer(200, JSON, "{}")).await;
    let (calls, faults) = (calls(), faults(&elsewhere.base));
    let mut cases = 0;
    for case in &faults {
        let server = Server::start(case.fault.clone()).await;
        let waits = matches!(case.fault, Fault::Silence | Fault::Stall(_));
        let outside = outside(&server.base, if waits { IMPATIENT } else { Timeouts::default() });
        for call in &calls {
            let what = format!("{} × {}", call.name, case.name);
            server.set(case.fault.clone());
            let result = (call.run)(&outside).await;
            cases += 1;
            assert_eq!(server.connections(), 1, "{what} must ask once");
            let requests = server.requests();
            assert_eq!(requests.len(), case.effects, "{what}: effects");
            for request in requests {
                let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
                let keys = ["authorization: ", "x-api-key: ", "x-admin-key: "].map(|name| text.matches(name).count());
                assert_eq!(keys.iter().sum::<usize>(), 1, "{what}: one credential, {text}");
            }
            if call.name == RAW && case.is_answer {
                assert!(result.is_ok(), "{what}: {result:?}");
                continue;
            }
            let error = result.expect_err(&what);
            let shown = format!("{error} {error:?}");
            assert!((case.expect)(call.name, &error.kind), "{what}: {shown}");
            assert!(!shown.contains(CANARY), "{what} shows a secret: {shown}");
            assert!(error.path.starts_with('/') && !error.path.contains('?'), "{what}: {}", error.path);
            // A request that was refused is known to have done nothing; after all else, only looking tells.
            let refused = matches!(
                error.kind,
                ApiErrorKind::RateLimited { .. } | ApiErrorKind::Unauthorized { .. } | ApiErrorKind::Rejected { .. }
            );
            assert_eq!(error.may_have_taken_effect(), !refused, "{what}: {shown}");
        }
        let traffic: u64 = outside.take_traffic().values().map(|traffic| traffic.requests).sum();
        assert_eq!(traffic, calls.len() as u64, "{}", case.name);
    }
    assert_eq!(elsewhere.connections(), 0, "nothing, and no credential, may reach another origin");
    println!("{} calls × {} faults = {cases} cases", calls.len(), faults.len());
}

/// The methods of the ports that reach an outside system, and those that clients have beside them.
fn methods_of_the_clients() -> BTreeSet<String> {
    let ports = include_str!("../src/ports.rs");
    let mut methods = BTreeSet::new();
    let mut inside = false;
    for line in ports.lines() {
        inside = (inside || line.starts_with("pub trait ")) && line != "}" && !line.starts_with("pub trait Outside");
        if inside && let Some(rest) = line.strip_prefix("    fn ") {
            methods.insert(rest.chars().take_while(|c| *c != '(').collect());
        }
    }
    for source in sources_of_the_clients() {
        let public = source.split("pub async fn ").skip(1);
        methods.extend(public.map(|rest| rest.chars().take_while(|c| *c != '(' && *c != '<').collect::<String>()));
    }
    // The transport itself, which every row goes through, and a handshake without a request.
    methods.remove("send");
    methods.remove("look");
    methods
}

fn sources_of_the_clients() -> Vec<String> {
    let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/clients")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                sources.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    sources
}

#[tokio::test]
async fn no_endpoint_is_left_out_of_the_table() {
    let rows: BTreeSet<String> = calls().iter().map(Call::method).collect();
    let methods = methods_of_the_clients();
    assert!(methods.len() >= 30, "the sources are read: {methods:?}");
    assert_eq!(methods.difference(&rows).collect::<Vec<_>>(), Vec::<&String>::new(), "methods without a row");

    // And each path that a client knows is asked by some row.
    let server = Server::start(answer(500, "", "")).await;
    let outside = outside(&server.base, Timeouts::default());
    let mut asked = BTreeSet::new();
    for call in calls() {
        asked.insert((call.run)(&outside).await.expect_err(call.name).path);
    }
    let mut paths = BTreeSet::new();
    for source in sources_of_the_clients() {
        for constant in source.lines().filter_map(|line| line.strip_prefix("const ")) {
            let Some((name, value)) = constant.split_once(": &str = \"/") else { continue };
            // Where routes start, an address that is only sent as a value, and one that is asked only
            // with what another one gave.
            if !matches!(name, "PREFIX" | "OAUTH_CALLBACK" | "OWN_SESSION") {
                paths.insert(format!("/{}", value.trim_end_matches("\";")));
            }
        }
    }
    assert!(paths.len() >= 18, "the sources are read: {paths:?}");
    assert_eq!(paths.difference(&asked).collect::<Vec<_>>(), Vec::<&String>::new(), "paths that no row asks");
}

fn is_contract(kind: &ApiErrorKind, part: &str) -> bool {
    matches!(kind, ApiErrorKind::Contract { detail } if detail.contains(part))
}

#[tokio::test]
async fn a_refused_connection_had_no_effect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let outside = outside(&base, Timeouts::default());
    for Call { name, run, .. } in calls() {
        let error = run(&outside).await.expect_err(name);
        let refused = ApiErrorKind::Unreachable { sent: false, detail: "connection refused".to_owned() };
        assert_eq!(error.kind, refused, "{name}");
        assert!(!error.may_have_taken_effect());
    }
}

#[tokio::test]
async fn a_failed_tls_handshake_had_no_effect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let https = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 X\r\n\r\n").await.unwrap();
        wait_for_hang_up(&mut stream).await.ok();
    });
    // A machine without CA certificates cannot get as far as a handshake.
    let outside = match build(&https, Timeouts::default()) {
        Err(SetupError::Tls(_)) => return,
        built => built.unwrap(),
    };
    let error = outside.source().list_integrations().await.unwrap_err();
    let failed = ApiErrorKind::Unreachable { sent: false, detail: "TLS handshake failed".to_owned() };
    assert_eq!(error.kind, failed);
}
