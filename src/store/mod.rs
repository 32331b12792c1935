//! What `cutover` remembers: the journal of token versions, where each delivery stands, the
//! custody of each triplet, and the evidence. Domain terms in and out; SQL stays here.
//!
//! SQLite for one machine, PostgreSQL for several that share the work. A commit is durable when the
//! method returns, unless [`Durability::ProcessCrash`] was asked for.

mod alert;
mod audit;
mod coalesce;
mod connection;
mod control;
mod copy;
mod db;
mod delivery;
mod event;
mod evidence;
mod foreign;
mod gate;
mod history;
mod intake;
mod journal;
mod lease;
mod place;
mod procedure;
mod pruned;
mod reauth;
mod retention;
mod rotation;
mod schema;
mod slot;
mod standing;
mod status;
mod triplet;
mod vault;
mod verification;
mod watermark;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Mutex;

use crate::domain::secret::hex;
use crate::domain::time::Timestamp;
use db::{Conn, Row, Session, query};

pub use alert::{AlertRow, NewsKind};
pub use audit::SentAudit;
pub use connection::{ConnectionRow, PollFailure};
pub use control::{ControlRow, Decision, Scope};
pub use delivery::{Delivered, PendingDelivery, Sink, SinkState};
pub use event::{EventRow, IntentState};
pub use evidence::{LAG_BOUNDS_S, lag_counter};
pub use gate::{GateRun, StateIdentity};
pub use history::Look;
pub use intake::{Hint, Intake, IntakeKind, Segment, Settled};
pub use journal::{Capture, NewVersion};
pub use lease::Lead;
pub use place::{Place, PlaceError};
pub use reauth::{ReauthMark, Siblings};
pub use retention::{Pruning, Retention};
pub use standing::Standing;
pub use status::{BacklogRow, NewsRow};
pub use triplet::{NewTriplet, TripletRow};
pub use vault::{KeyProblem, Vault, VaultError};
pub use verification::{JournalHead, Verification};
pub use watermark::{Checked, DueKeys};

/// Connections to PostgreSQL: the duties run one after the other and the intake has one writer, so
/// these are for short commands and for reads beside them.
const POSTGRES_CONNECTIONS_MAX: u32 = 8;

/// How long a statement waits for the database: for a lock of another process on SQLite, for a
/// connection on PostgreSQL.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Pages of SQLite's log (16 MB) after which they are copied into the file. What was accepted is erased
/// soon after; the longer this waits, the more of it is never copied.
const CHECKPOINT_PAGES: &str = "4000";

/// Prepared statements that a connection keeps.
const STATEMENTS_MAX: usize = 300;

/// What a commit survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Power loss: every commit is synced to disk. Production.
    PowerLoss,
    /// The death of the process, not of the machine. The rehearsal kills only the engine.
    ProcessCrash,
}

/// The store. Every method is atomic, also among processes that have the same state open.
pub struct Store {
    backend: Arc<Backend>,
    vault: Arc<Vault>,
    intake: intake::Queue,
    /// Names this opening of the state among others.
    holder: String,
    /// The connection whose life is the lock of [`Store::lock_operations`].
    operations: Mutex<Option<PgConnection>>,
}

/// The database behind the store.
enum Backend {
    Sqlite {
        writer: Mutex<SqliteConnection>,
        /// For reads that take long: the writer goes on meanwhile.
        reader: Mutex<SqliteConnection>,
    },
    Postgres(PgPool),
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
    /// Something was accepted and is not worked in yet.
    pub intake: bool,
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
    #[error("failed to open the state database `{place}`")]
    Open { place: Place, source: sqlx::Error },
    #[error("failed to bring the state database up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("failed to {action} in the state database")]
    Query { action: &'static str, source: sqlx::Error },
    #[error("the state database holds a {what} that cannot be read: {detail}")]
    Corrupt { what: &'static str, detail: String },
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("the database `{place}` does not keep what it commits: `{setting}` is off")]
    Volatile { place: Place, setting: String },
    #[error("the state `{0}` was made with other keys than these")]
    OtherKeys(Place),
    /// Whoever sent it must not be told that it is safe.
    #[error("what was sent could not be put on disk")]
    NotAccepted(#[source] std::sync::Arc<StoreError>),
    #[error("the writer of the intake log has ended")]
    IntakeEnded,
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

impl Backend {
    /// For writing, and for reading what is at hand.
    async fn lock(&self) -> Conn<'_> {
        match self {
            Self::Sqlite { writer, .. } => Conn::Sqlite(writer.lock().await),
            Self::Postgres(pool) => Conn::Postgres(pool),
        }
    }

    /// For reads that take long.
    async fn read(&self) -> Conn<'_> {
        match self {
            Self::Sqlite { reader, .. } => Conn::Sqlite(reader.lock().await),
            Self::Postgres(pool) => Conn::Postgres(pool),
        }
    }
}

impl Store {
    /// Opens a state file, makes it if it is not there, and applies migrations.
    ///
    /// # Errors
    /// When the file cannot be opened or is not ours.
    pub async fn open(path: &Path, durability: Durability, vault: Vault) -> StoreResult<Self> {
        Self::open_at(&Place::Sqlite(path.to_owned()), durability, vault).await
    }

    /// Opens the state wherever it is, makes what is missing, and applies migrations.
    ///
    /// # Errors
    /// When the database cannot be reached, or is not ours.
    pub async fn open_at(place: &Place, durability: Durability, vault: Vault) -> StoreResult<Self> {
        let open = |source| StoreError::Open { place: place.clone(), source };
        let backend = match place {
            Place::Sqlite(path) => {
                let mut writer = open_sqlite(path, durability).await.map_err(open)?;
                schema::migrate_sqlite(&mut writer).await?;
                procedure::create_sqlite(&mut writer).await.map_err(open)?;
                let reader = open_sqlite(path, durability).await.map_err(open)?;
                Backend::Sqlite { writer: Mutex::new(writer), reader: Mutex::new(reader) }
            }
            Place::Postgres(url) => {
                let options = place::postgres_options(url).map_err(open)?.disable_statement_logging();
                let mut connection = PgConnection::connect_with(&options).await.map_err(open)?;
                if durability == Durability::PowerLoss {
                    refuse_volatile(&mut connection, place).await?;
                }
                schema::migrate_postgres(&mut connection).await?;
                Backend::Postgres(open_postgres(options, durability).await.map_err(open)?)
            }
        };
        let store = Self {
            backend: Arc::new(backend),
            vault: Arc::new(vault),
            intake: intake::Queue::default(),
            holder: lease::new_holder()?,
            operations: Mutex::default(),
        };
        store.check_keys(place).await?;
        Ok(store)
    }

    /// What was fingerprinted with other keys would look foreign, and every token new.
    async fn check_keys(&self, place: &Place) -> StoreResult<()> {
        let ours = hex(&self.vault.digest("keys", b""));
        if !self.create_meta("keys", &ours).await? && self.load_meta("keys").await?.as_ref() != Some(&ours) {
            return Err(StoreError::OtherKeys(place.clone()));
        }
        Ok(())
    }

    /// The keys under which this store fingerprints and encrypts.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Whether other machines may work on the same state.
    pub fn is_shared(&self) -> bool {
        matches!(*self.backend, Backend::Postgres(_))
    }

    async fn lock(&self) -> Conn<'_> {
        self.backend.lock().await
    }

    async fn read(&self) -> Conn<'_> {
        self.backend.read().await
    }

    /// Closes the database cleanly: what was accepted is committed, leases are given back.
    pub async fn close(self) -> StoreResult<()> {
        self.release_leases().await?;
        self.intake.close().await;
        match Arc::into_inner(self.backend) {
            Some(Backend::Sqlite { writer, reader }) => {
                reader.into_inner().close().await.during("close")?;
                writer.into_inner().close().await.during("close")
            }
            Some(Backend::Postgres(pool)) => {
                pool.close().await;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Everything that has a time, in one look.
    pub async fn load_due(&self) -> StoreResult<Due> {
        let row = query(
            "SELECT (SELECT MIN(poll_at) FROM connection),
                    (SELECT MIN(next_at) FROM (SELECT MIN(next_at) AS next_at FROM delivery
                       UNION ALL SELECT MIN(next_at) FROM reauth) AS due),
                    (SELECT MIN(delivered_exp) FROM delivery WHERE sink = 'kv.source'),
                    (SELECT MIN(miss_at) FROM connection WHERE poll_at IS NOT NULL),
                    (SELECT MIN(seq) FROM intake WHERE payload IS NOT NULL)",
        )
        .fetch_one(&mut self.lock().await)
        .await
        .during("look for what is due")?;
        let at = |i: usize| row.get::<Option<i64>>(i).map(Timestamp::from_millis);
        let intake = row.get::<Option<i64>>(4).is_some();
        Ok(Due { poll_at: at(0), delivery_at: at(1), served_until: at(2), rotation_by: at(3), intake })
    }

    /// A single remembered value.
    pub async fn load_meta(&self, key: &str) -> StoreResult<Option<String>> {
        let row = query("SELECT value FROM meta WHERE key = $1")
            .bind(key)
            .fetch_optional(&mut self.lock().await)
            .await
            .during("load a value")?;
        Ok(row.map(|r| r.get(0)))
    }

    pub async fn save_meta(&self, key: &str, value: &str) -> StoreResult<()> {
        save_meta(&mut self.lock().await, key, value).await
    }

    /// Remembered values whose key starts with `prefix`, by the rest of their key.
    pub async fn load_metas(&self, prefix: &str) -> StoreResult<std::collections::BTreeMap<String, String>> {
        let rows = query("SELECT substr(key, length($1) + 1), value FROM meta WHERE substr(key, 1, length($1)) = $1")
            .bind(prefix)
            .fetch_all(&mut self.lock().await)
            .await
            .during("load values")?;
        Ok(rows.into_iter().map(|r| (r.get(0), r.get(1))).collect())
    }

    /// Saves a value unless there is one. Returns whether it did: of several callers one does.
    pub async fn create_meta(&self, key: &str, value: &str) -> StoreResult<bool> {
        let created = query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING")
            .bind(key)
            .bind(value)
            .execute(&mut self.lock().await)
            .await
            .during("save a value")?;
        Ok(created == 1)
    }

    /// Deletes a value. Returns it to the one caller that did.
    pub async fn take_meta(&self, key: &str) -> StoreResult<Option<String>> {
        let row = query("DELETE FROM meta WHERE key = $1 RETURNING value")
            .bind(key)
            .fetch_optional(&mut self.lock().await)
            .await
            .during("take a value")?;
        Ok(row.map(|r| r.get(0)))
    }

    pub async fn delete_meta(&self, key: &str) -> StoreResult<()> {
        query("DELETE FROM meta WHERE key = $1")
            .bind(key)
            .execute(&mut self.lock().await)
            .await
            .during("delete a value")?;
        Ok(())
    }
}

async fn save_meta(session: &mut impl Session, key: &str, value: &str) -> StoreResult<()> {
    query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
        .bind(key)
        .bind(value)
        .execute(session)
        .await
        .during("save a value")?;
    Ok(())
}

async fn open_sqlite(path: &Path, durability: Durability) -> sqlx::Result<SqliteConnection> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(match durability {
            Durability::PowerLoss => SqliteSynchronous::Full,
            Durability::ProcessCrash => SqliteSynchronous::Off,
        })
        .foreign_keys(true)
        .busy_timeout(WAIT_MAX)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .statement_cache_capacity(STATEMENTS_MAX)
        .disable_statement_logging();
    SqliteConnection::connect_with(&options).await
}

/// What the server says is committed must be on its disk.
async fn refuse_volatile(connection: &mut PgConnection, place: &Place) -> StoreResult<()> {
    let off: Option<String> = sqlx::query_scalar(
        "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name LIMIT 1",
    )
    .fetch_optional(connection)
    .await
    .during("read the settings")?;
    match off {
        Some(setting) => Err(StoreError::Volatile { place: place.clone(), setting }),
        None => Ok(()),
    }
}

async fn open_postgres(options: PgConnectOptions, durability: Durability) -> sqlx::Result<PgPool> {
    let commit = match durability {
        Durability::PowerLoss => "on",
        Durability::ProcessCrash => "off",
    };
    let options = options
        .options([("synchronous_commit", commit)])
        .application_name("cutover")
        .statement_cache_capacity(STATEMENTS_MAX);
    PgPoolOptions::new()
        .max_connections(POSTGRES_CONNECTIONS_MAX)
        .acquire_timeout(WAIT_MAX)
        // A connection that broke shows it at its next statement, which fails and is tried again by
        // whoever asked. Testing each before it is used would double the trips.
        .test_before_acquire(false)
        .after_connect(|connection, _| Box::pin(procedure::create_postgres(connection)))
        .connect_with(options)
        .await
}

/// Reads a JSON column.
fn from_json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> StoreResult<T> {
    serde_json::from_str(text).map_err(|e| StoreError::Corrupt { what, detail: e.to_string() })
}

/// Writes a JSON column.
fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our own types serialise")
}
