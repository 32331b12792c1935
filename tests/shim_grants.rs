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
        Self::start_with(count, EngineConfig::new(Policy::default())).await
    }

    async fn start_with(count: usize, config: EngineConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, world) = (soaking(dir.path(), count).await, Fake::default());
        world.state().whoami = Some(ALIVE);
        for connection in store.load_connections().await.unwrap() {
            store.schedule_poll(connection.id, Some(BEGIN)).await.unwrap();
        }
        let engine = Engine::new(store, world.clone(), Catalogue::built_in(), config).await.unwrap();
        let mut case = Self { engine, world, now: BEGIN, dir };
        for n in 0..count {
            case.hands_out(n, "first", 60);
        }
        case.run_until(0).await;
        case
    }

    /// From now on Nango refreshes this connection.
    fn hands_out(&self, n: usize, token: &str, minutes: i64) {
        self.hands_out_until(n, token, Some(minutes));
    }

    fn hands_out_until(&self, n: usize, token: &str, minutes: Option<i64>) {
        let mut state = self.world.state();
        state.failures.remove(&connection_id(n));
        state.credentials.insert(connection_id(n), credential(&format!("{token}-{n}"), minutes));
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
        self.entry(n).access_token.expose().to_owned()
    }

    fn entry(&self, n: usize) -> KvEntry {
        let state = self.world.state();
        let (value, _) = &state.kv[&(Namespace::Source, triplet(n).kv_key())];
        KvEntry::from_json(value.as_bytes()).unwrap()
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

fn credential(token: &str, minutes: Option<i64>) -> SourceCredential {
    SourceCredential {
        auth_mode: "OAUTH2".into(),
        access_token: Secret::new(token),
        expires_at: minutes.map(|minutes| BEGIN.plus_ms(minutes * MINUTE_MS)),
        scope: None,
        token_type: None,
        connection_config: serde_json::Map::new(),
        auth_error: false,
    }
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
    let config = EngineConfig::new(Policy::default());
    let engine = Engine::new(store, world.clone(), Catalogue::built_in(), config).await.unwrap();
    let mut case = Case { engine, world, now, dir };
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

/// In minutes.
const DAY: i64 = 24 * 60;

#[tokio::test]
async fn a_refreshed_token_without_an_end_is_served_and_is_dead_only_when_it_is_itself_refused() {
    let mut case = Case::start(1).await;
    case.hands_out_until(0, "no end", None);
    case.world.state().whoami_of = Some(("first-0".to_owned(), REVOKED));
    case.run_until(60 + DAY).await;
    assert_eq!((case.serves(0), case.entry(0).expires_at), ("no end-0".to_owned(), None));
    assert_eq!(
        (case.marker(0), case.noted("dead-grant").await),
        (None, 0),
        "the old token ran out, and the grant lives"
    );
    case.world.state().whoami_of = Some(("no end-0".to_owned(), REVOKED));
    case.run_until(60 + 2 * DAY).await;
    assert!(case.marker(0).is_some());
    // The new consent gives a token that lives less long than the dead one.
    case.hands_out(0, "consented", 60 + 2 * DAY + 45);
    case.run_until(60 + 2 * DAY + 20).await;
    assert_eq!((case.serves(0), case.marker(0)), ("consented-0".to_owned(), None));
}

#[tokio::test]
async fn a_refresh_that_gives_the_same_token_a_longer_life_reaches_kv() {
    let mut case = Case::start(1).await;
    case.hands_out(0, "first", 120);
    case.run_until(50).await;
    assert_eq!(case.entry(0).expires_at, Some(BEGIN.plus_ms(120 * MINUTE_MS)));
    // An API key that is set back is no replay.
    for (minutes, token) in [(51, "second"), (52, "first")] {
        case.hands_out(0, token, 240);
        let connection = case.engine.store().load_connections().await.unwrap()[0].id;
        case.engine.store().schedule_poll(connection, Some(case.now)).await.unwrap();
        case.run_until(minutes).await;
        assert_eq!(case.serves(0), format!("{token}-0"));
    }
}

#[tokio::test]
async fn a_connection_that_nango_does_not_answer_for_holds_up_no_other() {
    // One by one: whoever has waited longest is the first.
    let config = EngineConfig { reads_at_once: 1, ..EngineConfig::new(Policy::default()) };
    let mut case = Case::start_with(4, config).await;
    case.fails(0, ApiErrorKind::Server { status: 500, code: "broken".into() });
    for n in 1..4 {
        case.hands_out(n, "second", 120);
    }
    case.run_until(46).await;
    for n in 1..4 {
        assert_eq!(case.serves(n), format!("second-{n}"));
    }
    case.run_until(75).await;
    assert_eq!((case.noted("outage").await, case.noted("reads-stopped").await), (0, 0));
    let row = case.engine.store().load_connections().await.unwrap().remove(0);
    assert!((10..=14).contains(&row.claim), "{} reads in half an hour: they get rarer", row.claim);
    assert_eq!(row.failures, 0, "it says nothing of the grant");
    case.hands_out(0, "second", 180);
    case.run_until(79).await;
    assert_eq!(case.serves(0), "second-0");
}

#[tokio::test]
async fn people_hear_when_no_token_can_be_read_and_when_they_are_read_again() {
    let server = ApiErrorKind::Server { status: 503, code: "down".into() };
    let key = ApiErrorKind::Unauthorized { status: 401, code: "unknown_account".into() };
    for (kind, away, outages) in [(server, true, &["nango", "nango.reads"][..]), (key, false, &["nango.reads"])] {
        let mut case = Case::start(2).await;
        for n in 0..2 {
            case.fails(n, kind.clone());
        }
        case.world.state().away = away;
        case.run_until(49).await;
        assert!(!case.alerts().await.contains(&"reads-stopped".to_owned()), "it may pass");
        case.run_until(53).await;
        assert_eq!(case.alerts().await.iter().filter(|told| *told == "reads-stopped").count(), 1);
        let status = cutover::status::snapshot(case.engine.store(), &Policy::default(), case.now).await.unwrap();
        assert_eq!(status.header.outages.keys().collect::<Vec<_>>(), outages);
        assert!(status.header.outages["nango.reads"] > 5 * MINUTE_MS);

        case.world.state().away = false;
        for n in 0..2 {
            case.hands_out(n, "second", 120);
        }
        case.run_until(55).await;
        assert_eq!(case.alerts().await.iter().filter(|told| *told == "reads-served").count(), 1);
        let status = cutover::status::snapshot(case.engine.store(), &Policy::default(), case.now).await.unwrap();
        assert!(status.header.outages.is_empty(), "{:?}", status.header.outages);
        // The next time is told again.
        case.fails(0, kind.clone());
        case.fails(1, kind);
        case.world.state().away = away;
        case.run_until(115).await;
        assert_eq!(case.noted("reads-stopped").await, 2);
    }
}

#[tokio::test]
async fn a_token_that_every_read_replaces_is_read_at_half_its_life() {
    let mut case = Case::start(1).await;
    let short = (0..50).map(|n| credential(&format!("short {n}"), Some(60))).collect();
    case.world.state().refreshes.insert(connection_id(0), short);
    case.run_until(60).await;
    let left = case.world.state().refreshes[&connection_id(0)].len();
    assert!((42..=46).contains(&left), "{} reads in 15 minutes", 50 - left);
}
