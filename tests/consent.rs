//! The consent campaign: what people are sent, the page that they open, and what comes back wrong.

#[path = "support/cutover.rs"]
mod support;
#[path = "support/tools.rs"]
mod tools;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cutover::domain::time::{DAY_MS, Timestamp};
use cutover::sandbox::Fault;
use cutover::shim::{Limits, Shim, ShimConfig, serve};
use serde_json::Value;
use support::{Cutover, POLICY, SMALL};

/// A shim in the world's time, over the state of the cutover; its address.
fn pages(cutover: &Cutover) -> String {
    let clock = Arc::clone(&cutover.clock);
    let clock = move || Timestamp::from_millis(clock.load(Ordering::Relaxed));
    let shim = Arc::new(Shim::new(ShimConfig::default(), clock));
    shim.set_engine(Some(Arc::new(cutover.engine())));
    let address = cutover.runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, shim.router(), None, Limits::default(), std::future::pending()));
        address
    });
    format!("http://{address}")
}

struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
}

fn ask(cutover: &Cutover, method: &str, url: &str) -> Answer {
    cutover.runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]);
        let client = client.redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let answer = client.request(method.parse().unwrap(), url).send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Answer { status, headers, text: answer.text().await.unwrap() }
    })
}

/// Presses the button of a page and opens where it leads, as a browser does.
fn connect(cutover: &Cutover, page: &str) {
    let answer = ask(cutover, "POST", page);
    assert_eq!(answer.status, 303, "{}", answer.text);
    let link = answer.headers["location"].to_str().unwrap().to_owned();
    assert!(!answer.text.contains(&link), "the link is a secret and in no body");
    let opened = ask(cutover, "GET", &link);
    assert_eq!(opened.status, 200, "{}", opened.text);
}

fn status(cutover: &Cutover) -> Value {
    let (code, out, error) = cutover.run(&["consent", "status", "--policy", &cutover.policy, "--format", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}"));
    assert_eq!(report["exit_code"], code);
    report
}

fn row(report: &Value, triplet: &str) -> Value {
    report["consents"].as_array().unwrap().iter().find(|row| row["triplet"] == triplet).unwrap().clone()
}

fn follow(cutover: &Cutover) -> i32 {
    let mut code = 4;
    for _ in 0..6 {
        code = cutover.run(&["consent", "follow", "--no-wait", "--policy", &cutover.policy]).0;
        if code == 0 {
            break;
        }
        cutover.advance(cutover.now().plus_ms(30_000));
    }
    code
}

#[test]
fn people_are_sent_pages_and_what_they_connect_wrongly_comes_back_to_them() {
    let faults = vec![Fault::WrongAccount { count: 1 }, Fault::ScopeLoss { count: 3 }];
    let cutover = Cutover::start(SMALL, POLICY, faults);
    cutover.sandbox.lock().set_addresses(cutover.sandbox.urls.clone());
    cutover.until_done(&["apply", &cutover.plan, "--yes"]);
    cutover.live(60_000);
    let base = pages(&cutover);

    let args = ["consent", "export", "--base-url", &base, "--policy", &cutover.policy];
    let (code, csv, error) = cutover.run(&args);
    assert_eq!(code, 0, "{error}");
    assert!(csv.lines().count() == 4 && csv.matches("\r\n").count() == 4, "{csv:?}");
    let sent: Vec<(String, String)> = csv::Reader::from_reader(csv.as_bytes())
        .records()
        .map(|record| {
            let record = record.unwrap();
            (format!("{}:{}:{}", &record[0], &record[1], &record[2]), record[5].to_owned())
        })
        .collect();
    assert!(sent.iter().all(|(_, page)| page.starts_with(&format!("{base}/consent/"))), "{sent:?}");

    // Reminded once, and not again within three days.
    let remind = ["consent", "remind", "--base-url", &base, "--every", "3d", "--policy", &cutover.policy];
    let reminded = || cutover.run(&remind).1.lines().count() - 1;
    assert_eq!((reminded(), reminded()), (3, 0));
    cutover.live(3 * DAY_MS + 60_000);
    assert_eq!(reminded(), 3);

    // Looking makes nothing; a stranger's ticket is answered with a page.
    let (triplet, page) = &sent[0];
    let shown = ask(&cutover, "GET", page);
    assert_eq!(shown.status, 200, "{}", shown.text);
    assert_eq!(row(&status(&cutover), triplet)["state"], "waiting");
    for (name, value) in [
        ("content-security-policy", "default-src 'none'"),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("x-robots-tag", "noindex"),
    ] {
        assert!(shown.headers[name].to_str().unwrap().contains(value), "{name}: {:?}", shown.headers);
    }
    for secret in [triplet.as_str(), cutover::sandbox::CANARY, "ca_", "ac_", "<script"] {
        assert!(!shown.text.contains(secret), "the page holds `{secret}`");
    }
    let stranger = ask(&cutover, "GET", &format!("{base}/consent/{}", "0".repeat(64)));
    assert_eq!(stranger.status, 404);
    assert!(stranger.text.contains("<h1>This page is not known</h1>"), "{}", stranger.text);

    // A link that nobody used ends; the page makes a fresh one.
    let first = ask(&cutover, "POST", page).headers["location"].clone();
    assert_eq!(row(&status(&cutover), triplet)["state"], "opened");
    cutover.advance(cutover.now().plus_ms(11 * 60_000));
    follow(&cutover);
    let second = ask(&cutover, "POST", page).headers["location"].clone();
    assert_ne!(first, second, "every press makes a link of its own");
    assert_eq!(ask(&cutover, "GET", second.to_str().unwrap()).status, 200);
    for (_, page) in &sent[1..] {
        connect(&cutover, page);
    }
    follow(&cutover);
    let report = status(&cutover);
    assert_eq!(report["exit_code"], 4, "{report:#}");
    let reasons: Vec<String> =
        sent.iter().map(|(t, _)| row(&report, t)["reason"].as_str().unwrap_or_default().to_owned()).collect();
    assert!(reasons.iter().any(|r| r == "another upstream account was connected"), "{reasons:?}");
    assert!(reasons.iter().any(|r| r.starts_with("the consent lacks ")), "{reasons:?}");
    for ((_, page), reason) in sent.iter().zip(&reasons) {
        let told = ask(&cutover, "GET", page).text;
        assert_eq!(told.contains("Last time it did not work"), !reason.is_empty(), "{reason}: {told}");
    }

    // Done right, everything is proven, and the pages say thank you.
    cutover.sandbox.lock().mend_consents();
    for ((_, page), _) in sent.iter().zip(&reasons).filter(|(_, reason)| !reason.is_empty()) {
        connect(&cutover, page);
    }
    assert_eq!(follow(&cutover), 0);
    let report = status(&cutover);
    assert_eq!((&report["exit_code"], &report["burn_down"][0][1]), (&0.into(), &0.into()), "{report:#}");
    let thanks = ask(&cutover, "GET", page).text;
    assert!(thanks.contains("<h1>Thank you</h1>") && !thanks.contains("<button"), "{thanks}");
    assert!(ask(&cutover, "POST", page).text.contains("nothing left to do"), "used once more, it makes nothing");
}

/// A person may be faster than `consent follow`. With the same client the old grant may end with the
/// consent, and then nobody could tell any more whose it was.
#[test]
fn whose_the_old_grant_is_is_known_before_anybody_consents() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.sandbox.lock().set_addresses(cutover.sandbox.urls.clone());
    cutover.until_done(&["apply", &cutover.plan, "--yes"]);
    cutover.live(60_000);
    let base = pages(&cutover);
    let (_, csv, _) = cutover.run(&["consent", "export", "--base-url", &base, "--policy", &cutover.policy]);
    let page = csv::Reader::from_reader(csv.as_bytes()).records().next().unwrap().unwrap()[5].to_owned();
    let known = || {
        let engine = cutover.engine();
        let rows = cutover.runtime.block_on(engine.store().load_triplets()).unwrap();
        rows.iter().filter(|row| row.old_identity.is_some()).count()
    };
    assert_eq!(known(), 0);
    connect(&cutover, &page);
    assert_eq!(known(), 1);
}

#[test]
fn presses_at_the_same_time_all_lead_to_a_link_that_works() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.sandbox.lock().set_addresses(cutover.sandbox.urls.clone());
    cutover.until_done(&["apply", &cutover.plan, "--yes"]);
    cutover.live(60_000);
    // Two shims, as on two machines; each is pressed three times.
    let bases = [pages(&cutover), pages(&cutover)];
    let csv = cutover.run(&["consent", "export", "--base-url", &bases[0], "--policy", &cutover.policy]).1;
    let page = csv::Reader::from_reader(csv.as_bytes()).records().next().unwrap().unwrap()[5].to_owned();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    let client = client.redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let links: Vec<String> = cutover.runtime.block_on(async {
        let presses = (0..6).map(|n| {
            let press = client.post(page.replace(&bases[0], &bases[n % 2])).send();
            tokio::spawn(async move {
                let answer = press.await.unwrap();
                assert_eq!(answer.status(), 303);
                answer.headers()["location"].to_str().unwrap().to_owned()
            })
        });
        let mut links = Vec::new();
        for press in presses.collect::<Vec<_>>() {
            links.push(press.await.unwrap());
        }
        links
    });
    // A link is good for one consent; presses share it.
    for link in links.iter().collect::<BTreeSet<_>>() {
        assert_eq!(ask(&cutover, "GET", link).status, 200, "{link}");
    }

    // A single link has a dry run like everything that writes.
    let triplet = "kahuna:slack:default";
    let link = ["consent", "link", triplet, "--policy", &cutover.policy, "--dry-run"];
    let (code, out, error) = cutover.run(&link);
    assert!(code == 0 && out.contains("link") && out.contains("nothing was written"), "{code}: {out}{error}");
    assert_eq!(row(&status(&cutover), triplet)["state"], "waiting");
}

#[test]
fn the_page_is_whole_in_a_browser_and_asks_nobody_for_anything() {
    tools::need("chromium", "chromium");
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    cutover.until_done(&["apply", &cutover.plan, "--yes"]);
    cutover.live(60_000);
    let base = pages(&cutover);
    let (_, csv, _) = cutover.run(&["consent", "export", "--base-url", &base, "--policy", &cutover.policy]);
    let page = csv::Reader::from_reader(csv.as_bytes()).records().next().unwrap().unwrap()[5].to_owned();
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"])
        .arg(format!("--screenshot={}", cutover.path("consent.png")))
        .arg(format!("--user-data-dir={}", cutover.path("profile")))
        .arg(&page)
        .output()
        .unwrap();
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{log}");
    assert!(!log.contains("CONSOLE"), "{log}");
    assert!(!dom.contains("<script") && !dom.contains("http://") && !dom.contains("https://"), "{dom}");
    assert!(
        dom.contains("<form method=\"post\"><button>Connect ") && dom.contains("the same account as before"),
        "{dom}"
    );
    if let Some(kept) = std::env::var_os("CUTOVER_KEEP_PICTURES") {
        let to = std::path::Path::new(&kept).join("consent.png");
        std::fs::copy(cutover.path("consent.png"), to).unwrap();
    }
}
