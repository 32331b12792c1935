//! The journal of token versions: append-only, hash-chained, one commit for many captures.

use std::collections::HashMap;

use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::Row;

use super::{During, Sink, Store, StoreError, StoreResult, procedure::APPEND_CAPTURES};
use crate::domain::secret::{Fingerprint, hex};
use crate::domain::time::Timestamp;
use crate::domain::token::{KvEntry, Writer};
use crate::domain::triplet::Triplet;

/// What one read of a connection brought.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Row id of the connection.
    pub connection: i64,
    pub fingerprint: Fingerprint,
    pub expires_at: Option<Timestamp>,
    /// When to read it next.
    pub poll_at: Timestamp,
    /// New token versions; empty when the token was the one we have.
    pub versions: Vec<NewVersion>,
    /// The schedule had asked for this rotation, and whether it came before the old token ended.
    pub scheduled: Option<bool>,
}

/// A token version on its way into the journal.
#[derive(Clone, Debug)]
pub struct NewVersion {
    pub triplet: Triplet,
    pub epoch: u64,
    pub writer: Writer,
    pub entry: KvEntry,
}

impl Store {
    /// Appends what a round of reads brought, in one commit: versions, their deliveries to
    /// `sinks`, the connections' next polls, and the counts of scheduled and arrived rotations.
    ///
    /// A version whose token ends before the head's is superseded on arrival: it is counted and dropped.
    pub async fn append_captures(&self, captures: &[Capture], sinks: &[Sink], now: Timestamp) -> StoreResult<()> {
        let mut connection = self.lock().await;
        let names: Vec<String> = captures.iter().flat_map(|c| &c.versions).map(|v| v.triplet.to_string()).collect();
        let mut previous = vec![0; 32];
        let mut heads: HashMap<String, (i64, Option<i64>)> = HashMap::new();
        // The lock is held until the commit, so nothing can come between this look and the append.
        let found = sqlx::query(
            "SELECT key, version, expires_at, NULL FROM triplet WHERE key IN (SELECT value FROM json_each(?1))
             UNION ALL SELECT '', 0, NULL, hash FROM journal WHERE seq = (SELECT MAX(seq) FROM journal)",
        )
        .bind(json!(names).to_string())
        .fetch_all(&mut *connection)
        .await
        .during("load heads")?;
        for row in found {
            match row.get::<Option<Vec<u8>>, _>(3) {
                Some(hash) => previous = hash,
                None => drop(heads.insert(row.get(0), (row.get(1), row.get(2)))),
            }
        }

        let (mut rows, mut superseded) = (Vec::new(), 0usize);
        for version in captures.iter().flat_map(|c| &c.versions) {
            let name = version.triplet.to_string();
            let (head, head_expires) = *heads.get(&name).ok_or_else(|| StoreError::UnknownTriplet(name.clone()))?;
            let expires = version.entry.expires_at.map(Timestamp::millis);
            if head > 0 && expires < head_expires {
                superseded += 1;
                continue;
            }
            let clear = version.entry.to_json();
            let number = head + 1;
            let payload = self.vault.seal(&place(&name, number), clear.as_bytes())?;
            let fingerprint = self.vault.fingerprints().fingerprint(&version.entry.access_token).to_string();
            let digest = Sha256::digest(&payload);
            let facts = json!([now.millis(), name, number, version.epoch, version.writer, fingerprint, expires]);
            let hash = chain(&previous, &facts.to_string(), &digest);
            rows.push(json!({
                "at": now.millis(), "triplet": name, "version": number, "epoch": version.epoch,
                "writer": version.writer, "fp": fingerprint, "exp": expires,
                "payload": hex(&payload), "digest": hex(&digest), "hash": hex(&hash),
            }));
            previous = hash.to_vec();
        }

        let connections: Vec<_> = captures
            .iter()
            .map(|c| {
                json!({
                    "id": c.connection, "fp": c.fingerprint, "exp": c.expires_at.map(Timestamp::millis),
                    "poll": c.poll_at.millis(), "new": i32::from(!c.versions.is_empty()),
                })
            })
            .collect();
        let count = |name: &'static str, n: usize| (name, n as i64);
        let counts = [
            count("reads", captures.len()),
            count("rotations_expected", captures.iter().filter(|c| c.scheduled.is_some()).count()),
            count("rotations_arrived", captures.iter().filter(|c| c.scheduled == Some(true)).count()),
            count("superseded", superseded),
        ];
        let all = json!({
            "rows": rows,
            "sinks": sinks.iter().map(|s| s.name()).collect::<Vec<_>>(),
            "connections": connections,
            "counts": counts,
        });
        APPEND_CAPTURES.call(&mut connection, &all).await
    }

    /// The newest entry of a triplet, decrypted.
    pub async fn load_head(&self, triplet: &Triplet) -> StoreResult<Option<KvEntry>> {
        let name = triplet.to_string();
        let row = sqlx::query("SELECT version, payload FROM journal WHERE triplet = ? ORDER BY version DESC LIMIT 1")
            .bind(&name)
            .fetch_optional(&mut *self.lock().await)
            .await
            .during("load a head")?;
        let Some(row) = row else { return Ok(None) };
        self.open_entry(&name, row.get(0), &row.get::<Vec<u8>, _>(1)).map(Some)
    }

    pub(super) fn open_entry(&self, name: &str, version: i64, payload: &[u8]) -> StoreResult<KvEntry> {
        let clear = self.vault.open(&place(name, version), payload)?;
        KvEntry::from_json(&clear).map_err(|e| StoreError::Corrupt { what: "journal entry", detail: e.to_string() })
    }

    /// Walks the whole journal and recomputes its chain. Returns the number of entries.
    ///
    /// # Errors
    /// `Corrupt` naming the first entry that does not fit.
    pub async fn verify_journal(&self) -> StoreResult<u64> {
        let (mut previous, mut after, mut count) = (vec![0u8; 32], 0i64, 0u64);
        loop {
            let rows = sqlx::query(
                "SELECT seq, at, triplet, version, epoch, writer, fingerprint, expires_at, payload, digest, hash
                 FROM journal WHERE seq > ? ORDER BY seq LIMIT 1000",
            )
            .bind(after)
            .fetch_all(&mut *self.lock().await)
            .await
            .during("read the journal")?;
            if rows.is_empty() {
                return Ok(count);
            }
            for r in rows {
                after = r.get(0);
                let facts = json!([
                    r.get::<i64, _>(1),
                    r.get::<String, _>(2),
                    r.get::<i64, _>(3),
                    r.get::<i64, _>(4),
                    r.get::<String, _>(5),
                    r.get::<String, _>(6),
                    r.get::<Option<i64>, _>(7)
                ]);
                let digest: Vec<u8> = r.get(9);
                let payload: Option<Vec<u8>> = r.get(8);
                let hash: Vec<u8> = r.get(10);
                let fits = payload.is_none_or(|p| Sha256::digest(&p).as_slice() == digest)
                    && chain(&previous, &facts.to_string(), &digest).as_slice() == hash;
                if !fits {
                    return Err(StoreError::Corrupt {
                        what: "journal",
                        detail: format!("entry {after} does not fit the chain"),
                    });
                }
                previous = hash;
                count += 1;
            }
        }
    }
}

/// Where a payload belongs; it cannot be opened anywhere else.
fn place(triplet: &str, version: i64) -> String {
    format!("{triplet}#{version}")
}

pub(super) fn chain(previous: &[u8], facts: &str, digest: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(previous);
    hasher.update((facts.len() as u64).to_be_bytes());
    hasher.update(facts.as_bytes());
    hasher.update(digest);
    hasher.finalize().into()
}
