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
use crate::domain::time::Timestamp;
use crate::ports::{AUDIT_PAGE, ApiErrorKind, ApiResult, AuditRead, AuditRecord, AuditRow, AuditSink};

/// Inserts the rows of a JSON array, each once. The table is
/// `kv_audit(op_id TEXT PRIMARY KEY, at TEXT, key TEXT, action TEXT, source TEXT, fingerprint TEXT)`.
///
/// `WHERE true` keeps SQLite from reading `ON CONFLICT` as a join condition.
pub const INSERT_AUDIT_SQL: &str = "INSERT INTO kv_audit (op_id, at, key, action, source, fingerprint) \
     SELECT value ->> 'op_id', value ->> 'at', value ->> 'key', value ->> 'action', value ->> 'source', \
     value ->> 'fingerprint' FROM json_each(?1) WHERE true ON CONFLICT (op_id) DO NOTHING";

/// Rows behind a place. `rowid` grows with every insertion, whatever the rows say; texts are all
/// that a parameter can be.
pub const READ_AUDIT_SQL: &str = "SELECT rowid, op_id, at, key, action, source, fingerprint FROM kv_audit \
     WHERE rowid > CAST(?1 AS INTEGER) ORDER BY rowid LIMIT 1000";

/// The newest row.
pub const AUDIT_END_SQL: &str =
    "SELECT rowid, op_id, at, key, action, source, fingerprint FROM kv_audit ORDER BY rowid DESC LIMIT 1";

/// The rows of some operations, given as a JSON array.
pub const FIND_AUDIT_SQL: &str = "SELECT rowid, op_id, at, key, action, source, fingerprint FROM kv_audit \
     WHERE op_id IN (SELECT value FROM json_each(?1))";

/// Bytes of JSON in one statement: half of the 2 MB that D1 takes as one text.
const CHUNK_BYTES_MAX: usize = 1_000_000;

/// Rows in one statement. Far below what 30 s of query time allow.
const CHUNK_ROWS_MAX: usize = 5_000;

pub(super) const RAW: &str = "/d1/database/{id}/raw";

impl AuditSink for CloudflareClient {
    async fn append_audit(&self, rows: &[AuditRow]) -> ApiResult<()> {
        for chunk in chunks(rows) {
            self.query(INSERT_AUDIT_SQL, &[chunk], |statements| check(&statements)).await?;
        }
        Ok(())
    }
}

impl AuditRead for CloudflareClient {
    async fn audit_end(&self) -> ApiResult<u64> {
        let rows = self.query(AUDIT_END_SQL, &[], records).await?;
        Ok(rows.last().map_or(0, |row| row.place))
    }

    async fn read_audit(&self, after: u64) -> ApiResult<Vec<AuditRecord>> {
        let in_order = |statements| {
            let rows = records(statements)?;
            let places = || std::iter::once(after).chain(rows.iter().map(|row| row.place));
            if rows.len() > AUDIT_PAGE || !places().zip(places().skip(1)).all(|(before, next)| before < next) {
                return Err(contract("rows that were not asked for"));
            }
            Ok(rows)
        };
        self.query(READ_AUDIT_SQL, &[after.to_string()], in_order).await
    }

    async fn find_audit(&self, op_ids: &[String]) -> ApiResult<Vec<AuditRecord>> {
        self.query(FIND_AUDIT_SQL, &[json!(op_ids).to_string()], records).await
    }
}

impl CloudflareClient {
    async fn query<T>(
        &self,
        sql: &str,
        params: &[String],
        understand: impl FnOnce(Vec<WireStatement>) -> Result<T, ApiErrorKind>,
    ) -> ApiResult<T> {
        let request = self.request(Method::POST, RAW, &format!("/d1/database/{}/raw", self.d1));
        let line = request.line();
        let body = json!({"sql": sql, "params": params});
        let statements: Vec<WireStatement> = judged(&line, self.call(request.json(&body)).await?.result())?;
        judged(&line, understand(statements))
    }
}

#[derive(Deserialize)]
struct WireStatement {
    success: bool,
    #[serde(default)]
    results: Option<WireTable>,
}

#[derive(Deserialize)]
struct WireTable {
    rows: Vec<[Value; 7]>,
}

/// The rows of the only statement. Others may have written what they like: a cell that is no text
/// is kept as what it looks like, and only the place must be a number.
fn records(statements: Vec<WireStatement>) -> Result<Vec<AuditRecord>, ApiErrorKind> {
    check(&statements)?;
    let [WireStatement { results: Some(table), .. }] = &statements[..] else {
        return Err(contract("no rows under the statement"));
    };
    let text = |cell: &Value| match cell {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let record = |[place, op_id, at, key, action, source, fingerprint]: &[Value; 7]| {
        let some = |cell| text(cell).unwrap_or_default();
        Ok(AuditRecord {
            place: place.as_u64().ok_or_else(|| contract("a row without a place"))?,
            op_id: some(op_id),
            at: at.as_str().and_then(|at| Timestamp::parse(at).ok()),
            key: some(key),
            action: some(action),
            source: some(source),
            fingerprint: text(fingerprint),
        })
    };
    table.rows.iter().map(record).collect()
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

    async fn audit_table() -> SqliteConnection {
        let mut db = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::query(
            "CREATE TABLE kv_audit (op_id TEXT PRIMARY KEY, at TEXT, key TEXT, action TEXT, source TEXT, fingerprint TEXT)",
        )
        .execute(&mut db)
        .await
        .unwrap();
        db
    }

    #[tokio::test]
    async fn the_statement_inserts_each_operation_once() {
        let mut db = audit_table().await;
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
        let statement = |success| WireStatement { success, results: None };
        assert!(check(&[]).is_err());
        assert!(check(&[statement(false)]).is_err());
        assert!(check(&[statement(true)]).is_ok());
        assert!(records(vec![statement(true)]).is_err(), "a question without rows is no answer");
    }

    #[tokio::test]
    async fn rows_are_read_in_the_order_of_their_insertion() {
        let mut db = audit_table().await;
        for id in ["z", "m", "a"] {
            sqlx::query("INSERT INTO kv_audit (op_id) VALUES (?1)").bind(id).execute(&mut db).await.unwrap();
        }
        let ids = |rows: Vec<sqlx::sqlite::SqliteRow>| {
            rows.iter().map(|row| (row.get::<i64, _>("rowid"), row.get("op_id"))).collect::<Vec<(i64, String)>>()
        };
        let behind = sqlx::query(READ_AUDIT_SQL).bind("1").fetch_all(&mut db).await.unwrap();
        assert_eq!(ids(behind), [(2, "m".to_owned()), (3, "a".to_owned())]);
        assert_eq!(ids(sqlx::query(AUDIT_END_SQL).fetch_all(&mut db).await.unwrap()), [(3, "a".to_owned())]);
        let found = sqlx::query(FIND_AUDIT_SQL).bind(r#"["z","q"]"#).fetch_all(&mut db).await.unwrap();
        assert_eq!(ids(found), [(1, "z".to_owned())]);
    }

    #[test]
    fn what_others_wrote_is_taken_as_it_is() {
        let table = |rows: Value| {
            serde_json::from_value::<Vec<WireStatement>>(
                json!([{"success": true, "results": {"columns": [], "rows": rows}}]),
            )
        };
        let row = json!([7, null, 1_790_000_000, "k", "put", "nango-webhook", null]);
        let row = records(table(json!([row])).unwrap()).unwrap().remove(0);
        assert_eq!((row.place, row.op_id.as_str(), row.at, row.source.as_str()), (7, "", None, "nango-webhook"));
        assert!(records(table(json!([["7", "op", "t", "k", "put", "s", null]])).unwrap()).is_err());
        assert!(table(json!([[7, "op"]])).is_err());
    }
}
