//! How far a comparison is, drawn on a terminal.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::Ui;
use super::live::LiveSides;
use super::print::grouped;
use crate::verify::{Meter, Source};

/// Runs the comparison and meanwhile draws how far it is, when somebody is looking.
pub(super) fn with_progress<T>(
    ui: &Ui,
    meter: &Meter,
    sides: [&dyn Source; 2],
    live: Option<&LiveSides>,
    work: impl FnOnce() -> T,
) -> T {
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
                let _ = write!(
                    io::stderr(),
                    "\r\x1b[K{}",
                    match live {
                        Some(live) => live_line(meter, live, started.elapsed()),
                        None => progress_line(meter, total, started.elapsed()),
                    }
                );
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

/// Entries, rate, what of the planned requests is spent, and how long the rest takes.
fn live_line(meter: &Meter, live: &LiveSides, elapsed: Duration) -> String {
    let entries = meter.entries.load(Ordering::Relaxed);
    let rate = entries as f64 / elapsed.as_secs_f64().max(0.001);
    let mut line = format!("{} entries, {} entries/s", grouped(entries), grouped(rate as u64));
    let spent = live.budget.spent();
    for (api, n) in &spent {
        let planned = live.estimate.as_ref().and_then(|estimate| estimate.requests.get(api));
        match planned {
            Some(planned) => line.push_str(&format!(", {n} of about {planned} requests to {}", api.name())),
            None => line.push_str(&format!(", {n} requests to {}", api.name())),
        }
    }
    let left_ms = live.estimate.iter().flat_map(|estimate| &estimate.requests).map(|(api, planned)| {
        let left = planned.saturating_sub(spent.get(api).copied().unwrap_or(0));
        (left as f64 / live.budget.per_second(*api) * 1_000.0) as i64
    });
    if meter.settling.load(Ordering::Relaxed) {
        line.push_str(", looking again at what differs");
    } else if let Some(left_ms) = left_ms.max() {
        line.push_str(&format!(", {} s left", left_ms / 1_000));
    }
    line
}
