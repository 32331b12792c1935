//! Who does a credential belong to? The provider is asked with it: directly with a token that KV
//! serves, through Composio's proxy with one that Composio keeps to itself.
//!
//! Only the catalogue's identity fields are looked at, and they leave as keyed digests.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::super::compare::UpstreamIdentity;
use super::Caller;
use crate::catalogue::identity::Identity;
use crate::catalogue::{Catalogue, Integration};
use crate::domain::secret::{FingerprintKey, Secret};
use crate::domain::token::KvEntry;
use crate::engine::whoami_call;
use crate::ports::{Api, ApiErrorKind, ApiResult, ProviderCall, ProviderRead, TargetRead};

/// What asking gave. Nothing is said where nothing is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// The credential works, or was refused.
    pub live: Option<bool>,
    pub identity: Option<UpstreamIdentity>,
}

/// What is known of a triplet that its provider must be asked about.
#[derive(Clone, Debug)]
pub struct Subject {
    pub integration_key: String,
    /// Connection values that the whoami address needs. No secrets.
    pub config: Map<String, Value>,
}

type AskProvider = dyn Fn(&Secret, &ProviderCall) -> ApiResult<Value> + Send + Sync;

/// Asks providers about the triplets of one state.
pub struct Whoami {
    catalogue: Catalogue,
    key: FingerprintKey,
    /// By KV key.
    subjects: BTreeMap<String, Subject>,
    provider: Box<AskProvider>,
}

impl Whoami {
    /// `subjects` are the triplets by their KV keys; `key` is the installation's.
    pub fn new<P: ProviderRead + 'static>(
        catalogue: Catalogue,
        key: FingerprintKey,
        subjects: BTreeMap<String, Subject>,
        provider: Arc<P>,
        caller: Caller,
    ) -> Self {
        let provider = move |token: &Secret, call: &ProviderCall| {
            let host = call.url.split('/').nth(2);
            caller.call_at(Api::Provider, host, 1, || provider.whoami(token, call))
        };
        Self { catalogue, key, subjects, provider: Box::new(provider) }
    }

    /// Asks with a token that KV serves.
    pub(super) fn ask_directly(&self, key: &str, entry: &KvEntry) -> Asked {
        let Some((facts, subject)) = self.subject(key) else { return Asked::default() };
        // KV keeps the connection's values beside the token.
        let config = if entry.other.is_empty() { &subject.config } else { &entry.other };
        let call = whoami_call(&facts.whoami, config).or_else(|| whoami_call(&facts.whoami, &subject.config));
        let Some(call) = call else { return Asked::default() };
        match (self.provider)(&entry.access_token, &call) {
            Ok(answer) => self.understood(facts, &answer, false),
            Err(error) if matches!(error.kind, ApiErrorKind::Unauthorized { .. }) => {
                Asked { live: Some(false), identity: None }
            }
            Err(error) => {
                tracing::warn!(key, "the provider does not say whose token it is: {error}");
                Asked::default()
            }
        }
    }

    /// Asks through Composio, with the credential of a connected account.
    pub(super) fn ask_through<T: TargetRead>(&self, caller: &Caller, target: &T, key: &str, account: &str) -> Asked {
        let Some((facts, subject)) = self.subject(key) else { return Asked::default() };
        let Some(call) = whoami_call(&facts.whoami, &subject.config) else { return Asked::default() };
        match caller.call(Api::Composio, || target.proxy(account, &call)) {
            Ok(answer) if answer.status < 300 => self.understood(facts, &answer.data, true),
            Ok(answer) if matches!(answer.status, 401 | 403) => Asked { live: Some(false), identity: None },
            Ok(_) => Asked::default(),
            Err(error) => {
                tracing::warn!(key, "Composio does not carry the question whose token it is: {error}");
                Asked::default()
            }
        }
    }

    fn subject(&self, key: &str) -> Option<(&Integration, &Subject)> {
        let subject = self.subjects.get(key)?;
        Some((self.catalogue.integration(&subject.integration_key)?, subject))
    }

    fn understood(&self, facts: &Integration, answer: &Value, new: bool) -> Asked {
        let identity = Identity::extract(answer, &facts.whoami, &self.key).ok();
        let rule = facts.whoami.rule;
        Asked { live: Some(true), identity: identity.map(|identity| UpstreamIdentity { rule, identity, new }) }
    }
}
