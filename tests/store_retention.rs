//! What is let go of: the state stays bounded, and nothing that anybody needs goes. Whatever database
//! is behind it.

#[path = "support/postgres.rs"]
mod postgres_server;
#[macro_use]
#[path = "support/state.rs"]
mod state;

use cutover::domain::criteria::Note;
use cutover::domain::custody::Route;
use cutover::domain::secret::Secret;
use cutover::domain::time::{DAY_MS, HOUR_MS, Timestamp};
use cutover::domain::token::{KvEntry, Writer};
use cutover::domain::triplet::Triplet;
use cutover::store::{
    Capture, Durability, Intake, NewTriplet, NewVersion, NewsKind, PendingDelivery, Place, Pruning, Retention, Sink,
    Store, StoreError, Vault,
};
use proptest::prelude::*;
use sqlx::{AssertSqlSafe, Connection};
use state::State;

const BEGIN: Timestamp = Timestamp::from_secs(1_000_000_000);

fn triplet(n: usize) -> Triplet {
    Triplet::parse(&format!("acme:slack:a{n}")).unwrap()
}

impl State {
    async fn open(&self, triplets: usize) -> Store {
        assert!(self.dir.path().exists());
        let store = Store::open_at(&self.place, Durability::ProcessCrash, Vault::from_master(&[9; 32])).await.unwrap();
        let new = |n: usize| NewTriplet {
            triplet: triplet(n),
            integration_key: "slack".into(),
            connection_id: format!("acme__slack__a{n}"),
            route: Route::Reconsent,
            wave: Some(1),
            toolkit: None,
            scopes: Vec::new(),
        };
        let all: Vec<NewTriplet> = (0..triplets).map(new).collect();
        store.begin_plan("p-000000000001", "{}", &all, BEGIN).await.unwrap();
        store
    }

    /// Goes behind the store's back.
    async fn raw(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.place {
            Place::Sqlite(path) => {
                let mut raw = sqlx::SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
                sqlx::query_scalar(sql).fetch_optional(&mut raw).await.unwrap().unwrap_or(0)
            }
            Place::Postgres(url) => {
                let mut raw = sqlx::PgConnection::connect(url).await.unwrap();
                sqlx::query_scalar(sql).fetch_optional(&mut raw).await.unwrap().unwrap_or(0)
            }
        }
    }

    async fn rows(&self, table: &str) -> i64 {
        self.raw(&format!("SELECT COUNT(*) FROM {table}")).await
    }
}

contract! {
    a_long_life_leaves_what_is_needed_and_a_chain_that_verifies
    a_bridge_that_is_not_ours_is_found_and_nothing_broken_is_pruned
    a_second_writer_that_slept_links_to_what_is_there
    notes_alerts_and_audit_rows_are_bounded
}

fn entry(token: &str, expires_at: Option<Timestamp>) -> KvEntry {
    KvEntry {
        access_token: Secret::new(token),
        expires_at,
        token_type: None,
        scope: None,
        other: serde_json::Map::new(),
    }
}

/// A token that was read at `at` and lives an hour; without an end when `ends` says so.
async fn capture(store: &Store, n: usize, token: &str, ends: bool, at: Timestamp) {
    let expires_at = ends.then(|| at.plus_ms(HOUR_MS));
    let entry = entry(token, expires_at);
    let capture = Capture {
        connection: n as i64 + 1,
        claim: 0,
        fingerprint: store.vault().fingerprints().fingerprint(&entry.access_token),
        expires_at,
        poll_at: at.plus_ms(HOUR_MS),
        versions: vec![NewVersion { triplet: triplet(n), epoch: 1, writer: Writer::Nango, entry }],
        scheduled: None,
    };
    store.append_captures(&[capture], &Sink::ALL, at).await.unwrap();
}

async fn accept(store: &Store, n: usize, token: &str, at: Timestamp) {
    let entry = entry(token, Some(at.plus_ms(HOUR_MS)));
    store.accept(Intake::token(&triplet(n), &entry, at)).await.unwrap();
}

async fn settle(store: &Store, at: Timestamp) {
    let segments = store.load_intake(1_000).await.unwrap();
    store.settle_intake(&segments, &[], &Sink::ALL, at).await.unwrap();
}

/// A whole round. Returns how many commits it took.
async fn prune(store: &Store, kept: &Retention, now: Timestamp) -> Result<usize, StoreError> {
    let mut round = Pruning::default();
    for batches in 1.. {
        if store.prune_some(&mut round, kept, now).await? {
            assert_eq!(round, Pruning::default());
            return Ok(batches);
        }
    }
    unreachable!("it ends")
}

async fn a_long_life_leaves_what_is_needed_and_a_chain_that_verifies(state: State) {
    let store = state.open(3).await;
    let kept = Retention::default();
    let day = |n: i64| BEGIN.plus_ms(n * DAY_MS);
    // One never rotates: its version is the first of the chain, and stays.
    capture(&store, 2, "for ever", false, BEGIN).await;
    let mut sizes = Vec::new();
    for n in 0..120 {
        for at in (0..24).step_by(4).map(|hour| day(n).plus_ms(hour * HOUR_MS)) {
            capture(&store, 0, &format!("zero {}", at.millis()), true, at).await;
            accept(&store, 1, &format!("one {}", at.millis()), at).await;
            settle(&store, at).await;
        }
        if n % 10 == 9 {
            prune(&store, &kept, day(n)).await.unwrap();
            sizes.push((state.rows("journal").await, state.rows("intake").await, state.rows("pruned").await));
        }
    }
    // 12 versions and 6 commits a day, for a month and a week.
    for (journal, intake, bridges) in &sizes[4..] {
        assert!((340..=500).contains(journal) && (30..=110).contains(intake) && *bridges <= 4, "{sizes:?}");
    }
    assert_eq!(store.verify_journal().await.unwrap(), 1 + 2 * 720, "the pruned ones are counted");
    assert_eq!(store.verify_intake().await.unwrap(), 720);
    for (n, token) in [(0, format!("zero {}", day(119).plus_ms(20 * HOUR_MS).millis())), (2, "for ever".to_owned())] {
        assert_eq!(store.load_head(&triplet(n)).await.unwrap().unwrap().access_token.expose(), token);
    }
    // What was pruned cannot come back either: it ended.
    accept(&store, 1, &format!("one {}", BEGIN.millis()), BEGIN).await;
    settle(&store, day(120)).await;
    assert_eq!(store.verify_journal().await.unwrap(), 1 + 2 * 720);
    store.close().await.unwrap();
    let store = state.open(3).await;
    accept(&store, 1, "afterwards", day(121)).await;
    assert_eq!(store.verify_intake().await.unwrap(), 722);
}

async fn a_bridge_that_is_not_ours_is_found_and_nothing_broken_is_pruned(state: State) {
    let store = state.open(1).await;
    let kept = Retention::default();
    for n in 0..40 {
        capture(&store, 0, &format!("{n}"), true, BEGIN.plus_ms(n * HOUR_MS)).await;
    }
    let later = BEGIN.plus_ms(60 * DAY_MS);
    // An entry that was changed stops the pruning: nobody shall lose the proof.
    state.raw("UPDATE journal SET writer = 'composio' WHERE version = 7").await;
    let error = prune(&store, &kept, later).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { what: "journal", .. }), "{error}");
    assert_eq!((state.rows("journal").await, state.rows("pruned").await), (40, 0));
    state.raw("UPDATE journal SET writer = 'nango' WHERE version = 7").await;
    prune(&store, &kept, later).await.unwrap();
    assert_eq!((state.rows("journal").await, state.rows("pruned").await), (2, 1));
    assert_eq!(store.verify_journal().await.unwrap(), 40);
    for (change, back) in [
        ("entries = entries + 1", "entries = entries - 1"),
        ("last_seq = last_seq - 1", "last_seq = last_seq + 1"),
        ("chain = 'intake log'", "chain = 'journal'"),
    ] {
        state.raw(&format!("UPDATE pruned SET {change}")).await;
        let error = store.verify_journal().await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { what: "journal", .. }), "{change}: {error}");
        state.raw(&format!("UPDATE pruned SET {back}")).await;
    }
    assert_eq!(store.verify_journal().await.unwrap(), 40);
    state.raw("DELETE FROM pruned").await;
    assert!(store.verify_journal().await.is_err());
}

async fn a_second_writer_that_slept_links_to_what_is_there(state: State) {
    let (store, other) = (state.open(1).await, state.open(1).await);
    accept(&other, 0, "theirs", BEGIN).await;
    for n in 1..10 {
        accept(&store, 0, &format!("{n}"), BEGIN.plus_ms(n * HOUR_MS)).await;
    }
    settle(&store, BEGIN).await;
    let later = BEGIN.plus_ms(20 * DAY_MS);
    prune(&store, &Retention::default(), later).await.unwrap();
    assert_eq!(state.rows("intake").await, 1);
    // The entry behind which the sleeper would go on has a successor that nobody can see any more.
    accept(&other, 0, "theirs again", later).await;
    assert_eq!(other.verify_intake().await.unwrap(), 11);
}

async fn notes_alerts_and_audit_rows_are_bounded(state: State) {
    let store = state.open(2).await;
    let kept = Retention { notes_of_a_subject: 10, audit_rows: 40, ..Retention::default() };
    for n in 0..30 {
        let at = BEGIN.plus_ms(n * HOUR_MS);
        for subject in ["a", "b"] {
            let note = Note { at, subject: subject.into(), detail: n.to_string() };
            store.add_note("smoke-stale", &note).await.unwrap();
        }
        store
            .collect_alerts(&[NewsKind { name: "smoke-stale", repeat_ms: 0, counterpart: None }], at, DAY_MS)
            .await
            .unwrap();
        capture(&store, 0, &format!("{n}"), true, at).await;
        for sink in Sink::ALL {
            let pending = store.claim_deliveries(sink, at, 10, at.plus_ms(1)).await.unwrap();
            let delivered: Vec<_> = pending.into_iter().map(PendingDelivery::acknowledged).collect();
            store.mark_delivered(&delivered, at).await.unwrap();
        }
    }
    assert_eq!((state.rows("note").await, state.rows("alert").await, state.rows("audit_outbox").await), (60, 60, 60));
    prune(&store, &kept, BEGIN.plus_ms(30 * HOUR_MS)).await.unwrap();
    assert_eq!((state.rows("note").await, state.rows("alert").await), (20, 60));
    let left = state.rows("audit_outbox").await;
    assert!((40..=42).contains(&left), "{left}");
    let counters = store.load_counters().await.unwrap();
    assert_eq!(counters["notes_thinned"], 40);
    assert_eq!(counters["audit_rows_dropped"], 60 - left);
    let newest = store.load_notes("smoke-stale").await.unwrap();
    assert!(newest.iter().all(|note| note.detail.parse::<i64>().unwrap() >= 20), "{newest:?}");
    let much_later = BEGIN.plus_ms(500 * DAY_MS);
    prune(&store, &kept, much_later).await.unwrap();
    assert_eq!((state.rows("note").await, state.rows("alert").await), (0, 0));
    // The first version, the head and its deliveries are what is left of the tokens.
    assert_eq!((state.rows("journal").await, state.rows("delivery").await), (2, 3));
}

#[derive(Clone, Debug)]
enum Act {
    Rotate {
        triplet: usize,
        ends: bool,
    },
    Accept {
        triplet: usize,
    },
    Settle,
    Wait {
        days: i64,
    },
    /// So many batches of a round.
    Prune {
        batches: usize,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0usize..4, prop::bool::weighted(0.8)).prop_map(|(triplet, ends)| Act::Rotate { triplet, ends }),
        2 => (0usize..4).prop_map(|triplet| Act::Accept { triplet }),
        2 => Just(Act::Settle),
        3 => (0i64..20).prop_map(|days| Act::Wait { days }),
        3 => (1usize..12).prop_map(|batches| Act::Prune { batches }),
    ]
}

async fn heads(store: &Store) -> Vec<Option<(String, Option<Timestamp>)>> {
    let mut heads = Vec::new();
    for n in 0..4 {
        let head = store.load_head(&triplet(n)).await.unwrap();
        heads.push(head.map(|entry| (entry.access_token.expose().to_owned(), entry.expires_at)));
    }
    heads
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: pruning changes no head, loses no entry that is not worked
    /// in, and both chains verify with the same number of entries as without it.
    #[test]
    fn pruning_changes_nothing_that_anybody_asks_for(acts in prop::collection::vec(act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let state = State::sqlite();
            let store = state.open(4).await;
            let (mut now, mut round) = (BEGIN, Pruning::default());
            let (mut versions, mut commits, mut open) = (0, 0, 0);
            for (n, act) in acts.into_iter().enumerate() {
                now = now.plus_ms(1_000);
                match act {
                    Act::Rotate { triplet, ends } => {
                        capture(&store, triplet, &n.to_string(), ends, now).await;
                        versions = store.verify_journal().await.unwrap();
                    }
                    Act::Accept { triplet } => {
                        accept(&store, triplet, &n.to_string(), now).await;
                        (commits, open) = (commits + 1, open + 1);
                    }
                    Act::Settle => {
                        settle(&store, now).await;
                        open = 0;
                        versions = store.verify_journal().await.unwrap();
                    }
                    Act::Wait { days } => now = now.plus_ms(days * DAY_MS),
                    Act::Prune { batches } => {
                        let before = heads(&store).await;
                        for _ in 0..batches {
                            store.prune_some(&mut round, &Retention::default(), now).await.unwrap();
                        }
                        prop_assert_eq!(heads(&store).await, before);
                    }
                }
                prop_assert_eq!(store.verify_journal().await.unwrap(), versions);
                prop_assert_eq!(store.verify_intake().await.unwrap(), commits);
                prop_assert_eq!(store.load_intake(1_000).await.unwrap().len(), open);
            }
            Ok(())
        })?;
    }
}
