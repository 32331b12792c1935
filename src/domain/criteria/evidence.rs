//! What was observed, as plain data, with what could not be observed beside it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::clock::{Gap, SoakClock};
use crate::domain::api::Api;
use crate::domain::time::Timestamp;

/// One thing that happened to one subject (a triplet, a connection, an API).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Note {
    pub at: Timestamp,
    pub subject: String,
    pub detail: String,
}

/// Proof per subject: how many must be proven, how many are, and what spoke against the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proofs {
    pub expected: u64,
    pub proven: u64,
    pub refuted: Vec<Note>,
    /// Neither proven nor refuted.
    pub missing: Vec<String>,
}

/// The parts of the engine that make evidence. Each can fall silent by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvidenceSource {
    /// The duties as a whole: polls, deliveries, probes.
    Duties,
    /// Smoke tests through the gateway.
    Smoke,
    /// Scans of both namespaces for foreign writes.
    Scan,
    /// Comparisons of both namespaces.
    Verify,
    /// The audit trail in D1: our rows written and read back, and those of others read.
    Audit,
}

impl EvidenceSource {
    pub const ALL: [Self; 5] = [Self::Duties, Self::Smoke, Self::Scan, Self::Verify, Self::Audit];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Duties => "duties",
            Self::Smoke => "smoke",
            Self::Scan => "scan",
            Self::Verify => "verify",
            Self::Audit => "audit",
        }
    }

    /// Reads what [`EvidenceSource::name`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == text)
    }
}

/// How one look of a source ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LookOutcome {
    /// It looked and found nothing wrong.
    Clean,
    /// It looked and found something.
    Finding,
    /// It looked and could not compare anything, as when everything is settling.
    Inconclusive,
    /// There is nothing left to look at.
    Idle,
    /// It got no answer.
    Error,
}

impl LookOutcome {
    pub const ALL: [Self; 5] = [Self::Clean, Self::Finding, Self::Inconclusive, Self::Idle, Self::Error];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Finding => "finding",
            Self::Inconclusive => "inconclusive",
            Self::Idle => "idle",
            Self::Error => "error",
        }
    }

    /// Reads what [`LookOutcome::name`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.name() == text)
    }
}

/// Looks of one source with the same outcome, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looks {
    pub from: Timestamp,
    pub until: Timestamp,
    pub outcome: LookOutcome,
    pub runs: u64,
    /// What was looked at, over all runs.
    pub samples: u64,
}

/// What the looks of one source in the window come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookTally {
    /// Looks that compared something, and what they looked at.
    pub runs: u64,
    pub samples: u64,
    /// Clean looks up to the last that compared something.
    pub clean_in_a_row: u64,
    pub inconclusive_in_a_row: u64,
    pub errors_in_a_row: u64,
    pub inconclusive: u64,
    pub errors: u64,
}

impl LookTally {
    /// Adds up looks in order of time.
    pub fn of<'a>(looks: impl IntoIterator<Item = &'a Looks>) -> Self {
        let mut t = Self::default();
        for l in looks {
            match l.outcome {
                LookOutcome::Clean => {
                    t.clean_in_a_row += l.runs;
                    (t.inconclusive_in_a_row, t.errors_in_a_row) = (0, 0);
                }
                LookOutcome::Finding => {
                    (t.clean_in_a_row, t.inconclusive_in_a_row, t.errors_in_a_row) = (0, 0, 0);
                }
                LookOutcome::Inconclusive => {
                    t.inconclusive += l.runs;
                    t.inconclusive_in_a_row += l.runs;
                    t.errors_in_a_row = 0;
                }
                LookOutcome::Idle => (t.inconclusive_in_a_row, t.errors_in_a_row) = (0, 0),
                LookOutcome::Error => {
                    t.errors += l.runs;
                    t.errors_in_a_row += l.runs;
                }
            }
            if matches!(l.outcome, LookOutcome::Clean | LookOutcome::Finding) {
                t.runs += l.runs;
                t.samples += l.samples;
            }
        }
        t
    }
}

/// What was observed in each criterion's window, up to `now`. `None` and zero samples mean: not
/// observed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    pub now: Timestamp,
    /// When the plan was applied: nothing was watched before.
    pub began_at: Option<Timestamp>,
    pub first_refresh_at: Option<Timestamp>,
    /// Times without evidence, by any source; those that last now end at `now`.
    pub gaps: Vec<Gap>,
    /// Sources that are silent now, since when.
    pub silent: BTreeMap<EvidenceSource, Timestamp>,
    /// Refreshes attempted, each able to show a dead grant.
    pub refreshes: u64,
    pub dead_grants: Vec<Note>,
    pub missed_refreshes: Vec<Note>,
    /// Rotations that were due in the window of `missed-refresh`: only then can a served token end.
    pub rotations_due: u64,
    /// Rotations that the schedule asked for in the window of `delivery-rate`, and those that arrived
    /// before the old token ended.
    pub rotations_expected: u64,
    pub rotations_arrived: u64,
    /// When rotations did not arrive, and whose.
    pub missed_rotations: Vec<Note>,
    /// Outages with their length in ms, each named by its API.
    pub outages: Vec<Outage>,
    /// Calls that could have shown an outage, per API.
    pub api_calls: BTreeMap<Api, u64>,
    pub smoke: LookTally,
    /// Triplets that are smoke-tested.
    pub smoke_subjects: u64,
    pub smoke_stale: Vec<Note>,
    pub cost_usd_month: Option<f64>,
    pub verify: LookTally,
    pub parity_findings: Vec<Note>,
    pub lag_p99_ms: Option<i64>,
    pub lag_samples: u64,
    pub dead_letters: Vec<Note>,
    pub scan: LookTally,
    pub foreign_writes: Vec<Note>,
    /// Readings of the audit trail, which shows writes that were overwritten between two scans.
    pub audit: LookTally,
    /// Rows of ours that the audit trail took and does not show.
    pub audit_lost: Vec<Note>,
    /// Effects whose outcome nobody knew when they were made.
    pub ambiguous: Vec<Note>,
    /// Effects on the outside that were attempted, each of which could have ended unknown.
    pub effects: u64,
    pub identity: Proofs,
    pub scopes: Proofs,
    /// Largest difference per API in either direction, ms, with the number of readings.
    pub skew: BTreeMap<Api, (i64, u64)>,
    /// Waves in the plan and waves whose reverse was exercised.
    pub reverse: Proofs,
    /// What is wrong now, by criterion, since when it is. It counts however long ago that was.
    pub standing: BTreeMap<&'static str, Vec<Note>>,
}

impl Evidence {
    /// Time since the first mirrored refresh that was watched, ms.
    pub fn watched_ms(&self) -> i64 {
        SoakClock::read(self.first_refresh_at, 0, &self.gaps, Vec::new(), self.now).watched_ms
    }
}

/// A custodian out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Outage {
    pub api: Api,
    pub from: Timestamp,
    /// Where it ended; the time of looking while it lasts.
    pub until: Timestamp,
}

impl Outage {
    pub const fn ms(self) -> i64 {
        self.until.since(self.from)
    }
}

/// The judged evidence with its clock: what a gate hands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    pub criteria: Vec<super::Judged>,
    pub clock: SoakClock,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(outcomes: &[(LookOutcome, u64)]) -> Vec<Looks> {
        let at = Timestamp::from_secs;
        outcomes
            .iter()
            .map(|&(outcome, runs)| Looks { from: at(0), until: at(1), outcome, runs, samples: 10 * runs })
            .collect()
    }

    #[test]
    fn a_finding_ends_the_row_and_a_look_without_answer_does_not() {
        use LookOutcome::*;
        let t = LookTally::of(&looks(&[(Clean, 5), (Finding, 1), (Clean, 2), (Error, 3), (Clean, 1), (Idle, 4)]));
        assert_eq!((t.clean_in_a_row, t.runs, t.samples, t.errors, t.errors_in_a_row), (3, 9, 90, 3, 0));
        let t = LookTally::of(&looks(&[(Clean, 5), (Inconclusive, 2), (Error, 1)]));
        assert_eq!((t.clean_in_a_row, t.inconclusive_in_a_row, t.errors_in_a_row), (5, 2, 1));
        assert_eq!((t.runs, t.inconclusive), (5, 2));
    }
}
