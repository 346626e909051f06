//! What root sees that others do not: programs that the user who called sudo may not run, and the RAM files of all users.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Said, TestDirectory, skipped};

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A directory below `parent` that root alone may enter.
fn closed(parent: &Path) -> PathBuf {
    let path = parent.canonicalize().unwrap().join("closed");
    fs::create_dir(&path).unwrap();
    mode(&path, 0o700);
    path
}

fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skipped(test, "root's rights");
    }
    root
}

#[test]
fn sudo_names_a_nixbox_that_the_user_may_not_run() {
    if !is_root("sudo_names_a_nixbox_that_the_user_may_not_run") {
        return;
    }
    let (directory, programs) = (TestDirectory::workspace(), TestDirectory::empty());
    let program = closed(programs.path()).join("nixbox");
    fs::hard_link(env!("CARGO_BIN_EXE_nixbox"), &program)
        .or_else(|_| fs::copy(env!("CARGO_BIN_EXE_nixbox"), &program).map(drop))
        .unwrap();
    let before = directory.listing();
    let mut command = std::process::Command::new(&program);
    let command = command.arg("status").current_dir(directory.path());
    let said = Said::new(command.env("SUDO_UID", "31000").env("SUDO_GID", "31000").output().unwrap());
    said.failed(1, &["user 31000 may not run", &format!("{program:?}"), "such as /usr/local/bin"]);
    assert_eq!(directory.listing(), before);
}

#[test]
fn doctor_names_a_program_that_root_alone_may_run() {
    if !is_root("doctor_names_a_program_that_root_alone_may_run") {
        return;
    }
    let directory = TestDirectory::empty();
    mode(directory.path(), 0o755);
    let closed = closed(directory.path());
    let program = closed.join("virtiofsd");
    let diagnosed = |options: &str| {
        fs::write(&program, format!("#!/bin/sh\necho virtiofsd 1.14.0\necho {options}\n")).unwrap();
        mode(&program, 0o755);
        let mut command = directory.command(&["doctor", "--json"]);
        let diagnosis = Said::new(command.env("NIXBOX_VIRTIOFSD", &program).output().unwrap()).json();
        let needs = diagnosis["needs"].as_array().unwrap();
        needs.iter().find(|need| need["name"] == "virtiofsd").unwrap().clone()
    };
    // QEMU had such a program.
    let need = diagnosed("--sandbox --rlimit-nofile");
    assert_eq!(need["state"], "lacking");
    assert!(need["found"].as_str().unwrap().contains("does not know --inode-file-handles"), "{need}");
    let need = diagnosed(
        "--sandbox --rlimit-nofile --inode-file-handles --migration-on-error --translate-uid --translate-gid",
    );
    assert_eq!(need["state"], "found");
    let advice = need["advice"].as_str().unwrap();
    for words in ["root alone may use it", &format!("{program:?}"), "is closed to that user"] {
        assert!(advice.contains(words), "no {words:?} in {advice}");
    }
}

#[test]
fn doctor_counts_what_is_promised_to_the_vms_of_all_users() {
    if !is_root("doctor_counts_what_is_promised_to_the_vms_of_all_users") {
        return;
    }
    let directory = TestDirectory::workspace();
    // In a mount namespace of its own, a /dev/shm of 2 GiB with a VM of another user.
    let script = "set -e; mount -t tmpfs -o size=2g,mode=1777 none /dev/shm
        mkdir -p /dev/shm/nixbox-31000/0a
        truncate -s 2000M /dev/shm/nixbox-31000/0a/memory-4.img
        chown -R 31000 /dev/shm/nixbox-31000; exec \"$@\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(env!("CARGO_BIN_EXE_nixbox")).args(["doctor", "--json"]).current_dir(directory.path());
    let output = command.env_remove("SUDO_UID").env_remove("XDG_RUNTIME_DIR").output().unwrap();
    let diagnosis = Said::new(output).json();
    let needs = diagnosis["needs"].as_array().unwrap();
    let room = needs.iter().find(|need| need["name"] == "room for RAM on tmpfs").unwrap();
    let found = room["found"].as_str().unwrap();
    assert!(found.starts_with("2.0 GiB free in /dev/shm, 2.0 GiB of it promised to VMs"), "{room}");
    assert_eq!(room["state"], "lacking", "{room}");
    assert!(room["advice"].as_str().unwrap().contains("bring another VM down"), "{room}");
}
