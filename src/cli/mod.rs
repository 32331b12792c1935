//! The command line: one file per command, each an `Args` struct whose doc comments are the
//! help text, and a `run` that returns the exit code. Results go to stdout, the rest to stderr.

mod error;
pub mod inventory;
mod ui;
pub mod verify;

use clap::{Parser, Subcommand};

pub use error::{CommandError, CommandResult};
pub use ui::{Format, Ui};

/// Move OAuth token custody from Nango to Composio, and prove it
#[derive(Parser, Debug)]
#[command(name = "cutover", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes
#[derive(clap::Args, Clone, Debug)]
pub struct Globals {
    /// Never colour the output (also: NO_COLOR)
    #[arg(long, global = true)]
    pub no_color: bool,
    /// Log more to stderr (can be repeated up to -vvv)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// How log lines look
    #[arg(long, value_enum, default_value = "text", global = true, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// How log lines look
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    Inventory(inventory::InventoryArgs),
    Verify(Box<verify::VerifyArgs>),
}

/// Parses the command line, runs the command, prints its error if it has one, returns the exit code.
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version through the same type, on stdout and with code 0.
            let code = if error.use_stderr() { crate::exit::USAGE } else { crate::exit::OK };
            // A closed pipe is not an error.
            let _ = error.print();
            return code;
        }
    };
    let ui = Ui::from_environment(&cli.globals);
    let result: CommandResult = match cli.command {
        Command::Inventory(args) => inventory::run(args, &ui),
        Command::Verify(args) => verify::run(&args, &ui),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            ui.print_error(&error);
            error.code()
        }
    }
}
