//! The world's own truth: which tokens were handed out, where they arrived, and what broke.
//!
//! Nothing in here asks the code under test. A version counts as lost when Nango handed it out
//! and neither it nor a newer one reached a live sink before the token it replaces died.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::domain::time::{HOUR_MS, MINUTE_MS, Timestamp};
use crate::domain::triplet::Triplet;

use super::provider::{Party, Refusal, TokenAnswer, TokenRef};
use super::world::World;

/// A version that was handed out late (after its predecessor died) still gets this long.
const LATE_GRACE_MS: i64 = MINUTE_MS;

/// Incidents kept; later ones are only counted.
const INCIDENTS_MAX: usize = 50;

/// A place that tokens are mirrored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sink {
    KvSource,
    KvTarget,
    Composio,
}

impl Sink {
    pub const ALL: [Self; 3] = [Self::KvSource, Self::KvTarget, Self::Composio];

    const fn name(self) -> &'static str {
        match self {
            Self::KvSource => "kv.source",
            Self::KvTarget => "kv.target",
            Self::Composio => "composio",
        }
    }
}

/// What the world saw, counted over moving triplets only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LedgerSummary {
    /// Refreshes by Nango.
    pub rotations: u64,
    /// Token writes that a sink accepted through its API.
    pub deliveries: u64,
    /// Per triplet and live sink: versions that never arrived in time, nor anything newer.
    pub lost: u64,
    /// Minutes in which the gateway would have served a credential that was absent, expired,
    /// revoked or somebody else's.
    pub stale_reads: u64,
    /// Writes of a token minted earlier than the one it replaced, or of somebody else's token.
    pub regressions: u64,
    /// Refreshes by a second party while the first one's token had over ten minutes to live, and
    /// rotated refresh tokens presented again.
    pub double_refreshes: u64,
    /// Writes past the mirror to a KV key that is mirrored.
    pub foreign_writes: u64,
    /// Reads of a Nango connection that may refresh (credential scope).
    pub refreshing_reads: u64,
    /// Requests by API and method.
    pub requests: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Keys written or deleted in KV over REST.
    pub kv_writes: u64,
    /// Rows in D1 `kv_audit`.
    pub audit_rows: u64,
    /// How many incidents there were; the list holds the first 50.
    pub incidents_total: u64,
    pub incidents: Vec<Incident>,
}

/// Something that should not have happened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Incident {
    pub at: Timestamp,
    pub triplet: Option<Triplet>,
    pub what: String,
}

#[derive(Clone, Debug, Default)]
struct SinkState {
    live: bool,
    held: Option<TokenRef>,
    /// Versions on their way, with the instant by which they must arrive.
    pending: Vec<(TokenRef, Timestamp)>,
}

#[derive(Clone, Debug, Default)]
struct Account {
    /// The newest version that Nango handed out.
    handed: Option<TokenRef>,
    sinks: [SinkState; 3],
}

/// The running books.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    pub counts: LedgerSummary,
    accounts: Vec<Account>,
}

impl Ledger {
    pub fn new(triplets: usize) -> Self {
        Self { counts: LedgerSummary::default(), accounts: vec![Account::default(); triplets] }
    }

    pub fn incident(&mut self, at: Timestamp, triplet: Option<&Triplet>, what: impl Into<String>) {
        self.counts.incidents_total += 1;
        if self.counts.incidents.len() < INCIDENTS_MAX {
            self.counts.incidents.push(Incident { at, triplet: triplet.cloned(), what: what.into() });
        }
    }
}

impl World {
    /// Nango handed out `token` over HTTP.
    pub(super) fn ledger_handed_out(&mut self, row: usize, token: TokenRef) {
        let now = self.now();
        for triplet in self.rows[row].triplets.clone() {
            if !self.triplets[triplet].moving {
                continue;
            }
            self.ledger_sweep(triplet);
            let account = &mut self.ledger.accounts[triplet];
            if account.handed.is_some_and(|h| !h.older_than(&token)) {
                continue;
            }
            let before = account.handed.replace(token);
            for state in account.sinks.iter_mut().filter(|s| s.live) {
                if state.held.is_some_and(|h| !h.older_than(&token)) {
                    continue;
                }
                let replaced = before.or(state.held).and_then(|t| t.expires_at);
                let deadline = replaced.or(token.expires_at).unwrap_or(now.plus_ms(HOUR_MS));
                state.pending.push((token, deadline.max(now.plus_ms(LATE_GRACE_MS))));
            }
        }
    }

    /// A sink accepted the token `text` for a triplet through its API.
    pub(super) fn ledger_delivered(&mut self, triplet: usize, sink: Sink, text: &str) {
        if !self.triplets[triplet].moving {
            return;
        }
        self.ledger_sweep(triplet);
        let now = self.now();
        self.ledger.counts.deliveries += 1;
        let name = self.triplets[triplet].triplet.clone();
        let token = self.providers.find(text);
        let own = |t: &TokenRef| self.providers.grants[t.grant].row == Some(self.triplets[triplet].row);
        let token = token.filter(own);
        let account = &mut self.ledger.accounts[triplet];
        let handed = account.handed;
        let state = &mut account.sinks[sink as usize];
        let was_live = std::mem::replace(&mut state.live, true);
        let Some(token) = token else {
            // The right version is not there any more, and what replaced it proves nothing.
            self.ledger.counts.regressions += 1;
            let what = format!("{} was given a token that is not this triplet's", sink.name());
            self.ledger.incident(now, Some(&name), what);
            return;
        };
        state.pending.retain(|(waiting, _)| token.older_than(waiting));
        if let Some(newer) = handed.filter(|h| !was_live && token.older_than(h)) {
            // The sink begins with a version that Nango had already replaced: the newer one is due.
            let deadline = token.expires_at.unwrap_or(now.plus_ms(HOUR_MS)).max(now.plus_ms(LATE_GRACE_MS));
            state.pending.push((newer, deadline));
        }
        let held = state.held.replace(token);
        if held.is_some_and(|h| token.older_than(&h)) {
            self.ledger.counts.regressions += 1;
            self.ledger.incident(now, Some(&name), format!("{} went back to an older token", sink.name()));
        }
    }

    /// Something wrote a token to KV past the mirror (a TokenManager object, the webhook route).
    pub(super) fn ledger_foreign_write(&mut self, triplet: usize, sink: Sink, text: &str, by: &str) {
        if !self.triplets[triplet].moving {
            return;
        }
        let now = self.now();
        let token = self.providers.find(text);
        let state = &mut self.ledger.accounts[triplet].sinks[sink as usize];
        let (live, held) = (state.live, state.held);
        if let Some(token) = token {
            state.held = Some(token);
            state.pending.retain(|(waiting, _)| token.older_than(waiting));
        }
        let name = self.triplets[triplet].triplet.clone();
        if live {
            self.ledger.counts.foreign_writes += 1;
            self.ledger.incident(now, Some(&name), format!("{by} wrote to {} past the mirror", sink.name()));
        }
        if held.zip(token).is_some_and(|(h, t)| t.older_than(&h)) {
            self.ledger.counts.regressions += 1;
            self.ledger.incident(now, Some(&name), format!("{by} put an older token into {}", sink.name()));
        }
    }

    /// A sink is not mirrored to any more: the entry was deleted, or reads moved to the target.
    pub(super) fn ledger_closed(&mut self, triplet: usize, sinks: &[Sink]) {
        self.ledger_sweep(triplet);
        for sink in sinks {
            self.ledger.accounts[triplet].sinks[*sink as usize] = SinkState::default();
        }
    }

    /// Moves versions whose time is over from pending to lost.
    fn ledger_sweep(&mut self, triplet: usize) {
        let now = self.now();
        let account = &mut self.ledger.accounts[triplet];
        let mut late = Vec::new();
        for sink in Sink::ALL {
            account.sinks[sink as usize].pending.retain(|(_, deadline)| {
                if *deadline < now {
                    late.push((sink, *deadline));
                }
                *deadline >= now
            });
        }
        for (sink, deadline) in late {
            self.ledger.counts.lost += 1;
            let name = self.triplets[triplet].triplet.clone();
            self.ledger.incident(deadline, Some(&name), format!("{} missed a token version", sink.name()));
        }
    }

    /// A refresh at the provider, with its entry in the books.
    pub(super) fn refresh_grant(&mut self, refresh_token: &str, by: Party) -> Result<TokenAnswer, Refusal> {
        let now = self.now();
        let provider = self.providers.grant_of_refresh(refresh_token).map(|g| self.providers.grants[g].integration);
        let told = provider.and_then(|i| self.scripts.take_token(self.providers.key(i)));
        let report = self.providers.refresh(refresh_token, by, now, told);
        let row = report.grant.and_then(|g| self.providers.grants[g].row);
        let moving = report.grant.is_some()
            && row.is_none_or(|r| self.rows[r].triplets.iter().any(|t| self.triplets[*t].moving));
        if moving {
            if by == Party::Nango && report.result.is_ok() {
                self.ledger.counts.rotations += 1;
            }
            if report.presented_spent || (report.raced.is_some() && report.result.is_ok()) {
                self.ledger.counts.double_refreshes += 1;
                let name = row.and_then(|r| self.rows[r].triplets.first()).map(|t| self.triplets[*t].triplet.clone());
                let what = match report.raced {
                    Some(other) => format!("{by:?} refreshed a grant that {other:?} had just refreshed"),
                    None => format!("{by:?} presented a spent refresh token"),
                };
                self.ledger.incident(now, name.as_ref(), what);
            }
        }
        report.result
    }

    /// Refreshes by Nango so far, without the work of a whole verdict.
    pub fn rotations(&self) -> u64 {
        self.ledger.counts.rotations
    }

    /// The world's verdict so far. Versions on their way count as lost once their time is over.
    pub fn ledger(&self) -> LedgerSummary {
        let now = self.now();
        let mut summary = self.ledger.counts.clone();
        let mut note = |triplet: usize, at: Timestamp, what: String| {
            summary.incidents_total += 1;
            if summary.incidents.len() < INCIDENTS_MAX {
                let triplet = Some(self.triplets[triplet].triplet.clone());
                summary.incidents.push(Incident { at, triplet, what });
            }
        };
        let (mut lost, mut stale) = (0, 0);
        for (i, account) in self.ledger.accounts.iter().enumerate() {
            for sink in Sink::ALL {
                for (_, deadline) in account.sinks[sink as usize].pending.iter().filter(|(_, d)| *d < now) {
                    lost += 1;
                    note(i, *deadline, format!("{} missed a token version", sink.name()));
                }
            }
            let (minutes, first) = self.unsettled_stale(i);
            if minutes > 0 && self.triplets[i].moving {
                stale += minutes;
                note(i, first, format!("the gateway served a dead credential for {minutes} minute(s)"));
            }
        }
        summary.lost += lost;
        summary.stale_reads += stale;
        summary.audit_rows = self.cloudflare.audit.rows();
        summary.incidents.sort();
        summary
    }
}
