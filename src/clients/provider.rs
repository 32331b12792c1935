//! The providers' own APIs: asking who a token belongs to, with a token that is ours to use.

use std::sync::Arc;

use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue, SET_COOKIE};
use reqwest::{Method, Url};
use serde_json::Value;

use super::ProviderEndpoint;
use super::http::{Http, Request, RequestLine, is_loopback, join, judged, secret_header};
use super::reply::{Failure, NO_CODE, Reply, readable_code, refused};
use crate::domain::secret::Secret;
use crate::ports::{Api, ApiErrorKind, ApiResult, ProviderAnswer, ProviderCall, ProviderRead};

/// Any provider, at its real address or where the sandbox stands in for it.
pub struct ProviderClient {
    http: Arc<Http>,
    base_override: Option<Url>,
}

impl ProviderClient {
    pub(super) fn new(http: Arc<Http>, endpoint: ProviderEndpoint) -> Self {
        Self { http, base_override: endpoint.base_override }
    }

    fn request(&self, token: &Secret, call: &ProviderCall) -> ApiResult<Request> {
        let ProviderCall { method, url, headers, body } = call;
        let parsed = Url::parse(url).ok().filter(Url::has_host);
        // The path may hold an account id and the query anything: the host is all that errors name.
        let host = parsed.as_ref().and_then(Url::host_str).unwrap_or("{host}");
        let (http_method, name) = if method == "POST" { (Method::POST, "POST") } else { (Method::GET, "GET") };
        let line = RequestLine { api: Api::Provider, method: name, path: format!("/{host}/…").into() };

        if !matches!(method.as_str(), "GET" | "POST") {
            return Err(line.error(refused("method_not_allowed")));
        }
        let Some(url) = parsed else { return Err(line.error(refused("unusable_url"))) };
        if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback(&url)) {
            return Err(line.error(refused("insecure_url")));
        }
        let target = match &self.base_override {
            None => url,
            Some(base) => overridden(base, &url),
        };
        let mut request = Request::new(Api::Provider, http_method, line.path.clone(), target)
            .header(AUTHORIZATION, judged(&line, secret_header("Bearer ", token))?);
        for (name, value) in headers {
            let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) else {
                return Err(line.error(refused("unusable_header")));
            };
            if name == AUTHORIZATION {
                return Err(line.error(refused("authorization_header")));
            }
            request = request.header(name, value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        Ok(request)
    }
}

impl ProviderRead for ProviderClient {
    async fn whoami(&self, token: &Secret, call: &ProviderCall) -> ApiResult<Value> {
        let request = self.request(token, call)?;
        let line = request.line();
        let reply = self.http.send(request).await?;
        judged(&line, judge(&reply))
    }

    async fn ask(&self, token: &Secret, call: &ProviderCall) -> ApiResult<ProviderAnswer> {
        let request = self.request(token, call)?;
        let line = request.line();
        let reply = self.http.send(request).await?;
        if matches!(reply.status, 408 | 429 | 500..) {
            judged(&line, judge(&reply))?;
        }
        let readable = |(name, value): (&HeaderName, &HeaderValue)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())).filter(|_| name != SET_COOKIE)
        };
        Ok(ProviderAnswer {
            status: reply.status,
            headers: reply.headers.iter().filter_map(readable).collect(),
            body: Secret::new(String::from_utf8_lossy(&reply.body)),
        })
    }
}

/// `https://host:port/path?query` as `{base}/host:port/path?query`.
fn overridden(base: &Url, url: &Url) -> Url {
    let authority = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    };
    let mut target = join(base, &format!("/{authority}{}", url.path()));
    target.set_query(url.query());
    target
}

/// Reads what a provider answered. There is no common envelope: the status decides, but for two
/// habits. Slack answers 200 with `ok: false`; Google and GitHub answer 403 where others send 429.
fn judge(reply: &Reply) -> Result<Value, Failure> {
    if reply.is_success() {
        let body: Value = reply.decode()?;
        return match slack_error(&body) {
            Some(code) => Err(slack_failure(code).into()),
            None => Ok(body),
        };
    }
    let body = reply.json();
    let code = body.as_ref().and_then(error_code).map_or_else(|| NO_CODE.to_owned(), |code| readable_code(&code));
    if reply.status == 403 && is_rate_limit(reply, &code) {
        return Err(ApiErrorKind::RateLimited { retry_after_ms: reply.retry_after_ms }.into());
    }
    Err(reply.failure_by_status(code, body.is_some()).into())
}

fn slack_error(body: &Value) -> Option<&str> {
    (body.get("ok")? == &Value::Bool(false)).then_some(())?;
    body.get("error")?.as_str()
}

fn slack_failure(code: &str) -> ApiErrorKind {
    match code {
        "invalid_auth" | "not_authed" | "token_expired" | "token_revoked" | "account_inactive" | "missing_scope"
        | "no_permission" | "org_login_required" | "ekm_access_denied" => {
            ApiErrorKind::Unauthorized { status: 200, code: code.to_owned() }
        }
        "ratelimited" | "rate_limited" => ApiErrorKind::RateLimited { retry_after_ms: None },
        "internal_error" | "fatal_error" | "service_unavailable" | "request_timeout" => {
            ApiErrorKind::Server { status: 200, code: code.to_owned() }
        }
        other => ApiErrorKind::Rejected { status: 200, code: readable_code(other) },
    }
}

/// The name of an error where providers commonly put it.
fn error_code(body: &Value) -> Option<String> {
    let text = |value: Option<&Value>| match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let error = body.get("error");
    let google_reason = body.pointer("/error/errors/0/reason");
    text(google_reason)
        .or_else(|| text(error.and_then(|e| e.get("status"))))
        .or_else(|| text(error.and_then(|e| e.get("code"))))
        .or_else(|| text(error))
        .or_else(|| text(body.get("category")))
        .or_else(|| text(body.get("errorCode")))
        .or_else(|| text(body.pointer("/0/errorCode")))
}

fn is_rate_limit(reply: &Reply, code: &str) -> bool {
    reply.retry_after_ms.is_some()
        || matches!(code, "rateLimitExceeded" | "userRateLimitExceeded" | "RESOURCE_EXHAUSTED")
        || reply.headers.get("x-ratelimit-remaining").is_some_and(|left| left.as_bytes() == b"0")
}

#[cfg(test)]
mod tests {
    use super::super::reply::Media;
    use super::*;

    fn kind(status: u16, body: &str) -> ApiErrorKind {
        let reply = Reply { status, media: Media::Json, body: body.into(), ..Reply::default() };
        judge(&reply).unwrap_err().kind
    }

    #[test]
    fn a_url_maps_into_the_override_with_host_path_and_query() {
        let base = Url::parse("http://127.0.0.1:7/p/").unwrap();
        let url = Url::parse("https://api.example.com:8443/v1/me?fields=a%20b").unwrap();
        assert_eq!(overridden(&base, &url).as_str(), "http://127.0.0.1:7/p/api.example.com:8443/v1/me?fields=a%20b");
    }

    #[test]
    fn refusals_keep_the_providers_code_and_nothing_else() {
        for (status, body, expected) in [
            (401, r#"{"error":{"code":401,"status":"UNAUTHENTICATED","message":"canary"}}"#, "UNAUTHENTICATED"),
            (403, r#"{"error":"insufficient_scope","error_description":"canary"}"#, "insufficient_scope"),
            (401, r#"{"category":"EXPIRED_AUTHENTICATION","message":"canary"}"#, "EXPIRED_AUTHENTICATION"),
            (401, r#"[{"errorCode":"INVALID_SESSION_ID","message":"canary"}]"#, "INVALID_SESSION_ID"),
            (401, r#"{"error":{"code":"InvalidAuthenticationToken"}}"#, "InvalidAuthenticationToken"),
            (401, r#"{"error":"canary with spaces"}"#, NO_CODE),
        ] {
            assert_eq!(kind(status, body), ApiErrorKind::Unauthorized { status, code: expected.into() });
        }
    }

    #[test]
    fn rate_limits_under_403_are_rate_limits() {
        let google = r#"{"error":{"code":403,"errors":[{"reason":"userRateLimitExceeded"}]}}"#;
        assert_eq!(kind(403, google), ApiErrorKind::RateLimited { retry_after_ms: None });
        assert!(matches!(kind(403, r#"{"error":{"code":403}}"#), ApiErrorKind::Unauthorized { .. }));
    }

    #[test]
    fn slacks_errors_under_200_are_errors() {
        assert_eq!(
            kind(200, r#"{"ok":false,"error":"token_revoked"}"#),
            ApiErrorKind::Unauthorized { status: 200, code: "token_revoked".into() }
        );
        assert!(matches!(kind(200, r#"{"ok":false,"error":"fatal_error"}"#), ApiErrorKind::Server { .. }));
        assert!(matches!(kind(200, r#"{"ok":false,"error":"odd thing"}"#), ApiErrorKind::Rejected { .. }));
        let fine = Reply { status: 200, media: Media::Json, body: br#"{"ok":true}"#.to_vec(), ..Reply::default() };
        assert!(judge(&fine).is_ok());
    }
}
