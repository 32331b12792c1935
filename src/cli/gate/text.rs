//! The gate for people at a terminal.

use std::fmt::Write;

use super::{judged_at, measured, soak_line, waived_by};
use crate::domain::criteria::{Judged, Verdict};
use crate::domain::evidence_file::EvidenceFile;

/// Columns that a line may take.
const WIDTH: usize = 100;

/// Findings that are printed under a criterion; the others are in the JSON.
const FINDINGS_SHOWN: usize = 5;

/// Writing to a `String` cannot fail.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => { writeln!($out, $($arg)*).expect("writing to a String cannot fail") };
}

/// The whole report.
pub(super) fn text(file: &EvidenceFile, color: bool) -> String {
    let mut out = format!(
        "Gate of plan {} on state {}, run {}, {}\nSoak: {}\n\n",
        file.plan,
        file.state,
        file.sequence,
        judged_at(file.evaluated_at),
        soak_line(file)
    );
    criteria(&mut out, &file.criteria, color);
    for waiver in &file.waivers {
        let whom = format!("{} for `{}` of {}", waiver.id, waiver.scope, waiver.criterion);
        let said = format!("{whom}, by {} until {}: {}", waiver.by, waiver.until.to_minute(), waiver.reason);
        wrapped(&mut out, "\nwaiver  ", &said);
    }
    let newest = file.window.gaps.iter().rev().take(FINDINGS_SHOWN);
    for gap in newest {
        let said = format!("{} to {}, {}: {}", gap.from.to_minute(), gap.until.to_minute(), gap.source, gap.reason);
        wrapped(&mut out, "gap     ", &said);
    }
    out.push('\n');
    verdict(&mut out, file.verdict, &file.reason, color);
    if file.verdict == Verdict::Pass {
        line!(out, "Opens `switch` and `retire` until {} UTC", file.open_until.to_minute());
    }
    line!(out, "{}", file.digest);
    out
}

/// Some criteria only.
pub(super) fn partial(list: &[Judged], overall: Verdict, reason: &str, color: bool) -> String {
    let mut out = String::new();
    criteria(&mut out, list, color);
    out.push('\n');
    verdict(&mut out, overall, reason, color);
    out
}

fn criteria(out: &mut String, list: &[Judged], color: bool) {
    let width = list.iter().map(|c| measured(c).len()).max().unwrap_or_default();
    for c in list {
        let (word, code) = match c.verdict {
            Verdict::Pass => ("pass", "32"),
            Verdict::Inconclusive => ("????", "33"),
            Verdict::Fail => ("FAIL", "31"),
        };
        let said = if c.waived { format!("waived by {}: {}", waived_by(c), c.reason) } else { c.reason.clone() };
        let head = format!("  {}  {:<17}  {:<width$}  ", paint(color, code, word), c.id, measured(c));
        wrapped(out, &head, &said);
        if c.verdict == Verdict::Fail {
            for note in c.findings.iter().take(FINDINGS_SHOWN) {
                wrapped(
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

fn verdict(out: &mut String, verdict: Verdict, reason: &str, color: bool) {
    let (word, code) = match verdict {
        Verdict::Pass => ("PASS", "1;32"),
        Verdict::Inconclusive => ("INCONCLUSIVE", "1;33"),
        Verdict::Fail => ("FAIL", "1;31"),
    };
    let head = format!("{} (exit {}): ", paint(color, code, word), verdict.exit_code());
    wrapped(out, &head, reason);
}

fn paint(color: bool, code: &str, text: &str) -> String {
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Writes `head` and then `said`, broken at words, the next lines under the first.
fn wrapped(out: &mut String, head: &str, said: &str) {
    out.push_str(head);
    let plain = head.trim_start_matches('\n');
    let escapes: usize = plain.split('\x1b').skip(1).map(|part| part.find('m').map_or(0, |at| at + 2)).sum();
    let indent = (plain.chars().count() - escapes).min(WIDTH / 2);
    let mut column = plain.chars().count() - escapes;
    for (i, word) in said.split(' ').enumerate() {
        let length = word.chars().count();
        if i > 0 && column + 1 + length > WIDTH {
            line!(out, "");
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else if i > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}
