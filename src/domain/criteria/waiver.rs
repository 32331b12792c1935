//! Waivers: what a named person lets pass, of what, why, and until when.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::CRITERIA;
use crate::domain::secret::hex;
use crate::domain::time::Timestamp;

/// A dated exception. Past its end, or revoked, it is as if it had never been given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiver {
    /// `w-` and 8 hex digits over the rest.
    pub id: String,
    pub criterion: String,
    /// `*` for the whole criterion, or the subjects that it covers: see [`Scope`].
    pub scope: String,
    pub by: String,
    pub reason: String,
    pub given_at: Timestamp,
    /// The first instant at which it does not hold any more.
    pub until: Timestamp,
    pub revoked_at: Option<Timestamp>,
    pub revoked_by: Option<String>,
}

/// What is shown of a waiver beside the criterion that it touches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaiverMark {
    pub id: String,
    pub by: String,
    pub reason: String,
    pub until: Timestamp,
    pub scope: String,
    /// Findings that it took out of the count; 0 for one of the whole criterion.
    pub covered: u64,
}

/// Why a waiver cannot be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaiverError {
    #[error("there is no criterion `{0}`; known are {known}", known = CRITERIA.join(", "))]
    UnknownCriterion(String),
    #[error("`--{0}` is empty")]
    Empty(&'static str),
    #[error("the end {until} is not after now, {now}")]
    Past { until: Timestamp, now: Timestamp },
    #[error("the end {until} is more than {longest} away; `criteria.waiver_max` of the policy sets that")]
    TooLong { until: Timestamp, longest: String },
    #[error("criterion `{criterion}` has one value for the whole plan: its scope can only be `*`")]
    Whole { criterion: String },
    #[error("`{scope}` is not a scope of `{criterion}`: expected `*` or {expected}")]
    Scope { criterion: String, scope: String, expected: &'static str },
}

/// What the subjects of a criterion are, and so how a scope is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subjects {
    /// One value for all.
    None,
    Triplets,
    Apis,
    Waves,
    /// Connection ids, or triplets.
    Free,
}

fn subjects(criterion: &str) -> Subjects {
    match criterion {
        "invalid-grant" | "ambiguous" => Subjects::Free,
        "missed-refresh" | "smoke-staleness" | "parity" | "dead-letters" | "foreign-writes" | "identity" | "scopes" => {
            Subjects::Triplets
        }
        "outage" | "clock-skew" => Subjects::Apis,
        "reverse-rehearsed" => Subjects::Waves,
        _ => Subjects::None,
    }
}

impl Waiver {
    /// Makes one, or says what is wrong with it.
    ///
    /// # Errors
    /// When the criterion is unknown, name or reason are empty, the end is past or too far away, or
    /// the scope does not fit the criterion.
    pub fn new(
        criterion: &str,
        scope: &str,
        by: &str,
        reason: &str,
        now: Timestamp,
        until: Timestamp,
        longest_ms: i64,
    ) -> Result<Self, WaiverError> {
        if !CRITERIA.contains(&criterion) {
            return Err(WaiverError::UnknownCriterion(criterion.to_owned()));
        }
        for (name, text) in [("by", by), ("reason", reason), ("scope", scope)] {
            if text.trim().is_empty() {
                return Err(WaiverError::Empty(name));
            }
        }
        if until <= now {
            return Err(WaiverError::Past { until, now });
        }
        if until.since(now) > longest_ms {
            return Err(WaiverError::TooLong { until, longest: crate::domain::time::format_duration_ms(longest_ms) });
        }
        check_scope(criterion, scope)?;
        let parts = [criterion, scope, by, reason, &now.to_rfc3339(), &until.to_rfc3339()];
        let digest = Sha256::digest(parts.join("\0").as_bytes());
        Ok(Self {
            id: format!("w-{}", hex(&digest[..4])),
            criterion: criterion.to_owned(),
            scope: scope.to_owned(),
            by: by.trim().to_owned(),
            reason: reason.trim().to_owned(),
            given_at: now,
            until,
            revoked_at: None,
            revoked_by: None,
        })
    }

    pub fn in_force(&self, now: Timestamp) -> bool {
        self.given_at <= now && now < self.until && self.revoked_at.is_none_or(|at| now < at)
    }

    /// Whether it covers the whole criterion.
    pub fn is_whole(&self) -> bool {
        self.scope == "*"
    }

    /// Whether it covers this subject of its criterion.
    pub fn covers(&self, subject: &str) -> bool {
        if self.is_whole() || self.scope == subject {
            return true;
        }
        let (scope, subject): (Vec<&str>, Vec<&str>) = (self.scope.split(':').collect(), subject.split(':').collect());
        scope.len() == 3
            && subject.len() == 3
            && scope.iter().zip(subject).all(|(want, have)| *want == "*" || *want == have)
    }

    /// `held`, `expired` or `revoked`, for lists.
    pub fn state(&self, now: Timestamp) -> &'static str {
        match self {
            _ if self.revoked_at.is_some_and(|at| at <= now) => "revoked",
            _ if now >= self.until => "expired",
            _ => "in force",
        }
    }

    pub(super) fn mark(&self, covered: u64) -> WaiverMark {
        let Self { id, by, reason, until, scope, .. } = self.clone();
        WaiverMark { id, by, reason, until, scope, covered }
    }
}

fn check_scope(criterion: &str, scope: &str) -> Result<(), WaiverError> {
    if scope == "*" {
        return Ok(());
    }
    let is_triplet = scope.split(':').count() == 3 && scope.split(':').all(|part| !part.is_empty());
    let (fits, expected) = match subjects(criterion) {
        Subjects::None => return Err(WaiverError::Whole { criterion: criterion.to_owned() }),
        Subjects::Free => return Ok(()),
        Subjects::Triplets => (is_triplet, "triplets such as `kahuna:slack:default` or `kahuna:*:*`"),
        Subjects::Apis => {
            let known = crate::domain::api::Api::ALL.iter().any(|api| api.name() == scope);
            (known, "one of `nango`, `composio`, `cloudflare`, `gateway`, `provider`")
        }
        Subjects::Waves => {
            let is_wave = scope.strip_prefix("wave-").is_some_and(|n| n.parse::<u32>().is_ok());
            (is_wave, "a wave such as `wave-2`")
        }
    };
    if fits {
        return Ok(());
    }
    Err(WaiverError::Scope { criterion: criterion.to_owned(), scope: scope.to_owned(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_secs(s)
    }

    fn give(criterion: &str, scope: &str, until: i64) -> Result<Waiver, WaiverError> {
        Waiver::new(criterion, scope, "ann", "the vendor confirmed it", at(100), at(until), 1_000_000)
    }

    #[test]
    fn a_waiver_holds_from_when_it_is_given_up_to_its_end() {
        let mut waiver = give("outage", "nango", 200).unwrap();
        assert_eq!([99, 100, 199, 200].map(|s| waiver.in_force(at(s))), [false, true, true, false]);
        waiver.revoked_at = Some(at(150));
        assert_eq!([149, 150, 199].map(|s| waiver.in_force(at(s))), [true, false, false]);
        assert_eq!([149, 150, 250].map(|s| waiver.state(at(s))), ["in force", "revoked", "revoked"]);
    }

    #[test]
    fn a_scope_covers_what_it_names() {
        let waiver = give("foreign-writes", "kahuna:*:default", 200).unwrap();
        assert!(waiver.covers("kahuna:slack:default"));
        assert!(!waiver.covers("kahuna:slack:other") && !waiver.covers("nango"));
        assert!(give("outage", "*", 200).unwrap().covers("nango"));
    }

    #[test]
    fn what_is_wrong_with_a_waiver_is_said() {
        let refused = |criterion, scope, until| give(criterion, scope, until).unwrap_err().to_string();
        assert!(refused("parityy", "*", 200).contains("there is no criterion `parityy`"));
        assert!(refused("parity", "*", 100).contains("is not after now"));
        assert!(refused("parity", "*", 5_000).contains("16m 40s away"));
        assert!(refused("cost", "kahuna:slack:default", 200).contains("can only be `*`"));
        assert!(refused("outage", "kahuna:*:*", 200).contains("expected `*` or one of `nango`"));
        assert!(refused("parity", "nango", 200).contains("triplets such as"));
        assert!(refused("reverse-rehearsed", "2", 200).contains("wave-2"));
        let unsigned = Waiver::new("parity", "*", " ", "why", at(0), at(1), 1_000_000).unwrap_err();
        assert_eq!(unsigned.to_string(), "`--by` is empty");
    }
}
