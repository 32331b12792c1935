//! An answer as the envelopes judge it: status, body and the few headers that decide what an
//! error means. Nothing here does I/O, so every rule is tested from bytes.

use reqwest::header::{HeaderMap, HeaderName, RETRY_AFTER};
use serde::de::DeserializeOwned;
use serde_json::Value;
use time::PrimitiveDateTime;
use time::macros::format_description;

use crate::domain::time::{DAY_MS, SECOND_MS, Timestamp};
use crate::ports::ApiErrorKind;

/// What stands for the code of an error that came without a readable one.
pub(super) const NO_CODE: &str = "no_code";

/// The status in an [`ApiErrorKind::Rejected`] that was refused here, before sending anything.
pub(super) const REFUSED_HERE: u16 = 0;

/// What an envelope said went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub kind: ApiErrorKind,
    /// The server's own name for the request, for its support desk.
    pub request_id: Option<String>,
}

impl From<ApiErrorKind> for Failure {
    fn from(kind: ApiErrorKind) -> Self {
        Self { kind, request_id: None }
    }
}

/// An answer as the envelopes judge it: nothing in it depends on how it arrived.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub status: u16,
    pub media: Media,
    /// From `retry-after-ms` or `Retry-After`.
    pub retry_after_ms: Option<i64>,
    pub request_id: Option<String>,
    pub headers: HeaderMap,
    /// Empty when it could not be read and `status` says that it does not matter.
    pub body: Vec<u8>,
}

/// What the server calls its body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Media {
    Json,
    Html,
    Other,
    #[default]
    Absent,
}

impl Media {
    pub fn of(content_type: Option<&str>) -> Self {
        let Some(text) = content_type else { return Self::Absent };
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" | "text/json" => Self::Json,
            "text/html" | "application/xhtml+xml" => Self::Html,
            other if other.starts_with("application/") && other.ends_with("+json") => Self::Json,
            _ => Self::Other,
        }
    }

    const fn shown(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Html => "HTML",
            Self::Other => "another content type",
            Self::Absent => "no content type",
        }
    }
}

impl Reply {
    pub const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }

    /// The body as JSON, if it says it is JSON and is.
    pub fn json(&self) -> Option<Value> {
        if self.media != Media::Json {
            return None;
        }
        serde_json::from_slice(&self.body).ok()
    }

    /// Reads the body of a success.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, ApiErrorKind> {
        if self.media != Media::Json {
            return Err(contract(format!("{} instead of JSON", self.media.shown())));
        }
        serde_json::from_slice(&self.body).map_err(|e| {
            contract(match e.classify() {
                serde_json::error::Category::Data => {
                    format!("fields are missing or of the wrong type (line {}, column {})", e.line(), e.column())
                }
                _ => format!("broken JSON (line {}, column {})", e.line(), e.column()),
            })
        })
    }

    /// What a status means when the envelope has nothing more precise to say.
    ///
    /// `has_envelope` tells whether the body is an error of the system itself. A 404 that is not
    /// comes from something in front of it, and must not be read as "the thing is gone".
    pub fn failure_by_status(&self, code: String, has_envelope: bool) -> ApiErrorKind {
        match self.status {
            429 => ApiErrorKind::RateLimited { retry_after_ms: self.retry_after_ms },
            status @ (401 | 403) => ApiErrorKind::Unauthorized { status, code },
            404 if has_envelope => ApiErrorKind::NotFound { code },
            404 => contract("404 without this system's error envelope"),
            409 => ApiErrorKind::Conflict { code },
            // A timeout of the server or something before it: the request may have had its effect.
            status @ (408 | 500..) => ApiErrorKind::Server { status, code },
            status => ApiErrorKind::Rejected { status, code },
        }
    }
}

pub(super) fn contract(detail: impl Into<String>) -> ApiErrorKind {
    ApiErrorKind::Contract { detail: detail.into() }
}

/// Refuses an argument before anything is sent. `code` says why.
pub(super) fn refused(code: &str) -> ApiErrorKind {
    ApiErrorKind::Rejected { status: REFUSED_HERE, code: code.to_owned() }
}

/// An error code or request id fit for a message: short, of harmless characters, else [`NO_CODE`].
pub(super) fn readable_code(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if text.is_empty() || text.len() > 64 || !text.chars().all(harmless) {
        return NO_CODE.to_owned();
    }
    text.to_owned()
}

pub(super) fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that RFC 9110 lets servers send.
pub(super) fn parse_http_date(text: &str) -> Option<Timestamp> {
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    let parsed = PrimitiveDateTime::parse(text.trim(), &format).ok()?.assume_utc();
    Some(Timestamp::from_secs(parsed.unix_timestamp()))
}

/// How long the server wants us away: `retry-after-ms`, else `Retry-After` in seconds or as a date.
///
/// Nango rounds seconds down, so 0 means "within this second": at least 1 s is waited. A day is
/// the most that is believed; nobody's window is longer.
pub(super) fn retry_after_ms(headers: &HeaderMap, server_time: Timestamp) -> Option<i64> {
    if let Some(ms) = header(headers, HeaderName::from_static("retry-after-ms")).and_then(|t| t.trim().parse().ok())
        && ms >= 0
    {
        return Some(i64::clamp(ms, 1, DAY_MS));
    }
    let text = header(headers, RETRY_AFTER)?.trim();
    let ms = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // Digits too many for an i64 are a very long time.
        text.parse::<i64>().unwrap_or(i64::MAX).saturating_mul(SECOND_MS)
    } else {
        parse_http_date(text)?.since(server_time)
    };
    Some(ms.clamp(SECOND_MS, DAY_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Headers = [(&'static str, &'static str)];

    const NOW: Timestamp = Timestamp::from_secs(784_111_777);

    fn headers(pairs: &Headers) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    #[test]
    fn retry_after_is_read_as_milliseconds_seconds_or_a_date() {
        let table: &[(&Headers, Option<i64>)] = &[
            (&[], None),
            (&[("retry-after", "0")], Some(1_000)),
            (&[("retry-after", "7")], Some(7_000)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")], Some(10_000)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:07 GMT")], Some(1_000)),
            (&[("retry-after-ms", "250"), ("retry-after", "7")], Some(250)),
            (&[("retry-after-ms", "-1"), ("retry-after", "7")], Some(7_000)),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "-5")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after", "99999999999999999999999")], Some(DAY_MS)),
        ];
        for (pairs, expected) in table {
            assert_eq!(retry_after_ms(&headers(pairs), NOW), *expected, "{pairs:?}");
        }
    }

    #[test]
    fn http_dates_are_read() {
        assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(NOW));
        assert_eq!(parse_http_date("1994-11-06T08:49:37Z"), None);
    }

    #[test]
    fn media_types_are_told_apart() {
        for (text, media) in [
            (Some("application/json; charset=utf-8"), Media::Json),
            (Some("Application/JSON"), Media::Json),
            (Some("application/problem+json"), Media::Json),
            (Some("text/html;charset=utf-8"), Media::Html),
            (Some("text/plain"), Media::Other),
            (None, Media::Absent),
        ] {
            assert_eq!(Media::of(text), media, "{text:?}");
        }
    }

    #[test]
    fn statuses_without_an_envelope_have_a_meaning_each() {
        let kind = |status, has_envelope| {
            let reply = Reply { status, retry_after_ms: Some(2_000), ..Reply::default() };
            reply.failure_by_status("c".into(), has_envelope)
        };
        assert_eq!(kind(429, false), ApiErrorKind::RateLimited { retry_after_ms: Some(2_000) });
        assert_eq!(kind(403, false), ApiErrorKind::Unauthorized { status: 403, code: "c".into() });
        assert_eq!(kind(404, true), ApiErrorKind::NotFound { code: "c".into() });
        assert!(matches!(kind(404, false), ApiErrorKind::Contract { .. }));
        assert_eq!(kind(408, false), ApiErrorKind::Server { status: 408, code: "c".into() });
        assert_eq!(kind(599, false), ApiErrorKind::Server { status: 599, code: "c".into() });
        assert_eq!(kind(422, true), ApiErrorKind::Rejected { status: 422, code: "c".into() });
    }

    #[test]
    fn codes_that_could_carry_anything_are_dropped() {
        assert_eq!(readable_code("invalid_credentials"), "invalid_credentials");
        for bad in ["", "two words", "{\"token\":1}", &"x".repeat(65)] {
            assert_eq!(readable_code(bad), NO_CODE);
        }
    }
}
