//! Nango connections and when to read them.

use serde_json::{Map, Value};
use sqlx::Row;

use super::{During, Store, StoreResult, from_json};
use crate::domain::secret::Fingerprint;
use crate::domain::time::Timestamp;

/// A connection that moves.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionRow {
    pub id: i64,
    pub integration_key: String,
    pub connection_id: String,
    pub poll_at: Option<Timestamp>,
    pub fingerprint: Option<Fingerprint>,
    pub expires_at: Option<Timestamp>,
    /// Captures so far.
    pub rotation: u64,
    pub failures: u32,
    pub failing_since: Option<Timestamp>,
    pub dead_at: Option<Timestamp>,
    /// Connection values that whoami URLs need. No secrets.
    pub config: Map<String, Value>,
}

/// A read that failed.
#[derive(Clone, Copy, Debug)]
pub struct PollFailure {
    pub connection: i64,
    pub at: Timestamp,
    /// `None`: do not try again by itself.
    pub retry_at: Option<Timestamp>,
    /// The grant was judged gone.
    pub dead: bool,
    /// The failure speaks of this connection, not of Nango as a whole.
    pub counts: bool,
}

/// A `SELECT` of all columns that [`row`] reads, in its order.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, integration_key, connection_id, poll_at, fingerprint, expires_at, rotation, failures, \
             failing_since, dead_at, config FROM connection ",
            $rest
        )
    };
}

impl Store {
    /// Connections whose read is due, those whose token ends first before others, at most `limit`.
    pub async fn load_due_connections(&self, now: Timestamp, limit: u32) -> StoreResult<Vec<ConnectionRow>> {
        let rows = sqlx::query(select!("WHERE poll_at <= ? ORDER BY expires_at IS NULL, expires_at, id LIMIT ?"))
            .bind(now.millis())
            .bind(limit)
            .fetch_all(&mut *self.lock().await)
            .await
            .during("load due connections")?;
        rows.iter().map(row).collect()
    }

    /// Every connection of the applied plan, by id.
    pub async fn load_connections(&self) -> StoreResult<Vec<ConnectionRow>> {
        let rows =
            sqlx::query(select!("ORDER BY id")).fetch_all(&mut *self.lock().await).await.during("load connections")?;
        rows.iter().map(row).collect()
    }

    pub async fn record_poll_failure(&self, failure: PollFailure) -> StoreResult<()> {
        sqlx::query(
            "UPDATE connection SET failures = failures + ?2, failing_since = COALESCE(failing_since, ?3), poll_at = ?4,
               dead_at = CASE WHEN ?5 THEN COALESCE(dead_at, ?3) ELSE dead_at END
             WHERE id = ?1",
        )
        .bind(failure.connection)
        .bind(i64::from(failure.counts))
        .bind(failure.at.millis())
        .bind(failure.retry_at.map(Timestamp::millis))
        .bind(failure.dead)
        .execute(&mut *self.lock().await)
        .await
        .during("record a failed read")?;
        Ok(())
    }

    /// Changes when a connection is read next; `None` stops the reads.
    pub async fn schedule_poll(&self, connection: i64, poll_at: Option<Timestamp>) -> StoreResult<()> {
        sqlx::query("UPDATE connection SET poll_at = ? WHERE id = ?")
            .bind(poll_at.map(Timestamp::millis))
            .bind(connection)
            .execute(&mut *self.lock().await)
            .await
            .during("schedule a poll")?;
        Ok(())
    }

    pub async fn save_connection_config(&self, connection: i64, config: &Map<String, Value>) -> StoreResult<()> {
        sqlx::query("UPDATE connection SET config = ? WHERE id = ?")
            .bind(super::to_json(config))
            .bind(connection)
            .execute(&mut *self.lock().await)
            .await
            .during("save connection values")?;
        Ok(())
    }

    /// Connections whose token ended before `now` without a newer capture. Each is returned once
    /// per token and counted as a rotation that was expected and did not arrive.
    pub async fn take_missed_rotations(&self, now: Timestamp) -> StoreResult<Vec<ConnectionRow>> {
        let mut connection = self.lock().await;
        let rows = sqlx::query(select!("WHERE expires_at < ? AND missed = 0 AND poll_at IS NOT NULL ORDER BY id"))
            .bind(now.millis())
            .fetch_all(&mut *connection)
            .await
            .during("look for missed rotations")?;
        let missed: Vec<ConnectionRow> = rows.iter().map(row).collect::<StoreResult<_>>()?;
        if !missed.is_empty() {
            let ids = serde_json::json!(missed.iter().map(|c| c.id).collect::<Vec<_>>()).to_string();
            sqlx::query("UPDATE connection SET missed = 1 WHERE id IN (SELECT value FROM json_each(?))")
                .bind(ids)
                .execute(&mut *connection)
                .await
                .during("note missed rotations")?;
            super::evidence::add(&mut connection, &[("rotations_expected", missed.len() as i64)]).await?;
        }
        Ok(missed)
    }
}

fn row(r: &sqlx::sqlite::SqliteRow) -> StoreResult<ConnectionRow> {
    let at = |i: usize| r.get::<Option<i64>, _>(i).map(Timestamp::from_millis);
    Ok(ConnectionRow {
        id: r.get(0),
        integration_key: r.get(1),
        connection_id: r.get(2),
        poll_at: at(3),
        fingerprint: r.get::<Option<String>, _>(4).map(|t| super::delivery::parse_fingerprint(&t)).transpose()?,
        expires_at: at(5),
        rotation: r.get::<i64, _>(6) as u64,
        failures: r.get::<i64, _>(7) as u32,
        failing_since: at(8),
        dead_at: at(9),
        config: from_json("connection config", &r.get::<String, _>(10))?,
    })
}
