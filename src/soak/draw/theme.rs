//! Sixteen colours, or none. Nothing is told by colour alone: every state has its own word or mark.

use ratatui::style::{Color, Modifier, Style};

use crate::domain::criteria::Verdict;

/// How things look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// The terminal may be sent colours.
    pub color: bool,
}

impl Theme {
    fn colored(self, color: Color, otherwise: Modifier) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new().add_modifier(otherwise) }
    }

    pub fn good(self) -> Style {
        self.colored(Color::Green, Modifier::empty())
    }

    pub fn bad(self) -> Style {
        self.colored(Color::Red, Modifier::BOLD).add_modifier(Modifier::BOLD)
    }

    pub fn waiting(self) -> Style {
        self.colored(Color::Yellow, Modifier::empty())
    }

    pub fn quiet(self) -> Style {
        self.colored(Color::DarkGray, Modifier::DIM)
    }

    pub fn title(self) -> Style {
        self.colored(Color::Cyan, Modifier::BOLD).add_modifier(Modifier::BOLD)
    }

    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub fn verdict(self, verdict: Verdict) -> Style {
        match verdict {
            Verdict::Pass => self.good(),
            Verdict::Inconclusive => self.waiting(),
            Verdict::Fail => self.bad(),
        }
    }
}

/// A verdict in four columns.
pub const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Inconclusive => "wait",
        Verdict::Fail => "FAIL",
    }
}
