//! The keys at rest: one master key, from which the payload key and the fingerprint key are derived.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::domain::secret::{FingerprintKey, hmac_sha256};

/// Bytes of nonce in front of each payload.
const NONCE_BYTES: usize = 24;

/// Encrypts payloads (XChaCha20-Poly1305) and fingerprints secrets.
pub struct Vault {
    cipher: XChaCha20Poly1305,
    fingerprints: FingerprintKey,
}

/// A key or a payload that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("failed to read the key file `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to make the key file `{}`", path.display())]
    Create { path: PathBuf, source: std::io::Error },
    #[error("the key file `{}` must hold exactly 32 bytes and has {bytes}", path.display())]
    Length { path: PathBuf, bytes: usize },
    #[error("the system gave no randomness")]
    Random,
    #[error("a stored payload cannot be decrypted with this key")]
    Decrypt,
}

impl Vault {
    /// Derives both keys from 32 bytes.
    pub fn from_master(master: &[u8; 32]) -> Self {
        let payload = Zeroizing::new(hmac_sha256(master, &[b"cutover payload v1"]));
        Self {
            cipher: XChaCha20Poly1305::new((&*payload).into()),
            fingerprints: FingerprintKey::new(hmac_sha256(master, &[b"cutover fingerprint v1"])),
        }
    }

    /// Reads the key file, or makes one that only its owner may read.
    ///
    /// # Errors
    /// When the file cannot be read or made, or is not 32 bytes long.
    pub fn load_or_create(path: &Path) -> Result<Self, VaultError> {
        let mut master = Zeroizing::new([0u8; 32]);
        match std::fs::File::open(path) {
            Ok(mut file) => {
                let mut bytes = Zeroizing::new(Vec::new());
                file.read_to_end(&mut bytes).map_err(|source| VaultError::Read { path: path.to_owned(), source })?;
                if bytes.len() != master.len() {
                    return Err(VaultError::Length { path: path.to_owned(), bytes: bytes.len() });
                }
                master.copy_from_slice(&bytes);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                getrandom::fill(&mut *master).map_err(|_| VaultError::Random)?;
                let create = |source| VaultError::Create { path: path.to_owned(), source };
                let mut options = OpenOptions::new();
                options.write(true).create_new(true);
                #[cfg(unix)]
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
                let mut file = options.open(path).map_err(create)?;
                file.write_all(&*master).and_then(|()| file.sync_all()).map_err(create)?;
            }
            Err(source) => return Err(VaultError::Read { path: path.to_owned(), source }),
        }
        Ok(Self::from_master(&master))
    }

    pub fn fingerprints(&self) -> &FingerprintKey {
        &self.fingerprints
    }

    /// Encrypts `clear`, bound to `place` so that a payload cannot be moved to another row.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn seal(&self, place: &str, clear: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0u8; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| VaultError::Random)?;
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: clear, aad: place.as_bytes() })
            .expect("a token is far below the cipher's limit of 256 GiB");
        Ok([&nonce[..], &sealed].concat())
    }

    /// # Errors
    /// When the payload was made with another key, for another place, or was changed.
    pub fn open(&self, place: &str, payload: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let (nonce, sealed) = payload.split_at_checked(NONCE_BYTES).ok_or(VaultError::Decrypt)?;
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| VaultError::Decrypt)?;
        self.cipher
            .decrypt(&XNonce::from(nonce), Payload { msg: sealed, aad: place.as_bytes() })
            .map(Zeroizing::new)
            .map_err(|_| VaultError::Decrypt)
    }
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
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(Vault::load_or_create(&path), Err(VaultError::Length { bytes: 5, .. })));
    }
}
