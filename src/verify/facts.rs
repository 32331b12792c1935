//! What an entry says, in the terms in which two entries are compared.

use std::borrow::Cow;

use super::entry::{EntryError, Scanned, ValueSpan};
use super::json::{Cursor, Str, unescape, unescape_into};
use super::mask::{holds_mask, is_masked};
use super::rules::{Place, Rules};
use crate::domain::secret::Fingerprint;
use crate::domain::time::Timestamp;
use crate::domain::triplet::KV_PREFIX;

/// Something that must not leave memory as it is: in clear, or already as its keyed digest.
#[derive(Clone)]
pub(super) enum Hidden<'a> {
    Clear(Cow<'a, [u8]>),
    Digest([u8; 16]),
}

/// What an entry says about its secret.
#[derive(Clone)]
pub(super) enum SecretFact<'a> {
    /// The side does not give values.
    Unlisted,
    /// The value is an object without a token.
    Absent,
    /// An API has hidden it.
    Masked,
    Token(Hidden<'a>),
    /// The value is no JSON object; all of it may be secret.
    Opaque(Hidden<'a>),
    /// Only its fingerprint under the installation's key.
    Fingerprint(Fingerprint),
}

/// A field that is compared by its JSON.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub place: Place,
    pub name: Cow<'a, [u8]>,
    pub content: Hidden<'a>,
}

impl Field<'_> {
    pub fn borrowed(&self) -> Field<'_> {
        let content = match &self.content {
            Hidden::Clear(text) => Hidden::Clear(Cow::Borrowed(text)),
            Hidden::Digest(digest) => Hidden::Digest(*digest),
        };
        Field { place: self.place, name: Cow::Borrowed(&self.name), content }
    }

    pub fn owned(&self) -> Field<'static> {
        let content = match &self.content {
            Hidden::Clear(text) => Hidden::Clear(Cow::Owned(text.to_vec())),
            Hidden::Digest(digest) => Hidden::Digest(*digest),
        };
        Field { place: self.place, name: Cow::Owned(self.name.to_vec()), content }
    }
}

/// Everything that is compared of one entry.
#[derive(Clone)]
pub(super) struct Facts<'a> {
    pub secret: SecretFact<'a>,
    pub expires_at: Option<Timestamp>,
    pub token_type: Option<Cow<'a, [u8]>>,
    pub scope: Option<Cow<'a, [u8]>>,
    /// KV's own expiry, Unix seconds.
    pub expiration: Option<i64>,
    /// When the entry was written, if it says so.
    pub written_at: Option<Timestamp>,
    /// The metadata has the form that only our writers give it.
    pub ours: bool,
    /// Sorted by place and name; each once.
    pub fields: Vec<Field<'a>>,
    /// The fields of the value, beside its token, in which an API has hidden something. They are none
    /// of the others.
    pub masked: Vec<Cow<'a, [u8]>>,
}

impl<'a> Facts<'a> {
    /// Reads the facts of a scanned entry. `scratch` holds the value without its escapes.
    ///
    /// # Errors
    /// When the value of a `tokens:` key is not a token entry, a field has the wrong type or is
    /// given twice. The error names the field and never repeats a value.
    pub fn read(
        line: &'a [u8],
        scanned: &Scanned,
        rules: &Rules,
        scratch: &'a mut Vec<u8>,
    ) -> Result<Self, EntryError> {
        let key = scanned.key(line);
        Self::read_with(line, scanned, key.starts_with(KV_PREFIX.as_bytes()), rules, scratch).map_err(|mut error| {
            error.key = Some(key.into_owned());
            error
        })
    }

    fn read_with(
        line: &'a [u8],
        scanned: &Scanned,
        is_token_key: bool,
        rules: &Rules,
        scratch: &'a mut Vec<u8>,
    ) -> Result<Self, EntryError> {
        let mut facts = Facts {
            secret: SecretFact::Unlisted,
            expires_at: None,
            token_type: None,
            scope: None,
            expiration: scanned.expiration,
            written_at: None,
            ours: false,
            fields: Vec::with_capacity(8),
            masked: Vec::new(),
        };
        let at = match scanned.value {
            ValueSpan::Unlisted => 0,
            ValueSpan::Text(text) => {
                let raw = text.raw(line);
                scratch.clear();
                unescape_into(raw, scratch).ok_or_else(|| {
                    EntryError::new(text.start as usize, "half of a surrogate pair in the value", "whole characters")
                })?;
                if scanned.base64 {
                    *scratch = decode_base64(scratch).ok_or_else(|| {
                        EntryError::new(text.start as usize, "text that is not base64", "base64 as `base64` says")
                    })?;
                }
                facts.value(scratch, is_token_key, rules).map_err(|e| e.moved_to(text.start as usize))?;
                text.start as usize
            }
            ValueSpan::Object(span) => {
                facts.value(span.of(line), is_token_key, rules).map_err(|e| e.moved_to(span.start as usize))?;
                span.start as usize
            }
        };
        if let Some(span) = scanned.metadata {
            facts.metadata(span.of(line), rules).map_err(|e| e.moved_to(span.start as usize))?;
        }
        for (name, span) in &scanned.others {
            facts.other(*name, span.of(line), line, rules).map_err(|e| e.moved_to(span.start as usize))?;
        }
        facts.fields.sort_unstable_by(|a, b| (a.place, &a.name).cmp(&(b.place, &b.name)));
        facts.masked.sort_unstable();
        let twice = facts
            .fields
            .windows(2)
            .any(|pair| (pair[0].place, &pair[0].name) == (pair[1].place, &pair[1].name))
            || facts.masked.windows(2).any(|pair| pair[0] == pair[1])
            || facts.masked.iter().any(|name| facts.fields.iter().any(|f| f.place == Place::Value && f.name == *name));
        if twice {
            return Err(EntryError::new(at, "a field that is given twice", "each field once"));
        }
        Ok(facts)
    }

    /// Reads the value: an object with a token, another object, or anything else.
    fn value(&mut self, bytes: &'a [u8], is_token_key: bool, rules: &Rules) -> Result<(), EntryError> {
        let mut cursor = Cursor::new(bytes);
        cursor.blanks();
        let not_a_token = |at, found| EntryError::new(at, found, "a token entry, a JSON object with `access_token`");
        if cursor.peek() != Some(b'{') {
            if !bytes.is_empty() && (is_masked(bytes) || holds_mask(bytes)) {
                self.secret = SecretFact::Masked;
                return Ok(());
            }
            if is_token_key {
                return Err(not_a_token(0, super::json::kind(cursor.peek())));
            }
            self.secret = SecretFact::Opaque(Hidden::Clear(Cow::Borrowed(bytes)));
            return Ok(());
        }
        let mut wrong: Option<EntryError> = None;
        let mut seen = [false; 4];
        let walked = cursor.object(|cursor, name| {
            let at = cursor.at;
            let span = cursor.value()?;
            if let Err(error) = self.value_member(name, span.of(bytes), bytes, &mut seen, rules) {
                wrong.get_or_insert(EntryError { at, ..error });
            }
            Ok(())
        });
        cursor.blanks();
        let walked = walked.map_err(|_| "an object that breaks off or is no JSON");
        let whole = if cursor.at < bytes.len() { Err("text after the object") } else { Ok(()) };
        match (walked.and(whole), wrong) {
            (Ok(()), None) => {}
            (Ok(()), Some(error)) => return Err(error),
            (Err(found), _) if is_token_key => return Err(not_a_token(cursor.at, found)),
            // Under another key, what only looks like an object is as good as any text.
            (Err(_), _) => {
                self.fields.clear();
                self.masked.clear();
                (self.expires_at, self.token_type, self.scope, self.written_at) = (None, None, None, None);
                self.secret = SecretFact::Opaque(Hidden::Clear(Cow::Borrowed(bytes)));
                return Ok(());
            }
        }
        if matches!(self.secret, SecretFact::Unlisted) {
            if is_token_key {
                return Err(not_a_token(0, "an object without `access_token`"));
            }
            self.secret = SecretFact::Absent;
        }
        Ok(())
    }

    fn value_member(
        &mut self,
        name: Str,
        value: &'a [u8],
        bytes: &'a [u8],
        seen: &mut [bool; 4],
        rules: &Rules,
    ) -> Result<(), EntryError> {
        let mut once = |n: usize| {
            if std::mem::replace(&mut seen[n], true) {
                return Err(EntryError::new(0, "a field that is given twice", "each field once"));
            }
            Ok(())
        };
        match name.raw(bytes) {
            b"access_token" => {
                once(0)?;
                let token = text(value)
                    .filter(|t| !t.is_empty())
                    .ok_or_else(|| wrong_type(value, "a non-empty string as `access_token`"))?;
                self.secret =
                    if is_masked(&token) { SecretFact::Masked } else { SecretFact::Token(Hidden::Clear(token)) };
            }
            b"expires_at" => {
                once(1)?;
                self.expires_at = match value.first() {
                    Some(b'n') => None,
                    _ => Some(moment(value).ok_or_else(|| wrong_type(value, "a time as `expires_at`"))?),
                };
            }
            b"token_type" if rules.ignores(Place::Value, b"token_type") => {}
            b"token_type" => {
                once(2)?;
                self.token_type = self.text_of(b"token_type", value, "a string as `token_type`")?;
            }
            b"scope" if rules.ignores(Place::Value, b"scope") => {}
            b"scope" => {
                once(3)?;
                self.scope = self.text_of(b"scope", value, "a string as `scope`")?;
            }
            _ => self.field(Place::Value, name, value, bytes, rules)?,
        }
        Ok(())
    }

    /// A text of the value, or nothing when it is masked.
    fn text_of(
        &mut self,
        name: &'static [u8],
        value: &'a [u8],
        expected: &'static str,
    ) -> Result<Option<Cow<'a, [u8]>>, EntryError> {
        let text = optional_text(value, expected)?;
        if !holds_mask(value) {
            return Ok(text);
        }
        self.masked.push(Cow::Borrowed(name));
        Ok(None)
    }

    fn metadata(&mut self, value: &'a [u8], rules: &Rules) -> Result<(), EntryError> {
        if value.first() != Some(&b'{') {
            let content = Hidden::Clear(Cow::Borrowed(value));
            self.fields.push(Field { place: Place::Metadata, name: Cow::Borrowed(b""), content });
            return Ok(());
        }
        // One bit for each member that our writers always give, one for what they never write.
        let (mut given, mut odd) = (0u8, false);
        let mut wrong = None;
        let mut cursor = Cursor::new(value);
        cursor.object(|cursor, name| {
            let member = cursor.value()?.of(value);
            let bit = match name.raw(value) {
                b"v" => u8::from(is_whole(member)),
                b"ep" => u8::from(is_whole(member)) << 1,
                b"fp" => u8::from(print(member).is_some()) << 2,
                b"src" => u8::from(is_writer(member)) << 3,
                b"exp" => {
                    odd |= seconds(member).is_none();
                    0
                }
                _ => 0,
            };
            given |= bit;
            if let Err(error) = self.field(Place::Metadata, name, member, value, rules) {
                wrong.get_or_insert(error);
            }
            Ok(())
        })?;
        self.ours = given == 0b1111 && !odd;
        wrong.map_or(Ok(()), Err)
    }

    /// A member of the entry itself that is neither key, value, metadata nor expiration.
    fn other(&mut self, name: Str, value: &'a [u8], line: &'a [u8], rules: &Rules) -> Result<(), EntryError> {
        if name.raw(line) == b"fingerprint" {
            let fp = fingerprint(value).ok_or_else(|| wrong_type(value, "24 hex digits as `fingerprint`"))?;
            if matches!(self.secret, SecretFact::Unlisted | SecretFact::Masked) {
                self.secret = SecretFact::Fingerprint(fp);
            }
            return Ok(());
        }
        self.field(Place::Entry, name, value, line, rules)
    }

    fn field(
        &mut self,
        place: Place,
        name: Str,
        value: &'a [u8],
        bytes: &'a [u8],
        rules: &Rules,
    ) -> Result<(), EntryError> {
        let name = unescape(name.raw(bytes), name.escapes)
            .ok_or_else(|| EntryError::new(0, "half of a surrogate pair in a name", "whole characters"))?;
        if name.as_ref() == b"written_at" {
            self.written_at = self.written_at.max(moment(value));
        }
        if rules.ignores(place, &name) {
            return Ok(());
        }
        if place == Place::Value && holds_mask(value) {
            self.masked.push(name);
        } else {
            self.fields.push(Field { place, name, content: Hidden::Clear(Cow::Borrowed(value)) });
        }
        Ok(())
    }

    /// Whether a custodian tells this: it says how a credential is, and does not show the entry. One
    /// that shows its secret is no custodian, whatever it calls itself.
    pub fn is_custodian(&self) -> bool {
        matches!(self.secret, SecretFact::Unlisted | SecretFact::Masked)
            && self.find(Place::Entry, "custodian").is_some()
    }

    /// Whether the value has this field, in clear or masked.
    pub fn gives(&self, name: &[u8]) -> bool {
        let text = match name {
            b"scope" => self.scope.is_some(),
            b"token_type" => self.token_type.is_some(),
            _ => self.fields.iter().any(|field| field.place == Place::Value && field.name.as_ref() == name),
        };
        text || self.is_masked(name)
    }

    /// Whether something in this field of the value is masked.
    pub fn is_masked(&self, name: &[u8]) -> bool {
        self.masked.iter().any(|masked| masked.as_ref() == name)
    }

    pub fn find(&self, place: Place, name: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|field| field.place == place && field.name.as_ref() == name.as_bytes())
    }
}

impl EntryError {
    fn moved_to(mut self, start: usize) -> Self {
        // Inside a text the offset counts characters without escapes, so only its start is certain.
        self.at = start;
        self
    }
}

fn wrong_type(value: &[u8], expected: &'static str) -> EntryError {
    let found = match value {
        b"\"\"" => "an empty string",
        _ => super::json::kind(value.first().copied()),
    };
    EntryError::new(0, found, expected)
}

/// The meaning of a JSON string; `None` when the value is none or holds half a character.
pub(super) fn text(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut cursor = Cursor::new(value);
    let string = cursor.string().ok()?;
    unescape(string.raw(value), string.escapes)
}

fn optional_text<'a>(value: &'a [u8], expected: &'static str) -> Result<Option<Cow<'a, [u8]>>, EntryError> {
    match value.first() {
        Some(b'n') => Ok(None),
        _ => text(value).map(Some).ok_or_else(|| wrong_type(value, expected)),
    }
}

fn is_whole(value: &[u8]) -> bool {
    !value.is_empty() && value.len() <= 20 && value.iter().all(u8::is_ascii_digit)
}

/// A fingerprint as JSON, checked but not decoded.
pub(super) fn print(value: &[u8]) -> Option<&[u8]> {
    let inside = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    // Without an early end the loop compiles to vector instructions.
    let odd = inside.iter().filter(|b| !b.is_ascii_hexdigit()).count();
    (inside.len() == 24 && odd == 0).then_some(inside)
}

fn is_writer(value: &[u8]) -> bool {
    matches!(value, b"\"nango\"" | b"\"composio\"" | b"\"do-alarm\"")
}

/// A fingerprint as JSON.
pub(super) fn fingerprint(value: &[u8]) -> Option<Fingerprint> {
    Fingerprint::parse(std::str::from_utf8(print(value)?).ok()?)
}

/// A whole number as JSON.
pub(super) fn seconds(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// A time as JSON: RFC 3339 text, or seconds (milliseconds from 10^11 on, as in a KV entry).
pub(super) fn moment(value: &[u8]) -> Option<Timestamp> {
    match value.first()? {
        b'"' => time(&text(value)?),
        _ => {
            let n = seconds(value)?;
            Some(if n < 100_000_000_000 {
                Timestamp::from_millis(n.checked_mul(1000)?)
            } else {
                Timestamp::from_millis(n)
            })
        }
    }
}

/// A time as plain text.
pub(super) fn time(text: &[u8]) -> Option<Timestamp> {
    plain_utc(text).or_else(|| Timestamp::parse(std::str::from_utf8(text).ok()?).ok())
}

/// The one form in which nearly all times come, `2026-05-06T09:00:00Z` with or without three
/// digits of fraction; days past the 28th and everything else are left to the general parser.
fn plain_utc(text: &[u8]) -> Option<Timestamp> {
    let ms = match text.len() {
        20 => 0,
        24 if text[19] == b'.' => digits(&text[20..23])?,
        _ => return None,
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (text.len() - 1, b'Z')];
    if marks.iter().any(|(at, mark)| text[*at] != *mark) {
        return None;
    }
    let (year, month, day) = (digits(&text[..4])?, digits(&text[5..7])?, digits(&text[8..10])?);
    let (hour, minute, second) = (digits(&text[11..13])?, digits(&text[14..16])?, digits(&text[17..19])?);
    if year < 1600 || !(1..=12).contains(&month) || !(1..=28).contains(&day) || hour > 23 || minute > 59 || second > 59
    {
        return None;
    }
    // Days from 0000-03-01 in years that start in March, so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(Timestamp::from_millis(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + ms))
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::entry::scan;
    use super::*;

    fn facts<T>(line: &str, look: impl FnOnce(Result<Facts<'_>, EntryError>) -> T) -> T {
        let scanned = scan(line.as_bytes()).unwrap();
        let mut scratch = Vec::new();
        look(Facts::read(line.as_bytes(), &scanned, &Rules::default(), &mut scratch))
    }

    fn error(line: &str) -> String {
        facts(line, |f| f.err().unwrap().to_string())
    }

    #[test]
    fn a_token_entry_is_read_as_the_gateway_reads_it() {
        let line = r#"{"key":"tokens:a:b:c","value":"{\"access_token\":\"at\\u002d1\",\"expires_at\":1790000000,\"scope\":\"a b\",\"x\":[1]}","metadata":{"v":3,"fp":"0123456789abcdef01234567","ep":1,"src":"nango","written_at":1790000000}}"#;
        facts(line, |facts| {
            let facts = facts.unwrap();
            assert!(matches!(&facts.secret, SecretFact::Token(Hidden::Clear(t)) if t.as_ref() == b"at-1"));
            assert_eq!(facts.expires_at, Some(Timestamp::from_secs(1_790_000_000)));
            assert_eq!(facts.written_at, Some(Timestamp::from_secs(1_790_000_000)));
            let names: Vec<_> = facts.fields.iter().map(|f| String::from_utf8_lossy(&f.name).into_owned()).collect();
            assert!(facts.ours);
            assert_eq!(names, ["x", "ep", "fp", "v"]);
        });
    }

    #[test]
    fn what_is_wrong_names_the_field_and_never_the_value() {
        let value = |v: &str| error(&format!(r#"{{"key":"tokens:a:b:c","value":{}}}"#, serde_json::Value::from(v)));
        assert_eq!(value("[]"), "found an array, expected a token entry, a JSON object with `access_token`");
        assert_eq!(value(r#"{"access_token":7}"#), "found a number, expected a non-empty string as `access_token`");
        assert_eq!(
            value(r#"{"access_token":"c","expires_at":"soon c"}"#),
            "found a string, expected a time as `expires_at`"
        );
        assert_eq!(
            value(r#"{"access_token":"a","x":1,"x":2}"#),
            "found a field that is given twice, expected each field once"
        );
        assert_eq!(
            value(r#"{"access_token":"a""#),
            "found an object that breaks off or is no JSON, expected a token entry, a JSON object with `access_token`"
        );
    }

    #[test]
    fn other_keys_may_hold_anything() {
        let secret = |v: &str| {
            let line = format!(r#"{{"key":"authority:a:b:c","value":{}}}"#, serde_json::Value::from(v));
            facts(&line, |f| match f.unwrap().secret {
                SecretFact::Opaque(_) => "opaque",
                SecretFact::Absent => "absent",
                SecretFact::Masked => "masked",
                _ => "other",
            })
        };
        assert_eq!(secret(r#"{"read":"source","epoch":7}"#), "absent");
        assert_eq!(secret("plain text"), "opaque");
        assert_eq!(secret(r#"{"read":"#), "opaque");
        assert_eq!(secret("REDACTED"), "masked");
    }

    proptest! {
        #[test]
        fn the_quick_time_parser_agrees_with_the_general_one(ms in 0i64..4_102_444_800_000) {
            let text = Timestamp::from_millis(ms).to_rfc3339();
            if let Some(at) = plain_utc(text.as_bytes()) {
                prop_assert_eq!(at.millis(), ms);
            }
            prop_assert_eq!(moment(format!("\"{text}\"").as_bytes()), Some(Timestamp::from_millis(ms)));
        }
    }
}
