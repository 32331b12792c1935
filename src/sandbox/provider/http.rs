//! The providers over HTTP: whoami, token endpoint, authorize, revoke.
//!
//! One listener stands in for every provider: `https://host/path` is served at `/host/path`.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::domain::secret::same_secret;
use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::script::TokenTwist;
use crate::sandbox::world::{GatewayKind, World};

use super::{CODE_LIFE_MS, Client, Code, Party, Refusal, TokenAnswer, shapes};

/// A code and what must come with it.
#[derive(Clone, Copy, Debug)]
struct Exchange<'a> {
    code: &'a str,
    client_id: &'a str,
    redirect_uri: &'a str,
    /// Of PKCE.
    verifier: Option<&'a str>,
    client: Client,
    by: Party,
}

/// A catalogue URL cut into host and path; the host is `None` where a placeholder stands for it.
struct Template<'a> {
    host: Option<&'a str>,
    path: &'a str,
}

impl<'a> Template<'a> {
    fn new(url: &'a str) -> Self {
        let url = url.split('?').next().unwrap_or(url);
        if let Some(rest) = url.strip_prefix('{') {
            let path = rest.split_once('}').map_or("", |(_, path)| path);
            return Self { host: None, path };
        }
        let rest = url.strip_prefix("https://").unwrap_or(url);
        let split = rest.find('/').unwrap_or(rest.len());
        let (host, path) = rest.split_at(split);
        Self { host: (!host.contains('{')).then_some(host), path }
    }

    fn matches(&self, host: &str, path: &str) -> bool {
        let path_matches = match (self.path.split_once('{'), self.path.split_once('}')) {
            (Some((before, _)), Some((_, after))) => path.starts_with(before) && path.ends_with(after),
            _ => path.trim_end_matches('/') == self.path.trim_end_matches('/'),
        };
        path_matches && self.host.is_none_or(|h| h == host)
    }
}

impl World {
    /// Answers a request to the provider listener.
    pub(in crate::sandbox) fn provider_http(&mut self, call: &Call) -> Reply {
        let trimmed = call.path.trim_start_matches('/');
        let (host, path) = match trimmed.find('/') {
            Some(i) => (&trimmed[..i], &trimmed[i..]),
            None => (trimmed, "/"),
        };
        let matching = |url: &str| Template::new(url).matches(host, path);
        let mut token_endpoints = Vec::new();
        let mut revoke_endpoint = None;
        for (i, (_, facts)) in self.providers.integrations.iter().enumerate() {
            if matching(&facts.token_url) {
                token_endpoints.push(i);
            }
            if facts.revoke_url.as_deref().is_some_and(matching) {
                revoke_endpoint = revoke_endpoint.or(Some(i));
            }
        }
        if !token_endpoints.is_empty() && call.method == "POST" {
            return self.token_endpoint(&token_endpoints, call, Party::Other);
        }
        if let Some(integration) = revoke_endpoint.filter(|_| matches!(call.method.as_str(), "POST" | "DELETE")) {
            return self.revoke_endpoint(integration, call);
        }
        if call.method == "GET"
            && (path.ends_with("/authorize") || path.ends_with("/auth"))
            && call.param("client_id").is_some()
        {
            return self.authorize_endpoint(call);
        }
        let token = call.bearer().unwrap_or_default().to_owned();
        self.call_provider(&call.method, host, path, &token)
    }

    /// A provider's API as any custodian calls it: whoami with a bearer token.
    pub(in crate::sandbox) fn call_provider(&self, method: &str, host: &str, path: &str, token: &str) -> Reply {
        let found = self
            .providers
            .integrations
            .iter()
            .position(|(_, facts)| Template::new(&facts.whoami.url).matches(host, path));
        let Some(integration) = found else {
            return Reply::json(404, &json!({"error": "not_found", "message": "no provider has this path"}));
        };
        let (key, facts) = &self.providers.integrations[integration];
        if method != facts.whoami.method {
            return Reply::json(405, &json!({"error": "method_not_allowed"}));
        }
        let Some(token) = self.providers.find(token) else { return shapes::unauthorized(key, None) };
        let grant = &self.providers.grants[token.grant];
        let user = &self.providers.users[grant.user];
        let right_host = user.host().is_none_or(|h| h == host);
        if grant.integration != integration || !right_host {
            return shapes::unauthorized(key, None);
        }
        match self.providers.standing(&token, self.now()) {
            super::Standing::Valid => {}
            dead => return shapes::unauthorized(key, Some(dead)),
        }
        let body = shapes::whoami(self.seed(), key, &facts.whoami.identity_fields, &user.identity);
        let reply = Reply::json(200, &body);
        if &**key == "github" { reply.with_header("x-oauth-scopes", grant.scopes.join(", ")) } else { reply }
    }

    /// Splits an absolute URL and calls it; `None` when it is not `https://host/path`.
    pub(in crate::sandbox) fn call_provider_url(&self, method: &str, url: &str, token: &str) -> Option<Reply> {
        let rest = url.strip_prefix("https://")?;
        let rest = rest.split(['?', '#']).next().unwrap_or(rest);
        let split = rest.find('/').unwrap_or(rest.len());
        let (host, path) = rest.split_at(split);
        Some(self.call_provider(method, host, if path.is_empty() { "/" } else { path }, token))
    }

    /// The token endpoint that these integrations share, asked by `by`.
    pub(in crate::sandbox) fn token_endpoint(&mut self, integrations: &[usize], call: &Call, by: Party) -> Reply {
        let form = call.form();
        let field = |name: &str| form.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let (mut id, mut secret) = (field("client_id"), field("client_secret"));
        let basic = call
            .header("authorization")
            .and_then(|v| v.strip_prefix("Basic "))
            .and_then(|v| STANDARD.decode(v).ok())
            .and_then(|v| String::from_utf8(v).ok());
        if let Some((user, password)) = basic.as_deref().and_then(|v| v.split_once(':')) {
            (id, secret) = (Some(user.to_owned()), Some(password.to_owned()));
        }
        let known = integrations.iter().find_map(|i| {
            let client = self.known_client(*i, id.as_deref()?)?;
            let right = same_secret(client.1.as_bytes(), secret.as_deref()?.as_bytes());
            right.then_some((*i, client.0))
        });
        let Some((integration, client)) = known else {
            return shapes::refusal("", Refusal::Client);
        };
        let key = self.providers.key(integration).to_owned();
        let answer = match field("grant_type").as_deref() {
            Some("refresh_token") => {
                let presented = field("refresh_token").unwrap_or_default();
                let owner = self.providers.grant_of_refresh(&presented);
                let ours = owner.is_some_and(|g| {
                    let grant = &self.providers.grants[g];
                    grant.client == client && self.providers.key(grant.integration) == key
                });
                if ours { self.refresh_grant(&presented, self.caller(client, by)) } else { Err(Refusal::Dead) }
            }
            Some("authorization_code") => {
                let code = field("code").unwrap_or_default();
                let (verifier, redirect) = (field("code_verifier"), field("redirect_uri").unwrap_or_default());
                let exchange = Exchange {
                    code: &code,
                    client_id: id.as_deref().unwrap_or_default(),
                    redirect_uri: &redirect,
                    verifier: verifier.as_deref(),
                    client,
                    by,
                };
                match self.exchange_code(&exchange) {
                    Ok(answer) => Ok(answer),
                    Err(Refusal::Told(told)) => Err(Refusal::Told(told)),
                    Err(_) => {
                        return Reply::json(
                            400,
                            &json!({"error": "invalid_grant", "error_description": "Malformed auth code."}),
                        );
                    }
                }
            }
            _ => return Reply::json(400, &json!({"error": "unsupported_grant_type"})),
        };
        match answer {
            Ok(answer) => {
                let mut body = token_answer_body(&answer);
                if key == "slack" {
                    body.insert("ok".into(), true.into());
                }
                Reply::json(200, &Value::Object(body))
            }
            Err(refusal) => shapes::refusal(&key, refusal),
        }
    }

    /// Which of the two apps a client id is, and its secret.
    pub(in crate::sandbox) fn known_client(&self, integration: usize, id: &str) -> Option<(Client, String)> {
        let key = self.providers.key(integration);
        let keys = self.keys_ref();
        if let Some(app) = keys.legacy_clients.get(key).filter(|app| app.client_id == id) {
            return Some((Client::Legacy, app.client_secret.clone()));
        }
        let toolkits = self.providers.integration(integration).provider.values().filter_map(|p| p.toolkit.as_deref());
        let mut apps = toolkits.filter_map(|t| keys.composio_clients.get(t));
        apps.find(|app| app.client_id == id).map(|app| (Client::Composio, app.client_secret.clone()))
    }

    /// Who really refreshes. Beside Nango, a gateway outside of the world is the only holder of the
    /// team's client.
    fn caller(&self, client: Client, by: Party) -> Party {
        match (self.options().gateway, client, by) {
            (GatewayKind::Workerd, Client::Legacy, Party::Other) => Party::DoAlarm,
            _ => by,
        }
    }

    /// `grant_type=authorization_code` (RFC 6749 §4.1.3, RFC 7636 §4.6).
    fn exchange_code(&mut self, exchange: &Exchange<'_>) -> Result<TokenAnswer, Refusal> {
        let now = self.now();
        // A code works once, also when the exchange then fails.
        let code = self.providers.codes.remove(exchange.code).ok_or(Refusal::Dead)?;
        let proven = match (&code.challenge, exchange.verifier) {
            (None, _) => true,
            (Some(challenge), Some(verifier)) => {
                &URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes())) == challenge
            }
            (Some(_), None) => false,
        };
        let right_place = code.client_id == exchange.client_id && code.redirect_uri == exchange.redirect_uri;
        if !proven || !right_place || now > code.expires_at {
            return Err(Refusal::Dead);
        }
        let integration = self.providers.users[code.user].integration;
        let told = self.scripts.take_token(self.providers.key(integration));
        let told_answer =
            matches!(told, Some(TokenTwist::NoExpiry | TokenTwist::KeepRefreshToken | TokenTwist::Rotate));
        if let Some(refused) = told.filter(|_| !told_answer) {
            return Err(Refusal::Told(refused));
        }
        let grant = self.providers.consent(code.user, exchange.client, code.scopes, None, now);
        let token = self.providers.mint(grant, exchange.by, now);
        let mut answer = self.providers.answer(token, told != Some(TokenTwist::KeepRefreshToken));
        if told == Some(TokenTwist::NoExpiry) {
            answer.expires_in_s = None;
        }
        Ok(answer)
    }

    /// Where a browser goes to consent at a provider.
    pub(in crate::sandbox) fn provider_authorize_url(&self, integration: usize) -> String {
        let url = &self.providers.integration(integration).token_url;
        let host = url.strip_prefix("https://").unwrap_or(url).split('/').next().unwrap_or_default();
        // A host with a placeholder is the tenant's own; any name will do, the client id decides.
        let host = if host.contains('{') { "login.example" } else { host };
        match self.address_of(|urls| &urls.provider, "") {
            here if here.is_empty() => format!("https://{host}/authorize"),
            here => format!("{here}/{host}/authorize"),
        }
    }

    fn authorize_endpoint(&mut self, call: &Call) -> Reply {
        let (client_id, redirect) =
            (call.param("client_id").unwrap_or_default(), call.param("redirect_uri").unwrap_or_default());
        let found = (0..self.providers.integrations.len()).find(|i| self.known_client(*i, client_id).is_some());
        let Some(integration) = found else {
            return Reply::html(401, "<h1>invalid_client</h1>");
        };
        let method = call.param("code_challenge_method").unwrap_or("plain");
        let challenge = call.param("code_challenge").map(str::to_owned);
        if redirect.is_empty()
            || call.param("response_type") != Some("code")
            || (challenge.is_some() && method != "S256")
        {
            return Reply::html(400, "<h1>invalid_request</h1>");
        }
        let hint = call.param("login_hint").unwrap_or_default();
        let person = self.nango_person_of(call.param("state").unwrap_or_default());
        let users = &self.providers.users;
        let of_integration = || users.iter().enumerate().filter(|(_, u)| u.integration == integration);
        let Some(user) = of_integration()
            .find(|(_, u)| u.identity == hint)
            .or_else(|| of_integration().find(|(i, _)| Some(*i) == person))
            .or_else(|| of_integration().next())
            .map(|(i, _)| i)
        else {
            return Reply::html(403, "<h1>access_denied</h1>");
        };
        let scopes: Vec<String> = call
            .param("scope")
            .unwrap_or_default()
            .split([' ', ','])
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect();
        let now = self.now();
        self.providers.codes.retain(|_, c| c.expires_at >= now);
        let labels = ["code", client_id, call.param("state").unwrap_or_default()];
        let code = draw::text(self.seed(), &labels, now.millis().unsigned_abs(), 43);
        let separator = if redirect.contains('?') { '&' } else { '?' };
        let query: String = form_urlencoded::Serializer::new(String::new())
            .append_pair("code", &code)
            .extend_pairs(call.param("state").map(|s| ("state", s)))
            .finish();
        let expires_at = now.plus_ms(CODE_LIFE_MS);
        self.providers.codes.insert(
            code,
            Code { user, client_id: client_id.into(), redirect_uri: redirect.into(), scopes, challenge, expires_at },
        );
        Reply::html(302, "").with_header("location", format!("{redirect}{separator}{query}"))
    }

    fn revoke_endpoint(&mut self, integration: usize, call: &Call) -> Reply {
        let token = call
            .form()
            .into_iter()
            .find(|(n, _)| n == "token" || n == "refresh_token")
            .map(|(_, v)| v)
            .or_else(|| call.json()?.get("access_token")?.as_str().map(str::to_owned))
            .or_else(|| call.bearer().map(str::to_owned))
            .unwrap_or_default();
        let now = self.now();
        if let Some(grant) = self.providers.grant_of_refresh(&token) {
            if self.providers.grants[grant].revoked_at.is_some() {
                return Reply::json(400, &json!({"error": "invalid_token"}));
            }
            self.revoke_grant(grant);
        } else if let Some(found) = self.providers.find(&token) {
            // providers.md §3.1: at Google, revoking an access token drops its refresh token too.
            if self.providers.key(integration) == "google" {
                self.revoke_grant(found.grant);
            } else {
                self.providers.revoke_token(&found, now);
            }
        } else {
            return Reply::json(400, &json!({"error": "invalid_token"}));
        }
        if self.providers.key(integration) == "github" {
            Reply::raw(204, "application/json", "")
        } else {
            Reply::json(200, &json!({}))
        }
    }
}

/// A token answer as Nango keeps it in `raw` and the token endpoint sends it.
pub(in crate::sandbox) fn token_answer_body(answer: &TokenAnswer) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("access_token".into(), answer.access_token.as_str().into());
    body.insert("token_type".into(), answer.token_type.into());
    body.insert("scope".into(), answer.scope.as_str().into());
    if let Some(s) = answer.expires_in_s {
        body.insert("expires_in".into(), s.into());
    }
    if let Some(rt) = &answer.refresh_token {
        body.insert("refresh_token".into(), rt.as_str().into());
    }
    body
}
