//! Leases: what one machine does for all, and who.

use super::db::Lock;
use super::{Backend, During, Store, StoreResult, VaultError, query};
use crate::domain::secret::hex;
use crate::domain::time::Timestamp;

/// Who leads, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// This store's holder leads. The epoch grows whenever another one takes over.
    Ours { epoch: u64 },
    /// Another one does, at least until then.
    Theirs { until: Timestamp },
}

/// A name for one opening of a state.
pub(super) fn new_holder() -> Result<String, VaultError> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|_| VaultError::Random)?;
    Ok(hex(&bytes))
}

/// What a claim is called among the leases.
fn claimed(name: &str) -> String {
    format!("claim:{name}")
}

impl Store {
    /// Takes a lease, or renews it, until `until`. One that ran out goes to whoever asks first. A
    /// state that no other machine can open is always led by the one that has it.
    pub async fn lead(&self, name: &str, now: Timestamp, until: Timestamp) -> StoreResult<Lead> {
        if !self.is_shared() {
            return Ok(Lead::Ours { epoch: 0 });
        }
        self.take_lease(name, now, until).await
    }

    /// Takes, or renews, what one process at a time may do, wherever the state is. It is given back
    /// by name, or runs out: what its holder sent may be on its way when the holder has ended.
    pub async fn claim(&self, name: &str, now: Timestamp, until: Timestamp) -> StoreResult<Lead> {
        self.take_lease(&claimed(name), now, until).await
    }

    async fn take_lease(&self, name: &str, now: Timestamp, until: Timestamp) -> StoreResult<Lead> {
        let row = query(
            "INSERT INTO lease (name, holder, epoch, until) VALUES ($1, $2, 1, $4)
             ON CONFLICT (name) DO UPDATE SET
               epoch = CASE WHEN lease.holder = $2 THEN lease.epoch WHEN lease.until <= $3 THEN lease.epoch + 1 ELSE lease.epoch END,
               until = CASE WHEN lease.holder = $2 OR lease.until <= $3 THEN $4 ELSE lease.until END,
               holder = CASE WHEN lease.holder = $2 OR lease.until <= $3 THEN $2 ELSE lease.holder END
             RETURNING holder, epoch, until",
        )
        .bind(name)
        .bind(&self.holder)
        .bind(now.millis())
        .bind(until.millis())
        .fetch_one(&mut self.lock().await)
        .await
        .during("take a lease")?;
        Ok(if row.get::<String>(0) == self.holder {
            Lead::Ours { epoch: row.get::<i64>(1) as u64 }
        } else {
            Lead::Theirs { until: Timestamp::from_millis(row.get(2)) }
        })
    }

    /// Gives back what [`Store::claim`] took.
    pub async fn release(&self, name: &str) -> StoreResult<()> {
        query("DELETE FROM lease WHERE name = $1 AND holder = $2")
            .bind(claimed(name))
            .bind(&self.holder)
            .execute(&mut self.lock().await)
            .await
            .during("give a lease back")?;
        Ok(())
    }

    /// Whether another process has claimed it.
    pub async fn is_claimed_elsewhere(&self, name: &str, now: Timestamp) -> StoreResult<bool> {
        let row = query("SELECT COUNT(*) FROM lease WHERE name = $1 AND holder <> $2 AND until > $3")
            .bind(claimed(name))
            .bind(&self.holder)
            .bind(now.millis())
            .fetch_one(&mut self.lock().await)
            .await
            .during("look at a lease")?;
        Ok(row.get::<i64>(0) > 0)
    }

    /// Makes this the one process that carries out operations on the plan, until it ends or is
    /// closed. Returns whether it is. On a state file the caller holds the lock file already.
    pub async fn lock_operations(&self) -> StoreResult<bool> {
        let Backend::Postgres(pool) = &*self.backend else { return Ok(true) };
        let mut held = self.operations.lock().await;
        if held.is_some() {
            return Ok(true);
        }
        // The lock lives as long as its connection, which is nobody else's from here on.
        let mut connection = pool.acquire().await.during("lock the operations")?.detach();
        let locked: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(Lock::OPERATIONS)
            .fetch_one(&mut connection)
            .await
            .during("lock the operations")?;
        if locked {
            *held = Some(connection);
        }
        Ok(locked)
    }

    /// Gives back every lead of this opening, so that nobody has to wait for its end.
    pub async fn release_leases(&self) -> StoreResult<()> {
        query("UPDATE lease SET until = 0 WHERE holder = $1 AND substr(name, 1, 6) <> 'claim:'")
            .bind(&self.holder)
            .execute(&mut self.lock().await)
            .await
            .during("give leases back")?;
        Ok(())
    }
}
