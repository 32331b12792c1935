//! Which token the store takes for the newest, whatever database is behind it: reads of the custodian
//! by their order, reports of others by their end.

#[path = "support/postgres.rs"]
mod postgres_server;
#[macro_use]
#[path = "support/state.rs"]
mod state;

use cutover::domain::custody::Route;
use cutover::domain::secret::Secret;
use cutover::domain::time::Timestamp;
use cutover::domain::token::{KvEntry, Writer};
use cutover::domain::triplet::Triplet;
use cutover::store::{
    Capture, Durability, Hint, Intake, NewTriplet, NewVersion, PollFailure, Settled, Sink, Store, Vault,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use state::State;

contract! {
    a_report_that_ends_earlier_than_the_head_is_dropped_with_a_record
    a_replaced_token_that_is_reported_again_is_not_new
    reports_in_any_order_end_with_the_one_that_lives_longest
    a_later_read_is_newer_whatever_its_end
    between_a_read_and_a_report_the_end_decides_until_the_grant_is_another_one
    a_replay_that_outlives_the_head_hides_nothing
    webhooks_that_another_machine_settled_count_once
}

fn at(s: i64) -> Timestamp {
    Timestamp::from_secs(s)
}

fn triplet() -> Triplet {
    Triplet::parse("kahuna:slack:default").unwrap()
}

/// With the end 0 it has none.
fn entry(token: &str, expires: i64) -> KvEntry {
    KvEntry {
        access_token: Secret::new(token),
        expires_at: Some(at(expires)).filter(|_| expires > 0),
        token_type: None,
        scope: None,
        other: serde_json::Map::new(),
    }
}

impl State {
    async fn open(&self) -> Store {
        Store::open_at(&self.place, Durability::ProcessCrash, Vault::from_master(&[9; 32])).await.unwrap()
    }

    /// A store with one connection that feeds one triplet.
    async fn planned(&self) -> Store {
        let store = self.open().await;
        let new = NewTriplet {
            triplet: triplet(),
            integration_key: "slack".into(),
            connection_id: "kahuna__slack__default".into(),
            route: Route::Reconsent,
            wave: Some(1),
            toolkit: Some("slack".into()),
            scopes: Vec::new(),
        };
        store.begin_plan("p-000000000001", "{}", &[new], at(0)).await.unwrap();
        store
    }
}

/// The poller reads this token.
async fn read(store: &Store, token: &str, expires: i64) {
    let entry = entry(token, expires);
    let capture = Capture {
        connection: store.load_connections().await.unwrap()[0].id,
        claim: 0,
        fingerprint: store.vault().fingerprints().fingerprint(&entry.access_token),
        expires_at: entry.expires_at,
        poll_at: at(1),
        versions: vec![NewVersion { triplet: triplet(), epoch: 1, writer: Writer::Nango, entry }],
        scheduled: None,
    };
    store.append_captures(&[capture], &Sink::ALL, at(1)).await.unwrap();
}

/// Others report these tokens, and they are worked in together.
async fn reported(store: &Store, tokens: &[(&str, i64)]) -> Settled {
    for (token, expires) in tokens {
        store.accept(Intake::token(&triplet(), &entry(token, *expires), at(1))).await.unwrap();
    }
    let segments = store.load_intake(100).await.unwrap();
    store.settle_intake(&segments, &[], &Sink::ALL, at(1)).await.unwrap()
}

async fn head(store: &Store) -> String {
    store.load_head(&triplet()).await.unwrap().unwrap().access_token.expose().to_owned()
}

async fn a_report_that_ends_earlier_than_the_head_is_dropped_with_a_record(state: State) {
    let store = state.planned().await;
    for (token, expires) in [("one", 1_000), ("two", 2_000), ("late one", 1_500)] {
        reported(&store, &[(token, expires)]).await;
    }
    assert_eq!(head(&store).await, "two");
    assert_eq!(store.verify_journal().await.unwrap(), 2);
    assert_eq!(store.load_counters().await.unwrap()["superseded"], 1);
}

async fn a_replaced_token_that_is_reported_again_is_not_new(state: State) {
    let store = state.planned().await;
    for token in ["one", "two", "one", "two"] {
        reported(&store, &[(token, 1_000)]).await;
    }
    assert_eq!((head(&store).await.as_str(), store.verify_journal().await.unwrap()), ("two", 2));
    // The same token with a longer life is new.
    reported(&store, &[("one", 2_000)]).await;
    assert_eq!(head(&store).await, "one");
}

/// No sink is ever offered an older one after it.
async fn reports_in_any_order_end_with_the_one_that_lives_longest(state: State) {
    let store = state.planned().await;
    let orders = prop::collection::vec(1i64..50, 20);
    let mut runner = proptest::test_runner::TestRunner::default();
    let expiries = orders.new_tree(&mut runner).unwrap().current();
    let mut newest = 0;
    for (n, expiry) in expiries.iter().enumerate() {
        reported(&store, &[(&format!("token {expiry}"), *expiry)]).await;
        newest = newest.max(*expiry);
        let now = at(n as i64);
        for offered in store.claim_deliveries(Sink::KvSource, now, 10, now).await.unwrap() {
            assert_eq!(offered.entry.expires_at, Some(at(newest)), "{expiries:?}");
        }
    }
    assert_eq!(head(&store).await, format!("token {newest}"), "{expiries:?}");
    store.verify_journal().await.unwrap();
}

async fn a_later_read_is_newer_whatever_its_end(state: State) {
    let store = state.planned().await;
    for (n, (token, expires)) in [
        ("one", 5_000),
        ("ends sooner", 2_000),
        ("never ends", 0),
        ("ends again", 3_000),
        ("one", 3_000),
        ("one", 4_000),
    ]
    .into_iter()
    .enumerate()
    {
        read(&store, token, expires).await;
        assert_eq!(head(&store).await, token);
        let row = store.load_triplets().await.unwrap().remove(0);
        assert_eq!((row.version, row.expires_at), (n as u64 + 1, entry(token, expires).expires_at));
    }
    let offered = store.claim_deliveries(Sink::KvSource, at(9), 10, at(9)).await.unwrap();
    assert_eq!(offered.iter().map(|p| p.entry.expires_at).collect::<Vec<_>>(), [Some(at(4_000))]);
    // Read once more, it is the one that is there.
    read(&store, "one", 4_000).await;
    assert_eq!(store.verify_journal().await.unwrap(), 6);
}

async fn between_a_read_and_a_report_the_end_decides_until_the_grant_is_another_one(state: State) {
    let store = state.planned().await;
    read(&store, "read", 1_000).await;
    reported(&store, &[("reported", 3_000)]).await;
    read(&store, "ends before the reported one", 2_000).await;
    assert_eq!(head(&store).await, "reported");
    let connection = store.load_connections().await.unwrap()[0].id;
    let gone = PollFailure { connection, claim: 0, at: at(2), retry_at: None, dead: true, counts: false };
    store.record_poll_failure(gone).await.unwrap();
    read(&store, "of a new consent", 2_500).await;
    assert_eq!(head(&store).await, "of a new consent");
}

async fn a_replay_that_outlives_the_head_hides_nothing(state: State) {
    let store = state.planned().await;
    read(&store, "of the old consent", 9_000).await;
    read(&store, "never ends", 0).await;
    read(&store, "of the new consent", 2_000).await;
    let replays = [("of the old consent", 9_000), ("never ends", 0)];
    let settled = reported(&store, &replays).await;
    assert_eq!((settled.versions, settled.superseded), (0, 2));
    let settled = reported(&store, &[replays[0], ("newer", 3_000), replays[1], ("newest", 4_000)]).await;
    assert_eq!((settled.versions, settled.superseded), (1, 3));
    assert_eq!((head(&store).await.as_str(), store.verify_journal().await.unwrap()), ("newest", 4));
}

async fn webhooks_that_another_machine_settled_count_once(state: State) {
    let (store, other) = (state.planned().await, state.open().await);
    let connection = store.load_connections().await.unwrap()[0].clone();
    store.schedule_poll(connection.id, Some(at(900))).await.unwrap();
    store.accept(Intake::token(&triplet(), &entry("one", 1_000), at(1))).await.unwrap();
    let segments = store.load_intake(100).await.unwrap();
    let hint = |s| Hint {
        seq: segments[0].seq,
        integration_key: &connection.integration_key,
        connection_id: &connection.connection_id,
        at: at(s),
    };
    store.settle_intake(&segments, &[hint(40), hint(30), hint(50)], &Sink::ALL, at(2)).await.unwrap();
    other.settle_intake(&segments, &[hint(10)], &Sink::ALL, at(3)).await.unwrap();
    assert_eq!(store.load_counters().await.unwrap()["webhooks"], 3);
    assert_eq!(store.load_due().await.unwrap().poll_at, Some(at(30)), "the earliest of those that counted");
}
