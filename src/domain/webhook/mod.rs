//! Webhooks from both custodies: the signature over the exact bytes, and the few fields that matter.

mod composio;
mod nango;

pub use composio::{ComposioHeaders, ComposioWebhook, TOLERANCE_MS, sign as sign_composio, verify as verify_composio};
pub use nango::{
    AuthWebhook, LEGACY_SIGNATURE_HEADER, NangoSignatures, SIGNATURE_HEADER, read_verified, sign as sign_nango, verify,
};

/// The longest id in a webhook that is looked at, in bytes. Nango's ids have at most 255.
const ID_BYTES_MAX: usize = 255;

/// Why a request is not a webhook of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadWebhook {
    /// No key fits.
    Signature,
    /// The signature fits, and it was made too long ago or in the future.
    Time,
    /// The signed bytes are not a webhook.
    Body,
}
