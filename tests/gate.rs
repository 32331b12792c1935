//! `gate`, `gate verify` and `waive` through the binary, on states that rehearsals left behind.

#[path = "support/kept.rs"]
mod kept;
#[path = "support/tools.rs"]
mod tools;

use std::process::Command;

use cutover::alert::Alerts;
use cutover::domain::criteria::CRITERIA;
use cutover::domain::time::{DAY_MS, HOUR_MS};
use cutover::store::{Durability, Store, Vault};
use kept::{Kept, done, repository};
use serde_json::Value;

/// Evidence of one minute after the rehearsal.
const SOON: i64 = 60_000;

fn evidence(state: &Kept, after_ms: i64) -> String {
    let (code, _, stderr) = state.run(after_ms, &["gate", "--evidence", "gate.json"]);
    assert_eq!(code, 0, "{stderr}");
    std::fs::read_to_string(state.path("gate.json")).unwrap()
}

fn verify(state: &Kept, after_ms: i64) -> (i32, String) {
    let (code, stdout, stderr) = state.run(after_ms, &["gate", "verify", "gate.json"]);
    (code, stdout + &stderr)
}

#[test]
fn an_evidence_file_chains_and_speaks_of_its_state_until_a_newer_one() {
    let state = Kept::rehearse(&[]);
    let first: Value = serde_json::from_str(&evidence(&state, SOON)).unwrap();
    assert_eq!((first["verdict"].as_str(), first["exit_code"].as_i64()), (Some("pass"), Some(0)));
    assert_eq!(first["criteria"].as_array().unwrap().len(), CRITERIA.len());
    assert_eq!(verify(&state, 2 * SOON).0, 0);
    std::fs::copy(state.path("gate.json"), state.path("first.json")).unwrap();

    let second: Value = serde_json::from_str(&evidence(&state, 2 * SOON)).unwrap();
    assert_eq!(second["previous"], first["digest"]);
    assert_eq!(second["sequence"].as_i64(), first["sequence"].as_i64().map(|n| n + 1));
    let (code, stdout, _) = state.run(3 * SOON, &["gate", "verify", "first.json", "--format", "json"]);
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, answer["accepted"].as_bool(), answer["exit_code"].as_i64()), (5, Some(false), Some(5)));
    assert!(answer["reason"].as_str().unwrap().contains("the newest is run"), "{answer}");

    // Yesterday's, though it is the newest.
    let (code, said) = verify(&state, 2 * SOON + DAY_MS + 1);
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("old, and `criteria.pass_life` is 1d"), "{said}");
    assert_eq!(verify(&state, -HOUR_MS).0, 7, "one of tomorrow");
}

#[test]
fn one_changed_byte_is_refused_wherever_it_is() {
    let state = Kept::rehearse(&[]);
    let text = evidence(&state, SOON).into_bytes();
    for n in 0..32 {
        let mut bytes = text.clone();
        let at = n * (text.len() - 1) / 31;
        // Another digit for a digit, another byte for any other, and one that is no text at all.
        bytes[at] = match (n, bytes[at]) {
            (0, _) => 0xff,
            (_, b'0'..=b'8') => bytes[at] + 1,
            (_, b'x') => b'y',
            _ => b'x',
        };
        std::fs::write(state.path("gate.json"), &bytes).unwrap();
        let (code, said) = verify(&state, SOON);
        assert_eq!(code, 7, "byte {at}: {said}");
        assert!(said.contains("is not accepted"), "{said}");
    }
}

#[test]
fn evidence_of_another_plan_or_another_state_is_refused_by_name() {
    let state = Kept::rehearse(&[]);
    evidence(&state, SOON);
    let others =
        [(Kept::rehearse(&["--seed", "39"]), "it is of state `s-"), (Kept::rehearse_many(5, &[]), "it is of plan `p-")];
    for (other, named) in others {
        std::fs::copy(state.path("gate.json"), other.path("gate.json")).unwrap();
        let (code, said) = verify(&other, SOON);
        assert_eq!(code, 7, "{said}");
        assert!(said.contains(named), "{said}");
    }
    // A digest made again over another content: intact, and nothing that this state ever said.
    let text = std::fs::read_to_string(state.path("gate.json")).unwrap();
    let file = cutover::domain::evidence_file::EvidenceFile::from_json(&text).unwrap();
    let forged = cutover::domain::evidence_file::EvidenceFile { reason: "trust me".to_owned(), ..file }.sealed();
    std::fs::write(state.path("gate.json"), forged.to_json()).unwrap();
    let (code, said) = verify(&state, SOON);
    assert_eq!(code, 7);
    assert!(said.contains("its digest is not in the chain"), "{said}");
}

#[test]
fn a_waiver_opens_for_as_long_as_it_holds_and_shows_everywhere() {
    let state = Kept::rehearse(&["--faults", "wrong-account"]);
    let (code, stdout, _) = state.run(SOON, &["gate", "--format", "json"]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, 3, "{report:#}");
    let open: Vec<&str> =
        criteria(&report).filter(|c| c["verdict"] != "pass").map(|c| c["id"].as_str().unwrap()).collect();
    assert!(open.contains(&"identity"), "{open:?}");

    let mut ids = Vec::new();
    for id in &open {
        let waive = ["waive", id, "--by", "ann", "--reason", "a known account | of the team", "--until", "2h"];
        let (code, stdout, stderr) = state.run(SOON, &waive);
        assert_eq!(code, 0, "{stderr}");
        ids.push(stdout.split(':').next().unwrap().to_owned());
    }
    let (code, text, _) = state.run(2 * SOON, &["gate", "--evidence", "gate.json"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("waived by ann") && text.contains("waived: "), "{text}");
    let (_, junit, _) = state.run(2 * SOON, &["gate", "--format", "junit"]);
    assert!(junit.contains("<skipped message=\"waived by ann"), "{junit}");
    let (code, markdown, _) = state.run(3 * SOON, &["gate", "--format", "markdown", "--evidence", "gate.json"]);
    assert_eq!(code, 0);
    assert!(markdown.contains("fail (waived)") && markdown.contains("a known account \\| of the team"), "{markdown}");
    let (_, report, _) = state.run(3 * SOON, &["report", "--format", "json"]);
    assert!(report.contains("a known account"), "{report}");

    // What the pass opens ends with the waiver, and the file with it.
    let file: Value = serde_json::from_str(&std::fs::read_to_string(state.path("gate.json")).unwrap()).unwrap();
    let until = state.ended_at.plus_ms(SOON + 2 * HOUR_MS).to_rfc3339();
    assert_eq!(file["open_until"], until);
    assert_eq!(verify(&state, 4 * SOON).0, 0);
    assert_eq!(verify(&state, SOON + 2 * HOUR_MS).0, 5);
    let (code, ..) = state.run(SOON + 2 * HOUR_MS, &["gate", "--criteria", "identity"]);
    assert_eq!(code, 3, "an expired waiver is as if absent");

    // The file shows in every form what it was made of, and judges nothing.
    for format in ["text", "json", "markdown", "junit"] {
        let (code, shown, stderr) = done(
            Command::new(env!("CARGO_BIN_EXE_cutover"))
                .args(["gate", "show", "gate.json", "--format", format])
                .current_dir(state.dir.path()),
        );
        assert_eq!(code, 0, "{stderr}");
        assert!(shown.contains("waived by ann") || format == "json", "{shown}");
        match format {
            "json" => assert_eq!(shown, std::fs::read_to_string(state.path("gate.json")).unwrap()),
            "markdown" => assert_eq!(shown, markdown),
            _ => {}
        }
    }

    let (code, _, stderr) = done(&mut state.command(4 * SOON, &["waive", "revoke", &ids[0], "--by", "bob"]));
    assert_eq!(code, 0, "{stderr}");
    let (code, said) = verify(&state, 5 * SOON);
    assert_eq!(code, 5);
    assert!(said.contains(&ids[0]), "{said}");
    assert_eq!(done(&mut state.command(4 * SOON, &["waive", "revoke", &ids[0], "--by", "bob"])).0, 7);
    let (_, list, _) = done(&mut state.command(5 * SOON, &["waive", "list"]));
    assert!(list.contains("revoked") && list.contains(&ids[0]), "{list}");
}

fn criteria(report: &Value) -> impl Iterator<Item = &Value> {
    report["criteria"].as_array().unwrap().iter()
}

#[test]
fn waivers_without_name_end_or_sense_are_refused() {
    let state = Kept::rehearse(&[]);
    let base = ["waive", "outage", "--by", "ann", "--reason", "planned"];
    for (more, expected) in [
        (["--until", "90d"].as_slice(), "`criteria.waiver_max` of the policy"),
        (&["--until", "2020-01-01T00:00:00Z"], "is not after now"),
        (&["--until", "soon"], "neither a time nor a length of time"),
        (&["--until", "1d", "--scope", "kahuna:*:*"], "expected `*` or one of `nango`"),
    ] {
        let (code, _, stderr) = state.run(SOON, &[&base[..], more].concat());
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
    assert_eq!(state.run(SOON, &["waive", "outage", "--reason", "x", "--until", "1d"]).0, 2, "nobody answers for it");
    let (_, list, _) = done(&mut state.command(SOON, &["waive", "list"]));
    assert_eq!(list, "no waiver was ever given\n");
}

#[test]
fn a_state_that_cannot_be_judged_says_why() {
    let empty = tempfile::tempdir().unwrap();
    let (code, _, stderr) = done(Command::new(env!("CARGO_BIN_EXE_cutover")).arg("gate").current_dir(empty.path()));
    assert_eq!(code, 7, "{stderr}");
    assert!(stderr.contains("no plan is applied"), "{stderr}");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "nothing was made");

    // Other criteria than those of the plan would let anything pass.
    let state = Kept::rehearse(&[]);
    let (code, _, stderr) = done(&mut state.command(SOON, &["gate"]));
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("the policy is not the one"), "{stderr}");
    assert_eq!(state.run(SOON, &["gate", "--criteria", "parityy"]).0, 2);
    assert_eq!(state.run(SOON, &["gate", "--criteria", "parity", "--evidence", "x.json"]).0, 2);

    // Some criteria only: a verdict, but no run that would open anything.
    let runs = || {
        let (_, stdout, _) = state.run(SOON, &["report", "--format", "json"]);
        serde_json::from_str::<Value>(&stdout).unwrap()["gate_runs"].as_array().unwrap().len()
    };
    let before = runs();
    let (code, stdout, _) = state.run(SOON, &["gate", "--criteria", "parity,outage", "--format", "json"]);
    let partial: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, partial["criteria"].as_array().unwrap().len()), (0, 2));
    let (_, markdown, _) = state.run(SOON, &["gate", "--criteria", "parity", "--format", "markdown"]);
    assert!(markdown.starts_with("## Gate, in part: pass\n\npartial, opens nothing: "), "{markdown}");
    // Evidence that cannot be written is no run either.
    for path in ["no/such/folder/gate.json", "state"] {
        let (code, _, stderr) = state.run(SOON, &["gate", "--evidence", path]);
        assert!(code == 1 && stderr.contains(&format!("cannot write `{path}`")), "{code}: {stderr}");
    }
    assert_eq!(runs(), before, "it was recorded");
    assert_eq!(state.run(SOON, &["gate"]).0, 0);
    assert_eq!(runs(), before + 1);
}

#[test]
fn evidence_that_stopped_is_waited_for_and_never_passes() {
    let state = Kept::rehearse(&[]);
    let late = 3 * DAY_MS;
    let (code, stdout, stderr) = state.run(late, &["gate", "--wait-while-inconclusive", "1s", "--format", "json"]);
    assert_eq!(code, 4, "{stdout}");
    assert!(stderr.contains("inconclusive, waiting"), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert!(report["reason"].as_str().unwrap().contains("no evidence from `duties`"), "{report:#}");
    assert!(!report["window"]["gaps"].as_array().unwrap().is_empty());

    // It ends as soon as there is a verdict, here because everything open is waived.
    let mut waiting =
        state.command(late, &["gate", "--wait-while-inconclusive", "10m", "--policy", "state/policy.toml"]);
    let waiting = waiting.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    for c in criteria(&report).filter(|c| c["verdict"] != "pass") {
        let id = c["id"].as_str().unwrap();
        let (code, _, stderr) =
            state.run(late, &["waive", id, "--by", "ann", "--reason", "the soak is over", "--until", "1d"]);
        assert_eq!(code, 0, "{stderr}");
    }
    assert_eq!(waiting.wait_with_output().unwrap().status.code(), Some(0));
}

#[tokio::test]
async fn a_change_of_the_verdict_makes_one_alert_whoever_judges_and_however_often() {
    let state = Kept::rehearse(&[]);
    let place = format!("sqlite:{}", state.path("state/cutover.db").display()).parse().unwrap();
    let vault = Vault::load_or_create(&state.path("state/cutover.key")).unwrap();
    let store = Store::open_at(&place, Durability::ProcessCrash, vault).await.unwrap();
    let told = async |after_ms: i64| {
        let now = state.ended_at.plus_ms(after_ms);
        Alerts::new(None, None).run_due(&store, now).await.unwrap();
        let due = store.load_due_alerts(now, 100).await.unwrap();
        let gate: Vec<_> = due.into_iter().filter(|a| a.kind == "gate").collect();
        assert!(gate.iter().all(|a| a.repeats == 0 && a.subject.starts_with("p-")), "{gate:?}");
        gate.iter().map(|a| a.detail.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // The hourly look of the soak and the runs of the rehearsal saw the same change.
    assert_eq!(told(0).await, ["inconclusive to pass"]);
    for n in 1..3 {
        assert_eq!(state.run(n * SOON, &["gate"]).0, 0);
        assert_eq!(told(n * SOON).await, ["inconclusive to pass"]);
    }
    for n in 0..2 {
        assert_eq!(state.run(3 * DAY_MS + n * SOON, &["gate"]).0, 4);
        assert_eq!(told(3 * DAY_MS + n * SOON).await, ["inconclusive to pass", "pass to inconclusive"]);
    }
    // A verdict on some criteria is nobody's news.
    assert_eq!(state.run(3 * DAY_MS + HOUR_MS, &["gate", "--criteria", "foreign-writes"]).0, 4);
    assert_eq!(told(3 * DAY_MS + HOUR_MS).await.len(), 2);
}

#[test]
fn junit_fits_its_schema_and_markdown_renders() {
    tools::need("xmllint", "libxml2-utils");
    let failing = Kept::rehearse(&["--faults", "grant-revoked"]);
    std::fs::write(failing.path("junit.xsd"), repository("tests/schemas/junit.xsd")).unwrap();
    let (code, junit, _) = failing.run(SOON, &["gate", "--format", "junit"]);
    assert_eq!(code, 3);
    let validate = |xml: &str| {
        std::fs::write(failing.path("gate.xml"), xml).unwrap();
        done(
            Command::new("xmllint")
                .args(["--noout", "--schema", "junit.xsd", "gate.xml"])
                .current_dir(failing.dir.path()),
        )
    };
    let (code, _, stderr) = validate(&junit);
    assert_eq!(code, 0, "{stderr}\n{junit}");
    assert!(junit.contains("<failure type=\"fail\"") && junit.contains("<error type=\"inconclusive\""), "{junit}");
    // The schema does refuse something.
    assert_ne!(validate(&junit.replacen("name=\"outage\"", "name=\"cost\"", 1)).0, 0);
    assert_ne!(validate(&junit.replacen(" tests=\"16\"", "", 1)).0, 0);

    // Whoever looks for the reason finds the grant by name.
    let (_, status, _) = done(&mut failing.command(SOON, &["status"]));
    assert!(status.contains("the grant of ") && status.contains("its user must connect again"), "{status}");

    let (_, markdown, _) = failing.run(SOON, &["gate", "--format", "markdown"]);
    let (_, json, _) = failing.run(SOON, &["gate", "--format", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let rows = table(&markdown);
    assert_eq!(rows.len(), 1 + CRITERIA.len(), "{markdown}");
    for (row, c) in rows[1..].iter().zip(criteria(&json)) {
        assert_eq!(row.len(), 7, "{row:?}");
        assert_eq!((&row[0], &row[1], &row[6]), (&text(c, "id"), &text(c, "verdict"), &text(c, "reason")));
    }
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}

/// The cells of the first table as a renderer sees them.
fn table(markdown: &str) -> Vec<Vec<String>> {
    use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::TableCell) => cell.clear(),
            Event::End(TagEnd::TableCell) => row.push(std::mem::take(&mut cell)),
            Event::End(TagEnd::TableRow | TagEnd::TableHead) => rows.push(std::mem::take(&mut row)),
            Event::End(TagEnd::Table) => return rows,
            Event::Text(text) | Event::Code(text) => cell.push_str(&text),
            Event::Html(html) | Event::InlineHtml(html) => panic!("it became HTML: {html}"),
            _ => {}
        }
    }
    panic!("no table in\n{markdown}");
}

#[test]
fn under_github_actions_what_does_not_pass_is_annotated_and_summarised() {
    let state = Kept::rehearse(&["--faults", "scope-loss"]);
    let mut command = state.command(SOON, &["gate", "--policy", "state/policy.toml", "--format", "json"]);
    let (code, stdout, stderr) =
        done(command.env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", state.path("summary.md")));
    assert_eq!(code, 3);
    let report: Value = serde_json::from_str(&stdout).expect("annotations do not get into the report");
    assert!(stderr.contains("::error title=cutover gate%3A scopes::fail: "), "{stderr}");
    let open = criteria(&report).filter(|c| c["verdict"] != "pass").count();
    assert_eq!(stderr.lines().filter(|l| l.starts_with("::")).count(), open);
    let summary = std::fs::read_to_string(state.path("summary.md")).unwrap();
    assert_eq!(table(&summary).len(), 1 + CRITERIA.len());
}
