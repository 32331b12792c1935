-- What stands in the place of entries that were pruned from a chain: the hash before the first of
-- them and the hash of the last, so that the chain still verifies.
CREATE TABLE pruned (
    chain     TEXT NOT NULL,            -- journal, intake
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    entries   INTEGER NOT NULL,
    previous  BLOB NOT NULL,
    hash      BLOB NOT NULL,
    seal      BLOB NOT NULL,            -- keyed digest of all of this: nobody without our keys can cut a chain
    PRIMARY KEY (chain, first_seq)
) WITHOUT ROWID;
