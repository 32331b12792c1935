//! `cutover verify` side by side with what else one could run.
//!
//! ```text
//! cargo bench --bench verify -- [ENTRIES] [--folder FOLDER]   # all of it, 1,000,000 by default
//! cargo bench --bench verify -- generate FOLDER ENTRIES KIND  # only the dumps: sorted, shuffled, noise or mixed
//! ```
//!
//! Times depend on the machine; the ratios are what counts. `DUCKDB_PYTHON` names a Python that
//! has the `duckdb` package; without it that comparison is left out and said so.

#[path = "verify/dumps.rs"]
mod dumps;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dumps::Kind;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // The floor runs as a process of its own, like everything that it is compared with.
        ["floor", left, right] => walk(Plain::open(left), Plain::open(right)),
        ["tight", left, right] => walk(Tight::open(left), Tight::open(right)),
        ["generate", folder, entries, kind] => {
            let kind = Kind::named(kind).expect("the kind is sorted, shuffled, noise or mixed");
            dumps::generate(Path::new(folder), entries.parse().expect("a number of entries"), kind);
        }
        rest => {
            let mut entries = 1_000_000;
            let mut folder = std::env::temp_dir().join("cutover-bench-verify");
            let mut rest = rest.iter();
            while let Some(arg) = rest.next() {
                match (*arg, arg.parse()) {
                    ("--folder", _) => folder = rest.next().expect("--folder needs a folder").into(),
                    (_, Ok(n)) => entries = n,
                    _ => {}
                }
            }
            bench(&folder, entries);
        }
    }
}

/// What is short is repeated more often: it suffers more from whatever else the machine does.
const TIME_PER_ROW: Duration = Duration::from_secs(8);

struct Run {
    wall: Duration,
    peak_mb: u64,
}

fn bench(folder: &Path, entries: u64) {
    let dump = |kind: Kind| {
        let folder = folder.join(format!("{}-{entries}", kind.name()));
        if !folder.join("expected.txt").exists() {
            eprintln!("generating {}", folder.display());
            dumps::generate(&folder, entries, kind);
        }
        folder
    };
    let (sorted, shuffled, noise) = (dump(Kind::Sorted), dump(Kind::Shuffled), dump(Kind::Noise));
    let mixed = dump(Kind::Mixed);
    println!("{entries} entries a side, best of 3 or more; {}", size_of_dumps(&sorted));

    let me = std::env::current_exe().expect("a running program has a path");
    let floor = |which: &str| {
        let mut command = Command::new(&me);
        command.arg(which).arg(sorted.join("left.jsonl")).arg(sorted.join("right.jsonl"));
        command
    };
    let floor_run = show("floor: read, split lines, compare keys", || floor("floor"));
    show("the same without copying a line, vectorised", || floor("tight"));
    let ours = |name: &str, folder: &Path| {
        let run = show(name, || cutover(folder));
        let (found, expected) = (read(&folder.join("report.txt")), read(&folder.join("expected.txt")));
        assert!(found == expected, "{name}: the findings are not those that were planted");
        run
    };
    let sorted_run = ours("cutover verify, sorted", &sorted);
    ratio("sorted / floor", &sorted_run, &floor_run, 1.5);
    memory("sorted", &sorted_run, 64);
    let shuffled_run = ours("cutover verify, shuffled", &shuffled);
    memory("shuffled", &shuffled_run, 512);
    let noise_run = ours("cutover verify, every entry differs in ignored fields", &noise);
    memory("ignored fields", &noise_run, 64);

    let mixed_run = ours("cutover verify, each provider gives other fields", &mixed);
    ratio("mixed / sorted", &mixed_run, &sorted_run, 2.0);
    memory("mixed", &mixed_run, 64);

    match python() {
        None => println!("DuckDB: left out, `DUCKDB_PYTHON` names no Python with the duckdb package"),
        Some(python) => {
            let typed = |query: &str, folder: &Path, read: &str| {
                let mut command = Command::new(&python);
                command.arg("-c").arg(script(query, folder, read));
                command
            };
            let duckdb = |query: &str, folder: &Path| typed(query, folder, TEXTS);
            let faster = |run: &Run| {
                let times = run.wall.as_secs_f64() / sorted_run.wall.as_secs_f64();
                println!("{:>56}  DuckDB / sorted = {times:.2} (goal at least 4)", "");
            };
            faster(&show("DuckDB as one types it, full outer join, sorted", || typed(BYTES, &sorted, "")));
            faster(&show("DuckDB told all types, full outer join, sorted", || duckdb(BYTES, &sorted)));
            let run = show("DuckDB, full outer join, shuffled", || duckdb(BYTES, &shuffled));
            ratio("shuffled / DuckDB", &shuffled_run, &run, 0.6);
            let run = show("DuckDB, comparing the fields that matter", || duckdb(MEANING, &noise));
            ratio("ignored fields / DuckDB", &noise_run, &run, 0.5);
        }
    }
    let run = show("sort | comm, shuffled", || {
        let mut command = Command::new("bash");
        let side = |name: &str| format!("<(LC_ALL=C sort {:?})", shuffled.join(name));
        command.arg("-c").arg(format!("LC_ALL=C comm -3 {} {}", side("left.jsonl"), side("right.jsonl")));
        command
    });
    ratio("shuffled / sort | comm", &shuffled_run, &run, f64::INFINITY);
}

fn cutover(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command.args(["verify", "--combined"]).arg(folder.join("report.txt"));
    command.arg(folder.join("left.jsonl")).arg(folder.join("right.jsonl")).env("TMPDIR", folder);
    command
}

/// Runs a command three times, or oftener as long as that takes less than [`TIME_PER_ROW`]; prints and
/// returns the best.
fn show(name: &str, command: impl Fn() -> Command) -> Run {
    let mut best = measure(command());
    let (mut runs, mut total) = (1, best.wall);
    while runs < 3 || total < TIME_PER_ROW {
        let run = measure(command());
        (runs, total) = (runs + 1, total + run.wall);
        if run.wall < best.wall {
            best = run;
        }
    }
    println!("{name:56}  {:8.3} s  {:6} MB", best.wall.as_secs_f64(), best.peak_mb);
    best
}

fn ratio(what: &str, ours: &Run, theirs: &Run, goal: f64) {
    let ratio = ours.wall.as_secs_f64() / theirs.wall.as_secs_f64();
    let verdict = if ratio <= goal { "met" } else { "MISSED" };
    println!("{:>56}  {what} = {ratio:.2} (goal {goal}: {verdict})", "");
}

fn memory(what: &str, run: &Run, goal_mb: u64) {
    let verdict = if run.peak_mb < goal_mb { "met" } else { "MISSED" };
    println!("{:>56}  {what}: {} MB resident (goal under {goal_mb}: {verdict})", "", run.peak_mb);
}

/// Runs a command to its end; its highest resident memory is read while it runs, summed over its
/// children for a pipeline.
fn measure(mut command: Command) -> Run {
    let started = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command starts");
    let mut peak = 0;
    let status = loop {
        peak = peak.max(peak_kb(child.id()));
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(3)),
        }
    };
    let wall = started.elapsed();
    assert!(matches!(status.code(), Some(0 | 3)), "{command:?} ended with {status}");
    Run { wall, peak_mb: peak / 1024 }
}

/// The highest resident memory of a process and its children so far; 0 where `/proc` does not tell.
fn peak_kb(pid: u32) -> u64 {
    let of = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    of(&pid.to_string()) + children.split_whitespace().map(of).sum::<u64>()
}

fn size_of_dumps(folder: &Path) -> String {
    let bytes = |name: &str| fs::metadata(folder.join(name)).map_or(0, |m| m.len());
    format!("{} MB left, {} MB right", bytes("left.jsonl") / 1_000_000, bytes("right.jsonl") / 1_000_000)
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("a report was written")
}

/// The least that a comparison must do: read both files, split the lines, walk them by key. It
/// parses nothing, checks nothing and does not even look at the values.
fn walk(mut left: impl Lines, mut right: impl Lines) {
    let (mut same, mut differ) = (0u64, 0u64);
    let (mut l, mut r) = (left.advance(), right.advance());
    while l || r {
        let order = match (l, r) {
            (true, true) => left.key().cmp(right.key()),
            (true, false) => std::cmp::Ordering::Less,
            _ => std::cmp::Ordering::Greater,
        };
        if order.is_eq() {
            same += 1
        } else {
            differ += 1
        }
        if order.is_le() {
            l = left.advance();
        }
        if order.is_ge() {
            r = right.advance();
        }
    }
    println!("{same} on both sides, {differ} on one");
}

trait Lines {
    fn advance(&mut self) -> bool;
    fn line(&self) -> &[u8];

    fn key(&self) -> &[u8] {
        let rest = &self.line()[br#"{"key":""#.len()..];
        &rest[..rest.iter().position(|b| *b == b'"').expect("a key ends with a quote")]
    }
}

const FLOOR_BUFFER: usize = 256 * 1024;

/// As anybody would write it with the standard library.
struct Plain {
    file: BufReader<File>,
    line: Vec<u8>,
}

impl Plain {
    fn open(path: &str) -> Self {
        let file = File::open(path).expect("the dump exists");
        Self { file: BufReader::with_capacity(FLOOR_BUFFER, file), line: Vec::new() }
    }
}

impl Lines for Plain {
    fn advance(&mut self) -> bool {
        self.line.clear();
        self.file.read_until(b'\n', &mut self.line).expect("the dump can be read") > 0
    }

    fn line(&self) -> &[u8] {
        &self.line
    }
}

/// As fast as one can: lines stay where they were read and are found with vector instructions.
struct Tight {
    file: File,
    buffer: Vec<u8>,
    line: (usize, usize),
    at: usize,
    end: usize,
}

impl Tight {
    fn open(path: &str) -> Self {
        let file = File::open(path).expect("the dump exists");
        Self { file, buffer: vec![0; FLOOR_BUFFER], line: (0, 0), at: 0, end: 0 }
    }
}

impl Lines for Tight {
    fn advance(&mut self) -> bool {
        loop {
            if let Some(length) = memchr::memchr(b'\n', &self.buffer[self.at..self.end]) {
                self.line = (self.at, self.at + length);
                self.at += length + 1;
                return true;
            }
            self.buffer.copy_within(self.at..self.end, 0);
            self.end -= self.at;
            self.at = 0;
            match self.file.read(&mut self.buffer[self.end..]).expect("the dump can be read") {
                0 => return false,
                n => self.end += n,
            }
        }
    }

    fn line(&self) -> &[u8] {
        &self.buffer[self.line.0..self.line.1]
    }
}

/// A Python that has DuckDB.
fn python() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("DUCKDB_PYTHON").unwrap_or_else(|| "python3".into()));
    let probe = Command::new(&python).args(["-c", "import duckdb"]).stderr(Stdio::null()).status().ok()?;
    probe.success().then_some(python)
}

/// Values and metadata as they stand.
const BYTES: &str = "
    SELECT coalesce(l.key, r.key) AS key FROM l FULL OUTER JOIN r USING (key)
    WHERE l.key IS NULL OR r.key IS NULL OR l.value <> r.value OR l.metadata <> r.metadata";

/// The fields that matter, each by its meaning; scopes would still need to become sets.
const MEANING: &str = "
    SELECT coalesce(l.key, r.key) AS key FROM l FULL OUTER JOIN r USING (key)
    WHERE l.key IS NULL OR r.key IS NULL
       OR l.value->>'access_token' IS DISTINCT FROM r.value->>'access_token'
       OR l.value->>'token_type' IS DISTINCT FROM r.value->>'token_type'
       OR l.value->>'scope' IS DISTINCT FROM r.value->>'scope'
       OR abs(epoch_ms((l.value->>'expires_at')::TIMESTAMP) - epoch_ms((r.value->>'expires_at')::TIMESTAMP)) > 1000
       OR l.metadata->>'v' IS DISTINCT FROM r.metadata->>'v'
       OR l.metadata->>'fp' IS DISTINCT FROM r.metadata->>'fp'
       OR l.metadata->>'ep' IS DISTINCT FROM r.metadata->>'ep'
       OR abs((l.metadata->>'exp')::BIGINT - (r.metadata->>'exp')::BIGINT) > 1";

/// Spares DuckDB finding out what the columns are.
const TEXTS: &str = ", format='newline_delimited', columns={key:'VARCHAR', value:'VARCHAR', metadata:'VARCHAR'}";

fn script(query: &str, folder: &Path, read: &str) -> String {
    let view = |name: &str, file: &str| {
        let path = folder.join(file).display().to_string();
        format!("duckdb.sql(\"CREATE VIEW {name} AS SELECT * FROM read_json('{path}'{read})\")\n")
    };
    format!(
        "import duckdb\n{}{}print(len(duckdb.sql('''{query}''').fetchall()))\n",
        view("l", "left.jsonl"),
        view("r", "right.jsonl")
    )
}
