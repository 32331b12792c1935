//! The commands as users run them: streams, exit codes, files.

use std::path::Path;
use std::process::{Command, Output};

const INVENTORY: &str = "fixtures/inventories/adr-038.md";

fn cutover(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CUTOVER_NOW", "2026-05-06T09:00:00Z")
        .output()
        .unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn path(dir: &tempfile::TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

#[test]
fn plan_prints_the_committed_plan_and_exits_with_3_only_on_request() {
    let committed = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("plans/adr-038.txt")).unwrap();
    assert_eq!(cutover(&["plan", "--inventory", INVENTORY]), (0, committed.clone(), String::new()));
    assert_eq!(cutover(&["plan", "--inventory", INVENTORY, "--exit-code"]).0, 3);
    let all_stay = tempfile::tempdir().unwrap();
    let policy = path(&all_stay, "policy.toml");
    std::fs::write(&policy, "retain = [\"*:*:*\"]\n").unwrap();
    assert_eq!(cutover(&["plan", "--inventory", INVENTORY, "--exit-code", "--policy", &policy]).0, 0);
}

#[test]
fn a_saved_plan_shows_compares_and_tells_what_moved() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, policy) = (path(&dir, "a.json"), path(&dir, "b.json"), path(&dir, "policy.toml"));
    assert_eq!(cutover(&["plan", "--inventory", INVENTORY, "--out", &a, "--format", "json"]).0, 0);
    let (code, shown, warnings) = cutover(&["show", &a, "--inventory", INVENTORY]);
    assert_eq!((code, warnings.as_str()), (0, ""));
    assert!(shown.starts_with("Plan p-"));
    std::fs::write(&policy, "retain = [\"kahuna:gong:*\"]\n").unwrap();
    let (code, _, warnings) = cutover(&["show", &a, "--inventory", INVENTORY, "--policy", &policy]);
    assert_eq!(code, 0);
    assert!(warnings.starts_with("warning: stale: the policy changed\n"), "{warnings}");
    let (_, _, warnings) = cutover(&["show", &a, "--now", "2026-06-01T00:00:00Z"]);
    assert!(warnings.contains("expired at 2026-05-13 09:00"), "{warnings}");
    cutover(&["plan", "--inventory", INVENTORY, "--policy", &policy, "--out", &b]);
    assert_eq!(cutover(&["plan", "diff", &a, &a]).0, 0);
    let (code, text, _) = cutover(&["plan", "diff", &a, &b]);
    assert_eq!(code, 3);
    assert!(text.contains("~ kahuna:gong:default") && text.lines().all(|l| l.chars().count() <= 100), "{text}");
    let (_, json, _) = cutover(&["plan", "diff", &a, &b, "--format", "json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["exit_code"], 3);
    let text = std::fs::read_to_string(&a).unwrap();
    std::fs::write(&a, text.replace("\"route\":\"retain\"", "\"route\":\"reconsent\"")).unwrap();
    let (code, stdout, error) = cutover(&["show", &a]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(error.contains("it was edited"), "{error}");
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let policy = path(&dir, "policy.toml");
    std::fs::write(&policy, "[criteria]\ndelivery_denominator = \"webhooks\"\nclock_skew_max_s = 0\n").unwrap();
    let (code, stdout, error) = cutover(&["plan", "--inventory", INVENTORY, "--policy", &policy]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(error.contains("`delivery-rate` cannot be measured") && error.contains("clock-skew"), "{error}");
    for (args, needle) in [
        (&["plan"][..], "--inventory"),
        (&["plan", "--inventory", "no/such.md"], "no/such.md"),
        (&["plan", "--inventory", INVENTORY, "--policy", "no/such.toml"], "no/such.toml"),
        (&["plan", "--inventory", INVENTORY, "--policy", INVENTORY], "is not a policy"),
        (&["plan", "--inventory", INVENTORY, "--probes", INVENTORY], "is not a list of probes"),
        (&["plan", "--inventory", INVENTORY, "--now", "today"], "RFC 3339"),
        (&["show", INVENTORY], "is not a plan"),
        (&["catalogue", "show", "myspace"], "it knows"),
    ] {
        let (code, stdout, error) = cutover(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {error}");
        assert!(error.contains(needle), "{args:?}: {error}");
    }
}

#[test]
fn a_config_file_is_compared_and_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let env = path(&dir, ".env");
    let text = "NANGO_SECRET_KEY=canary\nNANGO_HOST=https://api.nango.dev\n";
    std::fs::write(&env, text).unwrap();
    let (code, stdout, diff) = cutover(&["plan", "--inventory", INVENTORY, "--config-file", &env]);
    assert_eq!(code, 0);
    assert!(diff.contains("+COMPOSIO_API_KEY=") && diff.contains("NANGO_* stays"), "{diff}");
    assert!(!format!("{stdout}{diff}").contains("canary"));
    assert_eq!(std::fs::read_to_string(&env).unwrap(), text);
}

#[test]
fn the_catalogue_is_shown_by_key_and_by_provider() {
    let (code, table, _) = cutover(&["catalogue", "show"]);
    assert_eq!(code, 0);
    assert!(table.contains("microsoft_advertising (unconfirmed)"));
    let (_, gong, _) = cutover(&["catalogue", "show", "gong"]);
    assert!(gong.starts_with("gong-oauth\n") && gong.contains("a Gong technical administrator"));
    assert!(format!("{table}{gong}").lines().all(|line| line.chars().count() <= 100));
    let (_, json, _) = cutover(&["catalogue", "show", "google", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["google"]["provider"].as_object().unwrap().len(), 5);
}
