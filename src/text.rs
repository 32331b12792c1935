//! Text for people: lines that fit, and colour where it is allowed.

use std::borrow::Cow;

use textwrap::core::display_width;
use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm};

use crate::domain::criteria::Verdict;

/// Columns that text output keeps to.
pub const WIDTH: usize = 100;

/// Colour, or none.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    pub on: bool,
}

impl Paint {
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// The verdict of one criterion, as wide as any other.
    pub fn mark(self, verdict: Verdict) -> String {
        match verdict {
            Verdict::Pass => self.paint("32", "pass"),
            Verdict::Fail => self.paint("31", "FAIL"),
            Verdict::Inconclusive => self.paint("33", "????"),
        }
    }

    /// The verdict of the gate with its exit code, for the head of a closing line.
    pub fn verdict(self, verdict: Verdict) -> String {
        let word = match verdict {
            Verdict::Pass => self.paint("1;32", "PASS"),
            Verdict::Fail => self.paint("1;31", "FAIL"),
            Verdict::Inconclusive => self.paint("1;33", "INCONCLUSIVE"),
        };
        format!("{word} (exit {}): ", verdict.exit_code())
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Appends `text` in lines of at most [`WIDTH`] columns: the first after `head`, whose colours take no
/// room, the others indented as far, at most to the middle.
pub fn wrap(out: &mut String, head: &str, text: &str) {
    let indent = " ".repeat(display_width(head).min(WIDTH / 2));
    for line in broken(text, head, &indent, WIDTH) {
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// `text` broken at words into lines of at most `width` columns, the first of them after `first`, the others
/// after `next`. Blanks and line feeds within it are one space each. A word that is too long for a line is
/// broken.
pub fn broken(text: &str, first: &str, next: &str, width: usize) -> Vec<String> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let options = Options::new(width)
        .initial_indent(first)
        .subsequent_indent(next)
        .word_splitter(WordSplitter::NoHyphenation)
        .word_separator(WordSeparator::AsciiSpace)
        .wrap_algorithm(WrapAlgorithm::FirstFit);
    textwrap::wrap(&text, options).into_iter().map(Cow::into_owned).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_line_is_too_wide_and_no_word_is_lost(text in "[a-zé漢 ]{0,400}", indent in 0usize..40) {
            let mut out = String::new();
            wrap(&mut out, &" ".repeat(indent), &text);
            prop_assert!(out.lines().all(|line| display_width(line) <= WIDTH), "{out}");
            let letters = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(letters(&out), letters(&text));
        }
    }

    #[test]
    fn colours_take_no_room_and_no_name_is_cut_at_a_hyphen() {
        let head = Paint { on: true }.red("FAIL  ");
        let mut out = String::new();
        wrap(&mut out, &head, &"dead-letters ".repeat(10));
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].starts_with("      dead-letters") && !out.contains("-\n"), "{out}");
    }
}
