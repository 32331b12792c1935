//! How each provider writes its tokens, its errors and its whoami answers.

use serde_json::{Map, Value, json};

use crate::sandbox::draw;
use crate::sandbox::http::Reply;
use crate::sandbox::script::TokenTwist;

use super::{Refusal, Standing};

pub(super) fn access_prefix(key: &str) -> &'static str {
    match key {
        "google" => "ya29.a0",
        "salesforce" => "00D5g000004",
        "hubspot" => "CKPp",
        "linkedin" => "AQX",
        "microsoft" | "microsoft-ads" => "EwBw",
        "slack" => "xoxp-",
        "github" => "gho_",
        _ => "at_",
    }
}

pub(super) fn refresh_prefix(key: &str) -> &'static str {
    match key {
        "google" => "1//0g",
        "salesforce" => "5Aep861",
        "microsoft" | "microsoft-ads" => "0.AX",
        "slack" => "xoxe-1-",
        _ => "rt_",
    }
}

pub(super) fn token_type(key: &str) -> &'static str {
    match key {
        "github" | "hubspot" => "bearer",
        "slack" => "user",
        _ => "Bearer",
    }
}

pub(super) fn scope_separator(key: &str) -> &'static str {
    if matches!(key, "slack" | "github") { "," } else { " " }
}

/// The token endpoint's answer to a refresh token that it does not take (catalogue error rules).
pub(super) fn refusal(key: &str, refusal: Refusal) -> Reply {
    let (status, body) = match (key, refusal) {
        (_, Refusal::Client | Refusal::Told(TokenTwist::InvalidClient)) => {
            (401, json!({"error": "invalid_client", "error_description": "Unknown client or wrong secret."}))
        }
        (_, Refusal::Told(TokenTwist::TooManyRequests)) => (429, json!({"error": "rate_limited"})),
        (_, Refusal::Told(TokenTwist::Unavailable)) => (503, json!({"error": "temporarily_unavailable"})),
        (_, Refusal::Told(TokenTwist::NoToken)) => (200, json!({"message": "no token today"})),
        (_, Refusal::Told(TokenTwist::Html)) => return Reply::html(200, "<html><body>Maintenance</body></html>"),
        ("slack", _) => (200, json!({"ok": false, "error": "invalid_refresh_token"})),
        ("google", _) => {
            (400, json!({"error": "invalid_grant", "error_description": "Token has been expired or revoked."}))
        }
        ("salesforce", _) => {
            (400, json!({"error": "invalid_grant", "error_description": "expired access/refresh token"}))
        }
        ("hubspot", _) => (
            400,
            json!({"status": "BAD_REFRESH_TOKEN", "message": "missing or invalid refresh token",
                   "error": "invalid_grant", "error_description": "missing or invalid refresh token"}),
        ),
        ("linkedin", _) => (
            400,
            json!({"error": "invalid_request",
                   "error_description": "The provided authorization grant or refresh token is invalid, expired or revoked."}),
        ),
        ("microsoft" | "microsoft-ads", _) => (
            400,
            json!({"error": "invalid_grant", "error_description": "AADSTS50173: the provided grant has expired due to it being revoked.",
                   "error_codes": [50173], "suberror": "bad_token"}),
        ),
        ("github", _) => (
            200,
            json!({"error": "bad_refresh_token", "error_description": "The refresh token is incorrect or expired."}),
        ),
        _ => (400, json!({"error": "invalid_grant"})),
    };
    Reply::json(status, &body)
}

/// An API's answer to an access token that it does not take. `None` standing: never seen.
pub(super) fn unauthorized(key: &str, standing: Option<Standing>) -> Reply {
    let revoked = standing == Some(Standing::Revoked);
    match key {
        "slack" => {
            let error = match standing {
                Some(Standing::Expired) => "token_expired",
                Some(Standing::Revoked) => "token_revoked",
                _ => "invalid_auth",
            };
            Reply::json(200, &json!({"ok": false, "error": error}))
        }
        "google" => Reply::json(
            401,
            &json!({"error": {"code": 401, "message": "Request had invalid authentication credentials.", "status": "UNAUTHENTICATED"}}),
        ),
        "salesforce" => {
            Reply::json(401, &json!([{"message": "Session expired or invalid", "errorCode": "INVALID_SESSION_ID"}]))
        }
        "hubspot" => Reply::json(
            401,
            &json!({"status": "error", "message": "The OAuth token used to make this call expired.", "category": "EXPIRED_AUTHENTICATION"}),
        ),
        "linkedin" => {
            let code = if revoked { "REVOKED_ACCESS_TOKEN" } else { "EXPIRED_ACCESS_TOKEN" };
            Reply::json(
                401,
                &json!({"status": 401, "serviceErrorCode": if revoked { 65601 } else { 65602 }, "code": code}),
            )
        }
        "microsoft" => Reply::json(
            401,
            &json!({"error": {"code": "InvalidAuthenticationToken", "message": "Lifetime validation failed, the token is expired."}}),
        ),
        "microsoft-ads" => {
            Reply::json(401, &json!({"Errors": [{"Code": 109, "ErrorCode": "AuthenticationTokenExpired"}]}))
        }
        "github" => Reply::json(401, &json!({"message": "Bad credentials", "status": "401"})),
        "aws" => {
            Reply::json(403, &json!({"Error": {"Code": "ExpiredToken", "Message": "The security token is expired"}}))
        }
        _ => Reply::json(401, &json!({"errors": ["invalid or expired access token"], "requestId": "sandbox"})),
    }
}

/// A whoami answer: every identity field of the catalogue, filled from the user's identity.
pub(super) fn whoami(seed: u64, key: &str, fields: &[String], identity: &str) -> Value {
    let mut body = Map::new();
    for field in fields {
        let number = matches!(key, "hubspot" | "github" | "microsoft-ads");
        let value = |n: u64| {
            let bits = draw::draw(seed, &["identity", key, identity, field], n);
            if number {
                Value::from(10_000_000 + bits % 900_000_000)
            } else {
                let digits = format!("{:020}", bits);
                Value::from(match (key, field.as_str()) {
                    ("slack", "team_id") => format!("T{}", &digits[8..]),
                    ("slack", _) => format!("U{}", &digits[8..]),
                    ("linkedin", _) => format!("urn:li:sponsoredAccount:{}", &digits[11..]),
                    ("microsoft", _) => draw::uuid(seed, &["identity", key, identity, field], n),
                    _ => digits,
                })
            }
        };
        insert(&mut body, field, &value);
    }
    match key {
        "google" => {
            body.insert("email".into(), format!("{}@example.com", draw::hex(seed, &["email", identity], 0, 8)).into());
            body.insert("email_verified".into(), true.into());
        }
        "slack" => {
            body.insert("ok".into(), true.into());
        }
        _ => {}
    }
    Value::Object(body)
}

/// Puts a value at a path such as `User.Id` or `elements[].account`; an array gets two items,
/// so that comparing sets instead of first elements matters.
fn insert(body: &mut Map<String, Value>, path: &str, value: &dyn Fn(u64) -> Value) {
    let (head, rest) = path.split_once('.').unwrap_or((path, ""));
    if let Some(name) = head.strip_suffix("[]") {
        let slot = body.entry(name).or_insert_with(|| json!([{}, {}]));
        for (n, item) in slot.as_array_mut().into_iter().flatten().enumerate() {
            if rest.is_empty() {
                *item = value(n as u64);
            } else if let Some(item) = item.as_object_mut() {
                insert(item, rest, &|_| value(n as u64));
            }
        }
    } else if rest.is_empty() {
        body.insert(head.to_owned(), value(0));
    } else if let Some(inner) = body.entry(head).or_insert_with(|| json!({})).as_object_mut() {
        insert(inner, rest, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_fields_are_where_the_catalogue_says() {
        let fields = ["User.Id".to_owned(), "CustomerRoles[].CustomerId".to_owned()];
        let body = whoami(1, "microsoft-ads", &fields, "a");
        assert!(body["User"]["Id"].is_u64());
        assert_ne!(body["CustomerRoles"][0]["CustomerId"], body["CustomerRoles"][1]["CustomerId"]);
        assert_ne!(body, whoami(1, "microsoft-ads", &fields, "b"));
        assert_eq!(whoami(1, "google", &["sub".to_owned()], "a")["sub"].as_str().map(str::len), Some(20));
    }
}
