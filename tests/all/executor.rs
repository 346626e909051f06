//! The executor on a world of switches: what runs when, what is on the medium by then, and what each finding of a probe
//! leads to.

mod panel;

use std::sync::atomic::Ordering;

use nixbox::engine::executor::{Ending, EngineError, Event, TransitionFailure};
use nixbox::engine::history::TransitionStatus;
use nixbox::engine::journal::JournalError;
use nixbox::engine::planner::{Direction, NoPlan};
use nixbox::engine::record::{Ended, PayloadError};
use nixbox::engine::transition::{AfterCommit, Failure, Generation, Operation, OperationId, TransitionId};

use crate::harness::WORKSPACE;
use panel::{Call, ID, LIMIT, Listener, Odd, Panel, Start, execute, open, recover, run, table};

/// Whose failure an ending tells, and what it was.
fn told(ending: &Ending) -> (&'static str, &Failure) {
    match ending {
        Ending::RolledBack(Some(TransitionFailure { label, failure }))
        | Ending::Lost(TransitionFailure { label, failure })
        | Ending::Stuck(TransitionFailure { label, failure }) => (label, failure),
        _ => panic!("{ending:?} tells no failure"),
    }
}

fn rolled_back(result: Result<Ending, EngineError>) -> Ending {
    assert!(matches!(&result, Ok(Ending::RolledBack(Some(_)))), "{result:?}");
    result.unwrap()
}

fn stuck(result: Result<Ending, EngineError>) -> Ending {
    assert!(matches!(&result, Ok(Ending::Stuck(_))), "{result:?}");
    result.unwrap()
}

fn is_open(panel: &Panel) -> bool {
    open(panel).unwrap().open_operation().is_some()
}

#[test]
fn all_is_done_in_order_and_what_it_came_to_is_written() {
    let panel = Panel::new(&[]);
    assert!(matches!(run(&panel), Ok(Ending::Done)));
    assert_eq!(panel.asked(Call::Prepare), [0, 1, 2, 10, 11, 12]);
    assert_eq!(panel.asked(Call::Apply), [0, 1, 2, 10, 11, 12]);
    assert_eq!((panel.asked(Call::Probe), panel.asked(Call::Undo)), (vec![], vec![]));
    let journal = open(&panel).unwrap();
    assert_eq!((journal.open_operation(), journal.history().final_state.as_slice()), (None, &b"Done"[..]));
}

/// Each of the two waits for the other: one after the other they would wait for ever.
#[test]
fn a_stage_runs_at_the_same_time() {
    let panel = Panel::new(&[(Call::Apply, 0, Odd::Meets), (Call::Apply, 1, Odd::Meets)]);
    assert!(matches!(run(&panel), Ok(Ending::Done)));
}

#[test]
fn an_outcome_is_written_as_it_comes() {
    let panel = Panel::new(&[(Call::Apply, 1, Odd::SeesItsMateDone)]);
    assert!(matches!(run(&panel), Ok(Ending::Done)));
}

#[test]
fn a_stage_costs_one_sync() {
    let panel = Panel::new(&[]);
    drop(open(&panel).unwrap());
    let before = panel.syncs.load(Ordering::Relaxed);
    assert!(matches!(run(&panel), Ok(Ending::Done)));
    // Opening; four stages; the commit point's outcome; the end.
    assert_eq!(panel.syncs.load(Ordering::Relaxed) - before, 1 + 4 + 1 + 1);
}

#[test]
fn a_failure_lets_its_stage_mates_end_and_is_then_taken_back_in_reverse() {
    for (fails, late) in [(0, 1), (1, 0)] {
        let panel = Panel::new(&[(Call::Apply, fails, Odd::Fails), (Call::Apply, late, Odd::Late)]);
        let ending = rolled_back(run(&panel));
        assert_eq!(told(&ending).0, ["first", "second"][usize::from(fails)]);
        assert_eq!(panel.asked(Call::Undo), [1, 0]);
        assert_eq!(panel.asked(Call::Apply), [0, 1]);
        assert!(panel.on().is_empty());
        // The one that failed has no outcome, and is looked at; its mate's was written.
        assert_eq!(panel.asked(Call::Probe), [fails]);
    }
}

#[test]
fn of_two_failures_the_first_is_told() {
    let panel = Panel::new(&[(Call::Apply, 0, Odd::FailsLate), (Call::Apply, 1, Odd::Fails)]);
    assert_eq!(told(&rolled_back(run(&panel))).0, "second");
}

#[test]
fn a_broken_journal_is_told_before_any_failure_and_nothing_more_is_done() {
    for fails in [Odd::Fails, Odd::FailsLate] {
        let panel = Panel::new(&[(Call::Apply, 0, fails), (Call::Apply, 1, Odd::BreaksJournal)]);
        let stopped = run(&panel);
        assert!(matches!(stopped, Err(EngineError::Journal(JournalError::Io { .. }))), "{stopped:?}");
        assert_eq!((panel.asked(Call::Undo), panel.on()), (vec![], vec![1]));
        panel.mend();
        assert!(matches!(recover(&panel, AfterCommit::Stuck), Ok(Ending::RolledBack(None))));
        assert!(panel.on().is_empty());
    }
}

#[test]
fn a_failure_at_any_place_before_the_commit_point_is_taken_back() {
    for call in [Call::Prepare, Call::Apply] {
        for (switch, undone) in [(0, &[1, 0][..]), (1, &[1, 0]), (2, &[2, 1, 0]), (10, &[2, 1, 0])] {
            let panel = Panel::new(&[(call, switch, Odd::Fails)]);
            rolled_back(run(&panel));
            assert!(panel.on().is_empty());
            // A stage of which one cannot even be prepared does not begin.
            let begun = if call == Call::Prepare { usize::from(switch.min(3)) } else { usize::MAX };
            let undone: Vec<_> =
                undone.iter().filter(|one| begun > 1 && usize::from(**one) < begun).collect();
            assert_eq!(panel.asked(Call::Undo).iter().collect::<Vec<_>>(), undone, "{call:?} {switch}");
            assert!(!is_open(&panel));
        }
    }
}

#[test]
fn who_never_answers_has_its_time_and_no_more() {
    for (call, switch) in [(Call::Prepare, 0), (Call::Apply, 1), (Call::Apply, 2), (Call::Apply, 10)] {
        let panel = Panel::new(&[(call, switch, Odd::Never)]);
        let ending = rolled_back(run(&panel));
        assert!(matches!(told(&ending).1, Failure::TimedOut(limit) if *limit == LIMIT), "{ending:?}");
        assert!(panel.on().is_empty());
    }
    for (call, label) in [(Call::Undo, "second"), (Call::Probe, "second")] {
        let panel = Panel::new(&[(Call::Apply, 1, Odd::Fails), (call, 1, Odd::Never)]);
        let ending = stuck(run(&panel));
        assert!(matches!(told(&ending), (named, Failure::TimedOut(_)) if named == label), "{ending:?}");
        assert!(is_open(&panel));
        panel.mend();
        assert!(matches!(recover(&panel, AfterCommit::Stuck), Ok(Ending::RolledBack(None))));
        assert!(panel.on().is_empty());
    }
}

/// What does not fit into a record is the transition's failure, and no reason to leave all half done.
#[test]
fn an_outcome_that_is_too_large_is_a_failure_of_its_transition() {
    let panel = Panel::new(&[(Call::Apply, 2, Odd::Large)]);
    let ending = rolled_back(run(&panel));
    assert!(
        matches!(told(&ending), ("third", Failure::Payload(PayloadError::TooLarge { .. }))),
        "{ending:?}"
    );
    assert!(panel.on().is_empty());
    assert!(!is_open(&panel));
}

#[test]
fn who_cannot_say_how_it_stands_is_stuck_until_it_can() {
    for odd in [Odd::Fails, Odd::Never] {
        let panel = Panel::new(&[(Call::Conclude, 0, odd)]);
        stuck(run(&panel));
        assert!(is_open(&panel));
        panel.mend();
        assert!(matches!(recover(&panel, AfterCommit::Stuck), Ok(Ending::Done)));
        // All was done, and is not done again.
        assert_eq!(panel.asked(Call::Apply), [0, 1, 2, 10, 11, 12]);
        assert_eq!(open(&panel).unwrap().history().final_state, b"Done");
    }
}

#[test]
fn a_failed_undo_is_stuck_and_undone_again() {
    let panel = Panel::new(&[(Call::Apply, 2, Odd::Fails), (Call::Undo, 1, Odd::Fails)]);
    assert_eq!(told(&stuck(run(&panel))).0, "second");
    assert_eq!(panel.asked(Call::Undo), [2, 1]);
    panel.mend();
    panel.log.lock().unwrap().clear();
    assert!(matches!(recover(&panel, AfterCommit::Stuck), Ok(Ending::RolledBack(None))));
    assert_eq!(panel.asked(Call::Undo), [1, 0]);
    assert!(panel.asked(Call::Probe).is_empty());
    assert!(panel.on().is_empty());
}

#[test]
fn what_is_gone_with_the_vm_counts_as_undone() {
    let panel = Panel::new(&[(Call::Apply, 2, Odd::Fails), (Call::Undo, 1, Odd::Lost)]);
    rolled_back(run(&panel));
    assert_eq!(panel.asked(Call::Undo), [2, 1, 0]);
    assert!(!is_open(&panel));
}

/// A wish to stop is heeded up to the commit point, and by nobody after it.
#[test]
fn an_interrupt_rolls_back_up_to_the_commit_point_and_not_after_it() {
    for switch in [0, 2] {
        let panel = Panel::new(&[(Call::Apply, switch, Odd::Interrupts)]);
        let ending = rolled_back(run(&panel));
        assert!(matches!(told(&ending).1, Failure::Interrupted), "{ending:?}");
        assert!(panel.on().is_empty());
    }
    for switch in [10, 11] {
        let panel = Panel::new(&[(Call::Apply, switch, Odd::Interrupts)]);
        assert!(matches!(run(&panel), Ok(Ending::Done)));
        assert_eq!(panel.asked(Call::Apply), [0, 1, 2, 10, 11, 12]);
    }
}

/// A journal in which the operation is left with these statuses, by place; the switches are as they say.
fn left(odd: &[(Call, u16, Odd)], statuses: &[TransitionStatus]) -> Panel {
    const SWITCHES: [u16; 6] = [0, 1, 2, 10, 11, 12];
    let panel = Panel::new(odd);
    let mut journal = open(&panel).unwrap();
    journal.begin(ID, b"what", 1).unwrap();
    for (place, status) in (0..).zip(statuses).filter(|(_, status)| **status > TransitionStatus::NeverStarted)
    {
        let switch = SWITCHES[usize::from(place)];
        let intent = switch.to_le_bytes().to_vec();
        journal.intents(&[(place, TransitionId(switch), intent)]).unwrap();
        if *status >= TransitionStatus::Done {
            journal.outcome(place, &[&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1]].concat(), 1).unwrap();
            panel.on.lock().unwrap().insert(switch);
        }
    }
    panel
}

use TransitionStatus::{Done, IntentOnly};

#[test]
fn before_the_commit_point_a_probe_may_say_what_it_likes_but_not_that_it_cannot_tell() {
    for odd in [Odd::Finds(true), Odd::Finds(false), Odd::Lost] {
        let panel = left(&[(Call::Probe, 2, odd)], &[Done, Done, IntentOnly]);
        assert!(matches!(recover(&panel, AfterCommit::Stuck), Ok(Ending::RolledBack(None))), "{odd:?}");
        assert_eq!((panel.asked(Call::Probe), panel.asked(Call::Undo)), (vec![2], vec![2, 1, 0]), "{odd:?}");
        assert_eq!(open(&panel).unwrap().history().final_state, b"RolledBack");
    }
    for odd in [Odd::CannotTell, Odd::Fails, Odd::Never] {
        let panel = left(&[(Call::Probe, 2, odd)], &[Done, Done, IntentOnly]);
        assert_eq!(told(&stuck(recover(&panel, AfterCommit::Stuck))).0, "third");
        assert_eq!((panel.asked(Call::Undo), panel.on()), (vec![], vec![0, 1]), "{odd:?}");
        assert!(is_open(&panel));
    }
}

#[test]
fn the_commit_points_probe_decides() {
    let all = [Done, Done, Done, IntentOnly];
    let panel = left(&[(Call::Probe, 10, Odd::Finds(true))], &all);
    let before = panel.syncs.load(Ordering::Relaxed);
    assert!(matches!(recover(&panel, AfterCommit::Stuck), Ok(Ending::Done)));
    // Opening; what the probe found; the last stage; the end.
    assert_eq!(panel.syncs.load(Ordering::Relaxed) - before, 1 + 1 + 1 + 1);
    assert_eq!((panel.asked(Call::Apply), panel.asked(Call::Undo)), (vec![11, 12], vec![]));
    for odd in [Odd::Finds(false), Odd::Lost] {
        let panel = left(&[(Call::Probe, 10, odd)], &all);
        assert!(matches!(recover(&panel, AfterCommit::Stuck), Ok(Ending::RolledBack(None))), "{odd:?}");
        assert_eq!((panel.asked(Call::Apply), panel.asked(Call::Undo)), (vec![], vec![2, 1, 0]), "{odd:?}");
    }
    for odd in [Odd::CannotTell, Odd::Fails, Odd::Never] {
        let panel = left(&[(Call::Probe, 10, odd)], &all);
        assert_eq!(told(&stuck(recover(&panel, AfterCommit::Stuck))).0, "commit");
        assert_eq!((panel.asked(Call::Apply), panel.asked(Call::Undo)), (vec![], vec![]), "{odd:?}");
        assert!(is_open(&panel));
    }
}

#[test]
fn after_the_commit_point_what_is_done_is_recorded_and_what_is_not_is_applied() {
    for (odd, applied) in [(Odd::Finds(true), vec![12]), (Odd::Finds(false), vec![11, 12])] {
        let panel = left(&[(Call::Probe, 11, odd)], &[Done, Done, Done, Done, IntentOnly]);
        assert!(matches!(recover(&panel, AfterCommit::Stuck), Ok(Ending::Done)));
        assert_eq!((panel.asked(Call::Apply), panel.asked(Call::Probe)), (applied, vec![11]));
    }
}

#[test]
fn after_the_commit_point_the_lost_are_cleared_away_and_the_blind_are_stuck() {
    let statuses = [Done, Done, Done, Done, IntentOnly, IntentOnly];
    let panel = left(&[(Call::Probe, 11, Odd::Lost)], &statuses);
    let ending = recover(&panel, AfterCommit::ClearAway).unwrap();
    assert!(matches!((&ending, told(&ending)), (Ending::Lost(_), ("fifth", Failure::Lost))), "{ending:?}");
    assert_eq!(panel.asked(Call::Probe), [11, 12], "once is enough");
    assert_eq!(panel.asked(Call::Apply), [12], "what is lost is not applied");
    assert_eq!(open(&panel).unwrap().history().final_state, b"Lost");

    let panel = left(&[(Call::Probe, 11, Odd::Lost)], &statuses);
    stuck(recover(&panel, AfterCommit::Stuck));
    assert!(is_open(&panel));

    for forward in [AfterCommit::ClearAway, AfterCommit::Stuck] {
        // The graver of two is told, whichever came first.
        for mate in [Odd::Fails, Odd::FailsLate] {
            let odd = [(Call::Probe, 11, Odd::CannotTell), (Call::Probe, 12, mate)];
            let panel = left(&odd, &statuses);
            assert_eq!(told(&stuck(recover(&panel, forward))).0, "fifth");
            assert!(panel.asked(Call::Apply).is_empty());
            assert!(is_open(&panel));
        }
    }
}

#[test]
fn a_failure_after_the_commit_point_has_a_second_look_and_no_third() {
    let panel = Panel::new(&[(Call::Apply, 11, Odd::FailsOnce)]);
    assert!(matches!(run(&panel), Ok(Ending::Done)));
    assert_eq!((panel.asked(Call::Probe), panel.on()), (vec![11], vec![0, 1, 2, 10, 11, 12]));

    // That the commit point was reached is seen at the first look; what comes after it has its own.
    let odd = [
        (Call::Apply, 10, Odd::Fails),
        (Call::Probe, 10, Odd::Finds(true)),
        (Call::Apply, 11, Odd::FailsOnce),
    ];
    assert!(matches!(run(&Panel::new(&odd)), Ok(Ending::Done)));

    let panel = Panel::new(&[(Call::Apply, 11, Odd::Fails)]);
    let ending = run(&panel).unwrap();
    assert!(matches!((&ending, told(&ending).0), (Ending::Lost(_), "fifth")), "{ending:?}");
    assert_eq!(panel.asked(Call::Apply), [0, 1, 2, 10, 11, 12, 11]);
    assert!(panel.asked(Call::Undo).is_empty());
    assert!(!is_open(&panel));

    let panel = Panel::new(&[(Call::Probe, 11, Odd::Fails), (Call::Apply, 11, Odd::Fails)]);
    let ending = execute(&panel, &table(AfterCommit::Stuck), Start::Fresh, &Listener::default());
    assert_eq!(told(&stuck(ending)).0, "fifth");
    assert_eq!(panel.asked(Call::Apply), [0, 1, 2, 10, 11, 12], "its probe failed");
    panel.mend();
    assert!(matches!(recover(&panel, AfterCommit::Stuck), Ok(Ending::Done)));
}

#[test]
fn events_tell_what_happens_in_order() {
    let panel = Panel::new(&[(Call::Apply, 2, Odd::Fails)]);
    let listener = Listener::default();
    rolled_back(execute(&panel, &table(AfterCommit::Stuck), Start::Fresh, &listener));
    let took = Some(std::time::Duration::ZERO);
    let begun = |recovery| Event::Begun {
        operation: "switches",
        generation: Generation(1),
        commit: "commit",
        recovery,
    };
    let expected = [
        begun(false),
        Event::Stage("both"),
        Event::Acts("first"),
        Event::Acts("second"),
        Event::Done { label: "first", took },
        Event::Done { label: "second", took },
        Event::Stage("alone"),
        Event::Acts("third"),
        Event::Failed("third"),
        Event::Turned(Direction::Back),
        Event::Undoes("third"),
        Event::Undone("third"),
        Event::Undoes("second"),
        Event::Undone("second"),
        Event::Undoes("first"),
        Event::Undone("first"),
        Event::Ended(Ended::RolledBack),
    ];
    assert_eq!(*listener.0.lock().unwrap(), expected);

    let panel = left(&[(Call::Probe, 10, Odd::Finds(true))], &[Done, Done, Done, IntentOnly]);
    let listener = Listener::default();
    assert!(matches!(
        execute(&panel, &table(AfterCommit::Stuck), Start::Recovery, &listener),
        Ok(Ending::Done)
    ));
    let said = listener.0.lock().unwrap();
    let found = Event::Done { label: "commit", took: None };
    assert_eq!(said[..3], [begun(true), found, Event::Turned(Direction::Forward)]);
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_done() {
    let panel = Panel::new(&[]);
    drop(open(&panel).unwrap());
    let before = panel.host.journal_bytes(WORKSPACE);
    assert!(matches!(recover(&panel, AfterCommit::Stuck), Err(EngineError::NothingOpen)));
    let pointless: Operation<Panel> =
        Operation::new(OperationId(1), "pointless", AfterCommit::Stuck, |_, _| {
            Box::pin(async { Ok(vec![]) })
        });
    let stopped = execute(&panel, &pointless, Start::Fresh, &Listener::default());
    assert!(matches!(stopped, Err(EngineError::NoCommitPoint)), "{stopped:?}");
    assert_eq!(panel.host.journal_bytes(WORKSPACE), before);

    let other = left(&[], &[Done, Done, Done]);
    let pointed = table(AfterCommit::Stuck);
    let mut journal = open(&other).unwrap();
    journal.end(Ended::Done, b"", 1).unwrap();
    journal.begin(ID, b"", 1).unwrap();
    journal.intents(&[(0, TransitionId(5), vec![])]).unwrap();
    drop(journal);
    let stopped = execute(&other, &pointed, Start::Recovery, &Listener::default());
    assert!(
        matches!(
            stopped,
            Err(EngineError::NoPlan(NoPlan::OtherTable { index: 0, found: TransitionId(5), .. }))
        ),
        "{stopped:?}"
    );
    assert!(other.log.lock().unwrap().is_empty());
}
