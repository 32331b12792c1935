//! Markers in KV that a grant is gone: `reauth:{triplet}` in the source namespace, beside the token and
//! never in its place, so that the gateway serves the token until its own end and can send the user
//! to connect again. Wanted by the poller's finding, taken back by the next good read.

use serde_json::json;

use super::circuit::Allowance;
use super::{Engine, EngineResult};
use crate::domain::api::Api;
use crate::domain::budget::Lane;
use crate::domain::secret::Secret;
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::ports::{ApiErrorKind, KvPut, KvWrite, Namespace, Outside};
use crate::store::{ReauthMark, Sink};

/// Markers in one round.
const ROUND_MAX: u32 = 100;

/// How long a marker waits that could not be written.
const RETRY_MS: i64 = 30 * SECOND_MS;

impl<O: Outside> Engine<O> {
    /// Makes KV show the markers that are due. Returns when the next one is.
    pub(super) async fn carry_marks(&self, now: Timestamp) -> EngineResult<Option<Timestamp>> {
        let Some(due) = self.store.load_reauth_due().await? else { return Ok(None) };
        if due > now {
            return Ok(Some(due));
        }
        if let Allowance::NoneUntil(until) = self.circuit(Sink::KvSource, |circuit| circuit.allows(now)) {
            return Ok(Some(until));
        }
        let room = self.outside.allowance(Api::Cloudflare, Lane::Ordinary, now);
        if room.now == 0 {
            return Ok(Some(room.next_at));
        }
        let until = now.plus_ms(self.config.claim_ms);
        let marks = self.store.claim_reauth(now, ROUND_MAX.min(room.now), until).await?;
        let (put, delete): (Vec<ReauthMark>, Vec<ReauthMark>) = marks.into_iter().partition(|mark| mark.wanted);
        self.put_marks(put, now).await?;
        self.delete_marks(delete, now).await?;
        self.store.load_reauth_due().await.map_err(Into::into)
    }

    /// One bulk put.
    async fn put_marks(&self, marks: Vec<ReauthMark>, now: Timestamp) -> EngineResult<()> {
        if marks.is_empty() {
            return Ok(());
        }
        let puts: Vec<KvPut> = marks
            .iter()
            .map(|mark| KvPut { key: mark.triplet.reauth_key(), value: marker(mark), metadata: None })
            .collect();
        let answer = self.outside.cloudflare().bulk_put(Namespace::Source, &puts).await;
        self.observe(Api::Cloudflare, now, &answer).await?;
        match answer {
            Ok(unwritten) => {
                let (later, done): (Vec<_>, Vec<_>) =
                    marks.into_iter().partition(|mark| unwritten.contains(&mark.triplet.reauth_key()));
                self.store.settle_reauth(&done, now).await?;
                Ok(self.store.defer_reauth(&later, now.plus_ms(RETRY_MS)).await?)
            }
            Err(error) => self.marks_failed(&marks, &error.kind, now).await,
        }
    }

    /// One by one: there is no bulk delete that says which keys it deleted.
    async fn delete_marks(&self, marks: Vec<ReauthMark>, now: Timestamp) -> EngineResult<()> {
        for (n, mark) in marks.iter().enumerate() {
            let answer = self.outside.cloudflare().delete(Namespace::Source, &mark.triplet.reauth_key()).await;
            self.observe(Api::Cloudflare, now, &answer).await?;
            match answer {
                Ok(()) => self.store.settle_reauth(std::slice::from_ref(mark), now).await?,
                Err(error) => return self.marks_failed(&marks[n..], &error.kind, now).await,
            }
        }
        Ok(())
    }

    async fn marks_failed(&self, marks: &[ReauthMark], kind: &ApiErrorKind, now: Timestamp) -> EngineResult<()> {
        tracing::warn!(markers = marks.len(), "markers of dead grants are put off: {kind}");
        // Too soon after another write of this key says nothing about the sink.
        if !kind.is_limit() {
            self.sink_failed(Sink::KvSource, kind, now).await?;
        }
        let wait = RETRY_MS.max(kind.wait_ms().unwrap_or(0));
        Ok(self.store.defer_reauth(marks, now.plus_ms(wait)).await?)
    }
}

/// What stands under the key. No secret.
fn marker(mark: &ReauthMark) -> Secret {
    Secret::new(json!({"reauth": true, "since": mark.at.to_rfc3339(), "reason": mark.reason}).to_string())
}
