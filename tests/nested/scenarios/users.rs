//! nixbox run by a user who is not root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::outside::{self, shell};
use crate::workspace::{self, USER, WORK, Workspace};

pub(super) fn a_user_with_capabilities_needs_no_root() {
    // As after a boot in which root has run no nixbox.
    shell(&format!(
        "rm -rf /run/nixbox
         echo nested-dev:x:{USER}:{USER}::{WORK}/home:/bin/bash >> /etc/passwd
         echo nested-dev:x:{USER}: >> /etc/group; echo nested-kvm:x:31001:nested-dev >> /etc/group
         chgrp 31001 /dev/kvm; chmod 660 /dev/kvm
         install -d -o {USER} -g {USER} {WORK}/home {WORK}/home/bin",
    ));
    let program: PathBuf = Path::new(WORK).join("home/bin/nixbox");
    fs::copy(workspace::nixbox(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    chown(&program, Some(USER), Some(USER)).unwrap();
    let workspace = Workspace::of("user", program, Some(USER));

    workspace.run(&["up"]).failed(1, &["may not make the VM's network", "nixbox doctor"]);
    // What `doctor` says to do is what helps.
    let diagnosis = workspace.run(&["doctor", "--json"]).json();
    let advised: Vec<&str> = diagnosis["needs"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|need| need["state"] == "missing")
        .filter_map(|need| need["advice"].as_str())
        .collect();
    for mark in ["sudo setcap ", "sudo install -d "] {
        let advice = advised.iter().find(|advice| advice.contains(mark));
        let advice = advice.unwrap_or_else(|| panic!("no {mark:?} in {advised:?}"));
        shell(&format!("sudo() {{ \"$@\"; }}; {}", &advice[advice.find(mark).unwrap()..]));
    }
    assert_eq!(workspace.ok(&["doctor", "--json"]).json()["ready"], true);

    workspace.ok(&["up"]);
    workspace.assert_up();
    let own = fs::read_link("/proc/1/ns/user").unwrap();
    for process in outside::processes() {
        if process.role.starts_with("dhcp") {
            continue;
        }
        assert_eq!(process.uid, USER, "{process:?}");
        // In a user namespace of its own it may have all that the user has, over what the user has.
        let namespace = fs::read_link(format!("/proc/{}/ns/user", process.pid)).unwrap();
        assert!(namespace != own || process.capabilities == 0, "{process:?}");
    }
    workspace.guest("echo mine > ~/share/mine");
    let status = fs::metadata(workspace.path.join("share/mine")).unwrap();
    assert_eq!((status.uid(), status.gid()), (USER, USER));
    assert_eq!(workspace.guest("stat -c %u ~/share/mine"), "1000\n");
    workspace.ok(&["down"]);
    workspace.assert_down();
}
