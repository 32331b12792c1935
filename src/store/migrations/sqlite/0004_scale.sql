-- What is due at one sink, among a million triplets of which few are.
CREATE INDEX delivery_sink_due ON delivery (sink, next_at) WHERE next_at IS NOT NULL;
