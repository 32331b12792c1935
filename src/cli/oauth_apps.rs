//! A team's own OAuth apps at Composio, one per toolkit: the client id in the open, the client
//! secret from the environment or a file of its own.
//!
//! In the configuration file: `[composio.oauth_apps.gmail]` with `client_id` and
//! `client_secret_file`. In the environment, which goes first: `CUTOVER_COMPOSIO_OAUTH_GMAIL_CLIENT_ID`,
//! and `…_CLIENT_SECRET` or `…_CLIENT_SECRET_FILE`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::CommandError;
use super::config::read_secret_file;
use crate::clients::OauthApp;
use crate::domain::secret::Secret;

/// The table in `[composio]` that holds them.
pub(super) const TABLE: &str = "oauth_apps";

const PREFIX: &str = "CUTOVER_COMPOSIO_OAUTH_";
const ID: &str = "_CLIENT_ID";
const SECRET: &str = "_CLIENT_SECRET";
const SECRET_FILE: &str = "_CLIENT_SECRET_FILE";

/// What to do about a half of an app.
const HINT: &str = "an OAuth app needs its client id and its client secret; a toolkit without both uses Composio's app";

#[derive(Clone, Debug)]
enum SecretFrom {
    Value(Secret),
    File(PathBuf),
}

/// One app as far as it was given.
#[derive(Clone, Debug, Default)]
struct Given {
    client_id: Option<String>,
    secret: Option<SecretFrom>,
    /// For people.
    from: String,
}

/// The apps that were given, by toolkit.
#[derive(Clone, Debug, Default)]
pub(super) struct OauthApps(BTreeMap<String, Given>);

/// An app as `cutover config` shows it.
pub(super) struct Shown {
    pub toolkit: String,
    pub client_id: Option<String>,
    pub from: String,
    pub problem: Option<String>,
}

/// `gmail` and `google_ads`: what a slug at Composio looks like.
fn is_slug(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-'))
}

impl OauthApps {
    /// Reads the table of the configuration file `shown`, whose folder is `folder`.
    ///
    /// # Errors
    /// A fragment that names the key and what is wrong with it. It never quotes a value.
    pub fn read_table(&mut self, value: toml::Value, folder: &Path, shown: &str) -> Result<(), String> {
        let toml::Value::Table(apps) = value else { return Err(format!("`composio.{TABLE}` is not a table")) };
        for (toolkit, app) in apps {
            if !is_slug(&toolkit) {
                return Err(format!("`composio.{TABLE}` holds a name that is no toolkit's, such as `gmail`"));
            }
            let name = format!("composio.{TABLE}.{toolkit}");
            let toml::Value::Table(keys) = app else { return Err(format!("`{name}` is not a table")) };
            let given = self.0.entry(toolkit).or_default();
            shown.clone_into(&mut given.from);
            for (key, value) in keys {
                let text = match value {
                    toml::Value::String(text) if !text.is_empty() => text,
                    _ => return Err(format!("`{name}.{key}` is not a string, or empty")),
                };
                match key.as_str() {
                    "client_id" => given.client_id = Some(text),
                    "client_secret_file" => given.secret = Some(SecretFrom::File(folder.join(text))),
                    "client_secret" => {
                        return Err(format!("`{name}.client_secret` is a secret and must not stand in it"));
                    }
                    _ => return Err(format!("unknown key `{name}.{key}`")),
                }
            }
        }
        Ok(())
    }

    /// Lays what the environment says over it. `names` are the names of all variables.
    ///
    /// # Errors
    /// Exit code 2 for a variable that is not one of ours, and for a secret that is given twice.
    pub fn read_environment(
        &mut self,
        names: impl Iterator<Item = String>,
        value: impl Fn(&str) -> Result<Option<String>, CommandError>,
    ) -> Result<(), CommandError> {
        let mut toolkits = BTreeSet::new();
        for name in names.filter(|name| name.starts_with(PREFIX)) {
            let rest = &name[PREFIX.len()..];
            let toolkit = [SECRET_FILE, SECRET, ID].iter().find_map(|suffix| rest.strip_suffix(suffix));
            match toolkit.map(str::to_ascii_lowercase).filter(|toolkit| is_slug(toolkit)) {
                Some(toolkit) => _ = toolkits.insert(toolkit),
                None => {
                    return Err(CommandError::usage(format!("`{name}` is not a setting"))
                        .hint(format!("such as `{PREFIX}GMAIL{ID}` and `{PREFIX}GMAIL{SECRET}`")));
                }
            }
        }
        for toolkit in toolkits {
            let named = |suffix: &str| format!("{PREFIX}{}{suffix}", toolkit.to_ascii_uppercase());
            let (id, secret, file) = (value(&named(ID))?, value(&named(SECRET))?, value(&named(SECRET_FILE))?);
            if id.is_none() && secret.is_none() && file.is_none() {
                continue;
            }
            let given = self.0.entry(toolkit.clone()).or_default();
            "environment".clone_into(&mut given.from);
            given.client_id = id.or(given.client_id.take());
            given.secret = match (secret, file) {
                (Some(_), Some(_)) => {
                    let message = format!("`{}` and `{}` are both set", named(SECRET), named(SECRET_FILE));
                    return Err(CommandError::usage(message).hint("unset one of them"));
                }
                (Some(secret), None) => Some(SecretFrom::Value(Secret::new(secret))),
                (None, Some(path)) => Some(SecretFrom::File(PathBuf::from(path))),
                (None, None) => given.secret.take(),
            };
        }
        Ok(())
    }

    /// The apps, with their secrets read.
    ///
    /// # Errors
    /// Exit code 2 naming the toolkit whose app is half given, or whose file cannot be read.
    pub fn resolve(&self) -> Result<BTreeMap<String, OauthApp>, CommandError> {
        self.0.iter().map(|(toolkit, given)| Ok((toolkit.clone(), given.resolve(toolkit)?))).collect()
    }

    /// What was given, without secrets.
    pub fn shown(&self) -> Vec<Shown> {
        let shown = |(toolkit, given): (&String, &Given)| Shown {
            toolkit: toolkit.clone(),
            client_id: given.client_id.clone(),
            from: given.from.clone(),
            problem: given.resolve(toolkit).err().map(|error| error.to_string()),
        };
        self.0.iter().map(shown).collect()
    }
}

impl Given {
    fn resolve(&self, toolkit: &str) -> Result<OauthApp, CommandError> {
        let lacks =
            |what: &str| CommandError::usage(format!("the OAuth app of toolkit `{toolkit}` has no {what}")).hint(HINT);
        let client_id = self.client_id.clone().ok_or_else(|| lacks("client id"))?;
        let client_secret = match self.secret.as_ref().ok_or_else(|| lacks("client secret"))? {
            SecretFrom::Value(secret) => secret.clone(),
            SecretFrom::File(path) => {
                let what = format!("the client secret of toolkit `{toolkit}`'s OAuth app");
                read_secret_file(&what, &what, path)?
            }
        };
        Ok(OauthApp { client_id, client_secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)], apps: &mut OauthApps) -> Result<(), CommandError> {
        let value = |name: &str| Ok(pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()));
        apps.read_environment(pairs.iter().map(|(name, _)| (*name).to_owned()), value)
    }

    fn table(text: &str, apps: &mut OauthApps) -> Result<(), String> {
        let table: toml::Table = text.parse().unwrap();
        apps.read_table(toml::Value::Table(table), Path::new("conf"), "cutover.toml")
    }

    #[test]
    fn an_app_comes_from_file_and_environment_together_and_the_environment_goes_first() {
        let mut apps = OauthApps::default();
        table("[gmail]\nclient_id = \"from-file\"\nclient_secret_file = \"nowhere\"", &mut apps).unwrap();
        let pairs = [
            ("CUTOVER_COMPOSIO_OAUTH_GMAIL_CLIENT_SECRET", "canary"),
            ("CUTOVER_COMPOSIO_OAUTH_GOOGLE_ANALYTICS_CLIENT_ID", "77-abc"),
            ("CUTOVER_COMPOSIO_OAUTH_GOOGLE_ANALYTICS_CLIENT_SECRET", "canary"),
            ("PATH", "/bin"),
        ];
        environment(&pairs, &mut apps).unwrap();
        let resolved = apps.resolve().unwrap();
        assert_eq!(resolved.keys().collect::<Vec<_>>(), ["gmail", "google_analytics"]);
        assert_eq!(resolved["gmail"].client_id, "from-file");
        assert_eq!(resolved["gmail"].client_secret.expose(), "canary");
        assert!(!format!("{apps:?} {resolved:?}").contains("canary"));
    }

    #[test]
    fn mistakes_are_named_and_never_quoted() {
        for (text, expected) in [
            ("gmail = \"canary\"", "`composio.oauth_apps.gmail` is not a table"),
            ("[gmail]\nclient_secret = \"canary\"", "is a secret and must not stand in it"),
            ("[gmail]\nclient = \"canary\"", "unknown key `composio.oauth_apps.gmail.client`"),
            ("[gmail]\nclient_id = 7", "`composio.oauth_apps.gmail.client_id` is not a string"),
            ("[\"G mail\"]\nclient_id = \"canary\"", "no toolkit's"),
        ] {
            let error = table(text, &mut OauthApps::default()).unwrap_err();
            assert!(error.contains(expected) && !error.contains("canary"), "{error}");
        }
        for (pairs, expected) in [
            (&[("CUTOVER_COMPOSIO_OAUTH_GMAIL", "canary")][..], "`CUTOVER_COMPOSIO_OAUTH_GMAIL` is not a setting"),
            (&[("CUTOVER_COMPOSIO_OAUTH_GMAIL_CLIENT_ID", "x")], "has no client secret"),
            (&[("CUTOVER_COMPOSIO_OAUTH_GMAIL_CLIENT_SECRET", "canary")], "has no client id"),
            (
                &[
                    ("CUTOVER_COMPOSIO_OAUTH_GMAIL_CLIENT_ID", "x"),
                    ("CUTOVER_COMPOSIO_OAUTH_GMAIL_CLIENT_SECRET_FILE", "/nonexistent/canary-free"),
                ],
                "cannot be read",
            ),
        ] {
            let mut apps = OauthApps::default();
            let error = environment(pairs, &mut apps).and_then(|()| apps.resolve().map(|_| ())).unwrap_err();
            let shown = error.to_string();
            assert!(shown.contains(expected) && !shown.contains("\"canary\""), "{shown}");
            assert_eq!(error.code(), crate::exit::USAGE);
        }
    }
}
