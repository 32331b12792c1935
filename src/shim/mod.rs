//! The HTTP face of the engine: what the two custodies and the gateway tell us, what an operator
//! asks, and what a monitor reads. `docs/shim.md` has every route with its answers.
//!
//! Whatever is accepted is in the journal before it is answered with 2xx. A webhook carries no
//! token, so all that one can do is bring a read forward: the poller finds everything without them.

mod answer;
mod connect;
mod consent;
mod gather;
mod keys;
mod metrics;
mod observe;
mod request;
mod serve;
mod strict;
mod tokens;
mod webhooks;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use tokio::sync::Mutex;

use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::engine::Engine;
use crate::ports::Outside;
use crate::status::Snapshot;

pub use answer::Refusal;
pub use gather::Gather;
pub use keys::{AdminKeys, NotAHash, hash_of, weakness};
pub use metrics::Metrics;
pub use serve::{Limits, TlsError, serve, tls};

/// The largest body that is read, in bytes. A webhook has about 500, a token entry at most a few
/// thousand; Nango's error descriptions may quote a provider's reply.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// For a whole request, its body included. Nango waits 20 s for an answer.
const REQUEST_TIME: Duration = Duration::from_secs(15);

/// Who may ask what.
#[derive(Clone, Debug)]
pub struct ShimConfig {
    /// Webhook signing keys of Nango: the current one, and the old one during a rotation.
    pub nango_keys: Vec<Secret>,
    /// Take Nango's legacy signature where there is no other.
    pub nango_legacy_signature: bool,
    /// Secrets of Composio's webhook subscription, as above.
    pub composio_keys: Vec<Secret>,
    pub admin_keys: AdminKeys,
    /// For a whole request, its body included.
    pub request_time: Duration,
}

impl Default for ShimConfig {
    /// Keys for nothing: every route that wants one refuses.
    fn default() -> Self {
        Self {
            nango_keys: Vec::new(),
            nango_legacy_signature: false,
            composio_keys: Vec::new(),
            admin_keys: AdminKeys::default(),
            request_time: REQUEST_TIME,
        }
    }
}

impl ShimConfig {
    /// The first reason not to guard an address with these keys that others can reach.
    pub fn weakness(&self) -> Option<String> {
        let of = |name: &str, keys: &[Secret]| {
            let weak = keys.iter().find_map(weakness)?;
            Some(format!("a webhook key of {name} is weak: {weak}"))
        };
        of("Nango", &self.nango_keys).or_else(|| of("Composio", &self.composio_keys)).or_else(|| {
            let known = self.admin_keys.hold_a_known_key();
            known.then(|| "an admin key is weak: everybody knows it".to_owned())
        })
    }
}

/// What the routes need. The engine may be absent for a moment (it restarts): what comes in then
/// is answered 503, which both custodies retry.
pub struct Shim<O> {
    config: ShimConfig,
    clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
    engine: RwLock<Option<Arc<Engine<O>>>>,
    metrics: Metrics,
    ids: request::Ids,
    /// The last snapshot: many readers in one second share it.
    snapshot: Mutex<Option<Arc<Snapshot>>>,
    /// When the journal last took what it was given to see whether it does.
    ready_at: Mutex<Option<Timestamp>>,
    links: consent::Links,
}

impl<O: Outside> Shim<O> {
    pub fn new(config: ShimConfig, clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let ids = request::Ids::starting(clock());
        Self {
            config,
            clock: Box::new(clock),
            engine: RwLock::new(None),
            metrics: Metrics::default(),
            ids,
            snapshot: Mutex::new(None),
            ready_at: Mutex::new(None),
            links: consent::Links::default(),
        }
    }

    /// The engine that takes what comes in from now on.
    pub fn set_engine(&self, engine: Option<Arc<Engine<O>>>) {
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = engine;
    }

    pub fn engine(&self) -> Option<Arc<Engine<O>>> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    fn ready_engine(&self) -> Result<Arc<Engine<O>>, Refusal> {
        self.engine().ok_or_else(|| Refusal::unavailable("the engine restarts; send it again"))
    }

    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/admin/sync/nango", post(webhooks::nango::<O>))
            .route("/admin/sync/composio", post(webhooks::composio::<O>))
            .route("/admin/tokens/{tenant}/{provider}/{account}", put(tokens::put::<O>))
            .route("/admin/nango/connect", post(connect::nango_connect::<O>))
            .route("/admin/nango/connections", get(connect::nango_connections::<O>))
            .route("/admin/composio/connect", post(connect::composio_connect::<O>))
            .route("/admin/composio/connections", get(connect::composio_connections::<O>))
            .route("/admin/status", get(observe::status::<O>))
            .route("/admin/soak", get(observe::soak::<O>))
            .route("/consent/{ticket}", get(consent::page::<O>).post(consent::start::<O>))
            .route("/healthz", get(observe::healthz))
            .route("/readyz", get(observe::readyz::<O>))
            .route("/metrics", get(observe::metrics::<O>))
            .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is no such route"))
            .method_not_allowed_fallback(async || {
                let message = "this route takes another method";
                Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
            })
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(axum::middleware::from_fn_with_state(Arc::clone(&self), request::around::<O>))
            .with_state(self)
    }
}
