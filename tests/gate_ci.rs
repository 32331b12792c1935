//! The workflow of docs/ci.md, step by step, against states that rehearsals left behind.

#[path = "support/kept.rs"]
mod kept;

use std::path::Path;
use std::process::Command;

use kept::{Kept, done, repository};

/// One step with a script.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    name: String,
    always: bool,
    script: String,
}

/// The `run:` steps of the first YAML block.
fn steps(document: &str) -> Vec<Step> {
    let yaml = document.split("```yaml\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("a workflow");
    let mut steps: Vec<Step> = Vec::new();
    let mut block: Option<usize> = None;
    for line in yaml.lines() {
        let indent = line.len() - line.trim_start().len();
        let text = line.trim_start();
        if let Some(within) = block {
            if text.is_empty() || indent > within {
                let step = steps.last_mut().expect("a block belongs to a step");
                step.script.push_str(line.get(within + 2..).unwrap_or_default());
                step.script.push('\n');
                continue;
            }
            block = None;
        }
        if let Some(name) = text.strip_prefix("- name: ") {
            steps.push(Step { name: name.to_owned(), always: false, script: String::new() });
        } else if text.starts_with("- ") {
            steps.push(Step { name: String::new(), always: false, script: String::new() });
        } else if let Some(step) = steps.last_mut() {
            if text == "if: always()" {
                step.always = true;
            } else if text == "run: |" {
                block = Some(indent);
            } else if let Some(script) = text.strip_prefix("run: ") {
                step.script = format!("{script}\n");
            }
        }
    }
    steps.retain(|step| !step.script.is_empty());
    steps
}

/// Runs the steps as a runner does: with `bash -e`, and after a failure only those that always run.
/// Gives each step that ran with its exit code.
fn run(state: &Kept) -> Vec<(String, i32)> {
    let binary = Path::new(env!("CARGO_BIN_EXE_cutover"));
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    std::fs::create_dir_all(state.path("plans")).unwrap();
    std::fs::copy(state.path("state/policy.toml"), state.path("plans/policy.toml")).unwrap();
    let mut failed = false;
    let mut ran = Vec::new();
    for step in steps(&repository("docs/ci.md")) {
        if failed && !step.always {
            continue;
        }
        // Ten minutes of patience are for a runner; a state that stands still needs none.
        let script = step.script.replace("--wait-while-inconclusive 10m", "--wait-while-inconclusive 1s");
        let (code, _, stderr) = done(
            Command::new("bash")
                .args(["-e", "-o", "pipefail", "-c", &script])
                .current_dir(state.dir.path())
                .env("PATH", &path)
                .env("STATE", "sqlite:state/cutover.db")
                .env("KEYS", "state/cutover.key")
                .env("POLICY", "plans/policy.toml")
                .env("CUTOVER_NOW", state.ended_at.plus_ms(60_000).to_rfc3339())
                .env("GITHUB_ACTIONS", "true")
                .env("GITHUB_STEP_SUMMARY", state.path("summary.md")),
        );
        assert_ne!(code, 2, "{}: {stderr}", step.name);
        failed |= code != 0;
        ran.push((step.name, code));
    }
    ran
}

fn ran(names: &[(&str, i32)]) -> Vec<(String, i32)> {
    names.iter().map(|(name, code)| ((*name).to_owned(), *code)).collect()
}

#[test]
fn the_workflow_has_the_steps_that_are_run_here() {
    let steps = steps(&repository("docs/ci.md"));
    let names: Vec<&str> = steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["Judge", "Check the evidence", "Test report", "Account of the soak"]);
    assert!(steps[0].script.contains("cutover gate") && steps[0].script.contains("\\\n"), "{:?}", steps[0]);
    assert_eq!(steps.iter().map(|s| s.always).collect::<Vec<_>>(), [false, false, true, true]);
}

#[test]
fn a_healthy_state_goes_through_and_leaves_its_artefacts() {
    let state = Kept::rehearse(&[]);
    let all = [("Judge", 0), ("Check the evidence", 0), ("Test report", 0), ("Account of the soak", 0)];
    assert_eq!(run(&state), ran(&all));
    // What was left is still what the state says last.
    let (code, said, stderr) = state.run(120_000, &["gate", "verify", "gate.json"]);
    assert_eq!(code, 0, "{said}{stderr}");
    for artefact in ["gate.json", "gate.md", "gate.xml", "soak.html", "summary.md"] {
        assert!(std::fs::metadata(state.path(artefact)).unwrap().len() > 500, "{artefact}");
    }
}

#[test]
fn a_broken_state_stops_at_the_gate_and_still_reports() {
    let state = Kept::rehearse(&["--faults", "wrong-account"]);
    assert_eq!(run(&state), ran(&[("Judge", 3), ("Test report", 0), ("Account of the soak", 0)]));
    assert!(std::fs::read_to_string(state.path("gate.md")).unwrap().contains("## Gate: fail"));
    assert!(std::fs::read_to_string(state.path("gate.xml")).unwrap().contains("<failure"));
    assert_eq!(state.run(120_000, &["gate", "verify", "gate.json"]).0, 3, "the evidence of the fail is intact");
}
