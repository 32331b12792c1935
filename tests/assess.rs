//! The checks of `cutover assess`, each on a system as it should be, on one that is wrong, and on one
//! that does not tell.

#[path = "support/cutover.rs"]
mod support;

use std::sync::Arc;

use cutover::clients::HttpOutside;
use cutover::domain::secret::Secret;
use cutover::domain::time::Timestamp;
use cutover::shim::{Limits, Shim, ShimConfig, serve, tls};
use serde_json::Value;
use support::{Cutover, POLICY, SMALL, repository};

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:9";

/// Runs checks by name; their exit code and findings.
fn assess(cutover: &Cutover, only: &str, more: &[&str], variables: &[(&str, &str)]) -> (i32, Vec<Value>) {
    let args = [&["assess", "--only", only, "--format", "json"], more].concat();
    let (code, out, error) = cutover.run_with(&args, variables);
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{only}: {code}: {out}{error}"));
    assert_eq!(report["exit_code"], code, "{report:#}");
    let findings = report["findings"].as_array().unwrap().clone();
    assert!(!findings.is_empty(), "{only}: nothing was found, and nothing is no pass");
    for finding in &findings {
        assert!(only.split(',').any(|name| finding["check"] == name), "{only}: {finding:#}");
        let good = finding["severity"] == "ok";
        assert!(good || finding["remedy"] != "", "{only}: no remedy in {finding:#}");
    }
    (code, findings)
}

/// Runs one check and wants this severity, with this text in the evidence or the remedy.
fn expect(cutover: &Cutover, check: &str, more: &[&str], variables: &[(&str, &str)], severity: &str, text: &str) {
    let (code, findings) = assess(cutover, check, more, variables);
    let code_of = [("ok", 0), ("info", 0), ("warning", 0), ("unknown", 4), ("error", 3)];
    let expected = code_of.iter().find(|(name, _)| *name == severity).unwrap().1;
    let fits = |f: &Value| f["severity"] == severity && format!("{} {}", f["evidence"], f["remedy"]).contains(text);
    assert!(findings.iter().any(fits), "{check}: no {severity} with `{text}` in {findings:#?}");
    assert_eq!(code, expected, "{check}: {findings:#?}");
}

fn keys(cutover: &Cutover) -> cutover::sandbox::SandboxKeys {
    cutover.sandbox.lock().keys()
}

#[test]
fn what_a_nango_key_may_do_is_found_out_without_one_refresh() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    let (main, verifier) = (keys(&cutover).nango_api_key, keys(&cutover).nango_verify_key);
    let away = ("CUTOVER_NANGO_URL", NOBODY);

    expect(&cutover, "nango-rights", &[], &[], "ok", "may read credentials");
    expect(&cutover, "nango-rights", &[], &[("CUTOVER_NANGO_KEY", &verifier)], "error", "may not read credentials");
    expect(&cutover, "nango-rights", &[], &[away], "unknown", "no answer");

    let check = "nango-verify-key";
    expect(&cutover, check, &[], &[], "info", "CUTOVER_NANGO_VERIFY_KEY");
    expect(&cutover, check, &[], &[("CUTOVER_NANGO_VERIFY_KEY", &verifier)], "ok", "lists 3 connections");
    expect(&cutover, check, &[], &[("CUTOVER_NANGO_VERIFY_KEY", &main)], "error", "such a read refreshes");
    expect(&cutover, check, &[], &[("CUTOVER_NANGO_VERIFY_KEY", &verifier), away], "unknown", "no answer");
    let stranger = "00000000-0000-4000-8000-000000000000";
    expect(&cutover, check, &[], &[("CUTOVER_NANGO_VERIFY_KEY", stranger)], "error", "refused the key");

    let listing = cutover.sandbox.lock().add_nango_key(vec!["connections:list".to_owned()]);
    expect(&cutover, "nango-connect", &[], &[], "ok", "asked without a name");
    expect(&cutover, "nango-connect", &["--write"], &[], "ok", "opened and closed");
    expect(&cutover, "nango-connect", &[], &[("CUTOVER_NANGO_KEY", &listing)], "warning", "connect_sessions:write");
    expect(&cutover, "nango-connect", &[], &[away], "unknown", "no answer");
    cutover.script(r#"{"api":"nango","method":"POST","path":"/connect/sessions","answer":"fail-before","times":1}"#);
    expect(&cutover, "nango-connect", &[], &[], "unknown", "500");

    let ledger = cutover.ledger();
    assert_eq!((ledger.refreshing_reads, ledger.kv_writes, ledger.audit_rows), (0, 0, 0));
    assert_eq!(ledger.requests["nango"]["DELETE"], 1, "the session that was opened was closed: {ledger:?}");
}

#[test]
fn grants_that_lack_scopes_are_named_by_connection() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    let plan = ["--plan", &cutover.plan];
    expect(&cutover, "grant-scopes", &plan, &[], "ok", "hold what their rows need");
    expect(&cutover, "grant-scopes", &[], &[], "info", "--plan");
    expect(&cutover, "grant-scopes", &plan, &[("CUTOVER_CLOUDFLARE_URL", NOBODY)], "unknown", "no answer");

    let put = |entry: &str| cutover.put_kv("tokens:kahuna:hubspot:default", entry);
    put(r#"{"access_token":"at","expires_at":"2026-05-06T12:00:00Z"}"#);
    expect(&cutover, "grant-scopes", &plan, &[], "unknown", "kahuna:hubspot:default");
    // One write a second to one key.
    cutover.advance(cutover.now().plus_ms(2_000));
    put(r#"{"access_token":"at","expires_at":"2026-05-06T12:00:00Z","scope":"oauth"}"#);
    expect(&cutover, "grant-scopes", &plan, &[], "error", "`kahuna__hubspot__default` lacks ");

    // The plan takes it up: that row is blocked until a person decides.
    let probes = cutover.path("probes.json");
    assess(&cutover, "grant-scopes", &["--plan", &cutover.plan, "--out", &probes], &[]);
    let inventory = cutover.path("inventory.csv");
    let replan =
        ["plan", "--inventory", &inventory, "--policy", &cutover.policy, "--probes", &probes, "--format", "json"];
    let (_, plan, error) = cutover.run(&replan);
    let plan: Value = serde_json::from_str(&plan).unwrap_or_else(|_| panic!("{plan}{error}"));
    let row = plan["rows"].as_array().unwrap().iter().find(|row| row["triplet"] == "kahuna:hubspot:default").unwrap();
    assert_eq!((&row["route"], &row["granted"]["known"]), (&"blocked".into(), &"missing".into()), "{row:#}");
    assert_eq!(cutover.ledger().refreshing_reads, 0);
}

#[test]
fn limits_that_the_policy_does_not_know_of_are_found() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    expect(&cutover, "rate-headroom", &["--plan", &cutover.plan], &[], "ok", "nango takes 5000 requests a minute, ");
    let greedy = cutover.path("greedy.toml");
    std::fs::write(&greedy, format!("{POLICY}\n[rates]\nnango_per_minute = 9000\n")).unwrap();
    expect(&cutover, "rate-headroom", &["--policy", &greedy], &[], "error", "the policy counts on 9000");
    std::fs::write(&greedy, format!("{POLICY}\n[rates]\ngateway_per_minute = 1\n")).unwrap();
    let tight = ["--policy", &greedy, "--plan", &cutover.plan];
    expect(&cutover, "rate-headroom", &tight, &[], "error", "the plan needs");
    expect(&cutover, "rate-headroom", &[], &[("CUTOVER_COMPOSIO_URL", NOBODY)], "unknown", "no answer");
    expect(&cutover, "clock-skew", &[], &[], "ok", "cloudflare +0 s");
    expect(&cutover, "clock-skew", &[], &[("CUTOVER_NOW", "2026-05-06T09:05:00Z")], "error", "NTP");
    expect(&cutover, "clock-skew", &[], &[("CUTOVER_GATEWAY_URL", NOBODY)], "unknown", "gateway told no time");
}

#[test]
fn the_audit_table_is_looked_at_column_by_column() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    let check = "cloudflare-d1-shape";
    expect(&cutover, check, &[], &[], "ok", "all 6 columns");
    expect(&cutover, check, &[], &[("CUTOVER_CLOUDFLARE_URL", NOBODY)], "unknown", "no answer");
    cutover.sandbox.lock().redefine_audit("ts INTEGER, key TEXT, action TEXT, source TEXT");
    expect(&cutover, check, &[], &[], "error", "lacks `op_id`, `at`, `fingerprint`");
    let (code, findings) = assess(&cutover, "cloudflare-d1", &["--write"], &[]);
    assert_eq!(code, 3, "a row cannot go in: {findings:#?}");

    // Whoever runs the SQL of the remedy is done.
    let (_, findings) = assess(&cutover, check, &[], &[]);
    for sql in findings[0]["remedy"].as_str().unwrap().split_inclusive(';') {
        cutover.d1(sql.trim());
    }
    expect(&cutover, check, &[], &[], "ok", "besides `ts`");
    expect(&cutover, "cloudflare-d1", &["--write"], &[], "ok", "takes rows");
    cutover.sandbox.lock().redefine_audit("");
    expect(&cutover, check, &[], &[], "error", "CREATE TABLE kv_audit");

    let source = keys(&cutover).kv_source;
    expect(&cutover, "cloudflare-kv", &[], &[("CUTOVER_KV_TARGET", &source)], "error", "one namespace");
    for (check, option) in
        [("cloudflare-d1", "--write"), ("webhook-delivery", "--shim"), ("app-environment", "--app-env")]
    {
        let (code, _, error) = cutover.run(&["assess", "--only", check]);
        assert!(code == 2 && error.contains(&format!("`{check}` needs `{option}`")), "{error}");
    }
}

#[test]
fn the_certificate_of_every_address_is_looked_at() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    expect(&cutover, "tls", &[], &[], "info", "on this machine: Nango, Composio");
    let (certificate, key) = (repository("fixtures/tls/cert.pem"), repository("fixtures/tls/key.pem"));
    let acceptor = tls(&certificate, &key).unwrap();
    let port = cutover.runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let _ = acceptor.accept(stream).await;
            }
        });
        port
    });
    let at = |host: &str| format!("https://{host}:{port}");
    let (named, other) = (at("localhost"), at("127.0.0.2"));
    let trusted = ("SSL_CERT_FILE", certificate.to_str().unwrap());
    expect(&cutover, "tls", &[], &[("CUTOVER_GATEWAY_URL", &named), trusted], "ok", "the gateway: TLS 1.3");
    expect(&cutover, "tls", &[], &[("CUTOVER_GATEWAY_URL", &named), trusted], "ok", "days left (until 2126-");
    expect(&cutover, "tls", &[], &[("CUTOVER_GATEWAY_URL", &other), trusted], "error", "for another name");
    expect(&cutover, "tls", &[], &[("CUTOVER_GATEWAY_URL", &named)], "error", "the gateway: ");
    expect(
        &cutover,
        "tls",
        &[],
        &[("CUTOVER_GATEWAY_URL", "https://127.0.0.1:9"), trusted],
        "unknown",
        "no connection",
    );
    // What answers there speaks no TLS at all.
    let plain = cutover.sandbox.urls.gateway.replace("http://", "https://");
    let (code, findings) = assess(&cutover, "tls", &[], &[("CUTOVER_GATEWAY_URL", &plain), trusted]);
    assert!(code == 3 || code == 4, "{findings:#?}");
}

#[test]
fn our_own_shim_takes_what_is_signed_and_nothing_else() {
    let cutover = Cutover::start(SMALL, POLICY, Vec::new());
    let (nango, composio) = (keys(&cutover).nango_webhook_signing_key, "whsec_4kQm81xZr0LpTt7u");
    let config = ShimConfig {
        nango_keys: vec![Secret::new(nango.clone())],
        composio_keys: vec![Secret::new(composio)],
        ..ShimConfig::default()
    };
    let clock = || Timestamp::from_millis(support::real_now_ms());
    let shim: Arc<Shim<HttpOutside>> = Arc::new(Shim::new(config, clock));
    let address = cutover.runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, shim.router(), None, Limits::default(), std::future::pending()));
        address
    });
    let url = format!("http://{address}");
    let to = ["--shim", url.as_str()];
    let check = "webhook-delivery";
    let both = [("CUTOVER_NANGO_WEBHOOK_KEY", nango.as_str()), ("CUTOVER_COMPOSIO_WEBHOOK_KEY", composio)];
    expect(&cutover, check, &to, &both, "ok", "webhooks of Nango: signed ones are taken");
    expect(&cutover, check, &to, &both, "ok", "webhooks of Composio: signed ones are taken");
    let other = "7b0d9f52-3c41-4e8a-9d26-5a1f0c3e7b48";
    let rotated = format!("{other} {nango}");
    expect(&cutover, check, &to, &[("CUTOVER_NANGO_WEBHOOK_KEY", &rotated)], "error", "1 of our 2 keys");
    expect(&cutover, check, &["--shim", NOBODY], &both, "unknown", "nobody answers");

    expect(&cutover, "nango-webhook-key", &[], &[], "ok", "not the API key");
    expect(&cutover, "nango-webhook-key", &[], &[("CUTOVER_NANGO_WEBHOOK_KEY", "")], "warning", "is not set");
    let text = "https://shim.example.com/admin/sync/nango";
    let (code, out, _) =
        cutover.run_with(&["assess", "--only", "nango-webhook-key"], &[("CUTOVER_NANGO_WEBHOOK_KEY", text)]);
    assert!(code == 3 && !out.contains("shim.example"), "{out}");
}
