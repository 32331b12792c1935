//! One function per kind of criterion. Pure.

use std::collections::BTreeMap;

use super::clock::SoakClock;
use super::{
    Assessment, CRITERIA, CriteriaPolicy, Evidence, EvidenceSource, FINDINGS_MAX, Judged, LookTally, Note, Outage,
    Proofs, Verdict, Waiver, WaiverMark,
};
use crate::domain::api::Api;
use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp, format_duration_ms};

/// The systems that hold or serve tokens: an outage or a wrong clock of one of them counts.
pub(super) const CUSTODIANS: [Api; 3] = [Api::Nango, Api::Composio, Api::Cloudflare];

/// Judges every criterion, in the order in which they are reported.
pub fn judge(policy: &CriteriaPolicy, e: &Evidence, waivers: &[Waiver]) -> Assessment {
    let waivers: Vec<&Waiver> = waivers.iter().filter(|w| w.in_force(e.now)).collect();
    let j = Judge { policy, e, waivers };
    let (clock, leaned_on) = j.clock();
    let p = policy;
    let refreshes = u64::from(p.refresh_samples_min);
    let lags = u64::from(p.lag_samples_min);
    let smokes = u64::from(p.smoke_samples_min) * e.smoke_subjects.max(1);
    let criteria = vec![
        j.soak(&clock, leaned_on),
        j.none("invalid-grant", "dead grants", &e.dead_grants, e.refreshes, refreshes),
        j.none("missed-refresh", "instants", &e.missed_refreshes, e.rotations_due, refreshes),
        j.delivery_rate(),
        j.outage(),
        j.looked(
            "smoke-staleness",
            EvidenceSource::Smoke,
            &e.smoke,
            j.none("smoke-staleness", "stale tokens", &e.smoke_stale, e.smoke.samples, smokes),
        ),
        j.cost(&clock),
        j.looked("parity", EvidenceSource::Verify, &e.verify, j.parity()),
        j.lag(),
        j.none("dead-letters", "dead letters", &e.dead_letters, e.lag_samples, lags),
        j.foreign_writes(),
        j.none("ambiguous", "outcomes", &e.ambiguous, e.effects, 1),
        j.proofs("identity", "triplets", &e.identity),
        j.proofs("scopes", "triplets", &e.scopes),
        j.skew(),
        j.reverse(),
    ];
    debug_assert_eq!(criteria.len(), CRITERIA.len());
    Assessment { criteria: criteria.into_iter().map(|judged| j.waive(j.silence(judged))).collect(), clock }
}

pub(super) struct Judge<'a> {
    pub policy: &'a CriteriaPolicy,
    pub e: &'a Evidence,
    /// Those in force.
    pub waivers: Vec<&'a Waiver>,
}

/// Whose evidence a criterion lives on. None: on our own books, which are always there to be read.
fn sources_of(id: &str) -> &'static [EvidenceSource] {
    match id {
        "smoke-staleness" => &[EvidenceSource::Smoke],
        "parity" => &[EvidenceSource::Verify],
        "foreign-writes" => &[EvidenceSource::Scan, EvidenceSource::Audit],
        "ambiguous" | "identity" | "scopes" | "reverse-rehearsed" => &[],
        _ => &[EvidenceSource::Duties],
    }
}

pub(super) struct Sheet {
    pub id: &'static str,
    pub unit: &'static str,
    pub observed: Option<f64>,
    pub threshold: f64,
    pub expected: u64,
    pub samples: u64,
    pub since: Option<Timestamp>,
}

impl Sheet {
    pub fn say(self, verdict: Verdict, reason: impl Into<String>) -> Judged {
        Judged {
            id: self.id.to_owned(),
            verdict,
            waived: false,
            observed: self.observed,
            threshold: self.threshold,
            unit: self.unit.to_owned(),
            expected_samples: self.expected,
            samples: self.samples,
            since: self.since,
            reason: reason.into(),
            findings: Vec::new(),
            findings_total: 0,
            waivers: Vec::new(),
        }
    }
}

impl Judged {
    pub(super) fn with(mut self, findings: &[&Note], marks: Vec<WaiverMark>) -> Self {
        self.findings = findings.iter().take(FINDINGS_MAX).map(|n| (*n).clone()).collect();
        self.findings_total = findings.len() as u64;
        self.waivers = marks;
        self
    }
}

/// Names the first few subjects of a list of notes, with the first time.
fn named(notes: &[&Note]) -> String {
    let mut subjects: Vec<&str> = Vec::new();
    for note in notes {
        if !subjects.contains(&note.subject.as_str()) {
            subjects.push(&note.subject);
        }
    }
    let shown = subjects.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    let more = subjects.len().saturating_sub(3);
    let first = notes.iter().map(|n| n.at).min().unwrap_or_default();
    let detail = notes.first().map_or("", |n| n.detail.as_str());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{shown}{more}, first at {}: {detail}", first.to_minute())
}

impl<'a> Judge<'a> {
    fn since(&self, id: &str) -> Timestamp {
        let Evidence { now, began_at, first_refresh_at, .. } = self.e;
        self.policy.counts_from(id, *now, *began_at, *first_refresh_at)
    }

    pub(super) fn waivers_of(&self, id: &str) -> impl Iterator<Item = &&Waiver> {
        self.waivers.iter().filter(move |w| w.criterion == id)
    }

    /// The notes in the window, and what is still wrong since before it, oldest first: split into those
    /// that count, and marks of the waivers that take the others out.
    fn counted(&self, id: &str, notes: &'a [Note]) -> (Vec<&'a Note>, Vec<WaiverMark>) {
        let since = self.since(id);
        let mut counted: Vec<&Note> = notes.iter().filter(|n| n.at >= since).collect();
        let mut noted: BTreeMap<&str, usize> = BTreeMap::new();
        counted.iter().for_each(|n| *noted.entry(&n.subject).or_default() += 1);
        for note in self.e.standing.get(id).into_iter().flatten() {
            match noted.get_mut(note.subject.as_str()) {
                Some(left) if *left > 0 => *left -= 1,
                _ => counted.push(note),
            }
        }
        counted.sort_by_key(|n| n.at);
        self.uncovered(id, counted)
    }

    pub(super) fn uncovered<'n>(&self, id: &str, mut notes: Vec<&'n Note>) -> (Vec<&'n Note>, Vec<WaiverMark>) {
        let mut marks = Vec::new();
        for waiver in self.waivers_of(id).filter(|w| !w.is_whole()) {
            let before = notes.len();
            notes.retain(|n| !waiver.covers(&n.subject));
            if notes.len() < before {
                marks.push(waiver.mark((before - notes.len()) as u64));
            }
        }
        (notes, marks)
    }

    /// "At most so many of these", where `samples` occasions could have shown one.
    fn none(&self, id: &'static str, unit: &'static str, notes: &'a [Note], samples: u64, needed: u64) -> Judged {
        let max = self.policy.breaches_max(id);
        let (notes, marks) = self.counted(id, notes);
        let count = notes.len() as u64;
        let sheet = Sheet {
            id,
            unit,
            observed: Some(count as f64),
            threshold: max.into(),
            expected: needed,
            samples,
            since: Some(self.since(id)),
        };
        let judged = if count > max.into() {
            sheet.say(Verdict::Fail, named(&notes))
        } else if samples < needed {
            sheet.say(Verdict::Inconclusive, format!("{samples} of the {needed} observations that it needs"))
        } else {
            let s = if samples == 1 { "" } else { "s" };
            sheet.say(Verdict::Pass, format!("{count} in {samples} observation{s}"))
        };
        judged.with(&notes, marks)
    }

    /// Limits on looks that could not tell, and on looks without an answer, apart from each other.
    fn looked(&self, id: &'static str, source: EvidenceSource, tally: &LookTally, mut judged: Judged) -> Judged {
        if judged.verdict == Verdict::Fail {
            return judged;
        }
        debug_assert!(sources_of(id).contains(&source));
        let (errors, untold) = (tally.errors_in_a_row, tally.inconclusive_in_a_row);
        if errors > self.policy.errors_in_a_row_max.into() {
            judged.verdict = Verdict::Inconclusive;
            judged.reason = format!("the last {errors} looks of `{}` got no answer", source.name());
        } else if untold > self.policy.inconclusive_in_a_row_max.into() {
            judged.verdict = Verdict::Inconclusive;
            judged.reason = format!("the last {untold} looks of `{}` had nothing settled to compare", source.name());
        }
        judged
    }

    /// A source that is silent now can show nothing: what passed on it is not known any more.
    fn silence(&self, mut judged: Judged) -> Judged {
        let since = sources_of(&judged.id).iter().find_map(|source| Some((source, *self.e.silent.get(source)?)));
        if let Some((source, since)) = since
            && judged.verdict == Verdict::Pass
        {
            judged.verdict = Verdict::Inconclusive;
            judged.reason = format!("no evidence from `{}` since {}", source.name(), since.to_minute());
        }
        judged
    }

    /// Marks a criterion that does not pass and is waived as a whole.
    fn waive(&self, mut judged: Judged) -> Judged {
        if judged.verdict != Verdict::Pass {
            let marks: Vec<WaiverMark> =
                self.waivers_of(&judged.id).filter(|w| w.is_whole()).map(|w| w.mark(0)).collect();
            judged.waived = !marks.is_empty();
            judged.waivers.extend(marks);
        }
        judged
    }

    /// Scans see what stands in KV; what was overwritten between two of them shows in the audit trail
    /// alone. Without either nobody knows.
    fn foreign_writes(&self) -> Judged {
        let (e, p, id) = (self.e, self.policy, "foreign-writes");
        let scanned = self.none(id, "writes", &e.foreign_writes, e.scan.runs, p.scan_samples_min.into());
        let scanned = self.looked(id, EvidenceSource::Scan, &e.scan, scanned);
        let mut judged = self.looked(id, EvidenceSource::Audit, &e.audit, scanned);
        let (lost, lost_marks) = self.uncovered(id, e.audit_lost.iter().collect());
        if judged.verdict == Verdict::Pass && e.audit.runs < p.audit_samples_min.into() {
            judged.verdict = Verdict::Inconclusive;
            judged.reason = format!("the audit trail was read {} times of {}", e.audit.runs, p.audit_samples_min);
        } else if judged.verdict == Verdict::Pass && !lost.is_empty() {
            judged.verdict = Verdict::Inconclusive;
            judged.reason = format!("the audit trail lacks rows that it took: {}", named(&lost));
        }
        for mark in lost_marks {
            match judged.waivers.iter_mut().find(|known| known.id == mark.id) {
                Some(known) => known.covered += mark.covered,
                None => judged.waivers.push(mark),
            }
        }
        judged
    }

    fn delivery_rate(&self) -> Judged {
        let e = self.e;
        let (expected, arrived) = (e.rotations_expected, e.rotations_arrived.min(e.rotations_expected));
        let rate = (expected > 0).then(|| arrived as f64 / expected as f64);
        let needed = u64::from(self.policy.delivery_samples_min);
        let id = "delivery-rate";
        let sheet = Sheet {
            id,
            unit: "share",
            observed: rate,
            threshold: self.policy.delivery_rate_min,
            expected: needed,
            samples: expected,
            since: Some(self.since(id)),
        };
        let said = format!("{arrived} of {expected} scheduled rotations arrived in time");
        let missed = self.counted(id, &e.missed_rotations).0;
        match rate {
            // A share of a few says nothing: one miss in three is not 66 %.
            _ if expected < needed || expected == 0 => {
                sheet.say(Verdict::Inconclusive, format!("only {expected} of {needed} rotations were due so far"))
            }
            Some(rate) if rate < self.policy.delivery_rate_min => {
                let first = if missed.is_empty() { String::new() } else { format!("; missing: {}", named(&missed)) };
                sheet.say(Verdict::Fail, said + &first)
            }
            _ => sheet.say(Verdict::Pass, said),
        }
        .with(&missed, Vec::new())
    }

    pub(super) fn too_long(&self, outage: Outage) -> bool {
        outage.ms() > self.policy.outage_max_ms()
    }

    fn outage(&self) -> Judged {
        let id = "outage";
        let since = self.since(id);
        let mut outages: Vec<Outage> =
            self.e.outages.iter().filter(|o| CUSTODIANS.contains(&o.api) && o.until >= since).copied().collect();
        let mut marks = Vec::new();
        for waiver in self.waivers_of(id).filter(|w| !w.is_whole()) {
            let before = outages.len();
            outages.retain(|o| !waiver.covers(o.api.name()));
            if outages.len() < before {
                marks.push(waiver.mark((before - outages.len()) as u64));
            }
        }
        let longest = outages.iter().max_by_key(|o| (o.ms(), std::cmp::Reverse(o.from)));
        let samples = CUSTODIANS.iter().map(|api| self.e.api_calls.get(api).copied().unwrap_or(0)).min().unwrap_or(0);
        let needed = u64::from(self.policy.probe_samples_min);
        let sheet = Sheet {
            id,
            unit: "minutes",
            observed: Some(longest.map_or(0.0, |o| o.ms() as f64 / MINUTE_MS as f64)),
            threshold: self.policy.outage_max_minutes.into(),
            expected: needed,
            samples,
            since: Some(since),
        };
        let too_long: Vec<Note> = outages
            .iter()
            .filter(|o| self.too_long(**o))
            .map(|o| Note {
                at: o.from,
                subject: o.api.name().to_owned(),
                detail: format!("out of reach for {}", format_duration_ms(o.ms())),
            })
            .collect();
        let findings: Vec<&Note> = too_long.iter().collect();
        match longest {
            Some(o) if self.too_long(*o) => sheet.say(
                Verdict::Fail,
                format!("{} out of reach for {} from {}", o.api.name(), format_duration_ms(o.ms()), o.from.to_minute()),
            ),
            _ if samples < needed => {
                sheet.say(Verdict::Inconclusive, format!("a custodian was called only {samples} times of {needed}"))
            }
            Some(o) if o.ms() > 0 => {
                sheet.say(Verdict::Pass, format!("longest: {} for {}", o.api.name(), format_duration_ms(o.ms())))
            }
            _ => sheet.say(Verdict::Pass, "none seen"),
        }
        .with(&findings, marks)
    }

    fn cost(&self, clock: &SoakClock) -> Judged {
        let observed = self.e.cost_usd_month;
        let sheet = Sheet {
            id: "cost",
            unit: "USD/month",
            observed,
            threshold: self.policy.cost_usd_max,
            expected: 1,
            samples: u64::from(observed.is_some()),
            since: clock.first_refresh_at,
        };
        match observed {
            None => {
                let after = format_duration_ms(self.policy.cost_after.0);
                sheet
                    .say(Verdict::Inconclusive, format!("less than {after} was watched, too little to project a month"))
            }
            Some(usd) if usd > self.policy.cost_usd_max => {
                sheet.say(Verdict::Fail, "projected from the requests counted")
            }
            Some(_) => sheet.say(Verdict::Pass, "projected from the requests counted"),
        }
    }

    fn parity(&self) -> Judged {
        let id = "parity";
        let t = &self.e.verify;
        let (clean, needed) = (t.clean_in_a_row, u64::from(self.policy.parity_clean_runs));
        let (findings, marks) = self.counted(id, &self.e.parity_findings);
        // Differences that are all covered by a waiver leave nothing that speaks against the runs.
        let waived = findings.is_empty() && !marks.is_empty();
        let sheet = Sheet {
            id,
            unit: "clean runs",
            observed: Some(clean as f64),
            threshold: needed as f64,
            expected: needed,
            samples: t.runs,
            since: Some(self.since(id)),
        };
        let judged = if t.runs < needed {
            sheet.say(Verdict::Inconclusive, format!("{} of {needed} runs so far", t.runs))
        } else if clean < needed && waived {
            sheet.say(
                Verdict::Pass,
                format!("of {} runs {clean} in a row were clean; all differences are waived", t.runs),
            )
        } else if clean < needed {
            let found = if findings.is_empty() { String::new() } else { format!("; {}", named(&findings)) };
            let last = match clean {
                0 => "the last run was not clean".to_owned(),
                1 => "only the last run was clean".to_owned(),
                n => format!("only the last {n} runs were clean"),
            };
            sheet.say(Verdict::Fail, format!("{last}{found}"))
        } else {
            sheet.say(Verdict::Pass, format!("the last {clean} of {} runs were clean", t.runs))
        };
        judged.with(&findings, marks)
    }

    fn lag(&self) -> Judged {
        let id = "mirror-lag";
        let (e, needed) = (self.e, u64::from(self.policy.lag_samples_min));
        let observed = e.lag_p99_ms.map(|ms| ms as f64 / SECOND_MS as f64);
        let sheet = Sheet {
            id,
            unit: "s (p99)",
            observed,
            threshold: self.policy.mirror_lag_p99_s.into(),
            expected: needed,
            samples: e.lag_samples,
            since: Some(self.since(id)),
        };
        let waiting: Vec<&Note> = e.standing.get(id).into_iter().flatten().collect();
        let over = format!("over {} deliveries", e.lag_samples);
        let judged = match observed {
            _ if e.lag_samples < needed => {
                sheet.say(Verdict::Inconclusive, format!("only {} of {needed} deliveries", e.lag_samples))
            }
            Some(s) if s > f64::from(self.policy.mirror_lag_p99_s) => sheet.say(Verdict::Fail, over),
            // A percentile over thousands would hide the one that never arrives.
            Some(_) if !waiting.is_empty() => sheet
                .say(Verdict::Inconclusive, format!("{over}, and {} more late: {}", waiting.len(), named(&waiting))),
            Some(_) => sheet.say(Verdict::Pass, over),
            None => sheet.say(Verdict::Inconclusive, "no delivery was timed"),
        };
        judged.with(&waiting, Vec::new())
    }

    fn proofs(&self, id: &'static str, unit: &'static str, proofs: &Proofs) -> Judged {
        let (refuted, mut marks) = self.uncovered(id, proofs.refuted.iter().collect());
        let mut expected = proofs.expected - (proofs.refuted.len() - refuted.len()) as u64;
        // A subject without proof that is waived is not waited for.
        for waiver in self.waivers_of(id).filter(|w| !w.is_whole()) {
            let covered = proofs.missing.iter().filter(|subject| waiver.covers(subject)).count() as u64;
            if covered > 0 {
                expected = expected.saturating_sub(covered);
                marks.push(waiver.mark(covered));
            }
        }
        let sheet = Sheet {
            id,
            unit,
            observed: Some(proofs.proven as f64),
            threshold: expected as f64,
            expected,
            samples: proofs.proven + refuted.len() as u64,
            since: None,
        };
        let judged = if !refuted.is_empty() {
            sheet.say(Verdict::Fail, named(&refuted))
        } else if proofs.proven < expected || proofs.expected == 0 {
            let first = proofs.missing.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            let more = proofs.missing.len().saturating_sub(3);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let missing = if first.is_empty() { String::new() } else { format!("; missing: {first}{more}") };
            sheet.say(Verdict::Inconclusive, format!("{} of {expected} {unit} proven{missing}", proofs.proven))
        } else {
            sheet.say(Verdict::Pass, format!("all {expected} {unit} proven"))
        };
        judged.with(&refuted, marks)
    }

    fn reverse(&self) -> Judged {
        let judged = self.proofs("reverse-rehearsed", "waves", &self.e.reverse);
        if self.policy.reverse_rehearsed {
            return judged;
        }
        Judged { verdict: Verdict::Pass, reason: "the policy does not ask for it".to_owned(), ..judged }
    }

    fn skew(&self) -> Judged {
        let id = "clock-skew";
        let mut marks = Vec::new();
        let mut read = self.e.skew.clone();
        for waiver in self.waivers_of(id).filter(|w| !w.is_whole()) {
            let before = read.len();
            read.retain(|api, _| !waiver.covers(api.name()));
            if read.len() < before {
                marks.push(waiver.mark((before - read.len()) as u64));
            }
        }
        let waived = |api: Api| marks.iter().any(|m| m.scope == api.name());
        let worst = read.iter().map(|(api, (ms, _))| (ms.abs(), *api)).max();
        let of = |api: &Api| read.get(api).map_or(0, |r| r.1);
        let samples = CUSTODIANS.iter().filter(|api| !waived(**api)).map(of).min().unwrap_or(0);
        let needed = if CUSTODIANS.iter().all(|api| waived(*api)) { 0 } else { self.policy.skew_samples_min.into() };
        let sheet = Sheet {
            id,
            unit: "s",
            observed: worst.map(|(ms, _)| ms as f64 / SECOND_MS as f64),
            threshold: self.policy.clock_skew_max_s.into(),
            expected: needed,
            samples,
            since: Some(self.since(id)),
        };
        let limit = i64::from(self.policy.clock_skew_max_s) * SECOND_MS;
        match worst {
            Some((ms, api)) if ms > limit => {
                sheet.say(Verdict::Fail, format!("{} differs by {}", api.name(), format_duration_ms(ms)))
            }
            _ if samples < needed => {
                sheet.say(Verdict::Inconclusive, format!("a custodian showed its clock {samples} times of {needed}"))
            }
            _ => sheet.say(Verdict::Pass, format!("over at least {samples} readings of each custodian")),
        }
        .with(&[], marks)
    }
}
