//! The sandbox's Nango against exchanges with a real one: `fixtures/recordings/nango.json`.
//!
//! The steps are replayed in the order in which they were recorded, on one world, with the steps
//! between them that bring the world to where the next exchange was recorded.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use super::*;
use crate::domain::time::SECOND_MS;
use crate::sandbox::OutboundWebhook;

const FIXTURE: &str = include_str!("../../../fixtures/recordings/nango.json");
const PRIMARY: &str = "http://receiver.example/primary";
const SECONDARY: &str = "http://receiver.example/secondary";
const LIMITS: [&str; 3] = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recordings {
    signing_key: String,
    steps: Vec<Step>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Step {
    /// Its number in the recorded sequence; absent: a step that only brings the world there.
    recorded: Option<u32>,
    name: String,
    request: Option<String>,
    key: Option<String>,
    content_type: Option<String>,
    body: Option<Value>,
    status: u16,
    headers: Option<Vec<String>>,
    answered_type: Option<String>,
    /// Field names and types of the answer.
    shape: Option<Value>,
    /// What stands at these places of the answer.
    values: BTreeMap<String, Value>,
    location_query: Option<Vec<String>>,
    /// Fields of the form that Nango sent to the provider.
    token_call: Option<Vec<String>>,
    webhooks: Option<Vec<Webhook>>,
    deliveries: Option<Vec<Webhook>>,
    save: BTreeMap<String, String>,
    save_session: bool,
    keep_webhooks: bool,
    told: Option<String>,
    consent: Option<String>,
    authorize: Option<String>,
    exhaust: Option<String>,
    burst: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Webhook {
    to: String,
    body: String,
    hmac: Option<String>,
    legacy: Option<String>,
    #[serde(default)]
    after_s: i64,
    #[serde(default = "two_hundred")]
    answered: u16,
}

const fn two_hundred() -> u16 {
    200
}

/// A catalogue of the mock providers that the recorded server was set up with.
fn mocks() -> Catalogue {
    let mut catalogue = Catalogue::built_in();
    catalogue.integrations.clear();
    for (key, mode) in [
        ("mock-oauth2", "OAUTH2"),
        ("mock-oauth2-basic", "OAUTH2"),
        ("mock-google", "OAUTH2"),
        ("mock-apikey", "API_KEY"),
        ("mock-cc", "OAUTH2_CC"),
    ] {
        let facts = json!({
            "auth_mode": mode, "access_token_ttl_s": 3_600, "rotation": "always", "reuse": "harmless",
            "same_client_reconsent": "keeps-old", "token_url": format!("https://{key}.example/token"),
            "whoami": {"method": "GET", "url": format!("https://{key}.example/me"), "identity_fields": ["id"]},
            "provider": {"mock": {"scopes": ["read", "write"]}},
        });
        catalogue.integrations.insert(key.to_owned(), serde_json::from_value(facts).unwrap());
    }
    catalogue
}

struct Replay {
    client: Client,
    variables: BTreeMap<String, String>,
    report: String,
}

impl Replay {
    fn new(signing_key: &str) -> Self {
        let mut settings =
            config(["mock-oauth2", "mock-oauth2-basic", "mock-google"].map(|key| row("t", key, &["mock"])).to_vec());
        settings.catalogue = mocks();
        settings.shim_url = Some(PRIMARY.into());
        let mut options = WorldOptions { nango_per_minute: Some(200), ..WorldOptions::default() };
        options.nango.environment = "dev".into();
        options.nango.secondary_webhook_url = Some(SECONDARY.into());
        let mut world = World::with_options(settings, options);
        world.nango.signing_key = signing_key.to_owned();
        let mut client = Client::new(world);
        // The recorded server began empty; a sandbox begins with what its inventory says.
        for key in mocks().integrations.keys() {
            assert_eq!(client.nango("DELETE", &format!("/integrations/{key}")).status, 200);
        }
        Self { client, variables: BTreeMap::new(), report: String::new() }
    }

    /// Makes a grant at the mock provider, as a person would, for an import called `name`.
    fn grant(&mut self, provider: &str, name: &str) {
        let app = self.client.world.keys().legacy_clients[provider].clone();
        let form =
            |pairs: &[(&str, &str)]| form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        let redirect = "https://app.example/cb";
        let query = form(&[
            ("client_id", &app.client_id),
            ("redirect_uri", redirect),
            ("response_type", "code"),
            ("scope", "read write"),
        ]);
        let consented = self.client.call(Api::Provider, "GET", &format!("/{provider}.example/authorize?{query}"));
        let code = consented.header("location").unwrap().split("code=").nth(1).unwrap().to_owned();
        let body = form(&[
            ("grant_type", "authorization_code"),
            ("client_id", &app.client_id),
            ("client_secret", &app.client_secret),
            ("redirect_uri", redirect),
            ("code", &code),
        ]);
        let call = Call::new("POST", &format!("/{provider}.example/token"))
            .with_body("application/x-www-form-urlencoded", body);
        let answer = self.client.ask(Api::Provider, &call).value();
        for kind in ["access", "refresh"] {
            let token = answer[format!("{kind}_token")].as_str().unwrap().to_owned();
            self.variables.insert(format!("{kind} {name}"), token);
        }
    }

    /// Fills `{…}` in a text.
    fn fill(&mut self, text: &str, provider: &str) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            filled.push_str(before);
            match after.split_once('}').filter(|(name, _)| self.know(name, provider)) {
                Some((name, end)) => {
                    filled.push_str(&self.variables[name]);
                    rest = end;
                }
                None => {
                    filled.push('{');
                    rest = after;
                }
            }
        }
        filled + rest
    }

    /// Whether `name` is a variable, made now if need be.
    fn know(&mut self, name: &str, provider: &str) -> bool {
        if self.variables.contains_key(name) && !name.starts_with("in ") {
            return true;
        }
        let keys = self.client.world.keys();
        let value = match name.split_once(' ') {
            Some(("access" | "refresh", grant)) => {
                self.grant(provider, grant);
                return true;
            }
            Some(("client", of)) => keys.legacy_clients[of].client_id.clone(),
            Some(("secret", of)) => keys.legacy_clients[of].client_secret.clone(),
            Some(("in", minutes)) => {
                let minutes: i64 = minutes.trim_end_matches('m').parse().unwrap();
                self.client.world.now().plus_ms(minutes * MINUTE_MS).to_rfc3339()
            }
            _ => return false,
        };
        self.variables.insert(name.to_owned(), value);
        true
    }

    fn authorization(&self, key: Option<&str>) -> Option<String> {
        let keys = self.client.world.keys();
        Some(match key {
            Some("none") => return None,
            Some("malformed") => "Bearer not-a-uuid".to_owned(),
            Some("unknown") => "Bearer 00000000-0000-4000-8000-000000000000".to_owned(),
            Some("session") => format!("Bearer {}", self.variables["first session"]),
            Some("scoped") => format!("Bearer {}", keys.nango_verify_key),
            _ => format!("Bearer {}", keys.nango_api_key),
        })
    }

    fn send(&mut self, step: &Step, line: &str) -> Reply {
        let provider =
            step.body.as_ref().and_then(|body| body["provider_config_key"].as_str()).map_or("mock-oauth2", |key| {
                match key {
                    "mock-basic" => "mock-oauth2-basic",
                    "mock-google" => "mock-google",
                    _ => "mock-oauth2",
                }
            });
        let line = self.fill(line, provider);
        let (method, target) = line.split_once(' ').unwrap();
        let mut call = Call::new(method, target);
        if let Some(authorization) = self.authorization(step.key.as_deref()) {
            call = call.with_header("authorization", &authorization);
        }
        if let Some(body) = &step.body {
            let text = self.fill(&body.to_string(), provider);
            call = match &step.content_type {
                Some(kind) => call.with_body(kind, body.as_str().unwrap().as_bytes().to_vec()),
                None => call.with_body("application/json", text),
            };
        }
        self.client.ask(Api::Nango, &call)
    }

    fn wrong(&mut self, step: &Step, what: &str) {
        let _ = writeln!(self.report, "{:?} {}: {what}", step.recorded, step.name);
    }

    fn check(&mut self, step: &Step, reply: &Reply) {
        if reply.status != step.status {
            self.wrong(step, &format!("status {} instead of {}: {}", reply.status, step.status, reply.value()));
            return;
        }
        let answered = reply.header("content-type").unwrap_or_default();
        let expected = step.answered_type.as_deref().unwrap_or("application/json; charset=utf-8");
        if step.recorded.is_some() && answered != expected {
            self.wrong(step, &format!("content type {answered} instead of {expected}"));
        }
        if step.recorded.is_some() {
            let expected: Vec<&str> =
                step.headers.as_ref().map_or(LIMITS.to_vec(), |names| names.iter().map(String::as_str).collect());
            for name in [&LIMITS[..], &["location", "retry-after"]].concat() {
                if reply.header(name).is_some() != expected.contains(&name) {
                    self.wrong(step, &format!("header {name} is there or is not: {:?}", reply.header(name)));
                }
            }
            if reply.header(LIMITS[0]).is_some_and(|limit| limit != "200") {
                self.wrong(step, "the limit is not 200");
            }
        }
        let body = reply.value();
        if let Some(shape) = &step.shape {
            let mut differences = Vec::new();
            compare(shape, &body, "", &mut differences);
            for difference in differences {
                self.wrong(step, &difference);
            }
        }
        for (place, value) in &step.values {
            let value: Value = serde_json::from_str(&self.fill(&value.to_string(), "")).unwrap();
            if body.pointer(place) != Some(&value) {
                self.wrong(step, &format!("{place} is {:?} instead of {value}", body.pointer(place)));
            }
        }
        if let Some(fields) = &step.location_query {
            let target = reply.header("location").unwrap_or_default();
            let query = target.split_once('?').map_or("", |(_, query)| query);
            let names: Vec<_> = form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name.into_owned()).collect();
            if names != *fields {
                self.wrong(step, &format!("the redirect asks for {names:?}"));
            }
            self.variables.insert("redirect".into(), target.to_owned());
        }
    }

    /// What Nango sent by now, each webhook answered with 200 at once.
    fn drain(&mut self) -> Vec<OutboundWebhook> {
        let mut sent = Vec::new();
        loop {
            let batch = self.client.world.take_outbound();
            if batch.is_empty() {
                return sent;
            }
            for webhook in &batch {
                self.client.world.webhook_answered(webhook.id, Some(200));
            }
            sent.extend(batch);
        }
    }

    fn check_webhook(&mut self, step: &Step, expected: &Webhook, sent: Option<&OutboundWebhook>) {
        let Some(sent) = sent else { return self.wrong(step, "a webhook is missing") };
        let body = self.fill(&expected.body, "");
        if sent.body != body.as_bytes() {
            self.wrong(step, &format!("webhook body {} instead of {body}", String::from_utf8_lossy(&sent.body)));
        }
        if !sent.url.ends_with(&expected.to) {
            self.wrong(step, &format!("webhook to {} instead of {}", sent.url, expected.to));
        }
        let header = |name: &str| sent.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        for (name, signature) in [("x-nango-hmac-sha256", &expected.hmac), ("x-nango-signature", &expected.legacy)] {
            let given = header(name);
            if given.is_none() || signature.as_ref().is_some_and(|s| Some(s) != given.as_ref()) {
                self.wrong(step, &format!("{name} is {given:?}"));
            }
        }
        if !header("user-agent").is_some_and(|agent| agent.starts_with("nango/0.71.4 (")) {
            self.wrong(step, "another user agent");
        }
    }

    /// Plays the steps that only bring the world somewhere. `true`: this was one.
    fn prepare(&mut self, step: &Step) -> bool {
        if let Some(what) = &step.told {
            let script = json!({"integration": "mock-oauth2", "token_answer": what});
            self.client.world.add_token_script(serde_json::from_value(script).unwrap()).unwrap();
        } else if let Some(key) = &step.consent {
            let target = format!("/oauth/connect/{key}?connect_session_token={}", self.variables["session"]);
            let redirect = self.client.nango("GET", &target).header("location").unwrap().to_owned();
            self.variables.insert("redirect".into(), redirect);
            self.authorize();
            let target = self.fill("/oauth/callback?code={code}&state={state}", "");
            assert_eq!(self.client.nango("GET", &target).status, 200);
            let body: Value = serde_json::from_slice(&self.drain()[0].body).unwrap();
            self.variables.insert("consented".into(), body["connectionId"].as_str().unwrap().to_owned());
        } else if step.authorize.is_some() {
            self.authorize();
        } else if let Some(id) = &step.exhaust {
            self.client.world.nango.exhaust("mock", id);
        } else if let Some(times) = step.burst {
            for _ in 0..times {
                self.client.nango("GET", "/connections?limit=1");
            }
        } else {
            return false;
        }
        true
    }

    /// The person consents where the redirect led, and comes back with a code.
    fn authorize(&mut self) {
        let target = self.variables["redirect"].strip_prefix("https:/").unwrap().to_owned();
        let back = self.client.call(Api::Provider, "GET", &target);
        let query = back.header("location").unwrap().split_once('?').unwrap().1.to_owned();
        self.variables.extend(form_urlencoded::parse(query.as_bytes()).into_owned());
    }

    fn play(&mut self, step: &Step) {
        self.client.advance(SECOND_MS);
        if self.prepare(step) {
            return;
        }
        if let Some(line) = &step.request {
            let reply = self.send(step, line);
            self.check(step, &reply);
            for (name, place) in &step.save {
                let value = reply.value().pointer(place).and_then(Value::as_str).unwrap_or_default().to_owned();
                self.variables.insert(name.clone(), value);
            }
            if step.save_session {
                let token = reply.value()["data"]["token"].as_str().unwrap_or_default().to_owned();
                self.variables.entry("first session".into()).or_insert_with(|| token.clone());
                self.variables.insert("session".into(), token);
            }
        }
        if let Some(fields) = step.token_call.as_ref().filter(|fields| fields.contains(&"refresh_token".to_owned())) {
            let form = crate::sandbox::nango::refresh_form("r", "c", "s");
            let names: Vec<_> = form_urlencoded::parse(form.as_bytes()).map(|(name, _)| name.into_owned()).collect();
            if names != *fields {
                self.wrong(step, &format!("Nango sends the provider {names:?}"));
            }
        }
        if let Some(deliveries) = &step.deliveries {
            let began = self.client.world.now();
            for expected in deliveries {
                self.client.world.advance_to(began.plus_ms(expected.after_s * SECOND_MS));
                let sent = self.client.world.take_outbound();
                self.check_webhook(step, expected, sent.first());
                sent.iter().for_each(|w| self.client.world.webhook_answered(w.id, Some(expected.answered)));
            }
            self.client.advance(MINUTE_MS);
            self.drain();
        } else if !step.keep_webhooks {
            let sent = self.drain();
            if step.recorded.is_some() {
                let expected = step.webhooks.as_deref().unwrap_or_default();
                if sent.len() != expected.len() {
                    self.wrong(step, &format!("{} webhooks instead of {}", sent.len(), expected.len()));
                }
                for (i, expected) in expected.iter().enumerate() {
                    self.check_webhook(step, expected, sent.get(i));
                }
            }
        }
    }
}

/// Holds an answer against recorded names and types.
fn compare(shape: &Value, body: &Value, at: &str, differences: &mut Vec<String>) {
    match (shape, body) {
        (Value::Object(shape), Value::Array(items)) if shape.contains_key("any of") => {
            let known = shape["any of"].as_array().unwrap();
            for (i, item) in items.iter().enumerate() {
                let fits = known.iter().any(|shape| {
                    let mut found = Vec::new();
                    compare(shape, item, "", &mut found);
                    found.is_empty()
                });
                if !fits {
                    differences.push(format!("{at}/{i} has a shape that was never recorded: {item}"));
                }
            }
            if items.is_empty() {
                differences.push(format!("{at} is empty"));
            }
        }
        (Value::Object(shape), Value::Object(fields)) => {
            for name in shape.keys().chain(fields.keys()) {
                let place = format!("{at}/{name}");
                match (shape.get(name), fields.get(name)) {
                    (Some(shape), Some(value)) => compare(shape, value, &place, differences),
                    (Some(_), None) => differences.push(format!("{place} is missing")),
                    _ => differences.push(format!("{place} was never recorded")),
                }
            }
        }
        (Value::Array(shapes), Value::Array(items)) => {
            if shapes.len() != items.len() {
                differences.push(format!("{at} has {} items instead of {}", items.len(), shapes.len()));
            }
            for (i, (shape, item)) in shapes.iter().zip(items).enumerate() {
                compare(shape, item, &format!("{at}/{i}"), differences);
            }
        }
        (Value::String(kind), value) if kind_fits(kind, value) => {}
        _ => differences.push(format!("{at} is {body} instead of {shape}")),
    }
}

fn kind_fits(kind: &str, value: &Value) -> bool {
    let date = |text: &str, zone: &str| {
        text.ends_with(zone) && Timestamp::parse(text).is_ok() && text.as_bytes().get(10) == Some(&b'T')
    };
    match (kind, value) {
        ("null", Value::Null) | ("bool", Value::Bool(_)) | ("number", Value::Number(_)) => true,
        ("string", Value::String(text)) => !date(text, "Z") && !date(text, "+00:00"),
        ("date Z", Value::String(text)) => date(text, "Z"),
        ("date +00:00", Value::String(text)) => date(text, "+00:00"),
        ("uuid", Value::String(text)) => text.len() == 36 && text.matches('-').count() == 4,
        _ => false,
    }
}

#[test]
fn every_recorded_exchange_gives_the_same_again() {
    let recordings: Recordings = serde_json::from_str(FIXTURE).unwrap();
    assert_eq!(recordings.steps.iter().filter(|s| s.recorded.is_some()).count(), 67);
    let mut replay = Replay::new(&recordings.signing_key);
    for step in &recordings.steps {
        replay.play(step);
    }
    assert!(replay.report.is_empty(), "{}", replay.report);
}
