//! The file from which a comparison that was stopped goes on. It holds no secret: places, counts,
//! keys, diagnostics. The findings so far stand beside it, in `FILE.findings`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::finding::{Counts, Diagnostics};
use super::join::Conflicts;
use super::live::LiveTask;
use super::reader::Ending;
use super::rules::Rules;
use super::run::Order;
use super::side::Mark;
use super::spool::Segment;
use crate::failpoint;

/// The version of the format; another one is refused by name.
const RUN_VERSION: u32 = 2;

/// What was asked for. A run only goes on with the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub left: String,
    pub right: String,
    /// The state of each side when the run began.
    pub states: [Option<String>; 2],
    pub rules: Rules,
    pub order: Order,
    /// Bytes of memory that partitions may take.
    pub memory: u64,
    /// What a live side needs besides its name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub live: Option<LiveTask>,
}

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub(super) enum Progress {
    /// In one pass over sorted sides.
    Merging {
        /// The next entry of each side; `None` when it was read to its end.
        marks: [Option<Mark>; 2],
        endings: [Option<Ending>; 2],
        /// The last key of each side.
        last: [String; 2],
        counts: Counts,
        diagnostics: [Diagnostics; 2],
        spooled: u64,
    },
    /// Partition by partition.
    Joining {
        bits: u32,
        /// Partitions whose findings are all there.
        done: BTreeSet<usize>,
        segments: Vec<Segment>,
        counts: Counts,
        conflicts: Conflicts,
        spooled: u64,
    },
    /// Both sides were compared; what was found is not final yet.
    Compared {
        segments: Vec<Segment>,
        counts: Counts,
        diagnostics: Diagnostics,
        spooled: u64,
    },
    Done {
        segments: Vec<Segment>,
        counts: Counts,
        diagnostics: Diagnostics,
        spooled: u64,
    },
}

impl Progress {
    pub fn spooled(&self) -> u64 {
        match self {
            Self::Merging { spooled, .. }
            | Self::Joining { spooled, .. }
            | Self::Compared { spooled, .. }
            | Self::Done { spooled, .. } => *spooled,
        }
    }
}

#[derive(Serialize)]
struct Content<'r> {
    run_version: u32,
    task: &'r Task,
    progress: Option<&'r Progress>,
}

/// A run file.
#[derive(Debug)]
pub struct RunFile {
    path: PathBuf,
    pub task: Task,
    pub(super) progress: Option<Progress>,
    /// Bytes of input between two saves.
    pub(super) every_bytes: u64,
}

/// How much of the input is read between two saves: a fraction of a second of work, so that
/// saving costs next to nothing and little is lost.
const EVERY_BYTES: u64 = 32 * 1024 * 1024;

/// Why a run file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunFileError {
    #[error("cannot read run file `{path}`")]
    Read { path: String, source: io::Error },
    #[error("`{path}` is not a run file of this version")]
    Format { path: String, source: serde_json::Error },
    #[error("run file `{path}` has version {found}, and this program knows version {RUN_VERSION}")]
    Version { path: String, found: u32 },
}

impl RunFile {
    /// A run that begins. Nothing is written before the comparison starts.
    pub fn create(path: &Path, task: Task) -> Self {
        Self { path: path.to_owned(), task, progress: None, every_bytes: EVERY_BYTES }
    }

    /// Saves after each `bytes` bytes of input instead of the usual 32 MiB.
    #[must_use]
    pub fn every(mut self, bytes: u64) -> Self {
        self.every_bytes = bytes.max(1);
        self
    }

    /// A run that goes on.
    ///
    /// # Errors
    /// When the file cannot be read or is no run file.
    pub fn load(path: &Path) -> Result<Self, RunFileError> {
        let shown = || path.display().to_string();
        let bytes = fs::read(path).map_err(|source| RunFileError::Read { path: shown(), source })?;
        #[derive(Deserialize)]
        struct Version {
            run_version: u32,
        }
        #[derive(Deserialize)]
        struct Loaded {
            task: Task,
            progress: Option<Progress>,
        }
        let format = |source| RunFileError::Format { path: shown(), source };
        let Version { run_version } = serde_json::from_slice(&bytes).map_err(format)?;
        if run_version != RUN_VERSION {
            return Err(RunFileError::Version { path: shown(), found: run_version });
        }
        let Loaded { task, progress } = serde_json::from_slice(&bytes).map_err(format)?;
        Ok(Self { path: path.to_owned(), task, progress, every_bytes: EVERY_BYTES })
    }

    /// Where the findings stand.
    pub fn findings_path(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".findings");
        path.into()
    }

    /// Notes how far the run has come. The findings that are spoken of must be on disk already.
    pub(super) fn save(&mut self, progress: Progress) -> io::Result<()> {
        self.progress = Some(progress);
        self.write()
    }

    /// Replaces the file, whole or not at all.
    pub(super) fn write(&self) -> io::Result<()> {
        let content = Content { run_version: RUN_VERSION, task: &self.task, progress: self.progress.as_ref() };
        let mut partial = self.path.clone().into_os_string();
        partial.push(".partial");
        failpoint::hit(failpoint::VERIFY_FILES);
        let mut file = File::create(&partial)?;
        file.write_all(&serde_json::to_vec(&content)?)?;
        file.sync_data()?;
        failpoint::hit(failpoint::VERIFY_FILES);
        fs::rename(&partial, &self.path)
    }
}
