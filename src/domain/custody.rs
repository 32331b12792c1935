//! The life of one triplet's custody: one state, one `step`, a typed refusal for everything else.
//!
//! `step` is the only way forward; the store keeps the events and derives the state by replay.
//! It decides, it does not act: the effects it returns are carried out by the executor.
//!
//! A move of reads takes two events. The first one (`switch_begun`, `reverse_begun`) is the
//! intent: it takes the guards, gives the move its epoch and is recorded before the outside world
//! is touched. The second one says that the effect is known to have happened; no guard can refuse
//! it any more, because what happened must be recordable, also when a person said no meanwhile.
//! Retirement is the same with `retire_begun` and `retired`, but nothing brings a deleted connection
//! back: `retire_begun` is asked of `step` again before each of its effects.

mod guard;
#[cfg(test)]
mod model;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::time::{HOUR_MS, Timestamp};
use guard::{Guard, Guards};

/// A gate pass older than this opens nothing, in milliseconds.
pub const PASS_FRESH_MS: i64 = 24 * HOUR_MS;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadAuthority {
    Source,
    Target,
}

/// Who may use the refresh token of the grant that serves reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshAuthority {
    DoAlarm,
    Nango,
    Composio,
}

impl ReadAuthority {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

impl RefreshAuthority {
    pub const fn name(self) -> &'static str {
        match self {
            Self::DoAlarm => "do_alarm",
            Self::Nango => "nango",
            Self::Composio => "composio",
        }
    }
}

/// What lets reads move to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permit {
    /// A drill: there and back again, before anything depends on it. Needs no gate and never settles.
    Drill,
    /// The gate passed at this time.
    Pass { at: Timestamp },
}

/// A move of reads that was begun: its effect may or may not have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Move {
    pub to: ReadAuthority,
    /// The epoch of the record that makes it so.
    pub epoch: u64,
    /// Until when it can be undone; `None` for a move back.
    pub reverse_until: Option<Timestamp>,
    pub drill: bool,
}

/// The custody of one triplet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// The move of reads that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Move>,
    /// Reads are at the target for a drill only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drill: bool,
    /// Its retirement was begun: the connection at Nango may be gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retiring: bool,
    /// When reads arrived where they are; `None` before the first move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrived_at: Option<Timestamp>,
    /// Reads are at the target, and nobody has seen yet that they work there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untested: bool,
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
    /// Reads are about to move to the target.
    SwitchBegun {
        at: Timestamp,
        reverse_until: Timestamp,
        permit: Permit,
    },
    /// Reads are known to be at the target.
    Switched {
        at: Timestamp,
    },
    /// The gateway was seen to read from the target, and well.
    Tested {
        at: Timestamp,
    },
    /// Reads are about to move back to the source, or a begun switch is called off.
    ReverseBegun {
        at: Timestamp,
    },
    /// Reads are known to be back at the source.
    Reversed {
        at: Timestamp,
    },
    /// The reverse window is over and the criteria hold: the gate passed at `passed_at`.
    Settled {
        at: Timestamp,
        passed_at: Timestamp,
    },
    /// The connection at Nango and the tokens in KV are about to go, on a gate that passed at
    /// `passed_at`. Can be taken again: the guards are asked anew.
    RetireBegun {
        at: Timestamp,
        passed_at: Timestamp,
    },
    /// The connection was seen to be there still, and stays.
    RetireCalledOff {
        at: Timestamp,
    },
    /// Connection and tokens are known to be gone.
    Retired {
        at: Timestamp,
    },
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
    #[error("its route is `{}`, so its custody does not move", .0.name())]
    DoesNotMove(Route),
    #[error("its reads are on the way to the {} (epoch {epoch}), which must end first", to.name())]
    OnTheWay { to: ReadAuthority, epoch: u64 },
    #[error("the gate passed at {passed_at}, more than 24 hours before")]
    StalePass { passed_at: Timestamp },
    #[error("its reads are at the target for a drill only, and must come back first")]
    OnlyADrill,
    #[error("nobody has seen yet that its reads work at the target")]
    Untested,
}

impl Event {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::BackfillDelivered => "backfill_delivered",
            Self::ConsentCompleted { .. } => "consent_completed",
            Self::ConsentRejected { .. } => "consent_rejected",
            Self::IdentityProven => "identity_proven",
            Self::SwitchBegun { .. } => "switch_begun",
            Self::Switched { .. } => "switched",
            Self::Tested { .. } => "tested",
            Self::ReverseBegun { .. } => "reverse_begun",
            Self::Reversed { .. } => "reversed",
            Self::Settled { .. } => "settled",
            Self::RetireBegun { .. } => "retire_begun",
            Self::RetireCalledOff { .. } => "retire_called_off",
            Self::Retired { .. } => "retired",
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
            moving: None,
            drill: false,
            retiring: false,
            arrived_at: None,
            untested: false,
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
        self.step_guarded(event, Guards::all())
    }

    fn step_guarded(&self, event: &Event, guards: Guards) -> Result<(Self, Vec<Effect>), Refusal> {
        if !self.route.moves() {
            return Err(Refusal::DoesNotMove(self.route));
        }
        let mut next = self.clone();
        let mut effects = Vec::new();
        match (self.stage, event) {
            (stage, Event::Held { reason }) if stage != Stage::Retired => next.held = Some(reason.clone()),
            (_, Event::Released) if self.held.is_some() => next.held = None,
            // A "no" stops everything forward; going back is always allowed, and so is recording
            // what happened.
            (_, Event::ReverseBegun { at }) => effects.push(next.begin_reverse(*at)?),
            (Stage::Settled, Event::Retired { .. }) if self.retiring => {
                next.stage = Stage::Retired;
                next.retiring = false;
            }
            (Stage::Settled, Event::RetireCalledOff { .. }) if self.retiring => next.retiring = false,
            (_, Event::Switched { at }) if self.on_the_way_to(ReadAuthority::Target) => {
                next.arrive(Stage::Switched, *at);
            }
            (_, Event::Reversed { at }) if self.on_the_way_to(ReadAuthority::Source) => {
                next.arrive(Stage::Verified, *at);
            }
            (Stage::Switched, Event::Tested { .. }) if self.untested => next.untested = false,
            _ if self.moving.is_some() => {
                let (to, epoch) = self.record();
                return Err(Refusal::OnTheWay { to, epoch });
            }
            (Stage::Consented | Stage::Verified, Event::ConsentRejected { .. }) => {
                next.stage = Stage::Mirroring;
                next.account = None;
            }
            _ if self.held.is_some() && guards.holds(Guard::Held) => {
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
            (Stage::Verified, Event::SwitchBegun { at, reverse_until, permit }) => {
                if let Permit::Pass { at: passed_at } = permit {
                    demand_fresh(*passed_at, *at, guards)?;
                }
                effects.push(next.begin_move(ReadAuthority::Target, Some(*reverse_until), *permit == Permit::Drill));
            }
            (Stage::Switched, Event::Settled { at, passed_at }) => {
                if self.drill {
                    return Err(Refusal::OnlyADrill);
                }
                if self.untested && guards.holds(Guard::Tested) {
                    return Err(Refusal::Untested);
                }
                let open_until = self.reverse_until.unwrap_or(*at);
                if *at < open_until && guards.holds(Guard::Window) {
                    return Err(Refusal::WindowOpen { open_until });
                }
                demand_fresh(*passed_at, *at, guards)?;
                next.stage = Stage::Settled;
                next.epoch += 1;
                effects.push(Effect::EndMirror);
            }
            (Stage::Settled, Event::RetireBegun { at, passed_at }) => {
                demand_fresh(*passed_at, *at, guards)?;
                next.retiring = true;
                effects.push(Effect::NeutraliseSource);
            }
            (stage, event) => return Err(Refusal::Illegal { stage, event: event.name() }),
        }
        Ok((next, effects))
    }

    /// The record that the gateway must find: where it reads, and of which epoch that is. A move
    /// that was begun counts, since its record may be there already.
    pub fn record(&self) -> (ReadAuthority, u64) {
        self.moving.map_or((self.read, self.epoch), |m| (m.to, m.epoch))
    }

    fn on_the_way_to(&self, to: ReadAuthority) -> bool {
        self.moving.is_some_and(|m| m.to == to)
    }

    fn begin_move(&mut self, to: ReadAuthority, reverse_until: Option<Timestamp>, drill: bool) -> Effect {
        self.epoch += 1;
        self.moving = Some(Move { to, epoch: self.epoch, reverse_until, drill });
        Effect::SetReadAuthority { read: to, epoch: self.epoch }
    }

    fn begin_reverse(&mut self, at: Timestamp) -> Result<Effect, Refusal> {
        match (self.stage, self.moving) {
            (_, Some(Move { to: ReadAuthority::Source, epoch, .. })) => {
                return Err(Refusal::OnTheWay { to: ReadAuthority::Source, epoch });
            }
            // Called off before it was known to have arrived: nothing was promised yet.
            (Stage::Verified, Some(_)) => {}
            (Stage::Switched, None) => {
                let closed_at = self.reverse_until.unwrap_or(at);
                // A drill must come back whenever that is, and so may what nobody saw work yet: neither
                // can settle.
                if at > closed_at && !self.drill && !self.untested {
                    return Err(Refusal::WindowClosed { closed_at });
                }
            }
            (stage, _) => return Err(Refusal::Illegal { stage, event: "reverse_begun" }),
        }
        Ok(self.begin_move(ReadAuthority::Source, None, false))
    }

    fn arrive(&mut self, stage: Stage, at: Timestamp) {
        if let Some(Move { to, reverse_until, drill, .. }) = self.moving.take() {
            self.stage = stage;
            self.read = to;
            self.reverse_until = reverse_until;
            self.drill = drill;
            self.arrived_at = Some(at);
            self.untested = to == ReadAuthority::Target;
        }
    }
}

fn demand_fresh(passed_at: Timestamp, at: Timestamp, guards: Guards) -> Result<(), Refusal> {
    if at.since(passed_at) > PASS_FRESH_MS && guards.holds(Guard::FreshPass) {
        return Err(Refusal::StalePass { passed_at });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
