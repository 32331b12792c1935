//! What the person looks at: page, selection, sorting, filter; and what each key changes.

use super::order::{Column, arrange};
use super::picture::{History, Picture};

/// A key as the dashboard understands it. Arrow keys and their vi letters are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Backspace,
    Tab,
    BackTab,
    Char(char),
}

/// What a key asks of whoever owns the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Draw again.
    Draw,
    /// Fetch a new picture now.
    Refresh,
    Quit,
}

/// One full screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    Overview,
    Triplets,
    Criteria,
    Sinks,
    Events,
    DeadLetters,
}

impl Page {
    pub const ALL: [Self; 6] =
        [Self::Overview, Self::Triplets, Self::Criteria, Self::Sinks, Self::Events, Self::DeadLetters];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Overview => "overview",
            Self::Triplets => "triplets",
            Self::Criteria => "criteria",
            Self::Sinks => "sinks",
            Self::Events => "events",
            Self::DeadLetters => "dead",
        }
    }

    fn step(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|p| *p == self).unwrap_or(0);
        Self::ALL[(at + by) % Self::ALL.len()]
    }
}

/// The state of the screen.
#[derive(Clone, Debug)]
pub struct Dashboard {
    pub picture: Picture,
    pub history: History,
    pub page: Page,
    pub sort: Column,
    pub descending: bool,
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    /// New pictures are not shown.
    pub frozen: bool,
    pub help: bool,
    /// The selected triplet fills the screen.
    pub detail: bool,
    /// Why the last picture could not be fetched.
    pub trouble: Option<String>,
    /// Where the pictures come from.
    pub origin: String,
    /// Indices of the triplets that are shown, in order.
    pub(super) shown: Vec<usize>,
    /// Position in `shown`.
    pub(super) selected: usize,
    /// First line that is shown of the criteria, and of events and dead letters, from the newest.
    pub(super) scrolled: usize,
    /// Rows that fit on the screen, and lines that the page of criteria has, learnt while drawing.
    pub(super) rows: usize,
    pub(super) lines: usize,
}

impl Dashboard {
    pub fn new(origin: impl Into<String>, picture: Picture) -> Self {
        let mut new = Self {
            picture: Picture::default(),
            history: History::default(),
            page: Page::Overview,
            sort: Column::default(),
            descending: false,
            filter: String::new(),
            typing: false,
            frozen: false,
            help: false,
            detail: false,
            trouble: None,
            origin: origin.into(),
            shown: Vec::new(),
            selected: 0,
            scrolled: 0,
            rows: 10,
            lines: 0,
        };
        new.show(picture);
        new
    }

    /// Takes a new picture; the selection stays on its triplet.
    pub fn show(&mut self, picture: Picture) {
        self.trouble = None;
        self.history.push(&picture);
        if self.frozen {
            return;
        }
        let selected = self.selected_name();
        self.picture = picture;
        self.rearrange(selected);
    }

    fn selected_name(&self) -> Option<String> {
        self.shown.get(self.selected).map(|&i| self.picture.triplets[i].triplet.clone())
    }

    fn rearrange(&mut self, selected: Option<String>) {
        self.shown = arrange(&self.picture, &self.filter, self.sort, self.descending);
        let stays = selected.and_then(|name| self.shown.iter().position(|&i| self.picture.triplets[i].triplet == name));
        self.selected = stays.unwrap_or(self.selected).min(self.shown.len().saturating_sub(1));
    }

    /// What a key does.
    pub fn press(&mut self, key: Key) -> Asked {
        if self.typing {
            self.type_filter(key);
            return Asked::Draw;
        }
        if self.help {
            self.help = false;
            return if key == Key::Char('q') { Asked::Quit } else { Asked::Draw };
        }
        match key {
            Key::Char('q') => return Asked::Quit,
            Key::Char('r') => return Asked::Refresh,
            Key::Char('?') => self.help = true,
            Key::Char('p') => self.frozen = !self.frozen,
            Key::Char('/') => (self.typing, self.detail) = (true, false),
            Key::Char('s') => self.sorted(self.sort.next(), self.descending),
            Key::Char('S') => self.sorted(self.sort, !self.descending),
            Key::Char(c @ '1'..='6') => self.turn_to(Page::ALL[c as usize - '1' as usize]),
            Key::Tab => self.turn_to(self.page.step(1)),
            Key::BackTab => self.turn_to(self.page.step(Page::ALL.len() - 1)),
            Key::Enter => self.detail = self.lists_triplets() && !self.shown.is_empty(),
            Key::Escape if self.detail => self.detail = false,
            Key::Escape => {
                self.filter.clear();
                self.rearrange(self.selected_name());
            }
            Key::Up | Key::Char('k') => self.move_by(-1),
            Key::Down | Key::Char('j') => self.move_by(1),
            Key::PageUp => self.move_by(-(self.rows.max(1) as isize)),
            Key::PageDown | Key::Char(' ') => self.move_by(self.rows.max(1) as isize),
            Key::Home | Key::Char('g') => self.move_by(isize::MIN),
            Key::End | Key::Char('G') => self.move_by(isize::MAX),
            Key::Backspace | Key::Char(_) => {}
        }
        Asked::Draw
    }

    fn type_filter(&mut self, key: Key) {
        match key {
            Key::Char(c) => self.filter.push(c),
            Key::Backspace => drop(self.filter.pop()),
            Key::Enter => self.typing = false,
            Key::Escape => {
                self.filter.clear();
                self.typing = false;
            }
            _ => {}
        }
        self.rearrange(self.selected_name());
    }

    fn sorted(&mut self, by: Column, descending: bool) {
        (self.sort, self.descending) = (by, descending);
        self.rearrange(None);
        self.selected = 0;
    }

    fn turn_to(&mut self, page: Page) {
        (self.page, self.detail, self.scrolled) = (page, false, 0);
    }

    fn lists_triplets(&self) -> bool {
        matches!(self.page, Page::Overview | Page::Triplets)
    }

    fn move_by(&mut self, by: isize) {
        let (place, end) = match self.page {
            Page::Overview | Page::Triplets => (&mut self.selected, self.shown.len()),
            Page::Events => (&mut self.scrolled, self.picture.events.len()),
            Page::DeadLetters => (&mut self.scrolled, self.picture.dead_letters.len()),
            Page::Criteria => (&mut self.scrolled, (self.lines + 1).saturating_sub(self.rows)),
            Page::Sinks => return,
        };
        *place = place.saturating_add_signed(by).min(end.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn dashboard() -> Dashboard {
        Dashboard::new("sqlite:cutover.db", sample::picture(40))
    }

    fn press(d: &mut Dashboard, keys: &str) {
        keys.chars().for_each(|c| assert_ne!(d.press(Key::Char(c)), Asked::Quit));
    }

    #[test]
    fn the_selection_follows_its_triplet_through_new_pictures() {
        let mut d = dashboard();
        press(&mut d, "sjjj");
        let name = d.selected_name();
        let mut next = sample::picture(40);
        next.triplets.retain(|t| Some(&t.triplet) == name.as_ref() || !t.triplet.starts_with("acme"));
        d.show(next);
        assert_eq!(d.selected_name(), name);
    }

    #[test]
    fn the_criteria_scroll_to_their_last_line_and_no_further() {
        let mut d = dashboard();
        press(&mut d, "3");
        let first = super::super::still(&mut d, 80, 24);
        press(&mut d, "G");
        let last = super::super::still(&mut d, 80, 24);
        assert!(first.contains("soak-duration") && !first.contains("reverse-rehearsed"), "{first}");
        assert!(!last.contains("soak-duration") && last.contains("reverse-rehearsed"), "{last}");
        press(&mut d, "jk");
        let above = super::super::still(&mut d, 80, 24);
        assert_ne!(above, last, "one line up is seen at once");
    }

    #[test]
    fn a_filter_is_typed_kept_and_cleared() {
        let mut d = dashboard();
        press(&mut d, "/slackq");
        assert!(d.typing && d.shown.is_empty(), "q is a letter here");
        d.press(Key::Backspace);
        d.press(Key::Enter);
        assert!(!d.typing && !d.shown.is_empty() && d.shown.len() < 40);
        d.press(Key::Escape);
        assert_eq!(d.shown.len(), 40);
    }

    #[test]
    fn moving_stops_at_both_ends_and_an_empty_list_is_safe() {
        let mut d = dashboard();
        d.press(Key::Up);
        assert_eq!(d.selected, 0);
        d.press(Key::End);
        d.press(Key::Down);
        assert_eq!(d.selected, 39);
        press(&mut d, "/nothing at all");
        d.press(Key::Enter);
        for key in [Key::End, Key::Enter, Key::PageUp, Key::Home] {
            d.press(key);
        }
        assert!(!d.detail && d.selected == 0);
        d.show(Picture::default());
        d.press(Key::PageDown);
    }

    #[test]
    fn a_frozen_screen_keeps_its_picture_but_not_its_history() {
        let mut d = dashboard();
        press(&mut d, "p");
        let mut next = sample::picture(3);
        next.at = next.at.plus_ms(5_000);
        d.show(next.clone());
        assert_eq!(d.picture.triplets.len(), 40);
        assert_eq!(d.history.lag_s.len(), 2);
        press(&mut d, "p");
        d.show(next);
        assert_eq!(d.picture.triplets.len(), 3);
    }

    #[test]
    fn help_closes_on_any_key_and_q_quits_from_everywhere_but_the_filter() {
        let mut d = dashboard();
        press(&mut d, "?");
        assert!(d.help);
        d.press(Key::Down);
        assert!(!d.help && d.selected == 0, "the key that closes help does nothing else");
        press(&mut d, "?");
        assert_eq!(d.press(Key::Char('q')), Asked::Quit);
    }
}
