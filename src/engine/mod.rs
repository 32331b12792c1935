//! The duties around the pure core: each is a function of *now* that does what is due and
//! returns when it is next due. Production loops and the rehearsal run the same functions; only
//! who waits differs.
//!
//! The engine never sleeps and never reads a clock. It keeps nothing that matters in memory: an
//! engine that was killed at any await and built again from its store goes on where it was.

mod audit;
mod circuit;
mod evidence;
mod failure;
mod gate;
mod intake;
mod lifecycle;
mod mirror;
mod onboard;
mod poll;
mod prune;
mod reauth;
mod sample;
pub mod steps;
mod together;
mod watch;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::catalogue::Catalogue;
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::time::{HOUR_MS, MINUTE_MS, SECOND_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::plan::Policy;
use crate::ports::{ApiResult, Outside};
use crate::status::{Snapshot, snapshot};
use crate::store::{Due, Lead, Pruning, Retention, Sink, Store, StoreError};

pub use evidence::{collect, lag_p99};
pub use gate::{GateReport, NoFreshPass, fresh_pass, judge_state, record};
pub use intake::Reported;
pub use lifecycle::{
    ConsentRow, ConsentStart, Control, Progress, RetireStage, Reversal, SwitchPreview, SwitchTerms, Zombie, ZombieKind,
    by,
};
pub use onboard::{Newcomer, Onboarding, TargetLink};
pub(crate) use poll::whoami_call;
pub use sample::Sample;

/// The policy, and what is not a matter of policy. Durations in milliseconds.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub policy: Policy,
    /// A difference in KV younger than this is settling, not a finding. Must exceed the
    /// propagation time and the gateway's own `cacheTtl` (Cloudflare contract §2.6).
    pub settle_ms: i64,
    /// How long disarmed alarms are watched before they count as silent.
    pub silence_ms: i64,
    /// How long what was taken up belongs to the one who took it. Longer than a round's requests
    /// take: what a dead worker sent must have arrived before somebody else sends.
    pub claim_ms: i64,
    /// Attempts per consent before the triplet is held.
    pub consent_attempts_max: u32,
    /// Attempts per delivery before it becomes a dead letter.
    pub delivery_attempts_max: u32,
    /// Reads at Nango under way at the same time, at least 1. One by one they take as long as the
    /// providers do, which is too slow for thousands of connections; with 1 they have an order.
    pub reads_at_once: usize,
    /// Requests to one sink that may be under way at once. More than one makes their order a
    /// matter of chance, which a rehearsal must not have.
    pub sink_parallel: usize,
    /// What is kept, and for how long.
    pub retention: Retention,
}

impl EngineConfig {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            settle_ms: 150 * SECOND_MS,
            silence_ms: 2 * HOUR_MS,
            claim_ms: 2 * MINUTE_MS,
            consent_attempts_max: 3,
            delivery_attempts_max: 60,
            reads_at_once: 16,
            sink_parallel: 1,
            retention: Retention::default(),
        }
    }
}

/// Runs the duties against one outside and one store.
pub struct Engine<O> {
    store: Store,
    outside: O,
    catalogue: Catalogue,
    config: EngineConfig,
    soaking: AtomicBool,
    known: Mutex<Known>,
    directory: intake::Directory,
}

/// What the store also has, kept at hand: read when the engine starts and when it takes the lead,
/// written through.
#[derive(Debug, Default)]
struct Known {
    /// When each API last answered, and since when it does not.
    health: BTreeMap<Api, Health>,
    /// When each periodic duty runs next. Forgotten with the engine: one that starts looks at
    /// everything first.
    periodic: BTreeMap<Periodic, Timestamp>,
    /// Shortest life of a token that was fresh when it was captured, since the engine started.
    shortest_life_ms: Option<i64>,
    /// Where a round of smoke tests stopped for want of room.
    smoked: Option<Triplet>,
    /// The comparison of both namespaces that stopped for want of room.
    comparing: Option<watch::Comparing>,
    /// The soak clock runs.
    soak_started: bool,
    /// When the soak clock last showed that we are there.
    alive_at: Option<Timestamp>,
    /// The epoch in which this engine led the periodic duties last.
    led: Option<u64>,
    mirroring: mirror::Mirroring,
    /// How far the round of pruning is.
    pruning: Pruning,
}

/// The lease under which one machine runs the periodic duties for all.
const LEAD: &str = "duties";

impl Known {
    async fn load(store: &Store) -> Result<Self, StoreError> {
        let at = |text: &String| text.parse().ok().map(Timestamp::from_millis);
        let down = store.load_metas("down:").await?;
        let health = Api::ALL.map(|api| (api, Health { last_ok: None, down_since: down.get(api.name()).and_then(at) }));
        Ok(Self { health: health.into(), ..Self::default() })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    last_ok: Option<Timestamp>,
    down_since: Option<Timestamp>,
}

/// A duty could not run at all. Trouble with an outside system is not an error here: it is
/// recorded, and the duty is due again.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A guard refused the operation.
    #[error("{0}")]
    Refused(String),
    /// What became of an effect cannot be told by looking; a person must decide.
    #[error("ambiguous: {question}")]
    Ambiguous { intent: String, question: String },
    /// An outside system did not answer; the operation goes on from here at `at`.
    #[error("{error}")]
    Later { at: Timestamp, error: crate::ports::ApiError },
}

pub type EngineResult<T> = Result<T, EngineError>;

/// Duties that do not wait for each other: what is slow in one lane delays nothing in another.
/// Each lane has one round at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// What was accepted from outside, and reads at Nango.
    Reads,
    Sink(Sink),
    /// Probes, smoke tests, scans, comparisons, audit rows.
    Watch,
}

impl Lane {
    pub const ALL: [Self; 5] =
        [Self::Reads, Self::Sink(Sink::KvSource), Self::Sink(Sink::KvTarget), Self::Sink(Sink::Composio), Self::Watch];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Sink(sink) => sink.name(),
            Self::Watch => "watch",
        }
    }
}

/// The periodic duties, in the order in which they run when several are due.
const PERIODIC: [Periodic; 7] = [
    Periodic::Probe,
    Periodic::Smoke,
    Periodic::Scan,
    Periodic::Verify,
    Periodic::Audit,
    Periodic::Sample,
    Periodic::Prune,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Periodic {
    Probe,
    Smoke,
    Scan,
    Verify,
    Audit,
    Sample,
    Prune,
}

impl<O: Outside> Engine<O> {
    /// Takes up where the store is.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn new(store: Store, outside: O, catalogue: Catalogue, config: EngineConfig) -> EngineResult<Self> {
        outside.limit_requests(&config.policy.rates.limits());
        let known = Mutex::new(Known::load(&store).await?);
        let (soaking, directory) = (AtomicBool::new(false), intake::Directory::default());
        Ok(Self { store, outside, catalogue, config, soaking, known, directory })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn outside(&self) -> &O {
        &self.outside
    }

    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Ends this engine and gives the store back.
    pub fn into_store(self) -> Store {
        self.store
    }

    /// Runs every duty that is due at `now`. Returns when the next one is due, `None` before a
    /// plan is applied.
    ///
    /// # Errors
    /// Only when the store fails.
    pub async fn run_due(&self, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        if !self.is_soaking().await? {
            return Ok(None);
        }
        let due = self.store.load_due().await?;
        // Before anything newer is delivered: what ended, ended.
        if due.served_until.is_some_and(|at| at < now) {
            self.note_expired(now).await?;
        }
        if due.rotation_by.is_some_and(|at| at < now) {
            self.store.note_missed_rotations(now).await?;
        }
        let drained = due.intake;
        if drained {
            self.drain(now).await?;
        }
        let polled = Due::is(due.poll_at, now) || (drained && Due::is(self.store.load_due().await?.poll_at, now));
        if polled {
            self.poll(now).await?;
        }
        let delivered = drained || polled || Due::is(due.delivery_at, now);
        let mut next = Vec::new();
        if delivered {
            for sink in Sink::ALL {
                next.extend(self.mirror(sink, now).await?);
            }
        }
        next.push(self.watch(now).await?);
        let due = if delivered { self.store.load_due().await? } else { due };
        next.extend(due.poll_at);
        next.extend(due.delivery_at.filter(|_| !delivered));
        // What is still due now was put off for a reason that only time mends.
        Ok(next.into_iter().map(|at| at.max(now.plus_ms(SECOND_MS))).min())
    }

    /// Runs what is due in one lane at `now`. Returns when the lane is next due; all lanes together
    /// do what [`Engine::run_due`] does.
    ///
    /// # Errors
    /// Only when the store fails.
    pub async fn run_lane(&self, lane: Lane, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        if !self.is_soaking().await? {
            return Ok(None);
        }
        match lane {
            Lane::Reads => {
                let due = self.store.load_due().await?;
                if due.rotation_by.is_some_and(|at| at < now) {
                    self.store.note_missed_rotations(now).await?;
                }
                if due.intake {
                    self.drain(now).await?;
                }
                if due.intake || Due::is(due.poll_at, now) {
                    self.poll(now).await?;
                }
                Ok(self.store.load_due().await?.poll_at)
            }
            Lane::Sink(sink) => {
                // Before anything newer is delivered: what ended, ended.
                if sink == Sink::KvSource && self.store.load_due().await?.served_until.is_some_and(|at| at < now) {
                    self.note_expired(now).await?;
                }
                self.mirror(sink, now).await
            }
            Lane::Watch => self.watch(now).await.map(Some),
        }
    }

    /// What an engine that ends still does: works in what was accepted, delivers what is due, one round
    /// to each sink, and records what it had seen of a comparison.
    ///
    /// # Errors
    /// Only when the store fails.
    pub async fn finish(&self, now: Timestamp) -> EngineResult<()> {
        if !self.is_soaking().await? {
            return Ok(());
        }
        if self.store.load_due().await?.intake {
            self.drain(now).await?;
        }
        for round in together::together(Sink::ALL.map(|sink| self.mirror_tokens(sink, now))).await {
            round?;
        }
        self.end_comparison(now).await
    }

    /// The periodic duties, if this engine leads them.
    async fn watch(&self, now: Timestamp) -> EngineResult<Timestamp> {
        if let Some(theirs_until) = self.lead(now).await? {
            return Ok(theirs_until);
        }
        let mut next = now.plus_ms(HOUR_MS);
        for duty in PERIODIC {
            next = next.min(self.run_periodic(duty, now).await?);
        }
        Ok(next)
    }

    /// The state of everything at `now`, with what only the engine knows.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn snapshot(&self, now: Timestamp) -> EngineResult<Snapshot> {
        let mut snapshot = snapshot(&self.store, &self.config.policy, now).await?;
        snapshot.budgets = self.outside.budgets(now).into_iter().map(Into::into).collect();
        self.known(|known| {
            snapshot.results = known.mirroring.results();
            for (status, sink) in snapshot.sinks.iter_mut().zip(Sink::ALL) {
                if let Some((until, why)) = known.mirroring.trouble(sink) {
                    (status.open_until, status.trouble) = (Some(until), Some(why));
                }
            }
        });
        Ok(snapshot)
    }

    async fn is_soaking(&self) -> EngineResult<bool> {
        if !self.soaking.load(Ordering::Relaxed) && self.store.load_meta("soaking").await?.is_some() {
            self.soaking.store(true, Ordering::Relaxed);
        }
        Ok(self.soaking.load(Ordering::Relaxed))
    }

    /// Takes the lead of the periodic duties, or says until when another machine has it. Who takes
    /// over trusts nothing that it remembers, and looks at everything first.
    async fn lead(&self, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        match self.store.lead(LEAD, now, now.plus_ms(self.config.claim_ms)).await? {
            Lead::Theirs { until } => {
                self.known(|known| known.led = None);
                Ok(Some(until))
            }
            Lead::Ours { epoch } => {
                let led = self.known(|known| known.led.replace(epoch));
                if led != Some(epoch) && self.store.is_shared() {
                    let fresh = Known::load(&self.store).await?;
                    self.known(|known| {
                        let (shortest_life_ms, mirroring) =
                            (known.shortest_life_ms, std::mem::take(&mut known.mirroring));
                        *known = Known { shortest_life_ms, mirroring, led: Some(epoch), ..fresh };
                    });
                }
                Ok(None)
            }
        }
    }

    async fn run_periodic(&self, duty: Periodic, now: Timestamp) -> EngineResult<Timestamp> {
        let known = self.known(|known| known.periodic.get(&duty).copied());
        if let Some(next) = known
            && next > now
        {
            return Ok(next);
        }
        let next = match duty {
            Periodic::Probe => self.probe(now).await?,
            Periodic::Smoke => self.smoke(now).await?,
            Periodic::Scan => self.scan(now).await?,
            Periodic::Verify => self.verify(now).await?,
            Periodic::Audit => self.audit(now).await?,
            Periodic::Sample => self.sample(now).await?,
            Periodic::Prune => self.prune(now).await?,
        };
        self.known(|known| known.periodic.insert(duty, next));
        Ok(next)
    }

    /// Notes whether an API is in reach. Every call's outcome passes through here.
    async fn observe<T>(&self, api: Api, now: Timestamp, result: &ApiResult<T>) -> EngineResult<()> {
        if result.as_ref().is_err_and(|e| e.is_held_back()) {
            return Ok(());
        }
        let outage = result.as_ref().err().is_some_and(|e| e.is_outage());
        let changed = self.known(|known| {
            let health = known.health.entry(api).or_default();
            if outage {
                // It may have begun right after the last answer; a probe would have shown any earlier one.
                let earliest = now.plus_ms(-self.config.policy.criteria.probe_every.0);
                let since = health.last_ok.map_or(now, |ok| ok.max(earliest));
                health.down_since.is_none().then(|| health.down_since = Some(since)).map(|()| (true, since))
            } else {
                health.last_ok = Some(now);
                health.down_since.take().map(|since| (false, since))
            }
        });
        match changed {
            None => {}
            // Of several machines the first one opens the outage, and the first one closes it.
            Some((true, since)) => {
                self.store.create_meta(&format!("down:{}", api.name()), &since.millis().to_string()).await?;
            }
            Some((false, _)) => {
                let since = self.store.take_meta(&format!("down:{}", api.name())).await?;
                if let Some(since) = since.and_then(|text| text.parse().ok()).map(Timestamp::from_millis) {
                    self.close_outage(api, since, now).await?;
                }
            }
        }
        Ok(())
    }

    async fn close_outage(&self, api: Api, since: Timestamp, now: Timestamp) -> EngineResult<()> {
        let detail = now.since(since).to_string();
        self.store.add_note("outage", &Note { at: since, subject: api.name().to_owned(), detail }).await?;
        Ok(())
    }

    fn health(&self, api: Api) -> Health {
        self.known(|known| known.health.get(&api).copied().unwrap_or_default())
    }

    fn known<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.known.lock().expect("no panic happens while this lock is held"))
    }

    /// Moves the counts of requests and the clock readings of the clients into the evidence.
    async fn record_traffic(&self) -> EngineResult<()> {
        let (mut add, mut raise) = (Vec::new(), Vec::new());
        for (api, traffic) in self.outside.take_traffic() {
            let name = api.name();
            add.push((format!("requests:{name}"), traffic.requests as i64));
            add.push((format!("limited:{name}"), traffic.limited as i64));
            if let Some(skew) = traffic.skew_ms {
                add.push((format!("skew_samples:{name}"), 1));
                raise.push((format!("skew_ms:{name}"), skew.abs()));
            }
        }
        add.retain(|(_, n)| *n > 0);
        if !add.is_empty() {
            self.store.add_and_raise(&add, &raise).await?;
        }
        Ok(())
    }
}

/// A number that spreads things apart and is the same on every run: no order of events and no
/// clock goes into it.
fn spread(parts: &[&str], n: u64) -> u64 {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.update(n.to_be_bytes());
    u64::from_be_bytes(hasher.finalize()[..8].try_into().expect("a SHA-256 has 32 bytes"))
}
