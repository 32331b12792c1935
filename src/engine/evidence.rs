//! Gathers what the store knows into [`Evidence`] and judges it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Engine, EngineResult};
use crate::domain::api::Api;
use crate::domain::criteria::{Evidence, Judged, Note, Proofs, Verdict, judge, overall};
use crate::domain::custody::Stage;
use crate::domain::time::{DAY_MS, HOUR_MS, Timestamp};
use crate::plan::Route;
use crate::ports::Outside;
use crate::store::{LAG_BOUNDS_S, TripletRow};

/// What the gate says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateReport {
    pub verdict: Verdict,
    pub evaluated_at: Timestamp,
    pub criteria: Vec<Judged>,
}

impl<O: Outside> Engine<O> {
    /// Judges the exit criteria on the evidence so far.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn gate(&self, now: Timestamp) -> EngineResult<GateReport> {
        let evidence = self.evidence(now).await?;
        let criteria = judge(&self.config.policy.criteria, &evidence);
        Ok(GateReport { verdict: overall(&criteria), evaluated_at: now, criteria })
    }

    /// What was observed up to `now`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn evidence(&self, now: Timestamp) -> EngineResult<Evidence> {
        self.record_traffic().await?;
        let counters = self.store.load_counters().await?;
        let count = |name: &str| counters.get(name).copied().unwrap_or(0).max(0) as u64;
        let triplets = self.store.load_triplets().await?;
        let soak_from = self.store.load_meta("soak_from").await?.and_then(|t| t.parse().ok());
        let soaked_ms = soak_from.map(|from| now.since(Timestamp::from_millis(from)) - count("gap_ms") as i64);

        let mut outages: BTreeMap<Api, (i64, Timestamp)> = BTreeMap::new();
        let mut longest = |api: Api, ms: i64, from: Timestamp| {
            let entry = outages.entry(api).or_insert((ms, from));
            if ms > entry.0 {
                *entry = (ms, from);
            }
        };
        for note in self.store.load_notes("outage").await? {
            if let Some(api) = Api::ALL.into_iter().find(|a| a.name() == note.subject) {
                longest(api, note.detail.parse().unwrap_or(0), note.at);
            }
        }
        for api in Api::ALL {
            if let Some(since) = self.health(api).down_since {
                longest(api, now.since(since), since);
            }
        }

        let (lag_p99_ms, lag_samples) = lag_p99(&counters);
        let per_api = |prefix: &str| -> BTreeMap<Api, u64> {
            Api::ALL.into_iter().map(|api| (api, count(&format!("{prefix}:{}", api.name())))).collect()
        };
        let skew = Api::ALL
            .into_iter()
            .filter_map(|api| {
                let n = count(&format!("skew_samples:{}", api.name()));
                (n > 0).then(|| (api, (count(&format!("skew_ms:{}", api.name())) as i64, n)))
            })
            .collect();

        Ok(Evidence {
            soaked_ms,
            gap_ms: count("gap_ms") as i64,
            refreshes: count("reads"),
            dead_grants: self.store.load_notes("dead-grant").await?,
            missed_refreshes: self.store.load_notes("missed-refresh").await?,
            rotations_expected: count("rotations_expected"),
            rotations_arrived: count("rotations_arrived"),
            outages,
            api_calls: per_api("requests"),
            smoke_tests: count("smoke_tests"),
            smoke_subjects: triplets.iter().filter(|t| t.moves()).count() as u64,
            smoke_stale: self.store.load_notes("smoke-stale").await?,
            cost_usd_month: self.cost(&counters, &triplets, soaked_ms),
            parity_clean: count("parity_clean"),
            parity_runs: count("parity_runs"),
            parity_findings: self.store.load_notes("parity").await?,
            lag_p99_ms,
            lag_samples,
            dead_letters: self.store.load_notes("dead-letter").await?,
            scans: count("scans"),
            foreign_writes: self.store.load_notes("foreign-write").await?,
            ambiguous: self.store.load_notes("ambiguous").await?,
            identity: proofs(&triplets, now, |t| match t.identity.as_deref() {
                Some("different") => Some("the consent came from another upstream account".to_owned()),
                _ => None,
            }),
            scopes: proofs(&triplets, now, |t| match t.granted.as_deref() {
                None | Some("enough") => None,
                Some(missing) => Some(format!("the consent lacks {missing}")),
            }),
            skew,
            reverse: self.drills(&triplets).await?,
        })
    }

    async fn drills(&self, triplets: &[TripletRow]) -> EngineResult<Proofs> {
        let mut waves: Vec<u32> = triplets.iter().filter(|t| t.moves()).filter_map(|t| t.wave).collect();
        waves.sort_unstable();
        waves.dedup();
        let mut proofs = Proofs { expected: waves.len() as u64, ..Proofs::default() };
        for wave in waves {
            if self.store.load_meta(&format!("drill:{wave}")).await?.as_deref() == Some("done") {
                proofs.proven += 1;
            }
        }
        proofs.refuted = self.store.load_notes("drill-failed").await?;
        Ok(proofs)
    }

    /// Projects a month from what was counted since the soak began.
    fn cost(&self, counters: &BTreeMap<String, i64>, triplets: &[TripletRow], soaked_ms: Option<i64>) -> Option<f64> {
        // Less than an hour says nothing about a month.
        let soaked = soaked_ms.filter(|&ms| ms >= HOUR_MS)? as f64;
        let month = |names: &[&str]| {
            let n: i64 = names.iter().map(|n| counters.get(*n).copied().unwrap_or(0)).sum();
            n as f64 * (30 * DAY_MS) as f64 / soaked
        };
        let over = |n: f64, included: u64, per_million: f64| (n - included as f64).max(0.0) / 1e6 * per_million;
        let moving = || triplets.iter().filter(|t| t.moves());
        let connections: BTreeSet<i64> = moving().map(|t| t.connection).collect();
        let p = &self.config.policy.prices;
        let usd = (connections.len() as f64 * p.nango_per_connection_month).max(p.nango_minimum_per_month)
            + p.composio_base_per_month
            + moving().count() as f64 * p.composio_per_account_month
            + over(month(&["kv_reads"]), p.kv_reads_included, p.kv_reads_per_million)
            + over(
                month(&["deliveries:kv.source", "deliveries:kv.target"]),
                p.kv_writes_included,
                p.kv_writes_per_million,
            )
            + over(month(&["kv_lists"]), p.kv_lists_included, p.kv_lists_per_million);
        Some((usd * 100.0).round() / 100.0)
    }
}

/// The 99th percentile, as the upper bound of its bucket, and the number of samples.
fn lag_p99(counters: &BTreeMap<String, i64>) -> (Option<i64>, u64) {
    let bucket = |name: String| counters.get(&name).copied().unwrap_or(0).max(0) as u64;
    let counts: Vec<(i64, u64)> = LAG_BOUNDS_S
        .iter()
        .map(|&s| (s * 1000, bucket(format!("lag:{s}"))))
        .chain([(i64::MAX, bucket("lag:inf".to_owned()))])
        .collect();
    let total: u64 = counts.iter().map(|c| c.1).sum();
    let mut seen = 0;
    for (bound, n) in counts {
        seen += n;
        if total > 0 && seen * 100 >= total * 99 {
            return (Some(bound), total);
        }
    }
    (None, total)
}

/// Proof for every triplet whose custody moves by consent.
fn proofs(triplets: &[TripletRow], now: Timestamp, refuted: impl Fn(&TripletRow) -> Option<String>) -> Proofs {
    let mut proofs = Proofs::default();
    for t in triplets.iter().filter(|t| t.custody.route == Route::Reconsent) {
        proofs.expected += 1;
        if t.custody.stage >= Stage::Verified {
            proofs.proven += 1;
        } else if let Some(detail) = refuted(t) {
            proofs.refuted.push(Note { at: now, subject: t.triplet.to_string(), detail });
        }
    }
    proofs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_percentile_is_a_bound_that_99_of_100_keep() {
        let counters = |pairs: &[(&str, i64)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        assert_eq!(lag_p99(&counters(&[])), (None, 0));
        assert_eq!(lag_p99(&counters(&[("lag:1", 99), ("lag:600", 1)])), (Some(1_000), 100));
        assert_eq!(lag_p99(&counters(&[("lag:1", 98), ("lag:600", 2)])), (Some(600_000), 100));
        assert_eq!(lag_p99(&counters(&[("lag:inf", 1)])), (Some(i64::MAX), 1));
    }
}
