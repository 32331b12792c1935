//! The drill: one verified triplet of a wave there and back again, before anything depends on it.

use super::super::{Engine, EngineError, EngineResult};
use super::Progress;
use super::moves::{Seen, is_new, ready};
use super::switch::waiting;
use crate::domain::criteria::Note;
use crate::domain::custody::{Permit, Stage};
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;
use crate::ports::{Namespace, Outside};
use crate::store::{StoreError, TripletRow};

/// Where the drill of a wave stands. What it has come to is kept until another one begins.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Drill {
    There(Triplet),
    Back(Triplet),
    /// It went wrong, or was stopped: it only has to come back.
    Undo(Triplet, String),
    Done,
}

impl Drill {
    fn parse(text: &str) -> EngineResult<Option<Self>> {
        let mut words = text.splitn(3, ' ');
        let (state, name, rest) = (words.next().unwrap_or_default(), words.next(), words.next());
        let triplet = || {
            Triplet::parse(name.unwrap_or_default())
                .map_err(|e| StoreError::Corrupt { what: "drill", detail: e.to_string() })
        };
        Ok(match state {
            "done" => Some(Self::Done),
            "there" => Some(Self::There(triplet()?)),
            "back" => Some(Self::Back(triplet()?)),
            "undo" => Some(Self::Undo(triplet()?, rest.unwrap_or_default().to_owned())),
            _ => None,
        })
    }
}

impl std::fmt::Display for Drill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::There(triplet) => write!(f, "there {triplet}"),
            Self::Back(triplet) => write!(f, "back {triplet}"),
            Self::Undo(triplet, reason) => write!(f, "undo {triplet} {reason}"),
            Self::Done => f.write_str("done"),
        }
    }
}

fn key(wave: u32) -> String {
    format!("drill:{wave}")
}

impl<O: Outside> Engine<O> {
    /// Moves the reads of one verified triplet of the wave to the target and back again, with a
    /// smoke test at each end. One that failed is begun anew by the next call.
    ///
    /// # Errors
    /// `Refused` when no triplet can be drilled, when somebody said no, and when the drill failed.
    pub async fn drill(&self, wave: u32, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.drill_step(wave, now).await)
    }

    async fn drill_step(&self, wave: u32, now: Timestamp) -> EngineResult<Progress> {
        let rows = self.wave(wave).await?;
        let Some(drill) = self.load_drill(wave).await? else { return self.begin_drill(wave, &rows, now).await };
        if let Some(at) = self.end_moves(&rows, now).await? {
            return Ok(Progress::Wait(at));
        }
        match drill {
            Drill::Done => Ok(Progress::Done),
            Drill::There(triplet) => self.drill_there(wave, triplet, now).await,
            Drill::Back(triplet) => self.drill_back(wave, triplet, now).await,
            Drill::Undo(triplet, reason) => {
                if let Some(at) = self.reverse_one(&triplet, now).await? {
                    return Ok(Progress::Wait(at));
                }
                self.store.delete_meta(&key(wave)).await?;
                Err(EngineError::Refused(reason))
            }
        }
    }

    async fn begin_drill(&self, wave: u32, rows: &[TripletRow], now: Timestamp) -> EngineResult<Progress> {
        if let Some(at) = self.demand_go(Some(wave), "drill", now).await? {
            return Ok(Progress::Wait(at));
        }
        let Some(row) = rows.iter().find(|t| ready(t)) else {
            return Err(EngineError::Refused(format!(
                "wave {wave} has no verified triplet that is not held, so none can be drilled: `cutover consent status` \
                 says what is missing"
            )));
        };
        self.save_drill(wave, &Drill::There(row.triplet.clone())).await?;
        let later = self.switch_one(row, Permit::Drill, now).await?;
        Ok(Progress::Wait(later.unwrap_or(now.plus_ms(self.config.settle_ms))))
    }

    async fn drill_there(&self, wave: u32, triplet: Triplet, now: Timestamp) -> EngineResult<Progress> {
        let stopped = match self.demand_go(Some(wave), "drill", now).await {
            Err(EngineError::Refused(reason)) => Some(reason),
            other => {
                other?;
                None
            }
        };
        let row = self.store.load_triplet(&triplet).await?;
        if let Some(row) = row.as_ref().filter(|row| ready(row) && stopped.is_none()) {
            // A crash came between the note and the move.
            let later = self.switch_one(row, Permit::Drill, now).await?;
            return Ok(Progress::Wait(later.unwrap_or(now.plus_ms(self.config.settle_ms))));
        }
        if let Some(reason) = stopped {
            // What would be seen does not matter any more: back.
            return self.undo_drill(wave, triplet, reason, now).await;
        }
        let Some(row) = row.filter(|row| row.custody.stage == Stage::Switched) else {
            return self.fail_drill(wave, triplet, "was moved back before it was seen at the target", now).await;
        };
        if let Some(at) = self.visible_at(&[&row], now) {
            return Ok(Progress::Wait(at));
        }
        match self.look_at(&row, Namespace::Target, now).await? {
            Err(at) => Ok(Progress::Wait(at)),
            Ok(Seen::Works) => {
                self.save_drill(wave, &Drill::Back(triplet.clone())).await?;
                let later = self.reverse_one(&triplet, now).await?;
                Ok(Progress::Wait(later.unwrap_or(now.plus_ms(self.config.settle_ms))))
            }
            Ok(Seen::Busy(_)) if is_new(&row, now) => Ok(Progress::Wait(now.plus_ms(super::RETRY_MS))),
            Ok(Seen::NotYet) => Ok(Progress::Wait(now.plus_ms(super::RETRY_MS))),
            Ok(Seen::Busy(status)) => {
                let detail = format!("the provider answered {status} at the target for ten minutes");
                self.fail_drill(wave, triplet, &detail, now).await
            }
            Ok(Seen::Wrong(detail)) => self.fail_drill(wave, triplet, &detail, now).await,
        }
    }

    async fn drill_back(&self, wave: u32, triplet: Triplet, now: Timestamp) -> EngineResult<Progress> {
        if let Some(at) = self.reverse_one(&triplet, now).await? {
            return Ok(Progress::Wait(at));
        }
        let Some(row) = self.store.load_triplet(&triplet).await? else {
            return self.fail_drill(wave, triplet, "is not in the plan any more", now).await;
        };
        if let Some(at) = self.visible_at(&[&row], now) {
            return Ok(Progress::Wait(at));
        }
        match self.look_at(&row, Namespace::Source, now).await? {
            Err(at) => Ok(Progress::Wait(at)),
            Ok(Seen::NotYet) => Ok(Progress::Wait(now.plus_ms(super::RETRY_MS))),
            // Where it reads is what was asked; the source was served before.
            Ok(Seen::Works | Seen::Busy(_)) => {
                self.save_drill(wave, &Drill::Done).await?;
                Ok(Progress::Done)
            }
            Ok(Seen::Wrong(detail)) => self.fail_drill(wave, triplet, &detail, now).await,
        }
    }

    async fn look_at(
        &self,
        row: &TripletRow,
        expected: Namespace,
        now: Timestamp,
    ) -> EngineResult<Result<Seen, Timestamp>> {
        let seen = self.look(&[row], expected, now).await?;
        Ok(seen.map(|mut seen| seen.pop().map_or(Seen::NotYet, |(_, seen)| seen)))
    }

    /// Notes for the gate that a drill went wrong, and brings it back.
    async fn fail_drill(&self, wave: u32, triplet: Triplet, detail: &str, now: Timestamp) -> EngineResult<Progress> {
        let note = Note { at: now, subject: triplet.to_string(), detail: detail.to_owned() };
        self.store.add_note("drill-failed", &note).await?;
        let reason = format!(
            "the drill of wave {wave} failed: `{triplet}`: {detail}; it is read at the source: mend the cause, then \
             drill again"
        );
        self.undo_drill(wave, triplet, reason, now).await
    }

    async fn undo_drill(&self, wave: u32, triplet: Triplet, reason: String, now: Timestamp) -> EngineResult<Progress> {
        self.save_drill(wave, &Drill::Undo(triplet.clone(), reason.clone())).await?;
        if let Some(at) = self.reverse_one(&triplet, now).await? {
            return Ok(Progress::Wait(at));
        }
        self.store.delete_meta(&key(wave)).await?;
        Err(EngineError::Refused(reason))
    }

    /// A drill belongs to its own command until it has come back.
    ///
    /// # Errors
    /// `Refused` while one is under way.
    pub(super) async fn refuse_open_drill(&self, wave: u32, rows: &[TripletRow]) -> EngineResult<()> {
        let open = match self.load_drill(wave).await? {
            Some(Drill::There(triplet) | Drill::Back(triplet) | Drill::Undo(triplet, _)) => Some(triplet),
            _ => rows.iter().find(|row| is_drilled(row)).map(|row| row.triplet.clone()),
        };
        match open {
            None => Ok(()),
            Some(triplet) => Err(EngineError::Refused(format!(
                "a drill of wave {wave} is under way with `{triplet}`: let `cutover switch --wave {wave} --drill` end \
                 (run it again), or take it back with `cutover reverse --wave {wave}`"
            ))),
        }
    }

    /// Somebody moves these triplets back: a drill that is under way with one of them is over.
    pub(super) async fn forget_drills(&self, rows: &[TripletRow]) -> EngineResult<()> {
        for row in rows {
            let Some(wave) = row.wave else { continue };
            let open = match self.load_drill(wave).await? {
                Some(Drill::There(triplet) | Drill::Back(triplet) | Drill::Undo(triplet, _)) => triplet == row.triplet,
                _ => false,
            };
            if open {
                self.store.delete_meta(&key(wave)).await?;
            }
        }
        Ok(())
    }

    async fn load_drill(&self, wave: u32) -> EngineResult<Option<Drill>> {
        let text = self.store.load_meta(&key(wave)).await?.unwrap_or_default();
        Drill::parse(&text)
    }

    async fn save_drill(&self, wave: u32, drill: &Drill) -> EngineResult<()> {
        Ok(self.store.save_meta(&key(wave), &drill.to_string()).await?)
    }
}

/// Whether a triplet is at the target for a drill, or on its way there.
pub(super) fn is_drilled(row: &TripletRow) -> bool {
    row.custody.drill || row.custody.moving.is_some_and(|moving| moving.drill)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_is_read_as_it_was_written_and_an_old_failure_begins_anew() {
        let triplet = Triplet::parse("kahuna:slack:default").unwrap();
        for drill in [
            Drill::There(triplet.clone()),
            Drill::Back(triplet.clone()),
            Drill::Undo(triplet, "it answered 401: mend it".to_owned()),
            Drill::Done,
        ] {
            assert_eq!(Drill::parse(&drill.to_string()).unwrap(), Some(drill));
        }
        assert_eq!(Drill::parse("failed").unwrap(), None);
        assert!(Drill::parse("there nobody").is_err());
    }
}
