//! Unsorted sides: every entry goes to one of many partitions by a hash of its key, in a file
//! without a name that holds no secret; then the partitions are compared one by one in memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::compare::Keys;
use super::entry::EntryError;
use super::facts::Facts;
use super::pack::{Bytes, is_decisive, pack};
use super::reader::Reader;
use super::rules::Rules;
use super::shape::{Contents, Shapes};
use super::spool::unnamed_file;
use crate::domain::time::Timestamp;

/// Bits of a record's flags.
const BROKEN: u8 = 1;
/// Equal facts make a match.
const DECISIVE: u8 = 2;
const OURS: u8 = 4;
const WRITTEN: u8 = 8;

/// One entry in a partition.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    pub hash: u64,
    /// Number of the entry in its side.
    pub number: u64,
    flags: u8,
    pub written_at: Option<Timestamp>,
    pub key: &'a [u8],
    /// Packed facts; empty for a broken entry.
    pub facts: &'a [u8],
}

impl<'a> Record<'a> {
    pub fn is_broken(&self) -> bool {
        self.flags & BROKEN != 0
    }

    pub fn is_decisive(&self) -> bool {
        self.flags & DECISIVE != 0
    }

    pub fn is_ours(&self) -> bool {
        self.flags & OURS != 0
    }

    /// Reads the record at the start of the bytes, and how long it is.
    pub fn read(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
        let mut rest = Bytes(bytes.get(4..4 + length)?);
        let hash = u64::from_le_bytes(rest.array()?);
        let number = u64::from_le_bytes(rest.array()?);
        let flags = rest.byte()?;
        let written_at = i64::from_le_bytes(rest.array()?);
        let key_length = u16::from_le_bytes(rest.array()?);
        let key = rest.take(usize::from(key_length))?;
        let written_at = (flags & WRITTEN != 0).then(|| Timestamp::from_millis(written_at));
        Some((Self { hash, number, flags, written_at, key, facts: rest.0 }, 4 + length))
    }
}

fn write_record(hash: u64, number: u64, key: &[u8], facts: Option<&Facts<'_>>, keys: &Keys, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&hash.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    let flags = facts.map_or(BROKEN, |facts| {
        let bit = |yes: bool, bit: u8| if yes { bit } else { 0 };
        bit(is_decisive(facts), DECISIVE) | bit(facts.ours, OURS) | bit(facts.written_at.is_some(), WRITTEN)
    });
    out.push(flags);
    let written_at = facts.and_then(|facts| facts.written_at).map_or(0, Timestamp::millis);
    out.extend_from_slice(&written_at.to_le_bytes());
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(key);
    if let Some(facts) = facts {
        pack(facts, keys, out);
    }
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// A hash of a key that is the same in every run. Its high bits pick the partition.
pub(super) fn hash(key: &[u8]) -> u64 {
    const K: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut hash = (key.len() as u64).wrapping_mul(K);
    let mut mix = |word: u64| {
        let wide = u128::from(hash ^ word) * u128::from(K | 1 << 63);
        hash = (wide as u64) ^ (wide >> 64) as u64;
        hash = hash.rotate_left(29).wrapping_add(K);
    };
    let (words, rest) = key.as_chunks::<8>();
    words.iter().for_each(|word| mix(u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(u64::from_le_bytes(last));
    mix(K);
    hash
}

/// How the partitions are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The number of partitions is 2 to this power.
    pub bits: u32,
    /// Bytes gathered per partition before they are written.
    pub chunk: usize,
    /// Bits of the hash that were used up by an earlier split.
    pub used: u32,
}

impl Layout {
    pub fn partition(&self, hash: u64) -> usize {
        (hash << self.used >> (64 - self.bits)) as usize
    }

    pub fn partitions(&self) -> usize {
        1 << self.bits
    }

    /// For input of about this size and this much memory.
    pub fn new(bytes: Option<u64>, memory: u64) -> Self {
        // A partition of both sides and its index should take a sixteenth of the memory, so that
        // two can be compared at once and a lopsided one still fits.
        let wanted = bytes.unwrap_or(64 << 30) / (memory / 16).max(1);
        let bits = (u64::BITS - wanted.leading_zeros()).clamp(4, 10);
        // All buffers of both sides together take at most a quarter.
        let chunk = ((memory / 8) >> bits).clamp(4 * 1024, 64 * 1024) as usize;
        Self { bits, chunk, used: 0 }
    }

    /// For splitting one partition of this layout further.
    pub fn finer(&self) -> Option<Self> {
        let used = self.used + self.bits;
        (used + 4 <= 48).then_some(Self { bits: 4, chunk: self.chunk, used })
    }
}

/// A run of whole records.
enum Piece {
    Memory(Vec<u8>),
    File { start: u64, length: usize },
}

/// What one partition consists of.
#[derive(Default)]
struct Pieces {
    all: Vec<Piece>,
    bytes: u64,
}

/// The partitions of one side, being written.
pub(super) struct Writer {
    file: File,
    end: u64,
    /// Bytes that may still stay in memory.
    room: u64,
    layout: Layout,
    buffers: Vec<Vec<u8>>,
    pieces: Vec<Pieces>,
}

impl Writer {
    /// `folder`: where the file without a name lies; the system's folder for such files if none.
    /// Up to `room` bytes of pieces stay in memory.
    pub fn new(layout: Layout, folder: Option<&Path>, room: u64) -> io::Result<Self> {
        let file = unnamed_file(folder)?;
        let n = layout.partitions();
        Ok(Self {
            file,
            end: 0,
            room,
            layout,
            buffers: (0..n).map(|_| Vec::new()).collect(),
            pieces: (0..n).map(|_| Pieces::default()).collect(),
        })
    }

    pub fn partition_of(&self, hash: u64) -> usize {
        self.layout.partition(hash)
    }

    /// Where a record of this partition is appended.
    pub fn buffer(&mut self, partition: usize) -> io::Result<&mut Vec<u8>> {
        if self.buffers[partition].len() + 512 > self.layout.chunk {
            self.flush(partition)?;
        }
        let buffer = &mut self.buffers[partition];
        if buffer.capacity() == 0 {
            buffer.reserve_exact(self.layout.chunk);
        }
        Ok(buffer)
    }

    fn flush(&mut self, partition: usize) -> io::Result<()> {
        let buffer = &mut self.buffers[partition];
        if buffer.is_empty() {
            return Ok(());
        }
        let pieces = &mut self.pieces[partition];
        pieces.bytes += buffer.len() as u64;
        if let Some(room) = self.room.checked_sub(buffer.capacity() as u64) {
            self.room = room;
            pieces.all.push(Piece::Memory(std::mem::take(buffer)));
            return Ok(());
        }
        self.file.write_all(buffer)?;
        pieces.all.push(Piece::File { start: self.end, length: buffer.len() });
        self.end += buffer.len() as u64;
        buffer.clear();
        // A single large entry must not leave its room behind.
        buffer.shrink_to(self.layout.chunk);
        Ok(())
    }

    /// Takes over a record as it is.
    pub fn copy(&mut self, hash: u64, bytes: &[u8]) -> io::Result<()> {
        let partition = self.layout.partition(hash);
        self.buffer(partition)?.extend_from_slice(bytes);
        Ok(())
    }

    pub fn finish(mut self) -> io::Result<Partitions> {
        for partition in 0..self.buffers.len() {
            self.flush(partition)?;
        }
        Ok(Partitions { file: Mutex::new(self.file), pieces: self.pieces })
    }
}

/// The partitions of one side, ready to be read by any thread.
pub(super) struct Partitions {
    file: Mutex<File>,
    pieces: Vec<Pieces>,
}

impl Partitions {
    /// Bytes in one partition.
    pub fn bytes(&self, partition: usize) -> u64 {
        self.pieces[partition].bytes
    }

    pub fn pieces(&self, partition: usize) -> usize {
        self.pieces[partition].all.len()
    }

    /// One piece, which holds whole records; `room` is where it is read to, if it must be.
    pub fn piece<'p>(&'p self, partition: usize, piece: usize, room: &'p mut Vec<u8>) -> io::Result<&'p [u8]> {
        let (start, length) = match &self.pieces[partition].all[piece] {
            Piece::Memory(bytes) => return Ok(bytes),
            Piece::File { start, length } => (*start, *length),
        };
        let mut file = self.file.lock().map_err(|_| io::Error::other("another thread failed while reading"))?;
        file.seek(SeekFrom::Start(start))?;
        room.clear();
        let read = (&mut *file).take(length as u64).read_to_end(room)?;
        if read < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(room) }
    }
}

/// How many entries pass between two updates of the shared count.
pub(super) const PASSED_EVERY: u64 = 1024;

/// Reads a side to its end into partitions; those that `skip` names are left out.
pub(super) fn partition(
    reader: &mut Reader,
    rules: &Rules,
    keys: &Keys,
    mut writer: Writer,
    skip: &(dyn Fn(usize) -> bool + Sync),
    passed: &AtomicU64,
) -> io::Result<(Partitions, u64)> {
    let (mut scratch, mut shapes, mut contents) = (Vec::new(), Shapes::default(), Contents::new());
    let mut entries: u64 = 0;
    while reader.advance(false) {
        entries += 1;
        if entries.is_multiple_of(PASSED_EVERY) {
            passed.fetch_add(PASSED_EVERY, Ordering::Relaxed);
        }
        let number = reader.number();
        let line = reader.line();
        if reader.is_faultless()
            && let Some(fit) = shapes.fit(line, &mut contents)
        {
            let key = shapes.key(fit, line, &contents);
            let hash = hash(key);
            let partition = writer.layout.partition(hash);
            if !skip(partition) {
                let facts = shapes.facts(fit, line, &contents, rules);
                write_record(hash, number, key, Some(&facts), keys, writer.buffer(partition)?);
            }
            continue;
        }
        let scanned = match reader.scan() {
            Ok(scanned) => scanned,
            Err(error) => {
                broken(reader, &error, number, keys, &mut writer, skip)?;
                continue;
            }
        };
        let key = scanned.key(reader.line());
        let hash = hash(&key);
        let partition = writer.layout.partition(hash);
        let skipped = skip(partition);
        match Facts::read(reader.line(), &scanned, rules, &mut scratch) {
            Ok(facts) => {
                if shapes.wants(&facts) {
                    shapes.learn(reader.line(), &scanned, &facts, rules);
                }
                if !skipped {
                    write_record(hash, number, &key, Some(&facts), keys, writer.buffer(partition)?);
                }
            }
            Err(error) => {
                drop(key);
                broken(reader, &error, number, keys, &mut writer, skip)?;
            }
        }
    }
    Ok((writer.finish()?, entries))
}

fn broken(
    reader: &mut Reader,
    error: &EntryError,
    number: u64,
    keys: &Keys,
    writer: &mut Writer,
    skip: &(dyn Fn(usize) -> bool + Sync),
) -> io::Result<()> {
    if let Some(key) = &error.key {
        let hash = hash(key);
        let partition = writer.layout.partition(hash);
        if !skip(partition) {
            write_record(hash, number, key, None, keys, writer.buffer(partition)?);
        }
    }
    reader.report(error);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_evenly_and_always_the_same_way() {
        let layout = Layout { bits: 6, chunk: 4096, used: 0 };
        let finer = layout.finer().unwrap();
        let (mut coarse, mut fine) = (vec![0; 64], vec![0; 16]);
        for n in 0..64_000 {
            let hash = hash(format!("tokens:tenant-{n:07}:google_ads:default").as_bytes());
            coarse[layout.partition(hash)] += 1;
            fine[finer.partition(hash)] += 1;
        }
        assert!(coarse.iter().all(|n| (800..1_200).contains(n)), "{coarse:?}");
        assert!(fine.iter().all(|n| (3_600..4_400).contains(n)), "{fine:?}");
        assert_eq!(hash(b"tokens:a:b:c"), hash(b"tokens:a:b:c"));
        assert_ne!(hash(b"a\0"), hash(b"a"));
    }

    #[test]
    fn buffers_stay_within_the_memory() {
        for memory in [64 << 20, 512 << 20, 4 << 30] {
            for bytes in [None, Some(0), Some(1 << 20), Some(3 << 30), Some(1 << 40)] {
                let layout = Layout::new(bytes, memory);
                assert!((layout.partitions() * layout.chunk * 2) as u64 <= memory / 4, "{bytes:?} {layout:?}");
            }
        }
    }
}
