//! What a command that could not do its work tells the user.

use std::fmt;

use crate::exit;

/// The exit code of a command that did its work (which may be 3, 4, 5, 6 or 7), or why it could not.
pub type CommandResult = Result<u8, CommandError>;

/// An error with its exit code, its chain of causes and what to do next.
///
/// The message is a lower-case fragment without a full stop that names the thing in backticks.
#[derive(Debug)]
pub struct CommandError {
    code: u8,
    message: String,
    causes: Vec<String>,
    hints: Vec<String>,
}

impl CommandError {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hints: Vec::new() }
    }

    /// Bad command line, configuration or input: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(exit::USAGE, message)
    }

    /// Could not do it: exit code 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(exit::ERROR, message)
    }

    /// Adds `error` and everything that it names as its source.
    #[must_use]
    pub fn because(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Adds a line that says what to do next, naming a command where there is one.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub fn code(&self) -> u8 {
        self.code
    }

    /// What went wrong and why, on one line and without advice.
    pub fn reason(&self) -> String {
        let parts: Vec<&str> = std::iter::once(&self.message).chain(&self.causes).map(String::as_str).collect();
        parts.join(": ")
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        for cause in &self.causes {
            write!(f, "\n  caused by: {cause}")?;
        }
        for hint in &self.hints {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}
