//! Whose credential is it? `cutover verify --identity` on accounts that people consented to: the old
//! grant asked directly, the new one through Composio's proxy.

#[path = "support/cutover.rs"]
mod support;

use std::collections::BTreeMap;

use cutover::domain::custody::{Event, Stage};
use cutover::domain::time::MINUTE_MS;
use cutover::sandbox::{Fault, LedgerSummary};
use serde_json::Value;
use support::{Cutover, POLICY};

/// Two that tell whose account it is, and one that only shows which ad accounts a grant reaches.
const INVENTORY: &str = "tenant,integration_key,providers,account\nkahuna,hubspot,hubspot,default\n\
                         kahuna,slack,slack,default\nkahuna,linkedin,linkedin_ads,default\n";

const HUBSPOT: &str = "tokens:kahuna:hubspot:default";
const LINKEDIN: &str = "tokens:kahuna:linkedin_ads:default";
const SLACK: &str = "tokens:kahuna:slack:default";

const SIDES: [&str; 8] = ["verify", "kv:source", "composio", "--level", "full", "--identity", "--settle", "1s"];

fn applied(faults: Vec<Fault>) -> Cutover {
    let cutover = Cutover::start(INVENTORY, POLICY, faults);
    cutover.until_done(&["apply", &cutover.plan, "--yes"]);
    cutover
}

/// A link for each triplet, opened by its user; nobody has looked at what was connected.
fn connected(cutover: &Cutover) {
    for key in [HUBSPOT, LINKEDIN, SLACK] {
        let args = ["consent", "link", key.trim_start_matches("tokens:"), "--policy", &cutover.policy];
        let (code, out, error) = cutover.run(&args);
        assert_eq!(code, 0, "{out}{error}");
    }
    cutover.advance(cutover.now().plus_ms(8 * MINUTE_MS));
    let store = cutover.store();
    cutover.runtime.block_on(async {
        for row in store.load_triplets().await.unwrap() {
            let event = Event::ConsentCompleted { account: row.consent_account.unwrap() };
            let custody = store.record_custody(&row.triplet, &event, "test", cutover.now()).await.unwrap();
            assert_eq!(custody.stage, Stage::Consented);
        }
        store.close().await.unwrap();
    });
}

/// The exit code, and per key what was found and on which rung.
fn compared(cutover: &Cutover, sides: &[&str]) -> (i32, BTreeMap<String, String>) {
    let args = [sides, &["--policy", &cutover.policy, "--all", "--format", "jsonl"]].concat();
    let (code, out, error) = cutover.run(&args);
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{out}{error}")));
    let found = lines.filter(|line| line["key"].is_string()).map(|line| {
        let classes = line["changes"].as_array().into_iter().flatten().map(|change| format!(" {}", change["class"]));
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        (text("key"), format!("{} [{}]{}", text("outcome"), text("rung"), classes.collect::<String>()))
    });
    (code, found.collect())
}

fn each(says: &str) -> BTreeMap<String, String> {
    [HUBSPOT, LINKEDIN, SLACK].map(|key| (key.to_owned(), says.to_owned())).into()
}

#[test]
fn the_same_upstream_account_is_proven_after_consents_and_nobody_is_disturbed() {
    let cutover = applied(Vec::new());
    cutover.until_done(&["consent", "all", "--yes"]);
    let stages: Vec<String> = cutover.stages();
    assert!(stages.iter().all(|stage| stage == "verified"), "{stages:?}");
    let before = cutover.ledger();
    assert_eq!(compared(&cutover, &SIDES), (4, each("unverifiable [identity]")));
    // The new grant may stand on the left as well.
    let swapped = ["verify", "composio", "kv:source", "--level", "full", "--identity", "--settle", "1s"];
    assert_eq!(compared(&cutover, &swapped), (4, each("unverifiable [identity]")));
    let after = cutover.ledger();
    let harm = |l: &LedgerSummary| (l.refreshing_reads, l.rotations, l.kv_writes, l.deliveries, l.double_refreshes);
    assert_eq!(harm(&before), harm(&after));
    assert_eq!(before.incidents_total, after.incidents_total);
}

#[test]
fn another_upstream_account_is_the_loudest_finding() {
    let cutover = applied(vec![Fault::WrongAccount { count: 3 }]);
    connected(&cutover);
    assert_eq!(compared(&cutover, &SIDES), (3, each("changed [identity] \"identity\"")));
    let (code, out, error) = cutover.run(&[&SIDES[..], &["--policy", &cutover.policy, "-vvv"]].concat());
    assert_eq!(code, 3, "{out}{error}");
    // Before everything else, and without saying whose it is.
    let told: Vec<&str> = out.lines().take(3).collect();
    let expected = [HUBSPOT, LINKEDIN, SLACK].map(|key| format!("ANOTHER UPSTREAM ACCOUNT: {key}"));
    assert_eq!(told, expected, "{out}");
    assert!(!out.contains("urn:li") && !error.contains("urn:li"), "{out}{error}");
}

#[test]
fn what_a_provider_does_not_tell_is_never_a_proof() {
    let cutover = applied(Vec::new());
    connected(&cutover);
    // HubSpot's answer has no such field; the others say whose they are.
    std::fs::write(cutover.path("facts.toml"), "[integration.hubspot.whoami]\nidentity_fields = [\"ownerId\"]\n")
        .unwrap();
    let facts = cutover.path("facts.toml");
    let mut expected = each("unverifiable [identity]");
    expected.insert(HUBSPOT.to_owned(), "unverifiable [liveness]".to_owned());
    assert_eq!(compared(&cutover, &[&SIDES[..], &["--catalogue", &facts]].concat()), (4, expected));
    // An account that Composio keeps and does not use: it cannot be asked at all.
    let row = cutover.status();
    let rows = row["rows"].as_array().unwrap();
    let slack = rows.iter().find(|row| row["triplet"] == "kahuna:slack:default").unwrap();
    let account = slack["account"].as_str().unwrap_or_else(|| panic!("{slack:#}"));
    cutover.composio("PATCH", &format!("/connected_accounts/{account}/status"), r#"{"enabled":false}"#);
    let mut expected = each("unverifiable [identity]");
    expected.insert(SLACK.to_owned(), "changed [status] \"status\"".to_owned());
    assert_eq!(compared(&cutover, &SIDES), (3, expected));
}
