//! Makes a picture from the store. The only part of the dashboard that asks anybody anything.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::picture::{BudgetLine, DeadLetterLine, EventLine, Picture, SinkCell, SinkLine, TripletLine, VerifyMark};
use crate::alert::Kind;
use crate::domain::criteria::{EvidenceSource, LookOutcome, Note};
use crate::domain::custody::Stage;
use crate::domain::time::Timestamp;
use crate::engine::{EngineResult, judge_state};
use crate::plan::Policy;
use crate::status::Snapshot;
use crate::store::{EventRow, NewsRow, Sink, SinkState, Store, TripletRow, Verification};

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
    // What the last comparisons found; a clean one clears all.
    let since = now.plus_ms(-policy.criteria.verify_every.0 * 3 / 2);
    let looks = store.load_looks(since).await?.remove(&EvidenceSource::Verify).unwrap_or_default();
    let last = looks.iter().rev().map(|l| l.outcome).find(|o| matches!(o, LookOutcome::Clean | LookOutcome::Finding));
    let findings = match last {
        Some(LookOutcome::Finding) => store.load_notes_since("parity", since, FINDINGS_MAX).await?,
        _ => Vec::new(),
    };
    let runs = store.load_verifications(RUNS_MAX).await?;
    let run = runs.into_iter().find(|run| run.is_parity()).filter(|run| last.is_some() && run.at >= since);
    let marks = VerifyMarks::of(run.as_ref(), findings);
    let gone = store.load_dead_grants().await?;
    let gone: BTreeMap<&str, String> =
        gone.iter().map(|n| (n.subject.as_str(), format!("since {}: {}", n.at.to_minute(), n.detail))).collect();
    let triplets = store.load_triplets().await?;
    Ok(Picture {
        at: now,
        plan: snapshot.header.plan.clone(),
        soaked_ms: judged.clock.first_refresh_at.map(|_| judged.clock.soaked_ms),
        gap_ms: judged.clock.paused_ms,
        needed_ms: policy.criteria.soak_ms(),
        criteria: judged.criteria,
        triplets: triplets.iter().map(|t| line(t, &by_sink, &marks, &gone)).collect(),
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
                name: b.host.clone().unwrap_or_else(|| b.api.to_owned()),
                left: b.left,
                left_urgent: b.left_urgent,
                limit: b.limit,
                window_ms: b.window_ms,
                closed_until: b.closed_until,
            })
            .collect(),
        events: events(snapshot),
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

/// What the last comparison says of a triplet.
struct VerifyMarks {
    findings: Vec<Note>,
    /// Those that it left out because a write of them was still settling.
    unsettled: BTreeSet<String>,
    /// What it says of all others; `None` before the first.
    others: Option<&'static str>,
}

impl VerifyMarks {
    fn of(run: Option<&Verification>, findings: Vec<Note>) -> Self {
        let Some(run) = run else { return Self { findings, unsettled: BTreeSet::new(), others: None } };
        let counts: Value = serde_json::from_str(&run.counts).unwrap_or_default();
        let names = counts["unsettled"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let unsettled: BTreeSet<String> = names.map(str::to_owned).collect();
        let named: BTreeSet<&str> =
            findings.iter().filter(|n| n.at >= run.began_at).map(|n| n.subject.as_str()).collect();
        // Where it does not name all that differed, or that was left out, nobody knows of the others.
        let told = run.differing <= named.len() as u64 && run.unsure + run.failed <= unsettled.len() as u64;
        let mut findings = findings;
        if told && run.level == "full" {
            // What it looked at anew and does not name is mended.
            findings.retain(|n| n.at >= run.began_at || unsettled.contains(&n.subject));
        }
        Self { findings, unsettled, others: Some(if told { "match" } else { "?" }) }
    }

    fn mark(&self, triplet: &str, moves: bool) -> Option<VerifyMark> {
        if let Some(found) = self.findings.iter().rev().find(|n| n.subject == triplet) {
            return Some(VerifyMark { clean: false, text: found.detail.clone() });
        }
        let others = self.others.filter(|_| moves)?;
        let text = if self.unsettled.contains(triplet) { "settling" } else { others };
        Some(VerifyMark { clean: true, text: text.to_owned() })
    }
}

/// Comparisons among which the last one of both namespaces is looked for.
const RUNS_MAX: u32 = 20;

/// Differences that are shown at their triplets.
const FINDINGS_MAX: u32 = 10_000;

fn line(
    t: &TripletRow,
    by_sink: &[BTreeMap<String, SinkState>],
    marks: &VerifyMarks,
    gone: &BTreeMap<&str, String>,
) -> TripletLine {
    let name = t.triplet.to_string();
    let cells: Vec<Option<&SinkState>> = by_sink.iter().map(|sink| sink.get(&name)).collect();
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
        verify: marks.mark(&name, moves),
        reversible_until: t.custody.reverse_until.filter(|_| t.custody.stage == Stage::Switched),
        held: t.custody.held.clone(),
        dead_grant: gone.get(name.as_str()).cloned(),
        triplet: name,
    }
}

fn cell(s: &SinkState) -> SinkCell {
    SinkCell {
        delivered_at: s.delivered_at,
        pending: s.dead.is_none() && s.version > s.delivered,
        dead: s.dead.is_some(),
    }
}

/// The name of an authority, as its JSON has it.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => "?".to_owned(),
    }
}

/// What an event says beside what its line shows anyway, or what only machines compare.
const UNSAID: [&str; 3] = ["by", "digest", "given_at"];

/// The audit trail and what went wrong, oldest first.
fn events(snapshot: &Snapshot) -> Vec<EventLine> {
    let mut all: Vec<EventLine> =
        snapshot.events.iter().rev().map(event).chain(snapshot.news.iter().rev().map(news)).collect();
    all.sort_by_key(|e| e.at);
    all
}

/// `dead-letter: …`, and how often.
fn news(row: &NewsRow) -> EventLine {
    let times = if row.times > 1 { format!(" ({} times)", row.times) } else { String::new() };
    let bad = Kind::of(&row.kind).is_some_and(Kind::is_bad);
    EventLine { at: row.at, subject: row.subject.clone(), text: format!("{}: {}{times}", row.kind, row.detail), bad }
}

/// `switched reverse_until=…`: the event's name, then what it says.
fn event(row: &EventRow) -> EventLine {
    fn say(fields: &serde_json::Map<String, Value>, words: &mut Vec<String>) {
        for (key, value) in fields.iter().filter(|(key, value)| !UNSAID.contains(&key.as_str()) && !value.is_null()) {
            match value {
                Value::Object(inner) => say(inner, words),
                Value::String(name) if key == "event" => words.insert(0, name.replace('_', " ")),
                Value::String(text) => words.push(format!("{key}={text}")),
                other => words.push(format!("{key}={other}")),
            }
        }
    }
    let text = match serde_json::from_str::<Value>(&row.json) {
        Ok(Value::Object(fields)) => {
            let mut words: Vec<String> = Vec::new();
            say(&fields, &mut words);
            words.join(" ")
        }
        _ => row.json.clone(),
    };
    EventLine { at: row.at, subject: row.subject.clone(), text: format!("{text} ({})", row.actor), bad: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_compared_is_called_a_match() {
        let run = |differing: u64, unsure: u64, counts: &str| Verification {
            run: "r".to_owned(),
            began_at: Timestamp::from_secs(10),
            at: Timestamp::from_secs(11),
            left: "kv:source".to_owned(),
            right: "kv:target".to_owned(),
            level: "full".to_owned(),
            keys: 9,
            compared: 9 - unsure,
            differing,
            unsure,
            failed: 0,
            counts: counts.to_owned(),
            rules: None,
            findings: Vec::new(),
        };
        let note = |s: i64| Note { at: Timestamp::from_secs(s), subject: "a:b:c".into(), detail: "missing".into() };
        let said = |run: Option<&Verification>, notes: Vec<Note>, triplet: &str| {
            VerifyMarks::of(run, notes).mark(triplet, true).map(|mark| mark.text)
        };
        let told = run(1, 1, r#"{"unsettled":["d:e:f"]}"#);
        assert_eq!(said(Some(&told), vec![note(10)], "a:b:c").as_deref(), Some("missing"));
        assert_eq!(said(Some(&told), vec![note(10)], "d:e:f").as_deref(), Some("settling"));
        assert_eq!(said(Some(&told), vec![note(10)], "g:h:i").as_deref(), Some("match"));
        assert_eq!(said(Some(&told), vec![note(9)], "g:h:i").as_deref(), Some("?"), "an older note names nothing");
        assert_eq!(said(Some(&run(0, 1, "{}")), Vec::new(), "g:h:i").as_deref(), Some("?"));
        assert_eq!(said(None, Vec::new(), "g:h:i"), None);
        // A difference of the run before is gone when the next one looked there and does not name it, though
        // it names another.
        let mended = Note { subject: "m:n:o".into(), ..note(9) };
        let since = |run: &Verification| said(Some(run), vec![mended.clone(), note(10)], "m:n:o");
        assert_eq!(since(&told).as_deref(), Some("match"));
        assert_eq!(since(&Verification { level: "keys".into(), ..told.clone() }).as_deref(), Some("missing"));
        assert_eq!(since(&run(1, 1, r#"{"unsettled":["m:n:o"]}"#)).as_deref(), Some("missing"));
        assert_eq!(since(&run(2, 1, "{}")).as_deref(), Some("missing"), "it may be the one that is not named");
        assert_eq!(VerifyMarks::of(Some(&told), Vec::new()).mark("g:h:i", false), None);
    }

    #[test]
    fn an_event_says_in_words_what_a_person_needs() {
        let said = |json: &str| {
            let json = json.to_owned();
            event(&EventRow { seq: 1, at: Timestamp::from_secs(1), actor: "ann".into(), subject: "gate".into(), json })
                .text
        };
        assert_eq!(said(r#"{"event":"gate","verdict":"fail","digest":"sha256:ab"}"#), "gate verdict=fail (ann)");
        let waived = r#"{"event":"waived","waiver":{"by":"ann","criterion":"outage","given_at":1,"revoked_at":null,"scope":"*"}}"#;
        assert_eq!(said(waived), "waived criterion=outage scope=* (ann)");
        assert_eq!(said(r#"{"event":"reverse_begun","epoch":3}"#), "reverse begun epoch=3 (ann)");
        assert_eq!(said("no object"), "no object (ann)");
    }
}
