//! Draws the dashboard into a buffer of any size. Only rows that are visible are made.

mod criteria;
mod detail;
mod help;
mod panels;
mod theme;
mod triplets;

use ratatui::backend::TestBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};
use ratatui::{Frame, Terminal};

use super::dashboard::{Dashboard, Page};
pub use theme::Theme;

use crate::text::broken;

/// From this size on the overview has room for everything side by side.
const WIDE: (u16, u16) = (110, 32);

/// From this width on the footer has room for the names of the pages.
const FOOT: u16 = 75;

/// Smallest screen that can show a table.
const SMALLEST: (u16, u16) = (40, 10);

/// Draws one frame.
pub fn draw(frame: &mut Frame<'_>, d: &mut Dashboard, theme: Theme) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let text = format!("{}x{} is too small; {}x{} is enough", area.width, area.height, SMALLEST.0, SMALLEST.1);
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    let [top, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)]).areas(area);
    header(frame, top, d, theme);
    if d.detail {
        detail::draw(frame, body, d, theme);
    } else {
        match d.page {
            Page::Overview if area.width >= WIDE.0 && area.height >= WIDE.1 => wide(frame, body, d, theme),
            Page::Overview => narrow(frame, body, d, theme),
            Page::Triplets => triplets::draw(frame, body, d, theme),
            Page::Criteria => criteria::page(frame, body, d, theme),
            Page::Sinks => {
                let [left, right] = Layout::vertical([Constraint::Length(9), Constraint::Min(3)]).areas(body);
                panels::sinks(frame, left, d, theme);
                panels::budgets(frame, right, d, theme);
            }
            Page::Events => panels::events(frame, body, d, theme),
            Page::DeadLetters => panels::dead_letters(frame, body, d, theme),
        }
    }
    footer(frame, foot, d, theme);
    if d.help {
        help::draw(frame, area, theme);
    }
}

/// The overview as plain text, `width` columns wide: for `--once`, logs and pipes.
pub fn still(d: &mut Dashboard, width: u16, height: u16) -> String {
    let backend = TestBackend::new(width, height);
    let mut terminal = match Terminal::new(backend) {
        Ok(terminal) => terminal,
        Err(never) => match never {},
    };
    match terminal.draw(|frame| draw(frame, d, Theme { color: false })) {
        Ok(_) => {}
        Err(never) => match never {},
    }
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn wide(frame: &mut Frame<'_>, area: Rect, d: &mut Dashboard, theme: Theme) {
    let criteria_height = d.picture.criteria.len() as u16 + 2;
    let [upper, lower] = Layout::vertical([Constraint::Length(criteria_height), Constraint::Min(6)]).areas(area);
    let [left, right] = Layout::horizontal([Constraint::Percentage(58), Constraint::Percentage(42)]).areas(upper);
    criteria::list(frame, left, d, theme);
    let [sinks, budgets, events] =
        Layout::vertical([Constraint::Length(8), Constraint::Length(2 + budget_rows(d)), Constraint::Min(2)])
            .areas(right);
    panels::sinks(frame, sinks, d, theme);
    panels::budgets(frame, budgets, d, theme);
    panels::events(frame, events, d, theme);
    if d.picture.dead_letters.is_empty() {
        triplets::draw(frame, lower, d, theme);
    } else {
        let rows = (d.picture.dead_letters.len() as u16).min(3) + 2;
        let [table, dead] = Layout::vertical([Constraint::Min(4), Constraint::Length(rows)]).areas(lower);
        triplets::draw(frame, table, d, theme);
        panels::dead_letters(frame, dead, d, theme);
    }
}

fn budget_rows(d: &Dashboard) -> u16 {
    (d.picture.budgets.len() as u16).clamp(1, 5)
}

fn narrow(frame: &mut Frame<'_>, area: Rect, d: &mut Dashboard, theme: Theme) {
    let half = (d.picture.criteria.len() as u16).div_ceil(2).max(1);
    let [upper, middle, lower] =
        Layout::vertical([Constraint::Length(half + 1), Constraint::Min(4), Constraint::Length(3)]).areas(area);
    criteria::compact(frame, upper, d, theme);
    triplets::draw(frame, middle, d, theme);
    panels::strip(frame, lower, d, theme);
}

fn header(frame: &mut Frame<'_>, area: Rect, d: &Dashboard, theme: Theme) {
    let p = &d.picture;
    let verdict = p.verdict();
    let mut first = vec![
        Span::styled(" cutover soak ", theme.title()),
        Span::styled(verdict.name().to_uppercase(), theme.verdict(verdict)),
        Span::raw(format!("  {}", p.progress())),
    ];
    if let Some(exit) = p.earliest_exit() {
        first.push(Span::raw(format!("  exit from {}", exit.to_minute())));
    }
    first.push(Span::raw(format!("  {}", p.plan.as_deref().unwrap_or("no plan applied"))));
    let mut second = vec![Span::styled(format!(" {}  {} UTC", d.origin, p.at.to_minute()), theme.quiet())];
    if p.gap_ms > 0 {
        second.push(Span::styled(
            format!("  {} without evidence not counted", crate::domain::time::format_duration_ms(p.gap_ms)),
            theme.waiting(),
        ));
    }
    if d.frozen {
        second.push(Span::styled("  FROZEN (p goes on)", theme.waiting()));
    }
    if let Some(trouble) = &d.trouble {
        second.push(Span::styled(format!("  OLD: {trouble}"), theme.bad()));
    }
    frame.render_widget(Paragraph::new(vec![Line::from(first), Line::from(second)]), area);
}

fn footer(frame: &mut Frame<'_>, area: Rect, d: &Dashboard, theme: Theme) {
    let line = if d.typing {
        Line::from(vec![Span::styled(" filter: ", theme.title()), Span::raw(format!("{}▏", d.filter))])
    } else {
        let mut spans = vec![Span::raw(" ")];
        for (i, page) in Page::ALL.into_iter().enumerate() {
            let style = if page == d.page { theme.selected() } else { theme.quiet() };
            // Where names do not fit, the numbers still work.
            let name = if area.width >= FOOT { format!("{} {}", i + 1, page.name()) } else { (i + 1).to_string() };
            spans.push(Span::styled(name, style));
            spans.push(Span::raw(" "));
        }
        spans.push(Span::raw("? help q quit"));
        Line::from(spans)
    };
    frame.render_widget(Paragraph::new(line), area);
}

/// A panel with a title on its upper edge.
fn panel(title: impl Into<String>, theme: Theme) -> Block<'static> {
    let title = Span::styled(format!(" {} ", title.into()), theme.title());
    Block::new().borders(Borders::TOP).border_style(theme.quiet()).title(title)
}

/// `front`, then `text` broken at words, its next lines `indent` columns from the left.
fn broken_line(front: Vec<Span<'_>>, text: &str, indent: usize, width: usize) -> Vec<Line<'static>> {
    let room = width.saturating_sub(indent).max(10);
    let mut lines = Vec::new();
    let mut front = front.into_iter().map(|s| Span::styled(s.content.into_owned(), s.style)).collect::<Vec<_>>();
    for part in broken(text, "", "", room) {
        front.push(Span::raw(part));
        lines.push(Line::from(std::mem::replace(&mut front, vec![Span::raw(" ".repeat(indent))])));
    }
    if lines.is_empty() {
        lines.push(Line::from(front));
    }
    lines
}

/// `text` in `width` columns: cut with an ellipsis, or padded.
fn fit(text: &str, width: usize) -> String {
    use unicode_width::UnicodeWidthChar;
    let mut out = String::new();
    let mut used = 0;
    let whole: usize = text.chars().map(|c| c.width().unwrap_or(0)).sum();
    for c in text.chars() {
        let w = c.width().unwrap_or(0);
        if used + w > width.saturating_sub(usize::from(whole > width)) {
            break;
        }
        out.push(c);
        used += w;
    }
    if whole > width && width > 0 {
        out.push('…');
        used += 1;
    }
    out.extend(std::iter::repeat_n(' ', width.saturating_sub(used)));
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Key, sample};
    use super::*;

    fn dashboard(n: usize) -> Dashboard {
        let mut d = Dashboard::new("sqlite:cutover.db", sample::picture(n));
        for i in 1..60 {
            let mut next = sample::picture(n);
            next.at = next.at.plus_ms(i * 2_000);
            next.sinks[0].delivered += (i * i % 17) as u64;
            next.sinks[2].oldest_ms += i * 900;
            d.history.push(&next);
        }
        d
    }

    #[test]
    fn the_overview_fits_every_common_size() {
        for (w, h) in [(80, 24), (120, 40), (200, 60)] {
            insta::assert_snapshot!(format!("overview_{w}x{h}"), still(&mut dashboard(40), w, h));
        }
    }

    #[test]
    fn every_page_at_80x24() {
        for page in Page::ALL.into_iter().skip(1) {
            let mut d = dashboard(40);
            d.page = page;
            insta::assert_snapshot!(format!("page_{}", page.name().replace(' ', "_")), still(&mut d, 80, 24));
        }
    }

    #[test]
    fn help_and_detail_at_80x24() {
        let mut d = dashboard(40);
        d.press(Key::Char('?'));
        insta::assert_snapshot!("help", still(&mut d, 80, 24));
        d.press(Key::Escape);
        d.press(Key::Enter);
        insta::assert_snapshot!("detail", still(&mut d, 80, 24));
    }

    #[test]
    fn no_size_and_no_emptiness_breaks_it() {
        for (w, h) in [(1, 1), (20, 5), (40, 10), (41, 11), (79, 23), (111, 33), (300, 12), (50, 100)] {
            for page in Page::ALL {
                for mut d in [dashboard(7), Dashboard::new("x", super::super::picture::Picture::default())] {
                    d.page = page;
                    assert_eq!(still(&mut d, w, h).lines().count(), usize::from(h));
                    d.press(Key::Enter);
                    still(&mut d, w, h);
                }
            }
        }
    }

    #[test]
    fn without_colour_nothing_is_coloured_and_verdicts_are_words() {
        let mut terminal = Terminal::new(TestBackend::new(120, 40)).expect("it cannot fail");
        let mut d = dashboard(40);
        terminal.draw(|frame| draw(frame, &mut d, Theme { color: false })).expect("it cannot fail");
        let buffer = terminal.backend().buffer();
        let plain = ratatui::style::Color::Reset;
        assert!(buffer.content().iter().all(|cell| cell.fg == plain && cell.bg == plain));
        let text = still(&mut d, 120, 40);
        assert!(text.contains("FAIL") && text.contains("wait") && text.contains("pass"), "{text}");
    }

    #[test]
    fn text_is_cut_by_columns_not_by_bytes() {
        assert_eq!(fit("abc", 5), "abc  ");
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(fit("日本語です", 5), "日本…");
        assert_eq!(fit("x", 0), "");
    }
}
