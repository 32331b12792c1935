//! Two workers, one sink that applies whatever reaches it, and every order in which they can work,
//! stall and die: what the sink holds, held against a model.

#[path = "support/newest.rs"]
mod newest;

use cutover::domain::custody::Route;
use cutover::domain::secret::Secret;
use cutover::domain::time::Timestamp;
use cutover::domain::token::{KvEntry, Writer};
use cutover::domain::triplet::Triplet;
use cutover::store::{Capture, Durability, Intake, NewTriplet, NewVersion, PendingDelivery, Sink, Store, Vault};
use newest::{Chain, Token, report_until};
use proptest::prelude::*;

/// How long a claim holds, in seconds.
const CLAIM_S: i64 = 10;

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The poller reads a token.
    Capture(Token),
    /// Somebody reports a token.
    Accept(Token),
    /// The duties work in what was accepted.
    Drain,
    /// A worker takes what is due.
    Claim(usize),
    /// A worker's write reaches the sink.
    Write(usize),
    /// A worker records what it wrote.
    Mark(usize),
    /// A worker is killed; another one starts in its place.
    Die(usize),
    /// Time passes.
    Wait(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let worker = 0usize..2;
    // Few, so that tokens come again, with the same end and with others.
    let ends = 0i64..6;
    let step = prop_oneof![
        3 => (0u8..4, ends.clone()).prop_map(Step::Capture),
        3 => ends.prop_map(|end| Step::Accept(report_until(end))),
        2 => Just(Step::Drain),
        5 => worker.clone().prop_map(Step::Claim),
        5 => worker.clone().prop_map(Step::Write),
        5 => worker.clone().prop_map(Step::Mark),
        1 => worker.prop_map(Step::Die),
        3 => (1i64..8).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..60)
}

/// A worker with what it took up.
#[derive(Default)]
struct Worker {
    pending: Option<PendingDelivery>,
    /// The place of its version in the chain.
    place: usize,
    until: i64,
    written: bool,
    /// It wrote when its claim was over.
    late: bool,
}

struct Play {
    stores: [Store; 2],
    workers: [Worker; 2],
    connection: i64,
    now: i64,
    chain: Chain,
    /// The newest tokens so far, one after the other; the first one is none.
    heads: Vec<Option<Token>>,
    /// Reported and not worked in.
    reported: Vec<Token>,
    /// The place in `heads` of the token that the sink holds.
    held: usize,
    /// Workers may write after their claim is over.
    stalls: bool,
    _dir: tempfile::TempDir,
}

fn at(s: i64) -> Timestamp {
    Timestamp::from_secs(s)
}

fn triplet() -> Triplet {
    Triplet::parse("kahuna:slack:default").unwrap()
}

fn entry((token, end): Token) -> KvEntry {
    KvEntry {
        access_token: Secret::new(format!("token {token}")),
        expires_at: Some(at(end)).filter(|_| end > 0),
        token_type: None,
        scope: None,
        other: serde_json::Map::new(),
    }
}

impl Play {
    async fn begin(stalls: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cutover.db");
        let open = async || Store::open(&path, Durability::ProcessCrash, Vault::from_master(&[9; 32])).await.unwrap();
        let stores = [open().await, open().await];
        let new = NewTriplet {
            triplet: triplet(),
            integration_key: "slack".into(),
            connection_id: "kahuna__slack__default".into(),
            route: Route::Reconsent,
            wave: Some(1),
            toolkit: Some("slack".into()),
            scopes: Vec::new(),
        };
        stores[0].begin_plan("p-000000000001", "{}", &[new], at(0)).await.unwrap();
        let connection = stores[0].load_connections().await.unwrap()[0].id;
        let workers = [Worker::default(), Worker::default()];
        let (chain, heads, reported) = (Chain::default(), vec![None], Vec::new());
        Self { stores, workers, connection, now: 1, chain, heads, reported, held: 0, stalls, _dir: dir }
    }

    async fn step(&mut self, step: Step) {
        let store = &self.stores[0];
        match step {
            Step::Capture(token) => {
                let capture = Capture {
                    connection: self.connection,
                    claim: 0,
                    fingerprint: store.vault().fingerprints().fingerprint(&entry(token).access_token),
                    expires_at: entry(token).expires_at,
                    poll_at: at(self.now),
                    versions: vec![NewVersion {
                        triplet: triplet(),
                        epoch: 1,
                        writer: Writer::Nango,
                        entry: entry(token),
                    }],
                    scheduled: None,
                };
                store.append_captures(&[capture], &[Sink::KvSource], at(self.now)).await.unwrap();
                self.chain.read(token);
                self.follow();
            }
            Step::Accept(token) => {
                store.accept(Intake::token(&triplet(), &entry(token), at(self.now))).await.unwrap();
                self.reported.push(token);
            }
            Step::Drain => {
                let segments = store.load_intake(100).await.unwrap();
                store.settle_intake(&segments, &[], &[Sink::KvSource], at(self.now)).await.unwrap();
                self.chain.report(&std::mem::take(&mut self.reported));
                self.follow();
            }
            Step::Claim(n) => {
                if self.workers[n].pending.is_some() {
                    return;
                }
                let until = self.now + CLAIM_S;
                let claimed = self.stores[n].claim_deliveries(Sink::KvSource, at(self.now), 10, at(until)).await;
                let pending = claimed.unwrap().pop();
                let (offered, newest) = (pending.as_ref().map(|p| &p.entry), self.chain.head.map(entry));
                assert!(offered.is_none() || offered == newest.as_ref(), "an old token was offered");
                let place = self.heads.len() - 1;
                self.workers[n] = Worker { pending, place, until, written: false, late: false };
            }
            Step::Write(n) => {
                let worker = &mut self.workers[n];
                let in_time = self.now < worker.until;
                if worker.pending.is_some() && (in_time || self.stalls) {
                    assert!(self.stalls || worker.place >= self.held, "{:?}: back to {}", self.heads, worker.place);
                    self.held = worker.place;
                    worker.written = true;
                    worker.late |= !in_time;
                }
            }
            Step::Mark(n) => {
                let worker = &mut self.workers[n];
                if !worker.written {
                    return;
                }
                let p = worker.pending.take().unwrap();
                *worker = Worker::default();
                self.stores[n].mark_delivered(&[p.acknowledged()], at(self.now)).await.unwrap();
            }
            // One that wrote late and dies before it can say so leaves an old token that only the
            // scan of the namespace finds.
            Step::Die(n) if self.workers[n].late => {}
            Step::Die(n) => self.workers[n] = Worker::default(),
            Step::Wait(s) => self.now += s,
        }
    }

    fn follow(&mut self) {
        if self.heads.last() != Some(&self.chain.head) {
            self.heads.push(self.chain.head);
        }
    }

    /// Both finish what they have, stalled or not; then whatever is due is done.
    async fn end(&mut self) {
        self.step(Step::Drain).await;
        for n in [0, 1] {
            self.step(Step::Write(n)).await;
            self.step(Step::Mark(n)).await;
            self.step(Step::Die(n)).await;
        }
        for _ in 0..4 {
            self.step(Step::Wait(CLAIM_S + 2)).await;
            for step in [Step::Claim(0), Step::Write(0), Step::Mark(0)] {
                self.step(step).await;
            }
        }
        assert_eq!(self.held, self.heads.len() - 1, "the sink must end with the newest token: {:?}", self.heads);
        let state = self.stores[1].load_sink(Sink::KvSource).await.unwrap();
        assert!(state.iter().all(|s| s.delivered == s.version), "{state:?}");
        assert!(self.stores[1].load_sink_due(Sink::KvSource).await.unwrap().is_none());
        self.stores[1].verify_journal().await.unwrap();
        self.stores[1].verify_intake().await.unwrap();
    }
}

/// 48, or `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(48)
}

fn play(steps: &[Step], stalls: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut play = Play::begin(stalls).await;
        for step in steps {
            play.step(*step).await;
        }
        play.end().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2_000, ..ProptestConfig::with_cases(cases()) })]

    /// While everybody writes within the time of their claim, no sink ever goes back.
    #[test]
    fn a_sink_never_goes_back(steps in steps()) {
        play(&steps, false);
    }

    /// Writers that come back late may put an old token there for a moment; it does not stay.
    #[test]
    fn a_late_write_is_mended(steps in steps()) {
        play(&steps, true);
    }
}
