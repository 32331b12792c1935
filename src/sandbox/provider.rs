//! The OAuth providers: upstream users, grants, refresh tokens and access tokens.
//!
//! A token's text is a function of the seed, its grant and its number, so no table of tokens is
//! kept: a text is looked up by reading those two numbers back and making the text again. Only
//! tokens that still live are remembered, which keeps a month of rotations in constant memory.

pub(super) mod http;
mod shapes;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::catalogue::{Integration, Life, Reuse, Rotation};
use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};

use super::draw;
use super::script::TokenTwist;

pub(super) type GrantId = usize;
pub(super) type UserId = usize;

/// Text inside every secret of the world, for leak tests to search for.
pub const CANARY: &str = "CANARY";

/// How long a spent refresh token still works where the provider grants a grace period.
/// Slack publishes no figure and Cognito allows 0 to 60 s; one minute is the kindest case.
const GRACE_MS: i64 = MINUTE_MS;

/// Life of an authorization code.
pub(super) const CODE_LIFE_MS: i64 = 60 * SECOND_MS;

/// Who presents a refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    DoAlarm,
    Nango,
    Composio,
    /// Someone who called the token endpoint directly.
    Other,
}

/// Which OAuth app a grant belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Client {
    /// The team's app, shared by the TokenManager objects and Nango.
    Legacy,
    /// The app behind Composio's auth configs.
    Composio,
}

/// A person or bot at one provider.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub integration: usize,
    /// What the identity fields of a whoami answer are made from.
    pub identity: String,
    /// Connection-time values that fill placeholders of catalogue URLs, such as `instance_url`.
    pub config: Map<String, Value>,
}

impl User {
    /// The host that serves this user's API, where it is the user's own.
    pub(super) fn host(&self) -> Option<&str> {
        let url = self.config.get("instance_url").or_else(|| self.config.get("api_base_url_for_customer"))?;
        url.as_str()?.strip_prefix("https://")
    }
}

/// The placeholders of an integration's URLs, for one tenant.
pub(super) fn connection_config(key: &str, tenant: &str) -> Map<String, Value> {
    let tenant: String =
        tenant.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let pairs: &[(&str, String)] = &match key {
        "salesforce" => vec![("instance_url", format!("https://{tenant}.my.salesforce.example"))],
        "gong-oauth" => vec![("api_base_url_for_customer", format!("https://{tenant}.api.gong.example"))],
        "aws" => vec![("subdomain", tenant), ("region", "us-west-2".to_owned())],
        _ => vec![],
    };
    pairs.iter().map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str()))).collect()
}

/// What one consent produced.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub integration: usize,
    pub user: UserId,
    pub client: Client,
    pub scopes: Vec<String>,
    /// The inventory row whose source custody this is; `None` for grants made at consent.
    pub row: Option<usize>,
    /// Life of its access tokens; `None`: no expiry and no refresh token.
    life_ms: Option<i64>,
    /// A refresh answers with a new refresh token.
    rotates: bool,
    /// Number of the refresh token in force.
    refresh_number: u32,
    rotated_at: Option<Timestamp>,
    consented_at: Timestamp,
    last_refresh_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
    /// Number of the newest access token.
    number: u32,
    /// Access tokens that have not expired yet, oldest first.
    live: VecDeque<Minted>,
    /// Access tokens revoked one by one; rare, so never pruned.
    revoked: Vec<(u32, Timestamp)>,
}

/// An access token that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Minted {
    pub number: u32,
    pub at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub by: Party,
}

/// Which access token a text is. Orders by age within one grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TokenRef {
    pub grant: GrantId,
    pub number: u32,
    pub minted_at: Timestamp,
    /// `Some(past)` also for tokens so old that they are forgotten.
    pub expires_at: Option<Timestamp>,
}

impl TokenRef {
    /// Whether this token was minted before `other`. Across grants, time decides.
    pub fn older_than(&self, other: &Self) -> bool {
        if self.grant == other.grant { self.number < other.number } else { self.minted_at < other.minted_at }
    }
}

/// What a refresh or a code exchange gives.
#[derive(Clone, Debug)]
pub(super) struct TokenAnswer {
    pub token: TokenRef,
    pub access_token: String,
    /// A new refresh token, where the provider sends one.
    pub refresh_token: Option<String>,
    pub expires_in_s: Option<i64>,
    pub scope: String,
    pub token_type: &'static str,
}

/// Why a provider refused a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Unknown, revoked, aged out, or killed with its family.
    Dead,
    /// A spent refresh token; the grant itself lives on.
    Spent,
    /// The OAuth app is unknown, or not the one that the grant belongs to.
    Client,
    /// As told in advance.
    Told(TokenTwist),
}

/// What happened at the provider during one refresh, for the ledger.
#[derive(Clone, Debug)]
pub(super) struct RefreshReport {
    pub grant: Option<GrantId>,
    pub result: Result<TokenAnswer, Refusal>,
    /// A rotated refresh token was presented again.
    pub presented_spent: bool,
    /// The newest token was minted by another party and had more than ten minutes to live.
    pub raced: Option<Party>,
}

/// Why a token opens nothing, or who it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Valid,
    Expired,
    Revoked,
}

/// All providers of the world.
#[derive(Clone, Debug)]
pub(super) struct Providers {
    seed: u64,
    pub integrations: Vec<(Arc<str>, Integration)>,
    pub users: Vec<User>,
    pub grants: Vec<Grant>,
    pub codes: std::collections::BTreeMap<String, Code>,
    pub(super) optional_rotation: bool,
    /// One life for every expiring OAuth2 token instead of the catalogue's.
    pub(super) fixed_life_ms: Option<i64>,
}

/// An authorization code waiting to be exchanged.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub user: UserId,
    pub client_id: String,
    pub redirect_uri: String,
    pub scopes: Vec<String>,
    /// SHA-256 challenge (PKCE S256).
    pub challenge: Option<String>,
    pub expires_at: Timestamp,
}

impl Providers {
    pub fn new(seed: u64, fixed_life_ms: Option<i64>, optional_rotation: bool) -> Self {
        Self {
            seed,
            integrations: Vec::new(),
            users: Vec::new(),
            grants: Vec::new(),
            codes: std::collections::BTreeMap::new(),
            optional_rotation,
            fixed_life_ms,
        }
    }

    pub fn key(&self, integration: usize) -> &str {
        &self.integrations[integration].0
    }

    pub fn integration(&self, integration: usize) -> &Integration {
        &self.integrations[integration].1
    }

    pub fn find_integration(&self, key: &str) -> Option<usize> {
        self.integrations.iter().position(|(k, _)| &**k == key)
    }

    pub fn add_user(&mut self, integration: usize, identity: String, config: Map<String, Value>) -> UserId {
        self.users.push(User { integration, identity, config });
        self.users.len() - 1
    }

    /// Whether refreshes of an integration answer with a new refresh token.
    fn rotates(&self, integration: usize) -> bool {
        match self.integration(integration).rotation {
            Rotation::Never => false,
            Rotation::Always => true,
            Rotation::Optional => self.optional_rotation,
        }
    }

    /// Life of an access token; `None` for API keys, providers without expiry, and Slack with
    /// token rotation switched off (then tokens never expire and no refresh token exists).
    pub fn life_ms(&self, integration: usize) -> Option<i64> {
        let facts = self.integration(integration);
        let unrotated_slack = self.key(integration) == "slack" && !self.rotates(integration);
        if facts.auth_mode != "OAUTH2" || unrotated_slack {
            return None;
        }
        let catalogue = facts.access_token_ttl_s.map(|s| i64::try_from(s).unwrap_or(i64::MAX / 2_000) * SECOND_MS)?;
        Some(self.fixed_life_ms.unwrap_or(catalogue))
    }

    /// A consent: a new grant. Evicts the oldest where the provider caps live grants per user and
    /// client; revokes the older ones where a second consent with one client does that.
    pub fn consent(
        &mut self,
        user: UserId,
        client: Client,
        scopes: Vec<String>,
        row: Option<usize>,
        at: Timestamp,
    ) -> GrantId {
        use crate::catalogue::Reconsent;
        let integration = self.users[user].integration;
        let facts = self.integration(integration);
        let (cap, kills_old) = (facts.grants_max, facts.same_client_reconsent != Reconsent::KeepsOld);
        let mut same: Vec<GrantId> = (0..self.grants.len())
            .filter(|g| {
                let grant = &self.grants[*g];
                grant.user == user && grant.client == client && grant.revoked_at.is_none()
            })
            .collect();
        if kills_old {
            same.drain(..).for_each(|g| self.grants[g].revoked_at = Some(at));
        } else if let Some(cap) = cap {
            while same.len() >= cap.max(1) as usize {
                self.grants[same.remove(0)].revoked_at = Some(at);
            }
        }
        self.grants.push(Grant {
            integration,
            user,
            client,
            scopes,
            row,
            life_ms: self.life_ms(integration),
            rotates: self.rotates(integration),
            refresh_number: 1,
            rotated_at: None,
            consented_at: at,
            last_refresh_at: at,
            revoked_at: None,
            number: 0,
            live: VecDeque::new(),
            revoked: Vec::new(),
        });
        self.grants.len() - 1
    }

    /// A new access token of a live grant.
    pub fn mint(&mut self, grant: GrantId, by: Party, at: Timestamp) -> TokenRef {
        let g = &mut self.grants[grant];
        while g.live.front().is_some_and(|t| t.expires_at.is_some_and(|e| e < at)) {
            g.live.pop_front();
        }
        g.number += 1;
        let minted = Minted { number: g.number, at, expires_at: g.life_ms.map(|ms| at.plus_ms(ms)), by };
        g.live.push_back(minted);
        TokenRef { grant, number: minted.number, minted_at: at, expires_at: minted.expires_at }
    }

    pub fn access_text(&self, grant: GrantId, number: u32) -> String {
        let prefix = shapes::access_prefix(self.key(self.grants[grant].integration));
        self.token_text(prefix, 'a', grant, number)
    }

    /// The refresh token in force; `None` where the provider gives none.
    pub fn refresh_text(&self, grant: GrantId) -> Option<String> {
        let g = &self.grants[grant];
        g.life_ms?;
        let prefix = shapes::refresh_prefix(self.key(g.integration));
        Some(self.token_text(prefix, 'r', grant, g.refresh_number))
    }

    fn token_text(&self, prefix: &str, kind: char, grant: GrantId, number: u32) -> String {
        let kind_label = if kind == 'a' { "access" } else { "refresh" };
        let random = draw::text(self.seed, &[kind_label, prefix], ((grant as u64) << 32) | u64::from(number), 30);
        format!("{prefix}{CANARY}{kind}{}{}{random}", base36(grant as u64, 5), base36(u64::from(number), 6))
    }

    /// Which access token a text is; `None` when this world never made it.
    pub fn find(&self, text: &str) -> Option<TokenRef> {
        let (grant, number) = self.read_numbers(text, 'a')?;
        let g = self.grants.get(grant)?;
        if number == 0 || number > g.number || self.access_text(grant, number) != text {
            return None;
        }
        Some(match g.live.iter().rev().find(|t| t.number == number) {
            Some(t) => TokenRef { grant, number, minted_at: t.at, expires_at: t.expires_at },
            None => TokenRef {
                grant,
                number,
                minted_at: Timestamp::from_millis(0),
                expires_at: Some(Timestamp::from_millis(0)),
            },
        })
    }

    fn read_numbers(&self, text: &str, kind: char) -> Option<(GrantId, u32)> {
        let rest = text.split_once(CANARY)?.1.strip_prefix(kind)?;
        let grant = u64::from_str_radix(rest.get(..5)?, 36).ok()?;
        let number = u64::from_str_radix(rest.get(5..11)?, 36).ok()?;
        Some((usize::try_from(grant).ok()?, u32::try_from(number).ok()?))
    }

    /// The instant from which a token opens nothing; `None`: it works until someone revokes it.
    pub fn dead_from(&self, token: &TokenRef) -> Option<Timestamp> {
        let g = &self.grants[token.grant];
        let revoked = g.revoked.iter().find(|(n, _)| *n == token.number).map(|(_, at)| *at);
        [token.expires_at, g.revoked_at, revoked].into_iter().flatten().min()
    }

    pub fn standing(&self, token: &TokenRef, now: Timestamp) -> Standing {
        match self.dead_from(token) {
            Some(dead) if dead <= now => {
                if token.expires_at.is_some_and(|e| e <= now) {
                    Standing::Expired
                } else {
                    Standing::Revoked
                }
            }
            _ => Standing::Valid,
        }
    }

    /// `grant_type=refresh_token`. `told`: how this answer differs from the usual.
    pub fn refresh(
        &mut self,
        refresh_token: &str,
        by: Party,
        now: Timestamp,
        told: Option<TokenTwist>,
    ) -> RefreshReport {
        let mut report = RefreshReport { grant: None, result: Err(Refusal::Dead), presented_spent: false, raced: None };
        let Some((grant, number)) = self.read_numbers(refresh_token, 'r') else { return report };
        let Some(g) = self.grants.get(grant) else { return report };
        let prefix = shapes::refresh_prefix(self.key(g.integration));
        if g.life_ms.is_none()
            || number == 0
            || number > g.refresh_number
            || self.token_text(prefix, 'r', grant, number) != refresh_token
        {
            return report;
        }
        report.grant = Some(grant);
        let facts = self.integration(g.integration);
        let reuse = facts.reuse;
        let life_began_at =
            if facts.refresh_token_life == Some(Life::Absolute) { g.consented_at } else { g.last_refresh_at };
        let aged_out = facts.refresh_token_ttl_s.is_some_and(|s| now.since(life_began_at) / SECOND_MS > s as i64);
        if g.revoked_at.is_some() || aged_out {
            return report;
        }
        report.raced = g
            .live
            .back()
            .filter(|t| t.by != by && t.expires_at.is_some_and(|e| e.since(now) > 10 * MINUTE_MS))
            .map(|t| t.by);
        if number < g.refresh_number && reuse != Reuse::Harmless {
            report.presented_spent = true;
            let in_grace = number + 1 == g.refresh_number && g.rotated_at.is_some_and(|at| now.since(at) <= GRACE_MS);
            match reuse {
                Reuse::Grace if in_grace => {}
                Reuse::Grace => {
                    report.result = Err(Refusal::Spent);
                    return report;
                }
                Reuse::RevokesFamily | Reuse::Unknown | Reuse::Harmless => {
                    self.grants[grant].revoked_at = Some(now);
                    return report;
                }
            }
        }
        let rotated = match told {
            None | Some(TokenTwist::NoExpiry | TokenTwist::Slow) => g.rotates,
            Some(TokenTwist::Rotate) => true,
            Some(TokenTwist::KeepRefreshToken) => false,
            Some(refused) => {
                report.result = Err(Refusal::Told(refused));
                return report;
            }
        };
        let token = self.mint(grant, by, now);
        let g = &mut self.grants[grant];
        g.last_refresh_at = now;
        if rotated {
            g.refresh_number += 1;
            g.rotated_at = Some(now);
        }
        let mut answer = self.answer(token, rotated);
        if told == Some(TokenTwist::NoExpiry) {
            answer.expires_in_s = None;
        }
        report.result = Ok(answer);
        report
    }

    /// A token answer. `with_refresh`: send the refresh token along.
    pub fn answer(&self, token: TokenRef, with_refresh: bool) -> TokenAnswer {
        let g = &self.grants[token.grant];
        let key = self.key(g.integration);
        TokenAnswer {
            token,
            access_token: self.access_text(token.grant, token.number),
            refresh_token: if with_refresh { self.refresh_text(token.grant) } else { None },
            // Salesforce's token answer names no life.
            expires_in_s: g.life_ms.map(|ms| ms / SECOND_MS).filter(|_| !self.hides_expiry(g.integration)),
            scope: g.scopes.join(shapes::scope_separator(key)),
            token_type: shapes::token_type(key),
        }
    }

    /// Salesforce says nothing about a token's life, so Nango introspects on each read. With one
    /// fixed life for all, the answer does name it.
    pub fn hides_expiry(&self, integration: usize) -> bool {
        !self.integration(integration).expiry_at_source
            && self.life_ms(integration).is_some()
            && self.fixed_life_ms.is_none()
    }

    /// Revokes one access token.
    pub fn revoke_token(&mut self, token: &TokenRef, at: Timestamp) {
        let revoked = &mut self.grants[token.grant].revoked;
        if revoked.len() < 1_000 && !revoked.iter().any(|(n, _)| *n == token.number) {
            revoked.push((token.number, at));
        }
    }

    /// The grant behind a refresh token that is or was in force.
    pub fn grant_of_refresh(&self, text: &str) -> Option<GrantId> {
        let (grant, number) = self.read_numbers(text, 'r')?;
        let g = self.grants.get(grant)?;
        let prefix = shapes::refresh_prefix(self.key(g.integration));
        (self.token_text(prefix, 'r', grant, number) == text).then_some(grant)
    }
}

/// `n` in base 36, padded to `width`. Numbers beyond the width keep their low digits, so the
/// text stops reading back, which [`Providers::find`] notices.
fn base36(mut n: u64, width: usize) -> String {
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(n % 36) as usize];
        n /= 36;
    }
    digits.into_iter().map(char::from).collect()
}
