//! Which snapshot is restored, why one is not, which snapshots are pruned, and what a sweep removes.

use nixbox::fakes::{Host, Loss};
use nixbox::operations::{
    Incompatibility, NotRestorable, OperationResult, Refusal, RestoreResult, Retention, SnapshotRequest,
    Swept, VmCondition,
};
use nixbox::world::{SnapshotName, SnapshotReference};

use crate::harness::{Command, WORKSPACE, host_after, in_session, run};

use Command::{Down, Snapshot, SnapshotStop, Up};

fn warm_up(host: &Host) -> RestoreResult {
    let warm = in_session(host, async |session| session.warm_up(None).await).unwrap();
    assert_eq!(host.violations(WORKSPACE), []);
    warm
}

fn numbers(host: &Host) -> Vec<u64> {
    host.snapshots(WORKSPACE).into_iter().map(|(id, _)| id.0.0).collect()
}

#[test]
fn without_a_snapshot_it_boots() {
    let warm = warm_up(&host_after(53, true, &[]));
    assert!(
        matches!(warm, RestoreResult { report: OperationResult::Done, restored: None, passed_over, .. } if passed_over.is_empty())
    );
}

#[test]
fn the_newest_compatible_snapshot_is_restored() {
    let host = host_after(53, true, &[Up, Snapshot, Snapshot, Down]);
    let numbers = numbers(&host);
    host.damage_snapshot(WORKSPACE, host.snapshots(WORKSPACE)[1].0);
    let RestoreResult { report, restored, passed_over, .. } =
        in_session(&host, async |session| session.warm_up(None).await).unwrap();
    assert!(matches!(report, OperationResult::Done));
    assert_eq!(restored.map(|manifest| manifest.id.0.0), Some(numbers[0]));
    assert!(matches!(&passed_over[..], [(id, NotRestorable::Damaged(_))] if id.0.0 == numbers[1]));
    // It runs already.
    let again = in_session(&host, async |session| session.warm_up(None).await).unwrap();
    assert!(matches!(again, RestoreResult { report: OperationResult::Already, restored: None, .. }));
}

#[test]
fn incompatible_snapshots_are_named_and_a_boot_takes_their_place() {
    type Change = fn(&Host);
    let changes: [(Change, &str); 3] = [
        (|host| host.set_shape("vm.memory", "8GiB"), "vm.memory was absent and is \"8GiB\" now"),
        (|host| host.set_cpuid(Some(1 << 16)), "lacks avx2"),
        (|host| host.install_vmm(54), "it was saved by Cloud Hypervisor v53.0, and v54.0 is installed"),
    ];
    for (change, words) in changes {
        let host = host_after(53, true, &[Up, SnapshotStop]);
        change(&host);
        let reference = SnapshotReference::from(host.snapshots(WORKSPACE)[0].0);
        let before = host.fingerprint();
        let refused =
            in_session(&host, async |session| session.restore(Some(&reference), false, false).await);
        let Err(Refusal::Unfit(_, unfit)) = refused else { panic!("{refused:?}") };
        assert!(unfit.to_string().contains(words), "{unfit}");
        assert_eq!(host.fingerprint(), before, "a refusal changes nothing");
        let warm = warm_up(&host);
        assert!(matches!(warm.report, OperationResult::Done) && warm.restored.is_none(), "{warm:?}");
        assert!(warm.passed_over[0].1.to_string().contains(words), "{warm:?}");
    }
}

#[test]
fn a_running_vm_is_replaced_only_when_told_and_only_by_a_compatible_snapshot() {
    let host = host_after(53, true, &[Up, Snapshot]);
    let before = host.fingerprint();
    let refused = in_session(&host, async |session| session.restore(None, false, false).await);
    assert!(matches!(refused, Err(Refusal::Running)), "{refused:?}");
    host.set_shape("vm.memory", "8GiB");
    let refused = in_session(&host, async |session| session.restore(None, true, false).await);
    let misfits = match refused {
        Err(Refusal::NothingFits(passed_over)) => passed_over.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(misfits.contains("vm.memory"), "{misfits}");
    assert_eq!(host.fingerprint(), before, "the VM runs on as if nothing had been asked");
    let none = "nothing".parse::<SnapshotReference>().unwrap();
    let refused = in_session(&host, async |session| session.restore(Some(&none), true, false).await);
    assert!(matches!(refused, Err(Refusal::NoSuchSnapshot(_))), "{refused:?}");
}

#[test]
fn everything_that_can_be_checked_is_checked_before_the_guest_is_touched() {
    let host = host_after(51, true, &[Up]);
    let before = host.fingerprint();
    host.use_share("812 (java)");
    let refused = in_session(&host, async |session| session.snapshot(SnapshotRequest::default()).await);
    assert!(matches!(&refused, Err(Refusal::SharesInUse(users)) if users == &["812 (java)"]), "{refused:?}");
    host.set_room(1);
    let refused = in_session(&host, async |session| session.snapshot(SnapshotRequest::default()).await);
    assert!(matches!(refused, Err(Refusal::NoRoom { wanted: 2, free: 1, promised: 0 })), "{refused:?}");
    // What a guest may still write to its RAM is not free.
    host.set_room(9);
    host.promise_room(8);
    let refused = in_session(&host, async |session| session.snapshot(SnapshotRequest::default()).await);
    assert!(matches!(&refused, Err(Refusal::NoRoom { wanted: 2, free: 9, promised: 8 })), "{refused:?}");
    assert!(refused.unwrap_err().to_string().ends_with("about 1 are missing"));
    assert_eq!(host.fingerprint(), before);

    // Rolling over would start the VMM that was installed since.
    let host = host_after(53, true, &[Up]);
    host.install_vmm(52);
    let refused = in_session(&host, async |session| session.snapshot(SnapshotRequest::default()).await);
    assert!(matches!(refused, Err(Refusal::VmmReplaced { .. })), "{refused:?}");
}

#[test]
fn the_oldest_unnamed_snapshots_are_pruned_except_the_one_that_the_vm_came_from() {
    let host = host_after(54, true, &[Up, Snapshot, Command::SnapshotNamed, Snapshot, Down]);
    let [oldest, named, newer] = numbers(&host)[..] else { panic!() };
    let reference = oldest.to_string().parse::<SnapshotReference>().unwrap();
    let warm =
        in_session(&host, async |session| session.restore(Some(&reference), false, false).await).unwrap();
    assert!(matches!(warm.report, OperationResult::Done));
    let retention = Retention { keep: Some(1), ..Retention::default() };
    let request = SnapshotRequest { retention, ..SnapshotRequest::default() };
    let result = in_session(&host, async |session| session.snapshot(request).await).unwrap();
    assert!(result.afterwards.is_none(), "{result:?}");
    assert_eq!(result.pruned.iter().map(|id| id.0.0).collect::<Vec<_>>(), [newer]);
    let newest = result.snapshot.unwrap().id.0.0;
    assert_eq!(numbers(&host), [oldest, named, newest]);
    assert_eq!(host.violations(WORKSPACE), []);
}

#[test]
fn a_limit_on_bytes_spares_the_named_the_last_and_the_one_that_the_vm_came_from() {
    // Each snapshot occupies two bytes here.
    let host = host_after(54, true, &[Up, Snapshot, Snapshot, Command::SnapshotNamed, Snapshot, Down]);
    let [first, second, named, newer] = numbers(&host)[..] else { panic!() };
    let reference = SnapshotReference::from(host.snapshots(WORKSPACE)[1].0);
    in_session(&host, async |session| session.restore(Some(&reference), false, false).await).unwrap();
    let snapshot = |keep_bytes, stop| {
        let retention = Retention { keep_bytes: Some(keep_bytes), ..Retention::default() };
        let request = SnapshotRequest { retention, stop, ..SnapshotRequest::default() };
        let result = in_session(&host, async |session| session.snapshot(request).await).unwrap();
        assert!(result.afterwards.is_none(), "{result:?}");
        let pruned: Vec<u64> = result.pruned.iter().map(|id| id.0.0).collect();
        (result.snapshot.unwrap().id.0.0, pruned, result.above_limit)
    };
    let (third, pruned, above_limit) = snapshot(8, false);
    assert_eq!((pruned, above_limit), (vec![first], None));
    assert_eq!(numbers(&host), [second, named, newer, third]);
    let (last, pruned, above_limit) = snapshot(3, true);
    assert_eq!((pruned, above_limit), (vec![newer, third], Some(6)));
    assert_eq!(numbers(&host), [second, named, last]);
    assert_eq!(host.violations(WORKSPACE), []);
}

#[test]
fn two_snapshots_cannot_have_the_same_name() {
    let host = host_after(54, true, &[Up, Command::SnapshotNamed]);
    let before = host.fingerprint();
    let request = SnapshotRequest {
        name: SnapshotName::try_from("warm".to_owned()).ok(),
        ..SnapshotRequest::default()
    };
    let refused = in_session(&host, async |session| session.snapshot(request).await);
    assert!(matches!(refused, Err(Refusal::NameTaken(_))), "{refused:?}");
    assert_eq!(host.fingerprint(), before);
}

#[test]
fn after_a_lost_journal_the_vm_is_swept_and_the_disk_is_kept() {
    let host = host_after(53, true, &[Up]);
    host.lose_journal(WORKSPACE);
    let recovered = in_session(&host, async |session| session.recover().await).unwrap();
    let kinds: Vec<_> = recovered.swept.iter().map(std::mem::discriminant).collect();
    for kind in [
        Swept::Vmm(Default::default()),
        Swept::Memory(Default::default()),
        Swept::Slot(nixbox::world::Slot::all().next().unwrap()),
    ] {
        assert!(kinds.contains(&std::mem::discriminant(&kind)), "{:?}", recovered.swept);
    }
    assert!(!recovered.swept.iter().any(|what| matches!(what, Swept::Disk(_))), "{:?}", recovered.swept);
    let once = host.fingerprint();
    let again = in_session(&host, async |session| session.recover().await).unwrap();
    assert!(again.swept.is_empty(), "{:?}", again.swept);
    assert_eq!(host.fingerprint(), once);
    assert!(run(&host, Up).done());
}

#[test]
fn an_incompatibility_names_the_slot_that_another_vm_has() {
    let host = host_after(53, true, &[Up, SnapshotStop]);
    let slot = in_session(&host, async |session| session.world.slots.free().await).unwrap()[0];
    host.take_slot(slot);
    let warm = warm_up(&host);
    let [(_, NotRestorable::Misfits(misfits))] = &warm.passed_over[..] else { panic!("{warm:?}") };
    assert_eq!(misfits[..], [Incompatibility::Slot(slot)]);
}

#[test]
fn a_clock_that_cannot_be_set_is_told_and_the_restored_vm_goes_on() {
    for (loss, required, condition) in [
        (Loss::Clock, true, VmCondition::NoClock),
        (Loss::Clock, false, VmCondition::NoClock),
        (Loss::Entropy, false, VmCondition::NoEntropy),
    ] {
        let host = host_after(53, true, &[Up, SnapshotStop]);
        host.lose(loss);
        host.require_entropy(required);
        let warm = warm_up(&host);
        assert!(matches!(warm.report, OperationResult::Done), "{loss:?}: {warm:?}");
        assert_eq!(warm.condition, condition, "{loss:?}");
        // It is written down.
        let again = warm_up(&host);
        assert!(matches!(again.report, OperationResult::Already), "{again:?}");
        assert_eq!(again.condition, condition, "{loss:?}");
    }
}

#[test]
fn a_restored_guest_without_fresh_entropy_is_lost() {
    let host = host_after(53, true, &[Up, SnapshotStop]);
    host.lose(Loss::Entropy);
    let warm = warm_up(&host);
    assert!(matches!(warm.report, OperationResult::ClearedAway(_)), "{warm:?}");
    assert_eq!(warm.condition, VmCondition::Good);
    assert!(!host.is_ssh_ready(WORKSPACE));
}

#[test]
fn a_snapshot_that_fails_to_load_is_passed_over_with_its_reason() {
    let host = host_after(53, true, &[Up, Snapshot, SnapshotStop]);
    let numbers = numbers(&host);
    host.refuse_to_load(WORKSPACE, host.snapshots(WORKSPACE)[1].0);
    let warm = warm_up(&host);
    assert!(matches!(warm.report, OperationResult::Done), "{warm:?}");
    assert_eq!(warm.restored.map(|manifest| manifest.id.0.0), Some(numbers[0]));
    let [(id, NotRestorable::Failed(failure))] = &warm.passed_over[..] else {
        panic!("{:?}", warm.passed_over)
    };
    assert_eq!((id.0.0, failure.label), (numbers[1], "load"));

    // A snapshot that a person asked for is not passed over, and nothing is left of the attempt.
    run(&host, Down);
    let reference = SnapshotReference::from(host.snapshots(WORKSPACE)[1].0);
    let asked = in_session(&host, async |session| session.warm_up(Some(&reference)).await).unwrap();
    assert!(matches!(asked.report, OperationResult::RolledBack(_)), "{asked:?}");
    assert_eq!(host.violations(WORKSPACE), []);

    // If none loads, the VM is booted.
    host.refuse_to_load(WORKSPACE, host.snapshots(WORKSPACE)[0].0);
    let warm = warm_up(&host);
    assert!(matches!(warm.report, OperationResult::Done) && warm.restored.is_none(), "{warm:?}");
    assert_eq!(warm.passed_over.len(), 2);
}

/// Restores the newest snapshot by its number.
fn restore_newest(host: &Host, force: bool) -> Result<RestoreResult, Refusal> {
    let newest = SnapshotReference::from(host.snapshots(WORKSPACE).last().unwrap().0);
    in_session(host, async |session| session.restore(Some(&newest), false, force).await)
}

#[test]
fn a_person_may_override_what_is_not_certain_to_fail() {
    let changes: [fn(&Host); 4] = [
        |host| host.set_shape("vm.cmdline", "quiet"),
        |host| host.set_content("vm.kernel", 2),
        // avx2 without avx512f.
        |host| host.set_cpuid(Some(1 << 5)),
        |host| {
            host.set_cpuid(None);
            host.lose_cpu_feature("sse2");
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let host = host_after(53, true, &[]);
        host.set_shape("vm.cmdline", "");
        host.set_shape("vm.kernel", "./vmlinuz");
        host.set_content("vm.kernel", 1);
        assert!(run(&host, Up).done() && run(&host, SnapshotStop).done());
        change(&host);
        let looks = host.fingerprint();
        let refused = restore_newest(&host, false);
        let Err(Refusal::Unfit(_, why)) = refused else { panic!("{number}: {refused:?}") };
        assert!(why.can_be_overridden(), "{number}: {why}");
        assert_eq!(host.fingerprint(), looks, "{number}");
        // A snapshot that nobody asked for is passed over.
        let warm = warm_up(&host.fork());
        assert!(warm.restored.is_none() && warm.passed_over.len() == 1, "{number}: {warm:?}");

        let restored = restore_newest(&host, true).unwrap();
        assert!(matches!(restored.report, OperationResult::Done), "{number}: {restored:?}");
        assert_eq!(host.violations(WORKSPACE), [], "{number}");
    }
}

#[test]
fn a_person_cannot_override_what_is_certain_to_fail() {
    let changes: [fn(&Host); 4] = [
        |host| host.set_shape("vm.memory", "8GiB"),
        |host| host.install_vmm(54),
        |host| host.damage_snapshot(WORKSPACE, host.snapshots(WORKSPACE)[0].0),
        |host| host.take_slot(nixbox::world::Slot::all().nth(1).unwrap()),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let host = host_after(53, true, &[Up, SnapshotStop]);
        change(&host);
        let refused = restore_newest(&host, true);
        assert!(matches!(refused, Err(Refusal::Unfit(..))), "{number}: {refused:?}");
        assert!(!host.is_ssh_ready(WORKSPACE), "{number}");
    }
}

#[test]
fn the_features_that_a_guest_was_not_given_are_not_asked_of_a_host() {
    let host = host_after(53, true, &[Up, SnapshotStop]);
    host.lose_cpu_feature("sse2");
    let warm = warm_up(&host);
    assert!(matches!(warm.report, OperationResult::Done) && warm.restored.is_some(), "{warm:?}");

    run(&host, Down);
    host.set_cpuid(Some(1 << 16));
    let warm = warm_up(&host);
    let [(_, NotRestorable::Misfits(misfits))] = &warm.passed_over[..] else { panic!("{warm:?}") };
    assert_eq!(misfits[..], [Incompatibility::Cpu(["avx2".to_owned()].into())]);
}
