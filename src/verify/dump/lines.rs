//! JSON lines: taken over as they stand, block by block.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

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

    /// Reads on behind what the block holds, up to `wanted` bytes in all.
    fn read_up_to(&mut self, block: &mut Block, wanted: usize) -> Result<(), Halt> {
        while block.bytes.len() < wanted && !self.ended {
            let missing = (wanted - block.bytes.len()) as u64;
            let before = block.bytes.len();
            // `read_to_end` on a bounded reader fills the vector in place without zeroing it first.
            let read = (&mut self.input).take(missing).read_to_end(&mut block.bytes);
            if let Err(error) = read {
                let offset = self.mark.offset + block.bytes.len() as u64;
                let whole = memchr::memrchr(b'\n', &block.bytes).map_or(0, |at| at + 1);
                block.bytes.truncate(whole);
                self.ended = true;
                return Err(broken(&error, Some(offset)));
            }
            self.ended = block.bytes.len() == before || (block.bytes.len() as u64) < before as u64 + missing;
        }
        Ok(())
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
        block.bytes.append(&mut self.carry);
        block.mark = self.mark;
        let mut wanted = BLOCK_BYTES;
        let mut failed = None;
        let whole = loop {
            if let Err(halt) = self.read_up_to(block, wanted) {
                failed = Some(halt);
                break block.bytes.len();
            }
            match memchr::memrchr(b'\n', &block.bytes) {
                _ if self.ended => break block.bytes.len(),
                Some(at) => break at + 1,
                None if wanted >= ENTRY_BYTES_MAX => {
                    let taken = block.bytes.len() as u64;
                    block.bytes.truncate(STUB_BYTES);
                    block.bytes.push(b'\n');
                    block.faults.push((
                        0,
                        format!(
                            "found an entry of more than {} MiB, expected one that KV can hold",
                            ENTRY_BYTES_MAX >> 20
                        ),
                    ));
                    let skipped = self.skip_line()?;
                    self.mark.offset += taken + skipped;
                    return Ok(true);
                }
                None => wanted *= 2,
            }
        };
        self.carry.extend_from_slice(&block.bytes[whole..]);
        block.bytes.truncate(whole);
        self.mark.offset += whole as u64;
        match failed {
            Some(halt) => Err(halt),
            None => Ok(!block.bytes.is_empty()),
        }
    }
}
