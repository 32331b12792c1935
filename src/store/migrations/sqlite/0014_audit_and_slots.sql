-- Audit rows that D1 took, until they are read back there.
CREATE TABLE audit_sent (
    op_id       TEXT PRIMARY KEY,
    key         TEXT NOT NULL,
    fingerprint TEXT,
    sent_at     INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX audit_sent_at ON audit_sent (sent_at);

-- The pace that all comparisons of one state keep together, by API or host.
CREATE TABLE slot (
    name    TEXT PRIMARY KEY,
    full_at INTEGER NOT NULL -- when a whole burst may go again, nanoseconds
) WITHOUT ROWID;
