//! Where output goes and whether it may be coloured, and the options that every command takes.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::{CommandError, Globals};
use crate::text::Paint;

/// The shape of a report
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
    Markdown,
    Csv,
}

/// The shape of a report that is nothing but a report
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputFormat {
    #[default]
    Text,
    Json,
}

/// What the terminal allows and the global options say.
#[derive(Clone, Debug)]
pub struct Ui {
    pub color_stdout: bool,
    pub color_stderr: bool,
    /// Progress may be drawn (stderr is a terminal).
    pub progress: bool,
    /// The configuration file that was named.
    pub config: Option<PathBuf>,
    /// The report was asked for as JSON.
    json: bool,
    /// Something was printed on stdout.
    printed: Arc<AtomicBool>,
}

impl Ui {
    pub fn from_environment(globals: &Globals) -> Self {
        let no_color = globals.no_color
            || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self {
            color_stdout: !no_color && io::stdout().is_terminal(),
            color_stderr: !no_color && io::stderr().is_terminal(),
            progress: io::stderr().is_terminal(),
            config: globals.config.clone(),
            json: asks_for_json(std::env::args_os().map(|argument| argument.to_string_lossy().into_owned())),
            printed: Arc::default(),
        }
    }

    /// The colours that stdout may have.
    pub fn paint(&self) -> Paint {
        Paint { on: self.color_stdout }
    }

    /// Writes a report to stdout. A closed pipe is not an error.
    pub fn print(&self, text: &str) {
        self.try_print(text);
    }

    /// Writes to stdout. `false` when nobody reads it any more.
    pub fn try_print(&self, text: &str) -> bool {
        self.printed.store(true, Ordering::Relaxed);
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
    }

    /// Writes a line to stderr.
    pub fn note(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Says why a command failed. Where JSON was asked for and none was printed, a report of the
    /// code and the reason goes to stdout too.
    pub fn print_error(&self, error: &CommandError) {
        if self.json && !self.printed.load(Ordering::Relaxed) {
            let report = json!({"exit_code": error.code(), "reason": error.to_string()});
            self.print(&format!("{report:#}\n"));
        }
        let (on, off) = if self.color_stderr { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        self.note(&format!("{on}error:{off} {error}"));
    }
}

/// `--format` is an option of each command that has it, so it is looked for where all are seen.
fn asks_for_json(arguments: impl Iterator<Item = String>) -> bool {
    let arguments: Vec<String> = arguments.take_while(|argument| argument != "--").collect();
    arguments.iter().any(|argument| argument == "--format=json")
        || arguments.windows(2).any(|pair| pair == ["--format", "json"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_asked_for_in_either_spelling() {
        let asks = |line: &str| asks_for_json(line.split(' ').map(str::to_owned));
        assert!(asks("cutover gate --format json") && asks("cutover gate --format=json -v"));
        assert!(!asks("cutover gate --format text") && !asks("cutover gate") && !asks("cutover x -- --format json"));
    }
}
