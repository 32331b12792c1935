//! What the dashboard shows, as plain data, and what it remembers of earlier pictures: the trend of
//! each criterion and the last minutes of deliveries and lag.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::domain::criteria::{Judged, Verdict, overall};
use crate::domain::time::{Timestamp, format_duration_ms};

/// The soak at one instant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    pub at: Timestamp,
    /// The applied plan.
    pub plan: Option<String>,
    /// Soak time that counts and time that does not, ms. `None` before the first mirrored refresh.
    pub soaked_ms: Option<i64>,
    pub gap_ms: i64,
    /// How long the policy asks the soak to be, ms.
    pub needed_ms: i64,
    pub criteria: Vec<Judged>,
    pub triplets: Vec<TripletLine>,
    pub sinks: Vec<SinkLine>,
    pub budgets: Vec<BudgetLine>,
    /// Oldest first.
    pub events: Vec<EventLine>,
    pub dead_letters: Vec<DeadLetterLine>,
}

/// One triplet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TripletLine {
    pub triplet: String,
    pub route: String,
    pub stage: String,
    /// Place of the stage in the lifecycle, for sorting.
    pub stage_rank: u8,
    pub wave: Option<u32>,
    pub refresh: String,
    pub read: String,
    pub epoch: u64,
    pub version: u64,
    /// When the newest token was captured, and when it ends.
    pub captured_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    /// By sink, in the order of [`Picture::sinks`].
    pub sinks: Vec<SinkCell>,
    /// Outcome of the last comparison; `None` before the first.
    pub verify: Option<VerifyMark>,
    pub reversible_until: Option<Timestamp>,
    /// Why a person or a guard stopped it.
    pub held: Option<String>,
    /// Its grant is gone: since when and why. Its user must connect again.
    pub dead_grant: Option<String>,
}

/// Outcome of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifyMark {
    /// Nothing spoke against it.
    pub clean: bool,
    pub text: String,
}

/// What a sink has of one triplet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SinkCell {
    pub delivered_at: Option<Timestamp>,
    pub pending: bool,
    pub dead: bool,
}

/// One sink.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SinkLine {
    pub name: String,
    pub delivered: u64,
    pub pending: u64,
    pub dead: u64,
    /// Age of the oldest pending delivery, ms.
    pub oldest_ms: i64,
    /// Why its circuit breaker is open.
    pub trouble: Option<String>,
}

/// One request budget.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BudgetLine {
    pub name: String,
    /// Requests that may go at once, in the ordinary share and in all.
    pub left: u32,
    pub left_urgent: u32,
    /// What the vendor allows in a window.
    pub limit: u32,
    pub window_ms: i64,
    /// No request before then.
    pub closed_until: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    pub at: Timestamp,
    pub subject: String,
    pub text: String,
    /// Something went wrong.
    pub bad: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeadLetterLine {
    pub triplet: String,
    pub sink: String,
    pub reason: String,
}

impl Picture {
    /// What the gate would say.
    pub fn verdict(&self) -> Verdict {
        overall(&self.criteria)
    }

    /// The earliest end of the soak: when its clock is full, if nothing stops it.
    pub fn earliest_exit(&self) -> Option<Timestamp> {
        let left = self.needed_ms - self.soaked_ms?;
        Some(self.at.plus_ms(left.max(0)))
    }

    /// `day 3.2 of 30`; hours when the soak is shorter than two days.
    pub fn progress(&self) -> String {
        let (unit, name) = if self.needed_ms >= 172_800_000 { (86_400_000.0, "day") } else { (3_600_000.0, "hour") };
        match self.soaked_ms {
            None => "not started".to_owned(),
            Some(ms) => format!("{name} {:.1} of {}", ms as f64 / unit, self.needed_ms as f64 / unit),
        }
    }

    fn delivered(&self) -> u64 {
        self.sinks.iter().map(|s| s.delivered).sum()
    }

    fn oldest_ms(&self) -> i64 {
        self.sinks.iter().map(|s| s.oldest_ms).max().unwrap_or(0)
    }
}

impl TripletLine {
    /// How much of the newest token's life is over, 0 to 1; `None` when its life is not known.
    pub fn spent(&self, at: Timestamp) -> Option<f64> {
        let (from, to) = (self.captured_at?, self.expires_at?);
        let life = to.since(from);
        (life > 0).then(|| (at.since(from) as f64 / life as f64).clamp(0.0, 1.0))
    }

    /// `12m of 1h`, or how long ago the token ended.
    pub fn age(&self, at: Timestamp) -> String {
        match (self.captured_at, self.expires_at) {
            (_, Some(end)) if end < at => format!("ended {} ago", short(at.since(end))),
            (Some(from), Some(end)) => format!("{} of {}", short(at.since(from)), short(end.since(from))),
            (Some(from), None) => format!("{}, no end", short(at.since(from))),
            (None, _) => "none yet".to_owned(),
        }
    }
}

/// A duration in its largest unit: a table has no room for two.
pub fn short(ms: i64) -> String {
    let text = format_duration_ms(ms.max(0));
    text.split(' ').next().unwrap_or("0s").to_owned()
}

/// Which way a criterion moves, seen from what the gate wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trend {
    Better,
    Same,
    Worse,
}

/// Pictures kept for trends and sparklines.
const KEPT: usize = 240;

/// What earlier pictures said.
#[derive(Clone, Debug, Default)]
pub struct History {
    observed: BTreeMap<String, VecDeque<f64>>,
    /// Deliveries between two pictures.
    pub deliveries: VecDeque<u64>,
    /// Age of the oldest pending delivery in each picture, seconds.
    pub lag_s: VecDeque<u64>,
    last: Option<(Timestamp, u64)>,
}

impl History {
    /// Remembers a picture; one that is not newer than the last is left out.
    pub fn push(&mut self, picture: &Picture) {
        if self.last.is_some_and(|(at, _)| at >= picture.at) {
            return;
        }
        for c in &picture.criteria {
            if let Some(observed) = c.observed {
                keep(self.observed.entry(c.id.clone()).or_default(), observed);
            }
        }
        let delivered = picture.delivered();
        if let Some((_, before)) = self.last {
            keep(&mut self.deliveries, delivered.saturating_sub(before));
        }
        keep(&mut self.lag_s, picture.oldest_ms().max(0).unsigned_abs() / 1000);
        self.last = Some((picture.at, delivered));
    }

    /// The trend of a criterion over the pictures that are kept.
    pub fn trend(&self, judged: &Judged) -> Trend {
        let seen = self.observed.get(&judged.id);
        let (Some(first), Some(last)) = (seen.and_then(|s| s.front()), seen.and_then(|s| s.back())) else {
            return Trend::Same;
        };
        match last.total_cmp(first) {
            std::cmp::Ordering::Equal => Trend::Same,
            order => {
                let up = order == std::cmp::Ordering::Greater;
                if up == at_least(&judged.id) { Trend::Better } else { Trend::Worse }
            }
        }
    }
}

fn keep<T>(kept: &mut VecDeque<T>, value: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(value);
}

/// Whether a criterion wants at least its threshold; the others allow at most theirs.
pub fn at_least(criterion: &str) -> bool {
    matches!(criterion, "soak-duration" | "delivery-rate" | "parity" | "identity" | "scopes" | "reverse-rehearsed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn criterion(id: &str, observed: f64) -> Judged {
        let mut criterion = super::super::sample::picture(0).criteria.remove(0);
        (criterion.id, criterion.observed) = (id.to_owned(), Some(observed));
        criterion
    }

    fn picture(at: i64, id: &str, observed: f64, delivered: u64) -> Picture {
        Picture {
            at: Timestamp::from_secs(at),
            criteria: vec![criterion(id, observed)],
            sinks: vec![SinkLine { delivered, oldest_ms: 3_000, ..SinkLine::default() }],
            ..Picture::default()
        }
    }

    #[test]
    fn more_is_better_for_a_floor_and_worse_for_a_ceiling() {
        for (id, trend) in [("soak-duration", Trend::Better), ("dead-letters", Trend::Worse)] {
            let mut history = History::default();
            history.push(&picture(1, id, 1.0, 0));
            history.push(&picture(2, id, 2.0, 5));
            assert_eq!(history.trend(&criterion(id, 2.0)), trend, "{id}");
            assert_eq!(Vec::from(history.deliveries.clone()), [5], "what was delivered in between");
            assert_eq!(Vec::from(history.lag_s.clone()), [3, 3]);
        }
    }

    #[test]
    fn the_same_picture_twice_counts_once_and_history_is_bounded() {
        let mut history = History::default();
        history.push(&picture(1, "parity", 1.0, 0));
        history.push(&picture(1, "parity", 9.0, 9));
        assert!(history.deliveries.is_empty());
        for at in 2..1_000 {
            history.push(&picture(at, "parity", 1.0, 0));
        }
        assert_eq!(history.lag_s.len(), KEPT);
    }

    #[test]
    fn a_waived_criterion_does_not_decide_the_verdict() {
        let mut picture = picture(1, "outage", 20.0, 0);
        picture.criteria[0].verdict = Verdict::Fail;
        assert_eq!(picture.verdict(), Verdict::Fail);
        picture.criteria.push(criterion("parity", 3.0));
        picture.criteria[0].waived = true;
        assert_eq!(picture.verdict(), Verdict::Inconclusive);
    }

    #[test]
    fn the_exit_is_as_far_off_as_the_soak_clock_needs() {
        let mut picture = picture(100, "parity", 1.0, 0);
        assert_eq!(picture.earliest_exit(), None, "a clock that has not started has no end");
        (picture.soaked_ms, picture.needed_ms) = (Some(10_000), 25_000);
        assert_eq!(picture.earliest_exit(), Some(Timestamp::from_secs(115)));
    }
}
