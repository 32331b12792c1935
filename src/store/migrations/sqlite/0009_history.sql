-- The history that the gate's windows and the report are made of. Times are milliseconds since
-- the Unix epoch. Bounded: `Store::save_sample` forgets.

-- Looks of one source with the same outcome, one after the other within a day.
CREATE TABLE look (
    source     TEXT NOT NULL,           -- smoke, scan, verify, audit
    seq        BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at   BIGINT NOT NULL,
    outcome    TEXT NOT NULL,           -- clean, finding, inconclusive, idle, error
    runs       BIGINT NOT NULL,
    samples    BIGINT NOT NULL,
    PRIMARY KEY (source, seq)
);

-- Times without evidence from one source.
CREATE TABLE gap (
    source     TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at   BIGINT NOT NULL,
    reason     TEXT NOT NULL,
    PRIMARY KEY (source, started_at)
);

-- Counters and gauges about once an hour, as JSON that only the program reads.
CREATE TABLE sample (
    at   BIGINT PRIMARY KEY,
    json TEXT NOT NULL
);
