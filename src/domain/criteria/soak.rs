//! `soak-duration`: what starts the clock again, which waivers keep it from that, and what it says.

use super::clock::{Restart, SoakClock};
use super::judge::{CUSTODIANS, Judge, Sheet};
use super::{CRITERIA, Judged, Note, Verdict, Waiver, WaiverMark};
use crate::domain::time::{DAY_MS, format_duration_ms};

impl Judge<'_> {
    /// The clock, and marks of the waivers without which it would not have run for long enough.
    pub(super) fn clock(&self) -> (SoakClock, Vec<WaiverMark>) {
        let (mut restarts, mut marks) = (Vec::new(), Vec::new());
        for id in CRITERIA.into_iter().filter(|id| self.policy.restarts_on(id)) {
            let breaches = self.breaches(id);
            let waivers: Vec<&Waiver> = self.waivers_of(id).copied().collect();
            let covers = |waiver: &Waiver, breach: &Restart| waiver.covers(&breach.subject);
            let max = self.policy.breaches_max(id) as usize;
            let bare = breaches.iter().skip(max);
            let counted: Vec<&Restart> =
                breaches.iter().filter(|b| !waivers.iter().any(|w| covers(w, b))).skip(max).collect();
            if bare.filter(|b| !counted.contains(b)).any(|b| self.too_young(b)) {
                marks.extend(waivers.iter().filter_map(|waiver| {
                    let covered = breaches.iter().filter(|b| covers(waiver, b)).count() as u64;
                    (covered > 0).then(|| waiver.mark(covered))
                }));
            }
            restarts.extend(counted.into_iter().cloned());
        }
        (self.read(restarts), marks)
    }

    fn read(&self, restarts: Vec<Restart>) -> SoakClock {
        SoakClock::read(self.e.first_refresh_at, self.policy.initial_delay.0, &self.e.gaps, restarts, self.e.now)
    }

    /// Whether the clock would not have run for long enough if it had started again at this breach.
    fn too_young(&self, breach: &Restart) -> bool {
        let clock = self.read(vec![breach.clone()]);
        !clock.restarts.is_empty() && clock.soaked_ms < self.policy.soak_ms()
    }

    /// Every breach of a criterion since the plan was applied, waived or not, by time.
    fn breaches(&self, id: &str) -> Vec<Restart> {
        let e = self.e;
        let notes: &[Note] = match id {
            "invalid-grant" => &e.dead_grants,
            "missed-refresh" => &e.missed_refreshes,
            "smoke-staleness" => &e.smoke_stale,
            "parity" => &e.parity_findings,
            "dead-letters" => &e.dead_letters,
            "foreign-writes" => &e.foreign_writes,
            "ambiguous" => &e.ambiguous,
            _ => &[],
        };
        let breach = |at, subject: &str| Restart { at, criterion: id.to_owned(), subject: subject.to_owned() };
        let mut breaches: Vec<Restart> = notes.iter().map(|n| breach(n.at, &n.subject)).collect();
        if id == "outage" {
            let too_long = e.outages.iter().filter(|o| CUSTODIANS.contains(&o.api) && self.too_long(**o));
            breaches.extend(too_long.map(|o| breach(o.until, o.api.name())));
        }
        breaches.sort();
        breaches
    }

    /// What the clock says, with the waivers that it leans on.
    pub(super) fn soak(&self, clock: &SoakClock, leaned_on: Vec<WaiverMark>) -> Judged {
        let wanted_ms = self.policy.soak_ms();
        let started = clock.started_at;
        let sheet = Sheet {
            id: "soak-duration",
            unit: "days",
            observed: started.map(|_| clock.soaked_ms as f64 / DAY_MS as f64),
            threshold: wanted_ms as f64 / DAY_MS as f64,
            expected: 1,
            samples: u64::from(started.is_some()),
            since: started,
        };
        let Some(started) = started else {
            return sheet.say(Verdict::Inconclusive, "no refresh has been mirrored yet");
        };
        let mut said = Vec::new();
        let left = wanted_ms - clock.soaked_ms;
        if left > 0 {
            said.push(format!("{} to go", format_duration_ms(left)));
        }
        if let Some(gap) = &clock.paused {
            let (source, since) = (&gap.source, gap.from.to_minute());
            said.push(format!("paused: no evidence from `{source}` since {since}"));
        }
        if let Some(restart) = clock.restarts.last() {
            let Restart { criterion, subject, .. } = restart;
            said.push(format!("started again at {} after `{criterion}` of {subject}", started.to_minute()));
        }
        if clock.paused_ms > 0 {
            said.push(format!("{} without evidence not counted", format_duration_ms(clock.paused_ms)));
        }
        if said.is_empty() {
            said.push("no gaps in the evidence".to_owned());
        }
        let verdict = if left > 0 || clock.paused.is_some() { Verdict::Inconclusive } else { Verdict::Pass };
        sheet.say(verdict, said.join("; ")).with(&[], leaned_on)
    }
}
