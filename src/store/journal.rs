//! The journal of token versions: append-only, hash-chained, one commit for many captures.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::connection::note_missed;
use super::db::{Lock, Tx};
use super::pruned::{Chain, Walk};
use super::{During, Row, Sink, Store, StoreError, StoreResult, procedure::APPEND_CAPTURES, query};
use crate::domain::secret::{Fingerprint, hex};
use crate::domain::time::Timestamp;
use crate::domain::token::{KvEntry, Writer};
use crate::domain::triplet::Triplet;

/// What one read of a connection brought.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Row id of the connection.
    pub connection: i64,
    /// The claim under which it was read ([`super::ConnectionRow::claim`]); 0 outside of the poller.
    pub claim: u64,
    pub fingerprint: Fingerprint,
    pub expires_at: Option<Timestamp>,
    /// When to read it next.
    pub poll_at: Timestamp,
    /// New token versions; empty when the token was the one we have.
    pub versions: Vec<NewVersion>,
    /// The schedule had asked for this rotation, and whether it came before the old token ended. One that
    /// came later was counted as missed already.
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

/// A version with what else its commit must know.
pub(super) struct Incoming<'a> {
    pub version: &'a NewVersion,
    /// Whether it is to be carried to the sinks.
    pub mirrored: bool,
}

/// What became of versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Appended {
    pub versions: usize,
    /// Older than what is there, or replaced by a newer one of the same commit.
    pub superseded: usize,
    /// The very one that is there.
    pub duplicates: usize,
}

/// The end of a triplet's chain.
#[derive(Clone)]
struct Head {
    version: i64,
    expires: Option<i64>,
    fingerprint: Option<String>,
}

impl Store {
    /// Appends what a round of reads brought, in one commit: versions, their deliveries to
    /// `sinks`, the connections' next polls, and the counts of scheduled and arrived rotations.
    ///
    /// A version that is older than the head is superseded on arrival: it is counted and dropped. So
    /// is everything of a read whose connection was claimed again since and has that claim's outcome
    /// already: the late reader may hold an old token. Returns how many captures were refused so.
    pub async fn append_captures(&self, captures: &[Capture], sinks: &[Sink], now: Timestamp) -> StoreResult<usize> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        let claims: Vec<_> = captures.iter().filter(|c| c.claim > 0).map(|c| (c.connection, c.claim)).collect();
        let late: HashSet<i64> = if claims.is_empty() {
            HashSet::new()
        } else {
            query(
                "SELECT c.id FROM json_each($1) AS j JOIN connection c ON c.id = CAST(j.value->>0 AS BIGINT)
                 WHERE c.settled > CAST(j.value->>1 AS BIGINT)",
            )
            .bind(json!(claims).to_string())
            .fetch_all(&mut tx)
            .await
            .during("look for late captures")?
            .iter()
            .map(|r| r.get(0))
            .collect()
        };
        let captures: Vec<&Capture> =
            captures.iter().filter(|c| c.claim == 0 || !late.contains(&c.connection)).collect();
        let connections: Vec<_> = captures
            .iter()
            .map(|c| {
                json!({
                    "id": c.connection, "fp": c.fingerprint, "exp": c.expires_at.map(Timestamp::millis),
                    "poll": c.poll_at.millis(), "new": i32::from(!c.versions.is_empty()), "claim": c.claim, "at": now.millis(),
                })
            })
            .collect();
        if captures.iter().any(|c| c.scheduled == Some(false)) {
            note_missed(&mut tx, now).await?;
        }
        let count = |name: &'static str, n: usize| (name, n as i64);
        let arrived = captures.iter().filter(|c| c.scheduled == Some(true)).count();
        let counts = [
            count("reads", captures.len()),
            count("rotations_expected", arrived),
            count("rotations_arrived", arrived),
            count("late_captures", late.len()),
        ];
        let versions: Vec<Incoming> =
            captures.iter().flat_map(|c| &c.versions).map(|version| Incoming { version, mirrored: true }).collect();
        self.append(&mut tx, &versions, sinks, connections, &counts, now).await?;
        crate::failpoint::hit("append-before-commit");
        tx.commit().await.during("commit")?;
        crate::failpoint::hit("append-after-commit");
        Ok(late.len())
    }

    /// Appends versions inside an open transaction that holds [`Lock::Journal`]. Of each triplet
    /// only the newest keeps its secret and goes to the sinks.
    pub(super) async fn append(
        &self,
        tx: &mut Tx<'_>,
        versions: &[Incoming<'_>],
        sinks: &[Sink],
        connections: Vec<Value>,
        counts: &[(&str, i64)],
        now: Timestamp,
    ) -> StoreResult<Appended> {
        let found: Vec<(String, String)> = versions
            .iter()
            .map(|Incoming { version, .. }| {
                let fingerprint = self.vault.fingerprints().fingerprint(&version.entry.access_token);
                (version.triplet.to_string(), fingerprint.to_string())
            })
            .collect();
        let (mut previous, mut heads, known) = load_heads(tx, &found).await?;

        let (mut rows, mut newest) = (Vec::<Value>::new(), BTreeMap::<String, (usize, Value, bool)>::new());
        let mut appended = Appended::default();
        for (Incoming { version, mirrored }, (name, fingerprint)) in versions.iter().zip(found) {
            let head = heads.get_mut(&name).ok_or_else(|| StoreError::UnknownTriplet(name.clone()))?;
            let expires = version.entry.expires_at.map(Timestamp::millis);
            if head.version > 0 && head.fingerprint.as_ref() == Some(&fingerprint) && head.expires == expires {
                appended.duplicates += 1;
                continue;
            }
            // A token that was replaced before comes back only if it is said to live longer now.
            let was_replaced = head.fingerprint.as_ref() != Some(&fingerprint)
                && expires <= head.expires
                && known.contains(&(name.clone(), fingerprint.clone()));
            if head.version > 0 && (expires < head.expires || was_replaced) {
                appended.superseded += 1;
                continue;
            }
            let number = head.version + 1;
            let place = place(&name, number);
            let clear = zeroize::Zeroizing::new(version.entry.to_json());
            let payload = self.vault.seal(&place, clear.as_bytes())?;
            let digest = self.vault.digest(&place, clear.as_bytes());
            let facts = json!([now.millis(), name, number, version.epoch, version.writer, fingerprint, expires]);
            let hash = chain(&previous, &facts.to_string(), &digest);
            previous = hash.to_vec();
            let before = match newest.remove(&name) {
                Some((row, replaced, _)) => {
                    rows[row]["payload"] = Value::Null;
                    appended.superseded += 1;
                    appended.versions -= 1;
                    replaced["before"].clone()
                }
                None => json!(head.version),
            };
            let state = json!({
                "triplet": name, "version": number, "fp": fingerprint, "exp": expires, "at": now.millis(), "before": before,
            });
            newest.insert(name.clone(), (rows.len(), state, *mirrored));
            rows.push(json!({
                "at": now.millis(), "triplet": name, "version": number, "epoch": version.epoch,
                "writer": version.writer, "fp": fingerprint, "exp": expires,
                "payload": hex(&payload), "digest": hex(&digest), "hash": hex(&hash),
            }));
            *head = Head { version: number, expires, fingerprint: Some(fingerprint) };
            appended.versions += 1;
        }

        let mut counts: Vec<(&str, i64)> = counts.iter().copied().filter(|c| c.1 != 0).collect();
        counts.extend([("superseded", appended.superseded as i64)].into_iter().filter(|c| c.1 != 0));
        let all = json!({
            "rows": rows,
            "heads": newest.values().map(|(_, state, _)| state).collect::<Vec<_>>(),
            "mirrored": newest.values().filter(|n| n.2).map(|(_, state, _)| state).collect::<Vec<_>>(),
            "sinks": sinks.iter().map(|s| [s.name()]).collect::<Vec<_>>(),
            "connections": connections,
            "counts": counts,
        });
        APPEND_CAPTURES.call(tx, &all).await?;
        Ok(appended)
    }

    /// The newest entry of a triplet, decrypted.
    pub async fn load_head(&self, triplet: &Triplet) -> StoreResult<Option<KvEntry>> {
        let name = triplet.to_string();
        let row = query("SELECT version, payload FROM journal WHERE triplet = $1 ORDER BY version DESC LIMIT 1")
            .bind(&name)
            .fetch_optional(&mut self.lock().await)
            .await
            .during("load a head")?;
        let Some(row) = row else { return Ok(None) };
        self.open_entry(&name, row.get(0), &row.get::<Vec<u8>>(1)).map(Some)
    }

    pub(super) fn open_entry(&self, name: &str, version: i64, payload: &[u8]) -> StoreResult<KvEntry> {
        let clear = self.vault.open(&place(name, version), payload)?;
        KvEntry::from_json(&clear).map_err(|e| StoreError::Corrupt { what: "journal entry", detail: e.to_string() })
    }

    /// Walks the whole journal and recomputes its chain; entries that still have their payload are
    /// opened and compared. Returns the number of entries, those that were pruned included.
    ///
    /// # Errors
    /// `Corrupt` naming the first entry that does not fit.
    pub async fn verify_journal(&self) -> StoreResult<u64> {
        self.verify_chain(Chain::Journal).await
    }

    pub(super) async fn walk_journal(&self) -> StoreResult<u64> {
        let mut walk = Walk::new(Chain::Journal);
        loop {
            let mut session = self.read().await;
            let rows = query(
                "SELECT seq, at, triplet, version, epoch, writer, fingerprint, expires_at, payload, digest, hash
                 FROM journal WHERE seq > $1 ORDER BY seq LIMIT 1000",
            )
            .bind(walk.after)
            .fetch_all(&mut session)
            .await
            .during("read the journal")?;
            let Some(last) = rows.last() else { return Ok(walk.count) };
            walk.load(&mut session, &self.vault, last.get(0)).await?;
            for r in &rows {
                walk.cross(r.get(0))?;
                self.step_journal(&mut walk, r)?;
            }
        }
    }

    /// Checks the next entry: columns as [`Store::walk_journal`] selects them.
    pub(super) fn step_journal(&self, walk: &mut Walk, r: &Row) -> StoreResult<()> {
        let hash: Vec<u8> = r.get(10);
        let fits = self.expected_hash(&walk.hash, r).is_some_and(|expected| expected.as_slice() == hash);
        walk.step(r.get(0), hash, fits)
    }

    /// The hash that a journal row must have; `None` when its payload is not what was journalled.
    fn expected_hash(&self, previous: &[u8], r: &Row) -> Option<[u8; 32]> {
        let (triplet, version): (String, i64) = (r.get(2), r.get(3));
        let digest: Vec<u8> = r.get(9);
        if let Some(payload) = r.get::<Option<Vec<u8>>>(8) {
            let place = place(&triplet, version);
            let clear = self.vault.open(&place, &payload).ok()?;
            if self.vault.digest(&place, &clear).as_slice() != digest {
                return None;
            }
        }
        let facts = json!([
            r.get::<i64>(1),
            triplet,
            version,
            r.get::<i64>(4),
            r.get::<String>(5),
            r.get::<String>(6),
            r.get::<Option<i64>>(7)
        ]);
        Some(chain(previous, &facts.to_string(), &digest))
    }
}

/// The journal's last hash, the heads of these triplets, and which of these fingerprints their
/// chains hold already.
#[allow(clippy::type_complexity, reason = "three answers of one statement, taken apart at once")]
async fn load_heads(
    tx: &mut Tx<'_>,
    found: &[(String, String)],
) -> StoreResult<(Vec<u8>, HashMap<String, Head>, HashSet<(String, String)>)> {
    let rows = query(
        "SELECT 0, key, version, expires_at, fingerprint, CAST(NULL AS BYTEA) FROM triplet
           WHERE key IN (SELECT value->>0 FROM json_each($1))
         UNION ALL SELECT 1, j.triplet, j.version, NULL, j.fingerprint, NULL FROM json_each($1) AS n
           JOIN journal j ON j.triplet = n.value->>0 AND j.fingerprint = n.value->>1
         UNION ALL SELECT 2, '', 0, NULL, NULL, hash FROM journal WHERE seq = (SELECT MAX(seq) FROM journal)",
    )
    .bind(json!(found).to_string())
    .fetch_all(tx)
    .await
    .during("load heads")?;
    let (mut previous, mut heads, mut known) = (vec![0; 32], HashMap::new(), HashSet::new());
    for row in rows {
        match row.get::<i32>(0) {
            0 => {
                let head = Head { version: row.get(2), expires: row.get(3), fingerprint: row.get(4) };
                heads.insert(row.get(1), head);
            }
            1 => drop(known.insert((row.get(1), row.get(4)))),
            _ => previous = row.get(5),
        }
    }
    Ok((previous, heads, known))
}

/// Where a payload belongs; it cannot be opened anywhere else.
pub(super) fn place(triplet: &str, version: i64) -> String {
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
