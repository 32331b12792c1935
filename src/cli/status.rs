//! `cutover status`: where every triplet stands, until when it can go back, and what stops it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::apply::{StateArgs, explain};
use super::ctl::control_json;
use super::plan::Inputs;
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::domain::criteria::{Note, Verdict};
use crate::domain::custody::{Custody, Stage};
use crate::domain::time::{Timestamp, format_duration_ms};
use crate::exit;
use crate::store::{Store, StoreError, TripletRow};

/// Show where every triplet of the applied plan stands
///
/// Stage, who refreshes, where the gateway reads, until when it can go back and what makes it final, and
/// what holds it. Asks nobody outside. Works beside a shim. Exits with 6 when a person must decide something.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover status
  cutover status --rows
  cutover status --format json | jq '.rows[] | select(.held)'")]
pub struct StatusArgs {
    /// One line per triplet
    #[arg(long)]
    rows: bool,
    #[command(flatten)]
    state: StateArgs,
    /// Shape of the report on stdout
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

struct Status {
    plan: String,
    rows: Vec<TripletRow>,
    controls: Vec<Value>,
    throttle_ms: i64,
    questions: Vec<(String, String)>,
    dead_grants: Vec<Note>,
    gate: Option<Verdict>,
    retire: Option<String>,
    now: Timestamp,
}

/// # Errors
/// Exit code 7 when no plan is applied, 1 when the state cannot be read.
pub fn run(args: &StatusArgs, ui: &Ui) -> CommandResult {
    let not_applied = || {
        CommandError::new(exit::REFUSED, "no plan is applied in this state")
            .hint("run `cutover apply PLAN` first, or name its state as `--state`")
    };
    if !args.state.exists() {
        return Err(not_applied());
    }
    let now = Inputs::default().now()?;
    super::runtime()?.block_on(async {
        let store = args.state.open_beside().await?;
        let status = load(&store, now).await.map_err(|error| explain(error.into()))?.ok_or_else(not_applied)?;
        let code = if status.questions.is_empty() { exit::OK } else { exit::AMBIGUOUS };
        ui.print(&match args.format {
            OutputFormat::Text => status.text(args.rows),
            OutputFormat::Json => status.json(code),
        });
        store.close().await.map_err(|error| explain(error.into()))?;
        Ok(code)
    })
}

async fn load(store: &Store, now: Timestamp) -> Result<Option<Status>, StoreError> {
    let Some(plan) = store.load_plan_id().await? else { return Ok(None) };
    Ok(Some(Status {
        plan,
        rows: store.load_triplets().await?,
        controls: store.load_controls().await?.iter().map(control_json).collect(),
        throttle_ms: store.load_meta("throttle_ms").await?.and_then(|ms| ms.parse().ok()).unwrap_or(0),
        questions: store.load_ambiguous().await?,
        dead_grants: store.load_dead_grants().await?,
        gate: store.load_last_gate_run().await?.map(|run| run.verdict),
        retire: store.load_meta("retire").await?,
        now,
    }))
}

/// Until when a triplet can go back, and what makes it final.
fn way_back(custody: &Custody, now: Timestamp) -> (Option<Timestamp>, String) {
    match custody.stage {
        _ if !custody.route.moves() => (None, "it does not move".to_owned()),
        Stage::Planned | Stage::Mirroring => (None, "nothing to go back from: reads are at the source".to_owned()),
        Stage::Consented | Stage::Verified if custody.moving.is_none() => (
            None,
            "reads are at the source; where one client may hold one grant, the consent ended the old one".to_owned(),
        ),
        Stage::Consented | Stage::Verified => {
            (None, "its reads are on the way; `cutover reverse` calls it off".to_owned())
        }
        Stage::Switched if custody.drill => (None, "a drill: it comes back".to_owned()),
        Stage::Switched => match custody.reverse_until {
            Some(until) if now <= until => {
                let left = format_duration_ms(until.since(now));
                (
                    Some(until),
                    format!(
                        "`cutover reverse` until {} ({left}), then `cutover settle` makes it final",
                        until.to_minute()
                    ),
                )
            }
            _ if custody.untested => {
                (None, "not tested at the target yet: `cutover reverse` until `cutover switch` has".to_owned())
            }
            _ => (None, "the reverse window is over".to_owned()),
        },
        Stage::Settled if custody.retiring => {
            (None, "its retirement was begun, and `cutover retire nango` ends it".to_owned())
        }
        Stage::Settled => (None, "settled: its mirror has ended".to_owned()),
        Stage::Retired => (None, "retired: its connection at Nango is deleted".to_owned()),
    }
}

impl Status {
    fn json(&self, code: u8) -> String {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let (until, why) = way_back(&row.custody, self.now);
                json!({
                    "triplet": row.triplet, "route": row.custody.route, "wave": row.wave,
                    "stage": row.custody.stage, "read_authority": row.custody.read,
                    "refresh_authority": row.custody.refresh_authority(), "epoch": row.custody.epoch,
                    "moving": row.custody.moving, "held": row.custody.held,
                    "reversible_until": until.map(Timestamp::to_rfc3339), "way_back": why,
                    "token_expires_at": row.expires_at.map(Timestamp::to_rfc3339),
                    "account": row.custody.account,
                })
            })
            .collect();
        let questions: Vec<Value> =
            self.questions.iter().map(|(intent, question)| json!({"intent": intent, "question": question})).collect();
        let dead_grants: Vec<Value> = self
            .dead_grants
            .iter()
            .map(|n| json!({"triplet": n.subject, "since": n.at.to_rfc3339(), "reason": n.detail}))
            .collect();
        let reason = match self.questions.len() {
            0 => "nothing waits for a decision".to_owned(),
            n => format!("{n} questions wait for a decision"),
        };
        let report = json!({
            "exit_code": code, "reason": reason, "plan": self.plan, "rows": rows, "controls": self.controls,
            "throttle_ms": self.throttle_ms, "questions": questions, "dead_grants": dead_grants, "gate": self.gate, "retire_do_alarm": self.retire,
        });
        format!("{report:#}\n")
    }

    fn text(&self, rows: bool) -> String {
        let mut out = format!("Plan {}\n\n", self.plan);
        let mut waves: BTreeMap<Option<u32>, BTreeMap<&str, usize>> = BTreeMap::new();
        for row in &self.rows {
            let stage = match (row.moves(), &row.custody.held) {
                (false, _) => "stay",
                (true, Some(_)) => "held",
                (true, None) => row.custody.stage.name(),
            };
            *waves.entry(row.wave.filter(|_| row.moves())).or_default().entry(stage).or_default() += 1;
        }
        for (wave, stages) in waves {
            let name = wave.map_or_else(|| "no wave".to_owned(), |n| format!("wave {n}"));
            let stages: Vec<String> = stages.into_iter().map(|(stage, n)| format!("{n} {stage}")).collect();
            let _ = writeln!(out, "  {name:<9} {}", stages.join(", "));
        }
        for control in &self.controls {
            let text = |field: &str| control[field].as_str().unwrap_or_default().to_owned();
            let (decision, scope) = (text("decision"), text("scope"));
            let _ = writeln!(out, "\n{decision} to `{scope}` by {}, {}: {}", text("actor"), text("at"), text("reason"));
        }
        if self.throttle_ms > 0 {
            let _ = writeln!(out, "\nat least {} between two triplets", format_duration_ms(self.throttle_ms));
        }
        for (intent, question) in &self.questions {
            let _ = writeln!(out, "\nto decide, `cutover ctl answer {intent}`: {question}");
        }
        for gone in &self.dead_grants {
            let (triplet, since, why) = (&gone.subject, gone.at.to_minute(), &gone.detail);
            let _ = writeln!(out, "\nthe grant of {triplet} is gone since {since}: {why}; its user must connect again");
        }
        let listed = |row: &&TripletRow| rows || (row.moves() && row.custody.held.is_some());
        let width = self.rows.iter().filter(listed).map(|row| row.triplet.to_string().len()).max().unwrap_or(0);
        for (i, row) in self.rows.iter().filter(listed).enumerate() {
            let gap = if i == 0 { "\n" } else { "" };
            let custody = &row.custody;
            let held = custody.held.as_ref().map(|why| format!("; held: {why}")).unwrap_or_default();
            let (name, (_, back)) = (row.triplet.to_string(), way_back(custody, self.now));
            let _ = writeln!(
                out,
                "{gap}  {name:<width$}  {:<9}  reads {:<6}  refreshed by {:<8}  epoch {}  {back}{held}",
                custody.stage.name(),
                custody.read.name(),
                custody.refresh_authority().name(),
                custody.epoch,
            );
        }
        out
    }
}
