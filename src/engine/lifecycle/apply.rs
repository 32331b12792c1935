//! Apply: stand the DO alarms by, make auth configs and bearer mirrors, and copy the current
//! token of every moving triplet to every sink.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Engine, EngineError, EngineResult};
use super::{Effected, Progress, RETRY_MS, alias, retry_at, seen};
use crate::domain::api::Api;
use crate::domain::custody::{Event, Stage};
use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};
use crate::domain::token::{KvEntry, Writer};
use crate::plan::{Plan, Route};
use crate::ports::{
    AlarmMode, GatewayAdmin, GatewayRead, KvRead, Namespace, Outside, SourceCustody, TargetCustody, TargetRead,
    TargetScheme,
};
use crate::store::{NewTriplet, Sink, TripletRow};

impl<O: Outside> Engine<O> {
    /// Carries out a plan up to the soak.
    ///
    /// # Errors
    /// `Refused` when the plan holds blocked rows or another plan was applied to this state.
    pub async fn apply(&self, plan: &Plan, now: Timestamp) -> EngineResult<Progress> {
        self.begin(plan, now).await?;
        let mut wait = self.stand_alarms_by(now).await?;
        if wait.is_none() {
            wait = self.read_all_once(now).await?;
        }
        if wait.is_none() {
            // From here on Nango is the only refresher, so the duties must run beside the rest of
            // this operation, however long Composio makes it wait.
            self.store.save_meta("soaking", "1").await?;
            wait = self.make_mirrors(now).await?;
        }
        if let Some(at) = wait {
            return Ok(Progress::Wait(at));
        }
        for sink in Sink::ALL {
            self.mirror(sink, now).await?;
        }
        self.enter_mirroring(now).await
    }

    async fn begin(&self, plan: &Plan, now: Timestamp) -> EngineResult<()> {
        let blocked: Vec<String> =
            plan.rows.iter().filter(|r| r.route == Route::Blocked).map(|r| r.triplet.to_string()).collect();
        if !blocked.is_empty() {
            return Err(EngineError::Refused(format!(
                "plan `{}` has blocked rows that need a decision in the policy file: {}",
                plan.id,
                blocked.join(", ")
            )));
        }
        let triplets: Vec<NewTriplet> = plan
            .rows
            .iter()
            .map(|r| NewTriplet {
                triplet: r.triplet.clone(),
                integration_key: r.integration_key.clone(),
                connection_id: r.connection_id.clone(),
                route: r.route,
                wave: r.wave,
                toolkit: r.toolkit.clone(),
                scopes: r.scopes.clone(),
            })
            .collect();
        let json = serde_json::to_string(plan).expect("a plan serialises");
        Ok(self.store.begin_plan(&plan.id, &json, &triplets, now).await?)
    }

    /// From here on Nango is the only refresher. A TokenManager object may stand by as a fallback
    /// where a second refresher does no harm, and only reports where it would kill the grant.
    async fn stand_alarms_by(&self, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        for row in self.moving().await? {
            if row.custody.stage != Stage::Planned {
                continue;
            }
            let harmless =
                self.catalogue.integration(&row.integration_key).is_some_and(|i| i.tolerates_second_refresher());
            let mode = if harmless { AlarmMode::Standby } else { AlarmMode::Report };
            let gateway = self.outside.gateway();
            let done = self
                .once(
                    &format!("alarm:{}:soak", row.triplet),
                    "put the TokenManager alarm on stand-by",
                    Api::Gateway,
                    now,
                    async || gateway.read_alarm(&row.triplet).await.map(|a| seen(a.mode == mode)),
                    async || gateway.set_alarm_mode(&row.triplet, mode).await.map(|_| String::new()),
                )
                .await?;
            match done {
                Effected::Yes(_) => {}
                Effected::Later(error) => return Ok(Some(retry_at(now, &error))),
                Effected::Never(error) => return Err(refused("set the alarm mode", &row, &error)),
            }
        }
        Ok(None)
    }

    /// Captures the current token of every moving connection: the newer of what KV serves and
    /// what Nango holds, so that the first delivery never restores an older token.
    async fn read_all_once(&self, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        let moving = self.moving().await?;
        let unread: BTreeSet<i64> = moving.iter().filter(|t| t.version == 0).map(|t| t.connection).collect();
        for connection in self.store.load_connections().await? {
            if !unread.contains(&connection.id) {
                continue;
            }
            let fed: Vec<&TripletRow> = moving.iter().filter(|t| t.connection == connection.id).collect();
            let keys: Vec<String> = fed.iter().map(|t| t.triplet.kv_key()).collect();
            let served = self.outside.cloudflare().bulk_get(Namespace::Source, &keys).await;
            self.observe(Api::Cloudflare, now, &served).await?;
            let served = match served {
                Ok(served) => served,
                Err(error) => return Ok(Some(retry_at(now, &error))),
            };
            let read =
                self.outside.source().fetch_credential(&connection.integration_key, &connection.connection_id).await;
            self.observe(Api::Nango, now, &read).await?;
            let credential = match read {
                Ok(credential) => credential,
                Err(error) if error.is_transient() => return Ok(Some(retry_at(now, &error))),
                Err(error) => {
                    return Err(EngineError::Refused(format!(
                        "connection `{}` of `{}` cannot be read: {error}",
                        connection.connection_id, connection.integration_key
                    )));
                }
            };
            let Some(mut capture) = self.capture(&connection, &fed, credential, now).await? else {
                return Ok(Some(now.plus_ms(RETRY_MS)));
            };
            for version in &mut capture.versions {
                if let Some(Some(Ok(entry))) = served.get(&version.triplet.kv_key())
                    && lives_longer(entry, &version.entry)
                {
                    version.entry = entry.clone();
                    version.writer = Writer::DoAlarm;
                }
            }
            self.store.append_captures(&[capture], &Sink::ALL, now).await?;
        }
        Ok(None)
    }

    /// One bearer auth config per toolkit, one bearer account per triplet.
    async fn make_mirrors(&self, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        let mut configs: BTreeMap<String, String> = BTreeMap::new();
        for row in self.moving().await? {
            if row.mirror_account.is_some() {
                continue;
            }
            let Some(toolkit) = row.toolkit.clone() else {
                return Err(EngineError::Refused(format!("triplet `{}` moves but has no toolkit", row.triplet)));
            };
            if !configs.contains_key(&toolkit) {
                match self.ensure_auth_config(&toolkit, "mirror", TargetScheme::BearerToken, &[], now).await? {
                    Ok(id) => configs.insert(toolkit.clone(), id),
                    Err(at) => return Ok(Some(at)),
                };
            }
            let config = configs.get(&toolkit).cloned().unwrap_or_default();
            let target = self.outside.target();
            let user = format!("cutover-mirror-{}", row.triplet.tenant);
            let alias = alias("cutover-mirror", &row.triplet);
            let Some(entry) = self.store.load_head(&row.triplet).await? else { continue };
            let made = self
                .once(
                    &format!("mirror-account:{}", row.triplet),
                    "make a bearer account",
                    Api::Composio,
                    now,
                    async || {
                        let accounts = target.list_accounts_of(&user).await?;
                        Ok(accounts
                            .into_iter()
                            .filter(|a| a.alias.as_deref() == Some(&alias) && a.toolkit == toolkit)
                            .map(|a| a.id)
                            .collect())
                    },
                    async || {
                        target.create_bearer_account(&config, &user, &alias, &entry.access_token).await.map(|a| a.id)
                    },
                )
                .await?;
            match made {
                Effected::Yes(account) => self.store.save_mirror_account(&row.triplet, &account).await?,
                Effected::Later(error) => return Ok(Some(retry_at(now, &error))),
                Effected::Never(error) => return Err(refused("make a bearer account for", &row, &error)),
            }
        }
        Ok(None)
    }

    /// Finds or makes the auth config `cutover {purpose} {toolkit}`. `Err`: ask again at that time.
    pub(in crate::engine) async fn ensure_auth_config(
        &self,
        toolkit: &str,
        purpose: &str,
        scheme: TargetScheme,
        scopes: &[String],
        now: Timestamp,
    ) -> EngineResult<Result<String, Timestamp>> {
        let name = format!("cutover {purpose} {toolkit}");
        let target = self.outside.target();
        let made = self
            .once(
                &format!("auth-config:{purpose}:{toolkit}"),
                "make an auth config",
                Api::Composio,
                now,
                async || {
                    Ok(target.list_auth_configs().await?.into_iter().filter(|c| c.name == name).map(|c| c.id).collect())
                },
                async || target.create_auth_config(toolkit, &name, scheme, scopes).await.map(|c| c.id),
            )
            .await?;
        match made {
            Effected::Yes(id) => Ok(Ok(id)),
            Effected::Later(error) => Ok(Err(retry_at(now, &error))),
            Effected::Never(error) => {
                Err(EngineError::Refused(format!("auth config `{name}` cannot be made: {error}")))
            }
        }
    }

    /// Triplets that every sink holds the current token of enter the soak.
    async fn enter_mirroring(&self, now: Timestamp) -> EngineResult<Progress> {
        let mut complete: BTreeMap<crate::domain::triplet::Triplet, usize> = BTreeMap::new();
        for sink in Sink::ALL {
            for state in self.store.load_sink(sink).await? {
                if state.delivered == state.version {
                    *complete.entry(state.triplet).or_default() += 1;
                }
            }
        }
        let mut all = true;
        for row in self.moving().await? {
            if row.custody.stage != Stage::Planned {
                continue;
            }
            if complete.get(&row.triplet) == Some(&Sink::ALL.len()) {
                self.record(&row.triplet, &Event::BackfillDelivered, now).await?;
            } else {
                all = false;
            }
        }
        if all {
            return Ok(Progress::Done);
        }
        let next = self.store.load_due().await?.delivery_at;
        Ok(Progress::Wait(next.unwrap_or(now.plus_ms(RETRY_MS)).max(now.plus_ms(SECOND_MS))))
    }
}

/// Whether what KV serves outlives what Nango gave by more than clock noise.
fn lives_longer(served: &KvEntry, given: &KvEntry) -> bool {
    match (served.expires_at, given.expires_at) {
        (Some(served), Some(given)) => served.since(given) > MINUTE_MS,
        _ => false,
    }
}

pub(super) fn refused(what: &str, row: &TripletRow, error: &crate::ports::ApiError) -> EngineError {
    EngineError::Refused(format!("cannot {what} `{}`: {error}", row.triplet))
}
