//! What answers say about a vendor's own request counter.
//!
//! Nango: `X-RateLimit-Remaining` with `X-RateLimit-Reset` in epoch seconds. Composio:
//! `X-RateLimit-Remaining` without a reset. Cloudflare: `Ratelimit: "default";r=50;t=30`, a list.
//! How many there are in all: `X-RateLimit-Limit`, counted over a minute; `X-RateLimit` with
//! `X-RateLimit-Window-Size: 60s`; `Ratelimit-Policy: "default";q=1200;w=300`, a list.

use reqwest::header::{HeaderMap, HeaderName};

use super::reply::header;
use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};
use crate::ports::Counter;

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

/// The counter behind an answer; of several the one that allows least. `None` where the headers
/// do not say how many requests there are in all.
pub(super) fn counter(headers: &HeaderMap) -> Option<Counter> {
    let text = |name: &'static str| header(headers, HeaderName::from_static(name)).map(str::trim);
    let left = |list: &[Told]| {
        let lefts = list.iter().filter_map(|told| match told {
            Told::Left { requests, .. } => Some(*requests),
            Told::Refused { .. } => None,
        });
        lefts.min()
    };
    // The times in it do not matter here.
    let told = read(headers, Timestamp::from_millis(0));
    let one = text("x-ratelimit-limit").or_else(|| text("x-ratelimit")).and_then(|n| n.parse::<u64>().ok());
    let window_ms = text("x-ratelimit-window-size")
        .and_then(|size| size.strip_suffix('s')?.parse::<i64>().ok())
        .and_then(|s| s.checked_mul(SECOND_MS))
        .filter(|ms| *ms > 0)
        .unwrap_or(MINUTE_MS);
    let one = one.map(|limit| Counter { limit, window_ms, left: left(&told) });
    let policies = headers.get_all("ratelimit-policy").iter().flat_map(|value| {
        let items = value.to_str().unwrap_or_default().split(',');
        items.filter_map(|item| {
            let seconds = i64::try_from(parameter(item, "w")?).ok().filter(|s| *s > 0)?;
            Some((parameter(item, "q")?, seconds.checked_mul(SECOND_MS)?))
        })
    });
    let listed = policies.map(|(limit, window_ms)| Counter { limit, window_ms, left: left(&told) });
    one.into_iter()
        .chain(listed)
        .min_by_key(|c| u128::from(c.limit) * 1_000_000 / u128::from(c.window_ms.unsigned_abs()))
}

/// A parameter of a structured item, such as `r` of `"default";r=50;t=30`.
fn parameter(item: &str, name: &str) -> Option<u64> {
    item.split(';').skip(1).find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
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
    let reset_ms = parameter(item, "t").and_then(|t| i64::try_from(t).ok()).map(|t| t.saturating_mul(SECOND_MS));
    Some(Told::Left { requests: parameter(item, "r")?, reset_ms })
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

    #[test]
    fn the_counter_behind_an_answer_is_the_one_that_allows_least() {
        let of = |limit, window_ms, left| Some(Counter { limit, window_ms, left });
        for (pairs, expected) in [
            (vec![], None),
            (vec![("x-ratelimit-remaining", "12")], None),
            (vec![("x-ratelimit-limit", "200"), ("x-ratelimit-remaining", "12")], of(200, 60_000, Some(12))),
            (
                vec![("x-ratelimit", "2000"), ("x-ratelimit-window-size", "60s"), ("x-ratelimit-remaining", "1")],
                of(2_000, 60_000, Some(1)),
            ),
            (
                vec![
                    ("ratelimit-policy", "\"default\";q=1200;w=300, \"burst\";q=900;w=60"),
                    ("ratelimit", "\"default\";r=50;t=30"),
                ],
                of(1_200, 300_000, Some(50)),
            ),
            (vec![("ratelimit-policy", "\"default\";q=1200;w=0, q=3;w=4"), ("x-ratelimit-limit", "many")], None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in &pairs {
                headers.append(HeaderName::from_static(name), value.parse().unwrap());
            }
            assert_eq!(counter(&headers), expected, "{pairs:?}");
        }
    }
}
