//! Connected accounts (composio.md §3) and the proxy (§7).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::sandbox::draw;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::ledger::Sink;
use crate::sandbox::provider::Standing;
use crate::sandbox::world::{Event, World};

use super::http::{Outcome, Refused, page};
use super::{Account, LINK_LIFE_MS, Masking, Oauth2Import, REFRESH_AHEAD_MS, Status};

/// Schemes whose credentials can be patched (§3.4).
const PATCHABLE: [&str; 6] =
    ["BEARER_TOKEN", "API_KEY", "BASIC", "BASIC_WITH_JWT", "GOOGLE_SERVICE_ACCOUNT", "SERVICE_ACCOUNT"];
/// Secret fields of `state.val` (§3.1, §3.4).
const SECRET_FIELDS: [&str; 14] = [
    "token",
    "access_token",
    "refresh_token",
    "id_token",
    "generic_api_key",
    "api_key",
    "bearer_token",
    "basic_encoded",
    "generic_token",
    "generic_secret",
    "username",
    "password",
    "credentials_json",
    "private_key",
];

fn bad(message: impl Into<String>) -> Refused {
    Refused::new(400, "HTTP_BadRequest", message)
}

fn no_account() -> Refused {
    Refused::new(404, "ConnectedAccount_ResourceNotFound", "Connected account not found")
}

fn alias_taken() -> Refused {
    Refused::new(409, "ConnectedAccount_AliasConflict", "An account with this alias exists for this user and toolkit")
}

fn rejected() -> Refused {
    Refused::new(400, "ConnectedAccount_CredentialValidationRejected", "The credential was refused")
}

/// A value as Composio shows it: whoever sends it has read it here, and it opens nothing (§3.2).
fn is_read_back(text: &str) -> bool {
    text == "REDACTED" || (text.chars().count() == 7 && text.ends_with("..."))
}

/// The fields every new account starts with.
struct NewAccount<'a> {
    config: usize,
    user_id: &'a str,
    alias: Option<&'a str>,
    callback_url: Option<&'a str>,
}

impl World {
    fn composio_alias_is_taken(&self, config: usize, user_id: &str, alias: &str, but: Option<usize>) -> bool {
        let toolkit = &self.composio.configs[config].toolkit;
        self.composio.accounts.iter().enumerate().any(|(place, a)| {
            Some(place) != but
                && !a.deleted
                && a.user_id == user_id
                && a.alias.as_deref() == Some(alias)
                && self.composio.configs[a.config].toolkit == *toolkit
        })
    }

    fn composio_new_account(&mut self, new: &NewAccount<'_>) -> usize {
        let now = self.now();
        let config = &self.composio.configs[new.config];
        let labels = [config.id.as_str(), new.user_id, new.alias.unwrap_or_default()];
        let same = self
            .composio
            .accounts
            .iter()
            .filter(|a| a.config == new.config && a.user_id == new.user_id && a.alias.as_deref() == new.alias)
            .count() as u64;
        let id = format!("ca_{}", draw::text(self.seed(), &labels, same, 12));
        let scopes: Vec<String> = if !config.scopes.is_empty() {
            config.scopes.clone()
        } else {
            let all = self.providers.integrations.iter().flat_map(|(_, i)| i.provider.values());
            all.clone()
                .find(|p| p.toolkit.as_deref() == Some(&config.toolkit))
                .map(|p| p.scopes.clone())
                .unwrap_or_default()
        };
        let word_id = format!("{}_{}", config.toolkit, draw::hex(self.seed(), &labels, same, 8));
        let toolkit = config.toolkit.clone();
        let texts = [new.user_id, new.alias.unwrap_or_default(), new.callback_url.unwrap_or_default()];
        let triplets = if config.scheme == "OAUTH2" {
            self.composio_guess_triplet(&toolkit, &texts).into_iter().collect()
        } else {
            Vec::new()
        };
        let place = self.composio.accounts.len();
        self.composio.by_id.insert(id.clone(), place);
        self.composio.accounts.push(Account {
            id,
            word_id,
            alias: new.alias.map(str::to_owned),
            user_id: new.user_id.to_owned(),
            config: new.config,
            status: Status::Initializing,
            status_reason: None,
            secrets: BTreeMap::new(),
            grant: None,
            refresh_token: None,
            generation: 0,
            scope: None,
            requested_scopes: scopes,
            expires_in_s: None,
            link_token: None,
            callback_url: new.callback_url.map(str::to_owned),
            session_uri: None,
            failures: 0,
            lease_until: None,
            created_at: now,
            updated_at: now,
            deleted: false,
            triplets,
        });
        place
    }

    pub(super) fn composio_create_account(&mut self, call: &Call) -> Outcome {
        let body = call.json().unwrap_or(Value::Null);
        let config = body["auth_config"]["id"]
            .as_str()
            .and_then(|id| self.composio.find_config(id))
            .ok_or_else(|| Refused::new(404, "AuthConfig_NotFound", "Auth config not found"))?;
        let connection = &body["connection"];
        let user_id = connection["user_id"].as_str().unwrap_or("default");
        let alias = connection["alias"].as_str().filter(|a| !a.is_empty());
        if alias.is_some_and(|alias| self.composio_alias_is_taken(config, user_id, alias, None)) {
            return Err(alias_taken());
        }
        let scheme = self.composio.configs[config].scheme.clone();
        let state = &connection["state"];
        if state["authScheme"].as_str().is_some_and(|s| s != scheme) {
            return Err(bad("connection.state.authScheme does not match the auth config"));
        }
        self.composio_check_user(user_id)?;
        let settings = self.options().composio.clone();
        let closed = self.composio.configs[config].managed && !settings.managed_direct_create;
        if matches!(scheme.as_str(), "OAUTH2" | "OAUTH1" | "DCR_OAUTH") && closed {
            return Err(bad("Direct creation on a managed auth config was closed, use /connected_accounts/link"));
        }
        let new = NewAccount { config, user_id, alias, callback_url: connection["callback_url"].as_str() };
        if scheme == "OAUTH2" {
            return match state["val"].as_object().filter(|val| val.contains_key("access_token")) {
                Some(val) => self.composio_import_oauth2(&new, val, settings.oauth2_import),
                // §3.5: INITIATED with a redirect URL.
                None => Ok(self.composio_initiate(&new, true)),
            };
        }
        let Some(val) = state["val"].as_object() else { return Err(bad("connection.state.val must be an object")) };
        if val.get("status").and_then(Value::as_str).is_none() {
            return Err(bad("connection.state.val.status is required"));
        }
        let secrets: BTreeMap<String, String> = val
            .iter()
            .filter(|(name, _)| SECRET_FIELDS.contains(&name.as_str()))
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        let wanted: &[&str] = match scheme.as_str() {
            "BEARER_TOKEN" => &["token"],
            "API_KEY" => &["generic_api_key", "api_key", "bearer_token"],
            "BASIC" => &["username"],
            _ => &[],
        };
        if !wanted.is_empty() && !wanted.iter().any(|name| secrets.get(*name).is_some_and(|v| !v.is_empty())) {
            let message = format!("connection.state.val.{} is required", wanted[0]);
            return Err(Refused::new(400, "ConnectedAccount_MissingRequiredFields", message));
        }
        if secrets.values().any(|text| is_read_back(text)) {
            return Err(rejected());
        }
        if settings.credential_check_on_create && secrets.values().any(|text| self.composio_is_refused(text)) {
            return Err(rejected());
        }
        let place = self.composio_new_account(&new);
        let account = &mut self.composio.accounts[place];
        account.status = Status::Active;
        account.secrets = secrets;
        if let Some(text) = account.token().map(str::to_owned) {
            self.composio_token_written(place, &text);
        }
        let account = &self.composio.accounts[place];
        let shown = json!({"id": account.id, "connectionData": self.composio_state(place), "status": "ACTIVE",
                           "redirect_url": null, "redirect_uri": null});
        Ok(Reply::json(201, &shown))
    }

    /// A project with a verifier must be told who each account is for.
    fn composio_check_user(&self, user_id: &str) -> Result<(), Refused> {
        let anybody = user_id.trim().is_empty() || user_id == "default";
        if anybody && self.options().composio.verifier_url.is_some() {
            return Err(bad("user_id must name a user, since the project verifies callbacks"));
        }
        Ok(())
    }

    /// An OAuth2 account that waits for consent. `opened`: a person will follow its redirect URL.
    fn composio_initiate(&mut self, new: &NewAccount<'_>, opened: bool) -> Reply {
        let place = self.composio_new_account(new);
        self.composio.accounts[place].status = Status::Initiated;
        if opened {
            self.composio_link_made(place);
        }
        let account = &self.composio.accounts[place];
        let url = format!("https://connect.composio.example/redirect/{}", account.word_id);
        let data = json!({"authScheme": "OAUTH2", "val": {"status": "INITIATED", "redirectUrl": url}});
        let shown = json!({"id": account.id, "connectionData": data, "status": "INITIATED",
                           "redirect_url": url, "redirect_uri": url});
        Reply::json(201, &shown)
    }

    /// Tokens of somebody else's consent, brought along: §4 knows four outcomes.
    fn composio_import_oauth2(
        &mut self,
        new: &NewAccount<'_>,
        val: &Map<String, Value>,
        as_set: Oauth2Import,
    ) -> Outcome {
        let text = |name: &str| val.get(name).and_then(Value::as_str).map(str::to_owned);
        let access_token =
            text("access_token").ok_or_else(|| bad("connection.state.val.access_token must be a string"))?;
        if val.get("status").and_then(Value::as_str).is_none() {
            return Err(bad("connection.state.val.status is required"));
        }
        match as_set {
            Oauth2Import::Reject => return Err(bad("Importing OAuth2 tokens is not supported")),
            Oauth2Import::StuckInitiated => return Ok(self.composio_initiate(new, false)),
            Oauth2Import::ActiveNoRefresh | Oauth2Import::ActiveRefresh => {}
        }
        let place = self.composio_new_account(new);
        let (now, token) = (self.now(), self.providers.find(&access_token));
        let account = &mut self.composio.accounts[place];
        account.status = Status::Active;
        account.grant = token.map(|token| token.grant);
        account.secrets.insert("access_token".into(), access_token);
        if let Some(refresh_token) = text("refresh_token") {
            account.secrets.insert("refresh_token".into(), refresh_token.clone());
            account.refresh_token = Some(refresh_token).filter(|_| as_set == Oauth2Import::ActiveRefresh);
        }
        account.generation += 1;
        let (generation, refreshes) = (account.generation, account.refresh_token.is_some());
        if let Some(expires_at) = token.and_then(|t| t.expires_at).filter(|_| refreshes) {
            let ahead = REFRESH_AHEAD_MS.min(expires_at.since(now) / 2).max(0);
            self.schedule(expires_at.plus_ms(-ahead), Event::ComposioRefresh { account: place, generation });
        }
        let shown = json!({"id": self.composio.accounts[place].id, "connectionData": self.composio_state(place),
                           "status": "ACTIVE", "redirect_url": null, "redirect_uri": null});
        Ok(Reply::json(201, &shown))
    }

    /// Whether the provider says no to a credential of this world.
    fn composio_is_refused(&self, text: &str) -> bool {
        self.providers.find(text).is_some_and(|token| self.providers.standing(&token, self.now()) != Standing::Valid)
    }

    /// Refuses a write while another holds the account, and holds it from now on (§3.4).
    fn composio_lease(&mut self, place: usize) -> Result<(), Refused> {
        let (now, lease) = (self.now(), self.options().composio.write_lease_ms);
        let account = &mut self.composio.accounts[place];
        if account.lease_until.is_some_and(|until| now < until) {
            return Err(Refused::lease_held());
        }
        account.lease_until = (lease > 0).then(|| now.plus_ms(lease));
        Ok(())
    }

    pub(super) fn composio_link(&mut self, call: &Call) -> Outcome {
        let body = call.json().unwrap_or(Value::Null);
        let user_id = body["user_id"].as_str().filter(|u| !u.is_empty()).ok_or_else(|| bad("user_id is required"))?;
        self.composio_check_user(user_id)?;
        let config = body["auth_config_id"]
            .as_str()
            .and_then(|id| self.composio.find_config(id))
            .ok_or_else(|| Refused::new(404, "AuthConfig_NotFound", "Auth config not found"))?;
        if !self.composio.configs[config].enabled || self.composio.configs[config].scheme != "OAUTH2" {
            return Err(bad("The auth config cannot be linked"));
        }
        let alias = body["alias"].as_str().filter(|a| !a.is_empty());
        if alias.is_some_and(|alias| self.composio_alias_is_taken(config, user_id, alias, None)) {
            return Err(alias_taken());
        }
        let new = NewAccount { config, user_id, alias, callback_url: body["callback_url"].as_str() };
        let place = self.composio_new_account(&new);
        let id = self.composio.accounts[place].id.clone();
        let token = format!("lk_{}", draw::text(self.seed(), &["link", &id], 0, 24));
        self.composio.accounts[place].link_token = Some(token.clone());
        self.composio_link_made(place);
        let shown = json!({
            "link_token": token,
            "redirect_url": self.composio_link_url(&token),
            "expires_at": self.now().plus_ms(LINK_LIFE_MS).to_rfc3339(),
            "connected_account_id": id,
        });
        Ok(Reply::json(201, &shown))
    }

    pub(super) fn composio_list_accounts(&mut self, call: &Call) -> Outcome {
        let [users, toolkits, configs, ids, statuses] =
            ["user_ids", "toolkit_slugs", "auth_config_ids", "connected_account_ids", "statuses"]
                .map(|name| call.list(name));
        let any = |list: &[&str], value: &str| list.is_empty() || list.contains(&value);
        let by_update = call.param("order_by") == Some("updated_at");
        let ascending = call.param("order_direction") == Some("asc");
        let shared_only = call.param("account_type") == Some("SHARED");
        let mut found: Vec<usize> = (0..self.composio.accounts.len())
            .filter(|place| {
                let a = &self.composio.accounts[*place];
                let c = &self.composio.configs[a.config];
                !a.deleted
                    && !shared_only
                    && any(&users, &a.user_id)
                    && any(&toolkits, &c.toolkit)
                    && any(&configs, &c.id)
                    && any(&ids, &a.id)
                    && any(&statuses, a.status.name())
            })
            .collect();
        found.sort_by(|x, y| {
            let (a, b) = (&self.composio.accounts[*x], &self.composio.accounts[*y]);
            let order = if by_update { a.updated_at.cmp(&b.updated_at) } else { a.created_at.cmp(&b.created_at) };
            let order = order.then_with(|| a.id.cmp(&b.id));
            if ascending { order } else { order.reverse() }
        });
        page(call, found.into_iter().map(|place| self.composio_show_account(place, false)).collect(), 20, 100)
    }

    pub(super) fn composio_get_account(&mut self, id: &str) -> Outcome {
        let place = self.composio.find_account(id).ok_or_else(no_account)?;
        Ok(Reply::json(200, &self.composio_show_account(place, true)))
    }

    pub(super) fn composio_patch_account(&mut self, call: &Call, id: &str) -> Outcome {
        let place = self.composio.find_account(id).ok_or_else(no_account)?;
        let body = call.json().unwrap_or(Value::Null);
        let (config, user) = (self.composio.accounts[place].config, self.composio.accounts[place].user_id.clone());
        let alias = body.get("alias").and_then(Value::as_str);
        if alias.is_some_and(|a| !a.is_empty() && self.composio_alias_is_taken(config, &user, a, Some(place))) {
            return Err(alias_taken());
        }
        if body["experimental"].get("acl_config_for_shared").is_some() {
            return Err(bad("experimental.acl_config_for_shared applies to shared accounts only"));
        }
        let settings = self.options().composio.clone();
        let state = &body["connection"]["state"];
        let mut token = None;
        if state.is_null() {
            self.composio_lease(place)?;
        } else {
            let scheme = self.composio.configs[config].scheme.as_str();
            if state["authScheme"] != scheme || !PATCHABLE.contains(&scheme) {
                return Err(bad("connection.state.authScheme cannot be patched or is not the account's"));
            }
            let Some(val) = state["val"].as_object() else { return Err(bad("connection.state.val must be an object")) };
            for (name, value) in val {
                let fits = SECRET_FIELDS.contains(&name.as_str())
                    && (value.is_null() || value.as_str().is_some_and(|v| !v.is_empty()));
                if !fits && name != "status" {
                    return Err(bad(format!("connection.state.val.{name} is not valid")));
                }
            }
            for text in val.iter().filter(|(name, _)| *name != "status").filter_map(|(_, value)| value.as_str()) {
                if is_read_back(text) || (settings.patch_validates && self.composio_is_refused(text)) {
                    return Err(rejected());
                }
            }
            self.composio_lease(place)?;
            self.settle_account(place);
            let secrets = &mut self.composio.accounts[place].secrets;
            for (name, value) in val.iter().filter(|(name, _)| *name != "status") {
                match value.as_str() {
                    Some(text) => {
                        secrets.insert(name.clone(), text.to_owned());
                        token = Some(text.to_owned());
                    }
                    None => {
                        secrets.remove(name);
                    }
                }
            }
        }
        let now = self.now();
        let account = &mut self.composio.accounts[place];
        if let Some(alias) = alias {
            account.alias = (!alias.is_empty()).then(|| alias.to_owned());
        }
        account.updated_at = now;
        let is_down = matches!(account.status, Status::Expired | Status::Inactive);
        if token.is_some() && is_down && settings.patch_reactivates_expired {
            account.status = Status::Active;
            account.status_reason = None;
        }
        let status = account.status.name();
        if let Some(token) = token {
            self.composio_token_written(place, &token);
        }
        Ok(Reply::json(200, &json!({"success": true, "id": id, "status": status})))
    }

    pub(super) fn composio_account_status(&mut self, call: &Call, id: &str) -> Outcome {
        let place = self.composio.find_account(id).ok_or_else(no_account)?;
        let body = call.json().unwrap_or(Value::Null);
        let enabled = body["enabled"].as_bool().ok_or_else(|| bad("enabled must be a boolean"))?;
        let next = match (self.composio.accounts[place].status, enabled) {
            (Status::Active | Status::Inactive, true) => Status::Active,
            (Status::Active | Status::Inactive, false) => Status::Inactive,
            _ => return Err(Refused::new(409, "ConnectedAccount_InvalidTransition", "Invalid status transition")),
        };
        self.composio_lease(place)?;
        self.settle_account(place);
        if next == Status::Inactive {
            self.composio_close_mirror(place);
        }
        let now = self.now();
        let account = &mut self.composio.accounts[place];
        account.status = next;
        account.status_reason = (next == Status::Inactive).then(|| "set by the user".to_owned());
        account.updated_at = now;
        Ok(Reply::json(200, &json!({"success": true})))
    }

    /// A mirror that was switched off or deleted is not a sink any more.
    fn composio_close_mirror(&mut self, place: usize) {
        if self.composio.configs[self.composio.accounts[place].config].scheme != "OAUTH2" {
            for triplet in self.composio.accounts[place].triplets.clone() {
                self.ledger_closed(triplet, &[Sink::Composio]);
            }
        }
    }

    pub(super) fn composio_revoke_upstream(&mut self, place: usize) -> Vec<&'static str> {
        match self.composio.accounts[place].grant {
            Some(grant) if self.providers.grants[grant].revoked_at.is_none() => {
                self.revoke_grant(grant);
                vec!["access_token", "refresh_token"]
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn composio_revoke_account(&mut self, id: &str) -> Outcome {
        let place = self.composio.find_account(id).ok_or_else(no_account)?;
        if self.composio.configs[self.composio.accounts[place].config].scheme != "OAUTH2" {
            return Err(bad("Only OAUTH2 accounts can be revoked"));
        }
        if !matches!(self.composio.accounts[place].status, Status::Active | Status::Revoked) {
            return Err(Refused::new(409, "ConnectedAccount_InvalidTransition", "Invalid status transition"));
        }
        self.settle_account(place);
        let revoked = self.composio_revoke_upstream(place);
        let now = self.now();
        let account = &mut self.composio.accounts[place];
        account.status = Status::Revoked;
        account.status_reason = Some("revoked by request".into());
        account.updated_at = now;
        Ok(Reply::json(200, &json!({"revoked_tokens": revoked, "connected_account": {"id": id, "status": "REVOKED"}})))
    }

    /// Deprecated `/refresh`: restarts consent and knocks a working account out of ACTIVE.
    pub(super) fn composio_restart_account(&mut self, id: &str) -> Outcome {
        let place = self.composio.find_account(id).ok_or_else(no_account)?;
        if self.composio.configs[self.composio.accounts[place].config].scheme != "OAUTH2" {
            return Err(Refused::new(409, "ConnectedAccount_NotRefreshable", "This scheme cannot be refreshed"));
        }
        self.settle_account(place);
        self.composio.accounts[place].status = Status::Initiated;
        self.composio_link_made(place);
        let url = format!("https://connect.composio.example/redirect/{}", self.composio.accounts[place].word_id);
        let reply = Reply::json(200, &json!({"id": id, "status": "INITIATED", "redirect_url": url}));
        Ok(reply.with_header("deprecation", "true"))
    }

    pub(super) fn composio_delete_account(&mut self, call: &Call, id: &str) -> Outcome {
        let place = self.composio.find_account(id).ok_or_else(no_account)?;
        self.settle_account(place);
        let mut shown = json!({"success": true});
        if call.param("revoke_on_delete") == Some("true") {
            self.composio_revoke_upstream(place);
            shown["revoke_job_id"] = format!("pj_{}", draw::text(self.seed(), &["revoke", id], 0, 12)).into();
        }
        self.composio_close_mirror(place);
        let account = &mut self.composio.accounts[place];
        account.deleted = true;
        account.secrets.clear();
        Ok(Reply::json(200, &shown))
    }

    /// `state`, with its secrets masked as the auth config's kind demands (§3.2).
    fn composio_state(&self, place: usize) -> Value {
        let account = &self.composio.accounts[place];
        let config = &self.composio.configs[account.config];
        let masking = if config.managed { Masking::Redacted } else { self.options().composio.masking };
        let mask = |text: &str| match masking {
            Masking::Raw => text.to_owned(),
            Masking::Mask4 if text.chars().count() >= 4 => format!("{}...", text.chars().take(4).collect::<String>()),
            Masking::Mask4 | Masking::Redacted => "REDACTED".to_owned(),
        };
        let mut val = Map::new();
        val.insert("status".into(), account.status.name().into());
        for (name, secret) in &account.secrets {
            val.insert(name.clone(), mask(secret).into());
        }
        if let Some(scope) = &account.scope {
            val.insert("scope".into(), scope.as_str().into());
        }
        if let Some(s) = account.expires_in_s {
            val.insert("expires_in".into(), s.into());
        }
        json!({"authScheme": config.scheme, "val": val})
    }

    pub(super) fn composio_show_account(&self, place: usize, single: bool) -> Value {
        let a = &self.composio.accounts[place];
        let c = &self.composio.configs[a.config];
        let mut shown = json!({
            "id": a.id,
            "toolkit": {"slug": c.toolkit},
            "auth_config": {"id": c.id, "auth_scheme": c.scheme, "is_composio_managed": c.managed, "is_disabled": !c.enabled},
            "authScheme": c.scheme,
            "word_id": a.word_id,
            "alias": a.alias,
            "user_id": a.user_id,
            "status": a.status.name(),
            "status_reason": a.status_reason,
            "is_disabled": a.status == Status::Inactive,
            "created_at": a.created_at.to_rfc3339(),
            "updated_at": a.updated_at.to_rfc3339(),
            "state": self.composio_state(place),
            "data": {},
            "experimental": {"account_type": "PRIVATE"},
        });
        if single {
            shown["params"] = json!({});
            if c.scheme == "OAUTH2" {
                shown["requested_scopes"] = json!(a.requested_scopes);
            }
        }
        shown
    }
}
