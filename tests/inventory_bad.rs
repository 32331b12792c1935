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
        case("empty file", "a.csv", "", &["1:1 the file is empty"]),
        case("blank file", "a.md", "\u{FEFF} \r\n\t\n", &["1:1 the file is empty"]),
        case("UTF-16 LE with mark", "a.csv", utf16(&csv(GOOD), true, true), &["1:1 the file is UTF-16 LE"]),
        case("UTF-16 BE with mark", "a.csv", utf16(&csv(GOOD), true, false), &["1:1 the file is UTF-16 BE"]),
        case(
            "UTF-16 LE without mark",
            "a.csv",
            utf16(&csv(GOOD), false, true),
            &["1:1 the file is UTF-16 LE without a byte order mark"],
        ),
        case(
            "UTF-16 BE without mark",
            "a.md",
            utf16(&markdown("| a | b | c | d |"), false, false),
            &["1:1 the file is UTF-16 BE without a byte order mark"],
        ),
        case("UTF-32", "a.csv", b"\xFF\xFE\0\0t\0\0\0", &["1:1 the file is UTF-32 LE"]),
        case(
            "Excel workbook",
            "a.xlsx",
            b"PK\x03\x04\x14\x00",
            &["1:1 the file is a ZIP archive, such as an Excel workbook"],
        ),
        case(
            "invalid UTF-8",
            "a.csv",
            [csv("kahuna,sl").as_bytes(), b"\xE4ck,,slack,default,\n"].concat(),
            &["3:1 byte 0xE4 at offset 75 is not valid UTF-8"],
        ),
        case(
            "cut UTF-8",
            "a.csv",
            [csv(GOOD).as_bytes(), b"kahuna,\xE2\x82"].concat(),
            &["3:8 byte 0xE2 at offset 101 is not valid UTF-8"],
        ),
        case("NUL byte", "a.csv", csv("kahuna,sl\0ack,,slack,default,"), &["2:10 NUL byte at offset 74"]),
        case(
            "CR-only line ends",
            "a.csv",
            csv(GOOD).replace('\n', "\r"),
            &["1:65 lines end in a lone carriage return (CR)"],
        ),
        case(
            "byte order mark in the middle",
            "a.csv",
            format!("{}\u{FEFF}{}", csv(GOOD), csv(GOOD)),
            &["3:1 U+FEFF (byte order mark, invisible) inside the file"],
        ),
        case(
            "byte order mark in a cell",
            "a.md",
            markdown("| \u{FEFF}kahuna | slack | slack | default |"),
            &["5:3 U+FEFF (byte order mark, invisible) in tenant `\\u{feff}kahuna`"],
        ),
        case(
            "10 MB cell",
            "a.csv",
            csv(&format!("kahuna,{big},,slack,default,")),
            &["2:8 integration key has 10000000 bytes and at most 64 are allowed"],
        ),
        case(
            "10 MB header",
            "a.csv",
            format!("{big},tenant,key,providers,account\n"),
            &["1:1 unknown column `xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…`"],
        ),
        case(
            "10 MB of providers",
            "a.csv",
            csv(&format!("kahuna,slack,,{},default,", "slack ".repeat(1_700_000))),
            &["2:21 provider `slack` is listed twice in one row"],
        ),
        case(
            "10 MB line of Markdown",
            "a.md",
            markdown(&format!("| kahuna | slack | slack | {big} |")),
            &["5:28 account has 10000000 bytes and at most 64 are allowed"],
        ),
    ]
}

fn headers() -> Vec<Case> {
    vec![
        case(
            "unknown column",
            "a.csv",
            "tenant,key,providers,account,colour\nkahuna,slack,slack,default,red\n",
            &["1:30 unknown column `colour`"],
        ),
        case(
            "mistyped column",
            "a.csv",
            "tenant,key,providers,acount\nkahuna,slack,slack,default\n",
            &["1:22 unknown column `acount`"],
        ),
        case(
            "homoglyph in a column",
            "a.csv",
            "tenаnt,key,providers,account\nkahuna,slack,slack,default\n",
            &["1:1 unknown column `tenаnt` with U+0430 (Cyrillic `а`, looks like `a`)"],
        ),
        case(
            "missing columns",
            "a.csv",
            "tenant,key\nkahuna,slack\n",
            &["1:1 the header has no columns for `providers`, `account`"],
        ),
        case(
            "missing column in Markdown",
            "a.md",
            "| Key | Account |\n|---|---|\n| slack | default |\n",
            &["1:1 the header has no column for `providers`"],
        ),
        case(
            "no tenant anywhere",
            "a.csv",
            "key,providers,account\nslack,slack,default\nhubspot,hubspot,default\n",
            &["1:1 the rows have no tenant"],
        ),
        case(
            "duplicate column",
            "a.csv",
            "tenant,key,providers,account,Provider\nkahuna,slack,slack,default,slack\n",
            &["1:30 column `providers` is given twice: `providers` as column 3 and `Provider` as column 5"],
        ),
        case(
            "unnamed column",
            "a.csv",
            "tenant,,key,providers,account\nkahuna,,slack,slack,default\n",
            &["1:8 column 2 has no name"],
        ),
        case(
            "two header rows",
            "a.csv",
            csv(&format!("{GOOD}\ntenant,integration_key,connection_id,providers,account,auth_mode")),
            &["3:1 the header is repeated"],
        ),
        case(
            "two header rows in Markdown",
            "a.md",
            markdown("| Tenant | Key | Providers | Account |\n| kahuna | slack | slack | default |"),
            &["5:1 the header is repeated"],
        ),
        case(
            "no header",
            "a.csv",
            "kahuna,slack,slack,default\n",
            &["1:1 the first line is not a header: none of its cells is a known column"],
        ),
        case(
            "header in smart quotes",
            "a.csv",
            "“tenant”,“key”,“providers”,“account”\nkahuna,slack,slack,default\n",
            &["1:1 U+201C (curly quote) in the header"],
        ),
        case(
            "wrong delimiter",
            "a.csv",
            "tenant:key:providers:account\nkahuna:slack:slack:default\n",
            &["1:1 the header is not separated by a delimiter that is supported"],
        ),
        case(
            "rows with another delimiter",
            "a.csv",
            "tenant,key,providers,account\nkahuna;slack;slack;default\n",
            &["2:27 the row has 1 cell and the header has 4"],
        ),
        case(
            "sep= with an odd delimiter",
            "a.csv",
            "sep=:\ntenant:key:providers:account\n",
            &["1:1 `sep=:` declares a delimiter that is not supported"],
        ),
        case(
            "sep= that is not used",
            "a.csv",
            "sep=;\ntenant,key,providers,account\nkahuna,slack,slack,default\n",
            &["2:1 the first line declares `;` and the header uses `,`"],
        ),
        case("only a header", "a.csv", "tenant,key,providers,account\n", &["1:29 a header and no rows"]),
        case(
            "only a header in Markdown",
            "a.md",
            "| Tenant | Key | Providers | Account |\n|---|---|---|---|\n",
            &["1:1 the table has a header and no rows"],
        ),
        case(
            "Markdown without a table",
            "a.md",
            "# ADR\n\nNo table here.\n",
            &["1:1 the document has no inventory table"],
        ),
        case(
            "table in a code block",
            "a.md",
            format!("# ADR\n\n```\n{}\n```\n", markdown("| kahuna | slack | slack | default |")),
            &["1:1 the document has no inventory table"],
        ),
        case(
            "table without a separator row",
            "a.md",
            "# ADR\n\n| Tenant | Key | Providers | Account |\n| kahuna | slack | slack | default |\n",
            &["3:1 the table has no separator row under its header"],
        ),
        case(
            "separator row too short",
            "a.md",
            "| Tenant | Key | Providers | Account |\n|---|---|\n| kahuna | slack | slack | default |\n",
            &["2:1 the separator row has 2 cells and the header has 4"],
        ),
        case(
            "two tables that do not agree",
            "a.md",
            format!(
                "{}\n| Key | Provider | Account |\n|---|---|---|\n| aws | aws | x |\n",
                markdown("| kahuna | slack | slack | default |")
            ),
            &["9:1 a second inventory table with other columns than the one on line 3"],
        ),
    ]
}

fn cells() -> Vec<Case> {
    vec![
        case("row too short", "a.csv", csv("kahuna,slack,,slack"), &["2:20 the row has 4 cells and the header has 6"]),
        case(
            "row too long",
            "a.csv",
            csv("kahuna,google,,ga4,gsc,default,"),
            &["2:32 the row has 7 cells and the header has 6"],
        ),
        case(
            "row too short in Markdown",
            "a.md",
            markdown("| kahuna | slack | slack |"),
            &["5:27 the row has 3 cells and the header has 4"],
        ),
        case(
            "row too long in Markdown",
            "a.md",
            markdown("| kahuna | slack | slack | default | more |"),
            &["5:38 the row has 5 cells and the header has 4"],
        ),
        case(
            "text right under a table",
            "a.md",
            markdown("| kahuna | slack | slack | default |\nThat was all."),
            &["6:14 the row has 1 cell and the header has 4"],
        ),
        case(
            "`__` inside a tenant",
            "a.csv",
            csv("ka__huna,slack,,slack,default,"),
            &["2:3 tenant `ka__huna` cannot be told apart inside a connection id"],
        ),
        case(
            "`_` at the end of an account",
            "a.csv",
            csv("kahuna,slack,,slack,default_,"),
            &["2:28 account `default_` cannot be told apart inside a connection id"],
        ),
        case(
            "homoglyph in a tenant",
            "a.csv",
            csv("kаhuna,slack,,slack,default,"),
            &["2:2 U+0430 (Cyrillic `а`, looks like `a`) in tenant `kаhuna`"],
        ),
        case(
            "no-break space",
            "a.csv",
            csv("kahuna\u{A0},slack,,slack,default,"),
            &["2:7 U+00A0 (no-break space) in tenant `kahuna\u{a0}`"],
        ),
        case(
            "right-to-left override",
            "a.csv",
            csv("kahuna,sl\u{202E}kca,,slack,default,"),
            &["2:10 U+202E (invisible, changes the text direction) in integration key `sl\\u{202e}kca`"],
        ),
        case(
            "zero-width space",
            "a.md",
            markdown("| kahuna | `sla\u{200B}ck` | slack | default |"),
            &["5:16 U+200B (invisible) in integration key `sla\\u{200b}ck`"],
        ),
        case(
            "smart quotes",
            "a.csv",
            csv("“kahuna”,slack,,slack,default,"),
            &["2:1 U+201C (curly quote) in tenant `“kahuna”`"],
        ),
        case(
            "leading apostrophe",
            "a.csv",
            csv("'kahuna,slack,,slack,default,"),
            &["2:1 U+0027 (`'`) in tenant `'kahuna`"],
        ),
        case("formula", "a.csv", csv("kahuna,=A1,,slack,default,"), &["2:8 U+003D (`=`) in integration key `=A1`"]),
        case("blank tenant", "a.csv", csv(",slack,,slack,default,"), &["2:1 blank tenant"]),
        case("blank key", "a.csv", csv("kahuna,  ,,slack,default,"), &["2:8 blank integration key"]),
        case("blank providers", "a.csv", csv("kahuna,slack,,,default,"), &["2:15 blank provider"]),
        case("blank account in Markdown", "a.md", markdown("| kahuna | slack | slack | |"), &["5:27 blank account"]),
        case(
            "name too long",
            "a.csv",
            csv(&format!("kahuna,slack,,slack,{},", "a".repeat(65))),
            &["2:21 account has 65 bytes and at most 64 are allowed"],
        ),
        case("dots as a name", "a.csv", csv("kahuna,slack,,slack,..,"), &["2:21 account `..` cannot be part of a key"]),
        case(
            "provider listed twice",
            "a.csv",
            csv("kahuna,google,,ga4+gsc+ga4,default,"),
            &["2:24 provider `ga4` is listed twice in one row"],
        ),
        case(
            "tenant listed twice",
            "a.md",
            markdown("| kahuna, kahuna | slack | slack | default |"),
            &["5:11 tenant `kahuna` is listed twice in one row"],
        ),
        case(
            "nothing between separators",
            "a.csv",
            csv("kahuna,google,,ga4++gsc,default,"),
            &["2:20 no provider before `+`"],
        ),
        case("separator at the end", "a.csv", csv("kahuna,google,,\"ga4,\",default,"), &["2:20 no provider after `,`"]),
        case(
            "unknown auth mode",
            "a.csv",
            csv("kahuna,slack,,slack,default,OAUTH3"),
            &["2:29 unknown auth mode `OAUTH3`"],
        ),
        case(
            "unclosed quote",
            "a.csv",
            csv("kahuna,slack,,\"slack,default,"),
            &["2:15 a quote is opened and never closed"],
        ),
        case(
            "text after a quote",
            "a.csv",
            csv("kahuna,slack,,\"slack\"x,default,"),
            &["2:22 text after the closing quote"],
        ),
        case(
            "line break in a cell",
            "a.csv",
            csv("kahuna,\"sla\nck\",,slack,default,"),
            &["2:12 U+000A (line break) in integration key `sla\\u{a}ck`"],
        ),
        case(
            "doubled quote in a name",
            "a.csv",
            csv("kahuna,\"sl\"\"ack\",,slack,default,"),
            &["2:9 U+0022 (`\"`) in integration key `sl\"ack`"],
        ),
    ]
}

fn contradictions() -> Vec<Case> {
    vec![
        case(
            "duplicate triplet",
            "a.csv",
            csv("kahuna,google,,ga4+gsc,default,\nkahuna,analytics,,ga4,default,"),
            &["3:1 triplet `kahuna:ga4:default` is given twice: here by `analytics` and on line 2 by `google`"],
        ),
        case(
            "duplicate row",
            "a.csv",
            csv(&format!("{GOOD}\n{GOOD}")),
            &["3:1 the row for tenant `kahuna` is an exact duplicate of line 2"],
        ),
        case(
            "one connection with two contents",
            "a.csv",
            csv("kahuna,google,u-1,ga4,default,\nkahuna,google,u-1,gsc,default,"),
            &[
                "3:1 connection `u-1` of `google` is also on line 2 with other content: providers `ga4` there, `gsc` here",
            ],
        ),
        case(
            "one conventional connection with two contents",
            "a.md",
            markdown("| kahuna | google | ga4 | default |\n| kahuna | google | gsc | default |"),
            &[
                "6:1 connection `kahuna__google__default` of `google` is also on line 5 with other content: providers `ga4` there, `gsc` here",
            ],
        ),
        case(
            "ambiguous connection id",
            "a.csv",
            csv("kahuna,slack,kahuna__sl__ack__default,slack,default,"),
            &[
                "2:14 ambiguous connection id: `kahuna__sl__ack__default` has 4 parts between `__` and exactly three are needed",
            ],
        ),
        case(
            "connection id of two parts",
            "a.csv",
            csv("kahuna,slack,kahuna__slack,slack,default,"),
            &["2:14 ambiguous connection id: `kahuna__slack` has 2 parts between `__` and exactly three are needed"],
        ),
        case(
            "connection id of another tenant",
            "a.csv",
            csv("kahuna,slack,pointfield__slack__default,slack,default,"),
            &["2:14 connection id `pointfield__slack__default` says tenant `pointfield` and the row says `kahuna`"],
        ),
        case(
            "connection id of another key",
            "a.csv",
            csv("kahuna,slack,kahuna__google__default,slack,default,"),
            &["2:14 connection id `kahuna__google__default` says integration key `google` and the row says `slack`"],
        ),
        case(
            "connection id of another account",
            "a.csv",
            csv("kahuna,slack,kahuna__slack__prod,slack,default,"),
            &["2:14 connection id `kahuna__slack__prod` says account `prod` and the row says `default`"],
        ),
        case(
            "connection id for two tenants",
            "a.csv",
            csv("kahuna pointfield,slack,u-1,slack,default,"),
            &["2:25 one connection id for 2 tenants: kahuna, pointfield"],
        ),
        case(
            "connection id that Nango refuses",
            "a.csv",
            csv("kahuna,slack,a#b,slack,default,"),
            &["2:15 U+0023 (`#`) in connection id `a#b`"],
        ),
        case(
            "connection id too long",
            "a.csv",
            csv(&format!("kahuna,slack,{},slack,default,", "a".repeat(256))),
            &["2:14 connection id has 256 bytes and at most 255 are allowed"],
        ),
    ]
}

fn jsons() -> Vec<Case> {
    vec![
        case(
            "duplicate key",
            "a.json",
            json(&JSON_ROW.replace("\"account\"", "\"tenant\": \"kahuna\", \"account\"")),
            &["2:75 key `tenant` is given twice; first on line 2"],
        ),
        case(
            "trailing comma in a row",
            "a.json",
            json(&JSON_ROW.replace('}', ",}")),
            &["2:94 trailing comma before `}`"],
        ),
        case(
            "trailing comma after the rows",
            "a.json",
            json(&format!("{JSON_ROW},")),
            &["2:95 trailing comma before `]`"],
        ),
        case("truncated in a string", "a.json", &json(JSON_ROW)[..80], &["2:41 a string is opened and never closed"]),
        case(
            "truncated between members",
            "a.json",
            &json(JSON_ROW)[..55],
            &["2:21 the file ends in the middle of a JSON value"],
        ),
        case("missing comma", "a.json", json(&format!("{JSON_ROW}\n{JSON_ROW}")), &["3:1 unexpected `{`"]),
        case(
            "unknown key",
            "a.json",
            json(&JSON_ROW.replace("\"account\"", "\"acount\"")),
            &["2:75 unknown key `acount` in a row"],
        ),
        case(
            "unknown top-level key",
            "a.json",
            "{\"inventory_version\": 1, \"row\": []}",
            &["1:27 unknown key `row` in the inventory"],
        ),
        case(
            "missing key",
            "a.json",
            json(&JSON_ROW.replace("\"tenant\": \"kahuna\", ", "")),
            &["2:1 the row has no `tenant`"],
        ),
        case(
            "unknown version",
            "a.json",
            json(JSON_ROW).replace(": 1", ": 2"),
            &["1:23 inventory_version 2 is not known to this program"],
        ),
        case(
            "version as a string",
            "a.json",
            json(JSON_ROW).replace(": 1", ": \"1\""),
            &["1:23 `inventory_version` is a string"],
        ),
        case(
            "missing version",
            "a.json",
            format!("{{\"rows\": [{JSON_ROW}]}}"),
            &["1:1 `inventory_version` is missing"],
        ),
        case("missing rows", "a.json", "{\"inventory_version\": 1}", &["1:1 `rows` is missing"]),
        case("no rows", "a.json", "[]", &["1:1 there are no rows"]),
        case("rows is an object", "a.json", "{\"inventory_version\": 1, \"rows\": {}}", &["1:34 `rows` is an object"]),
        case("one row instead of a list", "a.json", JSON_ROW, &["1:1 the file holds one row and no list of rows"]),
        case(
            "number for a name",
            "a.json",
            json(&JSON_ROW.replace("\"default\"", "7")),
            &["2:85 `account` holds a number"],
        ),
        case(
            "number among providers",
            "a.json",
            json(&JSON_ROW.replace("[\"slack\"]", "[\"slack\", 4]")),
            &["2:73 `providers` holds a number"],
        ),
        case("null for a name", "a.json", json(&JSON_ROW.replace("\"kahuna\"", "null")), &["2:12 `tenant` holds null"]),
        case(
            "object for a name",
            "a.json",
            json(&JSON_ROW.replace("\"default\"", "{}")),
            &["2:85 `account` holds an object"],
        ),
        case("row is a string", "a.json", json("\"kahuna\""), &["2:1 a row is a string"]),
        case(
            "list in one string",
            "a.json",
            json(&JSON_ROW.replace("[\"slack\"]", "\"slack, gmail\"")),
            &["2:69 U+002C (`,`) in provider `slack, gmail`"],
        ),
        case("no providers", "a.json", json(&JSON_ROW.replace("[\"slack\"]", "[]")), &["2:63 blank provider"]),
        case(
            "provider and providers",
            "a.json",
            json(&JSON_ROW.replace("\"account\"", "\"provider\": \"x\", \"account\"")),
            &["2:75 both `provider` and `providers` are given"],
        ),
        case(
            "blank connection id",
            "a.json",
            json(&JSON_ROW.replace("\"account\"", "\"connection_id\": \"\", \"account\"")),
            &["2:92 connection id is blank or has blanks around it"],
        ),
        case("top-level scalar", "a.json", "42\n", &["1:1 the file holds a number and no rows"]),
        case("single quotes", "a.json", "[{'tenant': 'kahuna'}]", &["1:3 unexpected `'`"]),
        case("bare key", "a.json", "[{tenant: \"kahuna\"}]", &["1:3 unexpected `t`"]),
        case("comment", "a.json", "// rows\n[]", &["1:1 unexpected `/`"]),
        case(
            "JSON lines",
            "a.json",
            format!("{JSON_ROW}\n{JSON_ROW}\n"),
            &["2:1 text after the end of the JSON value"],
        ),
        case("bad escape", "a.json", json(&JSON_ROW.replace("kahuna", "ka\\huna")), &["2:15 `\\h` is not an escape"]),
        case(
            "half a surrogate pair",
            "a.json",
            json(&JSON_ROW.replace("kahuna", "\\ud83d")),
            &["2:13 a `\\u` escape that is not a character"],
        ),
        case(
            "escaped control character",
            "a.json",
            json(&JSON_ROW.replace("kahuna", "ka\\u0000huna")),
            &["2:13 U+0000 (`\\u{0}`) in tenant `ka\\u{0}huna`"],
        ),
        case("nested too deep", "a.json", "[".repeat(100_000), &["1:34 nested deeper than 32 levels"]),
        case(
            "duplicate triplet in JSON",
            "a.json",
            json(&format!("{JSON_ROW},\n{}", JSON_ROW.replace("\"slack\",", "\"chat\","))),
            &["3:1 triplet `kahuna:slack:default` is given twice: here by `chat` and on line 2 by `slack`"],
        ),
    ]
}

fn several() -> Vec<Case> {
    vec![
        case(
            "one per bad cell",
            "a.csv",
            csv(",sl ack,,sl&ack,,NOPE"),
            &[
                "2:1 blank tenant",
                "2:4 U+0020 (space) in integration key `sl ack`",
                "2:12 U+0026 (`&`) in provider `sl&ack`",
                "2:17 blank account",
                "2:18 unknown auth mode `NOPE`",
            ],
        ),
        case(
            "one per bad row",
            "a.md",
            markdown("| a__b | slack | slack | x |\n| kahuna | slack | slack |\n| kahuna | slack | slack | x, y |"),
            &[
                "5:4 tenant `a__b` cannot be told apart inside a connection id",
                "6:27 the row has 3 cells and the header has 4",
                "7:29 U+002C (`,`) in account `x, y`",
            ],
        ),
        case(
            "one per bad row of JSON",
            "a.json",
            json(&format!("{},\n{}", JSON_ROW.replace("kahuna", "a b"), JSON_ROW.replace("\"default\"", "1"))),
            &["2:14 U+0020 (space) in tenant `a b`", "3:85 `account` holds a number"],
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
