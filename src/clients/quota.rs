//! What answers say about a vendor's own request counter.
//!
//! Nango: `X-RateLimit-Remaining` with `X-RateLimit-Reset` in epoch seconds. Composio:
//! `X-RateLimit-Remaining` without a reset. Cloudflare: `Ratelimit: "default";r=50;t=30`, a list.

use reqwest::header::{HeaderMap, HeaderName};

use super::reply::header;
use crate::domain::time::{SECOND_MS, Timestamp};

/// One thing that a vendor said about its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// This many more requests, until the counter starts anew in `reset_ms`.
    Left { requests: u64, reset_ms: Option<i64> },
    /// 429.
    Refused { retry_after_ms: Option<i64> },
}

/// Reads the counters of an answer. Headers that do not parse are left out: they are a hint, and
/// the budget holds without them.
pub(super) fn read(headers: &HeaderMap, server_time: Timestamp) -> Vec<Told> {
    let mut told = Vec::new();
    let number = |name: &'static str| header(headers, HeaderName::from_static(name))?.trim().parse::<u64>().ok();
    if let Some(requests) = number("x-ratelimit-remaining") {
        let reset_ms = number("x-ratelimit-reset").and_then(|reset| reset_in_ms(reset, server_time));
        told.push(Told::Left { requests, reset_ms });
    }
    for value in headers.get_all("ratelimit") {
        told.extend(value.to_str().unwrap_or_default().split(',').filter_map(structured_item));
    }
    told
}

/// Epoch seconds, as Nango and GitHub send them; smaller numbers are seconds from now.
fn reset_in_ms(reset: u64, server_time: Timestamp) -> Option<i64> {
    const FIRST_EPOCH: i64 = 1_000_000_000;
    let seconds = i64::try_from(reset).ok()?;
    let left = if seconds >= FIRST_EPOCH { seconds.saturating_sub(server_time.secs()) } else { seconds };
    Some(left.max(0).saturating_mul(SECOND_MS))
}

/// `"default";r=50;t=30`: r left, t seconds until it starts anew.
fn structured_item(item: &str) -> Option<Told> {
    let parameter = |name: &str| {
        item.split(';').skip(1).find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
    };
    let reset_ms = parameter("t").and_then(|t| i64::try_from(t).ok()).map(|t| t.saturating_mul(SECOND_MS));
    Some(Told::Left { requests: parameter("r")?, reset_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vendors_counter_is_read_and_nonsense_is_left_out() {
        let now = Timestamp::from_secs(1_790_000_000);
        let left = |requests, reset_ms| Told::Left { requests, reset_ms };
        for (pairs, expected) in [
            (vec![], vec![]),
            (vec![("x-ratelimit-remaining", "12"), ("x-ratelimit-reset", "1790000030")], vec![left(12, Some(30_000))]),
            (vec![("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1789999999")], vec![left(0, Some(0))]),
            (vec![("x-ratelimit-remaining", "7"), ("x-ratelimit-reset", "9")], vec![left(7, Some(9_000))]),
            (vec![("x-ratelimit-remaining", "1999"), ("x-ratelimit-window-size", "60s")], vec![left(1_999, None)]),
            (vec![("ratelimit", "\"default\";r=50;t=30, \"burst\";r=9")], vec![left(50, Some(30_000)), left(9, None)]),
            (vec![("ratelimit", "\"a\";t=3"), ("x-ratelimit-remaining", "-1")], vec![]),
            (vec![("ratelimit", "r=5"), ("x-ratelimit-remaining", "many")], vec![]),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in &pairs {
                headers.append(HeaderName::from_static(name), value.parse().unwrap());
            }
            assert_eq!(read(&headers, now), expected, "{pairs:?}");
        }
    }
}
