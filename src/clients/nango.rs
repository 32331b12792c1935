//! Nango, the source custody.
//!
//! `GET /connections/{id}` refreshes within the last 15 minutes of a token's life, so only
//! [`SourceCustody`] has it. A GET never asks for refresh tokens. Refresh failures come as
//! `invalid_credentials` under three statuses; the texts behind them tell a cool-down (30 s
//! after a failure) and exhaustion (4 failed days) apart, and nothing else does.

use std::collections::BTreeMap;
use std::sync::Arc;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::http::{Http, Request, join, judged, secret_header, segment};
use super::reply::{Failure, NO_CODE, Reply, contract, readable_code};
use super::{NangoEndpoint, SetupError, key_header};
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::ports::{
    Api, ApiErrorKind, ApiResult, ConnectSession, SourceConnection, SourceCredential, SourceCustody, SourceIntegration,
    SourceRead, SourceRights,
};

/// Rows per page, the most that Nango takes.
const PAGE_ROWS: usize = 2_000;

/// Pages after which a listing is given up: 20 million connections.
const PAGES_MAX: usize = 10_000;

/// Full pages in a row that may bring nothing new. Rows shift by as many as were created during
/// the scan, so one such page is possible; three mean that the server ignores `page`.
const STALE_PAGES_MAX: usize = 3;

/// Nango's API with one environment's key.
pub struct NangoClient {
    http: Arc<Http>,
    base: Url,
    key: HeaderValue,
}

impl NangoClient {
    pub(super) fn new(http: Arc<Http>, endpoint: NangoEndpoint) -> Result<Self, SetupError> {
        let key = key_header(Api::Nango, "key", "Bearer ", &endpoint.key)?;
        Ok(Self { http, base: endpoint.base, key })
    }

    fn request(&self, method: Method, template: &'static str, path: &str) -> Request {
        Request::new(Api::Nango, method, template, join(&self.base, path)).header(AUTHORIZATION, self.key.clone())
    }

    fn connection_request(
        &self,
        method: Method,
        integration_key: &str,
        connection_id: &str,
    ) -> Result<Request, ApiErrorKind> {
        let path = format!("/connections/{}", segment(connection_id)?);
        Ok(self.request(method, CONNECTION, &path).query("provider_config_key", integration_key))
    }

    async fn call<T: DeserializeOwned>(&self, request: Request) -> ApiResult<T> {
        let line = request.line();
        let reply = self.http.send(request).await?;
        judged(&line, judge(&reply).and_then(|()| reply.decode().map_err(Failure::from)))
    }

    /// A call whose success says nothing more.
    async fn act(&self, request: Request) -> ApiResult<()> {
        self.call::<serde::de::IgnoredAny>(request).await.map(|_| ())
    }
}

const CONNECTIONS: &str = "/connections";
const CONNECTION: &str = "/connections/{id}";
const METADATA: &str = "/connections/metadata";
const INTEGRATIONS: &str = "/integrations";
const SESSIONS: &str = "/connect/sessions";
const OWN_SESSION: &str = "/connect/session";

/// The key of a connection's metadata with which a delete revokes nothing upstream.
const SKIP_REVOCATION: &str = "skipTokenRevocation";

/// A connection, an integration and an end user that nobody has.
const NOBODY: &str = "cutover-probe";

impl SourceRead for NangoClient {
    async fn list_connections(&self) -> ApiResult<Vec<SourceConnection>> {
        let mut rows = BTreeMap::new();
        let mut stale_pages = 0;
        for page in 0..PAGES_MAX {
            let request = self
                .request(Method::GET, CONNECTIONS, CONNECTIONS)
                .query("limit", &PAGE_ROWS.to_string())
                .query("page", &page.to_string());
            let line = request.line();
            let WireConnections { connections } = self.call(request).await?;
            let (got, known) = (connections.len(), rows.len());
            rows.extend(connections.into_iter().map(|row| (row.id, row.into_connection())));
            if got < PAGE_ROWS {
                return Ok(rows.into_values().collect());
            }
            stale_pages = if rows.len() == known { stale_pages + 1 } else { 0 };
            if stale_pages == STALE_PAGES_MAX {
                return Err(line.error(contract("the same page again and again")));
            }
        }
        let line = self.request(Method::GET, CONNECTIONS, CONNECTIONS).line();
        Err(line.error(contract("a listing without an end")))
    }

    async fn list_integrations(&self) -> ApiResult<Vec<SourceIntegration>> {
        let wire: WireIntegrations = self.call(self.request(Method::GET, INTEGRATIONS, INTEGRATIONS)).await?;
        let integration = |row: WireIntegration| SourceIntegration {
            display_name: row.display_name.unwrap_or_else(|| row.unique_key.clone()),
            key: row.unique_key,
            provider: row.provider,
        };
        Ok(wire.data.into_iter().map(integration).collect())
    }
}

impl SourceCustody for NangoClient {
    async fn fetch_credential(&self, integration_key: &str, connection_id: &str) -> ApiResult<SourceCredential> {
        let line = self.request(Method::GET, CONNECTION, CONNECTION).line();
        let request = judged(&line, self.connection_request(Method::GET, integration_key, connection_id))?;
        let wire: WireConnectionDetail = self.call(request.urgent()).await?;
        judged(&line, wire.into_credential(connection_id))
    }

    async fn skip_revocation(&self, integration_key: &str, connection_id: &str, skip: &Value) -> ApiResult<()> {
        let body = json!({
            "connection_id": connection_id,
            "provider_config_key": integration_key,
            "metadata": {SKIP_REVOCATION: skip},
        });
        self.act(self.request(Method::PATCH, METADATA, METADATA).json(&body)).await
    }

    async fn delete_connection(&self, integration_key: &str, connection_id: &str) -> ApiResult<()> {
        let line = self.request(Method::DELETE, CONNECTION, CONNECTION).line();
        let request = judged(&line, self.connection_request(Method::DELETE, integration_key, connection_id))?;
        self.act(request).await
    }

    async fn open_session(
        &self,
        end_user_id: &str,
        display_name: Option<&str>,
        integration_key: &str,
    ) -> ApiResult<ConnectSession> {
        let mut end_user = json!({"id": end_user_id});
        if let Some(name) = display_name {
            end_user["display_name"] = name.into();
        }
        // The tag is what lists show; the end user is what webhooks of older setups carry.
        let body = json!({
            "tags": {"end_user_id": end_user_id}, "end_user": end_user, "allowed_integrations": [integration_key],
        });
        let request = self.request(Method::POST, SESSIONS, SESSIONS).json(&body);
        let line = request.line();
        let wire: WireSession = self.call(request).await?;
        let expires_at = Timestamp::parse(&wire.data.expires_at)
            .map_err(|_| line.error(contract("`expires_at` is not an RFC 3339 time")))?;
        Ok(ConnectSession { url: wire.data.connect_link, expires_at })
    }
}

impl SourceRights for NangoClient {
    async fn may_read_credentials(&self) -> ApiResult<bool> {
        let line = self.request(Method::GET, CONNECTION, CONNECTION).line();
        let request = judged(&line, self.connection_request(Method::GET, NOBODY, NOBODY))?;
        let answer: ApiResult<serde::de::IgnoredAny> = self.call(request.query("refresh_token", "true")).await;
        match answer.map_err(|error| error.kind) {
            Err(ApiErrorKind::Unauthorized { status: 403, .. }) => Ok(false),
            Err(ApiErrorKind::NotFound { .. }) => Ok(true),
            Ok(_) => Err(line.error(contract("a connection that nobody has"))),
            Err(kind) => Err(line.error(kind)),
        }
    }

    async fn may_open_sessions(&self) -> ApiResult<bool> {
        let request = self.request(Method::POST, SESSIONS, SESSIONS).json(&json!({}));
        let line = request.line();
        match self.act(request).await.map_err(|error| error.kind) {
            Err(ApiErrorKind::Unauthorized { status: 403, .. }) => Ok(false),
            Err(ApiErrorKind::Rejected { status: 400, code }) if code == "invalid_body" => Ok(true),
            Ok(()) => Err(line.error(contract("a session for nobody"))),
            Err(kind) => Err(line.error(kind)),
        }
    }

    async fn try_session(&self) -> ApiResult<()> {
        let body = json!({"tags": {"end_user_id": NOBODY}});
        let made: WireSession = self.call(self.request(Method::POST, SESSIONS, SESSIONS).json(&body)).await?;
        let request = Request::new(Api::Nango, Method::DELETE, OWN_SESSION, join(&self.base, OWN_SESSION));
        let line = request.line();
        let token = made.data.token.ok_or_else(|| line.error(contract("a session without a token")))?;
        let own = judged(&line, secret_header("Bearer ", &token))?;
        let reply = self.http.send(request.header(AUTHORIZATION, own)).await?;
        judged(&line, judge(&reply))
    }
}

#[derive(Deserialize)]
struct WireSession {
    data: WireSessionData,
}

#[derive(Deserialize)]
struct WireSessionData {
    #[serde(default)]
    token: Option<Secret>,
    connect_link: Secret,
    expires_at: String,
}

/// Reads `{"error":{"code",…}}` and the statuses around it. Neither `message` nor `payload` is
/// kept: Nango may put a serialised connection row there.
fn judge(reply: &Reply) -> Result<(), Failure> {
    if reply.is_success() {
        return Ok(());
    }
    let body = reply.json();
    let error = body.as_ref().and_then(|body| body.get("error"));
    let code = error.and_then(|e| e.get("code")).and_then(Value::as_str).map(readable_code);
    let message = error.and_then(|e| e.get("message")).and_then(Value::as_str).unwrap_or_default();
    let status = reply.status;
    let kind = match (status, code.as_deref()) {
        (429, _) | (_, Some("too_many_request")) => ApiErrorKind::RateLimited { retry_after_ms: reply.retry_after_ms },
        (_, Some("invalid_credentials")) => ApiErrorKind::RefreshFailed {
            status,
            code: "invalid_credentials".to_owned(),
            cooldown: status == 424 && is_cooldown(message),
            exhausted: message.to_ascii_lowercase().contains("refresh limit has been reached"),
        },
        (400..500, Some(code @ ("unknown_connection" | "unknown_provider_config" | "not_found"))) => {
            ApiErrorKind::NotFound { code: code.to_owned() }
        }
        _ => {
            let has_envelope = code.is_some();
            reply.failure_by_status(code.unwrap_or_else(|| NO_CODE.to_owned()), has_envelope)
        }
    };
    Err(kind.into())
}

fn is_cooldown(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("backing off") || message.contains("recent refresh attempt failed")
}

#[derive(Deserialize)]
struct WireConnections {
    connections: Vec<WireConnection>,
}

#[derive(Deserialize)]
struct WireConnection {
    id: i64,
    connection_id: String,
    provider_config_key: String,
    provider: String,
    #[serde(default)]
    errors: Option<Vec<WireErrorMark>>,
    #[serde(default)]
    end_user: Option<WireEndUser>,
    #[serde(default)]
    tags: Option<Map<String, Value>>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    metadata: Option<Value>,
}

#[derive(Deserialize)]
struct WireErrorMark {
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct WireEndUser {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    organization: Option<WireOrganization>,
}

#[derive(Deserialize)]
struct WireOrganization {
    #[serde(default)]
    id: Option<String>,
}

fn has_auth_error(errors: Option<&[WireErrorMark]>) -> bool {
    errors.unwrap_or_default().iter().any(|mark| mark.kind.as_deref() == Some("auth"))
}

impl WireConnection {
    fn into_connection(self) -> SourceConnection {
        let tag = |name: &str| self.tags.as_ref()?.get(name)?.as_str().map(str::to_owned);
        let organization = |user: &WireEndUser| user.organization.as_ref()?.id.clone();
        SourceConnection {
            number: self.id,
            end_user_id: tag("end_user_id").or_else(|| self.end_user.as_ref()?.id.clone()),
            organization_id: tag("organization_id").or_else(|| self.end_user.as_ref().and_then(organization)),
            auth_error: has_auth_error(self.errors.as_deref()),
            skip_token_revocation: self
                .metadata
                .and_then(|mut metadata| Some(metadata.get_mut(SKIP_REVOCATION)?.take())),
            created_at: self.created.as_deref().and_then(|text| Timestamp::parse(text).ok()),
            connection_id: self.connection_id,
            integration_key: self.provider_config_key,
            provider: self.provider,
        }
    }
}

#[derive(Deserialize)]
struct WireIntegrations {
    data: Vec<WireIntegration>,
}

#[derive(Deserialize)]
struct WireIntegration {
    unique_key: String,
    provider: String,
    #[serde(default)]
    display_name: Option<String>,
}

#[derive(Deserialize)]
struct WireConnectionDetail {
    connection_id: String,
    #[serde(default)]
    errors: Option<Vec<WireErrorMark>>,
    #[serde(default)]
    connection_config: Option<Map<String, Value>>,
    credentials: Map<String, Value>,
}

impl WireConnectionDetail {
    fn into_credential(mut self, asked_for: &str) -> Result<SourceCredential, ApiErrorKind> {
        if self.connection_id != asked_for {
            return Err(contract("another connection than the one asked for"));
        }
        let auth_mode = match self.credentials.get("type") {
            Some(Value::String(mode)) => readable_code(mode),
            // What a key without `connections:read_credentials` is shown. No refresh happened.
            None if self.credentials.is_empty() => {
                return Err(ApiErrorKind::Unauthorized { status: 200, code: "credentials_withheld".to_owned() });
            }
            _ => return Err(contract("credentials without a type")),
        };
        let field = match auth_mode.as_str() {
            "OAUTH2" | "APP" => "access_token",
            "OAUTH2_CC" | "TWO_STEP" | "JWT" | "SIGNATURE" => "token",
            "API_KEY" => "apiKey",
            other => return Err(contract(format!("credentials of type `{other}`, which are no single token"))),
        };
        let access_token = match self.credentials.remove(field) {
            Some(Value::String(token)) if !token.is_empty() => Secret::new(token),
            _ => return Err(contract(format!("credentials of type `{auth_mode}` without `{field}`"))),
        };
        let expires_at = match self.credentials.get("expires_at") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => {
                Some(Timestamp::parse(text).map_err(|_| contract("`expires_at` is not an RFC 3339 time"))?)
            }
            Some(_) => return Err(contract("`expires_at` is not a text")),
        };
        let raw = |name: &str| {
            let text = self.credentials.get("raw")?.get(name)?.as_str()?;
            (!text.is_empty()).then(|| text.to_owned())
        };
        Ok(SourceCredential {
            scope: raw("scope"),
            token_type: raw("token_type"),
            auth_mode,
            access_token,
            expires_at,
            connection_config: without_secrets(self.connection_config.unwrap_or_default()),
            auth_error: has_auth_error(self.errors.as_deref()),
        })
    }
}

/// Drops what looks like a secret, by name or by shape, at any depth.
///
/// Connection configurations hold host names and ids that an entry needs, but providers may have
/// put keys there as well, and the map travels on into KV values and whoami URLs.
fn without_secrets(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(name, _)| !is_secret_name(name))
        .filter_map(|(name, value)| Some((name, without_secret_values(value)?)))
        .collect()
}

fn without_secret_values(value: Value) -> Option<Value> {
    match value {
        Value::String(text) if is_secret_shaped(&text) => None,
        Value::Object(map) => Some(Value::Object(without_secrets(map))),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_secret_values).collect())),
        other => Some(other),
    }
}

fn is_secret_name(name: &str) -> bool {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let parts = [
        "token",
        "secret",
        "password",
        "passwd",
        "passphrase",
        "credential",
        "privatekey",
        "apikey",
        "accesskey",
        "assertion",
        "signature",
        "cookie",
        "certificate",
        "authorization",
        "bearer",
        "jwt",
        "session",
    ];
    name.ends_with("key") || parts.iter().any(|part| name.contains(part))
}

/// Longer than any host name or id, or of a form that only credentials have.
fn is_secret_shaped(text: &str) -> bool {
    if text.len() > 253 || text.contains("-----BEGIN") {
        return true;
    }
    let prefixes = ["eyJ", "ya29.", "xox", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "Bearer ", "Basic "];
    if prefixes.iter().any(|prefix| text.starts_with(prefix)) {
        return true;
    }
    // A URL may carry a password or a signature.
    Url::parse(text).is_ok_and(|url| url.has_host() && (url.password().is_some() || url.query().is_some()))
}

#[cfg(test)]
mod tests {
    use super::super::reply::Media;
    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status, media: Media::Json, retry_after_ms: Some(1_000), body: body.into(), ..Reply::default() }
    }

    fn kind(status: u16, body: &str) -> ApiErrorKind {
        judge(&reply(status, body)).unwrap_err().kind
    }

    fn error(code: &str, message: &str) -> String {
        json!({"error": {"code": code, "message": message, "payload": {"connection": "canary"}}}).to_string()
    }

    #[test]
    fn every_error_of_the_contract_has_its_kind() {
        let unauthorized = |status, code: &str| ApiErrorKind::Unauthorized { status, code: code.into() };
        let not_found = |code: &str| ApiErrorKind::NotFound { code: code.into() };
        for (status, code, expected) in [
            (401, "missing_auth_header", unauthorized(401, "missing_auth_header")),
            (401, "malformed_auth_header", unauthorized(401, "malformed_auth_header")),
            (401, "invalid_secret_key_format", unauthorized(401, "invalid_secret_key_format")),
            (401, "unknown_account", unauthorized(401, "unknown_account")),
            (403, "forbidden", unauthorized(403, "forbidden")),
            (400, "invalid_body", ApiErrorKind::Rejected { status: 400, code: "invalid_body".into() }),
            (400, "resource_capped", ApiErrorKind::Rejected { status: 400, code: "resource_capped".into() }),
            (413, "request_too_large", ApiErrorKind::Rejected { status: 413, code: "request_too_large".into() }),
            (415, "invalid_content_type", ApiErrorKind::Rejected { status: 415, code: "invalid_content_type".into() }),
            (400, "unknown_provider_config", not_found("unknown_provider_config")),
            (404, "not_found", not_found("not_found")),
            (400, "unknown_connection", not_found("unknown_connection")),
            (404, "unknown_connection", not_found("unknown_connection")),
            (429, "too_many_request", ApiErrorKind::RateLimited { retry_after_ms: Some(1_000) }),
            (500, "server_error", ApiErrorKind::Server { status: 500, code: "server_error".into() }),
            (500, "generic_error_support", ApiErrorKind::Server { status: 500, code: "generic_error_support".into() }),
        ] {
            let found = kind(status, &error(code, "canary"));
            assert_eq!(found, expected);
            assert!(!format!("{found} {found:?}").contains("canary"));
        }
    }

    #[test]
    fn the_four_guises_of_a_failed_refresh_are_told_apart() {
        for (status, message, cooldown, exhausted) in [
            (
                400,
                "The external API returned an error when trying to refresh the access token. Please try again later.",
                false,
                false,
            ),
            (500, "An unhandled error of type 'x' with payload ''", false, false),
            (424, "A recent refresh attempt failed. Backing off before retrying.", true, false),
            (424, "The refresh limit has been reached for this connection.", false, true),
        ] {
            let expected =
                ApiErrorKind::RefreshFailed { status, code: "invalid_credentials".into(), cooldown, exhausted };
            assert_eq!(kind(status, &error("invalid_credentials", message)), expected);
        }
    }

    #[test]
    fn errors_without_the_envelope_fall_back_to_their_status() {
        assert!(matches!(kind(404, "{}"), ApiErrorKind::Contract { .. }));
        assert_eq!(kind(502, "<html>"), ApiErrorKind::Server { status: 502, code: NO_CODE.into() });
        assert_eq!(kind(400, "[]"), ApiErrorKind::Rejected { status: 400, code: NO_CODE.into() });
        assert_eq!(kind(429, ""), ApiErrorKind::RateLimited { retry_after_ms: Some(1_000) });
    }

    #[test]
    fn a_list_row_keeps_what_the_inventory_needs() {
        let body = r#"{"connections":[
            {"id":41,"connection_id":"b7a3","provider_config_key":"hubspot","provider":"hubspot",
             "errors":[{"type":"sync","log_id":"1"},{"type":"auth","log_id":"2"}],
             "end_user":{"id":"other","email":null,"organization":{"id":"org"}},
             "tags":{"end_user_id":"acme__hubspot__default"},"metadata":null,"created":"2026-09-14T08:02:11.4+00:00"},
            {"id":42,"connection_id":"x","provider_config_key":"k","provider":"p","errors":[],"end_user":null,"tags":{}}]}"#;
        let wire: WireConnections = reply(200, body).decode().unwrap();
        let rows: Vec<_> = wire.connections.into_iter().map(WireConnection::into_connection).collect();
        assert_eq!(rows[0].end_user_id.as_deref(), Some("acme__hubspot__default"));
        assert_eq!(rows[0].organization_id.as_deref(), Some("org"));
        assert!(rows[0].auth_error && !rows[1].auth_error);
        assert_eq!(rows[0].created_at, Some(Timestamp::parse("2026-09-14T08:02:11.400Z").unwrap()));
        assert_eq!((rows[1].end_user_id.as_deref(), rows[1].created_at), (None, None));
    }

    fn credential(body: Value) -> Result<SourceCredential, ApiErrorKind> {
        reply(200, &body.to_string()).decode::<WireConnectionDetail>()?.into_credential("c")
    }

    #[test]
    fn an_oauth_credential_is_read_with_scope_and_harmless_configuration() {
        let found = credential(json!({
            "connection_id": "c", "errors": [],
            "connection_config": {"instance_url": "https://eu.example", "apiKey": "canary", "deep": {"refresh_token": "canary", "id": 7},
                                  "link": "https://h.example/?sig=canary", "odd": "eyJcanary"},
            "credentials": {"type": "OAUTH2", "access_token": "at-1", "expires_at": "2026-10-02T10:45:00.118Z",
                            "raw": {"scope": "a b", "token_type": "bearer"}},
        }))
        .unwrap();
        assert_eq!(found.access_token.expose(), "at-1");
        assert_eq!((found.scope.as_deref(), found.token_type.as_deref()), (Some("a b"), Some("bearer")));
        assert_eq!(
            Value::Object(found.connection_config),
            json!({"instance_url": "https://eu.example", "deep": {"id": 7}})
        );
    }

    #[test]
    fn other_credential_types_are_read_where_they_are_one_token() {
        let key = credential(json!({"connection_id": "c", "credentials": {"type": "API_KEY", "apiKey": "k"}})).unwrap();
        assert_eq!((key.access_token.expose(), key.expires_at), ("k", None));
        for kind in ["OAUTH2_CC", "TWO_STEP", "JWT", "SIGNATURE"] {
            assert!(credential(json!({"connection_id": "c", "credentials": {"type": kind, "token": "t"}})).is_ok());
        }
        let basic = credential(json!({"connection_id": "c", "credentials": {"type": "BASIC", "password": "canary"}}));
        assert!(
            matches!(basic, Err(ApiErrorKind::Contract { detail }) if detail.contains("BASIC") && !detail.contains("canary"))
        );
    }

    #[test]
    fn withheld_foreign_or_broken_credentials_are_errors() {
        let withheld = credential(json!({"connection_id": "c", "credentials": {}}));
        assert!(matches!(withheld, Err(ApiErrorKind::Unauthorized { status: 200, .. })));
        for body in [
            json!({"connection_id": "d", "credentials": {"type": "OAUTH2", "access_token": "canary"}}),
            json!({"connection_id": "c", "credentials": {"type": "OAUTH2", "access_token": ""}}),
            json!({"connection_id": "c", "credentials": {"type": "OAUTH2", "access_token": "canary", "expires_at": "canary"}}),
            json!({"connection_id": "c", "credentials": {"type": "OAUTH2", "access_token": "canary", "expires_at": 5}}),
            json!({"connection_id": "c", "credentials": "canary"}),
            json!({"connection_id": "c"}),
        ] {
            let error = credential(body).unwrap_err();
            assert!(matches!(error, ApiErrorKind::Contract { .. }));
            assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
        }
    }
}
