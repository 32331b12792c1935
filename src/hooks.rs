//! Executables that an operation calls: `before-switch`, `canary-switch`, `after-switch`,
//! `failed-switch`, and so on for every operation. What they are told stands in their environment;
//! one that does not end with 0 stops the operation.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A hook is given up after this long.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(600);

/// Variables of ours that a hook gets; keys are not among them.
const PASSED: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];

/// The folder of hooks, if there is one.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    folder: Option<PathBuf>,
}

/// Why an operation stops at a hook.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("`{0}` is not a folder of hooks")]
    NoFolder(String),
    #[error("cannot run the hook `{path}`")]
    Run { path: String, source: std::io::Error },
    #[error("the hook `{name}` said no ({status})")]
    SaidNo { name: String, status: ExitStatus },
    #[error("the hook `{name}` did not end within ten minutes")]
    Endless { name: String },
}

/// A hook that was started. Ends with its value.
#[derive(Debug)]
pub struct Running {
    name: String,
    path: PathBuf,
    child: Child,
    waited: Duration,
}

impl Hooks {
    /// # Errors
    /// When the folder is not there.
    pub fn new(folder: Option<PathBuf>) -> Result<Self, HookError> {
        if let Some(folder) = folder.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(HookError::NoFolder(folder.display().to_string()));
        }
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(name)).filter(|path| path.is_file())
    }

    /// Whether there is a hook of that name.
    pub fn has(&self, name: &str) -> bool {
        self.path(name).is_some()
    }

    /// Starts the hook of that name, if there is one, with `facts` in its environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, facts: &BTreeMap<&'static str, String>) -> Result<Option<Running>, HookError> {
        let Some(path) = self.path(name) else { return Ok(None) };
        let passed = PASSED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        let child = Command::new(&path)
            .env_clear()
            .envs(passed)
            .env("CUTOVER_HOOK", name)
            .envs(facts)
            .stdin(Stdio::null())
            // What a hook prints is no part of the report on stdout.
            .stdout(std::io::stderr())
            .spawn()
            .map_err(|source| HookError::Run { path: path.display().to_string(), source })?;
        Ok(Some(Running { name: name.to_owned(), path, child, waited: Duration::ZERO }))
    }
}

impl Running {
    /// Whether it ended and agreed; `false` while it runs. `waited`: since the last look.
    ///
    /// # Errors
    /// When it said no, or does not end.
    pub fn has_agreed(&mut self, waited: Duration) -> Result<bool, HookError> {
        self.waited += waited;
        let status = self.child.try_wait();
        let status = status.map_err(|source| HookError::Run { path: self.path.display().to_string(), source })?;
        match status {
            Some(status) if status.success() => Ok(true),
            Some(status) => Err(HookError::SaidNo { name: self.name.clone(), status }),
            None if self.waited > GIVEN_UP_AFTER => Err(HookError::Endless { name: self.name.clone() }),
            None => Ok(false),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
