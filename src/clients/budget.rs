//! The request budget of each API: a GCRA per lane that every request passes before it is sent.
//!
//! It knows no clock of its own: time is what its caller says, so it holds in virtual time as it
//! does in real time. What vendors say about their own counters only ever makes it stricter.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

use super::quota::Told;
use crate::domain::budget::{Allowance, BudgetState, Lane, Limit, Pace};
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::ports::Api;

const NANOS_PER_MS: u64 = 1_000_000;

/// How long nothing goes to an API after a 429 that names no time. Limits of a whole account
/// always name one; a bare 429 is one key written too often, or a limiter before the API, and
/// the duty that met it backs off further by itself.
const BARE_429_PAUSE_MS: i64 = 5 * SECOND_MS;

/// How long the lanes stay shut when a vendor says that nothing is left, but not until when.
const EMPTY_PAUSE_MS: i64 = 5 * SECOND_MS;

/// Hosts with a budget of their own. There are as many as the catalogue has providers.
const HOSTS_MAX: usize = 256;

/// The budgets of all APIs. Without a limit an API's requests all pass.
#[derive(Default)]
pub(super) struct Budgets(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    time: Time,
    limits: BTreeMap<Api, Limit>,
    /// By API and, where each host counts for itself, by host.
    budgets: BTreeMap<(Api, String), Budget>,
}

/// Time as the limiters count it: from 0, and never back.
///
/// A wall clock that is set back would otherwise freeze every budget until it has caught up.
#[derive(Default)]
struct Time {
    hand: Hand,
    last: Option<Timestamp>,
}

impl Time {
    /// Moves on to `now` and returns the time since the first call, nanoseconds.
    fn advance(&mut self, now: Timestamp) -> u64 {
        let passed_ms = self.last.map_or(0, |last| now.since(last).max(0));
        self.last = Some(now);
        let passed_ns = passed_ms.unsigned_abs().saturating_mul(NANOS_PER_MS);
        self.hand.0.fetch_add(passed_ns, Ordering::Relaxed) + passed_ns
    }
}

/// The clock of the limiters: shows what [`Time`] set.
#[derive(Clone, Default)]
struct Hand(Arc<AtomicU64>);

impl Clock for Hand {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.load(Ordering::Relaxed))
    }
}

/// When the next request of a steady stream would be due, shared with the limiter so that it can
/// be looked at without spending and moved on when a vendor asks for less.
#[derive(Clone, Default)]
struct Due(Arc<InMemoryState>);

impl StateStore for Due {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, key: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.measure_and_replace(key, f)
    }
}

impl Due {
    fn read_ns(&self) -> u64 {
        let look = |at: Option<Nanos>| Err::<((), Nanos), u64>(at.map_or(0, Nanos::as_u64));
        match self.measure_and_replace(&NotKeyed::NonKey, look) {
            Ok(()) => 0,
            Err(at) => at,
        }
    }

    fn raise_to_ns(&self, least: u64) {
        let raise = |at: Option<Nanos>| Ok::<_, Infallible>(((), Nanos::new(at.map_or(0, Nanos::as_u64).max(least))));
        match self.measure_and_replace(&NotKeyed::NonKey, raise) {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }
}

/// One lane of one budget.
struct Meter {
    limiter: RateLimiter<NotKeyed, Due, Hand, NoOpMiddleware<Nanos>>,
    due: Due,
    pace: Pace,
    /// How far ahead of now `due` may be for one more request to go.
    tolerance_ns: u64,
    /// When the limiter began to count, on the hand.
    start_ns: u64,
}

impl Meter {
    fn new(pace: Pace, hand: &Hand) -> Self {
        let burst = NonZeroU32::new(pace.burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(Duration::from_nanos(pace.every_ns.max(1)))
            .expect("a period of at least a nanosecond is a quota")
            .allow_burst(burst);
        let due = Due::default();
        Self {
            limiter: RateLimiter::new(quota, due.clone(), hand.clone()),
            due,
            pace,
            tolerance_ns: pace.every_ns.saturating_mul(u64::from(pace.burst - 1)),
            start_ns: hand.now().as_u64(),
        }
    }

    /// Nanoseconds from `now_ns` until one request may go, 0 when one may go now.
    fn wait_ns(&self, now_ns: u64) -> u64 {
        let now = now_ns - self.start_ns;
        self.due.read_ns().saturating_sub(self.tolerance_ns).saturating_sub(now)
    }

    fn spend(&self) {
        // The wait was looked at under the same lock, so this cannot be refused; a refusal would
        // only mean that the request goes uncounted into the other lane's account.
        let _ = self.limiter.check();
    }

    /// Counts a request that did not ask this lane, so that it shows in what is left. The debt is
    /// worked off within a window: long use of the reserve must not shut ordinary work out for ever.
    fn count(&self, now_ns: u64, window_ms: i64) {
        let now = now_ns - self.start_ns;
        let window_ns = window_ms.unsigned_abs().saturating_mul(NANOS_PER_MS);
        let most = now.saturating_add(self.tolerance_ns).saturating_add(window_ns);
        let next = self.due.read_ns().max(now).saturating_add(self.pace.every_ns);
        self.due.raise_to_ns(next.min(most));
    }

    /// Lets no more than `left` requests go until `until_ms` from now.
    fn tighten(&self, now_ns: u64, left: u64, until_ms: i64) {
        let now = now_ns - self.start_ns;
        let end = now.saturating_add(until_ms.max(0).unsigned_abs().saturating_mul(NANOS_PER_MS));
        let spent = left.saturating_mul(self.pace.every_ns);
        // The n-th request from here goes when `due + (n - 1) * every <= time + tolerance`.
        self.due.raise_to_ns(end.saturating_add(self.tolerance_ns).saturating_add(1).saturating_sub(spent));
    }

    fn allowance(&self, now_ns: u64, now: Timestamp) -> Allowance {
        let wait_ns = self.wait_ns(now_ns);
        let ahead = self.due.read_ns().saturating_sub(now_ns - self.start_ns);
        let count = match wait_ns {
            0 => (self.tolerance_ns - ahead.min(self.tolerance_ns)) / self.pace.every_ns + 1,
            _ => 0,
        };
        Allowance { now: u32::try_from(count).unwrap_or(u32::MAX), next_at: now.plus_ms(ceil_ms(wait_ns)) }
    }
}

fn ceil_ms(ns: u64) -> i64 {
    i64::try_from(ns.div_ceil(NANOS_PER_MS)).unwrap_or(i64::MAX)
}

/// What may be sent to one account or host. Every request counts in both lanes; an ordinary one
/// needs room in both, an urgent one only in its own, which is the whole.
struct Budget {
    limit: Limit,
    ordinary: Meter,
    urgent: Meter,
}

impl Budget {
    fn new(limit: Limit, hand: &Hand) -> Self {
        let meter = |lane| Meter::new(limit.pace(lane), hand);
        Self { limit, ordinary: meter(Lane::Ordinary), urgent: meter(Lane::Urgent) }
    }

    fn wait_ns(&self, lane: Lane, now_ns: u64) -> u64 {
        match lane {
            Lane::Ordinary => self.ordinary.wait_ns(now_ns).max(self.urgent.wait_ns(now_ns)),
            Lane::Urgent => self.urgent.wait_ns(now_ns),
        }
    }

    fn allowance(&self, lane: Lane, now_ns: u64, now: Timestamp) -> Allowance {
        let whole = self.urgent.allowance(now_ns, now);
        match lane {
            Lane::Urgent => whole,
            Lane::Ordinary => {
                let share = self.ordinary.allowance(now_ns, now);
                Allowance { now: share.now.min(whole.now), next_at: share.next_at.max(whole.next_at) }
            }
        }
    }
}

impl Inner {
    fn budget(&mut self, api: Api, host: Option<&str>) -> Option<&Budget> {
        let limit = *self.limits.get(&api)?;
        let mut key = (api, host.unwrap_or_default().to_owned());
        if !self.budgets.contains_key(&key) && self.budgets.len() >= HOSTS_MAX {
            // Strangers share one budget, which can only make them slower.
            key.1.clear();
        }
        Some(self.budgets.entry(key).or_insert_with(|| Budget::new(limit, &self.time.hand)))
    }
}

impl Budgets {
    fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Holds the requests to each API to its limit from now on.
    pub fn limit(&self, limits: &BTreeMap<Api, Limit>) {
        self.with(|inner| {
            inner.limits = limits.clone();
            inner.budgets.clear();
        });
    }

    /// Takes one request out of the budget.
    ///
    /// # Errors
    /// The milliseconds until one may go, at least 1; then nothing was taken.
    pub fn spend(&self, api: Api, host: Option<&str>, lane: Lane, now: Timestamp) -> Result<(), i64> {
        self.with(|inner| {
            let now_ns = inner.time.advance(now);
            let Some(budget) = inner.budget(api, host) else { return Ok(()) };
            match budget.wait_ns(lane, now_ns) {
                0 => {
                    budget.urgent.spend();
                    match lane {
                        Lane::Ordinary => budget.ordinary.spend(),
                        Lane::Urgent => budget.ordinary.count(now_ns, budget.limit.window_ms),
                    }
                    Ok(())
                }
                wait_ns => Err(ceil_ms(wait_ns)),
            }
        })
    }

    /// Takes what an answer said about the vendor's own counter. The ordinary lane leaves the
    /// same part of what is left alone as it leaves of the whole.
    pub fn heard(&self, api: Api, host: Option<&str>, told: &[Told], now: Timestamp) {
        if told.is_empty() {
            return;
        }
        self.with(|inner| {
            let now_ns = inner.time.advance(now);
            let Some(budget) = inner.budget(api, host) else { return };
            let window_ms = budget.limit.window_ms;
            for told in told {
                let (left, until_ms) = match *told {
                    Told::Left { requests, reset_ms: Some(ms) } => (requests, ms.clamp(0, window_ms)),
                    Told::Left { requests: 0, reset_ms: None } => (0, EMPTY_PAUSE_MS),
                    Told::Left { requests, reset_ms: None } => (requests, 0),
                    Told::Refused { retry_after_ms } => (0, retry_after_ms.unwrap_or(BARE_429_PAUSE_MS)),
                };
                budget.urgent.tighten(now_ns, left, until_ms);
                let share = left as f64 * (1.0 - budget.limit.reserved_share);
                budget.ordinary.tighten(now_ns, share as u64, until_ms);
            }
        });
    }

    /// How many requests of a lane may go, and when the next.
    pub fn allowance(&self, api: Api, lane: Lane, now: Timestamp) -> Allowance {
        self.with(|inner| {
            let now_ns = inner.time.advance(now);
            inner.budget(api, None).map_or(Allowance::unlimited(now), |budget| budget.allowance(lane, now_ns, now))
        })
    }

    /// What is left of every budget that was used.
    pub fn snapshot(&self, now: Timestamp) -> Vec<BudgetState> {
        self.with(|inner| {
            let now_ns = inner.time.advance(now);
            let state = |((api, host), budget): (&(Api, String), &Budget)| BudgetState {
                api: *api,
                host: (!host.is_empty()).then(|| host.clone()),
                limit: budget.limit.requests,
                window_ms: budget.limit.window_ms,
                ordinary: budget.allowance(Lane::Ordinary, now_ns, now),
                urgent: budget.allowance(Lane::Urgent, now_ns, now),
            };
            inner.budgets.iter().map(state).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Limit =
        Limit { requests: 1_000, window_ms: 60_000, reserved_share: 0.5, burst_share: 0.05, comparisons_share: 0.0 };

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(1_790_000_000_000 + ms)
    }

    fn budgets(limit: Limit) -> Budgets {
        let budgets = Budgets::default();
        budgets.limit(&BTreeMap::from([(Api::Nango, limit)]));
        budgets
    }

    /// Sends as much as goes at each of `times`; returns when each went.
    fn send(budgets: &Budgets, lane: Lane, times: impl Iterator<Item = i64>) -> Vec<i64> {
        let mut sent = Vec::new();
        for ms in times {
            while budgets.spend(Api::Nango, None, lane, at(ms)).is_ok() {
                sent.push(ms);
            }
        }
        sent
    }

    fn most_in_a_window(sent: &[i64], window_ms: i64) -> usize {
        (0..sent.len()).map(|i| sent[i..].partition_point(|ms| *ms <= sent[i] + window_ms)).max().unwrap_or(0)
    }

    #[test]
    fn the_ordinary_lane_leaves_its_reserve_to_the_urgent_one() {
        let budgets = budgets(LIMIT);
        let ordinary = send(&budgets, Lane::Ordinary, (0..600_000).step_by(250));
        assert!(ordinary.len() > 4_400, "the pace is used: {}", ordinary.len());
        assert!(most_in_a_window(&ordinary, 60_000) <= 500);
        let urgent = send(&budgets, Lane::Urgent, (600_000..660_000).step_by(250));
        assert!(urgent.len() > 800, "{}", urgent.len());
    }

    #[test]
    fn urgent_work_counts_against_the_ordinary_share_but_not_for_longer_than_a_window() {
        let budgets = budgets(LIMIT);
        let few = LIMIT.pace(Lane::Ordinary).burst as usize - 5;
        for _ in 0..few {
            budgets.spend(Api::Nango, None, Lane::Urgent, at(0)).unwrap();
        }
        assert_eq!(budgets.allowance(Api::Nango, Lane::Ordinary, at(0)).now, 5);
        send(&budgets, Lane::Urgent, (0..600_000).step_by(250));
        assert!(budgets.allowance(Api::Nango, Lane::Ordinary, at(600_000)).next_at <= at(660_000));
    }

    #[test]
    fn what_is_refused_goes_when_it_was_told_to() {
        let budgets = budgets(LIMIT);
        send(&budgets, Lane::Urgent, 0..1);
        let wait = budgets.spend(Api::Nango, None, Lane::Urgent, at(0)).unwrap_err();
        let allowance = budgets.allowance(Api::Nango, Lane::Urgent, at(0));
        assert_eq!(allowance, Allowance { now: 0, next_at: at(wait) });
        assert!(budgets.spend(Api::Nango, None, Lane::Urgent, at(wait - 1)).is_err());
        assert_eq!(budgets.allowance(Api::Nango, Lane::Urgent, at(wait)).now, 1);
        assert!(budgets.spend(Api::Nango, None, Lane::Urgent, at(wait)).is_ok());
    }

    #[test]
    fn a_429_shuts_both_lanes_until_its_time() {
        let budgets = budgets(LIMIT);
        budgets.heard(Api::Nango, None, &[Told::Refused { retry_after_ms: Some(7_000) }], at(0));
        for lane in [Lane::Ordinary, Lane::Urgent] {
            assert_eq!(budgets.allowance(Api::Nango, lane, at(0)), Allowance { now: 0, next_at: at(7_001) });
        }
        assert!(budgets.spend(Api::Nango, None, Lane::Ordinary, at(7_001)).is_ok());
        let bare = Told::Refused { retry_after_ms: None };
        budgets.heard(Api::Nango, None, &[bare], at(8_000));
        assert_eq!(budgets.allowance(Api::Nango, Lane::Urgent, at(8_000)).next_at, at(13_001));
    }

    #[test]
    fn a_vendors_counter_makes_it_stricter_and_never_laxer() {
        let budgets = budgets(LIMIT);
        let told = |requests, reset_ms| [Told::Left { requests, reset_ms }];
        budgets.heard(Api::Nango, None, &told(40, Some(30_000)), at(0));
        let sent = send(&budgets, Lane::Urgent, (0..=30_000).step_by(100));
        assert_eq!(sent.len(), 40, "as many as it said until it starts anew");
        let before = budgets.allowance(Api::Nango, Lane::Urgent, at(30_000));
        budgets.heard(Api::Nango, None, &told(1_000, Some(60_000)), at(30_000));
        assert_eq!(budgets.allowance(Api::Nango, Lane::Urgent, at(30_000)), before, "never up");
        // A reset that a skewed clock puts into next week counts as one window.
        budgets.heard(Api::Nango, None, &told(0, Some(i64::MAX)), at(30_000));
        assert_eq!(budgets.allowance(Api::Nango, Lane::Urgent, at(30_000)).next_at, at(90_001));
    }

    #[test]
    fn the_ordinary_lane_takes_only_its_share_of_what_is_left() {
        let budgets = budgets(LIMIT);
        budgets.heard(Api::Nango, None, &[Told::Left { requests: 20, reset_ms: Some(60_000) }], at(0));
        assert_eq!(send(&budgets, Lane::Ordinary, (0..=60_000).step_by(100)).len(), 10);
        assert_eq!(send(&budgets, Lane::Urgent, std::iter::once(60_000)).len(), 10);
    }

    #[test]
    fn a_clock_that_is_set_back_freezes_nothing() {
        let budgets = budgets(LIMIT);
        send(&budgets, Lane::Urgent, std::iter::once(3_600_000));
        assert!(budgets.spend(Api::Nango, None, Lane::Urgent, at(0)).is_err());
        assert!(budgets.spend(Api::Nango, None, Lane::Urgent, at(1_000)).is_ok());
    }

    #[test]
    fn hosts_count_for_themselves_and_an_api_without_a_limit_is_free() {
        let budgets = Budgets::default();
        let one = Limit { requests: 1, ..LIMIT };
        budgets.limit(&BTreeMap::from([(Api::Provider, one)]));
        for host in ["a", "b"] {
            assert!(budgets.spend(Api::Provider, Some(host), Lane::Ordinary, at(0)).is_ok());
            assert!(budgets.spend(Api::Provider, Some(host), Lane::Ordinary, at(0)).is_err());
        }
        assert_eq!(budgets.allowance(Api::Nango, Lane::Ordinary, at(0)), Allowance::unlimited(at(0)));
        let hosts: Vec<_> = budgets.snapshot(at(0)).into_iter().map(|state| state.host).collect();
        assert_eq!(hosts, [Some("a".to_owned()), Some("b".to_owned())]);
    }

    proptest! {
        #[test]
        fn no_window_of_any_alignment_exceeds_the_limit(
            requests in 1u32..400,
            reserved in 0.0f64..0.9,
            steps in proptest::collection::vec((0i64..20_000, 0u32..60, any::<bool>()), 1..60),
        ) {
            let limit = Limit { requests, reserved_share: reserved, ..LIMIT };
            let budgets = budgets(limit);
            let (mut now, mut all, mut ordinary) = (0, Vec::new(), Vec::new());
            for (pause, count, urgent) in steps {
                now += pause;
                let lane = if urgent { Lane::Urgent } else { Lane::Ordinary };
                for _ in 0..count {
                    if budgets.spend(Api::Nango, None, lane, at(now)).is_ok() {
                        all.push(now);
                        if !urgent {
                            ordinary.push(now);
                        }
                    }
                }
            }
            prop_assert!(most_in_a_window(&all, limit.window_ms) <= limit.share(Lane::Urgent) as usize);
            prop_assert!(most_in_a_window(&ordinary, limit.window_ms) <= limit.share(Lane::Ordinary) as usize);
        }
    }
}
