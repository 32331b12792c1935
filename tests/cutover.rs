//! A cutover from the command line, from apply to retire: what a person types, in the order in
//! which they type it, and what happens when something is not as it should be.

#[path = "support/cutover.rs"]
mod support;

use serde_json::Value;
use support::{Cutover, POLICY, SMALL};

#[test]
fn a_whole_cutover_from_the_command_line() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_gate();

    // Reverse is honest: before the switch nobody promises anything, after it everybody knows until when.
    let wave = cutover.waves()[0].to_string();
    let reports = cutover.until_done(&["switch", "--wave", &wave, "--yes", "--reverse-window", "2h"]);
    assert!(reports[0]["irreversible_after_window"].as_u64().unwrap() > 0, "{:#}", reports[0]);
    let row = |status: &Value| {
        status["rows"].as_array().unwrap().iter().find(|r| r["stage"] == "switched").cloned().unwrap_or_default()
    };
    assert!(row(&cutover.status())["reversible_until"].as_str().is_some());
    cutover.until_done(&["reverse", "--wave", &wave, "--yes"]);
    assert_eq!(row(&cutover.status()), Value::Null, "everything is back");
    for wave in cutover.waves() {
        cutover.until_done(&["switch", "--wave", &wave.to_string(), "--yes"]);
    }
    cutover.live(7 * 3_600_000);

    let (code, _, error) = cutover.run(&["settle", "--policy", &cutover.policy]);
    assert!(code == 7 && error.contains(&format!("--confirm {}", cutover.plan_id())), "{error}");
    assert_eq!(cutover.gate(), "pass");
    cutover.until_done(&["settle", "--confirm", &cutover.plan_id()]);
    let (code, _, error) = cutover.run(&["reverse", "--wave", &wave, "--yes", "--policy", &cutover.policy]);
    assert!(code == 7 && error.contains("reverse window"), "{error}");

    let id = cutover.plan_id();
    let (code, _, error) = cutover.run(&["retire", "nango", "--confirm", &id, "--policy", &cutover.policy]);
    assert!(code == 7 && error.contains("must be retired first"), "{error}");
    cutover.until_done(&["retire", "do-alarm", "--yes"]);
    let (code, out, error) = cutover.run(&["retire", "sweep", "--policy", &cutover.policy]);
    assert_eq!(code, 0, "{out}{error}");

    // What can be undone is undone, and done again.
    cutover.until_done(&["retire", "nango", "--prepare"]);
    cutover.until_done(&["retire", "nango", "--undo"]);
    cutover.until_done(&["retire", "restore", "--yes"]);
    cutover.until_done(&["retire", "do-alarm", "--yes"]);
    cutover.until_done(&["retire", "nango", "--confirm", &id]);
    assert!(cutover.stages().iter().all(|stage| stage == "retired"), "{:?}", cutover.stages());
    // Twice is once.
    let again = cutover.until_done(&["retire", "nango", "--confirm", &id]);
    assert_eq!(again[0]["steps"].as_array().unwrap().len(), 0);

    let ledger = cutover.ledger();
    assert_eq!((ledger.lost, ledger.stale_reads, ledger.double_refreshes), (0, 0, 0), "{ledger:?}");
    let (code, out, _) = cutover.run(&["audit", "--format", "json", "--subject", "kahuna:hubspot:default"]);
    assert_eq!(code, 0);
    let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().filter_map(|e| e["event"]["event"].as_str()).collect();
    assert!(names.ends_with(&["switch_begun", "switched", "settled", "retired"]), "{names:?}");
}
