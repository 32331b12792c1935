//! The history behind the gate's windows and the report: looks, gaps, samples, notes in a window.

use std::collections::BTreeMap;

use super::db::{Lock, Session};
use super::{During, Store, StoreError, StoreResult, query};
use crate::domain::criteria::{EvidenceSource, Gap, LookOutcome, Looks, Note};
use crate::domain::time::{DAY_MS, HOUR_MS, Timestamp};

/// Looks, gaps and samples older than this are forgotten: no window is longer.
pub(super) const KEPT_MS: i64 = 400 * DAY_MS;

/// Samples older than this are thinned to one a day.
const HOURLY_MS: i64 = 45 * DAY_MS;

/// One look of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub source: EvidenceSource,
    pub at: Timestamp,
    pub outcome: LookOutcome,
    /// What was looked at.
    pub samples: u64,
    /// The next look is due after this; a silence longer than that and `slack_ms` is a gap.
    pub every_ms: i64,
    pub slack_ms: i64,
}

impl Store {
    /// Records a look, and the gap before it when there was one: looks without an answer do not
    /// end a gap.
    pub async fn record_look(&self, look: &Look) -> StoreResult<()> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::History).await.during("begin")?;
        record_look(&mut tx, look).await?;
        tx.commit().await.during("commit")
    }

    /// Records a time without evidence.
    pub async fn record_gap(
        &self,
        source: EvidenceSource,
        from: Timestamp,
        until: Timestamp,
        reason: &str,
    ) -> StoreResult<()> {
        insert_gap(&mut self.lock().await, source, from.millis(), until.millis(), reason).await
    }

    /// All gaps that ended, by time.
    pub async fn load_gaps(&self) -> StoreResult<Vec<Gap>> {
        let rows = query("SELECT started_at, ended_at, source, reason FROM gap ORDER BY started_at, source")
            .fetch_all(&mut self.lock().await)
            .await
            .during("load gaps")?;
        Ok(rows
            .into_iter()
            .map(|r| Gap {
                from: Timestamp::from_millis(r.get(0)),
                until: Timestamp::from_millis(r.get(1)),
                source: r.get(2),
                reason: r.get(3),
            })
            .collect())
    }

    /// Looks by source that ended at or after `since`, in order.
    pub async fn load_looks(&self, since: Timestamp) -> StoreResult<BTreeMap<EvidenceSource, Vec<Looks>>> {
        let rows = query(
            "SELECT source, started_at, ended_at, outcome, runs, samples FROM look
             WHERE ended_at >= $1 ORDER BY source, seq",
        )
        .bind(since.millis())
        .fetch_all(&mut self.lock().await)
        .await
        .during("load looks")?;
        let mut looks: BTreeMap<EvidenceSource, Vec<Looks>> = BTreeMap::new();
        for r in rows {
            let (source, outcome): (String, String) = (r.get(0), r.get(3));
            let corrupt = |what, detail: &str| StoreError::Corrupt { what, detail: detail.to_owned() };
            let source = EvidenceSource::parse(&source).ok_or_else(|| corrupt("source of evidence", &source))?;
            looks.entry(source).or_default().push(Looks {
                from: Timestamp::from_millis(r.get(1)),
                until: Timestamp::from_millis(r.get(2)),
                outcome: LookOutcome::parse(&outcome).ok_or_else(|| corrupt("outcome of a look", &outcome))?,
                runs: r.get::<i64>(4) as u64,
                samples: r.get::<i64>(5) as u64,
            });
        }
        Ok(looks)
    }

    /// When each source last looked and got an answer.
    pub async fn load_last_looks(&self) -> StoreResult<BTreeMap<EvidenceSource, Timestamp>> {
        let rows = query("SELECT source, MAX(ended_at) FROM look WHERE outcome <> 'error' GROUP BY source")
            .fetch_all(&mut self.lock().await)
            .await
            .during("load the last looks")?;
        Ok(rows
            .into_iter()
            .filter_map(|r| Some((EvidenceSource::parse(&r.get::<String>(0))?, Timestamp::from_millis(r.get(1)))))
            .collect())
    }

    /// Notes of one kind from `since` on, oldest first, at most `limit` of the newest.
    pub async fn load_notes_since(&self, kind: &str, since: Timestamp, limit: u32) -> StoreResult<Vec<Note>> {
        let rows = query(
            "SELECT at, subject, detail FROM note WHERE kind = $1 AND at >= $2 ORDER BY at DESC, seq DESC LIMIT $3",
        )
        .bind(kind)
        .bind(since.millis())
        .bind(i64::from(limit))
        .fetch_all(&mut self.lock().await)
        .await
        .during("load evidence")?;
        Ok(rows
            .into_iter()
            .rev()
            .map(|r| Note { at: Timestamp::from_millis(r.get(0)), subject: r.get(1), detail: r.get(2) })
            .collect())
    }

    /// Effects that were attempted, and those whose outcome nobody knows.
    pub async fn load_effects(&self) -> StoreResult<(u64, Vec<Note>)> {
        let mut connection = self.lock().await;
        let count: i64 =
            query("SELECT COUNT(*) FROM intent").fetch_one(&mut connection).await.during("count effects")?.get(0);
        let rows = query("SELECT at, id, action FROM intent WHERE state = 'ambiguous' ORDER BY at, id")
            .fetch_all(&mut connection)
            .await
            .during("look for ambiguous effects")?;
        let ambiguous = rows
            .into_iter()
            .map(|r| Note { at: Timestamp::from_millis(r.get(0)), subject: r.get(1), detail: r.get(2) })
            .collect();
        Ok((count as u64, ambiguous))
    }

    /// Saves what `sample` has, and forgets what is too old to matter.
    pub async fn save_sample(&self, at: Timestamp, json: &str) -> StoreResult<()> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::History).await.during("begin")?;
        query("INSERT INTO sample (at, json) VALUES ($1, $2) ON CONFLICT (at) DO UPDATE SET json = excluded.json")
            .bind(at.millis())
            .bind(json)
            .execute(&mut tx)
            .await
            .during("save a sample")?;
        for (delete, before) in [
            ("DELETE FROM sample WHERE at < $1", at.plus_ms(-KEPT_MS)),
            ("DELETE FROM look WHERE ended_at < $1", at.plus_ms(-KEPT_MS)),
            ("DELETE FROM gap WHERE ended_at < $1", at.plus_ms(-KEPT_MS)),
        ] {
            query(delete).bind(before.millis()).execute(&mut tx).await.during("forget old history")?;
        }
        // One a day: the first hour of each.
        query("DELETE FROM sample WHERE at < $1 AND at % $2 >= $3")
            .bind(at.plus_ms(-HOURLY_MS).millis())
            .bind(DAY_MS)
            .bind(HOUR_MS + HOUR_MS / 2)
            .execute(&mut tx)
            .await
            .during("thin old history")?;
        tx.commit().await.during("commit")
    }

    /// The newest sample at or before `at`.
    pub async fn load_sample_before(&self, at: Timestamp) -> StoreResult<Option<(Timestamp, String)>> {
        let row = query("SELECT at, json FROM sample WHERE at <= $1 ORDER BY at DESC LIMIT 1")
            .bind(at.millis())
            .fetch_optional(&mut self.lock().await)
            .await
            .during("load a sample")?;
        Ok(row.map(|r| (Timestamp::from_millis(r.get(0)), r.get(1))))
    }

    /// Samples from `since` on, by time.
    pub async fn load_samples(&self, since: Timestamp) -> StoreResult<Vec<(Timestamp, String)>> {
        let rows = query("SELECT at, json FROM sample WHERE at >= $1 ORDER BY at")
            .bind(since.millis())
            .fetch_all(&mut self.lock().await)
            .await
            .during("load samples")?;
        Ok(rows.into_iter().map(|r| (Timestamp::from_millis(r.get(0)), r.get(1))).collect())
    }
}

/// [`Store::record_look`] inside of a commit that holds [`Lock::History`].
pub(super) async fn record_look(tx: &mut super::db::Tx<'_>, look: &Look) -> StoreResult<()> {
    let source = look.source.name();
    let at = look.at.millis();
    if look.outcome != LookOutcome::Error {
        // A source that never looked is missed from the begin of the soak on.
        let last: Option<i64> = query(
            "SELECT COALESCE((SELECT MAX(ended_at) FROM look WHERE source = $1 AND outcome <> 'error'),
                             (SELECT CAST(value AS BIGINT) FROM meta WHERE key = 'soak_from'))",
        )
        .bind(source)
        .fetch_one(&mut *tx)
        .await
        .during("look for the last look")?
        .get(0);
        if let Some(last) = last.filter(|last| at - last > look.every_ms + look.slack_ms) {
            let reason = "no look got an answer";
            insert_gap(&mut *tx, look.source, last + look.every_ms, at, reason).await?;
        }
    }
    let row = query("SELECT seq, started_at, outcome FROM look WHERE source = $1 ORDER BY seq DESC LIMIT 1")
        .bind(source)
        .fetch_optional(&mut *tx)
        .await
        .during("look for the last look")?;
    let last = row.map(|r| (r.get::<i64>(0), r.get::<i64>(1), r.get::<String>(2)));
    let same = |(_, started, outcome): &(i64, i64, String)| {
        outcome == look.outcome.name() && started.div_euclid(DAY_MS) == at.div_euclid(DAY_MS)
    };
    match last {
        Some(last) if same(&last) => {
            query(
                "UPDATE look SET ended_at = $1, runs = runs + 1, samples = samples + $2
                 WHERE source = $3 AND seq = $4",
            )
            .bind(at)
            .bind(look.samples as i64)
            .bind(source)
            .bind(last.0)
            .execute(&mut *tx)
            .await
            .during("record a look")?;
        }
        last => {
            query(
                "INSERT INTO look (source, seq, started_at, ended_at, outcome, runs, samples)
                 VALUES ($1, $2, $3, $3, $4, 1, $5)",
            )
            .bind(source)
            .bind(last.map_or(1, |l| l.0 + 1))
            .bind(at)
            .bind(look.outcome.name())
            .bind(look.samples as i64)
            .execute(&mut *tx)
            .await
            .during("record a look")?;
        }
    }
    Ok(())
}

async fn insert_gap(
    session: &mut impl Session,
    source: EvidenceSource,
    from: i64,
    until: i64,
    reason: &str,
) -> StoreResult<()> {
    query(
        "INSERT INTO gap (source, started_at, ended_at, reason) VALUES ($1, $2, $3, $4)
         ON CONFLICT (source, started_at) DO UPDATE SET ended_at = excluded.ended_at",
    )
    .bind(source.name())
    .bind(from)
    .bind(until)
    .bind(reason)
    .execute(session)
    .await
    .during("record a gap")?;
    Ok(())
}
