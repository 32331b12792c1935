//! When the duties work in what was accepted.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

use crate::store::Store;

/// What came in close together is worked on together.
const TOGETHER: Duration = Duration::from_millis(50);

/// Under load there is something at any time, and each round takes syncs from those who wait for an answer.
const ROUND: Duration = Duration::from_millis(500);

/// Says when something accepted is to be worked in: 50 ms after it came in, and 500 ms after the
/// time before.
#[derive(Debug)]
pub struct Gather(Interval);

impl Gather {
    /// # Panics
    /// Outside of a runtime with timers.
    #[expect(clippy::new_without_default, reason = "it belongs to a runtime")]
    pub fn new() -> Self {
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self(rounds)
    }

    /// Waits for the next time. Whoever gives up waiting must look by itself.
    pub async fn round(&mut self, store: &Store) {
        self.after(store.intake_arrived()).await;
    }

    async fn after(&mut self, arrived: impl Future<Output = ()>) {
        arrived.await;
        tokio::time::sleep(TOGETHER).await;
        self.0.tick().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn what_comes_together_is_one_round_and_rounds_are_apart() {
        let (arrived, mut gather) = (Notify::new(), Gather::new());
        let began = Instant::now();
        // One that came before anybody waited counts too, and many are one.
        arrived.notify_one();
        arrived.notify_one();
        gather.after(arrived.notified()).await;
        let first = Instant::now();
        assert!(first - began >= TOGETHER);
        assert!(tokio::time::timeout(TOGETHER * 2, gather.after(arrived.notified())).await.is_err(), "nothing came");
        arrived.notify_one();
        gather.after(arrived.notified()).await;
        arrived.notify_one();
        gather.after(arrived.notified()).await;
        // Ticks drift by less than a tick when a round comes late.
        assert!(first.elapsed() >= ROUND, "{:?}", first.elapsed());
    }
}
