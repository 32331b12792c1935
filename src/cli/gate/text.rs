//! The gate for people at a terminal.

use std::fmt::Write;

use super::{judged_at, measured, soak_line};
use crate::domain::criteria::{Judged, Verdict};
use crate::domain::evidence_file::EvidenceFile;
use crate::text::{Paint, wrap};

/// Findings that are printed under a criterion; the others are in the JSON.
const FINDINGS_SHOWN: usize = 5;

/// Writing to a `String` cannot fail.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => { writeln!($out, $($arg)*).expect("writing to a String cannot fail") };
}

/// The whole report.
pub(super) fn text(file: &EvidenceFile, paint: Paint) -> String {
    let mut out = format!(
        "Gate of plan {} on state {}, run {}, {}\nSoak: {}\n\n",
        file.plan,
        file.state,
        file.sequence,
        judged_at(file.evaluated_at),
        soak_line(file)
    );
    criteria(&mut out, &file.criteria, paint);
    for waiver in &file.waivers {
        let whom = format!("{} for `{}` of {}", waiver.id, waiver.scope, waiver.criterion);
        let said = format!("{whom}, by {} until {}: {}", waiver.by, waiver.until.to_minute(), waiver.reason);
        out.push('\n');
        wrap(&mut out, "waiver  ", &said);
    }
    let newest = file.window.gaps.iter().rev().take(FINDINGS_SHOWN);
    for gap in newest {
        let said = format!("{} to {}, {}: {}", gap.from.to_minute(), gap.until.to_minute(), gap.source, gap.reason);
        wrap(&mut out, "gap     ", &said);
    }
    out.push('\n');
    wrap(&mut out, &paint.verdict(file.verdict), &file.reason);
    if file.verdict == Verdict::Pass {
        line!(out, "Opens `switch` and `retire` until {} UTC", file.open_until.to_minute());
    }
    line!(out, "{}", file.digest);
    out
}

/// Some criteria only.
pub(super) fn partial(list: &[Judged], overall: Verdict, reason: &str, paint: Paint) -> String {
    let mut out = String::new();
    criteria(&mut out, list, paint);
    out.push('\n');
    wrap(&mut out, &paint.verdict(overall), reason);
    out
}

fn criteria(out: &mut String, list: &[Judged], paint: Paint) {
    let width = list.iter().map(|c| measured(c).len()).max().unwrap_or_default();
    for c in list {
        let head = format!("  {}  {:<17}  {:<width$}  ", paint.mark(c.verdict), c.id, measured(c));
        wrap(out, &head, &c.told());
        if c.verdict == Verdict::Fail {
            for note in c.findings.iter().take(FINDINGS_SHOWN) {
                wrap(
                    out,
                    &format!("          {}  ", note.at.to_minute()),
                    &format!("{}: {}", note.subject, note.detail),
                );
            }
            let more = c.findings_total.saturating_sub(FINDINGS_SHOWN as u64);
            if more > 0 {
                line!(out, "          and {more} more");
            }
        }
    }
}
