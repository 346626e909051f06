//! `nixbox image`, and `init` that names what it makes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use super::{TestDirectory, skipped};

const SCRIPT: &str = include_str!("../../src/cli/image/minimal-guest.sh");
/// A user without rights of its own: `nobody`.
const USER: u32 = 65534;

#[test]
fn init_names_the_kernel_and_the_initramfs() {
    let directory = TestDirectory::empty();
    let initramfs = "made \"here\"/initramfs.gz";
    directory.ok(&["init", "--kernel", "/boot/vmlinuz", "--initramfs", initramfs]);
    let config = directory.ok(&["config", "--json"]).json();
    assert_eq!(config["vm"]["kernel"], "/boot/vmlinuz");
    let expected = directory.path().canonicalize().unwrap().join(initramfs);
    assert_eq!(config["vm"]["initramfs"], expected.to_str().unwrap());

    let before = directory.listing();
    directory.run(&["init", "--kernel", "other"]).failed(2, &["config.toml is there already"]);
    directory.run(&["init", "--simulator", "--kernel", "other"]).failed(2, &["--simulator"]);
    assert_eq!(directory.listing(), before);
}

#[test]
fn init_without_paths_names_the_kernel_of_make_minimal_and_no_initramfs() {
    let directory = TestDirectory::empty();
    directory.ok(&["init"]);
    let config = directory.ok(&["config", "--json"]).json();
    let expected = directory.path().canonicalize().unwrap().join("image/vmlinuz");
    assert_eq!(config["vm"]["kernel"], expected.to_str().unwrap());
    assert_eq!(config["vm"]["initramfs"], serde_json::Value::Null);
}

#[test]
fn make_minimal_needs_a_key() {
    let directory = TestDirectory::empty();
    directory.run(&["image", "make-minimal", "image"]).failed(3, &["nixbox init"]);
    directory.run(&["image", "make-minimal", "image", "--key", "gone.pub"]).failed(1, &["gone.pub"]);
    assert_eq!(directory.listing(), Vec::<String>::new());
}

/// What `make-minimal` copies from the host.
fn can_make_minimal(test: &str) -> bool {
    let kernel = fs::read_dir("/boot").is_ok_and(|entries| {
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .any(|name| name.starts_with("vmlinuz-") && name.ends_with("-cloud-amd64"))
    });
    let programs = ["/bin/busybox", "/usr/sbin/dropbear", "/usr/bin/sudo", "/usr/bin/cpio", "/sbin/modprobe"];
    let there = kernel && programs.iter().all(|path| fs::exists(path).unwrap());
    if !there {
        skipped(test, "the Debian packages of a minimal guest");
    }
    there
}

/// The entries of an initramfs: mode, uid, gid, path.
fn entries(initramfs: &std::path::Path) -> Vec<[String; 4]> {
    let list = "gzip -dc \"$0\" | { cpio -itvn --quiet; cpio -itvn --quiet; }";
    let output = Command::new("sh").args(["-c", list]).arg(initramfs).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        [words[0], words[2], words[3], words[8]].map(str::to_owned)
    };
    text.lines().map(entry).collect()
}

#[test]
fn a_minimal_image_belongs_to_root_but_for_the_users_home() {
    if !can_make_minimal("a_minimal_image_belongs_to_root_but_for_the_users_home") {
        return;
    }
    let directory = TestDirectory::workspace();
    let said = directory.ok(&["image", "make-minimal", "image"]);
    for name in ["vmlinuz", "initramfs.gz"] {
        let path = directory.path().join("image").join(name);
        assert!(
            said.stdout.contains(&format!("made {}", path.canonicalize().unwrap().display())),
            "{said:?}"
        );
    }
    let made = entries(&directory.path().join("image/initramfs.gz"));
    check(&made);
    // Any user can make it, and it is the same then.
    let open = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let key = open.path().join("key.pub");
    fs::copy(directory.state().join("ssh/vm_key.pub"), &key).unwrap();
    let mut command = if rustix::process::geteuid().is_root() {
        chown(open.path(), Some(USER), Some(USER)).unwrap();
        chown(&key, Some(USER), Some(USER)).unwrap();
        let mut command = Command::new("setpriv");
        let user = USER.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "bash"]);
        command
    } else {
        Command::new("bash")
    };
    let output = command
        .env("TMPDIR", open.path())
        .env("PATH", "/usr/bin:/bin")
        .current_dir(open.path())
        .args(["-c", SCRIPT, "make-minimal"])
        .args([open.path(), &key])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    check(&entries(&open.path().join("initramfs.gz")));
}

fn check(entries: &[[String; 4]]) {
    let entry = |wanted: &str| {
        let found = entries.iter().find(|[.., path]| path.trim_start_matches("./") == wanted);
        found.unwrap_or_else(|| panic!("no {wanted} in {entries:?}")).each_ref().map(String::as_str)
    };
    assert_eq!(entry("usr/bin/sudo")[..3], ["-rwsr-xr-x", "0", "0"]);
    assert_eq!(entry("root/.ssh/authorized_keys")[..3], ["-rw-------", "0", "0"]);
    assert_eq!(entry("home/user/.ssh/authorized_keys")[..3], ["-rw-------", "1000", "1000"]);
    assert_eq!(entry("etc/sudoers")[..3], ["-r--r-----", "0", "0"]);
    for [_, user, group, path] in entries {
        let owner = if path.trim_start_matches("./").starts_with("home/user") { "1000" } else { "0" };
        assert_eq!((user.as_str(), group.as_str()), (owner, owner), "{path}");
    }
}
