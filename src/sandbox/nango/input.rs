//! What Nango accepts: strict bodies, tags, end users, credentials (nango.md §2.3, §2.4, §3).

use serde_json::{Map, Value};

use crate::domain::time::Timestamp;
use crate::sandbox::http::{Call, Reply};

use super::http::{error_with, invalid};
use super::settings::NangoVersion;
use super::{Credential, views};

/// Tags of one connection at most.
const TAGS_MAX: usize = 10;

/// The body of a request, an object with no other keys than `known`.
pub(super) fn strict_body(call: &Call, known: &[&str]) -> Result<Map<String, Value>, Reply> {
    let Some(Value::Object(body)) = call.json() else {
        return Err(invalid("invalid_body", "invalid_type", "Invalid input: expected object", &[]));
    };
    strict(&body, known, &[])?;
    Ok(body)
}

fn strict(body: &Map<String, Value>, known: &[&str], path: &[&str]) -> Result<(), Reply> {
    match body.keys().find(|key| !known.contains(&key.as_str())) {
        Some(name) => Err(invalid("invalid_body", "unrecognized_keys", &format!("Unrecognized key: \"{name}\""), path)),
        None => Ok(()),
    }
}

fn wrong(code: &str, message: &str, path: &[&str]) -> Reply {
    invalid("invalid_body", code, message, path)
}

/// A text that must be there.
pub(super) fn required<'a>(body: &'a Map<String, Value>, name: &str) -> Result<&'a str, Reply> {
    body.get(name)
        .and_then(Value::as_str)
        .ok_or_else(|| wrong("invalid_type", "Invalid input: expected string, received undefined", &[name]))
}

/// A text that may be absent but not of another type.
pub(super) fn optional<'a>(body: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Reply> {
    match body.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong("invalid_type", "Invalid input: expected string", &[name])),
    }
}

/// An object that may be absent but not of another type.
pub(super) fn optional_object(body: &Map<String, Value>, name: &str) -> Result<Option<Map<String, Value>>, Reply> {
    match body.get(name) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object.clone())),
        Some(_) => Err(wrong("invalid_type", "Invalid input: expected record", &[name])),
    }
}

/// A webhook address: `""` clears it; Nango's own hosts are refused. Loopback, which the real one
/// refuses as well, is what a sandbox is for.
pub(super) fn webhook_url(body: &Map<String, Value>) -> Result<Option<String>, Reply> {
    let Some(url) = optional(body, "webhook_url_override")? else { return Ok(None) };
    let host = url.split_once("://").map(|(_, rest)| rest.split(['/', '?', ':']).next().unwrap_or_default());
    let usable = url.is_empty()
        || (url.starts_with("http://") || url.starts_with("https://"))
            && host.is_some_and(|h| !h.is_empty() && h != "nango.dev" && !h.ends_with(".nango.dev"));
    if !usable {
        return Err(wrong("invalid_format", "Invalid URL", &["webhook_url_override"]));
    }
    Ok(Some(url.to_owned()))
}

/// Tags: at most ten, keys in lower case, values of 1 to 255 characters.
pub(super) fn tags(body: &Map<String, Value>) -> Result<Option<Map<String, Value>>, Reply> {
    let Some(given) = optional_object(body, "tags")? else { return Ok(None) };
    if given.len() > TAGS_MAX {
        return Err(wrong("too_big", "Too many tags", &["tags"]));
    }
    let mut tags = Map::new();
    for (key, value) in given {
        let sound = key.len() <= 64
            && key.starts_with(|c: char| c.is_ascii_alphabetic())
            && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
        if !sound {
            return Err(wrong("invalid_key", "Invalid key in record", &["tags", &key]));
        }
        let Some(text) = value.as_str().filter(|t| (1..=255).contains(&t.chars().count())) else {
            return Err(wrong("invalid_type", "Invalid input: expected string", &["tags", &key]));
        };
        let key = key.to_ascii_lowercase();
        if key == "end_user_email" && !text.contains('@') {
            return Err(wrong("invalid_format", "Invalid email address", &["tags", &key]));
        }
        tags.insert(key, text.into());
    }
    Ok(Some(tags))
}

/// Who a connection is for, as the older form says it: the stored object and the tags it makes.
#[derive(Debug, Default)]
pub(super) struct EndUser {
    pub shown: Value,
    pub tags: Map<String, Value>,
}

/// `end_user` and `organization` of a body; `None` where no end user is given.
pub(super) fn end_user(body: &Map<String, Value>) -> Result<Option<EndUser>, Reply> {
    let Some(user) = optional_object(body, "end_user")? else { return Ok(None) };
    strict(&user, &["id", "email", "display_name", "tags"], &["end_user"])?;
    let id = required(&user, "id")?;
    if id.is_empty() || id.len() > 255 {
        return Err(wrong("too_small", "Invalid id", &["end_user", "id"]));
    }
    let (email, name) = (optional(&user, "email")?, optional(&user, "display_name")?);
    let organization = optional_object(body, "organization")?.unwrap_or_default();
    let (group, group_name) = (optional(&organization, "id")?, optional(&organization, "display_name")?);
    let mut tags = Map::new();
    for (tag, value) in [
        ("end_user_id", Some(id)),
        ("end_user_email", email),
        ("end_user_display_name", name),
        ("organization_id", group),
        ("organization_display_name", group.and(group_name)),
    ] {
        if let Some(value) = value {
            tags.insert(tag.into(), value.into());
        }
    }
    let shown = views::end_user(id, email, name, group.map(|id| (id, group_name)));
    Ok(Some(EndUser { shown, tags }))
}

/// Fields of a submitted credential besides `type`: those it must have, and those it may.
const CREDENTIALS: [(&str, &[&str], &[&str]); 9] = [
    ("OAUTH2", &["access_token"], &["refresh_token", "expires_at", "config_override"]),
    (
        "OAUTH2_CC",
        &["token", "client_id", "client_secret"],
        &["expires_at", "client_certificate", "client_private_key"],
    ),
    ("OAUTH1", &["oauth_token", "oauth_token_secret"], &[]),
    ("API_KEY", &["apiKey"], &[]),
    ("BASIC", &["username", "password"], &[]),
    ("TBA", &["token_id", "token_secret"], &["config_override"]),
    ("APP", &["app_id", "installation_id"], &[]),
    ("CUSTOM", &["app_id", "installation_id"], &[]),
    ("NONE", &[], &[]),
];

/// The longest value of a credential's field.
fn length_max(kind: &str, version: NangoVersion) -> usize {
    match kind {
        "API_KEY" if version < NangoVersion::V0_71_6 => 1_024,
        "OAUTH2_CC" | "API_KEY" => 4_096,
        _ => 16_384,
    }
}

/// The submitted credential of an import (§2.3).
pub(super) fn credential(value: Option<&Value>, auth_mode: &str, version: NangoVersion) -> Result<Credential, Reply> {
    let Some(Value::Object(fields)) = value else {
        return Err(wrong("invalid_type", "Invalid input: expected object", &["credentials"]));
    };
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default();
    let Some((_, must, may)) = CREDENTIALS.iter().find(|(name, ..)| *name == kind) else {
        return Err(wrong("invalid_union", "Invalid input", &["credentials", "type"]));
    };
    let mut known = vec!["type"];
    known.extend(must.iter().chain(may.iter()));
    strict(fields, &known, &["credentials"])?;
    for name in *must {
        let Some(text) = fields.get(*name).and_then(Value::as_str) else {
            let message = "Invalid input: expected string, received undefined";
            return Err(wrong("invalid_type", message, &["credentials", name]));
        };
        if text.is_empty() || text.len() > length_max(kind, version) {
            let code = if text.is_empty() { "too_small" } else { "too_big" };
            return Err(wrong(code, "Invalid length", &["credentials", name]));
        }
    }
    if kind != auth_mode {
        return Err(error_with(400, "invalid_body", "The credentials type does not match the provider's auth mode"));
    }
    if kind != "OAUTH2" {
        return Ok(Credential::Static(fields.clone()));
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let expires_at = coerced_date(fields.get("expires_at"))?;
    let mut raw = fields.clone();
    raw.remove("config_override");
    if let Some(at) = expires_at {
        raw.insert("expires_at".into(), at.to_rfc3339().into());
    }
    Ok(Credential::Oauth2 {
        access_token: text("access_token").unwrap_or_default(),
        refresh_token: text("refresh_token"),
        expires_at,
        introspected_expiry: None,
        raw,
        config_override: fields.get("config_override").and_then(Value::as_object).cloned(),
    })
}

/// Coerced like a JavaScript date: numbers are milliseconds, null is 1970.
fn coerced_date(value: Option<&Value>) -> Result<Option<Timestamp>, Reply> {
    let path = ["credentials", "expires_at"];
    match value {
        None => Ok(None),
        Some(Value::Null) => Ok(Some(Timestamp::from_millis(0))),
        Some(Value::Number(n)) => Ok(n.as_i64().map(Timestamp::from_millis)),
        Some(Value::String(text)) => Timestamp::parse(text)
            .map(Some)
            .map_err(|_| wrong("invalid_type", "Invalid input: expected date, received Date", &path)),
        Some(_) => Err(wrong("invalid_type", "Invalid input: expected date", &path)),
    }
}
