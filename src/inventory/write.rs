//! Writing an inventory in each form that can be read, always in the same order and spelling.

use super::columns::Column;
use super::json::VERSION;
use super::{Inventory, Row};
use crate::domain::triplet::Part;

/// A Markdown table. Connection ids and auth modes get a column only where a row needs one.
pub fn to_markdown(inventory: &Inventory) -> String {
    let with_ids = inventory.rows.iter().any(|row| row.connection_id != row.conventional_id());
    let with_modes = inventory.rows.iter().any(|row| row.auth_mode.is_some());
    let mut header = vec!["Tenant", "Nango Integration Key"];
    if with_ids {
        header.push("Connection id");
    }
    header.extend(["V5 Provider(s)", "Account"]);
    if with_modes {
        header.push("Auth mode");
    }
    let mut out = format!("| {} |\n|{}\n", header.join(" | "), "---|".repeat(header.len()));
    for row in &inventory.rows {
        let providers: Vec<String> = row.providers.iter().map(|p| format!("`{p}`")).collect();
        out.push_str(&format!("| `{}` | `{}` |", row.tenant, row.integration_key));
        if with_ids {
            // Not as code: inside code a backslash cannot be escaped.
            let id = row.connection_id.replace('\\', "\\\\").replace('|', "\\|");
            out.push_str(&format!(" {id} |"));
        }
        out.push_str(&format!(" {} | `{}` |", providers.join(", "), row.account));
        if with_modes {
            out.push_str(&format!(" {} |", row.auth_mode.as_deref().unwrap_or_default()));
        }
        out.push('\n');
    }
    out
}

/// CSV with `,`, all columns, providers joined with `+`.
pub fn to_csv(inventory: &Inventory) -> String {
    let mut out = Column::ALL.map(Column::name).join(",");
    out.push('\n');
    for row in &inventory.rows {
        let Row { tenant, integration_key, connection_id, providers, account, auth_mode } = row;
        let providers: Vec<&str> = providers.iter().map(Part::as_str).collect();
        let connection_id = if connection_id.contains([',', '"']) {
            format!("\"{}\"", connection_id.replace('"', "\"\""))
        } else {
            connection_id.clone()
        };
        let auth_mode = auth_mode.as_deref().unwrap_or_default();
        let providers = providers.join("+");
        out.push_str(&format!("{tenant},{integration_key},{connection_id},{providers},{account},{auth_mode}\n"));
    }
    out
}

/// Versioned JSON, one row a line so that a change of one row is a change of one line.
pub fn to_json(inventory: &Inventory) -> String {
    let rows: Vec<String> = inventory
        .rows
        .iter()
        .map(|row| serde_json::to_string(row).expect("a row is strings only, which always serialise"))
        .collect();
    format!("{{\n  \"inventory_version\": {VERSION},\n  \"rows\": [\n    {}\n  ]\n}}\n", rows.join(",\n    "))
}
