//! What others tell us: tokens that the gateway wrote, webhooks of both custodies.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{PoisonError, RwLock};

use super::{Engine, EngineResult};
use crate::domain::criteria::Note;
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::domain::token::{KvEntry, Writer};
use crate::domain::triplet::Triplet;
use crate::ports::Outside;
use crate::store::{Capture, NewVersion, Sink};

/// How often the directory is read again because somebody asked for what is not in it.
const REFRESH_MS: i64 = 5 * SECOND_MS;

/// What became of a reported token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// It is in the journal. Whether it is newer than what is there is decided there.
    Accepted,
    /// The triplet is not mirrored.
    Unknown,
}

/// The triplets that are mirrored, as hashes under a key of this process: 8 bytes each, so that a
/// million of them can be asked without a look into the store. Two that share a hash do no harm:
/// the journal knows names.
#[derive(Debug, Default)]
pub(super) struct Directory {
    hasher: RandomState,
    known: RwLock<(Option<Timestamp>, HashSet<u64>)>,
}

impl Directory {
    fn has(&self, triplet: &Triplet) -> bool {
        let hash = self.hasher.hash_one(triplet);
        self.known.read().unwrap_or_else(PoisonError::into_inner).1.contains(&hash)
    }

    fn is_old(&self, now: Timestamp) -> bool {
        let read_at = self.known.read().unwrap_or_else(PoisonError::into_inner).0;
        read_at.is_none_or(|at| now.since(at).abs() >= REFRESH_MS)
    }

    fn set(&self, triplets: &[Triplet], now: Timestamp) {
        let hashes = triplets.iter().map(|triplet| self.hasher.hash_one(triplet)).collect();
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = (Some(now), hashes);
    }
}

impl<O: Outside> Engine<O> {
    /// Takes a token that the gateway or its TokenManager wrote. It is on disk when this returns
    /// `Accepted`; one that ends before the newest we have is dropped with a record.
    ///
    /// # Errors
    /// When the store fails; nothing is accepted then.
    pub async fn report_token(&self, triplet: &Triplet, entry: KvEntry, now: Timestamp) -> EngineResult<Reported> {
        if !self.directory.has(triplet) {
            if self.directory.is_old(now) {
                self.directory.set(&self.store.load_mirrored().await?, now);
            }
            if !self.directory.has(triplet) {
                return Ok(Reported::Unknown);
            }
        }
        let fingerprint = self.store.vault().fingerprints().fingerprint(&entry.access_token);
        let version = NewVersion { triplet: triplet.clone(), epoch: 1, writer: Writer::DoAlarm, entry };
        let capture = Capture {
            connection: -1,
            fingerprint,
            expires_at: None,
            poll_at: now,
            versions: vec![version],
            scheduled: None,
        };
        self.store.append_captures(&[capture], &Sink::ALL, now).await?;
        Ok(Reported::Accepted)
    }

    /// Composio says that it lost the grant of one of its accounts. Returns whether this is news:
    /// a webhook comes at least once, and one that came before changes nothing.
    ///
    /// # Errors
    /// When the store fails; nothing is accepted then.
    pub async fn account_expired(&self, webhook_id: &str, account: &str, now: Timestamp) -> EngineResult<bool> {
        let owner = self.store.load_account_owner(account).await?;
        let subject = owner.as_ref().map_or_else(|| account.to_owned(), Triplet::to_string);
        let detail = format!("Composio lost the grant of `{account}`");
        tracing::error!(account, %subject, "{detail}");
        Ok(self.store.note_webhook(webhook_id, "account-expired", &Note { at: now, subject, detail }).await?)
    }
}
