//! Requests within the limits of the APIs: a comparison never asks faster than its share allows.
//!
//! The figures are those of [`crate::domain::budget`]. The clients' own budget refuses what is too
//! much; this one makes the thread that reads a side wait for its slot, so that nothing is refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::settle::Clock;
use crate::domain::budget::{Lane, Pace};
use crate::domain::time::Timestamp;
use crate::plan::policy::RatePolicy;
use crate::ports::Api;

const NANOS_PER_MS: i128 = 1_000_000;

/// The slots of one API: at most a burst at once, then one after each interval.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slots {
    burst: i128,
    every_ns: i128,
    /// When a whole burst may go again, ns.
    full_at: i128,
    /// Nothing goes out before: the server said so.
    held_until: i128,
}

impl Slots {
    fn new(pace: Pace) -> Self {
        let Pace { burst, every_ns } = pace;
        Self { burst: burst.into(), every_ns: every_ns.into(), full_at: i128::MIN, held_until: i128::MIN }
    }

    /// Takes the next slot: the request may go out at this time.
    fn take(&mut self, now: Timestamp) -> Timestamp {
        let now = (i128::from(now.millis()) * NANOS_PER_MS).max(self.held_until);
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

/// The paces of all APIs and what was spent.
#[derive(Debug)]
pub struct Budget {
    clock: Arc<dyn Clock>,
    slots: BTreeMap<Api, Mutex<Slots>>,
    spent: BTreeMap<Api, AtomicU64>,
}

impl Budget {
    /// The share of each limit that the policy does not reserve for live traffic.
    pub fn new(rates: &RatePolicy, clock: Arc<dyn Clock>) -> Self {
        let slots = rates.limits().into_iter().map(|(api, limit)| (api, limit.pace(Lane::Ordinary)));
        Self {
            clock,
            slots: slots.map(|(api, pace)| (api, Mutex::new(Slots::new(pace)))).collect(),
            spent: Api::ALL.into_iter().map(|api| (api, AtomicU64::new(0))).collect(),
        }
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Waits for the next slot and counts one request.
    pub(super) fn take(&self, api: Api) {
        let at = self.with(api, |slots| slots.take(self.clock.now()));
        self.clock.wait_until(at);
        self.spent[&api].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts requests that one call made beyond the first, and lets the next one wait for them.
    pub(super) fn add(&self, api: Api, requests: u64) {
        let now = self.clock.now();
        for _ in 0..requests {
            self.with(api, |slots| slots.take(now));
        }
        self.spent[&api].fetch_add(requests, Ordering::Relaxed);
    }

    /// Lets nothing out for a while.
    pub(super) fn hold(&self, api: Api, ms: i64) {
        let until = i128::from(self.clock.now().plus_ms(ms).millis()) * NANOS_PER_MS;
        self.with(api, |slots| slots.held_until = slots.held_until.max(until));
    }

    fn with<T>(&self, api: Api, act: impl FnOnce(&mut Slots) -> T) -> T {
        act(&mut self.slots[&api].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests so far, by API; those without any are left out.
    pub fn spent(&self) -> BTreeMap<Api, u64> {
        let spent = self.spent.iter().map(|(api, n)| (*api, n.load(Ordering::Relaxed)));
        spent.filter(|(_, n)| *n > 0).collect()
    }

    /// How long this many requests to an API take, in milliseconds, when nobody waits for anything else.
    pub fn lasts_ms(&self, api: Api, requests: u64) -> i64 {
        self.with(api, |slots| slots.lasts_ms(requests))
    }

    /// Requests a second that the share allows in the long run.
    pub fn per_second(&self, api: Api) -> f64 {
        self.with(api, |slots| 1e9 / slots.every_ns as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::budget::Limit;

    const WINDOW_MS: i64 = 300_000;

    fn limit(requests: u32, window_ms: i64) -> Limit {
        Limit { requests, window_ms, reserved_share: 0.5, burst_share: 0.25 }
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
