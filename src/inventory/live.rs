//! The inventory that Nango itself shows: its lists of connections and integrations, never a credential.

use std::collections::{BTreeMap, BTreeSet};

use super::diagnostic::{Diagnostics, Report};
use super::names::escaped;
use super::rows::nango_allows;
use super::{Inventory, Row};
use crate::catalogue::Catalogue;
use crate::domain::triplet::{ConventionalId, Part, Triplet};
use crate::ports::{SourceConnection, SourceIntegration};

/// What diagnostics call the source.
pub const LIVE_NAME: &str = "nango";

const CONVENTION: &str = "`{tenant}__{integration key}__{account}` as end user id or as connection id";

/// Types the connections that Nango lists.
///
/// The triplet comes from the end user id where that follows the convention, else from the
/// connection id: session-made connections have random ids. The catalogue says which providers an
/// integration feeds; one that it does not know feeds a provider of its own name. Where the middle of
/// the conventional id is a provider and not the integration key, the connection feeds that one only.
///
/// # Errors
/// Every connection whose triplet cannot be told or that shares one with another connection.
pub fn from_live(
    connections: &[SourceConnection],
    integrations: &[SourceIntegration],
    catalogue: &Catalogue,
) -> Result<Inventory, Diagnostics> {
    let mut report = Report::new(LIVE_NAME, b"");
    let listed: BTreeSet<&str> = integrations.iter().map(|integration| integration.key.as_str()).collect();
    let mut placed = Vec::new();
    for connection in connections {
        match typed(connection, &listed, catalogue) {
            Ok(row) => placed.push(row),
            Err(Refusal { message, expected, hint }) => report.add_unplaced(message, expected, hint),
        }
    }
    shared_triplets(&placed, &mut report);
    if report.is_empty() { Ok(Inventory::canonical(placed)) } else { Err(report.into_diagnostics()) }
}

struct Refusal {
    message: String,
    expected: String,
    hint: &'static str,
}

fn typed(connection: &SourceConnection, listed: &BTreeSet<&str>, catalogue: &Catalogue) -> Result<Row, Refusal> {
    let key = connection.integration_key.as_str();
    let id = connection.connection_id.as_str();
    let shown = format!("connection `{}` of `{}`", escaped(id), escaped(key));
    if id.is_empty() || id.len() > 255 || !id.chars().all(nango_allows) {
        return Err(Refusal {
            message: format!("{shown} has an id that Nango cannot serve"),
            expected: "1 to 255 characters that Nango accepts in a path".to_owned(),
            hint: "delete the connection at Nango and make it again",
        });
    }
    if !listed.contains(key) {
        return Err(Refusal {
            message: format!("{shown} is under an integration that Nango does not list"),
            expected: "an integration key that exists".to_owned(),
            hint: "the lists were read while somebody changed them; read again",
        });
    }
    let end_user = connection.end_user_id.as_deref().map(ConventionalId::parse);
    let named = match (end_user, ConventionalId::parse(id)) {
        (Some(Ok(named)), _) | (_, Ok(named)) => named,
        (_, Err(error)) => {
            let end_user = match connection.end_user_id.as_deref() {
                Some(text) => format!("its end user id `{}` does not follow the convention", escaped(text)),
                None => "it has no end user id".to_owned(),
            };
            return Err(Refusal {
                message: format!("cannot tell the triplet of {shown}: {end_user}, and {error}"),
                expected: CONVENTION.to_owned(),
                hint: "set the tag `end_user_id` at Nango (PATCH /connections/{id}), or list the connection in a file",
            });
        }
    };
    let known = catalogue.integration(key);
    let middle = &named.integration_key;
    let providers = match known {
        Some(integration) if middle.as_str() == key => {
            let parts: Result<Vec<Part>, _> = integration.provider.keys().map(|name| Part::new(name)).collect();
            parts.map_err(|error| Refusal {
                message: format!("the catalogue's providers of `{}` cannot be used: {error}", escaped(key)),
                expected: "provider names of a-z A-Z 0-9 _ - .".to_owned(),
                hint: "correct the catalogue",
            })?
        }
        Some(integration) if integration.provider.contains_key(middle.as_str()) => vec![middle.clone()],
        None if middle.as_str() == key => vec![middle.clone()],
        _ => {
            return Err(Refusal {
                message: format!("{shown} is named `{named}`, which is another integration"),
                expected: format!("`{}__{}__{}`", named.tenant, escaped(key), named.account),
                hint: "correct the tag `end_user_id` at Nango, or list the connection in a file",
            });
        }
    };
    Ok(Row {
        tenant: named.tenant,
        integration_key: key.to_owned(),
        connection_id: id.to_owned(),
        providers,
        account: named.account,
        auth_mode: None,
    })
}

/// Nothing at Nango makes an end user id unique: after a second consent there are two connections.
fn shared_triplets(rows: &[Row], report: &mut Report<'_>) {
    let mut feeders: BTreeMap<Triplet, Vec<usize>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        for triplet in row.triplets() {
            feeders.entry(triplet).or_default().push(index);
        }
    }
    // One message for a set of connections, however many triplets they share.
    let mut shared: BTreeMap<Vec<usize>, Vec<Triplet>> = BTreeMap::new();
    for (triplet, indexes) in feeders.into_iter().filter(|(_, indexes)| indexes.len() > 1) {
        shared.entry(indexes).or_default().push(triplet);
    }
    for (indexes, triplets) in shared {
        let named = |index: &usize| {
            let row = &rows[*index];
            format!("`{}` of `{}`", escaped(&row.connection_id), escaped(&row.integration_key))
        };
        let names: Vec<String> = indexes.iter().map(named).collect();
        let triplets: Vec<String> = triplets.iter().map(|triplet| format!("`{triplet}`")).collect();
        report.add_unplaced(
            format!("{} connections claim {}: {}", names.len(), triplets.join(", "), names.join(", ")),
            "one connection for each triplet".to_owned(),
            "delete the connections at Nango that are no longer used, without revoking their grant",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(key: &str, id: &str, end_user_id: Option<&str>) -> SourceConnection {
        SourceConnection {
            number: 1,
            connection_id: id.to_owned(),
            integration_key: key.to_owned(),
            provider: key.to_owned(),
            end_user_id: end_user_id.map(str::to_owned),
            organization_id: None,
            auth_error: false,
            created_at: None,
            skip_token_revocation: None,
        }
    }

    fn live(connections: &[SourceConnection]) -> Result<Inventory, String> {
        let keys: BTreeSet<&str> = connections.iter().map(|c| c.integration_key.as_str()).collect();
        let integration = |key: &&str| SourceIntegration {
            key: (*key).to_owned(),
            provider: (*key).to_owned(),
            display_name: (*key).to_owned(),
        };
        let integrations: Vec<SourceIntegration> = keys.iter().map(integration).collect();
        from_live(connections, &integrations, &Catalogue::built_in()).map_err(|e| e.to_string())
    }

    const UUID: &str = "b7a3d0c4-52f1-4a68-9c0e-1f6d2e8a7713";

    #[test]
    fn the_end_user_id_names_a_session_made_connection() {
        let all = live(&[
            connection("google", UUID, Some("kahuna__google__default")),
            connection("slack", "kahuna__slack__default", Some("u-77")),
            connection("acme-crm", "kahuna__acme-crm__default", None),
        ])
        .unwrap();
        assert_eq!(all.triplet_count(), 7);
        assert_eq!(all.rows[1].connection_id, UUID);
        assert_eq!(all.rows[0].providers, [Part::new("acme-crm").unwrap()]);
    }

    #[test]
    fn an_id_that_names_a_provider_feeds_that_provider_only() {
        let all = live(&[
            connection("google", UUID, Some("kahuna__ga4__default")),
            connection("google", "other", Some("kahuna__gsc__default")),
        ])
        .unwrap();
        assert_eq!(all.triplet_count(), 2);
    }

    #[test]
    fn what_cannot_be_told_is_refused_by_name() {
        let error = live(&[
            connection("google", UUID, None),
            connection("slack", "a__b__c__d", Some("kahuna")),
            connection("slack", "kahuna__google__default", None),
            connection("slack", "", None),
        ])
        .unwrap_err();
        for part in [UUID, "no end user id", "a__b__c__d", "4 parts", "another integration", "cannot serve"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn several_connections_of_one_triplet_are_all_named_once() {
        let name = Some("kahuna__google__default");
        let error = live(&[connection("google", "one", name), connection("google", "two", name)]).unwrap_err();
        assert!(error.contains("2 connections claim `kahuna:ga4:default`"), "{error}");
        assert!(error.contains("`one` of `google`, `two` of `google`") && !error.contains("\nerror"), "{error}");
    }
}
