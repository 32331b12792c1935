//! Answers told in advance: what the next matching requests get instead of the usual.
//!
//! A fault of [`super::faults`] strikes by chance over a long run; a script strikes exactly once
//! (or `times`) where a person or a test asked for it.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::ports::Api;

use super::composio::Refused;
use super::http::{Call, Reply};
use super::world::World;

/// How a scripted answer differs from the usual one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Twist {
    /// The API's own 429 with `Retry-After: 1`; nothing happens.
    RateLimited,
    /// The same without the header.
    RateLimitedBare,
    /// A 500 in the API's own envelope; nothing happens.
    FailBefore,
    /// What was asked for happens, and the answer is a 500.
    FailAfter,
    /// A 400 in the API's own envelope: asking again cannot help; nothing happens.
    Reject,
    /// 200 with an HTML page; nothing happens.
    Html,
    /// Composio: 409, another writer holds the account; nothing happens.
    LeaseHeld,
    /// Composio's proxy: 200 outside, 401 inside.
    InnerUnauthorized,
}

/// How the next token answers of a provider differ (nango.md §10.7). They reach every custodian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenTwist {
    /// 400 `invalid_grant`, although the grant is alive.
    InvalidGrant,
    /// 401 `invalid_client`.
    InvalidClient,
    /// 429.
    TooManyRequests,
    /// 503.
    Unavailable,
    /// An HTML page.
    Html,
    /// 200 with a body that holds no token.
    NoToken,
    /// A token whose life is not told.
    NoExpiry,
    /// The refresh token stays in force and is not sent.
    KeepRefreshToken,
    /// A new refresh token, the old one is spent.
    Rotate,
    /// The answer takes longer than Nango's lock of 10 s, so another of its processes asks as well
    /// (nango.md §6.2). No other custodian has such a lock.
    Slow,
}

/// One entry of `POST /_sandbox/script`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// `nango`, `composio`, `cloudflare`, `gateway` or `provider`.
    pub api: String,
    /// Only requests of this method.
    pub method: Option<String>,
    /// Only requests whose path holds this text.
    pub path: Option<String>,
    pub answer: Twist,
    /// How many requests it strikes.
    #[serde(default = "once")]
    pub times: u32,
}

/// One entry of `POST /_sandbox/script` for a token endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenScript {
    /// The integration key whose provider answers.
    pub integration: String,
    pub token_answer: TokenTwist,
    #[serde(default = "once")]
    pub times: u32,
}

const fn once() -> u32 {
    1
}

#[derive(Clone, Debug, Default)]
pub(super) struct Scripts {
    answers: Vec<Script>,
    tokens: Vec<TokenScript>,
}

impl Scripts {
    pub fn add(&mut self, script: Script) {
        self.answers.push(script);
    }

    pub fn add_token(&mut self, script: TokenScript) {
        self.tokens.push(script);
    }

    /// The twist of this request, if one was told; each use counts.
    fn take(&mut self, api: Api, call: &Call) -> Option<Twist> {
        let place = self.answers.iter().position(|script| {
            script.times > 0
                && script.api == api.name()
                && script.method.as_ref().is_none_or(|m| m.eq_ignore_ascii_case(&call.method))
                && script.path.as_ref().is_none_or(|p| call.path.contains(p.as_str()))
        })?;
        let script = &mut self.answers[place];
        script.times -= 1;
        let answer = script.answer;
        self.answers.retain(|script| script.times > 0);
        Some(answer)
    }

    /// The twist of this provider's next token answer; slowness is asked for apart.
    pub fn take_token(&mut self, integration: &str) -> Option<TokenTwist> {
        self.take_token_if(integration, |answer| answer != TokenTwist::Slow)
    }

    /// Whether this provider's next token answer is slow.
    pub fn take_slow(&mut self, integration: &str) -> bool {
        self.take_token_if(integration, |answer| answer == TokenTwist::Slow).is_some()
    }

    fn take_token_if(&mut self, integration: &str, wanted: fn(TokenTwist) -> bool) -> Option<TokenTwist> {
        let place = self
            .tokens
            .iter()
            .position(|script| script.times > 0 && script.integration == integration && wanted(script.token_answer))?;
        let script = &mut self.tokens[place];
        script.times -= 1;
        let answer = script.token_answer;
        self.tokens.retain(|script| script.times > 0);
        Some(answer)
    }
}

/// Why a script can never strike.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    #[error("no API is called `{0}`; there are nango, composio, cloudflare, gateway and provider")]
    UnknownApi(String),
    #[error("this world has no integration `{0}`")]
    UnknownIntegration(String),
}

impl World {
    /// Tells what the next matching requests get.
    ///
    /// # Errors
    /// When there is no such API.
    pub fn add_script(&mut self, script: Script) -> Result<(), ScriptError> {
        if !Api::ALL.iter().any(|api| api.name() == script.api) {
            return Err(ScriptError::UnknownApi(script.api));
        }
        self.scripts.add(script);
        Ok(())
    }

    /// Tells what a provider's next token answers are.
    ///
    /// # Errors
    /// When the world has no such integration.
    pub fn add_token_script(&mut self, script: TokenScript) -> Result<(), ScriptError> {
        if self.providers.find_integration(&script.integration).is_none() {
            return Err(ScriptError::UnknownIntegration(script.integration));
        }
        self.scripts.add_token(script);
        Ok(())
    }

    /// Answers a request, as told or as usual.
    pub(super) fn answer_scripted(&mut self, api: Api, call: &Call) -> Reply {
        let Some(twist) = self.scripts.take(api, call) else { return self.answer_plainly(api, call) };
        match twist {
            Twist::RateLimited => self.limited(api, call).with_header("retry-after", 1),
            Twist::RateLimitedBare => self.limited(api, call),
            Twist::FailBefore => self.failed(api),
            Twist::Reject => self.rejected(api),
            Twist::FailAfter => {
                self.answer_plainly(api, call);
                self.failed(api)
            }
            Twist::Html => Reply::html(200, "<!doctype html><html><head><title>Sign in</title></head></html>"),
            Twist::LeaseHeld => self.composio_refuse(&Refused::lease_held()),
            Twist::InnerUnauthorized => {
                let mut body = self.answer_plainly(api, call).value();
                body["status"] = 401.into();
                body["data"] = json!({"error": "invalid_token"});
                Reply::json(200, &body)
            }
        }
    }

    fn limited(&self, api: Api, call: &Call) -> Reply {
        let body = match api {
            Api::Nango => json!({"error": {"code": "too_many_request", "method": call.method, "path": call.path}}),
            Api::Composio => json!({"message": "Rate limit exceeded"}),
            Api::Cloudflare => envelope(971, "Please wait and consider throttling your request speed"),
            Api::Gateway | Api::Provider => json!({"error": "rate_limited"}),
        };
        Reply::json(429, &body)
    }

    fn rejected(&self, api: Api) -> Reply {
        let body = match api {
            Api::Nango => json!({"error": {"code": "invalid_request"}}),
            Api::Composio => return self.composio_refuse(&Refused::new(400, "HTTP_BadRequest", "Bad request")),
            Api::Cloudflare => envelope(10000, "Bad request"),
            Api::Gateway | Api::Provider => json!({"error": "bad_request"}),
        };
        Reply::json(400, &body)
    }

    fn failed(&self, api: Api) -> Reply {
        let body = match api {
            Api::Nango => return self.nango_incident(),
            Api::Composio => return self.composio_refuse(&Refused::new(500, "HTTP_InternalServerError", "Failed")),
            Api::Cloudflare => envelope(10001, "Service temporarily unavailable"),
            Api::Gateway | Api::Provider => json!({"error": "server_error"}),
        };
        Reply::json(500, &body)
    }
}

fn envelope(code: u32, message: &str) -> Value {
    json!({"success": false, "errors": [{"code": code, "message": message}], "messages": [], "result": null})
}
