//! One move of reads: begun, put into KV, recorded, and looked at. Operations and the watch over
//! reads both move and mend; a claim per triplet lets one of them at a time put its record.

use super::super::{Engine, EngineError, EngineResult};
use super::{actor, retry_at};
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::custody::{Event, Permit, ReadAuthority, Refusal, Stage};
use crate::domain::secret::Secret;
use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::domain::upstream::Upstream;
use crate::ports::{GatewayRead, KvPut, KvWrite, Namespace, Outside};
use crate::store::{Lead, StoreError, TripletRow};

/// How long a read-authority record may take to reach the gateway before that is a failure, and
/// how long a provider may say "not now" to a test.
pub(super) const VISIBLE_WITHIN_MS: i64 = 10 * MINUTE_MS;

/// Triplets in one smoke test.
const CHUNK: usize = 100;

/// What the gateway serves for one triplet, against where it should read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Works,
    /// The record is not visible everywhere yet.
    NotYet,
    /// It reads where it should; the provider does not say whether that works.
    Busy(u16),
    Wrong(String),
}

impl<O: Outside> Engine<O> {
    /// Moves one triplet's reads to the target. `Some`: the move is begun, and goes on then.
    pub(super) async fn switch_one(
        &self,
        row: &TripletRow,
        permit: Permit,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        let reverse_until = now.plus_ms(self.reverse_window_ms(row.wave).await?);
        self.move_reads(&row.triplet, &Event::SwitchBegun { at: now, reverse_until, permit }, now).await
    }

    /// Moves one triplet's reads back to the source, if they are at the target or on the way there.
    /// `Some`: not done yet; call again then.
    pub(super) async fn reverse_one(&self, triplet: &Triplet, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        let Some(row) = self.store.load_triplet(triplet).await? else { return Ok(None) };
        match (row.custody.stage, row.custody.moving.map(|m| m.to)) {
            (_, Some(ReadAuthority::Source)) => self.carry_out(triplet, row.custody.epoch, now).await,
            (Stage::Switched, _) | (_, Some(ReadAuthority::Target)) => {
                // A switch of the wave must not go on from where it was.
                self.forget_round(row.wave).await?;
                self.move_reads(triplet, &Event::ReverseBegun { at: now }, now).await
            }
            _ => Ok(None),
        }
    }

    /// Holds a triplet whose reads went wrong, for a person to look at, and moves it back. `Some`:
    /// not done yet.
    pub(super) async fn send_back(
        &self,
        triplet: &Triplet,
        reason: String,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        let note = Note { at: now, subject: triplet.to_string(), detail: reason.clone() };
        self.store.add_note("sent-back", &note).await?;
        self.record(triplet, &Event::Held { reason }, now).await?;
        self.reverse_one(triplet, now).await
    }

    /// Begins a move, which is the intent, and carries it out.
    async fn move_reads(&self, triplet: &Triplet, begun: &Event, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        match self.store.record_custody(triplet, begun, &actor(), now).await {
            Ok(custody) => self.carry_out(triplet, custody.epoch, now).await,
            // Somebody else began a move meanwhile, or ended one.
            Err(StoreError::Refused { refusal: Refusal::OnTheWay { .. } | Refusal::Illegal { .. }, .. }) => {
                Ok(Some(now.plus_ms(SECOND_MS)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the moves of these triplets that a crash or an outage left half way: forward ones are
    /// carried out, unless somebody said no meanwhile; then they go back. `Some`: not all could be.
    pub(super) async fn end_moves(&self, rows: &[TripletRow], now: Timestamp) -> EngineResult<Option<Timestamp>> {
        let mut wait: Option<Timestamp> = None;
        for row in rows.iter().filter(|row| row.custody.moving.is_some()) {
            let stopped = row.custody.held.is_some() || self.said_no(row.wave).await?.is_some();
            let later = match stopped {
                true => self.reverse_one(&row.triplet, now).await?,
                false => self.carry_out(&row.triplet, row.custody.epoch, now).await?,
            };
            wait = wait.into_iter().chain(later).min();
        }
        Ok(wait)
    }

    /// Puts the record of `epoch`, and records that a move which was begun with it is made. Whoever
    /// puts has the claim of the triplet and looks at custody again under it: an older record never
    /// follows a newer one. The put is idempotent: after a crash it is simply made again. `Some`: not now.
    pub(super) async fn carry_out(
        &self,
        triplet: &Triplet,
        epoch: u64,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        let claim = format!("record:{triplet}");
        let until = now.plus_ms(self.config.claim_ms);
        if let Lead::Theirs { until: theirs } = self.store.claim(&claim, now, until).await? {
            // Most have it for one request. The longer it is out, the rarer it is asked for.
            let taken_for = now.since(theirs.plus_ms(-self.config.claim_ms));
            return Ok(Some(theirs.min(now.plus_ms(taken_for.max(SECOND_MS)))));
        }
        let put = self.put_record(triplet, epoch, now).await;
        // What may still be on its way keeps others away until its time is over.
        if !matches!(&put, Err(EngineError::Later { error, .. }) if error.may_have_taken_effect()) {
            self.store.release(&claim).await?;
        }
        match put {
            Ok(()) => Ok(None),
            Err(EngineError::Later { at, .. }) => Ok(Some(at)),
            Err(error) => Err(error),
        }
    }

    async fn put_record(&self, triplet: &Triplet, epoch: u64, now: Timestamp) -> EngineResult<()> {
        let Some(row) = self.store.load_triplet(triplet).await? else { return Ok(()) };
        let (read, current) = row.custody.record();
        if current != epoch {
            return Ok(());
        }
        let record = serde_json::json!({"read": read, "epoch": epoch, "connected_account_id": row.final_account()});
        let put = KvPut { key: format!("authority:{triplet}"), value: Secret::new(record.to_string()), metadata: None };
        let answer = self.outside.cloudflare().put(Namespace::Source, &put).await;
        self.observe(Api::Cloudflare, now, &answer).await?;
        match answer {
            Ok(()) => {}
            Err(error) if error.is_transient() => return Err(EngineError::Later { at: retry_at(now, &error), error }),
            Err(error) => {
                return Err(EngineError::Refused(format!("the reads of `{triplet}` did not move: {error}")));
            }
        }
        let arrived = match row.custody.moving {
            None => return Ok(()),
            Some(moving) if moving.to == ReadAuthority::Target => Event::Switched { at: now },
            Some(_) => Event::Reversed { at: now },
        };
        match self.store.record_custody(triplet, &arrived, &actor(), now).await {
            // Called off meanwhile: the record of that is put next.
            Ok(_) | Err(StoreError::Refused { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What the gateway serves for these triplets. `Err`: it did not answer; ask again then.
    pub(super) async fn look(
        &self,
        rows: &[&TripletRow],
        expected: Namespace,
        now: Timestamp,
    ) -> EngineResult<Result<Vec<(Triplet, Seen)>, Timestamp>> {
        let mut all = Vec::with_capacity(rows.len());
        for chunk in rows.chunks(CHUNK) {
            let names: Vec<Triplet> = chunk.iter().map(|row| row.triplet.clone()).collect();
            let answer = self.outside.gateway().smoke(&names).await;
            self.observe(Api::Gateway, now, &answer).await?;
            let results = match answer {
                Ok(results) => results,
                Err(error) => return Ok(Err(retry_at(now, &error))),
            };
            for result in results {
                let row = chunk.iter().find(|row| row.triplet == result.triplet);
                let seen = if result.read_authority == expected {
                    match result.upstream() {
                        Upstream::Works => Seen::Works,
                        Upstream::Busy => Seen::Busy(result.upstream_status),
                        Upstream::Refused => Seen::Wrong(format!("the upstream answered {}", result.upstream_status)),
                    }
                } else if row.is_some_and(|row| is_new(row, now)) {
                    Seen::NotYet
                } else {
                    Seen::Wrong(format!(
                        "the gateway does not follow its read-authority record `authority:{}`",
                        result.triplet
                    ))
                };
                all.push((result.triplet, seen));
            }
        }
        Ok(Ok(all))
    }

    /// When the last of these moves is visible everywhere; `None` when all are.
    pub(super) fn visible_at(&self, rows: &[&TripletRow], now: Timestamp) -> Option<Timestamp> {
        let arrived = rows.iter().filter_map(|row| row.custody.arrived_at).max()?;
        Some(arrived.plus_ms(self.config.settle_ms)).filter(|at| now < *at)
    }
}

/// Whether a triplet's reads moved so short ago that the gateway, or a test, may be late.
pub(super) fn is_new(row: &TripletRow, now: Timestamp) -> bool {
    row.custody.arrived_at.is_some_and(|at| now.since(at) <= VISIBLE_WITHIN_MS)
}

/// Whether a triplet's reads may move now.
pub(super) fn ready(row: &TripletRow) -> bool {
    row.custody.stage == Stage::Verified && row.custody.held.is_none() && row.custody.moving.is_none()
}
