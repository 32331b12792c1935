//! Node.js and packages for tests: from the machine, else from its distribution; packages as the
//! lock file says, once for each version of it, under `target/`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};

/// Oldest Node.js that the packages run on.
const MAJOR_MIN: u32 = 20;

/// A folder of scripts with its packages installed.
#[derive(Debug)]
pub struct NodeProject {
    folder: PathBuf,
}

impl NodeProject {
    /// Copies `tests/{name}` and the `extra` folders (each under its own name) to `target/{name}`
    /// and installs the packages that its lock file names. Test binaries that run at once wait for
    /// each other.
    ///
    /// # Panics
    /// When there is no Node.js and none can be installed, or when `npm ci` fails: says which.
    pub fn install(name: &str, extra: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        let lock = File::create(folder.join(".lock")).unwrap();
        lock.lock().unwrap();
        need_node();
        let source = root.join("tests").join(name);
        copy(&source, &folder);
        for path in extra {
            let from = root.join(path);
            copy(&from, &folder.join(from.file_name().unwrap()));
        }
        // The packages and all that was made from them belong to one state of these files.
        let mut hash = Sha256::new();
        for file in ["package.json", "package-lock.json", "tsconfig.json", "shapes.ts", "shapes.mjs"] {
            hash.update(fs::read(source.join(file)).unwrap_or_default());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let state = cutover::domain::secret::hex(&digest);
        let stamp = folder.join("node_modules").join(".state");
        if fs::read_to_string(&stamp).unwrap_or_default() != state {
            drop(fs::remove_file(folder.join("vendor-schemas.json")));
            let installed =
                run(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&folder), "npm");
            assert!(installed.status.success(), "npm ci for tests/{name} failed:\n{}", text(&installed));
            fs::write(stamp, state).unwrap();
        }
        Self { folder }
    }

    /// `node script args…` in the project's folder, with no output of its own.
    pub fn script(&self, script: &str, args: &[&str]) -> Command {
        let mut command = Command::new("node");
        command.arg("--no-deprecation").arg(script).args(args).current_dir(&self.folder).stdin(Stdio::null());
        command
    }
}

/// Runs a command and gives what it printed.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command, name: &str) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("cannot run {name}: {error}"))
}

/// What a process printed, the errors last.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            if !path.ends_with("node_modules") {
                copy(&path, &target);
            }
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// The major version of the machine's Node.js, with npm beside it.
fn node_major() -> Option<u32> {
    let version = Command::new("node").arg("--version").output().ok()?;
    Command::new("npm").arg("--version").output().ok().filter(|npm| npm.status.success())?;
    String::from_utf8(version.stdout).ok()?.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// Makes sure that there is a Node.js that is new enough.
fn need_node() {
    if node_major().is_some_and(|major| major >= MAJOR_MIN) {
        return;
    }
    // Without a terminal: a package manager that wants to ask is a failure.
    let managers: [&[&str]; 4] = [
        &["apt-get", "install", "-y", "--no-install-recommends", "nodejs", "npm"],
        &["dnf", "install", "-y", "nodejs", "npm"],
        &["apk", "add", "nodejs", "npm"],
        &["brew", "install", "node"],
    ];
    let mut tried = String::new();
    for manager in managers {
        let Ok(output) = Command::new(manager[0]).args(&manager[1..]).stdin(Stdio::null()).output() else { continue };
        tried.push_str(&format!("{}:\n{}", manager.join(" "), text(&output)));
    }
    let found = node_major();
    assert!(
        found.is_some_and(|major| major >= MAJOR_MIN),
        "these tests need Node.js {MAJOR_MIN} or newer with npm, found {found:?}; install it and run them again\n{tried}"
    );
}
