//! D1 with one table, `kv_audit(op_id PRIMARY KEY, at, key, action, source, fingerprint)`
//! (cloudflare.md §3).
//!
//! Only the statements that an audit needs are understood: inserts of listed values or of a JSON
//! text through `json_each`, counting, reading (all rows, those behind a `rowid`, those of some
//! operations), and looking at the table and mending it. Everything else is a SQL error in D1's shape.
//! The newest rows are kept; all are counted.

use std::collections::{HashSet, VecDeque};

use serde_json::{Value, json};

use crate::sandbox::http::{Call, Reply};
use crate::sandbox::world::World;

use super::d1_table::Table;
use super::http::failure;

const COLUMNS: [&str; 6] = ["op_id", "at", "key", "action", "source", "fingerprint"];
/// Rows kept for reading.
const ROWS_MAX: usize = 100_000;
/// Operation ids remembered for `ON CONFLICT DO NOTHING`.
const OPS_MAX: usize = 100_000;
const SQL_BYTES_MAX: usize = 100 * 1_024;
const PARAMS_MAX: usize = 100;
const TEXT_BYTES_MAX: usize = 2_000_000;

/// The values of [`COLUMNS`].
type Row = [Value; 6];

/// The place of a column in a row; [`ROWID`] for the number of the row itself.
const ROWID: usize = COLUMNS.len();

fn place_of(column: &str) -> Option<usize> {
    let found = COLUMNS.iter().position(|name| *name == column);
    found.or_else(|| (column == "rowid").then_some(ROWID))
}

fn cell(row: &(u64, &Row), place: usize) -> Value {
    row.1.get(place).cloned().unwrap_or_else(|| row.0.into())
}

#[derive(Clone, Debug, Default)]
pub(in crate::sandbox) struct Audit {
    table: Table,
    total: u64,
    rows: VecDeque<Row>,
    ops: HashSet<String>,
    op_order: VecDeque<String>,
}

/// What a statement gave.
#[derive(Debug)]
struct Outcome {
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
    changes: u64,
}

impl Audit {
    pub fn rows(&self) -> u64 {
        self.total
    }

    /// Whether the row was new.
    fn insert(&mut self, row: Row) -> bool {
        let op = row[0].as_str().map_or_else(|| row[0].to_string(), str::to_owned);
        if !self.ops.insert(op.clone()) {
            return false;
        }
        self.op_order.push_back(op);
        if self.op_order.len() > OPS_MAX
            && let Some(old) = self.op_order.pop_front()
        {
            self.ops.remove(&old);
        }
        if self.rows.len() >= ROWS_MAX {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
        self.total += 1;
        true
    }

    fn run(&mut self, sql: &str, params: &[String]) -> Result<Outcome, String> {
        let flat = sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let flat = flat.trim_end_matches(';').trim();
        let lower = flat.to_ascii_lowercase();
        let none = Outcome { columns: Vec::new(), rows: Vec::new(), changes: 0 };
        if let Some((columns, rows)) = self.table.pragma(&lower) {
            return Ok(Outcome { columns, rows, changes: 0 });
        }
        if let Some(defined) = self.table.define(&lower) {
            return defined.map(|()| none);
        }
        if lower.starts_with("create table if not exists kv_audit") || lower.starts_with("create index if not exists") {
            return Ok(none);
        }
        if let Some(rest) =
            lower.strip_prefix("insert into kv_audit").or_else(|| lower.strip_prefix("insert or ignore into kv_audit"))
        {
            let skips_conflicts = lower.contains("do nothing") || lower.starts_with("insert or ignore");
            if lower.contains("on conflict (op_id)") && !self.table.is_unique("op_id") {
                let message = "ON CONFLICT clause does not match any PRIMARY KEY or UNIQUE constraint: SQLITE_ERROR";
                return Err(message.to_owned());
            }
            let rows = insert_rows(&self.table, &flat[flat.len() - rest.len()..], params)?;
            let mut changes = 0;
            for row in rows {
                if self.insert(row) {
                    changes += 1;
                } else if !skips_conflicts {
                    return Err("UNIQUE constraint failed: kv_audit.op_id: SQLITE_CONSTRAINT".to_owned());
                }
            }
            return Ok(Outcome { changes, ..none });
        }
        if lower.starts_with("select 1") {
            return Ok(Outcome { columns: vec!["1".into()], rows: vec![vec![1.into()]], changes: 0 });
        }
        let Some((what, tail)) = lower.strip_prefix("select ").and_then(|r| r.split_once(" from kv_audit")) else {
            let first = lower.split(' ').next().unwrap_or_default();
            return Err(format!("near \"{first}\": syntax error: SQLITE_ERROR"));
        };
        if what.starts_with("count(*)") {
            if !tail.trim().is_empty() {
                return Err("the audit table can only be counted as a whole: SQLITE_ERROR".to_owned());
            }
            let name = what.split_once(" as ").map_or("COUNT(*)", |(_, name)| name.trim());
            return Ok(Outcome { columns: vec![name.to_owned()], rows: vec![vec![self.total.into()]], changes: 0 });
        }
        let columns: Vec<&str> =
            if what.trim() == "*" { COLUMNS.to_vec() } else { what.split(',').map(str::trim).collect() };
        let places: Vec<usize> = columns
            .iter()
            .map(|name| place_of(name).ok_or_else(|| format!("no such column: {name}: SQLITE_ERROR")))
            .collect::<Result<_, _>>()?;
        let limit = match tail.split_once(" limit ").map(|(_, n)| n.trim()) {
            None => ROWS_MAX,
            Some(n) => {
                let bound = if n.starts_with('?') { params.first().map(String::as_str).unwrap_or_default() } else { n };
                bound.parse().map_err(|_| "datatype mismatch: SQLITE_MISMATCH".to_owned())?
            }
        };
        // Rows are numbered as they come in and none is ever deleted.
        let first = self.total - self.rows.len() as u64 + 1;
        let numbered = || (first..).zip(self.rows.iter());
        let mut rows: Vec<(u64, &Row)> = match condition(tail, params)? {
            Condition::None => numbered().collect(),
            Condition::Behind(place) => numbered().filter(|(number, _)| *number > place).collect(),
            Condition::Among(ids) => {
                numbered().filter(|(_, row)| ids.contains(row[0].as_str().unwrap_or(""))).collect()
            }
        };
        if let Some((_, order)) = tail.split_once("order by ") {
            let mut words = order.split([' ', ',']);
            match place_of(words.next().unwrap_or_default()).unwrap_or(1) {
                ROWID => {}
                place => rows.sort_by_key(|row| cell(row, place).to_string()),
            }
            if words.next() == Some("desc") {
                rows.reverse();
            }
        }
        let shown = |row: (u64, &Row)| places.iter().map(|place| cell(&row, *place)).collect();
        let rows = rows.into_iter().take(limit).map(shown).collect();
        Ok(Outcome { columns: columns.into_iter().map(str::to_owned).collect(), rows, changes: 0 })
    }
}

/// Which rows a statement asks for.
enum Condition {
    None,
    /// `rowid > CAST(?1 AS INTEGER)`
    Behind(u64),
    /// `op_id IN (SELECT value FROM json_each(?1))`
    Among(HashSet<String>),
}

fn condition(tail: &str, params: &[String]) -> Result<Condition, String> {
    let Some((_, condition)) = tail.split_once(" where ") else { return Ok(Condition::None) };
    let condition = condition.split(" order by ").next().unwrap_or_default().trim();
    let parameter = || params.first().ok_or_else(|| "wrong number of parameter bindings".to_owned());
    match condition {
        "rowid > cast(?1 as integer)" => {
            // What is no number is 0 to SQLite's `CAST`.
            Ok(Condition::Behind(parameter()?.parse().unwrap_or(0)))
        }
        "op_id in (select value from json_each(?1))" => {
            let ids = serde_json::from_str(parameter()?).map_err(|_| "malformed JSON: SQLITE_ERROR".to_owned())?;
            Ok(Condition::Among(ids))
        }
        other => Err(format!("near \"{other}\": syntax error: SQLITE_ERROR")),
    }
}

/// Rows of `(a, b) VALUES (?1, ?2), (…)` or `(a, b) SELECT value ->> 'a', … FROM json_each(?1)`.
fn insert_rows(table: &Table, rest: &str, params: &[String]) -> Result<Vec<Row>, String> {
    let syntax = || "near \"kv_audit\": syntax error: SQLITE_ERROR".to_owned();
    let rest = rest.trim_start();
    let (columns, rest) = match rest.strip_prefix('(') {
        Some(inner) => {
            let (list, rest) = inner.split_once(')').ok_or_else(syntax)?;
            (list.split(',').map(|c| c.trim().to_ascii_lowercase()).collect(), rest.trim_start())
        }
        None => (COLUMNS.map(str::to_owned).to_vec(), rest),
    };
    let places: Vec<usize> = columns
        .iter()
        .map(|name| {
            let place = COLUMNS.iter().position(|c| c == name && table.has(name));
            place.ok_or_else(|| format!("table kv_audit has no column named {name}: SQLITE_ERROR"))
        })
        .collect::<Result<_, _>>()?;
    let lower = rest.to_ascii_lowercase();
    let values: Vec<Vec<Value>> = if let Some(tail) = lower.strip_prefix("values") {
        let tail = tail.split(" on conflict").next().unwrap_or_default();
        let mut next = 0;
        tail.split(')')
            .filter_map(|group| group.split_once('(').map(|(_, inner)| inner))
            .map(|group| {
                group
                    .split(',')
                    .map(|term| {
                        let term = term.trim().strip_prefix('?').ok_or_else(syntax)?;
                        let place = if term.is_empty() {
                            next
                        } else {
                            term.parse::<usize>().map_err(|_| syntax())?.wrapping_sub(1)
                        };
                        next = place.wrapping_add(1);
                        params
                            .get(place)
                            .map(|p| Value::from(p.as_str()))
                            .ok_or_else(|| "wrong number of parameter bindings".to_owned())
                    })
                    .collect()
            })
            .collect::<Result<_, String>>()?
    } else if let Some(tail) = lower.strip_prefix("select ") {
        let (_, from) = tail.split_once("json_each(?").ok_or_else(syntax)?;
        let list = &rest["select ".len()..rest.len() - from.len() - "json_each(?".len()];
        let number = from.split(')').next().unwrap_or_default();
        let place = if number.is_empty() { 0 } else { number.parse::<usize>().map_err(|_| syntax())?.wrapping_sub(1) };
        let text = params.get(place).ok_or_else(|| "wrong number of parameter bindings".to_owned())?;
        let items: Vec<Value> = serde_json::from_str(text).map_err(|_| "malformed JSON: SQLITE_ERROR".to_owned())?;
        // Each selected expression names its member in quotes: 'op_id', '$.op_id' or '$[0]'.
        let members: Vec<&str> = list.split('\'').skip(1).step_by(2).collect();
        items.iter().map(|item| members.iter().map(|m| member(item, m)).collect()).collect()
    } else {
        return Err(syntax());
    };
    values
        .into_iter()
        .map(|row| {
            if row.len() != places.len() {
                return Err(format!("{} values for {} columns: SQLITE_ERROR", row.len(), places.len()));
            }
            let mut full: Row = std::array::from_fn(|_| Value::Null);
            for (place, value) in places.iter().zip(row) {
                full[*place] = value;
            }
            Ok(full)
        })
        .collect()
}

fn member(item: &Value, path: &str) -> Value {
    let name = path.trim_start_matches("$.").trim_start_matches('$');
    let found = match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(index) => index.parse::<usize>().ok().and_then(|i| item.get(i)),
        None => item.get(name),
    };
    found.cloned().unwrap_or(Value::Null)
}

impl World {
    /// Makes D1's `kv_audit` anew, without rows: what stands between the parentheses of `CREATE TABLE`,
    /// nothing for no table at all.
    pub fn redefine_audit(&mut self, definition: &str) {
        self.cloudflare.audit = Audit::default();
        self.cloudflare.audit.table.redefine(definition);
    }

    pub(super) fn d1_query(&mut self, call: &Call, raw: bool) -> Reply {
        let Some(body) = call.json() else { return failure(400, 7400, "The request is malformed: not JSON") };
        let single = std::slice::from_ref(&body);
        let statements = body["batch"].as_array().map_or(single, Vec::as_slice);
        let mut results = Vec::new();
        for statement in statements {
            let Some(sql) = statement["sql"].as_str() else {
                return failure(400, 7400, "The request is malformed: no sql");
            };
            let listed = statement["params"].as_array().map_or(&[][..], Vec::as_slice);
            // §3.1: parameters are declared as texts; numbers are refused.
            let params: Option<Vec<String>> = listed.iter().map(|p| p.as_str().map(str::to_owned)).collect();
            let Some(params) = params.filter(|p| p.iter().all(|t| t.len() <= TEXT_BYTES_MAX)) else {
                return failure(400, 7400, "The request is malformed: params must be texts of at most 2 MB");
            };
            if sql.len() > SQL_BYTES_MAX || params.len() > PARAMS_MAX {
                return failure(400, 7500, "too many SQL variables or statement too long: SQLITE_ERROR");
            }
            match self.cloudflare.audit.run(sql, &params) {
                Ok(outcome) => results.push(show(outcome, raw)),
                Err(message) => return failure(400, 7500, &message),
            }
        }
        super::http::success(results.into(), None)
    }
}

fn show(outcome: Outcome, raw: bool) -> Value {
    let Outcome { columns, rows, changes } = outcome;
    let meta = json!({"changed_db": changes > 0, "changes": changes, "duration": 0.2, "last_row_id": 0,
                      "rows_read": rows.len(), "rows_written": changes, "served_by_region": "WNAM", "served_by_primary": true});
    let results = if raw {
        json!({"columns": columns, "rows": rows})
    } else {
        let named = |row: Vec<Value>| columns.iter().cloned().zip(row).collect::<serde_json::Map<String, Value>>();
        rows.into_iter().map(|row| Value::Object(named(row))).collect()
    };
    json!({"results": results, "success": true, "meta": meta})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(audit: &mut Audit) -> Value {
        audit.run("SELECT COUNT(*) AS n FROM kv_audit", &[]).unwrap().rows[0][0].clone()
    }

    #[test]
    fn repeats_insert_nothing_in_every_form() {
        let mut audit = Audit::default();
        let rows = r#"[{"op_id":"1","at":"t","key":"k"},{"op_id":"2","fingerprint":null}]"#.to_owned();
        for arrow in ["value ->> 'op_id', value ->> 'at'", "json_extract(value, '$.op_id'), json_extract(value,'$.at')"]
        {
            let sql = format!(
                "INSERT INTO kv_audit (op_id, at)\n SELECT {arrow} FROM json_each(?1) WHERE true ON CONFLICT (op_id) DO NOTHING"
            );
            audit.run(&sql, std::slice::from_ref(&rows)).unwrap();
        }
        let params = ["2", "t", "3", "u"].map(str::to_owned);
        let sql = "INSERT INTO kv_audit(op_id,at) VALUES (?1,?2),(?3,?4) ON CONFLICT DO NOTHING;";
        assert_eq!(audit.run(sql, &params).unwrap().changes, 1);
        assert_eq!(count(&mut audit), 3);
        assert!(audit.run("INSERT INTO kv_audit(op_id,at) VALUES (?,?)", &params).unwrap_err().contains("UNIQUE"));
    }

    #[test]
    fn rows_are_read_behind_a_place_and_by_their_operation() {
        let mut audit = Audit::default();
        for n in ["b", "a", "c"] {
            audit.run("INSERT INTO kv_audit(op_id,at) VALUES (?1,?1)", &[n.to_owned()]).unwrap();
        }
        let read = |audit: &mut Audit, sql: &str, param: &str| audit.run(sql, &[param.to_owned()]).unwrap().rows;
        let behind = "SELECT rowid, op_id FROM kv_audit WHERE rowid > CAST(?1 AS INTEGER) ORDER BY rowid LIMIT 1000";
        assert_eq!(
            read(&mut audit, behind, "1"),
            [[Value::from(2), Value::from("a")], [Value::from(3), Value::from("c")]]
        );
        assert!(read(&mut audit, behind, "3").is_empty());
        let newest = "SELECT rowid FROM kv_audit ORDER BY rowid DESC LIMIT 1";
        assert_eq!(read(&mut audit, newest, ""), [[Value::from(3)]]);
        let among = "SELECT rowid, op_id FROM kv_audit WHERE op_id IN (SELECT value FROM json_each(?1))";
        assert_eq!(read(&mut audit, among, r#"["b","q"]"#), [[Value::from(1), Value::from("b")]]);
        assert!(audit.run("SELECT op_id FROM kv_audit WHERE at > 'x'", &[]).is_err());
    }

    #[test]
    fn rows_read_back_and_other_sql_is_an_error() {
        let mut audit = Audit::default();
        for n in ["b", "a"] {
            audit.run("INSERT INTO kv_audit(op_id,at) VALUES (?1,?1)", &[n.to_owned()]).unwrap();
        }
        let found = audit.run("SELECT op_id FROM kv_audit ORDER BY at DESC LIMIT 1", &[]).unwrap();
        assert_eq!(found.rows, [[Value::from("b")]]);
        for bad in [
            "DROP TABLE kv_audit",
            "SELECT nope FROM kv_audit",
            "INSERT INTO kv_audit(x) VALUES (?1)",
            "",
            "INSERT INTO kv_audit",
        ] {
            assert!(audit.run(bad, &["1".to_owned()]).is_err(), "{bad}");
        }
    }
}
