//! Encrypting with the newest key what older keys encrypted.

use serde_json::json;

use super::db::Lock;
use super::{During, Store, StoreResult, Vault, intake, journal, query};
use crate::domain::secret::hex;

/// Payloads that one commit encrypts anew: few enough that nothing waits long behind it.
const BATCH: u32 = 500;

/// A table with payloads, and its two statements.
struct Table {
    /// Number, triplet and version (both empty where the place is the table), payload.
    load: &'static str,
    save: &'static str,
}

const TABLES: [Table; 2] = [
    Table {
        load: "SELECT seq, triplet, version, payload FROM journal
               WHERE payload IS NOT NULL AND seq > $1 ORDER BY seq LIMIT $2",
        save: "UPDATE journal SET payload = unhex(j.value->>1)
               FROM json_each($1) AS j WHERE journal.seq = CAST(j.value->>0 AS BIGINT)",
    },
    Table {
        load: "SELECT seq, CAST(NULL AS TEXT), CAST(NULL AS BIGINT), payload FROM intake
               WHERE payload IS NOT NULL AND seq > $1 ORDER BY seq LIMIT $2",
        save: "UPDATE intake SET payload = unhex(j.value->>1)
               FROM json_each($1) AS j WHERE intake.seq = CAST(j.value->>0 AS BIGINT)",
    },
];

impl Store {
    /// Encrypts every payload with the newest key. After it, the older keys are needed by nothing
    /// ([`Vault::drop_old_keys`]), once every process on this state has the newest one. Can be
    /// called again after a crash. Returns how many payloads it encrypted anew.
    ///
    /// # Errors
    /// When a payload cannot be opened; what was done until then stays done.
    pub async fn rotate(&self) -> StoreResult<u64> {
        let mut rotated = 0;
        for table in TABLES {
            let mut after = 0i64;
            loop {
                let mut connection = self.lock().await;
                let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
                let rows = query(table.load)
                    .bind(after)
                    .bind(BATCH)
                    .fetch_all(&mut tx)
                    .await
                    .during("load payloads to encrypt anew")?;
                let Some(last) = rows.last() else { break };
                after = last.get(0);
                let mut changed = Vec::new();
                for row in &rows {
                    let payload: Vec<u8> = row.get(3);
                    if Vault::key_of(&payload) == Some(self.vault.newest_key()) {
                        continue;
                    }
                    let place = match row.get::<Option<String>>(1) {
                        Some(triplet) => journal::place(&triplet, row.get(2)),
                        None => intake::PLACE.to_owned(),
                    };
                    let clear = self.vault.open(&place, &payload)?;
                    changed.push(json!([row.get::<i64>(0), hex(&self.vault.seal(&place, &clear)?)]));
                }
                rotated += changed.len() as u64;
                if !changed.is_empty() {
                    query(table.save)
                        .bind(json!(changed).to_string())
                        .execute(&mut tx)
                        .await
                        .during("save payloads encrypted anew")?;
                }
                tx.commit().await.during("commit")?;
            }
        }
        Ok(rotated)
    }
}
