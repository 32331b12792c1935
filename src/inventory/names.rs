//! Saying what is wrong with a name: which character, what it looks like, what was probably meant.

use std::borrow::Cow;

use super::diagnostic::{Problem, Span};
use super::excerpt::is_unprintable;
use crate::domain::triplet::{PART_BYTES_MAX, Part, PartError};

/// A piece of the source with its place. When the text is borrowed it stands in the source as it
/// is, so a place inside it is known; when it was unescaped only the whole is.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    pub text: Cow<'a, str>,
    pub span: Span,
}

impl<'a> Field<'a> {
    pub fn borrowed(text: &'a str, start: usize) -> Self {
        Self { text: Cow::Borrowed(text), span: Span::new(start, start + text.len()) }
    }

    /// The part of this field from `start` to `end`.
    pub fn slice(&self, start: usize, end: usize) -> Self {
        match &self.text {
            Cow::Borrowed(text) => Self::borrowed(&text[start..end], self.span.start + start),
            Cow::Owned(text) => Self { text: Cow::Owned(text[start..end].to_owned()), span: self.span },
        }
    }

    /// The place of the part from `start` to `end`, as exactly as it is known.
    pub fn span_of(&self, start: usize, end: usize) -> Span {
        match self.text {
            Cow::Borrowed(_) => Span::new(self.span.start + start, self.span.start + end),
            Cow::Owned(_) => self.span,
        }
    }

    /// Without spaces and tabs at either end.
    pub fn trimmed(&self) -> Self {
        let (start, end) = trim(&self.text);
        self.slice(start, end)
    }
}

/// Where the text without its outer spaces and tabs starts and ends; at the start when nothing is left.
fn trim(text: &str) -> (usize, usize) {
    let blank = [' ', '\t'];
    let start = text.len() - text.trim_start_matches(blank).len();
    if start == text.len() {
        return (0, 0);
    }
    (start, start + text[start..].trim_end_matches(blank).len())
}

/// At most 60 characters of foreign text, safe to print.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == 60 {
            out.push('…');
            break;
        }
        if is_unprintable(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// The text as a part of a triplet, or what to tell the user. `what` is the column, such as `tenant`.
pub(super) fn part(what: &str, field: &Field<'_>) -> Result<Part, Problem> {
    Part::new(&field.text).map_err(|error| part_problem(what, field, &error))
}

fn part_problem(what: &str, field: &Field<'_>, error: &PartError) -> Problem {
    let text: &str = &field.text;
    let expected = format!("1 to {PART_BYTES_MAX} of a-z A-Z 0-9 _ - . for the {what}");
    match error {
        PartError::Empty => Problem::new(field.span, format!("blank {what}"), expected),
        PartError::TooLong { bytes } => Problem::new(
            field.span,
            format!("{what} has {bytes} bytes and at most {PART_BYTES_MAX} are allowed"),
            expected,
        )
        .hint("a missing quote or delimiter often joins cells; the name itself must be short"),
        PartError::Character { found } => {
            let at = text.find(*found).unwrap_or(0);
            let problem = Problem::new(
                field.span_of(at, at + found.len_utf8()),
                format!("{} in {what} `{}`", describe(*found), escaped(text)),
                expected,
            );
            problem.hint_if(character_hint(text, at, *found))
        }
        PartError::Underscores => {
            let (at, end) = match text.find("__") {
                Some(at) => (at, at + 2),
                None if text.starts_with('_') => (0, 1),
                None => (text.len() - 1, text.len()),
            };
            let message = format!("{what} `{}` cannot be told apart inside a connection id", escaped(text));
            Problem::new(field.span_of(at, end), message, "no `__`, and no `_` at either end")
                .hint("`__` separates tenant, integration key and account in connection ids")
        }
        PartError::Dots => Problem::new(field.span, format!("{what} `{text}` cannot be part of a key"), expected),
    }
}

fn character_hint(text: &str, at: usize, found: char) -> Option<String> {
    if at == 0 && found == '\'' {
        return Some("Excel writes a leading apostrophe to force text; remove it".to_owned());
    }
    if matches!(found, '\u{201C}'..='\u{201F}' | '\u{2018}'..='\u{201B}' | '«' | '»') {
        return Some("a word processor made the quotes curly; use straight quotes \" or none".to_owned());
    }
    if found == '\u{FEFF}' {
        return Some("files joined with `cat` keep the byte order mark of the second; remove it".to_owned());
    }
    let plain: String = text.chars().filter_map(|c| if c.is_ascii() { Some(c) } else { lookalike(c) }).collect();
    (!found.is_ascii() && Part::new(&plain).is_ok()).then(|| format!("type it again in ASCII: `{plain}`"))
}

/// Names a character so that two that look alike can be told apart.
pub(super) fn describe(c: char) -> String {
    let code = u32::from(c);
    let name = match c {
        '\u{FEFF}' => "byte order mark, invisible",
        '\u{00A0}' | '\u{202F}' | '\u{2007}' => "no-break space",
        '\u{200B}'..='\u{200D}' | '\u{2060}' | '\u{00AD}' => "invisible",
        '\u{200E}' | '\u{200F}' | '\u{061C}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => {
            "invisible, changes the text direction"
        }
        '\u{201C}'..='\u{201F}' => "curly quote",
        '\u{2018}'..='\u{201B}' => "curly apostrophe",
        '\u{2010}'..='\u{2015}' | '\u{2212}' => "a dash that is not `-`",
        '\n' => "line break",
        '\r' => "carriage return",
        '\t' => "tab",
        ' ' => "space",
        _ => {
            let script = match code {
                0x0370..=0x03FF => "Greek ",
                0x0400..=0x052F => "Cyrillic ",
                0xFF01..=0xFF5E => "full-width ",
                _ => "",
            };
            let shown = if is_unprintable(c) { c.escape_unicode().to_string() } else { c.to_string() };
            return match lookalike(c) {
                Some(plain) => format!("U+{code:04X} ({script}`{shown}`, looks like `{plain}`)"),
                None => format!("U+{code:04X} ({script}`{shown}`)"),
            };
        }
    };
    format!("U+{code:04X} ({name})")
}

/// The ASCII character that a foreign one is usually mistaken for.
fn lookalike(c: char) -> Option<char> {
    const PAIRS: &[(&str, &str)] = &[
        ("аеіјоорсухѕԁһԛԝ", "aeijoopcyxsdhqw"),
        ("АВЕЅІЈКМНОРСТУХ", "ABESIJKMHOPCTYX"),
        ("αινορτυκ", "aivoptuk"),
        ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX"),
        ("ıɡℓ‐‑‒–—−", "igl------"),
    ];
    if ('\u{FF01}'..='\u{FF5E}').contains(&c) {
        return char::from_u32(u32::from(c) - 0xFEE0);
    }
    PAIRS.iter().find_map(|(foreign, plain)| foreign.chars().zip(plain.chars()).find(|(f, _)| *f == c).map(|(_, p)| p))
}

/// `text` with lookalikes replaced, for guessing what was meant.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter_map(|c| if c.is_ascii() { Some(c) } else { lookalike(c) }).collect()
}

/// The candidate that `word` was probably meant to be: at most a third of its letters differ.
pub(super) fn closest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // Nothing this long can be a slip of one of our short names, and the comparison is quadratic.
    if word.len() > 40 {
        return None;
    }
    let word = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|c| (distance(&word, &c.to_ascii_lowercase()), c))
        .filter(|(d, c)| d * 3 <= c.len().max(3))
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Optimal string alignment distance: insertions, deletions, replacements, swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookalikes_are_named_with_what_they_look_like() {
        assert_eq!(describe('а'), "U+0430 (Cyrillic `а`, looks like `a`)");
        assert_eq!(describe('\u{202E}'), "U+202E (invisible, changes the text direction)");
        assert_eq!(describe('ａ'), "U+FF41 (full-width `ａ`, looks like `a`)");
    }

    #[test]
    fn a_slip_finds_its_word_and_nonsense_does_not() {
        let words = ["tenant", "account", "providers"];
        assert_eq!(closest("acount", words), Some("account"));
        assert_eq!(closest("Tennat", words), Some("tenant"));
        assert_eq!(closest("colour", words), None);
    }
}
