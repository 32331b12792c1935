//! What happened, for people and for machines.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Outcome, Pace, Phase, Rehearsal, START};
use crate::domain::criteria::{Judged, Verdict};
use crate::domain::custody::Stage;
use crate::domain::secret::hex;
use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp, format_duration_ms};
use crate::engine::GateReport;
use crate::exit;
use crate::plan::{Plan, Route};
use crate::report::{Facts, Mark, MarkKind, Rehearsed};
use crate::sandbox::{AlarmCounts, FaultNote, Incident, LedgerSummary, ReadCounts};
use crate::text::{Paint, wrap};

/// A phase that is shorter than this is shown as an instant.
const INSTANT_MS: i64 = MINUTE_MS;

/// What goes into a report.
pub(super) struct Written<'a> {
    pub rehearsal: &'a Rehearsal,
    pub plan: &'a Plan,
    pub gate: GateReport,
    pub ledger: LedgerSummary,
    pub faults_hit: Vec<FaultNote>,
    pub held: Vec<(String, String)>,
    pub journal_entries: u64,
    pub gate_passes: u64,
    pub ended_at: Timestamp,
    pub real_time: Option<RealTimeReport>,
}

/// What a rehearsal with the gateway on the Workers runtime adds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RealTimeReport {
    /// Virtual seconds in each real one.
    pub speed: f64,
    /// Soak in real seconds.
    pub soak_s: f64,
    /// Thresholds that are not the policy's, in words.
    pub scaled: Vec<String>,
    /// The traffic that the gateway served meanwhile.
    pub reads: ReadCounts,
    /// The runtime's alarms that fired.
    pub alarms: AlarmCounts,
    /// The longest time between two rounds of the duties, real seconds. On a machine that is too
    /// busy for the speed, tokens end because of that alone.
    pub longest_round_s: f64,
}

/// A round that takes longer eats what the duties have between a refresh and the standing-by alarm.
const ROUND_MINUTES: f64 = 5.0;

/// A triplet that did not move, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    pub triplet: String,
    pub reason: String,
}

/// The account of a rehearsal. In virtual time everything but `elapsed_wall_s` is the same for the
/// same inventory, policy, seed, days and faults; no two runs in real time are the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub verdict: Verdict,
    pub exit_code: u8,
    pub reason: String,
    pub seed: u64,
    /// Days of soak; 0 in real time, where `real_time` has its length.
    pub days: u32,
    pub faults: Vec<String>,
    pub plan: String,
    pub connections: u64,
    pub triplets: u64,
    /// Refreshes by Nango, as the provider counted them.
    pub rotations: u64,
    /// Token writes that the three sinks accepted.
    pub deliveries: u64,
    pub lost: u64,
    pub stale_reads: u64,
    pub regressions: u64,
    pub double_refreshes: u64,
    pub foreign_writes: u64,
    pub audit_rows: u64,
    pub journal_entries: u64,
    /// Times that the engine was killed and built again from its store.
    pub crashes: u64,
    /// Hooks that were called and agreed.
    pub hooks: u64,
    /// Runs of the gate that passed.
    pub gate_passes: u64,
    pub requests: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Triplets per stage at the end.
    pub stages: BTreeMap<String, u64>,
    pub phases: Vec<Phase>,
    pub criteria: Vec<Judged>,
    pub retained: Vec<Kept>,
    /// Triplets that a guard stopped.
    pub held: Vec<Kept>,
    /// What the fault plan did, and when.
    pub faults_hit: Vec<FaultNote>,
    /// What the world saw go wrong; at most 50.
    pub incidents: Vec<Incident>,
    pub elapsed_virtual_s: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub real_time: Option<RealTimeReport>,
    /// SHA-256 of this report without this field and the wall-clock one.
    pub digest: String,
    /// Filled by the command, not by the rehearsal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed_wall_s: Option<f64>,
    /// The account for `--report`, when it was asked for.
    #[serde(skip)]
    pub account: Option<Facts>,
}

impl Report {
    pub(super) fn write(w: Written<'_>, outcome: Outcome) -> Self {
        let ledger = w.ledger;
        // The gate and the world are independent judges. When they disagree, the world is right,
        // and the gate has a defect that must be seen.
        let failed_reads = w.real_time.as_ref().map_or(0, |real| real.reads.failed);
        let damage = ledger.lost + ledger.stale_reads + ledger.regressions + ledger.double_refreshes + failed_reads;
        let (verdict, reason) = if outcome.verdict == Verdict::Pass && damage > 0 {
            (Verdict::Fail, format!("the gate passed although the world counted {damage} losses: {}", outcome.reason))
        } else {
            (outcome.verdict, outcome.reason)
        };
        let mut report = Self {
            verdict,
            exit_code: verdict.exit_code(),
            reason,
            seed: w.rehearsal.seed,
            days: if let Pace::Virtual { days } = w.rehearsal.pace { days } else { 0 },
            faults: w.rehearsal.faults.iter().map(ToString::to_string).collect(),
            plan: w.plan.id.clone(),
            connections: w.plan.summary.connections,
            triplets: w.plan.summary.triplets,
            rotations: ledger.rotations,
            deliveries: ledger.deliveries,
            lost: ledger.lost,
            stale_reads: ledger.stale_reads,
            regressions: ledger.regressions,
            double_refreshes: ledger.double_refreshes,
            foreign_writes: ledger.foreign_writes,
            audit_rows: ledger.audit_rows,
            journal_entries: w.journal_entries,
            crashes: outcome.crashes,
            hooks: outcome.hooks,
            gate_passes: w.gate_passes,
            requests: ledger.requests,
            stages: outcome.stages,
            phases: outcome.phases,
            criteria: w.gate.criteria,
            retained: w
                .plan
                .rows
                .iter()
                .filter(|r| r.route == Route::Retain)
                .map(|r| Kept {
                    triplet: r.triplet.to_string(),
                    reason: r.reasons.iter().map(crate::plan::Reason::text).collect::<Vec<_>>().join("; "),
                })
                .collect(),
            held: w.held.into_iter().map(|(triplet, reason)| Kept { triplet, reason }).collect(),
            faults_hit: w.faults_hit,
            incidents: ledger.incidents,
            elapsed_virtual_s: w.ended_at.since(START) / SECOND_MS,
            real_time: w.real_time,
            digest: String::new(),
            elapsed_wall_s: None,
            account: None,
        };
        let bytes = serde_json::to_vec(&report).expect("a report is plain data");
        report.digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        report
    }

    /// One object, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report is plain data");
        text.push('\n');
        text
    }

    /// What the account of the soak says about the rehearsal around it.
    pub(super) fn rehearsed(&self) -> Rehearsed {
        let fault = |n: &FaultNote| {
            let subject = n.triplet.as_ref().map_or_else(|| n.fault.to_owned(), ToString::to_string);
            Mark::once(MarkKind::Fault, n.at, None, &subject, format!("{}: {}", n.fault, n.what))
        };
        Rehearsed {
            seed: self.seed,
            days: self.days,
            faults: self.faults.clone(),
            verdict: self.verdict,
            reason: self.reason.clone(),
            world: [
                ("lost", self.lost),
                ("stale_reads", self.stale_reads),
                ("regressions", self.regressions),
                ("double_refreshes", self.double_refreshes),
                ("foreign_writes", self.foreign_writes),
                ("crashes", self.crashes),
            ]
            .into(),
            marks: self.faults_hit.iter().map(fault).collect(),
        }
    }

    /// The account for people, at most 100 columns.
    pub fn to_text(&self, paint: Paint) -> String {
        Text { report: self, paint, out: String::new() }.write()
    }
}

struct Text<'a> {
    report: &'a Report,
    paint: Paint,
    out: String,
}

/// Writing to a `String` cannot fail.
macro_rules! line {
    ($text:expr) => { $text.out.push('\n') };
    ($text:expr, $($arg:tt)*) => { writeln!($text.out, $($arg)*).expect("writing to a String cannot fail") };
}

impl Text<'_> {
    fn write(mut self) -> String {
        let r = self.report;
        let soak = match &r.real_time {
            None => format!("{} days", r.days),
            Some(real) => format!("{:.0} s of soak at {} times real time", real.soak_s, number(real.speed)),
        };
        line!(
            self,
            "Rehearsal of plan {}: {} connections, {} triplets, {soak}, seed {}",
            r.plan,
            r.connections,
            r.triplets,
            r.seed
        );
        if let Some(real) = &r.real_time {
            line!(self, "Gateway, KV, D1 and alarms: the Workers runtime");
            for scaled in &real.scaled {
                self.wrapped("  scaled  ", scaled);
            }
        }
        if !r.faults.is_empty() {
            line!(self, "Faults: {}", r.faults.join(", "));
        }
        line!(self);
        self.phases();
        self.counts();
        self.gate();
        self.custody();
        self.trouble();
        self.last();
        self.out
    }

    fn phases(&mut self) {
        line!(self, "Phases (virtual time, UTC)");
        for phase in &self.report.phases {
            let length = phase.until.since(phase.from);
            let length = if length < INSTANT_MS { "at once".to_owned() } else { format_duration_ms(length) };
            let head = format!("  {}  {:<15} {:>8}  ", phase.from.to_minute(), phase.name, length);
            self.wrapped(&head, &phase.outcome);
        }
        line!(self);
    }

    fn counts(&mut self) {
        let r = self.report;
        line!(self, "What the world counted");
        line!(self, "  {:>9} rotations at the providers   {:>9} deliveries accepted", r.rotations, r.deliveries);
        line!(
            self,
            "  {:>9} audit rows in D1             {:>9} journal entries, chain verified",
            r.audit_rows,
            r.journal_entries
        );
        let damage = [
            (r.lost, "lost"),
            (r.stale_reads, "stale reads"),
            (r.regressions, "regressions"),
            (r.double_refreshes, "double refreshes"),
            (r.foreign_writes, "foreign writes"),
        ];
        let parts: Vec<String> = damage
            .iter()
            .map(|&(n, name)| {
                let text = format!("{n} {name}");
                if n == 0 { text } else { self.paint.red(&text) }
            })
            .collect();
        line!(self, "  {}", parts.join(", "));
        if let Some(real) = &r.real_time {
            let ReadCounts { ok, failed, from_source, from_target, failures } = &real.reads;
            line!(self, "  {ok} gateway reads served ({from_source} source, {from_target} target), {failed} failed");
            let AlarmCounts { fires, writes } = real.alarms;
            line!(self, "  {fires} alarms of the runtime fired, {writes} of them refreshed and wrote KV");
            if real.longest_round_s * real.speed > ROUND_MINUTES * 60.0 {
                let told = format!(
                    "a round of the duties took {} s: this machine is too busy for that speed, try a lower --speed",
                    real.longest_round_s
                );
                self.wrapped("  ", &told);
            }
            for failure in failures.iter().take(5) {
                self.wrapped("    ", failure);
            }
        }
        if r.hooks > 0 {
            line!(self, "  {} hooks were called and agreed", r.hooks);
        }
        if r.crashes > 0 {
            line!(self, "  the engine was killed {} times and went on from its store", r.crashes);
        }
        line!(self);
    }

    fn gate(&mut self) {
        line!(self, "Exit criteria");
        for c in &self.report.criteria {
            let observed = c.observed.map_or("-".to_owned(), number);
            let head = format!(
                "  {}  {:<17} {:>9} of {:<5} {:<12} ",
                self.paint.mark(c.verdict),
                c.id,
                observed,
                number(c.threshold),
                c.unit
            );
            self.wrapped(&head, &c.reason);
        }
        line!(self);
    }

    fn custody(&mut self) {
        let r = self.report;
        let order = Stage::ALL.iter().map(|s| s.name()).chain(["held", "retained"]);
        let stages: Vec<String> = order.filter_map(|name| r.stages.get(name).map(|n| format!("{n} {name}"))).collect();
        line!(self, "Custody at the end: {}", stages.join(", "));
        // Tenants share reasons: one line per reason.
        for (title, list) in [("retained", &r.retained), ("held", &r.held)] {
            let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for kept in list {
                by_reason.entry(&kept.reason).or_default().push(&kept.triplet);
            }
            for (reason, triplets) in by_reason {
                let head = format!("  {title}: ");
                let names = shortened(&triplets);
                self.wrapped(&head, &format!("{names}: {reason}"));
            }
        }
        line!(self);
    }

    fn trouble(&mut self) {
        let r = self.report;
        if !r.faults_hit.is_empty() {
            line!(self, "What the fault plan did");
            for note in &r.faults_hit {
                let head = format!("  {}  ", note.at.to_minute());
                let triplet = note.triplet.as_ref().map(|t| format!("{t}: ")).unwrap_or_default();
                self.wrapped(&head, &format!("{triplet}{}", note.what));
            }
            line!(self);
        }
        // The same thing hour after hour is one line with a count.
        let mut kinds: Vec<(&Incident, String, usize)> = Vec::new();
        for incident in &r.incidents {
            let kind: String = incident.what.chars().filter(|c| !c.is_ascii_digit()).collect();
            match kinds.iter_mut().find(|(first, k, _)| *k == kind && first.triplet == incident.triplet) {
                Some((_, _, times)) => *times += 1,
                None => kinds.push((incident, kind, 1)),
            }
        }
        if !kinds.is_empty() {
            line!(self, "What the world saw");
            for (incident, _, times) in kinds.iter().take(10) {
                let head = format!("  {}  ", incident.at.to_minute());
                let triplet = incident.triplet.as_ref().map(|t| format!("{t}: ")).unwrap_or_default();
                // The list of incidents is bounded, so its counts are lower bounds.
                let more = if *times > 1 { format!(", and at least {} more times", times - 1) } else { String::new() };
                self.wrapped(&head, &format!("{triplet}{}{more}", incident.what));
            }
            if kinds.len() > 10 {
                line!(self, "  and {} more (--format json has them)", kinds.len() - 10);
            }
            line!(self);
        }
    }

    fn last(&mut self) {
        let r = self.report;
        self.wrapped(&self.paint.verdict(r.verdict), &r.reason);
        let wall = r.elapsed_wall_s.map(|s| format!(" in {s:.1} s")).unwrap_or_default();
        line!(
            self,
            "{} of virtual time{wall}, {}",
            format_duration_ms(r.elapsed_virtual_s * SECOND_MS),
            &r.digest[..19]
        );
        if r.exit_code == exit::OK {
            line!(self, "Next: cutover plan --inventory YOUR-INVENTORY.md");
        }
    }

    fn wrapped(&mut self, head: &str, text: &str) {
        wrap(&mut self.out, head, text);
    }
}

/// At most three names.
fn shortened(names: &[&str]) -> String {
    let shown = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 3 { format!("{shown} and {} more", names.len() - 3) } else { shown }
}

fn number(n: f64) -> String {
    // Cut, not rounded: 0.99995 must not read as 1.
    let cut = (n * 10_000.0).trunc() / 10_000.0;
    format!("{cut}")
}
