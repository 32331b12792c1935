//! The crash matrix: every operation of a cutover, struck at every request that it sends (the
//! process dies before it, dies after its effect, or the answer is lost), and dropped at its
//! awaits. Whatever happened, the operation is called again until it is done, and then once more.
//!
//! What must hold: at every crash, reads are nowhere that custody does not know of; in the end the
//! state is what it is without a crash, nothing exists twice, and nothing is done twice; or a
//! person is asked.

#[path = "support/cutover.rs"]
mod support;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use cutover::catalogue::Catalogue;
use cutover::clients::{Clock, HttpOutside};
use cutover::domain::criteria::Verdict;
use cutover::domain::custody::{Custody, ReadAuthority};
use cutover::domain::time::{HOUR_MS, SECOND_MS, Timestamp};
use cutover::domain::triplet::Triplet;
use cutover::engine::{Engine, EngineConfig, EngineError, EngineResult, GateReport, Progress, Reversal};
use cutover::plan::{Plan, Policy};
use cutover::ports::{AccountStatus, AlarmMode, GatewayRead, Namespace, Outside, SourceRead, TargetRead};
use cutover::sandbox::{Strike, World};
use cutover::store::{Durability, Store, Vault};
use support::{Cutover, SMALL};

const POLICY: &str = "reverse_window = \"10m\"\n";

/// Awaits after which an operation is dropped: all of the first ones, then fewer and fewer.
const DROPS: [usize; 24] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 19, 22, 26, 31, 37, 44, 53, 64, 77, 92, 110];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Apply,
    Consent,
    Drill,
    Switch,
    Reverse,
    SwitchAgain,
    Settle,
    RetireDoAlarm,
    Restore,
    RetireAgain,
    RetireNango,
}

/// In the order of a cutover.
const OPS: [Op; 11] = [
    Op::Apply,
    Op::Consent,
    Op::Drill,
    Op::Switch,
    Op::Reverse,
    Op::SwitchAgain,
    Op::Settle,
    Op::RetireDoAlarm,
    Op::Restore,
    Op::RetireAgain,
    Op::RetireNango,
];

impl Op {
    async fn call(self, engine: &Engine<HttpOutside>, plan: &Plan, now: Timestamp) -> EngineResult<Progress> {
        match self {
            Self::Apply => engine.apply(plan, now).await,
            Self::Consent => engine.consent(now).await,
            Self::Drill => engine.drill(1, now).await,
            Self::Switch | Self::SwitchAgain => match engine.switch(1, now).await? {
                Progress::Done => engine.switch(2, now).await,
                wait @ Progress::Wait(_) => Ok(wait),
            },
            Self::Reverse => match engine.reverse(&Reversal::Wave(1), now).await? {
                Progress::Done => engine.reverse(&Reversal::Wave(2), now).await,
                wait @ Progress::Wait(_) => Ok(wait),
            },
            Self::Settle => engine.settle(now).await,
            Self::RetireDoAlarm | Self::RetireAgain => engine.retire_do_alarms(&[], now).await,
            Self::Restore => engine.restore_do_alarms(now).await,
            Self::RetireNango => engine.retire_nango(now).await,
        }
    }
}

/// A moment between two operations.
#[derive(Clone)]
struct Moment {
    world: World,
    state: PathBuf,
    now: Timestamp,
}

/// What is there in the end, by names of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End {
    custody: BTreeMap<Triplet, (String, ReadAuthority, bool)>,
    /// Accounts at the target that are not gone, by alias; an alias that is there twice shows.
    accounts: Vec<(String, AccountStatus)>,
    configs: Vec<String>,
    connections: Vec<String>,
    alarms: BTreeMap<Triplet, AlarmMode>,
    reads: BTreeMap<Triplet, Namespace>,
}

/// What strikes a call.
#[derive(Clone, Copy, Debug)]
enum Blow {
    None,
    At(u64, Strike),
    /// Dropped at this await.
    Drop(usize),
}

struct Matrix {
    cutover: Cutover,
    plan: Plan,
    http: reqwest::Client,
    cases: u64,
    asked: u64,
}

impl Matrix {
    fn new() -> Self {
        let cutover = Cutover::start(SMALL, POLICY, Vec::new());
        let plan = Plan::from_json(&std::fs::read_to_string(&cutover.plan).unwrap()).unwrap();
        let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        Self { cutover, plan, http, cases: 0, asked: 0 }
    }

    async fn open(&self, state: &Path) -> Engine<HttpOutside> {
        let store = Store::open(state, Durability::ProcessCrash, Vault::from_master(&[7; 32])).await.unwrap();
        let clock = Arc::clone(&self.cutover.clock);
        let clock: Clock = Arc::new(move || Timestamp::from_millis(clock.load(Ordering::Relaxed)));
        let outside = HttpOutside::new(self.cutover.endpoints(), clock).unwrap();
        let config = EngineConfig::new(Policy::from_toml(POLICY).unwrap());
        Engine::new(store, outside, Catalogue::built_in(), config).await.unwrap()
    }

    /// Puts the world and a copy of the state back to a moment.
    fn back_to(&self, moment: &Moment, copy: &str) -> PathBuf {
        *self.cutover.sandbox.lock() = moment.world.clone();
        self.cutover.clock.store(moment.now.millis(), Ordering::Relaxed);
        let state = self.cutover.dir.path().join(copy);
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", state.display()));
        }
        if moment.state.exists() {
            std::fs::copy(&moment.state, &state).unwrap();
        }
        state
    }

    /// Calls an operation until it is done. Whoever dies is built again from the state.
    async fn until_done(&self, op: Op, state: &Path, blow: Blow) -> Result<(), EngineError> {
        let mut drop_at = None;
        match blow {
            Blow::At(ahead, strike) => self.cutover.sandbox.lock().strike(ahead, strike),
            Blow::Drop(at) => drop_at = Some(at),
            Blow::None => {}
        }
        let mut engine = self.open(state).await;
        for _ in 0..500 {
            let now = self.cutover.now();
            let crash = self.cutover.sandbox.crash.clone();
            let mut polls = 0;
            let result = {
                let mut call = pin!(op.call(&engine, &self.plan, now));
                let mut crashed = pin!(crash.crashed());
                std::future::poll_fn(|cx| {
                    polls += 1;
                    if crashed.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(None);
                    }
                    match call.as_mut().poll(cx) {
                        Poll::Ready(result) => Poll::Ready(Some(result)),
                        Poll::Pending if drop_at.is_some_and(|at| polls >= at) => Poll::Ready(None),
                        Poll::Pending => Poll::Pending,
                    }
                })
                .await
            };
            let Some(result) = result else {
                // Dead in the middle. Whatever was on its way arrives or does not; then somebody looks.
                drop_at = None;
                drop(engine);
                self.cutover.sandbox.crash.reset();
                engine = self.open(state).await;
                self.nothing_is_half_done(&engine, op, blow).await;
                continue;
            };
            drop_at = drop_at.map(|at| at.saturating_sub(polls).max(1));
            match result? {
                Progress::Done => return Ok(()),
                Progress::Wait(at) => self.cutover.advance(at.max(now.plus_ms(SECOND_MS))),
            }
        }
        panic!("{op:?} {blow:?} does not end");
    }

    /// Reads are nowhere that custody does not know of: what stands in KV is what custody says, or
    /// on its way there or back.
    async fn nothing_is_half_done(&self, engine: &Engine<HttpOutside>, op: Op, blow: Blow) {
        for row in engine.store().load_triplets().await.unwrap() {
            let (custody, reads) = (&row.custody, self.record(&row.triplet).await);
            let known = reads == custody.read || custody.moving.is_some();
            assert!(known, "{op:?} {blow:?}: the record of {} says {reads:?}, and custody is {custody:?}", row.triplet);
        }
    }

    /// The read-authority record as it stands in KV, wherever the gateway's caches are.
    async fn record(&self, triplet: &Triplet) -> ReadAuthority {
        let keys = self.cutover.sandbox.lock().keys();
        let (base, account) = (&self.cutover.sandbox.urls.cloudflare, &keys.cloudflare_account_id);
        let key = format!("authority:{triplet}").replace(':', "%3A");
        let namespace = &keys.kv_source;
        let url = format!("{base}/client/v4/accounts/{account}/storage/kv/namespaces/{namespace}/values/{key}");
        let answer = self.http.get(url).bearer_auth(&keys.cloudflare_token).send().await.unwrap();
        if answer.status() == 404 {
            return ReadAuthority::Source;
        }
        let record: serde_json::Value = answer.json().await.unwrap();
        if record["read"] == "target" { ReadAuthority::Target } else { ReadAuthority::Source }
    }

    async fn reads(&self, engine: &Engine<HttpOutside>) -> BTreeMap<Triplet, Namespace> {
        let rows = engine.store().load_triplets().await.unwrap();
        let triplets: Vec<Triplet> = rows.into_iter().map(|row| row.triplet).collect();
        let results = engine.outside().gateway().smoke(&triplets).await.unwrap();
        results.into_iter().map(|result| (result.triplet, result.read_authority)).collect()
    }

    async fn end(&self, state: &Path) -> End {
        let engine = self.open(state).await;
        let outside = engine.outside();
        let shown = |custody: &Custody| (custody.stage.to_string(), custody.read, custody.moving.is_some());
        let rows = engine.store().load_triplets().await.unwrap();
        let accounts = outside.target().list_accounts().await.unwrap();
        let mut accounts: Vec<_> = accounts.into_iter().map(|a| (a.alias.unwrap_or_default(), a.status)).collect();
        accounts.sort_by(|a, b| a.0.cmp(&b.0));
        let mut configs: Vec<_> =
            outside.target().list_auth_configs().await.unwrap().into_iter().map(|c| c.name).collect();
        configs.sort();
        let mut connections: Vec<_> =
            outside.source().list_connections().await.unwrap().into_iter().map(|c| c.connection_id).collect();
        connections.sort();
        let alarms = outside.gateway().list_alarms().await.unwrap().into_iter().map(|a| (a.triplet, a.mode)).collect();
        let end = End {
            custody: rows.iter().map(|row| (row.triplet.clone(), shown(&row.custody))).collect(),
            accounts,
            configs,
            connections,
            alarms,
            reads: self.reads(&engine).await,
        };
        engine.into_store().close().await.unwrap();
        end
    }

    /// Lets the gate pass now, as far as the state knows.
    async fn pass(&self, state: &Path) {
        let engine = self.open(state).await;
        let now = self.cutover.now();
        let judged = engine.gate(now).await.unwrap();
        let (criteria, open_until) = (Vec::new(), now.plus_ms(24 * HOUR_MS));
        let report = GateReport { verdict: Verdict::Pass, criteria, open_until, ..judged };
        engine.record_gate(&report).await.unwrap();
        engine.into_store().close().await.unwrap();
    }

    /// Requests that change something; a smoke test and a read in bulk do not.
    fn writes(&self) -> (u64, u64, u64, u64) {
        let ledger = self.cutover.ledger();
        let of = |api: &str, method: &str| ledger.requests.get(api).and_then(|m| m.get(method)).copied().unwrap_or(0);
        let nango = ["POST", "PATCH", "DELETE"].iter().map(|m| of("nango", m)).sum();
        let composio = ["PATCH", "DELETE"].iter().map(|m| of("composio", m)).sum();
        (nango, composio, ledger.kv_writes, ledger.refreshing_reads)
    }

    /// One case: the operation with a blow, then once more.
    async fn case(&mut self, op: Op, before: &Moment, blow: Blow, expected: &End) {
        self.cases += 1;
        let state = self.back_to(before, "case.db");
        match self.until_done(op, &state, blow).await {
            Ok(()) => {}
            Err(EngineError::Ambiguous { question, .. }) => {
                assert!(question.ends_with('?'), "{op:?} {blow:?}: {question}");
                self.asked += 1;
                return;
            }
            Err(error) => panic!("{op:?} {blow:?}: {error}"),
        }
        let end = self.end(&state).await;
        assert_eq!(&end, expected, "{op:?} {blow:?}");
        let writes = self.writes();
        self.until_done(op, &state, Blow::None).await.unwrap_or_else(|e| panic!("{op:?} {blow:?} again: {e}"));
        assert_eq!(self.writes(), writes, "{op:?} {blow:?}: a second call writes something");
        assert_eq!(self.end(&state).await.custody, end.custody, "{op:?} {blow:?} again");
        let ledger = self.cutover.ledger();
        let damage = (ledger.double_refreshes, ledger.regressions, ledger.lost);
        assert_eq!(damage, (0, 0, 0), "{op:?} {blow:?}: {:?}", ledger.incidents);
    }
}

#[test]
fn whatever_is_struck_ends_as_if_nothing_had_happened() {
    let mut matrix = Matrix::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let state = matrix.cutover.dir.path().join("cutover.db");
        let _ = std::fs::remove_file(&state);
        for (n, op) in OPS.into_iter().enumerate() {
            let now = matrix.cutover.now();
            if op != Op::Apply {
                matrix.pass(&state).await;
            }
            let kept = matrix.cutover.dir.path().join(format!("moment-{n}.db"));
            if state.exists() {
                let engine = matrix.open(&state).await;
                engine.store().copy_to(&kept).await.unwrap();
                engine.into_store().close().await.unwrap();
            }
            let before = Moment { world: matrix.cutover.sandbox.lock().clone(), state: kept, now };

            // Undisturbed, and how many requests that takes.
            let first = matrix.cutover.sandbox.lock().request_number();
            matrix.until_done(op, &state, Blow::None).await.unwrap_or_else(|error| panic!("{op:?}: {error}"));
            let requests = matrix.cutover.sandbox.lock().request_number() - first;
            let expected = matrix.end(&state).await;
            let after = (matrix.cutover.sandbox.lock().clone(), matrix.cutover.now());

            let cases = matrix.cases;
            for ahead in 1..=requests {
                for strike in [Strike::CrashBefore, Strike::CrashAfter, Strike::ReplyLost] {
                    matrix.case(op, &before, Blow::At(ahead, strike), &expected).await;
                }
            }
            for at in DROPS {
                matrix.case(op, &before, Blow::Drop(at), &expected).await;
            }
            println!("{op:?}: {requests} requests, {} cases", matrix.cases - cases);
            *matrix.cutover.sandbox.lock() = after.0;
            matrix.cutover.clock.store(after.1.millis(), Ordering::Relaxed);
        }
    });
    println!("crash matrix: {} cases, of which a person was asked in {}", matrix.cases, matrix.asked);
    assert!(matrix.cases > 300, "{} cases", matrix.cases);
}
