//! How many requests an outside system takes, and how many of them are ours to send.
//!
//! Vendors count per account or organisation, live traffic included. So each API has two lanes:
//! ordinary work stays within the share that live traffic leaves, and only what keeps a served
//! token alive may use the rest. No lane can pass the vendor's limit in any window, however the
//! vendor aligns it.

use super::api::Api;
use super::time::Timestamp;

/// Part of a limit that no lane uses: requests arrive closer together than they were sent, and
/// other processes of ours run beside this one.
const MARGIN: f64 = 0.05;

const NANOS_PER_MS: u64 = 1_000_000;

/// What a vendor allows, and how we divide it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Requests in one window, at least 1.
    pub requests: u32,
    /// Length of the window, milliseconds, at least 1.
    pub window_ms: i64,
    /// Part of `requests` that only the urgent lane may touch, 0 to below 1.
    pub reserved_share: f64,
    /// Part of a lane's requests that may go at one instant, above 0 and up to 0.25.
    pub burst_share: f64,
    /// Part of `requests` that no lane touches: comparisons beside a running shim have it, 0 to below 1.
    pub comparisons_share: f64,
}

/// Who may use what of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Listings, checks, steps of a cutover: what can wait.
    Ordinary,
    /// Reads and writes without which a served token would end.
    Urgent,
}

/// A steady pace with room for a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Requests that may go at one instant, at least 1.
    pub burst: u32,
    /// Nanoseconds until one more may go.
    pub every_ns: u64,
}

impl Limit {
    /// Requests in one window that a lane may send.
    pub fn share(&self, lane: Lane) -> u32 {
        let part = match lane {
            Lane::Ordinary => 1.0 - self.reserved_share.max(MARGIN),
            Lane::Urgent => 1.0 - MARGIN,
        };
        self.part(part.min(1.0 - MARGIN - self.comparisons_share))
    }

    fn part(&self, part: f64) -> u32 {
        ((f64::from(self.requests) * part) as u32).max(1)
    }

    /// The pace at which a lane keeps its share in every window of `window_ms`: a full burst, and
    /// then one request each `every_ns`. One more burst is left out, for a process that was
    /// started again inside the window and has forgotten the first.
    pub fn pace(&self, lane: Lane) -> Pace {
        self.pace_of(self.share(lane), self.burst_share)
    }

    /// The pace of all comparisons together, beside both lanes. It outlives the processes that keep it.
    pub fn comparisons_pace(&self) -> Pace {
        self.pace_of(self.part(self.comparisons_share), 0.25)
    }

    fn pace_of(&self, share: u32, burst_share: f64) -> Pace {
        let burst = ((f64::from(share) * burst_share) as u32).max(1);
        let window_ns = self.window_ms.max(1).unsigned_abs() * NANOS_PER_MS;
        let every_ns = match u64::from(share.saturating_sub(2 * burst)) {
            // Less than two bursts in a window: one request a window, wherever it starts.
            0 => window_ns + 1,
            steady => window_ns.div_ceil(steady),
        };
        Pace { burst, every_ns }
    }
}

/// How many requests may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    pub now: u32,
    /// When at least one may go; not after the question's *now* when `now` is more than 0.
    pub next_at: Timestamp,
}

impl Allowance {
    /// Of a system without a limit.
    pub const fn unlimited(now: Timestamp) -> Self {
        Self { now: u32::MAX, next_at: now }
    }
}

/// What is left of one API's budget, for metrics and the dashboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetState {
    pub api: Api,
    /// The provider's host where each has a budget of its own.
    pub host: Option<String>,
    /// What the vendor allows in a window.
    pub limit: u32,
    pub window_ms: i64,
    pub ordinary: Allowance,
    pub urgent: Allowance,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_lanes_divide_a_limit() {
        let nango = Limit {
            requests: 1_000,
            window_ms: 60_000,
            reserved_share: 0.5,
            burst_share: 0.05,
            comparisons_share: 0.0,
        };
        assert_eq!((nango.share(Lane::Ordinary), nango.share(Lane::Urgent)), (500, 950));
        assert_eq!(nango.pace(Lane::Ordinary), Pace { burst: 25, every_ns: 133_333_334 });
        let tiny = Limit { requests: 1, ..nango };
        assert_eq!(tiny.pace(Lane::Urgent), Pace { burst: 1, every_ns: 60_000_000_001 });
        let nothing_reserved = Limit { reserved_share: 0.0, ..nango };
        assert_eq!(nothing_reserved.share(Lane::Ordinary), 950);
        let divided = Limit { comparisons_share: 0.2, ..nango };
        assert_eq!((divided.share(Lane::Ordinary), divided.share(Lane::Urgent)), (500, 750));
        assert_eq!(divided.comparisons_pace(), Pace { burst: 50, every_ns: 600_000_000 });
    }

    proptest! {
        #[test]
        fn no_window_holds_more_than_the_share(
            requests in 20u32..100_000, window_ms in 1i64..600_000, reserved in 0.0f64..0.99, burst in 0.001f64..0.25,
            comparisons in 0.05f64..0.5,
        ) {
            let limit = Limit {
                requests, window_ms, reserved_share: reserved, burst_share: burst, comparisons_share: comparisons,
            };
            let most = |Pace { burst, every_ns }| {
                u64::from(burst) + window_ms.unsigned_abs() * NANOS_PER_MS / every_ns
            };
            for lane in [Lane::Ordinary, Lane::Urgent] {
                prop_assert!(most(limit.pace(lane)) <= u64::from(limit.share(lane)));
                // Whatever they do at the same time, the account's limit holds.
                prop_assert!(most(limit.pace(lane)) + most(limit.comparisons_pace()) <= u64::from(requests));
            }
        }

        #[test]
        fn a_single_request_a_window_is_the_least(window_ms in 1i64..600_000, requests in 1u32..20) {
            let limit = Limit { requests, window_ms, reserved_share: 0.9, burst_share: 0.25, comparisons_share: 0.5 };
            for pace in [limit.pace(Lane::Ordinary), limit.pace(Lane::Urgent), limit.comparisons_pace()] {
                prop_assert!(pace.burst >= 1 && pace.every_ns > 0);
            }
        }
    }
}
