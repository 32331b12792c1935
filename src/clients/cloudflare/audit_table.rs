//! What D1 says of the table `kv_audit`: its columns, and what is unique in it.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::CloudflareClient;
use super::d1::RAW;
use crate::clients::http::judged;
use crate::clients::reply::contract;
use crate::ports::{ApiErrorKind, ApiResult, AuditColumn, AuditShape, AuditTable};

/// Indexes of one table that are looked at.
const INDEXES_MAX: usize = 32;

impl CloudflareClient {
    /// The rows of one statement, as objects.
    async fn rows(&self, sql: &str) -> ApiResult<Vec<Value>> {
        let request = self.request(Method::POST, RAW, &format!("/d1/database/{}/raw", self.d1));
        let line = request.line();
        let statements: Vec<WireStatement> =
            judged(&line, self.call(request.json(&json!({"sql": sql}))).await?.result())?;
        judged(&line, named(statements))
    }
}

impl AuditShape for CloudflareClient {
    async fn audit_table(&self) -> ApiResult<AuditTable> {
        let columns: Vec<AuditColumn> =
            self.rows("PRAGMA table_info(kv_audit)").await?.iter().filter_map(column).collect();
        let key: Vec<String> = columns.iter().filter(|c| c.primary_key).map(|c| c.name.clone()).collect();
        let mut unique = Vec::new();
        if !key.is_empty() {
            unique.push(key);
        }
        let indexes = self.rows("PRAGMA index_list(kv_audit)").await?;
        let whole = |row: &&Value| is_set(&row["unique"]) && !is_set(&row["partial"]);
        for index in indexes.iter().filter(whole).take(INDEXES_MAX) {
            let name = index["name"].as_str().unwrap_or_default();
            let columns = self.rows(&format!("PRAGMA index_info({})", quoted(name))).await?;
            unique.push(columns.iter().filter_map(|row| Some(row["name"].as_str()?.to_owned())).collect());
        }
        Ok(AuditTable { columns, unique })
    }
}

#[derive(Deserialize)]
struct WireStatement {
    success: bool,
    #[serde(default)]
    results: WireResults,
}

#[derive(Default, Deserialize)]
struct WireResults {
    #[serde(default)]
    columns: Vec<String>,
    #[serde(default)]
    rows: Vec<Vec<Value>>,
}

/// The rows of the only statement, each as an object by column.
fn named(statements: Vec<WireStatement>) -> Result<Vec<Value>, ApiErrorKind> {
    let Some(WireStatement { success: true, results }) = statements.into_iter().next() else {
        return Err(contract("no result for the statement"));
    };
    let WireResults { columns, rows } = results;
    let object = |row: Vec<Value>| Value::Object(columns.iter().cloned().zip(row).collect());
    Ok(rows.into_iter().map(object).collect())
}

/// SQLite's booleans are numbers.
fn is_set(value: &Value) -> bool {
    value.as_i64().is_some_and(|n| n != 0)
}

fn column(row: &Value) -> Option<AuditColumn> {
    Some(AuditColumn {
        name: row["name"].as_str()?.to_owned(),
        declared: row["type"].as_str().unwrap_or_default().to_owned(),
        not_null: is_set(&row["notnull"]),
        has_default: !row["dflt_value"].is_null(),
        primary_key: is_set(&row["pk"]),
    })
}

/// A name as SQLite takes any name.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_by_the_names_of_their_columns() {
        let statements = serde_json::from_value(json!([{"success": true, "results": {
            "columns": ["cid", "name", "type", "notnull", "dflt_value", "pk"],
            "rows": [[0, "op_id", "TEXT", 0, null, 1], [1, "at", "", 1, "'x'", 0]],
        }}]));
        let rows = named(statements.unwrap()).unwrap();
        let columns: Vec<AuditColumn> = rows.iter().filter_map(column).collect();
        assert_eq!(columns[0].name, "op_id");
        assert!(columns[0].primary_key && !columns[0].not_null && !columns[0].has_default);
        assert!(!columns[1].primary_key && columns[1].not_null && columns[1].has_default);
        assert!(named(Vec::new()).is_err());
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
