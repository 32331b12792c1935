//! Two KV namespaces in a sandbox, filled as the mirror fills them, with differences planted and
//! writes that go on in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cutover::catalogue::Catalogue;
use cutover::clients::{self, CloudflareEndpoint};
use cutover::domain::secret::{FingerprintKey, Secret};
use cutover::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};
use cutover::plan::policy::RatePolicy;
use cutover::ports::{Api, ApiError, ApiErrorKind, ApiResult, KeyListing, KvInspect, KvPlace, Namespace, StoredValue};
use cutover::sandbox::{
    Answer, Call, LedgerSummary, Sandbox, SandboxKeys, TokenLife, World, WorldConfig, WorldOptions,
};
use cutover::verify::live::{Budget, Caller, Depth, KvSide, KvSideOptions};
use cutover::verify::{Clock, Keys, Meter, Options, Order, Report, Rules, Source, verify};
use serde_json::{Value, json};

pub const SOURCE: usize = 0;
pub const TARGET: usize = 1;

const START: &str = "2026-05-06T09:00:00Z";

/// SplitMix64: good bits from a counter.
pub fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What is planted at a key, by what it does to the target namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Missing,
    Extra,
    /// One character of the token.
    Token,
    Version,
    Expiry,
    Scope,
    ScopeRegression,
    Field,
    FieldGone,
    Lifetime,
    Foreign,
    Masked,
}

pub const KINDS: [Kind; 12] = [
    Kind::Missing,
    Kind::Extra,
    Kind::Token,
    Kind::Version,
    Kind::Expiry,
    Kind::Scope,
    Kind::ScopeRegression,
    Kind::Field,
    Kind::FieldGone,
    Kind::Lifetime,
    Kind::Foreign,
    Kind::Masked,
];

impl Kind {
    /// What a full comparison must say of it.
    pub fn finding(self) -> &'static str {
        match self {
            Self::Missing => "missing [status] ",
            Self::Extra => "extra [status] ",
            Self::Token => "changed [fingerprint] token value.access_token",
            Self::Version => "changed [fingerprint] metadata metadata.v",
            Self::Expiry => "changed [fingerprint] expiry value.expires_at",
            Self::Scope => "changed [fingerprint] scope value.scope",
            Self::ScopeRegression => "changed [fingerprint] scope-regression value.scope (1 lost)",
            Self::Field => "changed [fingerprint] field value.instance_url",
            Self::FieldGone => "changed [fingerprint] field value.instance_url",
            Self::Lifetime => "changed [fingerprint] expiry expiration",
            Self::Foreign => {
                "foreign [fingerprint] metadata metadata.by, metadata metadata.ep, expiry metadata.exp, \
                 metadata metadata.fp, metadata metadata.v"
            }
            Self::Masked => "unverifiable [lineage] ",
        }
    }

    pub fn shows_in_a_listing(self) -> bool {
        matches!(self, Self::Missing | Self::Extra | Self::Version | Self::Lifetime | Self::Foreign)
    }
}

/// One entry of both namespaces.
#[derive(Clone)]
pub struct Entry {
    pub n: usize,
    pub version: u64,
}

impl Entry {
    pub fn new(n: usize) -> Self {
        Self { n, version: 1 }
    }

    pub fn key(&self) -> String {
        format!("tokens:t{:06}:google:default", self.n)
    }

    pub fn token(&self) -> String {
        let (a, b) = (mix(self.n as u64), mix(self.version ^ (self.n as u64) << 20));
        format!("ya29.CANARY{a:016x}{b:016x}")
    }

    fn put(&self, kind: Option<Kind>) -> Value {
        let mut token = self.token();
        let fp = FingerprintKey::new([7; 32]).fingerprint(&Secret::new(token.clone()));
        let ends = Timestamp::parse(START).unwrap().plus_ms(HOUR_MS + self.version as i64 * MINUTE_MS);
        let mut metadata = json!({"v": self.version, "fp": fp, "ep": 1, "src": "nango", "exp": ends.secs()});
        let (mut ends, mut scope) = (ends, "a b");
        let mut url = Some("https://a.example");
        let mut expiration = None;
        match kind {
            Some(Kind::Token) => {
                let last = if token.pop() == Some('0') { '1' } else { '0' };
                token.push(last);
            }
            Some(Kind::Version) => metadata["v"] = (self.version + 1).into(),
            Some(Kind::Expiry) => ends = ends.plus_ms(5 * MINUTE_MS),
            Some(Kind::Scope) => scope = "b a c",
            Some(Kind::ScopeRegression) => scope = "a",
            Some(Kind::Field) => url = Some("https://b.example"),
            Some(Kind::FieldGone) => url = None,
            Some(Kind::Lifetime) => expiration = Some(ends.secs()),
            Some(Kind::Foreign) => metadata = json!({"by": "someone"}),
            Some(Kind::Masked) => token = "ya29...".to_owned(),
            Some(Kind::Missing | Kind::Extra) | None => {}
        }
        let mut value =
            json!({"access_token": token, "expires_at": ends.to_rfc3339(), "scope": scope, "token_type": "Bearer"});
        if let Some(url) = url {
            value["instance_url"] = url.into();
        }
        let mut put = json!({"key": self.key(), "value": value.to_string(), "metadata": metadata});
        if let Some(at) = expiration {
            put["expiration"] = at.into();
        }
        put
    }
}

/// A write of the mirror: a version, or a deletion.
#[derive(Clone, Debug)]
pub struct Write {
    pub namespace: usize,
    pub n: usize,
    pub version: Option<u64>,
}

/// The sandbox's time. Whoever waits moves it; what is scheduled happens on the way.
pub struct Virtual {
    world: Arc<Mutex<World>>,
    keys: SandboxKeys,
    script: Mutex<VecDeque<(Timestamp, Write)>>,
    pub written: AtomicU64,
}

impl std::fmt::Debug for Virtual {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("virtual time")
    }
}

/// What a request takes.
const LATENCY_MS: i64 = 40;

impl Clock for Virtual {
    fn now(&self) -> Timestamp {
        self.world.lock().unwrap().now()
    }

    fn wait_until(&self, at: Timestamp) {
        let mut script = self.script.lock().unwrap();
        let mut world = self.world.lock().unwrap();
        let at = at.max(world.now().plus_ms(LATENCY_MS));
        while script.front().is_some_and(|(due, _)| *due <= at) {
            let Some((due, write)) = script.pop_front() else { break };
            world.advance_to(due);
            self.write(&mut world, &write);
            self.written.fetch_add(1, Ordering::Relaxed);
        }
        world.advance_to(at);
    }
}

impl Virtual {
    fn write(&self, world: &mut World, write: &Write) {
        let key = Entry::new(write.n).key();
        match write.version {
            Some(version) => {
                let put = Entry { n: write.n, version }.put(None);
                self.ask(world, "PUT", write.namespace, "bulk", &json!([put]));
            }
            None => self.ask(world, "POST", write.namespace, "bulk/delete", &json!([key])),
        }
    }

    fn ask(&self, world: &mut World, method: &str, namespace: usize, path: &str, body: &Value) {
        let id = [&self.keys.kv_source, &self.keys.kv_target][namespace];
        let call = Call::new(method, &format!("/storage/kv/namespaces/{id}/{path}"))
            .with_header("authorization", &format!("Bearer {}", self.keys.cloudflare_token))
            .with_json(body);
        match world.answer(Api::Cloudflare, &call) {
            Answer::Reply(reply) => assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body)),
            Answer::Crash => panic!("no crash was planned"),
        }
    }
}

/// A reader whose cursors are forgotten once, after some pages.
struct Forgetful<C> {
    inner: C,
    pages: AtomicU64,
    forget_at: AtomicU64,
}

impl<C: KvInspect> KvInspect for Forgetful<C> {
    async fn list_page(&self, place: &KvPlace, prefix: &str, cursor: Option<&str>) -> ApiResult<KeyListing> {
        if cursor.is_some() && self.pages.fetch_add(1, Ordering::Relaxed) + 1 == self.forget_at.load(Ordering::Relaxed)
        {
            let kind = ApiErrorKind::Rejected { status: 400, code: "10001".to_owned() };
            return Err(ApiError { api: Api::Cloudflare, method: "GET", path: "/keys".to_owned(), kind });
        }
        self.inner.list_page(place, prefix, cursor).await
    }

    async fn read_values(&self, place: &KvPlace, keys: &[String]) -> ApiResult<BTreeMap<String, Option<StoredValue>>> {
        self.inner.read_values(place, keys).await
    }
}

pub struct Namespaces {
    // Before the runtime that serves it.
    sandbox: Sandbox,
    pub clock: Arc<Virtual>,
    /// Requests in 5 minutes.
    limit: Option<u32>,
    forget_at: std::cell::Cell<u64>,
    runtime: tokio::runtime::Runtime,
}

impl Namespaces {
    /// Empty namespaces; `limit` is Cloudflare's.
    pub fn start(limit: Option<u32>) -> Self {
        Self::sparse(limit, 0)
    }

    /// As [`Self::start`], with so many pages without keys before each page of a listing.
    pub fn sparse(limit: Option<u32>, empty_pages: usize) -> Self {
        let start = Timestamp::parse(START).unwrap();
        let config = WorldConfig {
            seed: 11,
            start,
            rows: Vec::new(),
            catalogue: Catalogue::built_in(),
            retained: BTreeSet::new(),
            faults: Vec::new(),
            fault_from: start,
            fault_until: start.plus_ms(DAY_MS),
            token_life: TokenLife::Fixed(HOUR_MS),
            shim_url: None,
        };
        // The writers' requests are not what is measured, so only a real limit is enforced.
        let options = WorldOptions {
            cloudflare_per_5_minutes: limit.filter(|limit| *limit >= 1_200),
            kv_empty_pages: empty_pages,
            ..WorldOptions::default()
        };
        let world = World::with_options(config, options);
        let keys = world.keys();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let sandbox = runtime.block_on(Sandbox::start(world)).unwrap();
        let clock = Arc::new(Virtual {
            world: Arc::clone(&sandbox.world),
            keys,
            script: Mutex::default(),
            written: AtomicU64::new(0),
        });
        Self { sandbox, clock, limit, forget_at: std::cell::Cell::new(0), runtime }
    }

    /// Puts the same entries into both, but for what is planted.
    pub fn fill(&self, entries: usize, planted: &BTreeMap<usize, Kind>) {
        for namespace in [SOURCE, TARGET] {
            let puts: Vec<Value> =
                (0..entries).filter_map(|n| planted_put(n, planted.get(&n).copied(), namespace)).collect();
            self.put(namespace, &puts);
        }
        // What was written is seen everywhere, and its requests no longer count.
        self.advance(10 * MINUTE_MS);
    }

    /// Plants differences in what is there.
    pub fn plant(&self, planted: &BTreeMap<usize, Kind>) {
        for (n, kind) in planted {
            let gone = match kind {
                Kind::Missing => Some(TARGET),
                Kind::Extra => Some(SOURCE),
                _ => None,
            };
            match gone {
                Some(namespace) => self.write(&Write { namespace, n: *n, version: None }),
                None => self.put(TARGET, &[Entry::new(*n).put(Some(*kind))]),
            }
        }
        self.advance(10 * MINUTE_MS);
    }

    fn put(&self, namespace: usize, puts: &[Value]) {
        for chunk in puts.chunks(10_000) {
            self.clock.ask(&mut self.sandbox.lock(), "PUT", namespace, "bulk", &Value::from(chunk));
        }
    }

    fn write(&self, write: &Write) {
        self.clock.write(&mut self.sandbox.lock(), write);
    }

    fn advance(&self, ms: i64) {
        let mut world = self.sandbox.lock();
        let to = world.now().plus_ms(ms);
        world.advance_to(to);
    }

    pub fn schedule(&self, writes: Vec<(Timestamp, Write)>) {
        *self.clock.script.lock().unwrap() = writes.into();
    }

    pub fn written(&self) -> u64 {
        self.clock.written.load(Ordering::Relaxed)
    }

    pub fn now(&self) -> Timestamp {
        self.sandbox.lock().now()
    }

    pub fn ledger(&self) -> LedgerSummary {
        self.sandbox.lock().ledger()
    }

    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.ledger().requests["cloudflare"].clone()
    }

    pub fn all_requests(&self) -> u64 {
        self.requests().values().sum()
    }

    /// Both sides lose their listing after this many pages in all.
    pub fn forget_cursors_after(&self, pages: u64) {
        self.forget_at.set(pages);
    }

    fn url(&self) -> String {
        let account = &self.clock.keys.cloudflare_account_id;
        format!("{}/client/v4/accounts/{account}", self.sandbox.urls.cloudflare)
    }

    /// The binary on both namespaces, at no rate to speak of and in real time.
    pub fn command(&self, folder: &Path, args: &[&str]) -> Command {
        let policy = folder.join("policy.toml");
        std::fs::write(&policy, "[rates]\ncloudflare_per_5_minutes = 1000000\nreserved_share = 0.0\n").unwrap();
        let keys = &self.clock.keys;
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        command.arg("verify").args(args).env_clear().current_dir(folder).env("TMPDIR", folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
            .env("CUTOVER_CLOUDFLARE_URL", self.url())
            .env("CUTOVER_CLOUDFLARE_TOKEN", &keys.cloudflare_token)
            .env("CUTOVER_KV_SOURCE", &keys.kv_source)
            .env("CUTOVER_KV_TARGET", &keys.kv_target);
        command
    }

    pub fn verify(&self, depth: Depth, rules: &Rules) -> Report {
        let keys = &self.clock.keys;
        let url = self.url();
        let endpoint = CloudflareEndpoint {
            base: reqwest::Url::parse(&url).unwrap(),
            token: Secret::new(keys.cloudflare_token.clone()),
            kv_source: keys.kv_source.clone(),
            kv_target: keys.kv_target.clone(),
            d1: "none".to_owned(),
        };
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as _;
        let now = Arc::clone(&self.clock);
        let client = clients::kv_inspect(endpoint, Arc::new(move || now.now())).unwrap();
        let forget_at = AtomicU64::new(self.forget_at.get());
        let client = Arc::new(Forgetful { inner: client, pages: AtomicU64::new(0), forget_at });
        let rates = RatePolicy { cloudflare_per_5_minutes: self.limit.unwrap_or(1_000_000), ..RatePolicy::default() };
        let budget = Arc::new(Budget::new(&rates, Arc::clone(&clock)));
        let caller = Caller::new(self.runtime.handle().clone(), budget);
        let side = |name: &str, namespace| {
            let options = KvSideOptions { depth, skip: Arc::default(), states: false, whoami: None };
            KvSide::new(name, KvPlace::Gateway(namespace), Arc::clone(&client), caller.clone(), options)
        };
        let (left, right) = (side("kv:source", Namespace::Source), side("kv:target", Namespace::Target));
        let sides: [&dyn Source; 2] = [&left, &right];
        let options =
            Options { rules: rules.clone(), order: Order::Auto, memory: 64 << 20, folder: None, clock: Some(clock) };
        let keys = Keys::new([3; 32], Some(FingerprintKey::new([7; 32])));
        verify(sides, &options, &keys, None, &Meter::default(), &mut |_| {}).unwrap()
    }
}

/// The entry of a namespace, with what is planted there.
fn planted_put(n: usize, kind: Option<Kind>, namespace: usize) -> Option<Value> {
    match (kind, namespace) {
        (Some(Kind::Missing), TARGET) | (Some(Kind::Extra), SOURCE) => None,
        (kind, TARGET) => Some(Entry::new(n).put(kind)),
        _ => Some(Entry::new(n).put(None)),
    }
}
