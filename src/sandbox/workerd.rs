//! The gateway on the real Workers runtime in place of the emulated one.
//!
//! `fixtures/gateway` runs on workerd, with the runtime's own KV, D1 and alarms. The sandbox
//! relays its gateway and Cloudflare addresses to it, byte for byte, and keeps the books of what
//! was accepted: the ledger judges a real gateway by the same rules as the emulated one.

mod install;
mod process;
mod relay;
mod settings;

use std::io;
use std::process::ExitStatus;

pub use self::install::Workerd;
pub(super) use self::relay::Relay;

/// Why the Workers runtime does not serve.
#[derive(Debug, thiserror::Error)]
pub enum WorkerdError {
    /// `node` or `npm` cannot be started.
    #[error("cannot run `{program}`, which the Workers runtime needs")]
    Missing { program: &'static str, source: io::Error },
    #[error("the Workers runtime needs Node.js 20 or newer, and `node` is {found}")]
    OldNode { found: String },
    #[error("cannot write `{path}`")]
    Folder { path: String, source: io::Error },
    /// The last lines that npm said.
    #[error("`npm ci` for the Workers runtime failed ({status}): {said}")]
    Npm { status: ExitStatus, said: String },
    #[error("cannot start the gateway on the Workers runtime")]
    Spawn(#[source] io::Error),
    /// It ended, or said nothing for too long; its last lines.
    #[error("the gateway on the Workers runtime did not start: {said}")]
    NotReady { said: String },
    #[error("cannot set up the client for the Workers runtime")]
    Client(#[source] reqwest::Error),
    #[error("the gateway on the Workers runtime refused what the world begins with: {what}")]
    Seed { what: String },
}
