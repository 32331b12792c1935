//! Takes a class out of a Worker's configuration: its bindings first, then the class itself, by a
//! tombstone in `exports` or by a migration, whichever the file uses. The styles exclude each other.

/// Whether a file is a Worker's configuration.
pub(super) fn is_config(path: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.starts_with("wrangler") && (file.ends_with(".toml") || file.ends_with(".json") || file.ends_with(".jsonc"))
}

/// The names under which the class is bound.
pub(super) fn binding_names(text: &str, class: &str) -> Vec<String> {
    let mut names: Vec<String> = bindings(text, class)
        .into_iter()
        .filter_map(|(from, to)| {
            let block = &text[from..to];
            let at = find_key(block, "name")?;
            Some(quoted(&block[at..])?.to_owned())
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// `text` without the bindings of the class.
pub(super) fn without_binding(text: &str, class: &str, toml: bool) -> String {
    let mut out = text.to_owned();
    while let Some(&(from, to)) = bindings(&out, class).first() {
        out =
            if toml && out[from..].starts_with("[[") { cut_lines(&out, from, to) } else { cut_element(&out, from, to) };
    }
    out
}

/// `text` with the deletion of the class declared; `None` when the file does not declare the class.
pub(super) fn with_deletion(text: &str, class: &str, toml: bool) -> Option<String> {
    if toml { toml_deletion(text, class) } else { json_deletion(text, class) }
}

/// The span of each binding of the class: a `[[…bindings]]` table, or an inline `{…}`.
fn bindings(text: &str, class: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(n) = text[from..].find("class_name") {
        let at = from + n;
        from = at + "class_name".len();
        if quoted(&text[from..]).is_none_or(|name| name != class) {
            continue;
        }
        let header = text[..at].rfind("\n[").map(|n| n + 1).or_else(|| text.starts_with('[').then_some(0));
        let brace = text[..at].rfind('{');
        let in_table = header.filter(|header| brace.is_none_or(|brace| brace < *header));
        match (in_table, brace) {
            (Some(header), _) if text[header..].lines().next().is_some_and(|line| line.contains("bindings]]")) => {
                let end = text[at..].find("\n[").map_or(text.len(), |n| at + n + 1);
                found.push((header, end));
            }
            (None, Some(brace)) => {
                if let Some(n) = text[at..].find('}') {
                    found.push((brace, at + n + 1));
                }
            }
            _ => {}
        }
    }
    found
}

/// Where the value of a key begins, after its `=` or `:`.
fn find_key(block: &str, key: &str) -> Option<usize> {
    block.match_indices(key).find_map(|(at, _)| {
        let starts = !block[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = block[at + key.len()..].trim_start_matches('"').trim_start();
        (starts && rest.starts_with(['=', ':'])).then_some(at + key.len())
    })
}

/// The first quoted value after a key that is followed by `=` or `:`.
fn quoted(text: &str) -> Option<&str> {
    let text = text.trim_start_matches('"').trim_start().strip_prefix(['=', ':'])?.trim_start();
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    text[1..].split(quote).next()
}

/// Without whole lines, and without one of the blank lines around them.
fn cut_lines(text: &str, from: usize, to: usize) -> String {
    format!("{}{}", &text[..from], &text[to..])
}

/// Without an element of a list, its comma, and its line when nothing but a comment is on it.
fn cut_element(text: &str, from: usize, to: usize) -> String {
    let (before, after) = (&text[..from], &text[to..]);
    let own_line = before.rfind('\n').filter(|n| before[n + 1..].trim().is_empty());
    if let Some(rest) = after.trim_start().strip_prefix(',') {
        return match own_line {
            Some(n) => {
                let rest = without_comment(rest);
                format!("{}{}", &before[..n + 1], rest.strip_prefix('\n').unwrap_or(rest))
            }
            None => format!("{before}{}", rest.trim_start_matches(' ')),
        };
    }
    let after = if own_line.is_some() { without_comment(after) } else { after };
    let before = before.trim_end();
    format!("{}{after}", before.strip_suffix(',').unwrap_or(before))
}

/// From the end of the line on, when nothing but a comment is left on it.
fn without_comment(rest: &str) -> &str {
    let (line, next) = rest.split_at(rest.find('\n').unwrap_or(rest.len()));
    let line = line.trim();
    let comment = line.starts_with("//") || line.starts_with('#') || line.starts_with("/*") && line.ends_with("*/");
    if line.is_empty() || comment { next } else { rest }
}

fn toml_deletion(text: &str, class: &str) -> Option<String> {
    let header = format!("[exports.{class}]");
    if let Some(at) = text.find(&header) {
        let body = at + header.len();
        let end = text[body..].find("\n[").map_or(text.len(), |n| body + n + 1);
        let rest = &text[end..];
        let gap = if rest.is_empty() { "" } else { "\n" };
        return Some(format!("{}\ntype = \"durable-object\"\nstate = \"deleted\"\n{gap}{rest}", &text[..body]));
    }
    let last = text.rfind("[[migrations]]")?;
    if !text.contains(class) {
        return None;
    }
    let end = text[last..].find("\n[").map_or(text.len(), |n| last + n + 1);
    let tag = next_tag(&text[last..end]);
    let (before, rest) = text.split_at(end);
    let gap = if rest.is_empty() { "" } else { "\n" };
    let block = format!("[[migrations]]\ntag = \"{tag}\"\ndeleted_classes = [\"{class}\"]\n{gap}");
    Some(format!("{}\n\n{block}{rest}", before.trim_end()))
}

fn json_deletion(text: &str, class: &str) -> Option<String> {
    if let Some(exports) = text.find("\"exports\"") {
        let key = format!("\"{class}\"");
        if let Some(at) = text[exports..].find(&key).map(|n| exports + n + key.len()) {
            let open = at + text[at..].find('{')?;
            let close = open + text[open..].find('}')? + 1;
            let tombstone = "{ \"type\": \"durable-object\", \"state\": \"deleted\" }";
            return Some(format!("{}{tombstone}{}", &text[..open], &text[close..]));
        }
    }
    let key = text.find("\"migrations\"")?;
    if !text[key..].contains(class) {
        return None;
    }
    let open = key + text[key..].find('[')?;
    let mut depth = 0;
    let close = text[open..].char_indices().find_map(|(n, c)| {
        depth += match c {
            '[' => 1,
            ']' => -1,
            _ => 0,
        };
        (depth == 0).then_some(open + n)
    })?;
    let tag = next_tag(&text[open..close]);
    let last = text[..close].trim_end();
    let indent: String = last[last.rfind('\n').map_or(0, |n| n + 1)..].chars().take_while(|c| *c == ' ').collect();
    let element = format!("{{ \"tag\": \"{tag}\", \"deleted_classes\": [\"{class}\"] }}");
    Some(format!("{},\n{indent}{element}{}", last.trim_end_matches(','), &text[last.len()..]))
}

/// The tag after the last one: its number plus one, else the tag and `-2`.
fn next_tag(block: &str) -> String {
    let last = block.match_indices("tag").filter_map(|(at, _)| quoted(&block[at + 3..])).last().unwrap_or("v0");
    let digits = last.len() - last.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (name, number) = last.split_at(last.len() - digits);
    match number.parse::<u64>() {
        Ok(n) => format!("{name}{}", n.saturating_add(1)),
        Err(_) => format!("{last}-2"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_next_tag_counts_on() {
        assert_eq!(next_tag("tag = \"v9\""), "v10");
        assert_eq!(next_tag("tag = \"first\""), "first-2");
        assert_eq!(next_tag(r#""tag": "v1" }, { "tag": "v2" "#), "v3");
    }

    #[test]
    fn a_comment_behind_a_binding_goes_with_it() {
        let binding = "    { \"name\": \"T\", \"class_name\": \"T\" }";
        for end in [" // armed", ", // armed", ", /* armed */", ""] {
            let first = format!("[\n{binding}{end}\n    {{ \"name\": \"L\" }}\n]\n");
            if end.starts_with(',') {
                assert_eq!(without_binding(&first, "T", false), "[\n    { \"name\": \"L\" }\n]\n", "{end}");
            } else {
                let last = format!("[\n    {{ \"name\": \"L\" }}, // stays\n{binding}{end}\n]\n");
                let left = without_binding(&last, "T", false);
                assert_eq!(left, "[\n    { \"name\": \"L\" }, // stays\n]\n", "{end}");
            }
        }
    }

    #[test]
    fn a_migration_in_json_is_added_after_the_last_one() {
        let text = "{\n  \"migrations\": [\n    { \"tag\": \"v1\", \"new_classes\": [\"T\"] }\n  ]\n}\n";
        let expected = "{\n  \"migrations\": [\n    { \"tag\": \"v1\", \"new_classes\": [\"T\"] },\n    \
                        { \"tag\": \"v2\", \"deleted_classes\": [\"T\"] }\n  ]\n}\n";
        assert_eq!(with_deletion(text, "T", false).as_deref(), Some(expected));
        assert_eq!(with_deletion(text, "Other", false), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[a-z{}\\[\\]\"=:,\n é]{0,120}", toml in any::<bool>()) {
            let text = format!("{text}class_name = \"T\"{text}[[migrations]]{text}\"migrations\"{text}");
            binding_names(&text, "T");
            with_deletion(&without_binding(&text, "T", toml), "T", toml);
        }
    }
}
