//! Webhooks delivered to our own shim: signed with each key that we have, and with one that nobody has.
//! Their type is of no use to it, so what it takes it also ignores.

use std::time::Duration;

use reqwest::{Client, Url};
use serde_json::json;

use crate::assess::{Finding, Severity};
use crate::cli::CommandError;
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::domain::webhook::{SIGNATURE_HEADER, sign_composio, sign_nango};
use crate::shim::ShimConfig;

const CHECK: &str = "webhook-delivery";

/// Nango waits 20 s for an answer; whoever needs longer loses webhooks.
const PATIENCE: Duration = Duration::from_secs(20);

/// The answer of a shim that checked the signature and has no use for the rest.
const IGNORED: &str = "ignored";

/// A custodian whose webhooks come to the shim.
#[derive(Clone, Copy, Debug)]
enum Custodian {
    Nango,
    Composio,
}

impl Custodian {
    const fn name(self) -> &'static str {
        match self {
            Self::Nango => "Nango",
            Self::Composio => "Composio",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Nango => "/admin/sync/nango",
            Self::Composio => "/admin/sync/composio",
        }
    }

    fn headers(self, key: &Secret, body: &[u8], now: Timestamp) -> Vec<(&'static str, String)> {
        match self {
            Self::Nango => vec![(SIGNATURE_HEADER, sign_nango(key, body))],
            Self::Composio => {
                let (id, at) = (format!("cutover-probe-{}", now.millis()), now.secs().to_string());
                let signature = sign_composio(key, &id, &at, body);
                vec![("webhook-id", id), ("webhook-timestamp", at), ("webhook-signature", signature)]
            }
        }
    }
}

/// What the shim did with a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Taken,
    Refused,
    /// It did not answer, or something else did.
    Other(String),
}

/// # Errors
/// Exit code 1 when no client can be made.
pub(super) async fn deliver(shim: &Url, routes: &ShimConfig, now: Timestamp) -> Result<Vec<Finding>, CommandError> {
    // Fails only when somebody installed a provider before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()
        .map_err(|error| CommandError::failed("cannot set up TLS").because(&error))?;
    let mut found = Vec::new();
    for (from, keys) in [(Custodian::Nango, &routes.nango_keys), (Custodian::Composio, &routes.composio_keys)] {
        let mut answers = Vec::new();
        for key in keys {
            answers.push(send(&client, shim, from, key, now).await);
        }
        let stranger = send(&client, shim, from, &Secret::new("a key that nobody has"), now).await;
        found.push(judge(from, &answers, &stranger));
    }
    Ok(found)
}

async fn send(client: &Client, shim: &Url, from: Custodian, key: &Secret, now: Timestamp) -> Answer {
    let body = json!({"type": "cutover-probe", "from": "cutover"}).to_string();
    let mut url = shim.clone();
    url.set_path(&format!("{}{}", shim.path().trim_end_matches('/'), from.path()));
    let mut request = client.post(url).header("content-type", "application/json");
    for (name, value) in from.headers(key, body.as_bytes(), now) {
        request = request.header(name, value);
    }
    match request.body(body).send().await {
        Err(error) if error.is_timeout() => Answer::Other("it does not answer in time".to_owned()),
        Err(_) => Answer::Other("nobody answers".to_owned()),
        Ok(response) => {
            let status = response.status().as_u16();
            let said: serde_json::Value = response.json().await.unwrap_or_default();
            match (status, said["status"].as_str()) {
                (200, Some(IGNORED)) => Answer::Taken,
                (401, _) => Answer::Refused,
                _ => Answer::Other(format!("it answered {status}, as no shim does")),
            }
        }
    }
}

fn judge(from: Custodian, answers: &[Answer], stranger: &Answer) -> Finding {
    let name = from.name();
    if let Some(Answer::Other(what)) = answers.iter().chain([stranger]).find(|a| matches!(a, Answer::Other(_))) {
        let remedy = "start `cutover shim`, and see that `--shim` is its address";
        return Finding::new(CHECK, Severity::Unknown, format!("webhooks of {name}: {what}"), remedy);
    }
    if *stranger == Answer::Taken {
        return Finding::error(
            CHECK,
            format!("it takes webhooks of {name} that nobody signed"),
            "what answers there is no shim of this version: stop it",
        );
    }
    match (answers.iter().filter(|answer| **answer == Answer::Taken).count(), answers.len()) {
        (_, 0) => Finding::new(
            CHECK,
            Severity::Info,
            format!("it refuses webhooks of {name}, as it must: no key of ours is set"),
            "polling finds everything, a little later",
        ),
        (taken, all) if taken == all => {
            Finding::ok(CHECK, format!("webhooks of {name}: signed ones are taken ({all} keys), others refused"))
        }
        (taken, all) => Finding::error(
            CHECK,
            format!("webhooks of {name}: it knows {taken} of our {all} keys"),
            "start the shim with the same keys, during a rotation with the old and the new one",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_judged_by_what_is_taken_and_what_is_refused() {
        use Answer::{Refused, Taken};
        let silent = || Answer::Other("nobody answers".to_owned());
        for (answers, stranger, expected) in [
            (vec![Taken, Taken], Refused, Severity::Ok),
            (vec![Taken, Refused], Refused, Severity::Error),
            (vec![Taken], Taken, Severity::Error),
            (vec![], Refused, Severity::Info),
            (vec![Taken], silent(), Severity::Unknown),
            (vec![silent()], Refused, Severity::Unknown),
        ] {
            assert_eq!(judge(Custodian::Nango, &answers, &stranger).severity, expected, "{answers:?} {stranger:?}");
        }
    }
}
