//! The duties around the pure core: each is a function of *now* that does what is due and
//! returns when it is next due. Production loops and the rehearsal run the same functions; only
//! who waits differs.
//!
//! The engine never sleeps and never reads a clock. It keeps nothing that matters in memory: an
//! engine that was killed at any await and built again from its store goes on where it was.

mod evidence;
mod lifecycle;
mod mirror;
mod poll;
mod watch;

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::catalogue::Catalogue;
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::time::{HOUR_MS, MINUTE_MS, SECOND_MS, Timestamp};
use crate::plan::Policy;
use crate::ports::{ApiResult, Outside};
use crate::store::{Sink, Store, StoreError};

pub use evidence::GateReport;
pub use lifecycle::Progress;

/// The policy, and what is not a matter of policy. Durations in milliseconds.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub policy: Policy,
    /// Listing both namespaces by key and metadata, which finds foreign writes. Shorter than the
    /// time between two rotations, or a foreign entry is overwritten before it is seen.
    pub scan_every_ms: i64,
    /// Sending audit rows to D1.
    pub audit_every_ms: i64,
    /// A difference in KV younger than this is settling, not a finding. Must exceed the
    /// propagation time and the gateway's own `cacheTtl` (Cloudflare contract §2.6).
    pub settle_ms: i64,
    /// How long disarmed alarms are watched before they count as silent.
    pub silence_ms: i64,
    /// Attempts per consent before the triplet is held.
    pub consent_attempts_max: u32,
    /// Attempts per delivery before it becomes a dead letter.
    pub delivery_attempts_max: u32,
}

impl EngineConfig {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            scan_every_ms: 10 * MINUTE_MS,
            audit_every_ms: 10 * MINUTE_MS,
            settle_ms: 150 * SECOND_MS,
            silence_ms: 2 * HOUR_MS,
            consent_attempts_max: 3,
            delivery_attempts_max: 60,
        }
    }
}

/// Runs the duties against one outside and one store.
pub struct Engine<O> {
    store: Store,
    outside: O,
    catalogue: Catalogue,
    config: EngineConfig,
    /// When each API last answered, and since when it does not.
    health: Mutex<BTreeMap<Api, Health>>,
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
    /// An outside system did not answer; the operation goes on from here at `at`.
    #[error("{error}")]
    Later { at: Timestamp, error: crate::ports::ApiError },
}

pub type EngineResult<T> = Result<T, EngineError>;

/// The periodic duties, in the order in which they run when several are due.
const PERIODIC: [Periodic; 5] = [Periodic::Probe, Periodic::Smoke, Periodic::Scan, Periodic::Verify, Periodic::Audit];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Periodic {
    Probe,
    Smoke,
    Scan,
    Verify,
    Audit,
}

impl Periodic {
    /// Where the store keeps when it is next due.
    const fn meta(self) -> &'static str {
        match self {
            Self::Probe => "next:probe",
            Self::Smoke => "next:smoke",
            Self::Scan => "next:scan",
            Self::Verify => "next:verify",
            Self::Audit => "next:audit",
        }
    }
}

impl<O: Outside> Engine<O> {
    /// Takes up where the store is.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn new(store: Store, outside: O, catalogue: Catalogue, config: EngineConfig) -> EngineResult<Self> {
        let mut health = BTreeMap::new();
        for api in Api::ALL {
            let down_since = store.load_meta(down_key(api)).await?.and_then(|t| t.parse().ok());
            let down_since = down_since.map(Timestamp::from_millis);
            health.insert(api, Health { last_ok: None, down_since });
        }
        Ok(Self { store, outside, catalogue, config, health: Mutex::new(health) })
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
        if self.store.load_meta("soaking").await?.is_none() {
            return Ok(None);
        }
        // Before anything newer is delivered: what ended, ended.
        self.note_expired(now).await?;
        self.poll(now).await?;
        for sink in Sink::ALL {
            self.mirror(sink, now).await?;
        }
        let mut due = Vec::new();
        for duty in PERIODIC {
            due.push(self.run_periodic(duty, now).await?);
        }
        self.record_traffic().await?;
        due.extend(self.store.next_poll_at().await?);
        due.extend(self.store.next_delivery_at().await?);
        // What is still due now was put off for a reason that only time mends.
        Ok(due.into_iter().map(|at| at.max(now.plus_ms(SECOND_MS))).min())
    }

    async fn run_periodic(&self, duty: Periodic, now: Timestamp) -> EngineResult<Timestamp> {
        let next = self.store.load_meta(duty.meta()).await?.and_then(|t| t.parse().ok()).map(Timestamp::from_millis);
        if let Some(next) = next
            && next > now
        {
            return Ok(next);
        }
        let next = match duty {
            Periodic::Probe => self.probe(now).await?,
            Periodic::Smoke => self.smoke(now).await?,
            Periodic::Scan => self.scan(now).await?,
            Periodic::Verify => self.verify(now).await?,
            Periodic::Audit => self.flush_audit(now).await?,
        };
        self.store.save_meta(duty.meta(), &next.millis().to_string()).await?;
        Ok(next)
    }

    /// Notes whether an API is in reach. Every call's outcome passes through here.
    async fn observe<T>(&self, api: Api, now: Timestamp, result: &ApiResult<T>) -> EngineResult<()> {
        let outage = result.as_ref().err().is_some_and(|e| e.is_outage());
        let changed = {
            let mut health = self.health.lock().expect("no panic happens while this lock is held");
            let health = health.entry(api).or_default();
            if outage {
                health.down_since.is_none().then(|| health.down_since = Some(now)).map(|()| None)
            } else {
                health.last_ok = Some(now);
                health.down_since.take().map(Some)
            }
        };
        match changed {
            None => {}
            Some(None) => self.store.save_meta(down_key(api), &now.millis().to_string()).await?,
            Some(Some(since)) => {
                self.store.delete_meta(down_key(api)).await?;
                self.close_outage(api, since, now).await?;
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
        self.health.lock().expect("no panic happens while this lock is held").get(&api).copied().unwrap_or_default()
    }

    /// Moves the counts of requests and the clock readings of the clients into the evidence.
    async fn record_traffic(&self) -> EngineResult<()> {
        for (api, traffic) in self.outside.take_traffic() {
            if traffic.requests == 0 {
                continue;
            }
            let name = api.name();
            let counts = [
                (format!("requests:{name}"), traffic.requests as i64),
                (format!("limited:{name}"), traffic.limited as i64),
                (format!("skew_samples:{name}"), i64::from(traffic.skew_ms.is_some())),
            ];
            let counts: Vec<(&str, i64)> = counts.iter().map(|(k, v)| (k.as_str(), *v)).collect();
            self.store.add_counts(&counts).await?;
            if let Some(skew) = traffic.skew_ms {
                self.store.raise_counter(&format!("skew_ms:{name}"), skew.abs()).await?;
            }
        }
        Ok(())
    }
}

const fn down_key(api: Api) -> &'static str {
    match api {
        Api::Nango => "down:nango",
        Api::Composio => "down:composio",
        Api::Cloudflare => "down:cloudflare",
        Api::Gateway => "down:gateway",
        Api::Provider => "down:provider",
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
