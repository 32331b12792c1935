//! What is wrong with an inventory, where, and what to do about it.

use std::fmt;

use serde::Serialize;

use super::excerpt::{self, Excerpt};

/// How many diagnostics of one read are kept; the rest are counted. A person fixes the first few and
/// reads again, and a file with a million bad rows must not need memory for a million messages.
pub const DIAGNOSTICS_MAX: usize = 50;

/// A range of bytes in a source, `start <= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Span {
    pub start: usize,
    pub end: usize,
}

impl Span {
    pub(super) const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// The place between two characters.
    pub(super) const fn at(offset: usize) -> Self {
        Self { start: offset, end: offset }
    }
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Location {
    /// From 1.
    pub line: usize,
    /// From 1, in characters (Unicode scalar values), a byte order mark at the start not counted.
    pub column: usize,
    pub span: Span,
    /// The line, or the part of a long line around the span.
    pub excerpt: Excerpt,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub file: String,
    /// `None` for sources that are not text, such as live Nango.
    #[serde(flatten)]
    pub location: Option<Location>,
    /// A lower-case fragment that names the thing in backticks.
    pub message: String,
    pub expected: String,
    pub hint: Option<String>,
}

impl Diagnostic {
    /// The line from 1; 0 for sources that are not text.
    pub fn line(&self) -> usize {
        self.location.as_ref().map_or(0, |l| l.line)
    }

    /// The column from 1; 0 for sources that are not text.
    pub fn column(&self) -> usize {
        self.location.as_ref().map_or(0, |l| l.column)
    }
}

/// Message, `--> file:line:column`, the line with a caret, what was expected, a hint.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, location, message, expected, hint } = self;
        let file = super::names::escaped(file);
        writeln!(f, "{message}")?;
        let mut gutter = 1;
        if let Some(Location { line, column, span: _, excerpt }) = location {
            gutter = line.to_string().len();
            writeln!(f, "{:gutter$}--> {file}:{line}:{column}", "")?;
            writeln!(f, "{:gutter$} |", "")?;
            writeln!(f, "{}", format!("{line} | {}", excerpt.text).trim_end())?;
            let caret = "^".repeat(excerpt.caret_width);
            writeln!(f, "{:gutter$} | {:indent$}{caret}", "", "", indent = excerpt.caret_at)?;
        } else {
            writeln!(f, "{:gutter$}--> {file}", "")?;
        }
        write!(f, "{:gutter$} = expected: {expected}", "")?;
        if let Some(hint) = hint {
            write!(f, "\n{:gutter$} = hint: {hint}", "")?;
        }
        Ok(())
    }
}

/// All that is wrong with one source, in the order of the text. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostics {
    /// At most [`DIAGNOSTICS_MAX`].
    pub diagnostics: Vec<Diagnostic>,
    /// How many more there were.
    pub more: usize,
}

impl Diagnostics {
    /// How many there were, kept or not.
    pub fn total(&self) -> usize {
        self.diagnostics.len() + self.more
    }

    /// Adds those of another source.
    pub fn append(&mut self, mut other: Self) {
        self.diagnostics.append(&mut other.diagnostics);
        self.more += other.more;
    }
}

/// Reads well after `error: `.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.diagnostics.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n\nerror: " };
            write!(f, "{separator}{diagnostic}")?;
        }
        if self.more > 0 {
            write!(f, "\n\nerror: and {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// A diagnostic before its place has been worked out.
pub(super) struct Problem {
    span: Span,
    message: String,
    expected: String,
    hint: Option<String>,
}

impl Problem {
    pub fn new(span: Span, message: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { span, message: message.into(), expected: expected.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn hint_if(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }
}

/// Collects what is wrong with one text.
pub(super) struct Report<'a> {
    file: &'a str,
    bytes: &'a [u8],
    kept: Vec<Diagnostic>,
    count: usize,
}

impl<'a> Report<'a> {
    pub fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Self { file, bytes, kept: Vec::new(), count: 0 }
    }

    /// Takes a closure because finding the place scans the text: past the bound, that is saved.
    pub fn add(&mut self, problem: impl FnOnce(&Self) -> Problem) {
        self.count += 1;
        if self.kept.len() < DIAGNOSTICS_MAX {
            let Problem { span, message, expected, hint } = problem(self);
            let location = Some(excerpt::locate(self.bytes, span));
            self.kept.push(Diagnostic { file: self.file.to_owned(), location, message, expected, hint });
        }
    }

    /// For sources that are not text.
    pub fn add_unplaced(&mut self, message: String, expected: String, hint: &str) {
        self.count += 1;
        if self.kept.len() < DIAGNOSTICS_MAX {
            let hint = Some(hint.to_owned());
            self.kept.push(Diagnostic { file: self.file.to_owned(), location: None, message, expected, hint });
        }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The line of an offset, from 1.
    pub fn line_of(&self, offset: usize) -> usize {
        excerpt::line_of(self.bytes, offset)
    }

    /// Only after something was added.
    pub fn into_diagnostics(mut self) -> Diagnostics {
        self.kept.sort_by_key(|d| (d.line(), d.column()));
        let more = self.count - self.kept.len();
        Diagnostics { diagnostics: self.kept, more }
    }
}
