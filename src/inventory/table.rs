//! What Markdown and CSV share: a header that names columns and rows of cells under it.

use super::columns::Column;
use super::diagnostic::{Problem, Report, Span};
use super::markdown::unwrapped;
use super::names::{self, Field, escaped};
use super::rows::{Builder, List, RawRow, Tenants};

/// What each position of a row means.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// `None`: a column that was refused; its cells are skipped so that the rest is still checked.
    slots: Vec<Option<Column>>,
    /// How many cells the header has with the blank ones on its right.
    padded_width: usize,
    /// Whether rows can be read at all: all required columns are there.
    usable: bool,
    /// Where tenants come from when there is no column for them.
    tenants_missing: bool,
    /// Names in a list may wear marks of code and emphasis, as in Markdown.
    marked_up: bool,
}

impl Layout {
    /// Reads a header, reporting columns that are unknown, given twice or missing.
    pub fn read(cells: &[Field<'_>], span: Span, rows: &Builder<'_>, report: &mut Report<'_>) -> Self {
        // Spreadsheets pad with empty columns on the right.
        let width = cells.iter().rposition(|cell| !cell.text.is_empty()).map_or(0, |i| i + 1);
        let mut slots: Vec<Option<Column>> = Vec::with_capacity(width);
        for (position, cell) in cells[..width].iter().enumerate() {
            let column = Column::named(&cell.text);
            let earlier = column.and_then(|c| slots.iter().position(|slot| *slot == Some(c)));
            match (column, earlier) {
                (Some(column), None) => slots.push(Some(column)),
                (Some(column), Some(earlier)) => {
                    slots.push(None);
                    report.add(|_| duplicate_column(column, cell, &cells[earlier], earlier, position));
                }
                (None, _) => {
                    slots.push(None);
                    report.add(|_| unknown_column(cell, position));
                }
            }
        }
        // A mistyped column is one mistake: it is not missing as well, and its cells can be checked.
        for position in 0..width {
            let meant = if Column::named(&cells[position].text).is_none() {
                Column::close_to(&cells[position].text)
            } else {
                None
            };
            if let Some(column) = meant.filter(|column| !slots.contains(&Some(*column))) {
                slots[position] = Some(column);
            }
        }
        let has = |column: Column| slots.contains(&Some(column));
        let missing: Vec<&'static str> =
            Column::REQUIRED.into_iter().filter(|column| !has(*column)).map(Column::name).collect();
        if !missing.is_empty() {
            report.add(|_| {
                let plural = if missing.len() == 1 { "" } else { "s" };
                let message = format!("the header has no column{plural} for `{}`", missing.join("`, `"));
                Problem::new(span, message, "at least integration_key, providers and account").hint(format!(
                    "columns are {}; only tenant, connection_id and auth_mode may be left out",
                    Column::list()
                ))
            });
        }
        let mut tenants_missing = !has(Column::Tenant);
        if tenants_missing && rows.has_default_tenants() {
            tenants_missing = false;
        } else if tenants_missing && missing.is_empty() {
            report.add(|_| {
                Problem::new(span, "the rows have no tenant", "a tenant column, or a tenant for the whole inventory")
                    .hint("add a `tenant` column (a cell may list several), or give `--tenant NAME` (can be repeated)")
            });
        }
        Self { slots, padded_width: cells.len(), usable: missing.is_empty(), tenants_missing, marked_up: false }
    }

    /// The same columns over cells that are Markdown.
    pub fn marked_up(self) -> Self {
        Self { marked_up: true, ..self }
    }

    pub fn width(&self) -> usize {
        self.slots.len()
    }

    /// Whether another table has the same columns, in any order.
    pub fn agrees_with(&self, other: &[Column]) -> bool {
        Column::ALL.iter().all(|column| self.slots.contains(&Some(*column)) == other.contains(column))
    }

    /// The names of the columns, in the order of the table.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.slots.iter().flatten().map(|column| column.name()).collect();
        names.join(", ")
    }

    /// Reads one row of trimmed cells. `ragged_hint` is asked when the number of cells is wrong.
    pub fn row(
        &self,
        cells: &[Field<'_>],
        span: Span,
        rows: &mut Builder<'_>,
        report: &mut Report<'_>,
        ragged_hint: impl FnOnce() -> Option<String>,
    ) {
        if !self.usable || cells.iter().all(|cell| cell.text.is_empty()) {
            return;
        }
        let filled = cells.iter().skip(self.width()).find(|cell| !cell.text.is_empty());
        if let Some(extra) = filled.or(cells.get(self.padded_width)) {
            report.add(|_| self.ragged(extra.span, cells.len(), ragged_hint()));
            return;
        }
        if cells.len() < self.width() {
            report.add(|_| self.ragged(Span::at(span.end), cells.len(), ragged_hint()));
            return;
        }
        if self.repeats_header(cells) {
            report.add(|_| {
                Problem::new(span, "the header is repeated", "one header row, then rows of values")
                    .hint("remove the second header; files joined with `cat` keep both")
            });
            return;
        }
        let cell = |column: Column| {
            let position = self.slots.iter().position(|slot| *slot == Some(column))?;
            cells.get(position).cloned()
        };
        let list = |column: Column, report: &mut Report<'_>| {
            let field = cell(column)?;
            split_list(column, &field, self.marked_up).map_err(|problem| report.add(|_| problem)).ok()
        };
        let before = report.count();
        let tenants = if self.slots.contains(&Some(Column::Tenant)) {
            list(Column::Tenant, report).map(Tenants::Listed)
        } else if self.tenants_missing {
            Some(Tenants::Reported)
        } else {
            Some(Tenants::Default)
        };
        let providers = list(Column::Providers, report);
        rows.push(
            RawRow {
                span,
                tenants: tenants.unwrap_or(Tenants::Reported),
                integration_key: cell(Column::IntegrationKey),
                connection_id: cell(Column::ConnectionId).filter(|f| !f.text.is_empty()),
                providers,
                account: cell(Column::Account),
                auth_mode: cell(Column::AuthMode).filter(|f| !f.text.is_empty()),
                flawed: report.count() != before,
            },
            report,
        );
    }

    fn repeats_header(&self, cells: &[Field<'_>]) -> bool {
        self.slots.iter().zip(cells).all(|(slot, cell)| match slot {
            Some(column) => Column::named(&cell.text) == Some(*column),
            None => true,
        })
    }

    fn ragged(&self, span: Span, found: usize, hint: Option<String>) -> Problem {
        let plural = if found == 1 { "" } else { "s" };
        let message = format!("the row has {found} cell{plural} and the header has {}", self.width());
        let too_many = found > self.width();
        let usual = if too_many && self.marked_up {
            "write `\\|` for a pipe inside a cell"
        } else if too_many {
            "quote a cell that holds the delimiter, or separate its values with `+`"
        } else {
            "leave a cell blank by writing nothing between two delimiters"
        };
        Problem::new(span, message, format!("{} cells", self.width())).hint(hint.unwrap_or_else(|| usual.to_owned()))
    }
}

fn duplicate_column(column: Column, cell: &Field<'_>, first: &Field<'_>, earlier: usize, position: usize) -> Problem {
    let message = format!(
        "column `{}` is given twice: `{}` as column {} and `{}` as column {}",
        column.name(),
        escaped(&first.text),
        earlier + 1,
        escaped(&cell.text),
        position + 1
    );
    Problem::new(cell.span, message, "each column once").hint("remove one of them")
}

fn unknown_column(cell: &Field<'_>, position: usize) -> Problem {
    let expected = format!("one of {}", Column::list());
    if cell.text.is_empty() {
        return Problem::new(cell.span, format!("column {} has no name", position + 1), expected)
            .hint("name the column or remove it");
    }
    let message = match cell.text.char_indices().find(|(_, c)| !c.is_ascii()) {
        Some((_, c)) => format!("unknown column `{}` with {}", escaped(&cell.text), names::describe(c)),
        None => format!("unknown column `{}`", escaped(&cell.text)),
    };
    let hint = match Column::close_to(&cell.text) {
        Some(column) => format!("did you mean `{}`?", column.name()),
        None => "remove the column, or keep notes outside the inventory".to_owned(),
    };
    Problem::new(cell.span, message, expected).hint(hint)
}

/// Splits a cell at `,` `;` `+` `/` `|` or blanks, none of which can be part of a name.
fn split_list<'a>(column: Column, field: &Field<'a>, marked_up: bool) -> Result<List<'a>, Problem> {
    let what = column.what();
    let text: &str = &field.text;
    let mut items = Vec::new();
    // Where the last separator other than a blank stands, when no item has followed it yet.
    let mut pending: Option<(usize, char)> = None;
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if matches!(c, ' ' | '\t') {
            at += 1;
        } else if is_separator(c) {
            if pending.is_some() || items.is_empty() {
                let message = format!("no {what} before `{c}`");
                return Err(Problem::new(field.span_of(at, at + 1), message, format!("one {what} between separators"))
                    .hint("remove the extra separator"));
            }
            pending = Some((at, c));
            at += 1;
        } else {
            let rest = &text[at..];
            let len = rest.find(|c: char| matches!(c, ' ' | '\t') || is_separator(c)).unwrap_or(rest.len());
            let item = field.slice(at, at + len);
            items.push(if marked_up { unwrapped(item) } else { item });
            pending = None;
            at += len;
        }
    }
    match pending {
        Some((at, c)) => {
            let message = format!("no {what} after `{c}`");
            Err(Problem::new(field.span_of(at, at + 1), message, format!("one {what} between separators"))
                .hint("remove the extra separator"))
        }
        None => Ok(List { span: field.span, items }),
    }
}

fn is_separator(c: char) -> bool {
    matches!(c, ',' | ';' | '+' | '/' | '|')
}
