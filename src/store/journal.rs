//! The journal of token versions: append-only, hash-chained, one commit for many captures.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::connection::note_missed;
use super::db::{Lock, Tx};
use super::pruned::{Chain, Walk};
use super::{During, Row, Sink, Store, StoreError, StoreResult, from_json, procedure::APPEND_CAPTURES, query};
use crate::domain::newest::{Arrival, End, Newest, Origin};
use crate::domain::secret::{Fingerprint, Secret, hex};
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
    pub origin: Origin,
    /// Whether it is to be carried to the sinks.
    pub mirrored: bool,
}

/// Versions held against the chains of their triplets.
pub(super) struct Judged<'a> {
    /// The journal's last hash.
    previous: Vec<u8>,
    /// The last version of each triplet.
    numbers: HashMap<String, i64>,
    /// Each version with its triplet and fingerprint, and what it is to those before it.
    arrivals: Vec<(Incoming<'a>, String, String, Arrival)>,
}

impl<'a> Judged<'a> {
    /// Versions that were replaced before, although they end after the newest.
    pub fn replays(&self) -> impl Iterator<Item = &'a NewVersion> {
        self.arrivals.iter().filter(|a| a.3 == Arrival::Replay).map(|a| a.0.version)
    }
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

impl Store {
    /// Appends what a round of reads brought, in one commit: versions, their deliveries to
    /// `sinks`, the connections' next polls, and the counts of scheduled and arrived rotations.
    ///
    /// A version that is not the newest ([`Newest`]) is counted and dropped. So is everything of a read
    /// whose connection was claimed again since and has that claim's outcome already: the late reader
    /// may hold an old token. Returns how many captures were refused so.
    pub async fn append_captures(&self, captures: &[Capture], sinks: &[Sink], now: Timestamp) -> StoreResult<usize> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        let claims: Vec<_> = captures.iter().map(|c| (c.connection, c.claim)).collect();
        let (mut late, mut dead) = (HashSet::<i64>::new(), HashSet::<i64>::new());
        for row in query(
            "SELECT c.id, CASE WHEN CAST(j.value->>1 AS BIGINT) > 0 AND c.settled > CAST(j.value->>1 AS BIGINT) THEN 1 ELSE 0 END,
                    c.dead_at
             FROM json_each($1) AS j JOIN connection c ON c.id = CAST(j.value->>0 AS BIGINT)",
        )
        .bind(json!(claims).to_string())
        .fetch_all(&mut tx)
        .await
        .during("look for late captures")?
        {
            let id: i64 = row.get(0);
            late.extend((row.get::<i32>(1) == 1).then_some(id));
            dead.extend(row.get::<Option<i64>>(2).map(|_| id));
        }
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
        let versions = captures.iter().flat_map(|c| c.versions.iter().map(|version| (c.connection, version)));
        let incoming = versions.map(|(connection, version)| {
            let origin = match origin_of(version.writer) {
                Origin::Read if dead.contains(&connection) => Origin::NewGrant,
                origin => origin,
            };
            Incoming { version, origin, mirrored: true }
        });
        let judged = self.judge(&mut tx, incoming.collect()).await?;
        self.append(&mut tx, judged, sinks, connections, &counts, now).await?;
        crate::failpoint::hit("append-before-commit");
        tx.commit().await.during("commit")?;
        crate::failpoint::hit("append-after-commit");
        Ok(late.len())
    }

    /// Holds versions against the chains of their triplets, in this order, inside an open transaction
    /// that holds [`Lock::Journal`].
    pub(super) async fn judge<'a>(&self, tx: &mut Tx<'_>, versions: Vec<Incoming<'a>>) -> StoreResult<Judged<'a>> {
        let found: Vec<(String, String)> = versions
            .iter()
            .map(|Incoming { version, .. }| {
                let fingerprint = self.vault.fingerprints().fingerprint(&version.entry.access_token);
                (version.triplet.to_string(), fingerprint.to_string())
            })
            .collect();
        let (previous, mut heads) = load_heads(tx, &found).await?;
        let mut arrivals = Vec::with_capacity(found.len());
        for (incoming, (name, fingerprint)) in versions.into_iter().zip(found) {
            let (_, newest) = heads.get_mut(&name).ok_or_else(|| StoreError::UnknownTriplet(name.clone()))?;
            let arrival = newest.arrive(&fingerprint, incoming.version.entry.expires_at.into(), incoming.origin);
            arrivals.push((incoming, name, fingerprint, arrival));
        }
        let numbers = heads.into_iter().map(|(name, (number, _))| (name, number)).collect();
        Ok(Judged { previous, numbers, arrivals })
    }

    /// Appends versions inside the transaction in which they were judged. Of each triplet only the
    /// newest keeps its secret and goes to the sinks.
    pub(super) async fn append(
        &self,
        tx: &mut Tx<'_>,
        judged: Judged<'_>,
        sinks: &[Sink],
        connections: Vec<Value>,
        counts: &[(&str, i64)],
        now: Timestamp,
    ) -> StoreResult<Appended> {
        let Judged { mut previous, mut numbers, arrivals } = judged;
        let (mut rows, mut newest) = (Vec::<Value>::new(), BTreeMap::<String, (usize, Value, bool)>::new());
        let mut appended = Appended::default();
        for (Incoming { version, mirrored, .. }, name, fingerprint, arrival) in arrivals {
            match arrival {
                Arrival::New => {}
                Arrival::Same => {
                    appended.duplicates += 1;
                    continue;
                }
                Arrival::Older | Arrival::Replay => {
                    appended.superseded += 1;
                    continue;
                }
            }
            let expires = version.entry.expires_at.map(Timestamp::millis);
            let last = numbers.entry(name.clone()).or_default();
            let number = *last + 1;
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
                None => json!(*last),
            };
            let state = json!({
                "triplet": name, "version": number, "fp": fingerprint, "exp": expires, "at": now.millis(), "before": before,
            });
            *last = number;
            newest.insert(name.clone(), (rows.len(), state, mirrored));
            rows.push(json!({
                "at": now.millis(), "triplet": name, "version": number, "epoch": version.epoch,
                "writer": version.writer, "fp": fingerprint, "exp": expires,
                "payload": hex(&payload), "digest": hex(&digest), "hash": hex(&hash),
            }));
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

    /// Whether this token is in the chain of the triplet, as the newest or as one before.
    pub async fn is_journalled(&self, triplet: &Triplet, token: &Secret) -> StoreResult<bool> {
        let row = query("SELECT 1 FROM journal WHERE triplet = $1 AND fingerprint = $2 LIMIT 1")
            .bind(triplet.to_string())
            .bind(self.vault.fingerprints().fingerprint(token).to_string())
            .fetch_optional(&mut self.read().await)
            .await
            .during("look for a token")?;
        Ok(row.is_some())
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

/// Who wrote a version says how its token came to us.
fn origin_of(writer: Writer) -> Origin {
    if writer == Writer::Nango { Origin::Read } else { Origin::Report }
}

/// The journal's last hash, and of each triplet the last version and what its chain says of these tokens.
#[allow(clippy::type_complexity, reason = "two answers of one statement, taken apart at once")]
async fn load_heads(
    tx: &mut Tx<'_>,
    found: &[(String, String)],
) -> StoreResult<(Vec<u8>, HashMap<String, (i64, Newest<String>)>)> {
    let rows = query(
        "SELECT 0, t.key, t.version, t.expires_at, t.fingerprint, j.writer, CAST(NULL AS BYTEA)
           FROM triplet t LEFT JOIN journal j ON j.triplet = t.key AND j.version = t.version
           WHERE t.key IN (SELECT value->>0 FROM json_each($1))
         UNION ALL SELECT 1, j.triplet, j.version, j.expires_at, j.fingerprint, NULL, NULL FROM json_each($1) AS n
           JOIN journal j ON j.triplet = n.value->>0 AND j.fingerprint = n.value->>1
         UNION ALL SELECT 2, '', 0, NULL, NULL, NULL, hash FROM journal WHERE seq = (SELECT MAX(seq) FROM journal)",
    )
    .bind(json!(found).to_string())
    .fetch_all(tx)
    .await
    .during("load heads")?;
    let (mut previous, mut heads) = (vec![0; 32], HashMap::<String, (i64, Newest<String>)>::new());
    for row in rows {
        let end = End::from(row.get::<Option<i64>>(3).map(Timestamp::from_millis));
        match row.get::<i32>(0) {
            0 => {
                let (number, newest) = heads.entry(row.get(1)).or_default();
                *number = row.get(2);
                if let (Some(fingerprint), Some(writer)) = (row.get(4), row.get::<Option<String>>(5)) {
                    let writer: Writer = from_json("writer", &format!("\"{writer}\""))?;
                    newest.resume(fingerprint, end, origin_of(writer));
                }
            }
            1 => heads.entry(row.get(1)).or_default().1.remember(row.get(4), end),
            _ => previous = row.get(6),
        }
    }
    Ok((previous, heads))
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
