//! Compares two sides that were cut into partitions: each partition of the left with that of the
//! right, on as many threads as there are processors, within a bound of memory.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use serde::{Deserialize, Serialize};

use super::compact::{RECORD_BYTES, Resolver};
use super::compare::Keys;
use super::finding::{Counts, Finding, Hand, Outcome, Rung};
use super::judge::{Judged, Said, conflicting, judge};
use super::merge::matched;
use super::pack::unpack;
use super::rules::Rules;
use super::side::Source;
use super::spill::{Layout, Partitions, Record, Writer};
use super::spool::write_line;

/// Threads that compare partitions. Each needs its share of the memory, and reading the
/// partitions back is soon the limit.
const THREADS_MAX: usize = 4;

/// Two entries of one side with the same key and different content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Conflict {
    pub hand: Hand,
    pub key: String,
    pub first: u64,
    pub second: u64,
}

/// What comparing a partition, or a part of one, gave.
#[derive(Default)]
pub(super) struct Part {
    /// Findings as lines, sorted by key.
    pub lines: Vec<u8>,
    pub counts: Counts,
    pub conflicts: Vec<Conflict>,
}

/// What is needed to compare partitions.
pub(super) struct Join<'a> {
    pub sides: [&'a Partitions; 2],
    pub layout: Layout,
    pub rules: &'a Rules,
    pub keys: &'a Keys,
    /// Bytes of all partitions that are in memory at once.
    pub memory: u64,
    /// Where files without a name may lie.
    pub folder: Option<&'a Path>,
    /// Where entries are looked up again, when the records are of the short form.
    pub sources: Option<[&'a dyn Source; 2]>,
    /// Whether a side broke off, so that what only the other one has cannot be judged.
    pub broke_off: [bool; 2],
}

impl Join<'_> {
    /// Compares all partitions but those in `done`. `part` gets each part as it comes, `finished`
    /// the number of each partition of which there is no more.
    pub fn run(
        &self,
        done: &BTreeSet<usize>,
        mut part: impl FnMut(usize, Part) -> io::Result<()>,
        mut finished: impl FnMut(usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let budget = self.memory / threads as u64;
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (sender, parts) = sync_channel::<io::Result<(usize, Option<Part>)>>(threads);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let sender = sender.clone();
                let (next, stop) = (&next, &stop);
                scope.spawn(move || {
                    let mut resolver = match self.resolver() {
                        Ok(resolver) => resolver,
                        Err(error) => {
                            let _ = sender.send(Err(error));
                            return;
                        }
                    };
                    while !stop.load(Ordering::Relaxed) {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= self.layout.partitions() {
                            return;
                        }
                        if done.contains(&n) {
                            continue;
                        }
                        let mut send =
                            |part| sender.send(Ok((n, Some(part)))).map_err(|_| io::ErrorKind::BrokenPipe.into());
                        let compared = self.partition(self.sides, n, self.layout, budget, &mut resolver, &mut send);
                        // The receiver only goes away when the whole comparison failed.
                        let _ = sender.send(compared.map(|()| (n, None)));
                    }
                });
            }
            drop(sender);
            let mut outcome = Ok(());
            for message in parts {
                let handled = message.and_then(|(n, content)| match content {
                    Some(content) => part(n, content),
                    None => finished(n),
                });
                if let Err(error) = handled {
                    stop.store(true, Ordering::Relaxed);
                    outcome = outcome.and(Err(error));
                }
            }
            outcome
        })
    }

    /// Compares one partition; one that is too large for the memory is split further first.
    fn partition(
        &self,
        sides: [&Partitions; 2],
        n: usize,
        layout: Layout,
        budget: u64,
        resolver: &mut Option<Resolver<'_>>,
        send: &mut dyn FnMut(Part) -> io::Result<()>,
    ) -> io::Result<()> {
        let bytes = sides[0].bytes(n) + sides[1].bytes(n);
        // The index takes about as much again for short records.
        if bytes * 2 > budget
            && let Some(finer) = layout.finer()
        {
            let split = [self.split(sides[0], n, finer)?, self.split(sides[1], n, finer)?];
            for part in 0..finer.partitions() {
                self.partition([&split[0], &split[1]], part, finer, budget, resolver, send)?;
            }
            return Ok(());
        }
        let loaded = [sides[0].load(n)?, sides[1].load(n)?];
        let loaded = [loaded[0].as_slice(), loaded[1].as_slice()];
        send(match resolver {
            Some(resolver) => resolver.compare(loaded)?,
            None => self.compare(loaded)?,
        })
    }

    fn resolver(&self) -> io::Result<Option<Resolver<'_>>> {
        let Some([left, right]) = self.sources else { return Ok(None) };
        let (Some(left), Some(right)) = (left.lookup()?, right.lookup()?) else { return Err(damaged()) };
        let Self { rules, keys, broke_off, .. } = *self;
        Ok(Some(Resolver { rules, keys, broke_off, lookups: [left, right] }))
    }

    /// Cuts a partition into smaller ones.
    fn split(&self, from: &Partitions, n: usize, finer: Layout) -> io::Result<Partitions> {
        let mut writer = Writer::new(finer, self.folder, 0)?;
        let mut bytes = Vec::new();
        for piece in 0..from.pieces(n) {
            bytes.clear();
            from.load_piece(n, piece, &mut bytes)?;
            let mut at = 0;
            while at < bytes.len() {
                let (hash, length) = match self.sources {
                    Some(_) => (u64::from_le_bytes(*bytes[at..].first_chunk().ok_or_else(damaged)?), RECORD_BYTES),
                    None => Record::read(&bytes[at..]).map(|(r, length)| (r.hash, length)).ok_or_else(damaged)?,
                };
                writer.copy(hash, bytes.get(at..at + length).ok_or_else(damaged)?)?;
                at += length;
            }
        }
        writer.finish()
    }

    fn compare(&self, sides: [&[u8]; 2]) -> io::Result<Part> {
        let mut part = Part::default();
        let mut table = Table::new(sides[0].len() + sides[1].len());
        for (n, bytes) in sides.into_iter().enumerate() {
            let mut at = 0;
            while at < bytes.len() {
                let (record, length) = Record::read(&bytes[at..]).ok_or_else(damaged)?;
                let slot = table.slot(record.hash, |slot| {
                    let (side, at) = slot.first();
                    Record::read(&sides[side][at..]).is_some_and(|(other, _)| other.key == record.key)
                });
                if slot.at[n] == NONE {
                    slot.at[n] = at;
                } else {
                    let (first, _) = Record::read(&bytes[slot.at[n]..]).ok_or_else(damaged)?;
                    if first.facts == record.facts && !first.is_broken() && !record.is_broken() {
                        part.counts.repeated += 1;
                    } else {
                        slot.conflict[n] = true;
                        if !first.is_broken() && !record.is_broken() {
                            let (first, second) = (first.number.min(record.number), first.number.max(record.number));
                            let key = String::from_utf8_lossy(record.key).into_owned();
                            part.conflicts.push(Conflict { hand: Hand::BOTH[n], key, first, second });
                        }
                    }
                }
                at += length;
            }
        }
        let mut findings: Vec<Finding> = Vec::new();
        let mut matches = 0;
        for slot in &table.slots {
            let record = |n: usize| match slot.at[n] {
                NONE => Ok(None),
                at => Record::read(&sides[n][at..]).map(|(record, _)| Some(record)).ok_or_else(damaged),
            };
            let pair = [record(0)?, record(1)?];
            if let [Some(left), Some(right)] = &pair
                && slot.conflict == [false; 2]
                && left.is_decisive()
                && right.is_decisive()
                && left.facts == right.facts
                && !self.rules.all
                && (!self.rules.expect_ours || (left.is_ours() && right.is_ours()))
            {
                matches += 1;
                continue;
            }
            self.judge(pair, slot.conflict, &mut part.counts, &mut findings)?;
        }
        part.counts.add(Outcome::Match, Rung::Fingerprint, matches);
        findings.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        findings.iter().for_each(|finding| write_line(finding, &mut part.lines));
        Ok(part)
    }

    fn judge(
        &self,
        pair: [Option<Record<'_>>; 2],
        conflict: [bool; 2],
        counts: &mut Counts,
        findings: &mut Vec<Finding>,
    ) -> io::Result<()> {
        let Some(key) = pair[0].or(pair[1]).map(|record| record.key) else { return Ok(()) };
        if let Some(n) = (0..2).find(|n| conflict[*n]) {
            let finding = conflicting(key, Hand::BOTH[n]);
            counts.add(finding.outcome, finding.rung, 1);
            findings.push(finding);
            return Ok(());
        }
        if (0..2).any(|n| pair[n].is_none() && self.broke_off[n]) {
            counts.not_compared += 1;
            return Ok(());
        }
        let mut facts = [None, None];
        for (facts, record) in facts.iter_mut().zip(&pair) {
            if let Some(record) = record.filter(|record| !record.is_broken()) {
                *facts = Some(unpack(record.facts, record.written_at, record.is_ours()).ok_or_else(damaged)?);
            }
        }
        let said = |n: usize| match (&pair[n], &facts[n]) {
            (None, _) => Said::Nothing,
            (Some(_), None) => Said::Broken,
            (Some(_), Some(facts)) => Said::Entry(facts),
        };
        match judge(key, &said(0), &said(1), self.rules, self.keys) {
            Judged::Skipped => {}
            Judged::Match(rung) => {
                counts.add(Outcome::Match, rung, 1);
                if self.rules.all {
                    findings.push(matched(key, rung));
                }
            }
            Judged::Finding(finding) => {
                counts.add(finding.outcome, finding.rung, 1);
                findings.push(*finding);
            }
        }
        Ok(())
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a partition on disk does not hold what was written to it")
}

const NONE: usize = usize::MAX;

/// One key of a partition, and where its first record stands on each side.
struct Slot {
    hash: u64,
    at: [usize; 2],
    conflict: [bool; 2],
}

impl Slot {
    /// A record of this key.
    fn first(&self) -> (usize, usize) {
        if self.at[0] == NONE { (1, self.at[1]) } else { (0, self.at[0]) }
    }
}

/// Keys by hash, open addressing. The hash is as good in its low bits as in those that picked
/// the partition.
struct Table {
    /// Number of the slot plus one, or 0.
    index: Vec<u32>,
    slots: Vec<Slot>,
}

impl Table {
    /// For partitions of this many bytes.
    fn new(bytes: usize) -> Self {
        // Records have about 150 bytes, and most keys are on both sides.
        let slots = (bytes / 256).max(16);
        Self { index: vec![0; (slots * 2).next_power_of_two()], slots: Vec::with_capacity(slots) }
    }

    /// The slot of a key, a new one if need be. `is_same` compares the keys.
    fn slot(&mut self, hash: u64, is_same: impl Fn(&Slot) -> bool) -> &mut Slot {
        if self.slots.len() * 2 >= self.index.len() {
            self.grow();
        }
        let mask = self.index.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            match self.index[at] as usize {
                0 => {
                    self.slots.push(Slot { hash, at: [NONE; 2], conflict: [false; 2] });
                    self.index[at] = self.slots.len() as u32;
                    let last = self.slots.len() - 1;
                    return &mut self.slots[last];
                }
                n if self.slots[n - 1].hash == hash && is_same(&self.slots[n - 1]) => return &mut self.slots[n - 1],
                _ => at = (at + 1) & mask,
            }
        }
    }

    fn grow(&mut self) {
        let mask = self.index.len() * 2 - 1;
        self.index = vec![0; mask + 1];
        for (n, slot) in self.slots.iter().enumerate() {
            let mut at = slot.hash as usize & mask;
            while self.index[at] != 0 {
                at = (at + 1) & mask;
            }
            self.index[at] = n as u32 + 1;
        }
    }
}
