//! The account of a soak, opened in a browser.

#[path = "support/kept.rs"]
mod kept;
#[path = "support/tools.rs"]
mod tools;

use std::collections::BTreeMap;
use std::process::Command;

use kept::{Kept, done};
use serde_json::Value;

const SOON: i64 = 60_000;

/// Opens a page in headless Chromium: its document as rendered, and what it wrote to the console.
fn open(folder: &std::path::Path, page: &str) -> (String, Vec<String>) {
    tools::need("chromium", "chromium");
    let url = format!("file://{}", folder.join(page).display());
    let profile = folder.join("profile");
    let (code, dom, stderr) = done(
        Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
            .args(["--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(url),
    );
    assert_eq!(code, 0, "{stderr}");
    (dom, stderr.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect())
}

/// Every `data-fact` of a document with its text.
fn facts(dom: &str) -> BTreeMap<String, String> {
    let unescape = |text: &str| {
        let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
        pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    };
    dom.split("data-fact=\"")
        .skip(1)
        .map(|rest| {
            let (path, rest) = rest.split_once("\">").unwrap();
            (unescape(path), unescape(rest.split_once("</span>").unwrap().0))
        })
        .collect()
}

/// What the JSON says at the place that a fact names.
fn said(json: &Value, path: &str) -> Value {
    let by = |list: &str, key: &str, id: &str| {
        json[list].as_array().unwrap().iter().find(|item| item[key] == id).cloned().unwrap_or_default()
    };
    match path.split_once('.') {
        None => json[path].clone(),
        Some((list @ ("criteria" | "waivers"), rest)) => {
            let (id, field) = rest.rsplit_once('.').unwrap();
            by(list, "id", id)[field].clone()
        }
        Some(("triplets", rest)) => {
            let (triplet, field) = rest.rsplit_once('.').unwrap();
            by("triplets", "triplet", triplet)[field].clone()
        }
        Some(_) => path.split('.').fold(json.clone(), |value, part| value[part].clone()),
    }
}

fn agrees(json: &Value, shown: &str) -> bool {
    match json {
        Value::Null => shown == "-",
        Value::Number(n) => shown.parse::<f64>().is_ok_and(|s| (s - n.as_f64().unwrap()).abs() < 1e-4),
        Value::String(text) => text == shown,
        _ => false,
    }
}

#[test]
fn the_html_says_what_the_json_says_and_asks_nobody_for_anything() {
    let state = Kept::rehearse(&["--faults", "grant-revoked,nango-outage=20m"]);
    let waive = ["waive", "outage", "--by", "ann", "--reason", "<b>planned</b> & agreed", "--until", "1d"];
    assert_eq!(state.run(SOON, &waive).0, 0);
    let (code, _, stderr) = state.run(SOON, &["report", "--out", "soak.html"]);
    assert_eq!(code, 0, "{stderr}");
    let (_, json, _) = state.run(SOON, &["report", "--format", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();

    let (dom, console) = open(state.dir.path(), "soak.html");
    assert_eq!(console, Vec::<String>::new());
    let shown = facts(&dom);
    assert!(shown.len() > 16 * 5 + 7, "{}", shown.len());
    for (path, text) in &shown {
        let value = said(&json, path);
        assert!(agrees(&value, text), "{path}: the page says `{text}`, the JSON {value}");
    }
    for c in json["criteria"].as_array().unwrap() {
        assert!(shown.contains_key(&format!("criteria.{}.verdict", c["id"].as_str().unwrap())));
    }
    assert_eq!(dom.matches("data-mark=").count(), json["marks"].as_array().unwrap().len());
    for kind in ["finding", "restart", "waiver"] {
        assert!(dom.contains(&format!("data-mark=\"{kind}\"")), "no {kind} is marked");
    }
    assert!(dom.contains("&lt;b&gt;planned&lt;/b&gt; &amp; agreed"), "a reason became markup");
    assert_eq!(dom.matches("<svg").count(), 4);

    // Nothing can be fetched: there is nothing to fetch, and the page forbids it.
    let html = std::fs::read_to_string(state.path("soak.html")).unwrap();
    for outside in ["<script", "src=", "http://", "https://", "url(", "@import", "href=\"/"] {
        assert!(!html.contains(outside), "the page has `{outside}`");
    }
    // Such an attempt would have been seen.
    let tempted = html.replace("</body>", "<img src=\"http://127.0.0.1:9/x.png\"></body>");
    std::fs::write(state.path("tempted.html"), tempted).unwrap();
    let (_, console) = open(state.dir.path(), "tempted.html");
    assert!(console.iter().any(|line| line.contains("Content Security Policy")), "{console:?}");

    // In print it is whole, too.
    let (code, _, stderr) = done(
        Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--print-to-pdf=soak.pdf", "soak.html"])
            .arg(format!("--user-data-dir={}", state.path("profile").display()))
            .current_dir(state.dir.path()),
    );
    assert_eq!(code, 0, "{stderr}");
    let pdf = std::fs::read(state.path("soak.pdf")).unwrap();
    assert!(pdf.starts_with(b"%PDF") && pdf.len() > 20_000, "{}", pdf.len());
}

#[test]
fn a_rehearsal_marks_its_faults_and_leaks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["soak.html", "soak.md"] {
        let (code, ..) = done(
            Command::new(env!("CARGO_BIN_EXE_cutover"))
                .args([
                    "rehearse",
                    "--days",
                    "1",
                    "--connections",
                    "4",
                    "--faults",
                    "grant-revoked,crash=3",
                    "--report",
                    name,
                ])
                .current_dir(dir.path()),
        );
        assert_eq!(code, 3);
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(!text.contains(cutover::sandbox::CANARY), "{name} leaks a secret");
        assert!(text.contains("grant-revoked") && text.contains("seed 38"), "{name}");
        assert!(text.contains("its grant is revoked at the provider"), "{name} does not mark the fault");
    }
}

#[test]
fn a_small_campaign_finds_the_gate_right() {
    let (code, stdout, stderr) = done(Command::new(env!("CARGO_BIN_EXE_cutover")).args([
        "rehearse",
        "--campaign",
        "2",
        "--days",
        "1",
        "--connections",
        "3",
        "--format",
        "json",
    ]));
    let campaign: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"));
    assert_eq!(code, 0, "{campaign:#}");
    let number = |name: &str| campaign[name].as_u64().unwrap();
    assert_eq!([number("false_passes"), number("false_fails"), number("untold")], [0, 0, 0]);
    assert_eq!((number("runs"), number("broken_runs"), number("noise_runs")), (40, 22, 18));
    // Right for the right reason.
    for profile in campaign["profiles"].as_array().unwrap() {
        let caught = profile["caught_by"].as_object().unwrap();
        assert_eq!(profile["health"] == "broken", !caught.is_empty(), "{profile:#}");
    }
}
