//! The one way in which the clients speak HTTP: within the request budget, bounded in time and size,
//! never following a redirect, counting what it sends, and turning every transport fault into an [`ApiErrorKind`].
//!
//! Nothing here sleeps or repeats a request. (The connection pool may resend a request whose
//! connection was closed before one byte of it was written; nobody can see the difference.)
//! Texts that end up in errors are ours: no body, header value or query string is quoted.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::multipart::Form;
use reqwest::{Client, Method, Url};
use serde_json::Value;

use super::budget::Budgets;
use super::quota::{self, Told};
use super::reply::{Failure, Media, Reply, contract, header, parse_http_date, readable_code, refused, retry_after_ms};
use crate::domain::budget::Lane;
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::ports::{Api, ApiError, ApiErrorKind, ApiResult, Counter, Traffic};

/// The largest answer that is read, in bytes. A page of 2,000 Nango connections takes about 1 MB.
pub const BODY_BYTES_MAX: usize = 10 * 1024 * 1024;

/// The largest answer to a bulk read of 100 KV values, in bytes.
pub const BULK_BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Idle connections kept per host. The engine runs a handful of calls at a time.
const IDLE_CONNECTIONS_MAX: usize = 16;

/// How long to wait for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the connection (with TLS) stands.
    pub connect: Duration,
    /// From the start of the call until the last byte of the body.
    pub total: Duration,
}

impl Default for Timeouts {
    /// 5 s to connect. 30 s in all, twice the time after which Nango gives up waiting for its own refresh lock.
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), total: Duration::from_secs(30) }
    }
}

/// Tells what time it is; the sandbox tells its own time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// One request, ready to be sent.
pub(super) struct Request {
    pub api: Api,
    pub method: Method,
    /// What errors call the path, such as `/connections/{id}`: no ids, no query.
    pub path: Cow<'static, str>,
    pub url: Url,
    pub headers: HeaderMap,
    pub payload: Payload,
    pub body_bytes_max: usize,
    /// Whose part of the request budget it spends.
    pub lane: Lane,
}

pub(super) enum Payload {
    Empty,
    Json(Vec<u8>),
    Multipart(Form),
}

impl Request {
    pub fn new(api: Api, method: Method, path: impl Into<Cow<'static, str>>, url: Url) -> Self {
        Self {
            api,
            method,
            path: path.into(),
            url,
            headers: HeaderMap::new(),
            payload: Payload::Empty,
            body_bytes_max: BODY_BYTES_MAX,
            lane: Lane::Ordinary,
        }
    }

    /// Marks a request without which a served token would end.
    pub fn urgent(mut self) -> Self {
        self.lane = Lane::Urgent;
        self
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.url.query_pairs_mut().append_pair(name, value);
        self
    }

    pub fn json(mut self, body: &Value) -> Self {
        self.payload = Payload::Json(body.to_string().into_bytes());
        self
    }

    /// What an error about this request needs to know of it.
    pub fn line(&self) -> RequestLine {
        RequestLine { api: self.api, method: method_name(&self.method), path: self.path.clone() }
    }
}

/// Which call an error is about.
#[derive(Clone, Debug)]
pub(super) struct RequestLine {
    pub api: Api,
    pub method: &'static str,
    pub path: Cow<'static, str>,
}

impl RequestLine {
    pub fn error(&self, failure: impl Into<Failure>) -> ApiError {
        let Failure { kind, request_id } = failure.into();
        let path = match request_id {
            Some(id) => format!("{} (request `{id}`)", self.path),
            None => self.path.to_string(),
        };
        ApiError { api: self.api, method: self.method, path, kind }
    }
}

/// Everything but RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// `text` as exactly one path segment.
///
/// # Errors
/// For the three texts that no encoding can make a segment: URL parsers fold `.` and `..` even
/// when they are percent-encoded, so `DELETE /connections/..` would address another resource.
pub(super) fn segment(text: &str) -> Result<String, ApiErrorKind> {
    if matches!(text, "" | "." | "..") {
        return Err(refused("unusable_id"));
    }
    Ok(utf8_percent_encode(text, SEGMENT).to_string())
}

/// `base` with `path` (already encoded, starting with `/`) behind it.
pub(super) fn join(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url
}

/// The header value `prefix` + `secret`, marked so that no layer prints it.
///
/// # Errors
/// When the secret holds a character that no header may hold.
pub(super) fn secret_header(prefix: &str, secret: &Secret) -> Result<HeaderValue, ApiErrorKind> {
    let mut value = HeaderValue::from_str(&format!("{prefix}{}", secret.expose()))
        .map_err(|_| refused("credential_not_a_header_value"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Whether `url` stays on this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

/// Sends requests and keeps the counts.
pub(super) struct Http {
    /// For plain HTTP on this machine: no proxy of the environment, no CA certificates needed.
    local: Client,
    /// For everything else; absent when nothing else is configured.
    remote: Option<Client>,
    clock: Clock,
    budgets: Budgets,
    traffic: Mutex<[Traffic; Api::ALL.len()]>,
    counters: Mutex<[Option<Counter>; Api::ALL.len()]>,
}

impl Http {
    /// # Errors
    /// When `needs_remote` and the system's CA certificates cannot be read.
    pub fn new(clock: Clock, timeouts: Timeouts, needs_remote: bool) -> Result<Self, reqwest::Error> {
        // Fails only when somebody installed a provider before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            Client::builder()
                .user_agent(concat!("cutover/", env!("CARGO_PKG_VERSION")))
                .http1_only()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(timeouts.connect)
                .timeout(timeouts.total)
                .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        };
        let local = builder().no_proxy().tls_certs_only([]).build()?;
        let remote = if needs_remote { Some(builder().build()?) } else { None };
        Ok(Self {
            local,
            remote,
            clock,
            budgets: Budgets::default(),
            traffic: Mutex::default(),
            counters: Mutex::default(),
        })
    }

    /// The time by the clock that the clients were given.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// Sends one request once.
    ///
    /// # Errors
    /// When the budget has no room for it, no complete answer came, it is too large, or it is a redirect. Any other status is
    /// for the caller's envelope to judge.
    pub async fn send(&self, request: Request) -> Result<Reply, ApiError> {
        let line = request.line();
        self.exchange(request).await.map_err(|kind| line.error(kind))
    }

    async fn exchange(&self, request: Request) -> Result<Reply, ApiErrorKind> {
        let Request { api, method, path, url, headers, payload, body_bytes_max, lane } = request;
        // Providers are many; each has limits of its own.
        let host = (api == Api::Provider).then_some(&*path);
        let client = if url.scheme() == "http" && is_loopback(&url) {
            &self.local
        } else {
            self.remote.as_ref().ok_or_else(|| refused("address_not_configured"))?
        };
        let origin = url.origin();
        let mut builder = client.request(method, url.clone()).headers(headers).header(ACCEPT, "application/json");
        builder = match payload {
            Payload::Empty => builder,
            Payload::Json(bytes) => builder.header(CONTENT_TYPE, "application/json").body(bytes),
            Payload::Multipart(form) => builder.multipart(form),
        };
        let request = builder.build().map_err(|_| refused("unusable_request"))?;

        let sent_at = (self.clock)();
        self.budgets.spend(api, host, lane, sent_at).map_err(|wait_ms| ApiErrorKind::OverBudget { wait_ms })?;
        self.count(api, |traffic| traffic.requests += 1);
        let mut response = client.execute(request).await.map_err(|e| unreachable(&e))?;

        let received_at = (self.clock)();
        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let server_time = header(&headers, DATE).and_then(parse_http_date);
        self.count(api, |traffic| {
            traffic.limited += u64::from(status == 429);
            if let Some(time) = server_time {
                traffic.skew_ms = Some(skew_ms(time, sent_at, received_at));
            }
        });
        let now = server_time.unwrap_or(received_at);
        let retry_after_ms = retry_after_ms(&headers, now);
        let mut told = quota::read(&headers, now);
        if status == 429 {
            told.push(Told::Refused { retry_after_ms });
        }
        self.budgets.heard(api, host, &told, received_at);
        if let Some(counter) = quota::counter(&headers) {
            self.counters.lock().unwrap_or_else(PoisonError::into_inner)[api as usize] = Some(counter);
        }
        if (300..400).contains(&status) {
            let target = header(&headers, LOCATION).and_then(|to| url.join(to).ok());
            let elsewhere = target.is_some_and(|to| to.origin() != origin);
            return Err(contract(if elsewhere { "redirect to another origin" } else { "redirect" }));
        }

        let announced = header(&headers, CONTENT_LENGTH).and_then(|text| text.parse::<usize>().ok());
        let body = match read_body(&mut response, announced, body_bytes_max).await {
            Ok(body) => body,
            // The status alone tells enough, and a 429 must keep its Retry-After.
            Err(_) if status >= 400 => Vec::new(),
            Err(kind) => return Err(kind),
        };
        Ok(Reply {
            status,
            media: Media::of(header(&headers, CONTENT_TYPE)),
            retry_after_ms,
            request_id: header(&headers, HeaderName::from_static("cf-ray")).map(readable_code),
            headers,
            body,
        })
    }

    /// Traffic per API since the last call.
    pub fn take_traffic(&self) -> [Traffic; Api::ALL.len()] {
        std::mem::take(&mut *self.traffic.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What each API's last answer said of its own request counter.
    pub fn counters(&self) -> [Option<Counter>; Api::ALL.len()] {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, api: Api, change: impl FnOnce(&mut Traffic)) {
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut traffic[api as usize]);
    }
}

async fn read_body(
    response: &mut reqwest::Response,
    announced: Option<usize>,
    bytes_max: usize,
) -> Result<Vec<u8>, ApiErrorKind> {
    let too_large = || contract(format!("a body of more than {bytes_max} bytes"));
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_large());
    }
    let mut body = Vec::with_capacity(announced.unwrap_or_default());
    while let Some(chunk) = response.chunk().await.map_err(|e| unreachable(&e))? {
        if body.len() + chunk.len() > bytes_max {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Tells a transport fault in words of ours, and whether the request may have arrived.
fn unreachable(error: &reqwest::Error) -> ApiErrorKind {
    let mut detail = if error.is_timeout() { "timed out" } else { "connection failed" };
    let mut source: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(cause) = source {
        if let Some(known) = cause.downcast_ref::<std::io::Error>().and_then(io_detail) {
            detail = known;
        }
        source = cause.source();
    }
    if error.is_dns() {
        detail = "host name not found";
    }
    ApiErrorKind::Unreachable { sent: !error.is_connect(), detail: detail.to_owned() }
}

fn io_detail(error: &std::io::Error) -> Option<&'static str> {
    use std::io::ErrorKind;
    // An I/O error steps over what it wraps when asked for its source.
    if let Some(inner) = error.get_ref() {
        if inner.is::<rustls::Error>() {
            return Some("TLS handshake failed");
        }
        if let Some(known) = inner.downcast_ref::<std::io::Error>().and_then(io_detail) {
            return Some(known);
        }
    }
    match error.kind() {
        ErrorKind::ConnectionRefused => Some("connection refused"),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Some("connection reset"),
        ErrorKind::UnexpectedEof => Some("connection closed early"),
        ErrorKind::TimedOut => Some("timed out"),
        _ => None,
    }
}

/// Names the call in the failure, if there is one.
pub(super) fn judged<T>(line: &RequestLine, result: Result<T, impl Into<Failure>>) -> ApiResult<T> {
    result.map_err(|failure| line.error(failure))
}

fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        _ => "a request",
    }
}

/// How far a server's clock is from ours, ms: it read `theirs` at some time between `sent_at` and
/// `received_at` of ours, so what lies between them is no difference.
fn skew_ms(theirs: Timestamp, sent_at: Timestamp, received_at: Timestamp) -> i64 {
    theirs.since(received_at).max(0) + theirs.since(sent_at).min(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_an_answer_took_is_no_skew() {
        let at = Timestamp::from_secs;
        for (theirs, expected) in [(at(100), 0), (at(130), 0), (at(161), 1_000), (at(39), -61_000)] {
            assert_eq!(skew_ms(theirs, at(100), at(160)), expected);
        }
    }

    #[test]
    fn a_segment_holds_any_id_or_refuses_it() {
        assert_eq!(segment("tokens:kahuna:hubspot:default").unwrap(), "tokens%3Akahuna%3Ahubspot%3Adefault");
        assert_eq!(segment("a/../b?c#d%e").unwrap(), "a%2F..%2Fb%3Fc%23d%25e");
        for bad in ["", ".", ".."] {
            assert!(segment(bad).is_err(), "{bad:?}");
        }
        let base = Url::parse("http://127.0.0.1:1/prefix/").unwrap();
        let url = join(&base, &format!("/connections/{}", segment("a/../..").unwrap()));
        assert_eq!(url.as_str(), "http://127.0.0.1:1/prefix/connections/a%2F..%2F..");
    }

    #[test]
    fn loopback_is_recognised_and_nothing_else() {
        for (url, expected) in [
            ("http://127.0.0.1:80", true),
            ("http://[::1]:80", true),
            ("http://localhost", true),
            ("http://localhost.example", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
