//! The duties that only look: probes, smoke tests, scans for foreign writes, verification of
//! both namespaces.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::evidence::SCAN_EVERY_MAX_MS;
use super::{Engine, EngineResult};
use crate::domain::api::Api;
use crate::domain::criteria::{EvidenceSource, LookOutcome, Note};
use crate::domain::custody::Stage;
use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};
use crate::domain::token::{KvEntry, KvMetadata, scope_set};
use crate::domain::triplet::{KV_PREFIX, Triplet};
use crate::domain::upstream::Upstream;
use crate::ports::{ApiError, ApiResult, GatewayRead, KvRead, Namespace, Outside, SourceRead, TargetRead};
use crate::store::{Sink, SinkState, TripletRow, Verification};

/// How soon a look that an API did not answer is tried again.
const RETRY_MS: i64 = MINUTE_MS;

/// How soon a look goes on that the request budget stopped: room for several requests, not for one.
const HELD_BACK_MS: i64 = 15 * SECOND_MS;

/// Keys in one bulk read and triplets in one smoke test.
const CHUNK: usize = 100;

/// Triplets that a run names which it did not compare.
const UNSETTLED_NAMED: usize = 1_000;

/// A comparison of both namespaces that is under way.
#[derive(Debug)]
pub(super) struct Comparing {
    began_at: Timestamp,
    /// Everything up to here was looked at.
    after: Option<Triplet>,
    findings: Vec<Note>,
    compared: u64,
    /// What had not settled when it was looked at.
    unsettled: BTreeSet<Triplet>,
    /// The second look: at these alone, which had not settled in the first.
    again: Option<BTreeSet<Triplet>>,
}

impl Comparing {
    fn from(began_at: Timestamp) -> Self {
        let (findings, unsettled) = (Vec::new(), BTreeSet::new());
        Self { began_at, after: None, findings, compared: 0, unsettled, again: None }
    }
}

/// When a look that failed is tried again: as soon as the budget has room, else after a while.
pub(super) fn retry_look_at(now: Timestamp, error: &ApiError) -> Timestamp {
    now.plus_ms(if error.is_held_back() { HELD_BACK_MS } else { RETRY_MS })
}

/// How a key in KV compares with what we delivered there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyState {
    Match,
    /// Younger than the propagation window, or on its way.
    Settling,
    Missing,
    /// Its metadata is not ours: somebody else wrote it last.
    Foreign,
    /// Ours, but not the version that was acknowledged.
    Changed,
}

/// Compares one key's metadata with what we know of it. Pure.
pub(super) fn judge_key(
    found: Option<&Option<KvMetadata>>,
    sink: &SinkState,
    now: Timestamp,
    settle_ms: i64,
) -> KeyState {
    let young = sink.delivered_at.is_none_or(|at| now.since(at) <= settle_ms);
    match found {
        None if young => KeyState::Settling,
        None => KeyState::Missing,
        // Before our first write is visible the entry is still the one of the old writer.
        Some(None) if young && sink.delivered <= 1 => KeyState::Settling,
        Some(None) => KeyState::Foreign,
        Some(Some(metadata)) => {
            if metadata.v == sink.delivered && Some(metadata.fp) == sink.delivered_fp {
                KeyState::Match
            } else if young || (metadata.v > sink.delivered && metadata.v <= sink.version) {
                // A put whose acknowledgement was lost is delivered again and then matches.
                KeyState::Settling
            } else {
                KeyState::Changed
            }
        }
    }
}

impl<O: Outside> Engine<O> {
    /// Calls each custodian that nothing else called lately, so that an outage has a beginning and an end.
    pub(super) async fn probe(&self, now: Timestamp) -> EngineResult<Timestamp> {
        let quiet = |api: Api| {
            let health = self.health(api);
            health.down_since.is_some()
                || health.last_ok.is_none_or(|ok| now.since(ok) >= self.config.policy.criteria.probe_every.0)
        };
        if quiet(Api::Nango) {
            let answer = self.outside.source().list_integrations().await;
            self.observe(Api::Nango, now, &answer).await?;
        }
        if quiet(Api::Composio) {
            let answer = self.outside.target().find_toolkit("gmail").await;
            self.observe(Api::Composio, now, &answer).await?;
        }
        if quiet(Api::Cloudflare) {
            let answer = self.outside.cloudflare().list_keys(Namespace::Target, "cutover-probe:", None).await;
            self.observe(Api::Cloudflare, now, &answer).await?;
        }
        self.keep_soak_clock(now).await?;
        let down = Api::ALL.iter().any(|&api| self.health(api).down_since.is_some());
        Ok(now.plus_ms(if down { RETRY_MS } else { self.config.policy.criteria.probe_every.0 }))
    }

    /// Starts the soak clock at the first mirrored refresh and takes out the times in which
    /// nothing of ours ran.
    async fn keep_soak_clock(&self, now: Timestamp) -> EngineResult<()> {
        let (alive_at, started) = self.known(|known| (known.alive_at.replace(now), known.soak_started));
        let alive_at = match alive_at {
            Some(at) => Some(at),
            // The first look after a start: how long was nobody here?
            None => self.store.load_meta("alive_at").await?.and_then(|t| t.parse().ok()).map(Timestamp::from_millis),
        };
        let silent = alive_at.map_or(0, |at| now.since(at));
        if silent > self.config.policy.criteria.evidence_gap_max.0 {
            let from = now.plus_ms(-silent);
            self.store.record_gap(EvidenceSource::Duties, from, now, "nothing of ours ran").await?;
        }
        self.store.save_meta("alive_at", &now.millis().to_string()).await?;
        if !started {
            let mut running = self.store.load_meta("soak_from").await?.is_some();
            if !running {
                let refreshed = self.store.load_counters().await?.get("rotations_arrived").copied().unwrap_or(0) > 0;
                let never_expire = self.store.load_connections().await?.iter().all(|c| c.expires_at.is_none());
                running = refreshed || never_expire;
                if running {
                    self.store.save_meta("soak_from", &now.millis().to_string()).await?;
                }
            }
            self.known(|known| known.soak_started = running);
        }
        Ok(())
    }

    /// Asks the gateway to serve every moving triplet once, the way its hot path would.
    pub(super) async fn smoke(&self, now: Timestamp) -> EngineResult<Timestamp> {
        let rows: Vec<TripletRow> = self.store.load_triplets().await?;
        let moving: BTreeMap<Triplet, &TripletRow> = rows
            .iter()
            .filter(|t| t.moves() && t.custody.stage >= Stage::Mirroring)
            .map(|t| (t.triplet.clone(), t))
            .collect();
        // A round that had to stop goes on where it was: no budget has room for all at once for ever.
        let after = self.known(|known| known.smoked.take());
        let names: Vec<Triplet> =
            moving.keys().filter(|t| after.as_ref().is_none_or(|after| *t > after)).cloned().collect();
        let mut done = after;
        let (mut tested, mut found) = (0, false);
        for chunk in names.chunks(CHUNK) {
            let answer = self.outside.gateway().smoke(chunk).await;
            self.observe(Api::Gateway, now, &answer).await?;
            let results = match answer {
                Ok(results) => results,
                Err(error) => {
                    self.known(|known| known.smoked = done);
                    self.smoked(tested, found, Some(&error), now).await?;
                    return Ok(retry_look_at(now, &error));
                }
            };
            done = chunk.last().cloned();
            tested += results.len() as u64;
            self.guard_reads(&results, &moving, now).await?;
            for result in results {
                if result.upstream() != Upstream::Refused {
                    continue;
                }
                let detail = if result.stale {
                    "the gateway would serve an expired token".to_owned()
                } else {
                    format!("the upstream answered {} to the gateway", result.upstream_status)
                };
                let refused = result.upstream_status == 401;
                if result.stale || result.read_authority == Namespace::Target {
                    let note = Note { at: now, subject: result.triplet.to_string(), detail };
                    self.store.add_note("smoke-stale", &note).await?;
                    found = true;
                } else if refused && let Some(row) = moving.get(&result.triplet) {
                    // Not late but refused: let the poller find out whether the grant is gone.
                    self.store.schedule_poll(row.connection, Some(now)).await?;
                }
            }
        }
        if moving.is_empty() {
            self.looked(EvidenceSource::Smoke, LookOutcome::Idle, 0, now).await?;
        }
        self.smoked(tested, found, None, now).await?;
        Ok(now.plus_ms(self.config.policy.criteria.smoke_every.0))
    }

    /// Lists both namespaces with metadata and looks for writes that are not ours.
    pub(super) async fn scan(&self, now: Timestamp) -> EngineResult<Timestamp> {
        let (mut scanned, mut found) = (0, false);
        for (sink, namespace) in [(Sink::KvSource, Namespace::Source), (Sink::KvTarget, Namespace::Target)] {
            let listed = self.list_tokens(namespace).await;
            self.observe(Api::Cloudflare, now, &listed).await?;
            let (listed, pages) = match listed {
                Ok(listed) => listed,
                Err(error) => {
                    self.unanswered(EvidenceSource::Scan, &error, now).await?;
                    return Ok(retry_look_at(now, &error));
                }
            };
            self.store.add_counts(&[("kv_lists", pages)]).await?;
            let known = self.store.load_foreign(sink).await?;
            for state in self.store.load_sink(sink).await? {
                if state.delivered == 0 {
                    continue;
                }
                let judged = judge_key(listed.get(&state.triplet.kv_key()), &state, now, self.config.settle_ms);
                scanned += 1;
                match (judged == KeyState::Foreign, known.contains(&state.triplet)) {
                    (true, noted) => {
                        found = true;
                        if !noted {
                            let detail = format!("{} was last written by nobody that we know", sink.name());
                            self.note_foreign(&state.triplet, sink, detail, now).await?;
                        }
                    }
                    (false, true) => self.store.forget_foreign(sink, &state.triplet).await?,
                    (false, false) => {}
                }
            }
        }
        let outcome = match (scanned, found) {
            (0, _) => LookOutcome::Idle,
            (_, true) => LookOutcome::Finding,
            (_, false) => LookOutcome::Clean,
        };
        self.looked(EvidenceSource::Scan, outcome, scanned, now).await?;
        Ok(now.plus_ms(self.scan_every_ms()))
    }

    /// A foreign write stands until the next rotation overwrites it, and an alarm writes about 4
    /// minutes after Nango: a third of the shortest token life comes round at least once in between.
    fn scan_every_ms(&self) -> i64 {
        let shortest = self.known(|known| known.shortest_life_ms).unwrap_or(30 * MINUTE_MS);
        (shortest / 3).clamp(5 * MINUTE_MS, SCAN_EVERY_MAX_MS)
    }

    /// Notes a foreign write once, from when it is seen until a scan finds the entry ours again.
    pub(super) async fn note_foreign(
        &self,
        triplet: &Triplet,
        sink: Sink,
        detail: String,
        now: Timestamp,
    ) -> EngineResult<()> {
        let note = Note { at: now, subject: triplet.to_string(), detail };
        if self.store.note_foreign(sink, triplet, &note).await? {
            tracing::error!(triplet = %triplet, "foreign write: {}", note.detail);
        }
        Ok(())
    }

    /// Compares both namespaces entry by entry: fingerprints, expiry, scopes. Counts as clean only
    /// when nothing differed, and enough was compared: what settles is looked at once more when it has.
    pub(super) async fn verify(&self, now: Timestamp) -> EngineResult<Timestamp> {
        // A run that had to stop goes on where it was.
        let Comparing { began_at, after, mut findings, mut compared, mut unsettled, again } =
            self.known(|known| known.comparing.take()).unwrap_or_else(|| Comparing::from(now));
        let mut all: Vec<SinkState> =
            self.store.load_sink(Sink::KvSource).await?.into_iter().filter(|s| s.delivered > 0).collect();
        // A run that stops goes on behind its last triplet; the database has an order of its own.
        all.sort_by(|a, b| a.triplet.cmp(&b.triplet));
        let keys_in_all = all.len() as u64;
        let wanted = |s: &SinkState| {
            after.as_ref().is_none_or(|after| s.triplet > *after)
                && again.as_ref().is_none_or(|again| again.contains(&s.triplet))
        };
        let expected: Vec<SinkState> = all.into_iter().filter(wanted).collect();
        let mut done = after.clone();
        let targets: BTreeMap<Triplet, SinkState> =
            self.store.load_sink(Sink::KvTarget).await?.into_iter().map(|s| (s.triplet.clone(), s)).collect();
        for chunk in expected.chunks(CHUNK) {
            let keys: Vec<String> = chunk.iter().map(|s| s.triplet.kv_key()).collect();
            let left = self.outside.cloudflare().bulk_get(Namespace::Source, &keys).await;
            self.observe(Api::Cloudflare, now, &left).await?;
            let right = self.outside.cloudflare().bulk_get(Namespace::Target, &keys).await;
            self.observe(Api::Cloudflare, now, &right).await?;
            let (left, right) = match (left, right) {
                (Ok(left), Ok(right)) => (left, right),
                (Err(error), _) | (_, Err(error)) => {
                    let after = done;
                    let stopped = Comparing { began_at, after, findings, compared, unsettled, again };
                    self.known(|known| known.comparing = Some(stopped));
                    self.unanswered(EvidenceSource::Verify, &error, now).await?;
                    return Ok(retry_look_at(now, &error));
                }
            };
            done = chunk.last().map(|s| s.triplet.clone());
            self.store.add_counts(&[("kv_reads", 2 * keys.len() as i64)]).await?;
            for (state, key) in chunk.iter().zip(&keys) {
                // A delivery on its way may have arrived without its acknowledgement: it is sent again.
                let settling = |s: &SinkState| {
                    s.delivered < s.version || s.delivered_at.is_none_or(|at| now.since(at) <= self.config.settle_ms)
                };
                if settling(state) || targets.get(&state.triplet).is_none_or(settling) {
                    unsettled.insert(state.triplet.clone());
                    continue;
                }
                compared += 1;
                let difference = match (left.get(key), right.get(key)) {
                    (Some(Some(Ok(l))), Some(Some(Ok(r)))) => self.difference(l, r, state),
                    (Some(Some(Err(e))), _) => Some(format!("the source entry is unreadable: {e}")),
                    (_, Some(Some(Err(e)))) => Some(format!("the target entry is unreadable: {e}")),
                    (Some(Some(_)), _) => Some("missing in the target namespace".to_owned()),
                    (_, Some(Some(_))) => Some("missing in the source namespace".to_owned()),
                    _ => Some("missing in both namespaces".to_owned()),
                };
                if let Some(detail) = difference {
                    findings.push(Note { at: now, subject: state.triplet.to_string(), detail });
                }
            }
        }
        let criteria = &self.config.policy.criteria;
        if again.is_none() && !unsettled.is_empty() && !criteria.compares_enough(compared, keys_in_all) {
            let (again, unsettled) = (Some(unsettled), BTreeSet::new());
            let half = Comparing { began_at, after: None, findings, compared, unsettled, again };
            self.known(|known| known.comparing = Some(half));
            return Ok(now.plus_ms(self.config.settle_ms + SECOND_MS));
        }
        if keys_in_all == 0 {
            self.looked(EvidenceSource::Verify, LookOutcome::Idle, 0, now).await?;
        } else {
            let whole = Comparing { began_at, after: None, findings, compared, unsettled, again: None };
            self.record_comparison(whole, keys_in_all, now).await?;
        }
        Ok(now.plus_ms(criteria.verify_every.0))
    }

    async fn record_comparison(&self, comparing: Comparing, keys: u64, now: Timestamp) -> EngineResult<()> {
        let Comparing { began_at, findings, compared, unsettled, .. } = comparing;
        let run = Verification {
            run: format!("duty-{}", now.millis()),
            began_at,
            at: now,
            left: "kv:source".to_owned(),
            right: "kv:target".to_owned(),
            level: "full".to_owned(),
            keys,
            compared,
            differing: findings.len() as u64,
            unsure: keys.saturating_sub(compared),
            failed: 0,
            counts: json!({"unsettled": unsettled.iter().take(UNSETTLED_NAMED).collect::<Vec<_>>()}).to_string(),
            rules: None,
            findings,
        };
        self.store.record_verification(&run, &self.config.policy.criteria).await?;
        Ok(())
    }

    /// Records a comparison that waits for its second look as what it is so far: an engine that ends
    /// does not come back to it.
    pub(super) async fn end_comparison(&self, now: Timestamp) -> EngineResult<()> {
        let Some(half) = self.known(|known| known.comparing.take()) else { return Ok(()) };
        let Some(unsettled) = half.again else { return Ok(()) };
        let keys = half.compared + unsettled.len() as u64;
        self.record_comparison(Comparing { unsettled, again: None, ..half }, keys, now).await
    }

    /// What differs between the two entries, or between them and what was delivered; no secrets.
    fn difference(&self, left: &KvEntry, right: &KvEntry, delivered: &SinkState) -> Option<String> {
        let fingerprints = self.store.vault().fingerprints();
        let (l, r) = (fingerprints.fingerprint(&left.access_token), fingerprints.fingerprint(&right.access_token));
        if l != r {
            return Some(format!("the token differs: source {l:?}, target {r:?}"));
        }
        if delivered.delivered_fp.is_some_and(|fp| fp != l) {
            return Some(format!("both hold {l:?}, which is not the version that was delivered"));
        }
        if left.expires_at != right.expires_at {
            return Some("the expiry differs".to_owned());
        }
        let scopes = |e: &KvEntry| scope_set(e.scope.as_deref().unwrap_or_default());
        (scopes(left) != scopes(right)).then(|| "the scopes differ".to_owned())
    }

    /// Notes tokens that ended in KV before a newer one was there.
    pub(super) async fn note_expired(&self, now: Timestamp) -> EngineResult<()> {
        for (triplet, ended_at) in self.store.take_expired(Sink::KvSource, now).await? {
            let detail = format!("the token in KV ended at {} and nothing newer was there", ended_at.to_minute());
            self.store.add_note("missed-refresh", &Note { at: ended_at, subject: triplet.to_string(), detail }).await?;
        }
        Ok(())
    }

    /// All token keys of a namespace with their metadata, and the number of pages that took.
    pub(super) async fn list_tokens(
        &self,
        namespace: Namespace,
    ) -> ApiResult<(BTreeMap<String, Option<KvMetadata>>, i64)> {
        let (mut all, mut cursor, mut pages) = (BTreeMap::new(), None, 0);
        loop {
            let page = self.outside.cloudflare().list_keys(namespace, KV_PREFIX, cursor.as_deref()).await?;
            pages += 1;
            all.extend(page.keys.into_iter().map(|k| (k.name, k.metadata)));
            cursor = page.cursor;
            if cursor.is_none() {
                return Ok((all, pages));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::secret::{FingerprintKey, Secret};
    use crate::domain::token::Writer;

    fn fp(text: &str) -> crate::domain::secret::Fingerprint {
        FingerprintKey::new([7; 32]).fingerprint(&Secret::new(text))
    }

    fn meta(v: u64, token: &str) -> Option<KvMetadata> {
        Some(KvMetadata { v, fp: fp(token), ep: 1, src: Writer::Nango, exp: None })
    }

    #[test]
    fn lag_is_not_divergence_and_a_foreign_write_is() {
        let sink = SinkState {
            triplet: Triplet::parse("a:b:c").unwrap(),
            captured_at: Timestamp::from_secs(0),
            version: 5,
            delivered: 5,
            delivered_at: Some(Timestamp::from_secs(1_000)),
            delivered_exp: None,
            delivered_fp: Some(fp("five")),
            dead: None,
        };
        let judge = |found: Option<Option<KvMetadata>>, at_s: i64| {
            judge_key(found.as_ref(), &sink, Timestamp::from_secs(at_s), 150_000)
        };
        assert_eq!(judge(Some(meta(5, "five")), 1_001), KeyState::Match);
        assert_eq!(judge(Some(meta(4, "four")), 1_100), KeyState::Settling);
        assert_eq!(judge(Some(meta(4, "four")), 1_200), KeyState::Changed);
        assert_eq!(judge(Some(meta(5, "fivf")), 1_200), KeyState::Changed);
        assert_eq!(judge(Some(None), 1_100), KeyState::Foreign);
        assert_eq!(judge(None, 1_100), KeyState::Settling);
        assert_eq!(judge(None, 1_200), KeyState::Missing);
    }
}
