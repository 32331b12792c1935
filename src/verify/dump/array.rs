//! A JSON array of entries, as `wrangler kv bulk` takes it, cut into its elements as it streams.

use std::io::Read;

use super::super::entry::ENTRY_BYTES_MAX;
use super::super::side::{BLOCK_BYTES, Block, Halt, Mark, Side};
use super::{Input, broken};

enum State {
    /// Before `[`.
    Start,
    /// Before the first element, or the closing bracket of an empty array.
    First,
    /// Before an element; a comma came.
    Element,
    /// After an element.
    After,
    /// After the closing bracket.
    Done,
}

pub(super) struct Array {
    input: Input,
    buffer: Vec<u8>,
    /// What of the buffer was used.
    at: usize,
    /// Offset of the buffer's start in the stream.
    offset: u64,
    ended: bool,
    state: State,
    entries: u64,
    /// Entries that an earlier reading had already.
    skip: u64,
}

impl Array {
    pub fn new(input: Input, from: Mark) -> Self {
        Self {
            input,
            buffer: Vec::new(),
            at: 0,
            offset: 0,
            ended: false,
            state: State::Start,
            entries: 0,
            skip: from.entries,
        }
    }

    /// Reads more behind what has not been used; `false` when there is no more.
    fn more(&mut self) -> Result<bool, Halt> {
        if self.ended {
            return Ok(false);
        }
        self.buffer.drain(..self.at);
        self.offset += self.at as u64;
        self.at = 0;
        let before = self.buffer.len();
        let read = (&mut self.input).take(BLOCK_BYTES as u64).read_to_end(&mut self.buffer);
        if let Err(error) = read {
            self.ended = true;
            return Err(broken(&error, Some(self.offset + before as u64)));
        }
        self.ended = self.buffer.len() == before;
        Ok(!self.ended)
    }

    fn byte(&mut self) -> Result<Option<u8>, Halt> {
        loop {
            while let Some(byte) = self.buffer.get(self.at) {
                if !byte.is_ascii_whitespace() {
                    return Ok(Some(*byte));
                }
                self.at += 1;
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    fn halt<T>(&mut self, found: &str, expected: &str) -> Result<T, Halt> {
        self.ended = true;
        self.state = State::Done;
        let offset = Some(self.offset + self.at as u64);
        Err(Halt { offset, entry: Some(self.entries + 1), message: format!("found {found}, expected {expected}") })
    }

    /// The length of the object that starts here, found by its brackets alone: whether it is good
    /// JSON is for the entry parser to say.
    fn object(&mut self) -> Result<usize, Halt> {
        let (mut at, mut depth, mut inside) = (0usize, 0u64, false);
        loop {
            let rest = &self.buffer[self.at + at..];
            let next = if inside {
                memchr::memchr2(b'"', b'\\', rest)
            } else {
                rest.iter().position(|b| matches!(b, b'"' | b'{' | b'}' | b'[' | b']'))
            };
            match next {
                Some(hit) => {
                    let byte = rest[hit];
                    at += hit + 1;
                    match byte {
                        b'"' => inside = !inside,
                        b'\\' => at += 1,
                        b'{' | b'[' => depth += 1,
                        _ => depth -= 1,
                    }
                    if depth == 0 && !inside {
                        return Ok(at);
                    }
                }
                None => at += rest.len(),
            }
            // An escape may point behind what was read.
            while self.at + at >= self.buffer.len() {
                if at > ENTRY_BYTES_MAX {
                    return self.halt("an entry of more than 64 MiB", "one that KV can hold");
                }
                if !self.more()? {
                    return self.halt("the end of the file", "the end of the entry; the file was cut short");
                }
            }
        }
    }
}

impl Side for Array {
    fn fill(&mut self, block: &mut Block) -> Result<bool, Halt> {
        block.mark = Mark { entries: self.entries.max(self.skip), offset: self.offset + self.at as u64 };
        while !block.is_full() {
            let byte = self.byte()?;
            match (&self.state, byte) {
                (State::Start, _) if self.offset == 0 && self.buffer[self.at..].starts_with(b"\xEF\xBB\xBF") => {
                    self.at += 3
                }
                (State::Start, Some(b'[')) => {
                    self.state = State::First;
                    self.at += 1;
                }
                (State::First | State::Element, Some(b'{')) => {
                    let length = self.object()?;
                    let offset = self.offset + self.at as u64;
                    self.entries += 1;
                    if self.entries > self.skip {
                        block.push(&self.buffer[self.at..self.at + length], offset);
                    }
                    self.at += length;
                    self.state = State::After;
                }
                (State::First | State::After, Some(b']')) => {
                    self.state = State::Done;
                    self.at += 1;
                }
                (State::After, Some(b',')) => {
                    self.state = State::Element;
                    self.at += 1;
                }
                (State::Done, None) => return Ok(!block.is_empty()),
                (State::Done, Some(_)) => return self.halt("text after the closing `]`", "the end of the file"),
                (State::After, Some(_)) => return self.halt("something else", "`,` or `]` after an entry"),
                (_, Some(byte)) => return self.halt(super::super::json::kind(Some(byte)), "an object as the entry"),
                (_, None) => return self.halt("the end of the file", "`]`; the file was cut short"),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::read_all;
    use super::*;

    fn halt(text: &str) -> (usize, String) {
        let (all, halt) = read_all(text.as_bytes(), Mark::default());
        let halt = halt.unwrap();
        (all.len(), format!("{} {} {}", halt.offset.unwrap(), halt.entry.unwrap(), halt.message))
    }

    #[test]
    fn elements_are_found_whatever_is_inside_them() {
        let (all, end) = read_all(br#"[{"key":"}]\\\"{","x":[{}]} , {"key":"b"}]"#, Mark::default());
        assert_eq!(end, None);
        assert_eq!(all, [(1, r#"{"key":"}]\\\"{","x":[{}]}"#.to_owned()), (30, r#"{"key":"b"}"#.to_owned())]);
        assert_eq!(read_all(b"\xEF\xBB\xBF[]", Mark::default()), (vec![], None));
    }

    #[test]
    fn what_is_no_array_halts_at_its_place_after_what_came_before() {
        assert_eq!(
            halt(r#"[{"key":"a"},{"key":"#),
            (1, "13 2 found the end of the file, expected the end of the entry; the file was cut short".into())
        );
        assert_eq!(
            halt(r#"[{"key":"a"}"#),
            (1, "12 2 found the end of the file, expected `]`; the file was cut short".into())
        );
        assert_eq!(halt(r#"[{"key":"a"},]"#).0, 1);
        assert_eq!(
            halt(r#"[{"key":"a"}] x"#),
            (1, "14 2 found text after the closing `]`, expected the end of the file".into())
        );
        assert_eq!(halt(r#"[7]"#), (0, "1 1 found a number, expected an object as the entry".into()));
        assert_eq!(
            halt(r#"[{"key":"a"} {"#),
            (1, "13 2 found something else, expected `,` or `]` after an entry".into())
        );
    }
}
