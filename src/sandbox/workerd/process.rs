//! The runner's process. It ends when its standard input does, so it never outlives this one.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{Workerd, WorkerdError};

/// Starting takes a second or two; a busy machine may need much longer.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long it may take to put its state away before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Lines of its standard error that an error message repeats.
const SAID_LINES: usize = 6;

/// A running gateway with its API.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    /// Everything that the runtime keeps. Removed with it.
    _state: TempDir,
    /// `http://127.0.0.1:port` of the Worker.
    pub gateway: String,
    /// `http://127.0.0.1:port` of Cloudflare's API over its KV, D1 and objects.
    pub cloudflare: String,
}

impl Process {
    /// Starts it and waits until it serves. Blocks.
    pub fn start(workerd: &Workerd, settings: &Value) -> Result<Self, WorkerdError> {
        let state = state_folder().map_err(WorkerdError::Spawn)?;
        let mut command = Command::new("node");
        command.env("TMPDIR", state.path());
        command.arg("serve.mjs").current_dir(workerd.folder());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A Ctrl-C is for us; it is then told to stop.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(WorkerdError::Spawn)?;
        let mut stdin = child.stdin.take().expect("standard input is piped");
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let (ready, addresses) = mpsc::channel();
        std::thread::spawn({
            let said = Arc::clone(&said);
            move || listen(stderr.expect("standard error is piped"), &said)
        });
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout.expect("standard output is piped"));
            let mut line = String::new();
            // The other end is gone when nobody waits any more.
            let _heard = ready.send(stdout.read_line(&mut line).map(|_| line));
        });
        let sent = writeln!(stdin, "{settings}").and_then(|()| stdin.flush());
        let line = addresses.recv_timeout(READY_WITHIN).ok().and_then(Result::ok).unwrap_or_default();
        let told: Value = serde_json::from_str(&line).unwrap_or_default();
        let (Ok(()), Some(gateway), Some(cloudflare)) = (sent, told["gateway"].as_str(), told["cloudflare"].as_str())
        else {
            kill(&mut child);
            let lines = said.lock().unwrap_or_else(PoisonError::into_inner);
            let said = lines.iter().cloned().collect::<Vec<String>>().join(" | ");
            return Err(WorkerdError::NotReady { said });
        };
        let (gateway, cloudflare) = (gateway.to_owned(), cloudflare.to_owned());
        Ok(Self { child, stdin: Some(stdin), _state: state, gateway, cloudflare })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stdin = None;
        let mut waited = Duration::ZERO;
        let step = Duration::from_millis(20);
        while waited < STOP_WITHIN {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(step);
            waited += step;
        }
        kill(&mut self.child);
    }
}

/// In memory where there is such a folder: the runtime syncs every write to disk, and beside other
/// work on the same disk that stops all requests for seconds.
fn state_folder() -> io::Result<TempDir> {
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("cutover-workerd-");
        builder
    };
    builder().tempdir_in("/dev/shm").or_else(|_| builder().tempdir())
}

/// The runtime is a child of the runner and would outlive it: the whole group goes.
fn kill(child: &mut Child) {
    let group = format!("-{}", child.id());
    let killed = cfg!(unix) && Command::new("kill").args(["-KILL", "--", &group]).status().is_ok_and(|s| s.success());
    // Fails only when it has ended by itself, which is as good.
    let _ended = killed || child.kill().is_ok();
    let _reaped = child.wait().is_ok();
}

/// Passes the runtime's messages on, and keeps the last of them.
fn listen(stderr: impl Read, said: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        tracing::warn!("workerd: {line}");
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= SAID_LINES {
            said.pop_front();
        }
        said.push_back(line);
    }
}
