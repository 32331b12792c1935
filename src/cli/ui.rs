//! Where output goes and whether it may be coloured, and the options that every command takes.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use super::{CommandError, Globals};

/// The shape of a report
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
    Markdown,
    Csv,
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
        }
    }

    /// Writes a report to stdout. A closed pipe is not an error.
    pub fn print(&self, text: &str) {
        self.try_print(text);
    }

    /// Writes to stdout. `false` when nobody reads it any more.
    pub fn try_print(&self, text: &str) -> bool {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
    }

    /// Writes a line to stderr.
    pub fn note(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    pub fn print_error(&self, error: &CommandError) {
        let (on, off) = if self.color_stderr { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        self.note(&format!("{on}error:{off} {error}"));
    }
}
