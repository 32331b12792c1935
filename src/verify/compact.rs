//! The short form of a partition's records, for sides in which an entry can be looked up again:
//! a hash of the key, a digest of all that is compared, and where the entry stands. Two records
//! with the same digest are a match; the few others are read again and compared in full. Such
//! records take a tenth of the room, so that millions of them fit into memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;

use super::compare::Keys;
use super::entry::{Scanned, scan};
use super::facts::Facts;
use super::finding::{Counts, Finding, Hand, Outcome, Rung};
use super::join::{Conflict, Part};
use super::judge::{Judged, Said, conflicting, judge};
use super::pack::{Bytes, pack};
use super::reader::{Ending, Reader};
use super::rules::Rules;
use super::shape::{Contents, Fit, Shapes};
use super::side::Lookup;
use super::spill::{PASSED_EVERY, Partitions, Writer, hash};
use super::spool::write_line;

/// Bytes of a record.
pub(super) const RECORD_BYTES: usize = 28;

/// Words of 64 bits that are sealed; longer entries are looked up again.
const WORDS_MAX: usize = 96;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The digest covers all that is compared.
    Sealed,
    /// To be looked up in any case.
    Open,
    /// Cannot be used.
    Broken,
}

#[derive(Clone, Copy)]
struct Record {
    hash: u64,
    digest: u64,
    /// Where the entry stands, in bytes.
    offset: u64,
    /// Its number in its side.
    number: u64,
    state: State,
}

impl Record {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hash.to_le_bytes());
        out.extend_from_slice(&self.digest.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes()[..6]);
        let number = self.number << 2 | self.state as u64;
        out.extend_from_slice(&number.to_le_bytes()[..6]);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Bytes(bytes);
        let hash = u64::from_le_bytes(bytes.array()?);
        let digest = u64::from_le_bytes(bytes.array()?);
        let mut six = || -> Option<u64> {
            let mut word = [0; 8];
            word[..6].copy_from_slice(bytes.take(6)?);
            Some(u64::from_le_bytes(word))
        };
        let (offset, number) = (six()?, six()?);
        let state = match number & 3 {
            0 => State::Sealed,
            1 => State::Open,
            _ => State::Broken,
        };
        Some(Self { hash, digest, offset, number: number >> 2, state })
    }

    /// Whether both are sealed, and say the same of the same key.
    fn is_sealed_as(&self, other: &Self) -> bool {
        (self.state, other.state) == (State::Sealed, State::Sealed) && self.digest == other.digest
    }
}

/// The record of this number among those that are kept.
fn record_at(kept: &[u8], at: u32) -> io::Result<Record> {
    kept.get(at as usize * RECORD_BYTES..).and_then(Record::read).ok_or_else(changed)
}

/// Hands out the records of a partition.
fn each_record(side: &Partitions, partition: usize, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut room = Vec::new();
    for piece in 0..side.pieces(partition) {
        side.piece(partition, piece, &mut room)?.chunks_exact(RECORD_BYTES).try_for_each(&mut each)?;
    }
    Ok(())
}

/// Digests entries of a known shape. HMAC over a few hundred bytes would be the dearest step by
/// far, so the bytes first go through a hash of the multilinear family (Lemire and Kaser,
/// "Strongly universal string hashing is fast": two different texts collide with a probability of
/// 2^-64, whatever they are), keyed with secret random numbers, and its 64 bits through a keyed
/// pseudorandom function. Only the two entries of one key are ever held against each other, so a
/// comparison of a billion keys overlooks a difference with a probability below 10^-10. Both keys
/// die with the process.
struct Seal<'k> {
    lane: Vec<u128>,
    prf: &'k RandomState,
    text: Vec<u8>,
}

impl<'k> Seal<'k> {
    fn new(keys: &'k Keys) -> Self {
        let number = |n: usize| u128::from_le_bytes(keys.digest(format!("seal {n}").as_bytes()));
        Self { lane: (0..=WORDS_MAX).map(number).collect(), prf: keys.prf(), text: Vec::new() }
    }

    /// `None` when the entry is too long.
    fn seal(&mut self, shapes: &Shapes, fit: Fit, line: &[u8], contents: &Contents) -> Option<u64> {
        self.text.clear();
        self.text.extend_from_slice(shapes.signature(fit));
        // With the lengths in front, no two lists of contents make the same text.
        for content in shapes.compared(fit, line, contents) {
            self.text.extend_from_slice(&(content.len() as u32).to_le_bytes());
        }
        for content in shapes.compared(fit, line, contents) {
            self.text.extend_from_slice(content);
        }
        self.text.resize(self.text.len().next_multiple_of(8), 0);
        let (words, _) = self.text.as_chunks::<8>();
        if words.len() > WORDS_MAX {
            return None;
        }
        let sum = words.iter().zip(&self.lane[1..]).fold(self.lane[0], |sum, (word, key)| {
            sum.wrapping_add(key.wrapping_mul(u128::from(u64::from_le_bytes(*word))))
        });
        Some(self.prf.hash_one((sum >> 64) as u64))
    }
}

/// Reads a side to its end into partitions of short records; those that `skip` names are left out.
pub(super) fn partition(
    reader: &mut Reader,
    rules: &Rules,
    keys: &Keys,
    mut writer: Writer,
    skip: &(dyn Fn(usize) -> bool + Sync),
    passed: &std::sync::atomic::AtomicU64,
) -> io::Result<(Partitions, u64)> {
    let (mut scratch, mut shapes, mut contents) = (Vec::new(), Shapes::default(), Contents::new());
    let mut seal = Seal::new(keys);
    let mut entries: u64 = 0;
    while reader.advance(false) {
        entries += 1;
        if entries.is_multiple_of(PASSED_EVERY) {
            passed.fetch_add(PASSED_EVERY, std::sync::atomic::Ordering::Relaxed);
        }
        let line = reader.line();
        let (offset, number) = (reader.mark().offset, reader.number());
        let mut record = Record { hash: 0, digest: 0, offset, number, state: State::Open };
        let fit = if reader.is_faultless() { shapes.fit(line, &mut contents) } else { None };
        if let Some(fit) = fit {
            record.hash = hash(shapes.key(fit, line, &contents));
            if let Some(digest) = seal.seal(&shapes, fit, line, &contents) {
                (record.digest, record.state) = (digest, State::Sealed);
            }
        } else {
            let read = reader.scan().and_then(|scanned| {
                record.hash = hash(&scanned.key(line));
                let facts = Facts::read(line, &scanned, rules, &mut scratch)?;
                if shapes.wants(&facts) {
                    shapes.learn(line, &scanned, &facts, rules);
                }
                Ok(())
            });
            if let Err(error) = read {
                reader.report(&error);
                let Some(key) = error.key else { continue };
                (record.hash, record.state) = (hash(&key), State::Broken);
            }
        }
        let partition = writer.partition_of(record.hash);
        if !skip(partition) {
            record.write(writer.buffer(partition)?);
        }
    }
    Ok((writer.finish()?, entries))
}

/// What is needed to compare two partitions of short records.
pub(super) struct Resolver<'a> {
    pub rules: &'a Rules,
    pub keys: &'a Keys,
    pub broke_off: [bool; 2],
    /// Where entries of each side are looked up again.
    pub lookups: [Box<dyn Lookup>; 2],
}

/// The records of one hash, which is nearly always one key: where the first one of each side
/// stands among those that are kept.
#[derive(Default)]
struct Slot {
    first: [Option<u32>; 2],
    /// Others that are sealed as the first one of their side.
    repeated: u32,
    /// A side has more than these.
    crowded: bool,
}

/// The first entry of a key on one side, and whether the others there say the same.
struct First {
    record: Record,
    /// Of all that it says; `None` when it cannot be used.
    digest: Option<[u8; 16]>,
    conflict: bool,
}

/// A key whose hash a side has several times.
struct Repeated {
    key: Vec<u8>,
    first: [Option<First>; 2],
}

impl Resolver<'_> {
    /// Compares a partition of which about so many bytes are expected to be kept.
    pub fn compare(&mut self, sides: [&Partitions; 2], partition: usize, expected: usize) -> io::Result<Part> {
        let mut table = Table::new(expected / 2 / RECORD_BYTES);
        // The first record of each hash.
        let mut kept = sides.map(|side| Vec::with_capacity(expected.min(side.bytes(partition) as usize)));
        for (n, side) in sides.into_iter().enumerate() {
            each_record(side, partition, |bytes| {
                let slot = table.slot(u64::from_le_bytes(*bytes.first_chunk().ok_or_else(changed)?));
                match slot.first[n] {
                    None => {
                        slot.first[n] = Some((kept[n].len() / RECORD_BYTES) as u32);
                        kept[n].extend_from_slice(bytes);
                    }
                    Some(at) if record_at(&kept[n], at)?.is_sealed_as(&Record::read(bytes).ok_or_else(changed)?) => {
                        slot.repeated += 1
                    }
                    Some(_) => slot.crowded = true,
                }
                Ok(())
            })?;
        }
        let (mut part, mut findings, mut matches) = (Part::default(), Vec::new(), 0);
        let mut crowds: HashMap<u64, Vec<Repeated>> = HashMap::new();
        for (hash, slot) in table.used() {
            if slot.crowded {
                crowds.insert(hash, Vec::new());
                continue;
            }
            part.counts.repeated += u64::from(slot.repeated);
            let record = |n: usize| slot.first[n].map(|at| record_at(&kept[n], at)).transpose();
            let pair = [record(0)?, record(1)?];
            match &pair {
                [Some(left), Some(right)] if left.is_sealed_as(right) => matches += 1,
                _ => self.resolve(pair, &mut part, &mut findings)?,
            }
        }
        drop((table, kept));
        if !crowds.is_empty() {
            for (n, side) in sides.into_iter().enumerate() {
                each_record(side, partition, |bytes| {
                    let record = Record::read(bytes).ok_or_else(changed)?;
                    crowds.get_mut(&record.hash).map_or(Ok(()), |crowd| self.enter(n, record, crowd, &mut part))
                })?;
            }
        }
        for Repeated { key, first } in crowds.into_values().flatten() {
            if let Some(n) = (0..2).find(|n| first[*n].as_ref().is_some_and(|first| first.conflict)) {
                add(conflicting(&key, Hand::BOTH[n]), &mut part.counts, &mut findings);
                continue;
            }
            let mut found = [None, None];
            for (n, first) in first.iter().enumerate() {
                found[n] =
                    first.as_ref().map(|first| self.look_up(n, &first.record)).transpose()?.map(|(found, _)| found);
            }
            self.judge(&key, &found, &mut part, &mut findings)?;
        }
        part.counts.add(Outcome::Match, Rung::Fingerprint, matches);
        findings.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        findings.iter().for_each(|finding| write_line(finding, &mut part.lines));
        Ok(part)
    }

    /// Looks up the entries of a hash of which each side has one at most, and judges them.
    fn resolve(
        &mut self,
        records: [Option<Record>; 2],
        part: &mut Part,
        findings: &mut Vec<Finding>,
    ) -> io::Result<()> {
        let mut found = [None, None];
        for (n, record) in records.iter().enumerate() {
            found[n] = record.as_ref().map(|record| self.look_up(n, record)).transpose()?;
        }
        match found {
            [Some((left, key)), Some((right, same))] if key == same => {
                self.judge(&key, &[Some(left), Some(right)], part, findings)
            }
            [left, right] => {
                // Two keys may share a hash.
                left.map_or(Ok(()), |(left, key)| self.judge(&key, &[Some(left), None], part, findings))?;
                right.map_or(Ok(()), |(right, key)| self.judge(&key, &[None, Some(right)], part, findings))
            }
        }
    }

    /// Holds an entry against the first one of its key. Only one of them is in memory at a time.
    fn enter(&mut self, n: usize, record: Record, crowd: &mut Vec<Repeated>, part: &mut Part) -> io::Result<()> {
        let mut firsts = crowd.iter().filter_map(|repeated| repeated.first[n].as_ref());
        if firsts.any(|first| first.record.is_sealed_as(&record)) {
            part.counts.repeated += 1;
            return Ok(());
        }
        let (found, key) = self.look_up(n, &record)?;
        let digest = self.digest(&found);
        let known = crowd.iter_mut().find(|repeated| repeated.key == key);
        let place = match known {
            Some(repeated) => &mut repeated.first[n],
            None => {
                let mut first = [None, None];
                first[n] = Some(First { record, digest, conflict: false });
                crowd.push(Repeated { key, first });
                return Ok(());
            }
        };
        match place {
            None => *place = Some(First { record, digest, conflict: false }),
            Some(first) if digest.is_some() && first.digest == digest => part.counts.repeated += 1,
            Some(first) => {
                first.conflict = true;
                if first.digest.is_some() && digest.is_some() {
                    let key = String::from_utf8_lossy(&key).into_owned();
                    let (first, second) = (first.record.number, record.number);
                    part.conflicts.add(Conflict { hand: Hand::BOTH[n], key, first, second });
                }
            }
        }
        Ok(())
    }

    fn look_up(&mut self, n: usize, record: &Record) -> io::Result<(Found, Vec<u8>)> {
        let line = self.lookups[n].entry(record.offset)?;
        let scanned = match scan(&line) {
            Ok(scanned) if record.state != State::Broken => scanned,
            Ok(scanned) => {
                let key = scanned.key(&line).into_owned();
                return Ok((Found { line, scanned: None }, key));
            }
            Err(error) => {
                let key = error.key.filter(|_| record.state == State::Broken).ok_or_else(changed)?;
                return Ok((Found { line, scanned: None }, key));
            }
        };
        let key = scanned.key(&line).into_owned();
        Ok((Found { line, scanned: Some(scanned) }, key))
    }

    fn judge(
        &self,
        key: &[u8],
        found: &[Option<Found>; 2],
        part: &mut Part,
        findings: &mut Vec<Finding>,
    ) -> io::Result<()> {
        if (0..2).any(|n| found[n].is_none() && self.broke_off[n]) {
            part.counts.not_compared += 1;
            return Ok(());
        }
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let mut facts = [None, None];
        for (n, scratch) in [&mut first, &mut second].into_iter().enumerate() {
            if let Some(Found { line, scanned: Some(scanned) }) = &found[n] {
                facts[n] = Some(Facts::read(line, scanned, self.rules, scratch).map_err(|_| changed())?);
            }
        }
        let said = |n: usize| match (&found[n], &facts[n]) {
            (None, _) => Said::Nothing,
            (Some(_), None) => Said::Broken,
            (Some(_), Some(facts)) => Said::Entry(facts),
        };
        match judge(key, &said(0), &said(1), self.rules, self.keys) {
            Judged::Skipped => {}
            Judged::Match(rung) => part.counts.add(Outcome::Match, rung, 1),
            Judged::Finding(finding) => add(*finding, &mut part.counts, findings),
        }
        Ok(())
    }

    /// Digest of all that an entry says; `None` when it cannot be used.
    fn digest(&self, found: &Found) -> Option<[u8; 16]> {
        let mut scratch = Vec::new();
        let facts = Facts::read(&found.line, found.scanned.as_ref()?, self.rules, &mut scratch).ok()?;
        let mut out = Vec::new();
        pack(&facts, self.keys, &mut out);
        Some(self.keys.digest(&out))
    }
}

fn add(finding: Finding, counts: &mut Counts, findings: &mut Vec<Finding>) {
    counts.add(finding.outcome, finding.rung, 1);
    findings.push(finding);
}

/// An entry that was looked up; one that cannot be used has no parts.
struct Found {
    line: Vec<u8>,
    scanned: Option<Scanned>,
}

fn changed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a side changed while it was compared")
}

/// Slots by hash, open addressing; hashes are good in all their bits.
struct Table {
    slots: Vec<(u64, Slot)>,
    used: usize,
}

impl Table {
    fn new(entries: usize) -> Self {
        Self { slots: Self::empty((entries * 2).next_power_of_two().max(16)), used: 0 }
    }

    fn empty(n: usize) -> Vec<(u64, Slot)> {
        (0..n).map(|_| (0, Slot::default())).collect()
    }

    fn slot(&mut self, hash: u64) -> &mut Slot {
        if self.used * 4 >= self.slots.len() * 3 {
            let doubled = Self::empty(self.slots.len() * 2);
            let old = std::mem::replace(&mut self.slots, doubled);
            for (hash, slot) in old.into_iter().filter(|(_, slot)| slot.is_used()) {
                let at = self.place(hash);
                self.slots[at] = (hash, slot);
            }
        }
        let at = self.place(hash);
        self.used += usize::from(!self.slots[at].1.is_used());
        self.slots[at].0 = hash;
        &mut self.slots[at].1
    }

    fn place(&self, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at].1.is_used() && self.slots[at].0 != hash {
            at = (at + 1) & mask;
        }
        at
    }

    fn used(&self) -> impl Iterator<Item = (u64, &Slot)> {
        self.slots.iter().filter(|(_, slot)| slot.is_used()).map(|(hash, slot)| (*hash, slot))
    }
}

impl Slot {
    fn is_used(&self) -> bool {
        self.first != [None, None]
    }
}

/// Whether a side that ended so leaves keys of the other one unjudged.
pub(super) fn broke_off(reader: &Reader) -> bool {
    reader.ending == Some(Ending::BrokeOff)
}
