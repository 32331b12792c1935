-- Comparisons of two sides, one row a run.
CREATE TABLE verification (
    run          TEXT PRIMARY KEY,
    at           INTEGER NOT NULL,      -- its end
    began_at     INTEGER NOT NULL,
    left_side    TEXT NOT NULL,
    right_side   TEXT NOT NULL,
    level        TEXT NOT NULL,         -- keys, sampled, full
    keys         INTEGER NOT NULL,      -- keys a side, the larger of both
    compared     INTEGER NOT NULL,      -- keys with an outcome other than settling
    differing    INTEGER NOT NULL,
    unsure       INTEGER NOT NULL,      -- unverifiable or settling
    failed       INTEGER NOT NULL,      -- what could not be read
    counts       TEXT NOT NULL          -- JSON: outcome -> rung -> keys
);
CREATE INDEX verification_at ON verification (at);

-- Since when each key of a pair of sides is known to be the same on both.
CREATE TABLE watermark (
    pair       TEXT NOT NULL,           -- left and right side
    key        TEXT NOT NULL,
    listed     TEXT NOT NULL,           -- digest of what both listings said last
    listed_at  INTEGER NOT NULL,        -- when they were last read
    checked    TEXT,                    -- the digest that the last comparison of the key saw
    checked_at INTEGER,                 -- when it began
    clean_at   INTEGER,                 -- the last of them that found no difference
    outcome    TEXT,
    rung       TEXT,
    PRIMARY KEY (pair, key)
);
CREATE INDEX watermark_checked ON watermark (pair, checked_at);
