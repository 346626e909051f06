use super::*;
use crate::world::{BootId, Cpuid, Generation, Given, HashMethod, Origin, Slot, SnapshotId, VmmVersion};

fn manifest(id: u64) -> Manifest {
    Manifest {
        id: SnapshotId(Generation(id)),
        name: None,
        created_ms: id * 3_600_000,
        slot: Slot::OWN_NETWORK,
        boot: BootId([0; 16]),
        shares: true,
        origin: Origin {
            vmm: VmmVersion { major: 53, text: "v53.0".to_owned() },
            cpu: ["avx2", "sse2"].map(str::to_owned).into(),
            shape: [("vm.memory", "4GiB"), ("vm.kernel", "./vmlinuz")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        },
        files: vec![file("memory.img", 4096, 1), file("disk-0.img", 8192, 2)],
        given: Given { contents: [("vm.kernel".to_owned(), [7; 32])].into(), ..Given::default() },
        receipt: None,
    }
}

fn file(name: &str, size: u64, hash: u8) -> FileRecord {
    FileRecord { name: name.to_owned(), size, hash: [hash; 32], method: HashMethod::Pieces }
}

fn lines(from: &Manifest, to: &Manifest) -> Vec<String> {
    Comparison::of(from, to).lines(from, to)
}

const SAME: &str = "  the same: VMM, credentials, guest's boot, shares, slot, vm.kernel, vm.memory";

#[test]
fn two_snapshots_of_one_vm_differ_in_their_files_alone() {
    let (from, mut to) = (manifest(4), manifest(7));
    to.files[0].hash = [9; 32];
    assert_eq!(
        lines(&from, &to),
        [
            "snapshot 7 was made 3 h after snapshot 4",
            SAME,
            "  disk-0.img (8192 bytes): the same",
            "  memory.img (4096 bytes): differs",
        ]
    );
    assert_eq!(lines(&to, &from)[0], "snapshot 4 was made 3 h before snapshot 7");
    to.created_ms = from.created_ms + 999;
    assert_eq!(lines(&from, &to)[0], "snapshot 7 was made at the time of snapshot 4");
}

#[test]
fn every_part_of_a_manifest_that_differs_is_told() {
    let (from, mut to) = (manifest(4), manifest(7));
    to.name = "warm".parse().ok();
    to.slot = Slot::try_from(3).unwrap();
    to.boot = BootId([1; 16]);
    to.shares = false;
    to.origin.vmm.text = "v53.1".to_owned();
    to.origin.cpu = ["avx512f", "sse2"].map(str::to_owned).into();
    to.origin.shape.insert("vm.memory".to_owned(), "8GiB".to_owned());
    to.origin.shape.insert("mounts.0".to_owned(), ". at ~/workspace, read-write".to_owned());
    to.given.contents.insert("vm.kernel".to_owned(), [8; 32]);
    to.files = vec![file("memory.img", 8192, 1), file("disk-1.img", 1, 3)];
    let told = lines(&from, &to);
    for line in [
        "snapshot 7 (warm) was made 3 h after snapshot 4",
        "  VMM: \"v53.0\" -> \"v53.1\"",
        "  slot: \"64, guest 198.51.100.254\" -> \"3, guest 172.16.12.2\"",
        "  shares: \"attached\" -> \"attached after the restore\"",
        "  guest's boot: \"00000000-0000-0000-0000-000000000000\" -> \"01010101-0101-0101-0101-010101010101\"",
        "  processor features: \"avx2\" -> \"avx512f\"",
        "  vm.memory: \"4GiB\" -> \"8GiB\"",
        "  vm.kernel: \"./vmlinuz\", with another content",
        "  mounts.0: absent -> \". at ~/workspace, read-write\"",
        "  disk-0.img (8192 bytes): only in the first",
        "  disk-1.img (1 bytes): only in the second",
        "  the same: credentials",
    ] {
        assert!(told.iter().any(|told| told == line), "{line:?} is not in {told:#?}");
    }
}

#[test]
fn what_the_manifests_cannot_tell_is_not_called_the_same() {
    let (mut from, to) = (manifest(4), manifest(7));
    // A manifest of an older nixbox.
    from.given = Given { method: HashMethod::Whole, ..from.given };
    from.files.iter_mut().for_each(|file| file.method = HashMethod::Whole);
    from.files[1].size = 4096;
    let told = lines(&from, &to);
    for line in [
        "  vm.kernel: \"./vmlinuz\", whose contents cannot be compared",
        "  memory.img (4096 bytes): cannot be compared, because it is hashed in two ways",
        "  disk-0.img (4096 bytes -> 8192 bytes): differs",
    ] {
        assert!(told.iter().any(|told| told == line), "{line:?} is not in {told:#?}");
    }
    from.given = Given::default();
    let kernel = Comparison::of(&from, &to).differences.remove(0);
    assert_eq!((kernel.key.as_str(), kernel.content), ("vm.kernel", Some(ContentComparison::Unknown)));
    // The same kernel at another place.
    let (from, mut to) = (manifest(4), manifest(7));
    to.origin.shape.insert("vm.kernel".to_owned(), "/boot/vmlinuz".to_owned());
    let told = lines(&from, &to);
    let line = "  vm.kernel: \"./vmlinuz\" -> \"/boot/vmlinuz\", with the same content";
    assert!(told.iter().any(|told| told == line), "{told:#?}");
}

#[test]
fn processors_are_compared_by_what_the_guests_were_given_if_both_say_it() {
    let (mut from, mut to) = (manifest(4), manifest(7));
    to.origin.cpu.clear();
    let cpuid = |ebx| Some(Cpuid::of(&[(7, 0, [0, ebx, 0, 0])]));
    (from.given.cpuid, to.given.cpuid) = (cpuid(1 << 5), cpuid(1 << 5));
    assert_eq!(processors(&from, &to), None);
    to.given.cpuid = cpuid(1 << 5 | 1 << 16);
    let found = processors(&from, &to).unwrap();
    assert_eq!((found.from, found.to), (None, Some("avx512f".to_owned())));
    to.given.cpuid = None;
    assert_eq!(processors(&from, &to).unwrap().from, Some("avx2 sse2".to_owned()));
}
