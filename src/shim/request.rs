//! What every request goes through: an id, a time limit, a log line, a count; and what handlers
//! need of it: its body, the proof that an operator sent it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};

use super::{Refusal, Shim};
use crate::domain::time::Timestamp;
use crate::ports::Outside;

/// Taken from the caller when it looks like an id, made otherwise, and sent back.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const REQUEST_ID_BYTES_MAX: usize = 64;

/// The key of the admin routes.
const ADMIN_KEY: HeaderName = HeaderName::from_static("x-admin-key");

/// Routes as they are counted; anything else counts as `other`.
const ROUTES: [&str; 13] = [
    "/admin/sync/nango",
    "/admin/sync/composio",
    "/admin/tokens/{tenant}/{provider}/{account}",
    "/admin/nango/connect",
    "/admin/nango/connections",
    "/admin/composio/connect",
    "/admin/composio/connections",
    "/admin/status",
    "/admin/soak",
    "/consent/{ticket}",
    "/healthz",
    "/readyz",
    "/metrics",
];

/// Makes request ids: when this process began, and a number.
pub(super) struct Ids {
    began: String,
    next: AtomicU64,
}

impl Ids {
    pub fn starting(now: Timestamp) -> Self {
        Self { began: format!("{:x}", now.millis()), next: AtomicU64::new(1) }
    }

    /// The caller's id when it is one, else a new one.
    fn of(&self, headers: &HeaderMap) -> HeaderValue {
        let usable = |value: &&HeaderValue| {
            let bytes = value.as_bytes();
            (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len())
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        if let Some(given) = headers.get(REQUEST_ID).filter(usable) {
            return given.clone();
        }
        let id = format!("{}-{:x}", self.began, self.next.fetch_add(1, Ordering::Relaxed));
        HeaderValue::from_str(&id).expect("hex digits and a hyphen are a header value")
    }
}

pub(super) async fn around<O: Outside>(State(shim): State<Arc<Shim<O>>>, request: Request, next: Next) -> Response {
    let began = shim.now();
    let id = shim.ids.of(request.headers());
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = matched.and_then(|path| ROUTES.into_iter().find(|route| *route == path)).unwrap_or("other");
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<u64>().ok());
    let arrived = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    let request = request.map(|body| Body::new(Watched { body, arrived: Arc::clone(&arrived) }));
    let answered = async {
        match announced {
            Some(bytes) if bytes > super::BODY_BYTES_MAX as u64 => too_large().into_response(),
            _ => next.run(request).await,
        }
    };
    let mut response = match tokio::time::timeout(shim.config.request_time, answered).await {
        Ok(response) => response,
        // We are slow, not they: custodies send again what is answered with 5xx, and nothing else.
        Err(_) if arrived.load(Ordering::Relaxed) => {
            Refusal::unavailable("it took too long; send it again").into_response()
        }
        Err(_) => {
            let mut response =
                Refusal::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took too long").into_response();
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    };
    let status = response.status();
    shim.metrics.answered(route, status.as_u16());
    let ms = shim.now().since(began);
    let shown = id.to_str().unwrap_or_default();
    if status.is_server_error() {
        tracing::warn!(request = shown, route, status = status.as_u16(), ms, "answered");
    } else {
        tracing::info!(request = shown, route, status = status.as_u16(), ms, "answered");
    }
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A body that tells when all of it is here.
struct Watched {
    body: Body,
    arrived: Arc<AtomicBool>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.arrived.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An operator, or a program of theirs: whoever sent this has an admin key. Checked before
/// anything else of the request is looked at, its body included.
pub(super) struct Admin;

impl<O: Outside> FromRequestParts<Arc<Shim<O>>> for Admin {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, shim: &Arc<Shim<O>>) -> Result<Self, Refusal> {
        let given = parts.headers.get(ADMIN_KEY).map(HeaderValue::as_bytes);
        match given {
            Some(given) if shim.config.admin_keys.admit(given) => Ok(Self),
            _ => Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", "`X-Admin-Key` is missing or wrong")),
        }
    }
}

/// The bytes of a body, exactly as they were sent.
///
/// # Errors
/// 413 above the limit, 415 for an encoded one, 400 when it ends early.
pub(super) fn body(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Bytes, Refusal> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        let message = "a body must not be encoded";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message));
    }
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => Refusal::bad("bad_body", "the body cannot be read"),
    })
}

fn too_large() -> Refusal {
    let message = format!("a body has at most {} bytes", super::BODY_BYTES_MAX);
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
}

/// The same, for a body that says that it is JSON.
///
/// # Errors
/// As [`body`], and 415 for any other `Content-Type`.
pub(super) fn json_body(headers: &HeaderMap, bytes: Result<Bytes, BytesRejection>) -> Result<Bytes, Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let message = "`Content-Type: application/json` is wanted";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_type", message));
    }
    body(headers, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_when_it_looks_like_one_and_made_otherwise() {
        let ids = Ids::starting(Timestamp::from_secs(1));
        let of = |given: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(given).unwrap());
            ids.of(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(of(b"trace-1.a_B"), "trace-1.a_B");
        assert_eq!(of(b""), "3e8-1");
        assert_eq!(of("x".repeat(65).as_bytes()), "3e8-2");
        assert_eq!(of(b"a b"), "3e8-3");
        assert_eq!(of(b"\xff"), "3e8-4");
        assert_eq!(ids.of(&HeaderMap::new()), "3e8-5");
    }
}
