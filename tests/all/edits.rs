//! The configuration is edited while a VM runs: the VM stays what it was built as, and the edit waits for the next VM.

use nixbox::fakes::Host;
use nixbox::operations::{Incompatibility, NotRestorable, OperationResult, Refusal};

use crate::harness::{Command, Said, WORKSPACE, host_after, in_session, run};

use Command::{Down, Replace, RestoreNewest, Snapshot, SnapshotStop, Up};

const VERSIONS: [u32; 4] = [51, 52, 53, 54];

/// Each command succeeds, and leaves nothing that an invariant forbids.
fn all_done(host: &Host, commands: &[Command]) {
    for command in commands {
        let said = run(host, *command);
        assert!(said.done(), "{command:?}: {said:?}");
        assert_eq!(host.violations(WORKSPACE), [], "after {command:?}");
        host.guest_works(2);
    }
}

#[test]
fn a_vm_is_snapshotted_rolled_over_and_ended_as_what_it_was_built_as() {
    for version in VERSIONS {
        for shares in [false, true] {
            let host = host_after(version, shares, &[Up]);
            host.set_shares(!shares);
            host.set_shape("vm.memory", "8GiB");
            all_done(&host, &[Snapshot, Snapshot, Down, Up, Snapshot, SnapshotStop]);
        }
    }
}

#[test]
fn a_snapshot_has_the_shape_of_its_vm_and_fits_again_when_the_edit_is_taken_back() {
    let host = host_after(53, true, &[Up]);
    host.set_shape("vm.memory", "8GiB");
    all_done(&host, &[Snapshot, Down]);
    let said = run(&host, RestoreNewest);
    let Said::Refused(Refusal::Unfit(_, NotRestorable::Misfits(misfits))) = said else { panic!("{said:?}") };
    assert!(matches!(&misfits[..], [Incompatibility::Shape { .. }]), "{misfits:?}");
    let host = host_after(53, true, &[Up]);
    host.set_shape("vm.memory", "8GiB");
    all_done(&host, &[Down, Up, Snapshot, Down, RestoreNewest]);
}

#[test]
fn a_replaced_vm_goes_down_as_what_it_was_and_the_next_is_what_the_configuration_says() {
    let host = host_after(53, false, &[Up]);
    host.set_shares(true);
    all_done(&host, &[Down, Up, Snapshot, Down]);
    host.set_shares(false);
    all_done(&host, &[Up]);
    host.set_shares(true);
    // The snapshot was made with shares, and the VM that runs has none.
    all_done(&host, &[Replace, Snapshot]);
}

#[test]
fn a_vm_without_a_record_goes_down_and_is_not_snapshotted() {
    let host = host_after(53, true, &[Up]);
    host.lose_record(WORKSPACE);
    let before = host.fingerprint();
    let refused = in_session(&host, async |session| session.snapshot(Default::default()).await);
    assert!(matches!(refused, Err(Refusal::NoRecord)), "{refused:?}");
    assert_eq!(host.fingerprint(), before);
    let down = in_session(&host, async |session| session.down().await).unwrap();
    assert!(matches!(down, OperationResult::Done), "{down:?}");
    all_done(&host, &[Up, Snapshot]);
}
