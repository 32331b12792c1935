//! The state of everything at one moment, as data: what the dashboard draws, what
//! `GET /admin/status` answers, what `/metrics` counts. Built from the store, the policy and
//! *now*; whoever has an engine adds what only it knows (circuits, budgets).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::alert::Kind;
use crate::domain::budget::BudgetState;
use crate::domain::custody::ReadAuthority;
use crate::domain::time::{DAY_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::plan::Policy;
use crate::store::{EventRow, NewsRow, Sink, Store, StoreResult, TripletRow};

/// Triplets that are listed one by one; the rest is counted.
const TRIPLETS_MAX: u32 = 1_000;

/// Deliveries that wait, or were given up, and are looked at.
const BACKLOG_MAX: u32 = 10_000;

/// Dead letters that are listed.
const DEAD_MAX: usize = 100;

/// Lines of the audit trail that are shown, and of what went wrong.
const EVENTS_MAX: u32 = 50;

/// What went wrong longer ago is not shown.
const NEWS_MS: i64 = 7 * DAY_MS;

/// Everything at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    pub header: Header,
    /// The most urgent first: held, then those whose token ends soonest; at most 1,000.
    pub triplets: Vec<TripletStatus>,
    pub sinks: Vec<SinkStatus>,
    /// Where the newest version of each triplet is now.
    pub classes: Classes,
    /// First results of versions at both sides since the engine started.
    pub results: Classes,
    pub budgets: Vec<BudgetStatus>,
    /// The oldest, at most 100.
    pub dead_letters: Vec<DeadLetter>,
    /// The newest lines of the audit trail, newest first.
    pub events: Vec<EventRow>,
    /// What went wrong, newest first: one line for each kind and subject.
    pub news: Vec<NewsRow>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Header {
    pub at: Timestamp,
    pub plan: Option<String>,
    /// The journal can commit; set by whoever tried.
    pub ready: bool,
    pub soak_from: Option<Timestamp>,
    /// Milliseconds of soak with evidence, and how many are wanted.
    pub soaked_ms: Option<i64>,
    pub soak_wanted_ms: i64,
    /// All triplets of the plan, and how many are in each stage (`retained` and `held` beside them).
    pub triplets: u64,
    pub stages: BTreeMap<String, u64>,
    /// When the next read is due, and when the first token ends that KV serves.
    pub poll_at: Option<Timestamp>,
    pub served_until: Option<Timestamp>,
    /// APIs that are out of reach, and for how many milliseconds.
    pub outages: BTreeMap<String, i64>,
    /// What the criteria are judged on, by name.
    pub counters: BTreeMap<String, i64>,
    pub alerts_waiting: u64,
    /// Triplets whose grant is gone: their users must connect again.
    pub dead_grants: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct TripletStatus {
    pub triplet: Triplet,
    pub stage: &'static str,
    pub held: Option<String>,
    pub read: ReadAuthority,
    pub epoch: u64,
    pub wave: Option<u32>,
    pub version: u64,
    pub expires_at: Option<Timestamp>,
    /// Sinks that do not have the newest version.
    pub behind: Vec<&'static str>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SinkStatus {
    pub name: &'static str,
    pub pending: u64,
    /// Age of the oldest delivery that waits, in milliseconds.
    pub oldest_ms: i64,
    pub dead: u64,
    /// Deliveries that it acknowledged.
    pub delivered: i64,
    /// Left alone until then, after failures.
    pub open_until: Option<Timestamp>,
    /// Why.
    pub trouble: Option<String>,
}

/// Counts of triplets or results by which side has them. `source` is KV's source namespace;
/// `target` is everything of the new custody that is mirrored to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Classes {
    pub both: u64,
    pub source_only: u64,
    pub target_only: u64,
    pub neither: u64,
}

impl Classes {
    pub fn count(&mut self, source: bool, target: bool) {
        *match (source, target) {
            (true, true) => &mut self.both,
            (true, false) => &mut self.source_only,
            (false, true) => &mut self.target_only,
            (false, false) => &mut self.neither,
        } += 1;
    }

    pub fn each(&self) -> [(&'static str, u64); 4] {
        [
            ("both", self.both),
            ("source_only", self.source_only),
            ("target_only", self.target_only),
            ("neither", self.neither),
        ]
    }
}

/// What is left of the requests that an API takes.
#[derive(Clone, Debug, Serialize)]
pub struct BudgetStatus {
    pub api: &'static str,
    /// The provider's host where each has a budget of its own.
    pub host: Option<String>,
    /// Requests that may go now, in the ordinary share and in all.
    pub left: u32,
    pub left_urgent: u32,
    /// What the vendor allows in a window.
    pub limit: u32,
    pub window_ms: i64,
    /// No request before then, not even an urgent one.
    pub closed_until: Option<Timestamp>,
}

impl From<BudgetState> for BudgetStatus {
    fn from(state: BudgetState) -> Self {
        Self {
            api: state.api.name(),
            host: state.host,
            left: state.ordinary.now,
            left_urgent: state.urgent.now,
            limit: state.limit,
            window_ms: state.window_ms,
            closed_until: (state.urgent.now == 0).then_some(state.urgent.next_at),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    pub triplet: Triplet,
    pub sink: &'static str,
    pub version: u64,
    pub attempts: u32,
    pub captured_at: Timestamp,
    pub reason: String,
}

/// Looks at the store.
///
/// # Errors
/// When it cannot be read.
pub async fn snapshot(store: &Store, policy: &Policy, now: Timestamp) -> StoreResult<Snapshot> {
    let at = |text: Option<String>| text.and_then(|t| t.parse().ok()).map(Timestamp::from_millis);
    let counters = store.load_counters().await?;
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    let soak_from = at(store.load_meta("soak_from").await?);
    let gap_ms = union_ms(store.load_gaps().await?.into_iter().map(|gap| (gap.from, gap.until)).collect());
    let due = store.load_due().await?;
    let outages = store.load_metas("down:").await?;
    let backlog = store.load_backlog(BACKLOG_MAX).await?;
    let stages = store.count_stages().await?;
    let header = Header {
        at: now,
        plan: store.load_plan_id().await?,
        ready: false,
        soak_from,
        soaked_ms: soak_from.map(|from| now.since(from) - gap_ms),
        soak_wanted_ms: policy.criteria.soak_ms(),
        triplets: stages.values().sum(),
        stages,
        poll_at: due.poll_at,
        served_until: due.served_until,
        outages: outages.into_iter().filter_map(|(api, t)| Some((api, now.since(at(Some(t))?)))).collect(),
        alerts_waiting: store.count_waiting_alerts().await?,
        dead_grants: store.load_dead_grants().await?.len() as u64,
        counters: counters.clone(),
    };

    let mut behind: BTreeMap<&Triplet, Vec<&'static str>> = BTreeMap::new();
    for row in &backlog {
        behind.entry(&row.triplet).or_default().push(row.sink.name());
    }
    let mut classes = Classes::default();
    for lacking in behind.values() {
        let lacks = |sink: Sink| lacking.contains(&sink.name());
        classes.count(!lacks(Sink::KvSource), !lacks(Sink::KvTarget) && !lacks(Sink::Composio));
    }
    // Whatever waits for nothing is on both sides.
    classes.both += store.count_delivering().await?.saturating_sub(behind.len() as u64);
    let sinks = Sink::ALL
        .into_iter()
        .map(|sink| {
            let waiting = || backlog.iter().filter(move |row| row.sink == sink && row.dead.is_none());
            SinkStatus {
                name: sink.name(),
                pending: waiting().count() as u64,
                oldest_ms: waiting().map(|row| now.since(row.captured_at)).max().unwrap_or(0),
                dead: backlog.iter().filter(|row| row.sink == sink && row.dead.is_some()).count() as u64,
                delivered: count(&format!("deliveries:{}", sink.name())),
                open_until: None,
                trouble: None,
            }
        })
        .collect();
    let triplets = listed(store.load_urgent_triplets(TRIPLETS_MAX).await?, &behind);
    let dead_letters = backlog.iter().filter_map(|row| {
        Some(DeadLetter {
            triplet: row.triplet.clone(),
            sink: row.sink.name(),
            version: row.version,
            attempts: row.attempts,
            captured_at: row.captured_at,
            reason: row.dead.clone()?,
        })
    });
    Ok(Snapshot {
        header,
        triplets,
        sinks,
        classes,
        results: Classes::default(),
        budgets: Vec::new(),
        dead_letters: dead_letters.take(DEAD_MAX).collect(),
        events: store.load_recent_events(EVENTS_MAX).await?,
        news: store.load_news(&Kind::ALL.map(Kind::name), now.plus_ms(-NEWS_MS), EVENTS_MAX).await?,
    })
}

fn listed(rows: Vec<TripletRow>, behind: &BTreeMap<&Triplet, Vec<&'static str>>) -> Vec<TripletStatus> {
    let status = |row: TripletRow| TripletStatus {
        stage: if row.moves() { row.custody.stage.name() } else { "retained" },
        behind: behind.get(&row.triplet).cloned().unwrap_or_default(),
        triplet: row.triplet,
        held: row.custody.held,
        read: row.custody.read,
        epoch: row.custody.epoch,
        wave: row.wave,
        version: row.version,
        expires_at: row.expires_at,
    };
    rows.into_iter().map(status).collect()
}

/// How long it was inside of any of these times, in milliseconds.
fn union_ms(mut times: Vec<(Timestamp, Timestamp)>) -> i64 {
    times.sort_unstable();
    let mut counted_to = None;
    let mut total = 0;
    for (from, until) in times {
        let from = counted_to.map_or(from, |to: Timestamp| to.max(from));
        total += until.since(from).max(0);
        counted_to = Some(counted_to.map_or(until, |to: Timestamp| to.max(until)));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_overlap_count_once() {
        let at = Timestamp::from_secs;
        let times = vec![(at(5), at(9)), (at(0), at(4)), (at(1), at(2)), (at(3), at(6))];
        assert_eq!(union_ms(times), 9_000);
        assert_eq!(union_ms(Vec::new()), 0);
    }

    #[test]
    fn four_classes_tell_which_side_has_it() {
        let mut classes = Classes::default();
        for (source, target) in [(true, true), (true, true), (true, false), (false, true), (false, false)] {
            classes.count(source, target);
        }
        assert_eq!(classes.each().map(|(_, n)| n), [2, 1, 1, 1]);
    }
}
