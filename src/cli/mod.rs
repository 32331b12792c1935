//! The command line: one file per command, each an `Args` struct whose doc comments are the
//! help text, and a `run` that returns the exit code. Results go to stdout, the rest to stderr.

pub mod alert;
pub mod apply;
pub mod assess;
pub mod audit;
pub mod catalogue;
pub mod completions;
pub mod config;
pub mod consent;
pub mod ctl;
mod elsewhere;
mod error;
pub mod gate;
mod gateway;
mod harden;
mod hooks;
pub mod inventory;
mod job;
pub mod keys;
mod logging;
mod oauth_apps;
pub mod operate;
mod person;
pub mod plan;
pub mod rehearse;
pub mod repair;
pub mod report;
pub mod retire;
pub mod sandbox;
pub mod shim;
pub mod show;
pub mod soak;
pub mod status;
pub mod switch;
mod ui;
pub mod verify;
pub mod waive;

use clap::{Parser, Subcommand};

pub use error::{CommandError, CommandResult};
pub use ui::{Format, OutputFormat, Ui};

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
    /// Configuration file (TOML); variables go over it, see `cutover config`
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<std::path::PathBuf>,
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
    Rehearse(rehearse::RehearseArgs),
    Inventory(inventory::InventoryArgs),
    Catalogue(catalogue::CatalogueArgs),
    Plan(plan::PlanArgs),
    Show(show::ShowArgs),
    #[command(alias = "doctor")]
    Assess(Box<assess::AssessArgs>),
    Apply(apply::ApplyArgs),
    Shim(shim::ShimArgs),
    Soak(soak::SoakArgs),
    Status(status::StatusArgs),
    Ctl(ctl::CtlArgs),
    Consent(Box<consent::ConsentArgs>),
    Switch(Box<switch::SwitchArgs>),
    Reverse(Box<switch::ReverseArgs>),
    Settle(Box<switch::SettleArgs>),
    Retire(Box<retire::RetireArgs>),
    Audit(audit::AuditArgs),
    Repair(repair::RepairArgs),
    Alert(alert::AlertArgs),
    Verify(Box<verify::VerifyArgs>),
    Gate(Box<gate::GateArgs>),
    Waive(Box<waive::WaiveArgs>),
    Report(report::ReportArgs),
    Sandbox(sandbox::SandboxArgs),
    Keys(keys::KeysArgs),
    Config(config::ConfigArgs),
    Completions(completions::CompletionsArgs),
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
    logging::start(&cli.globals, ui.color_stderr);
    if let Ok(text) = std::env::var("CUTOVER_FAILPOINT")
        && let Err(problem) = crate::failpoint::arm(&text)
    {
        let error = CommandError::usage(format!("`CUTOVER_FAILPOINT`: {problem}"));
        ui.print_error(&error);
        return error.code();
    }
    let result: CommandResult = match cli.command {
        Command::Rehearse(args) => rehearse::run(args, &ui),
        Command::Inventory(args) => inventory::run(args, &ui),
        Command::Catalogue(args) => catalogue::run(args, &ui),
        Command::Plan(args) => plan::run(args, &ui),
        Command::Show(args) => show::run(&args, &ui),
        Command::Assess(args) => assess::run(&args, &ui),
        Command::Apply(args) => apply::run(&args, &ui),
        Command::Shim(args) => shim::run(args, &ui),
        Command::Soak(args) => soak::run(args, &ui),
        Command::Status(args) => status::run(&args, &ui),
        Command::Ctl(args) => ctl::run(&args, &ui),
        Command::Consent(args) => consent::run(&args, &ui),
        Command::Switch(args) => switch::run(&args, &ui),
        Command::Reverse(args) => switch::run_reverse(&args, &ui),
        Command::Settle(args) => switch::run_settle(&args, &ui),
        Command::Retire(args) => retire::run(&args, &ui),
        Command::Audit(args) => audit::run(&args, &ui),
        Command::Repair(args) => repair::run(&args, &ui),
        Command::Alert(args) => alert::run(&args, &ui),
        Command::Verify(args) => verify::run(&args, &ui),
        Command::Gate(args) => gate::run(*args, &ui),
        Command::Waive(args) => waive::run(*args, &ui),
        Command::Report(args) => report::run(&args, &ui),
        Command::Sandbox(args) => sandbox::run(args, &ui),
        Command::Keys(args) => keys::run(&args, &ui),
        Command::Config(args) => config::run(&args, &ui),
        Command::Completions(args) => completions::run(args, &ui),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            ui.print_error(&error);
            error.code()
        }
    }
}

/// Runs futures on this thread.
fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::failed("cannot start the runtime").because(&error))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
