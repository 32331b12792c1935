//! An outside world in memory, whose answers a test decides one by one.

#![allow(dead_code, reason = "each test binary uses its part of this")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use cutover::domain::secret::Secret;
use cutover::domain::time::Timestamp;
use cutover::domain::token::{KvEntry, KvEntryError, KvMetadata};
use cutover::domain::triplet::Triplet;
use cutover::plan::Route;
use cutover::ports::{
    AccountStatus, AlarmFire, AlarmMode, AlarmState, Api, ApiError, ApiErrorKind, ApiResult, AuditRead, AuditRecord,
    AuditRow, AuditSink, AuthConfig, ConnectSession, ConnectedAccount, ConsentLink, GatewayAdmin, GatewayRead, KvKey,
    KvPage, KvPut, KvRead, KvWrite, Namespace, Outside, ProviderAnswer, ProviderCall, ProviderRead, ProxyAnswer,
    SmokeResult, SourceConnection, SourceCredential, SourceCustody, SourceIntegration, SourceRead, TargetCustody,
    TargetRead, TargetScheme, Traffic, WebhookSubscription,
};
use cutover::store::{Durability, NewTriplet, Place, Sink, Store, Vault};
use serde_json::Value;

/// What becomes of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Done,
    /// Refused before it had an effect.
    Failed,
    /// It took effect, and no answer came.
    AnswerLost,
    /// 429 without a time.
    Limited,
}

/// One write to come: how many turns others get before its effect and after it, and its fate.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub before: u8,
    pub after: u8,
    pub fate: Fate,
}

/// A write that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub sink: Sink,
    /// The triplet, or the account at Composio.
    pub key: String,
    pub token: String,
}

#[derive(Default)]
pub struct State {
    /// Steps of writes to come; without one a write is done at once.
    pub script: VecDeque<Step>,
    pub history: Vec<Written>,
    pub kv: BTreeMap<(Namespace, String), (String, Option<KvMetadata>)>,
    /// What Nango hands out, by connection id.
    pub credentials: BTreeMap<String, SourceCredential>,
    /// What Nango answers instead, by connection id.
    pub failures: BTreeMap<String, ApiErrorKind>,
    /// What Nango hands out before that, one for each read.
    pub refreshes: BTreeMap<String, VecDeque<SourceCredential>>,
    /// Nango answers nothing that is no read of a connection.
    pub away: bool,
    /// What the provider answers to whoami; none: nothing.
    pub whoami: Option<(u16, &'static str)>,
    /// The token for which the provider answers so, and for all others what `whoami` says.
    pub whoami_of: Option<(String, (u16, &'static str))>,
    /// The ordinary part of the budget for KV is used up.
    pub no_ordinary_reads: bool,
    /// Writes of anything but tokens fail.
    pub no_markers: bool,
    /// What is answered with 404: namespaces, by the name of their sink, and accounts at Composio.
    pub gone: BTreeSet<String>,
    /// A triplet that no bulk put may hold.
    pub refused: Option<Triplet>,
    /// Bulk reads and bulk puts of tokens.
    pub looks: usize,
    pub puts: usize,
}

/// The world. Clones share it.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

fn error(api: Api, kind: ApiErrorKind) -> ApiError {
    ApiError { api, method: "GET", path: "/fake".to_owned(), kind }
}

fn silent<T>(api: Api) -> ApiResult<T> {
    Err(error(api, ApiErrorKind::Server { status: 503, code: "fake".to_owned() }))
}

impl Fake {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// 404 for what is gone.
    fn find(&self, api: Api, name: &str) -> ApiResult<()> {
        let gone = self.state().gone.contains(name);
        if gone { Err(error(api, ApiErrorKind::NotFound { code: "gone".to_owned() })) } else { Ok(()) }
    }

    /// Carries a write out as the script says. `effect` happens at most once.
    async fn write<T>(&self, api: Api, done: T, effect: impl FnOnce(&mut State)) -> ApiResult<T> {
        let step = self.state().script.pop_front().unwrap_or(Step { before: 0, after: 0, fate: Fate::Done });
        for _ in 0..step.before {
            tokio::task::yield_now().await;
        }
        match step.fate {
            Fate::Done | Fate::AnswerLost => effect(&mut self.state()),
            Fate::Failed | Fate::Limited => {}
        }
        for _ in 0..step.after {
            tokio::task::yield_now().await;
        }
        match step.fate {
            Fate::Done => Ok(done),
            Fate::Limited => Err(error(api, ApiErrorKind::RateLimited { retry_after_ms: None })),
            Fate::Failed => silent(api),
            Fate::AnswerLost => {
                Err(error(api, ApiErrorKind::Unreachable { sent: true, detail: "answer lost".to_owned() }))
            }
        }
    }
}

impl SourceRead for Fake {
    async fn list_connections(&self) -> ApiResult<Vec<SourceConnection>> {
        silent(Api::Nango)
    }
    async fn list_integrations(&self) -> ApiResult<Vec<SourceIntegration>> {
        if self.state().away { silent(Api::Nango) } else { Ok(Vec::new()) }
    }
}

impl SourceCustody for Fake {
    async fn fetch_credential(&self, _: &str, connection_id: &str) -> ApiResult<SourceCredential> {
        if let Some(kind) = self.state().failures.get(connection_id) {
            return Err(error(Api::Nango, kind.clone()));
        }
        if let Some(next) = self.state().refreshes.get_mut(connection_id).and_then(VecDeque::pop_front) {
            return Ok(next);
        }
        let found = self.state().credentials.get(connection_id).cloned();
        found.ok_or_else(|| error(Api::Nango, ApiErrorKind::NotFound { code: "unknown_connection".to_owned() }))
    }
    async fn skip_revocation(&self, _: &str, _: &str, _: &Value) -> ApiResult<()> {
        silent(Api::Nango)
    }
    async fn delete_connection(&self, _: &str, _: &str) -> ApiResult<()> {
        silent(Api::Nango)
    }
    async fn open_session(&self, end_user_id: &str, _: Option<&str>, key: &str) -> ApiResult<ConnectSession> {
        let url = Secret::new(format!("https://connect.example/?for={end_user_id}&key={key}"));
        Ok(ConnectSession { url, expires_at: Timestamp::from_secs(1_800) })
    }
}

impl TargetRead for Fake {
    async fn list_webhook_subscriptions(&self) -> ApiResult<Vec<WebhookSubscription>> {
        Ok(Vec::new())
    }
    async fn list_auth_configs(&self) -> ApiResult<Vec<AuthConfig>> {
        Ok(Vec::new())
    }
    async fn list_accounts(&self) -> ApiResult<Vec<ConnectedAccount>> {
        silent(Api::Composio)
    }
    async fn list_accounts_of(&self, _: &str) -> ApiResult<Vec<ConnectedAccount>> {
        Ok(Vec::new())
    }
    async fn get_account(&self, _: &str) -> ApiResult<ConnectedAccount> {
        silent(Api::Composio)
    }
    async fn find_toolkit(&self, _: &str) -> ApiResult<bool> {
        Ok(true)
    }
    async fn proxy(&self, _: &str, _: &ProviderCall) -> ApiResult<ProxyAnswer> {
        silent(Api::Composio)
    }
}

impl TargetCustody for Fake {
    async fn create_auth_config(
        &self,
        toolkit: &str,
        name: &str,
        _: TargetScheme,
        _: &[String],
    ) -> ApiResult<AuthConfig> {
        let (id, name, toolkit, scheme) = ("ac_1".into(), name.to_owned(), toolkit.to_owned(), "OAUTH2".to_owned());
        Ok(AuthConfig { id, name, toolkit, scheme, enabled: true })
    }
    async fn create_bearer_account(&self, _: &str, _: &str, _: &str, _: &Secret) -> ApiResult<ConnectedAccount> {
        silent(Api::Composio)
    }
    async fn patch_bearer(&self, account_id: &str, token: &Secret) -> ApiResult<AccountStatus> {
        self.find(Api::Composio, account_id)?;
        let (key, token) = (account_id.to_owned(), token.expose().to_owned());
        let write = Written { sink: Sink::Composio, key, token };
        self.write(Api::Composio, AccountStatus::Active, |state| state.history.push(write)).await
    }
    async fn create_link(&self, _: &str, _: &str, alias: &str, _: Option<&str>) -> ApiResult<ConsentLink> {
        let url = Secret::new(format!("https://link.example/{alias}"));
        Ok(ConsentLink { account_id: "ca_new".to_owned(), url, expires_at: Timestamp::from_secs(600) })
    }
    async fn set_account_enabled(&self, _: &str, _: bool) -> ApiResult<()> {
        silent(Api::Composio)
    }
    async fn delete_account(&self, _: &str) -> ApiResult<()> {
        silent(Api::Composio)
    }
}

impl KvRead for Fake {
    async fn list_keys(&self, namespace: Namespace, prefix: &str, _: Option<&str>) -> ApiResult<KvPage> {
        let state = self.state();
        let of = |((n, name), (_, metadata)): (&(Namespace, String), &(String, Option<KvMetadata>))| {
            (*n == namespace && name.starts_with(prefix))
                .then(|| KvKey { name: name.clone(), metadata: metadata.clone() })
        };
        Ok(KvPage { keys: state.kv.iter().filter_map(of).collect(), cursor: None })
    }
    async fn bulk_get(
        &self,
        namespace: Namespace,
        keys: &[String],
    ) -> ApiResult<BTreeMap<String, Option<Result<KvEntry, KvEntryError>>>> {
        if self.state().no_ordinary_reads {
            return Err(error(Api::Cloudflare, ApiErrorKind::OverBudget { wait_ms: 300_000 }));
        }
        self.bulk_get_urgent(namespace, keys).await
    }
    async fn bulk_get_urgent(
        &self,
        namespace: Namespace,
        keys: &[String],
    ) -> ApiResult<BTreeMap<String, Option<Result<KvEntry, KvEntryError>>>> {
        let mut state = self.state();
        state.looks += 1;
        let entry = |key: &String| {
            state.kv.get(&(namespace, key.clone())).map(|(value, _)| KvEntry::from_json(value.as_bytes()))
        };
        Ok(keys.iter().map(|key| (key.clone(), entry(key))).collect())
    }
}

impl KvWrite for Fake {
    async fn bulk_put(&self, namespace: Namespace, puts: &[KvPut]) -> ApiResult<Vec<String>> {
        let sink = if namespace == Namespace::Source { Sink::KvSource } else { Sink::KvTarget };
        let puts = puts.to_vec();
        if puts.iter().all(|put| put.key.starts_with("reauth:")) {
            let mut state = self.state();
            if state.no_markers {
                return silent(Api::Cloudflare);
            }
            state.kv.extend(puts.into_iter().map(|p| ((namespace, p.key), (p.value.expose().to_owned(), None))));
            return Ok(Vec::new());
        }
        self.find(Api::Cloudflare, sink.name())?;
        self.state().puts += 1;
        let refused = self.state().refused.as_ref().map(Triplet::kv_key);
        if puts.iter().any(|put| Some(&put.key) == refused.as_ref()) {
            return Err(error(Api::Cloudflare, ApiErrorKind::Rejected { status: 400, code: "10001".to_owned() }));
        }
        self.write(Api::Cloudflare, Vec::new(), move |state| {
            for put in puts {
                let token = KvEntry::from_json(put.value.expose().as_bytes()).unwrap().access_token.expose().to_owned();
                let key = Triplet::from_kv_key(&put.key).unwrap().to_string();
                state.history.push(Written { sink, key, token });
                let metadata = put.metadata.and_then(|m| serde_json::from_value(m).ok());
                state.kv.insert((namespace, put.key), (put.value.expose().to_owned(), metadata));
            }
        })
        .await
    }
    async fn put(&self, _: Namespace, _: &KvPut) -> ApiResult<()> {
        silent(Api::Cloudflare)
    }
    async fn put_until(&self, _: Namespace, _: &KvPut, _: Timestamp) -> ApiResult<()> {
        silent(Api::Cloudflare)
    }
    async fn delete(&self, namespace: Namespace, key: &str) -> ApiResult<()> {
        let mut state = self.state();
        if state.no_markers {
            return silent(Api::Cloudflare);
        }
        state.kv.remove(&(namespace, key.to_owned()));
        Ok(())
    }
}

impl AuditRead for Fake {
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

impl AuditSink for Fake {
    async fn append_audit(&self, _: &[AuditRow]) -> ApiResult<()> {
        Ok(())
    }
}

impl GatewayRead for Fake {
    async fn list_alarms(&self) -> ApiResult<Vec<AlarmState>> {
        Ok(Vec::new())
    }
    async fn read_alarm(&self, _: &Triplet) -> ApiResult<AlarmState> {
        silent(Api::Gateway)
    }
    async fn list_fires(&self, _: Timestamp) -> ApiResult<Vec<AlarmFire>> {
        Ok(Vec::new())
    }
    async fn smoke(&self, _: &[Triplet]) -> ApiResult<Vec<SmokeResult>> {
        Ok(Vec::new())
    }
}

impl GatewayAdmin for Fake {
    async fn set_alarm_mode(&self, _: &Triplet, _: AlarmMode) -> ApiResult<AlarmState> {
        silent(Api::Gateway)
    }
}

impl ProviderRead for Fake {
    async fn whoami(&self, _: &Secret, _: &ProviderCall) -> ApiResult<Value> {
        silent(Api::Provider)
    }
    async fn ask(&self, token: &Secret, _: &ProviderCall) -> ApiResult<ProviderAnswer> {
        let state = self.state();
        let of_token = state.whoami_of.as_ref().filter(|(of, _)| of == token.expose()).map(|(_, answer)| *answer);
        let Some((status, body)) = of_token.or(state.whoami) else { return silent(Api::Provider) };
        Ok(ProviderAnswer { status, headers: Vec::new(), body: Secret::new(body) })
    }
}

impl Outside for Fake {
    type Source = Self;
    type Target = Self;
    type Cloudflare = Self;
    type Gateway = Self;
    type Provider = Self;

    fn source(&self) -> &Self {
        self
    }
    fn target(&self) -> &Self {
        self
    }
    fn cloudflare(&self) -> &Self {
        self
    }
    fn gateway(&self) -> &Self {
        self
    }
    fn provider(&self) -> &Self {
        self
    }
    fn take_traffic(&self) -> BTreeMap<Api, Traffic> {
        BTreeMap::new()
    }
}

/// The `n`-th triplet of a test, and the id of the connection that feeds it alone.
pub fn triplet(n: usize) -> Triplet {
    Triplet::parse(&format!("acme:slack:a{n}")).unwrap()
}

pub fn connection_id(n: usize) -> String {
    format!("acme__slack__a{n}")
}

/// A state in its soak: `count` triplets, each with an account at Composio.
pub async fn soaking(dir: &Path, count: usize) -> Store {
    soaking_at(&Place::Sqlite(dir.join("cutover.db")), count).await
}

/// The same, wherever the state is.
pub async fn soaking_at(place: &Place, count: usize) -> Store {
    let store = Store::open_at(place, Durability::ProcessCrash, Vault::from_master(&[7; 32])).await.unwrap();
    let new = |n: usize| NewTriplet {
        triplet: triplet(n),
        integration_key: "slack".into(),
        connection_id: connection_id(n),
        route: Route::Reconsent,
        wave: Some(1),
        toolkit: Some("slack".into()),
        scopes: Vec::new(),
    };
    let triplets: Vec<NewTriplet> = (0..count).map(new).collect();
    store.begin_plan("p-000000000001", "{}", &triplets, Timestamp::from_secs(0)).await.unwrap();
    for n in 0..count {
        store.save_mirror_account(&triplet(n), &format!("ca_{n}")).await.unwrap();
    }
    store.save_meta("soaking", "yes").await.unwrap();
    store
}
