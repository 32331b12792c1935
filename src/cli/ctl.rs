//! `cutover ctl`: a person's word to whatever runs.

use std::collections::BTreeSet;

use serde_json::json;

use super::apply::{StateArgs, explain};
use super::person::speaker;
use super::plan::Inputs;
use super::switch::triplet;
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::domain::duration::Millis;
use crate::domain::time::{Timestamp, format_duration_ms, parse_duration_ms};
use crate::domain::triplet::Triplet;
use crate::engine::{Control, EngineError};
use crate::exit;
use crate::store::{ControlRow, Decision, Scope, Store};

/// Waves or triplets that an error names at most.
const KNOWN_SHOWN: usize = 12;

/// Say go or no, pause, resume or slow down what runs
///
/// A no always wins: running operations look for it before each triplet and every two seconds while they
/// wait. It never stops `reverse`. Works beside a shim, an `apply` or a `switch` that runs on the same state.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover ctl no --reason 'closing week until Friday'
  cutover ctl no --wave 2 --reason 'sales demo'
  cutover ctl no --triplet kahuna:gmail:default --reason 'customer asked'
  cutover ctl go
  cutover ctl throttle 5s --reason 'support can take one a time'
  cutover ctl answer mirror-account:kahuna:gmail:default --is ca_1")]
pub struct CtlArgs {
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(clap::Subcommand, Debug)]
enum CtlCommand {
    /// Stop what goes forward; what runs ends with exit code 7
    No(Word),
    /// Take a no back
    Go(Word),
    /// Let what goes forward wait
    Pause(Word),
    /// Take a pause back
    Resume(Word),
    /// Set the least time between two triplets, `0s` for none
    Throttle(Throttle),
    /// Answer what looking could not tell (exit code 6)
    Answer(Answer),
}

/// About what, and why
#[derive(clap::Args, Debug)]
struct Word {
    /// Only this wave
    #[arg(long, value_name = "N", conflicts_with = "triplet")]
    wave: Option<u32>,
    /// Only this triplet
    #[arg(long, value_name = "TRIPLET", value_parser = triplet)]
    triplet: Option<Triplet>,
    /// Why; kept in the audit trail, and shown to whom it stops
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    who: Who,
}

/// Least time between two triplets
#[derive(clap::Args, Debug)]
struct Throttle {
    #[arg(value_name = "DURATION", value_parser = duration)]
    pace: Millis,
    /// Why; kept in the audit trail
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    who: Who,
}

/// Answer to an open question
#[derive(clap::Args, Debug)]
struct Answer {
    /// The question's name, as `cutover status` shows it
    #[arg(value_name = "INTENT")]
    intent: String,
    /// It happened, and this is what it gave
    #[arg(long, value_name = "ID", required_unless_present = "not_done", conflicts_with = "not_done")]
    is: Option<String>,
    /// It did not happen, and may be tried again
    #[arg(long)]
    not_done: bool,
    #[command(flatten)]
    who: Who,
}

/// Who speaks, and where
#[derive(clap::Args, Debug)]
struct Who {
    /// Who says so [default: USER]
    #[arg(long, value_name = "NAME", alias = "actor")]
    by: Option<String>,
    #[command(flatten)]
    state: StateArgs,
    /// Shape of the report on stdout
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

fn duration(text: &str) -> Result<Millis, String> {
    parse_duration_ms(text).map(Millis).map_err(|error| error.to_string())
}

/// # Errors
/// Exit code 2 without a reason for a no, without an actor, or for a wave or triplet that is not in the plan; 7 when the state machine or a missing
/// question refuses, 1 when the state cannot be used.
pub fn run(args: &CtlArgs, ui: &Ui) -> CommandResult {
    let who = match &args.command {
        CtlCommand::No(word) | CtlCommand::Go(word) | CtlCommand::Pause(word) | CtlCommand::Resume(word) => &word.who,
        CtlCommand::Throttle(throttle) => &throttle.who,
        CtlCommand::Answer(answer) => &answer.who,
    };
    if !who.state.exists() {
        return Err(CommandError::new(exit::REFUSED, format!("there is no state `{}`", who.state.shown()))
            .hint("name it as `--state`"));
    }
    let (actor, now) = (speaker(who.by.as_deref())?, Inputs::default().now()?);
    super::runtime()?.block_on(async {
        let store = who.state.open_beside().await?;
        let control = Control::new(&store);
        let said = match &args.command {
            CtlCommand::No(word) => stop(&store, Decision::No, word, &actor, now).await?,
            CtlCommand::Pause(word) => stop(&store, Decision::Pause, word, &actor, now).await?,
            CtlCommand::Go(word) => release(&store, Decision::No, word, &actor, now).await?,
            CtlCommand::Resume(word) => release(&store, Decision::Pause, word, &actor, now).await?,
            CtlCommand::Throttle(throttle) => {
                let why = throttle.reason.as_deref().unwrap_or_default();
                control.set_throttle(throttle.pace.0, why, &actor, now).await.map_err(explain)?;
                match throttle.pace.0 {
                    0 => "no least time between two triplets any more".to_owned(),
                    ms => format!("{} between two triplets", format_duration_ms(ms)),
                }
            }
            CtlCommand::Answer(answer) => {
                control.answer(&answer.intent, answer.is.as_deref(), &actor, now).await.map_err(explain)?;
                format!("`{}` is answered; run the operation again", answer.intent)
            }
        };
        print(&said, who.format, &store, ui).await?;
        store.close().await.map_err(|error| explain(error.into()))?;
        Ok(exit::OK)
    })
}

async fn print(said: &str, format: OutputFormat, store: &Store, ui: &Ui) -> Result<(), CommandError> {
    let controls = store.load_controls().await.map_err(|error| explain(error.into()))?;
    ui.print(&match format {
        OutputFormat::Text => format!("{said}\n"),
        OutputFormat::Json => {
            let controls: Vec<_> = controls.iter().map(control_json).collect();
            format!("{:#}\n", json!({"exit_code": exit::OK, "reason": said, "controls": controls}))
        }
    });
    Ok(())
}

/// A decision as reports show it.
pub(super) fn control_json(row: &ControlRow) -> serde_json::Value {
    json!({
        "scope": row.scope.to_string(), "decision": row.decision.name(), "reason": row.reason,
        "actor": row.actor, "at": row.at.to_rfc3339(),
    })
}

fn scope(word: &Word) -> Scope {
    word.wave.map_or(Scope::All, Scope::Wave)
}

/// Refuses what the plan does not have.
async fn demand_known(store: &Store, word: &Word) -> Result<(), CommandError> {
    let rows = store.load_triplets().await.map_err(|error| explain(error.into()))?;
    let unknown = |what: String, known: Vec<String>| {
        let known = match known.len() {
            0 => "the state has none yet: apply a plan first".to_owned(),
            1..=KNOWN_SHOWN => format!("known are {}", known.join(", ")),
            n => format!(
                "known are {}, and {} more: `cutover status --rows`",
                known[..KNOWN_SHOWN].join(", "),
                n - KNOWN_SHOWN
            ),
        };
        Err(CommandError::usage(format!("the plan has no {what}")).hint(known))
    };
    if let Some(triplet) = &word.triplet
        && !rows.iter().any(|row| &row.triplet == triplet)
    {
        // Those of the same tenant first: likely one of them was meant.
        let (same, other): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.triplet.tenant == triplet.tenant);
        return unknown(
            format!("triplet `{triplet}`"),
            same.iter().chain(&other).map(|row| row.triplet.to_string()).collect(),
        );
    }
    let waves: BTreeSet<u32> = rows.iter().filter_map(|row| row.wave).collect();
    match word.wave {
        Some(wave) if !waves.contains(&wave) => {
            unknown(format!("wave {wave}"), waves.iter().map(u32::to_string).collect())
        }
        _ => Ok(()),
    }
}

async fn stop(
    store: &Store,
    decision: Decision,
    word: &Word,
    actor: &str,
    now: Timestamp,
) -> Result<String, CommandError> {
    let name = decision.name();
    let Some(reason) = word.reason.clone().filter(|reason| !reason.trim().is_empty()) else {
        return Err(CommandError::usage(format!("a {name} needs a reason")).hint("give it as `--reason TEXT`"));
    };
    demand_known(store, word).await?;
    let control = Control::new(store);
    if let Some(triplet) = &word.triplet {
        if decision == Decision::Pause {
            return Err(CommandError::usage("a triplet cannot be paused").hint("say `cutover ctl no --triplet …`"));
        }
        control.hold(triplet, Some(format!("{actor}: {reason}")), actor, now).await.map_err(explain)?;
        return Ok(format!("`{triplet}` is held: {reason}"));
    }
    let row = ControlRow { scope: scope(word), decision, reason: reason.clone(), actor: actor.to_owned(), at: now };
    control.decide(&row).await.map_err(explain)?;
    Ok(format!("{name} to `{}`: {reason}", row.scope))
}

async fn release(
    store: &Store,
    decision: Decision,
    word: &Word,
    actor: &str,
    now: Timestamp,
) -> Result<String, CommandError> {
    let control = Control::new(store);
    if let Some(triplet) = &word.triplet {
        demand_known(store, word).await?;
        return match control.hold(triplet, None, actor, now).await {
            Ok(()) => Ok(format!("`{triplet}` is released")),
            Err(EngineError::Store(error)) => Err(CommandError::new(exit::REFUSED, error.to_string())),
            Err(error) => Err(explain(error)),
        };
    }
    let (scope, name) = (scope(word), decision.name());
    let was = control.undecide(scope, decision, actor, now).await.map_err(explain)?;
    if !was {
        demand_known(store, word).await?;
    }
    Ok(if was { format!("the {name} to `{scope}` is taken back") } else { format!("nobody said {name} to `{scope}`") })
}
