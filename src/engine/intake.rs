//! What others tell us: tokens that the gateway wrote, webhooks of both custodies.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{PoisonError, RwLock};

use zeroize::Zeroizing;

use super::{Engine, EngineResult};
use crate::domain::criteria::Note;
use crate::domain::schedule::poll_retry_after_ms;
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::domain::token::KvEntry;
use crate::domain::triplet::Triplet;
use crate::domain::webhook::{AuthWebhook, read_verified};
use crate::ports::Outside;
use crate::store::{Hint, Intake, IntakeKind, Sink};

/// Commits of the intake log that are worked in at once.
const DRAIN_MAX: u32 = 512;

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
        let body = Zeroizing::new(entry.to_json().into_bytes());
        let intake = Intake { kind: IntakeKind::Token, at: now, subject: triplet.to_string(), body };
        self.store.accept(intake).await?;
        Ok(Reported::Accepted)
    }

    /// Takes a verified webhook of Nango: the read of the connection that it names comes forward. It
    /// is on disk when this returns.
    ///
    /// # Errors
    /// When the store fails; nothing is accepted then.
    pub async fn accept_hint(&self, webhook: &AuthWebhook, now: Timestamp) -> EngineResult<()> {
        let body = Zeroizing::new(webhook.to_body());
        let intake = Intake { kind: IntakeKind::NangoWebhook, at: now, subject: String::new(), body };
        Ok(self.store.accept(intake).await?)
    }

    /// Works in what was accepted: webhooks bring reads forward, tokens go into the journal.
    /// What comes in meanwhile is for the next time: this ends however much that is.
    pub(super) async fn drain(&self, now: Timestamp) -> EngineResult<()> {
        let Some(end) = self.store.load_intake_end().await? else { return Ok(()) };
        loop {
            let segments = self.store.load_intake(DRAIN_MAX).await?;
            let Some(last) = segments.last().map(|s| s.seq) else { return Ok(()) };
            let webhooks = segments.iter().flat_map(|s| s.entries.iter().map(|e| (s.seq, e)));
            let webhooks: Vec<(i64, AuthWebhook)> = webhooks
                .filter(|(_, e)| e.kind == IntakeKind::NangoWebhook)
                .filter_map(|(seq, e)| Some((seq, read_verified(&e.body).ok()?)))
                .collect();
            let hints: Vec<Hint> = webhooks.iter().map(|(seq, webhook)| hint(*seq, webhook, now)).collect();
            self.store.settle_intake(&segments, &hints, &Sink::ALL, now).await?;
            if last >= end {
                return Ok(());
            }
        }
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
        let note = Note { at: now, subject, detail };
        let is_news = self.store.note_webhook(webhook_id, "account-expired", &note).await?;
        if is_news {
            tracing::error!(account, subject = note.subject, "{}", note.detail);
        }
        Ok(is_news)
    }
}

/// The read that comes forward because Nango said that something happened.
fn hint(seq: i64, webhook: &AuthWebhook, now: Timestamp) -> Hint<'_> {
    // After a failure Nango answers from its 30-second cooldown.
    let at = if webhook.success { now } else { now.plus_ms(poll_retry_after_ms(1, 0)) };
    Hint { seq, integration_key: &webhook.integration_key, connection_id: &webhook.connection_id, at }
}
