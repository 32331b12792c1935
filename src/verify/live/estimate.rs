//! What a comparison will ask and how long that takes, told before it starts.

use std::collections::BTreeMap;
use std::fmt;

use super::{Budget, Depth};
use crate::domain::time::format_duration_ms;
use crate::ports::Api;

/// Keys in one page of a KV listing, connections of Nango's, accounts of Composio's.
pub(super) const KV_PAGE: u64 = 1_000;
pub(super) const NANGO_PAGE: u64 = 2_000;
pub(super) const COMPOSIO_PAGE: u64 = 50;

/// Keys in one bulk read.
const BULK: u64 = 100;

/// What a side is, as far as its cost goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideKind {
    Dump,
    Kv,
    Nango,
    Composio,
    Journal,
}

/// The least that the comparison can ask, when nothing differs and no answer fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Keys a side that it was made for.
    pub keys: u64,
    pub requests: BTreeMap<Api, u64>,
    /// From the first request to the last, in milliseconds.
    pub lasts_ms: i64,
    /// How long a difference must stand until it counts, in milliseconds.
    pub settle_ms: i64,
}

/// Plans the requests for two sides of about `keys` keys.
pub fn estimate(
    sides: [SideKind; 2],
    depth: Depth,
    identity: bool,
    keys: u64,
    settle_ms: i64,
    budget: &Budget,
) -> Estimate {
    let mut requests: BTreeMap<Api, u64> = BTreeMap::new();
    let mut add = |api, n: u64| *requests.entry(api).or_default() += n;
    let deep = match depth {
        Depth::Keys => 0,
        Depth::Sampled(sample) => (keys * u64::from(sample.per_million)).div_ceil(1_000_000),
        Depth::Full => keys,
    };
    for side in sides {
        match side {
            SideKind::Dump | SideKind::Journal => {}
            SideKind::Kv => {
                add(Api::Cloudflare, keys.div_ceil(KV_PAGE).max(1) + deep.div_ceil(BULK));
                if identity {
                    add(Api::Provider, deep);
                }
            }
            SideKind::Nango => add(Api::Nango, keys.div_ceil(NANGO_PAGE).max(1) + 1),
            SideKind::Composio => {
                // A listing of several pages is read until two readings agree.
                let pages = keys.div_ceil(COMPOSIO_PAGE).max(1);
                add(Api::Composio, if pages > 1 { 2 * pages } else { 1 });
                if identity {
                    add(Api::Composio, keys);
                }
            }
        }
    }
    requests.retain(|_, n| *n > 0);
    let lasts_ms = requests.iter().map(|(api, n)| budget.lasts_ms(*api, *n)).max().unwrap_or(0);
    Estimate { keys, requests, lasts_ms, settle_ms }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked: Vec<String> = self.requests.iter().map(|(api, n)| format!("{n} to {}", api.name())).collect();
        let asked = if asked.is_empty() { "none".to_owned() } else { asked.join(", ") };
        let lasts = if self.lasts_ms < 1_000 {
            "seconds".to_owned()
        } else {
            format_duration_ms(self.lasts_ms / 1_000 * 1_000)
        };
        write!(
            f,
            "about {} keys a side; requests: {asked}; at our share of the limits that takes {lasts}, and {} more if something differs",
            self.keys,
            format_duration_ms(self.settle_ms),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Sample;
    use super::*;
    use crate::domain::time::Timestamp;
    use crate::plan::policy::RatePolicy;
    use crate::verify::Clock;

    #[derive(Debug)]
    struct Still;

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp::from_secs(0)
        }
        fn wait_until(&self, _: Timestamp) {}
    }

    #[test]
    fn the_cost_of_a_comparison_is_known_before_it_starts() {
        let budget = Budget::new(&RatePolicy::default(), Arc::new(Still));
        let kv = [SideKind::Kv, SideKind::Kv];
        let requests = |depth| estimate(kv, depth, false, 100_000, 0, &budget).requests[&Api::Cloudflare];
        assert_eq!(requests(Depth::Keys), 200);
        assert_eq!(requests(Depth::Sampled(Sample { per_million: 10_000, seed: 1 })), 220);
        assert_eq!(requests(Depth::Full), 2_200);
        // 600 of 1,200 in 5 minutes: 150 at once, then one every second.
        assert_eq!(estimate(kv, Depth::Keys, false, 100_000, 0, &budget).lasts_ms, 50 * 1_000);
        let small = estimate([SideKind::Journal, SideKind::Composio], Depth::Full, true, 24, 150_000, &budget);
        assert_eq!(small.requests, BTreeMap::from([(Api::Composio, 25)]));
    }
}
