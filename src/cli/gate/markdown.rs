//! The gate as GitHub-flavoured Markdown, for pull requests and step summaries.

use std::fmt::Write;

use super::{judged_at, soak_line};
use crate::domain::criteria::{Judged, Verdict};
use crate::domain::evidence_file::EvidenceFile;
use crate::domain::markdown::{cell, criteria};

/// Findings that are listed under the table; the others are in the JSON.
const FINDINGS_SHOWN: usize = 5;

/// Writing to a `String` cannot fail.
macro_rules! line {
    ($out:expr) => { $out.push('\n') };
    ($out:expr, $($arg:tt)*) => { writeln!($out, $($arg)*).expect("writing to a String cannot fail") };
}

/// Some criteria only.
pub(super) fn partial(list: &[Judged], overall: Verdict, reason: &str) -> String {
    format!("## Gate, in part: {}\n\n{}\n\n{}", overall.name(), cell(reason), criteria(list))
}

/// The whole report.
pub(super) fn markdown(file: &EvidenceFile) -> String {
    let mut out = String::new();
    line!(out, "## Gate: {}", file.verdict.name());
    line!(out);
    line!(out, "{}", cell(&file.reason));
    line!(out);
    line!(
        out,
        "Plan `{}`, state `{}`, run {}, {}.",
        file.plan,
        file.state,
        file.sequence,
        judged_at(file.evaluated_at)
    );
    line!(out, "Soak: {}.", cell(&soak_line(file)));
    line!(out);
    out.push_str(&criteria(&file.criteria));
    for c in file.criteria.iter().filter(|c| c.verdict == Verdict::Fail) {
        line!(out);
        line!(out, "**{}**", c.id);
        line!(out);
        for note in c.findings.iter().take(FINDINGS_SHOWN) {
            line!(out, "- {} {}: {}", note.at.to_minute(), cell(&note.subject), cell(&note.detail));
        }
        let more = c.findings_total.saturating_sub(FINDINGS_SHOWN as u64);
        if more > 0 {
            line!(out, "- and {more} more");
        }
    }
    if !file.waivers.is_empty() {
        line!(out);
        line!(out, "### Waivers in force");
        line!(out);
        line!(out, "| Waiver | Criterion | Scope | By | Until | Reason |");
        line!(out, "|---|---|---|---|---|---|");
        for w in &file.waivers {
            let (scope, by, reason) = (cell(&w.scope), cell(&w.by), cell(&w.reason));
            line!(out, "| {} | {} | {scope} | {by} | {} | {reason} |", w.id, w.criterion, w.until.to_minute());
        }
    }
    if !file.window.gaps.is_empty() {
        line!(out);
        line!(out, "### Gaps in the evidence");
        line!(out);
        for gap in &file.window.gaps {
            line!(
                out,
                "- {} to {}, {}: {}",
                gap.from.to_minute(),
                gap.until.to_minute(),
                gap.source,
                cell(&gap.reason)
            );
        }
    }
    line!(out);
    line!(out, "Evidence `{}`, after `{}`.", file.digest, file.previous.as_deref().unwrap_or("none"));
    out
}
