//! `cutover shim`: runs the duties of the soak in real time, and takes Nango's webhooks.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::apply::StateArgs;
use super::config::Config;
use super::plan::{Inputs, wall_clock};
use super::{CommandError, CommandResult, Ui};
use crate::clients::{Clock, HttpOutside};
use crate::domain::time::SECOND_MS;
use crate::engine::{Engine, EngineConfig};
use crate::exit;
use crate::shim::Shim;

/// The longest sleep between two looks: a webhook may have brought a read forward meanwhile.
const LOOK_EVERY_MS: i64 = 5 * SECOND_MS;

/// How long to wait before the duties are tried again after the state failed.
const RETRY: Duration = Duration::from_secs(5);

/// Keep tokens fresh and mirrored during the soak
///
/// Reads each connection at Nango inside the last 15 minutes of its token's life, journals what comes
/// back, and mirrors it to both KV namespaces and to Composio; watches for outages, foreign writes and
/// dead grants. Start it right after `cutover apply` and keep it running: from then on nobody else
/// refreshes. Takes Nango's webhooks at `POST /admin/sync/nango`; `GET /healthz` answers when it runs.
/// Ends on SIGTERM and Ctrl-C when the round at hand is done. One per state.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover shim
  cutover shim --listen 127.0.0.1:9000 --state sqlite:/var/lib/cutover/prod.db
  cutover -v --log-format json shim --policy plans/policy.toml")]
pub struct ShimArgs {
    /// Where to listen; put a TLS proxy in front of anything that is not loopback
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8787")]
    listen: SocketAddr,
    #[command(flatten)]
    state: StateArgs,
    /// Policy that the plan was made with
    #[arg(long, value_name = "FILE")]
    policy: Option<std::path::PathBuf>,
    /// Facts that are laid over the built-in catalogue
    #[arg(long, value_name = "FILE")]
    catalogue: Option<std::path::PathBuf>,
}

/// # Errors
/// Exit code 2 for bad input and missing settings, 7 when no plan is applied or another shim runs
/// on this state, 1 when it cannot listen.
pub fn run(args: ShimArgs, ui: &Ui) -> CommandResult {
    let inputs = Inputs { policy: args.policy, catalogue: args.catalogue, ..Inputs::default() };
    let (policy, catalogue) = (inputs.load_policy()?, inputs.load_catalogue()?);
    let config = Config::load(ui.config.as_deref())?;
    let (endpoints, nango_keys) = (config.endpoints()?, config.nango_webhook_keys()?);
    let not_applied = || {
        CommandError::new(exit::REFUSED, "no plan is applied in this state")
            .hint("run `cutover apply PLAN` first, or name its state as `--state`")
    };
    if !args.state.exists() {
        return Err(not_applied());
    }
    let clock: Clock = Arc::new(wall_clock);
    let outside = HttpOutside::new(endpoints, Arc::clone(&clock))
        .map_err(|error| CommandError::usage("cannot use the settings").because(&error))?;

    super::runtime()?.block_on(async {
        let store = args.state.open().await?;
        let broken = |error: &dyn std::error::Error| CommandError::failed("the state cannot be used").because(error);
        if store.load_meta("soaking").await.map_err(|e| broken(&e))?.is_none() {
            return Err(not_applied());
        }
        let engine = Engine::new(store, outside, catalogue, EngineConfig::new(policy)).await.map_err(|e| broken(&e))?;
        let engine = Arc::new(engine);
        let shim =
            Arc::new(Shim { engine: Mutex::new(Some(Arc::clone(&engine))), nango_keys, clock: Box::new(wall_clock) });
        let cannot_listen =
            |error: std::io::Error| CommandError::failed(format!("cannot listen on `{}`", args.listen)).because(&error);
        let listener = TcpListener::bind(args.listen).await.map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(cannot_listen)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_listen)?;
        if shim.nango_keys.is_empty() {
            ui.note("`CUTOVER_NANGO_WEBHOOK_KEY` is not set: webhooks are refused, polling finds everything");
        }
        ui.note(&format!("listening on http://{address}"));

        let server = tokio::spawn(axum::serve(listener, shim.router()).into_future());
        let mut stop = false;
        while !stop {
            let wait = round(&engine).await;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = terminate.recv() => stop = true,
                _ = interrupt.recv() => stop = true,
            }
        }
        server.abort();
        ui.note("stopped between two rounds; everything that was accepted is in the journal");
        Ok(exit::OK)
    })
}

/// One round of the duties, never cut short. Returns how long to wait for the next.
async fn round(engine: &Engine<HttpOutside>) -> Duration {
    let now = wall_clock();
    match engine.run_due(now).await {
        Ok(next) => {
            let next = next.unwrap_or(now.plus_ms(LOOK_EVERY_MS));
            let wait_ms = next.since(wall_clock()).clamp(0, LOOK_EVERY_MS);
            Duration::from_millis(wait_ms.unsigned_abs())
        }
        Err(error) => {
            tracing::error!("a round failed and is tried again: {error}");
            RETRY
        }
    }
}
