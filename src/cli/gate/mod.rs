//! `cutover gate`: judges the exit criteria on the evidence in a state, for CI and for people.

mod junit;
mod markdown;
mod show;
mod text;
mod verify;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::apply::StateArgs;
use super::inventory::{check_writable, write_whole};
use super::plan::Inputs;
use super::{CommandError, CommandResult, Ui};
use crate::domain::criteria::{CRITERIA, Judged, Verdict, overall};
use crate::domain::evidence_file::EvidenceFile;
use crate::domain::markdown::number;
use crate::domain::time::{Timestamp, parse_duration_ms};
use crate::engine::{self, EngineError, GateReport};
use crate::exit;
use crate::plan::{Plan, Policy, saved::digest_of};
use crate::store::{StateIdentity, Store, StoreError};

use markdown::markdown;

/// How often a waiting gate looks again.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Judge the exit criteria on the evidence so far
///
/// Reads the state only: no system is called, and a shim may be running beside it. Each run is
/// recorded in the state, in a chain; `switch` and `retire` ask for the newest to be a fresh pass.
/// Exits with 0 when the gate passes, 3 when a criterion failed, 4 when evidence is missing, 5 when
/// the policy is not the one of the plan, 1 when it could not be judged.
///
/// Under GitHub Actions each criterion that does not pass, or is waived, becomes an annotation, and the report goes
/// into the step summary.
#[derive(clap::Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  cutover gate
  cutover gate --policy plans/policy.toml --format junit > gate.xml
  cutover gate --evidence gate.json --wait-while-inconclusive 10m
  cutover gate --criteria outage,parity
  cutover gate show gate.json --format junit > gate.xml
  cutover gate verify gate.json"
)]
pub struct GateArgs {
    #[command(subcommand)]
    command: Option<GateCommand>,
    #[command(flatten)]
    judged: JudgedBy,
    /// Write the evidence, sealed by a digest and chained to the run before
    #[arg(long, value_name = "FILE", conflicts_with = "criteria")]
    evidence: Option<PathBuf>,
    /// Look again for so long while evidence is missing
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait_while_inconclusive: Option<Duration>,
    /// Judge only these; the verdict is partial, is not recorded and opens nothing
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = criterion)]
    criteria: Vec<String>,
    /// Shape of the report
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: GateFormat,
}

#[derive(clap::Subcommand, Debug)]
enum GateCommand {
    Show(show::ShowFileArgs),
    Verify(verify::VerifyFileArgs),
}

/// The state that is judged, and by what
#[derive(clap::Args, Clone, Debug)]
pub(super) struct JudgedBy {
    #[command(flatten)]
    pub state: StateArgs,
    /// Policy that the plan was made with
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// Shape of the report
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum GateFormat {
    Text,
    Json,
    Markdown,
    Junit,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration_ms(text).map(|ms| Duration::from_millis(ms.unsigned_abs())).map_err(|e| e.to_string())
}

pub(super) fn criterion(text: &str) -> Result<String, String> {
    if CRITERIA.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("there is no such criterion; known are {}", CRITERIA.join(", ")))
}

/// An opened state with a plan in it, and the policy of that plan.
pub(super) struct Opened {
    pub store: Store,
    pub policy: Policy,
    pub plan: Plan,
    pub inputs: Inputs,
}

impl JudgedBy {
    /// # Errors
    /// Exit code 2 for bad input, 5 when the policy is not the plan's, 7 when no plan is applied, 1
    /// when the state cannot be read.
    pub async fn open(&self) -> Result<Opened, CommandError> {
        let inputs = Inputs { policy: self.policy.clone(), ..Inputs::default() };
        let policy = inputs.load_policy()?;
        let (store, identity) = open_state(&self.state).await?;
        let plan: Plan = serde_json::from_str(&identity.json)
            .map_err(|e| broken(StoreError::Corrupt { what: "plan", detail: e.to_string() }.into()))?;
        if digest_of(&policy) != plan.inputs.policy {
            let message = format!("the policy is not the one that plan `{}` was made with", plan.id);
            return Err(CommandError::new(exit::STALE, message)
                .hint("name that one as `--policy`: criteria that could be changed afterwards would prove nothing"));
        }
        Ok(Opened { store, policy, plan, inputs })
    }
}

/// Opens a state beside whoever works on it, and says which one it is.
///
/// # Errors
/// Exit code 7 when no plan is applied, 1 when the state cannot be read.
pub(super) async fn open_state(state: &StateArgs) -> Result<(Store, StateIdentity), CommandError> {
    let not_applied = || {
        CommandError::new(exit::REFUSED, "no plan is applied in this state")
            .hint("run `cutover apply PLAN` first, or name its state as `--state`")
    };
    if !state.exists() {
        return Err(not_applied());
    }
    let store = state.open_beside().await?;
    let identity = store.load_identity().await.map_err(|e| broken(e.into()))?.ok_or_else(not_applied)?;
    Ok((store, identity))
}

/// What went wrong while a state was read.
pub(super) fn broken(error: EngineError) -> CommandError {
    match error {
        EngineError::Refused(reason) => CommandError::new(exit::REFUSED, reason),
        error => CommandError::failed("the state cannot be judged").because(&error),
    }
}

/// # Errors
/// Exit code 2 for bad input, 5 when the policy is not the plan's, 7 when no plan is applied, 1 when
/// the state cannot be read or the evidence not be written.
pub fn run(args: GateArgs, ui: &Ui) -> CommandResult {
    match &args.command {
        Some(GateCommand::Show(args)) => return show::run(args, ui),
        Some(GateCommand::Verify(args)) => return verify::run(args, ui),
        None => {}
    }
    if let Some(path) = &args.evidence {
        // A run that is recorded and whose file is nowhere would take the place of the one before.
        check_writable(path)?;
    }
    super::runtime()?.block_on(async {
        let opened = args.judged.open().await?;
        let report = judge(&opened, &args, ui).await?;
        if !args.criteria.is_empty() {
            return partial(&report, &args, ui);
        }
        let file = engine::record(&opened.store, &report, &opened.policy).await.map_err(broken)?;
        opened.store.close().await.map_err(|e| broken(e.into()))?;
        if let Some(path) = &args.evidence {
            write_whole(path, &file.to_json())?;
        }
        ui.print(&rendered(&file, args.format, ui));
        annotate(&file.criteria, Some(&markdown(&file)), ui)?;
        Ok(file.exit_code)
    })
}

fn rendered(file: &EvidenceFile, format: GateFormat, ui: &Ui) -> String {
    match format {
        GateFormat::Text => text::text(file, ui.paint()),
        GateFormat::Json => file.to_json(),
        GateFormat::Markdown => markdown(file),
        GateFormat::Junit => junit::junit(file),
    }
}

/// Judges now, and again while evidence is missing and there is time to wait for it.
async fn judge(opened: &Opened, args: &GateArgs, ui: &Ui) -> Result<GateReport, CommandError> {
    let until = args.wait_while_inconclusive.map(|wait| std::time::Instant::now() + wait);
    let mut told = false;
    loop {
        let now = opened.inputs.now()?;
        let mut report = engine::judge_state(&opened.store, &opened.policy, now).await.map_err(broken)?;
        if !args.criteria.is_empty() {
            report.criteria.retain(|c| args.criteria.contains(&c.id));
            report.verdict = overall(&report.criteria);
        }
        let left = until.map(|until| until.saturating_duration_since(std::time::Instant::now())).unwrap_or_default();
        if report.verdict != Verdict::Inconclusive || left.is_zero() {
            return Ok(report);
        }
        if !told {
            ui.note(&format!("inconclusive, waiting: {}", report.reason()));
            told = true;
        }
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

/// Prints a verdict on some criteria only.
fn partial(report: &GateReport, args: &GateArgs, ui: &Ui) -> CommandResult {
    let reason = format!("partial, opens nothing: {}", report.reason());
    let code = report.verdict.exit_code();
    match args.format {
        GateFormat::Text => ui.print(&text::partial(&report.criteria, report.verdict, &reason, ui.paint())),
        GateFormat::Json => {
            let json = serde_json::json!({
                "partial": args.criteria, "verdict": report.verdict, "exit_code": code, "reason": reason,
                "evaluated_at": report.evaluated_at, "criteria": report.criteria,
            });
            ui.print(&format!("{json:#}\n"));
        }
        GateFormat::Markdown => ui.print(&markdown::partial(&report.criteria, report.verdict, &reason)),
        GateFormat::Junit => ui.print(&junit::suite(&reason, report.evaluated_at, &report.criteria, &[])),
    }
    annotate(&report.criteria, None, ui)?;
    Ok(code)
}

/// Says what does not pass, and what is waived, in the form that GitHub Actions shows beside a change, when it runs there.
fn annotate(criteria: &[Judged], summary: Option<&str>, ui: &Ui) -> Result<(), CommandError> {
    if std::env::var_os("GITHUB_ACTIONS").is_none_or(|v| v != "true") {
        return Ok(());
    }
    for c in criteria.iter().filter(|c| c.verdict != Verdict::Pass || !c.waivers.is_empty()) {
        let kind = match c.stands() {
            Verdict::Pass => "notice",
            Verdict::Fail => "error",
            Verdict::Inconclusive => "warning",
        };
        let said = format!("{}: {}", c.verdict.name(), c.told());
        ui.note(&format!("::{kind} title={}::{}", property(&format!("cutover gate: {}", c.id)), data(&said)));
    }
    if let (Some(path), Some(summary)) = (std::env::var_os("GITHUB_STEP_SUMMARY"), summary) {
        append(Path::new(&path), summary)?;
    }
    Ok(())
}

fn append(path: &Path, text: &str) -> Result<(), CommandError> {
    let write = || std::fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(text.as_bytes());
    write().map_err(|error| CommandError::failed(format!("cannot write `{}`", path.display())).because(&error))
}

/// The text of a workflow command: what would end it is escaped.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// `observed of threshold unit`, or that nothing was observed.
fn measured(judged: &Judged) -> String {
    let observed = judged.observed.map_or_else(|| "-".to_owned(), number);
    format!("{observed} of {} {}", number(judged.threshold), judged.unit)
}

/// One line about the time that was watched.
pub(super) fn soak_line(file: &EvidenceFile) -> String {
    use crate::domain::time::format_duration_ms;
    let soak = &file.window.soak;
    let Some(started) = soak.started_at else { return "the soak clock has not started".to_owned() };
    let mut line = format!("{} soaked since {}", format_duration_ms(soak.soaked_ms), started.to_minute());
    if soak.paused_ms > 0 {
        line += &format!(", {} of it without evidence", format_duration_ms(soak.paused_ms));
    }
    if !soak.restarts.is_empty() {
        let times = match soak.restarts.len() {
            1 => "once".to_owned(),
            n => format!("{n} times"),
        };
        line += &format!(", started again {times}");
    }
    match file.window.soak_done_at {
        Some(done) if done > file.evaluated_at => line + &format!("; earliest exit {}", done.to_minute()),
        _ => line,
    }
}

/// When a gate was judged, for headings.
fn judged_at(at: Timestamp) -> String {
    format!("{} UTC", at.to_minute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workflow_commands_cannot_be_broken_out_of() {
        assert_eq!(data("50% of a\r\nb"), "50%25 of a%0D%0Ab");
        assert_eq!(property("gate: a,b"), "gate%3A a%2C b".replace("%2C ", "%2C"));
    }
}
