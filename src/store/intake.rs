//! The intake log: what was accepted from outside, on disk before it is answered.
//!
//! Many callers, one commit: whoever accepts something hands it to one writer, which takes all that
//! is waiting, encrypts it as one payload, links it to the chain, and commits it as one row. Each
//! caller goes on after that commit. The duties work it in later, the newest token of each triplet
//! only.
//!
//! A sync takes far longer than the rest, so what counts is how many share one. Callers that were
//! answered together come back together, a moment after the writer took up what waited meanwhile:
//! left alone they would fall into two halves that wait for each other for ever. So the writer
//! waits that moment for as many as there were.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::coalesce::coalesce;
use super::db::{Lock, Tx};
use super::journal::{Incoming, NewVersion, chain};
use super::pruned::{Chain, Walk};
use super::{Backend, During, Row, Sink, Store, StoreError, StoreResult, Vault, from_json, query};
use crate::domain::custody::{Custody, Stage};
use crate::domain::newest::Origin;
use crate::domain::secret::Secret;
use crate::domain::time::{HOUR_MS, Timestamp};
use crate::domain::token::{KvEntry, Writer};
use crate::domain::triplet::Triplet;
use crate::failpoint;
use crate::plan::Route;

/// Binds payloads to this table.
pub(super) const PLACE: &str = "intake";

/// Callers that may wait for the writer; more wait for a place here.
const WAITING_MAX: usize = 4_096;

/// Entries that one commit carries at most.
const COMMIT_MAX: usize = 1_024;

/// How long a commit waits for callers that the one before answered.
const RETURN: Duration = Duration::from_millis(1);

/// How long the end of the chain is known without a look. Far shorter than what is kept.
const TRUSTED_MS: i64 = HOUR_MS;

/// Bytes of payloads that are loaded at once, about.
const LOAD_BYTES_MAX: i64 = 16 * 1024 * 1024;

/// What was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntakeKind {
    /// A token that somebody else wrote to KV: the subject is its triplet, the body its KV entry.
    Token,
    /// A verified webhook of Nango: what counts of its body.
    NangoWebhook,
}

impl IntakeKind {
    const ALL: [Self; 2] = [Self::Token, Self::NangoWebhook];

    fn code(self) -> u8 {
        match self {
            Self::Token => 1,
            Self::NangoWebhook => 2,
        }
    }
}

/// Something accepted from outside, checked before: what is in here is worked in without a way
/// to refuse it any more.
#[derive(Clone, PartialEq, Eq)]
pub struct Intake {
    pub kind: IntakeKind,
    pub at: Timestamp,
    pub subject: String,
    /// May hold a token: never print it.
    pub body: Zeroizing<Vec<u8>>,
}

impl Intake {
    /// A token that somebody else wrote to KV.
    pub fn token(triplet: &Triplet, entry: &KvEntry, at: Timestamp) -> Self {
        let body = Zeroizing::new(entry.to_json().into_bytes());
        Self { kind: IntakeKind::Token, at, subject: triplet.to_string(), body }
    }
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Intake({:?} {} at {}, {} bytes)", self.kind, self.subject, self.at.to_rfc3339(), self.body.len())
    }
}

/// What one commit carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub seq: i64,
    pub entries: Vec<Intake>,
}

/// What became of accepted tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// New versions in the journal.
    pub versions: usize,
    /// Older than what was there, or replaced by a newer one that was accepted with it.
    pub superseded: usize,
    /// The very token that was there.
    pub duplicates: usize,
    /// Of a triplet that is not in the applied plan.
    pub unknown: usize,
}

/// What a webhook asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint<'a> {
    /// The segment that it came in.
    pub seq: i64,
    /// The connection whose read comes forward.
    pub integration_key: &'a str,
    pub connection_id: &'a str,
    pub at: Timestamp,
}

/// What one caller brought and where its answer goes.
struct Waiting {
    work: Work,
    answer: oneshot::Sender<Result<(), Arc<StoreError>>>,
}

enum Work {
    Entry(Intake),
    /// Nothing: the caller wants to know whether something would be accepted at this time.
    Probe(Timestamp),
}

/// The way to the writer, which starts with the first entry.
#[derive(Default)]
pub(super) struct Queue {
    writer: OnceLock<(mpsc::Sender<Waiting>, JoinHandle<()>)>,
    arrived: Arc<Notify>,
    ended: Arc<Notify>,
}

/// Tells that the writer ended, also by a panic.
struct Ending(Arc<Notify>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Queue {
    /// Ends the writer when it has committed what is waiting.
    pub async fn close(self) {
        if let Some((sender, writer)) = self.writer.into_inner() {
            drop(sender);
            // A writer that panicked has answered nobody: there is nothing to wait for.
            let _ = writer.await;
        }
    }
}

impl Store {
    /// Puts something accepted on disk. When this returns, no crash can lose it. Waits while the
    /// writer is far behind.
    ///
    /// # Errors
    /// `NotAccepted` when it could not be committed. It may be on disk all the same when the
    /// connection to the database broke at the last moment; sending it again does no harm.
    pub async fn accept(&self, intake: Intake) -> StoreResult<()> {
        self.hand_in(Work::Entry(intake)).await
    }

    /// Whether something would be accepted at `now`: a commit by the same writer, the one of what waits
    /// if there is any.
    ///
    /// # Errors
    /// As [`Store::accept`].
    pub async fn probe_intake(&self, now: Timestamp) -> StoreResult<()> {
        self.hand_in(Work::Probe(now)).await
    }

    /// Waits until the writer has ended, which only a defect or the end of this store makes it do.
    pub async fn intake_ended(&self) {
        self.intake.ended.notified().await;
    }

    async fn hand_in(&self, work: Work) -> StoreResult<()> {
        let (sender, _) = self.intake.writer.get_or_init(|| {
            let (sender, waiting) = mpsc::channel(WAITING_MAX);
            let writer = IntakeWriter {
                backend: Arc::clone(&self.backend),
                vault: Arc::clone(&self.vault),
                arrived: Arc::clone(&self.intake.arrived),
                previous: None,
                expected: 0,
            };
            let ending = Ending(Arc::clone(&self.intake.ended));
            let run = async move {
                let _ending = ending;
                writer.run(waiting).await;
            };
            (sender, tokio::spawn(run))
        });
        let (answer, answered) = oneshot::channel();
        let gone = |_| StoreError::NotAccepted(Arc::new(StoreError::IntakeEnded));
        sender.send(Waiting { work, answer }).await.map_err(|_| gone(()))?;
        answered.await.map_err(|_| gone(()))?.map_err(StoreError::NotAccepted)
    }

    /// Waits until something was accepted by this process.
    pub async fn intake_arrived(&self) {
        self.intake.arrived.notified().await;
    }

    /// What was accepted and is not worked in, oldest first: at most `limit` commits of it, and
    /// fewer when they are large. None only when there is none.
    ///
    /// # Errors
    /// `Corrupt` when a payload is not what was accepted.
    pub async fn load_intake(&self, limit: u32) -> StoreResult<Vec<Segment>> {
        let mut session = self.read().await;
        let sizes = query(
            "SELECT seq, CAST(LENGTH(payload) AS BIGINT) FROM intake WHERE payload IS NOT NULL ORDER BY seq LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&mut session)
        .await
        .during("look for what was accepted")?;
        let mut room = LOAD_BYTES_MAX;
        let fits = sizes.iter().take_while(|r| {
            let fits = room > 0;
            room -= r.get::<i64>(1);
            fits
        });
        let Some(last) = fits.last() else { return Ok(Vec::new()) };
        let rows =
            query("SELECT seq, payload, digest FROM intake WHERE payload IS NOT NULL AND seq <= $1 ORDER BY seq")
                .bind(last.get::<i64>(0))
                .fetch_all(&mut session)
                .await
                .during("load what was accepted")?;
        rows.iter().map(|r| Ok(Segment { seq: r.get(0), entries: open_segment(&self.vault, r)? })).collect()
    }

    /// The last commit that is not worked in yet.
    pub async fn load_intake_end(&self) -> StoreResult<Option<i64>> {
        let row = query("SELECT MAX(seq) FROM intake WHERE payload IS NOT NULL")
            .fetch_one(&mut self.read().await)
            .await
            .during("look for what was accepted")?;
        Ok(row.get(0))
    }

    /// Works the tokens of `segments` into the journal, brings the reads forward that their webhooks
    /// ask for (`hints`), and erases the segments, all in one commit. What another machine settled
    /// meanwhile is left out.
    ///
    /// Which token is the newest is judged as in [`Store::append_captures`].
    pub async fn settle_intake(
        &self,
        segments: &[Segment],
        hints: &[Hint<'_>],
        sinks: &[Sink],
        now: Timestamp,
    ) -> StoreResult<Settled> {
        let mut connection = self.lock().await;
        let mut tx = connection.begin(Lock::Journal).await.during("begin")?;
        let wanted = json!(segments.iter().map(|s| [s.seq]).collect::<Vec<_>>()).to_string();
        let open: Vec<i64> = query(
            "SELECT seq FROM intake WHERE payload IS NOT NULL
               AND seq IN (SELECT CAST(value->>0 AS BIGINT) FROM json_each($1)) ORDER BY seq",
        )
        .bind(&wanted)
        .fetch_all(&mut tx)
        .await
        .during("look for what is settled")?
        .iter()
        .map(|r| r.get(0))
        .collect();
        let is_open = |seq| open.binary_search(&seq).is_ok();
        let entries: Vec<&Intake> = segments.iter().filter(|s| is_open(s.seq)).flat_map(|s| &s.entries).collect();
        let mut replays = Vec::new();
        let (mut settled, appended) = loop {
            let mut settled = Settled::default();
            let tokens = coalesce(&entries, &replays, &mut settled)?;
            let custodies = load_custodies(&mut tx, tokens.keys()).await?;
            let mut versions = Vec::new();
            for (triplet, entries) in tokens {
                let Some(custody) = custodies.get(&triplet.to_string()) else {
                    settled.unknown += entries.len();
                    continue;
                };
                let mirrored =
                    matches!(custody.route, Route::Reconsent | Route::Static) && custody.stage < Stage::Settled;
                versions.extend(entries.into_iter().map(|entry| {
                    let version =
                        NewVersion { triplet: triplet.clone(), epoch: custody.epoch, writer: Writer::DoAlarm, entry };
                    (version, mirrored)
                }));
            }
            let incoming = versions.iter().map(|(version, mirrored)| Incoming {
                version,
                origin: Origin::Report,
                mirrored: *mirrored,
            });
            let judged = self.judge(&mut tx, incoming.collect()).await?;
            let found = judged.replays().map(|v| (v.triplet.clone(), v.entry.access_token.clone()));
            let found: Vec<(Triplet, Secret)> = found.collect();
            if found.is_empty() {
                break (settled, self.append(&mut tx, judged, sinks, Vec::new(), &[], now).await?);
            }
            // For its late end others were left out that are newer than what is there.
            replays.extend(found);
        };
        settled.versions = appended.versions;
        settled.superseded += appended.superseded;
        settled.duplicates += appended.duplicates;
        let hints: Vec<&Hint<'_>> = hints.iter().filter(|hint| is_open(hint.seq)).collect();
        super::connection::advance_polls(&mut tx, &reads(&hints)).await?;
        query("UPDATE intake SET payload = NULL WHERE seq IN (SELECT CAST(value->>0 AS BIGINT) FROM json_each($1))")
            .bind(&wanted)
            .execute(&mut tx)
            .await
            .during("erase what is settled")?;
        super::evidence::add(
            &mut tx,
            &[
                ("webhooks", hints.len() as i64),
                ("intake_versions", settled.versions as i64),
                ("intake_superseded", settled.superseded as i64),
                ("intake_duplicates", settled.duplicates as i64),
                ("intake_unknown", settled.unknown as i64),
            ],
        )
        .await?;
        failpoint::hit("settle-before-commit");
        tx.commit().await.during("commit")?;
        failpoint::hit("settle-after-commit");
        Ok(settled)
    }

    /// Walks the whole intake log and recomputes its chain; what still has its payload is opened
    /// and compared. Returns the number of commits, those that were pruned included.
    ///
    /// # Errors
    /// `Corrupt` naming the first one that does not fit.
    pub async fn verify_intake(&self) -> StoreResult<u64> {
        self.verify_chain(Chain::Intake).await
    }

    pub(super) async fn walk_intake(&self) -> StoreResult<u64> {
        let mut walk = Walk::new(Chain::Intake);
        loop {
            let mut session = self.read().await;
            let rows = query(
                "SELECT seq, payload, digest, at, entries, previous, hash FROM intake WHERE seq > $1 ORDER BY seq LIMIT 1000",
            )
            .bind(walk.after)
            .fetch_all(&mut session)
            .await
            .during("read the intake log")?;
            let Some(last) = rows.last() else { return Ok(walk.count) };
            walk.load(&mut session, &self.vault, last.get(0)).await?;
            for r in &rows {
                walk.cross(r.get(0))?;
                self.step_intake(&mut walk, r)?;
            }
        }
    }

    /// Checks the next commit: columns as [`Store::walk_intake`] selects them.
    pub(super) fn step_intake(&self, walk: &mut Walk, r: &Row) -> StoreResult<()> {
        let (digest, hash): (Vec<u8>, Vec<u8>) = (r.get(2), r.get(6));
        let facts = json!([r.get::<i64>(3), r.get::<i64>(4)]).to_string();
        let linked = r.get::<Vec<u8>>(5) == walk.hash && chain(&walk.hash, &facts, &digest).as_slice() == hash;
        let whole = r.get::<Option<Vec<u8>>>(1).is_none() || open_segment(&self.vault, r).is_ok();
        walk.step(r.get(0), hash, linked && whole)
    }
}

/// Takes what is waiting and commits it, again and again.
struct IntakeWriter {
    backend: Arc<Backend>,
    vault: Arc<Vault>,
    arrived: Arc<Notify>,
    /// The last hash of the chain, as far as this process knows, and when it was the last.
    previous: Option<(Vec<u8>, Timestamp)>,
    /// Callers that the last commit answered, and those that waited behind it.
    expected: usize,
}

impl IntakeWriter {
    async fn run(mut self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut batch = Vec::new();
        while waiting.recv_many(&mut batch, COMMIT_MAX).await > 0 {
            await_return(self.expected, &mut batch, &mut waiting).await;
            let (mut entries, mut answers, mut probed_at) = (Vec::new(), Vec::new(), None);
            for Waiting { work, answer } in batch.drain(..) {
                answers.push(answer);
                match work {
                    Work::Entry(intake) => entries.push(intake),
                    Work::Probe(at) => probed_at = probed_at.max(Some(at)),
                }
            }
            let result = match probed_at {
                Some(at) if entries.is_empty() => self.probe(at).await,
                _ => self.commit(&entries).await,
            };
            let result = result.map_err(Arc::new);
            if result.is_ok() && !entries.is_empty() {
                self.arrived.notify_one();
            }
            self.expected = (entries.len() + waiting.len()).min(COMMIT_MAX);
            for answer in answers {
                // Nobody may be waiting any more: the client hung up.
                let _ = answer.send(result.clone());
            }
        }
    }

    async fn probe(&self, at: Timestamp) -> StoreResult<()> {
        let mut connection = self.backend.lock().await;
        super::save_meta(&mut connection, "probed_at", &at.millis().to_string()).await
    }

    async fn commit(&mut self, entries: &[Intake]) -> StoreResult<()> {
        let clear = encode(entries);
        let payload = self.vault.seal(PLACE, &clear)?;
        let digest = self.vault.digest(PLACE, &clear);
        let at = entries.iter().map(|e| e.at).max().expect("a commit carries something");
        failpoint::hit("intake-before-commit");
        loop {
            // What was linked behind an old hash may be pruned by now: it must be asked for again.
            let known = self.previous.take().filter(|(_, known_at)| at.since(*known_at).abs() < TRUSTED_MS);
            let previous = match known {
                Some((previous, _)) => previous,
                None => self.load_last().await?,
            };
            let facts = json!([at.millis(), entries.len()]).to_string();
            let hash = chain(&previous, &facts, &digest).to_vec();
            let linked = query(
                "INSERT INTO intake (at, entries, payload, digest, previous, hash) VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (previous) DO NOTHING",
            )
            .bind(at.millis())
            .bind(entries.len() as i64)
            .bind(&*payload)
            .bind(&digest[..])
            .bind(previous)
            .bind(&*hash)
            .execute(&mut self.backend.lock().await)
            .await
            .during("append to the intake log")?;
            // Otherwise another machine linked to it first; go behind that one.
            if linked == 1 {
                self.previous = Some((hash, at));
                failpoint::hit("intake-after-commit");
                return Ok(());
            }
        }
    }

    async fn load_last(&self) -> StoreResult<Vec<u8>> {
        let row = query("SELECT hash FROM intake ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&mut self.backend.lock().await)
            .await
            .during("load the end of the intake log")?;
        Ok(row.map_or_else(|| vec![0; 32], |r| r.get(0)))
    }
}

/// Fills the batch up with callers that are on their way back, until there are as many as `expected`.
/// Somebody who comes alone, or for the first time, waits for nobody.
async fn await_return(expected: usize, batch: &mut Vec<Waiting>, waiting: &mut mpsc::Receiver<Waiting>) {
    let all = async {
        while batch.len() < expected {
            if waiting.recv_many(batch, COMMIT_MAX - batch.len()).await == 0 {
                return;
            }
        }
    };
    // Who did not come back in time was not waiting for us.
    let _ = tokio::time::timeout(RETURN, all).await;
}

/// Payload and digest in the second and third column.
fn open_segment(vault: &Vault, row: &Row) -> StoreResult<Vec<Intake>> {
    let corrupt = || StoreError::Corrupt {
        what: "intake log",
        detail: format!("commit {} is not what was accepted", row.get::<i64>(0)),
    };
    let clear = vault.open(PLACE, &row.get::<Vec<u8>>(1))?;
    if vault.digest(PLACE, &clear).as_slice() != row.get::<Vec<u8>>(2) {
        return Err(corrupt());
    }
    decode(&clear).ok_or_else(corrupt)
}

async fn load_custodies(
    tx: &mut Tx<'_>,
    triplets: impl Iterator<Item = &Triplet>,
) -> StoreResult<BTreeMap<String, Custody>> {
    let names: Vec<[&Triplet; 1]> = triplets.map(|t| [t]).collect();
    let rows = query("SELECT key, custody FROM triplet WHERE key IN (SELECT value->>0 FROM json_each($1))")
        .bind(json!(names).to_string())
        .fetch_all(tx)
        .await
        .during("load custody")?;
    rows.iter().map(|r| Ok((r.get(0), from_json("custody", &r.get::<String>(1))?))).collect()
}

/// The reads that webhooks bring forward. Many about one connection are one read, the earliest.
fn reads<'a>(hints: &[&Hint<'a>]) -> Vec<(&'a str, &'a str, Timestamp)> {
    let mut reads: BTreeMap<(&str, &str), Timestamp> = BTreeMap::new();
    for hint in hints {
        let at = reads.entry((hint.integration_key, hint.connection_id)).or_insert(hint.at);
        *at = hint.at.min(*at);
    }
    reads.into_iter().map(|((key, id), at)| (key, id, at)).collect()
}

fn encode(entries: &[Intake]) -> Zeroizing<Vec<u8>> {
    let size = entries.iter().map(|e| 17 + e.subject.len() + e.body.len()).sum();
    let mut bytes = Zeroizing::new(Vec::with_capacity(size));
    for e in entries {
        bytes.push(e.kind.code());
        bytes.extend_from_slice(&e.at.millis().to_be_bytes());
        for part in [e.subject.as_bytes(), &e.body] {
            bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

fn decode(mut bytes: &[u8]) -> Option<Vec<Intake>> {
    let mut entries = Vec::new();
    while let Some((&code, rest)) = bytes.split_first() {
        let kind = IntakeKind::ALL.into_iter().find(|k| k.code() == code)?;
        let (at, rest) = rest.split_first_chunk()?;
        let (subject, rest) = part(rest)?;
        let (body, rest) = part(rest)?;
        entries.push(Intake {
            kind,
            at: Timestamp::from_millis(i64::from_be_bytes(*at)),
            subject: std::str::from_utf8(subject).ok()?.to_owned(),
            body: Zeroizing::new(body.to_vec()),
        });
        bytes = rest;
    }
    Some(entries)
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(subject: &str, token: &str, expires_s: i64) -> Intake {
        let body = json!({"access_token": token, "expires_at": expires_s}).to_string();
        Intake {
            kind: IntakeKind::Token,
            at: Timestamp::from_secs(1),
            subject: subject.to_owned(),
            body: Zeroizing::new(body.into_bytes()),
        }
    }

    #[test]
    fn entries_are_read_back_and_torn_ones_are_not() {
        let webhook = Intake { kind: IntakeKind::NangoWebhook, subject: String::new(), ..token("", "x", 1) };
        let entries = vec![token("a:b:c", "one", 10), webhook, token("ä:b:c", "", 0)];
        let bytes = encode(&entries);
        assert_eq!(decode(&bytes).as_ref(), Some(&entries));
        assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
        assert!(!format!("{entries:?}").contains("one"));
    }

    fn waiting(name: &str) -> Waiting {
        Waiting { work: Work::Entry(token("a:b:c", name, 1)), answer: oneshot::channel().0 }
    }

    /// Whether it is over without waiting for anything.
    fn is_immediate(future: impl Future<Output = ()>) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(future).poll(&mut context).is_ready()
    }

    #[tokio::test]
    async fn a_commit_waits_for_those_who_come_back_and_for_nobody_else() {
        let (sender, mut queue) = mpsc::channel(8);
        let mut batch = vec![waiting("one")];
        // Alone, or as many as there were: at once.
        assert!(is_immediate(await_return(0, &mut batch, &mut queue)) && batch.len() == 1);
        assert!(is_immediate(await_return(1, &mut batch, &mut queue)) && batch.len() == 1);
        // Some are back already, and one more than there were: all go together, at once.
        for name in ["two", "three", "four"] {
            sender.try_send(waiting(name)).unwrap_or_else(|_| panic!("there is room"));
        }
        assert!(is_immediate(await_return(3, &mut batch, &mut queue)) && batch.len() == 4);
        // One is missing: it is waited for, and who comes in time goes along.
        assert!(!is_immediate(await_return(5, &mut batch, &mut queue)));
        let arrives = async { sender.send(waiting("five")).await.unwrap_or_else(|_| panic!("there is room")) };
        tokio::join!(await_return(5, &mut batch, &mut queue), arrives);
        assert_eq!(batch.len(), 5);
        // One does not come back: the others do not wait for ever, and none is lost.
        let began = std::time::Instant::now();
        await_return(6, &mut batch, &mut queue).await;
        assert!(batch.len() == 5 && began.elapsed() >= RETURN);
        // Nobody can come any more.
        drop(sender);
        assert!(is_immediate(await_return(9, &mut batch, &mut queue)) && batch.len() == 5);
    }
}
