//! The audit trail in D1, both ways: what we wrote to KV goes there, and what stands there is read
//! back and held against it.
//!
//! A scan of KV sees who wrote an entry last. Somebody who wrote in between shows in `kv_audit`
//! alone, as far as that writer keeps it; and a row of ours that is not there says that the trail
//! cannot be relied upon.

use super::evidence::AUDIT_EVERY_MS;
use super::watch::retry_look_at;
use super::{Engine, EngineResult};
use crate::domain::api::Api;
use crate::domain::criteria::{EvidenceSource, LookOutcome};
use crate::domain::time::Timestamp;
use crate::domain::triplet::{KV_PREFIX, Triplet};
use crate::ports::{AUDIT_PAGE, ApiResult, AuditRead, AuditRecord, AuditSink, Outside};
use crate::store::Sink;

/// Audit rows in one request to D1.
const CHUNK: u32 = 500;

/// Operations that are asked for by name in one round.
const FIND_MAX: u32 = 500;

/// Characters of what another writer says of itself.
const NAME_MAX: usize = 60;

impl<O: Outside> Engine<O> {
    /// Sends audit rows to D1, reads what stands there, and files the counts of requests.
    pub(super) async fn audit(&self, now: Timestamp) -> EngineResult<Timestamp> {
        self.record_traffic().await?;
        match self.exchange_audit(now).await? {
            Ok((read, foreign)) => {
                let outcome = if foreign { LookOutcome::Finding } else { LookOutcome::Clean };
                self.looked(EvidenceSource::Audit, outcome, read, now).await?;
                Ok(now.plus_ms(AUDIT_EVERY_MS))
            }
            Err(error) => {
                tracing::warn!("the audit trail is not up to date: {error}");
                self.unanswered(EvidenceSource::Audit, &error, now).await?;
                Ok(retry_look_at(now, &error))
            }
        }
    }

    /// Returns how many rows were read, and whether one tells of a foreign write.
    async fn exchange_audit(&self, now: Timestamp) -> EngineResult<ApiResult<(u64, bool)>> {
        // Before our first row: what is there already is the business of nobody here.
        let begun = match self.store.load_audit_end().await? {
            Some(end) => Ok(end),
            None => {
                let end = self.outside.cloudflare().audit_end().await;
                self.observe(Api::Cloudflare, now, &end).await?;
                if let Ok(end) = end {
                    self.store.save_audit_end(end).await?;
                }
                end
            }
        };
        // A trail that cannot be read is still written.
        let sent = self.send_audit(begun.is_ok().then_some(now), now).await?;
        match begun.and_then(|end| sent.map(|()| end)) {
            Ok(end) => self.read_back(end, now).await,
            Err(error) => Ok(Err(error)),
        }
    }

    async fn send_audit(&self, sent_at: Option<Timestamp>, now: Timestamp) -> EngineResult<ApiResult<()>> {
        loop {
            let rows = self.store.load_audit_outbox(CHUNK).await?;
            if rows.is_empty() {
                return Ok(Ok(()));
            }
            let answer = self.outside.cloudflare().append_audit(&rows).await;
            self.observe(Api::Cloudflare, now, &answer).await?;
            if answer.is_err() {
                return Ok(answer);
            }
            self.store.clear_audit_outbox(&rows, sent_at).await?;
        }
    }

    async fn read_back(&self, mut end: u64, now: Timestamp) -> EngineResult<ApiResult<(u64, bool)>> {
        let (mut read, mut foreign) = (0, false);
        loop {
            let page = self.outside.cloudflare().read_audit(end).await;
            self.observe(Api::Cloudflare, now, &page).await?;
            let page = match page {
                Ok(page) => page,
                Err(error) => return Ok(Err(error)),
            };
            read += page.len() as u64;
            end = page.last().map_or(end, |row| row.place);
            foreign |= self.take_in_audit(&page, end, now).await?;
            if page.len() < AUDIT_PAGE {
                break;
            }
        }
        // A delivery that was made twice has one row, which may have been read the first time.
        let unread = self.store.load_unread_audit(now, FIND_MAX).await?;
        if !unread.is_empty() {
            let found = self.outside.cloudflare().find_audit(&unread).await;
            self.observe(Api::Cloudflare, now, &found).await?;
            match found {
                Ok(found) => foreign |= self.take_in_audit(&found, end, now).await?,
                Err(error) => return Ok(Err(error)),
            };
        }
        self.store.note_audit_read(now).await?;
        Ok(Ok((read, foreign)))
    }

    /// Confirms our rows among these, and notes what others wrote to keys that are ours.
    async fn take_in_audit(&self, rows: &[AuditRecord], end: u64, now: Timestamp) -> EngineResult<bool> {
        let ids: Vec<&str> = rows.iter().map(|row| row.op_id.as_str()).collect();
        let sent = self.store.load_sent_audit(&ids).await?;
        let is_ours = |row: &&AuditRecord| {
            sent.get(&row.op_id).is_some_and(|sent| sent.key == row.key && sent.fingerprint == row.fingerprint)
        };
        let (ours, others): (Vec<&AuditRecord>, Vec<&AuditRecord>) = rows.iter().partition(is_ours);
        let mut foreign = false;
        for row in others {
            foreign |= self.judge_other_writer(row, now).await?;
        }
        // Last: after a crash the others are judged again, and noted once.
        let ours: Vec<&str> = ours.iter().map(|row| row.op_id.as_str()).collect();
        self.store.confirm_audit(&ours, end).await?;
        Ok(foreign)
    }

    /// Whether a row that is not ours tells of a write to an entry that only we should write.
    async fn judge_other_writer(&self, row: &AuditRecord, now: Timestamp) -> EngineResult<bool> {
        let triplet = row.key.strip_prefix(KV_PREFIX).and_then(|name| Triplet::parse(name).ok());
        let Some(triplet) = triplet else { return Ok(false) };
        let sink = self.store.load_sink(Sink::KvSource).await?.into_iter().find(|state| state.triplet == triplet);
        if sink.is_none_or(|state| state.delivered == 0) {
            return Ok(false);
        }
        // Before our first write was visible the entry belonged to the old writer.
        let first = self.store.load_first_version_at(&triplet).await?;
        let ours_since = first.map(|at| at.plus_ms(self.config.settle_ms));
        if row.at.is_some_and(|at| ours_since.is_none_or(|since| at < since)) {
            return Ok(false);
        }
        let named = |text: &str| text.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect::<String>();
        let when = row.at.map_or_else(|| "at an unknown time".to_owned(), |at| format!("at {}", at.to_minute()));
        let detail = format!("`kv_audit` has a `{}` by `{}` {when}", named(&row.action), named(&row.source));
        self.note_foreign(&triplet, Sink::KvSource, detail, now).await?;
        Ok(true)
    }
}
