//! What a triplet's chain must be, said as plainly as can be: the model that the tests of order share.
#![allow(dead_code, reason = "each test binary uses its part of this")]

use std::collections::BTreeMap;

/// A token by number, and when it ends; 0: never.
pub type Token = (u8, i64);

/// A token that somebody reports. No two of them end at one time: which one is the newer, nobody could say.
pub fn report_until(end: i64) -> Token {
    ((end % 3) as u8, end)
}

fn end((_, end): Token) -> i64 {
    if end == 0 { i64::MAX } else { end }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    pub head: Option<Token>,
    reported: bool,
    /// The latest end under which a token was the newest.
    seen: BTreeMap<u8, i64>,
}

impl Chain {
    fn put(&mut self, token: Token, reported: bool) {
        (self.head, self.reported) = (Some(token), reported);
        self.remember(token);
    }

    fn remember(&mut self, token: Token) {
        let latest = self.seen.entry(token.0).or_insert(end(token));
        *latest = end(token).max(*latest);
    }

    /// The poller reads a token: it is newer than those that were read before. One that somebody else
    /// reported stays if it lives longer.
    pub fn read(&mut self, token: Token) {
        let outlived = self.reported && self.head.is_some_and(|head| end(token) < end(head));
        if self.head != Some(token) && !outlived {
            self.put(token, false);
        }
    }

    /// Reported tokens are worked in together: the one that lives longest is the newest if it lives no
    /// less long than what is there. A token that comes again must live longer than it did.
    pub fn report(&mut self, tokens: &[Token]) {
        let before = self.clone();
        let mut newest = Vec::new();
        for &token in tokens {
            let longer = |head| end(token) > end(head);
            let known = self.seen.get(&token.0);
            let is_new = match self.head {
                None => true,
                Some(head) if longer(head) => known.is_none_or(|latest| end(token) > *latest),
                Some(head) => end(token) == end(head) && known.is_none(),
            };
            if is_new {
                self.put(token, true);
                newest.push(token);
            }
        }
        // What was replaced before anybody saw it leaves no trace.
        self.seen = before.seen;
        newest.retain(|token| self.head.is_some_and(|head| end(*token) == end(head)));
        newest.into_iter().for_each(|token| self.remember(token));
    }
}
