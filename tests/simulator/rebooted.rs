//! A guest that reboots by itself comes back with its shares and credentials, and one that powers off leaves a workspace that is
//! down.

use serde_json::Value;

use crate::workspace::{GREETING, Workspace};

/// Lets the guest end its connection by this program, and waits until the status says so.
fn until(workspace: &Workspace, program: &str, says: impl Fn(&Value) -> bool) -> Value {
    // The connection may break before the program has ended.
    workspace.run(&["run", "--", program]);
    loop {
        let status = workspace.status();
        if says(&status) {
            return status;
        }
        std::thread::yield_now();
    }
}

fn boot(workspace: &Workspace) -> String {
    workspace.guest("cat /proc/sys/kernel/random/boot_id")
}

#[test]
fn a_guest_that_reboots_has_its_shares_and_credentials_again() {
    for vmm in ["simulator-v51", "simulator-v53"] {
        let workspace = Workspace::new(vmm, true);
        workspace.ok(&["up"]);
        workspace.guest("echo kept > ~/kept; sync");
        let mut boots = vec![boot(&workspace)];
        for _ in 0..2 {
            let status = until(&workspace, "reboot", |status| status["vm"]["rebooted"] == true);
            assert_eq!(status["state"], "running", "{status}");
            let said = workspace.ok(&["run", "--", "sh", "-c", "cat ~/kept ~/shared/greeting"]);
            assert_eq!(said.stdout, format!("kept\n{GREETING}"), "{said:?}");
            assert!(said.stderr.contains("the guest was rebooted"), "{said:?}");
            assert!(!workspace.ok(&["run", "true"]).stderr.contains("rebooted"));
            assert_eq!(workspace.status()["vm"]["rebooted"], false);
            boots.push(boot(&workspace));
            assert!(workspace.check());
        }
        boots.sort();
        boots.dedup();
        assert_eq!(boots.len(), 3);
        let last = boot(&workspace);
        workspace.ok(&["snapshot", "--name", "rebooted"]);
        assert!(workspace.check());
        workspace.ok(&["down"]);
        workspace.ok(&["restore", "rebooted"]);
        assert_eq!(boot(&workspace), last);
        assert!(workspace.check());
        workspace.ok(&["down"]);
        assert!(!workspace.check());
    }
}

#[test]
fn a_guest_that_powers_off_leaves_the_workspace_down() {
    let workspace = Workspace::new("simulator", true);
    for next in [&["recover"][..], &["up"], &["down"]] {
        workspace.ok(&["up"]);
        workspace.guest("echo kept >> ~/kept; sync");
        let status = until(&workspace, "poweroff", |status| status["state"] != "running");
        assert_eq!(
            (&status["state"], &status["vm"]["powered_off"]),
            (&"down".into(), &true.into()),
            "{status}"
        );
        let said = workspace.ok(next);
        assert_eq!(said.stderr.contains("powered off"), next == ["recover"], "{said:?}");
        assert_eq!(workspace.check(), next == ["up"]);
    }
    workspace.ok(&["up"]);
    assert_eq!(workspace.guest("cat ~/kept"), "kept\nkept\nkept\n");
    workspace.ok(&["down"]);
}
