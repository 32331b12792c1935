//! The table of triplets. Columns appear as the width allows; rows are made only when visible.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::theme::Theme;
use super::{fit, panel};
use crate::domain::time::Timestamp;
use crate::soak::dashboard::Dashboard;
use crate::soak::order::trouble;
use crate::soak::picture::{Picture, SinkCell, TripletLine, short};

/// Columns of the life bar.
const LIFE: usize = 6;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, d: &mut Dashboard, theme: Theme) {
    let p = &d.picture;
    let mut title = format!("triplets {}", d.shown.len());
    if d.shown.len() != p.triplets.len() {
        title.push_str(&format!(" of {}", p.triplets.len()));
    }
    title.push_str(&format!(", by {}{}", d.sort.name(), if d.descending { " backwards" } else { "" }));
    if !d.filter.is_empty() {
        title.push_str(&format!(", filter `{}`", d.filter));
    }
    let block = panel(title, theme);
    let inner = block.inner(area);
    frame.render_widget(block, area);

    let columns = Columns::of(usize::from(inner.width), p);
    let mut lines = vec![Line::styled(columns.heads(p), theme.quiet())];
    d.rows = usize::from(inner.height).saturating_sub(1).max(1);
    let first = window(d.selected, d.rows, d.shown.len());
    for (at, &i) in d.shown.iter().enumerate().skip(first).take(d.rows) {
        let row = &p.triplets[i];
        let mut line = columns.row(row, p.at, theme);
        if at == d.selected {
            line = line.style(theme.selected());
        } else if trouble(row, p.at) > 0 {
            line = line.style(theme.bad());
        }
        lines.push(line);
    }
    if d.shown.is_empty() {
        let text =
            if p.triplets.is_empty() { " no plan is applied here" } else { " nothing matches; Esc clears the filter" };
        lines.push(Line::styled(text, theme.quiet()));
    }
    frame.render_widget(Paragraph::new(lines), inner);
}

/// First visible row, so that the selected one is in view with some rows around it.
fn window(selected: usize, rows: usize, len: usize) -> usize {
    selected.saturating_sub(rows / 2).min(len.saturating_sub(rows))
}

/// Which columns there is room for.
struct Columns {
    name: usize,
    refresh: bool,
    sinks: bool,
    verify: bool,
    reversible: bool,
}

impl Columns {
    fn of(width: usize, p: &Picture) -> Self {
        // Mark, stage, reads, age and life are always there.
        let fixed = 2 + 10 + 7 + 13 + LIFE + 1;
        let longest = p.triplets.iter().take(2_000).map(|t| t.triplet.len()).max().unwrap_or(7).clamp(7, 48);
        let mut left = width.saturating_sub(fixed + 20);
        let mut take = |columns: usize| {
            let fits = left >= columns;
            left -= if fits { columns } else { 0 };
            fits
        };
        let sinks = take(p.sinks.len() * 7);
        let verify = take(10);
        let refresh = take(10);
        let reversible = take(17);
        Self { name: longest.min(20 + left) + 1, refresh, sinks, verify, reversible }
    }

    fn heads(&self, p: &Picture) -> String {
        let mut text = format!("  {}{}", fit("triplet", self.name), fit("stage", 10));
        if self.refresh {
            text.push_str(&fit("refresh", 10));
        }
        text.push_str(&fit("reads", 7));
        text.push_str(&fit("token age", 13));
        text.push_str(&fit("life", LIFE + 1));
        if self.sinks {
            p.sinks.iter().for_each(|s| text.push_str(&(fit(s.name.trim_start_matches("kv."), 6) + " ")));
        }
        if self.verify {
            text.push_str(&fit("verify", 10));
        }
        if self.reversible {
            text.push_str("reversible until");
        }
        text
    }

    fn row(&self, t: &TripletLine, at: Timestamp, theme: Theme) -> Line<'static> {
        let mark = match trouble(t, at) {
            0 => "  ",
            _ if t.dead_grant.is_some() => "G ",
            _ if t.held.is_some() => "H ",
            _ => "! ",
        };
        let mut spans = vec![Span::raw(format!("{mark}{} {}", fit(&t.triplet, self.name - 1), fit(&t.stage, 10)))];
        if self.refresh {
            spans.push(Span::raw(fit(&t.refresh, 10)));
        }
        spans.push(Span::raw(format!("{}{}", fit(&t.read, 7), fit(&t.age(at), 13))));
        spans.push(Span::styled(life(t.spent(at)), theme.quiet()));
        if self.sinks {
            t.sinks.iter().for_each(|cell| spans.push(Span::raw(fit(&mirrored(cell, at), 7))));
        }
        if self.verify {
            spans.push(Span::raw(fit(t.verify.as_ref().map_or("-", |v| v.text.as_str()), 9) + " "));
        }
        if self.reversible {
            spans.push(Span::raw(t.reversible_until.map_or_else(|| "-".to_owned(), Timestamp::to_minute)));
        }
        Line::from(spans)
    }
}

/// A bar of what is over, or dots.
fn life(spent: Option<f64>) -> String {
    let bar = match spent {
        None => "·".repeat(LIFE),
        Some(spent) => {
            let full = (spent * LIFE as f64).round() as usize;
            "▓".repeat(full) + &"░".repeat(LIFE - full)
        }
    };
    bar + " "
}

/// How long ago a sink got its token, or what is wrong with it.
pub(super) fn mirrored(cell: &SinkCell, at: Timestamp) -> String {
    match cell {
        SinkCell { dead: true, .. } => "DEAD".to_owned(),
        SinkCell { pending: true, delivered_at: Some(then), .. } => format!("{}+", short(at.since(*then))),
        SinkCell { pending: true, .. } => "wait".to_owned(),
        SinkCell { delivered_at: Some(then), .. } => short(at.since(*then)),
        SinkCell { .. } => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selected_row_is_always_in_view() {
        for len in [0, 1, 5, 100] {
            for rows in [1, 4, 50] {
                for selected in 0..len {
                    let first = window(selected, rows, len);
                    assert!(first <= selected && selected < first + rows, "{selected} of {len} in {rows}");
                }
            }
        }
    }
}
