//! `cutover completions`: completion scripts for shells.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, CommandResult, Ui};
use crate::exit;

/// Print a completion script for a shell
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover completions bash > /etc/bash_completion.d/cutover
  cutover completions zsh > ~/.zfunc/_cutover")]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    shell: Shell,
}

/// # Errors
/// None: writing to a closed pipe is not an error.
pub fn run(args: CompletionsArgs, ui: &Ui) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cutover", &mut script);
    ui.print(&String::from_utf8_lossy(&script));
    Ok(exit::OK)
}
