//! Exit codes: one alphabet for every command. They are part of the interface.

/// Done; verdict pass; no differences.
pub const OK: u8 = 0;
/// Could not do it: network, store, bug.
pub const ERROR: u8 = 1;
/// Bad command line, configuration or input.
pub const USAGE: u8 = 2;
/// Verdict fail: a criterion failed, differences were found, `plan --exit-code` found work.
pub const FAIL: u8 = 3;
/// Inconclusive: not enough evidence (yet).
pub const INCONCLUSIVE: u8 = 4;
/// Stale: plan or evidence no longer matches the world.
pub const STALE: u8 = 5;
/// Ambiguous: an effect's outcome is unknown, a person must decide.
pub const AMBIGUOUS: u8 = 6;
/// Refused by a guard.
pub const REFUSED: u8 = 7;
