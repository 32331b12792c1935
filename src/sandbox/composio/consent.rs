//! A person's way through a consent link, and the project's verifier (composio.md §3.6).

use serde_json::{Value, json};

use crate::sandbox::http::{Call, Reply};
use crate::sandbox::world::World;

use super::Status;
use super::http::{Outcome, Refused};

impl World {
    /// Where a link leads.
    pub(super) fn composio_link_url(&self, token: &str) -> String {
        format!("{}/link/{token}", self.address_of(|urls| &urls.composio, "https://connect.composio.example"))
    }

    /// `GET /link/{token}`: the person opens the link in a browser and consents at once.
    pub(super) fn composio_open_link(&mut self, token: &str) -> Reply {
        let place = self.composio.accounts.iter().position(|a| !a.deleted && a.link_token.as_deref() == Some(token));
        let Some(place) = place else {
            return Reply::html(404, "<!doctype html><title>Link</title><p>This link is unknown or was used.</p>");
        };
        self.composio_consent(place);
        let account = &self.composio.accounts[place];
        let verifier = self.options().composio.verifier_url.as_deref();
        let (target, pairs) = match (&account.session_uri, verifier) {
            (Some(uri), Some(verifier)) => (Some(verifier), vec![("session_uri", uri.as_str())]),
            _ => {
                let outcome = if account.status == Status::Active { "success" } else { "failed" };
                let pairs = vec![("status", outcome), ("connected_account_id", account.id.as_str())];
                (account.callback_url.as_deref(), pairs)
            }
        };
        let Some(target) = target else {
            return Reply::html(200, "<!doctype html><title>Link</title><p>This window can be closed.</p>");
        };
        let query: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        let separator = if target.contains('?') { '&' } else { '?' };
        Reply::html(302, "").with_header("location", format!("{target}{separator}{query}"))
    }

    /// `POST /connected_accounts/complete_auth`: the verifier says who the person is, once.
    pub(super) fn composio_complete_auth(&mut self, call: &Call) -> Outcome {
        let body = call.json().unwrap_or(Value::Null);
        let (Some(uri), Some(user)) = (body["session_uri"].as_str(), body["user_id"].as_str()) else {
            return Err(Refused::new(400, "HTTP_BadRequest", "session_uri and user_id are required"));
        };
        let place = self
            .composio
            .accounts
            .iter()
            .position(|a| !a.deleted && a.session_uri.as_deref() == Some(uri))
            .ok_or_else(|| Refused::new(404, "AuthSession_NotFound", "Unknown, expired or used session"))?;
        let now = self.now();
        let account = &mut self.composio.accounts[place];
        account.session_uri = None;
        if account.user_id != user {
            account.status = Status::Failed;
            account.status_reason = Some("identity verification failed".into());
            account.link_token = None;
            account.updated_at = now;
            return Err(Refused::new(400, "AuthSession_UserMismatch", "The link was made for another user"));
        }
        self.composio_exchange(place);
        let account = &self.composio.accounts[place];
        let toolkit = &self.composio.configs[account.config].toolkit;
        Ok(Reply::json(200, &json!({"connected_account_id": account.id, "toolkit_slug": toolkit})))
    }
}
