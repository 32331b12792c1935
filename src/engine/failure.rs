//! What a failed read at Nango says, and what a provider says of a token. Pure.
//!
//! Nango hides why a provider refused a refresh: a revoked grant, an outage and a lost race all
//! come back as the same `invalid_credentials`. What its answer does tell apart is judged here;
//! for the rest the provider is asked, and the catalogue reads its answer.

use crate::catalogue::Integration;
use crate::catalogue::classify::{Class, Failure, Phase, classify};
use crate::domain::schedule::poll_retry_after_ms;
use crate::domain::time::{MINUTE_MS, SECOND_MS};
use crate::ports::{ApiError, ApiErrorKind, ProviderAnswer};

/// How long a read waits that only a person can make succeed.
const PERSON_MS: i64 = 15 * MINUTE_MS;

/// How long all reads wait after Nango refused our key.
const KEY_REFUSED_MS: i64 = MINUTE_MS;

/// What to do after a failed read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadFailure {
    pub class: Class,
    /// Until the same connection is read again, milliseconds.
    pub wait_ms: i64,
    /// It speaks of Nango or of our key, not of this connection: all others would meet the same.
    pub of_all: bool,
}

/// Judges a failed read of a connection that failed `failures` times in a row, this one included.
pub(super) fn judge_read(error: &ApiError, failures: u32, draw: u64) -> ReadFailure {
    let of_all = |class, wait_ms| ReadFailure { class, wait_ms, of_all: true };
    let of_one = |class, wait_ms| ReadFailure { class, wait_ms, of_all: false };
    match &error.kind {
        kind if kind.is_limit() => {
            of_all(Class::Transient, kind.wait_ms().unwrap_or_else(|| poll_retry_after_ms(1, draw)).max(SECOND_MS))
        }
        _ if error.is_outage() => of_all(Class::Transient, poll_retry_after_ms(1, draw)),
        // Four bad days, or its own check refused the connection: reads no longer refresh.
        ApiErrorKind::RefreshFailed { exhausted: true, .. } => of_one(Class::Config, PERSON_MS),
        ApiErrorKind::RefreshFailed { .. } => of_one(Class::Ambiguous, poll_retry_after_ms(failures, draw)),
        ApiErrorKind::Unauthorized { .. } => of_all(Class::Config, KEY_REFUSED_MS),
        ApiErrorKind::Conflict { .. } => of_one(Class::Transient, poll_retry_after_ms(1, draw)),
        // The connection or its integration is gone, or can never be read.
        _ => of_one(Class::Config, PERSON_MS),
    }
}

/// What a provider said about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    Alive,
    /// The token is not good any more.
    Refused,
    /// It did not say: too many requests, an outage, a right that the token never had.
    Unknown,
}

/// Reads a provider's answer to whoami. A refusal of the token counts here although a refresh
/// token exists: whoever asks has seen Nango fail to use it.
pub(super) fn judge_token(integration: &Integration, answer: &ProviderAnswer) -> Liveness {
    let failure = Failure {
        phase: Phase::Api,
        status: Some(answer.status),
        headers: &answer.headers,
        body: answer.body.expose(),
        sent: true,
        has_refresh_token: false,
    };
    let found = classify(integration, &failure);
    match (found.rule, found.class) {
        // Some providers refuse under 200; only a rule tells that from a good answer.
        (None, _) if (200..300).contains(&answer.status) => Liveness::Alive,
        (_, Class::Permanent) => Liveness::Refused,
        (None, _) if answer.status == 401 => Liveness::Refused,
        (Some(rule), Class::Transient) if integration.error[rule].refresh => Liveness::Refused,
        _ => Liveness::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;
    use crate::domain::secret::Secret;
    use crate::ports::Api;

    fn read(kind: ApiErrorKind, failures: u32) -> ReadFailure {
        let error = ApiError { api: Api::Nango, method: "GET", path: "/connections/{id}".into(), kind };
        judge_read(&error, failures, 0)
    }

    #[test]
    fn every_failure_of_a_read_has_a_class_and_a_wait() {
        let refresh = |status, cooldown, exhausted| ApiErrorKind::RefreshFailed {
            status,
            code: "invalid_credentials".into(),
            cooldown,
            exhausted,
        };
        let code = || String::from("c");
        for (kind, failures, class, wait_s, of_all) in [
            (refresh(400, false, false), 1, Class::Ambiguous, 31, false),
            (refresh(424, true, false), 2, Class::Ambiguous, 60, false),
            (refresh(500, false, false), 3, Class::Ambiguous, 120, false),
            (refresh(424, false, true), 1, Class::Config, 900, false),
            (ApiErrorKind::RateLimited { retry_after_ms: Some(7_000) }, 1, Class::Transient, 7, true),
            (ApiErrorKind::RateLimited { retry_after_ms: None }, 1, Class::Transient, 31, true),
            (ApiErrorKind::OverBudget { wait_ms: 12 }, 1, Class::Transient, 1, true),
            (ApiErrorKind::Server { status: 502, code: code() }, 1, Class::Transient, 31, true),
            (ApiErrorKind::Unreachable { sent: true, detail: code() }, 1, Class::Transient, 31, true),
            (ApiErrorKind::Contract { detail: code() }, 1, Class::Transient, 31, true),
            (ApiErrorKind::Unauthorized { status: 401, code: code() }, 1, Class::Config, 60, true),
            (ApiErrorKind::Conflict { code: code() }, 5, Class::Transient, 31, false),
            (ApiErrorKind::NotFound { code: code() }, 1, Class::Config, 900, false),
            (ApiErrorKind::Rejected { status: 400, code: code() }, 1, Class::Config, 900, false),
        ] {
            let expected = ReadFailure { class, wait_ms: wait_s * 1_000, of_all };
            assert_eq!(read(kind.clone(), failures), expected, "{kind:?}");
        }
    }

    #[test]
    fn the_catalogue_tells_a_dead_token_from_a_busy_or_strict_provider() {
        let catalogue = Catalogue::built_in();
        for (key, status, body, expected) in [
            ("slack", 200, r#"{"ok":true,"user_id":"U1"}"#, Liveness::Alive),
            ("slack", 200, r#"{"ok":false,"error":"token_revoked"}"#, Liveness::Refused),
            ("slack", 200, r#"{"ok":false,"error":"ratelimited"}"#, Liveness::Unknown),
            ("slack", 200, r#"{"ok":false,"error":"missing_scope"}"#, Liveness::Unknown),
            ("google", 200, r#"{"sub":"1"}"#, Liveness::Alive),
            ("google", 401, r#"{"error":"anything"}"#, Liveness::Refused),
            ("google", 403, r#"{"error":{"status":"PERMISSION_DENIED"}}"#, Liveness::Unknown),
            ("google", 429, "", Liveness::Unknown),
            ("google", 503, "<html>", Liveness::Unknown),
            ("hubspot", 401, r#"{"category":"EXPIRED_AUTHENTICATION"}"#, Liveness::Refused),
        ] {
            let answer = ProviderAnswer { status, headers: Vec::new(), body: Secret::new(body) };
            let facts = catalogue.integration(key).unwrap();
            assert_eq!(judge_token(facts, &answer), expected, "{key} {status} {body}");
        }
    }
}
