//! The vendors' own clients, webhook verification and types against `cutover sandbox`.
//!
//! `tests/vendors/run.mjs` starts the sandbox, makes every call that cutover makes through
//! `@nangohq/node`, `@composio/client`, `@composio/core` and `cloudflare`, and holds the answers
//! against the types in these packages and against `fixtures/schemas/`.

#[path = "support/node.rs"]
mod node;

use node::{NodeProject, run, text};

/// Checks that the scripts made when they were last complete; fewer means that a part was skipped.
const CHECKS_MIN: u64 = 215;

#[test]
fn the_vendors_own_clients_work_against_the_sandbox() {
    let vendors = NodeProject::install("vendors", &["fixtures/schemas"]);
    let output = run(&mut vendors.script("run.mjs", &[env!("CARGO_BIN_EXE_cutover")]), "node");
    assert!(output.status.success(), "{}", text(&output));
    // The SDKs may print as well; the last line is ours.
    let printed = String::from_utf8(output.stdout).unwrap();
    let found: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap_or_default()).unwrap();
    let passed = found["passed"].as_u64().unwrap();
    assert!(passed >= CHECKS_MIN, "only {passed} of at least {CHECKS_MIN} checks were made");
}
