//! Secrets that an API has hidden: `REDACTED`, `abcd...`, `****`.
//!
//! What is masked says nothing about the secret, so it never matches anything, not even the same
//! mask. A real token that looks like a mask would be reported as unverifiable: that is the side
//! to err on.

const WORDS: [&[u8]; 6] = [b"redacted", b"masked", b"hidden", b"secret", b"removed", b"filtered"];

/// Whether a text stands where a secret was, rather than being one.
pub(super) fn is_masked(token: &[u8]) -> bool {
    // Nearly all tokens pass here, so this looks at pairs of bytes in a way that compiles to
    // vector instructions; whatever seems odd is looked at again.
    let mut odd = token.len() < 8 || token[0] == token[1];
    odd |= matches!(token.first(), Some(b'<' | b'[' | b'(' | b'{' | b'*'));
    for (a, b) in token.iter().zip(token.get(1..).unwrap_or_default()) {
        let dots = (*a == b'.') & (*b == b'.');
        let stars = (*a == b'*') & (*b == b'*');
        let dact = (*a | 0x20 == b'd') & (*b | 0x20 == b'a');
        odd |= dots | stars | dact | (*a >= 0x80);
    }
    // The other words only count at the start, which is one look.
    odd |= matches!(token.first().map(u8::to_ascii_lowercase), Some(b'm' | b'h' | b's' | b'f' | b'r'));
    odd && looks_masked(token)
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
    let is_wrapping = |b: &u8| b"<>[](){}*-_".contains(b);
    let start = inside.iter().position(|b| !is_wrapping(b)).unwrap_or(inside.len());
    let end = inside.iter().rposition(|b| !is_wrapping(b)).map_or(start, |at| at + 1);
    let inside = &inside[start..end];
    lower.iter().all(|b| b"*-_".contains(b))
        || WORDS.contains(&inside)
        || (inside.len() >= 3 && inside.iter().all(|b| *b == inside[0]))
}

#[cfg(test)]
mod tests {
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
        ];
        for token in tokens {
            assert!(!is_masked(token.as_bytes()), "{token}");
        }
    }
}
