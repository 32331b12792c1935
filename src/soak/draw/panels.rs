//! Sinks, budgets, events and dead letters.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline};

use super::theme::Theme;
use super::{broken_line, fit, panel};
use crate::domain::time::format_duration_ms;
use crate::soak::dashboard::Dashboard;
use crate::soak::picture::{BudgetLine, SinkLine, short};

/// One line a sink, then what was delivered and how late, over the last pictures.
pub(super) fn sinks(frame: &mut Frame<'_>, area: Rect, d: &Dashboard, theme: Theme) {
    let block = panel("sinks", theme);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let rows = d.picture.sinks.len().max(1) as u16;
    let [list, delivered, lag] =
        Layout::vertical([Constraint::Length(rows), Constraint::Length(2), Constraint::Length(2)]).areas(inner);
    let lines: Vec<Line<'_>> = d.picture.sinks.iter().map(|s| sink(s, theme)).collect();
    frame.render_widget(Paragraph::new(lines), list);
    spark(frame, delivered, "delivered", &d.history.deliveries, "", theme);
    spark(frame, lag, "mirror lag", &d.history.lag_s, "s", theme);
}

fn sink(s: &SinkLine, theme: Theme) -> Line<'static> {
    let mut spans = vec![Span::raw(format!(" {}{:>8} delivered", fit(&s.name, 11), s.delivered))];
    if s.pending > 0 {
        spans.push(Span::styled(format!("  {} wait, oldest {}", s.pending, short(s.oldest_ms)), theme.waiting()));
    }
    if s.dead > 0 {
        spans.push(Span::styled(format!("  {} DEAD", s.dead), theme.bad()));
    }
    if let Some(why) = &s.trouble {
        spans.push(Span::styled(format!("  circuit open: {why}"), theme.bad()));
    }
    Line::from(spans)
}

/// A label with the last value, and the values before it.
fn spark(frame: &mut Frame<'_>, area: Rect, name: &str, values: &VecDeque<u64>, unit: &str, theme: Theme) {
    let [label, graph] = Layout::horizontal([Constraint::Length(29), Constraint::Min(1)]).areas(area);
    let last = values.back().map_or_else(|| "-".to_owned(), |n| format!("{n}{unit}"));
    let highest = values.iter().max().map_or_else(String::new, |n| format!(" (max {n}{unit})"));
    frame.render_widget(Paragraph::new(format!(" {name} {last}{highest}")), label);
    let newest: Vec<u64> = values.iter().rev().take(usize::from(graph.width)).rev().copied().collect();
    frame.render_widget(Sparkline::default().data(newest).style(theme.title()), graph);
}

pub(super) fn budgets(frame: &mut Frame<'_>, area: Rect, d: &Dashboard, theme: Theme) {
    let block = panel("request budgets", theme);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let mut lines: Vec<Line<'_>> = d.picture.budgets.iter().map(|b| budget(b, theme)).collect();
    if lines.is_empty() {
        lines.push(Line::styled(" only a running shim knows them", theme.quiet()));
    }
    frame.render_widget(Paragraph::new(lines), inner);
}

fn budget(b: &BudgetLine, theme: Theme) -> Line<'static> {
    let mut spans = vec![Span::raw(format!(" {}", fit(&b.name, 11)))];
    match b.closed_until {
        Some(until) => spans.push(Span::styled(format!("CLOSED until {}", until.to_rfc3339()), theme.bad())),
        None => {
            let style = if b.left == 0 { theme.waiting() } else { theme.good() };
            spans.push(Span::styled(format!("{:>4} now, {:>4} urgent", b.left, b.left_urgent), style));
        }
    }
    spans.push(Span::styled(
        format!("  limit {}/{}", b.limit, format_duration_ms(b.window_ms).replace(' ', "")),
        theme.quiet(),
    ));
    Line::from(spans)
}

/// Newest first.
pub(super) fn events(frame: &mut Frame<'_>, area: Rect, d: &Dashboard, theme: Theme) {
    let block = panel(format!("events {}", d.picture.events.len()), theme);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let width = usize::from(inner.width);
    let newest = d.picture.events.iter().rev().skip(d.scrolled).take(usize::from(inner.height));
    let lines: Vec<Line<'_>> = newest
        .flat_map(|e| {
            let mark = if e.bad { "!" } else { " " };
            let at = Span::styled(format!("{mark}{}  ", e.at.to_minute()), theme.quiet());
            let lines = broken_line(vec![at], &format!("{}: {}", e.subject, e.text), 19, width);
            lines.into_iter().map(move |line| if e.bad { line.style(theme.bad()) } else { line })
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), inner);
}

pub(super) fn dead_letters(frame: &mut Frame<'_>, area: Rect, d: &Dashboard, theme: Theme) {
    let n = d.picture.dead_letters.len();
    let block = panel(format!("dead letters {n} (cutover repair)"), theme);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let width = usize::from(inner.width);
    let mut lines: Vec<Line<'_>> = d
        .picture
        .dead_letters
        .iter()
        .skip(d.scrolled)
        .take(usize::from(inner.height))
        .map(|l| Line::styled(fit(&format!(" {} → {}: {}", l.triplet, l.sink, l.reason), width), theme.bad()))
        .collect();
    if lines.is_empty() {
        lines.push(Line::styled(" none", theme.quiet()));
    }
    frame.render_widget(Paragraph::new(lines), inner);
}

/// Two lines for small screens: the sinks, then the last event or dead letter.
pub(super) fn strip(frame: &mut Frame<'_>, area: Rect, d: &Dashboard, theme: Theme) {
    let block = panel("mirror", theme);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let mut spans = Vec::new();
    for s in &d.picture.sinks {
        let text = format!(" {} {} wait", s.name, s.pending);
        let dead = if s.dead > 0 { format!(" {} DEAD", s.dead) } else { String::new() };
        let open = if s.trouble.is_some() { " circuit open" } else { "" };
        let style = if dead.is_empty() && open.is_empty() { theme.good() } else { theme.bad() };
        spans.push(Span::styled(format!("{text}{dead}{open} "), style));
    }
    let last =
        d.picture.events.last().map_or_else(String::new, |e| format!(" {} {} {}", e.at.to_minute(), e.subject, e.text));
    let last = fit(&last, usize::from(inner.width));
    frame.render_widget(Paragraph::new(vec![Line::from(spans), Line::styled(last, theme.quiet())]), inner);
}
