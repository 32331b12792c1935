//! The hooks of an operation, with the duties going on beside them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::operate::Session;
use super::{CommandError, Ui};
use crate::exit;
use crate::hooks::{HookError, Hooks};

/// How often a running hook is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs the hook of that name, if there is one. Until the operation is over it gives way to what goes back.
///
/// # Errors
/// Exit code 7 when it says no or gives way, 1 when it cannot be run or does not end.
pub async fn run(
    hooks: &Hooks,
    name: &str,
    facts: &BTreeMap<&'static str, String>,
    session: &Session,
    ui: &Ui,
) -> Result<(), CommandError> {
    let Some(mut running) = hooks.start(name, facts).map_err(explain)? else { return Ok(()) };
    let over = name.starts_with("after-") || name.starts_with("failed-");
    while !running.has_agreed(LOOK_EVERY).map_err(explain)? {
        if !over {
            session
                .engine
                .demand_way(&format!("the hook `{name}`"), session.now())
                .await
                .map_err(super::apply::explain)?;
        }
        session.round().await?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    ui.note(&format!("hook `{name}` agreed"));
    Ok(())
}

/// Says what to do about a hook that stops an operation.
pub fn explain(error: HookError) -> CommandError {
    match &error {
        HookError::NoFolder(_) => CommandError::usage(error.to_string()),
        HookError::SaidNo { .. } => CommandError::new(exit::REFUSED, error.to_string()),
        HookError::Endless { .. } => CommandError::failed(error.to_string()),
        HookError::Run { path, source } => {
            CommandError::failed(format!("cannot run the hook `{path}`")).because(source).hint("it must be executable")
        }
    }
}
