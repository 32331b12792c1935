//! Composio's JSON: the error envelope and the parts of each answer that we keep.

use serde::Deserialize;
use serde_json::Value;

use crate::clients::reply::{Failure, NO_CODE, Reply, readable_code};
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::domain::token::scope_set;
use crate::ports::{AccountStatus, AuthConfig, ConnectedAccount, WebhookSubscription};

/// Reads `{"error":{…}}`. The limiter's 429 is a bare `{"message"}`, and an old 404 may be `{}`.
///
/// The slug is the best name of an error, then the code (a number, or a text in newer samples).
/// `message`, `suggested_fix` (or `suggestedFix`) and `errors` may repeat what was sent and are
/// not kept.
pub(super) fn judge(reply: &Reply) -> Result<(), Failure> {
    if reply.is_success() {
        return Ok(());
    }
    let body = reply.json();
    let error = body.as_ref().and_then(|body| body.get("error"));
    let named = |field: &str| match error?.get(field)? {
        Value::String(text) if !text.is_empty() => Some(readable_code(text)),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let code = named("slug").or_else(|| named("code")).unwrap_or_else(|| NO_CODE.to_owned());
    let request_id = named("request_id").filter(|id| id != NO_CODE).or_else(|| reply.request_id.clone());
    let has_envelope = error.is_some_and(Value::is_object) || body.is_some_and(|b| b == serde_json::json!({}));
    Err(Failure { kind: reply.failure_by_status(code, has_envelope), request_id })
}

#[derive(Deserialize)]
pub(super) struct Page<T> {
    pub items: Vec<T>,
    #[serde(default)]
    pub next_cursor: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct WireToolkit {
    pub slug: String,
}

/// A toolkit as it is shown alone. Both fields of schemes are optional (Composio contract §6).
#[derive(Deserialize)]
pub(super) struct WireToolkitDetail {
    pub slug: String,
    #[serde(default)]
    auth_config_details: Option<Vec<WireAuthMode>>,
}

#[derive(Deserialize)]
struct WireAuthMode {
    #[serde(default)]
    mode: Option<String>,
}

impl WireToolkitDetail {
    pub fn into_schemes(self) -> Vec<String> {
        self.auth_config_details.into_iter().flatten().filter_map(|details| details.mode).collect()
    }
}

#[derive(Deserialize)]
pub(super) struct WireAuthConfig {
    pub id: String,
    #[serde(default)]
    name: Option<String>,
    toolkit: WireToolkit,
    #[serde(default)]
    auth_scheme: Option<String>,
    #[serde(default)]
    status: Option<String>,
}

impl WireAuthConfig {
    pub fn into_auth_config(self) -> AuthConfig {
        AuthConfig {
            id: self.id,
            name: self.name.unwrap_or_default(),
            toolkit: self.toolkit.slug,
            scheme: self.auth_scheme.unwrap_or_default(),
            enabled: self.status.as_deref() != Some("DISABLED"),
        }
    }
}

/// A webhook subscription; its `secret` is not read.
#[derive(Deserialize)]
pub(super) struct WireSubscription {
    pub id: String,
    webhook_url: String,
}

impl WireSubscription {
    pub fn into_subscription(self) -> WebhookSubscription {
        let end = self.webhook_url.find(['?', '#']).unwrap_or(self.webhook_url.len());
        WebhookSubscription { id: self.id, url: self.webhook_url[..end].to_owned() }
    }
}

#[derive(Deserialize)]
pub(super) struct WireCreatedAuthConfig {
    pub toolkit: WireToolkit,
    pub auth_config: WireAuthConfigRef,
}

#[derive(Deserialize)]
pub(super) struct WireAuthConfigRef {
    pub id: String,
    #[serde(default)]
    pub auth_scheme: Option<String>,
}

/// A connected account without `data` and `params`, and of `state.val` only the scopes: the rest
/// holds (masked) secrets.
#[derive(Deserialize)]
pub(super) struct WireAccount {
    pub id: String,
    #[serde(default)]
    alias: Option<String>,
    pub user_id: String,
    toolkit: WireToolkit,
    auth_config: WireAuthConfigRef,
    #[serde(default, rename = "authScheme")]
    auth_scheme: Option<String>,
    #[serde(default)]
    state: Option<WireState>,
    status: String,
    #[serde(default)]
    status_reason: Option<String>,
    #[serde(default)]
    requested_scopes: Option<Vec<String>>,
    #[serde(default)]
    updated_at: Option<String>,
}

#[derive(Deserialize)]
struct WireState {
    #[serde(default, rename = "authScheme")]
    auth_scheme: Option<String>,
    #[serde(default)]
    val: WireStateVal,
}

#[derive(Default, Deserialize)]
struct WireStateVal {
    /// A text with separators, a list, or null.
    #[serde(default)]
    scope: serde_json::Value,
}

impl WireStateVal {
    fn scopes(&self) -> Option<Vec<String>> {
        let split = |text: &str| scope_set(text).into_iter().collect::<Vec<_>>();
        match &self.scope {
            serde_json::Value::String(text) => Some(split(text)),
            serde_json::Value::Array(items) => Some(items.iter().filter_map(|i| i.as_str()).flat_map(split).collect()),
            _ => None,
        }
    }
}

impl WireAccount {
    pub fn into_account(self) -> ConnectedAccount {
        let granted_scopes = self.state.as_ref().and_then(|state| state.val.scopes());
        let state_scheme = self.state.and_then(|state| state.auth_scheme);
        ConnectedAccount {
            id: self.id,
            alias: self.alias.filter(|alias| !alias.is_empty()),
            user_id: self.user_id,
            toolkit: self.toolkit.slug,
            auth_config_id: self.auth_config.id,
            scheme: state_scheme.or(self.auth_scheme).or(self.auth_config.auth_scheme).unwrap_or_default(),
            status: status_from(&self.status),
            status_reason: self.status_reason,
            requested_scopes: self.requested_scopes,
            granted_scopes,
            updated_at: self.updated_at.as_deref().and_then(|text| Timestamp::parse(text).ok()),
        }
    }
}

pub(super) fn status_from(text: &str) -> AccountStatus {
    match text {
        "INITIALIZING" => AccountStatus::Initializing,
        "INITIATED" => AccountStatus::Initiated,
        "ACTIVE" => AccountStatus::Active,
        "FAILED" => AccountStatus::Failed,
        "EXPIRED" => AccountStatus::Expired,
        "INACTIVE" => AccountStatus::Inactive,
        "REVOKED" => AccountStatus::Revoked,
        other => AccountStatus::Other(other.to_owned()),
    }
}

/// The answer to a create. All but the id is deprecated there, so each place of the status may be empty.
#[derive(Deserialize)]
pub(super) struct WireCreatedAccount {
    pub id: String,
    #[serde(default)]
    status: Option<String>,
    #[serde(default, rename = "connectionData")]
    connection_data: Option<WireConnectionData>,
}

#[derive(Deserialize)]
struct WireConnectionData {
    #[serde(default)]
    val: Option<WireVal>,
}

#[derive(Deserialize)]
struct WireVal {
    #[serde(default)]
    status: Option<String>,
}

impl WireCreatedAccount {
    /// `Other("")` when the answer does not say.
    pub fn status(&self) -> AccountStatus {
        let inner = || self.connection_data.as_ref()?.val.as_ref()?.status.as_deref();
        status_from(self.status.as_deref().or_else(inner).unwrap_or_default())
    }
}

#[derive(Deserialize)]
pub(super) struct WirePatched {
    pub id: String,
    pub status: String,
    #[serde(default)]
    pub success: Option<bool>,
}

#[derive(Deserialize)]
pub(super) struct WireDone {
    #[serde(default)]
    pub success: Option<bool>,
}

#[derive(Deserialize)]
pub(super) struct WireLink {
    pub connected_account_id: String,
    pub redirect_url: Secret,
    pub expires_at: String,
}

/// The provider's own answer, inside Composio's 200.
#[derive(Deserialize)]
pub(super) struct WireProxy {
    pub status: u16,
    #[serde(default)]
    pub data: Value,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::reply::{Media, contract};
    use crate::ports::ApiErrorKind;

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status, media: Media::Json, retry_after_ms: Some(3_000), body: body.into(), ..Reply::default() }
    }

    #[test]
    fn both_spellings_of_the_envelope_are_read() {
        let v31 = r#"{"error":{"message":"canary","code":1803,"slug":"ActionExecute_ConnectedAccountNotFound","status":404,
                      "request_id":"req_7Qk2","suggested_fix":"canary","errors":["canary"]}}"#;
        let failure = judge(&reply(404, v31)).unwrap_err();
        assert_eq!(failure.kind, ApiErrorKind::NotFound { code: "ActionExecute_ConnectedAccountNotFound".into() });
        assert_eq!(failure.request_id.as_deref(), Some("req_7Qk2"));
        assert!(!format!("{failure:?}").contains("canary"));

        let sample = r#"{"error":{"message":"m","code":"OriginMismatch","status":400,"suggestedFix":"canary"}}"#;
        let failure = judge(&reply(400, sample)).unwrap_err();
        assert_eq!(failure.kind, ApiErrorKind::Rejected { status: 400, code: "OriginMismatch".into() });

        let number = judge(&reply(422, r#"{"error":{"message":"m","code":12,"status":422}}"#)).unwrap_err();
        assert_eq!(number.kind, ApiErrorKind::Rejected { status: 422, code: "12".into() });
    }

    #[test]
    fn every_status_has_its_kind_with_and_without_the_envelope() {
        let envelope = r#"{"error":{"message":"m","code":1,"slug":"S","status":0}}"#;
        for (status, body, expected) in [
            (401, envelope, ApiErrorKind::Unauthorized { status: 401, code: "S".into() }),
            (403, "<html>", ApiErrorKind::Unauthorized { status: 403, code: NO_CODE.into() }),
            (404, "{}", ApiErrorKind::NotFound { code: NO_CODE.into() }),
            (409, envelope, ApiErrorKind::Conflict { code: "S".into() }),
            (429, r#"{"message":"slow down"}"#, ApiErrorKind::RateLimited { retry_after_ms: Some(3_000) }),
            (429, "", ApiErrorKind::RateLimited { retry_after_ms: Some(3_000) }),
            (500, "<html>", ApiErrorKind::Server { status: 500, code: NO_CODE.into() }),
            (410, "", ApiErrorKind::Rejected { status: 410, code: NO_CODE.into() }),
        ] {
            assert_eq!(judge(&reply(status, body)).unwrap_err().kind, expected, "{status} {body}");
        }
        for body in ["<html>", "[]", r#"{"error":"text"}"#] {
            let kind = judge(&reply(404, body)).unwrap_err().kind;
            assert!(matches!(kind, ApiErrorKind::Contract { .. }), "{body}: a 404 of something else");
        }
    }

    #[test]
    fn accounts_are_read_whatever_their_tokens_look_like() {
        for token in ["REDACTED", "ya29...", "ya29.raw-canary"] {
            let body = serde_json::json!({
                "id": "ca_1", "toolkit": {"slug": "gmail"}, "user_id": "u", "alias": "",
                "auth_config": {"id": "ac_1", "auth_scheme": "X", "is_disabled": false},
                "state": {"authScheme": "BEARER_TOKEN", "val": {"status": "ACTIVE", "token": token}},
                "status": "SLEEPING", "status_reason": null, "data": {}, "updated_at": "2026-05-02T10:04:11.000Z",
            });
            let row: WireAccount = reply(200, &body.to_string()).decode().unwrap();
            let account = row.into_account();
            assert_eq!(account.status, AccountStatus::Other("SLEEPING".into()));
            assert_eq!((account.scheme.as_str(), account.alias.as_deref()), ("BEARER_TOKEN", None));
            assert!(!format!("{account:?}").contains(token));
        }
    }

    #[test]
    fn a_created_account_says_its_status_in_one_of_two_places() {
        for (body, expected) in [
            (r#"{"id":"ca_1","status":"ACTIVE"}"#, AccountStatus::Active),
            (r#"{"id":"ca_1","connectionData":{"val":{"status":"INITIATED","token":"x"}}}"#, AccountStatus::Initiated),
            (r#"{"id":"ca_1"}"#, AccountStatus::Other(String::new())),
        ] {
            let created: WireCreatedAccount = reply(201, body).decode().unwrap();
            assert_eq!(created.status(), expected);
        }
    }

    #[test]
    fn a_page_ends_where_its_cursor_is_null_or_absent() {
        for body in [r#"{"items":[],"next_cursor":null}"#, r#"{"items":[]}"#] {
            let page: Page<WireAuthConfig> = reply(200, body).decode().unwrap();
            assert!(page.items.is_empty() && page.next_cursor.is_none());
        }
        let error = reply(200, r#"{"data":[]}"#).decode::<Page<WireAuthConfig>>().err();
        assert_eq!(error, Some(contract("fields are missing or of the wrong type (line 1, column 11)")));
    }
}
