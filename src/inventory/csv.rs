//! Inventories as CSV, with any of `,` `;` tab `|` between the cells, as spreadsheets write them.
//!
//! The tokenizer is our own because every diagnostic must point at the exact cell, which the `csv`
//! crate's records do not remember.

use std::borrow::Cow;

use super::columns::Column;
use super::diagnostic::{Problem, Report, Span};
use super::names::{Field, describe, escaped};
use super::rows::Builder;
use super::table::Layout;

const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];
const DELIMITERS_NAMED: &str = "cells separated by `,` `;` tab or `|`";

pub(super) fn read(text: &str, rows: &mut Builder<'_>, report: &mut Report<'_>) {
    let start = if text.starts_with('\u{FEFF}') { 3 } else { 0 };
    if let Some(at) = text[start..].find('\u{FEFF}').map(|at| start + at) {
        report.add(|_| {
            Problem::new(
                Span::new(at, at + 3),
                format!("{} inside the file", describe('\u{FEFF}')),
                "none, or one at the very start",
            )
            .hint("files joined with `cat` keep the byte order mark of the second; remove it and its header")
        });
        return;
    }
    let (declared, start) = match declared_delimiter(text, start) {
        Ok(declared) => declared,
        Err(problem) => return report.add(|_| problem),
    };
    let Some((delimiter, span)) = find_delimiter(text, start, declared, report) else { return };
    let mut records = Records { text, at: span.start, delimiter };
    let mut cells = Vec::new();
    let mut layout: Option<Layout> = None;
    loop {
        let span = match records.next(&mut cells) {
            Ok(Some(span)) => span,
            Ok(None) => break,
            // What follows a broken quote cannot be told apart into cells.
            Err(problem) => return report.add(|_| problem),
        };
        match &layout {
            None => layout = Some(Layout::read(&cells, span, rows, report)),
            Some(layout) => {
                let width = layout.width();
                layout.row(&cells, span, rows, report, || other_delimiter(text, span, delimiter, width));
            }
        }
    }
    if rows.seen_rows() == 0 && report.is_empty() {
        report.add(|_| {
            Problem::new(Span::at(text.trim_end().len()), "a header and no rows", "at least one row under the header")
        });
    }
}

/// Excel's `sep=;` as first line, and where the rest starts.
fn declared_delimiter(text: &str, start: usize) -> Result<(Option<u8>, usize), Problem> {
    let line = text[start..].split('\n').next().unwrap_or_default();
    let bare = line.trim_end_matches('\r').trim_matches('"');
    let declares = bare.len() <= 16 && bare.get(..4).is_some_and(|s| s.eq_ignore_ascii_case("sep="));
    if !declares {
        return Ok((None, start));
    }
    match bare.as_bytes()[4..] {
        [c] if DELIMITERS.contains(&c) => Ok((Some(c), (start + line.len() + 1).min(text.len()))),
        _ => {
            let message = format!("`{}` declares a delimiter that is not supported", escaped(bare));
            Err(Problem::new(Span::new(start, start + line.trim_end().len()), message, DELIMITERS_NAMED))
        }
    }
}

/// The delimiter under which most cells of the header are known columns, and the header's place.
fn find_delimiter(text: &str, start: usize, declared: Option<u8>, report: &mut Report<'_>) -> Option<(u8, Span)> {
    let mut cells = Vec::new();
    let mut best: Option<(usize, usize, u8)> = None;
    let mut header = Span::at(start);
    let mut broken = None;
    for delimiter in DELIMITERS {
        match (Records { text, at: start, delimiter }).next(&mut cells) {
            Ok(Some(span)) => {
                header = span;
                let known = cells.iter().filter(|cell| Column::named(&cell.text).is_some()).count();
                // The number of cells breaks ties between delimiters that find nothing.
                if best.is_none_or(|(k, n, _)| (known, cells.len()) > (k, n)) {
                    best = Some((known, cells.len(), delimiter));
                }
            }
            Ok(None) => {}
            Err(problem) => broken = Some(problem),
        }
    }
    let Some((known, _, found)) = best else {
        let nothing =
            || Problem::new(Span::at(start), "there is no header", format!("a header with {}", Column::list()));
        report.add(|_| broken.unwrap_or_else(nothing));
        return None;
    };
    if let Some(declared) = declared.filter(|declared| *declared != found && known > 0) {
        let message = format!("the first line declares {} and the header uses {}", named(declared), named(found));
        report.add(|_| Problem::new(header, message, "the declared delimiter").hint("remove the `sep=` line"));
        return None;
    }
    if known > 0 {
        return Some((found, header));
    }
    let line = &text[header.start..header.end];
    let named_in = |line: &str| {
        let words = line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'));
        words.filter(|word| Column::named(word).is_some()).count()
    };
    let curly = line.char_indices().find(|(_, c)| matches!(c, '\u{2018}'..='\u{201F}'));
    report.add(|_| {
        if let Some((at, quote)) = curly {
            let place = Span::new(header.start + at, header.start + at + quote.len_utf8());
            Problem::new(place, format!("{} in the header", describe(quote)), "straight quotes \" or none")
                .hint("a word processor made the quotes curly; replace them all")
        } else if line.len() <= 1_000 && named_in(line) >= 2 {
            Problem::new(header, "the header is not separated by a delimiter that is supported", DELIMITERS_NAMED)
                .hint("export the file again with one of them")
        } else {
            Problem::new(
                header,
                "the first line is not a header: none of its cells is a known column",
                format!("a header with some of {}", Column::list()),
            )
            .hint("add the header as first line, for example `tenant,integration_key,providers,account`")
        }
    });
    None
}

fn named(delimiter: u8) -> &'static str {
    match delimiter {
        b',' => "`,`",
        b';' => "`;`",
        b'\t' => "a tab",
        _ => "`|`",
    }
}

/// Whether a ragged row would fit with another delimiter.
fn other_delimiter(text: &str, span: Span, used: u8, width: usize) -> Option<String> {
    let mut cells = Vec::new();
    let line = &text[..span.end];
    DELIMITERS.into_iter().filter(|d| *d != used).find_map(|delimiter| {
        let record = (Records { text: line, at: span.start, delimiter }).next(&mut cells);
        (record.is_ok() && cells.len() == width)
            .then(|| format!("this row uses {} and the header uses {}", named(delimiter), named(used)))
    })
}

/// Cuts a text into records of trimmed cells.
struct Records<'a> {
    text: &'a str,
    at: usize,
    delimiter: u8,
}

impl<'a> Records<'a> {
    /// Fills `cells` with the next record that is not a blank line; its span has no line end.
    fn next(&mut self, cells: &mut Vec<Field<'a>>) -> Result<Option<Span>, Problem> {
        while self.at < self.text.len() {
            cells.clear();
            let start = self.at;
            let end = loop {
                let cell = self.cell()?;
                cells.push(cell);
                let bytes = self.text.as_bytes();
                match bytes.get(self.at) {
                    Some(b) if *b == self.delimiter => self.at += 1,
                    next => {
                        let end = self.at;
                        // Past the line end: `\n`, `\r\n`, or nothing at the end of the text.
                        self.at += match next {
                            Some(b'\r') => 2,
                            Some(_) => 1,
                            None => 0,
                        };
                        break end;
                    }
                }
            };
            if cells.len() > 1 || !cells[0].text.is_empty() {
                return Ok(Some(Span::new(start, end)));
            }
        }
        Ok(None)
    }

    /// Reads one cell and stops at the delimiter or line end after it.
    fn cell(&mut self) -> Result<Field<'a>, Problem> {
        let bytes = self.text.as_bytes();
        let first = self.at + bytes[self.at..].iter().take_while(|b| self.is_blank(**b)).count();
        if bytes.get(first) == Some(&b'"') {
            return self.quoted(first);
        }
        let start = self.at;
        let rest = &bytes[start..];
        let mut end = start + rest.iter().position(|b| *b == self.delimiter || *b == b'\n').unwrap_or(rest.len());
        // The CR of a line end, also of one that the end of the file cut in half.
        if matches!(bytes.get(end), None | Some(b'\n')) && end > start && bytes[end - 1] == b'\r' {
            end -= 1;
        }
        self.at = end;
        Ok(Field::borrowed(&self.text[start..end], start).trimmed())
    }

    fn quoted(&mut self, open: usize) -> Result<Field<'a>, Problem> {
        let bytes = self.text.as_bytes();
        let inner = open + 1;
        let mut at = inner;
        let mut doubled = false;
        let close = loop {
            match bytes[at..].iter().position(|b| *b == b'"').map(|i| at + i) {
                Some(quote) if bytes.get(quote + 1) == Some(&b'"') => {
                    doubled = true;
                    at = quote + 2;
                }
                Some(quote) => break quote,
                None => {
                    return Err(Problem::new(
                        Span::new(open, open + 1),
                        "a quote is opened and never closed",
                        "a closing `\"`",
                    )
                    .hint("write a quote inside a quoted cell twice: `\"\"`"));
                }
            }
        };
        let after = close + 1 + bytes[close + 1..].iter().take_while(|b| self.is_blank(**b)).count();
        let ends = match bytes.get(after) {
            None | Some(b'\n') => true,
            Some(b'\r') => matches!(bytes.get(after + 1), None | Some(b'\n')),
            Some(b) => *b == self.delimiter,
        };
        if !ends {
            let c = self.text[after..].chars().next().map_or(1, char::len_utf8);
            return Err(Problem::new(
                Span::new(after, after + c),
                "text after the closing quote",
                "a delimiter or the end of the line",
            )
            .hint("write a quote inside a quoted cell twice: `\"\"`"));
        }
        self.at = after;
        let text = &self.text[inner..close];
        let field = if doubled {
            Field { text: Cow::Owned(text.replace("\"\"", "\"")), span: Span::new(inner, close) }
        } else {
            Field::borrowed(text, inner)
        };
        Ok(field.trimmed())
    }

    fn is_blank(&self, byte: u8) -> bool {
        (byte == b' ' || byte == b'\t') && byte != self.delimiter
    }
}
