//! A copy of the state to try things on: always a file, wherever the state is.

use std::path::Path;

use sqlx::migrate::MigrateError;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Postgres, Row as _, SqliteConnection};

use super::{Backend, Durability, During, Place, Store, StoreError, StoreResult, open_sqlite, place, query, schema};

/// Rows that are fetched from PostgreSQL at a time.
const PAGE: u32 = 1_000;

/// What is read is as of one moment, and nothing can be written through it.
const SNAPSHOT: &str = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY";

const ACTION: &str = "copy the state";

impl Store {
    /// Writes a copy of the whole state to a new file, as of one moment. Secrets stay encrypted
    /// under the same key.
    ///
    /// # Errors
    /// When the file exists or cannot be written, or the state cannot be read.
    pub async fn copy_to(&self, path: &Path) -> StoreResult<()> {
        match &*self.backend {
            Backend::Sqlite { .. } => {
                query("VACUUM INTO $1")
                    .bind(path.display().to_string())
                    .execute(&mut self.read().await)
                    .await
                    .during(ACTION)?;
                Ok(())
            }
            Backend::Postgres(pool) => {
                let mut connection = pool.acquire().await.during(ACTION)?;
                copy_rows(&mut connection, path).await
            }
        }
    }

    /// Writes a copy of the PostgreSQL state at `url` to a new file without opening the state: no
    /// migration is applied to it, no lease is taken, and a role that may only read is enough. A
    /// database without a state gives an empty one.
    ///
    /// # Errors
    /// As [`Store::copy_to`], and when a newer version made the state.
    pub async fn copy_postgres(url: &str, path: &Path) -> StoreResult<()> {
        let open = |source| StoreError::Open { place: Place::Postgres(url.to_owned()), source };
        let options = place::postgres_options(url)
            .map_err(open)?
            .options([("default_transaction_read_only", "on")])
            .application_name("cutover dry run")
            .disable_statement_logging();
        let mut connection = PgConnection::connect_with(&options).await.map_err(open)?;
        copy_rows(&mut connection, path).await?;
        connection.close().await.during(ACTION)
    }
}

async fn copy_rows(connection: &mut PgConnection, path: &Path) -> StoreResult<()> {
    let mut from = connection.begin_with(SNAPSHOT).await.during(ACTION)?;
    let applied: Option<i64> = match sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(&mut *from)
        .await
        .during(ACTION)?
    {
        true => sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations WHERE success")
            .fetch_one(&mut *from)
            .await
            .during(ACTION)?,
        false => None,
    };
    let place = Place::Sqlite(path.to_owned());
    let opened = open_sqlite(path, Durability::ProcessCrash).await;
    let mut to = opened.map_err(|source| StoreError::Open { place, source })?;
    // The tables of the same version as there; whoever opens the copy brings it up to date.
    if let Some(version) = applied
        && !schema::migrate_sqlite_up_to(&mut to, version).await?
    {
        return Err(MigrateError::VersionMissing(version).into());
    }
    sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut to).await.during(ACTION)?;
    for table in tables(&mut to).await? {
        copy_table(&mut from, &mut to, &table).await?;
    }
    to.close().await.during(ACTION)?;
    from.rollback().await.during(ACTION)
}

async fn tables(to: &mut SqliteConnection) -> StoreResult<Vec<String>> {
    sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE '%sqlx%' ORDER BY name",
    )
    .fetch_all(to)
    .await
    .during(ACTION)
}

/// What a column holds, in the few types that the tables use.
enum Kind {
    Int,
    Text,
    Bytes,
}

async fn copy_table(
    from: &mut sqlx::Transaction<'_, Postgres>,
    to: &mut SqliteConnection,
    table: &str,
) -> StoreResult<()> {
    let described = sqlx::query("SELECT name, type FROM pragma_table_info($1) ORDER BY cid").bind(table);
    let described = described.fetch_all(&mut *to).await.during(ACTION)?;
    let kind = |row: &SqliteRow| match row.get::<String, _>(1).as_str() {
        "TEXT" => Kind::Text,
        "BLOB" => Kind::Bytes,
        _ => Kind::Int,
    };
    let kinds: Vec<Kind> = described.iter().map(kind).collect();
    let names: Vec<String> = described.iter().map(|row| format!("\"{}\"", row.get::<String, _>(0))).collect();
    let (names, places) = (names.join(", "), (1..=kinds.len()).map(|n| format!("${n}")).collect::<Vec<_>>().join(", "));
    let insert = format!("INSERT INTO \"{table}\" ({names}) VALUES ({places})");
    let cursor = format!("DECLARE copied NO SCROLL CURSOR FOR SELECT {names} FROM \"{table}\"");
    sqlx::query(AssertSqlSafe(cursor)).execute(&mut **from).await.during(ACTION)?;
    loop {
        let page = sqlx::query(AssertSqlSafe(format!("FETCH {PAGE} FROM copied")));
        let page = page.fetch_all(&mut **from).await.during(ACTION)?;
        if page.is_empty() {
            break;
        }
        let mut tx = to.begin().await.during(ACTION)?;
        for row in &page {
            let mut put = sqlx::query(AssertSqlSafe(insert.clone()));
            for (n, kind) in kinds.iter().enumerate() {
                put = match kind {
                    Kind::Int => put.bind(row.get::<Option<i64>, _>(n)),
                    Kind::Text => put.bind(row.get::<Option<String>, _>(n)),
                    Kind::Bytes => put.bind(row.get::<Option<Vec<u8>>, _>(n)),
                };
            }
            put.execute(&mut *tx).await.during(ACTION)?;
        }
        tx.commit().await.during(ACTION)?;
    }
    sqlx::query("CLOSE copied").execute(&mut **from).await.during(ACTION)?;
    Ok(())
}
