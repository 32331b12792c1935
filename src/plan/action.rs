//! What people must do for one row.

use serde::{Deserialize, Serialize};

use super::policy::Client;

/// One thing that no program can do. A plan carries the code; [`Action::text`] says it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Look the toolkit up at Composio.
    ProbeToolkit { toolkit: String },
    /// Register an OAuth client, or choose the one to use, and its redirect URI.
    OauthClient { client: Client, redirect_uri: String },
    /// Enter a credential beside the grant.
    ExtraCredential { what: String },
    /// Ask whoever may refuse a new client, before any link is sent.
    Approval { who: String },
    /// Copy a value of the source connection into the consent link.
    ConnectionValue { field: String },
    /// Give the new identity access to what the old one could see.
    InviteIdentity { what: String },
    /// Consent within the life of a link.
    Consent { who: String },
    /// Issue a new secret once both sides are verified.
    RotateSecret,
    /// Say which credential the gateway really stores.
    NameCredential { holds: String },
    /// Put a decision for this triplet into the policy.
    Decide,
}

impl Action {
    /// One sentence in the imperative.
    pub fn text(&self) -> String {
        match self {
            Self::ProbeToolkit { toolkit } => {
                format!("Probe the toolkit `{toolkit}` with `cutover assess` and plan again with its result.")
            }
            Self::OauthClient { client, redirect_uri } => match client {
                Client::Managed => "Use Composio's own OAuth app: users see its name on the consent page.".to_owned(),
                Client::Same => format!("Register the redirect URI {redirect_uri} on the client that Nango uses."),
                Client::Different => format!("Register {redirect_uri} on our other OAuth client."),
                Client::Unknown => format!(
                    "Choose the OAuth client, preferably not the one that Nango uses, register {redirect_uri} on it, and name \
                     the choice in the policy."
                ),
            },
            Self::ExtraCredential { what } => format!("Enter {what}."),
            Self::Approval { who } => format!("Have the client approved by {who}."),
            Self::ConnectionValue { field } => format!("Carry `{field}` over from the Nango connection into the link."),
            Self::InviteIdentity { what } => {
                format!("Invite the new identity to what the old one could reach: {what}.")
            }
            Self::Consent { who } => format!("Consent through the link, which lives 10 minutes: {who}."),
            Self::RotateSecret => {
                "Issue a new secret after both sides are verified, and withdraw the old one.".to_owned()
            }
            Self::NameCredential { holds } => {
                format!("Say which credential the gateway stores: Nango's key holds {holds}.")
            }
            Self::Decide => "Decide the route in the policy (`[[decision]]`).".to_owned(),
        }
    }
}
