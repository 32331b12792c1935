//! Retiring the DO-alarm path and the Nango connections, in stages, each observed before the next.

use super::super::{Engine, EngineError, EngineResult};
use super::switch::waiting;
use super::{ACTOR, Effected, Progress, Zombie, retry_at, seen};
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::custody::{Event, Stage};
use crate::domain::time::{MINUTE_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::ports::{
    AlarmMode, AlarmState, GatewayAdmin, GatewayRead, KvWrite, Namespace, Outside, SourceCustody, SourceRead,
};
use crate::store::{ConnectionRow, TripletRow};

/// An alarm may be a minute late, and a failing one is retried for up to 150 s (Cloudflare contract §5).
const RETRY_TAIL_MS: i64 = 5 * MINUTE_MS;

/// Where the retirement of the DO-alarm path stands, as the store keeps it.
const STATE: &str = "retire";

/// A stage of the retirement. `round` grows when it has to be done again, so that what was done in
/// an earlier round is looked at anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetireStage {
    NotBegun {
        round: u32,
    },
    /// Handlers only report; the last alarm that is still set passes at `until`.
    Reporting {
        until: Timestamp,
        round: u32,
    },
    /// Every object is disarmed and was read back, at `since`.
    Silent {
        since: Timestamp,
        round: u32,
    },
    /// Silence was observed and no zombie found.
    Done {
        since: Timestamp,
    },
}

impl RetireStage {
    fn read(text: &str) -> Self {
        let words: Vec<&str> = text.split(' ').collect();
        let time = |i: usize| Timestamp::from_millis(words.get(i).and_then(|w| w.parse().ok()).unwrap_or(0));
        let round = |i: usize| words.get(i).and_then(|w| w.parse().ok()).unwrap_or(1);
        match words[0] {
            "reporting" => Self::Reporting { until: time(1), round: round(2) },
            "silent" => Self::Silent { since: time(1), round: round(2) },
            "done" => Self::Done { since: time(1) },
            _ => Self::NotBegun { round: round(1) },
        }
    }

    fn write(self) -> String {
        match self {
            Self::NotBegun { round } => format!("begin {round}"),
            Self::Reporting { until, round } => format!("reporting {} {round}", until.millis()),
            Self::Silent { since, round } => format!("silent {} {round}", since.millis()),
            Self::Done { since } => format!("done {}", since.millis()),
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::NotBegun { .. } => "not begun",
            Self::Reporting { .. } => "reporting",
            Self::Silent { .. } => "silent",
            Self::Done { .. } => "done",
        }
    }
}

impl<O: Outside> Engine<O> {
    /// Where the retirement of the DO-alarm path stands.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn retire_stage(&self) -> EngineResult<RetireStage> {
        Ok(RetireStage::read(&self.store.load_meta(STATE).await?.unwrap_or_default()))
    }

    async fn enter_stage(&self, stage: RetireStage, now: Timestamp) -> EngineResult<()> {
        self.store.save_meta(STATE, &stage.write()).await?;
        let json = serde_json::json!({"event": "retire do-alarm", "stage": stage.name()}).to_string();
        Ok(self.store.record_action(ACTOR, "retire", &json, now).await?)
    }

    /// Retires the DO-alarm path of every settled triplet: (a) handlers only report, (b) the last
    /// armed alarm passes, (c) each object is disarmed and read back, then silence is observed and
    /// zombies are looked for. `elsewhere`: what was found where this engine cannot look.
    ///
    /// # Errors
    /// `Refused` without a fresh gate pass, while a triplet is not settled, or when there is a
    /// zombie. After a zombie the next call disarms everything again.
    pub async fn retire_do_alarms(&self, elsewhere: &[Zombie], now: Timestamp) -> EngineResult<Progress> {
        waiting(self.retire_step(elsewhere, now).await)
    }

    async fn retire_step(&self, elsewhere: &[Zombie], now: Timestamp) -> EngineResult<Progress> {
        self.demand_gate(now, "retire do-alarm").await?;
        let moving = self.moving().await?;
        if let Some(row) = moving.iter().find(|t| t.custody.stage < Stage::Settled) {
            return Err(EngineError::Refused(format!(
                "triplet `{}` is only {}; the DO-alarm path goes last",
                row.triplet, row.custody.stage
            )));
        }
        if let Some(at) = self.demand_go(None, "retire do-alarm", now).await? {
            return Ok(Progress::Wait(at));
        }
        let triplets: Vec<Triplet> =
            moving.iter().filter(|t| t.custody.stage == Stage::Settled).map(|t| t.triplet.clone()).collect();
        if triplets.is_empty() {
            return Ok(Progress::Done);
        }
        match self.retire_stage().await? {
            RetireStage::NotBegun { round } => {
                self.set_all(&triplets, &|_| AlarmMode::Report, "report", round, now).await?;
                let alarms = self.outside.gateway().list_alarms().await;
                self.observe(Api::Gateway, now, &alarms).await?;
                let alarms = alarms.map_err(|error| EngineError::Later { at: retry_at(now, &error), error })?;
                let last = of(&alarms, &triplets).filter_map(|a| a.alarm_at).max().unwrap_or(now).max(now);
                let until = last.plus_ms(RETRY_TAIL_MS);
                self.enter_stage(RetireStage::Reporting { until, round }, now).await?;
                Ok(Progress::Wait(until))
            }
            RetireStage::Reporting { until, .. } if now < until => Ok(Progress::Wait(until)),
            RetireStage::Reporting { round, .. } => {
                self.set_all(&triplets, &|_| AlarmMode::Disarmed, "disarmed", round, now).await?;
                self.note_last_writes(now).await?;
                self.enter_stage(RetireStage::Silent { since: now, round }, now).await?;
                Ok(Progress::Wait(now.plus_ms(self.config.silence_ms)))
            }
            RetireStage::Silent { since, .. } if now.since(since) < self.config.silence_ms => {
                Ok(Progress::Wait(since.plus_ms(self.config.silence_ms)))
            }
            RetireStage::Silent { since, round } => {
                self.demand_no_zombies(Some(since), elsewhere, round, now).await?;
                self.enter_stage(RetireStage::Done { since }, now).await?;
                Ok(Progress::Done)
            }
            RetireStage::Done { since } => {
                self.demand_no_zombies(Some(since), elsewhere, 1, now).await?;
                Ok(Progress::Done)
            }
        }
    }

    /// Arms the objects again as they were in the soak, where a triplet is not retired yet. The
    /// retirement starts over after it.
    ///
    /// # Errors
    /// `Refused` when a triplet is retired: its refresh token is gone from Nango, and what the
    /// object holds may be spent.
    pub async fn restore_do_alarms(&self, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.restore_step(now).await)
    }

    async fn restore_step(&self, now: Timestamp) -> EngineResult<Progress> {
        let round = match self.retire_stage().await? {
            RetireStage::NotBegun { round } => round,
            RetireStage::Reporting { round, .. } | RetireStage::Silent { round, .. } => round,
            RetireStage::Done { .. } => 1,
        };
        let rows = self.moving().await?;
        if let Some(row) = rows.iter().find(|row| row.custody.stage == Stage::Retired) {
            return Err(EngineError::Refused(format!(
                "triplet `{}` is retired: Nango no longer holds its grant, and there is nothing to fall back to",
                row.triplet
            )));
        }
        let triplets: Vec<Triplet> = rows.iter().map(|row| row.triplet.clone()).collect();
        let mode = |triplet: &Triplet| {
            let row = rows.iter().find(|row| &row.triplet == triplet);
            let facts = row.and_then(|row| self.catalogue.integration(&row.integration_key));
            if facts.is_some_and(|facts| facts.tolerates_second_refresher()) {
                AlarmMode::Standby
            } else {
                AlarmMode::Report
            }
        };
        self.set_all(&triplets, &mode, "restored", round, now).await?;
        self.enter_stage(RetireStage::NotBegun { round: round + 1 }, now).await?;
        Ok(Progress::Done)
    }

    async fn set_all(
        &self,
        triplets: &[Triplet],
        mode: &dyn Fn(&Triplet) -> AlarmMode,
        name: &str,
        round: u32,
        now: Timestamp,
    ) -> EngineResult<()> {
        let gateway = self.outside.gateway();
        for triplet in triplets {
            let mode = mode(triplet);
            let done = self
                .once(
                    &format!("alarm:{triplet}:{name}:{round}"),
                    "change the mode of the TokenManager alarm",
                    Api::Gateway,
                    now,
                    async || gateway.read_alarm(triplet).await.map(|a| seen(in_mode(&a, mode))),
                    async || gateway.set_alarm_mode(triplet, mode).await.map(|_| String::new()),
                )
                .await?;
            match done {
                Effected::Yes(_) => {}
                Effected::Later(error) => return Err(EngineError::Later { at: retry_at(now, &error), error }),
                Effected::Never(error) => {
                    return Err(EngineError::Refused(format!("the alarm of `{triplet}` cannot be changed: {error}")));
                }
            }
        }
        Ok(())
    }

    /// Nothing fired since the disarming, nothing is armed, nobody writes or listens any more.
    async fn demand_no_zombies(
        &self,
        since: Option<Timestamp>,
        elsewhere: &[Zombie],
        round: u32,
        now: Timestamp,
    ) -> EngineResult<()> {
        let found = self.sweep(since, now).await?;
        let mut found = found.map_err(|error| EngineError::Later { at: retry_at(now, &error), error })?;
        found.extend_from_slice(elsewhere);
        if found.is_empty() {
            return Ok(());
        }
        for zombie in &found {
            let detail = format!("{}: {}", zombie.kind.name(), zombie.detail);
            let note = Note { at: now, subject: zombie.subject.clone(), detail };
            self.store.add_note("zombie", &note).await?;
        }
        // Everything is disarmed and watched again, once people did something about it.
        self.enter_stage(RetireStage::NotBegun { round: round + 1 }, now).await?;
        let listed: Vec<String> =
            found.iter().map(|z| format!("zombie {}: `{}` {}", z.kind.name(), z.subject, z.detail)).collect();
        Err(EngineError::Refused(format!("the DO-alarm path is not retired: {}", listed.join("; "))))
    }

    /// Readies Nango for its end, which can be undone: opts every connection out of the revocation
    /// upstream that a delete would cause.
    ///
    /// # Errors
    /// `Refused` before the DO-alarm path is retired.
    pub async fn prepare_nango(&self, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.opt_out_step(true, now).await)
    }

    /// Undoes [`Engine::prepare_nango`] for the connections that are still there.
    ///
    /// # Errors
    /// `Refused` when Nango refuses it.
    pub async fn undo_prepare_nango(&self, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.opt_out_step(false, now).await)
    }

    async fn opt_out_step(&self, out: bool, now: Timestamp) -> EngineResult<Progress> {
        if out {
            self.demand_retirable("retire nango", now).await?;
        }
        let source = self.outside.source();
        for (connection, _) in self.settled_connections().await? {
            let id = format!("nango-opt-out:{}:{}", connection.integration_key, connection.connection_id);
            if (self.store.load_meta(&id).await?.is_some()) == out {
                continue;
            }
            let metadata = serde_json::json!({"skipTokenRevocation": out});
            let answer = source.merge_metadata(&connection.integration_key, &connection.connection_id, metadata).await;
            self.observe(Api::Nango, now, &answer).await?;
            self.judge_nango(&connection, answer, now)?;
            match out {
                true => self.store.save_meta(&id, &now.millis().to_string()).await?,
                false => self.store.delete_meta(&id).await?,
            }
        }
        Ok(Progress::Done)
    }

    fn judge_nango(
        &self,
        connection: &ConnectionRow,
        answer: crate::ports::ApiResult<()>,
        now: Timestamp,
    ) -> EngineResult<()> {
        match answer {
            Ok(()) => Ok(()),
            Err(error) if error.is_transient() => Err(EngineError::Later { at: retry_at(now, &error), error }),
            Err(error) => Err(EngineError::Refused(format!(
                "connection `{}` of `{}` cannot be retired: {error}",
                connection.connection_id, connection.integration_key
            ))),
        }
    }

    async fn demand_retirable(&self, what: &str, now: Timestamp) -> EngineResult<Timestamp> {
        let passed_at = self.demand_gate(now, what).await?;
        if !matches!(self.retire_stage().await?, RetireStage::Done { .. }) {
            return Err(EngineError::Refused("the DO-alarm path must be retired first: it is the fallback".to_owned()));
        }
        Ok(passed_at)
    }

    /// Connections of which every triplet that moves is settled (some may be retired already), with
    /// those triplets.
    async fn settled_connections(&self) -> EngineResult<Vec<(ConnectionRow, Vec<TripletRow>)>> {
        let rows = self.moving().await?;
        Ok(self
            .store
            .load_connections()
            .await?
            .into_iter()
            .map(|connection| {
                let fed: Vec<TripletRow> = rows.iter().filter(|t| t.connection == connection.id).cloned().collect();
                (connection, fed)
            })
            .filter(|(_, fed)| !fed.is_empty() && fed.iter().all(|t| t.custody.stage >= Stage::Settled))
            .filter(|(_, fed)| fed.iter().any(|t| t.custody.stage == Stage::Settled))
            .collect())
    }

    /// Neutralises Nango: opts out of revocation upstream, deletes the connections whose triplets
    /// are all settled, removes their tokens from KV, and ends the custody of each triplet.
    ///
    /// # Errors
    /// `Refused` before the DO-alarm path is retired, or without a fresh gate pass.
    pub async fn retire_nango(&self, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.retire_nango_step(now).await)
    }

    async fn retire_nango_step(&self, now: Timestamp) -> EngineResult<Progress> {
        let passed_at = self.demand_retirable("retire nango", now).await?;
        // Before any delete: HubSpot's refresh token would be revoked upstream otherwise
        // (Nango contract §8). Elsewhere the key means nothing.
        self.opt_out_step(true, now).await?;
        let source = self.outside.source();
        let listed = source.list_connections().await;
        self.observe(Api::Nango, now, &listed).await?;
        let listed = listed.map_err(|error| EngineError::Later { at: retry_at(now, &error), error })?;
        for (connection, fed) in self.settled_connections().await? {
            if let Some(at) = self.demand_go(fed.first().and_then(|t| t.wave), "retire nango", now).await? {
                return Ok(Progress::Wait(at));
            }
            let (key, id) = (&connection.integration_key, &connection.connection_id);
            let there = listed.iter().any(|c| &c.integration_key == key && &c.connection_id == id);
            let done = self
                .once(
                    &format!("nango-delete:{key}:{id}"),
                    "delete the Nango connection",
                    Api::Nango,
                    now,
                    async || Ok(seen(!there)),
                    async || source.delete_connection(key, id).await.map(|()| String::new()),
                )
                .await?;
            match done {
                Effected::Yes(_) => {}
                Effected::Later(error) => return Err(EngineError::Later { at: retry_at(now, &error), error }),
                Effected::Never(error) => self.judge_nango(&connection, Err(error), now)?,
            }
            for row in fed.iter().filter(|row| row.custody.stage == Stage::Settled) {
                for namespace in [Namespace::Source, Namespace::Target] {
                    let answer = self.outside.cloudflare().delete(namespace, &row.triplet.kv_key()).await;
                    self.observe(Api::Cloudflare, now, &answer).await?;
                    answer.map_err(|error| EngineError::Later { at: retry_at(now, &error), error })?;
                }
                self.store.record_custody(&row.triplet, &Event::Retired { at: now, passed_at }, ACTOR, now).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_reads_back_as_written() {
        let at = Timestamp::from_millis(7);
        for stage in [
            RetireStage::NotBegun { round: 3 },
            RetireStage::Reporting { until: at, round: 2 },
            RetireStage::Silent { since: at, round: 1 },
            RetireStage::Done { since: at },
        ] {
            assert_eq!(RetireStage::read(&stage.write()), stage);
        }
        assert_eq!(RetireStage::read(""), RetireStage::NotBegun { round: 1 });
    }
}
