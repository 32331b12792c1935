//! How time passes in a rehearsal.
//!
//! Virtual time jumps to whatever is due next. The Workers runtime cannot jump: there the same
//! engine, the same gate and the same world live on a clock that goes `speed` times as fast as the
//! wall clock, the Worker included, whose alarms are set for the real instants of that clock.
//! What takes real time then takes `speed` times as long, so the thresholds that measure our own
//! work, and not the tokens', are stretched by it. Each one that is not the policy's is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::domain::criteria::CriteriaPolicy;
use crate::domain::duration::Millis;
use crate::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp, format_duration_ms};
use crate::engine::EngineConfig;
use crate::sandbox::{LiveClock, Workerd};

/// How time passes.
#[derive(Clone, Debug)]
pub enum Pace {
    /// Days of soak, at least 1, in seconds.
    Virtual { days: u32 },
    /// With the gateway on the Workers runtime.
    Real(RealTime),
}

/// A rehearsal in real time.
#[derive(Clone, Debug)]
pub struct RealTime {
    pub workerd: Workerd,
    /// Virtual seconds in each real one.
    pub speed: f64,
    /// Real time of soak.
    pub soak: Duration,
}

/// The reverse window is waited for, so it is short. A policy's shorter one is kept.
const REVERSE_WINDOW_VIRTUAL: Millis = Millis(6 * HOUR_MS);
const REVERSE_WINDOW_REAL: Millis = Millis(30 * MINUTE_MS);

/// How long disarmed alarms are watched in real time.
const SILENCE_REAL_MS: i64 = 10 * MINUTE_MS;

/// How long the target serves alone at the end.
const AFTER_VIRTUAL_MS: i64 = 6 * HOUR_MS;
const AFTER_REAL_MS: i64 = 10 * MINUTE_MS;

/// What may pass between the soak and the last look at the evidence.
const MARGIN_MS: i64 = 20 * DAY_MS;

/// Evidence must come often enough to be had in a short soak.
const SMOKE_EVERY_REAL: Millis = Millis(10 * MINUTE_MS);
const VERIFY_EVERY_REAL: Millis = Millis(30 * MINUTE_MS);

/// What our own work may take on a busy machine, real seconds.
const LAG_REAL_S: f64 = 5.0;
const SKEW_REAL_S: f64 = 2.0;
const SETTLE_REAL_S: f64 = 2.0;

impl Pace {
    /// The soak in the time of the world, ms.
    pub fn soak_ms(&self) -> i64 {
        match self {
            Self::Virtual { days } => i64::from(*days) * DAY_MS,
            Self::Real(real) => real.stretched(real.soak.as_secs_f64()),
        }
    }

    /// How long the target serves alone at the end, ms.
    pub(super) fn after_ms(&self) -> i64 {
        match self {
            Self::Virtual { .. } => AFTER_VIRTUAL_MS,
            Self::Real(_) => AFTER_REAL_MS,
        }
    }

    pub(super) fn reverse_window(&self) -> Millis {
        match self {
            Self::Virtual { .. } => REVERSE_WINDOW_VIRTUAL,
            Self::Real(_) => REVERSE_WINDOW_REAL,
        }
    }

    /// Fits criteria to the length and the speed of the rehearsal.
    pub(super) fn fit(&self, criteria: &mut CriteriaPolicy, connections: u32, window: Option<Millis>) {
        let soak_ms = self.soak_ms();
        // A fault anywhere in the run is to be named by its criterion at the end. With a window that it
        // has left, only the soak clock would tell.
        criteria.window = window.unwrap_or(criteria.window.max(Millis(soak_ms + MARGIN_MS)));
        match self {
            Self::Virtual { days } => criteria.soak_days = *days,
            Self::Real(real) => {
                criteria.soak_shortened = Some(Millis(soak_ms));
                criteria.smoke_every = criteria.smoke_every.min(SMOKE_EVERY_REAL);
                criteria.verify_every = criteria.verify_every.min(VERIFY_EVERY_REAL);
                criteria.mirror_lag_p99_s = criteria.mirror_lag_p99_s.max(real.stretched_s(LAG_REAL_S));
                criteria.clock_skew_max_s = criteria.clock_skew_max_s.max(real.stretched_s(SKEW_REAL_S));
            }
        }
        // Tokens live an hour and are replaced in its last quarter: some 30 times a day.
        let seen_ms = soak_ms.min(criteria.window.0);
        let per_day = |n: i64| u32::try_from(n * seen_ms / DAY_MS).unwrap_or(u32::MAX);
        let rotations = per_day(i64::from(connections) * 20);
        criteria.delivery_samples_min = criteria.delivery_samples_min.min(rotations / 2);
        criteria.lag_samples_min = criteria.lag_samples_min.min(rotations / 2);
        criteria.smoke_samples_min = criteria.smoke_samples_min.min(per_day(20));
        let verifications = seen_ms / criteria.verify_every.0.max(1);
        criteria.parity_clean_runs = criteria.parity_clean_runs.min(u32::try_from(verifications).unwrap_or(u32::MAX));
    }

    /// Fits what is not a matter of policy.
    pub(super) fn fit_engine(&self, config: &mut EngineConfig) {
        if let Self::Real(real) = self {
            config.silence_ms = SILENCE_REAL_MS;
            config.settle_ms = config.settle_ms.max(real.stretched(SETTLE_REAL_S));
        }
    }

    /// Which thresholds differ from `before`, for the report.
    pub(super) fn scaled(&self, before: &CriteriaPolicy, after: &CriteriaPolicy) -> Vec<String> {
        let Self::Real(real) = self else { return Vec::new() };
        let mut told =
            vec![format!("soak-duration: {} instead of {} d", format_duration_ms(after.soak_ms()), before.soak_days)];
        for (name, before, after) in [
            ("mirror-lag", before.mirror_lag_p99_s, after.mirror_lag_p99_s),
            ("clock-skew", before.clock_skew_max_s, after.clock_skew_max_s),
        ] {
            if before != after {
                let real_s = f64::from(after) / real.speed;
                told.push(format!("{name}: {after} s instead of {before} s, which are {real_s:.1} s of real time"));
            }
        }
        for (name, before, after) in [
            ("delivery-rate samples", before.delivery_samples_min, after.delivery_samples_min),
            ("mirror-lag samples", before.lag_samples_min, after.lag_samples_min),
            ("smoke-staleness samples", before.smoke_samples_min, after.smoke_samples_min),
            ("parity runs", before.parity_clean_runs, after.parity_clean_runs),
        ] {
            if before != after {
                told.push(format!("{name}: at least {after} instead of {before}"));
            }
        }
        told
    }
}

impl RealTime {
    /// Virtual milliseconds in some real seconds.
    fn stretched(&self, real_s: f64) -> i64 {
        (real_s * 1_000.0 * self.speed) as i64
    }

    /// Real seconds in some virtual milliseconds.
    pub(super) fn real_s(&self, virtual_ms: i64) -> f64 {
        virtual_ms as f64 / 1_000.0 / self.speed
    }

    fn stretched_s(&self, real_s: f64) -> u32 {
        (real_s * self.speed).ceil() as u32
    }
}

/// The clock of a rehearsal. Clones share one.
#[derive(Clone, Debug)]
pub(super) enum Clock {
    /// Stands still until it is moved; ms.
    Virtual(Arc<AtomicI64>),
    Live(LiveClock),
}

impl Clock {
    pub fn start(pace: &Pace, at: Timestamp) -> Self {
        match pace {
            Pace::Virtual { .. } => Self::Virtual(Arc::new(AtomicI64::new(at.millis()))),
            Pace::Real(real) => Self::Live(LiveClock::start(at, real.speed)),
        }
    }

    pub fn now(&self) -> Timestamp {
        match self {
            Self::Virtual(ms) => Timestamp::from_millis(ms.load(Ordering::Relaxed)),
            Self::Live(clock) => clock.now(),
        }
    }
}
