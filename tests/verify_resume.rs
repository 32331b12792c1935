//! A comparison that is killed and resumed gives the same report, byte for byte.

#[path = "benches/verify/dumps.rs"]
#[allow(dead_code, reason = "the bench uses all of it, this test a part")]
mod dumps;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use cutover::failpoint::VERIFY_FILES;
use dumps::{Kind, mix};

const ENTRIES: u64 = 60_000;
/// How often the program is killed at most before it may finish.
const KILLS: usize = 25;

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command.arg("verify").args(args).args(["--checkpoint-every", "200k"]);
    command.current_dir(folder).env("TMPDIR", folder).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Begins a run, or goes on where there is a run file.
fn begin_or_resume(folder: &Path, args: &[&str]) -> Command {
    match folder.join("run.json").exists() {
        true => command(folder, &["--resume", "run.json"]),
        false => command(folder, &[args, &["--checkpoint", "run.json"]].concat()),
    }
}

/// Runs with a run file, killing the program at any moment from its very start on, and resuming it.
fn killed_and_resumed(folder: &Path, args: &[&str]) -> (usize, Output) {
    let mut kills = 0;
    loop {
        let mut child = begin_or_resume(folder, args).spawn().unwrap();
        // Sooner at first, so that it does not come to its end before.
        let mut looks = 1u64 << (mix(kills as u64) % (kills as u64 + 1).min(20));
        while kills < KILLS && child.try_wait().unwrap().is_none() {
            looks = looks.saturating_sub(1);
            if looks == 0 {
                // SIGKILL: nothing of the program runs any more.
                child.kill().unwrap();
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

/// Two sides that are sorted but for the last entry of one.
fn nearly_sorted(folder: &Path) {
    dumps::generate(folder, 1_000, Kind::Sorted);
    let path = folder.join("left.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let (first, rest) = text.split_at(text.find('\n').unwrap() + 1);
    fs::write(path, [rest, first].concat()).unwrap();
}

#[test]
fn a_comparison_that_dies_before_any_change_to_its_files_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    nearly_sorted(folder.path());
    let args = ["left.jsonl", "right.jsonl", "--memory", "64M"];
    let whole = command(folder.path(), &args).output().unwrap();
    let mut deaths = 0;
    // All changes at first, then one of a few, since partition after partition makes the same ones.
    for change in (1..24).chain((24..).step_by(7)) {
        for name in ["run.json", "run.json.findings"] {
            let _ = fs::remove_file(folder.path().join(name));
        }
        let failpoint = format!("{VERIFY_FILES}:{change}");
        let first = begin_or_resume(folder.path(), &args).env("CUTOVER_FAILPOINT", failpoint).output().unwrap();
        if first.status.code().is_some() {
            break;
        }
        deaths += 1;
        let resumed = begin_or_resume(folder.path(), &args).output().unwrap();
        assert!(resumed.stdout == whole.stdout, "change {change}: {}", String::from_utf8_lossy(&resumed.stderr));
    }
    assert!(deaths > 20, "{deaths}");
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
