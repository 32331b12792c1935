//! Who a token belongs to: the fields of a whoami answer that may be compared between two clients.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{IdentityRule, Whoami};
use crate::domain::secret::{Fingerprint, FingerprintKey};

/// What a whoami answer says of whose token it is, as keyed digests: per field path the set of
/// values found. Account ids themselves are not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity(BTreeMap<String, BTreeSet<Fingerprint>>);

/// Why an answer proves nothing. An empty set or a missing field is not a match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the whoami answer has no `{field}`")]
pub struct NoIdentity {
    pub field: String,
}

impl Identity {
    /// Collects the catalogue's identity fields (paths such as `User.Id` or `elements[].account`)
    /// from an answer. A field that only means something within one OAuth client is left out when
    /// the answer shows that it is of that kind (`client_scoped`: Slack's bot users).
    ///
    /// # Errors
    /// When a field is absent or empty.
    pub fn extract(answer: &Value, whoami: &Whoami, key: &FingerprintKey) -> Result<Self, NoIdentity> {
        let mut fields = BTreeMap::new();
        for field in &whoami.identity_fields {
            let mut found = BTreeSet::new();
            if let Some(sign) = whoami.client_scoped.get(field) {
                collect(answer, sign, &mut found);
                if !found.is_empty() {
                    continue;
                }
            }
            collect(answer, field, &mut found);
            if found.is_empty() {
                return Err(NoIdentity { field: field.clone() });
            }
            let digests = found.iter().map(|value| key.identity_digest(&format!("{field}={value}"))).collect();
            fields.insert(field.clone(), digests);
        }
        match whoami.identity_fields.first() {
            Some(first) if fields.is_empty() => Err(NoIdentity { field: first.clone() }),
            None => Err(NoIdentity { field: "identity".to_owned() }),
            Some(_) => Ok(Self(fields)),
        }
    }

    /// Whether the new grant is of the same upstream account as the old one. Fields that one side
    /// had to leave out are not compared; at least one must be left.
    pub fn continues(&self, old: &Self, rule: IdentityRule) -> bool {
        let mut common = 0;
        for (field, old) in &old.0 {
            let Some(new) = self.0.get(field) else { continue };
            common += 1;
            let fits = match rule {
                IdentityRule::Equal => new == old,
                IdentityRule::Superset => new.is_superset(old),
            };
            if !fits {
                return false;
            }
        }
        common > 0
    }
}

fn collect(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    if path.is_empty() {
        match value {
            Value::String(text) if !text.is_empty() => {
                found.insert(text.clone());
            }
            Value::Number(number) => {
                found.insert(number.to_string());
            }
            _ => {}
        }
        return;
    }
    let (head, rest) = path.split_once('.').unwrap_or((path, ""));
    if let Some(name) = head.strip_suffix("[]") {
        for item in value.get(name).and_then(Value::as_array).into_iter().flatten() {
            collect(item, rest, found);
        }
    } else if let Some(inner) = value.get(head) {
        collect(inner, rest, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn whoami(facts: &str) -> Whoami {
        toml::from_str(&format!("method = \"GET\"\nurl = \"https://a.example\"\n{facts}")).unwrap()
    }

    fn extract(answer: &Value, whoami: &Whoami) -> Result<Identity, NoIdentity> {
        Identity::extract(answer, whoami, &FingerprintKey::new([7; 32]))
    }

    #[test]
    fn sets_are_compared_as_sets_and_numbers_as_text() {
        let whoami = whoami(r#"identity_fields = ["CustomerRoles[].CustomerId", "User.Id"]"#);
        let a = json!({"User": {"Id": 7}, "CustomerRoles": [{"CustomerId": 1}, {"CustomerId": 2}]});
        let b = json!({"User": {"Id": "7"}, "CustomerRoles": [{"CustomerId": 2}, {"CustomerId": 1}]});
        assert_eq!(extract(&a, &whoami), extract(&b, &whoami));
        let three = [1, 2, 3].map(|id| json!({"CustomerId": id}));
        let wider = json!({"User": {"Id": 7}, "CustomerRoles": three});
        let (a, wider) = (extract(&a, &whoami).unwrap(), extract(&wider, &whoami).unwrap());
        assert!(!wider.continues(&a, IdentityRule::Equal) && wider.continues(&a, IdentityRule::Superset));
        assert!(!a.continues(&wider, IdentityRule::Superset), "losing an account is not a superset");
    }

    #[test]
    fn a_missing_or_empty_field_is_not_an_identity() {
        let sub = whoami(r#"identity_fields = ["sub"]"#);
        for answer in [json!({}), json!({"sub": ""}), json!({"sub": null}), json!([1])] {
            assert!(extract(&answer, &sub).is_err(), "{answer}");
        }
        let set = whoami(r#"identity_fields = ["elements[].account"]"#);
        assert!(extract(&json!({"elements": []}), &set).is_err());
        assert!(extract(&json!({"sub": "x"}), &whoami("identity_fields = []")).is_err());
    }

    #[test]
    fn a_bots_user_id_belongs_to_its_client_and_the_team_decides() {
        let slack = whoami("identity_fields = [\"team_id\", \"user_id\"]\nclient_scoped = { user_id = \"bot_id\" }");
        let id = |team: &str, user: &str, bot: Option<&str>| {
            extract(&json!({"team_id": team, "user_id": user, "bot_id": bot}), &slack).unwrap()
        };
        let rule = IdentityRule::Equal;
        assert!(id("T1", "U9", Some("B9")).continues(&id("T1", "U1", Some("B1")), rule));
        assert!(!id("T2", "U1", Some("B1")).continues(&id("T1", "U1", Some("B1")), rule));
        assert!(id("T1", "U1", None).continues(&id("T1", "U1", None), rule));
        assert!(!id("T1", "U2", None).continues(&id("T1", "U1", None), rule));
    }
}
