//! JSON as the verifier reads it: spans in place, nothing copied, no recursion while scanning.
//!
//! Two dumps of five million entries are compared in the time it takes to read them, so the usual
//! way of building a tree per entry is out of the question. A [`Cursor`] walks the bytes of one
//! entry and hands out where things stand. The grammar is RFC 8259's; whatever is not that is an
//! [`JsonError`] with its place. Numbers are never converted: two numbers are the same when they
//! are written the same, so no rounding can make two different ones match.

use std::borrow::Cow;

/// How deep arrays and objects may nest. Token entries need two levels; the bound keeps the
/// memory flat for any input.
pub(super) const DEPTH_MAX: u32 = 128;

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JsonError {
    /// Byte offset from the start of the text.
    pub at: usize,
    pub found: &'static str,
    pub expected: &'static str,
}

pub(super) type Parsed<T> = Result<T, JsonError>;

/// Which escapes a string holds; it decides how much work its meaning is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Escapes {
    None,
    /// `\"`, `\\`, `\n` and the like.
    Simple,
    /// At least one `\uXXXX`, which may turn out to be half a character.
    Unicode,
}

/// The inside of a string, between its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Str {
    pub start: u32,
    pub end: u32,
    pub escapes: Escapes,
}

impl Str {
    /// As written, with its escapes.
    pub fn raw<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

/// A whole value, with its quotes or brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub fn of<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

/// The kind of value that starts with this byte, with its article, for messages.
pub(super) fn kind(first: Option<u8>) -> &'static str {
    match first {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b'-' | b'0'..=b'9') => "a number",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        Some(_) => "something that is not JSON",
        None => "the end",
    }
}

/// Walks one text. Texts are shorter than 4 GiB.
pub(super) struct Cursor<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    pub fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    pub fn error<T>(&self, expected: &'static str) -> Parsed<T> {
        Err(JsonError { at: self.at, found: kind(self.peek()), expected })
    }

    /// Steps over `byte`, after blanks.
    pub fn expect(&mut self, byte: u8, expected: &'static str) -> Parsed<()> {
        self.blanks();
        if self.peek() != Some(byte) {
            return self.error(expected);
        }
        self.at += 1;
        Ok(())
    }

    /// Steps over a string, its opening quote being next.
    pub fn string(&mut self) -> Parsed<Str> {
        if self.peek() != Some(b'"') {
            return self.error("a string");
        }
        let start = self.at + 1;
        let mut at = start;
        let mut escapes = Escapes::None;
        loop {
            at = find_special(self.bytes, at);
            match self.bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    let width = match self.bytes.get(at + 1) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
                        Some(b'u') if hex4(self.bytes, at + 2).is_some() => {
                            escapes = Escapes::Unicode;
                            6
                        }
                        _ => {
                            return Err(JsonError { at, found: "a bad escape", expected: "an escape that JSON knows" });
                        }
                    };
                    escapes = escapes.max(Escapes::Simple);
                    at += width;
                }
                Some(_) => {
                    return Err(JsonError { at, found: "a control character", expected: "a string without one" });
                }
                None => return Err(JsonError { at, found: "the end", expected: "the end of the string" }),
            }
        }
        self.at = at + 1;
        Ok(Str { start: start as u32, end: at as u32, escapes })
    }

    /// Steps over any value.
    pub fn value(&mut self) -> Parsed<Span> {
        self.blanks();
        let start = self.at as u32;
        match self.peek() {
            Some(b'{' | b'[') => self.nested()?,
            _ => self.scalar()?,
        }
        Ok(Span { start, end: self.at as u32 })
    }

    fn scalar(&mut self) -> Parsed<()> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            _ => self.error("a JSON value"),
        }
    }

    fn word(&mut self, word: &'static [u8]) -> Parsed<()> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err(JsonError { at: self.at, found: "an unknown word", expected: "true, false or null" });
        }
        self.at += word.len();
        Ok(())
    }

    fn digits(&mut self) -> Parsed<()> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return self.error("a digit");
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Parsed<()> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1
        } else {
            self.digits()?
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// Steps over an array or object. The kinds of the open ones are the bits of one number.
    fn nested(&mut self) -> Parsed<()> {
        let mut objects: u128 = 0;
        let mut depth: u32 = 0;
        'value: loop {
            self.blanks();
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    if depth == DEPTH_MAX {
                        let found = "JSON that nests deeper than 128 levels";
                        return Err(JsonError { at: self.at, found, expected: "at most 128 levels" });
                    }
                    objects = objects << 1 | u128::from(open == b'{');
                    depth += 1;
                    self.at += 1;
                    self.blanks();
                    match (open, self.peek()) {
                        (b'{', Some(b'}')) | (b'[', Some(b']')) => {}
                        (b'{', _) => {
                            self.string()?;
                            self.expect(b':', "`:`")?;
                            continue 'value;
                        }
                        _ => continue 'value,
                    }
                }
                _ => {
                    self.scalar()?;
                    self.blanks();
                }
            }
            // Here one value is over, or an empty array or object stands before its closing bracket.
            loop {
                let object = objects & 1 == 1;
                match self.peek() {
                    Some(b'}') if object => {}
                    Some(b']') if !object => {}
                    Some(b',') => {
                        self.at += 1;
                        if object {
                            self.blanks();
                            self.string()?;
                            self.expect(b':', "`:`")?;
                        }
                        continue 'value;
                    }
                    _ => return self.error(if object { "`,` or `}`" } else { "`,` or `]`" }),
                }
                self.at += 1;
                objects >>= 1;
                depth -= 1;
                if depth == 0 {
                    return Ok(());
                }
                self.blanks();
            }
        }
    }

    /// Walks the members of an object: hands each name to `member`, which must step over the value.
    pub fn object(&mut self, mut member: impl FnMut(&mut Self, Str) -> Parsed<()>) -> Parsed<()> {
        self.expect(b'{', "an object")?;
        self.blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.blanks();
            let name = self.string()?;
            self.expect(b':', "`:`")?;
            self.blanks();
            member(self, name)?;
            self.blanks();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.error("`,` or `}`"),
            }
        }
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// The first `"`, `\` or control character at or after `from`, or the end. Eight bytes at a time:
/// a byte of `x` is zero exactly where `(x - 1) & !x` has its high bit, up to the first such byte.
fn find_special(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(chunk) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(chunk.try_into().expect("the slice has eight bytes"));
        let quote = word ^ (ONES * b'"' as u64);
        let slash = word ^ (ONES * b'\\' as u64);
        let hit = (quote.wrapping_sub(ONES) & !quote)
            | (slash.wrapping_sub(ONES) & !slash)
            | (word.wrapping_sub(ONES * 0x20) & !word);
        let hit = hit & HIGHS;
        if hit != 0 {
            return at + (hit.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|b| !matches!(b, b'"' | b'\\' | 0..0x20)) {
        at += 1;
    }
    at
}

/// The end of plain text: the first `"`, `\`, control character or non-ASCII byte, or the end.
pub(super) fn plain_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(chunk) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(chunk.try_into().expect("the slice has eight bytes"));
        let quote = word ^ (ONES * b'"' as u64);
        let slash = word ^ (ONES * b'\\' as u64);
        let low = quote.wrapping_sub(ONES) | slash.wrapping_sub(ONES) | word.wrapping_sub(ONES * 0x20);
        // For bytes without a high bit the subtraction alone tells; those with one are hits anyway.
        let hit = (low | word) & HIGHS;
        if hit != 0 {
            return at + (hit.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|b| !matches!(b, b'"' | b'\\' | 0..0x20 | 0x80..)) {
        at += 1;
    }
    at
}

/// The end of a run of digits: the first byte that is none, or the end.
pub(super) fn digits_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(chunk) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(chunk.try_into().expect("the slice has eight bytes")) ^ (ONES * b'0' as u64);
        // Nine is the largest that gets no high bit by it. What overflows has a high bit itself, and spoils
        // only what comes after it.
        let hit = (word.wrapping_add(ONES * 0x76) | word) & HIGHS;
        if hit != 0 {
            return at + (hit.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    at
}

fn hex4(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.iter().try_fold(0, |n, b| Some(n << 4 | (*b as char).to_digit(16)?))
}

/// What a string means. The escapes must have been checked by [`Cursor::string`]. `None` when it
/// holds half a surrogate pair, which is no character.
pub(super) fn unescape<'a>(raw: &'a [u8], escapes: Escapes) -> Option<Cow<'a, [u8]>> {
    if escapes == Escapes::None {
        return Some(Cow::Borrowed(raw));
    }
    let mut out = Vec::with_capacity(raw.len());
    unescape_into(raw, &mut out)?;
    Some(Cow::Owned(out))
}

/// As [`unescape`], appending to `out`.
pub(super) fn unescape_into(raw: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let mut width = at + 2;
        out.push(match rest.get(at + 1)? {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut code = hex4(rest, at + 2)?;
                width = at + 6;
                if (0xD800..0xDC00).contains(&code) && rest.get(width..width + 2) == Some(b"\\u") {
                    let low = hex4(rest, width + 2)?;
                    if !(0xDC00..0xE000).contains(&low) {
                        return None;
                    }
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                    width += 6;
                }
                let mut utf8 = [0; 4];
                out.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut utf8).as_bytes());
                rest = &rest[width..];
                continue;
            }
            same => *same,
        });
        rest = &rest[width..];
    }
    out.extend_from_slice(rest);
    Some(())
}

/// Appends `text` as a JSON string, always the same way for the same text.
pub(super) fn write_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}

/// Whether two values mean the same: members of objects in any order, strings however escaped,
/// numbers as written. Both must have been checked by [`Cursor::value`].
pub(super) fn same_json(a: &[u8], b: &[u8]) -> bool {
    a == b || canonical(a).is_some_and(|a| canonical(b).is_some_and(|b| a == b))
}

/// One form for all texts that mean the same value; `None` when a string holds half a character.
pub(super) fn canonical(value: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(value.len());
    write_canonical(&mut Cursor::new(value), &mut out)?;
    Some(out)
}

/// Recursion is bounded: the value was scanned before, and so nests at most [`DEPTH_MAX`] levels.
fn write_canonical(cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Option<()> {
    cursor.blanks();
    match cursor.peek()? {
        b'{' => {
            let mut members: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            let bytes = cursor.bytes;
            let mut whole = true;
            cursor
                .object(|cursor, name| {
                    let name = unescape(name.raw(bytes), name.escapes).map(Cow::into_owned);
                    let mut value = Vec::new();
                    whole &= name.is_some() && write_canonical(cursor, &mut value).is_some();
                    members.push((name.unwrap_or_default(), value));
                    if whole { Ok(()) } else { cursor.error("a whole string") }
                })
                .ok()?;
            members.sort();
            out.push(b'{');
            for (n, (name, value)) in members.iter().enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                write_string(name, out);
                out.push(b':');
                out.extend_from_slice(value);
            }
            out.push(b'}');
        }
        b'[' => {
            cursor.at += 1;
            out.push(b'[');
            loop {
                cursor.blanks();
                match cursor.peek()? {
                    b']' => break,
                    b',' => {
                        cursor.at += 1;
                        out.push(b',');
                    }
                    _ => write_canonical(cursor, out)?,
                }
            }
            cursor.at += 1;
            out.push(b']');
        }
        b'"' => {
            let string = cursor.string().ok()?;
            write_string(&unescape(string.raw(cursor.bytes), string.escapes)?, out);
        }
        _ => {
            let span = cursor.value().ok()?;
            out.extend_from_slice(span.of(cursor.bytes));
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn accepts(bytes: &[u8]) -> bool {
        let mut cursor = Cursor::new(bytes);
        let parsed = cursor.value();
        cursor.blanks();
        parsed.is_ok() && cursor.at == bytes.len()
    }

    #[test]
    fn a_number_keeps_every_digit() {
        assert!(!same_json(b"18446744073709551617", b"18446744073709551616"));
        assert!(!same_json(b"[0.1]", b"[0.10000000000000000001]"));
        assert!(same_json(br#"{"a":1,"b":"\u0041"}"#, br#"{ "b":"A", "a":1 }"#));
    }

    #[test]
    fn depth_is_bounded_without_recursion() {
        let deep = |n: usize| [b"[".repeat(n), b"]".repeat(n)].concat();
        assert!(accepts(&deep(128)) && !accepts(&deep(129)) && !accepts(&deep(1_000_000)));
    }

    #[test]
    fn half_a_surrogate_pair_is_no_string() {
        for bad in [&br"\ud800"[..], br"\udc00", br"\ud800\ud800", br"\ud800x"] {
            assert_eq!(unescape(bad, Escapes::Unicode), None);
        }
        assert_eq!(unescape(br"\ud83d\ude00", Escapes::Unicode).unwrap().as_ref(), "😀".as_bytes());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 4.0)),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6).prop_map(|m| m.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_serde_accepts_is_accepted_and_nothing_else(bytes in "[\\[\\]{}\",:0-9a-z.eE+\\\\ -]{0,24}") {
            let theirs = serde_json::from_slice::<Value>(bytes.as_bytes());
            // serde refuses a number too large for a double and half characters; here neither is converted.
            let excused = theirs.as_ref().is_err_and(|e| {
                let e = e.to_string();
                e.contains("out of range") || e.contains("surrogate") || e.contains("hex escape")
            });
            prop_assert!(excused || accepts(bytes.as_bytes()) == theirs.is_ok(), "{bytes}");
        }

        #[test]
        fn any_tree_is_accepted_and_its_canonical_form_means_the_same(value in json()) {
            let text = value.to_string();
            prop_assert!(accepts(text.as_bytes()));
            let again: Value = serde_json::from_slice(&canonical(text.as_bytes()).unwrap()).unwrap();
            prop_assert_eq!(again, value);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let mut cursor = Cursor::new(&bytes);
            if let Ok(span) = cursor.value() {
                canonical(span.of(&bytes));
            }
        }

        #[test]
        fn eight_bytes_at_a_time_end_where_one_at_a_time_does(
            bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..40), "[0-9/:]{0,40}".prop_map(String::into_bytes)],
            from in 0usize..40,
        ) {
            let from = from.min(bytes.len());
            let end = |stops: fn(&u8) -> bool| bytes[from..].iter().position(stops).map_or(bytes.len(), |n| from + n);
            prop_assert_eq!(digits_end(&bytes, from), end(|b| !b.is_ascii_digit()));
            prop_assert_eq!(plain_end(&bytes, from), end(|b| matches!(b, b'"' | b'\\' | 0..0x20 | 0x80..)));
        }

        #[test]
        fn a_written_string_reads_back(text: String) {
            let mut out = Vec::new();
            write_string(text.as_bytes(), &mut out);
            let string = Cursor::new(&out).string().unwrap();
            let read = unescape(string.raw(&out), string.escapes).unwrap();
            prop_assert_eq!(read.as_ref(), text.as_bytes());
        }
    }
}
