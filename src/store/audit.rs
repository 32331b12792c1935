//! Audit rows on their way to D1, and back: a row counts as written when it was read there.

use std::collections::BTreeMap;

use serde_json::json;

use super::db::Lock;
use super::{During, Store, StoreResult, procedure::CLEAR_AUDIT, query};
use crate::domain::criteria::Note;
use crate::domain::time::Timestamp;
use crate::domain::triplet::{KV_PREFIX, Triplet};
use crate::ports::AuditRow;

/// Where in D1 the next reading begins, by the place of the last row that was read.
const END: &str = "audit_end";

/// When a reading last came to the end of the table.
const READ_AT: &str = "audit_read_at";

/// What we wrote about one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentAudit {
    pub key: String,
    pub fingerprint: Option<String>,
}

impl Store {
    /// Audit rows that D1 does not have yet, oldest first.
    pub async fn load_audit_outbox(&self, limit: u32) -> StoreResult<Vec<AuditRow>> {
        let rows =
            query("SELECT op_id, at, key, action, source, fingerprint FROM audit_outbox ORDER BY at, op_id LIMIT $1")
                .bind(limit)
                .fetch_all(&mut self.lock().await)
                .await
                .during("load audit rows")?;
        Ok(rows
            .into_iter()
            .map(|r| AuditRow {
                op_id: r.get(0),
                at: Timestamp::from_millis(r.get(1)),
                key: r.get(2),
                action: r.get(3),
                source: r.get(4),
                fingerprint: r.get(5),
            })
            .collect())
    }

    /// D1 took these. From `sent_at` on they are expected to be read there; `None`: nobody will look.
    pub async fn clear_audit_outbox(&self, rows: &[AuditRow], sent_at: Option<Timestamp>) -> StoreResult<()> {
        let sent = sent_at.map_or_else(Vec::new, |at| rows.iter().map(|r| json!([r.op_id, at.millis()])).collect());
        let all = json!({
            "ids": rows.iter().map(|r| [&r.op_id]).collect::<Vec<_>>(),
            "sent": sent,
            "add": [("audit_rows", rows.len())],
        });
        CLEAR_AUDIT.call(&mut self.lock().await, &all).await
    }

    /// Where the reading of D1 goes on; `None` before it began.
    pub async fn load_audit_end(&self) -> StoreResult<Option<u64>> {
        Ok(self.load_meta(END).await?.and_then(|end| end.parse().ok()))
    }

    /// The reading of D1 begins behind this place: what is before it was there before us.
    pub async fn save_audit_end(&self, end: u64) -> StoreResult<()> {
        self.save_meta(END, &end.to_string()).await
    }

    /// What we wrote of these operations, as far as it was not read back yet.
    pub async fn load_sent_audit(&self, op_ids: &[&str]) -> StoreResult<BTreeMap<String, SentAudit>> {
        let rows = query(
            "SELECT op_id, key, fingerprint FROM audit_sent WHERE op_id IN (SELECT value->>0 FROM json_each($1))
             UNION SELECT op_id, key, fingerprint FROM audit_outbox WHERE op_id IN (SELECT value->>0 FROM json_each($1))",
        )
        .bind(list(op_ids))
        .fetch_all(&mut self.lock().await)
        .await
        .during("look for audit rows")?;
        Ok(rows.into_iter().map(|r| (r.get(0), SentAudit { key: r.get(1), fingerprint: r.get(2) })).collect())
    }

    /// Operations that were sent up to `until` and not read back, the longest ago first.
    pub async fn load_unread_audit(&self, until: Timestamp, limit: u32) -> StoreResult<Vec<String>> {
        let rows = query("SELECT op_id FROM audit_sent WHERE sent_at <= $1 ORDER BY sent_at, op_id LIMIT $2")
            .bind(until.millis())
            .bind(limit)
            .fetch_all(&mut self.lock().await)
            .await
            .during("look for audit rows")?;
        Ok(rows.into_iter().map(|r| r.get(0)).collect())
    }

    /// These operations were read in D1, and everything up to the place `end`, in one commit.
    pub async fn confirm_audit(&self, op_ids: &[&str], end: u64) -> StoreResult<()> {
        let ids = list(op_ids);
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Rows).await.during("begin")?;
        for sql in [
            "DELETE FROM audit_sent WHERE op_id IN (SELECT value->>0 FROM json_each($1))",
            // Taken by D1 although its answer was lost, or sent by another machine just now.
            "DELETE FROM audit_outbox WHERE op_id IN (SELECT value->>0 FROM json_each($1))",
        ] {
            query(sql).bind(&ids).execute(&mut tx).await.during("confirm audit rows")?;
        }
        query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
            .bind(END)
            .bind(end.to_string())
            .execute(&mut tx)
            .await
            .during("note how far the audit was read")?;
        tx.commit().await.during("commit")
    }

    /// A reading that began at `at` came to the end of the table.
    pub async fn note_audit_read(&self, at: Timestamp) -> StoreResult<()> {
        self.save_meta(READ_AT, &at.millis().to_string()).await
    }

    /// Rows that D1 took longer than `grace_ms` before the last whole reading and did not show: of each
    /// key the oldest, with their number.
    pub async fn load_lost_audit(&self, grace_ms: i64) -> StoreResult<Vec<Note>> {
        let read_at: Option<i64> = self.load_meta(READ_AT).await?.and_then(|at| at.parse().ok());
        let Some(read_at) = read_at else { return Ok(Vec::new()) };
        let rows = query(
            "SELECT MIN(op_id), key, MIN(sent_at), COUNT(*) FROM audit_sent WHERE sent_at <= $1 GROUP BY key
             ORDER BY MIN(sent_at), key",
        )
        .bind(read_at - grace_ms)
        .fetch_all(&mut self.lock().await)
        .await
        .during("look for lost audit rows")?;
        let note = |r: super::Row| {
            let (op_id, key, at, lost): (String, String, i64, i64) = (r.get(0), r.get(1), r.get(2), r.get(3));
            let subject = key.strip_prefix(KV_PREFIX).unwrap_or(&key).to_owned();
            let more = if lost > 1 { format!(" and {} more", lost - 1) } else { String::new() };
            Note { at: Timestamp::from_millis(at), subject, detail: format!("`kv_audit` does not show {op_id}{more}") }
        };
        Ok(rows.into_iter().map(note).collect())
    }

    /// When the first version of a triplet was journalled.
    pub async fn load_first_version_at(&self, triplet: &Triplet) -> StoreResult<Option<Timestamp>> {
        let row = query("SELECT MIN(at) FROM journal WHERE triplet = $1")
            .bind(triplet.to_string())
            .fetch_one(&mut self.lock().await)
            .await
            .during("look for a first version")?;
        Ok(row.get::<Option<i64>>(0).map(Timestamp::from_millis))
    }
}

fn list(op_ids: &[&str]) -> String {
    json!(op_ids.iter().map(|id| [id]).collect::<Vec<_>>()).to_string()
}
