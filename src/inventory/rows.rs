//! From named cells to typed rows, and the contradictions between rows.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::columns::Column;
use super::diagnostic::{Problem, Report, Span};
use super::names::{self, Field, escaped};
use super::{Inventory, Row};
use crate::domain::triplet::{ConventionalId, Part};

/// Nango's auth modes.
pub const AUTH_MODES: [&str; 17] = [
    "OAUTH1",
    "OAUTH2",
    "OAUTH2_CC",
    "BASIC",
    "API_KEY",
    "CUSTOM",
    "APP",
    "NONE",
    "TBA",
    "JWT",
    "BILL",
    "TWO_STEP",
    "SIGNATURE",
    "MCP_OAUTH2",
    "MCP_OAUTH2_GENERIC",
    "INSTALL_PLUGIN",
    "AWS_SIGV4",
];

/// Nango stores longer ids badly: it answers 500.
const CONNECTION_ID_BYTES_MAX: usize = 255;

/// Several names from one cell or array.
#[derive(Clone, Debug)]
pub(super) struct List<'a> {
    pub span: Span,
    pub items: Vec<Field<'a>>,
}

/// Where the tenants of a row come from.
#[derive(Clone, Debug)]
pub(super) enum Tenants<'a> {
    Listed(List<'a>),
    /// From outside the text.
    Default,
    /// There are none, and that has been said once for the whole table.
    Reported,
}

/// A row before its values have been checked. `None`: the column or key is absent.
#[derive(Clone, Debug)]
pub(super) struct RawRow<'a> {
    pub span: Span,
    pub tenants: Tenants<'a>,
    pub integration_key: Option<Field<'a>>,
    pub connection_id: Option<Field<'a>>,
    pub providers: Option<List<'a>>,
    pub account: Option<Field<'a>>,
    pub auth_mode: Option<Field<'a>>,
    /// Something about it has been reported: check the rest, but do not keep it.
    pub flawed: bool,
}

/// Collects rows and where they came from.
pub(super) struct Builder<'t> {
    default_tenants: &'t [Part],
    placed: Vec<(Row, Span)>,
    seen_rows: usize,
}

impl<'t> Builder<'t> {
    pub fn new(default_tenants: &'t [Part]) -> Self {
        Self { default_tenants, placed: Vec::new(), seen_rows: 0 }
    }

    pub fn has_default_tenants(&self) -> bool {
        !self.default_tenants.is_empty()
    }

    /// Counts a row that could not be offered, so that the source is not called empty as well.
    pub fn note_row(&mut self) {
        self.seen_rows += 1;
    }

    /// How many rows were offered, good or not.
    pub fn seen_rows(&self) -> usize {
        self.seen_rows
    }

    /// Checks one row and keeps it, once per tenant, when nothing is wrong with it.
    pub fn push(&mut self, raw: RawRow<'_>, report: &mut Report<'_>) {
        self.seen_rows += 1;
        let before = report.count();
        let tenants = match &raw.tenants {
            Tenants::Listed(list) => parts(Column::Tenant, list, report),
            Tenants::Default => Some(self.default_tenants.to_vec()),
            Tenants::Reported => None,
        };
        let mut single = |column: Column, field: &Option<Field<'_>>| {
            let field = field.as_ref()?;
            names::part(column.what(), field).map_err(|problem| report.add(|_| problem)).ok()
        };
        let integration_key = single(Column::IntegrationKey, &raw.integration_key);
        let account = single(Column::Account, &raw.account);
        let providers = raw.providers.as_ref().and_then(|list| parts(Column::Providers, list, report));
        let auth_mode = raw.auth_mode.as_ref().and_then(|field| auth_mode(field, report));
        let (Some(tenants), Some(integration_key), Some(account), Some(mut providers)) =
            (tenants, integration_key, account, providers)
        else {
            return;
        };
        providers.sort();
        if let Some(field) = &raw.connection_id {
            connection_id(field, &tenants, &integration_key, &account, &providers, report);
        }
        if raw.flawed || report.count() != before {
            return;
        }
        let key = integration_key.as_str();
        for tenant in tenants {
            let connection_id = match &raw.connection_id {
                Some(field) => field.text.clone().into_owned(),
                None => format!("{tenant}__{key}__{account}"),
            };
            let row = Row {
                tenant,
                integration_key: key.to_owned(),
                connection_id,
                providers: providers.clone(),
                account: account.clone(),
                auth_mode: auth_mode.clone(),
            };
            self.placed.push((row, raw.span));
        }
    }

    /// Reports rows that contradict each other and puts the rest in order.
    pub fn finish(self, report: &mut Report<'_>) -> Inventory {
        contradictions(&self.placed, report);
        Inventory::canonical(self.placed.into_iter().map(|(row, _)| row).collect())
    }
}

/// The names of a list, in its order; at most one report for the whole list.
fn parts(column: Column, list: &List<'_>, report: &mut Report<'_>) -> Option<Vec<Part>> {
    let what = column.what();
    if list.items.is_empty() {
        report.add(|_| {
            let hint = if column == Column::Tenant {
                "every row needs its tenant; a cell may list several"
            } else {
                "name at least one"
            };
            Problem::new(list.span, format!("blank {what}"), format!("one or more {what} names")).hint(hint)
        });
        return None;
    }
    let mut out: Vec<Part> = Vec::with_capacity(list.items.len());
    // A few names are compared one by one; a cell of 10 MB must not cost the square of its names.
    let mut seen: HashSet<&str> = HashSet::new();
    let many = list.items.len() > 16;
    for (position, field) in list.items.iter().enumerate() {
        let part = match names::part(what, field) {
            Ok(part) => part,
            Err(problem) => {
                report.add(|_| problem);
                return None;
            }
        };
        let repeated = if many { !seen.insert(&field.text) } else { out[..position].contains(&part) };
        if repeated {
            report.add(|_| {
                Problem::new(
                    field.span,
                    format!("{what} `{part}` is listed twice in one row"),
                    format!("each {what} once"),
                )
                .hint("remove one of them")
            });
            return None;
        }
        out.push(part);
    }
    Some(out)
}

fn auth_mode(field: &Field<'_>, report: &mut Report<'_>) -> Option<String> {
    if let Some(mode) = AUTH_MODES.into_iter().find(|mode| mode.eq_ignore_ascii_case(&field.text)) {
        return Some(mode.to_owned());
    }
    report.add(|_| {
        let hint = names::closest(&names::plain(&field.text), AUTH_MODES).map(|mode| format!("did you mean `{mode}`?"));
        Problem::new(
            field.span,
            format!("unknown auth mode `{}`", escaped(&field.text)),
            format!("one of {}", AUTH_MODES.join(", ")),
        )
        .hint("leave it blank to take the catalogue's")
        .hint_if(hint)
    });
    None
}

/// An id that looks conventional must say the same as the other columns; any other is taken as it is.
fn connection_id(
    field: &Field<'_>,
    tenants: &[Part],
    integration_key: &Part,
    account: &Part,
    providers: &[Part],
    report: &mut Report<'_>,
) {
    let id: &str = &field.text;
    if id.trim().len() != id.len() || id.is_empty() {
        report.add(|_| {
            Problem::new(field.span, "connection id is blank or has blanks around it", "an id as Nango shows it")
                .hint("leave it out to take the conventional id")
        });
        return;
    }
    if id.len() > CONNECTION_ID_BYTES_MAX {
        report.add(|_| {
            let message =
                format!("connection id has {} bytes and at most {CONNECTION_ID_BYTES_MAX} are allowed", id.len());
            Problem::new(field.span, message, "an id as Nango shows it")
        });
        return;
    }
    if let Some((at, c)) = id.char_indices().find(|(_, c)| !nango_allows(*c)) {
        report.add(|_| {
            let message = format!("{} in connection id `{}`", names::describe(c), escaped(id));
            Problem::new(field.span_of(at, at + c.len_utf8()), message, "an id as Nango shows it: printable ASCII")
        });
        return;
    }
    if tenants.len() > 1 {
        report.add(|_| {
            let listed: Vec<&str> = tenants.iter().map(Part::as_str).collect();
            let message = format!("one connection id for {} tenants: {}", tenants.len(), escaped(&listed.join(", ")));
            Problem::new(field.span, message, "one tenant in a row that gives a connection id")
                .hint("write one row per tenant, or leave the id blank when it follows the convention")
        });
        return;
    }
    if !id.contains("__") {
        return;
    }
    let Some(tenant) = tenants.first() else { return };
    let convention = "exactly `{tenant}__{integration key}__{account}`, or an id without `__`";
    match ConventionalId::parse(id) {
        Err(error) => report.add(|_| {
            Problem::new(field.span, format!("ambiguous connection id: {error}"), convention)
                .hint("nobody can tell which part an extra `__` belongs to; rename the connection at Nango")
        }),
        Ok(parsed) => {
            // ADR-038 writes the provider where imports write the integration key; both name the same connection.
            let middle = &parsed.integration_key;
            let pairs = [
                ("tenant", &parsed.tenant, tenant, true),
                ("integration key", middle, integration_key, !providers.contains(middle)),
                ("account", &parsed.account, account, true),
            ];
            if let Some((what, in_id, in_row, _)) = pairs.into_iter().find(|(_, a, b, must)| *must && a != b) {
                report.add(|_| {
                    let message = format!("connection id `{id}` says {what} `{in_id}` and the row says `{in_row}`");
                    let expected = format!("`{tenant}__{integration_key}__{account}`, or an id without `__`");
                    Problem::new(field.span, message, expected).hint("correct the id or the row; the two must agree")
                });
            }
        }
    }
}

/// The characters that Nango accepts in the path of a connection.
pub(super) fn nango_allows(c: char) -> bool {
    c.is_ascii_alphanumeric() || ",.;:=+~[]|@${}\"'\\/_ -".contains(c)
}

/// How a row contradicts an earlier one, whose index it holds.
enum Clash<'a> {
    Connection(usize),
    Triplet(usize, &'a Part),
}

/// Reports each row that repeats or contradicts an earlier one, once.
fn contradictions(placed: &[(Row, Span)], report: &mut Report<'_>) {
    let mut clashes: BTreeMap<usize, Clash<'_>> = BTreeMap::new();
    let mut by_id: HashMap<(&str, &str), usize> = HashMap::with_capacity(placed.len());
    for (index, (row, _)) in placed.iter().enumerate() {
        let first = *by_id.entry((&row.integration_key, &row.connection_id)).or_insert(index);
        if first != index {
            clashes.insert(index, Clash::Connection(first));
        }
    }
    // Sorting rows and then the providers of a few is several times faster than hashing every triplet.
    let home = |index: &usize| (&placed[*index].0.tenant, &placed[*index].0.account);
    let mut order: Vec<usize> = (0..placed.len()).filter(|index| !clashes.contains_key(index)).collect();
    order.sort_by(|a, b| home(a).cmp(&home(b)));
    for neighbours in order.chunk_by(|a, b| home(a) == home(b)).filter(|chunk| chunk.len() > 1) {
        let providers = |index: &usize| placed[*index].0.providers.iter();
        let mut claims: Vec<(&Part, usize)> =
            neighbours.iter().flat_map(|index| providers(index).map(|provider| (provider, *index))).collect();
        claims.sort_unstable();
        for claims in claims.chunk_by(|a, b| a.0 == b.0) {
            for (provider, index) in &claims[1..] {
                clashes.entry(*index).or_insert(Clash::Triplet(claims[0].1, provider));
            }
        }
    }
    for (index, clash) in clashes {
        let (row, span) = &placed[index];
        report.add(|report| match clash {
            Clash::Connection(first) => {
                let (earlier, earlier_span) = &placed[first];
                same_connection(row, *span, earlier, report.line_of(earlier_span.start))
            }
            Clash::Triplet(first, provider) => {
                let (earlier, earlier_span) = &placed[first];
                let message = format!(
                    "triplet `{}:{provider}:{}` is given twice: here by `{}` and on line {} by `{}`",
                    row.tenant,
                    row.account,
                    row.integration_key,
                    report.line_of(earlier_span.start),
                    earlier.integration_key
                );
                Problem::new(*span, message, "each triplet is fed by exactly one connection")
                    .hint("remove the provider from one of the two rows")
            }
        });
    }
}

fn same_connection(row: &Row, span: Span, earlier: &Row, line: usize) -> Problem {
    if row == earlier {
        let message = format!("the row for tenant `{}` is an exact duplicate of line {line}", row.tenant);
        return Problem::new(span, message, "each connection once").hint("remove one of the two rows");
    }
    let difference = if row.tenant != earlier.tenant {
        format!("tenant `{}` there, `{}` here", earlier.tenant, row.tenant)
    } else if row.account != earlier.account {
        format!("account `{}` there, `{}` here", earlier.account, row.account)
    } else if row.providers != earlier.providers {
        format!("providers `{}` there, `{}` here", joined(&earlier.providers), joined(&row.providers))
    } else {
        let mode = |row: &Row| row.auth_mode.clone().unwrap_or_else(|| "none".to_owned());
        format!("auth mode `{}` there, `{}` here", mode(earlier), mode(row))
    };
    let message = format!(
        "connection `{}` of `{}` is also on line {line} with other content: {difference}",
        escaped(&row.connection_id),
        row.integration_key
    );
    Problem::new(span, message, "each connection once, with one content").hint("merge the two rows into one")
}

/// `a, b`, cut to what a message can hold.
pub(super) fn joined(parts: &[Part]) -> String {
    let all: Vec<&str> = parts.iter().take(12).map(Part::as_str).collect();
    let more = if parts.len() > 12 { ", …" } else { "" };
    format!("{}{more}", all.join(", "))
}
