//! The outside world over HTTP: the five systems behind the traits of [`crate::ports`].
//!
//! Wire shapes stay in here. Each system has its own envelope, read by one pure function that
//! the unit tests feed with bytes; [`mod@http`] does the transport for all of them. No client
//! sleeps, retries or decides: it says what happened and when trying again may help.

mod budget;
pub mod cloudflare;
pub mod composio;
pub mod gateway;
pub mod http;
pub mod nango;
pub mod provider;
mod quota;
mod read_only;
mod reply;
pub mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use reqwest::Url;

pub use self::cloudflare::CloudflareClient;
pub use self::composio::ComposioClient;
pub use self::gateway::GatewayClient;
pub use self::http::{Clock, Timeouts};
pub use self::nango::NangoClient;
pub use self::provider::ProviderClient;
pub use self::read_only::{kv_inspect, provider_read, target_read};
use crate::domain::budget::{Allowance, BudgetState, Lane, Limit};
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::ports::{Api, Counter, Outside, OutsideRead, SourceRead, SourceRights, Traffic};

/// Where the five systems are, and the keys for them.
#[derive(Clone, Debug)]
pub struct Endpoints {
    pub nango: NangoEndpoint,
    pub composio: ComposioEndpoint,
    pub cloudflare: CloudflareEndpoint,
    pub gateway: GatewayEndpoint,
    pub provider: ProviderEndpoint,
    /// Lets keys travel unencrypted to another machine, for a self-hosted Nango in a private
    /// network. Loopback is always allowed.
    pub allow_insecure_http: bool,
}

#[derive(Clone)]
pub struct NangoEndpoint {
    /// `https://api.nango.dev` or a self-hosted server.
    pub base: Url,
    pub key: Secret,
}

#[derive(Clone)]
pub struct ComposioEndpoint {
    /// `https://backend.composio.dev`, without `/api/v3.1`.
    pub base: Url,
    /// A project key (`ak_…`).
    pub key: Secret,
    /// Own OAuth apps by toolkit. A toolkit without one uses Composio's app.
    pub oauth_apps: BTreeMap<String, OauthApp>,
}

/// An OAuth app that the team registered with a provider, with Composio's callback as redirect URI.
#[derive(Clone, Debug)]
pub struct OauthApp {
    pub client_id: String,
    pub client_secret: Secret,
}

#[derive(Clone)]
pub struct CloudflareEndpoint {
    /// `https://api.cloudflare.com/client/v4/accounts/{id}`, or the prefix of a local runtime's API.
    pub base: Url,
    pub token: Secret,
    /// Id of the namespace that the gateway reads today.
    pub kv_source: String,
    /// Id of the namespace of the new custody.
    pub kv_target: String,
    /// Id of the database that holds `kv_audit`.
    pub d1: String,
}

#[derive(Clone)]
pub struct GatewayEndpoint {
    pub base: Url,
    /// For the admin routes.
    pub admin_key: Secret,
    /// For the hot path.
    pub gateway_key: Secret,
}

#[derive(Clone)]
pub struct ProviderEndpoint {
    /// When set, `https://host/path?query` is called as `{base}/host/path?query`: the sandbox
    /// stands in for every provider. Tokens then go nowhere else.
    pub base_override: Option<Url>,
}

/// A base URL without the parts that may hold a secret.
struct Shown<'a>(&'a Url);

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut host = self.0.host_str().unwrap_or_default().to_owned();
        if let Some(port) = self.0.port() {
            host.push_str(&format!(":{port}"));
        }
        write!(f, "{}://{host}{}", self.0.scheme(), self.0.path())
    }
}

impl fmt::Debug for NangoEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, key } = self;
        f.debug_struct("NangoEndpoint").field("base", &Shown(base)).field("key", key).finish()
    }
}

impl fmt::Debug for ComposioEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, key, oauth_apps } = self;
        f.debug_struct("ComposioEndpoint")
            .field("base", &Shown(base))
            .field("key", key)
            .field("oauth_apps", oauth_apps)
            .finish()
    }
}

impl fmt::Debug for CloudflareEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, token, kv_source, kv_target, d1 } = self;
        f.debug_struct("CloudflareEndpoint")
            .field("base", &Shown(base))
            .field("token", token)
            .field("kv_source", kv_source)
            .field("kv_target", kv_target)
            .field("d1", d1)
            .finish()
    }
}

impl fmt::Debug for GatewayEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, admin_key, gateway_key } = self;
        f.debug_struct("GatewayEndpoint")
            .field("base", &Shown(base))
            .field("admin_key", admin_key)
            .field("gateway_key", gateway_key)
            .finish()
    }
}

impl fmt::Debug for ProviderEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base_override } = self;
        f.debug_struct("ProviderEndpoint").field("base_override", &base_override.as_ref().map(Shown)).finish()
    }
}

/// Why the clients cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("the base URL of {} {problem}", api.name())]
    Base { api: Api, problem: &'static str },
    #[error("the base URL of {} is plain http to another machine, which would show its key to the network", api.name())]
    InsecureHttp { api: Api },
    #[error("the {what} of {} is empty or holds a character that no HTTP header may hold", api.name())]
    Key { api: Api, what: &'static str },
    #[error("the {what} of {} cannot be part of a URL", api.name())]
    Id { api: Api, what: &'static str },
    /// Mostly: the machine has no CA certificates.
    #[error("cannot set up TLS")]
    Tls(#[source] reqwest::Error),
}

/// [`Outside`] over HTTP. Cheap to share by reference; keep it in an `Arc` to share by value.
pub struct HttpOutside {
    http: Arc<http::Http>,
    nango: NangoClient,
    composio: ComposioClient,
    cloudflare: CloudflareClient,
    gateway: GatewayClient,
    provider: ProviderClient,
}

impl HttpOutside {
    /// `clock` serves only to compare our time with the servers' `Date`.
    ///
    /// # Errors
    /// When a base URL or a key cannot be used, or the system has no CA certificates.
    pub fn new(endpoints: Endpoints, clock: Clock) -> Result<Self, SetupError> {
        Self::with_timeouts(endpoints, clock, Timeouts::default())
    }

    /// # Errors
    /// As [`HttpOutside::new`].
    pub fn with_timeouts(endpoints: Endpoints, clock: Clock, timeouts: Timeouts) -> Result<Self, SetupError> {
        let Endpoints { nango, composio, cloudflare, gateway, provider, allow_insecure_http } = endpoints;
        let bases = [
            (Api::Nango, Some(&nango.base)),
            (Api::Composio, Some(&composio.base)),
            (Api::Cloudflare, Some(&cloudflare.base)),
            (Api::Gateway, Some(&gateway.base)),
            (Api::Provider, provider.base_override.as_ref()),
        ];
        // Without an override the providers are reached where they really are.
        let mut needs_remote = provider.base_override.is_none();
        for (api, base) in bases {
            let Some(base) = base else { continue };
            check_base(api, base, allow_insecure_http)?;
            needs_remote |= base.scheme() == "https" || !http::is_loopback(base);
        }
        let http = Arc::new(http::Http::new(clock, timeouts, needs_remote).map_err(SetupError::Tls)?);
        Ok(Self {
            nango: NangoClient::new(Arc::clone(&http), nango)?,
            composio: ComposioClient::new(Arc::clone(&http), composio)?,
            cloudflare: CloudflareClient::new(Arc::clone(&http), cloudflare)?,
            gateway: GatewayClient::new(Arc::clone(&http), gateway)?,
            provider: ProviderClient::new(Arc::clone(&http), provider),
            http,
        })
    }
}

/// Nango's lists and nothing else, for planners: what this gives cannot ask for a credential,
/// which is what makes Nango refresh.
///
/// # Errors
/// As [`HttpOutside::new`].
pub fn source_read(endpoint: NangoEndpoint, clock: Clock) -> Result<impl SourceRead, SetupError> {
    source_rights(endpoint, clock)
}

/// The same, to be asked what its key may do.
///
/// # Errors
/// As [`HttpOutside::new`].
pub fn source_rights(endpoint: NangoEndpoint, clock: Clock) -> Result<impl SourceRights, SetupError> {
    check_base(Api::Nango, &endpoint.base, false)?;
    let needs_remote = endpoint.base.scheme() == "https" || !http::is_loopback(&endpoint.base);
    let http = Arc::new(http::Http::new(clock, Timeouts::default(), needs_remote).map_err(SetupError::Tls)?);
    NangoClient::new(http, endpoint)
}

impl fmt::Debug for HttpOutside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpOutside").finish_non_exhaustive()
    }
}

impl OutsideRead for HttpOutside {
    type Source = NangoClient;
    type Target = ComposioClient;
    type Cloudflare = CloudflareClient;
    type Gateway = GatewayClient;

    fn read_source(&self) -> &NangoClient {
        &self.nango
    }

    fn read_target(&self) -> &ComposioClient {
        &self.composio
    }

    fn read_cloudflare(&self) -> &CloudflareClient {
        &self.cloudflare
    }

    fn read_gateway(&self) -> &GatewayClient {
        &self.gateway
    }
}

impl Outside for HttpOutside {
    type Source = NangoClient;
    type Target = ComposioClient;
    type Cloudflare = CloudflareClient;
    type Gateway = GatewayClient;
    type Provider = ProviderClient;

    fn source(&self) -> &NangoClient {
        &self.nango
    }

    fn target(&self) -> &ComposioClient {
        &self.composio
    }

    fn cloudflare(&self) -> &CloudflareClient {
        &self.cloudflare
    }

    fn gateway(&self) -> &GatewayClient {
        &self.gateway
    }

    fn provider(&self) -> &ProviderClient {
        &self.provider
    }

    fn take_traffic(&self) -> BTreeMap<Api, Traffic> {
        Api::ALL.into_iter().zip(self.http.take_traffic()).collect()
    }

    fn limit_requests(&self, limits: &BTreeMap<Api, Limit>) {
        self.http.budgets().limit(limits);
    }

    fn counters(&self) -> BTreeMap<Api, Counter> {
        let told = Api::ALL.into_iter().zip(self.http.counters());
        told.filter_map(|(api, counter)| Some((api, counter?))).collect()
    }

    fn allowance(&self, api: Api, lane: Lane, now: Timestamp) -> Allowance {
        self.http.budgets().allowance(api, lane, now)
    }

    fn budgets(&self, now: Timestamp) -> Vec<BudgetState> {
        self.http.budgets().snapshot(now)
    }
}

fn check_base(api: Api, base: &Url, allow_insecure_http: bool) -> Result<(), SetupError> {
    let problem = if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        Some("is not an http or https address")
    } else if !base.username().is_empty() || base.password().is_some() {
        Some("holds a user name or password")
    } else if base.query().is_some() || base.fragment().is_some() {
        Some("holds a query or a fragment")
    } else {
        None
    };
    if let Some(problem) = problem {
        return Err(SetupError::Base { api, problem });
    }
    if base.scheme() == "http" && !http::is_loopback(base) && !allow_insecure_http {
        return Err(SetupError::InsecureHttp { api });
    }
    Ok(())
}

/// A key as a header value, checked once at set-up.
fn key_header(
    api: Api,
    what: &'static str,
    prefix: &str,
    key: &Secret,
) -> Result<reqwest::header::HeaderValue, SetupError> {
    if key.is_empty() {
        return Err(SetupError::Key { api, what });
    }
    http::secret_header(prefix, key).map_err(|_| SetupError::Key { api, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn endpoints(base: &str) -> Endpoints {
        let base = Url::parse(base).unwrap();
        let key = || Secret::new("canary-key");
        Endpoints {
            nango: NangoEndpoint { base: base.clone(), key: key() },
            composio: ComposioEndpoint {
                base: base.clone(),
                key: key(),
                oauth_apps: BTreeMap::from([(
                    "gmail".to_owned(),
                    OauthApp { client_id: "77-abc".to_owned(), client_secret: key() },
                )]),
            },
            cloudflare: CloudflareEndpoint {
                base: base.clone(),
                token: key(),
                kv_source: "kv1".into(),
                kv_target: "kv2".into(),
                d1: "d1".into(),
            },
            gateway: GatewayEndpoint { base: base.clone(), admin_key: key(), gateway_key: key() },
            provider: ProviderEndpoint { base_override: Some(base) },
            allow_insecure_http: false,
        }
    }

    fn build(endpoints: Endpoints) -> Result<HttpOutside, SetupError> {
        HttpOutside::new(endpoints, Arc::new(|| Timestamp::from_secs(0)))
    }

    #[test]
    fn debug_of_the_endpoints_shows_no_key_even_one_inside_a_url() {
        let shown = format!("{:?}", endpoints("http://user:canary-password@127.0.0.1:9/x?canary=1"));
        assert!(!shown.contains("canary") && shown.contains("http://127.0.0.1:9/x"), "{shown}");
    }

    #[test]
    fn bases_and_keys_that_cannot_work_are_refused_by_name() {
        assert!(build(endpoints("http://127.0.0.1:9")).is_ok());
        for (base, expected) in [
            ("http://u:p@127.0.0.1:9", "nango holds a user name"),
            ("http://127.0.0.1:9?x=1", "nango holds a query"),
            ("ftp://127.0.0.1", "not an http"),
            ("http://nango.example", "plain http to another machine"),
        ] {
            let error = build(endpoints(base)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let mut broken = endpoints("http://127.0.0.1:9");
        broken.gateway.admin_key = Secret::new("canary\nkey");
        let error = build(broken).unwrap_err().to_string();
        assert!(error.contains("admin key of gateway") && !error.contains("canary"), "{error}");
        let mut broken = endpoints("http://127.0.0.1:9");
        broken.cloudflare.kv_target = "..".into();
        assert!(matches!(build(broken), Err(SetupError::Id { api: Api::Cloudflare, .. })));
    }
}
