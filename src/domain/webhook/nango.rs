//! Nango's webhook. It carries no token, no id of its own and no time.

use serde::Deserialize;

use sha2::{Digest, Sha256};

use super::{BadWebhook, ID_BYTES_MAX};
use crate::domain::secret::{Secret, hex, hmac_sha256, same_secret};

/// HMAC-SHA-256 over the raw body under the webhook signing key, lower-case hex (Nango contract §5.3).
pub const SIGNATURE_HEADER: &str = "x-nango-hmac-sha256";

/// SHA-256 over the signing key and the raw body, lower-case hex. Open to length extension: looked
/// at only where somebody asked for it.
pub const LEGACY_SIGNATURE_HEADER: &str = "x-nango-signature";

/// The signatures that came with a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct NangoSignatures<'a> {
    pub hmac: Option<&'a [u8]>,
    /// `None` also where the legacy signature is not accepted.
    pub legacy: Option<&'a [u8]>,
}

/// A verified webhook. Only [`verify`] and [`read_verified`] make one.
#[expect(clippy::manual_non_exhaustive, reason = "no other module of this crate may make one either")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthWebhook {
    /// `auth`, or another type on the same address that is of no use here.
    pub kind: String,
    /// `creation`, `override`, `refresh`, `deletion`, or something newer.
    pub operation: String,
    pub success: bool,
    pub connection_id: String,
    pub integration_key: String,
    _verified: (),
}

/// Checks the signature over the bytes as they came, then reads them. The legacy signature counts
/// only where there is no other: one that does not fit is never made up for.
///
/// # Errors
/// `Signature` when no key fits; `Body` when the signed bytes are not a webhook.
pub fn verify(keys: &[Secret], signatures: NangoSignatures<'_>, body: &[u8]) -> Result<AuthWebhook, BadWebhook> {
    // Every key is tried whatever the outcome of the first, so that time tells nothing.
    let fits = keys.iter().fold(false, |fits, key| {
        let key = key.expose().as_bytes();
        fits | match (signatures.hmac, signatures.legacy) {
            (Some(given), _) => same_secret(hmac(key, body).as_bytes(), given),
            (None, Some(given)) => same_secret(hex(&legacy(key, body)).as_bytes(), given),
            (None, None) => false,
        }
    });
    if !fits {
        return Err(BadWebhook::Signature);
    }
    read_verified(body)
}

/// Reads the body of a webhook whose signature was checked when it came in.
///
/// # Errors
/// `Body` when it is not a webhook.
pub fn read_verified(body: &[u8]) -> Result<AuthWebhook, BadWebhook> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Wire {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        operation: String,
        #[serde(default)]
        success: bool,
        #[serde(default)]
        connection_id: String,
        #[serde(default)]
        provider_config_key: String,
    }
    let wire: Wire = serde_json::from_slice(body).map_err(|_| BadWebhook::Body)?;
    if [&wire.connection_id, &wire.provider_config_key].iter().any(|id| id.len() > ID_BYTES_MAX) {
        return Err(BadWebhook::Body);
    }
    Ok(AuthWebhook {
        kind: wire.kind,
        operation: wire.operation,
        success: wire.success,
        connection_id: wire.connection_id,
        integration_key: wire.provider_config_key,
        _verified: (),
    })
}

/// The signature of [`SIGNATURE_HEADER`] over a body, as Nango makes it.
pub fn sign(key: &Secret, body: &[u8]) -> String {
    hmac(key.expose().as_bytes(), body)
}

fn hmac(key: &[u8], body: &[u8]) -> String {
    hex(&hmac_sha256(key, &[body]))
}

impl AuthWebhook {
    /// What there is to remember of it, in the form that [`read_verified`] takes. The rest of a webhook
    /// names people, and is of no use here.
    pub fn to_body(&self) -> Vec<u8> {
        let wire = serde_json::json!({
            "type": self.kind,
            "operation": self.operation,
            "success": self.success,
            "connectionId": self.connection_id,
            "providerConfigKey": self.integration_key,
        });
        wire.to_string().into_bytes()
    }
}

fn legacy(key: &[u8], body: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(key).chain_update(body).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(signature: &str) -> NangoSignatures<'_> {
        NangoSignatures { hmac: Some(signature.as_bytes()), legacy: None }
    }

    const KEY: &str = "7b0d9f52-3c41-4e8a-9d26-5a1f0c3e7b48";
    const CREATION: &str = r#"{"authMode":"OAUTH2","connectionId":"b7a3d0c4-52f1-4a68-9c0e-1f6d2e8a7713","endUser":{"endUserEmail":null,"endUserId":"acme__hubspot__default","tags":{}},"environment":"prod","from":"nango","operation":"creation","provider":"hubspot","providerConfigKey":"hubspot","success":true,"tags":{"end_user_id":"acme__hubspot__default"},"type":"auth"}"#;
    /// Computed by a Nango server over those bytes.
    const HMAC: &str = "93b494e71bfb8ff61dfc62f545874e2157a9b86ea206547229840b1c0c3ec030";

    #[test]
    fn the_signature_of_a_real_server_verifies_and_one_bit_off_does_not() {
        let keys = [Secret::new("an old key"), Secret::new(KEY)];
        assert_eq!(sign(&keys[1], CREATION.as_bytes()), HMAC);
        let webhook = verify(&keys, signed(HMAC), CREATION.as_bytes()).unwrap();
        assert_eq!((webhook.operation.as_str(), webhook.integration_key.as_str()), ("creation", "hubspot"));

        let altered = CREATION.replace("acme", "acmf");
        assert_eq!(verify(&keys, signed(HMAC), altered.as_bytes()), Err(BadWebhook::Signature));
        let flipped = HMAC.replace("93b4", "93b5");
        assert_eq!(verify(&keys, signed(&flipped), CREATION.as_bytes()), Err(BadWebhook::Signature));
        assert_eq!(verify(&keys[..1], signed(HMAC), CREATION.as_bytes()), Err(BadWebhook::Signature));
        assert_eq!(verify(&keys, NangoSignatures::default(), CREATION.as_bytes()), Err(BadWebhook::Signature));
    }

    #[test]
    fn the_legacy_signature_counts_only_where_it_is_accepted_and_alone() {
        const LEGACY: &[u8] = b"a12757d580052348ec06f4b25832ef42bc16bf372cf341a0fcc5799d65fbbf85";
        let keys = [Secret::new(KEY)];
        let check = |hmac, legacy| verify(&keys, NangoSignatures { hmac, legacy }, CREATION.as_bytes()).is_ok();
        assert!(check(None, Some(LEGACY)) && !check(None, None));
        assert!(!check(Some(b"00".as_slice()), Some(LEGACY)), "a wrong signature is not made up for");
    }

    #[test]
    fn what_is_remembered_says_the_same_and_names_nobody() {
        let webhook = verify(&[Secret::new(KEY)], signed(HMAC), CREATION.as_bytes()).unwrap();
        let body = webhook.to_body();
        assert_eq!(read_verified(&body), Ok(webhook));
        assert!(!String::from_utf8(body).unwrap().contains("acme__hubspot__default"));
    }

    #[test]
    fn a_signed_body_that_is_not_a_webhook_is_named_as_such() {
        let keys = [Secret::new(KEY)];
        let sign = |body: &[u8]| sign(&keys[0], body);
        for body in [&b"[]"[..], b"{}", b"\xff", b"{\"type\":7}", br#"{"type":"auth","type":"auth"}"#] {
            assert_eq!(verify(&keys, signed(&sign(body)), body), Err(BadWebhook::Body));
        }
    }
}
