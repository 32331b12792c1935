//! The HTTP face of the engine: where Nango's webhooks come in.
//!
//! A webhook never carries a token and none is sent for an ordinary refresh, so all that one can
//! do here is bring a read forward. The poller finds everything without them.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};

use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::domain::webhook::{BadWebhook, SIGNATURE_HEADER, verify};
use crate::engine::Engine;
use crate::ports::Outside;

/// Nango's auth webhooks are about 500 bytes; the error description may hold a provider's reply.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// What the routes need. The engine may be absent for a moment (it restarts); webhooks are
/// answered 503 then, which Nango retries.
pub struct Shim<O> {
    pub engine: Mutex<Option<Arc<Engine<O>>>>,
    /// Webhook signing keys: the current one, and the old one during a rotation.
    pub nango_keys: Vec<Secret>,
    pub clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
}

impl<O: Outside> Shim<O> {
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/admin/sync/nango", post(sync_nango::<O>))
            .route("/healthz", get(|| async { "ok" }))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self)
    }

    fn engine(&self) -> Option<Arc<Engine<O>>> {
        self.engine.lock().expect("no panic happens while this lock is held").clone()
    }
}

async fn sync_nango<O: Outside>(
    State(shim): State<Arc<Shim<O>>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, &'static str) {
    let webhook = match verify(&shim.nango_keys, headers.get(SIGNATURE_HEADER).map(|v| v.as_bytes()), &body) {
        Ok(webhook) => webhook,
        Err(BadWebhook::Signature) => return (StatusCode::UNAUTHORIZED, "bad signature"),
        Err(BadWebhook::Body) => return (StatusCode::BAD_REQUEST, "bad body"),
    };
    let Some(engine) = shim.engine() else { return (StatusCode::SERVICE_UNAVAILABLE, "restarting") };
    match engine.hint(&webhook, (shim.clock)()).await {
        Ok(()) => (StatusCode::OK, "ok"),
        Err(error) => {
            tracing::error!("a webhook could not be recorded: {error}");
            (StatusCode::SERVICE_UNAVAILABLE, "not recorded")
        }
    }
}
