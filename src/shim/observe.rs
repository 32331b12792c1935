//! What monitors and operators read.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::request::Admin;
use super::{Refusal, Shim};
use crate::domain::time::SECOND_MS;
use crate::ports::Outside;
use crate::status::Snapshot;

/// What was looked at less than this ago is not looked at again.
const FRESH_MS: i64 = SECOND_MS;

/// How long a commit may take before the shim counts as not ready.
const COMMIT_TIME: Duration = Duration::from_secs(2);

/// The type that Prometheus asks for.
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// The process runs.
pub(super) async fn healthz() -> &'static str {
    "ok"
}

/// Something would be accepted.
pub(super) async fn readyz<O: Outside>(State(shim): State<Arc<Shim<O>>>) -> Result<&'static str, Refusal> {
    let engine = shim.ready_engine()?;
    if shim.is_ready(&engine).await { Ok("ready") } else { Err(Refusal::unavailable("the journal cannot commit")) }
}

pub(super) async fn metrics<O: Outside>(State(shim): State<Arc<Shim<O>>>) -> Response {
    let snapshot = shim.snapshot().await.ok();
    ([(header::CONTENT_TYPE, OPEN_METRICS)], shim.metrics().text(snapshot.as_deref())).into_response()
}

pub(super) async fn status<O: Outside>(
    State(shim): State<Arc<Shim<O>>>,
    _: Admin,
) -> Result<Json<serde_json::Value>, Refusal> {
    Ok(Json(json!(*shim.snapshot().await?)))
}

/// What `cutover soak --shim` draws.
pub(super) async fn soak<O: Outside>(
    State(shim): State<Arc<Shim<O>>>,
    _: Admin,
) -> Result<Json<crate::soak::picture::Picture>, Refusal> {
    let snapshot = shim.snapshot().await?;
    let engine = shim.ready_engine()?;
    let looked = crate::soak::look(engine.store(), &engine.config().policy, &snapshot, snapshot.header.at).await;
    looked.map(Json).map_err(|error| Refusal::of_engine(&error, "looking at the soak"))
}

impl<O: Outside> Shim<O> {
    /// Whether something would be accepted: tried once for all who ask within [`FRESH_MS`]. That it would
    /// not is never remembered.
    async fn is_ready(&self, engine: &crate::engine::Engine<O>) -> bool {
        let mut ready_at = self.ready_at.lock().await;
        let now = self.now();
        if ready_at.is_some_and(|at| now.since(at) < FRESH_MS) {
            return true;
        }
        let probe = tokio::time::timeout(COMMIT_TIME, engine.store().probe_intake(now)).await;
        *ready_at = matches!(probe, Ok(Ok(()))).then_some(now);
        ready_at.is_some()
    }

    /// The state of everything, at most [`FRESH_MS`] old.
    async fn snapshot(&self) -> Result<Arc<Snapshot>, Refusal> {
        let mut last = self.snapshot.lock().await;
        let now = self.now();
        if let Some(snapshot) = last.as_ref().filter(|snapshot| now.since(snapshot.header.at) < FRESH_MS) {
            return Ok(Arc::clone(snapshot));
        }
        let engine = self.ready_engine()?;
        let ready = self.is_ready(&engine).await;
        let looked = tokio::time::timeout(COMMIT_TIME, engine.snapshot(now)).await;
        let mut snapshot = match looked {
            Ok(Ok(snapshot)) => snapshot,
            Ok(Err(error)) => return Err(Refusal::of_engine(&error, "looking at the state")),
            Err(_) => return Err(Refusal::unavailable("the state does not answer")),
        };
        snapshot.header.ready = ready;
        let snapshot = Arc::new(snapshot);
        *last = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }
}
