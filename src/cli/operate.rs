//! How every operation of a cutover runs: with the duties beside it when no shim runs them, with
//! a person's word polled while it waits, with hooks around it, or dry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::apply::{StateArgs, explain};
use super::config::Config;
use super::hooks;
use super::job::Job;
use super::person::speaker;
use super::plan::{Inputs, wall_clock};
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::clients::{Clock, HttpOutside};
use crate::domain::custody::ReadAuthority;
use crate::domain::time::{HOUR_MS, Timestamp};
use crate::engine::steps::{Dry, Step, Traced};
use crate::engine::{Engine, EngineConfig, EngineError, Progress, by};
use crate::exit;
use crate::hooks::Hooks;
use crate::plan::saved::digest_of;
use crate::plan::{Plan, Policy};
use crate::ports::Namespace;
use crate::store::{Durability, Place, Store, Vault};

/// How often an operation that waits asks whether somebody said no.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// How long what goes back waits for another operation to give way, and how often it looks.
const GIVE_WAY_WITHIN: Duration = Duration::from_secs(60);
const LOOK_FOR_WAY_EVERY: Duration = Duration::from_millis(500);

/// Called when the canary of a wave has moved; the rest waits for it.
const CANARY_HOOK: &str = "canary-switch";

/// A dry run follows the waits of an operation as far as this: a gate pass is no older then.
const DRY_HORIZON_MS: i64 = 20 * HOUR_MS;

/// Calls after which a dry run that does not end is given up.
const DRY_CALLS_MAX: usize = 10_000;

/// What every operation takes
#[derive(clap::Args, Clone, Debug)]
pub struct OperateArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Policy that the plan was made with
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Facts that are laid over the built-in catalogue
    #[arg(long, value_name = "FILE")]
    pub catalogue: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Who does it, for the audit trail [default: USER]
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    /// Say what would be done, by the same code and without writing
    #[arg(long)]
    pub dry_run: bool,
    /// Do what can be done now, and exit with 4 when there is more to do later
    #[arg(long, conflicts_with = "dry_run")]
    pub no_wait: bool,
    /// Folder with executables that are called before and after, see docs/switch.md
    #[arg(long, value_name = "DIR")]
    pub hooks: Option<PathBuf>,
    /// Shape of the report on stdout
    #[arg(long, value_enum, default_value_t)]
    pub format: OutputFormat,
}

impl OperateArgs {
    /// Opens the state; says whether the duties are this command's, and gives the folder of a copy. A
    /// dry run on a database that others share works on a copy of it from the start, and reads it
    /// through a connection that cannot write.
    ///
    /// # Errors
    /// As [`StateArgs::open_with_duties`].
    pub async fn open_state(&self) -> Result<(Store, bool, Option<TempDir>), CommandError> {
        let Place::Postgres(url) = self.state.place() else {
            let (store, duties) = self.state.open_with_duties().await?;
            return Ok((store, duties, None));
        };
        if !self.dry_run {
            let (store, duties) = self.state.open_with_duties().await?;
            return Ok((store, duties, None));
        }
        let cannot = |error: &dyn std::error::Error| {
            CommandError::failed(format!("cannot copy the state `{}`", self.state.shown())).because(error)
        };
        let folder = scratch_folder()?;
        let copy = folder.path().join("state.db");
        let vault = self.state.vault_for_a_copy()?;
        Store::copy_postgres(url, &copy).await.map_err(|error| cannot(&error))?;
        let store = Store::open(&copy, Durability::ProcessCrash, vault).await.map_err(|error| cannot(&error))?;
        Ok((store, false, Some(folder)))
    }
}

fn scratch_folder() -> Result<TempDir, CommandError> {
    tempfile::tempdir().map_err(|error| CommandError::failed("cannot make a temporary folder").because(&error))
}

/// The engine that a command works with.
pub type LiveEngine = Engine<Traced<HttpOutside>>;

/// An opened state with everything around it.
pub struct Session {
    pub engine: LiveEngine,
    pub clock: Clock,
    /// No shim runs on this state: the duties are ours.
    pub duties: bool,
    pub plan: Option<String>,
    args: OperateArgs,
    hooks: Hooks,
    config: Option<PathBuf>,
    /// Where the state is, if it is a copy that goes with this session.
    _scratch: Option<TempDir>,
}

/// How an operation ended, for its report.
pub struct Outcome {
    pub code: u8,
    pub reason: String,
    pub steps: Vec<Step>,
    pub next_at: Option<Timestamp>,
}

impl Outcome {
    /// As JSON, with more fields beside the common ones.
    pub fn json(&self, session: &Session, job: &Job, more: Value) -> String {
        let mut report = json!({
            "exit_code": self.code,
            "reason": self.reason,
            "operation": job.name(),
            "plan": session.plan,
            "dry_run": session.args.dry_run,
            "steps": self.steps,
            "next_at": self.next_at.map(Timestamp::to_rfc3339),
        });
        if let (Some(report), Value::Object(more)) = (report.as_object_mut(), more) {
            report.extend(more);
        }
        format!("{report:#}\n")
    }

    /// The steps as lines for people.
    pub fn text(&self) -> String {
        let mut out: String = self.steps.iter().map(|step| step.line() + "\n").collect();
        out.push_str(&format!("{}\n", self.reason));
        out
    }
}

impl Session {
    /// Opens the state of an applied plan beside whatever else works on it.
    ///
    /// # Errors
    /// Exit code 7 when no plan is applied, 5 when the policy is not the plan's, 2 for settings.
    pub async fn open(args: &OperateArgs, ui: &Ui) -> Result<Self, CommandError> {
        if !args.state.exists() {
            return Err(not_applied());
        }
        let (store, duties, scratch) = args.open_state().await?;
        let failed = |error| explain(EngineError::from(error));
        let plan = store.load_applied_plan().await.map_err(failed)?.ok_or_else(not_applied)?;
        let plan = Plan::from_json(&plan)
            .map_err(|error| CommandError::failed("the state holds a plan that cannot be read").because(&error))?;
        let inputs = Inputs { policy: args.policy.clone(), catalogue: args.catalogue.clone(), ..Inputs::default() };
        let (policy, catalogue) = (inputs.load_policy()?, inputs.load_catalogue()?);
        refuse_other_policy(&plan, &policy)?;
        let session = Self::with(args, store, duties, Some(plan.id), policy, catalogue, inputs.now()?, ui).await?;
        Ok(Self { _scratch: scratch, ..session })
    }

    /// Around a store that is open.
    ///
    /// # Errors
    /// Exit code 2 for missing settings, 1 when the state cannot be read.
    #[expect(clippy::too_many_arguments, reason = "called twice, and each is one thing that a session is made of")]
    pub async fn with(
        args: &OperateArgs,
        store: Store,
        duties: bool,
        plan: Option<String>,
        policy: Policy,
        catalogue: crate::catalogue::Catalogue,
        start: Timestamp,
        ui: &Ui,
    ) -> Result<Self, CommandError> {
        // Real time from here on, also when it was told to start at another time.
        let ahead_ms = start.since(wall_clock());
        let clock: Clock = Arc::new(move || wall_clock().plus_ms(ahead_ms));
        let outside = Traced::new(connect(ui.config.as_deref(), &clock)?, Arc::clone(&clock));
        let engine = Engine::new(store, outside, catalogue, EngineConfig::new(policy)).await.map_err(explain)?;
        let hooks = Hooks::new(args.hooks.clone()).map_err(hooks::explain)?;
        Ok(Self { engine, clock, duties, plan, args: args.clone(), hooks, config: ui.config.clone(), _scratch: None })
    }

    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub const fn is_dry_run(&self) -> bool {
        self.args.dry_run
    }

    /// Carries out a job, or says what it would do.
    ///
    /// # Errors
    /// What the engine refuses, exit code 7, or could not do, exit code 1; exit code 6 when a
    /// person must decide; a hook that does not agree, exit code 7.
    pub async fn run(&self, job: &Job, ui: &Ui) -> Result<Outcome, CommandError> {
        if self.args.dry_run {
            return self.dry_run(job).await;
        }
        let actor = speaker(self.args.by.as_deref())?;
        self.lock(job, ui).await?;
        self.trail(job, &actor, json!({"event": "operation begun", "operation": job.name()})).await?;
        let result = self.carried_out(job, &actor, ui).await;
        let (code, said) = match &result {
            Ok(outcome) => (outcome.code, outcome.reason.clone()),
            Err(error) => (error.code(), error.reason()),
        };
        let ended = json!({"event": "operation ended", "operation": job.name(), "exit_code": code, "result": said});
        self.trail(job, &actor, ended).await?;
        result
    }

    /// Writes a line about a job into the audit trail.
    async fn trail(&self, job: &Job, actor: &str, event: Value) -> Result<(), CommandError> {
        let store = self.engine.store();
        let written = store.record_action(actor, &job.subject(), &event.to_string(), self.now()).await;
        written.map_err(|error| explain(error.into()))
    }

    async fn carried_out(&self, job: &Job, actor: &str, ui: &Ui) -> Result<Outcome, CommandError> {
        hooks::run(&self.hooks, &format!("before-{}", job.name()), &self.facts(job).await?, self, ui).await?;
        let result = self.drive(job, actor, ui).await;
        let steps = self.engine.outside().take_steps();
        match result {
            Ok(Progress::Done) => {
                hooks::run(&self.hooks, &format!("after-{}", job.name()), &self.facts(job).await?, self, ui).await?;
                let reason = format!("{} is done", job.name());
                Ok(Outcome { code: exit::OK, reason, steps, next_at: None })
            }
            Ok(Progress::Wait(at)) => {
                let reason = format!("{} goes on at {}: run the same command then", job.name(), at.to_rfc3339());
                Ok(Outcome { code: exit::INCONCLUSIVE, reason, steps, next_at: Some(at) })
            }
            Err(error) => {
                // Whatever this hook says, the operation ended with its own reason.
                if let Err(hook) = self.tell_failure(job, &error, ui).await {
                    ui.note(&format!("warning: {hook}"));
                }
                Err(match told(&steps) {
                    steps if steps.is_empty() => error,
                    steps => error.hint(format!("done before it stopped:\n  {steps}")),
                })
            }
        }
    }

    /// Makes this the one operation on the state. What goes back asks the one that runs to give way.
    async fn lock(&self, job: &Job, ui: &Ui) -> Result<(), CommandError> {
        let (state, store) = (&self.args.state, self.engine.store());
        let asked_since = Instant::now();
        let mut told = false;
        loop {
            match state.lock_operation(store).await {
                Err(error)
                    if error.code() == exit::REFUSED
                        && !job.goes_forward()
                        && asked_since.elapsed() < GIVE_WAY_WITHIN =>
                {
                    self.engine.ask_way(self.now()).await.map_err(explain)?;
                    if !told {
                        ui.note("another operation runs: it is asked to give way");
                        told = true;
                    }
                    tokio::time::sleep(LOOK_FOR_WAY_EVERY).await;
                }
                locked => {
                    self.engine.take_way().await.map_err(explain)?;
                    return locked;
                }
            }
        }
    }

    async fn tell_failure(&self, job: &Job, error: &CommandError, ui: &Ui) -> Result<(), CommandError> {
        let mut facts = self.facts(job).await?;
        facts.insert("CUTOVER_EXIT_CODE", error.code().to_string());
        facts.insert("CUTOVER_REASON", error.to_string());
        hooks::run(&self.hooks, &format!("failed-{}", job.name()), &facts, self, ui).await
    }

    async fn drive(&self, job: &Job, actor: &str, ui: &Ui) -> Result<Progress, CommandError> {
        let asks = self.hooks.has(CANARY_HOOK);
        let mut told = None;
        self.ask_about_canary(job, actor, ui).await?;
        loop {
            let progress = by(actor, job.step(&self.engine, asks, self.now())).await.map_err(explain)?;
            self.ask_about_canary(job, actor, ui).await?;
            let Progress::Wait(until) = progress else { return Ok(Progress::Done) };
            if self.args.no_wait {
                self.round().await?;
                return Ok(progress);
            }
            let why = self.why_wait().await?;
            // Once for each reason: an outage may last for hours.
            if told.as_ref() != Some(&why) {
                ui.note(&format!("{why}; next try at {}", until.to_rfc3339()));
                told = Some(why);
            }
            while self.now() < until {
                match self.heed(job).await {
                    // It comes back before it ends, which its next step does.
                    Err(_) if matches!(job, Job::Drill(_)) => break,
                    heeded => heeded?,
                }
                let due = self.round().await?;
                let wait_ms = due.map_or(until, |due| due.min(until)).since(self.now()).max(0);
                tokio::time::sleep(Duration::from_millis(wait_ms.unsigned_abs()).min(ASK_EVERY)).await;
            }
        }
    }

    /// Whether an operation that waits may go on waiting.
    async fn heed(&self, job: &Job) -> Result<(), CommandError> {
        let heeded = match job.goes_forward() {
            true => job.demand_go(&self.engine, self.now()).await,
            false => self.engine.demand_way(job.name(), self.now()).await,
        };
        heeded.map_err(explain)
    }

    /// Asks the hook about a canary that has moved, until it agreed: the rest waits for that.
    async fn ask_about_canary(&self, job: &Job, actor: &str, ui: &Ui) -> Result<(), CommandError> {
        let Job::Switch { wave, .. } = job else { return Ok(()) };
        if !self.hooks.has(CANARY_HOOK) || !self.engine.awaits_agreement(*wave).await.map_err(explain)? {
            return Ok(());
        }
        hooks::run(&self.hooks, CANARY_HOOK, &self.facts(job).await?, self, ui).await?;
        by(actor, self.engine.agree_to_canary(*wave, self.now())).await.map_err(explain)
    }

    /// One round of the duties, when they are ours.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn round(&self) -> Result<Option<Timestamp>, CommandError> {
        if !self.duties {
            return Ok(None);
        }
        self.engine.run_due(self.now()).await.map_err(explain)
    }

    async fn why_wait(&self) -> Result<String, CommandError> {
        let down = self.engine.store().load_metas("down:").await.map_err(|error| explain(error.into()))?;
        let down: Vec<String> = down.into_keys().collect();
        Ok(if down.is_empty() {
            "waiting to ask again".to_owned()
        } else {
            format!("waiting for {}, out of reach", down.join(", "))
        })
    }

    /// What hooks are told.
    async fn facts(&self, job: &Job) -> Result<BTreeMap<&'static str, String>, CommandError> {
        let rows = self.engine.store().load_triplets().await.map_err(|error| explain(error.into()))?;
        let mut stages: BTreeMap<&str, u64> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.moves()) {
            *stages.entry(row.custody.stage.name()).or_default() += 1;
        }
        Ok(BTreeMap::from([
            ("CUTOVER_OPERATION", job.name().to_owned()),
            ("CUTOVER_PLAN", self.plan.clone().unwrap_or_default()),
            ("CUTOVER_WAVE", job.wave().map(|n| n.to_string()).unwrap_or_default()),
            ("CUTOVER_STAGES", json!(stages).to_string()),
            ("CUTOVER_AT", self.now().to_rfc3339()),
        ]))
    }

    /// The job on a copy of the state, against an outside that cannot be written to. Waits pass at
    /// once, up to what a gate pass outlives.
    async fn dry_run(&self, job: &Job) -> Result<Outcome, CommandError> {
        let folder = scratch_folder()?;
        let copy = folder.path().join("dry-run.db");
        let failed = |error| explain(EngineError::from(error));
        self.engine.store().copy_to(&copy).await.map_err(failed)?;
        let vault = self.args.state.vault_for_a_copy()?;
        let store = Store::open(&copy, Durability::ProcessCrash, vault).await.map_err(failed)?;
        let config = self.engine.config().clone();
        let catalogue = self.engine.catalogue().clone();
        dry_run_on(store, catalogue, config, job, self.now(), self.config.as_deref()).await
    }
}

/// Runs a job dry on a store that is thrown away afterwards.
///
/// # Errors
/// As [`Session::run`].
pub async fn dry_run_on(
    store: Store,
    catalogue: crate::catalogue::Catalogue,
    config: EngineConfig,
    job: &Job,
    start: Timestamp,
    settings: Option<&Path>,
) -> Result<Outcome, CommandError> {
    let failed = |error| explain(EngineError::from(error));
    let rows = store.load_triplets().await.map_err(failed)?;
    let reads = rows
        .iter()
        .filter(|row| row.custody.read == ReadAuthority::Target)
        .map(|row| (row.triplet.clone(), Namespace::Target))
        .collect();
    let time = Arc::new(AtomicI64::new(start.millis()));
    let shown = Arc::clone(&time);
    let clock: Clock = Arc::new(move || Timestamp::from_millis(shown.load(Ordering::Relaxed)));
    let outside = Traced::new(Dry::new(connect(settings, &clock)?, reads, start), Arc::clone(&clock));
    let engine = Engine::new(store, outside, catalogue, config).await.map_err(explain)?;
    if matches!(job, Job::Consent | Job::Link(_)) {
        // Who the old grants belong to is asked at the providers, which a dry run leaves alone.
        engine.skip_old_identities().await.map_err(explain)?;
    }
    let mut next_at = None;
    for _ in 0..DRY_CALLS_MAX {
        let progress = job.step(&engine, false, clock()).await.map_err(|error| {
            let error = explain(error);
            match told(&engine.outside().take_steps()) {
                steps if steps.is_empty() => error,
                steps => error.hint(format!("before it stops it would take these steps:\n  {steps}")),
            }
        })?;
        let Progress::Wait(at) = progress else { break };
        // After the links it is the people's turn.
        let people = matches!(job, Job::Consent | Job::FollowConsents | Job::Link(_));
        if people || at.since(start) > DRY_HORIZON_MS {
            next_at = Some(at);
            break;
        }
        time.store(at.max(clock().plus_ms(1)).millis(), Ordering::Relaxed);
    }
    let steps = engine.outside().take_steps();
    let more = next_at.map(|at| format!("; more from {} on", at.to_rfc3339())).unwrap_or_default();
    let reason = format!("dry run: {} would take {} steps, and nothing was written{more}", job.name(), steps.len());
    Ok(Outcome { code: exit::OK, reason, steps, next_at })
}

/// Steps below each other, for a hint.
fn told(steps: &[Step]) -> String {
    steps.iter().map(Step::line).collect::<Vec<_>>().join("\n  ")
}

fn connect(settings: Option<&Path>, clock: &Clock) -> Result<HttpOutside, CommandError> {
    let endpoints = Config::load(settings)?.endpoints()?;
    HttpOutside::new(endpoints, Arc::clone(clock))
        .map_err(|error| CommandError::usage("cannot use the settings").because(&error))
}

/// A throw-away store for a dry run of something that has no state yet.
///
/// # Errors
/// Exit code 1 when there is no room for it.
pub async fn scratch_store(folder: &Path) -> Result<Store, CommandError> {
    Store::open(&folder.join("dry-run.db"), Durability::ProcessCrash, Vault::from_master(&[0; 32]))
        .await
        .map_err(|error| CommandError::failed("cannot make a state for the dry run").because(&error))
}

fn not_applied() -> CommandError {
    CommandError::new(exit::REFUSED, "no plan is applied in this state")
        .hint("run `cutover apply PLAN` first, or name its state as `--state`")
}

fn refuse_other_policy(plan: &Plan, policy: &Policy) -> Result<(), CommandError> {
    if digest_of(policy) == plan.inputs.policy {
        return Ok(());
    }
    Err(CommandError::new(exit::STALE, format!("the policy is not the one that plan `{}` was made with", plan.id))
        .hint("name that policy as `--policy`"))
}

/// Runs a job and prints its report.
///
/// # Errors
/// As [`Session::run`].
pub async fn carry_out(session: Session, job: &Job, more: Value, ui: &Ui) -> CommandResult {
    let outcome = match session.run(job, ui).await {
        Ok(outcome) => outcome,
        Err(error) if session.args.format == OutputFormat::Json => {
            let outcome = Outcome { code: error.code(), reason: error.to_string(), steps: Vec::new(), next_at: None };
            ui.print(&outcome.json(&session, job, more));
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    ui.print(&match session.args.format {
        OutputFormat::Json => outcome.json(&session, job, more),
        OutputFormat::Text => outcome.text(),
    });
    let code = outcome.code;
    session.engine.into_store().close().await.map_err(|error| explain(error.into()))?;
    Ok(code)
}
