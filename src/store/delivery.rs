//! Where the newest version of each triplet stands on its way to each sink.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::Row;

use super::{During, Store, StoreError, StoreResult, from_json, procedure::MARK_DELIVERED};
use crate::domain::custody::Custody;
use crate::domain::secret::Fingerprint;
use crate::domain::time::Timestamp;
use crate::domain::token::{KvEntry, KvMetadata, Writer};
use crate::domain::triplet::Triplet;

/// The least time between two writes of one key.
const KEY_WRITE_MS: i64 = crate::domain::time::SECOND_MS;

/// A place that tokens are mirrored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sink {
    KvSource,
    KvTarget,
    Composio,
}

impl Sink {
    pub const ALL: [Self; 3] = [Self::KvSource, Self::KvTarget, Self::Composio];

    pub const fn name(self) -> &'static str {
        match self {
            Self::KvSource => "kv.source",
            Self::KvTarget => "kv.target",
            Self::Composio => "composio",
        }
    }
}

/// The newest version of a triplet that a sink does not have yet.
#[derive(Clone, Debug)]
pub struct PendingDelivery {
    pub sink: Sink,
    pub triplet: Triplet,
    pub metadata: KvMetadata,
    pub entry: KvEntry,
    pub attempts: u32,
    pub captured_at: Timestamp,
    /// The bearer mirror at Composio.
    pub mirror_account: Option<String>,
}

/// A delivery that the sink acknowledged.
#[derive(Clone, Debug)]
pub struct Delivered {
    pub sink: Sink,
    pub triplet: Triplet,
    pub metadata: KvMetadata,
    pub captured_at: Timestamp,
}

/// What a sink has of a triplet, as far as we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkState {
    pub triplet: Triplet,
    pub version: u64,
    pub delivered: u64,
    pub delivered_at: Option<Timestamp>,
    pub delivered_exp: Option<Timestamp>,
    pub delivered_fp: Option<Fingerprint>,
    pub dead: Option<String>,
}

impl Store {
    /// Deliveries that are due at `sink`, oldest capture first, at most `limit`. What is meant for
    /// Composio waits until `apply` has made the account. No key of a sink is written twice within
    /// a second (Cloudflare contract §2.7).
    pub async fn load_pending_of(&self, sink: Sink, now: Timestamp, limit: u32) -> StoreResult<Vec<PendingDelivery>> {
        let rows = sqlx::query(
            "SELECT d.triplet, d.version, d.attempts, d.captured_at, j.payload, j.fingerprint, j.epoch, j.writer,
                    j.expires_at, t.mirror_account
             FROM delivery d
             JOIN journal j ON j.triplet = d.triplet AND j.version = d.version
             JOIN triplet t ON t.key = d.triplet
             WHERE d.sink = $1 AND d.next_at <= $2 AND (d.delivered_at IS NULL OR d.delivered_at <= $3)
               AND (d.sink <> 'composio' OR t.mirror_account IS NOT NULL)
             ORDER BY d.captured_at, d.triplet LIMIT $4",
        )
        .bind(sink.name())
        .bind(now.millis())
        .bind(now.millis() - KEY_WRITE_MS)
        .bind(limit)
        .fetch_all(&mut *self.lock().await)
        .await
        .during("load pending deliveries")?;
        rows.into_iter()
            .map(|r| {
                let name: String = r.get(0);
                let version: i64 = r.get(1);
                let writer: Writer = from_json("writer", &format!("\"{}\"", r.get::<String, _>(7)))?;
                Ok(PendingDelivery {
                    sink,
                    triplet: parse_triplet(&name)?,
                    metadata: KvMetadata {
                        v: version as u64,
                        fp: parse_fingerprint(&r.get::<String, _>(5))?,
                        ep: r.get::<i64, _>(6) as u64,
                        src: writer,
                        exp: r.get::<Option<i64>, _>(8).map(|ms| Timestamp::from_millis(ms).secs()),
                    },
                    entry: self.open_entry(&name, version, &r.get::<Vec<u8>, _>(4))?,
                    attempts: r.get::<i64, _>(2) as u32,
                    captured_at: Timestamp::from_millis(r.get(3)),
                    mirror_account: r.get(9),
                })
            })
            .collect()
    }

    /// When the next delivery to `sink` is due that can be made.
    pub async fn load_sink_due(&self, sink: Sink) -> StoreResult<Option<Timestamp>> {
        let row = sqlx::query(
            "SELECT MIN(CASE WHEN d.delivered_at + $1 > d.next_at THEN d.delivered_at + $1 ELSE d.next_at END)
             FROM delivery d JOIN triplet t ON t.key = d.triplet
             WHERE d.sink = $2 AND d.next_at IS NOT NULL AND (d.sink <> 'composio' OR t.mirror_account IS NOT NULL)",
        )
        .bind(KEY_WRITE_MS)
        .bind(sink.name())
        .fetch_one(&mut *self.lock().await)
        .await
        .during("look for what is due")?;
        Ok(row.get::<Option<i64>, _>(0).map(Timestamp::from_millis))
    }

    /// Records acknowledged deliveries with their audit rows. A newer version that arrived
    /// meanwhile stays pending.
    pub async fn mark_delivered(&self, delivered: &[Delivered], now: Timestamp) -> StoreResult<()> {
        if delivered.is_empty() {
            return Ok(());
        }
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for d in delivered {
            *counts.entry(format!("deliveries:{}", d.sink.name())).or_default() += 1;
            *counts.entry(super::evidence::lag_counter(now.since(d.captured_at))).or_default() += 1;
        }
        let rows: Vec<_> = delivered
            .iter()
            .map(|d| {
                json!({
                    "triplet": d.triplet, "sink": d.sink.name(), "version": d.metadata.v, "fp": d.metadata.fp,
                    "exp": d.metadata.exp.map(|s| s * 1000), "key": d.triplet.kv_key(), "src": d.metadata.src,
                    "op": format!("{}#{}@{}", d.triplet, d.metadata.v, d.sink.name()),
                })
            })
            .collect();
        let counts: Vec<(String, i64)> = counts.into_iter().collect();
        let all = json!({"rows": rows, "counts": counts, "now": now.millis()});
        MARK_DELIVERED.call(&mut *self.lock().await, &all).await
    }

    /// Puts failed deliveries off until `next_at`.
    pub async fn defer_deliveries(&self, sink: Sink, triplets: &[Triplet], next_at: Timestamp) -> StoreResult<()> {
        let names = json!(triplets).to_string();
        sqlx::query(
            "UPDATE delivery SET attempts = attempts + 1, next_at = ?
             WHERE sink = ? AND triplet IN (SELECT value FROM json_each(?))",
        )
        .bind(next_at.millis())
        .bind(sink.name())
        .bind(names)
        .execute(&mut *self.lock().await)
        .await
        .during("put deliveries off")?;
        Ok(())
    }

    /// Gives a delivery up: a dead letter that waits for a person.
    pub async fn bury_delivery(&self, sink: Sink, triplet: &Triplet, reason: &str) -> StoreResult<()> {
        sqlx::query("UPDATE delivery SET next_at = NULL, dead = ? WHERE sink = ? AND triplet = ?")
            .bind(reason)
            .bind(sink.name())
            .bind(triplet.to_string())
            .execute(&mut *self.lock().await)
            .await
            .during("bury a delivery")?;
        Ok(())
    }

    /// Ends the mirroring of a triplet: nothing is pending any more.
    pub async fn end_deliveries(&self, triplet: &Triplet) -> StoreResult<()> {
        sqlx::query("DELETE FROM delivery WHERE triplet = ?")
            .bind(triplet.to_string())
            .execute(&mut *self.lock().await)
            .await
            .during("end deliveries")?;
        Ok(())
    }

    /// Everything that `sink` should have, by triplet.
    pub async fn load_sink(&self, sink: Sink) -> StoreResult<Vec<SinkState>> {
        let rows = sqlx::query(
            "SELECT triplet, version, delivered, delivered_at, delivered_exp, delivered_fp, dead
             FROM delivery WHERE sink = ? ORDER BY triplet",
        )
        .bind(sink.name())
        .fetch_all(&mut *self.lock().await)
        .await
        .during("load a sink")?;
        rows.into_iter()
            .map(|r| {
                Ok(SinkState {
                    triplet: parse_triplet(&r.get::<String, _>(0))?,
                    version: r.get::<i64, _>(1) as u64,
                    delivered: r.get::<i64, _>(2) as u64,
                    delivered_at: r.get::<Option<i64>, _>(3).map(Timestamp::from_millis),
                    delivered_exp: r.get::<Option<i64>, _>(4).map(Timestamp::from_millis),
                    delivered_fp: r.get::<Option<String>, _>(5).map(|t| parse_fingerprint(&t)).transpose()?,
                    dead: r.get(6),
                })
            })
            .collect()
    }

    /// Triplets whose token in `sink` ended before `now` without a newer one being there, that
    /// are still read from the source. Each is returned once per delivered version.
    pub async fn take_expired(&self, sink: Sink, now: Timestamp) -> StoreResult<Vec<(Triplet, Timestamp)>> {
        let mut connection = self.lock().await;
        let rows = sqlx::query(
            "SELECT d.triplet, d.delivered_exp, t.custody FROM delivery d JOIN triplet t ON t.key = d.triplet
             WHERE d.sink = ? AND d.delivered_exp < ? ORDER BY d.triplet",
        )
        .bind(sink.name())
        .bind(now.millis())
        .fetch_all(&mut *connection)
        .await
        .during("look for expired tokens")?;
        let mut expired = Vec::new();
        for r in rows {
            let custody: Custody = from_json("custody", &r.get::<String, _>(2))?;
            if custody.read == crate::domain::custody::ReadAuthority::Source {
                expired.push((parse_triplet(&r.get::<String, _>(0))?, Timestamp::from_millis(r.get(1))));
            }
        }
        if !expired.is_empty() {
            let names = json!(expired.iter().map(|e| &e.0).collect::<Vec<_>>()).to_string();
            sqlx::query(
                "UPDATE delivery SET delivered_exp = NULL WHERE sink = ? AND triplet IN (SELECT value FROM json_each(?))",
            )
            .bind(sink.name())
            .bind(names)
            .execute(&mut *connection)
            .await
            .during("note expired tokens")?;
        }
        Ok(expired)
    }
}

pub(super) fn parse_triplet(text: &str) -> StoreResult<Triplet> {
    Triplet::parse(text).map_err(|e| StoreError::Corrupt { what: "triplet", detail: e.to_string() })
}

pub(super) fn parse_fingerprint(text: &str) -> StoreResult<Fingerprint> {
    Fingerprint::parse(text)
        .ok_or_else(|| StoreError::Corrupt { what: "fingerprint", detail: "not 24 hex digits".to_owned() })
}
