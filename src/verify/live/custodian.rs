//! The two custodians as sides. They list what they keep and never show it: Nango's list carries
//! no credential, Composio's carries it masked. So a row says that a credential is there, in which
//! condition, and which connection or upstream account it belongs to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use super::super::side::{Block, Halt, Look, Mark, Now, Side, Source};
use super::estimate::{COMPOSIO_PAGE, NANGO_PAGE};
use super::whoami::{Asked, Whoami};
use super::{Caller, Line, halted};
use crate::catalogue::Catalogue;
use crate::inventory::from_live;
use crate::ports::{AccountStatus, Api, SourceRead, TargetRead};

/// What a custodian said: rows by key, and what could not be told apart.
#[derive(Default)]
struct Rows {
    /// Several when two connections claim one triplet.
    rows: BTreeMap<String, Vec<Vec<u8>>>,
    /// Things that belong to no key, and why.
    lost: Vec<String>,
}

/// Asks a custodian for the rows of the keys that the filter takes.
type Load = dyn Fn(&dyn Fn(&str) -> bool) -> Result<Rows, Halt> + Send + Sync;

/// A side whose rows come in one answer.
struct Custodian {
    name: String,
    load: Arc<Load>,
}

impl Source for Custodian {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, from: Mark, read: Arc<AtomicU64>) -> Result<Box<dyn Side>, Halt> {
        self.open_behind(from, b"", read)
    }

    fn open_behind(&self, mark: Mark, last: &[u8], read: Arc<AtomicU64>) -> Result<Box<dyn Side>, Halt> {
        let Rows { rows, lost } = (self.load)(&|_| true)?;
        let behind = rows.into_iter().filter(|(key, _)| last.is_empty() || key.as_bytes() > last);
        // What belongs to no key was told when the reading began.
        let lost = if last.is_empty() { lost } else { Vec::new() };
        Ok(Box::new(RowsSide { rows: behind.flat_map(|(_, rows)| rows).collect(), lost, given: mark.entries, read }))
    }

    fn look_again(&self, _: u64) -> Option<Box<dyn Look>> {
        Some(Box::new(RowsLook(Arc::clone(&self.load))))
    }

    fn can_reopen(&self) -> bool {
        true
    }

    fn state(&self) -> Option<String> {
        None
    }

    fn bytes(&self) -> Option<u64> {
        None
    }
}

struct RowsSide {
    rows: std::collections::VecDeque<Vec<u8>>,
    lost: Vec<String>,
    given: u64,
    read: Arc<AtomicU64>,
}

impl Side for RowsSide {
    fn fill(&mut self, block: &mut Block) -> Result<bool, Halt> {
        block.mark = Mark { entries: self.given, offset: 0 };
        block.without_places();
        let before = self.given;
        for why in self.lost.drain(..) {
            block.push_fault(b"{}", 0, why);
            self.given += 1;
        }
        while !block.is_full()
            && let Some(row) = self.rows.pop_front()
        {
            block.push(&row, 0);
            self.read.fetch_add(row.len() as u64, Ordering::Relaxed);
            self.given += 1;
        }
        Ok(self.given > before)
    }
}

struct RowsLook(Arc<Load>);

impl Look for RowsLook {
    fn look(&mut self, keys: &[String]) -> Result<Vec<Now>, Halt> {
        let wanted: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
        let Rows { mut rows, .. } = (self.0)(&|key| wanted.contains(key))?;
        let now = |key: &String| match rows.remove(key).as_deref() {
            None | Some([]) => Now::Absent,
            Some([row]) => Now::Entry(row.clone()),
            Some(_) => Now::Broken,
        };
        Ok(keys.iter().map(now).collect())
    }
}

/// The triplets that a connection at Nango feeds, by integration key and connection id.
pub type Fed = BTreeMap<(String, String), Vec<String>>;

/// Nango by its lists: never a credential, never a refresh. `fed` is what the state knows; of other
/// connections the catalogue and their names tell the triplets.
pub fn nango_side<S: SourceRead + 'static>(
    name: &str,
    source: Arc<S>,
    caller: Caller,
    catalogue: Catalogue,
    fed: Fed,
    skip: Arc<BTreeSet<String>>,
) -> impl Source + use<S> {
    let load = move |wanted: &dyn Fn(&str) -> bool| -> Result<Rows, Halt> {
        let pages = |rows: usize| rows as u64 / NANGO_PAGE + 1;
        let listed = caller.call_paged(Api::Nango, || source.list_connections(), fed.len(), pages);
        let connections = listed.map_err(|error| halted(&error))?;
        let integrations = caller.call(Api::Nango, || source.list_integrations()).map_err(|error| halted(&error))?;
        let mut all = Rows::default();
        for connection in connections {
            let id = (connection.integration_key.clone(), connection.connection_id.clone());
            let keys = match fed.get(&id) {
                Some(keys) => keys.clone(),
                None => match from_live(std::slice::from_ref(&connection), &integrations, &catalogue) {
                    Ok(inventory) => {
                        let triplets = inventory.rows.iter().flat_map(|row| row.triplets());
                        triplets.map(|triplet| triplet.kv_key()).collect::<Vec<String>>()
                    }
                    Err(diagnostics) => {
                        all.lost.push(diagnostics.to_string());
                        continue;
                    }
                },
            };
            for key in keys.into_iter().filter(|key| !skip.contains(key) && wanted(key)) {
                let row = Line {
                    key: &key,
                    custodian: Some("nango"),
                    status: Some(if connection.auth_error { "auth-error" } else { "active" }),
                    connection: Some(format!("{}/{}", id.0, id.1)),
                    ..Line::default()
                };
                let row = row.to_bytes();
                all.rows.entry(key).or_default().push(row);
            }
        }
        Ok(all)
    };
    Custodian { name: name.to_owned(), load: Arc::new(load) }
}

/// Composio by its lists, which mask every secret. `accounts` are the connected accounts of the
/// state: which triplet each one serves.
pub fn composio_side<T: TargetRead + 'static>(
    name: &str,
    target: Arc<T>,
    caller: Caller,
    accounts: BTreeMap<String, String>,
    whoami: Option<Arc<Whoami>>,
    skip: Arc<BTreeSet<String>>,
) -> impl Source + use<T> {
    let load = move |wanted: &dyn Fn(&str) -> bool| -> Result<Rows, Halt> {
        let pages = |rows: usize| {
            let pages = (rows as u64).div_ceil(COMPOSIO_PAGE).max(1);
            if pages > 1 { 2 * pages } else { 1 }
        };
        let listed = caller.call_paged(Api::Composio, || target.list_accounts(), accounts.len(), pages);
        let listed = listed.map_err(|error| halted(&error))?;
        let mut all = Rows::default();
        for account in listed {
            let Some(key) = accounts.get(&account.id) else { continue };
            if skip.contains(key) || !wanted(key) {
                continue;
            }
            let asked = match &whoami {
                Some(whoami) => whoami.ask_through(&caller, target.as_ref(), key, &account.id),
                None => Asked::default(),
            };
            let mut value = json!({"access_token": "REDACTED"});
            if let Some(scopes) = &account.granted_scopes {
                value["scope"] = scopes.join(" ").into();
            }
            let row = Line {
                key,
                value: Some(value),
                custodian: Some("composio"),
                status: Some(status(&account.status)),
                live: asked.live,
                identity: asked.identity,
                ..Line::default()
            };
            all.rows.entry(key.clone()).or_default().push(row.to_bytes());
        }
        Ok(all)
    };
    Custodian { name: name.to_owned(), load: Arc::new(load) }
}

fn status(status: &AccountStatus) -> &'static str {
    match status {
        AccountStatus::Active => "active",
        AccountStatus::Expired => "expired",
        AccountStatus::Initializing | AccountStatus::Initiated => "initiated",
        AccountStatus::Failed => "failed",
        AccountStatus::Inactive => "inactive",
        AccountStatus::Revoked => "revoked",
        AccountStatus::Other(_) => "other",
    }
}
