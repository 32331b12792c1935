//! Cutting old entries out of a hash chain so that it still verifies.
//!
//! In the place of a run of pruned entries stands one row: the hash before the first of them, the
//! hash of the last, and how many they were, sealed with our key. Whoever walks the chain goes over
//! it as over a bridge. Runs that come to lie side by side become one, so there are never more
//! bridges than entries that are kept.

use serde_json::json;

use super::db::Session;
use super::{During, Row, Store, StoreError, StoreResult, Vault, query};
use crate::domain::secret::hex;

/// Binds seals to their table.
const PLACE: &str = "pruned";

/// A hash chain that may be pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    Journal,
    Intake,
}

impl Chain {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Intake => "intake log",
        }
    }

    const fn entry(self) -> &'static str {
        match self {
            Self::Journal => "entry",
            Self::Intake => "commit",
        }
    }
}

/// What stands in the place of a run of pruned entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bridge {
    pub first_seq: i64,
    pub last_seq: i64,
    /// Entries that were pruned here.
    pub entries: i64,
    /// Hash of the entry before the first of them.
    pub previous: Vec<u8>,
    /// Hash of the last of them.
    pub hash: Vec<u8>,
}

impl Bridge {
    fn seal(&self, chain: Chain, vault: &Vault) -> Vec<u8> {
        let ends = (hex(&self.previous), hex(&self.hash));
        let facts = json!([chain.name(), self.first_seq, self.last_seq, self.entries, ends]).to_string();
        vault.digest(PLACE, facts.as_bytes()).to_vec()
    }

    pub async fn insert(&self, session: &mut impl Session, chain: Chain, vault: &Vault) -> StoreResult<()> {
        query(
            "INSERT INTO pruned (chain, first_seq, last_seq, entries, previous, hash, seal)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(chain.name())
        .bind(self.first_seq)
        .bind(self.last_seq)
        .bind(self.entries)
        .bind(&*self.previous)
        .bind(&*self.hash)
        .bind(self.seal(chain, vault))
        .execute(session)
        .await
        .during("bridge what is pruned")?;
        Ok(())
    }

    /// Returns whether it was there.
    pub async fn delete(&self, session: &mut impl Session, chain: Chain) -> StoreResult<bool> {
        let deleted = query("DELETE FROM pruned WHERE chain = $1 AND first_seq = $2 AND hash = $3")
            .bind(chain.name())
            .bind(self.first_seq)
            .bind(&*self.hash)
            .execute(session)
            .await
            .during("lengthen a bridge")?;
        Ok(deleted == 1)
    }
}

/// Bridges between the entries `after` and `before`, in order. Their seals are checked.
///
/// # Errors
/// `Corrupt` naming the first one that is not ours.
async fn load_bridges(
    session: &mut impl Session,
    chain: Chain,
    vault: &Vault,
    after: i64,
    before: i64,
) -> StoreResult<Vec<Bridge>> {
    let rows = query(
        "SELECT first_seq, last_seq, entries, previous, hash, seal FROM pruned
         WHERE chain = $1 AND first_seq > $2 AND first_seq < $3 ORDER BY first_seq",
    )
    .bind(chain.name())
    .bind(after)
    .bind(before)
    .fetch_all(session)
    .await
    .during("load what is pruned")?;
    rows.iter()
        .map(|r| {
            let bridge = read(r);
            if bridge.seal(chain, vault) != r.get::<Vec<u8>>(5) {
                let detail = format!("what is pruned from {} on was not pruned by us", bridge.first_seq);
                return Err(StoreError::Corrupt { what: chain.name(), detail });
            }
            Ok(bridge)
        })
        .collect()
}

fn read(r: &Row) -> Bridge {
    Bridge { first_seq: r.get(0), last_seq: r.get(1), entries: r.get(2), previous: r.get(3), hash: r.get(4) }
}

/// Walks a chain over its bridges, for whoever has the entries page by page.
pub(super) struct Walk {
    chain: Chain,
    bridges: std::iter::Peekable<std::vec::IntoIter<Bridge>>,
    /// Hash of the last entry.
    pub hash: Vec<u8>,
    /// Its number.
    pub after: i64,
    /// Entries so far, the pruned ones included.
    pub count: u64,
}

impl Walk {
    pub fn new(chain: Chain) -> Self {
        Self::from(chain, 0, vec![0; 32])
    }

    /// From behind the entry `after`.
    pub fn from(chain: Chain, after: i64, hash: Vec<u8>) -> Self {
        Self { chain, bridges: Vec::new().into_iter().peekable(), hash, after, count: 0 }
    }

    /// Loads the bridges of the next page, whose last entry is `last`.
    pub async fn load(&mut self, session: &mut impl Session, vault: &Vault, last: i64) -> StoreResult<()> {
        self.bridges = load_bridges(session, self.chain, vault, self.after, last).await?.into_iter().peekable();
        Ok(())
    }

    /// Goes over the bridges before the entry `seq`, and returns them.
    ///
    /// # Errors
    /// `Corrupt` when one of them does not begin where the chain is.
    pub fn cross(&mut self, seq: i64) -> StoreResult<Vec<Bridge>> {
        let mut crossed = Vec::new();
        while let Some(bridge) = self.bridges.next_if(|bridge| bridge.first_seq < seq) {
            if bridge.previous != self.hash || bridge.last_seq >= seq {
                let detail = format!("what is pruned from {} on does not fit the chain", bridge.first_seq);
                return Err(StoreError::Corrupt { what: self.chain.name(), detail });
            }
            self.count += bridge.entries.unsigned_abs();
            self.after = bridge.last_seq;
            self.hash.clone_from(&bridge.hash);
            crossed.push(bridge);
        }
        Ok(crossed)
    }

    /// Steps to the entry `seq`; `fits` says whether it is linked here, and what was journalled.
    ///
    /// # Errors
    /// `Corrupt` when it is not.
    pub fn step(&mut self, seq: i64, hash: Vec<u8>, fits: bool) -> StoreResult<()> {
        if !fits {
            let detail = format!("{} {seq} does not fit the chain", self.chain.entry());
            return Err(StoreError::Corrupt { what: self.chain.name(), detail });
        }
        (self.after, self.hash) = (seq, hash);
        self.count += 1;
        Ok(())
    }
}

impl Store {
    /// Walks a chain; once more when it was pruned under our feet and did not fit.
    pub(super) async fn verify_chain(&self, chain: Chain) -> StoreResult<u64> {
        loop {
            let before = self.count_pruned(chain).await?;
            let walked = match chain {
                Chain::Journal => self.walk_journal().await,
                Chain::Intake => self.walk_intake().await,
            };
            match walked {
                Err(StoreError::Corrupt { .. }) if self.count_pruned(chain).await? != before => {}
                walked => return walked,
            }
        }
    }

    async fn count_pruned(&self, chain: Chain) -> StoreResult<i64> {
        let row = query("SELECT CAST(COALESCE(SUM(entries), 0) AS BIGINT) FROM pruned WHERE chain = $1")
            .bind(chain.name())
            .fetch_one(&mut self.read().await)
            .await
            .during("count what is pruned")?;
        Ok(row.get(0))
    }
}
