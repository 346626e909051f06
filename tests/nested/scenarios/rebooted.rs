//! A guest that reboots by itself comes back, and one that powers off leaves a workspace that is down.

use serde_json::Value;

use crate::workspace::Workspace;

/// Lets the guest end its connection by this program of root's, and waits until the status says so.
pub(super) fn until(workspace: &Workspace, program: &[&str], says: impl Fn(&Value) -> bool) -> Value {
    // The connection breaks before the program has ended.
    workspace.run(&[&["run", "--", "sudo", "-n"], program].concat());
    loop {
        let status = workspace.status();
        if says(&status) {
            println!("after {program:?}: {status:#}");
            return status;
        }
    }
}

pub(super) fn boot(workspace: &Workspace) -> String {
    workspace.guest("cat /proc/sys/kernel/random/boot_id")
}

pub(super) fn a_guest_that_reboots_comes_back_and_one_that_powers_off_is_down() {
    let workspace = Workspace::new("rebooted");
    // A guest that boots twice has the time of two.
    let patient = Workspace::configuration("").replace("[guest]", "[guest]\nready-timeout = \"10min\"");
    workspace.configure(&patient);
    workspace.ok(&["up"]);
    let first = boot(&workspace);
    workspace.guest("echo kept > ~/kept; sync");
    let status = until(&workspace, &["reboot", "-f"], |status| status["vm"]["rebooted"] == true);
    assert_eq!(status["state"], "running");
    let said = workspace.ok(&["run", "--", "cat", "kept"]);
    assert!(said.stdout == "kept\n" && said.stderr.contains("the guest was rebooted"), "{said:?}");
    workspace.assert_up();
    workspace.guest("echo written > ~/share/written");
    let second = boot(&workspace);
    assert_ne!(second, first);

    workspace.ok(&["snapshot", "--name", "rebooted"]);
    workspace.assert_up();
    workspace.ok(&["restore", "rebooted", "--replace"]);
    workspace.assert_up();
    assert_eq!(boot(&workspace), second);

    // A restored guest reboots too, and `up` notices it as well.
    until(&workspace, &["reboot", "-f"], |status| status["vm"]["rebooted"] == true);
    workspace.ok(&["up"]);
    assert_eq!(workspace.status()["vm"]["rebooted"], false);
    workspace.assert_up();
    workspace.guest("cat ~/kept");

    let status = until(&workspace, &["poweroff", "-f"], |status| status["state"] != "running");
    assert_eq!((&status["state"], &status["vm"]["powered_off"]), (&"down".into(), &true.into()));
    let recovered = workspace.ok(&["recover"]);
    assert!(recovered.stderr.contains("powered off"), "{recovered:?}");
    workspace.assert_down();
    workspace.ok(&["up"]);
    workspace.assert_up();
    workspace.guest("cat ~/kept");
    workspace.ok(&["down"]);
    workspace.assert_down();
}
