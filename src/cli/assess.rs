//! `cutover assess`: named checks before anything starts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::apply::StateArgs;
use super::config::Config;
use super::inventory::write_whole;
use super::operate::OutputFormat;
use super::plan::{Inputs, load_plan, read_text, wall_clock};
use super::{CommandError, CommandResult, Ui};
use crate::assess::{Assessment, CHECKS, Finding, Live, Severity, Subject, environment, verdict};
use crate::clients::{Clock, Endpoints, HttpOutside};
use crate::domain::time::SECOND_MS;
use crate::plan::REDIRECT_URI;

/// Between two looks after a write to KV.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Check the live systems, and the settings around them, before anything starts
///
/// Reads only, unless `--write` allows a probe entry in the target namespace (removed again) and one row in
/// `kv_audit`. Exits with 3 on an error, with 4 when something could not be found out. The facts that it
/// finds can go into a plan: `cutover plan --probes`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover assess
  cutover assess --plan plans/prod.json --out probes.json
  cutover assess --only nango-key,composio-key
  cutover assess --write --format json
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

/// Checks that ask a live system.
const LIVE: [&str; 15] = [
    "nango-key",
    "nango-integrations",
    "nango-connections",
    "composio-key",
    "composio-toolkits",
    "composio-auth-configs",
    "composio-accounts",
    "composio-webhooks",
    "cloudflare-kv",
    "cloudflare-kv-latency",
    "cloudflare-d1",
    "gateway-admin",
    "gateway-hot-path",
    "clock-skew",
    "rate-limits",
];

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
    let mut found = Assessment::default();
    if LIVE.iter().chain(&["tls", "callbacks", "nango-webhook-key"]).any(|name| names.contains(name)) {
        let config = Config::load(ui.config.as_deref())?;
        let endpoints = config.endpoints()?;
        let keys = config.shim()?.nango_keys.len();
        found.findings.extend(settings(&names, &endpoints, keys));
        let live = super::runtime()?.block_on(live(args, &names, endpoints))?;
        found.findings.extend(live.findings);
        found.probes = live.probes;
    }
    if names.contains("state") {
        found.findings.push(super::runtime()?.block_on(state(&args.state)));
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

async fn live(args: &AssessArgs, names: &BTreeSet<&str>, endpoints: Endpoints) -> Result<Assessment, CommandError> {
    let inputs = Inputs { policy: args.policy.clone(), catalogue: args.catalogue.clone(), ..Inputs::default() };
    let (policy, catalogue) = (inputs.load_policy()?, inputs.load_catalogue()?);
    let ahead_ms = inputs.now()?.since(wall_clock());
    let skew_max_ms = i64::from(policy.criteria.clock_skew_max_s) * SECOND_MS;
    let subject = match &args.plan {
        Some(path) => Subject::of(&load_plan(path)?, skew_max_ms),
        None => Subject { skew_max_ms, ..Subject::default() },
    };
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
    Ok(live.run(names, args.write).await)
}

/// What the settings alone tell.
fn settings(names: &BTreeSet<&str>, endpoints: &Endpoints, webhook_keys: usize) -> Vec<Finding> {
    let mut found = Vec::new();
    if names.contains("nango-webhook-key") {
        found.push(match webhook_keys {
            0 => Finding {
                check: "nango-webhook-key",
                severity: Severity::Warning,
                evidence: "`CUTOVER_NANGO_WEBHOOK_KEY` is not set: webhooks are refused".to_owned(),
                remedy: "set it; without it polling finds everything, a little later".to_owned(),
            },
            n => Finding {
                check: "nango-webhook-key",
                severity: Severity::Ok,
                evidence: format!("{n} keys; it is not the API key, which signs nothing"),
                remedy: String::new(),
            },
        });
    }
    let bases = [
        ("Nango", Some(&endpoints.nango.base)),
        ("Composio", Some(&endpoints.composio.base)),
        ("Cloudflare", Some(&endpoints.cloudflare.base)),
        ("the gateway", Some(&endpoints.gateway.base)),
        ("the stand-in for providers", endpoints.provider.base_override.as_ref()),
    ];
    if names.contains("tls") {
        let plain: Vec<&str> =
            bases.iter().filter(|(_, url)| url.is_some_and(|url| url.scheme() != "https")).map(|(n, _)| *n).collect();
        found.push(if plain.is_empty() {
            Finding {
                check: "tls",
                severity: Severity::Ok,
                evidence: "all addresses are https".into(),
                remedy: String::new(),
            }
        } else {
            Finding {
                check: "tls",
                severity: Severity::Info,
                evidence: format!("not encrypted, since it is on this machine: {}", plain.join(", ")),
                remedy: "fine for a sandbox; anywhere else it is refused".to_owned(),
            }
        });
    }
    if names.contains("callbacks") {
        let nango = endpoints.nango.base.join("/oauth/callback").map(|url| url.to_string()).unwrap_or_default();
        found.push(Finding {
            check: "callbacks",
            severity: Severity::Info,
            evidence: format!(
                "providers must accept {nango} until Nango is retired, and {REDIRECT_URI} from the first consent on"
            ),
            remedy: "no API tells what a provider accepts: look at each OAuth app".to_owned(),
        });
    }
    found
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
