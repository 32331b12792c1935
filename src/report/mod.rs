//! The account of a soak for people: one HTML file that needs nothing else, and Markdown for the
//! decision record. Both say what the JSON says.
//!
//! Everything comes from the state; nothing is asked of any system.

mod html;
mod markdown;
mod svg;
mod timeline;

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::domain::criteria::{Judged, Note, Verdict, Waiver};
use crate::domain::evidence_file::Window;
use crate::domain::secret::hex;
use crate::domain::time::{DAY_MS, Timestamp};
use crate::engine::{self, EngineResult, Sample};
use crate::plan::{Plan, Policy};
use crate::store::{Store, StoreError, TripletRow};

pub use timeline::{Step, TripletLine};

/// The only form of the JSON.
const REPORT_VERSION: u32 = 1;

/// Findings of one kind that are marked on the timelines.
const MARKS_MAX: u32 = 200;

/// Everything that the report says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Facts {
    pub report_version: u32,
    pub verdict: Verdict,
    pub exit_code: u8,
    pub reason: String,
    pub plan: String,
    pub state: String,
    pub applied_at: Timestamp,
    pub written_at: Timestamp,
    pub window: Window,
    pub criteria: Vec<Judged>,
    /// All waivers that were ever given, with where they stand.
    pub waivers: Vec<WaiverLine>,
    /// What the gate said, oldest first.
    pub gate_runs: Vec<GateLine>,
    pub stages: BTreeMap<String, u64>,
    pub triplets: Vec<TripletLine>,
    pub days: Vec<Day>,
    pub samples: Vec<Point>,
    /// What must be seen on the timelines, by time.
    pub marks: Vec<Mark>,
    pub totals: BTreeMap<String, i64>,
    /// What a rehearsal knows besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<Rehearsed>,
    /// SHA-256 of this document without this field.
    pub digest: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaiverLine {
    pub standing: &'static str,
    #[serde(flatten)]
    pub waiver: Waiver,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GateLine {
    pub sequence: i64,
    pub at: Timestamp,
    pub verdict: Verdict,
    pub digest: String,
}

/// One day of the soak.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Day {
    /// `YYYY-MM-DD`, UTC.
    pub day: String,
    /// The worst verdict of the day.
    pub verdict: Verdict,
    /// Criteria that did not pass at some time of the day.
    pub open: Vec<String>,
    pub waived: Vec<String>,
    pub rotations: i64,
    pub rotations_missed: i64,
    pub lag_p99_ms: Option<i64>,
}

/// One sample: how fresh the served tokens were, and how late the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Point {
    pub at: Timestamp,
    pub left_ms_min: Option<i64>,
    pub left_ms_median: Option<i64>,
    /// Since the sample before.
    pub lag_p99_ms: Option<i64>,
    pub deliveries: u64,
    pub pending: u64,
    pub dead: u64,
}

/// Something that is marked on the timelines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mark {
    pub at: Timestamp,
    pub until: Option<Timestamp>,
    pub kind: MarkKind,
    pub subject: String,
    pub text: String,
    /// How often it happened between `at` and `until`.
    pub times: u64,
}

impl Mark {
    pub fn once(kind: MarkKind, at: Timestamp, until: Option<Timestamp>, subject: &str, text: String) -> Self {
        Self { at, until, kind, subject: subject.to_owned(), text, times: 1 }
    }
}

/// Makes one mark of what happened again and again to the same subject.
fn gathered(mut marks: Vec<Mark>) -> Vec<Mark> {
    marks.sort();
    let mut out: Vec<Mark> = Vec::new();
    let mut known: BTreeMap<(MarkKind, String, String), usize> = BTreeMap::new();
    for mark in marks {
        let same: String = mark.text.chars().filter(|c| !c.is_ascii_digit()).collect();
        match known.get(&(mark.kind, mark.subject.clone(), same.clone())) {
            Some(&at) => {
                out[at].times += 1;
                out[at].until = out[at].until.max(Some(mark.until.unwrap_or(mark.at)));
            }
            None => {
                known.insert((mark.kind, mark.subject.clone(), same), out.len());
                out.push(mark);
            }
        }
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkKind {
    /// What a fault plan did.
    Fault,
    /// What the evidence holds against the migration.
    Finding,
    Gap,
    Restart,
    Waiver,
}

impl MarkKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Finding => "finding",
            Self::Gap => "gap",
            Self::Restart => "restart",
            Self::Waiver => "waiver",
        }
    }
}

/// The parts of a rehearsal that the state does not know.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rehearsed {
    pub seed: u64,
    pub days: u32,
    pub faults: Vec<String>,
    /// Of the whole rehearsal: a fail where the gate passed and the world counted damage.
    pub verdict: Verdict,
    pub reason: String,
    /// What the world counted, by name.
    pub world: BTreeMap<&'static str, u64>,
    pub marks: Vec<Mark>,
}

impl Facts {
    /// Reads the state and judges it at `now`.
    ///
    /// # Errors
    /// When the store fails, or no plan is applied.
    pub async fn collect(
        store: &Store,
        policy: &Policy,
        now: Timestamp,
        rehearsal: Option<Rehearsed>,
    ) -> EngineResult<Self> {
        let identity = store
            .load_identity()
            .await?
            .ok_or_else(|| engine::EngineError::Refused("no plan is applied in this state".to_owned()))?;
        let plan: Plan = serde_json::from_str(&identity.json)
            .map_err(|e| StoreError::Corrupt { what: "plan", detail: e.to_string() })?;
        let report = engine::judge_state(store, policy, now).await?;
        let samples: Vec<(Timestamp, Sample)> = store
            .load_samples(identity.applied_at)
            .await?
            .into_iter()
            .map(|(at, json)| Ok((at, Sample::from_json(&json)?)))
            .collect::<Result<_, StoreError>>()?;
        let rows = store.load_triplets().await?;
        let waivers = store.load_waivers().await?;
        let mut marks = findings(store, identity.applied_at).await?;
        marks.extend(
            report.gaps.iter().map(|g| Mark::once(MarkKind::Gap, g.from, Some(g.until), &g.source, g.reason.clone())),
        );
        marks.extend(report.clock.restarts.iter().map(|r| {
            let text = format!("the soak clock starts again after {}", r.criterion);
            Mark::once(MarkKind::Restart, r.at, None, &r.subject, text)
        }));
        marks.extend(waivers.iter().map(|w| {
            let subject = format!("{} ({})", w.criterion, w.scope);
            let text = format!("{} by {}: {}", w.id, w.by, w.reason);
            Mark::once(MarkKind::Waiver, w.given_at, Some(w.revoked_at.unwrap_or(w.until)), &subject, text)
        }));
        marks.extend(rehearsal.iter().flat_map(|r| r.marks.clone()));
        let mut stages = BTreeMap::new();
        for row in &rows {
            *stages.entry(row.standing().to_owned()).or_insert(0) += 1;
        }
        let mut facts = Self {
            report_version: REPORT_VERSION,
            verdict: report.verdict,
            exit_code: report.verdict.exit_code(),
            reason: report.reason(),
            plan: plan.id,
            state: identity.state,
            applied_at: identity.applied_at,
            written_at: now,
            window: Window::new(report.clock.clone(), policy.criteria.soak_ms(), &report.gaps, now),
            criteria: report.criteria,
            waivers: waivers.into_iter().map(|w| WaiverLine { standing: w.state(now), waiver: w }).collect(),
            gate_runs: store
                .load_gate_runs()
                .await?
                .into_iter()
                .map(|r| GateLine { sequence: r.seq, at: r.at, verdict: r.verdict, digest: r.digest })
                .collect(),
            stages,
            triplets: timeline::triplets(store, &rows, identity.applied_at).await?,
            days: days(&samples),
            samples: points(&samples),
            marks: gathered(marks),
            totals: totals(&store.load_counters().await?, &rows),
            rehearsal,
            digest: String::new(),
        };
        let bytes = serde_json::to_vec(&facts).expect("a report is plain data");
        facts.digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        Ok(facts)
    }

    /// One object, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report is plain data");
        text.push('\n');
        text
    }

    /// One HTML file: no script, nothing fetched, readable in print.
    pub fn to_html(&self) -> String {
        html::html(self)
    }

    /// Markdown for a decision record.
    pub fn to_markdown(&self) -> String {
        markdown::markdown(self)
    }
}

/// What the evidence holds against the migration, by kind.
async fn findings(store: &Store, since: Timestamp) -> EngineResult<Vec<Mark>> {
    let mut marks = Vec::new();
    for kind in [
        "dead-grant",
        "grant-doubt",
        "missed-refresh",
        "missed-rotation",
        "outage",
        "reads-stopped",
        "smoke-stale",
        "parity",
        "dead-letter",
        "foreign-write",
        "drill-failed",
        "zombie",
        "chain-broken",
    ] {
        for Note { at, subject, detail } in store.load_notes_since(kind, since, MARKS_MAX).await? {
            // The detail of an outage is its length.
            let length: Option<i64> = detail.parse().ok().filter(|_| kind == "outage");
            let text = match length {
                Some(ms) => format!("out of reach for {}", crate::domain::time::format_duration_ms(ms)),
                None => detail,
            };
            let until = length.map(|ms| at.plus_ms(ms));
            marks.push(Mark::once(MarkKind::Finding, at, until, &subject, format!("{kind}: {text}")));
        }
    }
    Ok(marks)
}

/// Counters since the sample before.
fn delta(now: &BTreeMap<String, i64>, before: Option<&Sample>) -> BTreeMap<String, i64> {
    let was = |name: &String| before.and_then(|s| s.counters.get(name)).copied().unwrap_or(0);
    now.iter().map(|(name, n)| (name.clone(), n - was(name))).collect()
}

fn points(samples: &[(Timestamp, Sample)]) -> Vec<Point> {
    let before = std::iter::once(None).chain(samples.iter().map(|(_, s)| Some(s)));
    samples
        .iter()
        .zip(before)
        .map(|((at, s), before)| {
            let (lag_p99_ms, deliveries) = engine::lag_p99(&delta(&s.counters, before));
            Point {
                at: *at,
                left_ms_min: s.left_ms_min,
                left_ms_median: s.left_ms_median,
                lag_p99_ms,
                deliveries,
                pending: s.pending,
                dead: s.dead,
            }
        })
        .collect()
}

fn days(samples: &[(Timestamp, Sample)]) -> Vec<Day> {
    let mut days: Vec<Day> = Vec::new();
    let mut before: Option<&Sample> = None;
    let by_day = |(at, _): &(Timestamp, Sample)| at.millis().div_euclid(DAY_MS);
    for of_day in samples.chunk_by(|a, b| by_day(a) == by_day(b)) {
        let Some((at, last)) = of_day.last() else { continue };
        let counted = delta(&last.counters, before);
        let count = |name: &str| counted.get(name).copied().unwrap_or(0);
        let mut open: Vec<String> = of_day.iter().flat_map(|(_, s)| s.open.keys().cloned()).collect();
        let mut waived: Vec<String> = of_day.iter().flat_map(|(_, s)| s.waived.clone()).collect();
        for list in [&mut open, &mut waived] {
            list.sort();
            list.dedup();
        }
        let worst = of_day.iter().filter_map(|(_, s)| s.verdict).max().unwrap_or(Verdict::Inconclusive);
        days.push(Day {
            day: at.to_rfc3339()[..10].to_owned(),
            verdict: worst,
            open,
            waived,
            rotations: count("rotations_arrived"),
            rotations_missed: (count("rotations_expected") - count("rotations_arrived")).max(0),
            lag_p99_ms: engine::lag_p99(&counted).0,
        });
        before = Some(last);
    }
    days
}

fn totals(counters: &BTreeMap<String, i64>, rows: &[TripletRow]) -> BTreeMap<String, i64> {
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    let deliveries =
        ["kv.source", "kv.target", "composio"].map(|sink| count(&format!("deliveries:{sink}"))).iter().sum();
    [
        ("triplets", rows.len() as i64),
        ("triplets_moving", rows.iter().filter(|t| t.moves()).count() as i64),
        ("rotations_expected", count("rotations_expected")),
        ("rotations_arrived", count("rotations_arrived")),
        ("deliveries", deliveries),
        ("audit_rows", count("audit_rows")),
        ("webhooks", count("webhooks")),
    ]
    .map(|(name, n)| (name.to_owned(), n))
    .into()
}
