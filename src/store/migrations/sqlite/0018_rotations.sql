-- How many rotations were missed since the last capture is in `missed`; when the next one counts as
-- missed, in `miss_at`. A connection that stays stuck misses one rotation a lifetime.
ALTER TABLE connection ADD COLUMN life_ms INTEGER; -- the longest life that a fresh token of it had; NULL: not known
ALTER TABLE connection ADD COLUMN miss_at INTEGER; -- NULL: no rotation is expected
UPDATE connection SET miss_at = expires_at WHERE missed = 0;
UPDATE connection SET miss_at = expires_at + 3600000 WHERE missed = 1 AND dead_at IS NULL;
DROP INDEX connection_end;
CREATE INDEX connection_miss ON connection (miss_at);
