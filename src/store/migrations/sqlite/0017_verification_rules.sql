-- Under which rules a comparison was made; none for those of the shim, whose rules are its code.
ALTER TABLE verification ADD COLUMN rules TEXT;  -- JSON
