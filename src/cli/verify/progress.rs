//! How far a comparison is, drawn on a terminal: a bar, the rate, what of the request budget is used,
//! and how long the rest takes.

use std::io::{self, Write};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ratatui::crossterm::terminal::size;

use super::super::Ui;
use super::live::LiveSides;
use super::print::grouped;
use crate::domain::time::format_duration_ms;
use crate::verify::{Meter, Source};

/// Nothing is drawn for what is over sooner.
const QUIET: Duration = Duration::from_secs(1);

const EVERY: Duration = Duration::from_millis(250);

/// Where the terminal does not tell its width.
const WIDTH: usize = 80;

/// Characters of the bar.
const BAR: usize = 20;

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
    let (done, finished) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let started = Instant::now();
            let mut wait = QUIET;
            while finished.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = EVERY;
                let progress = match live {
                    Some(live) => of_live(meter, live, started.elapsed()),
                    None => of_dumps(meter, total, started.elapsed()),
                };
                let width = size().map_or(WIDTH, |(columns, _)| columns.into());
                // One column stays free: some terminals wrap when the last one is written.
                let line = progress.line(width.saturating_sub(1));
                let mut stderr = io::stderr().lock();
                let _ = write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush());
            }
            if started.elapsed() >= QUIET {
                let mut stderr = io::stderr().lock();
                let _ = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// How far a comparison is.
#[derive(Clone, Debug, Default, PartialEq)]
struct Progress {
    /// What is done, 0 to 1, where anybody can tell.
    share: Option<f64>,
    /// The most important first: what has no room is left out.
    parts: Vec<String>,
}

impl Progress {
    /// One line of at most `width` characters.
    fn line(&self, width: usize) -> String {
        let mut line = match self.share {
            Some(share) if width > BAR + 10 => {
                let share = share.clamp(0.0, 1.0);
                let done = (share * BAR as f64) as usize;
                format!("[{}{}] {:3.0} %", "#".repeat(done), "-".repeat(BAR - done), share * 100.0)
            }
            _ => String::new(),
        };
        for part in &self.parts {
            let gap = if line.is_empty() { "" } else { "  " };
            if line.chars().count() + gap.len() + part.chars().count() <= width {
                line.push_str(gap);
                line.push_str(part);
            }
        }
        line
    }
}

fn left(ms: f64) -> String {
    format!("{} left", format_duration_ms((ms / 1_000.0).round() as i64 * 1_000))
}

fn counted(meter: &Meter, elapsed: Duration) -> [String; 2] {
    let entries = meter.entries.load(Ordering::Relaxed);
    let rate = entries as f64 / elapsed.as_secs_f64().max(0.001);
    [format!("{} entries", grouped(entries)), format!("{}/s", grouped(rate as u64))]
}

fn found(meter: &Meter) -> Option<String> {
    let findings = meter.findings.load(Ordering::Relaxed);
    (findings > 0).then(|| format!("{} findings", grouped(findings)))
}

fn of_dumps(meter: &Meter, total: Option<u64>, elapsed: Duration) -> Progress {
    let bytes: u64 = meter.bytes.iter().map(|side| side.load(Ordering::Relaxed)).sum();
    let share = total.filter(|total| *total > 0).map(|total| bytes as f64 / total as f64);
    let [entries, rate] = counted(meter, elapsed);
    let ms = elapsed.as_secs_f64() * 1_000.0;
    let rest = share.filter(|share| *share > 0.0).map(|share| left(ms * (1.0 - share).max(0.0) / share));
    let parts = [Some(entries), Some(rate), rest, found(meter), Some(format!("{} MB", bytes / 1_000_000))];
    Progress { share, parts: parts.into_iter().flatten().collect() }
}

/// Requests are what takes time, so they are what is counted.
fn of_live(meter: &Meter, live: &LiveSides, elapsed: Duration) -> Progress {
    let spent = live.budget.spent();
    let planned = live.estimate.iter().flat_map(|estimate| &estimate.requests);
    // Per API: what is done, and how long the rest takes.
    let (mut share, mut rest_ms) = (None::<f64>, None::<f64>);
    for (api, planned) in planned.clone() {
        let done = spent.get(api).copied().unwrap_or(0).min(*planned);
        let of_api = done as f64 / (*planned).max(1) as f64;
        share = Some(share.map_or(of_api, |share| share.min(of_api)));
        let ms = (planned - done) as f64 / live.budget.per_second(*api) * 1_000.0;
        rest_ms = Some(rest_ms.map_or(ms, |rest| rest.max(ms)));
    }
    let again = meter.settling.load(Ordering::Relaxed);
    let [entries, rate] = counted(meter, elapsed);
    let rest = match again {
        true => Some("looking again at what differs".to_owned()),
        false => rest_ms.map(left),
    };
    let mut parts: Vec<String> = [Some(entries), Some(rate), rest].into_iter().flatten().collect();
    for (api, n) in &spent {
        let planned = live.estimate.as_ref().and_then(|estimate| estimate.requests.get(api));
        let of = planned.map_or_else(String::new, |planned| format!(" of {}", grouped(*planned)));
        let per_minute = live.budget.per_second(*api) * 60.0;
        parts.push(format!("{}{of} requests to {}, at most {per_minute:.0} a minute", grouped(*n), api.name()));
    }
    parts.extend(found(meter));
    Progress { share: if again { Some(1.0) } else { share }, parts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn the_line_has_room_for_what_matters_most() {
        let parts = ["1,234 entries", "99/s", "2m left", "7 of 10 requests to cloudflare, at most 24 a minute"];
        let progress = Progress { share: Some(0.45), parts: parts.map(str::to_owned).into() };
        assert_eq!(
            progress.line(120),
            "[#########-----------]  45 %  1,234 entries  99/s  2m left  7 of 10 requests to cloudflare, at most 24 a minute"
        );
        assert_eq!(progress.line(60), "[#########-----------]  45 %  1,234 entries  99/s  2m left");
        assert_eq!(progress.line(20), "1,234 entries  99/s");
        for width in 0..150 {
            assert!(progress.line(width).chars().count() <= width, "{width}");
        }
        assert_eq!(Progress::default().line(80), "");
    }

    #[test]
    fn dumps_tell_their_share_by_bytes_where_their_size_is_known() {
        let meter = Meter { entries: AtomicU64::new(5_000), ..Meter::default() };
        meter.bytes[0].store(1_000_000, Ordering::Relaxed);
        meter.findings.store(3, Ordering::Relaxed);
        let known = of_dumps(&meter, Some(4_000_000), Duration::from_secs(2));
        assert_eq!(known.share, Some(0.25));
        assert_eq!(known.parts, ["5,000 entries", "2,500/s", "6s left", "3 findings", "1 MB"]);
        let unknown = of_dumps(&meter, None, Duration::from_secs(2));
        assert_eq!((unknown.share, unknown.parts.len()), (None, 4), "standard input has no size");
    }
}
