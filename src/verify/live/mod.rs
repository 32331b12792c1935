//! Sides that are asked rather than read: KV namespaces, the two custodians, the journal.
//!
//! Each is a [`Source`](super::Source) that hands over the same entry lines as a dump. What they
//! hold are types that can only read: KV through [`KvInspect`](crate::ports::KvInspect), Nango
//! through its lists (never `GET /connections/{id}`, which refreshes), Composio through its lists
//! and, when identities are asked for, through a whoami that the proxy carries.
//!
//! A side blocks its own thread while it waits for an answer or for its share of the rate limit;
//! time is a [`Clock`](super::Clock), so a rehearsal can run the same code in virtual time.

mod budget;
mod custodian;
mod estimate;
mod journal;
mod kv;
mod whoami;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::budget::Budget;
pub use self::custodian::{composio_side, nango_side};
pub use self::estimate::{Estimate, SideKind, estimate};
pub use self::journal::JournalSide;
pub use self::kv::{KvSide, KvSideOptions};
pub use self::whoami::{Subject, Whoami};
use super::compare::UpstreamIdentity;
use super::side::Halt;
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::ports::{Api, ApiError, ApiErrorKind, ApiResult};

/// How deep live sides are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Keys and metadata: list calls only, no secret is read.
    Keys,
    /// Keys and metadata of all, values of some.
    Sampled,
    /// The value of every key.
    Full,
}

impl Level {
    pub const ALL: [Self; 3] = [Self::Keys, Self::Sampled, Self::Full];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Sampled => "sampled",
            Self::Full => "full",
        }
    }
}

/// Which keys a sample takes: the same ones on both sides and in a resumed run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Keys in a million.
    pub per_million: u32,
    /// Drawn anew for each run, so that runs together see everything.
    pub seed: u64,
}

impl Sample {
    pub fn takes(&self, key: &str) -> bool {
        let mut hasher = Sha256::new_with_prefix(b"sample");
        hasher.update(self.seed.to_be_bytes());
        hasher.update(key.as_bytes());
        let digest: [u8; 32] = hasher.finalize().into();
        let [a, b, c, d, ..] = digest;
        let place = (u64::from(u32::from_be_bytes([a, b, c, d])) * 1_000_000) >> 32;
        place < u64::from(self.per_million)
    }
}

/// How much of a side is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    Keys,
    Sampled(Sample),
    Full,
}

impl Depth {
    fn is_deep(self, key: &str) -> bool {
        match self {
            Self::Keys => false,
            Self::Sampled(sample) => sample.takes(key),
            Self::Full => true,
        }
    }
}

/// What was asked for when a side is live, beside its name: a resumed run asks the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveTask {
    pub level: Level,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sample: Option<Sample>,
    pub identity: bool,
    /// What does not move is compared too.
    pub retained: bool,
    /// Names the run in the evidence.
    pub run: String,
    pub began_at: Timestamp,
    /// The state that says what belongs to the cutover, and the file of its key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub catalogue: Option<String>,
}

impl LiveTask {
    pub fn depth(&self) -> Depth {
        match (self.level, self.sample) {
            (Level::Keys, _) | (Level::Sampled, None) => Depth::Keys,
            (Level::Sampled, Some(sample)) => Depth::Sampled(sample),
            (Level::Full, _) => Depth::Full,
        }
    }
}

/// How often a request is repeated that may succeed later.
const TRIES_MAX: u32 = 6;

/// The first pause before a repetition; it doubles.
const PAUSE_MS: i64 = SECOND_MS;

/// Asks one question at a time, within the budget, and again when that may help.
#[derive(Clone, Debug)]
pub struct Caller {
    handle: tokio::runtime::Handle,
    budget: Arc<Budget>,
}

impl Caller {
    /// `handle` must belong to a runtime that runs by itself: sides wait for it on their own threads.
    pub fn new(handle: tokio::runtime::Handle, budget: Arc<Budget>) -> Self {
        Self { handle, budget }
    }

    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Runs a future that is no request.
    pub(in crate::verify) fn wait_for<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }

    fn call<T, F: Future<Output = ApiResult<T>>>(&self, api: Api, ask: impl Fn() -> F) -> ApiResult<T> {
        self.call_at(api, None, 1, ask)
    }

    /// As [`Self::call`]; `requests` slots are waited for, of `host` where hosts count for themselves.
    fn call_at<T, F: Future<Output = ApiResult<T>>>(
        &self,
        api: Api,
        host: Option<&str>,
        requests: u64,
        ask: impl Fn() -> F,
    ) -> ApiResult<T> {
        for tried in 0.. {
            self.budget.take(api, host, requests);
            let error = match self.handle.block_on(ask()) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if tried + 1 >= TRIES_MAX || !error.is_transient() {
                return Err(error);
            }
            let asked_ms = match error.kind {
                ApiErrorKind::RateLimited { retry_after_ms } => retry_after_ms,
                _ => None,
            };
            tracing::info!("{error}; trying again");
            // Everything on this API waits: another request would be refused just the same.
            self.budget.hold(api, asked_ms.unwrap_or(PAUSE_MS << tried));
        }
        unreachable!("the loop ends by returning")
    }

    /// As [`Self::call`], for a call that turns pages by itself: `pages` tells how many it turns for so
    /// many rows. It waits for as many slots as the `known` rows need.
    fn call_paged<T, F: Future<Output = ApiResult<Vec<T>>>>(
        &self,
        api: Api,
        ask: impl Fn() -> F,
        known: usize,
        pages: impl Fn(usize) -> u64,
    ) -> ApiResult<Vec<T>> {
        let expected = pages(known).max(1);
        let answer = self.call_at(api, None, expected, ask)?;
        self.budget.add(api, pages(answer.len()).saturating_sub(expected));
        Ok(answer)
    }
}

fn halted(error: &ApiError) -> Halt {
    Halt::new(error.to_string())
}

/// An entry line of a live side.
#[derive(Default, Serialize)]
struct Line<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<i64>,
    /// The side tells how the credential is and does not show the entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    custodian: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<UpstreamIdentity>,
    /// Which connection feeds the triplet.
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<String>,
}

impl Line<'_> {
    fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an entry line has only string keys and goes into memory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_takes_its_share_and_the_same_keys_each_time() {
        let sample = Sample { per_million: 50_000, seed: 7 };
        let taken = |sample: Sample| {
            (0..20_000).filter(|n| sample.takes(&format!("tokens:t{n}:google:default"))).collect::<Vec<_>>()
        };
        assert!((900..1_100).contains(&taken(sample).len()));
        assert_eq!(taken(sample), taken(sample));
        assert_ne!(taken(sample), taken(Sample { seed: 8, ..sample }));
        assert_eq!(taken(Sample { per_million: 1_000_000, seed: 7 }).len(), 20_000);
    }
}
