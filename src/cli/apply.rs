//! `cutover apply`: carries out a saved plan up to the soak, in real time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::config::Config;
use super::job::Job;
use super::operate::{OperateArgs, Session, dry_run_on, scratch_store};
use super::person::agree;
use super::plan::{Inputs, load_plan};
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::catalogue::Catalogue;
use crate::domain::custody::Stage;
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::engine::{EngineConfig, EngineError};
use crate::exit;
use crate::plan::saved::{digest_of, staleness};
use crate::plan::{Moved, Plan, PlanRow, Policy, Route};
use crate::store::{Durability, Place, PlaceError, Sink, Store, StoreError, TripletRow, Vault};

/// Carry out a saved plan up to the soak
///
/// Puts the TokenManager alarms on stand-by, makes auth configs and bearer accounts at Composio, and
/// copies the current token of every moving triplet to both KV namespaces and to Composio. Reads of the
/// gateway stay where they are. Call it again after a crash: it goes on where it was.
///
/// Exits with 5 when the plan is stale and 7 when it is already applied, another one is, rows are
/// blocked, or nobody said yes.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover apply plans/prod.json --inventory prod.csv --dry-run
  cutover apply plans/prod.json --inventory nango --policy plans/policy.toml
  cutover apply plans/prod.json --inventory prod.csv --state sqlite:/var/lib/cutover/prod.db --yes")]
pub struct ApplyArgs {
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    #[command(flatten)]
    state: StateArgs,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Who does it, for the audit trail [default: USER]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Say what would be done, by the same code and without writing
    #[arg(long)]
    dry_run: bool,
    /// Do what can be done now, and exit with 4 when there is more to do later
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
    /// Folder with executables that are called before and after, see docs/switch.md
    #[arg(long, value_name = "DIR")]
    hooks: Option<PathBuf>,
    /// Shape of the report on stdout
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

impl ApplyArgs {
    fn operate(&self) -> OperateArgs {
        OperateArgs {
            state: self.state.clone(),
            policy: self.inputs.policy.clone(),
            catalogue: self.inputs.catalogue.clone(),
            yes: self.yes,
            by: self.by.clone(),
            dry_run: self.dry_run,
            no_wait: self.no_wait,
            hooks: self.hooks.clone(),
            format: self.format,
        }
    }
}

/// Where the state is kept
#[derive(clap::Args, Clone, Debug)]
pub struct StateArgs {
    /// State: a file, or a database that several machines share (`postgres://USER@HOST/DATABASE`)
    #[arg(long = "state", value_name = "URL", default_value = "sqlite:cutover.db")]
    place: Place,
    /// Keys that the state is encrypted with; made when there is neither keys nor state
    #[arg(long, value_name = "FILE", default_value = "cutover.key")]
    key_file: PathBuf,
}

/// The keys themselves, in place of a key file.
const KEY_VARIABLE: &str = "CUTOVER_STATE_KEYS";

impl StateArgs {
    /// Opens the state, or makes it. While this process lives no other can run duties on a state
    /// file: two engines on one file would be two refreshers. Those on PostgreSQL share the work.
    ///
    /// # Errors
    /// Exit code 2 when there is a state and no key for it, 7 when another process has it, 1 when
    /// either cannot be opened.
    pub async fn open(&self) -> Result<Store, CommandError> {
        self.lock()?;
        self.open_beside().await
    }

    /// Opens the state for a short command, also while a shim runs on it.
    ///
    /// # Errors
    /// Exit code 2 when there is a state and no key for it, 1 when either cannot be opened.
    pub async fn open_beside(&self) -> Result<Store, CommandError> {
        let cannot = || CommandError::failed(format!("cannot open the state `{}`", self.place));
        let vault = self.vault()?;
        Store::open_at(&self.place, Durability::PowerLoss, vault).await.map_err(|error| cannot().because(&error))
    }

    /// Opens the state beside whatever else works on it. The flag says whether nobody else runs the
    /// duties: then they are the caller's, and nobody else's until its process ends.
    ///
    /// # Errors
    /// As [`StateArgs::open_beside`].
    pub async fn open_with_duties(&self) -> Result<(Store, bool), CommandError> {
        let ours = match self.lock() {
            Ok(()) => true,
            Err(error) if error.code() == exit::REFUSED => false,
            Err(error) => return Err(error),
        };
        Ok((self.open_beside().await?, ours))
    }

    /// Makes this process the one that carries out an operation on the state, until it ends.
    ///
    /// # Errors
    /// Exit code 7 when another one does, 1 when that cannot be found out.
    pub async fn lock_operation(&self, store: &Store) -> Result<(), CommandError> {
        let busy = || {
            CommandError::new(exit::REFUSED, format!("another process carries out an operation on `{}`", self.place))
                .hint("wait until it has ended, or end it with `cutover ctl no --reason …`")
        };
        if !store.lock_operations().await.map_err(|error| explain(error.into()))? {
            return Err(busy());
        }
        let Some(file) = self.place.file() else { return Ok(()) };
        self.lock_file(file, ".operation", busy)
    }

    /// The keys of the state.
    ///
    /// # Errors
    /// Exit code 2 when they are not there, 1 when they cannot be read.
    pub fn vault(&self) -> Result<Vault, CommandError> {
        match std::env::var(KEY_VARIABLE) {
            Ok(text) if !text.is_empty() => Vault::from_text(&Secret::new(text))
                .map_err(|problem| CommandError::usage(format!("`{KEY_VARIABLE}` holds no keys")).because(&problem)),
            _ => self.load_keys(),
        }
    }

    /// The keys of the state, or throw-away ones while there are none: for a copy of an empty state.
    ///
    /// # Errors
    /// As [`StateArgs::vault`].
    pub fn vault_for_a_copy(&self) -> Result<Vault, CommandError> {
        let given = std::env::var_os(KEY_VARIABLE).is_some_and(|text| !text.is_empty());
        if given || self.key_file.exists() { self.vault() } else { Ok(Vault::from_master(&[0; 32])) }
    }

    /// Where the state is, for people.
    pub fn shown(&self) -> String {
        self.place.to_string()
    }

    /// The key file, to be changed.
    ///
    /// # Errors
    /// Exit code 2 when the keys come from the environment, or there is no such file.
    pub fn key_file(&self) -> Result<&Path, CommandError> {
        if std::env::var_os(KEY_VARIABLE).is_some_and(|text| !text.is_empty()) {
            return Err(CommandError::usage(format!("the keys are in `{KEY_VARIABLE}`, not in a file"))
                .hint("add a key there with a higher number, restart what uses it, then run `cutover keys rotate --reencrypt-only`"));
        }
        if !self.key_file.exists() {
            return Err(CommandError::usage(format!("there is no key file `{}`", self.key_file.display()))
                .hint("name the key file of the state as `--key-file`"));
        }
        Ok(&self.key_file)
    }

    fn load_keys(&self) -> Result<Vault, CommandError> {
        let (place, key_file) = (&self.place, self.key_file.display());
        if self.place.file().is_some() && self.exists() && !self.key_file.exists() {
            return Err(CommandError::usage(format!("there is a state `{place}` but no key file `{key_file}`"))
                .hint("name the key file that the state was made with as `--key-file`: no other opens it"));
        }
        Vault::load_or_create(&self.key_file)
            .map_err(|error| CommandError::failed(format!("cannot open the state `{place}`")).because(&error))
    }

    /// The state that these names mean, as [`Self::names`] gave them.
    ///
    /// # Errors
    /// When the first is no name of a state.
    pub fn named(state: &str, key_file: &str) -> Result<Self, PlaceError> {
        Ok(Self { place: state.parse()?, key_file: PathBuf::from(key_file) })
    }

    /// The names of the state and of its key file.
    pub fn names(&self) -> (String, String) {
        let state = match &self.place {
            Place::Sqlite(path) => format!("sqlite:{}", path.display()),
            Place::Postgres(url) => url.clone(),
        };
        (state, self.key_file.display().to_string())
    }

    /// Takes the lock file beside the database, until the process ends however it ends.
    fn lock(&self) -> Result<(), CommandError> {
        let Some(file) = self.place.file() else { return Ok(()) };
        self.lock_file(file, ".lock", || {
            CommandError::new(exit::REFUSED, format!("another process works on the state `{}`", self.place))
                .hint("stop that `cutover shim` or `cutover apply` first")
        })
    }

    fn lock_file(&self, file: &Path, ending: &str, busy: impl FnOnce() -> CommandError) -> Result<(), CommandError> {
        let mut lock_path = file.to_owned().into_os_string();
        lock_path.push(ending);
        let lock_path = PathBuf::from(lock_path);
        let cannot = || CommandError::failed(format!("cannot lock the state with `{}`", lock_path.display()));
        let file = std::fs::File::create(&lock_path).map_err(|error| cannot().because(&error))?;
        match file.try_lock() {
            Ok(()) => {
                // The lock is as long as the process: the kernel releases it with the descriptor.
                std::mem::forget(file);
                Ok(())
            }
            Err(std::fs::TryLockError::WouldBlock) => Err(busy()),
            Err(std::fs::TryLockError::Error(error)) => Err(cannot().because(&error)),
        }
    }

    /// Where the state is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether there may be a state: a file that is there, or any database.
    pub fn exists(&self) -> bool {
        self.place.file().is_none_or(Path::exists)
    }
}

/// # Errors
/// Exit code 2 for bad input and missing settings, 5 for a stale plan, 7 when a guard refuses, 1
/// when it could not be carried out.
pub fn run(args: &ApplyArgs, ui: &Ui) -> CommandResult {
    let plan = load_plan(&args.plan)?;
    let (policy, catalogue) = (args.inputs.load_policy()?, args.inputs.load_catalogue()?);
    let start = args.inputs.now()?;
    refuse_stale(&plan, &args.inputs, &policy, &catalogue, start, ui)?;
    refuse_blocked(&plan)?;
    let job = Job::Apply(Box::new(plan.clone()));
    let config = EngineConfig::new(policy.clone());
    super::runtime()?.block_on(async {
        if args.dry_run {
            return dry_run(args, &plan, &job, catalogue, config, start, ui).await;
        }
        // Settings that are missing are named before anything is made or asked.
        Config::load(ui.config.as_deref())?.endpoints()?;
        // A state that is not there yet is made only after somebody agreed.
        let store = if args.state.exists() { Some(args.state.open().await?) } else { None };
        if let Some(store) = &store {
            refuse_applied(&plan, store).await?;
        }
        agree(&format!("Plan {}: {}.", plan.id, Work::of(&plan).text()), args.yes, ui)?;
        let store = match store {
            Some(store) => store,
            None => args.state.open().await?,
        };
        let id = Some(plan.id.clone());
        let session = Session::with(&args.operate(), store, true, id, policy, catalogue, start, ui).await?;
        let outcome = session.run(&job, ui).await?;
        ui.print(&match args.format {
            OutputFormat::Json => outcome.json(&session, &job, serde_json::json!({})),
            OutputFormat::Text if outcome.code != exit::OK => format!("{}\n", outcome.reason),
            OutputFormat::Text => {
                done(session.engine.store(), &plan, &args.state.place).await.map_err(|e| explain(e.into()))?
            }
        });
        session.engine.into_store().close().await.map_err(|error| explain(error.into()))?;
        Ok(outcome.code)
    })
}

/// The plan's rows, then the steps that the engine would take.
async fn dry_run(
    args: &ApplyArgs,
    plan: &Plan,
    job: &Job,
    catalogue: Catalogue,
    config: EngineConfig,
    start: Timestamp,
    ui: &Ui,
) -> CommandResult {
    let rows = rows_text(plan, &catalogue);
    let outcome = if args.state.exists() {
        let operate = args.operate();
        let (store, ours, scratch) = operate.open_state().await?;
        let id = Some(plan.id.clone());
        let session = Session::with(&operate, store, ours, id, config.policy, catalogue, start, ui).await?;
        let outcome = session.run(job, ui).await?;
        drop(scratch);
        outcome
    } else {
        let folder = tempfile::tempdir()
            .map_err(|error| CommandError::failed("cannot make a temporary folder").because(&error))?;
        let store = scratch_store(folder.path()).await?;
        dry_run_on(store, catalogue, config, job, start, ui.config.as_deref()).await?
    };
    ui.print(&match args.format {
        OutputFormat::Text => format!("{rows}\n{}", outcome.text()),
        OutputFormat::Json => {
            let report = serde_json::json!({
                "exit_code": outcome.code, "reason": outcome.reason, "operation": job.name(), "plan": plan.id,
                "dry_run": true, "steps": outcome.steps,
            });
            format!("{report:#}\n")
        }
    });
    Ok(outcome.code)
}

/// Without `--inventory` the inventory is not compared; policy and catalogue always are, since the
/// engine works by those that were given.
fn refuse_stale(
    plan: &Plan,
    inputs: &Inputs,
    policy: &Policy,
    catalogue: &Catalogue,
    now: Timestamp,
    ui: &Ui,
) -> Result<(), CommandError> {
    let mut moved = Vec::new();
    if inputs.inventory.is_empty() {
        if digest_of(policy) != plan.inputs.policy {
            moved.push(Moved::Policy);
        }
        if digest_of(catalogue) != plan.inputs.catalogue {
            moved.push(Moved::Catalogue);
        }
        if now >= plan.expires_at {
            moved.push(Moved::Expired { at: plan.expires_at });
        }
    } else {
        let inventory = inputs.load_inventory(ui)?;
        // What was probed for the plan holds until somebody probes again.
        let probes = if inputs.probes.is_some() { inputs.load_probes()? } else { plan.inputs.probes.clone() };
        moved = staleness(plan, &inventory, catalogue, policy, &probes, now);
    }
    if moved.is_empty() {
        return Ok(());
    }
    let mut error = CommandError::new(exit::STALE, format!("plan `{}` is stale", plan.id));
    for reason in &moved {
        error = error.because(reason);
    }
    if moved.contains(&Moved::Policy) && inputs.policy.is_none() {
        error = error.hint("name the policy that the plan was made with as `--policy`");
    }
    Err(error.hint("make a new plan with `cutover plan --out`, and see what changed with `cutover plan diff`"))
}

fn refuse_blocked(plan: &Plan) -> Result<(), CommandError> {
    let blocked: Vec<String> =
        plan.rows.iter().filter(|row| row.route == Route::Blocked).map(|row| format!("`{}`", row.triplet)).collect();
    if blocked.is_empty() {
        return Ok(());
    }
    let message = format!("plan `{}` has blocked rows: {}", plan.id, blocked.join(", "));
    Err(CommandError::new(exit::REFUSED, message)
        .hint("decide each of them in the policy file, as `[[decision]]` with a route and a reason, and plan again"))
}

async fn refuse_applied(plan: &Plan, store: &Store) -> Result<(), CommandError> {
    let look = async || Ok::<_, StoreError>((store.load_plan_id().await?, store.load_triplets().await?));
    let (applied, triplets) = look().await.map_err(|error| explain(error.into()))?;
    match applied {
        None => Ok(()),
        Some(applied) if applied != plan.id => {
            Err(explain(StoreError::OtherPlan { applied, given: plan.id.clone() }.into()))
        }
        Some(_) if triplets.iter().any(|row| row.moves() && row.custody.stage == Stage::Planned) => Ok(()),
        Some(id) => Err(CommandError::new(exit::REFUSED, format!("plan `{id}` is already applied"))),
    }
}

pub(super) fn explain(error: EngineError) -> CommandError {
    match &error {
        EngineError::Refused(reason) => CommandError::new(exit::REFUSED, reason.clone()),
        EngineError::Store(StoreError::Refused { .. }) => CommandError::new(exit::REFUSED, error.to_string()),
        EngineError::Ambiguous { intent, question } => CommandError::new(exit::AMBIGUOUS, question.clone())
            .hint(format!("look there yourself, then run `cutover ctl answer {intent} --is ID`, or `--not-done`")),
        EngineError::Store(StoreError::OtherPlan { .. }) => CommandError::new(exit::REFUSED, error.to_string())
            .hint("one state holds one plan; name another as `--state` only when the first one is over"),
        _ => CommandError::failed("the operation could not be carried out")
            .because(&error)
            .hint("run the same command again: it goes on where it was"),
    }
}

/// What a plan asks of `apply`, counted.
struct Work {
    triplets: usize,
    connections: usize,
    toolkits: usize,
    staying: usize,
}

fn moving(plan: &Plan) -> impl Iterator<Item = &PlanRow> {
    plan.rows.iter().filter(|row| row.route.moves())
}

impl Work {
    fn of(plan: &Plan) -> Self {
        let triplets = moving(plan).count();
        Self {
            triplets,
            connections: moving(plan).map(PlanRow::grant).collect::<BTreeSet<_>>().len(),
            toolkits: moving(plan).filter_map(|row| row.toolkit.as_deref()).collect::<BTreeSet<_>>().len(),
            staying: plan.rows.len() - triplets,
        }
    }

    fn text(&self) -> String {
        let Self { triplets, connections, toolkits, staying } = self;
        format!(
            "{triplets} alarms to stand by or report, {connections} connections to read at Nango,\n\
             {toolkits} auth configs and {triplets} bearer accounts to make at Composio,\n\
             {triplets} tokens to copy to each of kv.source, kv.target and composio; {staying} triplets stay"
        )
    }
}

/// What the plan says, row by row.
fn rows_text(plan: &Plan, catalogue: &Catalogue) -> String {
    let mut out = format!(
        "Plan {}, dry run.\n\
         Triplet, mode of its alarm, toolkit of its mirror, connection to read:\n",
        plan.id
    );
    let width = |cell: fn(&PlanRow) -> usize| moving(plan).map(cell).max().unwrap_or_default();
    let triplets = width(|row| row.triplet.to_string().len());
    let toolkits = width(|row| row.toolkit.as_deref().unwrap_or_default().len());
    for wave in &plan.waves {
        let canary = if wave.canary { ", canary" } else { "" };
        let _ = writeln!(out, "\nWave {}{canary}", wave.n);
        for row in moving(plan).filter(|row| row.wave == Some(wave.n)) {
            let harmless =
                catalogue.integration(&row.integration_key).is_some_and(|facts| facts.tolerates_second_refresher());
            let (triplet, alarm) = (row.triplet.to_string(), if harmless { "standby" } else { "report" });
            let (toolkit, connection) = (row.toolkit.as_deref().unwrap_or_default(), &row.connection_id);
            let _ = writeln!(out, "  {triplet:<triplets$}  {alarm:<7}  {toolkit:<toolkits$}  {connection}");
        }
    }
    let _ = writeln!(
        out,
        "\nIn all: {}.\n\nAll waves enter the soak together; consents and switches are later commands. A read at Nango\n\
         refreshes a token that is in its last 15 minutes. What an earlier run did is not done again.",
        Work::of(plan).text()
    );
    out
}

/// What is so now, from the state.
async fn done(store: &Store, plan: &Plan, state: &Place) -> Result<String, StoreError> {
    let rows: Vec<TripletRow> = store.load_triplets().await?.into_iter().filter(TripletRow::moves).collect();
    let mut out = format!("Plan {} is applied.\n\n", plan.id);
    let mut waves: BTreeMap<u32, BTreeMap<&'static str, usize>> = BTreeMap::new();
    for row in &rows {
        *waves.entry(row.wave.unwrap_or_default()).or_default().entry(row.custody.stage.name()).or_default() += 1;
    }
    for (wave, stages) in waves {
        let stages: Vec<String> = stages.into_iter().map(|(stage, n)| format!("{n} {stage}")).collect();
        let _ = writeln!(out, "  wave {wave:<4}{}", stages.join(", "));
    }
    out.push('\n');
    for sink in Sink::ALL {
        let states = store.load_sink(sink).await?;
        let current = states.iter().filter(|state| state.delivered == state.version).count();
        let _ = writeln!(out, "  {:<11} holds the current token of {current} of {} triplets", sink.name(), rows.len());
    }
    let _ = writeln!(out, "\n{} triplets stay. The state is in {state}.", plan.rows.len() - rows.len());
    out.push_str(
        "Start `cutover shim` on this state now: the alarms stand by, and nobody else keeps the tokens fresh.\n",
    );
    Ok(out)
}
