//! Makes a plan. Reads nothing but its arguments and changes nothing.
//!
//! Three passes over the rows: a route for each triplet ([`super::row`]), then the waves over
//! whole source grants, then the details, which depend on how many siblings move. Rows that agree
//! in everything that matters share their details, which is what keeps 100,000 of them small.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::budget::{self, Cadence, MovingGrant};
use super::policy::Policy;
use super::row::{Context, Details, Siblings, Verdict};
use super::waves::{self, MovingUnit};
use super::{
    Fact, Inputs, Note, PLAN_VERSION, Plan, PlanRow, Probe, ReversibleUntil, Route, Step, Summary, Wave, saved,
};
use crate::catalogue::Catalogue;
use crate::domain::duration::Millis;
use crate::domain::time::Timestamp;
use crate::domain::triplet::{Part, Triplet};
use crate::inventory::{Inventory, Row};

/// Decides what happens to each triplet of the inventory.
///
/// The order of the inventory's rows and of the probes does not matter, and the result's id does
/// not depend on `now` unless a fact or a probe passes its date.
pub fn plan(inventory: &Inventory, catalogue: &Catalogue, policy: &Policy, probes: &[Probe], now: Timestamp) -> Plan {
    let connections = canonical(inventory);
    let probes = Probes::new(probes, policy.probe_life, now);
    let context = Context { catalogue, policy, probes: &probes, now };

    let mut drafts = route_all(&connections, &context);
    refuse_shared_triplets(&mut drafts, &connections);
    let grants = grants(&drafts, &connections);
    let (mut rows, summary) = detail_all(&drafts, &connections, &grants, &context);
    let (waves, last_start) = waves_of(&mut rows, &drafts, &connections, &grants, policy);
    rows.sort_unstable_by(|a, b| {
        a.triplet
            .cmp(&b.triplet)
            .then_with(|| a.connection_id.cmp(&b.connection_id))
            .then_with(|| a.grant().cmp(&b.grant()))
    });

    let toolkits =
        rows.iter().filter(|r| r.route.moves()).filter_map(|r| r.toolkit.as_deref()).collect::<BTreeSet<_>>();
    let moving = grants.iter().filter(|g| g.moving > 0).map(|g| MovingGrant {
        cadence: g.cadence,
        triplets: g.moving.into(),
        reconsents: g.reconsents.into(),
    });
    let budget = budget::total(
        policy,
        moving,
        grants.len() as u64,
        rows.len() as u64,
        toolkits.len() as u64,
        waves.len() as u64,
    );
    let notes = notes(policy, &rows, &budget, &summary, waves.len() as u32, last_start);
    let mut plan = Plan {
        plan_version: PLAN_VERSION,
        id: String::new(),
        created_at: now,
        expires_at: now.plus_ms(policy.plan_life.0),
        inputs: Inputs {
            inventory: saved::inventory_digest(inventory, catalogue),
            policy: saved::digest_of(policy),
            catalogue: saved::digest_of(catalogue),
            probes: probes.counted,
        },
        summary,
        rows,
        waves,
        budget,
        notes,
        digest: String::new(),
    };
    saved::seal(&mut plan);
    plan
}

/// The rows without repetitions, in the order that the plan is made in.
pub(crate) fn canonical(inventory: &Inventory) -> Vec<&Row> {
    let mut rows: Vec<&Row> = inventory.rows.iter().collect();
    rows.sort_by(|a, b| {
        let key = |r: &Row| (r.tenant.clone(), r.account.clone());
        (&a.integration_key, &a.connection_id)
            .cmp(&(&b.integration_key, &b.connection_id))
            .then_with(|| key(a).cmp(&key(b)))
            .then_with(|| a.providers.cmp(&b.providers))
            .then_with(|| a.auth_mode.cmp(&b.auth_mode))
    });
    rows.dedup();
    rows
}

/// The newest probe of each thing that is young enough to count.
pub(crate) struct Probes {
    counted: Vec<Probe>,
    toolkits: BTreeMap<String, bool>,
    expired: BTreeMap<String, Timestamp>,
    scopes: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Probes {
    fn new(probes: &[Probe], life: Millis, now: Timestamp) -> Self {
        let mut sorted: Vec<&Probe> = probes.iter().collect();
        sorted.sort_by(|a, b| (a.at, &a.fact).cmp(&(b.at, &b.fact)));
        let mut out =
            Self { counted: Vec::new(), toolkits: BTreeMap::new(), expired: BTreeMap::new(), scopes: BTreeMap::new() };
        let mut newest: BTreeMap<(u8, &str, &str), &Probe> = BTreeMap::new();
        for probe in sorted {
            let young = now.since(probe.at) <= life.0;
            match &probe.fact {
                Fact::Toolkit { slug, .. } if !young => {
                    out.expired.insert(slug.clone(), probe.at);
                }
                Fact::Toolkit { slug, found } => {
                    out.toolkits.insert(slug.clone(), *found);
                    newest.insert((0, slug, ""), probe);
                }
                Fact::Scopes { integration_key, connection_id, granted } if young => {
                    let key = (integration_key.clone(), connection_id.clone());
                    out.scopes.insert(key, granted.iter().cloned().collect());
                    newest.insert((1, integration_key, connection_id), probe);
                }
                Fact::Scopes { .. } => {}
            }
        }
        out.counted = newest.into_values().cloned().collect();
        out
    }

    /// Whether a young probe found the toolkit; `None`: nobody has looked lately.
    pub(crate) fn toolkit(&self, slug: &str) -> Option<bool> {
        self.toolkits.get(slug).copied()
    }

    /// When the newest probe was made, where it is too old to count.
    pub(crate) fn expired(&self, slug: &str) -> Option<Timestamp> {
        self.expired.get(slug).copied()
    }

    pub(crate) fn scopes(&self, row: &Row) -> Option<&BTreeSet<String>> {
        if self.scopes.is_empty() {
            return None;
        }
        self.scopes.get(&(row.integration_key.clone(), row.connection_id.clone()))
    }
}

/// A triplet with its route.
struct Draft {
    /// Index into the canonical connections.
    connection: u32,
    triplet: Triplet,
    verdict: Arc<Verdict>,
}

fn route_all(connections: &[&Row], context: &Context<'_>) -> Vec<Draft> {
    let decisions: BTreeMap<&Triplet, _> = context.policy.decision.iter().map(|d| (&d.triplet, d)).collect();
    let mut cache: HashMap<(&str, &str, Option<&str>), Arc<Verdict>> = HashMap::new();
    let mut drafts = Vec::with_capacity(connections.len());
    for (i, row) in connections.iter().enumerate() {
        let granted = context.probes.scopes(row);
        let mut last: Option<&Part> = None;
        for provider in &row.providers {
            if last == Some(provider) {
                continue;
            }
            last = Some(provider);
            let triplet = Triplet::new(row.tenant.clone(), provider.clone(), row.account.clone());
            let general = cache
                .entry((&row.integration_key, provider.as_str(), row.auth_mode.as_deref()))
                .or_insert_with(|| Arc::new(context.verdict(row, provider)));
            let verdict = context
                .special(general, row, &triplet, granted, decisions.get(&triplet).copied())
                .map_or_else(|| Arc::clone(general), Arc::new);
            drafts.push(Draft { connection: i as u32, triplet, verdict });
        }
    }
    drafts
}

/// Two connections that claim one triplet: nobody may guess which is right.
fn refuse_shared_triplets(drafts: &mut [Draft], connections: &[&Row]) {
    let mut order: Vec<usize> = (0..drafts.len()).collect();
    order.sort_by(|&a, &b| drafts[a].triplet.cmp(&drafts[b].triplet).then(a.cmp(&b)));
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && drafts[order[end]].triplet == drafts[order[start]].triplet {
            end += 1;
        }
        if end - start > 1 {
            for at in start..end {
                // The next one, in a ring: with two, each names the other.
                let other = order[if at + 1 < end { at + 1 } else { start }];
                let other = connections[drafts[other].connection as usize].connection_id.clone();
                let draft = &mut drafts[order[at]];
                draft.verdict = Arc::new(draft.verdict.two_sources(other));
            }
        }
        start = end;
    }
}

/// A source grant: what one Nango connection holds.
struct Grant {
    /// Its first and one past its last draft.
    drafts: std::ops::Range<usize>,
    moving: u32,
    reconsents: u32,
    staying: u32,
    cadence: Cadence,
}

/// Drafts of one grant stand together because connections are sorted by key and id.
fn grants(drafts: &[Draft], connections: &[&Row]) -> Vec<Grant> {
    let name = |d: &Draft| {
        let row = connections[d.connection as usize];
        (row.integration_key.as_str(), row.connection_id.as_str())
    };
    let mut out = Vec::new();
    let mut start = 0;
    while start < drafts.len() {
        let end = start + drafts[start..].iter().take_while(|d| name(d) == name(&drafts[start])).count();
        let members = &drafts[start..end];
        let moving = members.iter().filter(|d| d.verdict.route.moves()).count() as u32;
        out.push(Grant {
            drafts: start..end,
            moving,
            reconsents: members.iter().filter(|d| d.verdict.route == Route::Reconsent).count() as u32,
            staying: (end - start) as u32 - moving,
            cadence: members[0].verdict.cadence,
        });
        start = end;
    }
    out
}

type DetailsKey<'a> = (&'a str, &'a str, Siblings, *const Verdict);

fn detail_all(
    drafts: &[Draft],
    connections: &[&Row],
    grants: &[Grant],
    context: &Context<'_>,
) -> (Vec<PlanRow>, Summary) {
    let mut rows = Vec::with_capacity(drafts.len());
    let mut summary = Summary { connections: grants.len() as u64, triplets: drafts.len() as u64, ..Summary::default() };
    summary.tenants = connections.iter().map(|r| r.tenant.as_str()).collect::<BTreeSet<_>>().len() as u64;
    // Verdicts live as long as `drafts`, so their addresses name them.
    let mut cache: HashMap<DetailsKey<'_>, Arc<Details>> = HashMap::new();
    for grant in grants {
        let siblings = Siblings { moving: grant.moving, staying: grant.staying };
        for draft in &drafts[grant.drafts.clone()] {
            let row = connections[draft.connection as usize];
            let verdict = &draft.verdict;
            let key = (row.integration_key.as_str(), draft.triplet.provider.as_str(), siblings, Arc::as_ptr(verdict));
            let details = cache
                .entry(key)
                .or_insert_with(|| Arc::new(context.details(row, &draft.triplet.provider, verdict, siblings)));
            match verdict.route {
                Route::Reconsent => summary.reconsent += 1,
                Route::Static => summary.static_ += 1,
                Route::Retain => summary.retain += 1,
                Route::Blocked => summary.blocked += 1,
            }
            summary.consents += u64::from(verdict.route == Route::Reconsent);
            summary.final_at_consent += u64::from(details.reversible_until == ReversibleUntil::Consent);
            rows.push(PlanRow {
                triplet: draft.triplet.clone(),
                integration_key: row.integration_key.clone(),
                connection_id: row.connection_id.clone(),
                toolkit: verdict.toolkit.clone(),
                route: verdict.route,
                wave: None,
                reasons: Arc::clone(&verdict.reasons),
                hazards: Arc::clone(&details.hazards),
                actions: Arc::clone(&details.actions),
                scopes: verdict.scopes.clone(),
                granted: verdict.granted.clone(),
                quiet_window: details.quiet_window,
                reversible_until: details.reversible_until,
                cost: details.cost,
            });
        }
    }
    (rows, summary)
}

/// Puts the moving grants into waves and says when the last of them starts. `rows` still stand in
/// the order of `drafts`.
fn waves_of(
    rows: &mut [PlanRow],
    drafts: &[Draft],
    connections: &[&Row],
    grants: &[Grant],
    policy: &Policy,
) -> (Vec<Wave>, Option<Timestamp>) {
    let moving: Vec<&Grant> = grants.iter().filter(|g| g.moving > 0).collect();
    let units: Vec<MovingUnit<'_>> = moving
        .iter()
        .map(|grant| {
            let row = connections[drafts[grant.drafts.start].connection as usize];
            let risk =
                rows[grant.drafts.clone()].iter().flat_map(|r| r.hazards.iter()).map(super::Hazard::weight).sum();
            MovingUnit {
                tenant: row.tenant.as_str(),
                integration_key: &row.integration_key,
                connection_id: &row.connection_id,
                risk,
            }
        })
        .collect();
    let assigned = waves::assign(&units, &policy.waves);
    let count = assigned.iter().copied().max().unwrap_or(0);
    let canary = policy.waves.canary_size > 0;
    let start =
        |n: u32| policy.waves.not_before.map(|t| t.plus_ms(policy.waves.spacing.0.saturating_mul(i64::from(n) - 1)));
    let mut waves: Vec<Wave> = (1..=count)
        .map(|n| Wave {
            n,
            canary: canary && n == 1,
            connections: 0,
            consents: 0,
            not_before: start(n),
            not_after: policy.waves.not_after,
            steps: Arc::default(),
            triplets: Vec::new(),
        })
        .collect();
    let mut tallies = vec![Tally::default(); waves.len()];
    for (grant, n) in moving.iter().zip(assigned) {
        let wave = &mut waves[n as usize - 1];
        wave.connections += 1;
        for row in &mut rows[grant.drafts.clone()] {
            if row.route.moves() {
                row.wave = Some(n);
                wave.triplets.push(row.triplet.clone());
                tallies[n as usize - 1].count(row);
            }
        }
    }
    let mut cache: HashMap<Tally, Arc<[Step]>> = HashMap::new();
    for (wave, tally) in waves.iter_mut().zip(tallies) {
        wave.triplets.sort_unstable();
        wave.consents = tally.consents;
        wave.steps = Arc::clone(cache.entry(tally).or_insert_with(|| tally.steps(policy).into()));
    }
    let last = if count == 0 { None } else { start(count) };
    (waves, last)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Tally {
    consents: u32,
    final_at_consent: u32,
    statics: u32,
}

impl Tally {
    fn count(&mut self, row: &PlanRow) {
        self.consents += u32::from(row.route == Route::Reconsent);
        self.final_at_consent += u32::from(row.reversible_until == ReversibleUntil::Consent);
        self.statics += u32::from(row.route == Route::Static);
    }

    fn steps(self, policy: &Policy) -> Vec<Step> {
        let reversible = self.consents - self.final_at_consent + self.statics;
        let mut steps = vec![Step::AlarmStandby];
        if self.consents > 0 {
            steps.push(Step::Mirror);
        }
        if self.statics > 0 {
            steps.push(Step::CopySecrets);
        }
        steps.push(Step::Soak { days: policy.criteria.soak_days });
        if policy.criteria.reverse_rehearsed {
            steps.push(Step::RehearseReverse);
        }
        if self.consents > 0 {
            steps.push(Step::Consent { consents: self.consents });
        }
        if self.final_at_consent > 0 {
            steps.push(Step::SwitchAtConsent { rows: self.final_at_consent });
        }
        if reversible > 0 {
            steps.push(Step::Switch { rows: reversible });
            steps.push(Step::ReverseWindow { window: policy.reverse_window });
        }
        steps.push(Step::Settle);
        steps
    }
}

fn notes(
    policy: &Policy,
    rows: &[PlanRow],
    budget: &super::Budget,
    summary: &Summary,
    waves: u32,
    last_start: Option<Timestamp>,
) -> Vec<Note> {
    let mut notes = Vec::new();
    if summary.blocked > 0 {
        notes.push(Note::Undecided { rows: summary.blocked });
    }
    for decision in &policy.decision {
        if rows.binary_search_by(|r| r.triplet.cmp(&decision.triplet)).is_err() {
            notes.push(Note::DecisionUnused { triplet: decision.triplet.clone() });
        }
    }
    for api in &budget.apis {
        if api.soak_per_minute() > api.available_per_minute {
            notes.push(Note::RateTooLow {
                api: api.api.name().to_owned(),
                needed_per_minute: api.soak_per_minute(),
                available_per_minute: api.available_per_minute,
            });
        }
    }
    let max = super::Usd::from_f64(policy.criteria.cost_usd_max);
    if budget.usd_soak > max {
        notes.push(Note::TooExpensive { soak: budget.usd_soak, max });
    }
    if let (Some(starts), Some(end)) = (last_start, policy.waves.not_after)
        && starts > end
    {
        notes.push(Note::WindowTooShort { waves, starts });
    }
    notes
}
