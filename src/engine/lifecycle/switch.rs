//! Moving reads: the drill that exercises a reverse before anything depends on it, the switch of
//! a wave with its canary first, reverse, and settling when the reverse window is over.

use super::super::{Engine, EngineError, EngineResult};
use super::consent::Served;
use super::{Progress, retry_at, seen};
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::custody::{Custody, Event, Permit, ReadAuthority, Route, Stage};
use crate::domain::secret::Secret;
use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::ports::{AccountStatus, GatewayRead, KvPut, KvWrite, Namespace, Outside, TargetCustody, TargetRead};
use crate::store::{StoreError, TripletRow};

/// How long a read-authority record may take to reach the gateway before that is a failure.
const VISIBLE_WITHIN_MS: i64 = 10 * MINUTE_MS;

/// What the gateway serves for a set of triplets.
enum Reads {
    Good,
    /// The record is not visible everywhere yet.
    NotYet,
    Bad(Vec<(Triplet, String)>),
    Later(Timestamp),
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

    pub(super) async fn wave(&self, n: u32) -> EngineResult<Vec<TripletRow>> {
        Ok(self.moving().await?.into_iter().filter(|t| t.wave == Some(n)).collect())
    }

    /// Moves the reads of one verified triplet of the wave to the target and back again, with a
    /// smoke test at each end.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn drill(&self, wave: u32, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.drill_step(wave, now).await)
    }

    async fn drill_step(&self, wave: u32, now: Timestamp) -> EngineResult<Progress> {
        let key = format!("drill:{wave}");
        let state = self.store.load_meta(&key).await?.unwrap_or_default();
        let mut words = state.split(' ');
        match (words.next().unwrap_or_default(), words.next(), words.next()) {
            ("done" | "failed", ..) => Ok(Progress::Done),
            ("there", Some(name), Some(since)) => {
                let (triplet, since) = (parse(name)?, at(since));
                let rows = self.wave(wave).await?;
                if self.end_moves(&rows, now).await? {
                    return Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)));
                }
                let row = rows.into_iter().find(|t| t.triplet == triplet);
                if let Some(row) = row.as_ref().filter(|row| ready(row)) {
                    // A crash came between the note and the move.
                    self.switch_one(row, Permit::Drill, now).await?;
                    return Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)));
                }
                if row.is_none_or(|row| row.custody.stage != Stage::Switched) {
                    let bad = vec![(triplet, "was stopped before it was at the target".to_owned())];
                    return self.fail_drill(&key, bad, now).await;
                }
                let stopped = self.said_no(Some(wave)).await?.is_some();
                let reads = match stopped {
                    // What was seen does not matter any more: back.
                    true => Reads::Good,
                    false => self.reads(std::slice::from_ref(&triplet), Namespace::Target, since, now).await?,
                };
                match reads {
                    Reads::Good => {
                        self.reverse_one(&triplet, now).await?;
                        self.store.save_meta(&key, &format!("back {triplet} {}", now.millis())).await?;
                        Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)))
                    }
                    Reads::NotYet => Ok(Progress::Wait(now.plus_ms(super::RETRY_MS))),
                    Reads::Later(at) => Ok(Progress::Wait(at)),
                    Reads::Bad(bad) => {
                        self.reverse_one(&triplet, now).await?;
                        self.fail_drill(&key, bad, now).await
                    }
                }
            }
            ("back", Some(name), Some(since)) => {
                let (triplet, since) = (parse(name)?, at(since));
                self.end_moves(&self.wave(wave).await?, now).await?;
                match self.reads(std::slice::from_ref(&triplet), Namespace::Source, since, now).await? {
                    Reads::Good => {
                        self.store.save_meta(&key, "done").await?;
                        Ok(Progress::Done)
                    }
                    Reads::NotYet => Ok(Progress::Wait(now.plus_ms(super::RETRY_MS))),
                    Reads::Later(at) => Ok(Progress::Wait(at)),
                    Reads::Bad(bad) => self.fail_drill(&key, bad, now).await,
                }
            }
            _ => {
                if let Some(at) = self.demand_go(Some(wave), "drill", now).await? {
                    return Ok(Progress::Wait(at));
                }
                let rows = self.wave(wave).await?;
                let Some(canary) = rows.iter().find(|t| ready(t)) else { return Ok(Progress::Done) };
                self.store.save_meta(&key, &format!("there {} {}", canary.triplet, now.millis())).await?;
                self.switch_one(canary, Permit::Drill, now).await?;
                Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)))
            }
        }
    }

    async fn fail_drill(&self, key: &str, bad: Vec<(Triplet, String)>, now: Timestamp) -> EngineResult<Progress> {
        for (triplet, detail) in bad {
            let note = Note { at: now, subject: triplet.to_string(), detail };
            self.store.add_note("drill-failed", &note).await?;
        }
        self.store.save_meta(key, "failed").await?;
        Ok(Progress::Done)
    }

    /// Moves the reads of a wave to the target: one canary first, then the rest, each followed by
    /// a smoke test. A triplet whose reads go wrong goes back and is held.
    ///
    /// # Errors
    /// `Refused` without a fresh gate pass, or when the canary failed.
    pub async fn switch(&self, wave: u32, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.switch_step(wave, now).await)
    }

    async fn switch_step(&self, wave: u32, now: Timestamp) -> EngineResult<Progress> {
        let passed_at = self.demand_gate(now, "switch").await?;
        let permit = Permit::Pass { at: passed_at };
        let key = format!("switch:{wave}");
        let state = self.store.load_meta(&key).await?.unwrap_or_default();
        let (phase, since) = state.split_once(' ').unwrap_or((state.as_str(), "0"));
        let rows = self.wave(wave).await?;
        if self.end_moves(&rows, now).await? {
            return Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)));
        }
        if let Some(at) = self.demand_go(Some(wave), "switch", now).await? {
            return Ok(Progress::Wait(at));
        }
        match phase {
            "done" => Ok(Progress::Done),
            "canary" | "rest" => {
                let switched: Vec<Triplet> =
                    rows.iter().filter(|t| t.custody.stage == Stage::Switched).map(|t| t.triplet.clone()).collect();
                match self.reads(&switched, Namespace::Target, at(since), now).await? {
                    Reads::NotYet => return Ok(Progress::Wait(now.plus_ms(super::RETRY_MS))),
                    Reads::Later(at) => return Ok(Progress::Wait(at)),
                    Reads::Good => {}
                    Reads::Bad(bad) => {
                        let names: Vec<String> = bad.iter().map(|b| b.0.to_string()).collect();
                        for (triplet, reason) in bad {
                            self.send_back(&triplet, reason, now).await?;
                        }
                        return Err(EngineError::Refused(format!(
                            "the reads of {} went wrong at the target and were moved back",
                            names.join(", ")
                        )));
                    }
                }
                if phase == "rest" {
                    self.store.save_meta(&key, "done").await?;
                    return Ok(Progress::Done);
                }
                if let Some(at) = self.switch_rest(wave, &rows, permit, now).await? {
                    return Ok(Progress::Wait(at));
                }
                self.store.save_meta(&key, &format!("rest {}", now.millis())).await?;
                Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)))
            }
            _ => {
                if !rows.iter().any(|t| t.custody.stage == Stage::Switched)
                    && !self.switch_canary(&rows, permit, now).await?
                {
                    return Err(EngineError::Refused(format!("wave {wave} has no verified triplet that can move")));
                }
                self.store.save_meta(&key, &format!("canary {}", now.millis())).await?;
                Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)))
            }
        }
    }

    /// Moves the first triplet that the target can serve; `false` when there is none.
    async fn switch_canary(&self, rows: &[TripletRow], permit: Permit, now: Timestamp) -> EngineResult<bool> {
        for row in rows.iter().filter(|row| ready(row)) {
            if self.target_serves(row, now).await? {
                self.switch_one(row, permit, now).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Moves what is left of a wave. `Some`: a person slowed it down or stopped it on the way.
    async fn switch_rest(
        &self,
        wave: u32,
        rows: &[TripletRow],
        permit: Permit,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        let pace_ms = self.throttle_ms().await?;
        let mut ready = rows.iter().filter(|row| ready(row)).peekable();
        while let Some(row) = ready.next() {
            if let Some(at) = self.demand_go(Some(wave), "switch", now).await? {
                return Ok(Some(at));
            }
            if !self.target_serves(row, now).await? {
                continue;
            }
            self.switch_one(row, permit, now).await?;
            if pace_ms > 0 && ready.peek().is_some() {
                return Ok(Some(now.plus_ms(pace_ms)));
            }
        }
        Ok(None)
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

    /// Moves a triplet back whose reads went wrong, and holds it for a person to look at.
    pub(super) async fn send_back(&self, triplet: &Triplet, reason: String, now: Timestamp) -> EngineResult<()> {
        self.reverse_one(triplet, now).await?;
        let note = Note { at: now, subject: triplet.to_string(), detail: reason.clone() };
        self.store.add_note("sent-back", &note).await?;
        self.record(triplet, &Event::Held { reason }, now).await?;
        Ok(())
    }

    /// How long a move of this wave can be reversed: what was said at the switch, else the policy.
    pub(super) async fn reverse_window_ms(&self, wave: Option<u32>) -> EngineResult<i64> {
        let said = match wave {
            Some(n) => self.store.load_meta(&format!("reverse-window:{n}")).await?,
            None => None,
        };
        Ok(said.and_then(|ms| ms.parse().ok()).unwrap_or(self.config.policy.reverse_window.0))
    }

    /// Sets for how long the moves of a wave can be reversed, for the moves that are still to come.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn set_reverse_window(&self, wave: u32, window_ms: i64) -> EngineResult<()> {
        Ok(self.store.save_meta(&format!("reverse-window:{wave}"), &window_ms.to_string()).await?)
    }

    /// Moves one triplet's reads to the target.
    async fn switch_one(&self, row: &TripletRow, permit: Permit, now: Timestamp) -> EngineResult<()> {
        let reverse_until = now.plus_ms(self.reverse_window_ms(row.wave).await?);
        self.move_reads(row, &Event::SwitchBegun { at: now, reverse_until, permit }, now).await
    }

    /// Moves one triplet's reads back to the source, if they are at the target or on the way there.
    pub(super) async fn reverse_one(&self, triplet: &Triplet, now: Timestamp) -> EngineResult<()> {
        let rows = self.moving().await?;
        let Some(row) = rows.iter().find(|t| &t.triplet == triplet) else { return Ok(()) };
        match (row.custody.stage, row.custody.moving.map(|m| m.to)) {
            (_, Some(ReadAuthority::Source)) => self.finish_move(row, &row.custody, now).await,
            (Stage::Switched, _) | (_, Some(ReadAuthority::Target)) => {
                self.move_reads(row, &Event::ReverseBegun { at: now }, now).await
            }
            _ => Ok(()),
        }
    }

    /// Begins a move, which is the intent, and carries it out.
    async fn move_reads(&self, row: &TripletRow, begun: &Event, now: Timestamp) -> EngineResult<()> {
        let custody = self.record(&row.triplet, begun, now).await?;
        self.finish_move(row, &custody, now).await
    }

    /// Puts the record of the move that was begun, and records that it is there. The put is
    /// idempotent: after a crash between it and the event it is simply made again.
    async fn finish_move(&self, row: &TripletRow, custody: &Custody, now: Timestamp) -> EngineResult<()> {
        let Some(moving) = custody.moving else { return Ok(()) };
        self.put_record(row, custody, now).await?;
        let event = match moving.to {
            ReadAuthority::Target => Event::Switched { at: now },
            ReadAuthority::Source => Event::Reversed { at: now },
        };
        self.record(&row.triplet, &event, now).await?;
        Ok(())
    }

    /// Writes the read-authority record that custody calls for.
    pub(super) async fn put_record(&self, row: &TripletRow, custody: &Custody, now: Timestamp) -> EngineResult<()> {
        let (triplet, (read, epoch)) = (&row.triplet, custody.record());
        let record = serde_json::json!({"read": read, "epoch": epoch, "connected_account_id": row.final_account()});
        let put = KvPut { key: format!("authority:{triplet}"), value: Secret::new(record.to_string()), metadata: None };
        let answer = self.outside.cloudflare().put(Namespace::Source, &put).await;
        self.observe(Api::Cloudflare, now, &answer).await?;
        match answer {
            Ok(()) => Ok(()),
            Err(error) if error.is_transient() => Err(EngineError::Later { at: retry_at(now, &error), error }),
            Err(error) => Err(EngineError::Refused(format!("the reads of `{triplet}` did not move: {error}"))),
        }
    }

    /// Ends the moves of these triplets that a crash or an outage left half way: forward ones are
    /// carried out, unless somebody said no meanwhile; then they go back.
    async fn end_moves(&self, rows: &[TripletRow], now: Timestamp) -> EngineResult<bool> {
        let mut any = false;
        for row in rows.iter().filter(|row| row.custody.moving.is_some()) {
            let stopped = row.custody.held.is_some() || self.said_no(row.wave).await?.is_some();
            if stopped {
                self.reverse_one(&row.triplet, now).await?;
            } else {
                self.finish_move(row, &row.custody, now).await?;
            }
            any = true;
        }
        Ok(any)
    }

    /// What the gateway serves for these triplets, against where it should read from.
    async fn reads(
        &self,
        triplets: &[Triplet],
        expected: Namespace,
        since: Timestamp,
        now: Timestamp,
    ) -> EngineResult<Reads> {
        let (mut bad, mut waiting) = (Vec::new(), false);
        for chunk in triplets.chunks(100) {
            let answer = self.outside.gateway().smoke(chunk).await;
            self.observe(Api::Gateway, now, &answer).await?;
            let results = match answer {
                Ok(results) => results,
                Err(error) => return Ok(Reads::Later(retry_at(now, &error))),
            };
            for result in results {
                if result.read_authority != expected {
                    if now.since(since) > VISIBLE_WITHIN_MS {
                        bad.push((result.triplet, "the gateway does not follow its read-authority record".to_owned()));
                    } else {
                        waiting = true;
                    }
                } else if result.stale || !result.ok {
                    bad.push((result.triplet, format!("the upstream answered {}", result.upstream_status)));
                }
            }
        }
        Ok(if !bad.is_empty() {
            Reads::Bad(bad)
        } else if waiting {
            Reads::NotYet
        } else {
            Reads::Good
        })
    }

    /// Whether the gateway reads these triplets where it should and well. `Some`: look again then.
    ///
    /// # Errors
    /// `Refused` when reads go wrong.
    pub(super) async fn reads_of(
        &self,
        triplets: &[Triplet],
        expected: Namespace,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        match self.reads(triplets, expected, now, now).await? {
            Reads::Good => Ok(None),
            Reads::NotYet => Ok(Some(now.plus_ms(super::RETRY_MS))),
            Reads::Later(at) => Ok(Some(at)),
            Reads::Bad(bad) => {
                let bad: Vec<String> = bad.iter().map(|(triplet, why)| format!("`{triplet}`: {why}")).collect();
                Err(EngineError::Refused(format!("reads go wrong: {}", bad.join("; "))))
            }
        }
    }

    /// Ends the bearer mirror of every switched triplet whose reverse window is over. The old
    /// grant is no longer refreshed once all triplets that it feeds are settled.
    ///
    /// # Errors
    /// `Refused` without a fresh gate pass or against a no.
    pub async fn settle(&self, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.settle_step(now).await)
    }

    async fn settle_step(&self, now: Timestamp) -> EngineResult<Progress> {
        let passed_at = self.demand_gate(now, "settle").await?;
        let mut wait: Option<Timestamp> = None;
        self.end_moves(&self.moving().await?, now).await?;
        for row in self.moving().await? {
            if row.custody.stage != Stage::Switched || row.custody.held.is_some() || row.custody.drill {
                continue;
            }
            if let Some(at) = self.demand_go(row.wave, "settle", now).await? {
                return Ok(Progress::Wait(at));
            }
            let open_until = row.custody.reverse_until.unwrap_or(now);
            if now < open_until {
                wait = Some(wait.map_or(open_until, |w| w.min(open_until)));
                continue;
            }
            if let Some(account) = &row.mirror_account
                && row.custody.route == Route::Reconsent
                && let Some(at) = self.disable_mirror(&row, account, now).await?
            {
                wait = Some(wait.map_or(at, |w| w.min(at)));
                continue;
            }
            self.record(&row.triplet, &Event::Settled { at: now, passed_at }, now).await?;
            self.store.end_deliveries(&row.triplet).await?;
        }
        let rows = self.moving().await?;
        for connection in self.store.load_connections().await? {
            let mut fed = rows.iter().filter(|t| t.connection == connection.id).peekable();
            if fed.peek().is_some() && fed.all(|t| t.custody.stage >= Stage::Settled) && connection.poll_at.is_some() {
                self.store.schedule_poll(connection.id, None).await?;
            }
        }
        Ok(wait.map_or(Progress::Done, |at| Progress::Wait(at.max(now.plus_ms(SECOND_MS)))))
    }

    async fn disable_mirror(&self, row: &TripletRow, account: &str, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        let target = self.outside.target();
        let done = self
            .once(
                &format!("mirror-end:{}", row.triplet),
                "disable the bearer account",
                Api::Composio,
                now,
                async || {
                    let found = target.get_account(account).await?;
                    Ok(seen(found.status == AccountStatus::Inactive))
                },
                async || target.set_account_enabled(account, false).await.map(|()| String::new()),
            )
            .await?;
        match done {
            super::Effected::Yes(_) => Ok(None),
            super::Effected::Later(error) => Ok(Some(retry_at(now, &error))),
            super::Effected::Never(error) => Err(super::apply::refused("disable the bearer account of", row, &error)),
        }
    }
}

/// A call that must simply be made again later is a wait, not an error.
pub(super) fn waiting(step: EngineResult<Progress>) -> EngineResult<Progress> {
    match step {
        Err(EngineError::Later { at, .. }) => Ok(Progress::Wait(at)),
        other => other,
    }
}

/// Whether a triplet's reads may move now.
pub(super) fn ready(row: &TripletRow) -> bool {
    row.custody.stage == Stage::Verified && row.custody.held.is_none() && row.custody.moving.is_none()
}

fn at(text: &str) -> Timestamp {
    Timestamp::from_millis(text.parse().unwrap_or(0))
}

fn parse(name: &str) -> EngineResult<Triplet> {
    Triplet::parse(name).map_err(|e| StoreError::Corrupt { what: "drill", detail: e.to_string() }.into())
}
