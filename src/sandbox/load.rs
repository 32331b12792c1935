//! Live traffic: concurrent reads through the gateway's hot path, each counted as good or failed.
//!
//! It is a client like any other, so it drives an emulated gateway, one on the Workers runtime
//! and a team's own alike.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::domain::triplet::Triplet;

/// Failures that are told in words; all are counted.
const FAILURES_MAX: usize = 20;

/// A read that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Shorter than any server keeps an idle connection.
const IDLE: Duration = Duration::from_secs(2);

/// What the readers saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReadCounts {
    pub ok: u64,
    /// Not answered, answered with anything but 2xx (Slack: `ok: false`), or served with a token
    /// past its expiry.
    pub failed: u64,
    /// Good reads that were served by the source's credential.
    pub from_source: u64,
    /// Good reads that were served through the target.
    pub from_target: u64,
    /// The first failures, as `{triplet}: {what}`; never a token.
    pub failures: Vec<String>,
}

/// Readers that go round over some triplets until they are stopped.
#[derive(Debug)]
pub struct ReadLoad {
    stop: Arc<AtomicBool>,
    counts: Arc<Mutex<ReadCounts>>,
    readers: Vec<JoinHandle<()>>,
}

impl ReadLoad {
    /// Starts `readers` tasks on the runtime that is entered now. Each rests for `pause` after
    /// every read, so that a small machine has time for the gateway too.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn start(
        gateway: &str,
        gateway_key: &str,
        triplets: &[Triplet],
        readers: usize,
        pause: Duration,
    ) -> reqwest::Result<Self> {
        // Fails only when somebody installed a provider before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .redirect(reqwest::redirect::Policy::none())
            // Servers close idle connections, and a read must not fail because of that.
            .pool_idle_timeout(IDLE)
            .timeout(TIMEOUT)
            .build()?;
        let targets: Arc<[(String, Triplet)]> = triplets
            .iter()
            .map(|t| (format!("{gateway}/v1/{}/{}/{}/whoami", t.tenant, t.provider, t.account), t.clone()))
            .collect();
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(ReadCounts::default())));
        let next = Arc::new(AtomicUsize::new(0));
        let readers = (0..readers)
            .map(|_| {
                let (client, key) = (client.clone(), gateway_key.to_owned());
                let (targets, next) = (Arc::clone(&targets), Arc::clone(&next));
                let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) && !targets.is_empty() {
                        let (url, triplet) = &targets[next.fetch_add(1, Ordering::Relaxed) % targets.len()];
                        let read = read(&client, url, &key).await;
                        counts.lock().unwrap_or_else(PoisonError::into_inner).add(triplet, read);
                        tokio::time::sleep(pause).await;
                    }
                })
            })
            .collect();
        Ok(Self { stop, counts, readers })
    }

    /// What was read so far.
    pub fn counts(&self) -> ReadCounts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the readers after their last answer.
    pub async fn stop(mut self) -> ReadCounts {
        self.stop.store(true, Ordering::Relaxed);
        for reader in std::mem::take(&mut self.readers) {
            // A reader does not panic, and nobody else ends it.
            let _ended = reader.await.is_ok();
        }
        self.counts()
    }
}

impl Drop for ReadLoad {
    fn drop(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
    }
}

impl ReadCounts {
    fn add(&mut self, triplet: &Triplet, read: Result<bool, String>) {
        match read {
            Ok(from_target) => {
                self.ok += 1;
                *(if from_target { &mut self.from_target } else { &mut self.from_source }) += 1;
            }
            Err(what) => {
                self.failed += 1;
                if self.failures.len() < FAILURES_MAX {
                    self.failures.push(format!("{triplet}: {what}"));
                }
            }
        }
    }
}

/// One read: whether it came through the target, or what went wrong.
async fn read(client: &reqwest::Client, url: &str, key: &str) -> Result<bool, String> {
    let unanswered = |error: reqwest::Error| format!("no answer ({})", error.without_url());
    let answer = client.get(url).bearer_auth(key).send().await.map_err(unanswered)?;
    let status = answer.status();
    let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("absent").to_owned();
    let (reads, stale) = (header("x-read-authority"), header("x-token-stale"));
    let body = answer.bytes().await.map_err(unanswered)?;
    judge(status.as_u16(), &reads, &stale, &body)
}

fn judge(status: u16, reads: &str, stale: &str, body: &[u8]) -> Result<bool, String> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    if !(200..300).contains(&status) {
        let code = body["error"].as_str().unwrap_or("no code");
        return Err(format!("status {status} ({code}) from {reads}"));
    }
    if body["ok"] == false {
        return Err(format!("`ok` is false, from {reads}"));
    }
    match (reads, stale) {
        ("source", "false") => Ok(false),
        ("target", "false") => Ok(true),
        _ => Err(format!("read authority {reads}, stale {stale}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fresh_answer_with_a_known_origin_is_good() {
        assert_eq!(judge(200, "source", "false", b"{}"), Ok(false));
        assert_eq!(judge(204, "target", "false", b""), Ok(true));
        for (status, reads, stale, body) in [
            (200, "source", "true", "{}"),
            (200, "absent", "absent", "{}"),
            (200, "target", "false", r#"{"ok":false,"error":"invalid_auth"}"#),
            (401, "source", "false", "{}"),
            (503, "source", "true", r#"{"error":"no_token"}"#),
        ] {
            assert!(judge(status, reads, stale, body.as_bytes()).is_err(), "{status} {reads} {stale} {body}");
        }
    }

    #[test]
    fn failures_are_told_up_to_a_number_and_counted_beyond() {
        let triplet = Triplet::parse("kahuna:hubspot:default").unwrap();
        let mut counts = ReadCounts::default();
        for n in 0..30 {
            counts.add(&triplet, if n % 3 == 0 { Ok(n % 2 == 0) } else { Err("status 401".into()) });
        }
        assert_eq!((counts.ok, counts.failed, counts.failures.len()), (10, 20, 20));
        assert_eq!((counts.from_source, counts.from_target), (5, 5));
        assert_eq!(counts.failures[0], "kahuna:hubspot:default: status 401");
    }
}
