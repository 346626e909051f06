//! Bad input ends with a clear error and its exit code, and changes nothing in the workspace or on the host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;

use super::{CONFIG, Said, TestDirectory};

/// The network devices and firewall tables of the kernel that nixbox could have made.
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
    // Other tests make devices at the same time: only names that nixbox gives count.
    links
        .lines()
        .filter(|line| line.starts_with("vm"))
        .chain(tables.lines().filter(|line| line.contains("nixbox")))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Asserts that `up` fails with these words, and changes nothing.
fn refused(directory: &TestDirectory, code: i32, words: &[&str]) {
    refused_with(directory, &[], code, words);
}

fn refused_with(directory: &TestDirectory, environment: &[(&str, &str)], code: i32, words: &[&str]) {
    let before = (directory.listing(), network());
    let output = directory.command(&["up"]).envs(environment.iter().copied()).output().unwrap();
    Said::new(output).failed(code, words);
    assert_eq!((directory.listing(), network()), before);
}

#[test]
fn an_error_in_the_configuration_names_its_line() {
    let directory = TestDirectory::workspace();
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
        directory.configure(text);
        refused(&directory, 2, words);
        directory.run(&["config"]).failed(2, words);
    }
}

#[test]
fn a_missing_file_of_the_configuration_is_named() {
    let directory = TestDirectory::workspace();
    directory.configure(&CONFIG.replace("vmlinuz", "nowhere"));
    refused(&directory, 2, &["vm.kernel is", "nowhere"]);
    directory.configure(&format!(
        "{}[[mounts]]\nsource = \"gone\"\ntarget = \"~/x\"\n",
        CONFIG.replace("mounts = []\n", "")
    ));
    refused(&directory, 2, &["mounts.source is", "gone"]);
}

#[test]
fn a_mount_that_contains_the_vms_sockets_is_refused() {
    let directory = TestDirectory::workspace();
    directory.configure(&format!(
        "{}[[mounts]]\nsource = \"/\"\ntarget = \"~/host\"\n",
        CONFIG.replace("mounts = []\n", "")
    ));
    if kvm().is_ok() {
        refused(&directory, 2, &["mounts.source / gives access to"]);
    }
}

/// Whether this user can use KVM here, and what nixbox says if not.
fn kvm() -> Result<(), &'static str> {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err("no KVM"),
        Err(_) => Err("/dev/kvm cannot be opened"),
    }
}

/// Makes a program that says that it is Cloud Hypervisor of this version.
fn vmm(directory: &TestDirectory, version: &str) -> String {
    let path = directory.path().join("vmm");
    fs::write(&path, format!("#!/bin/sh\necho cloud-hypervisor {version}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_missing_or_old_vmm_is_named() {
    let directory = TestDirectory::workspace();
    if let Err(why) = kvm() {
        refused(&directory, 1, &[why]);
        return;
    }
    let nowhere = [("NIXBOX_CLOUD_HYPERVISOR", "/nowhere/vmm")];
    refused_with(&directory, &nowhere, 1, &["/nowhere/vmm", "NIXBOX_CLOUD_HYPERVISOR", "nixbox doctor"]);
    let old = vmm(&directory, "v38.0");
    refused_with(&directory, &[("NIXBOX_CLOUD_HYPERVISOR", &old)], 1, &["v38.0", "too old"]);
    let empty = vmm(&directory, "");
    refused_with(
        &directory,
        &[("NIXBOX_CLOUD_HYPERVISOR", &empty)],
        1,
        &["is not a version of Cloud Hypervisor"],
    );
}

#[test]
fn a_missing_virtiofsd_is_named_where_there_are_mounts() {
    let directory = TestDirectory::workspace();
    directory.configure(&CONFIG.replace("mounts = []\n", ""));
    if kvm().is_err() {
        return;
    }
    let vmm = vmm(&directory, "v53.0");
    let environment = [("NIXBOX_CLOUD_HYPERVISOR", vmm.as_str()), ("NIXBOX_VIRTIOFSD", "/nowhere/virtiofsd")];
    refused_with(&directory, &environment, 1, &["virtiofsd", "NIXBOX_VIRTIOFSD"]);
}

#[test]
fn a_nixbox_directory_that_others_can_write_is_refused() {
    let directory = TestDirectory::workspace();
    let nixbox = directory.nixbox();
    fs::set_permissions(&nixbox, fs::Permissions::from_mode(0o777)).unwrap();
    refused(&directory, 1, &["others may write", "chmod"]);
    fs::set_permissions(&nixbox, fs::Permissions::from_mode(0o700)).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&nixbox, Some(12345), None).unwrap();
        refused(&directory, 1, &["belongs to user 12345"]);
    }
}

#[test]
fn symbolic_links_in_place_of_nixbox_files_are_refused() {
    let directory = TestDirectory::workspace();
    let state = directory.state();
    for place in [
        directory.nixbox().join("config.toml"),
        directory.nixbox().join("workspace-id"),
        state.join("lock"),
        state.join("run"),
        state.join("journal"),
    ] {
        let (path, aside) = (&place, &place.with_extension("aside"));
        let name = path.display();
        fs::rename(path, aside).unwrap();
        symlink(aside, path).unwrap();
        let before = directory.listing();
        let said = directory.run(&["up"]);
        assert!(matches!(said.code, Some(1 | 2)), "{said:?}");
        assert!(said.stderr.contains("symbolic link"), "{name}: {said:?}");
        assert_eq!(directory.listing(), before);
        fs::remove_file(path).unwrap();
        fs::rename(aside, path).unwrap();
    }
}
