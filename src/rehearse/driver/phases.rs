//! What a cutover consists of, in its order. Each phase is carried out as a person would do it, and
//! says how it ended.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::super::pace::{Clock, Pace};
use super::super::{Position, RehearsalError, START};
use super::{Driver, RehearsedEngine, lock};
use crate::assess::{self, CHECKS, Finding, Live, Severity, Subject};
use crate::domain::criteria::Verdict;
use crate::domain::custody::Stage;
use crate::domain::time::{DAY_MS, HOUR_MS, SECOND_MS, Timestamp, format_duration_ms};
use crate::engine::{Control, EngineError, EngineResult, GateReport, Progress, RetireStage, Reversal, Zombie};
use crate::plan::removal::{self, Removal};
use crate::sandbox::worker_sources;
use crate::store::{ControlRow, Decision, Scope};

/// Who says things in a rehearsal.
const PERSON: &str = "rehearsal";

/// Between two looks at a running hook, and at a system that did not answer.
const HOOK_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
const RETRY_MS: i64 = 30 * SECOND_MS;

type Shown<'a> = &'a mut dyn FnMut(Position);

impl Driver {
    /// All phases up to where the gate lets them go. Returns the last gate and what ended it.
    pub(super) async fn phases(&mut self, progress: Shown<'_>) -> Result<(Option<GateReport>, String), RehearsalError> {
        self.assess().await?;

        self.enter("apply");
        let plan = self.plan.clone();
        self.operate("apply", None, progress, async |engine, now| engine.apply(&plan, now).await).await?;
        self.end_phase(format!("plan {} applied, {} triplets mirroring", plan.id, self.moving()));

        self.enter("soak");
        self.soak(progress).await?;
        let rotations = lock(&self.sandbox).ledger().rotations;
        let soaked = match &self.rehearsal.pace {
            Pace::Virtual { days } => format!("{days} days"),
            Pace::Real(_) => format_duration_ms(self.rehearsal.pace.soak_ms()),
        };
        self.end_phase(format!("{soaked}, {rotations} rotations mirrored"));

        self.enter("consent");
        let page = if self.press_connect().await? { ", one of them by its page" } else { "" };
        self.operate("consent", None, progress, async |engine, now| engine.consent(now).await).await?;
        let stages = self.stages().await?;
        let verified = stages.get("verified").copied().unwrap_or(0);
        self.end_phase(format!("{verified} of {} consents given and proven{page}", self.moving()));

        self.enter("drill");
        let waves = self.step(async |engine, _| engine.waves().await).await?;
        let mut failed = Vec::new();
        for &wave in &waves {
            let drill = async |engine: &RehearsedEngine, now| engine.drill(wave, now).await;
            match self.operate("drill", Some(wave), progress, drill).await {
                // What that means is the gate's to say.
                Err(RehearsalError::Engine(EngineError::Refused(reason))) => failed.push(reason),
                ended => ended?,
            }
        }
        let drilled = format!("a switch and its reverse exercised in {} waves", waves.len() - failed.len());
        self.end_phase([drilled].into_iter().chain(failed).collect::<Vec<_>>().join("; "));

        self.enter("gate");
        let gate = self.gate().await?;
        self.end_phase(gate.verdict.name().to_owned());
        if gate.verdict != Verdict::Pass {
            let reason = format!("the gate does not pass: {}", gate.reason());
            return Ok((Some(gate), reason));
        }

        self.move_reads(&waves, progress).await?;

        self.enter("settle");
        self.gate().await?;
        self.operate("settle", None, progress, async |engine, now| engine.settle(now).await).await?;
        self.end_phase("reverse windows over, bearer mirrors ended".to_owned());

        self.enter("retire do-alarm");
        let gate = self.gate().await?;
        if gate.verdict != Verdict::Pass {
            self.end_phase(gate.verdict.name().to_owned());
            let reason = format!("the gate does not pass any more: {}", gate.reason());
            return Ok((Some(gate), reason));
        }
        let silent_since = self.retire_do_alarms(progress).await?;

        self.enter("worker change");
        let removal = removal::removal(&worker_sources(), removal::CLASS);
        self.end_phase(told(&removal));

        self.enter("retire nango");
        let prepare = async |engine: &RehearsedEngine, now| engine.prepare_nango(now).await;
        self.operate("retire-nango-prepare", None, progress, prepare).await?;
        let undo = async |engine: &RehearsedEngine, now| engine.undo_prepare_nango(now).await;
        self.operate("retire-nango-undo", None, progress, undo).await?;
        self.operate("retire-nango", None, progress, async |engine, now| engine.retire_nango(now).await).await?;
        self.end_phase(
            "opted out of revocation upstream, undone, opted out again; connections deleted, tokens removed from KV"
                .to_owned(),
        );

        // The target alone serves now; it must go on doing so.
        self.enter("after");
        let after_ms = self.rehearsal.pace.after_ms();
        self.run_until(self.now().plus_ms(after_ms), progress).await?;
        self.end_phase(format!("{} served by the target alone", format_duration_ms(after_ms)));

        self.enter("sweep");
        self.sweep(silent_since, progress).await?;
        self.end_phase("no zombie among objects, fires, subscriptions and both namespaces".to_owned());

        self.enter("audit");
        let lines = self.step(async |engine, _| Ok(engine.store().verify_events().await?)).await?;
        let entries = self.step(async |engine, _| Ok(engine.store().verify_journal().await?)).await?;
        self.end_phase(format!("{lines} lines and {entries} journal entries, both chains unchanged"));
        Ok((Some(gate), "every phase done".to_owned()))
    }

    /// The preflight checks of the live systems, with those that write.
    async fn assess(&mut self) -> Result<(), RehearsalError> {
        let names: BTreeSet<&str> = CHECKS.iter().map(|check| check.name).collect();
        let skew_max_ms = i64::from(self.rehearsal.policy.criteria.clock_skew_max_s) * SECOND_MS;
        let limits = self.rehearsal.policy.rates.limits();
        // What the budget carries is measured here, so the estimate of the plan decides nothing.
        let need_per_minute = Default::default();
        let subject = Subject { skew_max_ms, limits, need_per_minute, ..Subject::of(&self.plan) };
        let (world, clock) = (std::sync::Arc::clone(&self.sandbox.world), self.clock.clone());
        let wait = || match &clock {
            Clock::Virtual(ms) => {
                let mut world = world.lock().expect("no panic happens while this lock is held");
                let to = world.now().plus_ms(SECOND_MS);
                world.advance_to(to);
                ms.store(to.millis(), std::sync::atomic::Ordering::Relaxed);
            }
            // Some seconds of the world.
            Clock::Live(_) => std::thread::sleep(HOOK_PAUSE),
        };
        let now = self.clock.clone();
        let time = || now.now();
        let found = self
            .step(async |engine, _| {
                let live = Live {
                    outside: engine.outside(),
                    catalogue: engine.catalogue(),
                    subject: &subject,
                    wait: &wait,
                    clock: &time,
                };
                Ok(live.run(&names, true).await)
            })
            .await?;
        let (_, reason) = assess::verdict(&found.findings);
        let broken: Vec<&Finding> = found.findings.iter().filter(|f| f.severity == Severity::Error).collect();
        if !broken.is_empty() {
            let findings = broken.iter().map(|f| format!("{}: {}; {}", f.check, f.evidence, f.remedy)).collect();
            return Err(RehearsalError::Unfit { findings });
        }
        self.end_phase(reason);
        Ok(())
    }

    async fn soak(&mut self, progress: Shown<'_>) -> Result<(), RehearsalError> {
        let soak_ms = self.rehearsal.pace.soak_ms();
        // The soak clock starts with the first mirrored refresh, within a token's life.
        let margin_ms = if self.live.is_some() { 0 } else { 2 * HOUR_MS };
        let mut end = self.now().plus_ms(soak_ms + margin_ms);
        loop {
            self.run_until(end, progress).await?;
            let evidence = self.step(async |engine, now| engine.evidence(now).await).await?;
            // A restart after a breach is not waited for: the gate shall see the breach.
            let missing = soak_ms - evidence.watched_ms();
            if missing <= 0 || self.now().since(START) > 2 * soak_ms + DAY_MS {
                return Ok(());
            }
            end = self.now().plus_ms(missing);
        }
    }

    /// One person opens the page of their consent at the shim and presses the button, as all of
    /// them do in life. Whether that gave a link.
    async fn press_connect(&mut self) -> Result<bool, RehearsalError> {
        let campaign = self.step(async |engine, _| engine.campaign().await).await?;
        let Some(page) = campaign.into_iter().find(|row| row.state == "waiting").map(|row| row.page) else {
            return Ok(false);
        };
        let address = format!("{}{page}", self.shim_url);
        let crash = self.sandbox.crash.clone();
        tokio::select! {
            biased;
            answer = self.webhooks.post(address).send() => {
                // A link leads away from here, to the provider: it is the person's to follow.
                Ok(answer.is_ok_and(|answer| answer.status() == reqwest::StatusCode::SEE_OTHER))
            }
            () = crash.crashed() => {
                self.bury();
                Ok(false)
            }
        }
    }

    /// Moves the reads of all waves. On the way a person says no once, and the first wave goes back
    /// once.
    async fn move_reads(&mut self, waves: &[u32], progress: Shown<'_>) -> Result<(), RehearsalError> {
        for (n, &wave) in waves.iter().enumerate() {
            if n == 0 {
                self.enter("no");
                let outcome = self.say_no(wave, progress).await?;
                self.end_phase(outcome);
                self.enter("switch");
                self.switch(wave, progress).await?;
                self.end_phase(format!("reads of wave {wave} moved, canary first"));

                self.enter("reverse");
                let there = self.switched(wave).await?;
                let what = Reversal::Wave(wave);
                self.operate("reverse", Some(wave), progress, async |engine, now| engine.reverse(&what, now).await)
                    .await?;
                let left = self.switched(wave).await?;
                if left > 0 {
                    return Err(refused(format!("{left} triplets of wave {wave} did not come back")));
                }
                self.end_phase(format!("{there} triplets of wave {wave} back at the source, read there"));
                self.enter("switch");
            }
            self.switch(wave, progress).await?;
        }
        self.end_phase(format!("reads of {} waves moved, canary first", waves.len()));
        Ok(())
    }

    async fn switch(&mut self, wave: u32, progress: Shown<'_>) -> Result<(), RehearsalError> {
        self.operate("switch", Some(wave), progress, async |engine, now| engine.switch(wave, now).await).await
    }

    /// Says no when the canary of a wave has moved, sees the switch stop, and takes it back.
    async fn say_no(&mut self, wave: u32, progress: Shown<'_>) -> Result<String, RehearsalError> {
        let moved = loop {
            let step = self.step(async |engine, now| engine.switch(wave, now).await).await?;
            let moved = self.switched(wave).await?;
            match step {
                // Something did not answer before the canary could move.
                Progress::Wait(at) if moved == 0 => {
                    let due = self.step(async |engine, now| engine.run_due(now).await).await?;
                    self.pass(due.map_or(at, |due| due.min(at)), progress).await;
                }
                _ => break moved,
            }
        };
        let scope = Scope::Wave(wave);
        let said = |at| ControlRow {
            scope,
            decision: Decision::No,
            reason: "to see it respected".to_owned(),
            actor: PERSON.to_owned(),
            at,
        };
        self.step(async |engine, now| Control::new(engine.store()).decide(&said(now)).await).await?;
        let stopped = self
            .step(async |engine, now| match engine.switch(wave, now).await {
                Err(EngineError::Refused(_)) => Ok(true),
                Err(error) => Err(error),
                Ok(_) => Ok(false),
            })
            .await?;
        let after = self.switched(wave).await?;
        if !stopped || after > moved {
            return Err(refused(format!("the switch of wave {wave} went on although somebody had said no")));
        }
        self.step(async |engine, now| Control::new(engine.store()).undecide(scope, Decision::No, PERSON, now).await)
            .await?;
        Ok(format!("said when {moved} of wave {wave} had moved: the switch stopped there; then taken back"))
    }

    /// How many triplets of a wave are read at the target.
    async fn switched(&mut self, wave: u32) -> Result<usize, RehearsalError> {
        let rows = self.step(async |engine, _| Ok(engine.store().load_triplets().await?)).await?;
        Ok(rows.iter().filter(|row| row.wave == Some(wave) && row.custody.stage == Stage::Switched).count())
    }

    /// Begins the retirement, arms everything again, and retires it. Since when it is silent.
    async fn retire_do_alarms(&mut self, progress: Shown<'_>) -> Result<Option<Timestamp>, RehearsalError> {
        let retire = async |engine: &RehearsedEngine, now| engine.retire_do_alarms(async || Ok(Vec::new()), now).await;
        self.step(&retire).await?;
        let restore = async |engine: &RehearsedEngine, now| engine.restore_do_alarms(now).await;
        self.operate("retire-restore", None, progress, restore).await?;
        self.operate("retire-do-alarm", None, progress, &retire).await?;
        let stage = self.step(async |engine, _| engine.retire_stage().await).await?;
        let since = if let RetireStage::Done { since, .. } = stage { Some(since) } else { None };
        let silent = since.map_or_else(String::new, |since| {
            let length = format_duration_ms(self.now().since(since));
            format!("; disarmed and read back at {}, silent for {length}, no zombie", since.to_minute())
        });
        self.end_phase(format!("arming stopped, restored once, stopped again{silent}"));
        Ok(since)
    }

    /// Looks for what should be dead and is not.
    async fn sweep(&mut self, since: Option<Timestamp>, progress: Shown<'_>) -> Result<(), RehearsalError> {
        let found: RefCell<Vec<Zombie>> = RefCell::default();
        self.until_done(progress, async |engine, now| {
            Ok(match engine.sweep(since, now).await? {
                Ok(zombies) => {
                    found.replace(zombies);
                    Progress::Done
                }
                Err(_) => Progress::Wait(now.plus_ms(RETRY_MS)),
            })
        })
        .await?;
        let found: Vec<String> = found
            .into_inner()
            .iter()
            .map(|z| format!("zombie {}: `{}` {}", z.kind.name(), z.subject, z.detail))
            .collect();
        if found.is_empty() { Ok(()) } else { Err(refused(found.join("; "))) }
    }

    /// An operation with its hooks around it, until it is done.
    async fn operate(
        &mut self,
        name: &str,
        wave: Option<u32>,
        progress: Shown<'_>,
        operation: impl AsyncFn(&RehearsedEngine, Timestamp) -> EngineResult<Progress>,
    ) -> Result<(), RehearsalError> {
        self.call_hook("before", name, wave, BTreeMap::new()).await?;
        let result = self.until_done(progress, operation).await;
        match &result {
            Ok(()) => self.call_hook("after", name, wave, BTreeMap::new()).await?,
            Err(error) => {
                let facts = BTreeMap::from([("CUTOVER_REASON", error.to_string())]);
                self.call_hook("failed", name, wave, facts).await?;
            }
        }
        result
    }

    /// Calls a hook, if there is one. In virtual time the world stands still meanwhile.
    async fn call_hook(
        &mut self,
        when: &str,
        name: &str,
        wave: Option<u32>,
        more: BTreeMap<&'static str, String>,
    ) -> Result<(), RehearsalError> {
        let hook = format!("{when}-{name}");
        if !self.rehearsal.hooks.has(&hook) {
            return Ok(());
        }
        let mut facts = BTreeMap::from([
            ("CUTOVER_OPERATION", name.to_owned()),
            ("CUTOVER_PLAN", self.plan.id.clone()),
            ("CUTOVER_WAVE", wave.map(|n| n.to_string()).unwrap_or_default()),
            ("CUTOVER_STAGES", json!(self.stages().await?).to_string()),
            ("CUTOVER_AT", self.now().to_rfc3339()),
            ("CUTOVER_REHEARSAL", "1".to_owned()),
        ]);
        facts.extend(more);
        let Some(mut running) = self.rehearsal.hooks.start(&hook, &facts)? else { return Ok(()) };
        while !running.has_agreed(HOOK_PAUSE)? {
            if self.live.is_some() {
                self.step(async |engine, now| engine.run_due(now).await).await?;
            }
            tokio::time::sleep(HOOK_PAUSE).await;
        }
        self.hooks_agreed += 1;
        Ok(())
    }
}

/// What the world's own judge would call a defect ends a rehearsal as a guard would.
fn refused(reason: String) -> RehearsalError {
    RehearsalError::Engine(EngineError::Refused(reason))
}

/// The change that the Worker's team must deploy, in one line.
fn told(removal: &Removal) -> String {
    let lines = |diff: &str, sign: char| {
        let changed =
            diff.lines().filter(|line| line.starts_with(sign) && !line.starts_with(&sign.to_string().repeat(3)));
        changed.count()
    };
    let deploy = |diff: &str| format!("-{} +{} lines", lines(diff, '-'), lines(diff, '+'));
    format!(
        "deploy 1: {}; deploy 2: {}; {} references to take out by hand",
        deploy(&removal.first.diff),
        deploy(&removal.second.diff),
        removal.references.len()
    )
}
