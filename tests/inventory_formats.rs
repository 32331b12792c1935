//! One inventory in three formats is one value, what is written can be read back, and no bytes
//! whatsoever make a reader panic or point outside the file.
//!
//! `PROPTEST_CASES` sets how many random cases each property sees.

use cutover::domain::triplet::Part;
use cutover::inventory::{Format, Inventory, Row, Source, read, to_csv, to_json, to_markdown};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

const FORMATS: [Format; 3] = [Format::Markdown, Format::Csv, Format::Json];

fn part(text: &str) -> Part {
    Part::new(text).unwrap()
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/fixtures/inventories/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn accepted(name: &str, bytes: &[u8], tenants: &[Part]) -> Inventory {
    read(&Source { name, bytes, format: None, tenants }).unwrap_or_else(|e| panic!("error: {e}"))
}

fn rows(inventory: &Inventory) -> Vec<String> {
    let shown = |row: &Row| {
        let providers: Vec<&str> = row.providers.iter().map(Part::as_str).collect();
        let mode = row.auth_mode.as_deref().unwrap_or("-");
        format!("{} {} {} {} {mode}", row.tenant, row.connection_id, providers.join("+"), row.account)
    };
    inventory.rows.iter().map(shown).collect()
}

#[test]
fn adr_038_reads_equal_from_markdown_csv_and_json() {
    let markdown = accepted("adr-038.md", &fixture("adr-038.md"), &[]);
    assert_eq!((markdown.rows.len(), markdown.triplet_count()), (20, 28));
    assert_eq!(markdown, accepted("adr-038.csv", &fixture("adr-038.csv"), &[]));
    assert_eq!(markdown, accepted("adr-038.json", &fixture("adr-038.json"), &[]));
    assert_eq!(markdown.rows[2].connection_id, "kahuna__gong-oauth__default");
}

#[test]
fn the_order_of_rows_does_not_matter() {
    let text = String::from_utf8(fixture("adr-038.csv")).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[1..].reverse();
    assert_eq!(accepted("a.csv", lines.join("\n").as_bytes(), &[]), accepted("a.csv", text.as_bytes(), &[]));
}

#[test]
fn csv_is_read_as_spreadsheets_write_it() {
    let expected = ["kahuna kahuna__google__default ga4+gsc default -", "kahuna u-1 slack prod OAUTH2"];
    let semicolons = "tenant;key;connection id;provider;account;auth mode\nkahuna;google;;ga4 gsc;default;\nkahuna;slack;u-1;slack;prod;oauth2\n";
    for text in [
        semicolons.to_owned(),
        semicolons.replace(';', "\t"),
        semicolons.replace(';', "|"),
        semicolons.replace(';', ","),
        semicolons.trim_end().to_owned(),
        format!("\u{FEFF}{}", semicolons.replace('\n', "\r\n")),
        format!("sep=;\r\n{semicolons}"),
        semicolons.replace("ga4 gsc", "\"gsc;ga4\""),
        semicolons.replace("ga4 gsc", " ga4 / gsc "),
        semicolons.replace("kahuna", "  \"kahuna\" "),
        semicolons.replace('\n', ";;\n") + ";;;;;;;\n;;;;;;;\n\n",
    ] {
        assert_eq!(rows(&accepted("a.csv", text.as_bytes(), &[])), expected, "{text}");
    }
}

#[test]
fn markdown_tables_are_found_among_others() {
    let text = "\u{FEFF}# ADR\r\n\r\n| Key | Meaning |\n|---|---|\n| tenant | key | \n\nprovider | account | key\n--- | :-: | ---\n`ga4`, **gsc** | default | *google*\n\n```\n| Key | Provider | Account |\n```\n\n<!-- | Key | Provider | Account | -->\n\n  | Nango Integration Key | V5 Provider(s) | Account |\n  |:---|:--|--:|\n  | `linkedin` | linkedin\\_ads | de\\-fault |\n\n| Provider | Cost |\n|---|---|\n| slack | 1 |\n";
    let expected = [
        "kahuna kahuna__google__default ga4+gsc default -",
        "kahuna kahuna__linkedin__de-fault linkedin_ads de-fault -",
        "zeta zeta__google__default ga4+gsc default -",
        "zeta zeta__linkedin__de-fault linkedin_ads de-fault -",
    ];
    for name in ["adr.md", "adr", "adr.txt"] {
        assert_eq!(rows(&accepted(name, text.as_bytes(), &[part("zeta"), part("kahuna")])), expected, "{name}");
    }
}

#[test]
fn json_is_read_bare_or_versioned_and_found_by_content() {
    let row = r#"{"provider": "sl\u0061ck", "account": "x", "integration_key": "slack", "connection_id": null}"#;
    for text in [format!("[{row}]"), format!("\u{FEFF}\r\n{{\"rows\": [{row}], \"inventory_version\": 1}}")] {
        let inventory = accepted("<stdin>", text.as_bytes(), &[part("a"), part("b")]);
        assert_eq!(rows(&inventory), ["a a__slack__x slack x -", "b b__slack__x slack x -"]);
    }
}

#[test]
fn a_connection_id_may_name_the_provider_as_adr_038_does() {
    let text = "tenant,key,connection_id,provider,account\nkahuna,linkedin,kahuna__linkedin_ads__x,linkedin_ads,x\n";
    assert_eq!(accepted("a.csv", text.as_bytes(), &[]).rows[0].connection_id, "kahuna__linkedin_ads__x");
}

#[test]
fn a_tenant_column_wins_over_tenants_from_outside() {
    let bytes = fixture("adr-038.csv");
    assert_eq!(accepted("a.csv", &bytes, &[part("other")]), accepted("a.csv", &bytes, &[]));
}

#[test]
fn a_flood_of_errors_is_cut_and_counted() {
    let text = format!("tenant,key,providers,account\n{}", "a&b,slack,slack,x\n".repeat(100_000));
    let diagnostics = read(&Source { name: "a.csv", bytes: text.as_bytes(), format: None, tenants: &[] }).unwrap_err();
    assert_eq!((diagnostics.diagnostics.len(), diagnostics.more), (50, 99_950));
    assert!(diagnostics.to_string().ends_with("error: and 99950 more"));
}

#[test]
fn diagnostics_serialise_with_their_place() {
    let source = Source { name: "a.json", bytes: b"[1]", format: None, tenants: &[] };
    let value = serde_json::to_value(read(&source).unwrap_err()).unwrap();
    assert_eq!(value["diagnostics"][0]["line"], 1);
    assert_eq!(value["diagnostics"][0]["span"]["start"], 1);
    assert_eq!(value["diagnostics"][0]["excerpt"]["text"], "[1]");
}

/// Rows whose ids are conventional or session-made, without contradictions.
fn inventories() -> impl Strategy<Value = Inventory> {
    let name = "[a-z0-9]([a-z0-9._-]{0,6}[a-z0-9])?".prop_filter("no `__`", |name| !name.contains("__"));
    let session = "[a-zA-Z0-9,.;:=+~|@${}\"'\\\\/-]{1,12}";
    let mode = prop::sample::select(vec![None, Some("OAUTH2"), Some("API_KEY")]);
    let row = (name, btree_set("p[a-z0-9]{0,4}", 1..4), prop::option::of(session), mode);
    vec(row, 1..12).prop_map(|rows| {
        let row = |(n, (tenant, providers, session, mode)): (usize, (String, _, Option<String>, Option<&str>))| {
            let providers: std::collections::BTreeSet<String> = providers;
            // The number keeps triplets and ids apart.
            let (key, account) = (format!("key-{n}"), format!("account-{n}"));
            let connection_id = session.unwrap_or_else(|| format!("{tenant}__{key}__{account}"));
            Row {
                tenant: part(&tenant),
                integration_key: key,
                connection_id,
                providers: providers.iter().map(|p| part(p)).collect(),
                account: part(&account),
                auth_mode: mode.map(str::to_owned),
            }
        };
        let mut rows: Vec<Row> = rows.into_iter().enumerate().map(row).collect();
        rows.sort_by(|a, b| {
            let order = |row: &Row| (row.tenant.clone(), row.integration_key.clone(), row.account.clone());
            order(a).cmp(&order(b))
        });
        Inventory { rows }
    })
}

/// Reads in one format; every diagnostic must point inside the file and print.
fn probe(bytes: &[u8], format: Option<Format>) -> Result<(), TestCaseError> {
    let tenants = [part("kahuna")];
    for tenants in [&tenants[..], &[]] {
        let Err(diagnostics) = read(&Source { name: "x", bytes, format, tenants }) else { continue };
        prop_assert!(!diagnostics.diagnostics.is_empty());
        for diagnostic in &diagnostics.diagnostics {
            let place = diagnostic.location.as_ref().unwrap();
            prop_assert!(place.span.start <= place.span.end && place.span.end <= bytes.len(), "{:?}", place);
            let line = bytes.split(|b| *b == b'\n').nth(place.line - 1);
            prop_assert!(line.is_some_and(|line| place.column <= line.len() + 1), "{:?}", place);
            let text = diagnostic.to_string();
            prop_assert!(text.len() < 3_000 && !text.chars().any(|c| c.is_control() && c != '\n'), "{:?}", text);
        }
    }
    Ok(())
}

/// A valid text, and where to hurt it with what.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        "",
        ",",
        ";",
        "\t",
        "|",
        "\"",
        "\"\"",
        "\n",
        "\r\n",
        "\r",
        "\0",
        "\u{FEFF}",
        "__",
        "`",
        "**",
        "\\",
        "\\u",
        "{",
        "}",
        "[",
        "]",
        ":",
        "|---|---|\n",
        "tenant",
        "account",
        "кey",
        "\u{202E}",
        "null",
        "1e9",
        "```\n",
        "<!--",
        "-->",
        "sep=;\n",
        "é",
    ];
    let piece =
        prop_oneof![prop::sample::select(pieces.to_vec()).prop_map(|s| s.as_bytes().to_vec()), vec(any::<u8>(), 0..4),];
    let cuts = vec((any::<prop::sample::Index>(), 0..12_usize, piece), 1..6);
    (inventories(), 0..4_usize, cuts).prop_map(|(inventory, which, cuts)| {
        let mut bytes = match which {
            0 => to_markdown(&inventory).into_bytes(),
            1 => to_csv(&inventory).into_bytes(),
            2 => to_json(&inventory).into_bytes(),
            _ => fixture("adr-038.md"),
        };
        for (at, remove, insert) in cuts {
            let at = at.index(bytes.len() + 1);
            let end = (at + remove).min(bytes.len());
            bytes.splice(at..end, insert);
        }
        bytes
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back_equal_in_every_format(inventory in inventories()) {
        for (format, text) in FORMATS.into_iter().zip([to_markdown(&inventory), to_csv(&inventory), to_json(&inventory)]) {
            for format in [Some(format), None] {
                let source = Source { name: "x", bytes: text.as_bytes(), format, tenants: &[] };
                let back = read(&source).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
                prop_assert_eq!(&back, &inventory);
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused_inside_the_file(bytes in vec(any::<u8>(), 0..400)) {
        for format in FORMATS.map(Some).into_iter().chain([None]) {
            probe(&bytes, format)?;
        }
    }

    #[test]
    fn any_text_is_read_or_refused_inside_the_file(text in "[\\PC\n\r\t|,;\"`*{}\\[\\]:]{0,200}") {
        for format in FORMATS.map(Some).into_iter().chain([None]) {
            probe(text.as_bytes(), format)?;
        }
    }

    #[test]
    fn damaged_inventories_are_read_or_refused_inside_the_file(bytes in mutated()) {
        for format in FORMATS.map(Some).into_iter().chain([None]) {
            probe(&bytes, format)?;
        }
    }
}
