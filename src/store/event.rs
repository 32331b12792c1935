//! Custody events and intents: what happened, in a hash chain, and what was about to happen.

use super::db::{Lock, Tx};
use super::{During, Row, Store, StoreError, StoreResult, from_json, query, to_json};
use crate::domain::custody::{Custody, Event};
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;
use serde::{Deserialize, Serialize};

/// One line of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    pub seq: i64,
    pub at: Timestamp,
    pub actor: String,
    pub subject: String,
    pub json: String,
}

/// What became of an effect on the outside world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntentState {
    /// Written down; whether it happened must be found out by looking.
    Started,
    /// It happened; this is what it gave (an id, usually).
    Done(String),
    /// Looking could not tell; this is the question that a person must answer.
    Ambiguous(String),
}

impl Store {
    /// Takes a custody event: steps the state machine, saves the new state and the event in one commit.
    ///
    /// # Errors
    /// `Refused` when a guard forbids it; nothing is saved then.
    pub async fn record_custody(
        &self,
        triplet: &Triplet,
        event: &Event,
        actor: &str,
        now: Timestamp,
    ) -> StoreResult<Custody> {
        let name = triplet.to_string();
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Events).await.during("begin")?;
        let row = query("SELECT custody FROM triplet WHERE key = $1")
            .bind(&name)
            .fetch_optional(&mut tx)
            .await
            .during("load custody")?
            .ok_or_else(|| StoreError::UnknownTriplet(name.clone()))?;
        let custody: Custody = from_json("custody", &row.get::<String>(0))?;
        let (next, _) =
            custody.step(event).map_err(|refusal| StoreError::Refused { triplet: name.clone(), refusal })?;
        query("UPDATE triplet SET custody = $1, stage = $2 WHERE key = $3")
            .bind(to_json(&next))
            .bind(next.stage.name())
            .bind(&name)
            .execute(&mut tx)
            .await
            .during("save custody")?;
        append_event(&mut tx, now, actor, &name, &to_json(event)).await?;
        tx.commit().await.during("commit")?;
        Ok(next)
    }

    /// Records an operator's or the program's action that is not a custody event.
    pub async fn record_action(&self, actor: &str, subject: &str, json: &str, now: Timestamp) -> StoreResult<()> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Events).await.during("begin")?;
        append_event(&mut tx, now, actor, subject, json).await?;
        tx.commit().await.during("commit")
    }

    /// The audit trail from `after`, at most `limit` lines, with the chain checked on the way.
    ///
    /// # Errors
    /// `Corrupt` naming the first line that does not fit.
    pub async fn load_events(&self, after: i64, limit: u32) -> StoreResult<Vec<EventRow>> {
        let mut connection = self.read().await;
        // The line before the first one comes along: its hash is what the first one continues.
        let rows = query(
            "SELECT seq, at, actor, subject, json, hash FROM event
             WHERE seq >= COALESCE((SELECT MAX(seq) FROM event WHERE seq <= $1), 0) ORDER BY seq LIMIT $2",
        )
        .bind(after)
        .bind(i64::from(limit) + 1)
        .fetch_all(&mut connection)
        .await
        .during("read the audit trail")?;
        let mut previous: Vec<u8> = vec![0; 32];
        let mut events = Vec::with_capacity(rows.len());
        for r in rows {
            let event = read_event(&r);
            let hash: Vec<u8> = r.get(5);
            if event.seq > after {
                if event_hash(&previous, &event).as_slice() != hash {
                    let detail = format!("line {} does not fit the chain", event.seq);
                    return Err(StoreError::Corrupt { what: "audit trail", detail });
                }
                events.push(event);
            }
            previous = hash;
        }
        events.truncate(limit as usize);
        Ok(events)
    }

    /// Walks the whole audit trail and recomputes its chain. Returns the number of lines.
    ///
    /// # Errors
    /// `Corrupt` naming the first line that does not fit.
    pub async fn verify_events(&self) -> StoreResult<u64> {
        let (mut after, mut count) = (0, 0);
        loop {
            let events = self.load_events(after, 1000).await?;
            let Some(last) = events.last() else { return Ok(count) };
            (after, count) = (last.seq, count + events.len() as u64);
        }
    }

    /// Writes an intent down before its effect is attempted. When it was written before, says
    /// how that went: `Started` means that the outcome must be settled by looking.
    pub async fn begin_intent(&self, id: &str, action: &str, now: Timestamp) -> StoreResult<Option<IntentState>> {
        let mut connection = self.lock().await;
        let created = query(
            "INSERT INTO intent (id, at, action, state) VALUES ($1, $2, $3, 'started') ON CONFLICT (id) DO NOTHING",
        )
        .bind(id)
        .bind(now.millis())
        .bind(action)
        .execute(&mut connection)
        .await
        .during("write an intent")?;
        if created == 1 {
            return Ok(None);
        }
        let row = query("SELECT state, result FROM intent WHERE id = $1")
            .bind(id)
            .fetch_one(&mut connection)
            .await
            .during("look for an intent")?;
        Ok(Some(match row.get::<String>(0).as_str() {
            "done" => IntentState::Done(row.get::<Option<String>>(1).unwrap_or_default()),
            "ambiguous" => IntentState::Ambiguous(row.get::<Option<String>>(1).unwrap_or_default()),
            _ => IntentState::Started,
        }))
    }

    /// Records that the effect of an intent is known to have happened.
    pub async fn finish_intent(&self, id: &str, result: &str) -> StoreResult<()> {
        query("UPDATE intent SET state = 'done', result = $1 WHERE id = $2")
            .bind(result)
            .bind(id)
            .execute(&mut self.lock().await)
            .await
            .during("finish an intent")?;
        Ok(())
    }
}

async fn append_event(tx: &mut Tx<'_>, now: Timestamp, actor: &str, subject: &str, json: &str) -> StoreResult<()> {
    let previous: Vec<u8> = query("SELECT hash FROM event ORDER BY seq DESC LIMIT 1")
        .fetch_optional(tx)
        .await
        .during("load the end of the audit trail")?
        .map_or_else(|| vec![0; 32], |r| r.get(0));
    let text = str::to_owned;
    let event = EventRow { seq: 0, at: now, actor: text(actor), subject: text(subject), json: text(json) };
    query("INSERT INTO event (at, actor, subject, json, hash) VALUES ($1, $2, $3, $4, $5)")
        .bind(now.millis())
        .bind(actor)
        .bind(subject)
        .bind(json)
        .bind(event_hash(&previous, &event).to_vec())
        .execute(tx)
        .await
        .during("append to the audit trail")?;
    Ok(())
}

fn read_event(r: &Row) -> EventRow {
    EventRow { seq: r.get(0), at: Timestamp::from_millis(r.get(1)), actor: r.get(2), subject: r.get(3), json: r.get(4) }
}

fn event_hash(previous: &[u8], e: &EventRow) -> [u8; 32] {
    let facts = serde_json::json!([e.at.millis(), e.actor, e.subject, e.json]).to_string();
    super::journal::chain(previous, &facts, &[])
}
