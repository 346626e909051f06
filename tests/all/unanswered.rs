//! A guest that runs and never answers: its VM is shut down as in a `down`, or left running if a person asked for that.

use std::sync::atomic::{AtomicUsize, Ordering};

use nixbox::engine::executor::{Event, Observer};
use nixbox::engine::transition::Failure;
use nixbox::fakes::{Crash, Fault, Host, Loss, Survival};
use nixbox::operations::{LossReason, OperationResult, Refusal};

use crate::harness::{Command, Said, WORKSPACE, host_after, run, run_observed, run_with};

use Command::{Down, Recover, RestoreKeep, RestoreNewest, Snapshot, SnapshotStop, Up, UpKeep, UpWarm};

/// A host on which these commands have succeeded, and on which no guest answers from now on.
fn silent_after(commands: &[Command]) -> Host {
    let host = host_after(53, true, commands);
    host.lose(Loss::Answers);
    host
}

#[test]
fn a_guest_that_does_not_answer_is_shut_down_and_its_disk_is_kept() {
    for (before, command) in
        [(&[][..], Up), (&[Up, SnapshotStop], RestoreNewest), (&[Up, SnapshotStop], UpWarm)]
    {
        let host = silent_after(before);
        let said = run(&host, command);
        let Said::Report(OperationResult::ClearedAway(failure)) = &said else {
            panic!("{command:?}: {said:?}")
        };
        assert!(matches!(failure.failure, Failure::WaitedOut(_)), "{command:?}: {said:?}");
        assert_eq!(host.violations(WORKSPACE), [], "{command:?}");
        assert_eq!((host.running_vms(WORKSPACE), host.guests_cut_off()), (0, 0), "{command:?}");
        host.restore_loss(Loss::Answers);
        assert!(run(&host, Up).done(), "{command:?}");
        assert_eq!(host.violations(WORKSPACE), [], "{command:?}, then up");
    }
}

/// Counts the failures of transitions.
struct Failures(AtomicUsize);

impl Observer for Failures {
    fn event(&self, event: Event) {
        self.0.fetch_add(usize::from(matches!(event, Event::Failed(_))), Ordering::SeqCst);
    }
}

#[test]
fn a_guest_that_does_not_answer_is_waited_for_once() {
    for (loss, expected) in [(Loss::Answers, 1), (Loss::Targets, 2)] {
        let host = host_after(53, true, &[]);
        host.lose(loss);
        let failures = Failures(AtomicUsize::new(0));
        let said = run_observed(&host, Up, &failures);
        assert!(matches!(said, Said::Report(OperationResult::ClearedAway(_))), "{loss:?}: {said:?}");
        assert_eq!(failures.0.load(Ordering::SeqCst), expected, "{loss:?}");
    }
}

#[test]
fn a_guest_that_does_not_answer_is_left_running_if_a_person_asks_for_it() {
    for (before, command) in [(&[][..], UpKeep), (&[Up, SnapshotStop], RestoreKeep)] {
        let host = silent_after(before);
        let said = run(&host, command);
        assert!(matches!(said, Said::Report(OperationResult::LeftRunning(_))), "{command:?}: {said:?}");
        assert_eq!(host.running_vms(WORKSPACE), 1, "{command:?}");
        assert_eq!(host.violations(WORKSPACE), [], "{command:?}");
        // Recovery leaves it, and nothing goes on with it, also if it answers by now.
        let is = host.fingerprint();
        let recovered = run(&host, Recover);
        assert!(
            matches!(&recovered, Said::Recovered(recovered) if recovered.cleared.is_none()),
            "{recovered:?}"
        );
        host.restore_loss(Loss::Answers);
        for refused in [Up, UpKeep, UpWarm, Snapshot, SnapshotStop] {
            let said = run(&host, refused);
            assert!(matches!(said, Said::Refused(Refusal::LeftRunning)), "{refused:?}: {said:?}");
        }
        assert_eq!(host.fingerprint(), is, "{command:?}");
        let said = run(&host, Down);
        assert!(said.done(), "{command:?}, then down: {said:?}");
        assert_eq!((host.running_vms(WORKSPACE), host.guests_cut_off()), (0, 0), "{command:?}");
        assert_eq!(host.violations(WORKSPACE), [], "{command:?}, then down");
        assert!(run(&host, Up).done());
        assert_eq!(host.violations(WORKSPACE), [], "{command:?}, then down and up");
    }
}

#[test]
fn a_vm_that_was_left_running_and_is_gone_is_cleared_away() {
    let host = silent_after(&[]);
    run(&host, UpKeep);
    host.kill_vmm(WORKSPACE);
    let said = run(&host, Recover);
    let cleared = matches!(&said, Said::Recovered(recovered) if recovered.cleared == Some(LossReason::Gone));
    assert!(cleared, "{said:?}");
    assert_eq!(host.violations(WORKSPACE), []);
}

#[test]
fn every_crash_while_a_guest_does_not_answer_is_recovered() {
    let mut schedules = 0;
    for (before, command) in [
        (&[][..], Up),
        (&[], UpKeep),
        (&[Up, SnapshotStop], RestoreNewest),
        (&[Up, SnapshotStop], RestoreKeep),
    ] {
        let silent = silent_after(before);
        for crash in [Crash::Death, Crash::VmmKilled, Crash::VmmHangs, Crash::PowerCut(Survival::Some(3))] {
            for point in 0.. {
                let host = silent.fork();
                run_with(&host, command, Fault::CrashAt(point, crash));
                if host.counts().points <= point {
                    break;
                }
                schedules += 1;
                let context = format!("{command:?}, {crash:?} at point {point}");
                let said = run(&host, Recover);
                assert!(!said.stuck(), "{context}: {said:?}");
                assert_eq!(host.violations(WORKSPACE), [], "{context}: {said:?}");
                let once = host.fingerprint();
                run(&host, Recover);
                assert_eq!(host.fingerprint(), once, "{context}: recovering twice changed something");
                host.restore_loss(Loss::Answers);
                assert!(run(&host, Down).done(), "{context}, then down");
                assert!(run(&host, Up).done(), "{context}, then up");
                assert_eq!(host.violations(WORKSPACE), [], "{context}, then up");
            }
        }
    }
    assert!(schedules > 400, "only {schedules} schedules");
}
