//! What a failed read at Nango says, what a provider says of a token, and what both say of a grant. Pure.
//!
//! Nango hides why a provider refused a refresh: a revoked grant, an outage, a client that is set up
//! wrong and a lost race all come back as the same `invalid_credentials` (Nango contract §6.4). What
//! its answer does tell apart is judged here; for the rest the provider is asked with the old token,
//! and the catalogue reads its answer. Once the token ended, that answer says only that the provider is
//! there; then other connections of the same OAuth client tell a dead grant from a dead client. What
//! stays unclear is never called dead.

use crate::catalogue::Integration;
use crate::catalogue::classify::{Class, Failure, Phase, classify};
use crate::domain::schedule::{poll_retry_after_ms, silent_retry_after_ms};
use crate::domain::time::{MINUTE_MS, SECOND_MS};
use crate::ports::{ApiError, ApiErrorKind, ProviderAnswer};
use crate::store::Siblings;

/// How long a read waits that only a person can make succeed.
const PERSON_MS: i64 = 15 * MINUTE_MS;

/// How long all reads wait after Nango refused our key.
const KEY_REFUSED_MS: i64 = MINUTE_MS;

/// How long past its expiry a connection may keep failing before anybody asks whether its grant is gone,
/// and how long after its first failure another connection's refresh shows that the provider works.
pub(super) const DOUBT_AFTER_MS: i64 = 10 * MINUTE_MS;

/// What to do after a failed read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadFailure {
    pub class: Class,
    /// Until the same connection is read again, milliseconds.
    pub wait_ms: i64,
    /// It speaks of Nango or of our key, not of this connection: all others would meet the same.
    pub of_all: bool,
}

/// What surrounds a failed read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    /// Failures of the connection in a row, this one included.
    pub failures: u32,
    /// For how long its reads fail, milliseconds.
    pub failing_ms: i64,
    /// Nango answered nobody.
    pub away: bool,
}

/// Judges a failed read of a connection.
pub(super) fn judge_read(error: &ApiError, circumstances: Circumstances, draw: u64) -> ReadFailure {
    let Circumstances { failures, failing_ms, away } = circumstances;
    let of_all = |class, wait_ms| ReadFailure { class, wait_ms, of_all: true };
    let of_one = |class, wait_ms| ReadFailure { class, wait_ms, of_all: false };
    match &error.kind {
        kind if kind.is_limit() => {
            of_all(Class::Transient, kind.wait_ms().unwrap_or_else(|| poll_retry_after_ms(1, draw)).max(SECOND_MS))
        }
        _ if error.is_outage() && away => of_all(Class::Transient, poll_retry_after_ms(1, draw)),
        // Others had an answer: their reads must not wait for this one's.
        _ if error.is_outage() => of_one(Class::Transient, silent_retry_after_ms(failing_ms, draw)),
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
    /// No answer, or one that speaks of the provider: an outage, too many requests.
    Silent,
    /// It cannot be asked, or the answer says nothing of the token: a right that it never had.
    Unknown,
}

/// What is known of a grant that Nango fails to use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    /// Nango tried to refresh: it has the connection, and our key is good.
    pub tried: bool,
    /// For how long the token is past its end, milliseconds; `None` when it has none or still lives.
    pub ended_ms: Option<i64>,
    pub token: Liveness,
    /// Somebody else refreshes the same grant: the race may be lost, and the grant alive.
    pub rival: bool,
    pub siblings: Siblings,
}

/// Whether a grant is gone ([`Class::Permanent`]), or what else it is.
pub(super) fn judge_grant(doubt: &Doubt) -> Class {
    match (doubt.ended_ms, doubt.token) {
        _ if doubt.rival => Class::Ambiguous,
        (_, Liveness::Silent) => Class::Transient,
        (None, Liveness::Refused) => Class::Permanent,
        (None, Liveness::Alive) => Class::Transient,
        (None, Liveness::Unknown) => Class::Ambiguous,
        (Some(ms), _) if ms <= DOUBT_AFTER_MS => Class::Ambiguous,
        (Some(_), Liveness::Alive) => Class::Ambiguous,
        (Some(_), _) if !doubt.tried => Class::Config,
        (Some(_), _) => match doubt.siblings {
            Siblings::Refreshed => Class::Permanent,
            Siblings::Failing => Class::Config,
            Siblings::Silent => Class::Ambiguous,
        },
    }
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
        (_, Class::Transient) => Liveness::Silent,
        _ => Liveness::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;
    use crate::domain::secret::Secret;
    use crate::ports::Api;

    fn read(kind: ApiErrorKind, failures: u32, away: bool) -> ReadFailure {
        let error = ApiError { api: Api::Nango, method: "GET", path: "/connections/{id}".into(), kind };
        judge_read(&error, Circumstances { failures, failing_ms: 62_000, away }, 0)
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
            assert_eq!(read(kind.clone(), failures, true), expected, "{kind:?}");
            let silent = matches!(
                kind,
                ApiErrorKind::Server { .. } | ApiErrorKind::Unreachable { .. } | ApiErrorKind::Contract { .. }
            );
            let expected = if silent { ReadFailure { class, wait_ms: 62_000, of_all: false } } else { expected };
            assert_eq!(read(kind.clone(), failures, false), expected, "{kind:?} while others are answered");
        }
    }

    #[test]
    fn the_catalogue_tells_a_dead_token_from_a_busy_or_strict_provider() {
        let catalogue = Catalogue::built_in();
        for (key, status, body, expected) in [
            ("slack", 200, r#"{"ok":true,"user_id":"U1"}"#, Liveness::Alive),
            ("slack", 200, r#"{"ok":false,"error":"token_revoked"}"#, Liveness::Refused),
            ("slack", 200, r#"{"ok":false,"error":"ratelimited"}"#, Liveness::Silent),
            ("slack", 200, r#"{"ok":false,"error":"missing_scope"}"#, Liveness::Unknown),
            ("google", 200, r#"{"sub":"1"}"#, Liveness::Alive),
            ("google", 401, r#"{"error":"anything"}"#, Liveness::Refused),
            ("google", 403, r#"{"error":{"status":"PERMISSION_DENIED"}}"#, Liveness::Unknown),
            ("google", 429, "", Liveness::Silent),
            ("google", 503, "<html>", Liveness::Silent),
            ("hubspot", 401, r#"{"category":"EXPIRED_AUTHENTICATION"}"#, Liveness::Refused),
        ] {
            let answer = ProviderAnswer { status, headers: Vec::new(), body: Secret::new(body) };
            let facts = catalogue.integration(key).unwrap();
            assert_eq!(judge_token(facts, &answer), expected, "{key} {status} {body}");
        }
    }

    #[test]
    fn only_what_is_certain_is_called_permanent() {
        use Liveness::{Alive, Refused, Silent, Unknown};
        let (lives, late, long) = (None, Some(DOUBT_AFTER_MS), Some(DOUBT_AFTER_MS + 1));
        for (ended_ms, token, siblings, class) in [
            // While the token lives, the provider's word on it decides.
            (lives, Refused, Siblings::Silent, Class::Permanent),
            (lives, Alive, Siblings::Failing, Class::Transient),
            (lives, Silent, Siblings::Refreshed, Class::Transient),
            (lives, Unknown, Siblings::Refreshed, Class::Ambiguous),
            // Just ended: it may come yet.
            (late, Refused, Siblings::Refreshed, Class::Ambiguous),
            (late, Silent, Siblings::Silent, Class::Transient),
            // Long ended: others of the same client decide.
            (long, Refused, Siblings::Refreshed, Class::Permanent),
            (long, Unknown, Siblings::Refreshed, Class::Permanent),
            (long, Refused, Siblings::Failing, Class::Config),
            (long, Unknown, Siblings::Failing, Class::Config),
            (long, Refused, Siblings::Silent, Class::Ambiguous),
            (long, Unknown, Siblings::Silent, Class::Ambiguous),
            (long, Silent, Siblings::Refreshed, Class::Transient),
            (long, Alive, Siblings::Refreshed, Class::Ambiguous),
        ] {
            let doubt = Doubt { tried: true, ended_ms, token, rival: false, siblings };
            assert_eq!(judge_grant(&doubt), class, "{doubt:?}");
            assert_eq!(judge_grant(&Doubt { rival: true, ..doubt }), Class::Ambiguous, "{doubt:?}");
            let untried = judge_grant(&Doubt { tried: false, ..doubt });
            assert!(untried != Class::Permanent || ended_ms.is_none(), "{doubt:?}: {untried:?}");
        }
    }
}
