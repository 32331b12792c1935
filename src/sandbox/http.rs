//! A request and an answer without a socket, so that every route can be tested as a function.

use std::fmt;

use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::domain::time::Timestamp;

/// One request, read completely.
#[derive(Clone)]
pub struct Call {
    pub method: String,
    /// As sent, without the query.
    pub path: String,
    /// The path's segments, percent-decoded. A trailing slash adds an empty one.
    pub segments: Vec<String>,
    pub query: Vec<(String, String)>,
    /// Path and query, as sent.
    target: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Call {
    /// A request as a client would write it: `GET /connections?limit=2`.
    pub fn new(method: &str, target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let segments = path
            .trim_start_matches('/')
            .split('/')
            .map(|s| percent_decode_str(s).decode_utf8_lossy().into_owned())
            .collect();
        Self {
            method: method.to_ascii_uppercase(),
            path: path.to_owned(),
            target: target.to_owned(),
            segments,
            query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn with_json(mut self, body: &Value) -> Self {
        self.body = body.to_string().into_bytes();
        self.with_header("content-type", "application/json")
    }

    #[must_use]
    pub fn with_body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.with_header("content-type", content_type)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Path and query, as sent.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// All headers, names in lower case.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The first query parameter of that name.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A list parameter, comma-joined or repeated.
    pub fn list(&self, name: &str) -> Vec<&str> {
        self.query.iter().filter(|(n, _)| n == name).flat_map(|(_, v)| v.split(',')).filter(|v| !v.is_empty()).collect()
    }

    /// The path's segments as string slices, for matching.
    pub fn route(&self) -> Vec<&str> {
        self.segments.iter().map(String::as_str).collect()
    }

    /// The body as JSON; `None` when it is not JSON.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The body as `application/x-www-form-urlencoded` pairs.
    pub fn form(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(&self.body).into_owned().collect()
    }

    /// What follows `Bearer ` in `Authorization`.
    pub fn bearer(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ").map(str::trim)
    }
}

/// Bodies and headers hold tokens, so only the request line shows.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// One answer.
#[derive(Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Self {
        Self::raw(status, "application/json; charset=utf-8", body.to_string())
    }

    pub fn html(status: u16, body: &str) -> Self {
        Self::raw(status, "text/html; charset=utf-8", body)
    }

    pub fn raw(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![("content-type".into(), content_type.into())], body: body.into() }
    }

    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.to_string()));
        self
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The body as JSON, `null` when it is not.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.status, self.body.len())
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the form of the `Date` header. Written by the world so that
/// clients measure their skew against virtual time.
pub fn http_date(at: Timestamp) -> String {
    const FORMAT: &[time::format_description::BorrowedFormatItem<'static>] = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    time::OffsetDateTime::from_unix_timestamp(at.secs())
        .ok()
        .and_then(|t| t.format(&FORMAT).ok())
        .unwrap_or_else(|| "Thu, 01 Jan 1970 00:00:00 GMT".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_separators_is_one_segment() {
        let call = Call::new("get", "/a/tokens%3Akahuna%3Ahubspot%2Fx?limit=2&ids=a,b&ids=c");
        assert_eq!(call.segments, ["a", "tokens:kahuna:hubspot/x"]);
        assert_eq!((call.method.as_str(), call.param("limit")), ("GET", Some("2")));
        assert_eq!(call.list("ids"), ["a", "b", "c"]);
    }

    #[test]
    fn dates_have_the_http_form() {
        assert_eq!(http_date(Timestamp::from_secs(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn debug_shows_no_body_and_no_header() {
        let call =
            Call::new("POST", "/x?token=canary").with_header("authorization", "Bearer canary").with_body("a", "canary");
        assert!(!format!("{call:?} {:?}", Reply::html(200, "canary")).contains("canary"));
    }
}
