//! Two VMs whose guests have one address.

use crate::workspace::Workspace;

/// What a guest has in its RAM and on its disk, and nowhere else.
fn own(workspace: &Workspace) -> (String, String) {
    (workspace.guest("cat /tmp/mine"), workspace.guest("cat ~/mine"))
}

pub(super) fn snapshots_of_one_address_are_restored_side_by_side() {
    let workspaces = ["left", "right"].map(|name| (name, Workspace::new(name)));
    for (name, workspace) in &workspaces {
        workspace.ok(&["up"]);
        workspace.guest(&format!("echo {name} > /tmp/mine; echo {name} > ~/mine; sync"));
        workspace.ok(&["snapshot", "--name", "warm"]);
        // What came after the snapshot is not restored.
        workspace.guest("echo later > /tmp/mine; echo later > ~/mine; sync");
        workspace.ok(&["down"]);
        workspace.assert_down();
    }
    let mut restores =
        workspaces.each_ref().map(|(_, workspace)| workspace.nixbox(&["restore", "warm"]).spawn().unwrap());
    for restore in &mut restores {
        assert!(restore.wait().unwrap().success());
    }
    let [(_, left), (_, right)] = &workspaces;
    assert_eq!(
        left.status()["vm"]["address"],
        right.status()["vm"]["address"],
        "the guests have one address"
    );
    for (name, workspace) in &workspaces {
        // It answers SSH, with its own credentials and shares.
        workspace.assert_up();
        assert_eq!(own(workspace), (format!("{name}\n"), format!("{name}\n")));
    }
    // Restored again, one of them comes back beside the other, which notices nothing.
    left.guest("echo changed > /tmp/mine");
    right.guest("echo kept > /tmp/mine");
    left.ok(&["restore", "warm", "--replace"]);
    left.assert_up();
    assert_eq!((own(left).0, own(right).0), ("left\n".to_owned(), "kept\n".to_owned()));
    for (_, workspace) in &workspaces {
        workspace.ok(&["down"]);
        workspace.assert_down();
    }
}
