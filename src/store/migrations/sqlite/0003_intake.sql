-- What was accepted from outside and is not worked in yet. A row is what one commit carried: many
-- requests, encrypted together, hash-chained. The payload is erased once its content is worked in;
-- the chain covers the digest, so it stays verifiable.
CREATE TABLE intake (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    entries  INTEGER NOT NULL,
    payload  BLOB,
    digest   BLOB NOT NULL,             -- keyed digest of the clear content
    previous BLOB NOT NULL UNIQUE,      -- hash of the row before: nothing can be linked to it twice
    hash     BLOB NOT NULL              -- SHA-256 over the previous hash and this row
);
CREATE INDEX intake_open ON intake (seq) WHERE payload IS NOT NULL;
