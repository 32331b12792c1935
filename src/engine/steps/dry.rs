//! The outside world of a dry run: what is there is read with types that cannot write; what would
//! be written is remembered here, so that later looks see it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use serde_json::{Map, Value};

use crate::domain::secret::Secret;
use crate::domain::time::{HOUR_MS, Timestamp};
use crate::domain::token::{KvEntry, KvEntryError};
use crate::domain::triplet::Triplet;
use crate::ports::*;

/// An [`Outside`] that writes nothing. Of `R` it calls only what is a plain `GET` and refreshes
/// nothing: no bulk reads, no smoke tests, no calls through the target, no credentials.
pub struct Dry<R> {
    read: R,
    /// Tokens that stand in for those that nobody reads live from here on.
    now: Timestamp,
    would: Mutex<Would>,
}

/// What would have been written.
#[derive(Default)]
struct Would {
    alarms: BTreeMap<Triplet, AlarmMode>,
    reads: BTreeMap<Triplet, Namespace>,
    configs: Vec<AuthConfig>,
    accounts: BTreeMap<String, ConnectedAccount>,
    statuses: BTreeMap<String, AccountStatus>,
    /// Connections that would be gone, as (integration key, connection id).
    deleted: BTreeSet<(String, String)>,
    /// What the metadata of a connection would say about revocation.
    skips: BTreeMap<(String, String), Value>,
    deleted_keys: BTreeSet<(Namespace, String)>,
}

impl<R> Dry<R> {
    /// `reads`: where the gateway reads each triplet now, as far as that is not the source.
    pub fn new(read: R, reads: BTreeMap<Triplet, Namespace>, now: Timestamp) -> Self {
        Self { read, now, would: Mutex::new(Would { reads, ..Would::default() }) }
    }

    fn would(&self) -> std::sync::MutexGuard<'_, Would> {
        self.would.lock().expect("no panic happens while this lock is held")
    }

    fn add_account(&self, alias: &str, user_id: &str, status: AccountStatus) -> ConnectedAccount {
        let account = ConnectedAccount {
            id: format!("ca_dry_{alias}"),
            alias: Some(alias.to_owned()),
            user_id: user_id.to_owned(),
            toolkit: String::new(),
            auth_config_id: String::new(),
            scheme: String::new(),
            status,
            status_reason: None,
            requested_scopes: None,
            granted_scopes: None,
            updated_at: None,
        };
        self.would().accounts.insert(account.id.clone(), account.clone());
        account
    }

    fn seen(&self, mut account: ConnectedAccount) -> ConnectedAccount {
        if let Some(status) = self.would().statuses.get(&account.id) {
            account.status = status.clone();
        }
        account
    }

    fn overlay(&self, mut state: AlarmState) -> AlarmState {
        if let Some(mode) = self.would().alarms.get(&state.triplet) {
            state.mode = *mode;
            if *mode == AlarmMode::Disarmed {
                state.alarm_at = None;
            }
        }
        state
    }
}

impl<R: OutsideRead> SourceRead for Dry<R> {
    async fn list_connections(&self) -> ApiResult<Vec<SourceConnection>> {
        let mut listed = self.read.read_source().list_connections().await?;
        let would = self.would();
        let named = |c: &SourceConnection| (c.integration_key.clone(), c.connection_id.clone());
        listed.retain(|c| !would.deleted.contains(&named(c)));
        for connection in &mut listed {
            if let Some(skip) = would.skips.get(&named(connection)) {
                connection.skip_token_revocation = Some(skip.clone());
            }
        }
        Ok(listed)
    }

    async fn list_integrations(&self) -> ApiResult<Vec<SourceIntegration>> {
        self.read.read_source().list_integrations().await
    }
}

impl<R: OutsideRead> SourceCustody for Dry<R> {
    /// Reading a credential may refresh it, so a made-up one stands in.
    async fn fetch_credential(&self, integration_key: &str, connection_id: &str) -> ApiResult<SourceCredential> {
        Ok(SourceCredential {
            auth_mode: "OAUTH2".to_owned(),
            access_token: Secret::new(format!("dry run of {integration_key} {connection_id}")),
            expires_at: Some(self.now.plus_ms(HOUR_MS)),
            scope: None,
            token_type: None,
            connection_config: Map::new(),
            auth_error: false,
        })
    }

    async fn skip_revocation(&self, integration_key: &str, connection_id: &str, skip: &Value) -> ApiResult<()> {
        self.would().skips.insert((integration_key.to_owned(), connection_id.to_owned()), skip.clone());
        Ok(())
    }

    async fn open_session(&self, _: &str, _: Option<&str>, _: &str) -> ApiResult<ConnectSession> {
        Ok(ConnectSession { url: Secret::new("https://dry.run.invalid/"), expires_at: self.now.plus_ms(HOUR_MS) })
    }

    async fn delete_connection(&self, integration_key: &str, connection_id: &str) -> ApiResult<()> {
        self.would().deleted.insert((integration_key.to_owned(), connection_id.to_owned()));
        Ok(())
    }
}

impl<R: OutsideRead> TargetRead for Dry<R> {
    async fn list_auth_configs(&self) -> ApiResult<Vec<AuthConfig>> {
        let mut all = self.read.read_target().list_auth_configs().await?;
        all.extend(self.would().configs.iter().cloned());
        Ok(all)
    }

    async fn list_accounts(&self) -> ApiResult<Vec<ConnectedAccount>> {
        let mut all = self.read.read_target().list_accounts().await?;
        all.extend(self.would().accounts.values().cloned());
        Ok(all.into_iter().map(|account| self.seen(account)).collect())
    }

    async fn list_accounts_of(&self, user_id: &str) -> ApiResult<Vec<ConnectedAccount>> {
        let mut all = self.read.read_target().list_accounts_of(user_id).await?;
        all.extend(self.would().accounts.values().filter(|a| a.user_id == user_id).cloned());
        Ok(all.into_iter().map(|account| self.seen(account)).collect())
    }

    async fn get_account(&self, account_id: &str) -> ApiResult<ConnectedAccount> {
        let made = self.would().accounts.get(account_id).cloned();
        let account = match made {
            Some(account) => account,
            None => self.read.read_target().get_account(account_id).await?,
        };
        Ok(self.seen(account))
    }

    async fn list_webhook_subscriptions(&self) -> ApiResult<Vec<WebhookSubscription>> {
        self.read.read_target().list_webhook_subscriptions().await
    }

    async fn find_toolkit(&self, slug: &str) -> ApiResult<bool> {
        self.read.read_target().find_toolkit(slug).await
    }

    /// Nobody is called through the target; the answer that lets the dry run go on stands in.
    async fn proxy(&self, _: &str, _: &ProviderCall) -> ApiResult<ProxyAnswer> {
        Ok(ProxyAnswer { status: 200, data: Value::Null })
    }
}

impl<R: OutsideRead> TargetCustody for Dry<R> {
    async fn create_auth_config(
        &self,
        toolkit: &str,
        name: &str,
        scheme: TargetScheme,
        _: &[String],
    ) -> ApiResult<AuthConfig> {
        let config = AuthConfig {
            id: format!("ac_dry_{name}"),
            name: name.to_owned(),
            toolkit: toolkit.to_owned(),
            scheme: format!("{scheme:?}"),
            enabled: true,
        };
        self.would().configs.push(config.clone());
        Ok(config)
    }

    async fn create_bearer_account(
        &self,
        _: &str,
        user_id: &str,
        alias: &str,
        _: &Secret,
    ) -> ApiResult<ConnectedAccount> {
        Ok(self.add_account(alias, user_id, AccountStatus::Active))
    }

    async fn patch_bearer(&self, _: &str, _: &Secret) -> ApiResult<AccountStatus> {
        Ok(AccountStatus::Active)
    }

    async fn create_link(&self, _: &str, user_id: &str, alias: &str, _: Option<&str>) -> ApiResult<ConsentLink> {
        let account = self.add_account(alias, user_id, AccountStatus::Initiated);
        let url = Secret::new("https://dry.run.invalid/");
        Ok(ConsentLink { account_id: account.id, url, expires_at: self.now.plus_ms(HOUR_MS) })
    }

    async fn set_account_enabled(&self, account_id: &str, enabled: bool) -> ApiResult<()> {
        let status = if enabled { AccountStatus::Active } else { AccountStatus::Inactive };
        self.would().statuses.insert(account_id.to_owned(), status);
        Ok(())
    }

    async fn delete_account(&self, account_id: &str) -> ApiResult<()> {
        self.would().accounts.remove(account_id);
        Ok(())
    }
}

impl<R: OutsideRead> KvRead for Dry<R> {
    async fn list_keys(&self, namespace: Namespace, prefix: &str, cursor: Option<&str>) -> ApiResult<KvPage> {
        let mut page = self.read.read_cloudflare().list_keys(namespace, prefix, cursor).await?;
        let would = self.would();
        page.keys.retain(|key| !would.deleted_keys.contains(&(namespace, key.name.clone())));
        Ok(page)
    }

    /// A bulk read is a `POST`; nothing of what it would give decides a step.
    async fn bulk_get(
        &self,
        _: Namespace,
        keys: &[String],
    ) -> ApiResult<BTreeMap<String, Option<Result<KvEntry, KvEntryError>>>> {
        Ok(keys.iter().map(|key| (key.clone(), None)).collect())
    }
}

impl<R: OutsideRead> KvWrite for Dry<R> {
    async fn bulk_put(&self, _: Namespace, _: &[KvPut]) -> ApiResult<Vec<String>> {
        Ok(Vec::new())
    }

    async fn put(&self, _: Namespace, put: &KvPut) -> ApiResult<()> {
        let record: Option<Value> = serde_json::from_str(put.value.expose()).ok();
        let triplet = put.key.strip_prefix("authority:").and_then(|name| Triplet::parse(name).ok());
        if let (Some(triplet), Some(record)) = (triplet, record) {
            let reads = if record["read"] == "target" { Namespace::Target } else { Namespace::Source };
            self.would().reads.insert(triplet, reads);
        }
        Ok(())
    }

    async fn put_until(&self, namespace: Namespace, put: &KvPut, _: Timestamp) -> ApiResult<()> {
        self.put(namespace, put).await
    }

    async fn delete(&self, namespace: Namespace, key: &str) -> ApiResult<()> {
        self.would().deleted_keys.insert((namespace, key.to_owned()));
        Ok(())
    }
}

/// A query is a `POST`, and a dry run leaves no rows to be read back.
impl<R: OutsideRead> AuditRead for Dry<R> {
    async fn audit_end(&self) -> ApiResult<u64> {
        Ok(0)
    }

    async fn read_audit(&self, _: u64) -> ApiResult<Vec<AuditRecord>> {
        Ok(Vec::new())
    }

    async fn find_audit(&self, _: &[String]) -> ApiResult<Vec<AuditRecord>> {
        Ok(Vec::new())
    }
}

impl<R: OutsideRead> AuditSink for Dry<R> {
    async fn append_audit(&self, _: &[AuditRow]) -> ApiResult<()> {
        Ok(())
    }
}

impl<R: OutsideRead> GatewayRead for Dry<R> {
    async fn list_alarms(&self) -> ApiResult<Vec<AlarmState>> {
        let listed = self.read.read_gateway().list_alarms().await?;
        Ok(listed.into_iter().map(|state| self.overlay(state)).collect())
    }

    async fn read_alarm(&self, triplet: &Triplet) -> ApiResult<AlarmState> {
        Ok(self.overlay(self.read.read_gateway().read_alarm(triplet).await?))
    }

    async fn list_fires(&self, since: Timestamp) -> ApiResult<Vec<AlarmFire>> {
        self.read.read_gateway().list_fires(since).await
    }

    /// A smoke test is a `POST`; the dry run goes on as if it went well.
    async fn smoke(&self, triplets: &[Triplet]) -> ApiResult<Vec<SmokeResult>> {
        let would = self.would();
        Ok(triplets
            .iter()
            .map(|triplet| SmokeResult {
                triplet: triplet.clone(),
                read_authority: would.reads.get(triplet).copied().unwrap_or(Namespace::Source),
                ok: true,
                stale: false,
                upstream_status: 200,
            })
            .collect())
    }
}

impl<R: OutsideRead> GatewayAdmin for Dry<R> {
    async fn set_alarm_mode(&self, triplet: &Triplet, mode: AlarmMode) -> ApiResult<AlarmState> {
        self.would().alarms.insert(triplet.clone(), mode);
        self.read_alarm(triplet).await
    }
}

impl<R: OutsideRead> ProviderRead for Dry<R> {
    async fn whoami(&self, _: &Secret, _: &ProviderCall) -> ApiResult<Value> {
        Ok(Value::Null)
    }

    async fn ask(&self, _: &Secret, _: &ProviderCall) -> ApiResult<ProviderAnswer> {
        Ok(ProviderAnswer { status: 200, headers: Vec::new(), body: Secret::new("null") })
    }
}

impl<R: OutsideRead> Outside for Dry<R> {
    itself!();

    fn take_traffic(&self) -> BTreeMap<Api, Traffic> {
        BTreeMap::new()
    }
}
