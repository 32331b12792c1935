//! Why a row takes its route.

use serde::{Deserialize, Serialize};

use crate::domain::time::Timestamp;

/// One reason for a route. A plan carries the code; [`Reason::text`] says it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reason {
    /// Composio has a toolkit, and cannot take over a refresh token: the user must consent.
    ToolkitExists { toolkit: String },
    /// An unconfirmed slug was found at Composio.
    ToolkitProbed { toolkit: String },
    /// The secret does not expire on its own.
    StaticSecret { auth_mode: String },
    /// Composio has no toolkit for this provider.
    NoToolkit { provider: String },
    /// The slug was never confirmed, and nothing has looked it up.
    ToolkitUnconfirmed { toolkit: String },
    /// The lookup found no such toolkit.
    ToolkitAbsent { toolkit: String },
    /// A probe of the toolkit exists and is too old.
    ProbeExpired { toolkit: String, at: Timestamp },
    /// Composio has a toolkit that does not take this kind of credential.
    SchemeNotOffered { toolkit: String, auth_mode: String },
    /// The policy's retain list names it.
    RetainList { pattern: String },
    /// A person decided.
    Decided { by: String, reason: String },
    /// A person decided something that cannot be done.
    DecisionImpossible { by: String, wanted: super::Route },
    /// The policy accepts the doubt named here.
    DoubtAccepted { doubt: String },
    /// Nobody knows this integration key.
    UnknownIntegration { integration_key: String },
    /// The integration is known and this provider is not one of its.
    UnknownProvider { integration_key: String, provider: String },
    /// The policy says that the target uses Nango's client, which may end the old grant.
    SharedClient,
    /// The policy wants Composio's own OAuth app, and there is none.
    NoManagedClient { toolkit: String },
    /// The source grant lacks scopes.
    MissingScopes,
    /// The inventory and the catalogue disagree about the kind of credential.
    AuthModeDiffers { inventory: String, catalogue: String },
    /// Two connections claim to feed this triplet.
    TwoSources { other: String },
}

impl Reason {
    /// One sentence.
    pub fn text(&self) -> String {
        match self {
            Self::ToolkitExists { toolkit } => format!(
                "Composio has the toolkit `{toolkit}` and cannot take a refresh token over: mirror during the soak, \
                 then consent."
            ),
            Self::ToolkitProbed { toolkit } => {
                format!("A probe found the toolkit `{toolkit}`: mirror during the soak, then consent.")
            }
            Self::StaticSecret { auth_mode } => {
                format!("`{auth_mode}` is a long-lived secret: copied once, verified, rotated afterwards.")
            }
            Self::NoToolkit { provider } => {
                format!("Composio has no toolkit for `{provider}`: custody stays with the gateway.")
            }
            Self::ToolkitUnconfirmed { toolkit } => format!(
                "The toolkit slug `{toolkit}` is unconfirmed and must be probed first: until then custody stays with \
                 the gateway."
            ),
            Self::ToolkitAbsent { toolkit } => {
                format!("A probe found no toolkit `{toolkit}`: custody stays with the gateway.")
            }
            Self::ProbeExpired { toolkit, at } => {
                format!("The probe of `{toolkit}` from {} is too old to count.", at.to_minute())
            }
            Self::SchemeNotOffered { toolkit, auth_mode } => {
                format!("The toolkit `{toolkit}` does not take `{auth_mode}`: custody stays with the gateway.")
            }
            Self::RetainList { pattern } => format!("The policy retains `{pattern}`."),
            Self::Decided { by, reason } => format!("Decided by {by}: {reason}"),
            Self::DecisionImpossible { by, wanted } => {
                format!("{by} decided `{}`, which cannot be done here.", wanted.name())
            }
            Self::DoubtAccepted { doubt } => format!("The policy accepts {doubt}."),
            Self::UnknownIntegration { integration_key } => format!(
                "The catalogue does not know the integration key `{integration_key}`: extend it or decide in the policy."
            ),
            Self::UnknownProvider { integration_key, provider } => format!(
                "The catalogue does not list `{provider}` under `{integration_key}`: extend it or decide in the policy."
            ),
            Self::SharedClient => {
                "The policy says that the target uses Nango's OAuth client, where a second consent may \
                                   end the live grant: use another client or accept it."
                    .to_owned()
            }
            Self::NoManagedClient { toolkit } => {
                format!("The policy wants Composio's own OAuth app and `{toolkit}` has none: register one.")
            }
            Self::MissingScopes => {
                "The live grant lacks scopes that the provider needs: decide before moving it.".to_owned()
            }
            Self::AuthModeDiffers { inventory, catalogue } => {
                format!("The inventory says `{inventory}` and the catalogue `{catalogue}`: one of them is wrong.")
            }
            Self::TwoSources { other } => {
                format!("Connection `{other}` claims to feed the same triplet: only one can.")
            }
        }
    }
}
