-- What people said while an operation runs: at most one "no" and one "pause" per scope.
CREATE TABLE control (
    scope    TEXT NOT NULL,     -- all, wave:N
    decision TEXT NOT NULL,     -- no, pause
    reason   TEXT NOT NULL,
    actor    TEXT NOT NULL,
    at       INTEGER NOT NULL,
    PRIMARY KEY (scope, decision)
);
