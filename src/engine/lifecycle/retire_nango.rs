//! Retiring the connections at Nango: opting them out of the revocation upstream, which can be undone,
//! and deleting them, which cannot.
//!
//! Nobody can take a delete back, so a no is looked for before each effect: everything that a
//! connection feeds is read anew and asked of the custody's `step`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::{Engine, EngineError, EngineResult};
use super::switch::waiting;
use super::{Effected, Progress, RetireStage, retry_at, seen};
use crate::domain::api::Api;
use crate::domain::custody::{Event, Stage};
use crate::domain::time::Timestamp;
use crate::ports::{ApiError, ApiErrorKind, KvWrite, Namespace, Outside, SourceConnection, SourceCustody, SourceRead};
use crate::store::{ConnectionRow, StoreError, TripletRow};

/// What a no is told that it stops.
const WHAT: &str = "retire nango";

/// Notes of what a connection's metadata said before it was opted out, written before that is changed.
const OPTED_OUT: &str = "nango-opt-out:";

/// What became of one connection.
enum Fate {
    Done,
    /// It is paused; look again then.
    Wait(Timestamp),
    /// Its call failed; it may pass then.
    Later(Timestamp),
    /// Somebody said no, or Nango refuses this one.
    Kept(String),
}

/// The connections at Nango as they are listed now, by integration key and connection id.
type Listed = BTreeMap<(String, String), SourceConnection>;

impl<O: Outside> Engine<O> {
    /// Readies Nango for its end, which can be undone: opts every connection out of the revocation
    /// upstream that a delete would cause.
    ///
    /// # Errors
    /// `Refused` before the DO-alarm path is retired, without a fresh gate pass, or for the
    /// connections that somebody said no to or that Nango refuses; the others are done then.
    pub async fn prepare_nango(&self, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.prepare_step(now).await)
    }

    async fn prepare_step(&self, now: Timestamp) -> EngineResult<Progress> {
        let passed_at = self.demand_retirable(now).await?;
        let listed = self.listed_connections(now).await?;
        self.for_each_connection(now, async |connection: &ConnectionRow| {
            match self.ask(connection, passed_at, now).await? {
                Ok(_) => self.opt_out(connection, &listed, now).await,
                Err(fate) => Ok(fate),
            }
        })
        .await
    }

    /// Undoes [`Engine::prepare_nango`] for the connections that are still there: their metadata
    /// says again what it said before.
    ///
    /// # Errors
    /// `Refused` when Nango refuses it.
    pub async fn undo_prepare_nango(&self, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.undo_step(now).await)
    }

    async fn undo_step(&self, now: Timestamp) -> EngineResult<Progress> {
        let notes = self.store.load_metas(OPTED_OUT).await?;
        if notes.is_empty() {
            return Ok(Progress::Done);
        }
        for ((key, id), found) in &self.listed_connections(now).await? {
            let Some(note) = notes.get(&format!("{key}:{id}")) else { continue };
            let was = serde_json::from_str::<Value>(note).ok().and_then(|note| note.get("was").cloned());
            // A merge cannot take a key out; to Nango, `false` is the same as none.
            let was = was.unwrap_or(Value::Bool(false));
            if found.skip_token_revocation.as_ref().unwrap_or(&Value::Bool(false)) != &was {
                match self.say_skip(key, id, was, now).await? {
                    Fate::Done => {}
                    Fate::Wait(at) | Fate::Later(at) => return Ok(Progress::Wait(at)),
                    Fate::Kept(why) => return Err(EngineError::Refused(why)),
                }
            }
            self.store.delete_meta(&format!("{OPTED_OUT}{key}:{id}")).await?;
        }
        Ok(Progress::Done)
    }

    /// Neutralises Nango: opts out of revocation upstream, deletes the connections whose triplets
    /// are all settled, removes their tokens from KV, and ends the custody of each triplet.
    ///
    /// # Errors
    /// As [`Engine::prepare_nango`].
    pub async fn retire_nango(&self, now: Timestamp) -> EngineResult<Progress> {
        waiting(self.retire_nango_step(now).await)
    }

    async fn retire_nango_step(&self, now: Timestamp) -> EngineResult<Progress> {
        let passed_at = self.demand_retirable(now).await?;
        let listed = self.listed_connections(now).await?;
        self.for_each_connection(now, async |connection: &ConnectionRow| {
            self.retire_connection(connection, &listed, passed_at, now).await
        })
        .await
    }

    /// Does `work` to each connection whose triplets are all settled. One that is kept or paused does
    /// not stop the others, nor does one whose call fails; a second one looks like an outage.
    async fn for_each_connection(
        &self,
        now: Timestamp,
        work: impl AsyncFn(&ConnectionRow) -> EngineResult<Fate>,
    ) -> EngineResult<Progress> {
        let (mut kept, mut wait, mut failed) = (Vec::new(), None::<Timestamp>, false);
        for connection in self.settled_connections().await? {
            // What is said to everything ends it; what is said to a part leaves that part.
            if let Some(at) = self.demand_go(None, WHAT, now).await? {
                return Ok(Progress::Wait(at));
            }
            let fate = work(&connection).await?;
            match fate {
                Fate::Done => {}
                Fate::Later(at) if failed => return Ok(Progress::Wait(at)),
                Fate::Wait(at) | Fate::Later(at) => {
                    failed |= matches!(fate, Fate::Later(_));
                    wait = Some(wait.map_or(at, |wait| wait.min(at)));
                }
                Fate::Kept(why) => kept.push(why),
            }
        }
        match (wait, kept.is_empty()) {
            (Some(at), _) => Ok(Progress::Wait(at)),
            (None, true) => Ok(Progress::Done),
            (None, false) => {
                Err(EngineError::Refused(format!("{}; the others are done, run it again for these", kept.join("; "))))
            }
        }
    }

    /// Connections that feed something settled, and nothing that moves and is not settled yet.
    async fn settled_connections(&self) -> EngineResult<Vec<ConnectionRow>> {
        let mut stages: BTreeMap<i64, Vec<Stage>> = BTreeMap::new();
        for row in self.moving().await? {
            stages.entry(row.connection).or_default().push(row.custody.stage);
        }
        let settled = |connection: &ConnectionRow| {
            stages.get(&connection.id).is_some_and(|stages| {
                stages.iter().all(|stage| *stage >= Stage::Settled) && stages.contains(&Stage::Settled)
            })
        };
        Ok(self.store.load_connections().await?.into_iter().filter(settled).collect())
    }

    async fn listed_connections(&self, now: Timestamp) -> EngineResult<Listed> {
        let listed = self.outside.source().list_connections().await;
        self.observe(Api::Nango, now, &listed).await?;
        let listed = listed.map_err(|error| EngineError::Later { at: retry_at(now, &error), error })?;
        Ok(listed.into_iter().map(|c| ((c.integration_key.clone(), c.connection_id.clone()), c)).collect())
    }

    async fn demand_retirable(&self, now: Timestamp) -> EngineResult<Timestamp> {
        let passed_at = self.demand_gate(now, WHAT).await?;
        if !matches!(self.retire_stage().await?, RetireStage::Done { .. }) {
            return Err(EngineError::Refused("the DO-alarm path must be retired first: it is the fallback".to_owned()));
        }
        Ok(passed_at)
    }

    /// The settled triplets of a connection as they are now, if each may be retired.
    async fn ask(
        &self,
        connection: &ConnectionRow,
        passed_at: Timestamp,
        now: Timestamp,
    ) -> EngineResult<Result<Vec<TripletRow>, Fate>> {
        let mut rows = self.store.load_triplets_of(&[connection.id]).await?;
        rows.retain(|row| row.moves() && row.custody.stage == Stage::Settled);
        match self.demand_go_with(&rows, WHAT, now).await {
            Ok(None) => {}
            Ok(Some(at)) => return Ok(Err(Fate::Wait(at))),
            Err(EngineError::Refused(why)) => return Ok(Err(Fate::Kept(why))),
            Err(error) => return Err(error),
        }
        for row in &rows {
            if let Err(refusal) = row.custody.step(&Event::RetireBegun { at: now, passed_at }) {
                return Ok(Err(Fate::Kept(format!("`{}`: {refusal}", row.triplet))));
            }
        }
        Ok(Ok(rows))
    }

    /// Deletes one connection and the tokens that came from it. A no before the delete keeps it; one
    /// that comes later keeps what is left of its tokens.
    async fn retire_connection(
        &self,
        connection: &ConnectionRow,
        listed: &Listed,
        passed_at: Timestamp,
        now: Timestamp,
    ) -> EngineResult<Fate> {
        if let Err(fate) = self.ask(connection, passed_at, now).await? {
            return Ok(fate);
        }
        // Before the delete: HubSpot's refresh token would be revoked upstream otherwise (Nango
        // contract §8). Elsewhere the key means nothing.
        match self.opt_out(connection, listed, now).await? {
            Fate::Done => {}
            fate => return Ok(fate),
        }
        let rows = match self.ask(connection, passed_at, now).await? {
            Ok(rows) => rows,
            Err(fate) => return Ok(fate),
        };
        for row in rows.iter().filter(|row| !row.custody.retiring) {
            match self.record(&row.triplet, &Event::RetireBegun { at: now, passed_at }, now).await {
                Ok(_) => {}
                Err(EngineError::Store(StoreError::Refused { triplet, refusal })) => {
                    return Ok(Fate::Kept(format!("`{triplet}`: {refusal}")));
                }
                Err(error) => return Err(error),
            }
        }
        if let Err(fate) = self.ask(connection, passed_at, now).await? {
            return Ok(fate);
        }
        match self.delete_connection(connection, listed, now).await? {
            Fate::Done => {}
            fate => return Ok(fate),
        }
        loop {
            let rows = match self.ask(connection, passed_at, now).await? {
                Ok(rows) => rows,
                Err(fate) => return Ok(fate),
            };
            let Some(row) = rows.first() else { return Ok(Fate::Done) };
            for namespace in [Namespace::Source, Namespace::Target] {
                let answer = self.outside.cloudflare().delete(namespace, &row.triplet.kv_key()).await;
                self.observe(Api::Cloudflare, now, &answer).await?;
                if let Err(error) = answer {
                    return kept(error, now, format!("the token of `{}` cannot be deleted", row.triplet));
                }
            }
            self.record(&row.triplet, &Event::Retired { at: now }, now).await?;
        }
    }

    async fn delete_connection(
        &self,
        connection: &ConnectionRow,
        listed: &Listed,
        now: Timestamp,
    ) -> EngineResult<Fate> {
        let (key, id) = (&connection.integration_key, &connection.connection_id);
        let source = self.outside.source();
        let there = listed.contains_key(&(key.clone(), id.clone()));
        let done = self
            .once(
                &format!("nango-delete:{key}:{id}"),
                "delete the Nango connection",
                Api::Nango,
                now,
                async || Ok(seen(!there)),
                async || source.delete_connection(key, id).await.map(|()| String::new()),
            )
            .await?;
        match done {
            Effected::Yes(_) if there => {
                self.record_action(&format!("{key}:{id}"), json!({"event": "nango connection deleted"}), now).await?;
                Ok(Fate::Done)
            }
            Effected::Yes(_) => Ok(Fate::Done),
            Effected::Later(error) | Effected::Never(error) => kept(error, now, cannot_be_retired(key, id)),
        }
    }

    /// Opts a connection out of the revocation upstream, unless its metadata says so already. What it
    /// said before is noted first.
    async fn opt_out(&self, connection: &ConnectionRow, listed: &Listed, now: Timestamp) -> EngineResult<Fate> {
        let (key, id) = (&connection.integration_key, &connection.connection_id);
        // What is gone needs nothing.
        let Some(found) = listed.get(&(key.clone(), id.clone())) else { return Ok(Fate::Done) };
        if found.skip_token_revocation == Some(Value::Bool(true)) {
            return Ok(Fate::Done);
        }
        let mut note = json!({});
        if let Some(was) = &found.skip_token_revocation {
            note["was"] = was.clone();
        }
        // The first note counts: after a lost answer the metadata may say ours.
        self.store.create_meta(&format!("{OPTED_OUT}{key}:{id}"), &note.to_string()).await?;
        self.say_skip(key, id, Value::Bool(true), now).await
    }

    /// Makes a connection's metadata say whether a delete skips the revocation.
    async fn say_skip(&self, key: &str, id: &str, skip: Value, now: Timestamp) -> EngineResult<Fate> {
        let answer = self.outside.source().skip_revocation(key, id, &skip).await;
        self.observe(Api::Nango, now, &answer).await?;
        match answer {
            Ok(()) => {
                let event = json!({"event": "nango connection metadata changed", "skip_revocation": skip});
                self.record_action(&format!("{key}:{id}"), event, now).await?;
                Ok(Fate::Done)
            }
            Err(error) => kept(error, now, cannot_be_retired(key, id)),
        }
    }

    /// Before the old grants are needed again: what is only begun is called off where the connection
    /// was seen to be there still.
    pub(super) async fn call_off_retirements(&self, rows: &[TripletRow], now: Timestamp) -> EngineResult<()> {
        let begun: Vec<&TripletRow> = rows.iter().filter(|row| row.custody.retiring).collect();
        if begun.is_empty() {
            return Ok(());
        }
        let listed = self.listed_connections(now).await?;
        let connections = self.store.load_connections().await?;
        let there = |row: &TripletRow| {
            let of = connections.iter().find(|connection| connection.id == row.connection);
            of.is_some_and(|c| listed.contains_key(&(c.integration_key.clone(), c.connection_id.clone())))
        };
        if let Some(row) = begun.iter().find(|row| !there(row)) {
            return Err(EngineError::Refused(format!(
                "the connection of `{}` is gone from Nango, and there is nothing to fall back to",
                row.triplet
            )));
        }
        for row in begun {
            self.record(&row.triplet, &Event::RetireCalledOff { at: now }, now).await?;
        }
        Ok(())
    }
}

fn cannot_be_retired(key: &str, id: &str) -> String {
    format!("connection `{id}` of `{key}` cannot be retired")
}

/// What an error makes of a connection. A key that is refused, and a limit, concern all of them.
fn kept(error: ApiError, now: Timestamp, what: String) -> EngineResult<Fate> {
    let at = retry_at(now, &error);
    match error.kind {
        ref limit if limit.is_limit() => Err(EngineError::Later { at, error }),
        _ if error.is_transient() => Ok(Fate::Later(at)),
        ApiErrorKind::Unauthorized { .. } => Err(EngineError::Refused(format!("{what}: {error}"))),
        _ => Ok(Fate::Kept(format!("{what}: {error}"))),
    }
}
