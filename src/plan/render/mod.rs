//! Puts a plan into words: text for a terminal, Markdown for a pull request, CSV for a sheet.
//!
//! Rows name their hazards and actions by number, and each is explained once.

mod csv;
mod markdown;
mod text;

use std::collections::BTreeMap;

pub use csv::csv;
pub use markdown::markdown;
pub use text::text;

use super::budget::grouped;
use super::hazard::plural;
use super::{Action, Granted, Hazard, Note, Plan, PlanRow, ReversibleUntil, Route};

/// Hazards and actions in the order in which they first appear, with the rows that have them.
struct Footnotes<'a> {
    hazards: Numbered<'a, Hazard>,
    actions: Numbered<'a, Action>,
}

struct Numbered<'a, T> {
    number: BTreeMap<&'a T, usize>,
    items: Vec<(&'a T, usize)>,
}

impl<'a, T: Ord> Numbered<'a, T> {
    const fn new() -> Self {
        Self { number: BTreeMap::new(), items: Vec::new() }
    }

    fn add(&mut self, item: &'a T) {
        let next = self.items.len();
        let at = *self.number.entry(item).or_insert(next);
        if at == next {
            self.items.push((item, 0));
        }
        self.items[at].1 += 1;
    }

    /// The number of an item that was added, from 1.
    fn of(&self, item: &T) -> usize {
        self.number.get(item).map_or(0, |at| at + 1)
    }
}

impl<'a> Footnotes<'a> {
    fn of<'b>(rows: impl Iterator<Item = &'a PlanRow> + 'b) -> Self
    where
        'a: 'b,
    {
        let mut notes = Self { hazards: Numbered::new(), actions: Numbered::new() };
        for row in rows {
            row.hazards.iter().for_each(|h| notes.hazards.add(h));
            row.actions.iter().for_each(|a| notes.actions.add(a));
        }
        notes
    }
}

/// The rows in reading order: by wave, then those that stay, then those that wait.
fn reading_order(plan: &Plan) -> Vec<(Section<'_>, Vec<&PlanRow>)> {
    let mut by_wave: BTreeMap<u32, Vec<&PlanRow>> = BTreeMap::new();
    let (mut retained, mut blocked) = (Vec::new(), Vec::new());
    for row in &plan.rows {
        match (row.wave, row.route) {
            (Some(n), _) => by_wave.entry(n).or_default().push(row),
            (None, Route::Blocked) => blocked.push(row),
            (None, _) => retained.push(row),
        }
    }
    let mut out: Vec<(Section<'_>, Vec<&PlanRow>)> =
        plan.waves.iter().map(|wave| (Section::Wave(wave), by_wave.remove(&wave.n).unwrap_or_default())).collect();
    if !blocked.is_empty() {
        out.push((Section::Blocked, blocked));
    }
    if !retained.is_empty() {
        out.push((Section::Retained, retained));
    }
    out
}

#[derive(Clone, Copy)]
enum Section<'a> {
    Wave(&'a super::Wave),
    Blocked,
    Retained,
}

impl Section<'_> {
    fn title(self) -> String {
        match self {
            Self::Wave(wave) => {
                let canaries = if wave.canary { " (canaries)" } else { "" };
                format!(
                    "Wave {}{canaries}: {}, {}, {}",
                    wave.n,
                    count(wave.connections.into(), "connection", "connections"),
                    count(wave.triplets.len() as u64, "triplet", "triplets"),
                    count(wave.consents.into(), "consent", "consents"),
                )
            }
            Self::Blocked => "Blocked until somebody decides".to_owned(),
            Self::Retained => "Stays with the gateway (not counted in any rate)".to_owned(),
        }
    }
}

fn count(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(n), if n == 1 { one } else { many })
}

/// `24 of 28 triplets move, 4 stay, 0 wait for a decision`
fn headline(plan: &Plan) -> String {
    let s = &plan.summary;
    let mut out = format!("{} of {} move", grouped(s.reconsent + s.static_), count(s.triplets, "triplet", "triplets"));
    if s.retain > 0 {
        out.push_str(&format!(", {} {}", grouped(s.retain), if s.retain == 1 { "stays" } else { "stay" }));
    }
    if s.blocked > 0 {
        out.push_str(&format!(", {} blocked", grouped(s.blocked)));
    }
    out
}

fn way_back(row: &PlanRow) -> String {
    match row.reversible_until {
        ReversibleUntil::Always => "does not move".to_owned(),
        ReversibleUntil::Consent => "until the consent, which may end the old grant".to_owned(),
        ReversibleUntil::AfterSwitch { window, grant_life_days: None } => format!("{window} after the switch"),
        ReversibleUntil::AfterSwitch { window, grant_life_days: Some(days) } => {
            format!("{window} after the switch, and never past the old grant's {days} days")
        }
        ReversibleUntil::Rotated => "until the secret is rotated".to_owned(),
    }
}

fn granted(row: &PlanRow) -> String {
    match &row.granted {
        Granted::Unknown => "granted today: unknown".to_owned(),
        Granted::Enough => "granted today: all of them".to_owned(),
        Granted::Missing { scopes } => format!("not granted today: {}", scopes.join(" ")),
    }
}

fn quiet(row: &PlanRow) -> String {
    row.quiet_window.map_or_else(
        || "no scheduled expiry".to_owned(),
        |window| format!("no step in the last {window} of the token's life"),
    )
}

fn cost(row: &PlanRow) -> String {
    let c = &row.cost;
    format!(
        "{} requests to mirror, {} a day, {} to switch; {} USD a month",
        c.requests_apply, c.requests_per_day, c.requests_switch, c.usd_per_month
    )
}

fn note_text(note: &Note) -> String {
    match note {
        Note::DecisionUnused { triplet } => {
            format!("The policy decides about `{triplet}`, which is not in the inventory.")
        }
        Note::RateTooLow { api, needed_per_minute, available_per_minute } => format!(
            "The soak needs {needed_per_minute} requests a minute at {api} and live traffic leaves \
             {available_per_minute}: choose a larger tier or fewer connections at a time."
        ),
        Note::TooExpensive { soak, max } => {
            format!("The soak costs {soak} USD a month, more than the {max} that criterion `cost` allows.")
        }
        Note::WindowTooShort { waves, starts } => {
            format!("Wave {waves} would start at {}, after the policy's window ends.", starts.to_minute())
        }
        Note::Undecided { rows } => format!(
            "{} {} for a decision in the policy; `apply` refuses until then.",
            count(*rows, "row", "rows"),
            plural(u32::try_from(*rows).unwrap_or(u32::MAX), "waits", "wait")
        ),
    }
}
