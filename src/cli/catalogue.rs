//! `cutover catalogue`: what is known of each provider.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::plan::Inputs;
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::catalogue::{Catalogue, Integration, Provider, Reconsent, Reuse, Rotation};
use crate::domain::time::format_duration_ms;
use crate::exit;
use crate::text::{Paint, wrap};

/// Show what is known of each provider
#[derive(clap::Args, Debug)]
pub struct CatalogueArgs {
    #[command(subcommand)]
    command: CatalogueCommand,
}

#[derive(clap::Subcommand, Debug)]
enum CatalogueCommand {
    /// Show the catalogue, or one integration key or provider of it
    #[command(after_help = "\
Examples:
  cutover catalogue show
  cutover catalogue show gong
  cutover catalogue show google --format json")]
    Show(ShowArgs),
}

#[derive(clap::Args, Debug)]
struct ShowArgs {
    /// Integration key (`google`) or V5 provider (`gmail`)
    #[arg(value_name = "PROVIDER")]
    name: Option<String>,
    /// Facts that are laid over the built-in catalogue
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
    /// Shape of the report
    #[arg(long, value_enum, default_value = "text")]
    format: OutputFormat,
}

pub fn run(args: CatalogueArgs, ui: &Ui) -> CommandResult {
    let CatalogueCommand::Show(args) = args.command;
    let catalogue = Inputs { catalogue: args.catalogue, ..Inputs::default() }.load_catalogue()?;
    let found: BTreeMap<&str, &Integration> = catalogue
        .integrations
        .iter()
        .filter(|(key, i)| args.name.as_ref().is_none_or(|name| *key == name || i.provider.contains_key(name)))
        .map(|(key, i)| (key.as_str(), i))
        .collect();
    if let (Some(name), true) = (&args.name, found.is_empty()) {
        return Err(unknown(name, &catalogue));
    }
    let paint = ui.paint();
    ui.print(&match (args.format, &args.name) {
        (OutputFormat::Json, None) => format!("{:#}\n", json(&catalogue)?),
        (OutputFormat::Json, Some(_)) => format!("{:#}\n", json(&found)?),
        (OutputFormat::Text, None) => table(&catalogue),
        (OutputFormat::Text, Some(_)) => found.iter().map(|(key, i)| details(key, i, &catalogue, paint)).collect(),
    });
    Ok(exit::OK)
}

fn json<T: serde::Serialize>(value: &T) -> Result<serde_json::Value, CommandError> {
    serde_json::to_value(value)
        .map_err(|error| CommandError::failed("the catalogue does not turn into JSON").because(&error))
}

fn unknown(name: &str, catalogue: &Catalogue) -> CommandError {
    let keys = catalogue.integrations.keys().map(String::as_str);
    let providers = catalogue.integrations.values().flat_map(|i| i.provider.keys().map(String::as_str));
    let mut names: Vec<&str> = keys.chain(providers).collect();
    names.sort_unstable();
    names.dedup();
    CommandError::usage(format!("the catalogue does not know `{name}`"))
        .hint(format!("it knows {}", names.join(", ")))
        .hint("lay your own facts over it with `--catalogue FILE`")
}

fn life(seconds: Option<u64>) -> String {
    seconds.map_or_else(
        || "none".to_owned(),
        |s| format_duration_ms(i64::try_from(s).unwrap_or(i64::MAX).saturating_mul(1000)),
    )
}

const fn rotation(r: Rotation) -> &'static str {
    match r {
        Rotation::Never => "never",
        Rotation::Optional => "optional",
        Rotation::Always => "always",
    }
}

const fn reuse(r: Reuse) -> &'static str {
    match r {
        Reuse::Harmless => "harmless",
        Reuse::Grace => "fails after a short grace",
        Reuse::RevokesFamily => "revokes the family",
        Reuse::Unknown => "not documented, planned as revoking the family",
    }
}

const fn reconsent(r: Reconsent) -> &'static str {
    match r {
        Reconsent::KeepsOld => "keeps the old grant",
        Reconsent::InvalidatesOld => "ends the old grant",
        Reconsent::Unknown => "not documented, planned as ending the old grant",
    }
}

fn toolkit(p: &Provider) -> String {
    match &p.toolkit {
        None => "none".to_owned(),
        Some(slug) if p.toolkit_unconfirmed => format!("{slug} (unconfirmed)"),
        Some(slug) => slug.clone(),
    }
}

fn table(catalogue: &Catalogue) -> String {
    let mut out =
        format!("{:<12} {:<19} {:<35} {:<8} {:<9} {:>4}\n", "key", "provider", "toolkit", "token", "rotates", "cap");
    for (key, i) in &catalogue.integrations {
        for (name, p) in &i.provider {
            let cap = i.grants_max.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let _ = writeln!(
                out,
                "{key:<12} {name:<19} {:<35} {:<8} {:<9} {cap:>4}",
                toolkit(p),
                life(i.access_token_ttl_s),
                rotation(i.rotation),
            );
        }
    }
    let _ = writeln!(out, "\nchecked on {}; `cutover catalogue show NAME` tells more", catalogue.checked_on);
    out
}

fn details(key: &str, i: &Integration, catalogue: &Catalogue, paint: Paint) -> String {
    let mut out = paint.bold(key);
    out.push('\n');
    let mut line = |name: &str, text: &str| wrap(&mut out, &format!("  {name:<18}"), text);
    line("auth mode", &i.auth_mode);
    line("access token", &life(i.access_token_ttl_s));
    line("refresh token", &life(i.refresh_token_ttl_s));
    line("rotation", rotation(i.rotation));
    line("spent token", reuse(i.reuse));
    line("second consent", reconsent(i.same_client_reconsent));
    line("live grants", &i.grants_max.map_or_else(|| "no published cap".to_owned(), |n| n.to_string()));
    line("whoami", &format!("{} {}", i.whoami.method, i.whoami.url));
    line("identity", &i.whoami.identity_fields.join(", "));
    for (name, value) in &i.whoami.headers {
        line("whoami header", &format!("{name}: {value}"));
    }
    i.whoami.note.iter().for_each(|note| line("whoami note", note));
    i.consent_by.iter().for_each(|who| line("consent by", who));
    i.approval.iter().for_each(|who| line("approval by", who));
    for d in &i.deadline {
        line("deadline", &format!("{}: {}", d.on, d.what));
    }
    i.quirk.iter().for_each(|quirk| line("note", &quirk.text()));
    for (name, p) in &i.provider {
        let managed = match p.managed_oauth {
            Some(true) => "Composio has its own OAuth app",
            Some(false) => "own OAuth app needed",
            None => "no OAuth app of Composio known",
        };
        let schemes = if p.auth_schemes.is_empty() { "unknown".to_owned() } else { p.auth_schemes.join(" ") };
        line("provider", &format!("{name} → toolkit {}; schemes {schemes}; {managed}", toolkit(p)));
        line("  scopes", &p.scopes.join(" "));
        p.extra_credential.iter().for_each(|what| line("  also needs", what));
        p.quirk.iter().for_each(|quirk| line("  note", &quirk.text()));
        if let Some(a) = &p.ability {
            line("  looked up", &format!("{} at {}, again from {}", a.checked_on, a.source, a.expires_on));
        }
    }
    for rule in &i.error {
        let status = if rule.any_status { "any".to_owned() } else { rule.status.to_string() };
        line("error", &format!("{status} {} → {}: {}", rule.matcher, rule.class, rule.meaning));
    }
    line("checked on", &catalogue.checked_on);
    i.sources.iter().for_each(|source| line("source", source));
    out
}
