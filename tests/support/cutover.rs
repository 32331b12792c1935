//! A whole cutover under test: the sandbox with its virtual clock, and the binary called at the
//! instants at which a person or a supervisor would call it. While nothing is called, the duties
//! run in this process, as a shim's would.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use cutover::catalogue::Catalogue;
use cutover::clients::{Endpoints, HttpOutside};
use cutover::domain::criteria::Verdict;
use cutover::domain::time::{DAY_MS, HOUR_MS, SECOND_MS, Timestamp};
use cutover::engine::{Engine, EngineConfig, GateReport};
use cutover::inventory::{self, Source};
use cutover::plan::{self, Policy};
use cutover::sandbox::{Fault, LedgerSummary, Sandbox, TokenLife, World, WorldConfig, WorldOptions};
use cutover::store::{Durability, Place, Store, Vault};
use serde_json::Value;

pub const START: &str = "2026-05-06T09:00:00Z";

/// Criteria that a soak of one virtual day can meet.
pub const POLICY: &str = "reverse_window = \"6h\"\n\n[criteria]\nsoak_days = 1\ndelivery_samples_min = 5\n\
                          lag_samples_min = 5\nsmoke_samples_min = 4\nparity_clean_runs = 1\n";

/// Three connections, four triplets, two waves.
pub const SMALL: &str = "tenant,integration_key,providers,account\nkahuna,hubspot,hubspot,default\n\
                         kahuna,slack,slack,default\nacme,salesforce,salesforce,prod\n";

pub struct Cutover {
    // Before the runtime that serves it.
    pub sandbox: Sandbox,
    pub runtime: tokio::runtime::Runtime,
    pub dir: tempfile::TempDir,
    pub clock: Arc<AtomicI64>,
    pub policy: String,
    pub plan: String,
    /// Where the state is, unless it is the file `cutover.db`.
    pub state: Option<String>,
    inventory: PathBuf,
}

impl Cutover {
    /// A world with the connections of `inventory` (CSV), and a plan for it.
    pub fn start(inventory: &str, policy: &str, faults: Vec<Fault>) -> Self {
        Self::start_with(inventory, policy, faults, WorldOptions::default())
    }

    /// The same in a world with options of its own.
    pub fn start_with(inventory: &str, policy: &str, faults: Vec<Fault>, options: WorldOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("inventory.csv");
        std::fs::write(&file, inventory).unwrap();
        std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
        let source = Source { name: "inventory.csv", bytes: inventory.as_bytes(), format: None, tenants: &[] };
        let read = inventory::read(&source).unwrap();
        let (catalogue, start) = (Catalogue::built_in(), Timestamp::parse(START).unwrap());
        let policy = Policy::from_toml(policy).unwrap();
        let plan = plan::plan(&read, &catalogue, &policy, &[], start);
        let retained: BTreeSet<_> = plan.rows.iter().filter(|r| !r.route.moves()).map(|r| r.triplet.clone()).collect();
        let config = WorldConfig {
            seed: 3,
            start,
            rows: read.rows,
            catalogue,
            retained,
            faults,
            fault_from: start,
            fault_until: start.plus_ms(DAY_MS),
            token_life: TokenLife::Fixed(HOUR_MS),
            shim_url: None,
        };
        let world = World::with_options(config, options);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sandbox = runtime.block_on(Sandbox::start(world)).unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clock = Arc::new(AtomicI64::new(start.millis()));
        let (policy, plan, state) = (String::new(), String::new(), None);
        let mut cutover = Self { sandbox, runtime, dir, clock, policy, plan, state, inventory: file };
        cutover.policy = cutover.path("policy.toml");
        cutover.plan = cutover.path("plan.json");
        let args = [
            "plan",
            "--inventory",
            &cutover.path("inventory.csv"),
            "--policy",
            &cutover.policy,
            "--out",
            &cutover.plan,
        ];
        let (code, out, error) = cutover.run(&args);
        assert_eq!(code, 0, "{out}{error}");
        cutover
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.load(Ordering::Relaxed))
    }

    pub fn ledger(&self) -> LedgerSummary {
        self.sandbox.lock().ledger()
    }

    pub fn environment(&self) -> Vec<(String, String)> {
        self.sandbox.environment()
    }

    pub fn endpoints(&self) -> Endpoints {
        cutover::rehearse::endpoints(&self.sandbox)
    }

    /// Runs the binary at the world's time, its files in the test's folder.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        self.run_with(args, &[])
    }

    pub fn run_with(&self, args: &[&str], more: &[(&str, &str)]) -> (i32, String, String) {
        let mut args = args.to_vec();
        if let Some(state) = self.state.as_ref().filter(|_| !args.contains(&"--state")) {
            args.extend(["--state", state]);
        }
        let Output { status, stdout, stderr } = self.command(&args).envs(more.iter().copied()).output().unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        command
            .args(args)
            .env_clear()
            .env("CUTOVER_NOW", self.now().to_rfc3339())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("USER", "alice")
            .envs(self.environment())
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs an operation until it is done, as somebody would who comes back when told to. Gives the
    /// reports of all calls.
    pub fn until_done(&self, args: &[&str]) -> Vec<Value> {
        let mut reports = Vec::new();
        for _ in 0..2_000 {
            let policy: &[&str] = if args.contains(&"--policy") { &[] } else { &["--policy", &self.policy] };
            let args = [args, &["--no-wait", "--format", "json"], policy].concat();
            let (code, out, error) = self.run(&args);
            let report: Value =
                serde_json::from_str(&out).unwrap_or_else(|_| panic!("{args:?}: {code}\n{out}\n{error}"));
            assert_eq!(report["exit_code"], code, "{report:#}");
            let next = report["next_at"].as_str().map(|text| Timestamp::parse(text).unwrap());
            assert!(code == 0 || code == 4, "{args:?}: {report:#}\n{error}");
            reports.push(report);
            if code == 0 {
                return reports;
            }
            self.live_until(next.unwrap().max(self.now().plus_ms(SECOND_MS)));
        }
        panic!("{args:?} does not end");
    }

    /// Runs an operation as [`Cutover::until_done`] does, however it ends; its exit code and reason.
    pub fn until_ended(&self, args: &[&str]) -> (i32, String) {
        for _ in 0..200 {
            let args = [args, &["--no-wait", "--format", "json", "--policy", &self.policy]].concat();
            let (code, out, error) = self.run(&args);
            let report: Value =
                serde_json::from_str(&out).unwrap_or_else(|_| panic!("{args:?}: {code}\n{out}\n{error}"));
            if code != 4 {
                return (code, report["reason"].as_str().unwrap_or_default().to_owned());
            }
            self.live_until(time(report["next_at"].as_str().unwrap()).max(self.now().plus_ms(SECOND_MS)));
        }
        panic!("{args:?} does not end");
    }

    /// Applied and consented, with a gate pass that nobody soaked for.
    pub fn up_to_verified(&self) {
        self.until_done(&["apply", &self.plan, "--yes"]);
        self.live(60_000);
        self.until_done(&["consent", "all", "--yes"]);
        self.pass_gate();
    }

    /// Lets the gate pass now, as far as the state knows.
    pub fn pass_gate(&self) {
        let engine = self.engine();
        self.runtime.block_on(async {
            let judged = engine.gate(self.now()).await.unwrap();
            let (criteria, open_until) = (Vec::new(), self.now().plus_ms(DAY_MS));
            let report = GateReport { verdict: Verdict::Pass, criteria, open_until, ..judged };
            engine.record_gate(&report).await.unwrap();
            engine.into_store().close().await.unwrap();
        });
    }

    /// The row of a triplet in `cutover status`.
    pub fn row(&self, triplet: &str) -> Value {
        let status = self.status();
        status["rows"].as_array().unwrap().iter().find(|row| row["triplet"] == triplet).unwrap().clone()
    }

    /// Switches the account that serves a triplet at the target on or off.
    pub fn enable_account(&self, triplet: &str, enabled: bool) {
        let account = self.row(triplet)["account"].as_str().unwrap().to_owned();
        let body = serde_json::json!({"enabled": enabled}).to_string();
        self.composio("PATCH", &format!("/connected_accounts/{account}/status"), &body);
    }

    pub fn store(&self) -> Store {
        let vault = Vault::load_or_create(&self.dir.path().join("cutover.key")).unwrap();
        let place = match &self.state {
            Some(url) => url.parse().unwrap(),
            None => Place::Sqlite(self.dir.path().join("cutover.db")),
        };
        self.runtime.block_on(Store::open_at(&place, Durability::ProcessCrash, vault)).unwrap()
    }

    pub fn engine(&self) -> Engine<HttpOutside> {
        let clock = Arc::clone(&self.clock);
        let clock: cutover::clients::Clock = Arc::new(move || Timestamp::from_millis(clock.load(Ordering::Relaxed)));
        let outside = HttpOutside::new(self.endpoints(), clock).unwrap();
        let policy = Policy::from_toml(&std::fs::read_to_string(&self.policy).unwrap()).unwrap();
        let engine = Engine::new(self.store(), outside, Catalogue::built_in(), EngineConfig::new(policy));
        self.runtime.block_on(engine).unwrap()
    }

    /// Moves the world's clock, and ours, to `to`, stopping at whatever happens there on the way.
    pub fn advance(&self, to: Timestamp) {
        let mut world = self.sandbox.lock();
        while world.now() < to {
            let next = world.next_due().map_or(to, |due| due.min(to)).max(world.now());
            world.advance_to(next);
            world.take_outbound();
            if next == to {
                break;
            }
        }
        self.clock.store(to.millis(), Ordering::Relaxed);
    }

    /// Lets the world go on with the duties running, as beside a shim.
    pub fn live_until(&self, end: Timestamp) {
        let engine = self.engine();
        while self.now() < end {
            let due = self.runtime.block_on(engine.run_due(self.now())).unwrap();
            let next = due.map_or(end, |due| due.min(end)).max(self.now().plus_ms(SECOND_MS));
            self.advance(next);
        }
        self.runtime.block_on(engine.into_store().close()).unwrap();
    }

    pub fn live(&self, ms: i64) {
        self.live_until(self.now().plus_ms(ms));
    }

    /// Judges the criteria and remembers the verdict.
    pub fn gate(&self) -> String {
        let engine = self.engine();
        let verdict = self.runtime.block_on(async {
            let report = engine.gate(self.now()).await.unwrap();
            engine.record_gate(&report).await.unwrap();
            let bad: Vec<String> = report
                .criteria
                .iter()
                .filter(|c| c.verdict != cutover::domain::criteria::Verdict::Pass)
                .map(|c| format!("{}: {}", c.id, c.reason))
                .collect();
            format!("{} {}", report.verdict.name(), bad.join("; "))
        });
        self.runtime.block_on(engine.into_store().close()).unwrap();
        verdict.trim().to_owned()
    }

    /// Up to the gate: applied, soaked, consented, drilled.
    pub fn up_to_gate(&self) {
        self.until_done(&["apply", &self.plan, "--yes"]);
        self.live(DAY_MS + 2 * HOUR_MS);
        self.until_done(&["consent", "all", "--yes"]);
        for wave in self.waves() {
            self.until_done(&["switch", "--wave", &wave.to_string(), "--drill", "--yes"]);
        }
        assert_eq!(self.gate(), "pass");
    }

    /// Up to the end of the reverse windows, everything settled.
    pub fn up_to_settled(&self) {
        self.up_to_gate();
        for wave in self.waves() {
            self.until_done(&["switch", "--wave", &wave.to_string(), "--yes"]);
        }
        self.live(6 * HOUR_MS);
        assert_eq!(self.gate(), "pass");
        self.until_done(&["settle", "--confirm", &self.plan_id()]);
    }

    pub fn plan_id(&self) -> String {
        let plan: Value = serde_json::from_str(&std::fs::read_to_string(&self.plan).unwrap()).unwrap();
        plan["id"].as_str().unwrap().to_owned()
    }

    pub fn waves(&self) -> Vec<u64> {
        let plan: Value = serde_json::from_str(&std::fs::read_to_string(&self.plan).unwrap()).unwrap();
        plan["waves"].as_array().unwrap().iter().map(|wave| wave["n"].as_u64().unwrap()).collect()
    }

    pub fn status(&self) -> Value {
        let (_, out, error) = self.run(&["status", "--format", "json"]);
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}"))
    }

    pub fn stages(&self) -> Vec<String> {
        let status = self.status();
        let moving = status["rows"].as_array().unwrap().iter().filter(|row| row["route"] == "reconsent");
        moving.map(|row| row["stage"].as_str().unwrap().to_owned()).collect()
    }
}

impl Cutover {
    fn send(&self, method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        self.runtime.block_on(async {
            let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
            let mut request = http.request(method.parse().unwrap(), url).body(body.to_owned());
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let answer = request.header("content-type", "application/json").send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        })
    }

    /// Calls an admin route of the gateway.
    pub fn admin(&self, method: &str, path: &str, body: &str) {
        let key = self.sandbox.lock().keys().gateway_admin_key;
        let url = format!("{}{path}", self.sandbox.urls.gateway);
        let (status, text) = self.send(method, &url, &[("x-admin-key", &key)], body);
        assert_eq!(status, 200, "{text}");
    }

    /// What the gateway's hot path answers for a triplet now, and where it read from.
    pub fn served(&self, triplet: &str) -> (u16, String) {
        let url = format!("{}/v1/{}/whoami", self.sandbox.urls.gateway, triplet.replace(':', "/"));
        let key = self.sandbox.lock().keys().gateway_key;
        self.runtime.block_on(async {
            let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
            let answer = http.get(url).bearer_auth(key).send().await.unwrap();
            let reads = answer.headers()["x-read-authority"].to_str().unwrap().to_owned();
            (answer.status().as_u16(), reads)
        })
    }

    /// Tells the sandbox what the next matching requests get, as `POST /_sandbox/script` takes it.
    pub fn script(&self, entry: &str) {
        self.sandbox.lock().add_script(serde_json::from_str(entry).unwrap()).unwrap();
    }

    fn cloudflare(&self, method: &str, path: &str, body: &str) {
        let keys = self.sandbox.lock().keys();
        let account = format!("{}/client/v4/accounts/{}", self.sandbox.urls.cloudflare, keys.cloudflare_account_id);
        let bearer = format!("Bearer {}", keys.cloudflare_token);
        let (status, text) = self.send(method, &format!("{account}{path}"), &[("authorization", &bearer)], body);
        assert_eq!(status, 200, "{text}");
    }

    /// Puts an entry into the source namespace, as somebody else would.
    pub fn put_kv(&self, key: &str, entry: &str) {
        let namespace = self.sandbox.lock().keys().kv_source;
        let key = key.replace(':', "%3A");
        self.cloudflare("PUT", &format!("/storage/kv/namespaces/{namespace}/values/{key}"), entry);
    }

    /// The read-authority record of a triplet, as it stands in KV.
    pub fn authority(&self, triplet: &str) -> Value {
        let keys = self.sandbox.lock().keys();
        let (base, account) = (&self.sandbox.urls.cloudflare, &keys.cloudflare_account_id);
        let key = format!("authority:{triplet}").replace(':', "%3A");
        let url = format!("{base}/client/v4/accounts/{account}/storage/kv/namespaces/{}/values/{key}", keys.kv_source);
        let bearer = format!("Bearer {}", keys.cloudflare_token);
        let (status, text) = self.send("GET", &url, &[("authorization", &bearer)], "");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Runs a statement on the D1 database.
    pub fn d1(&self, sql: &str) {
        let database = self.sandbox.lock().keys().d1_database;
        let body = serde_json::json!({"sql": sql}).to_string();
        self.cloudflare("POST", &format!("/d1/database/{database}/raw"), &body);
    }

    /// Calls Composio with the project's key.
    pub fn composio(&self, method: &str, path: &str, body: &str) {
        let key = self.sandbox.lock().keys().composio_api_key;
        let url = format!("{}/api/v3.1{path}", self.sandbox.urls.composio);
        let (status, text) = self.send(method, &url, &[("x-api-key", &key)], body);
        assert!(status < 300, "{method} {path}: {status} {text}");
    }

    /// Calls Nango with the environment's key.
    pub fn nango(&self, method: &str, path: &str, body: &str) {
        let key = format!("Bearer {}", self.sandbox.lock().keys().nango_api_key);
        let url = format!("{}{path}", self.sandbox.urls.nango);
        let (status, text) = self.send(method, &url, &[("authorization", &key)], body);
        assert!(status < 300, "{method} {path}: {status} {text}");
    }

    /// Puts a row into `kv_audit`, as another writer would.
    pub fn audit_row(&self, op_id: &str, at: Timestamp, key: &str, source: &str) {
        let keys = self.sandbox.lock().keys();
        let url = format!(
            "{}/client/v4/accounts/{}/d1/database/{}/raw",
            self.sandbox.urls.cloudflare, keys.cloudflare_account_id, keys.d1_database
        );
        let sql = "INSERT INTO kv_audit (op_id, at, key, action, source) VALUES (?1, ?2, ?3, ?4, ?5)";
        let body = serde_json::json!({"sql": sql, "params": [op_id, at.to_rfc3339(), key, "put", source]}).to_string();
        let bearer = format!("Bearer {}", keys.cloudflare_token);
        let (status, text) = self.send("POST", &url, &[("authorization", &bearer)], &body);
        assert_eq!(status, 200, "{text}");
    }

    /// Makes Composio send its events somewhere.
    pub fn subscribe(&self, to: &str) {
        let key = self.sandbox.lock().keys().composio_api_key;
        let url = format!("{}/api/v3.1/webhook_subscriptions", self.sandbox.urls.composio);
        let body = format!(r#"{{"webhook_url":"{to}","enabled_events":["composio.connected_account.expired"]}}"#);
        let (status, text) = self.send("POST", &url, &[("x-api-key", &key)], &body);
        assert_eq!(status, 201, "{text}");
    }

    /// Ends that.
    pub fn unsubscribe(&self) {
        let key = self.sandbox.lock().keys().composio_api_key;
        let url = format!("{}/api/v3.1/webhook_subscriptions", self.sandbox.urls.composio);
        let (_, text) = self.send("GET", &url, &[("x-api-key", &key)], "");
        let listed: Value = serde_json::from_str(&text).unwrap();
        let id = listed["items"][0]["id"].as_str().unwrap();
        let (status, text) = self.send("DELETE", &format!("{url}/{id}"), &[("x-api-key", &key)], "");
        assert_eq!(status, 200, "{text}");
    }
}

/// Real time, for what is no part of the world.
pub fn real_now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

pub fn time(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
