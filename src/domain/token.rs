//! One observed version of a token, and its two forms in KV: the value and the metadata.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::secret::{Fingerprint, Secret};
use super::time::Timestamp;

/// Who wrote a token to KV, as its metadata says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writer {
    /// Our mirror, carrying what Nango refreshed.
    Nango,
    /// Our mirror, carrying what Composio's side reported.
    Composio,
    /// The TokenManager Durable Object, reported through `PUT /admin/tokens/…`.
    DoAlarm,
}

/// What KV metadata says of an entry (at most 1,024 bytes): enough to verify by listing keys,
/// without reading one secret. An entry without it is foreign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvMetadata {
    /// Version in the triplet's chain, from 1.
    pub v: u64,
    pub fp: Fingerprint,
    /// Epoch of the authority under which it was written.
    pub ep: u64,
    pub src: Writer,
    /// Expiry in Unix seconds; absent when the provider gives none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exp: Option<i64>,
}

/// The value under `tokens:{triplet}` (ADR-038's schema). Fields we do not know are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEntry {
    pub access_token: Secret,
    pub expires_at: Option<Timestamp>,
    pub token_type: Option<String>,
    pub scope: Option<String>,
    /// Everything else in the object, as found. It may hold secrets: never print it.
    pub other: Map<String, Value>,
}

impl KvEntry {
    /// # Errors
    /// When the bytes are not a JSON object with a non-empty string `access_token`. The message
    /// names the field and never repeats a value.
    pub fn from_json(bytes: &[u8]) -> Result<Self, KvEntryError> {
        match serde_json::from_slice::<Value>(bytes) {
            Ok(Value::Object(map)) => Self::from_object(map),
            _ => Err(KvEntryError::NotAnObject),
        }
    }

    /// # Errors
    /// As [`KvEntry::from_json`], for an object that was read already.
    pub fn from_object(mut map: Map<String, Value>) -> Result<Self, KvEntryError> {
        let access_token = match map.remove("access_token") {
            Some(Value::String(token)) if !token.is_empty() => Secret::new(token),
            _ => return Err(KvEntryError::Field("access_token", "a non-empty string")),
        };
        let expires_at = match map.remove("expires_at") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => {
                Some(Timestamp::parse(&text).map_err(|_| KvEntryError::Field("expires_at", "an RFC 3339 time"))?)
            }
            Some(Value::Number(n)) => {
                let n = n.as_i64().ok_or(KvEntryError::Field("expires_at", "whole seconds or milliseconds"))?;
                // Seconds until the year 5138, milliseconds above.
                Some(if n.unsigned_abs() < 100_000_000_000 {
                    Timestamp::from_secs(n)
                } else {
                    Timestamp::from_millis(n)
                })
            }
            Some(_) => return Err(KvEntryError::Field("expires_at", "a time")),
        };
        let mut text = |name: &'static str| match map.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(KvEntryError::Field(name, "a string")),
        };
        let (token_type, scope) = (text("token_type")?, text("scope")?);
        Ok(Self { access_token, expires_at, token_type, scope, other: map })
    }

    /// The JSON value to put, keys sorted.
    pub fn to_json(&self) -> String {
        let mut map = self.other.clone();
        map.insert("access_token".into(), self.access_token.expose().into());
        if let Some(at) = self.expires_at {
            map.insert("expires_at".into(), at.to_rfc3339().into());
        }
        if let Some(token_type) = &self.token_type {
            map.insert("token_type".into(), token_type.as_str().into());
        }
        if let Some(scope) = &self.scope {
            map.insert("scope".into(), scope.as_str().into());
        }
        Value::Object(map).to_string()
    }
}

/// Why bytes are not a KV entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvEntryError {
    #[error("the value is not a JSON object")]
    NotAnObject,
    #[error("field `{0}` is not {1}")]
    Field(&'static str, &'static str),
}

/// Splits an OAuth scope text at spaces and commas into a sorted set.
pub fn scope_set(text: &str) -> std::collections::BTreeSet<String> {
    text.split([' ', ',']).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_survive_a_round_trip() {
        let text = r#"{"access_token":"at-1","expires_at":"2026-10-02T10:45:00.000Z","instance_url":"https://x","scope":"a b"}"#;
        let entry = KvEntry::from_json(text.as_bytes()).unwrap();
        assert_eq!(entry.other["instance_url"], "https://x");
        assert_eq!(entry.to_json(), text);
    }

    #[test]
    fn errors_name_the_field_and_not_the_value() {
        let error = KvEntry::from_json(br#"{"access_token":"canary-token","expires_at":"soon canary"}"#).unwrap_err();
        assert!(error.to_string().contains("expires_at") && !error.to_string().contains("canary"));
    }
}
