//! Lets go of what is needed no more, a little at a time; `store::retention` has the rule.

use super::{Engine, EngineResult};
use crate::domain::criteria::Note;
use crate::domain::time::{HOUR_MS, SECOND_MS, Timestamp};
use crate::ports::Outside;
use crate::store::StoreError;

/// How often a round begins.
const EVERY_MS: i64 = 6 * HOUR_MS;

/// Commits before other duties have their turn.
const BATCHES_MAX: usize = 50;

impl<O: Outside> Engine<O> {
    /// Goes on with the round of pruning. A chain that does not fit is noted and left as it is.
    pub(super) async fn prune(&self, now: Timestamp) -> EngineResult<Timestamp> {
        let mut round = self.known(|known| std::mem::take(&mut known.pruning));
        for _ in 0..BATCHES_MAX {
            let over = match self.store.prune_some(&mut round, &self.config.retention, now).await {
                Ok(over) => over,
                Err(StoreError::Corrupt { what, detail }) => {
                    tracing::error!(what, "not pruned: {detail}");
                    self.store.add_note("chain-broken", &Note { at: now, subject: what.to_owned(), detail }).await?;
                    round.skip()
                }
                Err(error) => return Err(error.into()),
            };
            if over {
                return Ok(now.plus_ms(EVERY_MS));
            }
        }
        self.known(|known| known.pruning = round);
        Ok(now.plus_ms(SECOND_MS))
    }
}
