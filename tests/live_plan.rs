//! Planning from a live Nango and applying a plan, against the sandbox, through the binary.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use cutover::catalogue::Catalogue;
use cutover::domain::time::{DAY_MS, HOUR_MS, Timestamp};
use cutover::inventory::{self, Inventory, Source};
use cutover::plan::{self, Policy};
use cutover::sandbox::{LedgerSummary, Sandbox, TokenLife, World, WorldConfig};
use serde_json::Value;

const INVENTORY: &str = "fixtures/inventories/adr-038.csv";
const NOW: &str = "2026-05-06T09:00:00Z";

fn seeding() -> Inventory {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(INVENTORY);
    let bytes = std::fs::read(path).unwrap();
    inventory::read(&Source { name: INVENTORY, bytes: &bytes, format: None, tenants: &[] }).unwrap()
}

/// A sandbox that answers while the test waits for the binary. Its clock stands still.
struct Live {
    // Before the runtime that serves it.
    sandbox: Sandbox,
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl Live {
    fn start() -> Self {
        let start = Timestamp::parse(NOW).unwrap();
        let (inventory, catalogue) = (seeding(), Catalogue::built_in());
        let plan = plan::plan(&inventory, &catalogue, &Policy::default(), &[], start);
        let retained: BTreeSet<_> = plan.rows.iter().filter(|r| !r.route.moves()).map(|r| r.triplet.clone()).collect();
        let world = World::new(WorldConfig {
            seed: 3,
            start,
            rows: inventory.rows,
            catalogue,
            retained,
            faults: Vec::new(),
            fault_from: start,
            fault_until: start.plus_ms(DAY_MS),
            token_life: TokenLife::Fixed(HOUR_MS),
            shim_url: None,
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sandbox = runtime.block_on(Sandbox::start(world)).unwrap();
        Self { sandbox, runtime, dir: tempfile::tempdir().unwrap() }
    }

    fn ledger(&self) -> LedgerSummary {
        self.sandbox.lock().ledger()
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn keys_in_target(&self) -> usize {
        let keys = self.sandbox.lock().keys();
        let (cloudflare, account) = (&self.sandbox.urls.cloudflare, &keys.cloudflare_account_id);
        let url = format!(
            "{cloudflare}/client/v4/accounts/{account}/storage/kv/namespaces/{}/keys?prefix=tokens:",
            keys.kv_target
        );
        let listing: Value = self.runtime.block_on(async {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
            http.get(url).bearer_auth(&keys.cloudflare_token).send().await.unwrap().json().await.unwrap()
        });
        listing["result"].as_array().unwrap().len()
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        run(args, &self.sandbox.environment(), self.dir.path())
    }

    /// A plan of the seeding inventory, saved.
    fn plan(&self, more: &[&str]) -> String {
        let (path, file) = (self.path("plan.json"), fixture());
        let (code, _, stderr) = self.run(&[&["plan", "--inventory", &file, "--out", &path], more].concat());
        assert_eq!(code, 0, "{stderr}");
        path
    }
}

fn fixture() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(INVENTORY).display().to_string()
}

/// Runs the binary for `alice` with no other environment, its files in `folder`, its clock at [`NOW`].
fn run(args: &[&str], environment: &[(String, String)], folder: &Path) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .args(args)
        .env_clear()
        .env("CUTOVER_NOW", NOW)
        .env("USER", "alice")
        .envs(environment.iter().cloned())
        .current_dir(folder)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn nango_gives_the_rows_and_the_plan_of_the_file_that_seeded_it_and_nothing_moves() {
    let live = Live::start();
    let (file, a, b) = (fixture(), live.path("a.json"), live.path("b.json"));
    let (code, from_nango, stderr) = live.run(&["inventory", "convert", "nango", "--format", "json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(from_nango, live.run(&["inventory", "convert", &file, "--format", "json"]).1);
    let (code, checked, _) = live.run(&["inventory", "check", "nango", &file]);
    assert_eq!((code, checked.as_str()), (0, "20 connections, 28 triplets, 2 tenants: no problems\n"));

    assert_eq!(live.run(&["plan", "--inventory", "nango", "--out", &a, "--format", "json"]).0, 0);
    assert_eq!(live.run(&["plan", "--inventory", &file, "--out", &b, "--format", "json"]).0, 0);
    assert_eq!(std::fs::read_to_string(&a).unwrap(), std::fs::read_to_string(&b).unwrap());
    assert_eq!(live.run(&["show", &a, "--inventory", "nango"]).2, "");

    let ledger = live.ledger();
    assert_eq!((ledger.refreshing_reads, ledger.rotations, ledger.kv_writes, ledger.deliveries), (0, 0, 0, 0));
    assert_eq!(ledger.requests.keys().copied().collect::<Vec<_>>(), ["nango"]);
    assert_eq!(ledger.requests["nango"].keys().collect::<Vec<_>>(), ["GET"]);
}

#[test]
fn what_nango_and_a_file_disagree_about_is_told_in_the_order_given() {
    let live = Live::start();
    let less = live.path("less.csv");
    std::fs::write(&less, "tenant,integration_key,providers,account\nkahuna,hubspot,hubspot,other\n").unwrap();
    let (code, out, _) = live.run(&["inventory", "check", "nango", &less]);
    assert_eq!(code, 3);
    assert!(out.contains("`hubspot` of `kahuna`) is in `nango` but not in"), "{out}");
    let (code, out, _) = live.run(&["inventory", "read", &less, "nango", "--format", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, report["connections"].as_u64()), (0, Some(21)), "{report:#}");
}

#[test]
fn a_nango_that_is_not_there_or_refuses_the_key_is_an_error_with_a_way_on() {
    let folder = tempfile::tempdir().unwrap();
    // A port that nobody listens on any more.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = [("CUTOVER_NANGO_URL", format!("http://{free}")), ("CUTOVER_NANGO_KEY", "canary".to_owned())];
    let away = away.map(|(name, value)| (name.to_owned(), value));
    let (code, out, error) = run(&["plan", "--inventory", "nango"], &away, folder.path());
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(error.contains("cannot read the inventory from Nango") && error.contains("no answer"), "{error}");
    assert!(error.contains("CUTOVER_NANGO_URL") && !error.contains("canary"), "{error}");
    let (code, out, _) = run(&["inventory", "check", "nango", "--format", "json"], &away, folder.path());
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()["exit_code"].as_u64()), (1, Some(1)));

    let live = Live::start();
    let mut wrong = live.sandbox.environment();
    wrong[1].1 = "canary".to_owned();
    let (code, _, error) = run(&["inventory", "read", "nango"], &wrong, folder.path());
    assert!(code == 1 && error.contains("refused the key") && !error.contains("canary"), "{error}");
}

#[test]
fn a_missing_setting_is_named_and_a_config_file_provides_it() {
    let live = Live::start();
    let folder = live.dir.path();
    let (code, _, error) = run(&["plan", "--inventory", "nango"], &[], folder);
    assert!(code == 2 && error.starts_with("error: `CUTOVER_NANGO_KEY` is not set\n"), "{error}");
    let plan = live.plan(&[]);
    let without: Vec<_> =
        live.sandbox.environment().into_iter().filter(|(name, _)| name != "CUTOVER_KV_TARGET").collect();
    let (code, _, error) = run(&["apply", &plan, "--yes"], &without, folder);
    assert!(code == 2 && error.starts_with("error: `CUTOVER_KV_TARGET` is not set\n"), "{error}");
    assert!(!folder.join("cutover.key").exists() && !folder.join("cutover.db").exists());

    std::fs::write(folder.join("nango.key"), live.sandbox.lock().keys().nango_api_key + "\n").unwrap();
    let file = format!("[nango]\nurl = \"{}\"\nkey_file = \"nango.key\"\n", live.sandbox.urls.nango);
    std::fs::write(folder.join("cutover.toml"), file).unwrap();
    let (code, _, error) = run(&["inventory", "read", "nango", "--config", "cutover.toml"], &[], folder);
    assert_eq!((code, error.as_str()), (0, ""));
    let (code, shown, _) = run(&["config", "--config", "cutover.toml", "--format", "json"], &[], folder);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let key = shown["settings"].as_array().unwrap().iter().find(|s| s["variable"] == "CUTOVER_NANGO_KEY").unwrap();
    assert_eq!((code, key["value"].as_str(), key["from"].as_str()), (0, Some("[set]"), Some("cutover.toml")));
    assert!(!shown.to_string().contains(&live.sandbox.lock().keys().nango_api_key));
}

#[test]
fn a_plan_is_applied_once_and_no_other_plan_beside_it() {
    let live = Live::start();
    let (plan, file) = (live.plan(&[]), fixture());
    let apply = ["apply", &plan, "--inventory", &file];

    let (code, steps, _) = live.run(&[&apply[..], &["--dry-run"]].concat());
    let alarms = (steps.matches("  standby  ").count(), steps.matches("  report   ").count());
    assert_eq!((code, alarms), (0, (18, 6)), "{steps}");
    let (code, _, error) = live.run(&apply);
    assert!(code == 7 && error.contains("not a terminal") && error.contains("--yes"), "{error}");
    let asked = live.ledger();
    let only_reads = asked.requests.values().all(|methods| methods.keys().all(|method| method == "GET"));
    assert!(only_reads && asked.refreshing_reads == 0, "{asked:?}");
    assert!(!live.dir.path().join("cutover.db").exists());

    let (code, out, error) = live.run(&[&apply[..], &["--yes"]].concat());
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    assert!(out.contains("kv.target   holds the current token of 24 of 24 triplets"), "{out}");
    let ledger = live.ledger();
    // 24 triplets to three sinks, and at Composio once more: an account is made with a token.
    assert_eq!((ledger.deliveries, ledger.kv_writes), (24 * 4, 24 * 2));
    assert_eq!(live.keys_in_target(), 24);
    assert_eq!(ledger.requests["gateway"]["POST"], 24);
    assert_eq!((ledger.lost, ledger.regressions, ledger.double_refreshes, ledger.foreign_writes), (0, 0, 0, 0));
    assert_eq!(ledger.incidents, []);
    let asked = live.ledger().requests;

    let (code, _, error) = live.run(&[&apply[..], &["--yes"]].concat());
    assert!(code == 7 && error.contains("is already applied"), "{error}");
    let policy = live.path("policy.toml");
    std::fs::write(&policy, "retain = [\"kahuna:gong:*\"]\n").unwrap();
    let other = live.plan(&["--policy", &policy]);
    let (code, _, error) = live.run(&["apply", &other, "--policy", &policy, "--yes"]);
    assert!(code == 7 && error.contains("is another one"), "{error}");
    std::fs::rename(live.path("cutover.key"), live.path("moved.key")).unwrap();
    let (code, _, error) = live.run(&["apply", &other, "--policy", &policy, "--yes"]);
    assert!(code == 2 && error.contains("no key file `cutover.key`"), "{error}");
    assert_eq!(live.ledger().requests, asked);
}

#[test]
fn a_run_that_was_cut_off_is_taken_up_where_it_stopped() {
    let live = Live::start();
    let plan = live.plan(&[]);
    let mut wrong = live.sandbox.environment();
    wrong.iter_mut().filter(|(name, _)| name == "CUTOVER_COMPOSIO_KEY").for_each(|(_, key)| *key = "ak_canary".into());
    let (code, out, error) = run(&["apply", &plan, "--yes"], &wrong, live.dir.path());
    assert_eq!((code, out.as_str()), (7, ""));
    assert!(error.contains("refused the key") && !error.contains("canary"), "{error}");
    let before = live.ledger();
    assert_eq!((before.deliveries, before.refreshing_reads), (0, 16));

    assert_eq!(live.run(&["apply", &plan, "--yes"]).0, 0);
    let after = live.ledger();
    assert_eq!((after.requests["gateway"]["POST"], after.refreshing_reads), (24, 16), "nothing was done twice");
    assert_eq!((after.deliveries, after.incidents_total), (24 * 4, 0));
}

#[test]
fn a_stale_or_undecided_plan_is_refused_before_anything_is_asked() {
    let live = Live::start();
    let plan = live.plan(&[]);
    let (less, policy) = (live.path("less.csv"), live.path("policy.toml"));
    let text = std::fs::read_to_string(fixture()).unwrap();
    std::fs::write(&less, text.lines().filter(|line| !line.contains("hubspot")).collect::<Vec<_>>().join("\n"))
        .unwrap();
    std::fs::write(&policy, "retain = [\"kahuna:gong:*\"]\n").unwrap();
    for (more, expected) in [
        (&["--inventory", &less][..], "the inventory changed"),
        (&["--inventory", "nango", "--policy", &policy], "the policy changed"),
        (&["--policy", &policy], "the policy changed"),
        (&["--now", "2026-06-01T00:00:00Z"], "the plan expired at 2026-05-13 09:00"),
    ] {
        let (code, out, error) = live.run(&[&["apply", &plan, "--yes"], more].concat());
        assert_eq!((code, out.as_str()), (5, ""), "{more:?}: {error}");
        assert!(error.contains("is stale") && error.contains(expected), "{more:?}: {error}");
    }
    let blocked = live.path("blocked.csv");
    std::fs::write(&blocked, text + "kahuna,acme-crm,acme-crm,default\n").unwrap();
    assert_eq!(live.run(&["plan", "--inventory", &blocked, "--out", &plan]).0, 0);
    let (code, _, error) = live.run(&["apply", &plan, "--inventory", &blocked, "--yes"]);
    assert!(code == 7 && error.contains("has blocked rows: `kahuna:acme-crm:default`"), "{error}");
    let asked: Vec<&str> = live.ledger().requests.keys().copied().collect();
    assert_eq!(asked, ["nango"]);
    assert!(!live.dir.path().join("cutover.db").exists());
}
