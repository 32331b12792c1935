//! Gathers what the store knows into [`Evidence`]. Reads only: a command can do it beside a
//! running shim.

use std::collections::{BTreeMap, BTreeSet};

use super::EngineResult;
use super::sample::Sample;
use crate::domain::api::Api;
use crate::domain::criteria::{
    CriteriaPolicy, Evidence, EvidenceSource, FINDINGS_MAX, Gap, LookTally, Note, Outage, Proofs,
};
use crate::domain::custody::{ReadAuthority, Stage};
use crate::domain::time::{DAY_MS, MINUTE_MS, SECOND_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::plan::{Policy, Route};
use crate::store::{LAG_BOUNDS_S, Standing, Store, StoreResult, TripletRow, lag_counter};

/// Scans are no farther apart than this, whatever the life of the tokens.
pub(super) const SCAN_EVERY_MAX_MS: i64 = 20 * MINUTE_MS;

/// How often audit rows go to D1 and are read back.
pub(super) const AUDIT_EVERY_MS: i64 = 10 * MINUTE_MS;

/// A row that D1 took and does not show after this long is lost. Until then a replica may not have it.
const AUDIT_GRACE_MS: i64 = 15 * MINUTE_MS;

/// How long after its last look a source is expected to look again.
pub(super) fn look_every_ms(source: EvidenceSource, policy: &CriteriaPolicy) -> i64 {
    match source {
        EvidenceSource::Duties => 0,
        EvidenceSource::Smoke => policy.smoke_every.0,
        EvidenceSource::Scan => SCAN_EVERY_MAX_MS,
        EvidenceSource::Verify => policy.verify_every.0,
        EvidenceSource::Audit => AUDIT_EVERY_MS,
    }
}

/// What was observed up to `now`.
///
/// # Errors
/// When the store cannot be read.
pub async fn collect(store: &Store, policy: &Policy, now: Timestamp) -> EngineResult<Evidence> {
    let criteria = &policy.criteria;
    // Of each subject enough to pass every threshold and to be listed. Not only what lies in a window:
    // the soak clock started again at breaches that have left theirs.
    let notes = async |kind: &str, id: &str| {
        store.load_notes_of_each(kind, criteria.breaches_max(id).saturating_add(FINDINGS_MAX as u32)).await
    };
    let counters = store.load_counters().await?;
    let triplets = store.load_triplets().await?;
    let first_refresh_at = time(store.load_meta("soak_from").await?);
    let (gaps, silent) = gaps(store, criteria, first_refresh_at, now).await?;
    let looks = store.load_looks(now.plus_ms(-criteria.window_max().0)).await?;
    let tally = |source, id: &str| {
        let since = now.plus_ms(-criteria.window_of(id).0);
        LookTally::of(looks.get(&source).into_iter().flatten().filter(|l| l.until >= since))
    };
    let began_at = store.load_identity().await?.map(|identity| identity.applied_at);
    let mut windows =
        Windows { store, now, began_at, first_refresh_at, criteria, counters: &counters, read: BTreeMap::new() };
    let grants = windows.counted("invalid-grant").await?;
    let missed = windows.counted("missed-refresh").await?;
    let rate = windows.counted("delivery-rate").await?;
    let calls = windows.counted("outage").await?;
    let mut delivered = windows.counted("mirror-lag").await?;
    let skew = windows.skew().await?;
    let outages_since = windows.since("outage");
    let (effects, ambiguous) = store.load_effects().await?;
    let mut standing = standing(store, &triplets, criteria, now).await?;
    standing.insert("ambiguous", ambiguous);
    // What waits for longer than it may is late already, however it ends.
    for late in standing.get("mirror-lag").into_iter().flatten() {
        *delivered.entry(lag_counter(now.since(late.at))).or_default() += 1;
    }
    let (lag_p99_ms, lag_samples) = lag_p99(&delivered);

    let mut evidence = Evidence {
        now,
        began_at,
        first_refresh_at,
        gaps,
        silent,
        refreshes: count(&grants, "reads"),
        dead_grants: notes("dead-grant", "invalid-grant").await?,
        missed_refreshes: notes("missed-refresh", "missed-refresh").await?,
        rotations_due: count(&missed, "rotations_expected"),
        rotations_expected: count(&rate, "rotations_expected"),
        rotations_arrived: count(&rate, "rotations_arrived"),
        missed_rotations: notes("missed-rotation", "delivery-rate").await?,
        outages: outages(store, criteria, outages_since, now).await?,
        api_calls: Api::ALL.map(|api| (api, count(&calls, &format!("requests:{}", api.name())))).into(),
        smoke: tally(EvidenceSource::Smoke, "smoke-staleness"),
        smoke_subjects: triplets.iter().filter(|t| t.moves()).count() as u64,
        smoke_stale: notes("smoke-stale", "smoke-staleness").await?,
        cost_usd_month: None,
        verify: tally(EvidenceSource::Verify, "parity"),
        parity_findings: notes("parity", "parity").await?,
        lag_p99_ms,
        lag_samples,
        dead_letters: notes("dead-letter", "dead-letters").await?,
        scan: tally(EvidenceSource::Scan, "foreign-writes"),
        foreign_writes: notes("foreign-write", "foreign-writes").await?,
        audit: tally(EvidenceSource::Audit, "foreign-writes"),
        audit_lost: store.load_lost_audit(AUDIT_GRACE_MS).await?,
        ambiguous: notes("ambiguous", "ambiguous").await?,
        effects,
        identity: proofs(&triplets, now, |t| match t.identity.as_deref() {
            Some("different") => Some("the consent came from another upstream account".to_owned()),
            _ => None,
        }),
        scopes: proofs(&triplets, now, |t| match t.granted.as_deref() {
            None | Some("enough") => None,
            Some(missing) => Some(format!("the consent lacks {missing}")),
        }),
        skew,
        reverse: drills(store, &triplets).await?,
        standing,
    };
    let watched_ms = evidence.watched_ms();
    if watched_ms >= criteria.cost_after.0.max(1) {
        evidence.cost_usd_month = Some(cost(policy, &counters, &triplets, watched_ms));
    }
    Ok(evidence)
}

fn count(counters: &BTreeMap<String, i64>, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or(0).max(0) as u64
}

fn time(text: Option<String>) -> Option<Timestamp> {
    text.and_then(|t| t.parse().ok()).map(Timestamp::from_millis)
}

/// Counters over the window of a criterion: what they are now less what they were when it began,
/// to the nearest sample before.
struct Windows<'a> {
    store: &'a Store,
    now: Timestamp,
    began_at: Option<Timestamp>,
    first_refresh_at: Option<Timestamp>,
    criteria: &'a CriteriaPolicy,
    counters: &'a BTreeMap<String, i64>,
    read: BTreeMap<Timestamp, BTreeMap<String, i64>>,
}

impl Windows<'_> {
    fn since(&self, id: &str) -> Timestamp {
        self.criteria.counts_from(id, self.now, self.began_at, self.first_refresh_at)
    }

    async fn counted(&mut self, id: &str) -> EngineResult<BTreeMap<String, i64>> {
        let since = self.since(id);
        if !self.read.contains_key(&since) {
            let before = match self.store.load_sample_before(since).await? {
                Some((_, json)) => Sample::from_json(&json)?.counters,
                None => BTreeMap::new(),
            };
            let delta = self.counters.iter().map(|(name, n)| (name.clone(), n - before.get(name).unwrap_or(&0)));
            self.read.insert(since, delta.collect());
        }
        Ok(self.read[&since].clone())
    }

    /// The largest difference of each clock in the window, and how often it was read.
    async fn skew(&mut self) -> EngineResult<BTreeMap<Api, (i64, u64)>> {
        let counted = self.counted("clock-skew").await?;
        let mut worst: BTreeMap<Api, i64> = BTreeMap::new();
        let mut raise = |api: Api, ms: i64| {
            let known = worst.entry(api).or_default();
            *known = ms.max(*known);
        };
        for (_, json) in self.store.load_samples(self.since("clock-skew")).await? {
            for (api, ms) in Sample::from_json(&json)?.skew_ms {
                raise(api, ms);
            }
        }
        for api in Api::ALL {
            raise(api, count(self.counters, &format!("skew_ms:{}", api.name())) as i64);
        }
        let read = |api: Api| count(&counted, &format!("skew_samples:{}", api.name()));
        Ok(worst.into_iter().map(|(api, ms)| (api, (ms, read(api)))).filter(|(_, (_, n))| *n > 0).collect())
    }
}

/// All gaps, with those that last now, and which sources are silent.
async fn gaps(
    store: &Store,
    criteria: &CriteriaPolicy,
    first_refresh_at: Option<Timestamp>,
    now: Timestamp,
) -> StoreResult<(Vec<Gap>, BTreeMap<EvidenceSource, Timestamp>)> {
    let mut gaps = store.load_gaps().await?;
    let mut last = store.load_last_looks().await?;
    if let Some(first) = first_refresh_at {
        last.extend(time(store.load_meta("alive_at").await?).map(|at| (EvidenceSource::Duties, at)));
        // One that never looked has been silent since the soak began.
        for source in EvidenceSource::ALL {
            last.entry(source).or_insert(first);
        }
    }
    let mut silent = BTreeMap::new();
    for (source, at) in last {
        let every = look_every_ms(source, criteria);
        if now.since(at) > every + criteria.evidence_gap_max.0 {
            let reason = match source {
                EvidenceSource::Duties => "nothing of ours runs",
                _ => "no look got an answer",
            };
            let from = at.plus_ms(every);
            gaps.push(Gap { from, until: now, source: source.name().to_owned(), reason: reason.to_owned() });
            silent.insert(source, from);
        }
    }
    gaps.sort();
    Ok((gaps, silent))
}

/// Outages that were too long, the longest since `since`, and those that last now.
async fn outages(
    store: &Store,
    criteria: &CriteriaPolicy,
    since: Timestamp,
    now: Timestamp,
) -> StoreResult<Vec<Outage>> {
    let ended = store.load_outages(criteria.outage_max_ms(), FINDINGS_MAX as u32, since).await?;
    let api = |name: &str| Api::ALL.into_iter().find(|a| a.name() == name);
    let mut outages: Vec<Outage> = ended
        .iter()
        .filter_map(|n| {
            let ms = n.detail.parse().ok()?;
            Some(Outage { api: api(&n.subject)?, from: n.at, until: n.at.plus_ms(ms) })
        })
        .collect();
    for (name, since) in store.load_metas("down:").await? {
        if let (Some(api), Some(from)) = (api(&name), time(Some(since))) {
            outages.push(Outage { api, from, until: now });
        }
    }
    outages.sort();
    Ok(outages)
}

/// What is wrong now with triplets whose reads still depend on it, by criterion.
async fn standing(
    store: &Store,
    triplets: &[TripletRow],
    criteria: &CriteriaPolicy,
    now: Timestamp,
) -> StoreResult<BTreeMap<&'static str, Vec<Note>>> {
    let moving = triplets.iter().filter(|t| t.moves() && t.custody.stage < Stage::Settled);
    let open: BTreeMap<&Triplet, ReadAuthority> = moving.map(|t| (&t.triplet, t.custody.read)).collect();
    let counts = |criterion: &str, triplet: &Triplet| match open.get(triplet) {
        // What is not served from there any more may end there.
        Some(read) => criterion != "missed-refresh" || *read == ReadAuthority::Source,
        None => false,
    };
    let late = now.plus_ms(-i64::from(criteria.mirror_lag_p99_s) * SECOND_MS);
    let standing = store.load_standing(late, now).await?;
    let notes = |(criterion, found): (&'static str, Vec<Standing>)| {
        (criterion, found.into_iter().filter(|s| counts(criterion, &s.triplet)).map(Standing::note).collect())
    };
    Ok(standing.into_iter().map(notes).collect())
}

async fn drills(store: &Store, triplets: &[TripletRow]) -> StoreResult<Proofs> {
    let mut waves: Vec<u32> = triplets.iter().filter(|t| t.moves()).filter_map(|t| t.wave).collect();
    waves.sort_unstable();
    waves.dedup();
    let mut proofs = Proofs { expected: waves.len() as u64, ..Proofs::default() };
    let failed = store.load_notes("drill-failed").await?;
    for wave in waves {
        let subject = format!("wave-{wave}");
        if store.load_meta(&format!("drill:{wave}")).await?.as_deref() == Some("done") {
            proofs.proven += 1;
            continue;
        }
        let of_wave = |n: &&Note| triplets.iter().any(|t| t.wave == Some(wave) && t.triplet.to_string() == n.subject);
        match failed.iter().rfind(of_wave) {
            Some(n) => {
                let detail = format!("{}: {}", n.subject, n.detail);
                proofs.refuted.push(Note { at: n.at, subject, detail });
            }
            None => proofs.missing.push(subject),
        }
    }
    Ok(proofs)
}

/// Projects a month from what was counted while `watched_ms` passed.
fn cost(policy: &Policy, counters: &BTreeMap<String, i64>, triplets: &[TripletRow], watched_ms: i64) -> f64 {
    let month = |names: &[&str]| {
        let n: i64 = names.iter().map(|n| counters.get(*n).copied().unwrap_or(0)).sum();
        n as f64 * (30 * DAY_MS) as f64 / watched_ms as f64
    };
    let over = |n: f64, included: u64, per_million: f64| (n - included as f64).max(0.0) / 1e6 * per_million;
    let moving = || triplets.iter().filter(|t| t.moves());
    let connections: BTreeSet<i64> = moving().map(|t| t.connection).collect();
    let p = &policy.prices;
    let usd = (connections.len() as f64 * p.nango_per_connection_month).max(p.nango_minimum_per_month)
        + p.composio_base_per_month
        + moving().count() as f64 * p.composio_per_account_month
        + over(month(&["kv_reads"]), p.kv_reads_included, p.kv_reads_per_million)
        + over(month(&["deliveries:kv.source", "deliveries:kv.target"]), p.kv_writes_included, p.kv_writes_per_million)
        + over(month(&["kv_lists"]), p.kv_lists_included, p.kv_lists_per_million);
    (usd * 100.0).round() / 100.0
}

/// The 99th percentile, as the upper bound of its bucket, and the number of samples. Above the
/// last bound it is twice that bound: all that is known is that it is more.
pub fn lag_p99(counters: &BTreeMap<String, i64>) -> (Option<i64>, u64) {
    let last = LAG_BOUNDS_S.last().map_or(0, |s| 2 * s * 1000);
    let counts: Vec<(i64, u64)> = LAG_BOUNDS_S
        .iter()
        .map(|&s| (s * 1000, count(counters, &format!("lag:{s}"))))
        .chain([(last, count(counters, "lag:inf"))])
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
        let subject = t.triplet.to_string();
        proofs.expected += 1;
        if t.custody.stage >= Stage::Verified {
            proofs.proven += 1;
        } else if let Some(detail) = refuted(t) {
            proofs.refuted.push(Note { at: now, subject, detail });
        } else {
            proofs.missing.push(subject);
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
        assert_eq!(lag_p99(&counters(&[("lag:inf", 1)])), (Some(3_600_000), 1));
    }
}
