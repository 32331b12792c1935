//! Looks at many rows at once, for people: what waits, what was given up, how many are where.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::delivery::parse_triplet;
use super::{During, EventRow, Row, Sink, Store, StoreError, StoreResult, query};
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;

/// Something that went wrong, once or many times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NewsRow {
    /// The kind of the notes.
    pub kind: String,
    pub subject: String,
    /// When it last happened, and what was written down then.
    pub at: Timestamp,
    pub detail: String,
    pub times: u64,
}

/// A delivery that waits or was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogRow {
    pub triplet: Triplet,
    pub sink: Sink,
    pub version: u64,
    /// The newest version that the sink has; 0 when it has none.
    pub delivered: u64,
    pub attempts: u32,
    pub captured_at: Timestamp,
    pub next_at: Option<Timestamp>,
    /// Why it was given up.
    pub dead: Option<String>,
}

impl Store {
    /// Deliveries that wait or were given up, oldest capture first, at most `limit`.
    pub async fn load_backlog(&self, limit: u32) -> StoreResult<Vec<BacklogRow>> {
        let rows = query(
            "SELECT triplet, sink, version, delivered, attempts, captured_at, next_at, dead FROM delivery
             WHERE next_at IS NOT NULL OR dead IS NOT NULL ORDER BY captured_at, triplet, sink LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&mut self.read().await)
        .await
        .during("load what waits")?;
        rows.iter()
            .map(|r| {
                Ok(BacklogRow {
                    triplet: parse_triplet(&r.get::<String>(0))?,
                    sink: parse_sink(&r.get::<String>(1))?,
                    version: r.get::<i64>(2) as u64,
                    delivered: r.get::<i64>(3) as u64,
                    attempts: r.get::<i64>(4) as u32,
                    captured_at: Timestamp::from_millis(r.get(5)),
                    next_at: r.get::<Option<i64>>(6).map(Timestamp::from_millis),
                    dead: r.get(7),
                })
            })
            .collect()
    }

    /// How many triplets are in each stage; `retained` for those that stay, `held` for those that
    /// wait for a person.
    pub async fn count_stages(&self) -> StoreResult<BTreeMap<String, u64>> {
        let rows = query(
            "SELECT CASE WHEN custody LIKE '%\"route\":\"retain\"%' OR custody LIKE '%\"route\":\"blocked\"%' THEN 'retained'
                         WHEN custody LIKE '%\"held\":\"%' THEN 'held' ELSE stage END AS place, COUNT(*)
             FROM triplet GROUP BY 1 ORDER BY 1",
        )
        .fetch_all(&mut self.read().await)
        .await
        .during("count triplets")?;
        Ok(rows.iter().map(|r| (r.get(0), r.get::<i64>(1) as u64)).collect())
    }

    /// How many triplets are being mirrored.
    pub async fn count_delivering(&self) -> StoreResult<u64> {
        let row = query("SELECT COUNT(*) FROM delivery WHERE sink = $1")
            .bind(Sink::KvSource.name())
            .fetch_one(&mut self.read().await)
            .await
            .during("count deliveries")?;
        Ok(row.get::<i64>(0) as u64)
    }

    /// Triplets that have something to mirror, and that nobody took out of the mirror yet.
    pub async fn load_mirrored(&self) -> StoreResult<Vec<Triplet>> {
        let rows = query(
            "SELECT key FROM triplet WHERE stage NOT IN ('settled', 'retired') AND custody NOT LIKE '%\"route\":\"retain\"%'
               AND custody NOT LIKE '%\"route\":\"blocked\"%'",
        )
        .fetch_all(&mut self.read().await)
        .await
        .during("load mirrored triplets")?;
        rows.iter().map(|r| parse_triplet(&r.get::<String>(0))).collect()
    }

    /// The triplet that an account at Composio belongs to, as mirror or as final custody.
    pub async fn load_account_owner(&self, account: &str) -> StoreResult<Option<Triplet>> {
        let row = query("SELECT key FROM triplet WHERE mirror_account = $1 OR consent_account = $1 LIMIT 1")
            .bind(account)
            .fetch_optional(&mut self.read().await)
            .await
            .during("look for an account's owner")?;
        row.map(|r| parse_triplet(&r.get::<String>(0))).transpose()
    }

    /// The newest lines of the audit trail, newest first. The chain is not checked here.
    pub async fn load_recent_events(&self, limit: u32) -> StoreResult<Vec<EventRow>> {
        let rows = query("SELECT seq, at, actor, subject, json FROM event ORDER BY seq DESC LIMIT $1")
            .bind(limit)
            .fetch_all(&mut self.read().await)
            .await
            .during("read the audit trail")?;
        let event = |r: &Row| EventRow {
            seq: r.get(0),
            at: Timestamp::from_millis(r.get(1)),
            actor: r.get(2),
            subject: r.get(3),
            json: r.get(4),
        };
        Ok(rows.iter().map(event).collect())
    }

    /// Notes of these kinds since `since`, one row for each kind and subject, the newest first.
    pub async fn load_news(&self, kinds: &[&str], since: Timestamp, limit: u32) -> StoreResult<Vec<NewsRow>> {
        let rows = query(
            "SELECT note.kind, note.subject, note.at, note.detail, newest.times FROM note JOIN
               (SELECT MAX(seq) AS seq, COUNT(*) AS times FROM note
                WHERE kind IN (SELECT value->>0 FROM json_each($1)) AND at >= $2 GROUP BY kind, subject) AS newest
               ON note.seq = newest.seq
             ORDER BY note.at DESC, note.seq DESC LIMIT $3",
        )
        .bind(json!(kinds.iter().map(|kind| [kind]).collect::<Vec<_>>()).to_string())
        .bind(since.millis())
        .bind(limit)
        .fetch_all(&mut self.read().await)
        .await
        .during("load what went wrong")?;
        let news = |r: &Row| NewsRow {
            kind: r.get(0),
            subject: r.get(1),
            at: Timestamp::from_millis(r.get(2)),
            detail: r.get(3),
            times: r.get::<i64>(4) as u64,
        };
        Ok(rows.iter().map(news).collect())
    }

    /// Takes a dead letter up again: it is due `now`, as if it had never failed. Returns whether
    /// there was one.
    pub async fn revive_delivery(&self, sink: Sink, triplet: &Triplet, now: Timestamp) -> StoreResult<bool> {
        let sql = "UPDATE delivery SET dead = NULL, attempts = 0, next_at = $1 WHERE sink = $2 AND triplet = $3 AND dead IS NOT NULL";
        let done = query(sql)
            .bind(now.millis())
            .bind(sink.name())
            .bind(triplet.to_string())
            .execute(&mut self.lock().await)
            .await
            .during("take a dead letter up")?;
        Ok(done > 0)
    }

    /// Forgets a dead letter: the sink keeps what it has until the next version comes. Returns
    /// whether there was one.
    pub async fn drop_delivery(&self, sink: Sink, triplet: &Triplet) -> StoreResult<bool> {
        let sql = "UPDATE delivery SET dead = NULL, attempts = 0 WHERE sink = $1 AND triplet = $2 AND dead IS NOT NULL";
        let done = query(sql)
            .bind(sink.name())
            .bind(triplet.to_string())
            .execute(&mut self.lock().await)
            .await
            .during("drop a dead letter")?;
        Ok(done > 0)
    }
}

pub(super) fn parse_sink(name: &str) -> StoreResult<Sink> {
    let sink = Sink::ALL.into_iter().find(|sink| sink.name() == name);
    sink.ok_or_else(|| StoreError::Corrupt { what: "sink", detail: name.to_owned() })
}
