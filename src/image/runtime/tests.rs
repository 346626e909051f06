use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn the_boot_words_name_the_user_and_the_key() {
    let words = boot_words("dev", 1001, "ssh-ed25519 AAAAC3Nz nixbox\n");
    assert_eq!(words, "nixbox.user=dev nixbox.uid=1001 nixbox.key=AAAAC3Nz");
    // A command line has at most 2047 bytes, and the key of RSA with 4096 bits has 716.
    assert!(boot_words(&"u".repeat(32), u32::MAX, &format!("ssh-rsa {}", "k".repeat(716))).len() < 850);
}

#[test]
fn each_slot_has_a_line_with_its_address() {
    let lines = addresses();
    assert!(lines.contains("02:00:00:00:00:41 198.51.100.254 198.51.100.253 30\n"), "{lines}");
    assert_eq!(lines.lines().count(), usize::from(Slot::COUNT));
}

#[test]
fn headers_that_lead_out_of_the_file_are_no_program() {
    assert!(Elf::parse(&sudo::elf()).is_some_and(|elf| elf.interpreter.is_none()));
    let mut bytes = sudo::elf();
    bytes[64..68].copy_from_slice(&3_u32.to_le_bytes());
    assert!(Elf::parse(&bytes).is_some_and(|elf| elf.interpreter.is_some()));
    bytes[72..80].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(Elf::parse(&bytes).is_none());
    // The header of the file, and the kind of the first segment.
    for length in 0..68 {
        assert!(Elf::parse(&sudo::elf()[..length]).is_none(), "{length}");
    }
    assert!(Elf::parse(b"#!/bin/sh").is_none());
}

#[test]
fn the_programs_of_this_machine_run_with_their_own_libraries() {
    let Ok(runtime) = GuestRuntime::of_this_machine() else { return };
    let (_, dropbear) = &runtime.files["bin/dropbear"];
    let place = Elf::parse(dropbear).unwrap().interpreter.unwrap();
    assert!(dropbear[place].starts_with(b"/run/nixbox/guest/lib/ld.so\0"));
    for name in
        ["bin/busybox", "bin/dropbearkey", "bin/sudo", "lib/ld.so", "lib/libc.so.6", "prepare", "inittab"]
    {
        assert!(runtime.files.contains_key(name), "{name}");
    }
    for applet in ["init", "sh", "poweroff", "env", "switch_root", "insmod", "ip"] {
        assert!(runtime.applets.iter().any(|name| name == applet), "{applet}");
    }
    let modules = [("virtio.ko".to_owned(), b"1".to_vec()), ("virtio_net.ko".to_owned(), b"2".to_vec())];
    let once = runtime.write_initramfs(Vec::new(), &modules).unwrap();
    assert_eq!(once, runtime.write_initramfs(Vec::new(), &modules).unwrap());
}

/// Prepares a root file system as the initramfs does, in mount and chroot of its own; `None` without root or the programs.
fn prepared(runtime: &GuestRuntime, root: &Path, user: &str, gateway: &str) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let guest = root.join("run/nixbox/guest");
    for (path, (mode, bytes)) in &runtime.files {
        let path = guest.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(*mode)).unwrap();
    }
    for applet in &runtime.applets {
        let path = guest.join("bin").join(applet);
        if fs::symlink_metadata(&path).is_err() {
            std::os::unix::fs::symlink("busybox", path).unwrap();
        }
    }
    let script = "mkdir -p \"$0/proc\" \"$0/dev\" && mount -t proc proc \"$0/proc\" && mount --bind /dev \"$0/dev\" && \
        chroot \"$0\" /run/nixbox/guest/bin/busybox sh /run/nixbox/guest/prepare \"$@\"";
    let ended = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", script])
        .arg(root)
        .args([user, "1000", "AAAAkey", gateway])
        .status()
        .unwrap();
    assert!(ended.success());
    Some(fs::read_to_string(root.join("run/nixbox/init")).unwrap().trim().to_owned())
}

fn file(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn an_image_with_nothing_gets_a_user_a_shell_and_an_init_once() {
    let Ok(runtime) = GuestRuntime::of_this_machine() else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for gateway in ["10.0.0.1", "10.0.0.5"] {
        let Some(init) = prepared(&runtime, root, "user", gateway) else { return };
        assert_eq!(init, "/run/nixbox/guest/bin/init");
        assert!(file(root, "etc/resolv.conf").ends_with(&format!("\nnameserver {gateway}\n")));
    }
    assert_eq!(file(root, "etc/passwd").matches("\nuser:x:1000:1000:user:/home/user:/bin/sh\n").count(), 1);
    assert_eq!(file(root, "home/user/.ssh/authorized_keys"), "ssh-ed25519 AAAAkey nixbox\n");
    assert_eq!(file(root, "etc/shells"), "/bin/sh\n");
    let sudo = fs::metadata(root.join("run/nixbox/guest/bin/sudo")).unwrap();
    assert_eq!((sudo.mode() & 0o7777, sudo.uid(), sudo.gid()), (0o4750, 0, 1000));
    assert_eq!(fs::read_link(root.join("usr/bin/sudo")).unwrap(), Path::new("/run/nixbox/guest/bin/sudo"));
    assert!(fs::metadata(root.join("var/lib/nixbox/hostkey")).unwrap().len() > 0);
}

#[test]
fn what_an_image_has_is_used() {
    let Ok(runtime) = GuestRuntime::of_this_machine() else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let busybox = &runtime.files["bin/busybox"].1;
    for path in ["bin/sh", "bin/bash", "usr/bin/sudo", "lib/systemd/systemd", "usr/sbin/sshd"] {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), busybox).unwrap();
        fs::set_permissions(root.join(path), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    for path in ["etc/sudoers.d", "etc/skel", "etc/systemd/system/multi-user.target.wants"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    fs::write(root.join("etc/skel/.profile"), "").unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\nother:x:1000:1000::/:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nsudo:x:27:other\ndocker:x:999:\nother:x:1000:\n").unwrap();
    fs::write(root.join("etc/shadow"), "root:*:1:\n").unwrap();
    let Some(init) = prepared(&runtime, root, "dev", "10.0.0.1") else { return };
    assert_eq!(init, "/lib/systemd/systemd");
    assert!(file(root, "etc/passwd").ends_with("\ndev:x:1001:1001:dev:/home/dev:/bin/bash\n"));
    assert_eq!(
        file(root, "etc/group"),
        "root:x:0:\nsudo:x:27:other,dev\ndocker:x:999:dev\nother:x:1000:\ndev:x:1001:\n"
    );
    assert!(file(root, "etc/shadow").contains("\ndev:*:"));
    assert_eq!(file(root, "etc/sudoers.d/nixbox"), "dev ALL=(ALL) NOPASSWD: ALL\n");
    assert!(root.join("home/dev/.profile").exists() && !root.join("run/nixbox/guest/bin/sudo").exists());
    // Its own SSH server is not enabled, so nixbox's is started by its init.
    let wants = "run/systemd/system/multi-user.target.wants/nixbox-ssh.service";
    assert!(fs::symlink_metadata(root.join(wants)).is_ok());
    let enabled = root.join("etc/systemd/system/multi-user.target.wants/ssh.service");
    std::os::unix::fs::symlink("/lib/systemd/system/ssh.service", enabled).unwrap();
    fs::remove_file(root.join(wants)).unwrap();
    prepared(&runtime, root, "dev", "10.0.0.1").unwrap();
    assert!(fs::symlink_metadata(root.join(wants)).is_err());
}
