//! `cutover sandbox` as a user runs it: beside a client, in real time.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ends the sandbox also when a test fails.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cutover(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command.env_clear().current_dir(folder).stdin(Stdio::null());
    command
}

#[test]
fn the_printed_environment_points_a_client_at_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox =
        cutover(dir.path()).args(["sandbox", "--print-env"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut sandbox = Serving(sandbox.unwrap());
    let mut stdout = BufReader::new(sandbox.0.stdout.take().unwrap());
    let mut environment = Vec::new();
    for _ in 0..13 {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let (name, value) = line.trim_end().strip_prefix("export ").unwrap().split_once('=').unwrap();
        environment.push((name.to_owned(), value.trim_matches('\'').to_owned()));
    }
    let run = |args: &[&str]| {
        let output = cutover(dir.path()).args(args).envs(environment.iter().cloned()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text, String::from_utf8(output.stderr).unwrap())
    };
    let (code, shown, _) = run(&["config"]);
    assert_eq!((code, shown.matches("environment").count()), (0, 13), "{shown}");
    assert_eq!(run(&["plan", "--inventory", "nango", "--out", "plan.json"]).0, 0);
    let (code, out, error) = run(&["apply", "plan.json", "--inventory", "nango", "--yes"]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("composio    holds the current token of 24 of 24 triplets"), "{out}");

    sandbox.0.kill().unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "stdout holds the environment and nothing else");
    let mut told = String::new();
    sandbox.0.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.starts_with("nango       http://127.0.0.1:") && told.contains("/_sandbox/ledger"), "{told}");
}

#[test]
fn what_the_sandbox_cannot_do_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (args, expected) in [
        (&["--faults", "crash=2"][..], "runs none"),
        (&["--faults", "crush"], "did you mean"),
        (&["--speed=-1"], "stands still"),
        (&["--speed=NaN"], "stands still"),
        (&["--shim-url", "127.0.0.1:80"], "http or https address"),
        (&["--inventory", "no/such.csv"], "no/such.csv"),
    ] {
        let output = cutover(dir.path()).arg("sandbox").args(args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && error.contains(expected), "{args:?}: {error}");
    }
}
