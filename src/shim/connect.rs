//! Onboarding, as ADR-038 has it for Nango, and the same for Composio: an operator gets a link for
//! a person, and sees the connections of a tenant.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::request::{Admin, json_body};
use super::{Refusal, Shim, strict};
use crate::domain::time::Timestamp;
use crate::domain::triplet::Part;
use crate::engine::{Engine, Newcomer, Onboarding};
use crate::ports::Outside;

/// The longest name that is shown to the person who consents, in characters.
const DISPLAY_NAME_MAX: usize = 100;

#[derive(Deserialize)]
pub(super) struct Tenant {
    tenant: String,
}

type Asked = Result<Query<Tenant>, QueryRejection>;
type Answer = Result<Json<Value>, Refusal>;

pub(super) async fn nango_connect<O: Outside>(
    State(shim): State<Arc<Shim<O>>>,
    _: Admin,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Answer {
    let newcomer = newcomer(&json_body(&headers, bytes)?)?;
    let engine = shim.ready_engine()?;
    let made = engine.open_source_session(&newcomer, shim.now()).await;
    let made = settled(made, "asking Nango for a link")?;
    Ok(Json(json!({"connect_link": made.url.expose(), "expires_at": made.expires_at})))
}

pub(super) async fn composio_connect<O: Outside>(
    State(shim): State<Arc<Shim<O>>>,
    _: Admin,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Answer {
    let newcomer = newcomer(&json_body(&headers, bytes)?)?;
    let engine = shim.ready_engine()?;
    let made = engine.open_target_link(&newcomer, shim.now()).await;
    let made = settled(made, "asking Composio for a link")?;
    Ok(Json(json!({
        "connect_link": made.url.expose(), "expires_at": made.expires_at, "connected_account_id": made.account_id,
    })))
}

pub(super) async fn nango_connections<O: Outside>(State(shim): State<Arc<Shim<O>>>, _: Admin, asked: Asked) -> Answer {
    let (engine, tenant, now) = whose(&shim, asked)?;
    let found = engine.source_connections(&tenant, now).await;
    let found = found.map_err(|error| Refusal::of_engine(&error, "listing connections"))?;
    let connections: Vec<Value> = found
        .iter()
        .map(|(id, connection)| {
            json!({
                "connection_id": connection.connection_id, "provider_config_key": connection.integration_key,
                "provider": connection.provider, "tenant": id.tenant, "account": id.account,
                "created_at": connection.created_at, "auth_error": connection.auth_error,
            })
        })
        .collect();
    Ok(Json(json!({"tenant": tenant, "connections": connections})))
}

pub(super) async fn composio_connections<O: Outside>(
    State(shim): State<Arc<Shim<O>>>,
    _: Admin,
    asked: Asked,
) -> Answer {
    let (engine, tenant, now) = whose(&shim, asked)?;
    let found = engine.target_accounts(&tenant, now).await;
    let found = found.map_err(|error| Refusal::of_engine(&error, "listing connected accounts"))?;
    let connections: Vec<Value> = found
        .iter()
        .map(|account| {
            json!({
                "connected_account_id": account.id, "toolkit": account.toolkit, "scheme": account.scheme,
                "status": account.status.name(), "status_reason": account.status_reason, "alias": account.alias,
                "user_id": account.user_id,
            })
        })
        .collect();
    Ok(Json(json!({"tenant": tenant, "connections": connections})))
}

fn whose<O: Outside>(shim: &Shim<O>, asked: Asked) -> Result<(Arc<Engine<O>>, Part, Timestamp), Refusal> {
    let message = "`?tenant=` is wanted, once";
    let Query(Tenant { tenant }) = asked.map_err(|_| Refusal::bad("bad_tenant", message))?;
    let tenant = part("tenant", &tenant)?;
    Ok((shim.ready_engine()?, tenant, shim.now()))
}

fn part(field: &'static str, text: &str) -> Result<Part, Refusal> {
    let code = if field == "tenant" { "bad_tenant" } else { "bad_body" };
    Part::new(text).map_err(|error| Refusal::bad(code, format!("`{field}` is not usable: {error}")))
}

/// Reads `{tenant, provider, account?, display_name?}`; nothing else may stand in it.
fn newcomer(bytes: &[u8]) -> Result<Newcomer, Refusal> {
    let mut object = strict::object(bytes).map_err(|error| Refusal::bad("bad_body", error.to_string()))?;
    let mut text = |field: &'static str| text(&mut object, field);
    let tenant = text("tenant")?.ok_or_else(|| Refusal::bad("bad_body", "`tenant` is missing"))?;
    let provider = text("provider")?.ok_or_else(|| Refusal::bad("bad_body", "`provider` is missing"))?;
    let (account, display_name) = (text("account")?, text("display_name")?);
    if let Some(field) = object.keys().next() {
        let shown: String = field.chars().take(40).flat_map(char::escape_debug).collect();
        return Err(Refusal::bad("bad_body", format!("unknown field `{shown}`")));
    }
    if display_name.as_ref().is_some_and(|n| n.chars().count() > DISPLAY_NAME_MAX || n.chars().any(char::is_control)) {
        let message = format!("`display_name` has more than {DISPLAY_NAME_MAX} characters, or control characters");
        return Err(Refusal::bad("bad_body", message));
    }
    Ok(Newcomer {
        tenant: part("tenant", &tenant)?,
        provider: part("provider", &provider)?,
        account: account.map(|account| part("account", &account)).transpose()?,
        display_name,
    })
}

fn text(object: &mut Map<String, Value>, field: &'static str) -> Result<Option<String>, Refusal> {
    match object.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::bad("bad_body", format!("`{field}` is not a string"))),
    }
}

fn settled<T>(made: crate::engine::EngineResult<Onboarding<T>>, what: &'static str) -> Result<T, Refusal> {
    match made.map_err(|error| Refusal::of_engine(&error, what))? {
        Onboarding::Made(made) => Ok(made),
        Onboarding::UnknownProvider => {
            let message = "the catalogue knows no such provider or integration";
            Err(Refusal::new(StatusCode::NOT_FOUND, "unknown_provider", message))
        }
        Onboarding::Conflict(reason) => Err(Refusal::new(StatusCode::CONFLICT, "conflict", reason)),
        Onboarding::Failed(error) => Err(Refusal::of_api(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_has_four_fields_and_no_other() {
        let newcomer = |body: &str| newcomer(body.as_bytes()).map_err(|refusal| refusal.message);
        let full =
            newcomer(r#"{"tenant":"acme","provider":"gmail","account":"default","display_name":"Ann"}"#).unwrap();
        assert_eq!((full.tenant.as_str(), full.display_name.as_deref()), ("acme", Some("Ann")));
        assert!(newcomer(r#"{"tenant":"acme","provider":"gmail"}"#).unwrap().account.is_none());
        for (body, expected) in [
            (r#"{"provider":"gmail"}"#, "`tenant` is missing"),
            (r#"{"tenant":"acme","provider":7}"#, "`provider` is not a string"),
            (r#"{"tenant":"acme","provider":"gmail","acount":"x"}"#, "unknown field `acount`"),
            (r#"{"tenant":"a__b","provider":"gmail"}"#, "`tenant` is not usable"),
            (r#"{"tenant":"acme","provider":"../x"}"#, "`provider` is not usable"),
            ("{\"tenant\":\"acme\",\"provider\":\"gmail\",\"display_name\":\"a\\u0007\"}", "control characters"),
        ] {
            let error = newcomer(body).unwrap_err();
            assert!(error.contains(expected), "{body}: {error}");
        }
    }
}
