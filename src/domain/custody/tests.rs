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
        Event::SwitchBegun { at: at(9), reverse_until: at(100), permit: Permit::Pass { at: at(0) } },
        Event::Switched { at: at(10) },
        Event::Tested { at: at(20) },
    ]
}

fn settled(ms: i64) -> Event {
    Event::Settled { at: at(ms), passed_at: at(0) }
}

#[test]
fn reverse_goes_back_inside_its_window_and_not_after() {
    let switched = after(&to_switched());
    assert_eq!((switched.read, switched.epoch), (ReadAuthority::Target, 2));
    let (going, effects) = switched.step(&Event::ReverseBegun { at: at(50) }).unwrap();
    assert_eq!(effects, [Effect::SetReadAuthority { read: ReadAuthority::Source, epoch: 3 }]);
    assert_eq!((going.stage, going.record()), (Stage::Switched, (ReadAuthority::Source, 3)));
    let (back, _) = going.step(&Event::Reversed { at: at(130) }).unwrap();
    assert_eq!((back.stage, back.read, back.epoch), (Stage::Verified, ReadAuthority::Source, 3));
    assert_eq!(
        switched.step(&Event::ReverseBegun { at: at(101) }).unwrap_err(),
        Refusal::WindowClosed { closed_at: at(100) }
    );
}

#[test]
fn nothing_settles_while_it_can_still_be_reversed() {
    let switched = after(&to_switched());
    assert!(matches!(switched.step(&settled(99)), Err(Refusal::WindowOpen { .. })));
    assert_eq!(switched.step(&settled(100)).unwrap().0.stage, Stage::Settled);
    let late = Event::Settled { at: at(101 + PASS_FRESH_MS), passed_at: at(100) };
    assert_eq!(switched.step(&late).unwrap_err(), Refusal::StalePass { passed_at: at(100) });
}

#[test]
fn a_human_no_stops_forward_and_never_backward() {
    let switched = after(&to_switched());
    let (held, _) = switched.step(&Event::Held { reason: "closing week".into() }).unwrap();
    assert!(matches!(held.step(&settled(200)), Err(Refusal::Held { .. })));
    assert!(held.step(&Event::ReverseBegun { at: at(50) }).is_ok());
}

#[test]
fn what_nobody_saw_work_can_always_go_back_and_never_settles() {
    let untested = after(&to_switched()[..5]);
    assert_eq!(untested.step(&settled(200)).unwrap_err(), Refusal::Untested);
    let (going, _) = untested.step(&Event::ReverseBegun { at: at(200) }).unwrap();
    let (back, _) = going.step(&Event::Reversed { at: at(201) }).unwrap();
    assert!(!back.untested && back.arrived_at == Some(at(201)));
    let (held, _) = untested.step(&Event::Held { reason: "wait".into() }).unwrap();
    assert!(!held.step(&Event::Tested { at: at(20) }).unwrap().0.untested, "what was seen can be recorded");
}

#[test]
fn what_was_begun_before_a_no_can_be_recorded_and_called_off() {
    let begun = after(&to_switched()[..4]);
    let (held, _) = begun.step(&Event::Held { reason: "wait".into() }).unwrap();
    let (switched, _) = held.step(&Event::Switched { at: at(11) }).unwrap();
    assert_eq!((switched.stage, switched.held.is_some()), (Stage::Switched, true));
    let (called_off, _) = held.step(&Event::ReverseBegun { at: at(11) }).unwrap();
    assert_eq!(called_off.record(), (ReadAuthority::Source, 3));
    assert!(matches!(called_off.step(&Event::Switched { at: at(12) }), Err(Refusal::OnTheWay { epoch: 3, .. })));
}

#[test]
fn a_no_stops_a_retirement_that_was_begun_and_what_is_gone_can_be_recorded() {
    let begun = Event::RetireBegun { at: at(102), passed_at: at(0) };
    let settled = after(&[to_switched(), vec![settled(101)]].concat());
    assert!(matches!(settled.step(&Event::Retired { at: at(103) }), Err(Refusal::Illegal { .. })));
    let (retiring, effects) = settled.step(&begun).unwrap();
    assert_eq!((retiring.stage, &effects[..]), (Stage::Settled, &[Effect::NeutraliseSource][..]));
    assert!(retiring.step(&begun).is_ok(), "asked again before the effect");
    let (held, _) = retiring.step(&Event::Held { reason: "wait".into() }).unwrap();
    assert_eq!(held.step(&begun).unwrap_err(), Refusal::Held { reason: "wait".into() });
    assert_eq!(held.step(&Event::Retired { at: at(103) }).unwrap().0.stage, Stage::Retired);
    let (kept, _) = held.step(&Event::RetireCalledOff { at: at(103) }).unwrap();
    assert_eq!((kept.stage, kept.retiring), (Stage::Settled, false));
    assert!(kept.step(&Event::RetireCalledOff { at: at(104) }).is_err());
}

#[test]
fn a_drill_comes_back_and_never_settles() {
    let drill = Event::SwitchBegun { at: at(9), reverse_until: at(10), permit: Permit::Drill };
    let events = [&to_switched()[..3], &[drill, Event::Switched { at: at(9) }]].concat();
    let there = after(&events);
    assert_eq!(there.step(&settled(50)).unwrap_err(), Refusal::OnlyADrill);
    let back = after(&[&events[..], &[Event::ReverseBegun { at: at(10) }, Event::Reversed { at: at(10) }]].concat());
    assert!(!back.drill && back.step(&to_switched()[3]).is_ok());
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
        (t.clone(), any::<bool>()).prop_map(|(t, drill)| Event::SwitchBegun {
            at: t,
            reverse_until: t.plus_ms(50),
            permit: if drill { Permit::Drill } else { Permit::Pass { at: t } },
        }),
        t.clone().prop_map(|at| Event::Switched { at }),
        t.clone().prop_map(|at| Event::Tested { at }),
        t.clone().prop_map(|at| Event::ReverseBegun { at }),
        t.clone().prop_map(|at| Event::Reversed { at }),
        t.clone().prop_map(|at| Event::Settled { at, passed_at: at }),
        t.clone().prop_map(|at| Event::RetireBegun { at, passed_at: at }),
        t.clone().prop_map(|at| Event::RetireCalledOff { at }),
        t.prop_map(|at| Event::Retired { at }),
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
            prop_assert!(next.stage != Stage::Retired || custody.stage == Stage::Retired || custody.retiring);
            prop_assert!(!next.retiring || next.stage == Stage::Settled);
            if next.read != custody.read {
                prop_assert_eq!(custody.record(), (next.read, next.epoch));
            }
            if next.record().0 != custody.record().0 {
                prop_assert!(next.epoch > custody.epoch);
            }
            if next.stage >= Stage::Consented {
                prop_assert!(next.account.is_some());
            }
            custody = next;
        }
    }
}
