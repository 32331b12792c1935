//! What a gateway's checkout must change so that its TokenManager class goes: two deploys, each as
//! unified diffs, and every place that still speaks of it afterwards.
//!
//! The class keeps being exported in the first deploy, because the runtime refuses to lose a class
//! that a binding still names; the second one deletes it with all its objects, which nobody can
//! undo. Files come in as text and go out as diffs; nothing is written.

mod config;
mod script;

use std::collections::BTreeSet;

use similar::{ChangeTag, TextDiff};

/// A file of the checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Relative to the checkout, with `/`.
    pub path: String,
    pub text: String,
}

/// One deploy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deploy {
    /// Unified diffs of all files that change, one after the other.
    pub diff: String,
    /// What a diff cannot say.
    pub notes: Vec<String>,
}

/// A line that still speaks of what goes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Reference {
    pub path: String,
    /// From 1, in the checkout as it is before both deploys.
    pub line: usize,
    /// Which word was found.
    pub word: String,
}

/// The whole change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Without alarm handler and binding; the class stays exported. Can be rolled back.
    pub first: Deploy,
    /// Without the class, and with its deletion declared. Cannot be undone.
    pub second: Deploy,
    /// What still speaks of the class, its binding or the retired route after both.
    pub references: Vec<Reference>,
}

/// The class whose alarms are retired.
pub const CLASS: &str = "TokenManager";

/// The route by which Nango's webhooks came in.
const RETIRED_ROUTE: &str = "/admin/sync/nango";

/// Works out the change for the class `class` of a checkout.
pub fn removal(files: &[File], class: &str) -> Removal {
    let mut removal = Removal::default();
    let (mut bindings, mut found) = (Vec::new(), false);
    let mut after = Vec::with_capacity(files.len());
    for file in files {
        let (first, second) = if config::is_config(&file.path) {
            bindings.extend(config::binding_names(&file.text, class));
            let toml = file.path.ends_with(".toml");
            let first = config::without_binding(&file.text, class, toml);
            let second = config::with_deletion(&first, class, toml);
            found |= second.is_some();
            let second = second.unwrap_or_else(|| first.clone());
            (first, second)
        } else if script::is_script(&file.path) {
            let first = script::without_method(&file.text, class, "alarm");
            let second = script::without_class(&first, class);
            (first, second)
        } else {
            (file.text.clone(), file.text.clone())
        };
        removal.first.diff.push_str(&diff(&file.path, &file.text, &first));
        removal.second.diff.push_str(&diff(&file.path, &first, &second));
        after.push(second);
    }
    // Names of bindings may be known only after the files that use them.
    let words: BTreeSet<&str> = [class, RETIRED_ROUTE].into_iter().chain(bindings.iter().map(String::as_str)).collect();
    for (file, after) in files.iter().zip(&after) {
        removal.references.extend(references(file, after, &words));
    }
    notes(&mut removal, class, &bindings, found);
    removal
}

fn notes(removal: &mut Removal, class: &str, bindings: &[String], configured: bool) {
    let first = &mut removal.first.notes;
    if removal.first.diff.is_empty() {
        first.push(format!("no file exports a class `{class}` with an alarm, and none binds it"));
    }
    if !bindings.is_empty() {
        let uses: Vec<String> = removal
            .references
            .iter()
            .filter(|reference| bindings.contains(&reference.word))
            .map(|reference| format!("{}:{}", reference.path, reference.line))
            .collect();
        if !uses.is_empty() {
            first.push(format!("uses of the binding must go with it: {}", uses.join(", ")));
        }
    }
    first.push("the class must stay exported in this deploy, else it is refused (10064)".to_owned());
    first.push("an alarm that is left over fires once, finds no handler and is dropped".to_owned());
    let second = &mut removal.second.notes;
    if !configured {
        second.push(format!("no configuration declares `{class}`: add its deletion by hand, or the deploy is refused"));
    }
    second.push("deletes every object with its stored refresh token; no rollback crosses it".to_owned());
    second.push("not through version uploads or gradual deployments".to_owned());
    second.push("no other Worker may bind the class, else it is refused".to_owned());
}

fn diff(path: &str, old: &str, new: &str) -> String {
    if old == new {
        return String::new();
    }
    let (from, to) = (format!("a/{path}"), format!("b/{path}"));
    TextDiff::from_lines(old, new).unified_diff().context_radius(3).header(&from, &to).to_string()
}

/// Where `after`, which the diffs make of a file, still holds one of the words.
fn references(file: &File, after: &str, words: &BTreeSet<&str>) -> Vec<Reference> {
    if !words.iter().any(|word| after.contains(word)) {
        return Vec::new();
    }
    let (mut found, mut line) = (Vec::new(), 0);
    for change in TextDiff::from_lines(file.text.as_str(), after).iter_all_changes() {
        // A line that is new stands where the one before it stood.
        line = change.old_index().map_or(line, |index| index + 1);
        let text = change.value();
        if change.tag() == ChangeTag::Delete || is_deletion(text) {
            continue;
        }
        let of = |word: &&str| Reference { path: file.path.clone(), line: line.max(1), word: (*word).to_owned() };
        found.extend(words.iter().filter(|word| text.contains(**word)).map(of));
    }
    found
}

/// A line that declares the deletion must name the class, for ever.
fn is_deletion(line: &str) -> bool {
    let line = line.trim_start();
    line.contains("deleted_classes")
        || line.contains("new_sqlite_classes")
        || line.contains("new_classes")
        || line.contains("\"deleted\"")
        || line.starts_with("[exports.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: &str = r#"import { DurableObject } from "cloudflare:workers";

/** Keeps one token fresh. */
export class TokenManager extends DurableObject<Env> {
  async fetch(request: Request) {
    const text = `${"}"} { not a brace`;
    return new Response(text); // }
  }

  // Refreshes 10 minutes before the end.
  async alarm(info?: { retryCount: number }) {
    if (this.done) { return; }
    await this.refresh("}");
  }

  private done = false;
}

export default {
  async fetch(request: Request, env: Env) {
    return env.TOKEN_MANAGER.get(env.TOKEN_MANAGER.idFromName("x")).fetch(request);
  },
};
"#;

    fn files(config: (&str, &str)) -> Vec<File> {
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        vec![file(config.0, config.1), file("src/index.ts", WORKER)]
    }

    #[test]
    fn todays_form_gets_a_tombstone() {
        let config = r#"{
  "name": "gateway",
  "durable_objects": {
    "bindings": [
      { "name": "LIMITER", "class_name": "Limiter" },
      { "name": "TOKEN_MANAGER", "class_name": "TokenManager" }
    ]
  },
  "exports": {
    "TokenManager": { "type": "durable-object", "storage": "sqlite" }
  }
}
"#;
        let removal = removal(&files(("wrangler.jsonc", config)), "TokenManager");
        insta::assert_snapshot!("exports_first", removal.first.diff);
        insta::assert_snapshot!("exports_second", removal.second.diff);
        let left: Vec<_> = removal.references.iter().map(|r| (r.line, r.word.as_str())).collect();
        assert_eq!(left, [(21, "TOKEN_MANAGER")]);
        assert_eq!(WORKER.lines().nth(20).map(|line| line.contains("TOKEN_MANAGER")), Some(true));
        assert!(removal.first.notes[0].ends_with("src/index.ts:21"), "{:?}", removal.first.notes);
    }

    #[test]
    fn every_word_of_a_line_is_named_where_it_stands_now() {
        let config = r#"{ "durable_objects": { "bindings": [{ "name": "TM", "class_name": "TokenManager" }] } }"#;
        let script = "class TokenManager {\n  alarm() {}\n}\n\nuse(env.TM, \"TokenManager\", \"/admin/sync/nango\");\n";
        let mut files = files(("wrangler.json", config));
        files[1].text = script.to_owned();
        let found = removal(&files, "TokenManager").references;
        let found: Vec<_> = found.iter().map(|r| (r.path.as_str(), r.line, r.word.as_str())).collect();
        let at = |word| ("src/index.ts", 5, word);
        assert_eq!(found, [at("/admin/sync/nango"), at("TM"), at("TokenManager")]);
    }

    #[test]
    fn the_older_form_gets_a_migration() {
        let config = "name = \"gateway\"\n\n[[durable_objects.bindings]]\nname = \"TOKEN_MANAGER\"\n\
                      class_name = \"TokenManager\"\n\n[[migrations]]\ntag = \"v1\"\n\
                      new_sqlite_classes = [\"TokenManager\"]\n\n[env.staging]\nname = \"gateway-staging\"\n\n\
                      [[env.staging.durable_objects.bindings]]\nname = \"TOKEN_MANAGER\"\nclass_name = \"TokenManager\"\n";
        let removal = removal(&files(("wrangler.toml", config)), "TokenManager");
        insta::assert_snapshot!("migrations_first", removal.first.diff);
        insta::assert_snapshot!("migrations_second", removal.second.diff);
    }

    #[test]
    fn a_checkout_without_the_class_says_so() {
        let removal =
            removal(&[File { path: "src/index.ts".to_owned(), text: "export {};\n".to_owned() }], "TokenManager");
        assert_eq!((removal.first.diff.as_str(), removal.second.diff.as_str()), ("", ""));
        assert!(removal.first.notes[0].contains("no file exports") && removal.second.notes[0].contains("by hand"));
    }
}
