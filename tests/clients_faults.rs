//! Every endpoint of every client against every way in which an answer can go wrong.
//!
//! The server speaks raw TCP, because a well-behaved HTTP library cannot be made to break off in
//! the middle of a body. Each fault must come out as its documented error after exactly one
//! request, and nothing that was planted (keys, tokens, ids, bodies) may show in the error.

use std::collections::BTreeMap;
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
    AlarmMode, ApiError, ApiErrorKind, ApiResult, AuditRow, AuditSink, GatewayAdmin, GatewayRead, KvPut, KvRead,
    KvWrite, Namespace, Outside, ProviderCall, ProviderRead, SourceCustody, SourceRead, TargetCustody, TargetRead,
    TargetScheme,
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
    /// Answers with these bytes, then closes.
    Answer(Vec<u8>),
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
}

impl Server {
    async fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { base, fault: Arc::new(Mutex::new(fault)), connections: Arc::new(AtomicUsize::new(0)) };
        let (fault, connections) = (Arc::clone(&server.fault), Arc::clone(&server.connections));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let fault = fault.lock().unwrap().clone();
                // A client that hangs up in the middle is part of the test.
                tokio::spawn(async move { serve(stream, fault).await.ok() });
            }
        });
        server
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
        self.connections.store(0, Ordering::SeqCst);
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, fault: Fault) -> std::io::Result<()> {
    read_request(&mut stream).await?;
    match fault {
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
type Call = (&'static str, for<'a> fn(&'a HttpOutside) -> Calling<'a>);

fn unit<'a, T>(call: impl Future<Output = ApiResult<T>> + 'a) -> Calling<'a> {
    Box::pin(async { call.await.map(|_| ()) })
}

/// A call in which every argument that can hold one holds a canary.
macro_rules! calls {
    ($($name:literal: |$o:ident| $call:expr;)*) => {
        vec![$(($name, (|$o| unit(async move { $call.await })) as for<'a> fn(&'a HttpOutside) -> Calling<'a>)),*]
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
        "nango metadata": |o| o.source().merge_metadata("canary-key", "canary-id", json!({"canary": true}));
        "nango delete": |o| o.source().delete_connection("canary-key", "canary-id");
        "composio auth configs": |o| o.target().list_auth_configs();
        "composio accounts": |o| o.target().list_accounts();
        "composio accounts of": |o| o.target().list_accounts_of("canary-user");
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
        "kv bulk get": |o| o.cloudflare().bulk_get(Namespace::Target, &["tokens:canary".to_owned()]);
        "kv bulk put": |o| o.cloudflare().bulk_put(Namespace::Source, &[put("tokens:canary")]);
        "kv put": |o| o.cloudflare().put(Namespace::Source, &put("tokens:canary"));
        "kv delete": |o| o.cloudflare().delete(Namespace::Source, "tokens:canary");
        "d1 audit": |o| o.cloudflare().append_audit(&[AuditRow {
            op_id: "canary".into(),
            at: Timestamp::from_secs(1),
            key: "canary".into(),
            action: "put".into(),
            source: "nango".into(),
            fingerprint: None,
        }]);
        "gateway alarms": |o| o.gateway().list_alarms();
        "gateway alarm": |o| o.gateway().read_alarm(&triplet());
        "gateway fires": |o| o.gateway().list_fires(Timestamp::from_secs(1));
        "gateway smoke": |o| o.gateway().smoke(&[triplet()]);
        "gateway mode": |o| o.gateway().set_alarm_mode(&triplet(), AlarmMode::Disarmed);
        "gateway whoami": |o| o.gateway().fetch_whoami(&triplet());
        "provider whoami": |o|
            o.provider().whoami(&token(), &asked("https://api.example.com/canary?canary=1"));
    }
}

/// Runs every call against one fault and hands each error to `expect`.
async fn every_call_meets(fault: Fault, expect: impl Fn(&str, &ApiErrorKind) -> bool) {
    let server = Server::start(fault.clone()).await;
    let waits = matches!(fault, Fault::Silence | Fault::Stall(_));
    let outside = outside(&server.base, if waits { IMPATIENT } else { Timeouts::default() });
    for (name, call) in calls() {
        server.set(fault.clone());
        let error = call(&outside).await.expect_err(name);
        let shown = format!("{error} {error:?}");
        assert!(expect(name, &error.kind), "{name}: {shown}");
        assert!(!shown.contains(CANARY), "{name} shows a secret: {shown}");
        assert_eq!(server.connections(), 1, "{name} must ask once");
        assert!(error.path.starts_with('/') && !error.path.contains('?'), "{name}: {}", error.path);
    }
    let traffic: u64 = outside.take_traffic().values().map(|traffic| traffic.requests).sum();
    assert_eq!(traffic, calls().len() as u64);
}

fn is_contract(kind: &ApiErrorKind, part: &str) -> bool {
    matches!(kind, ApiErrorKind::Contract { detail } if detail.contains(part))
}

#[tokio::test]
async fn a_429_keeps_its_retry_after_whatever_its_body_is() {
    for body in [r#"{"message":"canary"}"#, "<html>canary", ""] {
        let fault = answer(429, "content-type: application/json\r\nretry-after: 7\r\n", body);
        every_call_meets(fault, |_, kind| *kind == ApiErrorKind::RateLimited { retry_after_ms: Some(7_000) }).await;
    }
    let bare = answer(429, "", "");
    every_call_meets(bare, |_, kind| *kind == ApiErrorKind::RateLimited { retry_after_ms: None }).await;
    let cut = Fault::Reset(raw(429, "retry-after: 0\r\n", 500, "{\"canary"));
    every_call_meets(cut, |_, kind| *kind == ApiErrorKind::RateLimited { retry_after_ms: Some(1_000) }).await;
}

#[tokio::test]
async fn a_500_is_a_server_error_whatever_its_body_is() {
    for (headers, body) in [
        (
            JSON,
            r#"{"error":{"code":"server_error","slug":"S","message":"canary"},"success":false,"errors":[{"message":"canary"}]}"#,
        ),
        ("content-type: text/html\r\n", "<html>canary</html>"),
        (JSON, "{\"canary"),
        ("", ""),
    ] {
        let is_server = |_: &str, kind: &ApiErrorKind| matches!(kind, ApiErrorKind::Server { status: 500, .. });
        every_call_meets(answer(500, headers, body), is_server).await;
    }
}

#[tokio::test]
async fn refusals_without_an_envelope_never_mean_not_found() {
    let html = |status| answer(status, "content-type: text/html\r\n", "<html>canary</html>");
    every_call_meets(html(401), |_, kind| matches!(kind, ApiErrorKind::Unauthorized { status: 401, .. })).await;
    every_call_meets(html(403), |_, kind| matches!(kind, ApiErrorKind::Unauthorized { status: 403, .. })).await;
    every_call_meets(html(404), |_, kind| is_contract(kind, "404")).await;
    every_call_meets(html(418), |_, kind| matches!(kind, ApiErrorKind::Rejected { status: 418, .. })).await;
}

#[tokio::test]
async fn silence_times_out_and_may_have_had_an_effect() {
    let timed_out = |_: &str, kind: &ApiErrorKind| matches!(kind, ApiErrorKind::Unreachable { sent: true, detail } if detail == "timed out");
    every_call_meets(Fault::Silence, timed_out).await;
    every_call_meets(Fault::Stall(raw(200, JSON, 500, "{\"canary")), timed_out).await;
}

#[tokio::test]
async fn a_connection_lost_after_the_request_may_have_had_an_effect() {
    let lost = |_: &str, kind: &ApiErrorKind| matches!(kind, ApiErrorKind::Unreachable { sent: true, detail } if detail.starts_with("connection"));
    every_call_meets(Fault::Reset(Vec::new()), lost).await;
    every_call_meets(Fault::Reset(raw(200, JSON, 500, "{\"canary")), lost).await;
    every_call_meets(Fault::Answer(raw(200, JSON, 500, "{\"canary")), lost).await;
    every_call_meets(Fault::Answer(b"canary\r\n\r\n".to_vec()), lost).await;
}

#[tokio::test]
async fn a_refused_connection_had_no_effect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let outside = outside(&base, Timeouts::default());
    for (name, call) in calls() {
        let error = call(&outside).await.expect_err(name);
        let refused = ApiErrorKind::Unreachable { sent: false, detail: "connection refused".to_owned() };
        assert_eq!(error.kind, refused, "{name}");
        assert!(!error.may_have_taken_effect());
    }
}

#[tokio::test]
async fn a_success_that_is_not_json_is_not_in_the_contract() {
    every_call_meets(answer(200, JSON, "{\"canary\":\"cana"), |name, kind| {
        // The hot path's body belongs to the upstream; its headers are what is missing.
        is_contract(kind, if name == "gateway whoami" { "x-read-authority" } else { "broken JSON" })
    })
    .await;
    every_call_meets(answer(200, "content-type: text/html\r\n", "<html>canary</html>"), |name, kind| {
        is_contract(kind, if name == "gateway whoami" { "x-read-authority" } else { "HTML instead of JSON" })
    })
    .await;
    for content_type in ["content-type: text/plain; canary\r\n", ""] {
        every_call_meets(answer(200, content_type, "{}"), |name, kind| {
            is_contract(kind, if name == "gateway whoami" { "x-read-authority" } else { "content type" })
        })
        .await;
    }
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let elsewhere = Server::start(answer(200, JSON, "{}")).await;
    for status in [301, 302, 303, 307, 308] {
        let fault = answer(status, &format!("location: {}/canary?canary=1\r\n", elsewhere.base), "");
        every_call_meets(fault, |_, kind| is_contract(kind, "redirect to another origin")).await;
    }
    let here = answer(302, "location: /canary\r\n", "");
    every_call_meets(here, |_, kind| *kind == ApiErrorKind::Contract { detail: "redirect".into() }).await;
    assert_eq!(elsewhere.connections(), 0, "nothing may reach another origin");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_not_read() {
    let announced = Fault::Stall(raw(200, JSON, 40 * 1024 * 1024, "{"));
    every_call_meets(announced, |_, kind| is_contract(kind, "more than")).await;
    every_call_meets(Fault::Stream(33 * 1024 * 1024), |_, kind| is_contract(kind, "more than")).await;
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
