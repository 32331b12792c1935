-- Waivers, and what the gate said. Times are milliseconds since the Unix epoch.

CREATE TABLE waiver (
    id         TEXT PRIMARY KEY,
    criterion  TEXT NOT NULL,
    scope      TEXT NOT NULL,           -- '*', or the subjects that it covers
    given_by   TEXT NOT NULL,
    reason     TEXT NOT NULL,
    given_at   BIGINT NOT NULL,
    ends_at    BIGINT NOT NULL,
    revoked_at BIGINT,
    revoked_by TEXT
);

-- One row per gate run, chained by digest: append-only, but for bodies that grow old.
CREATE TABLE gate_run (
    seq        BIGINT PRIMARY KEY,
    at         BIGINT NOT NULL,
    plan       TEXT NOT NULL,
    verdict    TEXT NOT NULL,
    open_until BIGINT NOT NULL,         -- how long a pass opens what it guards
    digest     TEXT NOT NULL UNIQUE,
    previous   TEXT,                    -- digest of the run before; NULL for the first
    json       TEXT NOT NULL            -- the evidence document; empty when it grew old
);
