//! Walks the entries of one side, one line at a time, and keeps what went wrong with them.

use super::entry::{EntryError, Scanned, scan};
use super::finding::{Diagnostic, Diagnostics, Hand, shown};
use super::side::{Block, Feed, Halt, Mark, Side};

/// How a side ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ending {
    /// All of it was read.
    Whole,
    /// It broke off: what the other side has beyond that cannot be judged.
    BrokeOff,
}

/// Where the last good entry stands.
enum Kept {
    Nowhere,
    InBlock(usize, usize),
    Copied,
}

pub(super) struct Reader {
    pub hand: Hand,
    name: String,
    feed: Option<Feed>,
    block: Block,
    /// The current line in the block, without its line feed.
    start: usize,
    end: usize,
    /// Where the next line starts.
    next: usize,
    /// Line feeds of the block that were passed.
    feeds: usize,
    /// Entries before the block.
    before: u64,
    /// The first block has come.
    begun: bool,
    /// Number of the current entry within the block, from 0.
    index: u64,
    at_line: bool,
    kept: Kept,
    copy: Vec<u8>,
    pub ending: Option<Ending>,
    pub diagnostics: Diagnostics,
    /// Bytes of entries that were passed.
    pub passed: u64,
}

impl Reader {
    pub fn new(hand: Hand, name: &str, side: Result<Box<dyn Side>, Halt>) -> Self {
        let mut reader = Self::ended(hand, name, None);
        match side {
            Ok(side) => reader.feed = Some(Feed::start(side)),
            Err(halt) => reader.halt(halt),
        }
        reader
    }

    /// A side that an earlier run has read to its end.
    pub fn ended(hand: Hand, name: &str, ending: Option<Ending>) -> Self {
        Self {
            hand,
            name: name.to_owned(),
            feed: None,
            block: Block::default(),
            start: 0,
            end: 0,
            next: 0,
            feeds: 0,
            before: 0,
            begun: false,
            index: 0,
            at_line: false,
            kept: Kept::Nowhere,
            copy: Vec::new(),
            ending,
            diagnostics: Diagnostics::default(),
            passed: 0,
        }
    }

    /// The current entry, without its line feed. Only after [`Self::advance`] said that there is one.
    pub fn line(&self) -> &[u8] {
        &self.block.bytes[self.start..self.end]
    }

    /// The current entry with its line feed, and nothing when the side gave it none.
    pub fn whole_line(&self) -> Option<&[u8]> {
        (self.next > self.end).then(|| &self.block.bytes[self.start..self.next])
    }

    /// Everything of the block from the current entry on.
    pub fn rest(&self) -> &[u8] {
        &self.block.bytes[self.start..]
    }

    /// Number of the current entry, from 1.
    pub fn number(&self) -> u64 {
        self.before + self.index + 1
    }

    fn offset(&self) -> u64 {
        match self.block.starts.get(self.index as usize) {
            Some(offset) => *offset,
            None => self.block.mark.offset + self.start as u64,
        }
    }

    /// Where the current entry starts.
    pub fn mark(&self) -> Mark {
        Mark { entries: self.number() - 1, offset: self.offset() }
    }

    /// Where a later run goes on; `None` at the end of the side.
    pub fn resume_mark(&self) -> Option<Mark> {
        self.at_line.then(|| self.mark())
    }

    /// The last entry that was advanced over with `keep`.
    pub fn kept(&self) -> &[u8] {
        match self.kept {
            Kept::Nowhere => &[],
            Kept::InBlock(start, end) => &self.block.bytes[start..end],
            Kept::Copied => &self.copy,
        }
    }

    /// Goes to the next entry that is not blank; `false` at the end. `keep`: the current one is
    /// the last good one.
    pub fn advance(&mut self, keep: bool) -> bool {
        if self.at_line && keep {
            self.kept = Kept::InBlock(self.start, self.end);
        }
        loop {
            if self.at_line {
                self.passed += (self.next - self.start) as u64;
                self.index += 1;
            }
            self.at_line = false;
            if self.next >= self.block.bytes.len() && !self.next_block() {
                return false;
            }
            self.start = self.next;
            let feed = self.block.feeds.get(self.feeds).map(|at| *at as usize);
            self.end = feed.unwrap_or(self.block.bytes.len());
            self.next = self.end + usize::from(feed.is_some());
            self.feeds += 1;
            self.at_line = true;
            if self.number() == 1 && self.line().starts_with(b"\xEF\xBB\xBF") {
                self.start += 3;
            }
            if !self.line().trim_ascii().is_empty() {
                return true;
            }
        }
    }

    fn next_block(&mut self) -> bool {
        if let Kept::InBlock(start, end) = self.kept {
            self.copy.clear();
            self.copy.extend_from_slice(&self.block.bytes[start..end]);
            self.kept = Kept::Copied;
        }
        self.before += self.index;
        (self.start, self.end, self.next, self.feeds, self.index) = (0, 0, 0, 0, 0);
        let Some(feed) = &mut self.feed else {
            self.block = Block::default();
            return false;
        };
        let outcome = feed.next(std::mem::take(&mut self.block));
        match outcome {
            Ok(Some(block)) => {
                if !std::mem::replace(&mut self.begun, true) {
                    self.before = block.mark.entries;
                }
                self.block = block;
                true
            }
            Ok(None) => {
                self.feed = None;
                // It may have broken off in its last line already.
                self.ending.get_or_insert(Ending::Whole);
                false
            }
            Err(halt) => {
                self.halt(halt);
                false
            }
        }
    }

    fn halt(&mut self, halt: Halt) {
        self.feed = None;
        self.ending = Some(Ending::BrokeOff);
        let Halt { offset, entry, message } = halt;
        self.add(Diagnostic { side: self.hand, source: self.name.clone(), entry, offset, key: None, message });
    }

    fn add(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.add(diagnostic);
    }

    /// Finds the parts of the current entry.
    pub fn scan(&self) -> Result<Scanned, EntryError> {
        let scanned = scan(self.line());
        if self.block.faults.is_empty() {
            return scanned;
        }
        match self.block.faults.iter().find(|(index, _)| *index == self.index) {
            None => scanned,
            Some((_, why)) => {
                let key = match scanned {
                    Ok(scanned) => Some(scanned.key(self.line()).into_owned()),
                    Err(error) => error.key,
                };
                Err(EntryError { at: 0, key, found: why.clone().into(), expected: "" })
            }
        }
    }

    /// Whether same bytes on both sides can be taken as the same entry.
    pub fn is_faultless(&self) -> bool {
        self.block.faults.is_empty()
    }

    /// Reports what is wrong with the current entry. In a last line without a line feed it is taken
    /// for where the file was cut, wherever in the line it stands: a cut may fall into an escape, a
    /// word or a character.
    pub fn report(&mut self, error: &EntryError) {
        let cut = self.next == self.end && self.block.starts.is_empty();
        let mut message = if error.expected.is_empty() { error.found.to_string() } else { error.to_string() };
        if cut {
            message.push_str(match error.at >= self.line().len() {
                true => "; the file was cut short",
                false => "; the last line has no line feed, so the file may be cut short",
            });
            self.ending = Some(Ending::BrokeOff);
        }
        let within = if self.block.starts.is_empty() { error.at as u64 } else { 0 };
        self.report_at(self.number(), Some(self.offset() + within), error.key.as_deref(), message);
    }

    /// Reports something about an entry of this side.
    pub fn report_at(&mut self, entry: u64, offset: Option<u64>, key: Option<&[u8]>, message: String) {
        let key = key.map(shown);
        let offset = offset.filter(|_| !self.block.placeless);
        self.add(Diagnostic { side: self.hand, source: self.name.clone(), entry: Some(entry), offset, key, message });
    }
}
