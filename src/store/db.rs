//! One way of talking to both databases: statements, rows and transactions in the few types that
//! the state uses (integers, text, bytes).
//!
//! Statements are written once, in the SQL that SQLite and PostgreSQL share: `$1` placeholders,
//! `ON CONFLICT`, `RETURNING`, lists as JSON parameters read with `json_each`. PostgreSQL gets
//! that function, and `unhex`, from [`super::schema`].

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Decode, PgConnection, PgPool, Postgres, Row as _, Sqlite, SqliteConnection, Transaction, Type};
use tokio::sync::MutexGuard;

/// A parameter. `None` is SQL's `NULL`.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

/// Makes parameters of plain values and of options of them.
macro_rules! values {
    ($($from:ty => $variant:ident($($convert:tt)*);)*) => {
        $(impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Self::$variant(Some(($($convert)*)(value)))
            }
        }
        impl From<Option<$from>> for Value {
            fn from(value: Option<$from>) -> Self {
                Self::$variant(value.map($($convert)*))
            }
        })*
    };
}

values! {
    i64 => Int(|n| n);
    i32 => Int(i64::from);
    u32 => Int(i64::from);
    bool => Int(i64::from);
    &str => Text(str::to_owned);
    &String => Text(|s: &String| s.clone());
    String => Text(|s| s);
    &[u8] => Bytes(<[u8]>::to_vec);
    Vec<u8> => Bytes(|b| b);
}

/// A statement with its parameters.
#[must_use]
pub(super) struct Query {
    sql: &'static str,
    values: Vec<Value>,
}

/// A statement; parameters follow with [`Query::bind`] in the order of their numbers.
pub(super) fn query(sql: &'static str) -> Query {
    Query { sql, values: Vec::new() }
}

/// A row of an answer.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What a column can be read as.
pub(super) trait Column:
    for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl<T> Column for T where T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres> {}

impl Row {
    /// # Panics
    /// When the statement selects no such column or one of another type: a mistake in the statement.
    pub fn get<T: Column>(&self, column: usize) -> T {
        match self {
            Self::Sqlite(row) => row.get(column),
            Self::Postgres(row) => row.get(column),
        }
    }
}

/// A place that statements can be sent to.
pub(super) trait Session: Send {
    fn reach(&mut self) -> Reach<'_>;
}

/// How a statement gets to its database.
pub(super) enum Reach<'s> {
    Sqlite(&'s mut SqliteConnection),
    Pool(&'s PgPool),
    Postgres(&'s mut PgConnection),
}

/// Sends the same prepared statement to whichever database is there.
macro_rules! send {
    ($query:expr, $session:expr, $method:ident, $row:expr, $pg:expr) => {{
        let Query { sql, values } = $query;
        match $session.reach() {
            Reach::Sqlite(connection) => {
                let query = values.into_iter().fold(sqlx::query::<Sqlite>(sql), |query, value| match value {
                    Value::Int(n) => query.bind(n),
                    Value::Text(text) => query.bind(text),
                    Value::Bytes(bytes) => query.bind(bytes),
                });
                query.$method(connection).await.map($row)
            }
            reach => {
                let query = values.into_iter().fold(sqlx::query::<Postgres>(sql), |query, value| match value {
                    Value::Int(n) => query.bind(n),
                    Value::Text(text) => query.bind(text),
                    Value::Bytes(bytes) => query.bind(bytes),
                });
                match reach {
                    Reach::Pool(pool) => query.$method(pool).await.map($pg),
                    Reach::Postgres(connection) => query.$method(connection).await.map($pg),
                    Reach::Sqlite(_) => unreachable!("the arm before took it"),
                }
            }
        }
    }};
}

impl Query {
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs the statement. Returns how many rows it changed.
    pub async fn execute(self, session: &mut impl Session) -> sqlx::Result<u64> {
        send!(self, session, execute, |done| done.rows_affected(), |done| done.rows_affected())
    }

    pub async fn fetch_all(self, session: &mut impl Session) -> sqlx::Result<Vec<Row>> {
        send!(self, session, fetch_all, |rows| rows.into_iter().map(Row::Sqlite).collect(), |rows| rows
            .into_iter()
            .map(Row::Postgres)
            .collect())
    }

    pub async fn fetch_optional(self, session: &mut impl Session) -> sqlx::Result<Option<Row>> {
        send!(self, session, fetch_optional, |row| row.map(Row::Sqlite), |row| row.map(Row::Postgres))
    }

    pub async fn fetch_one(self, session: &mut impl Session) -> sqlx::Result<Row> {
        send!(self, session, fetch_one, Row::Sqlite, Row::Postgres)
    }
}

/// What is locked across all processes while a transaction is open. On SQLite every writing
/// transaction locks the whole database; on PostgreSQL each of these is an advisory lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// Only the rows that are touched.
    Rows,
    /// The journal with its chain, and the deliveries.
    Journal,
    /// The audit trail and the gate runs with their chains.
    Events,
    /// Looks and samples.
    History,
}

/// `cutover` in ASCII, then room for a number.
const CUTOVER: i64 = 0x63_75_74_6f_76_65_72_00;

impl Lock {
    /// Held by the one process that carries out operations, for as long as it lives.
    pub const OPERATIONS: i64 = CUTOVER + 4;

    /// Key of the advisory lock.
    const fn key(self) -> Option<i64> {
        match self {
            Self::Rows => None,
            Self::Journal => Some(CUTOVER + 1),
            Self::Events => Some(CUTOVER + 2),
            Self::History => Some(CUTOVER + 3),
        }
    }
}

/// A connection for single statements, each a commit of its own, or for a transaction.
pub(super) enum Conn<'a> {
    /// Held until it is dropped: nothing else of this process writes meanwhile.
    Sqlite(MutexGuard<'a, SqliteConnection>),
    /// A connection is taken for each statement.
    Postgres(&'a PgPool),
}

impl Conn<'_> {
    /// Begins a transaction that is rolled back unless it is committed. What it reads after this
    /// cannot change under it, as far as `lock` reaches.
    pub async fn begin(&mut self, lock: Lock) -> sqlx::Result<Tx<'_>> {
        match self {
            Self::Sqlite(connection) => Ok(Tx::Sqlite(connection.begin_with("BEGIN IMMEDIATE").await?)),
            Self::Postgres(pool) => {
                let mut tx = pool.begin().await?;
                if let Some(key) = lock.key() {
                    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(key).execute(&mut *tx).await?;
                }
                Ok(Tx::Postgres(tx))
            }
        }
    }
}

impl Session for Conn<'_> {
    fn reach(&mut self) -> Reach<'_> {
        match self {
            Self::Sqlite(connection) => Reach::Sqlite(connection),
            Self::Postgres(pool) => Reach::Pool(pool),
        }
    }
}

/// An open transaction.
pub(super) enum Tx<'c> {
    Sqlite(Transaction<'c, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Tx<'_> {
    pub async fn commit(self) -> sqlx::Result<()> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => tx.commit().await,
        }
    }
}

impl Session for Tx<'_> {
    fn reach(&mut self) -> Reach<'_> {
        match self {
            Self::Sqlite(tx) => Reach::Sqlite(tx),
            Self::Postgres(tx) => Reach::Postgres(tx),
        }
    }
}
