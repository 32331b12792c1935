//! JSON lines: taken over as they stand, block by block.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};

use super::super::entry::ENTRY_BYTES_MAX;
use super::super::side::{BLOCK_BYTES, Block, Halt, Lookup, Mark, Side};
use super::{Input, broken};

/// How much of a line that is too long is kept: enough to tell its key.
const STUB_BYTES: usize = 2048;

pub(super) struct Lines {
    input: Input,
    /// The start of a line whose end has not been read yet.
    carry: Vec<u8>,
    mark: Mark,
    ended: bool,
}

impl Lines {
    pub fn new(input: Input, from: Mark) -> Self {
        Self { input, carry: Vec::new(), mark: from, ended: false }
    }

    /// Reads on into `bytes` from `filled` until all of it is filled or the input ends; tells how
    /// much is filled then.
    fn read_on(&mut self, bytes: &mut [u8], mut filled: usize) -> (usize, Option<Halt>) {
        while filled < bytes.len() && !self.ended {
            match self.input.read(&mut bytes[filled..]) {
                Ok(0) => self.ended = true,
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.ended = true;
                    return (filled, Some(broken(&error, Some(self.mark.offset + filled as u64))));
                }
            }
        }
        (filled, None)
    }

    /// Drops the rest of a line that is too long to be an entry.
    fn skip_line(&mut self) -> Result<u64, Halt> {
        let mut chunk = vec![0; BLOCK_BYTES];
        let mut skipped = 0;
        loop {
            let n = self.input.read(&mut chunk).map_err(|error| broken(&error, Some(self.mark.offset)))?;
            if n == 0 {
                self.ended = true;
                return Ok(skipped);
            }
            if let Some(at) = memchr::memchr(b'\n', &chunk[..n]) {
                self.carry.extend_from_slice(&chunk[at + 1..n]);
                return Ok(skipped + at as u64 + 1);
            }
            skipped += n as u64;
        }
    }
}

/// Reads single lines again.
pub(super) struct Finder {
    file: File,
}

/// More than most entries have, so that one call usually reads a whole one.
const ENTRY_BYTES: usize = 1024;

impl Finder {
    pub fn new(file: File) -> Self {
        Self { file }
    }
}

impl Lookup for Finder {
    fn entry(&mut self, offset: u64) -> std::io::Result<Vec<u8>> {
        self.file.seek(SeekFrom::Start(offset))?;
        let (mut line, mut wanted) = (Vec::new(), ENTRY_BYTES);
        loop {
            let from = line.len();
            let read = (&mut self.file).take((wanted - from) as u64).read_to_end(&mut line)?;
            if let Some(at) = memchr::memchr(b'\n', &line[from..]) {
                line.truncate(from + at);
                return Ok(line);
            }
            if read < wanted - from {
                return Ok(line);
            }
            if line.len() >= ENTRY_BYTES_MAX {
                line.truncate(STUB_BYTES);
                return Ok(line);
            }
            wanted *= 4;
        }
    }
}

impl Side for Lines {
    fn fill(&mut self, block: &mut Block) -> Result<bool, Halt> {
        block.mark = self.mark;
        let carry = std::mem::take(&mut self.carry);
        let mut wanted = BLOCK_BYTES.max(carry.len());
        let mut filled = carry.len();
        let bytes = block.room(&carry, wanted);
        let (whole, failed) = loop {
            let (now, failed) = self.read_on(bytes, filled);
            filled = now;
            let last = memchr::memrchr(b'\n', &bytes[..filled]).map(|at| at + 1);
            match (last, failed) {
                // What was read of a line when reading failed is no entry.
                (last, Some(halt)) => break (last.unwrap_or(0), Some(halt)),
                _ if self.ended => break (filled, None),
                (Some(whole), None) => break (whole, None),
                (None, None) if filled >= ENTRY_BYTES_MAX => {
                    bytes.truncate(STUB_BYTES);
                    bytes.push(b'\n');
                    let most = ENTRY_BYTES_MAX >> 20;
                    let why = format!("found an entry of more than {most} MiB, expected one that KV can hold");
                    block.faults.push((0, why));
                    let skipped = self.skip_line()?;
                    self.mark.offset += filled as u64 + skipped;
                    return Ok(true);
                }
                (None, None) => {
                    wanted *= 2;
                    bytes.resize(wanted, 0);
                }
            }
        };
        self.carry = carry;
        self.carry.clear();
        if failed.is_none() {
            self.carry.extend_from_slice(&block.bytes[whole..filled]);
        }
        block.bytes.truncate(whole);
        self.mark.offset += whole as u64;
        match failed {
            Some(halt) => Err(halt),
            None => Ok(!block.bytes.is_empty()),
        }
    }
}
