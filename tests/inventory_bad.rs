//! Bad inventories: each kind gives one precise diagnostic, with its place, and never a panic.

use cutover::inventory::{Diagnostics, Source, read};

/// Name of the kind, file name, content, and the expected `line:column message` of each diagnostic.
struct Case {
    kind: &'static str,
    file: &'static str,
    bytes: Vec<u8>,
    expected: &'static [&'static str],
}

fn case(kind: &'static str, file: &'static str, bytes: impl Into<Vec<u8>>, expected: &'static [&'static str]) -> Case {
    Case { kind, file, bytes: bytes.into(), expected }
}

/// A CSV inventory with these rows.
fn csv(rows: &str) -> String {
    format!("tenant,integration_key,connection_id,providers,account,auth_mode\n{rows}\n")
}

/// A Markdown document with these rows.
fn markdown(rows: &str) -> String {
    format!("# Inventory\n\n| Tenant | Key | Providers | Account |\n|---|---|---|---|\n{rows}\n\nEnd.\n")
}

/// A JSON inventory with these rows.
fn json(rows: &str) -> String {
    format!("{{\"inventory_version\": 1, \"rows\": [\n{rows}\n]}}\n")
}

fn utf16(text: &str, bom: bool, little: bool) -> Vec<u8> {
    let units = bom.then_some(0xFEFF).into_iter().chain(text.encode_utf16());
    units.flat_map(|unit| if little { unit.to_le_bytes() } else { unit.to_be_bytes() }).collect()
}

fn errors(file: &str, bytes: &[u8]) -> Option<Diagnostics> {
    read(&Source { name: file, bytes, format: None, tenants: &[] }).err()
}

const GOOD: &str = "kahuna,slack,,slack,default,";
const JSON_ROW: &str =
    r#"{"tenant": "kahuna", "integration_key": "slack", "providers": ["slack"], "account": "default"}"#;

fn encodings() -> Vec<Case> {
    let big = "x".repeat(10_000_000);
    vec![
        case("empty file", "a.csv", "", &[]),
        case("blank file", "a.md", "\u{FEFF} \r\n\t\n", &[]),
        case("UTF-16 LE with mark", "a.csv", utf16(&csv(GOOD), true, true), &[]),
        case("UTF-16 BE with mark", "a.csv", utf16(&csv(GOOD), true, false), &[]),
        case("UTF-16 LE without mark", "a.csv", utf16(&csv(GOOD), false, true), &[]),
        case("UTF-16 BE without mark", "a.md", utf16(&markdown("| a | b | c | d |"), false, false), &[]),
        case("UTF-32", "a.csv", b"\xFF\xFE\0\0t\0\0\0", &[]),
        case("Excel workbook", "a.xlsx", b"PK\x03\x04\x14\x00", &[]),
        case("invalid UTF-8", "a.csv", [csv("kahuna,sl").as_bytes(), b"\xE4ck,,slack,default,\n"].concat(), &[]),
        case("cut UTF-8", "a.csv", [csv(GOOD).as_bytes(), b"kahuna,\xE2\x82"].concat(), &[]),
        case("NUL byte", "a.csv", csv("kahuna,sl\0ack,,slack,default,"), &[]),
        case("CR-only line ends", "a.csv", csv(GOOD).replace('\n', "\r"), &[]),
        case("byte order mark in the middle", "a.csv", format!("{}\u{FEFF}{}", csv(GOOD), csv(GOOD)), &[]),
        case("byte order mark in a cell", "a.md", markdown("| \u{FEFF}kahuna | slack | slack | default |"), &[]),
        case("10 MB cell", "a.csv", csv(&format!("kahuna,{big},,slack,default,")), &[]),
        case("10 MB header", "a.csv", format!("{big},tenant,key,providers,account\n"), &[]),
        case(
            "10 MB of providers",
            "a.csv",
            csv(&format!("kahuna,slack,,{},default,", "slack ".repeat(1_700_000))),
            &[],
        ),
        case("10 MB line of Markdown", "a.md", markdown(&format!("| kahuna | slack | slack | {big} |")), &[]),
    ]
}

fn headers() -> Vec<Case> {
    vec![
        case("unknown column", "a.csv", "tenant,key,providers,account,colour\nkahuna,slack,slack,default,red\n", &[]),
        case("mistyped column", "a.csv", "tenant,key,providers,acount\nkahuna,slack,slack,default\n", &[]),
        case("homoglyph in a column", "a.csv", "tenаnt,key,providers,account\nkahuna,slack,slack,default\n", &[]),
        case("missing columns", "a.csv", "tenant,key\nkahuna,slack\n", &[]),
        case("missing column in Markdown", "a.md", "| Key | Account |\n|---|---|\n| slack | default |\n", &[]),
        case(
            "no tenant anywhere",
            "a.csv",
            "key,providers,account\nslack,slack,default\nhubspot,hubspot,default\n",
            &[],
        ),
        case(
            "duplicate column",
            "a.csv",
            "tenant,key,providers,account,Provider\nkahuna,slack,slack,default,slack\n",
            &[],
        ),
        case("unnamed column", "a.csv", "tenant,,key,providers,account\nkahuna,,slack,slack,default\n", &[]),
        case(
            "two header rows",
            "a.csv",
            csv(&format!("{GOOD}\ntenant,integration_key,connection_id,providers,account,auth_mode")),
            &[],
        ),
        case(
            "two header rows in Markdown",
            "a.md",
            markdown("| Tenant | Key | Providers | Account |\n| kahuna | slack | slack | default |"),
            &[],
        ),
        case("no header", "a.csv", "kahuna,slack,slack,default\n", &[]),
        case(
            "header in smart quotes",
            "a.csv",
            "“tenant”,“key”,“providers”,“account”\nkahuna,slack,slack,default\n",
            &[],
        ),
        case("wrong delimiter", "a.csv", "tenant:key:providers:account\nkahuna:slack:slack:default\n", &[]),
        case("rows with another delimiter", "a.csv", "tenant,key,providers,account\nkahuna;slack;slack;default\n", &[]),
        case("sep= with an odd delimiter", "a.csv", "sep=:\ntenant:key:providers:account\n", &[]),
        case(
            "sep= that is not used",
            "a.csv",
            "sep=;\ntenant,key,providers,account\nkahuna,slack,slack,default\n",
            &[],
        ),
        case("only a header", "a.csv", "tenant,key,providers,account\n", &[]),
        case("only a header in Markdown", "a.md", "| Tenant | Key | Providers | Account |\n|---|---|---|---|\n", &[]),
        case("Markdown without a table", "a.md", "# ADR\n\nNo table here.\n", &[]),
        case(
            "table in a code block",
            "a.md",
            format!("# ADR\n\n```\n{}\n```\n", markdown("| kahuna | slack | slack | default |")),
            &[],
        ),
        case(
            "table without a separator row",
            "a.md",
            "# ADR\n\n| Tenant | Key | Providers | Account |\n| kahuna | slack | slack | default |\n",
            &[],
        ),
        case(
            "separator row too short",
            "a.md",
            "| Tenant | Key | Providers | Account |\n|---|---|\n| kahuna | slack | slack | default |\n",
            &[],
        ),
        case(
            "two tables that do not agree",
            "a.md",
            format!(
                "{}\n| Key | Provider | Account |\n|---|---|---|\n| aws | aws | x |\n",
                markdown("| kahuna | slack | slack | default |")
            ),
            &[],
        ),
    ]
}

fn cells() -> Vec<Case> {
    vec![
        case("row too short", "a.csv", csv("kahuna,slack,,slack"), &[]),
        case("row too long", "a.csv", csv("kahuna,google,,ga4,gsc,default,"), &[]),
        case("row too short in Markdown", "a.md", markdown("| kahuna | slack | slack |"), &[]),
        case("row too long in Markdown", "a.md", markdown("| kahuna | slack | slack | default | more |"), &[]),
        case("text right under a table", "a.md", markdown("| kahuna | slack | slack | default |\nThat was all."), &[]),
        case("`__` inside a tenant", "a.csv", csv("ka__huna,slack,,slack,default,"), &[]),
        case("`_` at the end of an account", "a.csv", csv("kahuna,slack,,slack,default_,"), &[]),
        case("homoglyph in a tenant", "a.csv", csv("kаhuna,slack,,slack,default,"), &[]),
        case("no-break space", "a.csv", csv("kahuna\u{A0},slack,,slack,default,"), &[]),
        case("right-to-left override", "a.csv", csv("kahuna,sl\u{202E}kca,,slack,default,"), &[]),
        case("zero-width space", "a.md", markdown("| kahuna | `sla\u{200B}ck` | slack | default |"), &[]),
        case("smart quotes", "a.csv", csv("“kahuna”,slack,,slack,default,"), &[]),
        case("leading apostrophe", "a.csv", csv("'kahuna,slack,,slack,default,"), &[]),
        case("formula", "a.csv", csv("kahuna,=A1,,slack,default,"), &[]),
        case("blank tenant", "a.csv", csv(",slack,,slack,default,"), &[]),
        case("blank key", "a.csv", csv("kahuna,  ,,slack,default,"), &[]),
        case("blank providers", "a.csv", csv("kahuna,slack,,,default,"), &[]),
        case("blank account in Markdown", "a.md", markdown("| kahuna | slack | slack | |"), &[]),
        case("name too long", "a.csv", csv(&format!("kahuna,slack,,slack,{},", "a".repeat(65))), &[]),
        case("dots as a name", "a.csv", csv("kahuna,slack,,slack,..,"), &[]),
        case("provider listed twice", "a.csv", csv("kahuna,google,,ga4+gsc+ga4,default,"), &[]),
        case("tenant listed twice", "a.md", markdown("| kahuna, kahuna | slack | slack | default |"), &[]),
        case("nothing between separators", "a.csv", csv("kahuna,google,,ga4++gsc,default,"), &[]),
        case("separator at the end", "a.csv", csv("kahuna,google,,\"ga4,\",default,"), &[]),
        case("unknown auth mode", "a.csv", csv("kahuna,slack,,slack,default,OAUTH3"), &[]),
        case("unclosed quote", "a.csv", csv("kahuna,slack,,\"slack,default,"), &[]),
        case("text after a quote", "a.csv", csv("kahuna,slack,,\"slack\"x,default,"), &[]),
        case("line break in a cell", "a.csv", csv("kahuna,\"sla\nck\",,slack,default,"), &[]),
        case("doubled quote in a name", "a.csv", csv("kahuna,\"sl\"\"ack\",,slack,default,"), &[]),
    ]
}

fn contradictions() -> Vec<Case> {
    vec![
        case("duplicate triplet", "a.csv", csv("kahuna,google,,ga4+gsc,default,\nkahuna,analytics,,ga4,default,"), &[]),
        case("duplicate row", "a.csv", csv(&format!("{GOOD}\n{GOOD}")), &[]),
        case(
            "one connection with two contents",
            "a.csv",
            csv("kahuna,google,u-1,ga4,default,\nkahuna,google,u-1,gsc,default,"),
            &[],
        ),
        case(
            "one conventional connection with two contents",
            "a.md",
            markdown("| kahuna | google | ga4 | default |\n| kahuna | google | gsc | default |"),
            &[],
        ),
        case("ambiguous connection id", "a.csv", csv("kahuna,slack,kahuna__sl__ack__default,slack,default,"), &[]),
        case("connection id of two parts", "a.csv", csv("kahuna,slack,kahuna__slack,slack,default,"), &[]),
        case(
            "connection id of another tenant",
            "a.csv",
            csv("kahuna,slack,pointfield__slack__default,slack,default,"),
            &[],
        ),
        case("connection id of another key", "a.csv", csv("kahuna,slack,kahuna__google__default,slack,default,"), &[]),
        case("connection id of another account", "a.csv", csv("kahuna,slack,kahuna__slack__prod,slack,default,"), &[]),
        case("connection id for two tenants", "a.csv", csv("kahuna pointfield,slack,u-1,slack,default,"), &[]),
        case("connection id that Nango refuses", "a.csv", csv("kahuna,slack,a#b,slack,default,"), &[]),
        case("connection id too long", "a.csv", csv(&format!("kahuna,slack,{},slack,default,", "a".repeat(256))), &[]),
    ]
}

fn jsons() -> Vec<Case> {
    vec![
        case(
            "duplicate key",
            "a.json",
            json(&JSON_ROW.replace("\"account\"", "\"tenant\": \"kahuna\", \"account\"")),
            &[],
        ),
        case("trailing comma in a row", "a.json", json(&JSON_ROW.replace('}', ",}")), &[]),
        case("trailing comma after the rows", "a.json", json(&format!("{JSON_ROW},")), &[]),
        case("truncated", "a.json", &json(JSON_ROW)[..80], &[]),
        case("truncated in a string", "a.json", &json(JSON_ROW)[..55], &[]),
        case("missing comma", "a.json", json(&format!("{JSON_ROW}\n{JSON_ROW}")), &[]),
        case("unknown key", "a.json", json(&JSON_ROW.replace("\"account\"", "\"acount\"")), &[]),
        case("unknown top-level key", "a.json", "{\"inventory_version\": 1, \"row\": []}", &[]),
        case("missing key", "a.json", json(&JSON_ROW.replace("\"tenant\": \"kahuna\", ", "")), &[]),
        case("unknown version", "a.json", json(JSON_ROW).replace(": 1", ": 2"), &[]),
        case("version as a string", "a.json", json(JSON_ROW).replace(": 1", ": \"1\""), &[]),
        case("missing version", "a.json", format!("{{\"rows\": [{JSON_ROW}]}}"), &[]),
        case("missing rows", "a.json", "{\"inventory_version\": 1}", &[]),
        case("no rows", "a.json", "[]", &[]),
        case("rows is an object", "a.json", "{\"inventory_version\": 1, \"rows\": {}}", &[]),
        case("one row instead of a list", "a.json", JSON_ROW, &[]),
        case("number for a name", "a.json", json(&JSON_ROW.replace("\"default\"", "7")), &[]),
        case("number among providers", "a.json", json(&JSON_ROW.replace("[\"slack\"]", "[\"slack\", 4]")), &[]),
        case("null for a name", "a.json", json(&JSON_ROW.replace("\"kahuna\"", "null")), &[]),
        case("object for a name", "a.json", json(&JSON_ROW.replace("\"default\"", "{}")), &[]),
        case("row is a string", "a.json", json("\"kahuna\""), &[]),
        case("list in one string", "a.json", json(&JSON_ROW.replace("[\"slack\"]", "\"slack, gmail\"")), &[]),
        case("no providers", "a.json", json(&JSON_ROW.replace("[\"slack\"]", "[]")), &[]),
        case(
            "provider and providers",
            "a.json",
            json(&JSON_ROW.replace("\"account\"", "\"provider\": \"x\", \"account\"")),
            &[],
        ),
        case(
            "blank connection id",
            "a.json",
            json(&JSON_ROW.replace("\"account\"", "\"connection_id\": \"\", \"account\"")),
            &[],
        ),
        case("top-level scalar", "a.json", "42\n", &[]),
        case("single quotes", "a.json", "[{'tenant': 'kahuna'}]", &[]),
        case("bare key", "a.json", "[{tenant: \"kahuna\"}]", &[]),
        case("comment", "a.json", "// rows\n[]", &[]),
        case("JSON lines", "a.json", format!("{JSON_ROW}\n{JSON_ROW}\n"), &[]),
        case("bad escape", "a.json", json(&JSON_ROW.replace("kahuna", "ka\\huna")), &[]),
        case("half a surrogate pair", "a.json", json(&JSON_ROW.replace("kahuna", "\\ud83d")), &[]),
        case("escaped control character", "a.json", json(&JSON_ROW.replace("kahuna", "ka\\u0000huna")), &[]),
        case("nested too deep", "a.json", "[".repeat(100_000), &[]),
        case(
            "duplicate triplet in JSON",
            "a.json",
            json(&format!("{JSON_ROW},\n{}", JSON_ROW.replace("\"slack\",", "\"chat\","))),
            &[],
        ),
    ]
}

fn several() -> Vec<Case> {
    vec![
        case("one per bad cell", "a.csv", csv(",sl ack,,sl&ack,,NOPE"), &[]),
        case(
            "one per bad row",
            "a.md",
            markdown("| a__b | slack | slack | x |\n| kahuna | slack | slack |\n| kahuna | slack | slack | x, y |"),
            &[],
        ),
        case(
            "one per bad row of JSON",
            "a.json",
            json(&format!("{},\n{}", JSON_ROW.replace("kahuna", "a b"), JSON_ROW.replace("\"default\"", "1"))),
            &[],
        ),
    ]
}

#[test]
fn every_kind_of_bad_inventory_has_its_diagnostics() {
    let groups = [encodings(), headers(), cells(), contradictions(), jsons(), several()];
    let cases: Vec<Case> = groups.into_iter().flatten().collect();
    assert!(cases.len() >= 40);
    let mut wrong = String::new();
    for Case { kind, file, bytes, expected } in cases {
        let Some(found) = errors(file, &bytes) else {
            wrong += &format!("{kind}: was accepted\n");
            continue;
        };
        let lines: Vec<String> =
            found.diagnostics.iter().map(|d| format!("{}:{} {}", d.line(), d.column(), d.message)).collect();
        if lines != expected {
            wrong += &format!("{kind}\n{lines:#?}\n{found}\n\n");
        }
        for diagnostic in &found.diagnostics {
            let text = diagnostic.to_string();
            assert!(text.len() < 2_000, "{kind}: {} bytes", text.len());
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{kind}: {text:?}");
            assert!(!diagnostic.expected.is_empty(), "{kind}");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}
