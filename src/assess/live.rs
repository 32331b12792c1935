//! The checks of live systems.

use std::collections::{BTreeMap, BTreeSet};

use super::scopes::GrantNeed;
use super::{Assessment, Finding, Severity, audit, headroom, scopes};
use crate::catalogue::Catalogue;
use crate::domain::api::Api;
use crate::domain::budget::Limit;
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;
use crate::plan::{Fact, Plan, Probe, Route};
use crate::ports::{
    ApiError, ApiErrorKind, ApiResult, AuditRow, AuditShape, AuditSink, AuthConfig, GatewayRead, KvPut, KvRead,
    KvWrite, Namespace, Outside, SourceRead, SourceRights, TargetAbilities, TargetRead, Traffic,
};

/// Triplets of which the hot path is looked at.
const HOT_PATH_MAX: usize = 20;

/// Values in one bulk read of KV.
const BULK_MAX: usize = 100;

/// Looks after a write to KV until it counts as not readable.
const READ_BACKS_MAX: u32 = 30;

/// What the checks are about.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Triplets that move, and the toolkits and integrations that they need.
    pub triplets: Vec<Triplet>,
    pub toolkits: BTreeSet<String>,
    /// Of those, the ones that must take bearer accounts: a mirror stands there until the consent.
    pub mirrored: BTreeSet<String>,
    pub integrations: BTreeSet<String>,
    /// Moving rows with the scopes that they need.
    pub grants: Vec<GrantNeed>,
    /// What the plan needs of each API in the soak, requests a minute on average.
    pub need_per_minute: BTreeMap<Api, u64>,
    /// What the policy counts on.
    pub limits: BTreeMap<Api, Limit>,
    /// Bound of `clock-skew`, in milliseconds.
    pub skew_max_ms: i64,
}

impl Subject {
    /// What a plan is about; its bounds come from the policy.
    pub fn of(plan: &Plan) -> Self {
        let moving = || plan.rows.iter().filter(|row| row.route.moves());
        let mirrored = moving().filter(|row| row.route == Route::Reconsent);
        let grants = moving().filter(|row| !row.scopes.is_empty()).map(|row| GrantNeed {
            triplet: row.triplet.clone(),
            integration_key: row.integration_key.clone(),
            connection_id: row.connection_id.clone(),
            scopes: row.scopes.clone(),
        });
        Self {
            mirrored: mirrored.filter_map(|row| row.toolkit.clone()).collect(),
            grants: grants.collect(),
            need_per_minute: plan.budget.apis.iter().map(|api| (api.api, api.soak_per_minute())).collect(),
            triplets: moving().map(|row| row.triplet.clone()).collect(),
            toolkits: moving().filter_map(|row| row.toolkit.clone()).collect(),
            integrations: moving().map(|row| row.integration_key.clone()).collect(),
            ..Self::default()
        }
    }
}

/// Runs checks against an outside.
pub struct Live<'a, O> {
    pub outside: &'a O,
    pub catalogue: &'a Catalogue,
    pub subject: &'a Subject,
    /// Waits between two looks after a write, and tells what time it is.
    pub wait: &'a (dyn Fn() + Sync),
    pub clock: &'a (dyn Fn() -> Timestamp + Sync),
}

/// A failed call as a finding: refused is an error, silence is unknown.
pub(super) fn failed(check: &'static str, error: &ApiError, what: &str) -> Finding {
    match &error.kind {
        ApiErrorKind::Unauthorized { .. } => {
            Finding::error(check, error.to_string(), format!("{what}: see docs/config.md for the rights that it needs"))
        }
        ApiErrorKind::NotFound { .. } | ApiErrorKind::Rejected { .. } => {
            Finding::error(check, error.to_string(), format!("check the address and the ids: {what}"))
        }
        _ => Finding::new(check, Severity::Unknown, error.to_string(), "ask again when it answers"),
    }
}

impl<O> Live<'_, O>
where
    O: Outside<Source: SourceRights, Target: TargetAbilities, Cloudflare: AuditShape>,
{
    /// Runs the checks of `names`, in the order of [`super::CHECKS`]. `write`: also those that write.
    pub async fn run(&self, names: &BTreeSet<&str>, write: bool) -> Assessment {
        let mut out = Assessment::default();
        let on = |name: &str| names.contains(name);
        if on("nango-key") || on("nango-connections") {
            self.nango(&on, &mut out).await;
        }
        if on("nango-rights") {
            self.rights(&mut out).await;
        }
        if on("nango-connect") {
            self.connect(write, &mut out).await;
        }
        if on("nango-integrations") {
            self.integrations(&mut out).await;
        }
        if on("composio-key") || on("composio-auth-configs") {
            self.auth_configs(&on, &mut out).await;
        }
        if on("composio-toolkits") {
            self.toolkits(&mut out).await;
        }
        if on("composio-accounts") {
            self.accounts(&mut out).await;
        }
        if on("composio-webhooks") {
            self.webhooks(&mut out).await;
        }
        if on("grant-scopes") {
            self.scopes(&mut out).await;
        }
        if on("cloudflare-kv") {
            self.kv(&mut out).await;
        }
        if on("cloudflare-kv-latency") && write {
            let finding = self.kv_latency().await;
            out.findings.push(finding);
        }
        if on("cloudflare-d1-shape") {
            out.findings.push(match self.outside.cloudflare().audit_table().await {
                Ok(table) => audit::judge(&table),
                Err(error) => failed("cloudflare-d1-shape", &error, "the token must read D1"),
            });
        }
        if on("cloudflare-d1") && write {
            let finding = self.d1().await;
            out.findings.push(finding);
        }
        if on("gateway-admin") {
            self.gateway(&mut out).await;
        }
        if on("gateway-hot-path") {
            self.hot_path(&mut out).await;
        }
        let answered = match ["clock-skew", "rate-limits", "rate-headroom"].into_iter().any(on) {
            true => self.knock().await,
            false => BTreeMap::new(),
        };
        let traffic = self.outside.take_traffic();
        if on("clock-skew") {
            out.findings.push(self.skew(&traffic));
        }
        if on("rate-limits") {
            out.findings.push(limits(&traffic));
        }
        if on("rate-headroom") {
            out.findings.extend(self.headroom(&answered, &traffic));
        }
        out
    }

    async fn nango(&self, on: &impl Fn(&str) -> bool, out: &mut Assessment) {
        let listed = self.outside.source().list_connections().await;
        if on("nango-key") {
            out.findings.push(match &listed {
                Ok(list) => Finding::ok("nango-key", format!("{} connections", list.len())),
                Err(error) => failed("nango-key", error, "CUTOVER_NANGO_KEY must be an environment's key"),
            });
        }
        let Ok(list) = listed else { return };
        if on("nango-connections") {
            let broken: Vec<String> =
                list.iter().filter(|c| c.auth_error).map(|c| format!("`{}`", c.connection_id)).collect();
            out.findings.push(if broken.is_empty() {
                Finding::ok("nango-connections", "none has an auth error")
            } else {
                Finding::error(
                    "nango-connections",
                    format!("{} cannot refresh: {}", broken.len(), broken.join(", ")),
                    "let their users connect again at Nango, or retain them in the policy",
                )
            });
        }
    }

    async fn integrations(&self, out: &mut Assessment) {
        const CHECK: &str = "nango-integrations";
        let listed = self.outside.source().list_integrations().await;
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => return out.findings.push(failed(CHECK, &error, "the key must read integrations")),
        };
        let there: BTreeSet<&str> = listed.iter().map(|integration| integration.key.as_str()).collect();
        let unknown: Vec<&str> =
            there.iter().copied().filter(|key| self.catalogue.integration(key).is_none()).collect();
        let missing: Vec<&String> =
            self.subject.integrations.iter().filter(|key| !there.contains(key.as_str())).collect();
        out.findings.push(if !missing.is_empty() {
            Finding::error(CHECK, format!("the plan needs {missing:?}, which Nango does not have"), "plan again")
        } else if !unknown.is_empty() {
            Finding::warning(CHECK, format!("the catalogue does not know {unknown:?}"), "add them with `--catalogue`")
        } else {
            Finding::ok(CHECK, format!("{} integrations, all known", there.len()))
        });
    }

    async fn auth_configs(&self, on: &impl Fn(&str) -> bool, out: &mut Assessment) {
        let listed = self.outside.target().list_auth_configs().await;
        if on("composio-key") {
            out.findings.push(match &listed {
                Ok(list) => Finding::ok("composio-key", format!("{} auth configs", list.len())),
                Err(error) => failed("composio-key", error, "CUTOVER_COMPOSIO_KEY must be a project's key"),
            });
        }
        let Ok(list) = listed else { return };
        if on("composio-auth-configs") {
            out.findings.push(judge_configs(&list));
        }
    }

    async fn toolkits(&self, out: &mut Assessment) {
        const CHECK: &str = "composio-toolkits";
        let (mut missing, mut unfit, mut silent, mut probed) = (Vec::new(), Vec::new(), 0, 0);
        for slug in &self.subject.toolkits {
            let schemes = match self.outside.target().toolkit_schemes(slug).await {
                Ok(schemes) => schemes,
                Err(error) => return out.findings.push(failed(CHECK, &error, "the key must read toolkits")),
            };
            probed += 1;
            let fact = Fact::Toolkit { slug: slug.clone(), found: schemes.is_some() };
            out.probes.push(Probe { at: (self.clock)(), fact });
            match schemes {
                None => missing.push(format!("`{slug}`")),
                Some(schemes) if schemes.is_empty() => silent += 1,
                Some(schemes) if self.subject.mirrored.contains(slug) && !takes_bearer(&schemes) => {
                    unfit.push(format!("`{slug}` ({})", schemes.join(", ")));
                }
                Some(_) => {}
            }
        }
        let silence = match silent {
            0 => String::new(),
            n => format!("; {n} do not say how they authenticate"),
        };
        out.findings.push(if !missing.is_empty() {
            Finding::error(
                CHECK,
                format!("there is no toolkit {}", missing.join(", ")),
                "plan again with these probes: their rows stay",
            )
        } else if !unfit.is_empty() {
            Finding::error(
                CHECK,
                format!("no OAuth2, so no bearer accounts: {}", unfit.join(", ")),
                "they cannot be mirrored: retain their rows in the policy, or name another toolkit with `--catalogue`",
            )
        } else if probed == 0 {
            Finding::new(CHECK, Severity::Info, "nobody said which", "name a plan with `--plan`")
        } else {
            Finding::ok(CHECK, format!("all {probed} exist and take bearer accounts beside OAuth2{silence}"))
        });
    }

    async fn accounts(&self, out: &mut Assessment) {
        const CHECK: &str = "composio-accounts";
        let listed = match self.outside.target().list_accounts().await {
            Ok(listed) => listed,
            Err(error) => return out.findings.push(failed(CHECK, &error, "the key must read connected accounts")),
        };
        let mut aliases: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for account in &listed {
            if let Some(alias) = account.alias.as_deref().filter(|alias| alias.starts_with("cutover-")) {
                *aliases.entry((account.toolkit.as_str(), alias)).or_default() += 1;
            }
        }
        let twice: Vec<&str> = aliases.iter().filter(|(_, n)| **n > 1).map(|((_, alias), _)| *alias).collect();
        out.findings.push(if twice.is_empty() {
            Finding::ok(CHECK, format!("{} accounts, {} of them ours", listed.len(), aliases.len()))
        } else {
            Finding::error(CHECK, format!("{twice:?} are there twice"), "delete the ones that the state does not name")
        });
    }

    async fn webhooks(&self, out: &mut Assessment) {
        const CHECK: &str = "composio-webhooks";
        out.findings.push(match self.outside.target().list_webhook_subscriptions().await {
            Ok(list) if list.is_empty() => Finding::ok(CHECK, "no subscription"),
            Ok(list) => {
                let urls: Vec<&str> = list.iter().map(|subscription| subscription.url.as_str()).collect();
                let remedy = "a project has one subscription: merge events into it, never overwrite its address";
                Finding::new(CHECK, Severity::Info, format!("events go to {}", urls.join(", ")), remedy)
            }
            Err(error) => failed(CHECK, &error, "the key must read webhook subscriptions"),
        });
    }

    /// The scopes that the served entries name: KV is read, which refreshes nothing.
    async fn scopes(&self, out: &mut Assessment) {
        const CHECK: &str = "grant-scopes";
        let grants = &self.subject.grants;
        if grants.is_empty() {
            let finding = Finding::new(CHECK, Severity::Info, "nobody said which grants", "name a plan with `--plan`");
            return out.findings.push(finding);
        }
        let mut granted = BTreeMap::new();
        for chunk in grants.chunks(BULK_MAX) {
            let keys: Vec<String> = chunk.iter().map(|need| need.triplet.kv_key()).collect();
            let entries = match self.outside.cloudflare().bulk_get(Namespace::Source, &keys).await {
                Ok(entries) => entries,
                Err(error) => return out.findings.push(failed(CHECK, &error, "the token must read KV")),
            };
            for (need, key) in chunk.iter().zip(&keys) {
                let entry = entries.get(key).and_then(|entry| entry.as_ref()?.as_ref().ok());
                granted.insert(need.triplet.clone(), entry.and_then(|entry| entry.scope.clone()));
            }
        }
        let (finding, facts) = scopes::judge(grants, &granted, self.catalogue);
        out.findings.push(finding);
        let at = (self.clock)();
        out.probes.extend(facts.into_iter().map(|fact| Probe { at, fact }));
    }

    /// Asks every API for something small, so that each tells its time and its counter.
    async fn knock(&self) -> BTreeMap<Api, ApiResult<()>> {
        let outside = self.outside;
        BTreeMap::from([
            (Api::Nango, outside.source().list_integrations().await.map(drop)),
            (Api::Composio, outside.target().list_webhook_subscriptions().await.map(drop)),
            (
                Api::Cloudflare,
                outside.cloudflare().list_keys(Namespace::Source, "cutover-probe:", None).await.map(drop),
            ),
            (Api::Gateway, outside.gateway().list_alarms().await.map(drop)),
        ])
    }

    fn headroom(&self, answered: &BTreeMap<Api, ApiResult<()>>, traffic: &BTreeMap<Api, Traffic>) -> Vec<Finding> {
        let told = self.outside.counters();
        let of = |(api, answer): (&Api, &ApiResult<()>)| {
            let (told, need) = (told.get(api).copied(), self.subject.need_per_minute.get(api).copied());
            // A refusal tells the counter as well; silence does not.
            if let Err(error) = answer
                && told.is_none()
            {
                return Some(Finding::new(
                    "rate-headroom",
                    Severity::Unknown,
                    error.to_string(),
                    "ask again when it answers",
                ));
            }
            let limit = *self.subject.limits.get(api)?;
            let sent = traffic.get(api).map_or(0, |traffic| traffic.requests);
            Some(headroom::judge(&headroom::Load { api: *api, limit, told, sent, need }))
        };
        answered.iter().filter_map(of).collect()
    }

    async fn kv(&self, out: &mut Assessment) {
        const CHECK: &str = "cloudflare-kv";
        let mut counts = Vec::new();
        for (namespace, name) in [(Namespace::Source, "source"), (Namespace::Target, "target")] {
            match self.outside.cloudflare().list_keys(namespace, "tokens:", None).await {
                Ok(page) => counts.push((name, page.keys.len(), page.keys.first().map(|key| key.name.clone()))),
                Err(error) => {
                    let what = format!("CUTOVER_CLOUDFLARE_TOKEN must read and write the {name} namespace");
                    return out.findings.push(failed(CHECK, &error, &what));
                }
            }
        }
        let shown: Vec<String> =
            counts.iter().map(|(name, n, _)| format!("{n} tokens on the first page of {name}")).collect();
        out.findings.push(Finding::ok(CHECK, shown.join(", ")));
    }

    /// Writes an entry of its own to the target namespace, reads it back, takes it away.
    async fn kv_latency(&self) -> Finding {
        const CHECK: &str = "cloudflare-kv-latency";
        let began = (self.clock)();
        let kv = self.outside.cloudflare();
        let key = format!("cutover-probe:{}", began.millis());
        let put = KvPut { key: key.clone(), value: Secret::new("{\"probe\":true}"), metadata: None };
        if let Err(error) = kv.put(Namespace::Target, &put).await {
            return failed(CHECK, &error, "the token must write KV");
        }
        let mut found = None;
        for _ in 0..READ_BACKS_MAX {
            match kv.list_keys(Namespace::Target, &key, None).await {
                Ok(page) if page.keys.iter().any(|k| k.name == key) => {
                    found = Some((self.clock)().since(began));
                    break;
                }
                Ok(_) => (self.wait)(),
                Err(error) => return failed(CHECK, &error, "the token must read KV"),
            }
        }
        let mut removed = kv.delete(Namespace::Target, &key).await;
        // One write a second to one key: the put may have been too short a time ago.
        for _ in 0..READ_BACKS_MAX {
            match &removed {
                Err(ApiError { kind: ApiErrorKind::RateLimited { .. } | ApiErrorKind::OverBudget { .. }, .. }) => {}
                _ => break,
            }
            (self.wait)();
            removed = kv.delete(Namespace::Target, &key).await;
        }
        match (found, removed) {
            (_, Err(error)) => failed(CHECK, &error, "the token must delete in KV"),
            (Some(ms), Ok(())) => {
                Finding::ok(CHECK, format!("written and listed after {ms} ms; other locations may take a minute"))
            }
            (None, Ok(())) => Finding::error(
                CHECK,
                "an entry that was written cannot be listed",
                "check that CUTOVER_KV_TARGET is the namespace that the gateway reads",
            ),
        }
    }

    /// Inserts one row, which says that it was this check.
    async fn d1(&self) -> Finding {
        const CHECK: &str = "cloudflare-d1";
        let at = (self.clock)();
        let row = AuditRow {
            op_id: format!("assess-{}", at.millis()),
            at,
            key: "cutover-probe".to_owned(),
            action: "assess".to_owned(),
            source: "cutover".to_owned(),
            fingerprint: None,
        };
        match self.outside.cloudflare().append_audit(&[row]).await {
            Ok(()) => Finding::ok(CHECK, "`kv_audit` takes rows in our shape"),
            Err(error) => failed(CHECK, &error, "the token must write D1, and `kv_audit` must have our columns"),
        }
    }

    async fn gateway(&self, out: &mut Assessment) {
        const CHECK: &str = "gateway-admin";
        let listed = match self.outside.gateway().list_alarms().await {
            Ok(listed) => listed,
            Err(error) => {
                return out.findings.push(failed(
                    CHECK,
                    &error,
                    "the Worker needs the admin routes of docs/gateway.md",
                ));
            }
        };
        let there: BTreeSet<&Triplet> = listed.iter().map(|alarm| &alarm.triplet).collect();
        let missing: Vec<String> =
            self.subject.triplets.iter().filter(|t| !there.contains(t)).map(|t| format!("`{t}`")).collect();
        out.findings.push(if missing.is_empty() {
            let mut modes: BTreeMap<String, usize> = BTreeMap::new();
            for alarm in &listed {
                *modes.entry(format!("{:?}", alarm.mode).to_lowercase()).or_default() += 1;
            }
            let modes: Vec<String> = modes.into_iter().map(|(mode, n)| format!("{n} {mode}")).collect();
            Finding::ok(CHECK, format!("{} objects: {}", listed.len(), modes.join(", ")))
        } else {
            Finding::error(
                CHECK,
                format!("no TokenManager object for {}", missing.join(", ")),
                "the inventory and the gateway disagree about names: compare them with `cutover inventory check`",
            )
        });
    }

    async fn hot_path(&self, out: &mut Assessment) {
        const CHECK: &str = "gateway-hot-path";
        let sample: Vec<Triplet> = self.subject.triplets.iter().take(HOT_PATH_MAX).cloned().collect();
        if sample.is_empty() {
            let finding =
                Finding::new(CHECK, Severity::Info, "nobody said which triplets", "name a plan with `--plan`");
            return out.findings.push(finding);
        }
        let answer: ApiResult<_> = self.outside.gateway().smoke(&sample).await;
        out.findings.push(match answer {
            Ok(results) => {
                let bad: Vec<String> = results
                    .iter()
                    .filter(|result| result.stale || !result.ok)
                    .map(|result| format!("`{}` ({})", result.triplet, result.upstream_status))
                    .collect();
                if bad.is_empty() {
                    Finding::ok(CHECK, format!("{} of {} triplets answer", sample.len(), self.subject.triplets.len()))
                } else {
                    let remedy = "mend these before the cutover: what is broken now is broken after it";
                    Finding::error(CHECK, format!("served and refused: {}", bad.join(", ")), remedy)
                }
            }
            Err(error) => failed(CHECK, &error, "the Worker needs the admin routes of docs/gateway.md"),
        });
    }

    fn skew(&self, traffic: &BTreeMap<Api, Traffic>) -> Finding {
        const CHECK: &str = "clock-skew";
        let bound = self.subject.skew_max_ms;
        let (mut shown, mut off, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        for (api, traffic) in traffic.iter().filter(|(_, traffic)| traffic.requests > 0) {
            let Some(ms) = traffic.skew_ms else {
                silent.push(api.name());
                continue;
            };
            let one = format!("{} {:+} s", api.name(), ms / 1_000);
            if ms.abs() > bound {
                off.push(one);
            } else {
                shown.push(one);
            }
        }
        if !off.is_empty() {
            let seen = format!("more than {} s off: {}", bound / 1_000, off.join(", "));
            Finding::error(CHECK, seen, "run an NTP client on this machine (and on a self-hosted Nango)")
        } else if !silent.is_empty() || shown.is_empty() {
            let who = if silent.is_empty() { "no API".to_owned() } else { silent.join(", ") };
            Finding::new(CHECK, Severity::Unknown, format!("{who} told no time"), "ask again when it answers")
        } else {
            Finding::ok(CHECK, format!("theirs against ours: {}", shown.join(", ")))
        }
    }
}

/// Bearer accounts are offered beside OAuth2, where published lists leave them out (Composio contract §3.2, §6).
fn takes_bearer(schemes: &[String]) -> bool {
    schemes.iter().any(|scheme| scheme == "BEARER_TOKEN" || scheme.ends_with("OAUTH2"))
}

fn judge_configs(list: &[AuthConfig]) -> Finding {
    const CHECK: &str = "composio-auth-configs";
    let ours: Vec<&AuthConfig> = list.iter().filter(|config| config.name.starts_with("cutover ")).collect();
    let mut names: Vec<&str> = ours.iter().map(|config| config.name.as_str()).collect();
    names.sort_unstable();
    let twice: Vec<&str> = names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    let off: Vec<&str> = ours.iter().filter(|config| !config.enabled).map(|config| config.name.as_str()).collect();
    if !twice.is_empty() {
        return Finding::error(CHECK, format!("{twice:?} are there twice"), "delete the one without accounts");
    }
    if !off.is_empty() {
        return Finding::error(CHECK, format!("{off:?} are disabled"), "enable them at Composio");
    }
    Finding::ok(CHECK, format!("{} of ours", ours.len()))
}

fn limits(traffic: &BTreeMap<Api, Traffic>) -> Finding {
    const CHECK: &str = "rate-limits";
    let limited: Vec<String> = traffic
        .iter()
        .filter(|(_, t)| t.limited > 0)
        .map(|(api, t)| format!("{} of {} requests to {}", t.limited, t.requests, api.name()))
        .collect();
    let sent: u64 = traffic.values().map(|t| t.requests).sum();
    if limited.is_empty() {
        Finding::ok(CHECK, format!("none of {sent} requests was limited"))
    } else {
        let remedy = "somebody else uses up the limit: lower the rates in the policy, or find out who";
        Finding::warning(CHECK, limited.join(", "), remedy)
    }
}
