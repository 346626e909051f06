//! The VM that an operation is making, for commands that use it while the operation is at work.

use nixbox::fakes::{Crash, Fault};
use nixbox::operations::vm_in_progress;

use crate::harness::{Command, WORKSPACE, host_after, in_session, run_with};

use Command::{Down, RestoreNewest, SnapshotStop, Up};

#[test]
fn the_vm_of_an_operation_counts_once_its_guest_has_everything() {
    for (before, command) in [(&[][..], Up), (&[Up, Down], Up), (&[Up, SnapshotStop], RestoreNewest)] {
        let before = host_after(53, true, before);
        let (mut early, mut late) = (0, 0);
        for point in 0.. {
            let host = before.fork();
            run_with(&host, command, Fault::CrashAt(point, Crash::Death));
            if host.counts().points <= point {
                break;
            }
            let made = in_session(&host, async |session| {
                session.journal.open_operation().and_then(|open| vm_in_progress(open).unwrap())
            });
            match made {
                None => early += 1,
                Some(vm) => {
                    late += 1;
                    let whole = host.is_ssh_ready(WORKSPACE) && !host.lacks_credentials(WORKSPACE);
                    assert!(whole && vm.boot.is_some(), "{command:?} at point {point}: {vm:?}");
                }
            }
        }
        assert!(early > 10 && late > 0, "{command:?}: {early} and {late} points");
    }
}
