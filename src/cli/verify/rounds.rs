//! `cutover verify --continuous`: round after round, until told otherwise.

use std::io::{self, Write};

use serde_json::json;

use super::super::{CommandError, CommandResult, Ui};
use super::evidence::Evidence;
use super::live::LiveSides;
use super::print::{grouped, text_line, write_json_line};
use super::{ReportFormat, VerifyArgs};
use crate::domain::secret::hex;
use crate::domain::time::format_duration_ms;
use crate::exit;
use crate::plan::saved::digest_of;
use crate::verify::live::{Level, LiveTask};
use crate::verify::{Continuous, Keys, Outcome, Round, RoundError, Rules, Task};

/// # Errors
/// Exit code 2 when the pair cannot be compared continuously, 1 when a round fails that nothing
/// before it shows to be possible; later ones are tried again.
pub(super) fn run(
    args: &VerifyArgs,
    task: &Task,
    live: &LiveSides,
    rules: &Rules,
    keys: &Keys,
    ui: &Ui,
) -> CommandResult {
    let (Some(settle_ms), Some(asked)) = (rules.look_again_ms, &task.live) else {
        return Err(CommandError::usage("`--continuous` needs two live sides, and one is a dump"));
    };
    let Some(store) = &live.store else {
        return Err(CommandError::usage("`--continuous` needs a state, which keeps the watermarks")
            .hint("name it as `--state`, or make it with `cutover apply`"));
    };
    if asked.level != Level::Full {
        return Err(CommandError::usage("`--continuous` compares values").hint("add `--level full`"));
    }
    if args.every <= 0 || args.period < args.every {
        return Err(CommandError::usage("`--period` must be at least `--every`"));
    }
    if let Some(why) = &live.departure {
        ui.note(&format!("the rounds are not kept as evidence: {why}"));
    }
    let continuous = Continuous {
        pair: pair(task, asked, live),
        listings: live.listings.each_ref().map(AsRef::as_ref),
        sides: live.sides.each_ref().map(AsRef::as_ref),
        rules,
        keys,
        clock: &live.clock,
        store,
        caller: &live.caller,
        settle_ms,
        every_ms: args.every,
        period_ms: args.period,
        folder: args.temp.as_deref(),
    };
    let mut code = exit::OK;
    for n in 1u32.. {
        let began_at = live.clock.now();
        match continuous.round() {
            Ok(mut round) => {
                code = round.report.verdict().0;
                let evidence = keep(task, asked, live, args.period, &mut round)?;
                let printed = print(args, n, &mut round, &evidence);
                if let Evidence::Failed(error) = evidence {
                    return Err(error);
                }
                if printed.is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe) {
                    return Err(CommandError::failed("cannot print the round"));
                }
            }
            Err(error @ RoundError::Listing { .. }) if n > 1 => {
                code = exit::ERROR;
                ui.note(&format!("error: round {n}: {error}; the next one tries again"));
            }
            Err(error) => return Err(CommandError::failed("cannot compare").because(&error)),
        }
        if args.rounds.is_some_and(|rounds| n >= rounds) {
            break;
        }
        live.clock.wait_until(began_at.plus_ms(args.every));
    }
    Ok(code)
}

/// Names the watermarks of the two sides. What is compared otherwise than the plan asks has some of its
/// own: a key that is clean by weaker rules is not clean.
fn pair(task: &Task, asked: &LiveTask, live: &LiveSides) -> String {
    let pair = format!("{}|{}", task.left, task.right);
    match &live.departure {
        None => pair,
        Some(_) => {
            let rules = digest_of(&(&task.rules.ignores, task.rules.expiry_tolerance_ms, asked.retained));
            format!("{pair}|{rules}")
        }
    }
}

/// Keeps a round as evidence. It speaks for the whole pair when every key was clean within the period.
fn keep(
    task: &Task,
    asked: &LiveTask,
    live: &LiveSides,
    period_ms: i64,
    round: &mut Round,
) -> Result<Evidence, CommandError> {
    let mut name = [0; 6];
    getrandom::fill(&mut name).map_err(|error| CommandError::failed("cannot draw a name").because(&error))?;
    let asked = LiveTask { run: format!("v-{}", hex(&name)), began_at: round.began_at, ..asked.clone() };
    let whole = round.clean_at.is_some_and(|at| round.began_at.since(at) <= period_ms);
    let level = if whole { "full" } else { "rolling" };
    Ok(Evidence::keep(live, &asked, task, &mut round.report, level))
}

fn print(args: &VerifyArgs, n: u32, round: &mut Round, evidence: &Evidence) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let (code, reason) = round.report.verdict();
    let clean_at = round.clean_at.map(crate::domain::time::Timestamp::to_rfc3339);
    let text = args.format == ReportFormat::Text;
    round.report.findings(|finding| match (finding.outcome, text) {
        (Outcome::Match, _) if !args.all => Ok(()),
        (_, true) => out.write_all(text_line(&finding).as_bytes()),
        (_, false) => write_json_line(&mut out, "finding", &finding),
    })?;
    if text {
        let clean = clean_at.map_or("not every key was clean yet".to_owned(), |at| format!("clean since {at}"));
        writeln!(
            out,
            "round {n} at {}: {} keys, {} had changed, {} in turn, took {}: {reason}; {clean}",
            round.began_at.to_rfc3339(),
            grouped(round.keys),
            grouped(round.changed),
            grouped(round.in_turn),
            format_duration_ms(round.took_ms / 1_000 * 1_000),
        )?;
    } else {
        let counts: serde_json::Map<String, serde_json::Value> =
            Outcome::ALL.iter().map(|o| (o.as_str().to_owned(), round.report.counts.of(*o).into())).collect();
        let line = json!({
            "round": n,
            "exit_code": code,
            "reason": reason,
            "began_at": round.began_at.to_rfc3339(),
            "took_ms": round.took_ms,
            "keys": round.keys,
            "changed": round.changed,
            "in_turn": round.in_turn,
            "counts": counts,
            "clean_at": clean_at,
            "evidence": evidence.to_json(),
        });
        write_json_line(&mut out, "round", &line)?;
    }
    out.flush()
}
