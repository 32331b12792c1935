//! Settling: ends the mirrors of what can no longer go back.

use super::super::{Engine, EngineError, EngineResult};
use super::drill::is_drilled;
use super::switch::waiting;
use super::{Effected, Progress, retry_at, seen};
use crate::domain::api::Api;
use crate::domain::custody::{Event, Route, Stage};
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::ports::{AccountStatus, Outside, TargetCustody, TargetRead};
use crate::store::TripletRow;

impl<O: Outside> Engine<O> {
    /// Ends the bearer mirror of every switched triplet whose reverse window is over. The old
    /// grant is no longer refreshed once all triplets that it feeds are settled.
    ///
    /// # Errors
    /// `Refused` without a fresh gate pass or against a no, and when something at the target cannot
    /// settle as it is.
    pub async fn settle(&self, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.settle_step(now).await)
    }

    async fn settle_step(&self, now: Timestamp) -> EngineResult<Progress> {
        let rows = self.moving().await?;
        let mut wait = self.end_moves(&rows, now).await?;
        let passed_at = self.demand_gate(now, "settle").await?;
        let mut unfit = Vec::new();
        for row in self.moving().await? {
            if is_drilled(&row) {
                let wave = row.wave.unwrap_or_default();
                unfit.push(format!(
                    "`{}` is at the target for a drill: end it with `cutover switch --wave {wave} --drill`",
                    row.triplet
                ));
            }
            if row.custody.stage != Stage::Switched || row.custody.held.is_some() || row.custody.drill {
                continue;
            }
            if row.custody.untested {
                let wave = row.wave.unwrap_or_default();
                unfit.push(format!(
                    "nobody has seen yet that `{}` works at the target: end its switch with `cutover switch --wave {wave}`",
                    row.triplet
                ));
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
        match wait {
            Some(at) => Ok(Progress::Wait(at.max(now.plus_ms(SECOND_MS)))),
            None if unfit.is_empty() => Ok(Progress::Done),
            None => Err(EngineError::Refused(format!("not everything can settle: {}", unfit.join("; ")))),
        }
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
            Effected::Yes(_) => Ok(None),
            Effected::Later(error) => Ok(Some(retry_at(now, &error))),
            Effected::Never(error) => Err(super::apply::refused("disable the bearer account of", row, &error)),
        }
    }
}
