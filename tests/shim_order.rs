//! Order: whatever order tokens arrive in, however often, and however late or lost the answers of
//! the sinks are, every sink ends with the newest token of each triplet and never goes back.

#[path = "support/fake.rs"]
mod fake;
#[path = "support/newest.rs"]
mod newest;

use std::collections::BTreeSet;

use cutover::catalogue::Catalogue;
use cutover::domain::secret::Secret;
use cutover::domain::time::Timestamp;
use cutover::domain::token::KvEntry;
use cutover::domain::webhook::read_verified;
use cutover::engine::{Engine, EngineConfig, Lane, Reported};
use cutover::plan::Policy;
use cutover::ports::{Namespace, SourceCredential};
use cutover::store::Sink;
use fake::{Fake, Fate, Step, connection_id, soaking, triplet};
use newest::{Chain, Token, report_until};
use proptest::prelude::*;

const TRIPLETS: usize = 3;
/// Tokens that a triplet may get, and the ends that each may have: few, so that they come again.
const TOKENS: u8 = 5;
const ENDS: i64 = 7;
const BEGIN_S: i64 = 1_000;
/// No token ends while a case runs.
const FAR_S: i64 = 10_000_000;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Act {
    /// The gateway reports a token; the same one may be reported again, or an older one late.
    Report {
        triplet: usize,
        token: Token,
    },
    /// Nango has another token, or the same one with another end, and says so.
    Rotate {
        triplet: usize,
        token: Token,
    },
    /// A lane runs; what is reported meanwhile is accepted while its requests are under way.
    Run {
        lane: usize,
        meanwhile: Vec<(usize, Token)>,
    },
    Wait {
        ms: i64,
    },
    /// The next writes to sinks go like this.
    Script(Vec<Step>),
}

fn act() -> impl Strategy<Value = Act> {
    let reported = || (0..TRIPLETS, (0..ENDS).prop_map(report_until));
    let read = (0..TRIPLETS, (0..TOKENS, 0..ENDS));
    let fate = prop_oneof![3 => Just(Fate::Done), 1 => Just(Fate::Failed), 1 => Just(Fate::AnswerLost), 1 => Just(Fate::Limited)];
    let step = (0u8..4, 0u8..4, fate).prop_map(|(before, after, fate)| Step { before, after, fate });
    prop_oneof![
        4 => reported().prop_map(|(triplet, token)| Act::Report { triplet, token }),
        2 => read.prop_map(|(triplet, token)| Act::Rotate { triplet, token }),
        6 => (0..4usize, prop::collection::vec(reported(), 0..3)).prop_map(|(lane, meanwhile)| Act::Run { lane, meanwhile }),
        2 => (1i64..130_000).prop_map(|ms| Act::Wait { ms }),
        2 => prop::collection::vec(step, 1..4).prop_map(Act::Script),
    ]
}

fn entry(triplet: usize, (token, end): Token) -> KvEntry {
    KvEntry {
        access_token: Secret::new(format!("token-{triplet}-{token}")),
        expires_at: Some(Timestamp::from_secs(FAR_S + end * 60)).filter(|_| end > 0),
        token_type: None,
        scope: None,
        other: serde_json::Map::new(),
    }
}

fn credential(triplet: usize, token: Token) -> SourceCredential {
    let KvEntry { access_token, expires_at, .. } = entry(triplet, token);
    SourceCredential {
        auth_mode: "OAUTH2".into(),
        access_token,
        expires_at,
        scope: None,
        token_type: None,
        connection_config: serde_json::Map::new(),
        auth_error: false,
    }
}

/// What may be true of a triplet: what is reported while the poller works may be worked in before
/// its read or after it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Belief {
    chain: Chain,
    /// Reported, and not worked in.
    waiting: Vec<Token>,
}

/// One triplet as the reference has it.
struct Model {
    beliefs: BTreeSet<Belief>,
    /// What Nango has, and what the poller read last.
    held: Token,
    read: Option<Token>,
    /// The tokens that were the newest, one after the other.
    heads: Vec<Token>,
}

impl Model {
    fn new(held: Token) -> Self {
        let belief = Belief { chain: Chain::default(), waiting: Vec::new() };
        Self { beliefs: [belief].into(), held, read: None, heads: Vec::new() }
    }

    fn reported(&mut self, token: Token) {
        let beliefs = std::mem::take(&mut self.beliefs);
        self.beliefs.extend(beliefs.into_iter().map(|mut belief| {
            belief.waiting.push(token);
            belief
        }));
    }

    /// The poller works in what was reported, and reads; `meanwhile` is reported beside it.
    fn polled(&mut self, meanwhile: &[Token]) {
        let news = Some(self.held).filter(|held| self.read != Some(*held));
        self.read = Some(self.held);
        for mut belief in std::mem::take(&mut self.beliefs) {
            belief.waiting.extend(meanwhile);
            for later in 0..=meanwhile.len() {
                let mut belief = belief.clone();
                let waiting = belief.waiting.split_off(belief.waiting.len() - later);
                belief.chain.report(&std::mem::replace(&mut belief.waiting, waiting));
                news.into_iter().for_each(|token| belief.chain.read(token));
                self.beliefs.insert(belief);
            }
        }
    }

    /// Holds what may be against what is.
    fn meets(&mut self, n: usize, head: &KvEntry) -> Result<(), TestCaseError> {
        self.beliefs.retain(|belief| belief.chain.head.is_some_and(|token| entry(n, token) == *head));
        prop_assert!(!self.beliefs.is_empty(), "triplet {n} has a head that it may not have");
        let newest = self.beliefs.first().and_then(|belief| belief.chain.head);
        self.heads.extend(newest.filter(|token| self.heads.last() != Some(token)));
        Ok(())
    }
}

async fn report(engine: &Engine<Fake>, n: usize, token: Token, now: Timestamp) {
    let reported = engine.report_token(&triplet(n), entry(n, token), now).await.unwrap();
    assert_eq!(reported, Reported::Accepted);
}

/// Tells of a refresh, as Nango's webhook does.
async fn hint(engine: &Engine<Fake>, triplet: usize, now: Timestamp) {
    let body = serde_json::json!({
        "type": "auth", "operation": "refresh", "success": true,
        "connectionId": connection_id(triplet), "providerConfigKey": "slack",
    });
    engine.accept_hint(&read_verified(body.to_string().as_bytes()).unwrap(), now).await.unwrap();
}

/// What the reference says after the poller worked.
async fn polled(
    engine: &Engine<Fake>,
    models: &mut [Model],
    meanwhile: &[(usize, Token)],
) -> Result<(), TestCaseError> {
    for (n, model) in models.iter_mut().enumerate() {
        let beside: Vec<Token> = meanwhile.iter().filter(|(of, _)| *of == n).map(|(_, token)| *token).collect();
        model.polled(&beside);
        model.meets(n, &engine.store().load_head(&triplet(n)).await.unwrap().unwrap())?;
    }
    Ok(())
}

/// Every sink has the newest token, and no write went back.
fn arrived(world: &Fake, models: &[Model]) -> Result<(), TestCaseError> {
    let state = world.state();
    for (n, model) in models.iter().enumerate() {
        let newest = entry(n, *model.heads.last().unwrap());
        for (sink, key) in [
            (Sink::KvSource, triplet(n).to_string()),
            (Sink::KvTarget, triplet(n).to_string()),
            (Sink::Composio, format!("ca_{n}")),
        ] {
            let written: Vec<&String> =
                state.history.iter().filter(|w| w.sink == sink && w.key == key).map(|w| &w.token).collect();
            // Each write has its place in the chain, not before the one of the write before it.
            let mut chain =
                model.heads.iter().map(|token| entry(n, *token).access_token.expose().to_owned()).peekable();
            for token in &written {
                while chain.peek().is_some_and(|head| head != *token) {
                    chain.next();
                }
                prop_assert!(chain.peek().is_some(), "{} went back: {written:?} of {:?}", sink.name(), model.heads);
            }
            prop_assert_eq!(written.last().map(|t| t.as_str()), Some(newest.access_token.expose()), "{}", sink.name());
        }
        for namespace in [Namespace::Source, Namespace::Target] {
            let (value, _) = &state.kv[&(namespace, triplet(n).kv_key())];
            prop_assert_eq!(&KvEntry::from_json(value.as_bytes()).unwrap(), &newest);
        }
    }
    Ok(())
}

async fn run_case(acts: Vec<Act>) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let store = soaking(dir.path(), TRIPLETS).await;
    let world = Fake::default();
    let config = EngineConfig { sink_parallel: 3, ..EngineConfig::new(Policy::default()) };
    let engine = Engine::new(store, world.clone(), Catalogue::built_in(), config).await.unwrap();
    let mut now = Timestamp::from_secs(BEGIN_S);
    let mut models: Vec<Model> = (0..TRIPLETS).map(|_| Model::new((0, 1))).collect();
    for (n, model) in models.iter_mut().enumerate() {
        world.state().credentials.insert(connection_id(n), credential(n, model.held));
        report(&engine, n, (1, 1), now).await;
        model.reported((1, 1));
        // The connection is read for the first time when somebody says so.
        let row = engine.store().load_connections().await.unwrap().remove(n);
        engine.store().schedule_poll(row.id, Some(now)).await.unwrap();
    }
    for act in acts {
        match act {
            Act::Report { triplet, token } => {
                report(&engine, triplet, token, now).await;
                models[triplet].reported(token);
            }
            Act::Rotate { triplet, token } => {
                world.state().credentials.insert(connection_id(triplet), credential(triplet, token));
                models[triplet].held = token;
                hint(&engine, triplet, now).await;
            }
            Act::Run { lane, meanwhile } => {
                let others = async {
                    for (triplet, token) in &meanwhile {
                        report(&engine, *triplet, *token, now).await;
                    }
                };
                let (ran, ()) = tokio::join!(engine.run_lane(Lane::ALL[lane], now), others);
                ran.unwrap();
                if Lane::ALL[lane] == Lane::Reads {
                    polled(&engine, &mut models, &meanwhile).await?;
                } else {
                    meanwhile.iter().for_each(|(triplet, token)| models[*triplet].reported(*token));
                }
            }
            Act::Wait { ms } => now = now.plus_ms(ms),
            Act::Script(steps) => world.state().script.extend(steps),
        }
    }
    // Everything is well again, and has time.
    world.state().script.clear();
    for triplet in 0..TRIPLETS {
        hint(&engine, triplet, now).await;
    }
    for _ in 0..12 {
        now = now.plus_ms(150_000);
        for lane in &Lane::ALL[..4] {
            engine.run_lane(*lane, now).await.unwrap();
            if *lane == Lane::Reads {
                polled(&engine, &mut models, &[]).await?;
            }
        }
    }
    arrived(&world, &models)?;
    engine.store().verify_journal().await.unwrap();
    engine.store().verify_intake().await.unwrap();
    let dead = engine.store().load_backlog(100).await.unwrap();
    prop_assert!(dead.is_empty(), "{dead:?}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        // `PROPTEST_CASES` says otherwise.
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(48),
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_sink_ends_with_the_newest_token_and_never_goes_back(acts in prop::collection::vec(act(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run_case(acts))?;
    }
}
