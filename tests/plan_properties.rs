//! Same input, same bytes; another order, same bytes; one more row, only what depends on it.

use std::collections::{BTreeMap, BTreeSet};

use cutover::catalogue::Catalogue;
use cutover::domain::time::Timestamp;
use cutover::domain::triplet::Part;
use cutover::inventory::{Inventory, Row};
use cutover::plan::{Plan, PlanRow, Policy, plan};
use proptest::prelude::*;

const KINDS: [(&str, &[&str]); 9] = [
    ("google", &["ga4", "gmail", "google_ads", "google_calendar", "gsc"]),
    ("google", &["gmail", "youtube"]),
    ("salesforce", &["salesforce"]),
    ("hubspot", &["hubspot"]),
    ("microsoft-ads", &["microsoft_ads"]),
    ("slack", &["slack"]),
    ("aws", &["aws_bedrock"]),
    ("github", &["github"]),
    ("stripe", &["stripe"]),
];

fn row(tenant: u8, kind: usize, account: u8) -> Row {
    let (key, providers) = KINDS[kind];
    let part = |text: &str| Part::new(text).unwrap();
    Row {
        tenant: part(&format!("t{tenant}")),
        integration_key: key.to_owned(),
        connection_id: format!("t{tenant}__{key}__a{account}"),
        providers: providers.iter().map(|p| part(p)).collect(),
        account: part(&format!("a{account}")),
        auth_mode: (account == 3).then(|| "OAUTH2".to_owned()),
    }
}

fn rows(most: usize) -> impl Strategy<Value = Vec<Row>> {
    prop::collection::btree_set((0u8..6, 0..KINDS.len(), 0u8..6), 0..most).prop_map(|set| {
        // Two kinds share a key: one connection each, so that ids stay unique.
        let mut seen = BTreeSet::new();
        set.into_iter().map(|(t, k, a)| row(t, k, a)).filter(|r| seen.insert(r.connection_id.clone())).collect()
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    (0u32..4, 1u32..60, 1u32..=10).prop_map(|(canary, size, share)| {
        let mut policy = Policy::default();
        policy.waves.canary_size = canary;
        policy.waves.size_max = size;
        policy.waves.tenant_share_max = f64::from(share) / 10.0;
        policy
    })
}

fn make(rows: &[Row], policy: &Policy) -> Plan {
    let inventory = Inventory { rows: rows.to_vec() };
    plan(&inventory, &Catalogue::built_in(), policy, &[], Timestamp::from_secs(1_778_058_000))
}

/// A row without its wave, which may depend on the others where waves are full.
fn without_wave(row: &PlanRow) -> PlanRow {
    PlanRow { wave: None, ..row.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn order_and_repetition_of_rows_change_nothing(rows in rows(60), policy in policies(), shift in 0usize..60) {
        let first = make(&rows, &policy);
        prop_assert_eq!(make(&rows, &policy).to_json(), first.to_json());
        let mut other = rows.clone();
        other.rotate_left(shift % rows.len().max(1));
        other.reverse();
        other.extend(rows.first().cloned());
        prop_assert_eq!(make(&other, &policy).to_json(), first.to_json());
    }

    #[test]
    fn one_more_connection_changes_only_what_depends_on_it(rows in rows(40), policy in policies()) {
        let Some((new, rest)) = rows.split_last() else { return Ok(()) };
        let (before, after) = (make(rest, &policy), make(&rows, &policy));
        let of = |plan: &Plan| -> BTreeMap<String, PlanRow> {
            plan.rows.iter().map(|r| (format!("{} {}", r.triplet, r.connection_id), r.clone())).collect()
        };
        let (old, now) = (of(&before), of(&after));
        let mine: BTreeSet<String> = new.triplets().map(|t| t.to_string()).collect();
        for (key, row) in &old {
            if !mine.contains(&row.triplet.to_string()) {
                prop_assert_eq!(without_wave(row), without_wave(&now[key]));
            }
        }
        // With room in every wave nobody moves, but for a canary that makes way for a better one.
        let room = before.waves.len() <= 2 && after.waves.len() == before.waves.len()
            && policy.waves.size_max >= 50;
        if room {
            let moved: BTreeSet<_> = old.iter().filter(|(k, r)| now[*k].wave != r.wave).map(|(_, r)| r.grant()).collect();
            prop_assert!(moved.len() <= 1, "{:?}", moved);
        }
    }

    #[test]
    fn a_plan_reads_back_and_its_waves_hold_what_moves(rows in rows(60), policy in policies()) {
        let plan = make(&rows, &policy);
        prop_assert_eq!(&Plan::from_json(&plan.to_json()).unwrap(), &plan);
        let mut by_grant: BTreeMap<(&str, &str), BTreeSet<u32>> = BTreeMap::new();
        for row in &plan.rows {
            prop_assert_eq!(row.wave.is_some(), row.route.moves());
            prop_assert!(!row.reasons.is_empty());
            if let Some(n) = row.wave {
                by_grant.entry(row.grant()).or_default().insert(n);
                prop_assert!(plan.waves[n as usize - 1].triplets.contains(&row.triplet));
            }
        }
        prop_assert!(by_grant.values().all(|waves| waves.len() == 1));
        let moving = plan.rows.iter().filter(|r| r.route.moves()).count();
        prop_assert_eq!(plan.waves.iter().map(|w| w.triplets.len()).sum::<usize>(), moving);
        prop_assert!(plan.waves.iter().enumerate().all(|(i, w)| w.n as usize == i + 1 && !w.triplets.is_empty()));
        let s = &plan.summary;
        prop_assert_eq!(s.reconsent + s.static_ + s.retain + s.blocked, s.triplets);
    }
}
