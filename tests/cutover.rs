//! A cutover from the command line, from apply to retire: what a person types, in the order in
//! which they type it, and what happens when something is not as it should be.

#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/cutover.rs"]
mod support;

use std::collections::BTreeSet;

use serde_json::Value;
use support::{Cutover, POLICY, SMALL};

#[test]
fn a_whole_cutover_from_the_command_line() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_gate();

    // Reverse is honest: before the switch nobody promises anything, after it everybody knows until when.
    let wave = cutover.waves()[0].to_string();
    let reports = cutover.until_done(&["switch", "--wave", &wave, "--yes", "--reverse-window", "2h"]);
    assert!(reports[0]["irreversible_after_window"].as_u64().unwrap() > 0, "{:#}", reports[0]);
    let row = |status: &Value| {
        status["rows"].as_array().unwrap().iter().find(|r| r["stage"] == "switched").cloned().unwrap_or_default()
    };
    assert!(row(&cutover.status())["reversible_until"].as_str().is_some());
    cutover.until_done(&["reverse", "--wave", &wave, "--yes", "--by", "bob"]);
    assert_eq!(row(&cutover.status()), Value::Null, "everything is back");
    for wave in cutover.waves() {
        cutover.until_done(&["switch", "--wave", &wave.to_string(), "--yes"]);
    }
    cutover.live(7 * 3_600_000);

    let (code, _, error) = cutover.run(&["settle", "--policy", &cutover.policy]);
    assert!(code == 7 && error.contains(&format!("--confirm {}", cutover.plan_id())), "{error}");
    assert_eq!(cutover.gate(), "pass");
    cutover.until_done(&["settle", "--confirm", &cutover.plan_id()]);
    let (code, _, error) = cutover.run(&["reverse", "--wave", &wave, "--yes", "--policy", &cutover.policy]);
    assert!(code == 7 && error.contains("reverse window"), "{error}");

    let id = cutover.plan_id();
    let (code, _, error) = cutover.run(&["retire", "nango", "--confirm", &id, "--policy", &cutover.policy]);
    assert!(code == 7 && error.contains("must be retired first"), "{error}");
    cutover.until_done(&["retire", "do-alarm", "--yes"]);
    let (code, out, error) = cutover.run(&["retire", "sweep", "--policy", &cutover.policy]);
    assert_eq!(code, 0, "{out}{error}");

    // What can be undone is undone, and done again.
    cutover.until_done(&["retire", "nango", "--prepare", "--yes"]);
    cutover.until_done(&["retire", "nango", "--undo", "--yes"]);
    cutover.until_done(&["retire", "restore", "--yes"]);
    cutover.until_done(&["retire", "do-alarm", "--yes"]);
    cutover.until_done(&["retire", "nango", "--confirm", &id]);
    assert!(cutover.stages().iter().all(|stage| stage == "retired"), "{:?}", cutover.stages());
    // Twice is once.
    let again = cutover.until_done(&["retire", "nango", "--confirm", &id]);
    assert_eq!(again[0]["steps"].as_array().unwrap().len(), 0);

    let ledger = cutover.ledger();
    assert_eq!((ledger.lost, ledger.stale_reads, ledger.double_refreshes), (0, 0, 0), "{ledger:?}");
    let (code, out, _) = cutover.run(&["audit", "--format", "json", "--subject", "kahuna:hubspot:default"]);
    assert_eq!(code, 0);
    let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().filter_map(|e| e["event"]["event"].as_str()).collect();
    assert!(
        names.ends_with(&["switch_begun", "switched", "tested", "settled", "retire_begun", "retired"]),
        "{names:?}"
    );
    says_who(&cutover);
}

/// The audit trail names whoever carried an operation out, and what it came to.
fn says_who(cutover: &Cutover) {
    let (code, out, _) = cutover.run(&["audit", "--format", "json"]);
    assert_eq!(code, 0);
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| -> BTreeSet<&str> {
        let named = lines.iter().filter(|line| line["event"]["event"] == name);
        named.map(|line| line["actor"].as_str().unwrap()).collect()
    };
    for name in ["switch_begun", "switched", "tested", "settled", "retire_begun", "retired", "nango connection deleted"]
    {
        assert_eq!(of(name), BTreeSet::from(["alice"]), "{name}");
    }
    assert!(of("reversed").contains("bob"), "{:?}", of("reversed"));
    let ended: Vec<(&str, &str, &Value)> = lines
        .iter()
        .filter(|line| line["event"]["event"] == "operation ended")
        .map(|line| {
            (line["actor"].as_str().unwrap(), line["event"]["operation"].as_str().unwrap(), &line["event"]["exit_code"])
        })
        .collect();
    let begun = lines.iter().filter(|line| line["event"]["event"] == "operation begun").count();
    assert_eq!(begun, ended.len());
    let done = Value::from(0);
    for operation in ["apply", "settle", "retire-restore", "retire-nango-prepare", "retire-nango-undo", "retire-nango"]
    {
        assert!(ended.contains(&("alice", operation, &done)), "{operation}: {ended:?}");
    }
    assert!(ended.contains(&("bob", "reverse", &done)) && ended.contains(&("alice", "retire-nango", &Value::from(7))));
}

/// The steps of some reports, as lines, in the order of their text: reads of several connections
/// may overlap.
fn lines(reports: &[Value]) -> Vec<String> {
    let text = |step: &Value, field: &str| step[field].as_str().unwrap_or_default().to_owned();
    let mut lines: Vec<String> = reports
        .iter()
        .flat_map(|report| report["steps"].as_array().unwrap())
        .map(|step| {
            let (api, action) = (text(step, "api"), text(step, "action"));
            format!("{api}: {action} {} ({})", text(step, "subject"), text(step, "detail"))
        })
        .collect();
    lines.sort();
    lines
}

/// Runs an operation dry and then for real: the dry run asks with `GET` and refreshes nothing, and
/// both take the same steps.
///
/// `looker`: where the dry run finds the state, if that is another address than the real run's.
fn dry_then_real(cutover: &Cutover, looker: Option<&str>, name: &str, args: &[&str], before_people: bool) {
    let asked = cutover.ledger();
    let mut dry_args = [args, &["--dry-run", "--policy", &cutover.policy, "--format", "json"]].concat();
    if let Some(looker) = looker {
        dry_args.extend(["--state", looker]);
    }
    let (code, out, error) = cutover.run(&dry_args);
    assert_eq!(code, 0, "{name}: {out}{error}");
    let after = cutover.ledger();
    for (api, methods) in &after.requests {
        let before = |method: &str| asked.requests.get(api).and_then(|m| m.get(method)).copied().unwrap_or(0);
        let written: Vec<&String> = methods.keys().filter(|m| *m != "GET" && methods[*m] != before(m)).collect();
        assert!(written.is_empty(), "{name}: the dry run sent {written:?} to {api}");
    }
    let quiet = (after.refreshing_reads, after.kv_writes, after.deliveries, after.audit_rows);
    assert_eq!(quiet, (asked.refreshing_reads, asked.kv_writes, asked.deliveries, asked.audit_rows), "{name}");
    let dry = lines(&[serde_json::from_str(&out).unwrap()]);
    let mut reports = cutover.until_done(args);
    if before_people {
        reports.truncate(1);
    }
    let real = lines(&reports);
    // Tokens rotate while a real operation waits; their copies are no steps of its own.
    let own = |line: &&String| !line.contains("copy the token to") && !line.contains("put tokens:");
    let (dry_own, real_own): (Vec<_>, Vec<_>) = (dry.iter().filter(own).collect(), real.iter().filter(own).collect());
    assert_eq!(dry_own, real_own, "{name}");
    assert!(!dry.is_empty(), "{name}: nothing to do proves nothing");
    insta::assert_snapshot!(format!("steps_{name}"), dry.join("\n"));
}

/// Every operation of a cutover, dry and then for real.
fn walk_dry(cutover: &Cutover, looker: Option<&str>) {
    let dry = |name: &str, args: &[&str], before_people| dry_then_real(cutover, looker, name, args, before_people);
    dry("apply", &["apply", &cutover.plan, "--yes"], false);
    cutover.live(26 * 3_600_000);
    dry("consent", &["consent", "all", "--yes"], true);
    dry("drill", &["switch", "--wave", "1", "--drill", "--yes"], false);
    for wave in cutover.waves().iter().skip(1) {
        cutover.until_done(&["switch", "--wave", &wave.to_string(), "--drill", "--yes"]);
    }
    assert_eq!(cutover.gate(), "pass");
    dry("switch", &["switch", "--wave", "1", "--yes"], false);
    dry("reverse", &["reverse", "--wave", "1", "--yes"], false);
    for wave in cutover.waves() {
        cutover.until_done(&["switch", "--wave", &wave.to_string(), "--yes"]);
    }
    cutover.live(6 * 3_600_000);
    assert_eq!(cutover.gate(), "pass");
    let id = cutover.plan_id();
    dry("settle", &["settle", "--confirm", &id], false);
    dry("retire_do_alarm", &["retire", "do-alarm", "--yes"], false);
    dry("retire_restore", &["retire", "restore", "--yes"], false);
    cutover.until_done(&["retire", "do-alarm", "--yes"]);
    dry("retire_nango_prepare", &["retire", "nango", "--prepare", "--yes"], false);
    dry("retire_nango_undo", &["retire", "nango", "--undo", "--yes"], false);
    dry("retire_nango", &["retire", "nango", "--confirm", &id], false);
}

#[test]
fn a_dry_run_only_reads_and_takes_the_steps_of_the_real_run() {
    walk_dry(&Cutover::start(SMALL, POLICY, Vec::new()), None);
}

/// On PostgreSQL the dry runs log in as a role that may only read, and the real runs take the same
/// steps as on a file.
#[test]
fn a_dry_run_on_postgresql_needs_no_right_to_write() {
    let server = postgres::shared();
    let mut cutover = Cutover::start(SMALL, POLICY, Vec::new());
    let url = server.database();
    let looker = url.replace("cutover@", "looker@");
    server.run(
        &url,
        "CREATE ROLE looker LOGIN; REVOKE ALL ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SCHEMA public TO looker",
    );
    server.run(&url, "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO looker");
    cutover.state = Some(url.clone());
    // A database without a state is left without one.
    let plan = cutover.plan.clone();
    let first = ["apply", &plan, "--yes", "--dry-run", "--policy", &cutover.policy, "--state", &looker];
    let (code, out, error) = cutover.run(&first);
    assert!(code == 0 && out.contains("nothing was written"), "{code}: {out}{error}");
    assert_eq!(server.run(&url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "0\n");
    // The role cannot do for real what it did dry.
    let (code, _, error) = cutover.run(&["apply", &plan, "--yes", "--policy", &cutover.policy, "--state", &looker]);
    assert!(code == 1 && error.contains("permission denied"), "{code}: {error}");
    walk_dry(&cutover, Some(&looker));
}

#[test]
fn zombies_are_found_by_kind_and_nothing_calls_itself_done() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_settled();
    // Another environment of the gateway, which nobody retired.
    let other = Cutover::start(SMALL, POLICY, Vec::new());
    let staging = format!("staging={}", other.sandbox.urls.gateway);
    let key = other.sandbox.lock().keys().gateway_admin_key;
    let secrets = [("CUTOVER_GATEWAY_ADMIN_KEY_STAGING", key.as_str())];

    let args = ["retire", "do-alarm", "--yes", "--environment", &staging, "--policy", &cutover.policy];
    let json = [&args[..], &["--no-wait", "--format", "json"]].concat();
    let missing = cutover.run(&args);
    assert!(missing.0 == 2 && missing.2.contains("CUTOVER_GATEWAY_ADMIN_KEY_STAGING"), "{}", missing.2);
    let call = || -> (i32, Value) {
        let (code, out, error) = cutover.run_with(&json, &secrets);
        (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code}: {out}{error}")))
    };
    // Until every object is disarmed and the silence runs.
    for _ in 0..2 {
        let (code, report) = call();
        assert_eq!(code, 4, "{report:#}");
        cutover.live_until(support::time(report["next_at"].as_str().unwrap()));
    }
    // Somebody arms one object again, and a subscription still points at the retired route.
    cutover.admin("POST", "/admin/alarms/kahuna%3Aslack%3Adefault/mode", r#"{"mode":"standby"}"#);
    cutover.subscribe("https://v5.example.com/admin/sync/nango");
    cutover.live(3 * 3_600_000);
    assert_eq!(cutover.gate(), "pass");
    let (code, report) = call();
    assert_eq!(code, 7, "{report:#}");
    let reason = report["reason"].as_str().unwrap();
    for zombie in ["zombie armed: `kahuna:slack:default`", "zombie environment: `staging`", "zombie subscription:"] {
        assert!(reason.contains(zombie), "{reason}");
    }
    let (code, _, error) =
        cutover.run(&["retire", "nango", "--confirm", &cutover.plan_id(), "--policy", &cutover.policy]);
    assert!(code == 7 && error.contains("must be retired first"), "{error}");

    // Mended, it is done again from the start, and is clean then.
    cutover.unsubscribe();
    let (code, report) = call();
    assert_eq!(code, 4, "{report:#}");
    cutover.until_done(&["retire", "do-alarm", "--yes"]);
    let (code, out, error) = cutover.run(&["retire", "sweep", "--policy", &cutover.policy]);
    assert_eq!(code, 0, "{out}{error}");
}

#[test]
fn a_no_wins_over_a_switch_that_runs_and_never_over_a_reverse() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_gate();
    let switch = ["switch", "--wave", "1", "--yes", "--no-wait", "--policy", &cutover.policy];
    assert_eq!(cutover.run(&switch).0, 4, "the canary moved");
    let (code, _, error) = cutover.run(&["ctl", "no"]);
    assert!(code == 2 && error.contains("needs a reason"), "{error}");
    let (code, _, error) = cutover.run_with(&["ctl", "no", "--reason", "closing week"], &[("USER", "")]);
    assert!(code == 2 && error.contains("`--by NAME`"), "{error}");
    assert_eq!(cutover.run(&["ctl", "no", "--reason", "closing week"]).0, 0);
    cutover.live(300_000);
    let (code, _, error) = cutover.run(&switch);
    assert!(code == 7 && error.contains("alice said no to `all`") && error.contains("closing week"), "{error}");
    cutover.until_done(&["reverse", "--wave", "1", "--yes"]);
    assert!(cutover.stages().iter().all(|stage| stage == "verified"), "{:?}", cutover.stages());

    assert_eq!(cutover.run(&["ctl", "go"]).0, 0);
    let (code, out, _) = cutover.run(&["ctl", "no", "--triplet", "kahuna:slack:default", "--reason", "customer asked"]);
    assert!(code == 0 && out.contains("is held"), "{out}");
    assert_eq!(cutover.run(&["ctl", "throttle", "5s", "--reason", "gently"]).0, 0);
    cutover.until_done(&["switch", "--wave", "1", "--yes"]);
    let (code, _, error) = cutover.run(&["switch", "--wave", "2", "--yes", "--policy", &cutover.policy]);
    assert!(code == 7 && error.contains("no verified triplet") && error.contains("customer asked"), "{error}");
    let status = cutover.status();
    let held: Vec<&Value> = status["rows"].as_array().unwrap().iter().filter(|r| r["held"].is_string()).collect();
    assert_eq!((held.len(), held[0]["stage"].as_str()), (1, Some("verified")), "{held:#?}");
    let (_, out, _) = cutover.run(&["audit", "--actor", "alice", "--format", "json"]);
    assert!(out.contains("closing week") && out.contains("no taken back") && out.contains("customer asked"), "{out}");
    let said = out.lines().find(|line| line.contains("no taken back")).unwrap();
    let said: Value = serde_json::from_str(said).unwrap();
    let minutes = cutover.now().since(support::time(said["at"].as_str().unwrap())) / 60_000;
    assert!((0..60).contains(&minutes), "{minutes} minutes ago by `CUTOVER_NOW`");
}

#[cfg(unix)]
#[test]
fn hooks_are_told_where_things_stand_and_one_that_fails_stops_the_operation() {
    use std::os::unix::fs::PermissionsExt;
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_gate();
    let hooks = cutover.dir.path().join("hooks");
    std::fs::create_dir(&hooks).unwrap();
    let write = |name: &str, text: &str| {
        let path = hooks.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let told = cutover.path("told");
    let folder = hooks.display().to_string();
    write("before-switch", &format!("env | grep ^CUTOVER_ | sort > {told}"));
    let asked = cutover.path("asked");
    write("canary-switch", &format!("echo \"$CUTOVER_STAGES\" > {asked}\nexit 3"));
    write("failed-switch", "exit 9");
    let args = ["switch", "--wave", "1", "--yes", "--no-wait", "--policy", &cutover.policy, "--hooks", &folder];
    let (code, _, error) = cutover.run(&args);
    assert!(code == 7 && error.contains("`canary-switch` said no"), "{error}");
    assert!(error.contains("warning: the hook `failed-switch`") && error.contains("done before it stopped"), "{error}");
    let stages = std::fs::read_to_string(asked).unwrap();
    assert!(stages.contains("\"switched\":1"), "it is told what is so now: {stages}");
    let told = std::fs::read_to_string(told).unwrap();
    assert!(told.contains("CUTOVER_WAVE=1") && told.contains("CUTOVER_OPERATION=switch"), "{told}");
    assert!(!told.contains("KEY") && !told.contains("TOKEN"), "no key reaches a hook: {told}");
    let stages = cutover.stages();
    assert_eq!(
        stages.iter().filter(|stage| *stage == "switched").count(),
        1,
        "the canary and nothing else: {stages:?}"
    );

    // Asked again, it says no again; without it nobody can agree.
    cutover.live(180_000);
    let (code, _, error) = cutover.run(&args);
    assert!(code == 7 && error.contains("`canary-switch` said no"), "{error}");
    let switch = ["switch", "--wave", "1", "--yes"];
    let (code, reason) = cutover.until_ended(&switch);
    assert!(code == 7 && reason.contains("has not agreed to the rest"), "{reason}");
    assert_eq!(cutover.stages().iter().filter(|stage| *stage == "switched").count(), 1);
    write("canary-switch", "exit 0");
    cutover.until_done(&[&switch[..], &["--hooks", &folder]].concat());
    assert_eq!(cutover.stages().iter().filter(|stage| *stage == "switched").count(), 2);
}

#[test]
fn assess_says_what_is_wrong_and_its_facts_go_into_a_plan() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    let assess = |more: &[&str]| {
        let (code, out, error) =
            cutover.run(&[&["assess", "--plan", &cutover.plan, "--format", "json"], more].concat());
        let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code}: {out}{error}"));
        assert_eq!(report["exit_code"], code);
        (code, report)
    };
    let probes = cutover.path("probes.json");
    let (code, report) = assess(&["--out", &probes]);
    assert_eq!(code, 0, "{report:#}");
    let ledger = cutover.ledger();
    assert_eq!((ledger.refreshing_reads, ledger.kv_writes, ledger.audit_rows), (0, 0, 0), "it only reads");
    let inventory = cutover.path("inventory.csv");
    let replan =
        ["plan", "--inventory", &inventory, "--policy", &cutover.policy, "--probes", &probes, "--format", "json"];
    let (code, plan, error) = cutover.run(&replan);
    assert!(code == 0 && plan.replace(' ', "").contains("\"kind\":\"toolkit\""), "{error}{plan}");
    let write = ["--write", "--only", "cloudflare-kv-latency,cloudflare-d1", "--dry-run"];
    let (code, report) = assess(&write);
    assert!(code == 0 && report.to_string().contains("dry run: would insert one row"), "{report:#}");
    assert_eq!((cutover.ledger().kv_writes, cutover.ledger().audit_rows), (0, 0));
    assert_eq!(assess(&write[..3]).0, 0);
    assert_eq!(cutover.ledger().audit_rows, 1);

    // The doctor's other name, an old walkthrough's settings, a key that is refused, a system that is away.
    std::fs::write(cutover.path("nango.env"), "NANGO_SECRET_KEY=abc\nNANGO_SERVER_URL=http://nango\n").unwrap();
    let env = cutover.path("nango.env");
    let (code, out, _) = cutover.run(&["doctor", "--only", "nango-environment", "--nango-env", &env]);
    assert!(code == 3 && out.contains("is not read by the server") && !out.contains("abc"), "{out}");
    let only = ["assess", "--only", "composio-key"];
    let (code, out, _) = cutover.run_with(&only, &[("CUTOVER_COMPOSIO_KEY", "ak_wrong")]);
    assert!(code == 3 && out.contains("refused the key"), "{out}");
    let (code, out, _) = cutover.run_with(&only, &[("CUTOVER_COMPOSIO_URL", "http://127.0.0.1:9")]);
    assert!(code == 4 && out.contains("unknown"), "{out}");
    let (code, _, error) = cutover.run(&["assess", "--only", "nothing"]);
    assert!(code == 2 && error.contains("known are nango-key"), "{error}");
}

/// Reads of the gateway's hot path, one after the other, until told to stop.
struct Load {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    reader: std::thread::JoinHandle<(u64, Vec<String>)>,
}

impl Load {
    fn on(cutover: &Cutover, triplets: Vec<String>) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, base) = (std::sync::Arc::clone(&stop), cutover.sandbox.urls.gateway.clone());
        let key = cutover.sandbox.lock().keys().gateway_key;
        let reader = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
            let (mut reads, mut failed) = (0, Vec::new());
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                for triplet in &triplets {
                    let url = format!("{base}/v1/{}/whoami", triplet.replace(':', "/"));
                    let answer = runtime.block_on(http.get(url).bearer_auth(&key).send()).unwrap();
                    let stale = answer.headers().get("x-token-stale").is_some_and(|v| v == "true");
                    reads += 1;
                    if !answer.status().is_success() || stale {
                        failed.push(format!("{triplet}: {}", answer.status()));
                    }
                }
            }
            (reads, failed)
        });
        Self { stop, reader }
    }

    fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.reader.join().unwrap()
    }
}

#[test]
fn fifty_triplets_go_there_and_back_under_load_without_one_failed_read() {
    let rows: String = (0..50).map(|n| format!("tenant{n},hubspot,hubspot,default\n")).collect();
    let inventory = format!("tenant,integration_key,providers,account\n{rows}");
    let policy = format!("{POLICY}\n[waves]\ncanary_size = 0\nsize_max = 50\n");
    let cutover = Cutover::start(&inventory, &policy, Vec::new());
    cutover.up_to_gate();
    let triplets: Vec<String> = (0..50).map(|n| format!("tenant{n}:hubspot:default")).collect();
    let load = Load::on(&cutover, triplets);
    cutover.until_done(&["switch", "--wave", "1", "--yes"]);
    assert!(cutover.stages().iter().all(|stage| stage == "switched"), "{:?}", cutover.stages());
    cutover.until_done(&["reverse", "--wave", "1", "--yes"]);
    assert!(cutover.stages().iter().all(|stage| stage == "verified"), "{:?}", cutover.stages());
    let (reads, failed) = load.end();
    println!("{reads} reads during a switch of 50 triplets and its reverse, {} failed", failed.len());
    assert!(reads > 200 && failed.is_empty(), "{reads} reads, failed: {failed:?}");
    let ledger = cutover.ledger();
    assert_eq!((ledger.stale_reads, ledger.lost, ledger.double_refreshes), (0, 0, 0), "{:?}", ledger.incidents);
}

/// The switched triplet of a status, with its account at the target.
fn switched(cutover: &Cutover) -> (String, String) {
    let status = cutover.status();
    let row = status["rows"].as_array().unwrap().iter().find(|row| row["stage"] == "switched").unwrap().clone();
    (row["triplet"].as_str().unwrap().to_owned(), row["account"].as_str().unwrap().to_owned())
}

/// That a triplet went back, is held with this reason, is on the record of `actor`, and is served.
fn is_back(cutover: &Cutover, triplet: &str, reason: &str, actor: &str) {
    let status = cutover.status();
    let row = status["rows"].as_array().unwrap().iter().find(|row| row["triplet"] == triplet).unwrap();
    assert_eq!((&row["stage"], &row["read_authority"]), (&"verified".into(), &"source".into()), "{row:#}");
    assert!(row["held"].as_str().unwrap_or_default().contains(reason), "{row:#}");
    let (_, out, _) = cutover.run(&["audit", "--format", "json", "--subject", triplet]);
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let events: Vec<Value> = lines.filter(|line| line["event"].is_object()).collect();
    let names: Vec<&str> = events.iter().filter_map(|e| e["event"]["event"].as_str()).collect();
    // Held first: what is stopped half way is not switched again.
    let record = ["held", "reverse_begun", "reversed"];
    assert!(names.contains(&"switched") && names.ends_with(&record), "{triplet}: {names:?}");
    assert!(events[events.len() - 3..].iter().all(|event| event["actor"] == actor), "{events:#?}");
    cutover.advance(cutover.now().plus_ms(90_000));
    assert_eq!(cutover.served(triplet), (200, "source".to_owned()), "{triplet} is not served");
}

#[test]
fn a_guard_that_trips_after_a_switch_brings_the_reads_back_by_itself() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.up_to_gate();
    // The canary's account dies between its move and the look at it.
    let args = ["switch", "--wave", "1", "--yes", "--no-wait", "--policy", &cutover.policy];
    assert_eq!(cutover.run(&args).0, 4, "the canary moved");
    let (canary, account) = switched(&cutover);
    cutover.composio("POST", &format!("/connected_accounts/{account}/revoke"), "{}");
    cutover.advance(cutover.now().plus_ms(180_000));
    let (code, _, error) = cutover.run(&args);
    assert!(code == 7 && error.contains(&canary) && error.contains("were moved back"), "{code}: {error}");
    is_back(&cutover, &canary, "the upstream answered", "alice");

    // Another one does so hours after the switch; nobody runs a command.
    assert_eq!(cutover.gate(), "pass");
    cutover.until_done(&["switch", "--wave", "2", "--yes"]);
    let (triplet, account) = switched(&cutover);
    cutover.composio("POST", &format!("/connected_accounts/{account}/revoke"), "{}");
    cutover.live(2 * 3_600_000);
    is_back(&cutover, &triplet, "went back by itself", "cutover");
    let ledger = cutover.ledger();
    assert_eq!((ledger.lost, ledger.double_refreshes, ledger.regressions), (0, 0, 0), "{:?}", ledger.incidents);
}
