//! The switch of a wave: what has begun is ended and tested first; then one canary, then the rest.
//! Where a wave stands is read from custody; only who its canary is, and on which terms, is kept.

use serde::{Deserialize, Serialize};

use super::super::{Engine, EngineError, EngineResult};
use super::consent::Served;
use super::moves::{Seen, VISIBLE_WITHIN_MS, is_new, ready};
use super::{Progress, actor};
use crate::domain::custody::{Event, Permit, Stage};
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;
use crate::ports::{Namespace, Outside};
use crate::store::{StoreError, TripletRow};

/// What whoever switches a wave says beside its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwitchTerms {
    /// For how long the moves that are still to come can be reversed, in milliseconds. `None`: as
    /// was said before, else the policy's.
    pub reverse_window_ms: Option<i64>,
    /// Somebody is asked when the canary has moved, and tells [`Engine::agree_to_canary`].
    pub ask_after_canary: bool,
}

/// A switch of a wave that is under way, from its canary until nothing is left to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Round {
    canary: Triplet,
    reverse_window_ms: Option<i64>,
    /// The rest moves only when somebody agreed.
    asks: bool,
    agreed: bool,
}

impl<O: Outside> Engine<O> {
    /// The waves of the applied plan, in order.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn waves(&self) -> EngineResult<Vec<u32>> {
        let mut waves: Vec<u32> = self.moving().await?.iter().filter_map(|t| t.wave).collect();
        waves.sort_unstable();
        waves.dedup();
        Ok(waves)
    }

    /// The triplets of a wave; there are some.
    pub(super) async fn wave(&self, n: u32) -> EngineResult<Vec<TripletRow>> {
        let rows: Vec<TripletRow> = self.moving().await?.into_iter().filter(|t| t.wave == Some(n)).collect();
        if rows.is_empty() {
            let known: Vec<String> = self.waves().await?.iter().map(u32::to_string).collect();
            return Err(EngineError::Refused(format!("there is no wave {n}; the plan has {}", known.join(", "))));
        }
        Ok(rows)
    }

    /// The shortest reverse window that is worth a promise: until a move is seen to work, at the latest.
    pub fn reverse_window_min_ms(&self) -> i64 {
        VISIBLE_WITHIN_MS + self.config.settle_ms
    }

    /// Moves the reads of a wave to the target on the terms that were said before, if any.
    ///
    /// # Errors
    /// As [`Engine::switch_on`].
    pub async fn switch(&self, wave: u32, now: Timestamp) -> EngineResult<Progress> {
        self.switch_on(wave, SwitchTerms::default(), now).await
    }

    /// Moves the reads of a wave to the target: one canary first, then the rest, each followed by
    /// a smoke test. A triplet whose reads go wrong goes back and is held.
    ///
    /// # Errors
    /// `Refused` without a fresh gate pass when something is to move, while a drill of the wave is
    /// under way, and when reads went wrong.
    pub async fn switch_on(&self, wave: u32, terms: SwitchTerms, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.switch_step(wave, terms, now).await)
    }

    async fn switch_step(&self, wave: u32, terms: SwitchTerms, now: Timestamp) -> EngineResult<Progress> {
        let rows = self.wave(wave).await?;
        self.refuse_open_drill(wave, &rows).await?;
        // What has begun is ended and tested, whatever the gate says by now.
        if let Some(at) = self.end_moves(&rows, now).await? {
            return Ok(Progress::Wait(at));
        }
        // Held and on its way: whoever stopped it could not say so, or was cut off.
        let stopped = rows.iter().filter(|row| row.custody.moving.is_some());
        let stopped = stopped.filter_map(|row| Some(format!("`{}` ({})", row.triplet, row.custody.held.as_ref()?)));
        moved_back(&stopped.collect::<Vec<_>>())?;
        let tested_at = self.test_moves(&self.wave(wave).await?, now).await?;
        if let Some(at) = self.demand_go(Some(wave), "switch", now).await? {
            return Ok(Progress::Wait(at));
        }
        let rows = self.wave(wave).await?;
        let there = |row: &TripletRow| row.custody.stage >= Stage::Switched;
        let mut round = self.load_round(wave).await?;
        if let Some(canary) = round.as_ref().and_then(|r| rows.iter().find(|row| row.triplet == r.canary)) {
            if canary.custody.untested {
                return Ok(Progress::Wait(tested_at.unwrap_or(now.plus_ms(self.config.settle_ms))));
            }
            if !there(canary) && !ready(canary) {
                self.forget_round(Some(wave)).await?;
                round = None;
            }
        }
        if !rows.iter().any(ready) && round.as_ref().is_none_or(|round| !round.asks || round.agreed) {
            if let Some(at) = tested_at {
                return Ok(Progress::Wait(at));
            }
            self.forget_round(Some(wave)).await?;
            return match rows.iter().any(there) {
                true => Ok(Progress::Done),
                false => Err(nothing_moves(wave, &rows)),
            };
        }
        let permit = Permit::Pass { at: self.demand_gate(now, "switch").await? };
        let round = match round {
            Some(round) => self.take_terms(wave, round, terms, now).await?,
            None => return self.move_canary(wave, &rows, permit, terms, now).await,
        };
        if rows.iter().any(|row| row.triplet == round.canary && ready(row)) {
            // A crash came between the note and the move.
            return self.move_canary(wave, &rows, permit, terms, now).await;
        }
        if round.asks && !round.agreed {
            return match terms.ask_after_canary {
                true => Ok(Progress::Wait(now)),
                false => Err(EngineError::Refused(format!(
                    "the canary of wave {wave}, `{}`, is at the target, and the hook `canary-switch` has not agreed to \
                     the rest: name its folder as `--hooks`, or reverse the wave",
                    round.canary
                ))),
            };
        }
        self.move_rest(wave, &rows, permit, now).await
    }

    /// Moves the first of these triplets that the target can serve.
    async fn move_canary(
        &self,
        wave: u32,
        rows: &[TripletRow],
        permit: Permit,
        terms: SwitchTerms,
        now: Timestamp,
    ) -> EngineResult<Progress> {
        for row in rows.iter().filter(|row| ready(row)) {
            if !self.target_serves(row, now).await? {
                continue;
            }
            let canary = row.triplet.clone();
            let round = match self.load_round(wave).await? {
                Some(before) => Round { canary, ..before },
                None => Round { canary, reverse_window_ms: None, asks: false, agreed: false },
            };
            self.save_round(wave, &round).await?;
            self.take_terms(wave, round, terms, now).await?;
            let later = self.switch_one(row, permit, now).await?;
            return Ok(Progress::Wait(later.unwrap_or(now.plus_ms(self.config.settle_ms))));
        }
        self.forget_round(Some(wave)).await?;
        Err(nothing_moves(wave, &self.wave(wave).await?))
    }

    /// Moves what is left of a wave, at the pace that a person set.
    async fn move_rest(
        &self,
        wave: u32,
        rows: &[TripletRow],
        permit: Permit,
        now: Timestamp,
    ) -> EngineResult<Progress> {
        let pace_ms = self.throttle_ms().await?;
        let mut left = rows.iter().filter(|row| ready(row)).peekable();
        while let Some(row) = left.next() {
            if let Some(at) = self.demand_go(Some(wave), "switch", now).await? {
                return Ok(Progress::Wait(at));
            }
            if !self.target_serves(row, now).await? {
                continue;
            }
            if let Some(at) = self.switch_one(row, permit, now).await? {
                return Ok(Progress::Wait(at));
            }
            if pace_ms > 0 && left.peek().is_some() {
                return Ok(Progress::Wait(now.plus_ms(pace_ms)));
            }
        }
        Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)))
    }

    /// The smoke test after a move, of all whose moves are visible everywhere by now. What does not
    /// work goes back. `Some`: not everything is tested; look again then.
    ///
    /// # Errors
    /// `Refused` when something went back, or cannot be told for too long.
    async fn test_moves(&self, rows: &[TripletRow], now: Timestamp) -> EngineResult<Option<Timestamp>> {
        let untested = rows.iter().filter(|row| row.custody.untested && !row.custody.drill);
        let (mut due, mut wait) = (Vec::new(), None::<Timestamp>);
        for row in untested {
            match self.visible_at(&[row], now) {
                Some(at) => wait = Some(wait.map_or(at, |w| w.min(at))),
                None => due.push(row),
            }
        }
        let seen = match self.look(&due, Namespace::Target, now).await? {
            Ok(seen) => seen,
            Err(at) => return Ok(Some(at)),
        };
        let (mut wrong, mut untold) = (Vec::new(), Vec::new());
        for (triplet, seen) in seen {
            match seen {
                Seen::Works => {
                    match self.store.record_custody(&triplet, &Event::Tested { at: now }, &actor(), now).await {
                        // It went back meanwhile.
                        Ok(_) | Err(StoreError::Refused { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Seen::Busy(status) if !due.iter().any(|row| row.triplet == triplet && is_new(row, now)) => {
                    untold.push(format!("`{triplet}` ({status})"));
                }
                Seen::NotYet | Seen::Busy(_) => {
                    let at = now.plus_ms(super::RETRY_MS);
                    wait = Some(wait.map_or(at, |w| w.min(at)));
                }
                Seen::Wrong(reason) => {
                    let later = self.send_back(&triplet, reason.clone(), now).await?;
                    wait = wait.into_iter().chain(later).min();
                    wrong.push(format!("`{triplet}` ({reason})"));
                }
            }
        }
        moved_back(&wrong)?;
        if !untold.is_empty() {
            return Err(EngineError::Refused(format!(
                "the reads of {} are at the target, and the provider does not say whether they work; they can go back \
                 until they were tested: run the same command again when the provider answers, or reverse them",
                untold.join(", ")
            )));
        }
        Ok(wait)
    }

    /// The smoke test before a move: the account is active and the provider answers through it.
    /// A triplet that fails it is held.
    async fn target_serves(&self, row: &TripletRow, now: Timestamp) -> EngineResult<bool> {
        let problem = match self.ask_target(row, now).await? {
            Served::Yes => return Ok(true),
            Served::Later(at, error) => return Err(EngineError::Later { at, error }),
            Served::No(problem) => problem,
        };
        let reason = format!("the target cannot serve it: {problem}");
        self.record(&row.triplet, &Event::Held { reason }, now).await?;
        Ok(false)
    }

    /// How long a move of this wave can be reversed: what was said at the switch, else the policy.
    pub(super) async fn reverse_window_ms(&self, wave: Option<u32>) -> EngineResult<i64> {
        let round = match wave {
            Some(n) => self.load_round(n).await?,
            None => None,
        };
        Ok(round.and_then(|round| round.reverse_window_ms).unwrap_or(self.config.policy.reverse_window.0))
    }

    /// Whether the rest of a wave waits for somebody who looks at its canary.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn awaits_agreement(&self, wave: u32) -> EngineResult<bool> {
        let Some(round) = self.load_round(wave).await?.filter(|round| round.asks && !round.agreed) else {
            return Ok(false);
        };
        let canary = self.store.load_triplet(&round.canary).await?;
        Ok(canary.is_some_and(|row| row.custody.stage == Stage::Switched))
    }

    /// Somebody looked at the canary of a wave and agrees that the rest moves.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn agree_to_canary(&self, wave: u32, now: Timestamp) -> EngineResult<()> {
        let Some(round) = self.load_round(wave).await? else { return Ok(()) };
        let agreed = serde_json::json!({"event": "canary_agreed", "canary": round.canary});
        self.record_action(&format!("wave:{wave}"), agreed, now).await?;
        self.save_round(wave, &Round { agreed: true, ..round }).await
    }

    /// Takes what was said with this call into the round.
    async fn take_terms(&self, wave: u32, round: Round, terms: SwitchTerms, now: Timestamp) -> EngineResult<Round> {
        let reverse_window_ms = terms.reverse_window_ms.or(round.reverse_window_ms);
        let new = Round { reverse_window_ms, asks: round.asks || terms.ask_after_canary, ..round.clone() };
        if let Some(ms) = new.reverse_window_ms.filter(|ms| round.reverse_window_ms != Some(*ms)) {
            let said = serde_json::json!({"event": "reverse_window", "ms": ms});
            self.record_action(&format!("wave:{wave}"), said, now).await?;
        }
        if new != round {
            self.save_round(wave, &new).await?;
        }
        Ok(new)
    }

    async fn load_round(&self, wave: u32) -> EngineResult<Option<Round>> {
        let text = self.store.load_meta(&format!("switch:{wave}")).await?;
        // What an earlier version noted says nothing that custody does not: the round begins anew.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    async fn save_round(&self, wave: u32, round: &Round) -> EngineResult<()> {
        let text = serde_json::json!(round).to_string();
        Ok(self.store.save_meta(&format!("switch:{wave}"), &text).await?)
    }

    /// Ends a round: a new one begins with a canary, on terms of its own.
    pub(super) async fn forget_round(&self, wave: Option<u32>) -> EngineResult<()> {
        match wave {
            Some(n) => Ok(self.store.delete_meta(&format!("switch:{n}")).await?),
            None => Ok(()),
        }
    }
}

/// # Errors
/// `Refused` when there are any.
fn moved_back(triplets: &[String]) -> EngineResult<()> {
    if triplets.is_empty() {
        return Ok(());
    }
    Err(EngineError::Refused(format!(
        "the reads of {} were moved back from the target: they are held until `cutover ctl go --triplet …`, then switch \
         again",
        triplets.join(", ")
    )))
}

/// Why a wave cannot begin to move.
fn nothing_moves(wave: u32, rows: &[TripletRow]) -> EngineError {
    let held = rows.iter().filter_map(|row| Some(format!("`{}` is held: {}", row.triplet, row.custody.held.as_ref()?)));
    let held: Vec<String> = held.collect();
    let why = if held.is_empty() { String::new() } else { format!(": {}", held.join("; ")) };
    EngineError::Refused(format!("wave {wave} has no verified triplet that can move{why}"))
}

/// A call that must simply be made again later is a wait, not an error.
pub(super) fn waiting(step: EngineResult<Progress>) -> EngineResult<Progress> {
    match step {
        Err(EngineError::Later { at, .. }) => Ok(Progress::Wait(at)),
        other => other,
    }
}
