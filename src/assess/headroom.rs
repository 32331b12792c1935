//! Whether an API takes as many requests as the cutover will send: what it says of its own counter,
//! against what the policy counts on and the plan needs.

use super::{Finding, Severity};
use crate::domain::api::Api;
use crate::domain::budget::Limit;
use crate::domain::time::MINUTE_MS;
use crate::ports::Counter;

const CHECK: &str = "rate-headroom";

/// What one API was found to take and to be asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub api: Api,
    /// What the policy counts on.
    pub limit: Limit,
    pub told: Option<Counter>,
    /// Requests of this assessment.
    pub sent: u64,
    /// What the plan needs in the soak, requests a minute on average.
    pub need: Option<u64>,
}

pub(super) fn judge(load: &Load) -> Finding {
    let Load { api, limit, told, sent, need } = load;
    let name = api.name();
    let counted_on = per_minute(u64::from(limit.requests), limit.window_ms);
    if let Some(told) = told
        && per_minute(told.limit, told.window_ms) < counted_on
    {
        let takes = per_minute(told.limit, told.window_ms);
        return Finding::error(
            CHECK,
            format!("{name} takes {takes} requests a minute, and the policy counts on {counted_on}"),
            format!("set {} in `[rates]` of the policy to what the account has, and plan again", setting(*api)),
        );
    }
    let usable = (counted_on as f64 * (1.0 - limit.reserved_share)) as u64;
    if let Some(need) = need.filter(|need| *need > usable) {
        return Finding::error(
            CHECK,
            format!("the plan needs {need} requests a minute at {name}, and {usable} are left beside live traffic"),
            "a larger tier, fewer connections at a time, or a smaller `reserved_share` in the policy",
        );
    }
    let needed = need.map(|need| format!(", {need} needed in the soak")).unwrap_or_default();
    let Some(Counter { limit: takes, left, window_ms }) = told else {
        return Finding::ok(
            CHECK,
            format!("{name} tells no limit; the policy counts on {counted_on} a minute{needed}"),
        );
    };
    let others = left.map(|left| takes.saturating_sub(left).saturating_sub(*sent));
    let reserved = (*takes as f64 * limit.reserved_share) as u64;
    let left = left.map(|left| format!(", {left} left of this window")).unwrap_or_default();
    let seen = format!("{name} takes {} requests a minute{needed}{left}", per_minute(*takes, *window_ms));
    match others {
        Some(others) if others > reserved => Finding::new(
            CHECK,
            Severity::Warning,
            format!("{seen}; others sent {others}, more than the {reserved} that the policy leaves to them"),
            "find out who, or raise `reserved_share` in the policy",
        ),
        _ => Finding::ok(CHECK, seen),
    }
}

fn per_minute(requests: u64, window_ms: i64) -> u64 {
    let minutes = window_ms.max(1).unsigned_abs();
    u64::try_from(u128::from(requests) * u128::from(MINUTE_MS.unsigned_abs()) / u128::from(minutes)).unwrap_or(u64::MAX)
}

/// Where the policy says what an API takes.
const fn setting(api: Api) -> &'static str {
    match api {
        Api::Nango => "`nango_tier` or `nango_per_minute`",
        Api::Composio => "`composio_tier` or `composio_per_minute`",
        Api::Cloudflare => "`cloudflare_per_5_minutes`",
        Api::Gateway => "`gateway_per_minute`",
        Api::Provider => "nothing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit =
        Limit { requests: 1_000, window_ms: MINUTE_MS, reserved_share: 0.5, burst_share: 0.05, comparisons_share: 0.0 };

    fn found(told: Option<(u64, i64, u64)>, sent: u64, need: u64) -> (Severity, String) {
        let told = told.map(|(limit, window_ms, left)| Counter { limit, window_ms, left: Some(left) });
        let load = Load { api: Api::Nango, limit: LIMIT, told, sent, need: Some(need) };
        let Finding { severity, evidence, remedy, .. } = judge(&load);
        (severity, format!("{evidence}\n{remedy}"))
    }

    #[test]
    fn a_limit_below_what_the_policy_counts_on_is_an_error_with_the_setting() {
        let (severity, text) = found(Some((200, MINUTE_MS, 190)), 1, 1);
        assert_eq!(severity, Severity::Error);
        assert!(text.contains("takes 200 requests a minute") && text.contains("`nango_per_minute`"), "{text}");
        // The same in another window.
        assert_eq!(found(Some((5_000, 5 * MINUTE_MS, 5_000)), 1, 1).0, Severity::Ok);
        assert_eq!(found(Some((4_999, 5 * MINUTE_MS, 4_999)), 1, 1).0, Severity::Error);
    }

    #[test]
    fn a_need_above_what_live_traffic_leaves_is_an_error() {
        assert_eq!(found(Some((1_000, MINUTE_MS, 999)), 1, 500).0, Severity::Ok);
        let (severity, text) = found(None, 0, 501);
        assert!(severity == Severity::Error && text.contains("needs 501") && text.contains("500 are left"), "{text}");
    }

    #[test]
    fn others_who_use_more_than_their_share_are_seen_and_our_own_requests_are_not_others() {
        assert_eq!(found(Some((1_000, MINUTE_MS, 480)), 20, 10).0, Severity::Ok);
        let (severity, text) = found(Some((1_000, MINUTE_MS, 479)), 20, 10);
        assert!(severity == Severity::Warning && text.contains("others sent 501"), "{text}");
        let (severity, text) = found(None, 3, 10);
        assert!(severity == Severity::Ok && text.contains("tells no limit"), "{text}");
    }
}
