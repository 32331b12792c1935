//! What the store keeps of comparisons, whatever database is behind it.

#[path = "support/postgres.rs"]
mod postgres_server;

use cutover::domain::criteria::{CriteriaPolicy, EvidenceSource, LookOutcome, Note};
use cutover::domain::secret::{Fingerprint, FingerprintKey};
use cutover::domain::time::Timestamp;
use cutover::store::{Checked, DueKeys, Durability, Place, Store, Vault, Verification};

async fn stores() -> [(Store, Option<tempfile::TempDir>); 2] {
    let dir = tempfile::tempdir().unwrap();
    let sqlite = Place::Sqlite(dir.path().join("cutover.db"));
    let postgres: Place = postgres_server::shared().database().parse().unwrap();
    let open = async |place: &Place| {
        Store::open_at(place, Durability::ProcessCrash, Vault::from_master(&[9; 32])).await.unwrap()
    };
    [(open(&sqlite).await, Some(dir)), (open(&postgres).await, None)]
}

fn at(s: i64) -> Timestamp {
    Timestamp::from_secs(s)
}

fn run(name: &str, level: &str, differing: u64) -> Verification {
    let note = Note { at: at(9), subject: "a:b:c".to_owned(), detail: "missing".to_owned() };
    Verification {
        run: name.to_owned(),
        began_at: at(1),
        at: at(9),
        left: "kv:source".to_owned(),
        right: "kv:target".to_owned(),
        level: level.to_owned(),
        keys: 10,
        compared: 10,
        differing,
        unsure: 0,
        failed: 0,
        counts: "{}".to_owned(),
        findings: (0..differing).map(|_| note.clone()).collect(),
    }
}

#[tokio::test]
async fn only_whole_clean_runs_add_to_the_series_and_any_difference_ends_it() {
    for (store, _dir) in stores().await {
        let criteria = CriteriaPolicy::default();
        let record = async |run: Verification| store.record_verification(&run, &criteria).await.unwrap();
        let looks = async || {
            let looks = store.load_looks(at(0)).await.unwrap().remove(&EvidenceSource::Verify).unwrap_or_default();
            looks.into_iter().map(|l| (l.outcome, l.runs, l.samples)).collect::<Vec<_>>()
        };
        assert!(record(run("a", "full", 0)).await);
        assert!(!record(run("a", "full", 0)).await, "a run counts once");
        assert_eq!(looks().await, [(LookOutcome::Clean, 1, 10)]);
        // A look at the listings alone proves nothing about the values.
        record(run("b", "keys", 0)).await;
        record(Verification { failed: 1, ..run("c", "full", 0) }).await;
        // Other sides are evidence of something else.
        record(Verification { right: "composio".to_owned(), ..run("e", "full", 3) }).await;
        assert_eq!(looks().await, [(LookOutcome::Clean, 1, 10)]);
        record(Verification { compared: 0, ..run("d", "full", 0) }).await;
        record(run("f", "keys", 2)).await;
        let (inconclusive, finding) = ((LookOutcome::Inconclusive, 1, 0), (LookOutcome::Finding, 1, 10));
        assert_eq!(looks().await, [(LookOutcome::Clean, 1, 10), inconclusive, finding]);
        assert_eq!(store.load_notes("parity").await.unwrap().len(), 2);
        let kept = store.load_verifications(10).await.unwrap();
        assert_eq!(kept.len(), 6);
        assert_eq!(kept[0], Verification { findings: Vec::new(), ..run("a", "full", 0) });
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_watermark_moves_with_clean_comparisons_only_and_never_back() {
    let print = |text: &str| FingerprintKey::new([1; 32]).listing_digest(text.as_bytes());
    let checked = |key: &str, listed: Fingerprint, outcome: &'static str, s: i64| Checked {
        key: key.to_owned(),
        listed,
        outcome,
        rung: "fingerprint",
        at: at(s),
    };
    for (store, _dir) in stores().await {
        let due = async |due, since| {
            let keys = store.load_due_keys("a|b", due, at(since), 10).await.unwrap();
            keys.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        let listed = |k1: &str, k2: &str| [("k1".to_owned(), print(k1)), ("k2".to_owned(), print(k2))];
        store.note_listed("a|b", &listed("1", "1"), at(10)).await.unwrap();
        store.note_listed("other", &[("k3".to_owned(), print("1"))], at(10)).await.unwrap();
        assert_eq!(store.load_watermark("a|b").await.unwrap(), None, "no key was compared yet");
        assert_eq!(due(DueKeys::Changed, 10).await, ["k1", "k2"]);
        assert!(due(DueKeys::InTurn, 10).await.is_empty());

        store.note_checked("a|b", &[checked("k1", print("1"), "match", 11)]).await.unwrap();
        assert_eq!(store.load_watermark("a|b").await.unwrap(), None, "one key has none");
        store.note_checked("a|b", &[checked("k2", print("1"), "settling", 12)]).await.unwrap();
        store.note_settled("a|b", &[("k2", "match", "fingerprint")], at(13)).await.unwrap();
        assert_eq!(store.load_watermark("a|b").await.unwrap(), Some(at(11)));

        // k2 says something else, and differs.
        store.note_listed("a|b", &listed("1", "2"), at(20)).await.unwrap();
        assert_eq!(due(DueKeys::Changed, 20).await, ["k2"]);
        assert_eq!(due(DueKeys::InTurn, 20).await, ["k1", "k2"]);
        store.note_checked("a|b", &[checked("k1", print("1"), "match", 21)]).await.unwrap();
        store.note_checked("a|b", &[checked("k2", print("2"), "settling", 21)]).await.unwrap();
        store.note_settled("a|b", &[("k2", "changed", "fingerprint")], at(22)).await.unwrap();
        assert_eq!(store.load_watermark("a|b").await.unwrap(), Some(at(13)));
        assert!(due(DueKeys::Changed, 20).await.is_empty(), "once a round");
        assert_eq!(due(DueKeys::Changed, 30).await, ["k2"], "a difference is looked at in each round");

        // What is listed no more has no watermark.
        store.note_listed("a|b", &listed("1", "2")[..1], at(40)).await.unwrap();
        store.forget_unlisted("a|b", at(40)).await.unwrap();
        assert_eq!(store.load_watermark("a|b").await.unwrap(), Some(at(21)));
        assert_eq!(store.load_due_keys("other", DueKeys::Changed, at(50), 10).await.unwrap().len(), 1);
        store.close().await.unwrap();
    }
}
