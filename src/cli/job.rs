//! The operations on an applied plan, as the commands name them.

use super::elsewhere::Elsewhere;
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;
use crate::engine::{ConsentStart, Engine, EngineError, EngineResult, Progress, Reversal, SwitchTerms};
use crate::plan::Plan;
use crate::ports::Outside;
use crate::store::Scope;

/// An operation on the applied plan.
pub enum Job {
    Apply(Box<Plan>),
    Consent,
    FollowConsents,
    /// Makes a link for one person; a real one is shown and not driven.
    Link(Triplet),
    Drill(u32),
    Switch {
        wave: u32,
        reverse_window_ms: Option<i64>,
    },
    Reverse(Reversal),
    Settle,
    RetireDoAlarm(Elsewhere),
    Restore,
    PrepareNango,
    UndoNango,
    RetireNango,
}

impl Job {
    /// As hooks and reports call it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Apply(_) => "apply",
            Self::Consent | Self::FollowConsents | Self::Link(_) => "consent",
            Self::Drill(_) => "drill",
            Self::Switch { .. } => "switch",
            Self::Reverse(_) => "reverse",
            Self::Settle => "settle",
            Self::RetireDoAlarm(_) => "retire-do-alarm",
            Self::Restore => "retire-restore",
            Self::PrepareNango => "retire-nango-prepare",
            Self::UndoNango => "retire-nango-undo",
            Self::RetireNango => "retire-nango",
        }
    }

    /// The one wave that it is about.
    pub const fn wave(&self) -> Option<u32> {
        match self {
            Self::Drill(n) | Self::Switch { wave: n, .. } | Self::Reverse(Reversal::Wave(n)) => Some(*n),
            _ => None,
        }
    }

    /// Whether a "no" stops it: going back is never stopped.
    pub const fn goes_forward(&self) -> bool {
        !matches!(self, Self::Reverse(_) | Self::Restore | Self::UndoNango)
    }

    /// What the audit trail says that it was about.
    pub fn subject(&self) -> String {
        match self {
            Self::Reverse(Reversal::Triplet(triplet)) => triplet.to_string(),
            _ => self.wave().map_or(Scope::All, Scope::Wave).to_string(),
        }
    }

    /// Whether nobody said no to it while it waits.
    ///
    /// # Errors
    /// `Refused` when somebody did, or goes back.
    pub async fn demand_go<O: Outside>(&self, engine: &Engine<O>, now: Timestamp) -> EngineResult<()> {
        match self {
            // The objects are retired together.
            Self::RetireDoAlarm(_) => engine.demand_go_everywhere(self.name(), now).await?,
            _ if self.goes_forward() => engine.demand_go(self.wave(), self.name(), now).await?,
            _ => None,
        };
        Ok(())
    }

    /// Does what can be done at `now`. `asks`: somebody is asked when a canary has moved.
    ///
    /// # Errors
    /// As the operation.
    pub async fn step<O: Outside>(&self, engine: &Engine<O>, asks: bool, now: Timestamp) -> EngineResult<Progress> {
        match self {
            Self::Apply(plan) => engine.apply(plan, now).await,
            Self::Consent => engine.consent(now).await,
            Self::FollowConsents => engine.follow_consents(now).await,
            Self::Link(triplet) => match engine.start_consent(triplet, now).await? {
                ConsentStart::Link { .. } | ConsentStart::Done(_) => Ok(Progress::Done),
                ConsentStart::Later(at) => Ok(Progress::Wait(at)),
                ConsentStart::Refused(reason) => {
                    Err(EngineError::Refused(format!("no link for `{triplet}`: {reason}")))
                }
            },
            Self::Drill(wave) => engine.drill(*wave, now).await,
            Self::Switch { wave, reverse_window_ms } => {
                let terms = SwitchTerms { reverse_window_ms: *reverse_window_ms, ask_after_canary: asks };
                engine.switch_on(*wave, terms, now).await
            }
            Self::Reverse(what) => engine.reverse(what, now).await,
            Self::Settle => engine.settle(now).await,
            Self::RetireDoAlarm(elsewhere) => engine.retire_do_alarms(async || elsewhere.look(now).await, now).await,
            Self::Restore => engine.restore_do_alarms(now).await,
            Self::PrepareNango => engine.prepare_nango(now).await,
            Self::UndoNango => engine.undo_prepare_nango(now).await,
            Self::RetireNango => engine.retire_nango(now).await,
        }
    }
}
