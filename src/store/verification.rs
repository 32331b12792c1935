//! What comparisons have shown: runs as evidence, watermarks by key, and the journal as it should
//! stand in KV.

use super::db::Lock;
use super::delivery::{parse_fingerprint, parse_triplet};
use super::evidence::insert_note;
use super::history::{Look, record_look};
use super::{During, Row, Sink, Store, StoreResult, from_json, query};
use crate::domain::criteria::{CriteriaPolicy, EvidenceSource, LookOutcome, Note};
use crate::domain::time::Timestamp;
use crate::domain::token::{KvEntry, KvMetadata, Writer};
use crate::domain::triplet::Triplet;

/// The newest version of a triplet that is mirrored.
#[derive(Clone, Debug)]
pub struct JournalHead {
    pub triplet: Triplet,
    /// As the mirror writes it.
    pub metadata: KvMetadata,
    pub ends_at: Option<Timestamp>,
    /// `None` once the payload was erased.
    pub entry: Option<KvEntry>,
    pub integration_key: String,
    pub connection_id: String,
}

/// One comparison, as evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Verification {
    /// Names it: a second record of the same run changes nothing.
    pub run: String,
    pub began_at: Timestamp,
    pub at: Timestamp,
    pub left: String,
    pub right: String,
    /// `keys`, `sampled` or `full`.
    pub level: String,
    /// Keys a side, the larger of both.
    pub keys: u64,
    /// Keys whose comparison came to an end, whatever it was.
    pub compared: u64,
    pub differing: u64,
    /// Unverifiable or settling.
    pub unsure: u64,
    /// What could not be read.
    pub failed: u64,
    /// JSON: outcome, rung, keys.
    pub counts: String,
    /// JSON: the rules of the comparison; `None` for those of the shim, whose rules are its code.
    pub rules: Option<String>,
    /// The first differences by name. No secrets.
    pub findings: Vec<Note>,
}

impl Verification {
    /// Whether it speaks of the two namespaces of the gateway, which is what `parity` is about.
    pub fn is_parity(&self) -> bool {
        matches!((self.left.as_str(), self.right.as_str()), ("kv:source", "kv:target") | ("kv:target", "kv:source"))
    }

    /// What it means for `parity`; `None` when it says nothing there. A difference speaks at any
    /// level; only a run that looked into every value, and came to an end for enough keys, can say that
    /// there is none.
    fn outcome(&self, criteria: &CriteriaPolicy) -> Option<LookOutcome> {
        let whole = self.level == "full" && self.failed == 0;
        let enough = criteria.compares_enough(self.compared, self.keys);
        match (self.is_parity(), self.differing) {
            (false, _) => None,
            (true, 1..) => Some(LookOutcome::Finding),
            (true, 0) => whole.then_some(if enough { LookOutcome::Clean } else { LookOutcome::Inconclusive }),
        }
    }

    /// What it leaves as notes: the first differences by name, and one for all that it does not name.
    fn notes(&self) -> Vec<Note> {
        let mut notes: Vec<Note> = self.findings.iter().take(NOTES_MAX).cloned().collect();
        let unnamed = self.differing.saturating_sub(notes.len() as u64);
        if unnamed > 0 {
            let detail = format!("{unnamed} more keys differ in run {}", self.run);
            notes.push(Note { at: self.at, subject: UNNAMED.to_owned(), detail });
        }
        notes
    }
}

/// Differences that one run names at most: a person must look at them, the run file has all.
const NOTES_MAX: usize = 100;

/// The subject of differences that are not named. It is no triplet, so no waiver of triplets covers it.
const UNNAMED: &str = "not named";

macro_rules! head {
    ($rest:literal) => {
        concat!(
            "SELECT t.key, j.version, j.epoch, j.writer, j.fingerprint, j.expires_at, j.payload, \
             c.integration_key, c.connection_id \
             FROM triplet t JOIN journal j ON j.triplet = t.key AND j.version = t.version \
             JOIN connection c ON c.id = t.connection \
             WHERE EXISTS (SELECT 1 FROM delivery d WHERE d.triplet = t.key) AND ",
            $rest
        )
    };
}

impl Store {
    /// Newest versions of mirrored triplets, in the order of their names, those behind `after`.
    pub async fn load_journal_heads(&self, after: &str, limit: u32) -> StoreResult<Vec<JournalHead>> {
        let rows = query(head!("t.key > $1 ORDER BY t.key LIMIT $2"))
            .bind(after)
            .bind(limit)
            .fetch_all(&mut self.read().await)
            .await
            .during("read the heads of the journal")?;
        rows.iter().map(|row| self.journal_head(row)).collect()
    }

    /// The newest version of one mirrored triplet.
    pub async fn load_journal_head(&self, triplet: &str) -> StoreResult<Option<JournalHead>> {
        let row = query(head!("t.key = $1"))
            .bind(triplet)
            .fetch_optional(&mut self.read().await)
            .await
            .during("read a head of the journal")?;
        row.map(|row| self.journal_head(&row)).transpose()
    }

    fn journal_head(&self, row: &Row) -> StoreResult<JournalHead> {
        let name: String = row.get(0);
        let version: i64 = row.get(1);
        let writer: Writer = from_json("writer", &format!("\"{}\"", row.get::<String>(3)))?;
        let ends_at = row.get::<Option<i64>>(5).map(Timestamp::from_millis);
        let payload: Option<Vec<u8>> = row.get(6);
        Ok(JournalHead {
            triplet: parse_triplet(&name)?,
            metadata: KvMetadata {
                v: version as u64,
                fp: parse_fingerprint(&row.get::<String>(4))?,
                ep: row.get::<i64>(2) as u64,
                src: writer,
                exp: ends_at.map(Timestamp::secs),
            },
            ends_at,
            entry: payload.map(|payload| self.open_entry(&name, version, &payload)).transpose()?,
            integration_key: row.get(7),
            connection_id: row.get(8),
        })
    }

    /// Records a comparison, and what it means for `parity`: a difference between the gateway's
    /// namespaces ends the series of clean runs at any level; only a run that looked into every
    /// value and came to an end for enough keys adds to the series. Returns whether it was new.
    pub async fn record_verification(&self, run: &Verification, criteria: &CriteriaPolicy) -> StoreResult<bool> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::History).await.during("begin")?;
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let added = query(
            "INSERT INTO verification
               (run, at, began_at, left_side, right_side, level, keys, compared, differing, unsure, failed, counts, rules)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT (run) DO NOTHING",
        )
        .bind(&run.run)
        .bind(run.at.millis())
        .bind(run.began_at.millis())
        .bind(&run.left)
        .bind(&run.right)
        .bind(&run.level)
        .bind(number(run.keys))
        .bind(number(run.compared))
        .bind(number(run.differing))
        .bind(number(run.unsure))
        .bind(number(run.failed))
        .bind(&run.counts)
        .bind(run.rules.as_deref())
        .execute(&mut tx)
        .await
        .during("record a verification")?;
        if added == 0 {
            return Ok(false);
        }
        if let Some(outcome) = run.outcome(criteria) {
            let source = EvidenceSource::Verify;
            let (every_ms, slack_ms) = (criteria.verify_every.0, criteria.evidence_gap_max.0);
            let look = Look { source, at: run.at, outcome, samples: run.compared, every_ms, slack_ms };
            record_look(&mut tx, &look).await?;
            for note in run.notes() {
                insert_note("parity", &note).execute(&mut tx).await.during("note evidence")?;
            }
        }
        tx.commit().await.during("commit a verification")?;
        Ok(true)
    }

    /// Delivers the newest versions of these triplets to these sinks again, in one commit: from now on
    /// they count as not delivered; one that is under way comes after that. Says for each whether it is mirrored there at all.
    pub async fn requeue_deliveries(&self, wanted: &[(Triplet, Sink)], now: Timestamp) -> StoreResult<Vec<bool>> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        let mut queued = Vec::with_capacity(wanted.len());
        for (triplet, sink) in wanted {
            // The lag of a repair is counted from the repair on.
            let updated = query(
                "UPDATE delivery SET delivered = CASE WHEN delivered < version THEN delivered ELSE version - 1 END,
                   next_at = CASE WHEN claimed_until > $3 THEN claimed_until ELSE $3 END,
                   captured_at = $3, attempts = 0, dead = NULL
                 WHERE triplet = $1 AND sink = $2",
            )
            .bind(triplet.to_string())
            .bind(sink.name())
            .bind(now.millis())
            .execute(&mut tx)
            .await
            .during("queue deliveries again")?;
            queued.push(updated > 0);
        }
        tx.commit().await.during("commit deliveries")?;
        Ok(queued)
    }

    /// Recorded comparisons, newest first.
    pub async fn load_verifications(&self, limit: u32) -> StoreResult<Vec<Verification>> {
        let rows = query(
            "SELECT run, began_at, at, left_side, right_side, level, keys, compared, differing, unsure, failed, counts, rules
             FROM verification ORDER BY at DESC, run LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&mut self.read().await)
        .await
        .during("load verifications")?;
        let number = |row: &Row, at: usize| row.get::<i64>(at).max(0) as u64;
        Ok(rows
            .into_iter()
            .map(|row| Verification {
                run: row.get(0),
                began_at: Timestamp::from_millis(row.get(1)),
                at: Timestamp::from_millis(row.get(2)),
                left: row.get(3),
                right: row.get(4),
                level: row.get(5),
                keys: number(&row, 6),
                compared: number(&row, 7),
                differing: number(&row, 8),
                unsure: number(&row, 9),
                failed: number(&row, 10),
                counts: row.get(11),
                rules: row.get(12),
                findings: Vec::new(),
            })
            .collect())
    }
}
