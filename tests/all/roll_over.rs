//! A roll-over whose `vm.restore` fails: it is tried again, then without shares, and the VM is lost only after that.

use std::error::Error;

use nixbox::fakes::{Fault, Host, RefusedLoads};
use nixbox::operations::OperationResult;

use crate::harness::{Command, Said, WORKSPACE, host_after, run, run_with};

use Command::{Recover, Snapshot, Up};

/// A host whose VM is rolled over by a snapshot, and whose VMM refuses these loads.
fn host(refused: RefusedLoads) -> Host {
    let host = host_after(53, true, &[Up]);
    host.refuse_loads(refused);
    host
}

#[test]
fn a_vm_whose_load_fails_is_loaded_again_or_without_shares_and_has_them_afterwards() {
    for refused in [RefusedLoads::Next(1), RefusedLoads::Next(2), RefusedLoads::WithShares] {
        let host = host(refused);
        let said = run(&host, Snapshot);
        assert!(said.done(), "{refused:?}: {said:?}");
        assert_eq!(host.violations(WORKSPACE), [], "{refused:?}");
        assert_eq!(host.snapshots(WORKSPACE).len(), 1);
    }
}

#[test]
fn a_vm_that_no_attempt_can_load_is_lost_and_the_error_says_what_was_tried() {
    let host = host(RefusedLoads::All);
    let said = run(&host, Snapshot);
    let Said::Report(OperationResult::ClearedAway(failure)) = &said else { panic!("{said:?}") };
    assert_eq!(failure.label, "resume");
    let said = failure.failure.to_string();
    assert_eq!(
        said,
        "the VM could not be loaded into a new VMM: at first: the VM could not be restored; once more: the VM could \
         not be restored; without its shares: the VM could not be restored"
    );
    assert!(failure.failure.source().is_none());
    assert_eq!(host.violations(WORKSPACE), []);
    assert_eq!(host.snapshots(WORKSPACE).len(), 0);
    host.refuse_loads(RefusedLoads::None);
    assert!(run(&host, Up).done());
}

/// A nixbox that is killed while it tries loses no VM, and neither does one that is killed while it recovers.
#[test]
fn a_nixbox_that_is_killed_between_attempts_loses_no_vm() {
    for refused in [RefusedLoads::Next(1), RefusedLoads::Next(2), RefusedLoads::WithShares] {
        let before = host(refused);
        let mut schedules = 0;
        for point in 0.. {
            let host = before.fork();
            run_with(&host, Snapshot, Fault::CrashAt(point, nixbox::fakes::Crash::Death));
            if !host.died() {
                break;
            }
            for second in 0.. {
                let host = host.fork();
                run_with(&host, Recover, Fault::CrashAt(second, nixbox::fakes::Crash::Death));
                let died = host.died();
                let said = run(&host, Recover);
                let context = format!("{refused:?}, killed at {point} and {second}: {said:?}");
                assert!(!said.stuck() && host.is_ssh_ready(WORKSPACE), "{context}");
                assert_eq!(host.violations(WORKSPACE), [], "{context}");
                schedules += 1;
                if !died {
                    break;
                }
            }
        }
        assert!(schedules > 100, "only {schedules} schedules");
    }
}
