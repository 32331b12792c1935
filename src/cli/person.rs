//! What a person says at the terminal: who it is, yes, and which plan they mean.

use super::operate::Session;
use super::{CommandError, Ui};
use crate::exit;

/// Who speaks, for the audit trail: whoever is named, else the user of the terminal.
///
/// # Errors
/// Exit code 2 when it cannot be told.
pub fn speaker(named: Option<&str>) -> Result<String, CommandError> {
    let user = || std::env::var("USER").ok();
    named.map(str::to_owned).or_else(user).filter(|name| !name.trim().is_empty()).ok_or_else(|| {
        CommandError::usage("nobody said who speaks").hint("name yourself with `--by NAME`, for the audit trail")
    })
}

/// Asks on the terminal; only `yes` is yes.
///
/// # Errors
/// Exit code 7 when nobody said yes.
pub fn agree(question: &str, yes: bool, ui: &Ui) -> Result<(), CommandError> {
    use std::io::{BufRead, IsTerminal};
    if yes {
        return Ok(());
    }
    let refused = |message: &str| {
        CommandError::new(exit::REFUSED, message)
            .hint("look at the steps with `--dry-run`, then agree with `--yes` or on a terminal")
    };
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(refused("nobody can be asked: standard input is not a terminal, and `--yes` was not given"));
    }
    ui.note(&format!("{question}\nCarry it out? Only `yes` does."));
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(|error| refused("the answer cannot be read").because(&error))?;
    if answer.trim() == "yes" { Ok(()) } else { Err(refused("the answer was not `yes`")) }
}

/// Wants the plan's id for what cannot be undone.
///
/// # Errors
/// Exit code 7 when it was not given or is another one.
pub fn confirm(given: Option<&str>, session: &Session, what: &str) -> Result<(), CommandError> {
    let plan = session.plan.as_deref().unwrap_or_default();
    if session.is_dry_run() || given == Some(plan) {
        return Ok(());
    }
    let message = match given {
        Some(given) => format!("`{given}` is not the plan that is applied here"),
        None => format!("{what} cannot be undone"),
    };
    Err(CommandError::new(exit::REFUSED, message).hint(format!("confirm it with `--confirm {plan}`")))
}
