//! Slots for requests: a pace that several processes keep together, and that outlives each of them.

use super::{During, Store, StoreResult, query};
use crate::domain::budget::Pace;
use crate::domain::time::Timestamp;

const NANOS_PER_MS: i64 = 1_000_000;

impl Store {
    /// Takes the next `count` slots of a pace, at least 1, and returns when the last of them comes:
    /// a burst at once, then one after each interval. No slot is further ahead than `ahead_max_ms`,
    /// so that a clock which was once wrong does not stop everybody.
    pub async fn take_slots(
        &self,
        name: &str,
        pace: Pace,
        count: u32,
        now: Timestamp,
        ahead_max_ms: i64,
    ) -> StoreResult<Timestamp> {
        let nanos = |ms: i64| ms.saturating_mul(NANOS_PER_MS);
        let every_ns = i64::try_from(pace.every_ns).unwrap_or(i64::MAX);
        let now_ns = nanos(now.millis());
        let row = query(
            "INSERT INTO slot (name, full_at) VALUES ($1, CAST($2 AS BIGINT) + $3)
             ON CONFLICT (name) DO UPDATE SET full_at = CASE
               WHEN slot.full_at < $2 THEN CAST($2 AS BIGINT) WHEN slot.full_at > $4 THEN $4 ELSE slot.full_at END + $3
             RETURNING full_at",
        )
        .bind(name)
        .bind(now_ns)
        .bind(every_ns.saturating_mul(count.max(1).into()))
        .bind(now_ns.saturating_add(nanos(ahead_max_ms)))
        .fetch_one(&mut self.lock().await)
        .await
        .during("take a slot for a request")?;
        let at_ns = row.get::<i64>(0).saturating_sub(every_ns.saturating_mul(pace.burst.into())).max(now_ns);
        Ok(Timestamp::from_millis(at_ns / NANOS_PER_MS + i64::from(at_ns % NANOS_PER_MS > 0)))
    }
}
