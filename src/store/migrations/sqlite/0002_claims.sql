-- A claim gives the row that is worked on to one worker until it settles or the time is over. Its
-- number says whose outcome counts: what carries an older one comes too late.
ALTER TABLE connection ADD COLUMN claim INTEGER NOT NULL DEFAULT 0;
ALTER TABLE connection ADD COLUMN settled INTEGER NOT NULL DEFAULT 0; -- the newest claim whose outcome is recorded
ALTER TABLE delivery ADD COLUMN claim INTEGER NOT NULL DEFAULT 0;
ALTER TABLE delivery ADD COLUMN claimed_until INTEGER; -- NULL: nobody is at it

-- Who leads what is done by one machine for all.
CREATE TABLE lease (
    name   TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    epoch  INTEGER NOT NULL,            -- grows when another holder takes over
    until  INTEGER NOT NULL
) WITHOUT ROWID;

-- Whether a token was in the chain before, and is back.
CREATE INDEX journal_fingerprint ON journal (triplet, fingerprint);
