//! Directories of workspaces are copied, moved and removed while their VMs run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace::{SECRET, Workspace, nixbox_in as nixbox};

/// A copy of the workspace's directory, as `cp -a` makes it.
fn copy(workspace: &Workspace, into: &tempfile::TempDir) -> PathBuf {
    let copy = into.path().join("copy");
    let copied = Command::new("cp").arg("-a").args([workspace.path(), &copy]).status().unwrap();
    assert!(copied.success());
    copy
}

#[test]
fn no_command_in_a_copy_touches_the_original() {
    let workspace = Workspace::new("simulator-v53", true);
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "warm"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = copy(&workspace, &elsewhere);
    let vmm = workspace.vmm();
    let changing: [&[&str]; 10] = [
        &["up"],
        &["up", "--snapshot"],
        &["down"],
        &["snapshot"],
        &["snapshot", "delete", "warm"],
        &["restore", "warm", "--replace"],
        &["recover"],
        &["run", "--", "true"],
        &["shell"],
        &["init"],
    ];
    for arguments in changing {
        let refused = nixbox(&copy, arguments);
        assert_eq!(refused.code, Some(1), "{arguments:?}: {refused:?}");
        assert!(
            refused.stderr.contains("is a copy of") && refused.stderr.contains("--new-id"),
            "{refused:?}"
        );
    }
    let status = nixbox(&copy, &["status", "--json"]).json();
    assert!(status["not_the_workspace"].as_str().unwrap().contains("is a copy of"), "{status}");
    assert!(workspace.check(), "the VM of the original runs on");
    assert_eq!((workspace.vmm(), workspace.snapshots().len()), (vmm, 1));

    let told = nixbox(&copy, &["init", "--new-id"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    for arguments in [&["up"] as &[&str], &["run", "--", "true"], &["down"]] {
        let said = nixbox(&copy, arguments);
        assert_eq!(said.code, Some(0), "{arguments:?}: {said:?}");
    }
    let id = fs::read_to_string(copy.join(".nixbox/workspace-id")).unwrap();
    let refused = nixbox(&copy, &["init", "--new-id"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("no copy"), "{refused:?}");
    assert!(workspace.check(), "the VM of the original runs on");
    workspace.ok(&["down"]);
    fs::remove_dir_all(&copy).unwrap();
    assert_eq!(nixbox(Path::new("/"), &["forget", id.trim()]).code, Some(0));
}

#[test]
fn a_workspace_that_is_renamed_keeps_its_vm_and_its_snapshots() {
    let workspace = Workspace::new("simulator-v53", true);
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "warm"]);
    let aside = workspace.path().with_extension("renamed");
    fs::rename(workspace.path(), &aside).unwrap();
    let listed = nixbox(Path::new("/"), &["list", "--json"]).json();
    let gone =
        listed.as_array().unwrap().iter().find(|one| one["directory"] == workspace.path().to_str().unwrap());
    assert_eq!(gone.map(|one| &one["state"]), Some(&"gone".into()), "{listed}");
    // The simulated guest reaches its share by the path of the directory, so the share is not looked at here.
    let said = nixbox(&aside, &["run", "--", "sh", "-c", "echo $TOKEN"]);
    assert_eq!((said.code, said.stdout.trim()), (Some(0), SECRET), "{said:?}");
    let said = nixbox(&aside, &["down"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains("was moved here from"), "{said:?}");
    let said = nixbox(&aside, &["restore", "warm"]);
    assert!(said.code == Some(0) && !said.stderr.contains("moved"), "{said:?}");
    let said = nixbox(&aside, &["down"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    fs::rename(&aside, workspace.path()).unwrap();
    assert!(workspace.ok(&["recover"]).stderr.contains("was moved here from"));
}

#[test]
fn list_shows_workspaces_and_their_vms_from_every_directory() {
    let workspace = Workspace::new("simulator-v53", false);
    let row = || {
        let listed = nixbox(Path::new("/"), &["list", "--json"]).json();
        let listed = listed.as_array().unwrap();
        let path = fs::canonicalize(workspace.path()).unwrap();
        listed.iter().find(|one| one["directory"] == path.to_str().unwrap()).unwrap().clone()
    };
    let state = || row()["state"].as_str().unwrap().to_owned();
    assert_eq!(state(), "down");
    workspace.ok(&["up"]);
    assert_eq!(state(), "running");
    assert!(row()["up_for_ms"].as_u64().is_some_and(|up| up < 3_600_000), "{}", row());
    assert!(workspace.ok(&["status"]).stdout.contains("  up for "));
    let table = nixbox(Path::new("/"), &["list"]).stdout;
    assert!(table.starts_with("NAME ") && table.contains("running"), "{table}");
    workspace.ok(&["down"]);
    assert_eq!((state(), row()["up_for_ms"].is_null()), ("down".to_owned(), true));
}
