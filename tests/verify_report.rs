//! `cutover verify` as a user runs it: findings, reports, exit codes, and that nothing leaks.

#[path = "benches/verify/dumps.rs"]
#[allow(dead_code, reason = "the bench uses all of it, this test a part")]
mod dumps;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use dumps::Kind;
use serde_json::Value;
use tempfile::TempDir;

const ENTRIES: u64 = 20_000;

fn verify(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command.arg("verify").args(args).current_dir(folder).env("TMPDIR", folder);
    command.output().expect("the program starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("the program was not killed")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("the report is UTF-8")
}

fn folder_with(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder can be made");
    for (name, content) in files {
        fs::write(folder.path().join(name), content).expect("the file can be written");
    }
    folder
}

fn entry(key: &str, token: &str, rest: &str) -> String {
    let value = serde_json::json!({ "access_token": token, "scope": "a b" }).to_string();
    format!("{{\"key\":\"tokens:{key}\",\"value\":{}{rest}}}\n", Value::from(value))
}

#[test]
fn planted_differences_are_found_exactly_whatever_the_order_and_the_format() {
    let folder = tempfile::tempdir().unwrap();
    let mut reports = Vec::new();
    for kind in [Kind::Sorted, Kind::Shuffled] {
        let at = folder.path().join(kind.name());
        dumps::generate(&at, ENTRIES, kind);
        let output = verify(&at, &["left.jsonl", "right.jsonl", "--combined", "report.txt"]);
        assert_eq!(code(&output), 3, "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(fs::read(at.join("report.txt")).unwrap(), fs::read(at.join("expected.txt")).unwrap());
        reports.push(stdout(&output));
    }
    assert_eq!(reports[0], reports[1], "the order of the input does not show in the report");
    assert!(reports[0].contains("* tokens:") && reports[0].contains("keys differ"));

    // The same entries as a JSON array over several lines, as CSV, compressed, and by standard input.
    let at = folder.path().join("sorted");
    let read = |name: &str| fs::read_to_string(at.join(name)).unwrap();
    let array = format!("[\n  {}\n]\n", read("left.jsonl").trim_end().replace('\n', ",\n  "));
    fs::write(at.join("left.json"), &array).unwrap();
    let mut csv = csv::Writer::from_path(at.join("right.csv")).unwrap();
    csv.write_record(["name", "value", "metadata"]).unwrap();
    for line in read("right.jsonl").lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| entry[name].as_str().unwrap().to_owned();
        csv.write_record([text("key"), text("value"), entry["metadata"].to_string()]).unwrap();
    }
    csv.flush().unwrap();
    let mut gzip =
        flate2::write::GzEncoder::new(fs::File::create(at.join("left.gz")).unwrap(), flate2::Compression::fast());
    gzip.write_all(array.as_bytes()).unwrap();
    gzip.finish().unwrap();
    let zstd =
        ruzstd::encoding::compress_to_vec(read("right.jsonl").as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
    fs::write(at.join("right.zst"), zstd).unwrap();
    let findings =
        |text: &str| text.lines().filter(|line| line.contains("tokens:")).map(str::to_owned).collect::<Vec<_>>();
    for (left, right) in [("left.json", "right.csv"), ("left.gz", "right.zst")] {
        let output = verify(&at, &[left, right]);
        assert_eq!(findings(&stdout(&output)), findings(&reports[0]), "{left} {right}");
    }
    let mut piped = Command::new(env!("CARGO_BIN_EXE_cutover"));
    piped.args(["verify", "-", "right.zst"]).current_dir(&at).stdin(fs::File::open(at.join("left.gz")).unwrap());
    assert_eq!(findings(&stdout(&piped.output().unwrap())), findings(&reports[0]));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_read_wherever_a_file_may_stand() {
    let folder = folder_with(&[
        ("a", &[entry("a", "token-0001", ""), entry("b", "token-0001", "")].concat()),
        ("b", &[entry("a", "token-0001", ""), entry("b", "token-0002", "")].concat()),
    ]);
    let run = |script: &str| {
        let mut command = Command::new("bash");
        command.arg("-c").arg(script).env("cutover", env!("CARGO_BIN_EXE_cutover")).current_dir(folder.path());
        let output = command.output().expect("bash starts");
        (code(&output), stdout(&output).lines().filter(|line| line.contains("tokens:")).count())
    };
    for (script, expected) in [
        ("$cutover verify <(cat a) <(cat b)", (3, 1)),
        ("$cutover verify <(gzip -c a) <(cat a)", (0, 0)),
        ("$cutover verify a /dev/stdin < b", (3, 1)),
        ("cat a | $cutover verify a /dev/stdin", (0, 0)),
        ("mkfifo pipe && (cat b > pipe &) && $cutover verify pipe a", (3, 1)),
        ("$cutover verify a <(cat b) --checkpoint run", (2, 0)),
    ] {
        assert_eq!(run(script), expected, "{script}");
    }
}

/// With all of a key's entries in memory this would take a gigabyte.
#[cfg(target_os = "linux")]
#[test]
fn a_key_that_is_given_a_hundred_thousand_times_takes_no_memory() {
    let repeated = entry("b", "token-0001", "").repeat(100_000);
    let differing: String = (0..20_000).map(|n| entry("b", &format!("token-000{}", n % 2), "")).collect();
    let folder = folder_with(&[
        ("same", &[entry("z", "token-0001", ""), repeated].concat()),
        ("differing", &[entry("z", "token-0001", ""), differing].concat()),
    ]);
    let run = |script: &str| {
        let mut command = Command::new("bash");
        command.arg("-c").arg(format!("ulimit -v 250000 && {script} --memory 64M")).current_dir(folder.path());
        command.env("cutover", env!("CARGO_BIN_EXE_cutover")).env("MALLOC_ARENA_MAX", "1");
        let output = command.output().expect("bash starts");
        assert!(output.status.code().is_some(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        (code(&output), stdout(&output))
    };
    for more in ["", "--expect-ours"] {
        let (_, report) = run(&format!("$cutover verify same same --order unsorted {more}"));
        assert!(report.contains("199,998 "), "{report}");
        let (code, report) = run(&format!("$cutover verify same differing --order unsorted {more}"));
        assert!(code == 1 && report.contains("10000 problems"), "{report}");
    }
}

#[test]
fn differences_that_do_not_matter_are_none() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [Kind::Noise, Kind::Mixed] {
        dumps::generate(folder.path(), ENTRIES, kind);
        for order in ["sorted", "unsorted"] {
            let args = ["left.jsonl", "right.jsonl", "--order", order, "--combined", "report.txt", "--memory", "64M"];
            assert_eq!(code(&verify(folder.path(), &args)), 3);
            let report = fs::read(folder.path().join("report.txt")).unwrap();
            assert_eq!(report, fs::read(folder.path().join("expected.txt")).unwrap());
        }
    }
}

#[test]
fn exit_codes_tell_the_outcome() {
    let young = r#","metadata":{"written_at":"2026-10-01T00:00:30Z"}"#;
    let folder = folder_with(&[
        ("a", &entry("a", "token-0001", "")),
        ("b", &entry("a", "token-0002", "")),
        ("masked", &entry("a", "toke...", "")),
        ("young", &entry("a", "token-0002", young)),
        ("broken", "{\"key\":\"tokens:a\",\"value\":\"{\n"),
        ("empty", ""),
    ]);
    let run = |args: &[&str]| code(&verify(folder.path(), args));
    assert_eq!(run(&["a", "a"]), 0);
    assert_eq!(run(&["empty", "empty"]), 0);
    assert_eq!(run(&["a", "b"]), 3);
    assert_eq!(run(&["a", "empty"]), 3);
    assert_eq!(run(&["a", "masked"]), 4);
    assert_eq!(run(&["masked", "masked"]), 4);
    assert_eq!(run(&["a", "broken"]), 1);
    assert_eq!(run(&["a", "a", "--expect-ours"]), 3);
    assert_eq!(run(&["a", "young"]), 3);
    assert_eq!(run(&["a", "young", "--settle", "60s", "--now", "2026-10-01T00:01:00Z"]), 4);
    assert_eq!(run(&["a", "young", "--settle", "60s", "--now", "2026-10-01T00:02:00Z"]), 3);
    assert_eq!(run(&["a", "young", "--settle", "60s"]), 3);
    for usage in [
        &["a"][..],
        &["a", "nowhere"],
        &["-", "-"],
        &["a", "b", "--ignore", "scope"],
        &["a", "b", "--memory", "1M"],
        &["a", "b", "--ignore", "access_token=noise"],
        &["--resume", "nowhere"],
        &["a", "-", "--checkpoint", "run"],
        &["a", "."],
    ] {
        assert_eq!(run(usage), 2, "{usage:?}");
    }
}

#[test]
fn what_is_masked_in_any_field_matches_nothing_in_any_order() {
    let entry = |key: &str, refresh: &str| {
        let value = serde_json::json!({ "access_token": "token-0001", "refresh_token": refresh, "scope": "a b" });
        format!("{{\"key\":\"tokens:{key}\",\"value\":{}}}\n", Value::from(value.to_string()))
    };
    // Others come first, so that what entries look like is known by then.
    let lines =
        [entry("a", "1//refresh-1"), entry("b", "1//refresh-2"), entry("c", "-*-*-*-*"), entry("d", "REDACTED")];
    let turned: String = lines.iter().rev().map(String::as_str).collect();
    let folder = folder_with(&[("sorted", &lines.concat()), ("turned", &turned)]);
    for sides in [["sorted", "sorted"], ["sorted", "turned"], ["turned", "turned"]] {
        let output = verify(folder.path(), &sides);
        let why = "unverifiable, a field of the value is masked on both sides [status]";
        let text = stdout(&output);
        assert!(text.starts_with(&format!("! tokens:c  {why}\n! tokens:d  {why}\n4 entries")), "{sides:?} {text}");
        assert_eq!(code(&output), 4);
    }
}

#[test]
fn reports_repeat_the_code_and_the_reason_and_list_every_key() {
    let folder = folder_with(&[
        ("left", &[entry("a", "token-0001", ""), entry("b", "token-0001", ""), entry("d", "token-0001", "")].concat()),
        ("right", &[entry("a", "token-0001", ""), entry("b", "token-0002", ""), entry("c", "token-0001", "")].concat()),
    ]);
    let output = verify(folder.path(), &["left", "right", "--format", "json", "--all"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report["exit_code"].as_i64(), report["reason"].as_str()), (Some(3), Some("3 keys differ")));
    let outcomes: Vec<&str> =
        report["findings"].as_array().unwrap().iter().map(|f| f["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["match", "changed", "extra", "missing"]);
    assert_eq!(report["counts"]["changed"]["rungs"]["fingerprint"], 1);

    let output = verify(folder.path(), &["left", "right", "--format", "jsonl"]);
    let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!((lines[0]["type"].as_str(), lines[3]["type"].as_str()), (Some("finding"), Some("summary")));
    assert_eq!(lines[3]["exit_code"], 3);

    let files = ["--combined", "all.txt", "--missing", "missing.txt", "--extra", "extra.txt", "--differ", "differ.txt"];
    let output = verify(folder.path(), &[&["left", "right", "--diff"][..], &files[..]].concat());
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("all.txt"), "* tokens:b\n+ tokens:c\n- tokens:d\n");
    assert_eq!(
        (read("missing.txt"), read("extra.txt"), read("differ.txt")),
        ("tokens:d\n".into(), "tokens:c\n".into(), "tokens:b\n".into())
    );
    let text = stdout(&output);
    assert!(text.starts_with("* tokens:b  token value.access_token [fingerprint]\n"), "{text}");
    assert!(
        text.contains("    -value.access_token: [hidden, left]\n    +value.access_token: [hidden, right]\n"),
        "{text}"
    );
}

#[test]
fn another_account_is_told_first_whatever_else_is_said_of_the_key() {
    let rows = |identity: u32| {
        let row = format!("{{\"key\":\"tokens:b\",\"value\":\"REDACTED\",\"identity\":\"{identity}\"}}\n");
        [entry("a", "token-0001", ""), row].concat()
    };
    let folder = folder_with(&[("left", &rows(1)), ("right", &rows(2))]);
    for (more, outcome) in [(&[][..], ""), (&["--expect-ours"], "foreign, ")] {
        let text = stdout(&verify(folder.path(), &[&["left", "right"], more].concat()));
        assert!(text.starts_with("ANOTHER UPSTREAM ACCOUNT: tokens:b\n"), "{text}");
        assert!(text.contains(&format!("* tokens:b  {outcome}identity entry.identity")), "{text}");
    }
}

#[test]
fn each_outcome_has_its_file() {
    let left = ["a", "b", "c", "d"].map(|key| entry(key, "token-0001", "")).concat();
    let young = r#","metadata":{"written_at":"2026-10-01T00:00:30Z"}"#;
    let right = [
        entry("a", "token-0001", ""),
        entry("b", "toke...", ""),
        entry("c", "token-0002", young),
        "{\"key\":\"tokens:d\",\"value\":\"{\"}\n".to_owned(),
    ]
    .concat();
    let folder = folder_with(&[("left", &left), ("right", &right)]);
    let args = ["left", "right", "--all", "--settle", "60s", "--now", "2026-10-01T00:01:00Z"];
    let names = ["match", "unverifiable", "settling", "error", "foreign", "missing"];
    let files: Vec<String> = names.iter().flat_map(|name| [format!("--{name}"), format!("{name}.txt")]).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    assert_eq!(code(&verify(folder.path(), &[&args[..], &files].concat())), 1);
    let read = |name: &str| fs::read_to_string(folder.path().join(format!("{name}.txt"))).unwrap();
    assert_eq!(names.map(read), ["tokens:a\n", "tokens:b\n", "tokens:c\n", "tokens:d\n", "", ""]);
    assert_eq!(
        code(&verify(folder.path(), &["left", "left", "--all", "--expect-ours", "--foreign", "foreign.txt"])),
        3
    );
    assert_eq!(read("foreign"), "tokens:a\ntokens:b\ntokens:c\ntokens:d\n");
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_cannot_be_written_costs_no_report() {
    let folder = folder_with(&[("a", &entry("a", "token-0001", "")), ("b", &entry("a", "token-0002", ""))]);
    let run = |file: &str| verify(folder.path(), &["a", "b", "--differ", file]);
    let told = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let before = run("nowhere/differ.txt");
    assert_eq!((code(&before), before.stdout.len()), (1, 0));
    assert!(told(&before).contains("cannot write `nowhere/differ.txt`"), "{}", told(&before));
    // The disk is full by the end.
    std::os::unix::fs::symlink("/dev/full", folder.path().join("differ.txt.partial")).unwrap();
    let late = run("differ.txt");
    assert!(stdout(&late).starts_with("* tokens:a  token value.access_token"), "{}", stdout(&late));
    assert!(code(&late) == 1 && told(&late).contains("cannot write `differ.txt`"), "{}", told(&late));
}

#[test]
fn what_is_streamed_before_disorder_shows_is_declared_void() {
    let folder = folder_with(&[
        ("left", &[entry("a", "token-0001", ""), entry("c", "token-0001", ""), entry("b", "token-0001", "")].concat()),
        ("right", &[entry("b", "token-0001", ""), entry("c", "token-0001", "")].concat()),
    ]);
    let text = stdout(&verify(folder.path(), &["left", "right", "--format", "jsonl"]));
    let types: Vec<Value> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone()).collect();
    assert_eq!(types, ["finding", "finding", "restart", "finding", "summary"], "{text}");
    let output = verify(folder.path(), &["left", "right", "--order", "sorted"]);
    assert_eq!(code(&output), 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains("left is not sorted: entry 3"));
}

#[test]
fn no_output_holds_a_token_or_a_part_of_one() {
    // Canaries wherever a secret may stand: the token, another field, metadata, a broken entry, an opaque value.
    let canary = |n: u32| format!("canary{n}-Zq7xW9vK2mLp");
    let lines = |n: u32| {
        let value = serde_json::json!({"access_token": canary(n), "refresh_token": canary(n + 1),
            "scope": format!("a {} {} {}", canary(n), canary(n + 1), canary(n + 5)), "expires_at": "2026-10-01T00:00:00Z",
            "token_type": canary(n + 1), canary(n): 1, canary(n + 6): n});
        [
            format!("{{\"key\":\"authority:a\",\"value\":\"{}\"}}\n", canary(n + 2)),
            format!(
                "{{\"key\":\"tokens:a\",\"value\":{},\"metadata\":{{\"v\":1,\"note\":\"{}\"}}}}\n",
                Value::from(value.to_string()),
                canary(n + 3)
            ),
            format!("{{\"key\":\"tokens:b\",\"value\":\"{{\\\"access_token\\\":[\\\"{}\\\"]}}\"}}\n", canary(n)),
            format!("{{\"key\":\"tokens:c\",\"value\":\"{{\\\"access_token\\\":\\\"{}", canary(n)),
        ]
        .concat()
    };
    let folder = folder_with(&[("left", &lines(10)), ("right", &lines(20))]);
    for order in ["auto", "unsorted"] {
        for format in ["text", "json", "jsonl"] {
            let run = format!("run-{order}-{format}");
            let output = verify(
                folder.path(),
                &[
                    "left",
                    "right",
                    "-vvv",
                    "--diff",
                    "--all",
                    "--order",
                    order,
                    "--format",
                    format,
                    "--checkpoint",
                    &run,
                ],
            );
            assert_eq!(code(&output), 1);
            let findings = format!("{run}.findings");
            let files = [run, findings].map(|name| fs::read(folder.path().join(name)).unwrap());
            for bytes in [&output.stdout, &output.stderr, &files[0], &files[1]] {
                let text = String::from_utf8_lossy(bytes);
                assert!(!text.contains("canary") && !text.contains("Zq7xW9"), "{text}");
            }
            assert!(!output.stdout.is_empty());
        }
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    dumps::generate(folder.path(), ENTRIES, Kind::Sorted);
    let mut child = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .args(["verify", "left.jsonl", "right.jsonl", "--all"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), output.stderr.len()), (3, 0));
}
