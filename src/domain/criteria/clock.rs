//! The soak clock: how long the migration has been watched without a breach.
//!
//! A pure function of what happened, so that nothing has to be wound back when a waiver ends:
//!
//! - it starts with the first mirrored refresh (plus the policy's initial delay);
//! - it pauses in every gap of the evidence;
//! - it starts again at the end of a breach of a criterion that the policy names in `restart_on`,
//!   unless a waiver in force covers that breach;
//! - what does not move is not watched, and does not count.

use serde::{Deserialize, Serialize};

use crate::domain::time::Timestamp;

/// A time without evidence from one source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Gap {
    pub from: Timestamp,
    /// Where it ended; the time of looking while it lasts.
    pub until: Timestamp,
    pub source: String,
    pub reason: String,
}

/// A breach that starts the clock again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Restart {
    /// The end of the breach.
    pub at: Timestamp,
    pub criterion: String,
    pub subject: String,
}

/// Where the soak stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoakClock {
    /// The first mirrored refresh.
    pub first_refresh_at: Option<Timestamp>,
    /// From when time counts now: the first refresh, or the last restart.
    pub started_at: Option<Timestamp>,
    /// Time that counts, ms.
    pub soaked_ms: i64,
    /// Time since the first refresh that was watched, restarts or not, ms.
    pub watched_ms: i64,
    /// Time without evidence since `started_at`, ms.
    pub paused_ms: i64,
    /// The gap that lasts now.
    pub paused: Option<Gap>,
    /// Restarts, oldest first.
    pub restarts: Vec<Restart>,
}

impl SoakClock {
    /// Reads the clock at `now`.
    pub fn read(
        first_refresh_at: Option<Timestamp>,
        initial_delay_ms: i64,
        gaps: &[Gap],
        mut restarts: Vec<Restart>,
        now: Timestamp,
    ) -> Self {
        let Some(first) = first_refresh_at else { return Self::default() };
        let begin = first.plus_ms(initial_delay_ms);
        restarts.retain(|r| r.at > begin && r.at <= now);
        restarts.sort();
        let started = restarts.last().map_or(begin, |r| r.at);
        let paused_ms = covered(gaps, started, now);
        let watched_ms = now.since(begin).max(0) - covered(gaps, begin, now);
        Self {
            first_refresh_at,
            started_at: Some(started),
            soaked_ms: (now.since(started).max(0) - paused_ms).max(0),
            watched_ms: watched_ms.max(0),
            paused_ms,
            paused: gaps.iter().filter(|g| g.until >= now).min_by_key(|g| g.from).cloned(),
            restarts,
        }
    }

    /// When `days_ms` will have been soaked if nothing happens any more.
    pub fn done_at(&self, days_ms: i64, now: Timestamp) -> Option<Timestamp> {
        self.started_at.map(|started| now.max(started).plus_ms((days_ms - self.soaked_ms).max(0)))
    }
}

/// Milliseconds of `[from, until]` that lie in any of the gaps, each counted once.
fn covered(gaps: &[Gap], from: Timestamp, until: Timestamp) -> i64 {
    let mut clipped: Vec<(Timestamp, Timestamp)> =
        gaps.iter().map(|g| (g.from.max(from), g.until.min(until))).filter(|(a, b)| a < b).collect();
    clipped.sort_unstable();
    let (mut sum, mut reached) = (0, from);
    for (a, b) in clipped {
        let a = a.max(reached);
        if b > a {
            sum += b.since(a);
            reached = b;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_secs(s)
    }

    fn gap(from: i64, until: i64) -> Gap {
        Gap { from: at(from), until: at(until), source: "duties".into(), reason: "nothing ran".into() }
    }

    fn restart(s: i64) -> Restart {
        Restart { at: at(s), criterion: "outage".into(), subject: "nango".into() }
    }

    #[test]
    fn it_stands_still_before_the_first_refresh() {
        let clock = SoakClock::read(None, 0, &[gap(0, 10)], vec![restart(5)], at(100));
        assert_eq!(clock, SoakClock::default());
        assert_eq!(clock.done_at(1_000, at(100)), None);
    }

    #[test]
    fn it_pauses_in_gaps_and_counts_overlapping_gaps_once() {
        let gaps = [gap(10, 30), gap(20, 40), gap(25, 26), gap(90, 95)];
        let clock = SoakClock::read(Some(at(0)), 0, &gaps, vec![], at(100));
        assert_eq!((clock.soaked_ms, clock.paused_ms, clock.paused), (65_000, 35_000, None));
    }

    #[test]
    fn it_says_when_it_is_paused_now_and_why() {
        let clock = SoakClock::read(Some(at(0)), 0, &[gap(60, 100)], vec![], at(100));
        assert_eq!((clock.soaked_ms, clock.paused), (60_000, Some(gap(60, 100))));
    }

    #[test]
    fn a_breach_starts_it_again_and_what_was_watched_stays_watched() {
        let gaps = [gap(10, 20), gap(60, 70)];
        let clock = SoakClock::read(Some(at(0)), 0, &gaps, vec![restart(50), restart(30)], at(100));
        assert_eq!((clock.started_at, clock.soaked_ms, clock.watched_ms), (Some(at(50)), 40_000, 80_000));
        assert_eq!(clock.done_at(60_000, at(100)), Some(at(120)));
    }

    #[test]
    fn the_initial_delay_does_not_count_and_neither_does_a_breach_in_it() {
        let clock = SoakClock::read(Some(at(0)), 40_000, &[], vec![restart(30)], at(100));
        assert_eq!((clock.started_at, clock.soaked_ms, clock.restarts.len()), (Some(at(40)), 60_000, 0));
    }

    proptest! {
        /// Time passes once: soaked and paused add up to the time since the start, whatever overlaps.
        #[test]
        fn soaked_and_paused_add_up(
            gaps in prop::collection::vec((0i64..200, 0i64..60), 0..8),
            restarts in prop::collection::vec(0i64..250, 0..4),
            now in 0i64..250,
        ) {
            let gaps: Vec<Gap> = gaps.into_iter().map(|(from, len)| gap(from, from + len)).collect();
            let clock = SoakClock::read(Some(at(0)), 0, &gaps, restarts.into_iter().map(restart).collect(), at(now));
            let started = clock.started_at.unwrap();
            prop_assert_eq!(clock.soaked_ms + clock.paused_ms, at(now).since(started).max(0));
            prop_assert!(clock.soaked_ms >= 0 && clock.soaked_ms <= clock.watched_ms);
        }
    }
}
