//! What can go wrong for one row.

use serde::{Deserialize, Serialize};

use crate::catalogue::{Life, Quirk};
use crate::domain::time::format_duration_ms;

/// A danger that applies to this row, either computed from its circumstances or a [`Quirk`] of
/// its provider. A plan carries the code; [`Hazard::text`] says it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Hazard {
    /// One source grant becomes several consents.
    FanOut { consents: u32 },
    /// The source grant also feeds triplets that stay.
    GrantStillNeeded { staying: u32 },
    /// The provider keeps so many live grants; one more ends the oldest at once.
    GrantCap { cap: u32, leave_at_most: u32, adds: u32 },
    /// A second consent with the same client ends the first grant, or may.
    SameClientReconsent { certain: bool },
    /// A refresh token works once: two refreshers break the grant.
    SingleUseRefresh { optional: bool, family_lost: bool, grace: bool },
    /// The refresh token ends by itself.
    GrantLife { days: u32, life: Life },
    /// Something that the bridge depends on ends on a day.
    Deadline { on: String, what: String, secondary: bool },
    /// The token lives hardly longer than the quiet window.
    NarrowWindow { ttl_s: u64, quiet_s: u64 },
    /// The live grant has scopes that the new consent does not ask for.
    ScopesDropped { scopes: Vec<String> },
    /// The live grant lacks scopes that the provider needs.
    ScopesMissing { scopes: Vec<String> },
    /// What we know of the target is past its date.
    FactExpired { what: String, on: String },
    #[serde(untagged)]
    Provider(Quirk),
}

impl Hazard {
    /// The stable code, as it is in JSON.
    pub fn code(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        value["code"].as_str().unwrap_or_default().to_owned()
    }

    /// How much it speaks against going first, 0 to 3.
    pub const fn weight(&self) -> u32 {
        match self {
            Self::SameClientReconsent { .. }
            | Self::ScopesMissing { .. }
            | Self::SingleUseRefresh { optional: false, .. }
            | Self::SingleUseRefresh { family_lost: true, .. } => 3,
            Self::FanOut { .. }
            | Self::GrantStillNeeded { .. }
            | Self::SingleUseRefresh { .. }
            | Self::Deadline { .. }
            | Self::FactExpired { .. }
            | Self::ScopesDropped { .. } => 2,
            Self::GrantCap { cap: ..=5, .. } => 2,
            Self::GrantCap { .. } | Self::GrantLife { .. } | Self::NarrowWindow { .. } => 1,
            Self::Provider(quirk) => quirk.weight(),
        }
    }

    /// One or two sentences for a reader who must decide.
    pub fn text(&self) -> String {
        match self {
            Self::FanOut { consents } => format!(
                "One source grant becomes {consents} consents with {consents} refresh tokens. They move in one wave, and \
                 all must prove the same upstream identity."
            ),
            Self::GrantStillNeeded { staying } => format!(
                "The source grant also feeds {staying} {} that stay: its Nango connection must not be deleted.",
                plural(*staying, "triplet", "triplets")
            ),
            Self::GrantCap { cap, leave_at_most, adds } => {
                let margin = if leave_at_most < cap {
                    format!(" Sources disagree which one evicts: leave at most {leave_at_most} live.")
                } else {
                    String::new()
                };
                format!(
                    "At most {cap} live grants per user and client; one more ends the oldest at once and silently. With \
                     the same client this row adds {adds}.{margin}"
                )
            }
            Self::SameClientReconsent { certain: true } => {
                "Consent with the client that Nango uses ends the old grant: \
                                                            the consent is the point of no return. Another client \
                                                            leaves it alone."
                    .to_owned()
            }
            Self::SameClientReconsent { certain: false } => {
                "What a consent with the client that Nango uses does to the \
                                                             old grant is not documented: planned as if it ended it."
                    .to_owned()
            }
            Self::SingleUseRefresh { optional, family_lost, grace } => {
                let when = if *optional { "If the client rotates, a" } else { "A" };
                let then = match (family_lost, grace) {
                    (true, _) => "presenting a spent one can end the whole family",
                    (false, true) => "a spent one fails after a short grace",
                    (false, false) => "a spent one fails, and what else it does is not documented",
                };
                format!(
                    "{when} refresh token works once; {then}. Exactly one refresher: the DO alarm must be proven \
                     silent first."
                )
            }
            Self::GrantLife { days, life: Life::Idle } => {
                format!("The old grant ends after {days} days without use; the way back ends with it.")
            }
            Self::GrantLife { days, life: Life::Absolute } => format!(
                "The refresh token ends {days} days after the consent that made it, however often it is used; the way \
                 back ends with it."
            ),
            Self::Deadline { on, what, secondary } => {
                let source = if *secondary { " (secondary source)" } else { "" };
                format!("{on}: {what}{source}. Bridge and reverse window must be over by then.")
            }
            Self::NarrowWindow { ttl_s, quiet_s } => format!(
                "The token lives {} and the last {} are quiet: steps fit into what is left of each rotation.",
                format_duration_ms(*ttl_s as i64 * 1000),
                format_duration_ms(*quiet_s as i64 * 1000)
            ),
            Self::ScopesDropped { scopes } => {
                format!("The live grant holds scopes that the new consent does not ask for: {}.", scopes.join(", "))
            }
            Self::ScopesMissing { scopes } => {
                format!("The live grant lacks scopes that the provider needs: {}.", scopes.join(", "))
            }
            Self::FactExpired { what, on } => format!("What is known of {what} counted until {on}: look it up again."),
            Self::Provider(quirk) => quirk.text(),
        }
    }
}

pub(crate) const fn plural<'a>(n: u32, one: &'a str, many: &'a str) -> &'a str {
    if n == 1 { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quirk_reads_back_as_a_hazard() {
        let hazards = vec![
            Hazard::FanOut { consents: 5 },
            Hazard::Provider(Quirk::ScopeSetChange),
            Hazard::Provider(Quirk::ConsentRate { per_hour: 10 }),
        ];
        let json = serde_json::to_string(&hazards).unwrap();
        assert_eq!(
            json,
            r#"[{"code":"fan-out","consents":5},{"code":"scope-set-change"},{"code":"consent-rate","per_hour":10}]"#
        );
        assert_eq!(serde_json::from_str::<Vec<Hazard>>(&json).unwrap(), hazards);
        assert!(serde_json::from_str::<Hazard>(r#"{"code":"fan-out","consents":5,"more":1}"#).is_err());
        assert!(serde_json::from_str::<Hazard>(r#"{"code":"sunspots"}"#).is_err());
    }
}
