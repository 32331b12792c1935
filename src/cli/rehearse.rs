//! `cutover rehearse`: the whole cutover on the embedded sandbox, in virtual time, or with the
//! gateway on the Workers runtime in real time.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::gateway::{self, Gateway};
use super::hooks;
use super::plan::Inputs;
use super::{CommandError, CommandResult, Ui};
use crate::domain::duration::Millis;
use crate::domain::time::parse_duration_ms;
use crate::domain::triplet::Part;
use crate::exit;
use crate::hooks::Hooks;
use crate::inventory::{self, Inventory, Source};
use crate::rehearse::{Campaign, Pace, Position, RealTime, Rehearsal, RehearsalError, grow};
use crate::sandbox::Fault;

/// The inventory of ADR-038, built in so that the first command needs no file.
const ADR_038: &str = include_str!("../../fixtures/inventories/adr-038.md");

/// Connections that a rehearsal can grow to: above, the state database outgrows a laptop.
const CONNECTIONS_MAX: usize = 20_000;

/// Rehearse the whole cutover on the built-in sandbox, in virtual time
///
/// Plans, applies, soaks, verifies, asks for consent, judges the gate, switches and retires, against
/// emulated Nango, Composio, Cloudflare, gateway and providers on loopback. Needs no account, touches
/// nothing outside a temporary folder. With `--gateway workerd` the gateway is a Worker on the real
/// Workers runtime, with its KV, D1 and alarms, under live traffic and in real time that is short.
/// Exits with 0 when the gate passes and nothing was lost, 3 when it fails, 4 when evidence is missing.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover rehearse
  cutover rehearse --days 7 --seed 42 --format json
  cutover rehearse --inventory docs/ADR-038.md --tenant acme
  cutover rehearse --faults webhook-loss,kv-lag,composio-429,crash
  cutover rehearse --faults nango-outage=2h
  cutover rehearse --connections 1000
  cutover rehearse --faults grant-revoked --report soak.html
  cutover rehearse --days 7 --hooks ops/hooks
  cutover rehearse --campaign 20 --days 1 --connections 4
  cutover rehearse --gateway workerd --soak 90s

Faults (name or name=strength; repeat or separate with commas):
  webhook-loss=50%     Nango's webhooks get lost
  kv-lag=90s           the gateway sees KV writes late
  composio-429=5%      Composio answers 429
  crash=5              the engine is killed and restarted from its journal
  nango-outage=45m     Nango is out of reach
  do-alarm-zombie=1    a TokenManager object goes on refreshing behind our back
  grant-revoked=1      a user revokes the old grant
  wrong-account=1      somebody consents with another account
  scope-loss=1         somebody consents to less
  smoke-outage=3d      the gateway answers no smoke test
  audit-outage=3d      D1 cannot be read or written")]
pub struct RehearseArgs {
    /// Inventory to rehearse, Markdown, CSV or JSON, `-` for standard input [default: ADR-038's]
    #[arg(long, value_name = "FILE")]
    inventory: Vec<String>,
    /// Tenant of an inventory without a tenant column (can be repeated)
    #[arg(long, value_name = "NAME", value_parser = tenant)]
    tenant: Vec<Part>,
    /// Days of soak, in virtual time [default: 30]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=400))]
    days: Option<u32>,
    /// Who plays the gateway and Cloudflare's KV, D1 and alarms; `workerd` takes real time
    #[arg(long, value_enum, default_value = "emulated", value_name = "KIND")]
    gateway: Gateway,
    /// Soak in real time, with `--gateway workerd` [default: 60s]
    #[arg(long, value_name = "DURATION", conflicts_with = "days", value_parser = duration)]
    soak: Option<Millis>,
    /// Virtual seconds in each real one, with `--gateway workerd`: 120 makes tokens of an hour live 30 s [default: 120]
    #[arg(long, value_name = "FACTOR", value_parser = speed)]
    speed: Option<f64>,
    /// Seed of everything random; the same seed gives the same digest
    #[arg(long, default_value_t = 38, value_name = "N")]
    seed: u64,
    /// Faults to inject
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = fault)]
    faults: Vec<Fault>,
    /// Folder with executables that are called around the operations, with `CUTOVER_REHEARSAL=1`
    #[arg(long, value_name = "DIR", conflicts_with = "campaign")]
    hooks: Option<PathBuf>,
    /// Grow the inventory to this many synthetic connections
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// Policy file with the criteria
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Facts that are laid over the built-in catalogue
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
    /// Write the account of the soak as one HTML file, or as Markdown where the name ends in `.md`
    #[arg(long, value_name = "FILE", conflicts_with = "campaign")]
    report: Option<PathBuf>,
    /// Rehearse with so many seeds under every fault profile, and say how often the gate was wrong
    #[arg(long, value_name = "SEEDS", conflicts_with_all = ["faults", "keep"], value_parser = clap::value_parser!(u64).range(1..=100_000))]
    campaign: Option<u64>,
    /// Keep the state in this folder, which must be empty or new, with its key and its policy, for
    /// `gate`, `report` and the other commands that read a state
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Shape of the report
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: ReportFormat,
}

/// Shape of the report
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum ReportFormat {
    Text,
    Json,
}

/// Faster than that, no machine keeps up with what is due.
const SPEED_MAX: f64 = 600.0;

/// Below this, nothing has time to happen.
const SOAK_MIN: Millis = Millis(20_000);

/// Days of soak unless `--days` says otherwise: ADR-038's.
const DAYS: u32 = 30;

/// Real time of soak, and how fast its clock goes, unless the options say otherwise.
const SOAK: Millis = Millis(60_000);
const SPEED: f64 = 120.0;

fn duration(text: &str) -> Result<Millis, String> {
    parse_duration_ms(text).map(Millis).map_err(|error| error.to_string())
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed| (1.0..=SPEED_MAX).contains(speed));
    speed.ok_or_else(|| format!("a number from 1 to {SPEED_MAX} is wanted"))
}

/// How time passes, as the options say.
fn pace(args: &RehearseArgs, ui: &Ui) -> Result<Pace, CommandError> {
    let soak = args.soak.unwrap_or(SOAK);
    match args.gateway {
        Gateway::Emulated if args.soak.is_some() || args.speed.is_some() => {
            return Err(CommandError::usage("--soak and --speed are for real time")
                .hint("add `--gateway workerd`, or use `--days`"));
        }
        Gateway::Workerd if args.days.is_some() => {
            return Err(CommandError::usage("--days is virtual time, and the Workers runtime lives in real time")
                .hint("use `--soak`, such as `--soak 90s`"));
        }
        Gateway::Workerd if soak < SOAK_MIN => {
            return Err(CommandError::usage(format!("--soak {soak} is shorter than {SOAK_MIN}")));
        }
        _ => {}
    }
    Ok(match args.gateway.prepare(&args.faults, ui)? {
        None => Pace::Virtual { days: args.days.unwrap_or(DAYS) },
        Some(workerd) => Pace::Real(RealTime {
            workerd,
            speed: args.speed.unwrap_or(SPEED),
            soak: Duration::from_millis(soak.0.unsigned_abs()),
        }),
    })
}

pub(super) fn tenant(text: &str) -> Result<Part, String> {
    Part::new(text).map_err(|e| e.to_string())
}

pub(super) fn fault(text: &str) -> Result<Fault, String> {
    Fault::parse(text).map_err(|e| e.to_string())
}

/// # Errors
/// Exit code 2 for bad input, 7 for a plan with undecided rows, 1 when it could not be carried out.
pub fn run(args: RehearseArgs, ui: &Ui) -> CommandResult {
    let pace = pace(&args, ui)?;
    let began = Instant::now();
    let inputs = Inputs {
        inventory: args.inventory,
        tenants: args.tenant,
        policy: args.policy,
        catalogue: args.catalogue,
        ..Inputs::default()
    };
    let (policy, catalogue) = (inputs.load_policy()?, inputs.load_catalogue()?);
    let mut inventory = inventory_or_adr_038(&inputs, ui)?;
    if let Some(connections) = args.connections {
        if !(1..=CONNECTIONS_MAX).contains(&connections) {
            return Err(CommandError::usage(format!(
                "--connections {connections} is not between 1 and {CONNECTIONS_MAX}"
            )));
        }
        inventory = grow(&inventory, connections);
    }
    let hooks = Hooks::new(args.hooks).map_err(hooks::explain)?;
    let folder = Folder::make(args.keep.as_deref())?;
    let days = if let Pace::Virtual { days } = pace { Some(days) } else { None };
    let rehearsal = Rehearsal {
        inventory,
        catalogue,
        policy,
        seed: args.seed,
        pace,
        faults: args.faults,
        hooks,
        window: None,
        account: args.report.is_some(),
        directory: folder.path().to_owned(),
    };
    if days.is_some() {
        stay_on_one_core();
    }
    // One thread: requests and answers alternate in one order, and the run is the same each time.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CommandError::failed("cannot start the runtime").because(&e))?;
    if let Some(seeds) = args.campaign {
        return campaign(&runtime, &rehearsal, seeds, args.format, ui);
    }
    if let Folder::Kept(path) = &folder {
        keep(path, &rehearsal)?;
    }
    let mut progress = ProgressLine::new(ui, days);
    let result = runtime.block_on(rehearsal.run(&mut |position| progress.show(position)));
    progress.clear();
    let mut report = result.map_err(explain)?;
    report.elapsed_wall_s = Some((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    if let (Some(path), Some(account)) = (&args.report, &report.account) {
        let markdown = path.extension().is_some_and(|e| e == "md");
        super::inventory::write_whole(path, &if markdown { account.to_markdown() } else { account.to_html() })?;
    }
    match args.format {
        ReportFormat::Json => ui.print(&report.to_json()),
        ReportFormat::Text => ui.print(&report.to_text(ui.paint())),
    }
    Ok(report.exit_code)
}

/// Puts beside a kept state what it is opened and judged with.
fn keep(folder: &Path, rehearsal: &Rehearsal) -> Result<(), CommandError> {
    let policy = toml::to_string(&rehearsal.fitted_policy()).expect("a policy that was read can be written");
    super::inventory::write_whole(&folder.join("policy.toml"), &policy)?;
    let key = folder.join("cutover.key");
    std::fs::write(&key, rehearsal.state_key())
        .map_err(|error| CommandError::failed(format!("cannot write `{}`", key.display())).because(&error))
}

/// Runs the campaign with a line of progress.
fn campaign(
    runtime: &tokio::runtime::Runtime,
    rehearsal: &Rehearsal,
    seeds: u64,
    format: ReportFormat,
    ui: &Ui,
) -> CommandResult {
    let show = |done: u64, total: u64| {
        if ui.progress {
            let mut stderr = std::io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[Krehearsal {} of {total}", done + 1).and_then(|()| stderr.flush());
        }
    };
    let result = runtime.block_on(Campaign::run(rehearsal, seeds, &mut |done, total| show(done, total)));
    if ui.progress {
        let mut stderr = std::io::stderr().lock();
        let _ = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
    }
    let campaign = result.map_err(explain)?;
    match format {
        ReportFormat::Json => ui.print(&campaign.to_json()),
        ReportFormat::Text => ui.print(&campaign.to_text()),
    }
    Ok(campaign.exit_code)
}

/// Engine, sandbox and database thread take turns and never run at once: on one core a turn is a
/// plain switch, across cores it is a wake-up that costs a quarter of the whole run. Where this
/// cannot be had, the run is only slower.
#[cfg(target_os = "linux")]
fn stay_on_one_core() {
    let mut here = rustix::thread::CpuSet::new();
    here.set(rustix::thread::sched_getcpu());
    let _ = rustix::thread::sched_setaffinity(None, &here);
}

#[cfg(not(target_os = "linux"))]
fn stay_on_one_core() {}

/// The inventory that was named, else the one that is built in.
pub(super) fn inventory_or_adr_038(inputs: &Inputs, ui: &Ui) -> Result<Inventory, CommandError> {
    if !inputs.inventory.is_empty() {
        return inputs.load_inventory(ui);
    }
    let source = Source { name: "adr-038.md", bytes: ADR_038.as_bytes(), format: None, tenants: &inputs.tenants };
    inventory::read(&source).map_err(|diagnostics| CommandError::usage(diagnostics.to_string()))
}

fn explain(error: RehearsalError) -> CommandError {
    let error = match error {
        RehearsalError::Hook(error) => return hooks::explain(error),
        other => other,
    };
    match &error {
        RehearsalError::Blocked { .. } => CommandError::new(exit::REFUSED, "the rehearsal cannot start")
            .because(&error)
            .hint("decide each of them in the policy file, as `[[decision]]` with a route and a reason"),
        RehearsalError::Workerd(error) => gateway::explain(error),
        RehearsalError::Unfit { .. } => CommandError::new(exit::FAIL, "the rehearsal cannot start").because(&error),
        RehearsalError::NothingMoves => CommandError::usage("there is nothing to rehearse").because(&error),
        _ => CommandError::failed("the rehearsal could not be carried out").because(&error),
    }
}

/// Where the state goes: a temporary folder that disappears, or one that was asked for.
enum Folder {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn make(keep: Option<&Path>) -> Result<Self, CommandError> {
        let Some(keep) = keep else {
            let made = tempfile::Builder::new().prefix("cutover-rehearse-").tempdir();
            return made
                .map(Self::Temporary)
                .map_err(|e| CommandError::failed("cannot make a temporary folder").because(&e));
        };
        let shown = keep.display();
        std::fs::create_dir_all(keep)
            .map_err(|e| CommandError::usage(format!("cannot make folder `{shown}`")).because(&e))?;
        let mut entries = std::fs::read_dir(keep)
            .map_err(|e| CommandError::usage(format!("cannot read folder `{shown}`")).because(&e))?;
        if entries.next().is_some() {
            return Err(CommandError::usage(format!("folder `{shown}` is not empty"))
                .hint("give a new folder: a rehearsal starts from nothing"));
        }
        Ok(Self::Kept(keep.to_owned()))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Kept(path) => path,
        }
    }
}

/// One line on stderr that is redrawn, on a terminal only.
struct ProgressLine {
    on: bool,
    /// Days of soak; `None` in real time.
    days: Option<u32>,
    drawn_at: Option<Instant>,
}

impl ProgressLine {
    fn new(ui: &Ui, days: Option<u32>) -> Self {
        Self { on: ui.progress, days, drawn_at: None }
    }

    fn show(&mut self, p: Position) {
        if !self.on || self.drawn_at.is_some_and(|at| at.elapsed() < Duration::from_millis(100)) {
            return;
        }
        self.drawn_at = Some(Instant::now());
        let filled = (p.share * 30.0) as usize;
        let bar: String = (0..30).map(|i| if i < filled { '#' } else { '-' }).collect();
        let done = match self.days {
            Some(days) => format!("day {}/{days}", (p.share * f64::from(days)) as u32),
            None => format!("{:.0}%", p.share * 100.0),
        };
        let mut stderr = std::io::stderr().lock();
        let _ =
            write!(stderr, "\r\x1b[K[{bar}] {:<15} {}  {done}  {} rotations", p.phase, p.now.to_minute(), p.rotations);
        let _ = stderr.flush();
    }

    fn clear(&self) {
        if self.drawn_at.is_some() {
            let mut stderr = std::io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
        }
    }
}
