//! Webhooks of both custodies. Nango's bring a read forward; Composio's tell of a lost grant.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::request::body;
use super::{Refusal, Shim};
use crate::domain::webhook::{
    BadWebhook, ComposioHeaders, LEGACY_SIGNATURE_HEADER, NangoSignatures, SIGNATURE_HEADER, verify, verify_composio,
};
use crate::ports::Outside;

/// What became of something that was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in the journal.
    Accepted,
    /// It was accepted before.
    Repeated,
    /// It is well made and of no use here.
    Ignored,
}

impl Outcome {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Repeated => "repeated",
            Self::Ignored => "ignored",
        }
    }
}

impl IntoResponse for Outcome {
    fn into_response(self) -> Response {
        let body = match self {
            Self::Accepted => r#"{"status":"accepted"}"#,
            Self::Repeated => r#"{"status":"repeated"}"#,
            Self::Ignored => r#"{"status":"ignored"}"#,
        };
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
    }
}

pub(super) async fn nango<O: Outside>(
    State(shim): State<Arc<Shim<O>>>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Outcome, Refusal> {
    let result = take_nango(&shim, &headers, bytes).await;
    count(&shim, "nango", &result);
    result
}

async fn take_nango<O: Outside>(
    shim: &Shim<O>,
    headers: &HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Outcome, Refusal> {
    let bytes = body(headers, bytes)?;
    let header = |name| headers.get(name).map(HeaderValue::as_bytes);
    let signatures = NangoSignatures {
        hmac: header(SIGNATURE_HEADER),
        legacy: header(LEGACY_SIGNATURE_HEADER).filter(|_| shim.config.nango_legacy_signature),
    };
    let webhook = verify(&shim.config.nango_keys, signatures, &bytes).map_err(refuse)?;
    if webhook.kind != "auth" {
        return Ok(Outcome::Ignored);
    }
    let (engine, now) = (shim.ready_engine()?, shim.now());
    engine.accept_hint(&webhook, now).await.map_err(|e| Refusal::of_engine(&e, "taking a webhook"))?;
    shim.metrics.committed(shim.now().since(now));
    Ok(Outcome::Accepted)
}

pub(super) async fn composio<O: Outside>(
    State(shim): State<Arc<Shim<O>>>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Outcome, Refusal> {
    let result = take_composio(&shim, &headers, bytes).await;
    count(&shim, "composio", &result);
    result
}

async fn take_composio<O: Outside>(
    shim: &Shim<O>,
    headers: &HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Outcome, Refusal> {
    let bytes = body(headers, bytes)?;
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let signed = ComposioHeaders {
        id: text("webhook-id"),
        timestamp: text("webhook-timestamp"),
        signature: text("webhook-signature"),
    };
    let now = shim.now();
    let webhook = verify_composio(&shim.config.composio_keys, signed, &bytes, now).map_err(refuse)?;
    let Some(account) = webhook.expired_account() else { return Ok(Outcome::Ignored) };
    let engine = shim.ready_engine()?;
    let new = engine.account_expired(&webhook.id, account, now).await;
    let new = new.map_err(|e| Refusal::of_engine(&e, "taking a webhook"))?;
    shim.metrics.committed(shim.now().since(now));
    Ok(if new { Outcome::Accepted } else { Outcome::Repeated })
}

fn refuse(bad: BadWebhook) -> Refusal {
    match bad {
        BadWebhook::Signature => Refusal::new(StatusCode::UNAUTHORIZED, "bad_signature", "no key fits the signature"),
        BadWebhook::Time => {
            Refusal::new(StatusCode::UNAUTHORIZED, "bad_time", "the signed time is more than 300 s from ours")
        }
        BadWebhook::Body => Refusal::bad("bad_body", "the signed bytes are not a webhook"),
    }
}

pub(super) fn count<O: Outside>(shim: &Shim<O>, source: &'static str, result: &Result<Outcome, Refusal>) {
    shim.metrics.took(source, result.as_ref().map_or_else(|refusal| refusal.code, |outcome| outcome.name()));
}
