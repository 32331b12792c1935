//! The exit criteria: what each one reads, what it compares, and what it says when it cannot tell.
//!
//! Missing evidence is never a pass, and it is not a fail either. A waiver lets a criterion stand
//! aside; it never changes what the criterion says.

pub mod clock;
mod evidence;
mod judge;
mod policy;
mod soak;
#[cfg(test)]
mod tests;
mod waiver;

use serde::{Deserialize, Serialize};

use super::time::Timestamp;

pub use clock::{Gap, Restart, SoakClock};
pub use evidence::{Assessment, Evidence, EvidenceSource, LookOutcome, LookTally, Looks, Note, Outage, Proofs};
pub use judge::judge;
pub use policy::{CriteriaPolicy, Denominator};
pub use waiver::{Waiver, WaiverError, WaiverMark};

/// What a criterion, or the whole gate, concludes. Ordered from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Inconclusive,
    Fail,
}

impl Verdict {
    pub const ALL: [Self; 3] = [Self::Pass, Self::Inconclusive, Self::Fail];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Inconclusive => "inconclusive",
            Self::Fail => "fail",
        }
    }

    /// Reads what [`Verdict::name`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.name() == text)
    }

    /// The exit code of a gate with this verdict.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Pass => crate::exit::OK,
            Self::Inconclusive => crate::exit::INCONCLUSIVE,
            Self::Fail => crate::exit::FAIL,
        }
    }
}

/// Every criterion id, in report order.
pub const CRITERIA: [&str; 16] = [
    "soak-duration",
    "invalid-grant",
    "missed-refresh",
    "delivery-rate",
    "outage",
    "smoke-staleness",
    "cost",
    "parity",
    "mirror-lag",
    "dead-letters",
    "foreign-writes",
    "ambiguous",
    "identity",
    "scopes",
    "clock-skew",
    "reverse-rehearsed",
];

/// What a criterion asks for, in one line.
pub fn rule(id: &str) -> &'static str {
    match id {
        "soak-duration" => "days watched without a breach since the first mirrored refresh",
        "invalid-grant" => "dead grants, by the provider's own error",
        "missed-refresh" => "instants at which a served token in KV was past its expiry",
        "delivery-rate" => "share of the scheduled rotations that arrived in time",
        "outage" => "longest time that one custodian was out of reach",
        "smoke-staleness" => "stale tokens in smoke tests through the gateway",
        "cost" => "projected cost of a month",
        "parity" => "clean comparisons of both sides, one after the other",
        "mirror-lag" => "time from seeing a token to its last sink, 99th percentile",
        "dead-letters" => "deliveries that were given up",
        "foreign-writes" => "writes to mirrored keys by nobody that we know",
        "ambiguous" => "effects whose outcome nobody knows",
        "identity" => "consents by the same upstream account",
        "scopes" => "consents that grant enough",
        "clock-skew" => "difference of the clocks of the custodians from ours",
        "reverse-rehearsed" => "waves whose reverse was exercised",
        _ => "",
    }
}

/// Findings that are listed with a criterion; all are counted.
pub const FINDINGS_MAX: usize = 20;

/// The judgement of one criterion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    pub id: String,
    /// What the evidence says, whatever is waived.
    pub verdict: Verdict,
    /// The whole criterion stands aside by a waiver in force.
    pub waived: bool,
    pub observed: Option<f64>,
    pub threshold: f64,
    pub unit: String,
    pub expected_samples: u64,
    pub samples: u64,
    /// From when evidence is counted; `None` where all there is counts.
    pub since: Option<Timestamp>,
    pub reason: String,
    /// What spoke against it, oldest first; at most [`FINDINGS_MAX`].
    pub findings: Vec<Note>,
    /// How many findings there are in all.
    pub findings_total: u64,
    /// Waivers in force that touch it.
    pub waivers: Vec<WaiverMark>,
}

impl Judged {
    /// What the criterion adds to the gate's verdict.
    pub fn stands(&self) -> Verdict {
        if self.waived { Verdict::Pass } else { self.verdict }
    }

    /// Its reason, with every waiver that touches it.
    pub fn told(&self) -> String {
        match self.waived_by() {
            None => self.reason.clone(),
            Some(by) if self.waived => format!("waived by {by}: {}", self.reason),
            Some(by) => format!("{}; waived by {by}", self.reason),
        }
    }

    /// Who waived what of it: names for the whole, with number and scope for a part.
    pub fn waived_by(&self) -> Option<String> {
        let told = |w: &WaiverMark| match w.covered {
            0 => w.by.clone(),
            covered => format!("{} ({covered} of `{}`)", w.by, w.scope),
        };
        let told: Vec<String> = self.waivers.iter().map(told).collect();
        (!told.is_empty()).then(|| told.join(", "))
    }
}

/// The worst verdict decides; nothing judged is inconclusive.
pub fn overall(judged: &[Judged]) -> Verdict {
    judged.iter().map(Judged::stands).max().unwrap_or(Verdict::Inconclusive)
}
