//! Cloudflare's one envelope: `{"success","errors":[{"code","message"}],"result","result_info"}`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::clients::reply::{Failure, NO_CODE, Reply, contract};
use crate::ports::ApiErrorKind;

/// KV key or namespace (five codes), D1 database, Durable Object namespace.
const NOT_FOUND: &[i64] = &[10_009, 10_010, 10_011, 10_012, 10_013, 10_018, 7_404, 10_066];

/// A bad token, one without the permission, or an account that is not its.
const UNAUTHORIZED: &[i64] = &[1_000, 6_003, 6_103, 6_111, 7_403, 9_109, 10_000];

/// D1's messages that ask for the same statement again later.
const D1_TRANSIENT: &[&str] = &[
    "network connection lost",
    "d1 db reset because its code was updated",
    "internal error while starting up d1 db storage",
    "cannot resolve d1 db due to transient issue",
    "d1 db is overloaded",
];

/// A success.
#[derive(Debug, Deserialize)]
pub(super) struct Envelope {
    success: bool,
    #[serde(default)]
    errors: Vec<WireError>,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    result_info: Option<WireResultInfo>,
}

#[derive(Debug, Deserialize)]
struct WireError {
    #[serde(default)]
    code: Option<i64>,
    #[serde(default)]
    message: String,
    #[serde(default)]
    error_chain: Vec<WireError>,
}

#[derive(Debug, Deserialize)]
struct WireResultInfo {
    #[serde(default)]
    cursor: Option<String>,
    #[serde(default)]
    cursors: Option<WireCursors>,
}

/// Where listings of Durable Objects have their cursor in production; the local runtime has it
/// where KV has its own.
#[derive(Debug, Deserialize)]
struct WireCursors {
    #[serde(default)]
    after: Option<String>,
}

impl Envelope {
    /// Where the next page starts; the end is an empty or absent cursor.
    pub fn cursor(&self) -> Option<String> {
        let info = self.result_info.as_ref()?;
        let after = info.cursors.as_ref().and_then(|cursors| cursors.after.as_ref());
        info.cursor.as_ref().or(after).filter(|cursor| !cursor.is_empty()).cloned()
    }

    /// # Errors
    /// When the result is not of the expected shape. The message never repeats it.
    pub fn result<T: DeserializeOwned>(self) -> Result<T, ApiErrorKind> {
        serde_json::from_value(self.result).map_err(|_| contract("`result` is not of the expected shape"))
    }

    pub fn has_result(&self) -> bool {
        !self.result.is_null()
    }
}

/// Takes `success` as the verdict and the status as the retry class.
pub(super) fn judge(reply: &Reply) -> Result<Envelope, Failure> {
    judge_kind(reply).map_err(|kind| Failure { kind, request_id: reply.request_id.clone() })
}

fn judge_kind(reply: &Reply) -> Result<Envelope, ApiErrorKind> {
    let envelope = match reply.decode::<Envelope>() {
        Ok(envelope) => envelope,
        Err(kind) if reply.is_success() => return Err(kind),
        Err(_) => return Err(reply.failure_by_status(NO_CODE.to_owned(), false)),
    };
    if envelope.success {
        return Ok(envelope);
    }
    let codes: Vec<i64> =
        envelope.errors.iter().flat_map(|e| e.error_chain.iter().chain([e])).filter_map(|e| e.code).collect();
    let first = envelope.errors.iter().find_map(|error| error.code);
    let code = first.map_or_else(|| NO_CODE.to_owned(), |code| code.to_string());
    let has = |known: &[i64]| codes.iter().any(|code| known.contains(code));
    let status = reply.status;
    Err(match status {
        429 | 500.. => reply.failure_by_status(code, true),
        _ if envelope.errors.iter().any(is_d1_transient) => ApiErrorKind::Server { status, code },
        _ if has(NOT_FOUND) => ApiErrorKind::NotFound { code },
        _ if has(UNAUTHORIZED) => ApiErrorKind::Unauthorized { status, code },
        _ => reply.failure_by_status(code, true),
    })
}

fn is_d1_transient(error: &WireError) -> bool {
    let message = error.message.to_ascii_lowercase();
    D1_TRANSIENT.iter().any(|known| message.contains(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::reply::Media;

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status, media: Media::Json, request_id: Some("8f-FRA".into()), body: body.into(), ..Reply::default() }
    }

    fn failed(status: u16, code: i64, message: &str) -> ApiErrorKind {
        let body = format!(
            r#"{{"success":false,"errors":[{{"code":{code},"message":"{message}"}}],"messages":[],"result":null}}"#
        );
        judge(&reply(status, &body)).unwrap_err().kind
    }

    #[test]
    fn the_success_flag_outranks_the_status() {
        let fine =
            r#"{"success":true,"errors":[],"messages":[{"code":10000}],"result":{},"result_info":{"cursor":""}}"#;
        let envelope = judge(&reply(200, fine)).unwrap();
        assert_eq!(envelope.cursor(), None);
        let after = r#"{"success":true,"result":[],"result_info":{"count":0,"cursors":{"after":"x"}}}"#;
        assert_eq!(judge(&reply(200, after)).unwrap().cursor().as_deref(), Some("x"));
        assert_eq!(failed(200, 10_009, "get: 'key not found'"), ApiErrorKind::NotFound { code: "10009".into() });
    }

    #[test]
    fn codes_and_statuses_map_to_kinds() {
        let code = |code: i64| code.to_string();
        for (status, number, expected) in [
            (404, 10_013, ApiErrorKind::NotFound { code: code(10_013) }),
            (404, 7_404, ApiErrorKind::NotFound { code: code(7_404) }),
            (400, 6_003, ApiErrorKind::Unauthorized { status: 400, code: code(6_003) }),
            (403, 10_000, ApiErrorKind::Unauthorized { status: 403, code: code(10_000) }),
            (403, 7_403, ApiErrorKind::Unauthorized { status: 403, code: code(7_403) }),
            (401, 1, ApiErrorKind::Unauthorized { status: 401, code: code(1) }),
            (400, 7_400, ApiErrorKind::Rejected { status: 400, code: code(7_400) }),
            (500, 10_000, ApiErrorKind::Server { status: 500, code: code(10_000) }),
            (429, 10_009, ApiErrorKind::RateLimited { retry_after_ms: None }),
        ] {
            assert_eq!(failed(status, number, "canary"), expected);
        }
        let overloaded = failed(400, 7_500, "D1 DB is overloaded. Too many requests queued.");
        assert_eq!(overloaded, ApiErrorKind::Server { status: 400, code: "7500".into() });
    }

    #[test]
    fn a_code_in_the_chain_counts() {
        let body =
            r#"{"success":false,"errors":[{"code":1,"message":"m","error_chain":[{"code":6111,"message":"m"}]}]}"#;
        let kind = judge(&reply(400, body)).unwrap_err().kind;
        assert_eq!(kind, ApiErrorKind::Unauthorized { status: 400, code: "1".into() });
    }

    #[test]
    fn bodies_that_are_no_envelope_fall_back_to_the_status() {
        let html = |status| {
            let reply = Reply { status, media: Media::Html, body: b"<html>canary".to_vec(), ..Reply::default() };
            judge(&reply).unwrap_err().kind
        };
        assert!(matches!(html(200), ApiErrorKind::Contract { .. }));
        assert!(matches!(html(404), ApiErrorKind::Contract { .. }), "a local runtime's unknown route");
        assert_eq!(html(502), ApiErrorKind::Server { status: 502, code: NO_CODE.into() });
        assert_eq!(html(403), ApiErrorKind::Unauthorized { status: 403, code: NO_CODE.into() });
        assert!(matches!(judge(&reply(200, "{}")).unwrap_err().kind, ApiErrorKind::Contract { .. }));
    }

    #[test]
    fn the_request_id_is_kept() {
        let failure = judge(&reply(500, "")).unwrap_err();
        assert_eq!(failure.request_id.as_deref(), Some("8f-FRA"));
    }
}
