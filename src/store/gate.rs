//! Waivers, and the chain of what the gate said.

use super::db::{Lock, Row};
use super::{During, Store, StoreError, StoreResult, query};
use crate::domain::criteria::{Verdict, Waiver};
use crate::domain::time::Timestamp;

/// Gate runs whose document is kept whole; of older ones the digest stays.
const BODIES_KEPT: i64 = 100;

/// One run of the gate as the state remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateRun {
    pub seq: i64,
    pub at: Timestamp,
    pub plan: String,
    pub verdict: Verdict,
    /// Until when a pass opens what it guards: its age and the waivers that it stands on decide.
    pub open_until: Timestamp,
    /// Of the evidence document.
    pub digest: String,
    /// Digest of the run before.
    pub previous: Option<String>,
    /// The evidence document; empty for old runs.
    pub json: String,
}

/// Which installation and which applied plan this state is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateIdentity {
    /// `s-` and 12 hex digits: differs for every key and every application of a plan.
    pub state: String,
    pub plan: String,
    pub applied_at: Timestamp,
    /// The plan as it was saved.
    pub json: String,
}

fn gate_run(r: &Row) -> StoreResult<GateRun> {
    let verdict: String = r.get(3);
    Ok(GateRun {
        seq: r.get(0),
        at: Timestamp::from_millis(r.get(1)),
        plan: r.get(2),
        verdict: Verdict::parse(&verdict).ok_or(StoreError::Corrupt { what: "verdict", detail: verdict })?,
        open_until: Timestamp::from_millis(r.get(4)),
        digest: r.get(5),
        previous: r.get(6),
        json: r.get(7),
    })
}

impl Store {
    /// The plan that is applied here, and the name of this state.
    pub async fn load_identity(&self) -> StoreResult<Option<StateIdentity>> {
        let row = query("SELECT id, applied_at, json FROM plan LIMIT 1")
            .fetch_optional(&mut self.lock().await)
            .await
            .during("look for an applied plan")?;
        Ok(row.map(|r| {
            let (plan, applied_at): (String, i64) = (r.get(0), r.get(1));
            let digest = self.vault().fingerprints().identity_digest(&format!("state:{plan}:{applied_at}")).to_string();
            let state = format!("s-{}", &digest[..12]);
            StateIdentity { state, plan, applied_at: Timestamp::from_millis(applied_at), json: r.get(2) }
        }))
    }

    /// Gives a waiver. The same one again changes nothing.
    pub async fn save_waiver(&self, waiver: &Waiver) -> StoreResult<()> {
        query(
            "INSERT INTO waiver (id, criterion, scope, given_by, reason, given_at, ends_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING",
        )
        .bind(&waiver.id)
        .bind(&waiver.criterion)
        .bind(&waiver.scope)
        .bind(&waiver.by)
        .bind(&waiver.reason)
        .bind(waiver.given_at.millis())
        .bind(waiver.until.millis())
        .execute(&mut self.lock().await)
        .await
        .during("save a waiver")?;
        Ok(())
    }

    /// Ends a waiver early. Says whether there was one to end.
    pub async fn revoke_waiver(&self, id: &str, by: &str, now: Timestamp) -> StoreResult<bool> {
        let done = query("UPDATE waiver SET revoked_at = $1, revoked_by = $2 WHERE id = $3 AND revoked_at IS NULL")
            .bind(now.millis())
            .bind(by)
            .bind(id)
            .execute(&mut self.lock().await)
            .await
            .during("revoke a waiver")?;
        Ok(done > 0)
    }

    /// All waivers that were ever given, oldest first.
    pub async fn load_waivers(&self) -> StoreResult<Vec<Waiver>> {
        let rows = query(
            "SELECT id, criterion, scope, given_by, reason, given_at, ends_at, revoked_at, revoked_by
             FROM waiver ORDER BY given_at, id",
        )
        .fetch_all(&mut self.lock().await)
        .await
        .during("load waivers")?;
        Ok(rows
            .into_iter()
            .map(|r| Waiver {
                id: r.get(0),
                criterion: r.get(1),
                scope: r.get(2),
                by: r.get(3),
                reason: r.get(4),
                given_at: Timestamp::from_millis(r.get(5)),
                until: Timestamp::from_millis(r.get(6)),
                revoked_at: r.get::<Option<i64>>(7).map(Timestamp::from_millis),
                revoked_by: r.get(8),
            })
            .collect())
    }

    /// Appends a run of the gate to the chain. `seal` gets the digest of the run before and makes
    /// the run; its `seq` is set here.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn append_gate_run(
        &self,
        seal: impl FnOnce(i64, Option<String>) -> GateRun + Send,
    ) -> StoreResult<GateRun> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Events).await.during("begin")?;
        let last = query("SELECT seq, digest FROM gate_run ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&mut tx)
            .await
            .during("look for the last gate run")?;
        let (seq, previous) = last.map_or((1, None), |r| (r.get::<i64>(0) + 1, Some(r.get(1))));
        let run = seal(seq, previous);
        query(
            "INSERT INTO gate_run (seq, at, plan, verdict, open_until, digest, previous, json)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(run.seq)
        .bind(run.at.millis())
        .bind(&run.plan)
        .bind(run.verdict.name())
        .bind(run.open_until.millis())
        .bind(&run.digest)
        .bind(run.previous.clone())
        .bind(&run.json)
        .execute(&mut tx)
        .await
        .during("record a gate run")?;
        query("UPDATE gate_run SET json = '' WHERE seq <= $1 AND json <> ''")
            .bind(run.seq - BODIES_KEPT)
            .execute(&mut tx)
            .await
            .during("forget an old document")?;
        tx.commit().await.during("commit")?;
        Ok(run)
    }

    /// All gate runs, oldest first, without their documents.
    pub async fn load_gate_runs(&self) -> StoreResult<Vec<GateRun>> {
        let rows = query("SELECT seq, at, plan, verdict, open_until, digest, previous, '' FROM gate_run ORDER BY seq")
            .fetch_all(&mut self.lock().await)
            .await
            .during("load gate runs")?;
        rows.iter().map(gate_run).collect()
    }

    /// The newest gate run.
    pub async fn load_last_gate_run(&self) -> StoreResult<Option<GateRun>> {
        let row = query(
            "SELECT seq, at, plan, verdict, open_until, digest, previous, json FROM gate_run ORDER BY seq DESC LIMIT 1",
        )
        .fetch_optional(&mut self.lock().await)
        .await
        .during("load the last gate run")?;
        row.as_ref().map(gate_run).transpose()
    }
}
