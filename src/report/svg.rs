//! The pictures: inline SVG that says in shapes and letters what it says in colours.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::html::escape;
use super::{Facts, Mark, MarkKind, TripletLine};
use crate::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp, format_duration_ms};

/// Width of every picture, and of the names on its left, in user units.
const WIDTH: f64 = 1_000.0;
const LEFT: f64 = 190.0;

/// Lines of the stage picture; the table below it has all triplets.
const TRIPLETS_MAX: usize = 300;

/// Marks drawn on the pictures; the table has all.
const MARKS_MAX: usize = 400;

/// Room for the letter of a mark.
const LETTER: f64 = 9.0;

/// Writing to a `String` cannot fail.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => { writeln!($out, $($arg)*).expect("writing to a String cannot fail") };
}

/// The time axis that all pictures share.
struct Axis {
    from: Timestamp,
    until: Timestamp,
}

impl Axis {
    fn of(facts: &Facts) -> Self {
        Self { from: facts.applied_at, until: facts.written_at.max(facts.applied_at.plus_ms(HOUR_MS)) }
    }

    fn x(&self, at: Timestamp) -> f64 {
        let share = at.since(self.from) as f64 / self.until.since(self.from) as f64;
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - 10.0)
    }

    /// Lines at round times, about ten of them, with their labels.
    fn ticks(&self) -> Vec<(f64, String)> {
        let span = self.until.since(self.from);
        let steps =
            [HOUR_MS, 3 * HOUR_MS, 6 * HOUR_MS, 12 * HOUR_MS, DAY_MS, 2 * DAY_MS, 5 * DAY_MS, 10 * DAY_MS, 30 * DAY_MS];
        let step = steps.into_iter().find(|step| span / step <= 10).unwrap_or(90 * DAY_MS);
        let first = self.from.millis().div_euclid(step) + 1;
        (first..)
            .map(|n| Timestamp::from_millis(n * step))
            .take_while(|at| *at <= self.until)
            .map(|at| {
                let text = at.to_minute();
                let label = if step < DAY_MS { text[5..].to_owned() } else { text[5..10].to_owned() };
                (self.x(at), label)
            })
            .collect()
    }

    fn frame(&self, height: f64, title: &str, out: &mut String) {
        line!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\" preserveAspectRatio=\"xMinYMin meet\">",
            escape(title)
        );
        for (x, label) in self.ticks() {
            line!(out, "<path class=\"tick\" d=\"M{x:.1} 0V{:.1}\"/>", height - 16.0);
            line!(
                out,
                "<text class=\"axis\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                height - 4.0
            );
        }
    }

    /// A line and a letter at each mark, and a band for as long as it lasted. Of the same letter one
    /// is drawn where they would cover each other, and different ones move apart.
    fn marks(&self, marks: &[Mark], height: f64, out: &mut String) {
        let (mut free, mut last) = (0.0, BTreeMap::new());
        for mark in marks.iter().take(MARKS_MAX) {
            let (x, kind) = (self.x(mark.at), mark.kind.name());
            let title = format!("{} {kind}: {} {} ({}x)", mark.at.to_minute(), mark.subject, mark.text, mark.times);
            let width = mark.until.map_or(0.0, |until| self.x(until) - x);
            line!(out, "<g class=\"mark {kind}\"><title>{}</title>", escape(&title));
            // The clock starts again at one time, however long the breach before it went on.
            if width > 1.5 && mark.kind != MarkKind::Restart {
                line!(out, "<rect x=\"{x:.1}\" y=\"0\" width=\"{width:.1}\" height=\"{:.1}\"/>", height - 16.0);
            }
            line!(out, "<path d=\"M{x:.1} 0V{:.1}\"/>", height - 16.0);
            let letter = match mark.kind {
                MarkKind::Fault => "X",
                MarkKind::Finding => "!",
                MarkKind::Gap => "G",
                MarkKind::Restart => "R",
                MarkKind::Waiver => "W",
            };
            if last.get(letter).is_none_or(|at| x - at > LETTER) {
                let at = f64::max(x + 1.5, free);
                line!(out, "<text class=\"letter\" x=\"{at:.1}\" y=\"9\">{letter}</text>");
                free = at + LETTER;
                last.insert(letter, x);
            }
            out.push_str("</g>\n");
        }
    }
}

/// Where each triplet was when.
pub(super) fn stages(facts: &Facts) -> String {
    let axis = Axis::of(facts);
    let moving: Vec<&TripletLine> = facts.triplets.iter().filter(|t| t.standing != "retained").collect();
    let shown = &moving[..moving.len().min(TRIPLETS_MAX)];
    let height = 14.0 * shown.len() as f64 + 34.0;
    let mut out = String::new();
    axis.frame(height, "Stages of each triplet over time", &mut out);
    for (i, t) in shown.iter().enumerate() {
        let y = 14.0 * i as f64 + 14.0;
        line!(
            out,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 9.0,
            escape(&t.triplet)
        );
        let ends = t.steps.iter().skip(1).map(|s| s.at).chain([axis.until]);
        for (step, end) in t.steps.iter().zip(ends) {
            let (x, to) = (axis.x(step.at), axis.x(end));
            let title = format!("{}: {} from {}", t.triplet, step.stage, step.at.to_minute());
            line!(
                out,
                "<rect class=\"stage {}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"11\"><title>{}</title></rect>",
                step.stage,
                (to - x).max(0.8),
                escape(&title)
            );
            if to - x > 60.0 {
                line!(
                    out,
                    "<text class=\"on {}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    step.stage,
                    x + 4.0,
                    y + 8.5,
                    step.stage
                );
            }
        }
    }
    axis.marks(&facts.marks, height, &mut out);
    out.push_str("</svg>\n");
    if moving.len() > shown.len() {
        line!(out, "<p>The picture shows the first {} of {}; the table has all.</p>", shown.len(), moving.len());
    }
    out
}

/// How fresh the served tokens were.
pub(super) fn freshness(facts: &Facts) -> String {
    let series = [
        Series { name: "least", class: "least", values: points(facts, |p| p.left_ms_min) },
        Series { name: "median", class: "median", values: points(facts, |p| p.left_ms_median) },
    ];
    chart(facts, "Time left of the tokens that KV serves", &series, None, MINUTE_MS)
}

/// How late the mirror was.
pub(super) fn lag(facts: &Facts) -> String {
    let threshold = facts.criteria.iter().find(|c| c.id == "mirror-lag").map(|c| (c.threshold * 1_000.0) as i64);
    let series = [Series { name: "p99", class: "least", values: points(facts, |p| p.lag_p99_ms) }];
    chart(facts, "Mirror lag, 99th percentile between two samples", &series, threshold, 1_000)
}

struct Series {
    name: &'static str,
    class: &'static str,
    values: Vec<(Timestamp, i64)>,
}

fn points(facts: &Facts, value: impl Fn(&super::Point) -> Option<i64>) -> Vec<(Timestamp, i64)> {
    facts.samples.iter().filter_map(|p| Some((p.at, value(p)?))).collect()
}

/// Lines over time, with zero and a threshold.
fn chart(facts: &Facts, title: &str, series: &[Series], threshold: Option<i64>, least: i64) -> String {
    const HEIGHT: f64 = 140.0;
    let axis = Axis::of(facts);
    let values = || series.iter().flat_map(|s| s.values.iter().map(|v| v.1));
    let top = values().chain(threshold).max().unwrap_or(least).max(least);
    let bottom = values().min().unwrap_or(0).min(0);
    let y = |v: i64| 12.0 + (HEIGHT - 34.0) * (1.0 - (v - bottom) as f64 / (top - bottom) as f64);
    let mut out = String::new();
    axis.frame(HEIGHT, title, &mut out);
    let mut level = |v: i64, class: &str, label: String| {
        let at = y(v);
        line!(out, "<path class=\"{class}\" d=\"M{LEFT} {at:.1}H{WIDTH}\"/>");
        line!(
            out,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 6.0,
            at + 3.0
        );
    };
    level(0, "zero", "0".to_owned());
    let name = if threshold == Some(top) { "threshold " } else { "" };
    level(top, if name.is_empty() { "tick" } else { "threshold" }, format!("{name}{}", format_duration_ms(top)));
    if let Some(threshold) = threshold.filter(|t| *t != top) {
        level(threshold, "threshold", format!("threshold {}", format_duration_ms(threshold)));
    }
    for (i, s) in series.iter().enumerate() {
        let path: Vec<String> = s.values.iter().map(|(at, v)| format!("{:.1} {:.1}", axis.x(*at), y(*v))).collect();
        if !path.is_empty() {
            line!(out, "<path class=\"series {}\" d=\"M{}\"/>", s.class, path.join("L"));
        }
        let at = 40.0 + 14.0 * i as f64;
        line!(
            out,
            "<path class=\"series {}\" d=\"M20 {at}H50\"/><text class=\"name\" x=\"56\" y=\"{}\">{}</text>",
            s.class,
            at + 3.0,
            s.name
        );
    }
    axis.marks(&facts.marks, HEIGHT, &mut out);
    out.push_str("</svg>\n");
    out
}

/// The worst verdict of each day.
pub(super) fn days(facts: &Facts) -> String {
    const PER_ROW: usize = 31;
    let rows = facts.days.len().div_ceil(PER_ROW).max(1);
    let height = 44.0 * rows as f64;
    let mut out = String::new();
    line!(out, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Verdict of each day\">");
    for (i, day) in facts.days.iter().enumerate() {
        let (x, y) = ((i % PER_ROW) as f64 * 32.0 + 4.0, (i / PER_ROW) as f64 * 44.0);
        let letter = match day.verdict {
            crate::domain::criteria::Verdict::Pass => "P",
            crate::domain::criteria::Verdict::Inconclusive => "?",
            crate::domain::criteria::Verdict::Fail => "F",
        };
        let mut said = format!("{}: {}", day.day, day.verdict.name());
        for (what, list) in [("not passing", &day.open), ("waived", &day.waived)] {
            if !list.is_empty() {
                said += &format!("; {what}: {}", list.join(", "));
            }
        }
        let class = day.verdict.name();
        line!(out, "<g><title>{}</title>", escape(&said));
        line!(out, "<rect class=\"verdict {class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"28\" height=\"26\" rx=\"3\"/>");
        line!(
            out,
            "<text class=\"day {class}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{letter}</text>",
            x + 14.0,
            y + 18.0
        );
        if !day.waived.is_empty() {
            line!(out, "<text class=\"letter\" x=\"{:.1}\" y=\"{:.1}\">W</text>", x + 20.0, y + 9.0);
        }
        line!(
            out,
            "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></g>",
            x + 14.0,
            y + 37.0,
            &day.day[5..]
        );
    }
    out.push_str("</svg>\n");
    out
}
