//! `cutover switch`, `cutover reverse` and `cutover settle`: moving reads, back, and for good.

use serde_json::json;

use super::apply::explain;
use super::job::Job;
use super::operate::{OperateArgs, Session, carry_out};
use super::person::{agree, confirm};
use super::{CommandError, CommandResult, Ui};
use crate::domain::duration::Millis;
use crate::domain::time::{format_duration_ms, parse_duration_ms};
use crate::domain::triplet::Triplet;
use crate::engine::{Reversal, SwitchPreview};

/// Move the reads of a wave to the target
///
/// One canary first, then the rest, each smoke-tested through the target before and after. What goes
/// wrong goes back by itself and is held. Needs a gate that passed within 24 hours. Says before it
/// starts until when it can be reversed and how many triplets cannot go back after that.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover switch --wave 1 --dry-run
  cutover switch --wave 1 --reverse-window 6h
  cutover switch --wave 1 --drill              # there and back again, for the gate
  cutover switch --wave 2 --yes --hooks hooks/")]
pub struct SwitchArgs {
    /// Wave of the plan
    #[arg(long, value_name = "N")]
    wave: u32,
    /// How long it can be reversed [default: the policy's]
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "drill")]
    reverse_window: Option<Millis>,
    /// Only exercise it: one triplet there and back again
    #[arg(long)]
    drill: bool,
    #[command(flatten)]
    operate: OperateArgs,
}

/// Move reads back to the source
///
/// Possible until the reverse window of each triplet is over. Needs no gate; no hold and no `cutover
/// ctl no` stops it.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover reverse --wave 1
  cutover reverse --triplet kahuna:gmail:default --yes
  cutover reverse --wave 1 --dry-run --format json")]
pub struct ReverseArgs {
    /// Wave of the plan
    #[arg(long, value_name = "N", required_unless_present = "triplet", conflicts_with = "triplet")]
    wave: Option<u32>,
    /// A single triplet
    #[arg(long, value_name = "TRIPLET", value_parser = triplet)]
    triplet: Option<Triplet>,
    #[command(flatten)]
    operate: OperateArgs,
}

/// End the mirrors of triplets whose reverse window is over
///
/// From then on they cannot go back: Composio refreshes, and Nango is no longer read once every triplet
/// of a connection is settled. Needs a gate that passed within 24 hours.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover settle --dry-run
  cutover settle --confirm p-0123456789ab --no-wait")]
pub struct SettleArgs {
    /// The plan's id, since this cannot be undone
    #[arg(long, value_name = "PLAN")]
    confirm: Option<String>,
    #[command(flatten)]
    operate: OperateArgs,
}

fn duration(text: &str) -> Result<Millis, String> {
    match parse_duration_ms(text) {
        Ok(ms) if ms > 0 => Ok(Millis(ms)),
        Ok(_) => Err("a window must be longer than nothing".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads a triplet of the command line.
pub(super) fn triplet(text: &str) -> Result<Triplet, String> {
    Triplet::parse(text).map_err(|error| error.to_string())
}

/// # Errors
/// Exit code 7 when a guard refuses or nobody agreed, 4 with `--no-wait` when there is more to do,
/// 6 when a person must decide, 1 when it could not be done.
pub fn run(args: &SwitchArgs, ui: &Ui) -> CommandResult {
    super::runtime()?.block_on(async {
        let session = Session::open(&args.operate, ui).await?;
        let wave = args.wave;
        if args.drill {
            let question = format!("One triplet of wave {wave} is read from the target and back again.");
            agree(&question, args.operate.yes || args.operate.dry_run, ui)?;
            return carry_out(session, &Job::Drill(wave), json!({"wave": wave}), ui).await;
        }
        if let Some(window) = args.reverse_window {
            refuse_short(window.0, session.engine.reverse_window_min_ms())?;
        }
        let mut preview = session.engine.preview_switch(wave, session.now()).await.map_err(explain)?;
        if let Some(window) = args.reverse_window {
            preview.reverse_until = session.now().plus_ms(window.0);
        }
        if !args.operate.dry_run {
            agree(&preview_text(&preview, session.now().millis()), args.operate.yes, ui)?;
        }
        ui.note(&preview_text(&preview, session.now().millis()));
        let more = json!({"wave": wave, "preview": preview, "irreversible_after_window": preview.irreversible()});
        let job = Job::Switch { wave, reverse_window_ms: args.reverse_window.map(|window| window.0) };
        carry_out(session, &job, more, ui).await
    })
}

/// A window that may be over before anybody has seen the move work is no promise.
fn refuse_short(window_ms: i64, min_ms: i64) -> Result<(), CommandError> {
    if window_ms >= min_ms {
        return Ok(());
    }
    let (given, min) = (format_duration_ms(window_ms), format_duration_ms(min_ms));
    Err(CommandError::usage(format!("a reverse window of {given} may end before a move is seen to work"))
        .hint(format!("give at least {min} as `--reverse-window`")))
}

fn preview_text(preview: &SwitchPreview, now_ms: i64) -> String {
    let SwitchPreview { wave, ready, switched, behind, reverse_until, old_grant_ended } = preview;
    let mut text = format!(
        "Wave {wave}: {} triplets move, {} moved before, {} stay behind.\n\
         They can go back for {}, until {}; after that, {} triplets cannot go back.",
        ready.len(),
        switched.len(),
        behind.len(),
        format_duration_ms(reverse_until.millis() - now_ms),
        reverse_until.to_rfc3339(),
        preview.irreversible()
    );
    if !old_grant_ended.is_empty() {
        text.push_str(&format!(
            "\nFor {} of them the consent may have ended the old grant: going back needs a new consent at Nango.",
            old_grant_ended.len()
        ));
    }
    for (triplet, why) in behind {
        text.push_str(&format!("\n  behind: {triplet} ({why})"));
    }
    text
}

/// # Errors
/// As [`run`].
pub fn run_reverse(args: &ReverseArgs, ui: &Ui) -> CommandResult {
    let what = match (args.wave, &args.triplet) {
        (Some(wave), _) => Reversal::Wave(wave),
        (None, Some(triplet)) => Reversal::Triplet(triplet.clone()),
        (None, None) => return Err(CommandError::usage("neither `--wave` nor `--triplet` was given")),
    };
    super::runtime()?.block_on(async {
        let session = Session::open(&args.operate, ui).await?;
        let named = match &what {
            Reversal::Wave(n) => format!("wave {n}"),
            Reversal::Triplet(triplet) => format!("`{triplet}`"),
        };
        agree(&format!("The reads of {named} move back to the source."), args.operate.yes || args.operate.dry_run, ui)?;
        carry_out(session, &Job::Reverse(what), json!({"what": named}), ui).await
    })
}

/// # Errors
/// As [`run`]; 7 without the plan's id.
pub fn run_settle(args: &SettleArgs, ui: &Ui) -> CommandResult {
    super::runtime()?.block_on(async {
        let session = Session::open(&args.operate, ui).await?;
        confirm(args.confirm.as_deref(), &session, "settling")?;
        carry_out(session, &Job::Settle, json!({}), ui).await
    })
}
