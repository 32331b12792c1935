//! Where entries come from: anything that can hand over blocks of entry lines.
//!
//! A dump file, a KV namespace read through its API, the journal: each is a [`Source`] that opens
//! as a [`Side`], and a side fills [`Block`]s with entries in the one form that
//! [`super::entry`] describes. The comparison never learns more than that. Each side fills its
//! blocks on a thread of its own, so it may block on a network as it likes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

/// How many bytes of entries a block holds, more only for one large entry. Large enough that a
/// thread is woken rarely, small enough that the blocks in flight stay within the caches.
pub const BLOCK_BYTES: usize = 512 * 1024;

/// Blocks that one side may be ahead.
const BLOCKS_AHEAD: usize = 2;

/// A block that takes more room than this holds a large entry. Only one such block is ahead, and
/// its room is given back at once, so that large values do not add up.
const LARGE_BYTES: usize = 4 * BLOCK_BYTES;

/// Where in a side reading starts again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Entries before this point.
    pub entries: u64,
    /// Bytes before this point, for sides in which that says where it is.
    pub offset: u64,
}

/// A run of whole entry lines.
#[derive(Debug, Default)]
pub struct Block {
    /// The lines, each ended by a line feed but perhaps the last one of a side.
    pub(super) bytes: Vec<u8>,
    /// What stands before the block. Only the offset matters after the first block of a side: the
    /// entries are counted as they are read.
    pub mark: Mark,
    /// Where each entry stands in the side, when that is not where it stands in the lines.
    pub(super) starts: Vec<u64>,
    /// Entries that were not taken over whole, by their place in the block from 0, and why.
    pub(super) faults: Vec<(u64, String)>,
    /// Its entries stand at no byte of a file.
    pub(super) placeless: bool,
    /// Where the line feeds are. Found by the thread that reads the side, since the one that
    /// compares is the one that everything waits for.
    pub(super) feeds: Vec<u32>,
    /// The bytes are those of an earlier use, kept because memory that is written over need not
    /// be cleared first.
    stale: bool,
}

impl Block {
    /// Appends one entry as a JSON object. `offset` is where it stands in the side, in bytes.
    pub fn push(&mut self, entry: &[u8], offset: u64) {
        self.freshen();
        self.starts.push(offset);
        let from = self.bytes.len();
        self.bytes.extend_from_slice(entry);
        if memchr::memchr2(b'\n', b'\r', entry).is_some() {
            on_one_line(&mut self.bytes[from..]);
        }
        self.bytes.push(b'\n');
    }

    /// Appends an entry that could not be taken over: `stub` is what can be told of it, as JSON.
    pub fn push_fault(&mut self, stub: &[u8], offset: u64, why: impl Into<String>) {
        self.faults.push((self.starts.len() as u64, why.into()));
        self.push(stub, offset);
    }

    /// Says that places in this side mean nothing to a person.
    pub fn without_places(&mut self) {
        self.placeless = true;
    }

    /// Whether the block holds as much as it should.
    pub fn is_full(&self) -> bool {
        !self.stale && self.bytes.len() >= BLOCK_BYTES
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.stale || self.bytes.is_empty()
    }

    /// The bytes as a room to write over, of which `keep` stands at the start.
    pub(super) fn room(&mut self, keep: &[u8], wanted: usize) -> &mut Vec<u8> {
        self.stale = false;
        self.bytes.resize(wanted.max(keep.len()), 0);
        self.bytes[..keep.len()].copy_from_slice(keep);
        &mut self.bytes
    }

    fn freshen(&mut self) {
        if std::mem::replace(&mut self.stale, false) {
            self.bytes.clear();
        }
    }

    fn is_large(&self) -> bool {
        self.bytes.capacity() > LARGE_BYTES
    }

    fn reset(&mut self) {
        self.stale = true;
        self.starts.clear();
        self.faults.clear();
        self.feeds.clear();
    }

    /// Called when the block is complete.
    fn find_feeds(&mut self) {
        self.freshen();
        self.feeds.extend(memchr::memchr_iter(b'\n', &self.bytes).map(|at| at as u32));
    }
}

/// Replaces line feeds inside an entry: each is either a blank between its parts, or inside a
/// string, where JSON forbids it. Another control character is refused there just the same.
fn on_one_line(entry: &mut [u8]) {
    let (mut inside, mut escaped) = (false, false);
    for byte in entry {
        match *byte {
            b'\n' | b'\r' => *byte = if inside { 0x01 } else { b' ' },
            b'"' if !escaped => inside = !inside,
            _ => {}
        }
        escaped = inside && !escaped && *byte == b'\\';
    }
}

/// Why a side could not be read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halt {
    /// Where, if that can be told.
    pub offset: Option<u64>,
    pub entry: Option<u64>,
    pub message: String,
}

impl Halt {
    pub fn new(message: impl Into<String>) -> Self {
        Self { offset: None, entry: None, message: message.into() }
    }
}

/// One side of a comparison, opened.
pub trait Side: Send {
    /// Appends entries to an empty block whose mark is set by the implementation. `false` at the
    /// end of the side, when nothing was appended.
    ///
    /// # Errors
    /// When the side cannot be read any further; what was appended before still counts.
    fn fill(&mut self, block: &mut Block) -> Result<bool, Halt>;
}

/// Something that can be opened as a side.
pub trait Source: Send + Sync {
    /// The name as the user gave it.
    fn name(&self) -> &str;

    /// Opens the side from the start or from a mark of an earlier reading. `read` counts the bytes
    /// taken from the outside, for the progress line.
    ///
    /// # Errors
    /// When there is nothing that can be compared.
    fn open(&self, from: Mark, read: Arc<AtomicU64>) -> Result<Box<dyn Side>, Halt>;

    /// Whether the side can be opened again and gives the same entries.
    fn can_reopen(&self) -> bool;

    /// What tells one state of the side from another, so that a run is not resumed over a changed one.
    fn state(&self) -> Option<String>;

    /// How many bytes `open` will count, if that is known.
    fn bytes(&self) -> Option<u64>;

    /// Opens the side behind an entry of an earlier reading. `last` is the key before the mark, for
    /// sides that are found by key rather than by place.
    ///
    /// # Errors
    /// As [`Self::open`].
    fn open_behind(&self, mark: Mark, last: &[u8], read: Arc<AtomicU64>) -> Result<Box<dyn Side>, Halt> {
        let _ = last;
        self.open(mark, read)
    }

    /// Looks at single keys again, now, if what the side says can change while it is read.
    /// `keys` is about how many that will be, in rising order.
    fn look_again(&self, keys: u64) -> Option<Box<dyn Look>> {
        let _ = keys;
        None
    }

    /// Reads single entries again by their offset, if the side can do that quickly.
    ///
    /// # Errors
    /// When it could, but opening it fails.
    fn lookup(&self) -> std::io::Result<Option<Box<dyn Lookup>>> {
        Ok(None)
    }
}

/// Reads single entries of a side again.
pub trait Lookup: Send {
    /// The entry that starts at this offset.
    ///
    /// # Errors
    /// When it cannot be read.
    fn entry(&mut self, offset: u64) -> std::io::Result<Vec<u8>>;
}

/// What a side says of a key now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Now {
    Absent,
    /// The entry, as JSON on one line.
    Entry(Vec<u8>),
    /// It is there and cannot be used.
    Broken,
}

/// The most keys of one [`Look::look`].
pub const LOOK_KEYS_MAX: usize = 100;

/// Looks at keys of a live side again.
pub trait Look: Send {
    /// What the side says of these keys now, in their order: at most [`LOOK_KEYS_MAX`] in rising
    /// order, and none before the last one of the call before.
    ///
    /// # Errors
    /// When the side does not answer.
    fn look(&mut self, keys: &[String]) -> Result<Vec<Now>, Halt>;
}

enum Message {
    Block(Block),
    End,
    Halt(Halt),
}

/// A side that is being read on its own thread.
pub(super) struct Feed {
    blocks: Option<Receiver<Message>>,
    used: Option<mpsc::Sender<Block>>,
    thread: Option<JoinHandle<()>>,
}

impl Feed {
    pub fn start(mut side: Box<dyn Side>) -> Self {
        let (sender, blocks) = sync_channel(BLOCKS_AHEAD);
        let (used, returned) = mpsc::channel();
        let thread = std::thread::spawn(move || pump(side.as_mut(), &sender, &returned));
        Self { blocks: Some(blocks), used: Some(used), thread: Some(thread) }
    }

    /// The next block, taking the last one back. `None` at the end.
    pub fn next(&mut self, used: Block) -> Result<Option<Block>, Halt> {
        let used = if used.is_large() { Block::default() } else { used };
        // The thread may have ended and dropped its end; then the block is simply dropped too.
        let _ = self.used.as_ref().map(|returned| returned.send(used));
        let Some(blocks) = &self.blocks else { return Ok(None) };
        match blocks.recv() {
            Ok(Message::Block(block)) => Ok(Some(block)),
            Ok(Message::Halt(halt)) => {
                self.blocks = None;
                Err(halt)
            }
            Ok(Message::End) => {
                self.blocks = None;
                Ok(None)
            }
            Err(_) => {
                self.blocks = None;
                Err(Halt::new("the thread that reads this side ended unexpectedly"))
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // With the channels closed the thread ends at its next block, or while it waits for one.
        (self.blocks, self.used) = (None, None);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported as a halt already.
            let _ = thread.join();
        }
    }
}

fn pump(side: &mut dyn Side, blocks: &SyncSender<Message>, returned: &Receiver<Block>) {
    // Blocks that went out, and calls that took one and gave one back.
    let (mut sent, mut calls) = (0u64, 0u64);
    let mut large = false;
    loop {
        let mut block = Block::default();
        if let Ok(used) = returned.try_recv() {
            block = used;
            calls += 1;
        }
        while large && calls < sent {
            let Ok(used) = returned.recv() else { return };
            block = used;
            calls += 1;
        }
        block.reset();
        let filled = side.fill(&mut block);
        block.find_feeds();
        if !block.bytes.is_empty() {
            large = block.is_large();
            sent += 1;
            if blocks.send(Message::Block(block)).is_err() {
                return;
            }
        }
        let last = match filled {
            Ok(true) => continue,
            Ok(false) => Message::End,
            Err(halt) => Message::Halt(halt),
        };
        // Nobody may be listening any more, which is no error.
        let _ = blocks.send(last);
        return;
    }
}

/// Counts bytes as they are read.
pub(super) struct Counted<R> {
    pub inner: R,
    pub read: Arc<AtomicU64>,
}

impl<R: std::io::Read> std::io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_over_several_lines_becomes_one() {
        let mut block = Block::default();
        block.push(b"{\n \"key\":\r\n\"a\nb\\\"\n\"}", 0);
        assert_eq!(block.bytes, b"{  \"key\":  \"a\x01b\\\"\x01\"}\n");
    }

    /// With a look back to the start of the entry at each line feed this took a quarter of an hour.
    #[test]
    fn millions_of_lines_in_one_entry_are_passed_once() {
        let entry = format!("{{\"key\":\"a\",\"x\":[{}1]}}", "1\n,".repeat(2_000_000));
        let mut block = Block::default();
        block.push(entry.as_bytes(), 0);
        assert_eq!(block.bytes.len(), entry.len() + 1);
        assert_eq!(memchr::memchr(b'\n', &block.bytes), Some(entry.len()));
    }

    /// Gives one large entry after the other, and keeps count of them.
    struct Large(Arc<AtomicU64>);

    impl Side for Large {
        fn fill(&mut self, block: &mut Block) -> Result<bool, Halt> {
            self.0.fetch_add(1, Ordering::SeqCst);
            block.push(&vec![b' '; LARGE_BYTES * 2], 0);
            Ok(true)
        }
    }

    #[test]
    fn large_entries_are_read_one_ahead() {
        let read = Arc::new(AtomicU64::new(0));
        let mut feed = Feed::start(Box::new(Large(Arc::clone(&read))));
        let mut block = Block::default();
        for taken in 1..=50 {
            block = feed.next(block).unwrap().unwrap();
            assert!(read.load(Ordering::SeqCst) <= taken + 1);
        }
    }

    struct Endless(u64);

    impl Side for Endless {
        fn fill(&mut self, block: &mut Block) -> Result<bool, Halt> {
            block.mark = Mark { entries: self.0, offset: 0 };
            block.push(b"{}", self.0);
            self.0 += 1;
            if self.0 == 1_000 { Err(Halt::new("enough")) } else { Ok(true) }
        }
    }

    #[test]
    fn what_came_before_a_halt_is_delivered_and_a_feed_can_be_dropped_at_any_time() {
        let mut feed = Feed::start(Box::new(Endless(0)));
        let mut block = Block::default();
        for n in 0..1_000 {
            block = feed.next(block).unwrap().unwrap();
            assert_eq!(block.mark.entries, n);
        }
        assert_eq!(feed.next(block).unwrap_err().message, "enough");
        assert!(feed.next(Block::default()).unwrap().is_none());
        drop(Feed::start(Box::new(Endless(0))));
    }
}
