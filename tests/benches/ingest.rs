//! Ingest under load, side by side in one run: the shim's webhook route (verified, encrypted,
//! chained, on disk before it is answered; its duties running beside it) against a bare axum route,
//! and against what else one would have: Node with better-sqlite3, a Worker on the Workers runtime,
//! one insert and commit a request on PostgreSQL.
//!
//! ```console
//! $ (cd tests/benches/ingest && npm ci)      # for the two peers that run on Node
//! $ cargo bench --bench ingest
//! ```
//!
//! `INGEST_SECONDS` is the length of one measurement (3), `INGEST_ROUNDS` how often each is made (3);
//! the median counts. `INGEST_MILLION=1` adds a state with 1,000,000 triplets, `INGEST_MINUTES=10` a
//! long run with the memory it takes.

#[path = "../support/fake.rs"]
mod fake;
#[path = "ingest/load.rs"]
mod load;
#[path = "../support/postgres.rs"]
mod postgres;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use cutover::catalogue::Catalogue;
use cutover::domain::secret::{Secret, hex, hmac_sha256, same_secret};
use cutover::domain::time::Timestamp;
use cutover::engine::{Engine, EngineConfig, Lane};
use cutover::plan::{Policy, Route};
use cutover::ports::SourceCredential;
use cutover::shim::{Gather, Limits, Shim, ShimConfig, serve};
use cutover::store::{Durability, NewTriplet, Place, Store, Vault};
use fake::{Fake, connection_id, triplet};
use load::Measured;

const KEY: &str = "c1f7a0f2-93c4-4f0e-8f5e-0c6f8f6b9b1d";
const CONNECTIONS: usize = 64;
/// Connections at Nango that the webhooks speak of.
const TRIPLETS: usize = 200;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp::from_millis(since.as_millis() as i64)
}

/// Signed webhooks of about 500 bytes.
fn requests() -> Arc<Vec<Vec<u8>>> {
    let request = |n: usize| {
        let id = connection_id(n % TRIPLETS);
        let body = format!(
            r#"{{"authMode":"OAUTH2","connectionId":"{id}","endUser":{{"endUserEmail":null,"endUserId":"{id}","tags":{{"number":"{n:0>160}"}}}},"environment":"prod","from":"nango","operation":"override","provider":"slack","providerConfigKey":"slack","success":true,"tags":{{"end_user_id":"{id}"}},"type":"auth"}}"#
        );
        let signature = hex(&hmac_sha256(KEY.as_bytes(), &[body.as_bytes()]));
        let length = body.len();
        format!(
            "POST /admin/sync/nango HTTP/1.1\r\nhost: shim\r\ncontent-type: application/json\r\n\
             x-nango-hmac-sha256: {signature}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    };
    Arc::new((0..1_000).map(request).collect())
}

/// Something that is measured. Kept until the end of the run.
struct Peer {
    name: &'static str,
    address: SocketAddr,
    rounds: Vec<Measured>,
    _process: Option<Process>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Ends the runtime's child as well: that one watches its standard input.
        drop(self.0.stdin.take());
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(2) && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    fn new(name: &'static str, address: SocketAddr, process: Option<Process>) -> Self {
        Self { name, address, rounds: Vec::new(), _process: process }
    }

    /// The round in the middle.
    fn median(&self) -> &Measured {
        let mut order: Vec<&Measured> = self.rounds.iter().collect();
        order.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        order[order.len() / 2]
    }
}

async fn listen(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// The shim with everything that it does in production, but for the outside, which answers at once.
async fn shim(store: Store) -> SocketAddr {
    let config = EngineConfig { sink_parallel: 8, ..EngineConfig::new(Policy::default()) };
    let world = Fake::default();
    for n in 0..TRIPLETS {
        world.state().credentials.insert(connection_id(n), credential(n));
    }
    let engine = Arc::new(Engine::new(store, world, Catalogue::built_in(), config).await.unwrap());
    let config = ShimConfig { nango_keys: vec![Secret::new(KEY)], ..ShimConfig::default() };
    let shim = Arc::new(Shim::new(config, now));
    shim.set_engine(Some(Arc::clone(&engine)));
    for lane in &Lane::ALL[..4] {
        let engine = Arc::clone(&engine);
        tokio::spawn(async move {
            let mut gather = Gather::new();
            loop {
                engine.run_lane(*lane, now()).await.unwrap();
                match lane {
                    Lane::Reads => gather.round(engine.store()).await,
                    _ => tokio::time::sleep(Duration::from_secs(1)).await,
                }
            }
        });
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, shim.router(), None, Limits::default(), std::future::pending()));
    address
}

/// What Nango hands out when a webhook brings a read forward.
fn credential(n: usize) -> SourceCredential {
    SourceCredential {
        auth_mode: "OAUTH2".into(),
        access_token: Secret::new(format!("token-{n}")),
        expires_at: Some(Timestamp::from_secs(4_000_000_000)),
        scope: None,
        token_type: None,
        connection_config: serde_json::Map::new(),
        auth_error: false,
    }
}

async fn state(place: &Place, million: bool) -> Store {
    let store = Store::open_at(place, Durability::PowerLoss, Vault::from_master(&[7; 32])).await.unwrap();
    let new = |n: usize| NewTriplet {
        triplet: triplet(n),
        integration_key: "slack".into(),
        connection_id: connection_id(n),
        route: Route::Reconsent,
        wave: Some(1),
        toolkit: Some("slack".into()),
        scopes: Vec::new(),
    };
    let triplets: Vec<NewTriplet> = (0..TRIPLETS).map(new).collect();
    store.begin_plan("p-000000000001", "{}", &triplets, Timestamp::from_secs(0)).await.unwrap();
    store.save_meta("soaking", "yes").await.unwrap();
    for row in store.load_connections().await.unwrap() {
        store.schedule_poll(row.id, Some(Timestamp::from_secs(3_000_000_000))).await.unwrap();
    }
    if let (true, Some(file)) = (million, place.file()) {
        fill(file).await;
    }
    store
}

/// A million triplets, each with a connection of its own and a version that every sink has, put beside
/// the 200 of the load.
async fn fill(file: &Path) {
    let url = format!("sqlite:{}", file.display());
    let mut raw = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.unwrap();
    for statement in [
        "CREATE TEMP TABLE n AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT i FROM n",
        "INSERT INTO connection (id, integration_key, connection_id, poll_at, expires_at, rotation)
         SELECT 1000000 + i, 'slack', 'acme__slack__m' || i, 4000000000000, 4000000000000, 1 FROM n",
        "INSERT INTO triplet (key, connection, integration_key, wave, toolkit, scopes, custody, stage, version, fingerprint, expires_at)
         SELECT 'acme:slack:m' || n.i, 1000000 + n.i, t.integration_key, 1, 'slack', '[]', t.custody, t.stage, 1, printf('%024x', n.i), 4000000000000
         FROM n JOIN triplet t ON t.key = 'acme:slack:a0'",
        "INSERT INTO journal (at, triplet, version, epoch, writer, fingerprint, expires_at, payload, digest, hash)
         SELECT 1, 'acme:slack:m' || i, 1, 1, 'nango', printf('%024x', i), 4000000000000, randomblob(400), randomblob(32), randomblob(32) FROM n",
        "INSERT INTO delivery (triplet, sink, version, delivered, delivered_at, delivered_exp, captured_at)
         SELECT 'acme:slack:m' || i, sink, 1, 1, 1, 4000000000000, 1
         FROM n, (SELECT 'kv.source' AS sink UNION ALL SELECT 'kv.target' UNION ALL SELECT 'composio')",
    ] {
        sqlx::query(statement).execute(&mut raw).await.unwrap();
    }
    sqlx::Connection::close(raw).await.unwrap();
}

/// One insert and commit a request, as a service on PostgreSQL would do it.
async fn insert_each(url: &str) -> SocketAddr {
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(16).connect(url).await.unwrap();
    sqlx::query("CREATE TABLE each_one (seq BIGSERIAL PRIMARY KEY, body BYTEA NOT NULL)").execute(&pool).await.unwrap();
    let handler = async |State(pool): State<sqlx::PgPool>, headers: HeaderMap, body: Bytes| {
        let expected = hex(&hmac_sha256(KEY.as_bytes(), &[&body]));
        let given = headers.get("x-nango-hmac-sha256").map_or(&b""[..], |value| value.as_bytes());
        if !same_secret(expected.as_bytes(), given) {
            return StatusCode::UNAUTHORIZED;
        }
        sqlx::query("INSERT INTO each_one (body) VALUES ($1)").bind(&body[..]).execute(&pool).await.unwrap();
        StatusCode::OK
    };
    listen(Router::new().route("/admin/sync/nango", post(handler)).with_state(pool)).await
}

/// Starts a script of `tests/benches/ingest` on Node; `None` when its packages are not installed.
fn node(script: &str, place: &Path) -> Option<(SocketAddr, Process)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/benches/ingest");
    if !folder.join("node_modules").exists() {
        println!("{script} is left out: run `npm ci` in tests/benches/ingest first");
        return None;
    }
    let child = Command::new("node")
        .args([script, &place.display().to_string(), KEY])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut process = Process(child);
    let mut line = String::new();
    BufReader::new(process.0.stdout.take()?).read_line(&mut line).ok()?;
    let address = line.trim().strip_prefix("http://")?.parse().ok()?;
    Some((address, process))
}

/// Megabytes that this process has in memory.
fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kb =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kb.unwrap_or(0.0) / 1024.0
}

fn main() {
    // `cargo test` builds and runs benches too, to see that they work.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let seconds = Duration::from_secs(setting("INGEST_SECONDS", 3));
    let rounds = setting("INGEST_ROUNDS", 3);
    let requests = requests();
    let dir = tempfile::Builder::new().prefix("cutover-ingest-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();

    let mut peers = Vec::new();
    let bare = Router::new().route("/admin/sync/nango", post(async || "ok"));
    peers.push(Peer::new("bare axum", runtime.block_on(listen(bare)), None));
    let sqlite = |name: &str| Place::Sqlite(dir.path().join(name));
    let ours = runtime.block_on(async { shim(state(&sqlite("ours.db"), false).await).await });
    peers.push(Peer::new("shim, SQLite", ours, None));
    if setting("INGEST_MILLION", 0) == 1 {
        let big = runtime.block_on(async { shim(state(&sqlite("million.db"), true).await).await });
        peers.push(Peer::new("shim, SQLite, 1,000,000 triplets", big, None));
    }
    if let Some((address, process)) = node("node.mjs", &dir.path().join("node.db")) {
        peers.push(Peer::new("Node, better-sqlite3", address, Some(process)));
    }
    if let Some((address, process)) = node("workerd.mjs", &dir.path().join("workerd")) {
        peers.push(Peer::new("Worker, KV put", address, Some(process)));
    }
    let url = postgres::shared().database();
    let each = postgres::shared().database();
    let place: Place = url.parse().unwrap();
    let ours = runtime.block_on(async { shim(state(&place, false).await).await });
    peers.push(Peer::new("shim, PostgreSQL", ours, None));
    peers.push(Peer::new("PostgreSQL, one commit each", runtime.block_on(insert_each(&each)), None));

    for peer in &peers {
        load::run(peer.address, &requests, CONNECTIONS, Duration::from_secs(1));
    }
    for _ in 0..rounds {
        for peer in &mut peers {
            peer.rounds.push(load::run(peer.address, &requests, CONNECTIONS, seconds));
        }
    }
    let rate = |name: &str| peers.iter().find(|p| p.name == name).map(|p| p.median().rate);
    let floor = rate("bare axum").unwrap();
    println!(
        "\n{CONNECTIONS} connections, {} bytes a request, median of {rounds} rounds of {seconds:?}",
        requests[0].len()
    );
    println!("{:<34} {:>9} {:>7} {:>9} {:>9} {:>9}", "", "req/s", "of bare", "p50 ms", "p99 ms", "p99.9 ms");
    for peer in &peers {
        let m = peer.median();
        let (p50, p99, p999) = (m.quantile(0.5), m.quantile(0.99), m.quantile(0.999));
        println!("{:<34} {:>9.0} {:>7.3} {p50:>9.2} {p99:>9.2} {p999:>9.2}", peer.name, m.rate, m.rate / floor);
    }
    let ratio = |what: &str, ours: &str, other: &str, goal: f64| {
        if let (Some(ours), Some(other)) = (rate(ours), rate(other)) {
            println!("{what}: {:.2} x, wanted {goal} x", ours / other);
        }
    };
    println!();
    ratio("SQLite over bare axum", "shim, SQLite", "bare axum", 0.4);
    ratio("SQLite over Node with a transaction a request", "shim, SQLite", "Node, better-sqlite3", 5.0);
    ratio("SQLite over a Worker that puts to KV", "shim, SQLite", "Worker, KV put", 8.0);
    ratio("PostgreSQL over one commit a request", "shim, PostgreSQL", "PostgreSQL, one commit each", 2.0);
    ratio("a million triplets over two hundred", "shim, SQLite, 1,000,000 triplets", "shim, SQLite", 0.8);

    let minutes = setting("INGEST_MINUTES", 0);
    let ours = peers.iter().find(|p| p.name == "shim, SQLite").unwrap().address;
    for half in 0..2 * minutes {
        let m = load::run(ours, &requests, CONNECTIONS, Duration::from_secs(30));
        println!("after {:>4} s: {:.0} req/s, {:.1} MB resident", (half + 1) * 30, m.rate, resident_mb());
    }
}
