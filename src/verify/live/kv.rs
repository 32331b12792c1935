//! A KV namespace as a side: its listing, and the values of the keys that are looked into.
//!
//! A listing comes sorted, so two namespaces are merge-joined page by page and neither is ever
//! held whole. A key that is looked into is given as the bulk read shows it, value and metadata of
//! one moment; the listing's metadata may be older. Requests are not wasted: keys to look into are
//! gathered across pages until a bulk read is full.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::side::{Block, Halt, Look, Mark, Now, Side, Source};
use super::whoami::{Asked, Whoami};
use super::{Caller, Depth, Line, halted};
use crate::domain::time::Timestamp;
use crate::domain::token::KvEntry;
use crate::domain::triplet::KV_PREFIX;
use crate::ports::{Api, ApiErrorKind, ApiResult, KvInspect, KvPlace, ListedKey, StoredValue};

/// Keys in one bulk read, the most there is.
const BULK_KEYS: usize = 100;

/// Listed keys that wait for a bulk read to fill. Bounds the memory of a thin sample.
const WAITING_MAX: usize = 20_000;

/// What a KV side is asked to tell beside its entries.
#[derive(Clone)]
pub struct KvSideOptions {
    pub depth: Depth,
    /// Keys that are none of the comparison's business.
    pub skip: Arc<BTreeSet<String>>,
    /// Says whether tokens have ended, for the comparison with a custodian, which says the same.
    pub states: bool,
    /// Asks the providers who the tokens belong to.
    pub whoami: Option<Arc<Whoami>>,
}

/// A KV namespace.
pub struct KvSide<C>(Arc<Inner<C>>);

struct Inner<C> {
    name: String,
    place: KvPlace,
    client: Arc<C>,
    caller: Caller,
    options: KvSideOptions,
    /// Pages of the last whole listing.
    pages: AtomicU64,
}

impl<C: KvInspect + 'static> KvSide<C> {
    pub fn new(name: &str, place: KvPlace, client: Arc<C>, caller: Caller, options: KvSideOptions) -> Self {
        Self(Arc::new(Inner { name: name.to_owned(), place, client, caller, options, pages: AtomicU64::new(u64::MAX) }))
    }

    fn walk(&self, given: u64, behind: Option<String>, read: Arc<AtomicU64>) -> Walk<C> {
        let listing = Listing::new(Arc::clone(&self.0), KV_PREFIX, behind);
        Walk { inner: Arc::clone(&self.0), listing, waiting: VecDeque::new(), deep: 0, given, read }
    }
}

impl<C: KvInspect + 'static> Source for KvSide<C> {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn open(&self, from: Mark, read: Arc<AtomicU64>) -> Result<Box<dyn Side>, Halt> {
        Ok(Box::new(self.walk(from.entries, None, read)))
    }

    /// Nobody says how long a cursor lives, so the listing begins anew; its pages are cheap, and
    /// values before `last` are not read again.
    fn open_behind(&self, mark: Mark, last: &[u8], read: Arc<AtomicU64>) -> Result<Box<dyn Side>, Halt> {
        let last = String::from_utf8_lossy(last).into_owned();
        Ok(Box::new(self.walk(mark.entries, Some(last).filter(|last| !last.is_empty()), read)))
    }

    fn look_again(&self, keys: u64) -> Option<Box<dyn Look>> {
        // Without values a key costs a listing of its own; many are found sooner by listing all.
        let pages = self.0.pages.load(Ordering::Relaxed);
        let listing = (keys > pages).then(|| Listing::new(Arc::clone(&self.0), KV_PREFIX, None));
        Some(Box::new(KvLook { inner: Arc::clone(&self.0), listing, page: VecDeque::new() }))
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

/// What stands under a key that was looked into.
enum Fetched {
    Absent,
    Value(StoredValue),
    /// Cloudflare does not give it, and why.
    Unreadable(String),
}

impl<C: KvInspect> Inner<C> {
    fn list(&self, prefix: &str, cursor: Option<&str>) -> ApiResult<crate::ports::KeyListing> {
        self.caller.call(Api::Cloudflare, || self.client.list_page(&self.place, prefix, cursor))
    }

    /// Reads values, at most [`BULK_KEYS`]. One that cannot be given spoils the answer for all, so
    /// a refused batch is halved until the culprit stands alone.
    fn fetch(&self, keys: &[String]) -> Result<BTreeMap<String, Fetched>, Halt> {
        let mut fetched = BTreeMap::new();
        let mut batches = vec![keys];
        let mut refused = None;
        while let Some(batch) = batches.pop() {
            match self.caller.call(Api::Cloudflare, || self.client.read_values(&self.place, batch)) {
                Ok(values) => fetched.extend(
                    values.into_iter().map(|(key, value)| (key, value.map_or(Fetched::Absent, Fetched::Value))),
                ),
                Err(error) if matches!(error.kind, ApiErrorKind::Rejected { .. } | ApiErrorKind::Contract { .. }) => {
                    if let [key] = batch {
                        fetched.insert(key.clone(), Fetched::Unreadable(error.kind.to_string()));
                        refused = Some(error);
                    } else {
                        let (first, second) = batch.split_at(batch.len() / 2);
                        batches.extend([second, first]);
                    }
                }
                Err(error) => return Err(halted(&error)),
            }
        }
        match refused {
            // Not a single one: it is not the values.
            Some(error) if !fetched.values().any(|f| matches!(f, Fetched::Value(_) | Fetched::Absent)) => {
                Err(halted(&error))
            }
            _ => Ok(fetched),
        }
    }

    fn listed_line(&self, listed: &ListedKey) -> Vec<u8> {
        let end = listed.metadata.as_ref().and_then(|metadata| metadata["exp"].as_i64()).map(Timestamp::from_secs);
        Line {
            key: &listed.name,
            metadata: listed.metadata.as_ref(),
            expiration: listed.expiration,
            status: self.status(listed.metadata.is_some(), end),
            ..Line::default()
        }
        .to_bytes()
    }

    fn value_line(&self, key: &str, stored: &StoredValue) -> Vec<u8> {
        let tells_more = self.options.states || self.options.whoami.is_some();
        let entry = tells_more.then(|| KvEntry::from_json(stored.value.expose().as_bytes()).ok()).flatten();
        let asked = match (&self.options.whoami, &entry) {
            (Some(whoami), Some(entry)) => whoami.ask_directly(key, entry),
            _ => Asked::default(),
        };
        Line {
            key,
            value: Some(stored.value.expose().into()),
            metadata: stored.metadata.as_ref(),
            expiration: stored.expiration,
            status: entry.and_then(|entry| self.status(true, entry.expires_at)),
            live: asked.live,
            identity: asked.identity,
            ..Line::default()
        }
        .to_bytes()
    }

    /// `known`: the end of the token, or that it has none, is known.
    fn status(&self, known: bool, end: Option<Timestamp>) -> Option<&'static str> {
        let now = self.caller.budget().clock().now();
        let state = if end.is_some_and(|end| end <= now) { "expired" } else { "active" };
        (self.options.states && known).then_some(state)
    }
}

/// Turns the pages of a listing.
struct Listing<C> {
    inner: Arc<Inner<C>>,
    prefix: String,
    cursor: Option<String>,
    ended: bool,
    pages: u64,
    /// The last key that was given.
    last: String,
    /// What comes before this key, and the key itself, was given by an earlier reading.
    behind: Option<String>,
    /// The cursor was refused and the listing begun again since a page came.
    began_again: bool,
}

impl<C: KvInspect> Listing<C> {
    fn new(inner: Arc<Inner<C>>, prefix: &str, behind: Option<String>) -> Self {
        let last = behind.clone().unwrap_or_default();
        Self {
            inner,
            prefix: prefix.to_owned(),
            cursor: None,
            ended: false,
            pages: 0,
            last,
            behind,
            began_again: false,
        }
    }

    /// The next keys, perhaps none; `None` at the end.
    fn next_page(&mut self) -> Result<Option<Vec<ListedKey>>, Halt> {
        if self.ended {
            return Ok(None);
        }
        let page = match self.inner.list(&self.prefix, self.cursor.as_deref()) {
            Ok(page) => page,
            Err(error)
                if self.cursor.is_some()
                    && !self.began_again
                    && matches!(error.kind, ApiErrorKind::Rejected { .. } | ApiErrorKind::NotFound { .. }) =>
            {
                // The cursor is no longer known: from the start, past what was given.
                self.cursor = None;
                self.began_again = true;
                self.pages = 0;
                self.behind = Some(self.last.clone());
                return Ok(Some(Vec::new()));
            }
            Err(error) => return Err(halted(&error)),
        };
        self.pages += 1;
        self.began_again &= self.behind.is_some();
        self.cursor = page.cursor;
        self.ended = self.cursor.is_none();
        if self.ended && self.prefix == KV_PREFIX {
            self.inner.pages.store(self.pages, Ordering::Relaxed);
        }
        let mut keys = page.keys;
        keys.retain(|key| {
            if self.behind.as_deref().is_some_and(|behind| key.name.as_str() <= behind) {
                return false;
            }
            self.behind = None;
            // A key that moved between two pages of a changing namespace comes once.
            let again = key.name == self.last;
            if !again {
                self.last.clone_from(&key.name);
            }
            !again && !self.inner.options.skip.contains(&key.name)
        });
        Ok(Some(keys))
    }
}

/// Reads a namespace from some key to its end.
struct Walk<C> {
    inner: Arc<Inner<C>>,
    listing: Listing<C>,
    /// Keys that were listed and not given yet.
    waiting: VecDeque<ListedKey>,
    /// How many of them are to be looked into.
    deep: usize,
    /// Entries so far, earlier readings included.
    given: u64,
    read: Arc<AtomicU64>,
}

impl<C: KvInspect> Walk<C> {
    fn give(&mut self, block: &mut Block, line: &[u8]) {
        block.push(line, 0);
        self.given += 1;
        self.read.fetch_add(line.len() as u64, Ordering::Relaxed);
    }

    /// Gives what waits, up to the last key of a bulk read; without one, everything.
    fn give_waiting(&mut self, block: &mut Block) -> Result<(), Halt> {
        let depth = self.inner.options.depth;
        let deep = |listed: &&ListedKey| depth.is_deep(&listed.name);
        let keys: Vec<String> =
            self.waiting.iter().filter(deep).take(BULK_KEYS).map(|listed| listed.name.clone()).collect();
        let mut fetched = if keys.is_empty() { BTreeMap::new() } else { self.inner.fetch(&keys)? };
        self.deep -= keys.len();
        while let Some(listed) = self.waiting.pop_front() {
            match fetched.remove(&listed.name) {
                None if depth.is_deep(&listed.name) => {
                    // It belongs to the next bulk read.
                    self.waiting.push_front(listed);
                    break;
                }
                None => {
                    let line = self.inner.listed_line(&listed);
                    self.give(block, &line);
                }
                // Deleted since it was listed.
                Some(Fetched::Absent) => {}
                Some(Fetched::Value(stored)) => {
                    let line = self.inner.value_line(&listed.name, &stored);
                    self.give(block, &line);
                }
                Some(Fetched::Unreadable(why)) => {
                    let stub = Line { key: &listed.name, ..Line::default() }.to_bytes();
                    block.push_fault(&stub, 0, format!("a value that Cloudflare does not give: {why}"));
                    self.given += 1;
                }
            }
        }
        Ok(())
    }
}

impl<C: KvInspect> Side for Walk<C> {
    fn fill(&mut self, block: &mut Block) -> Result<bool, Halt> {
        block.mark = Mark { entries: self.given, offset: 0 };
        block.without_places();
        let before = self.given;
        loop {
            let ready = match self.inner.options.depth {
                Depth::Keys => !self.waiting.is_empty(),
                Depth::Sampled(_) | Depth::Full => self.deep >= BULK_KEYS || self.waiting.len() >= WAITING_MAX,
            };
            if ready || (self.listing.ended && !self.waiting.is_empty()) {
                self.give_waiting(block)?;
                if self.given > before {
                    return Ok(true);
                }
                continue;
            }
            match self.listing.next_page()? {
                None => return Ok(false),
                Some(keys) => {
                    let depth = self.inner.options.depth;
                    self.deep += keys.iter().filter(|listed| depth.is_deep(&listed.name)).count();
                    self.waiting.extend(keys);
                }
            }
        }
    }
}

/// Looks at single keys: by their values where values are compared, else by the listing.
struct KvLook<C> {
    inner: Arc<Inner<C>>,
    /// For many keys without values.
    listing: Option<Listing<C>>,
    page: VecDeque<ListedKey>,
}

impl<C: KvInspect> KvLook<C> {
    fn find(&mut self, key: &str) -> Result<Option<ListedKey>, Halt> {
        let Some(listing) = &mut self.listing else {
            let mut listing = Listing::new(Arc::clone(&self.inner), key, None);
            while let Some(keys) = listing.next_page()? {
                // The key itself is the first of all that begin with it. A page may be empty and not the last.
                if let Some(first) = keys.into_iter().next() {
                    return Ok(Some(first).filter(|listed| listed.name == key));
                }
            }
            return Ok(None);
        };
        loop {
            while let Some(listed) = self.page.front() {
                match listed.name.as_str().cmp(key) {
                    std::cmp::Ordering::Less => drop(self.page.pop_front()),
                    std::cmp::Ordering::Equal => return Ok(self.page.pop_front()),
                    std::cmp::Ordering::Greater => return Ok(None),
                }
            }
            match listing.next_page()? {
                Some(keys) => self.page.extend(keys),
                None => return Ok(None),
            }
        }
    }
}

impl<C: KvInspect> Look for KvLook<C> {
    fn look(&mut self, keys: &[String]) -> Result<Vec<Now>, Halt> {
        let depth = self.inner.options.depth;
        let deep: Vec<String> = keys.iter().filter(|key| depth.is_deep(key)).cloned().collect();
        let mut fetched = if deep.is_empty() { BTreeMap::new() } else { self.inner.fetch(&deep)? };
        let mut said = Vec::with_capacity(keys.len());
        for key in keys {
            said.push(match fetched.remove(key) {
                Some(Fetched::Absent) => Now::Absent,
                Some(Fetched::Value(stored)) => Now::Entry(self.inner.value_line(key, &stored)),
                Some(Fetched::Unreadable(_)) => Now::Broken,
                None => match self.find(key)? {
                    Some(listed) => Now::Entry(self.inner.listed_line(&listed)),
                    None => Now::Absent,
                },
            });
        }
        Ok(said)
    }
}
