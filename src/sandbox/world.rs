//! The world: everything outside the code under test, on one virtual clock.
//!
//! All state changes are plain synchronous functions on [`World`]; the HTTP routes only call
//! them. Time moves in [`World::advance_to`] and nowhere else.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::json;

use crate::catalogue::{Catalogue, Integration};
use crate::domain::time::{DAY_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::inventory::Row;
use crate::ports::Api;

use super::cloudflare::Cloudflare;
use super::composio::{Composio, ComposioSettings};
use super::draw;
use super::faults::{self, Act, CrashAt, Fault, FaultNote, FaultPlan};
use super::gateway::Gateway;
use super::http::{Call, Reply, http_date};
use super::keys::SandboxKeys;
use super::ledger::Ledger;
use super::nango::{Nango, NangoSettings, OutboundWebhook};
use super::provider::{Client, GrantId, Party, Providers, UserId, connection_config};
use super::script::Scripts;
use super::serve::SandboxUrls;
use super::serving::Serving;

/// How long access tokens live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenLife {
    /// Every expiring OAuth2 token lives this many milliseconds, and every answer says so.
    Fixed(i64),
    /// As the catalogue says; Salesforce then hides its expiry, as it really does.
    Catalogue,
}

/// What a world starts from.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    pub seed: u64,
    pub start: Timestamp,
    pub rows: Vec<Row>,
    pub catalogue: Catalogue,
    /// Triplets that do not move; the ledger leaves them out.
    pub retained: BTreeSet<Triplet>,
    pub faults: Vec<Fault>,
    /// Where faults that are placed in time happen.
    pub fault_from: Timestamp,
    pub fault_until: Timestamp,
    pub token_life: TokenLife,
    /// Where Nango's webhooks go. Absent: Nango sends none. See [`World::set_shim_url`].
    pub shim_url: Option<String>,
}

/// Who is the gateway, with its KV, D1 and alarms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GatewayKind {
    /// The world itself, in virtual time.
    #[default]
    Emulated,
    /// `fixtures/gateway` on the Workers runtime, in real time. The world keeps the books.
    Workerd,
}

/// Switches with sensible defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorldOptions {
    /// Clients whose rotation is a setting (Salesforce, Slack, Cognito) rotate refresh tokens.
    pub optional_rotation: bool,
    /// How long the Worker's cache hides a KV write, ms.
    pub kv_lag_ms: i64,
    /// Nango's plan: requests a minute. Absent: unlimited.
    pub nango_per_minute: Option<u32>,
    /// Composio's plan: requests a minute. Absent: unlimited.
    pub composio_per_minute: Option<u32>,
    /// Cloudflare's limit for one token: requests in five minutes. Absent: unlimited.
    pub cloudflare_per_5_minutes: Option<u32>,
    /// Pages without keys that Cloudflare puts before each page of a listing, as it may after deletions.
    pub kv_empty_pages: usize,
    pub nango: NangoSettings,
    pub composio: ComposioSettings,
    pub gateway: GatewayKind,
}

impl WorldOptions {
    /// What fits a gateway. The local Workers runtime shows every KV write at once.
    pub fn of(gateway: GatewayKind) -> Self {
        match gateway {
            GatewayKind::Emulated => Self::default(),
            GatewayKind::Workerd => Self { gateway, kv_lag_ms: 0, ..Self::default() },
        }
    }
}

impl Default for WorldOptions {
    /// Nango Enterprise, Composio Pro, Cloudflare unlimited, one second of KV lag.
    fn default() -> Self {
        Self {
            optional_rotation: false,
            kv_lag_ms: 1_000,
            nango_per_minute: Some(5_000),
            composio_per_minute: Some(10_000),
            cloudflare_per_5_minutes: None,
            kv_empty_pages: 0,
            nango: NangoSettings::default(),
            composio: ComposioSettings::default(),
            gateway: GatewayKind::Emulated,
        }
    }
}

/// One inventory row: a Nango connection, its upstream user and grant.
#[derive(Clone, Debug)]
pub(super) struct RowState {
    pub row: Row,
    pub integration: usize,
    pub user: UserId,
    /// Who consents when the fault says so.
    pub other_user: UserId,
    pub grant: GrantId,
    pub triplets: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(super) struct TripletState {
    pub triplet: Triplet,
    /// `{tenant}:{provider}:{account}`
    pub name: String,
    pub row: usize,
    pub toolkit: Option<String>,
    /// Counted by the ledger.
    pub moving: bool,
    pub serving: Serving,
}

/// Something that happens by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A TokenManager object's alarm; stale when the generation moved on.
    Alarm {
        object: usize,
        generation: u64,
    },
    NangoCron,
    Webhook {
        id: u64,
    },
    /// Nobody answered a webhook within 20 s.
    WebhookTimeout {
        id: u64,
        attempt: u32,
    },
    /// The person opens a consent link.
    Consent {
        account: usize,
    },
    LinkExpiry {
        account: usize,
    },
    ComposioRefresh {
        account: usize,
        generation: u64,
    },
    RevokeGrant {
        grant: GrantId,
    },
    Zombie {
        object: usize,
    },
}

/// How a request ends.
#[derive(Debug)]
pub enum Answer {
    Reply(Reply),
    /// The client dies now: raise the crash signal and never answer.
    Crash,
}

/// Everything outside the code under test.
#[derive(Clone, Debug)]
pub struct World {
    seed: u64,
    now: Timestamp,
    start: Timestamp,
    options: WorldOptions,
    keys: SandboxKeys,
    pub(super) rows: Vec<RowState>,
    pub(super) triplets: Vec<TripletState>,
    pub(super) by_name: HashMap<String, usize>,
    pub(super) providers: Providers,
    pub(super) nango: Nango,
    pub(super) composio: Composio,
    pub(super) cloudflare: Cloudflare,
    pub(super) gateway: Gateway,
    pub(super) ledger: Ledger,
    pub(super) faults: FaultPlan,
    pub(super) scripts: Scripts,
    /// Where the systems listen, once somebody outside must find them.
    addresses: Option<SandboxUrls>,
    queue: BTreeMap<(Timestamp, u64), Event>,
    next_event: u64,
    requests_total: u64,
    /// What befalls one request to come, by its number.
    strike: Option<(u64, Strike)>,
}

/// What befalls one request of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// The client dies before it has an effect.
    CrashBefore,
    /// The client dies after it had its effect.
    CrashAfter,
    /// It has its effect, and an intermediary answers in the place of the system.
    ReplyLost,
}

impl World {
    /// A world with default options: users, grants, Nango connections, KV entries and armed
    /// alarms exist and are valid; the target namespace and Composio are empty.
    pub fn new(config: WorldConfig) -> Self {
        Self::with_options(config, WorldOptions::default())
    }

    pub fn with_options(config: WorldConfig, options: WorldOptions) -> Self {
        let WorldConfig {
            seed,
            start,
            rows,
            catalogue,
            retained,
            faults,
            fault_from,
            fault_until,
            token_life,
            shim_url,
        } = config;
        let fixed = match token_life {
            TokenLife::Fixed(ms) => Some(ms.max(1_000)),
            TokenLife::Catalogue => None,
        };
        let mut providers = Providers::new(seed, fixed, options.optional_rotation);
        for (key, facts) in &catalogue.integrations {
            providers.integrations.push((key.as_str().into(), facts.clone()));
        }
        for row in &rows {
            if providers.find_integration(&row.integration_key).is_none() {
                providers.integrations.push((row.integration_key.as_str().into(), unknown_integration(row)));
            }
        }
        let integration_keys: Vec<String> = providers.integrations.iter().map(|(key, _)| key.to_string()).collect();
        let keys = SandboxKeys::draw(seed, &catalogue, &integration_keys);
        let mut world = Self {
            seed,
            now: start,
            start,
            rows: Vec::new(),
            triplets: Vec::new(),
            by_name: HashMap::new(),
            providers,
            nango: Nango::new(&keys, shim_url, start),
            composio: Composio::new(&catalogue),
            cloudflare: Cloudflare::default(),
            gateway: Gateway::default(),
            ledger: Ledger::default(),
            faults: FaultPlan { window: (fault_from, fault_until), ..FaultPlan::default() },
            scripts: Scripts::default(),
            addresses: None,
            queue: BTreeMap::new(),
            next_event: 0,
            requests_total: 0,
            strike: None,
            options,
            keys,
        };
        world.nango_create_integrations();
        for row in rows {
            world.create_row(row, &retained);
        }
        world.ledger = Ledger::new(world.triplets.len());
        world.nango_schedule_cron();
        world.plan_faults(&faults);
        world
    }

    fn create_row(&mut self, row: Row, retained: &BTreeSet<Triplet>) {
        let Some(integration) = self.providers.find_integration(&row.integration_key) else { return };
        let name = format!("{}/{}/{}", row.tenant, row.integration_key, row.account);
        let config = connection_config(&row.integration_key, row.tenant.as_str());
        let user = self.providers.add_user(integration, name.clone(), config.clone());
        let other_user = self.providers.add_user(integration, format!("{name}#other"), config);
        let facts = self.providers.integration(integration).clone();
        let scopes: BTreeSet<String> = row
            .providers
            .iter()
            .filter_map(|p| facts.provider.get(p.as_str()))
            .flat_map(|p| p.scopes.iter().cloned())
            .collect();
        let life = self.providers.life_ms(integration);
        // Tokens are up to a third of their life old, so expiries do not come in one wave. In real
        // time they are younger: the first alarm must not fire before a client had time for anything.
        let tenths = match self.options.gateway {
            GatewayKind::Emulated => 3,
            GatewayKind::Workerd => 1,
        };
        let age = draw::between(self.seed, &["token-age", &name], 0, 0, life.unwrap_or(DAY_MS) / 10 * tenths);
        let minted_at = self.start.plus_ms(-age);
        let index = self.rows.len();
        let grant = self.providers.consent(user, Client::Legacy, scopes.into_iter().collect(), Some(index), minted_at);
        let token = self.providers.mint(grant, Party::Nango, minted_at);
        let first = self.triplets.len();
        for triplet in row.triplets() {
            let provider = facts.provider.get(triplet.provider.as_str());
            let toolkit = provider.and_then(|p| p.toolkit.clone());
            let name = triplet.to_string();
            self.by_name.insert(name.clone(), self.triplets.len());
            self.triplets.push(TripletState {
                moving: !retained.contains(&triplet),
                triplet,
                name,
                row: index,
                toolkit,
                serving: Serving::starting(self.start),
            });
        }
        let triplets: Vec<usize> = (first..self.triplets.len()).collect();
        self.rows.push(RowState { row, integration, user, other_user, grant, triplets: triplets.clone() });
        self.nango_create_connection(index, token);
        for triplet in triplets {
            self.gateway_create_object(triplet, token);
        }
    }

    fn plan_faults(&mut self, faults: &[Fault]) {
        let seed = self.seed;
        let moving: Vec<usize> = (0..self.triplets.len()).filter(|t| self.triplets[*t].moving).collect();
        let consenting: Vec<usize> = moving.iter().copied().filter(|t| self.triplets[*t].toolkit.is_some()).collect();
        let expiring: Vec<usize> = moving
            .iter()
            .copied()
            .filter(|t| self.providers.refresh_text(self.rows[self.triplets[*t].row].grant).is_some())
            .collect();
        let (from, until) = self.faults.window;
        let span = until.since(from).max(0);
        let moment = |label: &str, n: usize| {
            from.plus_ms(draw::between(seed, &["when", label], n as u64, span / 4, span / 4 * 3))
        };
        for fault in faults {
            let mut note = |at: Timestamp, triplet: Option<Triplet>, what: String| {
                self.faults.notes.push(FaultNote { fault: fault.name(), at, triplet, what });
            };
            match *fault {
                Fault::WebhookLoss { per_mille } => {
                    note(from, None, format!("{}.{}% of webhooks are lost", per_mille / 10, per_mille % 10));
                    self.faults.webhook_loss_per_mille = per_mille;
                }
                Fault::KvLag { max_ms } => {
                    note(from, None, format!("KV writes show 30 s to {} s later", max_ms / 1_000));
                    self.faults.kv_lag_max_ms = max_ms;
                }
                Fault::Composio429 { per_mille } => {
                    note(from, None, format!("{}.{}% of requests are limited", per_mille / 10, per_mille % 10));
                    self.faults.composio_429_per_mille = per_mille;
                }
                Fault::NangoOutage { ms } => {
                    let begin = from.plus_ms((span - ms) / 2);
                    note(begin, None, format!("Nango answers 503 for {} min", ms / 60_000));
                    self.faults.outage = Some((begin, begin.plus_ms(ms)));
                }
                Fault::DoAlarmZombie { count } => {
                    for (n, victim) in faults::choose(seed, fault.name(), &expiring, count).into_iter().enumerate() {
                        let at = moment(fault.name(), n);
                        let triplet = self.triplets[victim].triplet.clone();
                        self.faults.notes.push(FaultNote {
                            fault: fault.name(),
                            at,
                            triplet: Some(triplet),
                            what: "its TokenManager object goes back to refresh and ignores mode changes".into(),
                        });
                        self.schedule(at, Event::Zombie { object: victim });
                    }
                }
                Fault::GrantRevoked { count } => {
                    // One triplet stands for its grant; two victims may share one.
                    for (n, victim) in faults::choose(seed, fault.name(), &expiring, count).into_iter().enumerate() {
                        let at = moment(fault.name(), n);
                        let row = self.triplets[victim].row;
                        let triplet = self.triplets[victim].triplet.clone();
                        self.faults.notes.push(FaultNote {
                            fault: fault.name(),
                            at,
                            triplet: Some(triplet),
                            what: "its grant is revoked at the provider".into(),
                        });
                        self.schedule(at, Event::RevokeGrant { grant: self.rows[row].grant });
                    }
                }
                Fault::WrongAccount { count } => {
                    let victims = faults::choose(seed, fault.name(), &consenting, count);
                    for victim in &victims {
                        let triplet = Some(self.triplets[*victim].triplet.clone());
                        note(from, triplet, "another upstream user consents".into());
                    }
                    self.faults.wrong_account.extend(victims);
                }
                Fault::ScopeLoss { count } => {
                    let victims = faults::choose(seed, fault.name(), &consenting, count);
                    for victim in &victims {
                        let triplet = Some(self.triplets[*victim].triplet.clone());
                        note(from, triplet, "the consent grants one scope less".into());
                    }
                    self.faults.scope_loss.extend(victims);
                }
                Fault::SmokeOutage { ms } => {
                    note(from, None, format!("the gateway answers no smoke test for {} min", ms / 60_000));
                    self.faults.smoke_again = Some(from.plus_ms(ms));
                }
                Fault::AuditOutage { ms } => {
                    note(from, None, format!("D1 answers 500 for {} min", ms / 60_000));
                    self.faults.audit_again = Some(from.plus_ms(ms));
                }
                Fault::Crash { count } => {
                    note(from, None, format!("the client is killed {count} times"));
                    self.faults.crashes = faults::crashes(seed, count);
                }
            }
        }
    }

    pub fn now(&self) -> Timestamp {
        self.now
    }

    pub(super) fn start(&self) -> Timestamp {
        self.start
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn options(&self) -> &WorldOptions {
        &self.options
    }

    /// The keys and ids that a client needs.
    pub fn keys(&self) -> SandboxKeys {
        self.keys.clone()
    }

    pub(super) fn needs_own_app(&self, toolkit: &str) -> bool {
        self.composio.needs_own_app(toolkit)
    }

    /// Sets Nango's environment and Composio's switches anew; a part that is not given stays.
    pub fn set_settings(&mut self, nango: Option<NangoSettings>, composio: Option<ComposioSettings>) {
        if let Some(nango) = nango {
            self.options.nango = nango;
        }
        if let Some(composio) = composio {
            self.options.composio = composio;
        }
    }

    pub(super) fn keys_ref(&self) -> &SandboxKeys {
        &self.keys
    }

    /// Which faults hit whom and when, in the order in which they were asked for.
    pub fn fault_notes(&self) -> &[FaultNote] {
        &self.faults.notes
    }

    /// Adds faults to a running world; those placed in time happen in the window given at the start.
    pub fn add_faults(&mut self, faults: &[Fault]) {
        self.plan_faults(faults);
    }

    /// From now on people consent with the account that they should, and grant what is asked for.
    pub fn mend_consents(&mut self) {
        self.faults.wrong_account.clear();
        self.faults.scope_loss.clear();
    }

    /// Where Nango's webhooks go from now on.
    pub fn set_shim_url(&mut self, url: Option<String>) {
        self.nango.webhook_url = url;
    }

    /// Links, redirects and callbacks lead to these addresses from now on, so that a browser can
    /// follow them. Without it they lead to names under `.example`, the same in every run.
    pub fn set_addresses(&mut self, urls: SandboxUrls) {
        self.addresses = Some(urls);
    }

    /// Where the outside finds one of the systems, without a trailing slash. `elsewhere` where
    /// nobody outside must.
    pub(super) fn address_of(&self, of: fn(&SandboxUrls) -> &str, elsewhere: &str) -> String {
        self.addresses.as_ref().map_or(elsewhere, of).to_owned()
    }

    /// When something happens next by itself: an event, or a webhook waiting to be taken.
    pub fn next_due(&self) -> Option<Timestamp> {
        let event = self.queue.keys().next().map(|(at, _)| *at);
        if self.nango.has_outbound() { Some(self.now) } else { event }
    }

    /// Moves the clock forward and runs everything that is due, in the order of time and then of
    /// insertion. A time in the past changes nothing.
    pub fn advance_to(&mut self, to: Timestamp) {
        while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= to) {
            let ((at, _), event) = entry.remove_entry();
            self.now = self.now.max(at);
            self.run(event);
        }
        self.now = self.now.max(to);
    }

    fn run(&mut self, event: Event) {
        match event {
            Event::Alarm { object, generation } => self.gateway_alarm(object, generation),
            Event::NangoCron => self.nango_cron(),
            Event::Webhook { id } => self.nango.release(id),
            Event::WebhookTimeout { id, attempt } => self.nango_webhook_timeout(id, attempt),
            Event::Consent { account } => self.composio_consent(account),
            Event::LinkExpiry { account } => self.composio_link_expiry(account),
            Event::ComposioRefresh { account, generation } => self.composio_refresh(account, generation),
            Event::RevokeGrant { grant } => self.revoke_grant(grant),
            Event::Zombie { object } => self.gateway_zombie(object),
        }
    }

    pub(super) fn schedule(&mut self, at: Timestamp, event: Event) {
        self.next_event += 1;
        self.queue.insert((at.max(self.now), self.next_event), event);
    }

    /// Ends a grant at the provider: all its tokens die now.
    pub(super) fn revoke_grant(&mut self, grant: GrantId) {
        let now = self.now;
        self.providers.grants[grant].revoked_at.get_or_insert(now);
    }

    /// Webhooks that are due; each must be answered through [`Self::webhook_answered`].
    pub fn take_outbound(&mut self) -> Vec<OutboundWebhook> {
        self.nango_take_outbound()
    }

    /// What the receiver answered: a status, or nothing (refused, reset, timed out). A 5xx or no
    /// answer is tried again after 3 s and then 6 s (nango.md §5.4).
    pub fn webhook_answered(&mut self, id: u64, status: Option<u16>) {
        self.nango_webhook_answered(id, status);
    }

    /// Answers one request to one of the five systems.
    pub fn answer(&mut self, api: Api, call: &Call) -> Answer {
        let strike = self.admit(api, call);
        if strike == Some(Strike::CrashBefore) {
            return Answer::Crash;
        }
        let reply = self.answer_scripted(api, call);
        self.close(strike, reply)
    }

    /// Counts a request, and says what is to go wrong with it.
    pub(super) fn admit(&mut self, api: Api, call: &Call) -> Option<Strike> {
        self.requests_total += 1;
        let by_method = self.ledger.counts.requests.entry(api.name()).or_default();
        match by_method.get_mut(&call.method) {
            Some(n) => *n += 1,
            None => {
                by_method.insert(call.method.clone(), 1);
            }
        }
        let strike = self.strike.take_if(|(number, _)| *number == self.requests_total).map(|(_, strike)| strike);
        strike.or_else(|| {
            Some(match self.crash_now()? {
                CrashAt::BeforeEffect => Strike::CrashBefore,
                CrashAt::AfterEffect => Strike::CrashAfter,
            })
        })
    }

    /// A request that was admitted has its answer, which bears the world's date.
    pub(super) fn close(&self, strike: Option<Strike>, reply: Reply) -> Answer {
        match strike {
            Some(Strike::ReplyLost) => {
                let lost = Reply::raw(502, "text/html", "<html><body>502 Bad Gateway</body></html>");
                Answer::Reply(lost.with_header("date", http_date(self.now)))
            }
            Some(Strike::CrashBefore | Strike::CrashAfter) => Answer::Crash,
            None => Answer::Reply(reply.with_header("date", http_date(self.now))),
        }
    }

    /// Answers as the system usually does.
    pub(super) fn answer_plainly(&mut self, api: Api, call: &Call) -> Reply {
        match api {
            Api::Nango => self.nango_http(call),
            Api::Composio => self.composio_http(call),
            Api::Cloudflare => self.cloudflare_http(call),
            Api::Gateway => self.gateway_http(call),
            Api::Provider => self.provider_http(call),
        }
    }

    /// Lets something befall the request that is `ahead` requests from now; 1 is the next one.
    pub fn strike(&mut self, ahead: u64, strike: Strike) {
        self.strike = Some((self.requests_total + ahead, strike));
    }

    /// Requests answered so far.
    pub fn request_number(&self) -> u64 {
        self.requests_total
    }

    fn crash_now(&mut self) -> Option<CrashAt> {
        let act = if self.composio.has_links() {
            Act::Closing
        } else if self.now < self.faults.window.0 {
            Act::Opening
        } else if self.faults.in_window(self.now) {
            Act::Soak
        } else {
            return None;
        };
        self.faults.crashes.get_mut(&act)?.next()
    }
}

/// Facts for an integration key that the catalogue does not know: an hour of life, no rotation.
fn unknown_integration(row: &Row) -> Integration {
    let key = &row.integration_key;
    let host: String =
        key.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let providers: BTreeMap<&str, serde_json::Value> =
        row.providers.iter().map(|p| (p.as_str(), json!({"scopes": []}))).collect();
    let facts = json!({
        "auth_mode": row.auth_mode.as_deref().unwrap_or("OAUTH2"),
        "access_token_ttl_s": 3_600,
        "rotation": "never",
        "reuse": "harmless",
        "same_client_reconsent": "keeps-old",
        "token_url": format!("https://{host}.example/oauth/token"),
        "whoami": {"method": "GET", "url": format!("https://{host}.example/whoami"), "identity_fields": ["id"]},
        "provider": providers,
    });
    serde_json::from_value(facts).expect("every field without a default is set above")
}
