//! Consent and proof: a link per triplet, made when a person is about to use it; then the
//! upstream identity and the scopes of what they connected, compared with the old grant.

use super::super::{Engine, EngineResult};
use super::{ACTOR, Progress, alias, retry_at};
use crate::catalogue::identity::Identity;
use crate::domain::api::Api;
use crate::domain::custody::{Event, Stage};
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::domain::token::scope_set;
use crate::engine::poll::whoami_call;
use crate::plan::Route;
use crate::ports::{
    AccountStatus, ApiError, ApiErrorKind, ConnectedAccount, Outside, TargetCustody, TargetRead, TargetScheme,
};
use crate::store::{ConnectionRow, TripletRow};

/// How often an open link is looked at. Composio sends no event on activation (Composio contract §5.2).
const LOOK_EVERY_MS: i64 = 20 * SECOND_MS;

/// What the comparison after a consent found.
enum Compared {
    Proven,
    Rejected(String),
    /// A system did not answer.
    Later(Timestamp),
}

impl<O: Outside> Engine<O> {
    /// Runs the consent campaign and proves what comes back, until every triplet is verified or held.
    ///
    /// # Errors
    /// When the store fails, or Composio refuses what the campaign needs.
    pub async fn consent(&self, now: Timestamp) -> EngineResult<Progress> {
        let connections = self.store.load_connections().await?;
        let mut wait: Option<Timestamp> = None;
        let mut later = |at: Timestamp| wait = Some(wait.map_or(at, |w: Timestamp| w.min(at)));
        for row in self.moving().await? {
            let Some(connection) = connections.iter().find(|c| c.id == row.connection) else { continue };
            if row.custody.held.is_some() || row.custody.route != Route::Reconsent {
                continue;
            }
            match row.custody.stage {
                Stage::Mirroring => {
                    if let Some(at) = self.advance_consent(&row, connection, now).await? {
                        later(at);
                    }
                }
                Stage::Consented => match self.compare(&row, connection, now).await? {
                    Compared::Proven => {
                        self.store.record_custody(&row.triplet, &Event::IdentityProven, ACTOR, now).await?;
                    }
                    Compared::Rejected(reason) => self.reject(&row, reason, now).await?,
                    Compared::Later(at) => later(at),
                },
                _ => {}
            }
        }
        // A step may have opened the next one.
        let open = self.moving().await?.iter().any(|t| {
            t.custody.held.is_none()
                && t.custody.route == Route::Reconsent
                && matches!(t.custody.stage, Stage::Mirroring | Stage::Consented)
        });
        Ok(match (open, wait) {
            (false, _) => Progress::Done,
            (true, at) => Progress::Wait(at.unwrap_or(now.plus_ms(SECOND_MS))),
        })
    }

    /// Makes a link, or looks at the open one. Returns when to look again.
    async fn advance_consent(
        &self,
        row: &TripletRow,
        connection: &ConnectionRow,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        if row.old_identity.is_none() {
            // Before any consent: with the same client the old grant may not outlive it.
            if let Some(at) = self.learn_old_identity(row, connection, now).await? {
                return Ok(Some(at));
            }
        }
        let (Some(account), Some(until)) = (&row.consent_account, row.consent_until) else {
            return self.open_link(row, now).await;
        };
        let answer = self.outside.target().get_account(account).await;
        self.observe(Api::Composio, now, &answer).await?;
        match answer {
            Ok(found) if found.status == AccountStatus::Active => {
                let event = Event::ConsentCompleted { account: found.id };
                self.store.record_custody(&row.triplet, &event, ACTOR, now).await?;
                Ok(None)
            }
            Ok(found) => {
                let over = matches!(
                    found.status,
                    AccountStatus::Failed | AccountStatus::Expired | AccountStatus::Revoked | AccountStatus::Inactive
                );
                if over || now > until {
                    self.end_attempt(row, "the consent link was not used", now).await?;
                }
                Ok(Some(now.plus_ms(LOOK_EVERY_MS)))
            }
            Err(ApiError { kind: ApiErrorKind::NotFound { .. }, .. }) => {
                self.end_attempt(row, "the connected account is gone", now).await?;
                Ok(Some(now.plus_ms(LOOK_EVERY_MS)))
            }
            Err(error) => Ok(Some(retry_at(now, &error))),
        }
    }

    async fn open_link(&self, row: &TripletRow, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        let Some(toolkit) = &row.toolkit else { return Ok(None) };
        let config = match self.ensure_auth_config(toolkit, "final", TargetScheme::Oauth2, &row.scopes, now).await? {
            Ok(config) => config,
            Err(at) => return Ok(Some(at)),
        };
        let user = row.triplet.tenant.to_string();
        let alias = format!("{}-{}", alias("cutover-final", &row.triplet), row.consent_attempts + 1);
        // A link that was made just before a crash: its account is there, its address is not.
        // Whoever holds the address may still use it, so it is waited for like any other.
        let known = self.outside.target().list_accounts_of(&user).await;
        self.observe(Api::Composio, now, &known).await?;
        let known: Option<ConnectedAccount> = match known {
            Ok(known) => known.into_iter().find(|a| a.alias.as_deref() == Some(&alias) && &a.toolkit == toolkit),
            Err(error) => return Ok(Some(retry_at(now, &error))),
        };
        let (account, until) = match known {
            Some(account) => (account.id, now.plus_ms(crate::domain::schedule::LINK_LIFE_MS)),
            None => {
                let made = self.outside.target().create_link(&config, &user, &alias, None).await;
                self.observe(Api::Composio, now, &made).await?;
                match made {
                    Ok(link) => (link.account_id, link.expires_at),
                    Err(error) if error.is_transient() => return Ok(Some(retry_at(now, &error))),
                    Err(error) => return Err(super::apply::refused("make a consent link for", row, &error)),
                }
            }
        };
        self.store.save_consent(&row.triplet, &account, until).await?;
        Ok(Some(now.plus_ms(LOOK_EVERY_MS)))
    }

    /// An attempt came to nothing: another link, or a person must look.
    async fn end_attempt(&self, row: &TripletRow, reason: &str, now: Timestamp) -> EngineResult<()> {
        self.store.clear_consent(&row.triplet).await?;
        if row.consent_attempts >= self.config.consent_attempts_max {
            let reason = format!("{reason}, after {} attempts", row.consent_attempts);
            self.store.record_custody(&row.triplet, &Event::Held { reason }, ACTOR, now).await?;
        }
        Ok(())
    }

    async fn reject(&self, row: &TripletRow, reason: String, now: Timestamp) -> EngineResult<()> {
        tracing::error!(triplet = %row.triplet, "consent rejected: {reason}");
        let event = Event::ConsentRejected { reason: reason.clone() };
        self.store.record_custody(&row.triplet, &event, ACTOR, now).await?;
        self.end_attempt(row, &reason, now).await
    }

    /// The upstream account behind the old grant, asked directly with the token that KV serves.
    async fn learn_old_identity(
        &self,
        row: &TripletRow,
        connection: &ConnectionRow,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        let Some(entry) = self.store.load_head(&row.triplet).await? else { return Ok(Some(now.plus_ms(SECOND_MS))) };
        let answer = self.whoami(connection, &entry.access_token, now).await?;
        match answer {
            Ok(answer) => match self.identity_of(row, &answer) {
                Ok(identity) => {
                    self.store.save_old_identity(&row.triplet, &identity).await?;
                    Ok(None)
                }
                Err(reason) => {
                    self.store.record_custody(&row.triplet, &Event::Held { reason }, ACTOR, now).await?;
                    Ok(Some(now.plus_ms(SECOND_MS)))
                }
            },
            Err(Some(ApiErrorKind::Unauthorized { .. }) | None) => {
                let reason = "the old grant's identity cannot be read, so a new one cannot be compared".to_owned();
                self.store.record_custody(&row.triplet, &Event::Held { reason }, ACTOR, now).await?;
                Ok(Some(now.plus_ms(SECOND_MS)))
            }
            Err(Some(_)) => Ok(Some(now.plus_ms(super::RETRY_MS))),
        }
    }

    fn identity_of(&self, row: &TripletRow, answer: &serde_json::Value) -> Result<Identity, String> {
        let facts = self.catalogue.integration(&row.integration_key).ok_or("the catalogue does not know it")?;
        Identity::extract(answer, &facts.whoami, self.store.vault().fingerprints()).map_err(|e| e.to_string())
    }

    /// Compares what was connected with the old grant: same upstream account, scopes not smaller.
    async fn compare(&self, row: &TripletRow, connection: &ConnectionRow, now: Timestamp) -> EngineResult<Compared> {
        let target = self.outside.target();
        let (Some(account), Some(integration)) =
            (&row.custody.account, self.catalogue.integration(&row.integration_key))
        else {
            return Ok(Compared::Rejected("nothing to compare".to_owned()));
        };
        let Some(call) = whoami_call(&integration.whoami, &connection.config) else {
            return Ok(Compared::Rejected(
                "the whoami address needs a connection value that Nango does not have".into(),
            ));
        };
        let answer = target.proxy(account, &call).await;
        self.observe(Api::Composio, now, &answer).await?;
        let answer = match answer {
            Ok(answer) if answer.status < 300 => answer.data,
            Ok(answer) if matches!(answer.status, 429 | 500..) => {
                return Ok(Compared::Later(now.plus_ms(super::RETRY_MS)));
            }
            Ok(answer) => {
                return Ok(Compared::Rejected(format!("the provider answered {} through Composio", answer.status)));
            }
            Err(error) => return Ok(Compared::Later(retry_at(now, &error))),
        };
        let found = target.get_account(account).await;
        self.observe(Api::Composio, now, &found).await?;
        let found = match found {
            Ok(found) => found,
            Err(error) => return Ok(Compared::Later(retry_at(now, &error))),
        };

        let identity = match self.identity_of(row, &answer) {
            Ok(new) if row.old_identity.as_ref().is_some_and(|old| new.continues(old, integration.whoami.rule)) => {
                "equal"
            }
            Ok(_) => "different",
            Err(reason) => return Ok(Compared::Rejected(reason)),
        };
        let missing =
            missing_scopes(&row.scopes, found.granted_scopes.as_deref().or(found.requested_scopes.as_deref()));
        let granted = if missing.is_empty() { "enough".to_owned() } else { missing.join(" ") };
        self.store.save_comparison(&row.triplet, identity, &granted).await?;
        Ok(if identity == "different" {
            Compared::Rejected("another upstream account was connected".to_owned())
        } else if !missing.is_empty() {
            Compared::Rejected(format!("the consent lacks {granted}"))
        } else {
            Compared::Proven
        })
    }
}

/// Scopes that are needed and were not granted. Unknown is everything missing: absence of
/// evidence is not a grant.
fn missing_scopes(needed: &[String], granted: Option<&[String]>) -> Vec<String> {
    let granted: std::collections::BTreeSet<String> =
        granted.unwrap_or_default().iter().flat_map(|s| scope_set(s)).collect();
    needed.iter().filter(|s| !granted.contains(*s)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_sets_and_unknown_is_missing() {
        let needed = ["a".to_owned(), "b".to_owned()];
        assert!(missing_scopes(&needed, Some(&["b a c".to_owned()])).is_empty());
        assert_eq!(missing_scopes(&needed, Some(&["a".to_owned()])), ["b"]);
        assert_eq!(missing_scopes(&needed, None), needed);
    }
}
