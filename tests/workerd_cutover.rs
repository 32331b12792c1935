//! The moves of a cutover with the gateway on the real Workers runtime: a switch and its reverse
//! under load, and a retirement that finds its zombies. The runtime is installed by the program
//! itself; Node.js 20 or newer must be there.

#[path = "support/cutover.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cutover::catalogue::Catalogue;
use cutover::clients::{Clock, HttpOutside};
use cutover::domain::criteria::Verdict;
use cutover::domain::time::{DAY_MS, HOUR_MS, SECOND_MS, Timestamp};
use cutover::domain::triplet::Triplet;
use cutover::engine::{Engine, EngineConfig, EngineResult, GateReport, Progress, Reversal};
use cutover::inventory::{self, Source};
use cutover::plan::{self, Plan, Policy};
use cutover::sandbox::{
    GatewayKind, LiveClock, ReadLoad, Sandbox, TokenLife, Workerd, World, WorldConfig, WorldOptions,
};
use cutover::store::{Durability, Store, Vault};
use serde_json::Value;
use support::SMALL;
use tokio::sync::Mutex;

/// Both tests live by the wall clock, so they take turns.
static MACHINE: Mutex<()> = Mutex::const_new(());

/// The engine is asked at least this often what is due.
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn world(inventory: &str, policy: &Policy, start: Timestamp) -> (WorldConfig, Plan) {
    let source = Source { name: "inventory.csv", bytes: inventory.as_bytes(), format: None, tenants: &[] };
    let (read, catalogue) = (inventory::read(&source).unwrap(), Catalogue::built_in());
    let plan = plan::plan(&read, &catalogue, policy, &[], start);
    let retained: BTreeSet<_> = plan.rows.iter().filter(|r| !r.route.moves()).map(|r| r.triplet.clone()).collect();
    let config = WorldConfig {
        seed: 3,
        start,
        rows: read.rows,
        catalogue,
        retained,
        faults: Vec::new(),
        fault_from: start,
        fault_until: start,
        token_life: TokenLife::Fixed(HOUR_MS),
        shim_url: None,
    };
    (config, plan)
}

/// An engine beside a sandbox whose gateway is the Workers runtime.
struct Live {
    sandbox: Sandbox,
    moving: tokio::task::JoinHandle<()>,
    clock: LiveClock,
    engine: Engine<HttpOutside>,
    plan: Plan,
    dir: tempfile::TempDir,
}

impl Live {
    /// `speed`: seconds of the world in each real one.
    async fn start(inventory: &str, policy: &str, speed: f64) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("workerd");
        let workerd = tokio::task::spawn_blocking(move || Workerd::install(&cache).unwrap()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
        let policy = Policy::from_toml(policy).unwrap();
        let start = Timestamp::parse(support::START).unwrap();
        let (config, plan) = world(inventory, &policy, start);
        let clock = LiveClock::start(start, speed);
        let world = World::with_options(config, WorldOptions::of(GatewayKind::Workerd));
        let sandbox = Sandbox::start_on_workerd(world, &workerd, &clock).await.unwrap();
        let moving = tokio::spawn(sandbox.run_live(clock, reqwest::Client::builder().no_proxy().build().unwrap()));

        let vault = Vault::load_or_create(&dir.path().join("cutover.key")).unwrap();
        let store = Store::open(&dir.path().join("cutover.db"), Durability::ProcessCrash, vault).await.unwrap();
        let now: Clock = Arc::new(move || clock.now());
        let outside = HttpOutside::new(cutover::rehearse::endpoints(&sandbox), now).unwrap();
        let engine = Engine::new(store, outside, Catalogue::built_in(), EngineConfig::new(policy)).await.unwrap();
        Self { sandbox, moving, clock, engine, plan, dir }
    }

    async fn pass(&self, until: Timestamp) {
        tokio::time::sleep(self.clock.wait(until).clamp(Duration::from_millis(20), LOOK_EVERY)).await;
    }

    /// Calls an operation until it is done, with the duties beside it.
    async fn until_done(&self, operation: impl AsyncFn(&Engine<HttpOutside>, Timestamp) -> EngineResult<Progress>) {
        let began = self.clock.now();
        loop {
            let step = operation(&self.engine, self.clock.now()).await.unwrap();
            let due = self.engine.run_due(self.clock.now()).await.unwrap();
            let Progress::Wait(at) = step else { return };
            assert!(self.clock.now().since(began) < DAY_MS, "it does not end");
            self.pass(due.map_or(at, |due| due.min(at))).await;
        }
    }

    /// Runs the duties until `end`.
    async fn live_until(&self, end: Timestamp) {
        while self.clock.now() < end {
            let due = self.engine.run_due(self.clock.now()).await.unwrap();
            self.pass(due.map_or(end, |due| due.min(end))).await;
        }
    }

    /// Lets the gate pass now, as far as the state knows: it is not what is tried here.
    async fn let_pass(&self) {
        let now = self.clock.now();
        let judged = self.engine.gate(now).await.unwrap();
        let report =
            GateReport { verdict: Verdict::Pass, criteria: Vec::new(), open_until: now.plus_ms(DAY_MS), ..judged };
        self.engine.record_gate(&report).await.unwrap();
    }

    /// Applied, consented, and the gate passes.
    async fn up_to_gate(&self) {
        self.until_done(async |engine, now| engine.apply(&self.plan, now).await).await;
        self.until_done(async |engine, now| engine.consent(now).await).await;
        self.let_pass().await;
    }

    async fn stages(&self) -> BTreeSet<&'static str> {
        let rows = self.engine.store().load_triplets().await.unwrap();
        rows.iter().filter(|row| row.moves()).map(|row| row.custody.stage.name()).collect()
    }

    /// The binary at the world's time, its files in this world's folder.
    async fn run(&self, args: &[&str], more: &[(&str, &str)]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        command
            .args(args)
            .env_clear()
            .env("CUTOVER_NOW", self.clock.now().to_rfc3339())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("USER", "alice")
            .envs(self.sandbox.environment())
            .envs(more.iter().copied())
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    async fn stop(self) {
        self.moving.abort();
        self.sandbox.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_triplets_go_there_and_back_under_load_without_one_failed_read() {
    let _turn = MACHINE.lock().await;
    let rows: String = (0..50).map(|n| format!("tenant{n},hubspot,hubspot,default\n")).collect();
    let inventory = format!("tenant,integration_key,providers,account\n{rows}");
    let policy = "reverse_window = \"6h\"\n\n[waves]\ncanary_size = 0\nsize_max = 50\n";
    let live = Live::start(&inventory, policy, 60.0).await;
    live.up_to_gate().await;
    assert_eq!(live.stages().await, BTreeSet::from(["verified"]));

    let triplets: Vec<Triplet> = live.plan.rows.iter().map(|row| row.triplet.clone()).collect();
    assert_eq!(triplets.len(), 50);
    let key = live.sandbox.lock().keys().gateway_key;
    let load = ReadLoad::start(&live.sandbox.urls.gateway, &key, &triplets, 8, Duration::from_millis(5)).unwrap();
    live.until_done(async |engine, now| engine.switch(1, now).await).await;
    assert_eq!(live.stages().await, BTreeSet::from(["switched"]));
    live.until_done(async |engine, now| engine.reverse(&Reversal::Wave(1), now).await).await;
    assert_eq!(live.stages().await, BTreeSet::from(["verified"]));
    let reads = load.stop().await;
    live.sandbox.close_books().await.unwrap();
    println!("{} reads on workerd during a switch of 50 triplets and its reverse, {} failed", reads.ok, reads.failed);
    assert!(reads.from_source > 50 && reads.from_target > 50, "{reads:?}");
    assert_eq!(reads.failed, 0, "{:?}", reads.failures);
    let ledger = live.sandbox.lock().ledger();
    let damage = (ledger.stale_reads, ledger.lost, ledger.regressions, ledger.double_refreshes);
    assert_eq!(damage, (0, 0, 0, 0), "{:?}", ledger.incidents);
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zombies_are_found_by_name_and_nothing_calls_itself_done() {
    let _turn = MACHINE.lock().await;
    let policy = "reverse_window = \"10m\"\n";
    let live = Live::start(SMALL, policy, 240.0).await;
    live.up_to_gate().await;
    for wave in live.engine.waves().await.unwrap() {
        live.until_done(async |engine, now| engine.switch(wave, now).await).await;
    }
    live.until_done(async |engine, now| engine.settle(now).await).await;
    assert_eq!(live.stages().await, BTreeSet::from(["settled"]));

    // Another environment of the gateway, which nobody retired.
    let start = Timestamp::parse(support::START).unwrap();
    let other = Sandbox::start(World::new(world(SMALL, &Policy::default(), start).0)).await.unwrap();
    let (staging, key) = (format!("staging={}", other.urls.gateway), other.lock().keys().gateway_admin_key);
    let secrets = [("CUTOVER_GATEWAY_ADMIN_KEY_STAGING", key.as_str())];
    let args = ["retire", "do-alarm", "--yes", "--environment", &staging, "--policy", "policy.toml"];
    let call = async || -> (i32, Value) {
        let (code, out, error) = live.run(&[&args[..], &["--no-wait", "--format", "json"]].concat(), &secrets).await;
        (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code}: {out}{error}")))
    };
    // Until every object is disarmed and the silence is over.
    for _ in 0..2 {
        let (code, report) = call().await;
        assert_eq!(code, 4, "{report:#}");
        let next = Timestamp::parse(report["next_at"].as_str().unwrap()).unwrap();
        live.live_until(next.plus_ms(SECOND_MS)).await;
    }
    // Somebody arms one object again, and a subscription still points at the retired route.
    let keys = live.sandbox.lock().keys();
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let post = async |url: String, header: &str, key: &str, body: &'static str| {
        let request = http.post(url).header(header, key).header("content-type", "application/json").body(body);
        request.send().await.unwrap().status().as_u16()
    };
    let gateway = format!("{}/admin/alarms/kahuna%3Aslack%3Adefault/mode", live.sandbox.urls.gateway);
    assert_eq!(post(gateway, "x-admin-key", &keys.gateway_admin_key, r#"{"mode":"standby"}"#).await, 200);
    let composio = format!("{}/api/v3.1/webhook_subscriptions", live.sandbox.urls.composio);
    let body = r#"{"webhook_url":"https://v5.example.com/admin/sync/nango","enabled_events":["composio.connected_account.expired"]}"#;
    assert_eq!(post(composio, "x-api-key", &keys.composio_api_key, body).await, 201);

    let (code, report) = call().await;
    assert_eq!(code, 7, "{report:#}");
    let reason = report["reason"].as_str().unwrap();
    for zombie in ["zombie armed: `kahuna:slack:default`", "zombie environment: `staging`", "zombie subscription:"] {
        assert!(reason.contains(zombie), "{reason}");
    }
    let nango = ["retire", "nango", "--confirm", &live.plan.id, "--policy", "policy.toml"];
    let (code, _, error) = live.run(&nango, &[]).await;
    assert!(code == 7 && error.contains("must be retired first"), "{code}: {error}");
    other.stop().await;
    live.stop().await;
}
