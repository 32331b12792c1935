//! Reads a provider's refusal: is the grant dead, was a race lost, or is something else wrong?
//!
//! `invalid_grant` alone decides nothing. The rules of the catalogue are tried in order and the
//! first match wins; what none of them knows falls back to the rules of OAuth, and then to
//! *ambiguous*, which changes nothing until somebody has looked.

use serde_json::Value;

use super::{ErrorRule, Integration, Reuse, Rotation};

/// What a failure says about the grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The grant is gone.
    Permanent,
    /// The grant is untouched: try later.
    Transient,
    /// Client, redirect, policy or approval must be put right; asking the user again would fail the same way.
    Config,
    /// A clock is wrong.
    ClockSkew,
    /// It may be a race between two refreshers.
    Ambiguous,
}

impl Class {
    pub const ALL: [Self; 5] = [Self::Permanent, Self::Transient, Self::Config, Self::ClockSkew, Self::Ambiguous];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Transient => "transient",
            Self::Config => "config",
            Self::ClockSkew => "clock-skew",
            Self::Ambiguous => "ambiguous",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.name() == text)
    }
}

/// During which call it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The token endpoint.
    Token,
    /// The provider's API.
    Api,
    /// The consent page and its way back.
    Consent,
    /// Token introspection.
    Introspect,
}

impl Phase {
    pub const ALL: [Self; 4] = [Self::Token, Self::Api, Self::Consent, Self::Introspect];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Api => "api",
            Self::Consent => "consent",
            Self::Introspect => "introspect",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == text)
    }
}

/// A call that a provider refused or did not answer.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    pub phase: Phase,
    /// `None`: no answer.
    pub status: Option<u16>,
    pub headers: &'a [(String, String)],
    pub body: &'a str,
    /// The request may have reached the provider.
    pub sent: bool,
    /// We hold a refresh token of this grant.
    pub has_refresh_token: bool,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Advice {
    /// Mark for consent, stop refreshing, leave the other custodian alone.
    Reconsent,
    /// Wait with jitter and try again.
    BackOff,
    /// An access token died, which says nothing of the grant: refresh once and judge that answer.
    RefreshOnce,
    /// Hold everything of this OAuth client for an operator.
    HoldClient,
    /// Put the clock right.
    FixClock,
    /// Read the newest refresh token again. Another one: the race was lost, use it. The same one:
    /// whoami, then one resend after a minute.
    RereadThenResend,
    /// As above, and never resend: presenting a spent token can end the live family.
    RereadNeverResend,
}

/// A failure, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classified {
    pub class: Class,
    pub advice: Advice,
    /// Which of the integration's rules matched, from 0.
    pub rule: Option<usize>,
    pub meaning: String,
}

/// Judges a failure by the rules of its integration.
pub fn classify(integration: &Integration, failure: &Failure<'_>) -> Classified {
    let answer = Answer::new(failure);
    let found = failure.status.and_then(|status| {
        integration.error.iter().enumerate().find(|(_, rule)| {
            (rule.any_status || rule.status == status)
                && (rule.phase == Phase::Introspect.name()) == (failure.phase == Phase::Introspect)
                && answer.matches(&rule.matcher)
        })
    });
    let (class, phase, rule, meaning) = match found {
        Some((at, rule)) => {
            let class = Class::parse(&rule.class).unwrap_or(Class::Ambiguous);
            let phase = Phase::parse(&rule.phase).unwrap_or(failure.phase);
            (class, phase, Some(at), rule.meaning.clone())
        }
        None => {
            let (class, meaning) = fallback(integration, failure, &answer);
            (class, failure.phase, None, meaning.to_owned())
        }
    };
    // A hit at the API is no verdict about a grant that can still be refreshed.
    let expired = rule.map_or(failure.status == Some(401), |at| integration.error[at].refresh);
    let about_access_token = phase == Phase::Api
        && failure.has_refresh_token
        && (class == Class::Permanent || (class == Class::Transient && expired));
    let advice = if about_access_token {
        Advice::RefreshOnce
    } else {
        match class {
            Class::Permanent => Advice::Reconsent,
            Class::Transient => Advice::BackOff,
            Class::Config => Advice::HoldClient,
            Class::ClockSkew => Advice::FixClock,
            Class::Ambiguous => match integration.reuse {
                Reuse::RevokesFamily | Reuse::Unknown => Advice::RereadNeverResend,
                Reuse::Harmless | Reuse::Grace => Advice::RereadThenResend,
            },
        }
    };
    let class = if about_access_token { Class::Transient } else { class };
    Classified { class, advice, rule, meaning }
}

/// Where a spent refresh token may be lost with the answer that carried its successor.
fn single_use(integration: &Integration) -> bool {
    integration.rotation != Rotation::Never && integration.reuse != Reuse::Harmless
}

fn fallback(integration: &Integration, failure: &Failure<'_>, answer: &Answer<'_>) -> (Class, &'static str) {
    match failure.status {
        None if !failure.sent => return (Class::Transient, "the request never left"),
        Some(429) => return (Class::Transient, "too many requests"),
        Some(500..) | None if failure.phase == Phase::Token && single_use(integration) => {
            return (Class::Ambiguous, "no usable answer to a refresh that may have spent the token");
        }
        Some(500..) | None => return (Class::Transient, "no usable answer; the refresh token is not spent by asking"),
        Some(_) => {}
    }
    let config = ["invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope"];
    if config.iter().any(|code| answer.matches(&format!("error={code}"))) {
        return (Class::Config, "the OAuth client, its flow or its scopes are set up wrong");
    }
    if failure.phase == Phase::Api && failure.status == Some(401) {
        return (Class::Transient, "the access token is refused");
    }
    (Class::Ambiguous, "not a known answer of this provider")
}

/// An answer in the form that rules are matched against.
struct Answer<'a> {
    headers: &'a [(String, String)],
    raw: &'a str,
    body: Value,
}

impl<'a> Answer<'a> {
    fn new(failure: &Failure<'a>) -> Self {
        let mut body = read_body(failure.body);
        // A refused consent comes back as the query of a redirect.
        if body.is_null()
            && let Some((_, location)) = failure.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("location"))
            && let Some((_, query)) = location.split_once('?')
        {
            body = form(query);
        }
        Self { headers: failure.headers, raw: failure.body, body }
    }

    fn matches(&self, matcher: &str) -> bool {
        matcher.split(" && ").all(|term| match Term::parse(term) {
            Some(term) => self.holds(&term),
            None => false,
        })
    }

    fn holds(&self, term: &Term<'_>) -> bool {
        match term {
            Term::Anything => true,
            Term::Compare { path: "body", how, value } => how.compare(self.raw, value),
            Term::Compare { path, how, value } => {
                if let Some(name) = path.strip_prefix("header.") {
                    let mut named = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
                    return named.any(|(_, have)| how.compare(have, value));
                }
                let mut found = Vec::new();
                collect(&self.body, path, &mut found);
                found.iter().any(|have| how.compare(have, value))
            }
        }
    }
}

/// One term of a matcher.
#[derive(Debug, PartialEq, Eq)]
enum Term<'a> {
    Anything,
    Compare { path: &'a str, how: How, value: &'a str },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Any of the alternatives between `|`.
    AnyOf,
    Prefix,
    /// Without regard to case.
    Contains,
}

impl How {
    fn compare(self, have: &str, want: &str) -> bool {
        match self {
            Self::AnyOf => want.split('|').any(|want| want == have),
            Self::Prefix => have.starts_with(want),
            Self::Contains => have.to_lowercase().contains(&want.to_lowercase()),
        }
    }
}

impl<'a> Term<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim();
        if text == "*" {
            return Some(Self::Anything);
        }
        let (left, value) = text.split_once('=')?;
        let (path, how) = match (left.strip_suffix('^'), left.strip_suffix('*')) {
            (Some(path), _) => (path, How::Prefix),
            (_, Some(path)) => (path, How::Contains),
            _ => (left, How::AnyOf),
        };
        let odd = |c: char| c.is_whitespace() || matches!(c, '*' | '^');
        if path.is_empty() || value.is_empty() || path.contains(odd) || path.split('.').any(str::is_empty) {
            return None;
        }
        Some(Self::Compare { path, how, value })
    }
}

/// Whether a rule can be used at all, and if not, why.
///
/// # Errors
/// A fragment that names what is wrong.
pub(super) fn check_rule(rule: &ErrorRule) -> Result<(), String> {
    for term in rule.matcher.split(" && ") {
        if Term::parse(term).is_none() {
            return Err(format!("`{term}` is not a term such as `error=invalid_grant`"));
        }
    }
    if Class::parse(&rule.class).is_none() {
        return Err(format!("`{}` is not a class", rule.class));
    }
    if Phase::parse(&rule.phase).is_none() {
        return Err(format!("`{}` is not a phase", rule.phase));
    }
    Ok(())
}

/// Collects the scalars under a path such as `error.status`, `[0].errorCode` or `Errors[].Code`.
fn collect(value: &Value, path: &str, out: &mut Vec<String>) {
    if path.is_empty() {
        match value {
            Value::String(text) => out.push(text.clone()),
            Value::Number(_) | Value::Bool(_) => out.push(value.to_string()),
            _ => {}
        }
        return;
    }
    let path = path.strip_prefix('.').unwrap_or(path);
    if let Some((index, rest)) = path.strip_prefix('[').and_then(|p| p.split_once(']')) {
        let Value::Array(items) = value else { return };
        match index.parse::<usize>() {
            Ok(index) => items.get(index).into_iter().for_each(|item| collect(item, rest, out)),
            Err(_) => items.iter().for_each(|item| collect(item, rest, out)),
        }
        return;
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    if let Some(next) = value.get(&path[..end]) {
        collect(next, &path[end..], out);
    }
}

/// JSON, else XML (AWS query APIs), else a form (GitHub without an `Accept`).
fn read_body(body: &str) -> Value {
    if let Ok(value) = serde_json::from_str(body) {
        return value;
    }
    let trimmed = body.trim();
    if trimmed.starts_with('<') {
        return xml_error(trimmed);
    }
    if trimmed.contains('=') && !trimmed.contains(char::is_whitespace) { form(trimmed) } else { Value::Null }
}

fn form(text: &str) -> Value {
    let pairs = form_urlencoded::parse(text.as_bytes());
    Value::Object(pairs.map(|(name, value)| (name.into_owned(), Value::String(value.into_owned()))).collect())
}

/// `Code` and `Message` of the first `<Error>` element, which is all that AWS's errors have.
fn xml_error(text: &str) -> Value {
    let inside = |text: &'_ str, name: &str| -> Option<String> {
        let (_, after) = text.split_once(&format!("<{name}>"))?;
        let (inner, _) = after.split_once(&format!("</{name}>"))?;
        Some(inner.trim().to_owned())
    };
    let Some(error) = inside(text, "Error") else { return Value::Null };
    let field = |name| inside(&error, name).map_or(Value::Null, Value::String);
    serde_json::json!({ "Error": { "Code": field("Code"), "Message": field("Message") } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    fn failure<'a>(phase: Phase, status: u16, body: &'a str, headers: &'a [(String, String)]) -> Failure<'a> {
        Failure { phase, status: Some(status), headers, body, sent: true, has_refresh_token: true }
    }

    fn class(key: &str, phase: Phase, status: u16, body: &str) -> (Class, Advice) {
        let catalogue = Catalogue::built_in();
        let found = classify(catalogue.integration(key).unwrap(), &failure(phase, status, body, &[]));
        (found.class, found.advice)
    }

    /// Puts a value at a path, as [`collect`] would find it.
    fn put(root: &mut Value, path: &str, leaf: Value) {
        let path = path.strip_prefix('.').unwrap_or(path);
        if path.is_empty() {
            *root = leaf;
        } else if let Some((_, rest)) = path.strip_prefix('[').and_then(|p| p.split_once(']')) {
            if !root.is_array() {
                *root = Value::Array(vec![Value::Null]);
            }
            put(&mut root[0], rest, leaf);
        } else {
            let end = path.find(['.', '[']).unwrap_or(path.len());
            if !root.is_object() {
                *root = Value::Object(serde_json::Map::new());
            }
            put(&mut root[&path[..end]], &path[end..], leaf);
        }
    }

    #[test]
    fn every_rule_of_every_provider_is_reached_with_each_of_its_alternatives() {
        let mut reached = 0;
        for (key, integration) in &Catalogue::built_in().integrations {
            for (at, rule) in integration.error.iter().enumerate() {
                let terms: Vec<Term<'_>> = rule.matcher.split(" && ").map(|t| Term::parse(t).unwrap()).collect();
                let most = terms.iter().map(|t| match t {
                    Term::Compare { how: How::AnyOf, value, .. } => value.split('|').count(),
                    _ => 1,
                });
                for alternative in 0..most.max().unwrap() {
                    let (mut body, mut raw, mut headers) = (Value::Null, None, Vec::new());
                    for term in &terms {
                        let Term::Compare { path, how, value } = term else { continue };
                        let text = match how {
                            How::AnyOf => {
                                let all: Vec<&str> = value.split('|').collect();
                                all[alternative.min(all.len() - 1)].to_owned()
                            }
                            How::Prefix => format!("{value} and more"),
                            How::Contains => format!("More {} more", value.to_uppercase()),
                        };
                        if *path == "body" {
                            raw = Some(text);
                        } else if let Some(name) = path.strip_prefix("header.") {
                            headers.push((name.to_lowercase(), text));
                        } else {
                            let leaf = serde_json::from_str(&text).unwrap_or(Value::String(text));
                            put(&mut body, path, leaf);
                        }
                    }
                    let body = raw.unwrap_or_else(|| body.to_string());
                    let phase = Phase::parse(&rule.phase).unwrap();
                    let found = classify(integration, &failure(phase, rule.status, &body, &headers));
                    assert_eq!(found.rule, Some(at), "{key}: {} {body}", rule.matcher);
                    reached += 1;
                }
            }
        }
        assert!(reached > 150, "{reached}");
    }

    #[test]
    fn the_same_code_means_different_things_at_different_providers() {
        use {Advice::*, Class::*};
        let table = [
            (
                "salesforce",
                400,
                r#"{"error":"invalid_grant","error_description":"Token request is already being processed"}"#,
                Transient,
                BackOff,
            ),
            (
                "salesforce",
                400,
                r#"{"error":"invalid_grant","error_description":"expired access/refresh token"}"#,
                Permanent,
                Reconsent,
            ),
            (
                "salesforce",
                400,
                r#"{"error":"invalid_grant","error_description":"something new"}"#,
                Ambiguous,
                RereadNeverResend,
            ),
            ("gong-oauth", 400, r#"{"error":"invalid_grant"}"#, Ambiguous, RereadNeverResend),
            ("gong-oauth", 400, "Refresh token code is invalid", Ambiguous, RereadNeverResend),
            (
                "google",
                400,
                r#"{"error":"invalid_grant","error_description":"Bad Request"}"#,
                Ambiguous,
                RereadThenResend,
            ),
            ("aws", 400, r#"{"error":"invalid_grant"}"#, Permanent, Reconsent),
            (
                "linkedin",
                400,
                r#"{"error":"invalid_request","error_description":"The provided authorization grant or refresh token is invalid, expired or revoked."}"#,
                Permanent,
                Reconsent,
            ),
            ("linkedin", 400, r#"{"error":"invalid_request","error_description":"redirect"}"#, Config, HoldClient),
            ("slack", 200, r#"{"ok":false,"error":"invalid_refresh_token"}"#, Ambiguous, RereadThenResend),
            ("github", 200, "error=bad_refresh_token&error_description=x", Ambiguous, RereadThenResend),
            ("microsoft", 400, r#"{"error":"invalid_grant","error_codes":[50057]}"#, Permanent, Reconsent),
            ("microsoft-ads", 400, r#"{"error":"temporarily_unavailable"}"#, Transient, BackOff),
            ("hubspot", 400, r#"{"error":"unsupported_grant_type"}"#, Config, HoldClient),
            ("hubspot", 418, "<html>", Ambiguous, RereadThenResend),
        ];
        for (key, status, body, want, advice) in table {
            assert_eq!(class(key, Phase::Token, status, body), (want, advice), "{key} {body}");
        }
    }

    #[test]
    fn an_api_error_is_no_verdict_while_a_refresh_token_is_held() {
        let body = r#"{"message":"Bad credentials"}"#;
        assert_eq!(class("github", Phase::Api, 401, body), (Class::Transient, Advice::RefreshOnce));
        let catalogue = Catalogue::built_in();
        let without = Failure { has_refresh_token: false, ..failure(Phase::Api, 401, body, &[]) };
        let found = classify(catalogue.integration("github").unwrap(), &without);
        assert_eq!((found.class, found.advice), (Class::Permanent, Advice::Reconsent));
        assert_eq!(class("slack", Phase::Api, 200, r#"{"ok":false,"error":"ratelimited"}"#).1, Advice::BackOff);
        assert_eq!(class("slack", Phase::Api, 200, r#"{"ok":false,"error":"token_expired"}"#).1, Advice::RefreshOnce);
        assert_eq!(class("gong-oauth", Phase::Api, 401, "").1, Advice::RefreshOnce);
    }

    #[test]
    fn silence_is_ambiguous_only_where_the_token_may_be_spent() {
        let catalogue = Catalogue::built_in();
        let silence = Failure { status: None, ..failure(Phase::Token, 0, "", &[]) };
        for (key, want) in [
            ("gong-oauth", Class::Ambiguous),
            ("slack", Class::Ambiguous),
            ("google", Class::Transient),
            ("microsoft", Class::Transient),
        ] {
            let integration = catalogue.integration(key).unwrap();
            assert_eq!(classify(integration, &silence).class, want, "{key}");
            let unsent = Failure { sent: false, ..silence };
            assert_eq!(classify(integration, &unsent).class, Class::Transient, "{key}");
            let server = Failure { status: Some(502), body: "<html>bad gateway</html>", ..silence };
            assert_eq!(classify(integration, &server).class, want, "{key}");
        }
    }

    #[test]
    fn introspection_rules_do_not_judge_other_calls() {
        assert_eq!(class("hubspot", Phase::Introspect, 200, r#"{"active":false}"#).0, Class::Permanent);
        assert_eq!(class("hubspot", Phase::Api, 200, r#"{"active":false}"#).0, Class::Ambiguous);
    }

    #[test]
    fn aws_answers_in_xml_and_a_refused_consent_in_a_redirect() {
        let xml = "<ErrorResponse><Error><Code>RequestExpired</Code><Message>x</Message></Error></ErrorResponse>";
        assert_eq!(class("aws", Phase::Api, 400, xml), (Class::ClockSkew, Advice::FixClock));
        let headers = [("Location".to_owned(), "https://x/cb?error=access_denied&state=1".to_owned())];
        let catalogue = Catalogue::built_in();
        let found = classify(catalogue.integration("github").unwrap(), &failure(Phase::Consent, 302, "", &headers));
        assert_eq!(found.class, Class::Transient);
    }

    #[test]
    fn terms_that_could_match_nothing_are_refused() {
        for bad in ["", "error", "=x", "error=", "a b=c", "a..b=c", "*x"] {
            assert_eq!(Term::parse(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_the_classifier_panic(status: u16, body in ".{0,200}", key in 0usize..10) {
            let catalogue = Catalogue::built_in();
            let integration = catalogue.integrations.values().nth(key).unwrap();
            classify(integration, &failure(Phase::Token, status, &body, &[]));
        }
    }
}
