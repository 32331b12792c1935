//! What is kept, and for how long: the one home of that rule.
//!
//! Everything that grows with time is bounded here or bounded by itself. The custody events, intents,
//! waivers and gate runs stay for ever: they are the account of what people decided. What goes, goes
//! in small batches, each a commit of its own, looked for on the connection that nothing waits for.

use serde_json::json;

use super::db::Lock;
use super::pruned::{Bridge, Chain, Walk};
use super::{During, Store, StoreError, StoreResult, query};
use crate::domain::time::{DAY_MS, Timestamp};

/// Entries that one commit looks at, and rows that one commit deletes.
const BATCH: i64 = 500;

/// For how long things are kept, in milliseconds unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Superseded token versions, after they ended. Their secrets are erased long before. The first of
    /// each triplet stays, since it says from when on its entries are ours; and one that never ends:
    /// without it a replay of it would look new.
    pub versions_ms: i64,
    /// What was accepted and worked in; its content is erased at once.
    pub intake_ms: i64,
    /// Alerts, sent or not.
    pub alerts_ms: i64,
    /// Notes, comparisons, looks, samples: longer than the longest window of any criterion.
    pub evidence_ms: i64,
    /// Notes of one kind about one subject, newest first (a count), and of outages as many of the longest.
    /// More of them change no verdict.
    pub notes_of_a_subject: u32,
    /// Rows that wait for D1, and as many that wait to be read there (a count). When it is away for
    /// that long, the oldest are given up.
    pub audit_rows: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            versions_ms: 30 * DAY_MS,
            intake_ms: 7 * DAY_MS,
            alerts_ms: 90 * DAY_MS,
            evidence_ms: super::history::KEPT_MS,
            notes_of_a_subject: 100,
            audit_rows: 1_000_000,
        }
    }
}

/// How far one round of pruning is. Begin with the default; it can be forgotten at any time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruning {
    step: usize,
    cursor: Cursor,
}

/// A place in a chain: the last entry that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cursor {
    after: i64,
    hash: Vec<u8>,
    /// The bridge that ends there.
    bridge: Option<Bridge>,
}

impl Pruning {
    /// Leaves out what cannot be pruned. Returns whether the round is over.
    pub fn skip(&mut self) -> bool {
        *self = Self { step: (self.step + 1) % STEPS.len(), cursor: Cursor::default() };
        self.step == 0
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Self { after: 0, hash: vec![0; 32], bridge: None }
    }
}

/// One thing that a round of pruning does.
#[derive(Clone, Copy)]
enum Step {
    /// Entries of a chain as it is verified; then when they were made, and whether they are needed no
    /// more: `$1` the last one looked at, `$2` what is older goes, `$3` how many.
    Chain(Chain, fn(&Retention) -> i64, &'static str),
    /// Rows of a table that go: what they are called by; older than `$1` or beyond the newest `$1`, `$2` of them.
    Rows {
        bound: fn(&Retention, Timestamp) -> i64,
        look: &'static str,
        delete: &'static str,
        count: Option<&'static str>,
    },
}

fn before(ms: i64, now: Timestamp) -> i64 {
    now.plus_ms(-ms).millis()
}

/// The last entry of each chain stays: the next one is linked to it.
const STEPS: [Step; 8] = [
    Step::Chain(
        Chain::Journal,
        |kept| kept.versions_ms,
        "SELECT j.seq, j.at, j.triplet, j.version, j.epoch, j.writer, j.fingerprint, j.expires_at, j.payload, j.digest,
                j.hash, CAST(CASE WHEN j.payload IS NULL AND j.version > 1 AND j.version < t.version AND j.expires_at < $2 AND j.at < $2
                               AND j.seq < (SELECT MAX(seq) FROM journal) THEN 1 ELSE 0 END AS BIGINT), j.at
         FROM journal j LEFT JOIN triplet t ON t.key = j.triplet WHERE j.seq > $1 ORDER BY j.seq LIMIT $3",
    ),
    Step::Chain(
        Chain::Intake,
        |kept| kept.intake_ms,
        "SELECT seq, payload, digest, at, entries, previous, hash,
                CAST(CASE WHEN payload IS NULL AND at < $2 AND seq < (SELECT MAX(seq) FROM intake)
                          THEN 1 ELSE 0 END AS BIGINT), at
         FROM intake WHERE seq > $1 ORDER BY seq LIMIT $3",
    ),
    Step::Rows {
        bound: |kept, now| before(kept.alerts_ms, now),
        look: "SELECT CAST(seq AS TEXT) FROM alert WHERE last_at < $1 ORDER BY seq LIMIT $2",
        delete: "DELETE FROM alert WHERE seq IN (SELECT CAST(value->>0 AS BIGINT) FROM json_each($1))",
        count: None,
    },
    Step::Rows {
        bound: |kept, now| before(kept.evidence_ms, now),
        look: "SELECT CAST(seq AS TEXT) FROM note WHERE at < $1 ORDER BY seq LIMIT $2",
        delete: "DELETE FROM note WHERE seq IN (SELECT CAST(value->>0 AS BIGINT) FROM json_each($1))",
        count: None,
    },
    Step::Rows {
        bound: |kept, _| i64::from(kept.notes_of_a_subject),
        look: "SELECT CAST(seq AS TEXT) FROM
                 (SELECT seq, ROW_NUMBER() OVER (PARTITION BY kind, subject ORDER BY seq DESC) AS place,
                         ROW_NUMBER() OVER (PARTITION BY kind, subject ORDER BY
                           CASE WHEN kind = 'outage' THEN CAST(detail AS BIGINT) ELSE 0 END DESC, seq DESC) AS length
                  FROM note) AS placed
               WHERE place > $1 AND length > $1 ORDER BY seq LIMIT $2",
        delete: "DELETE FROM note WHERE seq IN (SELECT CAST(value->>0 AS BIGINT) FROM json_each($1))",
        count: Some("notes_thinned"),
    },
    Step::Rows {
        bound: |kept, now| before(kept.evidence_ms, now),
        look: "SELECT run FROM verification WHERE at < $1 ORDER BY at LIMIT $2",
        delete: "DELETE FROM verification WHERE run IN (SELECT value->>0 FROM json_each($1))",
        count: None,
    },
    Step::Rows {
        bound: |kept, _| i64::from(kept.audit_rows),
        look: "SELECT op_id FROM audit_outbox WHERE at <
                 (SELECT at FROM audit_outbox ORDER BY at DESC LIMIT 1 OFFSET $1) ORDER BY at LIMIT $2",
        delete: "DELETE FROM audit_outbox WHERE op_id IN (SELECT value->>0 FROM json_each($1))",
        count: Some("audit_rows_dropped"),
    },
    Step::Rows {
        bound: |kept, _| i64::from(kept.audit_rows),
        look: "SELECT op_id FROM audit_sent WHERE sent_at <
                 (SELECT sent_at FROM audit_sent ORDER BY sent_at DESC LIMIT 1 OFFSET $1) ORDER BY sent_at LIMIT $2",
        delete: "DELETE FROM audit_sent WHERE op_id IN (SELECT value->>0 FROM json_each($1))",
        count: Some("audit_rows_dropped"),
    },
];

impl Store {
    /// Does one batch of a round of pruning: at most one commit. Returns whether the round is over;
    /// `round` is then ready for the next one.
    ///
    /// # Errors
    /// When the store fails, or a chain holds what is not ours.
    pub async fn prune_some(&self, round: &mut Pruning, kept: &Retention, now: Timestamp) -> StoreResult<bool> {
        let over = match STEPS[round.step] {
            Step::Chain(chain, keep_ms, look) => {
                let cursor = std::mem::take(&mut round.cursor);
                match self.prune_entries(chain, look, cursor, before(keep_ms(kept), now)).await? {
                    Some(cursor) => {
                        round.cursor = cursor;
                        false
                    }
                    None => true,
                }
            }
            Step::Rows { bound, look, delete, count } => self.prune_rows(look, delete, count, bound(kept, now)).await?,
        };
        Ok(over && round.skip())
    }

    /// Looks at one page of a chain. Returns where it is then, `None` at the end: at the first entry
    /// that is young.
    ///
    /// Each entry is checked before it goes: a chain that was tampered with is not pruned clean.
    async fn prune_entries(
        &self,
        chain: Chain,
        look: &'static str,
        cursor: Cursor,
        cutoff: i64,
    ) -> StoreResult<Option<Cursor>> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        let rows = query(look)
            .bind(cursor.after)
            .bind(cutoff)
            .bind(BATCH)
            .fetch_all(&mut tx)
            .await
            .during("look for what is needed no more")?;
        let Some(last) = rows.last().map(|r| r.get::<i64>(0)) else { return Ok(None) };
        let (flag, made) = match chain {
            Chain::Journal => (11, 12),
            Chain::Intake => (7, 8),
        };
        let mut walk = Walk::from(chain, cursor.after, cursor.hash);
        walk.load(&mut tx, &self.vault, last).await?;
        let (mut bridge, mut change) = (cursor.bridge, Change::default());
        let mut more = rows.len() as i64 == BATCH;
        for r in &rows {
            if r.get::<i64>(made) >= cutoff {
                more = false;
                break;
            }
            let seq = r.get(0);
            for crossed in walk.cross(seq)? {
                bridge = Some(match bridge {
                    Some(before) => change.join(before, crossed),
                    None => crossed,
                });
            }
            let previous = walk.hash.clone();
            match chain {
                Chain::Journal => self.step_journal(&mut walk, r)?,
                Chain::Intake => self.step_intake(&mut walk, r)?,
            }
            bridge = (r.get::<i64>(flag) == 1).then(|| {
                let gone = Bridge { first_seq: seq, last_seq: seq, entries: 1, previous, hash: walk.hash.clone() };
                change.entries.push(seq);
                match bridge.take() {
                    Some(before) => change.join(before, gone),
                    None => change.add(gone),
                }
            });
        }
        if !change.is_empty() {
            if !change.write(&mut tx, chain, &self.vault).await? {
                // Another machine prunes too; it sees to the rest.
                return Ok(None);
            }
            tx.commit().await.during("commit")?;
        }
        Ok(more.then_some(Cursor { after: walk.after, hash: walk.hash, bridge }))
    }

    /// Deletes one batch of rows. Returns whether there are no more.
    async fn prune_rows(
        &self,
        look: &'static str,
        delete: &'static str,
        count: Option<&str>,
        bound: i64,
    ) -> StoreResult<bool> {
        let found: Vec<[String; 1]> = query(look)
            .bind(bound)
            .bind(BATCH)
            .fetch_all(&mut self.read().await)
            .await
            .during("look for what is needed no more")?
            .iter()
            .map(|r| [r.get(0)])
            .collect();
        if found.is_empty() {
            return Ok(true);
        }
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Rows).await.during("begin")?;
        query(delete).bind(json!(found).to_string()).execute(&mut tx).await.during("delete what is needed no more")?;
        if let Some(count) = count {
            super::evidence::add(&mut tx, &[(count, found.len() as i64)]).await?;
        }
        tx.commit().await.during("commit")?;
        Ok((found.len() as i64) < BATCH)
    }
}

/// What one batch changes in a chain.
#[derive(Default)]
struct Change {
    /// Entries that go.
    entries: Vec<i64>,
    /// Bridges that were there and become part of longer ones.
    old: Vec<Bridge>,
    /// New ones, in order; the last may still grow.
    new: Vec<Bridge>,
}

impl Change {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.new.is_empty()
    }

    fn add(&mut self, bridge: Bridge) -> Bridge {
        self.new.push(bridge.clone());
        bridge
    }

    /// One bridge of two that lie side by side. Each was there before, was made in this batch, or is
    /// an entry that goes now.
    fn join(&mut self, before: Bridge, next: Bridge) -> Bridge {
        let joined = Bridge {
            first_seq: before.first_seq,
            last_seq: next.last_seq,
            entries: before.entries + next.entries,
            previous: before.previous.clone(),
            hash: next.hash.clone(),
        };
        if self.new.last() == Some(&before) {
            self.new.pop();
        } else {
            self.old.push(before);
        }
        if self.entries.last() != Some(&next.first_seq) {
            self.old.push(next);
        }
        self.add(joined)
    }

    /// Returns `false` when something is not as it was read.
    async fn write(&self, tx: &mut super::db::Tx<'_>, chain: Chain, vault: &super::Vault) -> StoreResult<bool> {
        for bridge in &self.old {
            if !bridge.delete(tx, chain).await? {
                return Ok(false);
            }
        }
        for bridge in &self.new {
            bridge.insert(tx, chain, vault).await?;
        }
        let delete = match chain {
            Chain::Journal => "DELETE FROM journal WHERE seq IN (SELECT CAST(value->>0 AS BIGINT) FROM json_each($1))",
            Chain::Intake => "DELETE FROM intake WHERE seq IN (SELECT CAST(value->>0 AS BIGINT) FROM json_each($1))",
        };
        let gone: Vec<[i64; 1]> = self.entries.iter().map(|seq| [*seq]).collect();
        let deleted = query(delete).bind(json!(gone).to_string()).execute(tx).await.during("prune a chain")?;
        if deleted != self.entries.len() as u64 {
            let detail = format!("{deleted} of {} entries could be pruned", self.entries.len());
            return Err(StoreError::Corrupt { what: chain.name(), detail });
        }
        Ok(true)
    }
}
