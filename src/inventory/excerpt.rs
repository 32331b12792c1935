//! Finding the line and column of a byte, and showing the text around it on one short line.

use serde::Serialize;
use unicode_width::UnicodeWidthChar;

use super::diagnostic::{Location, Span};

/// Terminal columns of an excerpt, so that it fits 100 columns with its gutter.
const WIDTH_MAX: usize = 88;
/// How much of it may lie before the span when the line is too long to show whole.
const BEFORE_MAX: usize = 40;
/// A byte order mark at the start of a file.
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// A line, or the part of it around a span, safe to print: control and invisible characters escaped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Excerpt {
    pub text: String,
    /// Terminal columns before the caret.
    pub caret_at: usize,
    /// Terminal columns under the caret, at least 1.
    pub caret_width: usize,
}

pub(super) fn line_of(bytes: &[u8], offset: usize) -> usize {
    1 + bytes[..offset.min(bytes.len())].iter().filter(|b| **b == b'\n').count()
}

/// The place of a span. A span over several lines is cut at the end of its first.
pub(super) fn locate(bytes: &[u8], span: Span) -> Location {
    let offset = span.start.min(bytes.len());
    let mut start = bytes[..offset].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let mut end = bytes[offset..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |i| offset + i);
    if end > start && bytes[end - 1] == b'\r' {
        end -= 1;
    }
    if start == 0 && bytes.starts_with(BOM) {
        start = BOM.len();
    }
    let shown = Span::new(offset.clamp(start, end), span.end.clamp(offset.clamp(start, end), end));
    let before = &bytes[start..shown.start];
    // The usual case is counted fast, since a line may be the whole file.
    let column = 1 + std::str::from_utf8(before).map_or_else(|_| pieces(before).count(), |text| text.chars().count());
    Location { line: line_of(bytes, offset), column, span, excerpt: excerpt(&bytes[start..end], start, shown) }
}

/// The characters of possibly invalid UTF-8; each undecodable byte is a piece of its own.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = Result<char, u8>> + '_ {
    bytes.utf8_chunks().flat_map(|chunk| chunk.valid().chars().map(Ok).chain(chunk.invalid().iter().copied().map(Err)))
}

fn excerpt(line: &[u8], line_start: usize, span: Span) -> Excerpt {
    let (from, to) = (span.start - line_start, span.end - line_start);
    let mut before = Painter::default();
    let whole = line.len() <= WIDTH_MAX * 4 && {
        let mut all = Painter::default();
        all.paint(line, WIDTH_MAX)
    };
    let window_start = if whole { 0 } else { back(line, from, BEFORE_MAX) };
    if window_start > 0 {
        before.push_str("…", 1);
    }
    before.paint(&line[window_start..from], usize::MAX);
    let caret_at = before.width;
    let mut rest = before;
    // A span whose own beginning does not fit still shows its first characters.
    let room = WIDTH_MAX.max(rest.width + 20);
    let mut fits = rest.paint(&line[from..to], room);
    let caret_width = (rest.width - caret_at).max(1);
    fits = fits && rest.paint(&line[to..], room);
    if !fits {
        rest.push_str("…", 1);
    }
    Excerpt { text: rest.text, caret_at, caret_width }
}

/// The offset at most `count` characters before `from`.
fn back(line: &[u8], from: usize, count: usize) -> usize {
    let mut at = from;
    for _ in 0..count {
        if at == 0 {
            break;
        }
        at -= 1;
        while at > 0 && from - at < count * 4 && line[at] & 0b1100_0000 == 0b1000_0000 {
            at -= 1;
        }
    }
    at
}

#[derive(Default)]
struct Painter {
    text: String,
    width: usize,
    /// Zero-width characters take part in this, or a pile of them would be printed whole.
    cost: usize,
}

impl Painter {
    /// Appends the printable form up to `room` columns in all; false when something was left out.
    fn paint(&mut self, bytes: &[u8], room: usize) -> bool {
        for piece in pieces(bytes) {
            if self.cost >= room {
                return false;
            }
            match piece {
                Ok('\t') => self.push_str("    ", 4),
                Ok(c) if is_unprintable(c) => {
                    let escape = c.escape_unicode().to_string();
                    self.push_str(&escape, escape.len());
                }
                Ok(c) => {
                    self.text.push(c);
                    let width = c.width().unwrap_or(0);
                    self.width += width;
                    self.cost += width.max(1);
                }
                Err(byte) => self.push_str(&format!("\\x{byte:02X}"), 4),
            }
        }
        true
    }

    fn push_str(&mut self, text: &str, width: usize) {
        self.text.push_str(text);
        self.width += width;
        self.cost += width;
    }
}

/// Characters that would change the terminal's state, the order of the line, or show as nothing.
pub(super) fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00AD}' | '\u{061C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str, span: Span) -> (usize, String) {
        let Location { column, excerpt, .. } = locate(line.as_bytes(), span);
        (column, format!("{}\n{}{}", excerpt.text, " ".repeat(excerpt.caret_at), "^".repeat(excerpt.caret_width)))
    }

    #[test]
    fn the_caret_stands_under_wide_and_escaped_text() {
        assert_eq!(shown("日本,x", Span::new(7, 8)), (4, "日本,x\n     ^".into()));
        assert_eq!(shown("a\u{202E}b", Span::new(1, 4)), (2, "a\\u{202e}b\n ^^^^^^^^".into()));
        assert_eq!(shown("\u{FEFF}ab\r\n", Span::new(4, 5)), (2, "ab\n ^".into()));
    }

    #[test]
    fn a_long_line_is_cut_around_the_span() {
        let line = format!("{}{}{}", "a".repeat(5_000_000), "XYZ", "b".repeat(5_000_000));
        let (column, text) = shown(&line, Span::new(5_000_000, 5_000_003));
        assert_eq!(column, 5_000_001);
        assert!(text.len() < 200 && text.starts_with("…a") && text.contains("aXYZb") && text.contains("…\n"), "{text}");
    }

    #[test]
    fn every_offset_of_odd_bytes_has_a_place() {
        let bytes = b"\xEF\xBB\xBFab\xFF\r\n\x80\x80\x80,\xE2\x82\n";
        for start in 0..=bytes.len() + 2 {
            for end in start..=bytes.len() + 2 {
                let place = locate(bytes, Span::new(start, end));
                assert!(place.line <= 3 && place.column >= 1 && place.excerpt.caret_width >= 1);
            }
        }
    }
}
