//! Retiring the DO-alarm path and the Nango connections, in stages, each observed before the next.

use super::super::{Engine, EngineError, EngineResult};
use super::{ACTOR, Effected, Progress, retry_at};
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::custody::{Event, Stage};
use crate::domain::time::{MINUTE_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::ports::{
    AlarmMode, AlarmState, ApiError, GatewayAdmin, GatewayRead, KvWrite, Namespace, Outside, SourceCustody, SourceRead,
};

/// An alarm may be a minute late, and a failing one is retried for up to 150 s (Cloudflare contract §5).
const RETRY_TAIL_MS: i64 = 5 * MINUTE_MS;

impl<O: Outside> Engine<O> {
    /// Retires the DO-alarm path of every settled triplet: (a) handlers only report, (b) the last
    /// armed alarm passes, (c) each object is disarmed and read back, then silence is observed.
    ///
    /// # Errors
    /// `Refused` without a fresh gate pass, while a triplet is not settled, or when an object
    /// fires or is armed although it was disarmed: a zombie.
    pub async fn retire_do_alarms(&self, now: Timestamp) -> EngineResult<Progress> {
        self.demand_gate(now, "retire do-alarm").await?;
        let moving = self.moving().await?;
        if let Some(row) = moving.iter().find(|t| t.custody.stage < Stage::Settled) {
            return Err(EngineError::Refused(format!(
                "triplet `{}` is only {}; the DO-alarm path goes last",
                row.triplet, row.custody.stage
            )));
        }
        let triplets: Vec<Triplet> =
            moving.iter().filter(|t| t.custody.stage == Stage::Settled).map(|t| t.triplet.clone()).collect();
        if triplets.is_empty() {
            return Ok(Progress::Done);
        }
        let state = self.store.load_meta("retire").await?.unwrap_or_default();
        let (phase, rest) = state.split_once(' ').unwrap_or((state.as_str(), ""));
        let time = |text: &str| Timestamp::from_millis(text.parse().unwrap_or(0));
        match phase {
            "reporting" if now < time(rest) => Ok(Progress::Wait(time(rest))),
            "reporting" => {
                if let Some(at) = self.set_all(&triplets, AlarmMode::Disarmed, "disarmed", now).await? {
                    return Ok(Progress::Wait(at));
                }
                self.store.save_meta("retire", &format!("silent {}", now.millis())).await?;
                Ok(Progress::Wait(now.plus_ms(self.config.silence_ms)))
            }
            "silent" => {
                let since = time(rest);
                if now.since(since) < self.config.silence_ms {
                    return Ok(Progress::Wait(since.plus_ms(self.config.silence_ms)));
                }
                if let Some(at) = self.demand_silence(&triplets, since, now).await? {
                    return Ok(Progress::Wait(at));
                }
                self.store.save_meta("retire", "done").await?;
                Ok(Progress::Done)
            }
            "done" => Ok(Progress::Done),
            _ => {
                if let Some(at) = self.set_all(&triplets, AlarmMode::Report, "report", now).await? {
                    return Ok(Progress::Wait(at));
                }
                let alarms = self.outside.gateway().list_alarms().await;
                self.observe(Api::Gateway, now, &alarms).await?;
                let alarms = match alarms {
                    Ok(alarms) => alarms,
                    Err(error) => return Ok(Progress::Wait(retry_at(now, &error))),
                };
                let last = of(&alarms, &triplets).filter_map(|a| a.alarm_at).max().unwrap_or(now).max(now);
                let until = last.plus_ms(RETRY_TAIL_MS);
                self.store.save_meta("retire", &format!("reporting {}", until.millis())).await?;
                Ok(Progress::Wait(until))
            }
        }
    }

    async fn set_all(
        &self,
        triplets: &[Triplet],
        mode: AlarmMode,
        name: &str,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        let gateway = self.outside.gateway();
        for triplet in triplets {
            let done = self
                .once(
                    &format!("alarm:{triplet}:{name}"),
                    "retire the TokenManager alarm",
                    Api::Gateway,
                    now,
                    async || gateway.read_alarm(triplet).await.map(|a| in_mode(&a, mode).then(String::new)),
                    async || gateway.set_alarm_mode(triplet, mode).await.map(|_| String::new()),
                )
                .await?;
            match done {
                Effected::Yes(_) => {}
                Effected::Later(error) => return Ok(Some(retry_at(now, &error))),
                Effected::Never(error) => {
                    return Err(EngineError::Refused(format!("the alarm of `{triplet}` cannot be changed: {error}")));
                }
            }
        }
        Ok(None)
    }

    /// Nothing fired since the disarming and nothing is armed; else the path is not retired.
    async fn demand_silence(
        &self,
        triplets: &[Triplet],
        since: Timestamp,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        let look = async || -> Result<_, ApiError> {
            let gateway = self.outside.gateway();
            Ok((gateway.list_fires(since).await?, gateway.list_alarms().await?))
        };
        let seen = look().await;
        self.observe(Api::Gateway, now, &seen).await?;
        let (fires, alarms) = match seen {
            Ok(seen) => seen,
            Err(error) => return Ok(Some(retry_at(now, &error))),
        };
        let fired = fires
            .iter()
            .filter(|f| triplets.contains(&f.triplet))
            .map(|f| (f.triplet.clone(), format!("fired at {} after it was disarmed", f.at.to_minute())));
        let armed = of(&alarms, triplets)
            .filter(|a| !in_mode(a, AlarmMode::Disarmed))
            .map(|a| (a.triplet.clone(), "is armed although it was disarmed".to_owned()));
        let zombies: Vec<(Triplet, String)> = fired.chain(armed).collect();
        for (triplet, detail) in &zombies {
            let note = Note { at: now, subject: triplet.to_string(), detail: detail.clone() };
            self.store.add_note("zombie", &note).await?;
        }
        match zombies.first() {
            None => Ok(None),
            Some((triplet, detail)) => {
                Err(EngineError::Refused(format!("zombie: the TokenManager object of `{triplet}` {detail}")))
            }
        }
    }

    /// Neutralises Nango: opts out of revocation upstream, deletes the connections whose triplets
    /// are all settled, removes their tokens from KV, and ends the custody of each triplet.
    ///
    /// # Errors
    /// `Refused` before the DO-alarm path is retired.
    pub async fn retire_nango(&self, now: Timestamp) -> EngineResult<Progress> {
        self.demand_gate(now, "retire nango").await?;
        if self.store.load_meta("retire").await?.as_deref() != Some("done") {
            return Err(EngineError::Refused("the DO-alarm path must be retired first: it is the fallback".to_owned()));
        }
        let source = self.outside.source();
        let rows = self.moving().await?;
        let listed = source.list_connections().await;
        self.observe(Api::Nango, now, &listed).await?;
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => return Ok(Progress::Wait(retry_at(now, &error))),
        };
        for connection in self.store.load_connections().await? {
            let fed: Vec<_> = rows.iter().filter(|t| t.connection == connection.id).collect();
            if fed.is_empty() || fed.iter().any(|t| t.custody.stage != Stage::Settled) {
                continue;
            }
            let (key, id) = (&connection.integration_key, &connection.connection_id);
            let there = listed.iter().any(|c| &c.integration_key == key && &c.connection_id == id);
            let done = self
                .once(
                    &format!("nango-delete:{key}:{id}"),
                    "delete the Nango connection",
                    Api::Nango,
                    now,
                    async || Ok((!there).then(String::new)),
                    async || {
                        // Before the delete: HubSpot's refresh token would be revoked upstream otherwise
                        // (Nango contract §8). Elsewhere the key means nothing.
                        source.merge_metadata(key, id, serde_json::json!({"skipTokenRevocation": true})).await?;
                        source.delete_connection(key, id).await.map(|()| String::new())
                    },
                )
                .await?;
            match done {
                Effected::Yes(_) => {}
                Effected::Later(error) => return Ok(Progress::Wait(retry_at(now, &error))),
                Effected::Never(error) => {
                    return Err(EngineError::Refused(format!("connection `{id}` cannot be deleted: {error}")));
                }
            }
            for row in fed {
                for namespace in [Namespace::Source, Namespace::Target] {
                    let answer = self.outside.cloudflare().delete(namespace, &row.triplet.kv_key()).await;
                    self.observe(Api::Cloudflare, now, &answer).await?;
                    if let Err(error) = answer {
                        return Ok(Progress::Wait(retry_at(now, &error)));
                    }
                }
                self.store.record_custody(&row.triplet, &Event::Retired, ACTOR, now).await?;
            }
        }
        Ok(Progress::Done)
    }
}

fn of<'a>(alarms: &'a [AlarmState], triplets: &'a [Triplet]) -> impl Iterator<Item = &'a AlarmState> {
    alarms.iter().filter(|a| triplets.contains(&a.triplet))
}

fn in_mode(alarm: &AlarmState, mode: AlarmMode) -> bool {
    alarm.mode == mode && (mode != AlarmMode::Disarmed || alarm.alarm_at.is_none())
}
