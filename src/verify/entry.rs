//! One entry of a side, as a line of JSON: where its parts stand.
//!
//! Every side, whatever it is, hands over its entries in this one form (see [`super::Side`]):
//!
//! ```json
//! {"key":"tokens:…","value":"…","metadata":{…},"expiration":1790000000}
//! ```
//!
//! `name` may stand for `key`, as in the answers of Cloudflare's list call. `value` is the text of
//! the value, or the value itself when that is an object; without one only the metadata speaks.
//! `base64: true` says that the text is base64, as in a bulk put. A side that knows more says it
//! in `fingerprint` (of the secret, under the installation's key), `identity` (keyed digests of the
//! upstream account, and the rule by which they are compared), `live` (a boolean), `status` and
//! `connection` (which one feeds the triplet); what only one side knows of these is no difference.
//! `custodian` says that the row tells how a credential is and does not show the entry: then only
//! what both sides know is compared. Any other member is compared too.

use std::borrow::Cow;
use std::fmt;

use super::json::{Cursor, JsonError, Span, Str, unescape};

/// The longest key that KV takes, in bytes.
pub const KEY_BYTES_MAX: usize = 512;

/// The largest entry that is read, in bytes. KV values have at most 25 MiB, which escaped as JSON
/// text may take twice the room.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What is wrong with an entry. Neither part ever repeats a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryError {
    /// Byte offset from the start of the entry.
    pub at: usize,
    /// The entry's key, when that much could be read.
    pub key: Option<Vec<u8>>,
    pub found: Cow<'static, str>,
    pub expected: &'static str,
}

impl EntryError {
    pub(super) fn new(at: usize, found: impl Into<Cow<'static, str>>, expected: &'static str) -> Self {
        Self { at, key: None, found: found.into(), expected }
    }
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "found {}, expected {}", self.found, self.expected)
    }
}

impl From<JsonError> for EntryError {
    fn from(error: JsonError) -> Self {
        Self::new(error.at, error.found, error.expected)
    }
}

/// Where the value of an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueSpan {
    /// None is given: the side only lists keys and metadata.
    Unlisted,
    Text(Str),
    Object(Span),
}

/// An entry whose JSON is sound, with the places of its parts.
#[derive(Clone, Debug)]
pub(super) struct Scanned {
    pub key: Str,
    pub value: ValueSpan,
    /// `null` counts as none.
    pub metadata: Option<Span>,
    /// KV's own expiry in Unix seconds.
    pub expiration: Option<i64>,
    pub base64: bool,
    pub others: Vec<(Str, Span)>,
}

impl Scanned {
    /// The key without its escapes.
    pub fn key<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        unescape(self.key.raw(line), self.key.escapes).expect("a scanned key was unescaped before")
    }
}

/// Finds the parts of an entry.
///
/// # Errors
/// When the line is not UTF-8, not one JSON object, has no usable key, gives a member twice, or
/// has a member of the wrong type. The error carries the key if that could be read.
pub(super) fn scan(line: &[u8]) -> Result<Scanned, EntryError> {
    let mut parts = Parts::default();
    let mut cursor = Cursor::new(line);
    let walked = cursor.object(|cursor, name| parts.member(cursor, name)).and_then(|()| {
        cursor.blanks();
        if cursor.at < line.len() { cursor.error("nothing after the entry") } else { Ok(()) }
    });
    let key = match parts.key {
        Some(key) => Some((key, checked_key(line, key)?)),
        None => None,
    };
    if !line.is_ascii()
        && let Err(error) = std::str::from_utf8(line)
    {
        let at = error.valid_up_to();
        let found = format!("byte 0x{:02X}, which is not UTF-8", line[at]);
        let key = key.filter(|(_, text)| std::str::from_utf8(text).is_ok()).map(|(_, text)| text.into_owned());
        return Err(EntryError { key, ..EntryError::new(at, found, "UTF-8 text") });
    }
    let with_key = |mut error: EntryError| {
        error.key = key.as_ref().map(|(_, text)| text.clone().into_owned());
        error
    };
    if let Err(error) = walked {
        return Err(with_key(error.into()));
    }
    let Some((key, _)) = key else {
        return Err(EntryError::new(0, "an entry without a key", "a member `key` or `name`"));
    };
    let Parts { key: _, value, metadata, expiration, base64, others } = parts;
    let value = value.unwrap_or(ValueSpan::Unlisted);
    Ok(Scanned {
        key,
        value,
        metadata: metadata.flatten(),
        expiration: expiration.flatten(),
        base64: base64.unwrap_or(false),
        others,
    })
}

fn checked_key(line: &[u8], key: Str) -> Result<Cow<'_, [u8]>, EntryError> {
    let at = key.start as usize;
    let Some(text) = unescape(key.raw(line), key.escapes) else {
        return Err(EntryError::new(at, "half of a surrogate pair in the key", "a key of whole characters"));
    };
    if text.is_empty() || text.len() > KEY_BYTES_MAX {
        let found = format!("a key of {} bytes", text.len());
        return Err(EntryError::new(at, found, "1 to 512 bytes"));
    }
    Ok(text)
}

#[derive(Default)]
struct Parts {
    key: Option<Str>,
    value: Option<ValueSpan>,
    metadata: Option<Option<Span>>,
    expiration: Option<Option<i64>>,
    base64: Option<bool>,
    others: Vec<(Str, Span)>,
}

impl Parts {
    fn member(&mut self, cursor: &mut Cursor<'_>, name: Str) -> Result<(), JsonError> {
        let at = cursor.at;
        let first = cursor.peek();
        let bytes = cursor.bytes;
        let wrong = |expected| Err(JsonError { at, found: super::json::kind(first), expected });
        // An escaped name is none of ours: nobody writes `\u006bey`.
        match name.raw(bytes) {
            b"key" | b"name" => {
                if first != Some(b'"') {
                    return wrong("a string as the key");
                }
                once(&mut self.key, cursor.string()?, at)
            }
            b"value" => {
                let value = match first {
                    Some(b'"') => ValueSpan::Text(cursor.string()?),
                    Some(b'{') => ValueSpan::Object(cursor.value()?),
                    Some(b'n') => {
                        cursor.value()?;
                        ValueSpan::Unlisted
                    }
                    _ => return wrong("a string or an object as the value"),
                };
                once(&mut self.value, value, at)
            }
            b"metadata" => {
                let span = cursor.value()?;
                once(&mut self.metadata, (first != Some(b'n')).then_some(span), at)
            }
            b"expiration" => {
                let text = cursor.value()?.of(bytes);
                let seconds = match first {
                    Some(b'n') => None,
                    _ => match std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()) {
                        Some(seconds) => Some(seconds),
                        None => return wrong("whole Unix seconds as the expiration"),
                    },
                };
                once(&mut self.expiration, seconds, at)
            }
            b"base64" => {
                let flag = match cursor.value()?.of(bytes) {
                    b"true" => true,
                    b"false" => false,
                    _ => return wrong("true or false"),
                };
                once(&mut self.base64, flag, at)
            }
            raw => {
                let span = cursor.value()?;
                if self.others.iter().any(|(other, _)| other.raw(bytes) == raw) {
                    return Err(JsonError { at, found: "a member that is given twice", expected: "each member once" });
                }
                self.others.push((name, span));
                Ok(())
            }
        }
    }
}

fn once<T>(place: &mut Option<T>, value: T, at: usize) -> Result<(), JsonError> {
    if place.is_some() {
        return Err(JsonError { at, found: "a member that is given twice", expected: "each member once" });
    }
    *place = Some(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(line: &str) -> String {
        let error = scan(line.as_bytes()).unwrap_err();
        format!("{} {error}", error.at)
    }

    #[test]
    fn parts_are_found_in_any_order_and_under_both_names() {
        let line = br#" {"expiration":17, "metadata":null ,"value":"v\"","name":"a\u003ab","extra":[1]} "#;
        let scanned = scan(line).unwrap();
        assert_eq!(scanned.key(line).as_ref(), b"a:b");
        assert_eq!((scanned.expiration, scanned.metadata, scanned.others.len()), (Some(17), None, 1));
    }

    #[test]
    fn errors_tell_the_place_and_what_was_expected() {
        assert_eq!(error(r#"{"value":"x"}"#), "0 found an entry without a key, expected a member `key` or `name`");
        assert_eq!(error(r#"{"key":7}"#), "7 found a number, expected a string as the key");
        assert_eq!(error(r#"{"key":"a","value":7}"#), "19 found a number, expected a string or an object as the value");
        assert_eq!(
            error(r#"{"key":"a","key":"b"}"#),
            "17 found a member that is given twice, expected each member once"
        );
        assert_eq!(error(r#"{"key":"a","value":"x"#), "21 found the end, expected the end of the string");
        assert_eq!(
            error(r#"{"key":"\ud800"}"#),
            "8 found half of a surrogate pair in the key, expected a key of whole characters"
        );
        assert_eq!(error(r#"{"key":"a"} {"#), "12 found an object, expected nothing after the entry");
    }

    #[test]
    fn a_broken_entry_still_tells_its_key() {
        let error = scan(br#"{"key":"tokens:a:b:c","value":[]}"#).unwrap_err();
        assert_eq!(error.key.as_deref(), Some(&b"tokens:a:b:c"[..]));
        let error = scan(b"{\"key\":\"tokens:a:b:c\",\"value\":\"\xE4\"}").unwrap_err();
        assert_eq!((error.at, error.key.as_deref()), (31, Some(&b"tokens:a:b:c"[..])));
        assert_eq!(scan(b"{\"key\":\"tokens:\xE4\",\"value\":\"\"}").unwrap_err().key, None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = scan(&bytes);
        }

        #[test]
        fn nearly_entries_never_panic(text in r#"[{}\[\]":,\\a-z0 ]{0,8}"(key|name|value|metadata|expiration|base64)":[{}\[\]":,\\ud0-9a-z ]{0,20}"#) {
            let _ = scan(text.as_bytes());
        }
    }
}
