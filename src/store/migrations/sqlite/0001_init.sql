-- Times are milliseconds since the Unix epoch. Fingerprints are 24 hex digits.

-- Single values: plan id, phase, when each periodic duty last ran.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- Plans that were applied, each once.
CREATE TABLE plan (
    id         TEXT PRIMARY KEY,
    applied_at INTEGER NOT NULL,
    json       TEXT NOT NULL
) WITHOUT ROWID;

-- One row per Nango connection that moves.
CREATE TABLE connection (
    id              INTEGER PRIMARY KEY,
    integration_key TEXT NOT NULL,
    connection_id   TEXT NOT NULL,
    poll_at         INTEGER,            -- NULL: not polled (not applied yet, dead, or given up)
    fingerprint     TEXT,               -- of the newest token that Nango handed out
    expires_at      INTEGER,
    rotation        INTEGER NOT NULL DEFAULT 0, -- captures so far
    failures        INTEGER NOT NULL DEFAULT 0, -- failed reads in a row
    failing_since   INTEGER,
    dead_at         INTEGER,            -- the grant was judged gone
    missed          INTEGER NOT NULL DEFAULT 0, -- the current expiry passed without a capture, and it was noted
    config          TEXT NOT NULL DEFAULT '{}', -- connection values for whoami URLs, no secrets
    UNIQUE (integration_key, connection_id)
);
CREATE INDEX connection_due ON connection (poll_at);
CREATE INDEX connection_end ON connection (missed, expires_at);

-- One row per triplet. `custody` is a cache of what replaying its events gives.
CREATE TABLE triplet (
    key              TEXT PRIMARY KEY,
    connection       INTEGER NOT NULL REFERENCES connection (id),
    integration_key  TEXT NOT NULL,
    wave             INTEGER,
    toolkit          TEXT,
    scopes           TEXT NOT NULL,     -- JSON list that the consent must grant
    custody          TEXT NOT NULL,     -- JSON
    stage            TEXT NOT NULL,
    version          INTEGER NOT NULL DEFAULT 0, -- head of the version chain
    fingerprint      TEXT,
    expires_at       INTEGER,
    mirror_account   TEXT,              -- ca_… of the bearer mirror
    old_identity     TEXT,              -- JSON: keyed digests of the source grant's upstream account
    identity         TEXT,              -- last comparison: equal, different
    granted          TEXT,              -- last comparison of scopes: enough, or what is missing
    consent_attempts INTEGER NOT NULL DEFAULT 0,
    consent_account  TEXT,              -- ca_… of the open link
    consent_until    INTEGER            -- end of the open link
) WITHOUT ROWID;
CREATE INDEX triplet_stage ON triplet (stage);
CREATE INDEX triplet_connection ON triplet (connection);

-- Observed token versions: append-only, hash-chained. The payload of a superseded version is
-- erased; the chain covers the payload's digest, so it stays verifiable.
CREATE TABLE journal (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER NOT NULL,
    triplet     TEXT NOT NULL,
    version     INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    writer      TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    expires_at  INTEGER,
    payload     BLOB,                   -- encrypted KV entry
    digest      BLOB NOT NULL,          -- SHA-256 of the payload
    hash        BLOB NOT NULL,          -- SHA-256 over the previous hash and this row
    UNIQUE (triplet, version)
);

-- The way of the newest version of each triplet to each sink. Older pending versions are
-- superseded in place: replaying an old token would be damage.
CREATE TABLE delivery (
    triplet       TEXT NOT NULL,
    sink          TEXT NOT NULL,
    version       INTEGER NOT NULL,     -- newest version
    delivered     INTEGER NOT NULL DEFAULT 0, -- newest version that the sink has
    delivered_at  INTEGER,
    delivered_exp INTEGER,
    delivered_fp  TEXT,
    captured_at   INTEGER NOT NULL,
    attempts      INTEGER NOT NULL DEFAULT 0,
    next_at       INTEGER,              -- NULL: nothing pending
    dead          TEXT,                 -- dead letter: why
    PRIMARY KEY (triplet, sink)
) WITHOUT ROWID;
CREATE INDEX delivery_due ON delivery (next_at);
CREATE INDEX delivery_end ON delivery (sink, delivered_exp);

-- Audit rows on their way to D1.
CREATE TABLE audit_outbox (
    op_id       TEXT PRIMARY KEY,
    at          INTEGER NOT NULL,
    key         TEXT NOT NULL,
    action      TEXT NOT NULL,
    source      TEXT NOT NULL,
    fingerprint TEXT
) WITHOUT ROWID;

-- Evidence: counts, and the few things that must be named.
CREATE TABLE counter (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE note (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL
);
CREATE INDEX note_kind ON note (kind, at);

-- Custody events and operator actions: hash-chained.
CREATE TABLE event (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    subject TEXT NOT NULL,
    json    TEXT NOT NULL,
    hash    BLOB NOT NULL
);
CREATE INDEX event_subject ON event (subject, seq);

-- Effects on the outside world, written down before they are attempted.
CREATE TABLE intent (
    id     TEXT PRIMARY KEY,
    at     INTEGER NOT NULL,
    action TEXT NOT NULL,
    state  TEXT NOT NULL,               -- started, done, ambiguous
    result TEXT
) WITHOUT ROWID;
