//! Nango connections and when to read them.

use super::db::{Lock, Session, Tx};
use super::evidence::{add, insert_note};
use super::{During, Row, Store, StoreResult, from_json, query};
use crate::domain::criteria::Note;
use crate::domain::schedule::missed_rotations;
use crate::domain::secret::Fingerprint;
use crate::domain::time::Timestamp;
use serde_json::{Map, Value};

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
    /// The newest claim on it. What is read under a claim is recorded with its number.
    pub claim: u64,
}

/// A read that failed.
#[derive(Clone, Copy, Debug)]
pub struct PollFailure {
    pub connection: i64,
    /// The claim under which it was read; 0 outside of the poller.
    pub claim: u64,
    pub at: Timestamp,
    /// `None`: do not try again by itself.
    pub retry_at: Option<Timestamp>,
    /// The grant was judged gone.
    pub dead: bool,
    /// The failure speaks of this connection, not of Nango as a whole.
    pub counts: bool,
}

/// All columns that [`row`] reads, in its order.
macro_rules! columns {
    () => {
        "id, integration_key, connection_id, poll_at, fingerprint, expires_at, rotation, failures, failing_since, \
         dead_at, config, claim"
    };
}

/// A `SELECT` of all columns that [`row`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT ", columns!(), " FROM connection ", $rest)
    };
}

/// Takes due connections that nobody else is taking at this moment.
macro_rules! claim {
    ($skip:literal) => {
        concat!(
            "UPDATE connection SET claim = claim + 1, poll_at = $3 WHERE id IN (
               SELECT id FROM connection
               WHERE poll_at <= $1 AND COALESCE(expires_at, 9223372036854775807) <= $4
               ORDER BY expires_at IS NULL, expires_at, id LIMIT $2",
            $skip,
            ") RETURNING ",
            columns!()
        )
    };
}

/// Brings reads forward inside whatever commit is open: each names an integration key, a connection
/// id and a time. One that is not read at all, or sooner, stays as it is.
pub(super) async fn advance_polls(session: &mut impl Session, reads: &[(&str, &str, Timestamp)]) -> StoreResult<()> {
    if reads.is_empty() {
        return Ok(());
    }
    let reads: Vec<_> = reads.iter().map(|(key, id, at)| serde_json::json!([key, id, at.millis()])).collect();
    query(
        "UPDATE connection SET poll_at = CAST(j.value->>2 AS BIGINT) FROM json_each($1) AS j
         WHERE connection.integration_key = j.value->>0 AND connection.connection_id = j.value->>1
           AND connection.poll_at > CAST(j.value->>2 AS BIGINT)",
    )
    .bind(serde_json::json!(reads).to_string())
    .execute(session)
    .await
    .during("bring reads forward")?;
    Ok(())
}

/// [`Store::record_poll_failure`] inside whatever commit is open. Returns 0 when it came too late.
pub(super) async fn record_failure(session: &mut impl Session, failure: PollFailure) -> StoreResult<u64> {
    query(
        "UPDATE connection SET failures = failures + $2, failing_since = COALESCE(failing_since, $3), poll_at = $4,
           dead_at = CASE WHEN $5 = 1 THEN COALESCE(dead_at, $3) ELSE dead_at END,
           settled = CASE WHEN settled < $6 THEN $6 ELSE settled END
         WHERE id = $1 AND ($6 = 0 OR settled <= $6)",
    )
    .bind(failure.connection)
    .bind(failure.counts)
    .bind(failure.at.millis())
    .bind(failure.retry_at.map(Timestamp::millis))
    .bind(failure.dead)
    .bind(failure.claim as i64)
    .execute(session)
    .await
    .during("record a failed read")
}

impl Store {
    /// Takes connections whose read is due, those whose token ends first before others, at most
    /// `limit`. Until `until` no other
    /// machine reads them; after that they are due again. A read says by [`Store::append_captures`]
    /// or [`Store::record_poll_failure`] when the next one is due. `poll_at` of the answer is `until`.
    pub async fn claim_polls(&self, now: Timestamp, limit: u32, until: Timestamp) -> StoreResult<Vec<ConnectionRow>> {
        self.claim_ending_polls(now, limit, until, Timestamp::from_millis(i64::MAX)).await
    }

    /// As [`Store::claim_polls`], but only those whose token ends at `ending_by` or before.
    pub async fn claim_ending_polls(
        &self,
        now: Timestamp,
        limit: u32,
        until: Timestamp,
        ending_by: Timestamp,
    ) -> StoreResult<Vec<ConnectionRow>> {
        let sql = if self.is_shared() { claim!(" FOR UPDATE SKIP LOCKED") } else { claim!("") };
        let rows = query(sql)
            .bind(now.millis())
            .bind(limit)
            .bind(until.millis())
            .bind(ending_by.millis())
            .fetch_all(&mut self.lock().await)
            .await
            .during("claim due connections")?;
        let mut claimed: Vec<ConnectionRow> = rows.iter().map(row).collect::<StoreResult<_>>()?;
        claimed.sort_by_key(|c| (c.expires_at.is_none(), c.expires_at, c.id));
        Ok(claimed)
    }

    /// Every connection of the applied plan, by id.
    pub async fn load_connections(&self) -> StoreResult<Vec<ConnectionRow>> {
        let rows = query(select!("ORDER BY id")).fetch_all(&mut self.read().await).await.during("load connections")?;
        rows.iter().map(row).collect()
    }

    /// Records a failed read, unless a later claim on the connection has an outcome already.
    pub async fn record_poll_failure(&self, failure: PollFailure) -> StoreResult<()> {
        record_failure(&mut self.lock().await, failure).await?;
        Ok(())
    }

    /// Puts off everything that is due and the `unread` of a claim, because the one who would be
    /// asked is out of reach.
    pub async fn put_off_polls(&self, unread: &[ConnectionRow], now: Timestamp, until: Timestamp) -> StoreResult<()> {
        let claims: Vec<_> = unread.iter().map(|c| (c.id, c.claim)).collect();
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        query(
            "UPDATE connection SET poll_at = $2 WHERE poll_at <= $1 OR (id, claim) IN
               (SELECT CAST(value->>0 AS BIGINT), CAST(value->>1 AS BIGINT) FROM json_each($3))",
        )
        .bind(now.millis())
        .bind(until.millis())
        .bind(serde_json::json!(claims).to_string())
        .execute(&mut tx)
        .await
        .during("put polls off")?;
        tx.commit().await.during("commit")
    }

    /// Changes when a connection is read next; `None` stops the reads.
    pub async fn schedule_poll(&self, connection: i64, poll_at: Option<Timestamp>) -> StoreResult<()> {
        query("UPDATE connection SET poll_at = $1 WHERE id = $2")
            .bind(poll_at.map(Timestamp::millis))
            .bind(connection)
            .execute(&mut self.lock().await)
            .await
            .during("schedule a poll")?;
        Ok(())
    }

    pub async fn save_connection_config(&self, connection: i64, config: &Map<String, Value>) -> StoreResult<()> {
        query("UPDATE connection SET config = $1 WHERE id = $2")
            .bind(super::to_json(config))
            .bind(connection)
            .execute(&mut self.lock().await)
            .await
            .during("save connection values")?;
        Ok(())
    }

    /// Counts and notes the rotations that should have arrived before `now` and did not, each once.
    pub async fn note_missed_rotations(&self, now: Timestamp) -> StoreResult<()> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        note_missed(&mut tx, now).await?;
        tx.commit().await.during("commit")
    }
}

/// [`Store::note_missed_rotations`] inside of a commit that holds [`Lock::Journal`].
pub(super) async fn note_missed(tx: &mut Tx<'_>, now: Timestamp) -> StoreResult<()> {
    let rows = query(
        "SELECT id, connection_id, miss_at, life_ms, missed, dead_at FROM connection
         WHERE miss_at < $1 AND poll_at IS NOT NULL ORDER BY id",
    )
    .bind(now.millis())
    .fetch_all(&mut *tx)
    .await
    .during("look for missed rotations")?;
    let (mut expected, mut changed) = (0, Vec::new());
    for r in rows {
        let (id, before, dead): (i64, i64, bool) = (r.get(0), r.get(4), r.get::<Option<i64>>(5).is_some());
        let due_at = Timestamp::from_millis(r.get(2));
        let (missed, next) = missed_rotations(due_at, r.get(3), now);
        // Of a grant that is gone nothing more is expected: it is evidence of another kind.
        let (missed, next) = if dead { (u64::from(before == 0), None) } else { (missed, Some(next.millis())) };
        if missed > 0 {
            let detail = match before {
                0 => "its token ended before a refresh arrived",
                _ => "no refresh arrived for another lifetime of its token",
            };
            let note = Note { at: now, subject: r.get(1), detail: detail.to_owned() };
            insert_note("missed-rotation", &note).execute(&mut *tx).await.during("note evidence")?;
        }
        expected += missed as i64;
        changed.push(serde_json::json!([id, missed, next]));
    }
    if changed.is_empty() {
        return Ok(());
    }
    query(
        "UPDATE connection SET missed = missed + CAST(j.value->>1 AS BIGINT), miss_at = CAST(j.value->>2 AS BIGINT)
         FROM json_each($1) AS j WHERE connection.id = CAST(j.value->>0 AS BIGINT)",
    )
    .bind(serde_json::json!(changed).to_string())
    .execute(&mut *tx)
    .await
    .during("note missed rotations")?;
    add(tx, &[("rotations_expected", expected)]).await
}

fn row(r: &Row) -> StoreResult<ConnectionRow> {
    let at = |i: usize| r.get::<Option<i64>>(i).map(Timestamp::from_millis);
    Ok(ConnectionRow {
        id: r.get(0),
        integration_key: r.get(1),
        connection_id: r.get(2),
        poll_at: at(3),
        fingerprint: r.get::<Option<String>>(4).map(|t| super::delivery::parse_fingerprint(&t)).transpose()?,
        expires_at: at(5),
        rotation: r.get::<i64>(6) as u64,
        failures: r.get::<i64>(7) as u32,
        failing_since: at(8),
        dead_at: at(9),
        config: from_json("connection config", &r.get::<String>(10))?,
        claim: r.get::<i64>(11) as u64,
    })
}
