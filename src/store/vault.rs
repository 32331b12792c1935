//! The keys at rest. Payloads are encrypted with the newest of several keys and opened with
//! whichever they name; fingerprints and digests have keys of their own that never change, so that
//! what was compared before a rotation still compares after it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::domain::secret::{FingerprintKey, Secret, hex, hmac_sha256};

/// Bytes of the key's number and of the nonce in front of each payload.
const NUMBER_BYTES: usize = 4;
const NONCE_BYTES: usize = 24;

type Key = Zeroizing<[u8; 32]>;

/// Encrypts payloads (XChaCha20-Poly1305), fingerprints secrets, and digests content.
pub struct Vault {
    ring: RwLock<Ring>,
    fingerprints: FingerprintKey,
    digests: Key,
    /// Read again when it changed: another process may have added a key or dropped one.
    file: Option<PathBuf>,
}

/// How a file looked when it was read: when it was changed, and its length.
type Stamp = Option<(std::time::SystemTime, u64)>;

/// The keys by number, and the one behind fingerprints and digests.
struct Ring {
    stamp: Stamp,
    stable: Key,
    masters: BTreeMap<u32, Key>,
    ciphers: BTreeMap<u32, XChaCha20Poly1305>,
}

/// A key or a payload that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("failed to read the key file `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to write the key file `{}`", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error(
        "the key file `{}` must hold 32 bytes, or lines of `stable` or a number and 64 hex digits: {problem}",
        path.display()
    )]
    Format { path: PathBuf, problem: KeyProblem },
    #[error("the system gave no randomness")]
    Random,
    #[error("a stored payload was encrypted with key {0}, which is not in the key file")]
    NoKey(u32),
    #[error("a stored payload cannot be decrypted with this key")]
    Decrypt,
}

/// What is wrong with the text of a key file. Never quotes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    #[error("line {0} is neither")]
    Line(usize),
    #[error("line {0} repeats a name")]
    Repeated(usize),
    #[error("there is no line `stable`")]
    NoStable,
    #[error("there is no numbered key")]
    NoKey,
}

impl Ring {
    fn new(stable: Key, masters: BTreeMap<u32, Key>) -> Self {
        let ciphers = masters
            .iter()
            .map(|(&number, master)| {
                let payload = Zeroizing::new(hmac_sha256(&**master, &[b"cutover payload v1"]));
                (number, XChaCha20Poly1305::new((&*payload).into()))
            })
            .collect();
        Self { stamp: None, stable, masters, ciphers }
    }

    /// A key file: 32 bytes, or text.
    fn parse(bytes: &[u8]) -> Result<Self, KeyProblem> {
        if let Ok(master) = <[u8; 32]>::try_from(bytes) {
            let master = Zeroizing::new(master);
            return Ok(Self::new(master.clone(), BTreeMap::from([(1, master)])));
        }
        let (mut stable, mut masters) = (None, BTreeMap::new());
        let text = std::str::from_utf8(bytes).map_err(|_| KeyProblem::Line(1))?;
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, digits) = line.split_once(' ').ok_or(KeyProblem::Line(n + 1))?;
            let key = unhex(digits.trim()).ok_or(KeyProblem::Line(n + 1))?;
            let repeated = if name == "stable" {
                stable.replace(key).is_some()
            } else {
                let number = name.parse().ok().filter(|&n: &u32| n > 0).ok_or(KeyProblem::Line(n + 1))?;
                masters.insert(number, key).is_some()
            };
            if repeated {
                return Err(KeyProblem::Repeated(n + 1));
            }
        }
        if masters.is_empty() {
            return Err(KeyProblem::NoKey);
        }
        Ok(Self::new(stable.ok_or(KeyProblem::NoStable)?, masters))
    }

    fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(
            "# Keys of a cutover state: the highest number encrypts; all of them decrypt. Keep them as safe as the tokens.\n"
                .to_owned(),
        );
        let mut line = |name: &str, key: &Key| {
            let digits = Zeroizing::new(hex(&**key));
            writeln!(text, "{name} {}", *digits).expect("writing to a String cannot fail");
        };
        line("stable", &self.stable);
        for (number, key) in &self.masters {
            line(&number.to_string(), key);
        }
        text
    }

    fn newest(&self) -> u32 {
        *self.masters.keys().next_back().expect("a ring has a key")
    }
}

impl Vault {
    /// One key, from 32 bytes.
    pub fn from_master(master: &[u8; 32]) -> Self {
        Self::new(Ring::parse(master).expect("32 bytes are a key"), None)
    }

    /// The keys of a text as a key file holds them; commas may stand for the ends of lines.
    ///
    /// # Errors
    /// Which line is no key.
    pub fn from_text(text: &Secret) -> Result<Self, KeyProblem> {
        let lines = Zeroizing::new(text.expose().replace(',', "\n"));
        Ok(Self::new(Ring::parse(lines.as_bytes())?, None))
    }

    fn new(ring: Ring, file: Option<PathBuf>) -> Self {
        let fingerprints = FingerprintKey::new(hmac_sha256(&*ring.stable, &[b"cutover fingerprint v1"]));
        let digests = Zeroizing::new(hmac_sha256(&*ring.stable, &[b"cutover digest v1"]));
        Self { ring: RwLock::new(ring), fingerprints, digests, file }
    }

    /// Reads the key file, or makes one that only its owner may read.
    ///
    /// # Errors
    /// When the file cannot be read or made, or holds no keys.
    pub fn load_or_create(path: &Path) -> Result<Self, VaultError> {
        let ring = match read_ring(path)? {
            Some(ring) => ring,
            None => {
                let ring = Ring::new(random_key()?, BTreeMap::from([(1, random_key()?)]));
                let mut options = OpenOptions::new();
                options.create_new(true);
                write_private(path, &mut options, ring.to_text().as_bytes())?;
                Ring { stamp: stamp(path), ..ring }
            }
        };
        Ok(Self::new(ring, Some(path.to_owned())))
    }

    /// Adds a key to a key file. From now on it encrypts; a process that has the file open takes it
    /// up when it meets a payload of it. Returns its number.
    ///
    /// # Errors
    /// When the file is not there, or cannot be read or written.
    pub fn add_key(path: &Path) -> Result<u32, VaultError> {
        let mut ring = existing_ring(path)?;
        let number = ring.newest() + 1;
        ring.masters.insert(number, random_key()?);
        replace_private(path, ring.to_text().as_bytes())?;
        Ok(number)
    }

    /// Takes all keys but the newest out of a key file. Only once [`super::Store::rotate`] has
    /// re-encrypted what they encrypted. Returns how many went.
    ///
    /// # Errors
    /// When the file is not there, or cannot be read or written.
    pub fn drop_old_keys(path: &Path) -> Result<usize, VaultError> {
        let mut ring = existing_ring(path)?;
        let (newest, before) = (ring.newest(), ring.masters.len());
        ring.masters.retain(|&number, _| number == newest);
        if before > 1 {
            replace_private(path, ring.to_text().as_bytes())?;
        }
        Ok(before - 1)
    }

    pub fn fingerprints(&self) -> &FingerprintKey {
        &self.fingerprints
    }

    /// Keyed digest of content in its place: proves it unchanged, tells nothing about it, and does
    /// not change when it is encrypted anew.
    pub(super) fn digest(&self, place: &str, clear: &[u8]) -> [u8; 32] {
        hmac_sha256(&*self.digests, &[&(place.len() as u64).to_be_bytes(), place.as_bytes(), clear])
    }

    /// Number of the key that encrypts.
    pub fn newest_key(&self) -> u32 {
        self.ring().newest()
    }

    /// Number of the key that a payload was encrypted with.
    pub(super) fn key_of(payload: &[u8]) -> Option<u32> {
        payload.first_chunk().map(|number| u32::from_be_bytes(*number))
    }

    /// Encrypts `clear`, bound to `place` so that a payload cannot be moved to another row.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn seal(&self, place: &str, clear: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0u8; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| VaultError::Random)?;
        // What an old key encrypts after that key was dropped could never be opened again. A file
        // that is gone says nothing.
        let changed = self.file.as_deref().and_then(stamp).filter(|stamp| self.ring().stamp != Some(*stamp));
        if changed.is_some() {
            self.reload()?;
        }
        let ring = self.ring();
        let number = ring.newest();
        let sealed = ring.ciphers[&number]
            .encrypt(&XNonce::from(nonce), Payload { msg: clear, aad: place.as_bytes() })
            .expect("a token is far below the cipher's limit of 256 GiB");
        Ok([&number.to_be_bytes()[..], &nonce, &sealed].concat())
    }

    /// # Errors
    /// When the payload was made with a key that is not there, for another place, or was changed.
    pub fn open(&self, place: &str, payload: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let number = Self::key_of(payload).ok_or(VaultError::Decrypt)?;
        let rest = payload.get(NUMBER_BYTES..).ok_or(VaultError::Decrypt)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(VaultError::Decrypt)?;
        if !self.ring().ciphers.contains_key(&number) {
            self.reload()?;
        }
        let ring = self.ring();
        let cipher = ring.ciphers.get(&number).ok_or(VaultError::NoKey(number))?;
        cipher
            .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: place.as_bytes() })
            .map(Zeroizing::new)
            .map_err(|_| VaultError::Decrypt)
    }

    /// Takes up keys that were added to the file since it was read. Those of another state are not taken.
    fn reload(&self) -> Result<(), VaultError> {
        let Some(path) = &self.file else { return Ok(()) };
        let read = existing_ring(path)?;
        let mut ring = self.ring.write().expect("no panic happens while this lock is held");
        if *read.stable == *ring.stable {
            *ring = read;
        }
        Ok(())
    }

    fn ring(&self) -> std::sync::RwLockReadGuard<'_, Ring> {
        self.ring.read().expect("no panic happens while this lock is held")
    }
}

fn random_key() -> Result<Key, VaultError> {
    let mut key = Zeroizing::new([0u8; 32]);
    getrandom::fill(&mut *key).map_err(|_| VaultError::Random)?;
    Ok(key)
}

fn unhex(digits: &str) -> Option<Key> {
    if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut key = Zeroizing::new([0u8; 32]);
    for (byte, pair) in key.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

/// The keys of a file; `None` when there is no file.
fn read_ring(path: &Path) -> Result<Option<Ring>, VaultError> {
    // Taken before the content: what is written in between is noticed the next time.
    let stamp = stamp(path);
    let mut bytes = Zeroizing::new(Vec::new());
    match std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(VaultError::Read { path: path.to_owned(), source }),
    }
    let ring = Ring::parse(&bytes).map_err(|problem| VaultError::Format { path: path.to_owned(), problem })?;
    Ok(Some(Ring { stamp, ..ring }))
}

fn stamp(path: &Path) -> Stamp {
    let about = std::fs::metadata(path).ok()?;
    Some((about.modified().ok()?, about.len()))
}

fn existing_ring(path: &Path) -> Result<Ring, VaultError> {
    let absent = || VaultError::Read { path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() };
    read_ring(path)?.ok_or_else(absent)
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, options: &mut OpenOptions, bytes: &[u8]) -> Result<(), VaultError> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(|source| VaultError::Write { path: path.to_owned(), source })
}

/// Puts a new file in the place of the old one: whoever reads it sees either of the two, whole.
fn replace_private(path: &Path, bytes: &[u8]) -> Result<(), VaultError> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut options = OpenOptions::new();
    options.create(true).truncate(true);
    write_private(&beside, &mut options, bytes)?;
    std::fs::rename(&beside, path).map_err(|source| VaultError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_open_only_with_their_key_and_in_their_place() {
        let (a, b) = (Vault::from_master(&[1; 32]), Vault::from_master(&[2; 32]));
        let sealed = a.seal("t:1", b"canary").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"canary"));
        assert_eq!(&**a.open("t:1", &sealed).unwrap(), b"canary");
        assert!(a.open("t:2", &sealed).is_err() && b.open("t:1", &sealed).is_err());
        let mut torn = sealed.clone();
        torn.pop();
        assert!(a.open("t:1", &torn).is_err() && a.open("t:1", b"short").is_err());
    }

    #[test]
    fn a_made_key_file_is_private_and_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cutover.key");
        let sealed = Vault::load_or_create(&path).unwrap().seal("p", b"x").unwrap();
        assert_eq!(&**Vault::load_or_create(&path).unwrap().open("p", &sealed).unwrap(), b"x");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        Vault::add_key(&path).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn what_is_no_key_file_is_said_by_line_and_never_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cutover.key");
        let digits = "ab".repeat(32);
        for (text, problem) in [
            ("short", KeyProblem::Line(1)),
            (&format!("stable {digits}\n1 canary"), KeyProblem::Line(2)),
            (&format!("stable {digits}\n0 {digits}"), KeyProblem::Line(2)),
            (&format!("1 {digits}"), KeyProblem::NoStable),
            (&format!("# nothing\nstable {digits}"), KeyProblem::NoKey),
            (&format!("stable {digits}\n1 {digits}\n1 {digits}"), KeyProblem::Repeated(3)),
        ] {
            std::fs::write(&path, text).unwrap();
            let Err(VaultError::Format { problem: found, .. }) = Vault::load_or_create(&path) else {
                panic!("{text} was taken");
            };
            assert_eq!(found, problem);
            assert!(!found.to_string().contains("canary"));
        }
    }

    #[test]
    fn a_key_of_the_old_form_is_the_first_of_a_ring_and_fingerprints_stay_through_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cutover.key");
        std::fs::write(&path, [7; 32]).unwrap();
        let running = Vault::load_or_create(&path).unwrap();
        let sealing = Vault::load_or_create(&path).unwrap();
        let old = running.seal("p", b"old").unwrap();
        assert_eq!(Vault::add_key(&path).unwrap(), 2);
        let rotated = Vault::load_or_create(&path).unwrap();
        let new = rotated.seal("p", b"new").unwrap();
        assert_eq!((Vault::key_of(&old), Vault::key_of(&new)), (Some(1), Some(2)));
        assert_eq!(&**rotated.open("p", &old).unwrap(), b"old");
        // The one that runs takes up the new key by itself, whether it opens or seals.
        assert_eq!(&**running.open("p", &new).unwrap(), b"new");
        assert_eq!(Vault::key_of(&sealing.seal("p", b"x").unwrap()), Some(2));
        let token = Secret::new("at-1");
        assert_eq!(running.fingerprints().fingerprint(&token), rotated.fingerprints().fingerprint(&token));
        assert_eq!(Vault::drop_old_keys(&path).unwrap(), 1);
        let last = Vault::load_or_create(&path).unwrap();
        assert!(matches!(last.open("p", &old), Err(VaultError::NoKey(1))));
        assert_eq!(last.fingerprints().fingerprint(&token), running.fingerprints().fingerprint(&token));
        assert_eq!(last.digest("p", b"x"), running.digest("p", b"x"));
    }
}
