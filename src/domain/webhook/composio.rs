//! Composio's webhook: its own scheme, near to Standard Webhooks and not the same (Composio
//! contract §5.3): the key is the secret's text as it stands, and the id and the time are signed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{BadWebhook, ID_BYTES_MAX};
use crate::domain::secret::{Secret, hmac_sha256, same_secret};
use crate::domain::time::{MINUTE_MS, Timestamp};

/// How far the signed time may lie from ours, either way.
pub const TOLERANCE_MS: i64 = 5 * MINUTE_MS;

/// The event that tells of a lost grant.
const EXPIRED: &str = "composio.connected_account.expired";

/// Signatures in one header that are looked at: one for each secret of a rotation, and some room.
const SIGNATURES_MAX: usize = 8;

/// The headers that the signature is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct ComposioHeaders<'a> {
    /// `webhook-id`: the same on every retry.
    pub id: Option<&'a str>,
    /// `webhook-timestamp`: Unix seconds of this attempt.
    pub timestamp: Option<&'a str>,
    /// `webhook-signature`: `v1,` and base64, several separated by spaces.
    pub signature: Option<&'a str>,
}

/// A verified webhook. Only [`verify`] makes one.
#[expect(clippy::manual_non_exhaustive, reason = "no other module of this crate may make one either")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComposioWebhook {
    /// What repeats are told by.
    pub id: String,
    /// `composio.connected_account.expired`, or a type that is of no use here.
    pub kind: String,
    /// `data.id` of an event about a connected account.
    pub account: Option<String>,
    _verified: (),
}

impl ComposioWebhook {
    /// The account whose grant Composio lost, when this says so.
    pub fn expired_account(&self) -> Option<&str> {
        self.account.as_deref().filter(|_| self.kind == EXPIRED)
    }
}

/// The signature of `webhook-signature`, as Composio makes it. `timestamp`: Unix seconds.
pub fn sign(key: &Secret, id: &str, timestamp: &str, body: &[u8]) -> String {
    let mac = hmac_sha256(key.expose().as_bytes(), &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);
    format!("v1,{}", STANDARD.encode(mac))
}

/// Checks the signature over the bytes as they came and the time that it covers, then reads them.
///
/// # Errors
/// `Signature` when no key fits or a header is missing or unreadable; `Time` when the signed time
/// is further than [`TOLERANCE_MS`] from `now`; `Body` when the signed bytes are not a webhook.
pub fn verify(
    keys: &[Secret],
    headers: ComposioHeaders<'_>,
    body: &[u8],
    now: Timestamp,
) -> Result<ComposioWebhook, BadWebhook> {
    #[derive(Deserialize)]
    struct Wire {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        data: Option<Data>,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        id: Option<String>,
    }
    let (Some(id), Some(timestamp), Some(given)) = (headers.id, headers.timestamp, headers.signature) else {
        return Err(BadWebhook::Signature);
    };
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return Err(BadWebhook::Signature);
    }
    // Every pair is compared whatever the others gave, so that time tells nothing.
    let mut fits = false;
    for key in keys {
        let expected = sign(key, id, timestamp, body);
        for given in given.split(' ').take(SIGNATURES_MAX) {
            fits |= same_secret(expected.as_bytes(), given.as_bytes());
        }
    }
    if !fits {
        return Err(BadWebhook::Signature);
    }
    let signed_at = timestamp.parse::<i64>().ok().and_then(|s| s.checked_mul(1_000)).ok_or(BadWebhook::Time)?;
    if now.since(Timestamp::from_millis(signed_at)).saturating_abs() > TOLERANCE_MS {
        return Err(BadWebhook::Time);
    }
    let wire: Wire = serde_json::from_slice(body).map_err(|_| BadWebhook::Body)?;
    let account = wire.data.and_then(|data| data.id);
    if account.as_ref().is_some_and(|account| !(1..=ID_BYTES_MAX).contains(&account.len())) {
        return Err(BadWebhook::Body);
    }
    Ok(ComposioWebhook { id: id.to_owned(), kind: wire.kind, account, _verified: () })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "cutover-test-secret-01";
    const ID: &str = "msg_5b0c6f7e-1d2a-4c3b-9e8f-0a1b2c3d4e5f";
    const BODY: &str =
        r#"{"id":"msg_5b0c6f7e-1d2a-4c3b-9e8f-0a1b2c3d4e5f","type":"composio.connected_account.expired"}"#;
    /// Computed elsewhere over those bytes and the time 1790000000.
    const SIGNATURE: &str = "v1,5EDp/xP+0Ug10Ajm6e6gCPDyvqGUhdRu8PfSX13Oatk=";

    fn check(secret: &str, timestamp: &str, signature: &str, body: &str, now_s: i64) -> Result<String, BadWebhook> {
        let headers = ComposioHeaders { id: Some(ID), timestamp: Some(timestamp), signature: Some(signature) };
        verify(&[Secret::new("an old one"), Secret::new(secret)], headers, body.as_bytes(), Timestamp::from_secs(now_s))
            .map(|webhook| webhook.kind)
    }

    #[test]
    fn a_known_vector_verifies_and_one_bit_off_does_not() {
        let now = 1_790_000_000;
        assert_eq!(
            check(SECRET, "1790000000", SIGNATURE, BODY, now).as_deref(),
            Ok("composio.connected_account.expired")
        );
        let several = format!("v2,xyz v1,AAAA {SIGNATURE}");
        assert!(check(SECRET, "1790000000", &several, BODY, now).is_ok());
        for (secret, timestamp, signature, body) in [
            ("cutover-test-secret-02", "1790000000", SIGNATURE.to_owned(), BODY.to_owned()),
            (SECRET, "1790000001", SIGNATURE.to_owned(), BODY.to_owned()),
            (SECRET, "1790000000", SIGNATURE.replace("5ED", "5EC"), BODY.to_owned()),
            (SECRET, "1790000000", SIGNATURE.replace("v1,", ""), BODY.to_owned()),
            (SECRET, "1790000000", SIGNATURE.to_owned(), BODY.replace("expired", "expirec")),
        ] {
            assert_eq!(check(secret, timestamp, &signature, &body, now), Err(BadWebhook::Signature));
        }
        assert_eq!(
            verify(&[Secret::new(SECRET)], ComposioHeaders::default(), b"{}", Timestamp::from_secs(now)).unwrap_err(),
            BadWebhook::Signature
        );
    }

    #[test]
    fn a_signed_time_may_be_five_minutes_off_and_no_more() {
        for (off, fits) in [(-301, false), (-300, true), (0, true), (300, true), (301, false)] {
            let got = check(SECRET, "1790000000", SIGNATURE, BODY, 1_790_000_000 + off);
            assert_eq!(got.is_ok(), fits, "{off}");
            assert!(fits || got == Err(BadWebhook::Time), "{off}");
        }
    }

    #[test]
    fn signed_bytes_that_are_not_a_webhook_are_named_as_such() {
        for body in ["[]", "{}", "{\"type\":7}", "{\"type\":\"x\",\"data\":{\"id\":\"\"}}", "\u{1}"] {
            let signature = sign(&Secret::new(SECRET), ID, "5", body.as_bytes());
            assert_eq!(check(SECRET, "5", &signature, body, 5), Err(BadWebhook::Body), "{body}");
        }
    }
}
