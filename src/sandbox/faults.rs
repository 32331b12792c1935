//! What goes wrong on purpose: the list of faults, how they are written, and who they hit.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::domain::time::{DAY_MS, MINUTE_MS, SECOND_MS, Timestamp, parse_duration_ms};
use crate::domain::triplet::Triplet;

use super::draw;

/// One fault with its strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Of 1,000 webhooks, this many never leave Nango.
    WebhookLoss { per_mille: u32 },
    /// The Worker sees a KV write only 30 s to this many milliseconds later.
    KvLag { max_ms: i64 },
    /// Of 1,000 requests to Composio, this many are answered 429 (every other one with `Retry-After`).
    Composio429 { per_mille: u32 },
    /// Nango answers 503 with an HTML page for this long, once, in the middle of the window.
    NangoOutage { ms: i64 },
    /// This many TokenManager objects go back to `refresh` by themselves and ignore mode changes.
    DoAlarmZombie { count: u32 },
    /// This many grants are revoked at the provider.
    GrantRevoked { count: u32 },
    /// For this many triplets another upstream user gives the consent.
    WrongAccount { count: u32 },
    /// For this many triplets the consent grants fewer scopes than asked for.
    ScopeLoss { count: u32 },
    /// The gateway answers 503 to smoke tests for this long, from the begin of the window on.
    SmokeOutage { ms: i64 },
    /// D1 answers 500 for this long, from the begin of the window on.
    AuditOutage { ms: i64 },
    /// The sandbox raises its crash signal at this many requests and never answers those.
    Crash { count: u32 },
}

/// Every name that [`Fault::parse`] knows, with the meaning and default of its strength.
pub const FAULTS: [(&str, &str); 11] = [
    ("webhook-loss", "share of webhooks lost, default 50%"),
    ("kv-lag", "longest propagation delay, default 90s"),
    ("composio-429", "share of requests limited, default 5%"),
    ("nango-outage", "length, default 45m"),
    ("do-alarm-zombie", "objects, default 1"),
    ("grant-revoked", "grants, default 1"),
    ("wrong-account", "triplets, default 1"),
    ("scope-loss", "triplets, default 1"),
    ("smoke-outage", "length, default 3d"),
    ("audit-outage", "length, default 3d"),
    ("crash", "crashes, default 5"),
];

impl Fault {
    /// Reads `name` or `name=strength`.
    ///
    /// # Errors
    /// When the name is unknown (the message lists all and the closest) or the strength does not fit.
    pub fn parse(text: &str) -> Result<Self, FaultError> {
        let (name, strength) = match text.trim().split_once('=') {
            Some((name, strength)) => (name.trim(), Some(strength.trim())),
            None => (text.trim(), None),
        };
        let bad =
            |wanted| FaultError::Strength { name: name.to_owned(), text: strength.unwrap_or("").to_owned(), wanted };
        let share = |default| match strength {
            None => Ok(default),
            Some(s) => parse_per_mille(s).ok_or_else(|| bad("a share such as 30% or 0.3")),
        };
        let length = |default, min: i64| match strength {
            None => Ok(default),
            Some(s) => parse_duration_ms(s)
                .ok()
                .filter(|ms| (min..=100 * DAY_MS).contains(ms))
                .ok_or_else(|| bad("a duration such as 90s or 45m, at most 100d (kv-lag: at least 30s)")),
        };
        let count = |default| match strength {
            None => Ok(default),
            Some(s) => s.parse().ok().filter(|n| *n <= 10_000).ok_or_else(|| bad("a whole number up to 10000")),
        };
        match name {
            "webhook-loss" => Ok(Self::WebhookLoss { per_mille: share(500)? }),
            "kv-lag" => Ok(Self::KvLag { max_ms: length(90 * SECOND_MS, 30 * SECOND_MS)? }),
            "composio-429" => Ok(Self::Composio429 { per_mille: share(50)? }),
            "nango-outage" => Ok(Self::NangoOutage { ms: length(45 * MINUTE_MS, 1)? }),
            "do-alarm-zombie" => Ok(Self::DoAlarmZombie { count: count(1)? }),
            "grant-revoked" => Ok(Self::GrantRevoked { count: count(1)? }),
            "wrong-account" => Ok(Self::WrongAccount { count: count(1)? }),
            "scope-loss" => Ok(Self::ScopeLoss { count: count(1)? }),
            "smoke-outage" => Ok(Self::SmokeOutage { ms: length(3 * DAY_MS, 1)? }),
            "audit-outage" => Ok(Self::AuditOutage { ms: length(3 * DAY_MS, 1)? }),
            "crash" => Ok(Self::Crash { count: count(5)? }),
            _ => Err(FaultError::Unknown { name: name.chars().take(40).collect(), closest: closest(name) }),
        }
    }

    pub const fn name(&self) -> &'static str {
        match self {
            Self::WebhookLoss { .. } => "webhook-loss",
            Self::KvLag { .. } => "kv-lag",
            Self::Composio429 { .. } => "composio-429",
            Self::NangoOutage { .. } => "nango-outage",
            Self::DoAlarmZombie { .. } => "do-alarm-zombie",
            Self::GrantRevoked { .. } => "grant-revoked",
            Self::WrongAccount { .. } => "wrong-account",
            Self::ScopeLoss { .. } => "scope-loss",
            Self::SmokeOutage { .. } => "smoke-outage",
            Self::AuditOutage { .. } => "audit-outage",
            Self::Crash { .. } => "crash",
        }
    }
}

/// Writes what [`Fault::parse`] reads.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.name())?;
        match self {
            Self::WebhookLoss { per_mille } | Self::Composio429 { per_mille } => {
                write!(f, "{}.{}%", per_mille / 10, per_mille % 10)
            }
            Self::KvLag { max_ms: ms }
            | Self::NangoOutage { ms }
            | Self::SmokeOutage { ms }
            | Self::AuditOutage { ms } => {
                let units = [(24 * 60 * MINUTE_MS, "d"), (60 * MINUTE_MS, "h"), (MINUTE_MS, "m"), (SECOND_MS, "s")];
                let (scale, unit) = units.into_iter().find(|(scale, _)| ms % scale == 0).unwrap_or((1, "ms"));
                write!(f, "{}{unit}", ms / scale)
            }
            Self::DoAlarmZombie { count }
            | Self::GrantRevoked { count }
            | Self::WrongAccount { count }
            | Self::ScopeLoss { count }
            | Self::Crash { count } => write!(f, "{count}"),
        }
    }
}

impl Serialize for Fault {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Why a text is not a fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    #[error("unknown fault `{name}`; did you mean `{closest}`? Known are {}", known_faults())]
    Unknown { name: String, closest: &'static str },
    #[error("`{text}` is not a strength for fault `{name}`: expected {wanted}")]
    Strength { name: String, text: String, wanted: &'static str },
}

fn known_faults() -> String {
    FAULTS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn closest(name: &str) -> &'static str {
    let score = |known: &str| (similar::TextDiff::from_chars(name, known).ratio() * 1000.0) as u32;
    FAULTS.iter().map(|(known, _)| *known).max_by_key(|known| score(known)).unwrap_or("crash")
}

/// `30%`, `2.5%` or `0.3` as parts of 1,000.
fn parse_per_mille(text: &str) -> Option<u32> {
    let (number, scale) = match text.strip_suffix('%') {
        Some(percent) => (percent, 10.0),
        None => (text, 1_000.0),
    };
    let share: f64 = number.trim().parse().ok()?;
    let per_mille = (share * scale).round();
    (0.0..=1_000.0).contains(&per_mille).then_some(per_mille as u32)
}

/// Who or what a fault hit, for the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultNote {
    pub fault: &'static str,
    /// When it hits; the begin of the window for faults that last or wait for something to happen.
    pub at: Timestamp,
    pub triplet: Option<Triplet>,
    pub what: String,
}

/// The faults of one world, with their strengths and switches worked out.
#[derive(Clone, Debug, Default)]
pub(super) struct FaultPlan {
    pub webhook_loss_per_mille: u32,
    pub kv_lag_max_ms: i64,
    pub composio_429_per_mille: u32,
    /// First and last instant of Nango's outage.
    pub outage: Option<(Timestamp, Timestamp)>,
    /// From the begin of the window on, smoke tests are not answered before this.
    pub smoke_again: Option<Timestamp>,
    /// The same for D1.
    pub audit_again: Option<Timestamp>,
    pub window: (Timestamp, Timestamp),
    /// Triplets (by index) whose consent comes from another user.
    pub wrong_account: Vec<usize>,
    /// Triplets (by index) whose consent grants fewer scopes.
    pub scope_loss: Vec<usize>,
    /// Crashes of the client, by act.
    pub crashes: BTreeMap<Act, Crashes>,
    pub notes: Vec<FaultNote>,
}

impl FaultPlan {
    /// Whether a fault that lasts for the whole window is on.
    pub fn in_window(&self, now: Timestamp) -> bool {
        self.window.0 <= now && now <= self.window.1
    }

    pub fn smoke_silent(&self, now: Timestamp) -> bool {
        self.smoke_again.is_some_and(|from| self.window.0 <= now && now < from)
    }

    pub fn audit_silent(&self, now: Timestamp) -> bool {
        self.audit_again.is_some_and(|from| self.window.0 <= now && now < from)
    }

    pub fn outage_at(&self, now: Timestamp) -> bool {
        self.outage.is_some_and(|(from, until)| from <= now && now < until)
    }
}

/// The parts of a cutover that differ in what a crash can interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Act {
    /// Up to the fault window: alarms, auth configs, accounts, the first copy.
    Opening,
    /// In the fault window: rotations and their mirroring.
    Soak,
    /// From the first consent link on: consent, switch, retirement.
    Closing,
}

/// When the client dies within one act.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Crashes {
    /// Requests of the act so far.
    seen: u64,
    /// Request numbers at which it dies; sorted.
    at: Vec<u64>,
}

/// Where in a request the client dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CrashAt {
    BeforeEffect,
    AfterEffect,
}

impl Crashes {
    /// Counts a request and says whether the client dies in it: before and after the effect in turn.
    pub fn next(&mut self) -> Option<CrashAt> {
        self.seen += 1;
        let nth = self.at.binary_search(&self.seen).ok()?;
        Some(if nth.is_multiple_of(2) { CrashAt::BeforeEffect } else { CrashAt::AfterEffect })
    }
}

/// Spreads `count` crashes over the acts: half of them in the soak, which is most of the run,
/// with gaps of 30 to 600 requests; the rest at both ends, where requests are few, with gaps of
/// 5 to 60.
pub(super) fn crashes(seed: u64, count: u32) -> BTreeMap<Act, Crashes> {
    let ends = count / 4;
    [
        (Act::Opening, "opening", ends, 5, 60),
        (Act::Soak, "soak", count - 2 * ends, 30, 600),
        (Act::Closing, "closing", ends, 5, 60),
    ]
    .into_iter()
    .map(|(act, label, count, least, most)| {
        let mut at = 0;
        let numbers = (0..u64::from(count)).map(|n| {
            at += draw::between(seed, &["crash", label], n, least, most).unsigned_abs();
            at
        });
        (act, Crashes { seen: 0, at: numbers.collect() })
    })
    .collect()
}

/// `count` different members of `candidates`, chosen by `label`.
pub(super) fn choose(seed: u64, label: &str, candidates: &[usize], count: u32) -> Vec<usize> {
    let mut ranked: Vec<usize> = candidates.to_vec();
    ranked.sort_by_cached_key(|i| draw::draw(seed, &["victim", label], *i as u64));
    ranked.truncate(count as usize);
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_read_back_as_written() {
        for (name, _) in FAULTS {
            let fault = Fault::parse(name).unwrap();
            assert_eq!(fault.name(), name);
            assert_eq!(Fault::parse(&fault.to_string()), Ok(fault));
        }
        assert_eq!(Fault::parse("webhook-loss=12.5%"), Ok(Fault::WebhookLoss { per_mille: 125 }));
        assert_eq!(Fault::parse("nango-outage=10m"), Ok(Fault::NangoOutage { ms: 600_000 }));
        assert_eq!(Fault::parse(" crash = 2 "), Ok(Fault::Crash { count: 2 }));
    }

    #[test]
    fn an_unknown_fault_is_answered_with_the_list_and_the_closest() {
        let text = Fault::parse("grant-revoke").unwrap_err().to_string();
        assert!(text.contains("did you mean `grant-revoked`") && text.contains("kv-lag"), "{text}");
        for bad in ["webhook-loss=140%", "webhook-loss=NaN", "crash=-1", "kv-lag=soon", "kv-lag=1s", "crash="] {
            assert!(matches!(Fault::parse(bad), Err(FaultError::Strength { .. })), "{bad}");
        }
    }

    #[test]
    fn victims_are_distinct_and_depend_on_the_seed_only() {
        let all: Vec<usize> = (0..50).collect();
        let mut reversed = all.clone();
        reversed.reverse();
        assert_eq!(choose(3, "x", &all, 4), choose(3, "x", &reversed, 4));
        assert_ne!(choose(3, "x", &all, 4), choose(4, "x", &all, 4));
        assert_eq!(choose(3, "x", &[1, 2], 9).len(), 2);
    }
}
