//! One HTML file. Every value that stands in it carries a `data-fact` that names its place in the
//! JSON, so that a machine can check that both say the same.

use std::fmt::Write;

use super::{Facts, svg};
use crate::domain::criteria::{Judged, rule};
use crate::domain::markdown::number;
use crate::domain::time::{Timestamp, format_duration_ms};

/// Rows of a long table; the JSON has all.
const ROWS_MAX: usize = 2_000;

/// Writing to a `String` cannot fail.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => { writeln!($out, $($arg)*).expect("writing to a String cannot fail") };
}

/// Text in HTML, in elements and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A value with its place in the JSON.
fn fact(path: &str, text: &str) -> String {
    format!("<span data-fact=\"{}\">{}</span>", escape(path), escape(text))
}

fn or_dash(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), Timestamp::to_minute)
}

pub(super) fn html(facts: &Facts) -> String {
    let mut out = String::new();
    let title = format!("Soak of plan {}: {}", facts.plan, facts.verdict.name());
    line!(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">");
    line!(out, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    // Whatever ends up in here, nothing of it may run or be fetched.
    line!(
        out,
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
    );
    line!(
        out,
        "<link rel=\"icon\" href=\"data:,\">\n<title>{}</title>\n<style>{}</style>\n</head>\n<body>",
        escape(&title),
        STYLE
    );
    head(facts, &mut out);
    criteria(facts, &mut out);
    line!(out, "<h2>Verdict of each day</h2>\n<figure>{}</figure>", svg::days(facts));
    line!(out, "<h2>Stages</h2>\n<p class=\"legend\">{}</p>\n<figure>{}</figure>", legend(), svg::stages(facts));
    line!(out, "<h2>Freshness of the served tokens</h2>\n<figure>{}</figure>", svg::freshness(facts));
    line!(out, "<h2>Mirror lag</h2>\n<figure>{}</figure>", svg::lag(facts));
    marks(facts, &mut out);
    waivers(facts, &mut out);
    triplets(facts, &mut out);
    runs(facts, &mut out);
    line!(
        out,
        "<footer>Written {} UTC from state {}; {}</footer>",
        facts.written_at.to_minute(),
        escape(&facts.state),
        fact("digest", &facts.digest)
    );
    out.push_str("</body>\n</html>\n");
    out
}

fn head(facts: &Facts, out: &mut String) {
    let verdict = facts.verdict.name();
    line!(
        out,
        "<header class=\"{verdict}\"><h1>{} <small>exit {}</small></h1>",
        fact("verdict", verdict),
        facts.exit_code
    );
    line!(out, "<p>{}</p></header>", fact("reason", &facts.reason));
    let soak = &facts.window.soak;
    line!(out, "<dl>");
    let mut row = |name: &str, text: String| line!(out, "<div><dt>{name}</dt><dd>{text}</dd></div>");
    row("Plan", fact("plan", &facts.plan));
    row("Applied", escape(&facts.applied_at.to_minute()));
    row("Soaked", format_duration_ms(soak.soaked_ms));
    row("Soak clock since", or_dash(soak.started_at));
    row("Without evidence", format_duration_ms(soak.paused_ms));
    row("Earliest exit", or_dash(facts.window.soak_done_at));
    for (name, n) in &facts.totals {
        row(&name.replace('_', " "), fact(&format!("totals.{name}"), &n.to_string()));
    }
    for (stage, n) in &facts.stages {
        row(stage, fact(&format!("stages.{stage}"), &n.to_string()));
    }
    if let Some(r) = &facts.rehearsal {
        row("Rehearsal", format!("seed {}, {} days, {}", r.seed, r.days, fact("rehearsal.verdict", r.verdict.name())));
        row("Faults", escape(&if r.faults.is_empty() { "none".to_owned() } else { r.faults.join(", ") }));
        for (name, n) in &r.world {
            row(&name.replace('_', " "), fact(&format!("rehearsal.world.{name}"), &n.to_string()));
        }
    }
    line!(out, "</dl>");
}

fn criteria(facts: &Facts, out: &mut String) {
    line!(
        out,
        "<h2>Exit criteria</h2>\n<table>\n<thead><tr><th>Criterion<th>Verdict<th>Observed<th>Threshold<th>Unit<th>Samples / needed<th>Since<th>Reason</tr></thead>\n<tbody>"
    );
    for c in &facts.criteria {
        let at = |field: &str, text: &str| fact(&format!("criteria.{}.{field}", c.id), text);
        line!(out, "<tr class=\"{}\"><td title=\"{}\"><b>{}</b></td>", standing(c), escape(rule(&c.id)), c.id);
        line!(out, "<td>{}{}</td>", at("verdict", c.verdict.name()), if c.waived { " (waived)" } else { "" });
        line!(out, "<td class=\"n\">{}</td>", at("observed", &c.observed.map_or_else(|| "-".to_owned(), number)));
        line!(out, "<td class=\"n\">{}</td><td>{}</td>", at("threshold", &number(c.threshold)), escape(&c.unit));
        line!(out, "<td class=\"n\">{} / {}</td>", at("samples", &c.samples.to_string()), c.expected_samples);
        let waived = c.waived_by().map_or_else(String::new, |by| escape(&format!("; waived by {by}")));
        line!(out, "<td>{}</td><td class=\"w\">{}{waived}</td></tr>", or_dash(c.since), at("reason", &c.reason));
    }
    line!(out, "</tbody></table>");
}

fn standing(c: &Judged) -> &'static str {
    if c.waived { "waived" } else { c.verdict.name() }
}

fn legend() -> String {
    let stages = ["planned", "mirroring", "consented", "verified", "switched", "settled", "retired", "held"];
    let mut out: String = stages.iter().map(|s| format!("<span class=\"key {s}\">{s}</span> ")).collect();
    out += "Marks: X fault, ! finding, G gap in the evidence, R soak clock starts again, W waiver.";
    out
}

/// Says that a table was cut.
fn cut(total: usize, out: &mut String) {
    if total > ROWS_MAX {
        line!(out, "<p>The first {ROWS_MAX} of {total}; the JSON has all.</p>");
    }
}

fn marks(facts: &Facts, out: &mut String) {
    line!(out, "<h2>Faults, findings, gaps, waivers</h2>");
    if facts.marks.is_empty() {
        line!(out, "<p>None.</p>");
        return;
    }
    line!(out, "<table>\n<thead><tr><th>From<th>Until<th>Kind<th>Times<th>Subject<th>What</tr></thead>\n<tbody>");
    for m in facts.marks.iter().take(ROWS_MAX) {
        let (at, until, kind, times) = (m.at.to_minute(), or_dash(m.until), m.kind.name(), m.times);
        let (subject, text) = (escape(&m.subject), escape(&m.text));
        line!(
            out,
            "<tr data-mark=\"{kind}\"><td>{at}</td><td>{until}</td><td>{kind}</td><td class=\"n\">{times}</td><td>{subject}</td><td class=\"w\">{text}</td></tr>"
        );
    }
    line!(out, "</tbody></table>");
    cut(facts.marks.len(), out);
}

fn waivers(facts: &Facts, out: &mut String) {
    line!(out, "<h2>Waivers</h2>");
    if facts.waivers.is_empty() {
        line!(out, "<p>None was ever given.</p>");
        return;
    }
    line!(
        out,
        "<table>\n<thead><tr><th>Waiver<th>Criterion<th>Scope<th>By<th>Given<th>Until<th>Standing<th>Reason</tr></thead>\n<tbody>"
    );
    for line in &facts.waivers {
        let w = &line.waiver;
        let (scope, by, reason) = (escape(&w.scope), escape(&w.by), escape(&w.reason));
        let (given, until) = (w.given_at.to_minute(), w.until.to_minute());
        let standing = fact(&format!("waivers.{}.standing", w.id), line.standing);
        line!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{scope}</td><td>{by}</td><td>{given}</td><td>{until}</td><td>{standing}</td><td class=\"w\">{reason}</td></tr>",
            w.id,
            w.criterion
        );
    }
    line!(out, "</tbody></table>");
}

fn triplets(facts: &Facts, out: &mut String) {
    line!(
        out,
        "<h2>Triplets</h2>\n<table>\n<thead><tr><th>Triplet<th>Route<th>Wave<th>Standing<th>Versions<th>Reversible until<th>Since</tr></thead>\n<tbody>"
    );
    for t in facts.triplets.iter().take(ROWS_MAX) {
        let standing = fact(&format!("triplets.{}.standing", t.triplet), t.standing);
        let held = t.held.as_deref().map(|h| format!(": {}", escape(h))).unwrap_or_default();
        let wave = t.wave.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let since = or_dash(t.steps.last().map(|s| s.at));
        line!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{wave}</td><td class=\"h\">{standing}{held}</td>",
            escape(&t.triplet),
            t.route
        );
        line!(out, "<td class=\"n\">{}</td><td>{}</td><td>{since}</td></tr>", t.version, or_dash(t.reverse_until));
    }
    line!(out, "</tbody></table>");
    cut(facts.triplets.len(), out);
}

fn runs(facts: &Facts, out: &mut String) {
    line!(out, "<h2>Gate runs</h2>");
    if facts.gate_runs.is_empty() {
        line!(out, "<p>The gate never ran on this state.</p>");
        return;
    }
    line!(out, "<table>\n<thead><tr><th>Run<th>Verdict<th>At<th>Evidence</tr></thead>\n<tbody>");
    let cut_at = facts.gate_runs.len().saturating_sub(ROWS_MAX);
    for run in &facts.gate_runs[cut_at..] {
        let (at, verdict) = (run.at.to_minute(), run.verdict.name());
        line!(
            out,
            "<tr class=\"{verdict}\"><td class=\"n\">{}</td><td>{verdict}</td><td>{at}</td><td><code>{}</code></td></tr>",
            run.sequence,
            run.digest
        );
    }
    line!(out, "</tbody></table>");
}

const STYLE: &str = include_str!("style.css");
