//! Pieces of GitHub-flavoured Markdown that more than one report is made of.

use super::criteria::{Judged, Verdict};

/// Text in a table cell or a list: nothing in it can end the cell, open a tag or become a link.
pub fn cell(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '\\' | '#' | '~' => {
                out.push('\\');
                out.push(c);
            }
            '\n' | '\r' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// An observed value or a threshold, with at most four decimals, cut and not rounded.
pub fn number(n: f64) -> String {
    format!("{}", (n * 10_000.0).trunc() / 10_000.0)
}

/// The criteria as a table.
pub fn criteria(criteria: &[Judged]) -> String {
    let mut out = String::from("| Criterion | Verdict | Observed | Threshold | Unit | Samples | Reason |\n");
    out.push_str("|---|---|--:|--:|---|--:|---|\n");
    for c in criteria {
        let verdict = match (c.waived, c.verdict) {
            (true, verdict) => format!("{} (waived)", verdict.name()),
            (false, Verdict::Pass) => "pass".to_owned(),
            (false, verdict) => format!("**{}**", verdict.name()),
        };
        out.push_str(&format!(
            "| {} | {verdict} | {} | {} | {} | {} of {} | {} |\n",
            c.id,
            c.observed.map_or_else(|| "-".to_owned(), number),
            number(c.threshold),
            cell(&c.unit),
            c.samples,
            c.expected_samples,
            cell(&c.told())
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_breaks_out_of_its_cell() {
        assert_eq!(cell("a|b\n`c` <d> [e](f)"), "a\\|b \\`c\\` \\<d\\> \\[e\\](f)");
        assert_eq!([number(0.99995), number(30.0)], ["0.9999", "30"]);
    }
}
