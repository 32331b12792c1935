//! Is it the same, and how do we know: compares two sides key by key, by meaning and not by bytes.
//!
//! ```text
//! Source ─ open ─▶ Side ─ blocks ─▶ Reader ─┐            ┌▶ Spool ─▶ Report
//!                                           ├▶ Merge  ───┤
//! Source ─ open ─▶ Side ─ blocks ─▶ Reader ─┘  or Join ──┘
//! ```
//!
//! A side is whatever can hand over entries as lines ([`side`]); dump files are one kind ([`dump`]).
//! Sorted sides are compared in one pass ([`merge`]), others by partitions on disk ([`spill`],
//! [`join`], in short records where entries can be looked up again: [`compact`]). What two entries of one key amount to is decided in [`compare`] and [`judge`], from
//! [`facts`] alone; those never learn where an entry came from.
//!
//! Nothing here writes a secret anywhere: not to the report, not to a diagnostic, not to the
//! partitions, not to the run file.

mod compact;
mod compare;
mod continuous;
mod dump;
mod entry;
mod facts;
mod finding;
mod hide;
mod join;
mod json;
mod judge;
mod learn;
pub mod live;
mod mask;
mod merge;
mod pack;
mod reader;
mod repair;
mod rules;
mod run;
mod runfile;
mod settle;
mod shape;
mod side;
mod spill;
mod spool;

pub use compare::Keys;
pub use continuous::{Continuous, Round, RoundError};
pub use dump::Dump;
pub use entry::{ENTRY_BYTES_MAX, KEY_BYTES_MAX};
pub use finding::{Change, Class, Counts, Diagnostic, Diagnostics, Finding, Hand, Outcome, Rung};
pub use repair::{RepairError, Repaired, repair_from};
pub use rules::{Ignore, IgnoreError, Place, Rules, Settling, default_ignores};
pub use run::{MEMORY_MIN, Meter, Options, Order, Report, VerifyError, verify};
pub use runfile::{RunFile, RunFileError, Task};
pub use settle::Clock;
pub use side::{BLOCK_BYTES, Block, Halt, LOOK_KEYS_MAX, Look, Lookup, Mark, Now, Side, Source};
