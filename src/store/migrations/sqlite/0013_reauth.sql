-- Markers in KV of grants that are gone: what is wanted there, and whether it is so. Rows stay, so that
-- the number of a claim never comes again. Times are milliseconds since the Unix epoch.
CREATE TABLE reauth (
    triplet       TEXT PRIMARY KEY,
    at            INTEGER NOT NULL,     -- since when the grant is gone
    reason        TEXT NOT NULL,
    wanted        INTEGER NOT NULL,     -- 1: the marker is to be there, 0: it is to be gone
    claim         INTEGER NOT NULL DEFAULT 0,
    claimed_until INTEGER,              -- NULL: nobody is at it
    next_at       INTEGER               -- NULL: KV is as wanted
) WITHOUT ROWID;
CREATE INDEX reauth_due ON reauth (next_at);

-- When the source custody last handed out a new token: others of the same OAuth client are told apart by it.
ALTER TABLE connection ADD COLUMN refreshed_at INTEGER;
