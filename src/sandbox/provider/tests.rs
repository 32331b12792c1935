//! Tokens, grants and refresh tokens, as functions.

use super::*;
use crate::catalogue::Catalogue;

const T0: Timestamp = Timestamp::from_secs(1_780_000_000);

fn with_grant(key: &str, optional_rotation: bool) -> (Providers, GrantId) {
    let mut p = Providers::new(1, None, optional_rotation);
    let facts = Catalogue::built_in().integration(key).unwrap().clone();
    p.integrations.push((key.into(), facts));
    let user = p.add_user(0, "u".into(), Map::new());
    let grant = p.consent(user, Client::Legacy, vec!["a".into()], Some(0), T0);
    (p, grant)
}

#[test]
fn a_token_reads_back_until_it_expires_and_a_forged_one_never_does() {
    let (mut p, grant) = with_grant("google", false);
    let token = p.mint(grant, Party::Nango, T0);
    let text = p.access_text(grant, token.number);
    assert!(text.starts_with("ya29.") && text.contains(CANARY) && text.len() >= 40);
    assert_eq!(p.find(&text), Some(token));
    assert_eq!(p.standing(&token, T0.plus_ms(3_599_999)), Standing::Valid);
    assert_eq!(p.standing(&token, T0.plus_ms(3_600_000)), Standing::Expired);
    let mut forged = text.clone();
    forged.pop();
    assert_eq!(p.find(&format!("{forged}_")), None);
    assert_eq!(p.find("CANARYa"), None);
    assert_eq!(p.find("x"), None);
}

/// providers.md §3.1 against §3.7: unrotated refresh tokens survive, single-use ones kill the family.
#[test]
fn a_spent_refresh_token_is_harmless_at_google_and_fatal_at_gong() {
    let (mut p, _) = with_grant("google", false);
    let rt = p.refresh_text(0).unwrap();
    for n in 1..3 {
        assert!(p.refresh(&rt, Party::Nango, T0.plus_ms(n), None).result.is_ok());
    }
    let (mut p, grant) = with_grant("gong-oauth", false);
    let first = p.refresh_text(grant).unwrap();
    let second = p.refresh(&first, Party::Nango, T0, None).result.unwrap().refresh_token.unwrap();
    assert_ne!(first, second);
    let report = p.refresh(&first, Party::DoAlarm, T0.plus_ms(1), None);
    assert!(report.presented_spent);
    assert_eq!(report.result.unwrap_err(), Refusal::Dead);
    assert_eq!(p.refresh(&second, Party::Nango, T0.plus_ms(2), None).result.unwrap_err(), Refusal::Dead);
}

/// providers.md §3.5: at Microsoft each use gives a new one and the old one stays valid.
#[test]
fn microsoft_rotates_without_revoking() {
    let (mut p, grant) = with_grant("microsoft", false);
    let first = p.refresh_text(grant).unwrap();
    assert!(p.refresh(&first, Party::Nango, T0, None).result.unwrap().refresh_token.is_some());
    let report = p.refresh(&first, Party::Nango, T0.plus_ms(1), None);
    assert!(report.result.is_ok() && !report.presented_spent);
}

/// providers.md §3.2 and §3.8: optional rotation follows the switch.
#[test]
fn optional_rotation_is_a_setting_of_the_client() {
    let (mut p, grant) = with_grant("salesforce", true);
    let first = p.refresh_text(grant).unwrap();
    assert!(p.refresh(&first, Party::Nango, T0, None).result.unwrap().refresh_token.is_some());
    assert!(p.refresh(&first, Party::Nango, T0, None).presented_spent);
    let (p, grant) = with_grant("slack", false);
    assert_eq!((p.refresh_text(grant), p.life_ms(0)), (None, None));
    let (mut p, grant) = with_grant("slack", true);
    let first = p.refresh_text(grant).unwrap();
    p.refresh(&first, Party::Nango, T0, None).result.unwrap();
    assert!(p.refresh(&first, Party::Nango, T0.plus_ms(GRACE_MS), None).result.is_ok());
    let late = p.refresh(&first, Party::Nango, T0.plus_ms(3 * GRACE_MS), None);
    assert_eq!(late.result.unwrap_err(), Refusal::Spent);
}

#[test]
fn a_second_party_with_more_than_ten_minutes_left_is_a_race() {
    let (mut p, grant) = with_grant("hubspot", false);
    p.mint(grant, Party::Nango, T0);
    let rt = p.refresh_text(grant).unwrap();
    assert_eq!(p.refresh(&rt, Party::Nango, T0, None).raced, None);
    assert_eq!(p.refresh(&rt, Party::DoAlarm, T0.plus_ms(MINUTE_MS), None).raced, Some(Party::Nango));
    assert_eq!(p.refresh(&rt, Party::Nango, T0.plus_ms(21 * MINUTE_MS), None).raced, None);
}

/// providers.md §3.10 and §3.2: the cap evicts the oldest; §2: LinkedIn's second consent kills the first.
#[test]
fn grants_beyond_the_cap_and_same_client_reconsents_end_older_grants() {
    let (mut p, first) = with_grant("github", false);
    for n in 1..=10 {
        p.consent(0, Client::Legacy, vec![], None, T0.plus_ms(n));
    }
    assert!(p.grants[first].revoked_at.is_some() && p.grants[first + 1].revoked_at.is_none());
    let (mut p, first) = with_grant("linkedin", false);
    p.consent(0, Client::Composio, vec![], None, T0);
    assert_eq!(p.grants[first].revoked_at, None);
    p.consent(0, Client::Legacy, vec![], None, T0);
    assert_eq!(p.grants[first].revoked_at, Some(T0));
}

#[test]
fn memory_stays_flat_over_rotations() {
    let (mut p, grant) = with_grant("google", false);
    let rt = p.refresh_text(grant).unwrap();
    for hour in 0..5_000 {
        p.refresh(&rt, Party::Nango, T0.plus_ms(hour * 46 * MINUTE_MS), None).result.unwrap();
    }
    assert!(p.grants[grant].live.len() <= 3);
    let old = p.find(&p.access_text(grant, 1)).unwrap();
    assert_eq!(p.standing(&old, T0.plus_ms(5_000 * 46 * MINUTE_MS)), Standing::Expired);
}
