//! The pure core: what the words mean and which rules hold.
//!
//! Nothing below this module reads a clock, a file, a socket or a random number; time and
//! secrets come in as arguments. `tests/tidy.rs` fails when that stops being true.

pub mod api;
pub mod budget;
pub mod criteria;
pub mod custody;
pub mod duration;
pub mod evidence_file;
pub mod markdown;
pub mod newest;
pub mod schedule;
pub mod secret;
pub mod time;
pub mod token;
pub mod triplet;
pub mod upstream;
pub mod webhook;
