//! The mirror: carries the newest version of each triplet to each sink, in order per triplet.
//!
//! Each sink is a lane of its own: one that is slow or down delays only itself. Older pending
//! versions were superseded when the newer one was journalled, so nothing old can be sent late;
//! and a sink has one round at a time, so nothing can overtake.

use std::collections::{BTreeMap, VecDeque};

use super::circuit::{Allowance, Change, Circuit};
use super::together::together;
use super::{Engine, EngineResult, spread};
use crate::domain::api::Api;
use crate::domain::budget::Lane;
use crate::domain::criteria::Note;
use crate::domain::schedule::delivery_retry_after_ms;
use crate::domain::secret::Secret;
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::ports::{ApiErrorKind, KvPut, KvRead, KvWrite, Namespace, Outside, TargetCustody};
use crate::status::Classes;
use crate::store::{PendingDelivery, Sink};

/// Deliveries in one round. A bulk put takes 10,000 entries (Cloudflare contract §2.4); fewer are
/// gentler on the API and keep a round's payloads small in memory.
const ROUND_MAX: u32 = 1_000;

/// How long to wait after a 429 that names no time.
const LIMITED_MS: i64 = 2 * SECOND_MS;

/// A delivery older than this may come after a write of somebody else.
const LATE_MS: i64 = 60 * SECOND_MS;

/// How long a delivery waits whose key holds a token that lives longer.
const HOLD_MS: i64 = 300 * SECOND_MS;

/// Keys in one bulk read.
const LOOK_MAX: usize = 100;

/// What a request may take: clients give up after it.
const REQUEST_MS: i64 = 30 * SECOND_MS;

/// What a round at a sink may do.
enum Room {
    For(u32),
    NoneUntil(Timestamp),
}

/// What became of a queue of patches.
#[derive(Default)]
struct Patched {
    done: Vec<PendingDelivery>,
    failed: Vec<(PendingDelivery, ApiErrorKind)>,
    untried: Vec<PendingDelivery>,
}

/// What the mirror remembers of its sinks and results; all of it can be forgotten.
#[derive(Debug, Default)]
pub(super) struct Mirroring {
    circuits: BTreeMap<Sink, Circuit>,
    /// First results of versions that do not have them from both KV namespaces yet.
    open: BTreeMap<Triplet, First>,
    results: Classes,
    /// When each sink last took a delivery.
    took_at: BTreeMap<Sink, Timestamp>,
    /// How many deliveries make a round at a sink that refused more, while the bad one is looked for.
    narrowed: BTreeMap<Sink, usize>,
}

/// The first results of one version.
#[derive(Clone, Copy, Debug, Default)]
struct First {
    version: u64,
    source: Option<bool>,
    target: Option<bool>,
}

impl Mirroring {
    pub fn results(&self) -> Classes {
        self.results
    }

    pub fn trouble(&self, sink: Sink) -> Option<(Timestamp, String)> {
        let circuit = self.circuits.get(&sink)?;
        circuit.trouble().map(|(until, why)| (until, why.to_owned()))
    }

    /// Counts the first result of a version at one of the two namespaces.
    fn count(&mut self, sink: Sink, triplet: &Triplet, version: u64, ok: bool) {
        if sink == Sink::Composio {
            return;
        }
        let mut first = self.open.remove(triplet).unwrap_or_default();
        if first.version != version {
            if first.version > 0 {
                self.results.count(first.source == Some(true), first.target == Some(true));
            }
            first = First { version, ..First::default() };
        }
        let side = if sink == Sink::KvSource { &mut first.source } else { &mut first.target };
        side.get_or_insert(ok);
        match (first.source, first.target) {
            (Some(source), Some(target)) => self.results.count(source, target),
            _ => drop(self.open.insert(triplet.clone(), first)),
        }
    }
}

impl<O: Outside> Engine<O> {
    /// Delivers what is due at `sink`, and the markers of dead grants where they belong. Returns when
    /// something is next due there.
    pub(super) async fn mirror(&self, sink: Sink, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        let due = self.mirror_tokens(sink, now).await?;
        if sink != Sink::KvSource {
            return Ok(due);
        }
        Ok([due, self.carry_marks(now).await?].into_iter().flatten().min())
    }

    pub(super) async fn mirror_tokens(&self, sink: Sink, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        loop {
            let room = match self.circuit(sink, |circuit| circuit.allows(now)) {
                Allowance::All => self.room(sink, self.round_max(sink), now),
                Allowance::One => self.room(sink, 1, now),
                Allowance::NoneUntil(until) => Room::NoneUntil(until),
            };
            let limit = match room {
                Room::For(limit) => limit,
                Room::NoneUntil(until) => {
                    let due = self.store.load_sink_due(sink).await?;
                    return Ok(due.map(|due| due.max(until)));
                }
            };
            let until = now.plus_ms(self.config.claim_ms);
            let pending = self.store.claim_deliveries(sink, now, limit, until).await?;
            crate::failpoint::hit("delivery-claimed");
            // After a single try the rest is due at once.
            let more = pending.len() == limit as usize;
            match sink {
                Sink::KvSource => self.put_all(sink, Namespace::Source, pending, now).await?,
                Sink::KvTarget => self.put_all(sink, Namespace::Target, pending, now).await?,
                Sink::Composio => self.patch_all(pending, now).await?,
            }
            // A claim counts from `now`, which a long round leaves behind: in real time the next round
            // is the caller's, with a later one.
            if !more || self.config.sink_parallel > 1 {
                return Ok(self.store.load_sink_due(sink).await?);
            }
        }
    }

    /// How many of `wanted` deliveries the request budget has room for. A bulk put is one request.
    fn room(&self, sink: Sink, wanted: u32, now: Timestamp) -> Room {
        let api = if sink == Sink::Composio { Api::Composio } else { Api::Cloudflare };
        let allowed = self.outside.allowance(api, Lane::Urgent, now);
        match allowed.now {
            0 => Room::NoneUntil(allowed.next_at),
            requests if sink == Sink::Composio => Room::For(wanted.min(requests)),
            _ => Room::For(wanted),
        }
    }

    fn round_max(&self, sink: Sink) -> u32 {
        let max = match sink {
            Sink::KvSource | Sink::KvTarget => self.known(|known| known.mirroring.narrowed.get(&sink).copied()),
            Sink::Composio => Some(self.config.sink_parallel.max(1).saturating_mul(self.in_a_row())),
        };
        max.map_or(ROUND_MAX, |max| max.min(ROUND_MAX as usize) as u32)
    }

    /// Requests that a round may make one after the other: it must be over before its claims are, or
    /// what it sends last could come after what somebody else sends next.
    fn in_a_row(&self) -> usize {
        match self.config.sink_parallel {
            // In virtual time requests take none of it.
            0 | 1 => usize::MAX,
            // A look and a put at least.
            _ => (self.config.claim_ms / REQUEST_MS - 1).max(2) as usize,
        }
    }

    /// Bulk puts. When the whole of one is refused it is halved, so that one bad entry is found and
    /// the others arrive; in the next rounds, if this one may make no more requests.
    async fn put_all(
        &self,
        sink: Sink,
        namespace: Namespace,
        pending: Vec<PendingDelivery>,
        now: Timestamp,
    ) -> EngineResult<()> {
        let mut left = self.in_a_row();
        let Some(pending) = self.hold_older(sink, namespace, pending, &mut left, now).await? else { return Ok(()) };
        let mut parts = VecDeque::from([pending]);
        while left > 0 {
            let Some(mut part) = parts.pop_front().filter(|part| !part.is_empty()) else { break };
            left -= 1;
            let puts: Vec<KvPut> = part
                .iter()
                .map(|p| KvPut {
                    key: p.triplet.kv_key(),
                    value: Secret::new(p.entry.to_json()),
                    metadata: Some(serde_json::to_value(&p.metadata).expect("metadata is plain data")),
                })
                .collect();
            let answer = self.outside.cloudflare().bulk_put(namespace, &puts).await;
            self.observe(Api::Cloudflare, now, &answer).await?;
            crate::failpoint::hit("delivery-sent");
            match answer {
                Ok(unwritten) => {
                    let (failed, written): (Vec<_>, Vec<_>) =
                        part.into_iter().partition(|p| unwritten.contains(&p.triplet.kv_key()));
                    self.delivered(sink, written, now).await?;
                    let error = ApiErrorKind::RateLimited { retry_after_ms: None };
                    self.put_off(sink, &failed, &error, now).await?;
                }
                Err(error) if matches!(error.kind, ApiErrorKind::Rejected { .. }) && part.len() > 1 => {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([part, rest]);
                }
                Err(error) => {
                    self.sink_failed(sink, &error.kind, now).await?;
                    self.put_off(sink, &part, &error.kind, now).await?;
                    if !matches!(error.kind, ApiErrorKind::Rejected { .. }) {
                        break;
                    }
                }
            }
        }
        self.known(|known| match parts.iter().map(Vec::len).min() {
            Some(smallest) => known.mirroring.narrowed.insert(sink, smallest),
            None => known.mirroring.narrowed.remove(&sink),
        });
        let untried: Vec<PendingDelivery> = parts.into_iter().flatten().collect();
        Ok(self.store.release_deliveries(&untried, now).await?)
    }

    /// KV cannot compare and set. Before a delivery that is late, or whose key somebody else wrote, the
    /// key is looked at: a token there that lives longer than ours is not replaced, and ours waits.
    /// Returns what may be put, `None` when KV does not answer. One of the requests that are `left` is
    /// kept for the put; what cannot be looked at for that stays due.
    async fn hold_older(
        &self,
        sink: Sink,
        namespace: Namespace,
        pending: Vec<PendingDelivery>,
        left: &mut usize,
        now: Timestamp,
    ) -> EngineResult<Option<Vec<PendingDelivery>>> {
        if sink != Sink::KvSource {
            return Ok(Some(pending));
        }
        let is_doubtful = |p: &PendingDelivery| p.foreign || p.attempts > 0 || now.since(p.captured_at) > LATE_MS;
        let (doubtful, mut clear): (Vec<_>, Vec<_>) = pending.into_iter().partition(is_doubtful);
        let (mut held, mut later, mut silent) = (Vec::new(), Vec::new(), false);
        for some in doubtful.chunks(LOOK_MAX * self.config.sink_parallel.max(1)) {
            if silent || *left <= 1 {
                later.extend_from_slice(some);
                continue;
            }
            *left -= 1;
            let chunks: Vec<&[PendingDelivery]> = some.chunks(LOOK_MAX).collect();
            let answers = together(chunks.iter().map(|chunk| async {
                let keys: Vec<String> = chunk.iter().map(|p| p.triplet.kv_key()).collect();
                self.outside.cloudflare().bulk_get_urgent(namespace, &keys).await
            }))
            .await;
            for (chunk, answer) in chunks.into_iter().zip(answers) {
                self.observe(Api::Cloudflare, now, &answer).await?;
                let found = match answer {
                    Ok(found) => found,
                    Err(error) => {
                        self.sink_failed(sink, &error.kind, now).await?;
                        self.put_off(sink, chunk, &error.kind, now).await?;
                        silent = true;
                        continue;
                    }
                };
                self.store.add_counts(&[("kv_reads", chunk.len() as i64)]).await?;
                for p in chunk {
                    let there = found.get(&p.triplet.kv_key()).and_then(Option::as_ref);
                    let there = there.and_then(|entry| entry.as_ref().ok());
                    let longer = there.filter(|there| {
                        there.expires_at.is_some_and(|ends| p.entry.expires_at.is_some_and(|ours| ours < ends))
                    });
                    // What is in our chain is a version before ours, whatever its end.
                    let theirs = match longer {
                        Some(entry) => !self.store.is_journalled(&p.triplet, &entry.access_token).await?,
                        None => false,
                    };
                    if theirs {
                        tracing::warn!(triplet = %p.triplet, "held back: KV has a token of another writer that lives longer");
                        held.push(p.clone());
                    } else {
                        clear.push(p.clone());
                    }
                }
            }
        }
        self.store.release_deliveries(&held, now.plus_ms(HOLD_MS)).await?;
        if silent {
            later.append(&mut clear);
        }
        self.store.release_deliveries(&later, now).await?;
        Ok((!silent).then_some(clear))
    }

    /// Patches one account after the other in each of a few queues; no account is in two of them.
    async fn patch_all(&self, pending: Vec<PendingDelivery>, now: Timestamp) -> EngineResult<()> {
        let width = self.config.sink_parallel.clamp(1, pending.len().max(1));
        let mut queues: Vec<Vec<PendingDelivery>> = (0..width).map(|_| Vec::new()).collect();
        for (n, p) in pending.into_iter().enumerate() {
            queues[n % width].push(p);
        }
        let results = together(queues.into_iter().map(|queue| self.patch_queue(queue, now))).await;
        let mut patched = Patched::default();
        for result in results {
            let Patched { done, failed, untried } = result?;
            patched.done.extend(done);
            patched.failed.extend(failed);
            patched.untried.extend(untried);
        }
        self.delivered(Sink::Composio, patched.done, now).await?;
        for alike in patched.failed.chunk_by(|a, b| a.1 == b.1) {
            let deliveries: Vec<PendingDelivery> = alike.iter().map(|(p, _)| p.clone()).collect();
            self.put_off(Sink::Composio, &deliveries, &alike[0].1, now).await?;
        }
        Ok(self.store.release_deliveries(&patched.untried, now).await?)
    }

    /// Stops when the sink as a whole wants no more; what was not sent stays due.
    async fn patch_queue(&self, queue: Vec<PendingDelivery>, now: Timestamp) -> EngineResult<Patched> {
        let mut patched = Patched::default();
        for p in queue {
            if matches!(self.circuit(Sink::Composio, |c| c.allows(now)), Allowance::NoneUntil(_)) {
                patched.untried.push(p);
                continue;
            }
            // Without an account there is nothing to patch yet; such deliveries are not loaded.
            let Some(account) = &p.mirror_account else { continue };
            let answer = self.outside.target().patch_bearer(account, &p.entry.access_token).await;
            self.observe(Api::Composio, now, &answer).await?;
            match answer {
                Ok(_) => {
                    self.sink_succeeded(Sink::Composio, now).await?;
                    patched.done.push(p);
                }
                Err(error) => {
                    self.sink_failed(Sink::Composio, &error.kind, now).await?;
                    patched.failed.push((p, error.kind));
                }
            }
        }
        Ok(patched)
    }

    async fn delivered(&self, sink: Sink, written: Vec<PendingDelivery>, now: Timestamp) -> EngineResult<()> {
        if written.is_empty() {
            return Ok(());
        }
        self.sink_succeeded(sink, now).await?;
        self.known(|known| {
            written.iter().for_each(|p| known.mirroring.count(sink, &p.triplet, p.metadata.v, true));
        });
        let written: Vec<_> = written.into_iter().map(PendingDelivery::acknowledged).collect();
        Ok(self.store.mark_delivered(&written, now).await?)
    }

    /// Tries again later, or gives up when trying again cannot help: it was refused for good, or it
    /// failed often enough while the sink took others.
    async fn put_off(
        &self,
        sink: Sink,
        pending: &[PendingDelivery],
        kind: &ApiErrorKind,
        now: Timestamp,
    ) -> EngineResult<()> {
        let hopeless = matches!(kind, ApiErrorKind::Rejected { .. });
        let healthy = self.circuit(sink, |circuit| circuit.is_closed());
        let took_at = self.known(|known| {
            pending.iter().for_each(|p| known.mirroring.count(sink, &p.triplet, p.metadata.v, false));
            known.mirroring.took_at.get(&sink).copied()
        });
        let mut attempts = 0;
        let mut refuses_all = false;
        let mut later: Vec<&PendingDelivery> = Vec::new();
        for p in pending {
            let worn = p.attempts + 1 >= self.config.delivery_attempts_max;
            let took_others = p.failing_since.is_some_and(|since| took_at.is_some_and(|at| at > since));
            refuses_all |= worn && !took_others;
            if hopeless || (worn && healthy && took_others) {
                let why = format!("{} after {} attempts: {kind}", sink.name(), p.attempts + 1);
                if !self.store.bury_delivery(p, &why).await? {
                    // A newer version is there, or somebody else is at it: that one is tried.
                    later.push(p);
                    continue;
                }
                tracing::error!(triplet = %p.triplet, "dead letter: {why}");
                let note = Note { at: now, subject: p.triplet.to_string(), detail: why };
                self.store.add_note("dead-letter", &note).await?;
            } else {
                attempts = attempts.max(p.attempts + 1);
                later.push(p);
            }
        }
        if refuses_all && !hopeless && !kind.is_limit() && !speaks_of_sink(sink, kind) {
            self.sink_in_trouble(sink, kind, now).await?;
        }
        if let Some(first) = later.first() {
            let draw = spread(&["delivery", sink.name(), &first.triplet.to_string()], u64::from(attempts));
            let next_at = now.plus_ms(delivery_retry_after_ms(attempts, kind.wait_ms(), draw));
            tracing::warn!(sink = sink.name(), deliveries = later.len(), attempts, "put off: {kind}");
            self.store.defer_deliveries(&later, now, next_at).await?;
        }
        Ok(())
    }

    async fn sink_succeeded(&self, sink: Sink, now: Timestamp) -> EngineResult<()> {
        self.known(|known| known.mirroring.took_at.insert(sink, now));
        if let Change::Closed(since) = self.circuit(sink, Circuit::succeeded) {
            let detail = format!("takes deliveries again after {} s", now.since(since) / SECOND_MS);
            tracing::warn!(sink = sink.name(), "circuit closed: {detail}");
            let note = Note { at: now, subject: sink.name().to_owned(), detail };
            self.store.add_note("circuit-closed", &note).await?;
        }
        Ok(())
    }

    /// What follows from a failure if it speaks of the sink as a whole.
    pub(super) async fn sink_failed(&self, sink: Sink, kind: &ApiErrorKind, now: Timestamp) -> EngineResult<()> {
        if kind.is_limit() {
            let until = now.plus_ms(kind.wait_ms().unwrap_or(0).max(LIMITED_MS));
            self.circuit(sink, |circuit| circuit.limited(until));
        } else if speaks_of_sink(sink, kind) {
            self.sink_in_trouble(sink, kind, now).await?;
        }
        Ok(())
    }

    async fn sink_in_trouble(&self, sink: Sink, kind: &ApiErrorKind, now: Timestamp) -> EngineResult<()> {
        let draw = spread(&["circuit", sink.name()], now.millis().unsigned_abs());
        if self.circuit(sink, |circuit| circuit.failed(&kind.to_string(), now, draw)) == Change::Opened {
            let detail = format!("left alone after failures in a row: {kind}");
            tracing::error!(sink = sink.name(), "circuit open: {detail}");
            let note = Note { at: now, subject: sink.name().to_owned(), detail };
            self.store.add_note("circuit-open", &note).await?;
        }
        Ok(())
    }

    pub(super) fn circuit<T>(&self, sink: Sink, look: impl FnOnce(&mut Circuit) -> T) -> T {
        self.known(|known| look(known.mirroring.circuits.entry(sink).or_default()))
    }
}

/// Whether a failure speaks of the sink as a whole. What a bulk put does not find is its namespace, a
/// patch its account.
fn speaks_of_sink(sink: Sink, kind: &ApiErrorKind) -> bool {
    match kind {
        ApiErrorKind::Unreachable { .. }
        | ApiErrorKind::Server { .. }
        | ApiErrorKind::Contract { .. }
        | ApiErrorKind::Unauthorized { .. } => true,
        ApiErrorKind::NotFound { .. } => sink != Sink::Composio,
        ApiErrorKind::RateLimited { .. }
        | ApiErrorKind::OverBudget { .. }
        | ApiErrorKind::Conflict { .. }
        | ApiErrorKind::RefreshFailed { .. }
        | ApiErrorKind::Rejected { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_results_of_a_version_are_counted_once_in_four_classes() {
        let t = |name: &str| Triplet::parse(&format!("a:b:{name}")).unwrap();
        let mut m = Mirroring::default();
        for (name, source, target) in [("1", true, true), ("2", true, false), ("3", false, true), ("4", false, false)] {
            m.count(Sink::KvSource, &t(name), 1, source);
            m.count(Sink::Composio, &t(name), 1, false);
            m.count(Sink::KvTarget, &t(name), 1, target);
        }
        assert_eq!(m.results().each().map(|(_, n)| n), [1, 1, 1, 1]);
        // A retry does not change the first result; a version that was replaced counts as it stood.
        m.count(Sink::KvSource, &t("5"), 1, false);
        m.count(Sink::KvSource, &t("5"), 1, true);
        m.count(Sink::KvSource, &t("5"), 2, true);
        m.count(Sink::KvTarget, &t("5"), 2, true);
        assert_eq!(m.results().each().map(|(_, n)| n), [2, 1, 1, 2]);
        assert!(m.open.is_empty());
    }
}
