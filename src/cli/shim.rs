//! `cutover shim`: runs the duties of the soak in real time, and serves the routes around them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};

use super::apply::StateArgs;
use super::config::Config;
use super::harden::harden;
use super::plan::{Inputs, wall_clock};
use super::{CommandError, CommandResult, Ui};
use crate::alert::Alerts;
use crate::clients::{Clock, HttpOutside};
use crate::domain::duration::Millis;
use crate::domain::secret::{Secret, hex};
use crate::domain::time::{HOUR_MS, SECOND_MS, Timestamp, parse_duration_ms};
use crate::engine::{Engine, EngineConfig, Lane};
use crate::exit;
use crate::shim::{Gather, Limits, Shim, ShimConfig, hash_of, serve, tls};

/// The longest sleep between two looks of a lane: another process may have changed the state.
const LOOK_EVERY_MS: i64 = 5 * SECOND_MS;

/// How long to wait before a lane is tried again after the state failed.
const RETRY: Duration = Duration::from_secs(5);

/// For delivering what is pending when the shim is told to stop.
const FINISH: Duration = Duration::from_secs(10);

/// The shortest sleep between two looks of a lane.
const LOOK_AFTER_MS: i64 = 50;

/// Requests to one sink that may be under way at once.
const SINK_PARALLEL: usize = 8;

/// Keep tokens fresh and mirrored during the soak
///
/// Reads each connection at Nango inside the last 15 minutes of its token's life, journals what comes
/// back, and mirrors it to both KV namespaces and to Composio; watches for outages, foreign writes and
/// dead grants. Start it right after `cutover apply` and keep it running: from then on nobody else
/// refreshes. Takes webhooks of both custodies and tokens that the gateway reports; docs/shim.md has
/// every route. Ends on SIGTERM and Ctrl-C when requests and rounds at hand are done and what is pending
/// is delivered. One per state.
///
/// Refuses to listen where others can reach it (exit code 7) while a key is weak.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover shim
  cutover shim --new-admin-key
  cutover shim --listen 127.0.0.1:9000 --state sqlite:/var/lib/cutover/prod.db
  cutover shim --listen 0.0.0.0:8443 --tls-cert chain.pem --tls-key key.pem
  cutover -v --log-format json shim --policy plans/policy.toml")]
pub struct ShimArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8787")]
    listen: SocketAddr,
    /// Certificate chain (PEM): serve HTTPS; without it put a proxy in front of anything that is not loopback
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Print a new key for the admin routes and its hash for the configuration, and do nothing else
    #[arg(long)]
    new_admin_key: bool,
    /// How long what this process took up stays its own after it died: longer than a request under way
    /// can take to arrive
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = claim)]
    claim: Millis,
    #[command(flatten)]
    state: StateArgs,
    /// Policy that the plan was made with
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Facts that are laid over the built-in catalogue
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
}

fn claim(text: &str) -> Result<Millis, String> {
    let ms = parse_duration_ms(text).ok().filter(|ms| (SECOND_MS..=HOUR_MS).contains(ms));
    ms.map(Millis).ok_or_else(|| "a time from 1s to 1h is wanted".to_owned())
}

/// # Errors
/// Exit code 2 for bad input and missing settings, 7 when no plan is applied, another shim runs on
/// this state or a key is weak, 1 when it cannot listen or a part of it ended by itself.
pub fn run(args: ShimArgs, ui: &Ui) -> CommandResult {
    if args.new_admin_key {
        return new_admin_key(ui);
    }
    let inputs = Inputs { policy: args.policy, catalogue: args.catalogue, ..Inputs::default() };
    let (policy, catalogue) = (inputs.load_policy()?, inputs.load_catalogue()?);
    let config = Config::load(ui.config.as_deref())?;
    let (endpoints, routes, alerts) = (config.endpoints()?, config.shim()?, config.alerts()?);
    refuse_weak(&args.listen, &routes)?;
    let acceptor = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(tls(certificate, key).map_err(|error| CommandError::usage("TLS cannot be used").because(&error))?)
        }
        _ => None,
    };
    let not_applied = || {
        CommandError::new(exit::REFUSED, "no plan is applied in this state")
            .hint("run `cutover apply PLAN` first, or name its state as `--state`")
    };
    if !args.state.exists() {
        return Err(not_applied());
    }
    // Real time from here on, also when it was told to start at another time.
    let ahead_ms = inputs.now()?.since(wall_clock());
    let clock: Clock = Arc::new(move || wall_clock().plus_ms(ahead_ms));
    let outside = HttpOutside::new(endpoints, Arc::clone(&clock))
        .map_err(|error| CommandError::usage("cannot use the settings").because(&error))?;
    let cannot_listen =
        |error: std::io::Error| CommandError::failed(format!("cannot listen on `{}`", args.listen)).because(&error);
    // Only this may need a capability, which is gone afterwards.
    let privileged = is_privileged(&args.listen).then(|| TcpListener::bind(args.listen)).transpose();
    let privileged = privileged.map_err(cannot_listen)?;
    harden();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::failed("cannot start the runtime").because(&error))?;
    runtime.block_on(async {
        let store = args.state.open().await?;
        let broken = |error: &dyn std::error::Error| CommandError::failed("the state cannot be used").because(error);
        if store.load_meta("soaking").await.map_err(|e| broken(&e))?.is_none() {
            return Err(not_applied());
        }
        let engine_config =
            EngineConfig { sink_parallel: SINK_PARALLEL, claim_ms: args.claim.0, ..EngineConfig::new(policy) };
        let engine = Engine::new(store, outside, catalogue, engine_config).await.map_err(|e| broken(&e))?;
        let engine = Arc::new(engine);
        let bound = privileged.map_or_else(|| TcpListener::bind(args.listen), Ok);
        let (listener, address) = bound.and_then(listen).map_err(cannot_listen)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(cannot_listen)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_listen)?;
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        ui.note(&format!("listening on {scheme}://{address}"));
        hint_about_keys(&routes, ui);

        let now = Arc::clone(&clock);
        let shim = Arc::new(Shim::new(routes, move || now()));
        shim.set_engine(Some(Arc::clone(&engine)));
        let (stop, stopped) = watch::channel(false);
        let captured = Arc::new(Notify::new());
        let mut duties = Duties::default();
        for lane in Lane::ALL {
            let (engine, clock, captured) = (Arc::clone(&engine), Arc::clone(&clock), Arc::clone(&captured));
            duties.start(lane.name(), run_lane(engine, clock, lane, captured, stopped.clone()));
        }
        duties.start("alerts", run_alerts(Arc::clone(&engine), Arc::clone(&clock), alerts, stopped.clone()));
        let mut until = stopped.clone();
        let stopping = async move { drop(until.wait_for(|stop| *stop).await) };
        let router = Arc::clone(&shim).router();
        let mut server = tokio::spawn(serve(listener, router, acceptor, Limits::default(), stopping));
        let mut ended = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            ended = duties.next() => ended.map(|(name, why)| gone(&format!("lane `{name}`"), why)),
            result = &mut server => Some(gone("the listener", result.err())),
            () = engine.store().intake_ended() => Some(gone("the writer of the intake log", None)),
        };
        // Only this side ends the channel, and it is still here.
        let _ = stop.send(true);
        let drained = server.is_finished() || server.await.unwrap_or(false);
        while let Some((name, why)) = duties.next().await {
            if why.is_some() {
                ended = ended.or_else(|| Some(gone(&format!("lane `{name}`"), why)));
            }
        }
        if !drained {
            ui.note("some requests took too long and were cut off; nothing that was accepted is lost");
        }
        if ended.is_none() {
            match tokio::time::timeout(FINISH, engine.finish(clock())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!("what is pending waits for the next start: {error}"),
                Err(_) => tracing::warn!("what is pending took too long and waits until its claims are over"),
            }
        }
        shim.set_engine(None);
        drop(shim);
        // Leases are given back, so that another machine takes over at once.
        if let Some(engine) = Arc::into_inner(engine) {
            engine.into_store().close().await.map_err(|error| broken(&error))?;
        }
        match ended {
            Some(error) => Err(error),
            None => {
                ui.note("stopped between two rounds; everything that was accepted is in the journal");
                Ok(exit::OK)
            }
        }
    })
}

/// The tasks of the lanes, by name.
#[derive(Default)]
struct Duties {
    tasks: JoinSet<()>,
    names: BTreeMap<tokio::task::Id, &'static str>,
}

impl Duties {
    fn start(&mut self, name: &'static str, duty: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(duty);
        self.names.insert(task.id(), name);
    }

    /// Waits for the next one to end. `None` when there is none any more.
    async fn next(&mut self) -> Option<(&'static str, Option<JoinError>)> {
        let (id, why) = match self.tasks.join_next_with_id().await? {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error)),
        };
        Some((self.names.get(&id).copied().unwrap_or_default(), why))
    }
}

/// A part of the shim ended by itself. The others could go on and look healthy; a service manager
/// that starts everything anew is better.
fn gone(part: &str, why: Option<JoinError>) -> CommandError {
    let error = CommandError::failed(format!("{part} ended by itself, so the shim does too"))
        .hint("start it again: what was accepted is in the journal; report what the log says");
    match why {
        Some(why) => error.because(&why),
        None => error,
    }
}

fn new_admin_key(ui: &Ui) -> CommandResult {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| CommandError::failed("the system gave no randomness").because(&error))?;
    let key = Secret::new(hex(&bytes));
    ui.print(&format!("key   {}\nhash  {}\n", key.expose(), hash_of(&key)));
    ui.note(
        "give the key to whoever calls the admin routes (`X-Admin-Key`), and the hash to `CUTOVER_SHIM_ADMIN_KEYS`",
    );
    Ok(exit::OK)
}

fn refuse_weak(listen: &SocketAddr, routes: &ShimConfig) -> Result<(), CommandError> {
    if listen.ip().is_loopback() {
        return Ok(());
    }
    match routes.weakness() {
        None => Ok(()),
        Some(why) => Err(CommandError::new(exit::REFUSED, format!("`{listen}` can be reached by others, and {why}"))
            .hint("set a random key of 32 bytes (`cutover shim --new-admin-key` makes one), or listen on 127.0.0.1")),
    }
}

/// Whether binding this port can take a capability.
fn is_privileged(listen: &SocketAddr) -> bool {
    (1..1024).contains(&listen.port())
}

fn listen(listener: TcpListener) -> std::io::Result<(tokio::net::TcpListener, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((tokio::net::TcpListener::from_std(listener)?, address))
}

fn hint_about_keys(routes: &ShimConfig, ui: &Ui) {
    if routes.nango_keys.is_empty() {
        ui.note("`CUTOVER_NANGO_WEBHOOK_KEY` is not set: webhooks are refused, polling finds everything");
    }
    if routes.admin_keys.is_empty() {
        ui.note("`CUTOVER_SHIM_ADMIN_KEYS` is not set: the admin routes are refused");
    }
}

/// Rounds of one lane, none of them ever cut short.
async fn run_lane(
    engine: Arc<Engine<HttpOutside>>,
    clock: Clock,
    lane: Lane,
    captured: Arc<Notify>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut gather = Gather::new();
    while !*stopped.borrow() {
        // From here on nothing that comes in is missed.
        let mut work = std::pin::pin!(captured.notified());
        work.as_mut().enable();
        let wait = match engine.run_lane(lane, clock()).await {
            Ok(next) => until(next, clock()),
            Err(error) => {
                tracing::error!(lane = lane.name(), "a round failed and is tried again: {error}");
                RETRY
            }
        };
        match lane {
            Lane::Reads => {
                captured.notify_waiters();
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = gather.round(engine.store()) => {}
                    _ = stopped.changed() => {}
                }
            }
            Lane::Sink(_) | Lane::Watch => tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = work, if lane != Lane::Watch => {}
                _ = stopped.changed() => {}
            },
        }
    }
}

async fn run_alerts(
    engine: Arc<Engine<HttpOutside>>,
    clock: Clock,
    alerts: Alerts,
    mut stopped: watch::Receiver<bool>,
) {
    while !*stopped.borrow() {
        let wait = match alerts.run_due(engine.store(), clock()).await {
            Ok(next) => until(Some(next), clock()),
            Err(error) => {
                tracing::error!("alerts failed and are tried again: {error}");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stopped.changed() => {}
        }
    }
}

/// How long to wait for `next`, at most until the next look. What is still due now was put off for
/// a reason that only time mends.
fn until(next: Option<Timestamp>, now: Timestamp) -> Duration {
    let ms = next.map_or(LOOK_EVERY_MS, |at| at.since(now)).clamp(LOOK_AFTER_MS, LOOK_EVERY_MS);
    Duration::from_millis(ms.unsigned_abs())
}
