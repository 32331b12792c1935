//! `PUT /admin/tokens/{tenant}/{provider}/{account}`: the gateway, or its TokenManager, reports a
//! token that it wrote, so that both sides get it and nobody takes the write for a foreign one.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};

use super::request::{Admin, json_body};
use super::webhooks::{Outcome, count};
use super::{Refusal, Shim, strict};
use crate::domain::time::{DAY_MS, Timestamp};
use crate::domain::token::KvEntry;
use crate::domain::triplet::Triplet;
use crate::engine::Reported;
use crate::ports::Outside;

/// The longest token that is taken, in bytes: what still fits into a request header everywhere.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The longest life that is believed. Long-lived tokens have no `expires_at` at all.
const LIFE_MAX_MS: i64 = 3_660 * DAY_MS;

pub(super) async fn put<O: Outside>(
    State(shim): State<Arc<Shim<O>>>,
    _: Admin,
    path: Result<Path<(String, String, String)>, PathRejection>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Outcome, Refusal> {
    let result = take(&shim, path, &headers, bytes).await;
    count(&shim, "tokens", &result);
    result
}

async fn take<O: Outside>(
    shim: &Shim<O>,
    path: Result<Path<(String, String, String)>, PathRejection>,
    headers: &HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Outcome, Refusal> {
    let bad_triplet = |message: String| Refusal::bad("bad_triplet", message);
    let Path((tenant, provider, account)) = path.map_err(|_| bad_triplet("the path is not UTF-8".to_owned()))?;
    let triplet = [tenant, provider, account].join(":");
    let triplet = Triplet::parse(&triplet).map_err(|error| bad_triplet(error.to_string()))?;
    let now = shim.now();
    let entry = entry(&json_body(headers, bytes)?, now)?;
    let engine = shim.ready_engine()?;
    let reported = engine.report_token(&triplet, entry, now).await;
    match reported.map_err(|e| Refusal::of_engine(&e, "taking a token"))? {
        Reported::Accepted => {
            shim.metrics.committed(shim.now().since(now));
            Ok(Outcome::Accepted)
        }
        Reported::Unknown => {
            let message =
                format!("`{triplet}` is not mirrored: it is not in the applied plan, or stays, or is settled");
            Err(Refusal::new(StatusCode::NOT_FOUND, "unknown_triplet", message))
        }
    }
}

/// Reads an entry that may be served: the token can stand in a header, and has not ended.
fn entry(bytes: &[u8], now: Timestamp) -> Result<KvEntry, Refusal> {
    let bad = |message: String| Refusal::bad("bad_entry", message);
    let object = strict::object(bytes).map_err(|error| Refusal::bad("bad_body", error.to_string()))?;
    let entry = KvEntry::from_object(object).map_err(|error| bad(error.to_string()))?;
    let token = entry.access_token.expose();
    if token.len() > TOKEN_BYTES_MAX {
        return Err(bad(format!("field `access_token` has more than {TOKEN_BYTES_MAX} bytes")));
    }
    if !token.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
        return Err(bad("field `access_token` holds a character that no header may hold".to_owned()));
    }
    match entry.expires_at {
        Some(at) if at <= now => Err(Refusal::bad("expired_token", "field `expires_at` lies in the past")),
        Some(at) if at.since(now) > LIFE_MAX_MS => {
            Err(bad("field `expires_at` lies more than ten years ahead".to_owned()))
        }
        _ => Ok(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code(body: &str) -> &'static str {
        entry(body.as_bytes(), Timestamp::from_secs(1_000)).map_or_else(|refusal| refusal.code, |_| "ok")
    }

    #[test]
    fn only_entries_that_can_be_served_are_taken() {
        for (body, expected) in [
            (r#"{"access_token":"a"}"#, "ok"),
            (r#"{"access_token":"a","expires_at":1001,"instance_url":"https://x"}"#, "ok"),
            (r#"{"access_token":"a","expires_at":null,"scope":"b c"}"#, "ok"),
            (r#"{"access_token":"a","expires_at":1000}"#, "expired_token"),
            (r#"{"access_token":"a","expires_at":9223372036854775807}"#, "bad_entry"),
            (r#"{"access_token":"a","expires_at":99999999999999999999}"#, "bad_entry"),
            (r#"{"access_token":"a","expires_at":-9223372036854775808}"#, "expired_token"),
            (r#"{"access_token":"a","expires_at":1e400}"#, "bad_body"),
            (r#"{"access_token":""}"#, "bad_entry"),
            (r#"{"access_token":"a b"}"#, "bad_entry"),
            ("{\"access_token\":\"a\\u000ab\"}", "bad_entry"),
            (r#"{"access_token":"tökén"}"#, "bad_entry"),
            (r#"{"access_token":["a"]}"#, "bad_entry"),
            (r#"{"access_token":"a","access_token":"b"}"#, "bad_body"),
            (r#"{"access_token":"a","__proto__":{"x":1}}"#, "bad_body"),
            ("[]", "bad_body"),
        ] {
            assert_eq!(code(body), expected, "{body}");
        }
        assert_eq!(code(&format!(r#"{{"access_token":"{}"}}"#, "a".repeat(TOKEN_BYTES_MAX + 1))), "bad_entry");
    }

    proptest! {
        #[test]
        fn no_entry_makes_it_panic_or_is_repeated_in_the_refusal(
            token in "[ -~]{0,20}", expires in any::<i64>(), extra in "\\PC{0,20}",
        ) {
            let body = serde_json::json!({"access_token": format!("canary{token}"), "expires_at": expires, "x": extra});
            if let Err(refusal) = entry(body.to_string().as_bytes(), Timestamp::from_secs(1_000)) {
                prop_assert!(!refusal.message.contains("canary"), "{}", refusal.message);
            }
        }
    }
}
