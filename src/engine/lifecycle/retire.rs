//! Retiring the DO-alarm path, in stages, each observed before the next.

use std::collections::BTreeSet;

use super::super::{Engine, EngineError, EngineResult};
use super::switch::waiting;
use super::{Effected, Progress, Zombie, retry_at, seen};
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::custody::Stage;
use crate::domain::time::{MINUTE_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::ports::{AlarmMode, AlarmState, GatewayAdmin, GatewayRead, Outside};
use crate::store::TripletRow;

/// An alarm may be a minute late, and a failing one is retried for up to 150 s (Cloudflare contract §5).
const RETRY_TAIL_MS: i64 = 5 * MINUTE_MS;

/// What a no is told that it stops.
const WHAT: &str = "retire do-alarm";

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
        round: u32,
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
            "done" => Self::Done { since: time(1), round: round(2) },
            _ => Self::NotBegun { round: round(1) },
        }
    }

    fn write(self) -> String {
        match self {
            Self::NotBegun { round } => format!("begin {round}"),
            Self::Reporting { until, round } => format!("reporting {} {round}", until.millis()),
            Self::Silent { since, round } => format!("silent {} {round}", since.millis()),
            Self::Done { since, round } => format!("done {} {round}", since.millis()),
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
        self.record_action("retire", serde_json::json!({"event": WHAT, "stage": stage.name()}), now).await
    }

    /// Retires the DO-alarm path of every settled triplet: (a) handlers only report, (b) the last
    /// armed alarm passes, (c) each object is disarmed and read back, then silence is observed and
    /// zombies are looked for. `elsewhere` looks where this engine cannot, right before the verdict.
    ///
    /// # Errors
    /// `Refused` without a fresh gate pass, against a no to any of it, while a triplet is not
    /// settled, or when there is a zombie. After a zombie the next call disarms everything again.
    pub async fn retire_do_alarms(
        &self,
        elsewhere: impl AsyncFnOnce() -> EngineResult<Vec<Zombie>>,
        now: Timestamp,
    ) -> EngineResult<Progress> {
        waiting(self.retire_step(elsewhere, now).await)
    }

    async fn retire_step(
        &self,
        elsewhere: impl AsyncFnOnce() -> EngineResult<Vec<Zombie>>,
        now: Timestamp,
    ) -> EngineResult<Progress> {
        self.demand_gate(now, WHAT).await?;
        let moving = self.moving().await?;
        if let Some(row) = moving.iter().find(|t| t.custody.stage < Stage::Settled) {
            return Err(EngineError::Refused(format!(
                "triplet `{}` is only {}; the DO-alarm path goes last",
                row.triplet, row.custody.stage
            )));
        }
        let settled: Vec<TripletRow> = moving.into_iter().filter(|t| t.custody.stage == Stage::Settled).collect();
        if settled.is_empty() {
            return Ok(Progress::Done);
        }
        if let Some(at) = self.demand_go_with(&settled, WHAT, now).await? {
            return Ok(Progress::Wait(at));
        }
        match self.retire_stage().await? {
            RetireStage::NotBegun { round } => {
                if let Some(at) = self.set_all_forward(&settled, AlarmMode::Report, "report", round, now).await? {
                    return Ok(Progress::Wait(at));
                }
                let alarms = self.outside.gateway().list_alarms().await;
                self.observe(Api::Gateway, now, &alarms).await?;
                let alarms = alarms.map_err(|error| EngineError::Later { at: retry_at(now, &error), error })?;
                let last = of(&alarms, &settled).filter_map(|a| a.alarm_at).max().unwrap_or(now).max(now);
                let until = last.plus_ms(RETRY_TAIL_MS);
                self.enter_stage(RetireStage::Reporting { until, round }, now).await?;
                Ok(Progress::Wait(until))
            }
            RetireStage::Reporting { until, .. } if now < until => Ok(Progress::Wait(until)),
            RetireStage::Reporting { round, .. } => {
                if let Some(at) = self.set_all_forward(&settled, AlarmMode::Disarmed, "disarmed", round, now).await? {
                    return Ok(Progress::Wait(at));
                }
                self.note_last_writes(now).await?;
                self.enter_stage(RetireStage::Silent { since: now, round }, now).await?;
                Ok(Progress::Wait(now.plus_ms(self.config.silence_ms)))
            }
            RetireStage::Silent { since, .. } if now.since(since) < self.config.silence_ms => {
                Ok(Progress::Wait(since.plus_ms(self.config.silence_ms)))
            }
            RetireStage::Silent { since, round } => {
                self.demand_no_zombies(since, elsewhere, round, now).await?;
                self.enter_stage(RetireStage::Done { since, round }, now).await?;
                Ok(Progress::Done)
            }
            RetireStage::Done { since, round } => {
                self.demand_no_zombies(since, elsewhere, round, now).await?;
                Ok(Progress::Done)
            }
        }
    }

    /// Arms the objects again as they were in the soak, where a triplet is not retired yet. The
    /// retirement starts over after it.
    ///
    /// # Errors
    /// `Refused` when a triplet is retired, or its connection is gone: its refresh token is gone from
    /// Nango, and what the object holds may be spent.
    pub async fn restore_do_alarms(&self, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.restore_step(now).await)
    }

    async fn restore_step(&self, now: Timestamp) -> EngineResult<Progress> {
        let round = match self.retire_stage().await? {
            RetireStage::NotBegun { round } => round,
            RetireStage::Reporting { round, .. }
            | RetireStage::Silent { round, .. }
            | RetireStage::Done { round, .. } => round,
        };
        let rows = self.moving().await?;
        if let Some(row) = rows.iter().find(|row| row.custody.stage == Stage::Retired) {
            return Err(EngineError::Refused(format!(
                "triplet `{}` is retired: Nango no longer holds its grant, and there is nothing to fall back to",
                row.triplet
            )));
        }
        self.call_off_retirements(&rows, now).await?;
        for row in &rows {
            let facts = self.catalogue.integration(&row.integration_key);
            let mode = match facts.is_some_and(|facts| facts.tolerates_second_refresher()) {
                true => AlarmMode::Standby,
                false => AlarmMode::Report,
            };
            self.set_alarm(&row.triplet, mode, "restored", round, now).await?;
        }
        self.enter_stage(RetireStage::NotBegun { round: round + 1 }, now).await?;
        Ok(Progress::Done)
    }

    /// Sets the mode of each object. Before each one somebody may have said no. `Some`: paused.
    async fn set_all_forward(
        &self,
        rows: &[TripletRow],
        mode: AlarmMode,
        name: &str,
        round: u32,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        for row in rows {
            let mut fresh = self.store.load_triplets_of(&[row.connection]).await?;
            fresh.retain(|found| found.triplet == row.triplet);
            if let Some(at) = self.demand_go_with(&fresh, WHAT, now).await? {
                return Ok(Some(at));
            }
            self.set_alarm(&row.triplet, mode, name, round, now).await?;
        }
        Ok(None)
    }

    async fn set_alarm(
        &self,
        triplet: &Triplet,
        mode: AlarmMode,
        name: &str,
        round: u32,
        now: Timestamp,
    ) -> EngineResult<()> {
        let gateway = self.outside.gateway();
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
            Effected::Yes(_) => Ok(()),
            Effected::Later(error) => Err(EngineError::Later { at: retry_at(now, &error), error }),
            Effected::Never(error) => {
                Err(EngineError::Refused(format!("the alarm of `{triplet}` cannot be changed: {error}")))
            }
        }
    }

    /// Nothing fired since the disarming, nothing is armed, nobody writes or listens any more.
    async fn demand_no_zombies(
        &self,
        since: Timestamp,
        elsewhere: impl AsyncFnOnce() -> EngineResult<Vec<Zombie>>,
        round: u32,
        now: Timestamp,
    ) -> EngineResult<()> {
        let found = self.sweep(Some(since), now).await?;
        let mut found = found.map_err(|error| EngineError::Later { at: retry_at(now, &error), error })?;
        found.extend(elsewhere().await?);
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
}

fn of<'a>(alarms: &'a [AlarmState], rows: &'a [TripletRow]) -> impl Iterator<Item = &'a AlarmState> {
    let triplets: BTreeSet<&Triplet> = rows.iter().map(|row| &row.triplet).collect();
    alarms.iter().filter(move |a| triplets.contains(&a.triplet))
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
            RetireStage::Done { since: at, round: 4 },
        ] {
            assert_eq!(RetireStage::read(&stage.write()), stage);
        }
        assert_eq!(RetireStage::read(""), RetireStage::NotBegun { round: 1 });
    }
}
