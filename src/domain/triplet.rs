//! `{tenant}:{provider}:{account}`, the identity of one token, and the ids derived from it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The prefix of every token key in KV (ADR-038).
pub const KV_PREFIX: &str = "tokens:";

/// The prefix of the keys that say that a grant is gone and its user must connect again.
pub const REAUTH_PREFIX: &str = "reauth:";

/// The longest part of a triplet in bytes. KV keys are at most 512 bytes and Nango ids 255.
pub const PART_BYTES_MAX: usize = 64;

/// One part of a triplet: 1 to 64 bytes of `a-z A-Z 0-9 _ - .`, without `__` and without a
/// leading or trailing `_`, so that joining three parts with `__` or `:` can be undone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part(Box<str>);

impl Part {
    /// # Errors
    /// When the text is empty, too long, or holds something that would make the joined id ambiguous.
    pub fn new(text: &str) -> Result<Self, PartError> {
        if text.is_empty() {
            return Err(PartError::Empty);
        }
        if text.len() > PART_BYTES_MAX {
            return Err(PartError::TooLong { bytes: text.len() });
        }
        if let Some(c) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))) {
            return Err(PartError::Character { found: c });
        }
        if text.contains("__") || text.starts_with('_') || text.ends_with('_') {
            return Err(PartError::Underscores);
        }
        if text == "." || text == ".." {
            return Err(PartError::Dots);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// Why a text cannot be a part of a triplet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    #[error("it is empty")]
    Empty,
    #[error("it has {bytes} bytes and at most {PART_BYTES_MAX} are allowed")]
    TooLong { bytes: usize },
    #[error("`{}` (U+{:04X}) is not allowed, only a-z A-Z 0-9 _ - and .", found.escape_debug(), *found as u32)]
    Character { found: char },
    #[error("`__`, or `_` at either end, would make the joined id ambiguous")]
    Underscores,
    #[error("`.` and `..` cannot be keys")]
    Dots,
}

/// The identity of one token: tenant, V5 provider, account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Triplet {
    pub tenant: Part,
    pub provider: Part,
    pub account: Part,
}

impl Triplet {
    pub fn new(tenant: Part, provider: Part, account: Part) -> Self {
        Self { tenant, provider, account }
    }

    /// Reads `{tenant}:{provider}:{account}`.
    ///
    /// # Errors
    /// When there are not exactly three parts or one of them is not a [`Part`].
    pub fn parse(text: &str) -> Result<Self, TripletError> {
        let parts = split_exactly_three(text, ":")?;
        Ok(Self { tenant: part(text, parts[0])?, provider: part(text, parts[1])?, account: part(text, parts[2])? })
    }

    /// Reads a KV key `tokens:{tenant}:{provider}:{account}`.
    ///
    /// # Errors
    /// When the prefix is missing or the rest is not a triplet.
    pub fn from_kv_key(key: &str) -> Result<Self, TripletError> {
        let rest = key.strip_prefix(KV_PREFIX).ok_or_else(|| TripletError::Prefix { text: shown(key) })?;
        Self::parse(rest)
    }

    /// `tokens:{tenant}:{provider}:{account}`, the key that the gateway's hot path reads.
    pub fn kv_key(&self) -> String {
        format!("{KV_PREFIX}{self}")
    }

    /// `reauth:{tenant}:{provider}:{account}`, the key of the marker that the grant is gone.
    pub fn reauth_key(&self) -> String {
        format!("{REAUTH_PREFIX}{self}")
    }
}

impl fmt::Display for Triplet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.tenant, self.provider, self.account)
    }
}

impl Serialize for Triplet {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Triplet {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// A Nango connection id that follows the convention `{tenant}__{key}__{account}` (ADR-038).
/// The middle part is the integration key, which is not always the V5 provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConventionalId {
    pub tenant: Part,
    pub integration_key: Part,
    pub account: Part,
}

impl ConventionalId {
    /// # Errors
    /// When splitting at `__` does not give exactly three valid parts. `a__b__c__d` is refused
    /// by name: nobody can tell which part holds the extra `__`.
    pub fn parse(text: &str) -> Result<Self, TripletError> {
        let parts = split_exactly_three(text, "__")?;
        Ok(Self {
            tenant: part(text, parts[0])?,
            integration_key: part(text, parts[1])?,
            account: part(text, parts[2])?,
        })
    }
}

impl fmt::Display for ConventionalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}__{}__{}", self.tenant, self.integration_key, self.account)
    }
}

/// Why a text is not a triplet or not a conventional id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TripletError {
    #[error("`{text}` has {found} parts between `{separator}` and exactly three are needed")]
    Parts { text: String, separator: &'static str, found: usize },
    #[error("part `{part}` of `{text}` is not usable: {reason}")]
    Part { text: String, part: String, reason: PartError },
    #[error("`{text}` does not start with `{KV_PREFIX}`")]
    Prefix { text: String },
}

fn split_exactly_three<'a>(text: &'a str, separator: &'static str) -> Result<[&'a str; 3], TripletError> {
    let parts: Vec<&str> = text.split(separator).collect();
    <[&str; 3]>::try_from(parts).map_err(|parts| TripletError::Parts {
        text: shown(text),
        separator,
        found: parts.len(),
    })
}

fn part(whole: &str, text: &str) -> Result<Part, TripletError> {
    Part::new(text).map_err(|reason| TripletError::Part { text: shown(whole), part: shown(text), reason })
}

/// At most 80 characters of foreign text, with control characters escaped, for messages.
fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_triplet_reads_back_from_its_kv_key() {
        let t = Triplet::parse("kahuna:google_ads:default").unwrap();
        assert_eq!(t.kv_key(), "tokens:kahuna:google_ads:default");
        assert_eq!(Triplet::from_kv_key(&t.kv_key()).unwrap(), t);
    }

    #[test]
    fn ambiguous_connection_ids_are_refused_by_name() {
        for id in ["a__b", "a__b__c__d", "a____c", "a___b__c", "__a__b", "kahuna:google:default"] {
            let error = ConventionalId::parse(id).unwrap_err().to_string();
            assert!(error.contains(id), "{error}");
        }
        let id = ConventionalId::parse("kahuna__microsoft-ads__default").unwrap();
        assert_eq!(id.integration_key.as_str(), "microsoft-ads");
    }

    #[test]
    fn homoglyphs_and_separators_are_not_parts() {
        for bad in ["", "kаhuna", "a:b", "a/b", "a b", "_a", "a_", "..", &"x".repeat(65)] {
            assert!(Part::new(bad).is_err(), "{bad}");
        }
    }
}
