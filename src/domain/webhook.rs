//! Nango's webhook: the signature over the exact bytes, and the few fields that matter.

use serde::Deserialize;

use super::secret::{Secret, hex, hmac_sha256, same_secret};

/// HMAC-SHA-256 over the raw body under the webhook signing key, lower-case hex (Nango contract
/// §5.3). The legacy `X-Nango-Signature` is open to length extension and is not accepted.
pub const SIGNATURE_HEADER: &str = "x-nango-hmac-sha256";

/// A verified webhook. Only [`verify`] makes one.
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

/// Why a request is not a webhook of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadWebhook {
    Signature,
    Body,
}

/// Checks the signature over the bytes as they came, then reads them.
///
/// # Errors
/// `Signature` when no key fits; `Body` when the signed bytes are not a webhook.
pub fn verify(keys: &[Secret], signature: Option<&[u8]>, body: &[u8]) -> Result<AuthWebhook, BadWebhook> {
    let signature = signature.ok_or(BadWebhook::Signature)?;
    // Every key is tried whatever the outcome of the first, so that time tells nothing.
    let fits = keys.iter().fold(false, |fits, key| {
        let expected = hex(&hmac_sha256(key.expose().as_bytes(), &[body]));
        fits | same_secret(expected.as_bytes(), signature)
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
    Ok(AuthWebhook {
        kind: wire.kind,
        operation: wire.operation,
        success: wire.success,
        connection_id: wire.connection_id,
        integration_key: wire.provider_config_key,
        _verified: (),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "7b0d9f52-3c41-4e8a-9d26-5a1f0c3e7b48";
    const CREATION: &str = r#"{"authMode":"OAUTH2","connectionId":"b7a3d0c4-52f1-4a68-9c0e-1f6d2e8a7713","endUser":{"endUserEmail":null,"endUserId":"acme__hubspot__default","tags":{}},"environment":"prod","from":"nango","operation":"creation","provider":"hubspot","providerConfigKey":"hubspot","success":true,"tags":{"end_user_id":"acme__hubspot__default"},"type":"auth"}"#;
    /// Computed by a Nango server over those bytes.
    const HMAC: &str = "93b494e71bfb8ff61dfc62f545874e2157a9b86ea206547229840b1c0c3ec030";

    #[test]
    fn the_signature_of_a_real_server_verifies_and_one_bit_off_does_not() {
        let keys = [Secret::new("an old key"), Secret::new(KEY)];
        let webhook = verify(&keys, Some(HMAC.as_bytes()), CREATION.as_bytes()).unwrap();
        assert_eq!((webhook.operation.as_str(), webhook.integration_key.as_str()), ("creation", "hubspot"));

        let altered = CREATION.replace("acme", "acmf");
        assert_eq!(verify(&keys, Some(HMAC.as_bytes()), altered.as_bytes()), Err(BadWebhook::Signature));
        let flipped = HMAC.replace("93b4", "93b5");
        assert_eq!(verify(&keys, Some(flipped.as_bytes()), CREATION.as_bytes()), Err(BadWebhook::Signature));
        assert_eq!(verify(&keys[..1], Some(HMAC.as_bytes()), CREATION.as_bytes()), Err(BadWebhook::Signature));
        assert_eq!(verify(&keys, None, CREATION.as_bytes()), Err(BadWebhook::Signature));
    }

    #[test]
    fn a_signed_body_that_is_not_a_webhook_is_named_as_such() {
        let keys = [Secret::new(KEY)];
        let sign = |body: &[u8]| hex(&hmac_sha256(KEY.as_bytes(), &[body]));
        for body in [&b"[]"[..], b"{}", b"\xff", b"{\"type\":7}"] {
            assert_eq!(verify(&keys, Some(sign(body).as_bytes()), body), Err(BadWebhook::Body));
        }
    }
}
