//! What counts as a difference: tolerance, ignored fields, whose metadata is expected, and the
//! window in which a difference may still settle.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::time::{SECOND_MS, Timestamp};

/// Where in an entry a field stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In the JSON object that is the value.
    Value,
    /// In the JSON object that is the metadata.
    Metadata,
    /// In the entry itself, beside `key` and `value`.
    Entry,
}

impl Place {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Metadata => "metadata",
            Self::Entry => "entry",
        }
    }
}

/// A field that does not matter, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ignore {
    /// `None`: wherever it stands.
    pub place: Option<Place>,
    pub name: String,
    pub reason: String,
}

/// The fields that carry the meaning of a credential; no rule may hide a difference in them.
const NEVER_IGNORED: [&str; 3] = ["access_token", "key", "fp"];

impl Ignore {
    /// Reads `FIELD=REASON`, where the field is `name`, `value.name`, `metadata.name` or `entry.name`.
    ///
    /// # Errors
    /// When there is no reason, or the field is one that no rule may hide.
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        let (field, reason) = text.split_once('=').unwrap_or((text, ""));
        let (field, reason) = (field.trim(), reason.trim());
        if reason.is_empty() {
            return Err(IgnoreError::Reason { field: field.to_owned() });
        }
        let places = [Place::Value, Place::Metadata, Place::Entry];
        let placed = places.into_iter().find_map(|place| {
            let name = field.strip_prefix(place.as_str())?.strip_prefix('.')?;
            Some((Some(place), name))
        });
        let (place, name) = placed.unwrap_or((None, field));
        if name.is_empty() {
            return Err(IgnoreError::Name);
        }
        if NEVER_IGNORED.contains(&name) {
            return Err(IgnoreError::Matters { field: name.to_owned() });
        }
        Ok(Self { place, name: name.to_owned(), reason: reason.to_owned() })
    }
}

/// Why a text is no ignore rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    #[error("`{field}` is to be ignored without a reason; write FIELD=REASON")]
    Reason { field: String },
    #[error("the rule names no field; write FIELD=REASON")]
    Name,
    #[error("`{field}` is what the comparison is about and cannot be ignored")]
    Matters { field: String },
}

/// Until when a difference may be propagation rather than divergence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settling {
    /// The time at which the sides were read.
    pub now: Timestamp,
    /// How long a write may take to be seen everywhere, in milliseconds.
    pub window_ms: i64,
}

/// The rules of one comparison. They are part of its result: other rules, other findings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Two expiries this far apart are the same, in milliseconds.
    pub expiry_tolerance_ms: i64,
    pub ignores: Vec<Ignore>,
    /// Metadata that is not ours makes an entry foreign.
    pub expect_ours: bool,
    pub settling: Option<Settling>,
    /// Findings carry a unified diff of the redacted entries.
    pub diff: bool,
    /// Matches are listed too.
    pub all: bool,
    /// For live sides: a difference counts when both sides say the same for this long, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub look_again_ms: Option<i64>,
    /// Keys that are left out on both sides: a side that is asked does not tell of them.
    #[serde(skip)]
    pub skip: Arc<BTreeSet<String>>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            expiry_tolerance_ms: SECOND_MS,
            ignores: default_ignores(),
            expect_ours: false,
            settling: None,
            diff: false,
            all: false,
            look_again_ms: None,
            skip: Arc::default(),
        }
    }
}

/// What is ignored without being told: who wrote an entry and when says nothing about what it is.
pub fn default_ignores() -> Vec<Ignore> {
    let rule = |place, name: &str, reason: &str| Ignore { place, name: name.into(), reason: reason.into() };
    let when = "says when the entry was written, not what it is";
    vec![
        rule(Some(Place::Metadata), "src", "names the writer, and each side has its own"),
        rule(None, "written_by", "names the writer, and each side has its own"),
        rule(None, "written_at", when),
        rule(None, "updated_at", when),
    ]
}

impl Rules {
    /// Whether differences in this field do not matter.
    pub fn ignores(&self, place: Place, name: &[u8]) -> bool {
        self.ignores.iter().any(|rule| rule.name.as_bytes() == name && rule.place.is_none_or(|wanted| wanted == place))
    }

    /// Why a comparison under these rules is no evidence: it compares something else than the applied
    /// plan asks. `None` when it is. `of_policy` are the fields that the plan's policy leaves out;
    /// `retained`: triplets that do not move were compared too.
    pub fn departure(&self, of_policy: &[Ignore], retained: bool) -> Option<&'static str> {
        let fields = |ignores: &[Ignore]| -> BTreeSet<(Option<Place>, String)> {
            ignores.iter().chain(&default_ignores()).map(|rule| (rule.place, rule.name.clone())).collect()
        };
        if fields(&self.ignores) != fields(of_policy) {
            Some("other fields are ignored than the policy of the plan names")
        } else if self.expiry_tolerance_ms != Self::default().expiry_tolerance_ms {
            Some("expiries may differ by another time than 1s")
        } else if retained {
            Some("triplets that do not move are compared too")
        } else {
            None
        }
    }

    /// Whether this key is none of the comparison's business.
    pub fn skips(&self, key: &[u8]) -> bool {
        !self.skip.is_empty() && std::str::from_utf8(key).is_ok_and(|key| self.skip.contains(key))
    }

    /// Whether an entry written at this time may not have reached every reader yet.
    pub fn may_settle(&self, written_at: Option<Timestamp>) -> bool {
        match (self.settling, written_at) {
            (Some(Settling { now, window_ms }), Some(at)) => now.since(at) < window_ms,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignore_rule_needs_a_reason_and_never_hides_the_token() {
        let rule = Ignore::parse("metadata.v = each side counts its own versions").unwrap();
        assert_eq!((rule.place, rule.name.as_str()), (Some(Place::Metadata), "v"));
        assert!(Ignore::parse("v=").is_err() && Ignore::parse("v").is_err() && Ignore::parse("value.=x").is_err());
        assert!(Ignore::parse("access_token=noise").is_err() && Ignore::parse("value.access_token=noise").is_err());
        assert!(Ignore::parse("metadata.fp=noise").is_err());
    }

    #[test]
    fn only_a_comparison_as_the_plan_asks_for_it_is_evidence() {
        let rule = |text: &str| Ignore::parse(text).unwrap();
        let with = |ignores: &[Ignore]| {
            let ignores = default_ignores().into_iter().chain(ignores.iter().cloned()).collect();
            Rules { ignores, expect_ours: true, diff: true, ..Rules::default() }
        };
        let of_plan = [rule("metadata.v=each side counts its own")];
        assert_eq!(with(&of_plan).departure(&of_plan, false), None);
        assert_eq!(Rules::default().departure(&[], false), None);
        let scope = rule("scope=noise");
        for (rules, of_policy, retained, expected) in [
            (with(&[of_plan[0].clone(), scope]), &of_plan[..], false, "ignored"),
            (with(&[rule("v=anywhere")]), &of_plan[..], false, "ignored"),
            (Rules::default(), &of_plan[..], false, "ignored"),
            (Rules { expiry_tolerance_ms: 86_400_000, ..Rules::default() }, &[], false, "expiries"),
            (Rules::default(), &[], true, "do not move"),
        ] {
            let departure = rules.departure(of_policy, retained);
            assert!(departure.is_some_and(|why| why.contains(expected)), "{departure:?}");
        }
    }

    #[test]
    fn only_young_entries_may_settle() {
        let settling = Settling { now: Timestamp::from_secs(1_000), window_ms: 60_000 };
        let rules = Rules { settling: Some(settling), ..Rules::default() };
        assert!(rules.may_settle(Some(Timestamp::from_secs(941))));
        assert!(!rules.may_settle(Some(Timestamp::from_secs(940))) && !rules.may_settle(None));
        assert!(!Rules::default().may_settle(Some(Timestamp::from_secs(999))));
    }
}
