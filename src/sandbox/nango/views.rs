//! How Nango shows its rows (nango.md §2).

use serde_json::{Map, Value, json};

use crate::domain::time::Timestamp;

use super::{Connection, Credential, Nango, NangoIntegration};

/// `2026-10-02T10:15:00.120+00:00`, the form of row dates on GET.
fn row_date(at: Timestamp) -> String {
    let text = at.to_rfc3339();
    format!("{}+00:00", text.trim_end_matches('Z'))
}

/// Row dates in lists carry a variable number of fraction digits.
fn list_date(at: Timestamp) -> String {
    let text = at.to_rfc3339();
    let trimmed = text.trim_end_matches('Z').trim_end_matches('0');
    format!("{}+00:00", trimmed.trim_end_matches('.'))
}

/// The `end_user` object. `organization`: id and display name.
pub(super) fn end_user(
    id: &str,
    email: Option<&str>,
    name: Option<&str>,
    organization: Option<(&str, Option<&str>)>,
) -> Value {
    let organization = organization.map_or(Value::Null, |(id, name)| json!({"id": id, "display_name": name}));
    json!({"id": id, "display_name": name, "email": email, "tags": null, "organization": organization})
}

/// Which dates and secrets a view of one connection shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// GET without a credential scope, and error payloads: `credentials: {}`.
    Bare,
    /// GET: refresh tokens only on request.
    Get { with_refresh_token: bool },
    /// POST: everything, dates with `Z`, `end_user` as submitted.
    Post,
}

impl Nango {
    pub(super) fn show(&self, place: usize, view: View) -> Value {
        let c = &self.connections[place];
        let date = |at: Timestamp| if view == View::Post { at.to_rfc3339() } else { row_date(at) };
        let mut config = Value::Object(c.connection_config.clone());
        let mut credentials = match view {
            View::Bare => json!({}),
            View::Get { .. } | View::Post => credentials(&c.credential),
        };
        if view != View::Post && view != (View::Get { with_refresh_token: true }) {
            strip_refresh_tokens(&mut config);
            strip_refresh_tokens(&mut credentials);
        }
        let mut shown = self.common(c);
        shown.insert("connection_config".into(), config);
        shown.insert("webhook_url_override".into(), c.webhook_url_override.clone().into());
        shown.insert("created_at".into(), date(c.created_at).into());
        shown.insert("updated_at".into(), date(c.updated_at).into());
        shown.insert("last_fetched_at".into(), date(c.last_fetched_at).into());
        shown.insert("credentials".into(), credentials);
        Value::Object(shown)
    }

    pub(super) fn show_in_list(&self, place: usize) -> Value {
        let c = &self.connections[place];
        let mut shown = self.common(c);
        shown.insert("created".into(), list_date(c.created_at).into());
        Value::Object(shown)
    }

    fn common(&self, c: &Connection) -> Map<String, Value> {
        let errors: Vec<Value> = c.auth_error.iter().map(|log| json!({"type": "auth", "log_id": log})).collect();
        let provider = self.integrations.get(&c.integration_key).map_or("unknown", |i| i.provider.as_str());
        let mut shown = Map::new();
        shown.insert("id".into(), c.number.into());
        shown.insert("connection_id".into(), c.connection_id.as_str().into());
        shown.insert("provider_config_key".into(), c.integration_key.as_str().into());
        shown.insert("provider".into(), provider.into());
        shown.insert("errors".into(), errors.into());
        shown.insert("end_user".into(), c.end_user.clone());
        shown.insert("tags".into(), Value::Object(c.tags.clone()));
        shown.insert("metadata".into(), c.metadata.clone());
        shown
    }
}

fn credentials(credential: &Credential) -> Value {
    match credential {
        Credential::Static(fields) if fields.get("type").is_some_and(|kind| kind == "NONE") => json!({}),
        Credential::Static(fields) => Value::Object(fields.clone()),
        Credential::Oauth2 { access_token, refresh_token, expires_at, raw, config_override, .. } => {
            let mut shown = Map::new();
            shown.insert("type".into(), "OAUTH2".into());
            shown.insert("access_token".into(), access_token.as_str().into());
            if let Some(text) = refresh_token {
                shown.insert("refresh_token".into(), text.as_str().into());
            }
            if let Some(at) = expires_at {
                shown.insert("expires_at".into(), at.to_rfc3339().into());
            }
            if let Some(app) = config_override {
                shown.insert("config_override".into(), Value::Object(app.clone()));
            }
            shown.insert("raw".into(), Value::Object(raw.clone()));
            Value::Object(shown)
        }
    }
}

/// Removes every key that reads "refreshtoken" once punctuation and case are dropped.
fn strip_refresh_tokens(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| {
                let plain: String = key.chars().filter(char::is_ascii_alphanumeric).collect();
                !plain.eq_ignore_ascii_case("refreshtoken")
            });
            map.values_mut().for_each(strip_refresh_tokens);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_refresh_tokens),
        _ => {}
    }
}

/// An integration as `GET /integrations` shows it. `with`: included parts (§4).
pub(super) fn show_integration(key: &str, i: &NangoIntegration, credentials: bool, webhook: bool) -> Value {
    let mut shown = json!({
        "unique_key": key,
        "provider": i.provider,
        "display_name": i.display_name,
        "logo": format!("https://app.nango.example/images/template-logos/{}.svg", i.provider),
        "forward_webhooks": i.forward_webhooks,
        "created_at": i.created_at.to_rfc3339(),
        "updated_at": i.updated_at.to_rfc3339(),
    });
    if let Some(map) = shown.as_object_mut() {
        if webhook {
            map.insert("webhook_url".into(), Value::Null);
        }
        if credentials {
            let shown = match i.auth_mode.as_str() {
                "OAUTH2" => json!({"type": "OAUTH2", "client_id": i.client_id, "client_secret": i.client_secret,
                                   "scopes": i.scopes, "webhook_secret": null}),
                _ => Value::Null,
            };
            map.insert("credentials".into(), shown);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refresh_tokens_are_stripped_at_every_depth() {
        let mut value = json!({"refresh_token": 1, "a": [{"refreshToken": 2, "x": {"Refresh-Token": 3, "keep": 4}}]});
        strip_refresh_tokens(&mut value);
        assert_eq!(value, json!({"a": [{"x": {"keep": 4}}]}));
    }

    #[test]
    fn list_dates_drop_trailing_zeros() {
        assert_eq!(list_date(Timestamp::from_millis(960)), "1970-01-01T00:00:00.96+00:00");
        assert_eq!(list_date(Timestamp::from_millis(1_000)), "1970-01-01T00:00:01+00:00");
        assert_eq!(row_date(Timestamp::from_millis(960)), "1970-01-01T00:00:00.960+00:00");
    }
}
