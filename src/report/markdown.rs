//! The same account as Markdown, for the decision record that the soak belongs to.

use std::fmt::Write;

use super::Facts;
use crate::domain::criteria::Verdict;
use crate::domain::markdown::cell;
use crate::domain::time::format_duration_ms;

/// Marks that are listed; the JSON has all.
const MARKS_MAX: usize = 100;

/// Writing to a `String` cannot fail.
macro_rules! line {
    ($out:expr) => { $out.push('\n') };
    ($out:expr, $($arg:tt)*) => { writeln!($out, $($arg)*).expect("writing to a String cannot fail") };
}

pub(super) fn markdown(facts: &Facts) -> String {
    let mut out = String::new();
    line!(out, "# Soak of plan {}: {}", facts.plan, facts.verdict.name());
    line!(out);
    line!(out, "{}", cell(&facts.reason));
    line!(out);
    let soak = &facts.window.soak;
    line!(
        out,
        "- State `{}`, plan applied {} UTC, written {} UTC",
        facts.state,
        facts.applied_at.to_minute(),
        facts.written_at.to_minute()
    );
    line!(
        out,
        "- Soaked {}, without evidence {}",
        format_duration_ms(soak.soaked_ms),
        format_duration_ms(soak.paused_ms)
    );
    let stages: Vec<String> = facts.stages.iter().map(|(stage, n)| format!("{n} {stage}")).collect();
    line!(out, "- Custody: {}", stages.join(", "));
    for (name, n) in &facts.totals {
        line!(out, "- {}: {n}", name.replace('_', " "));
    }
    if let Some(r) = &facts.rehearsal {
        let faults = if r.faults.is_empty() { "none".to_owned() } else { r.faults.join(", ") };
        line!(out, "- Rehearsal: {}, seed {}, {} days, faults: {}", r.verdict.name(), r.seed, r.days, cell(&faults));
        let world: Vec<String> = r.world.iter().map(|(name, n)| format!("{n} {}", name.replace('_', " "))).collect();
        line!(out, "- The world counted: {}", world.join(", "));
    }
    line!(out);
    line!(out, "## Exit criteria");
    line!(out);
    out.push_str(&crate::domain::markdown::criteria(&facts.criteria));
    line!(out);
    line!(out, "## Verdict of each day");
    line!(out);
    line!(out, "| Day | Verdict | Not passing | Waived | Rotations | Missed |");
    line!(out, "|---|---|---|---|--:|--:|");
    for d in &facts.days {
        let (open, waived) = (d.open.join(", "), d.waived.join(", "));
        line!(
            out,
            "| {} | {} | {open} | {waived} | {} | {} |",
            d.day,
            d.verdict.name(),
            d.rotations,
            d.rotations_missed
        );
    }
    if !facts.marks.is_empty() {
        line!(out);
        line!(out, "## Faults, findings, gaps, waivers");
        line!(out);
        for m in facts.marks.iter().take(MARKS_MAX) {
            let again = if m.times > 1 { format!(" ({} times)", m.times) } else { String::new() };
            let until = m.until.map(|at| format!(" to {}", at.to_minute())).unwrap_or_default();
            line!(
                out,
                "- {}{until} {}, {}: {}",
                m.at.to_minute(),
                m.kind.name(),
                cell(&m.subject),
                cell(&m.text) + &again
            );
        }
        if facts.marks.len() > MARKS_MAX {
            line!(out, "- and {} more", facts.marks.len() - MARKS_MAX);
        }
    }
    let held: Vec<_> = facts.triplets.iter().filter_map(|t| Some((t, t.held.as_ref()?))).collect();
    if !held.is_empty() {
        line!(out);
        line!(out, "## Held triplets");
        line!(out);
        for (t, why) in held {
            line!(out, "- {}: {}", cell(&t.triplet), cell(why));
        }
    }
    line!(out);
    let passes = facts.gate_runs.iter().filter(|r| r.verdict == Verdict::Pass).count();
    line!(out, "The gate ran {} times and passed {passes} times. Report `{}`.", facts.gate_runs.len(), facts.digest);
    out
}
