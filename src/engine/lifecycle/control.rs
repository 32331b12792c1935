//! What people say while an operation runs. A "no" always wins over what goes forward, and never
//! stops what goes back.

use std::collections::BTreeSet;

use super::super::{Engine, EngineError, EngineResult};
use crate::domain::custody::Event;
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::ports::Outside;
use crate::store::{ControlRow, Decision, Scope, Store, TripletRow};

/// How soon a paused operation looks whether it may go on.
const PAUSE_LOOK_MS: i64 = 2 * SECOND_MS;

/// Claimed by a command that goes back, while another operation runs.
const GIVE_WAY: &str = "give-way";

/// How long it is asked for at a time: who asks and dies stands in nobody's way for longer.
const GIVE_WAY_MS: i64 = 20 * SECOND_MS;

/// Where the pace of operations is kept, in milliseconds.
const THROTTLE: &str = "throttle_ms";

impl<O: Outside> Engine<O> {
    /// The "no" that stops work on `wave`, if somebody said one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn said_no(&self, wave: Option<u32>) -> EngineResult<Option<ControlRow>> {
        let controls = self.store.load_controls().await?;
        Ok(controls.into_iter().find(|row| row.decision == Decision::No && row.scope.covers(wave)))
    }

    /// Whether an operation on `wave` may go forward. `Some`: it is paused; look again then.
    ///
    /// # Errors
    /// `Refused` when somebody said no, or goes back.
    pub async fn demand_go(&self, wave: Option<u32>, what: &str, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        self.demand_way(what, now).await?;
        self.demand_leave(wave, what, now).await
    }

    /// Whether nobody waits to go back: whatever runs gives way to that.
    ///
    /// # Errors
    /// `Refused` when somebody does.
    pub async fn demand_way(&self, what: &str, now: Timestamp) -> EngineResult<()> {
        if self.store.is_claimed_elsewhere(GIVE_WAY, now).await? {
            return Err(EngineError::Refused(format!(
                "{what} gives way to a command that goes back: look at `cutover status`, then run it again"
            )));
        }
        Ok(())
    }

    /// Asks the operation that runs in another process to give way, for a short time.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn ask_way(&self, now: Timestamp) -> EngineResult<()> {
        self.store.claim(GIVE_WAY, now, now.plus_ms(GIVE_WAY_MS)).await?;
        Ok(())
    }

    /// The way is free, or is not asked for any more.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn take_way(&self) -> EngineResult<()> {
        Ok(self.store.release(GIVE_WAY).await?)
    }

    /// Whether nobody stopped work on `wave`. `Some`: it is paused; look again then.
    ///
    /// # Errors
    /// `Refused` when somebody said no.
    pub(super) async fn demand_leave(
        &self,
        wave: Option<u32>,
        what: &str,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        let controls = self.store.load_controls().await?;
        let found = |decision| controls.iter().find(|row| row.decision == decision && row.scope.covers(wave));
        if let Some(ControlRow { scope, reason, actor, at, .. }) = found(Decision::No) {
            return Err(EngineError::Refused(format!(
                "{actor} said no to `{scope}` at {}: {reason}; {what} stops here, and `cutover ctl go{}` lets it go on",
                at.to_minute(),
                match scope {
                    Scope::All => String::new(),
                    Scope::Wave(n) => format!(" --wave {n}"),
                }
            )));
        }
        Ok(found(Decision::Pause).map(|_| now.plus_ms(PAUSE_LOOK_MS)))
    }

    /// The same for work that concerns all of `rows` at once: what was said to any of their waves
    /// counts, and so does a hold.
    pub(super) async fn demand_go_with(
        &self,
        rows: &[TripletRow],
        what: &str,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        let waves: BTreeSet<Option<u32>> = rows.iter().map(|row| row.wave).collect();
        for wave in waves {
            if let Some(at) = self.demand_go(wave, what, now).await? {
                return Ok(Some(at));
            }
        }
        match rows.iter().find_map(|row| Some((&row.triplet, row.custody.held.as_ref()?))) {
            Some((triplet, reason)) => Err(EngineError::Refused(format!(
                "`{triplet}` is held: {reason}; {what} stops here, and `cutover ctl go --triplet {triplet}` lets it go on"
            ))),
            None => Ok(None),
        }
    }

    /// The same for work on everything that moves.
    ///
    /// # Errors
    /// `Refused` when somebody said no to any of it.
    pub async fn demand_go_everywhere(&self, what: &str, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        self.demand_go_with(&self.moving().await?, what, now).await
    }

    /// The least time between two triplets of an operation, in milliseconds; 0: none.
    pub(super) async fn throttle_ms(&self) -> EngineResult<i64> {
        Control::new(&self.store).throttle_ms().await
    }
}

/// A person's word, written where whatever runs will find it. Needs the state and nothing else.
pub struct Control<'a> {
    store: &'a Store,
}

impl<'a> Control<'a> {
    pub fn new(store: &'a Store) -> Self {
        Self { store }
    }

    /// Takes a person's word about a part of the cutover, for the audit trail as well.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn decide(&self, row: &ControlRow) -> EngineResult<()> {
        self.store.save_control(row).await?;
        let json = serde_json::json!({"event": row.decision.name(), "reason": row.reason}).to_string();
        Ok(self.store.record_action(&row.actor, &row.scope.to_string(), &json, row.at).await?)
    }

    /// Takes a decision back. Whether there was one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn undecide(&self, scope: Scope, decision: Decision, actor: &str, now: Timestamp) -> EngineResult<bool> {
        let was = self.store.delete_control(scope, decision).await?;
        if was {
            let json = serde_json::json!({"event": format!("{} taken back", decision.name())}).to_string();
            self.store.record_action(actor, &scope.to_string(), &json, now).await?;
        }
        Ok(was)
    }

    /// Holds or releases one triplet.
    ///
    /// # Errors
    /// `Refused` by the state machine.
    pub async fn hold(
        &self,
        triplet: &Triplet,
        reason: Option<String>,
        actor: &str,
        now: Timestamp,
    ) -> EngineResult<()> {
        let event = match reason {
            Some(reason) => Event::Held { reason },
            None => Event::Released,
        };
        self.store.record_custody(triplet, &event, actor, now).await?;
        Ok(())
    }

    /// The least time between two triplets of an operation, in milliseconds; 0: none.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn throttle_ms(&self) -> EngineResult<i64> {
        Ok(self.store.load_meta(THROTTLE).await?.and_then(|ms| ms.parse().ok()).unwrap_or(0))
    }

    /// Sets the least time between two triplets; 0 takes it away.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn set_throttle(&self, ms: i64, why: &str, actor: &str, now: Timestamp) -> EngineResult<()> {
        self.store.save_meta(THROTTLE, &ms.max(0).to_string()).await?;
        let json = serde_json::json!({"event": "throttle", "ms": ms.max(0), "reason": why}).to_string();
        Ok(self.store.record_action(actor, "all", &json, now).await?)
    }

    /// Takes a person's answer to what looking could not tell: the effect gave `result`, or (`None`)
    /// it did not happen.
    ///
    /// # Errors
    /// `Refused` when there is no such question.
    pub async fn answer(&self, intent: &str, result: Option<&str>, actor: &str, now: Timestamp) -> EngineResult<()> {
        if !self.store.answer_ambiguous(intent, result).await? {
            return Err(EngineError::Refused(format!("nobody asks about `{intent}`")));
        }
        let json = serde_json::json!({"event": "answered", "result": result}).to_string();
        Ok(self.store.record_action(actor, intent, &json, now).await?)
    }
}
