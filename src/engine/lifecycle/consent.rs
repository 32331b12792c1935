//! Consent and proof: a link per triplet, made when a person is about to use it; then the
//! upstream identity and the scopes of what they connected, compared with the old grant.

use super::super::{Engine, EngineResult};
use super::{Progress, alias, retry_at};
use crate::catalogue::identity::Identity;
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::custody::{Event, Stage};
use crate::domain::secret::Secret;
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::domain::token::scope_set;
use crate::domain::upstream::Upstream;
use crate::engine::poll::whoami_call;
use crate::plan::Route;
use crate::ports::{
    AccountStatus, ApiError, ApiErrorKind, ConnectedAccount, Outside, TargetCustody, TargetRead, TargetScheme,
};
use crate::store::{ConnectionRow, TripletRow};

/// How often an open link is looked at. Composio sends no event on activation (Composio contract §5.2).
const LOOK_EVERY_MS: i64 = 20 * SECOND_MS;

/// Who makes the links of a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    /// The campaign, for every triplet at once: for rehearsals, or with everybody in the room.
    Make,
    /// Each person, when they open their page.
    Await,
}

/// What became of the wish for a link.
pub(super) enum Opened {
    /// It is open. Its address is not known when a crash came between making and noting it.
    Open(Option<Secret>),
    Later(Timestamp),
    /// Somebody else makes one under the same name at this moment.
    Taken,
    /// The triplet has no toolkit to connect to.
    Nothing,
}

/// What a whoami through the target gave.
pub(super) enum Served {
    Yes,
    No(String),
    /// A system did not answer.
    Later(Timestamp, ApiError),
}

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
        self.run_campaign(Links::Make, now).await
    }

    /// Follows the links that people open, and proves what comes back, until every triplet is
    /// verified or held. Makes no links itself.
    ///
    /// # Errors
    /// As [`Engine::consent`].
    pub async fn follow_consents(&self, now: Timestamp) -> EngineResult<Progress> {
        self.run_campaign(Links::Await, now).await
    }

    async fn run_campaign(&self, links: Links, now: Timestamp) -> EngineResult<Progress> {
        let pace_ms = self.throttle_ms().await?;
        let connections = self.store.load_connections().await?;
        let mut wait: Option<Timestamp> = None;
        let mut later = |at: Timestamp| wait = Some(wait.map_or(at, |w: Timestamp| w.min(at)));
        for row in self.moving().await? {
            let Some(connection) = connections.iter().find(|c| c.id == row.connection) else { continue };
            if row.custody.held.is_some() {
                continue;
            }
            let copied = row.custody.route == Route::Static;
            match row.custody.stage {
                Stage::Mirroring if !copied => {
                    if let Some(at) = self.demand_go(row.wave, "consent", now).await? {
                        return Ok(Progress::Wait(at));
                    }
                    if let Some(at) = self.advance_consent(&row, connection, links, now).await? {
                        later(at);
                    }
                    if pace_ms > 0 && links == Links::Make && row.consent_account.is_none() {
                        return Ok(Progress::Wait(now.plus_ms(pace_ms)));
                    }
                }
                // A copied secret needs nobody's consent: it is proven as it is.
                Stage::Mirroring if row.old_identity.is_none() => {
                    if let Some(at) = self.learn_old_identity(&row, connection, now).await? {
                        later(at);
                    }
                }
                Stage::Consented | Stage::Mirroring => match self.compare(&row, connection, now).await? {
                    Compared::Proven => {
                        self.record(&row.triplet, &Event::IdentityProven, now).await?;
                    }
                    Compared::Rejected(reason) => self.reject(&row, reason, now).await?,
                    Compared::Later(at) => later(at),
                },
                _ => {}
            }
        }
        // A step may have opened the next one.
        let open = self
            .moving()
            .await?
            .iter()
            .any(|t| t.custody.held.is_none() && matches!(t.custody.stage, Stage::Mirroring | Stage::Consented));
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
        links: Links,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        if row.old_identity.is_none() {
            // Before any consent: with the same client the old grant may not outlive it.
            if let Some(at) = self.learn_old_identity(row, connection, now).await? {
                return Ok(Some(at));
            }
        }
        let (Some(account), Some(until)) = (&row.consent_account, row.consent_until) else {
            return match links {
                Links::Make => Ok(match self.open_link(row, now).await? {
                    Opened::Open(_) => Some(now.plus_ms(LOOK_EVERY_MS)),
                    Opened::Later(at) => Some(at),
                    Opened::Taken => Some(now.plus_ms(SECOND_MS)),
                    Opened::Nothing => None,
                }),
                Links::Await => Ok(Some(now.plus_ms(LOOK_EVERY_MS))),
            };
        };
        let answer = self.outside.target().get_account(account).await;
        self.observe(Api::Composio, now, &answer).await?;
        match answer {
            Ok(found) if found.status == AccountStatus::Active => {
                let event = Event::ConsentCompleted { account: found.id };
                self.record(&row.triplet, &event, now).await?;
                Ok(None)
            }
            Ok(found) => {
                let over = matches!(
                    found.status,
                    AccountStatus::Failed | AccountStatus::Expired | AccountStatus::Revoked | AccountStatus::Inactive
                );
                if (over || now > until) && links == Links::Await {
                    // The person's page makes another one.
                    self.store.clear_consent(&row.triplet).await?;
                } else if over || now > until {
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

    /// Makes a link for a triplet that has none open.
    pub(super) async fn open_link(&self, row: &TripletRow, now: Timestamp) -> EngineResult<Opened> {
        let Some(toolkit) = &row.toolkit else { return Ok(Opened::Nothing) };
        let config = match self.ensure_auth_config(toolkit, "final", TargetScheme::Oauth2, &row.scopes, now).await? {
            Ok(config) => config,
            Err(at) => return Ok(Opened::Later(at)),
        };
        let user = row.triplet.tenant.to_string();
        let alias = format!("{}-{}", alias("cutover-final", &row.triplet), row.consent_attempts + 1);
        // A link that was made just before a crash: its account is there, its address is not.
        // Whoever holds the address may still use it, so it is waited for like any other.
        let known = self.outside.target().list_accounts_of(&user).await;
        self.observe(Api::Composio, now, &known).await?;
        let known: Option<ConnectedAccount> = match known {
            Ok(known) => known.into_iter().find(|a| a.alias.as_deref() == Some(&alias) && &a.toolkit == toolkit),
            Err(error) => return Ok(Opened::Later(retry_at(now, &error))),
        };
        let mut url = None;
        let (account, until) = match known {
            Some(account) => (account.id, now.plus_ms(crate::domain::schedule::LINK_LIFE_MS)),
            None => {
                let made = self.outside.target().create_link(&config, &user, &alias, None).await;
                self.observe(Api::Composio, now, &made).await?;
                match made {
                    Ok(link) => {
                        url = Some(link.url);
                        (link.account_id, link.expires_at)
                    }
                    Err(ApiError { kind: ApiErrorKind::Conflict { .. }, .. }) => return Ok(Opened::Taken),
                    Err(error) if error.is_transient() => return Ok(Opened::Later(retry_at(now, &error))),
                    Err(error) => return Err(super::apply::refused("make a consent link for", row, &error)),
                }
            }
        };
        self.store.save_consent(&row.triplet, &account, until).await?;
        Ok(Opened::Open(url))
    }

    /// An attempt came to nothing: another link, or a person must look.
    async fn end_attempt(&self, row: &TripletRow, reason: &str, now: Timestamp) -> EngineResult<()> {
        self.store.clear_consent(&row.triplet).await?;
        if row.consent_attempts >= self.config.consent_attempts_max {
            let reason = format!("{reason}, after {} attempts", row.consent_attempts);
            self.record(&row.triplet, &Event::Held { reason }, now).await?;
        }
        Ok(())
    }

    async fn reject(&self, row: &TripletRow, reason: String, now: Timestamp) -> EngineResult<()> {
        tracing::error!(triplet = %row.triplet, "consent rejected: {reason}");
        let note = Note { at: now, subject: row.triplet.to_string(), detail: reason.clone() };
        self.store.add_note("consent-rejected", &note).await?;
        if row.custody.route == Route::Static {
            // Nobody consented to it, so nobody can be asked again.
            self.record(&row.triplet, &Event::Held { reason }, now).await?;
            return Ok(());
        }
        let event = Event::ConsentRejected { reason: reason.clone() };
        self.record(&row.triplet, &event, now).await?;
        self.end_attempt(row, &reason, now).await
    }

    /// The upstream account behind the old grant, asked directly with the token that KV serves.
    pub(super) async fn learn_old_identity(
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
                    self.record(&row.triplet, &Event::Held { reason }, now).await?;
                    Ok(Some(now.plus_ms(SECOND_MS)))
                }
            },
            Err(Some(ApiErrorKind::Unauthorized { .. }) | None) => {
                let reason = "the old grant's identity cannot be read, so a new one cannot be compared".to_owned();
                self.record(&row.triplet, &Event::Held { reason }, now).await?;
                Ok(Some(now.plus_ms(SECOND_MS)))
            }
            Err(Some(_)) => Ok(Some(now.plus_ms(super::RETRY_MS))),
        }
    }

    fn identity_of(&self, row: &TripletRow, answer: &serde_json::Value) -> Result<Identity, String> {
        let facts = self.catalogue.integration(&row.integration_key).ok_or("the catalogue does not know it")?;
        Identity::extract(answer, &facts.whoami, self.store.vault().fingerprints()).map_err(|e| e.to_string())
    }

    /// The smoke test through the target: the account is active and the provider answers a whoami.
    pub(super) async fn ask_target(&self, row: &TripletRow, now: Timestamp) -> EngineResult<Served> {
        let connections = self.store.load_connections().await?;
        let connection = connections.iter().find(|c| c.id == row.connection);
        let facts = self.catalogue.integration(&row.integration_key);
        let call = facts.zip(connection).and_then(|(facts, c)| whoami_call(&facts.whoami, &c.config));
        let (Some(account), Some(call)) = (row.final_account(), call) else {
            return Ok(Served::No("there is no account or no whoami to ask".to_owned()));
        };
        let found = self.outside.target().get_account(account).await;
        self.observe(Api::Composio, now, &found).await?;
        match found {
            Ok(found) if found.status == AccountStatus::Active => {}
            Ok(found) => return Ok(Served::No(format!("its account is {:?}", found.status))),
            Err(error) if error.is_transient() => return Ok(Served::Later(retry_at(now, &error), error)),
            Err(error) => return Ok(Served::No(error.to_string())),
        }
        let answer = self.outside.target().proxy(account, &call).await;
        self.observe(Api::Composio, now, &answer).await?;
        Ok(match answer {
            Ok(answer) => match Upstream::of(answer.status) {
                Upstream::Works | Upstream::Busy => Served::Yes,
                Upstream::Refused => Served::No(format!("the provider answered {} through it", answer.status)),
            },
            Err(error) if error.is_transient() => Served::Later(retry_at(now, &error), error),
            Err(error) => Served::No(error.to_string()),
        })
    }

    /// Compares what was connected with the old grant: same upstream account, scopes not smaller.
    async fn compare(&self, row: &TripletRow, connection: &ConnectionRow, now: Timestamp) -> EngineResult<Compared> {
        let target = self.outside.target();
        let (Some(account), Some(integration)) =
            (row.final_account(), self.catalogue.integration(&row.integration_key))
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
            Ok(answer) => match Upstream::of(answer.status) {
                Upstream::Works => answer.data,
                Upstream::Busy => return Ok(Compared::Later(now.plus_ms(super::RETRY_MS))),
                Upstream::Refused => {
                    return Ok(Compared::Rejected(format!("the provider answered {} through Composio", answer.status)));
                }
            },
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
        // A copied secret is the same secret, with the same rights.
        let needed: &[String] = if row.custody.route == Route::Static { &[] } else { &row.scopes };
        let missing = missing_scopes(needed, found.granted_scopes.as_deref().or(found.requested_scopes.as_deref()));
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
