//! What the store promises, whatever database is behind it.

use std::path::Path;

use cutover::domain::custody::{Event, Refusal, Route, Stage};
use cutover::domain::secret::Secret;
use cutover::domain::time::Timestamp;
use cutover::domain::token::{KvEntry, Writer};
use cutover::domain::triplet::Triplet;
use cutover::store::{
    Capture, Delivered, Durability, IntentState, NewTriplet, NewVersion, Sink, Store, StoreError, Vault,
};
use proptest::prelude::*;
use sqlx::Connection;

const KEY: [u8; 32] = [9; 32];

fn at(s: i64) -> Timestamp {
    Timestamp::from_secs(s)
}

fn triplet() -> Triplet {
    Triplet::parse("kahuna:slack:default").unwrap()
}

async fn open(dir: &Path) -> Store {
    Store::open(&dir.join("cutover.db"), Durability::ProcessCrash, Vault::from_master(&KEY)).await.unwrap()
}

/// A store with one connection that feeds one triplet.
async fn planned(dir: &Path) -> Store {
    let store = open(dir).await;
    let new = NewTriplet {
        triplet: triplet(),
        integration_key: "slack".into(),
        connection_id: "kahuna__slack__default".into(),
        route: Route::Reconsent,
        wave: Some(1),
        toolkit: Some("slack".into()),
        scopes: vec!["chat:write".into()],
    };
    store.begin_plan("p-000000000001", "{}", &[new], at(0)).await.unwrap();
    store
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

async fn capture(store: &Store, token: &str, expires: i64, now: i64) {
    let entry = entry(token, expires);
    let version = NewVersion { triplet: triplet(), epoch: 1, writer: Writer::Nango, entry: entry.clone() };
    let capture = Capture {
        connection: store.load_connections().await.unwrap()[0].id,
        fingerprint: store.vault().fingerprints().fingerprint(&entry.access_token),
        expires_at: entry.expires_at,
        poll_at: at(expires - 900),
        versions: vec![version],
        scheduled: None,
    };
    store.append_captures(&[capture], &Sink::ALL, at(now)).await.unwrap();
}

async fn head(store: &Store) -> String {
    store.load_head(&triplet()).await.unwrap().unwrap().access_token.expose().to_owned()
}

#[tokio::test]
async fn a_version_that_ends_earlier_than_the_head_is_dropped_with_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = planned(dir.path()).await;
    capture(&store, "one", 1_000, 1).await;
    capture(&store, "two", 2_000, 2).await;
    capture(&store, "late one", 1_500, 3).await;
    assert_eq!(head(&store).await, "two");
    assert_eq!(store.verify_journal().await.unwrap(), 2);
    assert_eq!(store.load_counters().await.unwrap()["superseded"], 1);
}

#[tokio::test]
async fn only_the_newest_version_waits_for_a_sink_and_its_secret_alone_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = planned(dir.path()).await;
    for (n, token) in ["one", "two", "three"].iter().enumerate() {
        capture(&store, token, 1_000 * (n as i64 + 1), n as i64).await;
    }
    let sinks = async || store.load_pending(at(10), 100).await.unwrap();
    assert!(sinks().await.iter().all(|p| p.sink != Sink::Composio), "there is no account to patch yet");
    store.save_mirror_account(&triplet(), "ca_1").await.unwrap();
    let pending = sinks().await;
    assert_eq!(pending.len(), Sink::ALL.len());
    assert!(pending.iter().all(|p| p.metadata.v == 3 && p.entry.access_token.expose() == "three"));

    let mut raw =
        sqlx::SqliteConnection::connect(&format!("sqlite:{}", dir.path().join("cutover.db").display())).await.unwrap();
    let payloads: Vec<Option<Vec<u8>>> =
        sqlx::query_scalar("SELECT payload FROM journal ORDER BY version").fetch_all(&mut raw).await.unwrap();
    assert_eq!(payloads.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true]);
}

#[tokio::test]
async fn an_acknowledgement_of_an_older_version_leaves_the_newer_one_pending() {
    let dir = tempfile::tempdir().unwrap();
    let store = planned(dir.path()).await;
    capture(&store, "one", 1_000, 1).await;
    let first = store.load_pending(at(1), 100).await.unwrap().remove(0);
    capture(&store, "two", 2_000, 2).await;
    let delivered = Delivered {
        sink: first.sink,
        triplet: first.triplet.clone(),
        metadata: first.metadata.clone(),
        captured_at: first.captured_at,
    };
    store.mark_delivered(std::slice::from_ref(&delivered), at(3)).await.unwrap();
    let still = store.load_pending(at(3), 100).await.unwrap();
    assert!(still.iter().any(|p| p.sink == first.sink && p.metadata.v == 2), "{still:?}");

    // The same acknowledgement again, late, changes nothing and queues no second audit row.
    let newer = still.into_iter().find(|p| p.sink == first.sink).unwrap();
    let newer = Delivered {
        sink: newer.sink,
        triplet: newer.triplet,
        metadata: newer.metadata,
        captured_at: newer.captured_at,
    };
    store.mark_delivered(&[newer], at(4)).await.unwrap();
    store.mark_delivered(&[delivered], at(5)).await.unwrap();
    let state = store.load_sink(first.sink).await.unwrap().remove(0);
    assert_eq!((state.version, state.delivered), (2, 2));
    assert_eq!(store.load_audit_outbox(10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_was_committed_is_there_after_the_process_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = planned(dir.path()).await;
    capture(&store, "one", 1_000, 1).await;
    store.record_custody(&triplet(), &Event::BackfillDelivered, "test", at(2)).await.unwrap();
    // No close: the connection is simply dropped, as a kill would.
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(head(&store).await, "one");
    assert_eq!(store.load_triplets().await.unwrap()[0].custody.stage, Stage::Mirroring);
}

#[tokio::test]
async fn a_changed_row_breaks_the_chain_and_is_named() {
    for change in [
        "UPDATE journal SET expires_at = 9 WHERE seq = 2",
        "UPDATE journal SET payload = x'00' WHERE seq = 3",
        "DELETE FROM journal WHERE seq = 2",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = planned(dir.path()).await;
        for n in 1..=3 {
            capture(&store, &format!("token {n}"), 1_000 * n, n).await;
        }
        assert_eq!(store.verify_journal().await.unwrap(), 3);
        let mut raw = sqlx::SqliteConnection::connect(&format!("sqlite:{}", dir.path().join("cutover.db").display()))
            .await
            .unwrap();
        sqlx::query(change).execute(&mut raw).await.unwrap();
        let error = store.verify_journal().await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Corrupt { what: "journal", detail } if detail.contains("entry")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_refused_event_is_not_recorded_and_the_audit_trail_is_chained() {
    let dir = tempfile::tempdir().unwrap();
    let store = planned(dir.path()).await;
    let error = store
        .record_custody(&triplet(), &Event::Retired { at: at(1), passed_at: at(1) }, "test", at(1))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Refused { refusal: Refusal::Illegal { .. }, .. }), "{error}");
    store.record_custody(&triplet(), &Event::BackfillDelivered, "test", at(2)).await.unwrap();
    store.record_action("alice", "gate", "{}", at(3)).await.unwrap();
    let events = store.load_events(0, 10).await.unwrap();
    assert_eq!(events.iter().map(|e| e.actor.as_str()).collect::<Vec<_>>(), ["test", "alice"]);

    let mut raw =
        sqlx::SqliteConnection::connect(&format!("sqlite:{}", dir.path().join("cutover.db").display())).await.unwrap();
    sqlx::query("UPDATE event SET actor = 'bob' WHERE seq = 2").execute(&mut raw).await.unwrap();
    assert!(store.load_events(0, 10).await.is_err());
}

#[tokio::test]
async fn an_intent_is_done_once_and_an_open_one_must_be_settled_by_looking() {
    let dir = tempfile::tempdir().unwrap();
    let store = planned(dir.path()).await;
    assert_eq!(store.begin_intent("make-1", "make", at(1)).await.unwrap(), None);
    assert_eq!(store.begin_intent("make-1", "make", at(2)).await.unwrap(), Some(IntentState::Started));
    store.finish_intent("make-1", "ca_1").await.unwrap();
    assert_eq!(store.begin_intent("make-1", "make", at(3)).await.unwrap(), Some(IntentState::Done("ca_1".into())));
}

#[tokio::test]
async fn another_plan_is_refused_and_the_same_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = planned(dir.path()).await;
    store.begin_plan("p-000000000001", "{}", &[], at(9)).await.unwrap();
    assert_eq!(store.load_triplets().await.unwrap().len(), 1);
    let error = store.begin_plan("p-000000000002", "{}", &[], at(9)).await.unwrap_err();
    assert!(matches!(error, StoreError::OtherPlan { .. }), "{error}");
}

#[tokio::test]
async fn a_state_of_another_key_opens_no_payload() {
    let dir = tempfile::tempdir().unwrap();
    let store = planned(dir.path()).await;
    capture(&store, "one", 1_000, 1).await;
    drop(store);
    let other =
        Store::open(&dir.path().join("cutover.db"), Durability::PowerLoss, Vault::from_master(&[8; 32])).await.unwrap();
    assert!(matches!(other.load_head(&triplet()).await, Err(StoreError::Vault(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever order tokens arrive in, the head is the one that lives longest among those that
    /// were newest when they came, and no sink is ever offered an older one after it.
    #[test]
    fn the_head_never_goes_back(expiries in prop::collection::vec(1i64..50, 1..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = planned(dir.path()).await;
            let mut newest = 0;
            for (n, expiry) in expiries.iter().enumerate() {
                capture(&store, &format!("token {expiry}"), *expiry, n as i64).await;
                newest = newest.max(*expiry);
                let offered = store.load_pending(at(n as i64), 10).await.unwrap();
                prop_assert!(offered.iter().all(|p| p.entry.expires_at == Some(at(newest))));
            }
            prop_assert_eq!(head(&store).await, format!("token {newest}"));
            store.verify_journal().await.unwrap();
            Ok(())
        })?;
    }
}
