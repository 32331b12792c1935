//! A copy of the state to try things on.

use std::path::Path;

use super::{During, Store, StoreResult};

impl Store {
    /// Writes a copy of the whole state to a new file, as of one moment. Secrets stay encrypted
    /// under the same key.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub async fn copy_to(&self, path: &Path) -> StoreResult<()> {
        sqlx::query("VACUUM INTO ?")
            .bind(path.display().to_string())
            .execute(&mut *self.lock().await)
            .await
            .during("copy the state")?;
        Ok(())
    }
}
