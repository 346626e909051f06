//! What people do to a workspace while its VM runs: they edit the configuration, lose a credential, and copy or rename the
//! directory. The VM stays what it was built as, and `down` always works.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace::{Said, Workspace};

/// The configuration with other memory, processors, mounts and disks.
fn edited() -> String {
    let text = Workspace::configuration("");
    let (head, tail) = text.split_once("[[mounts]]").unwrap();
    let (_, tail) = tail.split_once("[guest]").unwrap();
    let head = head.replace("vcpus = 1", "vcpus = 2").replace("192MiB", "256MiB");
    format!(
        "{head}\n[[disks]]\nsize = \"32MiB\"\n[[mounts]]\nsource = \"data\"\ntarget = \"/other\"\n[guest]{tail}"
    )
}

/// A command without the variable that a credential is read from.
fn without_token(workspace: &Workspace, arguments: &[&str]) -> Said {
    let said = workspace.nixbox(arguments).env_remove("NESTED_TOKEN").output().unwrap().into();
    println!("without a token, nixbox {arguments:?}: {said:#?}");
    said
}

pub(super) fn a_vm_outlives_every_edit_of_its_configuration() {
    let workspace = Workspace::new("edited");
    workspace.ok(&["up"]);
    workspace.guest("echo before > /tmp/mark");
    workspace.configure(&edited());
    let edits = workspace.status()["pending_edits"].to_string();
    for key in ["vm.memory", "vm.vcpus", "mounts.0.source", "mounts.1.target", "disks.1.size"] {
        assert!(edits.contains(key), "{key} is not in {edits}");
    }
    // With shares v53 rolls the VM over: a new VMM and new daemons, of what was built.
    workspace.ok(&["snapshot", "--name", "first"]);
    workspace.assert_up();
    assert_eq!(workspace.guest("cat /tmp/mark; nproc"), "before\n1\n");
    // Nothing can be read that describes the VM but its record.
    workspace.configure("this is no configuration");
    workspace.assert_up();
    workspace.run(&["snapshot"]).failed(2, &["config.toml"]);
    workspace.assert_up();
    workspace.ok(&["down"]);
    workspace.configure(&edited());
    workspace.run(&["restore", "first"]).failed(1, &["vm.memory was \"192MiB\" and is \"256MiB\" now"]);
    workspace.configure(&Workspace::configuration(""));
    workspace.ok(&["restore", "first"]);
    workspace.assert_up();
    assert_eq!(workspace.guest("cat /tmp/mark"), "before\n");
    workspace.ok(&["down"]);
    workspace.assert_down();
}

pub(super) fn a_vm_goes_down_without_credentials_and_without_a_journal() {
    let workspace = Workspace::new("forgotten");
    workspace.ok(&["up"]);
    let said = without_token(&workspace, &["down"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    workspace.assert_down();
    workspace.ok(&["up"]);
    let journal = workspace.state_directory("journal").join("current");
    let journal = if journal.exists() { journal } else { newest(&workspace.state_directory("journal")) };
    let good = fs::read(&journal).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0xff;
    fs::write(&journal, &bad).unwrap();
    workspace.run(&["snapshot"]).failed(4, &[]);
    let said = workspace.ok(&["down"]);
    assert!(said.stderr.contains("left as it is"), "{said:?}");
    assert_eq!(workspace.things(), []);
    // With the journal put back, the workspace is as after a VM that was lost, and boots from its disk.
    fs::write(&journal, &good).unwrap();
    workspace.ok(&["up"]);
    workspace.assert_up();
    workspace.ok(&["down"]);
    workspace.assert_down();
}

fn newest(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
}

pub(super) fn a_copy_leaves_the_vm_alone_and_a_renamed_workspace_keeps_it() {
    let mut workspace = Workspace::new("copied");
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "warm"]);
    let copy = workspace.path.with_file_name("copied-copy");
    assert!(Command::new("cp").arg("-a").args([&workspace.path, &copy]).status().unwrap().success());
    let original = std::mem::replace(&mut workspace.path, copy);
    for arguments in
        [&["down"] as &[&str], &["up"], &["recover"], &["restore", "warm", "--replace"], &["run", "true"]]
    {
        workspace.run(arguments).failed(1, &["is a copy of", "--new-id"]);
    }
    let copy = std::mem::replace(&mut workspace.path, original);
    workspace.assert_up();
    let renamed = workspace.path.with_file_name("copied-renamed");
    fs::rename(&workspace.path, &renamed).unwrap();
    workspace.path = renamed;
    workspace.assert_up();
    // The shares follow the directory, so that the roll-over finds their sources.
    workspace.ok(&["snapshot"]);
    workspace.assert_up();
    workspace.ok(&["down"]);
    workspace.ok(&["restore", "warm"]);
    workspace.assert_up();
    workspace.ok(&["down"]);
    workspace.assert_down();
    fs::remove_dir_all(copy).unwrap();
}
