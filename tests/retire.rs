//! Retiring for good, from the command line: whose no counts and when, what can be undone, and what is
//! looked at right before each end.

#[path = "support/cutover.rs"]
mod support;

use std::cell::Cell;
use std::collections::BTreeMap;

use cutover::engine::{EngineError, Progress, Zombie, ZombieKind};
use cutover::ports::{AlarmMode, GatewayRead, Outside, SourceRead};
use serde_json::Value;
use support::{Cutover, POLICY, SMALL};

const SLACK: &str = "kahuna:slack:default";

/// What the connections at Nango say about revocation, by integration.
fn connections(cutover: &Cutover) -> BTreeMap<String, Option<Value>> {
    let engine = cutover.engine();
    let listed = cutover.runtime.block_on(engine.outside().source().list_connections()).unwrap();
    cutover.runtime.block_on(engine.into_store().close()).unwrap();
    listed.into_iter().map(|c| (c.integration_key, c.skip_token_revocation)).collect()
}

fn left(cutover: &Cutover) -> Vec<String> {
    connections(cutover).into_keys().collect()
}

fn modes(cutover: &Cutover) -> Vec<AlarmMode> {
    let engine = cutover.engine();
    let alarms = cutover.runtime.block_on(engine.outside().gateway().list_alarms()).unwrap();
    cutover.runtime.block_on(engine.into_store().close()).unwrap();
    alarms.into_iter().map(|alarm| alarm.mode).collect()
}

/// Runs an operation of `retire` once.
fn retire(cutover: &Cutover, args: &[&str]) -> (i32, String) {
    let args = [&["retire"], args, &["--no-wait", "--policy", &cutover.policy]].concat();
    let (code, out, error) = cutover.run(&args);
    (code, out + &error)
}

fn retire_nango(cutover: &Cutover) -> (i32, String) {
    retire(cutover, &["nango", "--confirm", &cutover.plan_id()])
}

fn retired(cutover: &Cutover) -> usize {
    cutover.stages().iter().filter(|stage| *stage == "retired").count()
}

#[test]
fn a_no_stops_what_it_is_about_before_anything_happens_to_it() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_settled();
    let no = |args: &[&str]| cutover.run(&[&["ctl", "no", "--reason", "customer asked"], args].concat());
    let go = |args: &[&str]| assert_eq!(cutover.run(&[&["ctl", "go"], args].concat()).0, 0);
    // Of what the plan does not have nothing can be said.
    let (code, _, error) = no(&["--wave", "77"]);
    assert!(code == 2 && error.contains("no wave 77") && error.contains("known are 1, 2"), "{code}: {error}");
    let (code, _, error) = no(&["--triplet", "kahuna:slack:other"]);
    assert!(code == 2 && error.contains(SLACK), "{code}: {error}");
    assert_eq!(cutover.run(&["ctl", "go", "--wave", "77"]).0, 2);

    // The objects are retired together: a no to any of them stops it.
    let before = modes(&cutover);
    for scope in [&["--wave", "2"][..], &["--triplet", SLACK]] {
        assert_eq!(no(scope).0, 0);
        let (code, said) = retire(&cutover, &["do-alarm", "--yes"]);
        assert!(code == 7 && said.contains("customer asked") && said.contains("cutover ctl go --"), "{code}: {said}");
        assert_eq!(modes(&cutover), before);
        go(scope);
    }
    // One that comes between two stages stops the next one.
    assert_eq!(retire(&cutover, &["do-alarm", "--yes"]).0, 4);
    assert_eq!(no(&["--triplet", SLACK]).0, 0);
    cutover.live(3 * 3_600_000);
    assert_eq!(retire(&cutover, &["do-alarm", "--yes"]).0, 7);
    assert!(modes(&cutover).iter().all(|mode| *mode == AlarmMode::Report), "{:?}", modes(&cutover));
    go(&["--triplet", SLACK]);
    cutover.until_done(&["retire", "do-alarm", "--yes"]);

    // At Nango it leaves what it is about; the others go on.
    let (code, said) = retire(&cutover, &["nango", "--prepare"]);
    assert!(code == 7 && said.contains("--yes"), "{code}: {said}");
    assert_eq!(no(&[]).0, 0);
    assert_eq!(retire(&cutover, &["nango", "--prepare", "--yes"]).0, 7);
    assert_eq!(retire_nango(&cutover).0, 7);
    assert!(connections(&cutover).values().all(Option::is_none), "{:?}", connections(&cutover));
    go(&[]);
    assert_eq!(no(&["--triplet", SLACK]).0, 0);
    let dry = ["retire", "nango", "--confirm", &cutover.plan_id(), "--dry-run", "--policy", &cutover.policy];
    let (code, _, error) = cutover.run(&dry);
    assert!(code == 7 && error.contains("is held") && error.contains("kahuna__hubspot__default"), "{code}: {error}");
    assert!(!error.contains("kahuna__slack__default"), "{error}");
    let (code, said) = retire_nango(&cutover);
    assert!(code == 7 && said.contains("is held: alice: customer asked") && said.contains("others are done"), "{said}");
    assert_eq!((left(&cutover), retired(&cutover)), (vec!["slack".to_owned()], 2));
    assert_eq!(connections(&cutover)["slack"], None, "nor is it opted out");
    go(&["--triplet", SLACK]);
    cutover.until_done(&["retire", "nango", "--confirm", &cutover.plan_id()]);
    assert_eq!((left(&cutover).len(), retired(&cutover)), (0, 3));
    // HubSpot's grant would have gone upstream with its connection.
    let ledger = cutover.ledger();
    assert_eq!(ledger.incidents_total, 0, "{:?}", ledger.incidents);
}

#[test]
fn a_connection_that_is_deleted_without_an_opt_out_takes_its_grant_with_it() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.nango("DELETE", "/connections/kahuna__hubspot__default?provider_config_key=hubspot", "");
    cutover.nango("DELETE", "/connections/kahuna__slack__default?provider_config_key=slack", "");
    let ledger = cutover.ledger();
    assert_eq!(ledger.incidents_total, 1, "{:?}", ledger.incidents);
    assert!(ledger.incidents[0].what.contains("revoked upstream"), "{:?}", ledger.incidents);
}

#[test]
fn a_no_between_the_intent_and_the_delete_wins_and_one_after_it_keeps_what_is_left() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_settled();
    cutover.until_done(&["retire", "do-alarm", "--yes"]);
    let no = |triplet: &str| {
        let args = ["ctl", "no", "--triplet", triplet, "--reason", "wait"];
        assert_eq!(cutover.run(&args).0, 0);
    };
    // One that fails does not keep the others.
    let fails = |path: &str, answer: &str| {
        let entry = format!(r#"{{"api":"nango","method":"DELETE","path":"{path}","answer":"{answer}","times":1}}"#);
        cutover.script(&entry);
    };
    fails("acme__salesforce__prod", "fail-before");
    assert_eq!(retire_nango(&cutover).0, 4);
    assert_eq!(left(&cutover), ["salesforce"]);
    let begun = |triplet: &str| {
        let status = cutover.status();
        let row = status["rows"].as_array().unwrap().iter().find(|row| row["triplet"] == triplet).unwrap().clone();
        (row["stage"].as_str().unwrap().to_owned(), row["way_back"].to_string().contains("begun"))
    };
    assert_eq!(begun("acme:salesforce:prod"), ("settled".to_owned(), true));
    no("acme:salesforce:prod");
    cutover.live(60_000);
    let (code, said) = retire_nango(&cutover);
    assert!(code == 7 && said.contains("`acme:salesforce:prod` is held"), "{code}: {said}");
    assert_eq!(left(&cutover), ["salesforce"]);
    // Nothing goes back once others are retired.
    assert_eq!(retire(&cutover, &["restore", "--yes"]).0, 7);

    // The delete happens and its answer is lost; then somebody says no.
    assert_eq!(cutover.run(&["ctl", "go", "--triplet", "acme:salesforce:prod"]).0, 0);
    fails("acme__salesforce__prod", "fail-after");
    assert_eq!(retire_nango(&cutover).0, 4);
    no("acme:salesforce:prod");
    cutover.live(60_000);
    let writes = cutover.ledger().kv_writes;
    assert_eq!(retire_nango(&cutover).0, 7);
    assert_eq!((left(&cutover).len(), cutover.ledger().kv_writes), (0, writes), "its tokens are still in KV");
    assert_eq!(cutover.run(&["ctl", "go", "--triplet", "acme:salesforce:prod"]).0, 0);
    cutover.until_done(&["retire", "nango", "--confirm", &cutover.plan_id()]);
    assert_eq!(retired(&cutover), 3);
    let ledger = cutover.ledger();
    assert_eq!(ledger.incidents_total, 0, "{:?}", ledger.incidents);
}

#[test]
fn what_is_only_begun_is_called_off_and_the_objects_are_armed_again_every_time() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_settled();
    let in_the_soak = modes(&cutover);
    for _ in 0..3 {
        assert_eq!(cutover.gate(), "pass");
        cutover.until_done(&["retire", "do-alarm", "--yes"]);
        assert!(modes(&cutover).iter().all(|mode| *mode == AlarmMode::Disarmed), "{:?}", modes(&cutover));
        cutover.script(r#"{"api":"nango","method":"DELETE","path":"/connections","answer":"fail-before","times":2}"#);
        // The second failure in a row looks like an outage: the third connection is left alone.
        assert_eq!(retire_nango(&cutover).0, 4);
        cutover.until_done(&["retire", "restore", "--yes"]);
        assert_eq!(modes(&cutover), in_the_soak);
    }
    let (_, out, _) = cutover.run(&["audit", "--format", "json", "--subject", "kahuna:hubspot:default"]);
    assert_eq!((out.matches("retire_begun").count(), out.matches("retire_called_off").count()), (3, 3), "{out}");

    // What is armed again after all was done is found and disarmed, however often that was done before.
    cutover.until_done(&["retire", "do-alarm", "--yes"]);
    for _ in 0..2 {
        cutover.admin("POST", "/admin/alarms/kahuna%3Aslack%3Adefault/mode", r#"{"mode":"standby"}"#);
        let (code, said) = retire(&cutover, &["do-alarm", "--yes"]);
        assert!(code == 7 && said.contains("zombie armed: `kahuna:slack:default`"), "{code}: {said}");
        cutover.until_done(&["retire", "do-alarm", "--yes"]);
        assert!(modes(&cutover).iter().all(|mode| *mode == AlarmMode::Disarmed), "{:?}", modes(&cutover));
    }
}

#[test]
fn elsewhere_is_looked_at_right_before_the_verdict() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_settled();
    let engine = cutover.engine();
    let (looks, armed) = (Cell::new(0), Cell::new(true));
    let zombie = || Zombie {
        kind: ZombieKind::Environment,
        subject: "staging".to_owned(),
        detail: "is armed".to_owned(),
        remedy: "retire it".to_owned(),
    };
    let mut refused = 0;
    for _ in 0..20 {
        let look = async || {
            looks.set(looks.get() + 1);
            Ok(if armed.get() { vec![zombie()] } else { Vec::new() })
        };
        match cutover.runtime.block_on(engine.retire_do_alarms(look, cutover.now())) {
            Ok(Progress::Wait(at)) => cutover.advance(at),
            Ok(Progress::Done) => break,
            Err(EngineError::Refused(why)) => {
                assert!(why.contains("zombie environment: `staging`"), "{why}");
                refused += 1;
                armed.set(false);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((refused, looks.get()), (1, 2), "one look for each verdict");
    cutover.runtime.block_on(engine.into_store().close()).unwrap();

    // From the command line the checkout counts too.
    assert_eq!(retire(&cutover, &["do-alarm", "--yes", "--repo", "nowhere"]).0, 2);
    let gateway = cutover.dir.path().join("gateway");
    std::fs::create_dir(&gateway).unwrap();
    std::fs::write(gateway.join("index.ts"), "\n\nfetch(\"/admin/sync/nango\");\n").unwrap();
    let (code, said) = retire(&cutover, &["do-alarm", "--yes", "--repo", "gateway"]);
    assert!(code == 7 && said.contains("zombie reference: `index.ts:3` speaks of `/admin/sync/nango`"), "{said}");
}

#[test]
fn a_preparation_is_undone_to_what_was_there_also_after_a_lost_answer() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_settled();
    cutover.until_done(&["retire", "do-alarm", "--yes"]);
    // The customer opted this one out long ago.
    let body = r#"{"connection_id":"kahuna__slack__default","provider_config_key":"slack","metadata":{"skipTokenRevocation":true}}"#;
    cutover.nango("PATCH", "/connections/metadata", body);
    let was_so = Some(Value::Bool(true));
    cutover
        .script(r#"{"api":"nango","method":"PATCH","path":"/connections/metadata","answer":"fail-after","times":1}"#);
    assert_eq!(retire(&cutover, &["nango", "--prepare", "--yes"]).0, 4);
    assert_eq!(connections(&cutover).values().filter(|said| **said == was_so).count(), 3, "only an answer was lost");
    let undone = |cutover: &Cutover| {
        let said = connections(cutover);
        assert_eq!((&said["slack"], said["hubspot"] == was_so, said["salesforce"] == was_so), (&was_so, false, false));
    };
    cutover.until_done(&["retire", "nango", "--undo", "--yes"]);
    undone(&cutover);

    cutover.until_done(&["retire", "nango", "--prepare", "--yes"]);
    assert!(connections(&cutover).values().all(|said| *said == was_so));
    cutover
        .script(r#"{"api":"nango","method":"PATCH","path":"/connections/metadata","answer":"fail-after","times":1}"#);
    assert_eq!(retire(&cutover, &["nango", "--undo", "--yes"]).0, 4);
    cutover.until_done(&["retire", "nango", "--undo", "--yes"]);
    undone(&cutover);
    let requests = cutover.ledger().requests["nango"]["PATCH"];
    cutover.until_done(&["retire", "nango", "--undo", "--yes"]);
    assert_eq!(cutover.ledger().requests["nango"]["PATCH"], requests, "nothing is left to undo");
}

#[test]
fn one_connection_that_nango_refuses_does_not_keep_the_others() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_settled();
    cutover.until_done(&["retire", "do-alarm", "--yes"]);
    cutover
        .script(r#"{"api":"nango","method":"DELETE","path":"kahuna__hubspot__default","answer":"reject","times":1}"#);
    let (code, said) = retire_nango(&cutover);
    assert!(
        code == 7 && said.contains("connection `kahuna__hubspot__default` of `hubspot` cannot be retired"),
        "{said}"
    );
    assert_eq!((left(&cutover), retired(&cutover)), (vec!["hubspot".to_owned()], 2));
    cutover.until_done(&["retire", "nango", "--confirm", &cutover.plan_id()]);
    assert_eq!(retired(&cutover), 3);
}
