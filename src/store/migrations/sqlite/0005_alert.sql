-- Evidence that alerts were made of; what was noted before this migration is not news.
ALTER TABLE note ADD COLUMN alerted INTEGER NOT NULL DEFAULT 1;
CREATE INDEX note_news ON note (seq) WHERE alerted = 0;

-- Alerts on their way to people.
CREATE TABLE alert (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    subject  TEXT NOT NULL,
    detail   TEXT NOT NULL,
    repeats  INTEGER NOT NULL DEFAULT 0, -- the same again, kept from being sent
    last_at  INTEGER NOT NULL,           -- the last of them
    attempts INTEGER NOT NULL DEFAULT 0, -- tries to send it, counted before each
    next_at  INTEGER,                    -- NULL: sent, or too old to be news
    sent_at  INTEGER
);
CREATE INDEX alert_due ON alert (next_at);
CREATE INDEX alert_subject ON alert (kind, subject, seq);

-- Composio's webhooks that were taken, to tell repeats.
CREATE TABLE webhook_seen (
    id TEXT PRIMARY KEY,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX webhook_seen_at ON webhook_seen (at);

-- Dead letters are looked for on every look at the state.
CREATE INDEX delivery_dead ON delivery (captured_at) WHERE dead IS NOT NULL;
