//! Passes requests on to the runtime, and books what it accepted.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::ports::Api;
use crate::sandbox::Strike;
use crate::sandbox::http::{Call, Reply};
use crate::sandbox::keys::SandboxKeys;
use crate::sandbox::live::LiveClock;
use crate::sandbox::serve::SandboxUrls;
use crate::sandbox::world::{Answer, World};

use super::process::Process;
use super::{AlarmCounts, RuntimeUrls, Workerd, WorkerdError};

/// Headers that belong to one connection or are made anew.
const OWN_HEADERS: [&str; 5] = ["host", "connection", "content-length", "transfer-encoding", "date"];

/// Longer than any call of the Worker to an upstream.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How often the Worker's own writes to KV are looked for.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Values in one bulk read.
const BULK_GET_MAX: usize = 100;

/// The runtime behind the sandbox's gateway and Cloudflare addresses.
#[derive(Debug)]
pub(in crate::sandbox) struct Relay {
    process: Process,
    client: Client,
    /// Base of the source namespace in the runtime's API, and its token.
    source: String,
    /// Address of the database, and the token of the API.
    database: String,
    token: String,
    /// Held over a write and its entry in the books, so that the watch never sees one without the other.
    writes: tokio::sync::Mutex<()>,
}

impl Relay {
    /// Starts the runtime and gives it what the world begins with.
    pub async fn start(
        workerd: &Workerd,
        world: &Mutex<World>,
        urls: &SandboxUrls,
        clock: &LiveClock,
    ) -> Result<Self, WorkerdError> {
        let (settings, keys) = {
            let world = lock(world);
            (world.workerd_settings(urls, clock), world.keys())
        };
        let workerd = workerd.clone();
        let process = tokio::task::spawn_blocking(move || Process::start(&workerd, &settings))
            .await
            .map_err(|error| WorkerdError::Spawn(std::io::Error::other(error)))??;
        // Fails only when somebody installed a provider before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .redirect(reqwest::redirect::Policy::none())
            // The runtime closes a connection that was idle for 5 s, or whose body it did not read,
            // at the very moment at which another request may be on its way.
            .pool_max_idle_per_host(0)
            .timeout(TIMEOUT)
            .build()
            .map_err(WorkerdError::Client)?;
        let source = format!("{}/storage/kv/namespaces/{}", process.cloudflare, keys.kv_source);
        let database = format!("{}/d1/database/{}", process.cloudflare, keys.d1_database);
        let token = keys.cloudflare_token.clone();
        let relay = Self { process, client, source, database, token, writes: tokio::sync::Mutex::new(()) };
        relay.seed(world, &keys).await?;
        Ok(relay)
    }

    /// The tokens go first: an object arms its alarm for the expiry that it finds in KV.
    async fn seed(&self, world: &Mutex<World>, keys: &SandboxKeys) -> Result<(), WorkerdError> {
        let (entries, grants) = {
            let world = lock(world);
            (world.workerd_entries(), world.workerd_grants())
        };
        self.ask(Method::PUT, &format!("{}/bulk", self.source), Some(&entries)).await?;
        for grant in grants {
            let id = utf8_percent_encode(&grant.triplet, NON_ALPHANUMERIC);
            let url = format!("{}/admin/objects/{id}", self.process.gateway);
            let request = self.client.post(url).header("x-admin-key", &keys.gateway_admin_key).json(&grant.body);
            let status = request.send().await.map_err(seed_error)?.status();
            if !status.is_success() {
                return Err(WorkerdError::Seed { what: format!("the grant of `{}` ({status})", grant.triplet) });
            }
        }
        Ok(())
    }

    /// Answers a request to the gateway or to Cloudflare.
    pub async fn answer(&self, world: &Mutex<World>, api: Api, call: &Call) -> Answer {
        let strike = lock(world).admit(api, call);
        if strike == Some(Strike::CrashBefore) {
            return Answer::Crash;
        }
        let _in_order = match api {
            Api::Cloudflare if call.method != "GET" => Some(self.writes.lock().await),
            _ => None,
        };
        let base = if api == Api::Gateway { &self.process.gateway } else { &self.process.cloudflare };
        let reply = self.forward(base, call).await;
        let mut world = lock(world);
        if api == Api::Cloudflare {
            world.cloudflare_follow(call, &reply);
        }
        world.close(strike, reply)
    }

    async fn forward(&self, base: &str, call: &Call) -> Reply {
        let gone = |error: &dyn std::error::Error| {
            let what = chain(error);
            tracing::warn!("{} {} was not answered: {what}", call.method, call.path);
            Reply::json(503, &json!({"error": "runtime_unavailable", "message": what}))
        };
        let method = match Method::from_bytes(call.method.as_bytes()) {
            Ok(method) => method,
            Err(error) => return gone(&error),
        };
        let mut request = self.client.request(method, format!("{base}{}", call.target())).body(call.body.clone());
        for (name, value) in call.headers().filter(|(name, _)| !OWN_HEADERS.contains(name)) {
            request = request.header(name, value);
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return gone(&error.without_url()),
        };
        let status = answer.status().as_u16();
        let headers = answer
            .headers()
            .iter()
            .filter(|(name, _)| !OWN_HEADERS.contains(&name.as_str()))
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        match answer.bytes().await {
            Ok(body) => Reply { status, headers, body: body.to_vec() },
            Err(error) => gone(&error.without_url()),
        }
    }

    /// Books what the Worker writes to KV by itself (an alarm's refresh, the webhook route), which
    /// no request shows. Runs until the future is dropped.
    pub async fn watch(&self, world: &Mutex<World>) {
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            if let Err(error) = self.look(world).await {
                tracing::warn!("the runtime's KV could not be looked at: {error}");
            }
        }
    }

    /// Brings the books up to what the runtime's KV holds now.
    pub async fn look(&self, world: &Mutex<World>) -> Result<(), WorkerdError> {
        let _alone = self.writes.lock().await;
        let mut found = BTreeMap::new();
        let mut cursor = String::new();
        loop {
            let url = format!("{}/keys?limit=1000&prefix=tokens%3A&cursor={cursor}", self.source);
            let page = self.ask(Method::GET, &url, None).await?;
            let rows = page["result"].as_array().cloned().unwrap_or_default();
            let names: Vec<&Value> = rows.iter().map(|row| &row["name"]).collect();
            for keys in names.chunks(BULK_GET_MAX) {
                let url = format!("{}/bulk/get", self.source);
                let mut answer = self.ask(Method::POST, &url, Some(&json!({"keys": keys}))).await?;
                if let Value::Object(values) = answer["result"]["values"].take() {
                    let texts = values.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.into())));
                    found.extend(texts);
                }
            }
            match page["result_info"]["cursor"].as_str() {
                None | Some("") => break,
                Some(next) => cursor = utf8_percent_encode(next, NON_ALPHANUMERIC).to_string(),
            }
        }
        lock(world).kv_follow_worker(&found);
        Ok(())
    }

    /// The alarms that fired so far, as the objects recorded them.
    pub async fn count_alarms(&self) -> Result<AlarmCounts, WorkerdError> {
        let sql = json!({"sql": "SELECT count(*) AS fires, coalesce(sum(wrote), 0) AS writes FROM alarm_fires"});
        let answer = self.ask(Method::POST, &format!("{}/query", self.database), Some(&sql)).await?;
        let row = &answer["result"][0]["results"][0];
        let count = |name: &str| row[name].as_f64().unwrap_or_default() as u64;
        Ok(AlarmCounts { fires: count("fires"), writes: count("writes") })
    }

    pub fn urls(&self) -> RuntimeUrls {
        RuntimeUrls { gateway: self.process.gateway.clone(), cloudflare: self.process.cloudflare.clone() }
    }

    /// One call of the sandbox's own to the runtime's API; not counted, not booked.
    async fn ask(&self, method: Method, url: &str, body: Option<&Value>) -> Result<Value, WorkerdError> {
        let mut request = self.client.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer: Value = request.send().await.map_err(seed_error)?.json().await.map_err(seed_error)?;
        if answer["success"] == true {
            Ok(answer)
        } else {
            Err(WorkerdError::Seed { what: answer["errors"][0]["message"].to_string() })
        }
    }
}

fn seed_error(error: reqwest::Error) -> WorkerdError {
    WorkerdError::Seed { what: chain(&error.without_url()) }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}
