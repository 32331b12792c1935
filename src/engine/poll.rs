//! The poller: reads each Nango connection inside the last 15 minutes of its token's life, which
//! makes Nango refresh it, and journals what comes back. Webhooks are hints; this is the truth.
//!
//! A round reads as many as the request budget has room for, the tokens that end first before the
//! others. What has no room stays due. Memory does not grow with the number of connections.

use serde_json::Value;

use super::failure::{Circumstances, DOUBT_AFTER_MS, Doubt, Liveness, judge_grant, judge_read, judge_token};
use super::together::together;
use super::{Engine, EngineResult, spread};
use crate::catalogue::Whoami;
use crate::catalogue::classify::Class;
use crate::domain::api::Api;
use crate::domain::budget::Lane;
use crate::domain::criteria::Note;
use crate::domain::newest::End;
use crate::domain::schedule::{REFRESH_MARGIN_MS, poll_at, poll_retry_after_ms};
use crate::domain::secret::Secret;
use crate::domain::time::{MINUTE_MS, Timestamp, format_duration_ms};
use crate::domain::token::{KvEntry, Writer};
use crate::ports::{
    ApiError, ApiErrorKind, ApiResult, Outside, ProviderCall, ProviderRead, SourceCredential, SourceCustody, SourceRead,
};
use crate::store::{Capture, ConnectionRow, NewVersion, PollFailure, Siblings, Sink, TripletRow};

/// Reads in one round: enough for one commit to carry many, few enough that the first token of a
/// round does not wait for the last read.
const ROUND_MAX: u32 = 64;

/// A token with less than this left may be refreshed out of the part of the budget that is kept
/// for live traffic. Polls are due 14 minutes before the end, so the ordinary share has two
/// minutes for itself; twelve at the full rate carry 10,000 tokens that end at one instant on a
/// limit of 1,000 a minute.
const URGENT_LIFE_MS: i64 = 12 * MINUTE_MS;

/// Failed reads in a row after which the old token itself is asked whether the grant lives.
const FAILURES_BEFORE_WHOAMI: u32 = 3;

/// How far the clocks of Nango and ours may be apart when a token has just ended.
const CLOCKS_APART_MS: i64 = MINUTE_MS;

/// A connection whose grant is gone is still read this often: somebody may have connected again.
const DEAD_POLL_MS: i64 = 15 * MINUTE_MS;

/// For how long no read may succeed before people are told. Reads are due 14 minutes before a token
/// ends, so nine are left to them.
const STOPPED_MS: i64 = 5 * MINUTE_MS;

/// Remembers since when no read succeeds. It stands with the APIs that are out of reach.
const STOPPED_KEY: &str = "down:nango.reads";

/// What came of a round of reads.
#[derive(Default)]
struct Round {
    captures: Vec<Capture>,
    /// Nango served a read, whatever it said of the connection.
    served: bool,
    /// Nango serves no reads before.
    shut_until: Option<Timestamp>,
    /// Why, in the words of Nango or of who did not reach it.
    shut_why: Option<String>,
    /// What was claimed and not read, because Nango is shut.
    unread: Vec<ConnectionRow>,
}

impl<O: Outside> Engine<O> {
    /// Reads the connections that are due and have room in the budget. The others stay due.
    pub(super) async fn poll(&self, now: Timestamp) -> EngineResult<()> {
        loop {
            let due = self.claim_with_room(now).await?;
            crate::failpoint::hit("poll-claimed");
            if due.is_empty() {
                return Ok(());
            }
            let mut round = Round::default();
            for some in due.chunks(self.config.reads_at_once.max(1)) {
                match round.shut_until {
                    None => self.read_some(some, &mut round, now).await?,
                    Some(_) => round.unread.extend_from_slice(some),
                }
            }
            crate::failpoint::hit("poll-read");
            self.store.append_captures(&round.captures, &Sink::ALL, now).await?;
            match (round.served, &round.shut_why) {
                (true, _) => self.reads_served(now).await?,
                (false, Some(why)) => self.reads_refused(why, round.shut_until.unwrap_or(now), now).await?,
                (false, None) => {}
            }
            if let Some(until) = round.shut_until {
                // The rest would meet the same wall, and nothing is held against them.
                self.store.put_off_polls(&round.unread, now, until).await?;
                return Ok(());
            }
        }
    }

    /// Takes as many due connections as the budget has room for: out of the ordinary share any,
    /// out of the reserve those whose token ends soon.
    async fn claim_with_room(&self, now: Timestamp) -> EngineResult<Vec<ConnectionRow>> {
        let until = now.plus_ms(self.config.claim_ms);
        let room = |lane| self.outside.allowance(Api::Nango, lane, now).now.min(ROUND_MAX);
        let ordinary = room(Lane::Ordinary);
        if ordinary > 0 {
            let due = self.store.claim_polls(now, ordinary, until).await?;
            if !due.is_empty() {
                return Ok(due);
            }
        }
        let urgent = room(Lane::Urgent);
        if urgent == 0 || ordinary > 0 {
            return Ok(Vec::new());
        }
        Ok(self.store.claim_ending_polls(now, urgent, until, now.plus_ms(URGENT_LIFE_MS)).await?)
    }

    /// Reads these connections at the same time.
    async fn read_some(&self, some: &[ConnectionRow], round: &mut Round, now: Timestamp) -> EngineResult<()> {
        let ids: Vec<i64> = some.iter().map(|c| c.id).collect();
        let triplets = self.store.load_triplets_of(&ids).await?;
        let source = self.outside.source();
        let reads = some.iter().map(|c| source.fetch_credential(&c.integration_key, &c.connection_id));
        let reads = together(reads).await;
        let away = self.is_away(&reads, now).await?;
        for (connection, read) in some.iter().zip(reads) {
            let fed: Vec<&TripletRow> =
                triplets.iter().filter(|t| t.connection == connection.id && t.moves()).collect();
            let error = match read {
                Ok(credential) => {
                    round.served = true;
                    round.captures.extend(self.capture(connection, &fed, credential, now).await?);
                    continue;
                }
                Err(error) => error,
            };
            match self.read_failed(connection, &fed, &error, away, now).await? {
                None => round.served |= !error.is_outage(),
                Some(until) => {
                    // Those under way beside it meet the same wall; once is enough to know.
                    if round.shut_why.is_none() && !error.is_held_back() {
                        tracing::warn!("no connection can be read: {error}");
                        round.shut_why = Some(error.to_string());
                    }
                    round.shut_until = round.shut_until.max(Some(until));
                    round.unread.push(connection.clone());
                }
            }
        }
        Ok(())
    }

    /// Whether Nango is out of reach. Reads without an answer may be the connections' own trouble: when
    /// no other one was answered beside them, something else is asked.
    async fn is_away(&self, reads: &[ApiResult<SourceCredential>], now: Timestamp) -> EngineResult<bool> {
        let silent = |error: &ApiError| error.is_outage() || error.is_held_back();
        if let Some(answered) = reads.iter().find(|read| !read.as_ref().is_err_and(silent)) {
            self.observe(Api::Nango, now, answered).await?;
            return Ok(false);
        }
        if !reads.iter().any(|read| read.as_ref().is_err_and(ApiError::is_outage)) {
            return Ok(false);
        }
        let asked = self.outside.source().list_integrations().await;
        self.observe(Api::Nango, now, &asked).await?;
        Ok(asked.is_err_and(|error| silent(&error)))
    }

    /// Remembers since when no read succeeds, and tells people when that lasts.
    async fn reads_refused(&self, why: &str, until: Timestamp, now: Timestamp) -> EngineResult<()> {
        self.store.create_meta(STOPPED_KEY, &now.millis().to_string()).await?;
        let since = self.store.load_meta(STOPPED_KEY).await?.and_then(|text| text.parse().ok());
        let since = since.map_or(now, Timestamp::from_millis);
        if until.since(since) < STOPPED_MS {
            return Ok(());
        }
        let detail = format!("no token could be read since {} UTC: {why}", since.to_minute());
        let note = Note { at: now, subject: Api::Nango.name().to_owned(), detail };
        if self.store.note_change("reads", "served", "stopped", "reads-stopped", &note).await? {
            tracing::error!("{}", note.detail);
        }
        Ok(())
    }

    /// Forgets that no read succeeded, and tells those who were told.
    async fn reads_served(&self, now: Timestamp) -> EngineResult<()> {
        let Some(since) = self.store.load_meta(STOPPED_KEY).await? else { return Ok(()) };
        let since = since.parse().map_or(now, Timestamp::from_millis);
        let detail = format!("tokens are read again, after {}", format_duration_ms(now.since(since)));
        let note = Note { at: now, subject: Api::Nango.name().to_owned(), detail };
        self.store.note_change("reads", "stopped", "served", "reads-served", &note).await?;
        Ok(self.store.delete_meta(STOPPED_KEY).await?)
    }

    /// Turns a credential into what the journal keeps: a version per triplet when the token is new.
    pub(super) async fn capture(
        &self,
        connection: &ConnectionRow,
        fed: &[&TripletRow],
        credential: SourceCredential,
        now: Timestamp,
    ) -> EngineResult<Option<Capture>> {
        let fingerprint = self.store.vault().fingerprints().fingerprint(&credential.access_token);
        // A refresh may give the same token a longer life.
        let is_new = connection.fingerprint != Some(fingerprint) || connection.expires_at != credential.expires_at;
        if connection.config != credential.connection_config {
            self.store.save_connection_config(connection.id, &credential.connection_config).await?;
        }
        // A read inside the margin that gives the old token back did not refresh: Nango's clock is
        // behind, or it has no refresh token and answers 200 with the stale token for ever.
        let stuck = !is_new && credential.expires_at.is_some_and(|e| e.since(now) < REFRESH_MARGIN_MS);
        if stuck {
            let ended = credential.expires_at.is_some_and(|e| now.since(e) > CLOCKS_APART_MS);
            if ended && !self.has_rival(connection, fed, now).await? {
                let why = "Nango has no refresh token for it, and its token ended";
                self.bury_grant(connection, fed, why, now).await?;
            } else {
                let wait_ms = poll_retry_after_ms(connection.failures + 1, 0);
                self.store.record_poll_failure(failed(connection, now, wait_ms)).await?;
            }
            return Ok(None);
        }
        // A token without an expiry can die in silence: ask the provider.
        let unexpiring = !is_new && credential.expires_at.is_none();
        if unexpiring && self.liveness(connection, &credential.access_token, now).await? == Liveness::Refused {
            let why = "the provider refuses its token, which has no end and so is never refreshed";
            self.bury_grant(connection, fed, why, now).await?;
            return Ok(None);
        }
        // The first capture finds a token of unknown age.
        let fresh = is_new && connection.rotation > 0;
        if let Some(life) = credential.expires_at.filter(|_| fresh).map(|e| e.since(now)) {
            self.known(|known| known.shortest_life_ms = Some(known.shortest_life_ms.map_or(life, |ms| ms.min(life))));
        }
        let draw = spread(&["poll", &connection.connection_id, &connection.integration_key], connection.rotation);
        let scheduled = if is_new { connection.expires_at.map(|old_end| now <= old_end) } else { None };
        let versions = if is_new {
            fed.iter()
                .map(|t| NewVersion {
                    triplet: t.triplet.clone(),
                    epoch: t.custody.epoch,
                    writer: Writer::Nango,
                    entry: entry_of(&credential),
                })
                .collect()
        } else {
            Vec::new()
        };
        Ok(Some(Capture {
            connection: connection.id,
            claim: connection.claim,
            fingerprint,
            expires_at: credential.expires_at,
            poll_at: poll_at(credential.expires_at, now, draw),
            versions,
            scheduled,
        }))
    }

    /// Records a failed read. Returns until when Nango is shut, if the failure speaks of all reads.
    async fn read_failed(
        &self,
        connection: &ConnectionRow,
        fed: &[&TripletRow],
        error: &ApiError,
        away: bool,
        now: Timestamp,
    ) -> EngineResult<Option<Timestamp>> {
        let draw = spread(&["retry", &connection.connection_id], u64::from(connection.failures));
        let failures = connection.failures + 1;
        let failing_ms = connection.failing_since.map_or(0, |since| now.since(since));
        let failure = judge_read(error, Circumstances { failures, failing_ms, away }, draw);
        let retry_at = now.plus_ms(failure.wait_ms);
        if failure.of_all {
            return Ok(Some(retry_at));
        }
        tracing::warn!(connection.id = %connection.connection_id, integration = %connection.integration_key,
            failures, class = failure.class.name(), "could not read a connection: {error}");
        let counts = failure.class != Class::Transient;
        let wait_ms = if connection.dead_at.is_some() { DEAD_POLL_MS } else { failure.wait_ms };
        let record = PollFailure { counts, ..failed(connection, now, wait_ms) };
        self.store.record_poll_failure(record).await?;
        // What only a person can mend waits too long for a third failure.
        let doubtful = failures >= FAILURES_BEFORE_WHOAMI || failure.class == Class::Config;
        if counts && doubtful && connection.dead_at.is_none() {
            let tried = matches!(error.kind, ApiErrorKind::RefreshFailed { .. });
            self.doubt_grant(connection, fed, tried, now).await?;
        }
        Ok(None)
    }

    /// Finds out, as far as anybody can, whether a grant that Nango fails to use is gone.
    async fn doubt_grant(
        &self,
        connection: &ConnectionRow,
        fed: &[&TripletRow],
        tried: bool,
        now: Timestamp,
    ) -> EngineResult<()> {
        let ended_ms = connection.expires_at.map(|e| now.since(e)).filter(|ms| *ms >= 0);
        if ended_ms.is_some_and(|ms| ms <= DOUBT_AFTER_MS) {
            return Ok(());
        }
        let failing_since = connection.failing_since.unwrap_or(now);
        let doubt = Doubt {
            tried,
            ended_ms,
            token: self.liveness_of_newest(connection, fed, now).await?,
            rival: self.has_rival(connection, fed, now).await?,
            siblings: match ended_ms {
                Some(_) => {
                    let since = failing_since.plus_ms(DOUBT_AFTER_MS);
                    self.store.load_siblings(&connection.integration_key, connection.id, since).await?
                }
                None => Siblings::Silent,
            },
        };
        let class = judge_grant(&doubt);
        match (class, ended_ms) {
            (Class::Permanent, None) => {
                let why = "Nango cannot refresh it and the provider refuses its unexpired token";
                self.bury_grant(connection, fed, why, now).await
            }
            (Class::Permanent, Some(_)) => {
                let why = "Nango cannot refresh it past its expiry, and refreshes others of the same client";
                self.bury_grant(connection, fed, why, now).await
            }
            (Class::Transient, _) | (_, None) => Ok(()),
            (class, Some(_)) => self.note_doubt(connection, class, failing_since, now).await,
        }
    }

    /// Notes once per row of failures that nobody can tell from here whether a grant is gone.
    async fn note_doubt(
        &self,
        connection: &ConnectionRow,
        class: Class,
        failing_since: Timestamp,
        now: Timestamp,
    ) -> EngineResult<()> {
        let (key, since) = (format!("doubt:{}", connection.id), failing_since.millis().to_string());
        if self.store.load_meta(&key).await?.as_ref() == Some(&since) {
            return Ok(());
        }
        let what = match class {
            Class::Config => "every connection of its OAuth client fails, or Nango has it no more",
            _ => "it may be the grant or the OAuth client",
        };
        let detail = format!("cannot be refreshed since {}: {what}", failing_since.to_minute());
        tracing::error!(connection.id = %connection.connection_id, class = class.name(), "{detail}");
        let note = Note { at: now, subject: connection.connection_id.clone(), detail };
        self.store.add_note("grant-doubt", &note).await?;
        Ok(self.store.save_meta(&key, &since).await?)
    }

    /// Whether somebody beside Nango refreshes this grant: a token that we did not write is in KV, or
    /// one that lives longer than Nango's was reported.
    async fn has_rival(&self, connection: &ConnectionRow, fed: &[&TripletRow], now: Timestamp) -> EngineResult<bool> {
        let outlives = |t: &&TripletRow| {
            let end = End::from(t.expires_at);
            end > connection.expires_at.into() && end > End::At(now)
        };
        let triplets: Vec<_> = fed.iter().map(|t| &t.triplet).collect();
        Ok(fed.iter().any(outlives) || self.store.is_foreign(Sink::KvSource, &triplets).await?)
    }

    /// Marks a grant as gone: evidence for `invalid-grant` and a marker for the gateway, once; and reads
    /// only once in a while.
    async fn bury_grant(
        &self,
        connection: &ConnectionRow,
        fed: &[&TripletRow],
        why: &str,
        now: Timestamp,
    ) -> EngineResult<()> {
        let failure = failed(connection, now, DEAD_POLL_MS);
        if connection.dead_at.is_some() {
            return Ok(self.store.record_poll_failure(failure).await?);
        }
        tracing::error!(connection.id = %connection.connection_id, "the grant is gone: {why}");
        let triplets: Vec<_> = fed.iter().map(|t| &t.triplet).collect();
        self.store.bury_grant(PollFailure { dead: true, counts: false, ..failure }, &triplets, why).await?;
        Ok(())
    }

    /// Asks the provider, with the newest token we hold, whether it still takes it.
    async fn liveness_of_newest(
        &self,
        connection: &ConnectionRow,
        fed: &[&TripletRow],
        now: Timestamp,
    ) -> EngineResult<Liveness> {
        let Some(first) = fed.first() else { return Ok(Liveness::Unknown) };
        match self.store.load_head(&first.triplet).await? {
            Some(entry) => self.liveness(connection, &entry.access_token, now).await,
            None => Ok(Liveness::Unknown),
        }
    }

    /// Asks the provider whether it still takes a token.
    async fn liveness(&self, connection: &ConnectionRow, token: &Secret, now: Timestamp) -> EngineResult<Liveness> {
        let Some(facts) = self.catalogue.integration(&connection.integration_key) else {
            return Ok(Liveness::Unknown);
        };
        let Some(call) = whoami_call(&facts.whoami, &connection.config) else { return Ok(Liveness::Unknown) };
        let answer = self.outside.provider().ask(token, &call).await;
        self.observe(Api::Provider, now, &answer).await?;
        Ok(answer.map_or(Liveness::Silent, |answer| judge_token(facts, &answer)))
    }

    /// The provider's whoami with a token of ours. `Err(None)`: the catalogue has no usable URL.
    pub(super) async fn whoami(
        &self,
        connection: &ConnectionRow,
        token: &Secret,
        now: Timestamp,
    ) -> EngineResult<Result<Value, Option<ApiErrorKind>>> {
        let facts = self.catalogue.integration(&connection.integration_key);
        let Some(call) = facts.and_then(|facts| whoami_call(&facts.whoami, &connection.config)) else {
            return Ok(Err(None));
        };
        let answer = self.outside.provider().whoami(token, &call).await;
        self.observe(Api::Provider, now, &answer).await?;
        Ok(answer.map_err(|e| Some(e.kind)))
    }
}

/// A failed read that counts against the connection.
fn failed(connection: &ConnectionRow, now: Timestamp, wait_ms: i64) -> PollFailure {
    PollFailure {
        connection: connection.id,
        claim: connection.claim,
        at: now,
        retry_at: Some(now.plus_ms(wait_ms)),
        dead: false,
        counts: true,
    }
}

/// What KV keeps of a credential.
fn entry_of(credential: &SourceCredential) -> KvEntry {
    KvEntry {
        access_token: credential.access_token.clone(),
        expires_at: credential.expires_at,
        token_type: credential.token_type.clone(),
        scope: credential.scope.clone(),
        other: credential.connection_config.clone(),
    }
}

/// The whoami call of the catalogue with its placeholders filled; `None` when a value is missing
/// or the call must be signed with keys that are not ours.
pub(crate) fn whoami_call(whoami: &Whoami, config: &serde_json::Map<String, Value>) -> Option<ProviderCall> {
    if whoami.signed {
        return None;
    }
    Some(ProviderCall {
        method: whoami.method.clone(),
        url: fill(&whoami.url, config)?,
        headers: whoami
            .headers
            .iter()
            .map(|(name, value)| Some((name.clone(), fill(value, config)?)))
            .collect::<Option<_>>()?,
        body: match &whoami.body {
            Some(text) => Some(serde_json::from_str(text).ok()?),
            None => None,
        },
    })
}

/// Fills `{placeholders}` of a catalogue text from connection values; `None` when one is missing.
fn fill(template: &str, config: &serde_json::Map<String, Value>) -> Option<String> {
    let mut url = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}')?;
        url.push_str(before);
        url.push_str(config.get(name)?.as_str()?.trim_end_matches('/'));
        rest = after;
    }
    url.push_str(rest);
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_filled_or_not_used() {
        let config = serde_json::json!({"instance_url": "https://x.example/"}).as_object().cloned().unwrap();
        assert_eq!(fill("{instance_url}/userinfo", &config).as_deref(), Some("https://x.example/userinfo"));
        assert_eq!(fill("https://a/b", &config).as_deref(), Some("https://a/b"));
        assert_eq!(fill("{region}/x", &config), None);
        assert_eq!(fill("{instance_url/x", &config), None);
    }
}
