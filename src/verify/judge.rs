//! From the facts of one key on both sides to its outcome.

use super::compare::{Compared, Keys, compare};
use super::facts::{Facts, Field, Hidden, SecretFact};
use super::finding::{Change, Finding, Hand, Outcome, Rung};
use super::hide::{Curtain, HIDDEN, is_word, scopes};
use super::pack::pack;
use super::rules::{Place, Rules};
use crate::domain::secret::Fingerprint;

/// What one side says about a key.
pub(super) enum Said<'a> {
    Nothing,
    /// An entry that cannot be used.
    Broken,
    Entry(&'a Facts<'a>),
}

/// The outcome of one key.
pub(super) enum Judged {
    /// The key is left out.
    Skipped,
    Match(Rung),
    Finding(Box<Finding>),
}

/// Judges one key that at least one side has.
pub(super) fn judge(key: &[u8], left: &Said<'_>, right: &Said<'_>, rules: &Rules, keys: &Keys) -> Judged {
    if rules.skips(key) {
        return Judged::Skipped;
    }
    let mut finding = Finding {
        key: String::from_utf8_lossy(key).into_owned(),
        outcome: Outcome::Changed,
        rung: Rung::Status,
        changes: Vec::new(),
        foreign: Vec::new(),
        reason: None,
        diff: None,
        seen: None,
    };
    let mut may_settle = false;
    for (hand, said) in Hand::BOTH.into_iter().zip([left, right]) {
        if let Said::Entry(facts) = said {
            may_settle |= rules.may_settle(facts.written_at);
            if rules.expect_ours && !facts.ours && !facts.is_custodian() {
                finding.foreign.push(hand);
            }
        }
    }
    match (left, right) {
        (Said::Broken, _) => return damaged(finding, Hand::Left),
        (_, Said::Broken) => return damaged(finding, Hand::Right),
        (Said::Nothing, _) => finding.outcome = Outcome::Extra,
        (_, Said::Nothing) => finding.outcome = Outcome::Missing,
        (Said::Entry(l), Said::Entry(r)) => {
            let Compared { changes, rung, unverifiable } = compare(l, r, rules, keys);
            finding.rung = rung;
            finding.outcome = if !finding.foreign.is_empty() {
                Outcome::Foreign
            } else if !changes.is_empty() {
                Outcome::Changed
            } else if unverifiable.is_some() {
                Outcome::Unverifiable
            } else {
                return Judged::Match(rung);
            };
            finding.changes = changes;
            finding.reason = unverifiable.map(str::to_owned);
        }
    }
    if may_settle && matches!(finding.outcome, Outcome::Missing | Outcome::Extra | Outcome::Changed) {
        finding.reason = Some(format!("{}, but written within the propagation window", finding.outcome));
        finding.outcome = Outcome::Settling;
    }
    if rules.look_again_ms.is_some() {
        finding.seen = Some([said_digest(left, keys), said_digest(right, keys)]);
    }
    if rules.diff {
        let both = [left, right].into_iter().filter_map(|said| match said {
            Said::Entry(facts) => Some(*facts),
            Said::Nothing | Said::Broken => None,
        });
        let curtain = Curtain { sides: &both.collect::<Vec<_>>(), keys };
        let text = |said: &Said<'_>, hand| match said {
            Said::Entry(facts) => redacted(facts, hand, &finding.changes, &curtain),
            Said::Nothing | Said::Broken => String::new(),
        };
        let (old, new) = (text(left, Hand::Left), text(right, Hand::Right));
        let diff = similar::TextDiff::from_lines(&old, &new);
        finding.diff = Some(diff.unified_diff().context_radius(2).header("left", "right").to_string());
    }
    Judged::Finding(Box::new(finding))
}

/// What one side says as a keyed digest, to be compared with what it says later.
fn said_digest(said: &Said<'_>, keys: &Keys) -> Option<Fingerprint> {
    match said {
        Said::Nothing | Said::Broken => None,
        Said::Entry(facts) => {
            let mut packed = Vec::new();
            pack(facts, keys, &mut packed);
            Some(keys.print(&packed))
        }
    }
}

fn damaged(finding: Finding, hand: Hand) -> Judged {
    let reason = Some(format!("the entry on the {} cannot be used", hand.as_str()));
    Judged::Finding(Box::new(Finding { outcome: Outcome::Error, reason, foreign: Vec::new(), ..finding }))
}

/// A key that one side gives several times with different content.
pub(super) fn conflicting(key: &[u8], hand: Hand) -> Finding {
    Finding {
        key: String::from_utf8_lossy(key).into_owned(),
        outcome: Outcome::Error,
        rung: Rung::Status,
        changes: Vec::new(),
        foreign: Vec::new(),
        reason: Some(format!("the {} has several entries with this key and different content", hand.as_str())),
        diff: None,
        seen: None,
    }
}

/// An entry as lines of text without anything that could be secret. What is hidden and differs
/// says so; what is hidden and equal reads the same on both sides.
fn redacted(facts: &Facts<'_>, hand: Hand, changes: &[Change], curtain: &Curtain<'_>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        out.push_str(name);
        out.push_str(": ");
        out.push_str(value);
        out.push('\n');
    };
    let hidden = |field: &str| {
        if changes.iter().any(|change| change.field == field) {
            format!("[hidden, {}]", hand.as_str())
        } else {
            HIDDEN.to_owned()
        }
    };
    let secret = match &facts.secret {
        SecretFact::Unlisted => Some(("value", "[not given]".to_owned())),
        SecretFact::Absent => None,
        SecretFact::Masked => Some(("value.access_token", "[masked by its source]".to_owned())),
        SecretFact::Token(_) => Some(("value.access_token", hidden("value.access_token"))),
        SecretFact::Opaque(_) => Some(("value", hidden("value"))),
        SecretFact::Fingerprint(fp) => Some(("fingerprint", fp.to_string())),
    };
    if let Some((name, text)) = secret {
        line(name, &text);
    }
    if let Some(at) = facts.expires_at {
        line("value.expires_at", &at.to_rfc3339());
    }
    if let Some(kind) = &facts.token_type {
        let text = if is_word(kind) { curtain.shown(kind) } else { HIDDEN.to_owned() };
        line("value.token_type", &if text == HIDDEN { hidden("value.token_type") } else { text });
    }
    if let Some(scope) = &facts.scope {
        let mut items: Vec<String> = scopes(scope).map(|item| curtain.shown(item)).collect();
        items.sort_unstable();
        items.iter().for_each(|item| line("value.scope", item));
    }
    for name in &facts.masked {
        line(&curtain.field(Place::Value, name), "[masked by its source]");
    }
    if let Some(seconds) = facts.expiration {
        line("expiration", &seconds.to_string());
    }
    let mut fields: Vec<(String, &Field<'_>)> =
        facts.fields.iter().map(|field| (curtain.field(field.place, &field.name), field)).collect();
    // Where a hidden name stood among the others says something of it.
    fields.sort_by_key(|(name, _)| name.ends_with(HIDDEN));
    for (name, field) in fields {
        let text = match &field.content {
            Hidden::Clear(value) if is_harmless(field.place, &field.name, value) => {
                String::from_utf8_lossy(value).into_owned()
            }
            _ => hidden(&name),
        };
        line(&name, &text);
    }
    out
}

/// Whether a field's JSON can hold no secret: the numbers and the fingerprint of our metadata, and
/// a custodian's word for the state of a credential.
pub(super) fn is_harmless(place: Place, name: &[u8], value: &[u8]) -> bool {
    match (place, name) {
        (Place::Metadata, b"v" | b"ep" | b"exp") => value.len() <= 20 && value.iter().all(u8::is_ascii_digit),
        (Place::Metadata, b"fp") => super::facts::print(value).is_some(),
        (Place::Entry, b"live") => matches!(value, b"true" | b"false"),
        (Place::Entry, b"status") => STATUS_WORDS.iter().any(|word| value == format!("\"{word}\"").as_bytes()),
        _ => false,
    }
}

/// The words in which custodians state the condition of a credential.
pub(super) const STATUS_WORDS: [&str; 8] =
    ["active", "expired", "auth-error", "initiated", "failed", "inactive", "revoked", "other"];
