//! What the gateway serves, minute by minute, without looping over the minutes.
//!
//! The Worker sees KV through a cache: a write becomes visible later, and "not there" is cached
//! like a value. For each triplet this module keeps the visible state and what is still on its
//! way; counting the minutes in which a dead credential was served is then arithmetic over the
//! spans between changes.

use std::collections::VecDeque;

use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};

use super::draw;
use super::provider::TokenRef;
use super::world::World;

/// Where the gateway takes a triplet's credential from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Reads {
    #[default]
    Source,
    Target {
        account: String,
    },
}

/// A token entry as the Worker sees it.
#[derive(Clone, Debug)]
pub(super) struct SeenToken {
    pub access_token: String,
    /// As the entry says.
    pub expires_at: Option<Timestamp>,
    /// `None` when this world never made that token.
    pub token: Option<TokenRef>,
}

/// A value with its successors on their way through the cache.
#[derive(Clone, Debug, Default)]
struct Lagged<T> {
    visible: T,
    pending: VecDeque<(Timestamp, T)>,
    /// The Worker last found nothing here.
    absent_read_at: Option<Timestamp>,
}

impl<T> Lagged<T> {
    /// A refreshed cache shows the newest value, so a later write that shows sooner replaces
    /// earlier ones that are still hidden.
    fn write(&mut self, visible_at: Timestamp, value: T) {
        while self.pending.back().is_some_and(|(at, _)| *at >= visible_at) {
            self.pending.pop_back();
        }
        self.pending.push_back((visible_at, value));
    }

    fn next_at(&self) -> Option<Timestamp> {
        self.pending.front().map(|(at, _)| *at)
    }

    fn show_until(&mut self, at: Timestamp) {
        while self.next_at().is_some_and(|next| next <= at) {
            if let Some((_, value)) = self.pending.pop_front() {
                self.visible = value;
            }
        }
    }
}

/// One triplet's way through the Worker's cache.
#[derive(Clone, Debug, Default)]
pub(super) struct Serving {
    settled_to: Timestamp,
    token: Lagged<Option<SeenToken>>,
    authority: Lagged<Option<Reads>>,
}

impl Serving {
    pub fn starting(at: Timestamp) -> Self {
        Self { settled_to: at, ..Self::default() }
    }

    /// What was visible before anything happened.
    pub fn seed(&mut self, token: SeenToken) {
        self.token.visible = Some(token);
    }

    fn reads(&self) -> Reads {
        self.authority.visible.clone().unwrap_or_default()
    }

    /// Walks to `until` and returns how many whole minutes served a dead credential, and the
    /// first of them.
    fn walk(&mut self, world: &World, triplet: usize, until: Timestamp) -> (u64, Timestamp) {
        let (mut minutes, mut first) = (0, until);
        loop {
            let next =
                [self.token.next_at(), self.authority.next_at()].into_iter().flatten().min().filter(|at| *at <= until);
            let span_end = next.map_or(until, |at| at.plus_ms(-1));
            if let Some(dead_from) = world.served_dead_from(self, triplet) {
                let from = self.settled_to.max(dead_from.plus_ms(-1));
                let bad = marks(world.start(), from, span_end);
                if bad > 0 {
                    first = first.min(from);
                }
                minutes += bad;
            }
            self.settled_to = self.settled_to.max(span_end);
            let Some(at) = next else { return (minutes, first) };
            self.token.show_until(at);
            self.authority.show_until(at);
        }
    }
}

/// Whole minutes since `start` in (`after`, `until`].
fn marks(start: Timestamp, after: Timestamp, until: Timestamp) -> u64 {
    let index = |t: Timestamp| t.since(start).div_euclid(MINUTE_MS);
    u64::try_from(index(until).saturating_sub(index(after))).unwrap_or(0)
}

impl World {
    /// From when on what is served right now opens nothing; `None`: it works for ever.
    fn served_dead_from(&self, serving: &Serving, triplet: usize) -> Option<Timestamp> {
        const ALWAYS: Timestamp = Timestamp::from_millis(0);
        let user = self.rows[self.triplets[triplet].row].user;
        let token = match serving.reads() {
            Reads::Source => serving.token.visible.as_ref().and_then(|seen| seen.token),
            Reads::Target { account } => {
                self.composio.served_token(&account).and_then(|text| self.providers.find(text))
            }
        };
        match token {
            Some(token) if self.providers.grants[token.grant].user == user => self.providers.dead_from(&token),
            _ => Some(ALWAYS),
        }
    }

    /// Brings a triplet's account up to now. Must run before anything that it serves changes.
    pub(super) fn settle(&mut self, triplet: usize) {
        let mut serving = std::mem::take(&mut self.triplets[triplet].serving);
        let (minutes, first) = serving.walk(self, triplet, self.now());
        self.triplets[triplet].serving = serving;
        if minutes > 0 && self.triplets[triplet].moving {
            self.ledger.counts.stale_reads += minutes;
            let name = self.triplets[triplet].triplet.clone();
            let what = format!("the gateway served a dead credential for {minutes} minute(s)");
            self.ledger.incident(first, Some(&name), what);
        }
    }

    /// Stale minutes since the last settling.
    pub(super) fn unsettled_stale(&self, triplet: usize) -> (u64, Timestamp) {
        self.triplets[triplet].serving.clone().walk(self, triplet, self.now())
    }

    /// A write to `tokens:{triplet}` in the source namespace reached the central store.
    pub(super) fn token_written(&mut self, triplet: usize, entry: Option<SeenToken>) {
        self.settle(triplet);
        let at = self.visible_at(triplet, "token", self.triplets[triplet].serving.token.absent_read_at);
        self.triplets[triplet].serving.token.write(at, entry);
    }

    /// A write to `authority:{triplet}` reached the central store.
    pub(super) fn authority_written(&mut self, triplet: usize, reads: Option<Reads>) {
        self.settle(triplet);
        let at = self.visible_at(triplet, "authority", self.triplets[triplet].serving.authority.absent_read_at);
        self.triplets[triplet].serving.authority.write(at, reads);
    }

    /// When the Worker sees a write made now (cloudflare.md §2.6).
    fn visible_at(&self, triplet: usize, what: &str, absent_read_at: Option<Timestamp>) -> Timestamp {
        let now = self.now();
        let lagging = self.faults.kv_lag_max_ms > 0 && self.faults.in_window(now);
        let (lag, cache) = if lagging {
            let labels = ["kv-lag", what, self.triplets[triplet].name.as_str()];
            let n = now.millis().unsigned_abs();
            let lag = draw::between(self.seed(), &labels, n, 30 * SECOND_MS, self.faults.kv_lag_max_ms);
            (lag, self.faults.kv_lag_max_ms)
        } else {
            (self.options().kv_lag_ms, self.options().kv_lag_ms)
        };
        let plain = now.plus_ms(lag);
        absent_read_at.map_or(plain, |read| plain.max(read.plus_ms(cache)))
    }

    /// What the Worker sees for a triplet now. Finding nothing is remembered (negative caching).
    pub(super) fn worker_view(&mut self, triplet: usize) -> (Reads, Option<SeenToken>) {
        self.settle(triplet);
        let now = self.now();
        let serving = &mut self.triplets[triplet].serving;
        serving.authority.absent_read_at = serving.authority.visible.is_none().then_some(now);
        serving.token.absent_read_at = serving.token.visible.is_none().then_some(now);
        (serving.reads(), serving.token.visible.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_count_whole_minutes_after_the_first_instant_up_to_the_last() {
        let start = Timestamp::from_millis(1_000);
        let at = |ms| start.plus_ms(ms);
        assert_eq!(marks(start, at(0), at(59_999)), 0);
        assert_eq!(marks(start, at(0), at(60_000)), 1);
        assert_eq!(marks(start, at(60_000), at(120_000)), 1);
        assert_eq!(marks(start, at(59_999), at(120_000)), 2);
        assert_eq!(marks(start, at(90_000), at(10)), 0);
    }

    #[test]
    fn a_later_write_that_shows_sooner_replaces_the_hidden_one() {
        let mut value = Lagged::<u8>::default();
        value.write(Timestamp::from_millis(90), 1);
        value.write(Timestamp::from_millis(40), 2);
        value.show_until(Timestamp::from_millis(30));
        assert_eq!(value.visible, 0);
        value.show_until(Timestamp::from_millis(200));
        assert_eq!(value.visible, 2);
    }
}
