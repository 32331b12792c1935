//! The binary against a sandbox in which a plan is applied: every kind of live side, what each
//! shows, what is kept as evidence, and that nothing is disturbed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use cutover::catalogue::Catalogue;
use cutover::domain::criteria::{CriteriaPolicy, EvidenceSource, LookOutcome};
use cutover::domain::custody::{Event, Permit};
use cutover::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};
use cutover::domain::triplet::Triplet;
use cutover::inventory;
use cutover::plan::{self, Policy};
use cutover::ports::Api;
use cutover::sandbox::{Answer, CANARY, Call, LedgerSummary, Sandbox, TokenLife, World, WorldConfig};
use cutover::store::{Delivered, Durability, PendingDelivery, Sink, Store, Vault, Verification};
use serde_json::{Value, json};

const INVENTORY: &str = "fixtures/inventories/adr-038.csv";
const NOW: &str = "2026-05-06T09:00:00Z";

/// A sandbox in which the plan of the inventory is applied. Its clock stands still.
struct Applied {
    // Before the runtime that serves it.
    sandbox: Sandbox,
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl Applied {
    fn start() -> Self {
        let start = Timestamp::parse(NOW).unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(INVENTORY);
        let bytes = fs::read(&file).unwrap();
        let source = inventory::Source { name: INVENTORY, bytes: &bytes, format: None, tenants: &[] };
        let (inventory, catalogue) = (inventory::read(&source).unwrap(), Catalogue::built_in());
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
        let applied = Self { sandbox, runtime, dir: tempfile::tempdir().unwrap() };
        let file = file.display().to_string();
        for args in [&["plan", "--inventory", &file, "--out", "plan.json"][..], &["apply", "plan.json", "--yes"]] {
            let (code, _, error) = applied.run(args);
            assert_eq!(code, 0, "{error}");
        }
        applied
    }

    fn ledger(&self) -> LedgerSummary {
        self.sandbox.lock().ledger()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        command.args(args).env_clear().current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("CUTOVER_NOW", NOW).env("TMPDIR", self.dir.path()).env("USER", "alice");
        command.envs(self.sandbox.environment());
        command
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    fn verify(&self, args: &[&str]) -> (i32, String, String) {
        self.run(&[&["verify"], args, &["--settle", "1s"]].concat())
    }

    fn report(&self, args: &[&str]) -> Value {
        let (code, out, error) = self.verify(&[args, &["--format", "json"]].concat());
        let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}"));
        assert_eq!(report["exit_code"], code);
        report
    }

    /// A request of somebody else, past the mirror.
    fn ask(&self, api: Api, method: &str, path: &str, body: &Value) -> Value {
        let keys = self.sandbox.lock().keys();
        let call = Call::new(method, path)
            .with_header("authorization", &format!("Bearer {}", keys.cloudflare_token))
            .with_header("x-api-key", &keys.composio_api_key)
            .with_json(body);
        match self.sandbox.lock().answer(api, &call) {
            Answer::Reply(reply) => {
                assert!(reply.status < 300, "{}", String::from_utf8_lossy(&reply.body));
                serde_json::from_slice(&reply.body).unwrap()
            }
            Answer::Crash => panic!("no crash was planned"),
        }
    }

    fn stored(&self, namespace: &str, key: &str) -> Value {
        let body = json!({"keys": [key], "withMetadata": true});
        let path = format!("/storage/kv/namespaces/{namespace}/bulk/get");
        self.ask(Api::Cloudflare, "POST", &path, &body)["result"]["values"][key].clone()
    }

    fn put(&self, namespace: &str, key: &str, value: &str, metadata: &Value) {
        let later = self.sandbox.lock().now().plus_ms(2_000);
        self.sandbox.lock().advance_to(later);
        let body = json!([{"key": key, "value": value, "metadata": metadata}]);
        self.ask(Api::Cloudflare, "PUT", &format!("/storage/kv/namespaces/{namespace}/bulk"), &body);
    }

    fn store(&self) -> Store {
        let vault = Vault::load_or_create(&self.dir.path().join("cutover.key")).unwrap();
        let path = self.dir.path().join("cutover.db");
        self.runtime.block_on(Store::open(&path, Durability::ProcessCrash, vault)).unwrap()
    }
}

/// Outcome and rung with their counts, those without keys left out.
fn counts(report: &Value) -> String {
    let counts = report["counts"].as_object().unwrap();
    let mut shown: Vec<String> = counts
        .iter()
        .filter(|(_, of)| of["keys"] != 0)
        .map(|(outcome, of)| format!("{outcome} {}", of["rungs"]))
        .collect();
    shown.sort();
    shown.join(", ")
}

#[test]
fn each_pair_of_sides_states_how_strong_it_was_and_nothing_is_disturbed() {
    let world = Applied::start();
    let before = world.ledger();
    for (sides, code, expected) in [
        (&["kv:source", "kv:target"][..], 0, r#"match {"fingerprint":24}"#),
        (&["kv:source", "kv:target", "--level", "sampled", "--sample", "50"], 0, r#"match {"fingerprint":24}"#),
        (&["kv:source", "kv:target", "--level", "full"], 0, r#"match {"fingerprint":24}"#),
        (&["journal", "kv:target"], 0, r#"match {"fingerprint":24}"#),
        (&["journal", "kv:source", "--level", "full"], 0, r#"match {"fingerprint":24}"#),
        (&["nango", "journal"], 4, r#"unverifiable {"lineage":24}"#),
        (&["nango", "kv:source"], 4, r#"unverifiable {"status":24}"#),
        (&["nango", "composio"], 4, r#"unverifiable {"status":24}"#),
        (&["kv:source", "composio"], 4, r#"unverifiable {"status":24}"#),
        (&["kv:source", "composio", "--level", "full", "--identity"], 4, r#"unverifiable {"identity":24}"#),
        (&["journal", "composio"], 4, r#"unverifiable {"status":24}"#),
    ] {
        let report = world.report(sides);
        assert_eq!(
            (counts(&report).as_str(), report["exit_code"].as_i64()),
            (expected, Some(code)),
            "{sides:?}: {report:#}"
        );
    }
    let id = world.sandbox.lock().keys().kv_target;
    assert_eq!(world.verify(&["kv:target", &format!("kv:{id}"), "--level", "full"]).0, 0);

    let after = world.ledger();
    let harm = |l: &LedgerSummary| {
        (l.refreshing_reads, l.rotations, l.kv_writes, l.deliveries, l.double_refreshes, l.foreign_writes, l.audit_rows)
    };
    assert_eq!(harm(&before), harm(&after));
    let new = |api: &str, method: &str| {
        let count = |l: &LedgerSummary| l.requests.get(api).and_then(|m| m.get(method)).copied().unwrap_or(0);
        count(&after) - count(&before)
    };
    for (api, methods) in &after.requests {
        for method in methods.keys().filter(|method| !matches!(method.as_str(), "GET" | "POST")) {
            assert_eq!(new(api, method), 0, "{method} to {api}");
        }
    }
    // Bulk reads and whoami through the proxy are the only requests that are not a GET.
    assert_eq!((new("nango", "POST"), new("gateway", "POST"), new("composio", "POST")), (0, 0, 24));
    assert_eq!(new("cloudflare", "POST"), 2 + 2 + 1 + 1 + 2);
    assert_eq!(after.incidents_total, before.incidents_total);
}

#[test]
fn what_somebody_did_past_the_mirror_is_found_on_the_strongest_rung_and_told_without_a_secret() {
    let world = Applied::start();
    let keys = world.sandbox.lock().keys();
    // One character of a token, with the metadata that was there.
    let hubspot = "tokens:kahuna:hubspot:default";
    let was = world.stored(&keys.kv_target, hubspot);
    let mut value: Value = serde_json::from_str(was["value"].as_str().unwrap()).unwrap();
    let mut token = value["access_token"].as_str().unwrap().to_owned();
    let last = if token.pop() == Some('A') { 'B' } else { 'A' };
    token.push(last);
    value["access_token"] = token.as_str().into();
    world.put(&keys.kv_target, hubspot, &value.to_string(), &was["metadata"]);
    // A write that is not ours, and a key that is gone.
    let slack = "tokens:kahuna:slack:default";
    let was = world.stored(&keys.kv_source, slack);
    world.put(&keys.kv_source, slack, was["value"].as_str().unwrap(), &Value::Null);
    let meta = "tokens:kahuna:gong:default";
    world.ask(
        Api::Cloudflare,
        "POST",
        &format!("/storage/kv/namespaces/{}/bulk/delete", keys.kv_target),
        &json!([meta]),
    );
    // Composio is given the token of another upstream account.
    let accounts =
        world.ask(Api::Composio, "GET", "/api/v3.1/connected_accounts?limit=50&account_type=ALL", &json!({}));
    let of = |toolkit: &str, tenant: &str| {
        let found = accounts["items"].as_array().unwrap().iter().find(|account| {
            account["toolkit"]["slug"] == toolkit && account["user_id"] == format!("cutover-mirror-{tenant}")
        });
        found.unwrap_or_else(|| panic!("no {toolkit} account: {accounts:#}"))["id"].as_str().unwrap().to_owned()
    };
    let other = world.stored(&keys.kv_source, "tokens:pointfield:slack:default");
    let other: Value = serde_json::from_str(other["value"].as_str().unwrap()).unwrap();
    let path = format!("/api/v3.1/connected_accounts/{}", of("slack", "kahuna"));
    let patch = json!({"connection": {"state": {"authScheme": "BEARER_TOKEN", "val": {"status": "ACTIVE", "token": other["access_token"]}}}});
    world.ask(Api::Composio, "PATCH", &path, &patch);

    let mut everything = String::new();
    let mut told = |args: &[&str], code: i32| {
        let (got, out, error) = world.verify(args);
        assert_eq!(got, code, "{args:?}: {out}{error}");
        everything.push_str(&out);
        everything.push_str(&error);
        out
    };
    let shallow = told(&["kv:source", "kv:target"], 3);
    assert!(shallow.contains(&format!("- {meta}  missing [status]\n")), "{shallow}");
    assert!(shallow.contains(&format!("* {slack}  foreign")), "{shallow}");
    assert!(!shallow.contains(hubspot), "the listing of that key is as it was: {shallow}");
    let deep = told(&["journal", "kv:target", "--level", "full", "--diff", "-vvv"], 3);
    assert!(deep.contains(&format!("* {hubspot}  token value.access_token [fingerprint]\n")), "{deep}");
    assert!(deep.contains(&format!("- {meta}  missing [status]\n")) && !deep.contains(slack), "{deep}");
    let who = told(&["kv:source", "composio", "--level", "full", "--identity", "-vvv", "--log-format", "json"], 3);
    assert!(who.starts_with("ANOTHER UPSTREAM ACCOUNT: tokens:kahuna:slack:default\n"), "{who}");
    assert!(who.contains(&format!("* {slack}  identity entry.identity")) && who.contains("[identity]"), "{who}");
    for format in ["json", "jsonl"] {
        told(&["kv:source", "kv:target", "--level", "full", "--format", format, "--all", "--diff", "-vvv"], 3);
    }
    for secret in
        [CANARY, &token, other["access_token"].as_str().unwrap(), &keys.cloudflare_token, &keys.composio_api_key]
    {
        let part = &secret[..secret.len().min(8)];
        assert!(!everything.contains(part), "{everything}");
    }

    // What was seen is evidence: the clean series is over, by name.
    let store = world.store();
    let runs = world.runtime.block_on(store.load_verifications(10)).unwrap();
    assert_eq!(runs.len(), 5);
    let full =
        runs.iter().find(|run| run.left == "kv:source" && run.right == "kv:target" && run.level == "full").unwrap();
    assert_eq!((full.keys, full.compared, full.differing, full.failed), (24, 24, 3, 0));
    let looks = world.runtime.block_on(store.load_looks(Timestamp::default())).unwrap();
    let looks = &looks[&EvidenceSource::Verify];
    assert!(looks.iter().all(|l| l.outcome == LookOutcome::Finding), "{looks:?}");
    assert_eq!(looks.iter().map(|l| l.runs).sum::<u64>(), 3);
    let notes = world.runtime.block_on(store.load_notes("parity")).unwrap();
    assert!(notes.iter().any(|note| note.subject == "kahuna:hubspot:default" && note.detail.contains("token")));
}

#[test]
fn a_run_that_compares_otherwise_than_the_plan_asks_is_no_evidence() {
    let world = Applied::start();
    let keys = world.sandbox.lock().keys();
    // The right lacks a scope, and nothing else differs.
    let slack = "tokens:kahuna:slack:default";
    let was = world.stored(&keys.kv_target, slack);
    let mut value: Value = serde_json::from_str(was["value"].as_str().unwrap()).unwrap();
    value["scope"] = "".into();
    world.put(&keys.kv_target, slack, &value.to_string(), &was["metadata"]);
    fs::write(world.dir.path().join("other.toml"), "[[verify.ignore]]\nfield = \"scope\"\nreason = \"noise\"\n")
        .unwrap();

    let rounds = ["--continuous", "--every", "10m", "--period", "40m", "--rounds", "1", "--format", "jsonl"];
    let sides = ["kv:source", "kv:target", "--level", "full"];
    for (args, code, why) in [
        (&["--ignore", "scope=noise"][..], 0, "other fields are ignored"),
        (&["--expiry-tolerance", "1000d"], 3, "expiries may differ by another time than 1s"),
        (&["--policy", "other.toml"], 0, "the policy is not the one that plan `p-"),
        (&["--include-retained"], 3, "triplets that do not move are compared too"),
    ] {
        let (got, out, error) = world.verify(&[&sides, args, &["--format", "json"]].concat());
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((got, &report["evidence"]["kept"]), (code, &false.into()), "{args:?} {out}{error}");
        assert!(report["evidence"]["reason"].as_str().is_some_and(|reason| reason.contains(why)), "{out}");
        assert!(error.contains(&format!("not kept as evidence: {why}")), "{args:?} {error}");
    }
    let (code, out, error) = world.verify(&[&sides[..], &["--ignore", "scope=noise"], &rounds].concat());
    assert!(code == 0 && out.contains("\"kept\":false"), "{out}{error}");
    let store = world.store();
    let looks = || world.runtime.block_on(store.load_looks(Timestamp::default())).unwrap();
    assert_eq!(looks().get(&EvidenceSource::Verify), None);
    assert!(world.runtime.block_on(store.load_verifications(10)).unwrap().is_empty());
    // What was clean by weaker rules is not taken for clean.
    let (code, out, error) = world.verify(&[&sides, &rounds[..]].concat());
    let round: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((code, &round["changed"], &round["clean_at"]), (3, &24.into(), &Value::Null), "{out}{error}");

    let report = world.report(&sides);
    assert_eq!((&report["exit_code"], &report["evidence"]), (&3.into(), &json!({"kept": true})), "{report:#}");
    assert!(looks()[&EvidenceSource::Verify].iter().all(|look| look.outcome == LookOutcome::Finding));
    let runs = world.runtime.block_on(store.load_verifications(10)).unwrap();
    let rules: Value = serde_json::from_str(runs[0].rules.as_deref().unwrap()).unwrap();
    assert_eq!((runs.len(), &rules["expiry_tolerance_ms"]), (2, &1_000.into()), "{rules:#}");
}

#[test]
fn what_one_side_leaves_out_is_left_out_on_the_other() {
    let world = Applied::start();
    let keys = world.sandbox.lock().keys();
    // A dump of everything, retained triplets too.
    let list = format!("/storage/kv/namespaces/{}/keys?prefix=tokens:", keys.kv_source);
    let listed = world.ask(Api::Cloudflare, "GET", &list, &Value::Null)["result"].clone();
    let entry = |name: &Value| {
        let mut entry = world.stored(&keys.kv_source, name.as_str().unwrap());
        entry["key"] = name.clone();
        entry
    };
    let dump: Vec<Value> = listed.as_array().unwrap().iter().map(|listed| entry(&listed["name"])).collect();
    assert_eq!(dump.len(), 28);
    let turned: Vec<&Value> = dump.iter().rev().collect();
    fs::write(world.dir.path().join("dump.json"), serde_json::to_vec(&dump).unwrap()).unwrap();
    fs::write(world.dir.path().join("turned.json"), serde_json::to_vec(&turned).unwrap()).unwrap();
    for sides in [["dump.json", "kv:source"], ["turned.json", "kv:source"], ["journal", "dump.json"]] {
        let report = world.report(&[&sides[..], &["--level", "full"]].concat());
        assert_eq!((counts(&report).as_str(), &report["exit_code"]), (r#"match {"fingerprint":24}"#, &0.into()));
    }
    assert_eq!(world.verify(&["dump.json", "kv:source", "--include-retained", "--level", "full"]).0, 0);

    // The mirrors of a settled triplet have ended, and what they wrote is still there.
    let store = world.store();
    let now = Timestamp::parse(NOW).unwrap();
    let triplet = Triplet::from_kv_key("tokens:kahuna:slack:default").unwrap();
    let events = [
        Event::ConsentCompleted { account: "ca_1".to_owned() },
        Event::IdentityProven,
        Event::SwitchBegun { at: now, reverse_until: now, permit: Permit::Pass { at: now } },
        Event::Switched { at: now },
        Event::Tested { at: now },
        Event::Settled { at: now, passed_at: now },
    ];
    world.runtime.block_on(async {
        for event in events {
            store.record_custody(&triplet, &event, "test", now).await.unwrap();
        }
        store.end_deliveries(&triplet).await.unwrap();
    });
    let (code, out, error) = world.verify(&["journal", "kv:target", "--level", "full"]);
    assert!(code == 0 && out.contains("= 23 match"), "{out}{error}");
    assert!(error.contains("5 triplets that are not mirrored are left out"), "{error}");
    assert_eq!(counts(&world.report(&["kv:source", "kv:target"])), r#"match {"fingerprint":24}"#);
}

#[test]
fn rounds_keep_a_watermark_and_find_what_changes() {
    let world = Applied::start();
    let keys = world.sandbox.lock().keys();
    // Each round is a process of its own, ten minutes after the one before.
    let mut now = Timestamp::parse(NOW).unwrap();
    let mut round = |expected: i32| -> (Vec<Value>, Value) {
        now = now.plus_ms(10 * MINUTE_MS);
        let args = ["kv:source", "kv:target", "--level", "full", "--continuous", "--every", "10m", "--period", "40m"];
        let args = [&["verify"], &args[..], &["--rounds", "1", "--format", "jsonl", "--settle", "1s"]].concat();
        let output = world.command(&args).env("CUTOVER_NOW", now.to_rfc3339()).output().unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(expected), "{out}{}", String::from_utf8_lossy(&output.stderr));
        let mut lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = lines.pop().unwrap();
        assert_eq!(last["type"], "round");
        (lines, last)
    };
    let (findings, first) = round(0);
    assert_eq!((findings.len(), first["keys"].as_u64(), first["changed"].as_u64()), (0, Some(24), Some(24)));
    assert!(first["clean_at"].is_string());
    // Nothing changed: a quarter of the keys, since four rounds make a period.
    let (_, second) = round(0);
    assert_eq!((second["changed"].as_u64(), second["in_turn"].as_u64()), (Some(0), Some(6)));

    let key = "tokens:kahuna:hubspot:default";
    let was = world.stored(&keys.kv_target, key);
    let mut metadata = was["metadata"].clone();
    metadata["v"] = 9.into();
    world.put(&keys.kv_target, key, was["value"].as_str().unwrap(), &metadata);
    let (findings, third) = round(3);
    assert_eq!((findings.len(), third["changed"].as_u64()), (1, Some(1)));
    assert_eq!((findings[0]["key"].as_str(), findings[0]["outcome"].as_str()), (Some(key), Some("changed")));
    // Until it is the same again, it is looked at in each round, and its watermark stays.
    let (_, fourth) = round(3);
    assert_eq!(fourth["changed"].as_u64(), Some(1));
    world.put(&keys.kv_target, key, was["value"].as_str().unwrap(), &was["metadata"]);
    let (_, fifth) = round(0);
    assert_eq!(fifth["changed"].as_u64(), Some(1));
    assert!(fifth["clean_at"].as_str() > first["clean_at"].as_str(), "a period is over: {fifth}");
    let runs = world.runtime.block_on(world.store().load_verifications(10)).unwrap();
    assert!(runs.len() == 5 && runs.iter().all(|run| run.level == "full"), "{runs:?}");
}

#[test]
fn what_a_run_found_missing_is_delivered_again_and_what_is_foreign_is_not() {
    let world = Applied::start();
    let keys = world.sandbox.lock().keys();
    let (gone, foreign) = ("tokens:kahuna:hubspot:default", "tokens:kahuna:slack:default");
    let path = format!("/storage/kv/namespaces/{}/bulk/delete", keys.kv_target);
    world.ask(Api::Cloudflare, "POST", &path, &json!([gone]));
    let was = world.stored(&keys.kv_source, foreign);
    world.put(&keys.kv_source, foreign, was["value"].as_str().unwrap(), &Value::Null);
    assert_eq!(world.verify(&["kv:source", "kv:target", "--checkpoint", "run.json"]).0, 3);

    let store = world.store();
    // The binary queued it by the wall clock.
    let now = Timestamp::from_millis(i64::MAX / 2);
    let (code, out, error) = world.run(&["repair", "--from", "run.json"]);
    assert_eq!(code, 3, "{error}");
    assert_eq!(
        out,
        format!(
            "queued  kahuna:hubspot:default  kv.target\n\
             left    {foreign}  somebody else wrote it last, and that may be the newer token\n\
             1 deliveries queued, 1 keys left alone\n"
        )
    );
    assert_eq!(world.run(&["repair", "--from", "nowhere.json"]).0, 2);
    let claim = |now: Timestamp| {
        let until = now.plus_ms(MINUTE_MS);
        let claimed =
            Sink::ALL.map(|sink| world.runtime.block_on(store.claim_deliveries(sink, now, 10, until)).unwrap());
        claimed.into_iter().flatten().collect::<Vec<_>>()
    };
    let pending = claim(now);
    assert_eq!(pending.len(), 1);
    assert_eq!((pending[0].triplet.to_string().as_str(), pending[0].sink), ("kahuna:hubspot:default", Sink::KvTarget));
    assert_eq!(
        Some(pending[0].metadata.fp.to_string().as_str()),
        was_fp(&world.stored(&keys.kv_source, gone)).as_deref()
    );
    // Delivered, it is not pending any more.
    let PendingDelivery { sink, triplet, metadata, captured_at, claim: number, .. } =
        pending.into_iter().next().unwrap();
    let delivered = Delivered { sink, triplet, metadata, captured_at, claim: number };
    world.runtime.block_on(store.mark_delivered(&[delivered], now.plus_ms(1))).unwrap();
    assert!(claim(now.plus_ms(HOUR_MS)).is_empty());
}

fn was_fp(stored: &Value) -> Option<String> {
    stored["metadata"]["fp"].as_str().map(str::to_owned)
}

#[test]
fn what_is_missing_is_named_before_anything_is_asked() {
    let world = Applied::start();
    let asked = world.ledger().requests;
    for (args, expected) in [
        (&["kv:", "kv:target"][..], "names no namespace"),
        (&["journal", "kv:target", "--state", "sqlite:other.db"], "`journal` needs a state"),
        (&["kv:source", "composio", "--state", "sqlite:other.db"], "`composio` needs a state"),
        (&["kv:source", "kv:target", "--continuous"], "`--continuous` compares values"),
        (
            &["kv:source", "kv:target", "--level", "full", "--continuous", "--missing", "missing.txt"],
            "`--continuous` prints its rounds and writes no files",
        ),
        (&["kv:source", "composio", "--identity"], "`--identity` asks with the credentials"),
        (&["kv:source", "composio", "--identity", "--level", "sampled"], "add `--level full`"),
        (&["kv:source", "kv:target", "--match", "same.txt"], "add `--all`"),
        (&["nowhere.json", "kv:target"], "cannot read `nowhere.json`"),
    ] {
        let (code, _, error) = world.verify(args);
        assert!(code == 2 && error.contains(expected), "{args:?}: {error}");
    }
    let output = world.command(&["verify", "kv:source", "kv:target"]).env_remove("CUTOVER_KV_TARGET").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`CUTOVER_KV_TARGET` is not set"));
    let (code, out, error) = world.verify(&["kv:source", "kv:target", "--missing", "nowhere/missing.txt"]);
    assert!(code == 1 && out.is_empty() && error.contains("cannot write `nowhere/missing.txt`"), "{out}{error}");
    // A run that could not read its sides does not know how many keys there are.
    let now = Timestamp::parse(NOW).unwrap();
    let failed = Verification {
        run: "v-failed".to_owned(),
        began_at: now,
        at: now,
        left: "kv:source".to_owned(),
        right: "kv:target".to_owned(),
        level: "full".to_owned(),
        keys: 0,
        compared: 0,
        differing: 0,
        unsure: 0,
        failed: 2,
        counts: "{}".to_owned(),
        rules: None,
        findings: Vec::new(),
    };
    world.runtime.block_on(world.store().record_verification(&failed, &CriteriaPolicy::default())).unwrap();
    let (code, out, error) = world.verify(&["kv:source", "kv:target", "--estimate", "--level", "full"]);
    assert!(code == 0 && out.contains("about 24 keys a side; requests: 4 to cloudflare"), "{out}");
    assert!(!error.contains("about 24 keys"), "told once: {error}");
    assert_eq!(world.ledger().requests, asked);
}
