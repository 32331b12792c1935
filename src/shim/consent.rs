//! The page of the consent campaign: it tells a person what will be connected, and makes a link
//! when they are about to use it, since a link lives ten minutes.
//!
//! Whoever knows the address of a page may start its consent, and learns which provider it is for;
//! nothing else is told. What is opened is the vendor's own page; no token passes through here.
//! Whatever happens, a person gets a page and no JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::OnceCell;

use super::{Refusal, Shim};
use crate::domain::custody::Stage;
use crate::domain::triplet::Triplet;
use crate::engine::ConsentStart;
use crate::ports::Outside;
use crate::store::TripletRow;

/// What the presses of one button at the same time come to, together.
type Started = Arc<OnceCell<Result<ConsentStart, Refusal>>>;

/// The links that are being made: a double click makes one.
#[derive(Default)]
pub(super) struct Links(Mutex<BTreeMap<Triplet, Started>>);

impl Links {
    /// Where all who ask for a link of this triplet at this moment find it.
    fn join(&self, triplet: &Triplet) -> Started {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(triplet.clone()).or_default())
    }

    /// It is made: whoever comes later gets another one.
    fn leave(&self, started: &Started) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, other| !Arc::ptr_eq(other, started));
    }
}

const ROBOTS: HeaderName = HeaderName::from_static("x-robots-tag");

/// A page without scripts, that nobody may frame, remember, index or learn the address of. It says
/// nothing of `form-action`: browsers hold the redirect to the vendor's page against it.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (ROBOTS, "noindex, nofollow"),
];

const STYLE: &str = "body{font:17px/1.55 system-ui,sans-serif;color:#1c2430;background:#f4f6f9;margin:0}\
    main{max-width:34em;margin:8vh auto;padding:2em 2.2em;background:#fff;border-radius:10px;\
    box-shadow:0 1px 4px rgba(20,30,50,.14)}h1{font-size:1.5em;margin:0 0 .6em}p{margin:.7em 0}\
    .again{border-left:4px solid #b45309;padding:.3em .9em;background:#fef6e7}\
    button{font:inherit;font-weight:600;margin:.8em 0;padding:.6em 1.8em;border:0;border-radius:6px;\
    color:#fff;background:#1d4ed8;cursor:pointer}button:focus-visible{outline:3px solid #93b4ff}\
    small,li{color:#556070}code{overflow-wrap:anywhere}";

/// `GET /consent/{ticket}`: says what will be connected. Makes nothing: mail scanners open links too.
pub(super) async fn page<O: Outside>(State(shim): State<Arc<Shim<O>>>, Path(ticket): Path<String>) -> Response {
    show(&shim, &ticket).await.unwrap_or_else(|refusal| sorry(&refusal))
}

async fn show<O: Outside>(shim: &Shim<O>, ticket: &str) -> Result<Response, Refusal> {
    let row = find(shim, ticket).await?;
    let name = escaped(row.toolkit.as_deref().unwrap_or("your account"));
    Ok(match (&row.custody.held, row.custody.stage) {
        (Some(_), _) => html(
            StatusCode::OK,
            "On hold",
            "<p>Somebody is looking at this connection. There is nothing to do for you now.</p>",
        ),
        (None, Stage::Planned) => html(
            StatusCode::OK,
            "Not yet",
            "<p>This connection is not ready to be moved yet. Please come back later.</p>",
        ),
        (None, Stage::Mirroring) => {
            let engine = shim.ready_engine()?;
            let sent_back = engine.sent_back(&row.triplet).await;
            let sent_back = sent_back.map_err(|error| Refusal::of_engine(&error, "a consent page"))?;
            html(
                StatusCode::OK,
                &format!("Connect your {name} account"),
                &invitation(&row, &name, sent_back.as_deref()),
            )
        }
        (None, Stage::Consented) => html(
            StatusCode::OK,
            "Thank you",
            &format!(
                "<p><b>{name}</b> is connected, and we are checking it. If anything is wrong, you hear from us.</p>"
            ),
        ),
        (None, _) => html(
            StatusCode::OK,
            "Thank you",
            &format!("<p><b>{name}</b> is connected. There is nothing left to do.</p>"),
        ),
    })
}

/// What a person reads before they connect, with the button.
fn invitation(row: &TripletRow, name: &str, sent_back: Option<&str>) -> String {
    let mut body = String::new();
    if let Some(reason) = sent_back {
        let _ = write!(body, "<p class=\"again\">Last time it did not work: {}</p>", why(reason));
    } else if row.consent_account.is_some() {
        body.push_str("<p class=\"again\">If you have just connected it, you are done: we are checking it.</p>");
    }
    let _ = write!(
        body,
        "<p>We are moving the connection to <b>{name}</b> to a new place, and for that you need to agree once more. \
         Please connect <b>the same account as before</b>, and grant everything that is asked for.</p>\
         <form method=\"post\"><button>Connect {name}</button></form>\
         <p><small>The button takes you to the sign-in of {name}. It works for ten minutes; \
         come back to this page for a fresh one. Nothing changes before you agree.</small></p>"
    );
    if !row.scopes.is_empty() {
        let scopes: String = row.scopes.iter().map(|s| format!("<li><code>{}</code></li>", escaped(s))).collect();
        let _ = write!(
            body,
            "<details><summary><small>What will be asked for</small></summary><ul>{scopes}</ul></details>"
        );
    }
    body
}

/// Why a consent was sent back, in words for the person who gave it.
fn why(reason: &str) -> String {
    if reason == "another upstream account was connected" {
        "another account was connected than the one in use today. Please sign in with the same one.".to_owned()
    } else if let Some(missing) = reason.strip_prefix("the consent lacks ") {
        format!("not everything was granted; <code>{}</code> is missing.", escaped(missing))
    } else {
        format!("{}.", escaped(reason))
    }
}

/// `POST /consent/{ticket}`: makes a fresh link and goes there.
pub(super) async fn start<O: Outside>(State(shim): State<Arc<Shim<O>>>, Path(ticket): Path<String>) -> Response {
    begin(&shim, &ticket).await.unwrap_or_else(|refusal| sorry(&refusal))
}

async fn begin<O: Outside>(shim: &Shim<O>, ticket: &str) -> Result<Response, Refusal> {
    let row = find(shim, ticket).await?;
    let engine = shim.ready_engine()?;
    let started = shim.links.join(&row.triplet);
    let made = started.get_or_init(|| async {
        let made = engine.start_consent(&row.triplet, shim.now()).await;
        made.map_err(|error| Refusal::of_engine(&error, "making a consent link"))
    });
    let made = made.await;
    shim.links.leave(&started);
    Ok(match made.as_ref().map_err(Refusal::clone)? {
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
        ConsentStart::Later(_) => return Err(Refusal::unavailable("a link cannot be made now")),
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

/// A refusal as a page.
fn sorry(refusal: &Refusal) -> Response {
    match refusal.status {
        StatusCode::NOT_FOUND => html(
            refusal.status,
            "This page is not known",
            "<p>The address may be cut off, or this connection is no longer being moved. Please open the link of the \
             newest mail again, or ask whoever sent it to you.</p>",
        ),
        StatusCode::SERVICE_UNAVAILABLE => {
            let text = "<p>That did not work just now. Please go back and try again in a minute.</p>";
            let mut response = html(refusal.status, "In a minute", text);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
            response
        }
        status => html(status, "That did not work", "<p>Somebody has to look at it. Please try again tomorrow.</p>"),
    }
}

/// `title` and `body` are HTML.
fn html(status: StatusCode, title: &str, body: &str) -> Response {
    let page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}</title>\
         <style>{STYLE}</style></head><body><main><h1>{title}</h1>{body}</main></body></html>\n"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_in_words_and_never_as_markup() {
        assert!(why("another upstream account was connected").contains("the same one"));
        assert_eq!(why("the consent lacks a <b>"), "not everything was granted; <code>a &lt;b&gt;</code> is missing.");
        assert_eq!(why("<script>"), "&lt;script&gt;.");
    }
}
