//! `cutover gate show`: the report of an evidence file, in any form.

use std::path::PathBuf;

use super::{GateFormat, rendered};
use crate::cli::{CommandError, CommandResult, Ui};
use crate::domain::evidence_file::EvidenceFile;
use crate::exit;

/// Print an evidence file as a report
///
/// Reads the file alone: nothing is judged, nothing recorded. A file that is not as it was sealed is
/// refused (exit 7); whether it still holds is for `gate verify` to say.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover gate show gate.json
  cutover gate show gate.json --format junit > gate.xml")]
pub(super) struct ShowFileArgs {
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Shape of the report
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: GateFormat,
}

pub(super) fn run(args: &ShowFileArgs, ui: &Ui) -> CommandResult {
    let shown = args.file.display();
    let text = std::fs::read_to_string(&args.file)
        .map_err(|error| CommandError::usage(format!("cannot read `{shown}`")).because(&error))?;
    let file = EvidenceFile::from_json(&text).map_err(|error| {
        CommandError::new(exit::REFUSED, format!("`{shown}` is not as it was sealed"))
            .because(&error)
            .hint("write it again with `cutover gate --evidence FILE`")
    })?;
    ui.print(&rendered(&file, args.format, ui));
    Ok(exit::OK)
}
