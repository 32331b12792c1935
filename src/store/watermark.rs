//! Since when each key of a pair of sides is known to be the same on both.

use serde_json::json;

use super::db::Lock;
use super::delivery::parse_fingerprint;
use super::{During, Store, StoreResult, query};
use crate::domain::secret::Fingerprint;
use crate::domain::time::Timestamp;

/// Which keys come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DueKeys {
    /// Their listing is another than at their last comparison, or that found a difference.
    Changed,
    /// Their last comparison is the longest ago.
    InTurn,
}

/// How the comparison of a key came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    pub key: String,
    /// What the listing said of it.
    pub listed: Fingerprint,
    /// `match` moves the watermark.
    pub outcome: &'static str,
    pub rung: &'static str,
    /// When the comparison began.
    pub at: Timestamp,
}

impl Store {
    /// Notes what the listings of a pair say, in one commit.
    pub async fn note_listed(&self, pair: &str, keys: &[(String, Fingerprint)], at: Timestamp) -> StoreResult<()> {
        let rows: Vec<_> = keys.iter().map(|(key, listed)| json!([key, listed])).collect();
        query(
            "INSERT INTO watermark (pair, key, listed, listed_at)
             SELECT CAST($1 AS TEXT), value->>0, value->>1, CAST($2 AS BIGINT) FROM json_each($3) WHERE true
             ON CONFLICT (pair, key) DO UPDATE SET listed = excluded.listed, listed_at = excluded.listed_at",
        )
        .bind(pair)
        .bind(at.millis())
        .bind(json!(rows).to_string())
        .execute(&mut self.lock().await)
        .await
        .during("note a listing")?;
        Ok(())
    }

    /// Forgets keys that no listing since `at` held.
    pub async fn forget_unlisted(&self, pair: &str, at: Timestamp) -> StoreResult<()> {
        query("DELETE FROM watermark WHERE pair = $1 AND listed_at < $2")
            .bind(pair)
            .bind(at.millis())
            .execute(&mut self.lock().await)
            .await
            .during("forget keys")?;
        Ok(())
    }

    /// Keys that are due and were not compared since `since`, with what their listing says.
    pub async fn load_due_keys(
        &self,
        pair: &str,
        due: DueKeys,
        since: Timestamp,
        limit: u32,
    ) -> StoreResult<Vec<(String, Fingerprint)>> {
        let sql = match due {
            DueKeys::Changed => {
                "SELECT key, listed FROM watermark
                 WHERE pair = $1 AND (checked_at IS NULL OR checked_at < $2)
                   AND (checked IS NULL OR checked <> listed
                        OR outcome IN ('missing', 'extra', 'changed', 'foreign', 'settling', 'error'))
                 ORDER BY key LIMIT $3"
            }
            DueKeys::InTurn => {
                "SELECT key, listed FROM watermark WHERE pair = $1 AND checked_at < $2
                 ORDER BY checked_at, key LIMIT $3"
            }
        };
        let rows = query(sql)
            .bind(pair)
            .bind(since.millis())
            .bind(limit)
            .fetch_all(&mut self.read().await)
            .await
            .during("look for keys to compare")?;
        rows.into_iter().map(|row| Ok((row.get(0), parse_fingerprint(&row.get::<String>(1))?))).collect()
    }

    /// Notes how comparisons came out, in one commit.
    pub async fn note_checked(&self, pair: &str, checked: &[Checked]) -> StoreResult<()> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Rows).await.during("begin")?;
        for Checked { key, listed, outcome, rung, at } in checked {
            query(
                "UPDATE watermark SET checked = $3, checked_at = $4, outcome = $5, rung = $6,
                   clean_at = CASE WHEN $5 = 'match' AND (clean_at IS NULL OR clean_at < $4) THEN $4 ELSE clean_at END
                 WHERE pair = $1 AND key = $2",
            )
            .bind(pair)
            .bind(key)
            .bind(listed.to_string())
            .bind(at.millis())
            .bind(*outcome)
            .bind(*rung)
            .execute(&mut tx)
            .await
            .during("note a comparison")?;
        }
        tx.commit().await.during("commit comparisons")
    }

    /// Notes how differences ended that were looked at again, as key, outcome and rung. No look that
    /// ended one began before `at`.
    pub async fn note_settled(&self, pair: &str, settled: &[(&str, &str, &str)], at: Timestamp) -> StoreResult<()> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Rows).await.during("begin")?;
        for (key, outcome, rung) in settled {
            query(
                "UPDATE watermark SET outcome = $3, rung = $4,
                   clean_at = CASE WHEN $3 = 'match' AND (clean_at IS NULL OR clean_at < $5) THEN $5 ELSE clean_at END
                 WHERE pair = $1 AND key = $2",
            )
            .bind(pair)
            .bind(*key)
            .bind(*outcome)
            .bind(*rung)
            .bind(at.millis())
            .execute(&mut tx)
            .await
            .during("note how a difference ended")?;
        }
        tx.commit().await.during("commit comparisons")
    }

    /// The oldest `clean_at` of a pair; `None` while a key has none.
    pub async fn load_watermark(&self, pair: &str) -> StoreResult<Option<Timestamp>> {
        let row = query("SELECT MIN(clean_at), COUNT(*), COUNT(clean_at) FROM watermark WHERE pair = $1")
            .bind(pair)
            .fetch_one(&mut self.read().await)
            .await
            .during("load a watermark")?;
        let (keys, clean): (i64, i64) = (row.get(1), row.get(2));
        let oldest: Option<i64> = row.get(0);
        Ok(oldest.filter(|_| keys == clean).map(Timestamp::from_millis))
    }
}
