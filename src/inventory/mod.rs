//! The integration inventory: which connection feeds which triplets.
//!
//! Inventories come as a Markdown table inside a larger document, as CSV, as JSON, or live from
//! Nango. Every reader is a pure function from bytes to typed rows or to [`Diagnostics`] that
//! point at the text; reading files and talking to Nango is somebody else's work.

mod columns;
mod csv;
mod diagnostic;
mod encoding;
mod excerpt;
mod json;
mod json_syntax;
mod live;
mod markdown;
mod merge;
mod names;
mod rows;
mod table;
mod write;

use serde::{Deserialize, Serialize};

use crate::domain::triplet::{Part, Triplet};

pub use diagnostic::{DIAGNOSTICS_MAX, Diagnostic, Diagnostics, Location, Span};
pub use live::{LIVE_NAME, from_live};
pub use merge::{Disagreement, merge};
pub use rows::AUTH_MODES;
pub use write::{to_csv, to_json, to_markdown};

/// One Nango connection and the triplets that it feeds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Row {
    pub tenant: Part,
    /// Nango's provider config key, such as `google`.
    pub integration_key: String,
    /// Nango's id of the connection. Conventional (`{tenant}__{key}__{account}`) unless the source said otherwise.
    pub connection_id: String,
    /// V5 providers, one to many, sorted.
    pub providers: Vec<Part>,
    pub account: Part,
    /// Nango's auth mode where the source gave one, else the catalogue decides.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub auth_mode: Option<String>,
}

impl Row {
    /// The triplets that this connection feeds, in the order of its providers.
    pub fn triplets(&self) -> impl Iterator<Item = Triplet> + '_ {
        self.providers.iter().map(|p| Triplet::new(self.tenant.clone(), p.clone(), self.account.clone()))
    }

    /// The id that the convention gives to this row's tenant, integration key and account.
    pub fn conventional_id(&self) -> String {
        format!("{}__{}__{}", self.tenant, self.integration_key, self.account)
    }

    fn order(&self) -> (&Part, &str, &Part, &str) {
        (&self.tenant, &self.integration_key, &self.account, &self.connection_id)
    }
}

/// Rows in canonical order: by tenant, integration key, account, connection id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    pub rows: Vec<Row>,
}

impl Inventory {
    /// Puts rows into canonical order, whatever order a source listed them in.
    fn canonical(mut rows: Vec<Row>) -> Self {
        rows.sort_by(|a, b| a.order().cmp(&b.order()));
        Self { rows }
    }

    /// How many triplets the connections feed together.
    pub fn triplet_count(&self) -> usize {
        self.rows.iter().map(|row| row.providers.len()).sum()
    }
}

/// The three written forms of an inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Markdown,
    Csv,
    Json,
}

/// One inventory as bytes.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What diagnostics call it: the path as the user gave it, or `<stdin>`.
    pub name: &'a str,
    pub bytes: &'a [u8],
    /// `None`: decided by the extension of the name, then by the content.
    pub format: Option<Format>,
    /// Every row holds for each of these when the table has no tenant column (JSON: when the row has no `tenant`).
    pub tenants: &'a [Part],
}

/// Reads one inventory. Equal rows give equal values, whatever the format and the order.
///
/// # Errors
/// All that is wrong with it, each with its place. An inventory without rows is an error too.
pub fn read(source: &Source<'_>) -> Result<Inventory, Diagnostics> {
    let mut report = diagnostic::Report::new(source.name, source.bytes);
    let Some(text) = encoding::check(source.bytes, &mut report) else { return Err(report.into_diagnostics()) };
    let mut rows = rows::Builder::new(source.tenants);
    match source.format.unwrap_or_else(|| detect(source.name, text)) {
        Format::Markdown => markdown::read(text, &mut rows, &mut report),
        Format::Csv => csv::read(text, &mut rows, &mut report),
        Format::Json => json::read(text, &mut rows, &mut report),
    }
    let inventory = rows.finish(&mut report);
    if report.is_empty() { Ok(inventory) } else { Err(report.into_diagnostics()) }
}

/// Extension first, since it is what the user said; then the shape of the text.
fn detect(name: &str, text: &str) -> Format {
    let extension = name.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase()).unwrap_or_default();
    match extension.as_str() {
        "md" | "markdown" | "mdown" => return Format::Markdown,
        "csv" | "tsv" | "tab" | "psv" => return Format::Csv,
        "json" => return Format::Json,
        _ => {}
    }
    let body = text.trim_start_matches('\u{FEFF}').trim_start();
    let after_bracket = body.strip_prefix('[').map(str::trim_start);
    // A Markdown document may start with a link, which is why `[` alone decides only after Markdown had its turn.
    let surely_json = body.starts_with('{') || after_bracket.is_some_and(|rest| rest.starts_with(['{', ']', '[', '"']));
    if surely_json || (after_bracket.is_some() && !markdown::looks_like(body)) {
        Format::Json
    } else if markdown::looks_like(body) {
        Format::Markdown
    } else {
        Format::Csv
    }
}
