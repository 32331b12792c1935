//! Takes a class, or a method of a class, out of JavaScript or TypeScript text.
//!
//! Not a parser: it knows strings, templates and comments well enough to match braces, which is
//! what the shape of a class needs. A regular expression that holds an unbalanced brace would
//! mislead it; the diff is read by a person before it is used.

/// Whether a file may hold the class.
pub(super) fn is_script(path: &str) -> bool {
    let end = path.rsplit('.').next().unwrap_or_default();
    matches!(end, "ts" | "mts" | "cts" | "tsx" | "js" | "mjs" | "cjs" | "jsx")
}

/// `text` without the method `method` of the class `class`.
pub(super) fn without_method(text: &str, class: &str, method: &str) -> String {
    let Some((open, close)) = class_body(text, class) else { return text.to_owned() };
    let code = Code::of(text);
    let plain = &code.plain;
    for (n, _) in plain[open + 1..close].match_indices(method) {
        let (at, end) = (open + 1 + n, open + 1 + n + method.len());
        let before = &plain[open + 1..at];
        let own_level = code.depth_between(open, at) == 0 && before.matches('(').count() == before.matches(')').count();
        let whole = !before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | '#'));
        if !own_level || !whole || !plain[end..].trim_start().starts_with('(') {
            continue;
        }
        let Some(body) = after_parameters(plain, end).and_then(|from| code.next_open(from)) else { continue };
        let Some(last) = code.closing(body).filter(|last| *last < close) else { continue };
        let start = text[..at].rfind('\n').map_or(0, |n| n + 1).max(open + 1);
        return cut(text, start, last + 1);
    }
    text.to_owned()
}

/// After the `)` that closes the parameters that begin at or after `from`.
fn after_parameters(plain: &str, from: usize) -> Option<usize> {
    let mut depth = 0;
    for (n, c) in plain[from..].char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return Some(from + n + 1);
        }
    }
    None
}

/// `text` without the class `class`.
pub(super) fn without_class(text: &str, class: &str) -> String {
    let Some((open, close)) = class_body(text, class) else { return text.to_owned() };
    let start = text[..open].rfind("class ").unwrap_or(open);
    let start = text[..start].rfind('\n').map_or(0, |n| n + 1);
    cut(text, start, close + 1)
}

/// The braces of the body of `class`.
fn class_body(text: &str, class: &str) -> Option<(usize, usize)> {
    let code = Code::of(text);
    let needle = format!("class {class}");
    let mut from = 0;
    while let Some(n) = code.plain[from..].find(&needle) {
        let after = from + n + needle.len();
        let ends = !code.plain[after..].starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$');
        if ends {
            let open = code.marks.iter().find(|(at, kind)| *at >= after && *kind == Mark::Open)?.0;
            return Some((open, code.closing(open)?));
        }
        from = after;
    }
    None
}

/// `text` without `start..end`, the comments right above it, and one of two blank lines around it.
fn cut(text: &str, start: usize, end: usize) -> String {
    let mut start = start;
    loop {
        let above = &text[..start];
        let line_start = above.trim_end_matches('\n').rfind('\n').map_or(0, |n| n + 1);
        let line = above[line_start..].trim();
        let comment = line.starts_with("//") || line.starts_with("/*") || line.starts_with('*') || line.ends_with("*/");
        if line_start == start || !comment || above.ends_with("\n\n") {
            break;
        }
        start = line_start;
    }
    let rest = &text[end..];
    let rest = rest.strip_prefix('\n').unwrap_or(rest);
    let rest =
        if text[..start].ends_with("\n\n") || start == 0 { rest.strip_prefix('\n').unwrap_or(rest) } else { rest };
    format!("{}{rest}", &text[..start])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Open,
    Close,
}

/// A text whose strings and comments are blanked out, byte for byte.
struct Code {
    plain: String,
    /// Braces of the code, in order.
    marks: Vec<(usize, Mark)>,
}

impl Code {
    fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut plain = bytes.to_vec();
        // What each open template's `${` is closed by: the depth at which it was opened.
        let (mut i, mut depth, mut templates) = (0, 0usize, Vec::<usize>::new());
        let mut marks = Vec::new();
        let blank = |plain: &mut Vec<u8>, from: usize, to: usize| {
            plain[from..to.min(bytes.len())].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        };
        while i < bytes.len() {
            let from = i;
            match (bytes[i], bytes.get(i + 1)) {
                (b'/', Some(b'/')) => {
                    i = text[i..].find('\n').map_or(bytes.len(), |n| i + n);
                    blank(&mut plain, from, i);
                }
                (b'/', Some(b'*')) => {
                    i = text[i + 2..].find("*/").map_or(bytes.len(), |n| i + n + 4);
                    blank(&mut plain, from, i);
                }
                (quote @ (b'"' | b'\''), _) => {
                    i = string_end(bytes, i + 1, quote);
                    blank(&mut plain, from, i);
                }
                (b'`', _) => {
                    i = template_end(bytes, i + 1, depth, &mut templates);
                    blank(&mut plain, from, i);
                }
                (b'}', _) if templates.last() == Some(&depth) => {
                    templates.pop();
                    i = template_end(bytes, i + 1, depth, &mut templates);
                    blank(&mut plain, from, i);
                }
                (b'{', _) => {
                    marks.push((i, Mark::Open));
                    depth += 1;
                    i += 1;
                }
                (b'}', _) => {
                    marks.push((i, Mark::Close));
                    depth = depth.saturating_sub(1);
                    i += 1;
                }
                _ => i += 1,
            }
        }
        Self { plain: String::from_utf8_lossy(&plain).into_owned(), marks }
    }

    /// How many braces are open at `at` that were opened after `open`.
    fn depth_between(&self, open: usize, at: usize) -> i64 {
        let inside = self.marks.iter().filter(|(mark, _)| *mark > open && *mark < at);
        inside.map(|(_, kind)| if *kind == Mark::Open { 1 } else { -1 }).sum()
    }

    /// The first brace that opens at or after `from`.
    fn next_open(&self, from: usize) -> Option<usize> {
        self.marks.iter().find(|(at, kind)| *at >= from && *kind == Mark::Open).map(|(at, _)| *at)
    }

    /// The brace that closes the one at `open`.
    fn closing(&self, open: usize) -> Option<usize> {
        let mut depth = 0;
        for (at, kind) in self.marks.iter().filter(|(at, _)| *at >= open) {
            match kind {
                Mark::Open => depth += 1,
                Mark::Close => depth -= 1,
            }
            if depth == 0 {
                return Some(*at);
            }
        }
        None
    }
}

/// After the string that began before `i`. A line end ends it too: it was no string.
fn string_end(bytes: &[u8], mut i: usize, quote: u8) -> usize {
    while i < bytes.len() && bytes[i] != b'\n' {
        match bytes[i] {
            b'\\' => i += 2,
            b if b == quote => return i + 1,
            _ => i += 1,
        }
    }
    i.min(bytes.len())
}

/// After the template's text, or after the `${` that interrupts it.
fn template_end(bytes: &[u8], mut i: usize, depth: usize, templates: &mut Vec<usize>) -> usize {
    while i < bytes.len() {
        match (bytes[i], bytes.get(i + 1)) {
            (b'\\', _) => i += 2,
            (b'`', _) => return i + 1,
            (b'$', Some(b'{')) => {
                templates.push(depth);
                return i + 2;
            }
            _ => i += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_method_goes_with_its_comment_and_its_neighbours_stay() {
        let text = "class A {\n  x = 1;\n\n  /** Doc. */\n  async alarm() {\n    f({ a: 1 });\n  }\n\n  z() {}\n}\n";
        assert_eq!(without_method(text, "A", "alarm"), "class A {\n  x = 1;\n\n  z() {}\n}\n");
        assert_eq!(without_method(text, "B", "alarm"), text);
        assert_eq!(without_method(text, "A", "nothing"), text);
    }

    #[test]
    fn a_call_or_another_class_of_a_longer_name_is_left_alone() {
        let text = "class AB { alarm() {} }\nclass A { run() { this.alarm(); } }\n";
        assert_eq!(without_method(text, "A", "alarm"), text);
        assert_eq!(without_class(text, "A"), "class AB { alarm() {} }\n");
    }

    proptest! {
        /// Any text goes in without a panic, and a text without the class comes out as it was.
        #[test]
        fn any_text_is_survived(text in "[a-z{}()`$\"'/*\\\\\n ;é]{0,200}") {
            prop_assert_eq!(without_class(&text, "TokenManager"), text.clone());
            let wrapped = format!("class TokenManager {{ {text}");
            without_class(&wrapped, "TokenManager");
            without_method(&wrapped, "TokenManager", "alarm");
        }
    }
}
