//! The exit criteria: a meter of observed against threshold, the trend, and why.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::theme::{Theme, word};
use super::{fit, panel};
use crate::domain::criteria::{Judged, Verdict};
use crate::soak::dashboard::Dashboard;
use crate::soak::picture::{Trend, at_least};

/// Columns of a meter.
const METER: usize = 8;

/// One criterion a line with its reason; with `roomy` a second line for the samples.
pub(super) fn list(frame: &mut Frame<'_>, area: Rect, d: &Dashboard, theme: Theme, roomy: bool) {
    let passed = d.picture.criteria.iter().filter(|c| c.verdict == Verdict::Pass).count();
    let block = panel(format!("criteria {passed}/{}", d.picture.criteria.len()), theme);
    let inner = block.inner(area);
    let roomy = roomy && usize::from(inner.height) >= d.picture.criteria.len() * 2;
    let mut lines = Vec::new();
    for c in &d.picture.criteria {
        let mut spans = front(c, d, theme);
        let used: usize = spans.iter().map(Span::width).sum();
        let reason = match c.waivers.first().filter(|_| c.waived) {
            Some(w) => format!("waived by {} until {}: {}", w.by, w.until.to_minute(), w.reason),
            None => c.reason.clone(),
        };
        spans.push(Span::raw(fit(&reason, usize::from(inner.width).saturating_sub(used))));
        lines.push(Line::from(spans));
        if roomy {
            let samples = format!("     {} of {} samples", c.samples, c.expected_samples);
            lines.push(Line::styled(samples, theme.quiet()));
        }
    }
    if lines.is_empty() {
        lines.push(Line::styled(" nothing is judged yet", theme.quiet()));
    }
    frame.render_widget(block, area);
    frame.render_widget(Paragraph::new(lines), inner);
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
