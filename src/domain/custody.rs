//! The life of one triplet's custody: one state, one `step`, a typed refusal for everything else.
//!
//! `step` is the only way forward; the store keeps the events and derives the state by replay.
//! It decides, it does not act: the effects it returns are carried out by the executor, which
//! writes its intent down first.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// How custody of one triplet moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// Bearer mirror during the soak, then the user consents at Composio.
    Reconsent,
    /// A long-lived secret, copied once and verified.
    Static,
    /// Stays with the gateway.
    Retain,
    /// A person must decide first; `apply` refuses.
    Blocked,
}

impl Route {
    pub const ALL: [Self; 4] = [Self::Reconsent, Self::Static, Self::Retain, Self::Blocked];

    /// Whether custody leaves Nango on this route.
    pub const fn moves(self) -> bool {
        matches!(self, Self::Reconsent | Self::Static)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Reconsent => "reconsent",
            Self::Static => "static",
            Self::Retain => "retain",
            Self::Blocked => "blocked",
        }
    }
}

/// Where a triplet stands (design: planned → mirroring → consented → verified → switched → settled → retired).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Planned,
    Mirroring,
    Consented,
    Verified,
    Switched,
    Settled,
    Retired,
}

impl Stage {
    pub const ALL: [Self; 7] =
        [Self::Planned, Self::Mirroring, Self::Consented, Self::Verified, Self::Switched, Self::Settled, Self::Retired];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Mirroring => "mirroring",
            Self::Consented => "consented",
            Self::Verified => "verified",
            Self::Switched => "switched",
            Self::Settled => "settled",
            Self::Retired => "retired",
        }
    }

    /// Reads what [`Stage::name`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == text)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where the gateway takes the credential from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadAuthority {
    Source,
    Target,
}

/// Who may use the refresh token of the grant that serves reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshAuthority {
    DoAlarm,
    Nango,
    Composio,
}

/// The custody of one triplet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Custody {
    pub route: Route,
    pub stage: Stage,
    /// Grows with every change of authority; a write of an older epoch is refused.
    pub epoch: u64,
    pub read: ReadAuthority,
    /// The connected account that holds (or will hold) final custody.
    pub account: Option<String>,
    /// Until when `reverse` is possible; `None` before a switch.
    pub reverse_until: Option<Timestamp>,
    /// Why a person or a guard stopped this triplet.
    pub held: Option<String>,
}

/// Something that happened, or that somebody wants to happen, to one triplet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Every sink holds the current token.
    BackfillDelivered,
    /// The connected account became ACTIVE through the link.
    ConsentCompleted {
        account: String,
    },
    /// The consent turned out to be useless: another upstream account, or fewer scopes.
    ConsentRejected {
        reason: String,
    },
    /// Upstream identity equal, scopes not smaller, whoami through the target succeeded.
    IdentityProven,
    /// Reads move to the target.
    Switched {
        at: Timestamp,
        reverse_until: Timestamp,
    },
    /// Reads move back to the source.
    Reversed {
        at: Timestamp,
    },
    /// The reverse window is over and the criteria hold.
    Settled {
        at: Timestamp,
    },
    /// Nango neutralised, DO alarm disarmed and observed silent.
    Retired,
    Held {
        reason: String,
    },
    Released,
}

/// What the executor must make true in the world before the event may be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the read-authority record with the new epoch.
    SetReadAuthority { read: ReadAuthority, epoch: u64 },
    /// Stop refreshing the old grant and drop the bearer mirror.
    EndMirror,
    /// Disarm the TokenManager object and neutralise the Nango connection.
    NeutraliseSource,
}

/// Why an event cannot happen in this state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("a triplet in stage `{stage}` cannot take `{event}`")]
    Illegal { stage: Stage, event: &'static str },
    #[error("it is held: {reason}")]
    Held { reason: String },
    #[error("the reverse window closed at {closed_at}")]
    WindowClosed { closed_at: Timestamp },
    #[error("the reverse window is open until {open_until}")]
    WindowOpen { open_until: Timestamp },
    #[error("its route is `{0:?}`, so its custody does not move")]
    DoesNotMove(Route),
}

impl Event {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::BackfillDelivered => "backfill_delivered",
            Self::ConsentCompleted { .. } => "consent_completed",
            Self::ConsentRejected { .. } => "consent_rejected",
            Self::IdentityProven => "identity_proven",
            Self::Switched { .. } => "switched",
            Self::Reversed { .. } => "reversed",
            Self::Settled { .. } => "settled",
            Self::Retired => "retired",
            Self::Held { .. } => "held",
            Self::Released => "released",
        }
    }
}

impl Custody {
    /// A triplet whose plan was just applied.
    pub fn planned(route: Route) -> Self {
        Self {
            route,
            stage: Stage::Planned,
            epoch: 1,
            read: ReadAuthority::Source,
            account: None,
            reverse_until: None,
            held: None,
        }
    }

    /// Who may refresh the grant that serves reads right now.
    pub fn refresh_authority(&self) -> RefreshAuthority {
        match (self.route, self.stage) {
            (Route::Retain | Route::Blocked, _) => RefreshAuthority::DoAlarm,
            (_, Stage::Settled | Stage::Retired) => RefreshAuthority::Composio,
            _ => RefreshAuthority::Nango,
        }
    }

    /// The next state and what must be made true for it, or why not.
    ///
    /// # Errors
    /// A [`Refusal`] when a guard forbids the event; the state is unchanged then.
    pub fn step(&self, event: &Event) -> Result<(Self, Vec<Effect>), Refusal> {
        if matches!(self.route, Route::Retain | Route::Blocked) {
            return Err(Refusal::DoesNotMove(self.route));
        }
        let mut next = self.clone();
        let mut effects = Vec::new();
        match (self.stage, event) {
            (_, Event::Held { reason }) if self.stage != Stage::Retired => next.held = Some(reason.clone()),
            (_, Event::Released) if self.held.is_some() => next.held = None,
            // A "no" stops everything forward; going back is always allowed.
            (Stage::Switched, Event::Reversed { at }) => {
                let closed_at = self.reverse_until.unwrap_or(*at);
                if *at > closed_at {
                    return Err(Refusal::WindowClosed { closed_at });
                }
                next.stage = Stage::Verified;
                next.epoch += 1;
                next.read = ReadAuthority::Source;
                next.reverse_until = None;
                effects.push(Effect::SetReadAuthority { read: next.read, epoch: next.epoch });
            }
            (Stage::Consented, Event::ConsentRejected { .. }) => {
                next.stage = Stage::Mirroring;
                next.account = None;
            }
            _ if self.held.is_some() => {
                return Err(Refusal::Held { reason: self.held.clone().unwrap_or_default() });
            }
            (Stage::Planned, Event::BackfillDelivered) => next.stage = Stage::Mirroring,
            (Stage::Mirroring, Event::ConsentCompleted { account }) if self.route == Route::Reconsent => {
                next.stage = Stage::Consented;
                next.account = Some(account.clone());
            }
            (Stage::Consented, Event::IdentityProven) => next.stage = Stage::Verified,
            // A copied secret needs no consent: the copy itself is verified.
            (Stage::Mirroring, Event::IdentityProven) if self.route == Route::Static => next.stage = Stage::Verified,
            (Stage::Verified, Event::Switched { reverse_until, .. }) => {
                next.stage = Stage::Switched;
                next.epoch += 1;
                next.read = ReadAuthority::Target;
                next.reverse_until = Some(*reverse_until);
                effects.push(Effect::SetReadAuthority { read: next.read, epoch: next.epoch });
            }
            (Stage::Switched, Event::Settled { at }) => {
                let open_until = self.reverse_until.unwrap_or(*at);
                if *at < open_until {
                    return Err(Refusal::WindowOpen { open_until });
                }
                next.stage = Stage::Settled;
                next.epoch += 1;
                effects.push(Effect::EndMirror);
            }
            (Stage::Settled, Event::Retired) => {
                next.stage = Stage::Retired;
                effects.push(Effect::NeutraliseSource);
            }
            (stage, event) => return Err(Refusal::Illegal { stage, event: event.name() }),
        }
        Ok((next, effects))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn after(events: &[Event]) -> Custody {
        events.iter().fold(Custody::planned(Route::Reconsent), |c, e| c.step(e).unwrap().0)
    }

    fn to_switched() -> Vec<Event> {
        vec![
            Event::BackfillDelivered,
            Event::ConsentCompleted { account: "ca_1".into() },
            Event::IdentityProven,
            Event::Switched { at: at(10), reverse_until: at(100) },
        ]
    }

    #[test]
    fn reverse_goes_back_inside_its_window_and_not_after() {
        let switched = after(&to_switched());
        assert_eq!((switched.read, switched.epoch), (ReadAuthority::Target, 2));
        let (back, effects) = switched.step(&Event::Reversed { at: at(50) }).unwrap();
        assert_eq!((back.stage, back.read, back.epoch), (Stage::Verified, ReadAuthority::Source, 3));
        assert_eq!(effects, [Effect::SetReadAuthority { read: ReadAuthority::Source, epoch: 3 }]);
        assert_eq!(
            switched.step(&Event::Reversed { at: at(101) }).unwrap_err(),
            Refusal::WindowClosed { closed_at: at(100) }
        );
    }

    #[test]
    fn nothing_settles_while_it_can_still_be_reversed() {
        let switched = after(&to_switched());
        assert!(matches!(switched.step(&Event::Settled { at: at(99) }), Err(Refusal::WindowOpen { .. })));
        assert_eq!(switched.step(&Event::Settled { at: at(100) }).unwrap().0.stage, Stage::Settled);
    }

    #[test]
    fn a_human_no_stops_forward_and_never_backward() {
        let switched = after(&to_switched());
        let (held, _) = switched.step(&Event::Held { reason: "closing week".into() }).unwrap();
        assert!(matches!(held.step(&Event::Settled { at: at(200) }), Err(Refusal::Held { .. })));
        assert!(held.step(&Event::Reversed { at: at(50) }).is_ok());
    }

    #[test]
    fn retained_triplets_never_move() {
        let retained = Custody::planned(Route::Retain);
        assert!(matches!(retained.step(&Event::BackfillDelivered), Err(Refusal::DoesNotMove(_))));
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let t = (0..200i64).prop_map(at);
        prop_oneof![
            Just(Event::BackfillDelivered),
            Just(Event::ConsentCompleted { account: "ca_1".into() }),
            Just(Event::ConsentRejected { reason: "wrong account".into() }),
            Just(Event::IdentityProven),
            t.clone().prop_map(|t| Event::Switched { at: t, reverse_until: t.plus_ms(50) }),
            t.clone().prop_map(|at| Event::Reversed { at }),
            t.prop_map(|at| Event::Settled { at }),
            Just(Event::Retired),
            Just(Event::Held { reason: "no".into() }),
            Just(Event::Released),
        ]
    }

    proptest! {
        /// Epochs never fall, reads are at the target only from `switched` on, and retirement
        /// is only reached through `settled`.
        #[test]
        fn every_history_keeps_the_invariants(events in prop::collection::vec(any_event(), 0..60)) {
            let mut custody = Custody::planned(Route::Reconsent);
            for event in &events {
                let Ok((next, _)) = custody.step(event) else { continue };
                prop_assert!(next.epoch >= custody.epoch);
                prop_assert_eq!(next.read == ReadAuthority::Target, next.stage >= Stage::Switched);
                prop_assert!(next.stage != Stage::Retired || custody.stage >= Stage::Settled);
                if next.read != custody.read {
                    prop_assert!(next.epoch > custody.epoch);
                }
                if next.stage >= Stage::Consented {
                    prop_assert!(next.account.is_some());
                }
                custody = next;
            }
        }
    }
}
