//! Executables that an operation calls: `before-switch`, `canary-switch`, `after-switch`,
//! `failed-switch`, and so on for every operation. What they are told stands in their environment;
//! one that does not end with 0 stops the operation.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::operate::Session;
use super::{CommandError, Ui};
use crate::exit;

/// How often a running hook is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks until a hook is given up: ten minutes.
const LOOKS_MAX: u32 = 6_000;

/// Variables of ours that a hook gets; keys are not among them.
const PASSED: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];

/// The folder of hooks, if there is one.
#[derive(Clone, Debug)]
pub struct Hooks {
    folder: Option<PathBuf>,
}

impl Hooks {
    /// # Errors
    /// Exit code 2 when the folder is not there.
    pub fn new(folder: Option<PathBuf>) -> Result<Self, CommandError> {
        if let Some(folder) = folder.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(CommandError::usage(format!("`{}` is not a folder of hooks", folder.display())));
        }
        Ok(Self { folder })
    }

    /// Runs the hook of that name, if there is one, with the duties going on beside it.
    ///
    /// # Errors
    /// Exit code 7 when it says no, 1 when it cannot be run or does not end.
    pub async fn run(
        &self,
        name: &str,
        facts: &BTreeMap<&'static str, String>,
        session: &Session,
        ui: &Ui,
    ) -> Result<(), CommandError> {
        let Some(path) = self.folder.as_ref().map(|folder| folder.join(name)).filter(|path| path.is_file()) else {
            return Ok(());
        };
        let cannot = |error: std::io::Error| {
            CommandError::failed(format!("cannot run the hook `{}`", path.display()))
                .because(&error)
                .hint("it must be executable")
        };
        let passed = PASSED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        let mut child = Command::new(&path)
            .env_clear()
            .envs(passed)
            .env("CUTOVER_HOOK", name)
            .envs(facts)
            .stdin(Stdio::null())
            // What a hook prints is no part of the report on stdout.
            .stdout(std::io::stderr())
            .spawn()
            .map_err(cannot)?;
        for _ in 0..LOOKS_MAX {
            if let Some(status) = child.try_wait().map_err(cannot)? {
                if status.success() {
                    ui.note(&format!("hook `{name}` agreed"));
                    return Ok(());
                }
                return Err(CommandError::new(exit::REFUSED, format!("the hook `{name}` said no ({status})")));
            }
            session.round().await?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(CommandError::failed(format!("the hook `{name}` did not end within ten minutes")))
    }
}
