//! The command's wiring: streams, exit codes, files.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn fixture(name: &str) -> String {
    format!("{}/fixtures/inventories/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn run(folder: &Path, args: &[&str], stdin: &str) -> (i32, String, String) {
    use std::io::Write;
    let mut child = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .arg("inventory")
        .args(args)
        .current_dir(folder)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments does not wait for its input.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn read_shows_the_typed_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, err) = run(folder.path(), &["read", &fixture("adr-038.md")], "");
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("kahuna      salesforce       prod     -          kahuna__salesforce__prod"), "{out}");
    assert!(out.ends_with("\n20 connections, 28 triplets, 2 tenants\n"), "{out}");
}

#[test]
fn check_tells_good_bad_and_disagreeing_apart() {
    let folder = tempfile::tempdir().unwrap();
    let good = fixture("adr-038.csv");
    assert_eq!(run(folder.path(), &["check", &good, &fixture("adr-038.md")], "").0, 0);

    let (code, out, err) = run(folder.path(), &["check", "-"], "tenant,key,providers,acount\na,slack,,x\n");
    assert_eq!((code, out.as_str()), (2, ""));
    insta::assert_snapshot!(err, @"
    error: unknown column `acount`
     --> <stdin>:1:22
      |
    1 | tenant,key,providers,acount
      |                      ^^^^^^
      = expected: one of tenant, integration_key, connection_id, providers, account, auth_mode
      = hint: did you mean `account`?

    error: blank provider
     --> <stdin>:2:9
      |
    2 | a,slack,,x
      |         ^
      = expected: one or more provider names
      = hint: name at least one
    ");

    let (code, out, _) =
        run(folder.path(), &["check", &good, "-"], "tenant,key,provider,account\nzeta,slack,slack,x\n");
    assert_eq!(code, 3);
    assert!(out.contains("connection `zeta__slack__x` (`slack` of `zeta`) is in `<stdin>` but not in"), "{out}");
}

#[test]
fn json_repeats_the_code_and_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    for (args, stdin, code, reason) in [
        (["check", "--format", "json", &fixture("adr-038.json")], "", 0, "no problems"),
        (["check", "--format", "json", "-"], "[1, 2]", 2, "2 problems"),
        (["check", "--format", "json", "absent.csv"], "", 2, "cannot read inventory `absent.csv`"),
    ] {
        let (found, out, err) = run(folder.path(), &args, stdin);
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((found, err.as_str()), (code, ""));
        assert_eq!(value["exit_code"], code);
        assert!(value["reason"].as_str().unwrap().starts_with(reason), "{value}");
    }
}

#[test]
fn an_unreadable_file_is_bad_input() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["absent.csv", "."] {
        let (code, out, err) = run(folder.path(), &["read", path], "");
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(err.starts_with(&format!("error: cannot read inventory `{path}`\n  caused by: ")), "{err}");
    }
}

#[test]
fn convert_writes_a_file_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("all.csv");
    let convert = |input: &str, stdin: &str| {
        run(folder.path(), &["convert", "--format", "csv", "--out", "all.csv", "--tenant", "a", input], stdin).0
    };
    assert_eq!(convert("-", "key,provider\nslack,slack\n"), 2);
    assert!(!written.exists());
    assert_eq!(convert("-", "key,provider,account\nslack,slack,x\n"), 0);
    let text = std::fs::read_to_string(&written).unwrap();
    assert_eq!(
        text,
        "tenant,integration_key,connection_id,providers,account,auth_mode\na,slack,a__slack__x,slack,x,\n"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_bad_tenant_is_refused_by_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, err) = run(folder.path(), &["read", "--tenant", "a__b", &fixture("adr-038.md")], "");
    assert_eq!(code, 2);
    assert!(err.contains("ambiguous"), "{err}");
}
