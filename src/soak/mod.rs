//! The live dashboard of a soak: what is shown, how it is sorted and filtered, what each key does,
//! and the drawing. It reads pictures and keys and draws into a buffer; who fetches the pictures and
//! owns the terminal is `cli::soak`.

mod dashboard;
mod draw;
mod lines;
mod look;
mod order;
pub mod picture;

#[cfg(test)]
use crate::domain;
#[cfg(test)]
#[path = "../../tests/support/soak_sample.rs"]
mod sample;

pub use dashboard::{Asked, Dashboard, Key};
pub use draw::{Theme, draw, still};
pub use lines::Lines;
pub use look::look;
