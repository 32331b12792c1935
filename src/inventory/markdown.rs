//! Inventories as a Markdown table, found anywhere inside a larger document such as an ADR.
//!
//! Tables follow GitHub's rules (a header, a separator row, rows until a blank line), except that a
//! row with too few or too many cells is an error here and not silently padded or cut.

use std::borrow::Cow;

use super::columns::Column;
use super::diagnostic::{Problem, Report, Span};
use super::names::Field;
use super::rows::Builder;
use super::table::Layout;

const TABLE: &str = "a table with the columns integration key, providers and account (and tenant)";

/// Whether a text of unknown format is Markdown rather than CSV.
pub(super) fn looks_like(body: &str) -> bool {
    let mut lines = body.lines().take(10_000);
    let first = lines.clone().next().unwrap_or_default();
    first.starts_with('#')
        || first.trim_start().starts_with('|')
        || lines.any(|line| line.contains('|') && is_separator(&cells(line, 0)))
}

pub(super) fn read(text: &str, rows: &mut Builder<'_>, report: &mut Report<'_>) {
    let lines = Lines::new(text);
    let mut first: Option<(Layout, Span)> = None;
    // The header that came closest to an inventory, for when there is none.
    let mut almost: Option<(usize, Span)> = None;
    let mut at = 0;
    while let Some((start, line)) = lines.get(at) {
        at += 1;
        if !line.contains('|') {
            continue;
        }
        let header = cells(line, start);
        let span = Span::new(start, start + line.len());
        let known = header.iter().filter_map(|cell| Column::named(&cell.text)).collect::<Vec<_>>();
        let complete = Column::REQUIRED.iter().all(|column| known.contains(column));
        let separated = lines.get(at).map(|(start, line)| cells(line, start)).filter(|cells| is_separator(cells));
        if !complete {
            if known.len() >= 2 && almost.is_none_or(|(most, _)| known.len() > most) {
                almost = Some((known.len(), span));
            }
            // Not ours: its rows must not be taken for headers.
            if separated.is_some() {
                at = lines.end_of_table(at + 1);
            }
            continue;
        }
        let Some(separator) = separated else {
            report.add(|_| {
                Problem::new(span, "the table has no separator row under its header", "`|---|---|---|` as next line")
                    .hint("add the separator row; without it Markdown does not see a table")
            });
            at = lines.end_of_table(at);
            rows.note_row();
            continue;
        };
        if separator.len() != header.len() {
            let place = lines.get(at).map_or(span, |(start, line)| Span::new(start, start + line.len()));
            report.add(|_| {
                let message =
                    format!("the separator row has {} cells and the header has {}", separator.len(), header.len());
                Problem::new(place, message, format!("{} cells", header.len()))
                    .hint("without as many cells Markdown does not see a table")
            });
            at = lines.end_of_table(at + 1);
            rows.note_row();
            continue;
        }
        let body = at + 1;
        at = lines.end_of_table(body);
        if let Some((earlier, place)) = first.as_ref().filter(|(earlier, _)| !earlier.agrees_with(&known)) {
            report.add(|report| {
                let line = report.line_of(place.start);
                let message = format!("a second inventory table with other columns than the one on line {line}");
                Problem::new(span, message, format!("the same columns: {}", earlier.names()))
                    .hint("give both tables the same columns, or keep one inventory per document")
            });
            continue;
        }
        let layout = Layout::read(&header, span, rows, report).marked_up();
        for (start, line) in (body..at).filter_map(|i| lines.get(i)) {
            let has_pipe = line.contains('|');
            layout.row(&cells(line, start), Span::new(start, start + line.len()), rows, report, || {
                (!has_pipe).then(|| "leave a blank line after the table".to_owned())
            });
        }
        first.get_or_insert((layout, span));
    }
    nothing_found(text, &lines, first.map(|(_, span)| span), almost.map(|(_, span)| span), rows, report);
}

/// Says why a document gave no rows, when nothing else has been said.
fn nothing_found(
    text: &str,
    lines: &Lines<'_>,
    table: Option<Span>,
    almost: Option<Span>,
    rows: &Builder<'_>,
    report: &mut Report<'_>,
) {
    if rows.seen_rows() > 0 || !report.is_empty() {
        return;
    }
    if let Some(span) = table {
        report.add(|_| Problem::new(span, "the table has a header and no rows", "at least one row"));
    } else if let Some(span) = almost {
        // Reports which columns are missing or mistyped.
        let line = &text[span.start..span.end];
        Layout::read(&cells(line, span.start), span, rows, report);
    } else {
        report.add(|_| {
            let start = if text.starts_with('\u{FEFF}') { 3 } else { 0 };
            let line = text[start..].split('\n').next().unwrap_or_default().trim_end();
            let hint = if lines.fenced_table {
                "tables inside fenced code and HTML comments are not read"
            } else {
                "if the file is CSV or JSON, name it `.csv` or `.json`, or give its format"
            };
            let place = Span::new(start, start + line.len());
            Problem::new(place, "the document has no inventory table", TABLE).hint(hint)
        });
    }
}

/// The lines of a document that are not inside fenced code or HTML comments (those are blanked).
struct Lines<'a> {
    lines: Vec<(usize, &'a str)>,
    /// A line of an inventory table was seen where it does not count.
    fenced_table: bool,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let mut lines = Vec::new();
        let mut fenced_table = false;
        let mut fence: Option<(char, usize)> = None;
        let mut comment = false;
        let mut start = 0;
        for whole in text.split_inclusive('\n') {
            let line = whole.trim_end_matches(['\n', '\r']);
            let marked = if start == 0 { line.trim_start_matches('\u{FEFF}') } else { line };
            let offset = start + line.len() - marked.len();
            let body = marked.trim_start();
            let opens = fence_of(body);
            let mut hidden = true;
            match fence {
                Some((mark, least)) => {
                    let closes = opens.is_some_and(|(m, n, info)| m == mark && n >= least && info.trim().is_empty());
                    fence = if closes { None } else { fence };
                }
                None if comment => comment = !body.contains("-->"),
                None => match opens {
                    Some((mark, count, _)) => fence = Some((mark, count)),
                    None if body.starts_with("<!--") => comment = !body.contains("-->"),
                    None => hidden = false,
                },
            }
            if hidden {
                let known = |line: &str| cells(line, 0).iter().filter(|c| Column::named(&c.text).is_some()).count();
                fenced_table = fenced_table || (marked.contains('|') && known(marked) >= Column::REQUIRED.len());
                lines.push((offset, &marked[..0]));
            } else {
                lines.push((offset, marked));
            }
            start += whole.len();
        }
        Self { lines, fenced_table }
    }

    fn get(&self, index: usize) -> Option<(usize, &'a str)> {
        self.lines.get(index).copied()
    }

    /// The first line from `index` on that does not belong to the table any more.
    fn end_of_table(&self, index: usize) -> usize {
        let ends = |(_, line): &(usize, &str)| {
            let body = line.trim_start();
            body.is_empty() || (!body.contains('|') && body.starts_with(['#', '>', '-', '*', '+', '<']))
        };
        let rest = self.lines.get(index..).unwrap_or_default();
        index + rest.iter().position(ends).unwrap_or(rest.len())
    }
}

/// The mark, length and info string of a code fence.
fn fence_of(body: &str) -> Option<(char, usize, &str)> {
    let mark = body.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let rest = body.trim_start_matches(mark);
    let count = body.len() - rest.len();
    (count >= 3 && !(mark == '`' && rest.contains('`'))).then_some((mark, count, rest))
}

fn is_separator(cells: &[Field<'_>]) -> bool {
    let dashes = |cell: &Field<'_>| {
        let text: &str = &cell.text;
        let inner = text.strip_prefix(':').unwrap_or(text);
        let inner = inner.strip_suffix(':').unwrap_or(inner);
        !inner.is_empty() && inner.bytes().all(|b| b == b'-')
    };
    !cells.is_empty() && cells.iter().all(dashes)
}

/// The cells of one table line: cut at `|` unless escaped, without the outer pipes, marks removed.
fn cells(line: &str, start: usize) -> Vec<Field<'_>> {
    let row = Field::borrowed(line, start).trimmed();
    let text: &str = match &row.text {
        Cow::Borrowed(text) => text,
        Cow::Owned(_) => return Vec::new(),
    };
    let mut cells = Vec::new();
    let mut from = usize::from(text.starts_with('|'));
    let bytes = text.as_bytes();
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'|' => {
                cells.push(cell(row.slice(from, at)));
                at += 1;
                from = at;
            }
            _ => at += 1,
        }
    }
    // A closing pipe ends the last cell; otherwise the rest of the line is one.
    if from < text.len() || cells.is_empty() {
        cells.push(cell(row.slice(from, text.len())));
    }
    cells
}

fn cell(field: Field<'_>) -> Field<'_> {
    let mut field = field.trimmed();
    if field.text.contains('\\') {
        field = Field { text: Cow::Owned(unescaped(&field.text)), span: field.span };
    }
    unwrapped(field)
}

/// Backslash and punctuation stand for the punctuation; inside code only `\|` does.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut code = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(next)) if *next == '|' || (!code && next.is_ascii_punctuation()) => {
                out.extend(chars.next());
            }
            _ => {
                code ^= c == '`';
                out.push(c);
            }
        }
    }
    out
}

/// Without the Markdown marks of code and emphasis around it.
pub(super) fn unwrapped(mut field: Field<'_>) -> Field<'_> {
    for mark in ["**", "`", "*"] {
        let text: &str = &field.text;
        let inner = text.strip_prefix(mark).and_then(|t| t.strip_suffix(mark));
        if inner.is_some_and(|inner| !inner.contains(mark)) {
            let (start, end) = (mark.len(), text.len() - mark.len());
            field = field.slice(start, end).trimmed();
        }
    }
    field
}

#[cfg(test)]
mod tests {
    use super::super::names::escaped;
    use super::*;

    fn texts(line: &str) -> Vec<String> {
        cells(line, 0).iter().map(|cell| escaped(&cell.text)).collect()
    }

    #[test]
    fn cells_are_cut_as_github_cuts_them() {
        assert_eq!(texts("| a | `b` | **c** |"), ["a", "b", "c"]);
        assert_eq!(texts("a|b\\|c|"), ["a", "b|c"]);
        assert_eq!(texts("||"), [""]);
        assert_eq!(texts("|a\\_b|`x\\|y`| **`z`** |"), ["a_b", "x|y", "z"]);
        assert_eq!(texts("| a \\"), ["a \\"]);
    }

    #[test]
    fn places_inside_cells_are_exact() {
        let line = "| **`google`** | x |";
        let cells = cells(line, 100);
        assert_eq!(&line[cells[0].span.start - 100..cells[0].span.end - 100], "google");
    }
}
