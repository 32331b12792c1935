//! The gate as JUnit XML: one test case per criterion.
//!
//! A failed criterion is a failure and an inconclusive one an error, so that no dashboard counts
//! missing evidence as a pass. A waived one is skipped, with the waiver in its message; a waiver of a
//! part stands in the output of its test case.

use std::fmt::Write;

use super::measured;
use crate::domain::criteria::{Judged, Verdict, rule};
use crate::domain::evidence_file::EvidenceFile;
use crate::domain::time::Timestamp;

/// Writing to a `String` cannot fail.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => { writeln!($out, $($arg)*).expect("writing to a String cannot fail") };
}

/// Text in XML: escaped, and without the characters that XML 1.0 has no form for.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push_str("&#9;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

pub(super) fn junit(file: &EvidenceFile) -> String {
    let properties = [
        ("plan", file.plan.clone()),
        ("state", file.state.clone()),
        ("policy", file.policy.clone()),
        ("sequence", file.sequence.to_string()),
        ("digest", file.digest.clone()),
        ("previous", file.previous.clone().unwrap_or_default()),
    ];
    suite(&file.reason, file.evaluated_at, &file.criteria, &properties)
}

/// One suite of criteria.
pub(super) fn suite(reason: &str, at: Timestamp, criteria: &[Judged], properties: &[(&str, String)]) -> String {
    let number = |wanted: Verdict| criteria.iter().filter(|c| !c.waived && c.verdict == wanted).count();
    let (failures, errors) = (number(Verdict::Fail), number(Verdict::Inconclusive));
    let skipped = criteria.iter().filter(|c| c.waived).count();
    let counts = format!("tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\"", criteria.len());
    // ISO 8601 without fraction and zone, as the schema wants it; the time is UTC.
    let at = at.to_rfc3339();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    line!(out, "<testsuites name=\"cutover gate\" {counts} time=\"0\">");
    line!(
        out,
        "  <testsuite name=\"gate\" {counts} skipped=\"{skipped}\" time=\"0\" timestamp=\"{}\" hostname=\"localhost\">",
        &at[..19]
    );
    if !properties.is_empty() {
        line!(out, "    <properties>");
        for (name, value) in properties {
            line!(out, "      <property name=\"{name}\" value=\"{}\"/>", xml(value));
        }
        line!(out, "    </properties>");
    }
    for c in criteria {
        line!(out, "    <testcase classname=\"gate\" name=\"{}\" time=\"0\">", c.id);
        let message = xml(&c.told());
        match (c.waived, c.verdict) {
            (true, _) => line!(out, "      <skipped message=\"{message}\"/>"),
            (_, Verdict::Pass) => {}
            (_, verdict) => {
                let element = if verdict == Verdict::Fail { "failure" } else { "error" };
                line!(
                    out,
                    "      <{element} type=\"{}\" message=\"{message}\">{}</{element}>",
                    verdict.name(),
                    body(c)
                );
            }
        }
        let waived = c.waived_by().map_or_else(String::new, |by| format!("; waived by {by}"));
        line!(out, "      <system-out>{}: {}{}</system-out>", xml(rule(&c.id)), xml(&measured(c)), xml(&waived));
        line!(out, "    </testcase>");
    }
    line!(out, "    <system-out>{}</system-out>", xml(reason));
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

/// What spoke against a criterion, a line for each.
fn body(judged: &Judged) -> String {
    let lines: Vec<String> =
        judged.findings.iter().map(|n| format!("{} {}: {}", n.at.to_rfc3339(), n.subject, n.detail)).collect();
    xml(&lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_breaks_out_of_its_place() {
        assert_eq!(xml("a<b>&\"c\"\u{0}\n"), "a&lt;b&gt;&amp;&quot;c&quot;\u{fffd}&#10;");
    }
}
