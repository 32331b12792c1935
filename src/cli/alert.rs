//! `cutover alert`: whether alerts would arrive.

use super::config::Config;
use super::{CommandError, CommandResult, Ui};
use crate::exit;

/// Try the way on which alerts reach people
///
/// The shim sends them to the incoming webhook of `CUTOVER_ALERT_WEBHOOK` (Slack, or what takes the
/// same): dead grants, foreign writes, tokens that ended in KV, dead letters, sinks out of reach, and
/// changes of the gate. docs/runbook.md says what to do about each.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover alert test
  CUTOVER_ALERT_WEBHOOK_FILE=/run/secrets/slack cutover alert test")]
pub struct AlertArgs {
    #[command(subcommand)]
    command: AlertCommand,
}

#[derive(clap::Subcommand, Debug)]
enum AlertCommand {
    /// Send a message that says that it is a test
    Test,
}

/// # Errors
/// Exit code 2 when no webhook is configured or it cannot be used, 1 when the message was not taken.
pub fn run(args: &AlertArgs, ui: &Ui) -> CommandResult {
    let AlertCommand::Test = args.command;
    let alerts = Config::load(ui.config.as_deref())?.alerts()?;
    if !alerts.can_send() {
        return Err(CommandError::usage("no webhook for alerts is configured")
            .hint("set `CUTOVER_ALERT_WEBHOOK`, or `CUTOVER_ALERT_WEBHOOK_FILE` to the path of a file that holds it"));
    }
    let sent = super::runtime()?.block_on(alerts.test());
    sent.map_err(|error| CommandError::failed("the message was not taken").because(&error))?;
    ui.note("sent; look whether it arrived");
    Ok(exit::OK)
}
