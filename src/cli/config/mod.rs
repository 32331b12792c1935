//! Where the five systems are and the keys for them: environment over file over defaults.
//!
//! Secrets come from the environment or from files of their own. They are never flags, which
//! every user of the machine can see, and never stand in the configuration file, which ends up
//! in git. No error quotes a value other than a path: what was put into the wrong place may be a secret.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use reqwest::Url;

mod settings;
mod show;

use super::CommandError;
use super::oauth_apps::{self, OauthApps};
use super::plan::read_text;
use crate::alert::{Alerts, NotQuietHours, Slack};
use crate::clients::{
    CloudflareEndpoint, ComposioEndpoint, Endpoints, GatewayEndpoint, NangoEndpoint, ProviderEndpoint,
};
use crate::domain::secret::Secret;
use crate::shim::{AdminKeys, ShimConfig};
use settings::*;

pub use show::{ConfigArgs, run};

/// The largest secret file that is read, in bytes. Keys are shorter than 100.
const SECRET_BYTES_MAX: u64 = 16 * 1024;

/// A value that was found. A secret in a file is read when it is needed.
#[derive(Clone, Debug)]
enum Value {
    Text(String),
    Secret(Secret),
    SecretFile(PathBuf),
}

#[derive(Clone, Debug)]
struct Found {
    value: Value,
    /// For people.
    from: String,
}

/// The effective configuration.
#[derive(Debug, Default)]
pub struct Config {
    found: BTreeMap<&'static str, Found>,
    oauth_apps: OauthApps,
}

impl Config {
    /// Reads the environment and, when one was named, the configuration file.
    ///
    /// # Errors
    /// Exit code 2 when the file cannot be read, holds an unknown key or a secret, or when a
    /// variable is set in two ways.
    pub fn load(file: Option<&Path>) -> Result<Self, CommandError> {
        let text = file.map(read_text).transpose()?;
        let mut config = Self::resolve(variable, file.zip(text.as_deref()))?;
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        config.oauth_apps.read_environment(names, variable)?;
        Ok(config)
    }

    fn resolve(
        environment: impl Fn(&str) -> Result<Option<String>, CommandError>,
        file: Option<(&Path, &str)>,
    ) -> Result<Self, CommandError> {
        let (mut found, mut oauth_apps) = (BTreeMap::new(), OauthApps::default());
        for setting in ALL {
            if let Some(default) = setting.default {
                let value = Value::Text(default.to_owned());
                found.insert(setting.variable, Found { value, from: "default".to_owned() });
            }
        }
        if let Some((path, text)) = file {
            read_file(path, text, &mut found, &mut oauth_apps)?;
        }
        for setting in ALL {
            let by_value = environment(setting.variable)?;
            let file_variable = format!("{}_FILE", setting.variable);
            let by_file = if setting.is_secret() { environment(&file_variable)? } else { None };
            let (value, from) = match (by_value, by_file) {
                (Some(_), Some(_)) => {
                    let message = format!("`{}` and `{file_variable}` are both set", setting.variable);
                    return Err(CommandError::usage(message).hint("unset one of them"));
                }
                (Some(text), None) if setting.is_secret() => {
                    (Value::Secret(Secret::new(text)), "environment".to_owned())
                }
                (Some(text), None) => (Value::Text(text), "environment".to_owned()),
                (None, Some(path)) => (Value::SecretFile(PathBuf::from(&path)), format!("{file_variable} ({path})")),
                (None, None) => continue,
            };
            found.insert(setting.variable, Found { value, from });
        }
        Ok(Self { found, oauth_apps })
    }

    /// What reading the inventory at Nango needs.
    ///
    /// # Errors
    /// Exit code 2 naming every setting that is missing or cannot be used.
    pub fn nango(&self) -> Result<NangoEndpoint, CommandError> {
        let mut asked = Asked { config: self, missing: Vec::new() };
        let endpoint = asked.nango()?;
        asked.finish()?;
        Ok(endpoint)
    }

    /// The verifier's own key at Nango, if it has one.
    ///
    /// # Errors
    /// As [`Config::nango`].
    pub fn nango_verifier(&self) -> Result<Option<NangoEndpoint>, CommandError> {
        let Some(key) = self.secret(&NANGO_VERIFY_KEY)? else { return Ok(None) };
        let mut asked = Asked { config: self, missing: Vec::new() };
        let base = asked.url(&NANGO_URL)?;
        asked.finish()?;
        Ok(Some(NangoEndpoint { base, key }))
    }

    /// What guards the shim's routes; a route without a key refuses everything.
    ///
    /// # Errors
    /// Exit code 2 when something that is set cannot be used.
    pub fn shim(&self) -> Result<ShimConfig, CommandError> {
        let nango_legacy_signature = match self.text(&NANGO_LEGACY) {
            Some("accept") => true,
            Some("refuse") | None => false,
            Some(_) => {
                let message = format!("`{}` is neither `accept` nor `refuse`", NANGO_LEGACY.variable);
                return Err(CommandError::usage(message).hint(format!("set it to {}", NANGO_LEGACY.what)));
            }
        };
        Ok(ShimConfig {
            nango_keys: self.keys(&NANGO_WEBHOOK_KEY)?,
            nango_legacy_signature,
            composio_keys: self.keys(&COMPOSIO_WEBHOOK_KEY)?,
            admin_keys: hashes(&SHIM_ADMIN_KEYS, self.text(&SHIM_ADMIN_KEYS).unwrap_or_default())?,
            ..ShimConfig::default()
        })
    }

    /// The key for a shim's admin routes.
    ///
    /// # Errors
    /// Exit code 2 when it is not set or cannot be read.
    pub fn shim_admin_key(&self) -> Result<Secret, CommandError> {
        self.secret(&SHIM_ADMIN_KEY)?.ok_or_else(|| {
            CommandError::usage(format!("`{}` is not set", SHIM_ADMIN_KEY.variable))
                .hint(format!("set it to {}", SHIM_ADMIN_KEY.what))
        })
    }

    /// Where alerts go and when; nowhere when nothing is set.
    ///
    /// # Errors
    /// Exit code 2 when something that is set cannot be used.
    pub fn alerts(&self) -> Result<Alerts, CommandError> {
        let unusable = |setting: &Setting, error: &dyn std::error::Error| {
            CommandError::usage(format!("`{}` cannot be used", setting.variable))
                .because(error)
                .hint(format!("set it to {}", setting.what))
        };
        let slack = self.secret(&ALERT_WEBHOOK)?.map(|address| Slack::new(&address)).transpose();
        let quiet = self.text(&ALERT_QUIET).map(str::parse).transpose();
        Ok(Alerts::new(
            slack.map_err(|error| unusable(&ALERT_WEBHOOK, &error))?,
            quiet.map_err(|error: NotQuietHours| unusable(&ALERT_QUIET, &error))?,
        ))
    }

    /// One key or several, with white space between.
    fn keys(&self, setting: &Setting) -> Result<Vec<Secret>, CommandError> {
        let all = self.secret(setting)?;
        Ok(all.iter().flat_map(|all| all.expose().split_whitespace()).map(Secret::new).collect())
    }

    /// What reading KV needs; the gateway's namespaces only where they are named.
    ///
    /// # Errors
    /// As [`Config::nango`].
    pub fn kv(&self, source: bool, target: bool) -> Result<CloudflareEndpoint, CommandError> {
        let mut asked = Asked { config: self, missing: Vec::new() };
        // An id that no namespace has stands for what is not asked for.
        let mut id = |needed: bool, setting| if needed { asked.text(setting) } else { "none".to_owned() };
        let (kv_source, kv_target, d1) = (id(source, &KV_SOURCE), id(target, &KV_TARGET), id(false, &D1));
        let (base, token) = (asked.cloudflare_base()?, asked.secret(&CLOUDFLARE_TOKEN)?);
        asked.finish()?;
        Ok(CloudflareEndpoint { base, token, kv_source, kv_target, d1 })
    }

    /// What reading at Composio needs.
    ///
    /// # Errors
    /// As [`Config::nango`].
    pub fn composio(&self) -> Result<ComposioEndpoint, CommandError> {
        let mut asked = Asked { config: self, missing: Vec::new() };
        let (base, key) = (asked.url(&COMPOSIO_URL)?, asked.secret(&COMPOSIO_KEY)?);
        asked.finish()?;
        Ok(ComposioEndpoint { base, key, oauth_apps: BTreeMap::new() })
    }

    /// Where the providers are.
    ///
    /// # Errors
    /// As [`Config::nango`].
    pub fn provider(&self) -> Result<ProviderEndpoint, CommandError> {
        let mut asked = Asked { config: self, missing: Vec::new() };
        let base_override = self.text(&PROVIDER_URL).map(|_| asked.url(&PROVIDER_URL)).transpose()?;
        asked.finish()?;
        Ok(ProviderEndpoint { base_override })
    }

    /// What carrying out a plan needs: all five systems.
    ///
    /// # Errors
    /// As [`Config::nango`].
    pub fn endpoints(&self) -> Result<Endpoints, CommandError> {
        let mut asked = Asked { config: self, missing: Vec::new() };
        let endpoints = Endpoints {
            nango: asked.nango()?,
            composio: ComposioEndpoint {
                base: asked.url(&COMPOSIO_URL)?,
                key: asked.secret(&COMPOSIO_KEY)?,
                oauth_apps: self.oauth_apps.resolve()?,
            },
            cloudflare: CloudflareEndpoint {
                base: asked.cloudflare_base()?,
                token: asked.secret(&CLOUDFLARE_TOKEN)?,
                kv_source: asked.text(&KV_SOURCE),
                kv_target: asked.text(&KV_TARGET),
                d1: asked.text(&D1),
            },
            gateway: GatewayEndpoint {
                base: asked.url(&GATEWAY_URL)?,
                admin_key: asked.secret(&GATEWAY_ADMIN_KEY)?,
                gateway_key: asked.secret(&GATEWAY_KEY)?,
            },
            provider: ProviderEndpoint {
                base_override: self.text(&PROVIDER_URL).map(|_| asked.url(&PROVIDER_URL)).transpose()?,
            },
            allow_insecure_http: false,
        };
        asked.finish()?;
        Ok(endpoints)
    }

    fn text(&self, setting: &Setting) -> Option<&str> {
        match &self.found.get(setting.variable)?.value {
            Value::Text(text) => Some(text),
            Value::Secret(_) | Value::SecretFile(_) => None,
        }
    }

    fn secret(&self, setting: &Setting) -> Result<Option<Secret>, CommandError> {
        match self.found.get(setting.variable).map(|found| &found.value) {
            Some(Value::Secret(secret)) => Ok(Some(secret.clone())),
            Some(Value::SecretFile(path)) => read_secret(setting, path).map(Some),
            Some(Value::Text(_)) | None => Ok(None),
        }
    }
}

/// An empty variable counts as not set: that is how CI systems pass a secret that is not there.
fn variable(name: &str) -> Result<Option<String>, CommandError> {
    match std::env::var_os(name).map(std::ffi::OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) if text.is_empty() => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(CommandError::usage(format!("`{name}` is not UTF-8"))),
    }
}

fn read_file(
    path: &Path,
    text: &str,
    found: &mut BTreeMap<&'static str, Found>,
    oauth_apps: &mut OauthApps,
) -> Result<(), CommandError> {
    let shown = path.display().to_string();
    let bad = |problem: String| CommandError::usage(format!("`{shown}` is not a configuration file: {problem}"));
    let document: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The error's own text shows the line, and the line may hold a secret.
        let start = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
        bad(format!("line {line} is not TOML"))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for (table, value) in document {
        let known: Vec<&&Setting> = ALL.iter().filter(|setting| setting.table == table).collect();
        if known.is_empty() {
            return Err(bad(format!("unknown table `[{table}]`")).hint("docs/config.md lists every key"));
        }
        let toml::Value::Table(keys) = value else { return Err(bad(format!("`{table}` is not a table"))) };
        for (key, value) in keys {
            if table == "composio" && key == oauth_apps::TABLE {
                oauth_apps.read_table(value, folder, &shown).map_err(bad)?;
                continue;
            }
            let Some(setting) = known.iter().find(|setting| setting.file_key() == key) else {
                let error = bad(if known.iter().any(|setting| setting.key == key) {
                    format!("`{table}.{key}` is a secret and must not stand in it")
                } else {
                    format!("unknown key `{table}.{key}`")
                });
                let keys: Vec<String> = known.iter().map(|setting| format!("`{}`", setting.file_key())).collect();
                return Err(error.hint(format!("`[{table}]` takes {}", keys.join(", "))));
            };
            let toml::Value::String(text) = value else {
                return Err(bad(format!("`{table}.{key}` is not a string")));
            };
            if text.is_empty() {
                return Err(bad(format!("`{table}.{key}` is empty")));
            }
            let value = if setting.is_secret() { Value::SecretFile(folder.join(text)) } else { Value::Text(text) };
            found.insert(setting.variable, Found { value, from: shown.clone() });
        }
    }
    Ok(())
}

/// Reads the file that a setting's secret is in.
fn read_secret(setting: &Setting, path: &Path) -> Result<Secret, CommandError> {
    read_secret_file(&format!("`{}`", setting.variable), setting.what, path)
}

/// Reads a secret and drops the newline that editors put at its end. `name` is what errors call
/// it, `what` what the file must hold.
pub(super) fn read_secret_file(name: &str, what: &str, path: &Path) -> Result<Secret, CommandError> {
    let cannot = |problem: &str| {
        CommandError::usage(format!("the file of {name}, `{}`, {problem}", path.display()))
            .hint(format!("it must hold {what} and nothing else"))
    };
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text));
    if let Err(error) = read {
        return Err(cannot("cannot be read").because(&error));
    }
    if text.len() as u64 > SECRET_BYTES_MAX {
        return Err(cannot("is too large for a secret"));
    }
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(cannot("is empty")),
        secret => Ok(Secret::new(secret)),
    }
}

/// Takes what a command needs and notes all that is missing, so that one run names everything.
struct Asked<'a> {
    config: &'a Config,
    missing: Vec<&'static Setting>,
}

impl Asked<'_> {
    fn text(&mut self, setting: &'static Setting) -> String {
        match self.config.text(setting) {
            Some(text) => text.to_owned(),
            None => {
                self.missing.push(setting);
                String::new()
            }
        }
    }

    fn secret(&mut self, setting: &'static Setting) -> Result<Secret, CommandError> {
        Ok(self.config.secret(setting)?.unwrap_or_else(|| {
            self.missing.push(setting);
            Secret::new("")
        }))
    }

    fn url(&mut self, setting: &'static Setting) -> Result<Url, CommandError> {
        match self.config.text(setting) {
            Some(text) => parse_url(setting, text),
            None => {
                self.missing.push(setting);
                parse_url(setting, PLACEHOLDER)
            }
        }
    }

    fn nango(&mut self) -> Result<NangoEndpoint, CommandError> {
        Ok(NangoEndpoint { base: self.url(&NANGO_URL)?, key: self.secret(&NANGO_KEY)? })
    }

    fn cloudflare_base(&mut self) -> Result<Url, CommandError> {
        if self.config.text(&CLOUDFLARE_URL).is_some() {
            return self.url(&CLOUDFLARE_URL);
        }
        let account = self.text(&CLOUDFLARE_ACCOUNT);
        if !account.chars().all(|c| c.is_ascii_alphanumeric()) {
            let message = format!("`{}` is not an account id", CLOUDFLARE_ACCOUNT.variable);
            return Err(CommandError::usage(message).hint(format!("set it to {}", CLOUDFLARE_ACCOUNT.what)));
        }
        parse_url(&CLOUDFLARE_URL, &format!("https://api.cloudflare.com/client/v4/accounts/{account}"))
    }

    fn finish(self) -> Result<(), CommandError> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = self.missing.iter().map(|setting| format!("`{}`", setting.variable)).collect();
        let verb = if names.len() == 1 { "is" } else { "are" };
        let mut error = CommandError::usage(format!("{} {verb} not set", names.join(", ")));
        for setting in self.missing {
            let file = if setting.is_secret() {
                format!(", or `{}_FILE` to the path of a file that holds it", setting.variable)
            } else {
                String::new()
            };
            error = error.hint(format!("set `{}` to {}{file}", setting.variable, setting.what));
        }
        Err(error)
    }
}

/// Stands for a URL that is missing until [`Asked::finish`] refuses; nothing is ever sent there.
const PLACEHOLDER: &str = "http://127.0.0.1";

fn hashes(setting: &Setting, text: &str) -> Result<AdminKeys, CommandError> {
    AdminKeys::parse(text).map_err(|error| {
        CommandError::usage(format!("`{}` cannot be used", setting.variable))
            .because(&error)
            .hint(format!("set it to {}", setting.what))
    })
}

fn parse_url(setting: &Setting, text: &str) -> Result<Url, CommandError> {
    Url::parse(text).map_err(|error| {
        CommandError::usage(format!("`{}` is not a URL", setting.variable))
            .because(&error)
            .hint(format!("set it to {}", setting.what))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;

    pub(super) fn resolve(environment: &[(&str, &str)], file: Option<&str>) -> Result<Config, CommandError> {
        let of = |name: &str| Ok(environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()));
        Config::resolve(of, file.map(|text| (Path::new("conf/cutover.toml"), text)))
    }

    #[test]
    fn the_environment_goes_over_the_file_and_the_file_over_the_default() {
        let file = "[nango]\nurl = \"https://nango.example\"\n[gateway]\nurl = \"https://gw.example\"\n";
        let config = resolve(&[("CUTOVER_GATEWAY_URL", "https://other.example")], Some(file)).unwrap();
        assert_eq!(config.text(&NANGO_URL), Some("https://nango.example"));
        assert_eq!(config.text(&GATEWAY_URL), Some("https://other.example"));
        assert_eq!(config.text(&COMPOSIO_URL), Some("https://backend.composio.dev"));
        assert_eq!(config.found["CUTOVER_GATEWAY_URL"].from, "environment");
    }

    #[test]
    fn every_missing_setting_is_named_at_once_with_what_to_do() {
        let error = resolve(&[], None).unwrap().endpoints().unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code(), exit::USAGE);
        for setting in ALL.iter().filter(|s| s.default.is_none()) {
            let optional = [&CLOUDFLARE_URL, &NANGO_WEBHOOK_KEY, &NANGO_VERIFY_KEY, &PROVIDER_URL]
                .iter()
                .any(|optional| optional.variable == setting.variable)
                || ["shim", "alert"].contains(&setting.table)
                || setting.variable == COMPOSIO_WEBHOOK_KEY.variable;
            let hint = format!("set `{}` to", setting.variable);
            assert_eq!(text.contains(&hint), !optional, "{} in {text}", setting.variable);
        }
        let text = resolve(&[], None).unwrap().nango().unwrap_err().to_string();
        assert!(text.starts_with("`CUTOVER_NANGO_KEY` is not set\n") && !text.contains("COMPOSIO"), "{text}");
    }

    #[test]
    fn a_bad_file_is_refused_by_name_and_never_quoted() {
        for (text, expected) in [
            ("[nango]\nkey = \"canary\"\n", "`nango.key` is a secret and must not stand in it"),
            ("[nango]\nkye_file = \"canary\"\n", "unknown key `nango.kye_file`"),
            ("[nagno]\nurl = \"canary\"\n", "unknown table `[nagno]`"),
            ("nango = \"canary\"\n", "`nango` is not a table"),
            ("[nango]\nurl = 7\n", "`nango.url` is not a string"),
            ("[nango]\nurl = \"\"\n", "`nango.url` is empty"),
            ("[nango]\n\nurl = \"canary\n", "line 3 is not TOML"),
        ] {
            let error = resolve(&[], Some(text)).unwrap_err();
            let shown = error.to_string();
            assert!(error.code() == 2 && shown.contains(expected) && !shown.contains("canary"), "{shown}");
        }
    }

    #[test]
    fn a_secret_comes_from_one_place() {
        let both = [("CUTOVER_NANGO_KEY", "canary"), ("CUTOVER_NANGO_KEY_FILE", "x")];
        let error = resolve(&both, None).unwrap_err().to_string();
        assert!(error.contains("are both set") && !error.contains("canary"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let name = path.display().to_string();
        std::fs::write(&path, "canary\r\n").unwrap();
        let config = resolve(&[("CUTOVER_NANGO_KEY_FILE", &name)], None).unwrap();
        assert_eq!(config.nango().unwrap().key.expose(), "canary");
        std::fs::write(&path, "\n").unwrap();
        assert!(config.nango().unwrap_err().to_string().contains("is empty"));
        // A path in the file is beside the file.
        let config = resolve(&[], Some("[nango]\nkey_file = \"keys/nango\"\n")).unwrap();
        assert!(config.nango().unwrap_err().to_string().contains("`conf/keys/nango`, cannot be read"));
    }

    #[test]
    fn the_shim_takes_several_keys_and_refuses_what_is_no_hash() {
        let hash = crate::shim::hash_of(&Secret::new("an admin key"));
        let set = [("CUTOVER_NANGO_WEBHOOK_KEY", "new old"), ("CUTOVER_SHIM_ADMIN_KEYS", &hash)];
        let shim = resolve(&set, None).unwrap().shim().unwrap();
        assert_eq!((shim.nango_keys.len(), shim.composio_keys.len()), (2, 0));
        assert!(shim.admin_keys.admit(b"an admin key") && !shim.nango_legacy_signature);
        for (variable, value) in [("CUTOVER_SHIM_ADMIN_KEYS", "canary"), ("CUTOVER_NANGO_LEGACY_SIGNATURE", "canary")] {
            let error = resolve(&[(variable, value)], None).unwrap().shim().unwrap_err().to_string();
            assert!(error.contains(variable) && !error.contains("canary"), "{error}");
        }
        for (variable, value) in [("CUTOVER_ALERT_WEBHOOK", "canary"), ("CUTOVER_ALERT_QUIET_HOURS", "canary")] {
            let error = resolve(&[(variable, value)], None).unwrap().alerts().unwrap_err().to_string();
            assert!(error.contains(variable) && !error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn cloudflare_s_address_comes_from_the_account() {
        let account = [("CUTOVER_CLOUDFLARE_ACCOUNT", "00ff")];
        let config = resolve(&account, None).unwrap();
        let mut asked = Asked { config: &config, missing: Vec::new() };
        assert_eq!(asked.cloudflare_base().unwrap().as_str(), "https://api.cloudflare.com/client/v4/accounts/00ff");
        let config = resolve(&[("CUTOVER_CLOUDFLARE_ACCOUNT", "../x")], None).unwrap();
        assert!(config.endpoints().unwrap_err().to_string().contains("is not an account id"));
    }
}
