//! Where the newest version of each triplet stands on its way to each sink.

use std::collections::BTreeMap;

use super::db::Lock;
use super::{During, Row, Store, StoreError, StoreResult, from_json, procedure::MARK_DELIVERED, query};
use crate::domain::custody::Custody;
use crate::domain::secret::Fingerprint;
use crate::domain::time::Timestamp;
use crate::domain::token::{KvEntry, KvMetadata, Writer};
use crate::domain::triplet::Triplet;
use serde_json::json;

/// The least time between two writes of one key: Cloudflare takes one a second (contract §2.7), and a
/// write is recorded with the time at which its round began, which is before it arrives.
const KEY_WRITE_MS: i64 = 1_500;

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
    /// When the first of these attempts failed.
    pub failing_since: Option<Timestamp>,
    pub captured_at: Timestamp,
    /// Somebody else wrote the entry last, as far as was seen when it was claimed.
    pub foreign: bool,
    /// The bearer mirror at Composio.
    pub mirror_account: Option<String>,
    /// The claim under which it is delivered. What becomes of it is recorded with this number.
    pub claim: u64,
}

impl PendingDelivery {
    /// What is recorded once the sink has acknowledged it.
    pub fn acknowledged(self) -> Delivered {
        let Self { sink, triplet, metadata, captured_at, claim, .. } = self;
        Delivered { sink, triplet, metadata, captured_at, claim }
    }
}

/// A delivery that the sink acknowledged.
#[derive(Clone, Debug)]
pub struct Delivered {
    pub sink: Sink,
    pub triplet: Triplet,
    pub metadata: KvMetadata,
    pub captured_at: Timestamp,
    /// Of [`PendingDelivery::claim`].
    pub claim: u64,
}

/// What a sink has of a triplet, as far as we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkState {
    pub triplet: Triplet,
    pub version: u64,
    /// When the newest version was captured.
    pub captured_at: Timestamp,
    pub delivered: u64,
    pub delivered_at: Option<Timestamp>,
    pub delivered_exp: Option<Timestamp>,
    pub delivered_fp: Option<Fingerprint>,
    pub dead: Option<String>,
}

/// Takes due deliveries that nobody else is taking at this moment, and whose key was not written
/// just now ([`KEY_WRITE_MS`]).
macro_rules! claim {
    ($skip:literal) => {
        concat!(
            "UPDATE delivery SET claim = claim + 1, claimed_until = $4, next_at = $4 WHERE (triplet, sink) IN (
               SELECT d.triplet, d.sink FROM delivery d JOIN triplet t ON t.key = d.triplet
               WHERE d.next_at <= $1 AND (d.delivered_at IS NULL OR d.delivered_at <= $1 - 1500) AND d.sink = $2
                 AND (d.sink <> 'composio' OR t.mirror_account IS NOT NULL)
               ORDER BY d.next_at, d.triplet LIMIT $3",
            $skip,
            ") RETURNING triplet, sink"
        )
    };
}

impl Store {
    /// Takes deliveries to `sink` that are due, longest due first, at most `limit`. Until `until`
    /// nobody else delivers to the same sink for the same triplet, whatever is captured
    /// meanwhile; so a request of a worker that died is over before another one is made. What
    /// is meant for Composio waits until `apply` has made the account.
    pub async fn claim_deliveries(
        &self,
        sink: Sink,
        now: Timestamp,
        limit: u32,
        until: Timestamp,
    ) -> StoreResult<Vec<PendingDelivery>> {
        let sql = if self.is_shared() { claim!(" FOR UPDATE OF d SKIP LOCKED") } else { claim!("") };
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Rows).await.during("begin")?;
        let claimed: Vec<(String, String)> = query(sql)
            .bind(now.millis())
            .bind(sink.name())
            .bind(limit)
            .bind(until.millis())
            .fetch_all(&mut tx)
            .await
            .during("claim deliveries")?
            .iter()
            .map(|r| (r.get(0), r.get(1)))
            .collect();
        if claimed.is_empty() {
            return Ok(Vec::new());
        }
        let rows = query(
            "SELECT d.triplet, d.version, d.attempts, d.captured_at, j.payload, j.fingerprint, j.epoch, j.writer,
                    j.expires_at, t.mirror_account, d.sink, d.claim, f.key IS NOT NULL,
                    CASE WHEN d.attempts > 0 THEN d.failing_since END
             FROM json_each($1) AS n
             JOIN delivery d ON d.triplet = n.value->>0 AND d.sink = n.value->>1
             JOIN journal j ON j.triplet = d.triplet AND j.version = d.version
             JOIN triplet t ON t.key = d.triplet
             LEFT JOIN meta f ON f.key = 'foreign:' || d.sink || ':' || d.triplet
             ORDER BY d.captured_at, d.triplet, d.sink",
        )
        .bind(json!(claimed).to_string())
        .fetch_all(&mut tx)
        .await
        .during("load claimed deliveries")?;
        let pending = self.read_pending(&rows)?;
        tx.commit().await.during("commit")?;
        Ok(pending)
    }

    fn read_pending(&self, rows: &[Row]) -> StoreResult<Vec<PendingDelivery>> {
        // The sinks of a triplet come one after the other: its entry is decrypted once.
        let mut opened: Option<(String, i64, KvEntry)> = None;
        rows.iter()
            .map(|r| {
                let name: String = r.get(0);
                let version: i64 = r.get(1);
                let entry = match &opened {
                    Some((n, v, entry)) if *n == name && *v == version => entry.clone(),
                    _ => {
                        let entry = self.open_entry(&name, version, &r.get::<Vec<u8>>(4))?;
                        opened = Some((name.clone(), version, entry.clone()));
                        entry
                    }
                };
                let sink: String = r.get(10);
                let sink = Sink::ALL
                    .into_iter()
                    .find(|s| s.name() == sink)
                    .ok_or(StoreError::Corrupt { what: "sink", detail: sink })?;
                let writer: Writer = from_json("writer", &format!("\"{}\"", r.get::<String>(7)))?;
                Ok(PendingDelivery {
                    sink,
                    triplet: parse_triplet(&name)?,
                    metadata: KvMetadata {
                        v: version as u64,
                        fp: parse_fingerprint(&r.get::<String>(5))?,
                        ep: r.get::<i64>(6) as u64,
                        src: writer,
                        exp: r.get::<Option<i64>>(8).map(|ms| Timestamp::from_millis(ms).secs()),
                    },
                    entry,
                    attempts: r.get::<i64>(2) as u32,
                    failing_since: r.get::<Option<i64>>(13).map(Timestamp::from_millis),
                    captured_at: Timestamp::from_millis(r.get(3)),
                    foreign: r.get(12),
                    mirror_account: r.get(9),
                    claim: r.get::<i64>(11) as u64,
                })
            })
            .collect()
    }

    /// When the next delivery to `sink` is due that can be made.
    pub async fn load_sink_due(&self, sink: Sink) -> StoreResult<Option<Timestamp>> {
        let row = query(
            "SELECT MIN(CASE WHEN d.delivered_at + $1 > d.next_at THEN d.delivered_at + $1 ELSE d.next_at END)
             FROM delivery d JOIN triplet t ON t.key = d.triplet
             WHERE d.sink = $2 AND d.next_at IS NOT NULL AND (d.sink <> 'composio' OR t.mirror_account IS NOT NULL)",
        )
        .bind(KEY_WRITE_MS)
        .bind(sink.name())
        .fetch_one(&mut self.lock().await)
        .await
        .during("look for what is due")?;
        Ok(row.get::<Option<i64>>(0).map(Timestamp::from_millis))
    }

    /// Gives claimed deliveries back that were not tried: they are due at `at`, as before.
    pub async fn release_deliveries(&self, untried: &[PendingDelivery], at: Timestamp) -> StoreResult<()> {
        let sql = "UPDATE delivery SET next_at = $1, claimed_until = NULL
             FROM json_each($2) AS j WHERE delivery.triplet = j.value->>0 AND delivery.sink = j.value->>1
               AND delivery.claim = CAST(j.value->>2 AS BIGINT)";
        self.end_claims(sql, untried.iter(), at, at).await
    }

    /// Records acknowledged deliveries with their audit rows. A newer version that arrived
    /// meanwhile stays pending. One whose claim is over is not recorded: somebody else may have
    /// written a newer version before it, so the newest is written once more.
    pub async fn mark_delivered(&self, delivered: &[Delivered], now: Timestamp) -> StoreResult<()> {
        if delivered.is_empty() {
            return Ok(());
        }
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for d in delivered {
            *counts.entry(format!("deliveries:{}", d.sink.name())).or_default() += 1;
            *counts.entry(super::lag_counter(now.since(d.captured_at))).or_default() += 1;
        }
        let rows: Vec<_> = delivered
            .iter()
            .map(|d| {
                json!({
                    "triplet": d.triplet, "sink": d.sink.name(), "version": d.metadata.v, "fp": d.metadata.fp,
                    "exp": d.metadata.exp.map(|s| s * 1000), "key": d.triplet.kv_key(), "src": d.metadata.src,
                    "claim": d.claim, "now": now.millis(),
                    "op": format!("{}#{}@{}", d.triplet, d.metadata.v, d.sink.name()),
                })
            })
            .collect();
        let counts: Vec<(String, i64)> = counts.into_iter().collect();
        crate::failpoint::hit("mark-before-commit");
        let all = json!({"rows": rows, "counts": counts});
        MARK_DELIVERED.call_alone(&mut self.lock().await, Lock::Journal, &all).await?;
        crate::failpoint::hit("mark-after-commit");
        Ok(())
    }

    /// Puts deliveries that failed at `now` off until `next_at`, unless their claim is over.
    pub async fn defer_deliveries(
        &self,
        failed: &[&PendingDelivery],
        now: Timestamp,
        next_at: Timestamp,
    ) -> StoreResult<()> {
        let sql = "UPDATE delivery SET attempts = attempts + 1, next_at = $1, claimed_until = NULL,
               failing_since = COALESCE(CASE WHEN attempts > 0 THEN failing_since END, CAST(j.value->>3 AS BIGINT))
             FROM json_each($2) AS j WHERE delivery.triplet = j.value->>0 AND delivery.sink = j.value->>1
               AND delivery.claim = CAST(j.value->>2 AS BIGINT)";
        self.end_claims(sql, failed.iter().copied(), now, next_at).await
    }

    /// Runs a statement about claims, given as triplet, sink, number and `now`, that are still held.
    async fn end_claims(
        &self,
        sql: &'static str,
        claims: impl Iterator<Item = &PendingDelivery>,
        now: Timestamp,
        next_at: Timestamp,
    ) -> StoreResult<()> {
        let claims: Vec<_> = claims.map(|p| json!([p.triplet, p.sink.name(), p.claim, now.millis()])).collect();
        if claims.is_empty() {
            return Ok(());
        }
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        query(sql)
            .bind(next_at.millis())
            .bind(json!(claims).to_string())
            .execute(&mut tx)
            .await
            .during("put deliveries off")?;
        tx.commit().await.during("commit")
    }

    /// Gives a delivery up: a dead letter that waits for a person. Not when its claim is over.
    /// Returns whether it did.
    pub async fn bury_delivery(&self, failed: &PendingDelivery, reason: &str) -> StoreResult<bool> {
        let buried = query(
            "UPDATE delivery SET next_at = NULL, claimed_until = NULL, dead = $1
             WHERE sink = $2 AND triplet = $3 AND claim = $4 AND version = $5",
        )
        .bind(reason)
        .bind(failed.sink.name())
        .bind(failed.triplet.to_string())
        .bind(failed.claim as i64)
        .bind(failed.metadata.v as i64)
        .execute(&mut self.lock().await)
        .await
        .during("bury a delivery")?;
        Ok(buried == 1)
    }

    /// Ends the mirroring of a triplet: nothing is pending any more, and a marker that its old grant is
    /// gone is taken back.
    pub async fn end_deliveries(&self, triplet: &Triplet) -> StoreResult<()> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        for sql in [
            "DELETE FROM delivery WHERE triplet = $1",
            "UPDATE reauth SET wanted = 0, next_at = COALESCE(claimed_until, 0) WHERE triplet = $1 AND wanted = 1",
        ] {
            query(sql).bind(triplet.to_string()).execute(&mut tx).await.during("end deliveries")?;
        }
        tx.commit().await.during("commit")
    }

    /// Everything that `sink` should have, by triplet.
    pub async fn load_sink(&self, sink: Sink) -> StoreResult<Vec<SinkState>> {
        let rows = query(
            "SELECT triplet, version, delivered, delivered_at, delivered_exp, delivered_fp, dead, captured_at
             FROM delivery WHERE sink = $1 ORDER BY triplet",
        )
        .bind(sink.name())
        .fetch_all(&mut self.read().await)
        .await
        .during("load a sink")?;
        rows.into_iter()
            .map(|r| {
                Ok(SinkState {
                    triplet: parse_triplet(&r.get::<String>(0))?,
                    version: r.get::<i64>(1) as u64,
                    delivered: r.get::<i64>(2) as u64,
                    delivered_at: r.get::<Option<i64>>(3).map(Timestamp::from_millis),
                    delivered_exp: r.get::<Option<i64>>(4).map(Timestamp::from_millis),
                    delivered_fp: r.get::<Option<String>>(5).map(|t| parse_fingerprint(&t)).transpose()?,
                    dead: r.get(6),
                    captured_at: Timestamp::from_millis(r.get(7)),
                })
            })
            .collect()
    }

    /// Triplets whose token in `sink` ended before `now` without a newer one being there, that
    /// are still read from the source. Each is returned once per delivered version.
    pub async fn take_expired(&self, sink: Sink, now: Timestamp) -> StoreResult<Vec<(Triplet, Timestamp)>> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        let rows = query(
            "SELECT d.triplet, d.delivered_exp, t.custody FROM delivery d JOIN triplet t ON t.key = d.triplet
             WHERE d.sink = $1 AND d.delivered_exp < $2 ORDER BY d.triplet",
        )
        .bind(sink.name())
        .bind(now.millis())
        .fetch_all(&mut tx)
        .await
        .during("look for expired tokens")?;
        let mut expired = Vec::new();
        for r in rows {
            let custody: Custody = from_json("custody", &r.get::<String>(2))?;
            if custody.read == crate::domain::custody::ReadAuthority::Source {
                expired.push((parse_triplet(&r.get::<String>(0))?, Timestamp::from_millis(r.get(1))));
            }
        }
        if !expired.is_empty() {
            let names = json!(expired.iter().map(|e| [&e.0]).collect::<Vec<_>>()).to_string();
            query(
                "UPDATE delivery SET delivered_exp = NULL WHERE sink = $1 AND triplet IN (SELECT value->>0 FROM json_each($2))",
            )
            .bind(sink.name())
            .bind(names)
            .execute(&mut tx)
            .await
            .during("note expired tokens")?;
        }
        tx.commit().await.during("commit")?;
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
