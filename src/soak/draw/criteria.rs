//! The exit criteria: a meter of observed against threshold, the trend, and why.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::theme::{Theme, word};
use super::{broken_line, fit, panel};
use crate::domain::criteria::{Judged, Verdict};
use crate::soak::dashboard::Dashboard;
use crate::soak::picture::{Trend, at_least};

/// Columns of a meter.
const METER: usize = 8;

/// Findings that are shown under a criterion; `cutover gate --format json` has all.
const FINDINGS_SHOWN: usize = 5;

fn title(d: &Dashboard) -> String {
    let passed = d.picture.criteria.iter().filter(|c| c.verdict == Verdict::Pass).count();
    format!("criteria {passed}/{}", d.picture.criteria.len())
}

fn nothing(theme: Theme) -> Line<'static> {
    Line::styled(" nothing is judged yet", theme.quiet())
}

/// One criterion a line with as much of its reason as fits.
pub(super) fn list(frame: &mut Frame<'_>, area: Rect, d: &Dashboard, theme: Theme) {
    let block = panel(title(d), theme);
    let inner = block.inner(area);
    let mut lines = Vec::new();
    for c in &d.picture.criteria {
        let mut spans = front(c, d, theme);
        let used: usize = spans.iter().map(Span::width).sum();
        spans.push(Span::raw(fit(&reason(c), usize::from(inner.width).saturating_sub(used))));
        lines.push(Line::from(spans));
    }
    if lines.is_empty() {
        lines.push(nothing(theme));
    }
    frame.render_widget(block, area);
    frame.render_widget(Paragraph::new(lines), inner);
}

/// Every criterion with its whole reason, its samples and what spoke against it; scrolls.
pub(super) fn page(frame: &mut Frame<'_>, area: Rect, d: &mut Dashboard, theme: Theme) {
    let block = panel(title(d), theme);
    let inner = block.inner(area);
    let width = usize::from(inner.width);
    let mut lines = Vec::new();
    for c in &d.picture.criteria {
        let spans = front(c, d, theme);
        let used: usize = spans.iter().map(Span::width).sum();
        lines.extend(broken_line(spans, &reason(c), used, width));
        let mut below = |text: String| {
            let indent = vec![Span::raw(" ".repeat(6))];
            lines.extend(broken_line(indent, &text, 8, width).into_iter().map(|line| line.style(theme.quiet())));
        };
        if c.verdict == Verdict::Pass && c.waivers.is_empty() {
            continue;
        }
        let since = c.since.map(|at| format!(", counted since {} UTC", at.to_minute())).unwrap_or_default();
        below(format!("{} of {} samples{since}", c.samples, c.expected_samples));
        for w in &c.waivers {
            below(format!("waiver {} for `{}` by {} until {}: {}", w.id, w.scope, w.by, w.until.to_minute(), w.reason));
        }
        for note in c.findings.iter().rev().take(FINDINGS_SHOWN) {
            below(format!("{} {}: {}", note.at.to_minute(), note.subject, note.detail));
        }
        let more = c.findings_total.saturating_sub(FINDINGS_SHOWN as u64);
        if more > 0 {
            below(format!("and {more} more before"));
        }
    }
    if lines.is_empty() {
        lines.push(nothing(theme));
    }
    d.rows = usize::from(inner.height).max(1);
    d.lines = lines.len();
    let first = d.scrolled.min(lines.len().saturating_sub(d.rows));
    frame.render_widget(block, area);
    frame.render_widget(Paragraph::new(lines.split_off(first)), inner);
}

fn reason(c: &Judged) -> String {
    match c.waivers.first().filter(|_| c.waived) {
        Some(w) => format!("waived by {} until {}: {}", w.by, w.until.to_minute(), w.reason),
        None => c.reason.clone(),
    }
}

/// Two columns without reasons.
pub(super) fn compact(frame: &mut Frame<'_>, area: Rect, d: &Dashboard, theme: Theme) {
    let block = panel("criteria", theme);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let halves: [Rect; 2] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(inner);
    let middle = d.picture.criteria.len().div_ceil(2);
    let (left, right) = d.picture.criteria.split_at(middle);
    for (half, area) in [left, right].into_iter().zip(halves) {
        let lines: Vec<Line<'_>> = half.iter().map(|c| Line::from(front(c, d, theme))).collect();
        frame.render_widget(Paragraph::new(lines), area);
    }
}

/// ` pass soak-duration     ██████░░░░ ↑ 3.2/30 `
fn front<'a>(j: &Judged, d: &Dashboard, theme: Theme) -> Vec<Span<'a>> {
    let style = if j.waived { theme.quiet() } else { theme.verdict(j.verdict) };
    let (mark, trend_style) = match d.history.trend(j) {
        Trend::Better => ("↗", theme.good()),
        Trend::Same => (" ", theme.quiet()),
        Trend::Worse => ("↘", theme.bad()),
    };
    let observed = j.observed.map_or_else(|| "?".to_owned(), number);
    let sign = if at_least(&j.id) { "/" } else { "≤" };
    vec![
        Span::styled(format!(" {} ", if j.waived { "wvd " } else { word(j.verdict) }), style),
        Span::raw(fit(&j.id, 18)),
        Span::styled(meter(j), style),
        Span::styled(mark, trend_style),
        Span::raw(fit(&format!("{observed}{sign}{}", number(j.threshold)), 9)),
    ]
}

/// How much of the threshold is reached, or used up.
fn meter(j: &Judged) -> String {
    let Some(observed) = j.observed else { return "·".repeat(METER) };
    let share = match (j.threshold > 0.0, observed > 0.0) {
        (true, _) => observed / j.threshold,
        (false, true) => 1.0,
        (false, false) => 0.0,
    };
    let full = (share.clamp(0.0, 1.0) * METER as f64).floor() as usize;
    "█".repeat(full) + &"░".repeat(METER - full)
}

/// At most five columns.
fn number(n: f64) -> String {
    let magnitude = n.abs();
    if n == n.trunc() && magnitude < 100_000.0 {
        format!("{n:.0}")
    } else if magnitude >= 1e6 {
        format!("{:.1}M", n / 1e6)
    } else if magnitude >= 1e4 {
        format!("{:.0}k", n / 1e3)
    } else if magnitude >= 100.0 {
        format!("{n:.0}")
    } else if magnitude >= 1.0 {
        format!("{n:.1}")
    } else {
        format!("{n:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_within_five_columns() {
        for (n, text) in [(0.0, "0"), (30.0, "30"), (3.2, "3.2"), (99.5, "99.5"), (0.995, "0.99"), (123_456.0, "123k")]
        {
            assert_eq!(number(n), text);
        }
        assert_eq!(number(2_500_000.5), "2.5M");
    }
}
