//! Breaches as the gate reads them: of each subject the newest, however many there are and however
//! long ago they were, and what is still wrong now.

use std::collections::BTreeMap;

use super::delivery::parse_triplet;
use super::{During, Row, Store, StoreResult, query};
use crate::domain::criteria::Note;
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;

/// Something that is wrong now with one triplet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub triplet: Triplet,
    /// Since when.
    pub since: Timestamp,
    pub detail: String,
}

impl Standing {
    /// As evidence.
    pub fn note(self) -> Note {
        Note { at: self.since, subject: self.triplet.to_string(), detail: self.detail }
    }
}

fn note(r: &Row) -> Note {
    Note { at: Timestamp::from_millis(r.get(0)), subject: r.get(1), detail: r.get(2) }
}

impl Store {
    /// Notes of one kind, of each subject the newest `most`, oldest first. However many there are, none
    /// of one subject hides another subject.
    pub async fn load_notes_of_each(&self, kind: &str, most: u32) -> StoreResult<Vec<Note>> {
        let rows = query(
            "SELECT at, subject, detail FROM
               (SELECT seq, at, subject, detail, ROW_NUMBER() OVER (PARTITION BY subject ORDER BY at DESC, seq DESC) AS place
                FROM note WHERE kind = $1) AS placed
             WHERE place <= $2 ORDER BY at, seq",
        )
        .bind(kind)
        .bind(i64::from(most))
        .fetch_all(&mut self.read().await)
        .await
        .during("load evidence")?;
        Ok(rows.iter().map(note).collect())
    }

    /// Outages that ended: of each API the newest `most` that lasted longer than `longer_than_ms`, and the
    /// longest that ended at `since` or later. The detail is the length in ms.
    pub async fn load_outages(&self, longer_than_ms: i64, most: u32, since: Timestamp) -> StoreResult<Vec<Note>> {
        let rows = query(
            "SELECT at, subject, detail FROM
               (SELECT at, subject, detail, ms,
                       ROW_NUMBER() OVER (PARTITION BY subject, ms > $1 ORDER BY at DESC, seq DESC) AS place,
                       ROW_NUMBER() OVER (PARTITION BY subject, at + ms >= $3 ORDER BY ms DESC, seq) AS length
                FROM (SELECT seq, at, subject, detail, CAST(detail AS BIGINT) AS ms FROM note WHERE kind = 'outage')
                  AS outage) AS placed
             WHERE (ms > $1 AND place <= $2) OR (at + ms >= $3 AND length = 1) ORDER BY at, subject",
        )
        .bind(longer_than_ms)
        .bind(i64::from(most))
        .bind(since.millis())
        .fetch_all(&mut self.read().await)
        .await
        .during("load outages")?;
        Ok(rows.iter().map(note).collect())
    }

    /// What is wrong now with mirrored triplets, by criterion: dead letters, deliveries that have waited
    /// since `late` or longer, entries of other writers, tokens in `kv.source` that ended and were not
    /// replaced, and grants that are gone.
    pub async fn load_standing(
        &self,
        late: Timestamp,
        now: Timestamp,
    ) -> StoreResult<BTreeMap<&'static str, Vec<Standing>>> {
        let mut session = self.read().await;
        let mut standing = BTreeMap::new();
        for (criterion, until, sql) in [
            (
                "invalid-grant",
                now,
                "SELECT t.key, c.dead_at, 'the grant is gone, and nobody has connected again' FROM connection c
                 JOIN triplet t ON t.connection = c.id WHERE c.dead_at <= $1 AND c.poll_at IS NOT NULL ORDER BY t.key",
            ),
            (
                "missed-refresh",
                now,
                // Of a version that was pruned all that is known is that it ended long ago.
                "SELECT d.triplet, COALESCE(j.expires_at, d.delivered_at), 'its token in KV ended and was not replaced'
                 FROM delivery d LEFT JOIN journal j ON j.triplet = d.triplet AND j.version = d.delivered
                 WHERE d.sink = 'kv.source' AND d.delivered_exp IS NULL AND d.delivered > 0
                   AND (j.seq IS NULL OR j.expires_at < $1) ORDER BY d.triplet",
            ),
            (
                "mirror-lag",
                late,
                "SELECT d.triplet, d.captured_at, 'waits for ' || d.sink FROM delivery d JOIN triplet t ON t.key = d.triplet
                 WHERE d.next_at IS NOT NULL AND d.captured_at < $1
                   AND (d.sink <> 'composio' OR t.mirror_account IS NOT NULL) ORDER BY d.triplet, d.sink",
            ),
            (
                "dead-letters",
                now,
                "SELECT triplet, captured_at, dead FROM delivery WHERE dead IS NOT NULL AND captured_at <= $1
                 ORDER BY triplet, sink",
            ),
            (
                "foreign-writes",
                now,
                // `foreign:kv.source:` and `foreign:kv.target:` are of one length.
                "SELECT d.triplet, CAST(m.value AS BIGINT), 'its entry in ' || d.sink || ' is another writer''s'
                 FROM meta m JOIN delivery d ON d.sink = substr(m.key, 9, 9) AND d.triplet = substr(m.key, 19)
                 WHERE m.key >= 'foreign:' AND m.key < 'foreign;' AND d.captured_at <= $1 ORDER BY d.triplet, d.sink",
            ),
        ] {
            let rows =
                query(sql).bind(until.millis()).fetch_all(&mut session).await.during("look for what is wrong now")?;
            let of = |r: &Row| {
                let (name, since): (String, i64) = (r.get(0), r.get(1));
                let (since, detail) = (Timestamp::from_millis(since), r.get(2));
                Ok(Standing { triplet: parse_triplet(&name)?, since, detail })
            };
            standing.insert(criterion, rows.iter().map(of).collect::<StoreResult<Vec<_>>>()?);
        }
        Ok(standing)
    }
}
