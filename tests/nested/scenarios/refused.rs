//! Bad input that only a host with a working KVM gets to see; the rest is in `tests/cli`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::outside::{everything, must, shell};
use crate::room::{GUEST, Room, Said};

/// `up` says this, and changes nothing on the host or in the workspace.
#[track_caller]
fn refused(room: &Room, environment: &[(&str, &str)], code: i32, words: &[&str]) {
    // The lock says who had it last; and a directory for sockets is made for every command that looks for a VM.
    let listing = || {
        let path = room.path.join(".nixbox");
        shell(&format!("cd {} && find . ! -name lock -printf '%p %m %U %s %T@\\n' | sort", path.display()))
    };
    let before = (listing(), everything());
    let output = room.nixbox(&["up"]).envs(environment.iter().copied()).output().unwrap();
    Said::from(output).failed(code, words);
    assert_eq!((listing(), everything()), before, "{words:?}");
}

fn program(room: &Room, name: &str, text: &str) -> String {
    let path = room.path.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

pub(super) fn what_cannot_work_is_refused_and_changes_nothing() {
    let room = Room::new("refused");
    room.ok(&["status"]);

    must("mv", &["/dev/kvm", "/dev/kvm.away"]);
    refused(&room, &[], 1, &["no KVM", "modprobe"]);
    must("mv", &["/dev/kvm.away", "/dev/kvm"]);

    let nowhere = [("NIXBOX_CLOUD_HYPERVISOR", "/nowhere/vmm")];
    refused(&room, &nowhere, 1, &["/nowhere/vmm", "NIXBOX_CLOUD_HYPERVISOR", "nixbox doctor"]);
    let old = program(&room, "old", "#!/bin/sh\necho cloud-hypervisor v50.0\n");
    refused(&room, &[("NIXBOX_CLOUD_HYPERVISOR", &old)], 1, &["v50.0", "too old", "v51.0"]);
    let other = program(&room, "other", "#!/bin/sh\necho QEMU emulator version 7.2\n");
    refused(&room, &[("NIXBOX_CLOUD_HYPERVISOR", &other)], 1, &["no version of Cloud Hypervisor"]);
    refused(&room, &[("NIXBOX_VIRTIOFSD", "/nowhere/virtiofsd")], 1, &["NIXBOX_VIRTIOFSD"]);

    room.configure(&Room::configuration("").replace("192MiB", "900GiB"));
    refused(&room, &[], 2, &["vm.memory", "more than this host has"]);
    room.configure(&Room::configuration("").replace("source = \"share\"", "source = \"/run\""));
    refused(&room, &[], 2, &["/run", "the guest must not reach"]);
    room.configure(&Room::configuration(""));

    must("ip", &["tuntap", "add", "dev", "vm0", "mode", "tap"]);
    refused(&room, &[], 1, &["vm0", "not nixbox's"]);
    assert!(Path::new("/sys/class/net/vm0").exists(), "somebody else's device was removed");
    must("ip", &["link", "delete", "vm0"]);

    fs::create_dir_all("/run/nixbox/slots").unwrap();
    (0..64).for_each(|slot| fs::write(format!("/run/nixbox/slots/{slot}"), "somebody's").unwrap());
    refused(&room, &[], 1, &["all 64 slots", "down first"]);
    (0..64).for_each(|slot| fs::remove_file(format!("/run/nixbox/slots/{slot}")).unwrap());

    // What only an attempt can tell is taken back.
    fs::write(room.path.join("text"), "no kernel\n").unwrap();
    room.configure(&Room::configuration("").replace(&format!("{GUEST}/vmlinuz"), "text"));
    room.run(&["up"]).failed(1, &["all is as it was before", "boot failed"]);
    room.assert_down();
}
