//! Every fault does what its name says, to whom the notes say.

use super::super::Fault;
use super::super::world::Answer;
use super::*;

fn world_with(faults: &[&str]) -> Client {
    let mut settings = config(vec![row("kahuna", "hubspot", &["hubspot"])]);
    settings.faults = faults.iter().map(|f| Fault::parse(f).unwrap()).collect();
    settings.fault_until = START.plus_ms(10 * HOUR_MS);
    Client::new(World::new(settings))
}

#[test]
fn lost_webhooks_never_leave() {
    let mut client = world_with(&["webhook-loss=50%"]);
    for n in 0..100 {
        let body = json!({"provider_config_key": "hubspot", "connection_id": format!("c{n}"),
                          "credentials": {"type": "OAUTH2", "access_token": "a"}});
        client.send(Api::Nango, "POST", "/connections", &body);
    }
    let sent = client.world.take_outbound().len();
    assert!((30..70).contains(&sent), "{sent}");
}

#[test]
fn kv_lag_hides_writes_for_at_least_thirty_seconds() {
    let mut client = world_with(&["kv-lag"]);
    client.set_alarm("disarmed");
    let expiry = client.expiry();
    client.world.advance_to(expiry.plus_ms(MINUTE_MS));
    let token = client.poll();
    client.mirror("source", &token);
    let stale = |client: &mut Client| {
        client.send(Api::Gateway, "POST", "/admin/smoke", &json!({"triplets": [TRIPLET]})).value()["results"][0]["stale"].clone()
    };
    client.advance(29_999);
    assert_eq!(stale(&mut client), true);
    client.advance(60_001);
    assert_eq!(stale(&mut client), false);
}

#[test]
fn composio_limits_some_requests_with_and_without_a_header_and_a_retry_gets_through() {
    let mut client = world_with(&["composio-429=30%"]);
    let (mut with, mut without) = (0, 0);
    for _ in 0..200 {
        let reply = client.call(Api::Composio, "GET", "/api/v3.1/toolkits");
        match (reply.status, reply.header("retry-after").is_some()) {
            (429, true) => with += 1,
            (429, false) => without += 1,
            _ => {}
        }
    }
    assert!(with > 10 && without > 10 && with + without < 100, "{with} {without}");
    client.advance(11 * HOUR_MS);
    assert!(
        (0..50).all(|_| client.call(Api::Composio, "GET", "/api/v3.1/toolkits").status == 200),
        "the window is over"
    );
}

#[test]
fn the_outage_sits_in_the_middle_of_the_window() {
    let mut client = world_with(&["nango-outage=1h"]);
    let begin = START.plus_ms(5 * HOUR_MS - HOUR_MS / 2);
    assert_eq!(client.world.fault_notes()[0].at, begin);
    client.world.advance_to(begin.plus_ms(-1));
    assert_eq!(client.nango("GET", "/connections").status, 200);
    client.advance(1);
    let down = client.nango("GET", "/connections");
    assert_eq!((down.status, down.header("content-type")), (503, Some("text/html; charset=utf-8")));
    client.advance(HOUR_MS);
    assert_eq!(client.nango("GET", "/connections").status, 200);
}

#[test]
fn smoke_tests_and_d1_are_silent_from_the_window_on() {
    let mut client = world_with(&["smoke-outage=2h", "audit-outage=3h"]);
    let database = client.world.keys().d1_database;
    let statuses = |client: &mut Client| {
        let smoke = client.send(Api::Gateway, "POST", "/admin/smoke", &json!({"triplets": []})).status;
        let path =
            format!("/client/v4/accounts/{}/d1/database/{database}/query", client.world.keys().cloudflare_account_id);
        [smoke, client.send(Api::Cloudflare, "POST", &path, &json!({"sql": "SELECT 1"})).status]
    };
    assert_eq!(client.world.fault_notes()[0].at, START);
    assert_eq!(statuses(&mut client), [503, 500]);
    client.world.advance_to(START.plus_ms(2 * HOUR_MS));
    assert_eq!(statuses(&mut client), [200, 500]);
    client.world.advance_to(START.plus_ms(3 * HOUR_MS));
    assert_ne!(statuses(&mut client)[1], 500);
}

#[test]
fn a_zombie_refreshes_again_and_ignores_its_mode() {
    let mut client = world_with(&["do-alarm-zombie"]);
    client.set_alarm("disarmed");
    let note = client.world.fault_notes()[0].clone();
    assert_eq!(note.triplet.unwrap().to_string(), TRIPLET);
    let token = client.poll();
    client.mirror("source", &token);
    client.world.advance_to(note.at.plus_ms(2 * HOUR_MS));
    assert!(client.world.ledger().foreign_writes > 0);
    assert_eq!(client.set_alarm("disarmed").value()["mode"], "refresh");
}

#[test]
fn a_revoked_grant_ends_reads_and_is_named() {
    let mut client = world_with(&["grant-revoked"]);
    let note = client.world.fault_notes()[0].clone();
    client.world.advance_to(note.at);
    let forced = client.nango("GET", &format!("{CONNECTION}&force_refresh=true"));
    assert_eq!(forced.status, 400);
    client.advance(10 * MINUTE_MS);
    assert!(client.world.ledger().stale_reads >= 9);
}

fn whoami_and_scope(client: &mut Client) -> (Value, Value) {
    let id = super::composio::consented(client);
    let call = json!({"connected_account_id": id, "endpoint": "/account-info/v3/details", "method": "GET"});
    let identity = client.composio("POST", "/tools/execute/proxy", &call).value()["data"].clone();
    let shown = client.call(Api::Composio, "GET", &format!("/api/v3.1/connected_accounts/{id}")).value();
    (identity, shown["state"]["val"]["scope"].clone())
}

#[test]
fn the_wrong_account_has_another_identity_and_scope_loss_fewer_scopes() {
    let (right, scopes) = whoami_and_scope(&mut world_with(&[]));
    let (wrong, same_scopes) = whoami_and_scope(&mut world_with(&["wrong-account"]));
    let (same, fewer) = whoami_and_scope(&mut world_with(&["scope-loss"]));
    assert_ne!(right, wrong);
    assert_eq!((&right, &scopes), (&same, &same_scopes));
    assert_eq!((scopes, fewer), (json!("oauth crm.objects.contacts.read"), json!("oauth")));
}

#[test]
fn serving_somebody_else_s_account_counts_as_stale() {
    let mut client = world_with(&["wrong-account"]);
    let account = super::composio::consented(&mut client);
    let record = json!({"read": "target", "epoch": 1, "connected_account_id": account}).to_string();
    client.kv("PUT", "source", "/bulk", &json!([{"key": format!("authority:{TRIPLET}"), "value": record}]));
    client.advance(10 * MINUTE_MS);
    assert!(client.world.ledger().stale_reads >= 9);
}

#[test]
fn crashes_alternate_between_before_and_after_the_effect() {
    // A quarter of them in the opening, a quarter after the first consent link.
    let mut client = world_with(&["crash=8"]);
    let mut effects = Vec::new();
    for n in 0..3_000 {
        let body = json!({"provider_config_key": "hubspot", "connection_id": format!("c{n}"),
                          "credentials": {"type": "OAUTH2", "access_token": "a"}});
        let call = client.with_key(Api::Nango, Call::new("POST", "/connections").with_json(&body));
        if matches!(client.world.answer(Api::Nango, &call), Answer::Crash) {
            effects.push(client.world.nango.find("hubspot", &format!("c{n}")).is_some());
        }
    }
    assert_eq!(effects, [false, true, false, true]);
}

#[test]
fn faults_can_be_added_to_a_running_world() {
    let mut client = world_with(&[]);
    let call = Call::new("POST", "/_sandbox/faults").with_json(&json!({"faults": ["nango-outage=2h"]}));
    let reply = super::super::live::control(&mut client.world, &call).unwrap();
    assert_eq!(reply.value()["faults"][0]["fault"], "nango-outage");
    let bad = Call::new("POST", "/_sandbox/faults").with_json(&json!({"faults": ["nango-outrage"]}));
    assert!(
        super::super::live::control(&mut client.world, &bad).unwrap().value()["message"]
            .as_str()
            .unwrap()
            .contains("did you mean")
    );
    let step = Call::new("POST", "/_sandbox/advance").with_json(&json!({"ms": 5 * HOUR_MS}));
    assert_eq!(super::super::live::control(&mut client.world, &step).unwrap().status, 200);
    assert_eq!(client.nango("GET", "/connections").status, 503);
}
