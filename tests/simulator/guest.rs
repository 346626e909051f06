//! What the simulated guest promises, without which nothing else here would mean anything.

use crate::room::{Room, SECRET, count};

#[test]
fn what_is_written_is_in_ram_and_on_disk_until_it_is_wiped_as_it_has_to_be() {
    let room = Room::new("simulator", true);
    room.ok(&["up"]);
    let ram = room.memory_files().remove(0);
    let disk = room.nixbox().join("run/disk-1/0.img");
    assert!(count(&ram, SECRET) > 0 && count(&disk, SECRET) > 0);
    // Removed is not gone.
    room.guest("echo plain-removal-0815 > ~/secret; sync; rm ~/secret; sync");
    assert!(count(&disk, "plain-removal-0815") > 0);
    // Overwritten and synced is, on a disk that writes in place.
    room.guest("echo overwritten-0816 > ~/secret; sync");
    assert!(count(&disk, "overwritten-0816") > 0 && count(&ram, "overwritten-0816") > 0);
    room.guest("dd if=/dev/zero of=$HOME/secret bs=4096 count=1 conv=notrunc,fsync 2>/dev/null; rm ~/secret");
    assert_eq!((count(&disk, "overwritten-0816"), count(&ram, "overwritten-0816")), (0, 0));
    room.guest("fstrim /");
    assert_eq!(count(&disk, "plain-removal-0815"), 0);
    // What a program keeps in memory stays while it lives.
    let process = room.guest("echo kept-0817 | keep");
    assert!(count(&ram, "kept-0817") > 0);
    assert_eq!(room.guest(&format!("keep --end {process}")), "kept-0817\n");
    assert_eq!(count(&ram, "kept-0817"), 0);
}

#[test]
fn without_init_on_free_freed_memory_keeps_what_was_in_it() {
    let room = Room::new("simulator", false);
    let config = room.nixbox().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("init_on_free=1", "quiet");
    std::fs::write(&config, text).unwrap();
    room.ok(&["up"]);
    let process = room.guest("echo kept-0818 | keep");
    room.guest(&format!("keep --end {process}"));
    assert!(count(&room.memory_files()[0], "kept-0818") > 0);
}

#[test]
fn a_guest_that_is_restored_is_the_same_and_a_rebooted_one_is_not() {
    let room = Room::new("simulator", true);
    room.ok(&["up"]);
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let first = room.guest(boot);
    room.guest("echo on disk > ~/file; echo in memory | keep > ~/process; echo in tmpfs > /run/file");
    room.ok(&["snapshot", "--name", "warm"]);
    let counter: u64 = room.guest("counter").trim().parse().unwrap();
    room.guest("echo later > ~/file; sync");
    room.ok(&["down"]);
    room.ok(&["restore", "warm"]);
    assert_eq!(room.guest(boot), first);
    assert_eq!(
        room.guest("cat ~/file /run/file; keep --end $(cat ~/process)"),
        "on disk\nin tmpfs\nin memory\n"
    );
    // It stood still meanwhile, and goes on from where it was.
    let went_on: u64 = room.guest("counter").trim().parse().unwrap();
    assert!(went_on > 0 && went_on < counter + 60_000, "{went_on} after {counter}");
    assert!(room.check());
    room.ok(&["down"]);
    room.ok(&["up"]);
    assert_ne!(room.guest(boot), first);
    assert_eq!(room.guest("cat ~/file; ls /run"), "on disk\n");
    room.ok(&["down"]);
    assert!(!room.check());
}

#[test]
fn every_version_that_it_can_be_has_its_shares_after_snapshot_and_restore() {
    for vmm in ["simulator-v51", "simulator-v52", "simulator-v53", "simulator-v54"] {
        let room = Room::new(vmm, true);
        room.ok(&["up"]);
        room.ok(&["snapshot"]);
        assert!(room.check(), "{vmm}");
        room.ok(&["down"]);
        let snapshot = room.snapshots().remove(0);
        room.ok(&["restore", &snapshot]);
        assert!(room.check(), "{vmm}");
    }
}

#[test]
fn it_says_what_it_is_wherever_it_shows() {
    let room = Room::new("simulator", true);
    room.ok(&["up"]);
    assert_eq!(room.status()["vmm"], "simulator");
    assert!(room.ok(&["status"]).stdout.contains("no sandbox"));
    assert!(room.ok(&["doctor"]).stdout.contains("simulator"));
    let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", room.vmm())).unwrap();
    assert!(arguments.contains("simulator\0vmm"), "{arguments:?}");
    assert!(room.ok(&["simulator", "vmm", "--version"]).stdout.contains("v53.0-simulator"));
}
