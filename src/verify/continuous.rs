//! Round after round: what changed since it was last compared comes first, and everything comes
//! within a period.
//!
//! Each round lists both sides, notes what the listings say of each key, and looks into the keys
//! whose listing is another than at their last comparison, then into those whose last comparison is
//! the longest ago, as many as the period asks of a round. Where each key stands is in the store,
//! so a round that is killed costs nothing but the rest of itself.
//!
//! **The watermark.** `clean_at` of a key is a time at which a comparison began that found no
//! difference. Both sides were read after it, so every write that both sides showed by `clean_at` is
//! the same on both or was overwritten by one that is. It says nothing of later writes. It never
//! moves back, and a difference, a secret that could not be compared, or a key that does not come to
//! rest leaves it where it is. The watermark of a pair of sides is the oldest of its keys'; without
//! one for each key there is none.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::compare::Keys;
use super::finding::{Counts, Diagnostics, Hand, Outcome, Rung};
use super::live::Caller;
use super::reader::Reader;
use super::rules::Rules;
use super::run::{Report, VerifyError};
use super::settle::{Clock, Judgement, Settled, Settler, judge_now, may_settle};
use super::side::{LOOK_KEYS_MAX, Mark, Source};
use super::spool::{Segment, Spool};
use crate::domain::secret::Fingerprint;
use crate::domain::time::Timestamp;
use crate::store::{Checked, DueKeys, Store, StoreError};

/// Keys whose listings are noted in one commit.
const NOTE_KEYS: usize = 500;

/// A pair of live sides that is compared again and again.
pub struct Continuous<'a> {
    /// Names the watermarks: the two sides, and how they are compared.
    pub pair: String,
    /// By their keys and metadata.
    pub listings: [&'a dyn Source; 2],
    /// As deep as the comparison goes.
    pub sides: [&'a dyn Source; 2],
    pub rules: &'a Rules,
    pub keys: &'a Keys,
    pub clock: &'a Arc<dyn Clock>,
    pub store: &'a Store,
    pub caller: &'a Caller,
    /// The propagation window, in milliseconds.
    pub settle_ms: i64,
    /// From one round to the next, in milliseconds.
    pub every_ms: i64,
    /// Within this every key is compared, in milliseconds.
    pub period_ms: i64,
    /// Where temporary files lie; the system's folder for them if none.
    pub folder: Option<&'a Path>,
}

/// What a round has shown.
pub struct Round {
    pub began_at: Timestamp,
    /// Of the keys that were compared in it.
    pub report: Report,
    /// Keys that both listings hold together.
    pub keys: u64,
    /// Compared because their listing had changed, and because it was their turn.
    pub changed: u64,
    pub in_turn: u64,
    /// In milliseconds, waiting included.
    pub took_ms: i64,
    /// The watermark of the pair.
    pub clean_at: Option<Timestamp>,
}

/// Why a round came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{side} could not be listed: {message}")]
    Listing { side: String, message: String },
    #[error("failed to keep the findings")]
    Io(#[from] io::Error),
}

impl Continuous<'_> {
    /// One round, from now on.
    ///
    /// # Errors
    /// When a side cannot be listed to its end, or the store or the disk fails. Watermarks stay as
    /// they were.
    pub fn round(&self) -> Result<Round, RoundError> {
        let began_at = self.clock.now();
        let pair = &self.pair;
        let (keys, entries) = self.list(pair, began_at)?;
        let mut work = Work {
            spool: Spool::unnamed(self.folder)?,
            segments: Vec::new(),
            counts: Counts::of_entries(entries),
            diagnostics: Diagnostics::default(),
        };
        let changed = self.check(pair, DueKeys::Changed, began_at, u64::MAX, &mut work)?;
        let rounds = u64::try_from(self.period_ms / self.every_ms.max(1)).unwrap_or(1).max(1);
        // Beside what changed, so that no number of changes puts the others off beyond the period.
        let in_turn = self.check(pair, DueKeys::InTurn, began_at, keys.div_ceil(rounds), &mut work)?;
        let report = self.settle(pair, work)?;
        let clean_at = self.caller.wait_for(self.store.load_watermark(pair))?;
        let took_ms = self.clock.now().since(began_at);
        Ok(Round { began_at, report, keys, changed, in_turn, took_ms, clean_at })
    }

    /// Notes what both listings say of each key. Returns how many there are.
    fn list(&self, pair: &str, at: Timestamp) -> Result<(u64, [u64; 2]), RoundError> {
        let reader = |hand: Hand| {
            let source = self.listings[hand as usize];
            Reader::new(hand, source.name(), source.open(Mark::default(), Arc::new(AtomicU64::new(0))))
        };
        let mut readers = Hand::BOTH.map(reader);
        let mut heads = [None, None];
        for (reader, head) in readers.iter_mut().zip(&mut heads) {
            *head = next(reader);
        }
        let (mut keys, mut entries) = (0u64, [0u64; 2]);
        let mut batch: Vec<(String, Fingerprint)> = Vec::with_capacity(NOTE_KEYS);
        while let Some(key) = heads.iter().flatten().min().cloned() {
            let mut text = Vec::new();
            for (n, (reader, head)) in readers.iter_mut().zip(&mut heads).enumerate() {
                text.push(n as u8);
                if head.as_ref() == Some(&key) {
                    text.extend_from_slice(reader.line());
                    entries[n] += 1;
                    *head = next(reader);
                }
            }
            keys += 1;
            // Under the key of the installation, so that it is the same in the next process.
            let listed = self.store.vault().fingerprints().listing_digest(&text);
            batch.push((String::from_utf8_lossy(&key).into_owned(), listed));
            if batch.len() == NOTE_KEYS {
                self.caller.wait_for(self.store.note_listed(pair, &batch, at))?;
                batch.clear();
            }
        }
        self.caller.wait_for(self.store.note_listed(pair, &batch, at))?;
        for reader in &readers {
            if let Some(problem) = reader.diagnostics.shown.first() {
                let side = problem.source.clone();
                return Err(RoundError::Listing { side, message: problem.message.clone() });
            }
        }
        // What neither listing holds any more needs no watermark.
        self.caller.wait_for(self.store.forget_unlisted(pair, at))?;
        Ok((keys, entries))
    }

    /// Compares keys that are due, at most `most`. Returns how many it were.
    fn check(
        &self,
        pair: &str,
        due: DueKeys,
        began_at: Timestamp,
        most: u64,
        work: &mut Work,
    ) -> Result<u64, RoundError> {
        let mut done = 0u64;
        while done < most {
            let limit = usize::try_from(most - done).unwrap_or(usize::MAX).min(LOOK_KEYS_MAX);
            let mut batch: Vec<(String, Fingerprint)> =
                self.caller.wait_for(self.store.load_due_keys(pair, due, began_at, limit as u32))?;
            if batch.is_empty() {
                break;
            }
            batch.sort();
            done += batch.len() as u64;
            let at = self.clock.now();
            let names: Vec<String> = batch.iter().map(|(key, _)| key.clone()).collect();
            let mut said = Vec::with_capacity(2);
            for side in self.sides {
                let look = side.look_again(names.len() as u64);
                let now = look.map(|mut look| look.look(&names));
                match now {
                    Some(Ok(now)) => said.push(now),
                    Some(Err(halt)) => {
                        return Err(RoundError::Listing { side: side.name().to_owned(), message: halt.message });
                    }
                    None => {
                        return Err(RoundError::Listing {
                            side: side.name().to_owned(),
                            message: "it is no live side".to_owned(),
                        });
                    }
                }
            }
            let mut checked = Vec::with_capacity(batch.len());
            for (n, (key, listed)) in batch.into_iter().enumerate() {
                let (outcome, rung) = match judge_now(&key, &said[0][n], &said[1][n], self.rules, self.keys) {
                    // Deleted since it was listed: the next listing forgets it.
                    Judgement::Gone => (Outcome::Match, Rung::Status),
                    Judgement::Match(finding) => {
                        work.counts.add(finding.outcome, finding.rung, 1);
                        (finding.outcome, finding.rung)
                    }
                    Judgement::Differs(finding) => {
                        work.counts.add(finding.outcome, finding.rung, 1);
                        work.spool.add(&finding)?;
                        // Not final: until it is, the key counts as neither.
                        let outcome = if may_settle(finding.outcome) { Outcome::Settling } else { finding.outcome };
                        (outcome, finding.rung)
                    }
                };
                checked.push(Checked { key, listed, outcome: outcome.as_str(), rung: rung.as_str(), at });
            }
            work.close();
            self.caller.wait_for(self.store.note_checked(pair, &checked))?;
        }
        Ok(done)
    }

    /// Looks again at what differed, and notes how it ended.
    fn settle(&self, pair: &str, mut work: Work) -> Result<Report, RoundError> {
        // No look that ends a difference begins before the window is over.
        let at = self.clock.now().plus_ms(self.settle_ms);
        let rules = Rules { all: true, ..self.rules.clone() };
        let settler = Settler {
            sides: self.sides,
            rules: &rules,
            keys: self.keys,
            clock: self.clock,
            window_ms: self.settle_ms,
            folder: self.folder,
        };
        let mut ended: Vec<(String, Outcome, &'static str)> = Vec::new();
        let Settled { spool, segments, counts } =
            settler.settle(&mut work.spool, &work.segments, work.counts, &mut work.diagnostics, &mut |finding| {
                ended.push((finding.key.clone(), finding.outcome, finding.rung.as_str()))
            })?;
        for batch in ended.chunks(NOTE_KEYS) {
            let batch: Vec<(&str, &str, &str)> =
                batch.iter().map(|(key, outcome, rung)| (key.as_str(), outcome.as_str(), *rung)).collect();
            self.caller.wait_for(self.store.note_settled(pair, &batch, at))?;
        }
        Ok(Report::of(counts, work.diagnostics, spool, segments))
    }
}

/// The findings of a round on their way.
struct Work {
    spool: Spool,
    segments: Vec<Segment>,
    counts: Counts,
    diagnostics: Diagnostics,
}

impl Work {
    /// What was added since the last call is one run, sorted by key.
    fn close(&mut self) {
        let (start, end) = (self.segments.last().map_or(0, |segment| segment.end), self.spool.length());
        if end > start {
            self.segments.push(Segment { start, end });
        }
    }
}

/// The key of the next usable entry of a listing.
fn next(reader: &mut Reader) -> Option<Vec<u8>> {
    while reader.advance(false) {
        match reader.scan() {
            Ok(scanned) => return Some(scanned.key(reader.line()).into_owned()),
            Err(error) => reader.report(&error),
        }
    }
    None
}
