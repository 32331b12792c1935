//! The definition of `kv_audit` in the sandbox's D1: the statements that make and change it, and the
//! pragmas that show it.

use serde_json::{Value, json};

/// What the table is in a new world.
const DEFINITION: &str = "op_id text primary key, at text, key text, action text, source text, fingerprint text";

/// An index that SQLite makes for a primary key that is not the row number.
const KEY_INDEX: &str = "sqlite_autoindex_kv_audit_1";

#[derive(Clone, Debug)]
struct Column {
    name: String,
    declared: String,
    not_null: bool,
    primary_key: bool,
}

/// The table, if there is one.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    /// Unique indexes that were made: name and column.
    unique: Vec<(String, String)>,
}

/// Columns and rows of an answer.
pub(super) type Shown = (Vec<String>, Vec<Vec<Value>>);

impl Default for Table {
    fn default() -> Self {
        Self::defined(DEFINITION)
    }
}

impl Table {
    /// From what stands between the parentheses of `CREATE TABLE`, in lower case.
    fn defined(definition: &str) -> Self {
        let column = |text: &str| {
            let words: Vec<&str> = text.split_whitespace().collect();
            Column {
                name: words.first().copied().unwrap_or_default().to_owned(),
                declared: words.get(1).copied().unwrap_or_default().to_uppercase(),
                not_null: text.contains("not null"),
                primary_key: text.contains("primary key"),
            }
        };
        Self { columns: definition.split(',').map(column).collect(), unique: Vec::new() }
    }

    /// Makes the table anew, from what stands between the parentheses of `CREATE TABLE`.
    pub fn redefine(&mut self, definition: &str) {
        *self = if definition.trim().is_empty() {
            Self { columns: Vec::new(), unique: Vec::new() }
        } else {
            Self::defined(&definition.to_ascii_lowercase())
        };
    }

    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|known| known.name == column)
    }

    /// Whether a row of an operation that was inserted before is told by something.
    pub fn is_unique(&self, column: &str) -> bool {
        self.columns.iter().any(|known| known.primary_key && known.name == column)
            || self.unique.iter().any(|(_, on)| on == column)
    }

    /// Runs a statement that defines something; `None`: it is no such statement.
    pub fn define(&mut self, lower: &str) -> Option<Result<(), String>> {
        if let Some(column) = lower.strip_prefix("alter table kv_audit add column ") {
            let added = Self::defined(column);
            let twice = added.columns.iter().find(|column| self.has(&column.name));
            if let Some(Column { name, .. }) = twice {
                return Some(Err(format!("duplicate column name: {name}: SQLITE_ERROR")));
            }
            self.columns.extend(added.columns);
            return Some(Ok(()));
        }
        if let Some(rest) = lower.strip_prefix("create unique index ") {
            let (name, on) = rest.split_once(" on kv_audit")?;
            let column = on.trim().trim_matches(['(', ')']);
            self.unique.push((name.to_owned(), column.to_owned()));
            return Some(Ok(()));
        }
        let rest = lower.strip_prefix("create table kv_audit")?;
        if !self.columns.is_empty() {
            return Some(Err("table kv_audit already exists: SQLITE_ERROR".to_owned()));
        }
        self.redefine(rest.trim().trim_start_matches('(').trim_end_matches(')'));
        Some(Ok(()))
    }

    /// Answers a pragma about the table; `None`: it is no such pragma.
    pub fn pragma(&self, lower: &str) -> Option<Shown> {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let key = self.columns.iter().find(|c| c.primary_key && c.declared != "INTEGER").map(|c| c.name.as_str());
        match lower.strip_prefix("pragma ")? {
            "table_info(kv_audit)" => {
                let row = |(n, c): (usize, &Column)| {
                    let Column { name, declared, not_null, primary_key } = c;
                    vec![json!(n), json!(name), json!(declared), flag(*not_null), Value::Null, flag(*primary_key)]
                };
                let rows = self.columns.iter().enumerate().map(row).collect();
                Some((names(&["cid", "name", "type", "notnull", "dflt_value", "pk"]), rows))
            }
            "index_list(kv_audit)" => {
                let made = self.unique.iter().map(|(name, _)| (name.as_str(), "c"));
                let rows = made.chain(key.map(|_| (KEY_INDEX, "pk"))).enumerate();
                let row = |(n, (name, origin))| vec![json!(n), json!(name), flag(true), json!(origin), flag(false)];
                Some((names(&["seq", "name", "unique", "origin", "partial"]), rows.map(row).collect()))
            }
            other => {
                let asked = other.strip_prefix("index_info(")?.strip_suffix(')')?.trim_matches('"');
                let made = self.unique.iter().find(|(name, _)| name == asked).map(|(_, on)| on.as_str());
                let column = made.or(key.filter(|_| asked == KEY_INDEX));
                let rows = column.map(|column| {
                    let place = self.columns.iter().position(|known| known.name == column);
                    vec![json!(0), json!(place), json!(column)]
                });
                Some((names(&["seqno", "cid", "name"]), rows.into_iter().collect()))
            }
        }
    }
}

fn flag(on: bool) -> Value {
    json!(i32::from(on))
}
