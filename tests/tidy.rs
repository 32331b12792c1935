//! Rules about the code itself.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules that decide and never act.
const PURE: [&str; 4] = ["src/domain", "src/catalogue", "src/inventory", "src/plan"];

/// What the pure core must not mention: I/O, clocks, chance, async, output.
/// `std::io::Write` over memory is fine, what it could be pointed at is not.
const FORBIDDEN: [&str; 20] = [
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "stdin(",
    "stdout(",
    "stderr(",
    "File::",
    "std::thread",
    "SystemTime",
    "Instant",
    "now_utc",
    "tokio",
    "reqwest",
    "sqlx",
    "axum",
    "getrandom",
    "async fn",
    "println!",
    "eprintln!",
];

fn sources(root: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(root)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    assert!(!found.is_empty(), "{root} has no sources");
    found.sort();
    found
}

/// The code of a file without comments and without its unit tests.
fn code_of(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_pure_core_has_no_io_no_clock_and_no_async() {
    let mut broken = Vec::new();
    for root in PURE {
        for path in sources(root) {
            let code = code_of(&path);
            for word in FORBIDDEN {
                if code.contains(word) {
                    broken.push(format!("{} mentions `{word}`", path.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Layers, lowest first: a module may use what stands before it and its own row.
#[test]
fn layers_only_look_down() {
    let layers: [(&str, &[&str]); 8] = [
        (
            "src/domain",
            &[
                "catalogue",
                "inventory",
                "plan",
                "engine",
                "store",
                "clients",
                "sandbox",
                "shim",
                "rehearse",
                "cli",
                "ports",
            ],
        ),
        (
            "src/catalogue",
            &["inventory", "plan", "engine", "store", "clients", "sandbox", "shim", "rehearse", "cli", "ports"],
        ),
        ("src/inventory", &["plan", "engine", "store", "clients", "sandbox", "shim", "rehearse", "cli"]),
        ("src/plan", &["engine", "store", "clients", "sandbox", "shim", "rehearse", "cli", "ports"]),
        ("src/store", &["engine", "clients", "sandbox", "shim", "rehearse", "cli"]),
        ("src/clients", &["engine", "store", "sandbox", "shim", "rehearse", "cli"]),
        // The product must not know the world that it is tested in.
        ("src/engine", &["clients", "sandbox", "shim", "rehearse", "cli"]),
        // The judge must not know the code that it judges.
        ("src/sandbox", &["engine", "store", "shim", "rehearse", "cli"]),
    ];
    let mut broken = Vec::new();
    for (root, above) in layers {
        for path in sources(root) {
            let code = code_of(&path);
            for module in above {
                if code.contains(&format!("crate::{module}::")) || code.contains(&format!("crate::{module};")) {
                    broken.push(format!("{} uses `crate::{module}`", path.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_clock_is_read_only_by_the_command_line() {
    let allowed = ["src/cli", "src/main.rs", "src/sandbox/live.rs"];
    let mut broken = Vec::new();
    for path in sources("src") {
        let shown = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string();
        if allowed.iter().any(|a| shown.starts_with(a)) {
            continue;
        }
        let code = code_of(&path);
        if code.contains("SystemTime::now") || code.contains("Instant::now") || code.contains("now_utc") {
            broken.push(shown);
        }
    }
    assert!(broken.is_empty(), "these read a clock: {}", broken.join(", "));
}
