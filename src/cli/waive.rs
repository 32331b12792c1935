//! `cutover waive`: dated exceptions with a name and a reason.

use std::fmt::Write as _;

use super::apply::StateArgs;
use super::gate::{JudgedBy, broken, criterion, open_state};
use super::plan::{Inputs, parse_time};
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::domain::criteria::Waiver;
use crate::domain::time::{Timestamp, parse_duration_ms};
use crate::exit;

/// Let a criterion stand aside for a while, in somebody's name
///
/// The gate goes on saying what the criterion says and shows the waiver beside it; past its end, or
/// revoked, it is as if it had never been given. `switch` and `retire` accept a pass that stands on
/// a waiver only as long as the waiver holds.
#[derive(clap::Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  cutover waive outage --by ann --reason 'planned maintenance at Nango' --until 7d --scope nango
  cutover waive soak-duration --by ann --reason 'steering committee of 3 June' --until 2026-06-10T00:00:00Z
  cutover waive list
  cutover waive revoke w-1a2b3c4d --by bob"
)]
pub struct WaiveArgs {
    #[command(subcommand)]
    command: Option<WaiveCommand>,
    /// Criterion that stands aside
    #[arg(value_name = "CRITERION", value_parser = criterion, required = true)]
    criterion: Option<String>,
    /// Who answers for it
    #[arg(long, value_name = "NAME", required = true)]
    by: Option<String>,
    /// Why
    #[arg(long, value_name = "TEXT", required = true)]
    reason: Option<String>,
    /// When it ends: a time, or how long from now
    #[arg(long, value_name = "TIME", required = true)]
    until: Option<String>,
    /// What it covers: `*` for the whole criterion, triplets such as `kahuna:*:*`, an API, a wave
    #[arg(long, value_name = "SCOPE", default_value = "*")]
    scope: String,
    #[command(flatten)]
    judged: JudgedBy,
}

#[derive(clap::Subcommand, Debug)]
enum WaiveCommand {
    /// Show all waivers that were ever given
    List {
        #[command(flatten)]
        state: StateArgs,
        /// Shape of the list
        #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
        format: OutputFormat,
    },
    /// End a waiver now
    Revoke {
        #[arg(value_name = "ID")]
        id: String,
        /// Who ends it
        #[arg(long, value_name = "NAME")]
        by: String,
        #[command(flatten)]
        state: StateArgs,
    },
}

/// # Errors
/// Exit code 2 for bad input, 5 when the policy is not the plan's, 7 when no plan is applied or
/// there is no such waiver, 1 when the state cannot be used.
pub fn run(args: WaiveArgs, ui: &Ui) -> CommandResult {
    super::runtime()?.block_on(async {
        match args.command {
            Some(WaiveCommand::List { state, format }) => list(&state, format, ui).await,
            Some(WaiveCommand::Revoke { id, by, state }) => revoke(&state, &id, &by, ui).await,
            None => give(args, ui).await,
        }
    })
}

/// A time, or a length of time from `now` on.
fn end(text: &str, now: Timestamp) -> Result<Timestamp, CommandError> {
    if let Ok(ms) = parse_duration_ms(text) {
        return Ok(now.plus_ms(ms));
    }
    parse_time(text).map_err(|_| {
        CommandError::usage(format!("`--until {text}` is neither a time nor a length of time"))
            .hint("write 2026-06-10T00:00:00Z or 7d")
    })
}

async fn give(args: WaiveArgs, ui: &Ui) -> CommandResult {
    let opened = args.judged.open().await?;
    let now = opened.inputs.now()?;
    let text = |given: &Option<String>| given.clone().unwrap_or_default();
    let until = end(&text(&args.until), now)?;
    let longest = opened.policy.criteria.waiver_max.0;
    let (criterion, by, reason) = (text(&args.criterion), text(&args.by), text(&args.reason));
    let waiver = Waiver::new(&criterion, &args.scope, &by, &reason, now, until, longest)
        .map_err(|error| CommandError::usage("this waiver cannot be given").because(&error))?;
    let failed = |error: crate::store::StoreError| broken(error.into());
    opened.store.save_waiver(&waiver).await.map_err(failed)?;
    let event = serde_json::json!({"event": "waived", "waiver": waiver}).to_string();
    opened.store.record_action(&waiver.by, "gate", &event, now).await.map_err(failed)?;
    opened.store.close().await.map_err(failed)?;
    ui.print(&format!(
        "{}: {} ({}) stands aside until {} UTC, by {}\nEnd it with `cutover waive revoke {} --by NAME`\n",
        waiver.id,
        waiver.criterion,
        waiver.scope,
        waiver.until.to_minute(),
        waiver.by,
        waiver.id
    ));
    Ok(exit::OK)
}

async fn list(state: &StateArgs, format: OutputFormat, ui: &Ui) -> CommandResult {
    let (store, _) = open_state(state).await?;
    let now = Inputs::default().now()?;
    let waivers = store.load_waivers().await.map_err(|e| broken(e.into()))?;
    if format == OutputFormat::Json {
        let rows: Vec<_> = waivers.iter().map(|w| serde_json::json!({"state": w.state(now), "waiver": w})).collect();
        let json = serde_json::json!({"exit_code": exit::OK, "reason": "listed", "waivers": rows});
        ui.print(&format!("{json:#}\n"));
        return Ok(exit::OK);
    }
    let mut out = String::new();
    for w in &waivers {
        let (state, until) = (w.state(now), w.until.to_minute());
        let _ = writeln!(
            out,
            "{}  {state:<8}  {} ({})  until {until}  by {}: {}",
            w.id, w.criterion, w.scope, w.by, w.reason
        );
    }
    ui.print(if out.is_empty() { "no waiver was ever given\n" } else { &out });
    Ok(exit::OK)
}

async fn revoke(state: &StateArgs, id: &str, by: &str, ui: &Ui) -> CommandResult {
    let (store, _) = open_state(state).await?;
    let now = Inputs::default().now()?;
    let failed = |error: crate::store::StoreError| broken(error.into());
    if by.trim().is_empty() {
        return Err(CommandError::usage("`--by` is empty"));
    }
    if !store.revoke_waiver(id, by, now).await.map_err(failed)? {
        return Err(CommandError::new(exit::REFUSED, format!("there is no waiver `{id}` that could be revoked"))
            .hint("`cutover waive list` shows them"));
    }
    let event = serde_json::json!({"event": "waiver revoked", "waiver": id}).to_string();
    store.record_action(by, "gate", &event, now).await.map_err(failed)?;
    store.close().await.map_err(failed)?;
    ui.print(&format!("{id} is revoked\n"));
    Ok(exit::OK)
}
