//! Moves of reads that meet trouble: another operator, a watch that looked a moment before, a canary
//! that does not work, a gate pass that ends half way, a way back that cannot wait.

#[path = "support/cutover.rs"]
mod support;

use std::future::{Future, poll_fn};
use std::io::{BufRead, BufReader, Read};
use std::pin::pin;
use std::process::Stdio;
use std::task::Poll;

use cutover::domain::time::{HOUR_MS, MINUTE_MS, SECOND_MS, Timestamp};
use cutover::domain::triplet::Triplet;
use cutover::engine::{Progress, Reversal};
use cutover::store::Lead;
use serde_json::Value;
use support::{Cutover, POLICY, SMALL};

const CANARY: &str = "acme:salesforce:prod";

/// One wave of three.
fn one_wave() -> String {
    format!("{POLICY}\n[waves]\ncanary_size = 0\nsize_max = 50\n")
}

fn switched(cutover: &Cutover) -> usize {
    cutover.stages().iter().filter(|stage| *stage == "switched").count()
}

/// Runs `call` until `stop`, then `meanwhile` from beginning to end, then the rest of `call`.
async fn interleave<A, B>(
    call: impl Future<Output = A>,
    stop: impl Fn() -> bool,
    meanwhile: impl Future<Output = B>,
) -> (A, B) {
    let mut call = pin!(call);
    poll_fn(|cx| {
        if stop() {
            return Poll::Ready(());
        }
        assert!(call.as_mut().poll(cx).is_pending(), "it ended before it could be stopped");
        Poll::Pending
    })
    .await;
    let other = meanwhile.await;
    (call.await, other)
}

#[test]
fn a_watch_that_looked_before_a_reverse_does_not_put_the_older_record() {
    let cutover = Cutover::start(SMALL, &one_wave(), Vec::new());
    cutover.up_to_verified();
    cutover.until_done(&["switch", "--wave", "1", "--yes"]);
    // The gateway has an older record, which the watch would put right.
    let older = cutover.authority(CANARY).to_string().replace("target", "source");
    cutover.put_kv(&format!("authority:{CANARY}"), &older);
    cutover.advance(cutover.now().plus_ms(5 * MINUTE_MS));
    let (watch, operator) = (cutover.engine(), cutover.engine());
    let smokes = || cutover.ledger().requests["gateway"]["POST"];
    let (before, now) = (smokes(), cutover.now());
    let what = Reversal::Wave(1);
    let (watched, reversed) =
        cutover.runtime.block_on(interleave(watch.run_due(now), || smokes() > before, operator.reverse(&what, now)));
    watched.unwrap();
    // It may have come when the watch had the claim, and found that there was nothing to put.
    if matches!(reversed.unwrap(), Progress::Wait(at) if at.since(now) <= SECOND_MS) {
        cutover.runtime.block_on(operator.reverse(&what, now)).unwrap();
    }
    let row = cutover.row(CANARY);
    let record = cutover.authority(CANARY);
    assert_eq!((&record["read"], &record["epoch"]), (&"source".into(), &row["epoch"]), "{record:#} {row:#}");

    // While somebody else puts a record of the triplet, nobody does; the others go back meanwhile.
    for engine in [watch, operator] {
        cutover.runtime.block_on(engine.into_store().close()).unwrap();
    }
    cutover.until_done(&["switch", "--wave", "1", "--yes"]);
    let (other, operator) = (cutover.store(), cutover.engine());
    let (claim, now) = (format!("record:{CANARY}"), cutover.now());
    let there = cutover.authority(CANARY);
    let step = || cutover.runtime.block_on(operator.reverse(&what, cutover.now())).unwrap();
    let lead = cutover.runtime.block_on(other.claim(&claim, now, now.plus_ms(MINUTE_MS))).unwrap();
    assert!(matches!(lead, Lead::Ours { .. }));
    assert!(matches!(step(), Progress::Wait(at) if at.since(now) <= MINUTE_MS));
    assert_eq!(cutover.authority(CANARY), there);
    assert_eq!(switched(&cutover), 1, "{:?}", cutover.stages());
    cutover.runtime.block_on(other.release(&claim)).unwrap();
    step();
    assert_eq!(cutover.authority(CANARY)["read"], "source");
}

#[test]
fn what_went_back_is_switched_again_behind_a_canary() {
    let policy = one_wave().replace("soak_days = 1\n", "soak_days = 1\nsmoke_every = \"5m\"\n");
    let cutover = Cutover::start(SMALL, &policy, Vec::new());
    cutover.up_to_verified();
    let switch = ["switch", "--wave", "1", "--yes"];
    cutover.until_done(&switch);
    assert_eq!(switched(&cutover), 3);
    cutover.until_done(&["reverse", "--triplet", CANARY, "--yes"]);
    assert_eq!(switched(&cutover), 2);
    cutover.until_done(&switch);
    assert_eq!(switched(&cutover), 3, "{:?}", cutover.stages());

    // One goes back by itself; released, it is switched again.
    cutover.enable_account(CANARY, false);
    cutover.live(12 * MINUTE_MS);
    let row = cutover.row(CANARY);
    assert!(row["held"].as_str().unwrap_or_default().contains("went back by itself"), "{row:#}");
    assert_eq!(row["stage"], "verified");
    cutover.enable_account(CANARY, true);
    assert_eq!(cutover.run(&["ctl", "go", "--triplet", CANARY]).0, 0);
    forgive(&cutover);
    cutover.until_done(&switch);
    assert_eq!(switched(&cutover), 3, "{:?}", cutover.stages());
    let done = cutover.until_done(&switch);
    assert_eq!(done[0]["steps"].as_array().unwrap().len(), 0, "{:#}", done[0]);
}

#[test]
fn a_canary_that_does_not_work_goes_back_although_its_window_is_over() {
    let policy = one_wave().replace("reverse_window = \"6h\"", "reverse_window = \"1m\"");
    let cutover = Cutover::start(SMALL, &policy, Vec::new());
    cutover.up_to_verified();
    let switch = ["switch", "--wave", "1", "--yes", "--no-wait", "--policy", &cutover.policy];
    let (code, _, error) = cutover.run(&[&switch[..], &["--reverse-window", "1m"]].concat());
    assert!(code == 2 && error.contains("at least 12m"), "{code}: {error}");
    assert_eq!(cutover.run(&switch).0, 4);
    cutover.enable_account(CANARY, false);
    cutover.live(5 * MINUTE_MS);
    let (code, _, error) =
        cutover.run(&["settle", "--no-wait", "--confirm", &cutover.plan_id(), "--policy", &cutover.policy]);
    assert!(code == 7 && error.contains("nobody has seen yet"), "{code}: {error}");
    let (code, _, error) = cutover.run(&switch);
    assert!(code == 7 && error.contains("were moved back"), "{code}: {error}");
    assert_eq!((switched(&cutover), cutover.row(CANARY)["read_authority"].as_str()), (0, Some("source")));
    // The others are not jammed by it, once somebody has said that what was seen of it does not count.
    let jammed = cutover.until_ended(&["switch", "--wave", "1", "--yes"]);
    assert!(jammed.0 == 7 && jammed.1.contains("would fail now: smoke-staleness"), "{jammed:?}");
    forgive(&cutover);
    cutover.until_done(&["switch", "--wave", "1", "--yes"]);
    assert_eq!(switched(&cutover), 2);
}

#[test]
fn a_drill_that_failed_says_so_and_is_made_again() {
    let cutover = Cutover::start(SMALL, &one_wave(), Vec::new());
    cutover.until_done(&["apply", &cutover.plan, "--yes"]);
    cutover.live(MINUTE_MS);
    let drill = ["switch", "--wave", "1", "--drill", "--yes"];
    let nobody = cutover.until_ended(&drill);
    assert!(nobody.0 == 7 && nobody.1.contains("no verified triplet"), "{nobody:?}");
    cutover.until_done(&["consent", "all", "--yes"]);
    cutover.enable_account(CANARY, false);
    let failed = cutover.until_ended(&drill);
    assert!(failed.0 == 7 && failed.1.contains(CANARY) && failed.1.contains("drill again"), "{failed:?}");
    assert_eq!(cutover.row(CANARY)["read_authority"], "source");
    let reverse_rehearsed = || {
        let (_, out, _) = cutover.run(&["gate", "--policy", &cutover.policy, "--format", "json"]);
        let report: Value = serde_json::from_str(&out).unwrap();
        let found = report["criteria"].as_array().unwrap().iter().find(|c| c["id"] == "reverse-rehearsed").cloned();
        found.unwrap()["verdict"].as_str().unwrap().to_owned()
    };
    assert_eq!(reverse_rehearsed(), "fail");
    cutover.enable_account(CANARY, true);
    cutover.until_done(&drill);
    assert_eq!(reverse_rehearsed(), "pass");
}

#[test]
fn a_drill_under_way_is_nobody_elses_and_a_no_brings_it_back() {
    let cutover = Cutover::start(SMALL, &one_wave(), Vec::new());
    cutover.up_to_verified();
    let drill = ["switch", "--wave", "1", "--drill", "--yes", "--no-wait", "--policy", &cutover.policy];
    assert_eq!(cutover.run(&drill).0, 4);
    cutover.live(3 * MINUTE_MS);
    let other = cutover.until_ended(&["switch", "--wave", "1", "--yes"]);
    assert!(other.0 == 7 && other.1.contains("a drill of wave 1 is under way"), "{other:?}");
    let settle = cutover.until_ended(&["settle", "--confirm", &cutover.plan_id()]);
    assert!(settle.0 == 7 && settle.1.contains("at the target for a drill"), "{settle:?}");

    // Stopped, it comes back and proves nothing.
    assert_eq!(cutover.run(&["ctl", "no", "--reason", "closing week"]).0, 0);
    let (code, _, error) = cutover.run(&drill);
    assert!(code == 7 && error.contains("closing week"), "{code}: {error}");
    assert_eq!(switched(&cutover), 0);
    assert_eq!(cutover.run(&["ctl", "go"]).0, 0);
    let again = cutover.until_done(&drill[..5]);
    assert!(again.len() > 1, "it is made from the start: {again:#?}");
    cutover.until_done(&["switch", "--wave", "1", "--yes"]);
}

#[test]
fn what_has_begun_ends_although_the_gate_pass_has() {
    let cutover = Cutover::start(SMALL, &one_wave(), Vec::new());
    cutover.up_to_verified();
    // Nothing is kept of a command that a guard refuses.
    let engine = cutover.engine();
    let window = || {
        let preview = cutover.runtime.block_on(engine.preview_switch(1, cutover.now())).unwrap();
        preview.reverse_until.since(cutover.now())
    };
    assert_eq!(cutover.run(&["ctl", "no", "--reason", "not today"]).0, 0);
    let switch = ["switch", "--wave", "1", "--yes", "--no-wait", "--policy", &cutover.policy];
    let with_window = [&switch[..], &["--reverse-window", "2h"]].concat();
    assert_eq!(cutover.run(&with_window).0, 7);
    assert_eq!(window(), 6 * HOUR_MS);
    assert_eq!(cutover.run(&["ctl", "go"]).0, 0);

    cutover.script(r#"{"api":"cloudflare","method":"PUT","path":"authority","answer":"fail-after","times":1}"#);
    assert_eq!(cutover.run(&with_window).0, 4);
    assert_eq!(window(), 2 * HOUR_MS);
    cutover.live(25 * HOUR_MS);
    let ended = cutover.until_ended(&switch[..4]);
    assert!(ended.0 == 7 && ended.1.contains("fresh gate pass"), "{ended:?}");
    let row = cutover.row(CANARY);
    assert_eq!((&row["stage"], &row["read_authority"]), (&"switched".into(), &"target".into()), "{row:#}");
    cutover.pass_gate();
    cutover.until_done(&["switch", "--wave", "1", "--yes"]);
    assert_eq!((switched(&cutover), window()), (3, 6 * HOUR_MS), "it was said for that round");
    cutover.runtime.block_on(engine.into_store().close()).unwrap();
    let (_, out, _) = cutover.run(&["audit", "--format", "json", "--subject", "wave:1"]);
    assert!(out.contains("reverse_window") && out.contains("7200000"), "{out}");
}

#[test]
fn whatever_runs_gives_way_to_what_goes_back() {
    let cutover = Cutover::start(SMALL, &one_wave(), Vec::new());
    cutover.up_to_verified();
    cutover.until_done(&["switch", "--wave", "1", "--yes"]);
    let mut settle = cutover
        .command(&["settle", "--confirm", &cutover.plan_id(), "--policy", &cutover.policy])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(settle.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("next try at") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "settle ended: {:?}", settle.wait());
    }
    let (code, out, error) =
        cutover.run(&["reverse", "--wave", "1", "--yes", "--no-wait", "--policy", &cutover.policy]);
    assert!(code == 4 && error.contains("asked to give way"), "{code}: {out}{error}");
    assert_eq!(switched(&cutover), 0);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(settle.wait().unwrap().code() == Some(7) && rest.contains("settle gives way"), "{rest}");
}

#[test]
fn a_reverse_does_not_wait_for_ever_on_a_gateway_that_reads_elsewhere() {
    let cutover = Cutover::start(SMALL, &one_wave(), Vec::new());
    cutover.up_to_verified();
    cutover.until_done(&["switch", "--wave", "1", "--yes"]);
    // The Worker goes on with what it had.
    let deaf = gateway_that_says(&cutover, 200);
    let reverse = ["reverse", "--wave", "1", "--yes", "--no-wait", "--policy", &cutover.policy];
    let mut said = (4, String::new());
    for _ in 0..20 {
        let (code, _, error) = cutover.run_with(&reverse, &[("CUTOVER_GATEWAY_URL", deaf.as_str())]);
        said = (code, error);
        if code != 4 {
            break;
        }
        cutover.advance(cutover.now().plus_ms(MINUTE_MS));
    }
    assert_eq!(said.0, 7, "{}", said.1);
    assert!(
        said.1.contains(&format!("`authority:{CANARY}`")) && said.1.contains("cache and at which deployment"),
        "{}",
        said.1
    );
}

#[test]
fn a_limit_of_the_provider_is_no_failure_of_the_target() {
    let cutover = Cutover::start(SMALL, &one_wave(), Vec::new());
    cutover.up_to_verified();
    let limited = gateway_that_says(&cutover, 429);
    let switch = ["switch", "--wave", "1", "--yes", "--no-wait", "--policy", &cutover.policy];
    let step = || cutover.run_with(&switch, &[("CUTOVER_GATEWAY_URL", limited.as_str())]);
    for _ in 0..4 {
        let (code, out, error) = step();
        assert_eq!(code, 4, "{out}{error}");
        cutover.advance(cutover.now().plus_ms(2 * MINUTE_MS));
    }
    cutover.advance(cutover.now().plus_ms(10 * MINUTE_MS + SECOND_MS));
    let (code, _, error) = step();
    assert!(code == 7 && error.contains("does not say whether they work") && error.contains("429"), "{code}: {error}");
    assert_eq!(switched(&cutover), 1, "it stays where it is until somebody can tell");
    cutover.until_done(&switch[..4]);
    assert_eq!(switched(&cutover), 3);
}

/// What was served while the canary was at the target no longer counts.
fn forgive(cutover: &Cutover) {
    let waive = ["waive", "smoke-staleness", "--by", "ann", "--reason", "its account is mended", "--until", "7d"];
    let (code, out, error) = cutover.run(&[&waive[..], &["--scope", CANARY, "--policy", &cutover.policy]].concat());
    assert_eq!(code, 0, "{out}{error}");
}

/// A gateway that reads everything from the target, where the provider answers with `status`.
fn gateway_that_says(cutover: &Cutover, status: u16) -> String {
    let store = cutover.store();
    let rows = cutover.runtime.block_on(store.load_triplets()).unwrap();
    let result = |triplet: &Triplet| {
        serde_json::json!({"triplet": triplet, "read_authority": "target", "ok": status == 200, "stale": false,
                           "upstream_status": status})
    };
    let all: Vec<Value> = rows.iter().map(|row| result(&row.triplet)).collect();
    let clock = std::sync::Arc::clone(&cutover.clock);
    let answer = move |axum::Json(asked): axum::Json<Value>| {
        let wanted = asked["triplets"].as_array().cloned().unwrap_or_default();
        let results: Vec<Value> = all.iter().filter(|r| wanted.contains(&r["triplet"])).cloned().collect();
        let now = Timestamp::from_millis(clock.load(std::sync::atomic::Ordering::Relaxed));
        async move { ([("date", cutover::sandbox::http_date(now))], axum::Json(serde_json::json!({"results": results}))) }
    };
    let router = axum::Router::new().route("/admin/smoke", axum::routing::post(answer));
    let address = cutover.runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    });
    format!("http://{address}")
}
