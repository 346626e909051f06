//! The disk of the session before a restore is kept, and a person can go back to it.

use nixbox::engine::transition::Generation;
use nixbox::fakes::{Crash, Fault, Host, Loss};
use nixbox::operations::{OperationResult, Refusal};

use crate::harness::{Command, Said, WORKSPACE, host_after, in_session, run, run_with};

use Command::{Down, Recover, RestoreNewest, Snapshot, SnapshotStop, Up, UpOnKept, UpWarm};

/// The generations of the kept disks, first the one that was kept first.
fn kept(host: &Host) -> Vec<u64> {
    host.kept_disks(WORKSPACE).into_iter().map(|kept| kept.disk.0).collect()
}

fn does(host: &Host, command: Command) {
    let said = run(host, command);
    assert!(said.done(), "{command:?}: {said:?}");
    assert_eq!(host.violations(WORKSPACE), [], "{command:?}");
}

#[test]
fn the_disk_of_the_session_before_is_named_kept_and_gone_back_to() {
    let host = host_after(53, true, &[Up, SnapshotStop]);
    let session = *host.disks(WORKSPACE).first().unwrap();
    let warm = in_session(&host, async |session| session.warm_up(None).await).unwrap();
    assert!(matches!(warm.report, OperationResult::Done));
    assert_eq!(warm.former_disk, Some(session));
    // It is kept once the VM that has taken its place is down.
    assert!(kept(&host).is_empty());
    let said = run(&host, UpOnKept);
    assert!(matches!(said, Said::Refused(Refusal::Running)), "{said:?}");
    does(&host, Down);
    assert_eq!(kept(&host), [session.0]);
    // Neither a boot, nor a snapshot, nor a sweep takes it away.
    for command in [Up, Snapshot, Down, Up, SnapshotStop, Recover] {
        run(&host, command);
        assert_eq!(host.violations(WORKSPACE), [], "{command:?}");
        assert_eq!(kept(&host), [session.0], "{command:?}");
    }
    // The two change places.
    let other = *host.disks(WORKSPACE).iter().find(|disk| **disk != session).unwrap();
    does(&host, UpOnKept);
    assert!(host.disks(WORKSPACE).contains(&other) && kept(&host).is_empty());
    does(&host, Down);
    assert_eq!(kept(&host), [other.0]);
    does(&host, Up);
    does(&host, Down);
    assert_eq!(kept(&host), [other.0]);
}

#[test]
fn as_many_are_kept_as_the_configuration_says_and_the_first_goes_first() {
    for most in [0, 1, 3] {
        let host = host_after(53, false, &[Up, SnapshotStop]);
        host.keep_disks(most);
        let mut order = vec![host.disks(WORKSPACE).first().unwrap().0];
        for _ in 0..4 {
            let before = host.disks(WORKSPACE);
            does(&host, UpWarm);
            order.extend(host.disks(WORKSPACE).difference(&before).map(|disk| disk.0));
            does(&host, Down);
        }
        // The last of them is the workspace's disk.
        order.pop();
        assert_eq!(kept(&host), order[order.len() - most..], "{most} are kept");
    }
}

#[test]
fn a_disk_that_is_not_kept_is_refused_and_that_of_the_workspace_is_booted() {
    let host = host_after(53, true, &[Up, SnapshotStop, RestoreNewest, Down]);
    let own = host.disks(WORKSPACE).into_iter().find(|disk| !kept(&host).contains(&disk.0)).unwrap();
    let refused = in_session(&host, async |session| session.up_on(Generation(99)).await);
    assert!(matches!(refused, Err(Refusal::NoSuchDisk(Generation(99)))), "{refused:?}");
    let before = kept(&host);
    let booted = in_session(&host, async |session| session.up_on(own).await);
    assert!(matches!(booted, Ok(OperationResult::Done)), "{booted:?}");
    assert_eq!((host.violations(WORKSPACE), kept(&host)), (Vec::new(), before));
}

#[test]
fn a_boot_from_a_kept_disk_that_fails_leaves_both_disks() {
    let back = host_after(53, true, &[Up, SnapshotStop, RestoreNewest, Down]);
    let (disks, was) = (back.disks(WORKSPACE), kept(&back));
    for loss in [Loss::Answers, Loss::Targets] {
        let host = back.fork();
        host.lose(loss);
        let said = run(&host, UpOnKept);
        assert!(matches!(said, Said::Report(OperationResult::ClearedAway(_))), "{said:?}");
        assert_eq!(host.violations(WORKSPACE), []);
        assert_eq!((host.disks(WORKSPACE), kept(&host)), (disks.clone(), was.clone()), "{loss:?}");
    }
    let faults: [fn(u64) -> Fault; 2] = [Fault::InterruptAt, |point| Fault::CrashAt(point, Crash::VmmKilled)];
    for fault in faults {
        for point in 0.. {
            let host = back.fork();
            run_with(&host, UpOnKept, fault(point));
            if host.counts().points <= point {
                break;
            }
            run(&host, Recover);
            assert_eq!(host.violations(WORKSPACE), [], "{:?}", fault(point));
            assert_eq!(host.disks(WORKSPACE), disks, "{:?}", fault(point));
        }
    }
}

#[test]
fn a_lost_journal_leaves_the_kept_disks() {
    let host = host_after(53, true, &[Up, SnapshotStop, RestoreNewest, Down]);
    let was = kept(&host);
    host.lose_journal(WORKSPACE);
    run(&host, Recover);
    assert_eq!((kept(&host), was.len()), (was, 1));
}
