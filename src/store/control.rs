//! What people said while an operation runs.

use super::{During, Store, StoreError, StoreResult, query};
use crate::domain::time::Timestamp;

/// What part of the cutover a decision is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    All,
    Wave(u32),
}

impl Scope {
    /// Whether it is about `wave` (`None`: something that belongs to no wave).
    pub fn covers(self, wave: Option<u32>) -> bool {
        match self {
            Self::All => true,
            Self::Wave(n) => wave == Some(n),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "all" => Some(Self::All),
            Some(("wave", n)) => n.parse().ok().map(Self::Wave),
            _ => None,
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Wave(n) => write!(f, "wave:{n}"),
        }
    }
}

/// A person's word that stops what goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// It ends the operation that runs, and refuses the next ones.
    No,
    /// The operation waits.
    Pause,
}

impl Decision {
    pub const fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Pause => "pause",
        }
    }
}

/// A decision as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlRow {
    pub scope: Scope,
    pub decision: Decision,
    pub reason: String,
    pub actor: String,
    pub at: Timestamp,
}

impl Store {
    /// The applied plan, as it was saved.
    pub async fn load_applied_plan(&self) -> StoreResult<Option<String>> {
        let row = query("SELECT json FROM plan LIMIT 1")
            .fetch_optional(&mut self.lock().await)
            .await
            .during("load the applied plan")?;
        Ok(row.map(|r| r.get(0)))
    }

    /// Everything that people said and did not take back, in the order of scope and decision.
    pub async fn load_controls(&self) -> StoreResult<Vec<ControlRow>> {
        let rows = query("SELECT scope, decision, reason, actor, at FROM control ORDER BY scope, decision")
            .fetch_all(&mut self.lock().await)
            .await
            .during("load decisions")?;
        rows.iter()
            .map(|r| {
                let (scope, decision): (String, String) = (r.get(0), r.get(1));
                let corrupt = || StoreError::Corrupt { what: "decision", detail: format!("`{scope} {decision}`") };
                Ok(ControlRow {
                    scope: Scope::parse(&scope).ok_or_else(corrupt)?,
                    decision: match decision.as_str() {
                        "no" => Decision::No,
                        "pause" => Decision::Pause,
                        _ => return Err(corrupt()),
                    },
                    reason: r.get(2),
                    actor: r.get(3),
                    at: Timestamp::from_millis(r.get(4)),
                })
            })
            .collect()
    }

    /// Records a decision; the newest one of its scope counts.
    pub async fn save_control(&self, row: &ControlRow) -> StoreResult<()> {
        query(
            "INSERT INTO control (scope, decision, reason, actor, at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (scope, decision) DO UPDATE SET reason = excluded.reason, actor = excluded.actor, at = excluded.at",
        )
        .bind(row.scope.to_string())
        .bind(row.decision.name())
        .bind(&row.reason)
        .bind(&row.actor)
        .bind(row.at.millis())
        .execute(&mut self.lock().await)
        .await
        .during("save a decision")?;
        Ok(())
    }

    /// Takes a decision back. Whether there was one.
    pub async fn delete_control(&self, scope: Scope, decision: Decision) -> StoreResult<bool> {
        let done = query("DELETE FROM control WHERE scope = $1 AND decision = $2")
            .bind(scope.to_string())
            .bind(decision.name())
            .execute(&mut self.lock().await)
            .await
            .during("take a decision back")?;
        Ok(done > 0)
    }

    /// Marks an intent whose outcome looking cannot tell; `question` is what a person must answer.
    pub async fn mark_ambiguous(&self, id: &str, question: &str) -> StoreResult<()> {
        query("UPDATE intent SET state = 'ambiguous', result = $1 WHERE id = $2")
            .bind(question)
            .bind(id)
            .execute(&mut self.lock().await)
            .await
            .during("mark an intent")?;
        Ok(())
    }

    /// Intents that a person must settle, with their question, by id.
    pub async fn load_ambiguous(&self) -> StoreResult<Vec<(String, String)>> {
        let rows = query("SELECT id, result FROM intent WHERE state = 'ambiguous' ORDER BY id")
            .fetch_all(&mut self.lock().await)
            .await
            .during("load open questions")?;
        Ok(rows.iter().map(|r| (r.get(0), r.get::<Option<String>>(1).unwrap_or_default())).collect())
    }

    /// Takes a person's answer: the effect happened and gave `result`, or (`None`) it did not and
    /// may be tried again. Whether there was such a question.
    pub async fn answer_ambiguous(&self, id: &str, result: Option<&str>) -> StoreResult<bool> {
        let state = if result.is_some() { "done" } else { "started" };
        let done = query("UPDATE intent SET state = $1, result = $2 WHERE id = $3 AND state = 'ambiguous'")
            .bind(state)
            .bind(result)
            .bind(id)
            .execute(&mut self.lock().await)
            .await
            .during("settle an intent")?;
        Ok(done > 0)
    }
}
