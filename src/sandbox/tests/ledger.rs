//! Each kind of damage is done on purpose, and the ledger must count it. Healthy runs count none.

use super::*;

fn damage(world: &World) -> [u64; 4] {
    let ledger = world.ledger();
    [ledger.lost, ledger.stale_reads, ledger.regressions, ledger.double_refreshes]
}

#[test]
fn a_healthy_mirror_over_days_is_clean() {
    let mut client = Client::new(hubspot());
    client.run_a_healthy_mirror(6 * 24 * 3);
    assert_eq!(damage(&client.world), [0, 0, 0, 0], "{:?}", client.world.ledger().incidents);
    let ledger = client.world.ledger();
    assert!(ledger.rotations > 70 && ledger.deliveries == 2 * 6 * 24 * 3 && ledger.foreign_writes == 0);
    assert_eq!(ledger.refreshing_reads, 6 * 24 * 3);
}

#[test]
fn alarms_keep_the_gateway_fresh_and_race_nango_s_keep_alive_once_a_day() {
    let mut client = Client::new(hubspot());
    client.advance(DAY_MS - 1);
    assert_eq!(damage(&client.world), [0, 0, 0, 0], "{:?}", client.world.ledger().incidents);
    assert_eq!(client.world.ledger().rotations, 0);
    // ADR-038's own state has two refreshers: nobody reads Nango, so its daily job wakes up.
    client.advance(4 * DAY_MS + 1);
    let ledger = client.world.ledger();
    assert_eq!((ledger.stale_reads, ledger.rotations), (0, 5));
    assert!(ledger.double_refreshes >= 5);
}

#[test]
fn a_version_that_reaches_only_one_sink_is_lost_at_the_other() {
    let mut client = Client::new(hubspot());
    client.run_a_healthy_mirror(1);
    let expiry = client.expiry();
    client.world.advance_to(expiry.plus_ms(-14 * MINUTE_MS));
    let next = client.poll();
    client.mirror("target", &next);
    client.world.advance_to(expiry);
    assert_eq!(client.world.ledger().lost, 0, "the old token lives to this instant");
    client.world.advance_to(expiry.plus_ms(1));
    assert_eq!(client.world.ledger().lost, 1);
    // Delivering late does not undo the loss, and does not count it twice.
    client.mirror("source", &next);
    client.advance(MINUTE_MS);
    assert_eq!(client.world.ledger().lost, 1);
}

#[test]
fn a_sink_that_begins_with_a_replaced_version_still_waits_for_the_newer_one() {
    let mut client = Client::new(hubspot());
    client.set_alarm("disarmed");
    let old = client.poll();
    let expiry = client.expiry();
    client.world.advance_to(expiry.plus_ms(-14 * MINUTE_MS));
    client.poll();
    client.mirror("target", &old);
    client.world.advance_to(expiry.plus_ms(1));
    assert_eq!(client.world.ledger().lost, 1);
}

#[test]
fn a_foreign_token_does_not_pass_for_the_version_that_is_due() {
    let rows = vec![row("kahuna", "hubspot", &["hubspot"]), row("pointfield", "hubspot", &["hubspot"])];
    let mut client = Client::new(World::new(config(rows)));
    let first = client.poll();
    client.mirror("target", &first);
    let expiry = client.expiry();
    client.world.advance_to(expiry.plus_ms(-14 * MINUTE_MS));
    client.poll();
    let forced = "/connections/pointfield__hubspot__default?provider_config_key=hubspot&force_refresh=true";
    let other = client.nango("GET", forced).value();
    client.mirror("target", other["credentials"]["access_token"].as_str().unwrap());
    client.world.advance_to(expiry.plus_ms(1));
    assert_eq!((client.world.ledger().lost, client.world.ledger().regressions), (1, 1));
}

#[test]
fn the_bearer_mirror_at_composio_is_a_sink_like_the_others() {
    let mut client = Client::new(hubspot());
    client.set_alarm("disarmed");
    let made = client.composio(
        "POST",
        "/auth_configs",
        &json!({"toolkit": {"slug": "hubspot"}, "auth_config": {"type": "use_custom_auth", "authScheme": "BEARER_TOKEN"}}),
    );
    let token = client.poll();
    let state = json!({"authScheme": "BEARER_TOKEN", "val": {"status": "ACTIVE", "token": token}});
    let connection = json!({"user_id": "kahuna", "state": state});
    let body = json!({"auth_config": {"id": made.value()["auth_config"]["id"]}, "connection": connection});
    let account = client.composio("POST", "/connected_accounts", &body).value();
    let target = format!("/connected_accounts/{}", account["id"].as_str().unwrap());
    let expiry = client.expiry();
    client.world.advance_to(expiry.plus_ms(-14 * MINUTE_MS));
    client.poll();
    client.world.advance_to(expiry.plus_ms(1));
    assert_eq!(client.world.ledger().lost, 1);
    let next = client.poll();
    let patch = |token: &str| json!({"connection": {"state": {"authScheme": "BEARER_TOKEN", "val": {"token": token}}}});
    client.composio("PATCH", &target, &patch(&next));
    client.composio("PATCH", &target, &patch(&token));
    assert_eq!(client.world.ledger().regressions, 1);
    assert_eq!(client.world.ledger().deliveries, 3);
    // A mirror that was switched off is not a sink any more.
    client.composio("PATCH", &format!("{target}/status"), &json!({"enabled": false}));
    client.advance(HOUR_MS);
    client.poll();
    client.advance(2 * HOUR_MS);
    assert_eq!(client.world.ledger().lost, 1);
}

#[test]
fn a_newer_version_that_arrives_in_time_makes_up_for_a_skipped_one() {
    let mut client = Client::new(hubspot());
    client.run_a_healthy_mirror(1);
    let expiry = client.expiry();
    client.world.advance_to(expiry.plus_ms(-14 * MINUTE_MS));
    client.poll();
    let forced = client.nango("GET", &format!("{CONNECTION}&force_refresh=true")).value();
    let newest = forced["credentials"]["access_token"].as_str().unwrap().to_owned();
    client.mirror("source", &newest);
    client.mirror("target", &newest);
    client.advance(HOUR_MS / 2);
    assert_eq!(damage(&client.world), [0, 0, 0, 0]);
}

#[test]
fn a_sink_that_was_never_mirrored_to_or_was_closed_loses_nothing() {
    let mut client = Client::new(hubspot());
    client.set_alarm("disarmed");
    let token = client.poll();
    client.mirror("target", &token);
    let deleted =
        client.kv("DELETE", "target", &format!("/values/tokens%3A{}", TRIPLET.replace(':', "%3A")), &json!({}));
    assert_eq!(deleted.value()["success"], true);
    client.advance(50 * MINUTE_MS);
    client.poll();
    client.advance(HOUR_MS);
    assert_eq!(client.world.ledger().lost, 0);
}

#[test]
fn minutes_after_expiry_are_stale_reads_and_minutes_before_are_not() {
    let mut client = Client::new(hubspot());
    client.set_alarm("disarmed");
    let expiry = client.expiry();
    client.world.advance_to(expiry.plus_ms(-1));
    assert_eq!(client.world.ledger().stale_reads, 0);
    client.world.advance_to(expiry.plus_ms(30 * MINUTE_MS));
    assert!(matches!(client.world.ledger().stale_reads, 30 | 31));
    // Asking does not change the count, and a fresh token stops it.
    assert_eq!(client.world.ledger(), client.world.ledger());
    let token = client.poll();
    client.mirror("source", &token);
    let after = client.world.ledger().stale_reads;
    client.advance(20 * MINUTE_MS);
    assert!(client.world.ledger().stale_reads <= after + 1, "one read may come before the cache shows it");
}

#[test]
fn a_deleted_entry_a_revoked_grant_and_a_foreign_token_are_stale_too() {
    let mut deleted = Client::new(hubspot());
    deleted.kv("DELETE", "source", "/values/tokens%3Akahuna%3Ahubspot%3Adefault", &json!({}));
    deleted.advance(10 * MINUTE_MS);
    assert_eq!(deleted.world.ledger().stale_reads, 10);

    let mut revoked = Client::new(hubspot());
    let grant = revoked.world.rows[0].grant;
    revoked.advance(MINUTE_MS / 2);
    revoked.world.revoke_grant(grant);
    revoked.advance(10 * MINUTE_MS);
    assert_eq!(revoked.world.ledger().stale_reads, 10);

    let rows = vec![row("kahuna", "hubspot", &["hubspot"]), row("pointfield", "hubspot", &["hubspot"])];
    let mut foreign = Client::new(World::new(config(rows)));
    let other = foreign.nango("GET", "/connections/pointfield__hubspot__default?provider_config_key=hubspot").value();
    foreign.mirror("source", other["credentials"]["access_token"].as_str().unwrap());
    foreign.advance(10 * MINUTE_MS);
    assert!(foreign.world.ledger().stale_reads >= 9, "another tenant's live token is as bad as none");
    assert_eq!(foreign.world.ledger().regressions, 1);
    assert!(foreign.world.ledger().incidents.iter().any(|i| i.what.contains("not this triplet's")));
}

#[test]
fn an_older_token_after_a_newer_one_is_a_regression_and_a_repeat_is_not() {
    let mut client = Client::new(hubspot());
    client.run_a_healthy_mirror(1);
    let old = client.poll();
    client.mirror("source", &old);
    assert_eq!(client.world.ledger().regressions, 0);
    let expiry = client.expiry();
    client.world.advance_to(expiry.plus_ms(-14 * MINUTE_MS));
    let new = client.poll();
    client.mirror("source", &new);
    client.advance(2_000);
    client.mirror("source", &old);
    assert_eq!(client.world.ledger().regressions, 1);
    // Also when the old token is so old that the world forgot when it was minted.
    client.advance(3 * DAY_MS);
    let newest = client.poll();
    client.mirror("source", &newest);
    client.advance(2_000);
    client.mirror("source", &old);
    assert_eq!(client.world.ledger().regressions, 2);
}

#[test]
fn two_refreshers_on_one_grant_are_noticed() {
    let mut client = Client::new(hubspot());
    // The alarm stays in mode refresh; Nango refreshes at 14 min, the alarm at 10.
    let expiry = client.expiry();
    client.world.advance_to(expiry.plus_ms(-14 * MINUTE_MS));
    let token = client.poll();
    client.mirror("source", &token);
    client.world.advance_to(expiry.plus_ms(-9 * MINUTE_MS));
    let ledger = client.world.ledger();
    assert_eq!((ledger.double_refreshes, ledger.foreign_writes), (1, 1), "{:?}", ledger.incidents);
}

#[test]
fn a_standby_alarm_is_no_second_refresher() {
    let mut client = Client::new(hubspot());
    client.set_alarm("standby");
    for _ in 0..100 {
        let token = client.poll();
        let expires_at = client.expiry();
        client.mirror_until("source", &token, expires_at);
        client.advance(10 * MINUTE_MS);
    }
    let ledger = client.world.ledger();
    assert_eq!(
        (ledger.double_refreshes, ledger.foreign_writes, ledger.stale_reads),
        (0, 0, 0),
        "{:?}",
        ledger.incidents
    );
}

#[test]
fn a_spent_rotating_refresh_token_kills_the_family_and_is_booked() {
    let mut client = Client::new(World::new(config(vec![row("kahuna", "gong-oauth", &["gong"])])));
    let forced = "/connections/kahuna__gong-oauth__default?provider_config_key=gong-oauth&force_refresh=true";
    assert_eq!(client.nango("GET", forced).status, 200);
    // The object still holds the refresh token that Nango has just spent.
    client.advance(HOUR_MS);
    let ledger = client.world.ledger();
    assert!(ledger.double_refreshes >= 1, "{:?}", ledger.incidents);
    assert_eq!(client.nango("GET", forced).status, 400, "the family is dead for Nango too");
}

#[test]
fn reads_moved_to_the_target_end_the_mirror_and_are_served_from_the_account() {
    let mut client = Client::new(hubspot());
    client.run_a_healthy_mirror(1);
    let account = super::composio::consented(&mut client);
    let record = json!({"read": "target", "epoch": 2, "connected_account_id": account});
    let put = json!([{"key": format!("authority:{TRIPLET}"), "value": record.to_string()}]);
    client.kv("PUT", "source", "/bulk", &put);
    client.advance(2 * DAY_MS);
    let ledger = client.world.ledger();
    assert_eq!((ledger.lost, ledger.stale_reads), (0, 0), "{:?}", ledger.incidents);
    let disabled =
        client.composio("PATCH", &format!("/connected_accounts/{account}/status"), &json!({"enabled": false}));
    assert_eq!(disabled.status, 200);
    client.advance(10 * MINUTE_MS);
    assert_eq!(client.world.ledger().stale_reads, 10);
}

#[test]
fn triplets_that_do_not_move_are_left_out() {
    let mut settings = config(vec![row("kahuna", "hubspot", &["hubspot"])]);
    settings.retained.insert(crate::domain::triplet::Triplet::parse(TRIPLET).unwrap());
    let mut client = Client::new(World::new(settings));
    client.set_alarm("disarmed");
    client.advance(DAY_MS);
    client.poll();
    let ledger = client.world.ledger();
    assert_eq!((ledger.stale_reads, ledger.rotations), (0, 0));
}

#[test]
fn the_same_seed_and_script_give_the_same_ledger_in_any_order_of_independent_requests() {
    let run = |reverse: bool, seed: u64| {
        let mut settings =
            config(vec![row("kahuna", "hubspot", &["hubspot"]), row("pointfield", "google", &["gmail", "ga4"])]);
        settings.seed = seed;
        settings.faults =
            vec![super::super::Fault::parse("kv-lag").unwrap(), super::super::Fault::parse("composio-429").unwrap()];
        let mut client = Client::new(World::new(settings));
        let mut targets =
            [CONNECTION, "/connections/pointfield__google__default?provider_config_key=google", "/integrations"];
        if reverse {
            targets.reverse();
        }
        let mut tokens = Vec::new();
        for _ in 0..50 {
            for target in targets {
                let shown = client.nango("GET", target).value();
                tokens.push(shown["credentials"]["access_token"].to_string());
            }
            client.advance(11 * MINUTE_MS);
        }
        tokens.sort();
        (serde_json::to_string(&client.world.ledger()).unwrap(), tokens)
    };
    assert_eq!(run(false, 1), run(true, 1));
    assert_ne!(run(false, 1).1, run(false, 2).1);
}

#[test]
fn memory_does_not_grow_with_virtual_time() {
    let mut client = Client::new(hubspot());
    client.run_a_healthy_mirror(10);
    let size = |world: &World| format!("{world:?}").len();
    let before = size(&client.world);
    client.run_a_healthy_mirror(3_000);
    let after = size(&client.world);
    assert!(after < before + before / 10, "{before} bytes grew to {after}");
}
