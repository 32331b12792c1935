//! `cutover retire`: the DO-alarm path and Nango, in stages; what the Worker's team must deploy.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::apply::explain;
use super::config::Config;
use super::inventory::write_whole;
use super::operate::{Job, OperateArgs, OutputFormat, Session, agree, carry_out, confirm};
use super::{CommandError, CommandResult, Ui};
use crate::clients::HttpOutside;
use crate::domain::secret::Secret;
use crate::engine::{GateReport, RetireStage, Zombie, ZombieKind};
use crate::exit;
use crate::plan::removal::{self, File, Removal};
use crate::ports::{AlarmMode, GatewayRead, Outside};

/// Folders of a checkout that hold nothing of the team's own.
const SKIPPED: [&str; 7] = [".git", "node_modules", "dist", "build", ".wrangler", "target", "coverage"];

/// Files of a checkout that are read at most, and bytes of each.
const FILES_MAX: usize = 20_000;
const FILE_BYTES_MAX: u64 = 1024 * 1024;

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

/// Where else to look
#[derive(clap::Args, Clone, Debug)]
struct Elsewhere {
    /// Another environment's gateway to look at (can be repeated); its admin key is in
    /// CUTOVER_GATEWAY_ADMIN_KEY_<NAME>
    #[arg(long, value_name = "NAME=URL", value_parser = environment)]
    environment: Vec<(String, reqwest::Url)>,
    /// A checkout of the gateway to look for what still speaks of the class
    #[arg(long, value_name = "PATH")]
    repo: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
struct DoAlarm {
    #[command(flatten)]
    elsewhere: Elsewhere,
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
    operate: OperateArgs,
}

#[derive(clap::Args, Debug)]
struct Sweep {
    #[command(flatten)]
    elsewhere: Elsewhere,
    #[command(flatten)]
    operate: OperateArgs,
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

fn environment(text: &str) -> Result<(String, reqwest::Url), String> {
    let wanted = || "NAME=URL is wanted, such as staging=https://gateway.staging.example.com".to_owned();
    let (name, url) = text.split_once('=').ok_or_else(wanted)?;
    let fits = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let url = reqwest::Url::parse(url).ok().filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
    match (fits, url) {
        (true, Some(url)) => Ok((name.to_owned(), url)),
        _ => Err(wanted()),
    }
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
                let found = look_elsewhere(&args.elsewhere, &session, ui).await?;
                carry_out(session, &Job::RetireDoAlarm(found), json!({}), ui).await
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
                let job = match (args.prepare, args.undo) {
                    (true, _) => Job::PrepareNango,
                    (_, true) => Job::UndoNango,
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

/// What lives where the engine cannot look: other environments, and the code.
async fn look_elsewhere(elsewhere: &Elsewhere, session: &Session, ui: &Ui) -> Result<Vec<Zombie>, CommandError> {
    let mut found = Vec::new();
    for (name, url) in &elsewhere.environment {
        found.extend(look_at_environment(name, url, session, ui).await?);
    }
    Ok(found)
}

async fn look_at_environment(
    name: &str,
    url: &reqwest::Url,
    session: &Session,
    ui: &Ui,
) -> Result<Vec<Zombie>, CommandError> {
    let variable = format!("CUTOVER_GATEWAY_ADMIN_KEY_{}", name.to_uppercase().replace('-', "_"));
    let key = std::env::var(&variable).ok().filter(|key| !key.is_empty()).ok_or_else(|| {
        CommandError::usage(format!("`{variable}` is not set"))
            .hint(format!("it holds the admin key of the gateway in environment `{name}`"))
    })?;
    let mut endpoints = Config::load(ui.config.as_deref())?.endpoints()?;
    endpoints.gateway.base = url.clone();
    endpoints.gateway.admin_key = Secret::new(key);
    let outside = HttpOutside::new(endpoints, Arc::clone(&session.clock))
        .map_err(|error| CommandError::usage("cannot use the settings").because(&error))?;
    let alarms = outside.gateway().list_alarms().await.map_err(|error| {
        CommandError::new(exit::INCONCLUSIVE, format!("environment `{name}` cannot be looked at")).because(&error)
    })?;
    let armed: Vec<_> = alarms.iter().filter(|a| a.mode != AlarmMode::Disarmed || a.alarm_at.is_some()).collect();
    let Some(first) = armed.first() else { return Ok(Vec::new()) };
    Ok(vec![Zombie {
        kind: ZombieKind::Environment,
        subject: name.to_owned(),
        detail: format!("{} of its objects are armed, such as `{}`", armed.len(), first.triplet),
        remedy: "retire that environment too: its objects refresh the same grants".to_owned(),
    }])
}

async fn sweep(args: &Sweep, ui: &Ui) -> CommandResult {
    let session = Session::open(&args.operate, ui).await?;
    let since = match session.engine.retire_stage().await.map_err(explain)? {
        RetireStage::Silent { since, .. } | RetireStage::Done { since } => Some(since),
        RetireStage::NotBegun { .. } | RetireStage::Reporting { .. } => None,
    };
    let found = session.engine.sweep(since, session.now()).await.map_err(explain)?;
    let mut found = found.map_err(|error| {
        CommandError::new(exit::INCONCLUSIVE, "the sweep could not look everywhere").because(&error)
    })?;
    found.extend(look_elsewhere(&args.elsewhere, &session, ui).await?);
    if let Some(repo) = &args.elsewhere.repo {
        let removal = removal::removal(&read_checkout(repo)?, removal::CLASS);
        found.extend(removal.references.into_iter().map(|reference| Zombie {
            kind: ZombieKind::Reference,
            subject: format!("{}:{}", reference.path, reference.line),
            detail: format!("speaks of `{}`", reference.word),
            remedy: "take it out with the class".to_owned(),
        }));
    }
    let code = if found.is_empty() { exit::OK } else { exit::FAIL };
    let reason = match found.len() {
        0 => "no zombie found".to_owned(),
        n => format!("{n} zombies found"),
    };
    ui.print(&match args.operate.format {
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
    let session = Session::open(&args.operate, ui).await?;
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
    ui.print(&match args.operate.format {
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
        out.push_str("\n# Left after both, to be taken out by hand\n");
        for reference in &removal.references {
            out.push_str(&format!("# {}:{} speaks of `{}`\n", reference.path, reference.line, reference.word));
        }
    }
    format!("{out}\n# ADR draft\n\n{adr}")
}

/// The decision as it can be said from the evidence; what people must add is marked.
fn adr(session: &Session, gate: &GateReport, stage: RetireStage, moved: usize, stay: usize, class: &str) -> String {
    let observed = match stage {
        RetireStage::Done { since } => format!(
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

/// The text files of a checkout, in the order of their paths.
fn read_checkout(repo: &Path) -> Result<Vec<File>, CommandError> {
    let cannot = |path: &Path, error: &std::io::Error| {
        CommandError::usage(format!("cannot read the checkout `{}`", path.display())).because(error)
    };
    let (mut open, mut files) = (vec![repo.to_path_buf()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| cannot(&folder, &error))? {
            let entry = entry.map_err(|error| cannot(&folder, &error))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(|error| cannot(&folder, &error))?);
            let name = entry.file_name().to_string_lossy().into_owned();
            // Links may lead out of the checkout, and round in circles.
            if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                open.push(path);
            } else if kind.is_file() && is_text(&name) {
                let size = entry.metadata().map_err(|error| cannot(&path, &error))?.len();
                if size > FILE_BYTES_MAX {
                    continue;
                }
                if files.len() == FILES_MAX {
                    return Err(CommandError::usage(format!("`{}` holds more than {FILES_MAX} files", repo.display()))
                        .hint("name the gateway's own folder as `--repo`"));
                }
                let bytes = std::fs::read(&path).map_err(|error| cannot(&path, &error))?;
                let Ok(text) = String::from_utf8(bytes) else { continue };
                let shown = path.strip_prefix(repo).unwrap_or(&path).to_string_lossy().replace('\\', "/");
                files.push(File { path: shown, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn is_text(name: &str) -> bool {
    let end = name.rsplit('.').next().unwrap_or_default();
    let known = ["ts", "mts", "cts", "tsx", "js", "mjs", "cjs", "jsx", "toml", "json", "jsonc", "yml", "yaml", "sh"];
    known.contains(&end) && !matches!(name, "package-lock.json")
}
