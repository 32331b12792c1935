//! The dashboard and the terminal that it is drawn in.

#[path = "support/kept.rs"]
mod kept;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kept::Kept;

/// Waits for a condition; the pause only keeps the wait from taking a processor.
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that has ended and was not asked for its exit code yet still has an entry.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Whatever becomes of the test, nothing of it runs on.
struct Running {
    terminal: Child,
    pid: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.terminal.kill();
        let _ = self.terminal.wait();
        if is_running(&self.pid) {
            let _ = Command::new("kill").args(["-9", &self.pid]).status();
        }
    }
}

/// A person closes the laptop: the SSH session and its terminal are gone. `script` makes a terminal,
/// and killing it takes the terminal away.
#[test]
fn a_dashboard_ends_when_its_terminal_is_gone() {
    let kept = Kept::rehearse(&[]);
    let program = env!("CARGO_BIN_EXE_cutover");
    let soak = format!(
        "echo $$ > pid; stty cols 120 rows 40; exec {program} soak --state sqlite:state/cutover.db --key-file state/cutover.key --policy state/policy.toml"
    );
    let terminal = Command::new("script")
        .args(["-qfec", &soak, "screen"])
        .current_dir(kept.dir.path())
        .env("CUTOVER_NOW", kept.ended_at.to_rfc3339())
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut running = Running { terminal, pid: String::new() };
    let screen = kept.path("screen");
    wait_for("the first picture", || {
        running.pid = std::fs::read_to_string(kept.path("pid")).unwrap_or_default().trim().to_owned();
        std::fs::read(&screen).is_ok_and(|shown| String::from_utf8_lossy(&shown).contains("retired"))
    });
    assert!(is_running(&running.pid));
    running.terminal.kill().unwrap();
    running.terminal.wait().unwrap();
    wait_for("the end of the dashboard", || !is_running(&running.pid));
}
