//! One handshake with each server.

use std::collections::BTreeMap;

use reqwest::Url;

use crate::assess::{Finding, Severity};
use crate::clients::Endpoints;
use crate::clients::tls::{TlsLook, TlsTrouble, look};
use crate::domain::time::{DAY_MS, Timestamp};

const CHECK: &str = "tls";

/// Days before a certificate's end from which on somebody should look after it. Renewals by
/// machine happen with a third of the life left, 30 days of the usual 90.
const DAYS_MIN: i64 = 14;

pub(super) async fn judge(endpoints: &Endpoints, now: Timestamp) -> Vec<Finding> {
    let bases = [
        ("Nango", Some(&endpoints.nango.base)),
        ("Composio", Some(&endpoints.composio.base)),
        ("Cloudflare", Some(&endpoints.cloudflare.base)),
        ("the gateway", Some(&endpoints.gateway.base)),
        ("the stand-in for providers", endpoints.provider.base_override.as_ref()),
    ];
    let (mut plain, mut found) = (Vec::new(), Vec::new());
    let mut servers: BTreeMap<String, (Vec<&str>, &Url)> = BTreeMap::new();
    for (name, url) in bases {
        match url {
            Some(url) if url.scheme() == "https" => {
                servers.entry(url.origin().ascii_serialization()).or_insert((Vec::new(), url)).0.push(name);
            }
            Some(_) => plain.push(name),
            None => {}
        }
    }
    if !plain.is_empty() {
        found.push(Finding::new(
            CHECK,
            Severity::Info,
            format!("not encrypted, since it is on this machine: {}", plain.join(", ")),
            "fine for a sandbox; anywhere else it is refused",
        ));
    }
    for (names, url) in servers.into_values() {
        found.push(finding(&names.join(" and "), &look(url).await, now));
    }
    found
}

fn finding(name: &str, looked: &Result<TlsLook, TlsTrouble>, now: Timestamp) -> Finding {
    match looked {
        Ok(TlsLook { protocol, not_after }) => {
            let Some(end) = not_after else {
                return Finding::ok(CHECK, format!("{name}: {protocol}, the chain is trusted; its end cannot be read"));
            };
            let days = end.since(now).div_euclid(DAY_MS);
            let seen =
                format!("{name}: {protocol}, the chain is trusted, {days} days left (until {})", end.to_rfc3339());
            if days < DAYS_MIN {
                Finding::warning(CHECK, seen, "see that it is renewed: when it ends, every call fails")
            } else {
                Finding::ok(CHECK, seen)
            }
        }
        Err(trouble @ TlsTrouble::Unreachable(_)) => {
            Finding::new(CHECK, Severity::Unknown, format!("{name}: {trouble}"), "ask again when it answers")
        }
        Err(trouble @ TlsTrouble::Refused { .. }) => Finding::error(
            CHECK,
            format!("{name}: {trouble}"),
            "renew or replace the certificate, or name the CA that made it in `SSL_CERT_FILE`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_days_left_decide_between_fine_and_soon() {
        let now = Timestamp::from_secs(1_790_000_000);
        let of = |days: i64| {
            let end = now.plus_ms(days * DAY_MS + 1);
            finding("Nango", &Ok(TlsLook { protocol: "TLS 1.3", not_after: Some(end) }), now)
        };
        assert_eq!((of(14).severity, of(13).severity), (Severity::Ok, Severity::Warning));
        assert!(of(13).evidence.contains("TLS 1.3, the chain is trusted, 13 days left"), "{:?}", of(13));
    }

    #[test]
    fn silence_is_unknown_and_distrust_is_an_error() {
        let now = Timestamp::from_secs(0);
        let of = |trouble| finding("Nango", &Err(trouble), now).severity;
        assert_eq!(of(TlsTrouble::Unreachable("refused".to_owned())), Severity::Unknown);
        assert_eq!(of(TlsTrouble::Refused { reason: "x".to_owned(), not_after: None }), Severity::Error);
    }
}
