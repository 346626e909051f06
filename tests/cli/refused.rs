//! Bad input: a clear error, its exit code, and nothing changed in the workspace or on the host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;

use super::{CONFIG, Room, Said};

/// What the kernel has of network devices and firewall tables, as far as nixbox could have made them.
fn network() -> String {
    let ask = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map_or_else(
            |error| format!("{program}: {error}"),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let links = ask("ip", &["-br", "link"]);
    let tables = ask("nft", &["list", "tables"]);
    // Tests of other crates make devices meanwhile: only the names that nixbox gives count.
    links
        .lines()
        .filter(|line| line.starts_with("vm"))
        .chain(tables.lines().filter(|line| line.contains("nixbox")))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// `up` refuses, and changes nothing.
fn refused(room: &Room, code: i32, words: &[&str]) {
    refused_with(room, &[], code, words);
}

fn refused_with(room: &Room, environment: &[(&str, &str)], code: i32, words: &[&str]) {
    let before = (room.listing(), network());
    let output = room.command(&["up"]).envs(environment.iter().copied()).output().unwrap();
    Said::new(output).failed(code, words);
    assert_eq!((room.listing(), network()), before);
}

#[test]
fn a_configuration_is_wrong_at_a_line() {
    let room = Room::workspace();
    for (text, words) in [
        ("[vm]\nkernle = \"x\"\n", &["config.toml:2", "kernle", "kernel"][..]),
        ("[vm]\nkernel = 3\n", &["config.toml:2", "vm.kernel"]),
        ("[vm\n", &["config.toml:1"]),
        ("[vm]\nvcpus = 1\n", &["vm.kernel is missing"]),
        ("name = \"a/b\"\n[vm]\nkernel = \"vmlinuz\"\n", &["config.toml:1", "name"]),
        ("[vm]\nkernel = \"vmlinuz\"\nmemory = \"900000GiB\"\n", &["config.toml:3", "vm.memory"]),
        (
            "[vm]\nkernel = \"vmlinuz\"\n[network]\nports = [443, 53]\n",
            &[
                "config.toml:4:15: network.ports is wrong",
                "53 and 853 are the ports of DNS",
                "nixbox's own resolver",
            ],
        ),
        (
            "[vm]\nkernel = \"vmlinuz\"\n[[mounts]]\nsource = \".\"\ntarget = \"~\"\n",
            &[
                "config.toml:5:10: mounts.target is wrong",
                "\"~\" is not a path in the guest",
                "below / or ~/",
            ],
        ),
        (
            "[vm]\nkernel = \"vmlinuz\"\n[credentials]\nwipe = [\"~/workspace/target\"]\n",
            &["config.toml:4:9: credentials.wipe", "is on the share mounted at ~/workspace"],
        ),
        (
            "[vm]\nkernel = \"vmlinuz\"\n[guest]\nuser = \"Root\"\n",
            &["config.toml:4:8: guest.user is wrong", "\"Root\" cannot be a user"],
        ),
        (
            "[vm]\nkernel = \"vmlinuz\"\n[[mounts]]\nsource = \".\"\ntarget = \"~/a\"\n[[mounts]]\nsource = \".\"\ntarget = \"~/a\"\n",
            &["config.toml:8", "mounts"],
        ),
    ] {
        room.configure(text);
        refused(&room, 2, words);
        room.run(&["config"]).failed(2, words);
    }
}

#[test]
fn what_the_configuration_names_is_not_there() {
    let room = Room::workspace();
    room.configure(&CONFIG.replace("vmlinuz", "nowhere"));
    refused(&room, 2, &["vm.kernel is", "nowhere"]);
    room.configure(&format!(
        "{}[[mounts]]\nsource = \"gone\"\ntarget = \"~/x\"\n",
        CONFIG.replace("mounts = []\n", "")
    ));
    refused(&room, 2, &["mounts.source is", "gone"]);
}

#[test]
fn the_guest_does_not_get_at_the_vms_sockets() {
    let room = Room::workspace();
    room.configure(&format!(
        "{}[[mounts]]\nsource = \"/\"\ntarget = \"~/host\"\n",
        CONFIG.replace("mounts = []\n", "")
    ));
    if kvm().is_ok() {
        refused(&room, 2, &["mounts.source / contains"]);
    }
}

/// Whether this user can have VMs here, and what nixbox says if not.
fn kvm() -> Result<(), &'static str> {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err("no KVM"),
        Err(_) => Err("/dev/kvm cannot be opened"),
    }
}

/// A program that says that it is this Cloud Hypervisor.
fn vmm(room: &Room, version: &str) -> String {
    let path = room.path().join("vmm");
    fs::write(&path, format!("#!/bin/sh\necho cloud-hypervisor {version}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn no_vmm_and_one_that_is_too_old() {
    let room = Room::workspace();
    if let Err(why) = kvm() {
        refused(&room, 1, &[why]);
        return;
    }
    let nowhere = [("NIXBOX_CLOUD_HYPERVISOR", "/nowhere/vmm")];
    refused_with(&room, &nowhere, 1, &["/nowhere/vmm", "NIXBOX_CLOUD_HYPERVISOR", "nixbox doctor"]);
    let old = vmm(&room, "v38.0");
    refused_with(&room, &[("NIXBOX_CLOUD_HYPERVISOR", &old)], 1, &["v38.0", "too old"]);
    let empty = vmm(&room, "");
    refused_with(&room, &[("NIXBOX_CLOUD_HYPERVISOR", &empty)], 1, &["no version"]);
}

#[test]
fn no_virtiofsd_where_there_are_mounts() {
    let room = Room::workspace();
    room.configure(&CONFIG.replace("mounts = []\n", ""));
    if kvm().is_err() {
        return;
    }
    let vmm = vmm(&room, "v53.0");
    let environment = [("NIXBOX_CLOUD_HYPERVISOR", vmm.as_str()), ("NIXBOX_VIRTIOFSD", "/nowhere/virtiofsd")];
    refused_with(&room, &environment, 1, &["virtiofsd", "NIXBOX_VIRTIOFSD"]);
}

#[test]
fn a_directory_that_is_not_ours_alone() {
    let room = Room::workspace();
    let nixbox = room.nixbox();
    fs::set_permissions(&nixbox, fs::Permissions::from_mode(0o777)).unwrap();
    refused(&room, 1, &["others may write", "chmod"]);
    fs::set_permissions(&nixbox, fs::Permissions::from_mode(0o700)).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&nixbox, Some(12345), None).unwrap();
        refused(&room, 1, &["belongs to user 12345"]);
    }
}

#[test]
fn links_where_files_of_ours_should_be() {
    let room = Room::workspace();
    for name in ["config.toml", "workspace-id", "lock", "run", "journal"] {
        let (path, aside) = (room.nixbox().join(name), room.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        symlink(&aside, &path).unwrap();
        let before = room.listing();
        let said = room.run(&["up"]);
        assert!(matches!(said.code, Some(1 | 2)), "{said:?}");
        assert!(said.stderr.contains("symbolic link"), "{name}: {said:?}");
        assert_eq!(room.listing(), before);
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
}
