//! Is the gate to be believed? Many rehearsals, healthy and broken, and how often it was wrong.
//!
//! A false pass is a gate that passed a migration which was broken on purpose, or in which the
//! world counted damage. A false fail is a migration under noise alone that did not get through.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Rehearsal, RehearsalError, Report};
use crate::domain::criteria::{Judged, Verdict};
use crate::domain::duration::Millis;
use crate::domain::secret::hex;
use crate::domain::time::{DAY_MS, HOUR_MS};
use crate::exit;
use crate::sandbox::Fault;

/// What a profile does to the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Trouble that a migration must get through.
    Noise,
    /// Something that must not pass.
    Broken,
}

/// What a seed is run under.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub health: Health,
    /// As `--faults` reads them; `LONG` is longer than a soak can become that waits for evidence.
    pub faults: &'static str,
    /// The criteria look back over half the soak, and not over the whole run.
    pub short_window: bool,
}

const fn noise(faults: &'static str) -> Profile {
    Profile { health: Health::Noise, faults, short_window: false }
}

const fn broken(faults: &'static str) -> Profile {
    Profile { health: Health::Broken, faults, short_window: false }
}

const fn short_window(profile: Profile) -> Profile {
    Profile { short_window: true, ..profile }
}

/// The profiles that every seed is run under.
pub const PROFILES: [Profile; 20] = [
    noise(""),
    noise("webhook-loss=50%"),
    noise("webhook-loss=100%"),
    noise("kv-lag=90s"),
    noise("composio-429=10%"),
    noise("crash=5"),
    noise("nango-outage=8m"),
    noise("crash=4,kv-lag=60s,composio-429=5%,webhook-loss=50%"),
    short_window(noise("webhook-loss=50%")),
    broken("nango-outage=40m"),
    broken("do-alarm-zombie=1"),
    broken("grant-revoked=1"),
    broken("wrong-account=1"),
    broken("scope-loss=1"),
    broken("do-alarm-zombie=1,crash=4,kv-lag=60s"),
    broken("wrong-account=1,composio-429=10%,crash=4"),
    broken("grant-revoked=1,webhook-loss=100%"),
    short_window(broken("nango-outage=40m")),
    broken("smoke-outage=LONG"),
    broken("audit-outage=LONG"),
];

impl Profile {
    /// The faults for a soak of this length.
    fn faults(&self, soak_ms: i64) -> String {
        let long_ms = 2 * soak_ms + DAY_MS;
        self.faults.replace("LONG", &format!("{}h", long_ms / HOUR_MS))
    }

    fn window(&self, soak_ms: i64) -> Option<Millis> {
        self.short_window.then_some(Millis(soak_ms / 2))
    }

    fn name(&self, soak_ms: i64) -> String {
        let faults = self.faults(soak_ms);
        match self.window(soak_ms) {
            Some(window) => format!("{faults} in {window}"),
            None => faults,
        }
    }
}

/// What one profile came to over all seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tally {
    pub health: Health,
    pub faults: String,
    pub runs: u64,
    pub passed: u64,
    pub failed: u64,
    pub inconclusive: u64,
    pub false_passes: u64,
    pub false_fails: u64,
    /// Which criteria stood against the gate, and in how many runs.
    pub caught_by: BTreeMap<String, u64>,
    /// Seeds with a wrong verdict, to rehearse again; at most 10.
    pub wrong_seeds: Vec<u64>,
}

/// What the campaign found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Campaign {
    pub exit_code: u8,
    pub reason: String,
    pub seeds: u64,
    pub first_seed: u64,
    pub days: u32,
    pub connections: u64,
    pub runs: u64,
    pub broken_runs: u64,
    pub noise_runs: u64,
    pub false_passes: u64,
    pub false_fails: u64,
    /// Noise that the gate could not judge: neither wrong nor good.
    pub untold: u64,
    pub profiles: Vec<Tally>,
    pub digest: String,
}

impl Tally {
    fn new(health: Health, faults: &str) -> Self {
        Self {
            health,
            faults: if faults.is_empty() { "none".to_owned() } else { faults.to_owned() },
            runs: 0,
            passed: 0,
            failed: 0,
            inconclusive: 0,
            false_passes: 0,
            false_fails: 0,
            caught_by: BTreeMap::new(),
            wrong_seeds: Vec::new(),
        }
    }

    /// Adds a run. The gate counts as passed when any of its runs on the way did, even if a guard
    /// stopped the migration later.
    fn add(&mut self, report: &Report) {
        self.runs += 1;
        match report.verdict {
            Verdict::Pass => self.passed += 1,
            Verdict::Fail => self.failed += 1,
            Verdict::Inconclusive => self.inconclusive += 1,
        }
        let damage = report.lost + report.stale_reads + report.regressions + report.double_refreshes;
        let false_pass = report.gate_passes > 0 && (self.health == Health::Broken || damage > 0);
        let false_fail = self.health == Health::Noise && report.verdict == Verdict::Fail && !false_pass;
        self.false_passes += u64::from(false_pass);
        self.false_fails += u64::from(false_fail);
        let against = |c: &&Judged| report.verdict != Verdict::Pass && c.verdict == report.verdict;
        for judged in report.criteria.iter().filter(against) {
            *self.caught_by.entry(judged.id.clone()).or_default() += 1;
        }
        if (false_pass || false_fail) && self.wrong_seeds.len() < 10 {
            self.wrong_seeds.push(report.seed);
        }
    }
}

impl Campaign {
    /// Rehearses `template` with `seeds` seeds from its own on, each under every profile. `progress`
    /// gets the runs done and the runs in all.
    ///
    /// # Errors
    /// When a rehearsal cannot be carried out.
    pub async fn run(
        template: &Rehearsal,
        seeds: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, RehearsalError> {
        let soak_ms = template.pace.soak_ms();
        let mut tallies: Vec<Tally> = PROFILES.iter().map(|p| Tally::new(p.health, &p.name(soak_ms))).collect();
        let total = seeds * PROFILES.len() as u64;
        let mut done = 0;
        for seed in template.seed..template.seed.saturating_add(seeds) {
            for (profile, tally) in PROFILES.iter().zip(&mut tallies) {
                progress(done, total);
                // A folder of its own: a database that is still closing removes its side files by
                // name, and would take those of the next one.
                let directory = template.directory.join(format!("run-{done}"));
                let report = one(template, seed, profile, &directory).await?;
                tally.add(&report);
                done += 1;
            }
        }
        Ok(Self::sum(template, seeds, tallies))
    }

    fn sum(template: &Rehearsal, seeds: u64, profiles: Vec<Tally>) -> Self {
        let of = |health: Health| profiles.iter().filter(move |t| t.health == health);
        let all = |count: fn(&Tally) -> u64| profiles.iter().map(count).sum::<u64>();
        let (false_passes, false_fails) = (all(|t| t.false_passes), all(|t| t.false_fails));
        let untold = of(Health::Noise).map(|t| t.inconclusive).sum();
        let (exit_code, reason) = match (false_passes + false_fails, untold) {
            (0, 0) => (exit::OK, "the gate was never wrong".to_owned()),
            (0, n) => (exit::INCONCLUSIVE, format!("the gate was never wrong, and could not judge {n} healthy runs")),
            (n, _) => (exit::FAIL, format!("the gate was wrong {n} times")),
        };
        let mut campaign = Self {
            exit_code,
            reason,
            seeds,
            first_seed: template.seed,
            days: u32::try_from(template.pace.soak_ms() / DAY_MS).unwrap_or(u32::MAX),
            connections: template.inventory.rows.len() as u64,
            runs: all(|t| t.runs),
            broken_runs: of(Health::Broken).map(|t| t.runs).sum(),
            noise_runs: of(Health::Noise).map(|t| t.runs).sum(),
            false_passes,
            false_fails,
            untold,
            profiles,
            digest: String::new(),
        };
        let bytes = serde_json::to_vec(&campaign).expect("a campaign is plain data");
        campaign.digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        campaign
    }

    /// One object, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a campaign is plain data");
        text.push('\n');
        text
    }

    /// The account for people.
    pub fn to_text(&self) -> String {
        let Self { seeds, first_seed, days, connections, .. } = self;
        let mut out = format!(
            "Campaign: {seeds} seeds from {first_seed} on, {} profiles, {} rehearsals of {connections} connections and {days} days\n\n",
            self.profiles.len(),
            self.runs
        );
        let width = self.profiles.iter().map(|t| t.faults.len()).max().unwrap_or_default();
        out += &format!("  {:<6}  {:<width$}  runs  pass  fail     ?  wrong  caught by\n", "", "faults");
        for t in &self.profiles {
            let health = if t.health == Health::Noise { "noise" } else { "broken" };
            let wrong = t.false_passes + t.false_fails;
            let caught: Vec<&str> = t.caught_by.keys().map(String::as_str).collect();
            let line = format!(
                "  {health:<6}  {:<width$}  {:>4}  {:>4}  {:>4}  {:>4}  {wrong:>5}  {}",
                t.faults,
                t.runs,
                t.passed,
                t.failed,
                t.inconclusive,
                caught.join(", ")
            );
            out += line.trim_end();
            out.push('\n');
            if !t.wrong_seeds.is_empty() {
                out += &format!("          wrong with seeds {:?}\n", t.wrong_seeds);
            }
        }
        out += &format!(
            "\nFalse passes: {}\nFalse fails:  {}\nUntold:       {} of {} noise runs\n\nexit {}: {}\n{}\n",
            rate(self.false_passes, self.broken_runs),
            rate(self.false_fails, self.noise_runs),
            self.untold,
            self.noise_runs,
            self.exit_code,
            self.reason,
            self.digest
        );
        out
    }
}

async fn one(template: &Rehearsal, seed: u64, profile: &Profile, directory: &Path) -> Result<Report, RehearsalError> {
    let folder = |result: std::io::Result<()>| result.map_err(RehearsalError::Sandbox);
    folder(std::fs::create_dir_all(directory))?;
    let soak_ms = template.pace.soak_ms();
    let faults = profile.faults(soak_ms);
    let faults = faults.split(',').filter(|f| !f.is_empty()).map(Fault::parse).collect::<Result<Vec<_>, _>>();
    let rehearsal = Rehearsal {
        seed,
        faults: faults.expect("the profiles are written as faults are"),
        window: profile.window(soak_ms),
        directory: directory.to_owned(),
        ..template.clone()
    };
    let report = rehearsal.run(&mut |_| {}).await?;
    folder(std::fs::remove_dir_all(directory))?;
    Ok(report)
}

/// `k of n`, and where none was seen what that proves: with 0 of n, the rate is below 3/n with 95 %
/// confidence.
fn rate(k: u64, n: u64) -> String {
    let share = |x: f64| format!("{:.2} %", 100.0 * x / n.max(1) as f64);
    match (k, n) {
        (_, 0) => "no runs".to_owned(),
        (0, n) => format!("0 of {n} (below {} with 95 % confidence)", share(3.0)),
        (k, n) => format!("{k} of {n} ({})", share(k as f64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_written_as_faults_are() {
        for profile in PROFILES {
            for fault in profile.faults(30 * DAY_MS).split(',').filter(|f| !f.is_empty()) {
                Fault::parse(fault).unwrap();
            }
        }
        assert!(
            PROFILES.iter().any(|p| p.health == Health::Noise) && PROFILES.iter().any(|p| p.health == Health::Broken)
        );
    }

    #[test]
    fn nothing_seen_is_a_bound_and_not_a_proof() {
        assert_eq!(rate(0, 1_600), "0 of 1600 (below 0.19 % with 95 % confidence)");
        assert_eq!(rate(2, 100), "2 of 100 (2.00 %)");
        assert_eq!(rate(0, 0), "no runs");
    }
}
