//! Files that take the keys of some outcomes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::super::CommandError;
use super::print::one_line;
use crate::verify::{Outcome, Report};

/// Which outcomes go to which files
#[derive(clap::Args, Debug)]
pub(super) struct FileArgs {
    /// Write a mark and a key per line to this file
    #[arg(long, value_name = "FILE")]
    combined: Option<PathBuf>,
    /// Write the keys that are the same to this file (with --all)
    #[arg(long = "match", value_name = "FILE")]
    same: Option<PathBuf>,
    /// Write the keys that are only on the left to this file
    #[arg(long, value_name = "FILE")]
    missing: Option<PathBuf>,
    /// Write the keys that are only on the right to this file
    #[arg(long, value_name = "FILE")]
    extra: Option<PathBuf>,
    /// Write the keys that differ to this file, foreign ones too
    #[arg(long, value_name = "FILE")]
    differ: Option<PathBuf>,
    /// Write the keys with metadata that is not ours to this file
    #[arg(long, value_name = "FILE")]
    foreign: Option<PathBuf>,
    /// Write the keys that may still settle to this file
    #[arg(long, value_name = "FILE")]
    settling: Option<PathBuf>,
    /// Write the keys whose secrets could not be compared to this file
    #[arg(long, value_name = "FILE")]
    unverifiable: Option<PathBuf>,
    /// Write the keys that could not be compared to this file
    #[arg(long, value_name = "FILE")]
    error: Option<PathBuf>,
}

impl FileArgs {
    fn wanted(&self) -> impl Iterator<Item = (&Path, &'static [Outcome])> {
        let files: [(&Option<PathBuf>, &'static [Outcome]); 9] = [
            (&self.combined, &Outcome::ALL),
            (&self.same, &[Outcome::Match]),
            (&self.missing, &[Outcome::Missing]),
            (&self.extra, &[Outcome::Extra]),
            (&self.differ, &[Outcome::Changed, Outcome::Foreign]),
            (&self.foreign, &[Outcome::Foreign]),
            (&self.settling, &[Outcome::Settling]),
            (&self.unverifiable, &[Outcome::Unverifiable]),
            (&self.error, &[Outcome::Error]),
        ];
        files.into_iter().filter_map(|(path, takes)| Some((path.as_deref()?, takes)))
    }

    pub(super) fn any(&self) -> bool {
        self.wanted().next().is_some()
    }

    /// Makes the files, so that one that cannot be written is told before anybody is asked. `all`: the
    /// report holds the matches.
    ///
    /// # Errors
    /// When a file cannot be made, or should take matches that the report does not hold.
    pub(super) fn create(&self, all: bool) -> Result<KeyFiles<'_>, CommandError> {
        if self.same.is_some() && !all {
            return Err(CommandError::usage("`--match` takes keys that the report does not hold").hint("add `--all`"));
        }
        let file = |(path, takes)| KeyFile::create(path, takes).map_err(|error| failed(path, &error));
        Ok(KeyFiles(self.wanted().map(file).collect::<Result<_, _>>()?))
    }
}

fn failed(path: &Path, error: &io::Error) -> CommandError {
    CommandError::failed(format!("cannot write `{}`", path.display())).because(error)
}

/// Files that wait for their keys.
pub(super) struct KeyFiles<'a>(Vec<KeyFile<'a>>);

struct KeyFile<'a> {
    path: &'a Path,
    partial: PathBuf,
    file: BufWriter<File>,
    takes: &'static [Outcome],
}

impl<'a> KeyFile<'a> {
    fn create(path: &'a Path, takes: &'static [Outcome]) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        Ok(Self { path, file: BufWriter::new(File::create(&partial)?), partial, takes })
    }
}

impl Drop for KeyFile<'_> {
    fn drop(&mut self) {
        // Gone already when it came to its end.
        let _ = fs::remove_file(&self.partial);
    }
}

impl KeyFiles<'_> {
    /// Writes the keys. Under its name a file appears when it is whole.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn write(mut self, report: &mut Report) -> Result<(), CommandError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let written = report.findings(|finding| {
            for file in self.0.iter_mut().filter(|file| file.takes.contains(&finding.outcome)) {
                if file.takes.len() == Outcome::ALL.len() {
                    write!(file.file, "{} ", finding.outcome.symbol())?;
                }
                writeln!(file.file, "{}", one_line(&finding.key))?;
            }
            Ok(())
        });
        for file in &mut self.0 {
            let finished = match &written {
                Ok(()) => file.file.flush().and_then(|()| fs::rename(&file.partial, file.path)),
                Err(error) => Err(error.kind().into()),
            };
            finished.map_err(|error| failed(file.path, &error))?;
        }
        Ok(())
    }
}
