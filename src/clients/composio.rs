//! Composio, the target custody.
//!
//! Tokens go in and never come out: what an answer says of a token (`REDACTED`, `abcd...` or
//! even the clear text) is not parsed at all, so it can never be written anywhere. Lists page by
//! offset and shift under a scan, so a scan of several pages is repeated until two agree.

mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::wire::{
    Page, WireAccount, WireAuthConfig, WireCreatedAccount, WireCreatedAuthConfig, WireDone, WireLink, WirePatched,
    WireProxy, WireSubscription, WireToolkitDetail, judge, status_from,
};
use super::http::{Http, Request, RequestLine, join, judged, segment};
use super::reply::{Failure, contract, refused};
use super::{ComposioEndpoint, OauthApp, SetupError, key_header};
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::ports::{
    AccountStatus, Api, ApiErrorKind, ApiResult, AuthConfig, ConnectedAccount, ConsentLink, ProviderCall, ProxyAnswer,
    TargetAbilities, TargetCustody, TargetRead, TargetScheme, WebhookSubscription,
};

/// Where every route starts.
const PREFIX: &str = "/api/v3.1";

/// The redirect URI that a team registers for its own OAuth app. Some toolkits still default to
/// an older one, so it is always sent.
const OAUTH_CALLBACK: &str = "/api/v3/toolkits/auth/callback";

/// Rows per page of accounts. The maximum is not documented; the official clients send this.
const ACCOUNT_ROWS: usize = 50;

/// Rows per page of auth configs. Older deployments send 50 all the same.
const AUTH_CONFIG_ROWS: usize = 200;

/// Rows per page of webhook subscriptions, the most that the API gives.
const SUBSCRIPTION_ROWS: usize = 50;

/// Pages after which a listing is given up: 5 million accounts.
const PAGES_MAX: usize = 100_000;

/// Scans after which a listing that keeps changing is taken as it is: the union of all scans.
/// An account too many is settled by looking it up; one too few would be created twice.
const SCANS_MAX: usize = 4;

/// Composio's API with one project key.
pub struct ComposioClient {
    http: Arc<Http>,
    base: Url,
    key: HeaderValue,
    oauth_apps: BTreeMap<String, OauthApp>,
}

const AUTH_CONFIGS: &str = "/auth_configs";
const ACCOUNTS: &str = "/connected_accounts";
const ACCOUNT: &str = "/connected_accounts/{id}";
const ACCOUNT_STATUS: &str = "/connected_accounts/{id}/status";
const LINK: &str = "/connected_accounts/link";
const TOOLKIT: &str = "/toolkits/{slug}";
const SUBSCRIPTIONS: &str = "/webhook_subscriptions";
const PROXY: &str = "/tools/execute/proxy";

impl ComposioClient {
    pub(super) fn new(http: Arc<Http>, endpoint: ComposioEndpoint) -> Result<Self, SetupError> {
        let key = key_header(Api::Composio, "key", "", &endpoint.key)?;
        Ok(Self { http, base: endpoint.base, key, oauth_apps: endpoint.oauth_apps })
    }

    fn request(&self, method: Method, template: &'static str, path: &str) -> Request {
        // Exactly one credential header: two, even if both are right, are refused.
        Request::new(Api::Composio, method, template, join(&self.base, &format!("{PREFIX}{path}")))
            .header(HeaderName::from_static("x-api-key"), self.key.clone())
    }

    /// A request whose `template` holds one `{…}`, filled with `id`.
    fn request_for(&self, method: Method, template: &'static str, id: &str) -> ApiResult<Request> {
        let filled = segment(id).map(|id| {
            let (before, rest) = template.split_once('{').expect("the template holds a placeholder");
            let (_, after) = rest.split_once('}').expect("the placeholder is closed");
            format!("{before}{id}{after}")
        });
        let line = self.request(method.clone(), template, template).line();
        Ok(self.request(method, template, &judged(&line, filled)?))
    }

    async fn call<T: DeserializeOwned>(&self, request: Request) -> ApiResult<T> {
        let line = request.line();
        let reply = self.http.send(request).await?;
        judged(&line, judge(&reply).and_then(|()| reply.decode().map_err(Failure::from)))
    }

    /// One walk over all pages. The flag tells whether there was more than one.
    async fn scan<T: Row>(&self, first: impl Fn() -> Request) -> ApiResult<(BTreeMap<String, T>, bool)> {
        let line = first().line();
        let mut rows = BTreeMap::new();
        let mut cursor: Option<String> = None;
        for page in 0..PAGES_MAX {
            let mut request = first();
            if let Some(cursor) = &cursor {
                request = request.query("cursor", cursor);
            }
            let Page { items, next_cursor } = self.call::<Page<T>>(request).await?;
            rows.extend(items.into_iter().map(|row| (row.id().to_owned(), row)));
            let next = next_cursor.filter(|next| !next.is_empty());
            if next.is_none() {
                return Ok((rows, page > 0));
            }
            if next == cursor {
                return Err(line.error(contract("a cursor that points to itself")));
            }
            cursor = next;
        }
        Err(line.error(contract("a listing without an end")))
    }

    /// All rows, in the order of their ids.
    async fn list<T: Row>(&self, first: impl Fn() -> Request) -> ApiResult<Vec<T>> {
        let (mut all, several_pages) = self.scan(&first).await?;
        // One page is one look at the server's table: nothing can shift.
        if several_pages {
            let mut previous: Vec<String> = all.keys().cloned().collect();
            for _ in 1..SCANS_MAX {
                let (again, _) = self.scan::<T>(&first).await?;
                let ids: Vec<String> = again.keys().cloned().collect();
                let agree = ids == previous;
                if agree {
                    all = again;
                    break;
                }
                all.extend(again);
                previous = ids;
            }
        }
        Ok(all.into_values().collect())
    }

    async fn toolkit(&self, slug: &str) -> ApiResult<Option<WireToolkitDetail>> {
        let request = self.request_for(Method::GET, TOOLKIT, slug)?;
        let line = request.line();
        match self.call::<WireToolkitDetail>(request).await {
            Ok(toolkit) if toolkit.slug.eq_ignore_ascii_case(slug) => Ok(Some(toolkit)),
            Ok(_) => Err(line.error(contract("another toolkit than the one asked for"))),
            Err(error) if matches!(error.kind, ApiErrorKind::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn accounts_request(&self) -> Request {
        // Oldest first: what is created during the scan comes at its end and shifts nothing.
        self.request(Method::GET, ACCOUNTS, ACCOUNTS)
            .query("account_type", "ALL")
            .query("order_by", "created_at")
            .query("order_direction", "asc")
            .query("limit", &ACCOUNT_ROWS.to_string())
    }
}

/// A row of a listing.
trait Row: DeserializeOwned + Send {
    fn id(&self) -> &str;
}

impl Row for WireAccount {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Row for WireSubscription {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Row for WireAuthConfig {
    fn id(&self) -> &str {
        &self.id
    }
}

impl TargetAbilities for ComposioClient {
    async fn toolkit_schemes(&self, slug: &str) -> ApiResult<Option<Vec<String>>> {
        Ok(self.toolkit(slug).await?.map(WireToolkitDetail::into_schemes))
    }
}

impl TargetRead for ComposioClient {
    async fn list_auth_configs(&self) -> ApiResult<Vec<AuthConfig>> {
        let first = || {
            self.request(Method::GET, AUTH_CONFIGS, AUTH_CONFIGS)
                .query("show_disabled", "true")
                .query("limit", &AUTH_CONFIG_ROWS.to_string())
        };
        let rows: Vec<WireAuthConfig> = self.list(first).await?;
        Ok(rows.into_iter().map(WireAuthConfig::into_auth_config).collect())
    }

    async fn list_webhook_subscriptions(&self) -> ApiResult<Vec<WebhookSubscription>> {
        let first =
            || self.request(Method::GET, SUBSCRIPTIONS, SUBSCRIPTIONS).query("limit", &SUBSCRIPTION_ROWS.to_string());
        let rows: Vec<WireSubscription> = self.list(first).await?;
        Ok(rows.into_iter().map(WireSubscription::into_subscription).collect())
    }

    async fn list_accounts(&self) -> ApiResult<Vec<ConnectedAccount>> {
        let rows: Vec<WireAccount> = self.list(|| self.accounts_request()).await?;
        Ok(rows.into_iter().map(WireAccount::into_account).collect())
    }

    async fn list_accounts_of(&self, user_id: &str) -> ApiResult<Vec<ConnectedAccount>> {
        // A comma would make two users of one, and the one would look as if it had no accounts.
        if user_id.is_empty() || user_id.contains(',') {
            return Err(self.accounts_request().line().error(refused("unusable_user_id")));
        }
        let rows: Vec<WireAccount> = self.list(|| self.accounts_request().query("user_ids", user_id)).await?;
        // A filter that the server does not know is ignored without a word.
        Ok(rows.into_iter().filter(|row| row.user_id == user_id).map(WireAccount::into_account).collect())
    }

    async fn get_account(&self, account_id: &str) -> ApiResult<ConnectedAccount> {
        let request = self.request_for(Method::GET, ACCOUNT, account_id)?;
        let line = request.line();
        let row: WireAccount = self.call(request).await?;
        same_id(&line, &row.id, account_id)?;
        Ok(row.into_account())
    }

    async fn find_toolkit(&self, slug: &str) -> ApiResult<bool> {
        Ok(self.toolkit(slug).await?.is_some())
    }

    async fn proxy(&self, account_id: &str, call: &ProviderCall) -> ApiResult<ProxyAnswer> {
        let request = self.request(Method::POST, PROXY, PROXY);
        let ProviderCall { method, url, headers, body } = call;
        if !matches!(method.as_str(), "GET" | "POST") {
            return Err(request.line().error(refused("method_not_allowed")));
        }
        // Composio adds the account's own; another would be a second credential.
        if headers.keys().any(|name| name.eq_ignore_ascii_case("authorization")) {
            return Err(request.line().error(refused("authorization_header")));
        }
        let parameters: Vec<Value> =
            headers.iter().map(|(name, value)| json!({"name": name, "value": value, "type": "header"})).collect();
        let mut wire = json!({
            "connected_account_id": account_id,
            "endpoint": url,
            "method": method,
            "parameters": parameters,
        });
        if let Some(body) = body {
            wire["body"] = body.clone();
        }
        let answer: WireProxy = self.call(request.json(&wire)).await?;
        Ok(ProxyAnswer { status: answer.status, data: answer.data })
    }
}

impl TargetCustody for ComposioClient {
    async fn create_auth_config(
        &self,
        toolkit: &str,
        name: &str,
        scheme: TargetScheme,
        scopes: &[String],
    ) -> ApiResult<AuthConfig> {
        let auth_config = match (scheme, self.oauth_apps.get(toolkit)) {
            (TargetScheme::BearerToken, _) => json!({
                "type": "use_custom_auth",
                "name": name,
                "authScheme": "BEARER_TOKEN",
                "credentials": {},
            }),
            (TargetScheme::Oauth2, Some(app)) => json!({
                "type": "use_custom_auth",
                "name": name,
                "authScheme": "OAUTH2",
                "credentials": {
                    "client_id": app.client_id,
                    "client_secret": app.client_secret.expose(),
                    "scopes": scopes,
                    "oauth_redirect_uri": join(&self.base, OAUTH_CALLBACK).as_str(),
                },
            }),
            (TargetScheme::Oauth2, None) => json!({
                "type": "use_composio_managed_auth",
                "name": name,
                "credentials": {"scopes": scopes},
            }),
        };
        let body = json!({"toolkit": {"slug": toolkit}, "auth_config": auth_config});
        let request = self.request(Method::POST, AUTH_CONFIGS, AUTH_CONFIGS).json(&body);
        let line = request.line();
        let created: WireCreatedAuthConfig = self.call(request).await?;
        if !created.toolkit.slug.eq_ignore_ascii_case(toolkit) {
            return Err(line.error(contract("an auth config of another toolkit")));
        }
        let asked_for = match scheme {
            TargetScheme::BearerToken => "BEARER_TOKEN",
            TargetScheme::Oauth2 => "OAUTH2",
        };
        Ok(AuthConfig {
            id: created.auth_config.id,
            name: name.to_owned(),
            toolkit: created.toolkit.slug,
            scheme: created.auth_config.auth_scheme.unwrap_or_else(|| asked_for.to_owned()),
            enabled: true,
        })
    }

    async fn create_bearer_account(
        &self,
        auth_config_id: &str,
        user_id: &str,
        alias: &str,
        token: &Secret,
    ) -> ApiResult<ConnectedAccount> {
        let body = json!({
            "auth_config": {"id": auth_config_id},
            "connection": {
                "user_id": user_id,
                "alias": alias,
                "state": {"authScheme": "BEARER_TOKEN", "val": {"status": "ACTIVE", "token": token.expose()}},
            },
        });
        let created: WireCreatedAccount = self.call(self.request(Method::POST, ACCOUNTS, ACCOUNTS).json(&body)).await?;
        let status = created.status();
        Ok(ConnectedAccount {
            id: created.id,
            alias: Some(alias.to_owned()),
            user_id: user_id.to_owned(),
            toolkit: String::new(),
            auth_config_id: auth_config_id.to_owned(),
            scheme: "BEARER_TOKEN".to_owned(),
            status,
            status_reason: None,
            requested_scopes: None,
            granted_scopes: None,
            updated_at: None,
        })
    }

    async fn patch_bearer(&self, account_id: &str, token: &Secret) -> ApiResult<AccountStatus> {
        let body = json!({
            "connection": {"state": {"authScheme": "BEARER_TOKEN", "val": {"token": token.expose()}}},
        });
        let request = self.request_for(Method::PATCH, ACCOUNT, account_id)?.json(&body).urgent();
        let line = request.line();
        let patched: WirePatched = self.call(request).await?;
        done(&line, patched.success)?;
        same_id(&line, &patched.id, account_id)?;
        Ok(status_from(&patched.status))
    }

    async fn create_link(
        &self,
        auth_config_id: &str,
        user_id: &str,
        alias: &str,
        callback_url: Option<&str>,
    ) -> ApiResult<ConsentLink> {
        let mut body = json!({"auth_config_id": auth_config_id, "user_id": user_id, "alias": alias});
        if let Some(callback_url) = callback_url {
            body["callback_url"] = callback_url.into();
        }
        let request = self.request(Method::POST, LINK, LINK).json(&body);
        let line = request.line();
        let link: WireLink = self.call(request).await?;
        let expires_at = Timestamp::parse(&link.expires_at)
            .map_err(|_| line.error(contract("`expires_at` is not an RFC 3339 time")))?;
        Ok(ConsentLink { account_id: link.connected_account_id, url: link.redirect_url, expires_at })
    }

    async fn set_account_enabled(&self, account_id: &str, enabled: bool) -> ApiResult<()> {
        let request = self.request_for(Method::PATCH, ACCOUNT_STATUS, account_id)?.json(&json!({"enabled": enabled}));
        let line = request.line();
        let answer: WireDone = self.call(request).await?;
        done(&line, answer.success)
    }

    async fn delete_account(&self, account_id: &str) -> ApiResult<()> {
        // Revoking upstream could kill the grant that the final account was given with the same client.
        let request = self.request_for(Method::DELETE, ACCOUNT, account_id)?.query("revoke_on_delete", "false");
        let line = request.line();
        let answer: WireDone = self.call(request).await?;
        done(&line, answer.success)
    }
}

/// `success: false` under a 2xx is not in the contract; nobody knows what it did.
fn done(line: &RequestLine, success: Option<bool>) -> ApiResult<()> {
    if success == Some(false) { Err(line.error(contract("`success` is false under a 2xx"))) } else { Ok(()) }
}

fn same_id(line: &RequestLine, found: &str, asked_for: &str) -> ApiResult<()> {
    if found == asked_for { Ok(()) } else { Err(line.error(contract("another account than the one asked for"))) }
}
