//! `cutover show`: a saved plan, and whether it still fits the world.

use std::path::PathBuf;

use super::plan::{Inputs, load_plan, print_plan};
use super::{CommandError, CommandResult, Format, Ui};
use crate::exit;
use crate::plan::saved::{digest_of, staleness};
use crate::plan::{Moved, Plan};

/// Show a saved plan, and say which of its inputs moved since
///
/// A stale plan is shown all the same, with a warning on stderr: `apply` is what refuses it.
/// Without `--inventory` only the inputs that were named are compared.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover show plans/adr-038.json
  cutover show plans/prod.json --inventory prod.csv --policy plans/policy.toml")]
pub struct ShowArgs {
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    /// Shape of the plan on stdout
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

pub fn run(args: &ShowArgs, ui: &Ui) -> CommandResult {
    let plan = load_plan(&args.plan)?;
    let moved = moved(&plan, &args.inputs, ui)?;
    print_plan(&plan, args.format, ui);
    for moved in &moved {
        ui.note(&format!("warning: stale: {moved}"));
    }
    if !moved.is_empty() {
        ui.note("hint: `cutover apply` refuses a stale plan; make a new one with `cutover plan`");
    }
    Ok(exit::OK)
}

fn moved(plan: &Plan, inputs: &Inputs, ui: &Ui) -> Result<Vec<Moved>, CommandError> {
    let now = inputs.now()?;
    if !inputs.inventory.is_empty() {
        let (inventory, catalogue) = (inputs.load_inventory(ui)?, inputs.load_catalogue()?);
        let (policy, probes) = (inputs.load_policy()?, inputs.load_probes()?);
        return Ok(staleness(plan, &inventory, &catalogue, &policy, &probes, now));
    }
    let mut moved = Vec::new();
    if inputs.policy.is_some() && digest_of(&inputs.load_policy()?) != plan.inputs.policy {
        moved.push(Moved::Policy);
    }
    if inputs.catalogue.is_some() && digest_of(&inputs.load_catalogue()?) != plan.inputs.catalogue {
        moved.push(Moved::Catalogue);
    }
    if now >= plan.expires_at {
        moved.push(Moved::Expired { at: plan.expires_at });
    }
    Ok(moved)
}
