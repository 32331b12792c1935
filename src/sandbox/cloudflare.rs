//! Cloudflare's REST API: two KV namespaces, D1 with `kv_audit`, and the listing of objects.
//!
//! REST reads come from the central store. What the Worker sees lags behind: see `serving`.

mod d1;
mod d1_table;
mod http;
mod kv;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::domain::time::Timestamp;

use super::http::{Call, Reply};
use super::ledger::Sink;
use super::provider::TokenRef;
use super::serving::{Reads, SeenToken};
use super::world::World;

/// One write per second to one key (cloudflare.md §2.7).
const KEY_WRITE_EVERY_MS: i64 = 1_000;

pub(super) const SOURCE: usize = 0;
pub(super) const TARGET: usize = 1;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub value: Vec<u8>,
    pub metadata: Option<Value>,
    /// Unix seconds.
    pub expiration: Option<i64>,
    written_at: Timestamp,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Cloudflare {
    /// Source and target. `String` keys sort by their UTF-8 bytes, as listings do.
    pub namespaces: [BTreeMap<String, Entry>; 2],
    pub audit: d1::Audit,
    /// The token's five-minute window (begin, used) and the end of its penalty.
    window: (i64, u32),
    blocked_until: Option<Timestamp>,
}

impl Cloudflare {
    /// An entry that has not expired.
    pub fn get(&self, namespace: usize, key: &str, now: Timestamp) -> Option<&Entry> {
        self.namespaces[namespace].get(key).filter(|e| e.expiration.is_none_or(|s| s > now.secs()))
    }
}

/// One put, checked.
#[derive(Clone, Debug)]
pub(super) struct Put {
    pub key: String,
    pub value: Vec<u8>,
    pub metadata: Option<Value>,
    pub expiration: Option<i64>,
}

/// The key was written less than a second ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooSoon;

impl World {
    /// A write over REST.
    pub(super) fn kv_put(&mut self, namespace: usize, put: Put) -> Result<(), TooSoon> {
        let now = self.now();
        let too_soon = |e: &Entry| now.since(e.written_at) < KEY_WRITE_EVERY_MS;
        if self.cloudflare.namespaces[namespace].get(&put.key).is_some_and(too_soon) {
            return Err(TooSoon);
        }
        self.kv_book(namespace, put);
        Ok(())
    }

    /// An accepted write over REST, with its entry in the books.
    pub(super) fn kv_book(&mut self, namespace: usize, put: Put) {
        let now = self.now();
        self.ledger.counts.kv_writes += 1;
        let Put { key, value, metadata, expiration } = put;
        if let Some(triplet) = key.strip_prefix("tokens:").and_then(|name| self.by_name.get(name).copied()) {
            let sink = if namespace == SOURCE { Sink::KvSource } else { Sink::KvTarget };
            let seen = self.read_entry(&value);
            match &seen {
                Some(seen) if metadata.as_ref().is_some_and(|m| m["v"].is_u64()) => {
                    self.ledger_delivered(triplet, sink, &seen.access_token);
                }
                Some(seen) => self.ledger_foreign_write(triplet, sink, &seen.access_token, "someone"),
                // A tombstone: nothing is mirrored here any more.
                None => self.ledger_closed(triplet, &[sink]),
            }
            if namespace == SOURCE {
                self.token_written(triplet, seen);
            }
        } else if namespace == SOURCE
            && let Some(triplet) = key.strip_prefix("authority:").and_then(|name| self.by_name.get(name).copied())
        {
            let record: Value = serde_json::from_slice(&value).unwrap_or(Value::Null);
            let reads = match (record["read"].as_str(), record["connected_account_id"].as_str()) {
                (Some("target"), account) => {
                    let account = account.unwrap_or_default().to_owned();
                    self.composio_serves(&account, triplet);
                    self.ledger_closed(triplet, &Sink::ALL);
                    Reads::Target { account }
                }
                _ => Reads::Source,
            };
            self.authority_written(triplet, Some(reads));
        }
        self.cloudflare.namespaces[namespace].insert(key, Entry { value, metadata, expiration, written_at: now });
    }

    /// A delete over REST. An absent key is fine.
    pub(super) fn kv_delete(&mut self, namespace: usize, key: &str) {
        self.ledger.counts.kv_writes += 1;
        if let Some(triplet) = key.strip_prefix("tokens:").and_then(|name| self.by_name.get(name).copied()) {
            self.ledger_closed(triplet, &[if namespace == SOURCE { Sink::KvSource } else { Sink::KvTarget }]);
            if namespace == SOURCE {
                self.token_written(triplet, None);
            }
        } else if namespace == SOURCE
            && let Some(triplet) = key.strip_prefix("authority:").and_then(|name| self.by_name.get(name).copied())
        {
            self.authority_written(triplet, None);
        }
        self.cloudflare.namespaces[namespace].remove(key);
    }

    /// A put of a token from inside the Worker (TokenManager, webhook route): no metadata, so it
    /// wipes what the mirror had put there. `false`: the key was written less than a second ago.
    pub(super) fn kv_put_token_from_worker(&mut self, triplet: usize, token: TokenRef, sink: Sink, by: &str) -> bool {
        let now = self.now();
        let key = format!("tokens:{}", self.triplets[triplet].name);
        let too_soon = |e: &Entry| now.since(e.written_at) < KEY_WRITE_EVERY_MS;
        if self.cloudflare.namespaces[SOURCE].get(&key).is_some_and(too_soon) {
            return false;
        }
        let (value, seen) = self.worker_entry(triplet, token);
        self.kv_book_from_worker(triplet, sink, value, Some(seen), by);
        true
    }

    /// A put from inside the Worker, with its entry in the books. `seen` is what the Worker makes
    /// of the value.
    fn kv_book_from_worker(&mut self, triplet: usize, sink: Sink, value: Vec<u8>, seen: Option<SeenToken>, by: &str) {
        let key = format!("tokens:{}", self.triplets[triplet].name);
        if let Some(seen) = &seen {
            self.ledger_foreign_write(triplet, sink, &seen.access_token, by);
        }
        self.token_written(triplet, seen);
        let entry = Entry { value, metadata: None, expiration: None, written_at: self.now() };
        self.cloudflare.namespaces[SOURCE].insert(key, entry);
    }

    /// Compares the source namespace of another runtime with the books. What differs was written
    /// past the API, so the Worker wrote it; what is gone was removed by it.
    pub(super) fn kv_follow_worker(&mut self, found: &BTreeMap<String, Vec<u8>>) {
        for triplet in 0..self.triplets.len() {
            let key = format!("tokens:{}", self.triplets[triplet].name);
            let booked = self.cloudflare.namespaces[SOURCE].get(&key).map(|entry| &entry.value);
            match found.get(&key) {
                value if value == booked => {}
                Some(value) => {
                    let (value, seen) = (value.clone(), self.read_entry(value));
                    self.kv_book_from_worker(triplet, Sink::KvSource, value, seen, "the Worker");
                }
                None => {
                    self.token_written(triplet, None);
                    self.cloudflare.namespaces[SOURCE].remove(&key);
                }
            }
        }
    }

    /// Books what another runtime answered to a call on Cloudflare's API.
    pub(super) fn cloudflare_follow(&mut self, call: &Call, reply: &Reply) {
        if reply.value()["success"] != true {
            return;
        }
        let route = call.route();
        let route = route.strip_prefix(&["client", "v4"]).unwrap_or(&route);
        let route = if let ["accounts", _, rest @ ..] = route { rest } else { route };
        match route {
            ["storage", "kv", "namespaces", id, rest @ ..] => {
                let keys = self.keys_ref();
                let namespace = [&keys.kv_source, &keys.kv_target].iter().position(|known| known == id);
                if let Some(namespace) = namespace {
                    self.kv_follow(call, namespace, rest, reply);
                }
            }
            ["d1", "database", _, "raw" | "query"] => {
                self.d1_query(call, true);
            }
            _ => {}
        }
    }

    /// The entry that was in KV when the world began.
    pub(super) fn kv_seed_token(&mut self, triplet: usize, token: TokenRef) {
        let key = format!("tokens:{}", self.triplets[triplet].name);
        let (value, seen) = self.worker_entry(triplet, token);
        self.triplets[triplet].serving.seed(seen);
        let written_at = token.minted_at;
        self.cloudflare.namespaces[SOURCE].insert(key, Entry { value, metadata: None, expiration: None, written_at });
    }

    /// ADR-038's value: the token, its expiry, type and scopes, and the connection's own values.
    fn worker_entry(&self, triplet: usize, token: TokenRef) -> (Vec<u8>, SeenToken) {
        let answer = self.providers.answer(token, false);
        let row = &self.rows[self.triplets[triplet].row];
        let mut value = self.providers.users[row.user].config.clone();
        value.insert("access_token".into(), answer.access_token.as_str().into());
        value.insert("token_type".into(), answer.token_type.into());
        value.insert("scope".into(), answer.scope.into());
        if let Some(at) = token.expires_at {
            value.insert("expires_at".into(), at.to_rfc3339().into());
        }
        let seen = SeenToken { access_token: answer.access_token, expires_at: token.expires_at, token: Some(token) };
        (Value::Object(value).to_string().into_bytes(), seen)
    }

    /// What the Worker makes of a value; `None` when it holds no token.
    fn read_entry(&self, value: &[u8]) -> Option<SeenToken> {
        let entry = crate::domain::token::KvEntry::from_json(value).ok()?;
        let access_token = entry.access_token.expose().to_owned();
        let token = self.providers.find(&access_token);
        Some(SeenToken { access_token, expires_at: entry.expires_at, token })
    }
}
