//! Hostile dumps: a located diagnostic, the rest still compared where that is safe, never a false
//! match and never a panic.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use cutover::verify::{Dump, Finding, Keys, MEMORY_MIN, Meter, Options, Order, Outcome, Rules, Source, verify};
use proptest::prelude::*;

/// What comparing two dumps gave: each finding as `mark key`, each diagnostic, matches, exit code.
#[derive(Debug, PartialEq)]
struct Seen {
    findings: Vec<String>,
    diagnostics: Vec<String>,
    matches: u64,
    repeated: u64,
    code: u8,
}

fn compare_in(folder: &Path, left: &[u8], right: &[u8], order: Order, all: bool) -> Seen {
    let paths = [folder.join("l"), folder.join("r")];
    fs::write(&paths[0], left).unwrap();
    fs::write(&paths[1], right).unwrap();
    let dumps = paths.each_ref().map(|path| Dump::new(path.to_str().unwrap()));
    let rules = Rules { all, ..Rules::default() };
    let options = Options { rules, order, memory: MEMORY_MIN, folder: Some(folder.to_owned()), clock: None };
    let sides: [&dyn Source; 2] = [&dumps[0], &dumps[1]];
    let keys = Keys::new([3; 32], None);
    let mut report = verify(sides, &options, &keys, None, &Meter::default(), &mut |_| {}).unwrap();
    let mut findings: Vec<Finding> = Vec::new();
    report
        .findings(|finding| {
            findings.push(finding);
            Ok(())
        })
        .unwrap();
    let name = |text: String| text.replace(&format!("{}/", folder.display()), "");
    Seen {
        findings: findings.iter().map(|f| format!("{} {}", f.outcome.symbol(), f.key)).collect(),
        diagnostics: report.diagnostics.shown.iter().map(|d| name(d.to_string())).collect(),
        matches: report.counts.of(Outcome::Match),
        repeated: report.counts.repeated,
        code: report.verdict().0,
    }
}

/// Compares both ways, which must agree on everything but the wording of diagnostics.
fn compare(left: &[u8], right: &[u8]) -> Seen {
    let folder = tempfile::tempdir().unwrap();
    let sorted = compare_in(folder.path(), left, right, Order::Auto, false);
    let unsorted = compare_in(folder.path(), left, right, Order::Unsorted, false);
    assert_eq!((&sorted.findings, sorted.matches, sorted.code), (&unsorted.findings, unsorted.matches, unsorted.code));
    assert_eq!((sorted.diagnostics.len(), sorted.repeated), (unsorted.diagnostics.len(), unsorted.repeated));
    // Listing matches needs the long form of the partitions.
    let mut listed = compare_in(folder.path(), left, right, Order::Unsorted, true);
    listed.findings.retain(|finding| !finding.starts_with('='));
    assert_eq!(
        (&listed, listed.diagnostics.len()),
        (&Seen { diagnostics: listed.diagnostics.clone(), ..unsorted }, sorted.diagnostics.len())
    );
    sorted
}

fn entry(key: &str, token: &str) -> String {
    let value = serde_json::json!({ "access_token": token, "scope": "a b" }).to_string();
    format!("{{\"key\":\"tokens:{key}\",\"value\":{}}}\n", serde_json::Value::from(value))
}

fn dump(keys: &[&str]) -> String {
    keys.iter().map(|key| entry(key, "token-0001")).collect()
}

#[test]
fn a_truncated_dump_says_where_and_the_rest_is_not_called_missing() {
    let whole = dump(&["a", "b", "c", "d"]);
    let cut = &whole[..whole.len() * 5 / 8];
    let seen = compare(whole.as_bytes(), cut.as_bytes());
    assert_eq!((seen.code, seen.matches), (1, 2));
    // The key of the cut entry was still readable, so that one is named; what follows is not judged.
    assert_eq!(seen.findings, ["! tokens:c"]);
    assert!(seen.diagnostics[0].starts_with("r:3: byte ") && seen.diagnostics[0].contains("cut short"), "{seen:?}");

    let array = |text: &str| format!("[{}]", text.trim_end().replace('\n', ",\n"));
    let cut = &array(&whole)[..whole.len() * 5 / 8];
    let seen = compare(whole.as_bytes(), cut.as_bytes());
    assert_eq!((seen.code, seen.matches, seen.findings.len()), (1, 2, 0), "{seen:?}");
    assert!(seen.diagnostics[0].contains("the file was cut short"), "{seen:?}");
}

/// Entries of every kind of part: their lines, the same as an array, and as CSV.
fn every_format() -> (Vec<String>, Vec<(&'static str, Vec<u8>)>) {
    let value = r#"{\"access_token\":\"t\u006f\u00e9é\",\"n\":[1.5,true,null]}"#;
    let lines = vec![
        format!("{{\"key\":\"tokens:a\",\"value\":\"{value}\",\"metadata\":{{\"v\":1}}}}\n"),
        "{\"value\":\"x\\\\y\",\"key\":\"b\",\"expiration\":1790000000}\n".to_owned(),
        "{\"key\":\"c\",\"value\":\"plain é\",\"base64\":false}\n".to_owned(),
        "{\"key\":\"d\",\"value\":\"plain text\"}\n".to_owned(),
    ];
    let array = format!("[{}]", lines.concat().trim_end().replace('\n', ",\n"));
    let mut csv = "key,metadata,value,expiration\n".to_owned();
    csv.push_str("tokens:a,\"{\"\"v\"\":1}\",\"{\"\"access_token\"\":\"\"toéé\"\",\"\"n\"\":[1.5,true,null]}\",\n");
    csv.push_str("b,,x\\y,1790000000\r\nc,,plain é,\nd,,\"plain text\",\n");
    let formats =
        vec![("lines", lines.concat().into_bytes()), ("array", array.into_bytes()), ("CSV", csv.into_bytes())];
    (lines, formats)
}

#[test]
fn no_cut_makes_a_match_or_calls_missing_what_was_cut_off() {
    let (lines, formats) = every_format();
    let keys = ["tokens:a", "b", "c", "d"];
    // In CSV nothing says `"base64":false`, which says nothing.
    let lines = lines.concat();
    let without_flag = lines.replace(",\"base64\":false", "");
    let folder = tempfile::tempdir().unwrap();
    for (format, bytes) in formats {
        let left = if format == "CSV" { without_flag.as_bytes() } else { lines.as_bytes() };
        let seen = compare_in(folder.path(), left, &bytes, Order::Auto, false);
        assert_eq!((seen.code, seen.matches), (0, 4), "{format} {seen:?}");
        for cut in 1..bytes.len() {
            let (rest, next) = (&bytes[..cut], bytes[cut]);
            // A dump that ends between two entries, or before the last line feed, shows nothing of a cut.
            let between = match format {
                "lines" => rest.ends_with(b"}\n") || (rest.ends_with(b"}") && next == b'\n'),
                "CSV" => rest.ends_with(b"\n") || rest.ends_with(b"\r"),
                _ => false,
            };
            for order in [Order::Auto, Order::Unsorted] {
                let seen = compare_in(folder.path(), left, rest, order, false);
                let told = || format!("{format} cut to {:?} {order:?}: {seen:?}", String::from_utf8_lossy(rest));
                let before = keys.iter().filter(|key| seen_whole(rest, key, format)).count() as u64;
                assert!(seen.matches <= before, "{}", told());
                if !between {
                    assert_eq!(seen.code, 1, "{}", told());
                    assert!(seen.findings.iter().all(|finding| finding.starts_with('!')), "{}", told());
                    assert!(!seen.diagnostics.is_empty(), "{}", told());
                }
            }
        }
    }
}

/// Whether the entry of a key stands in a cut dump to its end.
fn seen_whole(rest: &[u8], key: &str, format: &str) -> bool {
    let text = String::from_utf8_lossy(rest);
    let start = match format {
        "CSV" => text.find(&format!("\n{key},")).map(|at| at + 1),
        _ => text.find(&format!("\"key\":\"{key}\"")),
    };
    start.is_some_and(|at| text[at..].contains(if format == "CSV" { &['\n', '\r'][..] } else { &['}'] }))
}

/// All orders of a few lines.
fn orders(lines: &[String]) -> Vec<String> {
    match lines {
        [] => vec![String::new()],
        _ => (0..lines.len())
            .flat_map(|n| {
                let mut others = lines.to_vec();
                let first = others.remove(n);
                orders(&others).into_iter().map(move |rest| format!("{first}{rest}"))
            })
            .collect(),
    }
}

#[test]
fn the_order_of_damaged_and_repeated_entries_does_not_show() {
    let whole = dump(&["a", "b", "c"]);
    let (good, other) = (entry("b", "token-0001"), entry("b", "token-0002"));
    let damaged = "{\"key\":\"tokens:b\",\"value\":7}\n".to_owned();
    let unusable = "{\"key\":\"tokens:b\",\"value\":\"{}\"}\n".to_owned();
    for given in [
        vec![&damaged],
        vec![&unusable],
        vec![&good, &good],
        vec![&good, &other],
        vec![&good, &other, &good],
        vec![&good, &other, &other],
        vec![&good, &damaged],
        vec![&good, &unusable],
        vec![&unusable, &unusable],
        vec![&damaged, &damaged],
    ] {
        let lines: Vec<String> =
            given.into_iter().cloned().chain([entry("a", "token-0001"), entry("c", "token-0001")]).collect();
        let seen: BTreeSet<_> = orders(&lines)
            .iter()
            .map(|right| {
                let seen = compare(whole.as_bytes(), right.as_bytes());
                assert_eq!(seen.matches + seen.findings.len() as u64, 3, "{right}: {seen:?}");
                (seen.findings, seen.matches, seen.code)
            })
            .collect();
        assert_eq!(seen.len(), 1, "{lines:?}: {seen:?}");
    }
}

#[test]
fn a_good_key_before_a_bad_byte_is_not_missing() {
    let whole = dump(&["a", "b", "c"]);
    let bad = whole.replace("tokens:b\",\"value\":\"", "tokens:b\",\"value\":\"@");
    let bad: Vec<u8> = bad.bytes().map(|b| if b == b'@' { 0xE4 } else { b }).collect();
    let seen = compare(whole.as_bytes(), &bad);
    assert_eq!((seen.code, seen.matches, seen.findings.as_slice()), (1, 2, &["! tokens:b".to_owned()][..]));
}

#[test]
fn a_damaged_entry_costs_itself_and_no_other() {
    let whole = dump(&["a", "b", "c", "d", "e"]);
    for damage in [
        (r#""tokens:b""#, "7"),
        (r#""tokens:b""#, r#""\ud800""#),
        (r#""tokens:b""#, "\"\""),
        (r#""value":"#, r#""value":7,"x":"#),
        ("\\\"a b\\\"", "[1,2"),
        ("\\\"a b\\\"", "7"),
        ("\\\"token-0001\\\"", "null"),
        ("{\"key\"", "\"key\""),
        ("{\"key\":", "{\"key\" "),
    ] {
        let mut lines: Vec<String> = whole.split_inclusive('\n').map(str::to_owned).collect();
        let bad = lines[1].replace(damage.0, damage.1);
        assert_ne!(bad, lines[1], "{damage:?}");
        lines[1] = bad;
        let seen = compare(whole.as_bytes(), lines.concat().as_bytes());
        assert_eq!((seen.code, seen.matches), (1, 4), "{damage:?} {seen:?}");
        assert!(seen.diagnostics[0].starts_with("r:2: byte "), "{damage:?} {seen:?}");
        assert!(seen.findings == ["! tokens:b"] || seen.findings == ["- tokens:b"], "{damage:?} {seen:?}");
        // The same damage on both sides is no match either.
        let seen = compare(lines.concat().as_bytes(), lines.concat().as_bytes());
        assert_eq!((seen.code, seen.matches, seen.diagnostics.len()), (1, 4, 2), "{damage:?} {seen:?}");
    }
}

#[test]
fn invalid_utf8_and_mixed_encodings_are_located() {
    let whole = dump(&["a", "b", "c"]);
    let mut bytes = whole.clone().into_bytes();
    let at = whole.find("tokens:b").unwrap() + 7;
    bytes[at] = 0xE4;
    let seen = compare(whole.as_bytes(), &bytes);
    assert_eq!(seen.diagnostics, [format!("r:2: byte {at}: found byte 0xE4, which is not UTF-8, expected UTF-8 text")]);
    assert_eq!((seen.code, seen.matches), (1, 2));

    let utf16: Vec<u8> = whole.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let seen = compare(whole.as_bytes(), &utf16);
    assert_eq!((seen.code, seen.matches, seen.findings.len()), (1, 0, 0));
    assert!(seen.diagnostics[0].contains("UTF-16"), "{seen:?}");
    let tail = [whole.as_bytes(), &utf16].concat();
    let seen = compare(whole.as_bytes(), &tail);
    assert_eq!((seen.code, seen.matches), (1, 3), "{seen:?}");

    let marked = format!("\u{FEFF}{whole}");
    assert_eq!(compare(whole.as_bytes(), marked.as_bytes()).code, 0);
    assert_eq!(compare(whole.replace('\n', "\r\n\r\n").as_bytes(), whole.as_bytes()).code, 0);
}

#[test]
fn a_key_given_twice_with_different_content_never_matches() {
    let other = entry("b", "token-0002");
    let whole = dump(&["a", "b", "c"]);
    let twice = [dump(&["a", "b"]), other.clone(), dump(&["c"])].concat();
    for (left, right) in [(&whole, &twice), (&twice, &whole), (&twice, &twice)] {
        let seen = compare(left.as_bytes(), right.as_bytes());
        assert_eq!(
            (seen.code, seen.matches, seen.findings.as_slice()),
            (1, 2, &["! tokens:b".to_owned()][..]),
            "{seen:?}"
        );
        assert!(seen.diagnostics[0].contains(":3") && seen.diagnostics[0].contains("`tokens:b`"), "{seen:?}");
    }
    // Far apart, so that it is not sorted any more.
    let apart = [dump(&["a", "b", "c"]), other].concat();
    let seen = compare(whole.as_bytes(), apart.as_bytes());
    assert_eq!((seen.code, seen.matches, seen.findings.as_slice()), (1, 2, &["! tokens:b".to_owned()][..]), "{seen:?}");
    // The same content twice is only counted.
    let same = [dump(&["a", "b"]), dump(&["b", "c"])].concat();
    assert_eq!(compare(whole.as_bytes(), same.as_bytes()).code, 0);
}

#[test]
fn values_of_25_mb_are_compared_to_the_last_byte() {
    let big = "x\\\"y".repeat(25 * 1024 * 1024 / 4);
    let text = |last: char| {
        format!(
            "{}{{\"key\":\"tokens:b\",\"value\":\"{{\\\"access_token\\\":\\\"token-0001\\\",\\\"blob\\\":\\\"{}{last}\\\"}}\"}}\n{}",
            dump(&["a"]),
            big.replace('\\', "\\\\\\"),
            dump(&["c"])
        )
    };
    let (left, right) = (text('1'), text('2'));
    let seen = compare(left.as_bytes(), right.as_bytes());
    assert_eq!((seen.code, seen.matches, seen.findings.as_slice()), (3, 2, &["* tokens:b".to_owned()][..]));
    assert_eq!(compare(left.as_bytes(), left.as_bytes()).code, 0);
}

#[test]
fn an_entry_larger_than_any_that_kv_holds_is_skipped_with_a_diagnostic() {
    let large = format!("{{\"key\":\"tokens:b\",\"value\":\"{}\"}}\n", "x".repeat(70 << 20));
    let left = [dump(&["a"]), large, dump(&["c"])].concat();
    let seen = compare(left.as_bytes(), dump(&["a", "b", "c"]).as_bytes());
    assert_eq!((seen.code, seen.matches, seen.findings.as_slice()), (1, 2, &["! tokens:b".to_owned()][..]));
    assert!(seen.diagnostics[0].starts_with("l:2: byte") && seen.diagnostics[0].contains("64 MiB"), "{seen:?}");
}

#[test]
fn deep_json_is_refused_wherever_it_stands() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (from, to) in [
        ("}\n", format!(",\"metadata\":{deep}}}\n")),
        ("}\n", format!(",\"x\":{deep}}}\n")),
        ("\\\"a b\\\"", deep.clone()),
    ] {
        let whole = dump(&["a", "b", "c"]);
        let bad = [dump(&["a"]), dump(&["b"]).replace(from, &to), dump(&["c"])].concat();
        let seen = compare(whole.as_bytes(), bad.as_bytes());
        assert_eq!(
            (seen.code, seen.matches, seen.findings.as_slice()),
            (1, 2, &["! tokens:b".to_owned()][..]),
            "{seen:?}"
        );
        assert!(seen.diagnostics[0].contains("r:2: byte"), "{seen:?}");
    }
}

#[test]
fn a_megabyte_of_problems_is_counted_and_not_kept() {
    let bad = "{\"key\":7}\n".repeat(50_000);
    let folder = tempfile::tempdir().unwrap();
    let seen = compare_in(folder.path(), bad.as_bytes(), b"", Order::Auto, false);
    assert_eq!((seen.diagnostics.len(), seen.code), (100, 1));
}

/// The keys and tokens that a reader who knows nothing but JSON finds in a dump of lines.
fn plain_tokens(bytes: &[u8]) -> BTreeSet<(String, String)> {
    bytes
        .split(|b| *b == b'\n')
        .filter_map(|line| {
            let entry: serde_json::Value = serde_json::from_slice(line).ok()?;
            let value: serde_json::Value = serde_json::from_str(entry.get("value")?.as_str()?).ok()?;
            Some((entry.get("key")?.as_str()?.to_owned(), value.get("access_token")?.as_str()?.to_owned()))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn arbitrary_bytes_never_panic(left: Vec<u8>, right: Vec<u8>, start in 0usize..8) {
        let starts: [&[u8]; 8] = [b"", b"{", b"[{", b"key,value\n", b"\x1F\x8B\x08\0", b"\x28\xB5\x2F\xFD", b"[", b"\xEF\xBB\xBF{\"key\":"];
        let folder = tempfile::tempdir().unwrap();
        let (left, right) = ([starts[start], &left].concat(), [starts[start], &right].concat());
        for order in [Order::Auto, Order::Unsorted] {
            compare_in(folder.path(), &left, &right, order, true);
        }
    }

    /// Whatever is cut out of, put into or moved within a dump: a match is only ever reported for a
    /// key to which both sides give the same token.
    #[test]
    fn a_damaged_dump_never_makes_a_false_match(
        cuts in prop::collection::vec((0usize..600, 0usize..40, prop::collection::vec(any::<u8>(), 0..4)), 0..4),
        tokens in prop::collection::vec(0u8..3, 8),
    ) {
        let keys = ["a", "b", "c", "d"];
        let side = |at: usize| keys.iter().zip(&tokens[at..]).map(|(key, n)| entry(key, &format!("token-000{n}"))).collect::<String>();
        let (left, mut right) = (side(0).into_bytes(), side(4).into_bytes());
        for (at, length, with) in cuts {
            let at = at.min(right.len());
            right.splice(at..(at + length).min(right.len()), with);
        }
        let folder = tempfile::tempdir().unwrap();
        let (l, r) = (plain_tokens(&left), plain_tokens(&right));
        for order in [Order::Auto, Order::Unsorted] {
            let seen = compare_in(folder.path(), &left, &right, order, true);
            let unlisted = compare_in(folder.path(), &left, &right, order, false);
            prop_assert_eq!((unlisted.matches, unlisted.code), (seen.matches, seen.code));
            for key in seen.findings.iter().filter_map(|finding| finding.strip_prefix("= ")) {
                prop_assert!(l.iter().any(|pair| pair.0 == key && r.contains(pair)), "{key}: {}", String::from_utf8_lossy(&right));
            }
        }
    }
}
