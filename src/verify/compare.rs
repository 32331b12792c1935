//! Two entries with the same key: what differs, of which class, and how strong the comparison was.

use std::collections::BTreeSet;
use std::hash::RandomState;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::facts::{Facts, Field, Hidden, SecretFact, fingerprint, seconds};
use super::finding::{Change, Class, Rung};
use super::hide::{Curtain, HIDDEN, is_marker, marker, scopes};
use super::json::{canonical, same_json};
use super::rules::{Place, Rules};
use crate::catalogue::IdentityRule;
use crate::catalogue::identity::Identity;
use crate::domain::secret::{Fingerprint, FingerprintKey, Secret, same_secret};
use crate::domain::time::{SECOND_MS, Timestamp};

/// The keys under which secrets are digested.
#[derive(Clone)]
pub struct Keys {
    /// Of this run only: it is made at random, never leaves memory and dies with the process.
    run: Hmac<Sha256>,
    /// A pseudorandom function (SipHash under a random key), of this run only as well.
    prf: RandomState,
    /// Of the installation, under which the fingerprints in KV metadata and the journal were made.
    /// Without it a fingerprint can only be compared with another one.
    installation: Option<FingerprintKey>,
}

impl Keys {
    /// `run` must be random and used for nothing else.
    pub fn new(run: [u8; 32], installation: Option<FingerprintKey>) -> Self {
        let run = <Hmac<Sha256> as KeyInit>::new_from_slice(&run).expect("HMAC takes a key of any length");
        Self { run, prf: RandomState::new(), installation }
    }

    pub(super) fn prf(&self) -> &RandomState {
        &self.prf
    }

    pub(super) fn digest(&self, secret: &[u8]) -> [u8; 16] {
        // A clone of the keyed state saves hashing the key again, half of the work for a token.
        let mut mac = self.run.clone();
        mac.update(secret);
        let mut digest = [0; 16];
        digest.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        digest
    }

    /// A keyed digest that may be written down: it tells no more than that two are the same.
    pub(super) fn print(&self, text: &[u8]) -> Fingerprint {
        Fingerprint::from_digest(&self.digest(text))
    }

    pub(super) fn digest_hidden(&self, hidden: &Hidden<'_>) -> [u8; 16] {
        match hidden {
            Hidden::Clear(text) => self.digest(text),
            Hidden::Digest(digest) => *digest,
        }
    }

    /// The digest of a JSON value's meaning.
    pub(super) fn digest_json(&self, value: &[u8]) -> [u8; 16] {
        match canonical(value) {
            Some(text) => self.digest(&text),
            None => self.digest(value),
        }
    }

    fn same(&self, left: &Hidden<'_>, right: &Hidden<'_>) -> bool {
        match (left, right) {
            (Hidden::Clear(a), Hidden::Clear(b)) => same_secret(a, b),
            (a, b) => same_secret(&self.digest_hidden(a), &self.digest_hidden(b)),
        }
    }

    fn same_field(&self, left: &Hidden<'_>, right: &Hidden<'_>) -> bool {
        match (left, right) {
            (Hidden::Clear(a), Hidden::Clear(b)) => same_json(a, b),
            (Hidden::Digest(a), Hidden::Digest(b)) => a == b,
            (Hidden::Clear(a), Hidden::Digest(b)) | (Hidden::Digest(b), Hidden::Clear(a)) => self.digest_json(a) == *b,
        }
    }
}

/// The upstream account of a credential, as a side states it in `identity`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct UpstreamIdentity {
    /// How the new one must relate to the old one.
    pub rule: IdentityRule,
    pub identity: Identity,
    /// It is the new grant's, whichever side it stands on.
    #[serde(default)]
    pub new: bool,
}

/// What comparing two entries of one key gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compared {
    /// Empty when nothing differs.
    pub changes: Vec<Change>,
    /// The strongest rung on which the two could be compared.
    pub rung: Rung,
    /// Why the secrets could not be compared, if they could not.
    pub unverifiable: Option<&'static str>,
}

/// Compares two entries by meaning.
pub(super) fn compare(left: &Facts<'_>, right: &Facts<'_>, rules: &Rules, keys: &Keys) -> Compared {
    let curtain = Curtain { sides: &[left, right], keys };
    let mut changes = Vec::new();
    let secret = compare_secrets(left, right, keys);
    if let Secrets::Differ(field) = secret {
        changes.push(Change::new(Class::Token, field));
    }
    let masked = |name: &[u8]| left.is_masked(name) || right.is_masked(name);
    if left.is_custodian() || right.is_custodian() {
        return compare_custody(left, right, changes, &secret, &curtain);
    }
    let tolerance = rules.expiry_tolerance_ms;
    let apart = |a: Option<Timestamp>, b: Option<Timestamp>| match (a, b) {
        (Some(a), Some(b)) => a.since(b).unsigned_abs() > tolerance.unsigned_abs(),
        (a, b) => a.is_some() != b.is_some(),
    };
    // A side that lists keys only says nothing about what is inside its values.
    let both_values = !matches!(left.secret, SecretFact::Unlisted | SecretFact::Fingerprint(_))
        && !matches!(right.secret, SecretFact::Unlisted | SecretFact::Fingerprint(_));
    if both_values {
        if apart(left.expires_at, right.expires_at) && !rules.ignores(Place::Value, b"expires_at") {
            changes.push(Change::new(Class::Expiry, "value.expires_at"));
        }
        if !masked(b"scope") {
            compare_scopes(left.scope.as_deref(), right.scope.as_deref(), keys, &mut changes);
        }
        let same_type = match (&left.token_type, &right.token_type) {
            // RFC 6749 §5.1: the type is case-insensitive.
            (Some(a), Some(b)) => {
                let marked = |kind: &[u8]| marker(&kind.to_ascii_lowercase(), keys);
                a.eq_ignore_ascii_case(b) || ((is_marker(a) || is_marker(b)) && marked(a) == marked(b))
            }
            (a, b) => a.is_some() == b.is_some(),
        };
        if !same_type && !masked(b"token_type") {
            changes.push(Change::new(Class::Field, "value.token_type"));
        }
    }
    // In seconds, because not all of them fit into milliseconds.
    let seconds_apart =
        |a: i64, b: i64| u128::from(a.abs_diff(b)) * SECOND_MS as u128 > u128::from(tolerance.unsigned_abs());
    let lives_apart = match (left.expiration, right.expiration) {
        (Some(a), Some(b)) => seconds_apart(a, b),
        (a, b) => a.is_some() != b.is_some(),
    };
    if lives_apart && !rules.ignores(Place::Entry, b"expiration") {
        changes.push(Change::new(Class::Expiry, "expiration"));
    }
    for (a, b) in pairs(&left.fields, &right.fields) {
        let place = a.or(b).map_or(Place::Entry, |field| field.place);
        // What only one side knows of a credential is no difference.
        if (a.is_none() || b.is_none()) && a.or(b).is_some_and(is_facet) {
            continue;
        }
        if place == Place::Value && (!both_values || a.or(b).is_some_and(|field| masked(&field.name))) {
            continue;
        }
        if let Some(change) = compare_fields(a, b, &curtain, &seconds_apart) {
            changes.push(change);
        }
    }
    let hidden = if both_values { compare_masked(left, right, &curtain, &mut changes) } else { None };
    let (rung, unverifiable) = match (secret, hidden) {
        (Secrets::Unknown(why), _) | (Secrets::Same, Some(why)) => (lower_rung(left, right), Some(why)),
        (Secrets::Same | Secrets::Differ(_), hidden) => (Rung::Fingerprint, hidden),
    };
    // Where a hidden name stood among the others says something of it.
    changes.sort_by_key(|change| change.field.ends_with(HIDDEN));
    Compared { changes, rung, unverifiable }
}

/// A field that a side has masked proves nothing, but it stands for one that the other side must have too.
/// Returns why the two cannot be told to be the same.
fn compare_masked(
    left: &Facts<'_>,
    right: &Facts<'_>,
    curtain: &Curtain<'_>,
    changes: &mut Vec<Change>,
) -> Option<&'static str> {
    let lacking = |facts: &Facts<'_>, other: &Facts<'_>| -> Vec<Change> {
        let lacking = facts.masked.iter().filter(|name| !other.gives(name));
        lacking.map(|name| Change::new(Class::Field, curtain.field(Place::Value, name))).collect()
    };
    changes.extend(lacking(left, right));
    changes.extend(lacking(right, left));
    match (left.masked.is_empty(), right.masked.is_empty()) {
        (true, true) => None,
        (false, true) => Some("a field of the value is masked on the left"),
        (true, false) => Some("a field of the value is masked on the right"),
        (false, false) => Some("a field of the value is masked on both sides"),
    }
}

/// Compares what a custodian says of a credential with another side: everything that both know.
fn compare_custody(
    left: &Facts<'_>,
    right: &Facts<'_>,
    mut changes: Vec<Change>,
    secret: &Secrets,
    curtain: &Curtain<'_>,
) -> Compared {
    // A masked scope is none here.
    if left.scope.is_some() && right.scope.is_some() {
        compare_scopes(left.scope.as_deref(), right.scope.as_deref(), curtain.keys, &mut changes);
    }
    for (a, b) in pairs(&left.fields, &right.fields) {
        let (Some(a), Some(b)) = (a, b) else { continue };
        if a.place != Place::Entry || a.name.as_ref() == b"custodian" {
            continue;
        }
        let same = match (&a.content, &b.content) {
            (Hidden::Clear(old), Hidden::Clear(new)) if a.name.as_ref() == b"identity" => same_identity(old, new),
            (Hidden::Clear(x), Hidden::Clear(y)) => same_json(x, y),
            (Hidden::Digest(x), Hidden::Digest(y)) => x == y,
            _ => false,
        };
        if !same {
            changes.push(Change::new(class_of(a), curtain.field(Place::Entry, &a.name)));
        }
    }
    changes.sort_by_key(|change| change.class);
    let why = match secret {
        Secrets::Unknown(why) => why,
        Secrets::Same | Secrets::Differ(_) => "a custodian does not show its secret",
    };
    Compared { changes, rung: lower_rung(left, right), unverifiable: Some(why) }
}

/// Whether a field tells of the credential rather than being part of the entry.
fn is_facet(field: &Field<'_>) -> bool {
    field.place == Place::Entry && matches!(field.name.as_ref(), b"identity" | b"live" | b"status" | b"connection")
}

/// Whether the new grant is of the upstream account of the old one, by the rule of its provider. The
/// new one is on the right unless the sides say otherwise.
fn same_identity(left: &[u8], right: &[u8]) -> bool {
    let read = |text: &[u8]| serde_json::from_slice::<UpstreamIdentity>(text).ok();
    match (read(left), read(right)) {
        (Some(new), Some(old)) if new.new && !old.new => new.identity.continues(&old.identity, old.rule),
        (Some(old), Some(new)) => new.identity.continues(&old.identity, old.rule),
        _ => same_json(left, right),
    }
}

enum Secrets {
    Same,
    Differ(&'static str),
    Unknown(&'static str),
}

fn compare_secrets(left: &Facts<'_>, right: &Facts<'_>, keys: &Keys) -> Secrets {
    use SecretFact::{Absent, Fingerprint as Print, Masked, Opaque, Token, Unlisted};
    let verdict = |same: bool, field| if same { Secrets::Same } else { Secrets::Differ(field) };
    match (&left.secret, &right.secret) {
        (Absent, Absent) => Secrets::Same,
        (Token(a), Token(b)) => verdict(keys.same(a, b), "value.access_token"),
        (Opaque(a), Opaque(b)) => verdict(keys.same(a, b), "value"),
        (Absent | Token(_) | Opaque(_), Absent | Token(_) | Opaque(_)) => Secrets::Differ("value"),
        (Print(a), Print(b)) => verdict(a == b, "fingerprint"),
        // What an API has hidden proves nothing, whatever the metadata beside it says.
        (Masked, Masked) => Secrets::Unknown("the secret is masked on both sides"),
        (Masked, _) => Secrets::Unknown("the secret is masked on the left"),
        (_, Masked) => Secrets::Unknown("the secret is masked on the right"),
        (a, b) => {
            // What the metadata says of a value that is not given is as good as its writer.
            let claimed = |facts: &Facts<'_>| {
                let Hidden::Clear(value) = &facts.find(Place::Metadata, "fp")?.content else { return None };
                facts.ours.then(|| fingerprint(value)).flatten()
            };
            let ours = print_of(a, keys).or_else(|| claimed(left));
            let theirs = print_of(b, keys).or_else(|| claimed(right));
            match (ours, theirs) {
                (Some(x), Some(y)) => verdict(x == y, "fingerprint"),
                _ if matches!((a, b), (Unlisted, Unlisted)) => Secrets::Unknown("neither side gives its secret"),
                _ if matches!(a, Unlisted) => Secrets::Unknown("the left does not give its secret"),
                _ if matches!(b, Unlisted) => Secrets::Unknown("the right does not give its secret"),
                _ => Secrets::Unknown("a fingerprint and a secret compare only under the key of the installation"),
            }
        }
    }
}

fn print_of(secret: &SecretFact<'_>, keys: &Keys) -> Option<Fingerprint> {
    match secret {
        SecretFact::Fingerprint(fp) => Some(*fp),
        SecretFact::Token(Hidden::Clear(token)) => {
            let token = std::str::from_utf8(token).ok()?;
            Some(keys.installation.as_ref()?.fingerprint(&Secret::new(token)))
        }
        _ => None,
    }
}

/// The strongest rung below the fingerprint on which both sides say something.
fn lower_rung(left: &Facts<'_>, right: &Facts<'_>) -> Rung {
    let both = |place, name| left.find(place, name).is_some() && right.find(place, name).is_some();
    if (both(Place::Metadata, "v") && both(Place::Metadata, "ep")) || both(Place::Entry, "connection") {
        Rung::Lineage
    } else if both(Place::Entry, "identity") {
        Rung::Identity
    } else if both(Place::Entry, "live") {
        Rung::Liveness
    } else {
        Rung::Status
    }
}

fn compare_scopes(left: Option<&[u8]>, right: Option<&[u8]>, keys: &Keys, changes: &mut Vec<Change>) {
    if left == right {
        return;
    }
    let sets = [left, right].map(|text| scopes(text.unwrap_or_default()).collect::<BTreeSet<_>>());
    let lost_and_gained =
        |[left, right]: [BTreeSet<&[u8]>; 2]| (left.difference(&right).count(), right.difference(&left).count());
    let (lost, gained) = if sets.iter().flatten().any(|item| is_marker(item)) {
        // What one side hides the other may hold in clear.
        let marked = sets.each_ref().map(|set| set.iter().map(|item| marker(item, keys)).collect::<Vec<_>>());
        lost_and_gained(marked.each_ref().map(|set| set.iter().map(Vec::as_slice).collect()))
    } else {
        lost_and_gained(sets)
    };
    if lost > 0 {
        changes.push(Change::new(Class::ScopeRegression, "value.scope").lost(lost));
    } else if gained > 0 {
        changes.push(Change::new(Class::Scope, "value.scope"));
    }
}

/// Walks two sorted lists of fields side by side.
fn pairs<'f, 'a>(
    left: &'f [Field<'a>],
    right: &'f [Field<'a>],
) -> impl Iterator<Item = (Option<&'f Field<'a>>, Option<&'f Field<'a>>)> {
    let (mut l, mut r) = (left.iter().peekable(), right.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (l.peek(), r.peek()) {
            (Some(a), Some(b)) => (a.place, &a.name).cmp(&(b.place, &b.name)),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => return None,
        };
        Some((if order.is_le() { l.next() } else { None }, if order.is_ge() { r.next() } else { None }))
    })
}

fn compare_fields(
    left: Option<&Field<'_>>,
    right: Option<&Field<'_>>,
    curtain: &Curtain<'_>,
    seconds_apart: &impl Fn(i64, i64) -> bool,
) -> Option<Change> {
    let field = left.or(right)?;
    let expiry = field.place == Place::Metadata && field.name.as_ref() == b"exp";
    if let (Some(a), Some(b)) = (left, right) {
        if curtain.keys.same_field(&a.content, &b.content) {
            return None;
        }
        if let (true, Hidden::Clear(x), Hidden::Clear(y)) = (expiry, &a.content, &b.content)
            && let (Some(x), Some(y)) = (seconds(x), seconds(y))
        {
            return seconds_apart(x, y).then(|| Change::new(Class::Expiry, "metadata.exp"));
        }
    }
    let class = if expiry { Class::Expiry } else { class_of(field) };
    Some(Change::new(class, curtain.field(field.place, &field.name)))
}

fn class_of(field: &Field<'_>) -> Class {
    match (field.place, field.name.as_ref()) {
        (Place::Entry, b"identity") => Class::Identity,
        (Place::Entry, b"live" | b"status") => Class::Status,
        (Place::Metadata, _) => Class::Metadata,
        _ => Class::Field,
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(
            shown(&row("1"), &row("2")),
            "identity: identity entry.identity (the secret is masked on both sides)"
        );
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
}
