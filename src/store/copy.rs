//! A copy of the state to try things on.

use std::path::Path;

use super::{During, Store, StoreError, StoreResult, query};

impl Store {
    /// Writes a copy of the whole state to a new file, as of one moment. Secrets stay encrypted
    /// under the same key.
    ///
    /// # Errors
    /// When the file exists or cannot be written, or the state is not a file.
    pub async fn copy_to(&self, path: &Path) -> StoreResult<()> {
        if self.is_shared() {
            return Err(StoreError::NoCopy);
        }
        query("VACUUM INTO $1")
            .bind(path.display().to_string())
            .execute(&mut self.read().await)
            .await
            .during("copy the state")?;
        Ok(())
    }
}
