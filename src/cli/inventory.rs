//! `cutover inventory`: read, check and convert inventories, from files and from Nango.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::config::Config;
use super::plan::wall_clock;
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::catalogue::Catalogue;
use crate::clients;
use crate::domain::triplet::Part;
use crate::exit;
use crate::inventory::{self, Diagnostics, Disagreement, Inventory, LIVE_NAME, Source};
use crate::ports::{ApiError, ApiErrorKind, ApiResult, SourceRead};

/// The largest inventory that is read, in bytes. 100,000 connections are about 10 MB; what is far
/// beyond that is the wrong file, and reading it would only use up the memory.
const INVENTORY_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// How often a list is asked for at Nango when it limits the rate.
const ATTEMPTS_MAX: u32 = 5;

/// Read, check and convert inventories
///
/// An inventory lists which Nango connection feeds which triplets: as a Markdown table inside a
/// larger document, as CSV, or as JSON. The name `nango` stands for what Nango itself lists. Several files become one: the first one given wins, and
/// where they disagree is told.
#[derive(clap::Args, Debug)]
pub struct InventoryArgs {
    #[command(subcommand)]
    command: InventoryCommand,
}

#[derive(clap::Subcommand, Debug)]
enum InventoryCommand {
    /// Show the typed rows of an inventory
    #[command(after_help = "\
Examples:
  cutover inventory read fixtures/inventories/adr-038.md
  cutover inventory read --tenant kahuna --tenant pointfield docs/adr/ADR-038.md
  cutover inventory read --format json prod.csv extra.json")]
    Read(ReadArgs),
    /// Look for everything that is wrong with an inventory
    ///
    /// Exits with 0 when nothing is wrong, 2 when a file cannot be read as an inventory, and 3 when
    /// several files disagree.
    #[command(after_help = "\
Examples:
  cutover inventory check fixtures/inventories/adr-038.md
  cutover inventory check --format json prod.csv
  cutover inventory check prod.csv adr-038.md
  cutover inventory check nango prod.csv")]
    Check(CheckArgs),
    /// Write an inventory in another format
    #[command(after_help = "\
Examples:
  cutover inventory convert --format csv fixtures/inventories/adr-038.md
  cutover inventory convert --format markdown --out inventory.md prod.csv
  cat prod.csv | cutover inventory convert --input-format csv --format json -")]
    Convert(ConvertArgs),
}

#[derive(clap::Args, Debug)]
struct Input {
    /// Files to read, `-` for standard input, `nango` for Nango; the first one wins where they disagree
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Tenant of rows in an inventory that has no tenant column (can be repeated)
    #[arg(long = "tenant", value_name = "TENANT", value_parser = parse_tenant)]
    tenants: Vec<Part>,
    /// Format of the files, when neither name nor content tell
    #[arg(long, value_enum, value_name = "FORMAT")]
    input_format: Option<FileFormat>,
}

#[derive(clap::Args, Debug)]
struct ReadArgs {
    #[command(flatten)]
    input: Input,
    /// Shape of the report
    #[arg(long, value_enum, default_value = "text")]
    format: OutputFormat,
}

#[derive(clap::Args, Debug)]
struct CheckArgs {
    #[command(flatten)]
    input: Input,
    /// Shape of the report
    #[arg(long, value_enum, default_value = "text")]
    format: OutputFormat,
}

#[derive(clap::Args, Debug)]
struct ConvertArgs {
    #[command(flatten)]
    input: Input,
    /// Format to write
    #[arg(long, value_enum)]
    format: FileFormat,
    /// Write to this file instead of standard output; nothing is written when the input is bad
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum FileFormat {
    Markdown,
    Csv,
    Json,
}

impl From<FileFormat> for inventory::Format {
    fn from(format: FileFormat) -> Self {
        match format {
            FileFormat::Markdown => Self::Markdown,
            FileFormat::Csv => Self::Csv,
            FileFormat::Json => Self::Json,
        }
    }
}

pub(super) fn parse_tenant(text: &str) -> Result<Part, String> {
    Part::new(text).map_err(|error| error.to_string())
}

pub fn run(args: InventoryArgs, ui: &Ui) -> CommandResult {
    match args.command {
        InventoryCommand::Read(ReadArgs { input, format }) => report(&input, format, ui, |loaded| {
            let mut out = table(&loaded.inventory);
            out.push_str(&format!("\n{}\n", summary(&loaded.inventory)));
            loaded.disagreements.iter().for_each(|d| ui.note(&format!("note: {d}")));
            (exit::OK, out)
        }),
        InventoryCommand::Check(CheckArgs { input, format }) => report(&input, format, ui, |loaded| {
            let lines: Vec<String> = loaded.disagreements.iter().map(|d| format!("{d}\n")).collect();
            let code = if lines.is_empty() { exit::OK } else { exit::FAIL };
            let verdict = if lines.is_empty() { "no problems" } else { "the files disagree" };
            (code, format!("{}{}: {verdict}\n", lines.concat(), summary(&loaded.inventory)))
        }),
        InventoryCommand::Convert(ConvertArgs { input, format, out }) => {
            let loaded = input.load(ui)?.map_err(|diagnostics| CommandError::usage(diagnostics.to_string()))?;
            loaded.disagreements.iter().for_each(|d| ui.note(&format!("note: {d}")));
            let text = match format {
                FileFormat::Markdown => inventory::to_markdown(&loaded.inventory),
                FileFormat::Csv => inventory::to_csv(&loaded.inventory),
                FileFormat::Json => inventory::to_json(&loaded.inventory),
            };
            match out {
                Some(path) => {
                    write_whole(&path, &text)?;
                    ui.note(&format!("wrote {}: {}", path.display(), summary(&loaded.inventory)));
                }
                None => ui.print(&text),
            }
            Ok(exit::OK)
        }
    }
}

/// Several inventories as one, and where they disagree.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub inventory: Inventory,
    pub disagreements: Vec<Disagreement>,
}

/// What the source `nango` needs beside its name.
#[derive(Clone, Copy, Debug)]
pub struct Live<'a> {
    /// Says which providers an integration feeds.
    pub catalogue: &'a Catalogue,
    /// The configuration file, when one was named.
    pub config: Option<&'a Path>,
}

impl Input {
    /// The outer error is a source that cannot be read, the inner one a source that is not an inventory.
    fn load(&self, ui: &Ui) -> Result<Result<Loaded, Diagnostics>, CommandError> {
        let live = Live { catalogue: &Catalogue::built_in(), config: ui.config.as_deref() };
        load(&self.files, &self.tenants, self.input_format.map(Into::into), live)
    }
}

/// Reads and merges inventories, the first one winning. `-` is standard input, `nango` is Nango;
/// `tenants` are those of inventories without a tenant column.
///
/// # Errors
/// Exit code 2 with every diagnostic of every file, or when a file cannot be read; 1 when Nango
/// does not answer.
pub fn load_files(
    paths: &[String],
    tenants: &[Part],
    format: Option<inventory::Format>,
    live: Live<'_>,
) -> Result<Inventory, CommandError> {
    match load(paths, tenants, format, live)? {
        Ok(loaded) => Ok(loaded.inventory),
        Err(diagnostics) => Err(CommandError::usage(diagnostics.to_string())),
    }
}

fn load(
    paths: &[String],
    tenants: &[Part],
    format: Option<inventory::Format>,
    live: Live<'_>,
) -> Result<Result<Loaded, Diagnostics>, CommandError> {
    let mut sources = Vec::with_capacity(paths.len());
    let mut wrong: Option<Diagnostics> = None;
    for path in paths {
        let (name, read) = if path == LIVE_NAME {
            (LIVE_NAME.to_owned(), read_live(live)?)
        } else {
            let place = Place::of(path);
            let (name, bytes) = (place.name(), place.read()?);
            let read = inventory::read(&Source { name: &name, bytes: &bytes, format, tenants });
            (name, read)
        };
        match read {
            Ok(inventory) => sources.push((name, inventory)),
            Err(diagnostics) => match &mut wrong {
                Some(all) => all.append(diagnostics),
                None => wrong = Some(diagnostics),
            },
        }
    }
    Ok(match wrong {
        Some(diagnostics) => Err(diagnostics),
        None => {
            let (inventory, disagreements) = inventory::merge(sources);
            Ok(Loaded { inventory, disagreements })
        }
    })
}

/// Asks Nango for its lists of connections and integrations.
fn read_live(live: Live<'_>) -> Result<Result<Inventory, Diagnostics>, CommandError> {
    let cannot = || CommandError::failed("cannot read the inventory from Nango");
    let endpoint = Config::load(live.config)?.nango()?;
    let nango = clients::source_read(endpoint, Arc::new(wall_clock))
        .map_err(|error| CommandError::usage("cannot use the settings of Nango").because(&error))?;
    super::runtime()?.block_on(async {
        let hint = "`cutover config` shows where `CUTOVER_NANGO_URL` and `CUTOVER_NANGO_KEY` come from";
        let failed = |error| cannot().because(&error).hint(hint);
        let connections = patiently(async || nango.list_connections().await).await.map_err(failed)?;
        let integrations = patiently(async || nango.list_integrations().await).await.map_err(failed)?;
        Ok(inventory::from_live(&connections, &integrations, live.catalogue))
    })
}

/// Asks again while Nango limits the rate, as long as it says when, a minute at most each time.
async fn patiently<T>(ask: impl AsyncFn() -> ApiResult<T>) -> ApiResult<T> {
    for _ in 1..ATTEMPTS_MAX {
        match ask().await {
            Err(ApiError { kind: ApiErrorKind::RateLimited { retry_after_ms }, .. }) => {
                let wait = retry_after_ms.unwrap_or(0).clamp(1_000, 60_000);
                tokio::time::sleep(Duration::from_millis(wait.unsigned_abs())).await;
            }
            other => return other,
        }
    }
    ask().await
}

/// Where an inventory comes from.
enum Place<'a> {
    Stdin,
    File(&'a Path),
}

impl<'a> Place<'a> {
    fn of(argument: &'a str) -> Self {
        if argument == "-" { Self::Stdin } else { Self::File(Path::new(argument)) }
    }

    fn name(&self) -> String {
        match self {
            Self::Stdin => "<stdin>".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }

    fn read(&self) -> Result<Vec<u8>, CommandError> {
        let unreadable = |error: io::Error| {
            CommandError::usage(format!("cannot read inventory `{}`", self.name()))
                .because(&error)
                .hint("give a Markdown, CSV or JSON file, `-` for standard input, or `nango`")
        };
        let mut bytes = Vec::new();
        let read = match self {
            Self::Stdin => io::stdin().lock().take(INVENTORY_BYTES_MAX + 1).read_to_end(&mut bytes),
            Self::File(path) => {
                File::open(path).and_then(|file| file.take(INVENTORY_BYTES_MAX + 1).read_to_end(&mut bytes))
            }
        };
        read.map_err(unreadable)?;
        if bytes.len() as u64 > INVENTORY_BYTES_MAX {
            let mib = INVENTORY_BYTES_MAX / (1024 * 1024);
            return Err(CommandError::usage(format!("inventory `{}` has more than {mib} MiB", self.name())));
        }
        Ok(bytes)
    }
}

/// Runs a command whose result can be text or JSON; errors become JSON too when that was asked for.
fn report(input: &Input, format: OutputFormat, ui: &Ui, text: impl FnOnce(&Loaded) -> (u8, String)) -> CommandResult {
    let result = input.load(ui);
    if format == OutputFormat::Text {
        let loaded = result?.map_err(|diagnostics| CommandError::usage(diagnostics.to_string()))?;
        let (code, text) = text(&loaded);
        ui.print(&text);
        return Ok(code);
    }
    let (code, value) = match result {
        Ok(Ok(loaded)) => {
            let (code, _) = text(&loaded);
            let disagree = loaded.disagreements.len();
            let reason = if disagree == 0 { "no problems".to_owned() } else { counted(disagree, "disagreement") };
            let value = json!({
                "exit_code": code,
                "reason": reason,
                "connections": loaded.inventory.rows.len(),
                "triplets": loaded.inventory.triplet_count(),
                "rows": loaded.inventory.rows,
                "disagreements": loaded.disagreements,
            });
            (code, value)
        }
        Ok(Err(diagnostics)) => {
            let reason = counted(diagnostics.total(), "problem");
            let Diagnostics { diagnostics, more } = diagnostics;
            let value = json!({
                "exit_code": exit::USAGE,
                "reason": reason,
                "diagnostics": diagnostics,
                "more": more,
            });
            (exit::USAGE, value)
        }
        Err(error) => {
            let reason = error.to_string();
            (error.code(), json!({"exit_code": error.code(), "reason": reason, "diagnostics": [], "more": 0}))
        }
    };
    ui.print(&format!("{value:#}\n"));
    Ok(code)
}

/// `1 problem`, `2 problems`
fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `20 connections, 28 triplets, 2 tenants`
fn summary(inventory: &Inventory) -> String {
    let mut tenants: Vec<&Part> = inventory.rows.iter().map(|row| &row.tenant).collect();
    tenants.dedup();
    format!(
        "{}, {}, {}",
        counted(inventory.rows.len(), "connection"),
        counted(inventory.triplet_count(), "triplet"),
        counted(tenants.len(), "tenant")
    )
}

/// Rows in aligned columns. The providers come last because one connection may feed many.
fn table(inventory: &Inventory) -> String {
    let header = ["TENANT", "INTEGRATION KEY", "ACCOUNT", "AUTH MODE", "CONNECTION ID", "PROVIDERS"].map(str::to_owned);
    let cells = |row: &inventory::Row| {
        let providers: Vec<&str> = row.providers.iter().map(Part::as_str).collect();
        [
            row.tenant.to_string(),
            row.integration_key.clone(),
            row.account.to_string(),
            row.auth_mode.clone().unwrap_or_else(|| "-".to_owned()),
            row.connection_id.clone(),
            providers.join(", "),
        ]
    };
    let lines: Vec<[String; 6]> = std::iter::once(header).chain(inventory.rows.iter().map(cells)).collect();
    let mut widths = [0; 6];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.len());
        }
    }
    let mut out = String::new();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(padded.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// Writes a file whole or not at all: a reader never sees half of it, and a full disk leaves the old one.
pub(super) fn write_whole(path: &Path, text: &str) -> Result<(), CommandError> {
    let partial = partial(path);
    std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path)).map_err(|error| {
        // What is left of it is of no use; that it may not exist is no second error.
        let _ = std::fs::remove_file(&partial);
        cannot_write(path).because(&error)
    })
}

/// Whether [`write_whole`] can write there, before something is done that cannot be taken back.
///
/// # Errors
/// When the path is a folder, or nothing can be made beside it.
pub(super) fn check_writable(path: &Path) -> Result<(), CommandError> {
    if path.is_dir() {
        return Err(cannot_write(path).hint("name a file: this is a folder"));
    }
    let partial = partial(path);
    std::fs::write(&partial, "")
        .and_then(|()| std::fs::remove_file(&partial))
        .map_err(|error| cannot_write(path).because(&error).hint("nothing was done; name a file that can be written"))
}

fn partial(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    PathBuf::from(partial)
}

fn cannot_write(path: &Path) -> CommandError {
    CommandError::failed(format!("cannot write `{}`", path.display()))
}
