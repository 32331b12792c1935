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

use serde::Serialize;

pub use self::install::{Workerd, worker_sources};
pub(super) use self::relay::Relay;

/// Where the runtime itself listens, as `http://127.0.0.1:port` without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeUrls {
    /// The Worker, and miniflare's own API under `/cdn-cgi/explorer/api`.
    pub gateway: String,
    /// Cloudflare's API as the runner completes it, below `/client/v4/accounts/{id}`.
    pub cloudflare: String,
}

/// Alarms of the runtime that really fired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AlarmCounts {
    pub fires: u64,
    /// Those in which the object refreshed at the provider and wrote KV.
    pub writes: u64,
}

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
