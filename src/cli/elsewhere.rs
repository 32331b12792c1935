//! Where the engine cannot look for zombies: other environments of the gateway, and a checkout of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::Config;
use super::operate::Session;
use super::{CommandError, Ui};
use crate::clients::HttpOutside;
use crate::domain::secret::Secret;
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::engine::{EngineError, EngineResult, Zombie, ZombieKind};
use crate::plan::removal::{self, File};
use crate::ports::{AlarmMode, GatewayRead, Outside};

/// Folders of a checkout that hold nothing of the team's own.
const SKIPPED: [&str; 7] = [".git", "node_modules", "dist", "build", ".wrangler", "target", "coverage"];

/// Files of a checkout that are read at most, and bytes of each.
const FILES_MAX: usize = 20_000;
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How long to wait before an environment is asked again that did not answer.
const AGAIN_MS: i64 = 30 * SECOND_MS;

/// Where else to look
#[derive(clap::Args, Clone, Debug)]
pub struct ElsewhereArgs {
    /// Another environment's gateway to look at (can be repeated); its admin key is in
    /// CUTOVER_GATEWAY_ADMIN_KEY_<NAME>
    #[arg(long, value_name = "NAME=URL", value_parser = environment)]
    environment: Vec<(String, reqwest::Url)>,
    /// A checkout of the gateway to look for what still speaks of the class
    #[arg(long, value_name = "PATH")]
    repo: Option<PathBuf>,
}

fn environment(text: &str) -> Result<(String, reqwest::Url), String> {
    let wanted = || "NAME=URL is wanted, such as staging=https://gateway.staging.example.com".to_owned();
    let (name, url) = text.split_once('=').ok_or_else(wanted)?;
    let fits = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let url = reqwest::Url::parse(url).ok().filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
    match (fits, url) {
        (true, Some(url)) => Ok((name.to_owned(), url)),
        _ => Err(wanted()),
    }
}

/// The places of [`ElsewhereArgs`], ready to be looked at.
pub struct Elsewhere {
    environments: Vec<(String, HttpOutside)>,
    repo: Option<PathBuf>,
}

impl Elsewhere {
    /// # Errors
    /// Exit code 2 for an admin key that is not set, settings that cannot be used and a checkout that
    /// cannot be read.
    pub fn open(args: &ElsewhereArgs, session: &Session, ui: &Ui) -> Result<Self, CommandError> {
        let mut environments = Vec::new();
        for (name, url) in &args.environment {
            let variable = format!("CUTOVER_GATEWAY_ADMIN_KEY_{}", name.to_uppercase().replace('-', "_"));
            let key = std::env::var(&variable).ok().filter(|key| !key.is_empty()).ok_or_else(|| {
                CommandError::usage(format!("`{variable}` is not set"))
                    .hint(format!("it holds the admin key of the gateway in environment `{name}`"))
            })?;
            let mut endpoints = Config::load(ui.config.as_deref())?.endpoints()?;
            endpoints.gateway.base = url.clone();
            endpoints.gateway.admin_key = Secret::new(key);
            let outside = HttpOutside::new(endpoints, Arc::clone(&session.clock))
                .map_err(|error| CommandError::usage("cannot use the settings").because(&error))?;
            environments.push((name.clone(), outside));
        }
        if let Some(repo) = &args.repo {
            read_checkout(repo)?;
        }
        Ok(Self { environments, repo: args.repo.clone() })
    }

    /// What is found there now.
    ///
    /// # Errors
    /// `Later` when an environment does not answer, `Refused` when one refuses its key or the
    /// checkout cannot be read.
    pub async fn look(&self, now: Timestamp) -> EngineResult<Vec<Zombie>> {
        let mut found = Vec::new();
        for (name, outside) in &self.environments {
            let alarms = outside.gateway().list_alarms().await.map_err(|error| match error.is_transient() {
                true => EngineError::Later { at: now.plus_ms(error.kind.wait_ms().unwrap_or(AGAIN_MS)), error },
                false => EngineError::Refused(format!("environment `{name}` cannot be looked at: {error}")),
            })?;
            let armed: Vec<_> =
                alarms.iter().filter(|a| a.mode != AlarmMode::Disarmed || a.alarm_at.is_some()).collect();
            if let Some(first) = armed.first() {
                found.push(Zombie {
                    kind: ZombieKind::Environment,
                    subject: name.clone(),
                    detail: format!("{} of its objects are armed, such as `{}`", armed.len(), first.triplet),
                    remedy: "retire that environment too: its objects refresh the same grants".to_owned(),
                });
            }
        }
        if let Some(repo) = &self.repo {
            let files = read_checkout(repo).map_err(|error| EngineError::Refused(error.to_string()))?;
            found.extend(removal::removal(&files, removal::CLASS).references.into_iter().map(|reference| Zombie {
                kind: ZombieKind::Reference,
                subject: format!("{}:{}", reference.path, reference.line),
                detail: format!("speaks of `{}`", reference.word),
                remedy: "take it out with the class".to_owned(),
            }));
        }
        Ok(found)
    }
}

/// The text files of a checkout, in the order of their paths.
///
/// # Errors
/// Exit code 2 when it cannot be read or holds too much.
pub(super) fn read_checkout(repo: &Path) -> Result<Vec<File>, CommandError> {
    let cannot = |path: &Path, error: &std::io::Error| {
        CommandError::usage(format!("cannot read the checkout `{}`", path.display())).because(error)
    };
    let (mut open, mut files) = (vec![repo.to_path_buf()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| cannot(&folder, &error))? {
            let entry = entry.map_err(|error| cannot(&folder, &error))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(|error| cannot(&folder, &error))?);
            let name = entry.file_name().to_string_lossy().into_owned();
            // Links may lead out of the checkout, and round in circles.
            if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                open.push(path);
            } else if kind.is_file() && is_text(&name) {
                let size = entry.metadata().map_err(|error| cannot(&path, &error))?.len();
                if size > FILE_BYTES_MAX {
                    continue;
                }
                if files.len() == FILES_MAX {
                    return Err(CommandError::usage(format!("`{}` holds more than {FILES_MAX} files", repo.display()))
                        .hint("name the gateway's own folder as `--repo`"));
                }
                let bytes = std::fs::read(&path).map_err(|error| cannot(&path, &error))?;
                let Ok(text) = String::from_utf8(bytes) else { continue };
                let shown = path.strip_prefix(repo).unwrap_or(&path).to_string_lossy().replace('\\', "/");
                files.push(File { path: shown, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn is_text(name: &str) -> bool {
    let end = name.rsplit('.').next().unwrap_or_default();
    let known = ["ts", "mts", "cts", "tsx", "js", "mjs", "cjs", "jsx", "toml", "json", "jsonc", "yml", "yaml", "sh"];
    known.contains(&end) && !matches!(name, "package-lock.json")
}
