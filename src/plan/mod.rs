//! The plan: what happens to each triplet, in which wave, at what risk, time and cost.
//!
//! [`planner::plan`] is a pure function of inventory, catalogue, policy, probes and now. A plan
//! carries typed codes ([`Reason`], [`Hazard`], [`Action`], [`Step`]) that [`render`] puts into
//! words, so that two plans can be compared and 100,000 rows stay small.

mod action;
pub mod budget;
pub mod diff;
pub mod effects;
mod hazard;
pub mod lint;
pub mod planner;
pub mod policy;
mod reason;
pub mod removal;
pub mod render;
mod row;
pub mod saved;
mod step;
mod waves;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use action::Action;
pub use budget::{ApiBudget, Budget, Cost, Usd};
pub use hazard::Hazard;
pub use planner::plan;
pub use policy::Policy;
pub use reason::Reason;
pub use saved::{Moved, SavedPlanError, staleness};
pub use step::Step;

pub use crate::domain::custody::Route;
use crate::domain::duration::Millis;
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;

/// The only plan format that this program reads and writes.
pub const PLAN_VERSION: u32 = 1;

/// Where consent at Composio comes back to; it must be registered on the OAuth client.
pub const REDIRECT_URI: &str = "https://backend.composio.dev/api/v3/toolkits/auth/callback";

/// A saved plan. Its id is a digest of its content; it holds no secrets and is applied once.
///
/// The id leaves out `created_at`, `expires_at`, `digest` and when probes were made: the same
/// inputs give the same id on another day. `digest` covers everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub plan_version: u32,
    /// `p-` and 12 hex digits.
    pub id: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub inputs: Inputs,
    pub summary: Summary,
    /// By triplet.
    pub rows: Vec<PlanRow>,
    pub waves: Vec<Wave>,
    pub budget: Budget,
    /// What the planner noticed about the whole: budgets that do not fit, decisions without a row.
    pub notes: Vec<Note>,
    /// `sha256:` and 64 hex digits over all of the above.
    pub digest: String,
}

/// Digests of what the plan was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    pub inventory: String,
    pub policy: String,
    pub catalogue: String,
    pub probes: Vec<Probe>,
}

/// One thing that was looked up at a live system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    pub at: Timestamp,
    pub fact: Fact,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fact {
    /// `GET /toolkits/{slug}` at Composio.
    Toolkit { slug: String, found: bool },
    /// The scopes of a live grant.
    Scopes { integration_key: String, connection_id: String, granted: Vec<String> },
}

/// Counts that a reader wants first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Nango connections in the inventory.
    pub connections: u64,
    pub triplets: u64,
    pub tenants: u64,
    pub reconsent: u64,
    #[serde(rename = "static")]
    pub static_: u64,
    pub retain: u64,
    pub blocked: u64,
    /// Consents that people must give.
    pub consents: u64,
    /// Rows that cannot go back once the user has consented.
    pub final_at_consent: u64,
}

impl Summary {
    pub const fn of(&self, route: Route) -> u64 {
        match route {
            Route::Reconsent => self.reconsent,
            Route::Static => self.static_,
            Route::Retain => self.retain,
            Route::Blocked => self.blocked,
        }
    }
}

/// What happens to one triplet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRow {
    pub triplet: Triplet,
    pub integration_key: String,
    pub connection_id: String,
    /// Composio toolkit slug, where one exists.
    pub toolkit: Option<String>,
    pub route: Route,
    /// `None` for rows that do not move.
    pub wave: Option<u32>,
    pub reasons: Arc<[Reason]>,
    pub hazards: Arc<[Hazard]>,
    /// What people must do, in order.
    pub actions: Arc<[Action]>,
    /// Scopes that the target's consent must grant.
    pub scopes: Vec<String>,
    pub granted: Granted,
    /// No step while the token has less than this left; `None`: it has no scheduled expiry.
    pub quiet_window: Option<Millis>,
    pub reversible_until: ReversibleUntil,
    pub cost: Cost,
}

impl PlanRow {
    /// The source grant that feeds this triplet: rows with the same one move together.
    pub fn grant(&self) -> (&str, &str) {
        (&self.integration_key, &self.connection_id)
    }
}

/// What is known of the scopes that the source grant holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "known", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Granted {
    /// Nobody has looked.
    Unknown,
    /// All that are needed.
    Enough,
    /// Some that are needed are not there.
    Missing { scopes: Vec<String> },
}

/// Until when a row can go back to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "until", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ReversibleUntil {
    /// It does not move.
    Always,
    /// The consent itself may end the old grant: the switch follows at once.
    Consent,
    /// So long after the switch, and never past the end of the untouched old grant.
    AfterSwitch { window: Millis, grant_life_days: Option<u32> },
    /// The secret stays valid on both sides until someone rotates it.
    Rotated,
}

/// Triplets that move together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wave {
    /// From 1.
    pub n: u32,
    pub canary: bool,
    /// Source grants in it.
    pub connections: u32,
    pub consents: u32,
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
    pub steps: Arc<[Step]>,
    pub triplets: Vec<Triplet>,
}

/// Something about the plan as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Note {
    /// A decision names a triplet that the inventory does not have.
    DecisionUnused { triplet: Triplet },
    /// The soak needs more requests a minute than the tier leaves over.
    RateTooLow { api: String, needed_per_minute: u64, available_per_minute: u64 },
    /// The bridge costs more a month than the `cost` criterion allows.
    TooExpensive { soak: Usd, max: Usd },
    /// Waves that start after `waves.not_after`.
    WindowTooShort { waves: u32, starts: Timestamp },
    /// Rows that `apply` refuses until somebody decides.
    Undecided { rows: u64 },
}
