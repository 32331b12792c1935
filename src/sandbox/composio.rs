//! Composio v3.1: auth configs, connected accounts and their life, consent by the simulated person.
//!
//! Tokens go in and never come out. Bearer accounts are never refreshed or expired; OAuth2
//! accounts come to life through a link only, and then refresh by themselves before expiry.

mod accounts;
mod configs;
mod consent;
mod hooks;
mod http;
mod proxy;
mod settings;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::catalogue::Catalogue;
use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};
use crate::domain::triplet::Triplet;

use super::draw;
use super::ledger::Sink;
use super::provider::{Client, GrantId, Party, Refusal};
use super::world::{Event, World};

pub(super) use self::http::Refused;
pub use self::settings::{ComposioSettings, Masking, Oauth2Import, UnknownQuery};

/// Life of a consent link (composio.md §3.6).
const LINK_LIFE_MS: i64 = 10 * MINUTE_MS;
/// How long before expiry Composio refreshes; its schedule is not documented.
const REFRESH_AHEAD_MS: i64 = 5 * MINUTE_MS;
/// Words shorter than this occur in many aliases (`cutover`, `mirror`).
const SHARED_WORD_MIN: usize = 8;

#[derive(Clone, Debug)]
pub(super) struct AuthConfig {
    pub id: String,
    pub name: String,
    pub toolkit: String,
    pub scheme: String,
    pub managed: bool,
    pub enabled: bool,
    pub deleted: bool,
    pub credentials: serde_json::Map<String, serde_json::Value>,
    pub scopes: Vec<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Initializing,
    Initiated,
    Active,
    Failed,
    Expired,
    Inactive,
    Revoked,
}

impl Status {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Initializing => "INITIALIZING",
            Self::Initiated => "INITIATED",
            Self::Active => "ACTIVE",
            Self::Failed => "FAILED",
            Self::Expired => "EXPIRED",
            Self::Inactive => "INACTIVE",
            Self::Revoked => "REVOKED",
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Account {
    pub id: String,
    pub word_id: String,
    pub alias: Option<String>,
    pub user_id: String,
    /// Place of the auth config.
    pub config: usize,
    pub status: Status,
    pub status_reason: Option<String>,
    /// The secret fields of `state.val`, such as `token`.
    pub secrets: BTreeMap<String, String>,
    /// For OAuth2 accounts after consent.
    pub grant: Option<GrantId>,
    refresh_token: Option<String>,
    generation: u64,
    pub scope: Option<String>,
    pub requested_scopes: Vec<String>,
    pub expires_in_s: Option<i64>,
    pub link_token: Option<String>,
    /// Where the person's browser goes after the link.
    pub callback_url: Option<String>,
    /// What a verifier of the project redeems before the account comes to life.
    session_uri: Option<String>,
    /// Background refreshes that failed since the last that did not.
    failures: u32,
    /// Until when a write keeps other writers out.
    lease_until: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub deleted: bool,
    /// The triplet of the inventory that this account is for, as far as the world can tell.
    pub triplets: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(super) struct Composio {
    pub configs: Vec<AuthConfig>,
    pub accounts: Vec<Account>,
    pub by_id: HashMap<String, usize>,
    /// Slug → whether Composio offers its own OAuth app (composio.md §6).
    pub toolkits: BTreeMap<String, bool>,
    /// Triplets that the gateway serves from an account.
    serves: HashMap<usize, Vec<usize>>,
    window: (i64, u32),
    /// How often the same request came at this instant, for keyed faults.
    seen_now: (Timestamp, HashMap<u64, u64>),
    pub subscription: Option<hooks::Subscription>,
    /// Project keys with few permissions: areas by key.
    scoped_keys: BTreeMap<String, Vec<String>>,
    project: http::ProjectConfig,
    /// A consent link was made.
    links: bool,
}

impl Composio {
    /// Whether the consent campaign has begun.
    pub fn has_links(&self) -> bool {
        self.links
    }

    /// Whether `toolkit` is known and has no OAuth app of Composio's.
    pub fn needs_own_app(&self, toolkit: &str) -> bool {
        self.toolkits.get(toolkit) == Some(&false)
    }

    pub fn new(catalogue: &Catalogue) -> Self {
        let toolkits = catalogue
            .integrations
            .values()
            .flat_map(|i| i.provider.values())
            .filter(|p| !p.toolkit_unconfirmed)
            .filter_map(|p| Some((p.toolkit.clone()?, p.managed_oauth != Some(false))))
            .collect();
        Self {
            configs: Vec::new(),
            accounts: Vec::new(),
            by_id: HashMap::new(),
            toolkits,
            serves: HashMap::new(),
            window: (i64::MIN, 0),
            seen_now: (Timestamp::default(), HashMap::new()),
            subscription: None,
            scoped_keys: BTreeMap::new(),
            project: http::ProjectConfig::default(),
            links: false,
        }
    }

    /// The access token that an account would use now; `None` when it cannot execute.
    pub fn served_token(&self, account_id: &str) -> Option<&str> {
        let account = &self.accounts[*self.by_id.get(account_id)?];
        let usable = !account.deleted && account.status == Status::Active && self.configs[account.config].enabled;
        if usable { account.token() } else { None }
    }

    pub fn find_account(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied().filter(|place| !self.accounts[*place].deleted)
    }

    pub fn find_config(&self, id: &str) -> Option<usize> {
        self.configs.iter().position(|c| c.id == id && !c.deleted)
    }
}

impl Account {
    /// The token that executions use.
    pub fn token(&self) -> Option<&str> {
        ["access_token", "token", "generic_api_key", "api_key", "password"]
            .iter()
            .find_map(|name| self.secrets.get(*name))
            .map(String::as_str)
    }
}

impl World {
    /// The gateway serves a triplet from this account from now on.
    pub(super) fn composio_serves(&mut self, account_id: &str, triplet: usize) {
        if let Some(place) = self.composio.by_id.get(account_id).copied() {
            let served = self.composio.serves.entry(place).or_default();
            if !served.contains(&triplet) {
                served.push(triplet);
            }
        }
    }

    /// Must run before an account's token or status changes.
    pub(super) fn settle_account(&mut self, place: usize) {
        for triplet in self.composio.serves.get(&place).cloned().unwrap_or_default() {
            self.settle(triplet);
        }
    }

    /// A bearer token arrived for an account: book it for the triplets that the token feeds.
    pub(super) fn composio_token_written(&mut self, place: usize, text: &str) {
        let toolkit = self.composio.configs[self.composio.accounts[place].config].toolkit.clone();
        let row = self.providers.find(text).and_then(|t| self.providers.grants[t.grant].row);
        if let Some(row) = row.filter(|_| self.composio.accounts[place].triplets.is_empty()) {
            let of_toolkit = |t: &usize| self.triplets[*t].toolkit.as_deref() == Some(&toolkit);
            self.composio.accounts[place].triplets =
                self.rows[row].triplets.iter().copied().filter(of_toolkit).collect();
        }
        for triplet in self.composio.accounts[place].triplets.clone() {
            self.ledger_delivered(triplet, Sink::Composio, text);
        }
    }

    /// Whose link this is. A person knows which account they were asked to connect; the world
    /// finds out from the words in `user_id`, `alias` and `callback_url`: a triplet, a
    /// conventional id, or the tenant and account names.
    pub(super) fn composio_guess_triplet(&self, toolkit: &str, texts: &[&str]) -> Option<usize> {
        let decoded: Vec<String> =
            texts.iter().map(|t| percent_encoding::percent_decode_str(t).decode_utf8_lossy().into_owned()).collect();
        let words: BTreeSet<&str> = decoded
            .iter()
            .flat_map(|text| {
                let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
                text.split(move |c| !is_part(c)).flat_map(|word| word.split("__").chain([word]))
            })
            .collect();
        let has = |word: &str| words.contains(word);
        // An alias that shares a word with a mirror's alias (a digest, say) belongs to its triplet.
        let siblings: BTreeSet<&str> = self
            .composio
            .accounts
            .iter()
            .filter(|a| self.composio.configs[a.config].toolkit == toolkit)
            .filter(|a| {
                let mut shared = a.alias.iter().flat_map(|alias| alias.split('-'));
                shared.any(|word| word.len() >= SHARED_WORD_MIN && decoded.iter().any(|text| text.contains(word)))
            })
            .flat_map(|a| a.triplets.iter().map(|t| self.triplets[*t].name.as_str()))
            .collect();
        let score = |t: &Triplet, name: &str| {
            if decoded.iter().any(|text| text.contains(name)) {
                return 100;
            }
            let tenant = if has(t.tenant.as_str()) { 10 } else { 0 };
            let account = if has(t.account.as_str()) { 2 } else { 0 };
            let provider = if has(t.provider.as_str()) { 1 } else { 0 };
            tenant + account + provider + if siblings.contains(&name) { 50 } else { 0 }
        };
        self.triplets
            .iter()
            .enumerate()
            .filter(|(_, state)| state.toolkit.as_deref() == Some(toolkit))
            .map(|(i, state)| (score(&state.triplet, &state.name), std::cmp::Reverse(i)))
            .max()
            .filter(|(score, _)| *score >= 10 || self.toolkit_rows(toolkit) == 1)
            .map(|(_, std::cmp::Reverse(i))| i)
    }

    fn toolkit_rows(&self, toolkit: &str) -> usize {
        self.triplets.iter().filter(|t| t.toolkit.as_deref() == Some(toolkit)).count()
    }

    /// A link was made: the person opens it 20 s to 6 min later; after 10 min it is dead.
    pub(super) fn composio_link_made(&mut self, place: usize) {
        let account = &self.composio.accounts[place];
        let labels = ["human", account.user_id.as_str(), account.alias.as_deref().unwrap_or_default()];
        let wait =
            draw::between(self.seed(), &labels, self.now().millis().unsigned_abs(), 20 * SECOND_MS, 6 * MINUTE_MS);
        let now = self.now();
        self.composio.links = true;
        self.schedule(now.plus_ms(wait), Event::Consent { account: place });
        self.schedule(now.plus_ms(LINK_LIFE_MS), Event::LinkExpiry { account: place });
    }

    /// The person opens the link and consents; Composio exchanges the code. Where the project has a
    /// verifier, the account waits until that has said who the person is.
    pub(super) fn composio_consent(&mut self, place: usize) {
        let account = &self.composio.accounts[place];
        if account.deleted || !matches!(account.status, Status::Initializing | Status::Initiated) {
            return;
        }
        // Nobody in the inventory feels addressed, so nobody opens it.
        if account.triplets.is_empty() {
            return;
        }
        if self.options().composio.verifier_url.is_none() {
            self.composio_exchange(place);
            return;
        }
        let labels = ["session-uri", self.composio.accounts[place].id.as_str()];
        let uri = format!("composio-session:{}", draw::text(self.seed(), &labels, 0, 32));
        let account = &mut self.composio.accounts[place];
        account.status = Status::Initiated;
        account.session_uri.get_or_insert(uri);
    }

    /// The consent's code becomes a grant of its own, and the account comes to life.
    fn composio_exchange(&mut self, place: usize) {
        let now = self.now();
        let account = &self.composio.accounts[place];
        let Some(triplet) = account.triplets.first().copied() else { return };
        let row = &self.rows[self.triplets[triplet].row];
        let (integration, other) = (row.integration, self.faults.wrong_account.contains(&triplet));
        let user = if other { row.other_user } else { row.user };
        let client = self.composio_client(account.config, integration).unwrap_or(Client::Composio);
        let mut scopes = account.requested_scopes.clone();
        if self.faults.scope_loss.contains(&triplet) {
            scopes.pop();
        }
        let grant = self.providers.consent(user, client, scopes, None, now);
        let token = self.providers.mint(grant, Party::Composio, now);
        let answer = self.providers.answer(token, true);
        self.settle_account(place);
        let account = &mut self.composio.accounts[place];
        account.status = Status::Active;
        account.status_reason = None;
        account.grant = Some(grant);
        account.link_token = None;
        account.session_uri = None;
        account.updated_at = now;
        self.composio_store(place, answer);
    }

    /// Which of the provider's OAuth apps an auth config holds.
    fn composio_client(&self, config: usize, integration: usize) -> Option<Client> {
        let id = self.composio.configs[config].credentials.get("client_id")?.as_str()?;
        self.known_client(integration, id).map(|(client, _)| client)
    }

    /// Stores a token answer on an account and plans the next refresh.
    fn composio_store(&mut self, place: usize, answer: super::provider::TokenAnswer) {
        let now = self.now();
        let account = &mut self.composio.accounts[place];
        account.secrets.insert("access_token".into(), answer.access_token);
        if let Some(text) = answer.refresh_token {
            account.secrets.insert("refresh_token".into(), text.clone());
            account.refresh_token = Some(text);
        }
        account.scope = Some(answer.scope);
        account.expires_in_s = answer.expires_in_s;
        account.updated_at = now;
        account.failures = 0;
        account.generation += 1;
        let (generation, has_refresh) = (account.generation, account.refresh_token.is_some());
        if let Some(expires_at) = answer.token.expires_at.filter(|_| has_refresh) {
            // Half of a short life, so that a refresh never schedules itself for now.
            let ahead = REFRESH_AHEAD_MS.min(expires_at.since(now) / 2);
            self.schedule(expires_at.plus_ms(-ahead), Event::ComposioRefresh { account: place, generation });
        }
    }

    /// Composio's background refresh (§3.7: ACTIVE → EXPIRED on a permanent error).
    pub(super) fn composio_refresh(&mut self, place: usize, generation: u64) {
        let account = &self.composio.accounts[place];
        if account.deleted || account.generation != generation || account.status != Status::Active {
            return;
        }
        let Some(refresh_token) = account.refresh_token.clone() else { return };
        self.settle_account(place);
        // An imported grant belongs to another OAuth app, unless both custodians use the same.
        let owner = self.providers.grant_of_refresh(&refresh_token).map(|grant| &self.providers.grants[grant]);
        let config = self.composio.accounts[place].config;
        let fits = owner.is_none_or(|grant| {
            self.composio_client(config, grant.integration).is_none_or(|client| client == grant.client)
        });
        let outcome = if fits { self.refresh_grant(&refresh_token, Party::Composio) } else { Err(Refusal::Client) };
        match outcome {
            Ok(answer) => self.composio_store(place, answer),
            Err(_) => {
                let (now, enough) = (self.now(), self.options().composio.failures_before_expired.max(1));
                let account = &mut self.composio.accounts[place];
                account.failures += 1;
                if account.failures < enough {
                    // Still shown as ACTIVE although the grant may be dead (§3.7).
                    self.schedule(now.plus_ms(REFRESH_AHEAD_MS), Event::ComposioRefresh { account: place, generation });
                    return;
                }
                account.status = Status::Expired;
                account.status_reason = Some("permanent authentication error on background refresh".into());
                account.updated_at = now;
                self.composio_send_expired(place);
            }
        }
    }

    pub(super) fn composio_link_expiry(&mut self, place: usize) {
        let now = self.now();
        let account = &mut self.composio.accounts[place];
        if matches!(account.status, Status::Initializing | Status::Initiated) && !account.deleted {
            account.status = Status::Expired;
            account.status_reason = Some("initiation timeout: the link was not completed in 10 minutes".into());
            account.link_token = None;
            account.session_uri = None;
            account.updated_at = now;
        }
    }
}
