//! Named preflight checks: what would break a cutover, found before it starts.
//!
//! Each check says what it saw, how bad that is, and what to do. A system that does not answer
//! leaves its checks unknown, which is no pass. Checks of files are pure; those of live systems change
//! nothing, but for those that are asked for by `--write`, and these leave nothing behind but a row.

mod audit;
pub mod environment;
mod headroom;
mod live;
mod rights;
mod scopes;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::plan::Probe;

pub use live::{Live, Subject};
pub use rights::verify_key;
pub use scopes::GrantNeed;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing to do, or nothing that a program can see.
    Info,
    /// It will hurt some day.
    Warning,
    /// It could not be found out.
    Unknown,
    /// The cutover would fail on it.
    Error,
}

impl Severity {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Error => "error",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub severity: Severity,
    /// What was seen. Never a secret.
    pub evidence: String,
    /// What to do; empty when there is nothing to do.
    pub remedy: String,
}

impl Finding {
    pub fn new(
        check: &'static str,
        severity: Severity,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { check, severity, evidence: evidence.into(), remedy: remedy.into() }
    }

    pub fn ok(check: &'static str, evidence: impl Into<String>) -> Self {
        Self::new(check, Severity::Ok, evidence, "")
    }

    pub fn error(check: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Severity::Error, evidence, remedy)
    }

    pub fn warning(check: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Severity::Warning, evidence, remedy)
    }
}

/// What a check needs that it does not have by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// An option of the command line, without which it is not run.
    Option(&'static str),
}

/// A check that can be asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub what: &'static str,
    pub needs: Needs,
}

const fn check(name: &'static str, what: &'static str) -> Check {
    Check { name, what, needs: Needs::Nothing }
}

const fn check_with(name: &'static str, what: &'static str, option: &'static str) -> Check {
    Check { name, what, needs: Needs::Option(option) }
}

/// What a check leaves or takes back in the outside world when `--write` allows it.
pub fn writes(check: &str) -> Option<&'static str> {
    match check {
        "nango-connect" => Some("open a Connect session for nobody, and close it"),
        "cloudflare-kv-latency" => Some("put an entry `cutover-probe:…` into the target namespace, and delete it"),
        "cloudflare-d1" => Some("insert one row into `kv_audit`, which stays"),
        _ => None,
    }
}

/// Every check, in the order in which they are reported.
pub const CHECKS: [Check; 29] = [
    check("nango-key", "Nango takes the key and lists connections"),
    check("nango-rights", "the key may read credentials, as the shim must"),
    check("nango-verify-key", "the verifier's own key lists, and cannot refresh"),
    check("nango-connect", "Connect sessions can be opened (--write opens one and closes it)"),
    check("nango-integrations", "the catalogue knows every integration"),
    check("nango-connections", "no connection has an auth error"),
    check("nango-webhook-key", "the webhook signing key is set and usable"),
    check_with("webhook-delivery", "our shim takes a signed webhook and refuses others (--shim)", "--shim"),
    check("composio-key", "Composio takes the key and lists auth configs"),
    check("composio-toolkits", "every toolkit that the plan needs exists and takes bearer accounts"),
    check("composio-auth-configs", "our auth configs exist once and are enabled"),
    check("composio-accounts", "the key may read accounts, and no alias of ours is there twice"),
    check("composio-webhooks", "where webhook subscriptions point"),
    check("grant-scopes", "each live grant holds the scopes that its rows need"),
    check("cloudflare-kv", "the token may list both namespaces, and they are two"),
    check_with("cloudflare-kv-latency", "a write to KV can be read back, and how soon (--write)", "--write"),
    check("cloudflare-d1-shape", "`kv_audit` has our columns"),
    check_with("cloudflare-d1", "`kv_audit` takes a row (--write)", "--write"),
    check("gateway-admin", "the admin routes answer and know every triplet"),
    check("gateway-hot-path", "what the gateway serves now is alive"),
    check("callbacks", "the redirect addresses that providers must accept"),
    check("tls", "every address is encrypted and its certificate is good, or it is on this machine"),
    check("clock-skew", "our clock against every API's"),
    check("rate-limits", "nothing was limited while we looked"),
    check("rate-headroom", "each API takes what the policy counts on and the plan needs"),
    check("state", "the state opens and its migrations are applied"),
    check_with("nango-environment", "settings of a self-hosted Nango (--nango-env)", "--nango-env"),
    check_with("nango-replicas", "several Nango servers share a Redis (--nango-env)", "--nango-env"),
    check_with("app-environment", "settings of the application beside it (--app-env)", "--app-env"),
];

/// The worst finding decides: error, then unknown, then all is well enough.
pub fn verdict(findings: &[Finding]) -> (u8, String) {
    let count = |severity: Severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, unknown, warnings) = (count(Severity::Error), count(Severity::Unknown), count(Severity::Warning));
    let code = match (errors, unknown) {
        (0, 0) => crate::exit::OK,
        (0, _) => crate::exit::INCONCLUSIVE,
        _ => crate::exit::FAIL,
    };
    (code, format!("{} checks: {errors} errors, {unknown} unknown, {warnings} warnings", findings.len()))
}

/// What the checks found, with the dated facts that a plan can embed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assessment {
    pub findings: Vec<Finding>,
    pub probes: Vec<Probe>,
}

/// Settings of a file, by name.
pub type Variables = BTreeMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides_and_unknown_is_no_pass() {
        let of = |severity| Finding::new("tls", severity, "", "");
        assert_eq!(verdict(&[of(Severity::Ok), of(Severity::Warning), of(Severity::Info)]).0, 0);
        assert_eq!(verdict(&[of(Severity::Unknown), of(Severity::Ok)]).0, 4);
        assert_eq!(verdict(&[of(Severity::Unknown), of(Severity::Error)]).0, 3);
    }

    #[test]
    fn names_of_checks_are_unique() {
        let mut names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHECKS.len());
    }
}
