//! The parsers of everything that comes in, with valid input that was damaged: signed webhooks of both
//! custodies, token entries, connect requests, triplets in paths. The answer is a documented one,
//! nothing that was refused leaves a trace, and what was accepted can be worked in.
//! `PROPTEST_CASES` sets how many requests there are.

#[path = "support/fake.rs"]
mod fake;

use std::sync::{Arc, OnceLock};

use axum::body::{Body, to_bytes};
use axum::http::{Request, Uri};
use base64::Engine as _;
use cutover::catalogue::Catalogue;
use cutover::domain::secret::{Secret, hex, hmac_sha256};
use cutover::domain::time::Timestamp;
use cutover::engine::{Engine, EngineConfig, Lane};
use cutover::plan::Policy;
use cutover::shim::{AdminKeys, Shim, ShimConfig};
use fake::{Fake, connection_id, soaking, triplet};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use proptest::prelude::*;
use proptest::sample::Index;

const NANGO_KEY: &str = "c1f7a0f2-93c4-4f0e-8f5e-0c6f8f6b9b1d";
const COMPOSIO_KEY: &str = "whsec_4kQm81xZr0LpTt7u";
const ADMIN_KEY: &str = "f3b6c9e2a1d84756b0c1d2e3f4a59687";
const NOW: Timestamp = Timestamp::from_secs(1_790_000_000);
/// What no answer may repeat.
const CANARY: &str = "cnry-7c1e";

/// A shim over a state whose duties run when they are told to.
struct Served {
    runtime: tokio::runtime::Runtime,
    engine: Arc<Engine<Fake>>,
    service: TowerToHyperService<axum::Router>,
    _dir: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let engine = runtime.block_on(async {
            let store = soaking(dir.path(), 2).await;
            let config = EngineConfig::new(Policy::default());
            Arc::new(Engine::new(store, Fake::default(), Catalogue::built_in(), config).await.unwrap())
        });
        let config = ShimConfig {
            nango_keys: vec![Secret::new(NANGO_KEY)],
            composio_keys: vec![Secret::new(COMPOSIO_KEY)],
            admin_keys: AdminKeys::of(&[Secret::new(ADMIN_KEY)]),
            ..ShimConfig::default()
        };
        let shim = Arc::new(Shim::new(config, || NOW));
        shim.set_engine(Some(Arc::clone(&engine)));
        Self { service: TowerToHyperService::new(shim.router()), runtime, engine, _dir: dir }
    }

    /// Status and body of the answer.
    async fn ask(&self, request: Request<Body>) -> (u16, String) {
        let answer = self.service.call(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// What lies in the intake log and in the evidence.
    async fn traces(&self) -> (usize, usize) {
        let segments = self.engine.store().load_intake(u32::MAX).await.unwrap();
        let expired = self.engine.store().load_notes_since("account-expired", Timestamp::from_secs(0), u32::MAX).await;
        (segments.iter().map(|s| s.entries.len()).sum(), expired.unwrap().len())
    }
}

/// A way to damage bytes.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    Swap(Index, Index),
    Cut(Index),
}

/// What parsers stumble over.
const PIECES: [&str; 22] = [
    "\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\\",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\u{feff}",
    "é",
    "1e999",
    "-1",
    "99999999999999999999999999",
    "0.1",
    "null",
    "true",
    "\"__proto__\":{},",
    "\"type\":\"x\",",
    "[[[[[[[[[[[[[[[[[[[[",
];

fn damage() -> impl Strategy<Value = Damage> {
    let pieces = prop_oneof![
        (0..PIECES.len()).prop_map(|n| PIECES[n].as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..6),
        (1usize..400).prop_map(|n| vec![b'9'; n]),
    ];
    prop_oneof![
        1 => (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        3 => (any::<Index>(), pieces).prop_map(|(at, piece)| Damage::Insert(at, piece)),
        1 => (any::<Index>(), 1usize..12).prop_map(|(at, n)| Damage::Remove(at, n)),
        1 => (any::<Index>(), 1usize..40).prop_map(|(at, n)| Damage::Repeat(at, n)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Damage::Swap(a, b)),
        1 => any::<Index>().prop_map(Damage::Cut),
    ]
}

fn damaged(text: &str, damages: &[Damage]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        match damage {
            Damage::Flip(at, bit) => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Damage::Insert(at, piece) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, piece.iter().copied());
            }
            Damage::Remove(at, n) => {
                let at = at.index(bytes.len());
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            Damage::Repeat(at, n) => {
                let at = at.index(bytes.len());
                let piece = bytes[at..(at + n).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            Damage::Swap(a, b) => {
                let (a, b) = (a.index(bytes.len()), b.index(bytes.len()));
                bytes.swap(a, b);
            }
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
        }
    }
    bytes
}

/// What comes in, by route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Nango,
    Composio,
    Token,
    Connect,
    Path,
}

/// What the documentation promises for each.
fn documented(input: Input) -> &'static [u16] {
    match input {
        Input::Nango | Input::Composio => &[200, 400, 401],
        Input::Token => &[200, 400],
        Input::Connect => &[200, 400, 404, 409],
        Input::Path => &[200, 400, 404],
    }
}

/// Every byte that a path cannot hold as it is, escaped.
fn escaped(bytes: &[u8]) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    bytes.iter().map(|&b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn request(input: Input, damages: &[Damage], n: u32) -> Option<Request<Body>> {
    let post = |path: &str| Request::builder().method("POST").uri(path);
    let admin = |builder: axum::http::request::Builder| {
        builder.header("x-admin-key", ADMIN_KEY).header("content-type", "application/json")
    };
    let entry = format!(
        r#"{{"access_token":"{CANARY}","expires_at":{},"token_type":"bearer","scope":"a b","instance_url":"https://x"}}"#,
        NOW.secs() + 3_600
    );
    let [tenant, provider, account] = ["acme", "slack", "a0"];
    Some(match input {
        Input::Nango => {
            let body = format!(
                r#"{{"connectionId":"{}","from":"nango","operation":"refresh","providerConfigKey":"slack","success":false,"error":{{"type":"x","description":"{CANARY}"}},"type":"auth"}}"#,
                connection_id(0)
            );
            let body = damaged(&body, damages);
            let signature = hex(&hmac_sha256(NANGO_KEY.as_bytes(), &[&body]));
            post("/admin/sync/nango").header("x-nango-hmac-sha256", signature).body(body.into()).ok()?
        }
        Input::Composio => {
            let body =
                r#"{"id":"evt_1","type":"composio.connected_account.expired","data":{"id":"ca_0","status":"EXPIRED"}}"#;
            let body = damaged(body, damages);
            let (id, timestamp) = (format!("msg_{n}"), NOW.secs().to_string());
            let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", &body];
            let signature =
                base64::engine::general_purpose::STANDARD.encode(hmac_sha256(COMPOSIO_KEY.as_bytes(), &signed));
            post("/admin/sync/composio")
                .header("webhook-id", id)
                .header("webhook-timestamp", timestamp)
                .header("webhook-signature", format!("v1,{signature}"))
                .body(body.into())
                .ok()?
        }
        Input::Token => {
            let path = format!("/admin/tokens/{tenant}/{provider}/{account}");
            admin(Request::builder().method("PUT").uri(path)).body(damaged(&entry, damages).into()).ok()?
        }
        Input::Connect => {
            let body = r#"{"tenant":"acme","provider":"slack","account":"a7","display_name":"Ann"}"#;
            admin(post("/admin/nango/connect")).body(damaged(body, damages).into()).ok()?
        }
        Input::Path => {
            let whole = damaged(&format!("{tenant}/{provider}/{account}"), damages);
            let parts: Vec<String> = whole.split(|b| *b == b'/').map(escaped).collect();
            let uri: Uri = format!("/admin/tokens/{}", parts.join("/")).parse().ok()?;
            admin(Request::builder().method("PUT").uri(uri)).body(entry.into()).ok()?
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(600),
        max_shrink_iters: 500,
        ..ProptestConfig::default()
    })]

    #[test]
    fn damaged_input_gets_a_documented_answer_and_nothing_refused_leaves_a_trace(
        input in prop::sample::select(vec![Input::Nango, Input::Composio, Input::Token, Input::Connect, Input::Path]),
        damages in prop::collection::vec(damage(), 0..5),
        n: u32,
    ) {
        static SERVED: OnceLock<Served> = OnceLock::new();
        let served = SERVED.get_or_init(Served::start);
        let Some(request) = request(input, &damages, n) else { return Ok(()) };
        served.runtime.block_on(async {
            let before = served.traces().await;
            let (status, body) = served.ask(request).await;
            let after = served.traces().await;
            prop_assert!(documented(input).contains(&status), "{input:?}: {status} {body}");
            prop_assert!(!body.contains(CANARY) && !body.contains(NANGO_KEY), "{input:?}: {body}");
            if status == 200 && body.contains(r#""accepted""#) {
                prop_assert_eq!(after.0 + after.1, before.0 + before.1 + 1, "{:?}: {}", input, body);
                // Whatever was accepted must not stop the duties: nobody can refuse it any more.
                served.engine.run_lane(Lane::Reads, NOW).await.unwrap();
                prop_assert_eq!(served.traces().await.0, 0);
            } else {
                prop_assert_eq!(after, before, "{:?}: {} {}", input, status, body);
            }
            if status >= 400 {
                prop_assert!(body.starts_with(r#"{"error":""#), "{input:?}: {status} {body}");
            }
            Ok(())
        })?;
    }
}

/// The undamaged ones are accepted: the property above looks at something.
#[test]
fn undamaged_input_is_accepted() {
    let served = Served::start();
    for input in [Input::Nango, Input::Composio, Input::Token, Input::Connect, Input::Path] {
        let request = request(input, &[], 7).unwrap();
        let (status, body) = served.runtime.block_on(served.ask(request));
        assert_eq!(status, 200, "{input:?}: {body}");
    }
    assert_eq!(triplet(0).to_string(), "acme:slack:a0");
}
