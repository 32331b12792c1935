//! Commits that take several statements, as one call to the database.
//!
//! Each trip to the database thread costs more than the work that it asks for, and each
//! statement's answer is a trip of its own. A procedure is a trigger on a temporary view: one
//! `INSERT` with a JSON parameter runs all of its statements, and is atomic because any statement is.

use sqlx::SqliteConnection;

use super::{During, StoreResult};

/// A named list of statements. `NEW.parameter` is the JSON that it is called with.
pub(super) struct Procedure {
    create: &'static str,
    call: &'static str,
    /// For the error of a failed call.
    action: &'static str,
}

/// The name stands in the two texts because SQL names cannot be parameters.
macro_rules! procedure {
    ($name:literal, $action:literal, $body:literal) => {
        Procedure {
            create: concat!(
                "CREATE TEMP VIEW ",
                $name,
                " (parameter) AS SELECT NULL; CREATE TEMP TRIGGER ",
                $name,
                "_called INSTEAD OF INSERT ON ",
                $name,
                " BEGIN ",
                $body,
                " END;"
            ),
            call: concat!("INSERT INTO temp.", $name, " (parameter) VALUES (?)"),
            action: $action,
        }
    };
}

/// Versions into the journal, their deliveries into the queue, connections to their next poll.
pub(super) const APPEND_CAPTURES: Procedure = procedure!(
    "append_captures",
    "append to the journal",
    "
INSERT INTO journal (at, triplet, version, epoch, writer, fingerprint, expires_at, payload, digest, hash)
SELECT value->>'at', value->>'triplet', value->>'version', value->>'epoch', value->>'writer',
       value->>'fp', value->>'exp', unhex(value->>'payload'), unhex(value->>'digest'), unhex(value->>'hash')
FROM json_each(NEW.parameter, '$.rows') ORDER BY key;

-- The secret of the version before is needed by nobody any more.
UPDATE journal SET payload = NULL FROM json_each(NEW.parameter, '$.rows') AS j
WHERE journal.triplet = j.value->>'triplet' AND journal.version = (j.value->>'version') - 1;

UPDATE triplet SET version = j.value->>'version', fingerprint = j.value->>'fp', expires_at = j.value->>'exp'
FROM json_each(NEW.parameter, '$.rows') AS j WHERE triplet.key = j.value->>'triplet';

INSERT INTO delivery (triplet, sink, version, captured_at, next_at)
SELECT j.value->>'triplet', s.value, j.value->>'version', j.value->>'at', j.value->>'at'
FROM json_each(NEW.parameter, '$.rows') AS j, json_each(NEW.parameter, '$.sinks') AS s WHERE true
ON CONFLICT (triplet, sink) DO UPDATE SET
  version = excluded.version, captured_at = excluded.captured_at, next_at = excluded.next_at, attempts = 0, dead = NULL;

UPDATE connection SET fingerprint = j.value->>'fp', expires_at = j.value->>'exp', poll_at = j.value->>'poll',
  rotation = rotation + (j.value->>'new'), failures = 0, failing_since = NULL, dead_at = NULL, missed = 0
FROM json_each(NEW.parameter, '$.connections') AS j WHERE connection.id = j.value->>'id';

INSERT INTO counter (name, value) SELECT value->>0, value->>1 FROM json_each(NEW.parameter, '$.counts') WHERE true
ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;
"
);

/// Acknowledged deliveries with their audit rows. A newer version that came meanwhile stays pending.
pub(super) const MARK_DELIVERED: Procedure = procedure!(
    "mark_delivered",
    "mark deliveries",
    "
UPDATE delivery SET delivered = j.value->>'version', delivered_at = NEW.parameter->>'now', delivered_exp = j.value->>'exp',
  delivered_fp = j.value->>'fp', attempts = 0, dead = NULL,
  next_at = CASE WHEN delivery.version > (j.value->>'version') THEN NEW.parameter->>'now' ELSE NULL END
FROM json_each(NEW.parameter, '$.rows') AS j
WHERE delivery.triplet = j.value->>'triplet' AND delivery.sink = j.value->>'sink'
  AND delivery.delivered < (j.value->>'version');

INSERT INTO audit_outbox (op_id, at, key, action, source, fingerprint)
SELECT j.value->>'op', NEW.parameter->>'now', j.value->>'key', 'put ' || (j.value->>'sink'), j.value->>'src', j.value->>'fp'
FROM json_each(NEW.parameter, '$.rows') AS j WHERE true ON CONFLICT (op_id) DO NOTHING;

INSERT INTO counter (name, value) SELECT value->>0, value->>1 FROM json_each(NEW.parameter, '$.counts') WHERE true
ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;
"
);

/// Adds to some counters and raises others to what they have not reached.
pub(super) const ADD_AND_RAISE: Procedure = procedure!(
    "add_and_raise",
    "count",
    "
INSERT INTO counter (name, value) SELECT value->>0, value->>1 FROM json_each(NEW.parameter, '$.add') WHERE true
ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;
INSERT INTO counter (name, value) SELECT value->>0, value->>1 FROM json_each(NEW.parameter, '$.raise') WHERE true
ON CONFLICT (name) DO UPDATE SET value = MAX(value, excluded.value);
"
);

/// Forgets audit rows that D1 has.
pub(super) const CLEAR_AUDIT: Procedure = procedure!(
    "clear_audit",
    "clear audit rows",
    "
DELETE FROM audit_outbox WHERE op_id IN (SELECT value FROM json_each(NEW.parameter, '$.ids'));
INSERT INTO counter (name, value) SELECT value->>0, value->>1 FROM json_each(NEW.parameter, '$.add') WHERE true
ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;
"
);

const ALL: [&Procedure; 4] = [&APPEND_CAPTURES, &MARK_DELIVERED, &ADD_AND_RAISE, &CLEAR_AUDIT];

/// Makes the procedures of a new connection.
pub(super) async fn create_all(connection: &mut SqliteConnection) -> StoreResult<()> {
    for procedure in ALL {
        sqlx::raw_sql(procedure.create).execute(&mut *connection).await.during("prepare")?;
    }
    Ok(())
}

impl Procedure {
    pub async fn call(&self, connection: &mut SqliteConnection, parameter: &serde_json::Value) -> StoreResult<()> {
        sqlx::query(self.call).bind(parameter.to_string()).execute(connection).await.during(self.action)?;
        Ok(())
    }
}
