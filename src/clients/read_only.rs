//! Single systems for those that only read: what these give has no method that writes, and Nango's
//! none that refreshes.

use std::sync::Arc;

use super::http::{Http, is_loopback};
use super::{
    Clock, CloudflareClient, CloudflareEndpoint, ComposioClient, ComposioEndpoint, ProviderClient, ProviderEndpoint,
    SetupError, Timeouts, check_base,
};
use crate::ports::{Api, KvInspect, ProviderRead, TargetRead};
use reqwest::Url;

/// Any KV namespace of an account.
///
/// # Errors
/// As [`super::HttpOutside::new`].
pub fn kv_inspect(endpoint: CloudflareEndpoint, clock: Clock) -> Result<impl KvInspect, SetupError> {
    let http = reader(Api::Cloudflare, Some(&endpoint.base), clock)?;
    CloudflareClient::new(http, endpoint)
}

/// Composio's lists and its proxy.
///
/// # Errors
/// As [`super::HttpOutside::new`].
pub fn target_read(endpoint: ComposioEndpoint, clock: Clock) -> Result<impl TargetRead, SetupError> {
    let http = reader(Api::Composio, Some(&endpoint.base), clock)?;
    ComposioClient::new(http, endpoint)
}

/// The providers' whoami.
///
/// # Errors
/// As [`super::HttpOutside::new`].
pub fn provider_read(endpoint: ProviderEndpoint, clock: Clock) -> Result<impl ProviderRead, SetupError> {
    let http = reader(Api::Provider, endpoint.base_override.as_ref(), clock)?;
    Ok(ProviderClient::new(http, endpoint))
}

/// Without a base the system is reached where it really is.
fn reader(api: Api, base: Option<&Url>, clock: Clock) -> Result<Arc<Http>, SetupError> {
    if let Some(base) = base {
        check_base(api, base, false)?;
    }
    let needs_remote = base.is_none_or(|base| base.scheme() == "https" || !is_loopback(base));
    Ok(Arc::new(Http::new(clock, Timeouts::default(), needs_remote).map_err(SetupError::Tls)?))
}
