//! The network of a VM that runs is broken by somebody else, and repaired: by every command that changes something, and
//! after every crash and every failed call of a repair.

use nixbox::fakes::{CallFault, Crash, Fault, Host, Survival};
use nixbox::operations::{OperationResult, Recovered};
use nixbox::world::NetworkFault;

use crate::harness::{Command, Count, Said, WORKSPACE, host_after, run, run_with};

use Command::{Down, Recover, Replace, Snapshot, SnapshotStop, Up, UpWarm};

/// What the fakes can lose and a repair gives back.
const REPAIRABLE: [NetworkFault; 4] =
    [NetworkFault::GuestFirewall, NetworkFault::Uplink, NetworkFault::Keeper, NetworkFault::Dns];

static SCHEDULES: Count = Count::new("repair schedules", 2);

/// A host with a VM whose network lacks these parts.
fn broken(faults: &[NetworkFault]) -> Host {
    let host = host_after(54, true, &[Up]);
    faults.iter().for_each(|fault| host.break_network(WORKSPACE, *fault));
    let violated = host.violations(WORKSPACE).iter().any(|violation| violation.invariant == 13);
    assert!(violated, "{faults:?} is not seen by the invariants");
    host
}

fn recovered(host: &Host) -> Recovered {
    match run(host, Recover) {
        Said::Recovered(recovered) => recovered,
        other => panic!("{other:?}"),
    }
}

#[test]
fn recover_says_what_it_repaired_and_does_it_once() {
    for fault in REPAIRABLE {
        let host = broken(&[fault]);
        let network = recovered(&host).network;
        assert_eq!((network.found.clone(), network.left.clone()), (vec![fault], vec![]));
        assert_eq!(network.repaired().collect::<Vec<_>>(), [fault]);
        assert!(network.failure.is_none());
        assert_eq!(host.violations(WORKSPACE), []);
        let once = host.fingerprint();
        assert!(recovered(&host).network.found.is_empty());
        assert_eq!(once, host.fingerprint(), "{fault:?}: a second repair changed something");
    }
}

#[test]
fn every_command_repairs_the_network_of_a_vm_that_runs() {
    for command in [Up, UpWarm, Snapshot, SnapshotStop, Recover, Down] {
        let host = broken(&REPAIRABLE);
        let said = run(&host, command);
        assert!(said.done() || matches!(said, Said::Recovered(_)), "{command:?}: {said:?}");
        assert_eq!(host.violations(WORKSPACE), [], "{command:?}");
    }
    let host = host_after(54, true, &[Up, Snapshot]);
    host.break_network(WORKSPACE, NetworkFault::Keeper);
    assert!(run(&host, Replace).done());
    assert_eq!(host.violations(WORKSPACE), []);
}

#[test]
fn a_network_that_cannot_be_repaired_is_said_and_keeps_no_vm_from_going_down() {
    let host = broken(&[NetworkFault::Tap]);
    let network = recovered(&host).network;
    assert_eq!(network.left, [NetworkFault::Tap]);
    assert_eq!(network.repaired().count(), 0);
    let said = run(&host, Down);
    assert!(matches!(said, Said::Report(OperationResult::Done)), "{said:?}");
    assert_eq!(host.violations(WORKSPACE), []);
}

/// Repairs with every crash at every point, and then once more.
#[test]
fn a_repair_that_is_killed_anywhere_is_repeated() {
    let mut schedules = 0;
    let crashes = [Crash::Death, Crash::VmmKilled, Crash::PowerCut(Survival::Some(1))];
    for command in [Recover, Up, Snapshot, Down] {
        for crash in crashes {
            for point in 0.. {
                let host = broken(&REPAIRABLE);
                run_with(&host, command, Fault::CrashAt(point, crash));
                if host.counts().points <= point {
                    break;
                }
                schedules += 1;
                let context = format!("{command:?}, {crash:?} at point {point}");
                let network = recovered(&host).network;
                assert!(network.left.is_empty() && network.failure.is_none(), "{context}: {network:?}");
                assert_eq!(host.violations(WORKSPACE), [], "{context}");
                let once = host.fingerprint();
                run(&host, Recover);
                assert_eq!(once, host.fingerprint(), "{context}: recovering twice changed something");
            }
        }
    }
    SCHEDULES.ended("crashes", schedules);
}

#[test]
fn a_repair_whose_calls_go_wrong_refuses_no_command_and_is_repeated() {
    let mut schedules = 0;
    let wrongs =
        [CallFault::ErrorBefore, CallFault::ErrorAfter, CallFault::SilentBefore, CallFault::SilentAfter];
    for command in [Recover, Up] {
        for wrong in wrongs {
            for call in 0.. {
                let host = broken(&REPAIRABLE);
                let said = run_with(&host, command, Fault::CallGoesWrong(call, wrong));
                if host.counts().calls <= call {
                    break;
                }
                schedules += 1;
                let context = format!("{command:?}, {wrong:?} at call {call}");
                assert!(!said.stuck(), "{context}: {said:?}");
                assert!(recovered(&host).network.left.is_empty(), "{context}");
                assert_eq!(host.violations(WORKSPACE), [], "{context}");
            }
        }
    }
    SCHEDULES.ended("calls that go wrong", schedules);
}
