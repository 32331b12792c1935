//! The sandbox on real sockets: one loopback listener per system over one shared world.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::ports::Api;

use super::http::{Call, Reply};
use super::live::LiveClock;
use super::workerd::{AlarmCounts, Relay, RuntimeUrls, Workerd, WorkerdError};
use super::world::{Answer, World};

/// Cloudflare takes 100 MB in one bulk put; nothing else comes close.
const BODY_BYTES_MAX: usize = 100 * 1_024 * 1_024;

/// Where the five systems listen, as `http://127.0.0.1:port` without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxUrls {
    pub nango: String,
    pub composio: String,
    pub cloudflare: String,
    pub gateway: String,
    pub provider: String,
}

/// Raised when the fault plan kills the client. Clones share one state.
#[derive(Clone, Debug)]
pub struct CrashSignal(watch::Sender<bool>);

impl CrashSignal {
    fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    fn raise(&self) {
        self.0.send_replace(true);
    }

    /// Waits until the client has to die. Returns at once while the signal is up.
    pub async fn crashed(&self) {
        // Waiting can only fail when every sender is gone, and `self` is one.
        let _still_open = self.0.subscribe().wait_for(|up| *up).await.is_ok();
    }

    /// Whether the signal is up.
    pub fn is_up(&self) -> bool {
        *self.0.borrow()
    }

    /// Takes the signal down, once the client has started again.
    pub fn reset(&self) {
        self.0.send_replace(false);
    }
}

/// A running sandbox.
#[derive(Debug)]
pub struct Sandbox {
    pub world: Arc<Mutex<World>>,
    pub urls: SandboxUrls,
    pub crash: CrashSignal,
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<io::Result<()>>>,
    /// Behind the gateway's and Cloudflare's addresses; empty where the world emulates both.
    pub(super) relay: Arc<OnceLock<Relay>>,
}

#[derive(Clone)]
struct Shared {
    api: Api,
    world: Arc<Mutex<World>>,
    relay: Arc<OnceLock<Relay>>,
    crash: CrashSignal,
    stop: watch::Receiver<bool>,
}

impl Sandbox {
    /// Starts five listeners on free loopback ports.
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub async fn start(world: World) -> io::Result<Self> {
        let world = Arc::new(Mutex::new(world));
        let relay = Arc::new(OnceLock::new());
        let crash = CrashSignal::new();
        let stop = watch::Sender::new(false);
        let mut servers = Vec::new();
        let mut urls = Vec::new();
        for api in Api::ALL {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            urls.push(format!("http://{}", listener.local_addr()?));
            let shared = Shared {
                api,
                world: Arc::clone(&world),
                relay: Arc::clone(&relay),
                crash: crash.clone(),
                stop: stop.subscribe(),
            };
            let mut stopped = stop.subscribe();
            let app = Router::new().fallback(answer).with_state(shared);
            servers.push(tokio::spawn(async move {
                let until_stopped = async move {
                    let _still_open = stopped.wait_for(|stop| *stop).await.is_ok();
                };
                axum::serve(listener, app).with_graceful_shutdown(until_stopped).await
            }));
        }
        let mut urls = urls.into_iter();
        let mut next = || urls.next().expect("one URL was pushed per API");
        // In the order of `Api::ALL`.
        let urls =
            SandboxUrls { nango: next(), composio: next(), cloudflare: next(), gateway: next(), provider: next() };
        Ok(Self { world, urls, crash, stop, servers, relay })
    }

    /// Starts the five listeners with the gateway and Cloudflare on the Workers runtime. The world
    /// must have been made for it ([`super::GatewayKind::Workerd`]) and must follow `clock`, as
    /// [`Sandbox::run_live`] makes it do.
    ///
    /// # Errors
    /// When a port cannot be bound or the runtime does not start.
    pub async fn start_on_workerd(world: World, workerd: &Workerd, clock: &LiveClock) -> Result<Self, WorkerdError> {
        let sandbox = Self::start(world).await.map_err(WorkerdError::Spawn)?;
        let relay = Relay::start(workerd, &sandbox.world, &sandbox.urls, clock).await?;
        let first = sandbox.relay.set(relay).is_ok();
        debug_assert!(first, "a sandbox has one gateway");
        Ok(sandbox)
    }

    /// Brings the books up to now, before they are read for the last time, and counts the alarms
    /// that fired. `None` where the gateway is emulated.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub async fn close_books(&self) -> Result<Option<AlarmCounts>, WorkerdError> {
        let Some(relay) = self.relay.get() else { return Ok(None) };
        relay.look(&self.world).await?;
        relay.count_alarms().await.map(Some)
    }

    /// The runtime's own addresses, past the relay and the books; `None` where the gateway is emulated.
    pub fn runtime_urls(&self) -> Option<RuntimeUrls> {
        self.relay.get().map(Relay::urls)
    }

    /// The world, locked. A panic in a handler does not take the ledger with it.
    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the listeners and waits for the requests under way.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for server in self.servers {
            // A server that failed has nothing left to stop.
            let _ended = server.await.is_ok();
        }
    }
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let call = match read(request).await {
        Ok(call) => call,
        Err(reply) => return write(reply),
    };
    let relay = shared.relay.get().filter(|_| matches!(shared.api, Api::Gateway | Api::Cloudflare));
    let emulated = {
        let mut world = shared.world.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.api == Api::Gateway
            && let Some(reply) = super::live::control(&mut world, &call)
        {
            return write(reply);
        }
        relay.is_none().then(|| world.answer(shared.api, &call))
    };
    let outcome = match relay {
        Some(relay) => relay.answer(&shared.world, shared.api, &call).await,
        None => emulated.expect("without a relay the world answers"),
    };
    match outcome {
        Answer::Reply(reply) => write(reply),
        Answer::Crash => {
            shared.crash.raise();
            never(shared.stop).await
        }
    }
}

/// The client is dead: its request hangs until the sandbox stops.
async fn never(mut stop: watch::Receiver<bool>) -> Response {
    let _still_open = stop.wait_for(|stop| *stop).await.is_ok();
    write(Reply::raw(503, "text/plain", ""))
}

fn read(request: Request) -> impl Future<Output = Result<Call, Reply>> {
    let (parts, body) = request.into_parts();
    async move {
        let target = parts.uri.path_and_query().map_or("/", |t| t.as_str());
        let mut call = Call::new(parts.method.as_str(), target);
        for (name, value) in &parts.headers {
            call = call.with_header(name.as_str(), &String::from_utf8_lossy(value.as_bytes()));
        }
        call.body = to_bytes(body, BODY_BYTES_MAX)
            .await
            .map_err(|_| Reply::raw(413, "text/plain; charset=utf-8", "the body is too large or was cut off"))?
            .to_vec();
        Ok(call)
    }
}

fn write(reply: Reply) -> Response {
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in reply.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
}
