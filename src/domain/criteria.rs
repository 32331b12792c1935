//! The exit criteria: what each one reads, what it compares, and what it says when it cannot tell.
//!
//! Missing evidence is never a pass, and it is not a fail either.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::api::Api;
use super::duration::Millis;
use super::time::{DAY_MS, MINUTE_MS, SECOND_MS, Timestamp, format_duration_ms};

/// What a criterion, or the whole gate, concludes. Ordered from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Inconclusive,
    Fail,
}

impl Verdict {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Inconclusive => "inconclusive",
            Self::Fail => "fail",
        }
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

/// Thresholds of the exit criteria.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CriteriaPolicy {
    /// `soak-duration`: days of evidence since the first mirrored refresh.
    pub soak_days: u32,
    /// Replaces `soak_days` where a rehearsal in real time has less than a day. Not for policies.
    #[serde(skip)]
    pub soak_shortened: Option<Millis>,
    /// `invalid-grant`: dead grants allowed; lost races are not counted.
    pub invalid_grant_max: u32,
    /// `missed-refresh`: instants at which a served token was past its expiry.
    pub missed_refresh_max: u32,
    /// `delivery-rate`: arrived over expected events, 0 to 1.
    pub delivery_rate_min: f64,
    /// What `delivery-rate` divides by.
    pub delivery_denominator: Denominator,
    /// `outage`: longest minutes that one custodian may be out of reach.
    pub outage_max_minutes: u32,
    /// `smoke-staleness`: stale tokens allowed in smoke tests.
    pub smoke_stale_max: u32,
    /// `cost`: USD a month.
    pub cost_usd_max: f64,
    /// `parity`: how many of the last verifications must be clean.
    pub parity_clean_runs: u32,
    /// `mirror-lag`: 99th percentile from observing a token to its last sink, seconds.
    pub mirror_lag_p99_s: u32,
    /// `dead-letters`
    pub dead_letters_max: u32,
    /// `foreign-writes`
    pub foreign_writes_max: u32,
    /// `ambiguous`
    pub ambiguous_max: u32,
    /// `clock-skew`: seconds against every API's `Date`.
    pub clock_skew_max_s: u32,
    /// `reverse-rehearsed`: each wave must have been reversed once.
    pub reverse_rehearsed: bool,
    /// Fewest expected events before `delivery-rate` is judged.
    pub delivery_samples_min: u32,
    /// Fewest deliveries before `mirror-lag` is judged.
    pub lag_samples_min: u32,
    /// Fewest smoke tests of a triplet before `smoke-staleness` is judged.
    pub smoke_samples_min: u32,
    /// How often each custodian is probed; `outage` cannot see anything shorter.
    pub probe_every: Millis,
    /// How often both sides are compared.
    pub verify_every: Millis,
    /// How often each triplet is smoke-tested through the gateway.
    pub smoke_every: Millis,
    /// Longest silence of our own evidence before the soak clock pauses.
    pub evidence_gap_max: Millis,
}

impl Default for CriteriaPolicy {
    fn default() -> Self {
        Self {
            soak_days: 30,
            soak_shortened: None,
            invalid_grant_max: 0,
            missed_refresh_max: 0,
            delivery_rate_min: 0.99,
            delivery_denominator: Denominator::RotationSchedule,
            outage_max_minutes: 15,
            smoke_stale_max: 0,
            cost_usd_max: 200.0,
            parity_clean_runs: 3,
            mirror_lag_p99_s: 120,
            dead_letters_max: 0,
            foreign_writes_max: 0,
            ambiguous_max: 0,
            clock_skew_max_s: 60,
            reverse_rehearsed: true,
            delivery_samples_min: 100,
            lag_samples_min: 100,
            smoke_samples_min: 24,
            probe_every: Millis(5 * MINUTE_MS),
            verify_every: Millis(DAY_MS / 4),
            smoke_every: Millis(DAY_MS / 24),
            evidence_gap_max: Millis(15 * MINUTE_MS),
        }
    }
}

impl CriteriaPolicy {
    /// How long the soak must last, ms.
    pub fn soak_ms(&self) -> i64 {
        self.soak_shortened.map_or(i64::from(self.soak_days) * DAY_MS, |soak| soak.0)
    }
}

/// What a delivery rate is a share of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Denominator {
    /// The refreshes that must have happened, from token lifetimes.
    RotationSchedule,
    /// The webhooks that arrived. Refused: Nango sends none for a successful refresh.
    Webhooks,
}

/// One thing that happened to one subject (a triplet, a connection, an API).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Note {
    pub at: Timestamp,
    pub subject: String,
    pub detail: String,
}

/// Proof per triplet: how many must be proven, how many are, and what spoke against the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proofs {
    pub expected: u64,
    pub proven: u64,
    pub refuted: Vec<Note>,
}

/// Fewest observations that can carry a verdict where the policy has no key for it.
const SAMPLES_MIN: u64 = 3;

/// What was observed, as plain data. `None` and zero samples mean: not observed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Time since the first mirrored refresh minus evidence gaps, ms; `None` before the first.
    pub soaked_ms: Option<i64>,
    /// Times without evidence, such as when nothing of ours ran.
    pub gap_ms: i64,
    /// Refreshes attempted, each able to show a dead grant.
    pub refreshes: u64,
    pub dead_grants: Vec<Note>,
    pub missed_refreshes: Vec<Note>,
    /// Rotations that the schedule asked for, and those that arrived before the old token ended.
    pub rotations_expected: u64,
    pub rotations_arrived: u64,
    /// Longest outage per API, ms, with the time at which it began.
    pub outages: BTreeMap<Api, (i64, Timestamp)>,
    /// Calls that could have shown an outage, per API.
    pub api_calls: BTreeMap<Api, u64>,
    pub smoke_tests: u64,
    /// Triplets that are smoke-tested.
    pub smoke_subjects: u64,
    pub smoke_stale: Vec<Note>,
    pub cost_usd_month: Option<f64>,
    /// Clean verifications in a row up to the last, and all there were.
    pub parity_clean: u64,
    pub parity_runs: u64,
    pub parity_findings: Vec<Note>,
    pub lag_p99_ms: Option<i64>,
    pub lag_samples: u64,
    pub dead_letters: Vec<Note>,
    /// Scans that could have shown a foreign write.
    pub scans: u64,
    pub foreign_writes: Vec<Note>,
    pub ambiguous: Vec<Note>,
    pub identity: Proofs,
    pub scopes: Proofs,
    /// Largest difference per API in either direction, ms, with the number of readings.
    pub skew: BTreeMap<Api, (i64, u64)>,
    /// Waves in the plan and waves whose reverse was exercised.
    pub reverse: Proofs,
}

/// The judgement of one criterion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    pub id: String,
    pub verdict: Verdict,
    pub observed: Option<f64>,
    pub threshold: f64,
    pub unit: String,
    pub expected_samples: u64,
    pub samples: u64,
    pub reason: String,
}

/// Judges every criterion, in the order in which they are reported.
pub fn judge(policy: &CriteriaPolicy, e: &Evidence) -> Vec<Judged> {
    let judged = vec![
        judge_soak(policy, e),
        judge_none("invalid-grant", "dead grants", &e.dead_grants, policy.invalid_grant_max.into(), e.refreshes, 1),
        judge_none(
            "missed-refresh",
            "instants",
            &e.missed_refreshes,
            policy.missed_refresh_max.into(),
            e.rotations_expected,
            1,
        ),
        judge_delivery_rate(policy, e),
        judge_outage(policy, e),
        judge_none(
            "smoke-staleness",
            "stale tokens",
            &e.smoke_stale,
            policy.smoke_stale_max.into(),
            e.smoke_tests,
            u64::from(policy.smoke_samples_min) * e.smoke_subjects.max(1),
        ),
        judge_cost(policy, e),
        judge_parity(policy, e),
        judge_lag(policy, e),
        judge_none(
            "dead-letters",
            "dead letters",
            &e.dead_letters,
            policy.dead_letters_max.into(),
            e.lag_samples,
            SAMPLES_MIN,
        ),
        judge_none(
            "foreign-writes",
            "writes",
            &e.foreign_writes,
            policy.foreign_writes_max.into(),
            e.scans,
            SAMPLES_MIN,
        ),
        judge_none("ambiguous", "outcomes", &e.ambiguous, policy.ambiguous_max.into(), 1, 1),
        judge_proofs("identity", "triplets", &e.identity),
        judge_proofs("scopes", "triplets", &e.scopes),
        judge_skew(policy, e),
        judge_reverse(policy, e),
    ];
    debug_assert_eq!(judged.len(), CRITERIA.len());
    judged
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

/// The worst verdict decides; nothing judged is inconclusive.
pub fn overall(judged: &[Judged]) -> Verdict {
    judged.iter().map(|j| j.verdict).max().unwrap_or(Verdict::Inconclusive)
}

struct Sheet {
    id: &'static str,
    unit: &'static str,
    observed: Option<f64>,
    threshold: f64,
    expected: u64,
    samples: u64,
}

impl Sheet {
    fn say(self, verdict: Verdict, reason: impl Into<String>) -> Judged {
        Judged {
            id: self.id.to_owned(),
            verdict,
            observed: self.observed,
            threshold: self.threshold,
            unit: self.unit.to_owned(),
            expected_samples: self.expected,
            samples: self.samples,
            reason: reason.into(),
        }
    }
}

/// Names the first few subjects of a list of notes, with the first time.
fn named(notes: &[Note]) -> String {
    let mut subjects: Vec<&str> = notes.iter().map(|n| n.subject.as_str()).collect();
    subjects.dedup();
    let shown = subjects.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    let more = subjects.len().saturating_sub(3);
    let first = notes.iter().map(|n| n.at).min().unwrap_or_default();
    let detail = notes.first().map_or("", |n| n.detail.as_str());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{shown}{more}, first at {}: {detail}", first.to_minute())
}

/// "At most so many of these", where `samples` occasions could have shown one.
fn judge_none(id: &'static str, unit: &'static str, notes: &[Note], max: u64, samples: u64, needed: u64) -> Judged {
    let count = notes.len() as u64;
    let sheet = Sheet { id, unit, observed: Some(count as f64), threshold: max as f64, expected: needed, samples };
    if count > max {
        sheet.say(Verdict::Fail, named(notes))
    } else if samples < needed {
        sheet.say(Verdict::Inconclusive, format!("{samples} of the {needed} observations that it needs"))
    } else {
        let s = if samples == 1 { "" } else { "s" };
        sheet.say(Verdict::Pass, format!("{count} in {samples} observation{s}"))
    }
}

fn judge_soak(policy: &CriteriaPolicy, e: &Evidence) -> Judged {
    let observed = e.soaked_ms.map(|ms| ms as f64 / DAY_MS as f64);
    let sheet = Sheet {
        id: "soak-duration",
        unit: "days",
        observed,
        threshold: policy.soak_ms() as f64 / DAY_MS as f64,
        expected: 1,
        samples: u64::from(observed.is_some()),
    };
    match e.soaked_ms {
        None => sheet.say(Verdict::Inconclusive, "no refresh has been mirrored yet"),
        Some(ms) if ms < policy.soak_ms() => {
            let left = policy.soak_ms() - ms;
            sheet.say(Verdict::Inconclusive, format!("{} to go", format_duration_ms(left)))
        }
        Some(_) if e.gap_ms > 0 => {
            sheet.say(Verdict::Pass, format!("{} without evidence not counted", format_duration_ms(e.gap_ms)))
        }
        Some(_) => sheet.say(Verdict::Pass, "no gaps in the evidence"),
    }
}

fn judge_delivery_rate(policy: &CriteriaPolicy, e: &Evidence) -> Judged {
    let (expected, arrived) = (e.rotations_expected, e.rotations_arrived);
    let rate = (expected > 0).then(|| arrived as f64 / expected as f64);
    let sheet = Sheet {
        id: "delivery-rate",
        unit: "share",
        observed: rate,
        threshold: policy.delivery_rate_min,
        expected: policy.delivery_samples_min.into(),
        samples: expected,
    };
    match rate {
        Some(rate) if rate < policy.delivery_rate_min => {
            sheet.say(Verdict::Fail, format!("{arrived} of {expected} scheduled rotations arrived in time"))
        }
        Some(_) if expected >= u64::from(policy.delivery_samples_min) => {
            sheet.say(Verdict::Pass, format!("{arrived} of {expected} scheduled rotations arrived in time"))
        }
        _ => sheet.say(Verdict::Inconclusive, format!("only {expected} rotations were due so far")),
    }
}

fn judge_outage(policy: &CriteriaPolicy, e: &Evidence) -> Judged {
    let custodians = [Api::Nango, Api::Composio, Api::Cloudflare];
    let longest = custodians.iter().filter_map(|api| e.outages.get(api).map(|o| (o.0, o.1, *api))).max();
    let samples = custodians.iter().map(|api| e.api_calls.get(api).copied().unwrap_or(0)).min().unwrap_or(0);
    let minutes = longest.map_or(0.0, |(ms, ..)| ms as f64 / MINUTE_MS as f64);
    let sheet = Sheet {
        id: "outage",
        unit: "minutes",
        observed: Some(minutes),
        threshold: policy.outage_max_minutes.into(),
        expected: SAMPLES_MIN,
        samples,
    };
    match longest {
        Some((ms, from, api)) if minutes > f64::from(policy.outage_max_minutes) => sheet.say(
            Verdict::Fail,
            format!("{} out of reach for {} from {}", api.name(), format_duration_ms(ms), from.to_minute()),
        ),
        _ if samples < SAMPLES_MIN => sheet.say(Verdict::Inconclusive, "a custodian was hardly called"),
        Some((ms, _, api)) if ms > 0 => {
            sheet.say(Verdict::Pass, format!("longest: {} for {}", api.name(), format_duration_ms(ms)))
        }
        _ => sheet.say(Verdict::Pass, "none seen"),
    }
}

fn judge_cost(policy: &CriteriaPolicy, e: &Evidence) -> Judged {
    let sheet = Sheet {
        id: "cost",
        unit: "USD/month",
        observed: e.cost_usd_month,
        threshold: policy.cost_usd_max,
        expected: 1,
        samples: u64::from(e.cost_usd_month.is_some()),
    };
    match e.cost_usd_month {
        None => sheet.say(Verdict::Inconclusive, "nothing was counted yet"),
        Some(usd) if usd > policy.cost_usd_max => sheet.say(Verdict::Fail, "projected from the requests counted"),
        Some(_) => sheet.say(Verdict::Pass, "projected from the requests counted"),
    }
}

fn judge_parity(policy: &CriteriaPolicy, e: &Evidence) -> Judged {
    let sheet = Sheet {
        id: "parity",
        unit: "clean runs",
        observed: Some(e.parity_clean as f64),
        threshold: policy.parity_clean_runs.into(),
        expected: policy.parity_clean_runs.into(),
        samples: e.parity_runs,
    };
    if e.parity_runs < policy.parity_clean_runs.into() {
        sheet.say(Verdict::Inconclusive, format!("{} of {} runs so far", e.parity_runs, policy.parity_clean_runs))
    } else if e.parity_clean < policy.parity_clean_runs.into() {
        sheet.say(Verdict::Fail, named(&e.parity_findings))
    } else {
        sheet.say(Verdict::Pass, format!("the last {} of {} runs were clean", e.parity_clean, e.parity_runs))
    }
}

fn judge_lag(policy: &CriteriaPolicy, e: &Evidence) -> Judged {
    let observed = e.lag_p99_ms.map(|ms| ms as f64 / SECOND_MS as f64);
    let sheet = Sheet {
        id: "mirror-lag",
        unit: "s (p99)",
        observed,
        threshold: policy.mirror_lag_p99_s.into(),
        expected: policy.lag_samples_min.into(),
        samples: e.lag_samples,
    };
    match observed {
        Some(s) if s > f64::from(policy.mirror_lag_p99_s) => {
            sheet.say(Verdict::Fail, format!("over {} deliveries", e.lag_samples))
        }
        Some(_) if e.lag_samples >= u64::from(policy.lag_samples_min) => {
            sheet.say(Verdict::Pass, format!("over {} deliveries", e.lag_samples))
        }
        _ => sheet.say(Verdict::Inconclusive, format!("only {} deliveries", e.lag_samples)),
    }
}

fn judge_proofs(id: &'static str, unit: &'static str, proofs: &Proofs) -> Judged {
    let sheet = Sheet {
        id,
        unit,
        observed: Some(proofs.proven as f64),
        threshold: proofs.expected as f64,
        expected: proofs.expected,
        samples: proofs.proven + proofs.refuted.len() as u64,
    };
    if !proofs.refuted.is_empty() {
        sheet.say(Verdict::Fail, named(&proofs.refuted))
    } else if proofs.proven < proofs.expected || proofs.expected == 0 {
        sheet.say(Verdict::Inconclusive, format!("{} of {} {unit} proven", proofs.proven, proofs.expected))
    } else {
        sheet.say(Verdict::Pass, format!("all {} {unit} proven", proofs.expected))
    }
}

fn judge_reverse(policy: &CriteriaPolicy, e: &Evidence) -> Judged {
    let judged = judge_proofs("reverse-rehearsed", "waves", &e.reverse);
    if policy.reverse_rehearsed {
        return judged;
    }
    Judged { verdict: Verdict::Pass, reason: "the policy does not ask for it".to_owned(), ..judged }
}

fn judge_skew(policy: &CriteriaPolicy, e: &Evidence) -> Judged {
    let worst = e.skew.iter().map(|(api, (ms, _))| (ms.abs(), *api)).max();
    let samples = e.skew.values().map(|(_, n)| n).sum();
    let sheet = Sheet {
        id: "clock-skew",
        unit: "s",
        observed: worst.map(|(ms, _)| ms as f64 / SECOND_MS as f64),
        threshold: policy.clock_skew_max_s.into(),
        expected: SAMPLES_MIN,
        samples,
    };
    match worst {
        Some((ms, api)) if ms as f64 > f64::from(policy.clock_skew_max_s) * SECOND_MS as f64 => {
            sheet.say(Verdict::Fail, format!("{} differs by {}", api.name(), format_duration_ms(ms)))
        }
        Some(_) if samples >= SAMPLES_MIN => sheet.say(Verdict::Pass, format!("over {samples} readings")),
        _ => sheet.say(Verdict::Inconclusive, "no API showed its clock yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        Note { at: Timestamp::from_secs(0), subject: "kahuna:gong:default".into(), detail: "planted".into() }
    }

    /// Evidence under which everything passes.
    fn healthy() -> Evidence {
        let proofs = Proofs { expected: 2, proven: 2, refuted: vec![] };
        Evidence {
            soaked_ms: Some(30 * DAY_MS),
            refreshes: 100,
            rotations_expected: 100,
            rotations_arrived: 100,
            api_calls: [(Api::Nango, 9), (Api::Composio, 9), (Api::Cloudflare, 9)].into(),
            smoke_tests: 48,
            smoke_subjects: 2,
            cost_usd_month: Some(60.0),
            parity_clean: 3,
            parity_runs: 5,
            lag_p99_ms: Some(900),
            lag_samples: 100,
            scans: 9,
            identity: proofs.clone(),
            scopes: proofs.clone(),
            reverse: proofs,
            skew: [(Api::Nango, (400, 9))].into(),
            ..Evidence::default()
        }
    }

    fn verdict_of(id: &str, evidence: &Evidence) -> Verdict {
        judge(&CriteriaPolicy::default(), evidence).into_iter().find(|j| j.id == id).unwrap().verdict
    }

    #[test]
    fn ids_are_reported_in_their_published_order() {
        let ids: Vec<String> = judge(&CriteriaPolicy::default(), &healthy()).into_iter().map(|j| j.id).collect();
        assert_eq!(ids, CRITERIA);
    }

    #[test]
    fn healthy_evidence_passes_and_no_evidence_never_does() {
        let judged = judge(&CriteriaPolicy::default(), &healthy());
        assert!(judged.iter().all(|j| j.verdict == Verdict::Pass), "{judged:#?}");
        for j in judge(&CriteriaPolicy::default(), &Evidence::default()) {
            // Unknown outcomes come from our own journal, which is always there to be read.
            let expected = if j.id == "ambiguous" { Verdict::Pass } else { Verdict::Inconclusive };
            assert_eq!(j.verdict, expected, "{j:?}");
        }
        assert_eq!(overall(&[]), Verdict::Inconclusive);
    }

    /// Each breach, alone, fails its own criterion and names the triplet where there is one.
    #[test]
    fn each_breach_fails_its_own_criterion() {
        type Breach = fn(&mut Evidence);
        let breaches: [(&str, Breach); 15] = [
            ("invalid-grant", |e| e.dead_grants.push(note())),
            ("missed-refresh", |e| e.missed_refreshes.push(note())),
            ("delivery-rate", |e| e.rotations_arrived = 98),
            ("outage", |e| e.outages = [(Api::Nango, (15 * MINUTE_MS + 1, Timestamp::from_secs(0)))].into()),
            ("smoke-staleness", |e| e.smoke_stale.push(note())),
            ("cost", |e| e.cost_usd_month = Some(200.01)),
            ("parity", |e| e.parity_clean = 2),
            ("mirror-lag", |e| e.lag_p99_ms = Some(120_001)),
            ("dead-letters", |e| e.dead_letters.push(note())),
            ("foreign-writes", |e| e.foreign_writes.push(note())),
            ("ambiguous", |e| e.ambiguous.push(note())),
            ("identity", |e| e.identity.refuted.push(note())),
            ("scopes", |e| e.scopes.refuted.push(note())),
            ("clock-skew", |e| e.skew = [(Api::Composio, (-60_001, 9))].into()),
            ("reverse-rehearsed", |e| e.reverse.refuted.push(note())),
        ];
        for (id, breach) in breaches {
            let mut evidence = healthy();
            breach(&mut evidence);
            for j in judge(&CriteriaPolicy::default(), &evidence) {
                assert_eq!(j.verdict == Verdict::Fail, j.id == id, "{id}: {j:?}");
            }
        }
    }

    #[test]
    fn thresholds_are_inclusive() {
        let mut e = healthy();
        e.rotations_arrived = 99;
        e.outages.insert(Api::Nango, (15 * MINUTE_MS, Timestamp::from_secs(0)));
        e.cost_usd_month = Some(200.0);
        e.lag_p99_ms = Some(120_000);
        e.skew.insert(Api::Nango, (60_000, 9));
        assert_eq!(overall(&judge(&CriteriaPolicy::default(), &e)), Verdict::Pass);
        e.soaked_ms = Some(30 * DAY_MS - 1);
        assert_eq!(verdict_of("soak-duration", &e), Verdict::Inconclusive);
    }
}
