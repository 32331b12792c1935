//! The settings of a self-hosted Nango and of the application beside it, as they stand in their
//! environment files. Old walkthroughs name settings that the server does not read; each of those
//! mistakes is found by name. Values are never repeated: they are secrets.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Finding, Severity, Variables};

/// Reads `NAME=value` lines, with `export`, quotes and comments as shells and Docker take them.
///
/// # Errors
/// The number of the first line that is none of that.
pub fn parse(text: &str) -> Result<Variables, usize> {
    let mut found = Variables::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim().trim_start_matches("export ").trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or(n + 1)?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(n + 1);
        }
        let quoted = |quote: char| value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote));
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        found.insert(name.to_owned(), value.to_owned());
    }
    Ok(found)
}

const CHECK: &str = "nango-environment";

/// What is wrong with the settings of a self-hosted Nango of `replicas` servers.
pub fn nango(variables: &Variables, replicas: u32) -> Vec<Finding> {
    let get = |name: &str| variables.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let mut found = Vec::new();
    keys(variables, &mut found);
    match get("NANGO_ENCRYPTION_KEY").map(|key| STANDARD.decode(key).map(|bytes| bytes.len())) {
        None => found.push(Finding::error(
            CHECK,
            "`NANGO_ENCRYPTION_KEY` is not set: credentials lie in the database in clear, and connect sessions fail",
            "set it to base64 of 32 random bytes (`openssl rand -base64 32`) before the first connection; it cannot be changed later",
        )),
        Some(Ok(32)) => {}
        Some(_) => found.push(Finding::error(
            CHECK,
            "`NANGO_ENCRYPTION_KEY` is not base64 of 32 bytes",
            "make it with `openssl rand -base64 32`; hex digits are another format",
        )),
    }
    match get("NANGO_SERVER_URL") {
        None => found.push(Finding::error(
            CHECK,
            "`NANGO_SERVER_URL` is not set: callbacks and links point at localhost",
            "set it to the public https address",
        )),
        Some(url) if !url.starts_with("https://") => found.push(Finding::error(
            CHECK,
            "`NANGO_SERVER_URL` is not an https address, and providers refuse such callbacks",
            "set it to the public https address",
        )),
        Some(_) => {}
    }
    if get("NANGO_PUBLIC_CONNECT_URL").is_none() {
        found.push(Finding::error(
            CHECK,
            "`NANGO_PUBLIC_CONNECT_URL` is not set: people cannot reach the Connect UI",
            "give the Connect UI (port 3009) a host name of its own and set it, with `FLAG_SERVE_CONNECT_UI=true`",
        ));
    } else if get("FLAG_SERVE_CONNECT_UI") != Some("true") {
        found.push(Finding::warning(
            CHECK,
            "`FLAG_SERVE_CONNECT_UI` is not `true`: the server does not serve the Connect UI",
            "set it to `true`, or serve the Connect UI yourself",
        ));
    }
    if get("FLAG_AUTH_ENABLED") == Some("false") || get("NANGO_DASHBOARD_USERNAME").is_none() {
        found.push(Finding::warning(
            CHECK,
            "the dashboard has no login: whoever reaches it sees every connection",
            "set `NANGO_DASHBOARD_USERNAME` and `NANGO_DASHBOARD_PASSWORD`, or keep it off the network",
        ));
    }
    if get("NANGO_DB_HOST").is_some() && get("RECORDS_DATABASE_URL").is_none() {
        found.push(Finding::warning(
            CHECK,
            "`RECORDS_DATABASE_URL` is not set: with an external database it falls back to the bundled one",
            "set it beside `NANGO_DB_HOST`",
        ));
    }
    for (name, _) in variables.iter().filter(|(name, _)| name.starts_with("NEXT_PUBLIC_")) {
        found.push(Finding::warning(
            CHECK,
            format!("`{name}` is a setting of the application, not of Nango"),
            "move it to the application",
        ));
    }
    if found.is_empty() {
        found.push(Finding::ok(CHECK, format!("{} settings, none of the known mistakes", variables.len())));
    }
    found.push(redis(get("NANGO_REDIS_URL").is_some(), replicas));
    found
}

fn keys(variables: &Variables, found: &mut Vec<Finding>) {
    if variables.contains_key("NANGO_SECRET_KEY") {
        found.push(Finding::error(
            CHECK,
            "`NANGO_SECRET_KEY` is not read by the server",
            "make a key in the dashboard, or set `NANGO_SECRET_KEY_<ENVIRONMENT>` to a UUID and pass it into the container",
        ));
    }
    for (name, value) in variables {
        if name.starts_with("NANGO_SECRET_KEY_") && !is_uuid(value) {
            let hex = value.len() == 64 && value.chars().all(|c| c.is_ascii_hexdigit());
            let seen = if hex { "64 hex digits" } else { "something else" };
            found.push(Finding::error(
                CHECK,
                format!("`{name}` must be a UUID and holds {seen}: every call is refused (401)"),
                "make one with `uuidgen`",
            ));
        }
    }
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

fn redis(set: bool, replicas: u32) -> Finding {
    let check = "nango-replicas";
    match (set, replicas) {
        (true, n) => Finding::ok(check, format!("{n} servers, with `NANGO_REDIS_URL`")),
        (false, 0 | 1) => Finding::new(
            check,
            Severity::Info,
            "one server, without Redis",
            "set `NANGO_REDIS_URL` before a second one starts",
        ),
        (false, n) => Finding::error(
            check,
            format!(
                "{n} servers without `NANGO_REDIS_URL`: refresh locks are not shared, so two may refresh one grant"
            ),
            "set it, or run one server",
        ),
    }
}

/// What is wrong with the settings of the application that talks to Nango.
pub fn application(variables: &Variables) -> Vec<Finding> {
    const CHECK: &str = "app-environment";
    let mut found = Vec::new();
    for name in ["NEXT_PUBLIC_NANGO_API_URL", "NEXT_PUBLIC_NANGO_CONNECT_URL"] {
        match variables.get(name).map(String::as_str) {
            None | Some("") => found.push(Finding::error(
                CHECK,
                format!("`{name}` is not set"),
                "set it: one is Nango's public address, the other that of its Connect UI",
            )),
            Some(url) if !url.starts_with("https://") => found.push(Finding::error(
                CHECK,
                format!("`{name}` is not an https address"),
                "browsers and providers want https",
            )),
            Some(_) => {}
        }
    }
    if variables.contains_key("NEXT_PUBLIC_NANGO_API_URL")
        && variables.get("NEXT_PUBLIC_NANGO_API_URL") == variables.get("NEXT_PUBLIC_NANGO_CONNECT_URL")
    {
        found.push(Finding::error(
            CHECK,
            "Nango's API and its Connect UI have the same address",
            "they listen on two ports (3003 and 3009) and need two host names",
        ));
    }
    match variables.get("NANGO_SECRET_KEY").map(String::as_str) {
        None | Some("") => found.push(Finding::error(
            CHECK,
            "`NANGO_SECRET_KEY` is not set",
            "set it to the key of the environment at Nango",
        )),
        Some(key) if !is_uuid(key) => found.push(Finding::error(
            CHECK,
            "`NANGO_SECRET_KEY` is not a UUID, which is the only form that Nango takes",
            "copy the key from Nango's Environment Settings",
        )),
        Some(_) => {}
    }
    for name in variables.keys().filter(|name| name.starts_with("NEXT_PUBLIC_") && name.contains("SECRET")) {
        found.push(Finding::error(
            CHECK,
            format!("`{name}` is public: it ends up in every browser"),
            "take `NEXT_PUBLIC_` off its name, and replace the key",
        ));
    }
    if found.is_empty() {
        found.push(Finding::ok(CHECK, "both addresses and the key are there"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "NANGO_SECRET_KEY_PROD=3a0c9f6e-52b8-4ad7-9a5e-0f6d1c2b3a49\n\
        NANGO_ENCRYPTION_KEY='AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='\n# a comment\n\
        export NANGO_SERVER_URL=\"https://nango.example.com\"\nNANGO_PUBLIC_CONNECT_URL=https://connect.example.com\n\
        FLAG_SERVE_CONNECT_UI=true\nNANGO_DASHBOARD_USERNAME=a\nNANGO_DASHBOARD_PASSWORD=b\n";

    fn errors(findings: &[Finding]) -> Vec<&str> {
        findings.iter().filter(|f| f.severity == Severity::Error).map(|f| f.evidence.as_str()).collect()
    }

    #[test]
    fn good_settings_pass() {
        let found = nango(&parse(GOOD).unwrap(), 1);
        assert!(found.iter().all(|f| f.severity <= Severity::Info), "{found:#?}");
    }

    #[test]
    fn the_mistakes_of_an_old_walkthrough_are_found_by_name() {
        let old = "NANGO_DB_HOST=db.example.com\nNANGO_DB_SSL=true\nNANGO_SERVER_URL=https://nango.example.com\n\
                   NANGO_SECRET_KEY=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";
        let found = nango(&parse(old).unwrap(), 2);
        let errors = errors(&found);
        for name in ["`NANGO_SECRET_KEY`", "`NANGO_ENCRYPTION_KEY`", "`NANGO_PUBLIC_CONNECT_URL`", "`NANGO_REDIS_URL`"]
        {
            assert!(errors.iter().any(|e| e.contains(name)), "{name}: {errors:#?}");
        }
        let all = format!("{found:?}");
        assert!(all.contains("RECORDS_DATABASE_URL") && !all.contains("0123456789abcdef"), "{all}");
    }

    #[test]
    fn keys_of_another_format_and_a_shared_address_are_found() {
        let bad = GOOD.replace("3a0c9f6e-52b8-4ad7-9a5e-0f6d1c2b3a49", &"ab".repeat(32)).replace("AAAA=", "AAAA");
        let found = nango(&parse(&bad).unwrap(), 1);
        assert!(errors(&found).iter().any(|e| e.contains("64 hex digits")), "{found:#?}");
        let app = "NEXT_PUBLIC_NANGO_API_URL=https://n\nNEXT_PUBLIC_NANGO_CONNECT_URL=https://n\nNANGO_SECRET_KEY=ab\n\
                   NEXT_PUBLIC_NANGO_SECRET=x\n";
        assert_eq!(errors(&application(&parse(app).unwrap())).len(), 3);
    }

    #[test]
    fn a_line_that_is_no_setting_is_named_by_its_number() {
        assert_eq!(parse("A=1\n\nnot a setting\n"), Err(3));
        assert_eq!(parse("A B=1"), Err(1));
    }
}
