//! `cutover gate verify`: whether an evidence file is what this state once said, and still says.

use std::path::PathBuf;

use serde_json::json;

use super::{JudgedBy, broken};
use crate::cli::{CommandError, CommandResult, OutputFormat, Ui};
use crate::domain::evidence_file::EvidenceFile;
use crate::domain::time::format_duration_ms;
use crate::exit;
use crate::store::GateRun;

/// Check an evidence file against the state that it speaks of
///
/// The file must be byte for byte what was sealed (else exit 7), of the plan applied here, of this
/// state, and a link of its unbroken chain (else exit 7), the newest one, not older than the
/// policy's `pass_life`, its waivers still in force (else exit 5). Then it exits with the file's own
/// verdict: 0, 3 or 4.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover gate verify gate.json
  cutover gate verify gate.json --policy plans/policy.toml --format json")]
pub(super) struct VerifyFileArgs {
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    judged: JudgedBy,
    /// Shape of the answer
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: OutputFormat,
}

/// Why a file is not accepted: the code and the reason.
struct Refusal(u8, String);

fn refused(reason: impl Into<String>) -> Refusal {
    Refusal(exit::REFUSED, reason.into())
}

fn stale(reason: impl Into<String>) -> Refusal {
    Refusal(exit::STALE, reason.into())
}

pub(super) fn run(args: &VerifyFileArgs, ui: &Ui) -> CommandResult {
    let shown = args.file.display();
    let bytes = std::fs::read(&args.file)
        .map_err(|error| CommandError::usage(format!("cannot read `{shown}`")).because(&error))?;
    let (code, answer) = match super::super::runtime()?.block_on(check(&bytes, &args.judged))? {
        Ok(file) => {
            let said = format!("`{shown}` is intact, newest of its chain, and says {}", file.verdict.name());
            (file.exit_code, said)
        }
        Err(Refusal(code, reason)) => (code, format!("`{shown}` is not accepted: {reason}")),
    };
    match args.format {
        OutputFormat::Json => {
            ui.print(&format!(
                "{:#}\n",
                json!({"accepted": code <= exit::INCONCLUSIVE, "exit_code": code, "reason": answer})
            ));
        }
        OutputFormat::Text => ui.print(&format!("{answer}\n")),
    }
    Ok(code)
}

async fn check(bytes: &[u8], judged: &JudgedBy) -> Result<Result<EvidenceFile, Refusal>, CommandError> {
    let opened = judged.open().await?;
    let failed = |error: crate::store::StoreError| broken(error.into());
    let now = opened.inputs.now()?;
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(Err(refused("it is no text: it was altered"))) };
    let file = match EvidenceFile::from_json(text) {
        Ok(file) => file,
        Err(error) => return Ok(Err(refused(error.to_string()))),
    };
    let identity = opened.store.load_identity().await.map_err(failed)?;
    let state = identity.map(|i| i.state).unwrap_or_default();
    let runs = opened.store.load_gate_runs().await.map_err(failed)?;
    let waivers = opened.store.load_waivers().await.map_err(failed)?;
    if file.plan != opened.plan.id {
        let reason = format!("it is of plan `{}`, and `{}` is applied here", file.plan, opened.plan.id);
        return Ok(Err(refused(reason)));
    }
    if file.state != state {
        return Ok(Err(refused(format!("it is of state `{}`, and this is `{state}`", file.state))));
    }
    if let Err(refusal) = chain(&file, &runs) {
        return Ok(Err(refusal));
    }
    if file.evaluated_at > now {
        return Ok(Err(refused(format!("it is of {}, which is not yet", file.evaluated_at.to_minute()))));
    }
    let age_ms = now.since(file.evaluated_at);
    let life_ms = opened.policy.criteria.pass_life.0;
    if age_ms > life_ms {
        let (age, life) = (format_duration_ms(age_ms), format_duration_ms(life_ms));
        return Ok(Err(stale(format!("it is {age} old, and `criteria.pass_life` is {life}"))));
    }
    let leaned_on = file.criteria.iter().flat_map(|c| &c.waivers);
    for mark in leaned_on {
        if !waivers.iter().any(|w| w.id == mark.id && w.in_force(now)) {
            return Ok(Err(stale(format!("waiver `{}`, on which it stands, is not in force any more", mark.id))));
        }
    }
    Ok(Ok(file))
}

/// The file is the newest link of a chain without a break.
fn chain(file: &EvidenceFile, runs: &[GateRun]) -> Result<(), Refusal> {
    let mut previous: Option<&str> = None;
    for (run, expected) in runs.iter().zip(1..) {
        if run.seq != expected || run.previous.as_deref() != previous {
            return Err(refused(format!("the chain of this state is broken at run {expected}")));
        }
        previous = Some(&run.digest);
    }
    let known = runs.iter().find(|run| run.digest == file.digest);
    let Some(known) = known else {
        return Err(refused("this state never said so: its digest is not in the chain"));
    };
    if known.seq != file.sequence || known.previous != file.previous {
        return Err(refused(format!("the chain has it as run {}, not as run {}", known.seq, file.sequence)));
    }
    match runs.last() {
        Some(newest) if newest.seq != known.seq => Err(stale(format!(
            "it is run {} of {}, and the newest is run {} of {}",
            known.seq,
            known.at.to_minute(),
            newest.seq,
            newest.at.to_minute()
        ))),
        _ => Ok(()),
    }
}
