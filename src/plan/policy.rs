//! What people ask of a cutover: criteria, waves, decisions, rates, prices.
//!
//! A policy is TOML in which every key is optional and unknown keys are refused; `plans/policy.toml`
//! shows all of them with their defaults. Two files that mean the same have the same digest.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Route;
use crate::domain::api::Api;
use crate::domain::budget::Limit;
pub use crate::domain::criteria::{CriteriaPolicy, Denominator};
use crate::domain::duration::Millis;
use crate::domain::time::{DAY_MS, MINUTE_MS, Timestamp};
use crate::domain::triplet::{Part, Triplet};

/// The only policy format that this program reads.
pub const POLICY_VERSION: u32 = 1;

/// Everything that people decide about a cutover.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    pub policy_version: u32,
    /// How long after its making a plan may be applied.
    pub plan_life: Millis,
    /// How long after `switch` a row can still go back.
    pub reverse_window: Millis,
    /// No step on a triplet while its token has less than this left. It must exceed the 15 minutes
    /// in which a Nango read refreshes and the 10 minutes before which the alarm fires.
    pub quiet_window: Millis,
    /// How long a probe of a vendor counts.
    pub probe_life: Millis,
    /// Triplets that stay with the gateway; each part is a name or `*`.
    pub retain: Vec<Pattern>,
    pub criteria: CriteriaPolicy,
    pub waves: WavePolicy,
    pub clients: ClientPolicy,
    pub accept: AcceptPolicy,
    pub rates: RatePolicy,
    pub prices: PriceTable,
    #[serde(skip_serializing_if = "VerifyPolicy::is_empty")]
    pub verify: VerifyPolicy,
    /// What a person decided about single triplets.
    pub decision: Vec<Decision>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            policy_version: POLICY_VERSION,
            plan_life: Millis(7 * DAY_MS),
            reverse_window: Millis(7 * DAY_MS),
            quiet_window: Millis(20 * MINUTE_MS),
            probe_life: Millis(7 * DAY_MS),
            retain: Vec::new(),
            criteria: CriteriaPolicy::default(),
            waves: WavePolicy::default(),
            clients: ClientPolicy::default(),
            accept: AcceptPolicy::default(),
            rates: RatePolicy::default(),
            prices: PriceTable::default(),
            verify: VerifyPolicy::default(),
            decision: Vec::new(),
        }
    }
}

/// What a comparison of two sides leaves out of account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyPolicy {
    pub ignore: Vec<IgnoreRule>,
}

impl VerifyPolicy {
    fn is_empty(&self) -> bool {
        self.ignore.is_empty()
    }
}

/// A field whose differences do not matter, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IgnoreRule {
    /// `name`, `value.name`, `metadata.name` or `entry.name`.
    pub field: String,
    pub reason: String,
}

/// How moving triplets are grouped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WavePolicy {
    /// Connections in the first wave, those with the fewest hazards; 0: no canary wave.
    pub canary_size: u32,
    /// Most connections in a wave, at least 1.
    pub size_max: u32,
    /// Largest share of a wave that one tenant may have, above 0 and up to 1. With fewer tenants
    /// than that allows, an equal share.
    pub tenant_share_max: f64,
    /// Least time from the start of one wave to the start of the next.
    pub spacing: Millis,
    /// The first wave starts no earlier.
    pub not_before: Option<Timestamp>,
    /// No wave starts later.
    pub not_after: Option<Timestamp>,
}

impl Default for WavePolicy {
    fn default() -> Self {
        Self {
            canary_size: 2,
            size_max: 50,
            tenant_share_max: 0.5,
            spacing: Millis(DAY_MS),
            not_before: None,
            not_after: None,
        }
    }
}

/// Which OAuth client the target's auth configs use, compared with the one Nango uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientPolicy {
    pub default: Client,
    /// By integration key.
    pub integration: BTreeMap<String, Client>,
}

impl ClientPolicy {
    pub fn of(&self, integration_key: &str) -> Client {
        self.integration.get(integration_key).copied().unwrap_or(self.default)
    }
}

/// An OAuth client seen from the one that Nango uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    /// Nobody has said: planned as if it were the same one.
    #[default]
    Unknown,
    /// Another app of ours.
    Different,
    /// The app that Nango uses.
    Same,
    /// Composio's own app.
    Managed,
}

/// Doubts that a person has accepted for the whole plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AcceptPolicy {
    /// Move rows whose toolkit slug is unconfirmed and was not probed.
    pub unconfirmed_toolkits: bool,
    /// Move rows whose second consent with the same client ends the first grant.
    pub shared_clients: bool,
    /// Move rows whose source grant lacks scopes that the provider needs.
    pub missing_scopes: bool,
}

/// Rate limits by plan tier, and how much of them we leave alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RatePolicy {
    pub nango_tier: NangoTier,
    pub composio_tier: ComposioTier,
    /// Overrides the tier, requests a minute (enterprise contracts).
    pub nango_per_minute: Option<u32>,
    /// Overrides the tier, requests a minute.
    pub composio_per_minute: Option<u32>,
    /// Cloudflare counts a user's calls over 5 minutes, all tokens together.
    pub cloudflare_per_5_minutes: u32,
    /// Requests a minute that the gateway's admin routes may be sent.
    pub gateway_per_minute: u32,
    /// Share of each limit that stays free for live traffic, 0 to below 1.
    pub reserved_share: f64,
    /// Share of Cloudflare's and Composio's limits that comparisons have beside a running shim, which
    /// leaves it alone. Above 0 and at most 0.5.
    pub comparisons_share: f64,
}

impl Default for RatePolicy {
    fn default() -> Self {
        Self {
            nango_tier: NangoTier::Starter,
            composio_tier: ComposioTier::Hobby,
            nango_per_minute: None,
            composio_per_minute: None,
            cloudflare_per_5_minutes: 1_200,
            gateway_per_minute: 600,
            reserved_share: 0.5,
            comparisons_share: 0.2,
        }
    }
}

impl RatePolicy {
    /// Requests a minute that Nango allows this account.
    pub fn nango(&self) -> u32 {
        self.nango_per_minute.unwrap_or(match self.nango_tier {
            NangoTier::Free | NangoTier::SelfHosted => 200,
            NangoTier::Starter => 1_000,
            NangoTier::Growth => 2_000,
            NangoTier::Enterprise => 5_000,
        })
    }

    /// Requests a minute that Composio allows this organisation.
    pub fn composio(&self) -> u32 {
        self.composio_per_minute.unwrap_or(match self.composio_tier {
            ComposioTier::Hobby => 2_000,
            ComposioTier::Pro => 10_000,
        })
    }

    /// What each API takes, and how much of it is ours. Nango and Composio count fixed minutes,
    /// Cloudflare any five; reads at Nango come as a stream, so its lanes need no large bursts.
    pub fn limits(&self) -> BTreeMap<Api, Limit> {
        let limit = |requests, window_ms, burst_share, comparisons_share| Limit {
            requests,
            window_ms,
            reserved_share: self.reserved_share,
            burst_share,
            comparisons_share,
        };
        let comparisons = self.comparisons_share;
        BTreeMap::from([
            (Api::Nango, limit(self.nango(), MINUTE_MS, 0.05, comparisons.min(NANGO_COMPARISONS_SHARE))),
            (Api::Composio, limit(self.composio(), MINUTE_MS, 0.25, comparisons)),
            (Api::Cloudflare, limit(self.cloudflare_per_5_minutes, 5 * MINUTE_MS, 0.25, comparisons)),
            (Api::Gateway, limit(self.gateway_per_minute, MINUTE_MS, 0.25, 0.0)),
            (Api::Provider, limit(PROVIDER_PER_MINUTE, MINUTE_MS, 0.25, PROVIDER_COMPARISONS_SHARE)),
        ])
    }
}

/// Comparisons only list at Nango, 2,000 connections a request; everything else there keeps tokens alive.
const NANGO_COMPARISONS_SHARE: f64 = 0.02;

/// The duties ask a provider about consents and failed reads only; comparisons ask about every account.
const PROVIDER_COMPARISONS_SHARE: f64 = 0.45;

/// Whoami calls a minute to one provider's host. Their limits are of many shapes, by app, by user
/// and by method, and no figure holds for all; whoami is asked a few times an hour at most, so this
/// only bounds what a defect could do. A provider's 429 shuts its host for as long as it says.
const PROVIDER_PER_MINUTE: u32 = 120;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NangoTier {
    Free,
    SelfHosted,
    /// Also pay-as-you-go.
    Starter,
    Growth,
    Enterprise,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComposioTier {
    Hobby,
    Pro,
}

/// USD prices, with the day they were looked up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PriceTable {
    /// `YYYY-MM-DD`
    pub as_of: String,
    pub nango_minimum_per_month: f64,
    /// 0 until somebody fills it in: the public figure is unconfirmed, and a verdict must not hang on it.
    pub nango_per_connection_month: f64,
    pub composio_base_per_month: f64,
    pub composio_per_account_month: f64,
    pub kv_reads_per_million: f64,
    pub kv_writes_per_million: f64,
    pub kv_lists_per_million: f64,
    /// Included each month before the prices above apply.
    pub kv_reads_included: u64,
    pub kv_writes_included: u64,
    pub kv_lists_included: u64,
}

impl Default for PriceTable {
    fn default() -> Self {
        Self {
            as_of: "2026-11-21".to_owned(),
            nango_minimum_per_month: 50.0,
            nango_per_connection_month: 0.0,
            composio_base_per_month: 0.0,
            composio_per_account_month: 0.0,
            kv_reads_per_million: 0.5,
            kv_writes_per_million: 5.0,
            kv_lists_per_million: 5.0,
            kv_reads_included: 10_000_000,
            kv_writes_included: 1_000_000,
            kv_lists_included: 1_000_000,
        }
    }
}

/// What a named person decided about one triplet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    pub triplet: Triplet,
    pub route: Route,
    pub reason: String,
    pub by: String,
}

/// `tenant:provider:account`, where each part may be `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern([Option<Part>; 3]);

impl Pattern {
    /// # Errors
    /// When the text is not three parts between `:`, each a name or `*`.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let bad = |reason: String| PolicyError::Pattern { text: text.to_owned(), reason };
        let parts: Vec<&str> = text.split(':').collect();
        let parts: [&str; 3] =
            parts.try_into().map_err(|p: Vec<_>| bad(format!("it has {} parts and needs three", p.len())))?;
        let part = |p: &str| match p {
            "*" => Ok(None),
            p => Part::new(p).map(Some).map_err(|e| bad(e.to_string())),
        };
        Ok(Self([part(parts[0])?, part(parts[1])?, part(parts[2])?]))
    }

    pub fn matches(&self, triplet: &Triplet) -> bool {
        let parts = [&triplet.tenant, &triplet.provider, &triplet.account];
        self.0.iter().zip(parts).all(|(want, have)| want.as_ref().is_none_or(|want| want == have))
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |p: &Option<Part>| p.as_ref().map_or("*".to_owned(), ToString::to_string);
        write!(f, "{}:{}:{}", part(&self.0[0]), part(&self.0[1]), part(&self.0[2]))
    }
}

impl Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// Why a text is not a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("{0}")]
    Toml(String),
    #[error("policy version {found} is not known, this program reads version {POLICY_VERSION}")]
    Version { found: u32 },
    #[error("`{key}` is {found} and must be {expected}")]
    Range { key: &'static str, found: String, expected: &'static str },
    #[error("`{key}` names `{id}`, which is no criterion; known are {}", crate::domain::criteria::CRITERIA.join(", "))]
    Criterion { key: &'static str, id: String },
    #[error("`{text}` is not a pattern such as `kahuna:*:default`: {reason}")]
    Pattern { text: String, reason: String },
    #[error("two decisions about `{triplet}`")]
    TwoDecisions { triplet: Triplet },
    #[error("the decision about `{triplet}` has an empty `{field}`")]
    EmptyDecision { triplet: Triplet, field: &'static str },
}

impl Policy {
    /// Reads a policy and checks its ranges.
    ///
    /// # Errors
    /// When it is not TOML, has an unknown key, a wrong type or a value out of range.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = toml::from_str(text).map_err(|e| PolicyError::Toml(e.to_string().trim_end().to_owned()))?;
        policy.check()?;
        Ok(policy)
    }

    fn check(&self) -> Result<(), PolicyError> {
        if self.policy_version != POLICY_VERSION {
            return Err(PolicyError::Version { found: self.policy_version });
        }
        let range = |ok: bool, key, found: String, expected| {
            if ok { Ok(()) } else { Err(PolicyError::Range { key, found, expected }) }
        };
        if let Some((key, id)) = self.criteria.unknown_criterion() {
            return Err(PolicyError::Criterion { key, id: id.to_owned() });
        }
        let w = &self.waves;
        range(w.size_max >= 1, "waves.size_max", w.size_max.to_string(), "at least 1")?;
        range(
            w.tenant_share_max > 0.0 && w.tenant_share_max <= 1.0,
            "waves.tenant_share_max",
            w.tenant_share_max.to_string(),
            "above 0 and at most 1",
        )?;
        if let (Some(from), Some(to)) = (w.not_before, w.not_after) {
            range(from <= to, "waves.not_after", to.to_string(), "at or after waves.not_before")?;
        }
        let r = &self.rates;
        range(
            (0.0..1.0).contains(&r.reserved_share),
            "rates.reserved_share",
            r.reserved_share.to_string(),
            "at least 0 and below 1",
        )?;
        range(
            r.comparisons_share > 0.0 && r.comparisons_share <= 0.5,
            "rates.comparisons_share",
            r.comparisons_share.to_string(),
            "above 0 and at most 0.5",
        )?;
        for (key, value) in [
            ("rates.nango_per_minute", r.nango()),
            ("rates.composio_per_minute", r.composio()),
            ("rates.cloudflare_per_5_minutes", r.cloudflare_per_5_minutes),
            ("rates.gateway_per_minute", r.gateway_per_minute),
        ] {
            range(value >= 1, key, value.to_string(), "at least 1")?;
        }
        let p = &self.prices;
        for (key, value) in [
            ("prices.nango_minimum_per_month", p.nango_minimum_per_month),
            ("prices.nango_per_connection_month", p.nango_per_connection_month),
            ("prices.composio_base_per_month", p.composio_base_per_month),
            ("prices.composio_per_account_month", p.composio_per_account_month),
            ("prices.kv_reads_per_million", p.kv_reads_per_million),
            ("prices.kv_writes_per_million", p.kv_writes_per_million),
            ("prices.kv_lists_per_million", p.kv_lists_per_million),
            ("criteria.cost_usd_max", self.criteria.cost_usd_max),
        ] {
            range((0.0..=1e9).contains(&value), key, value.to_string(), "between 0 and 1,000,000,000")?;
        }
        range(crate::catalogue::date(&p.as_of).is_some(), "prices.as_of", p.as_of.clone(), "a day such as 2026-11-21")?;
        for (name, share) in [
            ("criteria.delivery_rate_min", self.criteria.delivery_rate_min),
            ("criteria.parity_share_min", self.criteria.parity_share_min),
        ] {
            range((0.0..=1.0).contains(&share), name, share.to_string(), "between 0 and 1")?;
        }
        for (key, value) in [
            ("plan_life", self.plan_life),
            ("probe_life", self.probe_life),
            ("criteria.probe_every", self.criteria.probe_every),
            ("criteria.verify_every", self.criteria.verify_every),
            ("criteria.smoke_every", self.criteria.smoke_every),
        ] {
            range(value.0 > 0, key, value.to_string(), "longer than nothing")?;
        }
        range(
            self.quiet_window.0 > 15 * MINUTE_MS,
            "quiet_window",
            self.quiet_window.to_string(),
            "longer than the 15m before expiry in which a Nango read refreshes",
        )?;
        let mut seen = BTreeSet::new();
        for decision in &self.decision {
            if !seen.insert(&decision.triplet) {
                return Err(PolicyError::TwoDecisions { triplet: decision.triplet.clone() });
            }
            for (field, value) in [("reason", &decision.reason), ("by", &decision.by)] {
                if value.trim().is_empty() {
                    return Err(PolicyError::EmptyDecision { triplet: decision.triplet.clone(), field });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_policy_is_the_default() {
        assert_eq!(Policy::from_toml("").unwrap(), Policy::default());
    }

    #[test]
    fn the_sample_policy_names_every_key_with_its_default() {
        let sample = include_str!("../../plans/policy.toml");
        assert_eq!(Policy::from_toml(sample).unwrap(), Policy::default());
        let defaults = toml::Value::try_from(Policy::default()).unwrap();
        let mut keys = Vec::new();
        leaf_keys(&defaults, &mut keys);
        for key in keys {
            assert!(sample.contains(&format!("{key} =")), "the sample does not explain `{key}`");
        }
    }

    fn leaf_keys(value: &toml::Value, out: &mut Vec<String>) {
        for (key, value) in value.as_table().into_iter().flatten() {
            if value.is_table() {
                leaf_keys(value, out);
            } else if !value.as_array().is_some_and(|a| a.is_empty() && key == "decision") {
                out.push(key.clone());
            }
        }
    }

    #[test]
    fn mistakes_are_refused_by_name() {
        let decision = "[[decision]]\ntriplet=\"a:b:c\"\nroute=\"retain\"\nreason=\"r\"\nby=\"b\"\n";
        for (text, needle) in [
            ("soak = 3", "soak"),
            ("[criteria]\nsoak_day = 3", "soak_day"),
            ("policy_version = 2", "version 2"),
            ("[waves]\nsize_max = 0", "waves.size_max"),
            ("[waves]\ntenant_share_max = nan", "tenant_share_max"),
            ("[rates]\nreserved_share = 1.0", "reserved_share"),
            ("[rates]\ncomparisons_share = 0.0", "comparisons_share"),
            ("[rates]\ncomparisons_share = 0.51", "comparisons_share"),
            ("[criteria]\ndelivery_rate_min = 99.0", "delivery_rate_min"),
            ("[criteria]\nparity_share_min = 90.0", "parity_share_min"),
            ("quiet_window = \"10m\"", "quiet_window"),
            ("quiet_window = \"soon\"", "soon"),
            ("retain = [\"kahuna:*\"]", "kahuna:*"),
            ("[prices]\nas_of = \"yesterday\"", "prices.as_of"),
            ("[prices]\nkv_reads_per_million = -1.0", "kv_reads_per_million"),
            (&decision.repeat(2), "two decisions"),
            (&decision.replace("\"r\"", "\" \""), "reason"),
        ] {
            let error = Policy::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(needle), "{text}: {error}");
        }
    }

    #[test]
    fn patterns_match_by_part() {
        let t = Triplet::parse("kahuna:gong:default").unwrap();
        for (text, hit) in [("*:*:*", true), ("kahuna:*:default", true), ("*:gong:*", true), ("*:slack:*", false)] {
            assert_eq!(Pattern::parse(text).unwrap().matches(&t), hit, "{text}");
        }
    }
}
