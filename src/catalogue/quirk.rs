//! What is odd about a provider, as typed facts that the planner turns into hazards.

use serde::{Deserialize, Serialize};

/// One oddity. The text that people read comes from [`Quirk::text`], so that plans carry codes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Quirk {
    /// Deleting the connection at Nango revokes the refresh token at the provider.
    RevokedOnSourceDelete { opt_out: String },
    /// Several connections may hold one refresh token.
    SiblingsShareGrant { by: String },
    /// The grant's whole scope set falls when one product's rule ends it.
    CombinedScopes { culprit: String, event: String },
    /// Revoking reaches past the one grant.
    RevokeReach { reach: String },
    /// Grants of an app in this state live only so many days.
    TrialAppLife { state: String, days: u32 },
    /// Consent with another scope set ends the tokens of the earlier ones.
    ScopeSetChange,
    /// One scope that the client may not ask for refuses the whole consent.
    ScopesAllOrNothing { product: String },
    /// Only approved clients get a refresh token; without one the access token's end is final.
    RefreshNeedsApproval { days: u32 },
    /// Old refresh tokens keep working but die at their own age: the newest must be stored.
    NewestRefreshToken { days: u32 },
    /// Nango asks for a different scope notation than the target will.
    ScopeNotation { source: String },
    /// Consent must pass multi-factor authentication.
    ConsentNeedsMfa,
    /// All calls of one customer share a small budget.
    SharedRateLimit { per_second: u32, per_day: u32 },
    /// The target needs a value that only the source connection knows.
    NeedsConnectionValue { field: String },
    /// Another client is another identity inside the customer's workspace.
    NewIdentityPerClient { what: String },
    /// The token is one per installation, whoever consents.
    SharedPerInstallation,
    /// Which toolkit fits depends on the kind of token.
    ToolkitByTokenKind { rule: String },
    /// A second consent may finish without a prompt, as whoever is signed in.
    SilentWrongAccount,
    /// New tokens are limited by the hour.
    ConsentRate { per_hour: u32 },
    /// What Nango holds under this key cannot do what the provider needs.
    WrongCredential { holds: String, needs: String },
    /// Nango never learns an expiry: staleness shows only in use.
    NoExpiryAtSource,
    /// Tokens may or may not expire, depending on a setting of the client.
    ExpiryIsASetting { off: String },
    /// User ids of two clients cannot be compared.
    IdentityPerClient { compare: String },
    /// The customer's users may fall under a rule that ends grants on a schedule.
    SessionPolicy { rule: String },
}

impl Quirk {
    /// How much it speaks against going first: 0 is nothing to worry about, 3 can lose the grant.
    pub const fn weight(&self) -> u32 {
        match self {
            Self::RevokedOnSourceDelete { .. }
            | Self::ScopeSetChange
            | Self::WrongCredential { .. }
            | Self::SharedPerInstallation
            | Self::SiblingsShareGrant { .. } => 3,
            Self::CombinedScopes { .. }
            | Self::RevokeReach { .. }
            | Self::RefreshNeedsApproval { .. }
            | Self::NewestRefreshToken { .. }
            | Self::NewIdentityPerClient { .. }
            | Self::SilentWrongAccount
            | Self::ScopesAllOrNothing { .. }
            | Self::SharedRateLimit { .. } => 2,
            Self::TrialAppLife { .. }
            | Self::ScopeNotation { .. }
            | Self::ConsentNeedsMfa
            | Self::NeedsConnectionValue { .. }
            | Self::ToolkitByTokenKind { .. }
            | Self::ConsentRate { .. }
            | Self::NoExpiryAtSource
            | Self::ExpiryIsASetting { .. }
            | Self::IdentityPerClient { .. }
            | Self::SessionPolicy { .. } => 1,
        }
    }

    /// One or two sentences for a reader who must decide.
    pub fn text(&self) -> String {
        match self {
            Self::RevokedOnSourceDelete { opt_out } => format!(
                "Deleting this connection at Nango revokes its refresh token upstream. `{opt_out}: true` goes into the \
                 connection's metadata before anything is deleted."
            ),
            Self::SiblingsShareGrant { by } => {
                format!("Connections of one {by} may share one refresh token: revoking one can end the others.")
            }
            Self::CombinedScopes { culprit, event } => format!(
                "One grant carries all products: {event} ends it for every triplet because {culprit} is among its \
                 scopes."
            ),
            Self::RevokeReach { reach } => format!("Never revoke to clean up: {reach}."),
            Self::TrialAppLife { state, days } => {
                format!("While the OAuth app is {state}, its grants live {days} days.")
            }
            Self::ScopeSetChange => "Consent with another scope set ends this member's earlier access tokens for the \
                                     same client. Ask for exactly the set of the live grant."
                .to_owned(),
            Self::ScopesAllOrNothing { product } => {
                format!("Consent is all or nothing: a client without the {product} is refused for every scope.")
            }
            Self::RefreshNeedsApproval { days } => format!(
                "Only approved clients receive a refresh token; without one day {days} is a hard stop for either \
                 custodian."
            ),
            Self::NewestRefreshToken { days } => format!(
                "Every refresh returns a newer refresh token and leaves the old one valid: whoever keeps a stale one \
                 dies {days} days after its issue. Check that the newest is stored."
            ),
            Self::ScopeNotation { source } => {
                format!(
                    "Nango asks for `{source}`, which cannot be mixed with named scopes: expect a scope difference."
                )
            }
            Self::ConsentNeedsMfa => {
                "A consent without multi-factor authentication gives tokens that the API refuses.".to_owned()
            }
            Self::SharedRateLimit { per_second, per_day } => format!(
                "{per_second} calls a second and {per_day} a day for the whole customer, shared by live traffic and \
                 both custodians."
            ),
            Self::NeedsConnectionValue { field } => {
                format!("The target needs `{field}` when connecting; it is in the source connection's configuration.")
            }
            Self::NewIdentityPerClient { what } => format!("Another OAuth client is {what}."),
            Self::SharedPerInstallation => "With the same client the token belongs to the installation, not to the \
                                            consent: revoking or uninstalling on either side ends both."
                .to_owned(),
            Self::ToolkitByTokenKind { rule } => format!("The toolkit depends on the token's kind: {rule}."),
            Self::SilentWrongAccount => "Consent may complete without a prompt as whoever is signed in: the identity \
                                         check before the switch is not optional."
                .to_owned(),
            Self::ConsentRate { per_hour } => {
                format!(
                    "At most {per_hour} new tokens an hour per user, client and scope set: do not loop over consent."
                )
            }
            Self::WrongCredential { holds, needs } => {
                format!("Nango's key holds {holds}, which cannot serve this provider: it needs {needs}.")
            }
            Self::NoExpiryAtSource => "Nango reports no expiry for this provider, and every fetch costs a call \
                                       upstream: staleness shows only in use."
                .to_owned(),
            Self::ExpiryIsASetting { off } => format!("Whether tokens expire is a setting of the client; {off}."),
            Self::IdentityPerClient { compare } => {
                format!("User ids differ between clients: identity is compared by {compare}.")
            }
            Self::SessionPolicy { rule } => format!("{rule}."),
        }
    }
}
