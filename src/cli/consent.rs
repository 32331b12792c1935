//! `cutover consent`: the campaign in which people connect their accounts at the target.

use std::fmt::Write as _;

use serde_json::json;

use super::apply::explain;
use super::job::Job;
use super::operate::{OperateArgs, Session, carry_out};
use super::person::agree;
use super::switch::triplet;
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::domain::duration::Millis;
use crate::domain::time::{DAY_MS, Timestamp, parse_duration_ms};
use crate::domain::triplet::Triplet;
use crate::engine::{ConsentRow, ConsentStart};
use crate::exit;

/// Run the consent campaign
///
/// A link lives ten minutes, so people are sent the address of a page (served by `cutover shim`) that makes
/// one when they open it. `follow` looks at what they connected and compares it with the old grant: another
/// account or fewer scopes goes back to them with the reason.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover consent export --base-url https://cutover.example.com > mail-merge.csv
  cutover consent follow
  cutover consent status
  cutover consent remind --every 3d --base-url https://cutover.example.com > reminders.csv
  cutover consent link kahuna:gmail:default     # somebody sits beside you
  cutover consent all --dry-run                 # a link for everybody at once")]
pub struct ConsentArgs {
    #[command(subcommand)]
    command: ConsentCommand,
}

#[derive(clap::Subcommand, Debug)]
enum ConsentCommand {
    /// Show who connected, who did not, and why not
    Status(Simple),
    /// Print the pages for a mail merge, as CSV
    Export(Export),
    /// Print the pages of those who are due a reminder, as CSV, and note that they are reminded
    Remind(Remind),
    /// Make a link for one triplet, to be used at once
    Link(Link),
    /// Look at what people connect, until everything is verified or held
    Follow(Simple),
    /// Make a link for every triplet and look, until everything is verified or held
    All(Simple),
}

#[derive(clap::Args, Debug)]
struct Simple {
    #[command(flatten)]
    operate: OperateArgs,
}

#[derive(clap::Args, Debug)]
struct Export {
    /// The shim's public address
    #[arg(long, value_name = "URL", value_parser = base_url)]
    base_url: String,
    #[command(flatten)]
    operate: OperateArgs,
}

#[derive(clap::Args, Debug)]
struct Remind {
    /// The shim's public address
    #[arg(long, value_name = "URL", value_parser = base_url)]
    base_url: String,
    /// Remind nobody twice within this
    #[arg(long, value_name = "DURATION", default_value = "3d", value_parser = every)]
    every: Millis,
    #[command(flatten)]
    operate: OperateArgs,
}

#[derive(clap::Args, Debug)]
struct Link {
    #[arg(value_name = "TRIPLET", value_parser = triplet)]
    triplet: Triplet,
    #[command(flatten)]
    operate: OperateArgs,
}

fn base_url(text: &str) -> Result<String, String> {
    match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none() => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err("an http or https address without a query is wanted".to_owned()),
    }
}

fn every(text: &str) -> Result<Millis, String> {
    match parse_duration_ms(text) {
        Ok(ms) if (0..=366 * DAY_MS).contains(&ms) => Ok(Millis(ms)),
        Ok(_) => Err("at most a year".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// # Errors
/// Exit code 7 when a guard refuses, 4 while consents are open (`status`) or with `--no-wait`, 1 when it
/// could not be done.
pub fn run(args: &ConsentArgs, ui: &Ui) -> CommandResult {
    super::runtime()?.block_on(async {
        match &args.command {
            ConsentCommand::Status(args) => status(&args.operate, ui).await,
            ConsentCommand::Export(args) => {
                let session = Session::open(&args.operate, ui).await?;
                let rows = session.engine.campaign().await.map_err(explain)?;
                print_csv(rows.iter().filter(|row| row.is_open()), &args.base_url, ui)?;
                Ok(exit::OK)
            }
            ConsentCommand::Remind(args) => {
                let session = Session::open(&args.operate, ui).await?;
                let due = match args.operate.dry_run {
                    true => session.engine.due_reminders(args.every.0, session.now()).await,
                    false => session.engine.remind(args.every.0, session.now()).await,
                };
                print_csv(due.map_err(explain)?.iter(), &args.base_url, ui)?;
                Ok(exit::OK)
            }
            ConsentCommand::Link(args) => link(args, ui).await,
            ConsentCommand::Follow(args) => {
                let session = Session::open(&args.operate, ui).await?;
                carry_out(session, &Job::FollowConsents, json!({}), ui).await
            }
            ConsentCommand::All(args) => {
                let session = Session::open(&args.operate, ui).await?;
                let open = session.engine.campaign().await.map_err(explain)?;
                let open = open.iter().filter(|row| row.is_open()).count();
                let question = format!("{open} links are made now, and each lives ten minutes.");
                agree(&question, args.operate.yes || args.operate.dry_run, ui)?;
                carry_out(session, &Job::Consent, json!({}), ui).await
            }
        }
    })
}

async fn status(args: &OperateArgs, ui: &Ui) -> CommandResult {
    let session = Session::open(args, ui).await?;
    let rows = session.engine.campaign().await.map_err(explain)?;
    let count = |state: &str| rows.iter().filter(|row| row.state == state).count();
    let open = rows.iter().filter(|row| row.is_open()).count();
    let code = if open == 0 { exit::OK } else { exit::INCONCLUSIVE };
    let reason = format!(
        "{} of {} connected; {} waiting, {} with an open link, {} being checked, {} held",
        count("done"),
        rows.len(),
        count("waiting"),
        count("opened"),
        count("checking"),
        count("held")
    );
    ui.print(&match args.format {
        OutputFormat::Json => {
            let report = json!({"exit_code": code, "reason": reason, "consents": rows, "burn_down": burn_down(&rows)});
            format!("{report:#}\n")
        }
        OutputFormat::Text => {
            let mut out = format!("{reason}\n");
            for (wave, left, all) in burn_down(&rows) {
                let done = 30 * (all - left) / all.max(1);
                let _ = writeln!(
                    out,
                    "  wave {wave:<4} {}{} {left} of {all} left",
                    "#".repeat(done),
                    ".".repeat(30 - done)
                );
            }
            for row in rows.iter().filter(|row| row.state != "done") {
                let why = row.reason.as_ref().map(|why| format!("; sent back: {why}")).unwrap_or_default();
                let _ = writeln!(
                    out,
                    "  {:<9} {} ({} links, {} reminders){why}",
                    row.state, row.triplet, row.links, row.reminders
                );
            }
            out
        }
    });
    Ok(code)
}

/// Per wave: what is left, and of how many.
fn burn_down(rows: &[ConsentRow]) -> Vec<(u32, usize, usize)> {
    let mut waves: std::collections::BTreeMap<u32, (usize, usize)> = std::collections::BTreeMap::new();
    for row in rows {
        let entry = waves.entry(row.wave.unwrap_or_default()).or_default();
        entry.0 += usize::from(row.state != "done");
        entry.1 += 1;
    }
    waves.into_iter().map(|(wave, (left, all))| (wave, left, all)).collect()
}

fn print_csv<'a>(rows: impl Iterator<Item = &'a ConsentRow>, base: &str, ui: &Ui) -> Result<(), CommandError> {
    let failed = |error: &dyn std::error::Error| CommandError::failed("cannot write CSV").because(error);
    // As RFC 4180 has it, and as spreadsheets take it.
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer
        .write_record(["tenant", "provider", "account", "toolkit", "wave", "page", "reminders", "sent_back"])
        .map_err(|error| failed(&error))?;
    for row in rows {
        let Triplet { tenant, provider, account } = &row.triplet;
        let page = format!("{base}{}", row.page);
        let wave = row.wave.map(|n| n.to_string()).unwrap_or_default();
        let reason = row.reason.clone().unwrap_or_default();
        let texts = [tenant.to_string(), provider.to_string(), account.to_string(), row.toolkit.clone(), wave, page];
        let texts = texts.into_iter().chain([row.reminders.to_string(), reason]);
        writer.write_record(texts.map(|text| harmless(&text))).map_err(|error| failed(&error))?;
    }
    let bytes = writer.into_inner().map_err(|error| failed(&error))?;
    ui.print(&String::from_utf8_lossy(&bytes));
    Ok(())
}

/// A cell that no spreadsheet takes for a formula: what begins like one begins with an apostrophe,
/// which spreadsheets do not show.
fn harmless(text: &str) -> String {
    match text.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r' | '\n') => format!("'{text}"),
        _ => text.to_owned(),
    }
}

async fn link(args: &Link, ui: &Ui) -> CommandResult {
    let session = Session::open(&args.operate, ui).await?;
    let triplet = &args.triplet;
    if args.operate.dry_run {
        return carry_out(session, &Job::Link(triplet.clone()), json!({"triplet": triplet}), ui).await;
    }
    match session.engine.start_consent(triplet, session.now()).await.map_err(explain)? {
        // Whoever asked for it is about to open it: this is the one place where it may be shown.
        ConsentStart::Link { url, until } => {
            ui.print(&format!("{}\n", url.expose()));
            ui.note(&format!("open it until {}, then run `cutover consent follow`", until.to_rfc3339()));
            Ok(exit::OK)
        }
        ConsentStart::Done(stage) => {
            ui.note(&format!("`{triplet}` is {stage} already"));
            Ok(exit::OK)
        }
        ConsentStart::Later(at) => {
            ui.note(&format!("not now; try again at {}", Timestamp::to_rfc3339(at)));
            Ok(exit::INCONCLUSIVE)
        }
        ConsentStart::Refused(reason) => {
            Err(CommandError::new(exit::REFUSED, format!("no link for `{triplet}`: {reason}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_never_a_formula() {
        for (text, expected) in [("=1+1", "'=1+1"), ("@x", "'@x"), ("-2", "'-2"), ("a=b", "a=b"), ("", "")] {
            assert_eq!(harmless(text), expected);
        }
    }
}
