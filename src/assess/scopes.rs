//! What each live grant holds, against what its rows need.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Severity};
use crate::catalogue::Catalogue;
use crate::domain::token::scope_set;
use crate::domain::triplet::Triplet;
use crate::plan::Fact;

const CHECK: &str = "grant-scopes";

/// Names in one line; the rest is counted.
const NAMED_MAX: usize = 10;

/// A moving row and the grant behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantNeed {
    pub triplet: Triplet,
    pub integration_key: String,
    pub connection_id: String,
    /// What the provider needs for it.
    pub scopes: Vec<String>,
}

/// What was found of the grants, and the facts that a plan can embed. `granted`: the scopes that the
/// served entry of a triplet names; none, where it names none or there is no entry.
pub(super) fn judge(
    needs: &[GrantNeed],
    granted: &BTreeMap<Triplet, Option<String>>,
    catalogue: &Catalogue,
) -> (Finding, Vec<Fact>) {
    let mut held: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
    let (mut missing, mut untold) = (Vec::new(), Vec::new());
    for need in needs {
        let Some(text) = granted.get(&need.triplet).and_then(Option::as_ref) else {
            untold.push(format!("`{}`", need.triplet));
            continue;
        };
        let scopes = scope_set(text);
        let lacks = match catalogue.integration(&need.integration_key) {
            Some(integration) => integration.lacking(&need.scopes, &scopes),
            None => need.scopes.iter().filter(|scope| !scopes.contains(*scope)).cloned().collect(),
        };
        if !lacks.is_empty() {
            missing.push(format!(
                "connection `{}` lacks {} for `{}`",
                need.connection_id,
                lacks.join(", "),
                need.triplet
            ));
        }
        held.entry((&need.integration_key, &need.connection_id)).or_default().extend(scopes);
    }
    let facts = held
        .into_iter()
        .map(|((key, id), scopes)| Fact::Scopes {
            integration_key: key.to_owned(),
            connection_id: id.to_owned(),
            granted: scopes.into_iter().collect(),
        })
        .collect();
    let finding = if !missing.is_empty() {
        Finding::error(
            CHECK,
            named(&missing, "; "),
            "let an admin of theirs grant it at the provider, or accept it (`[accept] missing_scopes` in the policy), \
             and plan again with `--probes`",
        )
    } else if !untold.is_empty() {
        Finding::new(
            CHECK,
            Severity::Unknown,
            format!("what {} holds is not told: its entry in KV names no scopes", named(&untold, ", ")),
            "look at the provider's page of connected apps",
        )
    } else {
        Finding::ok(CHECK, format!("{} grants hold what their rows need", needs.len()))
    };
    (finding, facts)
}

fn named(all: &[String], between: &str) -> String {
    let shown = all.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(between);
    match all.len().saturating_sub(NAMED_MAX) {
        0 => shown,
        more => format!("{shown}, and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(account: &str, scopes: &[&str]) -> GrantNeed {
        GrantNeed {
            triplet: Triplet::parse(&format!("acme:gmail:{account}")).unwrap(),
            integration_key: "google".to_owned(),
            connection_id: format!("acme__google__{account}"),
            scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    fn found(needs: &[GrantNeed], granted: &[Option<&str>]) -> (Finding, Vec<Fact>) {
        let granted = needs.iter().zip(granted).map(|(n, text)| (n.triplet.clone(), text.map(str::to_owned))).collect();
        judge(needs, &granted, &Catalogue::built_in())
    }

    #[test]
    fn a_missing_scope_is_named_with_its_connection_and_wins_over_silence() {
        let needs = [need("a", &["x", "y"]), need("b", &["x"])];
        let (finding, facts) = found(&needs, &[Some("y z"), None]);
        assert_eq!(finding.severity, Severity::Error);
        assert_eq!(finding.evidence, "connection `acme__google__a` lacks x for `acme:gmail:a`");
        let granted = vec!["y".to_owned(), "z".to_owned()];
        let (key, id) = ("google".to_owned(), "acme__google__a".to_owned());
        assert_eq!(facts, [Fact::Scopes { integration_key: key, connection_id: id, granted }]);
    }

    #[test]
    fn enough_is_ok_and_silence_is_unknown() {
        let needs = [need("a", &["x"])];
        assert_eq!(found(&needs, &[Some("x y")]).0.severity, Severity::Ok);
        assert_eq!(found(&needs, &[None]).0.severity, Severity::Unknown);
        let many: Vec<GrantNeed> = (0..12).map(|n| need(&n.to_string(), &["x"])).collect();
        assert!(found(&many, &[None; 12]).0.evidence.contains("and 2 more"));
    }
}
