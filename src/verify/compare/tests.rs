use proptest::prelude::*;

use super::super::entry::scan;
use super::super::rules::Ignore;
use super::*;

fn keys() -> Keys {
    Keys::new([7; 32], None)
}

fn compared_under(left: &str, right: &str, rules: &Rules) -> Compared {
    let (a, b) = (scan(left.as_bytes()).unwrap(), scan(right.as_bytes()).unwrap());
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let left = Facts::read(left.as_bytes(), &a, rules, &mut x).unwrap();
    let right = Facts::read(right.as_bytes(), &b, rules, &mut y).unwrap();
    compare(&left, &right, rules, &keys())
}

fn entry(value: &str, metadata: &str) -> String {
    format!(r#"{{"key":"tokens:a:b:c","value":{},"metadata":{metadata}}}"#, serde_json::Value::from(value))
}

fn shown(left: &str, right: &str) -> String {
    let compared = compared_under(left, right, &Rules::default());
    let changes: Vec<String> = compared.changes.iter().map(ToString::to_string).collect();
    let why = compared.unverifiable.map(|w| format!(" ({w})")).unwrap_or_default();
    format!("{}: {}{why}", compared.rung, changes.join(", "))
}

const OURS: &str = r#"{"v":3,"fp":"0123456789abcdef01234567","ep":1,"src":"nango","exp":1790000000}"#;

#[test]
fn meaning_counts_and_not_bytes() {
    let left = entry(
        r#"{"access_token":"at-00001","expires_at":"2026-10-02T10:45:00.000Z","scope":"a b","x":{"p":1,"q":"A"}}"#,
        OURS,
    );
    let right = entry(
        r#"{ "x":{"q":"\u0041","p":1}, "scope":"b,a", "expires_at":1790937901, "access_token":"at\u002d00001"}"#,
        &OURS.replace("nango", "composio").replace("1790000000", "1790000001"),
    );
    assert_eq!(shown(&left, &right), "fingerprint: ");
}

#[test]
fn one_character_of_a_token_is_a_difference() {
    let left = entry(r#"{"access_token":"ya29.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0"}"#, "null");
    let right = left.replace("aaa0", "aaa1");
    assert_eq!(shown(&left, &right), "fingerprint: token value.access_token");
}

#[test]
fn each_difference_has_its_class() {
    let left = entry(
        r#"{"access_token":"at-00001","expires_at":"2026-10-02T10:45:00Z","token_type":"Bearer","scope":"a b","x":1}"#,
        OURS,
    );
    let with = |from: &str, to: &str| left.replace(from, to);
    assert_eq!(shown(&left, &with("10:45:00Z", "10:45:02Z")), "fingerprint: expiry value.expires_at");
    assert_eq!(shown(&left, &with("a b", "a")), "fingerprint: scope-regression value.scope (1 lost)");
    assert_eq!(shown(&left, &with("a b", "a b c")), "fingerprint: scope value.scope");
    assert_eq!(shown(&left, &with("Bearer", "bearer")), "fingerprint: ");
    assert_eq!(shown(&left, &with("Bearer", "MAC")), "fingerprint: field value.token_type");
    assert_eq!(shown(&left, &with(r#"\"x\":1"#, r#"\"x\":2"#)), "fingerprint: field value.x");
    assert_eq!(shown(&left, &with(r#"\"x\":1"#, r#"\"y\":1"#)), "fingerprint: field value.x, field value.y");
    assert_eq!(shown(&left, &with(r#""v":3"#, r#""v":4"#)), "fingerprint: metadata metadata.v");
    assert_eq!(shown(&left, &with("1790000000", "1790000009")), "fingerprint: expiry metadata.exp");
}

#[test]
fn no_expiry_is_too_large_to_be_told_from_another() {
    let with = |s: i64| {
        let line = entry(r#"{"access_token":"at-00001"}"#, &OURS.replace("1790000000", &s.to_string()));
        line.replace(r#"{"key""#, &format!(r#"{{"expiration":{s},"key""#))
    };
    let differ = "fingerprint: expiry expiration, expiry metadata.exp";
    for (a, b) in [(i64::MAX, i64::MAX / 1_000 + 1), (i64::MIN, i64::MAX), (i64::MAX, i64::MAX - 2)] {
        assert_eq!(shown(&with(a), &with(b)), differ, "{a} {b}");
    }
    assert_eq!(shown(&with(i64::MAX), &with(i64::MAX - 1)), "fingerprint: ");
}

#[test]
fn a_masked_secret_falls_to_the_next_rung_and_never_matches() {
    let left = entry(r#"{"access_token":"ya29.secret-1","scope":"a"}"#, "null");
    let masked = entry(r#"{"access_token":"ya29...","scope":"a"}"#, "null");
    assert_eq!(shown(&left, &masked), "status:  (the secret is masked on the right)");
    assert_eq!(shown(&masked, &masked), "status:  (the secret is masked on both sides)");
    let lineage = |m: &str| m.replace("null", r#"{"v":3,"ep":1}"#);
    assert_eq!(shown(&lineage(&left), &lineage(&masked)), "lineage:  (the secret is masked on the right)");
    let other = lineage(&masked).replace(r#""v":3"#, r#""v":4"#);
    assert_eq!(shown(&lineage(&left), &other), "lineage: metadata metadata.v (the secret is masked on the right)");
}

#[test]
fn a_masked_field_is_no_match_either() {
    let with = |fields: &str| entry(&format!(r#"{{"access_token":"ya29.secret-1"{fields}}}"#), r#"{"v":3,"ep":1}"#);
    let masked = with(r#","refresh_token":"REDACTED""#);
    let why = |side| format!("lineage:  (a field of the value is masked on {side})");
    assert_eq!(shown(&masked, &masked), why("both sides"));
    assert_eq!(shown(&with(r#","refresh_token":"1//secret""#), &masked), why("the right"));
    assert_eq!(shown(&with(r#","nested":{"a":["abcd..."]}"#), &with(r#","nested":{"a":["x"]}"#)), why("the left"));
    let scope = with(r#","scope":"****","token_type":"[hidden]""#);
    assert_eq!(shown(&scope, &with(r#","scope":"a b","token_type":"Bearer""#)), why("the left"));
    // Something is there, which the other side lacks.
    assert_eq!(
        shown(&with(""), &masked),
        "lineage: field value.refresh_token (a field of the value is masked on the right)"
    );
    let other = masked.replace("secret-1", "secret-2");
    assert_eq!(
        shown(&masked, &other),
        "fingerprint: token value.access_token (a field of the value is masked on both sides)"
    );
    let key = r#"{"key":"config:a","value":{"api_key":"REDACTED"}}"#;
    assert_eq!(shown(key, key), "status:  (a field of the value is masked on both sides)");
    assert_eq!(shown(&with(r#","note":"""#), &with(r#","note":"""#)), "fingerprint: ");
    let twice = entry(r#"{"access_token":"a-1","x":"REDACTED","x":1}"#, "null");
    let (scanned, mut scratch) = (scan(twice.as_bytes()).unwrap(), Vec::new());
    assert!(Facts::read(twice.as_bytes(), &scanned, &Rules::default(), &mut scratch).is_err());
}

#[test]
fn a_listing_compares_by_the_fingerprints_in_the_metadata() {
    let listed = format!(r#"{{"name":"tokens:a:b:c","metadata":{OURS}}}"#);
    assert_eq!(shown(&listed, &listed), "fingerprint: ");
    let other = listed.replace("0123456789ab", "0123456789ac");
    assert_eq!(shown(&listed, &other), "fingerprint: token fingerprint, metadata metadata.fp");
    let bare = r#"{"name":"tokens:a:b:c"}"#;
    assert_eq!(shown(bare, bare), "status:  (neither side gives its secret)");
}

#[test]
fn a_side_with_fingerprints_compares_with_one_in_clear_under_the_key_of_the_installation() {
    let key = FingerprintKey::new([9; 32]);
    let fp = key.fingerprint(&Secret::new("ya29.secret-1"));
    let clear = entry(r#"{"access_token":"ya29.secret-1"}"#, "null");
    let journal = format!(r#"{{"key":"tokens:a:b:c","fingerprint":"{fp}"}}"#);
    let rules = Rules::default();
    let with = |clear: &str, keys: &Keys| {
        let (a, b) = (scan(clear.as_bytes()).unwrap(), scan(journal.as_bytes()).unwrap());
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let left = Facts::read(clear.as_bytes(), &a, &rules, &mut x).unwrap();
        let right = Facts::read(journal.as_bytes(), &b, &rules, &mut y).unwrap();
        let c = compare(&left, &right, &rules, keys);
        (c.changes.len(), c.rung, c.unverifiable.is_some())
    };
    let keyed = Keys::new([7; 32], Some(key));
    assert_eq!(with(&clear, &keyed), (0, Rung::Fingerprint, false));
    assert_eq!(with(&clear.replace("-1", "-2"), &keyed), (1, Rung::Fingerprint, false));
    assert_eq!(with(&clear, &keys()), (0, Rung::Status, true));
}

#[test]
fn another_upstream_identity_is_a_class_of_its_own() {
    let row = |id: &str| format!(r#"{{"key":"tokens:a:b:c","value":"REDACTED","identity":"{id}","live":true}}"#);
    assert_eq!(shown(&row("1"), &row("1")), "identity:  (the secret is masked on both sides)");
    assert_eq!(shown(&row("1"), &row("2")), "identity: identity entry.identity (the secret is masked on both sides)");
}

#[test]
fn a_custodian_is_compared_by_what_both_know_and_never_matches() {
    let value = r#"{"access_token":"at-00001","scope":"a b"}"#;
    let entry = |more: &str| entry(value, OURS).replace("}}", &format!("}},{more}}}"));
    let custodian = |scope: &str, more: &str| {
        format!(
            r#"{{"key":"tokens:a:b:c","value":{{"access_token":"REDACTED","scope":"{scope}"}},"custodian":"x",{more}}}"#
        )
    };
    let why = " (the secret is masked on the right)";
    let active = r#""status":"active""#;
    assert_eq!(shown(&entry(active), &custodian("b a", active)), format!("status: {why}"));
    assert_eq!(
        shown(&entry(active), &custodian("a", r#""status":"expired""#)),
        format!("status: scope-regression value.scope (1 lost), status entry.status{why}")
    );
    assert_eq!(shown(&entry(r#""live":true"#), &custodian("a b", r#""live":true"#)), format!("liveness: {why}"));
    // One that shows its secret is compared like any other.
    let showing = custodian("a b", active).replace("REDACTED", "at-00001");
    assert!(shown(&entry(active), &showing).starts_with("fingerprint: metadata"));
}

#[test]
fn upstream_accounts_are_compared_by_the_rule_of_their_provider() {
    let row = |rule: &str, accounts: &[u64]| {
        let accounts: Vec<String> = accounts.iter().map(|n| format!("\"{n:024x}\"")).collect();
        let identity = format!(r#"{{"rule":"{rule}","identity":{{"ids":[{}]}}}}"#, accounts.join(","));
        format!(r#"{{"key":"tokens:a:b:c","value":"REDACTED","custodian":"x","identity":{identity}}}"#)
    };
    let changed = |left: &str, right: &str| shown(left, right).contains("identity entry.identity");
    assert!(!changed(&row("equal", &[1, 2]), &row("equal", &[2, 1])));
    assert!(changed(&row("equal", &[1]), &row("equal", &[1, 2])));
    assert!(!changed(&row("superset", &[1]), &row("superset", &[1, 2])), "access may grow");
    assert!(changed(&row("superset", &[1, 2]), &row("superset", &[1])), "and may not shrink");
    // The same when the new grant stands on the left.
    let new = |accounts| row("superset", accounts).replace(r#""rule""#, r#""new":true,"rule""#);
    assert!(!changed(&new(&[1, 2]), &row("superset", &[1])));
    assert!(changed(&new(&[1]), &row("superset", &[1, 2])));
}

#[test]
fn an_ignored_field_does_not_count() {
    let left = entry(r#"{"access_token":"at-00001","x":1}"#, OURS);
    let right = left.replace(r#"\"x\":1"#, r#"\"x\":2"#);
    let ignore = |text: &str| Rules { ignores: vec![Ignore::parse(text).unwrap()], ..Rules::default() };
    assert!(compared_under(&left, &right, &ignore("x=noise")).changes.is_empty());
    assert!(compared_under(&left, &right, &ignore("value.x=noise")).changes.is_empty());
    assert!(!compared_under(&left, &right, &ignore("metadata.x=noise")).changes.is_empty());
}

proptest! {
    #[test]
    fn an_entry_matches_itself_and_another_token_never_does(a in "[!-~]{1,40}", b in "[!-~]{1,40}", scope in "[a-c ,]{0,8}") {
        let object = |token: &str| serde_json::json!({"access_token": token, "scope": scope}).to_string();
        let (left, right) = (entry(&object(&a), OURS), entry(&object(&b), "{}"));
        let itself = compared_under(&left, &left, &Rules::default());
        prop_assert!(itself.changes.is_empty());
        let compared = compared_under(&left, &right, &Rules::default());
        let differ = compared.changes.iter().any(|c| c.class == Class::Token);
        prop_assert!(a == b || differ || compared.unverifiable.is_some());
    }
}
