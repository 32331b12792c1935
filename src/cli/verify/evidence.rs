//! A comparison as evidence: what is kept of it, and when nothing is.

use std::io;

use serde_json::json;

use super::super::{CommandError, Ui};
use super::live::LiveSides;
use super::print::{self, one_line};
use crate::domain::criteria::Note;
use crate::domain::time::Timestamp;
use crate::store::Verification;
use crate::verify::live::LiveTask;
use crate::verify::{Finding, Outcome, Report, Task};

/// How many differences are named in the evidence.
const NAMED_MAX: usize = 100;

/// What became of a run as evidence.
pub(super) enum Evidence {
    /// There is no state that could keep it.
    NoState,
    Kept {
        run: String,
    },
    /// It speaks of something else than the plan asks, and says so.
    NotKept {
        why: String,
    },
    Failed(CommandError),
}

impl Evidence {
    /// Keeps a run in the state, unless it compares otherwise than the plan asks. `level` is how deep
    /// it went.
    pub(super) fn keep(live: &LiveSides, asked: &LiveTask, task: &Task, report: &mut Report, level: &str) -> Self {
        let Some(store) = &live.store else { return Self::NoState };
        if let Some(why) = &live.departure {
            return Self::NotKept { why: why.clone() };
        }
        let run = match verification(task, asked, report, level, live.clock.now()) {
            Ok(run) => run,
            Err(error) => {
                return Self::Failed(CommandError::failed("cannot read the findings again").because(&error));
            }
        };
        match live.runtime.block_on(store.record_verification(&run, &live.criteria)) {
            Ok(_) => Self::Kept { run: run.run },
            Err(error) => Self::Failed(CommandError::failed("cannot keep the result as evidence").because(&error)),
        }
    }

    /// For the JSON report; `None` where there is nothing to say.
    pub(super) fn to_json(&self) -> Option<serde_json::Value> {
        Some(match self {
            Self::NoState => return None,
            Self::Kept { .. } => json!({ "kept": true }),
            Self::NotKept { why } => json!({ "kept": false, "reason": why }),
            Self::Failed(error) => json!({ "kept": false, "reason": error.to_string() }),
        })
    }

    /// Says it to a person.
    ///
    /// # Errors
    /// When it should have been kept and could not.
    pub(super) fn tell(self, ui: &Ui) -> Result<(), CommandError> {
        match self {
            Self::NoState => {}
            Self::Kept { run } => ui.note(&format!("kept as evidence: run {run}")),
            Self::NotKept { why } => ui.note(&format!("not kept as evidence: {why}")),
            Self::Failed(error) => return Err(error),
        }
        Ok(())
    }
}

fn verification(
    task: &Task,
    asked: &LiveTask,
    report: &mut Report,
    level: &str,
    at: Timestamp,
) -> io::Result<Verification> {
    let mut findings = Vec::new();
    report.findings(|finding| {
        if finding.outcome.is_difference() && findings.len() < NAMED_MAX {
            findings.push(note(&finding, at));
        }
        Ok(())
    })?;
    let counts = &report.counts;
    let unsure = counts.of(Outcome::Unverifiable) + counts.of(Outcome::Settling);
    Ok(Verification {
        run: asked.run.clone(),
        began_at: asked.began_at,
        at,
        left: task.left.clone(),
        right: task.right.clone(),
        level: level.to_owned(),
        keys: counts.entries[0].max(counts.entries[1]),
        compared: counts.compared().saturating_sub(unsure),
        differing: counts.differing(),
        unsure,
        failed: report.diagnostics.total + counts.of(Outcome::Error),
        counts: serde_json::to_string(counts).map_err(io::Error::from)?,
        rules: Some(serde_json::to_string(&task.rules).map_err(io::Error::from)?),
        findings,
    })
}

fn note(finding: &Finding, at: Timestamp) -> Note {
    let subject = finding.key.strip_prefix(crate::domain::triplet::KV_PREFIX).unwrap_or(&finding.key);
    Note { at, subject: one_line(subject), detail: print::told(finding) }
}
