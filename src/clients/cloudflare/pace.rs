//! One write per second to one KV key: more is answered with 429, or lost. Keys that were just
//! written are held back here, so that two writers of ours cannot trip over each other.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::domain::time::{SECOND_MS, Timestamp};
use crate::ports::{ApiErrorKind, Namespace};

/// When each key was last written, as far as that is less than a second ago.
#[derive(Default)]
pub(super) struct KeyPace(Mutex<HashMap<(Namespace, String), Timestamp>>);

impl KeyPace {
    fn with<T>(&self, look: impl FnOnce(&mut HashMap<(Namespace, String), Timestamp>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Milliseconds until the key may be written, if it may not now.
    pub fn wait_ms(&self, namespace: Namespace, key: &str, now: Timestamp) -> Option<i64> {
        let written = self.with(|keys| keys.get(&(namespace, key.to_owned())).copied())?;
        let passed = now.since(written);
        // A clock that was set back tells nothing.
        (0..SECOND_MS).contains(&passed).then_some(SECOND_MS - passed)
    }

    /// # Errors
    /// `OverBudget` when the key was written less than a second ago.
    pub fn check(&self, namespace: Namespace, key: &str, now: Timestamp) -> Result<(), ApiErrorKind> {
        match self.wait_ms(namespace, key, now) {
            Some(wait_ms) => Err(ApiErrorKind::OverBudget { wait_ms }),
            None => Ok(()),
        }
    }

    /// Notes that these keys were written.
    pub fn wrote<'a>(&self, namespace: Namespace, keys: impl IntoIterator<Item = &'a str>, now: Timestamp) {
        self.with(|known| {
            known.retain(|_, at| (0..SECOND_MS).contains(&now.since(*at)));
            known.extend(keys.into_iter().map(|key| ((namespace, key.to_owned()), now)));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_waits_a_second_in_its_namespace_and_others_do_not() {
        let (pace, at) = (KeyPace::default(), |ms: i64| Timestamp::from_millis(1_000_000 + ms));
        pace.wrote(Namespace::Source, ["a"], at(0));
        assert_eq!(pace.wait_ms(Namespace::Source, "a", at(0)), Some(1_000));
        assert_eq!(pace.check(Namespace::Source, "a", at(999)), Err(ApiErrorKind::OverBudget { wait_ms: 1 }));
        assert_eq!(pace.wait_ms(Namespace::Source, "a", at(1_000)), None);
        assert_eq!(pace.wait_ms(Namespace::Target, "a", at(0)), None);
        assert_eq!(pace.wait_ms(Namespace::Source, "b", at(0)), None);
        assert_eq!(pace.wait_ms(Namespace::Source, "a", at(-5_000)), None, "a clock that was set back");
        pace.wrote(Namespace::Source, ["b"], at(5_000));
        assert_eq!(pace.with(|keys| keys.len()), 1, "old ones are forgotten");
    }
}
