//! What the emulators must do, rule by rule, and what the ledger must notice.
