//! Two workspaces whose snapshots hold one address.

use crate::workspace::Workspace;

fn slot(workspace: &Workspace) -> serde_json::Value {
    workspace.ok(&["status", "--json"]).json()["vm"]["slot"].clone()
}

#[test]
fn vms_of_several_workspaces_have_one_slot_as_on_a_host_with_namespaces() {
    let workspaces = [Workspace::new("simulator-v53", true), Workspace::new("simulator-v53", true)];
    for workspace in &workspaces {
        workspace.ok(&["up"]);
        assert_eq!(slot(workspace), nixbox::world::Slot::OWN_NETWORK.number());
        workspace.ok(&["snapshot", "--name", "warm", "--stop"]);
    }
    for workspace in &workspaces {
        workspace.ok(&["restore", "warm"]);
        assert_eq!(slot(workspace), nixbox::world::Slot::OWN_NETWORK.number());
    }
    for workspace in &workspaces {
        assert!(workspace.check());
        workspace.ok(&["down"]);
    }
}
