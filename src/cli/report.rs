//! `cutover report`: the account of the soak as one HTML file, Markdown or JSON.

use std::path::PathBuf;

use super::gate::{JudgedBy, broken};
use super::inventory::write_whole;
use super::{CommandResult, Ui};
use crate::exit;
use crate::report::Facts;

/// Write the account of the soak: criteria, timelines, faults, waivers, gate runs
///
/// HTML is one file that fetches nothing, runs no script and prints well; Markdown is for the
/// decision record. Reads the state only, also beside a running shim, and does not count as a run of
/// the gate. Exits with 0 when the report was written, whatever it says.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover report --out soak.html
  cutover report --format markdown --out docs/ADR-038-soak.md --policy plans/policy.toml
  cutover report --format json | jq .criteria")]
pub struct ReportArgs {
    #[command(flatten)]
    judged: JudgedBy,
    /// Where to write it instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Shape of the report
    #[arg(long, value_enum, default_value = "html", value_name = "FORMAT")]
    format: ReportFormat,
}

/// Shape of the report
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum ReportFormat {
    Html,
    Markdown,
    Json,
}

/// # Errors
/// Exit code 2 for bad input, 5 when the policy is not the plan's, 7 when no plan is applied, 1 when
/// the state cannot be read or the file not be written.
pub fn run(args: &ReportArgs, ui: &Ui) -> CommandResult {
    super::runtime()?.block_on(async {
        let opened = args.judged.open().await?;
        let now = opened.inputs.now()?;
        let facts = Facts::collect(&opened.store, &opened.policy, now, None).await.map_err(broken)?;
        let text = match args.format {
            ReportFormat::Html => facts.to_html(),
            ReportFormat::Markdown => facts.to_markdown(),
            ReportFormat::Json => facts.to_json(),
        };
        match &args.out {
            Some(path) => write_whole(path, &text)?,
            None => ui.print(&text),
        }
        Ok(exit::OK)
    })
}
