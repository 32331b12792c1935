//! Refuses criteria that could never be judged with the evidence there will be.
//!
//! A threshold that no measurement can settle is worse than none: it ends as a pass by silence or
//! as a soak that nobody can finish. Each finding names the criterion and says what to change.

use super::Plan;
use super::policy::{Denominator, Policy};
use crate::domain::criteria::CRITERIA;
use crate::domain::time::DAY_MS;

/// A criterion that cannot be measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("criterion `{criterion}` cannot be measured: {reason}")]
pub struct Finding {
    pub criterion: &'static str,
    pub reason: String,
    /// What to change.
    pub hint: String,
}

/// What there will be to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Triplets that move.
    pub moving: u64,
    /// Tokens that must change a day, by the rotation schedule.
    pub rotations_per_day: u64,
}

impl Evidence {
    pub fn of(plan: &Plan) -> Self {
        let moving = plan.rows.iter().filter(|r| r.route.moves()).count() as u64;
        Self { moving, rotations_per_day: plan.budget.rotations_per_day }
    }
}

/// All criteria of the policy that cannot be measured.
pub fn lint(policy: &Policy, evidence: Evidence) -> Vec<Finding> {
    let c = &policy.criteria;
    let mut out = Vec::new();
    let mut refuse = |bad: bool, criterion, reason: String, hint: &str| {
        if bad {
            out.push(Finding { criterion, reason, hint: hint.to_owned() });
        }
    };
    let days = u64::from(c.soak_days);
    let runs = |every: crate::domain::duration::Millis| days * DAY_MS as u64 / every.0.max(1) as u64;
    let expected = evidence.rotations_per_day * days;
    let moving = evidence.moving > 0;

    refuse(
        days == 0,
        "soak-duration",
        "a soak of 0 days observes nothing".into(),
        "set criteria.soak_days to 1 or more",
    );
    refuse(
        c.evidence_gap_max < c.probe_every,
        "soak-duration",
        format!("with a probe every {}, every gap is longer than {}", c.probe_every, c.evidence_gap_max),
        "make criteria.evidence_gap_max longer than criteria.probe_every",
    );
    refuse(
        c.delivery_denominator == Denominator::Webhooks,
        "delivery-rate",
        "Nango sends no webhook for a successful refresh, and one that is lost would leave the sum on both sides"
            .into(),
        "set criteria.delivery_denominator to \"rotation-schedule\"",
    );
    for (criterion, key, wanted) in [
        ("delivery-rate", "delivery_samples_min", c.delivery_samples_min),
        ("mirror-lag", "lag_samples_min", c.lag_samples_min),
    ] {
        refuse(
            moving && days > 0 && expected < u64::from(wanted),
            criterion,
            format!("the rotation schedule expects {expected} events in {days} days and {wanted} samples are wanted"),
            &format!("lower criteria.{key} or lengthen the soak"),
        );
    }
    let smokes = runs(c.smoke_every);
    refuse(
        moving && days > 0 && smokes < u64::from(c.smoke_samples_min),
        "smoke-staleness",
        format!("a smoke test every {} gives {smokes} samples and {} are wanted", c.smoke_every, c.smoke_samples_min),
        "shorten criteria.smoke_every or lower criteria.smoke_samples_min",
    );
    for (criterion, key, wanted) in [
        ("delivery-rate", "delivery_samples_min", c.delivery_samples_min),
        ("mirror-lag", "lag_samples_min", c.lag_samples_min),
        ("smoke-staleness", "smoke_samples_min", c.smoke_samples_min),
        ("parity", "parity_clean_runs", c.parity_clean_runs),
        ("invalid-grant", "refresh_samples_min", c.refresh_samples_min),
        ("outage", "probe_samples_min", c.probe_samples_min),
        ("foreign-writes", "scan_samples_min", c.scan_samples_min),
        ("foreign-writes", "audit_samples_min", c.audit_samples_min),
        ("clock-skew", "skew_samples_min", c.skew_samples_min),
    ] {
        refuse(
            wanted == 0,
            criterion,
            "with 0 samples wanted it would pass without evidence".into(),
            &format!("set criteria.{key} to 1 or more"),
        );
    }
    for id in CRITERIA {
        let window = c.window_of(id);
        refuse(
            window.0 <= 0,
            id,
            format!("in a window of {window} it would see nothing and pass"),
            &format!("set criteria.window or criteria.windows.{id} to an hour or more"),
        );
    }
    refuse(
        c.parity_share_min <= 0.0,
        "parity",
        "with a share of 0 a comparison of one key would count as one of all".into(),
        "set criteria.parity_share_min to 0.5 or more",
    );
    let verifications = runs(c.verify_every);
    refuse(
        days > 0 && verifications < u64::from(c.parity_clean_runs),
        "parity",
        format!("a verification every {} gives {verifications} in {days} days", c.verify_every),
        "shorten criteria.verify_every or lower criteria.parity_clean_runs",
    );
    refuse(
        c.mirror_lag_p99_s == 0,
        "mirror-lag",
        "no delivery takes 0 seconds".into(),
        "set criteria.mirror_lag_p99_s to 1 or more",
    );
    refuse(
        i64::from(c.outage_max_minutes) * 60_000 < 2 * c.probe_every.0,
        "outage",
        format!(
            "a probe every {} cannot tell an outage of {} min from a single lost answer",
            c.probe_every, c.outage_max_minutes
        ),
        "probe at least twice within criteria.outage_max_minutes",
    );
    refuse(
        c.clock_skew_max_s < 2,
        "clock-skew",
        "a Date header has whole seconds, so two honest clocks may differ by one".into(),
        "set criteria.clock_skew_max_s to 2 or more",
    );
    let p = &policy.prices;
    refuse(
        p.nango_minimum_per_month == 0.0
            && p.nango_per_connection_month == 0.0
            && p.composio_base_per_month == 0.0
            && p.composio_per_account_month == 0.0,
        "cost",
        "the price table has no price of either custodian".into(),
        "fill in [prices]",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Evidence = Evidence { moving: 24, rotations_per_day: 500 };

    #[test]
    fn the_defaults_can_be_measured() {
        assert_eq!(lint(&Policy::default(), PLENTY), []);
    }

    #[test]
    fn what_cannot_be_measured_is_refused_with_the_reason() {
        for (toml, criterion) in [
            ("delivery_denominator = \"webhooks\"", "delivery-rate"),
            ("soak_days = 0", "soak-duration"),
            ("evidence_gap_max = \"10s\"", "soak-duration"),
            ("delivery_samples_min = 1000000", "delivery-rate"),
            ("lag_samples_min = 1000000", "mirror-lag"),
            ("smoke_samples_min = 1000", "smoke-staleness"),
            ("smoke_samples_min = 0", "smoke-staleness"),
            ("parity_clean_runs = 0", "parity"),
            ("refresh_samples_min = 0", "invalid-grant"),
            ("probe_samples_min = 0", "outage"),
            ("scan_samples_min = 0", "foreign-writes"),
            ("audit_samples_min = 0", "foreign-writes"),
            ("parity_share_min = 0.0", "parity"),
            ("skew_samples_min = 0", "clock-skew"),
            ("windows = { mirror-lag = \"0s\" }", "mirror-lag"),
            ("parity_clean_runs = 1000", "parity"),
            ("mirror_lag_p99_s = 0", "mirror-lag"),
            ("outage_max_minutes = 1", "outage"),
            ("clock_skew_max_s = 0", "clock-skew"),
        ] {
            let policy = Policy::from_toml(&format!("[criteria]\n{toml}")).unwrap();
            let findings = lint(&policy, PLENTY);
            assert_eq!(findings.iter().map(|f| f.criterion).collect::<Vec<_>>(), [criterion], "{toml}");
        }
    }

    #[test]
    fn a_free_custodian_leaves_nothing_to_add_up() {
        let toml = "[prices]\nnango_minimum_per_month = 0.0\nnango_per_connection_month = 0.0";
        assert_eq!(lint(&Policy::from_toml(toml).unwrap(), PLENTY)[0].criterion, "cost");
    }

    #[test]
    fn tokens_that_never_rotate_leave_no_rate_to_measure() {
        let findings = lint(&Policy::default(), Evidence { moving: 2, rotations_per_day: 0 });
        assert_eq!(findings.len(), 2);
        assert_eq!(lint(&Policy::default(), Evidence { moving: 0, rotations_per_day: 0 }), []);
    }
}
