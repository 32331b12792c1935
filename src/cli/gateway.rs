//! `--gateway`: who plays the gateway in the sandbox and in a rehearsal.

use std::path::{Path, PathBuf};

use super::{CommandError, Ui};
use crate::sandbox::{Fault, GatewayKind, Workerd, WorkerdError};

/// Where the Workers runtime is installed, unless `CUTOVER_CACHE_DIR` names another folder.
const CACHE: &str = "cutover/workerd";

/// Who plays the gateway and Cloudflare
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Gateway {
    /// The sandbox itself
    #[default]
    Emulated,
    /// A Worker on the real Workers runtime, with its KV, D1 and alarms; needs Node.js 20 or newer
    Workerd,
}

impl Gateway {
    /// The installed runtime, where one is wanted. The first time this takes npm a while.
    ///
    /// # Errors
    /// Exit code 2 for a fault that only the emulated gateway can have, 1 when the runtime cannot be installed.
    pub fn prepare(self, faults: &[Fault], ui: &Ui) -> Result<Option<Workerd>, CommandError> {
        if self == Self::Emulated {
            return Ok(None);
        }
        if let Some(fault) = faults.iter().find(|f| matches!(f, Fault::KvLag { .. } | Fault::DoAlarmZombie { .. })) {
            return Err(CommandError::usage(format!("fault `{}` needs the emulated gateway", fault.name()))
                .hint("the local Workers runtime shows every KV write at once, and its objects do as they are told"));
        }
        let cache = cache_folder();
        if !cache.is_dir() {
            ui.note(&format!("installing the Workers runtime with npm into {}", cache.display()));
        }
        Workerd::install(&cache).map(Some).map_err(|error| explain(&error))
    }
}

impl From<&Option<Workerd>> for GatewayKind {
    fn from(workerd: &Option<Workerd>) -> Self {
        if workerd.is_some() { Self::Workerd } else { Self::Emulated }
    }
}

fn cache_folder() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("CUTOVER_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join(CACHE)))
        .or_else(|| variable("HOME").map(|home| home.join(".cache").join(CACHE)))
        .unwrap_or_else(|| std::env::temp_dir().join(Path::new(CACHE)))
}

/// Says what to do about a runtime that does not serve.
pub(super) fn explain(error: &WorkerdError) -> CommandError {
    let failed = CommandError::failed("the gateway cannot run on the Workers runtime").because(error);
    match error {
        WorkerdError::Missing { .. } | WorkerdError::OldNode { .. } => {
            failed.hint("install Node.js 20 or newer with npm, or leave `--gateway workerd` out")
        }
        WorkerdError::Npm { .. } => failed.hint("npm needs its registry once; see the message above"),
        WorkerdError::Folder { .. } => failed.hint("set CUTOVER_CACHE_DIR to a folder that can be written"),
        _ => failed,
    }
}
