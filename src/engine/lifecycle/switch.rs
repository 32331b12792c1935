//! Moving reads: the drill that exercises a reverse before anything depends on it, the switch of
//! a wave with its canary first, reverse, and settling when the reverse window is over.

use super::super::{Engine, EngineError, EngineResult};
use super::{ACTOR, Progress, retry_at};
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::custody::{Effect, Event, ReadAuthority, Stage};
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

    async fn wave(&self, n: u32) -> EngineResult<Vec<TripletRow>> {
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
                if let Some(row) = self.wave(wave).await?.iter().find(|t| t.triplet == triplet && ready(t)) {
                    // A crash came between the note and the move.
                    self.switch_one(row, now).await?;
                    return Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)));
                }
                match self.reads(std::slice::from_ref(&triplet), Namespace::Target, since, now).await? {
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
                let rows = self.wave(wave).await?;
                let Some(canary) = rows.iter().find(|t| ready(t)) else { return Ok(Progress::Done) };
                self.store.save_meta(&key, &format!("there {} {}", canary.triplet, now.millis())).await?;
                self.switch_one(canary, now).await?;
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
        self.demand_gate(now, "switch").await?;
        let key = format!("switch:{wave}");
        let state = self.store.load_meta(&key).await?.unwrap_or_default();
        let (phase, since) = state.split_once(' ').unwrap_or((state.as_str(), "0"));
        let rows = self.wave(wave).await?;
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
                            self.reverse_one(&triplet, now).await?;
                            self.store.record_custody(&triplet, &Event::Held { reason }, ACTOR, now).await?;
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
                for row in rows.iter().filter(|t| ready(t)) {
                    self.switch_one(row, now).await?;
                }
                self.store.save_meta(&key, &format!("rest {}", now.millis())).await?;
                Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)))
            }
            _ => {
                let Some(canary) = rows.iter().find(|t| ready(t) || t.custody.stage == Stage::Switched) else {
                    return Err(EngineError::Refused(format!("wave {wave} has no verified triplet")));
                };
                if canary.custody.stage == Stage::Verified {
                    self.switch_one(canary, now).await?;
                }
                self.store.save_meta(&key, &format!("canary {}", now.millis())).await?;
                Ok(Progress::Wait(now.plus_ms(self.config.settle_ms)))
            }
        }
    }

    /// Moves one triplet's reads to the target. The record is idempotent: after a crash between
    /// the put and the event it is simply put again.
    async fn switch_one(&self, row: &TripletRow, now: Timestamp) -> EngineResult<()> {
        let event = Event::Switched { at: now, reverse_until: now.plus_ms(self.config.policy.reverse_window.0) };
        self.move_reads(row, &event, now).await
    }

    async fn reverse_one(&self, triplet: &Triplet, now: Timestamp) -> EngineResult<()> {
        let rows = self.moving().await?;
        match rows.iter().find(|t| &t.triplet == triplet) {
            Some(row) if row.custody.stage == Stage::Switched => {
                self.move_reads(row, &Event::Reversed { at: now }, now).await
            }
            _ => Ok(()),
        }
    }

    async fn move_reads(&self, row: &TripletRow, event: &Event, now: Timestamp) -> EngineResult<()> {
        let (_, effects) = row
            .custody
            .step(event)
            .map_err(|refusal| StoreError::Refused { triplet: row.triplet.to_string(), refusal })?;
        for effect in effects {
            let Effect::SetReadAuthority { read, epoch } = effect else { continue };
            let id = format!("reads:{}:{epoch}", row.triplet);
            self.store.begin_intent(&id, "move reads", now).await?;
            let record = serde_json::json!({
                "read": read, "epoch": epoch, "connected_account_id": row.custody.account,
            });
            let put = KvPut {
                key: format!("authority:{}", row.triplet),
                value: Secret::new(record.to_string()),
                metadata: None,
            };
            let answer = self.outside.cloudflare().put(Namespace::Source, &put).await;
            self.observe(Api::Cloudflare, now, &answer).await?;
            if let Err(error) = answer {
                if error.is_transient() {
                    return Err(EngineError::Later { at: retry_at(now, &error), error });
                }
                return Err(EngineError::Refused(format!("the reads of `{}` did not move: {error}", row.triplet)));
            }
            self.store.finish_intent(&id, "").await?;
        }
        self.store.record_custody(&row.triplet, event, ACTOR, now).await?;
        Ok(())
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

    /// Ends the bearer mirror of every switched triplet whose reverse window is over. The old
    /// grant is no longer refreshed once all triplets that it feeds are settled.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn settle(&self, now: Timestamp) -> EngineResult<Progress> {
        let mut wait: Option<Timestamp> = None;
        for row in self.moving().await? {
            if row.custody.stage != Stage::Switched || row.custody.held.is_some() {
                continue;
            }
            let open_until = row.custody.reverse_until.unwrap_or(now);
            if now < open_until {
                wait = Some(wait.map_or(open_until, |w| w.min(open_until)));
                continue;
            }
            if let Some(account) = &row.mirror_account
                && let Some(at) = self.disable_mirror(&row, account, now).await?
            {
                wait = Some(wait.map_or(at, |w| w.min(at)));
                continue;
            }
            self.store.record_custody(&row.triplet, &Event::Settled { at: now }, ACTOR, now).await?;
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
                    Ok((found.status == AccountStatus::Inactive).then(String::new))
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
fn waiting(step: EngineResult<Progress>) -> EngineResult<Progress> {
    match step {
        Err(EngineError::Later { at, .. }) => Ok(Progress::Wait(at)),
        other => other,
    }
}

/// Whether a triplet's reads may move now.
fn ready(row: &TripletRow) -> bool {
    row.custody.stage == Stage::Verified && row.custody.held.is_none() && row.custody.read == ReadAuthority::Source
}

fn at(text: &str) -> Timestamp {
    Timestamp::from_millis(text.parse().unwrap_or(0))
}

fn parse(name: &str) -> EngineResult<Triplet> {
    Triplet::parse(name).map_err(|e| StoreError::Corrupt { what: "drill", detail: e.to_string() }.into())
}
