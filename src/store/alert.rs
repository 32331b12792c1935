//! Alerts between the evidence that they are made of and the people they are for; and the
//! webhooks that were taken once.

use serde_json::json;

use super::db::Lock;
use super::evidence::insert_note;
use super::{During, Store, StoreResult, query};
use crate::domain::criteria::Note;
use crate::domain::time::{HOUR_MS, Timestamp};

/// Notes that one look turns into alerts.
const COLLECT_MAX: u32 = 500;

/// How long webhook ids are kept: Composio signs the time of each attempt, and nothing that was
/// signed longer ago than 5 minutes is taken; retries come within hours.
const SEEN_MS: i64 = 48 * HOUR_MS;

/// A kind of note that alerts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewsKind {
    pub name: &'static str,
    /// A note about a subject that was told of less than this ago is added to that alert; 0: never.
    pub repeat_ms: i64,
    /// After an alert of this kind about the subject nothing is added to the one before.
    pub counterpart: Option<&'static str>,
}

/// An alert that was not sent yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertRow {
    pub seq: i64,
    pub at: Timestamp,
    /// The kind of the note that it was made of.
    pub kind: String,
    pub subject: String,
    pub detail: String,
    /// How often the same came again before it was sent or soon after.
    pub repeats: u32,
    pub last_at: Timestamp,
    /// Tries so far.
    pub attempts: u32,
}

impl Store {
    /// Makes alerts of new notes of these kinds, or adds them to those that tell the same, in one
    /// commit. One older than `news_ms` is kept and not sent.
    pub async fn collect_alerts(&self, kinds: &[NewsKind], now: Timestamp, news_ms: i64) -> StoreResult<()> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Rows).await.during("begin")?;
        let rows = query(
            "SELECT seq, at, kind, subject, detail FROM note WHERE alerted = 0
               AND kind IN (SELECT value->>0 FROM json_each($1)) ORDER BY seq LIMIT $2",
        )
        .bind(json!(kinds.iter().map(|kind| [kind.name]).collect::<Vec<_>>()).to_string())
        .bind(COLLECT_MAX)
        .fetch_all(&mut tx)
        .await
        .during("look for news")?;
        for r in rows {
            let (seq, at): (i64, i64) = (r.get(0), r.get(1));
            let (kind, subject, detail): (String, String, String) = (r.get(2), r.get(3), r.get(4));
            let known = kinds.iter().find(|known| known.name == kind);
            let (repeat_ms, counterpart) = known.map_or((0, None), |known| (known.repeat_ms, known.counterpart));
            let repeat = query(
                "UPDATE alert SET repeats = repeats + 1, last_at = $1
                 WHERE kind = $2 AND last_at > $4 AND $5 > 0 AND seq =
                   (SELECT MAX(seq) FROM alert WHERE subject = $3 AND (kind = $2 OR kind = $6))",
            )
            .bind(at)
            .bind(&kind)
            .bind(&subject)
            .bind(at - repeat_ms)
            .bind(repeat_ms)
            .bind(counterpart.unwrap_or(&kind))
            .execute(&mut tx)
            .await
            .during("fold a repeat")?;
            if repeat == 0 {
                let news = at > now.millis() - news_ms;
                query(
                    "INSERT INTO alert (at, kind, subject, detail, last_at, next_at) VALUES ($1, $2, $3, $4, $1, $5)",
                )
                .bind(at)
                .bind(&kind)
                .bind(&subject)
                .bind(&detail)
                .bind(news.then_some(now.millis()))
                .execute(&mut tx)
                .await
                .during("make an alert")?;
            }
            query("UPDATE note SET alerted = 1 WHERE seq = $1").bind(seq).execute(&mut tx).await.during("mark news")?;
        }
        tx.commit().await.during("commit")
    }

    /// Alerts that are due, oldest first.
    pub async fn load_due_alerts(&self, now: Timestamp, limit: u32) -> StoreResult<Vec<AlertRow>> {
        let rows = query(
            "SELECT seq, at, kind, subject, detail, repeats, last_at, attempts FROM alert WHERE next_at <= $1 ORDER BY seq LIMIT $2",
        )
        .bind(now.millis())
        .bind(limit)
        .fetch_all(&mut self.lock().await)
        .await
        .during("load alerts")?;
        Ok(rows
            .into_iter()
            .map(|r| AlertRow {
                seq: r.get(0),
                at: Timestamp::from_millis(r.get(1)),
                kind: r.get(2),
                subject: r.get(3),
                detail: r.get(4),
                repeats: r.get::<i64>(5) as u32,
                last_at: Timestamp::from_millis(r.get(6)),
                attempts: r.get::<i64>(7) as u32,
            })
            .collect())
    }

    /// Writes down that these are about to be sent, and when to try again if nobody says more.
    pub async fn begin_alerts(&self, seqs: &[i64], next_at: Timestamp) -> StoreResult<()> {
        self.change_alerts("UPDATE alert SET attempts = attempts + 1, next_at = $1 WHERE seq = $2", seqs, next_at).await
    }

    /// They were sent.
    pub async fn finish_alerts(&self, seqs: &[i64], now: Timestamp) -> StoreResult<()> {
        self.change_alerts("UPDATE alert SET next_at = NULL, sent_at = $1 WHERE seq = $2", seqs, now).await
    }

    /// Not before then.
    pub async fn defer_alerts(&self, seqs: &[i64], until: Timestamp) -> StoreResult<()> {
        self.change_alerts("UPDATE alert SET next_at = $1 WHERE seq = $2", seqs, until).await
    }

    async fn change_alerts(&self, sql: &'static str, seqs: &[i64], at: Timestamp) -> StoreResult<()> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Rows).await.during("begin")?;
        for seq in seqs {
            query(sql).bind(at.millis()).bind(*seq).execute(&mut tx).await.during("change an alert")?;
        }
        tx.commit().await.during("commit")
    }

    pub async fn count_waiting_alerts(&self) -> StoreResult<u64> {
        let row = query("SELECT COUNT(*) FROM alert WHERE next_at IS NOT NULL")
            .fetch_one(&mut self.lock().await)
            .await
            .during("count alerts")?;
        Ok(row.get::<i64>(0) as u64)
    }

    /// Takes a webhook with an id of its own, once: remembers the id and notes the evidence in one
    /// commit. Returns `false` when it was taken before.
    pub async fn note_webhook(&self, id: &str, kind: &str, note: &Note) -> StoreResult<bool> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Rows).await.during("begin")?;
        let new = query("INSERT INTO webhook_seen (id, at) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING")
            .bind(id)
            .bind(note.at.millis())
            .execute(&mut tx)
            .await
            .during("remember a webhook")?;
        if new == 0 {
            return Ok(false);
        }
        query("DELETE FROM webhook_seen WHERE at < $1")
            .bind(note.at.millis() - SEEN_MS)
            .execute(&mut tx)
            .await
            .during("forget old webhooks")?;
        insert_note(kind, note).execute(&mut tx).await.during("note evidence")?;
        tx.commit().await.during("commit")?;
        Ok(true)
    }
}
