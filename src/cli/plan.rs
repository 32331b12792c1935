//! `cutover plan`: make a plan, compare two.

use std::path::{Path, PathBuf};

use super::inventory::{Live, load_files, parse_tenant, write_whole};
use super::{CommandError, CommandResult, Format, Ui};
use crate::catalogue::Catalogue;
use crate::domain::time::Timestamp;
use crate::domain::triplet::Part;
use crate::exit;
use crate::inventory::Inventory;
use crate::plan::render;
use crate::plan::{self, Plan, Policy, Probe, diff, effects, lint};
use crate::text::Paint;

/// Decide what happens to each triplet, in which wave, at what risk and cost
///
/// Changes nothing. The same inputs give the same plan, byte for byte; `--out` saves it for `apply`.
#[derive(clap::Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  cutover plan --inventory fixtures/inventories/adr-038.md
  cutover plan --inventory nango --out plans/prod.json
  cutover plan --inventory prod.csv --policy plans/policy.toml --out plans/prod.json
  cutover plan --inventory prod.csv --format markdown | gh pr comment --body-file -
  cutover plan diff plans/before.json plans/after.json"
)]
pub struct PlanArgs {
    #[command(subcommand)]
    command: Option<PlanCommand>,
    #[command(flatten)]
    inputs: Inputs,
    /// Shape of the plan on stdout
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Save the plan as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Exit with 3 when there is work to do
    #[arg(long)]
    exit_code: bool,
    /// Show what this configuration file needs, as a diff (can be repeated)
    #[arg(long = "config-file", value_name = "FILE")]
    config_files: Vec<PathBuf>,
}

#[derive(clap::Subcommand, Debug)]
enum PlanCommand {
    /// Show what changed from one saved plan to another
    ///
    /// Exits with 0 when they say the same and 3 when they differ.
    Diff(DiffArgs),
}

#[derive(clap::Args, Debug)]
struct DiffArgs {
    #[arg(value_name = "FROM")]
    from: PathBuf,
    #[arg(value_name = "TO")]
    to: PathBuf,
    /// Shape of the report
    #[arg(long, value_enum, default_value = "text")]
    format: DiffFormat,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum DiffFormat {
    Text,
    Json,
}

/// What a plan is made from
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Inputs {
    /// Inventory to read: Markdown, CSV or JSON, `-` for stdin, or `nango` to ask Nango (can be repeated, the first wins)
    #[arg(long = "inventory", value_name = "FILE", num_args = 1..)]
    pub inventory: Vec<String>,
    /// Tenant of rows in an inventory that has no tenant column (can be repeated)
    #[arg(long = "tenant", value_name = "TENANT", value_parser = parse_tenant)]
    pub tenants: Vec<Part>,
    /// Policy; without it every default holds
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Facts that are laid over the built-in catalogue
    #[arg(long, value_name = "FILE")]
    pub catalogue: Option<PathBuf>,
    /// Probes of live systems: a JSON list as `cutover assess` writes it
    #[arg(long, value_name = "FILE")]
    pub probes: Option<PathBuf>,
    /// The time to plan at, instead of the clock's
    #[arg(long, value_name = "TIME", hide = true, value_parser = parse_time)]
    pub now: Option<Timestamp>,
}

pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).map_err(|error| error.to_string())
}

impl Inputs {
    /// # Errors
    /// Exit code 2 when no inventory was named or one cannot be read, 1 when Nango does not answer.
    pub fn load_inventory(&self, ui: &Ui) -> Result<Inventory, CommandError> {
        if self.inventory.is_empty() {
            return Err(CommandError::usage("no inventory was named")
                .hint("name one with `--inventory FILE`, such as fixtures/inventories/adr-038.md"));
        }
        let live = Live { catalogue: &self.load_catalogue()?, config: ui.config.as_deref() };
        load_files(&self.inventory, &self.tenants, None, live)
    }

    /// # Errors
    /// Exit code 2 when the file cannot be read or is not a policy.
    pub fn load_policy(&self) -> Result<Policy, CommandError> {
        let Some(path) = &self.policy else { return Ok(Policy::default()) };
        Policy::from_toml(&read_text(path)?).map_err(|error| {
            CommandError::usage(format!("`{}` is not a policy", path.display()))
                .because(&error)
                .hint("plans/policy.toml explains every key")
        })
    }

    /// # Errors
    /// Exit code 2 when the extension cannot be read or does not fit.
    pub fn load_catalogue(&self) -> Result<Catalogue, CommandError> {
        let built_in = Catalogue::built_in();
        let Some(path) = &self.catalogue else { return Ok(built_in) };
        built_in.extend(&read_text(path)?).map_err(|error| {
            CommandError::usage(format!("`{}` cannot extend the catalogue", path.display())).because(&error)
        })
    }

    /// # Errors
    /// Exit code 2 when the file cannot be read or is not a list of probes.
    pub fn load_probes(&self) -> Result<Vec<Probe>, CommandError> {
        let Some(path) = &self.probes else { return Ok(Vec::new()) };
        serde_json::from_str(&read_text(path)?).map_err(|error| {
            CommandError::usage(format!("`{}` is not a list of probes", path.display())).because(&error)
        })
    }

    /// The time given by flag, by `CUTOVER_NOW`, or by the clock.
    ///
    /// # Errors
    /// Exit code 2 when `CUTOVER_NOW` is not a time.
    pub fn now(&self) -> Result<Timestamp, CommandError> {
        if let Some(now) = self.now {
            return Ok(now);
        }
        if let Ok(text) = std::env::var("CUTOVER_NOW") {
            return Timestamp::parse(&text)
                .map_err(|error| CommandError::usage("`CUTOVER_NOW` is not a time").because(&error));
        }
        Ok(wall_clock())
    }
}

/// What the machine's clock shows.
pub(super) fn wall_clock() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::from_millis(since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
}

pub(super) fn read_text(path: &Path) -> Result<String, CommandError> {
    std::fs::read_to_string(path)
        .map_err(|error| CommandError::usage(format!("cannot read `{}`", path.display())).because(&error))
}

/// Reads a saved plan.
///
/// # Errors
/// Exit code 2 when the file cannot be read, is of an unknown version, or was edited.
pub fn load_plan(path: &Path) -> Result<Plan, CommandError> {
    Plan::from_json(&read_text(path)?).map_err(|error| {
        CommandError::usage(format!("`{}` is not a plan that can be used", path.display()))
            .because(&error)
            .hint("make it again with `cutover plan --out`")
    })
}

pub fn run(args: PlanArgs, ui: &Ui) -> CommandResult {
    if let Some(PlanCommand::Diff(args)) = args.command {
        return run_diff(&args, ui);
    }
    let inventory = args.inputs.load_inventory(ui)?;
    let policy = args.inputs.load_policy()?;
    let catalogue = args.inputs.load_catalogue()?;
    let probes = args.inputs.load_probes()?;
    let plan = plan::plan(&inventory, &catalogue, &policy, &probes, args.inputs.now()?);
    refuse_unmeasurable(&policy, &plan)?;
    if let Some(path) = &args.out {
        write_whole(path, &plan.to_json())?;
        ui.note(&format!("saved {} to {}", plan.id, path.display()));
    }
    print_plan(&plan, args.format, ui);
    for path in &args.config_files {
        show_effect(&plan, path, ui)?;
    }
    let work = plan.summary.reconsent + plan.summary.static_ + plan.summary.blocked > 0;
    Ok(if args.exit_code && work { exit::FAIL } else { exit::OK })
}

fn refuse_unmeasurable(policy: &Policy, plan: &Plan) -> Result<(), CommandError> {
    let findings = lint::lint(policy, lint::Evidence::of(plan));
    let Some((first, rest)) = findings.split_first() else { return Ok(()) };
    let mut error = CommandError::usage(first.to_string()).hint(&first.hint);
    for finding in rest {
        error = error.because(finding).hint(&finding.hint);
    }
    Err(error)
}

/// Prints a plan in the shape asked for.
pub(super) fn print_plan(plan: &Plan, format: Format, ui: &Ui) {
    ui.print(&match format {
        Format::Text => render::text(plan, ui.paint()),
        Format::Json => plan.to_json(),
        Format::Markdown => render::markdown(plan),
        Format::Csv => render::csv(plan),
    });
}

/// Goes to stderr: it is advice beside the plan, and stdout stays one document.
fn show_effect(plan: &Plan, path: &Path, ui: &Ui) -> Result<(), CommandError> {
    let effect = effects::effect(plan, &path.display().to_string(), &read_text(path)?);
    let paint = Paint { on: ui.color_stderr };
    let colored = effect.diff.lines().map(|line| match line.as_bytes().first() {
        Some(b'+') => paint.green(line),
        Some(b'-') => paint.red(line),
        _ => line.to_owned(),
    });
    for line in colored {
        ui.note(&line);
    }
    for note in &effect.notes {
        ui.note(&format!("{}: {note}", effect.file));
    }
    if effect.diff.is_empty() && effect.notes.is_empty() {
        ui.note(&format!("{}: nothing to change", effect.file));
    }
    Ok(())
}

fn run_diff(args: &DiffArgs, ui: &Ui) -> CommandResult {
    let found = diff::diff(&load_plan(&args.from)?, &load_plan(&args.to)?);
    let code = if found.is_empty() { exit::OK } else { exit::FAIL };
    ui.print(&match args.format {
        DiffFormat::Text => diff::text(&found, ui.paint()),
        DiffFormat::Json => {
            let reason = if found.is_empty() { "the plans say the same" } else { "the plans differ" };
            let report = serde_json::json!({ "exit_code": code, "reason": reason, "diff": found });
            format!("{report:#}\n")
        }
    });
    Ok(code)
}
