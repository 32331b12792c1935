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
mod tests;
