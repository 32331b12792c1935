//! Named preflight checks: what would break a cutover, found before it starts.
//!
//! Each check says what it saw, how bad that is, and what to do. A system that does not answer
//! leaves its checks unknown, which is no pass. Checks of files are pure; those of live systems read
//! only, but for the two that are asked for by `--write`.

pub mod environment;
mod live;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::plan::Probe;

pub use live::{Live, Subject};

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
    fn new(check: &'static str, severity: Severity, evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, severity, evidence: evidence.into(), remedy: remedy.into() }
    }

    fn ok(check: &'static str, evidence: impl Into<String>) -> Self {
        Self::new(check, Severity::Ok, evidence, "")
    }

    fn error(check: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Severity::Error, evidence, remedy)
    }

    fn warning(check: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Severity::Warning, evidence, remedy)
    }
}

/// A check that can be asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub what: &'static str,
}

/// Every check, in the order in which they run.
pub const CHECKS: [Check; 22] = [
    Check { name: "nango-key", what: "Nango takes the key and lists connections" },
    Check { name: "nango-integrations", what: "the catalogue knows every integration" },
    Check { name: "nango-connections", what: "no connection has an auth error" },
    Check { name: "nango-webhook-key", what: "the webhook signing key is set and usable" },
    Check { name: "composio-key", what: "Composio takes the key and lists auth configs" },
    Check { name: "composio-toolkits", what: "every toolkit that the plan needs exists" },
    Check { name: "composio-auth-configs", what: "our auth configs exist once and are enabled" },
    Check { name: "composio-accounts", what: "the key may read accounts, and no alias of ours is there twice" },
    Check { name: "composio-webhooks", what: "where webhook subscriptions point" },
    Check { name: "cloudflare-kv", what: "the token may list both namespaces, and they are two" },
    Check { name: "cloudflare-kv-latency", what: "a write to KV can be read back, and how soon (--write)" },
    Check { name: "cloudflare-d1", what: "`kv_audit` takes a row (--write)" },
    Check { name: "gateway-admin", what: "the admin routes answer and know every triplet" },
    Check { name: "gateway-hot-path", what: "what the gateway serves now is alive" },
    Check { name: "callbacks", what: "the redirect addresses that providers must accept" },
    Check { name: "tls", what: "every address is encrypted or on this machine" },
    Check { name: "clock-skew", what: "our clock against every API's" },
    Check { name: "rate-limits", what: "nothing was limited while we looked" },
    Check { name: "state", what: "the state opens and its migrations are applied" },
    Check { name: "nango-environment", what: "settings of a self-hosted Nango (--nango-env)" },
    Check { name: "nango-replicas", what: "several Nango servers share a Redis (--nango-env)" },
    Check { name: "app-environment", what: "settings of the application beside it (--app-env)" },
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
