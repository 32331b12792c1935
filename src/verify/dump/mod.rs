//! Dump files: what `wrangler kv` and people write, told apart by content and never by name.
//!
//! A dump is JSON lines, a JSON array or CSV, as it is or compressed with gzip or zstd.

mod array;
mod csv;
mod lines;
mod zstd;

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::UNIX_EPOCH;

use super::entry::ENTRY_BYTES_MAX;
use super::side::{BLOCK_BYTES, Counted, Halt, Lookup, Mark, Side, Source};

/// How many bytes behind leading blanks are looked at to tell what a file is.
const PROBE_BYTES: usize = 4096;

type Input = Box<dyn Read + Send>;

/// A dump file, or standard input.
#[derive(Clone, Debug)]
pub struct Dump {
    name: String,
    /// `None`: standard input.
    path: Option<PathBuf>,
}

impl Dump {
    /// `-` is standard input.
    pub fn new(argument: &str) -> Self {
        if argument == "-" {
            Self { name: "<stdin>".to_owned(), path: None }
        } else {
            Self { name: argument.to_owned(), path: Some(PathBuf::from(argument)) }
        }
    }

    /// What the system says of the file; `None` for anything that gives its bytes only once, such as
    /// a pipe under a path.
    fn file(&self) -> Option<Metadata> {
        self.path.as_ref()?.metadata().ok().filter(Metadata::is_file)
    }
}

impl Source for Dump {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, from: Mark, read: Arc<AtomicU64>) -> Result<Box<dyn Side>, Halt> {
        let unreadable = |error: io::Error| Halt::new(format!("cannot be read: {error}"));
        let Some(path) = &self.path else {
            return open(Box::new(Counted { inner: io::stdin(), read }), Mark::default());
        };
        let mut file = File::open(path).map_err(unreadable)?;
        if !self.can_reopen() {
            return open(Box::new(Counted { inner: file, read }), Mark::default());
        }
        let probe = probe(&mut file).map_err(unreadable)?;
        let plain_lines = is_plain_lines(&probe);
        let start = if plain_lines { from.offset } else { 0 };
        file.seek(SeekFrom::Start(start)).map_err(unreadable)?;
        read.fetch_add(start, std::sync::atomic::Ordering::Relaxed);
        let input: Input = Box::new(Counted { inner: file, read });
        if plain_lines {
            return Ok(Box::new(lines::Lines::new(input, from)));
        }
        open(input, from)
    }

    fn can_reopen(&self) -> bool {
        self.file().is_some()
    }

    fn state(&self) -> Option<String> {
        let metadata = self.file()?;
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(format!("{} bytes, modified at {}.{:09}", metadata.len(), modified.as_secs(), modified.subsec_nanos()))
    }

    fn bytes(&self) -> Option<u64> {
        Some(self.file()?.len())
    }

    fn lookup(&self) -> io::Result<Option<Box<dyn Lookup>>> {
        let Some(path) = self.path.as_deref().filter(|_| self.can_reopen()) else { return Ok(None) };
        let mut file = File::open(path)?;
        let probe = probe(&mut file)?;
        Ok(is_plain_lines(&probe).then(|| Box::new(lines::Finder::new(file)) as Box<dyn Lookup>))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

fn compression(probe: &[u8]) -> Compression {
    match probe {
        [0x1F, 0x8B, ..] => Compression::Gzip,
        [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Lines,
    Array,
    Csv,
    /// Nothing but blanks.
    Empty,
}

/// Only in plain lines does a byte offset say where an entry stands.
fn is_plain_lines(probe: &[u8]) -> bool {
    compression(probe) == Compression::None && shape(probe) == Ok(Shape::Lines)
}

const WANTED: &str = "a JSON array, JSON lines, or CSV whose first line names its columns";

fn shape(probe: &[u8]) -> Result<Shape, Halt> {
    let text = without_mark(probe);
    // Only its start: a dump may well be text at first and something else further on.
    let start = &text[..text.len().min(64)];
    let zeros = start.iter().filter(|b| **b == 0).count();
    if matches!(probe, [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..]) || zeros * 4 > start.len() {
        let message = format!("found UTF-16, UTF-32 or binary data, expected UTF-8 text: {WANTED}");
        return Err(Halt { offset: Some(0), entry: None, message });
    }
    let wrong = |at: usize, found: &str| {
        let offset = Some((probe.len() - text.len() + at) as u64);
        Halt { offset, entry: None, message: format!("found {found}, expected {WANTED}") }
    };
    let Some(at) = text.iter().position(|b| !b.is_ascii_whitespace()) else {
        let whole = text.len() < ENTRY_BYTES_MAX;
        return if whole { Ok(Shape::Empty) } else { Err(wrong(0, "nothing but blanks in the first 64 MiB")) };
    };
    match text[at] {
        b'{' => Ok(Shape::Lines),
        b'[' => Ok(Shape::Array),
        _ => {
            let header = text[at..].split(|b| *b == b'\n').next().unwrap_or_default();
            if csv::has_key_column(header) { Ok(Shape::Csv) } else { Err(wrong(at, "something else")) }
        }
    }
}

/// Opens a stream of unknown shape, decompressing it as its first bytes tell.
fn open(mut input: Input, from: Mark) -> Result<Box<dyn Side>, Halt> {
    let mut probe = probe(&mut input).map_err(|error| broken(&error, Some(0)))?;
    let compression = compression(&probe);
    if compression != Compression::None {
        let whole = BufReader::with_capacity(BLOCK_BYTES, Cursor::new(probe).chain(input));
        input = match compression {
            Compression::Zstd => Box::new(zstd::Frames::new(whole)),
            _ => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        };
        probe = self::probe(&mut input).map_err(|error| broken(&error, Some(0)))?;
    }
    let shape = shape(&probe)?;
    if shape == Shape::Csv {
        // The CSV reader passes over empty lines, but takes a line of blanks for a row.
        let mark = probe.len() - without_mark(&probe).len();
        probe[mark..].iter_mut().take_while(|b| b.is_ascii_whitespace()).for_each(|b| *b = b'\n');
    }
    let mut input: Input = Box::new(Cursor::new(probe).chain(input));
    Ok(match shape {
        Shape::Lines => {
            io::copy(&mut (&mut input).take(from.offset), &mut io::sink()).map_err(|error| broken(&error, None))?;
            Box::new(lines::Lines::new(input, from))
        }
        Shape::Array => Box::new(array::Array::new(input, from)),
        Shape::Csv => Box::new(csv::Rows::new(input, from)?),
        Shape::Empty => Box::new(lines::Lines::new(Box::new(io::empty()), Mark::default())),
    })
}

/// The start of an input: its leading blanks, so far as an entry may go, and some of what follows.
fn probe(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut probe = Vec::with_capacity(PROBE_BYTES);
    let mut blanks = 0;
    loop {
        let read = input.by_ref().take(PROBE_BYTES as u64).read_to_end(&mut probe)?;
        let text = without_mark(&probe);
        blanks += text[blanks..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        if read < PROBE_BYTES || text.len() - blanks >= PROBE_BYTES || blanks >= ENTRY_BYTES_MAX {
            return Ok(probe);
        }
    }
}

/// A text without its byte order mark.
fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text)
}

/// Reading failed in the middle: a damaged or cut compressed file, or the disk.
fn broken(error: &io::Error, offset: Option<u64>) -> Halt {
    let message = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the compressed data breaks off".to_owned(),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => "the compressed data is damaged".to_owned(),
        _ => format!("reading failed: {error}"),
    };
    Halt { offset, entry: None, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All entries of a dump, with their offsets, and how it ended.
    pub(super) fn read_all(bytes: &[u8], from: Mark) -> (Vec<(u64, String)>, Option<Halt>) {
        let mut side = match open(Box::new(Cursor::new(bytes.to_vec())), from) {
            Ok(side) => side,
            Err(halt) => return (Vec::new(), Some(halt)),
        };
        let mut all = Vec::new();
        loop {
            let mut block = super::super::side::Block::default();
            let filled = side.fill(&mut block);
            let mut offset = block.mark.offset;
            for (n, line) in block.bytes.split_inclusive(|b| *b == b'\n').enumerate() {
                let at = block.starts.get(n).copied().unwrap_or(offset);
                all.push((at, String::from_utf8_lossy(line).trim().to_owned()));
                offset += line.len() as u64;
            }
            match filled {
                Ok(true) => {}
                Ok(false) => return (all, None),
                Err(halt) => return (all, Some(halt)),
            }
        }
    }

    #[test]
    fn all_formats_give_the_same_entries() {
        let lines = "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\"}\n";
        let array = " [\n{\"key\":\"a\",\"value\":\"1\"},\n {\"key\":\"b\",\"value\":\"2\"} ]\n";
        let csv = "key,value,expiration,metadata\na,1,,\nb,2,,\n";
        let entries = |bytes: &[u8]| {
            let (all, halt) = read_all(bytes, Mark::default());
            assert_eq!(halt, None);
            all.into_iter().map(|(_, line)| line).collect::<Vec<_>>()
        };
        let expected = entries(lines.as_bytes());
        assert_eq!(expected.len(), 2);
        assert_eq!(entries(array.as_bytes()), expected);
        assert_eq!(entries(csv.as_bytes()), expected);
        let gzip = |bytes: &[u8]| {
            use std::io::Write;
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(entries(&gzip(array.as_bytes())), expected);
        assert_eq!(entries(&zstd(csv.as_bytes())), expected);
        // Several compressed parts one after another are one dump, as `cat` makes them.
        let (first, second) = lines.split_at(lines.find('\n').unwrap() + 1);
        assert_eq!(entries(&[gzip(first.as_bytes()), gzip(second.as_bytes())].concat()), expected);
        let skippable = [b"\x51\x2A\x4D\x18\x03\0\0\0abc".to_vec(), zstd(first.as_bytes()), zstd(second.as_bytes())];
        assert_eq!(entries(&skippable.concat()), expected);
    }

    #[test]
    fn reading_starts_again_in_the_middle_of_every_format() {
        let lines = b"{\"key\":\"a\"}\n{\"key\":\"b\"}\n{\"key\":\"c\"}\n";
        for (bytes, from) in [
            (&lines[..], Mark { entries: 1, offset: 12 }),
            (b"[{\"key\":\"a\"},{\"key\":\"b\"},{\"key\":\"c\"}]", Mark { entries: 1, offset: 13 }),
            (b"key\na\nb\nc\n", Mark { entries: 1, offset: 6 }),
        ] {
            let (whole, _) = read_all(bytes, Mark::default());
            let (rest, _) = read_all(bytes, from);
            assert_eq!(rest, whole[1..]);
        }
    }

    #[test]
    fn what_is_no_dump_says_so() {
        let message = |bytes: &[u8]| read_all(bytes, Mark::default()).1.unwrap().message;
        assert!(message(b"\xFF\xFE{\0}\0").contains("UTF-16"));
        assert!(message(b"hello\nworld\n").contains("expected a JSON array"));
        assert!(message(b"\x1F\x8B\x08broken").contains("compressed data"));
        assert!(message(b"\x28\xB5\x2F\xFDbroken").contains("compressed data"));
        assert_eq!(read_all(b" \n", Mark::default()), (vec![], None));
        assert!(message(&vec![b' '; ENTRY_BYTES_MAX + 1]).contains("nothing but blanks"));
    }

    #[test]
    fn blanks_in_front_of_a_dump_are_no_end_however_many_they_are() {
        let entry = r#"{"key":"a","value":"1"}"#;
        for (mark, blanks) in ["", "\u{FEFF}"].into_iter().flat_map(|mark| [1, 4_095, 4_096, 40_000].map(|n| (mark, n)))
        {
            for text in [format!("{entry}\n"), format!("[{entry}]"), "key,value\na,1\n".to_owned()] {
                for blank in [" ", "\n", "\r\n"] {
                    let whole = format!("{mark}{}\n{text}", blank.repeat(blanks));
                    let (all, halt) = read_all(whole.as_bytes(), Mark::default());
                    let found: Vec<&str> =
                        all.iter().map(|(_, line)| line.as_str()).filter(|l| l.contains("key")).collect();
                    assert_eq!((found, halt), (vec![entry], None), "{blanks} times {blank:?} before {text}");
                }
            }
        }
    }

    #[test]
    fn a_compressed_dump_that_is_cut_or_damaged_halts_after_what_was_read() {
        let text: String = (0..2_000).map(|n| format!("{{\"key\":\"k{n:06}\"}}\n")).collect();
        let whole = ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
        let (_, halt) = read_all(&whole[..whole.len() - 5], Mark::default());
        assert!(halt.unwrap().message.contains("compressed data"));
        let mut flipped = whole.clone();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        let (_, halt) = read_all(&flipped, Mark::default());
        assert_eq!(halt.unwrap().message, "the compressed data is damaged");
    }
}
