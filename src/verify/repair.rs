//! From what a comparison found to what is delivered again.
//!
//! Only the newest version of the journal is ever delivered, through the mirror and in its order, so
//! a repair cannot bring an old token back. What somebody else wrote last is left alone: it may be
//! newer than anything that we hold.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::finding::{Finding, Outcome};
use super::runfile::{Progress, RunFile, RunFileError};
use super::spool::Spool;
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;
use crate::store::{Sink, Store, StoreError};

/// What was done about the findings of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Will be delivered again.
    pub queued: Vec<(Triplet, Sink)>,
    /// Left alone, and why.
    pub left: Vec<(String, &'static str)>,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error(transparent)]
    Run(#[from] RunFileError),
    #[error("the run of `{left}` and `{right}` has not come to its end")]
    Unfinished { left: String, right: String },
    #[error("the run compared `{left}` and `{right}`, and neither is a sink of ours")]
    NoSink { left: String, right: String },
    #[error("failed to read the findings of the run")]
    Findings(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Queues again what the run at `path` found missing or stale. Doing it twice queues it twice, and
/// the second delivery changes nothing.
///
/// # Errors
/// When the run cannot be read or is not over, when it is about no sink of ours, or the store fails.
pub async fn repair_from(path: &Path, store: &Store, now: Timestamp) -> Result<Repaired, RepairError> {
    let run = RunFile::load(path)?;
    let names = || (run.task.left.clone(), run.task.right.clone());
    let Some(Progress::Done { segments, spooled, .. }) = &run.progress else {
        let (left, right) = names();
        return Err(RepairError::Unfinished { left, right });
    };
    let sinks = [sink_of(&run.task.left), sink_of(&run.task.right)];
    if sinks == [None, None] {
        let (left, right) = names();
        return Err(RepairError::NoSink { left, right });
    }
    let mut repaired = Repaired::default();
    let mut wanted = BTreeSet::new();
    Spool::at(&run.findings_path(), *spooled)?.replay(segments, |finding| {
        match decide(&finding, sinks) {
            Ok((triplet, sinks)) => wanted.extend(sinks.into_iter().map(|sink| (triplet.clone(), sink))),
            Err(Some(why)) => repaired.left.push((finding.key, why)),
            Err(None) => {}
        }
        Ok(())
    })?;
    let wanted: Vec<(Triplet, Sink)> = wanted.into_iter().collect();
    let queued = store.requeue_deliveries(&wanted, now).await?;
    for (delivery, queued) in wanted.into_iter().zip(queued) {
        if queued {
            repaired.queued.push(delivery);
        } else {
            repaired.left.push((delivery.0.kv_key(), "it is not mirrored, or has no account to be mirrored to"));
        }
    }
    Ok(repaired)
}

/// The sink that a side shows.
fn sink_of(side: &str) -> Option<Sink> {
    match side {
        "kv:source" => Some(Sink::KvSource),
        "kv:target" => Some(Sink::KvTarget),
        "composio" => Some(Sink::Composio),
        _ => None,
    }
}

/// What must be delivered again for a finding. `Err(None)`: there is nothing to repair.
fn decide(finding: &Finding, sinks: [Option<Sink>; 2]) -> Result<(Triplet, Vec<Sink>), Option<&'static str>> {
    let [left, right] = sinks;
    if finding.is_of_another_account() {
        return Err(Some("it belongs to another upstream account, which no delivery mends"));
    }
    let sinks: Vec<Sink> = match finding.outcome {
        Outcome::Missing => right.into_iter().collect(),
        Outcome::Extra => left.into_iter().collect(),
        Outcome::Changed | Outcome::Error => left.into_iter().chain(right).collect(),
        Outcome::Foreign => return Err(Some("somebody else wrote it last, and that may be the newer token")),
        Outcome::Settling => return Err(Some("it may still settle")),
        Outcome::Match | Outcome::Unverifiable => return Err(None),
    };
    let Ok(triplet) = Triplet::from_kv_key(&finding.key) else {
        return Err(Some("it is no key of a triplet"));
    };
    if sinks.is_empty() { Err(Some("the side that lacks it is no sink of ours")) } else { Ok((triplet, sinks)) }
}

#[cfg(test)]
mod tests {
    use super::super::finding::{Change, Class, Rung};
    use super::*;

    fn finding(outcome: Outcome) -> Finding {
        let mut finding = super::super::merge::matched(b"tokens:a:b:c", Rung::Fingerprint);
        finding.outcome = outcome;
        finding
    }

    #[test]
    fn only_what_a_delivery_mends_is_delivered_again() {
        let (source, target) = (Sink::KvSource, Sink::KvTarget);
        let sinks = |outcome, sides: [&str; 2]| {
            decide(&finding(outcome), sides.map(sink_of)).map(|(_, sinks)| sinks).map_err(|why| why.is_some())
        };
        let gateway = ["kv:source", "kv:target"];
        assert_eq!(sinks(Outcome::Missing, gateway), Ok(vec![target]));
        assert_eq!(sinks(Outcome::Extra, gateway), Ok(vec![source]));
        assert_eq!(sinks(Outcome::Changed, gateway), Ok(vec![source, target]));
        assert_eq!(sinks(Outcome::Changed, ["journal", "kv:target"]), Ok(vec![target]));
        assert_eq!(sinks(Outcome::Extra, ["journal", "kv:target"]), Err(true));
        assert_eq!(sinks(Outcome::Foreign, gateway), Err(true));
        assert_eq!(sinks(Outcome::Unverifiable, gateway), Err(false));
        for outcome in [Outcome::Changed, Outcome::Foreign, Outcome::Settling] {
            let mut other = finding(outcome);
            other.changes.push(Change::new(Class::Identity, "entry.identity"));
            let why = decide(&other, gateway.map(sink_of)).unwrap_err();
            assert!(why.is_some_and(|why| why.contains("another upstream account")), "{outcome} {why:?}");
        }
    }
}
