//! What a guest does by itself: it reboots, and gets its credentials and shares again; it powers off, and the workspace is down;
//! its host was suspended, and it gets the time.

use nixbox::engine::transition::Failure;
use nixbox::fakes::{Crash, Fault, Host, Loss};
use nixbox::operations::{LossReason, OperationResult, Recovered, Refusal};

use crate::harness::{Command, Said, WORKSPACE, host_after, run, run_with};

use Command::{
    Down, Equip, GuestReboots, Recover, Replace, RestoreNewest, Snapshot, SnapshotStop, Up, UpWarm,
};

/// Whether a guest lacks nothing, although the host says nothing of a reboot.
fn has_everything(host: &Host) -> bool {
    host.is_ssh_ready(WORKSPACE) && host.violations(WORKSPACE).is_empty()
}

#[test]
fn a_rebooted_guest_gets_everything_again_from_each_command_that_reaches_it() {
    for version in [51, 53, 54] {
        for shares in [false, true] {
            for command in [Equip, Up, UpWarm, Snapshot] {
                let host = host_after(version, shares, &[Up, GuestReboots]);
                assert!(host.lacks_credentials(WORKSPACE));
                assert!(run(&host, command).done(), "{command:?}");
                assert!(!host.lacks_credentials(WORKSPACE), "{command:?}");
                assert!(has_everything(&host), "{command:?}: {:?}", host.violations(WORKSPACE));
                // It is done once.
                assert!(matches!(run(&host, Equip), Said::Report(OperationResult::Already)), "{command:?}");
            }
        }
    }
}

#[test]
fn a_guest_that_was_not_rebooted_is_left_alone() {
    for before in [&[Up][..], &[Up, Snapshot], &[Up, SnapshotStop, RestoreNewest]] {
        let host = host_after(53, true, before);
        for command in [Equip, Up, UpWarm] {
            let said = run(&host, command);
            assert!(
                matches!(said, Said::Report(OperationResult::Already)),
                "{before:?}, {command:?}: {said:?}"
            );
        }
    }
    let host = host_after(53, true, &[]);
    assert!(matches!(run(&host, Equip), Said::Refused(Refusal::NotRunning)));
}

#[test]
fn a_snapshot_of_a_rebooted_guest_is_restored_into_that_boot() {
    for version in [51, 53, 54] {
        let host = host_after(version, true, &[Up, GuestReboots, Snapshot, GuestReboots, Replace]);
        assert!(has_everything(&host));
        assert!(matches!(run(&host, Equip), Said::Report(OperationResult::Already)));
        assert!(run(&host, Down).done());
    }
}

#[test]
fn a_rebooted_guest_that_cannot_be_given_its_credentials_is_tried_again() {
    let host = host_after(53, true, &[Up, GuestReboots]);
    host.lose(Loss::Targets);
    let said = run(&host, Equip);
    assert!(matches!(said, Said::Report(OperationResult::RolledBack(_))), "{said:?}");
    assert_eq!(host.violations(WORKSPACE), []);
    host.restore_loss(Loss::Targets);
    assert!(host.lacks_credentials(WORKSPACE));
    assert!(matches!(run(&host, Equip), Said::Report(OperationResult::Done)));
    assert!(has_everything(&host) && !host.lacks_credentials(WORKSPACE));
}

#[test]
fn a_guest_whose_share_daemons_are_dead_does_not_survive_its_reboot() {
    let host = host_after(53, true, &[Up]);
    run_with(&host, Recover, Fault::CrashAt(0, Crash::SharesKilled));
    host.reboot_guest(WORKSPACE);
    let Said::Recovered(Recovered { cleared: Some(LossReason::Gone), .. }) = run(&host, Recover) else {
        panic!("the VMM lives")
    };
    assert!(run(&host, Up).done() && has_everything(&host));
}

#[test]
fn a_guest_that_powers_off_leaves_the_workspace_down_with_its_disk() {
    for before in [&[Up][..], &[Up, Snapshot], &[Up, SnapshotStop, RestoreNewest]] {
        let host = host_after(53, true, before);
        host.power_off_guest(WORKSPACE);
        let disks = host.disks(WORKSPACE);
        let said = run(&host, Recover);
        let Said::Recovered(Recovered { cleared: Some(LossReason::PoweredOff), stuck: None, .. }) = said
        else {
            panic!("{before:?}: {said:?}")
        };
        assert_eq!(host.violations(WORKSPACE), [], "{before:?}");
        assert_eq!((host.disks(WORKSPACE), host.guests_cut_off()), (disks, 0), "{before:?}");
        assert!(matches!(run(&host, Down), Said::Report(OperationResult::Already)));
        assert!(run(&host, Up).done() && has_everything(&host));
    }
}

#[test]
fn a_guest_whose_host_was_suspended_gets_the_time() {
    for command in [Equip, Up, UpWarm, Snapshot] {
        let host = host_after(54, true, &[Up]);
        host.suspend(WORKSPACE);
        assert!(!host.violations(WORKSPACE).is_empty());
        assert!(run(&host, command).done(), "{command:?}");
        assert_eq!(host.violations(WORKSPACE), [], "{command:?}");
    }
    // What cannot be set is no reason to refuse.
    let host = host_after(54, true, &[Up]);
    host.suspend(WORKSPACE);
    host.lose(Loss::Clock);
    assert!(run(&host, Up).done());
}

#[test]
fn a_guest_that_does_not_answer_is_no_guest_that_was_rebooted() {
    let host = host_after(53, true, &[Up]);
    host.lose(Loss::Answers);
    let said = run(&host, Up);
    assert!(matches!(said, Said::Refused(Refusal::Guest(Failure::WaitedOut(_)))), "{said:?}");
    assert_eq!(host.running_vms(WORKSPACE), 1);
}
