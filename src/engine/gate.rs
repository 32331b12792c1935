//! The gate: judges the evidence in a state, remembers what it said in a chain, and says whether
//! a pass is still fresh enough to open something.

use super::evidence::collect;
use super::{Engine, EngineError, EngineResult};
use crate::domain::criteria::{Evidence, Gap, Judged, Note, SoakClock, Verdict, Waiver, judge, overall};
use crate::domain::evidence_file::{EVIDENCE_VERSION, EvidenceFile, Window};
use crate::domain::time::Timestamp;
use crate::plan::Policy;
use crate::plan::saved::digest_of;
use crate::ports::Outside;
use crate::store::{GateRun, Store};

/// Where the verdict that people were told last is kept.
const TOLD: &str = "gate_told";

/// Who acts, in the audit trail.
const ACTOR: &str = "cutover";

/// What the gate says.
#[derive(Clone, Debug, PartialEq)]
pub struct GateReport {
    pub verdict: Verdict,
    pub evaluated_at: Timestamp,
    pub criteria: Vec<Judged>,
    pub clock: SoakClock,
    pub gaps: Vec<Gap>,
    /// Waivers in force.
    pub waivers: Vec<Waiver>,
    /// Until when a pass opens what it guards; `evaluated_at` when it is none.
    pub open_until: Timestamp,
}

/// Criteria whose reasons stand in the one line that says what decided.
const REASONS_MAX: usize = 3;

impl GateReport {
    /// Criteria that stand against a pass, in the order of their report; empty when it passes.
    pub fn against(&self) -> impl Iterator<Item = &Judged> {
        self.criteria.iter().filter(|c| self.verdict != Verdict::Pass && c.stands() == self.verdict)
    }

    /// One line: what decided, and what is waived. Where it was much, the rest is only named.
    pub fn reason(&self) -> String {
        let told = self.against().take(REASONS_MAX).map(|c| format!("{} ({})", c.id, c.reason));
        let mut against: Vec<String> = told.collect();
        let rest: Vec<&str> = self.against().skip(REASONS_MAX).map(|c| c.id.as_str()).collect();
        if !rest.is_empty() {
            against.push(format!("and {} more: {}", rest.len(), rest.join(", ")));
        }
        let waived = |c: &Judged| match c.waived {
            true => c.id.clone(),
            false => {
                let scopes: Vec<&str> = c.waivers.iter().map(|w| w.scope.as_str()).collect();
                format!("{} in part ({})", c.id, scopes.join(", "))
            }
        };
        let waived: Vec<String> = self.criteria.iter().filter(|c| !c.waivers.is_empty()).map(waived).collect();
        let waived = if waived.is_empty() { String::new() } else { format!("; waived: {}", waived.join(", ")) };
        if against.is_empty() {
            let passed = self.criteria.iter().filter(|c| c.verdict == Verdict::Pass).count();
            return format!("{passed} of {} criteria pass{waived}", self.criteria.len());
        }
        format!("{}{waived}", against.join("; "))
    }
}

/// Why a gate pass does not open anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFreshPass {
    #[error("the gate never ran on this state")]
    Never,
    #[error("the gate last ran for plan `{ran}`, not for `{asked}`")]
    OtherPlan { ran: String, asked: String },
    #[error("the last verdict of the gate, of {at}, is `{}`", verdict.name())]
    NotPassed { verdict: Verdict, at: Timestamp },
    #[error("the last pass of the gate, of {at}, was good until {until}")]
    Stale { at: Timestamp, until: Timestamp },
    #[error("the last pass of the gate stands on waiver `{waiver}`, which was revoked")]
    Revoked { waiver: String },
    #[error("the last run of the gate is not in the state as it was sealed: {what}; run the gate again")]
    Altered { what: String },
}

/// Judges a state on its own evidence. Changes nothing.
///
/// # Errors
/// When the store cannot be read.
pub async fn judge_state(store: &Store, policy: &Policy, now: Timestamp) -> EngineResult<GateReport> {
    let evidence = collect(store, policy, now).await?;
    let waivers: Vec<Waiver> = store.load_waivers().await?.into_iter().filter(|w| w.in_force(now)).collect();
    let assessment = judge(&policy.criteria, &evidence, &waivers);
    let verdict = overall(&assessment.criteria);
    // A pass that stands on a waiver ends with it.
    let life = now.plus_ms(policy.criteria.pass_life.0);
    let leaned_on = assessment.criteria.iter().flat_map(|c| &c.waivers).map(|w| w.until);
    let open_until = if verdict == Verdict::Pass { leaned_on.fold(life, Ord::min) } else { now };
    Ok(GateReport {
        verdict,
        evaluated_at: now,
        criteria: assessment.criteria,
        clock: assessment.clock,
        gaps: evidence.gaps,
        waivers,
        open_until,
    })
}

/// Remembers a run of the gate: appends it to the chain of this state and to the audit trail.
/// Gives the sealed evidence document.
///
/// # Errors
/// `Refused` when no plan is applied; else when the store fails.
pub async fn record(store: &Store, report: &GateReport, policy: &Policy) -> EngineResult<EvidenceFile> {
    let identity = store
        .load_identity()
        .await?
        .ok_or_else(|| EngineError::Refused("no plan is applied in this state, so there is nothing to judge".into()))?;
    let window = Window::new(report.clock.clone(), policy.criteria.soak_ms(), &report.gaps, report.evaluated_at);
    let mut file = EvidenceFile {
        evidence_version: EVIDENCE_VERSION,
        verdict: report.verdict,
        exit_code: report.verdict.exit_code(),
        reason: report.reason(),
        plan: identity.plan.clone(),
        state: identity.state,
        policy: digest_of(policy),
        sequence: 0,
        evaluated_at: report.evaluated_at,
        open_until: report.open_until,
        window,
        criteria: report.criteria.clone(),
        waivers: report.waivers.clone(),
        previous: None,
        digest: String::new(),
    };
    let run = store
        .append_gate_run(|seq, previous| {
            (file.sequence, file.previous) = (seq, previous.clone());
            let sealed = file.sealed();
            GateRun {
                seq,
                at: sealed.evaluated_at,
                plan: sealed.plan.clone(),
                verdict: sealed.verdict,
                open_until: sealed.open_until,
                digest: sealed.digest.clone(),
                previous,
                json: sealed.to_json(),
            }
        })
        .await?;
    let action = serde_json::json!({"event": "gate", "verdict": run.verdict, "digest": run.digest}).to_string();
    store.record_action(ACTOR, "gate", &action, run.at).await?;
    tell_change(store, report).await?;
    EvidenceFile::from_json(&run.json)
        .map_err(|e| crate::store::StoreError::Corrupt { what: "gate run", detail: e.to_string() }.into())
}

/// Notes a verdict that is not the one before, once, whoever judges at the same time: the note is
/// what alerts are made of.
///
/// # Errors
/// When the store fails.
pub(super) async fn tell_change(store: &Store, report: &GateReport) -> EngineResult<()> {
    let before = store.load_meta(TOLD).await?.as_deref().and_then(Verdict::parse).unwrap_or(Verdict::Inconclusive);
    if before == report.verdict {
        return Ok(());
    }
    let plan = store.load_plan_id().await?.unwrap_or_default();
    let (from, to) = (before.name(), report.verdict.name());
    let note = Note { at: report.evaluated_at, subject: plan, detail: format!("{from} to {to}: {}", report.reason()) };
    store.note_change(TOLD, from, to, "gate", &note).await?;
    Ok(())
}

/// The gate pass that opens `switch` and `retire` for `plan` at `now`, or why there is none: the
/// newest run must be as it was sealed, a pass of this plan, within its life, with every waiver that it
/// stands on still in force.
///
/// # Errors
/// When the store cannot be read.
pub async fn fresh_pass(store: &Store, plan: &str, now: Timestamp) -> EngineResult<Result<GateRun, NoFreshPass>> {
    let Some(run) = store.load_last_gate_run().await? else { return Ok(Err(NoFreshPass::Never)) };
    let file = match sealed(&run) {
        Ok(file) => file,
        Err(what) => return Ok(Err(NoFreshPass::Altered { what })),
    };
    if run.plan != plan {
        return Ok(Err(NoFreshPass::OtherPlan { ran: run.plan, asked: plan.to_owned() }));
    }
    if run.verdict != Verdict::Pass {
        return Ok(Err(NoFreshPass::NotPassed { verdict: run.verdict, at: run.at }));
    }
    if now >= run.open_until || now < run.at {
        return Ok(Err(NoFreshPass::Stale { at: run.at, until: run.open_until }));
    }
    let waivers = store.load_waivers().await?;
    let leaned_on = file.criteria.iter().flat_map(|c| &c.waivers);
    let revoked = leaned_on.map(|m| &m.id).find(|id| !waivers.iter().any(|w| w.id == **id && w.in_force(now)));
    if let Some(waiver) = revoked {
        return Ok(Err(NoFreshPass::Revoked { waiver: waiver.clone() }));
    }
    Ok(Ok(run))
}

/// The document of a run, if the run says what was sealed in it.
fn sealed(run: &GateRun) -> Result<EvidenceFile, String> {
    let file = EvidenceFile::from_json(&run.json).map_err(|e| e.to_string())?;
    let same = [
        ("digest", run.digest == file.digest),
        ("number", run.seq == file.sequence),
        ("predecessor", run.previous == file.previous),
        ("plan", run.plan == file.plan),
        ("time", run.at == file.evaluated_at),
        ("verdict", run.verdict == file.verdict),
        ("end", run.open_until == file.open_until),
    ];
    match same.iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(format!("its {what} is not the one in its document")),
        None => Ok(file),
    }
}

impl<O: Outside> Engine<O> {
    /// What was observed up to `now`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn evidence(&self, now: Timestamp) -> EngineResult<Evidence> {
        self.record_traffic().await?;
        collect(&self.store, &self.config.policy, now).await
    }

    /// Judges the exit criteria on the evidence so far.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn gate(&self, now: Timestamp) -> EngineResult<GateReport> {
        self.record_traffic().await?;
        judge_state(&self.store, &self.config.policy, now).await
    }

    /// Remembers a gate's verdict, so that `switch` and `retire` can demand a fresh pass.
    ///
    /// # Errors
    /// When the store fails or no plan is applied.
    pub async fn record_gate(&self, report: &GateReport) -> EngineResult<EvidenceFile> {
        record(&self.store, report, &self.config.policy).await
    }

    /// When the gate passed.
    ///
    /// # Errors
    /// `Refused` unless the newest run of the gate is a fresh pass of the applied plan, and when what is
    /// known by now fails. Evidence that is missing now takes no pass back.
    pub(super) async fn demand_gate(&self, now: Timestamp, what: &str) -> EngineResult<Timestamp> {
        let plan = self.store.load_plan_id().await?.unwrap_or_default();
        let passed_at = match fresh_pass(&self.store, &plan, now).await? {
            Ok(run) => run.at,
            Err(why) => return Err(EngineError::Refused(format!("{what} needs a fresh gate pass: {why}"))),
        };
        let report = judge_state(&self.store, &self.config.policy, now).await?;
        if report.verdict == Verdict::Fail {
            let (at, why) = (passed_at.to_minute(), report.reason());
            return Err(EngineError::Refused(format!("{what}: the gate passed at {at} and would fail now: {why}")));
        }
        Ok(passed_at)
    }
}
