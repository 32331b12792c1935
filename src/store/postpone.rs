//! Putting work off because there is no room for it now, which nobody tried and nothing failed.

use super::{During, Sink, Store, StoreResult};
use crate::domain::time::Timestamp;

impl Store {
    /// Puts everything that is due at a sink off until `until`. Unlike a failure it costs no attempt.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn postpone_sink(&self, sink: Sink, now: Timestamp, until: Timestamp) -> StoreResult<()> {
        sqlx::query("UPDATE delivery SET next_at = $1 WHERE sink = $2 AND next_at <= $3")
            .bind(until.millis())
            .bind(sink.name())
            .bind(now.millis())
            .execute(&mut *self.lock().await)
            .await
            .during("put the deliveries to a sink off")?;
        Ok(())
    }
}
