//! An incoming webhook as Slack has it: a JSON object with `text`, posted to an address that is a
//! secret. Mattermost, Rocket.Chat and Discord (`…/slack`) take the same.

use std::fmt;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Url};
use serde_json::Value;

use crate::domain::secret::Secret;
use crate::domain::time::SECOND_MS;

/// For one message, from the connection to the answer.
const TIME: Duration = Duration::from_secs(10);

/// The message was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent;

/// The message was not taken. Never holds the address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("{detail}; it may be taken later")]
    Later { retry_after_ms: Option<i64>, detail: String },
    #[error("{detail}")]
    Refused { detail: String },
}

/// An address that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SlackError {
    #[error("the address for alerts is not an `https` URL (`http` is taken on this machine only)")]
    Address,
    #[error("the client for alerts cannot be set up")]
    Client(#[source] reqwest::Error),
}

/// Where messages go.
pub struct Slack {
    client: Client,
    /// Whoever knows it can post: never shown.
    address: Url,
}

impl fmt::Debug for Slack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[a webhook for alerts]")
    }
}

impl Slack {
    /// # Errors
    /// When the address is not one, or would send what it holds in the clear.
    pub fn new(address: &Secret) -> Result<Self, SlackError> {
        let address = Url::parse(address.expose()).map_err(|_| SlackError::Address)?;
        let host = address.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if address.scheme() != "https" && !(address.scheme() == "http" && local) {
            return Err(SlackError::Address);
        }
        // Fails only when somebody installed a provider before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(TIME);
        if local {
            builder = builder.no_proxy().tls_certs_only([]);
        }
        Ok(Self { client: builder.build().map_err(SlackError::Client)?, address })
    }

    /// Posts one message, once.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&self, message: &Value) -> Result<Sent, SendError> {
        let request = self.client.post(self.address.clone()).header(CONTENT_TYPE, "application/json");
        let answer = match request.body(message.to_string()).send().await {
            Ok(answer) => answer,
            Err(error) => {
                let detail = if error.is_timeout() { "no answer in time" } else { "no connection" };
                return Err(SendError::Later { retry_after_ms: None, detail: detail.to_owned() });
            }
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(Sent);
        }
        let detail = format!("answered {}", status.as_u16());
        if status.is_server_error() || status.as_u16() == 429 {
            let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<i64>().ok());
            let retry_after_ms = after.filter(|s| (0..86_400).contains(s)).map(|s| s * SECOND_MS);
            return Err(SendError::Later { retry_after_ms, detail });
        }
        Err(SendError::Refused { detail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_or_on_this_machine_and_never_shown() {
        for good in ["https://hooks.example/T/B/canary", "http://127.0.0.1:9/x", "http://[::1]:9/x"] {
            let slack = Slack::new(&Secret::new(good)).unwrap();
            assert!(!format!("{slack:?}").contains("canary"));
        }
        for bad in ["http://hooks.example/canary", "canary", "ftp://127.0.0.1/canary"] {
            let error = Slack::new(&Secret::new(bad)).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
        }
    }
}
