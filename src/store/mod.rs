//! What `cutover` remembers: the journal of token versions, where each delivery stands, the
//! custody of each triplet, and the evidence. Domain terms in and out; SQL stays here.
//!
//! SQLite for one machine. A commit is durable when the method returns (`synchronous=FULL`
//! unless [`Durability::ProcessCrash`] was asked for).

mod connection;
mod control;
mod copy;
mod delivery;
mod event;
mod evidence;
mod journal;
mod procedure;
mod triplet;
mod vault;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::sync::{Mutex, MutexGuard};

use crate::domain::time::Timestamp;

pub use connection::{ConnectionRow, PollFailure};
pub use control::{ControlRow, Decision, Scope};
pub use delivery::{Delivered, PendingDelivery, Sink, SinkState};
pub use event::{EventRow, IntentState};
pub use evidence::LAG_BOUNDS_S;
pub use journal::{Capture, NewVersion};
pub use triplet::{NewTriplet, TripletRow};
pub use vault::{Vault, VaultError};

/// What a commit survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Power loss: every commit is synced to disk. Production.
    PowerLoss,
    /// The death of the process, not of the machine. The rehearsal kills only the engine.
    ProcessCrash,
}

/// The store: one SQLite database, one writer.
pub struct Store {
    connection: Mutex<SqliteConnection>,
    vault: Vault,
}

/// When things are due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The next read of a connection.
    pub poll_at: Option<Timestamp>,
    /// The next delivery to any sink.
    pub delivery_at: Option<Timestamp>,
    /// The first end of a token that KV serves.
    pub served_until: Option<Timestamp>,
    /// The first end of a connection's token: a rotation must arrive before.
    pub rotation_by: Option<Timestamp>,
}

impl Due {
    /// Whether `at` has come.
    pub fn is(at: Option<Timestamp>, now: Timestamp) -> bool {
        at.is_some_and(|at| at <= now)
    }
}

/// The database could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to open the state database `{}`", path.display())]
    Open { path: PathBuf, source: sqlx::Error },
    #[error("failed to bring the state database up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("failed to {action} in the state database")]
    Query { action: &'static str, source: sqlx::Error },
    #[error("the state database holds a {what} that cannot be read: {detail}")]
    Corrupt { what: &'static str, detail: String },
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("triplet `{0}` is not in the applied plan")]
    UnknownTriplet(String),
    #[error("triplet `{triplet}` cannot move: {refusal}")]
    Refused { triplet: String, refusal: crate::domain::custody::Refusal },
    #[error("plan `{applied}` is already applied here, and `{given}` is another one")]
    OtherPlan { applied: String, given: String },
}

pub type StoreResult<T> = Result<T, StoreError>;

/// Names the action of a failed statement.
trait During<T> {
    fn during(self, action: &'static str) -> StoreResult<T>;
}

impl<T> During<T> for Result<T, sqlx::Error> {
    fn during(self, action: &'static str) -> StoreResult<T> {
        self.map_err(|source| StoreError::Query { action, source })
    }
}

impl Store {
    /// Opens the database, makes it if it is not there, and applies migrations.
    ///
    /// # Errors
    /// When the file cannot be opened or is not ours.
    pub async fn open(path: &Path, durability: Durability, vault: Vault) -> StoreResult<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(match durability {
                Durability::PowerLoss => SqliteSynchronous::Full,
                Durability::ProcessCrash => SqliteSynchronous::Off,
            })
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10))
            .disable_statement_logging();
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(open)?;
        sqlx::migrate!("src/store/migrations/sqlite").run(&mut connection).await?;
        procedure::create_all(&mut connection).await?;
        Ok(Self { connection: Mutex::new(connection), vault })
    }

    /// The keys under which this store fingerprints and encrypts.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    async fn lock(&self) -> MutexGuard<'_, SqliteConnection> {
        self.connection.lock().await
    }

    /// Closes the database cleanly.
    pub async fn close(self) -> StoreResult<()> {
        self.connection.into_inner().close().await.during("close")
    }

    /// Everything that has a time, in one look.
    pub async fn load_due(&self) -> StoreResult<Due> {
        let row = sqlx::query(
            "SELECT (SELECT MIN(poll_at) FROM connection),
                    (SELECT MIN(next_at) FROM delivery),
                    (SELECT MIN(delivered_exp) FROM delivery WHERE sink = 'kv.source'),
                    (SELECT MIN(expires_at) FROM connection WHERE missed = 0 AND poll_at IS NOT NULL)",
        )
        .fetch_one(&mut *self.lock().await)
        .await
        .during("look for what is due")?;
        let at = |i: usize| row.get::<Option<i64>, _>(i).map(Timestamp::from_millis);
        Ok(Due { poll_at: at(0), delivery_at: at(1), served_until: at(2), rotation_by: at(3) })
    }

    /// A single remembered value.
    pub async fn load_meta(&self, key: &str) -> StoreResult<Option<String>> {
        let row = sqlx::query("SELECT value FROM meta WHERE key = ?")
            .bind(key)
            .fetch_optional(&mut *self.lock().await)
            .await
            .during("load a value")?;
        Ok(row.map(|r| r.get(0)))
    }

    pub async fn save_meta(&self, key: &str, value: &str) -> StoreResult<()> {
        sqlx::query(
            "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )
        .bind(key)
        .bind(value)
        .execute(&mut *self.lock().await)
        .await
        .during("save a value")?;
        Ok(())
    }

    /// Remembered values whose key starts with `prefix`, by the rest of their key.
    pub async fn load_metas(&self, prefix: &str) -> StoreResult<std::collections::BTreeMap<String, String>> {
        let rows =
            sqlx::query("SELECT substr(key, length(?1) + 1), value FROM meta WHERE substr(key, 1, length(?1)) = ?1")
                .bind(prefix)
                .fetch_all(&mut *self.lock().await)
                .await
                .during("load values")?;
        Ok(rows.into_iter().map(|r| (r.get(0), r.get(1))).collect())
    }

    pub async fn delete_meta(&self, key: &str) -> StoreResult<()> {
        sqlx::query("DELETE FROM meta WHERE key = ?")
            .bind(key)
            .execute(&mut *self.lock().await)
            .await
            .during("delete a value")?;
        Ok(())
    }
}

/// Reads a JSON column.
fn from_json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> StoreResult<T> {
    serde_json::from_str(text).map_err(|e| StoreError::Corrupt { what, detail: e.to_string() })
}

/// Writes a JSON column.
fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our own types serialise")
}
