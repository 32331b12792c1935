//! What the settings alone tell.

use std::collections::BTreeSet;

use crate::assess::{Finding, Severity};
use crate::clients::Endpoints;
use crate::domain::secret::Secret;
use crate::plan::REDIRECT_URI;
use crate::shim::ShimConfig;

pub(super) fn judge(names: &BTreeSet<&str>, endpoints: &Endpoints, routes: &ShimConfig) -> Vec<Finding> {
    let mut found = Vec::new();
    if names.contains("nango-webhook-key") {
        found.push(webhook_key(&endpoints.nango.key, &routes.nango_keys));
    }
    if names.contains("cloudflare-kv") && endpoints.cloudflare.kv_source == endpoints.cloudflare.kv_target {
        found.push(Finding::error(
            "cloudflare-kv",
            "source and target are one namespace: a reverse would have nothing to go back to",
            "make a namespace for the new custody, and name it as CUTOVER_KV_TARGET",
        ));
    }
    if names.contains("callbacks") {
        let nango = endpoints.nango.base.join("/oauth/callback").map(|url| url.to_string()).unwrap_or_default();
        found.push(Finding::new(
            "callbacks",
            Severity::Info,
            format!(
                "providers must accept {nango} until Nango is retired, and {REDIRECT_URI} from the first consent on"
            ),
            "no API tells what a provider accepts: look at each OAuth app",
        ));
    }
    found
}

/// The signing key as far as its form tells: a UUID per environment (Nango contract §5.3).
fn webhook_key(api_key: &Secret, keys: &[Secret]) -> Finding {
    const CHECK: &str = "nango-webhook-key";
    if keys.is_empty() {
        return Finding::warning(
            CHECK,
            "`CUTOVER_NANGO_WEBHOOK_KEY` is not set: webhooks are refused",
            "set it; without it polling finds everything, a little later",
        );
    }
    if let Some(n) = keys.iter().position(|key| !is_uuid(key.expose())) {
        return Finding::error(
            CHECK,
            format!("key {} of {} is no UUID, so it is no signing key of Nango", n + 1, keys.len()),
            "copy the webhook signing key from Nango's Environment Settings, not its address and not the API key",
        );
    }
    if keys.iter().any(|key| key.expose() == api_key.expose()) {
        return Finding::new(
            CHECK,
            Severity::Info,
            "it equals the API key: so it is in environments from before 2026-04-20, until a rotation",
            "in a younger environment it is the wrong one: see what `webhook-delivery` and the shim's metrics say",
        );
    }
    let count = keys.len();
    Finding::ok(CHECK, format!("{count} of the form that Nango makes, and not the API key"))
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<usize> = text.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12] && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "7b0d9f52-3c41-4e8a-9d26-5a1f0c3e7b48";

    #[test]
    fn a_signing_key_is_judged_by_its_form_and_never_shown() {
        let api = Secret::new("3a0c9f6e-52b8-4ad7-9a5e-0f6d1c2b3a49");
        let of = |keys: &[&str]| webhook_key(&api, &keys.iter().map(|key| Secret::new(*key)).collect::<Vec<_>>());
        assert_eq!(of(&[]).severity, Severity::Warning);
        assert_eq!(of(&[KEY]).severity, Severity::Ok);
        assert_eq!(of(&[KEY, api.expose()]).severity, Severity::Info);
        let bad = of(&[KEY, "canary-canary"]);
        assert_eq!((bad.severity, bad.evidence.contains("key 2 of 2")), (Severity::Error, true));
        assert!(!format!("{bad:?}").contains("canary"));
    }
}
