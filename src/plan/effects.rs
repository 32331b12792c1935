//! What a cutover changes in configuration files, as unified diffs.
//!
//! Only what can be said for sure: the gateway gains access to Composio, callback lists gain
//! Composio's callback, and everything of Nango stays until `retire`. Files are never written,
//! and values that may be secrets are hidden before they are compared.

use similar::TextDiff;

use super::{Plan, REDIRECT_URI, Route};

const BASE_URL: &str = "https://backend.composio.dev";
/// How Nango's callback ends, on its cloud and self-hosted.
const SOURCE_CALLBACK: &str = "/oauth/callback";
const HIDDEN: &str = "[hidden]";

/// The kinds of file that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `.env`, `.dev.vars`
    Env,
    /// `wrangler.toml`
    Toml,
    /// `wrangler.json`, `wrangler.jsonc`
    Json,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
        if file.starts_with(".env") || file.ends_with(".env") || file.ends_with(".vars") {
            return Some(Self::Env);
        }
        match file.rsplit_once('.')?.1 {
            "toml" => Some(Self::Toml),
            "json" | "jsonc" => Some(Self::Json),
            _ => None,
        }
    }
}

/// What one file needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    pub file: String,
    /// A unified diff with secrets hidden; empty: nothing to change.
    pub diff: String,
    /// What a diff cannot show.
    pub notes: Vec<String>,
}

/// The changes to a configuration file that this plan needs before its first wave.
pub fn effect(plan: &Plan, file: &str, text: &str) -> Effect {
    let mut effect = Effect { file: file.to_owned(), diff: String::new(), notes: Vec::new() };
    if !plan.rows.iter().any(|r| r.route.moves()) {
        return effect;
    }
    let Some(kind) = Kind::of(file) else {
        effect.notes.push("not a .env, .toml or .json file: left alone".to_owned());
        return effect;
    };
    let mut old: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut new = old.clone();
    if plan.rows.iter().any(|r| r.route == Route::Reconsent) {
        add_callback(&mut new, &mut effect.notes);
    }
    add_variables(kind, &mut new, &mut effect.notes);
    old.iter_mut().chain(new.iter_mut()).for_each(|line| *line = shown(line));
    let whole = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let (old, new) = (whole(&old), whole(&new));
    if old != new {
        let diff = TextDiff::from_lines(&old, &new);
        let (from, to) = (format!("a/{file}"), format!("b/{file}"));
        effect.diff = diff.unified_diff().context_radius(1).header(&from, &to).to_string();
        effect.notes.push("NANGO_* stays until `cutover retire nango` is done".to_owned());
    }
    effect
}

/// Puts Composio's callback next to Nango's wherever that stands in a list.
fn add_callback(lines: &mut [String], notes: &mut Vec<String>) {
    if lines.iter().any(|line| line.contains(REDIRECT_URI)) {
        return;
    }
    for (i, line) in lines.iter_mut().enumerate() {
        let Some(end) = line.find(SOURCE_CALLBACK).map(|at| at + SOURCE_CALLBACK.len()) else { continue };
        if line.trim_start().starts_with(['#', '/']) {
            continue;
        }
        let Some(start) = line[..end].rfind("http") else { continue };
        let quote = line[end..].chars().next().filter(|c| matches!(c, '"' | '\''));
        let before = line[..start].trim_end_matches(['"', '\'']).trim_end();
        // One quoted value and not a list: a second one would not fit.
        if quote.is_some()
            && before.ends_with(['=', ':'])
            && !line.trim_start().starts_with(|c: char| c.is_ascii_uppercase())
        {
            notes.push(format!("line {}: a single callback; {REDIRECT_URI} must be accepted beside it", i + 1));
            continue;
        }
        let list = before.ends_with(['[', ',']) || before.is_empty();
        match quote {
            Some(quote) if list => line.insert_str(end + 1, &format!(", {quote}{REDIRECT_URI}{quote}")),
            _ => line.insert_str(end, &format!(",{REDIRECT_URI}")),
        }
    }
}

/// Gives the gateway what it needs to call Composio.
fn add_variables(kind: Kind, lines: &mut Vec<String>, notes: &mut Vec<String>) {
    let has = |name: &str| lines.iter().any(|line| line.trim_start().trim_start_matches('"').starts_with(name));
    let (url, key) = (has("COMPOSIO_BASE_URL"), has("COMPOSIO_API_KEY"));
    match kind {
        Kind::Env => {
            let last = lines.iter().rposition(|line| line.starts_with("NANGO_"));
            let at = last.map_or(lines.len(), |at| at + 1);
            let mut add = Vec::new();
            if !url {
                add.push(format!("COMPOSIO_BASE_URL={BASE_URL}"));
            }
            if !key {
                add.push("COMPOSIO_API_KEY=".to_owned());
            }
            lines.splice(at..at, add);
        }
        Kind::Toml if !url => {
            let at = lines.iter().position(|line| line.trim() == "[vars]").map_or_else(
                || {
                    lines.extend([String::new(), "[vars]".to_owned()]);
                    lines.len()
                },
                |at| at + 1,
            );
            lines.insert(at, format!("COMPOSIO_BASE_URL = \"{BASE_URL}\""));
        }
        Kind::Json if !url => {
            let Some(at) =
                lines.iter().position(|l| l.trim_start().starts_with("\"vars\"") && l.trim_end().ends_with('{'))
            else {
                notes.push(format!("no `\"vars\": {{` line found: add COMPOSIO_BASE_URL = {BASE_URL} by hand"));
                return;
            };
            let indent: String = lines[at].chars().take_while(|c| c.is_whitespace()).collect();
            let last = lines.get(at + 1).is_none_or(|next| next.trim_start().starts_with('}'));
            let comma = if last { "" } else { "," };
            lines.insert(at + 1, format!("{indent}  \"COMPOSIO_BASE_URL\": \"{BASE_URL}\"{comma}"));
        }
        Kind::Toml | Kind::Json => {}
    }
    if kind != Kind::Env && !key {
        notes.push("the key is a secret of the Worker: `wrangler secret put COMPOSIO_API_KEY`".to_owned());
    }
}

/// A line as it may be shown: structure and plain URLs stay, every other value is hidden.
fn shown(line: &str) -> String {
    let trimmed = line.trim();
    let structure = trimmed.is_empty()
        || trimmed.chars().all(|c| "{}[](),;".contains(c))
        || (trimmed.starts_with('[') && trimmed.ends_with(']') && !trimmed.contains(['"', '\'', '=']))
        || (trimmed.ends_with(['{', '[']) && trimmed.len() < 60 && !trimmed.contains('#'));
    if structure {
        return line.to_owned();
    }
    if trimmed.starts_with('#') || trimmed.starts_with("//") {
        return "# …".to_owned();
    }
    let name_end = line.find('=').or_else(|| line.find("\":").map(|at| at + 1));
    let (name, value) = name_end.map_or(("", line), |at| line.split_at(at + 1));
    let plain = value.split([',', ' ', '[', ']', '"', '\'']).filter(|part| !part.is_empty()).all(plain_url);
    if plain { line.to_owned() } else { format!("{name}{HIDDEN}") }
}

/// A URL without a user, a password, a query or a fragment, or an empty value.
fn plain_url(text: &str) -> bool {
    (text.starts_with("https://") || text.starts_with("http://"))
        && text.len() < 120
        && !text.contains(['@', '?', '#', ';'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;
    use crate::domain::time::Timestamp;
    use crate::domain::triplet::Part;
    use crate::inventory::{Inventory, Row};
    use crate::plan::Policy;

    fn plan() -> Plan {
        let part = |text| Part::new(text).unwrap();
        let row = Row {
            tenant: part("kahuna"),
            integration_key: "github".into(),
            connection_id: "kahuna__github__default".into(),
            providers: vec![part("github")],
            account: part("default"),
            auth_mode: None,
        };
        let inventory = Inventory { rows: vec![row] };
        crate::plan::plan(&inventory, &Catalogue::built_in(), &Policy::default(), &[], Timestamp::default())
    }

    #[test]
    fn an_env_file_gains_composio_beside_nango_and_shows_no_secret() {
        let env = "A=hunter2\nNANGO_SECRET_KEY=canary-secret\nNANGO_HOST=https://api.nango.dev\n\
                   CALLBACKS=https://api.nango.dev/oauth/callback\nDB=postgres://u:canary@h/db\n# canary in a comment\n";
        let effect = effect(&plan(), ".env.production", env);
        assert_eq!(
            effect.diff,
            "--- a/.env.production\n+++ b/.env.production\n@@ -3,3 +3,5 @@\n NANGO_HOST=https://api.nango.dev\n\
             -CALLBACKS=https://api.nango.dev/oauth/callback\n+COMPOSIO_BASE_URL=https://backend.composio.dev\n\
             +COMPOSIO_API_KEY=\n+CALLBACKS=https://api.nango.dev/oauth/callback,\
             https://backend.composio.dev/api/v3/toolkits/auth/callback\n DB=[hidden]\n"
        );
        assert!(!format!("{effect:?}").contains("canary"));
    }

    #[test]
    fn worker_files_gain_a_variable_and_the_key_stays_a_secret() {
        let toml = "name = \"v5\"\n\n[vars]\nNANGO_HOST = \"https://api.nango.dev\"\n\
                    REDIRECTS = [\"https://api.nango.dev/oauth/callback\"]\n";
        let toml = effect(&plan(), "wrangler.toml", toml);
        assert!(toml.diff.contains("+COMPOSIO_BASE_URL = \"https://backend.composio.dev\"\n"), "{}", toml.diff);
        let both = format!("+REDIRECTS = [\"https://api.nango.dev/oauth/callback\", \"{REDIRECT_URI}\"]\n");
        assert!(toml.diff.contains(&both), "{}", toml.diff);
        assert!(toml.notes.iter().any(|n| n.contains("wrangler secret put")));
        let json = "{\n  \"vars\": {\n    \"CALLBACK\": \"https://api.nango.dev/oauth/callback\"\n  }\n}\n";
        let json = effect(&plan(), "wrangler.jsonc", json);
        assert!(json.diff.contains("+    \"COMPOSIO_BASE_URL\": \"https://backend.composio.dev\",\n"), "{}", json.diff);
        assert!(json.notes.iter().any(|n| n.contains("line 3")), "{:?}", json.notes);
    }

    #[test]
    fn what_is_already_there_is_not_added_again() {
        let env = format!(
            "COMPOSIO_BASE_URL={BASE_URL}\nCOMPOSIO_API_KEY=x\nCALLBACKS=https://n/oauth/callback,{REDIRECT_URI}\n"
        );
        let effect = effect(&plan(), ".env", &env);
        assert_eq!((effect.diff.as_str(), effect.notes.len()), ("", 0));
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "(?s).{0,300}", name in "(.env|wrangler.toml|a.json|b)") {
            effect(&plan(), &name, &text);
        }
    }
}
