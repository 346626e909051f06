//! `nixbox credentials` on a VM that runs.

use std::fs;

use crate::workspace::{SECRET, Workspace};

/// Replaces the value of the credential in the configuration.
fn renew(workspace: &Workspace, from: &str, to: &str) {
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&config, text.replace(from, to)).unwrap();
}

fn states(workspace: &Workspace) -> (bool, Vec<String>) {
    let report = workspace.ok(&["credentials", "status", "--json"]).json();
    let states = report["configured"].as_array().unwrap().iter();
    let states =
        states.map(|one| format!("{} {}", one["target"].as_str().unwrap(), one["state"].as_str().unwrap()));
    (report["withheld"].as_bool().unwrap(), states.collect())
}

#[test]
fn a_renewed_credential_is_given_to_the_guest_that_runs() {
    const RENEWED: &str = "renewed-4713-of-the-host";
    let workspace = Workspace::new("simulator-v53", true);
    let refused = workspace.run(&["credentials", "inject"]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    workspace.ok(&["up"]);
    assert_eq!(states(&workspace), (false, vec!["~/.env given".to_owned()]));
    renew(&workspace, SECRET, RENEWED);
    assert_eq!(states(&workspace).1, ["~/.env outdated"]);
    let shown = workspace.ok(&["credentials", "status"]).stdout;
    assert!(shown.contains("~/.env (TOKEN): differs") && !shown.contains(RENEWED), "{shown}");
    assert_eq!(workspace.guest("echo $TOKEN"), format!("{SECRET}\n"));
    workspace.ok(&["credentials", "inject"]);
    assert_eq!(workspace.guest("echo $TOKEN"), format!("{RENEWED}\n"));
    assert_eq!(states(&workspace).1, ["~/.env given"]);
    workspace.ok(&["down"]);
    assert!(!workspace.check());
}

#[test]
fn withheld_credentials_are_in_no_file_until_they_are_given_again() {
    for vmm in ["simulator-v51", "simulator-v54"] {
        let workspace = Workspace::new(vmm, true);
        workspace.ok(&["up"]);
        let kept = "echo mine > ~/.bash_history; cp ~/.bash_history ~/kept";
        workspace.guest(kept);
        let said = workspace.ok(&["credentials", "wipe"]);
        assert!(said.stderr.contains("until `nixbox credentials inject`"), "{said:?}");
        let gone = || {
            assert_eq!(workspace.guest("echo \"[$TOKEN]\"; ls ~/.env 2>&1 || :").lines().next(), Some("[]"));
            assert_eq!(workspace.guest("[ ! -e ~/.env ] && echo gone"), "gone\n");
            assert_eq!(workspace.guest("cat ~/.bash_history"), "mine\n");
            assert_eq!(states(&workspace), (true, vec!["~/.env absent".to_owned()]));
            assert_eq!(workspace.status()["vm"]["credentials_withheld"], true);
        };
        gone();
        // Nothing that nixbox does with the VM gives them back.
        workspace.ok(&["snapshot", "--name", "without"]);
        gone();
        workspace.ok(&["up"]);
        workspace.ok(&["recover"]);
        workspace.ok(&["credentials", "wipe"]);
        gone();
        workspace.ok(&["credentials", "inject"]);
        assert_eq!(workspace.guest("echo $TOKEN"), format!("{SECRET}\n"));
        assert_eq!(workspace.status()["vm"]["credentials_withheld"], false);
        assert!(workspace.check());
        // A VM that comes later is given its credentials.
        workspace.ok(&["credentials", "wipe"]);
        workspace.ok(&["restore", "without", "--replace"]);
        assert_eq!(workspace.guest("echo $TOKEN"), format!("{SECRET}\n"));
        assert!(workspace.check());
        workspace.ok(&["down"]);
        assert!(!workspace.check());
    }
}

#[test]
fn a_source_that_cannot_be_read_changes_nothing() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    renew(&workspace, &format!("\"{SECRET}\""), "{ file = \"/nowhere/token\" }");
    let refused = workspace.run(&["credentials", "inject"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("/nowhere/token") && refused.stderr.contains("nothing was changed"),
        "{refused:?}"
    );
    assert_eq!(workspace.guest("echo $TOKEN"), format!("{SECRET}\n"));
    let shown = workspace.ok(&["credentials", "status"]).stdout;
    assert!(shown.contains("not compared") && shown.contains("/nowhere/token"), "{shown}");
    // What is withheld needs no source.
    workspace.ok(&["credentials", "wipe"]);
    assert_eq!(workspace.guest("[ ! -e ~/.env ] && echo gone"), "gone\n");
    workspace.ok(&["down"]);
}

/// A nixbox that is killed anywhere while it gives the credentials again leaves them withheld, or given.
#[cfg(feature = "failpoints")]
#[test]
fn an_injection_that_is_killed_has_given_all_or_the_next_operation_takes_all() {
    let workspace = Workspace::new("simulator-v53", false);
    workspace.ok(&["up"]);
    for at in 1.. {
        workspace.ok(&["credentials", "wipe"]);
        let killed = workspace.killed_at(&["credentials", "inject"], at);
        let withheld = workspace.status()["vm"]["credentials_withheld"] == true;
        assert!(!withheld || killed, "event {at}");
        workspace.ok(&["snapshot"]);
        let told = workspace.guest("cat ~/.env 2>/dev/null || :");
        assert_eq!((told.is_empty(), told.contains(SECRET)), (withheld, !withheld), "event {at}");
        if !killed {
            break;
        }
    }
    workspace.ok(&["down"]);
    assert!(!workspace.check());
}

/// A nixbox that is killed anywhere while it takes the credentials away leaves them withheld, or has not begun.
#[cfg(feature = "failpoints")]
#[test]
fn a_wipe_that_is_killed_is_completed_by_the_next_one() {
    let workspace = Workspace::new("simulator-v53", false);
    workspace.ok(&["up"]);
    for at in 1.. {
        workspace.ok(&["credentials", "inject"]);
        let killed = workspace.killed_at(&["credentials", "wipe"], at);
        let withheld = workspace.status()["vm"]["credentials_withheld"] == true;
        assert!(withheld || killed, "event {at}");
        if withheld {
            // Each operation that reaches the guest takes what is left.
            workspace.ok(&["snapshot"]);
            assert_eq!(workspace.guest("[ ! -e ~/.env ] && echo gone"), "gone\n", "event {at}");
        }
        assert_eq!(workspace.guest("cat ~/.env 2>/dev/null | wc -l").trim() == "0", withheld, "event {at}");
        if !killed {
            break;
        }
    }
    workspace.ok(&["down"]);
    assert!(!workspace.check());
}
