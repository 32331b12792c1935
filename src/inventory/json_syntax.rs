//! JSON values that remember where they stand.
//!
//! `serde_json` forgets positions once a value is parsed and lets a repeated key win silently;
//! here both matter. The grammar is RFC 8259's, nothing more.

use std::borrow::Cow;
use std::collections::HashMap;

use super::diagnostic::{Problem, Report, Span};
use super::names::{Field, describe, escaped};

/// Inventories need three levels. The bound keeps the stack flat for any input.
const DEPTH_MAX: usize = 32;

#[derive(Debug)]
pub(super) struct Spanned<'a> {
    pub value: Value<'a>,
    pub span: Span,
}

#[derive(Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool,
    /// As written.
    Number(&'a str),
    String(Field<'a>),
    Array(Vec<Spanned<'a>>),
    Object(Vec<(Field<'a>, Spanned<'a>)>),
}

impl Value<'_> {
    /// The kind of value with its article, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

/// Parses a whole text. Repeated keys are reported and the first kept; a syntax error ends it.
pub(super) fn parse<'a>(text: &'a str, report: &mut Report<'_>) -> Option<Spanned<'a>> {
    let at = if text.starts_with('\u{FEFF}') { 3 } else { 0 };
    let mut parser = Parser { text, at, repeated: Vec::new() };
    let result = parser.document();
    for (key, first) in parser.repeated {
        report.add(|report| {
            let message =
                format!("key `{}` is given twice; first on line {}", escaped(&key.text), report.line_of(first));
            Problem::new(key.span, message, "each key once per object").hint("remove one of them")
        });
    }
    result.map_err(|problem| report.add(|_| problem)).ok()
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// Each repeated key and where it was given first.
    repeated: Vec<(Field<'a>, usize)>,
}

type Parsed<T> = Result<T, Problem>;

impl<'a> Parser<'a> {
    fn document(&mut self) -> Parsed<Spanned<'a>> {
        self.blanks();
        let value = self.value(0)?;
        self.blanks();
        if self.at < self.text.len() {
            let hint =
                "a file holds one array or object; for one object per line, wrap them in `[` `]` with commas between";
            return Err(
                Problem::new(self.here(), "text after the end of the JSON value", "the end of the file").hint(hint)
            );
        }
        Ok(value)
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.byte(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// The place of the character under the cursor.
    fn here(&self) -> Span {
        Span::new(self.at, self.at + self.text[self.at..].chars().next().map_or(0, char::len_utf8))
    }

    fn unexpected(&self, expected: &str) -> Problem {
        let Some(c) = self.text[self.at..].chars().next() else {
            let end = self.text.trim_end().len();
            return Problem::new(Span::at(end), "the file ends in the middle of a JSON value", expected)
                .hint("the file was cut short; write it again");
        };
        let shown = if c.is_ascii_graphic() { format!("`{c}`") } else { describe(c) };
        let problem = Problem::new(self.here(), format!("unexpected {shown}"), expected);
        match c {
            '\'' | '\u{2018}'..='\u{201F}' => problem.hint("JSON strings stand between straight double quotes \""),
            '/' | '#' => problem.hint("JSON has no comments"),
            _ => problem,
        }
    }

    fn value(&mut self, depth: usize) -> Parsed<Spanned<'a>> {
        let start = self.at;
        if depth > DEPTH_MAX {
            let message = format!("nested deeper than {DEPTH_MAX} levels");
            return Err(Problem::new(self.here(), message, "an array of flat rows"));
        }
        let value = match self.byte() {
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.array(depth)?,
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b) if b.is_ascii_alphabetic() => self.word()?,
            _ => return Err(self.unexpected("a JSON value")),
        };
        Ok(Spanned { value, span: Span::new(start, self.at) })
    }

    fn array(&mut self, depth: usize) -> Parsed<Value<'a>> {
        self.at += 1;
        let mut items = Vec::new();
        self.blanks();
        if self.byte() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            self.blanks();
            items.push(self.value(depth + 1)?);
            if self.next_or_close(b']', "`,` or `]`")? {
                return Ok(Value::Array(items));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Parsed<Value<'a>> {
        self.at += 1;
        let mut members: Vec<(Field<'a>, Spanned<'a>)> = Vec::new();
        // Small objects are searched; a large one must not cost the square of its keys.
        let mut index: HashMap<String, usize> = HashMap::new();
        self.blanks();
        if self.byte() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(members));
        }
        loop {
            self.blanks();
            if self.byte() != Some(b'"') {
                let problem = self.unexpected("a key in double quotes");
                let bare = self.byte().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
                return Err(if bare { problem.hint("JSON keys stand between double quotes") } else { problem });
            }
            let key = self.string()?;
            self.blanks();
            if self.byte() != Some(b':') {
                return Err(self.unexpected("`:` after the key"));
            }
            self.at += 1;
            self.blanks();
            let value = self.value(depth + 1)?;
            if members.len() == 8 {
                index = members.iter().map(|(k, _)| (k.text.to_string(), k.span.start)).collect();
            }
            let first = if members.len() < 8 {
                members.iter().find(|(k, _)| k.text == key.text).map(|(k, _)| k.span.start)
            } else {
                index.get(key.text.as_ref()).copied()
            };
            match first {
                Some(first) => self.repeated.push((key, first)),
                None => {
                    if members.len() >= 8 {
                        index.insert(key.text.to_string(), key.span.start);
                    }
                    members.push((key, value));
                }
            }
            if self.next_or_close(b'}', "`,` or `}`")? {
                return Ok(Value::Object(members));
            }
        }
    }

    /// After a member: true at the closing bracket, false at a comma that has a member after it.
    fn next_or_close(&mut self, close: u8, expected: &str) -> Parsed<bool> {
        self.blanks();
        match self.byte() {
            Some(b',') => {
                let comma = self.at;
                self.at += 1;
                self.blanks();
                if self.byte() == Some(close) {
                    let message = format!("trailing comma before `{}`", char::from(close));
                    return Err(Problem::new(Span::new(comma, comma + 1), message, "no comma after the last member")
                        .hint("remove the comma"));
                }
                Ok(false)
            }
            Some(b) if b == close => {
                self.at += 1;
                Ok(true)
            }
            Some(b'"' | b'{' | b'[') => Err(self.unexpected(expected).hint("a comma is missing before it")),
            _ => Err(self.unexpected(expected)),
        }
    }

    fn number(&mut self) -> Parsed<Value<'a>> {
        let rest = &self.text[self.at..];
        let len = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')).count();
        let number = &rest[..len];
        if !is_number(number) {
            let message = format!("`{}` is not a JSON number", escaped(number));
            return Err(Problem::new(Span::new(self.at, self.at + len), message, "a number such as 1")
                .hint("a name that starts with a digit stands between double quotes"));
        }
        self.at += len;
        Ok(Value::Number(number))
    }

    fn word(&mut self) -> Parsed<Value<'a>> {
        let rest = &self.text[self.at..];
        let len = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')).count();
        let value = match &rest[..len] {
            "null" => Value::Null,
            "true" | "false" => Value::Bool,
            word => {
                let cut = self.at + len == self.text.trim_end().len() && "null true false".contains(word);
                if cut {
                    self.at += len;
                    return Err(self.unexpected("a JSON value"));
                }
                let message = format!("`{}` is not a JSON value", escaped(word));
                return Err(Problem::new(Span::new(self.at, self.at + len), message, "a JSON value")
                    .hint("a name stands between double quotes"));
            }
        };
        self.at += len;
        Ok(value)
    }

    /// A string; the field's place is inside its quotes.
    fn string(&mut self) -> Parsed<Field<'a>> {
        let open = self.at;
        let start = open + 1;
        let bytes = self.text.as_bytes();
        self.at = start;
        let mut owned: Option<String> = None;
        let mut copied = start;
        loop {
            let stop = bytes[self.at..].iter().position(|b| *b == b'"' || *b == b'\\' || *b < 0x20);
            let Some(stop) = stop.map(|i| self.at + i) else { return Err(self.unterminated(open)) };
            self.at = stop;
            match bytes[stop] {
                b'"' => {
                    self.at += 1;
                    let text = &self.text[copied..stop];
                    return Ok(match owned {
                        None => Field::borrowed(text, start),
                        Some(mut all) => {
                            all.push_str(text);
                            Field { text: Cow::Owned(all), span: Span::new(start, stop) }
                        }
                    });
                }
                b'\\' => {
                    let all = owned.get_or_insert_default();
                    all.push_str(&self.text[copied..stop]);
                    let c = self.escape(open)?;
                    owned.get_or_insert_default().push(c);
                    copied = self.at;
                }
                // A line break means that the quote before it was forgotten.
                b'\n' | b'\r' => return Err(self.unterminated(open)),
                control => {
                    let message = format!("{} inside a string", describe(char::from(control)));
                    return Err(Problem::new(self.here(), message, "control characters written as `\\u00XX`"));
                }
            }
        }
    }

    fn unterminated(&self, open: usize) -> Problem {
        Problem::new(
            Span::new(open, open + 1),
            "a string is opened and never closed",
            "a closing `\"` on the same line",
        )
    }

    /// Reads an escape at the cursor and moves past it.
    fn escape(&mut self, open: usize) -> Parsed<char> {
        let start = self.at;
        self.at += 1;
        let Some(kind) = self.text[self.at..].chars().next() else { return Err(self.unterminated(open)) };
        self.at += kind.len_utf8();
        let c = match kind {
            '"' | '\\' | '/' => kind,
            'b' => '\u{8}',
            'f' => '\u{C}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => return self.unicode_escape(start),
            _ => {
                let message = format!("`\\{}` is not an escape", escaped(&kind.to_string()));
                return Err(Problem::new(
                    Span::new(start, self.at),
                    message,
                    "one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX",
                )
                .hint("write a backslash as `\\\\`"));
            }
        };
        Ok(c)
    }

    fn unicode_escape(&mut self, start: usize) -> Parsed<char> {
        let first = self.hex4();
        let code = match first {
            Some(high @ 0xD800..=0xDBFF) if self.text[self.at..].starts_with("\\u") => {
                self.at += 2;
                self.hex4()
                    .filter(|low| (0xDC00..=0xDFFF).contains(low))
                    .map(|low| 0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00))
            }
            other => other,
        };
        code.and_then(char::from_u32).ok_or_else(|| {
            let message = "a `\\u` escape that is not a character";
            Problem::new(Span::new(start, self.at), message, "four hex digits; two escapes for characters past U+FFFF")
        })
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }
}

/// RFC 8259: no leading zeros, no bare dot, digits in every part.
fn is_number(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|e| digits(e.strip_prefix(['+', '-']).unwrap_or(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever `serde_json` accepts we accept, and the other way round (repeated keys aside).
    #[test]
    fn the_grammar_is_that_of_serde_json() {
        for text in [
            "[]",
            "{}",
            "[1,2]",
            "[1,]",
            "{\"a\":1,}",
            "{\"a\" 1}",
            "01",
            "1.",
            "-",
            "-0.5e+3",
            "1e",
            "nul",
            "null",
            "true ",
            "\"\\u00e9\\ud83d\\ude00\"",
            "\"\\ud83d\"",
            "\"\\x\"",
            "\"a\nb\"",
            "[",
            "[\"a\"",
            "{\"a\":",
            "\"\\",
            "'a'",
            "[1 2]",
            "NaN",
            "// c\n1",
            "{a:1}",
            "1 1",
            "\"\u{7f}\"",
            "\"\u{1}\"",
            " \t\r\n[ { \"a\" : [ ] } ] ",
            "[,]",
            "\"\\u12\"",
            "é",
        ] {
            let mut report = Report::new("x.json", text.as_bytes());
            let ours = parse(text, &mut report).is_some() && report.is_empty();
            assert_eq!(ours, serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded_and_not_the_stack() {
        let text = "[".repeat(1_000_000);
        let mut report = Report::new("x.json", text.as_bytes());
        assert!(parse(&text, &mut report).is_none());
        let diagnostics = report.into_diagnostics();
        assert_eq!(diagnostics.diagnostics[0].column(), DEPTH_MAX + 2);
    }
}
