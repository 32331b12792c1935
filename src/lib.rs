//! Moves OAuth token custody from Nango to Composio without one stale, lost or foreign token.
//!
//! Start with `docs/architecture.md`.

pub mod catalogue;
pub mod cli;
pub mod domain;
pub mod exit;
pub mod inventory;
pub mod plan;
pub mod ports;
pub mod sandbox;
