//! The committed plan of ADR-038's inventory: what a reader of the repository sees is what the
//! program makes. `CUTOVER_UPDATE=1 cargo test --test plan_golden` rewrites it.

use std::path::{Path, PathBuf};

use cutover::catalogue::Catalogue;
use cutover::domain::time::Timestamp;
use cutover::inventory::{self, Inventory, Source};
use cutover::plan::render;
use cutover::plan::{Plan, Policy, Route, plan};
use cutover::text::{Paint, WIDTH};
use unicode_width::UnicodeWidthStr;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> Inventory {
    let bytes = std::fs::read(root(path)).unwrap();
    inventory::read(&Source { name: path, bytes: &bytes, format: None, tenants: &[] }).unwrap()
}

fn adr_038(form: &str) -> Plan {
    let now = Timestamp::parse("2026-05-06T09:00:00Z").unwrap();
    let inventory = read(&format!("fixtures/inventories/adr-038.{form}"));
    plan(&inventory, &Catalogue::built_in(), &Policy::default(), &[], now)
}

fn assert_committed(path: &str, text: &str) {
    if std::env::var_os("CUTOVER_UPDATE").is_some() {
        std::fs::write(root(path), text).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(root(path)).unwrap_or_default();
    let diff = similar::TextDiff::from_lines(committed.as_str(), text);
    assert!(
        committed == text,
        "{path} is not what the program makes; CUTOVER_UPDATE=1 rewrites it:\n{}",
        diff.unified_diff().context_radius(1)
    );
}

#[test]
fn the_committed_plan_of_adr_038_is_what_the_program_makes() {
    let plan = adr_038("md");
    assert_committed("plans/adr-038.txt", &render::text(&plan, Paint { on: false }));
    assert_committed("plans/adr-038.json", &plan.to_json());
    assert_committed("plans/adr-038.md", &render::markdown(&plan));
    assert_eq!(Plan::from_json(&plan.to_json()), Ok(plan));
}

#[test]
fn markdown_csv_and_json_of_one_inventory_give_one_plan() {
    let plan = adr_038("md");
    assert_eq!(plan, adr_038("csv"));
    assert_eq!(plan, adr_038("json"));
}

#[test]
fn every_provider_of_both_tenants_is_explained() {
    let plan = adr_038("md");
    assert_eq!((plan.rows.len(), plan.summary.connections, plan.summary.tenants), (28, 20, 2));
    assert!(plan.rows.iter().all(|r| !r.reasons.is_empty()));
    for tenant in ["kahuna", "pointfield"] {
        let row = |provider: &str| {
            plan.rows.iter().find(|r| r.triplet.tenant.as_str() == tenant && r.triplet.provider.as_str() == provider)
        };
        let why = |provider| row(provider).unwrap().reasons.iter().map(|r| r.text()).collect::<String>();
        for provider in ["aws_bedrock", "microsoft_ads"] {
            assert_eq!((row(provider).unwrap().route, row(provider).unwrap().wave), (Route::Retain, None));
        }
        assert!(why("aws_bedrock").contains("no toolkit"));
        assert!(why("microsoft_ads").contains("must be probed first"));
        let bedrock = row("aws_bedrock").unwrap();
        assert!(bedrock.hazards.iter().any(|h| h.text().contains("Cognito")));

        let google: Vec<_> =
            plan.rows.iter().filter(|r| r.triplet.tenant.as_str() == tenant && r.integration_key == "google").collect();
        assert_eq!(google.len(), 5);
        assert!(google.iter().all(|r| r.grant() == google[0].grant() && r.wave == google[0].wave && r.wave.is_some()));
        assert!(google.iter().all(|r| r.route == Route::Reconsent));
    }
}

#[test]
fn the_text_fits_a_hundred_columns() {
    let text = render::text(&adr_038("md"), Paint { on: false });
    assert!(text.lines().all(|line| line.width() <= WIDTH), "{text}");
    assert!(!text.contains('\x1b') && !text.lines().any(|line| line.ends_with(' ')));
}

#[test]
fn colour_changes_nothing_but_colour() {
    let plan = adr_038("md");
    let colored = render::text(&plan, Paint { on: true });
    let mut plain = String::new();
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    plain.push_str(rest);
    assert_eq!(plain, render::text(&plan, Paint { on: false }));
}

#[test]
fn the_sheet_has_a_row_for_every_triplet() {
    let plan = adr_038("md");
    let sheet = render::csv(&plan);
    let mut reader = csv::Reader::from_reader(sheet.as_bytes());
    assert_eq!(reader.records().map(Result::unwrap).count(), 28);
    assert!(sheet.contains("wrong-credential"));
}
