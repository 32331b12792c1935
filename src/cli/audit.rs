//! `cutover audit`: who did what when, and whether anybody changed it since.

use std::io::Write as _;

use super::apply::StateArgs;
use super::plan::Inputs;
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::domain::time::{DAY_MS, Timestamp, parse_duration_ms};
use crate::exit;
use crate::store::{EventRow, StoreError};

/// Lines that are read and verified at a time.
const PAGE: u32 = 1_000;

/// Print and verify the audit trail
///
/// Every line carries a hash over the line before, so a line that was changed, taken out or put in is
/// found, and named. The whole trail is verified, whatever is printed. The journal of token versions has a
/// chain of its own, which is verified as well.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover audit
  cutover audit --subject kahuna:gmail:default
  cutover audit --since 7d --actor alice --format json
  cutover audit --quiet                         # only verify")]
pub struct AuditArgs {
    /// Only what happened to this subject: a triplet, `gate`, `wave:1`, `all`, …
    #[arg(long, value_name = "NAME")]
    subject: Option<String>,
    /// Only what this person or program did
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Only what is not older than this
    #[arg(long, value_name = "DURATION", value_parser = age)]
    since: Option<i64>,
    /// Print no lines
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    state: StateArgs,
    /// Shape of the report on stdout; JSON is one object per line, and one with the result at the end
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

fn age(text: &str) -> Result<i64, String> {
    match parse_duration_ms(text) {
        Ok(ms) if (0..=3_650 * DAY_MS).contains(&ms) => Ok(ms),
        Ok(_) => Err("at most ten years".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// # Errors
/// Exit code 7 when there is no state, 2 when `CUTOVER_NOW` is not a time, 1 when it cannot be read. A broken chain is exit code 3.
pub fn run(args: &AuditArgs, ui: &Ui) -> CommandResult {
    if !args.state.exists() {
        return Err(CommandError::new(exit::REFUSED, format!("there is no state `{}`", args.state.shown()))
            .hint("name it as `--state`"));
    }
    let from = match args.since {
        Some(ms) => Some(Inputs::default().now()?.plus_ms(-ms)),
        None => None,
    };
    super::runtime()?.block_on(async {
        let store = args.state.open_beside().await?;
        let broken = |error: &StoreError| CommandError::failed("the state cannot be read").because(error);
        let (mut after, mut verified) = (0, 0u64);
        let found = loop {
            match store.load_events(after, PAGE).await {
                Ok(page) if page.is_empty() => break None,
                Ok(page) => {
                    verified += page.len() as u64;
                    after = page.last().map_or(after, |event| event.seq);
                    let shown: String = page.iter().filter(|e| args.shows(e, from)).map(|e| args.line(e)).collect();
                    ui.print(&shown);
                }
                Err(StoreError::Corrupt { what, detail }) => break Some(format!("the {what} was changed: {detail}")),
                Err(error) => return Err(broken(&error)),
            }
        };
        let (found, journal) = match store.verify_journal().await {
            Ok(entries) => (found, entries),
            Err(StoreError::Corrupt { what, detail }) => {
                (found.or(Some(format!("the {what} was changed: {detail}"))), 0)
            }
            Err(error) => return Err(broken(&error)),
        };
        let code = if found.is_some() { exit::FAIL } else { exit::OK };
        let reason = found.unwrap_or_else(|| format!("{verified} lines and {journal} journal entries, unchanged"));
        match args.format {
            OutputFormat::Text => {
                let _ = std::io::stdout().flush();
                ui.note(&reason);
            }
            OutputFormat::Json => ui.print(&format!(
                "{}\n",
                serde_json::json!({"exit_code": code, "reason": reason, "lines": verified, "journal": journal})
            )),
        }
        store.close().await.map_err(|error| broken(&error))?;
        Ok(code)
    })
}

impl AuditArgs {
    fn shows(&self, event: &EventRow, from: Option<Timestamp>) -> bool {
        !self.quiet
            && self.subject.as_ref().is_none_or(|subject| subject == &event.subject)
            && self.actor.as_ref().is_none_or(|actor| actor == &event.actor)
            && from.is_none_or(|from| event.at >= from)
    }

    fn line(&self, event: &EventRow) -> String {
        match self.format {
            OutputFormat::Json => {
                let data: serde_json::Value =
                    serde_json::from_str(&event.json).unwrap_or_else(|_| event.json.clone().into());
                let line = serde_json::json!({
                    "seq": event.seq, "at": event.at.to_rfc3339(), "actor": event.actor, "subject": event.subject,
                    "event": data,
                });
                format!("{line}\n")
            }
            OutputFormat::Text => {
                let EventRow { seq, at, actor, subject, json } = event;
                format!("{seq:>6}  {}  {actor:<10}  {subject:<40}  {json}\n", at.to_rfc3339())
            }
        }
    }
}
