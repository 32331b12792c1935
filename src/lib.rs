//! Moves OAuth token custody from Nango to Composio without one stale, lost or foreign token.
//!
//! Start with `docs/architecture.md`.

pub mod alert;
pub mod assess;
pub mod catalogue;
pub mod cli;
pub mod clients;
pub mod domain;
pub mod engine;
pub mod exit;
pub mod failpoint;
pub mod hooks;
pub mod inventory;
pub mod plan;
pub mod ports;
pub mod rehearse;
pub mod report;
pub mod sandbox;
pub mod shim;
pub mod soak;
pub mod status;
pub mod store;
pub mod text;
pub mod verify;
