//! The report of a comparison in its shapes.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::json;

use super::super::{CommandError, CommandResult, Ui};
use super::evidence::Evidence;
use super::live::LiveSides;
use super::{ReportFormat, VerifyArgs};
use crate::exit;
use crate::verify::{Counts, Diagnostics, Finding, Outcome, Report, Task};

/// `5,000,000`
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[derive(Serialize)]
struct Line<'a, T> {
    r#type: &'static str,
    #[serde(flatten)]
    content: &'a T,
}

pub(super) fn write_json_line<T: Serialize>(out: &mut impl Write, r#type: &'static str, content: &T) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line { r#type, content })?;
    out.write_all(b"\n")
}

pub(super) fn print(
    out: &mut impl Write,
    args: &VerifyArgs,
    task: &Task,
    report: &mut Report,
    already: bool,
    evidence: &Evidence,
) -> io::Result<()> {
    let (code, reason) = report.verdict();
    match args.format {
        ReportFormat::Text => {
            // Nothing that can be found is worse, so it stands before everything else.
            report.findings(|finding| match finding.is_of_another_account() {
                true => writeln!(out, "ANOTHER UPSTREAM ACCOUNT: {}", one_line(&finding.key)),
                false => Ok(()),
            })?;
            report.findings(|finding| out.write_all(text_line(&finding).as_bytes()))?;
            out.write_all(text_summary(task, &report.counts, &reason).as_bytes())
        }
        ReportFormat::Json => {
            // The findings may be many more than fit into memory, so the object is written around them.
            let summary = summary(task, report, code, &reason, evidence).to_string();
            out.write_all(summary.strip_suffix('}').unwrap_or(&summary).as_bytes())?;
            out.write_all(b",\"findings\":[")?;
            let mut first = true;
            report.findings(|finding| {
                out.write_all(if std::mem::take(&mut first) { b"\n" } else { b",\n" })?;
                serde_json::to_writer(&mut *out, &finding).map_err(io::Error::from)
            })?;
            out.write_all(b"\n]}\n")
        }
        ReportFormat::Jsonl => {
            if !already {
                report.findings(|finding| write_json_line(out, "finding", &finding))?;
            }
            for diagnostic in &report.diagnostics.shown {
                write_json_line(out, "diagnostic", diagnostic)?;
            }
            let mut summary = summary(task, report, code, &reason, evidence);
            if let Some(object) = summary.as_object_mut() {
                object.remove("diagnostics");
            }
            write_json_line(out, "summary", &summary)
        }
    }
}

fn summary(task: &Task, report: &Report, code: u8, reason: &str, evidence: &Evidence) -> serde_json::Value {
    let counts: serde_json::Map<String, serde_json::Value> = Outcome::ALL
        .into_iter()
        .map(|outcome| {
            let rungs: serde_json::Map<_, _> =
                report.counts.rungs(outcome).map(|(rung, n)| (rung.as_str().to_owned(), n.into())).collect();
            (outcome.as_str().to_owned(), json!({ "keys": report.counts.of(outcome), "rungs": rungs }))
        })
        .collect();
    let mut summary = json!({
        "exit_code": code,
        "reason": reason,
        "left": { "name": task.left, "entries": report.counts.entries[0] },
        "right": { "name": task.right, "entries": report.counts.entries[1] },
        "rules": task.rules,
        "counts": counts,
        "repeated": report.counts.repeated,
        "not_compared": report.counts.not_compared,
        "diagnostics": report.diagnostics.shown,
        "diagnostics_total": report.diagnostics.total,
    });
    if let Some(live) = &task.live {
        summary["level"] = live.level.name().into();
    }
    if let Some(evidence) = evidence.to_json() {
        summary["evidence"] = evidence;
    }
    summary
}

/// Says what a comparison would ask.
pub(super) fn estimate(live: Option<&LiveSides>, text: bool, ui: &Ui) -> CommandResult {
    let Some(live) = live else {
        return Err(CommandError::usage("`--estimate` is about live sides, and these are dumps"));
    };
    let Some(estimate) = &live.estimate else {
        return Err(
            CommandError::usage("nobody knows how many keys there are").hint("say about how many as `--keys N`")
        );
    };
    if text {
        ui.print(&format!("{estimate}\n"));
    } else {
        let requests: serde_json::Map<String, serde_json::Value> =
            estimate.requests.iter().map(|(api, n)| (api.name().to_owned(), (*n).into())).collect();
        let report = json!({
            "exit_code": exit::OK,
            "reason": "nothing was asked",
            "keys": estimate.keys,
            "requests": requests,
            "lasts_ms": estimate.lasts_ms,
            "settle_ms": estimate.settle_ms,
        });
        ui.print(&format!("{report}\n"));
    }
    Ok(exit::OK)
}

/// What is said about a key, but for the key. No secrets.
pub(super) fn told(finding: &Finding) -> String {
    let mut told: Vec<String> = Vec::new();
    if finding.outcome != Outcome::Changed && finding.outcome != Outcome::Match {
        told.push(finding.outcome.to_string());
    }
    told.extend(finding.changes.iter().map(ToString::to_string));
    told.extend(finding.foreign.iter().map(|hand| format!("metadata on the {} is not ours", hand.as_str())));
    told.extend(finding.reason.clone());
    told.push(format!("[{}]", finding.rung));
    // The rung belongs to all of what stands before it.
    let last = told.len() - 1;
    [told[..last].join(", "), told[last].clone()].join(" ").trim_start().to_owned()
}

pub(super) fn text_line(finding: &Finding) -> String {
    let told = told(finding);
    let gap = if told.starts_with('[') { " " } else { "  " };
    let mut line = format!("{} {}{gap}{told}\n", finding.outcome.symbol(), one_line(&finding.key));
    for text in finding.diff.iter().flat_map(|diff| diff.lines()) {
        line.push_str("    ");
        line.push_str(text);
        line.push('\n');
    }
    line
}

/// A key on one line of a report, whatever is in it.
pub(super) fn one_line(key: &str) -> String {
    if key.chars().any(char::is_control) { key.escape_debug().to_string() } else { key.to_owned() }
}

fn text_summary(task: &Task, counts: &Counts, reason: &str) -> String {
    let mut out = format!(
        "{} entries in {}, {} in {}\n",
        grouped(counts.entries[0]),
        task.left,
        grouped(counts.entries[1]),
        task.right
    );
    for outcome in Outcome::ALL {
        let keys = counts.of(outcome);
        if keys == 0 && outcome != Outcome::Match {
            continue;
        }
        let rungs: Vec<String> = counts.rungs(outcome).map(|(rung, n)| format!("{rung} {}", grouped(n))).collect();
        let rungs = if rungs.is_empty() { String::new() } else { format!(" ({})", rungs.join(", ")) };
        out.push_str(&format!("{} {} {outcome}{rungs}\n", outcome.symbol(), grouped(keys)));
    }
    if counts.repeated > 0 {
        out.push_str(&format!("  {} entries repeat another one and were counted once\n", grouped(counts.repeated)));
    }
    if counts.not_compared > 0 {
        let keys = grouped(counts.not_compared);
        out.push_str(&format!("  {keys} keys were not compared because the other side broke off\n"));
    }
    out.push_str(reason);
    out.push('\n');
    out
}

pub(super) fn note_diagnostics(ui: &Ui, diagnostics: &Diagnostics) {
    for diagnostic in &diagnostics.shown {
        ui.note(&format!("error: {diagnostic}"));
    }
    let more = diagnostics.total - diagnostics.shown.len() as u64;
    if more > 0 {
        ui.note(&format!("error: and {} more", grouped(more)));
    }
}
