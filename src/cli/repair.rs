//! `cutover repair`: deliveries that were given up, taken up again or dropped by a person.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::apply::StateArgs;
use super::person::speaker;
use super::plan::Inputs;
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::domain::time::{SECOND_MS, Timestamp, format_duration_ms};
use crate::domain::triplet::Triplet;
use crate::exit;
use crate::store::{BacklogRow, Sink, Store, StoreError};
use crate::verify::{RepairError, Repaired, repair_from};

/// Deliveries that are listed.
const LIMIT: u32 = 10_000;

/// Look at deliveries that were given up, and decide about them
///
/// A delivery is given up when a sink refuses it for good, or when it failed 60 times while the sink took
/// others. A newer version of the token takes it up by itself; until then a person decides. Works beside
/// a running shim, which sees the decision within seconds.
///
/// With --from, what a comparison found missing or stale is delivered again: the newest version that
/// the journal has, through the mirror. What somebody else wrote last is left alone.
#[derive(clap::Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  cutover verify kv:source kv:target --checkpoint run.json; cutover repair --from run.json
  cutover repair list
  cutover repair explain acme:gmail:default
  cutover repair retry acme:gmail:default --sink composio
  cutover repair retry --all
  cutover repair drop acme:slack:default --reason 'tenant left, account deleted'"
)]
pub struct RepairArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Shape of the report
    #[arg(long, value_enum, default_value = "text", global = true, value_name = "FORMAT")]
    format: OutputFormat,
    /// Deliver again what a run of `cutover verify --checkpoint RUN` found missing or stale
    #[arg(long, value_name = "RUN")]
    from: Option<PathBuf>,
    /// Who decides, for the audit trail [default: USER]
    #[arg(long, global = true, value_name = "NAME")]
    by: Option<String>,
    #[command(subcommand)]
    command: Option<RepairCommand>,
}

#[derive(clap::Subcommand, Debug)]
enum RepairCommand {
    /// List dead letters, and with --pending also what waits
    List {
        /// Also what waits to be tried again
        #[arg(long)]
        pending: bool,
    },
    /// Say what each sink has of a triplet, what it lacks and why
    Explain {
        #[arg(value_name = "TRIPLET", value_parser = triplet)]
        triplet: Triplet,
    },
    /// Try dead letters again, from now on as if they had never failed
    Retry {
        #[arg(value_name = "TRIPLET", value_parser = triplet, required_unless_present = "all")]
        triplet: Option<Triplet>,
        /// Only at this sink [default: all of them]
        #[arg(long, value_parser = sink, value_name = "SINK")]
        sink: Option<Sink>,
        /// Every dead letter
        #[arg(long, conflicts_with = "triplet")]
        all: bool,
    },
    /// Drop dead letters: the sink keeps what it has until a newer version comes
    Drop {
        #[arg(value_name = "TRIPLET", value_parser = triplet)]
        triplet: Triplet,
        /// Only at this sink [default: all of them]
        #[arg(long, value_parser = sink, value_name = "SINK")]
        sink: Option<Sink>,
        /// Why, for the audit trail
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

fn triplet(text: &str) -> Result<Triplet, String> {
    Triplet::parse(text).map_err(|error| error.to_string())
}

fn sink(text: &str) -> Result<Sink, String> {
    let names = Sink::ALL.map(Sink::name).join(", ");
    Sink::ALL.into_iter().find(|sink| sink.name() == text).ok_or_else(|| format!("known sinks are {names}"))
}

/// # Errors
/// Exit code 2 for bad input, when nobody said who decides, and for a state that is not there, 1 when it cannot be read. `list` exits
/// with 3 when there are dead letters, `retry` and `drop` with 3 when there was none to decide about.
pub fn run(args: &RepairArgs, ui: &Ui) -> CommandResult {
    if !args.state.exists() {
        return Err(CommandError::usage("there is no such state").hint("name it as `--state`"));
    }
    super::runtime()?.block_on(async {
        let store = args.state.open_beside().await?;
        let now = Inputs::default().now()?;
        let Some(command) = &args.command else {
            let Some(run) = &args.from else {
                return Err(CommandError::usage("say what to do: `list`, `explain`, `retry`, `drop` or `--from RUN`"));
            };
            return from_run(run, &store, &speaker(args.by.as_deref())?, now, args.format, ui).await;
        };
        let by = match command {
            RepairCommand::List { .. } | RepairCommand::Explain { .. } => String::new(),
            RepairCommand::Retry { .. } | RepairCommand::Drop { .. } => speaker(args.by.as_deref())?,
        };
        let report = carry_out(&store, command, &by, now)
            .await
            .map_err(|error| CommandError::failed("the state cannot be used").because(&error))?;
        match args.format {
            OutputFormat::Text => ui.print(&report.text(now)),
            OutputFormat::Json => ui.print(&format!("{:#}\n", report.json())),
        }
        Ok(report.code)
    })
}

/// Delivers again what a comparison found missing or stale.
async fn from_run(run: &Path, store: &Store, by: &str, now: Timestamp, format: OutputFormat, ui: &Ui) -> CommandResult {
    let Repaired { queued, left } = repair_from(run, store, now).await.map_err(|error| {
        let cannot = match &error {
            RepairError::Store(_) => CommandError::failed("cannot repair"),
            _ => CommandError::usage("cannot repair"),
        };
        cannot.because(&error)
    })?;
    let event = json!({"event": "delivered again", "run": run, "queued": queued.len(), "left": left.len()}).to_string();
    store
        .record_action(by, "repair", &event, now)
        .await
        .map_err(|error| CommandError::failed("cannot write the audit trail").because(&error))?;
    // What is left alone still differs, and a person must look.
    let code = if left.is_empty() { exit::OK } else { exit::FAIL };
    let reason = format!("{} deliveries queued, {} keys left alone", queued.len(), left.len());
    ui.print(&match format {
        OutputFormat::Text => {
            let mut out = String::new();
            for (triplet, sink) in &queued {
                let _ = writeln!(out, "queued  {triplet}  {}", sink.name());
            }
            for (key, why) in &left {
                let _ = writeln!(out, "left    {}  {why}", key.escape_debug());
            }
            let _ = writeln!(out, "{reason}");
            out
        }
        OutputFormat::Json => {
            let queued: Vec<_> =
                queued.iter().map(|(triplet, sink)| json!({"triplet": triplet, "sink": sink.name()})).collect();
            let left: Vec<_> = left.iter().map(|(key, why)| json!({"key": key, "reason": why})).collect();
            format!("{:#}\n", json!({"exit_code": code, "reason": reason, "queued": queued, "left": left}))
        }
    });
    Ok(code)
}

/// What was found or done.
struct Report {
    code: u8,
    reason: String,
    rows: Vec<BacklogRow>,
    /// What each sink has, for `explain`.
    sinks: Vec<(Sink, u64, u64)>,
}

/// `by` decides, for the audit trail.
async fn carry_out(store: &Store, command: &RepairCommand, by: &str, now: Timestamp) -> Result<Report, StoreError> {
    let mut rows = store.load_backlog(LIMIT).await?;
    match command {
        RepairCommand::List { pending } => {
            rows.retain(|row| *pending || row.dead.is_some());
            let dead = rows.iter().filter(|row| row.dead.is_some()).count();
            let code = if dead > 0 { exit::FAIL } else { exit::OK };
            Ok(Report { code, reason: format!("{dead} dead letters"), rows, sinks: Vec::new() })
        }
        RepairCommand::Explain { triplet } => {
            rows.retain(|row| row.triplet == *triplet);
            let mut sinks = Vec::new();
            for sink in Sink::ALL {
                let state = store.load_sink(sink).await?.into_iter().find(|state| state.triplet == *triplet);
                sinks.extend(state.map(|state| (sink, state.version, state.delivered)));
            }
            let lacking = rows.len();
            let reason = match (sinks.is_empty(), lacking) {
                (true, _) => format!("`{triplet}` is not mirrored"),
                (_, 0) => "every sink has the newest version".to_owned(),
                (_, n) => format!("{n} sinks lack the newest version"),
            };
            let code = if lacking > 0 { exit::FAIL } else { exit::OK };
            Ok(Report { code, reason, rows, sinks })
        }
        RepairCommand::Retry { triplet, sink, all } => {
            let mut done = Vec::new();
            for row in chosen(rows, triplet.as_ref().filter(|_| !all), *sink) {
                if store.revive_delivery(row.sink, &row.triplet, now).await? {
                    let json = json!({"retry": row.sink.name(), "version": row.version}).to_string();
                    store.record_action(by, &row.triplet.to_string(), &json, now).await?;
                    done.push(row);
                }
            }
            Ok(decided("taken up again", done))
        }
        RepairCommand::Drop { triplet, sink, reason } => {
            let mut done = Vec::new();
            for row in chosen(rows, Some(triplet), *sink) {
                if store.drop_delivery(row.sink, &row.triplet).await? {
                    let json = json!({"drop": row.sink.name(), "version": row.version, "reason": reason}).to_string();
                    store.record_action(by, &row.triplet.to_string(), &json, now).await?;
                    done.push(row);
                }
            }
            Ok(decided("dropped", done))
        }
    }
}

fn chosen(rows: Vec<BacklogRow>, triplet: Option<&Triplet>, sink: Option<Sink>) -> Vec<BacklogRow> {
    let fits = |row: &BacklogRow| {
        row.dead.is_some() && triplet.is_none_or(|t| *t == row.triplet) && sink.is_none_or(|s| s == row.sink)
    };
    rows.into_iter().filter(fits).collect()
}

fn decided(what: &str, rows: Vec<BacklogRow>) -> Report {
    let code = if rows.is_empty() { exit::FAIL } else { exit::OK };
    Report { code, reason: format!("{} dead letters {what}", rows.len()), rows, sinks: Vec::new() }
}

impl Report {
    fn text(&self, now: Timestamp) -> String {
        let mut out = String::new();
        for (sink, version, delivered) in &self.sinks {
            let _ = writeln!(out, "{:<10} has version {delivered} of {version}", sink.name());
        }
        for row in &self.rows {
            let _ =
                write!(out, "{}  {}  version {} (has {})", row.triplet, row.sink.name(), row.version, row.delivered);
            let age = format_duration_ms(now.since(row.captured_at) / SECOND_MS * SECOND_MS);
            let _ = match (&row.dead, row.next_at) {
                (Some(why), _) => writeln!(out, "  {age} old, given up: {why}"),
                (None, Some(at)) => {
                    writeln!(out, "  {age} old, {} attempts, next try {}", row.attempts, at.to_rfc3339())
                }
                (None, None) => writeln!(out),
            };
        }
        let _ = writeln!(out, "{}", self.reason);
        out
    }

    fn json(&self) -> serde_json::Value {
        let deliveries: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "triplet": row.triplet, "sink": row.sink.name(), "version": row.version, "delivered": row.delivered,
                    "attempts": row.attempts, "captured_at": row.captured_at, "next_at": row.next_at, "dead": row.dead,
                })
            })
            .collect();
        let sinks: Vec<_> = self
            .sinks
            .iter()
            .map(|(sink, version, delivered)| json!({"sink": sink.name(), "version": version, "delivered": delivered}))
            .collect();
        json!({"exit_code": self.code, "reason": self.reason, "deliveries": deliveries, "sinks": sinks})
    }
}
