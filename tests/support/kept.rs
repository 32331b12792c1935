//! States that rehearsals left behind, for commands that read one.

#![allow(dead_code, reason = "each test binary uses its part of this")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cutover::domain::time::Timestamp;

/// A folder with a state, its key and its policy, and the virtual time at which its rehearsal ended.
pub struct Kept {
    pub dir: tempfile::TempDir,
    pub ended_at: Timestamp,
    pub report: serde_json::Value,
}

/// When rehearsals begin.
const START_S: i64 = 1_778_058_000;

impl Kept {
    /// Rehearses four connections with these arguments.
    pub fn rehearse(arguments: &[&str]) -> Self {
        Self::rehearse_many(4, arguments)
    }

    pub fn rehearse_many(connections: u32, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_cutover"))
            .args(["rehearse", "--days", "1", "--format", "json", "--keep", "state"])
            .args(["--connections", &connections.to_string()])
            .args(arguments)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        let ended_at = Timestamp::from_secs(START_S + report["elapsed_virtual_s"].as_i64().unwrap());
        Self { dir, ended_at, report }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command on this state, `after_ms` after its rehearsal ended.
    pub fn command(&self, after_ms: i64, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        command
            .args(args)
            .args(["--state", "sqlite:state/cutover.db", "--key-file", "state/cutover.key"])
            .current_dir(self.dir.path())
            .env_remove("GITHUB_ACTIONS")
            .env_remove("GITHUB_STEP_SUMMARY")
            .env("CUTOVER_NOW", self.ended_at.plus_ms(after_ms).to_rfc3339())
            .stdin(Stdio::null());
        command
    }

    /// Runs it with the policy of its plan. Exit code, stdout, stderr.
    pub fn run(&self, after_ms: i64, args: &[&str]) -> (i32, String, String) {
        done(self.command(after_ms, args).args(["--policy", "state/policy.toml"]))
    }
}

pub fn done(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// The text of a file in the repository.
pub fn repository(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}
