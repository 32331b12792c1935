//! The rehearsal through the binary, as a user runs it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn rehearse(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cutover"))
        .arg("rehearse")
        .args(arguments)
        .env_remove("CUTOVER_LOG")
        .output()
        .expect("the binary runs")
}

/// Runs with `--format json` and gives the exit code and the report.
fn report(arguments: &[&str]) -> (i32, Value) {
    let output = rehearse(&[arguments, &["--format", "json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{}\n{stderr}", String::from_utf8_lossy(&output.stdout)));
    (output.status.code().unwrap(), report)
}

const DAMAGE: [&str; 4] = ["lost", "stale_reads", "regressions", "double_refreshes"];

fn criterion<'a>(report: &'a Value, id: &str) -> &'a Value {
    report["criteria"].as_array().unwrap().iter().find(|c| c["id"] == id).unwrap()
}

#[test]
fn a_healthy_cutover_passes_and_the_world_counts_no_damage() {
    let (code, report) = report(&["--days", "2"]);
    assert_eq!((code, report["verdict"].as_str()), (0, Some("pass")), "{report:#}");
    for name in DAMAGE {
        assert_eq!(report[name], 0, "{name}");
    }
    assert_eq!(report["stages"]["retired"], 24);
    assert_eq!(report["stages"]["retained"], 4);
    assert_eq!(report["triplets"], 28);
    // 16 hourly connections over two days, each read every 45 to 46 minutes.
    assert!(report["rotations"].as_u64().unwrap() > 16 * 2 * 24, "{}", report["rotations"]);
    assert_eq!(report["criteria"].as_array().unwrap().len(), 16);
    assert_eq!(report["exit_code"], 0);
    assert!(report["elapsed_virtual_s"].as_i64().unwrap() > 2 * 86_400);
    let reasons = report["retained"].to_string();
    assert!(reasons.contains("aws_bedrock") && reasons.contains("microsoft_ads"), "{reasons}");
}

#[test]
fn a_rehearsal_goes_through_everything_that_a_cutover_has() {
    let (code, report) = report(&["--days", "1"]);
    assert_eq!(code, 0, "{report:#}");
    let phases = report["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    let expected = [
        "assess",
        "apply",
        "soak",
        "consent",
        "drill",
        "gate",
        "no",
        "switch",
        "reverse",
        "switch",
        "settle",
        "retire do-alarm",
        "worker change",
        "retire nango",
        "after",
        "sweep",
        "audit",
    ];
    assert_eq!(names, expected);
    let outcome = |name: &str| {
        let phase = phases.iter().find(|phase| phase["name"] == name).unwrap();
        phase["outcome"].as_str().unwrap()
    };
    for (name, said) in [
        ("assess", "0 errors, 0 unknown"),
        ("consent", "one of them by its page"),
        ("no", "said when 1 of wave 1 had moved: the switch stopped there"),
        ("reverse", "back at the source"),
        ("retire do-alarm", "restored once, stopped again; disarmed and read back at"),
        ("worker change", "deploy 2: -"),
        ("retire nango", "undone"),
        ("audit", "both chains unchanged"),
    ] {
        assert!(outcome(name).contains(said), "{name}: {}", outcome(name));
    }
}

#[cfg(unix)]
#[test]
fn hooks_are_called_around_every_operation_and_their_no_ends_the_rehearsal() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("told");
    let hooks = dir.path().join("hooks");
    std::fs::create_dir(&hooks).unwrap();
    let write = |name: &str, last: &str| {
        let path = hooks.join(name);
        let line = "echo $CUTOVER_HOOK $CUTOVER_WAVE $CUTOVER_REHEARSAL $CUTOVER_COMPOSIO_KEY";
        std::fs::write(&path, format!("#!/bin/sh\n{line} >> {}\n{last}\n", told.display())).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    write("before-switch", "true");
    write("after-retire-nango", "true");
    let folder = hooks.display().to_string();
    let (code, done) = report(&["--days", "1", "--hooks", &folder]);
    assert_eq!(code, 0, "{done:#}");
    let lines = std::fs::read_to_string(&told).unwrap();
    // The first wave moves twice: it goes back once.
    assert_eq!(
        lines.lines().collect::<Vec<_>>(),
        ["before-switch 1 1", "before-switch 1 1", "before-switch 2 1", "after-retire-nango 1"]
    );
    assert_eq!(done["hooks"], 4);
    write("before-settle", "exit 3");
    let (code, stopped) = report(&["--days", "1", "--hooks", &folder]);
    assert_eq!(code, 3, "{stopped:#}");
    assert!(stopped["reason"].as_str().unwrap().contains("`before-settle` said no"), "{}", stopped["reason"]);
    assert_eq!(stopped["stages"]["switched"], 24, "{}", stopped["stages"]);
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_does_not() {
    let strip = |(_, mut report): (i32, Value)| {
        report.as_object_mut().unwrap().remove("elapsed_wall_s");
        report
    };
    let faults = ["--days", "1", "--faults", "crash=4,composio-429,kv-lag,webhook-loss", "--seed", "7"];
    let (a, b) = (strip(report(&faults)), strip(report(&faults)));
    assert_eq!(a.to_string(), b.to_string());
    let c = strip(report(&["--days", "1", "--faults", "crash=4,composio-429,kv-lag,webhook-loss", "--seed", "8"]));
    assert_ne!(a["digest"], c["digest"]);
}

#[test]
fn noise_is_survived_without_a_loss() {
    for faults in
        ["webhook-loss=100%", "kv-lag", "composio-429=20%", "crash=8", "crash=8,kv-lag,composio-429,webhook-loss"]
    {
        let (code, report) = report(&["--days", "1", "--faults", faults]);
        assert_eq!(code, 0, "{faults}: {report:#}");
        for name in DAMAGE {
            assert_eq!(report[name], 0, "{faults}: {name}");
        }
        if faults.contains("crash") {
            assert!(report["crashes"].as_u64().unwrap() > 0, "{faults}: nothing crashed");
        }
    }
}

#[test]
fn a_broken_migration_does_not_pass_and_its_criterion_names_the_triplet() {
    for (faults, id) in [
        ("do-alarm-zombie", "foreign-writes"),
        ("grant-revoked", "invalid-grant"),
        ("wrong-account", "identity"),
        ("scope-loss", "scopes"),
    ] {
        let (code, report) = report(&["--days", "2", "--faults", faults]);
        assert!(code == 3 || code == 4, "{faults}: exit {code}\n{report:#}");
        assert_eq!(report["exit_code"], code);
        let judged = criterion(&report, id);
        assert_eq!(judged["verdict"], "fail", "{faults}: {judged}");
        let hit = report["faults_hit"][0]["triplet"].as_str().unwrap();
        // A grant may feed several triplets; the criterion names those of the same tenant and connection.
        let tenant = hit.split(':').next().unwrap();
        assert!(judged["reason"].as_str().unwrap().contains(tenant), "{faults} hit {hit}: {judged}");
        assert_eq!(report["stages"].get("retired"), None, "{faults}: something was retired all the same");
    }
}

#[test]
fn an_outage_beyond_15_minutes_fails_and_a_shorter_one_does_not() {
    let (code, long) = report(&["--days", "1", "--faults", "nango-outage=40m"]);
    assert_eq!((code, criterion(&long, "outage")["verdict"].as_str()), (3, Some("fail")), "{long:#}");
    assert!(criterion(&long, "outage")["reason"].as_str().unwrap().contains("nango"));

    let (code, short) = report(&["--days", "1", "--faults", "nango-outage=8m"]);
    assert_eq!(code, 0, "{short:#}");
    assert_eq!((short["lost"].as_u64(), short["stale_reads"].as_u64()), (Some(0), Some(0)));
}

#[test]
fn markdown_csv_and_json_inventories_rehearse_alike() {
    let digest = |file: &str| report(&["--days", "1", "--inventory", file]).1["digest"].clone();
    let markdown = digest("fixtures/inventories/adr-038.md");
    assert_eq!(markdown, digest("fixtures/inventories/adr-038.csv"));
    assert_eq!(markdown, digest("fixtures/inventories/adr-038.json"));
}

#[test]
fn inventories_grow_to_the_asked_size() {
    let (code, report) = report(&["--days", "1", "--connections", "60"]);
    assert_eq!((code, report["connections"].as_u64()), (0, Some(60)), "{report:#}");
    assert_eq!(report["lost"], 0);
}

#[test]
fn bad_inventories_are_located_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let header = "tenant,integration_key,providers,account\n";
    let cases = [
        (dir.path().join("absent.csv").display().to_string(), vec!["absent.csv"]),
        (write("empty.csv", ""), vec!["empty.csv"]),
        (write("malformed.csv", &format!("{header}kahuna,google,ga4\n")), vec!["malformed.csv:2:", "expected"]),
        (
            write("contradictory.csv", &format!("{header}kahuna,google,ga4,default\nkahuna,slack,ga4,default\n")),
            vec!["contradictory.csv:3:", "kahuna:ga4:default"],
        ),
    ];
    for (file, expected) in cases {
        let output = rehearse(&["--inventory", &file, "--keep", &kept.display().to_string()]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{file}: {stderr}");
        assert!(output.stdout.is_empty());
        for text in expected {
            assert!(stderr.contains(text), "{file}: no `{text}` in\n{stderr}");
        }
        assert!(!kept.exists(), "{file}: something was written");
    }
}

#[test]
fn bad_options_are_refused_with_what_was_expected() {
    for (arguments, expected) in [
        (["--faults", "kv-lagg"], "did you mean `kv-lag`"),
        (["--faults", "kv-lag=soon"], "expected a duration"),
        (["--days", "0"], "1..=400"),
        (["--connections", "0"], "between 1 and"),
        (["--tenant", "a__b"], "ambiguous"),
    ] {
        let output = rehearse(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}

/// Everything that the program prints and stores, searched for the text that every secret of the
/// sandbox carries.
#[test]
fn no_planted_secret_is_printed_or_stored() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("state");
    let output = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .args(["rehearse", "--days", "1", "--format", "json", "-vvv", "--faults"])
        .arg("crash=3,composio-429,grant-revoked,wrong-account,do-alarm-zombie,nango-outage")
        .arg("--keep")
        .arg(&kept)
        .env("CUTOVER_LOG", "trace")
        .output()
        .unwrap();
    assert!(matches!(output.status.code(), Some(3 | 4)), "{}", output.status);
    assert!(!output.stderr.is_empty(), "the most verbose level logs something");
    let canary = cutover::sandbox::CANARY.as_bytes();
    assert!(canary.len() >= 6);
    let leaks = |what: &str, bytes: &[u8]| {
        if let Some(at) = bytes.windows(canary.len()).position(|w| w == canary) {
            let around =
                String::from_utf8_lossy(&bytes[at.saturating_sub(200)..(at + 80).min(bytes.len())]).into_owned();
            panic!("{what} leaks a secret: …{around}…");
        }
    };
    leaks("stdout", &output.stdout);
    leaks("stderr", &output.stderr);
    let mut files = 0;
    for entry in std::fs::read_dir(&kept).unwrap() {
        let path = entry.unwrap().path();
        leaks(&path.display().to_string(), &std::fs::read(&path).unwrap());
        files += 1;
    }
    assert!(files > 0 && Path::new(&kept).join("cutover.db").exists());
    let text = rehearse(&["--days", "1"]);
    leaks("the text report", &text.stdout);
}
