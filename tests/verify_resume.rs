//! A comparison that is killed and resumed gives the same report, byte for byte.

#[path = "benches/verify/dumps.rs"]
#[allow(dead_code, reason = "the bench uses all of it, this test a part")]
mod dumps;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use dumps::Kind;

const ENTRIES: u64 = 60_000;
/// How often the program is killed at most before it may finish.
const KILLS: usize = 25;

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command.arg("verify").args(args).args(["--checkpoint-every", "200k"]);
    command.current_dir(folder).env("TMPDIR", folder).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs with a run file, killing the program each time it has come further, and resuming it.
fn killed_and_resumed(folder: &Path, args: &[&str]) -> (usize, Output) {
    let run = folder.join("run.json");
    let (mut kills, mut seen) = (0, Vec::new());
    loop {
        let mut child = match kills {
            0 => command(folder, &[args, &["--checkpoint", "run.json"]].concat()).spawn().unwrap(),
            _ => command(folder, &["--resume", "run.json"]).spawn().unwrap(),
        };
        while kills < KILLS && child.try_wait().unwrap().is_none() {
            let now = fs::read(&run).unwrap_or_default();
            if now != seen && !now.is_empty() {
                // SIGKILL: nothing of the program runs any more.
                child.kill().unwrap();
                seen = now;
            }
            std::thread::yield_now();
        }
        let output = child.wait_with_output().unwrap();
        if output.status.code().is_some() {
            return (kills, output);
        }
        kills += 1;
    }
}

fn check(kind: Kind, args: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    dumps::generate(folder.path(), ENTRIES, kind);
    let args = [&["left.jsonl", "right.jsonl", "--memory", "64M"][..], args].concat();
    let whole = command(folder.path(), &args).output().unwrap();
    assert_eq!(whole.status.code(), Some(3));
    let (kills, resumed) = killed_and_resumed(folder.path(), &args);
    assert!(kills >= 3, "{kind:?} was killed only {kills} times", kind = kind.name());
    assert_eq!(resumed.status.code(), Some(3), "{}", String::from_utf8_lossy(&resumed.stderr));
    assert!(resumed.stdout == whole.stdout, "{} after {kills} kills", kind.name());

    // A finished run tells its report again without reading anything.
    let again = command(folder.path(), &["--resume", "run.json"]).output().unwrap();
    assert!(again.stdout == whole.stdout);

    // Over a side that has changed it is stale.
    fs::write(folder.path().join("right.jsonl"), "").unwrap();
    let stale = command(folder.path(), &["--resume", "run.json"]).output().unwrap();
    assert_eq!(stale.status.code(), Some(5));
}

#[test]
fn a_sorted_comparison_survives_being_killed() {
    check(Kind::Sorted, &[]);
}

#[test]
fn a_comparison_by_partitions_survives_being_killed() {
    check(Kind::Shuffled, &[]);
}

#[test]
fn so_does_one_in_which_every_key_is_listed() {
    check(Kind::Noise, &["--all", "--diff"]);
}

#[test]
fn a_run_file_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (content, message) in
        [("{}", "not a run file"), ("{\"run_version\":99}", "version 99"), ("\u{0}", "not a run file")]
    {
        fs::write(folder.path().join("run.json"), content).unwrap();
        let output = command(folder.path(), &["--resume", "run.json"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(message));
    }
}
