//! What changed from one plan to another.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Plan, PlanRow};
use crate::domain::triplet::Triplet;
use crate::text::{Paint, wrap};

/// Two plans compared, field by field.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanDiff {
    pub from: String,
    pub to: String,
    /// Names of the inputs whose digests differ.
    pub inputs: Vec<&'static str>,
    pub added: Vec<Triplet>,
    pub removed: Vec<Triplet>,
    pub changed: Vec<RowChange>,
    /// Fields of the whole that differ: `budget`, `notes`, `waves`.
    pub whole: Vec<Change>,
}

/// What changed about one triplet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowChange {
    pub triplet: Triplet,
    pub fields: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub field: &'static str,
    pub from: String,
    pub to: String,
}

impl PlanDiff {
    /// Whether the plans say the same.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
            && self.added.is_empty()
            && self.removed.is_empty()
            && self.changed.is_empty()
            && self.whole.is_empty()
    }
}

/// Compares two plans. When they were made does not count.
pub fn diff(from: &Plan, to: &Plan) -> PlanDiff {
    // A triplet that two connections claim has a row for each.
    let index = |plan: &'_ Plan| -> BTreeMap<(Triplet, String, String), usize> {
        let key = |r: &PlanRow| (r.triplet.clone(), r.integration_key.clone(), r.connection_id.clone());
        plan.rows.iter().enumerate().map(|(i, r)| (key(r), i)).collect()
    };
    let (old, new) = (index(from), index(to));
    let changed = old.iter().filter_map(|(key, &a)| {
        let fields = row_changes(&from.rows[a], &to.rows[*new.get(key)?]);
        (!fields.is_empty()).then(|| RowChange { triplet: key.0.clone(), fields })
    });
    let missing = |a: &BTreeMap<(Triplet, String, String), usize>, b: &BTreeMap<_, _>| {
        a.keys().filter(|key| !b.contains_key(*key)).map(|key| key.0.clone()).collect()
    };
    PlanDiff {
        from: from.id.clone(),
        to: to.id.clone(),
        inputs: input_changes(from, to),
        added: missing(&new, &old),
        removed: missing(&old, &new),
        changed: changed.collect(),
        whole: whole_changes(from, to),
    }
}

fn input_changes(from: &Plan, to: &Plan) -> Vec<&'static str> {
    let (a, b) = (&from.inputs, &to.inputs);
    let facts = |inputs: &super::Inputs| inputs.probes.iter().map(|p| p.fact.clone()).collect::<Vec<_>>();
    [
        ("inventory", a.inventory != b.inventory),
        ("policy", a.policy != b.policy),
        ("catalogue", a.catalogue != b.catalogue),
        ("probes", facts(a) != facts(b)),
    ]
    .into_iter()
    .filter_map(|(name, moved)| moved.then_some(name))
    .collect()
}

fn row_changes(a: &PlanRow, b: &PlanRow) -> Vec<Change> {
    // In full, so that a new field cannot be forgotten here.
    let PlanRow {
        triplet: _,
        integration_key: _,
        connection_id: _,
        toolkit,
        route,
        wave,
        reasons,
        hazards,
        actions,
        scopes,
        granted,
        quiet_window,
        reversible_until,
        cost,
    } = a;
    let mut out = Vec::new();
    let mut note = |field, same: bool, from: String, to: String| {
        if !same {
            out.push(Change { field, from, to });
        }
    };
    let none = || "none".to_owned();
    note("route", *route == b.route, route.name().to_owned(), b.route.name().to_owned());
    let wave_text = |w: Option<u32>| w.map_or_else(none, |n| n.to_string());
    note("wave", *wave == b.wave, wave_text(*wave), wave_text(b.wave));
    let toolkit_text = |t: &Option<String>| t.clone().unwrap_or_else(none);
    note("toolkit", *toolkit == b.toolkit, toolkit_text(toolkit), toolkit_text(&b.toolkit));
    let text = |r: &[super::Reason]| r.iter().map(super::Reason::text).collect::<Vec<_>>().join(" ");
    note("reasons", *reasons == b.reasons, text(reasons), text(&b.reasons));
    let (gone, come) = difference(hazards, &b.hazards, super::Hazard::text);
    note("hazards", *hazards == b.hazards, gone, come);
    let (gone, come) = difference(actions, &b.actions, super::Action::text);
    note("people", *actions == b.actions, gone, come);
    note("scopes", *scopes == b.scopes, scopes.join(" "), b.scopes.join(" "));
    note("granted", *granted == b.granted, json(granted), json(&b.granted));
    note("quiet_window", *quiet_window == b.quiet_window, json(quiet_window), json(&b.quiet_window));
    let until = |r| json(r);
    note(
        "reversible_until",
        *reversible_until == b.reversible_until,
        until(reversible_until),
        until(&b.reversible_until),
    );
    note("cost", *cost == b.cost, json(cost), json(&b.cost));
    out
}

/// What only the first has, and what only the second has.
fn difference<T: PartialEq>(a: &[T], b: &[T], text: fn(&T) -> String) -> (String, String) {
    let only = |a: &[T], b: &[T]| a.iter().filter(|x| !b.contains(x)).map(text).collect::<Vec<_>>().join(" ");
    (only(a, b), only(b, a))
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data turns into JSON")
}

fn whole_changes(from: &Plan, to: &Plan) -> Vec<Change> {
    let mut out = Vec::new();
    let mut note = |field, same: bool, from: String, to: String| {
        if !same {
            out.push(Change { field, from, to });
        }
    };
    note("waves", from.waves.len() == to.waves.len(), from.waves.len().to_string(), to.waves.len().to_string());
    let steps =
        |plan: &Plan| json(&plan.waves.iter().map(|w| (w.not_before, w.not_after, &w.steps)).collect::<Vec<_>>());
    if from.waves.len() == to.waves.len() {
        note("steps", steps(from) == steps(to), steps(from), steps(to));
    }
    let money = |plan: &Plan| format!("{} USD a month during the soak", plan.budget.usd_soak);
    note("cost", from.budget.usd_soak == to.budget.usd_soak, money(from), money(to));
    let requests = |plan: &Plan| {
        let all = plan.budget.apis.iter().map(|a| format!("{} {}", a.api.name(), a.soak_per_day));
        format!("{} a day", all.collect::<Vec<_>>().join(", "))
    };
    note("requests", from.budget.apis == to.budget.apis, requests(from), requests(to));
    note("notes", from.notes == to.notes, json(&from.notes), json(&to.notes));
    out
}

/// The differences for a terminal, within 100 columns.
pub fn text(diff: &PlanDiff, paint: Paint) -> String {
    let mut out = String::new();
    if diff.is_empty() {
        wrap(&mut out, "", &format!("{} and {} say the same.", diff.from, diff.to));
        return out;
    }
    out.push_str(&paint.bold(&format!("From {} to {}", diff.from, diff.to)));
    out.push('\n');
    if !diff.inputs.is_empty() {
        wrap(&mut out, "  inputs that changed: ", &diff.inputs.join(", "));
    }
    let mut change = |c: &Change, indent: &str| {
        let mut old = String::new();
        wrap(&mut old, &format!("{indent}{:<16} - ", c.field), &c.from);
        let mut new = String::new();
        wrap(&mut new, &format!("{indent}{:<16} + ", ""), &c.to);
        out.push_str(&paint.red(old.trim_end()));
        out.push('\n');
        out.push_str(&paint.green(new.trim_end()));
        out.push('\n');
    };
    diff.whole.iter().for_each(|c| change(c, "  "));
    for triplet in &diff.removed {
        out.push_str(&paint.red(&format!("- {triplet}\n")));
    }
    for triplet in &diff.added {
        out.push_str(&paint.green(&format!("+ {triplet}\n")));
    }
    for row in &diff.changed {
        out.push_str(&paint.yellow(&format!("~ {}", row.triplet)));
        out.push('\n');
        let mut change = |c: &Change| {
            wrap(&mut out, &format!("    {:<16} - ", c.field), &c.from);
            wrap(&mut out, &format!("    {:<16} + ", ""), &c.to);
        };
        row.fields.iter().for_each(&mut change);
    }
    let totals = format!("{} added, {} removed, {} changed", diff.added.len(), diff.removed.len(), diff.changed.len());
    wrap(&mut out, "", &totals);
    out
}
