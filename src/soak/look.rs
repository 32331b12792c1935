//! Makes a picture from the store. The only part of the dashboard that asks anybody anything.

use std::collections::BTreeMap;

use serde_json::Value;

use super::picture::{
    BudgetLine, CriterionLine, DeadLetterLine, EventLine, Picture, SinkCell, SinkLine, TripletLine, VerifyMark,
};
use crate::domain::criteria::Note;
use crate::domain::custody::Stage;
use crate::domain::time::{DAY_MS, Timestamp};
use crate::engine::{EngineResult, gate::judge_state};
use crate::plan::Policy;
use crate::status::Snapshot;
use crate::store::{EventRow, Sink, SinkState, Store, TripletRow};

/// Looks at the store and judges it. `snapshot` brings what only a running engine knows: its
/// circuit breakers and budgets.
///
/// # Errors
/// When the store cannot be read.
pub async fn look(store: &Store, policy: &Policy, snapshot: &Snapshot, now: Timestamp) -> EngineResult<Picture> {
    let judged = judge_state(store, policy, now).await?;
    let mut by_sink: Vec<BTreeMap<String, SinkState>> = Vec::new();
    for sink in Sink::ALL {
        let states = store.load_sink(sink).await?;
        by_sink.push(states.into_iter().map(|s| (s.triplet.to_string(), s)).collect());
    }
    let counters = &snapshot.header.counters;
    let compared = counters.get("parity_runs").copied().unwrap_or(0) > 0;
    let clean = counters.get("parity_clean").copied().unwrap_or(0) > 0;
    let findings = if clean { Vec::new() } else { store.load_notes("parity").await? };
    let marks = VerifyMarks { compared, findings, since: now.plus_ms(-policy.criteria.verify_every.0 * 3 / 2) };
    let triplets = store.load_triplets().await?;
    Ok(Picture {
        at: now,
        plan: snapshot.header.plan.clone(),
        soaked_ms: judged.clock.counted_ms,
        gap_ms: judged.gaps.iter().map(|gap| gap.ms()).sum(),
        needed_ms: i64::from(policy.criteria.soak_days) * DAY_MS,
        criteria: judged.criteria.into_iter().map(criterion).collect(),
        triplets: triplets.iter().map(|t| line(t, &by_sink, &marks)).collect(),
        sinks: snapshot
            .sinks
            .iter()
            .map(|s| SinkLine {
                name: s.name.to_owned(),
                delivered: s.delivered.max(0).unsigned_abs(),
                pending: s.pending,
                dead: s.dead,
                oldest_ms: s.oldest_ms,
                trouble: s.trouble.clone(),
            })
            .collect(),
        budgets: snapshot
            .budgets
            .iter()
            .map(|b| BudgetLine {
                name: b.api.to_owned(),
                used: b.limit.saturating_sub(b.left),
                limit: b.limit,
                window_ms: b.window_ms,
            })
            .collect(),
        events: snapshot.events.iter().rev().map(event).collect(),
        dead_letters: snapshot
            .dead_letters
            .iter()
            .map(|l| DeadLetterLine {
                triplet: l.triplet.to_string(),
                sink: l.sink.to_owned(),
                reason: l.reason.clone(),
            })
            .collect(),
    })
}

struct VerifyMarks {
    compared: bool,
    findings: Vec<Note>,
    since: Timestamp,
}

fn criterion(judged: crate::domain::criteria::Judged) -> CriterionLine {
    let waiver = judged.waived.then(|| judged.waivers.first()).flatten();
    let waiver = waiver.map(|w| format!("{} until {}", w.by, w.until.to_minute()));
    CriterionLine { judged, waiver }
}

fn line(t: &TripletRow, by_sink: &[BTreeMap<String, SinkState>], marks: &VerifyMarks) -> TripletLine {
    let name = t.triplet.to_string();
    let cells: Vec<Option<&SinkState>> = by_sink.iter().map(|sink| sink.get(&name)).collect();
    let found = marks.findings.iter().rev().find(|n| n.subject == name && n.at >= marks.since);
    let moves = t.moves();
    TripletLine {
        route: t.custody.route.name().to_owned(),
        stage: if moves { t.custody.stage.name() } else { "retained" }.to_owned(),
        stage_rank: if moves { t.custody.stage as u8 } else { Stage::ALL.len() as u8 },
        wave: t.wave,
        refresh: word(&t.custody.refresh_authority()),
        read: word(&t.custody.read),
        epoch: t.custody.epoch,
        version: t.version,
        captured_at: cells.iter().flatten().map(|s| s.captured_at).max(),
        expires_at: t.expires_at,
        sinks: cells.into_iter().map(|s| s.map_or_else(SinkCell::default, cell)).collect(),
        verify: match found {
            Some(note) => Some(VerifyMark { clean: false, text: note.detail.clone() }),
            None => (marks.compared && moves).then(|| VerifyMark { clean: true, text: "match".to_owned() }),
        },
        reversible_until: t.custody.reverse_until.filter(|_| t.custody.stage == Stage::Switched),
        held: t.custody.held.clone(),
        triplet: name,
    }
}

fn cell(s: &SinkState) -> SinkCell {
    SinkCell { delivered_at: s.delivered_at, pending: s.dead.is_none() && s.version > s.delivered, dead: s.dead.is_some() }
}

/// The name of an authority, as its JSON has it.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => "?".to_owned(),
    }
}

/// `switched reverse_until=…`: the event's name, then what it says.
fn event(row: &EventRow) -> EventLine {
    let text = match serde_json::from_str::<Value>(&row.json) {
        Ok(Value::Object(fields)) => {
            let mut words: Vec<String> = Vec::new();
            for (key, value) in &fields {
                let shown = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
                if key == "event" {
                    words.insert(0, shown.replace('_', " "));
                } else {
                    words.push(format!("{key}={shown}"));
                }
            }
            words.join(" ")
        }
        _ => row.json.clone(),
    };
    EventLine { at: row.at, subject: row.subject.clone(), text: format!("{text} ({})", row.actor) }
}
