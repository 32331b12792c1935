//! The audit table `kv_audit` in D1.
//!
//! `/raw` is the route that production and the local runtime share. Parameters are declared as
//! texts only, and 100 of them would be 20 rows, so all rows travel as one JSON text.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::CloudflareClient;
use crate::clients::http::judged;
use crate::clients::reply::contract;
use crate::ports::{ApiErrorKind, ApiResult, AuditRow, AuditSink};

/// Inserts the rows of a JSON array, each once. The table is
/// `kv_audit(op_id TEXT PRIMARY KEY, at TEXT, key TEXT, action TEXT, source TEXT, fingerprint TEXT)`.
///
/// `WHERE true` keeps SQLite from reading `ON CONFLICT` as a join condition.
pub const INSERT_AUDIT_SQL: &str = "INSERT INTO kv_audit (op_id, at, key, action, source, fingerprint) \
     SELECT value ->> 'op_id', value ->> 'at', value ->> 'key', value ->> 'action', value ->> 'source', \
     value ->> 'fingerprint' FROM json_each(?1) WHERE true ON CONFLICT (op_id) DO NOTHING";

/// Bytes of JSON in one statement: half of the 2 MB that D1 takes as one text.
const CHUNK_BYTES_MAX: usize = 1_000_000;

/// Rows in one statement. Far below what 30 s of query time allow.
const CHUNK_ROWS_MAX: usize = 5_000;

pub(super) const RAW: &str = "/d1/database/{id}/raw";

impl AuditSink for CloudflareClient {
    async fn append_audit(&self, rows: &[AuditRow]) -> ApiResult<()> {
        for chunk in chunks(rows) {
            let request = self.request(Method::POST, RAW, &format!("/d1/database/{}/raw", self.d1));
            let line = request.line();
            let body = json!({"sql": INSERT_AUDIT_SQL, "params": [chunk]});
            let statements: Vec<WireStatement> = judged(&line, self.call(request.json(&body)).await?.result())?;
            judged(&line, check(&statements))?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct WireStatement {
    success: bool,
}

fn check(statements: &[WireStatement]) -> Result<(), ApiErrorKind> {
    match statements {
        [] => Err(contract("no result for the statement")),
        all if all.iter().all(|statement| statement.success) => Ok(()),
        _ => Err(contract("a failed statement under `success`")),
    }
}

/// JSON arrays of rows, each small enough for one statement.
fn chunks(rows: &[AuditRow]) -> Vec<String> {
    let mut chunks = Vec::new();
    let (mut text, mut count) = (String::new(), 0);
    for row in rows {
        let AuditRow { op_id, at, key, action, source, fingerprint } = row;
        let row: Value = json!({
            "op_id": op_id, "at": at, "key": key, "action": action, "source": source, "fingerprint": fingerprint,
        });
        let row = row.to_string();
        if count == CHUNK_ROWS_MAX || (count > 0 && text.len() + row.len() > CHUNK_BYTES_MAX) {
            chunks.push(format!("[{}]", std::mem::take(&mut text)));
            count = 0;
        }
        if count > 0 {
            text.push(',');
        }
        text.push_str(&row);
        count += 1;
    }
    if count > 0 {
        chunks.push(format!("[{text}]"));
    }
    chunks
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, Row, SqliteConnection};

    use super::*;
    use crate::domain::time::Timestamp;

    fn row(n: usize, key: &str) -> AuditRow {
        AuditRow {
            op_id: format!("op-{n}"),
            at: Timestamp::from_secs(1_790_000_000),
            key: key.to_owned(),
            action: "put".into(),
            source: "nango".into(),
            fingerprint: n.is_multiple_of(2).then(|| "ab".repeat(12)),
        }
    }

    #[tokio::test]
    async fn the_statement_inserts_each_operation_once() {
        let mut db = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::query(
            "CREATE TABLE kv_audit (op_id TEXT PRIMARY KEY, at TEXT, key TEXT, action TEXT, source TEXT, fingerprint TEXT)",
        )
        .execute(&mut db)
        .await
        .unwrap();
        let rows: Vec<_> = (0..3).map(|n| row(n, "tokens:a:b:it's \"quoted\"")).collect();
        for rows in [&rows[..2], &rows[..], &rows[..]] {
            for chunk in chunks(rows) {
                sqlx::query(INSERT_AUDIT_SQL).bind(chunk).execute(&mut db).await.unwrap();
            }
        }
        let found = sqlx::query("SELECT op_id, at, key, fingerprint FROM kv_audit ORDER BY op_id")
            .fetch_all(&mut db)
            .await
            .unwrap();
        let ids: Vec<String> = found.iter().map(|row| row.get("op_id")).collect();
        assert_eq!(ids, ["op-0", "op-1", "op-2"]);
        assert_eq!(found[0].get::<String, _>("at"), "2026-09-21T14:13:20.000Z");
        assert_eq!(found[0].get::<String, _>("key"), "tokens:a:b:it's \"quoted\"");
        assert_eq!(found[1].get::<Option<String>, _>("fingerprint"), None);
    }

    #[test]
    fn chunks_stay_below_the_limits_and_lose_nothing() {
        let rows: Vec<_> = (0..6_000).map(|n| row(n, &"k".repeat(400))).collect();
        let chunks = chunks(&rows);
        let parsed: Vec<Vec<Value>> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
        assert_eq!(parsed.iter().map(Vec::len).sum::<usize>(), rows.len());
        assert!(chunks.iter().all(|chunk| chunk.len() <= CHUNK_BYTES_MAX + 16_000));
        assert!(parsed.iter().all(|chunk| chunk.len() <= CHUNK_ROWS_MAX));
        assert!(super::chunks(&[]).is_empty());
    }

    #[test]
    fn a_statement_without_a_success_is_not_one() {
        assert!(check(&[]).is_err());
        assert!(check(&[WireStatement { success: false }]).is_err());
        assert!(check(&[WireStatement { success: true }]).is_ok());
    }
}
