//! nixbox run by a user who is not root, and has no capability.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::outside::{self, shell};
use crate::workspace::{self, USER, WORK, Workspace};

/// A workspace of an ordinary user, who may open /dev/kvm.
pub(super) fn ordinary(name: &str) -> Workspace {
    // As after a boot in which root has run no nixbox.
    shell(&format!(
        "rm -rf /run/nixbox
         if ! grep -q ^nested-dev: /etc/passwd; then
             echo nested-dev:x:{USER}:{USER}::{WORK}/home:/bin/bash >> /etc/passwd
             echo nested-dev:x:{USER}: >> /etc/group; echo nested-kvm:x:31001:nested-dev >> /etc/group
         fi
         chgrp 31001 /dev/kvm; chmod 660 /dev/kvm
         install -d -o {USER} -g {USER} {WORK}/home {WORK}/home/bin",
    ));
    let program: PathBuf = Path::new(WORK).join("home/bin/nixbox");
    fs::copy(workspace::nixbox(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    chown(&program, Some(USER), Some(USER)).unwrap();
    // Root's workspaces of the same host may have the same name.
    Workspace::of(&format!("user-{name}"), program, Some(USER))
}

/// The devices and rules of the host itself.
fn of_host() -> String {
    shell("ip -o link; ip -o addr; nft list ruleset; cat /proc/sys/net/ipv4/ip_forward")
}

/// No process of the VM may do more than its user, except in a user namespace of its own, over what the user has.
fn assert_without_privileges() {
    let own = fs::read_link("/proc/1/ns/user").unwrap();
    for process in outside::processes() {
        assert_eq!(process.uid, USER, "{process:?}");
        let namespace = fs::read_link(format!("/proc/{}/ns/user", process.pid)).unwrap();
        assert!(namespace != own || process.capabilities == 0, "{process:?}");
    }
}

fn kill(workspace: &Workspace, role: &str) {
    let mut killed = 0;
    for process in outside::processes() {
        if process.workspace == workspace.id() && process.role == role {
            Command::new("kill").args(["-9", &process.pid.to_string()]).status().unwrap();
            killed += 1;
        }
    }
    assert!(killed > 0, "no {role}");
}

pub(super) fn an_ordinary_user_needs_no_root_and_no_capability() {
    let workspace = ordinary("user");
    let before = of_host();
    assert_eq!(workspace.ok(&["doctor", "--json"]).json()["ready"], true);
    for network in ["[network]\nmode = \"off\"\n", ""] {
        workspace.configure(&Workspace::configuration(network));
        workspace.ok(&["up"]);
        workspace.assert_up();
        assert_without_privileges();
        workspace.guest("echo mine > ~/share/mine; echo kept > ~/kept; sync");
        let status = fs::metadata(workspace.path.join("share/mine")).unwrap();
        assert_eq!((status.uid(), status.gid()), (USER, USER));
        assert_eq!(workspace.guest("stat -c %u ~/share/mine"), "1000\n");
        workspace.ok(&["snapshot"]);
        workspace.assert_up();
        workspace.ok(&["down"]);
        workspace.assert_down();
        assert_eq!(of_host(), before);
        workspace.ok(&["up", "--snapshot"]);
        workspace.assert_up();
        assert_without_privileges();
        assert_eq!(workspace.guest("cat ~/kept"), "kept\n");
        // Without the processes that stay with the network the guest is within reach, and ends like any other.
        let roles =
            if network.is_empty() { &["keeper", "uplink", "holder"][..] } else { &["holder", "keeper"] };
        for role in roles {
            kill(&workspace, role);
            assert_eq!(workspace.guest("cat ~/kept"), "kept\n", "without its {role}");
        }
        workspace.ok(&["down"]);
        workspace.assert_down();
        assert_eq!(of_host(), before);
    }
}

/// A part of the host's settings, what undoes it, and what the user is told.
const REFUSALS: [(&str, &str, &str); 4] = [
    (
        "sysctl -qw user.max_user_namespaces=0",
        "sysctl -qw user.max_user_namespaces=10000",
        "user.max_user_namespaces=15000",
    ),
    (
        "sysctl -qw user.max_net_namespaces=0",
        "sysctl -qw user.max_net_namespaces=10000",
        "user.max_net_namespaces=15000",
    ),
    ("chmod 600 /dev/net/tun", "chmod 666 /dev/net/tun", "modprobe tun"),
    ("mount --bind /dev/null /usr/bin/pasta", "umount /usr/bin/pasta", "passt"),
];

pub(super) fn a_host_that_refuses_an_ordinary_user_says_what_helps() {
    let workspace = ordinary("refused");
    let states =
        || -> BTreeSet<_> { outside::names(&workspace.state_directory("run")).into_iter().collect() };
    for (refuse, allow, words) in REFUSALS {
        let before = (of_host(), states());
        shell(refuse);
        let diagnosis = workspace.run(&["doctor", "--json"]).json();
        assert_eq!(diagnosis["ready"], false, "{refuse}: {diagnosis}");
        assert!(diagnosis.to_string().contains(words), "{refuse}: {diagnosis}");
        workspace.run(&["up"]).failed(1, &[words, "nothing was changed"]);
        shell(allow);
        assert_eq!((of_host(), states()), before, "{refuse}");
        workspace.assert_down();
    }
    assert_eq!(workspace.ok(&["doctor", "--json"]).json()["ready"], true);
}
