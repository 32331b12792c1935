//! Secrets and the only form in which they may leave memory unencrypted: keyed fingerprints.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A token, key or password. Prints as `[secret]`, is wiped when dropped, is compared in
/// constant time, and cannot be serialised by accident.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The clear text. Each caller must be a place where the secret has to be: a request to
    /// its owner, an encryption, a fingerprint.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        same_secret(self.0.as_bytes(), other.0.as_bytes())
    }
}

impl Eq for Secret {}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(Self)
    }
}

/// Equality that takes the same time wherever the two differ (their lengths may show).
pub fn same_secret(a: &[u8], b: &[u8]) -> bool {
    use subtle::ConstantTimeEq;
    a.ct_eq(b).into()
}

/// How vendors begin their tokens and keys.
const BEGINNINGS: [&[u8]; 22] = [
    b"ya29.",
    b"1//",
    b"xoxa-",
    b"xoxb-",
    b"xoxe-",
    b"xoxe.",
    b"xoxp-",
    b"xapp-",
    b"ghp_",
    b"gho_",
    b"ghu_",
    b"ghs_",
    b"ghr_",
    b"github_pat_",
    b"glpat-",
    b"shpat_",
    b"pat-",
    b"sk-",
    b"sk_",
    b"eyJ",
    b"EAA",
    b"AKIA",
];

/// Shorter texts are no secrets, whatever they begin with.
const SECRET_BYTES_MIN: usize = 12;

/// The shortest run of letters and digits that is judged by how they alternate.
const RUN_BYTES_MIN: usize = 20;

/// The shortest run of letters and digits alone that no name has.
const UNBROKEN_BYTES_MIN: usize = 40;

/// Whether a text that should be a name (of a field, of a scope) looks like a secret that ended up in its
/// place. What is taken for one is only not shown, so this errs on that side.
pub fn looks_like_secret(text: &[u8]) -> bool {
    if text.len() < SECRET_BYTES_MIN {
        return false;
    }
    let in_run = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+' | b'=' | b'~');
    BEGINNINGS.iter().any(|beginning| text.starts_with(beginning))
        || text.split(|b| !b.is_ascii_alphanumeric()).any(|word| word.len() >= UNBROKEN_BYTES_MIN)
        || text.split(|b| !in_run(b)).any(|run| run.len() >= RUN_BYTES_MIN && alternates(run))
}

/// Whether letters and digits, or small and large letters, take turns more often than in any name.
fn alternates(run: &[u8]) -> bool {
    let mut turns = 0;
    let mut before: Option<u8> = None;
    for byte in run.iter().copied().filter(u8::is_ascii_alphanumeric) {
        // A new word of a name in camel case is one turn.
        turns += usize::from(before.is_some_and(|before| {
            before.is_ascii_digit() != byte.is_ascii_digit()
                || (before.is_ascii_lowercase() && byte.is_ascii_uppercase())
        }));
        before = Some(byte);
    }
    turns * 5 >= run.len()
}

/// HMAC-SHA-256 of `message` under `key`.
pub fn hmac_sha256(key: &[u8], message: &[&[u8]]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in message {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n)]);
    let mut text = String::with_capacity(bytes.len() * 2);
    text.extend(bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]));
    text
}

/// The key under which one installation fingerprints secrets. Without it a fingerprint says
/// nothing about the secret; two installations cannot compare theirs.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct FingerprintKey([u8; 32]);

impl FingerprintKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn fingerprint(&self, secret: &Secret) -> Fingerprint {
        Fingerprint::of(hmac_sha256(&self.0, &[b"token:", secret.expose().as_bytes()]))
    }

    /// A keyed digest of what a listing says of a key, to see whether it has changed.
    pub fn listing_digest(&self, listed: &[u8]) -> Fingerprint {
        Fingerprint::of(hmac_sha256(&self.0, &[b"listing:", listed]))
    }

    /// A keyed digest of an upstream identity, so that account ids need not be stored.
    pub fn identity_digest(&self, identity: &str) -> Fingerprint {
        Fingerprint::of(hmac_sha256(&self.0, &[b"identity:", identity.as_bytes()]))
    }
}

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[fingerprint key]")
    }
}

/// The first 96 bits of a keyed hash, as 24 hex digits. Long enough that two of 5,000,000
/// tokens collide by chance once in 10^15 runs, short enough for KV metadata (1,024 bytes).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 12]);

impl Fingerprint {
    fn of(mac: [u8; 32]) -> Self {
        let mut bytes = [0; 12];
        bytes.copy_from_slice(&mac[..12]);
        Self(bytes)
    }

    /// A keyed digest that was made elsewhere, cut to the length of a fingerprint.
    pub fn from_digest(digest: &[u8; 16]) -> Self {
        let mut bytes = [0; 12];
        bytes.copy_from_slice(&digest[..12]);
        Self(bytes)
    }

    /// Reads the 24 hex digits back.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 24 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 12];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fp:{}", hex(&self.0[..4]))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a fingerprint is 24 hex digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_from_a_secret() {
        for secret in [
            "ya29.SECRETSECRET",
            "1//0gCanaryCanary",
            "xoxb-1234-5678-abcd",
            "eyJhbGciOiJIUzI1NiJ9.e30.Zm9v",
            "canary10-Zq7xW9vK2mLp",
            "https://a.example/Zq7xW9vK2mLpZq7xW9vK2mLp",
            "9f8a1c2b3d4e5f6071829304",
            "abcdefghijklmnopqrstuvwxyzabcdefghijklmnop",
        ] {
            assert!(looks_like_secret(secret.as_bytes()), "{secret}");
        }
        for name in [
            "scope",
            "refreshTokenExpiresInSeconds",
            "https://www.googleapis.com/auth/analytics.readonly",
            "crm.objects.contacts.read",
            "r_1st_connections_size",
            "instagram_manage_insights",
            "User.ReadWrite.All",
            "https://graph.microsoft.com/.default",
            "",
        ] {
            assert!(!looks_like_secret(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn debug_never_shows_a_secret() {
        let secret = Secret::new("ya29.canary");
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "[secret] Some([secret])");
    }

    #[test]
    fn fingerprints_are_keyed_and_read_back() {
        let (a, b) = (FingerprintKey::new([1; 32]), FingerprintKey::new([2; 32]));
        let secret = Secret::new("ya29.canary");
        let fp = a.fingerprint(&secret);
        assert_ne!(fp, b.fingerprint(&secret));
        assert_ne!(fp, a.fingerprint(&Secret::new("ya29.canarz")));
        assert_eq!(Fingerprint::parse(&fp.to_string()), Some(fp));
    }

    /// The published webhook example of the Nango contract: key, body and HMAC were computed elsewhere.
    #[test]
    fn hmac_agrees_with_a_known_vector() {
        let mac = hmac_sha256(b"key", &[b"The quick brown fox ", b"jumps over the lazy dog"]);
        assert_eq!(hex(&mac), "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8");
    }
}
