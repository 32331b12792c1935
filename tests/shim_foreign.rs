//! The DO alarm that writes to KV behind our back: noticed within one scan, named, counted, and
//! never answered by putting an older token back. And webhooks: losing all of them loses nothing.

#[path = "support/fake.rs"]
mod fake;
#[path = "support/postgres.rs"]
mod postgres;

use std::process::Command;

use cutover::catalogue::Catalogue;
use cutover::domain::criteria::{EvidenceSource, Verdict};
use cutover::domain::secret::Secret;
use cutover::domain::time::{MINUTE_MS, Timestamp};
use cutover::domain::token::KvEntry;
use cutover::engine::{Engine, EngineConfig, Lane};
use cutover::plan::Policy;
use cutover::ports::{ApiErrorKind, Namespace, SourceCredential};
use cutover::store::{Durability, Place, Sink, Store, Vault};
use fake::{Fake, Fate, Step, connection_id, soaking, soaking_at, triplet};
use serde_json::Value;

const BEGIN: Timestamp = Timestamp::from_secs(1_000_000);
/// Scans are never further apart.
const SCAN_MAX_MS: i64 = 20 * MINUTE_MS;

fn entry(token: &str, expires_at: Timestamp) -> KvEntry {
    KvEntry {
        access_token: Secret::new(token),
        expires_at: Some(expires_at),
        token_type: None,
        scope: None,
        other: serde_json::Map::new(),
    }
}

/// The alarm's put: no metadata of ours.
fn alarm_writes(world: &Fake, n: usize, token: &str, minutes: i64) {
    let value = entry(token, BEGIN.plus_ms(minutes * MINUTE_MS)).to_json();
    world.state().kv.insert((Namespace::Source, triplet(n).kv_key()), (value, None));
}

fn served(world: &Fake, namespace: Namespace, n: usize) -> String {
    let state = world.state();
    let (value, _) = &state.kv[&(namespace, triplet(n).kv_key())];
    KvEntry::from_json(value.as_bytes()).unwrap().access_token.expose().to_owned()
}

async fn engine(store: Store, world: &Fake) -> Engine<Fake> {
    Engine::new(store, world.clone(), Catalogue::built_in(), EngineConfig::new(Policy::default())).await.unwrap()
}

struct Case {
    engine: Engine<Fake>,
    world: Fake,
    now: Timestamp,
    _dir: tempfile::TempDir,
}

impl Case {
    /// Two triplets whose tokens are mirrored.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, world) = (soaking(dir.path(), 2).await, Fake::default());
        let mut case = Self { engine: engine(store, &world).await, world, now: BEGIN, _dir: dir };
        for n in 0..2 {
            case.report(n, "first", 60).await;
        }
        case.run(0).await;
        case.scan().await;
        case
    }

    async fn report(&self, n: usize, token: &str, minutes: i64) {
        let entry = entry(token, BEGIN.plus_ms(minutes * MINUTE_MS));
        self.engine.report_token(&triplet(n), entry, self.now).await.unwrap();
    }

    /// Lets time pass, and everything but the periodic duties run.
    async fn run(&mut self, ms: i64) {
        self.now = self.now.plus_ms(ms);
        for lane in &Lane::ALL[..4] {
            self.engine.run_lane(*lane, self.now).await.unwrap();
        }
    }

    /// Runs the periodic duties until the next scan is over. Returns how long that took.
    async fn scan(&mut self) -> i64 {
        let (began, scans) = (self.now, self.scans().await);
        while self.scans().await == scans {
            let next = self.engine.run_lane(Lane::Watch, self.now).await.unwrap().unwrap();
            if self.scans().await == scans {
                self.now = next.max(self.now.plus_ms(1_000));
            }
        }
        self.now.since(began)
    }

    async fn scans(&self) -> u64 {
        let looks = self.engine.store().load_looks(BEGIN).await.unwrap();
        looks.get(&EvidenceSource::Scan).into_iter().flatten().map(|l| l.runs).sum()
    }

    fn alarm_writes(&self, n: usize, token: &str, minutes: i64) {
        alarm_writes(&self.world, n, token, minutes);
    }

    fn served(&self, namespace: Namespace, n: usize) -> String {
        served(&self.world, namespace, n)
    }
}

#[tokio::test]
async fn a_write_of_the_alarm_is_noticed_within_one_scan_and_never_undone() {
    let mut case = Case::start().await;
    case.run(30 * MINUTE_MS).await;
    case.alarm_writes(1, "of the alarm", 500);
    assert!(case.scan().await <= SCAN_MAX_MS);

    let notes = case.engine.store().load_notes("foreign-write").await.unwrap();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert_eq!((notes[0].subject.clone(), notes[0].at), (triplet(1).to_string(), case.now));
    assert!(notes[0].detail.contains("kv.source"), "{notes:?}");
    let gate = case.engine.gate(case.now).await.unwrap();
    let judged = gate.criteria.iter().find(|c| c.id == "foreign-writes").unwrap();
    assert_eq!(judged.verdict, Verdict::Fail);
    assert!(judged.reason.contains(&triplet(1).to_string()), "{}", judged.reason);

    // Nothing that we hold is put back over it, however often everything runs.
    for _ in 0..10 {
        case.run(5 * MINUTE_MS).await;
        case.scan().await;
        assert_eq!(case.served(Namespace::Source, 1), "of the alarm");
    }
    // Seen once, not once a scan.
    assert_eq!(case.engine.store().load_notes("foreign-write").await.unwrap().len(), 1);
    // Nor by a token of ours that ends before it: the target gets that one, the source keeps what it has.
    case.report(1, "late and older", 400).await;
    for _ in 0..5 {
        case.run(5 * MINUTE_MS).await;
    }
    assert_eq!(case.served(Namespace::Target, 1), "late and older");
    assert_eq!(case.served(Namespace::Source, 1), "of the alarm");
    // One that lives longer takes over on both sides.
    case.report(1, "newer", 600).await;
    case.run(5 * MINUTE_MS).await;
    assert_eq!(
        (case.served(Namespace::Target, 1), case.served(Namespace::Source, 1)),
        ("newer".into(), "newer".into())
    );
}

#[tokio::test]
async fn a_write_that_the_gateway_reports_reaches_both_sides_and_is_ours_again() {
    let mut case = Case::start().await;
    case.run(30 * MINUTE_MS).await;
    case.alarm_writes(0, "of the alarm", 90);
    case.report(0, "of the alarm", 90).await;
    case.run(0).await;
    for namespace in [Namespace::Source, Namespace::Target] {
        assert_eq!(case.served(namespace, 0), "of the alarm");
    }
    case.scan().await;
    assert!(case.engine.store().load_notes("foreign-write").await.unwrap().is_empty());
    // The token before it comes again, from a slow reporter: dropped with a record.
    case.report(0, "first", 60).await;
    case.run(MINUTE_MS).await;
    assert_eq!(case.served(Namespace::Source, 0), "of the alarm");
    let counters = case.engine.store().load_counters().await.unwrap();
    let dropped = |name: &str| counters.get(name).copied().unwrap_or(0);
    assert_eq!(dropped("intake_superseded") + dropped("intake_duplicates"), 1, "{counters:?}");
}

#[tokio::test]
async fn a_delivery_that_must_look_first_does_not_wait_for_the_ordinary_budget() {
    let mut case = Case::start().await;
    case.run(30 * MINUTE_MS).await;
    {
        let mut state = case.world.state();
        state.no_ordinary_reads = true;
        state.script.push_back(Step { before: 0, after: 0, fate: Fate::Failed });
    }
    case.report(0, "second", 90).await;
    case.run(0).await;
    assert_eq!(case.served(Namespace::Source, 0), "first", "the first try failed");
    case.run(5_000).await;
    assert_eq!(case.served(Namespace::Source, 0), "second");
}

/// What the machine that scans noticed, the others know too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_machine_noticed_holds_back_the_writes_of_another() {
    let (dir, shared) = (tempfile::tempdir().unwrap(), postgres::shared().database().parse().unwrap());
    for place in [Place::Sqlite(dir.path().join("cutover.db")), shared] {
        let world = Fake::default();
        let leading = engine(soaking_at(&place, 2).await, &world).await;
        for connection in leading.store().load_connections().await.unwrap() {
            leading.store().schedule_poll(connection.id, Some(BEGIN)).await.unwrap();
        }
        for n in 0..2 {
            let credential = SourceCredential {
                auth_mode: "OAUTH2".into(),
                access_token: Secret::new(format!("first-{n}")),
                expires_at: Some(BEGIN.plus_ms(60 * MINUTE_MS)),
                scope: None,
                token_type: None,
                connection_config: serde_json::Map::new(),
                auth_error: false,
            };
            world.state().credentials.insert(connection_id(n), credential);
        }
        let store = Store::open_at(&place, Durability::ProcessCrash, Vault::from_master(&[7; 32])).await.unwrap();
        let other = engine(store, &world).await;
        for lane in &Lane::ALL[..4] {
            other.run_lane(*lane, BEGIN).await.unwrap();
        }
        leading.run_lane(Lane::Watch, BEGIN).await.unwrap();

        let mut now = BEGIN.plus_ms(30 * MINUTE_MS);
        alarm_writes(&world, 0, "of the alarm", 500);
        alarm_writes(&world, 1, "of the alarm", 50);
        leading.run_lane(Lane::Watch, now).await.unwrap();
        assert_eq!(leading.store().load_notes("foreign-write").await.unwrap().len(), 2);

        // A first try of a token that came just now.
        other.report_token(&triplet(0), entry("late and older", BEGIN.plus_ms(400 * MINUTE_MS)), now).await.unwrap();
        other.run_lane(Lane::Reads, now).await.unwrap();
        for sink in [Sink::KvTarget, Sink::KvSource] {
            other.run_lane(Lane::Sink(sink), now).await.unwrap();
        }
        assert_eq!(served(&world, Namespace::Target, 0), "late and older", "{place}");
        assert_eq!(served(&world, Namespace::Source, 0), "of the alarm", "{place}");

        // Somebody else refreshes the grant: a lost race is no dead grant, whoever polls.
        let code = "invalid_credentials".to_owned();
        let refused = ApiErrorKind::RefreshFailed { status: 400, code, cooldown: false, exhausted: false };
        {
            let mut state = world.state();
            state.failures.insert(connection_id(1), refused);
            state.whoami = Some((200, r#"{"ok":false,"error":"token_revoked"}"#));
        }
        while now < BEGIN.plus_ms(59 * MINUTE_MS) {
            now = now.plus_ms(MINUTE_MS);
            other.run_lane(Lane::Reads, now).await.unwrap();
        }
        let failures = other.store().load_connections().await.unwrap().iter().map(|c| c.failures).max();
        assert!(failures.is_some_and(|n| n >= 3), "{failures:?}");
        assert!(other.store().load_notes("dead-grant").await.unwrap().is_empty(), "{place}");
    }
}

#[test]
fn losing_every_webhook_changes_nothing_but_latency() {
    let output = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .args(["rehearse", "--days", "2", "--faults", "webhook-loss=100%", "--format", "json"])
        .env_remove("CUTOVER_LOG")
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    let judged = |id: &str| {
        let all = report["criteria"].as_array().unwrap();
        all.iter().find(|c| c["id"] == id).unwrap().clone()
    };
    // Every rotation that the schedule asked for arrived before the token before it ended.
    for id in ["delivery-rate", "missed-refresh"] {
        assert_eq!(judged(id)["verdict"], "pass", "{}", judged(id));
    }
    assert_eq!((report["lost"].as_u64(), report["stale_reads"].as_u64()), (Some(0), Some(0)));
    assert!(report["rotations"].as_u64().unwrap() > 500, "{}", report["rotations"]);
}
