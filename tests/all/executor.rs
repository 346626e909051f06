//! The executor on a world of switches: what runs when, what is on the medium by then, and what each finding of a probe
//! leads to.

mod switches;

use std::sync::atomic::Ordering;

use nixbox::engine::executor::{Ending, EngineError, Event, TransitionFailure};
use nixbox::engine::history::TransitionStatus;
use nixbox::engine::journal::JournalError;
use nixbox::engine::planner::{Direction, NoPlan};
use nixbox::engine::record::{Ended, PayloadError};
use nixbox::engine::transition::{AfterCommit, Failure, Generation, Operation, OperationId, TransitionId};

use crate::harness::WORKSPACE;
use switches::{
    ALL, COMMIT, Call, FIFTH, FIRST, ID, LIMIT, Listener, Odd, SECOND, SIXTH, Start, Switches, THIRD,
    execute, open, recover, run, table,
};

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

fn is_open(switches: &Switches) -> bool {
    open(switches).unwrap().open_operation().is_some()
}

#[test]
fn all_transitions_are_applied_in_order_and_the_conclusion_is_written() {
    let switches = Switches::new(&[]);
    assert!(matches!(run(&switches), Ok(Ending::Done)));
    assert_eq!(switches.asked(Call::Prepare), ALL);
    assert_eq!(switches.asked(Call::Apply), ALL);
    assert_eq!((switches.asked(Call::Probe), switches.asked(Call::Undo)), (vec![], vec![]));
    let journal = open(&switches).unwrap();
    assert_eq!((journal.open_operation(), journal.history().final_state.as_slice()), (None, &b"Done"[..]));
}

/// Each of the two waits for the other, so the test would never end if they ran one after the other.
#[test]
fn transitions_of_a_stage_run_at_the_same_time() {
    let switches = Switches::new(&[(Call::Apply, FIRST, Odd::Meets), (Call::Apply, SECOND, Odd::Meets)]);
    assert!(matches!(run(&switches), Ok(Ending::Done)));
}

#[test]
fn an_outcome_is_written_as_it_comes() {
    let switches = Switches::new(&[(Call::Apply, SECOND, Odd::SeesItsMateDone)]);
    assert!(matches!(run(&switches), Ok(Ending::Done)));
}

#[test]
fn a_stage_costs_one_sync() {
    let switches = Switches::new(&[]);
    drop(open(&switches).unwrap());
    let before = switches.syncs.load(Ordering::Relaxed);
    assert!(matches!(run(&switches), Ok(Ending::Done)));
    // Opening; four stages; the commit point's outcome; the end.
    assert_eq!(switches.syncs.load(Ordering::Relaxed) - before, 1 + 4 + 1 + 1);
}

#[test]
fn a_failure_lets_its_stage_mates_end_and_is_then_taken_back_in_reverse() {
    for (fails, late) in [(FIRST, SECOND), (SECOND, FIRST)] {
        let switches = Switches::new(&[(Call::Apply, fails, Odd::Fails), (Call::Apply, late, Odd::Late)]);
        let ending = rolled_back(run(&switches));
        assert_eq!(told(&ending).0, ["first", "second"][usize::from(fails)]);
        assert_eq!(switches.asked(Call::Undo), [SECOND, FIRST]);
        assert_eq!(switches.asked(Call::Apply), [FIRST, SECOND]);
        assert!(switches.on().is_empty());
        // The one that failed has no outcome, and is looked at; its mate's was written.
        assert_eq!(switches.asked(Call::Probe), [fails]);
    }
}

#[test]
fn the_first_of_two_failures_is_reported() {
    let switches = Switches::new(&[(Call::Apply, FIRST, Odd::FailsLate), (Call::Apply, SECOND, Odd::Fails)]);
    assert_eq!(told(&rolled_back(run(&switches))).0, "second");
}

#[test]
fn a_broken_journal_is_reported_before_any_failure_and_ends_the_operation() {
    for fails in [Odd::Fails, Odd::FailsLate] {
        let switches =
            Switches::new(&[(Call::Apply, FIRST, fails), (Call::Apply, SECOND, Odd::BreaksJournal)]);
        let stopped = run(&switches);
        assert!(matches!(stopped, Err(EngineError::Journal(JournalError::Io { .. }))), "{stopped:?}");
        assert_eq!((switches.asked(Call::Undo), switches.on()), (vec![], vec![SECOND]));
        switches.mend();
        assert!(matches!(recover(&switches, AfterCommit::Stuck), Ok(Ending::RolledBack(None))));
        assert!(switches.on().is_empty());
    }
}

#[test]
fn a_failure_at_any_place_before_the_commit_point_is_taken_back() {
    for call in [Call::Prepare, Call::Apply] {
        for (switch, undone) in [
            (FIRST, &[SECOND, FIRST][..]),
            (SECOND, &[SECOND, FIRST]),
            (THIRD, &[THIRD, SECOND, FIRST]),
            (COMMIT, &[THIRD, SECOND, FIRST]),
        ] {
            let switches = Switches::new(&[(call, switch, Odd::Fails)]);
            rolled_back(run(&switches));
            assert!(switches.on().is_empty());
            // A stage of which one cannot even be prepared does not begin.
            let begun = if call == Call::Prepare { usize::from(switch.min(3)) } else { usize::MAX };
            let undone: Vec<_> =
                undone.iter().filter(|one| begun > 1 && usize::from(**one) < begun).collect();
            assert_eq!(switches.asked(Call::Undo).iter().collect::<Vec<_>>(), undone, "{call:?} {switch}");
            assert!(!is_open(&switches));
        }
    }
}

#[test]
fn a_call_that_never_answers_ends_at_its_time_limit() {
    for (call, switch) in
        [(Call::Prepare, FIRST), (Call::Apply, SECOND), (Call::Apply, THIRD), (Call::Apply, COMMIT)]
    {
        let switches = Switches::new(&[(call, switch, Odd::Never)]);
        let ending = rolled_back(run(&switches));
        assert!(matches!(told(&ending).1, Failure::TimedOut(limit) if *limit == LIMIT), "{ending:?}");
        assert!(switches.on().is_empty());
    }
    for (call, label) in [(Call::Undo, "second"), (Call::Probe, "second")] {
        let switches = Switches::new(&[(Call::Apply, SECOND, Odd::Fails), (call, SECOND, Odd::Never)]);
        let ending = stuck(run(&switches));
        assert!(matches!(told(&ending), (named, Failure::TimedOut(_)) if named == label), "{ending:?}");
        assert!(is_open(&switches));
        switches.mend();
        assert!(matches!(recover(&switches, AfterCommit::Stuck), Ok(Ending::RolledBack(None))));
        assert!(switches.on().is_empty());
    }
}

/// What does not fit into a record is the transition's failure, and no reason to leave all half done.
#[test]
fn an_outcome_that_is_too_large_is_a_failure_of_its_transition() {
    let switches = Switches::new(&[(Call::Apply, THIRD, Odd::Large)]);
    let ending = rolled_back(run(&switches));
    assert!(
        matches!(told(&ending), ("third", Failure::Payload(PayloadError::TooLarge { .. }))),
        "{ending:?}"
    );
    assert!(switches.on().is_empty());
    assert!(!is_open(&switches));
}

#[test]
fn a_failed_conclusion_is_stuck_until_it_succeeds() {
    for odd in [Odd::Fails, Odd::Never] {
        let switches = Switches::new(&[(Call::Conclude, FIRST, odd)]);
        stuck(run(&switches));
        assert!(is_open(&switches));
        switches.mend();
        assert!(matches!(recover(&switches, AfterCommit::Stuck), Ok(Ending::Done)));
        // All was done, and is not done again.
        assert_eq!(switches.asked(Call::Apply), ALL);
        assert_eq!(open(&switches).unwrap().history().final_state, b"Done");
    }
}

#[test]
fn a_failed_undo_is_stuck_and_undone_again() {
    let switches = Switches::new(&[(Call::Apply, THIRD, Odd::Fails), (Call::Undo, SECOND, Odd::Fails)]);
    assert_eq!(told(&stuck(run(&switches))).0, "second");
    assert_eq!(switches.asked(Call::Undo), [THIRD, SECOND]);
    switches.mend();
    switches.log.lock().unwrap().clear();
    assert!(matches!(recover(&switches, AfterCommit::Stuck), Ok(Ending::RolledBack(None))));
    assert_eq!(switches.asked(Call::Undo), [SECOND, FIRST]);
    assert!(switches.asked(Call::Probe).is_empty());
    assert!(switches.on().is_empty());
}

#[test]
fn an_undo_that_finds_the_vm_lost_counts_as_done() {
    let switches = Switches::new(&[(Call::Apply, THIRD, Odd::Fails), (Call::Undo, SECOND, Odd::Lost)]);
    rolled_back(run(&switches));
    assert_eq!(switches.asked(Call::Undo), [THIRD, SECOND, FIRST]);
    assert!(!is_open(&switches));
}

/// A wish to stop is heeded up to the commit point, and by nobody after it.
#[test]
fn an_interrupt_rolls_back_up_to_the_commit_point_and_not_after_it() {
    for switch in [FIRST, THIRD] {
        let switches = Switches::new(&[(Call::Apply, switch, Odd::Interrupts)]);
        let ending = rolled_back(run(&switches));
        assert!(matches!(told(&ending).1, Failure::Interrupted), "{ending:?}");
        assert!(switches.on().is_empty());
    }
    for switch in [COMMIT, FIFTH] {
        let switches = Switches::new(&[(Call::Apply, switch, Odd::Interrupts)]);
        assert!(matches!(run(&switches), Ok(Ending::Done)));
        assert_eq!(switches.asked(Call::Apply), ALL);
    }
}

/// A journal in which the operation is left with these statuses, by place; the switches are as they say.
fn left(odd: &[(Call, u16, Odd)], statuses: &[TransitionStatus]) -> Switches {
    let switches = Switches::new(odd);
    let mut journal = open(&switches).unwrap();
    journal.begin(ID, b"what", 1).unwrap();
    for (place, status) in (0..).zip(statuses).filter(|(_, status)| **status > TransitionStatus::NeverStarted)
    {
        let switch = ALL[usize::from(place)];
        let intent = switch.to_le_bytes().to_vec();
        journal.intents(&[(place, TransitionId(switch), intent)]).unwrap();
        if *status >= TransitionStatus::Done {
            journal.outcome(place, &[&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1]].concat(), 1).unwrap();
            switches.on.lock().unwrap().insert(switch);
        }
    }
    switches
}

use TransitionStatus::{Done, IntentOnly};

#[test]
fn before_the_commit_point_only_a_probe_that_cannot_tell_is_stuck() {
    for odd in [Odd::Finds(true), Odd::Finds(false), Odd::Lost] {
        let switches = left(&[(Call::Probe, THIRD, odd)], &[Done, Done, IntentOnly]);
        assert!(matches!(recover(&switches, AfterCommit::Stuck), Ok(Ending::RolledBack(None))), "{odd:?}");
        assert_eq!(
            (switches.asked(Call::Probe), switches.asked(Call::Undo)),
            (vec![THIRD], vec![THIRD, SECOND, FIRST]),
            "{odd:?}"
        );
        assert_eq!(open(&switches).unwrap().history().final_state, b"RolledBack");
    }
    for odd in [Odd::CannotTell, Odd::Fails, Odd::Never] {
        let switches = left(&[(Call::Probe, THIRD, odd)], &[Done, Done, IntentOnly]);
        assert_eq!(told(&stuck(recover(&switches, AfterCommit::Stuck))).0, "third");
        assert_eq!((switches.asked(Call::Undo), switches.on()), (vec![], vec![FIRST, SECOND]), "{odd:?}");
        assert!(is_open(&switches));
    }
}

#[test]
fn the_commit_points_probe_decides() {
    let all = [Done, Done, Done, IntentOnly];
    let switches = left(&[(Call::Probe, COMMIT, Odd::Finds(true))], &all);
    let before = switches.syncs.load(Ordering::Relaxed);
    assert!(matches!(recover(&switches, AfterCommit::Stuck), Ok(Ending::Done)));
    // Opening; what the probe found; the last stage; the end.
    assert_eq!(switches.syncs.load(Ordering::Relaxed) - before, 1 + 1 + 1 + 1);
    assert_eq!((switches.asked(Call::Apply), switches.asked(Call::Undo)), (vec![FIFTH, SIXTH], vec![]));
    for odd in [Odd::Finds(false), Odd::Lost] {
        let switches = left(&[(Call::Probe, COMMIT, odd)], &all);
        assert!(matches!(recover(&switches, AfterCommit::Stuck), Ok(Ending::RolledBack(None))), "{odd:?}");
        assert_eq!(
            (switches.asked(Call::Apply), switches.asked(Call::Undo)),
            (vec![], vec![THIRD, SECOND, FIRST]),
            "{odd:?}"
        );
    }
    for odd in [Odd::CannotTell, Odd::Fails, Odd::Never] {
        let switches = left(&[(Call::Probe, COMMIT, odd)], &all);
        assert_eq!(told(&stuck(recover(&switches, AfterCommit::Stuck))).0, "commit");
        assert_eq!((switches.asked(Call::Apply), switches.asked(Call::Undo)), (vec![], vec![]), "{odd:?}");
        assert!(is_open(&switches));
    }
}

#[test]
fn after_the_commit_point_what_is_done_is_recorded_and_what_is_not_is_applied() {
    for (odd, applied) in [(Odd::Finds(true), vec![SIXTH]), (Odd::Finds(false), vec![FIFTH, SIXTH])] {
        let switches = left(&[(Call::Probe, FIFTH, odd)], &[Done, Done, Done, Done, IntentOnly]);
        assert!(matches!(recover(&switches, AfterCommit::Stuck), Ok(Ending::Done)));
        assert_eq!((switches.asked(Call::Apply), switches.asked(Call::Probe)), (applied, vec![FIFTH]));
    }
}

#[test]
fn after_the_commit_point_a_lost_vm_is_cleared_away_and_an_unknown_state_is_stuck() {
    let statuses = [Done, Done, Done, Done, IntentOnly, IntentOnly];
    let switches = left(&[(Call::Probe, FIFTH, Odd::Lost)], &statuses);
    let ending = recover(&switches, AfterCommit::ClearAway).unwrap();
    assert!(matches!((&ending, told(&ending)), (Ending::Lost(_), ("fifth", Failure::Lost))), "{ending:?}");
    assert_eq!(switches.asked(Call::Probe), [FIFTH, SIXTH], "once is enough");
    assert_eq!(switches.asked(Call::Apply), [SIXTH], "what is lost is not applied");
    assert_eq!(open(&switches).unwrap().history().final_state, b"Lost");

    let switches = left(&[(Call::Probe, FIFTH, Odd::Lost)], &statuses);
    stuck(recover(&switches, AfterCommit::Stuck));
    assert!(is_open(&switches));

    for forward in [AfterCommit::ClearAway, AfterCommit::Stuck] {
        // The graver of two is told, whichever came first.
        for mate in [Odd::Fails, Odd::FailsLate] {
            let odd = [(Call::Probe, FIFTH, Odd::CannotTell), (Call::Probe, SIXTH, mate)];
            let switches = left(&odd, &statuses);
            assert_eq!(told(&stuck(recover(&switches, forward))).0, "fifth");
            assert!(switches.asked(Call::Apply).is_empty());
            assert!(is_open(&switches));
        }
    }
}

#[test]
fn a_failure_after_the_commit_point_is_probed_and_applied_once_more() {
    let switches = Switches::new(&[(Call::Apply, FIFTH, Odd::FailsOnce)]);
    assert!(matches!(run(&switches), Ok(Ending::Done)));
    assert_eq!((switches.asked(Call::Probe), switches.on()), (vec![FIFTH], ALL.to_vec()));

    // That the commit point was reached is seen at the first look; what comes after it has its own.
    let odd = [
        (Call::Apply, COMMIT, Odd::Fails),
        (Call::Probe, COMMIT, Odd::Finds(true)),
        (Call::Apply, FIFTH, Odd::FailsOnce),
    ];
    assert!(matches!(run(&Switches::new(&odd)), Ok(Ending::Done)));

    let switches = Switches::new(&[(Call::Apply, FIFTH, Odd::Fails)]);
    let ending = run(&switches).unwrap();
    assert!(matches!((&ending, told(&ending).0), (Ending::Lost(_), "fifth")), "{ending:?}");
    assert_eq!(switches.asked(Call::Apply), [FIRST, SECOND, THIRD, COMMIT, FIFTH, SIXTH, FIFTH]);
    assert!(switches.asked(Call::Undo).is_empty());
    assert!(!is_open(&switches));

    let switches = Switches::new(&[(Call::Probe, FIFTH, Odd::Fails), (Call::Apply, FIFTH, Odd::Fails)]);
    let ending = execute(&switches, &table(AfterCommit::Stuck), Start::Fresh, &Listener::default());
    assert_eq!(told(&stuck(ending)).0, "fifth");
    assert_eq!(switches.asked(Call::Apply), ALL, "its probe failed");
    switches.mend();
    assert!(matches!(recover(&switches, AfterCommit::Stuck), Ok(Ending::Done)));
}

#[test]
fn events_tell_what_happens_in_order() {
    let switches = Switches::new(&[(Call::Apply, THIRD, Odd::Fails)]);
    let listener = Listener::default();
    rolled_back(execute(&switches, &table(AfterCommit::Stuck), Start::Fresh, &listener));
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

    let switches = left(&[(Call::Probe, COMMIT, Odd::Finds(true))], &[Done, Done, Done, IntentOnly]);
    let listener = Listener::default();
    assert!(matches!(
        execute(&switches, &table(AfterCommit::Stuck), Start::Recovery, &listener),
        Ok(Ending::Done)
    ));
    let said = listener.0.lock().unwrap();
    let found = Event::Done { label: "commit", took: None };
    assert_eq!(said[..3], [begun(true), found, Event::Turned(Direction::Forward)]);
}

#[test]
fn an_operation_that_does_not_match_the_journal_is_refused() {
    let switches = Switches::new(&[]);
    drop(open(&switches).unwrap());
    let before = switches.host.journal_bytes(WORKSPACE);
    assert!(matches!(recover(&switches, AfterCommit::Stuck), Err(EngineError::NothingOpen)));
    let pointless: Operation<Switches> =
        Operation::new(OperationId(1), "pointless", AfterCommit::Stuck, |_, _| {
            Box::pin(async { Ok(vec![]) })
        });
    let stopped = execute(&switches, &pointless, Start::Fresh, &Listener::default());
    assert!(matches!(stopped, Err(EngineError::NoCommitPoint)), "{stopped:?}");
    assert_eq!(switches.host.journal_bytes(WORKSPACE), before);

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
