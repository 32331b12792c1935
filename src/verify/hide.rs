//! Secrets in places that hold names: as the name of a field, among the scopes, as the token's type.
//!
//! Names are shown to people and stand in the partitions as they are, so one that looks like a secret,
//! or is one of its entry, is hidden: from people altogether, on disk behind a digest under the key of the
//! run, so that two of them can still be told apart.

use std::borrow::Cow;

use super::compare::Keys;
use super::facts::{Facts, Hidden, SecretFact};
use super::finding::shown;
use super::json::write_string;
use super::rules::Place;
use crate::domain::secret::{hex, looks_like_secret};

/// What is shown in the place of a secret; on disk a digest follows.
pub(super) const HIDDEN: &str = "[hidden]";

/// Texts of other fields are held against names from this length on: shorter ones are words.
const TEXT_BYTES_MIN: usize = 8;

/// What may stand on disk for a text that is hidden.
pub(super) fn marker(text: &[u8], keys: &Keys) -> Vec<u8> {
    if is_marker(text) { text.to_vec() } else { [HIDDEN.as_bytes(), hex(&keys.digest(text)).as_bytes()].concat() }
}

pub(super) fn is_marker(text: &[u8]) -> bool {
    let digest = text.strip_prefix(HIDDEN.as_bytes());
    digest.is_some_and(|digest| digest.len() == 32 && digest.iter().all(u8::is_ascii_hexdigit))
}

/// Whether a text among the names of an entry is a secret: it looks like one, or is one of the entry's.
fn is_secret(text: &[u8], facts: &Facts<'_>, keys: &Keys) -> bool {
    let token = match &facts.secret {
        SecretFact::Token(Hidden::Clear(token)) => token.as_ref() == text,
        SecretFact::Token(Hidden::Digest(digest)) => *digest == keys.digest(text),
        _ => false,
    };
    token || looks_like_secret(text) || (text.len() >= TEXT_BYTES_MIN && is_text_of(text, facts, keys))
}

/// Whether a field of the value holds exactly this text.
fn is_text_of(text: &[u8], facts: &Facts<'_>, keys: &Keys) -> bool {
    facts.fields.iter().filter(|field| field.place == Place::Value).any(|field| match &field.content {
        Hidden::Clear(value) => super::facts::text(value).is_some_and(|held| held.as_ref() == text),
        Hidden::Digest(digest) => {
            let mut quoted = Vec::new();
            write_string(text, &mut quoted);
            *digest == keys.digest_json(&quoted)
        }
    })
}

/// A name as it may be kept on disk.
pub(super) fn kept_name<'a>(name: &'a [u8], facts: &Facts<'_>, keys: &Keys) -> Cow<'a, [u8]> {
    let is_token = matches!(&facts.secret, SecretFact::Token(Hidden::Clear(token)) if token.as_ref() == name);
    if is_token || looks_like_secret(name) { Cow::Owned(marker(name, keys)) } else { Cow::Borrowed(name) }
}

/// The type of a token as it may be kept on disk: a word, or hidden.
pub(super) fn kept_type<'a>(kind: &'a [u8], facts: &Facts<'_>, keys: &Keys) -> Cow<'a, [u8]> {
    if is_word(kind) && !is_secret(kind, facts, keys) {
        Cow::Borrowed(kind)
    } else {
        Cow::Owned(marker(&kind.to_ascii_lowercase(), keys))
    }
}

/// Whether a type of tokens is plainly none itself.
pub(super) fn is_word(kind: &[u8]) -> bool {
    kind.len() <= 16 && kind.iter().all(u8::is_ascii_alphabetic)
}

/// Scopes as they may be kept on disk.
pub(super) fn kept_scope<'a>(scope: &'a [u8], facts: &Facts<'_>, keys: &Keys) -> Cow<'a, [u8]> {
    if !scopes(scope).any(|item| is_secret(item, facts, keys)) {
        return Cow::Borrowed(scope);
    }
    let kept = scopes(scope).map(|item| match is_secret(item, facts, keys) {
        true => marker(item, keys),
        false => item.to_vec(),
    });
    Cow::Owned(kept.collect::<Vec<_>>().join(&b' '))
}

/// OAuth scopes; spaces (RFC 6749) and commas (several providers) separate them.
pub(super) fn scopes(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| matches!(b, b' ' | b',')).filter(|item| !item.is_empty())
}

/// What people may see of two entries of one key, and of each the secrets that it must not show.
pub(super) struct Curtain<'a> {
    pub sides: &'a [&'a Facts<'a>],
    pub keys: &'a Keys,
}

impl Curtain<'_> {
    /// A name or scope for a person.
    pub fn shown(&self, text: &[u8]) -> String {
        let hides = is_marker(text) || self.sides.iter().any(|facts| is_secret(text, facts, self.keys));
        if hides { HIDDEN.to_owned() } else { shown(text) }
    }

    /// A field of an entry for a person.
    pub fn field(&self, place: Place, name: &[u8]) -> String {
        let place = place.as_str();
        if name.is_empty() { place.to_owned() } else { format!("{place}.{}", self.shown(name)) }
    }
}
