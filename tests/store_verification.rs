//! What the store keeps of comparisons, whatever database is behind it.

#[path = "support/postgres.rs"]
mod postgres_server;

use cutover::domain::criteria::{CriteriaPolicy, EvidenceSource, LookOutcome, Note};
use cutover::domain::custody::Route;
use cutover::domain::secret::{Fingerprint, FingerprintKey, Secret};
use cutover::domain::time::Timestamp;
use cutover::domain::token::{KvEntry, Writer};
use cutover::domain::triplet::Triplet;
use cutover::store::{
    Capture, Checked, DueKeys, Durability, NewTriplet, NewVersion, Place, Sink, Store, Vault, Verification,
};

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
        rules: Some(r#"{"expiry_tolerance_ms":1000}"#.to_owned()),
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

        // By a clock that is behind.
        store.note_checked("a|b", &[checked("k1", print("1"), "match", 5)]).await.unwrap();
        store.note_settled("a|b", &[("k1", "match", "fingerprint")], at(4)).await.unwrap();
        assert_eq!(store.load_watermark("a|b").await.unwrap(), Some(at(11)), "it never moves back");

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

/// Triplets in the order of their KV keys' bytes. A language puts small letters before large ones and
/// looks past punctuation.
const IN_ORDER: [&str; 6] = [
    "B:hubspot:default",
    "Zeta:slack:default",
    "a-c:slack:default",
    "a:slack:x",
    "aB:slack:default",
    "ab:slack:default",
];

fn applied(plan: &str) -> Vec<NewTriplet> {
    let new = |name: &&str| NewTriplet {
        triplet: Triplet::parse(name).unwrap(),
        integration_key: plan.to_owned(),
        connection_id: (*name).to_owned(),
        route: Route::Reconsent,
        wave: Some(1),
        toolkit: Some("slack".to_owned()),
        scopes: Vec::new(),
    };
    let mut triplets: Vec<NewTriplet> = IN_ORDER.iter().map(new).collect();
    triplets.reverse();
    triplets
}

/// One version of each triplet, delivered nowhere yet.
async fn journalled(store: &Store) {
    let triplets = applied("slack");
    store.begin_plan("p-000000000001", "{}", &triplets, at(1)).await.unwrap();
    for connection in store.load_connections().await.unwrap() {
        let triplet = Triplet::parse(&connection.connection_id).unwrap();
        let entry = KvEntry {
            access_token: Secret::new(format!("at-{triplet}")),
            expires_at: None,
            token_type: None,
            scope: None,
            other: serde_json::Map::new(),
        };
        let capture = Capture {
            connection: connection.id,
            claim: connection.claim,
            fingerprint: store.vault().fingerprints().fingerprint(&entry.access_token),
            expires_at: None,
            poll_at: at(1_000),
            versions: vec![NewVersion { triplet, epoch: 1, writer: Writer::Nango, entry }],
            scheduled: None,
        };
        store.append_captures(&[capture], &Sink::ALL, at(2)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_reads_in_the_order_of_its_keys_whatever_language_the_database_speaks() {
    let dir = tempfile::tempdir().unwrap();
    // The language does order them differently.
    let url = postgres_server::shared().database_in("en-US");
    let mut sorted = IN_ORDER.map(str::to_owned);
    let rows = postgres_server::shared().ask(&url, "SELECT 'a' < 'B'");
    assert_eq!(rows.trim(), "t", "a language that orders as bytes do proves nothing");
    let key_file = dir.path().join("cutover.key");
    let places = [format!("sqlite:{}", dir.path().join("cutover.db").display()), url];
    // A dump that has nothing of the first triplet, another token for the last, and one triplet more.
    sorted.sort();
    assert_eq!(sorted, IN_ORDER);
    let line =
        |name: &str, token: &str| format!(r#"{{"key":"tokens:{name}","value":"{{\"access_token\":\"{token}\"}}"}}"#);
    let mut dump: Vec<String> = IN_ORDER[1..5].iter().map(|name| line(name, &format!("at-{name}"))).collect();
    dump.extend([line(IN_ORDER[5], "another"), line("c:slack:default", "more")]);
    std::fs::write(dir.path().join("dump.jsonl"), dump.join("\n")).unwrap();
    let mut reports = Vec::new();
    for place in &places {
        let vault = Vault::load_or_create(&key_file).unwrap();
        let store = Store::open_at(&place.parse().unwrap(), Durability::ProcessCrash, vault).await.unwrap();
        journalled(&store).await;
        // Page by page, each behind the last of the one before.
        let (mut heads, mut after) = (Vec::new(), String::new());
        loop {
            let page = store.load_journal_heads(&after, 2).await.unwrap();
            let Some(last) = page.last() else { break };
            after = last.triplet.to_string();
            heads.extend(page.iter().map(|head| head.triplet.to_string()));
        }
        assert_eq!(heads, IN_ORDER, "{place}");
        let names = |triplets: Vec<Triplet>| triplets.iter().map(Triplet::to_string).collect::<Vec<_>>();
        let sink = store.load_sink(Sink::KvSource).await.unwrap().into_iter().map(|state| state.triplet).collect();
        assert_eq!(names(sink), IN_ORDER, "{place}");
        let all = store.load_triplets().await.unwrap().into_iter().map(|row| row.triplet).collect();
        assert_eq!(names(all), IN_ORDER, "{place}");
        store.close().await.unwrap();

        let (state, key) = (place.clone(), key_file.clone());
        let folder = dir.path().to_owned();
        let output = tokio::task::spawn_blocking(move || {
            std::process::Command::new(env!("CARGO_BIN_EXE_cutover"))
                .args(["verify", "journal", "dump.jsonl", "--order", "sorted", "--level", "full", "--format", "jsonl"])
                .args(["--ignore", "metadata.v=a dump of values only", "--ignore", "metadata.ep=a dump of values only"])
                .args(["--state", &state, "--key-file"])
                .arg(key)
                .env_clear()
                .env("TMPDIR", &folder)
                .current_dir(&folder)
                .output()
                .unwrap()
        })
        .await
        .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{error}");
        let out = String::from_utf8(output.stdout).unwrap();
        let found: Vec<(String, String)> = out
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|line| line["key"].is_string())
            .map(|line| (line["outcome"].as_str().unwrap().to_owned(), line["key"].as_str().unwrap().to_owned()))
            .collect();
        reports.push(found);
    }
    let kinds: Vec<(&str, &str)> = reports[0].iter().map(|(kind, key)| (kind.as_str(), key.as_str())).collect();
    assert!(kinds.contains(&("missing", "tokens:B:hubspot:default")), "{kinds:?}");
    assert!(kinds.contains(&("extra", "tokens:c:slack:default")), "{kinds:?}");
    assert_eq!(reports[0], reports[1]);
}
