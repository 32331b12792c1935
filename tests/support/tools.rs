//! Programs that tests look through: from the machine, else from its distribution.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes sure that `program` is there, from `package` if it is not. Test binaries that run at once
/// wait for each other.
///
/// # Panics
/// When it is not there and cannot be installed: says what to install.
pub fn need(program: &str, package: &str) {
    let there = || {
        let probe = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        probe.is_ok()
    };
    if there() {
        return;
    }
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages.lock")).unwrap();
    lock.lock().unwrap();
    if there() {
        return;
    }
    let script = format!("apt-get update -qq && apt-get install -y -qq --no-install-recommends {package}");
    let installed = Command::new("sh").args(["-c", &script]).env("DEBIAN_FRONTEND", "noninteractive").output();
    let said = installed.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stderr).into_owned());
    assert!(there(), "this test needs `{program}`: install the package `{package}`\n{said}");
}
