//! The audit trail in D1 as evidence: written, read back, and held against what we wrote.

#[path = "support/cutover.rs"]
mod support;

use cutover::domain::criteria::{EvidenceSource, LookOutcome, Verdict};
use cutover::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS};
use cutover::engine::GateReport;
use cutover::ports::{AuditSink, Outside};
use cutover::sandbox::{Script, Twist};
use support::{Cutover, POLICY, SMALL};

/// A soak of some hours.
fn soaking() -> Cutover {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.until_done(&["apply", &cutover.plan, "--yes"]);
    cutover.live(3 * HOUR_MS);
    cutover
}

/// What the criterion says, with its reason.
fn foreign_writes(cutover: &Cutover) -> (Verdict, String) {
    let engine = cutover.engine();
    let report = cutover.runtime.block_on(engine.gate(cutover.now())).unwrap();
    cutover.runtime.block_on(engine.into_store().close()).unwrap();
    let judged = report.criteria.into_iter().find(|c| c.id == "foreign-writes").unwrap();
    (judged.verdict, judged.reason)
}

fn notes(cutover: &Cutover, kind: &str) -> Vec<(String, String)> {
    let store = cutover.store();
    let notes = cutover.runtime.block_on(store.load_notes(kind)).unwrap();
    cutover.runtime.block_on(store.close()).unwrap();
    notes.into_iter().map(|note| (note.subject, note.detail)).collect()
}

#[test]
fn what_was_written_is_read_back_and_strangers_before_us_are_nobodys_business() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    // The old sync wrote until yesterday.
    let key = "tokens:kahuna:hubspot:default";
    cutover.audit_row("a-row-of-old", cutover.now().plus_ms(-HOUR_MS), key, "nango-webhook");
    cutover.until_done(&["apply", &cutover.plan, "--yes"]);
    cutover.live(3 * HOUR_MS);
    assert_eq!(foreign_writes(&cutover).0, Verdict::Pass, "{:?}", foreign_writes(&cutover));
    let store = cutover.store();
    cutover.runtime.block_on(async {
        let written = store.load_counters().await.unwrap()["audit_rows"];
        assert!(written > 10, "{written}");
        assert_eq!(store.load_lost_audit(0).await.unwrap(), []);
        let looks = store.load_looks(cutover.now().plus_ms(-4 * HOUR_MS)).await.unwrap();
        let audit = &looks[&EvidenceSource::Audit];
        assert!(audit.iter().all(|look| look.outcome == LookOutcome::Clean), "{audit:?}");
        assert!(audit.iter().map(|look| look.samples).sum::<u64>() >= written as u64 - 4, "{audit:?} of {written}");
        store.close().await.unwrap();
    });
    assert_eq!(notes(&cutover, "foreign-write"), []);
}

#[test]
fn a_write_that_was_overwritten_between_two_scans_shows_in_the_audit_trail() {
    let cutover = soaking();
    let at = cutover.now().plus_ms(-MINUTE_MS);
    cutover.audit_row("f3b8", at, "tokens:kahuna:hubspot:default", "nango-webhook");
    // A key of nobody here, and one that is no key.
    cutover.audit_row("f3b9", at, "tokens:elsewhere:hubspot:default", "nango-webhook");
    cutover.audit_row("f3ba", at, "read:kahuna:hubspot:default", "an admin");
    cutover.live(15 * MINUTE_MS);
    let found = notes(&cutover, "foreign-write");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "kahuna:hubspot:default");
    assert!(found[0].1.starts_with("`kv_audit` has a `put` by `nango-webhook` at 2026-05-06"), "{}", found[0].1);
    let (verdict, reason) = foreign_writes(&cutover);
    assert_eq!(verdict, Verdict::Fail, "{reason}");
    // A pass from before opens nothing that would fail now.
    let engine = cutover.engine();
    cutover.runtime.block_on(async {
        let judged = engine.gate(cutover.now()).await.unwrap();
        let (criteria, open_until) = (Vec::new(), cutover.now().plus_ms(DAY_MS));
        let report = GateReport { verdict: Verdict::Pass, criteria, open_until, ..judged };
        engine.record_gate(&report).await.unwrap();
        engine.into_store().close().await.unwrap();
    });
    let settle = ["settle", "--confirm", &cutover.plan_id(), "--no-wait", "--policy", &cutover.policy];
    let (code, _, error) = cutover.run(&settle);
    assert!(code == 7 && error.contains("would fail now: foreign-writes (kahuna:hubspot:default"), "{error}");
    // Read once, it is told once.
    cutover.live(HOUR_MS);
    assert_eq!(notes(&cutover, "foreign-write").len(), 1);
}

#[test]
fn a_row_that_is_gone_and_a_trail_that_does_not_answer_are_no_pass() {
    let cutover = soaking();
    assert_eq!(foreign_writes(&cutover).0, Verdict::Pass);
    // Rows on their way, as if D1 had taken them and lost them.
    let rows = loop {
        cutover.live(3 * MINUTE_MS);
        let store = cutover.store();
        let rows = cutover.runtime.block_on(store.load_audit_outbox(100)).unwrap();
        cutover.runtime.block_on(store.clear_audit_outbox(&rows, Some(cutover.now()))).unwrap();
        cutover.runtime.block_on(store.close()).unwrap();
        if !rows.is_empty() {
            break rows;
        }
    };
    cutover.live(11 * MINUTE_MS);
    assert_eq!(foreign_writes(&cutover).0, Verdict::Pass, "a replica may be late");
    cutover.live(15 * MINUTE_MS);
    let (verdict, reason) = foreign_writes(&cutover);
    assert_eq!(verdict, Verdict::Inconclusive, "{reason}");
    assert!(reason.contains("lacks rows that it took: "), "{reason}");
    assert!(reason.contains(rows[0].key.trim_start_matches("tokens:")), "{reason}");
    // They turn up after all.
    let engine = cutover.engine();
    cutover.runtime.block_on(engine.outside().cloudflare().append_audit(&rows)).unwrap();
    cutover.runtime.block_on(engine.into_store().close()).unwrap();
    cutover.live(11 * MINUTE_MS);
    assert_eq!(foreign_writes(&cutover).0, Verdict::Pass, "{:?}", foreign_writes(&cutover));

    // D1 does not answer for some hours.
    let script = Script {
        api: "cloudflare".to_owned(),
        method: Some("POST".to_owned()),
        path: Some("/d1/".to_owned()),
        answer: Twist::FailBefore,
        times: 1_000,
    };
    cutover.sandbox.lock().add_script(script).unwrap();
    cutover.live(3 * HOUR_MS);
    let (verdict, reason) = foreign_writes(&cutover);
    assert_eq!(verdict, Verdict::Inconclusive, "{reason}");
    assert!(reason.contains("audit"), "{reason}");
    let engine = cutover.engine();
    let gate = cutover.runtime.block_on(engine.gate(cutover.now())).unwrap();
    assert!(gate.gaps.iter().any(|gap| gap.source == "audit"), "{:?}", gate.gaps);
    cutover.runtime.block_on(engine.into_store().close()).unwrap();
}
