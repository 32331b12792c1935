//! Lines that fit, and colour where it is allowed.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns that text output keeps to.
pub const WIDTH: usize = 100;

/// Colour, or none.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    pub on: bool,
}

impl Paint {
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub fn red(self, text: &str) -> String {
        self.wrap("31", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Appends `text` in lines of at most [`WIDTH`] columns: the first after `first`, the others
/// indented as far. A word that is too long for a line is broken.
pub fn wrap(out: &mut String, first: &str, text: &str) {
    let indent = first.width();
    let room = WIDTH.saturating_sub(indent).max(10);
    out.push_str(first);
    let mut used = 0;
    let newline = |out: &mut String| {
        out.push('\n');
        out.push_str(&" ".repeat(indent));
    };
    for word in text.split_whitespace() {
        let width = word.width();
        if used > 0 {
            if used + 1 + width > room {
                newline(out);
                used = 0;
            } else {
                out.push(' ');
                used += 1;
            }
        }
        for c in word.chars() {
            let width = c.width().unwrap_or(0);
            if used + width > room {
                newline(out);
                used = 0;
            }
            out.push(c);
            used += width;
        }
    }
    while out.ends_with(' ') {
        out.pop();
    }
    out.push('\n');
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
            prop_assert!(out.lines().all(|line| line.width() <= WIDTH), "{out}");
            let letters = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(letters(&out), letters(&text));
        }
    }
}
