//! Which route a row takes and why; what makes a saved plan stale or unusable.

use cutover::catalogue::Catalogue;
use cutover::domain::time::{DAY_MS, Timestamp};
use cutover::domain::triplet::{Part, Triplet};
use cutover::inventory::{Inventory, Row};
use cutover::plan::saved::SavedPlanError;
use cutover::plan::{
    Action, Fact, Granted, Hazard, Moved, Note, Plan, PlanRow, Policy, Probe, Reason, ReversibleUntil, Route, plan,
    staleness,
};

fn now() -> Timestamp {
    Timestamp::parse("2026-05-06T09:00:00Z").unwrap()
}

fn connection(tenant: &str, key: &str, providers: &[&str]) -> Row {
    let part = |text: &str| Part::new(text).unwrap();
    Row {
        tenant: part(tenant),
        integration_key: key.to_owned(),
        connection_id: format!("{tenant}__{key}__default"),
        providers: providers.iter().map(|p| part(p)).collect(),
        account: part("default"),
        auth_mode: None,
    }
}

fn inventory(rows: &[(&str, &[&str])]) -> Inventory {
    Inventory { rows: rows.iter().map(|(key, providers)| connection("kahuna", key, providers)).collect() }
}

fn planned(rows: &[(&str, &[&str])], policy: &str, probes: &[Probe]) -> Plan {
    plan(&inventory(rows), &Catalogue::built_in(), &Policy::from_toml(policy).unwrap(), probes, now())
}

fn only(key: &str, provider: &str, policy: &str, probes: &[Probe]) -> PlanRow {
    planned(&[(key, &[provider])], policy, probes).rows.remove(0)
}

fn toolkit_probe(slug: &str, found: bool, days_ago: i64) -> Probe {
    Probe { at: now().plus_ms(-days_ago * DAY_MS), fact: Fact::Toolkit { slug: slug.to_owned(), found } }
}

fn decision(provider: &str, route: &str) -> String {
    format!(
        "[[decision]]\ntriplet = \"kahuna:{provider}:default\"\nroute = \"{route}\"\nreason = \"because\"\nby = \"Ada\"\n"
    )
}

#[test]
fn microsoft_ads_moves_only_after_a_probe_has_found_its_toolkit() {
    let route = |policy: &str, probes: &[Probe]| only("microsoft-ads", "microsoft_ads", policy, probes);
    let slug = "microsoft_advertising";
    let unprobed = route("", &[]);
    assert_eq!((unprobed.route, unprobed.toolkit), (Route::Retain, None));
    assert_eq!(*unprobed.actions, [Action::ProbeToolkit { toolkit: slug.into() }]);
    let found = route("", &[toolkit_probe(slug, true, 1)]);
    assert_eq!((found.route, found.toolkit.as_deref()), (Route::Reconsent, Some(slug)));
    assert_eq!(*found.reasons, [Reason::ToolkitProbed { toolkit: slug.into() }]);
    assert!(found.actions.iter().any(|a| matches!(a, Action::ExtraCredential { .. })));
    let absent = route("", &[toolkit_probe(slug, true, 3), toolkit_probe(slug, false, 1)]);
    assert_eq!(*absent.reasons, [Reason::ToolkitAbsent { toolkit: slug.into() }]);
    let old = route("", &[toolkit_probe(slug, true, 8)]);
    assert!(matches!(&*old.reasons, [Reason::ToolkitUnconfirmed { .. }, Reason::ProbeExpired { .. }]));
    assert_eq!(route("[accept]\nunconfirmed_toolkits = true", &[]).route, Route::Reconsent);
}

#[test]
fn a_decision_chooses_a_route_and_cannot_invent_a_toolkit() {
    assert_eq!(only("gong-oauth", "gong", &decision("gong", "retain"), &[]).route, Route::Retain);
    assert_eq!(only("gong-oauth", "gong", &decision("gong", "blocked"), &[]).route, Route::Blocked);
    for (key, provider, route) in [
        ("aws", "aws_bedrock", "reconsent"),
        ("microsoft-ads", "microsoft_ads", "reconsent"),
        ("gong-oauth", "gong", "static"),
        ("stripe", "stripe", "reconsent"),
    ] {
        let row = only(key, provider, &decision(provider, route), &[]);
        assert_eq!(row.route, Route::Blocked, "{provider}");
        assert!(matches!(row.reasons[0], Reason::DecisionImpossible { .. }), "{provider}");
    }
    let unused = planned(&[("slack", &["slack"])], &decision("gong", "retain"), &[]);
    let triplet = Triplet::parse("kahuna:gong:default").unwrap();
    assert_eq!(unused.notes, [Note::DecisionUnused { triplet }]);
}

#[test]
fn a_decision_goes_before_the_retain_list() {
    let policy = format!("retain = [\"*:gong:*\"]\n{}", decision("gong", "reconsent"));
    assert_eq!(only("gong-oauth", "gong", "retain = [\"*:gong:*\"]", &[]).route, Route::Retain);
    assert_eq!(only("gong-oauth", "gong", &policy, &[]).route, Route::Reconsent);
}

#[test]
fn what_nobody_knows_is_blocked() {
    let row = only("stripe", "stripe", "", &[]);
    assert_eq!(
        (row.route, &row.reasons[0]),
        (Route::Blocked, &Reason::UnknownIntegration { integration_key: "stripe".into() })
    );
    let row = only("google", "youtube", "", &[]);
    assert!(matches!(row.reasons[0], Reason::UnknownProvider { .. }));
    assert_eq!(*row.actions, [Action::Decide]);
    let mut inventory = inventory(&[("hubspot", &["hubspot"])]);
    inventory.rows[0].auth_mode = Some("API_KEY".into());
    let plan = plan(&inventory, &Catalogue::built_in(), &Policy::default(), &[], now());
    assert!(matches!(plan.rows[0].reasons[0], Reason::AuthModeDiffers { .. }));
    assert_eq!(plan.notes, [Note::Undecided { rows: 1 }]);
}

#[test]
fn an_api_key_is_copied_once() {
    let catalogue = Catalogue::built_in().extend("[integration.hubspot]\nauth_mode = \"API_KEY\"\n").unwrap();
    let plan = plan(&inventory(&[("hubspot", &["hubspot"])]), &catalogue, &Policy::default(), &[], now());
    let row = &plan.rows[0];
    assert_eq!((row.route, row.reversible_until), (Route::Static, ReversibleUntil::Rotated));
    assert_eq!(*row.actions, [Action::RotateSecret]);
}

#[test]
fn the_choice_of_client_decides_what_the_consent_does() {
    let linkedin = |client: &str, more: &str| {
        only("linkedin", "linkedin_ads", &format!("[clients]\ndefault = \"{client}\"\n{more}"), &[])
    };
    assert_eq!(linkedin("unknown", "").reversible_until, ReversibleUntil::Consent);
    let different = linkedin("different", "");
    assert!(matches!(different.reversible_until, ReversibleUntil::AfterSwitch { grant_life_days: Some(365), .. }));
    assert!(!different.hazards.iter().any(|h| matches!(h, Hazard::SameClientReconsent { .. })));
    assert_eq!(*linkedin("same", "").reasons, [Reason::SharedClient]);
    let accepted = linkedin("same", "[accept]\nshared_clients = true");
    assert_eq!((accepted.route, accepted.reversible_until), (Route::Reconsent, ReversibleUntil::Consent));
    assert!(matches!(linkedin("managed", "").reasons[0], Reason::NoManagedClient { .. }));
    assert_eq!(only("google", "gmail", "[clients]\ndefault = \"managed\"", &[]).route, Route::Reconsent);
}

#[test]
fn missing_scopes_block_and_lost_ones_are_named() {
    let granted = |scopes: &[&str]| {
        let fact = Fact::Scopes {
            integration_key: "slack".into(),
            connection_id: "kahuna__slack__default".into(),
            granted: scopes.iter().map(|s| (*s).to_owned()).collect(),
        };
        [Probe { at: now(), fact }]
    };
    let enough = ["channels:read", "channels:history", "chat:write", "users:read"];
    assert_eq!(only("slack", "slack", "", &[]).granted, Granted::Unknown);
    assert_eq!(only("slack", "slack", "", &granted(&enough)).granted, Granted::Enough);
    let less = only("slack", "slack", "", &granted(&enough[1..]));
    assert_eq!(less.granted, Granted::Missing { scopes: vec!["channels:read".into()] });
    assert_eq!((less.route, &less.reasons[0]), (Route::Blocked, &Reason::MissingScopes));
    let accepted = only("slack", "slack", "[accept]\nmissing_scopes = true", &granted(&enough[1..]));
    assert_eq!(accepted.route, Route::Reconsent);
    let more: Vec<&str> = enough.iter().copied().chain(["files:read"]).collect();
    let more = only("slack", "slack", "", &granted(&more));
    assert!(more.hazards.contains(&Hazard::ScopesDropped { scopes: vec!["files:read".into()] }));
}

#[test]
fn a_grant_that_feeds_a_triplet_that_stays_is_not_deleted() {
    let plan = planned(&[("google", &["ga4", "gmail"])], "retain = [\"*:gmail:*\"]", &[]);
    let ga4 = &plan.rows[0];
    assert_eq!((ga4.route, plan.rows[1].route), (Route::Reconsent, Route::Retain));
    assert!(ga4.hazards.contains(&Hazard::GrantStillNeeded { staying: 1 }));
    assert!(!ga4.hazards.iter().any(|h| matches!(h, Hazard::FanOut { .. })));
}

#[test]
fn two_connections_cannot_feed_one_triplet() {
    let mut inventory = inventory(&[("slack", &["slack"])]);
    inventory.rows.push(Row { connection_id: "7b1c".into(), ..inventory.rows[0].clone() });
    let plan = plan(&inventory, &Catalogue::built_in(), &Policy::default(), &[], now());
    assert!(plan.rows.iter().all(|r| r.route == Route::Blocked));
    assert_eq!(plan.rows[0].reasons[0], Reason::TwoSources { other: "kahuna__slack__default".into() });
    assert!(plan.waves.is_empty());
}

#[test]
fn a_fact_past_its_date_must_be_looked_up_again() {
    let later = Timestamp::parse("2027-03-01T00:00:00Z").unwrap();
    let inventory = inventory(&[("slack", &["slack"])]);
    let (catalogue, policy) = (Catalogue::built_in(), Policy::default());
    let stale = plan(&inventory, &catalogue, &policy, &[], later);
    assert!(stale.rows[0].hazards.iter().any(|h| matches!(h, Hazard::FactExpired { .. })));
    let probe = Probe { at: later, fact: Fact::Toolkit { slug: "slack".into(), found: true } };
    let renewed = plan(&inventory, &catalogue, &policy, &[probe], later);
    assert!(!renewed.rows[0].hazards.iter().any(|h| matches!(h, Hazard::FactExpired { .. })));
}

#[test]
fn waves_keep_their_window_and_say_when_it_is_too_short() {
    let policy = "[waves]\ncanary_size = 1\nsize_max = 1\ntenant_share_max = 1.0\nnot_before = \"2026-06-01T08:00:00Z\"\n\
                  not_after = \"2026-06-02T08:00:00Z\"\n";
    let plan = planned(&[("slack", &["slack"]), ("github", &["github"]), ("hubspot", &["hubspot"])], policy, &[]);
    assert!(plan.waves.len() >= 3 && plan.waves[0].canary);
    assert_eq!(plan.waves[1].not_before.unwrap().to_rfc3339(), "2026-06-02T08:00:00.000Z");
    assert!(matches!(plan.notes[..], [Note::WindowTooShort { .. }]));
}

#[test]
fn a_tier_that_is_too_small_shows_before_the_soak_does() {
    let rows = (0..2_000).map(|n| connection(&format!("t{n}"), "hubspot", &["hubspot"])).collect();
    let policy =
        Policy::from_toml("[rates]\nnango_tier = \"free\"\n[prices]\nnango_per_connection_month = 0.29").unwrap();
    let plan = plan(&Inventory { rows }, &Catalogue::built_in(), &policy, &[], now());
    assert!(plan.notes.iter().any(|n| matches!(n, Note::RateTooLow { api, .. } if api == "nango")), "{:?}", plan.notes);
    assert!(plan.notes.iter().any(|n| matches!(n, Note::TooExpensive { .. })), "{:?}", plan.notes);
}

#[test]
fn the_same_inputs_give_the_same_id_on_another_day() {
    let inventory = inventory(&[("google", &["ga4", "gmail"]), ("aws", &["aws_bedrock"])]);
    let (catalogue, policy) = (Catalogue::built_in(), Policy::default());
    let today = plan(&inventory, &catalogue, &policy, &[], now());
    let tomorrow = plan(&inventory, &catalogue, &policy, &[], now().plus_ms(DAY_MS));
    assert_eq!(today.id, tomorrow.id);
    assert_ne!(today.digest, tomorrow.digest);
    assert_eq!(staleness(&today, &inventory, &catalogue, &policy, &[], now().plus_ms(DAY_MS)), []);
}

#[test]
fn staleness_names_what_moved() {
    let rows = inventory(&[("slack", &["slack"])]);
    let (catalogue, policy) = (Catalogue::built_in(), Policy::default());
    let plan = plan(&rows, &catalogue, &policy, &[], now());
    let more = inventory(&[("slack", &["slack"]), ("aws", &["aws_bedrock"])]);
    assert_eq!(staleness(&plan, &more, &catalogue, &policy, &[], now()), [Moved::Inventory]);
    let other = Policy::from_toml("reverse_window = \"14d\"").unwrap();
    assert_eq!(staleness(&plan, &rows, &catalogue, &other, &[], now()), [Moved::Policy]);
    let extended = catalogue.extend("[integration.slack]\naccess_token_ttl_s = 3600").unwrap();
    assert_eq!(staleness(&plan, &rows, &extended, &policy, &[], now()), [Moved::Catalogue]);
    let probes = [toolkit_probe("slack", true, 0)];
    assert_eq!(staleness(&plan, &rows, &catalogue, &policy, &probes, now()), [Moved::Probes]);
    let late = plan.expires_at;
    assert_eq!(staleness(&plan, &rows, &catalogue, &policy, &[], late), [Moved::Expired { at: late }]);
}

#[test]
fn an_edited_or_unknown_plan_is_refused() {
    let json = planned(&[("slack", &["slack"]), ("aws", &["aws_bedrock"])], "", &[]).to_json();
    assert!(Plan::from_json(&json).is_ok());
    let version = Plan::from_json(&json.replace("\"plan_version\": 1", "\"plan_version\": 2")).unwrap_err();
    assert!(version.to_string().contains("version 2"), "{version}");
    let edited = json.replacen("\"route\":\"retain\"", "\"route\":\"reconsent\"", 1);
    assert!(matches!(Plan::from_json(&edited), Err(SavedPlanError::Id { .. })));
    let extended = json.replace("\"expires_at\": \"2026-05-13", "\"expires_at\": \"2027-05-13");
    assert_ne!(extended, json);
    assert!(matches!(Plan::from_json(&extended), Err(SavedPlanError::Digest { .. })));
    let more = json.replace("\"plan_version\": 1", "\"plan_version\": 1, \"more\": 1");
    assert!(matches!(Plan::from_json(&more), Err(SavedPlanError::Shape(_))));
    for (text, want) in [("", "not JSON"), ("{}", "not a plan"), ("[1]", "not"), ("{\"plan_version\":\"x\"}", "\"x\"")]
    {
        let error = Plan::from_json(text).unwrap_err().to_string();
        assert!(error.contains(want), "{text}: {error}");
    }
}

#[test]
fn a_diff_is_empty_only_between_equals() {
    let a = planned(&[("slack", &["slack"]), ("aws", &["aws_bedrock"])], "", &[]);
    let b = planned(&[("slack", &["slack"]), ("github", &["github"])], "[clients]\ndefault = \"different\"", &[]);
    assert!(cutover::plan::diff::diff(&a, &a).is_empty());
    let diff = cutover::plan::diff::diff(&a, &b);
    assert_eq!(diff.inputs, ["inventory", "policy"]);
    assert_eq!((diff.added.len(), diff.removed.len(), diff.changed.len()), (1, 1, 1));
    assert!(diff.changed[0].fields.iter().any(|c| c.field == "reversible_until"));
}
