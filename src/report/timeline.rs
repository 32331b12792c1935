//! The stages of each triplet over time, replayed from its custody events.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::domain::custody::{Custody, Event};
use crate::domain::time::Timestamp;
use crate::engine::EngineResult;
use crate::store::{Store, TripletRow};

/// Events in one read.
const PAGE: u32 = 5_000;

/// A triplet and where it was when.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TripletLine {
    pub triplet: String,
    pub route: &'static str,
    pub wave: Option<u32>,
    /// Its stage now, or `held` or `retained`.
    pub standing: &'static str,
    pub held: Option<String>,
    pub reverse_until: Option<Timestamp>,
    pub version: u64,
    /// Oldest first; the first is its planning.
    pub steps: Vec<Step>,
}

/// From `at` on the triplet was in `stage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub at: Timestamp,
    pub stage: &'static str,
}

/// One line per triplet, in their order.
pub(super) async fn triplets(
    store: &Store,
    rows: &[TripletRow],
    applied_at: Timestamp,
) -> EngineResult<Vec<TripletLine>> {
    let mut replayed: BTreeMap<String, (Custody, Vec<Step>)> = rows
        .iter()
        .map(|row| {
            let custody = Custody::planned(row.custody.route);
            let planned = Step { at: applied_at, stage: custody.stage.name() };
            (row.triplet.to_string(), (custody, vec![planned]))
        })
        .collect();
    let mut after = 0;
    loop {
        let page = store.load_events(after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        for event in &page {
            let Some((custody, steps)) = replayed.get_mut(&event.subject) else { continue };
            // What an operator did to a triplet besides is no custody event.
            let Ok(happened) = serde_json::from_str::<Event>(&event.json) else { continue };
            let Ok((next, _)) = custody.step(&happened) else { continue };
            let stage = if next.held.is_some() { "held" } else { next.stage.name() };
            *custody = next;
            if steps.last().is_none_or(|step| step.stage != stage) {
                steps.push(Step { at: event.at, stage });
            }
        }
    }
    Ok(rows
        .iter()
        .map(|row| TripletLine {
            triplet: row.triplet.to_string(),
            route: row.custody.route.name(),
            wave: row.wave,
            standing: row.standing(),
            held: row.custody.held.clone(),
            reverse_until: row.custody.reverse_until,
            version: row.version,
            steps: replayed.remove(&row.triplet.to_string()).map(|(_, steps)| steps).unwrap_or_default(),
        })
        .collect())
}
