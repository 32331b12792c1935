//! Grants that are gone, and the markers in KV that say so to the gateway.
//!
//! What is wanted in KV is committed together with the finding; a duty makes KV so. A claim keeps
//! two machines from writing one marker at the same time, as with deliveries.

use serde_json::json;

use super::db::Lock;
use super::evidence::{add, insert_note};
use super::{During, PollFailure, Row, Store, StoreResult, query};
use crate::domain::criteria::Note;
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;

/// A marker that KV does not show as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReauthMark {
    pub triplet: Triplet,
    /// Since when the grant is gone.
    pub at: Timestamp,
    pub reason: String,
    /// Whether it is to be there, or to be gone.
    pub wanted: bool,
    /// What becomes of it is recorded with this number.
    pub claim: u64,
}

/// What else happened at the same provider since a connection began to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Siblings {
    /// Another connection of the same OAuth client was refreshed.
    Refreshed,
    /// There are others, and those that tried failed too.
    Failing,
    /// No other connection tried.
    Silent,
}

macro_rules! claim {
    ($skip:literal) => {
        concat!(
            "UPDATE reauth SET claim = claim + 1, claimed_until = $2, next_at = $2 WHERE triplet IN (
               SELECT triplet FROM reauth WHERE next_at <= $1 ORDER BY triplet LIMIT $3",
            $skip,
            ") RETURNING triplet, at, reason, wanted, claim"
        )
    };
}

impl Store {
    /// Records that the grant of a connection is gone: the failed read that showed it, evidence and
    /// a wanted marker for each triplet that it feeds, in one commit. Returns `false`, with nothing
    /// recorded, when a later claim on the connection has an outcome already.
    pub async fn bury_grant(&self, failure: PollFailure, triplets: &[&Triplet], reason: &str) -> StoreResult<bool> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        if super::connection::record_failure(&mut tx, failure).await? == 0 {
            return Ok(false);
        }
        for triplet in triplets {
            let note = Note { at: failure.at, subject: triplet.to_string(), detail: reason.to_owned() };
            insert_note("dead-grant", &note).execute(&mut tx).await.during("note evidence")?;
            query(
                "INSERT INTO reauth (triplet, at, reason, wanted, next_at) VALUES ($1, $2, $3, 1, $2)
                 ON CONFLICT (triplet) DO UPDATE SET at = excluded.at, reason = excluded.reason, wanted = 1,
                   next_at = COALESCE(reauth.claimed_until, excluded.next_at)",
            )
            .bind(triplet.to_string())
            .bind(failure.at.millis())
            .bind(reason)
            .execute(&mut tx)
            .await
            .during("ask for a marker")?;
        }
        tx.commit().await.during("commit")?;
        Ok(true)
    }

    /// What happened to other connections of the same integration since `since`.
    pub async fn load_siblings(&self, integration: &str, connection: i64, since: Timestamp) -> StoreResult<Siblings> {
        let row = query(
            "SELECT COUNT(CASE WHEN refreshed_at > $3 THEN 1 END), COUNT(CASE WHEN failures > 0 THEN 1 END)
             FROM connection WHERE integration_key = $1 AND id <> $2",
        )
        .bind(integration)
        .bind(connection)
        .bind(since.millis())
        .fetch_one(&mut self.read().await)
        .await
        .during("look at other connections")?;
        Ok(match (row.get::<i64>(0), row.get::<i64>(1)) {
            (1.., _) => Siblings::Refreshed,
            (_, 1..) => Siblings::Failing,
            _ => Siblings::Silent,
        })
    }

    /// When the next marker is due.
    pub async fn load_reauth_due(&self) -> StoreResult<Option<Timestamp>> {
        let row = query("SELECT MIN(next_at) FROM reauth")
            .fetch_one(&mut self.lock().await)
            .await
            .during("look for markers")?;
        Ok(row.get::<Option<i64>>(0).map(Timestamp::from_millis))
    }

    /// Takes markers that are due, at most `limit`. Until `until` nobody else writes them.
    pub async fn claim_reauth(&self, now: Timestamp, limit: u32, until: Timestamp) -> StoreResult<Vec<ReauthMark>> {
        let sql = if self.is_shared() { claim!(" FOR UPDATE SKIP LOCKED") } else { claim!("") };
        let rows = query(sql)
            .bind(now.millis())
            .bind(until.millis())
            .bind(limit)
            .fetch_all(&mut self.lock().await)
            .await
            .during("claim markers")?;
        let mut marks: Vec<ReauthMark> = rows.iter().map(mark).collect::<StoreResult<_>>()?;
        marks.sort_by(|a, b| a.triplet.cmp(&b.triplet));
        Ok(marks)
    }

    /// KV has these markers as they were wanted when they were claimed, with rows for D1's audit. One
    /// that is wanted otherwise by now, or was claimed again, stays due.
    pub async fn settle_reauth(&self, marks: &[ReauthMark], now: Timestamp) -> StoreResult<()> {
        if marks.is_empty() {
            return Ok(());
        }
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        for mark in marks {
            let (name, claim) = (mark.triplet.to_string(), mark.claim as i64);
            let settled = query(
                "UPDATE reauth SET claimed_until = NULL, next_at = CASE WHEN wanted = $2 THEN NULL ELSE $3 END
                 WHERE triplet = $1 AND claim = $4",
            )
            .bind(&name)
            .bind(mark.wanted)
            .bind(now.millis())
            .bind(claim)
            .execute(&mut tx)
            .await
            .during("settle a marker")?;
            if settled == 0 {
                // This write may have come after a later one: what is wanted is written once more, under
                // a claim that makes the outcome of all before it count for nothing.
                query(
                    "UPDATE reauth SET claim = claim + 1, next_at = COALESCE(claimed_until, $2)
                     WHERE triplet = $1",
                )
                .bind(&name)
                .bind(now.millis())
                .execute(&mut tx)
                .await
                .during("write a marker again")?;
            }
            query(
                "INSERT INTO audit_outbox (op_id, at, key, action, source) VALUES ($1, $2, $3, $4, 'nango')
                 ON CONFLICT (op_id) DO NOTHING",
            )
            .bind(format!("{}#{claim}", mark.triplet.reauth_key()))
            .bind(now.millis())
            .bind(mark.triplet.reauth_key())
            .bind(if mark.wanted { "put kv.source" } else { "delete kv.source" })
            .execute(&mut tx)
            .await
            .during("append an audit row")?;
        }
        add(&mut tx, &[("reauth_writes", marks.len() as i64)]).await?;
        tx.commit().await.during("commit")
    }

    /// Puts claimed markers off until `at`, unless somebody else claimed them since.
    pub async fn defer_reauth(&self, marks: &[ReauthMark], at: Timestamp) -> StoreResult<()> {
        let claims: Vec<_> = marks.iter().map(|m| json!([m.triplet, m.claim])).collect();
        if claims.is_empty() {
            return Ok(());
        }
        query(
            "UPDATE reauth SET next_at = $1, claimed_until = NULL FROM json_each($2) AS j
             WHERE reauth.triplet = j.value->>0 AND reauth.claim = CAST(j.value->>1 AS BIGINT)",
        )
        .bind(at.millis())
        .bind(json!(claims).to_string())
        .execute(&mut self.lock().await)
        .await
        .during("put markers off")?;
        Ok(())
    }

    /// Triplets whose grant is gone, by name, with since when and why.
    pub async fn load_dead_grants(&self) -> StoreResult<Vec<Note>> {
        let rows = query("SELECT at, triplet, reason FROM reauth WHERE wanted = 1 ORDER BY triplet")
            .fetch_all(&mut self.read().await)
            .await
            .during("load dead grants")?;
        Ok(rows
            .into_iter()
            .map(|r| Note { at: Timestamp::from_millis(r.get(0)), subject: r.get(1), detail: r.get(2) })
            .collect())
    }
}

fn mark(r: &Row) -> StoreResult<ReauthMark> {
    Ok(ReauthMark {
        triplet: super::delivery::parse_triplet(&r.get::<String>(0))?,
        at: Timestamp::from_millis(r.get(1)),
        reason: r.get(2),
        wanted: r.get::<i64>(3) == 1,
        claim: r.get::<i64>(4) as u64,
    })
}
