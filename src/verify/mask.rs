//! Secrets that an API has hidden: `REDACTED`, `abcd...`, `****`.
//!
//! What is masked says nothing about the secret, so it never matches anything, not even the same
//! mask. A real token that looks like a mask would be reported as unverifiable: that is the side
//! to err on.

use super::json::{Cursor, unescape};

const WORDS: [&[u8]; 6] = [b"redacted", b"masked", b"hidden", b"secret", b"removed", b"filtered"];

/// How the words begin, in small letters; any may come after brackets.
const BEGINNINGS: [[u8; 2]; 5] = [*b"re", *b"ma", *b"hi", *b"se", *b"fi"];

/// What may stand around a word.
fn is_wrapping(byte: u8) -> bool {
    matches!(byte, b'<' | b'>' | b'[' | b']' | b'(' | b')' | b'{' | b'}' | b'*' | b'-' | b'_')
}

/// No secret is longer than this, so what is longer stands for none.
const FIELD_BYTES_MAX: usize = 64 * 1024;

/// Whether a text stands where a secret was, rather than being one.
pub(super) fn is_masked(text: &[u8]) -> bool {
    may_be_masked(text) && looks_masked(text)
}

/// Whether a string somewhere in a JSON value, other than a member's name, stands where a secret was.
pub(super) fn holds_mask(value: &[u8]) -> bool {
    let mut cursor = Cursor::new(value);
    while let Some(quote) = value.get(cursor.at..).and_then(|rest| memchr::memchr(b'"', rest)) {
        cursor.at += quote;
        let Ok(string) = cursor.string() else { return false };
        cursor.blanks();
        let raw = string.raw(value);
        if cursor.peek() == Some(b':') || raw.is_empty() || raw.len() > FIELD_BYTES_MAX {
            continue;
        }
        if unescape(raw, string.escapes).is_some_and(|text| is_masked(&text)) {
            return true;
        }
    }
    false
}

/// No for nearly everything, never for a mask. Looks at neighbouring bytes in a way that compiles to
/// vector instructions.
fn may_be_masked(text: &[u8]) -> bool {
    let [first, second, third, ..] = *text else { return true };
    let mut odd = (first == second && second == third) || is_wrapping(first) || first.is_ascii_whitespace();
    // All words but the one that counts anywhere count at the start only.
    odd |= BEGINNINGS.contains(&[first | 0x20, second | 0x20]);
    for (a, b) in text.iter().zip(&text[1..]) {
        let dots = (*a == b'.') & (*b == b'.');
        let stars = (*a == b'*') & (*b == b'*');
        odd |= dots | stars | (*a >= 0x80);
    }
    let fours = text.iter().zip(&text[1..]).zip(&text[2..]).zip(text.get(3..).unwrap_or_default());
    for (((a, b), c), d) in fours {
        odd |= (*a | 0x20 == b'd') & (*b | 0x20 == b'a') & (*c | 0x20 == b'c') & (*d | 0x20 == b't');
    }
    odd
}

fn looks_masked(token: &[u8]) -> bool {
    let has = |needle: &[u8]| memchr::memmem::find(token, needle).is_some();
    if has(b"...") || has(b"**") || has("…".as_bytes()) || has("•".as_bytes()) || has("●".as_bytes()) {
        return true;
    }
    let lower = token.to_ascii_lowercase();
    if memchr::memmem::find(&lower, WORDS[0]).is_some() {
        return true;
    }
    let inside = lower.trim_ascii();
    let start = inside.iter().position(|b| !is_wrapping(*b)).unwrap_or(inside.len());
    let end = inside.iter().rposition(|b| !is_wrapping(*b)).map_or(start, |at| at + 1);
    let inside = &inside[start..end];
    lower.iter().all(|b| b"*-_".contains(b))
        || WORDS.contains(&inside)
        || (inside.len() >= 3 && inside.iter().all(|b| *b == inside[0]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn masks_are_told_from_tokens() {
        let masks = [
            "REDACTED",
            "redacted",
            "[REDACTED]",
            "<redacted>",
            "sk-REDACTED",
            "abcd...",
            "ya29...wxyz",
            "****",
            "xoxb****",
            "ab**cd",
            "********1234",
            "ya29.…",
            "••••••••",
            "XXXXXXXXXXXX",
            "xxx",
            "<hidden>",
            "[secret]",
            "",
            "***",
            "MASKED",
            "---",
            "_hidden_",
            "-masked-",
            "-*-*-*-*",
            " secret ",
            "__xxx__",
        ];
        for mask in masks {
            assert!(is_masked(mask.as_bytes()), "{mask}");
        }
        let tokens = [
            "ya29.a0AfH6SMBx-canary_0001",
            "xoxb-1234-5678-abcd",
            "EAAGm0PX4ZCpsBA",
            "eyJhbGciOiJIUzI1NiJ9.e30.Zm9v",
            "pa*s",
            "hidden-treasure-0001",
            "secret-1",
            "dadaDADA-token",
            "aab",
            "s",
            "mypassword",
            "https://www.example.com/auth/readonly",
        ];
        for token in tokens {
            assert!(!is_masked(token.as_bytes()), "{token}");
        }
    }

    #[test]
    fn a_mask_is_found_wherever_a_string_stands() {
        for value in [r#""REDACTED""#, r#"["a",{"b":["\u002a**"]}]"#, r#"{ "a" : "x" , "b" : "…" }"#] {
            assert!(holds_mask(value.as_bytes()), "{value}");
        }
        for value in [r#"{"***":"a","b":""}"#, r#""plain""#, "777", "true", "[]", r#"["***"#] {
            assert!(!holds_mask(value.as_bytes()), "{value}");
        }
    }

    proptest! {
        #[test]
        fn what_looks_masked_is_never_passed_over(parts in prop::collection::vec(
            prop_oneof!["[-*_<>(){}.\\[\\] xX1a]{1,3}", "(?i)redacted|masked|hidden|secret|removed|filtered", "[…•●]", "\\PC{0,3}"], 0..5,
        )) {
            let text = parts.concat();
            prop_assert_eq!(is_masked(text.as_bytes()), looks_masked(text.as_bytes()), "{}", text);
        }
    }
}
