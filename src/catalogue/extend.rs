//! A user's own facts laid over the built-in ones.
//!
//! The TOML has the shape of `providers.toml`. Tables are merged key by key, so that one line can
//! correct one fact; lists (scopes, error rules, quirks) replace the whole list. The result is read
//! as strictly as the built-in catalogue: unknown keys and half-described integrations are refused.

use toml::{Table, Value};

use super::{Catalogue, classify, date};

/// Why a text cannot extend the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Toml(String),
    #[error("`{path}` is {found} and the catalogue has {expected} there")]
    Kind { path: String, found: &'static str, expected: &'static str },
    #[error("with the extension, `{path}` is not usable: {reason}")]
    Shape { path: String, reason: String },
}

impl Catalogue {
    /// This catalogue with the facts of `toml_text` laid over it.
    ///
    /// # Errors
    /// When the text is not TOML, a key is unknown, a value has the wrong type or range, or a new
    /// integration is not described in full. The message names the place.
    pub fn extend(&self, toml_text: &str) -> Result<Self, Error> {
        let over: Table =
            toml_text.parse().map_err(|e: toml::de::Error| Error::Toml(e.to_string().trim_end().to_owned()))?;
        let mut base = Table::try_from(self).map_err(|e| Error::Toml(e.to_string()))?;
        merge(&mut base, over, "")?;
        // Read integration by integration, so that an error can name which.
        let integrations = base.get("integration").and_then(Value::as_table).cloned().unwrap_or_default();
        for (key, value) in integrations {
            let path = format!("integration.{key}");
            value.try_into::<super::Integration>().map_err(|e| shape(&path, &e))?;
        }
        let catalogue: Self = Value::Table(base).try_into().map_err(|e| shape("the catalogue", &e))?;
        catalogue.check()?;
        Ok(catalogue)
    }

    /// The rules that types cannot express.
    pub(super) fn check(&self) -> Result<(), Error> {
        let bad = |path: String, reason: String| Err(Error::Shape { path, reason });
        let is_date = |path: String, text: &str| match date(text) {
            Some(_) => Ok(()),
            None => bad(path, format!("`{text}` is not a day such as 2026-11-21")),
        };
        is_date("checked_on".to_owned(), &self.checked_on)?;
        for (key, integration) in &self.integrations {
            let at = |rest: &str| format!("integration.{key}.{rest}");
            for (i, rule) in integration.error.iter().enumerate() {
                if let Err(reason) = classify::check_rule(rule) {
                    return bad(at(&format!("error[{i}]")), reason);
                }
            }
            for deadline in &integration.deadline {
                is_date(at("deadline"), &deadline.on)?;
            }
            if integration.access_token_ttl_s == Some(0) {
                return bad(at("access_token_ttl_s"), "a life of 0 seconds; leave it out for no expiry".to_owned());
            }
            for (name, provider) in &integration.provider {
                if let Err(error) = crate::domain::triplet::Part::new(name) {
                    return bad(at(&format!("provider.{name}")), error.to_string());
                }
                if provider.toolkit_unconfirmed && provider.toolkit.is_none() {
                    return bad(at(&format!("provider.{name}")), "an unconfirmed toolkit without a name".to_owned());
                }
                if let Some(ability) = &provider.ability {
                    is_date(at(&format!("provider.{name}.ability.checked_on")), &ability.checked_on)?;
                    is_date(at(&format!("provider.{name}.ability.expires_on")), &ability.expires_on)?;
                }
            }
        }
        Ok(())
    }
}

fn shape(path: &str, error: &toml::de::Error) -> Error {
    Error::Shape { path: path.to_owned(), reason: error.message().to_owned() }
}

fn merge(base: &mut Table, over: Table, path: &str) -> Result<(), Error> {
    for (key, value) in over {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over, &path)?,
            (Some(have), value) if have.same_type(&value) => *have = value,
            (Some(have), value) => {
                return Err(Error::Kind { path, found: kind(&value), expected: kind(have) });
            }
            (None, value) => {
                base.insert(key, value);
            }
        }
    }
    Ok(())
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a time",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_corrects_one_fact() {
        let built_in = Catalogue::built_in();
        let text = "[integration.microsoft-ads.provider.microsoft_ads]\ntoolkit_unconfirmed = false\n\
                    [integration.google]\naccess_token_ttl_s = 1800\n";
        let mut want = built_in.clone();
        want.integrations.get_mut("google").unwrap().access_token_ttl_s = Some(1800);
        let ads = want.integrations.get_mut("microsoft-ads").unwrap();
        ads.provider.get_mut("microsoft_ads").unwrap().toolkit_unconfirmed = false;
        assert_eq!(built_in.extend(text).unwrap(), want);
        assert_eq!(built_in.extend("").unwrap(), built_in);
    }

    #[test]
    fn a_new_integration_must_be_described_in_full() {
        let built_in = Catalogue::built_in();
        let full = r#"
            [integration.stripe]
            auth_mode = "API_KEY"
            rotation = "never"
            reuse = "harmless"
            same_client_reconsent = "keeps-old"
            token_url = ""
            whoami = { method = "GET", url = "https://api.stripe.com/v1/account", identity_fields = ["id"] }
            [integration.stripe.provider.stripe]
            scopes = []
            toolkit = "stripe"
            auth_schemes = ["API_KEY"]
        "#;
        let extended = built_in.extend(full).unwrap();
        assert_eq!(extended.integration("stripe").unwrap().provider["stripe"].toolkit.as_deref(), Some("stripe"));
        let error = built_in.extend(&full.replace("rotation = \"never\"", "")).unwrap_err().to_string();
        assert!(error.contains("integration.stripe") && error.contains("rotation"), "{error}");
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let built_in = Catalogue::built_in();
        for (text, needles) in [
            ("[integration.google]\nttl = 3", &["integration.google", "ttl"][..]),
            ("[integration.google]\naccess_token_ttl_s = \"1h\"", &["integration.google.access_token_ttl_s", "text"]),
            ("[integration.google]\nrotation = \"sometimes\"", &["integration.google", "sometimes"]),
            ("[integration.google]\naccess_token_ttl_s = 0", &["access_token_ttl_s"]),
            ("checked_on = \"today\"", &["checked_on", "today"]),
            ("[integration.google.provider.\"a__b\"]\nscopes = []", &["a__b"]),
            (
                "[[integration.google.error]]\nstatus=400\nmatch=\"error\"\nclass=\"config\"\nphase=\"token\"\nmeaning=\"\"",
                &["error[0]", "`error`"],
            ),
            (
                "[[integration.google.error]]\nstatus=400\nmatch=\"*\"\nclass=\"bad\"\nphase=\"token\"\nmeaning=\"\"",
                &["error[0]", "`bad`"],
            ),
            ("[integration.google]\nquirk = [{ code = \"sunspots\" }]", &["integration.google", "sunspots"]),
            ("[integrations.google]\n", &["integrations"]),
            ("[integration", &["integration"]),
        ] {
            let error = built_in.extend(text).unwrap_err().to_string();
            assert!(needles.iter().all(|needle| error.contains(needle)), "{text}: {error}");
        }
    }

    #[test]
    fn the_built_in_catalogue_keeps_its_own_rules() {
        assert_eq!(Catalogue::built_in().check(), Ok(()));
    }
}
