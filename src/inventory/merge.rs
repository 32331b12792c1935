//! Several inventories become one: the first given wins, and every disagreement is kept.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Serialize;

use super::names::escaped;
use super::rows::joined;
use super::{Inventory, Row};
use crate::domain::triplet::{Part, Triplet};

/// Where two sources, or two rows of one, do not say the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Disagreement {
    /// A connection that one source has and another has not. It is in the merged inventory.
    OnlyIn { source: String, absent_from: String, tenant: Part, integration_key: String, connection_id: String },
    /// One connection about which two sources say different things. `kept` is in the merged inventory.
    Differs {
        field: &'static str,
        tenant: Part,
        integration_key: String,
        connection_id: String,
        kept: String,
        kept_from: String,
        dropped: String,
        dropped_from: String,
    },
    /// Two connections that claim one triplet. The provider was taken out of the dropped one.
    TripletTwice { triplet: Triplet, kept: String, kept_from: String, dropped: String, dropped_from: String },
    /// Nango allows it, people mix them up.
    SameId { connection_id: String, integration_keys: Vec<String> },
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyIn { source, absent_from, tenant, integration_key, connection_id } => {
                let (source, absent_from, id) = (escaped(source), escaped(absent_from), escaped(connection_id));
                write!(
                    f,
                    "connection `{id}` (`{integration_key}` of `{tenant}`) is in `{source}` but not in `{absent_from}`"
                )
            }
            Self::Differs { field, integration_key, connection_id, kept, kept_from, dropped, dropped_from, .. } => {
                let (id, kept_from, dropped_from) = (escaped(connection_id), escaped(kept_from), escaped(dropped_from));
                let (kept, dropped) = (escaped(kept), escaped(dropped));
                write!(
                    f,
                    "connection `{id}` of `{integration_key}` has {field} `{kept}` in `{kept_from}` (kept) and `{dropped}` in `{dropped_from}`"
                )
            }
            Self::TripletTwice { triplet, kept, kept_from, dropped, dropped_from } => {
                let (kept_from, dropped_from) = (escaped(kept_from), escaped(dropped_from));
                let (kept, dropped) = (escaped(kept), escaped(dropped));
                write!(
                    f,
                    "triplet `{triplet}` is fed by `{kept}` in `{kept_from}` (kept) and by `{dropped}` in `{dropped_from}`"
                )
            }
            Self::SameId { connection_id, integration_keys } => {
                let keys = integration_keys.join("`, `");
                write!(f, "connection id `{}` exists under several integrations: `{keys}`", escaped(connection_id))
            }
        }
    }
}

/// Merges sources in order of precedence: what the first one says about a connection is kept, later
/// ones add connections and auth modes that it does not have.
///
/// Rows are the same connection when integration key and connection id agree, or else tenant,
/// integration key, account and at least one provider.
pub fn merge(mut sources: Vec<(String, Inventory)>) -> (Inventory, Vec<Disagreement>) {
    // One source needs no index of every id and triplet, which is most of the time for a large file.
    if sources.len() == 1 {
        let mut disagreements = Vec::new();
        let inventory = sources.pop().map(|(_, inventory)| inventory).unwrap_or_default();
        same_ids(&inventory, &mut disagreements);
        return (inventory, disagreements);
    }
    let mut merger = Merger::default();
    let mut disagreements = Vec::new();
    for (name, inventory) in sources {
        merger.add(name, inventory, &mut disagreements);
    }
    let rows: Vec<Row> = merger.held.into_iter().map(|held| held.row).collect();
    let inventory = Inventory::canonical(rows);
    same_ids(&inventory, &mut disagreements);
    (inventory, disagreements)
}

struct Held {
    row: Row,
    /// Index of the source that it came from.
    source: usize,
}

#[derive(Default)]
struct Merger {
    names: Vec<String>,
    held: Vec<Held>,
    by_id: HashMap<(String, String), usize>,
    by_triplet: HashMap<Triplet, usize>,
}

impl Merger {
    fn add(&mut self, name: String, inventory: Inventory, disagreements: &mut Vec<Disagreement>) {
        let earlier = self.held.len();
        let mut matched = vec![false; earlier];
        let rows = inventory.rows;
        // Ids are the stronger evidence: claim those first, so that a row cannot lose its own to a namesake.
        let mut partner: Vec<Option<usize>> = rows.iter().map(|row| self.by_id.get(&id_of(row)).copied()).collect();
        partner.iter().flatten().for_each(|index| matched[*index] = true);
        for (row, partner) in rows.iter().zip(&mut partner).filter(|(_, partner)| partner.is_none()) {
            *partner = self.namesake(row).filter(|index| !matched[*index]);
            partner.iter().for_each(|index| matched[*index] = true);
        }
        let absent_from = self.names.join("`, `");
        self.names.push(name);
        for (row, partner) in rows.into_iter().zip(partner) {
            match partner {
                Some(index) => self.compare(index, row, disagreements),
                None => self.insert(row, &absent_from, disagreements),
            }
        }
        let absent = |(held, matched): (&Held, &bool)| {
            (!matched).then(|| self.only_in(&held.row, held.source, self.last_name()))
        };
        disagreements.extend(self.held[..earlier].iter().zip(&matched).filter_map(absent));
    }

    fn last_name(&self) -> String {
        self.names.last().cloned().unwrap_or_default()
    }

    fn namesake(&self, row: &Row) -> Option<usize> {
        let same = |index: &usize| self.held[*index].row.integration_key == row.integration_key;
        row.triplets().find_map(|triplet| self.by_triplet.get(&triplet).copied().filter(same))
    }

    fn only_in(&self, row: &Row, source: usize, absent_from: String) -> Disagreement {
        Disagreement::OnlyIn {
            source: self.names[source].clone(),
            absent_from,
            tenant: row.tenant.clone(),
            integration_key: row.integration_key.clone(),
            connection_id: row.connection_id.clone(),
        }
    }

    /// A later source speaks of a connection that is held already.
    fn compare(&mut self, index: usize, other: Row, disagreements: &mut Vec<Disagreement>) {
        let dropped_from = self.last_name();
        let Held { row, source } = &mut self.held[index];
        let Row { tenant, integration_key, connection_id, providers, account, auth_mode } = other;
        // The key is what they were matched by.
        let mut differs = |field: &'static str, kept: String, dropped: String| {
            if kept != dropped {
                disagreements.push(Disagreement::Differs {
                    field,
                    tenant: row.tenant.clone(),
                    integration_key: integration_key.clone(),
                    connection_id: row.connection_id.clone(),
                    kept,
                    kept_from: self.names[*source].clone(),
                    dropped,
                    dropped_from: dropped_from.clone(),
                });
            }
        };
        differs("tenant", row.tenant.to_string(), tenant.to_string());
        differs("connection id", row.connection_id.clone(), connection_id);
        differs("account", row.account.to_string(), account.to_string());
        if row.providers != providers {
            differs("providers", joined(&row.providers), joined(&providers));
        }
        match (&row.auth_mode, auth_mode) {
            (Some(kept), Some(dropped)) => differs("auth mode", kept.clone(), dropped),
            (None, Some(mode)) => row.auth_mode = Some(mode),
            (_, None) => {}
        }
    }

    /// A connection that no earlier source has, without the triplets that one of them has already given away.
    fn insert(&mut self, mut row: Row, absent_from: &str, disagreements: &mut Vec<Disagreement>) {
        let source = self.names.len() - 1;
        let index = self.held.len();
        let (tenant, account, id) = (row.tenant.clone(), row.account.clone(), row.connection_id.clone());
        row.providers.retain(|provider| {
            let triplet = Triplet::new(tenant.clone(), provider.clone(), account.clone());
            let Some(holder) = self.by_triplet.get(&triplet).map(|holder| &self.held[*holder]) else {
                self.by_triplet.insert(triplet, index);
                return true;
            };
            disagreements.push(Disagreement::TripletTwice {
                triplet,
                kept: holder.row.connection_id.clone(),
                kept_from: self.names[holder.source].clone(),
                dropped: id.clone(),
                dropped_from: self.names[source].clone(),
            });
            false
        });
        if row.providers.is_empty() {
            return;
        }
        if source > 0 {
            disagreements.push(self.only_in(&row, source, absent_from.to_owned()));
        }
        self.by_id.insert(id_of(&row), index);
        self.held.push(Held { row, source });
    }
}

fn id_of(row: &Row) -> (String, String) {
    (row.integration_key.clone(), row.connection_id.clone())
}

fn same_ids(inventory: &Inventory, disagreements: &mut Vec<Disagreement>) {
    let mut keys: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in &inventory.rows {
        keys.entry(&row.connection_id).or_default().push(&row.integration_key);
    }
    for (id, mut keys) in keys.into_iter().filter(|(_, keys)| keys.len() > 1) {
        keys.sort_unstable();
        keys.dedup();
        if keys.len() > 1 {
            let integration_keys = keys.into_iter().map(str::to_owned).collect();
            disagreements.push(Disagreement::SameId { connection_id: id.to_owned(), integration_keys });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Source, read};
    use super::*;

    fn inventory(rows: &[&str]) -> Inventory {
        let text = format!("tenant,key,connection_id,providers,account,auth_mode\n{}\n", rows.join("\n"));
        let source = Source { name: "x", bytes: text.as_bytes(), format: Some(Format::Csv), tenants: &[] };
        read(&source).unwrap_or_else(|e| panic!("error: {e}"))
    }

    fn merged(sources: &[&[&str]]) -> (Inventory, Vec<String>) {
        let named = |(i, rows): (usize, &&[&str])| (["file", "live", "third"][i].to_owned(), inventory(rows));
        let (inventory, disagreements) = merge(sources.iter().enumerate().map(named).collect());
        (inventory, disagreements.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn equal_sources_do_not_disagree() {
        let rows: &[&str] = &["a,google,,gmail+ga4,x,", "a,slack,,slack,x,OAUTH2"];
        let (all, disagreements) = merged(&[rows, rows]);
        assert_eq!((all, disagreements), (inventory(rows), vec![]));
    }

    #[test]
    fn a_session_made_id_is_the_same_connection_and_the_first_source_wins() {
        let (all, disagreements) = merged(&[&["a,google,,gmail+ga4,x,"], &["a,google,b7a3-uuid,gmail,x,OAUTH2"]]);
        assert_eq!(all, inventory(&["a,google,,ga4+gmail,x,OAUTH2"]));
        assert_eq!(
            disagreements,
            [
                "connection `a__google__x` of `google` has connection id `a__google__x` in `file` (kept) and `b7a3-uuid` in `live`",
                "connection `a__google__x` of `google` has providers `ga4, gmail` in `file` (kept) and `gmail` in `live`",
            ]
        );
    }

    #[test]
    fn connections_of_either_side_only_are_kept_and_named() {
        let (all, disagreements) = merged(&[&["a,google,,gmail,x,"], &["a,slack,,slack,x,"]]);
        assert_eq!(all.rows.len(), 2);
        assert_eq!(
            disagreements,
            [
                "connection `a__slack__x` (`slack` of `a`) is in `live` but not in `file`",
                "connection `a__google__x` (`google` of `a`) is in `file` but not in `live`",
            ]
        );
    }

    #[test]
    fn differing_account_and_auth_mode_are_named() {
        let (_, disagreements) = merged(&[&["a,google,u-1,gmail,x,BASIC"], &["a,google,u-1,gmail,y,OAUTH2"]]);
        assert_eq!(disagreements.len(), 2, "{disagreements:?}");
        assert!(disagreements[0].contains("account `x`") && disagreements[1].contains("auth mode `BASIC`"));
    }

    #[test]
    fn one_triplet_never_gets_two_connections() {
        let (all, disagreements) = merged(&[&["a,google,,gmail,x,"], &["a,mail,,gmail+imap,x,"]]);
        assert_eq!(all, inventory(&["a,google,,gmail,x,", "a,mail,,imap,x,"]));
        assert!(disagreements[0].starts_with("triplet `a:gmail:x` is fed by `a__google__x` in `file` (kept)"));
    }

    #[test]
    fn one_id_under_two_integrations_is_named() {
        let (_, disagreements) = merged(&[&["a,google,u-1,gmail,x,", "a,slack,u-1,slack,x,"]]);
        assert_eq!(disagreements, ["connection id `u-1` exists under several integrations: `google`, `slack`"]);
    }
}
