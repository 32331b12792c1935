-- When the first of a delivery's `attempts` in a row failed; means nothing while there is none.
ALTER TABLE delivery ADD COLUMN failing_since INTEGER;
