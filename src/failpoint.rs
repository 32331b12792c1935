//! Named places at which a test can have the process killed: `CUTOVER_FAILPOINT=name` dies when it
//! first gets there, `name:3` the third time. Only builds with debug assertions look.
//!
//! The process ends at once: nothing is flushed, dropped or answered. With `panic:name` only the task
//! that gets there ends.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Before each change to the files of a comparison that can be resumed.
pub const VERIFY_FILES: &str = "verify-files";

/// Every name in the shim, for the test that goes through all of them.
pub const NAMES: [&str; 12] = [
    "intake-before-commit",
    "intake-after-commit",
    "settle-before-commit",
    "settle-after-commit",
    "poll-claimed",
    "poll-read",
    "append-before-commit",
    "append-after-commit",
    "delivery-claimed",
    "delivery-sent",
    "mark-before-commit",
    "mark-after-commit",
];

struct Armed {
    name: String,
    panics: bool,
    left: AtomicU32,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Arms what the environment names. Called once, by the command line.
///
/// # Errors
/// When there is no such place.
pub fn arm(text: &str) -> Result<(), String> {
    let (panics, place) = text.strip_prefix("panic:").map_or((false, text), |place| (true, place));
    let (name, count) = place.split_once(':').unwrap_or((place, "1"));
    let count = count.parse().ok().filter(|&n: &u32| n > 0).ok_or_else(|| format!("`{text}` has no count"))?;
    if !NAMES.contains(&name) && name != VERIFY_FILES {
        return Err(format!("there is no failpoint `{name}`"));
    }
    ARMED.get_or_init(|| Armed { name: name.to_owned(), panics, left: AtomicU32::new(count) });
    Ok(())
}

/// Dies here when this place is armed and its turn has come.
///
/// # Panics
/// When it is armed to.
pub fn hit(name: &'static str) {
    if cfg!(debug_assertions)
        && let Some(armed) = ARMED.get()
        && armed.name == name
        && armed.left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        assert!(!armed.panics, "failpoint `{name}`");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_what_exists_can_be_armed() {
        assert!(
            super::arm("nowhere").is_err() && super::arm("poll-read:0").is_err() && super::arm("poll-read:x").is_err()
        );
        super::hit("poll-read");
    }
}
