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
use super::finding::{Counts, DIAGNOSTICS_MAX, Finding, Hand, Outcome, Rung};
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

/// The first conflicts, as many as can be shown, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Conflicts {
    pub first: BTreeSet<Conflict>,
    pub total: u64,
}

impl Conflicts {
    pub fn add(&mut self, conflict: Conflict) {
        self.total += 1;
        self.keep(conflict);
    }

    pub fn merge(&mut self, other: Self) {
        self.total += other.total;
        other.first.into_iter().for_each(|conflict| self.keep(conflict));
    }

    fn keep(&mut self, conflict: Conflict) {
        self.first.insert(conflict);
        if self.first.len() > DIAGNOSTICS_MAX {
            self.first.pop_last();
        }
    }
}

/// What comparing a partition, or a part of one, gave.
#[derive(Default)]
pub(super) struct Part {
    /// Findings as lines, sorted by key.
    pub lines: Vec<u8>,
    pub counts: Counts,
    pub conflicts: Conflicts,
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

    /// Compares one partition; one that is too large for the memory is split further first, unless
    /// it is large only because one key is in it again and again. Of a key that is repeated only the
    /// first entry is kept, so that one takes no room.
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
        let fits = bytes * 2 <= budget;
        if !fits
            && let Some(finer) = layout.finer()
            && self.has_several_hashes(sides, n)?
        {
            let split = [self.split(sides[0], n, finer)?, self.split(sides[1], n, finer)?];
            for part in 0..finer.partitions() {
                self.partition([&split[0], &split[1]], part, finer, budget, resolver, send)?;
            }
            return Ok(());
        }
        let expected = if fits { bytes as usize } else { 0 };
        send(match resolver {
            Some(resolver) => resolver.compare(sides, n, expected)?,
            None => self.compare(sides, n, expected)?,
        })
    }

    /// The hash of the record at the start of the bytes, and how long it is.
    fn head(&self, bytes: &[u8]) -> io::Result<(u64, usize)> {
        match self.sources {
            Some(_) => bytes.first_chunk().map(|hash| (u64::from_le_bytes(*hash), RECORD_BYTES)),
            None => Record::read(bytes).map(|(record, length)| (record.hash, length)),
        }
        .ok_or_else(damaged)
    }

    fn has_several_hashes(&self, sides: [&Partitions; 2], n: usize) -> io::Result<bool> {
        let (mut first, mut room) = (None, Vec::new());
        for side in sides {
            for piece in 0..side.pieces(n) {
                let mut bytes = side.piece(n, piece, &mut room)?;
                while !bytes.is_empty() {
                    let (hash, length) = self.head(bytes)?;
                    if *first.get_or_insert(hash) != hash {
                        return Ok(true);
                    }
                    bytes = bytes.get(length..).ok_or_else(damaged)?;
                }
            }
        }
        Ok(false)
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
        let mut room = Vec::new();
        for piece in 0..from.pieces(n) {
            let mut bytes = from.piece(n, piece, &mut room)?;
            while !bytes.is_empty() {
                let (hash, length) = self.head(bytes)?;
                let (record, rest) = bytes.split_at_checked(length).ok_or_else(damaged)?;
                writer.copy(hash, record)?;
                bytes = rest;
            }
        }
        writer.finish()
    }

    /// Compares a partition of which about so many bytes are expected to be kept.
    fn compare(&self, sides: [&Partitions; 2], partition: usize, expected: usize) -> io::Result<Part> {
        let mut part = Part::default();
        let mut table = Table::new(expected);
        // The first record of each key.
        let mut kept = sides.map(|side| Vec::with_capacity(expected.min(side.bytes(partition) as usize)));
        let mut room = Vec::new();
        for (n, side) in sides.into_iter().enumerate() {
            for piece in 0..side.pieces(partition) {
                let mut bytes = side.piece(partition, piece, &mut room)?;
                while !bytes.is_empty() {
                    let (record, length) = Record::read(bytes).ok_or_else(damaged)?;
                    let slot = table.slot(record.hash, |slot| {
                        let (side, at) = slot.first();
                        Record::read(&kept[side][at..]).is_some_and(|(other, _)| other.key == record.key)
                    });
                    let (whole, rest) = bytes.split_at(length);
                    if slot.at[n] == NONE {
                        slot.at[n] = kept[n].len();
                        kept[n].extend_from_slice(whole);
                    } else {
                        let (first, _) = Record::read(&kept[n][slot.at[n]..]).ok_or_else(damaged)?;
                        repeated(&first, &record, n, slot, &mut part);
                    }
                    bytes = rest;
                }
            }
        }
        let mut findings: Vec<Finding> = Vec::new();
        let mut matches = 0;
        for slot in &table.slots {
            let record = |n: usize| match slot.at[n] {
                NONE => Ok(None),
                at => Record::read(&kept[n][at..]).map(|(record, _)| Some(record)).ok_or_else(damaged),
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

/// Another record of a key that the side has already.
fn repeated(first: &Record<'_>, record: &Record<'_>, n: usize, slot: &mut Slot, part: &mut Part) {
    let sound = !first.is_broken() && !record.is_broken();
    if sound && first.facts == record.facts {
        part.counts.repeated += 1;
        return;
    }
    slot.conflict[n] = true;
    if sound {
        let key = String::from_utf8_lossy(record.key).into_owned();
        part.conflicts.add(Conflict { hand: Hand::BOTH[n], key, first: first.number, second: record.number });
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a partition on disk does not hold what was written to it")
}

const NONE: usize = usize::MAX;

/// One key of a partition, and where its first record stands among those that are kept.
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
