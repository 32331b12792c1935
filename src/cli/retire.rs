//! `cutover retire`: the DO-alarm path and Nango, in stages; what the Worker's team must deploy.

use std::path::PathBuf;

use serde_json::json;

use super::apply::{StateArgs, explain};
use super::elsewhere::{Elsewhere, ElsewhereArgs, read_checkout};
use super::inventory::write_whole;
use super::job::Job;
use super::operate::{OperateArgs, Session, carry_out};
use super::person::{agree, confirm};
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::engine::{EngineError, GateReport, RetireStage, Zombie};
use crate::exit;
use crate::plan::removal::{self, Removal};

/// Retire the DO-alarm path, then Nango
///
/// In stages, each observed before the next, and only on a gate that passed within 24 hours. `do-alarm` can
/// be undone with `restore` until the Worker is deployed without the class; `nango` until its last step.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover retire do-alarm --dry-run
  cutover retire do-alarm --environment staging=https://gateway.staging.example.com
  cutover retire worker --repo ../gateway --out retire/
  cutover retire sweep --repo ../gateway
  cutover retire restore
  cutover retire nango --prepare
  cutover retire nango --confirm p-0123456789ab")]
pub struct RetireArgs {
    #[command(subcommand)]
    command: RetireCommand,
}

#[derive(clap::Subcommand, Debug)]
enum RetireCommand {
    /// Let the handlers only report, disarm each object, observe silence, look for zombies
    DoAlarm(DoAlarm),
    /// Print what the Worker and its configuration must change, and an ADR draft
    Worker(Worker),
    /// Look for what should be dead and is not
    Sweep(Sweep),
    /// Arm the objects again, as they were in the soak
    Restore(Restore),
    /// Delete the connections at Nango, and their tokens in KV
    Nango(Nango),
}

#[derive(clap::Args, Debug)]
struct DoAlarm {
    #[command(flatten)]
    elsewhere: ElsewhereArgs,
    #[command(flatten)]
    operate: OperateArgs,
}

#[derive(clap::Args, Debug)]
struct Worker {
    /// The gateway's checkout; nothing in it is written
    #[arg(long, value_name = "PATH")]
    repo: PathBuf,
    /// The class whose alarms are retired
    #[arg(long, value_name = "CLASS", default_value = removal::CLASS)]
    class: String,
    /// Write the diffs and the ADR draft into this folder too
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    look: LookArgs,
}

#[derive(clap::Args, Debug)]
struct Sweep {
    #[command(flatten)]
    elsewhere: ElsewhereArgs,
    #[command(flatten)]
    look: LookArgs,
}

/// What a command takes that only looks
#[derive(clap::Args, Debug)]
struct LookArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Policy that the plan was made with
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Facts that are laid over the built-in catalogue
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
    /// Shape of the report on stdout
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

impl LookArgs {
    async fn open(&self, ui: &Ui) -> Result<Session, CommandError> {
        let operate = OperateArgs {
            state: self.state.clone(),
            policy: self.policy.clone(),
            catalogue: self.catalogue.clone(),
            format: self.format,
            yes: false,
            by: None,
            dry_run: false,
            no_wait: false,
            hooks: None,
        };
        Session::open(&operate, ui).await
    }
}

#[derive(clap::Args, Debug)]
struct Restore {
    #[command(flatten)]
    operate: OperateArgs,
}

#[derive(clap::Args, Debug)]
struct Nango {
    /// Only opt the connections out of the revocation that a delete would cause; can be undone
    #[arg(long, conflicts_with_all = ["undo", "confirm"])]
    prepare: bool,
    /// Undo `--prepare`
    #[arg(long, conflicts_with = "confirm")]
    undo: bool,
    /// The plan's id, since the deletion cannot be undone
    #[arg(long, value_name = "PLAN")]
    confirm: Option<String>,
    #[command(flatten)]
    operate: OperateArgs,
}

/// # Errors
/// Exit code 7 when a guard refuses or there is a zombie, 3 when `sweep` finds one, 4 with `--no-wait` when
/// there is more to do, 2 for a checkout that cannot be read, 1 when it could not be done.
pub fn run(args: &RetireArgs, ui: &Ui) -> CommandResult {
    super::runtime()?.block_on(async {
        match &args.command {
            RetireCommand::DoAlarm(args) => {
                let session = Session::open(&args.operate, ui).await?;
                let free = args.operate.yes || args.operate.dry_run;
                agree("The TokenManager alarms of every settled triplet are disarmed.", free, ui)?;
                let elsewhere = Elsewhere::open(&args.elsewhere, &session, ui)?;
                // Only the look right before the verdict counts; but hours before, there is time to mend it.
                for Zombie { kind, subject, detail, remedy } in elsewhere.look(session.now()).await.map_err(unseen)? {
                    ui.note(&format!("already there: zombie {}: `{subject}` {detail}; {remedy}", kind.name()));
                }
                carry_out(session, &Job::RetireDoAlarm(elsewhere), json!({}), ui).await
            }
            RetireCommand::Worker(args) => worker(args, ui).await,
            RetireCommand::Sweep(args) => sweep(args, ui).await,
            RetireCommand::Restore(args) => {
                let session = Session::open(&args.operate, ui).await?;
                let free = args.operate.yes || args.operate.dry_run;
                agree("The TokenManager alarms of every triplet are armed again as in the soak.", free, ui)?;
                carry_out(session, &Job::Restore, json!({}), ui).await
            }
            RetireCommand::Nango(args) => {
                let session = Session::open(&args.operate, ui).await?;
                let free = args.operate.yes || args.operate.dry_run;
                let job = match (args.prepare, args.undo) {
                    (true, _) => {
                        agree("The connections at Nango are opted out of revocation upstream.", free, ui)?;
                        Job::PrepareNango
                    }
                    (_, true) => {
                        agree("The connections at Nango say about revocation what they said before.", free, ui)?;
                        Job::UndoNango
                    }
                    _ => {
                        confirm(args.confirm.as_deref(), &session, "deleting connections at Nango")?;
                        Job::RetireNango
                    }
                };
                carry_out(session, &job, json!({}), ui).await
            }
        }
    })
}

/// A look that could not be made.
fn unseen(error: EngineError) -> CommandError {
    CommandError::new(exit::INCONCLUSIVE, "the sweep could not look everywhere").because(&error)
}

async fn sweep(args: &Sweep, ui: &Ui) -> CommandResult {
    let session = args.look.open(ui).await?;
    let elsewhere = Elsewhere::open(&args.elsewhere, &session, ui)?;
    let since = match session.engine.retire_stage().await.map_err(explain)? {
        RetireStage::Silent { since, .. } | RetireStage::Done { since, .. } => Some(since),
        RetireStage::NotBegun { .. } | RetireStage::Reporting { .. } => None,
    };
    let found = session.engine.sweep(since, session.now()).await.map_err(explain)?;
    let mut found = found.map_err(|error| {
        CommandError::new(exit::INCONCLUSIVE, "the sweep could not look everywhere").because(&error)
    })?;
    found.extend(elsewhere.look(session.now()).await.map_err(unseen)?);
    let code = if found.is_empty() { exit::OK } else { exit::FAIL };
    let reason = match found.len() {
        0 => "no zombie found".to_owned(),
        n => format!("{n} zombies found"),
    };
    ui.print(&match args.look.format {
        OutputFormat::Json => {
            format!("{:#}\n", json!({"exit_code": code, "reason": reason, "zombies": found, "by_hand": BY_HAND}))
        }
        OutputFormat::Text => {
            let mut out = String::new();
            for Zombie { kind, subject, detail, remedy } in &found {
                out.push_str(&format!("{}: `{subject}` {detail}\n  {remedy}\n", kind.name()));
            }
            let by_hand: Vec<String> = BY_HAND.iter().map(|line| format!("  - {line}\n")).collect();
            format!("{out}{reason}\n\nNo API tells these; look yourself:\n{}", by_hand.concat())
        }
    });
    Ok(code)
}

/// What nobody can ask an API about.
const BY_HAND: [&str; 3] = [
    "the webhook address in Nango's Environment Settings",
    "redirect URIs at each provider that still name Nango's callback",
    "keys of Nango in the secrets of the Worker and of CI",
];

async fn worker(args: &Worker, ui: &Ui) -> CommandResult {
    let files = read_checkout(&args.repo)?;
    let session = args.look.open(ui).await?;
    let removal = removal::removal(&files, &args.class);
    let gate = session.engine.gate(session.now()).await.map_err(explain)?;
    let stage = session.engine.retire_stage().await.map_err(explain)?;
    let rows = session.engine.store().load_triplets().await.map_err(|error| explain(error.into()))?;
    let moved = rows.iter().filter(|row| row.moves()).count();
    let adr = adr(&session, &gate, stage, moved, rows.len() - moved, &args.class);
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder).map_err(|error| {
            CommandError::usage(format!("cannot make the folder `{}`", folder.display())).because(&error)
        })?;
        for (name, text) in
            [("deploy-1.diff", &removal.first.diff), ("deploy-2.diff", &removal.second.diff), ("adr-draft.md", &adr)]
        {
            write_whole(&folder.join(name), text)?;
        }
        ui.note(&format!("wrote deploy-1.diff, deploy-2.diff and adr-draft.md to {}", folder.display()));
    }
    let done = matches!(stage, RetireStage::Done { .. });
    let (code, reason) = match done {
        true => (exit::OK, "the DO-alarm path is retired: deploy the first change, then the second".to_owned()),
        false => (
            exit::INCONCLUSIVE,
            format!("the DO-alarm path is not retired yet ({}): deploy nothing of this", stage.name()),
        ),
    };
    ui.print(&match args.look.format {
        OutputFormat::Json => {
            let deploy = |d: &removal::Deploy| json!({"diff": d.diff, "notes": d.notes});
            let report = json!({
                "exit_code": code, "reason": reason, "deploys": [deploy(&removal.first), deploy(&removal.second)],
                "references": removal.references, "adr": adr,
            });
            format!("{report:#}\n")
        }
        OutputFormat::Text => worker_text(&removal, &adr, &reason),
    });
    Ok(code)
}

fn worker_text(removal: &Removal, adr: &str, reason: &str) -> String {
    let notes = |notes: &[String]| notes.iter().map(|note| format!("# {note}\n")).collect::<String>();
    let mut out = format!("# {reason}\n\n# Deploy 1, can be rolled back\n");
    out.push_str(&notes(&removal.first.notes));
    out.push_str(&removal.first.diff);
    out.push_str("\n# Deploy 2, cannot be undone\n");
    out.push_str(&notes(&removal.second.notes));
    out.push_str(&removal.second.diff);
    if !removal.references.is_empty() {
        out.push_str("\n# Left after both, to be taken out by hand; lines as they are now\n");
        for reference in &removal.references {
            out.push_str(&format!("# {}:{} speaks of `{}`\n", reference.path, reference.line, reference.word));
        }
    }
    format!("{out}\n# ADR draft\n\n{adr}")
}

/// The decision as it can be said from the evidence; what people must add is marked.
fn adr(session: &Session, gate: &GateReport, stage: RetireStage, moved: usize, stay: usize, class: &str) -> String {
    let observed = match stage {
        RetireStage::Done { since, .. } => format!(
            "Every object was disarmed and read back at {}; none fired and none was armed until {}, longer than the \
             longest alarm horizon plus the retry tail.",
            since.to_rfc3339(),
            session.now().to_rfc3339()
        ),
        other => format!("NOT YET: the retirement stands at `{}`.", other.name()),
    };
    let criteria: String = gate
        .criteria
        .iter()
        .map(|judged| {
            format!("| `{}` | {} | {} |\n", judged.id, judged.verdict.name(), judged.reason.replace('|', "/"))
        })
        .collect();
    format!(
        "# ADR (draft): remove the DO-alarm refresh path\n\n\
         Status: proposed. Plan `{}`, evidence of {}.\n\n\
         ## Context\n\n\
         {moved} triplets moved from Nango to Composio; {stay} stay with the gateway. The `{class}` objects refreshed \
         their tokens before the cutover and stood by during it.\n\n\
         ## Evidence\n\n\
         The gate says `{}`.\n\n\
         | Criterion | Verdict | Why |\n|---|---|---|\n{criteria}\n\
         {observed}\n\n\
         ## Decision\n\n\
         Two deploys: first without the alarm handler and the binding, the class still exported (can be rolled back); \
         then without the class, with its deletion declared (cannot be undone: it deletes every object with its stored \
         refresh token).\n\n\
         ## Consequences\n\n\
         Composio alone refreshes. There is no fallback inside the Worker any more; `cutover retire restore` works until \
         the first deploy. Decided by: (name, date).\n",
        session.plan.as_deref().unwrap_or_default(),
        gate.evaluated_at.to_rfc3339(),
        gate.verdict.name(),
    )
}
