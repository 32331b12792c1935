//! CSV with a header line: `key` (or `name`), and as wished `value`, `expiration`, `metadata`.
//!
//! Values stand as they are, metadata as JSON; an empty cell says that there is none, except for
//! the value, which may be empty. Columns of other names are compared like fields of the entry.

use std::io::Read;

use super::super::entry::ENTRY_BYTES_MAX;
use super::super::json::{Cursor, write_string};
use super::super::side::{Block, Halt, Mark, Side};
use super::{Input, broken};

/// Whether a line is a header of ours.
pub(super) fn has_key_column(line: &[u8]) -> bool {
    line.split(|b| *b == b',').any(|cell| matches!(column(cell), Column::Key))
}

#[derive(Clone, PartialEq, Eq)]
enum Column {
    Key,
    Value,
    Expiration,
    Metadata,
    Other(Vec<u8>),
}

fn column(cell: &[u8]) -> Column {
    let cell = cell.trim_ascii();
    let cell = cell.strip_prefix(b"\"").and_then(|c| c.strip_suffix(b"\"")).unwrap_or(cell);
    match cell.to_ascii_lowercase().as_slice() {
        b"key" | b"name" => Column::Key,
        b"value" => Column::Value,
        b"expiration" => Column::Expiration,
        b"metadata" => Column::Metadata,
        _ => Column::Other(cell.to_vec()),
    }
}

/// Fails when one record takes more than an entry may: a quote that is never closed would else
/// gather the whole file in memory.
struct Bounded {
    inner: Input,
    /// Bytes since a record began.
    taken: usize,
    /// Somebody asked for more than there is.
    ended: bool,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.ended = n == 0;
        self.taken += n;
        if self.taken > ENTRY_BYTES_MAX {
            return Err(std::io::Error::other("a row of more than 64 MiB, perhaps a quote that is never closed"));
        }
        Ok(n)
    }
}

/// The reader asks for more while a row has no end. A row that stops may be a part of one whatever
/// it looks like: the first half of `""` closes a cell.
const NO_END: &str = "found the end of the file, expected the line feed that ends a row, after the quote that ends its \
                      last cell if one is open; the file may be cut short";

pub(super) struct Rows {
    reader: ::csv::Reader<Bounded>,
    columns: Vec<Column>,
    record: ::csv::ByteRecord,
    entry: Vec<u8>,
    entries: u64,
    skip: u64,
}

impl Rows {
    pub fn new(input: Input, from: Mark) -> Result<Self, Halt> {
        let bounded = Bounded { inner: input, taken: 0, ended: false };
        let mut reader = ::csv::ReaderBuilder::new().buffer_capacity(64 * 1024).from_reader(bounded);
        let at_start = |message: String| Halt { offset: Some(0), entry: None, message };
        let header = reader.byte_headers().map_err(|error| unreadable(error, 0))?;
        let columns: Vec<Column> = header.iter().map(column).collect();
        if reader.get_ref().ended {
            return Err(Halt { offset: Some(0), entry: None, message: NO_END.to_owned() });
        }
        for (n, found) in columns.iter().enumerate() {
            if columns[..n].contains(found) {
                return Err(at_start(format!("found column {} twice, expected each column once", n + 1)));
            }
        }
        Ok(Self {
            reader,
            columns,
            record: ::csv::ByteRecord::new(),
            entry: Vec::new(),
            entries: 0,
            skip: from.entries,
        })
    }

    /// Writes the record that was read as an entry; an error is what is wrong with it, and then
    /// the entry holds no more than its key.
    fn write(&mut self) -> Result<(), &'static str> {
        self.entry.clear();
        let mut wrong = None;
        for (column, cell) in self.columns.iter().zip(&self.record) {
            let name: &[u8] = match column {
                Column::Key => b"key",
                Column::Value => b"value",
                Column::Expiration => b"expiration",
                Column::Metadata => b"metadata",
                Column::Other(name) => name,
            };
            if cell.is_empty() && !matches!(column, Column::Key | Column::Value) {
                continue;
            }
            self.entry.push(if self.entry.is_empty() { b'{' } else { b',' });
            write_string(name, &mut self.entry);
            self.entry.push(b':');
            match column {
                Column::Metadata | Column::Expiration => {
                    let mut cursor = Cursor::new(cell);
                    let whole = cursor.value().is_ok() && {
                        cursor.blanks();
                        cursor.at == cell.len()
                    };
                    if whole {
                        self.entry.extend_from_slice(cell);
                    } else {
                        wrong = Some(match column {
                            Column::Metadata => "found a metadata cell that is no JSON, expected one JSON value",
                            _ => "found an expiration cell that is no number, expected whole Unix seconds",
                        });
                        self.entry.extend_from_slice(b"null");
                    }
                }
                _ => write_string(cell, &mut self.entry),
            }
        }
        self.entry.push(b'}');
        wrong.map_or(Ok(()), Err)
    }
}

impl Side for Rows {
    fn fill(&mut self, block: &mut Block) -> Result<bool, Halt> {
        block.mark = Mark { entries: self.entries.max(self.skip), offset: self.reader.position().byte() };
        while !block.is_full() {
            self.reader.get_mut().taken = 0;
            let offset = self.reader.position().byte();
            let read = match self.reader.read_byte_record(&mut self.record) {
                Ok(false) => return Ok(!block.is_empty()),
                Ok(true) => self.write(),
                Err(error) => match error.kind() {
                    ::csv::ErrorKind::UnequalLengths { .. } => {
                        // The record is there; its cells cannot be told apart, so only its first is used.
                        self.write().and(Err("found another number of cells than the header has, expected the same"))
                    }
                    _ => return Err(unreadable(error, offset)),
                },
            };
            self.entries += 1;
            if self.reader.get_ref().ended {
                return Err(Halt { offset: Some(offset), entry: Some(self.entries), message: NO_END.to_owned() });
            }
            if self.entries <= self.skip {
                continue;
            }
            match read {
                Ok(()) => block.push(&self.entry, offset),
                Err(why) => block.push_fault(&self.entry, offset, why),
            }
        }
        Ok(true)
    }
}

fn unreadable(error: ::csv::Error, offset: u64) -> Halt {
    match error.into_kind() {
        ::csv::ErrorKind::Io(error) => broken(&error, Some(offset)),
        _ => Halt { offset: Some(offset), entry: None, message: "found a row that is no CSV".to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::read_all;
    use super::*;

    #[test]
    fn a_row_becomes_an_entry() {
        let csv =
            "name,value,metadata,expiration,zone\n\"a\",\"{\"\"x\"\":\"\"\n\"\"}\",\"{\"\"v\"\":1}\",17,eu\nb,,,,\n";
        let (all, halt) = read_all(csv.as_bytes(), Mark::default());
        assert_eq!(halt, None);
        assert_eq!(
            all[0].1,
            r#"{"key":"a","value":"{\"x\":\"\u000a\"}","metadata":{"v":1},"expiration":17,"zone":"eu"}"#
        );
        assert_eq!(all[1].1, r#"{"key":"b","value":""}"#);
    }

    #[test]
    fn a_row_without_its_end_is_no_entry() {
        for (csv, entries, offset) in [
            ("key,value\na,1\nb,2", 1, 14),
            ("key,value\na,\"x\nb,y\nc,z\n", 0, 10),
            ("key,value\na,1\nb,\"x\"", 1, 14),
            ("key,val", 0, 0),
        ] {
            let (all, halt) = read_all(csv.as_bytes(), Mark::default());
            let halt = halt.unwrap();
            assert_eq!((all.len(), halt.offset), (entries, Some(offset)), "{csv}");
            assert!(halt.message.contains("cut short"), "{csv}");
        }
        assert_eq!(read_all(b"key,value\r\na,1\r\n\r\n", Mark::default()).1, None);
    }

    #[test]
    fn a_metadata_cell_cannot_smuggle_in_a_member() {
        let csv = "key,metadata\na,\"1,\"\"value\"\":\"\"x\"\"\"\nb,1\n";
        let (all, _) = read_all(csv.as_bytes(), Mark::default());
        assert_eq!(all[0].1, r#"{"key":"a","metadata":null}"#);
        assert_eq!(all[1].1, r#"{"key":"b","metadata":1}"#);
    }
}
