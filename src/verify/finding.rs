//! What is said about one key, and the counts of a whole comparison.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::domain::secret::Fingerprint;

/// How strong a comparison was. Always stated; a weaker rung never cancels a difference that was
/// found on a stronger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// Presence, state, expiry, scopes: what the two sides say about the credential.
    Status,
    /// Both were seen to work.
    Liveness,
    /// Both belong to the same upstream account.
    Identity,
    /// Both are the same version of one chain, by their metadata.
    Lineage,
    /// The secrets themselves.
    Fingerprint,
}

impl Rung {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Liveness => "liveness",
            Self::Identity => "identity",
            Self::Lineage => "lineage",
            Self::Fingerprint => "fingerprint",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The outcome of comparing one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Match,
    /// Only on the left.
    Missing,
    /// Only on the right.
    Extra,
    Changed,
    /// Last written by nobody we know.
    Foreign,
    /// Different, but written too recently to tell divergence from propagation.
    Settling,
    /// Nothing differs, but a secret could not be compared.
    Unverifiable,
    /// The key could not be compared: an entry is damaged, or given several times with different content.
    Error,
}

impl Outcome {
    pub const ALL: [Self; 8] = [
        Self::Match,
        Self::Missing,
        Self::Extra,
        Self::Changed,
        Self::Foreign,
        Self::Settling,
        Self::Unverifiable,
        Self::Error,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Changed => "changed",
            Self::Foreign => "foreign",
            Self::Settling => "settling",
            Self::Unverifiable => "unverifiable",
            Self::Error => "error",
        }
    }

    /// Whether the two sides are known to differ.
    pub fn is_difference(self) -> bool {
        matches!(self, Self::Missing | Self::Extra | Self::Changed | Self::Foreign)
    }

    /// The mark in a combined report: those of `rclone check`, and `~` for settling.
    pub fn symbol(self) -> char {
        match self {
            Self::Match => '=',
            Self::Missing => '-',
            Self::Extra => '+',
            Self::Changed | Self::Foreign => '*',
            Self::Settling => '~',
            Self::Unverifiable | Self::Error => '!',
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What kind of difference it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Another upstream account: the loudest of all.
    Identity,
    Token,
    Expiry,
    /// The right has more scopes.
    Scope,
    /// The right lacks scopes that the left has.
    ScopeRegression,
    Field,
    Metadata,
    /// Two custodians say different things of the state of the credential.
    Status,
}

impl Class {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Token => "token",
            Self::Expiry => "expiry",
            Self::Scope => "scope",
            Self::ScopeRegression => "scope-regression",
            Self::Field => "field",
            Self::Metadata => "metadata",
            Self::Status => "status",
        }
    }
}

/// One difference between two entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub class: Class,
    /// `value.scope`, `metadata.v`, …
    pub field: String,
    /// How many scopes the right lacks.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lost: Option<usize>,
}

/// The longest field name that is repeated in a report, in characters.
const NAME_CHARS_MAX: usize = 64;

impl Change {
    pub(super) fn new(class: Class, field: impl Into<String>) -> Self {
        Self { class, field: field.into(), lost: None }
    }

    pub(super) fn lost(mut self, count: usize) -> Self {
        self.lost = Some(count);
        self
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.class.as_str(), self.field)?;
        self.lost.map_or(Ok(()), |lost| write!(f, " ({lost} lost)"))
    }
}

/// Foreign text for a person: control characters escaped, cut when long.
pub(super) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut out: String = text.chars().take(NAME_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(NAME_CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hand {
    Left,
    Right,
}

impl Hand {
    pub const BOTH: [Self; 2] = [Self::Left, Self::Right];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
        }
    }
}

/// What is said about one key. It holds no secret and no part of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub key: String,
    pub outcome: Outcome,
    /// The strongest rung on which the two sides were compared; `status` when only one has the key.
    pub rung: Rung,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub changes: Vec<Change>,
    /// The sides whose metadata is not ours, when that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub foreign: Vec<Hand>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Unified diff of the redacted entries.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub diff: Option<String>,
    /// What each side said when it was looked at, while that is not final: see [`super::settle`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) seen: Option<Seen>,
}

/// Keyed digests of what the left and the right side said of a key; `None`: nothing.
pub(super) type Seen = [Option<Fingerprint>; 2];

impl Finding {
    /// Whether the credential of the right side belongs to another upstream account, whatever else is
    /// said of it.
    pub fn is_of_another_account(&self) -> bool {
        self.changes.iter().any(|change| change.class == Class::Identity)
    }
}

/// Keys per outcome and rung.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    by: BTreeMap<Outcome, BTreeMap<Rung, u64>>,
    /// Entries that were read, on the left and on the right.
    pub entries: [u64; 2],
    /// Entries that repeat another one in everything that matters.
    pub repeated: u64,
    /// Entries that could not be compared because the other side broke off.
    pub not_compared: u64,
}

impl Counts {
    pub(super) fn add(&mut self, outcome: Outcome, rung: Rung, n: u64) {
        if n > 0 {
            *self.by.entry(outcome).or_default().entry(rung).or_default() += n;
        }
    }

    pub(super) fn of_entries(entries: [u64; 2]) -> Self {
        Self { entries, ..Self::default() }
    }

    /// Takes back one that was added.
    pub(super) fn take(&mut self, outcome: Outcome, rung: Rung) {
        let Some(rungs) = self.by.get_mut(&outcome) else { return };
        if let Some(n) = rungs.get_mut(&rung) {
            *n = n.saturating_sub(1);
        }
        rungs.retain(|_, n| *n > 0);
        self.by.retain(|_, rungs| !rungs.is_empty());
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (outcome, rungs) in &other.by {
            rungs.iter().for_each(|(rung, n)| self.add(*outcome, *rung, *n));
        }
        self.entries[0] += other.entries[0];
        self.entries[1] += other.entries[1];
        self.repeated += other.repeated;
        self.not_compared += other.not_compared;
    }

    /// Keys that a report lists: all but the matches, or all.
    pub(super) fn listed(&self, all: bool) -> u64 {
        let listed = Outcome::ALL.into_iter().filter(|outcome| all || *outcome != Outcome::Match);
        listed.map(|outcome| self.of(outcome)).sum()
    }

    /// Keys that are known to differ.
    pub fn differing(&self) -> u64 {
        Outcome::ALL.into_iter().filter(|outcome| outcome.is_difference()).map(|outcome| self.of(outcome)).sum()
    }

    /// Keys that were compared, whatever came of it.
    pub fn compared(&self) -> u64 {
        self.listed(true)
    }

    pub fn of(&self, outcome: Outcome) -> u64 {
        self.by.get(&outcome).map_or(0, |rungs| rungs.values().sum())
    }

    /// Keys of this outcome per rung, the strongest rung first.
    pub fn rungs(&self, outcome: Outcome) -> impl Iterator<Item = (Rung, u64)> {
        self.by.get(&outcome).into_iter().flat_map(|rungs| rungs.iter().rev().map(|(rung, n)| (*rung, *n)))
    }
}

/// Something in the input that could not be used, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    pub side: Hand,
    /// Name of the file or side.
    pub source: String,
    /// Number of the entry, from 1; for lines of JSON the line number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entry: Option<u64>,
    /// Byte offset in the (decompressed) input.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
    /// What was found, what was expected.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        if let Some(entry) = self.entry {
            write!(f, ":{entry}")?;
        }
        match self.offset {
            Some(offset) => write!(f, ": byte {offset}: {}", self.message)?,
            None => write!(f, ": {}", self.message)?,
        }
        self.key.as_ref().map_or(Ok(()), |key| write!(f, " (key `{}`)", shown(key.as_bytes())))
    }
}

/// How many diagnostics are kept in full. The first hundred tell what is wrong with a file; a
/// million more would only fill the memory.
pub(super) const DIAGNOSTICS_MAX: usize = 100;

/// All that could not be used: the first ones in full, the rest counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostics {
    pub shown: Vec<Diagnostic>,
    pub total: u64,
}

impl Diagnostics {
    pub(super) fn add(&mut self, diagnostic: Diagnostic) {
        self.total += 1;
        if self.shown.len() < DIAGNOSTICS_MAX {
            self.shown.push(diagnostic);
        }
    }

    pub(super) fn append(&mut self, other: Self) {
        self.total += other.total;
        let room = DIAGNOSTICS_MAX.saturating_sub(self.shown.len());
        self.shown.extend(other.shown.into_iter().take(room));
    }
}
