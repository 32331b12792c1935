//! Moves the clock: to whatever is due next at the engine or in the world. In real time it only
//! waits, and the world moves by itself.

mod phases;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::endpoints;
use super::pace::{Clock, Pace};
use super::report::{RealTimeReport, Report, Written};
use super::{Outcome, Phase, Position, Rehearsal, RehearsalError, START, TOKEN_LIFE_MS};
use crate::clients::{Endpoints, HttpOutside};
use crate::domain::criteria::Verdict;
use crate::domain::secret::Secret;
use crate::domain::time::{DAY_MS, SECOND_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::engine::{Engine, EngineError, EngineResult, GateReport, Progress};
use crate::hooks::HookError;
use crate::plan::Plan;
use crate::report::Facts;
use crate::sandbox::{GatewayKind, ReadLoad, Sandbox, TokenLife, World, WorldConfig, WorldOptions};
use crate::shim::{Shim, ShimConfig};
use crate::store::{Durability, Store, Vault};

type RehearsedEngine = Engine<HttpOutside>;

/// Nothing takes longer than this outside the soak.
const PHASE_MAX_MS: i64 = 14 * DAY_MS;

/// Readers of the hot path in real time, and how long each rests after a read.
const READERS: usize = 3;
const READERS_PAUSE: Duration = Duration::from_millis(100);

/// The engine is asked at least this often what is due, because a webhook may have brought it forward.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// And it is left alone for this long, whatever is due.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

struct Live {
    world: tokio::task::JoinHandle<()>,
    reads: Option<ReadLoad>,
    /// When the engine was last asked what is due, and the longest time between two such rounds.
    round_at: Timestamp,
    stall_ms: i64,
}

pub(super) struct Driver {
    rehearsal: Rehearsal,
    plan: Plan,
    sandbox: Sandbox,
    shim: Arc<Shim<HttpOutside>>,
    shim_server: tokio::task::JoinHandle<()>,
    webhooks: reqwest::Client,
    /// The clock, as everything but the world reads it.
    clock: Clock,
    /// In real time: what moves the world, and the traffic that the gateway serves meanwhile.
    live: Option<Live>,
    /// Thresholds that are not the policy's, in words.
    scaled: Vec<String>,
    endpoints: Endpoints,
    phases: Vec<Phase>,
    phase: (&'static str, Timestamp),
    shim_url: String,
    crashes: u64,
    hooks_agreed: u64,
    gate_passes: u64,
}

impl Driver {
    pub async fn start(rehearsal: Rehearsal, plan: Plan, scaled: Vec<String>) -> Result<Self, RehearsalError> {
        let soak_ms = rehearsal.pace.soak_ms();
        let kind = match rehearsal.pace {
            Pace::Virtual { .. } => GatewayKind::Emulated,
            Pace::Real(_) => GatewayKind::Workerd,
        };
        let config = WorldConfig {
            seed: rehearsal.seed,
            start: START,
            rows: rehearsal.inventory.rows.clone(),
            catalogue: rehearsal.catalogue.clone(),
            retained: plan.rows.iter().filter(|r| !r.route.moves()).map(|r| r.triplet.clone()).collect(),
            faults: rehearsal.faults.clone(),
            // Faults strike in the middle of the soak, with time left to be noticed.
            fault_from: START.plus_ms(soak_ms / 5),
            fault_until: START.plus_ms(soak_ms * 4 / 5),
            token_life: TokenLife::Fixed(TOKEN_LIFE_MS),
            shim_url: None,
        };
        let world = World::with_options(config, WorldOptions::of(kind));
        let keys = world.keys();
        let clock = Clock::start(&rehearsal.pace, START);
        let sandbox = match (&rehearsal.pace, &clock) {
            (Pace::Real(real), Clock::Live(clock)) => Sandbox::start_on_workerd(world, &real.workerd, clock).await?,
            _ => Sandbox::start(world).await.map_err(RehearsalError::Sandbox)?,
        };

        let endpoints = endpoints(&sandbox);
        let now = clock.clone();
        let config = ShimConfig {
            nango_keys: vec![Secret::new(keys.nango_webhook_signing_key.clone())],
            ..ShimConfig::default()
        };
        let shim = Arc::new(Shim::new(config, move || now.now()));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.map_err(RehearsalError::Sandbox)?;
        let address = listener.local_addr().map_err(RehearsalError::Sandbox)?;
        let router = Arc::clone(&shim).router();
        let shim_server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!("the shim stopped serving: {error}");
            }
        });
        let shim_url = format!("http://{address}");
        lock(&sandbox).set_shim_url(Some(format!("{shim_url}/admin/sync/nango")));
        // Fails only when somebody installed a provider before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let webhooks = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| RehearsalError::Sandbox(std::io::Error::other(e)))?;

        let live = match &clock {
            Clock::Virtual(_) => None,
            Clock::Live(clock) => {
                let world = tokio::spawn(sandbox.run_live(*clock, webhooks.clone()));
                let moving: Vec<Triplet> =
                    plan.rows.iter().filter(|r| r.route.moves()).map(|r| r.triplet.clone()).collect();
                let reads = ReadLoad::start(&sandbox.urls.gateway, &keys.gateway_key, &moving, READERS, READERS_PAUSE)
                    .map_err(|e| RehearsalError::Sandbox(std::io::Error::other(e)))?;
                Some(Live { world, reads: Some(reads), round_at: clock.now(), stall_ms: 0 })
            }
        };

        Ok(Self {
            rehearsal,
            plan,
            sandbox,
            shim,
            shim_server,
            webhooks,
            clock,
            live,
            scaled,
            endpoints,
            phases: Vec::new(),
            phase: ("assess", START),
            shim_url,
            crashes: 0,
            hooks_agreed: 0,
            gate_passes: 0,
        })
    }

    pub async fn run(mut self, progress: &mut dyn FnMut(Position)) -> Result<Report, RehearsalError> {
        let result = self.phases(progress).await;
        let outcome = match result {
            Ok((gate, reason)) => (gate, reason),
            // A guard that refuses is how a broken migration ends, not a failure of the rehearsal.
            Err(RehearsalError::Engine(EngineError::Refused(reason))) => {
                self.end_phase(format!("refused: {reason}"));
                (None, reason)
            }
            Err(RehearsalError::Hook(error @ HookError::SaidNo { .. })) => {
                self.end_phase(format!("refused: {error}"));
                (None, error.to_string())
            }
            Err(other) => return Err(other),
        };
        self.report(outcome.0, outcome.1).await
    }

    async fn gate(&mut self) -> Result<GateReport, RehearsalError> {
        let gate = self
            .step(async |engine, now| {
                let gate = engine.gate(now).await?;
                engine.record_gate(&gate).await?;
                Ok(gate)
            })
            .await?;
        self.gate_passes += u64::from(gate.verdict == Verdict::Pass);
        Ok(gate)
    }

    /// Runs the duties, and nothing else, up to `end`.
    async fn run_until(&mut self, end: Timestamp, progress: &mut dyn FnMut(Position)) -> Result<(), RehearsalError> {
        while self.now() < end {
            let due = self.step(async |engine, now| engine.run_due(now).await).await?;
            self.pass(due.map_or(end, |due| due.min(end)), progress).await;
        }
        Ok(())
    }

    /// Calls an operation, with the duties going on beside it, until it is done.
    async fn until_done(
        &mut self,
        progress: &mut dyn FnMut(Position),
        operation: impl AsyncFn(&RehearsedEngine, Timestamp) -> EngineResult<Progress>,
    ) -> Result<(), RehearsalError> {
        let (phase, began) = self.phase;
        loop {
            let step = self.step(&operation).await?;
            let due = self.step(async |engine, now| engine.run_due(now).await).await?;
            let Progress::Wait(at) = step else { return Ok(()) };
            if self.now().since(began) > PHASE_MAX_MS {
                return Err(RehearsalError::Stalled { phase });
            }
            self.pass(due.map_or(at, |due| due.min(at)), progress).await;
        }
    }

    /// One call into the engine. When the sandbox crashes it in the middle, it is built again
    /// from its store and the call is made again, as a person or a supervisor would.
    async fn step<T>(
        &mut self,
        operation: impl AsyncFn(&RehearsedEngine, Timestamp) -> EngineResult<T>,
    ) -> Result<T, RehearsalError> {
        loop {
            let engine = self.engine().await?;
            let now = self.now();
            let crash = self.sandbox.crash.clone();
            tokio::select! {
                biased;
                result = operation(&engine, now) => return Ok(result?),
                () = crash.crashed() => {}
            }
            drop(engine);
            self.bury();
        }
    }

    /// The engine was killed: the next step builds it again from its store.
    fn bury(&mut self) {
        self.crashes += 1;
        self.shim.set_engine(None);
        self.sandbox.crash.reset();
    }

    /// The engine that runs now, or a new one from the store.
    async fn engine(&self) -> Result<Arc<RehearsedEngine>, RehearsalError> {
        if let Some(engine) = self.shim.engine() {
            return Ok(engine);
        }
        let master = self.rehearsal.state_key();
        let path = self.rehearsal.directory.join("cutover.db");
        let store = Store::open(&path, Durability::ProcessCrash, Vault::from_master(&master))
            .await
            .map_err(EngineError::from)?;
        let now = self.clock.clone();
        let clock: crate::clients::Clock = Arc::new(move || now.now());
        let outside = HttpOutside::new(self.endpoints.clone(), clock).map_err(RehearsalError::Clients)?;
        let config = self.rehearsal.engine_config();
        let engine = Engine::new(store, outside, self.rehearsal.catalogue.clone(), config).await?;
        let engine = Arc::new(engine);
        self.shim.set_engine(Some(Arc::clone(&engine)));
        Ok(engine)
    }

    /// Lets time pass until `until`, or until a webhook may have reached the engine.
    async fn pass(&mut self, until: Timestamp, progress: &mut dyn FnMut(Position)) {
        let clock = match self.clock.clone() {
            Clock::Live(clock) => {
                tokio::time::sleep(clock.wait(until).clamp(LOOK_PAUSE, LOOK_EVERY)).await;
                if let Some(live) = &mut self.live {
                    let now = clock.now();
                    live.stall_ms = live.stall_ms.max(now.since(live.round_at));
                    live.round_at = now;
                }
                let rotations = lock(&self.sandbox).rotations();
                return progress(self.position(rotations));
            }
            Clock::Virtual(clock) => clock,
        };
        let until = until.max(self.now().plus_ms(SECOND_MS));
        loop {
            let (outbound, arrived, rotations) = {
                let mut world = lock(&self.sandbox);
                let to = world.next_due().map_or(until, |due| due.min(until)).max(world.now());
                world.advance_to(to);
                clock.store(to.millis(), Ordering::Relaxed);
                (world.take_outbound(), to, world.rotations())
            };
            progress(self.position(rotations));
            let delivered = !outbound.is_empty();
            for webhook in outbound {
                let mut request = self.webhooks.post(&webhook.url).body(webhook.body.clone());
                for (name, value) in &webhook.headers {
                    request = request.header(name, value);
                }
                let status = request.send().await.ok().map(|answer| answer.status().as_u16());
                lock(&self.sandbox).webhook_answered(webhook.id, status);
            }
            if delivered || arrived >= until {
                return;
            }
        }
    }

    fn position(&self, rotations: u64) -> Position {
        let now = self.now();
        let share = (now.since(START) as f64 / self.rehearsal.pace.soak_ms() as f64).min(1.0);
        Position { phase: self.phase.0, now, share, rotations }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn enter(&mut self, phase: &'static str) {
        self.phase = (phase, self.now());
    }

    fn end_phase(&mut self, outcome: String) {
        let (name, from) = self.phase;
        self.phases.push(Phase { name, from, until: self.now(), outcome });
    }

    fn moving(&self) -> usize {
        self.plan.rows.iter().filter(|r| r.route.moves()).count()
    }

    /// Triplets per stage; retained ones are counted as such.
    async fn stages(&mut self) -> Result<BTreeMap<String, u64>, RehearsalError> {
        let rows = self.step(async |engine, _| Ok(engine.store().load_triplets().await?)).await?;
        let mut stages = BTreeMap::new();
        for row in rows {
            *stages.entry(row.standing().to_owned()).or_insert(0) += 1;
        }
        Ok(stages)
    }

    /// Stops the traffic, has the books closed and stops the world. What was read and scaled, for
    /// a rehearsal in real time.
    async fn end_live(&mut self) -> Result<Option<RealTimeReport>, RehearsalError> {
        let (Some(live), Pace::Real(real)) = (&mut self.live, &self.rehearsal.pace) else { return Ok(None) };
        let reads = match live.reads.take() {
            Some(reads) => reads.stop().await,
            None => return Ok(None),
        };
        let alarms = self.sandbox.close_books().await?.unwrap_or_default();
        live.world.abort();
        Ok(Some(RealTimeReport {
            speed: real.speed,
            soak_s: real.soak.as_secs_f64(),
            scaled: std::mem::take(&mut self.scaled),
            reads,
            alarms,
            longest_round_s: (real.real_s(live.stall_ms) * 10.0).round() / 10.0,
        }))
    }

    async fn report(mut self, gate: Option<GateReport>, reason: String) -> Result<Report, RehearsalError> {
        // What was refused on the way is judged on the evidence all the same.
        let completed = gate.is_some();
        let gate = match gate {
            Some(gate) => gate,
            None => self.gate().await?,
        };
        let real_time = self.end_live().await?;
        let stages = self.stages().await?;
        let held = self.step(async |engine, _| Ok(engine.store().load_triplets().await?)).await?;
        let journal = self.step(async |engine, _| Ok(engine.store().verify_journal().await?)).await?;
        let (ledger, faults_hit) = {
            let world = lock(&self.sandbox);
            (world.ledger(), world.fault_notes().to_vec())
        };
        let verdict = if completed { gate.verdict } else { gate.verdict.max(Verdict::Fail) };
        let phases = std::mem::take(&mut self.phases);
        let (crashes, hooks) = (self.crashes, self.hooks_agreed);
        let outcome = Outcome { verdict, reason, phases, crashes, hooks, stages };
        let written = Written {
            rehearsal: &self.rehearsal,
            plan: &self.plan,
            gate,
            ledger,
            faults_hit,
            held: held
                .into_iter()
                .filter_map(|t| t.custody.held.map(|reason| (t.triplet.to_string(), reason)))
                .collect(),
            journal_entries: journal,
            gate_passes: self.gate_passes,
            ended_at: self.clock.now(),
            real_time,
        };
        let mut report = Report::write(written, outcome);
        report.account = self.account(&report).await?;
        self.shim.set_engine(None);
        self.shim_server.abort();
        self.sandbox.stop().await;
        Ok(report)
    }
}

impl Driver {
    /// The account of the soak, when it was asked for.
    async fn account(&mut self, report: &Report) -> Result<Option<Facts>, RehearsalError> {
        if !self.rehearsal.account {
            return Ok(None);
        }
        let rehearsed = report.rehearsed();
        let account = self
            .step(async |engine, now| {
                Facts::collect(engine.store(), &engine.config().policy, now, Some(rehearsed.clone())).await
            })
            .await?;
        Ok(Some(account))
    }
}

fn lock(sandbox: &Sandbox) -> std::sync::MutexGuard<'_, World> {
    sandbox.world.lock().expect("no panic happens while this lock is held")
}
