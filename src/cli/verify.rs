//! `cutover verify`: compare two sides key by key.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::json;

use super::{CommandError, CommandResult, Ui};
use crate::domain::time::{Timestamp, parse_duration_ms};
use crate::exit;
use crate::verify::{
    Counts, Diagnostics, Dump, Finding, Ignore, Keys, MEMORY_MIN, Meter, Options, Order, Outcome, Report, Rules,
    RunFile, RunFileError, Settling, Source, Task, VerifyError, default_ignores, verify,
};

/// Compare two sides key by key
///
/// Each side is a dump of a KV namespace: a JSON array as `wrangler kv` reads and writes it, JSON
/// lines, or CSV with a header; as it is or compressed with gzip or zstd; `-` for standard input.
/// Entries are compared by meaning: secrets as such, expiries within a tolerance, scopes as sets,
/// everything else as JSON. No secret is ever printed or written to disk.
///
/// Exits with 0 when nothing differs, 3 when something does, 4 when nothing differs but not
/// everything could be judged, 1 when not everything could be read, and 5 when a side has changed
/// since the run that is resumed.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Marks: = match, - missing on the right, + extra on the right, * differs,
       ! cannot be judged or read, ~ may still settle

Examples:
  cutover verify source.json target.json
  cutover verify source.jsonl.zst target.jsonl.zst --combined report.txt --missing missing.txt
  cutover verify before.jsonl after.jsonl --diff --ignore 'metadata.v=each side counts its own'
  cutover verify big-a.jsonl big-b.jsonl --checkpoint run.json; cutover verify --resume run.json")]
pub struct VerifyArgs {
    /// The side to compare with
    #[arg(value_name = "LEFT", required_unless_present = "resume")]
    left: Option<String>,
    /// The side that is compared
    #[arg(value_name = "RIGHT", required_unless_present = "resume")]
    right: Option<String>,

    /// Two expiries this far apart are the same
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    expiry_tolerance: i64,
    /// A field whose differences do not matter, and why (can be repeated)
    #[arg(long = "ignore", value_name = "FIELD=REASON", value_parser = ignore)]
    ignores: Vec<Ignore>,
    /// Report entries whose metadata none of our writers made
    #[arg(long)]
    expect_ours: bool,
    /// Differences in entries written this recently may be propagation
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    settle: Option<i64>,
    /// When the sides were read, for `--settle` [default: now]
    #[arg(long, value_name = "TIME", value_parser = timestamp, requires = "settle")]
    now: Option<Timestamp>,
    /// Whether the keys are in byte order
    #[arg(long, value_enum, value_name = "ORDER", default_value = "auto")]
    order: OrderArg,
    /// Memory for comparing what is not sorted
    #[arg(long, value_name = "BYTES", default_value = "512M", value_parser = memory)]
    memory: u64,
    /// Folder for temporary files; they hold keys and digests but no secrets
    #[arg(long, value_name = "FOLDER")]
    temp: Option<PathBuf>,

    /// Save how far the comparison is, to resume it
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    checkpoint: Option<PathBuf>,
    /// Go on with a comparison that was stopped
    #[arg(long, value_name = "FILE", conflicts_with_all = ["left", "right", "expiry_tolerance", "ignores",
        "expect_ours", "settle", "now", "order", "memory", "all", "diff"])]
    resume: Option<PathBuf>,
    /// Bytes of input between two saves
    #[arg(long, value_name = "BYTES", value_parser = bytes, hide = true)]
    checkpoint_every: Option<u64>,

    /// List matches too
    #[arg(long)]
    all: bool,
    /// Show what differs as a unified diff of the redacted entries
    #[arg(long)]
    diff: bool,
    /// Shape of the report
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    format: ReportFormat,
    /// Write a mark and a key per line to this file
    #[arg(long, value_name = "FILE")]
    combined: Option<PathBuf>,
    /// Write the keys that are only on the left to this file
    #[arg(long, value_name = "FILE")]
    missing: Option<PathBuf>,
    /// Write the keys that are only on the right to this file
    #[arg(long, value_name = "FILE")]
    extra: Option<PathBuf>,
    /// Write the keys that differ to this file
    #[arg(long, value_name = "FILE")]
    differ: Option<PathBuf>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum ReportFormat {
    Text,
    Json,
    /// One JSON object per line, findings as they are found
    Jsonl,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum OrderArg {
    /// Find out
    Auto,
    /// Sorted; anything else is an error
    Sorted,
    /// Not sorted
    Unsorted,
}

impl From<OrderArg> for Order {
    fn from(order: OrderArg) -> Self {
        match order {
            OrderArg::Auto => Self::Auto,
            OrderArg::Sorted => Self::Sorted,
            OrderArg::Unsorted => Self::Unsorted,
        }
    }
}

fn duration(text: &str) -> Result<i64, String> {
    parse_duration_ms(text).map_err(|error| error.to_string())
}

fn timestamp(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).map_err(|error| error.to_string())
}

fn ignore(text: &str) -> Result<Ignore, String> {
    Ignore::parse(text).map_err(|error| error.to_string())
}

fn bytes(text: &str) -> Result<u64, String> {
    let (number, scale) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let number: Option<u64> = number.parse().ok();
    number.and_then(|n| n.checked_mul(scale)).ok_or_else(|| format!("`{text}` is not a size such as 512M or 2G"))
}

fn memory(text: &str) -> Result<u64, String> {
    let bytes = bytes(text)?;
    if bytes < MEMORY_MIN { Err(format!("at least {}M are needed", MEMORY_MIN >> 20)) } else { Ok(bytes) }
}

pub fn run(args: &VerifyArgs, ui: &Ui) -> CommandResult {
    let mut run = match (&args.resume, &args.checkpoint) {
        (Some(path), _) => Some(RunFile::load(path).map_err(run_file_error)?),
        (None, _) => None,
    };
    let task = match &run {
        Some(run) => run.task.clone(),
        None => task(args)?,
    };
    let (left, right) = (source(&task.left)?, source(&task.right)?);
    let sides: [&dyn Source; 2] = [left.as_ref(), right.as_ref()];
    if let Some(path) = &args.checkpoint {
        if let Some(side) = sides.iter().find(|side| !side.can_reopen()) {
            let message = format!("`{}` can be read only once, so the comparison cannot be resumed", side.name());
            return Err(CommandError::usage(message).hint("leave out --checkpoint, or save the input to a file first"));
        }
        run = Some(RunFile::create(path, task.clone()));
    }
    if let Some(every) = args.checkpoint_every {
        run = run.map(|run| run.every(every));
    }
    let options =
        Options { rules: task.rules.clone(), order: task.order, memory: task.memory, folder: args.temp.clone() };
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| CommandError::failed("cannot make a random key").because(&error))?;
    let keys = Keys::new(key, None);

    // With a run file the report comes whole at the end, so that a resumed run prints the same.
    let streams = args.format == ReportFormat::Jsonl && run.is_none();
    let mut streamed = 0u64;
    let mut out = BufWriter::with_capacity(64 * 1024, io::stdout());
    let meter = Meter::default();
    let report = with_progress(ui, &meter, sides, || {
        verify(sides, &options, &keys, run.as_mut(), &meter, &mut |finding| {
            if !streams {
                return;
            }
            // A closed pipe is not an error; the files and the exit code still count.
            let _ = match finding {
                Some(finding) => {
                    streamed += 1;
                    write_json_line(&mut out, "finding", finding)
                }
                None if streamed > 0 => {
                    let reason = "the keys are not sorted, so everything before this line is void";
                    write_json_line(&mut out, "restart", &json!({ "reason": reason }))
                }
                None => Ok(()),
            };
            if finding.is_none() {
                streamed = 0;
            }
        })
    });
    let mut report = report.map_err(verify_error)?;
    let (code, reason) = report.verdict();
    write_files(args, &mut report)?;
    let already = streams && streamed > 0;
    let printed = print(&mut out, args, &task, &mut report, already, code, &reason).and_then(|()| out.flush());
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(CommandError::failed("cannot print the report").because(&error));
        }
        _ => {}
    }
    if args.format == ReportFormat::Text {
        note_diagnostics(ui, &report.diagnostics);
    }
    Ok(code)
}

fn task(args: &VerifyArgs) -> Result<Task, CommandError> {
    let side = |side: &Option<String>| side.clone().expect("clap requires both sides without --resume");
    let (left, right) = (side(&args.left), side(&args.right));
    if left == "-" && right == "-" {
        return Err(CommandError::usage("both sides are standard input, and only one can be"));
    }
    let states = [source(&left)?.state(), source(&right)?.state()];
    let mut ignores = default_ignores();
    ignores.extend(args.ignores.iter().cloned());
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(since.as_millis() as i64)
    };
    let settling = args.settle.map(|window_ms| Settling { now: args.now.unwrap_or_else(now), window_ms });
    let rules = Rules {
        expiry_tolerance_ms: args.expiry_tolerance,
        ignores,
        expect_ours: args.expect_ours,
        settling,
        diff: args.diff,
        all: args.all,
    };
    Ok(Task { left, right, states, rules, order: args.order.into(), memory: args.memory })
}

/// Finds the side that an argument names.
fn source(argument: &str) -> Result<Box<dyn Source>, CommandError> {
    if argument != "-" {
        let unreadable = |error: &io::Error| {
            CommandError::usage(format!("cannot read `{argument}`"))
                .because(error)
                .hint("give a dump file, or `-` for standard input")
        };
        if Path::new(argument).is_dir() {
            return Err(unreadable(&io::ErrorKind::IsADirectory.into()));
        }
        File::open(argument).map_err(|error| unreadable(&error))?;
    }
    Ok(Box::new(Dump::new(argument)))
}

fn run_file_error(error: RunFileError) -> CommandError {
    CommandError::usage("cannot resume").because(&error).hint("start again with --checkpoint")
}

fn verify_error(error: VerifyError) -> CommandError {
    match &error {
        VerifyError::Stale { .. } => CommandError::new(exit::STALE, "cannot resume")
            .because(&error)
            .hint("the findings so far do not hold any more; start again with --checkpoint"),
        VerifyError::Unsorted { .. } => CommandError::failed("cannot compare in one pass")
            .because(&error)
            .hint("leave out `--order sorted`, or sort both sides by key in byte order (LC_ALL=C)"),
        VerifyError::Io { .. } => CommandError::failed("cannot compare").because(&error),
    }
}

/// Runs the comparison and meanwhile draws how far it is, when somebody is looking.
fn with_progress<T>(ui: &Ui, meter: &Meter, sides: [&dyn Source; 2], work: impl FnOnce() -> T) -> T {
    if !ui.progress {
        return work();
    }
    let total = sides.iter().try_fold(0, |sum, side| Some(sum + side.bytes()?));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let started = Instant::now();
            while !done.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(250));
                let _ = write!(io::stderr(), "\r\x1b[K{}", progress_line(meter, total, started.elapsed()));
            }
            let _ = write!(io::stderr(), "\r\x1b[K");
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}

fn progress_line(meter: &Meter, total: Option<u64>, elapsed: Duration) -> String {
    let bytes: u64 = meter.bytes.iter().map(|side| side.load(Ordering::Relaxed)).sum();
    let entries = meter.entries.load(Ordering::Relaxed);
    let findings = meter.findings.load(Ordering::Relaxed);
    let rate = entries as f64 / elapsed.as_secs_f64().max(0.001);
    let share = total.filter(|total| *total > 0).map(|total| bytes as f64 / total as f64);
    let mut line =
        format!("{} MB, {} entries, {} entries/s", bytes / 1_000_000, grouped(entries), grouped(rate as u64));
    if let Some(share) = share {
        let left = elapsed.as_secs_f64() * (1.0 - share).max(0.0) / share.max(0.001);
        line.push_str(&format!(", {:.0} %, {left:.0} s left", 100.0 * share.min(1.0)));
    }
    if findings > 0 {
        line.push_str(&format!(", {} findings", grouped(findings)));
    }
    line
}

/// `5,000,000`
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[derive(Serialize)]
struct Line<'a, T> {
    r#type: &'static str,
    #[serde(flatten)]
    content: &'a T,
}

fn write_json_line<T: Serialize>(out: &mut impl Write, r#type: &'static str, content: &T) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line { r#type, content })?;
    out.write_all(b"\n")
}

fn print(
    out: &mut impl Write,
    args: &VerifyArgs,
    task: &Task,
    report: &mut Report,
    already: bool,
    code: u8,
    reason: &str,
) -> io::Result<()> {
    match args.format {
        ReportFormat::Text => {
            report.findings(|finding| out.write_all(text_line(&finding).as_bytes()))?;
            out.write_all(text_summary(task, &report.counts, reason).as_bytes())
        }
        ReportFormat::Json => {
            // The findings may be many more than fit into memory, so the object is written around them.
            let summary = summary(task, report, code, reason).to_string();
            out.write_all(summary.strip_suffix('}').unwrap_or(&summary).as_bytes())?;
            out.write_all(b",\"findings\":[")?;
            let mut first = true;
            report.findings(|finding| {
                out.write_all(if std::mem::take(&mut first) { b"\n" } else { b",\n" })?;
                serde_json::to_writer(&mut *out, &finding).map_err(io::Error::from)
            })?;
            out.write_all(b"\n]}\n")
        }
        ReportFormat::Jsonl => {
            if !already {
                report.findings(|finding| write_json_line(out, "finding", &finding))?;
            }
            for diagnostic in &report.diagnostics.shown {
                write_json_line(out, "diagnostic", diagnostic)?;
            }
            let mut summary = summary(task, report, code, reason);
            if let Some(object) = summary.as_object_mut() {
                object.remove("diagnostics");
            }
            write_json_line(out, "summary", &summary)
        }
    }
}

fn summary(task: &Task, report: &Report, code: u8, reason: &str) -> serde_json::Value {
    let counts: serde_json::Map<String, serde_json::Value> = Outcome::ALL
        .into_iter()
        .map(|outcome| {
            let rungs: serde_json::Map<_, _> =
                report.counts.rungs(outcome).map(|(rung, n)| (rung.as_str().to_owned(), n.into())).collect();
            (outcome.as_str().to_owned(), json!({ "keys": report.counts.of(outcome), "rungs": rungs }))
        })
        .collect();
    json!({
        "exit_code": code,
        "reason": reason,
        "left": { "name": task.left, "entries": report.counts.entries[0] },
        "right": { "name": task.right, "entries": report.counts.entries[1] },
        "rules": task.rules,
        "counts": counts,
        "repeated": report.counts.repeated,
        "not_compared": report.counts.not_compared,
        "diagnostics": report.diagnostics.shown,
        "diagnostics_total": report.diagnostics.total,
    })
}

fn text_line(finding: &Finding) -> String {
    let mut line = format!("{} {}", finding.outcome.symbol(), one_line(&finding.key));
    let mut told: Vec<String> = Vec::new();
    if finding.outcome != Outcome::Changed && finding.outcome != Outcome::Match {
        told.push(finding.outcome.to_string());
    }
    told.extend(finding.changes.iter().map(ToString::to_string));
    told.extend(finding.foreign.iter().map(|hand| format!("metadata on the {} is not ours", hand.as_str())));
    told.extend(finding.reason.clone());
    if !told.is_empty() {
        line.push_str("  ");
        line.push_str(&told.join(", "));
    }
    line.push_str(&format!(" [{}]\n", finding.rung));
    for text in finding.diff.iter().flat_map(|diff| diff.lines()) {
        line.push_str("    ");
        line.push_str(text);
        line.push('\n');
    }
    line
}

/// A key on one line of a report, whatever is in it.
fn one_line(key: &str) -> String {
    if key.chars().any(char::is_control) { key.escape_debug().to_string() } else { key.to_owned() }
}

fn text_summary(task: &Task, counts: &Counts, reason: &str) -> String {
    let mut out = format!(
        "{} entries in {}, {} in {}\n",
        grouped(counts.entries[0]),
        task.left,
        grouped(counts.entries[1]),
        task.right
    );
    for outcome in Outcome::ALL {
        let keys = counts.of(outcome);
        if keys == 0 && outcome != Outcome::Match {
            continue;
        }
        let rungs: Vec<String> = counts.rungs(outcome).map(|(rung, n)| format!("{rung} {}", grouped(n))).collect();
        let rungs = if rungs.is_empty() { String::new() } else { format!(" ({})", rungs.join(", ")) };
        out.push_str(&format!("{} {} {outcome}{rungs}\n", outcome.symbol(), grouped(keys)));
    }
    if counts.repeated > 0 {
        out.push_str(&format!("  {} entries repeat another one and were counted once\n", grouped(counts.repeated)));
    }
    if counts.not_compared > 0 {
        let keys = grouped(counts.not_compared);
        out.push_str(&format!("  {keys} keys were not compared because the other side broke off\n"));
    }
    out.push_str(reason);
    out.push('\n');
    out
}

fn note_diagnostics(ui: &Ui, diagnostics: &Diagnostics) {
    for diagnostic in &diagnostics.shown {
        ui.note(&format!("error: {diagnostic}"));
    }
    let more = diagnostics.total - diagnostics.shown.len() as u64;
    if more > 0 {
        ui.note(&format!("error: and {} more", grouped(more)));
    }
}

/// One of the files that take the keys of some outcomes.
struct KeyFile<'a> {
    path: &'a Path,
    partial: PathBuf,
    file: BufWriter<File>,
    takes: fn(Outcome) -> bool,
    with_mark: bool,
}

fn write_files(args: &VerifyArgs, report: &mut Report) -> Result<(), CommandError> {
    type Wanted<'a> = (&'a Option<PathBuf>, fn(Outcome) -> bool, bool);
    let wanted: [Wanted<'_>; 4] = [
        (&args.combined, |_| true, true),
        (&args.missing, |outcome| outcome == Outcome::Missing, false),
        (&args.extra, |outcome| outcome == Outcome::Extra, false),
        (&args.differ, |outcome| matches!(outcome, Outcome::Changed | Outcome::Foreign), false),
    ];
    let failed = |path: &Path, error: &io::Error| {
        CommandError::failed(format!("cannot write `{}`", path.display())).because(error)
    };
    let mut files = Vec::new();
    for (path, takes, with_mark) in wanted {
        let Some(path) = path else { continue };
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let file = BufWriter::new(File::create(&partial).map_err(|error| failed(path, &error))?);
        files.push(KeyFile { path, partial: partial.into(), file, takes, with_mark });
    }
    if files.is_empty() {
        return Ok(());
    }
    let written = report.findings(|finding| {
        for file in files.iter_mut().filter(|file| (file.takes)(finding.outcome)) {
            if file.with_mark {
                write!(file.file, "{} ", finding.outcome.symbol())?;
            }
            writeln!(file.file, "{}", one_line(&finding.key))?;
        }
        Ok(())
    });
    for mut file in files {
        // A reader never sees half a file.
        let finished = match &written {
            Ok(()) => file.file.flush().and_then(|()| fs::rename(&file.partial, file.path)),
            Err(error) => Err(error.kind().into()),
        };
        finished.map_err(|error| failed(file.path, &error))?;
    }
    Ok(())
}
