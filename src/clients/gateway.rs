//! The gateway's admin routes, and its hot path as a client sees it (`docs/gateway.md`).

use std::collections::BTreeMap;
use std::sync::Arc;

use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::http::{Http, Request, join, judged, segment};
use super::reply::{Failure, NO_CODE, Reply, contract, readable_code};
use super::{GatewayEndpoint, SetupError, key_header};
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;
use crate::ports::{
    AlarmFire, AlarmMode, AlarmState, Api, ApiErrorKind, ApiResult, GatewayAdmin, GatewayRead, Namespace, SmokeResult,
};

/// Rows per page of alarms, the most that the gateway gives.
const PAGE_ROWS: usize = 1_000;

/// Pages after which a listing is given up: 10 million rows.
const PAGES_MAX: usize = 10_000;

/// Triplets in one smoke test.
const SMOKE_MAX: usize = 100;

/// The gateway with its admin key and one client key.
pub struct GatewayClient {
    http: Arc<Http>,
    base: Url,
    admin_key: HeaderValue,
    gateway_key: HeaderValue,
}

const ALARMS: &str = "/admin/alarms";
const ALARM: &str = "/admin/alarms/{triplet}";
const ALARM_MODE: &str = "/admin/alarms/{triplet}/mode";
const FIRES: &str = "/admin/fires";
const SMOKE: &str = "/admin/smoke";
const WHOAMI: &str = "/v1/{tenant}/{provider}/{account}/whoami";

impl GatewayClient {
    pub(super) fn new(http: Arc<Http>, endpoint: GatewayEndpoint) -> Result<Self, SetupError> {
        Ok(Self {
            http,
            admin_key: key_header(Api::Gateway, "admin key", "", &endpoint.admin_key)?,
            gateway_key: key_header(Api::Gateway, "gateway key", "Bearer ", &endpoint.gateway_key)?,
            base: endpoint.base,
        })
    }

    fn admin(&self, method: Method, template: &'static str, path: &str) -> Request {
        Request::new(Api::Gateway, method, template, join(&self.base, path))
            .header(HeaderName::from_static("x-admin-key"), self.admin_key.clone())
    }

    async fn call<T: DeserializeOwned>(&self, request: Request) -> ApiResult<T> {
        let line = request.line();
        let reply = self.http.send(request).await?;
        judged(&line, judge(&reply).and_then(|()| reply.decode().map_err(Failure::from)))
    }

    /// Calls the hot path as any client of the gateway does.
    ///
    /// The upstream's refusal is a result, not an error: `upstream_status` has it. A gateway
    /// without a token for the triplet is `ok: false, stale: true` with its 503.
    ///
    /// # Errors
    /// When the gateway does not answer, refuses the key, or does not say what it read.
    pub async fn fetch_whoami(&self, triplet: &Triplet) -> ApiResult<SmokeResult> {
        // The parts of a triplet hold nothing that needs encoding.
        let path = format!("/v1/{}/{}/{}/whoami", triplet.tenant, triplet.provider, triplet.account);
        let request = Request::new(Api::Gateway, Method::GET, WHOAMI, join(&self.base, &path))
            .header(AUTHORIZATION, self.gateway_key.clone());
        let line = request.line();
        let reply = self.http.send(request).await?;
        judged(&line, hot_path_result(&reply, triplet))
    }

    /// All pages of a listing under `field`.
    async fn pages<T>(
        &self,
        first: impl Fn() -> Request,
        rows_of: impl Fn(WirePage) -> Option<Vec<T>>,
    ) -> ApiResult<Vec<T>> {
        let line = first().line();
        let mut rows = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut request = first();
            if let Some(cursor) = &cursor {
                request = request.query("cursor", cursor);
            }
            let mut page: WirePage = self.call(request).await?;
            let next = page.cursor.take().filter(|next| !next.is_empty());
            rows.extend(rows_of(page).ok_or_else(|| line.error(contract("a page without its rows")))?);
            if next.is_none() {
                return Ok(rows);
            }
            if next == cursor {
                return Err(line.error(contract("a cursor that points to itself")));
            }
            cursor = next;
        }
        Err(line.error(contract("a listing without an end")))
    }
}

impl GatewayRead for GatewayClient {
    async fn list_alarms(&self) -> ApiResult<Vec<AlarmState>> {
        let first = || self.admin(Method::GET, ALARMS, ALARMS).query("limit", &PAGE_ROWS.to_string());
        let alarms = self.pages(first, |page| page.alarms).await?;
        // An object that appears twice because rows shifted counts once, as last seen.
        let by_triplet: BTreeMap<_, _> =
            alarms.into_iter().map(AlarmState::from).map(|alarm| (alarm.triplet.clone(), alarm)).collect();
        Ok(by_triplet.into_values().collect())
    }

    async fn read_alarm(&self, triplet: &Triplet) -> ApiResult<AlarmState> {
        let request = self.admin(Method::GET, ALARM, &alarm_path(triplet));
        let line = request.line();
        let alarm: WireAlarm = self.call(request).await?;
        judged(&line, alarm.of(triplet))
    }

    async fn list_fires(&self, since: Timestamp) -> ApiResult<Vec<AlarmFire>> {
        let first = || self.admin(Method::GET, FIRES, FIRES).query("since", &since.to_rfc3339());
        let fires = self.pages(first, |page| page.fires).await?;
        let fire = |WireFire { triplet, at, mode, wrote }| AlarmFire { triplet, at, mode, wrote };
        Ok(fires.into_iter().map(fire).collect())
    }

    async fn smoke(&self, triplets: &[Triplet]) -> ApiResult<Vec<SmokeResult>> {
        let mut results = Vec::with_capacity(triplets.len());
        for some in triplets.chunks(SMOKE_MAX) {
            let request = self.admin(Method::POST, SMOKE, SMOKE).json(&json!({"triplets": some}));
            let line = request.line();
            let answer: WireSmoke = self.call(request).await?;
            if answer.results.len() != some.len()
                || some.iter().any(|t| !answer.results.iter().any(|r| r.triplet == *t))
            {
                return Err(line.error(contract("results of other triplets than those asked for")));
            }
            results.extend(answer.results.into_iter().map(
                |WireSmokeResult { triplet, read_authority, ok, stale, upstream_status }| SmokeResult {
                    triplet,
                    read_authority,
                    ok,
                    stale,
                    upstream_status,
                },
            ));
        }
        Ok(results)
    }
}

impl GatewayAdmin for GatewayClient {
    async fn set_alarm_mode(&self, triplet: &Triplet, mode: AlarmMode) -> ApiResult<AlarmState> {
        let path = format!("{}/mode", alarm_path(triplet));
        let request = self.admin(Method::POST, ALARM_MODE, &path).json(&json!({"mode": mode}));
        let line = request.line();
        let alarm: WireAlarm = self.call(request).await?;
        judged(&line, alarm.of(triplet))
    }
}

fn alarm_path(triplet: &Triplet) -> String {
    let id = segment(&triplet.to_string()).expect("a triplet is neither empty nor dots");
    format!("/admin/alarms/{id}")
}

/// Reads `{"error":"code"}`.
fn judge(reply: &Reply) -> Result<(), Failure> {
    if reply.is_success() {
        return Ok(());
    }
    let body = reply.json();
    let code = body.as_ref().and_then(|body| body.get("error")).and_then(Value::as_str).map(readable_code);
    let has_envelope = code.is_some();
    Err(reply.failure_by_status(code.unwrap_or_else(|| NO_CODE.to_owned()), has_envelope).into())
}

fn hot_path_result(reply: &Reply, triplet: &Triplet) -> Result<SmokeResult, Failure> {
    let read_authority = match reply.headers.get("x-read-authority").map(HeaderValue::as_bytes) {
        Some(b"source") => Namespace::Source,
        Some(b"target") => Namespace::Target,
        // Without it the answer is the gateway's own and not an upstream's.
        _ => return Err(judge(reply).err().unwrap_or_else(|| contract("no `x-read-authority` header").into())),
    };
    let own_code = || reply.json()?.get("error")?.as_str().map(str::to_owned);
    let no_token = reply.status == 503 && own_code().as_deref() == Some("no_token");
    let stale = match reply.headers.get("x-token-stale").map(HeaderValue::as_bytes) {
        _ if no_token => true,
        Some(b"true") => true,
        Some(b"false") => false,
        _ => return Err(contract("no `x-token-stale` header").into()),
    };
    Ok(SmokeResult {
        triplet: triplet.clone(),
        read_authority,
        ok: reply.is_success(),
        stale,
        upstream_status: reply.status,
    })
}

#[derive(Deserialize)]
struct WirePage {
    #[serde(default)]
    alarms: Option<Vec<WireAlarm>>,
    #[serde(default)]
    fires: Option<Vec<WireFire>>,
    #[serde(default)]
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct WireAlarm {
    triplet: Triplet,
    mode: AlarmMode,
    #[serde(default)]
    alarm_at: Option<Timestamp>,
    #[serde(default)]
    last_fired_at: Option<Timestamp>,
    fires: u64,
}

impl WireAlarm {
    fn of(self, triplet: &Triplet) -> Result<AlarmState, ApiErrorKind> {
        if self.triplet == *triplet { Ok(self.into()) } else { Err(contract("another triplet than the one asked for")) }
    }
}

impl From<WireAlarm> for AlarmState {
    fn from(WireAlarm { triplet, mode, alarm_at, last_fired_at, fires }: WireAlarm) -> Self {
        Self { triplet, mode, alarm_at, last_fired_at, fires }
    }
}

#[derive(Deserialize)]
struct WireFire {
    triplet: Triplet,
    at: Timestamp,
    mode: AlarmMode,
    wrote: bool,
}

#[derive(Deserialize)]
struct WireSmoke {
    results: Vec<WireSmokeResult>,
}

#[derive(Deserialize)]
struct WireSmokeResult {
    triplet: Triplet,
    read_authority: Namespace,
    ok: bool,
    stale: bool,
    upstream_status: u16,
}

#[cfg(test)]
mod tests {
    use super::super::reply::Media;
    use super::*;

    fn reply(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Reply {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        Reply { status, media: Media::Json, headers, body: body.into(), ..Reply::default() }
    }

    #[test]
    fn the_gateways_own_errors_have_a_kind_each() {
        for (status, body, expected) in [
            (
                401,
                r#"{"error":"unauthorized"}"#,
                ApiErrorKind::Unauthorized { status: 401, code: "unauthorized".into() },
            ),
            (404, r#"{"error":"unknown_triplet"}"#, ApiErrorKind::NotFound { code: "unknown_triplet".into() }),
            (
                400,
                r#"{"error":"bad_request","message":"canary"}"#,
                ApiErrorKind::Rejected { status: 400, code: "bad_request".into() },
            ),
            (503, r#"{"error":"no_token"}"#, ApiErrorKind::Server { status: 503, code: "no_token".into() }),
        ] {
            assert_eq!(judge(&reply(status, &[], body)).unwrap_err().kind, expected);
        }
        let missing_route = judge(&reply(404, &[], "Not Found")).unwrap_err().kind;
        assert!(matches!(missing_route, ApiErrorKind::Contract { .. }), "a gateway without the admin routes");
    }

    #[test]
    fn the_hot_path_tells_what_it_served() {
        let triplet = Triplet::parse("kahuna:hubspot:default").unwrap();
        let read = |status, headers: &[_], body| hot_path_result(&reply(status, headers, body), &triplet);
        let served = read(200, &[("x-read-authority", "source"), ("x-token-stale", "false")], "{}").unwrap();
        assert!(served.ok && !served.stale && served.read_authority == Namespace::Source);
        let refused = read(401, &[("x-read-authority", "target"), ("x-token-stale", "true")], "{}").unwrap();
        assert!(!refused.ok && refused.stale && refused.upstream_status == 401);
        let empty = read(503, &[("x-read-authority", "source")], r#"{"error":"no_token"}"#).unwrap();
        assert!(!empty.ok && empty.stale);
        assert!(read(200, &[], "{}").is_err() && read(401, &[], "{}").is_err());
    }

    #[test]
    fn an_alarm_of_a_broken_triplet_or_mode_is_not_in_the_contract() {
        for body in [
            r#"{"triplet":"two:parts","mode":"refresh","fires":0}"#,
            r#"{"triplet":"a:b:c","mode":"asleep","fires":0}"#,
            r#"{"triplet":"a:b:c","mode":"refresh","fires":-1}"#,
        ] {
            let error = reply(200, &[], body).decode::<WireAlarm>().err();
            assert!(matches!(error, Some(ApiErrorKind::Contract { .. })), "{body}");
        }
    }
}
