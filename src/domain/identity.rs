//! Who a token belongs to: the fields of a whoami answer that may be compared between two clients.

use std::collections::BTreeSet;

use serde_json::Value;

/// The comparable identity in a whoami answer: per field path the set of values found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(Vec<(String, BTreeSet<String>)>);

/// Why an answer proves nothing. An empty set or a missing field is not a match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the whoami answer has no `{field}`")]
pub struct NoIdentity {
    pub field: String,
}

impl Identity {
    /// Collects `fields` (paths such as `User.Id` or `elements[].account`) from an answer.
    ///
    /// # Errors
    /// When a field is absent or empty.
    pub fn extract(answer: &Value, fields: &[String]) -> Result<Self, NoIdentity> {
        fields
            .iter()
            .map(|field| {
                let mut found = BTreeSet::new();
                collect(answer, field, &mut found);
                if found.is_empty() { Err(NoIdentity { field: field.clone() }) } else { Ok((field.clone(), found)) }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// One text for a keyed digest. Equal identities give equal texts.
    pub fn canonical(&self) -> String {
        let parts: Vec<String> = self
            .0
            .iter()
            .map(|(field, values)| format!("{field}={}", values.iter().cloned().collect::<Vec<_>>().join("|")))
            .collect();
        parts.join("&")
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

    fn fields(names: &[&str]) -> Vec<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    #[test]
    fn sets_are_compared_as_sets_and_numbers_as_text() {
        let path = fields(&["CustomerRoles[].CustomerId", "User.Id"]);
        let a = json!({"User": {"Id": 7}, "CustomerRoles": [{"CustomerId": 1}, {"CustomerId": 2}]});
        let b = json!({"User": {"Id": "7"}, "CustomerRoles": [{"CustomerId": 2}, {"CustomerId": 1}]});
        assert_eq!(Identity::extract(&a, &path), Identity::extract(&b, &path));
    }

    #[test]
    fn a_missing_or_empty_field_is_not_an_identity() {
        for answer in [json!({}), json!({"sub": ""}), json!({"sub": null}), json!([1])] {
            assert!(Identity::extract(&answer, &fields(&["sub"])).is_err(), "{answer}");
        }
        assert!(Identity::extract(&json!({"elements": []}), &fields(&["elements[].account"])).is_err());
    }
}
