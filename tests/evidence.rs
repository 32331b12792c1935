//! What the gate makes of a state, whatever database is behind it: evidence as it is gathered, judged.

#[path = "support/postgres.rs"]
mod postgres_server;
#[macro_use]
#[path = "support/state.rs"]
mod state;

use cutover::domain::criteria::{EvidenceSource, Gap, Judged, LookOutcome, Note, Verdict, Waiver};
use cutover::domain::custody::Route;
use cutover::domain::duration::Millis;
use cutover::domain::secret::Secret;
use cutover::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};
use cutover::domain::token::{KvEntry, Writer};
use cutover::domain::triplet::Triplet;
use cutover::engine::{GateReport, collect, judge_state};
use cutover::plan::Policy;
use cutover::store::{
    Capture, Durability, Look, NewTriplet, NewVersion, PollFailure, Sink, Store, Vault, Verification,
};
use state::State;

const KEY: [u8; 32] = [9; 32];
const START: Timestamp = Timestamp::from_secs(1_778_000_000);

fn day(n: i64) -> Timestamp {
    START.plus_ms(n * DAY_MS)
}

fn triplet(user: &str) -> Triplet {
    Triplet::parse(&format!("{user}:slack:default")).unwrap()
}

/// Nobody looks in these tests unless they say so, and that is no gap.
fn patient() -> Policy {
    let mut policy = Policy::default();
    policy.criteria.evidence_gap_max = Millis(400 * DAY_MS);
    policy
}

/// One day of window, so that what is older has left it.
fn short_window() -> Policy {
    let mut policy = patient();
    policy.criteria.window = Millis(DAY_MS);
    policy
}

/// A plan of two triplets, each with a connection of its own, whose soak began with the plan.
async fn soaking(state: &State) -> Store {
    let store = Store::open_at(&state.place, Durability::ProcessCrash, Vault::from_master(&KEY)).await.unwrap();
    let triplets = ["ann", "bob"].map(|user| NewTriplet {
        triplet: triplet(user),
        integration_key: "slack".into(),
        connection_id: user.into(),
        route: Route::Reconsent,
        wave: Some(1),
        toolkit: Some("slack".into()),
        scopes: vec!["chat:write".into()],
    });
    store.begin_plan("p-000000000001", "{}", &triplets, START).await.unwrap();
    store.save_meta("soak_from", &START.millis().to_string()).await.unwrap();
    store
}

/// A read of the first connection, at `now`, that brought a token which ends at `ends`.
async fn read(store: &Store, token: &str, ends: Timestamp, scheduled: Option<bool>, now: Timestamp) {
    let connection = store.load_connections().await.unwrap().remove(0);
    let access_token = Secret::new(token);
    let fingerprint = store.vault().fingerprints().fingerprint(&access_token);
    let entry =
        KvEntry { access_token, expires_at: Some(ends), token_type: None, scope: None, other: serde_json::Map::new() };
    let capture = Capture {
        connection: connection.id,
        claim: 0,
        fingerprint,
        expires_at: Some(ends),
        poll_at: ends.plus_ms(-15 * MINUTE_MS),
        versions: vec![NewVersion { triplet: triplet("ann"), epoch: 1, writer: Writer::Nango, entry }],
        scheduled,
    };
    store.append_captures(&[capture], &Sink::ALL, now).await.unwrap();
}

async fn deliver(store: &Store, sink: Sink, now: Timestamp) {
    let pending = store.claim_deliveries(sink, now, 10, now.plus_ms(MINUTE_MS)).await.unwrap();
    let delivered: Vec<_> = pending.into_iter().map(|p| p.acknowledged()).collect();
    store.mark_delivered(&delivered, now).await.unwrap();
}

async fn note(store: &Store, kind: &str, at: Timestamp, subject: &str, detail: &str) {
    let note = Note { at, subject: subject.to_owned(), detail: detail.to_owned() };
    store.add_note(kind, &note).await.unwrap();
}

async fn gate(store: &Store, policy: &Policy, now: Timestamp) -> GateReport {
    judge_state(store, policy, now).await.unwrap()
}

async fn judged(store: &Store, policy: &Policy, id: &str, now: Timestamp) -> Judged {
    gate(store, policy, now).await.criteria.into_iter().find(|c| c.id == id).unwrap()
}

async fn waive(store: &Store, criterion: &str, scope: &str, now: Timestamp) -> Waiver {
    let waiver = Waiver::new(criterion, scope, "ann", "agreed", now, now.plus_ms(DAY_MS), DAY_MS).unwrap();
    store.save_waiver(&waiver).await.unwrap();
    waiver
}

contract! {
    the_clock_remembers_every_breach_since_the_soak_began
    an_outage_that_was_too_long_is_not_hidden_by_many_that_were_short
    a_thousand_waived_breaches_hide_none_that_is_not
    what_is_still_wrong_counts_however_long_ago_it_began
    a_delivery_that_waits_is_late_before_it_arrives
    a_source_that_never_looked_is_a_gap_since_the_soak_began
    each_criterion_counts_rotations_in_its_own_window
    a_stuck_connection_misses_a_rotation_a_lifetime_and_a_late_one_counts_once
    a_difference_that_no_run_names_is_waived_by_nobody
    lost_audit_rows_of_one_key_are_one_finding
}

async fn the_clock_remembers_every_breach_since_the_soak_began(state: State) {
    let store = soaking(&state).await;
    note(&store, "missed-refresh", day(3), "ann:slack:default", "ended").await;
    let now = day(40);
    let policy = short_window();
    let report = gate(&store, &policy, now).await;
    let of = |id: &str| report.criteria.iter().find(|c| c.id == id).unwrap();
    assert_eq!((report.clock.started_at, report.clock.restarts.len()), (Some(day(3)), 1));
    assert!(of("missed-refresh").findings.is_empty(), "it left the window: {:?}", of("missed-refresh"));
    assert!(of("soak-duration").reason.contains("after `missed-refresh` of ann"), "{}", of("soak-duration").reason);

    // A pass of the clock that leans on a waiver names it, and ends with it.
    let waiver = waive(&store, "missed-refresh", "ann:*:*", now).await;
    let of_days = |days: u32| {
        let mut policy = policy.clone();
        policy.criteria.soak_days = days;
        policy
    };
    let leaned_on = async |days| judged(&store, &of_days(days), "soak-duration", now).await.waivers;
    assert_eq!(gate(&store, &policy, now).await.clock.started_at, Some(START));
    let marks = leaned_on(39).await;
    assert_eq!(marks.iter().map(|m| (&m.id, m.covered)).collect::<Vec<_>>(), [(&waiver.id, 1)]);
    assert_eq!(leaned_on(30).await, [], "it would have passed without");
    store.close().await.unwrap();
}

async fn an_outage_that_was_too_long_is_not_hidden_by_many_that_were_short(state: State) {
    let store = soaking(&state).await;
    note(&store, "outage", day(2), "nango", &HOUR_MS.to_string()).await;
    for n in 0..150 {
        note(&store, "outage", day(3).plus_ms(n * HOUR_MS), "nango", &(n * 1_000).to_string()).await;
    }
    let mut round = cutover::store::Pruning::default();
    while !store.prune_some(&mut round, &cutover::store::Retention::default(), day(10)).await.unwrap() {}
    let report = gate(&store, &short_window(), day(10)).await;
    assert_eq!(report.clock.started_at, Some(day(2).plus_ms(HOUR_MS)));
    let outage = judged(&store, &short_window(), "outage", day(10)).await;
    assert_eq!(outage.observed, Some(149.0 / 60.0), "the longest of the last day: {outage:?}");
    store.close().await.unwrap();
}

async fn a_thousand_waived_breaches_hide_none_that_is_not(state: State) {
    let store = soaking(&state).await;
    note(&store, "smoke-stale", day(3), "bob:slack:default", "stale").await;
    for n in 0..1_100 {
        note(&store, "smoke-stale", day(4).plus_ms(n), "ann:slack:default", "stale").await;
    }
    waive(&store, "smoke-staleness", "ann:*:*", day(10)).await;
    let judged = judged(&store, &Policy::default(), "smoke-staleness", day(10)).await;
    assert_eq!((judged.verdict, judged.observed), (Verdict::Fail, Some(1.0)), "{judged:?}");
    assert_eq!(judged.findings[0].subject, "bob:slack:default");
    store.close().await.unwrap();
}

async fn a_delivery_that_waits_is_late_before_it_arrives(state: State) {
    let store = soaking(&state).await;
    let mut policy = patient();
    policy.criteria.initial_delay = Millis(0);
    policy.criteria.lag_samples_min = 1;
    let bound_ms = i64::from(policy.criteria.mirror_lag_p99_s) * 1_000;
    read(&store, "one", day(1), None, START).await;
    deliver(&store, Sink::KvSource, START).await;
    // The account for the third sink is not made yet: nothing waits for it.
    let at = async |ms: i64| {
        let judged = judged(&store, &policy, "mirror-lag", START.plus_ms(ms)).await;
        (judged.verdict, judged.samples, judged.findings.first().map(|n| (n.subject.clone(), n.detail.clone())))
    };
    assert_eq!(at(bound_ms).await, (Verdict::Pass, 1, None));
    let late = Some(("ann:slack:default".to_owned(), "waits for kv.target".to_owned()));
    assert_eq!(at(bound_ms + 1).await, (Verdict::Fail, 2, late));
    deliver(&store, Sink::KvTarget, START.plus_ms(bound_ms + 1)).await;
    assert_eq!(at(bound_ms + 2).await, (Verdict::Fail, 2, None), "it arrived, and was late");
    store.close().await.unwrap();
}

async fn what_is_still_wrong_counts_however_long_ago_it_began(state: State) {
    let store = soaking(&state).await;
    let policy = short_window();
    let says = async |id: &str, now| {
        let judged = judged(&store, &policy, id, now).await;
        (judged.verdict == Verdict::Fail, judged.findings.first().map(|n| n.subject.clone()))
    };
    let ann = Some("ann:slack:default".to_owned());
    let wrong = ["invalid-grant", "missed-refresh", "dead-letters", "foreign-writes"];
    // Its token is served and ends; what would replace it is a dead letter at one sink; another
    // writer's entry stands at the other; and the grant is gone.
    read(&store, "one", day(1), None, START).await;
    deliver(&store, Sink::KvSource, START).await;
    store.take_expired(Sink::KvSource, day(1).plus_ms(1)).await.unwrap();
    let pending = store.claim_deliveries(Sink::KvTarget, START, 10, day(1)).await.unwrap();
    assert!(store.bury_delivery(&pending[0], "refused").await.unwrap());
    store.save_meta("foreign:kv.target:ann:slack:default", &day(1).millis().to_string()).await.unwrap();
    let connection = store.load_connections().await.unwrap()[0].id;
    let gone = |at: Timestamp| PollFailure { connection, claim: 0, at, retry_at: Some(at), dead: true, counts: false };
    store.record_poll_failure(gone(day(1))).await.unwrap();
    store.begin_intent("x", "create an account", day(1)).await.unwrap();
    store.mark_ambiguous("x", "which of two").await.unwrap();
    for id in wrong {
        assert_eq!(says(id, day(40)).await, (true, ann.clone()), "{id}");
    }
    assert_eq!(says("ambiguous", day(40)).await, (true, Some("x".to_owned())));
    // A waiver of another scope changes nothing, one of its own does.
    waive(&store, "dead-letters", "bob:*:*", day(40)).await;
    assert!(says("dead-letters", day(40)).await.0);
    waive(&store, "dead-letters", "ann:*:*", day(40)).await;
    assert!(!says("dead-letters", day(40)).await.0);

    // A new token makes all of it good but the foreign entry, which the next scan finds ours.
    read(&store, "two", day(60), None, day(41)).await;
    deliver(&store, Sink::KvSource, day(41)).await;
    deliver(&store, Sink::KvTarget, day(41)).await;
    store.delete_meta("foreign:kv.target:ann:slack:default").await.unwrap();
    for id in wrong {
        assert_eq!(says(id, day(42)).await, (false, None), "{id}");
    }
    store.close().await.unwrap();
}

fn look(source: EvidenceSource, at: Timestamp) -> Look {
    Look { source, at, outcome: LookOutcome::Clean, samples: 10, every_ms: HOUR_MS, slack_ms: 15 * MINUTE_MS }
}

async fn a_source_that_never_looked_is_a_gap_since_the_soak_began(state: State) {
    let store = soaking(&state).await;
    let policy = Policy::default();
    let now = day(2);
    store.save_meta("alive_at", &now.millis().to_string()).await.unwrap();
    let silent = collect(&store, &policy, now).await.unwrap().silent;
    let expected = [EvidenceSource::Smoke, EvidenceSource::Scan, EvidenceSource::Verify, EvidenceSource::Audit];
    assert_eq!(silent.keys().copied().collect::<Vec<_>>(), expected);
    assert_eq!(silent[&EvidenceSource::Smoke], START.plus_ms(HOUR_MS));
    assert!(gate(&store, &policy, now).await.clock.paused.is_some());

    // The first look ends the gap, and leaves it behind.
    store.record_look(&look(EvidenceSource::Smoke, now)).await.unwrap();
    let evidence = collect(&store, &policy, now).await.unwrap();
    let from = START.plus_ms(HOUR_MS);
    let left = |gap: &&Gap| gap.source == "smoke" && (gap.from, gap.until) == (from, now);
    assert!(!evidence.silent.contains_key(&EvidenceSource::Smoke) && evidence.gaps.iter().any(|g| left(&g)));

    // Few readings of the audit trail say little.
    for n in 0..3 {
        store.record_look(&look(EvidenceSource::Scan, now.plus_ms(n))).await.unwrap();
    }
    store.record_look(&look(EvidenceSource::Audit, now.plus_ms(3))).await.unwrap();
    let judged = judged(&store, &policy, "foreign-writes", now.plus_ms(4)).await;
    assert_eq!(judged.verdict, Verdict::Inconclusive);
    assert_eq!(judged.reason, "the audit trail was read 1 times of 3");
    store.close().await.unwrap();
}

async fn each_criterion_counts_rotations_in_its_own_window(state: State) {
    let store = soaking(&state).await;
    let counters = |n: i64| format!("{{\"counters\":{{\"rotations_expected\":{n},\"rotations_arrived\":{}}}}}", n - 30);
    store.add_counts(&[("rotations_expected", 1_000), ("rotations_arrived", 970)]).await.unwrap();
    store.save_sample(day(20).plus_ms(-HOUR_MS), &counters(990)).await.unwrap();
    let mut policy = Policy::default();
    policy.criteria.windows = [("missed-refresh".to_owned(), Millis(HOUR_MS))].into();
    let rate = judged(&store, &policy, "delivery-rate", day(20)).await;
    assert_eq!((rate.verdict, rate.samples), (Verdict::Fail, 1_000), "{rate:?}");
    let missed = judged(&store, &policy, "missed-refresh", day(20)).await;
    assert_eq!((missed.verdict, missed.samples), (Verdict::Inconclusive, 10), "{missed:?}");
    store.close().await.unwrap();
}

async fn a_stuck_connection_misses_a_rotation_a_lifetime_and_a_late_one_counts_once(state: State) {
    let store = soaking(&state).await;
    let hour = |n: i64| START.plus_ms(n * HOUR_MS);
    let counts = async || {
        let counters = store.load_counters().await.unwrap();
        let count = |name: &str| counters.get(name).copied().unwrap_or(0);
        (count("rotations_expected"), count("rotations_arrived"))
    };
    // Two lifetimes of two hours, then none for twelve hours.
    read(&store, "one", hour(1), None, START).await;
    read(&store, "two", hour(3), Some(true), hour(1)).await;
    assert_eq!(counts().await, (1, 1));
    store.note_missed_rotations(hour(3)).await.unwrap();
    assert_eq!(counts().await, (1, 1), "not before its end");
    for n in [4, 5, 6] {
        store.note_missed_rotations(hour(n)).await.unwrap();
    }
    assert_eq!(counts().await, (3, 1), "due at 3 and at 5");
    // The rest is counted with the late one, which is itself no other miss.
    read(&store, "three", hour(17), Some(false), hour(15)).await;
    assert_eq!(counts().await, (7, 1), "due at 7, 9, 11 and 13");
    read(&store, "four", hour(19), Some(true), hour(17)).await;
    assert_eq!(counts().await, (8, 2));
    assert_eq!(store.load_due().await.unwrap().rotation_by, Some(hour(19)));

    // Of a grant that is gone one rotation was missed, and no other is expected.
    let connection = store.load_connections().await.unwrap()[0].id;
    let gone = PollFailure { connection, claim: 0, at: hour(19), retry_at: Some(hour(20)), dead: true, counts: false };
    store.record_poll_failure(gone).await.unwrap();
    for n in [20, 30, 40] {
        store.note_missed_rotations(hour(n)).await.unwrap();
    }
    assert_eq!(counts().await, (9, 2));
    assert_eq!(store.load_due().await.unwrap().rotation_by, None);
    store.close().await.unwrap();
}

async fn a_difference_that_no_run_names_is_waived_by_nobody(state: State) {
    let store = soaking(&state).await;
    let policy = patient();
    let run = |n: i64, differing: u64| {
        let named = |_| Note { at: day(n), subject: "ann:slack:default".to_owned(), detail: "missing".to_owned() };
        Verification {
            run: format!("r-{n}-{differing}"),
            began_at: day(n),
            at: day(n),
            left: "kv:source".to_owned(),
            right: "kv:target".to_owned(),
            level: "full".to_owned(),
            keys: 200,
            compared: 200,
            differing,
            unsure: 0,
            failed: 0,
            counts: "{}".to_owned(),
            rules: None,
            findings: (0..differing.min(100)).map(named).collect(),
        }
    };
    let record = async |run: Verification| store.record_verification(&run, &policy.criteria).await.unwrap();
    waive(&store, "parity", "ann:*:*", day(5)).await;
    for n in 1..4 {
        record(run(n, 100)).await;
    }
    let all_named = judged(&store, &policy, "parity", day(5)).await;
    assert_eq!(all_named.verdict, Verdict::Pass);
    assert_eq!(all_named.reason, "of 3 runs 0 in a row were clean; all differences are waived");
    record(run(4, 101)).await;
    let one_more = judged(&store, &policy, "parity", day(5)).await;
    assert_eq!(one_more.verdict, Verdict::Fail);
    assert!(one_more.reason.contains("1 more keys differ in run r-4-101"), "{}", one_more.reason);
    store.close().await.unwrap();
}

async fn lost_audit_rows_of_one_key_are_one_finding(state: State) {
    let store = soaking(&state).await;
    for (n, token) in (1..).zip(["one", "two", "three"]) {
        read(&store, token, day(1), None, START).await;
        deliver(&store, Sink::KvSource, START.plus_ms(n * MINUTE_MS)).await;
    }
    let rows = store.load_audit_outbox(100).await.unwrap();
    store.clear_audit_outbox(&rows, Some(START)).await.unwrap();
    store.note_audit_read(day(1)).await.unwrap();
    let lost = store.load_lost_audit(HOUR_MS).await.unwrap();
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert!(rows.len() == 3 && lost[0].detail.ends_with("and 2 more"), "{lost:?}");
    store.close().await.unwrap();
}
