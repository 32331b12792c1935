//! One row: which route it takes and why, and what that brings with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::budget::{self, Cadence};
use super::planner::Probes;
use super::policy::{Client, Decision, Policy};
use super::{Action, Cost, Granted, Hazard, REDIRECT_URI, Reason, ReversibleUntil, Route};
use crate::catalogue::{self, Catalogue, Integration, Provider, Quirk, Reconsent, Reuse, Rotation};
use crate::domain::duration::Millis;
use crate::domain::time::{DAY_MS, Timestamp};
use crate::domain::triplet::{Part, Triplet};
use crate::inventory::Row;

/// A token that lives less than this beyond the quiet window leaves little room for steps.
const NARROW_S: u64 = 15 * 60;
const DAY_S: u64 = 86_400;

/// Everything that a row's route may depend on besides the row.
pub(crate) struct Context<'a> {
    pub catalogue: &'a Catalogue,
    pub policy: &'a Policy,
    pub probes: &'a Probes,
    pub now: Timestamp,
}

/// The route of a row and what was decided on the way.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub route: Route,
    pub reasons: Arc<[Reason]>,
    pub toolkit: Option<String>,
    pub scopes: Vec<String>,
    pub granted: Granted,
    /// Scopes of the live grant that the new consent would not ask for.
    pub dropped: Vec<String>,
    pub cadence: Cadence,
    /// The moving route that is possible at all, whatever the doubts: what a decision may choose.
    possible: Option<Route>,
}

/// How the other triplets of the same source grant fare, this one included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Siblings {
    pub moving: u32,
    pub staying: u32,
}

/// What follows from the route.
#[derive(Clone, Debug)]
pub(crate) struct Details {
    pub hazards: Arc<[Hazard]>,
    pub actions: Arc<[Action]>,
    pub quiet_window: Option<Millis>,
    pub reversible_until: ReversibleUntil,
    pub cost: Cost,
}

impl Verdict {
    fn with(&self, route: Route, reason: Reason) -> Self {
        let mut reasons = vec![reason];
        reasons.extend(self.reasons.iter().cloned());
        Self { route, reasons: reasons.into(), ..self.clone() }
    }

    /// The same row after it turned out that another connection claims its triplet.
    pub(crate) fn two_sources(&self, other: String) -> Self {
        self.with(Route::Blocked, Reason::TwoSources { other })
    }
}

impl Context<'_> {
    fn known(&self, integration_key: &str, provider: &str) -> Option<(&Integration, &Provider)> {
        let integration = self.catalogue.integration(integration_key)?;
        Some((integration, integration.provider.get(provider)?))
    }

    /// The route that follows from the kind of row alone: the same for every row with this
    /// integration, provider and auth mode.
    pub(crate) fn verdict(&self, row: &Row, provider: &Part) -> Verdict {
        let integration = self.catalogue.integration(&row.integration_key);
        let mut verdict = Verdict {
            route: Route::Blocked,
            reasons: Arc::default(),
            toolkit: None,
            scopes: Vec::new(),
            granted: Granted::Unknown,
            dropped: Vec::new(),
            cadence: Cadence::of(integration),
            possible: None,
        };
        let Some(integration) = integration else {
            verdict.reasons = [Reason::UnknownIntegration { integration_key: row.integration_key.clone() }].into();
            return verdict;
        };
        let Some(entry) = integration.provider.get(provider.as_str()) else {
            let (integration_key, provider) = (row.integration_key.clone(), provider.to_string());
            verdict.reasons = [Reason::UnknownProvider { integration_key, provider }].into();
            return verdict;
        };
        verdict.scopes.clone_from(&entry.scopes);
        let (route, reasons, possible) = self.judge(row, provider, integration, entry);
        verdict.toolkit = if possible.is_some() { entry.toolkit.clone() } else { None };
        Verdict { route, reasons: reasons.into(), possible, ..verdict }
    }

    fn judge(
        &self,
        row: &Row,
        provider: &Part,
        integration: &Integration,
        entry: &Provider,
    ) -> (Route, Vec<Reason>, Option<Route>) {
        let mode = &integration.auth_mode;
        if let Some(stated) = row.auth_mode.as_ref().filter(|stated| *stated != mode) {
            let (inventory, catalogue) = (stated.clone(), mode.clone());
            return (Route::Blocked, vec![Reason::AuthModeDiffers { inventory, catalogue }], None);
        }
        let Some(toolkit) = entry.toolkit.clone() else {
            return (Route::Retain, vec![Reason::NoToolkit { provider: provider.to_string() }], None);
        };
        let mut reasons = Vec::new();
        match (self.probes.toolkit(&toolkit), entry.toolkit_unconfirmed) {
            (Some(false), _) => return (Route::Retain, vec![Reason::ToolkitAbsent { toolkit }], None),
            (Some(true), true) => reasons.push(Reason::ToolkitProbed { toolkit: toolkit.clone() }),
            (None, true) if self.policy.accept.unconfirmed_toolkits => {
                reasons.push(Reason::ToolkitExists { toolkit: toolkit.clone() });
                reasons.push(Reason::DoubtAccepted { doubt: format!("that `{toolkit}` is unconfirmed") });
            }
            (None, true) => {
                reasons.push(Reason::ToolkitUnconfirmed { toolkit: toolkit.clone() });
                if let Some(at) = self.probes.expired(&toolkit) {
                    reasons.push(Reason::ProbeExpired { toolkit, at });
                }
                return (Route::Retain, reasons, None);
            }
            (_, false) => {}
        }
        let offered = entry.auth_schemes.is_empty() || entry.auth_schemes.contains(mode);
        let route = match mode.as_str() {
            "API_KEY" | "BASIC" if offered => Route::Static,
            "OAUTH2" if offered => Route::Reconsent,
            _ => {
                let auth_mode = mode.clone();
                return (Route::Retain, vec![Reason::SchemeNotOffered { toolkit, auth_mode }], None);
            }
        };
        if route == Route::Static {
            reasons.push(Reason::StaticSecret { auth_mode: mode.clone() });
            return (route, reasons, Some(route));
        }
        if reasons.is_empty() {
            reasons.push(Reason::ToolkitExists { toolkit: toolkit.clone() });
        }
        match self.policy.clients.of(&row.integration_key) {
            Client::Managed if entry.managed_oauth != Some(true) => {
                return (Route::Blocked, vec![Reason::NoManagedClient { toolkit }], Some(route));
            }
            Client::Same if integration.same_client_reconsent != Reconsent::KeepsOld => {
                if !self.policy.accept.shared_clients {
                    return (Route::Blocked, vec![Reason::SharedClient], Some(route));
                }
                reasons.push(Reason::DoubtAccepted { doubt: "that both sides use one OAuth client".to_owned() });
            }
            _ => {}
        }
        (route, reasons, Some(route))
    }

    /// What sets this row apart from the others of its kind, if anything does: a probe of its
    /// scopes, the retain list, a decision.
    pub(crate) fn special(
        &self,
        general: &Verdict,
        row: &Row,
        triplet: &Triplet,
        granted: Option<&BTreeSet<String>>,
        decision: Option<&Decision>,
    ) -> Option<Verdict> {
        let retained = self.policy.retain.iter().find(|p| p.matches(triplet));
        if granted.is_none() && retained.is_none() && decision.is_none() {
            return None;
        }
        let mut verdict = general.clone();
        let known = self.known(&row.integration_key, triplet.provider.as_str());
        if let (Some(granted), Some((integration, entry))) = (granted, known) {
            compare_scopes(&mut verdict, granted, integration, entry);
            if verdict.route == Route::Reconsent && matches!(verdict.granted, Granted::Missing { .. }) {
                verdict = if self.policy.accept.missing_scopes {
                    let doubt = "that the live grant lacks scopes".to_owned();
                    verdict.with(Route::Reconsent, Reason::DoubtAccepted { doubt })
                } else {
                    verdict.with(Route::Blocked, Reason::MissingScopes)
                };
            }
        }
        if let Some(decision) = decision {
            let possible = !decision.route.moves() || verdict.possible == Some(decision.route);
            let by = decision.by.clone();
            return Some(if possible {
                verdict.with(decision.route, Reason::Decided { by, reason: decision.reason.clone() })
            } else {
                verdict.with(Route::Blocked, Reason::DecisionImpossible { by, wanted: decision.route })
            });
        }
        if let Some(pattern) = retained {
            return Some(verdict.with(Route::Retain, Reason::RetainList { pattern: pattern.to_string() }));
        }
        Some(verdict)
    }

    /// Hazards, actions and the rest, once it is known how the row's siblings fare.
    pub(crate) fn details(&self, row: &Row, provider: &Part, verdict: &Verdict, siblings: Siblings) -> Details {
        let moves = verdict.route.moves();
        let mut details = Details {
            hazards: Arc::default(),
            actions: Arc::default(),
            quiet_window: None,
            reversible_until: ReversibleUntil::Always,
            cost: Cost::default(),
        };
        if moves {
            let reconsent = verdict.route == Route::Reconsent;
            details.cost = budget::row_cost(self.policy, verdict.cadence, siblings.moving.into(), reconsent);
        }
        let Some((integration, entry)) = self.known(&row.integration_key, provider.as_str()) else {
            if verdict.route == Route::Blocked {
                details.actions = [Action::Decide].into();
            }
            return details;
        };
        details.hazards = self.hazards(row, integration, entry, verdict, siblings).into();
        details.actions = self.actions(row, integration, entry, verdict).into();
        if moves && integration.access_token_ttl_s.is_some() {
            details.quiet_window = Some(self.policy.quiet_window);
        }
        details.reversible_until = match verdict.route {
            Route::Static => ReversibleUntil::Rotated,
            Route::Reconsent if self.consent_is_final(row, integration) => ReversibleUntil::Consent,
            Route::Reconsent => ReversibleUntil::AfterSwitch {
                window: self.policy.reverse_window,
                grant_life_days: integration.refresh_token_ttl_s.map(days),
            },
            Route::Retain | Route::Blocked => ReversibleUntil::Always,
        };
        details
    }

    fn shares_client(&self, row: &Row) -> bool {
        matches!(self.policy.clients.of(&row.integration_key), Client::Unknown | Client::Same)
    }

    /// Whether the consent itself may end the old grant.
    fn consent_is_final(&self, row: &Row, integration: &Integration) -> bool {
        self.shares_client(row) && integration.same_client_reconsent != Reconsent::KeepsOld
    }

    fn hazards(
        &self,
        row: &Row,
        integration: &Integration,
        entry: &Provider,
        verdict: &Verdict,
        siblings: Siblings,
    ) -> Vec<Hazard> {
        let mut out = Vec::new();
        let reconsent = verdict.route == Route::Reconsent;
        let moves = verdict.route.moves();
        let shared = self.shares_client(row);
        if reconsent && siblings.moving > 1 {
            out.push(Hazard::FanOut { consents: siblings.moving });
        }
        if moves && siblings.staying > 0 {
            out.push(Hazard::GrantStillNeeded { staying: siblings.staying });
        }
        if reconsent && self.consent_is_final(row, integration) {
            out.push(Hazard::SameClientReconsent {
                certain: integration.same_client_reconsent == Reconsent::InvalidatesOld,
            });
        }
        if integration.rotation != Rotation::Never && integration.reuse != Reuse::Harmless {
            out.push(Hazard::SingleUseRefresh {
                optional: integration.rotation == Rotation::Optional,
                family_lost: integration.reuse == Reuse::RevokesFamily,
                grace: integration.reuse == Reuse::Grace,
            });
        }
        if let Some(cap) = integration.grants_max.filter(|_| reconsent && shared) {
            let leave_at_most = integration.grants_plan_max.unwrap_or(cap);
            out.push(Hazard::GrantCap { cap, leave_at_most, adds: siblings.moving });
        }
        if let (Some(ttl), Some(life), true) =
            (integration.refresh_token_ttl_s, integration.refresh_token_life, reconsent)
        {
            out.push(Hazard::GrantLife { days: days(ttl), life });
        }
        out.extend(integration.deadline.iter().map(|d| Hazard::Deadline {
            on: d.on.clone(),
            what: d.what.clone(),
            secondary: d.secondary,
        }));
        let quiet_s = self.policy.quiet_window.secs() as u64;
        if let Some(ttl_s) = integration.access_token_ttl_s.filter(|ttl| moves && *ttl < quiet_s + NARROW_S) {
            out.push(Hazard::NarrowWindow { ttl_s, quiet_s });
        }
        out.extend(
            integration
                .quirk
                .iter()
                .chain(&entry.quirk)
                .filter(|quirk| quirk_applies(quirk, moves, shared))
                .cloned()
                .map(Hazard::Provider),
        );
        if let Granted::Missing { scopes } = &verdict.granted {
            out.push(Hazard::ScopesMissing { scopes: scopes.clone() });
        }
        if reconsent && !verdict.dropped.is_empty() {
            out.push(Hazard::ScopesDropped { scopes: verdict.dropped.clone() });
        }
        if let (Some(toolkit), Some(on)) = (&entry.toolkit, self.expired_on(entry)) {
            out.push(Hazard::FactExpired { what: format!("the toolkit `{toolkit}`"), on });
        }
        out
    }

    /// The day on which what is known of the toolkit stopped counting, unless a probe renewed it.
    fn expired_on(&self, entry: &Provider) -> Option<String> {
        let ability = entry.ability.as_ref()?;
        let expired = catalogue::date(&ability.expires_on).is_some_and(|on| on <= self.now);
        let renewed = entry.toolkit.as_ref().is_some_and(|slug| self.probes.toolkit(slug).is_some());
        (expired && !renewed).then(|| ability.expires_on.clone())
    }

    fn actions(&self, row: &Row, integration: &Integration, entry: &Provider, verdict: &Verdict) -> Vec<Action> {
        let mut out = Vec::new();
        let quirks = || integration.quirk.iter().chain(&entry.quirk);
        if let Some(toolkit) = &entry.toolkit {
            let unknown = entry.toolkit_unconfirmed && self.probes.toolkit(toolkit).is_none();
            if unknown || self.expired_on(entry).is_some() {
                out.push(Action::ProbeToolkit { toolkit: toolkit.clone() });
            }
        }
        match verdict.route {
            Route::Reconsent => {
                let client = self.policy.clients.of(&row.integration_key);
                out.push(Action::OauthClient { client, redirect_uri: REDIRECT_URI.to_owned() });
                out.extend(entry.extra_credential.iter().map(|what| Action::ExtraCredential { what: what.clone() }));
                if client != Client::Same {
                    out.extend(integration.approval.iter().map(|who| Action::Approval { who: who.clone() }));
                }
                for quirk in quirks() {
                    match quirk {
                        Quirk::NeedsConnectionValue { field } => {
                            out.push(Action::ConnectionValue { field: field.clone() });
                        }
                        Quirk::NewIdentityPerClient { .. } if client != Client::Same => {
                            out.push(Action::InviteIdentity { what: "private channels and groups".to_owned() });
                        }
                        _ => {}
                    }
                }
                let who = integration.consent_by.clone();
                let who = who.unwrap_or_else(|| "the user whose account is connected today".to_owned());
                out.push(Action::Consent { who });
            }
            Route::Static => out.push(Action::RotateSecret),
            Route::Blocked => out.push(Action::Decide),
            Route::Retain => {}
        }
        out.extend(quirks().filter_map(|quirk| match quirk {
            Quirk::WrongCredential { holds, .. } => Some(Action::NameCredential { holds: holds.clone() }),
            _ => None,
        }));
        out
    }
}

/// Whole days, rounded down: a promise must not be longer than the grant.
fn days(seconds: u64) -> u32 {
    u32::try_from(seconds / DAY_S).unwrap_or(u32::MAX)
}

/// Whether a provider's quirk matters to a row that moves or not, with a client that may be the
/// one Nango uses or surely is not.
fn quirk_applies(quirk: &Quirk, moves: bool, shared: bool) -> bool {
    match quirk {
        Quirk::WrongCredential { .. } | Quirk::NewestRefreshToken { .. } | Quirk::SharedRateLimit { .. } => true,
        Quirk::ScopeSetChange | Quirk::SharedPerInstallation | Quirk::ConsentRate { .. } => moves && shared,
        _ => moves,
    }
}

/// Compares what the live grant holds with what is needed, under the provider's own names.
fn compare_scopes(verdict: &mut Verdict, granted: &BTreeSet<String>, integration: &Integration, entry: &Provider) {
    let alias = |scope: &str| integration.scope_alias.get(scope);
    let missing = integration.lacking(&entry.scopes, granted);
    let asked = |scope: &String| {
        integration
            .provider
            .values()
            .any(|p| p.scopes.iter().any(|s| s == scope || alias(s).is_some_and(|names| names.contains(scope))))
    };
    verdict.dropped = granted.iter().filter(|s| !asked(s)).cloned().collect();
    verdict.granted = if missing.is_empty() { Granted::Enough } else { Granted::Missing { scopes: missing } };
}

const _: () = assert!(DAY_S as i64 * 1000 == DAY_MS);
