//! Requests within the limits of the APIs: a comparison never asks faster than its share allows.
//!
//! The figures are those of [`crate::domain::budget`]. The clients' own budget refuses what is too
//! much; this one makes the thread that reads a side wait for its slot, so that nothing is refused.
//! Beside a state that a shim may work on, slots come from that state: all comparisons share a part
//! of each limit that the shim leaves alone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::settle::Clock;
use crate::domain::budget::{Lane, Limit, Pace};
use crate::domain::time::Timestamp;
use crate::plan::policy::RatePolicy;
use crate::ports::Api;
use crate::store::Store;

const NANOS_PER_MS: i128 = 1_000_000;

/// The slots of one API: at most a burst at once, then one after each interval.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slots {
    burst: i128,
    every_ns: i128,
    /// When a whole burst may go again, ns.
    full_at: i128,
}

impl Slots {
    fn new(pace: Pace) -> Self {
        let Pace { burst, every_ns } = pace;
        Self { burst: burst.into(), every_ns: every_ns.into(), full_at: i128::MIN }
    }

    /// Takes the next slot: the request may go out at this time.
    fn take(&mut self, now: Timestamp) -> Timestamp {
        let now = i128::from(now.millis()) * NANOS_PER_MS;
        let full_at = self.full_at.max(now);
        let at = now.max(full_at - (self.burst - 1) * self.every_ns);
        self.full_at = full_at + self.every_ns;
        let ms = (at + NANOS_PER_MS - 1) / NANOS_PER_MS;
        Timestamp::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))
    }

    /// How long this many requests take when none went before, in milliseconds.
    fn lasts_ms(&self, requests: u64) -> i64 {
        let beyond = (i128::from(requests) - self.burst).max(0);
        i64::try_from(beyond * self.every_ns / NANOS_PER_MS).unwrap_or(i64::MAX)
    }
}

/// Where slots come from.
enum Slotted {
    /// Nobody else of ours is there: the ordinary share, by API or host.
    Alone(Mutex<BTreeMap<String, Slots>>),
    /// A shim may run on this state: the share of comparisons, kept in the state.
    Beside(Arc<Store>, tokio::runtime::Handle),
}

/// The paces of all APIs and what was spent.
pub struct Budget {
    clock: Arc<dyn Clock>,
    limits: BTreeMap<Api, Limit>,
    slotted: Slotted,
    /// Nothing goes to an API before: it said so. Milliseconds since the epoch.
    held_until: BTreeMap<Api, AtomicI64>,
    spent: BTreeMap<Api, AtomicU64>,
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget").field("spent", &self.spent()).finish_non_exhaustive()
    }
}

impl Budget {
    /// The share of each limit that the policy does not reserve for live traffic.
    pub fn new(rates: &RatePolicy, clock: Arc<dyn Clock>) -> Self {
        Self::of(rates, clock, Slotted::Alone(Mutex::default()))
    }

    /// The share of each limit that a shim leaves to comparisons, together with all others that
    /// compare beside this state. `handle` must belong to a runtime that runs by itself.
    pub fn beside(
        rates: &RatePolicy,
        clock: Arc<dyn Clock>,
        store: Arc<Store>,
        handle: tokio::runtime::Handle,
    ) -> Self {
        Self::of(rates, clock, Slotted::Beside(store, handle))
    }

    fn of(rates: &RatePolicy, clock: Arc<dyn Clock>, slotted: Slotted) -> Self {
        Self {
            clock,
            limits: rates.limits(),
            slotted,
            held_until: Api::ALL.into_iter().map(|api| (api, AtomicI64::new(0))).collect(),
            spent: Api::ALL.into_iter().map(|api| (api, AtomicU64::new(0))).collect(),
        }
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    fn pace(&self, api: Api) -> Pace {
        match self.slotted {
            Slotted::Alone(_) => self.limits[&api].pace(Lane::Ordinary),
            Slotted::Beside(..) => self.limits[&api].comparisons_pace(),
        }
    }

    /// Waits for the next `count` slots, at least 1, and counts as many requests. `host` where each
    /// host of an API has limits of its own.
    pub(super) fn take(&self, api: Api, host: Option<&str>, count: u64) {
        self.clock.wait_until(self.slots(api, host, count.max(1)));
        self.clock.wait_until(Timestamp::from_millis(self.held_until[&api].load(Ordering::Relaxed)));
        self.spent[&api].fetch_add(count.max(1), Ordering::Relaxed);
    }

    /// Counts requests that went out before anybody knew of them, and lets the next one wait for them.
    pub(super) fn add(&self, api: Api, count: u64) {
        if count > 0 {
            self.slots(api, None, count);
            self.spent[&api].fetch_add(count, Ordering::Relaxed);
        }
    }

    fn slots(&self, api: Api, host: Option<&str>, count: u64) -> Timestamp {
        let (pace, now) = (self.pace(api), self.clock.now());
        let name = host.map_or_else(|| api.name().to_owned(), |host| format!("{}:{host}", api.name()));
        let alone = |slots: &Mutex<BTreeMap<String, Slots>>| {
            let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
            let slots = slots.entry(name.clone()).or_insert_with(|| Slots::new(pace));
            (0..count).map(|_| slots.take(now)).last().unwrap_or(now)
        };
        match &self.slotted {
            Slotted::Alone(slots) => alone(slots),
            Slotted::Beside(store, handle) => {
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                // Two windows: more than any number of comparisons side by side can be ahead.
                let ahead_max_ms = self.limits[&api].window_ms.saturating_mul(2);
                let taken = handle.block_on(store.take_slots(&name, pace, count, now, ahead_max_ms));
                taken.unwrap_or_else(|error| {
                    // The comparison ends with the same error when it is recorded; until then it is slow.
                    tracing::warn!("the pace cannot be shared with other comparisons: {error}");
                    now.plus_ms(i64::try_from(pace.every_ns / 1_000_000).unwrap_or(i64::MAX).saturating_add(1))
                })
            }
        }
    }

    /// Lets nothing out for a while.
    pub(super) fn hold(&self, api: Api, ms: i64) {
        self.held_until[&api].fetch_max(self.clock.now().plus_ms(ms).millis(), Ordering::Relaxed);
    }

    /// Requests so far, by API; those without any are left out.
    pub fn spent(&self) -> BTreeMap<Api, u64> {
        let spent = self.spent.iter().map(|(api, n)| (*api, n.load(Ordering::Relaxed)));
        spent.filter(|(_, n)| *n > 0).collect()
    }

    /// How long this many requests to an API take, in milliseconds, when nobody waits for anything else.
    pub fn lasts_ms(&self, api: Api, requests: u64) -> i64 {
        Slots::new(self.pace(api)).lasts_ms(requests)
    }

    /// Requests a second that the share allows in the long run.
    pub fn per_second(&self, api: Api) -> f64 {
        1e9 / self.pace(api).every_ns as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::budget::Limit;

    const WINDOW_MS: i64 = 300_000;

    fn limit(requests: u32, window_ms: i64) -> Limit {
        Limit { requests, window_ms, reserved_share: 0.5, burst_share: 0.25, comparisons_share: 0.0 }
    }

    #[test]
    fn a_share_goes_out_in_a_burst_and_then_evenly() {
        let mut slots = Slots::new(limit(1_200, WINDOW_MS).pace(Lane::Ordinary));
        let now = Timestamp::from_secs(1_000);
        let at: Vec<i64> = (0..152).map(|_| slots.take(now).since(now)).collect();
        assert!(at[..150].iter().all(|at| *at == 0));
        assert_eq!(at[150..], [1_000, 2_000]);
        assert_eq!((slots.lasts_ms(150), slots.lasts_ms(151)), (0, 1_000));
    }

    proptest! {
        #[test]
        fn no_window_ever_holds_more_than_the_share(
            requests in 2u32..400, window_s in 1i64..400, gaps in prop::collection::vec(0i64..5_000, 1..600),
        ) {
            let limit = limit(requests, window_s * 1_000);
            let mut slots = Slots::new(limit.pace(Lane::Ordinary));
            let mut now = Timestamp::from_secs(0);
            let mut sent: Vec<i64> = Vec::new();
            for gap in gaps {
                now = now.plus_ms(gap);
                let at = slots.take(now);
                prop_assert!(at >= now && sent.last().is_none_or(|last| at.millis() >= *last));
                sent.push(at.millis());
                now = at;
            }
            for (n, from) in sent.iter().enumerate() {
                let within = sent[n..].iter().take_while(|at| **at - from < limit.window_ms).count();
                prop_assert!(within <= limit.share(Lane::Ordinary) as usize, "{within}");
            }
        }
    }
}
