//! `cutover sandbox`: the emulated outside world, live on loopback.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::gateway::{self, Gateway};
use super::plan::Inputs;
use super::plan::wall_clock;
use super::rehearse::{fault, inventory_or_adr_038, tenant};
use super::{CommandError, CommandResult, Ui};
use crate::catalogue::Catalogue;
use crate::domain::time::DAY_MS;
use crate::domain::triplet::Part;
use crate::exit;
use crate::plan::{self, Policy};
use crate::sandbox::{
    Fault, GatewayKind, LiveClock, Sandbox, SandboxUrls, TokenLife, World, WorldConfig, WorldOptions,
};

/// Faults that are placed in time strike within the first day of the world.
const FAULT_WINDOW_MS: i64 = DAY_MS;

/// Serve emulated Nango, Composio, Cloudflare, gateway and providers on loopback
///
/// Five addresses over one world that begins now: users, grants and connections as the inventory says,
/// tokens in KV, TokenManager alarms armed, the target empty. Serves until Ctrl-C and keeps nothing.
/// What really happened in it is at `/_sandbox/ledger` of the gateway's address.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover sandbox
  cutover sandbox --print-env > sandbox.env    # then, elsewhere: source sandbox.env
  cutover sandbox --inventory prod.csv --faults kv-lag,composio-429=20%
  cutover sandbox --speed 60                   # an hour of the world each minute
  cutover sandbox --gateway workerd            # a Worker on the real Workers runtime")]
pub struct SandboxArgs {
    /// Seed of everything random, keys included
    #[arg(long, default_value_t = 38, value_name = "N")]
    seed: u64,
    /// Inventory to seed the world with, `-` for standard input [default: ADR-038's]
    #[arg(long, value_name = "FILE")]
    inventory: Vec<String>,
    /// Tenant of an inventory without a tenant column (can be repeated)
    #[arg(long, value_name = "NAME", value_parser = tenant)]
    tenant: Vec<Part>,
    /// Faults to inject within the first day of the world, as for `cutover rehearse`
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = fault)]
    faults: Vec<Fault>,
    /// Seconds of the world in each real one; a client that lives in real time needs 1
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = speed)]
    speed: f64,
    /// Who plays the gateway and Cloudflare's KV, D1 and alarms
    #[arg(long, value_enum, default_value = "emulated", value_name = "KIND")]
    gateway: Gateway,
    /// First print `export` lines that point a client at the sandbox
    #[arg(long)]
    print_env: bool,
    /// Where Nango's webhooks go; without it Nango sends none
    #[arg(long, value_name = "URL", value_parser = shim_url)]
    shim_url: Option<String>,
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed| (0.0..=100_000.0).contains(speed));
    speed.ok_or_else(|| "a number from 0 (the world stands still) to 100000 is wanted".to_owned())
}

fn shim_url(text: &str) -> Result<String, String> {
    match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(text.to_owned()),
        _ => Err("an http or https address is wanted".to_owned()),
    }
}

/// # Errors
/// Exit code 2 for bad input, 1 when loopback cannot be listened on.
pub fn run(args: SandboxArgs, ui: &Ui) -> CommandResult {
    if args.faults.iter().any(|fault| matches!(fault, Fault::Crash { .. })) {
        return Err(CommandError::usage("fault `crash` kills the engine, and the sandbox runs none")
            .hint("use it with `cutover rehearse`"));
    }
    if args.gateway == Gateway::Workerd && args.speed == 0.0 {
        return Err(CommandError::usage("the Workers runtime cannot stand still")
            .hint("leave `--speed 0` or `--gateway workerd` out"));
    }
    let inputs = Inputs { inventory: args.inventory, tenants: args.tenant, ..Inputs::default() };
    let inventory = inventory_or_adr_038(&inputs, ui)?;
    let workerd = args.gateway.prepare(&args.faults, ui)?;
    let (catalogue, now) = (Catalogue::built_in(), wall_clock());
    let plan = plan::plan(&inventory, &catalogue, &Policy::default(), &[], now);
    let staying = plan.rows.iter().filter(|row| !row.route.moves());
    let retained: BTreeSet<_> = staying.map(|row| row.triplet.clone()).collect();
    let config = WorldConfig {
        seed: args.seed,
        start: now,
        rows: inventory.rows,
        catalogue,
        retained,
        faults: args.faults,
        fault_from: now,
        fault_until: now.plus_ms(FAULT_WINDOW_MS),
        token_life: TokenLife::Catalogue,
        shim_url: args.shim_url,
    };
    let world = World::with_options(config, WorldOptions::of(GatewayKind::from(&workerd)));
    super::runtime()?.block_on(async {
        let webhooks = webhook_client()?;
        let clock = LiveClock::start(now, args.speed);
        let sandbox = match &workerd {
            Some(workerd) => {
                Sandbox::start_on_workerd(world, workerd, &clock).await.map_err(|e| gateway::explain(&e))?
            }
            None => Sandbox::start(world)
                .await
                .map_err(|error| CommandError::failed("cannot listen on loopback").because(&error))?,
        };
        // People follow these links with a browser.
        sandbox.lock().set_addresses(sandbox.urls.clone());
        if args.print_env {
            ui.print(&environment(&sandbox));
        }
        ui.note(&banner(&sandbox.urls));
        for note in sandbox.lock().fault_notes() {
            ui.note(&format!("fault {} at {}: {}", note.fault, note.at.to_minute(), note.what));
        }
        tokio::select! {
            () = sandbox.run_live(clock, webhooks) => {}
            stopped = tokio::signal::ctrl_c() => {
                stopped.map_err(|error| CommandError::failed("cannot wait for Ctrl-C").because(&error))?;
            }
        }
        sandbox.stop().await;
        Ok(exit::OK)
    })
}

/// Goes to one address that the user named; the environment's proxy is not asked.
fn webhook_client() -> Result<reqwest::Client, CommandError> {
    // Fails only when somebody installed a provider before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .map_err(|error| CommandError::failed("cannot set up the client for webhooks").because(&error))
}

fn banner(urls: &SandboxUrls) -> String {
    let SandboxUrls { nango, composio, cloudflare, gateway, provider } = urls;
    format!(
        "nango       {nango}\ncomposio    {composio}\ncloudflare  {cloudflare}\ngateway     {gateway}\n\
         provider    {provider}\nserving until Ctrl-C; the ledger is at {gateway}/_sandbox/ledger"
    )
}

/// The keys open nothing but this sandbox.
fn environment(sandbox: &Sandbox) -> String {
    sandbox.environment().iter().fold(String::new(), |mut out, (name, value)| {
        // No value holds a quote: URLs, hex digits and the sandbox's own key alphabet.
        let _ = writeln!(out, "export {name}='{value}'");
        out
    })
}
