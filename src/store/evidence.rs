//! Counts, and the few things that must be named.

use std::collections::BTreeMap;

use super::db::{Lock, Query, Session};
use super::{During, Store, StoreResult, procedure::ADD_AND_RAISE, query};
use crate::domain::criteria::Note;
use crate::domain::time::Timestamp;
use serde_json::json;

/// Upper bounds, in seconds, of the buckets in which mirror lag is counted. The last is open.
pub const LAG_BOUNDS_S: [i64; 15] = [1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800];

/// The counter of the bucket that a lag falls into.
pub fn lag_counter(lag_ms: i64) -> String {
    match LAG_BOUNDS_S.iter().find(|&&s| lag_ms <= s * 1000) {
        Some(s) => format!("lag:{s}"),
        None => "lag:inf".to_owned(),
    }
}

/// Adds a note inside whatever commit is open.
pub(super) fn insert_note(kind: &str, note: &Note) -> Query {
    query("INSERT INTO note (at, kind, subject, detail, alerted) VALUES ($1, $2, $3, $4, 0)")
        .bind(note.at.millis())
        .bind(kind)
        .bind(&note.subject)
        .bind(&note.detail)
}

/// Adds to counters inside whatever commit is open.
pub(super) async fn add(session: &mut impl Session, counts: &[(&str, i64)]) -> StoreResult<()> {
    let sums = sums(counts.iter().map(|&(name, n)| (name, n)));
    if sums.is_empty() {
        return Ok(());
    }
    query(
        "INSERT INTO counter (name, value)
         SELECT value->>0, CAST(value->>1 AS BIGINT) FROM json_each($1) WHERE true
         ON CONFLICT (name) DO UPDATE SET value = counter.value + excluded.value",
    )
    .bind(json!(sums.into_iter().collect::<Vec<_>>()).to_string())
    .execute(session)
    .await
    .during("count")?;
    Ok(())
}

/// One sum per name, without those that are nothing.
fn sums<'a>(counts: impl Iterator<Item = (&'a str, i64)>) -> BTreeMap<&'a str, i64> {
    let mut sums = BTreeMap::new();
    for (name, n) in counts {
        *sums.entry(name).or_default() += n;
    }
    sums.retain(|_, n| *n != 0);
    sums
}

impl Store {
    pub async fn add_counts(&self, counts: &[(&str, i64)]) -> StoreResult<()> {
        add(&mut self.lock().await, counts).await
    }

    /// Adds to some counters and raises others to a value that they have not reached, in one commit.
    pub async fn add_and_raise(&self, add: &[(String, i64)], raise: &[(String, i64)]) -> StoreResult<()> {
        let named = |counts: &'_ [(String, i64)]| -> Vec<(String, i64)> {
            sums(counts.iter().map(|(name, n)| (name.as_str(), *n)))
                .into_iter()
                .map(|(k, n)| (k.to_owned(), n))
                .collect()
        };
        let mut highest: BTreeMap<&str, i64> = BTreeMap::new();
        for (name, value) in raise {
            let highest = highest.entry(name).or_insert(*value);
            *highest = (*highest).max(*value);
        }
        let all = json!({"add": named(add), "raise": highest.into_iter().collect::<Vec<_>>()});
        ADD_AND_RAISE.call(&mut self.lock().await, &all).await
    }

    pub async fn set_counter(&self, name: &str, value: i64) -> StoreResult<()> {
        query(
            "INSERT INTO counter (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(name)
        .bind(value)
        .execute(&mut self.lock().await)
        .await
        .during("set a counter")?;
        Ok(())
    }

    pub async fn load_counters(&self) -> StoreResult<BTreeMap<String, i64>> {
        let rows =
            query("SELECT name, value FROM counter").fetch_all(&mut self.read().await).await.during("load counters")?;
        Ok(rows.into_iter().map(|r| (r.get(0), r.get(1))).collect())
    }

    pub async fn add_note(&self, kind: &str, note: &Note) -> StoreResult<()> {
        insert_note(kind, note).execute(&mut self.lock().await).await.during("note evidence")?;
        Ok(())
    }

    /// Remembers under `key` that something went from `before` to `after`, and notes it, in one
    /// commit. Returns `false`, with nothing changed, when it is not `before` any more: of several
    /// callers one notes. What was never remembered counts as `before`.
    pub async fn note_change(
        &self,
        key: &str,
        before: &str,
        after: &str,
        kind: &str,
        note: &Note,
    ) -> StoreResult<bool> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Rows).await.during("begin")?;
        query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING")
            .bind(key)
            .bind(before)
            .execute(&mut tx)
            .await
            .during("remember what was")?;
        let changed = query("UPDATE meta SET value = $1 WHERE key = $2 AND value = $3")
            .bind(after)
            .bind(key)
            .bind(before)
            .execute(&mut tx)
            .await
            .during("remember a change")?;
        if changed == 0 {
            return Ok(false);
        }
        insert_note(kind, note).execute(&mut tx).await.during("note evidence")?;
        tx.commit().await.during("commit")?;
        Ok(true)
    }

    /// Notes of one kind in order of time, at most 1,000.
    pub async fn load_notes(&self, kind: &str) -> StoreResult<Vec<Note>> {
        let rows = query("SELECT at, subject, detail FROM note WHERE kind = $1 ORDER BY at, seq LIMIT 1000")
            .bind(kind)
            .fetch_all(&mut self.lock().await)
            .await
            .during("load evidence")?;
        Ok(rows
            .into_iter()
            .map(|r| Note { at: Timestamp::from_millis(r.get(0)), subject: r.get(1), detail: r.get(2) })
            .collect())
    }
}
