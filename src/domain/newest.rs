//! Which token of a triplet is the newest.
//!
//! What the custodian hands out has an order: each read of a connection has a claim, and what came under
//! an older claim is refused before it gets here. So a later read is newer, whatever it says of its end:
//! a new consent may end sooner, and an API key may be set back. What others report has no order: it may
//! be old, or come again. There the end decides, and so it does between a read and a report.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::time::Timestamp;

/// When a token ends. One without an end outlives all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    At(Timestamp),
    Never,
}

impl From<Option<Timestamp>> for End {
    fn from(expires_at: Option<Timestamp>) -> Self {
        expires_at.map_or(Self::Never, Self::At)
    }
}

/// How a token came to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Read at the custodian, after all reads before it.
    Read,
    /// Read at the custodian, of a grant that was judged gone before: somebody connected again.
    NewGrant,
    /// Written by somebody else. It may be old, or come again.
    Report,
}

/// What a token is to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The newest from now on.
    New,
    /// The newest already.
    Same,
    /// It ends before the newest does, or with it and was replaced before.
    Older,
    /// It was replaced before, although it ends after the newest.
    Replay,
}

/// The newest token of a triplet, and those that were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest<T> {
    head: Option<(T, End, Origin)>,
    /// The latest end under which each token was the newest.
    seen: BTreeMap<T, End>,
}

impl<T> Default for Newest<T> {
    fn default() -> Self {
        Self { head: None, seen: BTreeMap::new() }
    }
}

impl<T: Ord + Clone> Newest<T> {
    /// Takes up where the chain is.
    pub fn resume(&mut self, token: T, end: End, origin: Origin) {
        self.remember(token.clone(), end);
        self.head = Some((token, end, origin));
    }

    /// This token was the newest before.
    pub fn remember(&mut self, token: T, end: End) {
        let latest = self.seen.entry(token).or_insert(end);
        *latest = end.max(*latest);
    }

    /// Judges a token that comes now, and keeps it if it is the newest.
    pub fn arrive(&mut self, token: &T, end: End, origin: Origin) -> Arrival {
        let arrival = self.judge(token, end, origin);
        if arrival == Arrival::New {
            self.resume(token.clone(), end, origin);
        }
        arrival
    }

    fn judge(&self, token: &T, end: End, origin: Origin) -> Arrival {
        let Some((newest, newest_end, found)) = &self.head else { return Arrival::New };
        let (same, order) = (token == newest, end.cmp(newest_end));
        let seen = self.seen.get(token);
        match (origin, order) {
            (_, Ordering::Equal) if same => Arrival::Same,
            (Origin::NewGrant, _) => Arrival::New,
            (Origin::Read, Ordering::Less) if *found == Origin::Report => Arrival::Older,
            (Origin::Read, _) => Arrival::New,
            (Origin::Report, Ordering::Less) => Arrival::Older,
            (Origin::Report, Ordering::Equal) if seen.is_some() => Arrival::Older,
            (Origin::Report, _) if seen.is_some_and(|latest| end <= *latest) => Arrival::Replay,
            (Origin::Report, _) => Arrival::New,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Origin::{NewGrant, Read, Report};
    use super::*;

    /// 0: it never ends.
    fn end(s: i64) -> End {
        End::from(Some(s).filter(|s| *s > 0).map(Timestamp::from_secs))
    }

    /// Each line: what came before, what comes, and what it is.
    #[test]
    fn reads_have_an_order_and_reports_have_ends() {
        for (before, (token, ends, origin), expected) in [
            (&[][..], ("a", 10, Report), Arrival::New),
            // A read is newer than the reads before it, whatever its end.
            (&[("a", 20, Read)], ("b", 10, Read), Arrival::New),
            (&[("a", 20, Read)], ("b", 0, Read), Arrival::New),
            (&[("a", 0, Read)], ("b", 10, Read), Arrival::New),
            (&[("a", 10, Read)], ("a", 20, Read), Arrival::New),
            (&[("a", 10, Read), ("b", 10, Read)], ("a", 10, Read), Arrival::New),
            (&[("a", 10, Read)], ("a", 10, Read), Arrival::Same),
            // Two refreshers beside each other: who lives longer stays, unless the grant is another one.
            (&[("a", 20, Report)], ("b", 10, Read), Arrival::Older),
            (&[("a", 20, Report)], ("b", 20, Read), Arrival::New),
            (&[("a", 20, Report)], ("b", 0, Read), Arrival::New),
            (&[("a", 20, Report)], ("b", 10, NewGrant), Arrival::New),
            (&[("a", 20, Read)], ("b", 10, Report), Arrival::Older),
            (&[("a", 20, Read)], ("b", 20, Report), Arrival::New),
            (&[("a", 20, Read)], ("b", 0, Report), Arrival::New),
            (&[("a", 0, Read)], ("b", 20, Report), Arrival::Older),
            // What comes again is no news, unless it lives longer than it did.
            (&[("a", 10, Read), ("b", 10, Report)], ("a", 10, Report), Arrival::Older),
            (&[("a", 10, Read), ("b", 20, Read)], ("a", 20, Report), Arrival::Older),
            (&[("a", 10, Read), ("b", 20, Read)], ("a", 30, Report), Arrival::New),
            (&[("a", 30, Read), ("b", 20, Read)], ("a", 30, Report), Arrival::Replay),
            (&[("a", 0, Read), ("b", 20, Read)], ("a", 0, Report), Arrival::Replay),
            (&[("a", 30, Read), ("a", 20, Read)], ("a", 30, Report), Arrival::Replay),
            (&[("a", 10, Report)], ("a", 20, Report), Arrival::New),
            (&[("a", 20, Report)], ("a", 10, Report), Arrival::Older),
        ] {
            let mut newest = Newest::default();
            for &(token, ends, origin) in before {
                assert_eq!(newest.arrive(&token, end(ends), origin), Arrival::New, "{before:?}");
            }
            assert_eq!(newest.arrive(&token, end(ends), origin), expected, "{token} {ends} after {before:?}");
        }
    }
}
