//! Which edits of a configuration a snapshot can be restored in spite of, and which defaults stay as they were decided.

use std::fs;
use std::path::PathBuf;

use crate::workspace::Workspace;

fn edit(workspace: &Workspace, from: &str, to: &str) {
    let path = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

fn config(workspace: &Workspace) -> serde_json::Value {
    workspace.ok(&["config", "--json"]).json()
}

#[test]
fn a_snapshot_fits_wherever_its_kernel_is_and_an_edit_that_does_not_reach_the_vm_can_be_overridden() {
    let workspace = Workspace::new("simulator-v53", true);
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "warm", "--stop"]);

    // The same kernel at another place.
    let kernel = PathBuf::from(config(&workspace)["vm"]["kernel"].as_str().unwrap());
    let copy = workspace.path().join("another-kernel");
    fs::copy(&kernel, &copy).unwrap();
    let text = fs::read_to_string(workspace.nixbox().join("config.toml")).unwrap();
    let line = text.lines().find(|line| line.starts_with("kernel = ")).unwrap();
    edit(&workspace, line, &format!("kernel = {copy:?}"));
    workspace.ok(&["restore", "warm"]);
    workspace.ok(&["down"]);

    // Another kernel at the same place.
    fs::write(&copy, "another kernel").unwrap();
    let refused = workspace.run(&["restore", "warm"]);
    assert_ne!(refused.code, Some(0));
    for words in ["vm.kernel names a file with another content now", "with --force"] {
        assert!(refused.stderr.contains(words), "{refused:?}");
    }
    workspace.ok(&["restore", "warm", "--force"]);
    assert_eq!(workspace.guest("cat ~/shared/greeting"), crate::workspace::GREETING);
    workspace.ok(&["down"]);

    // A restore cannot change the number of processors.
    edit(&workspace, "vcpus = 1", "vcpus = 2");
    let refused = workspace.run(&["restore", "warm", "--force"]);
    assert!(refused.code != Some(0) && refused.stderr.contains("vm.vcpus"), "{refused:?}");
    assert!(!refused.stderr.contains("with --force"), "{refused:?}");
}

#[test]
fn the_defaults_that_follow_the_host_are_decided_by_the_first_up() {
    let workspace = Workspace::new("simulator-v53", false);
    edit(&workspace, "vcpus = 1", "");
    let before = config(&workspace);
    assert!(before.get("decided-at-first-up").is_none(), "{before}");
    workspace.ok(&["up"]);
    workspace.ok(&["down"]);
    let after = config(&workspace);
    assert_eq!(after["decided-at-first-up"], serde_json::json!(["vm.vcpus"]));
    assert_eq!(after["vm"], before["vm"]);

    // As if the host had had more processors then.
    let decided = workspace.state().join("decided.json");
    let text = fs::read_to_string(&decided).unwrap();
    fs::write(&decided, text.replace(&format!("\"vcpus\":{}", before["vm"]["vcpus"]), "\"vcpus\":7"))
        .unwrap();
    assert_eq!(config(&workspace)["vm"]["vcpus"], 7);
    let told = workspace.ok(&["config"]).stdout;
    assert!(told.contains("decided-at-first-up = [\"vm.vcpus\"]"), "{told}");
    edit(&workspace, "[vm]", "[vm]\nvcpus = 3");
    assert_eq!(config(&workspace)["vm"]["vcpus"], 3);
    assert!(config(&workspace).get("decided-at-first-up").is_none());

    // A file that nixbox did not write is named, and does not keep a VM up.
    workspace.ok(&["up"]);
    fs::write(&decided, "lots").unwrap();
    let refused = workspace.run(&["snapshot"]);
    assert!(refused.code != Some(0) && refused.stderr.contains("decided.json"), "{refused:?}");
    workspace.ok(&["down"]);
}
