//! Plans 100,000 connections and says what that takes, beside what parsing the same CSV with
//! `csv` and `serde` alone takes in the same run: `cargo bench --bench plan`.

use std::time::{Duration, Instant};

use cutover::catalogue::Catalogue;
use cutover::domain::time::Timestamp;
use cutover::inventory::{self, Format, Source};
use cutover::plan::{Policy, plan};

const CONNECTIONS: usize = 100_000;
const RUNS: usize = 5;

#[derive(serde::Deserialize)]
struct Record {
    #[serde(rename = "tenant")]
    _tenant: String,
    #[serde(rename = "integration_key")]
    _integration_key: String,
    #[serde(rename = "providers")]
    _providers: String,
    #[serde(rename = "account")]
    _account: String,
}

fn main() {
    let catalogue = Catalogue::built_in();
    let text = generate(&catalogue);
    let (parse, records) = median(|| {
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        reader.deserialize::<Record>().map(|r| r.expect("we wrote it")).collect::<Vec<_>>()
    });
    assert_eq!(records.len(), CONNECTIONS);
    drop(records);
    let source = Source { name: "bench.csv", bytes: text.as_bytes(), format: Some(Format::Csv), tenants: &[] };
    let (read, inventory) = median(|| inventory::read(&source).expect("we wrote it"));
    let policy = Policy::default();
    let before = peak_mib();
    let (planning, plan) = median(|| plan(&inventory, &catalogue, &policy, &[], Timestamp::from_secs(1_778_058_000)));
    println!("{} connections, {} triplets, {} waves, {}", CONNECTIONS, plan.rows.len(), plan.waves.len(), plan.id);
    println!("csv + serde alone  {:>8.1} ms", ms(parse));
    println!("reading, checked   {:>8.1} ms  {:>5.1} x", ms(read), ratio(read, parse));
    println!("planning           {:>8.1} ms  {:>5.1} x", ms(planning), ratio(planning, parse));
    println!("reading + planning {:>8.1} ms  {:>5.1} x", ms(read + planning), ratio(read + planning, parse));
    println!("peak memory        {:>8} MiB (before planning {} MiB)", peak_mib(), before);
}

/// The middle of several runs, and the result of the last.
fn median<T>(mut run: impl FnMut() -> T) -> (Duration, T) {
    let mut times = Vec::with_capacity(RUNS);
    let mut last = None;
    for _ in 0..RUNS {
        drop(last.take());
        let start = Instant::now();
        last = Some(run());
        times.push(start.elapsed());
    }
    times.sort_unstable();
    (times[RUNS / 2], last.expect("there was a run"))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

/// Every integration of the catalogue in turn, for as many tenants as that takes.
fn generate(catalogue: &Catalogue) -> String {
    let kinds: Vec<(String, String)> = catalogue
        .integrations
        .iter()
        .map(|(key, i)| (key.clone(), i.provider.keys().cloned().collect::<Vec<_>>().join(",")))
        .collect();
    let mut text = String::from("tenant,integration_key,providers,account\n");
    for n in 0..CONNECTIONS {
        let (key, providers) = &kinds[n % kinds.len()];
        text.push_str(&format!("tenant-{:05},{key},\"{providers}\",default\n", n / kinds.len()));
    }
    text
}

/// The most memory that this process has held so far, where the system tells.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}
