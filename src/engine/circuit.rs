//! The circuit breaker of a sink: after failures in a row it is left alone for a while, then
//! tried with a single delivery. Pure: who waits and who calls is the mirror's business.

use crate::domain::time::{SECOND_MS, Timestamp};

/// Failures in a row after which a sink is left alone.
const FAILURES_MAX: u32 = 5;

/// The first pause and the longest; each that ends in another failure doubles.
const PAUSE_MS: i64 = 10 * SECOND_MS;
const PAUSE_MAX_MS: i64 = 60 * SECOND_MS;

/// What is known of one sink since the engine started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Circuit {
    /// Failures in a row.
    failures: u32,
    /// Pauses in a row.
    pauses: u32,
    /// No call before then.
    until: Option<Timestamp>,
    /// The sink works but asked for a pause: nothing is wrong with it.
    limited: bool,
    opened_at: Option<Timestamp>,
    why: String,
}

/// What a result did to the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// Trouble began.
    Opened,
    /// Trouble is over; it began then.
    Closed(Timestamp),
}

impl Circuit {
    /// How many deliveries may go now: none while it pauses, one to find out, else all.
    pub fn allows(&self, now: Timestamp) -> Allowance {
        match self.until {
            Some(until) if now < until => Allowance::NoneUntil(until),
            _ if self.opened_at.is_some() => Allowance::One,
            _ => Allowance::All,
        }
    }

    /// Whether the sink takes deliveries as far as anybody knows.
    pub fn is_closed(&self) -> bool {
        self.opened_at.is_none()
    }

    /// Until when the sink is left alone because of trouble, and what trouble.
    pub fn trouble(&self) -> Option<(Timestamp, &str)> {
        self.opened_at.and(self.until).map(|until| (until, self.why.as_str()))
    }

    pub fn succeeded(&mut self) -> Change {
        // A sink that asked for a pause keeps it, although an answer under way came through.
        let pause = self.until.filter(|_| self.limited);
        let ended = std::mem::take(self).opened_at;
        (self.until, self.limited) = (pause, pause.is_some());
        ended.map_or(Change::None, Change::Closed)
    }

    /// The sink as a whole did not take it. `draw` spreads the pauses of several sinks.
    pub fn failed(&mut self, why: &str, now: Timestamp, draw: u64) -> Change {
        self.failures += 1;
        let probing = self.opened_at.is_some();
        if !probing && self.failures < FAILURES_MAX {
            return Change::None;
        }
        // Several calls under way fail together: that is one failure.
        if probing && self.until.is_some_and(|until| now < until) {
            return Change::None;
        }
        self.pauses += 1;
        let pause = (PAUSE_MS << (self.pauses - 1).min(8)).min(PAUSE_MAX_MS);
        self.until = Some(now.plus_ms(pause - (draw % 256) as i64 * pause / 2048));
        why.clone_into(&mut self.why);
        if probing {
            return Change::None;
        }
        self.opened_at = Some(now);
        Change::Opened
    }

    /// The sink asked to be left alone until `until`.
    pub fn limited(&mut self, until: Timestamp) {
        if self.opened_at.is_none() {
            self.until = self.until.max(Some(until));
            self.limited = true;
        }
    }
}

/// How many deliveries may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowance {
    All,
    One,
    NoneUntil(Timestamp),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_secs(s)
    }

    #[test]
    fn it_opens_after_five_failures_in_a_row_tries_one_and_closes_on_success() {
        let mut circuit = Circuit::default();
        for n in 1..5 {
            assert_eq!(circuit.failed("down", at(n), 0), Change::None);
        }
        assert_eq!(circuit.succeeded(), Change::None, "four in a row are forgotten");
        for n in 1..5 {
            circuit.failed("down", at(n), 0);
        }
        assert_eq!(circuit.failed("down", at(5), 0), Change::Opened);
        assert_eq!(circuit.allows(at(14)), Allowance::NoneUntil(at(15)));
        assert_eq!(circuit.trouble(), Some((at(15), "down")));
        assert_eq!(circuit.failed("down", at(6), 0), Change::None, "it was under way");
        assert_eq!(circuit.allows(at(15)), Allowance::One);
        assert_eq!(circuit.failed("still down", at(15), 0), Change::None);
        assert_eq!(circuit.allows(at(16)), Allowance::NoneUntil(at(35)), "twice as long");
        assert_eq!(circuit.succeeded(), Change::Closed(at(5)));
        assert_eq!(circuit.allows(at(16)), Allowance::All);
    }

    #[test]
    fn pauses_have_a_longest() {
        let mut circuit = Circuit::default();
        let mut now = at(0);
        for _ in 0..40 {
            circuit.failed("down", now, 255);
            if let Allowance::NoneUntil(until) = circuit.allows(now) {
                assert!(until.since(now) <= PAUSE_MAX_MS && until.since(now) >= PAUSE_MS * 7 / 8);
                now = until;
            }
        }
    }

    #[test]
    fn a_pause_that_was_asked_for_is_kept_and_is_no_trouble() {
        let mut circuit = Circuit::default();
        circuit.limited(at(30));
        circuit.limited(at(20));
        assert_eq!(circuit.succeeded(), Change::None);
        assert_eq!((circuit.allows(at(29)), circuit.trouble()), (Allowance::NoneUntil(at(30)), None));
        assert_eq!(circuit.allows(at(30)), Allowance::All);
    }
}
