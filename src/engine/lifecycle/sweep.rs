//! Looks for what should be dead and is not: objects that are armed again or fired, keys that
//! somebody still writes, webhook subscriptions that point at what was retired.

use std::collections::BTreeSet;

use super::super::{Engine, EngineError, EngineResult};
use super::retry_at;
use crate::domain::api::Api;
use crate::domain::custody::Stage;
use crate::domain::time::Timestamp;
use crate::ports::{AlarmMode, ApiError, GatewayRead, Namespace, Outside, TargetRead};

/// What kind of leftover it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZombieKind {
    /// A TokenManager object that is armed although it was disarmed.
    Armed,
    /// One that fired after it was disarmed.
    Fired,
    /// An armed object that belongs to no triplet of the plan.
    Orphan,
    /// Another environment whose objects still run.
    Environment,
    /// A webhook subscription that points at what is being retired.
    Subscription,
    /// A KV entry that nobody we know wrote.
    ForeignWrite,
    /// A token that should be gone from KV.
    LeftoverKey,
    /// A place in the code that still speaks of it.
    Reference,
}

impl ZombieKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Armed => "armed",
            Self::Fired => "fired",
            Self::Orphan => "orphan",
            Self::Environment => "environment",
            Self::Subscription => "subscription",
            Self::ForeignWrite => "foreign-write",
            Self::LeftoverKey => "leftover-key",
            Self::Reference => "reference",
        }
    }
}

/// Something that should be dead and is not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Zombie {
    pub kind: ZombieKind,
    pub subject: String,
    pub detail: String,
    /// What to do about it.
    pub remedy: String,
}

/// Where the entries are noted that nobody we know wrote before the disarming.
const LAST_WRITES: &str = "retire-last-writes";

/// The route that Nango's webhooks came in by.
const RETIRED_ROUTE: &str = "/admin/sync/nango";

impl<O: Outside> Engine<O> {
    /// Looks for zombies of the triplets that are settled or retired. `since`: when the objects
    /// were disarmed. Reads only.
    ///
    /// # Errors
    /// `Err(Ok(error))` is a system that did not answer; `Err(Err(error))` the store.
    pub async fn sweep(&self, since: Option<Timestamp>, now: Timestamp) -> EngineResult<Result<Vec<Zombie>, ApiError>> {
        let mut found = match self.sweep_gateway(since, now).await? {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let subscriptions = self.outside.target().list_webhook_subscriptions().await;
        self.observe(Api::Composio, now, &subscriptions).await?;
        match subscriptions {
            Ok(list) => found.extend(list.into_iter().filter(|s| s.url.contains(RETIRED_ROUTE)).map(|s| Zombie {
                kind: ZombieKind::Subscription,
                subject: s.id,
                detail: format!("still sends its events to {}", s.url),
                remedy: "delete the subscription at Composio, or point it at a route that stays".to_owned(),
            })),
            Err(error) => return Ok(Err(error)),
        }
        match self.sweep_kv(now).await? {
            Ok(more) => found.extend(more),
            Err(error) => return Ok(Err(error)),
        }
        found.sort();
        Ok(Ok(found))
    }

    async fn sweep_gateway(
        &self,
        since: Option<Timestamp>,
        now: Timestamp,
    ) -> EngineResult<Result<Vec<Zombie>, ApiError>> {
        let rows = self.store.load_triplets().await?;
        let stage =
            |triplet| rows.iter().find(|row| &row.triplet == triplet).map(|row| (row.moves(), row.custody.stage));
        let ended = |triplet| stage(triplet).is_some_and(|(moves, stage)| moves && stage >= Stage::Settled);
        let look = async || -> Result<_, ApiError> {
            let gateway = self.outside.gateway();
            let fires = match since {
                Some(since) => gateway.list_fires(since).await?,
                None => Vec::new(),
            };
            Ok((fires, gateway.list_alarms().await?))
        };
        let seen = look().await;
        self.observe(Api::Gateway, now, &seen).await?;
        let (fires, alarms) = match seen {
            Ok(seen) => seen,
            Err(error) => return Ok(Err(error)),
        };
        let mut found: Vec<Zombie> = fires
            .iter()
            .filter(|fire| ended(&fire.triplet))
            .map(|fire| Zombie {
                kind: ZombieKind::Fired,
                subject: fire.triplet.to_string(),
                detail: format!("fired at {} after it was disarmed", fire.at.to_minute()),
                remedy: "find out which deployment its class runs in, then retire again".to_owned(),
            })
            .collect();
        for alarm in &alarms {
            let armed = alarm.mode != AlarmMode::Disarmed || alarm.alarm_at.is_some();
            if !armed {
                continue;
            }
            let at = alarm.alarm_at.map_or_else(|| "without a time".to_owned(), Timestamp::to_minute);
            if ended(&alarm.triplet) && since.is_some() {
                found.push(Zombie {
                    kind: ZombieKind::Armed,
                    subject: alarm.triplet.to_string(),
                    detail: format!("is armed again ({at}) although it was disarmed"),
                    remedy: "run `cutover retire do-alarm` again: it disarms it and starts the silence anew".to_owned(),
                });
            } else if stage(&alarm.triplet).is_none() {
                found.push(Zombie {
                    kind: ZombieKind::Orphan,
                    subject: alarm.triplet.to_string(),
                    detail: format!("is armed ({at}) and no triplet of the plan"),
                    remedy: "disarm it through the gateway's admin route, or plan it".to_owned(),
                });
            }
        }
        Ok(Ok(found))
    }

    /// Notes which entries were last written by nobody that we know, at the moment of the disarming:
    /// objects that were armed until then wrote them, and only later ones are zombies.
    pub(super) async fn note_last_writes(&self, now: Timestamp) -> EngineResult<()> {
        let listed = self.list_tokens(Namespace::Source).await;
        self.observe(Api::Cloudflare, now, &listed).await?;
        let (listed, _) = listed.map_err(|error| EngineError::Later { at: retry_at(now, &error), error })?;
        let foreign: Vec<&String> = listed.iter().filter(|(_, entry)| entry.is_none()).map(|(key, _)| key).collect();
        let foreign = serde_json::to_string(&foreign).expect("texts serialise");
        Ok(self.store.save_meta(LAST_WRITES, &foreign).await?)
    }

    async fn sweep_kv(&self, now: Timestamp) -> EngineResult<Result<Vec<Zombie>, ApiError>> {
        let rows = self.store.load_triplets().await?;
        let noted = self.store.load_meta(LAST_WRITES).await?.unwrap_or_default();
        let noted: BTreeSet<String> = serde_json::from_str(&noted).unwrap_or_default();
        let mut found = Vec::new();
        for (namespace, name) in [(Namespace::Source, "kv.source"), (Namespace::Target, "kv.target")] {
            let listed = self.list_tokens(namespace).await;
            self.observe(Api::Cloudflare, now, &listed).await?;
            let listed = match listed {
                Ok((listed, _)) => listed,
                Err(error) => return Ok(Err(error)),
            };
            for row in rows.iter().filter(|row| row.moves() && row.custody.stage >= Stage::Settled) {
                let key = row.triplet.kv_key();
                let Some(entry) = listed.get(&key) else { continue };
                let (kind, detail, remedy) = match (row.custody.stage, entry) {
                    (Stage::Retired, _) => (
                        ZombieKind::LeftoverKey,
                        format!("is still in {name} although the triplet is retired"),
                        "delete the key, and find out who wrote it",
                    ),
                    (_, None) if namespace == Namespace::Target || !noted.contains(&key) => (
                        ZombieKind::ForeignWrite,
                        format!("was last written in {name} by nobody that we know"),
                        "find out who writes it: an alarm that is not listed, or another environment",
                    ),
                    _ => continue,
                };
                found.push(Zombie { kind, subject: key, detail, remedy: remedy.to_owned() });
            }
        }
        Ok(Ok(found))
    }
}
