//! One whole comparison: in one pass while both sides are sorted, else by partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::compact;
use super::compare::Keys;
use super::finding::{Counts, Diagnostic, Diagnostics, Finding, Hand, Outcome};
use super::join::{Conflict, Conflicts, Join, Part};
use super::merge::{Merge, Pass, Watcher};
use super::reader::Reader;
use super::rules::Rules;
use super::runfile::{Progress, RunFile, Task};
use super::settle::{Clock, Settled, Settler};
use super::side::{Mark, Source};
use super::spill::{self, Layout, Partitions, Writer};
use super::spool::{Segment, Spool};
use crate::exit;

/// The least memory that partitions can work with, in bytes.
pub const MEMORY_MIN: u64 = 64 * 1024 * 1024;

/// What is known of the order of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Sorted until an entry shows that it is not; then from the start again, by partitions.
    Auto,
    /// Sorted; an entry out of order is an error.
    Sorted,
    /// Not sorted.
    Unsorted,
}

/// How to compare.
#[derive(Clone, Debug)]
pub struct Options {
    pub rules: Rules,
    pub order: Order,
    /// Bytes of memory that partitions may take, at least [`MEMORY_MIN`].
    pub memory: u64,
    /// Where partitions are written; the system's folder for temporary files if none.
    pub folder: Option<PathBuf>,
    /// What time is for live sides; `None` when both are dumps.
    pub clock: Option<Arc<dyn Clock>>,
}

/// How far a comparison has come, for whoever draws it.
#[derive(Debug, Default)]
pub struct Meter {
    /// Bytes taken from each side.
    pub bytes: [Arc<AtomicU64>; 2],
    /// Entries compared or put into partitions.
    pub entries: AtomicU64,
    pub findings: AtomicU64,
    /// The pass is over, and what it found is looked at again.
    pub settling: AtomicBool,
}

/// Why a comparison could not be done. What is wrong with the content of a side is not among
/// these but in the report.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("cannot {what}")]
    Io { what: &'static str, source: io::Error },
    #[error("{side} is not sorted: entry {entry} comes before the one in front of it")]
    Unsorted { side: String, entry: u64 },
    #[error("`{side}` has changed since the run began")]
    Stale { side: String },
}

impl VerifyError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// The result of a comparison.
pub struct Report {
    pub counts: Counts,
    pub diagnostics: Diagnostics,
    spool: Spool,
    segments: Vec<Segment>,
}

impl Report {
    pub(super) fn of(counts: Counts, diagnostics: Diagnostics, spool: Spool, segments: Vec<Segment>) -> Self {
        Self { counts, diagnostics, spool, segments }
    }

    /// Hands out all findings, sorted by key.
    ///
    /// # Errors
    /// When they cannot be read back, or `each` fails.
    pub fn findings(&mut self, each: impl FnMut(Finding) -> io::Result<()>) -> io::Result<()> {
        self.spool.replay(&self.segments, each)
    }

    /// The exit code of the command, and why.
    pub fn verdict(&self) -> (u8, String) {
        let of = |outcome| self.counts.of(outcome);
        let differences = self.counts.differing();
        let unsure = of(Outcome::Unverifiable) + of(Outcome::Settling);
        if self.diagnostics.total > 0 || of(Outcome::Error) > 0 {
            let total = self.diagnostics.total;
            let what = if total == 1 { "1 problem".to_owned() } else { format!("{total} problems") };
            (exit::ERROR, format!("not everything could be read: {what}"))
        } else if differences > 0 {
            let keys = if differences == 1 { "1 key differs".to_owned() } else { format!("{differences} keys differ") };
            (exit::FAIL, keys)
        } else if unsure > 0 {
            (exit::INCONCLUSIVE, format!("nothing differs, but {unsure} could not be judged"))
        } else {
            (exit::OK, "no differences".to_owned())
        }
    }
}

/// Compares two sides. `run` makes it one that can be resumed, or resumes it. `found` gets each
/// finding as soon as it is final, in a sorted pass; when the pass turns out not to be sorted it
/// gets `None`, and all that it got before is void.
///
/// # Errors
/// When a side is not what the run file knows, an input that cannot be read twice is not sorted,
/// or the disk fails. Damage in the sides is reported, not an error.
pub fn verify(
    sides: [&dyn Source; 2],
    options: &Options,
    keys: &Keys,
    mut run: Option<&mut RunFile>,
    meter: &Meter,
    found: &mut dyn FnMut(Option<&Finding>),
) -> Result<Report, VerifyError> {
    let mut start = None;
    let spool = match &mut run {
        None => Spool::unnamed(options.folder.as_deref()),
        Some(run) => {
            check_state(sides, &run.task)?;
            if run.progress.is_none() {
                // Before the findings of an earlier run go, of which a file of the same name may speak.
                run.write().map_err(VerifyError::io("save the run file"))?;
            }
            start = run.progress.clone();
            Spool::at(&run.findings_path(), start.as_ref().map_or(0, Progress::spooled))
        }
    };
    let spool = spool.map_err(VerifyError::io("use the file of findings"))?;
    let mut job = Job { sides, options, keys, run, meter, spool };
    match start {
        Some(Progress::Done { segments, counts, diagnostics, .. }) => {
            Ok(Report { counts, diagnostics, spool: job.spool, segments })
        }
        Some(Progress::Compared { segments, counts, diagnostics, .. }) => {
            job.finish(segments, counts, diagnostics, found)
        }
        Some(joining @ Progress::Joining { .. }) => job.join(Some(joining), found),
        merging => {
            let readable_once = sides.iter().any(|side| !side.can_reopen());
            let unsorted = match options.order {
                Order::Auto => readable_once,
                Order::Sorted => false,
                Order::Unsorted => true,
            };
            if unsorted {
                return job.join(None, found);
            }
            match job.merge(merging, found)? {
                Ok(report) => Ok(report),
                Err((hand, entry)) if options.order == Order::Sorted => {
                    Err(VerifyError::Unsorted { side: sides[hand as usize].name().to_owned(), entry })
                }
                Err(_) => {
                    found(None);
                    meter.entries.store(0, Ordering::Relaxed);
                    meter.findings.store(0, Ordering::Relaxed);
                    job.join(None, found)
                }
            }
        }
    }
}

fn check_state(sides: [&dyn Source; 2], task: &Task) -> Result<(), VerifyError> {
    for (side, known) in sides.into_iter().zip(&task.states) {
        if side.state() != *known {
            return Err(VerifyError::Stale { side: side.name().to_owned() });
        }
    }
    Ok(())
}

struct Job<'a, 'r> {
    sides: [&'a dyn Source; 2],
    options: &'a Options,
    keys: &'a Keys,
    run: Option<&'r mut RunFile>,
    meter: &'a Meter,
    spool: Spool,
}

impl<'a> Job<'a, '_> {
    fn reader(&self, hand: Hand, from: Mark) -> Reader {
        let source = self.sides[hand as usize];
        let bytes = Arc::clone(&self.meter.bytes[hand as usize]);
        bytes.store(0, Ordering::Relaxed);
        Reader::new(hand, source.name(), source.open(from, bytes))
    }

    fn reader_behind(&self, hand: Hand, mark: Mark, last: &str) -> Reader {
        let source = self.sides[hand as usize];
        let bytes = Arc::clone(&self.meter.bytes[hand as usize]);
        Reader::new(hand, source.name(), source.open_behind(mark, last.as_bytes(), bytes))
    }

    /// Whether what is found is looked at again.
    fn settles(&self) -> Option<(&'a Arc<dyn Clock>, i64)> {
        Some((self.options.clock.as_ref()?, self.options.rules.look_again_ms?))
    }

    /// The sorted pass. The inner error is the entry that is out of order.
    fn merge(
        &mut self,
        start: Option<Progress>,
        found: &mut dyn FnMut(Option<&Finding>),
    ) -> Result<Result<Report, (Hand, u64)>, VerifyError> {
        let (readers, last, counts) = match start {
            Some(Progress::Merging { marks, endings, last, counts, diagnostics, .. }) => {
                let [left, right] = diagnostics;
                let resume = |hand: Hand, diagnostics| {
                    let mut reader = match marks[hand as usize] {
                        Some(mark) => self.reader_behind(hand, mark, &last[hand as usize]),
                        None => Reader::ended(hand, self.sides[hand as usize].name(), endings[hand as usize]),
                    };
                    reader.diagnostics = diagnostics;
                    reader
                };
                ([resume(Hand::Left, left), resume(Hand::Right, right)], last.map(String::into_bytes), counts)
            }
            _ => {
                let readers = Hand::BOTH.map(|hand| self.reader(hand, Mark::default()));
                (readers, Default::default(), Counts::default())
            }
        };
        let mut merge = Merge::new(readers, last, counts, &self.options.rules, self.keys);
        let (meter, streams) = (self.meter, self.settles().is_none());
        let (spool, run) = (&mut self.spool, self.run.as_deref_mut());
        let mut watch = Watch { spool, run, meter, found, streams, saved_at: 0, calls: 0 };
        let pass = merge.run(&mut watch).map_err(VerifyError::io("keep the findings"))?;
        if let Pass::Disorder { hand, entry } = pass {
            return Ok(Err((hand, entry)));
        }
        let [left, right] = merge.readers;
        let mut diagnostics = left.diagnostics;
        diagnostics.append(right.diagnostics);
        let segments = vec![Segment { start: 0, end: self.spool.length() }];
        let counts = merge.counts;
        self.finish(segments, counts, diagnostics, found).map(Ok)
    }

    /// By partitions.
    fn join(
        &mut self,
        start: Option<Progress>,
        found: &mut dyn FnMut(Option<&Finding>),
    ) -> Result<Report, VerifyError> {
        let size = self.sides.iter().try_fold(0, |sum, side| Some(sum + side.bytes()?));
        let mut layout = Layout::new(size, self.options.memory);
        let mut state = Joined::default();
        if let Some(Progress::Joining { bits, done, segments, counts, conflicts, .. }) = start {
            layout.bits = bits;
            state = Joined { done, segments, counts, conflicts };
        } else {
            // First the run file forgets what a sorted pass has found, then the findings go.
            self.save(&layout, &state, 0)?;
            self.spool.clear().map_err(VerifyError::io("empty the file of findings"))?;
        }
        let sources = self.short_form()?;
        let Partitioned { readers, partitions, entries } = self.partition(layout, sources.is_some(), &state.done)?;
        let join = Join {
            sides: [&partitions[0], &partitions[1]],
            layout,
            rules: &self.options.rules,
            keys: self.keys,
            memory: self.options.memory / 4,
            folder: self.options.folder.as_deref(),
            sources,
            broke_off: readers.each_ref().map(compact::broke_off),
        };
        let done = state.done.clone();
        let job = std::cell::RefCell::new((&mut *self, state, BTreeMap::<usize, (Vec<Segment>, Part)>::new()));
        let compared = join.run(
            &done,
            |n, part| {
                let (job, _, open) = &mut *job.borrow_mut();
                let segment = job.spool.add_segment(&part.lines)?;
                let (segments, so_far) = open.entry(n).or_default();
                if segment.end > segment.start {
                    segments.push(segment);
                }
                so_far.counts.merge(&part.counts);
                so_far.conflicts.merge(part.conflicts);
                Ok(())
            },
            |n| {
                let (job, state, open) = &mut *job.borrow_mut();
                if let Some((mut segments, part)) = open.remove(&n) {
                    state.segments.append(&mut segments);
                    state.counts.merge(&part.counts);
                    state.conflicts.merge(part.conflicts);
                }
                state.done.insert(n);
                let spooled = job.spool.length();
                job.save(&layout, state, spooled).map_err(|error| io::Error::other(error.to_string()))
            },
        );
        compared.map_err(VerifyError::io("compare the partitions on disk"))?;
        let (_, Joined { segments, mut counts, conflicts, .. }, _) = job.into_inner();
        counts.entries = entries;
        let [left, right] = readers;
        let mut diagnostics = left.diagnostics;
        diagnostics.append(right.diagnostics);
        diagnostics.total += conflicts.total - conflicts.first.len() as u64;
        for conflict in conflicts.first {
            diagnostics.add(self.told(conflict));
        }
        self.finish(segments, counts, diagnostics, found)
    }

    /// Both sides are compared; on live ones, what was found must prove to be more than lag.
    fn finish(
        &mut self,
        segments: Vec<Segment>,
        counts: Counts,
        mut diagnostics: Diagnostics,
        found: &mut dyn FnMut(Option<&Finding>),
    ) -> Result<Report, VerifyError> {
        let Some((clock, window_ms)) = self.settles() else { return self.done(segments, counts, diagnostics) };
        let failed = "keep the findings";
        if let Some(run) = &mut self.run {
            self.spool.sync().map_err(VerifyError::io(failed))?;
            let (segments, counts, diagnostics) = (segments.clone(), counts.clone(), diagnostics.clone());
            let spooled = self.spool.length();
            run.save(Progress::Compared { segments, counts, diagnostics, spooled })
                .map_err(VerifyError::io("save the run file"))?;
        }
        self.meter.settling.store(true, Ordering::Relaxed);
        let Options { rules, folder, .. } = self.options;
        let settler =
            Settler { sides: self.sides, rules, keys: self.keys, clock, window_ms, folder: folder.as_deref() };
        let Settled { spool: mut finals, segments, counts } = settler
            .settle(&mut self.spool, &segments, counts, &mut diagnostics, &mut |finding| found(Some(finding)))
            .map_err(VerifyError::io(failed))?;
        // Behind what the run file knows, so that a crash in here changes nothing.
        let start = self.spool.length();
        finals.replay(&segments, |finding| self.spool.add(&finding)).map_err(VerifyError::io(failed))?;
        let end = self.spool.length();
        self.meter.findings.store(counts.listed(self.options.rules.all), Ordering::Relaxed);
        self.done(vec![Segment { start, end }], counts, diagnostics)
    }

    fn told(&self, conflict: Conflict) -> Diagnostic {
        let Conflict { hand, key, first, second } = conflict;
        let source = self.sides[hand as usize].name().to_owned();
        let message = format!("found entry {first} with the same key and different content, expected each key once");
        let key = Some(super::finding::shown(key.as_bytes()));
        Diagnostic { side: hand, source, entry: Some(second), offset: None, key, message }
    }

    /// The sides, when short records will do: entries can be looked up again, and nothing is asked
    /// of those that match.
    fn short_form(&self) -> Result<Option<[&'a dyn Source; 2]>, VerifyError> {
        let Rules { expect_ours, all, .. } = self.options.rules;
        for side in self.sides {
            let lookup = side.lookup().map_err(VerifyError::io("read a side again"))?;
            if lookup.is_none() || expect_ours || all {
                return Ok(None);
            }
        }
        Ok(Some(self.sides))
    }

    /// Reads both sides into partitions, each on its own thread.
    fn partition(&self, layout: Layout, short: bool, done: &BTreeSet<usize>) -> Result<Partitioned, VerifyError> {
        let skip = |n: usize| done.contains(&n);
        let one = |hand| -> io::Result<(Reader, Partitions, u64)> {
            let mut reader = self.reader(hand, Mark::default());
            // Together the pieces of both sides take less than two thirds of the memory.
            let writer = Writer::new(layout, self.options.folder.as_deref(), self.options.memory / 16 * 5)?;
            let partition = if short { compact::partition } else { spill::partition };
            let (partitions, entries) =
                partition(&mut reader, &self.options.rules, self.keys, writer, &skip, &self.meter.entries)?;
            Ok((reader, partitions, entries))
        };
        let (left, right) = std::thread::scope(|scope| {
            let right = scope.spawn(|| one(Hand::Right));
            let left = one(Hand::Left);
            let right =
                right.join().unwrap_or_else(|_| Err(io::Error::other("the thread that reads the right side failed")));
            (left, right)
        });
        let failed = "write the partitions to disk";
        let (left, right) = (left.map_err(VerifyError::io(failed))?, right.map_err(VerifyError::io(failed))?);
        Ok(Partitioned { readers: [left.0, right.0], partitions: [left.1, right.1], entries: [left.2, right.2] })
    }

    fn save(&mut self, layout: &Layout, state: &Joined, spooled: u64) -> Result<(), VerifyError> {
        let Some(run) = &mut self.run else { return Ok(()) };
        self.spool.sync().map_err(VerifyError::io("keep the findings"))?;
        let Joined { done, segments, counts, conflicts } = state.clone();
        let progress = Progress::Joining { bits: layout.bits, done, segments, counts, conflicts, spooled };
        run.save(progress).map_err(VerifyError::io("save the run file"))
    }

    fn done(
        &mut self,
        segments: Vec<Segment>,
        counts: Counts,
        diagnostics: Diagnostics,
    ) -> Result<Report, VerifyError> {
        let spool = match &mut self.run {
            None => {
                let empty = Spool::unnamed(self.options.folder.as_deref());
                std::mem::replace(&mut self.spool, empty.map_err(VerifyError::io("use the file of findings"))?)
            }
            Some(run) => {
                self.spool.sync().map_err(VerifyError::io("keep the findings"))?;
                let spooled = self.spool.length();
                let (segments, counts, diagnostics) = (segments.clone(), counts.clone(), diagnostics.clone());
                run.save(Progress::Done { segments, counts, diagnostics, spooled })
                    .map_err(VerifyError::io("save the run file"))?;
                Spool::at(&run.findings_path(), spooled).map_err(VerifyError::io("use the file of findings"))?
            }
        };
        Ok(Report { counts, diagnostics, spool, segments })
    }
}

/// Both sides in partitions.
struct Partitioned {
    readers: [Reader; 2],
    partitions: [Partitions; 2],
    entries: [u64; 2],
}

/// What comparing by partitions has given so far.
#[derive(Clone, Default)]
struct Joined {
    done: BTreeSet<usize>,
    segments: Vec<Segment>,
    counts: Counts,
    conflicts: Conflicts,
}

/// Keeps the findings of a sorted pass, and from time to time how far it has come.
struct Watch<'w, 'f> {
    spool: &'w mut Spool,
    run: Option<&'w mut RunFile>,
    meter: &'w Meter,
    found: &'f mut dyn FnMut(Option<&Finding>),
    /// What is found is final.
    streams: bool,
    /// Bytes that were passed at the last save.
    saved_at: u64,
    calls: u64,
}

/// How many keys pass between two looks at how far things are.
const LOOK_EVERY: u64 = 256;

impl Watcher for Watch<'_, '_> {
    fn found(&mut self, finding: &Finding) -> io::Result<()> {
        self.meter.findings.fetch_add(1, Ordering::Relaxed);
        if self.streams {
            (self.found)(Some(finding));
        }
        self.spool.add(finding)
    }

    fn between(&mut self, merge: &Merge<'_>) -> io::Result<()> {
        self.calls += 1;
        if !self.calls.is_multiple_of(LOOK_EVERY) {
            return Ok(());
        }
        self.meter.entries.store(merge.counts.entries[0] + merge.counts.entries[1], Ordering::Relaxed);
        let Some(run) = &mut self.run else { return Ok(()) };
        let passed = merge.readers[0].passed + merge.readers[1].passed;
        if passed - self.saved_at < run.every_bytes {
            return Ok(());
        }
        self.saved_at = passed;
        self.spool.sync()?;
        run.save(Progress::Merging {
            marks: merge.readers.each_ref().map(Reader::resume_mark),
            endings: merge.readers.each_ref().map(|reader| reader.ending),
            last: merge.last.each_ref().map(|key| String::from_utf8_lossy(key).into_owned()),
            counts: merge.settled_counts(),
            diagnostics: merge.readers.each_ref().map(|reader| reader.diagnostics.clone()),
            spooled: self.spool.length(),
        })
    }
}
