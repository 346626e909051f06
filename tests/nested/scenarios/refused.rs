//! Bad input that is refused only where KVM works. The rest is in `tests/cli`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::outside::{everything, must, shell};
use crate::workspace::{GUEST, Said, Workspace};

/// Asserts that `up` fails with these words, and changes nothing on the host or in the workspace.
#[track_caller]
fn refused(workspace: &Workspace, environment: &[(&str, &str)], code: i32, words: &[&str]) {
    // The lock names its last holder. Every command that looks for a VM makes the directory for sockets.
    let listing = || {
        let (path, state) = (workspace.path.join(".nixbox"), workspace.state_directory(""));
        let find = format!("find {path:?} {state:?} ! -name lock -printf '%p %m %U %s %T@\\n' | sort");
        shell(&find)
    };
    let before = (listing(), everything());
    let output = workspace.nixbox(&["up"]).envs(environment.iter().copied()).output().unwrap();
    Said::from(output).failed(code, words);
    assert_eq!((listing(), everything()), before, "{words:?}");
}

fn program(workspace: &Workspace, name: &str, text: &str) -> String {
    let path = workspace.path.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

pub(super) fn up_refuses_what_cannot_work_and_changes_nothing() {
    let workspace = Workspace::new("refused");
    workspace.ok(&["status"]);

    must("mv", &["/dev/kvm", "/dev/kvm.away"]);
    refused(&workspace, &[], 1, &["no KVM", "modprobe"]);
    must("mv", &["/dev/kvm.away", "/dev/kvm"]);

    let nowhere = [("NIXBOX_CLOUD_HYPERVISOR", "/nowhere/vmm")];
    refused(&workspace, &nowhere, 1, &["/nowhere/vmm", "NIXBOX_CLOUD_HYPERVISOR", "nixbox doctor"]);
    let old = program(&workspace, "old", "#!/bin/sh\necho cloud-hypervisor v50.0\n");
    refused(&workspace, &[("NIXBOX_CLOUD_HYPERVISOR", &old)], 1, &["v50.0", "too old", "v51.0"]);
    let other = program(&workspace, "other", "#!/bin/sh\necho QEMU emulator version 7.2\n");
    refused(&workspace, &[("NIXBOX_CLOUD_HYPERVISOR", &other)], 1, &["not a version of Cloud Hypervisor"]);
    refused(&workspace, &[("NIXBOX_VIRTIOFSD", "/nowhere/virtiofsd")], 1, &["NIXBOX_VIRTIOFSD"]);

    workspace.configure(&Workspace::configuration("").replace("192MiB", "900GiB"));
    refused(&workspace, &[], 2, &["vm.memory", "more than this host has"]);
    workspace.configure(&Workspace::configuration("").replace("source = \"share\"", "source = \"/run\""));
    refused(&workspace, &[], 2, &["/run", "the guest must not reach"]);
    workspace.configure(&Workspace::configuration(""));

    let namespace = format!("nixbox-{}", workspace.id());
    must("ip", &["netns", "add", &namespace]);
    refused(&workspace, &[], 1, &[&namespace, "not of this workspace", "ip netns delete"]);
    assert!(Path::new("/run/netns").join(&namespace).exists(), "somebody else's namespace was removed");
    must("ip", &["netns", "delete", &namespace]);

    workspace.configure(&Workspace::configuration("[network]\nuplink = \"127.0.0.0/24\"\n"));
    refused(&workspace, &[], 2, &["network.uplink", "cannot be used"]);
    workspace.configure(&Workspace::configuration(""));

    // A file that is no kernel is found out by the boot alone, and the boot is rolled back.
    fs::write(workspace.path.join("text"), "no kernel\n").unwrap();
    workspace.configure(&Workspace::configuration("").replace(&format!("{GUEST}/vmlinuz"), "text"));
    workspace.run(&["up"]).failed(1, &["all is as it was before", "boot failed"]);
    workspace.assert_down();
}
