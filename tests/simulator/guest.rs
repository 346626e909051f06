//! What the simulated guest promises. The other tests of the simulator rely on it.

use crate::workspace::{SECRET, Workspace, count};

#[test]
fn written_data_stays_in_ram_and_on_disk_until_it_is_overwritten() {
    let workspace = Workspace::new("simulator", true);
    workspace.ok(&["up"]);
    let ram = workspace.memory_files().remove(0);
    let disk = workspace.state().join("run/disk-1/0.img");
    assert!(count(&ram, SECRET) > 0 && count(&disk, SECRET) > 0);
    // The blocks of a removed file keep their content.
    workspace.guest("echo plain-removal-0815 > ~/secret; sync; rm ~/secret; sync");
    assert!(count(&disk, "plain-removal-0815") > 0);
    // A file that is overwritten and synced is gone, since this disk writes in place.
    workspace.guest("echo overwritten-0816 > ~/secret; sync");
    assert!(count(&disk, "overwritten-0816") > 0 && count(&ram, "overwritten-0816") > 0);
    workspace
        .guest("dd if=/dev/zero of=$HOME/secret bs=4096 count=1 conv=notrunc,fsync 2>/dev/null; rm ~/secret");
    assert_eq!((count(&disk, "overwritten-0816"), count(&ram, "overwritten-0816")), (0, 0));
    workspace.guest("fstrim /");
    assert_eq!(count(&disk, "plain-removal-0815"), 0);
    // What a program keeps in memory stays there while the program runs.
    let process = workspace.guest("echo kept-0817 | keep");
    assert!(count(&ram, "kept-0817") > 0);
    assert_eq!(workspace.guest(&format!("keep --end {process}")), "kept-0817\n");
    assert_eq!(count(&ram, "kept-0817"), 0);
}

#[test]
fn without_init_on_free_freed_memory_keeps_its_content() {
    let workspace = Workspace::new("simulator", false);
    let config = workspace.nixbox().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("init_on_free=1", "init_on_free=0");
    std::fs::write(&config, text).unwrap();
    workspace.ok(&["up"]);
    let process = workspace.guest("echo kept-0818 | keep");
    workspace.guest(&format!("keep --end {process}"));
    assert!(count(&workspace.memory_files()[0], "kept-0818") > 0);
}

#[test]
fn a_restored_guest_keeps_its_memory_and_a_rebooted_one_does_not() {
    let workspace = Workspace::new("simulator", true);
    workspace.ok(&["up"]);
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let first = workspace.guest(boot);
    workspace.guest("echo on disk > ~/file; echo in memory | keep > ~/process; echo in tmpfs > /run/file");
    workspace.ok(&["snapshot", "--name", "warm"]);
    let counter: u64 = workspace.guest("counter").trim().parse().unwrap();
    workspace.guest("echo later > ~/file; sync");
    workspace.ok(&["down"]);
    workspace.ok(&["restore", "warm"]);
    assert_eq!(workspace.guest(boot), first);
    assert_eq!(
        workspace.guest("cat ~/file /run/file; keep --end $(cat ~/process)"),
        "on disk\nin tmpfs\nin memory\n"
    );
    // The counter stood still while the guest was frozen, and goes on from where it was.
    let went_on: u64 = workspace.guest("counter").trim().parse().unwrap();
    assert!(went_on > 0 && went_on < counter + 60_000, "{went_on} after {counter}");
    assert!(workspace.check());
    workspace.ok(&["down"]);
    workspace.ok(&["up"]);
    assert_ne!(workspace.guest(boot), first);
    assert_eq!(workspace.guest("cat ~/file; ls /run"), "on disk\n");
    workspace.ok(&["down"]);
    assert!(!workspace.check());
}

#[test]
fn every_simulated_version_has_its_shares_after_snapshot_and_restore() {
    for vmm in ["simulator-v51", "simulator-v52", "simulator-v53", "simulator-v54"] {
        let workspace = Workspace::new(vmm, true);
        workspace.ok(&["up"]);
        workspace.ok(&["snapshot"]);
        assert!(workspace.check(), "{vmm}");
        workspace.ok(&["down"]);
        let snapshot = workspace.snapshots().remove(0);
        workspace.ok(&["restore", &snapshot]);
        assert!(workspace.check(), "{vmm}");
    }
}

#[test]
fn every_view_of_a_simulated_vm_says_that_it_is_simulated() {
    let workspace = Workspace::new("simulator", true);
    workspace.ok(&["up"]);
    assert_eq!(workspace.status()["vmm"], "simulator");
    assert!(workspace.ok(&["status"]).stdout.contains("no sandbox"));
    assert!(workspace.ok(&["doctor"]).stdout.contains("simulator"));
    let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", workspace.vmm())).unwrap();
    assert!(arguments.contains("simulator\0vmm"), "{arguments:?}");
    assert!(workspace.ok(&["simulator", "vmm", "--version"]).stdout.contains("v53.0-simulator"));
}
