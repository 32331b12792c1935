//! Inventories as JSON: `{"inventory_version": 1, "rows": […]}` or the bare array of rows.

use super::columns::Column;
use super::diagnostic::{Problem, Report, Span};
use super::json_syntax::{Spanned, Value, parse};
use super::names::{self, Field, escaped};
use super::rows::{Builder, List, RawRow, Tenants};

/// The version that is written, and the only one that is read.
pub(super) const VERSION: &str = "1";
const DOCUMENT: &str = "`{\"inventory_version\": 1, \"rows\": […]}` or an array of rows";
const DOCUMENT_KEYS: [&str; 2] = ["inventory_version", "rows"];
/// The keys of a row. `provider` and `providers` mean the same.
const ROW_KEYS: [&str; 7] =
    ["tenant", "integration_key", "connection_id", "providers", "provider", "account", "auth_mode"];

pub(super) fn read(text: &str, rows: &mut Builder<'_>, report: &mut Report<'_>) {
    let Some(document) = parse(text, report) else { return };
    let list = match &document.value {
        Value::Array(_) => Some(&document),
        Value::Object(members) => document_rows(members, document.span, report),
        other => {
            let message = format!("the file holds {} and no rows", other.kind());
            report.add(|_| Problem::new(document.span, message, DOCUMENT));
            None
        }
    };
    let Some(list) = list else { return };
    let Value::Array(items) = &list.value else {
        let message = format!("`rows` is {}", list.value.kind());
        report.add(|_| Problem::new(list.span, message, "an array of rows"));
        return;
    };
    if items.is_empty() {
        report.add(|_| Problem::new(list.span, "there are no rows", "at least one row"));
    }
    for item in items {
        match &item.value {
            Value::Object(members) => row(members, item.span, rows, report),
            other => {
                let message = format!("a row is {}", other.kind());
                let expected = format!("an object with {}", Column::list());
                report.add(|_| Problem::new(item.span, message, expected));
            }
        }
    }
}

type Members<'a> = [(Field<'a>, Spanned<'a>)];

fn find<'m, 'a>(members: &'m Members<'a>, key: &str) -> Option<&'m (Field<'a>, Spanned<'a>)> {
    members.iter().find(|(k, _)| k.text == key)
}

/// Checks the outer object and returns its rows.
fn document_rows<'m, 'a>(members: &'m Members<'a>, span: Span, report: &mut Report<'_>) -> Option<&'m Spanned<'a>> {
    let rows = find(members, "rows");
    if rows.is_none() && find(members, "integration_key").is_some() {
        report.add(|_| {
            Problem::new(Span::new(span.start, span.start + 1), "the file holds one row and no list of rows", DOCUMENT)
                .hint("put `[` before and `]` after it")
        });
        return None;
    }
    let before = report.count();
    match find(members, "inventory_version") {
        Some((_, Spanned { value: Value::Number(VERSION), .. })) => {}
        Some((_, Spanned { value: Value::Number(other), span })) => {
            let message = format!("inventory_version {} is not known to this program", escaped(other));
            report
                .add(|_| Problem::new(*span, message, VERSION).hint("it was written by another version of `cutover`"));
        }
        Some((_, Spanned { value, span })) => {
            let message = format!("`inventory_version` is {}", value.kind());
            report
                .add(|_| Problem::new(*span, message, format!("the number {VERSION}")).hint("write it without quotes"));
        }
        None => report.add(|_| {
            Problem::new(Span::new(span.start, span.start + 1), "`inventory_version` is missing", DOCUMENT)
                .hint("add `\"inventory_version\": 1`, or give the bare array")
        }),
    }
    // Another version may name things otherwise: nothing below would help.
    if report.count() != before {
        return None;
    }
    unknown_keys(members, &DOCUMENT_KEYS, "the inventory", report);
    if rows.is_none() && report.count() == before {
        report.add(|_| Problem::new(Span::new(span.start, span.start + 1), "`rows` is missing", DOCUMENT));
    }
    rows.map(|(_, value)| value)
}

fn unknown_keys(members: &Members<'_>, known: &[&'static str], of: &str, report: &mut Report<'_>) {
    for (key, _) in members.iter().filter(|(key, _)| !known.contains(&key.text.as_ref())) {
        report.add(|_| {
            let odd = key.text.char_indices().find(|(_, c)| !c.is_ascii());
            let with = odd.map(|(_, c)| format!(" with {}", names::describe(c))).unwrap_or_default();
            let message = format!("unknown key `{}`{with} in {of}", escaped(&key.text));
            let close = names::closest(&names::plain(&key.text), known.iter().copied());
            Problem::new(key.span, message, format!("one of {}", known.join(", ")))
                .hint("remove the key")
                .hint_if(close.map(|key| format!("did you mean `{key}`?")))
        });
    }
}

fn row(members: &Members<'_>, span: Span, rows: &mut Builder<'_>, report: &mut Report<'_>) {
    let before = report.count();
    unknown_keys(members, &ROW_KEYS, "a row", report);
    // A row with an unknown key is most likely a row with a mistyped one: do not also call it missing.
    let complain_missing = report.count() == before;
    let open = Span::new(span.start, span.start + 1);
    let missing = |name: &str, report: &mut Report<'_>| {
        if complain_missing {
            let message = format!("the row has no `{name}`");
            report.add(|_| Problem::new(open, message, "tenant, integration_key, providers and account"));
        }
    };
    let string = |name: &str, report: &mut Report<'_>| match find(members, name) {
        Some((_, Spanned { value: Value::String(field), .. })) => Some(field.clone()),
        Some((_, other)) => {
            report.add(|_| wrong_type(name, other, "a string"));
            None
        }
        None => {
            missing(name, report);
            None
        }
    };
    let optional = |name: &str, report: &mut Report<'_>| match find(members, name) {
        None | Some((_, Spanned { value: Value::Null, .. })) => None,
        Some(_) => string(name, report),
    };
    let tenants = match find(members, "tenant") {
        Some((_, value)) => names_of("tenant", value, report).map(Tenants::Listed),
        None if rows.has_default_tenants() => Some(Tenants::Default),
        None => {
            if complain_missing {
                report.add(|_| {
                    Problem::new(open, "the row has no `tenant`", "a `tenant`, or a tenant for the whole inventory")
                        .hint("add `\"tenant\": \"NAME\"`, or give `--tenant NAME` (can be repeated)")
                });
            }
            None
        }
    };
    let integration_key = string("integration_key", report);
    let connection_id = optional("connection_id", report);
    let providers = match (find(members, "providers"), find(members, "provider")) {
        (Some(_), Some((key, _))) => {
            report.add(|_| {
                Problem::new(key.span, "both `provider` and `providers` are given", "one of the two")
                    .hint("`providers` takes an array")
            });
            None
        }
        (Some((_, value)), None) | (None, Some((_, value))) => names_of("providers", value, report),
        (None, None) => {
            missing("providers", report);
            None
        }
    };
    let account = string("account", report);
    let auth_mode = optional("auth_mode", report);
    let flawed = report.count() != before;
    let tenants = tenants.unwrap_or(Tenants::Reported);
    rows.push(RawRow { span, tenants, integration_key, connection_id, providers, account, auth_mode, flawed }, report);
}

/// A name or an array of names.
fn names_of<'a>(name: &str, value: &Spanned<'a>, report: &mut Report<'_>) -> Option<List<'a>> {
    let expected = "a string or an array of strings";
    match &value.value {
        Value::String(field) => Some(List { span: value.span, items: vec![field.clone()] }),
        Value::Array(items) => {
            let mut fields = Vec::with_capacity(items.len());
            for item in items {
                match &item.value {
                    Value::String(field) => fields.push(field.clone()),
                    _ => {
                        report.add(|_| wrong_type(name, item, expected));
                        return None;
                    }
                }
            }
            Some(List { span: value.span, items: fields })
        }
        _ => {
            report.add(|_| wrong_type(name, value, expected));
            None
        }
    }
}

fn wrong_type(name: &str, found: &Spanned<'_>, expected: &str) -> Problem {
    let problem = Problem::new(found.span, format!("`{name}` holds {}", found.value.kind()), expected);
    match &found.value {
        Value::Number(number) => problem.hint(format!("write it as \"{}\"", escaped(number))),
        _ => problem,
    }
}
