//! `cutover assess`: named checks before anything starts.

mod settings;
mod shim;
mod tls;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::assess::{
    Assessment, CHECKS, Finding, Live, Needs, Severity, Subject, environment, verdict, verify_key, writes,
};
use crate::cli::apply::StateArgs;
use crate::cli::config::Config;
use crate::cli::inventory::write_whole;
use crate::cli::plan::{Inputs, load_plan, read_text, wall_clock};
use crate::cli::{CommandError, CommandResult, OutputFormat, Ui};
use crate::clients::{self, Clock, Endpoints, HttpOutside};
use crate::domain::time::SECOND_MS;

/// Between two looks after a write to KV.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Check the live systems, and the settings around them, before anything starts
///
/// Changes nothing, unless `--write` allows a probe entry in the target namespace and a Connect session (both
/// removed again) and one row in `kv_audit`. Exits with 3 on an error, with 4 when something could not be found out. The facts that it
/// finds can go into a plan: `cutover plan --probes`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover assess
  cutover assess --plan plans/prod.json --out probes.json
  cutover assess --only nango-key,composio-key
  cutover assess --write --dry-run
  cutover assess --write --format json
  cutover assess --only webhook-delivery --shim https://shim.example.com
  cutover assess --only nango-environment,nango-replicas --nango-env nango/.env --nango-replicas 2
  cutover assess --list")]
pub struct AssessArgs {
    /// Only these checks (comma-separated, can be repeated)
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = check)]
    only: Vec<&'static str>,
    /// Show the names of all checks
    #[arg(long)]
    list: bool,
    /// Plan whose triplets, toolkits and integrations are looked at
    #[arg(long, value_name = "PLAN")]
    plan: Option<PathBuf>,
    /// Policy with the bounds
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Facts that are laid over the built-in catalogue
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
    /// Allow the checks that write
    #[arg(long)]
    write: bool,
    /// Say what `--write` would write, and write nothing
    #[arg(long, requires = "write")]
    dry_run: bool,
    /// Our running shim: it is sent webhooks that it must take, and some that it must refuse
    #[arg(long, value_name = "URL")]
    shim: Option<reqwest::Url>,
    /// Environment file of a self-hosted Nango
    #[arg(long, value_name = "FILE")]
    nango_env: Option<PathBuf>,
    /// How many servers it runs
    #[arg(long, value_name = "N", default_value_t = 1)]
    nango_replicas: u32,
    /// Environment file of the application that talks to Nango
    #[arg(long, value_name = "FILE")]
    app_env: Option<PathBuf>,
    /// Save the dated facts for `cutover plan --probes`
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    state: StateArgs,
    /// Shape of the report on stdout
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

fn check(text: &str) -> Result<&'static str, String> {
    CHECKS.iter().find(|check| check.name == text).map(|check| check.name).ok_or_else(|| {
        let names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        format!("there is no such check; known are {}", names.join(", "))
    })
}

/// Checks that need no system and none of its settings.
const APART: [&str; 4] = ["state", "nango-environment", "nango-replicas", "app-environment"];

/// # Errors
/// Exit code 2 for bad input and missing settings. What is found is exit code 3 or 4.
pub fn run(args: &AssessArgs, ui: &Ui) -> CommandResult {
    if args.list {
        let lines: Vec<String> = CHECKS.iter().map(|check| format!("{:<22} {}\n", check.name, check.what)).collect();
        ui.print(&lines.concat());
        return Ok(crate::exit::OK);
    }
    let all = || CHECKS.iter().map(|check| check.name).collect();
    let names: BTreeSet<&str> = if args.only.is_empty() { all() } else { args.only.iter().copied().collect() };
    let mut found = Assessment { findings: not_run(args, &names)?, ..Assessment::default() };
    if names.iter().any(|name| !APART.contains(name)) {
        let config = Config::load(ui.config.as_deref())?;
        let endpoints = config.endpoints()?;
        let routes = config.shim()?;
        found.findings.extend(settings::judge(&names, &endpoints, &routes));
        crate::cli::runtime()?.block_on(async {
            if names.contains("tls") {
                found.findings.extend(tls::judge(&endpoints, wall_clock()).await);
            }
            if let Some(url) = args.shim.as_ref().filter(|_| names.contains("webhook-delivery")) {
                found.findings.extend(shim::deliver(url, &routes, wall_clock()).await?);
            }
            if names.contains("nango-verify-key") {
                found.findings.push(verifier(&config).await?);
            }
            let live = live(args, &names, endpoints).await?;
            found.findings.extend(live.findings);
            found.probes = live.probes;
            Ok::<(), CommandError>(())
        })?;
    }
    if names.contains("state") {
        found.findings.push(crate::cli::runtime()?.block_on(state(&args.state)));
    }
    found.findings.extend(files(args, &names)?);
    // In the order of the list, so that two reports can be compared.
    let place = |finding: &Finding| CHECKS.iter().position(|check| check.name == finding.check);
    found.findings.sort_by_key(place);
    if let Some(path) = &args.out {
        let probes = serde_json::to_string_pretty(&found.probes)
            .map_err(|error| CommandError::failed("the facts cannot be written").because(&error))?;
        write_whole(path, &(probes + "\n"))?;
        ui.note(&format!("saved {} facts to {}", found.probes.len(), path.display()));
    }
    let (code, reason) = verdict(&found.findings);
    ui.print(&match args.format {
        OutputFormat::Text => text(&found.findings, &reason),
        OutputFormat::Json => {
            let report = json!({
                "exit_code": code, "reason": reason, "at": wall_clock().to_rfc3339(), "findings": found.findings,
                "probes": found.probes,
            });
            format!("{report:#}\n")
        }
    });
    Ok(code)
}

/// The checks that cannot run as it was called: asked for by name they are a mistake, else they are said.
fn not_run(args: &AssessArgs, names: &BTreeSet<&str>) -> Result<Vec<Finding>, CommandError> {
    let given = |option: &str| match option {
        "--write" => args.write,
        "--shim" => args.shim.is_some(),
        "--nango-env" => args.nango_env.is_some(),
        _ => args.app_env.is_some(),
    };
    let mut found = Vec::new();
    for check in CHECKS.iter().filter(|check| names.contains(check.name)) {
        if args.dry_run
            && let Some(what) = writes(check.name)
        {
            found.push(Finding::new(check.name, Severity::Info, format!("dry run: would {what}"), ""));
            continue;
        }
        let Needs::Option(option) = check.needs else { continue };
        if given(option) {
            continue;
        }
        if !args.only.is_empty() {
            return Err(CommandError::usage(format!("the check `{}` needs `{option}`", check.name))
                .hint(format!("it looks whether {}", check.what)));
        }
        found.push(Finding::new(check.name, Severity::Info, "not run", format!("`{option}` runs it")));
    }
    Ok(found)
}

async fn verifier(config: &Config) -> Result<Finding, CommandError> {
    let key = config.nango_verifier()?.map(|endpoint| clients::source_rights(endpoint, Arc::new(wall_clock)));
    let key = key.transpose().map_err(|error| CommandError::usage("cannot use the settings").because(&error))?;
    Ok(verify_key(key.as_ref()).await)
}

async fn live(args: &AssessArgs, names: &BTreeSet<&str>, endpoints: Endpoints) -> Result<Assessment, CommandError> {
    let inputs = Inputs { policy: args.policy.clone(), catalogue: args.catalogue.clone(), ..Inputs::default() };
    let (policy, catalogue) = (inputs.load_policy()?, inputs.load_catalogue()?);
    let ahead_ms = inputs.now()?.since(wall_clock());
    let skew_max_ms = i64::from(policy.criteria.clock_skew_max_s) * SECOND_MS;
    let subject = match &args.plan {
        Some(path) => Subject::of(&load_plan(path)?),
        None => Subject::default(),
    };
    let subject = Subject { skew_max_ms, limits: policy.rates.limits(), ..subject };
    let clock: Clock = Arc::new(move || wall_clock().plus_ms(ahead_ms));
    let outside = HttpOutside::new(endpoints, Arc::clone(&clock))
        .map_err(|error| CommandError::usage("cannot use the settings").because(&error))?;
    let live = Live {
        outside: &outside,
        catalogue: &catalogue,
        subject: &subject,
        // One command, one thread, and nothing else to do meanwhile.
        wait: &|| std::thread::sleep(LOOK_EVERY),
        clock: &*clock,
    };
    Ok(live.run(names, args.write && !args.dry_run).await)
}

async fn state(args: &StateArgs) -> Finding {
    let check = "state";
    if !args.exists() {
        let evidence = format!("there is no state `{}` yet", args.shown());
        return Finding { check, severity: Severity::Info, evidence, remedy: "`cutover apply` makes it".to_owned() };
    }
    match args.open_beside().await {
        Ok(store) => {
            let journal = store.verify_journal().await;
            let (severity, evidence) = match journal {
                Ok(entries) => {
                    (Severity::Ok, format!("opens, migrations applied, {entries} journal entries unchanged"))
                }
                Err(error) => (Severity::Error, error.to_string()),
            };
            Finding { check, severity, evidence, remedy: String::new() }
        }
        Err(error) => Finding {
            check,
            severity: Severity::Error,
            evidence: error.to_string(),
            remedy: "name the state and its keys as `--state` and `--key-file`".to_owned(),
        },
    }
}

/// The checks of environment files that were named.
fn files(args: &AssessArgs, names: &BTreeSet<&str>) -> Result<Vec<Finding>, CommandError> {
    let read = |path: &PathBuf| {
        environment::parse(&read_text(path)?).map_err(|line| {
            CommandError::usage(format!("line {line} of `{}` is not a setting", path.display()))
                .hint("`NAME=value` is wanted, one a line")
        })
    };
    let mut found = Vec::new();
    if let Some(path) = &args.nango_env {
        found.extend(environment::nango(&read(path)?, args.nango_replicas));
    }
    if let Some(path) = &args.app_env {
        found.extend(environment::application(&read(path)?));
    }
    found.retain(|finding| names.contains(finding.check));
    Ok(found)
}

fn text(findings: &[Finding], reason: &str) -> String {
    let mut out = String::new();
    for Finding { check, severity, evidence, remedy } in findings {
        out.push_str(&format!("{:<8} {check:<22} {evidence}\n", severity.name()));
        if !remedy.is_empty() && *severity > Severity::Ok {
            out.push_str(&format!("{:<31} {remedy}\n", ""));
        }
    }
    format!("{out}\n{reason}\n")
}
