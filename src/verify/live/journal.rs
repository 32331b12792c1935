//! The journal as a side: the newest version of every triplet that is mirrored, as it should stand
//! in KV.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use super::super::side::{Block, Halt, Look, Mark, Now, Side, Source};
use super::{Caller, Depth, Line};
use crate::domain::triplet::KV_PREFIX;
use crate::store::{JournalHead, Store, StoreError};

/// Heads that are read at once.
const PAGE: u32 = 500;

/// The journal of a state.
pub struct JournalSide(Arc<Inner>);

struct Inner {
    name: String,
    store: Arc<Store>,
    caller: Caller,
    depth: Depth,
    /// Says that the credential is active, for the comparison with a custodian.
    states: bool,
    /// Keys that are none of the comparison's business.
    skip: Arc<BTreeSet<String>>,
}

impl JournalSide {
    pub fn new(
        name: &str,
        store: Arc<Store>,
        caller: Caller,
        depth: Depth,
        states: bool,
        skip: Arc<BTreeSet<String>>,
    ) -> Self {
        Self(Arc::new(Inner { name: name.to_owned(), store, caller, depth, states, skip }))
    }
}

impl Source for JournalSide {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn open(&self, from: Mark, read: Arc<AtomicU64>) -> Result<Box<dyn Side>, Halt> {
        self.open_behind(from, b"", read)
    }

    fn open_behind(&self, mark: Mark, last: &[u8], read: Arc<AtomicU64>) -> Result<Box<dyn Side>, Halt> {
        let last = String::from_utf8_lossy(last);
        let after = last.strip_prefix(KV_PREFIX).unwrap_or_default().to_owned();
        Ok(Box::new(JournalWalk { inner: Arc::clone(&self.0), after, given: mark.entries, read }))
    }

    fn look_again(&self, _: u64) -> Option<Box<dyn Look>> {
        Some(Box::new(JournalLook(Arc::clone(&self.0))))
    }

    fn can_reopen(&self) -> bool {
        true
    }

    fn state(&self) -> Option<String> {
        None
    }

    fn bytes(&self) -> Option<u64> {
        None
    }
}

impl Inner {
    fn line(&self, head: &JournalHead) -> Vec<u8> {
        let key = head.triplet.kv_key();
        let metadata = serde_json::to_value(&head.metadata).expect("metadata has only string keys");
        let ended = head.ends_at.is_some_and(|at| at <= self.caller.budget().clock().now());
        let value = || head.entry.as_ref().map(|entry| Value::String(entry.to_json()));
        Line {
            key: &key,
            value: if self.depth.is_deep(&key) { value() } else { None },
            metadata: Some(&metadata),
            status: self.states.then_some(if ended { "expired" } else { "active" }),
            connection: self.states.then(|| format!("{}/{}", head.integration_key, head.connection_id)),
            ..Line::default()
        }
        .to_bytes()
    }
}

struct JournalWalk {
    inner: Arc<Inner>,
    /// The triplet before the next one.
    after: String,
    given: u64,
    read: Arc<AtomicU64>,
}

impl Side for JournalWalk {
    fn fill(&mut self, block: &mut Block) -> Result<bool, Halt> {
        block.mark = Mark { entries: self.given, offset: 0 };
        block.without_places();
        let heads =
            self.inner.caller.wait_for(self.inner.store.load_journal_heads(&self.after, PAGE)).map_err(broken)?;
        for head in heads.iter().filter(|head| !self.inner.skip.contains(&head.triplet.kv_key())) {
            let line = self.inner.line(head);
            block.push(&line, 0);
            self.read.fetch_add(line.len() as u64, Ordering::Relaxed);
            self.given += 1;
        }
        if let Some(last) = heads.last() {
            self.after = last.triplet.to_string();
        }
        Ok(!heads.is_empty())
    }
}

struct JournalLook(Arc<Inner>);

impl Look for JournalLook {
    fn look(&mut self, keys: &[String]) -> Result<Vec<Now>, Halt> {
        let mut said = Vec::with_capacity(keys.len());
        for key in keys {
            let name = key.strip_prefix(KV_PREFIX).unwrap_or_default();
            let head = self.0.caller.wait_for(self.0.store.load_journal_head(name)).map_err(broken)?;
            said.push(head.map_or(Now::Absent, |head| Now::Entry(self.0.line(&head))));
        }
        Ok(said)
    }
}

fn broken(error: StoreError) -> Halt {
    Halt::new(error.to_string())
}
