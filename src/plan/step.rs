//! What happens to a wave, in order.

use serde::{Deserialize, Serialize};

use crate::domain::duration::Millis;

/// One step of a wave. Each leaves the executor no choice; what it must know is in the row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// The alarms become a fallback, so that one party refreshes.
    AlarmStandby,
    /// Bearer accounts at Composio and both KV namespaces get the current token.
    Mirror,
    /// Long-lived secrets are copied once.
    CopySecrets,
    /// The soak clock runs.
    Soak {
        days: u32,
    },
    /// A reverse is rehearsed while nothing depends on it.
    RehearseReverse,
    /// Each triplet's user consents; its identity and scopes are compared at once.
    Consent {
        consents: u32,
    },
    /// Rows whose consent is final switch right after it, one by one.
    SwitchAtConsent {
        rows: u32,
    },
    /// The others switch together.
    Switch {
        rows: u32,
    },
    /// The way back stays open.
    ReverseWindow {
        window: Millis,
    },
    Settle,
}

impl Step {
    pub fn text(&self) -> String {
        match self {
            Self::AlarmStandby => "set DO alarms to standby and read them back".to_owned(),
            Self::Mirror => "mirror tokens to kv.source, kv.target and composio".to_owned(),
            Self::CopySecrets => "copy long-lived secrets once and verify them".to_owned(),
            Self::Soak { days } => format!("soak {days} days"),
            Self::RehearseReverse => "rehearse a reverse".to_owned(),
            Self::Consent { consents } => format!("{consents} consents, each checked for identity and scopes"),
            Self::SwitchAtConsent { rows } => format!("switch {rows} rows right after their consent (no way back)"),
            Self::Switch { rows } => format!("switch {rows} rows"),
            Self::ReverseWindow { window } => format!("keep the way back open for {window}"),
            Self::Settle => "settle".to_owned(),
        }
    }
}
