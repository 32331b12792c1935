//! Findings on their way to the report: a file of JSON lines, in segments that are each sorted by
//! key. The report reads all segments at once and so comes out sorted, whatever order the input
//! had, in a memory that does not depend on how many findings there are.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::finding::Finding;
use crate::failpoint;

/// A run of findings in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    pub start: u64,
    pub end: u64,
}

/// How many bytes are gathered before they are written.
const WRITE_BYTES: usize = 64 * 1024;
/// How many bytes of each segment are read at once.
const READ_BYTES: usize = 16 * 1024;

pub(super) struct Spool {
    file: File,
    /// Bytes in the file.
    written: u64,
    buffer: Vec<u8>,
}

/// A file without a name, gone with the process, in this folder or in the system's for such files.
///
/// # Errors
/// When none can be made there; the error names the folder.
pub(super) fn unnamed_file(folder: Option<&Path>) -> io::Result<File> {
    let folder = folder.map_or_else(std::env::temp_dir, Path::to_owned);
    tempfile::tempfile_in(&folder).map_err(|error| {
        let (kind, folder) = (error.kind(), folder.display());
        io::Error::new(kind, format!("no temporary file can be made in `{folder}`: {kind}; name another with --temp"))
    })
}

impl Spool {
    /// A spool without a name, gone with the process.
    pub fn unnamed(folder: Option<&Path>) -> io::Result<Self> {
        Ok(Self { file: unnamed_file(folder)?, written: 0, buffer: Vec::new() })
    }

    /// The spool of a run that can be resumed, cut to `length` bytes.
    ///
    /// # Errors
    /// When the file cannot be used or is shorter than that.
    pub fn at(path: &Path, length: u64) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path)?;
        if file.metadata()?.len() < length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than the run file says"));
        }
        failpoint::hit(failpoint::VERIFY_FILES);
        file.set_len(length)?;
        file.seek(SeekFrom::Start(length))?;
        Ok(Self { file, written: length, buffer: Vec::new() })
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    pub fn add(&mut self, finding: &Finding) -> io::Result<()> {
        write_line(finding, &mut self.buffer);
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Appends lines that are sorted among themselves.
    pub fn add_segment(&mut self, lines: &[u8]) -> io::Result<Segment> {
        let start = self.length();
        self.flush()?;
        failpoint::hit(failpoint::VERIFY_FILES);
        self.file.write_all(lines)?;
        self.written += lines.len() as u64;
        Ok(Segment { start, end: self.written })
    }

    fn flush(&mut self) -> io::Result<()> {
        failpoint::hit(failpoint::VERIFY_FILES);
        self.file.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes sure that what was added survives a crash of the machine.
    pub fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_data()
    }

    /// Forgets all that was added. A run file must have forgotten it before.
    pub fn clear(&mut self) -> io::Result<()> {
        failpoint::hit(failpoint::VERIFY_FILES);
        self.buffer.clear();
        self.written = 0;
        self.file.set_len(0)?;
        self.file.rewind()
    }

    /// Hands out all findings of the segments, sorted by key.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else, or when `each` fails.
    pub fn replay(&mut self, segments: &[Segment], mut each: impl FnMut(Finding) -> io::Result<()>) -> io::Result<()> {
        self.flush()?;
        let file = Rc::new(RefCell::new(&mut self.file));
        let mut readers: Vec<Lines<'_>> = segments
            .iter()
            .map(|segment| Lines { file: Rc::clone(&file), rest: *segment, buffer: Vec::new(), at: 0 })
            .collect();
        let mut heap = BinaryHeap::new();
        for (n, reader) in readers.iter_mut().enumerate() {
            if let Some(finding) = reader.next()? {
                heap.push(Reverse(Head { n, finding }));
            }
        }
        while let Some(Reverse(Head { n, finding })) = heap.pop() {
            each(finding)?;
            if let Some(finding) = readers[n].next()? {
                heap.push(Reverse(Head { n, finding }));
            }
        }
        drop(readers);
        self.file.seek(SeekFrom::Start(self.written)).map(drop)
    }
}

pub(super) fn write_line(finding: &Finding, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, finding).expect("a finding has only string keys and goes into memory");
    out.push(b'\n');
}

struct Head {
    n: usize,
    finding: Finding,
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.finding.key, self.n).cmp(&(&other.finding.key, other.n))
    }
}

struct Lines<'f> {
    file: Rc<RefCell<&'f mut File>>,
    rest: Segment,
    buffer: Vec<u8>,
    at: usize,
}

impl Lines<'_> {
    fn next(&mut self) -> io::Result<Option<Finding>> {
        loop {
            if let Some(length) = memchr::memchr(b'\n', &self.buffer[self.at..]) {
                let line = &self.buffer[self.at..self.at + length];
                let finding = serde_json::from_slice(line)?;
                self.at += length + 1;
                return Ok(Some(finding));
            }
            let wanted = (self.rest.end - self.rest.start).min(READ_BYTES as u64);
            if wanted == 0 {
                return if self.at == self.buffer.len() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            let mut file = self.file.borrow_mut();
            file.seek(SeekFrom::Start(self.rest.start))?;
            let n = (&mut **file).take(wanted).read_to_end(&mut self.buffer)? as u64;
            if n < wanted {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.rest.start += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::{Outcome, Rung};
    use super::*;

    fn finding(key: &str) -> Finding {
        Finding {
            key: key.into(),
            outcome: Outcome::Missing,
            rung: Rung::Status,
            changes: vec![],
            foreign: vec![],
            reason: Some("x".repeat(300)),
            diff: None,
            seen: None,
        }
    }

    #[test]
    fn segments_come_back_as_one_sorted_run_and_what_is_in_no_segment_does_not() {
        let mut spool = Spool::unnamed(None).unwrap();
        let mut segments = Vec::new();
        for part in 0..3 {
            let mut lines = Vec::new();
            (0..200).for_each(|n| write_line(&finding(&format!("k{:04}", n * 3 + part)), &mut lines));
            segments.push(spool.add_segment(&lines).unwrap());
            spool.add(&finding("abandoned")).unwrap();
        }
        let mut keys = Vec::new();
        spool
            .replay(&segments, |f| {
                keys.push(f.key);
                Ok(())
            })
            .unwrap();
        let expected: Vec<String> = (0..600).map(|n| format!("k{n:04}")).collect();
        assert_eq!(keys, expected);
    }

    #[test]
    fn a_folder_that_takes_no_files_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("nowhere");
        let error = Spool::unnamed(Some(&nowhere)).err().unwrap().to_string();
        assert!(error.contains(&format!("in `{}`: entity not found", nowhere.display())), "{error}");
    }

    #[test]
    fn a_spool_is_cut_to_what_the_run_file_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.findings");
        let mut spool = Spool::at(&path, 0).unwrap();
        spool.add(&finding("a")).unwrap();
        spool.sync().unwrap();
        let length = spool.length();
        spool.add(&finding("b")).unwrap();
        spool.sync().unwrap();
        let mut spool = Spool::at(&path, length).unwrap();
        let mut keys = Vec::new();
        spool
            .replay(&[Segment { start: 0, end: length }], |f| {
                keys.push(f.key);
                Ok(())
            })
            .unwrap();
        assert_eq!(keys, ["a"]);
        assert!(Spool::at(&path, length + 1).is_err());
    }
}
