//! From bytes to text: what is not plain UTF-8 with ordinary line ends is refused by name.

use super::diagnostic::{Problem, Report, Span};

/// How many bytes are looked at to recognise UTF-16 without a byte order mark.
const PROBE_BYTES: usize = 512;
const UTF8: &str = "UTF-8 text";
const SAVE_AS_UTF8: &str = "save the file again as UTF-8 (in Excel: `CSV UTF-8 (Comma delimited)`)";

/// The text, with its byte order mark if it has one so that offsets stay those of the file.
pub(super) fn check<'a>(bytes: &'a [u8], report: &mut Report<'_>) -> Option<&'a str> {
    if let Some(name) = foreign_encoding(bytes) {
        let message = format!("the file is {name}");
        let hint = if name.contains("ZIP") {
            "in Excel, save the sheet as `CSV UTF-8 (Comma delimited)`"
        } else {
            SAVE_AS_UTF8
        };
        report.add(|_| Problem::new(Span::new(0, bytes.len().min(4)), message, UTF8).hint(hint));
        return None;
    }
    if bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes).iter().all(u8::is_ascii_whitespace) {
        report.add(|_| {
            Problem::new(Span::at(0), "the file is empty", "a Markdown table, CSV or JSON with at least one row")
        });
        return None;
    }
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        report.add(|_| {
            Problem::new(Span::new(at, at + 1), format!("NUL byte at offset {at}"), UTF8)
                .hint("the file is binary, damaged, or in another encoding; export it again as UTF-8")
        });
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            let end = at + error.error_len().unwrap_or(bytes.len() - at);
            let message = format!("byte 0x{:02X} at offset {at} is not valid UTF-8", bytes[at]);
            report.add(|_| Problem::new(Span::new(at, end), message, UTF8).hint(SAVE_AS_UTF8));
            return None;
        }
    };
    // Classic Mac line ends make the whole file one line, and with it every position useless.
    if let Some(at) = text.find('\r').filter(|_| !text.contains('\n')).filter(|at| !text[at + 1..].trim().is_empty()) {
        report.add(|_| {
            Problem::new(
                Span::new(at, at + 1),
                "lines end in a lone carriage return (CR)",
                "lines that end in LF or CR LF",
            )
            .hint("save the file with Unix or Windows line ends, for example `tr '\\r' '\\n' < FILE`")
        });
        return None;
    }
    Some(text)
}

fn foreign_encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xFF, 0xFE, 0, 0, ..] => Some("UTF-32 LE"),
        [0, 0, 0xFE, 0xFF, ..] => Some("UTF-32 BE"),
        [0xFF, 0xFE, ..] => Some("UTF-16 LE"),
        [0xFE, 0xFF, ..] => Some("UTF-16 BE"),
        [b'P', b'K', 3, 4, ..] => Some("a ZIP archive, such as an Excel workbook"),
        _ => {
            let probe = &bytes[..bytes.len().min(PROBE_BYTES) & !1];
            let zeros = |odd: usize| probe.iter().skip(odd).step_by(2).filter(|b| **b == 0).count();
            let (even, odd, pairs) = (zeros(0), zeros(1), probe.len() / 2);
            // Latin text in UTF-16 has a zero in nearly every pair, always on the same side.
            if pairs >= 4 && odd * 10 >= pairs * 8 && even * 10 <= pairs {
                Some("UTF-16 LE without a byte order mark")
            } else if pairs >= 4 && even * 10 >= pairs * 8 && odd * 10 <= pairs {
                Some("UTF-16 BE without a byte order mark")
            } else {
                None
            }
        }
    }
}
