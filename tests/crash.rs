//! Kills the shim again and again while tokens pour in, and asks the world what came of it.
//!
//! The load plays the gateway: it has the source custody refresh a token and reports it to a shim
//! until one acknowledges it, with old tokens sent again in between. Whatever was acknowledged must
//! reach every sink, and no sink may ever go back to an older token. `CUTOVER_CRASH_KILLS` sets how
//! many random kills there are (12 for each database by default), `CUTOVER_CRASH_SEED` their moments.

#[path = "support/postgres.rs"]
mod postgres_server;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cutover::domain::secret::{Secret, hex, hmac_sha256};
use cutover::failpoint;
use cutover::shim::{AdminKeys, hash_of, weakness};
use cutover::store::{Durability, Place, Sink, Store, Vault};
use postgres_server::Postgres;
use serde_json::{Value, json};

const ADMIN_KEY: &str = "5d1c7f0e9a3b4c2d8e6f1a0b7c9d3e5f";

/// Waits for a condition this often, at most this many times: two minutes.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSES_MAX: u32 = 2_400;

fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a condition; `false` when it does not come.
fn comes(mut condition: impl FnMut() -> bool) -> bool {
    (0..PAUSES_MAX).any(|_| {
        let came = condition();
        if !came {
            std::thread::sleep(PAUSE);
        }
        came
    })
}

/// The outside world, and what points at it.
struct World {
    _sandbox: Running,
    environment: BTreeMap<String, String>,
    dir: tempfile::TempDir,
    state: String,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// A sandbox with an applied plan.
    fn start(state: Option<String>) -> Arc<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let mut sandbox = Running(
            Command::new(env!("CARGO_BIN_EXE_cutover"))
                .args(["sandbox", "--print-env"])
                .env_clear()
                .current_dir(dir.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let lines = BufReader::new(sandbox.0.stdout.take().unwrap()).lines();
        let mut environment = BTreeMap::new();
        for line in lines {
            let line = line.unwrap();
            let (name, value) = line.strip_prefix("export ").unwrap().split_once('=').unwrap();
            environment.insert(name.to_owned(), value.trim_matches('\'').to_owned());
            if name == "CUTOVER_PROVIDER_URL" {
                break;
            }
        }
        environment.insert("CUTOVER_SHIM_ADMIN_KEYS".to_owned(), hash_of(&Secret::new(ADMIN_KEY)));
        let state = state.unwrap_or_else(|| format!("sqlite:{}", dir.path().join("cutover.db").display()));
        let world = Self {
            _sandbox: sandbox,
            environment,
            dir,
            state,
            client: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap(),
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
        };
        world.must(&["plan", "--inventory", "nango", "--out", "plan.json"]);
        world.must(&["apply", "plan.json", "--yes", "--by", "alice", "--state", &world.state]);
        Arc::new(world)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        command.args(args).env_clear().envs(&self.environment).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn must(&self, args: &[&str]) {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn at(&self, name: &str) -> &str {
        &self.environment[name]
    }

    async fn store(&self) -> Store {
        let place: Place = self.state.parse().unwrap();
        let vault = Vault::load_or_create(&self.dir.path().join("cutover.key")).unwrap();
        Store::open_at(&place, Durability::PowerLoss, vault).await.unwrap()
    }

    async fn json(&self, request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
        let answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.json().await.unwrap_or(Value::Null)))
    }

    fn ledger(&self) -> Value {
        let request = self.client.get(format!("{}/_sandbox/ledger", self.at("CUTOVER_GATEWAY_URL")));
        self.runtime.block_on(self.json(request)).unwrap().1["ledger"].clone()
    }

    /// The token that a namespace serves.
    async fn served(&self, namespace: &str, triplet: &str) -> Option<String> {
        let url = format!(
            "{}/storage/kv/namespaces/{}/values/tokens%3A{}",
            self.at("CUTOVER_CLOUDFLARE_URL"),
            self.at(namespace),
            triplet.replace(':', "%3A")
        );
        let request = self.client.get(url).bearer_auth(self.at("CUTOVER_CLOUDFLARE_TOKEN"));
        let (_, entry) = self.json(request).await?;
        entry["access_token"].as_str().map(str::to_owned)
    }
}

/// A connection and the triplets that it feeds.
struct Source {
    integration_key: String,
    connection_id: String,
    triplets: Vec<String>,
}

/// What the gateway saw, and what it told the shims.
struct Load {
    world: Arc<World>,
    addresses: Vec<String>,
    sources: Vec<Source>,
    /// The newest acknowledged token of each triplet.
    acknowledged: Mutex<BTreeMap<String, String>>,
    reports: AtomicU64,
    stop: AtomicBool,
}

impl Load {
    async fn sources(world: &World) -> Vec<Source> {
        let store = world.store().await;
        let connections = store.load_connections().await.unwrap();
        let triplets = store.load_triplets().await.unwrap();
        store.close().await.unwrap();
        connections
            .into_iter()
            .filter(|c| c.expires_at.is_some())
            .map(|c| Source {
                triplets: triplets
                    .iter()
                    .filter(|t| t.connection == c.id && t.moves())
                    .map(|t| t.triplet.to_string())
                    .collect(),
                integration_key: c.integration_key,
                connection_id: c.connection_id,
            })
            .filter(|s| !s.triplets.is_empty())
            .collect()
    }

    /// Has one grant refreshed. `None` while the source custody refuses.
    async fn refresh(&self, source: &Source) -> Option<Value> {
        let url = format!(
            "{}/connections/{}?provider_config_key={}&force_refresh=true",
            self.world.at("CUTOVER_NANGO_URL"),
            source.connection_id,
            source.integration_key
        );
        let request = self.world.client.get(url).bearer_auth(self.world.at("CUTOVER_NANGO_KEY"));
        let (status, body) = self.world.json(request).await?;
        (status == 200).then(|| {
            json!({
                "access_token": body["credentials"]["access_token"],
                "expires_at": body["credentials"]["expires_at"],
            })
        })
    }

    /// Reports an entry until a shim acknowledges it.
    async fn report(&self, triplet: &str, entry: &Value, dice: &mut Dice) {
        for _ in 0..PAUSES_MAX {
            let address = &self.addresses[dice.roll(self.addresses.len() as u64) as usize];
            let url = format!("http://{address}/admin/tokens/{}", triplet.replace(':', "/"));
            let request = self.world.client.put(url).header("x-admin-key", ADMIN_KEY).json(entry);
            match self.world.json(request).await {
                Some((200..300, _)) => {
                    self.reports.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Some((status, body)) if status < 500 => panic!("{triplet}: {status} {body}"),
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
        panic!("nobody took a token of {triplet}");
    }

    /// Says that something happened to a connection; nobody has to hear it.
    async fn hint(&self, source: &Source, dice: &mut Dice) {
        let body = json!({
            "type": "auth", "operation": "override", "success": true,
            "connectionId": source.connection_id, "providerConfigKey": source.integration_key,
        })
        .to_string();
        let key = self.world.at("CUTOVER_NANGO_WEBHOOK_KEY");
        let signature = hex(&hmac_sha256(key.as_bytes(), &[body.as_bytes()]));
        let address = &self.addresses[dice.roll(self.addresses.len() as u64) as usize];
        let request = self.world.client.post(format!("http://{address}/admin/sync/nango"));
        let request = request.header("x-nango-hmac-sha256", signature).header("content-type", "application/json");
        let _ = self.world.json(request.body(body)).await;
    }

    /// Refreshes and reports the grants of one part of the sources until it is told to stop.
    async fn pour(self: Arc<Self>, part: usize, parts: usize, seed: u64) {
        let mut dice = Dice(seed);
        let mut old: BTreeMap<&str, Value> = BTreeMap::new();
        while !self.stop.load(Ordering::Relaxed) {
            for source in self.sources.iter().skip(part).step_by(parts) {
                let Some(entry) = self.refresh(source).await else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                for triplet in &source.triplets {
                    self.report(triplet, &entry, &mut dice).await;
                    let token = entry["access_token"].as_str().unwrap().to_owned();
                    self.acknowledged.lock().unwrap().insert(triplet.clone(), token);
                    if dice.roll(3) == 0
                        && let Some(older) = old.get(triplet.as_str())
                    {
                        self.report(triplet, older, &mut dice).await;
                    }
                    old.insert(triplet, entry.clone());
                }
                if dice.roll(2) == 0 {
                    self.hint(source, &mut dice).await;
                }
            }
        }
    }

    /// Triplets whose newest acknowledged token is not in both namespaces.
    async fn missing(&self) -> Vec<String> {
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        let mut missing = Vec::new();
        for (triplet, token) in acknowledged {
            for namespace in ["CUTOVER_KV_SOURCE", "CUTOVER_KV_TARGET"] {
                if self.world.served(namespace, &triplet).await.as_ref() != Some(&token) {
                    missing.push(format!("{triplet} in {namespace}"));
                }
            }
        }
        missing
    }
}

/// The shims of one state.
struct Fleet {
    world: Arc<World>,
    shims: Vec<Option<Running>>,
    addresses: Vec<String>,
    log: File,
    log_path: std::path::PathBuf,
    /// A shim that cannot reach its database when it starts ends with code 1.
    database_dies: bool,
}

impl Fleet {
    fn new(world: &Arc<World>, size: usize) -> Self {
        // All are bound before one is given back, or two would get the same.
        let ports: Vec<TcpListener> = (0..size).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let log_path = world.dir.path().join("shims.log");
        Self {
            world: Arc::clone(world),
            shims: (0..size).map(|_| None).collect(),
            addresses: ports.iter().map(|p| p.local_addr().unwrap().to_string()).collect(),
            log: OpenOptions::new().create(true).append(true).open(&log_path).unwrap(),
            log_path,
            database_dies: false,
        }
    }

    fn start(&mut self, n: usize, armed: Option<&str>) {
        let mut command = self.world.command(&["shim", "--claim", "1s", "--state", &self.world.state]);
        command.args(["--listen", &self.addresses[n]]);
        command.envs(armed.map(|name| ("CUTOVER_FAILPOINT", name)));
        command.stdout(Stdio::null()).stderr(self.log.try_clone().unwrap());
        self.shims[n] = Some(Running(command.spawn().unwrap()));
    }

    /// Starts those that are not there, as a service manager does: one that was just starting when
    /// its database died has given up.
    fn start_all(&mut self) {
        for shim in &mut self.shims {
            let ended = shim.as_mut().and_then(|s| s.0.try_wait().unwrap());
            if self.database_dies && ended.and_then(|status| status.code()) == Some(1) {
                *shim = None;
            }
        }
        for n in 0..self.shims.len() {
            if self.shims[n].is_none() {
                self.start(n, None);
            }
        }
    }

    fn kill(&mut self, n: usize) {
        if let Some(mut shim) = self.shims[n].take() {
            let ended = shim.0.try_wait().unwrap().filter(|status| !self.database_dies || status.code() != Some(1));
            assert!(ended.is_none(), "a shim ended by itself ({ended:?}):\n{}", self.tail());
            shim.0.kill().unwrap();
            shim.0.wait().unwrap();
        }
    }

    /// Waits until an armed shim has died at its failpoint.
    fn wait_for_death(&mut self, n: usize, name: &str) {
        let mut shim = self.shims[n].take().unwrap();
        let mut status = None;
        let died = comes(|| {
            status = shim.0.try_wait().unwrap();
            status.is_some()
        });
        assert!(died, "nothing came to the failpoint `{name}`:\n{}", self.tail());
        assert!(status.unwrap().signal().is_some(), "{name}: {status:?}\n{}", self.tail());
    }

    /// Ends one as a deployment does.
    fn replace(&mut self, n: usize) {
        let Some(mut shim) = self.shims[n].take() else { return };
        assert!(Command::new("kill").arg(shim.0.id().to_string()).status().unwrap().success());
        let status = shim.0.wait().unwrap();
        // One that was just starting has no handler yet, or no database.
        let early = status.signal() == Some(15) || (self.database_dies && status.code() == Some(1));
        assert!(status.code() == Some(0) || early, "{status:?}\n{}", self.tail());
    }

    fn stop(&mut self) {
        for n in 0..self.shims.len() {
            self.replace(n);
        }
    }

    fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log_path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Runs `trouble` under load, then lets things settle and judges.
fn under_load(world: &Arc<World>, shims: usize, trouble: impl FnOnce(&mut Fleet, &mut Dice)) {
    let seed = knob("CUTOVER_CRASH_SEED", 38);
    let mut fleet = Fleet::new(world, shims);
    let sources = world.runtime.block_on(Load::sources(world));
    assert!(sources.len() >= 10, "only {} connections have tokens that end", sources.len());
    let load = Arc::new(Load {
        world: Arc::clone(world),
        addresses: fleet.addresses.clone(),
        sources,
        acknowledged: Mutex::default(),
        reports: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let pouring: Vec<_> =
        (0..4).map(|part| world.runtime.spawn(Arc::clone(&load).pour(part, 4, seed + part as u64))).collect();
    trouble(&mut fleet, &mut Dice(seed));
    fleet.start_all();
    load.stop.store(true, Ordering::Relaxed);
    for part in pouring {
        world.runtime.block_on(part).unwrap();
    }
    let acknowledged = load.acknowledged.lock().unwrap().len();
    assert!(acknowledged >= 10, "only {acknowledged} triplets got a token");
    let mut missing = Vec::new();
    let arrived = comes(|| {
        missing = world.runtime.block_on(load.missing());
        missing.is_empty()
    });
    assert!(arrived, "acknowledged tokens did not arrive: {missing:?}\n{}", fleet.tail());
    let store = world.runtime.block_on(world.store());
    let settled = async || {
        let mut pending = 0;
        for sink in Sink::ALL {
            let states = store.load_sink(sink).await.unwrap();
            assert!(states.iter().all(|s| s.dead.is_none()), "{states:?}");
            pending += states.iter().filter(|s| s.delivered != s.version).count();
        }
        pending == 0 && !store.load_due().await.unwrap().intake
    };
    assert!(comes(|| world.runtime.block_on(settled())), "a delivery stays pending:\n{}", fleet.tail());
    fleet.stop();
    let chains = async {
        let entries = store.verify_journal().await.unwrap();
        let commits = store.verify_intake().await.unwrap();
        store.verify_events().await.unwrap();
        (entries, commits)
    };
    let (entries, commits) = world.runtime.block_on(chains);
    let ledger = world.ledger();
    println!(
        "{} reports acknowledged in {commits} commits, {entries} versions, ledger: {} deliveries, {} lost, {} regressions",
        load.reports.load(Ordering::Relaxed),
        ledger["deliveries"],
        ledger["lost"],
        ledger["regressions"],
    );
    assert_eq!((&ledger["lost"], &ledger["regressions"]), (&json!(0), &json!(0)), "{ledger:#}");
    assert_eq!(ledger["stale_reads"], 0, "{ledger:#}");
}

/// What would go on without the lane, the listener or the writer looks healthy and is not.
#[test]
fn a_part_of_the_shim_that_panics_ends_it_and_is_named() {
    let world = World::start(None);
    for published in ["CUTOVER_NANGO_WEBHOOK_KEY", "CUTOVER_GATEWAY_ADMIN_KEY"] {
        let key = Secret::new(world.at(published));
        assert!(weakness(&key).is_some() && AdminKeys::of(&[key]).hold_a_known_key(), "{published}");
    }
    let mut fleet = Fleet::new(&world, 1);
    let source = world.runtime.block_on(Load::sources(&world)).remove(0);
    // Later than any that the sandbox hands out.
    let ends = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 365 * 86_400;
    let mut tokens = ends..;
    let url = format!("http://{}/admin/tokens/{}", fleet.addresses[0], source.triplets[0].replace(':', "/"));
    for (place, part) in [
        ("panic:poll-claimed", "lane `reads`"),
        ("panic:intake-before-commit", "the writer of the intake log"),
        ("panic:delivery-sent", "lane `"),
    ] {
        fleet.start(0, Some(place));
        let mut shim = fleet.shims[0].take().unwrap();
        let mut status = None;
        let ended = comes(|| {
            let ends = tokens.next().unwrap();
            let entry = json!({"access_token": format!("of-the-gateway-{ends}"), "expires_at": ends});
            let request = world.client.put(&url).header("x-admin-key", ADMIN_KEY).json(&entry);
            world.runtime.block_on(async { drop(request.send().await) });
            status = shim.0.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended && status.unwrap().code() == Some(1), "{place}: {status:?}\n{}", fleet.tail());
        assert!(fleet.tail().contains(part), "{place}:\n{}", fleet.tail());
        std::fs::write(&fleet.log_path, "").unwrap();
    }
}

fn each_failpoint(fleet: &mut Fleet) {
    for name in failpoint::NAMES {
        fleet.start(0, Some(name));
        fleet.wait_for_death(0, name);
    }
}

/// Rotates the keys of the state under everything that runs on it.
fn change_keys(world: &World, kill: u64) {
    match kill {
        6 => world.must(&["keys", "rotate", "--by", "alice", "--state", &world.state]),
        11 => world.must(&["keys", "drop-old", "--by", "alice", "--state", &world.state]),
        _ => {}
    }
}

fn moment(dice: &mut Dice) -> Duration {
    Duration::from_millis(dice.roll(700))
}

#[test]
fn nothing_is_lost_and_nothing_goes_back_when_the_shim_is_killed_on_a_file() {
    let world = World::start(None);
    under_load(&world, 1, |fleet, dice| {
        each_failpoint(fleet);
        for kill in 0..knob("CUTOVER_CRASH_KILLS", 12) {
            fleet.start(0, None);
            change_keys(&world, kill);
            std::thread::sleep(moment(dice));
            fleet.kill(0);
        }
    });
}

#[test]
fn nothing_is_lost_and_nothing_goes_back_when_shims_and_their_database_are_killed() {
    let mut server = Postgres::start();
    let world = World::start(Some(server.database()));
    under_load(&world, 3, |fleet, dice| {
        each_failpoint(fleet);
        fleet.start_all();
        fleet.database_dies = true;
        for kill in 0..knob("CUTOVER_CRASH_KILLS", 12) {
            change_keys(&world, kill);
            std::thread::sleep(moment(dice));
            if kill % 5 == 2 {
                fleet.replace(dice.roll(3) as usize);
            } else if kill % 5 == 4 {
                server.kill();
                std::thread::sleep(moment(dice));
                server.restart();
            } else {
                fleet.kill(dice.roll(3) as usize);
            }
            fleet.start_all();
        }
    });
}
