use super::*;
use crate::world::{BootId, Failure, Generation, Given, Manifest, Origin, Slot, SnapshotLabel, VmmVersion};

const HOUR: u64 = 3_600_000;

/// A snapshot that was made at the hour of its number, and occupies ten bytes.
fn snapshot(id: u64, name: Option<&str>) -> ListedSnapshot {
    let manifest = Manifest {
        id: SnapshotId(Generation(id)),
        name: name.map(|name| name.parse().unwrap()),
        created_ms: id * HOUR,
        slot: Slot::OWN_NETWORK,
        boot: BootId([0; 16]),
        shares: true,
        origin: Origin {
            vmm: VmmVersion { major: 53, text: "v53.0".to_owned() },
            cpu: Default::default(),
            shape: Default::default(),
        },
        files: Vec::new(),
        given: Given::default(),
        receipt: None,
    };
    let label = Ok(SnapshotLabel::default());
    ListedSnapshot { id: manifest.id, manifest: Ok(manifest), label, occupied: Ok(10) }
}

/// Six snapshots, the third of which has a name and the fourth of which is damaged.
fn listed() -> Vec<ListedSnapshot> {
    let mut listed: Vec<_> = (1..=6).map(|id| snapshot(id, (id == 3).then_some("warm"))).collect();
    listed[3].manifest = Err(Failure::world(std::io::Error::other("its check does not fit")));
    listed
}

fn pruned_at(hour: u64, retention: Retention, from: Option<u64>) -> (Vec<u64>, Option<u64>) {
    let from = from.map(|id| SnapshotId(Generation(id)));
    let Prunable { ids, above_limit } = to_prune(listed(), retention, from, hour * HOUR).unwrap();
    (ids.into_iter().map(|id| id.0.0).collect(), above_limit)
}

fn pruned(retention: Retention, from: Option<u64>) -> (Vec<u64>, Option<u64>) {
    pruned_at(6, retention, from)
}

#[test]
fn the_number_the_age_and_the_bytes_each_decide() {
    let count = |keep| Retention { keep: Some(keep), ..Retention::default() };
    assert_eq!(pruned(Retention::default(), None).0, [0; 0]);
    assert_eq!(pruned(count(1), None).0, [1, 2, 5]);
    assert_eq!(pruned(count(3), None).0, [1]);
    assert_eq!(pruned(count(u32::MAX), None).0, [0; 0]);
    assert_eq!(pruned(count(0), None).0, [1, 2, 5], "the last one stays");

    let age =
        |hours: u64| Retention { keep_for: Some(Duration::from_secs(hours * 3600)), ..Retention::default() };
    assert_eq!(pruned(age(0), None).0, [1, 2, 5]);
    assert_eq!(pruned(age(1), None).0, [1, 2], "the fifth is an hour old, and not older");
    assert_eq!(pruned(age(4), None).0, [1]);
    assert_eq!(pruned(age(5), None).0, [0; 0]);
    assert_eq!(pruned_at(1000, age(5), None).0, [1, 2, 5]);
    // The clock was set back.
    assert_eq!(pruned_at(0, age(1), None).0, [0; 0]);

    let bytes = |most| Retention { keep_bytes: Some(most), ..Retention::default() };
    assert_eq!(pruned(bytes(60), None), (vec![], None));
    assert_eq!(pruned(bytes(59), None), (vec![1], None));
    assert_eq!(pruned(bytes(40), None), (vec![1, 2], None));
    assert_eq!(pruned(bytes(30), None), (vec![1, 2, 5], None));
    assert_eq!(pruned(bytes(29), None), (vec![1, 2, 5], Some(30)), "named, damaged and last ones count too");
}

#[test]
fn the_snapshot_that_the_vm_came_from_stays_by_every_limit() {
    let strictest = Retention { keep: Some(1), keep_for: Some(Duration::from_secs(1)), keep_bytes: Some(1) };
    assert_eq!(pruned(strictest, None), (vec![1, 2, 5], Some(30)));
    assert_eq!(pruned(strictest, Some(1)), (vec![2, 5], Some(40)));
    assert_eq!(pruned(strictest, Some(5)), (vec![1, 2], Some(40)));
    assert_eq!(pruned(strictest, Some(99)), (vec![1, 2, 5], Some(30)));
}

#[test]
fn what_one_limit_deletes_counts_for_the_others() {
    let two = Retention { keep: Some(2), keep_bytes: Some(40), ..Retention::default() };
    assert_eq!(pruned(two, None), (vec![1, 2], None));
    // The number takes the first, and one more has to go.
    let two = Retention { keep: Some(3), ..two };
    assert_eq!(pruned(two, None), (vec![1, 2], None));
}

#[test]
fn bytes_that_are_not_known_are_an_error_where_they_decide() {
    let unknown = || {
        let mut listed = listed();
        listed[1].occupied = Err(Failure::world(std::io::Error::other("it cannot be read")));
        listed[2].occupied = Ok(u64::MAX);
        listed
    };
    let bytes = Retention { keep: Some(1), keep_bytes: Some(1), ..Retention::default() };
    assert!(matches!(to_prune(unknown(), bytes, None, 0), Err(Refusal::Look(_))));
    let count = Retention { keep_bytes: None, ..bytes };
    assert_eq!(to_prune(unknown(), count, None, 0).unwrap().ids.len(), 3);
    assert_eq!(to_prune(Vec::new(), bytes, None, 0).unwrap().ids.len(), 0);
    // More than a number can say is above each limit.
    let mut huge = unknown();
    huge[1].occupied = Ok(u64::MAX);
    assert!(to_prune(huge, bytes, None, 0).unwrap().above_limit.is_some());
}
