//! Commits that take several statements, as one call to the database.
//!
//! Each trip to the database costs more than most of the work that it asks for. A procedure takes
//! one JSON parameter and is atomic. On SQLite it is a trigger on a temporary view, and one `INSERT`
//! runs all of its statements; on PostgreSQL it is a temporary function. Both are made for each
//! connection, so that two versions of the program can work on one database side by side.

use sqlx::{AssertSqlSafe, PgConnection, SqliteConnection};

use super::db::{Conn, Lock, Reach, Session, query};
use super::{During, StoreResult};

/// A named list of statements. `NEW.parameter` is the JSON that it is called with.
///
/// A list in the parameter must name each row that it changes once: PostgreSQL refuses to change a
/// row twice in one statement.
pub(super) struct Procedure {
    name: &'static str,
    body: &'static str,
    sqlite_call: &'static str,
    postgres_call: &'static str,
    /// For the error of a failed call.
    action: &'static str,
}

/// The name stands in the texts because SQL names cannot be parameters.
macro_rules! procedure {
    ($name:literal, $action:literal, $body:literal) => {
        Procedure {
            name: $name,
            body: $body,
            sqlite_call: concat!("INSERT INTO temp.", $name, " (parameter) VALUES ($1)"),
            postgres_call: concat!("SELECT pg_temp.", $name, "($1)"),
            action: $action,
        }
    };
}

/// Versions into the journal, the newest of each triplet into the queue, connections to their next poll.
pub(super) const APPEND_CAPTURES: Procedure = procedure!(
    "append_captures",
    "append to the journal",
    "
INSERT INTO journal (at, triplet, version, epoch, writer, fingerprint, expires_at, payload, digest, hash)
SELECT CAST(value->>'at' AS BIGINT), value->>'triplet', CAST(value->>'version' AS BIGINT),
       CAST(value->>'epoch' AS BIGINT), value->>'writer', value->>'fp', CAST(value->>'exp' AS BIGINT),
       unhex(value->>'payload'), unhex(value->>'digest'), unhex(value->>'hash')
FROM json_each(NEW.parameter, '$.rows') ORDER BY key;

-- The secret of the version before is needed by nobody any more.
UPDATE journal SET payload = NULL FROM json_each(NEW.parameter, '$.heads') AS j
WHERE journal.triplet = j.value->>'triplet' AND journal.version = CAST(j.value->>'before' AS BIGINT);

UPDATE triplet SET version = CAST(j.value->>'version' AS BIGINT), fingerprint = j.value->>'fp',
  expires_at = CAST(j.value->>'exp' AS BIGINT)
FROM json_each(NEW.parameter, '$.heads') AS j WHERE triplet.key = j.value->>'triplet';

-- A delivery that somebody is at waits for its end: two writes to one key must not race.
INSERT INTO delivery (triplet, sink, version, captured_at, next_at)
SELECT j.value->>'triplet', s.value->>0, CAST(j.value->>'version' AS BIGINT), CAST(j.value->>'at' AS BIGINT),
       CAST(j.value->>'at' AS BIGINT)
FROM json_each(NEW.parameter, '$.mirrored') AS j, json_each(NEW.parameter, '$.sinks') AS s WHERE true
ON CONFLICT (triplet, sink) DO UPDATE SET
  version = excluded.version, captured_at = excluded.captured_at, attempts = 0, dead = NULL,
  next_at = CASE WHEN delivery.claimed_until > excluded.next_at THEN delivery.claimed_until ELSE excluded.next_at END;

UPDATE connection SET fingerprint = j.value->>'fp', expires_at = CAST(j.value->>'exp' AS BIGINT),
  poll_at = CAST(j.value->>'poll' AS BIGINT), rotation = rotation + CAST(j.value->>'new' AS BIGINT), failures = 0,
  failing_since = NULL, dead_at = NULL, missed = 0, miss_at = CAST(j.value->>'exp' AS BIGINT),
  life_ms = CASE WHEN CAST(j.value->>'new' AS BIGINT) = 1 AND rotation > 0
                   AND CAST(j.value->>'exp' AS BIGINT) - CAST(j.value->>'at' AS BIGINT) > COALESCE(life_ms, 0)
                 THEN CAST(j.value->>'exp' AS BIGINT) - CAST(j.value->>'at' AS BIGINT) ELSE life_ms END,
  refreshed_at = CASE WHEN CAST(j.value->>'new' AS BIGINT) = 1 THEN CAST(j.value->>'at' AS BIGINT) ELSE refreshed_at END,
  settled = CASE WHEN settled < CAST(j.value->>'claim' AS BIGINT) THEN CAST(j.value->>'claim' AS BIGINT) ELSE settled END
FROM json_each(NEW.parameter, '$.connections') AS j WHERE connection.id = CAST(j.value->>'id' AS BIGINT);

-- The grant lives after all, or there is a new one.
UPDATE reauth SET wanted = 0, next_at = COALESCE(claimed_until, 0) WHERE wanted = 1 AND triplet IN (
  SELECT t.key FROM json_each(NEW.parameter, '$.connections') AS j
  JOIN triplet t ON t.connection = CAST(j.value->>'id' AS BIGINT));

INSERT INTO counter (name, value)
SELECT value->>0, CAST(value->>1 AS BIGINT) FROM json_each(NEW.parameter, '$.counts') WHERE true
ON CONFLICT (name) DO UPDATE SET value = counter.value + excluded.value;
"
);

/// Acknowledged deliveries with their audit rows. A newer version that came meanwhile stays pending.
pub(super) const MARK_DELIVERED: Procedure = procedure!(
    "mark_delivered",
    "mark deliveries",
    "
UPDATE delivery SET delivered = CAST(j.value->>'version' AS BIGINT), delivered_at = CAST(j.value->>'now' AS BIGINT),
  delivered_exp = CAST(j.value->>'exp' AS BIGINT), delivered_fp = j.value->>'fp', attempts = 0, dead = NULL,
  claimed_until = NULL,
  next_at = CASE WHEN delivery.version > CAST(j.value->>'version' AS BIGINT)
                 THEN CAST(j.value->>'now' AS BIGINT) ELSE NULL END
FROM json_each(NEW.parameter, '$.rows') AS j
WHERE delivery.triplet = j.value->>'triplet' AND delivery.sink = j.value->>'sink'
  AND delivery.claim = CAST(j.value->>'claim' AS BIGINT);

-- Somebody else claimed it meanwhile: this write may have come after a newer one. The newest is
-- written again, under a claim that makes the outcome of all before it count for nothing. Unless
-- this is the newest, and the sink has it: whoever wrote last, it is right.
UPDATE delivery SET claim = delivery.claim + 1,
  next_at = CASE WHEN delivery.claimed_until > CAST(j.value->>'now' AS BIGINT)
                 THEN delivery.claimed_until ELSE CAST(j.value->>'now' AS BIGINT) END
FROM json_each(NEW.parameter, '$.rows') AS j
WHERE delivery.triplet = j.value->>'triplet' AND delivery.sink = j.value->>'sink'
  AND delivery.claim > CAST(j.value->>'claim' AS BIGINT)
  AND (delivery.delivered <> CAST(j.value->>'version' AS BIGINT) OR delivery.version <> CAST(j.value->>'version' AS BIGINT));

INSERT INTO audit_outbox (op_id, at, key, action, source, fingerprint)
SELECT j.value->>'op', CAST(j.value->>'now' AS BIGINT), j.value->>'key', 'put ' || (j.value->>'sink'),
       j.value->>'src', j.value->>'fp'
FROM json_each(NEW.parameter, '$.rows') AS j WHERE true ON CONFLICT (op_id) DO NOTHING;

INSERT INTO counter (name, value)
SELECT value->>0, CAST(value->>1 AS BIGINT) FROM json_each(NEW.parameter, '$.counts') WHERE true
ON CONFLICT (name) DO UPDATE SET value = counter.value + excluded.value;
"
);

/// Adds to some counters and raises others to what they have not reached.
pub(super) const ADD_AND_RAISE: Procedure = procedure!(
    "add_and_raise",
    "count",
    "
INSERT INTO counter (name, value)
SELECT value->>0, CAST(value->>1 AS BIGINT) FROM json_each(NEW.parameter, '$.add') WHERE true
ON CONFLICT (name) DO UPDATE SET value = counter.value + excluded.value;
INSERT INTO counter (name, value)
SELECT value->>0, CAST(value->>1 AS BIGINT) FROM json_each(NEW.parameter, '$.raise') WHERE true
ON CONFLICT (name) DO UPDATE SET
  value = CASE WHEN counter.value < excluded.value THEN excluded.value ELSE counter.value END;
"
);

/// Takes audit rows that D1 took out of the queue; those under `sent` are waited for there.
pub(super) const CLEAR_AUDIT: Procedure = procedure!(
    "clear_audit",
    "clear audit rows",
    "
INSERT INTO audit_sent (op_id, key, fingerprint, sent_at)
SELECT o.op_id, o.key, o.fingerprint, CAST(j.value->>1 AS BIGINT)
FROM json_each(NEW.parameter, '$.sent') AS j, audit_outbox AS o WHERE o.op_id = j.value->>0
ON CONFLICT (op_id) DO NOTHING;
DELETE FROM audit_outbox WHERE op_id IN (SELECT value->>0 FROM json_each(NEW.parameter, '$.ids'));
INSERT INTO counter (name, value)
SELECT value->>0, CAST(value->>1 AS BIGINT) FROM json_each(NEW.parameter, '$.add') WHERE true
ON CONFLICT (name) DO UPDATE SET value = counter.value + excluded.value;
"
);

const ALL: [&Procedure; 4] = [&APPEND_CAPTURES, &MARK_DELIVERED, &ADD_AND_RAISE, &CLEAR_AUDIT];

/// Makes the procedures of a new connection.
pub(super) async fn create_sqlite(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    for Procedure { name, body, .. } in ALL {
        let sql = format!(
            "CREATE TEMP VIEW {name} (parameter) AS SELECT NULL;
             CREATE TEMP TRIGGER {name}_called INSTEAD OF INSERT ON {name} BEGIN {body} END;"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Makes the procedures of a new connection.
pub(super) async fn create_postgres(connection: &mut PgConnection) -> sqlx::Result<()> {
    let functions = ALL.map(|Procedure { name, body, .. }| {
        let body = body.replace("NEW.parameter", "$1");
        format!("CREATE FUNCTION pg_temp.{name} (TEXT) RETURNS VOID LANGUAGE sql AS $body$ {body} $body$;")
    });
    sqlx::raw_sql(AssertSqlSafe(functions.concat())).execute(connection).await?;
    Ok(())
}

impl Procedure {
    pub async fn call(&self, session: &mut impl Session, parameter: &serde_json::Value) -> StoreResult<()> {
        let call = match session.reach() {
            Reach::Sqlite(_) => self.sqlite_call,
            Reach::Pool(_) | Reach::Postgres(_) => self.postgres_call,
        };
        query(call).bind(parameter.to_string()).execute(session).await.during(self.action)?;
        Ok(())
    }

    /// A call that is a transaction of its own. On SQLite it needs no lock: one statement is atomic.
    pub async fn call_alone(&self, conn: &mut Conn<'_>, lock: Lock, parameter: &serde_json::Value) -> StoreResult<()> {
        if let Conn::Sqlite(_) = conn {
            return self.call(conn, parameter).await;
        }
        let mut tx = conn.begin(lock).await.during("begin")?;
        self.call(&mut tx, parameter).await?;
        tx.commit().await.during("commit")
    }
}
