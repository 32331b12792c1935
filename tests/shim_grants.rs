//! What the poller makes of a connection that Nango cannot refresh: a marker in KV and an alert when
//! the grant is gone for certain, and neither when it may be anything else.

#[path = "support/fake.rs"]
mod fake;

use cutover::alert::Alerts;
use cutover::catalogue::Catalogue;
use cutover::domain::secret::Secret;
use cutover::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};
use cutover::domain::token::KvEntry;
use cutover::engine::{Engine, EngineConfig};
use cutover::plan::Policy;
use cutover::ports::{ApiErrorKind, Namespace, SourceCredential};
use fake::{Fake, connection_id, soaking, triplet};
use serde_json::Value;

const BEGIN: Timestamp = Timestamp::from_secs(1_000_000);

/// Slack's answers to whoami.
const ALIVE: (u16, &str) = (200, r#"{"ok":true,"user_id":"U1","team_id":"T1"}"#);
const REVOKED: (u16, &str) = (200, r#"{"ok":false,"error":"token_revoked"}"#);
const BUSY: (u16, &str) = (429, "");
const FORBIDDEN: (u16, &str) = (200, r#"{"ok":false,"error":"missing_scope"}"#);

fn refused() -> ApiErrorKind {
    let code = "invalid_credentials".to_owned();
    ApiErrorKind::RefreshFailed { status: 400, code, cooldown: false, exhausted: false }
}

struct Case {
    engine: Engine<Fake>,
    world: Fake,
    now: Timestamp,
    dir: tempfile::TempDir,
}

impl Case {
    /// `count` connections, each with a token that ends 60 minutes after the beginning.
    async fn start(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, world) = (soaking(dir.path(), count).await, Fake::default());
        world.state().whoami = Some(ALIVE);
        for connection in store.load_connections().await.unwrap() {
            store.schedule_poll(connection.id, Some(BEGIN)).await.unwrap();
        }
        let engine = engine(store, &world).await;
        let mut case = Self { engine, world, now: BEGIN, dir };
        for n in 0..count {
            case.hands_out(n, "first", 60);
        }
        case.run_until(0).await;
        case
    }

    /// From now on Nango refreshes this connection.
    fn hands_out(&self, n: usize, token: &str, minutes: i64) {
        let mut state = self.world.state();
        state.failures.remove(&connection_id(n));
        let credential = SourceCredential {
            auth_mode: "OAUTH2".into(),
            access_token: Secret::new(format!("{token}-{n}")),
            expires_at: Some(BEGIN.plus_ms(minutes * MINUTE_MS)),
            scope: None,
            token_type: None,
            connection_config: serde_json::Map::new(),
            auth_error: false,
        };
        state.credentials.insert(connection_id(n), credential);
    }

    fn fails(&self, n: usize, kind: ApiErrorKind) {
        self.world.state().failures.insert(connection_id(n), kind);
    }

    /// Runs everything that is due until so many minutes after the beginning.
    async fn run_until(&mut self, minutes: i64) {
        let end = BEGIN.plus_ms(minutes * MINUTE_MS);
        loop {
            let next = self.engine.run_due(self.now).await.unwrap().unwrap();
            if next > end {
                self.now = end;
                return;
            }
            self.now = next.max(self.now.plus_ms(SECOND_MS));
        }
    }

    fn marker(&self, n: usize) -> Option<Value> {
        let state = self.world.state();
        let (value, _) = state.kv.get(&(Namespace::Source, triplet(n).reauth_key()))?;
        Some(serde_json::from_str(value).unwrap())
    }

    fn serves(&self, n: usize) -> String {
        let state = self.world.state();
        let (value, _) = &state.kv[&(Namespace::Source, triplet(n).kv_key())];
        KvEntry::from_json(value.as_bytes()).unwrap().access_token.expose().to_owned()
    }

    async fn noted(&self, kind: &str) -> usize {
        self.engine.store().load_notes(kind).await.unwrap().len()
    }

    /// Kinds of the alerts that wait for a place to send them to.
    async fn alerts(&self) -> Vec<String> {
        Alerts::new(None, None).run_due(self.engine.store(), self.now).await.unwrap();
        let due = self.engine.store().load_due_alerts(self.now, 100).await.unwrap();
        due.into_iter().map(|alert| alert.kind).collect()
    }
}

async fn engine(store: cutover::store::Store, world: &Fake) -> Engine<Fake> {
    let config = EngineConfig::new(Policy::default());
    Engine::new(store, world.clone(), Catalogue::built_in(), config).await.unwrap()
}

#[tokio::test]
async fn a_revoked_grant_gets_its_marker_and_its_alert_once_and_loses_both_with_a_new_consent() {
    let mut case = Case::start(2).await;
    case.fails(0, refused());
    case.hands_out(1, "second", 120);
    case.world.state().whoami = Some(REVOKED);
    case.run_until(59).await;
    let marker = case.marker(0).expect("the provider refuses the unexpired token, and Nango cannot refresh it");
    assert_eq!(marker["reauth"], true);
    assert!(marker["reason"].as_str().unwrap().contains("refuses its unexpired token"), "{marker}");
    assert!(Timestamp::parse(marker["since"].as_str().unwrap()).unwrap() < BEGIN.plus_ms(59 * MINUTE_MS));
    assert_eq!(case.serves(0), "first-0", "the token stays until its own end");
    assert_eq!(case.marker(1), None);
    case.run_until(119).await;
    assert_eq!(case.noted("dead-grant").await, 1, "told once");
    assert!(case.alerts().await.contains(&"dead-grant".to_owned()));
    let dead = case.engine.store().load_dead_grants().await.unwrap();
    assert_eq!(dead.iter().map(|d| d.subject.clone()).collect::<Vec<_>>(), [triplet(0).to_string()]);
    let (store, policy) = (case.engine.store(), Policy::default());
    let snapshot = cutover::status::snapshot(store, &policy, case.now).await.unwrap();
    assert_eq!(snapshot.header.dead_grants, 1);
    let news: Vec<_> = snapshot.news.iter().map(|n| (n.kind.as_str(), n.subject.clone(), n.times)).collect();
    assert!(news.contains(&("dead-grant", triplet(0).to_string(), 1)), "{news:?}");
    let picture = cutover::soak::look(store, &policy, &snapshot, case.now).await.unwrap();
    let gone: Vec<_> = picture.triplets.iter().filter(|t| t.dead_grant.is_some()).map(|t| t.triplet.clone()).collect();
    assert_eq!(gone, [triplet(0).to_string()]);

    case.hands_out(0, "consented", 300);
    case.hands_out(1, "third", 300);
    case.run_until(140).await;
    assert_eq!((case.marker(0), case.serves(0)), (None, "consented-0".to_owned()));
    assert!(case.engine.store().load_dead_grants().await.unwrap().is_empty());
    let dead_at: Vec<_> = case.engine.store().load_connections().await.unwrap().iter().map(|c| c.dead_at).collect();
    assert_eq!(dead_at, [None, None]);
}

/// Each line: what Nango says, what the provider says, how many connections of the client fail and
/// succeed; and whether a doubt is noted. None of them may be called dead.
#[tokio::test]
async fn nothing_but_certainty_makes_a_marker() {
    let server = || ApiErrorKind::Server { status: 503, code: "down".into() };
    let gone = || ApiErrorKind::NotFound { code: "unknown_connection".into() };
    let key = || ApiErrorKind::Unauthorized { status: 401, code: "unknown_account".into() };
    for (name, failing, fine, kind, whoami, doubts) in [
        ("transient: Nango is away", 1, 1, server(), Some(REVOKED), 0),
        ("config: our key is refused", 1, 1, key(), Some(REVOKED), 0),
        ("config: Nango has no such connection", 1, 1, gone(), Some(FORBIDDEN), 1),
        ("transient: the provider is away", 1, 1, refused(), None, 0),
        ("transient: the provider has too many requests", 1, 1, refused(), Some(BUSY), 0),
        ("config: the whole client fails", 2, 0, refused(), Some(FORBIDDEN), 2),
        ("ambiguous: no other connection to compare with", 1, 0, refused(), Some(FORBIDDEN), 1),
    ] {
        let mut case = Case::start(failing + fine).await;
        for n in 0..failing {
            case.fails(n, kind.clone());
        }
        for n in failing..failing + fine {
            case.hands_out(n, "second", 180);
        }
        case.world.state().whoami = whoami;
        case.run_until(100).await;
        for n in 0..failing + fine {
            assert_eq!(case.marker(n), None, "{name}");
        }
        assert_eq!(case.noted("dead-grant").await, 0, "{name}");
        assert_eq!(case.noted("grant-doubt").await, doubts, "{name}");
        assert_eq!(case.alerts().await.iter().filter(|kind| *kind == "grant-doubt").count(), doubts, "{name}");
    }
}

#[tokio::test]
async fn past_its_end_a_grant_is_gone_when_others_of_its_client_are_refreshed() {
    let mut case = Case::start(2).await;
    case.fails(0, refused());
    case.world.state().whoami = Some(FORBIDDEN);
    // The other one is refreshed every quarter of an hour.
    for minutes in [75, 90, 105, 120] {
        case.hands_out(1, &format!("until {minutes}"), minutes);
        case.run_until(minutes - 15).await;
    }
    let marker = case.marker(0).expect("others are refreshed");
    assert!(marker["reason"].as_str().unwrap().contains("others of the same client"), "{marker}");
    assert_eq!((case.marker(1), case.noted("dead-grant").await), (None, 1));
}

#[tokio::test]
async fn a_grant_that_somebody_else_refreshes_is_not_called_gone() {
    let mut case = Case::start(1).await;
    case.fails(0, refused());
    case.world.state().whoami = Some(REVOKED);
    let entry = KvEntry {
        access_token: Secret::new("of the alarm"),
        expires_at: Some(BEGIN.plus_ms(90 * MINUTE_MS)),
        token_type: None,
        scope: None,
        other: serde_json::Map::new(),
    };
    case.engine.report_token(&triplet(0), entry, case.now).await.unwrap();
    case.run_until(85).await;
    assert_eq!((case.marker(0), case.noted("dead-grant").await), (None, 0));
}

#[tokio::test]
async fn a_token_that_nango_hands_out_past_its_end_has_no_refresh_token() {
    let mut case = Case::start(1).await;
    case.run_until(59).await;
    assert_eq!(case.marker(0), None);
    let reads = case.engine.store().load_connections().await.unwrap()[0].claim;
    assert!((2..=9).contains(&reads), "{reads} reads: a token that stays is no reason to hurry");
    case.run_until(70).await;
    let marker = case.marker(0).unwrap();
    assert!(marker["reason"].as_str().unwrap().contains("no refresh token"), "{marker}");
}

#[tokio::test]
async fn a_marker_arrives_although_kv_was_away_and_the_engine_began_anew() {
    let mut case = Case::start(1).await;
    case.fails(0, refused());
    {
        let mut state = case.world.state();
        (state.whoami, state.no_markers) = (Some(REVOKED), true);
    }
    case.run_until(55).await;
    assert_eq!((case.marker(0), case.noted("dead-grant").await), (None, 1));
    // The process dies; what it wanted is in the state.
    let Case { engine: old, world, now, dir } = case;
    old.into_store().close().await.unwrap();
    let store = soaking(dir.path(), 1).await;
    let mut case = Case { engine: engine(store, &world).await, world, now, dir };
    case.world.state().no_markers = false;
    case.run_until(60).await;
    assert!(case.marker(0).is_some());
    // The same on the way back.
    case.world.state().no_markers = true;
    case.hands_out(0, "consented", 300);
    case.run_until(80).await;
    assert!(case.marker(0).is_some());
    case.world.state().no_markers = false;
    case.run_until(85).await;
    assert_eq!(case.marker(0), None);
}
