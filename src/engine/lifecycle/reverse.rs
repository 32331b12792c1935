//! Reverse, and what a switch will make irreversible; and the watch over reads that were switched.

use std::collections::BTreeMap;

use super::super::{Engine, EngineError, EngineResult};
use super::Progress;
use super::moves::{Seen, ready};
use crate::catalogue::Reconsent;
use crate::domain::custody::{Custody, Event, ReadAuthority, Stage};
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;
use crate::domain::upstream::Upstream;
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

    /// Moves reads back to the source. A switch or a drill that was under way ends with it.
    /// Needs no gate, and no "no" stops it.
    ///
    /// # Errors
    /// `Refused` when nothing is at the target, when a reverse window is over, and when the gateway
    /// does not read from the source afterwards.
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
            return Err(EngineError::Refused("the plan has no such triplet that moves".to_owned()));
        }
        if let Reversal::Wave(n) = what {
            // The switch must not go on from where it was, wherever that is.
            self.forget_round(Some(*n)).await?;
        }
        self.forget_drills(&rows).await?;
        let (mut closed, mut back, mut wait) = (Vec::new(), 0, None::<Timestamp>);
        for row in &rows {
            let going_back = row.custody.moving.is_some_and(|m| m.to == ReadAuthority::Source);
            let there = row.custody.stage == Stage::Switched || row.custody.moving.is_some();
            let event = Event::ReverseBegun { at: now };
            match (there, going_back || row.custody.step(&event).is_ok()) {
                (true, true) => {
                    // One that cannot go now keeps no other one.
                    let later = self.reverse_one(&row.triplet, now).await?;
                    wait = wait.into_iter().chain(later).min();
                    back += 1;
                }
                (true, false) => closed.push(row.triplet.to_string()),
                (false, _) if row.custody.stage >= Stage::Settled => closed.push(row.triplet.to_string()),
                (false, _) => {}
            }
        }
        if !closed.is_empty() {
            return Err(EngineError::Refused(format!(
                "the reverse window of {} is over; {back} others are back at the source, or on the way",
                closed.join(", ")
            )));
        }
        if let Some(at) = wait {
            return Ok(Progress::Wait(at));
        }
        if back > 0 {
            return Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)));
        }
        self.see_back(&rows, now).await
    }

    /// What the gateway serves after a reverse, until it follows the record again.
    async fn see_back(&self, rows: &[TripletRow], now: Timestamp) -> EngineResult<Progress> {
        let rows: Vec<&TripletRow> = rows.iter().collect();
        if let Some(at) = self.visible_at(&rows, now) {
            return Ok(Progress::Wait(at));
        }
        let seen = match self.look(&rows, Namespace::Source, now).await? {
            Ok(seen) => seen,
            Err(at) => return Ok(Progress::Wait(at)),
        };
        let mut late = false;
        let mut wrong = Vec::new();
        for (triplet, seen) in seen {
            match seen {
                Seen::NotYet => late = true,
                Seen::Wrong(why) => wrong.push(format!("`{triplet}`: {why}")),
                // It reads from the source, and that is what was asked for.
                Seen::Works | Seen::Busy(_) => {}
            }
        }
        match (wrong.is_empty(), late) {
            (true, false) => Ok(Progress::Done),
            (true, true) => Ok(Progress::Wait(now.plus_ms(super::RETRY_MS))),
            (false, _) => Err(EngineError::Refused(format!(
                "the records say source, and reads go wrong: {}; look at the record in KV, at the Worker's cache and at \
                 which deployment answers, then run the same command again",
                wrong.join("; ")
            ))),
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
            let Some(custody) = rows.get(&result.triplet).map(|row| &row.custody) else { continue };
            // A move that is under way is the operation's to end.
            if custody.moving.is_some() {
                continue;
            }
            let at_target = custody.read == ReadAuthority::Target;
            if at_target != (result.read_authority == Namespace::Target) {
                // Late at the gateway, or overtaken by a put that was long on its way. What moved since
                // the rows were read is left alone; what cannot be put now is seen again.
                if let Err(EngineError::Store(error)) = self.carry_out(&result.triplet, custody.epoch, now).await {
                    return Err(error.into());
                }
                continue;
            }
            if custody.stage != Stage::Switched {
                continue;
            }
            let key = format!("trips:{}", result.triplet);
            match result.upstream() {
                Upstream::Works => self.store.delete_meta(&key).await?,
                Upstream::Busy => {}
                Upstream::Refused => self.trip(result, custody, &key, now).await?,
            }
        }
        Ok(())
    }

    /// Counts a smoke test that went wrong at the target; the second one moves the triplet back.
    async fn trip(&self, result: &SmokeResult, custody: &Custody, key: &str, now: Timestamp) -> EngineResult<()> {
        let trips = self.store.load_meta(key).await?.and_then(|n| n.parse().ok()).unwrap_or(0) + 1;
        if trips < TRIPS_AT || custody.step(&Event::ReverseBegun { at: now }).is_err() {
            return Ok(self.store.save_meta(key, &trips.to_string()).await?);
        }
        let row = self.store.load_triplet(&result.triplet).await?;
        if row.is_none_or(|row| row.custody.epoch != custody.epoch) {
            // Somebody moved it since.
            return Ok(self.store.delete_meta(key).await?);
        }
        let reason = format!("went back by itself: the upstream answered {} at the target", result.upstream_status);
        tracing::error!(triplet = %result.triplet, "{reason}");
        // What is not done yet the next smoke test tries again.
        if self.send_back(&result.triplet, reason, now).await?.is_none() {
            self.store.delete_meta(key).await?;
        }
        Ok(())
    }
}
