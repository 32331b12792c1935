//! Facts as bytes, for the partitions on disk. Nothing that may be secret is among them: tokens,
//! opaque values and fields of unknown meaning are there only as digests under a key that never
//! leaves memory.

use std::borrow::Cow;

use super::compare::Keys;
use super::facts::{Facts, Field, Hidden, SecretFact};
use super::hide::{kept_name, kept_scope, kept_type};
use super::judge::is_harmless;
use super::rules::Place;
use crate::domain::secret::Fingerprint;
use crate::domain::time::Timestamp;

/// Appends the facts. Equal bytes say the same, but for what [`is_decisive`] excludes;
/// different bytes may still mean the same.
pub(super) fn pack(facts: &Facts<'_>, keys: &Keys, out: &mut Vec<u8>) {
    match &facts.secret {
        SecretFact::Unlisted => out.push(UNLISTED),
        SecretFact::Absent => out.push(ABSENT),
        SecretFact::Masked => out.push(MASKED),
        SecretFact::Token(token) => {
            out.push(TOKEN);
            out.extend_from_slice(&keys.digest_hidden(token));
        }
        SecretFact::Opaque(value) => {
            out.push(OPAQUE);
            out.extend_from_slice(&keys.digest_hidden(value));
        }
        SecretFact::Fingerprint(fp) => {
            out.push(PRINT);
            out.extend_from_slice(fp.to_string().as_bytes());
        }
    }
    put_number(facts.expires_at.map(Timestamp::millis), out);
    put_number(facts.expiration, out);
    put_optional(facts.token_type.as_deref().map(|kind| kept_type(kind, facts, keys)).as_deref(), out);
    put_optional(facts.scope.as_deref().map(|scope| kept_scope(scope, facts, keys)).as_deref(), out);
    out.extend_from_slice(&(facts.fields.len() as u32).to_le_bytes());
    let mut fields: Vec<(Cow<'_, [u8]>, &Field<'_>)> =
        facts.fields.iter().map(|field| (kept_name(&field.name, facts, keys), field)).collect();
    // A hidden name has its place among the others by what stands for it.
    fields.sort_by(|(a, x), (b, y)| (x.place, a).cmp(&(y.place, b)));
    for (name, field) in fields {
        out.push(field.place as u8);
        put_text(&name, out);
        match &field.content {
            Hidden::Clear(value) if is_harmless(field.place, &field.name, value) => {
                out.push(CLEAR);
                put_text(value, out);
            }
            Hidden::Clear(value) => {
                out.push(DIGEST);
                out.extend_from_slice(&keys.digest_json(value));
            }
            Hidden::Digest(digest) => {
                out.push(DIGEST);
                out.extend_from_slice(digest);
            }
        }
    }
    out.extend_from_slice(&(facts.masked.len() as u32).to_le_bytes());
    let mut masked: Vec<Cow<'_, [u8]>> = facts.masked.iter().map(|name| kept_name(name, facts, keys)).collect();
    masked.sort_unstable();
    masked.iter().for_each(|name| put_text(name, out));
}

/// Whether equal bytes of these facts make a match without a closer look.
pub(super) fn is_decisive(facts: &Facts<'_>) -> bool {
    facts.masked.is_empty() && matches!(facts.secret, SecretFact::Absent | SecretFact::Token(_) | SecretFact::Opaque(_))
}

/// Reads facts back, together with what is kept beside them; `None` when the bytes are not those that [`pack`] wrote.
pub(super) fn unpack(bytes: &[u8], written_at: Option<Timestamp>, ours: bool) -> Option<Facts<'_>> {
    let mut bytes = Bytes(bytes);
    let secret = match bytes.byte()? {
        UNLISTED => SecretFact::Unlisted,
        ABSENT => SecretFact::Absent,
        MASKED => SecretFact::Masked,
        TOKEN => SecretFact::Token(Hidden::Digest(bytes.digest()?)),
        OPAQUE => SecretFact::Opaque(Hidden::Digest(bytes.digest()?)),
        PRINT => SecretFact::Fingerprint(Fingerprint::parse(std::str::from_utf8(bytes.take(24)?).ok()?)?),
        _ => return None,
    };
    let expires_at = bytes.number()?.map(Timestamp::from_millis);
    let expiration = bytes.number()?;
    let token_type = bytes.optional()?.map(Cow::Borrowed);
    let scope = bytes.optional()?.map(Cow::Borrowed);
    let count = bytes.length()?;
    let mut fields = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        let place = [Place::Value, Place::Metadata, Place::Entry].into_iter().nth(usize::from(bytes.byte()?))?;
        let name = Cow::Borrowed(bytes.text()?);
        let content = match bytes.byte()? {
            CLEAR => Hidden::Clear(Cow::Borrowed(bytes.text()?)),
            _ => Hidden::Digest(bytes.digest()?),
        };
        fields.push(Field { place, name, content });
    }
    let count = bytes.length()?;
    let masked = (0..count).map(|_| bytes.text().map(Cow::Borrowed)).collect::<Option<_>>()?;
    Some(Facts { secret, expires_at, token_type, scope, expiration, written_at, ours, fields, masked })
}

const UNLISTED: u8 = 0;
const ABSENT: u8 = 1;
const MASKED: u8 = 2;
const TOKEN: u8 = 3;
const OPAQUE: u8 = 4;
const PRINT: u8 = 5;
const CLEAR: u8 = 0;
const DIGEST: u8 = 1;

fn put_text(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text);
}

fn put_optional(text: Option<&[u8]>, out: &mut Vec<u8>) {
    out.push(u8::from(text.is_some()));
    if let Some(text) = text {
        put_text(text, out);
    }
}

fn put_number(number: Option<i64>, out: &mut Vec<u8>) {
    out.push(u8::from(number.is_some()));
    if let Some(number) = number {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

pub(super) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn digest(&mut self) -> Option<[u8; 16]> {
        self.array()
    }

    fn length(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(self.array()?) as usize)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        self.take(length)
    }

    fn optional(&mut self) -> Option<Option<&'a [u8]>> {
        Some(if self.byte()? == 1 { Some(self.text()?) } else { None })
    }

    fn number(&mut self) -> Option<Option<i64>> {
        Some(if self.byte()? == 1 { Some(i64::from_le_bytes(self.array()?)) } else { None })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::compare::compare;
    use super::super::entry::scan;
    use super::super::rules::Rules;
    use super::*;

    const LINE: &str = r#"{"key":"tokens:a:b:c","value":"{\"access_token\":\"canary-token-1\",\"refresh_token\":\"canary-refresh\",\"expires_at\":1790000000,\"scope\":\"a b\",\"token_type\":\"Bearer\"}","metadata":{"v":3,"fp":"0123456789abcdef01234567","ep":1,"src":"canary-src","note":"canary-note"},"extra":"canary-extra"}"#;

    #[test]
    fn packed_facts_hold_no_secret_and_compare_like_the_originals() {
        let (keys, rules) = (Keys::new([1; 32], None), Rules::default());
        let scanned = scan(LINE.as_bytes()).unwrap();
        let mut scratch = Vec::new();
        let facts = Facts::read(LINE.as_bytes(), &scanned, &rules, &mut scratch).unwrap();
        let mut packed = Vec::new();
        pack(&facts, &keys, &mut packed);
        assert!(!String::from_utf8_lossy(&packed).contains("canary"));
        let back = unpack(&packed, None, true).unwrap();
        assert!(compare(&facts, &back, &rules, &keys).changes.is_empty());
        assert!(compare(&back, &facts, &rules, &keys).changes.is_empty());
        let mut again = Vec::new();
        pack(&back, &keys, &mut again);
        assert_eq!(again, packed);
        let other = LINE.replace("canary-token-1", "canary-token-2").replace("canary-note", "canary-tone");
        let scanned = scan(other.as_bytes()).unwrap();
        let mut scratch = Vec::new();
        let other = Facts::read(other.as_bytes(), &scanned, &rules, &mut scratch).unwrap();
        let changes: Vec<String> =
            compare(&back, &other, &rules, &keys).changes.iter().map(ToString::to_string).collect();
        assert_eq!(changes, ["token value.access_token", "metadata metadata.note"]);
    }

    #[test]
    fn secrets_in_the_place_of_names_are_not_kept_and_still_told_apart() {
        let (keys, rules) = (Keys::new([1; 32], None), Rules::default());
        let packed = |line: &str| {
            let (scanned, mut scratch, mut out) = (scan(line.as_bytes()).unwrap(), Vec::new(), Vec::new());
            pack(&Facts::read(line.as_bytes(), &scanned, &rules, &mut scratch).unwrap(), &keys, &mut out);
            out
        };
        let line = LINE.replace("a b", "a canary-token-1 ya29.canary-scope canary-refresh").replace(
            r#"\"token_type\":\"Bearer\""#,
            r#"\"token_type\":\"canary-refresh\",\"ya29.canary-name\":1,\"canary-token-1\":2,\"x\":3"#,
        );
        let (left, other) = (packed(&line), packed(&line.replace("canary-name", "canary-game")));
        assert!(!String::from_utf8_lossy(&left).contains("canary"), "{}", String::from_utf8_lossy(&left));
        let read = |packed: &[u8]| -> Vec<String> {
            let (left, right) = (unpack(&left, None, true).unwrap(), unpack(packed, None, true).unwrap());
            let mut again = Vec::new();
            pack(&right, &keys, &mut again);
            assert_eq!(again, packed);
            compare(&left, &right, &rules, &keys).changes.iter().map(ToString::to_string).collect()
        };
        assert!(read(&left).is_empty());
        assert_eq!(read(&other), ["field value.[hidden]", "field value.[hidden]"]);
        // The secret is the left one's only: the other side has it in clear.
        let right = packed(&line.replace(r#"\"access_token\":\"canary-token-1\""#, r#"\"access_token\":\"else\""#));
        let changes = read(&right);
        assert!(changes.contains(&"token value.access_token".to_owned()), "{changes:?}");
        assert!(!changes.iter().any(|change| change.contains("scope")), "{changes:?}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = unpack(&bytes, None, false);
        }
    }
}
