//! The plan as a sheet: one row a triplet, codes instead of sentences.

use super::{Granted, Plan, ReversibleUntil};

const HEADER: [&str; 18] = [
    "triplet",
    "integration_key",
    "connection_id",
    "toolkit",
    "route",
    "wave",
    "reasons",
    "hazards",
    "people",
    "scopes",
    "granted",
    "quiet_window",
    "reversible_until",
    "requests_apply",
    "requests_per_day",
    "requests_switch",
    "usd_per_month",
    "plan",
];

/// RFC 4180 with a header. Cells that a spreadsheet would take for a formula start with `'`.
pub fn csv(plan: &Plan) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut write = |record: &[String]| {
        writer
            .write_record(record.iter().map(|cell| guarded(cell)))
            .expect("records are equally long and memory is no disk");
    };
    write(&HEADER.map(str::to_owned));
    for row in &plan.rows {
        let codes = |values: Vec<serde_json::Value>| {
            values.iter().map(|v| v["code"].as_str().unwrap_or_default()).collect::<Vec<_>>().join(" ")
        };
        let values = |items: Result<serde_json::Value, _>| match items {
            Ok::<_, serde_json::Error>(serde_json::Value::Array(values)) => codes(values),
            _ => String::new(),
        };
        write(&[
            row.triplet.to_string(),
            row.integration_key.clone(),
            row.connection_id.clone(),
            row.toolkit.clone().unwrap_or_default(),
            row.route.name().to_owned(),
            row.wave.map_or(String::new(), |n| n.to_string()),
            values(serde_json::to_value(&row.reasons)),
            values(serde_json::to_value(&row.hazards)),
            values(serde_json::to_value(&row.actions)),
            row.scopes.join(" "),
            match &row.granted {
                Granted::Unknown => "unknown".to_owned(),
                Granted::Enough => "enough".to_owned(),
                Granted::Missing { scopes } => format!("missing {}", scopes.join(" ")),
            },
            row.quiet_window.map_or(String::new(), |w| w.to_string()),
            match row.reversible_until {
                ReversibleUntil::Always => "always".to_owned(),
                ReversibleUntil::Consent => "consent".to_owned(),
                ReversibleUntil::AfterSwitch { window, .. } => format!("switch+{window}"),
                ReversibleUntil::Rotated => "rotated".to_owned(),
            },
            row.cost.requests_apply.to_string(),
            row.cost.requests_per_day.to_string(),
            row.cost.requests_switch.to_string(),
            row.cost.usd_per_month.to_f64().to_string(),
            plan.id.clone(),
        ]);
    }
    let bytes = writer.into_inner().expect("memory is no disk");
    String::from_utf8(bytes).expect("all cells were text")
}

fn guarded(cell: &str) -> String {
    if cell.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{cell}") } else { cell.to_owned() }
}
