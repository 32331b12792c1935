//! Keys of the admin routes, known by their hashes only, and what counts as a key at all.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::domain::secret::{Secret, hex, same_secret};

/// How a hash is written in the configuration.
const PREFIX: &str = "sha256:";

/// The fewest bytes of a key that may guard an address which others can reach.
const BYTES_MIN: usize = 16;

/// The fewest different characters in such a key.
const DISTINCT_MIN: usize = 8;

/// Keys that everybody knows: habits, the examples of published test vectors, and what the sandbox
/// prints for its webhooks and its gateway unless it is given another seed.
const KNOWN: [&str; 14] = [
    "12345678",
    "123456789",
    "1234567890",
    "1q2w3e4r",
    "correct horse battery staple",
    "correcthorsebatterystaple",
    "0123456789abcdef",
    "1234567890123456",
    "abcdefghijklmnop",
    "supersecretsupersecret",
    "7b0d9f52-3c41-4e8a-9d26-5a1f0c3e7b48",
    "cutover-test-secret-01",
    "91a4ee94-7c62-4c91-bf96-a7a5e202b944",
    "admin-CANARY-hQQdExV7vXa7KNulPKL5I14M",
];

/// What people take for a key, in any of three cases and with any of these endings.
const WORDS: [&str; 30] = [
    "admin",
    "administrator",
    "adminkey",
    "admin-key",
    "apikey",
    "api-key",
    "changeme",
    "change-me",
    "composio",
    "cutover",
    "default",
    "gateway",
    "guest",
    "hunter",
    "key",
    "letmein",
    "login",
    "master",
    "nango",
    "passw0rd",
    "password",
    "qwerty",
    "root",
    "secret",
    "shim",
    "test",
    "token",
    "user",
    "webhook",
    "welcome",
];
const ENDINGS: [&str; 14] =
    ["", "1", "2", "12", "123", "1234", "12345", "123456", "!", "1!", "123!", "2024", "2025", "2026"];

/// Whether `fits` takes a key that everybody knows.
fn is_known(fits: impl Fn(&str) -> bool) -> bool {
    let title = |word: &str| word[..1].to_uppercase() + &word[1..];
    let cases = |word: &'static str| [word.to_owned(), word.to_uppercase(), title(word)];
    let mut guesses =
        WORDS.into_iter().flat_map(cases).flat_map(|word| ENDINGS.map(|ending| format!("{word}{ending}")));
    KNOWN.iter().any(|known| fits(known)) || guesses.any(|guess| fits(&guess))
}

/// SHA-256 hashes of the admin keys. A key is 32 random bytes, so one round is enough: there is
/// nothing to guess. Several are accepted so that a key can be replaced without a gap.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AdminKeys(Vec<[u8; 32]>);

impl fmt::Debug for AdminKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} admin keys]", self.0.len())
    }
}

/// A text that is not a list of hashes. Never repeats it: it may be a key in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAHash {
    /// Entries count from 1.
    #[error("entry {entry} is not `sha256:` and 64 hex digits")]
    Malformed { entry: usize },
    #[error("entry {entry} is the hash of an empty key: the variable that it was made from was not set")]
    OfNothing { entry: usize },
}

impl AdminKeys {
    /// Reads `sha256:…` entries, separated by spaces or commas.
    ///
    /// # Errors
    /// When an entry is anything else, or the hash of nothing.
    pub fn parse(text: &str) -> Result<Self, NotAHash> {
        let entries = text.split([' ', ',', '\n', '\t']).filter(|entry| !entry.is_empty());
        let parse = |(n, entry): (usize, &str)| {
            let digits = entry.strip_prefix(PREFIX).filter(|d| d.len() == 64 && d.is_ascii());
            let mut hash = [0; 32];
            for (i, byte) in hash.iter_mut().enumerate() {
                let pair = digits.and_then(|d| d.get(2 * i..2 * i + 2)).ok_or(NotAHash::Malformed { entry: n + 1 })?;
                *byte = u8::from_str_radix(pair, 16).map_err(|_| NotAHash::Malformed { entry: n + 1 })?;
            }
            if hash == self::hash(b"") {
                return Err(NotAHash::OfNothing { entry: n + 1 });
            }
            Ok(hash)
        };
        entries.enumerate().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// The hashes of these keys.
    pub fn of(keys: &[Secret]) -> Self {
        Self(keys.iter().map(|key| hash(key.expose().as_bytes())).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `given` is one of the keys. All are compared, so that time tells nothing. Nothing is no key.
    pub fn admit(&self, given: &[u8]) -> bool {
        let digest = hash(given);
        let fits = self.0.iter().fold(false, |fits, known| fits | same_secret(known, &digest));
        fits && !given.is_empty()
    }

    /// Whether one of them is a key that everybody knows. How good the others are, a hash does not tell.
    pub fn hold_a_known_key(&self) -> bool {
        is_known(|guess| self.admit(guess.as_bytes()))
    }
}

/// The hash of a key as the configuration takes it.
pub fn hash_of(key: &Secret) -> String {
    format!("{PREFIX}{}", hex(&hash(key.expose().as_bytes())))
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Why a key is too weak for an address that others can reach; `None` when it is not.
pub fn weakness(key: &Secret) -> Option<&'static str> {
    let text = key.expose();
    let mut distinct: Vec<char> = text.chars().collect();
    distinct.sort_unstable();
    distinct.dedup();
    if is_known(|guess| text.eq_ignore_ascii_case(guess)) {
        Some("everybody knows it")
    } else if text.len() < BYTES_MIN {
        Some("it is shorter than 16 bytes")
    } else if distinct.len() < DISTINCT_MIN {
        Some("it repeats fewer than 8 characters")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_keys_are_known_by_their_hashes_and_several_fit() {
        let (old, new) = (Secret::new("an old key, long enough"), Secret::new("a new key, long enough"));
        let keys = AdminKeys::parse(&format!("{}, {}", hash_of(&old), hash_of(&new))).unwrap();
        assert_eq!(keys, AdminKeys::of(&[old, new]));
        assert!(keys.admit(b"an old key, long enough") && keys.admit(b"a new key, long enough"));
        for bad in [&b""[..], b"an old key, long enougi", hash_of(&Secret::new("an old key, long enough")).as_bytes()] {
            assert!(!keys.admit(bad));
        }
        assert!(!AdminKeys::default().admit(b""));
        assert_eq!(format!("{keys:?}"), "[2 admin keys]");
    }

    #[test]
    fn what_is_not_a_hash_is_refused_and_never_repeated() {
        let good = hash_of(&Secret::new("x"));
        for bad in ["canary", "sha256:", &good[..70], &format!("{good}0"), &good.replace('0', "é")] {
            let error = AdminKeys::parse(&format!("{good} {bad}")).unwrap_err();
            assert!(error == NotAHash::Malformed { entry: 2 } && !error.to_string().contains("canary"), "{error}");
        }
        let nothing = hash_of(&Secret::new(""));
        assert_eq!(AdminKeys::parse(&format!("{good} {nothing}")), Err(NotAHash::OfNothing { entry: 2 }));
        assert!(!AdminKeys::of(&[Secret::new("")]).admit(b""), "nothing opens nothing");
        assert!(AdminKeys::parse(" ").unwrap().is_empty());
    }

    #[test]
    fn keys_that_are_short_dull_or_known_are_weak() {
        for weak in ["", "short", "aaaaaaaaaaaaaaaaaaaaaaaa", "ChangeMe", "7b0d9f52-3c41-4e8a-9d26-5a1f0c3e7b48"] {
            assert!(weakness(&Secret::new(weak)).is_some(), "{weak}");
        }
        assert_eq!(weakness(&Secret::new("c1f7a0f2-93c4-4f0e-8f5e-0c6f8f6b9b1d")), None);
        let holds =
            |key: &str| AdminKeys::of(&[Secret::new("c1f7a0f2-93c4-4f0e"), Secret::new(key)]).hold_a_known_key();
        for known in ["admin", "Password1", "CHANGEME", "Welcome2026", "cutover-test-secret-01"] {
            assert!(holds(known), "{known}");
        }
        assert!(!holds("c1f7a0f2-93c4-4f0e-8f5e-0c6f8f6b9b1d"));
    }
}
