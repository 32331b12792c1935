//! Every order of events that a cutover can meet, walked through exhaustively (`#[cfg(test)]`).
//!
//! The model drives the [`Custody::step`] that production uses. Around it stands the least of a
//! world that can go wrong: read-authority records in KV that arrive late, a process that forgets
//! that a put was acknowledged, people who say no at any moment and consent at any moment, alarms,
//! Nango's poller for a grant that several triplets share, and a gate whose passes get old.
//! Time is relative to now, so the number of states is finite without a horizon.

use std::collections::{HashMap, VecDeque};

use stateright::{Checker, Model, Property};

use super::guard::{Guard, Guards};
use super::{Custody, Event, PASS_FRESH_MS, Permit, ReadAuthority, RefreshAuthority, Refusal, Route, Stage};
use crate::domain::time::{HOUR_MS, Timestamp};

/// One tick of the clock. Two make a pass stale-but-usable, three make it useless.
const TICK_MS: i64 = 12 * HOUR_MS;
const NOW: Timestamp = Timestamp::from_millis(0);
const LONG_AGO: Timestamp = Timestamp::from_millis(-1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Alarm {
    /// Refreshes by itself, as before the cutover.
    Refresh,
    /// Stands by or only reports: never refreshes a token that somebody else keeps fresh.
    Idle,
    Disarmed,
}

/// What a custody may never have done, remembered where it happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Broken {
    forward_while_held: bool,
    settled_in_the_window: bool,
    final_without_a_fresh_pass: bool,
    settled_untested: bool,
    fact_refused: bool,
    reverse_refused_in_the_window: bool,
    epoch_with_two_meanings: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Row {
    custody: Custody,
    /// The record in KV.
    record: (ReadAuthority, u64),
    /// A put that nobody heard of again; it may still land.
    in_flight: Option<(ReadAuthority, u64)>,
    /// The running process knows that the record of the move at hand is there.
    acknowledged: bool,
    alarm: Alarm,
    /// The person consented; the target has a grant of its own.
    consented: bool,
    /// The target serves copies of the source's tokens.
    mirrored: bool,
    /// The end of the reverse window as whoever switched was told it, relative to now.
    promised: Option<i64>,
    /// Its tokens are gone from KV.
    tombstoned: bool,
    broken: Broken,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    rows: Vec<Row>,
    /// Nango is read, and so refreshes, for the one grant that feeds all rows.
    polling: bool,
    /// The connection at Nango that holds this grant is gone.
    deleted: bool,
    /// Age of the last gate pass in ticks; `None`: none, or too old to matter.
    pass_age: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Act {
    Tick,
    GatePasses,
    GateFails,
    Crash,
    Poll,
    /// The connection at Nango is deleted.
    Delete,
    Row(usize, Deed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Deed {
    SayNo,
    SayGo,
    StandBy,
    Backfill,
    PersonConsents,
    SeeConsent,
    Prove,
    Reject,
    Drill,
    Switch,
    Reverse,
    /// The put of the record of the move at hand, answered.
    Put,
    /// The same, and its answer never comes; it lands now or later.
    PutUnheard,
    Land,
    Arrive,
    /// The gateway is seen to read from the target.
    Test,
    /// The duty that puts the record right when it is not what custody says.
    Mend,
    Settle,
    Disarm,
    Restore,
    BeginRetire,
    CallOffRetire,
    Tombstone,
    SeeRetired,
}

const DEEDS: [Deed; 24] = [
    Deed::SayNo,
    Deed::SayGo,
    Deed::StandBy,
    Deed::Backfill,
    Deed::PersonConsents,
    Deed::SeeConsent,
    Deed::Prove,
    Deed::Reject,
    Deed::Drill,
    Deed::Switch,
    Deed::Reverse,
    Deed::Put,
    Deed::PutUnheard,
    Deed::Land,
    Deed::Arrive,
    Deed::Test,
    Deed::Mend,
    Deed::Settle,
    Deed::Disarm,
    Deed::Restore,
    Deed::BeginRetire,
    Deed::CallOffRetire,
    Deed::Tombstone,
    Deed::SeeRetired,
];

/// How much of the world the walk covers.
#[derive(Clone, Copy, Debug)]
struct Cutover {
    routes: &'static [Route],
    /// No switch begins at or above this epoch.
    epochs_max: u64,
    /// Puts may be unheard of, and triplets drilled.
    late_answers: bool,
    /// A retirement that was begun asks again before each of its effects.
    asks_again: bool,
    guards: Guards,
}

impl World {
    /// When the gate passed last, and whether that still opens something.
    fn pass(&self) -> (Timestamp, bool) {
        let passed_at = self.pass_age.map_or(NOW.plus_ms(-2 * PASS_FRESH_MS), |age| NOW.plus_ms(-age * TICK_MS));
        (passed_at, NOW.since(passed_at) <= PASS_FRESH_MS)
    }
}

impl Row {
    fn take(&mut self, event: &Event, guards: Guards) -> Result<(), Refusal> {
        let forward = !matches!(
            event,
            Event::Held { .. }
                | Event::Released
                | Event::ConsentRejected { .. }
                | Event::ReverseBegun { .. }
                | Event::Reversed { .. }
                | Event::Switched { .. }
                | Event::RetireCalledOff { .. }
                | Event::Retired { .. }
                | Event::Tested { .. }
        );
        let held = self.custody.held.is_some();
        let (next, _) = self.custody.step_guarded(event, guards)?;
        self.broken.forward_while_held |= forward && held;
        self.custody = next;
        // No rule asks for it.
        self.custody.arrived_at = None;
        Ok(())
    }

    fn put(&mut self, record: (ReadAuthority, u64)) {
        self.broken.epoch_with_two_meanings |= record.1 == self.record.1 && record.0 != self.record.0;
        self.record = record;
    }

    /// An effect that nobody can undo.
    fn make_final(&mut self, fresh: bool) {
        self.broken.forward_while_held |= self.custody.held.is_some();
        self.broken.final_without_a_fresh_pass |= !fresh;
    }

    /// Epochs are only compared with each other. Back at the source, with nothing on its way, the
    /// past does not matter, and the count begins anew: the walk stays finite without an end.
    fn forget_epochs(&mut self, late_answers: bool) {
        if !late_answers && self.custody.stage == Stage::Verified && self.custody.moving.is_none() {
            self.custody.epoch = 1;
            self.record = (ReadAuthority::Source, 0);
        }
    }

    fn relative(&mut self, ms: i64) {
        let shift = |at: Timestamp| at.plus_ms(-ms).max(LONG_AGO);
        let custody = &mut self.custody;
        custody.reverse_until = custody.reverse_until.map(shift);
        if let Some(moving) = &mut custody.moving {
            moving.reverse_until = moving.reverse_until.map(shift);
        }
        self.promised = self.promised.map(|at| (at - ms).max(LONG_AGO.millis()));
    }
}

impl Cutover {
    /// Whether an effect of the retirement that was begun may happen to `row` now.
    fn may_retire(&self, row: &Row, passed_at: Timestamp) -> bool {
        let again = Event::RetireBegun { at: NOW, passed_at };
        row.custody.retiring && (!self.asks_again || row.custody.step_guarded(&again, self.guards).is_ok())
    }

    /// Deletes the connection that feeds all rows.
    fn delete(&self, world: &mut World) -> Option<()> {
        let (passed_at, fresh) = world.pass();
        if world.deleted || !world.rows.iter().all(|row| self.may_retire(row, passed_at)) {
            return None;
        }
        world.deleted = true;
        world.rows.iter_mut().for_each(|row| row.make_final(fresh));
        Some(())
    }

    /// Does `deed` to row `i`; `None` when it cannot be done or changes nothing.
    fn act(&self, world: &mut World, i: usize, deed: Deed) -> Option<()> {
        let (passed_at, fresh) = world.pass();
        let all = |world: &World, test: fn(&Row) -> bool| world.rows.iter().all(test);
        let (all_settled, polling) = (all(world, |r| r.custody.stage >= Stage::Settled), world.polling);
        let none_retiring = all(world, |r| r.custody.stage != Stage::Retired && !r.custody.retiring);
        let deleted = world.deleted;
        let row = &mut world.rows[i];
        let begin = |permit| Event::SwitchBegun { at: NOW, reverse_until: NOW.plus_ms(TICK_MS), permit };
        let take = |row: &mut Row, event| row.take(&event, self.guards).ok();
        match deed {
            Deed::SayNo if row.custody.held.is_none() => take(row, Event::Held { reason: "no".to_owned() })?,
            Deed::SayGo => take(row, Event::Released)?,
            Deed::StandBy if row.alarm == Alarm::Refresh => row.alarm = Alarm::Idle,
            Deed::Backfill if polling => {
                take(row, Event::BackfillDelivered)?;
                row.mirrored = true;
            }
            Deed::PersonConsents if row.custody.stage == Stage::Mirroring && !row.consented => row.consented = true,
            Deed::SeeConsent if row.consented => take(row, Event::ConsentCompleted { account: "ca".to_owned() })?,
            Deed::Prove => take(row, Event::IdentityProven)?,
            Deed::Reject => {
                take(row, Event::ConsentRejected { reason: "another account".to_owned() })?;
                row.consented = false;
            }
            // Moves forward end somewhere; what must follow one is never cut off.
            Deed::Drill | Deed::Switch if row.custody.epoch >= self.epochs_max => return None,
            Deed::Drill if self.late_answers => {
                take(row, begin(Permit::Drill))?;
                row.acknowledged = false;
                row.promised = Some(TICK_MS);
            }
            Deed::Switch => {
                take(row, begin(Permit::Pass { at: passed_at }))?;
                row.acknowledged = false;
                row.promised = Some(TICK_MS);
                row.broken.final_without_a_fresh_pass |= !fresh;
            }
            Deed::Reverse => {
                let promised = row.custody.stage == Stage::Switched
                    && row.custody.moving.is_none()
                    && (row.custody.untested || row.promised.is_some_and(|until| until >= 0));
                let taken = take(row, Event::ReverseBegun { at: NOW });
                row.broken.reverse_refused_in_the_window |= promised && taken.is_none();
                if taken.is_none() && !promised {
                    return None;
                }
                row.acknowledged = false;
            }
            Deed::Put if row.custody.moving.is_some() && !row.acknowledged => {
                row.put(row.custody.record());
                row.acknowledged = true;
            }
            Deed::PutUnheard if self.late_answers && row.custody.moving.is_some() && row.in_flight.is_none() => {
                row.in_flight = Some(row.custody.record());
            }
            Deed::Land => {
                let record = row.in_flight.take()?;
                // What lands late was acknowledged to nobody.
                row.broken.epoch_with_two_meanings |= record.1 == row.record.1 && record.0 != row.record.0;
                row.record = record;
            }
            Deed::Arrive if row.acknowledged => {
                let to = row.custody.moving?.to;
                let event = match to {
                    ReadAuthority::Target => Event::Switched { at: NOW },
                    ReadAuthority::Source => Event::Reversed { at: NOW },
                };
                row.broken.fact_refused |= take(row, event).is_none();
                row.acknowledged = false;
                if to == ReadAuthority::Source {
                    row.promised = None;
                }
            }
            Deed::Test => {
                row.broken.fact_refused |= row.custody.untested && take(row, Event::Tested { at: NOW }).is_none()
            }
            Deed::Mend if row.custody.moving.is_none() && row.record.0 != row.custody.read => {
                row.record = (row.custody.read, row.custody.epoch);
            }
            Deed::Settle => {
                let untested = row.custody.untested;
                take(row, Event::Settled { at: NOW, passed_at })?;
                row.broken.settled_untested |= untested;
                row.broken.settled_in_the_window |= row.promised.is_some_and(|until| until > 0);
                row.broken.final_without_a_fresh_pass |= !fresh;
                row.mirrored = false;
                row.promised = None;
                if all(world, |r| r.custody.stage >= Stage::Settled) {
                    world.polling = false;
                }
            }
            Deed::Disarm if all_settled && fresh && row.alarm != Alarm::Disarmed => row.alarm = Alarm::Disarmed,
            Deed::Restore if none_retiring && row.alarm == Alarm::Disarmed => row.alarm = Alarm::Idle,
            Deed::BeginRetire if row.alarm == Alarm::Disarmed => take(row, Event::RetireBegun { at: NOW, passed_at })?,
            Deed::CallOffRetire if !deleted => take(row, Event::RetireCalledOff { at: NOW })?,
            Deed::Tombstone if deleted && !row.tombstoned && self.may_retire(row, passed_at) => {
                row.tombstoned = true;
                row.make_final(fresh);
            }
            Deed::SeeRetired if row.tombstoned && row.custody.stage != Stage::Retired => {
                row.broken.fact_refused |= take(row, Event::Retired { at: NOW }).is_none();
            }
            _ => return None,
        }
        Some(())
    }
}

impl Model for Cutover {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let row = |route: &Route| Row {
            custody: Custody::planned(*route),
            record: (ReadAuthority::Source, 0),
            in_flight: None,
            acknowledged: false,
            alarm: Alarm::Refresh,
            consented: false,
            mirrored: false,
            promised: None,
            tombstoned: false,
            broken: Broken::default(),
        };
        vec![World { rows: self.routes.iter().map(row).collect(), polling: false, deleted: false, pass_age: None }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Act>) {
        actions.extend([Act::Tick, Act::GatePasses, Act::GateFails, Act::Crash, Act::Poll, Act::Delete]);
        actions.extend((0..world.rows.len()).flat_map(|i| DEEDS.map(|deed| Act::Row(i, deed))));
    }

    fn next_state(&self, last: &World, act: Act) -> Option<World> {
        let mut world = last.clone();
        match act {
            Act::Tick => {
                world.pass_age = world.pass_age.map(|age| age + 1).filter(|age| age * TICK_MS <= PASS_FRESH_MS);
                world.rows.iter_mut().for_each(|row| row.relative(TICK_MS));
            }
            Act::GatePasses => world.pass_age = Some(0),
            Act::GateFails => world.pass_age = None,
            Act::Crash => world.rows.iter_mut().for_each(|row| row.acknowledged = false),
            // `apply` sets every alarm before it reads Nango for the first time.
            Act::Poll => {
                let first = world.rows.iter().any(|row| row.custody.stage == Stage::Planned);
                if world.rows.iter().any(|row| row.alarm == Alarm::Refresh) || !first {
                    return None;
                }
                world.polling = true;
            }
            Act::Delete => self.delete(&mut world)?,
            Act::Row(i, deed) => {
                self.act(&mut world, i, deed)?;
                world.rows[i].forget_epochs(self.late_answers);
            }
        }
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn never(world: &World, test: fn(&Broken) -> bool) -> bool {
            !world.rows.iter().any(|row| test(&row.broken))
        }
        vec![
            Property::always("one refresh authority per grant and epoch", |_, world: &World| {
                let nobody_else = !world.polling || world.rows.iter().all(|row| row.alarm != Alarm::Refresh);
                nobody_else
                    && world.rows.iter().all(|row| match row.custody.refresh_authority() {
                        RefreshAuthority::Composio => row.consented && !row.mirrored && row.alarm != Alarm::Refresh,
                        RefreshAuthority::Nango => row.custody.stage == Stage::Planned || world.polling,
                        RefreshAuthority::DoAlarm => false,
                    })
            }),
            Property::always("an epoch means one read authority", |_, world: &World| {
                never(world, |broken| broken.epoch_with_two_meanings)
            }),
            Property::always("never a switch without its record", |_, world: &World| {
                world.rows.iter().all(|row| {
                    row.record.0 == ReadAuthority::Source
                        || row.custody.read == ReadAuthority::Target
                        || row.custody.moving.is_some()
                        // Landed late: custody's newer epoch says so, and the duty mends it.
                        || row.custody.epoch > row.record.1
                })
            }),
            Property::always("what happened can be recorded", |_, world| never(world, |broken| broken.fact_refused)),
            Property::always("nothing final without a fresh pass", |_, world: &World| {
                never(world, |broken| broken.final_without_a_fresh_pass)
            }),
            Property::always("the reverse window is honoured", |_, world: &World| {
                never(world, |broken| broken.settled_in_the_window || broken.reverse_refused_in_the_window)
            }),
            Property::always("nothing settles untested", |_, world| never(world, |broken| broken.settled_untested)),
            Property::always("a no stops what goes forward", |_, world| never(world, |b| b.forward_while_held)),
            Property::always("a connection goes last", |_, world: &World| {
                !world.deleted
                    || world.rows.iter().all(|row| {
                        row.alarm == Alarm::Disarmed && (row.custody.retiring || row.custody.stage == Stage::Retired)
                    })
            }),
            Property::sometimes("everything is retired", |_, world: &World| {
                world.rows.iter().all(|row| row.custody.stage == Stage::Retired)
            }),
            Property::sometimes("a record lands after it was overtaken", |_, world: &World| {
                world.rows.iter().any(|row| row.record.1 > 0 && row.record.1 + 1 < row.custody.epoch)
            }),
        ]
    }
}

/// Finished, or everything reads from the source and nothing is on its way.
fn finished_or_back(world: &World) -> bool {
    world.rows.iter().all(|row| {
        row.custody.stage == Stage::Retired
            || row.custody.stage <= Stage::Verified
                && row.custody.moving.is_none()
                && row.record.0 == ReadAuthority::Source
    })
}

/// States from which no way leads to one that is finished or back.
fn dead_ends(model: &Cutover) -> (usize, Vec<World>) {
    let mut number: HashMap<World, usize> = HashMap::new();
    let (mut before, mut worlds) = (Vec::<Vec<usize>>::new(), model.init_states());
    for (n, world) in worlds.iter().enumerate() {
        number.insert(world.clone(), n);
        before.push(Vec::new());
    }
    let mut from = 0;
    while from < worlds.len() {
        for next in model.next_states(&worlds[from].clone()) {
            let to = *number.entry(next).or_insert_with_key(|world| {
                worlds.push(world.clone());
                before.push(Vec::new());
                worlds.len() - 1
            });
            before[to].push(from);
        }
        from += 1;
    }
    let good: Vec<bool> = worlds.iter().map(finished_or_back).collect();
    let mut reached: Vec<bool> = good.clone();
    let mut walk: VecDeque<usize> = (0..good.len()).filter(|n| good[*n]).collect();
    while let Some(n) = walk.pop_front() {
        for &earlier in &before[n] {
            if !std::mem::replace(&mut reached[earlier], true) {
                walk.push_back(earlier);
            }
        }
    }
    let states = worlds.len();
    (states, worlds.into_iter().zip(reached).filter(|(_, reached)| !reached).map(|(world, _)| world).collect())
}

const ONE: Cutover =
    Cutover { routes: &[Route::Reconsent], epochs_max: 6, late_answers: true, asks_again: true, guards: Guards::all() };

const SHARED: Cutover = Cutover {
    routes: &[Route::Reconsent, Route::Reconsent],
    epochs_max: 10,
    late_answers: false,
    asks_again: true,
    guards: Guards::all(),
};

fn check(name: &str, model: Cutover) {
    let checker = model.checker().spawn_bfs().join();
    println!(
        "model `{name}`: {} states, {} unique, depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    for property in model.properties() {
        let found = checker.discovery(property.name);
        println!(
            "  {:?} `{}`: {}",
            property.expectation,
            property.name,
            if found.is_some() { "found" } else { "none found" }
        );
    }
    let (states, dead) = dead_ends(&model);
    println!("  `a way to finish or to go back`: from {} of {states} states", states - dead.len());
    for property in model.properties().iter().filter(|p| p.expectation == stateright::Expectation::Always) {
        if let Some(path) = checker.discovery(property.name) {
            panic!("`{}` does not hold after {:?}", property.name, path.into_actions());
        }
    }
    assert!(dead.is_empty(), "nothing leads on from {:#?}", dead[0]);
}

#[test]
fn one_triplet_with_late_answers_and_drills_keeps_every_promise() {
    check("one triplet, everything", ONE);
    let checker = ONE.checker().spawn_bfs().join();
    checker.assert_properties();
}

#[test]
fn triplets_that_share_a_grant_keep_every_promise() {
    check("two triplets, one grant", SHARED);
}

#[test]
fn the_loss_of_any_guard_is_noticed() {
    for (guard, property) in [
        (Guard::Held, "a no stops what goes forward"),
        (Guard::Window, "the reverse window is honoured"),
        (Guard::FreshPass, "nothing final without a fresh pass"),
        (Guard::Tested, "nothing settles untested"),
    ] {
        let checker = Cutover { guards: Guards::without(guard), ..ONE }.checker().spawn_bfs().join();
        let path = checker.discovery(property).unwrap_or_else(|| panic!("nobody noticed that {guard:?} is gone"));
        println!("without guard {guard:?}: `{property}` broken after {} steps", path.into_actions().len());
    }
}

/// As it was when the connection went first and the retirement was asked about afterwards.
#[test]
fn a_retirement_that_does_not_ask_again_before_its_effects_is_noticed() {
    for property in ["a no stops what goes forward", "nothing final without a fresh pass"] {
        let checker = Cutover { asks_again: false, ..ONE }.checker().spawn_bfs().join();
        let path = checker.discovery(property).unwrap_or_else(|| panic!("nobody noticed: `{property}`"));
        assert!(path.into_actions().contains(&Act::Delete), "`{property}` is broken by something else");
    }
}
