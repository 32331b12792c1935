//! Sinks that are slow, down or picky; alerts about them; and what a person does about a dead letter.

#[path = "support/fake.rs"]
mod fake;
#[path = "support/postgres.rs"]
mod postgres;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use cutover::alert::{Alerts, Kind, Slack};
use cutover::catalogue::Catalogue;
use cutover::domain::criteria::Note;
use cutover::domain::secret::Secret;
use cutover::domain::time::{HOUR_MS, SECOND_MS, Timestamp};
use cutover::domain::token::KvEntry;
use cutover::engine::{Engine, EngineConfig, Lane};
use cutover::plan::Policy;
use cutover::store::{Durability, Sink, Store, Vault};
use fake::{Fake, Fate, Step, soaking, soaking_at, triplet};
use serde_json::Value;

const BEGIN: Timestamp = Timestamp::from_secs(1_778_058_000);

fn failing(n: usize) -> Vec<Step> {
    vec![Step { before: 0, after: 0, fate: Fate::Failed }; n]
}

async fn engine(dir: &std::path::Path, count: usize) -> (Engine<Fake>, Fake) {
    engine_with(dir, count, 4).await
}

async fn engine_with(dir: &std::path::Path, count: usize, sink_parallel: usize) -> (Engine<Fake>, Fake) {
    let (store, world) = (soaking(dir, count).await, Fake::default());
    let config = EngineConfig { sink_parallel, ..EngineConfig::new(Policy::default()) };
    (Engine::new(store, world.clone(), Catalogue::built_in(), config).await.unwrap(), world)
}

async fn report(engine: &Engine<Fake>, n: usize, token: &str, minutes: i64, now: Timestamp) {
    let entry = KvEntry {
        access_token: Secret::new(token),
        expires_at: Some(BEGIN.plus_ms(minutes * 60_000)),
        token_type: None,
        scope: None,
        other: serde_json::Map::new(),
    };
    engine.report_token(&triplet(n), entry, now).await.unwrap();
}

/// What alerts are made of.
async fn note(store: &Store, kind: Kind, subject: &str, detail: &str, at: Timestamp) {
    let note = Note { at, subject: subject.to_owned(), detail: detail.to_owned() };
    store.add_note(kind.name(), &note).await.unwrap();
}

async fn notes(engine: &Engine<Fake>, kind: &str) -> Vec<String> {
    engine.store().load_notes(kind).await.unwrap().into_iter().map(|note| note.subject).collect()
}

#[tokio::test]
async fn a_sink_that_is_down_is_left_alone_and_delays_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, world) = engine(dir.path(), 20).await;
    let mut now = BEGIN;
    for n in 0..20 {
        report(&engine, n, "one", 600, now).await;
    }
    engine.run_lane(Lane::Reads, now).await.unwrap();
    world.state().script.extend(failing(40));
    engine.run_lane(Lane::Sink(Sink::Composio), now).await.unwrap();
    // Requests under way when it opened are not taken back: at most one for each queue beside the fifth.
    let asked = 40 - world.state().script.len();
    assert!((5..=8).contains(&asked), "{asked} requests to a sink that is down");
    assert_eq!(notes(&engine, "circuit-open").await, ["composio"]);
    let snapshot = engine.snapshot(now).await.unwrap();
    assert!(snapshot.sinks[2].open_until.is_some() && snapshot.sinks[2].pending == 20);
    assert_eq!((snapshot.classes.source_only, snapshot.classes.neither), (0, 20));

    // The others take theirs at once, in one bulk put each.
    world.state().script.clear();
    for sink in [Sink::KvSource, Sink::KvTarget] {
        engine.run_lane(Lane::Sink(sink), now).await.unwrap();
        assert_eq!(engine.store().load_sink(sink).await.unwrap().iter().filter(|s| s.delivered == 1).count(), 20);
    }
    assert_eq!(engine.snapshot(now).await.unwrap().classes.source_only, 20);
    assert_eq!(engine.snapshot(now).await.unwrap().results.both, 20, "first results at the two namespaces");

    // Still down: one try a pause. Well again: everything.
    world.state().script.extend(failing(1));
    now = now.plus_ms(11 * SECOND_MS);
    engine.run_lane(Lane::Sink(Sink::Composio), now).await.unwrap();
    assert!(world.state().script.is_empty());
    now = now.plus_ms(180 * SECOND_MS);
    for _ in 0..3 {
        now = now.plus_ms(130 * SECOND_MS);
        engine.run_lane(Lane::Sink(Sink::Composio), now).await.unwrap();
    }
    let snapshot = engine.snapshot(now).await.unwrap();
    assert_eq!((snapshot.classes.both, snapshot.sinks[2].pending), (20, 0));
    assert_eq!(notes(&engine, "circuit-closed").await, ["composio"]);
    assert!(notes(&engine, "dead-letter").await.is_empty(), "an outage buries nothing");
}

/// Runs a sink's lane once a minute. Returns when the last round was.
async fn run_for(engine: &Engine<Fake>, sink: Sink, from: Timestamp, minutes: i64) -> Timestamp {
    for minute in 0..minutes {
        engine.run_lane(Lane::Sink(sink), from.plus_ms(minute * 60_000)).await.unwrap();
    }
    from.plus_ms((minutes - 1) * 60_000)
}

async fn delivered(engine: &Engine<Fake>, sink: Sink) -> usize {
    engine.store().load_sink(sink).await.unwrap().iter().filter(|s| s.delivered == s.version).count()
}

/// A namespace that does not exist, and a project in which no account does.
#[tokio::test]
async fn what_is_not_found_at_all_is_trouble_of_the_sink_and_buries_nothing() {
    for sink in [Sink::KvTarget, Sink::Composio] {
        let dir = tempfile::tempdir().unwrap();
        let (engine, world) = engine(dir.path(), 3).await;
        // The sink took something once, before.
        report(&engine, 0, "one", 500, BEGIN).await;
        engine.run_lane(Lane::Reads, BEGIN).await.unwrap();
        engine.run_lane(Lane::Sink(sink), BEGIN).await.unwrap();
        world.state().gone = ["kv.target", "ca_0", "ca_1", "ca_2"].map(String::from).into();
        let now = BEGIN.plus_ms(60_000);
        for n in 0..3 {
            report(&engine, n, "two", 600, now).await;
        }
        engine.run_lane(Lane::Reads, now).await.unwrap();
        let now = run_for(&engine, sink, now, 240).await;
        assert_eq!(notes(&engine, "circuit-open").await, [sink.name()]);
        assert!(notes(&engine, "dead-letter").await.is_empty(), "{}", sink.name());
        world.state().gone.clear();
        run_for(&engine, sink, now, 20).await;
        assert_eq!(delivered(&engine, sink).await, 3, "{}", sink.name());
        assert_eq!(notes(&engine, "circuit-closed").await, [sink.name()]);
    }
}

#[tokio::test]
async fn an_account_that_is_not_found_while_others_are_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, world) = engine(dir.path(), 2).await;
    world.state().gone.insert("ca_0".to_owned());
    let mut now = BEGIN;
    report(&engine, 0, "one", 600, now).await;
    for round in 0..24 {
        report(&engine, 1, &format!("token-{round}"), 600 + round, now).await;
        engine.run_lane(Lane::Reads, now).await.unwrap();
        now = run_for(&engine, Sink::Composio, now, 10).await;
    }
    assert_eq!(notes(&engine, "dead-letter").await, [triplet(0).to_string()]);
    assert!(notes(&engine, "circuit-open").await.is_empty());
}

/// A claim lasts two minutes and a request at most half of one: after three requests a round is over.
#[tokio::test]
async fn a_round_is_over_before_its_claims_are() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, world) = engine_with(dir.path(), 500, 2).await;
    for n in 0..500 {
        report(&engine, n, "one", 600, BEGIN).await;
    }
    engine.run_lane(Lane::Reads, BEGIN).await.unwrap();
    // All are late by now: each key is looked at first, 100 with a request, two requests side by side.
    let mut now = BEGIN.plus_ms(90 * SECOND_MS);
    engine.run_lane(Lane::Sink(Sink::KvSource), now).await.unwrap();
    let asked = |state: &fake::State| (state.looks, state.puts);
    assert_eq!(asked(&world.state()), (4, 1));
    assert_eq!(delivered(&engine, Sink::KvSource).await, 400);
    assert_eq!(engine.run_lane(Lane::Sink(Sink::KvSource), now).await.unwrap(), None, "the rest stayed due");
    assert_eq!(delivered(&engine, Sink::KvSource).await, 500);

    // A bad entry is found in several rounds, and nothing good waits for that.
    let bad = triplet(333);
    world.state().refused = Some(bad.clone());
    world.state().puts = 0;
    let mut rounds = 0;
    while notes(&engine, "dead-letter").await.is_empty() {
        rounds += 1;
        engine.run_lane(Lane::Sink(Sink::KvTarget), now).await.unwrap();
        assert!(std::mem::take(&mut world.state().puts) <= 3 && rounds < 20, "round {rounds}");
        now = now.plus_ms(SECOND_MS);
    }
    assert_eq!(notes(&engine, "dead-letter").await, [bad.to_string()]);
    run_for(&engine, Sink::KvTarget, now, 2).await;
    assert_eq!(delivered(&engine, Sink::KvTarget).await, 499);
}

#[tokio::test]
async fn an_engine_that_ends_delivers_what_is_pending() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = engine(dir.path(), 5).await;
    for n in 0..5 {
        report(&engine, n, "one", 600, BEGIN).await;
    }
    engine.finish(BEGIN).await.unwrap();
    for sink in Sink::ALL {
        assert_eq!(delivered(&engine, sink).await, 5, "{}", sink.name());
    }
}

#[tokio::test]
async fn no_key_is_written_twice_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, world) = engine(dir.path(), 1).await;
    let mut written = 0;
    for step in 0..40 {
        let now = BEGIN.plus_ms(step * 100);
        report(&engine, 0, &format!("token {step}").replace(' ', "-"), 60 + step, now).await;
        for lane in &Lane::ALL[..4] {
            engine.run_lane(*lane, now).await.unwrap();
        }
        written = world.state().history.iter().filter(|w| w.sink == Sink::KvSource).count();
    }
    assert_eq!(written, 3, "forty tokens in four seconds are three writes");
    engine.run_lane(Lane::Sink(Sink::KvSource), BEGIN.plus_ms(5_000)).await.unwrap();
    let last = world.state().history.iter().rfind(|w| w.sink == Sink::KvSource).unwrap().token.clone();
    assert_eq!(last, "token-39");
}

/// What the shim alone asks of the store, on the other database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backlog_alerts_and_repair_are_the_same_on_postgresql() {
    let place = postgres::shared().database().parse().unwrap();
    let world = Fake::default();
    let config = EngineConfig { sink_parallel: 4, ..EngineConfig::new(Policy::default()) };
    let store = soaking_at(&place, 3).await;
    let engine = Engine::new(store, world.clone(), Catalogue::built_in(), config).await.unwrap();
    for n in 0..3 {
        report(&engine, n, "one", 600, BEGIN).await;
    }
    engine.run_lane(Lane::Reads, BEGIN).await.unwrap();
    for sink in [Sink::KvSource, Sink::KvTarget] {
        engine.run_lane(Lane::Sink(sink), BEGIN).await.unwrap();
    }
    let claimed = engine.store().claim_deliveries(Sink::Composio, BEGIN, 1, BEGIN.plus_ms(HOUR_MS)).await.unwrap();
    assert!(engine.store().bury_delivery(&claimed[0], "refused").await.unwrap());
    let snapshot = engine.snapshot(BEGIN).await.unwrap();
    assert_eq!((snapshot.classes.source_only, snapshot.classes.both), (3, 0));
    assert_eq!((snapshot.sinks[2].dead, snapshot.sinks[2].pending, snapshot.dead_letters.len()), (1, 2, 1));
    assert_eq!((snapshot.header.stages["planned"], snapshot.triplets.len()), (3, 3));
    let (sink, of) = (claimed[0].sink, claimed[0].triplet.clone());
    assert!(engine.store().revive_delivery(sink, &of, BEGIN).await.unwrap());
    assert!(!engine.store().drop_delivery(sink, &of).await.unwrap(), "it is no dead letter any more");
    engine.run_lane(Lane::Sink(Sink::Composio), BEGIN).await.unwrap();
    assert_eq!(engine.snapshot(BEGIN).await.unwrap().classes.both, 3);
    assert_eq!(engine.run_lane(Lane::Sink(Sink::Composio), BEGIN).await.unwrap(), None, "nothing is due");

    assert!(engine.account_expired("msg_1", "ca_1", BEGIN).await.unwrap());
    assert!(!engine.account_expired("msg_1", "ca_1", BEGIN).await.unwrap());
    note(engine.store(), Kind::Gate, "p-1", "pass to fail", BEGIN).await;
    note(engine.store(), Kind::Gate, "p-1", "fail to pass", BEGIN.plus_ms(1_000)).await;
    for s in [1, 2] {
        note(engine.store(), Kind::CircuitOpen, "kv.target", "kv.target", BEGIN.plus_ms(s)).await;
    }
    let alerts = Alerts::new(None, None);
    alerts.run_due(engine.store(), BEGIN.plus_ms(2_000)).await.unwrap();
    let due = engine.store().load_due_alerts(BEGIN.plus_ms(2_000), 10).await.unwrap();
    let told: Vec<_> = due.iter().map(|a| (a.kind.as_str(), a.detail.as_str(), a.repeats)).collect();
    // What is the same again is folded in; a change of the gate is never the same.
    let expected = [("gate", "pass to fail", 0), ("gate", "fail to pass", 0), ("circuit-open", "kv.target", 1)];
    assert_eq!(told[1..], expected);
    assert_eq!((due[0].kind.as_str(), due[0].subject.clone()), ("account-expired", triplet(1).to_string()));
    // Another machine leaves them to this one.
    let other = Store::open_at(&place, Durability::ProcessCrash, Vault::from_master(&[7; 32])).await.unwrap();
    assert!(alerts.run_due(&other, BEGIN.plus_ms(3_000)).await.unwrap() > BEGIN.plus_ms(30_000));
}

/// Runs `cutover repair` on the state in `dir`.
fn repair(dir: &std::path::Path, args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .arg("repair")
        .args(args)
        .current_dir(dir)
        .env_clear()
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

#[tokio::test]
async fn a_person_decides_about_dead_letters() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = engine(dir.path(), 2).await;
    std::fs::write(dir.path().join("cutover.key"), [7; 32]).unwrap();
    assert_eq!(repair(dir.path(), &["list"]).0, 0);
    for n in 0..2 {
        report(&engine, n, "one", 600, BEGIN).await;
    }
    engine.run_lane(Lane::Reads, BEGIN).await.unwrap();
    let until = BEGIN.plus_ms(HOUR_MS);
    let claimed = engine.store().claim_deliveries(Sink::Composio, BEGIN, 10, until).await.unwrap();
    for delivery in &claimed {
        assert!(engine.store().bury_delivery(delivery, "composio after 1 attempts: rejected").await.unwrap());
    }
    let (code, text) = repair(dir.path(), &["list", "--format", "json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, report["exit_code"].as_i64(), report["deliveries"].as_array().unwrap().len()), (3, Some(3), 2));
    let name = triplet(0).to_string();
    let (code, text) = repair(dir.path(), &["explain", &name]);
    assert!(
        code == 3 && text.contains("composio   has version 0 of 1") && text.contains("given up: composio after"),
        "{text}"
    );

    let (code, text) = repair(dir.path(), &["retry", &name]);
    assert!(code == 2 && text.contains("nobody said who"), "{text}");
    let by = ["--by", "ann"];
    let sink = [&["retry", &name, "--sink", "kv.source"], &by[..]].concat();
    assert_eq!(repair(dir.path(), &sink).0, 3, "nothing was given up there");
    assert_eq!(repair(dir.path(), &[&["retry", &name], &by[..]].concat()).0, 0);
    let events = engine.store().load_recent_events(1).await.unwrap();
    assert!(events[0].actor == "ann" && events[0].json.contains("\"retry\":\"composio\""), "{events:?}");
    let other = triplet(1).to_string();
    assert_eq!(repair(dir.path(), &["drop", &other]).0, 2, "a reason is wanted");
    assert_eq!(repair(dir.path(), &["drop", &other, "--reason", "tenant left", "--by", "ann"]).0, 0);
    assert_eq!(repair(dir.path(), &["list"]).0, 0);
    let events = engine.store().load_recent_events(1).await.unwrap();
    assert!(events[0].actor == "ann" && events[0].json.contains("tenant left"), "{events:?}");

    for lane in &Lane::ALL[1..4] {
        let far = Timestamp::from_secs(4_000_000_000);
        engine.run_lane(*lane, far).await.unwrap();
    }
    let composio = engine.store().load_sink(Sink::Composio).await.unwrap();
    assert_eq!(composio.iter().map(|s| s.delivered).collect::<Vec<_>>(), [1, 0], "one again, one dropped");
    assert_eq!(repair(dir.path(), &["explain", "nobody"]).0, 2);
}

/// Takes one HTTP request, answers with `status`, and gives the body that came.
fn take_one(listener: &TcpListener, status: &str) -> Value {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut chunk).unwrap();
        bytes.extend_from_slice(&chunk[..n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        if body.len() >= length.unwrap().parse::<usize>().unwrap() {
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
            return serde_json::from_str(body).unwrap();
        }
    }
}

async fn exchange(
    alerts: &Alerts,
    store: &Store,
    listener: &TcpListener,
    status: &'static str,
    now: Timestamp,
) -> String {
    let listener = listener.try_clone().unwrap();
    let taken = tokio::task::spawn_blocking(move || take_one(&listener, status));
    alerts.run_due(store, now).await.unwrap();
    taken.await.unwrap()["text"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_come_once_survive_a_refusal_and_keep_quiet_hours() {
    let dir = tempfile::tempdir().unwrap();
    let store = soaking(dir.path(), 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/hook", listener.local_addr().unwrap());
    let slack = || Some(Slack::new(&Secret::new(&*address)).unwrap());
    let alerts = Alerts::new(slack(), Some("08:00-10:00".parse().unwrap()));
    let now = BEGIN;
    assert!(now.to_minute().ends_with("09:00"), "{}", now.to_minute());

    // In quiet hours the urgent one goes out and the other waits.
    note(&store, Kind::ForeignWrite, "a:b:c", "kv.source", now).await;
    note(&store, Kind::Gate, "p-1", "pass to fail", now).await;
    let text = exchange(&alerts, &store, &listener, "500 no", now).await;
    assert!(
        text.contains("*foreign-write* a:b:c: kv.source (2026-05-06 09:00 UTC)") && !text.contains("gate"),
        "{text}"
    );
    assert_eq!(store.count_waiting_alerts().await.unwrap(), 2);

    // The refused one is sent again, after its pause, and says so; a crash in between changes nothing.
    let alerts = Alerts::new(slack(), Some("08:00-10:00".parse().unwrap()));
    let later = alerts.run_due(&store, now.plus_ms(SECOND_MS)).await.unwrap();
    assert!(later > now, "nothing is due yet, so nothing is sent");
    let text = exchange(&alerts, &store, &listener, "200 OK", now.plus_ms(20 * SECOND_MS)).await;
    assert!(text.contains("foreign-write") && text.contains("may be a repeat"), "{text}");
    assert_eq!(store.count_waiting_alerts().await.unwrap(), 1);

    // The same subject again within the hour is folded in; another one is not.
    for minute in 1..5 {
        note(&store, Kind::ForeignWrite, "a:b:c", "again", now.plus_ms(minute * 60_000)).await;
    }
    alerts.run_due(&store, now.plus_ms(6 * 60_000)).await.unwrap();
    assert_eq!(store.count_waiting_alerts().await.unwrap(), 1, "only the quiet one waits");
    let text = exchange(&alerts, &store, &listener, "200 OK", now.plus_ms(HOUR_MS + 60_000)).await;
    assert!(text.contains("*gate* p-1: pass to fail") && !text.contains("foreign"), "{text}");
    assert_eq!(store.count_waiting_alerts().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_episode_of_a_circuit_is_told_from_its_opening_to_its_closing() {
    let (dir, place) = (tempfile::tempdir().unwrap(), postgres::shared().database().parse().unwrap());
    for store in [soaking(dir.path(), 1).await, soaking_at(&place, 1).await] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Secret::new(format!("http://{}/hook", listener.local_addr().unwrap()));
        let alerts = Alerts::new(Some(Slack::new(&address).unwrap()), None);
        let mut told = Vec::new();
        // Open, open again on another machine, closed, open, closed: all within the hour, each minute one.
        let episodes =
            [Kind::CircuitOpen, Kind::CircuitOpen, Kind::CircuitClosed, Kind::CircuitOpen, Kind::CircuitClosed];
        for (minute, kind) in (0..).zip(episodes) {
            let now = BEGIN.plus_ms(minute * 60_000);
            note(&store, kind, "kv.source", &format!("note {minute}"), now).await;
            // Another sink's circuit is its own business.
            if minute == 1 {
                note(&store, Kind::CircuitClosed, "composio", "note of another", now).await;
            }
            if (minute, kind) == (1, Kind::CircuitOpen) {
                told.push(exchange(&alerts, &store, &listener, "200 OK", now).await);
                assert!(!told[1].contains("kv.source"), "{told:?}");
                continue;
            }
            told.push(exchange(&alerts, &store, &listener, "200 OK", now).await);
            assert!(told.last().unwrap().contains(&format!("*{}* kv.source: note {minute}", kind.name())), "{told:?}");
        }
        assert_eq!((told.len(), store.count_waiting_alerts().await.unwrap()), (5, 0), "{told:?}");
    }
}
