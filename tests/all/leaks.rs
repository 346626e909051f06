//! A credential that a program of the guest keeps, whatever is wiped, is in no snapshot. On the fakes every guest keeps each
//! credential that it was given, in RAM and on disk, so that every schedule of the other tests is about this too.

use nixbox::fakes::Host;
use nixbox::operations::OperationResult;

use crate::harness::{Command, Said, WORKSPACE, host_after, run};

use Command::{Recover, RestoreNewest, Snapshot, SnapshotStop, Up};

fn keeps_its_credentials(host: &Host) -> bool {
    host.violations(WORKSPACE).is_empty() && host.guest_keeps_a_credential(WORKSPACE)
}

#[test]
fn what_the_guest_keeps_is_overwritten_in_the_snapshot_alone() {
    for version in [51, 53, 54] {
        let host = host_after(version, true, &[Up]);
        assert!(keeps_its_credentials(&host));
        assert!(run(&host, Snapshot).done());
        assert!(keeps_its_credentials(&host), "v{version}");
        assert_eq!(host.snapshots(WORKSPACE).len(), 1);
    }
}

#[test]
fn a_snapshot_of_a_restored_guest_is_searched_for_what_was_injected_before() {
    let host = host_after(53, false, &[Up, SnapshotStop, RestoreNewest]);
    host.renew_credentials();
    assert!(run(&host, Snapshot).done());
    host.renew_credentials();
    assert!(run(&host, Snapshot).done());
    assert_eq!(host.violations(WORKSPACE), []);
    assert_eq!(host.snapshots(WORKSPACE).len(), 3);
}

#[test]
fn with_fail_no_snapshot_is_made_and_the_guest_runs_on() {
    for command in [Snapshot, SnapshotStop] {
        let host = host_after(53, true, &[Up]);
        host.fail_on_leak(true);
        let said = run(&host, command);
        let Said::Report(OperationResult::RolledBack(failure)) = &said else { panic!("{said:?}") };
        assert_eq!(failure.label, "commit");
        assert!(keeps_its_credentials(&host), "{command:?}");
        assert_eq!(host.snapshots(WORKSPACE).len(), 0);
        assert!(matches!(run(&host, Recover), Said::Recovered(_)));
        host.fail_on_leak(false);
        assert!(run(&host, command).done());
    }
}
