//! Order: whatever order tokens arrive in, however often, and however late or lost the answers of
//! the sinks are, every sink ends with the newest token of each triplet and never goes back.

#[path = "support/fake.rs"]
mod fake;

use std::collections::BTreeMap;

use cutover::catalogue::Catalogue;
use cutover::domain::secret::Secret;
use cutover::domain::time::Timestamp;
use cutover::domain::token::KvEntry;
use cutover::domain::webhook::read_verified;
use cutover::engine::{Engine, EngineConfig, Lane, Reported};
use cutover::plan::Policy;
use cutover::ports::SourceCredential;
use cutover::store::Sink;
use fake::{Fake, Fate, Step, Written, connection_id, soaking, triplet};
use proptest::prelude::*;

const TRIPLETS: usize = 3;
/// Tokens a triplet may get. Each lives longer than the one before, whatever order they come in.
const VERSIONS: i64 = 8;
const BEGIN_S: i64 = 1_000;
/// No token ends while a case runs.
const FAR_S: i64 = 10_000_000;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Act {
    /// The gateway reports a token; the same one may be reported again, or an older one late.
    Report {
        triplet: usize,
        version: i64,
    },
    /// Nango has refreshed and says so.
    Rotate {
        triplet: usize,
        version: i64,
    },
    /// A lane runs; what is reported meanwhile is accepted while its requests are under way.
    Run {
        lane: usize,
        meanwhile: Vec<(usize, i64)>,
    },
    Wait {
        ms: i64,
    },
    /// The next writes to sinks go like this.
    Script(Vec<Step>),
}

fn act() -> impl Strategy<Value = Act> {
    let named = || (0..TRIPLETS, 1..=VERSIONS);
    let fate = prop_oneof![3 => Just(Fate::Done), 1 => Just(Fate::Failed), 1 => Just(Fate::AnswerLost), 1 => Just(Fate::Limited)];
    let step = (0u8..4, 0u8..4, fate).prop_map(|(before, after, fate)| Step { before, after, fate });
    prop_oneof![
        4 => named().prop_map(|(triplet, version)| Act::Report { triplet, version }),
        2 => named().prop_map(|(triplet, version)| Act::Rotate { triplet, version }),
        6 => (0..4usize, prop::collection::vec(named(), 0..3)).prop_map(|(lane, meanwhile)| Act::Run { lane, meanwhile }),
        2 => (1i64..130_000).prop_map(|ms| Act::Wait { ms }),
        2 => prop::collection::vec(step, 1..4).prop_map(Act::Script),
    ]
}

fn token(triplet: usize, version: i64) -> String {
    format!("token-{triplet}-{version}")
}

fn version_of(token: &str) -> i64 {
    token.rsplit('-').next().unwrap().parse().unwrap()
}

fn entry(triplet: usize, version: i64) -> KvEntry {
    KvEntry {
        access_token: Secret::new(token(triplet, version)),
        expires_at: Some(Timestamp::from_secs(FAR_S + version * 60)),
        token_type: None,
        scope: None,
        other: serde_json::Map::new(),
    }
}

fn credential(triplet: usize, version: i64) -> SourceCredential {
    let KvEntry { access_token, expires_at, .. } = entry(triplet, version);
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

/// The reference: the newest version of each triplet that was accepted.
#[derive(Default)]
struct Model(BTreeMap<usize, i64>);

impl Model {
    fn saw(&mut self, triplet: usize, version: i64) {
        let newest = self.0.entry(triplet).or_default();
        *newest = version.max(*newest);
    }
}

async fn report(engine: &Engine<Fake>, triplet_n: usize, version: i64, now: Timestamp) {
    let reported = engine.report_token(&triplet(triplet_n), entry(triplet_n, version), now).await.unwrap();
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

async fn run_case(acts: Vec<Act>) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let store = soaking(dir.path(), TRIPLETS).await;
    let world = Fake::default();
    let config = EngineConfig { sink_parallel: 3, ..EngineConfig::new(Policy::default()) };
    let engine = Engine::new(store, world.clone(), Catalogue::built_in(), config).await.unwrap();
    let mut now = Timestamp::from_secs(BEGIN_S);
    let mut model = Model::default();
    for triplet in 0..TRIPLETS {
        world.state().credentials.insert(connection_id(triplet), credential(triplet, 0));
        report(&engine, triplet, 0, now).await;
        // The connection is read for the first time when somebody says so.
        let row = engine.store().load_connections().await.unwrap().remove(triplet);
        engine.store().schedule_poll(row.id, Some(now)).await.unwrap();
        model.saw(triplet, 0);
    }
    for act in acts {
        match act {
            Act::Report { triplet, version } => {
                report(&engine, triplet, version, now).await;
                model.saw(triplet, version);
            }
            Act::Rotate { triplet, version } => {
                world.state().credentials.insert(connection_id(triplet), credential(triplet, version));
                hint(&engine, triplet, now).await;
            }
            Act::Run { lane, meanwhile } => {
                // Nango's tokens count from when they are read.
                if Lane::ALL[lane] == Lane::Reads {
                    for (n, held) in world.state().credentials.values().enumerate() {
                        model.saw(n, version_of(held.access_token.expose()));
                    }
                }
                let others = async {
                    for (triplet, version) in &meanwhile {
                        report(&engine, *triplet, *version, now).await;
                    }
                };
                let (ran, ()) = tokio::join!(engine.run_lane(Lane::ALL[lane], now), others);
                ran.unwrap();
                meanwhile.iter().for_each(|(triplet, version)| model.saw(*triplet, *version));
            }
            Act::Wait { ms } => now = now.plus_ms(ms),
            Act::Script(steps) => world.state().script.extend(steps),
        }
    }
    // Everything is well again, and has time.
    world.state().script.clear();
    for (n, held) in world.state().credentials.values().enumerate() {
        model.saw(n, version_of(held.access_token.expose()));
    }
    for triplet in 0..TRIPLETS {
        hint(&engine, triplet, now).await;
    }
    for _ in 0..12 {
        now = now.plus_ms(150_000);
        for lane in &Lane::ALL[..4] {
            engine.run_lane(*lane, now).await.unwrap();
        }
    }
    let history: Vec<Written> = std::mem::take(&mut world.state().history);
    let mut seen: BTreeMap<(Sink, usize), i64> = BTreeMap::new();
    for written in history {
        let triplet =
            (0..TRIPLETS).find(|n| written.key == triplet(*n).to_string() || written.key == format!("ca_{n}"));
        let (triplet, version) = (triplet.unwrap(), version_of(&written.token));
        let last = seen.insert((written.sink, triplet), version).unwrap_or(0);
        prop_assert!(version >= last, "{} went back from {last} to {version}", written.sink.name());
    }
    for triplet in 0..TRIPLETS {
        for sink in Sink::ALL {
            prop_assert_eq!(seen.get(&(sink, triplet)), model.0.get(&triplet), "{} of {}", sink.name(), triplet);
        }
    }
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
