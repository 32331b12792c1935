//! `cutover verify`: compare two sides key by key.

mod evidence;
mod files;
mod live;
mod print;
mod progress;
mod rounds;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::apply::StateArgs;
use super::plan::{Inputs, wall_clock};
use super::{CommandError, CommandResult, Ui};
use crate::domain::secret::hex;
use crate::domain::time::{SECOND_MS, Timestamp, parse_duration_ms};
use crate::exit;
use crate::verify::live::{Level, LiveTask, Sample};
use crate::verify::{
    Dump, Ignore, Keys, MEMORY_MIN, Meter, Options, Order, Rules, RunFile, RunFileError, Settling, Source, Task,
    VerifyError, default_ignores, verify,
};
use evidence::Evidence;
use files::FileArgs;
use live::Named;
use print::{note_diagnostics, print, write_json_line};

/// How long a difference between live sides must stand. It must exceed the time in which a write
/// to KV is seen everywhere, and the gateway's own `cacheTtl` (Cloudflare contract §2.6).
const SETTLE_MS: i64 = 150 * SECOND_MS;

/// Bytes of entries between two saves of a run over live sides: a page or two, since reading again
/// costs requests.
const LIVE_SAVE_BYTES: u64 = 256 * 1024;

/// Compare two sides key by key
///
/// A side is live: `kv:source`, `kv:target`, `kv:<namespace id>`, `nango`, `composio` or `journal`; or
/// a dump of a KV namespace: a JSON array as `wrangler kv` reads and writes it, JSON lines, or CSV
/// with a header; as it is or compressed with gzip or zstd; `-` for standard input. Entries are
/// compared by meaning: secrets as such, expiries within a tolerance, scopes as sets, everything
/// else as JSON. No secret is ever printed or written to disk.
///
/// Reading live sides changes nothing and makes nobody refresh. A difference between them counts
/// only when it stands for longer than a write needs to be seen everywhere. What a run shows is
/// kept in the state as evidence.
///
/// Exits with 0 when nothing differs, 3 when something does, 4 when nothing differs but not
/// everything could be judged, 1 when not everything could be read, and 5 when a side has changed
/// since the run that is resumed.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Marks: = match, - missing on the right, + extra on the right, * differs,
       ! cannot be judged or read, ~ may still settle

Examples:
  cutover verify kv:source kv:target
  cutover verify journal kv:target --level full --checkpoint run.json
  cutover verify kv:source composio --identity --level full
  cutover verify kv:source kv:target --level full --continuous --every 10m --period 6h
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
    /// How much of live sides is read: keys and metadata, values of a sample too, or every value
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "keys")]
    level: LevelArg,
    /// Share of the keys that `--level sampled` looks into, in percent
    #[arg(long, value_name = "PERCENT", default_value = "5", value_parser = percent)]
    sample: u32,
    /// Ask the providers whose credentials they are: directly for KV, through its proxy for Composio
    #[arg(long)]
    identity: bool,
    /// Compare triplets that do not move, too
    #[arg(long)]
    include_retained: bool,
    /// About how many keys a side has, for the estimate; else the last run or the plan tells
    #[arg(long, value_name = "KEYS")]
    keys: Option<u64>,
    /// Only say what would be asked and how long that takes
    #[arg(long)]
    estimate: bool,
    /// Go on round by round: what changed first, everything within a period
    #[arg(long, conflicts_with_all = ["checkpoint", "resume"])]
    continuous: bool,
    /// From one round to the next
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration, requires = "continuous")]
    every: i64,
    /// Within this time every key is compared
    #[arg(long, value_name = "DURATION", default_value = "6h", value_parser = duration, requires = "continuous")]
    period: i64,
    /// End after this many rounds
    #[arg(long, value_name = "ROUNDS", requires = "continuous")]
    rounds: Option<u32>,
    #[command(flatten)]
    state: StateArgs,
    /// Policy: rates, the share of them that stays free, and fields whose differences do not matter
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Facts that are laid over the built-in catalogue
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,

    /// Dumps: differences in entries written this recently may be propagation. Live sides: a
    /// difference counts when it stands this long [default for live sides: 150s]
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
        "expect_ours", "settle", "now", "order", "memory", "all", "diff", "level", "sample", "identity",
        "include_retained", "policy", "catalogue"])]
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
    #[command(flatten)]
    files: FileArgs,
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

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum LevelArg {
    Keys,
    Sampled,
    Full,
}

impl From<LevelArg> for Level {
    fn from(level: LevelArg) -> Self {
        match level {
            LevelArg::Keys => Self::Keys,
            LevelArg::Sampled => Self::Sampled,
            LevelArg::Full => Self::Full,
        }
    }
}

/// A percentage as keys in a million.
fn percent(text: &str) -> Result<u32, String> {
    let share = text.trim_end_matches('%').parse::<f64>().ok().filter(|share| *share > 0.0 && *share <= 100.0);
    share
        .map(|share| ((share * 10_000.0).round() as u32).max(1))
        .ok_or_else(|| format!("`{text}` is not a share such as 5 or 0.5"))
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

/// # Errors
/// Exit code 2 for a bad command line, a missing setting or no such run, 5 when a side has changed
/// since the run that is resumed, 1 when it cannot be compared.
pub fn run(args: &VerifyArgs, ui: &Ui) -> CommandResult {
    let mut run = match &args.resume {
        Some(path) => Some(RunFile::load(path).map_err(run_file_error)?),
        None => None,
    };
    let mut task = match &run {
        Some(run) => run.task.clone(),
        None => task(args)?,
    };
    let live = match &task.live {
        None => None,
        Some(live) => {
            let named = [Named::parse(&task.left)?, Named::parse(&task.right)?];
            Some(live::build(&task, live, &named, args.keys, source, ui)?)
        }
    };
    if run.is_none() && live.as_ref().is_some_and(|live| live.ours) {
        task.rules.expect_ours = true;
    }
    let dumps;
    let sides: [&dyn Source; 2] = match &live {
        Some(live) => live.sides.each_ref().map(AsRef::as_ref),
        None => {
            dumps = [source(&task.left)?, source(&task.right)?];
            dumps.each_ref().map(AsRef::as_ref)
        }
    };
    if args.estimate {
        return print::estimate(live.as_ref(), args.format == ReportFormat::Text, ui);
    }
    if let Some(live) = &live {
        live.announce(ui);
    }
    if let Some(path) = &args.checkpoint {
        if let Some(side) = sides.iter().find(|side| !side.can_reopen()) {
            let message = format!("`{}` can be read only once, so the comparison cannot be resumed", side.name());
            return Err(CommandError::usage(message).hint("leave out --checkpoint, or save the input to a file first"));
        }
        run = Some(RunFile::create(path, task.clone()));
    }
    let every = args.checkpoint_every.or(live.as_ref().map(|_| LIVE_SAVE_BYTES));
    if let Some(every) = every {
        run = run.map(|run| run.every(every));
    }
    let both_live = task.rules.look_again_ms.is_some();
    let options = Options {
        rules: Rules {
            skip: live.as_ref().map(|live| Arc::clone(&live.skip)).unwrap_or_default(),
            ..task.rules.clone()
        },
        order: task.order,
        memory: task.memory,
        folder: args.temp.clone(),
        clock: live.as_ref().filter(|_| both_live).map(|live| Arc::clone(&live.clock)),
    };
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| CommandError::failed("cannot make a random key").because(&error))?;
    let store = live.as_ref().and_then(|live| live.store.as_ref());
    let keys = Keys::new(key, store.map(|store| store.vault().fingerprints().clone()));
    if args.continuous {
        let Some(live) = &live else {
            return Err(CommandError::usage("`--continuous` needs two live sides, and these are dumps"));
        };
        if args.files.any() {
            return Err(CommandError::usage("`--continuous` prints its rounds and writes no files of keys")
                .hint("leave the files out, or compare once without `--continuous`"));
        }
        return rounds::run(args, &task, live, &options.rules, &keys, ui);
    }

    let files = args.files.create(task.rules.all)?;

    // With a run file the report comes whole at the end, so that a resumed run prints the same.
    let streams = args.format == ReportFormat::Jsonl && run.is_none();
    let mut streamed = 0u64;
    let mut out = BufWriter::with_capacity(64 * 1024, io::stdout());
    let meter = Meter::default();
    // Lines that come meanwhile would run into the bar.
    let mut drawn = ui.clone();
    drawn.progress &= !(streams && io::stdout().is_terminal());
    let report = progress::with_progress(&drawn, &meter, sides, live.as_ref(), || {
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
            if live.is_some() {
                // Asking takes so long that nobody should wait for a full buffer as well.
                let _ = out.flush();
            }
            if finding.is_none() {
                streamed = 0;
            }
        })
    });
    let mut report = report.map_err(verify_error)?;
    let evidence = match (&live, &task.live) {
        (Some(live), Some(asked)) => Evidence::keep(live, asked, &task, &mut report, asked.level.name()),
        _ => Evidence::NoState,
    };
    // Each of the three comes whatever became of the others.
    let already = streams && streamed > 0;
    let printed = match print(&mut out, args, &task, &mut report, already, &evidence).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CommandError::failed("cannot print the report").because(&error))
        }
        _ => Ok(()),
    };
    let written = files.write(&mut report);
    if args.format == ReportFormat::Text {
        note_diagnostics(ui, &report.diagnostics);
    }
    if let Some(live) = &live {
        live.account(ui);
    }
    evidence.tell(ui).and(printed).and(written)?;
    Ok(report.verdict().0)
}

fn task(args: &VerifyArgs) -> Result<Task, CommandError> {
    let side = |side: &Option<String>| side.clone().expect("clap requires both sides without --resume");
    let (left, right) = (side(&args.left), side(&args.right));
    if left == "-" && right == "-" {
        return Err(CommandError::usage("both sides are standard input, and only one can be"));
    }
    let named = [Named::parse(&left)?, Named::parse(&right)?];
    let is_live = |side: &Named| *side != Named::Dump;
    if args.identity && args.level != LevelArg::Full {
        return Err(CommandError::usage("`--identity` asks with the credentials that the values hold")
            .hint("add `--level full`, which reads them"));
    }
    let live = if named.iter().any(is_live) { Some(live_task(args)?) } else { None };
    let both_live = named.iter().all(is_live);
    let state = |side: &Named, name: &str| match side {
        Named::Dump => source(name).map(|source| source.state()),
        _ => Ok(None),
    };
    let states = [state(&named[0], &left)?, state(&named[1], &right)?];
    let mut ignores = default_ignores();
    ignores.extend(args.ignores.iter().cloned());
    let inputs = Inputs { policy: args.policy.clone(), ..Inputs::default() };
    ignores.extend(live::policy_ignores(&inputs.load_policy()?)?);
    let settling = match args.settle {
        Some(window_ms) if !both_live => Some(Settling { now: args.now.unwrap_or_else(wall_clock), window_ms }),
        _ => None,
    };
    let rules = Rules {
        expiry_tolerance_ms: args.expiry_tolerance,
        ignores,
        expect_ours: args.expect_ours,
        settling,
        diff: args.diff,
        all: args.all,
        look_again_ms: both_live.then(|| args.settle.unwrap_or(SETTLE_MS)),
        ..Rules::default()
    };
    Ok(Task { left, right, states, rules, order: args.order.into(), memory: args.memory, live })
}

fn live_task(args: &VerifyArgs) -> Result<LiveTask, CommandError> {
    let mut drawn = [0; 14];
    getrandom::fill(&mut drawn).map_err(|error| CommandError::failed("cannot draw a name").because(&error))?;
    let (name, seed) = drawn.split_at(6);
    let seed = seed.iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte));
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let level = Level::from(args.level);
    Ok(LiveTask {
        level,
        sample: (level == Level::Sampled).then_some(Sample { per_million: args.sample, seed }),
        identity: args.identity,
        retained: args.include_retained,
        run: format!("v-{}", hex(name)),
        began_at: wall_clock(),
        state: args.state.exists().then(|| args.state.names()),
        policy: path(&args.policy),
        catalogue: path(&args.catalogue),
    })
}

/// Finds the side that an argument names.
fn source(argument: &str) -> Result<Box<dyn Source>, CommandError> {
    if argument != "-" {
        let unreadable = |error: &io::Error| {
            CommandError::usage(format!("cannot read `{argument}`"))
                .because(error)
                .hint("give a dump file, `-` for standard input, or a live side such as `kv:source`")
        };
        let kind = std::fs::metadata(argument).map_err(|error| unreadable(&error))?.file_type();
        if kind.is_dir() {
            return Err(unreadable(&io::ErrorKind::IsADirectory.into()));
        }
        // Whoever writes into a pipe would take the end of this look for the end of the comparison.
        if kind.is_file() {
            File::open(argument).map_err(|error| unreadable(&error))?;
        }
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
