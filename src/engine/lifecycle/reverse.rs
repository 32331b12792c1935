//! Reverse, and what a switch will make irreversible; and the watch over reads that were switched.

use std::collections::BTreeMap;

use super::super::{Engine, EngineError, EngineResult};
use super::Progress;
use super::switch::ready;
use crate::catalogue::Reconsent;
use crate::domain::custody::{Event, ReadAuthority, Stage};
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;
use crate::plan::policy::Client;
use crate::ports::{Namespace, Outside, SmokeResult};
use crate::store::TripletRow;

/// Smoke tests in a row that may go wrong at the target before reads go back by themselves.
const TRIPS_AT: u32 = 2;

/// What to move back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reversal {
    Triplet(Triplet),
    Wave(u32),
}

/// What a switch would do, before it does it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SwitchPreview {
    pub wave: u32,
    /// Triplets that would move now, the canary first.
    pub ready: Vec<Triplet>,
    /// Triplets of the wave that are there already.
    pub switched: Vec<Triplet>,
    /// Triplets that stay behind, with the reason.
    pub behind: BTreeMap<Triplet, String>,
    /// Until when what moves now can go back.
    pub reverse_until: Timestamp,
    /// Triplets whose old grant may have ended with the consent: their way back is a new consent at Nango.
    pub old_grant_ended: Vec<Triplet>,
}

impl SwitchPreview {
    /// How many triplets cannot go back any more once their reverse window is over.
    pub fn irreversible(&self) -> usize {
        self.ready.len() + self.switched.len()
    }
}

impl<O: Outside> Engine<O> {
    /// What [`Engine::switch`] would do to a wave. Asks nobody and changes nothing.
    ///
    /// # Errors
    /// `Refused` when there is no such wave.
    pub async fn preview_switch(&self, wave: u32, now: Timestamp) -> EngineResult<SwitchPreview> {
        let rows = self.wave(wave).await?;
        if rows.is_empty() {
            let known: Vec<String> = self.waves().await?.iter().map(u32::to_string).collect();
            return Err(EngineError::Refused(format!("there is no wave {wave}; the plan has {}", known.join(", "))));
        }
        let named = |test: &dyn Fn(&TripletRow) -> bool| -> Vec<Triplet> {
            rows.iter().filter(|row| test(row)).map(|row| row.triplet.clone()).collect()
        };
        let behind = rows.iter().filter(|row| !ready(row) && row.custody.stage < Stage::Switched).map(|row| {
            let why = match &row.custody.held {
                Some(reason) => format!("held: {reason}"),
                None => format!("only {}", row.custody.stage),
            };
            (row.triplet.clone(), why)
        });
        let ends = |row: &TripletRow| {
            ready(row)
                && self
                    .catalogue
                    .integration(&row.integration_key)
                    .is_some_and(|facts| facts.same_client_reconsent != Reconsent::KeepsOld)
                && self.config.policy.clients.of(&row.integration_key) != Client::Different
        };
        Ok(SwitchPreview {
            wave,
            ready: named(&|row| ready(row)),
            switched: named(&|row| row.custody.stage == Stage::Switched),
            behind: behind.collect(),
            reverse_until: now.plus_ms(self.reverse_window_ms(Some(wave)).await?),
            old_grant_ended: named(&ends),
        })
    }

    /// Moves reads back to the source. A switch of the wave that was under way ends with it.
    /// Needs no gate, and no "no" stops it.
    ///
    /// # Errors
    /// `Refused` when nothing is at the target, or a reverse window is over.
    pub async fn reverse(&self, what: &Reversal, now: Timestamp) -> EngineResult<Progress> {
        super::switch::waiting(self.reverse_step(what, now).await)
    }

    async fn reverse_step(&self, what: &Reversal, now: Timestamp) -> EngineResult<Progress> {
        let rows: Vec<TripletRow> = match what {
            Reversal::Wave(n) => self.wave(*n).await?,
            Reversal::Triplet(triplet) => {
                self.moving().await?.into_iter().filter(|row| &row.triplet == triplet).collect()
            }
        };
        if rows.is_empty() {
            return Err(EngineError::Refused("the plan has no such triplet or wave that moves".to_owned()));
        }
        if let Reversal::Wave(n) = what {
            // The switch must not go on from where it was.
            self.store.delete_meta(&format!("switch:{n}")).await?;
        }
        let (mut closed, mut back) = (Vec::new(), Vec::new());
        for row in &rows {
            let going_back = row.custody.moving.is_some_and(|m| m.to == ReadAuthority::Source);
            let there = row.custody.stage == Stage::Switched || row.custody.moving.is_some();
            let event = Event::ReverseBegun { at: now };
            match (there, going_back || row.custody.step(&event).is_ok()) {
                (true, true) => {
                    self.reverse_one(&row.triplet, now).await?;
                    back.push(row.triplet.clone());
                }
                (true, false) => closed.push(row.triplet.to_string()),
                (false, _) if row.custody.stage >= Stage::Settled => closed.push(row.triplet.to_string()),
                (false, _) => {}
            }
        }
        if !closed.is_empty() {
            return Err(EngineError::Refused(format!(
                "the reverse window of {} is over; {} others are back at the source",
                closed.join(", "),
                back.len()
            )));
        }
        let triplets: Vec<Triplet> = rows.into_iter().map(|row| row.triplet).collect();
        self.see_back(&triplets, &back, now).await
    }

    /// What the gateway serves after a reverse, until it follows the record again.
    async fn see_back(&self, all: &[Triplet], back: &[Triplet], now: Timestamp) -> EngineResult<Progress> {
        if !back.is_empty() {
            return Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)));
        }
        match self.reads_of(all, Namespace::Source, now).await? {
            None => Ok(Progress::Done),
            Some(at) => Ok(Progress::Wait(at)),
        }
    }

    /// Watches over reads: twice wrong at the target within the reverse window, and they go back;
    /// a gateway that does not follow its record gets the record again.
    pub(in crate::engine) async fn guard_reads(
        &self,
        results: &[SmokeResult],
        rows: &BTreeMap<Triplet, &TripletRow>,
        now: Timestamp,
    ) -> EngineResult<()> {
        for result in results {
            let Some(row) = rows.get(&result.triplet) else { continue };
            let custody = &row.custody;
            // A move that is under way is the operation's to end.
            if custody.moving.is_some() {
                continue;
            }
            let at_target = custody.read == ReadAuthority::Target;
            if at_target != (result.read_authority == Namespace::Target) {
                // Late at the gateway, or overtaken by a put that was long on its way.
                if let Err(EngineError::Store(error)) = self.put_record(row, custody, now).await {
                    return Err(error.into());
                }
                continue;
            }
            let key = format!("trips:{}", result.triplet);
            // Limits and failures of the provider itself are no fault of the target.
            let wrong = result.stale || matches!(result.upstream_status, 401 | 403);
            if custody.stage != Stage::Switched || !wrong {
                if custody.stage == Stage::Switched {
                    self.store.delete_meta(&key).await?;
                }
                continue;
            }
            let trips = self.store.load_meta(&key).await?.and_then(|n| n.parse().ok()).unwrap_or(0) + 1;
            if trips < TRIPS_AT || custody.step(&Event::ReverseBegun { at: now }).is_err() {
                self.store.save_meta(&key, &trips.to_string()).await?;
                continue;
            }
            let reason = format!("went back by itself: the upstream answered {} at the target", result.upstream_status);
            tracing::error!(triplet = %result.triplet, "{reason}");
            match self.send_back(&result.triplet, reason, now).await {
                // The next smoke test tries again.
                Err(EngineError::Later { .. }) | Ok(()) => {}
                Err(error) => return Err(error),
            }
            self.store.delete_meta(&key).await?;
        }
        Ok(())
    }
}
