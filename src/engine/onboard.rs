//! Newcomers: a link for a person who connects an account for the first time, at either custody.

use super::{Engine, EngineResult};
use crate::domain::api::Api;
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::domain::triplet::{ConventionalId, Part, Triplet};
use crate::ports::{
    ApiError, ConnectSession, ConnectedAccount, ConsentLink, Outside, SourceConnection, SourceCustody, SourceRead,
    TargetCustody, TargetRead, TargetScheme,
};

/// The account of a tenant that has only one (ADR-038).
const DEFAULT_ACCOUNT: &str = "default";

/// Who connects what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newcomer {
    pub tenant: Part,
    /// A V5 provider, or an integration key of Nango.
    pub provider: Part,
    /// `default` when it is not named.
    pub account: Option<Part>,
    /// Shown to the person who consents.
    pub display_name: Option<String>,
}

impl Newcomer {
    fn account(&self) -> Part {
        let default = || Part::new(DEFAULT_ACCOUNT).expect("it is a part");
        self.account.clone().unwrap_or_else(default)
    }
}

/// What became of a newcomer's wish.
#[derive(Debug)]
pub enum Onboarding<T> {
    Made(T),
    /// The catalogue knows no such provider and no such integration.
    UnknownProvider,
    /// Something that is there already stands against it.
    Conflict(String),
    /// The other system did not do its part.
    Failed(ApiError),
}

/// A link that a person opens to connect an account at Composio.
#[derive(Clone, Debug)]
pub struct TargetLink {
    pub url: Secret,
    pub expires_at: Timestamp,
    pub account_id: String,
}

impl<O: Outside> Engine<O> {
    /// A Connect session at Nango for one integration. Nango makes the connection's id; the triplet
    /// stands in `end_user.id`, and in the tags, which a later reconnect must send again.
    ///
    /// # Errors
    /// Only when the store fails.
    pub async fn open_source_session(
        &self,
        newcomer: &Newcomer,
        now: Timestamp,
    ) -> EngineResult<Onboarding<ConnectSession>> {
        let Some(key) = self.integration_of(newcomer) else { return Ok(Onboarding::UnknownProvider) };
        let Ok(integration_key) = Part::new(&key) else { return Ok(Onboarding::UnknownProvider) };
        let id = ConventionalId { tenant: newcomer.tenant.clone(), integration_key, account: newcomer.account() };
        let display_name = newcomer.display_name.as_deref();
        let made = self.outside.source().open_session(&id.to_string(), display_name, &key).await;
        self.observe(Api::Nango, now, &made).await?;
        match made {
            Ok(session) => {
                self.record_connect("nango", &id.to_string(), session.expires_at, now).await?;
                Ok(Onboarding::Made(session))
            }
            Err(error) => Ok(Onboarding::Failed(error)),
        }
    }

    /// A consent link at Composio for one triplet. One that is in the plan and in the soak goes
    /// through the campaign's books, so that what comes back is proven like any other.
    ///
    /// # Errors
    /// When the store fails, or Composio refuses the auth config.
    pub async fn open_target_link(&self, newcomer: &Newcomer, now: Timestamp) -> EngineResult<Onboarding<TargetLink>> {
        let facts = self.integration_of(newcomer).and_then(|key| self.catalogue.integration(&key));
        let Some(provider) = facts.and_then(|facts| facts.provider.get(newcomer.provider.as_str())) else {
            return Ok(Onboarding::UnknownProvider);
        };
        let Some(toolkit) = &provider.toolkit else {
            return Ok(Onboarding::Conflict(format!("Composio has no toolkit for `{}`", newcomer.provider)));
        };
        let triplet = Triplet::new(newcomer.tenant.clone(), newcomer.provider.clone(), newcomer.account());
        let rows = self.store.load_triplets().await?;
        let row = rows.iter().find(|row| row.triplet == triplet);
        if let Some(open) = row.and_then(|row| row.consent_until.filter(|until| *until > now)) {
            let message = format!("a link for `{triplet}` is open until {}", open.to_rfc3339());
            return Ok(Onboarding::Conflict(message));
        }
        if let Some(account) = row.and_then(|row| row.custody.account.as_ref()) {
            return Ok(Onboarding::Conflict(format!("`{triplet}` is connected already, as `{account}`")));
        }
        let scopes = row.map_or(&provider.scopes, |row| &row.scopes);
        let config = match self.ensure_auth_config(toolkit, "final", TargetScheme::Oauth2, scopes, now).await? {
            Ok(config) => config,
            Err(at) => {
                let message = format!("Composio does not answer now; ask again after {}", at.to_rfc3339());
                return Ok(Onboarding::Conflict(message));
            }
        };
        let attempt = row.map_or(0, |row| row.consent_attempts) + 1;
        let alias = format!("{}-{attempt}", super::lifecycle::alias("cutover-final", &triplet));
        let user = triplet.tenant.to_string();
        let made = self.outside.target().create_link(&config, &user, &alias, None).await;
        self.observe(Api::Composio, now, &made).await?;
        match made {
            Ok(ConsentLink { account_id, url, expires_at }) => {
                if row.is_some() {
                    self.store.save_consent(&triplet, &account_id, expires_at).await?;
                }
                self.record_connect("composio", &triplet.to_string(), expires_at, now).await?;
                Ok(Onboarding::Made(TargetLink { url, expires_at, account_id }))
            }
            Err(error) => Ok(Onboarding::Failed(error)),
        }
    }

    /// The connections of a tenant at Nango, found by the id that ADR-038 gave them.
    ///
    /// # Errors
    /// When the store fails, or Nango does not answer.
    pub async fn source_connections(
        &self,
        tenant: &Part,
        now: Timestamp,
    ) -> EngineResult<Vec<(ConventionalId, SourceConnection)>> {
        let listed = self.outside.source().list_connections().await;
        self.observe(Api::Nango, now, &listed).await?;
        let id_of = |connection: &SourceConnection| {
            let named = connection.end_user_id.as_deref().and_then(|id| ConventionalId::parse(id).ok());
            named.or_else(|| ConventionalId::parse(&connection.connection_id).ok())
        };
        let all = listed.map_err(|error| later(error, now))?;
        let of_tenant = all.into_iter().filter_map(|c| Some((id_of(&c).filter(|id| id.tenant == *tenant)?, c)));
        Ok(of_tenant.collect())
    }

    /// The connected accounts of a tenant at Composio, mirrors included.
    ///
    /// # Errors
    /// When the store fails, or Composio does not answer.
    pub async fn target_accounts(&self, tenant: &Part, now: Timestamp) -> EngineResult<Vec<ConnectedAccount>> {
        let listed = self.outside.target().list_accounts_of(tenant.as_str()).await;
        self.observe(Api::Composio, now, &listed).await?;
        listed.map_err(|error| later(error, now))
    }

    /// The integration key that a provider is connected with; an integration key stands for itself.
    fn integration_of(&self, newcomer: &Newcomer) -> Option<String> {
        let name = newcomer.provider.as_str();
        let by_provider = self.catalogue.integrations.iter().find(|(_, facts)| facts.provider.contains_key(name));
        let key = self.catalogue.integrations.get_key_value(name).or(by_provider)?.0;
        Some(key.clone())
    }

    async fn record_connect(&self, custody: &str, subject: &str, until: Timestamp, now: Timestamp) -> EngineResult<()> {
        let json = serde_json::json!({"connect": custody, "link_until": until}).to_string();
        Ok(self.store.record_action("admin", subject, &json, now).await?)
    }
}

fn later(error: ApiError, now: Timestamp) -> super::EngineError {
    super::EngineError::Later { at: now, error }
}
