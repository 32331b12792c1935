//! Alerts: what people must hear of, once, and when they want to.
//!
//! Nothing raises an alert beside the evidence: a note that the engine commits *is* the alert, if
//! its kind is one of [`Kind`]. So an alert is as durable as what it tells of, and a crash between
//! the two cannot come. [`Alerts::run_due`] makes alerts of new notes, folds repeats into one, and
//! sends what is due; each try is counted before it is made, so that after a crash in the middle
//! the message says that it may be a repeat.

mod quiet;
mod slack;

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::json;

use crate::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, Timestamp, format_duration_ms};
use crate::store::{AlertRow, Lead, NewsKind, Store, StoreResult};

pub use quiet::{NotQuietHours, QuietHours};
pub use slack::{SendError, Sent, Slack, SlackError};

/// The same subject is told again only after this long without it.
const REPEAT_MS: i64 = HOUR_MS;

/// What is older than this is no news any more.
const NEWS_MS: i64 = DAY_MS;

/// Alerts in one message.
const BATCH: u32 = 20;

/// The longest time between looks.
const LOOK_MS: i64 = 5 * SECOND_MS;

/// The lease under which one machine sends for all, and its length: longer than a message takes.
const LEAD: &str = "alerts";
const LEAD_MS: i64 = MINUTE_MS;

/// What alerts are about. The name is the kind of the note that makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A grant is gone: its user must connect again.
    DeadGrant,
    /// A grant cannot be used, and nobody can tell from here whether it is gone.
    GrantDoubt,
    /// Composio lost the grant of an account.
    AccountExpired,
    /// Somebody else wrote a token key in KV.
    ForeignWrite,
    /// A delivery was given up.
    DeadLetter,
    /// A token ended in KV before a newer one was there.
    MissedRefresh,
    /// The gateway would serve an expired token, or the target's does not work.
    SmokeStale,
    /// Both sides differ.
    Parity,
    /// An effect's outcome is unknown.
    Ambiguous,
    /// A sink is left alone after failures.
    CircuitOpen,
    CircuitClosed,
    /// No token can be read at Nango: it is out of reach, or refuses our key.
    ReadsStopped,
    ReadsServed,
    /// An API was out of reach; told when it is back.
    Outage,
    /// The gate's verdict changed.
    Gate,
    /// The journal or the intake log does not fit its hash chain.
    ChainBroken,
}

impl Kind {
    pub const ALL: [Self; 16] = [
        Self::DeadGrant,
        Self::GrantDoubt,
        Self::AccountExpired,
        Self::ForeignWrite,
        Self::DeadLetter,
        Self::MissedRefresh,
        Self::SmokeStale,
        Self::Parity,
        Self::Ambiguous,
        Self::CircuitOpen,
        Self::CircuitClosed,
        Self::ReadsStopped,
        Self::ReadsServed,
        Self::Outage,
        Self::Gate,
        Self::ChainBroken,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::DeadGrant => "dead-grant",
            Self::GrantDoubt => "grant-doubt",
            Self::AccountExpired => "account-expired",
            Self::ForeignWrite => "foreign-write",
            Self::DeadLetter => "dead-letter",
            Self::MissedRefresh => "missed-refresh",
            Self::SmokeStale => "smoke-stale",
            Self::Parity => "parity",
            Self::Ambiguous => "ambiguous",
            Self::CircuitOpen => "circuit-open",
            Self::CircuitClosed => "circuit-closed",
            Self::ReadsStopped => "reads-stopped",
            Self::ReadsServed => "reads-served",
            Self::Outage => "outage",
            Self::Gate => "gate",
            Self::ChainBroken => "chain-broken",
        }
    }

    /// The kind of a note; `None` for notes that nobody is told of.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it tells of something that went wrong, not of its end or of a verdict.
    pub const fn is_bad(self) -> bool {
        !matches!(self, Self::CircuitClosed | Self::Gate)
    }

    /// How long the same subject is not told again, ms. A change of the gate is never the same again:
    /// folded into the one before, it would leave people with a verdict that does not hold.
    const fn repeat_ms(self) -> i64 {
        match self {
            Self::Gate => 0,
            _ => REPEAT_MS,
        }
    }

    /// The kind that begins or ends what this one ends or begins. An alert of it about the same
    /// subject makes the next one of this kind an episode of its own, which is told.
    const fn counterpart(self) -> Option<Self> {
        match self {
            Self::CircuitOpen => Some(Self::CircuitClosed),
            Self::CircuitClosed => Some(Self::CircuitOpen),
            Self::ReadsStopped => Some(Self::ReadsServed),
            Self::ReadsServed => Some(Self::ReadsStopped),
            _ => None,
        }
    }

    /// Whether it is sent in quiet hours too: somebody is served badly, or soon will be.
    pub const fn is_urgent(self) -> bool {
        match self {
            Self::DeadGrant
            | Self::GrantDoubt
            | Self::ChainBroken
            | Self::AccountExpired
            | Self::ForeignWrite
            | Self::MissedRefresh
            | Self::SmokeStale
            | Self::CircuitOpen
            | Self::ReadsStopped => true,
            Self::DeadLetter
            | Self::Parity
            | Self::Ambiguous
            | Self::CircuitClosed
            | Self::ReadsServed
            | Self::Outage
            | Self::Gate => false,
        }
    }
}

/// The duty that brings alerts to people.
#[derive(Debug)]
pub struct Alerts {
    slack: Option<Slack>,
    quiet: Option<QuietHours>,
}

impl Alerts {
    /// Without a place to send them to, alerts are kept and shown in the status.
    pub fn new(slack: Option<Slack>, quiet: Option<QuietHours>) -> Self {
        Self { slack, quiet }
    }

    /// Makes alerts of what is new and sends what is due. Returns when to look again.
    ///
    /// # Errors
    /// Only when the store fails.
    pub async fn run_due(&self, store: &Store, now: Timestamp) -> StoreResult<Timestamp> {
        // Of several machines one sends.
        if let Lead::Theirs { until } = store.lead(LEAD, now, now.plus_ms(LEAD_MS)).await? {
            return Ok(until);
        }
        let kinds = Kind::ALL.map(|kind| NewsKind {
            name: kind.name(),
            repeat_ms: kind.repeat_ms(),
            counterpart: kind.counterpart().map(Kind::name),
        });
        store.collect_alerts(&kinds, now, NEWS_MS).await?;
        let Some(slack) = &self.slack else { return Ok(now.plus_ms(LOOK_MS)) };
        let due = store.load_due_alerts(now, BATCH).await?;
        let quiet_until = self.quiet.and_then(|quiet| quiet.until(now));
        let waits = |alert: &AlertRow| {
            let urgent = Kind::of(&alert.kind).is_some_and(Kind::is_urgent);
            quiet_until.filter(|_| !urgent)
        };
        let (later, send): (Vec<&AlertRow>, Vec<&AlertRow>) = due.iter().partition(|alert| waits(alert).is_some());
        if let Some(until) = quiet_until {
            store.defer_alerts(&seqs(&later), until).await?;
        }
        if send.is_empty() {
            return Ok(if later.is_empty() { now.plus_ms(LOOK_MS) } else { now });
        }
        let ids = seqs(&send);
        let attempts = send.iter().map(|alert| alert.attempts).max().unwrap_or(0);
        store.begin_alerts(&ids, now.plus_ms(retry_ms(attempts))).await?;
        match slack.send(&message(&send)).await {
            Ok(Sent) => store.finish_alerts(&ids, now).await?,
            Err(SendError::Later { retry_after_ms, detail }) => {
                tracing::warn!("alerts could not be sent: {detail}");
                if let Some(ms) = retry_after_ms {
                    store.defer_alerts(&ids, now.plus_ms(ms)).await?;
                }
            }
            Err(SendError::Refused { detail }) => tracing::error!("alerts were refused: {detail}"),
        }
        Ok(now.plus_ms(SECOND_MS))
    }

    /// Whether there is a place to send alerts to.
    pub fn can_send(&self) -> bool {
        self.slack.is_some()
    }

    /// Sends a message that says that this is a test.
    ///
    /// # Errors
    /// When it was not taken, or there is no place to send it to.
    pub async fn test(&self) -> Result<Sent, SendError> {
        let Some(slack) = &self.slack else {
            return Err(SendError::Refused { detail: "no webhook is configured".to_owned() });
        };
        slack.send(&json!({"text": "cutover: this is a test. Alerts arrive here."})).await
    }
}

fn seqs(alerts: &[&AlertRow]) -> Vec<i64> {
    alerts.iter().map(|alert| alert.seq).collect()
}

/// How long to wait after the `attempts`-th try (from 0): 15 s doubling to 10 minutes.
fn retry_ms(attempts: u32) -> i64 {
    ((15 * SECOND_MS) << attempts.min(8)).min(10 * MINUTE_MS)
}

/// One message for several alerts. What comes from outside is escaped as Slack asks, so that no
/// text can call a channel or draw a link.
fn message(alerts: &[&AlertRow]) -> serde_json::Value {
    let mut text = String::new();
    for alert in alerts {
        let mark = if Kind::of(&alert.kind).is_some_and(Kind::is_urgent) {
            ":rotating_light:"
        } else {
            ":information_source:"
        };
        let (subject, detail) = (escaped(&alert.subject), escaped(&told(alert)));
        let _ = write!(text, "{mark} *{}* {subject}: {detail} ({} UTC)", alert.kind, alert.at.to_minute());
        if alert.repeats > 0 {
            let _ = write!(text, ", and {} times more until {}", alert.repeats, alert.last_at.to_minute());
        }
        if alert.attempts > 0 {
            text.push_str(" _(may be a repeat)_");
        }
        text.push('\n');
    }
    json!({"text": text.trim_end()})
}

/// What an alert says. The detail of an outage is its length, which the gate counts with.
fn told(alert: &AlertRow) -> Cow<'_, str> {
    let length: Option<i64> = alert.detail.parse().ok().filter(|_| alert.kind == Kind::Outage.name());
    match length {
        Some(ms) => format!("was out of reach for {}, and is back", format_duration_ms(ms)).into(),
        None => Cow::Borrowed(&alert.detail),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().take(500) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: &str, subject: &str, detail: &str) -> AlertRow {
        AlertRow {
            seq: 1,
            at: Timestamp::from_secs(60),
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            detail: detail.to_owned(),
            repeats: 0,
            last_at: Timestamp::from_secs(60),
            attempts: 0,
        }
    }

    #[test]
    fn a_message_says_what_where_and_when_and_calls_nobody() {
        let mut second = row("gate", "p-1", "pass to fail");
        (second.repeats, second.attempts) = (2, 1);
        let text = message(&[&row("dead-grant", "a:b:c", "gone <!channel> & out\n"), &second]).to_string();
        assert_eq!(
            text,
            r#"{"text":":rotating_light: *dead-grant* a:b:c: gone &lt;!channel&gt; &amp; out  (1970-01-01 00:01 UTC)\n:information_source: *gate* p-1: pass to fail (1970-01-01 00:01 UTC), and 2 times more until 1970-01-01 00:01 _(may be a repeat)_"}"#
        );
    }

    #[test]
    fn the_length_of_an_outage_is_told_in_words() {
        let text = message(&[&row("outage", "nango", "90000"), &row("parity", "a:b:c", "90000")]).to_string();
        assert!(
            text.contains("nango: was out of reach for 1m 30s, and is back (") && text.contains("a:b:c: 90000 ("),
            "{text}"
        );
    }

    #[test]
    fn every_alert_has_its_line_in_the_runbook() {
        let runbook = include_str!("../../docs/runbook.md");
        for kind in Kind::ALL {
            assert!(runbook.contains(&format!("\n| `{}` | ", kind.name())), "{}", kind.name());
        }
    }

    #[test]
    fn names_of_kinds_read_back_and_tries_get_rarer() {
        assert!(Kind::ALL.into_iter().all(|kind| Kind::of(kind.name()) == Some(kind)));
        assert_eq!([0, 1, 9].map(retry_ms), [15_000, 30_000, 600_000]);
    }
}
