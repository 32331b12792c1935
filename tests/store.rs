//! What the store promises, whatever database is behind it.

#[path = "support/postgres.rs"]
mod postgres_server;
#[macro_use]
#[path = "support/state.rs"]
mod state;

use std::collections::BTreeSet;

use cutover::domain::criteria::{CriteriaPolicy, Evidence, EvidenceSource, LookOutcome, Note, Verdict, Waiver, judge};
use cutover::domain::custody::{Event, Refusal, Route, Stage};
use cutover::domain::secret::Secret;
use cutover::domain::time::Timestamp;
use cutover::domain::token::{KvEntry, Writer};
use cutover::domain::triplet::Triplet;
use cutover::engine::{GateReport, NoFreshPass, fresh_pass, record};
use cutover::store::{
    Capture, Delivered, Durability, Intake, IntentState, Lead, Look, NewTriplet, NewVersion, PendingDelivery, Place,
    PollFailure, Sink, Store, StoreError, Vault,
};
use sqlx::{AssertSqlSafe, Connection};
use state::State;

const KEY: [u8; 32] = [9; 32];

fn at(s: i64) -> Timestamp {
    Timestamp::from_secs(s)
}

fn triplet() -> Triplet {
    Triplet::parse("kahuna:slack:default").unwrap()
}

impl State {
    async fn open(&self) -> Store {
        self.open_with(Vault::from_master(&KEY)).await.unwrap()
    }

    async fn open_with(&self, vault: Vault) -> Result<Store, StoreError> {
        Store::open_at(&self.place, Durability::ProcessCrash, vault).await
    }

    /// A store with one connection that feeds one triplet.
    async fn planned(&self) -> Store {
        let store = self.open().await;
        plan(&store, &[triplet()]).await;
        store
    }

    /// Goes behind the store's back. Returns the first column of what it selects.
    async fn raw(&self, sql: &str) -> Vec<Option<Vec<u8>>> {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.place {
            Place::Sqlite(path) => {
                let mut raw = sqlx::SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
                sqlx::query_scalar(sql).fetch_all(&mut raw).await.unwrap()
            }
            Place::Postgres(url) => {
                let mut raw = sqlx::PgConnection::connect(url).await.unwrap();
                sqlx::query_scalar(sql).fetch_all(&mut raw).await.unwrap()
            }
        }
    }
}

contract! {
    only_the_newest_version_waits_for_a_sink_and_its_secret_alone_is_kept
    an_acknowledgement_of_an_older_version_leaves_the_newer_one_pending
    what_was_committed_is_there_after_the_process_is_gone
    a_changed_row_breaks_the_chain_and_is_named
    a_refused_event_is_not_recorded_and_the_audit_trail_is_chained
    an_intent_is_done_once_and_an_open_one_must_be_settled_by_looking
    another_plan_is_refused_and_the_same_one_changes_nothing
    a_state_of_other_keys_is_refused
    of_several_versions_in_one_commit_the_last_is_the_head
    a_connection_belongs_to_the_one_who_claimed_it_until_its_time_is_over
    the_capture_of_a_late_reader_is_refused_once_a_later_claim_has_its_outcome
    a_sink_is_not_written_by_two_at_a_time_and_nothing_is_overtaken
    a_late_acknowledgement_makes_the_newest_version_go_again
    failures_of_a_claim_that_is_over_change_nothing
    several_writers_keep_one_chain
    what_is_accepted_is_committed_together_and_survives
    accepted_tokens_reach_the_journal_once_and_in_order
    a_changed_intake_is_found
    of_several_callers_one_creates_and_one_takes
    a_change_is_noted_by_one_of_those_who_see_it
    keys_rotate_under_a_running_store
    looks_with_one_outcome_are_one_row_and_a_silence_is_a_gap
    looks_without_an_answer_do_not_end_a_gap
    samples_grow_thin_with_age_and_do_not_stay_for_ever
    gate_runs_chain_and_a_pass_opens_only_what_it_was_given_for
    a_waiver_is_kept_once_and_revoked_once
    news_is_one_line_for_each_kind_and_subject_the_newest_first
}

async fn plan(store: &Store, triplets: &[Triplet]) {
    let triplets: Vec<NewTriplet> = triplets
        .iter()
        .map(|triplet| NewTriplet {
            triplet: triplet.clone(),
            integration_key: "slack".into(),
            connection_id: triplet.to_string().replace(':', "__"),
            route: Route::Reconsent,
            wave: Some(1),
            toolkit: Some("slack".into()),
            scopes: vec!["chat:write".into()],
        })
        .collect();
    store.begin_plan("p-000000000001", "{}", &triplets, at(0)).await.unwrap();
}

fn entry(token: &str, expires: i64) -> KvEntry {
    KvEntry {
        access_token: Secret::new(token),
        expires_at: Some(at(expires)),
        token_type: None,
        scope: None,
        other: serde_json::Map::new(),
    }
}

/// What a read under `claim` brought.
fn captured(store: &Store, connection: i64, claim: u64, triplet: &Triplet, entries: &[KvEntry]) -> Capture {
    let newest = entries.last().unwrap();
    let version = |entry: &KvEntry| NewVersion {
        triplet: triplet.clone(),
        epoch: 1,
        writer: Writer::Nango,
        entry: entry.clone(),
    };
    Capture {
        connection,
        claim,
        fingerprint: store.vault().fingerprints().fingerprint(&newest.access_token),
        expires_at: newest.expires_at,
        poll_at: newest.expires_at.map_or(at(1_000_000), |end| end.plus_ms(-900_000)),
        versions: entries.iter().map(version).collect(),
        scheduled: None,
    }
}

async fn capture(store: &Store, token: &str, expires: i64, now: i64) {
    let connection = store.load_connections().await.unwrap()[0].id;
    let capture = captured(store, connection, 0, &triplet(), &[entry(token, expires)]);
    store.append_captures(&[capture], &Sink::ALL, at(now)).await.unwrap();
}

async fn head(store: &Store) -> String {
    store.load_head(&triplet()).await.unwrap().unwrap().access_token.expose().to_owned()
}

/// Claims everything that is due for a minute.
async fn claim(store: &Store, now: i64) -> Vec<PendingDelivery> {
    claim_until(store, now, now + 60).await
}

async fn claim_until(store: &Store, now: i64, until: i64) -> Vec<PendingDelivery> {
    let mut claimed = Vec::new();
    for sink in Sink::ALL {
        claimed.extend(store.claim_deliveries(sink, at(now), 100, at(until)).await.unwrap());
    }
    claimed
}

fn delivered(p: &PendingDelivery) -> Delivered {
    p.clone().acknowledged()
}

fn token(subject: &Triplet, token: &str, expires: i64) -> Intake {
    Intake::token(subject, &entry(token, expires), at(1))
}

async fn only_the_newest_version_waits_for_a_sink_and_its_secret_alone_is_kept(state: State) {
    let store = state.planned().await;
    for (n, token) in ["one", "two", "three"].iter().enumerate() {
        capture(&store, token, 1_000 * (n as i64 + 1), n as i64).await;
    }
    let pending = claim(&store, 10).await;
    assert_eq!(pending.len(), 2, "there is no account to patch yet");
    store.save_mirror_account(&triplet(), "ca_1").await.unwrap();
    let pending: Vec<_> = pending.into_iter().chain(claim(&store, 10).await).collect();
    assert_eq!(pending.iter().map(|p| p.sink).collect::<BTreeSet<_>>().len(), Sink::ALL.len());
    assert!(pending.iter().all(|p| p.metadata.v == 3 && p.entry.access_token.expose() == "three"));
    let payloads = state.raw("SELECT payload FROM journal ORDER BY version").await;
    assert_eq!(payloads.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true]);
}

async fn an_acknowledgement_of_an_older_version_leaves_the_newer_one_pending(state: State) {
    let store = state.planned().await;
    capture(&store, "one", 1_000, 1).await;
    let first = claim(&store, 1).await.remove(0);
    capture(&store, "two", 2_000, 2).await;
    store.mark_delivered(&[delivered(&first)], at(3)).await.unwrap();
    // Well over a second after the last write: a key takes one write a second.
    let newer = claim(&store, 5).await.into_iter().find(|p| p.sink == first.sink).unwrap();
    assert_eq!(newer.metadata.v, 2);
    store.mark_delivered(&[delivered(&newer)], at(6)).await.unwrap();
    // The same acknowledgement again changes nothing and queues no second audit row.
    store.mark_delivered(&[delivered(&newer)], at(7)).await.unwrap();
    let state = store.load_sink(first.sink).await.unwrap().remove(0);
    assert_eq!((state.version, state.delivered), (2, 2));
    assert_eq!(store.load_audit_outbox(10).await.unwrap().len(), 2);
}

async fn what_was_committed_is_there_after_the_process_is_gone(state: State) {
    let store = state.planned().await;
    capture(&store, "one", 1_000, 1).await;
    store.record_custody(&triplet(), &Event::BackfillDelivered, "test", at(2)).await.unwrap();
    // No close: the connection is simply dropped, as a kill would.
    drop(store);
    let store = state.open().await;
    assert_eq!(head(&store).await, "one");
    assert_eq!(store.load_triplets().await.unwrap()[0].custody.stage, Stage::Mirroring);
}

async fn a_changed_row_breaks_the_chain_and_is_named(state: State) {
    let store = state.planned().await;
    for n in 1..=3 {
        capture(&store, &format!("token {n}"), 1_000 * n, n).await;
    }
    assert_eq!(store.verify_journal().await.unwrap(), 3);
    for (change, back) in [
        ("UPDATE journal SET expires_at = 9 WHERE seq = 2", "UPDATE journal SET expires_at = 2000000 WHERE seq = 2"),
        ("UPDATE journal SET writer = 'composio' WHERE seq = 1", "UPDATE journal SET writer = 'nango' WHERE seq = 1"),
        ("UPDATE journal SET payload = digest WHERE seq = 3", "UPDATE journal SET payload = NULL WHERE seq = 3"),
        ("DELETE FROM journal WHERE seq = 2", "SELECT NULL"),
    ] {
        state.raw(change).await;
        let error = store.verify_journal().await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Corrupt { what: "journal", detail } if detail.contains("entry")),
            "{change}: {error}"
        );
        state.raw(back).await;
    }
}

async fn a_refused_event_is_not_recorded_and_the_audit_trail_is_chained(state: State) {
    let store = state.planned().await;
    let error = store
        .record_custody(&triplet(), &Event::RetireBegun { at: at(1), passed_at: at(1) }, "test", at(1))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Refused { refusal: Refusal::Illegal { .. }, .. }), "{error}");
    store.record_custody(&triplet(), &Event::BackfillDelivered, "test", at(2)).await.unwrap();
    store.record_action("alice", "gate", "{}", at(3)).await.unwrap();
    let actors = async |after, limit| -> Vec<String> {
        store.load_events(after, limit).await.unwrap().into_iter().map(|e| e.actor).collect()
    };
    assert_eq!(actors(0, 10).await, ["test", "alice"]);
    assert_eq!(actors(0, 1).await, ["test"]);
    assert_eq!(actors(1, 10).await, ["alice"]);
    assert_eq!(store.verify_events().await.unwrap(), 2);
    state.raw("UPDATE event SET actor = 'bob' WHERE seq = 2").await;
    assert!(store.load_events(0, 10).await.is_err() && store.verify_events().await.is_err());
}

async fn an_intent_is_done_once_and_an_open_one_must_be_settled_by_looking(state: State) {
    let store = state.planned().await;
    assert_eq!(store.begin_intent("make-1", "make", at(1)).await.unwrap(), None);
    assert_eq!(store.begin_intent("make-1", "make", at(2)).await.unwrap(), Some(IntentState::Started));
    store.finish_intent("make-1", "ca_1").await.unwrap();
    assert_eq!(store.begin_intent("make-1", "make", at(3)).await.unwrap(), Some(IntentState::Done("ca_1".into())));
}

async fn another_plan_is_refused_and_the_same_one_changes_nothing(state: State) {
    let store = state.planned().await;
    store.begin_plan("p-000000000001", "{}", &[], at(9)).await.unwrap();
    assert_eq!(store.load_triplets().await.unwrap().len(), 1);
    let error = store.begin_plan("p-000000000002", "{}", &[], at(9)).await.unwrap_err();
    assert!(matches!(error, StoreError::OtherPlan { .. }), "{error}");
}

async fn a_state_of_other_keys_is_refused(state: State) {
    drop(state.planned().await);
    let other = state.open_with(Vault::from_master(&[8; 32])).await;
    assert!(matches!(other, Err(StoreError::OtherKeys(_))));
}

async fn of_several_versions_in_one_commit_the_last_is_the_head(state: State) {
    let store = state.planned().await;
    let connection = store.load_connections().await.unwrap()[0].id;
    let entries = [entry("one", 1_000), entry("two", 2_000), entry("late", 1_500), entry("three", 3_000)];
    let capture = captured(&store, connection, 0, &triplet(), &entries);
    store.append_captures(&[capture], &Sink::ALL, at(1)).await.unwrap();
    assert_eq!((head(&store).await.as_str(), store.verify_journal().await.unwrap()), ("three", 4));
    assert_eq!(store.load_counters().await.unwrap()["superseded"], 3);
    let offered = claim(&store, 1).await;
    assert!(offered.len() == 2 && offered.iter().all(|p| p.metadata.v == 4), "{offered:?}");
}

async fn a_connection_belongs_to_the_one_who_claimed_it_until_its_time_is_over(state: State) {
    let (a, b) = (state.planned().await, state.open().await);
    let id = a.load_connections().await.unwrap()[0].id;
    a.schedule_poll(id, Some(at(10))).await.unwrap();
    assert!(a.claim_polls(at(9), 10, at(70)).await.unwrap().is_empty(), "it is not due");
    assert_eq!(a.claim_polls(at(10), 10, at(70)).await.unwrap()[0].claim, 1);
    assert!(b.claim_polls(at(69), 10, at(130)).await.unwrap().is_empty(), "it is taken");
    assert_eq!(b.load_due().await.unwrap().poll_at, Some(at(70)));
    assert_eq!(b.claim_polls(at(70), 10, at(130)).await.unwrap()[0].claim, 2);
    // Out of reach: what was claimed and not read is due again with the rest.
    let claimed = a.claim_polls(at(130), 10, at(190)).await.unwrap();
    a.put_off_polls(&claimed, at(130), at(140)).await.unwrap();
    assert_eq!(a.load_due().await.unwrap().poll_at, Some(at(140)));
}

async fn the_capture_of_a_late_reader_is_refused_once_a_later_claim_has_its_outcome(state: State) {
    let (a, b) = (state.planned().await, state.open().await);
    let id = a.load_connections().await.unwrap()[0].id;
    a.schedule_poll(id, Some(at(10))).await.unwrap();
    let late = a.claim_polls(at(10), 10, at(70)).await.unwrap().remove(0);
    let second = b.claim_polls(at(70), 10, at(130)).await.unwrap().remove(0);
    let newer = captured(&b, id, second.claim, &triplet(), &[entry("newer", 2_000)]);
    assert_eq!(b.append_captures(&[newer], &Sink::ALL, at(71)).await.unwrap(), 0);
    let older = captured(&a, id, late.claim, &triplet(), &[entry("older", 3_000)]);
    assert_eq!(a.append_captures(&[older], &Sink::ALL, at(72)).await.unwrap(), 1);
    assert_eq!(head(&a).await, "newer");
    let failure =
        PollFailure { connection: id, claim: late.claim, at: at(73), retry_at: None, dead: true, counts: true };
    a.record_poll_failure(failure).await.unwrap();
    let row = a.load_connections().await.unwrap().remove(0);
    assert_eq!((row.poll_at, row.failures, row.dead_at), (Some(at(1_100)), 0, None));
    // Late, but nobody else has an outcome: what it read counts.
    a.schedule_poll(id, Some(at(100))).await.unwrap();
    let third = a.claim_polls(at(100), 10, at(110)).await.unwrap().remove(0);
    b.claim_polls(at(110), 10, at(170)).await.unwrap();
    let read = captured(&a, id, third.claim, &triplet(), &[entry("newest", 4_000)]);
    assert_eq!(a.append_captures(&[read], &Sink::ALL, at(120)).await.unwrap(), 0);
    assert_eq!(head(&b).await, "newest");
}

async fn a_sink_is_not_written_by_two_at_a_time_and_nothing_is_overtaken(state: State) {
    let (a, b) = (state.planned().await, state.open().await);
    capture(&a, "one", 1_000, 1).await;
    let taken = a.claim_deliveries(Sink::KvSource, at(1), 10, at(61)).await.unwrap();
    assert_eq!(taken.len(), 1);
    let rest = claim(&b, 1).await;
    assert_eq!(rest.iter().map(|p| p.sink).collect::<Vec<_>>(), [Sink::KvTarget]);
    // A newer version waits until the write of the older one is over.
    capture(&a, "two", 2_000, 2).await;
    assert!(claim(&b, 2).await.is_empty());
    a.mark_delivered(&[delivered(&taken[0])], at(3)).await.unwrap();
    // KV takes one write a second to a key.
    assert!(claim(&b, 4).await.is_empty());
    let next = claim(&b, 5).await;
    assert_eq!(next.iter().map(|p| (p.sink, p.metadata.v)).collect::<Vec<_>>(), [(Sink::KvSource, 2)]);
    // The other worker died: its delivery is due when its time is over.
    let last = claim(&a, 61).await;
    assert_eq!(last.iter().map(|p| (p.sink, p.metadata.v)).collect::<Vec<_>>(), [(Sink::KvTarget, 2)]);
}

async fn a_late_acknowledgement_makes_the_newest_version_go_again(state: State) {
    let (a, b) = (state.planned().await, state.open().await);
    let kv = async |store: &Store, now| {
        store.claim_deliveries(Sink::KvSource, at(now), 10, at(now + 60)).await.unwrap().pop()
    };
    capture(&a, "one", 1_000, 1).await;
    let late = kv(&a, 1).await.unwrap();
    capture(&a, "two", 2_000, 2).await;
    let newer = kv(&b, 61).await.unwrap();
    b.mark_delivered(&[delivered(&newer)], at(62)).await.unwrap();
    a.mark_delivered(&[delivered(&late)], at(63)).await.unwrap();
    let state = a.load_sink(Sink::KvSource).await.unwrap().remove(0);
    assert_eq!((state.version, state.delivered), (2, 2), "what came late is not recorded as delivered");
    let again = kv(&b, 65).await.expect("its write may have come after the newer one");
    assert_eq!(again.metadata.v, 2);
    b.mark_delivered(&[delivered(&again)], at(66)).await.unwrap();
    assert!(kv(&b, 70).await.is_none());
    // Late with the very version that is there: whoever wrote last, it is right.
    a.mark_delivered(&[delivered(&newer)], at(71)).await.unwrap();
    assert!(kv(&b, 75).await.is_none());
}

async fn failures_of_a_claim_that_is_over_change_nothing(state: State) {
    let (a, b) = (state.planned().await, state.open().await);
    capture(&a, "one", 1_000, 1).await;
    let late = claim(&a, 1).await.remove(0);
    let current = claim(&b, 61).await.into_iter().find(|p| p.sink == late.sink).unwrap();
    a.defer_deliveries(&[&late], at(61), at(62)).await.unwrap();
    assert!(!a.bury_delivery(&late, "it said no").await.unwrap());
    assert!(claim(&a, 62).await.is_empty());
    b.defer_deliveries(&[&current], at(61), at(63)).await.unwrap();
    let again = claim(&a, 63).await.remove(0);
    assert_eq!((again.sink, again.attempts), (late.sink, 1));
    assert!(a.bury_delivery(&again, "it said no").await.unwrap());
    let dead = a.load_sink(late.sink).await.unwrap().remove(0);
    assert_eq!(dead.dead.as_deref(), Some("it said no"));
}

async fn several_writers_keep_one_chain(state: State) {
    let triplets: Vec<Triplet> = (0..4).map(|n| Triplet::parse(&format!("t{n}:slack:default")).unwrap()).collect();
    let store = state.open().await;
    plan(&store, &triplets).await;
    let writers = triplets.into_iter().enumerate().map(async |(n, triplet)| {
        let store = state.open().await;
        let connection = store.load_connections().await.unwrap()[n].id;
        for round in 1..=20 {
            let capture = captured(&store, connection, 0, &triplet, &[entry(&format!("{n} {round}"), round)]);
            store.append_captures(&[capture], &Sink::ALL, at(round)).await.unwrap();
            store.record_action("writer", &triplet.to_string(), "{}", at(round)).await.unwrap();
            store.accept(token(&triplet, &format!("{n} {round} put"), round)).await.unwrap();
            let claimed = claim_until(&store, round, round).await;
            store.mark_delivered(&claimed.iter().map(delivered).collect::<Vec<_>>(), at(round)).await.unwrap();
        }
        store.close().await.unwrap();
    });
    futures_join(writers).await;
    assert_eq!(store.verify_journal().await.unwrap(), 80);
    assert_eq!(store.verify_events().await.unwrap(), 80);
    assert_eq!(store.verify_intake().await.unwrap(), 80);
}

/// Runs them all at once on this thread.
async fn futures_join(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut open: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        open.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if open.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

async fn what_is_accepted_is_committed_together_and_survives(state: State) {
    let store = state.planned().await;
    assert!(!store.load_due().await.unwrap().intake);
    let callers = (0..100).map(|n| {
        let store = &store;
        async move { store.accept(token(&triplet(), &format!("token {n}"), n)).await.unwrap() }
    });
    futures_join(callers).await;
    store.intake_arrived().await;
    drop(store);
    let store = state.open().await;
    assert!(store.load_due().await.unwrap().intake);
    let segments = store.load_intake(1_000).await.unwrap();
    assert!(segments.len() <= 3, "{} commits for 100 callers", segments.len());
    let subjects: usize = segments.iter().map(|s| s.entries.len()).sum();
    assert_eq!(subjects, 100);
    let stored = state.raw("SELECT payload FROM intake").await;
    assert!(stored.iter().flatten().all(|p| !p.windows(5).any(|w| w == b"token")), "a payload is in clear");
}

async fn accepted_tokens_reach_the_journal_once_and_in_order(state: State) {
    let (store, other) = (state.planned().await, state.open().await);
    capture(&store, "head", 1_000, 1).await;
    let unknown = Triplet::parse("who:is:this").unwrap();
    for intake in [
        token(&triplet(), "three", 3_000),
        token(&triplet(), "two", 2_000),
        token(&triplet(), "three", 3_000),
        token(&unknown, "x", 1),
        token(&triplet(), "older than the head", 500),
    ] {
        store.accept(intake).await.unwrap();
    }
    let (segments, same) = (store.load_intake(100).await.unwrap(), other.load_intake(100).await.unwrap());
    assert_eq!(segments, same);
    let settled = store.settle_intake(&segments, &[], &Sink::ALL, at(2)).await.unwrap();
    assert_eq!((settled.versions, settled.superseded, settled.duplicates, settled.unknown), (1, 2, 1, 1));
    let twice = other.settle_intake(&same, &[], &Sink::ALL, at(3)).await.unwrap();
    assert_eq!(twice, cutover::store::Settled::default());
    assert_eq!(head(&store).await, "three");
    assert!(store.load_intake(100).await.unwrap().is_empty() && !store.load_due().await.unwrap().intake);
    assert_eq!(store.verify_journal().await.unwrap(), 2);
    assert_eq!(store.verify_intake().await.unwrap(), 5);
    let pending = claim(&store, 3).await;
    assert!(pending.len() == 2 && pending.iter().all(|p| p.metadata.src == Writer::DoAlarm));
}

async fn a_changed_intake_is_found(state: State) {
    let store = state.planned().await;
    for n in 1..=3 {
        store.accept(token(&triplet(), &format!("token {n}"), n)).await.unwrap();
    }
    assert_eq!(store.verify_intake().await.unwrap(), 3);
    for (change, back) in [
        ("UPDATE intake SET entries = 2 WHERE seq = 1", "UPDATE intake SET entries = 1 WHERE seq = 1"),
        ("UPDATE intake SET payload = digest WHERE seq = 2", "UPDATE intake SET payload = NULL WHERE seq = 2"),
        ("DELETE FROM intake WHERE seq = 2", "SELECT NULL"),
    ] {
        state.raw(change).await;
        let error = store.verify_intake().await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { what: "intake log", .. }), "{change}: {error}");
        state.raw(back).await;
    }
}

async fn of_several_callers_one_creates_and_one_takes(state: State) {
    let (a, b) = (state.open().await, state.open().await);
    assert!(a.create_meta("down:nango", "1").await.unwrap());
    assert!(!b.create_meta("down:nango", "2").await.unwrap());
    assert_eq!(b.take_meta("down:nango").await.unwrap().as_deref(), Some("1"));
    assert_eq!(a.take_meta("down:nango").await.unwrap(), None);
}

async fn a_change_is_noted_by_one_of_those_who_see_it(state: State) {
    let (a, b) = (state.open().await, state.open().await);
    let note = |s: i64, detail: &str| Note { at: at(s), subject: "p-1".to_owned(), detail: detail.to_owned() };
    assert!(a.note_change("told", "inconclusive", "pass", "gate", &note(1, "to pass")).await.unwrap());
    assert!(!b.note_change("told", "inconclusive", "pass", "gate", &note(2, "again")).await.unwrap());
    let (one, two) = (note(3, "to fail"), note(4, "to fail"));
    let (one, two) = tokio::join!(
        a.note_change("told", "pass", "fail", "gate", &one),
        b.note_change("told", "pass", "fail", "gate", &two)
    );
    assert_ne!(one.unwrap(), two.unwrap());
    let noted: Vec<String> = b.load_notes("gate").await.unwrap().into_iter().map(|n| n.detail).collect();
    assert_eq!(noted, ["to pass", "to fail"]);
    assert_eq!(b.load_meta("told").await.unwrap().as_deref(), Some("fail"));
}

fn look(s: i64, outcome: LookOutcome) -> Look {
    Look { source: EvidenceSource::Scan, at: at(s), outcome, samples: 10, every_ms: 600_000, slack_ms: 60_000 }
}

async fn looks_with_one_outcome_are_one_row_and_a_silence_is_a_gap(state: State) {
    let store = state.open().await;
    for s in [0, 600, 1_200] {
        store.record_look(&look(s, LookOutcome::Clean)).await.unwrap();
    }
    // One more than interval and slack later.
    store.record_look(&look(1_200 + 661, LookOutcome::Finding)).await.unwrap();
    let looks = store.load_looks(at(0)).await.unwrap().remove(&EvidenceSource::Scan).unwrap();
    let rows: Vec<_> = looks.iter().map(|l| (l.outcome, l.runs, l.samples, l.until)).collect();
    assert_eq!(rows, [(LookOutcome::Clean, 3, 30, at(1_200)), (LookOutcome::Finding, 1, 10, at(1_861))]);
    let gaps = store.load_gaps().await.unwrap();
    assert_eq!((gaps.len(), gaps[0].from, gaps[0].until), (1, at(1_800), at(1_861)));
    // A day ends a row.
    store.record_look(&look(86_400 - 1, LookOutcome::Clean)).await.unwrap();
    store.record_look(&look(86_400, LookOutcome::Clean)).await.unwrap();
    assert_eq!(store.load_looks(at(0)).await.unwrap()[&EvidenceSource::Scan].len(), 4);
    assert_eq!(store.load_looks(at(86_400)).await.unwrap()[&EvidenceSource::Scan].len(), 1);
}

async fn looks_without_an_answer_do_not_end_a_gap(state: State) {
    let store = state.open().await;
    store.record_look(&look(0, LookOutcome::Clean)).await.unwrap();
    for s in [600, 660, 720, 1_400] {
        store.record_look(&look(s, LookOutcome::Error)).await.unwrap();
    }
    assert_eq!(store.load_gaps().await.unwrap(), []);
    assert_eq!(store.load_last_looks().await.unwrap()[&EvidenceSource::Scan], at(0));
    store.record_look(&look(2_000, LookOutcome::Clean)).await.unwrap();
    let gaps = store.load_gaps().await.unwrap();
    assert_eq!((gaps.len(), gaps[0].from, gaps[0].until), (1, at(600), at(2_000)));
}

async fn samples_grow_thin_with_age_and_do_not_stay_for_ever(state: State) {
    let store = state.open().await;
    let hours = |n: i64| at(n * 3_600);
    for n in 0..60 * 24 {
        store.save_sample(hours(n), "{}").await.unwrap();
    }
    let kept = store.load_samples(at(0)).await.unwrap();
    let old = kept.iter().filter(|(at, _)| *at < hours(14 * 24)).count();
    assert!((14..=28).contains(&old), "{old} samples of the first two weeks");
    assert!(kept.len() - old >= 45 * 24, "{} samples of the last weeks", kept.len() - old);
    assert_eq!(store.load_sample_before(hours(59 * 24)).await.unwrap().map(|s| s.0), Some(hours(59 * 24)));
    store.save_sample(hours(600 * 24), "{}").await.unwrap();
    assert_eq!(store.load_samples(at(0)).await.unwrap().len(), 1);
}

fn gate_report(s: i64, verdict: Verdict) -> GateReport {
    let evidence = Evidence { now: at(s), ..Evidence::default() };
    let judged = judge(&CriteriaPolicy::default(), &evidence, &[]);
    GateReport {
        verdict,
        evaluated_at: at(s),
        criteria: judged.criteria,
        clock: judged.clock,
        gaps: vec![],
        waivers: vec![],
        open_until: if verdict == Verdict::Pass { at(s + 100) } else { at(s) },
    }
}

async fn gate_runs_chain_and_a_pass_opens_only_what_it_was_given_for(state: State) {
    let store = state.planned().await;
    let plan = store.load_plan_id().await.unwrap().unwrap();
    let policy = cutover::plan::Policy::default();
    let opens = async |plan: &str, s: i64| fresh_pass(&store, plan, at(s)).await.unwrap();
    assert_eq!(opens(&plan, 0).await, Err(NoFreshPass::Never));

    let first = record(&store, &gate_report(1_000, Verdict::Pass), &policy).await.unwrap();
    assert_eq!(opens(&plan, 1_099).await.map(|run| run.digest), Ok(first.digest.clone()));
    assert!(matches!(opens(&plan, 1_100).await, Err(NoFreshPass::Stale { .. })));
    assert!(matches!(opens(&plan, 999).await, Err(NoFreshPass::Stale { .. })));
    assert!(matches!(opens("p-000000000002", 1_050).await, Err(NoFreshPass::OtherPlan { .. })));

    // Nor does a run whose columns are not what was sealed open anything, whatever they say.
    for (column, worse, back) in [("open_until", "open_until + 1", "open_until - 1"), ("verdict", "'fail'", "'pass'")] {
        state.raw(&format!("UPDATE gate_run SET {column} = {worse} WHERE seq = 1")).await;
        assert!(matches!(opens(&plan, 1_050).await, Err(NoFreshPass::Altered { .. })), "{column}");
        state.raw(&format!("UPDATE gate_run SET {column} = {back} WHERE seq = 1")).await;
        assert!(opens(&plan, 1_050).await.is_ok());
    }

    // The newest decides.
    let second = record(&store, &gate_report(1_010, Verdict::Fail), &policy).await.unwrap();
    assert_eq!((second.previous, second.sequence), (Some(first.digest), 2));
    assert!(matches!(opens(&plan, 1_020).await, Err(NoFreshPass::NotPassed { verdict: Verdict::Fail, .. })));

    // Nor does a pass outlive a waiver that it stands on.
    let waiver = waiver();
    store.save_waiver(&waiver).await.unwrap();
    let mut leaning = gate_report(1_030, Verdict::Pass);
    let evidence = Evidence { now: at(1_030), ..Evidence::default() };
    leaning.criteria = judge(&CriteriaPolicy::default(), &evidence, std::slice::from_ref(&waiver)).criteria;
    record(&store, &leaning, &policy).await.unwrap();
    assert!(opens(&plan, 1_040).await.is_ok());
    assert!(store.revoke_waiver(&waiver.id, "bob", at(1_050)).await.unwrap());
    assert!(matches!(opens(&plan, 1_060).await, Err(NoFreshPass::Revoked { .. })));

    // Each change of the verdict is told, and only the changes.
    let told = store.load_notes("gate").await.unwrap();
    let told: Vec<&str> = told.iter().map(|n| n.detail.split(':').next().unwrap()).collect();
    assert_eq!(told, ["inconclusive to pass", "pass to fail", "fail to pass"]);
}

fn waiver() -> Waiver {
    Waiver::new("outage", "*", "ann", "maintenance", at(1_000), at(9_000), 1 << 40).unwrap()
}

async fn news_is_one_line_for_each_kind_and_subject_the_newest_first(state: State) {
    let store = state.open().await;
    for (kind, subject, s) in
        [("outage", "nango", 1), ("parity", "a", 2), ("outage", "nango", 3), ("parity", "b", 4), ("other", "x", 5)]
    {
        let note = Note { at: at(s), subject: subject.into(), detail: format!("at {s}") };
        store.add_note(kind, &note).await.unwrap();
    }
    let news = store.load_news(&["outage", "parity"], at(2), 10).await.unwrap();
    let rows: Vec<_> = news.iter().map(|n| (n.kind.as_str(), n.subject.as_str(), n.detail.as_str(), n.times)).collect();
    assert_eq!(rows, [("parity", "b", "at 4", 1), ("outage", "nango", "at 3", 1), ("parity", "a", "at 2", 1)]);
    assert_eq!(store.load_news(&["outage"], at(0), 1).await.unwrap()[0].times, 2);
}

async fn a_waiver_is_kept_once_and_revoked_once(state: State) {
    let store = state.open().await;
    let waiver = waiver();
    store.save_waiver(&waiver).await.unwrap();
    store.save_waiver(&waiver).await.unwrap();
    assert_eq!(store.load_waivers().await.unwrap(), std::slice::from_ref(&waiver));
    assert!(store.revoke_waiver(&waiver.id, "bob", at(2_000)).await.unwrap());
    assert!(!store.revoke_waiver(&waiver.id, "carl", at(3_000)).await.unwrap());
    let kept = store.load_waivers().await.unwrap().remove(0);
    assert_eq!((kept.revoked_at, kept.revoked_by.as_deref()), (Some(at(2_000)), Some("bob")));
}

async fn keys_rotate_under_a_running_store(state: State) {
    let keys = state.dir.path().join("cutover.key");
    let running = state.open_with(Vault::load_or_create(&keys).unwrap()).await.unwrap();
    plan(&running, &[triplet()]).await;
    capture(&running, "one", 1_000, 1).await;
    running.accept(token(&triplet(), "two", 2_000)).await.unwrap();
    assert_eq!(Vault::add_key(&keys).unwrap(), 2);
    let rotating = state.open_with(Vault::load_or_create(&keys).unwrap()).await.unwrap();
    assert_eq!(rotating.rotate().await.unwrap(), 2);
    assert_eq!(rotating.rotate().await.unwrap(), 0, "nothing is left of the old key");
    assert_eq!(head(&running).await, "one");
    assert_eq!(running.load_intake(10).await.unwrap().len(), 1);
    assert_eq!(Vault::drop_old_keys(&keys).unwrap(), 1);
    let after = state.open_with(Vault::load_or_create(&keys).unwrap()).await.unwrap();
    assert_eq!(head(&after).await, "one");
    assert_eq!((after.verify_journal().await.unwrap(), after.verify_intake().await.unwrap()), (1, 1));
}

#[tokio::test]
async fn one_machine_leads_until_its_lease_is_over_or_given_back() {
    let state = State::postgres();
    let (a, b) = (state.open().await, state.open().await);
    assert!(a.is_shared());
    assert_eq!(a.lead("duties", at(0), at(60)).await.unwrap(), Lead::Ours { epoch: 1 });
    assert_eq!(b.lead("duties", at(30), at(90)).await.unwrap(), Lead::Theirs { until: at(60) });
    assert_eq!(a.lead("duties", at(30), at(90)).await.unwrap(), Lead::Ours { epoch: 1 });
    assert_eq!(b.lead("duties", at(90), at(150)).await.unwrap(), Lead::Ours { epoch: 2 });
    assert_eq!(a.lead("duties", at(91), at(151)).await.unwrap(), Lead::Theirs { until: at(150) });
    b.close().await.unwrap();
    assert_eq!(a.lead("duties", at(92), at(152)).await.unwrap(), Lead::Ours { epoch: 3 });
    let alone = State::sqlite();
    assert_eq!(alone.open().await.lead("duties", at(0), at(60)).await.unwrap(), Lead::Ours { epoch: 0 });
}

#[tokio::test]
async fn one_process_at_a_time_carries_out_operations_on_a_shared_state() {
    let state = State::postgres();
    let (a, b) = (state.open().await, state.open().await);
    assert!(a.lock_operations().await.unwrap() && a.lock_operations().await.unwrap());
    assert!(!b.lock_operations().await.unwrap());
    drop(a);
    for _ in 0..100 {
        if b.lock_operations().await.unwrap() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the lock outlived the process that held it");
}
