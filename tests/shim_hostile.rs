//! Bad input: every hostile request gets its documented status, nothing of it reaches the journal,
//! and the shim goes on serving.

#[path = "support/fake.rs"]
mod fake;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use cutover::catalogue::Catalogue;
use cutover::domain::secret::{Secret, hex, hmac_sha256};
use cutover::domain::time::Timestamp;
use cutover::engine::{Engine, EngineConfig};
use cutover::plan::Policy;
use cutover::shim::{AdminKeys, Limits, Shim, ShimConfig, serve, tls};
use fake::{Fake, connection_id, soaking, triplet};
use sha2::{Digest, Sha256};

const NANGO_KEY: &str = "c1f7a0f2-93c4-4f0e-8f5e-0c6f8f6b9b1d";
const OLD_NANGO_KEY: &str = "0b6f2c11-5d0e-4c39-a8a1-7f2f4f1f2c77";
const COMPOSIO_KEY: &str = "whsec_4kQm81xZr0LpTt7u";
const ADMIN_KEY: &str = "f3b6c9e2a1d84756b0c1d2e3f4a59687";
const NOW_S: i64 = 1_790_000_000;
/// What no answer may repeat.
const CANARY: &str = "cnry-7c1e";

/// A shim on loopback over a state whose duties do not run: what is accepted stays countable.
struct Served {
    address: SocketAddr,
    engine: Arc<Engine<Fake>>,
    runtime: tokio::runtime::Runtime,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: Option<tokio::task::JoinHandle<bool>>,
    _dir: tempfile::TempDir,
}

impl Served {
    fn start(limits: Limits, encrypted: bool, change: impl FnOnce(&mut ShimConfig)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let engine = runtime.block_on(async {
            let store = soaking(dir.path(), 2).await;
            let config = EngineConfig::new(Policy::default());
            Arc::new(Engine::new(store, Fake::default(), Catalogue::built_in(), config).await.unwrap())
        });
        let mut config = ShimConfig {
            nango_keys: vec![Secret::new(NANGO_KEY), Secret::new(OLD_NANGO_KEY)],
            composio_keys: vec![Secret::new(COMPOSIO_KEY)],
            admin_keys: AdminKeys::of(&[Secret::new(ADMIN_KEY)]),
            ..ShimConfig::default()
        };
        change(&mut config);
        let clock = Arc::new(AtomicI64::new(NOW_S));
        let shim = Arc::new(Shim::new(config, move || Timestamp::from_secs(clock.load(Ordering::Relaxed))));
        shim.set_engine(Some(Arc::clone(&engine)));
        let acceptor =
            encrypted.then(|| tls("fixtures/tls/cert.pem".as_ref(), "fixtures/tls/key.pem".as_ref()).unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (address, server) = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stopped = async { drop(stopped.await) };
            (address, tokio::spawn(serve(listener, shim.router(), acceptor, limits, stopped)))
        });
        Self { address, engine, runtime, stop: Some(stop), server: Some(server), _dir: dir }
    }

    /// Entries in the intake log.
    fn accepted(&self) -> usize {
        let segments = self.runtime.block_on(self.engine.store().load_intake(u32::MAX)).unwrap();
        segments.iter().map(|segment| segment.entries.len()).sum()
    }

    /// Notes of lost grants, which Composio's webhooks make.
    fn expired_accounts(&self) -> usize {
        self.runtime.block_on(self.engine.store().load_notes("account-expired")).unwrap().len()
    }

    /// Sends bytes and reads until the other side closes. Status 0: it closed without an answer.
    fn send(&self, bytes: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The shim may refuse before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, text)
    }

    /// Tells the shim to stop. Returns whether requests under way were finished.
    fn stop(&mut self) -> bool {
        self.stop.take().unwrap().send(()).unwrap();
        self.runtime.block_on(self.server.take().unwrap()).unwrap()
    }
}

/// A request and the status that the documentation promises for it.
struct Case {
    name: String,
    bytes: Vec<u8>,
    status: u16,
}

fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nhost: shim\r\nconnection: close\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn nango_body() -> String {
    format!(
        r#"{{"authMode":"OAUTH2","connectionId":"{}","environment":"prod","from":"nango","operation":"override","provider":"slack","providerConfigKey":"slack","success":true,"tags":{{"end_user_id":"{}"}},"type":"auth"}}"#,
        connection_id(0),
        connection_id(0)
    )
}

fn nango_signature(key: &str, body: &[u8]) -> String {
    hex(&hmac_sha256(key.as_bytes(), &[body]))
}

fn nango(headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    request("POST", "/admin/sync/nango", headers, body)
}

fn signed_nango(body: &[u8]) -> Vec<u8> {
    nango(&[("x-nango-hmac-sha256", &nango_signature(NANGO_KEY, body))], body)
}

fn composio_body() -> String {
    r#"{"id":"msg_1","timestamp":"2026-09-21T14:13:20Z","type":"composio.connected_account.expired","data":{"id":"ca_0","status":"EXPIRED"}}"#.to_owned()
}

fn composio_signature(key: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
    let mac = hmac_sha256(key.as_bytes(), &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);
    format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(mac))
}

fn composio(id: &str, timestamp: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    let headers = [("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)];
    request("POST", "/admin/sync/composio", &headers, body)
}

fn signed_composio(id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    composio(id, timestamp, &composio_signature(COMPOSIO_KEY, id, timestamp, body), body)
}

fn put(target: &str, body: &str) -> Vec<u8> {
    request("PUT", target, &[("x-admin-key", ADMIN_KEY), ("content-type", "application/json")], body.as_bytes())
}

fn token_target() -> String {
    let t = triplet(0);
    format!("/admin/tokens/{}/{}/{}", t.tenant, t.provider, t.account)
}

fn flipped(text: &str, byte: usize, bit: u8) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes[byte] ^= 1 << bit;
    bytes
}

struct Corpus(Vec<Case>);

impl Corpus {
    fn add(&mut self, name: impl Into<String>, status: u16, bytes: Vec<u8>) {
        self.0.push(Case { name: name.into(), bytes, status });
    }

    fn nango_signatures(&mut self) {
        let body = nango_body();
        let good = nango_signature(NANGO_KEY, body.as_bytes());
        for byte in 0..good.len() {
            // The lowest bit keeps a hex digit printable.
            let bad = String::from_utf8(flipped(&good, byte, 0)).unwrap();
            self.add(
                format!("nango: signature off by one bit at {byte}"),
                401,
                nango(&[("x-nango-hmac-sha256", &bad)], body.as_bytes()),
            );
        }
        for byte in (0..body.len()).step_by(5) {
            let bad = flipped(&body, byte, 0);
            self.add(
                format!("nango: body off by one bit at {byte}"),
                401,
                nango(&[("x-nango-hmac-sha256", &good)], &bad),
            );
        }
        let legacy = hex(&Sha256::new().chain_update(NANGO_KEY).chain_update(&body).finalize());
        let upper = good.to_uppercase();
        for (name, headers) in [
            ("no signature", vec![]),
            ("an empty signature", vec![("x-nango-hmac-sha256", "")]),
            ("a cut signature", vec![("x-nango-hmac-sha256", &good[..63])]),
            ("a long signature", vec![("x-nango-hmac-sha256", &*legacy.repeat(50))]),
            ("upper-case hex", vec![("x-nango-hmac-sha256", &*upper)]),
            ("a prefix", vec![("x-nango-hmac-sha256", "sha256=00")]),
            ("the legacy signature alone", vec![("x-nango-signature", &*legacy)]),
            ("the legacy signature as the new one", vec![("x-nango-hmac-sha256", &*legacy)]),
            (
                "a signature of the admin key",
                vec![("x-nango-hmac-sha256", &*nango_signature(ADMIN_KEY, body.as_bytes()))],
            ),
            ("the admin key", vec![("x-admin-key", ADMIN_KEY)]),
        ] {
            self.add(format!("nango: {name}"), 401, nango(&headers, body.as_bytes()));
        }
        let reserialised =
            serde_json::to_string_pretty(&serde_json::from_str::<serde_json::Value>(&body).unwrap()).unwrap();
        self.add(
            "nango: the same JSON in other bytes",
            401,
            nango(&[("x-nango-hmac-sha256", &good)], reserialised.as_bytes()),
        );
        self.add(
            "nango: a newline behind",
            401,
            nango(&[("x-nango-hmac-sha256", &good)], format!("{body}\n").as_bytes()),
        );
        let mut raw = b"POST /admin/sync/nango HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-nango-hmac-sha256: \xff\xfe\r\ncontent-length: 2\r\n\r\n{}".to_vec();
        self.add("nango: a signature that is no text", 401, std::mem::take(&mut raw));
    }

    fn nango_bodies(&mut self) {
        let long = "x".repeat(256);
        for (name, body) in [
            ("nothing", String::new()),
            ("null", "null".to_owned()),
            ("a list", "[]".to_owned()),
            ("a text", "\"auth\"".to_owned()),
            ("a number", "1e308".to_owned()),
            ("no type", "{}".to_owned()),
            ("type null", r#"{"type":null}"#.to_owned()),
            ("type twice", r#"{"type":"auth","type":"auth"}"#.to_owned()),
            ("connectionId twice", r#"{"type":"auth","connectionId":"a","connectionId":"b"}"#.to_owned()),
            ("connectionId a number", r#"{"type":"auth","connectionId":7}"#.to_owned()),
            ("connectionId a list", r#"{"type":"auth","connectionId":["a"]}"#.to_owned()),
            ("success a text", r#"{"type":"auth","success":"true"}"#.to_owned()),
            ("a long connectionId", format!(r#"{{"type":"auth","connectionId":"{long}"}}"#)),
            ("a long key", format!(r#"{{"type":"auth","providerConfigKey":"{long}"}}"#)),
            ("cut JSON", r#"{"type":"auth""#.to_owned()),
            ("two objects", r#"{"type":"auth"}{"type":"auth"}"#.to_owned()),
            ("a lone surrogate", r#"{"type":"auth","connectionId":"\ud800"}"#.to_owned()),
            ("a raw control character", "{\"type\":\"auth\",\"connectionId\":\"\u{0}\"}".to_owned()),
            ("a number out of range", r#"{"type":"auth","success":1e999999}"#.to_owned()),
            ("nested too deeply", format!(r#"{{"type":"auth","tags":{}"#, "[".repeat(50_000))),
            ("XML", "<auth/>".to_owned()),
            ("a form", "type=auth".to_owned()),
            ("a byte order mark", "\u{feff}{\"type\":\"auth\"}".to_owned()),
        ] {
            self.add(format!("nango: signed {name}"), 400, signed_nango(body.as_bytes()));
        }
        for (name, bytes) in [("not UTF-8", &b"{\"type\":\"au\xff\"}"[..]), ("UTF-16", b"\xff\xfe{\0}\0")] {
            self.add(format!("nango: signed {name}"), 400, signed_nango(bytes));
        }
        for kind in
            ["sync", "async_action", "forward", "AUTH", "auth ", "", "__proto__", "constructor", "🔑", "auth\\u0000"]
        {
            let body = format!(r#"{{"type":"{kind}","connectionId":"x"}}"#);
            self.add(format!("nango: unknown type `{kind}`"), 200, signed_nango(body.as_bytes()));
        }
    }

    fn composio_signatures(&mut self) {
        let (body, now) = (composio_body(), NOW_S.to_string());
        let good = composio_signature(COMPOSIO_KEY, "msg_1", &now, body.as_bytes());
        for byte in 0..good.len() {
            let bad = String::from_utf8(flipped(&good, byte, 0)).unwrap();
            if bad.contains(['\r', '\n']) {
                continue;
            }
            self.add(
                format!("composio: signature off by one bit at {byte}"),
                401,
                composio("msg_1", &now, &bad, body.as_bytes()),
            );
        }
        for byte in (0..body.len()).step_by(7) {
            self.add(
                format!("composio: body off by one bit at {byte}"),
                401,
                composio("msg_1", &now, &good, &flipped(&body, byte, 0)),
            );
        }
        self.add("composio: another id", 401, composio("msg_2", &now, &good, body.as_bytes()));
        self.add("composio: no id", 401, composio("", &now, &good, body.as_bytes()));
        self.add("composio: a long id", 401, signed_composio(&"m".repeat(256), &now, body.as_bytes()));
        for off in [-301i64, -86_400, 301, 86_400, -NOW_S, i64::MAX - NOW_S] {
            let at = (NOW_S + off).to_string();
            self.add(format!("composio: signed {off} s off"), 401, signed_composio("msg_1", &at, body.as_bytes()));
        }
        for bad in ["", "soon", "1e9", "1790000000.0", "99999999999999999999", "0x6AB13B80", "-9223372036854775808"] {
            self.add(format!("composio: signed time `{bad}`"), 401, signed_composio("msg_1", bad, body.as_bytes()));
        }
        let mac = good.trim_start_matches("v1,");
        let other = composio_signature(NANGO_KEY, "msg_1", &now, body.as_bytes());
        let hexed = hex(&hmac_sha256(COMPOSIO_KEY.as_bytes(), &[b"msg_1.", now.as_bytes(), b".", body.as_bytes()]));
        for (name, bad) in [
            ("no version", mac.to_owned()),
            ("version 2", format!("v2,{mac}")),
            ("version 1a", format!("v1a,{mac}")),
            ("no padding", good.trim_end_matches('=').to_owned()),
            ("hex", format!("v1,{hexed}")),
            ("another key", other.clone()),
            ("commas between", format!("v1,AAAA,{good}")),
            ("nine others before it", format!("{}{good}", format!("{other} ").repeat(9))),
        ] {
            self.add(format!("composio: {name}"), 401, composio("msg_1", &now, &bad, body.as_bytes()));
        }
        for headers in
            [vec![], vec![("webhook-id", "msg_1")], vec![("webhook-id", "msg_1"), ("webhook-signature", &*good)]]
        {
            self.add(
                "composio: headers missing",
                401,
                request("POST", "/admin/sync/composio", &headers, body.as_bytes()),
            );
        }
        for body in [
            "",
            "[]",
            "{}",
            r#"{"type":7}"#,
            r#"{"type":"composio.connected_account.expired","data":["ca_0","x"]}"#,
            r#"{"type":"x","data":{"id":{}}}"#,
            r#"{"type":"a","type":"b"}"#,
        ] {
            self.add(format!("composio: signed `{body}`"), 400, signed_composio("msg_1", &now, body.as_bytes()));
        }
        for kind in ["composio.trigger.message", "composio.connected_account.activated", "", "__proto__"] {
            let body = format!(r#"{{"type":"{kind}","data":{{"id":"ca_0"}}}}"#);
            self.add(format!("composio: unknown type `{kind}`"), 200, signed_composio("msg_1", &now, body.as_bytes()));
        }
    }

    fn triplet_paths(&mut self) {
        let good = format!(r#"{{"access_token":"{CANARY}"}}"#);
        for path in [
            "acme/slack/..",
            "../slack/a0",
            "acme/../a0",
            "./slack/a0",
            "acme/slack/.",
            "acme/slack/%2e%2e",
            "acme/slack/%2E",
            "acme/slack/a0%2fx",
            "acme/slack/a0%5cx",
            "acme/slack/a0%00",
            "acme/slack/a0%0d%0aset-cookie:x",
            "acme/slack/a0%20",
            "acme/slack/%20a0",
            "acme/slack/a0:b",
            "acme:slack:a0/x/y",
            "acme/slack/a__0",
            "_acme/slack/a0",
            "acme/slack_/a0",
            "acme/slack/a0%3f",
            "acme/slack/a0%23",
            "acme/slack/a0*",
            "acme/slack/$%7Bjndi%7D",
            "acme/slack/%27%20OR%201=1--",
            "acme/slack/%d0%b00",
            "acme/sl%c3%a4ck/a0",
            "acme/slack/%f0%9f%94%91",
            "acme/slack/%e2%80%aea0",
            "acme/slack/a%cc%810",
            "acme/slack/%ff%fe",
            "acme/slack/%c0%ae",
            "acme/slack/%ed%a0%80",
            "acme/slack/%25",
            "acme//a0",
            "/slack/a0",
            "acme/slack/a0%",
            "__proto__/slack/a0",
            "acme/__proto__/a0",
            "acme/slack/a0;x=1",
        ] {
            self.add(format!("tokens: path `{path}`"), 400, put(&format!("/admin/tokens/{path}"), &good));
        }
        for path in ["", "acme", "acme/slack", "acme/slack/a0/x", "acme/slack/", "acme/slack/a0/"] {
            self.add(format!("tokens: no such route `{path}`"), 404, put(&format!("/admin/tokens/{path}"), &good));
        }
        for path in ["acme/slack/a9", "ACME/slack/a0", "acme/gmail/a0", "constructor/toString/valueOf", "acme/slack/A0"]
        {
            self.add(format!("tokens: not mirrored `{path}`"), 404, put(&format!("/admin/tokens/{path}"), &good));
        }
        let long = "a".repeat(65);
        self.add("tokens: a part of 65 bytes", 400, put(&format!("/admin/tokens/acme/slack/{long}"), &good));
        self.add(
            "tokens: a path above the header limit",
            431,
            put(&format!("/admin/tokens/{}/slack/a0", "a".repeat(40_000)), &good),
        );
    }

    fn token_bodies(&mut self) {
        let target = token_target();
        let long = "a".repeat(16 * 1024 + 1);
        let deep = format!(r#"{{"access_token":"{CANARY}","x":{}1{}}}"#, "[".repeat(30), "]".repeat(30));
        for body in [
            "",
            " ",
            "null",
            "true",
            "7",
            "[]",
            "\"x\"",
            "{",
            "{}",
            "{]",
            "{}{}",
            "undefined",
            "{'access_token':'a'}",
            r#"{"access_token":null}"#,
            r#"{"access_token":""}"#,
            r#"{"access_token":7}"#,
            r#"{"access_token":["a"]}"#,
            r#"{"access_token":{"a":1}}"#,
            r#"{"access_token":"a b"}"#,
            r#"{"access_token":"a\nb"}"#,
            r#"{"access_token":"a\u0000"}"#,
            r#"{"access_token":"tök"}"#,
            r#"{"access_token":"a\ud800"}"#,
            r#"{"access_token":"\u202ea"}"#,
            r#"{"ACCESS_TOKEN":"a"}"#,
            r#"{"access_token":"a","access_token":"b"}"#,
            r#"{"access_token":"a","access\u005ftoken":"b"}"#,
            r#"{"access_token":"a","x":{"y":1,"y":2}}"#,
            r#"{"access_token":"a","__proto__":{"x":1}}"#,
            r#"{"access_token":"a","x":[{"__proto__":1}]}"#,
            r#"{"access_token":"a","expires_at":"soon"}"#,
            r#"{"access_token":"a","expires_at":"2026-13-01T00:00:00Z"}"#,
            r#"{"access_token":"a","expires_at":true}"#,
            r#"{"access_token":"a","expires_at":1.5}"#,
            r#"{"access_token":"a","expires_at":-1}"#,
            r#"{"access_token":"a","expires_at":0}"#,
            r#"{"access_token":"a","expires_at":1790000000}"#,
            r#"{"access_token":"a","expires_at":"2020-01-01T00:00:00Z"}"#,
            r#"{"access_token":"a","expires_at":99999999999999999999}"#,
            r#"{"access_token":"a","expires_at":1e400}"#,
            r#"{"access_token":"a","expires_at":9223372036854775807}"#,
            r#"{"access_token":"a","expires_at":-9223372036854775808}"#,
            r#"{"access_token":"a","expires_at":"9999-12-31T23:59:59Z"}"#,
            r#"{"access_token":"a","expires_at":[]}"#,
            r#"{"access_token":"a","token_type":7}"#,
            r#"{"access_token":"a","scope":["a"]}"#,
            r#"{"access_token":"a",}"#,
            r#"{"access_token":"a"/*x*/}"#,
            r#"{"access_token":NaN}"#,
            r#"{"access_token":0x1}"#,
            "\u{feff}{\"access_token\":\"a\"}",
            &format!(r#"{{"access_token":"{long}"}}"#),
            &deep,
        ] {
            let shown: String = body.chars().take(50).collect();
            self.add(format!("tokens: body `{shown}`"), 400, put(&target, body));
        }
        self.add(
            "tokens: not UTF-8",
            400,
            request(
                "PUT",
                &target,
                &[("x-admin-key", ADMIN_KEY), ("content-type", "application/json")],
                b"{\"access_token\":\"\xff\"}",
            ),
        );
        let good = format!(r#"{{"access_token":"{CANARY}"}}"#);
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/json5",
            "application/jsonx",
            "multipart/form-data",
            "",
            "*/*",
        ] {
            let headers = [("x-admin-key", ADMIN_KEY), ("content-type", kind)];
            self.add(format!("tokens: content type `{kind}`"), 415, request("PUT", &target, &headers, good.as_bytes()));
        }
        for encoding in ["gzip", "br", "deflate", "identity", "x"] {
            let headers =
                [("x-admin-key", ADMIN_KEY), ("content-type", "application/json"), ("content-encoding", encoding)];
            self.add(
                format!("tokens: content encoding `{encoding}`"),
                415,
                request("PUT", &target, &headers, good.as_bytes()),
            );
        }
        let huge = format!(r#"{{"access_token":"{}"}}"#, "a".repeat(70 * 1024));
        self.add("tokens: a body above the limit", 413, put(&target, &huge));
        self.add("nango: a body above the limit", 413, signed_nango(huge.as_bytes()));
        let lies = format!(
            "PUT {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-admin-key: {ADMIN_KEY}\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n{{}}"
        );
        self.add("tokens: an announced length above the limit", 413, lies.into_bytes());
    }

    fn admin_keys(&mut self) {
        let good = format!(r#"{{"access_token":"{CANARY}"}}"#);
        let hash = cutover::shim::hash_of(&Secret::new(ADMIN_KEY));
        let upper = ADMIN_KEY.to_uppercase();
        let quoted = format!("\"{ADMIN_KEY}\"");
        for key in [
            "",
            "admin",
            "null",
            &ADMIN_KEY[..31],
            &upper,
            &hash,
            &hash[7..],
            &quoted,
            NANGO_KEY,
            &ADMIN_KEY.repeat(20),
        ] {
            let headers = [("x-admin-key", key), ("content-type", "application/json")];
            self.add(
                format!("admin: key `{key:.20}`"),
                401,
                request("PUT", &token_target(), &headers, good.as_bytes()),
            );
        }
        for byte in 0..ADMIN_KEY.len() {
            let bad = String::from_utf8(flipped(ADMIN_KEY, byte, 0)).unwrap();
            self.add(
                format!("admin: key off by one bit at {byte}"),
                401,
                request("GET", "/admin/status", &[("x-admin-key", &bad)], b""),
            );
        }
        for (method, target) in [
            ("GET", "/admin/status"),
            ("GET", "/admin/nango/connections?tenant=acme"),
            ("GET", "/admin/composio/connections?tenant=acme"),
            ("POST", "/admin/nango/connect"),
            ("POST", "/admin/composio/connect"),
        ] {
            let bearer = format!("Bearer {ADMIN_KEY}");
            self.add(
                format!("admin: no key for {target}"),
                401,
                request(method, target, &[("authorization", &bearer)], b"{}"),
            );
        }
    }

    fn admin_queries_and_connects(&mut self) {
        let key = [("x-admin-key", ADMIN_KEY), ("content-type", "application/json")];
        for query in [
            "",
            "?",
            "?tenant",
            "?tenant=",
            "?Tenant=acme",
            "?tenant=a__b",
            "?tenant=..",
            "?tenant=a%2fb",
            "?tenant=%ff",
            "?tenant=a&tenant=b",
            "?tenant[]=a",
            "?tenant=%00",
        ] {
            self.add(
                format!("connections{query}"),
                400,
                request("GET", &format!("/admin/nango/connections{query}"), &key, b""),
            );
        }
        for body in [
            "",
            "[]",
            "{}",
            r#"{"tenant":"acme"}"#,
            r#"{"provider":"slack"}"#,
            r#"{"tenant":"acme","provider":["slack"]}"#,
            r#"{"tenant":"a/b","provider":"slack"}"#,
            r#"{"tenant":"acme","provider":"slack","account":""}"#,
            r#"{"tenant":"acme","provider":"slack","accounts":"x"}"#,
            r#"{"tenant":"acme","tenant":"b","provider":"slack"}"#,
            r#"{"tenant":"acme","provider":"slack","display_name":7}"#,
            r#"{"tenant":"acme","provider":"slack","display_name":"a\u0000"}"#,
            r#"{"tenant":"acme","provider":"slack","__proto__":{}}"#,
        ] {
            for custody in ["nango", "composio"] {
                self.add(
                    format!("{custody} connect `{body}`"),
                    400,
                    request("POST", &format!("/admin/{custody}/connect"), &key, body.as_bytes()),
                );
            }
        }
        let unknown = br#"{"tenant":"acme","provider":"no-such-thing"}"#;
        for custody in ["nango", "composio"] {
            self.add(
                format!("{custody} connect: unknown provider"),
                404,
                request("POST", &format!("/admin/{custody}/connect"), &key, unknown),
            );
        }
    }

    fn protocol(&mut self) {
        for (method, target) in [
            ("GET", "/admin/sync/nango"),
            ("PUT", "/admin/sync/composio"),
            ("DELETE", "/healthz"),
            ("POST", "/metrics"),
            ("PATCH", "/admin/status"),
            ("TRACE", "/healthz"),
            ("OPTIONS", "/admin/status"),
            ("FOO", "/readyz"),
        ] {
            self.add(format!("{method} {target}"), 405, request(method, target, &[], b""));
        }
        for target in [
            "/",
            "/admin",
            "/admin/",
            "//admin/status",
            "/admin//status",
            "/admin/status/",
            "/.env",
            "/admin/%73tatus%00",
            "/metrics.php",
            "/healthz/..",
            "/%2e%2e/healthz",
            "/admin/sync/nango/",
            "/HEALTHZ",
        ] {
            self.add(format!("GET {target}"), 404, request("GET", target, &[], b""));
        }
        let many: String = (0..80).map(|n| format!("x-{n}: 1\r\n")).collect();
        for (name, status, text) in [
            ("80 headers", 431, format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n")),
            ("a header of 20 kB", 431, format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(20_000))),
            ("not HTTP", 400, "hello\r\n\r\n".to_owned()),
            ("TLS on a plain port", 400, "\u{16}\u{3}\u{1}\u{2}\r\n\r\n".to_owned()),
            ("HTTP/2's preface", 0, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
            ("a space in a header name", 400, "GET /healthz HTTP/1.1\r\nho st: x\r\n\r\n".to_owned()),
            ("a folded header", 400, "GET /healthz HTTP/1.1\r\nhost: x\r\n folded\r\n\r\n".to_owned()),
            ("a length that is no number", 400, "POST /admin/sync/nango HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_owned()),
            ("two lengths", 400, "POST /admin/sync/nango HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab".to_owned()),
            ("a length and chunks", 401, "POST /admin/sync/nango HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned()),
            ("chunks that are no chunks", 400, "POST /admin/sync/nango HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_owned()),
            ("an unknown transfer coding", 400, "POST /admin/sync/nango HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n".to_owned()),
        ] {
            self.add(name, status, text.into_bytes());
        }
    }

    fn all() -> Vec<Case> {
        let mut corpus = Self(Vec::new());
        corpus.nango_signatures();
        corpus.nango_bodies();
        corpus.composio_signatures();
        corpus.triplet_paths();
        corpus.token_bodies();
        corpus.admin_keys();
        corpus.admin_queries_and_connects();
        corpus.protocol();
        corpus.0
    }
}

#[test]
fn every_hostile_request_gets_its_status_and_leaves_no_trace() {
    let served = Served::start(Limits::default(), false, |_| {});
    let cases = Corpus::all();
    println!("{} hostile requests", cases.len());
    assert!(cases.len() >= 300);
    let mut wrong = Vec::new();
    for Case { name, bytes, status } in cases {
        let (got, answer) = served.send(&bytes);
        if got != status {
            wrong.push(format!("{name}: {got} instead of {status}"));
        }
        assert!(!answer.contains(CANARY) && !answer.contains(NANGO_KEY), "{name}: {answer}");
        if got >= 400 && answer.contains("x-request-id") {
            assert!(answer.contains(r#"{"error":""#), "{name}: {answer}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((served.accepted(), served.expired_accounts()), (0, 0));
    let (status, _) = served.send(&request("GET", "/healthz", &[], b""));
    assert_eq!(status, 200);
}

#[test]
fn what_is_well_made_is_accepted_once_or_again_as_documented() {
    let mut served = Served::start(Limits::default(), false, |_| {});
    let body = nango_body();
    let (status, answer) = served.send(&signed_nango(body.as_bytes()));
    assert!(status == 200 && answer.contains(r#"{"status":"accepted"}"#), "{answer}");
    let old = nango(&[("x-nango-hmac-sha256", &nango_signature(OLD_NANGO_KEY, body.as_bytes()))], body.as_bytes());
    assert_eq!(served.send(&old).0, 200, "the old key of a rotation");
    assert_eq!(
        served.send(&signed_nango(body.as_bytes())).0,
        200,
        "Nango's webhooks have no id: a replay is a hint again"
    );
    assert_eq!(served.accepted(), 3);

    let (id, now) = ("msg_1", NOW_S.to_string());
    let (_, first) = served.send(&signed_composio(id, &now, composio_body().as_bytes()));
    let later = (NOW_S + 200).to_string();
    let (_, again) = served.send(&signed_composio(id, &later, composio_body().as_bytes()));
    assert!(first.contains("accepted") && again.contains(r#"{"status":"repeated"}"#), "{first}\n{again}");
    assert_eq!(served.expired_accounts(), 1);

    let token = format!(r#"{{"access_token":"{CANARY}","expires_at":{},"instance_url":"https://x"}}"#, NOW_S + 3_600);
    let named =
        [("x-admin-key", ADMIN_KEY), ("content-type", "Application/JSON; charset=utf-8"), ("x-request-id", "trace-7")];
    let (status, answer) = served.send(&request("PUT", &token_target(), &named, token.as_bytes()));
    assert!(status == 200 && answer.contains("x-request-id: trace-7"), "{answer}");
    assert_eq!(served.accepted(), 4);

    let key = [("x-admin-key", ADMIN_KEY), ("content-type", "application/json")];
    let newcomer = br#"{"tenant":"acme","provider":"slack","display_name":"Ann"}"#;
    let (status, answer) = served.send(&request("POST", "/admin/nango/connect", &key, newcomer));
    assert!(
        status == 200
            && answer.contains(
                r#"{"connect_link":"https://connect.example/?for=acme__slack__default&key=slack","expires_at":"#
            ),
        "{answer}"
    );
    let (status, answer) = served.send(&request("POST", "/admin/composio/connect", &key, newcomer));
    assert!(status == 200 && answer.contains(r#""connected_account_id":"ca_new""#), "{answer}");
    let (status, answer) = served.send(&request("GET", "/admin/status", &key, b""));
    assert!(
        status == 200 && answer.contains(r#""ready":true"#) && answer.contains(r#""connect\":\"nango\""#),
        "{answer}"
    );
    let (status, answer) = served.send(&request("GET", "/metrics", &[], b""));
    assert!(
        status == 200 && answer.contains(r#"cutover_intake_total{source="tokens",outcome="accepted"} 1"#),
        "{answer}"
    );
    assert_eq!(served.send(&request("GET", "/readyz", &[], b"")).0, 200);
    assert!(served.stop(), "nothing was under way");
}

#[test]
fn the_legacy_signature_is_taken_where_somebody_asked_for_it() {
    let served = Served::start(Limits::default(), false, |config| config.nango_legacy_signature = true);
    let body = nango_body();
    let legacy = hex(&Sha256::new().chain_update(NANGO_KEY).chain_update(&body).finalize());
    assert_eq!(served.send(&nango(&[("x-nango-signature", &legacy)], body.as_bytes())).0, 200);
    let both = [("x-nango-signature", &*legacy), ("x-nango-hmac-sha256", "00")];
    assert_eq!(served.send(&nango(&both, body.as_bytes())).0, 401, "a wrong signature is not made up for");
}

#[test]
fn slow_clients_and_crowds_are_shown_out() {
    let limits = Limits { connections_max: 4, header_read: Duration::from_millis(300), ..Limits::default() };
    let served = Served::start(limits, false, |config| config.request_time = Duration::from_millis(400));
    // Silent, trickling and idle ones fill every place; each is closed after a while.
    let mut slow: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(served.address).unwrap()).collect();
    slow[1].write_all(b"POST /admin/sync/nango HTTP/1.1\r\nhost: x\r\nx-slow: ").unwrap();
    slow[2].write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    slow[3].write_all(b"POST /admin/sync/nango HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nab").unwrap();
    let (status, _) = served.send(&request("GET", "/healthz", &[], b""));
    assert_eq!(status, 200, "a fifth client waits until there is a place");
    let read = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    };
    let answers: Vec<String> = slow.iter_mut().map(read).collect();
    assert!(answers[2].starts_with("HTTP/1.1 200 "), "{}", answers[2]);
    assert!(answers[3].starts_with("HTTP/1.1 408 ") && answers[3].contains(r#""error":"timeout""#), "{}", answers[3]);
    assert_eq!(served.accepted(), 0);
}

#[test]
fn while_the_journal_cannot_commit_the_shim_is_not_ready_and_accepts_nothing() {
    let served = Served::start(Limits::default(), false, |config| config.request_time = Duration::from_millis(800));
    let path = served._dir.path().join("cutover.db");
    let blocker = served.runtime.block_on(async {
        let mut other =
            <sqlx::SqliteConnection as sqlx::Connection>::connect(&format!("sqlite:{}", path.display())).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        other
    });
    let body = nango_body();
    let (status, answer) = served.send(&signed_nango(body.as_bytes()));
    // Its body is here: that we are slow is a reason to send it again, which 408 is not.
    assert!(status == 503 && answer.to_ascii_lowercase().contains("retry-after: 5"), "{answer}");
    assert_eq!(served.send(&request("GET", "/readyz", &[], b"")).0, 503);
    assert_eq!(served.send(&request("GET", "/healthz", &[], b"")).0, 200);
    drop(served.runtime.block_on(sqlx::Connection::close(blocker)));
    // The writer waited for the lock; once it is free the shim is ready again.
    let ready = (0..40).any(|_| served.send(&request("GET", "/readyz", &[], b"")).0 == 200);
    assert!(ready);
    assert_eq!(served.send(&signed_nango(body.as_bytes())).0, 200);
}

#[test]
fn asking_whether_it_is_ready_is_one_commit_for_all_who_ask() {
    let served = Served::start(Limits::default(), false, |_| {});
    let probed = || served.runtime.block_on(served.engine.store().load_meta("probed_at")).unwrap();
    assert_eq!(probed(), None);
    assert_eq!(served.send(&request("GET", "/readyz", &[], b"")).0, 200);
    assert_eq!(probed(), Some((NOW_S * 1_000).to_string()));
    // The clock stands still: whoever asks now is told what was found.
    served.runtime.block_on(served.engine.store().delete_meta("probed_at")).unwrap();
    for path in ["/readyz", "/metrics", "/readyz"] {
        assert_eq!(served.send(&request("GET", path, &[], b"")).0, 200);
    }
    assert_eq!(probed(), None);
    assert_eq!(served.accepted(), 0);
}

#[test]
fn with_a_certificate_only_tls_is_spoken() {
    let limits = Limits { handshake: Duration::from_millis(500), ..Limits::default() };
    let mut served = Served::start(limits, true, |_| {});
    let (status, _) = served.send(&request("GET", "/healthz", &[], b""));
    assert_eq!(status, 0, "plain HTTP gets no answer");
    let text = served.runtime.block_on(async {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root = reqwest::Certificate::from_pem(&std::fs::read("fixtures/tls/cert.pem").unwrap()).unwrap();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([root]).build().unwrap();
        let url = format!("https://localhost:{}/healthz", served.address.port());
        client.get(url).send().await.unwrap().text().await.unwrap()
    });
    assert_eq!(text, "ok");
    served.stop();
}
