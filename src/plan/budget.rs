//! What a plan asks of each API, and what it costs a month.
//!
//! The counts are upper estimates from token lifetimes, so that a tier which is too small shows
//! before the soak does. Counts per API follow the calls that the engine makes.

use std::ops::{Add, AddAssign};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::policy::Policy;
use crate::catalogue::Integration;
use crate::domain::api::Api;

const DAY_S: u64 = 86_400;
/// The poller asks 14 minutes before expiry, inside the 15 in which Nango refreshes.
const POLL_BEFORE_EXPIRY_S: u64 = 14 * 60;
/// Where Nango knows no expiry or a token lives less than 15 minutes, a fixed period below 15 minutes.
const POLL_FIXED_S: u64 = 14 * 60;
const DAYS_PER_MONTH: u64 = 30;
/// Both KV namespaces.
const KV_SINKS: u64 = 2;
const KV_LIST_PAGE: u64 = 1_000;
const KV_BULK_PUT: u64 = 10_000;
const NANGO_PAGE: u64 = 2_000;
const COMPOSIO_PAGE: u64 = 50;
const ALARMS_PAGE: u64 = 1_000;
const SMOKE_BATCH: u64 = 100;

/// An amount of US dollars, in whole millionths; a decimal number in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd(i64);

impl Usd {
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Rounds to the nearest millionth.
    pub fn from_f64(usd: f64) -> Self {
        Self((usd * 1e6).round() as i64)
    }

    pub fn to_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    fn times(self, n: u64) -> Self {
        Self(self.0.saturating_mul(i64::try_from(n).unwrap_or(i64::MAX)))
    }

    /// This price per million of `n`.
    fn per_million(self, n: u64) -> Self {
        Self((i128::from(self.0) * i128::from(n) / 1_000_000).try_into().unwrap_or(i64::MAX))
    }
}

impl Add for Usd {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Usd {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::fmt::Display for Usd {
    /// `1,234.50`, rounded up to the cent so that nothing looks free which is not.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cents = self.0.max(0) as u64;
        let cents = cents.div_ceil(10_000);
        write!(f, "{}.{:02}", grouped(cents / 100), cents % 100)
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.to_f64())
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        f64::deserialize(d).map(Self::from_f64)
    }
}

/// `1234567` as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// What one row needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Requests at all APIs until the mirror stands.
    pub requests_apply: u32,
    /// Requests a day at all APIs during the soak.
    pub requests_per_day: u32,
    /// Requests at all APIs for consent and switch.
    pub requests_switch: u32,
    /// What the row adds to a month of soak, before any included quota.
    pub usd_per_month: Usd,
}

/// What the whole plan needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub apis: Vec<ApiBudget>,
    /// Minutes until the mirror stands, at the rates that are left over: the slowest API decides.
    pub minutes_apply: u64,
    /// Minutes of requests for consents and switches, without the people.
    pub minutes_switch: u64,
    /// Tokens that must change a day, by the rotation schedule.
    pub rotations_per_day: u64,
    pub kv_reads_per_month: u64,
    pub kv_writes_per_month: u64,
    pub kv_lists_per_month: u64,
    /// USD a month today, during the soak, and after Nango is retired.
    pub usd_now: Usd,
    pub usd_soak: Usd,
    pub usd_after: Usd,
    pub prices_as_of: String,
}

/// Requests at one API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiBudget {
    pub api: Api,
    pub limit_per_minute: u64,
    /// What live traffic leaves.
    pub available_per_minute: u64,
    pub apply: u64,
    pub soak_per_day: u64,
    /// One verification.
    pub verify: u64,
    pub switch: u64,
}

impl ApiBudget {
    /// Average requests a minute during the soak, rounded up.
    pub const fn soak_per_minute(&self) -> u64 {
        self.soak_per_day.div_ceil(24 * 60)
    }
}

/// How often a connection is read and how often its token changes, a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cadence {
    pub polls: u64,
    pub rotations: u64,
}

impl Cadence {
    /// From what the catalogue says of the integration; a static secret is read once a day.
    pub fn of(integration: Option<&Integration>) -> Self {
        let Some(integration) = integration else { return Self { polls: 1, rotations: 0 } };
        match integration.access_token_ttl_s {
            None => Self { polls: 1, rotations: 0 },
            Some(ttl) if !integration.expiry_at_source => {
                Self { polls: DAY_S.div_ceil(POLL_FIXED_S), rotations: DAY_S.div_ceil(ttl.max(1)) }
            }
            Some(ttl) => {
                let every = if ttl > 15 * 60 { ttl - POLL_BEFORE_EXPIRY_S } else { POLL_FIXED_S };
                let polls = DAY_S.div_ceil(every);
                Self { polls, rotations: polls }
            }
        }
    }
}

/// One moving source grant, as the budget sees it.
#[derive(Clone, Copy, Debug)]
pub struct MovingGrant {
    pub cadence: Cadence,
    pub triplets: u64,
    pub reconsents: u64,
}

/// The share of one triplet.
pub fn row_cost(policy: &Policy, cadence: Cadence, siblings: u64, reconsent: bool) -> Cost {
    let siblings = siblings.max(1);
    // Composio: look, create. Gateway: alarm mode. Nango: one read, shared by the siblings.
    let apply = 2 + 1 + u64::from(siblings == 1);
    // Composio: one patch a rotation. Cloudflare: two puts and an audit row, shared by the siblings.
    let per_day = cadence.rotations + (cadence.polls + 3 * cadence.rotations).div_ceil(siblings);
    let switch = if reconsent { CONSENT_REQUESTS + 1 } else { 1 };
    let prices = &policy.prices;
    let kv = Usd::from_f64(prices.kv_writes_per_million).per_million(cadence.rotations * KV_SINKS * DAYS_PER_MONTH);
    let nango = Usd((prices.nango_per_connection_month * 1e6 / siblings as f64).round() as i64);
    Cost {
        requests_apply: apply as u32,
        requests_per_day: u32::try_from(per_day).unwrap_or(u32::MAX),
        requests_switch: switch as u32,
        usd_per_month: nango + Usd::from_f64(prices.composio_per_account_month) + kv,
    }
}

/// Composio: the link, three looks until it is active, whoami through the proxy.
const CONSENT_REQUESTS: u64 = 5;

/// Adds everything up. `connections` and `triplets` count the whole inventory, `toolkits` and
/// `waves` what moves.
pub fn total(
    policy: &Policy,
    grants: impl Iterator<Item = MovingGrant>,
    connections: u64,
    triplets: u64,
    toolkits: u64,
    waves: u64,
) -> Budget {
    let (mut moving, mut reads, mut polls, mut patches, mut puts, mut reconsents) = (0, 0, 0, 0, 0, 0);
    for grant in grants {
        moving += grant.triplets;
        reads += 1;
        polls += grant.cadence.polls;
        puts += grant.cadence.rotations;
        patches += grant.cadence.rotations * grant.triplets;
        reconsents += grant.reconsents;
    }
    let runs = |every: crate::domain::duration::Millis| (DAY_S * 1000).div_ceil(every.0.max(1) as u64);
    let (verifies, smokes) = (runs(policy.criteria.verify_every), runs(policy.criteria.smoke_every));
    let kv_pages = moving.div_ceil(KV_LIST_PAGE) * KV_SINKS;
    let left = |limit: u64| ((limit as f64 * (1.0 - policy.rates.reserved_share)) as u64).max(1);
    let api = |api, limit, apply, soak_per_day, verify, switch| ApiBudget {
        api,
        limit_per_minute: limit,
        available_per_minute: left(limit),
        apply,
        soak_per_day,
        verify,
        switch,
    };
    let nango_lists = connections.div_ceil(NANGO_PAGE);
    let composio_lists = (moving * 2).div_ceil(COMPOSIO_PAGE);
    let alarm_lists = moving.div_ceil(ALARMS_PAGE);
    let apis = vec![
        api(
            Api::Nango,
            policy.rates.nango().into(),
            nango_lists + 1 + reads,
            polls + verifies * nango_lists,
            nango_lists,
            0,
        ),
        api(
            Api::Composio,
            policy.rates.composio().into(),
            toolkits * 2 + composio_lists + moving * 2,
            patches + verifies * composio_lists,
            composio_lists,
            reconsents * CONSENT_REQUESTS,
        ),
        api(
            Api::Cloudflare,
            u64::from(policy.rates.cloudflare_per_5_minutes).div_ceil(5),
            kv_pages + moving.div_ceil(KV_BULK_PUT) * KV_SINKS,
            // Two puts and an audit row for each rotation that the poller sees.
            puts * 3 + verifies * kv_pages,
            kv_pages,
            moving,
        ),
        api(
            Api::Gateway,
            policy.rates.gateway_per_minute.into(),
            alarm_lists + moving,
            smokes * moving.div_ceil(SMOKE_BATCH),
            alarm_lists,
            moving.div_ceil(SMOKE_BATCH).max(waves.min(moving)),
        ),
    ];
    let minutes =
        |n: fn(&ApiBudget) -> u64| apis.iter().map(|a| n(a).div_ceil(a.available_per_minute)).max().unwrap_or(0);
    let (minutes_apply, minutes_switch) = (minutes(|a| a.apply), minutes(|a| a.switch));
    let prices = &policy.prices;
    let kv_writes = patches * KV_SINKS * DAYS_PER_MONTH;
    let kv_lists = verifies * kv_pages * DAYS_PER_MONTH;
    // A smoke test reads the authority record and the token.
    let kv_reads = smokes * moving * 2 * DAYS_PER_MONTH;
    let kv = |reads: u64, writes: u64, lists: u64| {
        Usd::from_f64(prices.kv_reads_per_million).per_million(reads.saturating_sub(prices.kv_reads_included))
            + Usd::from_f64(prices.kv_writes_per_million).per_million(writes.saturating_sub(prices.kv_writes_included))
            + Usd::from_f64(prices.kv_lists_per_million).per_million(lists.saturating_sub(prices.kv_lists_included))
    };
    let nango = |n: u64| {
        if n == 0 {
            return Usd::default();
        }
        Usd::from_f64(prices.nango_per_connection_month).times(n).max(Usd::from_f64(prices.nango_minimum_per_month))
    };
    let composio = |accounts: u64| {
        Usd::from_f64(prices.composio_base_per_month) + Usd::from_f64(prices.composio_per_account_month).times(accounts)
    };
    // A connection stays at Nango while one of its triplets does.
    let staying = connections - reads.min(connections);
    Budget {
        minutes_apply,
        minutes_switch,
        rotations_per_day: patches,
        kv_reads_per_month: kv_reads,
        kv_writes_per_month: kv_writes,
        kv_lists_per_month: kv_lists,
        usd_now: nango(connections) + kv(0, kv_writes / KV_SINKS, 0),
        usd_soak: nango(connections) + composio(moving + reconsents) + kv(kv_reads, kv_writes, kv_lists),
        usd_after: nango(staying.min(triplets)) + composio(moving),
        prices_as_of: prices.as_of.clone(),
        apis,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_follows_the_life_of_the_token() {
        let catalogue = crate::catalogue::Catalogue::built_in();
        let cadence = |key| Cadence::of(catalogue.integration(key));
        assert_eq!(cadence("google"), Cadence { polls: 32, rotations: 32 });
        assert_eq!(cadence("hubspot"), Cadence { polls: 90, rotations: 90 });
        assert_eq!(cadence("salesforce"), Cadence { polls: 103, rotations: 12 });
        assert_eq!(cadence("github"), Cadence { polls: 1, rotations: 0 });
    }

    #[test]
    fn money_is_exact_and_rounds_up_for_people() {
        assert_eq!(Usd::from_f64(1234.5).to_string(), "1,234.50");
        assert_eq!(Usd::from_micros(1).to_string(), "0.01");
        let json = serde_json::to_string(&Usd::from_f64(0.29)).unwrap();
        assert_eq!((json.as_str(), serde_json::from_str::<Usd>(&json).unwrap()), ("0.29", Usd::from_f64(0.29)));
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
