//! Thresholds, windows and limits of the exit criteria.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::CRITERIA;
use crate::domain::duration::Millis;
use crate::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};

/// What each criterion compares with, over which window, and how much it needs to see first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CriteriaPolicy {
    /// `soak-duration`: days of evidence since the soak clock started.
    pub soak_days: u32,
    /// Replaces `soak_days` where a rehearsal in real time has less than a day. Not for policies.
    #[serde(skip)]
    pub soak_shortened: Option<Millis>,
    /// How far back a criterion looks, unless `windows` says otherwise. A breach counts as long as
    /// it lies in the window.
    pub window: Millis,
    /// Windows of single criteria, by id.
    pub windows: BTreeMap<String, Millis>,
    /// Nothing that happened within this time of the first mirrored refresh is counted.
    pub initial_delay: Millis,
    /// Criteria whose breach starts the soak clock again.
    pub restart_on: Vec<String>,
    /// How long a gate pass opens `switch` and `retire`.
    pub pass_life: Millis,
    /// Longest time that a waiver may be given for.
    pub waiver_max: Millis,
    /// `invalid-grant`: dead grants allowed; lost races are not counted.
    pub invalid_grant_max: u32,
    /// `missed-refresh`: instants at which a served token was past its expiry.
    pub missed_refresh_max: u32,
    /// `delivery-rate`: arrived over expected events, 0 to 1.
    pub delivery_rate_min: f64,
    /// What `delivery-rate` divides by.
    pub delivery_denominator: Denominator,
    /// `outage`: longest minutes that one custodian may be out of reach.
    pub outage_max_minutes: u32,
    /// `smoke-staleness`: stale tokens allowed in smoke tests.
    pub smoke_stale_max: u32,
    /// `cost`: USD a month.
    pub cost_usd_max: f64,
    /// `parity`: how many of the last verifications must be clean, one after the other.
    pub parity_clean_runs: u32,
    /// `parity`: least share of the keys, 0 to 1, that a verification must have compared to count as clean.
    pub parity_share_min: f64,
    /// `mirror-lag`: 99th percentile from observing a token to its last sink, seconds.
    pub mirror_lag_p99_s: u32,
    /// `dead-letters`
    pub dead_letters_max: u32,
    /// `foreign-writes`
    pub foreign_writes_max: u32,
    /// `ambiguous`
    pub ambiguous_max: u32,
    /// `clock-skew`: seconds against every API's `Date`.
    pub clock_skew_max_s: u32,
    /// `reverse-rehearsed`: each wave must have been reversed once.
    pub reverse_rehearsed: bool,
    /// Fewest refreshes before `invalid-grant` and `missed-refresh` are judged.
    pub refresh_samples_min: u32,
    /// Fewest expected events before `delivery-rate` is judged.
    pub delivery_samples_min: u32,
    /// Fewest deliveries before `mirror-lag` and `dead-letters` are judged.
    pub lag_samples_min: u32,
    /// Fewest smoke tests of a triplet before `smoke-staleness` is judged.
    pub smoke_samples_min: u32,
    /// Fewest calls of each custodian before `outage` is judged.
    pub probe_samples_min: u32,
    /// Fewest scans before `foreign-writes` is judged.
    pub scan_samples_min: u32,
    /// Fewest readings of the audit trail before `foreign-writes` is judged.
    pub audit_samples_min: u32,
    /// Fewest readings of each custodian's clock before `clock-skew` is judged.
    pub skew_samples_min: u32,
    /// Least soaked time from which a month's `cost` is projected.
    pub cost_after: Millis,
    /// Verifications, scans or smoke tests in a row that may find nothing to compare before their
    /// criterion counts as untold.
    pub inconclusive_in_a_row_max: u32,
    /// The same for those that got no answer.
    pub errors_in_a_row_max: u32,
    /// How often each custodian is probed; `outage` cannot see anything shorter.
    pub probe_every: Millis,
    /// How often both sides are compared.
    pub verify_every: Millis,
    /// How often each triplet is smoke-tested through the gateway.
    pub smoke_every: Millis,
    /// Longest silence of our own evidence before the soak clock pauses.
    pub evidence_gap_max: Millis,
}

impl Default for CriteriaPolicy {
    fn default() -> Self {
        Self {
            soak_days: 30,
            soak_shortened: None,
            window: Millis(30 * DAY_MS),
            windows: BTreeMap::new(),
            initial_delay: Millis(0),
            restart_on: ["invalid-grant", "missed-refresh", "outage", "smoke-staleness", "foreign-writes"]
                .map(str::to_owned)
                .into(),
            pass_life: Millis(DAY_MS),
            waiver_max: Millis(30 * DAY_MS),
            invalid_grant_max: 0,
            missed_refresh_max: 0,
            delivery_rate_min: 0.99,
            delivery_denominator: Denominator::RotationSchedule,
            outage_max_minutes: 15,
            smoke_stale_max: 0,
            cost_usd_max: 200.0,
            parity_clean_runs: 3,
            parity_share_min: 0.9,
            mirror_lag_p99_s: 120,
            dead_letters_max: 0,
            foreign_writes_max: 0,
            ambiguous_max: 0,
            clock_skew_max_s: 60,
            reverse_rehearsed: true,
            refresh_samples_min: 1,
            delivery_samples_min: 100,
            lag_samples_min: 100,
            smoke_samples_min: 24,
            probe_samples_min: 3,
            scan_samples_min: 3,
            audit_samples_min: 3,
            skew_samples_min: 3,
            cost_after: Millis(HOUR_MS),
            inconclusive_in_a_row_max: 3,
            errors_in_a_row_max: 5,
            probe_every: Millis(5 * MINUTE_MS),
            verify_every: Millis(DAY_MS / 4),
            smoke_every: Millis(DAY_MS / 24),
            evidence_gap_max: Millis(15 * MINUTE_MS),
        }
    }
}

impl CriteriaPolicy {
    /// How long the soak must last, ms.
    pub fn soak_ms(&self) -> i64 {
        self.soak_shortened.map_or(i64::from(self.soak_days) * DAY_MS, |soak| soak.0)
    }

    /// How far back the criterion `id` looks.
    pub fn window_of(&self, id: &str) -> Millis {
        self.windows.get(id).copied().unwrap_or(self.window)
    }

    /// From when the criterion `id` counts at `now`: its window, but nothing before the plan was
    /// applied or before the initial delay is over.
    pub fn counts_from(
        &self,
        id: &str,
        now: Timestamp,
        began_at: Option<Timestamp>,
        first_refresh_at: Option<Timestamp>,
    ) -> Timestamp {
        let window = now.plus_ms(-self.window_of(id).0);
        let window = began_at.map_or(window, |began_at| window.max(began_at));
        match first_refresh_at {
            Some(first) if self.initial_delay.0 > 0 => window.max(first.plus_ms(self.initial_delay.0)),
            _ => window,
        }
    }

    /// Most breaches of the criterion `id` that still pass; none where it has another kind of threshold.
    pub fn breaches_max(&self, id: &str) -> u32 {
        match id {
            "invalid-grant" => self.invalid_grant_max,
            "missed-refresh" => self.missed_refresh_max,
            "smoke-staleness" => self.smoke_stale_max,
            "dead-letters" => self.dead_letters_max,
            "foreign-writes" => self.foreign_writes_max,
            "ambiguous" => self.ambiguous_max,
            _ => 0,
        }
    }

    /// The longest time that a custodian may be out of reach, ms.
    pub fn outage_max_ms(&self) -> i64 {
        i64::from(self.outage_max_minutes) * MINUTE_MS
    }

    /// Whether a comparison that came to an end for `compared` of `keys` says enough of all of them.
    pub fn compares_enough(&self, compared: u64, keys: u64) -> bool {
        compared > 0 && compared as f64 >= self.parity_share_min * keys as f64
    }

    /// The farthest that any criterion looks back.
    pub fn window_max(&self) -> Millis {
        self.windows.values().copied().fold(self.window, Ord::max)
    }

    pub fn restarts_on(&self, id: &str) -> bool {
        self.restart_on.iter().any(|r| r == id)
    }

    /// A key that names a criterion there is not, with the name.
    pub fn unknown_criterion(&self) -> Option<(&'static str, &str)> {
        let windows = self.windows.keys().map(|id| ("criteria.windows", id.as_str()));
        let restarts = self.restart_on.iter().map(|id| ("criteria.restart_on", id.as_str()));
        windows.chain(restarts).find(|(_, id)| !CRITERIA.contains(id))
    }
}

/// What a delivery rate is a share of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Denominator {
    /// The refreshes that must have happened, from token lifetimes.
    RotationSchedule,
    /// The webhooks that arrived. Refused: Nango sends none for a successful refresh.
    Webhooks,
}
