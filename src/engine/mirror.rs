//! The mirror: carries the newest version of each triplet to each sink, in order per triplet.
//!
//! A sink that fails delays only itself. Older pending versions were superseded when the newer
//! one was journalled, so nothing old can be sent late.

use std::collections::BTreeMap;

use super::{Engine, EngineResult, spread};
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::schedule::delivery_retry_after_ms;
use crate::domain::secret::Secret;
use crate::domain::time::Timestamp;
use crate::ports::{ApiError, ApiErrorKind, KvPut, KvWrite, Namespace, Outside, TargetCustody};
use crate::store::{Delivered, PendingDelivery, Sink};

/// Deliveries in one round. A bulk put takes 10,000 entries (Cloudflare contract §2.4); fewer are
/// gentler on the API and keep a round's payloads small in memory.
const ROUND_MAX: u32 = 1_000;

impl<O: Outside> Engine<O> {
    /// Delivers what is due.
    pub(super) async fn mirror(&self, now: Timestamp) -> EngineResult<()> {
        loop {
            let until = now.plus_ms(self.config.claim_ms);
            let pending = self.store.claim_deliveries(&Sink::ALL, now, ROUND_MAX, until).await?;
            crate::failpoint::hit("delivery-claimed");
            let full = pending.len() == ROUND_MAX as usize;
            let mut by_sink: BTreeMap<Sink, Vec<PendingDelivery>> = BTreeMap::new();
            for p in pending {
                by_sink.entry(p.sink).or_default().push(p);
            }
            // Both namespaces are written in one go and acknowledged in one commit; Composio,
            // which is slower and limited, on its own.
            let mut written = Vec::new();
            for (sink, namespace) in [(Sink::KvSource, Namespace::Source), (Sink::KvTarget, Namespace::Target)] {
                if let Some(pending) = by_sink.remove(&sink) {
                    written.extend(self.put_all(sink, namespace, pending, now).await?);
                }
            }
            self.store.mark_delivered(&written, now).await?;
            if let Some(pending) = by_sink.remove(&Sink::Composio) {
                self.patch_all(pending, now).await?;
            }
            if !full {
                return Ok(());
            }
        }
    }

    async fn put_all(
        &self,
        sink: Sink,
        namespace: Namespace,
        pending: Vec<PendingDelivery>,
        now: Timestamp,
    ) -> EngineResult<Vec<Delivered>> {
        let puts: Vec<KvPut> = pending
            .iter()
            .map(|p| KvPut {
                key: p.triplet.kv_key(),
                value: Secret::new(p.entry.to_json()),
                metadata: Some(serde_json::to_value(&p.metadata).expect("metadata is plain data")),
            })
            .collect();
        let answer = self.outside.cloudflare().bulk_put(namespace, &puts).await;
        self.observe(Api::Cloudflare, now, &answer).await?;
        crate::failpoint::hit("delivery-sent");
        match answer {
            Ok(unwritten) => {
                let (failed, written): (Vec<_>, Vec<_>) =
                    pending.into_iter().partition(|p| unwritten.contains(&p.triplet.kv_key()));
                if !failed.is_empty() {
                    let error = ApiErrorKind::RateLimited { retry_after_ms: None };
                    self.put_off(sink, &failed, &error, now).await?;
                }
                Ok(written.into_iter().map(delivered).collect())
            }
            Err(error) => {
                self.put_off(sink, &pending, &error.kind, now).await?;
                Ok(Vec::new())
            }
        }
    }

    async fn patch_all(&self, pending: Vec<PendingDelivery>, now: Timestamp) -> EngineResult<()> {
        let mut done = Vec::new();
        let mut rest = pending.into_iter();
        let mut failed: Vec<(Vec<PendingDelivery>, ApiErrorKind)> = Vec::new();
        while let Some(p) = rest.next() {
            // Without an account there is nothing to patch yet; such deliveries are not loaded.
            let Some(account) = &p.mirror_account else { continue };
            let answer = self.outside.target().patch_bearer(account, &p.entry.access_token).await;
            self.observe(Api::Composio, now, &answer).await?;
            match answer {
                Ok(_) => done.push(delivered(p)),
                Err(ApiError { kind: kind @ ApiErrorKind::RateLimited { retry_after_ms: Some(_) }, .. }) => {
                    // The budget is the organisation's: the others would only be refused as well.
                    failed.push((std::iter::once(p).chain(rest.by_ref()).collect(), kind));
                }
                Err(error) if error.is_outage() => {
                    failed.push((std::iter::once(p).chain(rest.by_ref()).collect(), error.kind));
                }
                Err(error) => failed.push((vec![p], error.kind)),
            }
        }
        self.store.mark_delivered(&done, now).await?;
        for (pending, kind) in failed {
            self.put_off(Sink::Composio, &pending, &kind, now).await?;
        }
        Ok(())
    }

    /// Tries again later, or gives up when trying again cannot help.
    async fn put_off(
        &self,
        sink: Sink,
        pending: &[PendingDelivery],
        kind: &ApiErrorKind,
        now: Timestamp,
    ) -> EngineResult<()> {
        let hopeless = matches!(kind, ApiErrorKind::Rejected { .. } | ApiErrorKind::Unauthorized { .. });
        let retry_after = match kind {
            ApiErrorKind::RateLimited { retry_after_ms } => *retry_after_ms,
            _ => None,
        };
        let mut attempts = 0;
        let mut later: Vec<&PendingDelivery> = Vec::new();
        for p in pending {
            if hopeless || p.attempts + 1 >= self.config.delivery_attempts_max {
                let why = format!("{} after {} attempts: {kind}", sink.name(), p.attempts + 1);
                if !self.store.bury_delivery(p, &why).await? {
                    // A newer version is there, or somebody else is at it: that one is tried.
                    later.push(p);
                    continue;
                }
                tracing::error!(triplet = %p.triplet, "dead letter: {why}");
                let note = Note { at: now, subject: p.triplet.to_string(), detail: why };
                self.store.add_note("dead-letter", &note).await?;
            } else {
                attempts = attempts.max(p.attempts + 1);
                later.push(p);
            }
        }
        if let Some(first) = later.first() {
            let draw = spread(&["delivery", sink.name(), &first.triplet.to_string()], u64::from(attempts));
            let next_at = now.plus_ms(delivery_retry_after_ms(attempts, retry_after, draw));
            tracing::warn!(sink = sink.name(), deliveries = later.len(), attempts, "put off: {kind}");
            self.store.defer_deliveries(&later, next_at).await?;
        }
        Ok(())
    }
}

fn delivered(p: PendingDelivery) -> Delivered {
    Delivered { sink: p.sink, triplet: p.triplet, metadata: p.metadata, captured_at: p.captured_at, claim: p.claim }
}
