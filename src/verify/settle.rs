//! Lag is not divergence: what a comparison of live sides found is looked at again before it counts.
//!
//! While two sides are read, somebody writes. A difference is final only when both sides said the
//! same thing twice, a whole propagation window apart: then nothing was on its way. When either
//! side said something else meanwhile, the window begins anew for that key. A key that never comes
//! to rest stays `settling`, which is neither a match nor a difference.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::compare::Keys;
use super::entry::scan;
use super::facts::Facts;
use super::finding::{Counts, Diagnostic, Diagnostics, Finding, Hand, Outcome};
use super::judge::{Judged, Said, judge};
use super::merge::matched;
use super::rules::Rules;
use super::side::{LOOK_KEYS_MAX, Look, Now, Source};
use super::spool::{Segment, Spool};
use crate::domain::time::Timestamp;

/// Tells the time and lets it pass. Nothing in this module knows whether that is real time.
pub trait Clock: Send + Sync + std::fmt::Debug {
    fn now(&self) -> Timestamp;
    /// Returns when it is `at` or later.
    fn wait_until(&self, at: Timestamp);
}

/// How often a key is looked at before it is left as settling. Each round takes a propagation
/// window, and a token changes once in tens of minutes: whoever changes this often is no lag.
const ROUNDS_MAX: u32 = 8;

/// Whether a finding is one that time may undo.
pub(super) fn may_settle(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Missing | Outcome::Extra | Outcome::Changed | Outcome::Foreign | Outcome::Settling)
}

/// What is needed to look again.
pub(super) struct Settler<'a> {
    pub sides: [&'a dyn Source; 2],
    pub rules: &'a Rules,
    pub keys: &'a Keys,
    pub clock: &'a Arc<dyn Clock>,
    /// The propagation window, in milliseconds.
    pub window_ms: i64,
    /// Where files without a name may lie.
    pub folder: Option<&'a Path>,
}

/// What became of the findings.
pub(super) struct Settled {
    pub spool: Spool,
    pub segments: Vec<Segment>,
    pub counts: Counts,
}

impl Settler<'_> {
    /// Looks at the findings in `segments` of `spool` until each is final. `found` gets the final
    /// ones. A side that does not answer leaves them settling, and says so in the diagnostics.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn settle(
        &self,
        spool: &mut Spool,
        segments: &[Segment],
        mut counts: Counts,
        diagnostics: &mut Diagnostics,
        found: &mut dyn FnMut(&Finding),
    ) -> io::Result<Settled> {
        let mut finals = Finals { spool: Spool::unnamed(self.folder)?, segments: Vec::new(), from: 0 };
        let mut open = Spool::unnamed(self.folder)?;
        let mut suspects = 0u64;
        spool.replay(segments, |finding| {
            if may_settle(finding.outcome) {
                counts.take(finding.outcome, finding.rung);
                suspects += 1;
                open.add(&finding)
            } else {
                found(&finding);
                finals.spool.add(&finding)
            }
        })?;
        finals.close();
        let mut failed = false;
        for round in 1..=ROUNDS_MAX {
            if suspects == 0 {
                break;
            }
            // All of them were seen before now, so the window is over for all of them then.
            if !failed {
                self.clock.wait_until(self.clock.now().plus_ms(self.window_ms));
            }
            let mut looks = [self.sides[0].look_again(suspects), self.sides[1].look_again(suspects)];
            let mut still = Spool::unnamed(self.folder)?;
            let mut batch: Vec<Finding> = Vec::with_capacity(LOOK_KEYS_MAX);
            suspects = 0;
            let mut judge_batch = |batch: &mut Vec<Finding>| -> io::Result<()> {
                for (before, judged) in self.look(&mut looks, std::mem::take(batch), diagnostics, &mut failed) {
                    let last = round == ROUNDS_MAX || failed;
                    match self.conclude(before, judged, last) {
                        Conclusion::Match(finding) => {
                            counts.add(finding.outcome, finding.rung, 1);
                            if self.rules.all {
                                found(&finding);
                                finals.spool.add(&finding)?;
                            }
                        }
                        Conclusion::Final(finding) => {
                            counts.add(finding.outcome, finding.rung, 1);
                            found(&finding);
                            finals.spool.add(&finding)?;
                        }
                        Conclusion::Gone => {}
                        Conclusion::Open(finding) => {
                            suspects += 1;
                            still.add(&finding)?;
                        }
                    }
                }
                Ok(())
            };
            let all = Segment { start: 0, end: open.length() };
            open.replay(&[all], |finding| {
                batch.push(finding);
                if batch.len() == LOOK_KEYS_MAX { judge_batch(&mut batch) } else { Ok(()) }
            })?;
            judge_batch(&mut batch)?;
            finals.close();
            open = still;
        }
        let Finals { spool, segments, .. } = finals;
        Ok(Settled { spool, segments, counts })
    }

    /// Looks at one batch of keys on both sides.
    fn look(
        &self,
        looks: &mut [Option<Box<dyn Look>>; 2],
        batch: Vec<Finding>,
        diagnostics: &mut Diagnostics,
        failed: &mut bool,
    ) -> Vec<(Finding, Option<Judgement>)> {
        let names: Vec<String> = batch.iter().map(|finding| finding.key.clone()).collect();
        let mut said: Vec<Vec<Now>> = Vec::with_capacity(2);
        for (hand, look) in Hand::BOTH.into_iter().zip(looks) {
            if names.is_empty() || *failed {
                break;
            }
            match look.as_mut().map(|look| look.look(&names)) {
                Some(Ok(now)) => said.push(now),
                Some(Err(halt)) => {
                    *failed = true;
                    let source = self.sides[hand as usize].name().to_owned();
                    let message = format!("differences could not be looked at again: {}", halt.message);
                    diagnostics.add(Diagnostic { side: hand, source, entry: None, offset: None, key: None, message });
                }
                None => *failed = true,
            }
        }
        let [left, right]: [Vec<Now>; 2] = match said.try_into() {
            Ok(both) => both,
            Err(_) => return batch.into_iter().map(|finding| (finding, None)).collect(),
        };
        let now = left.into_iter().zip(right);
        let judged = |finding: Finding, (l, r): (Now, Now)| {
            let judgement = judge_now(&finding.key, &l, &r, self.rules, self.keys);
            (finding, Some(judgement))
        };
        batch.into_iter().zip(now).map(|(finding, now)| judged(finding, now)).collect()
    }

    fn conclude(&self, before: Finding, judged: Option<Judgement>, last: bool) -> Conclusion {
        match judged {
            None => Conclusion::Final(unsettled(before, "it could not be looked at again")),
            Some(Judgement::Gone) => Conclusion::Gone,
            Some(Judgement::Match(finding)) => Conclusion::Match(finding),
            Some(Judgement::Differs(finding)) => {
                if !may_settle(finding.outcome) || finding.seen == before.seen {
                    Conclusion::Final(Finding { seen: None, ..finding })
                } else if last {
                    Conclusion::Final(unsettled(finding, "it changed whenever it was looked at"))
                } else {
                    Conclusion::Open(finding)
                }
            }
        }
    }
}

/// Findings that are final, in segments.
struct Finals {
    spool: Spool,
    segments: Vec<Segment>,
    from: u64,
}

impl Finals {
    /// What was added since the last call is one run, sorted by key.
    fn close(&mut self) {
        let end = self.spool.length();
        if end > self.from {
            self.segments.push(Segment { start: self.from, end });
        }
        self.from = end;
    }
}

enum Conclusion {
    Match(Finding),
    Final(Finding),
    /// Neither side has it any more.
    Gone,
    Open(Finding),
}

/// What both sides say of one key at one look.
pub(super) enum Judgement {
    /// Neither side has it any more, or it is left out.
    Gone,
    Match(Finding),
    Differs(Finding),
}

/// Judges what two live sides say of a key.
pub(super) fn judge_now(key: &str, left: &Now, right: &Now, rules: &Rules, keys: &Keys) -> Judgement {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let facts = [facts_of(left, rules, &mut first), facts_of(right, rules, &mut second)];
    let said = facts.each_ref().map(|facts| match facts {
        None => Said::Nothing,
        Some(Ok(facts)) => Said::Entry(facts),
        Some(Err(())) => Said::Broken,
    });
    if let [Said::Nothing, Said::Nothing] = said {
        return Judgement::Gone;
    }
    match judge(key.as_bytes(), &said[0], &said[1], rules, keys) {
        Judged::Skipped => Judgement::Gone,
        Judged::Match(rung) => Judgement::Match(matched(key.as_bytes(), rung)),
        Judged::Finding(finding) => Judgement::Differs(*finding),
    }
}

/// `Err`: the entry cannot be used.
fn facts_of<'a>(now: &'a Now, rules: &Rules, scratch: &'a mut Vec<u8>) -> Option<Result<Facts<'a>, ()>> {
    match now {
        Now::Absent => None,
        Now::Broken => Some(Err(())),
        Now::Entry(line) => {
            Some(scan(line).and_then(|scanned| Facts::read(line, &scanned, rules, scratch)).map_err(drop))
        }
    }
}

fn unsettled(finding: Finding, why: &str) -> Finding {
    let reason = Some(format!("{}, but {why}", finding.outcome));
    Finding { outcome: Outcome::Settling, reason, seen: None, ..finding }
}
