//! The table `kv_audit`, column by column, and the SQL that makes it fit.

use super::{Finding, Severity};
use crate::ports::{AuditColumn, AuditTable};

const CHECK: &str = "cloudflare-d1-shape";

/// What an audit row fills, in the order of the insert. All are texts.
const COLUMNS: [&str; 6] = ["op_id", "at", "key", "action", "source", "fingerprint"];

/// Columns of ours that stay empty in some rows.
const MAY_BE_NULL: &str = "fingerprint";

/// What the first statement of a fresh database is.
const CREATE: &str =
    "CREATE TABLE kv_audit (op_id TEXT PRIMARY KEY, at TEXT, key TEXT, action TEXT, source TEXT, fingerprint TEXT);";

/// Whether the table takes our rows, each once.
pub(super) fn judge(table: &AuditTable) -> Finding {
    if table.columns.is_empty() {
        return Finding::error(CHECK, "there is no table `kv_audit`", format!("make it: {CREATE}"));
    }
    let find = |name: &str| table.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name));
    let missing: Vec<&str> = COLUMNS.into_iter().filter(|name| find(name).is_none()).collect();
    let known = |column: &&AuditColumn| COLUMNS.iter().any(|name| column.name.eq_ignore_ascii_case(name));
    let extra: Vec<&AuditColumn> = table.columns.iter().filter(|column| !known(column)).collect();
    // Nobody fills these, and a row without them is refused.
    let stuck: Vec<String> = extra
        .iter()
        .copied()
        .filter(|column| column.not_null && !column.has_default && !fills_itself(column))
        .chain(find(MAY_BE_NULL).filter(|column| column.not_null && !column.has_default))
        .map(|column| format!("`{}`", column.name))
        .collect();
    let once = table.unique.iter().any(|index| matches!(&index[..], [only] if only.eq_ignore_ascii_case(COLUMNS[0])));

    let (mut seen, mut sql) = (Vec::new(), Vec::new());
    if !missing.is_empty() {
        seen.push(format!("it lacks {}", list(missing.iter().map(|name| format!("`{name}`")))));
        sql.extend(missing.iter().map(|name| format!("ALTER TABLE kv_audit ADD COLUMN {name} TEXT;")));
    }
    if !once {
        seen.push("nothing makes `op_id` unique, so a repeated row would stand there twice".to_owned());
        sql.push("CREATE UNIQUE INDEX kv_audit_op_id ON kv_audit (op_id);".to_owned());
    }
    if !stuck.is_empty() {
        seen.push(format!("{} must not be null, and nothing fills it", stuck.join(", ")));
    }
    let others = match extra.is_empty() {
        true => String::new(),
        false => format!("; besides {}", list(extra.iter().map(|column| format!("`{}`", column.name)))),
    };
    if seen.is_empty() {
        return Finding::ok(CHECK, format!("all {} columns, `op_id` is unique{others}", COLUMNS.len()));
    }
    let mut remedy = sql.join(" ");
    if !stuck.is_empty() {
        let hint =
            format!("make {} nullable or give it a default, which needs a new table: {CREATE}", stuck.join(", "));
        remedy = if remedy.is_empty() { hint } else { format!("{remedy} And {hint}") };
    }
    Finding::new(CHECK, Severity::Error, format!("{}{others}", seen.join("; ")), remedy)
}

/// `INTEGER PRIMARY KEY` is SQLite's own row number.
fn fills_itself(column: &AuditColumn) -> bool {
    column.primary_key && column.declared.eq_ignore_ascii_case("INTEGER")
}

fn list(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, Executor, Row, SqliteConnection};

    use super::*;
    use crate::clients::cloudflare::INSERT_AUDIT_SQL;

    async fn database(create: &str) -> SqliteConnection {
        let mut db = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        db.execute(sqlx::AssertSqlSafe(create.to_owned())).await.unwrap();
        db
    }

    /// The table as SQLite itself tells it.
    async fn table(db: &mut SqliteConnection) -> AuditTable {
        let rows = db.fetch_all("PRAGMA table_info(kv_audit)").await.unwrap();
        let columns: Vec<AuditColumn> = rows
            .iter()
            .map(|row| AuditColumn {
                name: row.get("name"),
                declared: row.get("type"),
                not_null: row.get::<i64, _>("notnull") != 0,
                has_default: row.get::<Option<String>, _>("dflt_value").is_some(),
                primary_key: row.get::<i64, _>("pk") != 0,
            })
            .collect();
        let mut unique = Vec::new();
        for index in db.fetch_all("PRAGMA index_list(kv_audit)").await.unwrap() {
            if index.get::<i64, _>("unique") != 0 {
                let sql = format!("PRAGMA index_info(\"{}\")", index.get::<String, _>("name"));
                let columns = db.fetch_all(sqlx::AssertSqlSafe(sql)).await.unwrap();
                unique.push(columns.iter().map(|row| row.get("name")).collect());
            }
        }
        AuditTable { columns, unique }
    }

    async fn insert(db: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        let rows = r#"[{"op_id":"1","at":"t","key":"k","action":"put","source":"nango","fingerprint":null}]"#;
        Ok(sqlx::query(INSERT_AUDIT_SQL).bind(rows).execute(db).await?.rows_affected())
    }

    #[tokio::test]
    async fn the_sql_of_the_remedy_makes_every_mendable_table_fit() {
        for create in [
            "CREATE TABLE other (x)",
            "CREATE TABLE kv_audit (ts INTEGER, key TEXT, action TEXT, source TEXT)",
            "CREATE TABLE kv_audit (id INTEGER PRIMARY KEY, op_id TEXT, at TEXT, key TEXT, source TEXT NOT NULL)",
            "CREATE TABLE kv_audit (op_id TEXT, at TEXT, key TEXT, action TEXT, source TEXT, fingerprint TEXT)",
        ] {
            let mut db = database(create).await;
            let before = judge(&table(&mut db).await);
            assert_eq!(before.severity, Severity::Error, "{create}: {before:?}");
            assert!(insert(&mut db).await.is_err(), "{create}: our rows went in before");
            let sql = before.remedy.trim_start_matches("make it: ").to_owned();
            db.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
            let after = judge(&table(&mut db).await);
            assert_eq!(after.severity, Severity::Ok, "{create}: {after:?}");
            assert_eq!((insert(&mut db).await.unwrap(), insert(&mut db).await.unwrap()), (1, 0), "{create}");
        }
    }

    #[tokio::test]
    async fn columns_are_named_one_by_one() {
        let mut db = database("CREATE TABLE kv_audit (ts INTEGER NOT NULL, key TEXT, action TEXT, source TEXT)").await;
        let found = judge(&table(&mut db).await);
        assert!(found.evidence.contains("lacks `op_id`, `at`, `fingerprint`"), "{found:?}");
        assert!(
            found.evidence.contains("`ts` must not be null") && found.evidence.ends_with("besides `ts`"),
            "{found:?}"
        );
        assert!(
            found.remedy.contains("ADD COLUMN at TEXT;") && found.remedy.contains("make `ts` nullable"),
            "{found:?}"
        );
        let mut db = database(&CREATE.replace("source TEXT", "source TEXT, region TEXT")).await;
        let found = judge(&table(&mut db).await);
        assert_eq!((found.severity, found.evidence.contains("besides `region`")), (Severity::Ok, true), "{found:?}");
        let mut db = database(&CREATE.replace("fingerprint TEXT", "fingerprint TEXT NOT NULL")).await;
        assert!(judge(&table(&mut db).await).evidence.contains("`fingerprint` must not be null"));
    }
}
