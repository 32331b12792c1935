//! What looking cannot tell, through the binary: the question with exit code 6, and both answers to it.

#[path = "support/cutover.rs"]
mod support;

use std::sync::Arc;

use cutover::clients::HttpOutside;
use cutover::ports::{Outside, TargetCustody, TargetRead, TargetScheme};
use serde_json::Value;
use support::{Cutover, POLICY, SMALL};

const INTENT: &str = "auth-config:mirror:hubspot";
const NAME: &str = "cutover mirror hubspot";

/// Composio, as somebody with its dashboard sees it.
fn composio(cutover: &Cutover) -> HttpOutside {
    let now = cutover.now();
    HttpOutside::new(cutover.endpoints(), Arc::new(move || now)).unwrap()
}

/// Two auth configs of the name that `apply` looks for; their ids.
fn two_of_a_name(cutover: &Cutover) -> [String; 2] {
    let outside = composio(cutover);
    [(), ()].map(|()| {
        let made = outside.target().create_auth_config("hubspot", NAME, TargetScheme::BearerToken, &[]);
        cutover.runtime.block_on(made).unwrap().id
    })
}

/// Calls `apply` until it asks; what it says.
fn question(cutover: &Cutover) -> Value {
    for _ in 0..50 {
        let args = ["apply", &cutover.plan, "--yes", "--no-wait", "--policy", &cutover.policy, "--format", "json"];
        let (code, out, error) = cutover.run(&args);
        let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code}: {out}{error}"));
        assert_eq!(report["exit_code"], code, "{report:#}");
        match code {
            6 => {
                assert!(error.contains(&format!("cutover ctl answer {INTENT} --is ID")), "{error}");
                return report;
            }
            4 => cutover.live_until(support::time(report["next_at"].as_str().unwrap())),
            _ => panic!("{report:#}{error}"),
        }
    }
    panic!("it does not ask")
}

#[test]
fn a_question_is_asked_until_it_is_answered_and_the_answer_counts() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    let [first, second] = two_of_a_name(&cutover);
    let asked = question(&cutover);
    let reason = asked["reason"].as_str().unwrap();
    assert!(reason.contains(&first) && reason.contains(&second) && reason.contains("which one?"), "{reason}");
    // Asking again changes nothing, and nothing is done twice.
    let again = question(&cutover);
    let asks = |report: &Value| report["reason"].as_str().unwrap().split("\nhint: done").next().unwrap().to_owned();
    assert_eq!(asks(&again), asks(&asked));
    assert!(
        reason.contains("make bearer account") && !again["reason"].as_str().unwrap().contains("make bearer account")
    );
    let (code, out, _) = cutover.run(&["status"]);
    assert!(code == 6 && out.contains(&format!("cutover ctl answer {INTENT}")), "{out}");

    let (code, _, error) = cutover.run(&["ctl", "answer", INTENT]);
    assert!(code == 2 && error.contains("--is"), "{error}");
    let (code, _, error) = cutover.run(&["ctl", "answer", "nothing", "--not-done"]);
    assert!(code == 7 && error.contains("nobody asks about `nothing`"), "{error}");
    assert_eq!(cutover.run(&["ctl", "answer", INTENT, "--is", &second]).0, 0);
    cutover.until_done(&["apply", &cutover.plan, "--yes"]);
    let accounts = cutover.runtime.block_on(composio(&cutover).target().list_accounts()).unwrap();
    let of: Vec<&str> = accounts.iter().filter(|a| a.toolkit == "hubspot").map(|a| a.auth_config_id.as_str()).collect();
    assert_eq!(of, [second.as_str()], "the mirror stands on the one that was named");
    let (_, out, _) = cutover.run(&["audit", "--actor", "alice", "--format", "json"]);
    assert!(out.contains("answered") && out.contains(&second), "{out}");
    assert_eq!(cutover.run(&["status"]).0, 0);
}

#[test]
fn a_person_who_says_that_it_was_not_done_is_believed_once_nothing_is_found() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    let both = two_of_a_name(&cutover);
    question(&cutover);
    // With both still there the same question comes back.
    assert_eq!(cutover.run(&["ctl", "answer", INTENT, "--not-done"]).0, 0);
    question(&cutover);
    for id in &both {
        cutover.composio("DELETE", &format!("/auth_configs/{id}"), "");
    }
    assert_eq!(cutover.run(&["ctl", "answer", INTENT, "--not-done"]).0, 0);
    cutover.until_done(&["apply", &cutover.plan, "--yes"]);
    let configs = cutover.runtime.block_on(composio(&cutover).target().list_auth_configs()).unwrap();
    let ours: Vec<&str> = configs.iter().filter(|c| c.name == NAME).map(|c| c.id.as_str()).collect();
    assert!(ours.len() == 1 && !both.iter().any(|id| id == ours[0]), "one, and a new one: {ours:?}");
}
