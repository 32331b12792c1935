//! The whole job on the embedded sandbox, in virtual time, or beside the Workers runtime in
//! real time that is short.
//!
//! The rehearsal runs the product: the planner, the engine with its HTTP clients, the store on
//! disk. It only owns the clock, which it moves to whatever is due next, and it asks the world,
//! not the engine, what was lost.

pub mod campaign;
mod driver;
mod endpoints;
mod grow;
mod pace;
pub mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::catalogue::Catalogue;
use crate::domain::criteria::Verdict;
use crate::domain::duration::Millis;
use crate::domain::secret::hmac_sha256;
use crate::domain::time::{HOUR_MS, Timestamp};
use crate::engine::{EngineConfig, EngineError};
use crate::hooks::{HookError, Hooks};
use crate::inventory::Inventory;
use crate::plan::{Plan, Policy, Route};
use crate::sandbox::{Fault, WorkerdError};

pub use campaign::Campaign;
pub use endpoints::endpoints;
pub use grow::grow;
pub use pace::{Pace, RealTime};
pub use report::Report;

/// Virtual time begins on the day of ADR-038.
const START: Timestamp = Timestamp::from_secs(1_778_058_000);

/// The sandbox's tokens live an hour, so that a day has many rotations.
const TOKEN_LIFE_MS: i64 = HOUR_MS;

/// What to rehearse.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    pub inventory: Inventory,
    pub catalogue: Catalogue,
    pub policy: Policy,
    pub seed: u64,
    pub pace: Pace,
    pub faults: Vec<Fault>,
    /// Executables that are called around the operations, as in life.
    pub hooks: Hooks,
    /// How far back the criteria look; as far as the rehearsal is long unless set.
    pub window: Option<Millis>,
    /// Gather the account for `--report` too.
    pub account: bool,
    /// Where the state database goes. Made by the caller, removed by the caller.
    pub directory: PathBuf,
}

/// Where a rehearsal is, for a progress line.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    pub phase: &'static str,
    pub now: Timestamp,
    /// 0 to 1 over the soak.
    pub share: f64,
    pub rotations: u64,
}

/// A rehearsal that could not be carried to its end.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    #[error("the inventory has no connection that moves")]
    NothingMoves,
    #[error("the plan has rows that need a decision first: {}", rows.join("; "))]
    Blocked { rows: Vec<String> },
    #[error("the preflight checks found what the cutover would fail on: {}", findings.join("; "))]
    Unfit { findings: Vec<String> },
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("failed to start the sandbox on loopback")]
    Sandbox(#[source] std::io::Error),
    #[error("the gateway cannot run on the Workers runtime")]
    Workerd(#[from] WorkerdError),
    #[error("failed to set up the clients")]
    Clients(#[source] crate::clients::SetupError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("failed to keep the key")]
    Vault(#[from] crate::store::VaultError),
    #[error("nothing is due any more in phase `{phase}`")]
    Stalled { phase: &'static str },
}

impl Rehearsal {
    /// Runs it. `progress` is called now and then.
    ///
    /// # Errors
    /// When it cannot be carried out; a gate that does not pass is a report, not an error.
    pub async fn run(mut self, progress: &mut dyn FnMut(Position)) -> Result<Report, RehearsalError> {
        let asked = self.policy.criteria.clone();
        self.fit_policy();
        let scaled = self.pace.scaled(&asked, &self.policy.criteria);
        let plan = crate::plan::plan(&self.inventory, &self.catalogue, &self.policy, &[], START);
        self.check(&plan)?;
        driver::Driver::start(self, plan, scaled).await?.run(progress).await
    }

    /// The key that encrypts the state: the same on every start, as a key file would give.
    pub fn state_key(&self) -> [u8; 32] {
        hmac_sha256(&self.seed.to_be_bytes(), &[b"rehearsal key"])
    }

    /// The policy that the plan of the rehearsal is made with.
    pub fn fitted_policy(&self) -> Policy {
        let mut fitted = self.clone();
        fitted.fit_policy();
        fitted.policy
    }

    /// The policy as it is, but for what the length and the speed of this rehearsal decide.
    fn fit_policy(&mut self) {
        let connections = u32::try_from(self.inventory.rows.len()).unwrap_or(u32::MAX);
        self.pace.fit(&mut self.policy.criteria, connections, self.window);
        self.policy.reverse_window = self.policy.reverse_window.min(self.pace.reverse_window());
    }

    fn check(&self, plan: &Plan) -> Result<(), RehearsalError> {
        let blocked: Vec<String> = plan
            .rows
            .iter()
            .filter(|r| r.route == Route::Blocked)
            .map(|r| {
                let reasons: Vec<String> = r.reasons.iter().map(crate::plan::Reason::text).collect();
                format!("`{}`: {}", r.triplet, reasons.join(", "))
            })
            .collect();
        if !blocked.is_empty() {
            return Err(RehearsalError::Blocked { rows: blocked });
        }
        if plan.rows.iter().all(|r| !r.route.moves()) {
            return Err(RehearsalError::NothingMoves);
        }
        Ok(())
    }

    fn engine_config(&self) -> EngineConfig {
        // One read after the other: what is under way at the same time has no order, and the same
        // seed must give the same bytes.
        let mut config = EngineConfig { reads_at_once: 1, ..EngineConfig::new(self.policy.clone()) };
        self.pace.fit_engine(&mut config);
        config
    }
}

/// A phase of the rehearsal with its virtual times.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Phase {
    pub name: &'static str,
    pub from: Timestamp,
    pub until: Timestamp,
    pub outcome: String,
}

/// How the phases ended.
#[derive(Clone, Debug)]
struct Outcome {
    verdict: Verdict,
    reason: String,
    phases: Vec<Phase>,
    crashes: u64,
    hooks: u64,
    stages: BTreeMap<String, u64>,
}
