//! Requests within the limits of the APIs: a comparison never asks faster than its share allows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::settle::Clock;
use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};
use crate::plan::policy::RatePolicy;
use crate::ports::Api;

/// Cloudflare counts over this window (Cloudflare contract §1.3).
const CLOUDFLARE_WINDOW_MS: i64 = 5 * MINUTE_MS;

/// Whoami calls a minute over all providers. No provider documents less than 60; a consented
/// grant is asked about once.
const PROVIDER_PER_MINUTE: u32 = 120;

/// What part of a window's share may go out at once, before requests are spread.
const BURST_SHARE: u32 = 10;

/// One API's pace (GCRA): at most `burst` requests at once, then one every `interval_ms`. In any
/// window there are at most `burst + window / interval`, which is the share it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    burst: i64,
    interval_ms: i64,
    /// When the bucket would be full again, ms.
    full_at: i64,
    /// Nothing goes out before: the server said so.
    held_until: i64,
}

impl Pace {
    /// `requests` in any `window_ms`.
    fn new(requests: u32, window_ms: i64) -> Self {
        let requests = requests.max(2);
        let burst = (requests / BURST_SHARE).max(1);
        // Rounded up, so that the share is never passed.
        let interval_ms = (window_ms + i64::from(requests - burst) - 1) / i64::from(requests - burst);
        Self { burst: burst.into(), interval_ms, full_at: i64::MIN, held_until: i64::MIN }
    }

    /// Takes the next slot: the request may go out at this time.
    fn take(&mut self, now: Timestamp) -> Timestamp {
        let now = now.millis().max(self.held_until);
        let full_at = self.full_at.max(now);
        let at = now.max(full_at - (self.burst - 1) * self.interval_ms);
        self.full_at = full_at + self.interval_ms;
        Timestamp::from_millis(at)
    }

    /// How long this many requests take from a full bucket, in milliseconds.
    fn lasts_ms(&self, requests: u64) -> i64 {
        let beyond = i64::try_from(requests).unwrap_or(i64::MAX).saturating_sub(self.burst).max(0);
        beyond.saturating_mul(self.interval_ms)
    }
}

/// The paces of all APIs and what was spent.
#[derive(Debug)]
pub struct Budget {
    clock: Arc<dyn Clock>,
    paces: BTreeMap<Api, Mutex<Pace>>,
    spent: BTreeMap<Api, AtomicU64>,
}

impl Budget {
    /// The share of each limit that the policy does not reserve for live traffic.
    pub fn new(rates: &RatePolicy, clock: Arc<dyn Clock>) -> Self {
        let share = |limit: u32| (f64::from(limit) * (1.0 - rates.reserved_share)) as u32;
        let paces = [
            (Api::Nango, Pace::new(share(rates.nango()), MINUTE_MS)),
            (Api::Composio, Pace::new(share(rates.composio()), MINUTE_MS)),
            (Api::Cloudflare, Pace::new(share(rates.cloudflare_per_5_minutes), CLOUDFLARE_WINDOW_MS)),
            (Api::Gateway, Pace::new(share(rates.gateway_per_minute), MINUTE_MS)),
            (Api::Provider, Pace::new(PROVIDER_PER_MINUTE, MINUTE_MS)),
        ];
        Self {
            clock,
            paces: paces.into_iter().map(|(api, pace)| (api, Mutex::new(pace))).collect(),
            spent: Api::ALL.into_iter().map(|api| (api, AtomicU64::new(0))).collect(),
        }
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Waits for the next slot and counts one request.
    pub(super) fn take(&self, api: Api) {
        let at = self.with(api, |pace| pace.take(self.clock.now()));
        self.clock.wait_until(at);
        self.spent[&api].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts requests that one call made beyond the first, and lets the next one wait for them.
    pub(super) fn add(&self, api: Api, requests: u64) {
        let now = self.clock.now();
        for _ in 0..requests {
            self.with(api, |pace| pace.take(now));
        }
        self.spent[&api].fetch_add(requests, Ordering::Relaxed);
    }

    /// Lets nothing out for a while.
    pub(super) fn hold(&self, api: Api, ms: i64) {
        let until = self.clock.now().plus_ms(ms).millis();
        self.with(api, |pace| pace.held_until = pace.held_until.max(until));
    }

    fn with<T>(&self, api: Api, act: impl FnOnce(&mut Pace) -> T) -> T {
        act(&mut self.paces[&api].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests so far, by API; those without any are left out.
    pub fn spent(&self) -> BTreeMap<Api, u64> {
        let spent = self.spent.iter().map(|(api, n)| (*api, n.load(Ordering::Relaxed)));
        spent.filter(|(_, n)| *n > 0).collect()
    }

    /// How long this many requests to an API take, in milliseconds, when nobody waits for anything else.
    pub fn lasts_ms(&self, api: Api, requests: u64) -> i64 {
        self.with(api, |pace| pace.lasts_ms(requests))
    }

    /// Requests a second that the share allows in the long run.
    pub fn per_second(&self, api: Api) -> f64 {
        self.with(api, |pace| SECOND_MS as f64 / pace.interval_ms as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_share_goes_out_in_a_burst_and_then_evenly() {
        let mut pace = Pace::new(600, CLOUDFLARE_WINDOW_MS);
        let now = Timestamp::from_secs(1_000);
        let slots: Vec<i64> = (0..62).map(|_| pace.take(now).since(now)).collect();
        assert!(slots[..60].iter().all(|at| *at == 0));
        assert_eq!(slots[60..], [556, 1_112]);
        assert_eq!(pace.lasts_ms(60), 0);
        assert_eq!(pace.lasts_ms(61), 556);
    }

    proptest! {
        #[test]
        fn no_window_ever_holds_more_than_the_share(
            share in 2u32..400, window_s in 1i64..400, gaps in prop::collection::vec(0i64..5_000, 1..600),
        ) {
            let window_ms = window_s * SECOND_MS;
            let mut pace = Pace::new(share, window_ms);
            let mut now = Timestamp::from_secs(0);
            let mut sent: Vec<i64> = Vec::new();
            for gap in gaps {
                now = now.plus_ms(gap);
                let at = pace.take(now);
                prop_assert!(at >= now && sent.last().is_none_or(|last| at.millis() >= *last));
                sent.push(at.millis());
                now = at;
            }
            for (n, from) in sent.iter().enumerate() {
                let within = sent[n..].iter().take_while(|at| **at - from < window_ms).count();
                prop_assert!(within <= share as usize, "{within} of {share}");
            }
        }
    }
}
