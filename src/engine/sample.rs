//! The history: about once an hour, what was counted so far and how things stand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Engine, EngineResult, gate};
use crate::domain::api::Api;
use crate::domain::criteria::{EvidenceSource, LookOutcome, Verdict};
use crate::domain::time::{HOUR_MS, MINUTE_MS, Timestamp};
use crate::ports::{ApiError, Outside};
use crate::store::{Look, Sink, StoreError, StoreResult};

use super::evidence::look_every_ms;

/// How often a sample is taken.
const SAMPLE_EVERY_MS: i64 = HOUR_MS;

/// One point of the history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Running totals since the plan was applied.
    pub counters: BTreeMap<String, i64>,
    /// Largest difference of each API's clock since the sample before, ms.
    pub skew_ms: BTreeMap<Api, i64>,
    /// Triplets per stage; held and retained ones as such.
    pub stages: BTreeMap<String, u64>,
    /// Time that tokens served from `kv.source` have left, ms; the least and the median.
    pub left_ms_min: Option<i64>,
    pub left_ms_median: Option<i64>,
    /// Deliveries under way, and those given up.
    pub pending: u64,
    pub dead: u64,
    pub verdict: Option<Verdict>,
    /// Criteria that do not pass, with what they say.
    pub open: BTreeMap<String, Verdict>,
    /// Criteria that a waiver sets aside.
    pub waived: Vec<String>,
}

impl Sample {
    /// Reads what the store kept.
    ///
    /// # Errors
    /// `Corrupt` when it is not a sample.
    pub fn from_json(text: &str) -> StoreResult<Self> {
        serde_json::from_str(text).map_err(|e| StoreError::Corrupt { what: "sample", detail: e.to_string() })
    }
}

impl<O: Outside> Engine<O> {
    /// Takes a sample unless there is a young one, as after a restart.
    pub(super) async fn sample(&self, now: Timestamp) -> EngineResult<Timestamp> {
        if let Some((at, _)) = self.store.load_sample_before(now).await?
            && now.since(at) < SAMPLE_EVERY_MS - MINUTE_MS
        {
            return Ok(at.plus_ms(SAMPLE_EVERY_MS));
        }
        self.record_traffic().await?;
        let report = gate::judge_state(&self.store, &self.config.policy, now).await?;
        gate::tell_change(&self.store, &report).await?;
        let mut sample = Sample {
            counters: self.store.load_counters().await?,
            verdict: Some(report.verdict),
            open: report
                .criteria
                .iter()
                .filter(|c| c.verdict != Verdict::Pass && !c.waived)
                .map(|c| (c.id.clone(), c.verdict))
                .collect(),
            waived: report.criteria.iter().filter(|c| c.waived).map(|c| c.id.clone()).collect(),
            ..Sample::default()
        };
        for row in self.store.load_triplets().await? {
            *sample.stages.entry(row.standing().to_owned()).or_default() += 1;
        }
        let mut left: Vec<i64> = Vec::new();
        for sink in Sink::ALL {
            for state in self.store.load_sink(sink).await? {
                sample.dead += u64::from(state.dead.is_some());
                sample.pending += u64::from(state.dead.is_none() && state.delivered < state.version);
                if sink == Sink::KvSource {
                    left.extend(state.delivered_exp.map(|at| at.since(now)));
                }
            }
        }
        left.sort_unstable();
        sample.left_ms_min = left.first().copied();
        sample.left_ms_median = left.get(left.len() / 2).copied();
        // What was the largest of this hour is not the largest of the next.
        let mut reset = Vec::new();
        for api in Api::ALL {
            let name = format!("skew_ms:{}", api.name());
            if let Some(ms) = sample.counters.remove(&name) {
                sample.skew_ms.insert(api, ms);
                reset.push(name);
            }
        }
        let json = serde_json::to_string(&sample).expect("a sample is plain data");
        self.store.save_sample(now, &json).await?;
        for name in reset {
            self.store.set_counter(&name, 0).await?;
        }
        Ok(now.plus_ms(SAMPLE_EVERY_MS))
    }

    /// Records that a source of evidence looked, and how that ended.
    pub(super) async fn looked(
        &self,
        source: EvidenceSource,
        outcome: LookOutcome,
        samples: u64,
        now: Timestamp,
    ) -> EngineResult<()> {
        let criteria = &self.config.policy.criteria;
        let every_ms = look_every_ms(source, criteria);
        let slack_ms = criteria.evidence_gap_max.0;
        Ok(self.store.record_look(&Look { source, at: now, outcome, samples, every_ms, slack_ms }).await?)
    }

    /// Records a round of smoke tests, or the part of one that ended with an error.
    pub(super) async fn smoked(
        &self,
        tested: u64,
        found: bool,
        error: Option<&ApiError>,
        now: Timestamp,
    ) -> EngineResult<()> {
        if tested > 0 {
            let outcome = if found { LookOutcome::Finding } else { LookOutcome::Clean };
            self.looked(EvidenceSource::Smoke, outcome, tested, now).await?;
        }
        match error {
            Some(error) => self.unanswered(EvidenceSource::Smoke, error, now).await,
            None => Ok(()),
        }
    }

    /// Records a look that got no answer. One that our own budget held back was not made at all.
    pub(super) async fn unanswered(
        &self,
        source: EvidenceSource,
        error: &ApiError,
        now: Timestamp,
    ) -> EngineResult<()> {
        if error.is_held_back() { Ok(()) } else { self.looked(source, LookOutcome::Error, 0, now).await }
    }
}
