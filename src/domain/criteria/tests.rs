//! What each criterion says to each kind of evidence.

use super::*;
use crate::domain::api::Api;
use crate::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS};

const START: Timestamp = Timestamp::from_secs(1_778_000_000);

fn now() -> Timestamp {
    START.plus_ms(30 * DAY_MS)
}

fn note(subject: &str) -> Note {
    Note { at: START.plus_ms(DAY_MS), subject: subject.into(), detail: "planted".into() }
}

fn tally(runs: u64, samples: u64) -> LookTally {
    LookTally { runs, samples, clean_in_a_row: runs, ..LookTally::default() }
}

/// Thresholds of one where the default is none, so that "at" and "just over" differ.
fn policy() -> CriteriaPolicy {
    CriteriaPolicy {
        invalid_grant_max: 1,
        missed_refresh_max: 1,
        smoke_stale_max: 1,
        dead_letters_max: 1,
        foreign_writes_max: 1,
        ambiguous_max: 1,
        ..CriteriaPolicy::default()
    }
}

/// Evidence under which everything passes.
fn healthy() -> Evidence {
    let proofs = Proofs { expected: 2, proven: 2, refuted: vec![], missing: vec![] };
    let custodians = [Api::Nango, Api::Composio, Api::Cloudflare];
    Evidence {
        now: now(),
        first_refresh_at: Some(START),
        refreshes: 100,
        rotations_due: 100,
        rotations_expected: 100,
        rotations_arrived: 100,
        api_calls: custodians.map(|api| (api, 9)).into(),
        smoke: tally(24, 48),
        smoke_subjects: 2,
        cost_usd_month: Some(60.0),
        verify: tally(5, 10),
        lag_p99_ms: Some(900),
        lag_samples: 100,
        scan: tally(9, 18),
        audit: tally(9, 90),
        effects: 12,
        identity: proofs.clone(),
        scopes: proofs.clone(),
        reverse: proofs,
        skew: custodians.map(|api| (api, (400, 9))).into(),
        ..Evidence::default()
    }
}

fn outage(ms: i64) -> Vec<Outage> {
    vec![Outage { api: Api::Nango, from: START, until: START.plus_ms(ms) }]
}

fn proofs(proven: u64, refuted: &[&str], missing: &[&str]) -> Proofs {
    let missing = missing.iter().map(|s| (*s).to_owned()).collect();
    Proofs { expected: 2, proven, refuted: refuted.iter().map(|s| note(s)).collect(), missing }
}

type Change = fn(&mut Evidence);

/// One criterion: how evidence gets too few samples, to its threshold, and just past it.
struct Row {
    id: &'static str,
    few: Change,
    at: Change,
    over: Change,
    /// What it says just past its threshold.
    over_says: Verdict,
    /// Whether it lives on a stream of evidence, which can have a gap.
    streams: bool,
}

fn row(id: &'static str, few: Change, at: Change, over: Change) -> Row {
    Row { id, few, at, over, over_says: Verdict::Fail, streams: true }
}

fn books(row: Row) -> Row {
    Row { streams: false, ..row }
}

const A: &str = "kahuna:slack:default";
const B: &str = "kahuna:gong:default";

fn table() -> Vec<Row> {
    let soak = row(
        "soak-duration",
        |e| e.first_refresh_at = None,
        |e| e.first_refresh_at = Some(START),
        |e| e.first_refresh_at = Some(START.plus_ms(1)),
    );
    vec![
        // Short of 30 days is not a breach: there is nothing to do but wait.
        Row { over_says: Verdict::Inconclusive, ..soak },
        row(
            "invalid-grant",
            |e| e.refreshes = 0,
            |e| e.dead_grants = vec![note(A)],
            |e| e.dead_grants = vec![note(A), note(B)],
        ),
        row(
            "missed-refresh",
            |e| e.rotations_due = 0,
            |e| e.missed_refreshes = vec![note(A)],
            |e| e.missed_refreshes = vec![note(A), note(B)],
        ),
        row(
            "delivery-rate",
            |e| (e.rotations_expected, e.rotations_arrived) = (99, 50),
            |e| e.rotations_arrived = 99,
            |e| e.rotations_arrived = 98,
        ),
        row(
            "outage",
            |e| {
                e.api_calls.insert(Api::Composio, 2);
            },
            |e| e.outages = outage(15 * MINUTE_MS),
            |e| e.outages = outage(15 * MINUTE_MS + 1),
        ),
        row(
            "smoke-staleness",
            |e| e.smoke = tally(24, 47),
            |e| e.smoke_stale = vec![note(A)],
            |e| e.smoke_stale = vec![note(A), note(B)],
        ),
        row(
            "cost",
            |e| e.cost_usd_month = None,
            |e| e.cost_usd_month = Some(200.0),
            |e| e.cost_usd_month = Some(200.01),
        ),
        row(
            "parity",
            |e| e.verify = tally(2, 10),
            |e| e.verify.clean_in_a_row = 3,
            |e| {
                e.verify.clean_in_a_row = 2;
                e.parity_findings = vec![note(A)];
            },
        ),
        row(
            "mirror-lag",
            |e| (e.lag_samples, e.lag_p99_ms) = (99, Some(999_000)),
            |e| e.lag_p99_ms = Some(120_000),
            |e| e.lag_p99_ms = Some(120_001),
        ),
        row(
            "dead-letters",
            |e| e.lag_samples = 99,
            |e| e.dead_letters = vec![note(A)],
            |e| e.dead_letters = vec![note(A), note(B)],
        ),
        row(
            "foreign-writes",
            |e| e.scan = tally(2, 4),
            |e| e.foreign_writes = vec![note(A)],
            |e| e.foreign_writes = vec![note(A), note(B)],
        ),
        books(row(
            "ambiguous",
            |e| e.effects = 0,
            |e| e.ambiguous = vec![note(A)],
            |e| e.ambiguous = vec![note(A), note(B)],
        )),
        books(row(
            "identity",
            |e| e.identity = proofs(1, &[], &[B]),
            |e| e.identity = proofs(2, &[], &[]),
            |e| e.identity = proofs(1, &[B], &[]),
        )),
        books(row(
            "scopes",
            |e| e.scopes = proofs(1, &[], &[B]),
            |e| e.scopes = proofs(2, &[], &[]),
            |e| e.scopes = proofs(1, &[B], &[]),
        )),
        row(
            "clock-skew",
            |e| {
                e.skew.insert(Api::Nango, (0, 2));
            },
            |e| {
                e.skew.insert(Api::Nango, (-60_000, 9));
            },
            |e| {
                e.skew.insert(Api::Nango, (-60_001, 9));
            },
        ),
        books(row(
            "reverse-rehearsed",
            |e| e.reverse = proofs(1, &[], &["wave-2"]),
            |e| e.reverse = proofs(2, &[], &[]),
            |e| e.reverse = proofs(1, &["wave-2"], &[]),
        )),
    ]
}

fn waiver(criterion: &str, scope: &str, until: Timestamp) -> Waiver {
    Waiver::new(criterion, scope, "ann", "agreed with the vendor", START, until, 400 * DAY_MS).unwrap()
}

fn judged(id: &str, evidence: &Evidence, waivers: &[Waiver]) -> Judged {
    judge(&policy(), evidence, waivers).criteria.into_iter().find(|j| j.id == id).unwrap()
}

fn changed(change: Change) -> Evidence {
    let mut evidence = healthy();
    change(&mut evidence);
    evidence
}

#[test]
fn every_criterion_has_a_row_in_report_order() {
    assert_eq!(table().iter().map(|r| r.id).collect::<Vec<_>>(), CRITERIA);
    let ids: Vec<String> = judge(&policy(), &healthy(), &[]).criteria.into_iter().map(|j| j.id).collect();
    assert_eq!(ids, CRITERIA);
    assert!(CRITERIA.iter().all(|id| !rule(id).is_empty()));
}

#[test]
fn healthy_evidence_passes() {
    let assessment = judge(&policy(), &healthy(), &[]);
    assert!(assessment.criteria.iter().all(|j| j.verdict == Verdict::Pass), "{assessment:#?}");
}

#[test]
fn no_data_is_inconclusive_for_every_criterion() {
    for j in judge(&policy(), &Evidence::default(), &[]).criteria {
        assert_eq!(j.verdict, Verdict::Inconclusive, "{j:?}");
    }
    assert_eq!(overall(&[]), Verdict::Inconclusive);
}

#[test]
fn too_few_samples_are_inconclusive_even_where_they_look_bad() {
    for r in table() {
        let j = judged(r.id, &changed(r.few), &[]);
        assert_eq!(j.verdict, Verdict::Inconclusive, "{j:?}");
    }
}

#[test]
fn a_gap_now_takes_a_pass_back_and_leaves_a_fail() {
    let silent: std::collections::BTreeMap<_, _> = EvidenceSource::ALL.map(|s| (s, START.plus_ms(29 * DAY_MS))).into();
    for r in table() {
        let mut evidence = healthy();
        evidence.silent = silent.clone();
        let j = judged(r.id, &evidence, &[]);
        let expected = if r.streams { Verdict::Inconclusive } else { Verdict::Pass };
        assert_eq!(j.verdict, expected, "{j:?}");
        assert_eq!(j.reason.contains("no evidence from"), r.streams, "{j:?}");
        (r.over)(&mut evidence);
        assert_eq!(judged(r.id, &evidence, &[]).verdict, r.over_says, "{}", r.id);
    }
}

#[test]
fn thresholds_are_inclusive_and_just_over_is_not() {
    for r in table() {
        assert_eq!(judged(r.id, &changed(r.at), &[]).verdict, Verdict::Pass, "{} at its threshold", r.id);
        assert_eq!(judged(r.id, &changed(r.over), &[]).verdict, r.over_says, "{} just over", r.id);
    }
}

/// Every criterion in every state of its evidence, without a waiver, with one, and with one that ended.
#[test]
fn the_truth_table_holds_for_every_criterion_and_every_waiver() {
    let silent: std::collections::BTreeMap<_, _> = EvidenceSource::ALL.map(|s| (s, START.plus_ms(29 * DAY_MS))).into();
    let (pass, fail, unknown) = (Verdict::Pass, Verdict::Fail, Verdict::Inconclusive);
    let mut cases = 0;
    for r in table() {
        let gap = Evidence { silent: silent.clone(), ..healthy() };
        let after_a_gap = Evidence {
            gaps: vec![super::Gap {
                from: START.plus_ms(DAY_MS),
                until: START.plus_ms(2 * DAY_MS),
                source: "audit".to_owned(),
                reason: "no look got an answer".to_owned(),
            }],
            ..healthy()
        };
        for (state, evidence, says) in [
            ("no data", Evidence { now: now(), ..Evidence::default() }, unknown),
            ("too few samples", changed(r.few), unknown),
            ("a gap now", gap, if r.streams { unknown } else { pass }),
            // A day that nobody watched is a day less of the soak, and nothing else.
            ("a gap before", after_a_gap, if r.id == "soak-duration" { unknown } else { pass }),
            ("at its threshold", changed(r.at), pass),
            ("just over", changed(r.over), r.over_says),
        ] {
            let whole = |until| [waiver(r.id, "*", until)];
            let bare = judged(r.id, &evidence, &[]);
            let waived = judged(r.id, &evidence, &whole(now().plus_ms(1)));
            let expired = judged(r.id, &evidence, &whole(now()));
            assert_eq!((bare.verdict, bare.stands()), (says, says), "{} with {state}: {bare:?}", r.id);
            assert_eq!((waived.verdict, waived.stands()), (says, pass), "{} with {state}, waived", r.id);
            assert_eq!(waived.waived, says != pass, "{} with {state}: {waived:?}", r.id);
            assert_eq!(expired, bare, "{} with {state}: a waiver that ended is as if absent", r.id);
            assert!(says == pass || !bare.reason.is_empty());
            cases += 1;
        }
    }
    assert_eq!((cases, fail > unknown), (6 * CRITERIA.len(), true));
}

#[test]
fn foreign_writes_need_the_audit_trail_as_well_as_the_scans() {
    let says = |change: Change| {
        let judged = judged("foreign-writes", &changed(change), &[]);
        (judged.verdict, judged.reason)
    };
    let (verdict, reason) = says(|e| e.audit = tally(2, 20));
    assert!(verdict == Verdict::Inconclusive && reason.contains("was read 2 times of 3"), "{reason}");
    let (verdict, reason) = says(|e| e.audit.errors_in_a_row = 6);
    assert!(verdict == Verdict::Inconclusive && reason.contains("looks of `audit` got no answer"), "{reason}");
    let (verdict, reason) = says(|e| e.audit_lost = vec![note(A)]);
    assert!(verdict == Verdict::Inconclusive && reason.contains("lacks rows that it took: kahuna:slack"), "{reason}");
    let (verdict, reason) = says(|e| {
        e.silent.insert(EvidenceSource::Audit, START);
    });
    assert!(verdict == Verdict::Inconclusive && reason.contains("no evidence from `audit`"), "{reason}");
    // What is known to be wrong stays wrong.
    let (verdict, _) = says(|e| {
        e.audit = LookTally::default();
        e.foreign_writes = vec![note(A), note(B)];
    });
    assert_eq!(verdict, Verdict::Fail);
    // A row that is lost can be waived by the name of its triplet.
    let lost = changed(|e| e.audit_lost = vec![note(A)]);
    let waived = judged("foreign-writes", &lost, &[waiver("foreign-writes", A, now().plus_ms(1))]);
    assert_eq!((waived.verdict, waived.waivers.len()), (Verdict::Pass, 1), "the pass ends with the waiver");
}

#[test]
fn nothing_counts_from_before_the_plan() {
    let began = START.plus_ms(-HOUR_MS);
    let e = Evidence { began_at: Some(began), now: START.plus_ms(DAY_MS), ..healthy() };
    for judged in judge(&policy(), &e, &[]).criteria {
        assert!(judged.since.is_none_or(|since| since >= began), "{judged:?}");
    }
}

#[test]
fn a_breach_fails_its_own_criterion_and_no_other() {
    for r in table().iter().filter(|r| r.over_says == Verdict::Fail) {
        for j in judge(&policy(), &changed(r.over), &[]).criteria {
            assert_eq!(j.verdict == Verdict::Fail, j.id == r.id, "{}: {j:?}", r.id);
        }
    }
}

#[test]
fn a_waiver_lets_a_criterion_stand_aside_and_does_not_change_what_it_says() {
    for r in table() {
        let evidence = changed(r.over);
        let j = judged(r.id, &evidence, &[waiver(r.id, "*", now().plus_ms(1))]);
        assert_eq!((j.verdict, j.stands(), j.waived), (r.over_says, Verdict::Pass, true), "{j:?}");
        assert_eq!((j.waivers[0].by.as_str(), j.waivers.len()), ("ann", 1));
        // One of another criterion does nothing.
        let other = if r.id == "cost" { "parity" } else { "cost" };
        assert_eq!(judged(r.id, &evidence, &[waiver(other, "*", now().plus_ms(1))]), judged(r.id, &evidence, &[]));
    }
}

#[test]
fn an_expired_or_revoked_waiver_is_as_if_absent() {
    for r in table() {
        let evidence = changed(r.over);
        let mut revoked = waiver(r.id, "*", now().plus_ms(DAY_MS));
        revoked.revoked_at = Some(now());
        for gone in [waiver(r.id, "*", now()), revoked] {
            let (with, without) = (judge(&policy(), &evidence, &[gone]), judge(&policy(), &evidence, &[]));
            assert_eq!(with, without, "{}", r.id);
        }
    }
}

#[test]
fn a_scoped_waiver_takes_out_what_it_names_and_shows_how_much() {
    let mut e = healthy();
    e.foreign_writes = vec![note(A), note("pointfield:slack:default"), note("pointfield:gong:default")];
    let until = now().plus_ms(1);
    let j = judged("foreign-writes", &e, &[waiver("foreign-writes", "pointfield:*:*", until)]);
    assert_eq!((j.verdict, j.waived, j.observed), (Verdict::Pass, false, Some(1.0)));
    assert_eq!((j.waivers[0].covered, j.findings_total), (2, 1));

    e.identity = proofs(1, &[], &[B]);
    assert_eq!(judged("identity", &e, &[waiver("identity", B, until)]).verdict, Verdict::Pass);
    e.identity = proofs(0, &[B], &[A]);
    let j = judged("identity", &e, &[waiver("identity", B, until)]);
    assert_eq!((j.verdict, j.expected_samples), (Verdict::Inconclusive, 1));

    e.outages = outage(HOUR_MS);
    assert_eq!(judged("outage", &e, &[waiver("outage", "composio", until)]).verdict, Verdict::Fail);
    assert_eq!(judged("outage", &e, &[waiver("outage", "nango", until)]).verdict, Verdict::Pass);
    e.skew.insert(Api::Nango, (-90_000, 9));
    assert_eq!(judged("clock-skew", &e, &[waiver("clock-skew", "nango", until)]).verdict, Verdict::Pass);
}

#[test]
fn a_breach_leaves_with_its_window_but_the_clock_has_started_again() {
    let mut e = healthy();
    let p =
        CriteriaPolicy { windows: [("outage".to_owned(), crate::domain::duration::Millis(DAY_MS))].into(), ..policy() };
    e.outages = outage(HOUR_MS);
    let assessment = judge(&p, &e, &[]);
    let of = |id: &str| assessment.criteria.iter().find(|j| j.id == id).unwrap();
    assert_eq!(of("outage").verdict, Verdict::Pass);
    assert_eq!(of("soak-duration").verdict, Verdict::Inconclusive);
    assert_eq!(assessment.clock.started_at, Some(START.plus_ms(HOUR_MS)));
    assert!(of("soak-duration").reason.contains("started again"), "{}", of("soak-duration").reason);

    // While a waiver holds, the breach is as if it had not been; afterwards it is back. The clock alone
    // leans on it.
    for scope in ["nango", "*"] {
        let waived = judge(&p, &e, &[waiver("outage", scope, now().plus_ms(1))]);
        assert_eq!(waived.clock.soaked_ms, 30 * DAY_MS);
        let marks: Vec<_> = waived.criteria.iter().map(|c| (c.id.as_str(), c.waivers.len())).collect();
        assert_eq!(marks.iter().filter(|m| m.1 > 0).collect::<Vec<_>>(), [&("soak-duration", 1)]);
    }
    assert_eq!(judge(&p, &e, &[waiver("outage", "nango", now())]), assessment);
}

#[test]
fn what_is_still_wrong_counts_whatever_the_window_and_counts_once() {
    let row = |id: &str| table().into_iter().find(|r| r.id == id).unwrap();
    for id in ["invalid-grant", "missed-refresh", "dead-letters", "foreign-writes", "ambiguous"] {
        let long_ago = Note { at: START.plus_ms(-HOUR_MS), ..note(A) };
        let standing = |notes: Vec<Note>, change: Change| {
            let mut e = changed(change);
            e.standing.insert(row(id).id, notes);
            judged(id, &e, &[])
        };
        let none: Change = |_| {};
        assert_eq!(standing(vec![long_ago.clone()], none).observed, Some(1.0), "{id}");
        assert_eq!(standing(vec![long_ago.clone(), long_ago.clone()], none).verdict, Verdict::Fail, "{id}");
        // One that was noted in the window is the same one.
        assert_eq!(standing(vec![long_ago.clone()], row(id).at).observed, Some(1.0), "{id}");
        assert_eq!(standing(vec![note(B)], row(id).at).verdict, Verdict::Fail, "{id}");
    }
}

#[test]
fn a_percentile_does_not_hide_the_delivery_that_still_waits() {
    let mut e = healthy();
    e.standing.insert("mirror-lag", vec![Note { at: now().plus_ms(-HOUR_MS), ..note(A) }]);
    let j = judged("mirror-lag", &e, &[]);
    assert_eq!((j.verdict, j.findings_total), (Verdict::Inconclusive, 1), "{}", j.reason);
    assert!(j.reason.contains("1 more late: kahuna:slack:default"), "{}", j.reason);
    // Too many of them are in the percentile already.
    e.lag_p99_ms = Some(i64::from(policy().mirror_lag_p99_s) * 1000 + 1);
    assert_eq!(judged("mirror-lag", &e, &[]).verdict, Verdict::Fail);
}

#[test]
fn what_is_waived_in_part_is_told_wherever_the_criterion_is() {
    let mut e = healthy();
    e.foreign_writes = vec![note(A)];
    let judged = judged("foreign-writes", &e, &[waiver("foreign-writes", A, now().plus_ms(1))]);
    assert_eq!(judged.told(), "0 in 9 observations; waived by ann (1 of `kahuna:slack:default`)");
    e.verify.clean_in_a_row = 1;
    e.parity_findings = vec![note(A)];
    let judged = self::judged("parity", &e, &[waiver("parity", A, now().plus_ms(1))]);
    assert_eq!((judged.verdict, judged.observed), (Verdict::Pass, Some(1.0)));
    assert_eq!(judged.reason, "of 5 runs 1 in a row were clean; all differences are waived");
}

#[test]
fn nothing_before_the_initial_delay_counts() {
    let p = CriteriaPolicy { initial_delay: crate::domain::duration::Millis(2 * DAY_MS), ..CriteriaPolicy::default() };
    let mut e = healthy();
    e.foreign_writes = vec![note(A)];
    let verdict =
        |p: &CriteriaPolicy| judge(p, &e, &[]).criteria.into_iter().find(|j| j.id == "foreign-writes").unwrap().verdict;
    assert_eq!((verdict(&CriteriaPolicy::default()), verdict(&p)), (Verdict::Fail, Verdict::Pass));
}

#[test]
fn looks_that_could_not_tell_and_looks_without_answer_have_limits_of_their_own() {
    let verdict = |errors, untold| {
        let mut e = healthy();
        (e.verify.errors_in_a_row, e.verify.inconclusive_in_a_row) = (errors, untold);
        judged("parity", &e, &[]).verdict
    };
    assert_eq!([verdict(5, 0), verdict(0, 3), verdict(5, 3)], [Verdict::Pass; 3]);
    assert_eq!([verdict(6, 0), verdict(0, 4)], [Verdict::Inconclusive; 2]);
}

#[test]
fn the_reason_names_who_and_from_when() {
    let mut e = healthy();
    e.foreign_writes = vec![note(A), note(A), note(B), note("x:y:z"), note("u:v:w")];
    let j = judged("foreign-writes", &e, &[]);
    assert_eq!(
        j.reason,
        "kahuna:slack:default, kahuna:gong:default, x:y:z and 1 more, first at 2026-05-06 16:53: planted"
    );
    assert_eq!((j.findings.len(), j.since), (5, Some(START)));
}
