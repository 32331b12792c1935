//! Two sorted sides, compared in one pass and constant memory.
//!
//! Keys must rise in byte order. The first one that does not ends the pass as [`Pass::Disorder`],
//! and the caller starts again with [`super::spill`]. Entries of a known shape that are the same in
//! all that matters are not taken apart, which is what makes a clean comparison cost little more
//! than reading.

use std::cmp::Ordering;
use std::io;

use super::compare::Keys;
use super::entry::{EntryError, Scanned, scan};
use super::facts::Facts;
use super::finding::{Counts, Finding, Hand, Outcome, Rung};
use super::judge::{Judged, Said, conflicting, judge};
use super::pack::pack;
use super::reader::{Ending, Reader};
use super::rules::Rules;
use super::shape::{Contents, Shapes};

/// How a pass over two sides ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Done,
    /// This side has an entry whose key comes before the one in front of it.
    Disorder {
        hand: Hand,
        entry: u64,
    },
}

/// What a pass tells its caller as it goes.
pub(super) trait Watcher {
    fn found(&mut self, finding: &Finding) -> io::Result<()>;
    /// Everything before the current entries is settled. Called between any two keys; what it
    /// does must be cheap.
    fn between(&mut self, merge: &Merge<'_>) -> io::Result<()>;
}

/// The current entry of one side.
enum Head {
    /// Not looked at yet.
    Raw,
    Entry {
        scanned: Scanned,
        key: Vec<u8>,
    },
    Broken {
        error: EntryError,
        key: Vec<u8>,
    },
    End,
}

impl Head {
    fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Entry { key, .. } | Self::Broken { key, .. } => Some(key),
            Self::Raw | Self::End => None,
        }
    }
}

/// The outcome of the last key, which a repetition of the key may still overturn.
enum Pending {
    Nothing,
    Match(Rung),
    Finding(Box<Finding>),
    /// The other side may well have had the key.
    NotCompared,
    /// This side has several entries with the key and different content.
    Conflict(Hand),
}

pub(super) struct Merge<'r> {
    pub readers: [Reader; 2],
    /// The last key of each side.
    pub last: [Vec<u8>; 2],
    pub counts: Counts,
    rules: &'r Rules,
    keys: &'r Keys,
    heads: [Head; 2],
    pending: Pending,
    pending_key: Vec<u8>,
    /// The first entry with the last key of each side can be used.
    sound: [bool; 2],
    /// Matches at the strongest rung that are not in the counts yet.
    matches: u64,
    /// Room for a key and for two values, kept so that it is not allocated for each entry.
    key: Vec<u8>,
    scratch: [Vec<u8>; 2],
    shapes: Shapes,
    contents: [Contents; 2],
}

impl<'r> Merge<'r> {
    /// `last` and `counts` are those of an earlier pass that is continued.
    pub fn new(readers: [Reader; 2], last: [Vec<u8>; 2], counts: Counts, rules: &'r Rules, keys: &'r Keys) -> Self {
        Self {
            readers,
            last,
            counts,
            rules,
            keys,
            heads: [Head::Raw, Head::Raw],
            pending: Pending::Nothing,
            pending_key: Vec::new(),
            sound: [false; 2],
            matches: 0,
            key: Vec::new(),
            scratch: [Vec::new(), Vec::new()],
            shapes: Shapes::default(),
            contents: [Contents::new(), Contents::new()],
        }
    }

    /// The counts with everything that is settled.
    pub fn settled_counts(&self) -> Counts {
        let mut counts = self.counts.clone();
        counts.add(Outcome::Match, Rung::Fingerprint, self.matches);
        counts
    }

    pub fn run(&mut self, watcher: &mut impl Watcher) -> io::Result<Pass> {
        for n in 0..2 {
            self.advance(n, false);
        }
        loop {
            if let (Head::Raw, Head::Raw) = (&self.heads[0], &self.heads[1])
                && self.take_same(watcher)?
            {
                continue;
            }
            for n in 0..2 {
                while matches!(self.heads[n], Head::Raw) {
                    if let Some(disorder) = self.look(n) {
                        return Ok(disorder);
                    }
                }
            }
            let order = match (self.heads[0].key(), self.heads[1].key()) {
                (Some(left), Some(right)) => left.cmp(right),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            self.settle(watcher)?;
            watcher.between(self)?;
            self.take(order);
        }
        self.settle(watcher)?;
        self.counts.add(Outcome::Match, Rung::Fingerprint, std::mem::take(&mut self.matches));
        Ok(Pass::Done)
    }

    /// Goes to the next entry of a side.
    fn advance(&mut self, n: usize, keep: bool) {
        self.heads[n] = if self.readers[n].advance(keep) { Head::Raw } else { Head::End };
    }

    /// Takes a pair of entries that are plainly the same: by their bytes, or by a shape that both
    /// have. `false` when they are not, or need a closer look.
    fn take_same(&mut self, watcher: &mut impl Watcher) -> io::Result<bool> {
        let [left, right] = &self.readers;
        if self.rules.expect_ours || !left.is_faultless() || !right.is_faultless() {
            return Ok(false);
        }
        let line = left.line();
        let [first, second] = &mut self.contents;
        let Some(fit) = self.shapes.fit(line, first) else { return Ok(false) };
        // The same bytes need only one look.
        let same = left.whole_line().is_some_and(|line| right.rest().starts_with(line))
            || (self.shapes.fit(right.line(), second) == Some(fit)
                && self.shapes.same(fit, [line, right.line()], [first, second]));
        if !same {
            return Ok(false);
        }
        self.key.clear();
        self.key.extend_from_slice(self.shapes.key(fit, line, first));
        if self.key <= self.last[0] || self.key <= self.last[1] {
            return Ok(false);
        }
        self.settle(watcher)?;
        watcher.between(self)?;
        for n in 0..2 {
            self.last[n].clear();
            self.last[n].extend_from_slice(&self.key);
            self.counts.entries[n] += 1;
            self.advance(n, true);
        }
        self.sound = [true; 2];
        self.pending = Pending::Match(Rung::Fingerprint);
        std::mem::swap(&mut self.pending_key, &mut self.key);
        Ok(true)
    }

    /// Looks at the current entry of a side: scans it, checks the order, drops what has no key
    /// and what repeats the entry in front of it.
    fn look(&mut self, n: usize) -> Option<Pass> {
        let reader = &mut self.readers[n];
        let (scanned, key) = match reader.scan() {
            Ok(scanned) => {
                let key = scanned.key(reader.line()).into_owned();
                (Ok(scanned), key)
            }
            Err(mut error) => match error.key.take() {
                Some(key) => (Err(error), key),
                None => {
                    reader.report(&error);
                    self.counts.entries[n] += 1;
                    self.advance(n, false);
                    return None;
                }
            },
        };
        match (key.as_slice().cmp(&self.last[n]), scanned) {
            (Ordering::Less, _) => return Some(Pass::Disorder { hand: reader.hand, entry: reader.number() }),
            (Ordering::Equal, scanned) => self.repeated(n, scanned, key),
            (Ordering::Greater, Ok(scanned)) => self.heads[n] = Head::Entry { scanned, key },
            (Ordering::Greater, Err(error)) => self.heads[n] = Head::Broken { error, key },
        }
        None
    }

    /// The same key again on the same side. It is held against the first entry with that key.
    fn repeated(&mut self, n: usize, scanned: Result<Scanned, EntryError>, key: Vec<u8>) {
        let reader = &mut self.readers[n];
        let [first, second] = &mut self.scratch;
        let packed = |line: &[u8], scanned: &Scanned, scratch: &mut Vec<u8>| {
            let facts = Facts::read(line, scanned, self.rules, scratch)?;
            let mut out = Vec::new();
            pack(&facts, self.keys, &mut out);
            Ok::<_, EntryError>(out)
        };
        let sound = self.sound[n];
        let same = scanned.and_then(|scanned| {
            if sound && reader.kept() == reader.line() {
                return Ok(true);
            }
            let this = packed(reader.line(), &scanned, second)?;
            Ok(sound && packed(reader.kept(), &scan(reader.kept())?, first)? == this)
        });
        match same {
            Ok(true) => self.counts.repeated += 1,
            Ok(false) => {
                // A first entry that cannot be used was reported when it came.
                if sound {
                    let message = "found another entry with the key of the one before and different content, \
                                   expected each key once";
                    reader.report_at(reader.number(), Some(reader.mark().offset), Some(&key), message.to_owned());
                }
                self.conflict(n);
            }
            Err(error) => {
                reader.report(&EntryError { key: Some(key), ..error });
                self.conflict(n);
            }
        }
        self.counts.entries[n] += 1;
        self.advance(n, false);
    }

    /// Whatever was found for the last key of a side does not hold any more.
    fn conflict(&mut self, n: usize) {
        if self.pending_key == self.last[n] && !matches!(self.pending, Pending::Conflict(_)) {
            self.pending = Pending::Conflict(Hand::BOTH[n]);
        }
    }

    /// The outcome of the last key is final now.
    fn settle(&mut self, watcher: &mut impl Watcher) -> io::Result<()> {
        let finding = match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => return Ok(()),
            Pending::NotCompared => {
                self.counts.not_compared += 1;
                return Ok(());
            }
            Pending::Match(rung) if !self.rules.all => {
                match rung {
                    Rung::Fingerprint => self.matches += 1,
                    weaker => self.counts.add(Outcome::Match, weaker, 1),
                }
                return Ok(());
            }
            Pending::Match(rung) => matched(&self.pending_key, rung),
            Pending::Finding(finding) => *finding,
            Pending::Conflict(hand) => conflicting(&self.pending_key, hand),
        };
        self.counts.add(finding.outcome, finding.rung, 1);
        watcher.found(&finding)
    }

    /// Judges the next key: that of both heads, or of the one that comes first.
    fn take(&mut self, order: Ordering) {
        let taken = [order.is_le(), order.is_ge()];
        let [first, second] = &mut self.scratch;
        let mut key = Vec::new();
        let mut facts: [Option<Result<Facts<'_>, EntryError>>; 2] = [None, None];
        for (n, scratch) in [first, second].into_iter().enumerate() {
            if !taken[n] {
                continue;
            }
            facts[n] = match &mut self.heads[n] {
                Head::Entry { scanned, key: its } => {
                    key = std::mem::take(its);
                    Some(Facts::read(self.readers[n].line(), scanned, self.rules, scratch))
                }
                Head::Broken { error, key: its } => {
                    key = std::mem::take(its);
                    Some(Err(EntryError { key: Some(key.clone()), ..error.clone() }))
                }
                Head::Raw | Head::End => None,
            };
        }
        let other_broke_off = |n: usize| !taken[n] && self.readers[n].ending == Some(Ending::BrokeOff);
        self.pending = if other_broke_off(0) || other_broke_off(1) {
            Pending::NotCompared
        } else {
            let said = facts.each_ref().map(|facts| match facts {
                None => Said::Nothing,
                Some(Ok(facts)) => Said::Entry(facts),
                Some(Err(_)) => Said::Broken,
            });
            match judge(&key, &said[0], &said[1], self.rules, self.keys) {
                Judged::Skipped => Pending::Nothing,
                Judged::Match(rung) => Pending::Match(rung),
                Judged::Finding(finding) => Pending::Finding(finding),
            }
        };
        for (n, facts) in facts.iter().enumerate() {
            if let (Some(Ok(facts)), Head::Entry { scanned, .. }) = (facts, &self.heads[n]) {
                let line = self.readers[n].line();
                if self.shapes.wants(facts) && self.shapes.fit(line, &mut self.contents[n]).is_none() {
                    self.shapes.learn(line, scanned, facts, self.rules);
                }
            }
        }
        let errors = facts.map(|facts| facts.and_then(Result::err));
        for (n, error) in errors.into_iter().enumerate() {
            if taken[n] {
                self.sound[n] = error.is_none();
                if let Some(error) = error {
                    self.readers[n].report(&error);
                }
                self.last[n].clear();
                self.last[n].extend_from_slice(&key);
                self.counts.entries[n] += 1;
                self.advance(n, true);
            }
        }
        self.pending_key = key;
    }
}

/// A match as a line of the report, for those who want to see them all.
pub(super) fn matched(key: &[u8], rung: Rung) -> Finding {
    Finding {
        key: String::from_utf8_lossy(key).into_owned(),
        outcome: Outcome::Match,
        rung,
        changes: Vec::new(),
        foreign: Vec::new(),
        reason: None,
        diff: None,
        seen: None,
    }
}
