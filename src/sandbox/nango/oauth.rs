//! A person's consent through Nango: `/oauth/connect`, the provider, `/oauth/callback` (nango.md §3, §10.6).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::domain::time::{MINUTE_MS, Timestamp};
use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::provider::UserId;
use crate::sandbox::world::World;

use super::http::{error, error_with, invalid};
use super::sessions::Session;
use super::webhooks::AuthEvent;
use super::{Connection, Credential};

/// How long a person may stay on the provider's page.
const FLOW_LIFE_MS: i64 = 10 * MINUTE_MS;

/// A consent that a browser has begun.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    integration_key: String,
    /// Of PKCE.
    verifier: String,
    session: Session,
    expires_at: Timestamp,
}

impl World {
    /// Where providers send the browser back to.
    fn nango_callback_url(&self) -> String {
        format!("{}/oauth/callback", self.address_of(|urls| &urls.nango, "https://api.nango.example"))
    }

    /// The page behind a connect link: one link for each integration of the session.
    pub(super) fn nango_connect_page(&self, call: &Call) -> Reply {
        let token = call.param("session_token").unwrap_or_default();
        let session = match self.nango_find_session(token) {
            Ok(session) => session,
            Err(refused) => return refused,
        };
        let offered = self.nango.integrations.iter().filter(|(key, integration)| {
            integration.auth_mode == "OAUTH2" && (session.allowed.is_empty() || session.allowed.contains(key))
        });
        let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let links: String = offered
            .map(|(key, integration)| {
                let target = format!("/oauth/connect/{}?connect_session_token={}", encode(key), encode(token));
                format!("<li><a href=\"{target}\">{}</a></li>", escaped(&integration.display_name))
            })
            .collect();
        Reply::html(200, &format!("<!doctype html><title>Connect</title><h1>Connect</h1><ul>{links}</ul>"))
    }

    /// `GET /oauth/connect/{key}?connect_session_token=`: on to the provider, with PKCE.
    pub(super) fn nango_oauth_connect(&mut self, call: &Call, key: &str) -> Reply {
        let reply = self.nango_try_oauth_connect(call, key).unwrap_or_else(|refused| refused);
        self.nango_session_limits(reply)
    }

    fn nango_try_oauth_connect(&mut self, call: &Call, key: &str) -> Result<Reply, Reply> {
        let session = self.nango_find_session(call.param("connect_session_token").unwrap_or_default())?.clone();
        if call.param("connection_id").is_some() {
            let message = "Unrecognized key: \"connection_id\"";
            return Err(invalid("invalid_query_params", "unrecognized_keys", message, &[]));
        }
        let Some(integration) = self.nango.integrations.get(key) else {
            return Err(error_with(404, "unknown_provider_config", "Provider does not exists"));
        };
        if !session.allowed.is_empty() && !session.allowed.iter().any(|allowed| allowed == key) {
            return Err(error(400, "integration_not_allowed"));
        }
        let Some(provider) = self.providers.find_integration(&integration.provider) else {
            return Err(error(400, "unknown_provider_template"));
        };
        if integration.auth_mode != "OAUTH2" {
            return Err(error(400, "invalid_auth_mode"));
        }
        let defaults = session.defaults.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
        let scopes = match defaults.get("user_scopes").and_then(Value::as_str) {
            Some(own) => format!("{},{own}", integration.scopes),
            None => integration.scopes.clone(),
        };
        let scopes: Vec<&str> = scopes.split(',').map(str::trim).filter(|s| !s.is_empty()).collect();
        let number = self.request_number();
        let state = draw::uuid(self.seed(), &["oauth-state"], number);
        let verifier = draw::hex(self.seed(), &["oauth-verifier"], number, 48);
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
        let mut query = form_urlencoded::Serializer::new(String::new());
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &integration.client_id)
            .append_pair("redirect_uri", &self.nango_callback_url())
            .append_pair("scope", &scopes.join(" "))
            .append_pair("state", &state)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        for (name, value) in defaults.get("authorization_params").and_then(Value::as_object).into_iter().flatten() {
            if let Some(text) = value.as_str() {
                query.append_pair(name, text);
            }
        }
        let target = format!("{}?{}", self.provider_authorize_url(provider), query.finish());
        let now = self.now();
        self.nango.flows.retain(|_, flow| flow.expires_at >= now);
        let flow = Flow { integration_key: key.to_owned(), verifier, session, expires_at: now.plus_ms(FLOW_LIFE_MS) };
        self.nango.flows.insert(state, flow);
        let body = format!("Found. Redirecting to {target}");
        Ok(Reply::raw(302, "text/plain; charset=utf-8", body).with_header("location", target))
    }

    /// The upstream user that a person who comes with this `state` is: the one whose connection is
    /// to be renewed, or whom the session's tags name. `None` where the world cannot tell.
    pub(in crate::sandbox) fn nango_person_of(&self, state: &str) -> Option<UserId> {
        let flow = self.nango.flows.get(state)?;
        let row = match &flow.session.reconnect {
            Some((key, id)) => self.nango.connections[self.nango.find(key, id)?].row?,
            None => self.nango_row_for(&flow.integration_key, &flow.session)?,
        };
        Some(self.rows[row].user)
    }

    /// The inventory row that a session is for, by its end user's id.
    fn nango_row_for(&self, key: &str, session: &Session) -> Option<usize> {
        let wanted = session.tags.get("end_user_id")?.as_str()?;
        self.rows.iter().position(|state| {
            let row = &state.row;
            row.integration_key == key && format!("{}__{key}__{}", row.tenant, row.account) == wanted
        })
    }

    /// `GET /oauth/callback?code&state`: the exchange, the connection, the webhook, and a page.
    pub(super) fn nango_oauth_callback(&mut self, call: &Call) -> Reply {
        let now = self.now();
        let flow = call.param("state").and_then(|state| self.nango.flows.remove(state));
        let Some(flow) = flow.filter(|flow| flow.expires_at >= now) else {
            return page(400, "The state of this authorization is unknown or has expired.");
        };
        let key = flow.integration_key.clone();
        let id = match &flow.session.reconnect {
            Some((_, id)) => id.clone(),
            None => draw::uuid(self.seed(), &["connection", &key], self.request_number()),
        };
        let error = match call.param("code") {
            Some(code) => match self.nango_exchange(&flow, code) {
                Ok((answer_row, credential)) => {
                    self.nango_store_consent(flow, &id, answer_row, credential);
                    return page(200, "Connected. This window can be closed.");
                }
                Err(description) => ("unknown", description),
            },
            None => ("invalid_callback", call.param("error").unwrap_or("no code").to_owned()),
        };
        let url = flow.session.webhook_url_override.clone();
        self.nango_send_failed(&key, &id, url, (error.0, &error.1));
        page(400, "The authorization failed.")
    }

    /// Exchanges the code: the row that the new grant stands for, and the credential. A failure
    /// is told in the words that the webhook carries.
    fn nango_exchange(&mut self, flow: &Flow, code: &str) -> Result<(Option<usize>, Credential), String> {
        // What Nango makes of an error without a message: indented JSON.
        let failed = || "{\n  \"name\": \"Error\"\n}".to_owned();
        let integration = self.nango.integrations.get(&flow.integration_key).ok_or_else(failed)?;
        let provider = self.providers.find_integration(&integration.provider).ok_or_else(failed)?;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", &self.nango_callback_url())
            .append_pair("code_verifier", &flow.verifier)
            .append_pair("client_id", &integration.client_id)
            .append_pair("client_secret", &integration.client_secret)
            .finish();
        let answer = self.nango_ask_provider(provider, form).map_err(|_| failed())?;
        let row = match &flow.session.reconnect {
            Some((key, id)) => self.nango.find(key, id).and_then(|place| self.nango.connections[place].row),
            // A row has one connection; a second one made for it stands for itself.
            None => self
                .nango_row_for(&flow.integration_key, &flow.session)
                .filter(|row| !self.nango.connections.iter().any(|c| !c.deleted && c.row == Some(*row))),
        };
        let token = answer.get("access_token").and_then(Value::as_str).and_then(|text| self.providers.find(text));
        if let (Some(row), Some(token)) = (row, token) {
            self.rows[row].grant = token.grant;
            self.providers.grants[token.grant].row = Some(row);
        }
        Ok((row, self.nango_oauth2(answer, None, None, self.now())))
    }

    fn nango_store_consent(&mut self, flow: Flow, id: &str, row: Option<usize>, credential: Credential) {
        let Flow { integration_key: key, session, .. } = flow;
        let defaults = session.defaults.get(&key).and_then(|d| d["connection_config"].as_object()).cloned();
        let told = told_end_user(&session.end_user);
        let (place, operation) = match self.nango.find(&key, id) {
            Some(place) => {
                let connection = &mut self.nango.connections[place];
                connection.credential = credential;
                connection.tags = session.tags;
                if !session.end_user.is_null() {
                    connection.end_user = session.end_user;
                }
                connection.webhook_url_override = session.webhook_url_override;
                connection.clear_failures();
                (place, "override")
            }
            None => {
                let mut connection = Connection::blank(&key, id, credential, self.now());
                connection.metadata = Value::Null;
                connection.tags = session.tags;
                connection.end_user = session.end_user;
                connection.webhook_url_override = session.webhook_url_override;
                connection.row = row;
                let of_user = row.map(|row| self.providers.users[self.rows[row].user].config.clone());
                connection.connection_config = of_user.unwrap_or_default();
                (self.nango.insert(connection), "creation")
            }
        };
        self.nango.connections[place].connection_config.extend(defaults.unwrap_or_default());
        self.nango_send_event(place, &AuthEvent { operation, error: None, end_user: told });
        self.nango_schedule_cron();
    }
}

/// `endUser` of a webhook, where the session carried an end user (§5.1).
fn told_end_user(shown: &Value) -> Option<Value> {
    let id = shown["id"].as_str()?;
    let mut told = Map::new();
    told.insert("endUserId".into(), id.into());
    told.insert("endUserEmail".into(), shown["email"].clone());
    if let Some(organization) = shown["organization"]["id"].as_str() {
        told.insert("organizationId".into(), organization.into());
    }
    told.insert("tags".into(), json!({}));
    Some(Value::Object(told))
}

fn page(status: u16, text: &str) -> Reply {
    Reply::html(status, &format!("<!doctype html><title>Authorization callback</title><p>{text}</p>"))
}

/// Text for an HTML page.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
