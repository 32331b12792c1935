//! The applied plan and the triplets in it.

use super::db::Lock;
use super::{During, Row, Store, StoreError, StoreResult, from_json, query, to_json};
use crate::catalogue::identity::Identity;
use crate::domain::custody::Custody;
use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;
use crate::plan::Route;
use serde_json::json;

/// A triplet of a plan that is being applied.
#[derive(Clone, Debug)]
pub struct NewTriplet {
    pub triplet: Triplet,
    pub integration_key: String,
    pub connection_id: String,
    pub route: Route,
    pub wave: Option<u32>,
    pub toolkit: Option<String>,
    pub scopes: Vec<String>,
}

/// A triplet as the store has it.
#[derive(Clone, Debug, PartialEq)]
pub struct TripletRow {
    pub triplet: Triplet,
    /// Row id of the connection that feeds it.
    pub connection: i64,
    pub integration_key: String,
    pub wave: Option<u32>,
    pub toolkit: Option<String>,
    pub scopes: Vec<String>,
    pub custody: Custody,
    pub version: u64,
    pub expires_at: Option<Timestamp>,
    pub mirror_account: Option<String>,
    pub old_identity: Option<Identity>,
    /// The upstream account of the consent was the same (`equal`) or another (`different`).
    pub identity: Option<String>,
    /// The consent granted `enough`, or which scopes were missing.
    pub granted: Option<String>,
    pub consent_attempts: u32,
    pub consent_account: Option<String>,
    pub consent_until: Option<Timestamp>,
}

/// A `SELECT` of all columns that [`row`] reads, in its order.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT key, connection, integration_key, wave, toolkit, scopes, custody, version, expires_at, \
             mirror_account, old_identity, identity, granted, consent_attempts, consent_account, consent_until \
             FROM triplet ",
            $rest
        )
    };
}

impl TripletRow {
    /// Whether custody of this triplet moves at all.
    pub fn moves(&self) -> bool {
        matches!(self.custody.route, Route::Reconsent | Route::Static)
    }

    /// The account at the target that serves once reads are there: the one that a person consented
    /// for, or the copy of a long-lived secret.
    pub fn final_account(&self) -> Option<&str> {
        match self.custody.route {
            Route::Static => self.mirror_account.as_deref(),
            _ => self.custody.account.as_deref(),
        }
    }

    /// Its stage, or that it is held or stays, in one word.
    pub fn standing(&self) -> &'static str {
        match self.custody.route {
            Route::Retain => "retained",
            _ if self.custody.held.is_some() => "held",
            _ => self.custody.stage.name(),
        }
    }
}

impl Store {
    /// Records that a plan is applied here, with its connections and triplets. Doing it again
    /// with the same plan changes nothing.
    ///
    /// # Errors
    /// `OtherPlan` when another plan was applied to this state before.
    pub async fn begin_plan(&self, id: &str, json: &str, triplets: &[NewTriplet], now: Timestamp) -> StoreResult<()> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        let applied: Option<String> = query("SELECT id FROM plan LIMIT 1")
            .fetch_optional(&mut tx)
            .await
            .during("look for an applied plan")?
            .map(|r| r.get(0));
        match applied {
            Some(applied) if applied == id => return Ok(()),
            Some(applied) => return Err(StoreError::OtherPlan { applied, given: id.to_owned() }),
            None => {}
        }
        query("INSERT INTO plan (id, applied_at, json) VALUES ($1, $2, $3)")
            .bind(id)
            .bind(now.millis())
            .bind(json)
            .execute(&mut tx)
            .await
            .during("record the plan")?;
        let rows: Vec<_> = triplets
            .iter()
            .map(|t| {
                let custody = Custody::planned(t.route);
                json!({
                    "key": t.triplet, "ik": t.integration_key, "cid": t.connection_id, "wave": t.wave,
                    "toolkit": t.toolkit, "scopes": to_json(&t.scopes), "stage": custody.stage.name(),
                    "custody": to_json(&custody),
                })
            })
            .collect();
        let rows = serde_json::Value::Array(rows).to_string();
        query(
            "INSERT INTO connection (integration_key, connection_id)
             SELECT DISTINCT value->>'ik', value->>'cid' FROM json_each($1) ORDER BY 1, 2",
        )
        .bind(&rows)
        .execute(&mut tx)
        .await
        .during("record connections")?;
        query(
            "INSERT INTO triplet (key, connection, integration_key, wave, toolkit, scopes, custody, stage)
             SELECT j.value->>'key', c.id, j.value->>'ik', CAST(j.value->>'wave' AS BIGINT), j.value->>'toolkit', j.value->>'scopes',
                    j.value->>'custody', j.value->>'stage'
             FROM json_each($1) AS j JOIN connection c
               ON c.integration_key = j.value->>'ik' AND c.connection_id = j.value->>'cid'",
        )
        .bind(&rows)
        .execute(&mut tx)
        .await
        .during("record triplets")?;
        tx.commit().await.during("commit")
    }

    /// The plan that is applied here, or is being applied.
    pub async fn load_plan_id(&self) -> StoreResult<Option<String>> {
        let row = query("SELECT id FROM plan LIMIT 1")
            .fetch_optional(&mut self.lock().await)
            .await
            .during("look for an applied plan")?;
        Ok(row.map(|r| r.get(0)))
    }

    /// All triplets, sorted.
    pub async fn load_triplets(&self) -> StoreResult<Vec<TripletRow>> {
        let rows = query(select!("ORDER BY key")).fetch_all(&mut self.read().await).await.during("load triplets")?;
        rows.iter().map(row).collect()
    }

    /// One triplet, as it is now.
    pub async fn load_triplet(&self, triplet: &Triplet) -> StoreResult<Option<TripletRow>> {
        let found = query(select!("WHERE key = $1"))
            .bind(triplet.to_string())
            .fetch_optional(&mut self.lock().await)
            .await
            .during("load a triplet")?;
        found.as_ref().map(row).transpose()
    }

    /// The `limit` triplets that want attention first: held ones, then those whose token ends soonest.
    pub async fn load_urgent_triplets(&self, limit: u32) -> StoreResult<Vec<TripletRow>> {
        let rows = query(select!(
            "ORDER BY CASE WHEN custody LIKE '%\"held\":\"%' THEN 0 WHEN expires_at IS NOT NULL THEN 1 ELSE 2 END, \
             expires_at, key LIMIT $1"
        ))
        .bind(limit)
        .fetch_all(&mut self.read().await)
        .await
        .during("load triplets")?;
        rows.iter().map(row).collect()
    }

    /// The triplets that these connections feed, sorted.
    pub async fn load_triplets_of(&self, connections: &[i64]) -> StoreResult<Vec<TripletRow>> {
        let rows =
            query(select!("WHERE connection IN (SELECT CAST(value->>0 AS BIGINT) FROM json_each($1)) ORDER BY key"))
                .bind(json!(connections.iter().map(|id| [id]).collect::<Vec<_>>()).to_string())
                .fetch_all(&mut self.lock().await)
                .await
                .during("load triplets")?;
        rows.iter().map(row).collect()
    }

    pub async fn save_mirror_account(&self, triplet: &Triplet, account: &str) -> StoreResult<()> {
        query("UPDATE triplet SET mirror_account = $1 WHERE key = $2")
            .bind(account)
            .bind(triplet.to_string())
            .execute(&mut self.lock().await)
            .await
            .during("save a mirror account")?;
        Ok(())
    }

    pub async fn save_old_identity(&self, triplet: &Triplet, identity: &Identity) -> StoreResult<()> {
        query("UPDATE triplet SET old_identity = $1 WHERE key = $2")
            .bind(to_json(identity))
            .bind(triplet.to_string())
            .execute(&mut self.lock().await)
            .await
            .during("save an identity")?;
        Ok(())
    }

    /// Records what the comparison after a consent found.
    pub async fn save_comparison(&self, triplet: &Triplet, identity: &str, granted: &str) -> StoreResult<()> {
        query("UPDATE triplet SET identity = $1, granted = $2 WHERE key = $3")
            .bind(identity)
            .bind(granted)
            .bind(triplet.to_string())
            .execute(&mut self.lock().await)
            .await
            .during("save a comparison")?;
        Ok(())
    }

    /// Records a consent link that was made; its account id waits to become ACTIVE.
    pub async fn save_consent(&self, triplet: &Triplet, account: &str, until: Timestamp) -> StoreResult<()> {
        query(
            "UPDATE triplet SET consent_attempts = consent_attempts + 1, consent_account = $1, consent_until = $2 WHERE key = $3",
        )
        .bind(account)
        .bind(until.millis())
        .bind(triplet.to_string())
        .execute(&mut self.lock().await)
        .await
        .during("save a consent link")?;
        Ok(())
    }

    /// Forgets the open consent link.
    pub async fn clear_consent(&self, triplet: &Triplet) -> StoreResult<()> {
        query("UPDATE triplet SET consent_account = NULL, consent_until = NULL WHERE key = $1")
            .bind(triplet.to_string())
            .execute(&mut self.lock().await)
            .await
            .during("clear a consent link")?;
        Ok(())
    }
}

fn row(r: &Row) -> StoreResult<TripletRow> {
    let at = |i: usize| r.get::<Option<i64>>(i).map(Timestamp::from_millis);
    Ok(TripletRow {
        triplet: super::delivery::parse_triplet(&r.get::<String>(0))?,
        connection: r.get(1),
        integration_key: r.get(2),
        wave: r.get::<Option<i64>>(3).map(|n| n as u32),
        toolkit: r.get(4),
        scopes: from_json("scopes", &r.get::<String>(5))?,
        custody: from_json("custody", &r.get::<String>(6))?,
        version: r.get::<i64>(7) as u64,
        expires_at: at(8),
        mirror_account: r.get(9),
        old_identity: r.get::<Option<String>>(10).map(|t| from_json("identity", &t)).transpose()?,
        identity: r.get(11),
        granted: r.get(12),
        consent_attempts: r.get::<i64>(13) as u32,
        consent_account: r.get(14),
        consent_until: at(15),
    })
}
