//! Unpacks the gateway and installs the runtime with `npm ci`, once per version, into a cache.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::domain::secret::hex;
use crate::plan::removal::File;

use super::WorkerdError;

/// The oldest Node.js that the pinned runtime accepts.
const NODE_MAJOR_MIN: u32 = 20;

/// Everything that the runner needs, by path below its folder.
const FILES: [(&str, &str); 16] = [
    (".npmrc", include_str!("../../../fixtures/gateway/.npmrc")),
    ("package.json", include_str!("../../../fixtures/gateway/package.json")),
    ("package-lock.json", include_str!("../../../fixtures/gateway/package-lock.json")),
    ("serve.mjs", include_str!("../../../fixtures/gateway/serve.mjs")),
    ("cloudflare.mjs", include_str!("../../../fixtures/gateway/cloudflare.mjs")),
    ("bulk.mjs", include_str!("../../../fixtures/gateway/bulk.mjs")),
    ("schema.sql", include_str!("../../../fixtures/gateway/schema.sql")),
    ("src/worker.mjs", include_str!("../../../fixtures/gateway/src/worker.mjs")),
    ("src/admin.mjs", include_str!("../../../fixtures/gateway/src/admin.mjs")),
    ("src/clock.mjs", include_str!("../../../fixtures/gateway/src/clock.mjs")),
    ("src/hot-path.mjs", include_str!("../../../fixtures/gateway/src/hot-path.mjs")),
    ("src/provider.mjs", include_str!("../../../fixtures/gateway/src/provider.mjs")),
    ("src/replies.mjs", include_str!("../../../fixtures/gateway/src/replies.mjs")),
    ("src/sync.mjs", include_str!("../../../fixtures/gateway/src/sync.mjs")),
    ("src/token-manager.mjs", include_str!("../../../fixtures/gateway/src/token-manager.mjs")),
    ("src/token.mjs", include_str!("../../../fixtures/gateway/src/token.mjs")),
];

/// What `npm ci` reads; a change of anything else needs no new installation.
const NPM_FILES: [&str; 3] = [".npmrc", "package.json", "package-lock.json"];

/// An installed runtime with the gateway beside it, ready to be started any number of times.
#[derive(Clone, Debug)]
pub struct Workerd {
    folder: PathBuf,
}

/// The Worker's own code, without what serves it here.
pub fn worker_sources() -> Vec<File> {
    let of_the_worker = FILES.iter().filter(|(path, _)| path.starts_with("src/"));
    of_the_worker.map(|(path, text)| File { path: (*path).to_owned(), text: (*text).to_owned() }).collect()
}

impl Workerd {
    /// Takes the installation in `cache`, or makes it. Several processes may do so at once: each
    /// prepares a folder of its own and the first one to finish wins.
    ///
    /// # Errors
    /// When Node.js is absent or too old, npm fails, or the cache cannot be written.
    pub fn install(cache: &Path) -> Result<Self, WorkerdError> {
        check_node()?;
        let packages = cache.join(format!("npm-{}", digest(|path| NPM_FILES.contains(&path))));
        settle(&packages, |folder| {
            unpack(folder, |path| NPM_FILES.contains(&path))?;
            npm_ci(folder)
        })?;
        // Inside of the packages' folder, so that Node finds `node_modules` above it.
        let folder = packages.join(format!("gateway-{}", digest(|_| true)));
        settle(&folder, |folder| unpack(folder, |_| true))?;
        Ok(Self { folder })
    }

    /// Where `serve.mjs` is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Twelve hex digits over the files that are `wanted`.
fn digest(wanted: impl Fn(&str) -> bool) -> String {
    let mut hasher = Sha256::new();
    for (path, text) in FILES.iter().filter(|(path, _)| wanted(path)) {
        for part in [path, text] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
    }
    hex(&hasher.finalize()[..6])
}

/// Makes `folder` whole or not at all: `fill` works on another one, which is then renamed.
fn settle(folder: &Path, fill: impl FnOnce(&Path) -> Result<(), WorkerdError>) -> Result<(), WorkerdError> {
    if folder.is_dir() {
        return Ok(());
    }
    let failed = |source| WorkerdError::Folder { path: folder.display().to_string(), source };
    let parent = folder.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed)?;
    let made = tempfile::Builder::new().prefix(".making-").tempdir_in(parent).map_err(failed)?;
    fill(made.path())?;
    match fs::rename(made.path(), folder) {
        Ok(()) => {
            // What the guard would remove has its place now.
            let _moved = made.keep();
            Ok(())
        }
        Err(_) if folder.is_dir() => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn unpack(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), WorkerdError> {
    for (path, text) in FILES.iter().filter(|(path, _)| wanted(path)) {
        let path = folder.join(path);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
        written.map_err(|source| WorkerdError::Folder { path: path.display().to_string(), source })?;
    }
    Ok(())
}

fn check_node() -> Result<(), WorkerdError> {
    let output = Command::new("node").arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|source| WorkerdError::Missing { program: "node", source })?;
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let major = found.trim_start_matches('v').split('.').next().and_then(|text| text.parse::<u32>().ok());
    if major.is_none_or(|major| major < NODE_MAJOR_MIN) {
        return Err(WorkerdError::OldNode { found });
    }
    Ok(())
}

fn npm_ci(folder: &Path) -> Result<(), WorkerdError> {
    let mut command = Command::new("npm");
    command.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(folder).stdin(Stdio::null());
    let output = command.output().map_err(|source: io::Error| WorkerdError::Missing { program: "npm", source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().filter(|line| !line.trim().is_empty()).take(6).collect();
    let said = last.into_iter().rev().collect::<Vec<_>>().join(" | ");
    Err(WorkerdError::Npm { status: output.status, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_gateway_is_unpacked() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gateway");
        let below = |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let on_disk: std::collections::BTreeSet<String> = below(fixtures.clone())
            .chain(below(fixtures.join("src")))
            .filter(|path| path.is_file() && path.file_name().is_some_and(|name| name != "wrangler.jsonc"))
            .map(|path| path.strip_prefix(&fixtures).unwrap().display().to_string())
            .collect();
        assert_eq!(on_disk, FILES.iter().map(|(path, _)| (*path).to_owned()).collect());
    }

    #[test]
    fn a_folder_is_whole_or_not_there() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("a/b");
        let broken = settle(&folder, |_| Err(WorkerdError::OldNode { found: "v1".into() }));
        assert!(broken.is_err() && !folder.exists());
        settle(&folder, |folder| unpack(folder, |path| path.starts_with("src/"))).unwrap();
        assert!(folder.join("src/worker.mjs").is_file() && !folder.join("serve.mjs").exists());
        assert_eq!(fs::read_dir(cache.path().join("a")).unwrap().count(), 1, "nothing half-made stays");
        settle(&folder, |_| panic!("it is there already")).unwrap();
    }
}
