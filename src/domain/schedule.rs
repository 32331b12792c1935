//! When to poll Nango, and when to try again.

use super::time::{DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, Timestamp};

/// Nango refreshes on a read inside the last 15 minutes of a token's life (Nango contract §6.1).
pub const REFRESH_MARGIN_MS: i64 = 15 * MINUTE_MS;

/// Polls are due at the latest this long before expiry, so that 14 minutes remain for retries.
const POLL_LEAD_MS: i64 = 14 * MINUTE_MS;

/// Polls happen on this grid, so that connections whose tokens expire together share one
/// journal commit and one bulk put.
const GRID_MS: i64 = 15 * SECOND_MS;

/// The least time from one read to the next. A token that lives less than twice as long cannot be served
/// anyway: KV shows a write everywhere only after a minute.
const POLL_MIN_MS: i64 = MINUTE_MS;

/// Connections without a scheduled expiry are looked at this often (Nango contract §6.3: watch `errors`).
pub const NO_EXPIRY_POLL_MS: i64 = DAY_MS;

/// A consent link at Composio lives 10 minutes (Composio contract §3.6).
pub const LINK_LIFE_MS: i64 = 10 * MINUTE_MS;

/// When to read a connection whose token expires at `expires_at`: between 15 and 14 minutes
/// before, spread by `draw` (any number, fixed per connection and token), on a 15-second grid.
///
/// Of a token that has less than the margin left every read makes another one, so it is read when half
/// of what it has left is over. No read follows another within a minute.
pub fn poll_at(expires_at: Option<Timestamp>, now: Timestamp, draw: u64) -> Timestamp {
    let Some(expires_at) = expires_at else { return now.plus_ms(NO_EXPIRY_POLL_MS) };
    let slots = (REFRESH_MARGIN_MS - POLL_LEAD_MS) / GRID_MS;
    let offset = (draw % slots as u64) as i64 * GRID_MS;
    // Rounded up so that the read never falls before the margin, where it would not refresh.
    let earliest = expires_at.plus_ms(-REFRESH_MARGIN_MS + SECOND_MS).millis();
    let on_grid = (earliest + offset + GRID_MS - 1).div_euclid(GRID_MS) * GRID_MS;
    let left = expires_at.since(now);
    let half = if left < REFRESH_MARGIN_MS { left / 2 } else { 0 };
    Timestamp::from_millis(on_grid).max(now.plus_ms(half.max(POLL_MIN_MS)))
}

/// How long to wait after the `failures`-th failed read in a row (from 1). Nango answers from a
/// 30-second cooldown after a failure, so the first retry waits a little longer than that; the
/// last step stays short enough for several tries inside the 14 minutes of lead.
pub fn poll_retry_after_ms(failures: u32, draw: u64) -> i64 {
    let base = match failures {
        0 | 1 => 31 * SECOND_MS,
        2 => MINUTE_MS,
        3 => 2 * MINUTE_MS,
        _ => 3 * MINUTE_MS,
    };
    base + (draw % 5) as i64 * SECOND_MS
}

/// How long to wait with a connection whose reads have had no answer for `silent_ms`, while others had
/// one: as long again, between the first and the last step of [`poll_retry_after_ms`].
pub fn silent_retry_after_ms(silent_ms: i64, draw: u64) -> i64 {
    silent_ms.max(0).clamp(poll_retry_after_ms(1, 0), poll_retry_after_ms(u32::MAX, 0)) + (draw % 5) as i64 * SECOND_MS
}

/// How long a delivery waits after its `attempts`-th failure (from 1): 2 s doubling to 2 min,
/// less up to a quarter, and never less than what the server asked for.
pub fn delivery_retry_after_ms(attempts: u32, retry_after_ms: Option<i64>, draw: u64) -> i64 {
    let base = (SECOND_MS << attempts.clamp(1, 7)).min(2 * MINUTE_MS);
    let jittered = base - (draw % 256) as i64 * base / 1024;
    jittered.max(retry_after_ms.unwrap_or(0))
}

/// What a token is taken to live whose connection was never seen to rotate.
const UNKNOWN_LIFE_MS: i64 = HOUR_MS;

/// How many rotations are missed at `now` by a connection that should have rotated before `due_at`,
/// and by when it must rotate next: one a lifetime, for as long as it stays stuck.
pub fn missed_rotations(due_at: Timestamp, life_ms: Option<i64>, now: Timestamp) -> (u64, Timestamp) {
    let late_ms = now.since(due_at);
    if late_ms <= 0 {
        return (0, due_at);
    }
    let life_ms = life_ms.filter(|ms| *ms > 0).unwrap_or(UNKNOWN_LIFE_MS);
    let missed = 1 + (late_ms - 1) / life_ms;
    (missed as u64, due_at.plus_ms(missed * life_ms))
}

#[cfg(test)]
mod tests {
    use super::super::time::HOUR_MS;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_connection_that_stays_stuck_misses_one_rotation_a_lifetime() {
        let at = Timestamp::from_secs;
        let missed = |now: i64| missed_rotations(at(1_000), Some(100_000), at(now));
        assert_eq!([missed(1_000), missed(1_001)], [(0, at(1_000)), (1, at(1_100))]);
        assert_eq!([missed(1_100), missed(1_101), missed(2_050)], [(1, at(1_100)), (2, at(1_200)), (11, at(2_100))]);
        for unknown in [None, Some(0), Some(-5)] {
            assert_eq!(missed_rotations(at(0), unknown, at(7_201)), (3, at(10_800)));
        }
    }

    proptest! {
        #[test]
        fn polls_fall_inside_the_margin_with_time_to_retry(
            now in 0i64..4_000_000_000_000, life in 16 * MINUTE_MS..10 * DAY_MS, draw: u64,
        ) {
            let now = Timestamp::from_millis(now);
            let at = poll_at(Some(now.plus_ms(life)), now, draw);
            let left = now.plus_ms(life).since(at);
            prop_assert!(left < REFRESH_MARGIN_MS, "{left}");
            prop_assert!(left >= POLL_LEAD_MS - GRID_MS, "{left}");
        }

        #[test]
        fn a_short_life_is_read_at_its_half_and_never_twice_within_a_minute(
            now in 0i64..4_000_000_000_000, life in -HOUR_MS..REFRESH_MARGIN_MS, draw: u64,
        ) {
            let now = Timestamp::from_millis(now);
            let wait = poll_at(Some(now.plus_ms(life)), now, draw).since(now);
            prop_assert!(wait >= POLL_MIN_MS && wait >= life / 2, "{wait}");
            prop_assert!(wait <= POLL_MIN_MS.max(life / 2), "{wait}");
        }

        #[test]
        fn retries_wait_at_least_what_the_server_asked(attempts in 0u32..50, after in 0i64..100_000, draw: u64) {
            let wait = delivery_retry_after_ms(attempts, Some(after), draw);
            prop_assert!(wait >= after && wait <= after.max(2 * MINUTE_MS));
        }
    }

    #[test]
    fn waits_for_a_silent_connection_double_up_to_three_minutes() {
        let (mut silent, mut waits) = (0, Vec::new());
        for _ in 0..5 {
            let wait = silent_retry_after_ms(silent, 0);
            waits.push(wait / SECOND_MS);
            silent += wait;
        }
        assert_eq!(waits, [31, 31, 62, 124, 180]);
    }
}
