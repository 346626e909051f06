//! Each call of a seam goes wrong at every place it is made, once and for good; each point is interrupted.

use nixbox::engine::transition::Failure;
use nixbox::fakes::{CallFault, Crash, Fault, Host, Loss, Survival, Violation};
use nixbox::operations::{LossReason, OperationResult, Refusal};

use crate::crashes::Scenario;
use crate::harness::{Command, Count, Said, WORKSPACE, host_after, run, run_with};

use Command::{
    DeleteNewest, Down, GuestScriptsAreAdded, Replace, RestoreNewest, Snapshot, SnapshotStop, Up, UpWarm,
};

static SCHEDULES: Count = Count::new("fault schedules", 3);

const WRONGS: [CallFault; 4] =
    [CallFault::ErrorBefore, CallFault::ErrorAfter, CallFault::SilentBefore, CallFault::SilentAfter];

const SCENARIOS: [Scenario; 14] = [
    Scenario { version: 53, shares: true, before: &[GuestScriptsAreAdded], command: Up },
    Scenario { version: 53, shares: true, before: &[Up], command: Down },
    Scenario { version: 54, shares: true, before: &[Up], command: Snapshot },
    Scenario { version: 51, shares: true, before: &[Up], command: Snapshot },
    Scenario { version: 53, shares: true, before: &[Up], command: Snapshot },
    Scenario { version: 52, shares: true, before: &[Up, GuestScriptsAreAdded], command: SnapshotStop },
    Scenario { version: 53, shares: true, before: &[Up, SnapshotStop], command: RestoreNewest },
    Scenario {
        version: 51,
        shares: true,
        before: &[Up, Snapshot, Down, GuestScriptsAreAdded],
        command: RestoreNewest,
    },
    Scenario { version: 53, shares: true, before: &[Up, SnapshotStop], command: UpWarm },
    Scenario { version: 54, shares: true, before: &[Up, Snapshot], command: Replace },
    Scenario { version: 53, shares: true, before: &[Up, SnapshotStop, Up], command: Down },
    Scenario { version: 53, shares: false, before: &[Up, SnapshotStop], command: DeleteNewest },
    Scenario { version: 53, shares: true, before: &[Up, Command::GuestReboots], command: Command::Equip },
    Scenario { version: 53, shares: true, before: &[Up], command: Command::EquipAnew },
];

/// What is compared of a host before and after: how the VM stands, and which snapshots there are.
fn essence(host: &Host) -> (bool, Vec<u64>) {
    let snapshots = host.snapshots(WORKSPACE).into_iter().map(|(_, hash)| hash).collect();
    (host.is_ssh_ready(WORKSPACE), snapshots)
}

/// What an operation said agrees with the world.
fn agree(before: &Host, host: &Host, command: Command, said: &Said, context: &str) {
    let (was_up, had) = essence(before);
    let (is_up, has) = essence(host);
    match said {
        Said::Report(OperationResult::Done) => match command {
            Up
            | Command::UpKeep
            | Command::UpOnKept
            | Command::RestoreKeep
            | UpWarm
            | RestoreNewest
            | Replace
            | Command::SnapshotNamed => {
                assert!(is_up, "{context}: done, and not up")
            }
            Snapshot => assert!(is_up && has.len() == had.len() + 1, "{context}: done, and no snapshot"),
            SnapshotStop => assert!(!is_up && has.len() == had.len() + 1, "{context}: done, and not stopped"),
            Down => assert!(!is_up, "{context}: done, and not down"),
            DeleteNewest => assert!(has.len() + 1 == had.len(), "{context}: done, and still listed"),
            Command::Equip | Command::EquipAnew => {
                assert!(is_up && !host.lacks_credentials(WORKSPACE), "{context}: done, and not")
            }
            Command::Recover
            | Command::SnapshotKeepOne
            | Command::GuestReboots
            | Command::GuestScriptsAreAdded => {}
        },
        Said::Report(OperationResult::RolledBack(_)) | Said::Refused(_) if !said.stuck() => {
            assert_eq!((was_up, had), (is_up, has), "{context}: rolled back, and not as before");
        }
        Said::Report(OperationResult::ClearedAway(_) | OperationResult::ReplacedInVain(_)) => {
            assert_eq!((false, had), (is_up, has), "{context}: cleared away, and not down");
        }
        _ => {}
    }
}

/// How often a call of a seam goes wrong: this one, or this one and all that come after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Once,
    ForGood,
}

/// Lets each call of each scenario go wrong. Returns how many schedules that was.
fn every_call_goes_wrong(extent: Extent) -> u64 {
    let mut schedules = 0;
    for Scenario { version, shares, before, command } in SCENARIOS {
        let before = host_after(version, shares, before);
        for wrong in WRONGS {
            for call in 0.. {
                let host = before.fork();
                let fault = match extent {
                    Extent::Once => Fault::CallGoesWrong(call, wrong),
                    Extent::ForGood => Fault::CallsGoWrong(call, wrong),
                };
                let said = run_with(&host, command, fault);
                if host.counts().calls <= call {
                    assert!(said.done(), "{command:?} without a fault: {said:?}");
                    break;
                }
                schedules += 1;
                let context =
                    format!("v{version} {command:?}, {wrong:?} at call {call}, {extent:?}: {said:?}");
                let violations = host.violations(WORKSPACE);
                assert!(!said.done() || violations.is_empty(), "{context}: done, and {violations:?}");
                // Where every call goes wrong, what stands may not even be looked at: it refuses then, and repairs nothing.
                let repairs = extent == Extent::Once || !matches!(said, Said::Refused(_));
                if !said.stuck() && repairs {
                    assert_eq!(violations, [], "{context}");
                    agree(&before, &host, command, &said, &context);
                }
                // An operation that is stuck gets through once the cause is gone.
                let recovered = run(&host, Command::Recover);
                assert!(!recovered.stuck(), "{context}: recovery said {recovered:?}");
                assert_eq!(host.violations(WORKSPACE), [], "{context}: recovery said {recovered:?}");
            }
        }
    }
    schedules
}

#[test]
fn a_call_that_goes_wrong_once_is_recovered() {
    let schedules = every_call_goes_wrong(Extent::Once);
    SCHEDULES.ended("every call goes wrong once", schedules);
    assert!(schedules > 500);
}

#[test]
fn calls_that_go_wrong_for_good_are_recovered() {
    let schedules = every_call_goes_wrong(Extent::ForGood);
    SCHEDULES.ended("every call goes wrong for good", schedules);
    assert!(schedules > 500);
}

#[test]
fn an_operation_whose_share_daemons_died_is_not_called_done() {
    let mut refused = 0;
    for Scenario { version, shares, before, command } in SCENARIOS.into_iter().filter(|one| one.shares) {
        let before = host_after(version, shares, before);
        for point in 0.. {
            let host = before.fork();
            let said = run_with(&host, command, Fault::CrashAt(point, Crash::SharesKilled));
            if host.counts().points <= point {
                break;
            }
            let dead = |violation: &Violation| violation.what.contains("the guest lacks its shares");
            let lacks = host.violations(WORKSPACE).iter().any(dead);
            assert!(
                !(said.done() && lacks),
                "v{version} {command:?}, share daemons killed at {point}: {said:?}"
            );
            refused += usize::from(!said.done());
        }
    }
    assert!(refused > 0);
}

#[test]
fn an_interrupt_rolls_back_before_the_commit_point_and_finishes_after_it() {
    let (mut back, mut finished) = (0, 0);
    for Scenario { version, shares, before, command } in SCENARIOS {
        let before = host_after(version, shares, before);
        for point in 0.. {
            let host = before.fork();
            let said = run_with(&host, command, Fault::InterruptAt(point));
            if host.counts().points <= point {
                break;
            }
            let context = format!("v{version} {command:?}, interrupted at point {point}: {said:?}");
            assert_eq!(host.violations(WORKSPACE), [], "{context}");
            agree(&before, &host, command, &said, &context);
            match said {
                Said::Report(OperationResult::Done) => finished += 1,
                Said::Report(OperationResult::RolledBack(_)) => back += 1,
                // The interrupt came before the operation was begun.
                Said::Refused(
                    Refusal::Look(Failure::Interrupted) | Refusal::Credentials(Failure::Interrupted),
                ) => back += 1,
                // The VM that was to be replaced is down by then, and it says so.
                Said::Report(OperationResult::ReplacedInVain(_)) if command == Replace => back += 1,
                _ => panic!("{context}"),
            }
        }
    }
    SCHEDULES.ended("every point is interrupted", back + finished);
    assert!(back > 100 && finished > 100, "{back} rolled back, {finished} finished");
}

#[test]
fn a_damaged_snapshot_is_refused_before_anything_is_touched() {
    let host = host_after(53, true, &[Up, SnapshotStop]);
    let newest = host.snapshots(WORKSPACE)[0].0;
    host.damage_snapshot(WORKSPACE, newest);
    let looks = host.fingerprint();
    let said = run(&host, RestoreNewest);
    assert!(matches!(said, Said::Refused(Refusal::Unfit(..))), "{said:?}");
    assert!(!host.is_ssh_ready(WORKSPACE));
    // Only the journal was opened.
    assert_eq!(host.snapshots(WORKSPACE).len(), 1);
    assert_eq!(host.fingerprint(), looks);
}

#[test]
fn a_snapshot_name_that_exists_is_refused() {
    let host = host_after(54, true, &[Up, Command::SnapshotNamed]);
    let said = run(&host, Command::SnapshotNamed);
    assert!(matches!(said, Said::Refused(Refusal::NameTaken(_))), "{said:?}");
}

#[test]
fn snapshots_of_restored_vms_and_repeated_restores_work() {
    let host = host_after(53, true, &[Up, SnapshotStop]);
    for generation in 0..5 {
        for command in [RestoreNewest, SnapshotStop] {
            let said = run(&host, command);
            assert!(said.done(), "{command:?} in generation {generation}: {said:?}");
            assert_eq!(host.violations(WORKSPACE), [], "{command:?} in generation {generation}");
            host.guest_works(10);
        }
    }
    let (_, first) = host.snapshots(WORKSPACE)[5];
    for time in 0..10 {
        assert!(run(&host, RestoreNewest).done(), "restore {time}");
        host.guest_works(100);
        assert!(run(&host, Down).done(), "down {time}");
        assert_eq!(host.snapshots(WORKSPACE)[5].1, first, "restore {time} changed the snapshot");
    }
}

#[test]
fn what_is_left_of_a_lost_vm_is_cleared_away() {
    let host = host_after(53, true, &[Up, Snapshot]);
    host.kill_vmm(WORKSPACE);
    assert_ne!(host.violations(WORKSPACE), []);
    let said = run(&host, Command::Recover);
    assert!(
        matches!(&said, Said::Recovered(recovered) if recovered.cleared == Some(LossReason::Gone)),
        "{said:?}"
    );
    assert_eq!(host.violations(WORKSPACE), []);

    let host = host_after(53, true, &[Up, Snapshot]);
    host.power_cut(Survival::Nothing);
    assert!(run(&host, RestoreNewest).done());
    assert_eq!(host.violations(WORKSPACE), []);
}

#[test]
fn a_vmm_that_dies_at_any_point_of_a_recovery_is_cleared_away() {
    for command in [Snapshot, SnapshotStop] {
        let before = host_after(53, true, &[Up]);
        for first in 0.. {
            let crashed = before.fork();
            run_with(&crashed, command, Fault::CrashAt(first, Crash::Death));
            if !crashed.died() {
                break;
            }
            for second in 0.. {
                let host = crashed.fork();
                run_with(&host, Command::Recover, Fault::CrashAt(second, Crash::VmmKilled));
                let reached = host.counts().points > second;
                let said = run(&host, Command::Recover);
                let context = format!("{command:?} died at {first}, VMM killed at {second} of the recovery");
                assert!(!said.stuck(), "{context}: {said:?}");
                assert_eq!(host.violations(WORKSPACE), [], "{context}: {said:?}");
                if !reached {
                    break;
                }
            }
        }
    }
}

/// The commands that need the credentials of the configuration.
const NEEDS_SOURCES: [Scenario; 7] = [
    Scenario { version: 53, shares: true, before: &[], command: Up },
    Scenario { version: 53, shares: true, before: &[Up, SnapshotStop], command: UpWarm },
    Scenario { version: 54, shares: true, before: &[Up], command: Snapshot },
    Scenario { version: 53, shares: true, before: &[Up], command: Snapshot },
    Scenario { version: 52, shares: true, before: &[Up], command: SnapshotStop },
    Scenario { version: 53, shares: true, before: &[Up, SnapshotStop], command: RestoreNewest },
    Scenario { version: 54, shares: true, before: &[Up, Snapshot], command: Replace },
];

/// Like [`host_after`]. The first command of a workspace makes its journal, and that has happened already.
fn host_with_journal(version: u32, shares: bool, commands: &[Command]) -> Host {
    let host = host_after(version, shares, commands);
    assert!(!run(&host, Command::Recover).stuck());
    host
}

#[test]
fn a_credential_source_that_is_gone_refuses_a_command_before_anything_is_changed() {
    for Scenario { version, shares, before, command } in NEEDS_SOURCES {
        let host = host_with_journal(version, shares, before);
        host.lose(Loss::Sources);
        let (was, ran) = (host.fingerprint(), host.is_ssh_ready(WORKSPACE));
        let said = run(&host, command);
        assert!(matches!(said, Said::Refused(Refusal::Credentials(_))), "{command:?}: {said:?}");
        assert_eq!((host.fingerprint(), host.is_ssh_ready(WORKSPACE)), (was, ran), "{command:?}");
        // Bringing the VM down needs no credential.
        let said = run(&host, Down);
        assert!(said.done(), "down after {command:?}: {said:?}");
        assert_eq!(host.violations(WORKSPACE), [], "{command:?}, then down");
    }
}

#[test]
fn a_credential_source_that_goes_while_a_command_runs_does_not_matter() {
    let (mut refused, mut done) = (0, 0);
    for Scenario { version, shares, before, command } in NEEDS_SOURCES {
        let before = host_with_journal(version, shares, before);
        for point in 0.. {
            let host = before.fork();
            let was = host.fingerprint();
            host.lose_at(point, Loss::Sources);
            let said = run(&host, command);
            if host.counts().points <= point {
                break;
            }
            let context = format!("v{version} {command:?}, sources gone at point {point}: {said:?}");
            match &said {
                Said::Refused(Refusal::Credentials(_)) => {
                    assert_eq!(host.fingerprint(), was, "{context}");
                    refused += 1;
                }
                said if said.done() => done += 1,
                _ => panic!("{context}"),
            }
            assert_eq!(host.violations(WORKSPACE), [], "{context}");
        }
    }
    assert!(done > 100 && refused < done / 10, "{done} done, {refused} refused");
}

/// Once the credentials are held a rollback gives them back, whatever became of their sources.
#[test]
fn a_snapshot_that_rolls_back_gives_the_credentials_back_without_their_sources() {
    let mut back = 0;
    for (version, command) in [(54, Snapshot), (53, Snapshot), (52, SnapshotStop)] {
        let before = host_after(version, true, &[Up]);
        for point in 0.. {
            let host = before.fork();
            host.lose_at(point, Loss::Sources);
            let said = run_with(&host, command, Fault::InterruptAt(point));
            if host.counts().points <= point {
                break;
            }
            let context = format!("v{version} {command:?}, interrupted at point {point}: {said:?}");
            assert!(!said.stuck(), "{context}");
            assert_eq!(host.violations(WORKSPACE), [], "{context}");
            back += usize::from(matches!(said, Said::Report(OperationResult::RolledBack(_))));
        }
    }
    assert!(back > 30, "only {back} rolled back");
}

#[test]
fn a_snapshot_of_a_guest_that_cannot_be_settled_rolls_back_and_gives_the_credentials_back() {
    let (mut back, mut done, mut refused) = (0, 0, 0);
    for version in [51, 53, 54] {
        let before = host_after(version, true, &[Up]);
        for point in 0.. {
            let host = before.fork();
            host.lose_at(point, Loss::Entropy);
            let said = run(&host, Snapshot);
            if host.counts().points <= point {
                break;
            }
            let context = format!("v{version}, interrupted at point {point}: {said:?}");
            match said {
                Said::Report(OperationResult::RolledBack(_)) => back += 1,
                // The guest was settled before.
                Said::Report(OperationResult::Done) => done += 1,
                // The loss was found out before anything was changed.
                Said::Refused(Refusal::GuestUnfit(_)) => refused += 1,
                _ => panic!("{context}"),
            }
            assert_eq!(host.violations(WORKSPACE), [], "{context}");
        }
    }
    assert!(back > 30 && done > refused, "{back} rolled back, {done} done, {refused} refused");
}

#[test]
fn a_guest_that_cannot_be_wiped_settled_or_given_credentials_is_not_touched() {
    for loss in [Loss::Root, Loss::Entropy, Loss::Targets] {
        for command in [Snapshot, SnapshotStop] {
            let host = host_after(53, true, &[Up]);
            host.lose(loss);
            let was = host.fingerprint();
            let said = run(&host, command);
            assert!(matches!(said, Said::Refused(Refusal::GuestUnfit(_))), "{loss:?}: {said:?}");
            assert_eq!(host.fingerprint(), was, "{loss:?}");
            assert_eq!(host.violations(WORKSPACE), [], "{loss:?}");
        }
    }
}
