//! Entries in KV that somebody else wrote last, from when that is seen until they are ours again.
//! All machines read them here: which one looks at the namespaces is a matter of chance.

use std::collections::BTreeSet;

use serde_json::json;

use super::db::Lock;
use super::{During, Sink, Store, StoreResult, evidence::insert_note, query};
use crate::domain::criteria::Note;
use crate::domain::triplet::Triplet;

/// What they are remembered under; the claim of a delivery (`store::delivery`) looks there too.
fn key(sink: Sink, triplet: &Triplet) -> String {
    format!("foreign:{}:{triplet}", sink.name())
}

impl Store {
    /// Remembers that the entry of `triplet` in `sink` is somebody else's, and notes it, in one commit.
    /// Returns `false`, with nothing changed, when that is known.
    pub async fn note_foreign(&self, sink: Sink, triplet: &Triplet, note: &Note) -> StoreResult<bool> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Rows).await.during("begin")?;
        let new = query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING")
            .bind(key(sink, triplet))
            .bind(note.at.millis().to_string())
            .execute(&mut tx)
            .await
            .during("remember a foreign write")?;
        if new == 0 {
            return Ok(false);
        }
        insert_note("foreign-write", note).execute(&mut tx).await.during("note evidence")?;
        tx.commit().await.during("commit")?;
        Ok(true)
    }

    /// The entry is ours again.
    pub async fn forget_foreign(&self, sink: Sink, triplet: &Triplet) -> StoreResult<()> {
        self.delete_meta(&key(sink, triplet)).await
    }

    /// The triplets whose entry in `sink` is somebody else's.
    pub async fn load_foreign(&self, sink: Sink) -> StoreResult<BTreeSet<Triplet>> {
        let metas = self.load_metas(&format!("foreign:{}:", sink.name())).await?;
        metas.keys().map(|name| super::delivery::parse_triplet(name)).collect()
    }

    /// Whether the entry of one of these in `sink` is somebody else's.
    pub async fn is_foreign(&self, sink: Sink, triplets: &[&Triplet]) -> StoreResult<bool> {
        let keys: Vec<[String; 1]> = triplets.iter().map(|triplet| [key(sink, triplet)]).collect();
        let row = query("SELECT COUNT(*) FROM meta WHERE key IN (SELECT value->>0 FROM json_each($1))")
            .bind(json!(keys).to_string())
            .fetch_one(&mut self.lock().await)
            .await
            .during("look for foreign writes")?;
        Ok(row.get::<i64>(0) > 0)
    }
}
