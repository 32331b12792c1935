//! The steps of an operation: everything that it writes to the outside world, in order.
//!
//! [`Traced`] notes each write on its way through. [`Dry`] answers in the place of the outside
//! world and holds only types that cannot write, so a dry run takes the same path through the
//! engine as the real one, and the two lists can be compared line by line.

/// The part of [`Outside`](crate::ports::Outside) of a type that is every API by itself.
macro_rules! itself {
    () => {
        type Source = Self;
        type Target = Self;
        type Cloudflare = Self;
        type Gateway = Self;
        type Provider = Self;

        fn source(&self) -> &Self {
            self
        }

        fn target(&self) -> &Self {
            self
        }

        fn cloudflare(&self) -> &Self {
            self
        }

        fn gateway(&self) -> &Self {
            self
        }

        fn provider(&self) -> &Self {
            self
        }
    };
}

mod dry;
mod trace;

use serde::Serialize;

use crate::domain::api::Api;
use crate::domain::time::Timestamp;

pub use dry::Dry;
pub use trace::Traced;

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub api: Api,
    /// What is done: `put`, `delete`, `set mode`, …
    pub action: &'static str,
    /// To what. Names that we give, not ids that a vendor makes up, so that a dry run can tell them.
    pub subject: String,
    /// With what, where that says more; never a secret.
    pub detail: String,
    /// Whether it can be undone by another step.
    pub reversible: bool,
    /// When it was done, or would be.
    #[serde(skip)]
    pub at: Timestamp,
}

impl Step {
    /// As a line for people.
    pub fn line(&self) -> String {
        let Self { api, action, subject, detail, reversible, .. } = self;
        let api = api.name();
        let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        let final_ = if *reversible { "" } else { " [cannot be undone]" };
        format!("{api:<10}  {action} {subject}{detail}{final_}")
    }
}
