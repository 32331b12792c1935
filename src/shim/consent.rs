//! The page of the consent campaign: it tells a person what will be connected, and makes a link
//! when they are about to use it, since a link lives ten minutes.
//!
//! Whoever knows the address of a page may start its consent, and learns which provider it is for;
//! nothing else is told. What is opened is the vendor's own page; no token passes through here.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{Refusal, Shim};
use crate::domain::custody::Stage;
use crate::engine::ConsentStart;
use crate::ports::Outside;
use crate::store::TripletRow;

/// A page without scripts, that nobody may frame, remember or learn the address of.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

/// `GET /consent/{ticket}`: says what will be connected. Makes nothing: mail scanners open links too.
pub(super) async fn page<O: Outside>(
    State(shim): State<Arc<Shim<O>>>,
    Path(ticket): Path<String>,
) -> Result<Response, Refusal> {
    let row = find(&shim, &ticket).await?;
    let name = escaped(row.toolkit.as_deref().unwrap_or("your account"));
    let (title, text, button) = match (&row.custody.held, row.custody.stage) {
        (Some(_), _) => {
            ("On hold", "Somebody is looking at this connection. There is nothing to do for you now.".to_owned(), false)
        }
        (None, Stage::Planned) => {
            ("Not yet", "This connection is not ready to be moved yet. Please come back later.".to_owned(), false)
        }
        (None, Stage::Mirroring) => {
            let text = format!(
                "We are moving the connection to <b>{name}</b> to a new place. Please connect the same account as before, \
                 and grant everything that is asked for. The link is made when you press the button and works for ten minutes."
            );
            ("Connect your account", text, true)
        }
        (None, _) => ("Thank you", format!("<b>{name}</b> is connected. There is nothing left to do."), false),
    };
    let engine = shim.ready_engine()?;
    let sent_back =
        engine.sent_back(&row.triplet).await.map_err(|error| Refusal::of_engine(&error, "a consent page"))?;
    let again = match sent_back.filter(|_| button) {
        Some(reason) => format!("<p>Last time it did not work: {}.</p>", escaped(&reason)),
        None => String::new(),
    };
    let form = if button { "<form method=\"post\"><button>Connect</button></form>" } else { "" };
    Ok(html(StatusCode::OK, title, &format!("<p>{text}</p>{again}{form}")))
}

/// `POST /consent/{ticket}`: makes a fresh link and goes there.
pub(super) async fn start<O: Outside>(
    State(shim): State<Arc<Shim<O>>>,
    Path(ticket): Path<String>,
) -> Result<Response, Refusal> {
    let row = find(&shim, &ticket).await?;
    let engine = shim.ready_engine()?;
    let started = engine.start_consent(&row.triplet, shim.now()).await;
    Ok(match started.map_err(|error| Refusal::of_engine(&error, "making a consent link"))? {
        ConsentStart::Link { url, .. } => {
            let Ok(location) = HeaderValue::from_str(url.expose()) else {
                return Err(Refusal::new(StatusCode::BAD_GATEWAY, "upstream_refused", "the link cannot be opened"));
            };
            let mut answer = html(StatusCode::SEE_OTHER, "One moment", "<p>You are being sent on.</p>");
            answer.headers_mut().insert(header::LOCATION, location);
            answer
        }
        ConsentStart::Done(_) => {
            html(StatusCode::OK, "Thank you", "<p>It is connected. There is nothing left to do.</p>")
        }
        ConsentStart::Later(_) => {
            let text = "<p>That did not work just now. Please go back and try again in a minute.</p>";
            html(StatusCode::SERVICE_UNAVAILABLE, "In a minute", text)
        }
        ConsentStart::Refused(reason) => {
            tracing::warn!(triplet = %row.triplet, "a person was turned away: {reason}");
            let text = "<p>This connection cannot be made right now. Somebody is looking at it.</p>";
            html(StatusCode::CONFLICT, "On hold", text)
        }
    })
}

async fn find<O: Outside>(shim: &Shim<O>, ticket: &str) -> Result<TripletRow, Refusal> {
    let found = shim.ready_engine()?.consent_page_of(&format!("/consent/{ticket}")).await;
    found
        .map_err(|error| Refusal::of_engine(&error, "finding a consent page"))?
        .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is no such page"))
}

fn html(status: StatusCode, title: &str, body: &str) -> Response {
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>body{{font:16px/1.5 sans-serif;max-width:36em;margin:4em auto;padding:0 1em}}\
         button{{font:inherit;padding:.5em 1.5em}}</style><h1>{title}</h1>{body}</html>\n"
    );
    let mut response = (status, page).into_response();
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
