//! `cutover config`: the effective settings, without secrets.

use std::fmt::Write as _;

use reqwest::Url;
use serde_json::json;

use super::settings::{ALL, Kind, Setting};
use super::{Config, Found, Value, hashes, parse_url, read_secret};
use crate::cli::{CommandResult, OutputFormat, Ui};
use crate::exit;

/// Show the effective configuration, with every secret left out
///
/// Says for each setting where it came from: the environment, the file that `--config` names, or the
/// default. Exits with 2 when something that is set cannot be used.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover config
  cutover config --config cutover.toml --format json")]
pub struct ConfigArgs {
    /// Shape of the report
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: OutputFormat,
}

/// A setting as it is shown.
struct Line {
    setting: &'static Setting,
    value: Option<String>,
    from: String,
    problem: Option<String>,
}

pub fn run(args: &ConfigArgs, ui: &Ui) -> CommandResult {
    let config = Config::load(ui.config.as_deref())?;
    let lines: Vec<Line> = ALL.iter().map(|setting| line(&config, setting)).collect();
    let apps = config.oauth_apps.shown();
    let problems: Vec<&str> = lines
        .iter()
        .map(|line| &line.problem)
        .chain(apps.iter().map(|app| &app.problem))
        .flatten()
        .map(String::as_str)
        .collect();
    let code = if problems.is_empty() { exit::OK } else { exit::USAGE };
    match args.format {
        OutputFormat::Text => {
            let from_width = lines.iter().map(|line| line.from.chars().count()).max().unwrap_or_default();
            let mut out = format!("{:<28}{:<from_width$}  VALUE\n", "SETTING", "FROM");
            for Line { setting, value, from, .. } in &lines {
                let value = value.as_deref().unwrap_or("-");
                let _ = writeln!(out, "{:<28}{from:<from_width$}  {value}", setting.variable);
            }
            for app in &apps {
                let id = app.client_id.as_deref().unwrap_or("-");
                let name = format!("OAuth app of {}", app.toolkit);
                let _ = writeln!(out, "{name:<28}{:<from_width$}  {id}", app.from);
            }
            ui.print(&out);
            problems.iter().for_each(|problem| ui.note(&format!("error: {problem}")));
        }
        OutputFormat::Json => {
            let settings: Vec<_> = lines
                .iter()
                .map(|Line { setting, value, from, problem }| {
                    json!({
                        "variable": setting.variable,
                        "key": format!("{}.{}", setting.table, setting.file_key()),
                        "secret": setting.is_secret(),
                        "value": value,
                        "from": from,
                        "problem": problem,
                    })
                })
                .collect();
            let reason = if problems.is_empty() { "no problems" } else { "a setting cannot be used" };
            let apps: Vec<_> = apps
                .iter()
                .map(|app| {
                    json!({"toolkit": app.toolkit, "client_id": app.client_id, "from": app.from, "problem": app.problem})
                })
                .collect();
            let report = json!({"exit_code": code, "reason": reason, "settings": settings, "oauth_apps": apps});
            ui.print(&format!("{report:#}\n"));
        }
    }
    Ok(code)
}

fn line(config: &Config, setting: &'static Setting) -> Line {
    let Some(Found { value, from }) = config.found.get(setting.variable) else {
        return Line { setting, value: None, from: "not set".to_owned(), problem: None };
    };
    let (shown, problem) = match (value, setting.kind) {
        (Value::Text(text), Kind::Url) => match parse_url(setting, text) {
            Ok(url) => (shown_url(&url), None),
            Err(error) => ("[not a URL]".to_owned(), Some(error.to_string())),
        },
        (Value::Text(text), Kind::Hashes) => match hashes(setting, text) {
            Ok(keys) => (format!("[{} keys]", keys.len()), None),
            Err(error) => ("[not hashes]".to_owned(), Some(error.to_string())),
        },
        (Value::Text(text), _) => (text.clone(), None),
        (Value::Secret(_), _) => ("[set]".to_owned(), None),
        (Value::SecretFile(path), _) => match read_secret(setting, path) {
            Ok(_) => ("[set]".to_owned(), None),
            Err(error) => ("[unusable]".to_owned(), Some(error.to_string())),
        },
    };
    Line { setting, value: Some(shown), from: from.clone(), problem }
}

/// Without what may be a secret in it.
fn shown_url(url: &Url) -> String {
    let mut shown = url.clone();
    let hidden = !url.username().is_empty() || url.password().is_some() || url.query().is_some();
    // These fail only for addresses without a host, which have nothing to hide there.
    let _ = shown.set_username("").and_then(|()| shown.set_password(None));
    shown.set_query(None);
    shown.set_fragment(None);
    let text = shown.as_str().trim_end_matches('/');
    if hidden { format!("{text} [more hidden]") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::settings::GATEWAY_URL;
    use super::super::tests::resolve;
    use super::*;

    #[test]
    fn shown_values_hold_no_secret() {
        let url = "https://user:canary@gw.example/x?key=canary";
        let config = resolve(
            &[
                ("CUTOVER_GATEWAY_URL", url),
                ("CUTOVER_NANGO_KEY", "canary"),
                ("CUTOVER_NANGO_URL", "canary"),
                ("CUTOVER_SHIM_ADMIN_KEYS", "canary"),
            ],
            None,
        )
        .unwrap();
        for setting in ALL {
            let Line { value, problem, from, .. } = line(&config, setting);
            assert!(!format!("{value:?}{problem:?}{from}").contains("canary"), "{}", setting.variable);
        }
        assert_eq!(line(&config, &GATEWAY_URL).value.as_deref(), Some("https://gw.example/x [more hidden]"));
        assert!(!format!("{config:?}").contains("CUTOVER_NANGO_KEY: canary"));
    }
}
