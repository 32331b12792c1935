//! Notes every write on its way to the outside world.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::Step;
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::domain::token::{KvEntry, KvEntryError};
use crate::domain::triplet::Triplet;
use crate::ports::*;

type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// An [`Outside`] whose successful writes are noted as [`Step`]s.
pub struct Traced<O> {
    inner: O,
    clock: Clock,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    steps: Vec<Step>,
    /// Names of accounts at the target, by id.
    aliases: BTreeMap<String, String>,
}

impl<O> Traced<O> {
    pub fn new(inner: O, clock: Clock) -> Self {
        Self { inner, clock, noted: Mutex::default() }
    }

    /// The steps since the last call, in order.
    pub fn take_steps(&self) -> Vec<Step> {
        std::mem::take(&mut self.noted().steps)
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.noted.lock().expect("no panic happens while this lock is held")
    }

    fn note(&self, api: Api, action: &'static str, subject: String, detail: String, reversible: bool) {
        let at = (self.clock)();
        self.noted().steps.push(Step { api, action, subject, detail, reversible, at });
    }

    fn learn(&self, accounts: &[ConnectedAccount]) {
        let mut noted = self.noted();
        for account in accounts {
            if let Some(alias) = &account.alias {
                noted.aliases.insert(account.id.clone(), alias.clone());
            }
        }
    }

    /// The alias of an account, or its id where nobody told us the alias.
    fn name_of(&self, account: &str) -> String {
        self.noted().aliases.get(account).cloned().unwrap_or_else(|| account.to_owned())
    }
}

impl<O: Outside> SourceRead for Traced<O> {
    async fn list_connections(&self) -> ApiResult<Vec<SourceConnection>> {
        self.inner.source().list_connections().await
    }

    async fn list_integrations(&self) -> ApiResult<Vec<SourceIntegration>> {
        self.inner.source().list_integrations().await
    }
}

impl<O: Outside> SourceCustody for Traced<O> {
    async fn fetch_credential(&self, key: &str, id: &str) -> ApiResult<SourceCredential> {
        self.inner.source().fetch_credential(key, id).await
    }

    async fn skip_revocation(&self, key: &str, id: &str, skip: &Value) -> ApiResult<()> {
        self.inner.source().skip_revocation(key, id, skip).await?;
        let detail = format!("skip the revocation upstream: {skip}");
        self.note(Api::Nango, "set metadata of", format!("{key}/{id}"), detail, true);
        Ok(())
    }

    async fn open_session(
        &self,
        end_user_id: &str,
        display_name: Option<&str>,
        key: &str,
    ) -> ApiResult<ConnectSession> {
        let session = self.inner.source().open_session(end_user_id, display_name, key).await?;
        self.note(Api::Nango, "open a session for", format!("{key}/{end_user_id}"), String::new(), true);
        Ok(session)
    }

    async fn delete_connection(&self, key: &str, id: &str) -> ApiResult<()> {
        self.inner.source().delete_connection(key, id).await?;
        self.note(Api::Nango, "delete connection", format!("{key}/{id}"), String::new(), false);
        Ok(())
    }
}

impl<O: Outside> TargetRead for Traced<O> {
    async fn list_auth_configs(&self) -> ApiResult<Vec<AuthConfig>> {
        self.inner.target().list_auth_configs().await
    }

    async fn list_accounts(&self) -> ApiResult<Vec<ConnectedAccount>> {
        let accounts = self.inner.target().list_accounts().await?;
        self.learn(&accounts);
        Ok(accounts)
    }

    async fn list_accounts_of(&self, user_id: &str) -> ApiResult<Vec<ConnectedAccount>> {
        let accounts = self.inner.target().list_accounts_of(user_id).await?;
        self.learn(&accounts);
        Ok(accounts)
    }

    async fn get_account(&self, account_id: &str) -> ApiResult<ConnectedAccount> {
        let account = self.inner.target().get_account(account_id).await?;
        self.learn(std::slice::from_ref(&account));
        Ok(account)
    }

    async fn list_webhook_subscriptions(&self) -> ApiResult<Vec<WebhookSubscription>> {
        self.inner.target().list_webhook_subscriptions().await
    }

    async fn find_toolkit(&self, slug: &str) -> ApiResult<bool> {
        self.inner.target().find_toolkit(slug).await
    }

    async fn proxy(&self, account_id: &str, call: &ProviderCall) -> ApiResult<ProxyAnswer> {
        self.inner.target().proxy(account_id, call).await
    }
}

impl<O: Outside> TargetCustody for Traced<O> {
    async fn create_auth_config(
        &self,
        toolkit: &str,
        name: &str,
        scheme: TargetScheme,
        scopes: &[String],
    ) -> ApiResult<AuthConfig> {
        let made = self.inner.target().create_auth_config(toolkit, name, scheme, scopes).await?;
        self.note(Api::Composio, "make auth config", format!("`{name}`"), format!("{scheme:?}"), true);
        Ok(made)
    }

    async fn create_bearer_account(
        &self,
        auth_config_id: &str,
        user_id: &str,
        alias: &str,
        token: &Secret,
    ) -> ApiResult<ConnectedAccount> {
        let made = self.inner.target().create_bearer_account(auth_config_id, user_id, alias, token).await?;
        self.noted().aliases.insert(made.id.clone(), alias.to_owned());
        self.note(Api::Composio, "make bearer account", alias.to_owned(), format!("user {user_id}"), true);
        Ok(made)
    }

    async fn patch_bearer(&self, account_id: &str, token: &Secret) -> ApiResult<AccountStatus> {
        let status = self.inner.target().patch_bearer(account_id, token).await?;
        self.note(Api::Composio, "copy the token to", self.name_of(account_id), String::new(), true);
        Ok(status)
    }

    async fn create_link(
        &self,
        auth_config_id: &str,
        user_id: &str,
        alias: &str,
        callback_url: Option<&str>,
    ) -> ApiResult<ConsentLink> {
        let link = self.inner.target().create_link(auth_config_id, user_id, alias, callback_url).await?;
        self.noted().aliases.insert(link.account_id.clone(), alias.to_owned());
        self.note(Api::Composio, "make a consent link for", alias.to_owned(), format!("user {user_id}"), true);
        Ok(link)
    }

    async fn set_account_enabled(&self, account_id: &str, enabled: bool) -> ApiResult<()> {
        self.inner.target().set_account_enabled(account_id, enabled).await?;
        let action = if enabled { "enable account" } else { "disable account" };
        self.note(Api::Composio, action, self.name_of(account_id), String::new(), true);
        Ok(())
    }

    async fn delete_account(&self, account_id: &str) -> ApiResult<()> {
        self.inner.target().delete_account(account_id).await?;
        self.note(Api::Composio, "delete account", self.name_of(account_id), String::new(), false);
        Ok(())
    }
}

const fn namespace_name(namespace: Namespace) -> &'static str {
    match namespace {
        Namespace::Source => "kv.source",
        Namespace::Target => "kv.target",
    }
}

impl<O: Outside> KvRead for Traced<O> {
    async fn list_keys(&self, namespace: Namespace, prefix: &str, cursor: Option<&str>) -> ApiResult<KvPage> {
        self.inner.cloudflare().list_keys(namespace, prefix, cursor).await
    }

    async fn bulk_get(
        &self,
        namespace: Namespace,
        keys: &[String],
    ) -> ApiResult<BTreeMap<String, Option<Result<KvEntry, KvEntryError>>>> {
        self.inner.cloudflare().bulk_get(namespace, keys).await
    }
}

impl<O: Outside> KvWrite for Traced<O> {
    async fn bulk_put(&self, namespace: Namespace, puts: &[KvPut]) -> ApiResult<Vec<String>> {
        let missed = self.inner.cloudflare().bulk_put(namespace, puts).await?;
        for put in puts.iter().filter(|put| !missed.contains(&put.key)) {
            self.note(Api::Cloudflare, "put", put.key.clone(), namespace_name(namespace).to_owned(), true);
        }
        Ok(missed)
    }

    async fn put(&self, namespace: Namespace, put: &KvPut) -> ApiResult<()> {
        self.inner.cloudflare().put(namespace, put).await?;
        // A read-authority record is no secret; a token is.
        let shown =
            serde_json::from_str::<Value>(put.value.expose()).ok().filter(|_| put.key.starts_with("authority:"));
        let detail = match shown.as_ref().and_then(|record| record["read"].as_str().zip(record["epoch"].as_u64())) {
            Some((read, epoch)) => format!("{}, read {read}, epoch {epoch}", namespace_name(namespace)),
            None => namespace_name(namespace).to_owned(),
        };
        self.note(Api::Cloudflare, "put", put.key.clone(), detail, true);
        Ok(())
    }

    async fn put_until(&self, namespace: Namespace, put: &KvPut, expires_at: Timestamp) -> ApiResult<()> {
        self.inner.cloudflare().put_until(namespace, put, expires_at).await?;
        let detail = format!("{}, until {}", namespace_name(namespace), expires_at.to_rfc3339());
        self.note(Api::Cloudflare, "put", put.key.clone(), detail, true);
        Ok(())
    }

    async fn delete(&self, namespace: Namespace, key: &str) -> ApiResult<()> {
        self.inner.cloudflare().delete(namespace, key).await?;
        self.note(Api::Cloudflare, "delete", key.to_owned(), namespace_name(namespace).to_owned(), false);
        Ok(())
    }
}

impl<O: Outside> AuditRead for Traced<O> {
    async fn audit_end(&self) -> ApiResult<u64> {
        self.inner.cloudflare().audit_end().await
    }

    async fn read_audit(&self, after: u64) -> ApiResult<Vec<AuditRecord>> {
        self.inner.cloudflare().read_audit(after).await
    }

    async fn find_audit(&self, op_ids: &[String]) -> ApiResult<Vec<AuditRecord>> {
        self.inner.cloudflare().find_audit(op_ids).await
    }
}

impl<O: Outside> AuditSink for Traced<O> {
    /// Rows about steps are no steps of their own.
    async fn append_audit(&self, rows: &[AuditRow]) -> ApiResult<()> {
        self.inner.cloudflare().append_audit(rows).await
    }
}

impl<O: Outside> GatewayRead for Traced<O> {
    async fn list_alarms(&self) -> ApiResult<Vec<AlarmState>> {
        self.inner.gateway().list_alarms().await
    }

    async fn read_alarm(&self, triplet: &Triplet) -> ApiResult<AlarmState> {
        self.inner.gateway().read_alarm(triplet).await
    }

    async fn list_fires(&self, since: Timestamp) -> ApiResult<Vec<AlarmFire>> {
        self.inner.gateway().list_fires(since).await
    }

    async fn smoke(&self, triplets: &[Triplet]) -> ApiResult<Vec<SmokeResult>> {
        self.inner.gateway().smoke(triplets).await
    }
}

impl<O: Outside> GatewayAdmin for Traced<O> {
    async fn set_alarm_mode(&self, triplet: &Triplet, mode: AlarmMode) -> ApiResult<AlarmState> {
        let state = self.inner.gateway().set_alarm_mode(triplet, mode).await?;
        self.note(Api::Gateway, "set alarm of", triplet.to_string(), format!("{mode:?}").to_lowercase(), true);
        Ok(state)
    }
}

impl<O: Outside> ProviderRead for Traced<O> {
    async fn whoami(&self, token: &Secret, call: &ProviderCall) -> ApiResult<Value> {
        self.inner.provider().whoami(token, call).await
    }

    async fn ask(&self, token: &Secret, call: &ProviderCall) -> ApiResult<ProviderAnswer> {
        self.inner.provider().ask(token, call).await
    }
}

impl<O: Outside> Outside for Traced<O> {
    itself!();

    fn take_traffic(&self) -> BTreeMap<Api, Traffic> {
        self.inner.take_traffic()
    }
}
