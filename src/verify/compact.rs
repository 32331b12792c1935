//! The short form of a partition's records, for sides in which an entry can be looked up again:
//! a hash of the key, a digest of all that is compared, and where the entry stands. Two records
//! with the same digest are a match; the few others are read again and compared in full. Such
//! records take a tenth of the room, so that millions of them fit into memory.

use std::collections::{BTreeMap, HashMap};
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
                shapes.learn(line, &scanned, &facts, rules);
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

/// The records of one hash, which is nearly always one key.
#[derive(Default)]
struct Slot {
    first: [Option<u32>; 2],
    /// A side has more than one.
    crowded: bool,
}

impl Resolver<'_> {
    pub fn compare(&mut self, sides: [&[u8]; 2]) -> io::Result<Part> {
        let record = |n: usize, at: u32| Record::read(&sides[n][at as usize * RECORD_BYTES..]).ok_or_else(changed);
        let mut table = Table::new(sides[0].len().max(sides[1].len()) / RECORD_BYTES);
        for (n, bytes) in sides.into_iter().enumerate() {
            for (at, bytes) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
                let slot = table.slot(u64::from_le_bytes(*bytes.first_chunk().ok_or_else(changed)?));
                if slot.first[n].is_some() {
                    slot.crowded = true;
                } else {
                    slot.first[n] = Some(at as u32);
                }
            }
        }
        let (mut part, mut findings, mut matches) = (Part::default(), Vec::new(), 0);
        let mut crowds: HashMap<u64, [Vec<Record>; 2]> = HashMap::new();
        for (hash, slot) in table.used() {
            if slot.crowded {
                crowds.entry(hash).or_default();
                continue;
            }
            let pair = [0, 1].map(|n| slot.first[n].map(|at| record(n, at)).transpose());
            let [left, right] = pair;
            let (left, right) = (left?, right?);
            if let (Some(left), Some(right)) = (&left, &right)
                && (left.state, right.state) == (State::Sealed, State::Sealed)
                && left.digest == right.digest
            {
                matches += 1;
            } else {
                self.resolve([left.as_slice(), right.as_slice()], &mut part, &mut findings)?;
            }
        }
        if !crowds.is_empty() {
            for (n, bytes) in sides.into_iter().enumerate() {
                for at in 0..bytes.len() / RECORD_BYTES {
                    let record = record(n, at as u32)?;
                    if let Some(crowd) = crowds.get_mut(&record.hash) {
                        crowd[n].push(record);
                    }
                }
            }
        }
        for crowd in crowds.values() {
            self.resolve([&crowd[0], &crowd[1]], &mut part, &mut findings)?;
        }
        part.counts.add(Outcome::Match, Rung::Fingerprint, matches);
        findings.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        findings.iter().for_each(|finding| write_line(finding, &mut part.lines));
        Ok(part)
    }

    /// Looks up entries that share a hash, and judges each of their keys.
    fn resolve(&mut self, records: [&[Record]; 2], part: &mut Part, findings: &mut Vec<Finding>) -> io::Result<()> {
        let mut by_key: BTreeMap<Vec<u8>, [Vec<Found>; 2]> = BTreeMap::new();
        for (n, records) in records.into_iter().enumerate() {
            let mut records = records.to_vec();
            records.sort_unstable_by_key(|record| record.number);
            for record in records {
                let (found, key) = self.look_up(n, &record)?;
                by_key.entry(key).or_default()[n].push(found);
            }
        }
        for (key, sides) in &by_key {
            self.judge(key, sides, part, findings)?;
        }
        Ok(())
    }

    fn look_up(&mut self, n: usize, record: &Record) -> io::Result<(Found, Vec<u8>)> {
        let line = self.lookups[n].entry(record.offset)?;
        let scanned = match scan(&line) {
            Ok(scanned) if record.state != State::Broken => scanned,
            Ok(scanned) => {
                let key = scanned.key(&line).into_owned();
                return Ok((Found { number: record.number, line, scanned: None }, key));
            }
            Err(error) => {
                let key = error.key.filter(|_| record.state == State::Broken).ok_or_else(changed)?;
                return Ok((Found { number: record.number, line, scanned: None }, key));
            }
        };
        let key = scanned.key(&line).into_owned();
        Ok((Found { number: record.number, line, scanned: Some(scanned) }, key))
    }

    fn judge(
        &self,
        key: &[u8],
        sides: &[Vec<Found>; 2],
        part: &mut Part,
        findings: &mut Vec<Finding>,
    ) -> io::Result<()> {
        let mut conflict = None;
        for (n, found) in sides.iter().enumerate() {
            let Some((first, more)) = found.split_first() else { continue };
            let packed = if more.is_empty() { None } else { self.packed(first) };
            for other in more {
                let both = (&packed, self.packed(other));
                if let (Some(first), Some(other)) = &both
                    && first == other
                {
                    part.counts.repeated += 1;
                    continue;
                }
                conflict.get_or_insert(Hand::BOTH[n]);
                if both.0.is_some() && both.1.is_some() {
                    let key = String::from_utf8_lossy(key).into_owned();
                    let (first, second) = (first.number, other.number);
                    part.conflicts.push(Conflict { hand: Hand::BOTH[n], key, first, second });
                }
            }
        }
        if let Some(hand) = conflict {
            add(conflicting(key, hand), &mut part.counts, findings);
            return Ok(());
        }
        if (0..2).any(|n| sides[n].is_empty() && self.broke_off[n]) {
            part.counts.not_compared += 1;
            return Ok(());
        }
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let mut facts = [None, None];
        for (n, scratch) in [&mut first, &mut second].into_iter().enumerate() {
            if let Some(Found { line, scanned: Some(scanned), .. }) = sides[n].first() {
                facts[n] = Some(Facts::read(line, scanned, self.rules, scratch).map_err(|_| changed())?);
            }
        }
        let said = |n: usize| match (sides[n].is_empty(), &facts[n]) {
            (true, _) => Said::Nothing,
            (false, None) => Said::Broken,
            (false, Some(facts)) => Said::Entry(facts),
        };
        match judge(key, &said(0), &said(1), self.rules, self.keys) {
            Judged::Skipped => {}
            Judged::Match(rung) => part.counts.add(Outcome::Match, rung, 1),
            Judged::Finding(finding) => add(*finding, &mut part.counts, findings),
        }
        Ok(())
    }

    fn packed(&self, found: &Found) -> Option<Vec<u8>> {
        let mut scratch = Vec::new();
        let facts = Facts::read(&found.line, found.scanned.as_ref()?, self.rules, &mut scratch).ok()?;
        let mut out = Vec::new();
        pack(&facts, self.keys, &mut out);
        Some(out)
    }
}

fn add(finding: Finding, counts: &mut Counts, findings: &mut Vec<Finding>) {
    counts.add(finding.outcome, finding.rung, 1);
    findings.push(finding);
}

/// An entry that was looked up; one that cannot be used has no parts.
struct Found {
    number: u64,
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
