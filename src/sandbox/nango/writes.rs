//! What changes connections: import, patch, metadata, delete (nango.md §2.3, §2.4, §8).

use serde_json::{Map, Value, json};

use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::provider::Standing;
use crate::sandbox::world::World;

use super::http::{error, error_with, invalid};
use super::views::View;
use super::{Connection, Credential, input};

/// A body in which the credential's fields lie beside the others, as `POST /connection` took them.
fn nested(call: &Call, auth_mode: impl Fn(&str) -> Option<String>) -> Option<Call> {
    let mut body = call.json()?.as_object()?.clone();
    if body.contains_key("credentials") {
        return None;
    }
    let mode = auth_mode(body.get("provider_config_key")?.as_str()?)?;
    let mut credentials = Map::new();
    credentials.insert("type".into(), mode.into());
    for (old, new) in [
        ("access_token", "access_token"),
        ("refresh_token", "refresh_token"),
        ("expires_at", "expires_at"),
        ("api_key", "apiKey"),
        ("username", "username"),
        ("password", "password"),
        ("oauth_token", "oauth_token"),
        ("oauth_token_secret", "oauth_token_secret"),
    ] {
        if let Some(value) = body.remove(old) {
            credentials.insert(new.into(), value);
        }
    }
    body.insert("credentials".into(), Value::Object(credentials));
    Some(Call::new(&call.method, &call.path).with_json(&Value::Object(body)))
}

impl World {
    /// The older `POST /connection`.
    pub(super) fn nango_import_flat(&mut self, call: &Call) -> Reply {
        match nested(call, |key| self.nango.integrations.get(key).map(|i| i.auth_mode.clone())) {
            Some(call) => self.nango_import(&call),
            None => self.nango_import(call),
        }
    }

    pub(super) fn nango_import(&mut self, call: &Call) -> Reply {
        self.nango_try_import(call).unwrap_or_else(|refused| refused)
    }

    fn nango_try_import(&mut self, call: &Call) -> Result<Reply, Reply> {
        let body = input::strict_body(
            call,
            &[
                "provider_config_key",
                "connection_id",
                "credentials",
                "metadata",
                "connection_config",
                "webhook_url_override",
                "tags",
                "end_user",
            ],
        )?;
        let key = input::required(&body, "provider_config_key")?;
        let (metadata, config) =
            (input::optional_object(&body, "metadata")?, input::optional_object(&body, "connection_config")?);
        let (url, mut tags) = (input::webhook_url(&body)?, input::tags(&body)?.unwrap_or_default());
        let end_user = input::end_user(&body)?.unwrap_or_default();
        tags.extend(end_user.tags);
        let Some(integration) = self.nango.integrations.get(key) else {
            return Err(error_with(404, "not_found", "Integration does not exist"));
        };
        let version = self.options().nango.version;
        let credential = input::credential(body.get("credentials"), &integration.auth_mode, version)?;
        if self.nango_probe(&credential).is_err() {
            return Err(error(400, "connection_test_failed"));
        }
        // The id's pattern is not checked here, so that some ids are stored and then unreadable.
        let id = match input::optional(&body, "connection_id")? {
            Some(id) if id.chars().count() > 255 => {
                return Err(error_with(500, "server_error", "value too long for type character varying(255)"));
            }
            Some(id) => id.to_owned(),
            None => draw::uuid(self.seed(), &["connection", key], self.nango.connections.len() as u64),
        };
        let existing = self.nango.find(key, &id);
        if existing.is_none() && self.nango_is_capped() {
            return Err(error(400, "resource_capped"));
        }
        let mut fresh = Connection::blank(key, &id, credential, self.now());
        fresh.tags = tags;
        fresh.metadata = Value::Object(metadata.unwrap_or_default());
        fresh.connection_config = config.unwrap_or_default();
        fresh.webhook_url_override = url.filter(|url| !url.is_empty());
        fresh.end_user = end_user.shown.clone();
        let place = match existing {
            Some(place) => {
                // Everything is replaced, except that a later GET still shows the old end user.
                let old = &self.nango.connections[place];
                fresh.number = old.number;
                fresh.created_at = old.created_at;
                fresh.row = old.row;
                if fresh.end_user.is_null() {
                    fresh.end_user = old.end_user.clone();
                }
                self.nango.connections[place] = fresh;
                place
            }
            None => self.nango.insert(fresh),
        };
        self.nango_send_auth(place, if existing.is_some() { "override" } else { "creation" }, None);
        let mut shown = self.nango.show(place, View::Post);
        shown["end_user"] = end_user.shown;
        Ok(Reply::json(201, &shown))
    }

    /// Whether the plan allows no further connection.
    pub(super) fn nango_is_capped(&self) -> bool {
        let live = || self.nango.connections.iter().filter(|c| !c.deleted).count();
        self.options().nango.connections_max.is_some_and(|max| live() >= max as usize)
    }

    /// Asks the provider about an API key or password. One that this world never made passes: no
    /// provider of the sandbox knows whose it is.
    pub(super) fn nango_probe(&self, credential: &Credential) -> Result<(), ()> {
        let Credential::Static(fields) = credential else { return Ok(()) };
        let text = ["apiKey", "password", "token_secret"].iter().find_map(|name| fields.get(*name)?.as_str());
        match text.and_then(|text| self.providers.find(text)) {
            Some(token) if self.providers.standing(&token, self.now()) != Standing::Valid => Err(()),
            _ => Ok(()),
        }
    }

    pub(super) fn nango_patch(&mut self, call: &Call, id: &str) -> Reply {
        self.nango_try_patch(call, id).unwrap_or_else(|refused| refused)
    }

    fn nango_try_patch(&mut self, call: &Call, id: &str) -> Result<Reply, Reply> {
        let body = input::strict_body(call, &["end_user", "tags", "webhook_url_override"])?;
        let (tags, url, end_user) = (input::tags(&body)?, input::webhook_url(&body)?, input::end_user(&body)?);
        let place = self.nango_lookup(call, id, || error_with(404, "not_found", "Failed to find connection"))?;
        let connection = &mut self.nango.connections[place];
        if let Some(tags) = tags {
            connection.tags = tags;
        }
        if let Some(url) = url {
            connection.webhook_url_override = (!url.is_empty()).then_some(url);
        }
        if let Some(end_user) = end_user {
            connection.end_user = end_user.shown;
            connection.tags.extend(end_user.tags);
        }
        Ok(Reply::json(200, &json!({"success": true})))
    }

    pub(super) fn nango_delete(&mut self, call: &Call, id: &str) -> Reply {
        let place = match self.nango_lookup(call, id, || error(400, "unknown_connection")) {
            Ok(place) => place,
            Err(reply) => return reply,
        };
        // §8: the deletion hook revokes the refresh token at HubSpot unless metadata says not to.
        let connection = &self.nango.connections[place];
        let spared = connection.metadata["skipTokenRevocation"] == true;
        let provider = self.nango.integrations.get(&connection.integration_key).map(|i| i.provider.as_str());
        if provider == Some("hubspot")
            && !spared
            && let Credential::Oauth2 { refresh_token: Some(token), .. } = &connection.credential
            && let Some(grant) = self.providers.grant_of_refresh(token)
        {
            self.revoke_grant(grant);
            let what = format!("the grant of connection `{id}` was revoked upstream with it");
            self.ledger.incident(self.now(), None, what);
        }
        self.nango_send_auth(place, "deletion", None);
        self.nango.delete(place);
        Reply::json(200, &json!({"success": true}))
    }

    pub(super) fn nango_metadata(&mut self, call: &Call, merge: bool) -> Reply {
        let Some(body) = call.json().filter(Value::is_object) else {
            return invalid("invalid_body", "invalid_type", "Invalid input: expected object", &[]);
        };
        let ids: Vec<&str> = match &body["connection_id"] {
            Value::String(id) => vec![id.as_str()],
            Value::Array(ids) => ids.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let (Some(key), Some(metadata)) = (body["provider_config_key"].as_str(), body["metadata"].as_object()) else {
            return invalid("invalid_body", "invalid_type", "Invalid input", &["metadata"]);
        };
        if ids.is_empty() {
            return invalid("invalid_body", "invalid_type", "Invalid input", &["connection_id"]);
        }
        let Some(places) = ids.iter().map(|id| self.nango.find(key, id)).collect::<Option<Vec<_>>>() else {
            return error(404, "unknown_connection");
        };
        for place in places {
            let mut next = match &self.nango.connections[place].metadata {
                Value::Object(old) if merge => old.clone(),
                _ => Map::new(),
            };
            next.extend(metadata.clone());
            self.nango.connections[place].metadata = Value::Object(next);
        }
        Reply::json(if merge { 200 } else { 201 }, &body)
    }
}
