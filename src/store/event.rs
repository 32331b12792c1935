//! Custody events and intents: what happened, in a hash chain, and what was about to happen.

use serde::{Deserialize, Serialize};
use sqlx::{Connection, Row};

use super::{During, Store, StoreError, StoreResult, from_json, to_json};
use crate::domain::custody::{Custody, Event};
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;

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
        let mut tx = connection.begin().await.during("begin")?;
        let row = sqlx::query("SELECT custody FROM triplet WHERE key = ?")
            .bind(&name)
            .fetch_optional(&mut *tx)
            .await
            .during("load custody")?
            .ok_or_else(|| StoreError::UnknownTriplet(name.clone()))?;
        let custody: Custody = from_json("custody", &row.get::<String, _>(0))?;
        let (next, _) =
            custody.step(event).map_err(|refusal| StoreError::Refused { triplet: name.clone(), refusal })?;
        sqlx::query("UPDATE triplet SET custody = ?, stage = ? WHERE key = ?")
            .bind(to_json(&next))
            .bind(next.stage.name())
            .bind(&name)
            .execute(&mut *tx)
            .await
            .during("save custody")?;
        append_event(&mut tx, now, actor, &name, &to_json(event)).await?;
        tx.commit().await.during("commit")?;
        Ok(next)
    }

    /// Records an operator's or the program's action that is not a custody event.
    pub async fn record_action(&self, actor: &str, subject: &str, json: &str, now: Timestamp) -> StoreResult<()> {
        append_event(&mut *self.lock().await, now, actor, subject, json).await
    }

    /// The audit trail from `after`, at most `limit` lines, with the chain checked on the way.
    ///
    /// # Errors
    /// `Corrupt` naming the first line that does not fit.
    pub async fn load_events(&self, after: i64, limit: u32) -> StoreResult<Vec<EventRow>> {
        let mut connection = self.lock().await;
        let mut previous: Vec<u8> = sqlx::query("SELECT hash FROM event WHERE seq <= ? ORDER BY seq DESC LIMIT 1")
            .bind(after)
            .fetch_optional(&mut *connection)
            .await
            .during("read the audit trail")?
            .map_or_else(|| vec![0; 32], |r| r.get(0));
        let rows =
            sqlx::query("SELECT seq, at, actor, subject, json, hash FROM event WHERE seq > ? ORDER BY seq LIMIT ?")
                .bind(after)
                .bind(limit)
                .fetch_all(&mut *connection)
                .await
                .during("read the audit trail")?;
        rows.into_iter()
            .map(|r| {
                let event = EventRow {
                    seq: r.get(0),
                    at: Timestamp::from_millis(r.get(1)),
                    actor: r.get(2),
                    subject: r.get(3),
                    json: r.get(4),
                };
                let hash: Vec<u8> = r.get(5);
                if event_hash(&previous, event.at, &event.actor, &event.subject, &event.json).as_slice() != hash {
                    let detail = format!("line {} does not fit the chain", event.seq);
                    return Err(StoreError::Corrupt { what: "audit trail", detail });
                }
                previous = hash;
                Ok(event)
            })
            .collect()
    }

    /// Writes an intent down before its effect is attempted. When it was written before, says
    /// how that went: `Started` means that the outcome must be settled by looking.
    pub async fn begin_intent(&self, id: &str, action: &str, now: Timestamp) -> StoreResult<Option<IntentState>> {
        let mut connection = self.lock().await;
        let row = sqlx::query("SELECT state, result FROM intent WHERE id = ?")
            .bind(id)
            .fetch_optional(&mut *connection)
            .await
            .during("look for an intent")?;
        if let Some(row) = row {
            return Ok(Some(match row.get::<String, _>(0).as_str() {
                "done" => IntentState::Done(row.get::<Option<String>, _>(1).unwrap_or_default()),
                "ambiguous" => IntentState::Ambiguous(row.get::<Option<String>, _>(1).unwrap_or_default()),
                _ => IntentState::Started,
            }));
        }
        sqlx::query("INSERT INTO intent (id, at, action, state) VALUES (?, ?, ?, 'started')")
            .bind(id)
            .bind(now.millis())
            .bind(action)
            .execute(&mut *connection)
            .await
            .during("write an intent")?;
        Ok(None)
    }

    /// Records that the effect of an intent is known to have happened.
    pub async fn finish_intent(&self, id: &str, result: &str) -> StoreResult<()> {
        sqlx::query("UPDATE intent SET state = 'done', result = ? WHERE id = ?")
            .bind(result)
            .bind(id)
            .execute(&mut *self.lock().await)
            .await
            .during("finish an intent")?;
        Ok(())
    }
}

async fn append_event(
    connection: &mut sqlx::SqliteConnection,
    now: Timestamp,
    actor: &str,
    subject: &str,
    json: &str,
) -> StoreResult<()> {
    let previous: Vec<u8> = sqlx::query("SELECT hash FROM event ORDER BY seq DESC LIMIT 1")
        .fetch_optional(&mut *connection)
        .await
        .during("load the end of the audit trail")?
        .map_or_else(|| vec![0; 32], |r| r.get(0));
    sqlx::query("INSERT INTO event (at, actor, subject, json, hash) VALUES (?, ?, ?, ?, ?)")
        .bind(now.millis())
        .bind(actor)
        .bind(subject)
        .bind(json)
        .bind(event_hash(&previous, now, actor, subject, json).to_vec())
        .execute(&mut *connection)
        .await
        .during("append to the audit trail")?;
    Ok(())
}

fn event_hash(previous: &[u8], at: Timestamp, actor: &str, subject: &str, json: &str) -> [u8; 32] {
    let facts = serde_json::json!([at.millis(), actor, subject, json]).to_string();
    super::journal::chain(previous, &facts, &[])
}
