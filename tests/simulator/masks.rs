//! What a share hides, on a workspace that its guest has as a share.

use std::fs;
use std::process::Command;

use super::workspace::Workspace;

/// A running workspace that is its own share, with another workspace in it, and a script that leaves a trace.
fn shared_whole() -> Workspace {
    let workspace = Workspace::new("simulator", false);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("mounts = []\n", "");
    let more = "[hooks]\npre-down = [\"touch ran\"]\n[[mounts]]\nsource = \".\"\ntarget = \"~/workspace\"\n";
    fs::write(&config, format!("{text}{more}")).unwrap();
    fs::create_dir(workspace.path().join("inner")).unwrap();
    workspace.ok(&["-C", "inner", "init", "--simulator"]);
    workspace.ok(&["up", "--quiet"]);
    workspace
}

/// Makes the `.nixbox` of the inner workspace anew, with the same content, as a version control system or a backup would.
fn replace_nixbox(workspace: &Workspace) {
    let (old, nixbox) = (workspace.path().join("old"), workspace.path().join("inner/.nixbox"));
    fs::rename(&nixbox, &old).unwrap();
    let copied = Command::new("cp").arg("-a").arg(&old).arg(&nixbox).status().unwrap();
    assert!(copied.success());
    fs::remove_dir_all(old).unwrap();
}

#[test]
fn commands_notice_a_nixbox_that_the_guest_can_reach() {
    let workspace = shared_whole();
    let exposed = || workspace.ok(&["status", "--json"]).json()["vm"]["exposed"].clone();
    assert_eq!(exposed(), serde_json::Value::Null);
    replace_nixbox(&workspace);
    assert!(exposed().as_str().unwrap().contains("was made anew"), "{}", exposed());
    assert!(workspace.ok(&["status"]).stdout.contains("`nixbox down` and `nixbox up` hide it again"));
    for refused in [&["snapshot"][..], &["up"], &["restore", "--replace"]] {
        let said = workspace.run(refused);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.stderr.contains("the guest can reach"), "{said:?}");
    }
    assert!(workspace.ok(&["run", "true"]).stderr.contains("the guest can reach"));
    // The scripts may be the guest's by now.
    let said = workspace.ok(&["down"]);
    assert!(said.stderr.contains("no script of the configuration is run"), "{said:?}");
    assert!(!workspace.path().join("ran").exists());
    workspace.ok(&["up", "--quiet"]);
    assert_eq!(exposed(), serde_json::Value::Null);
    workspace.ok(&["down", "--quiet"]);
    assert!(workspace.path().join("ran").exists());
}

#[test]
fn what_a_guest_wrote_into_a_nixbox_that_it_could_reach_is_confirmed_before_it_is_obeyed() {
    let workspace = shared_whole();
    replace_nixbox(&workspace);
    workspace
        .guest("printf '[hooks]\\npre-up = [\"touch taken\"]\\n' >> ~/workspace/inner/.nixbox/config.toml");
    workspace.ok(&["down", "--quiet"]);
    let said = workspace.run(&["-C", "inner", "up"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("script 1 of hooks.pre-up: touch taken"), "{said:?}");
    assert!(!workspace.path().join("inner/taken").exists());
    // The workspace around it is not concerned.
    let shown = workspace.ok(&["trust", "--json"]).json();
    assert_eq!((&shown["origin"], &shown["confirmed"]), (&"written-here".into(), &true.into()), "{shown}");
    fs::rename(workspace.nixbox(), workspace.path().join("aside")).unwrap();
    let copied =
        Command::new("cp").arg("-a").args([workspace.path().join("aside"), workspace.nixbox()]).status();
    assert!(copied.unwrap().success());
    let shown = workspace.ok(&["trust", "--json"]).json();
    assert_eq!((&shown["origin"], &shown["confirmed"]), (&"foreign".into(), &true.into()), "{shown}");
}

#[test]
fn a_snapshot_is_refused_before_the_guest_loses_shares_that_cannot_be_served_again() {
    let workspace = Workspace::new("simulator-v53", true);
    workspace.ok(&["up", "--quiet"]);
    // A protected path became a link, which cannot be protected. The snapshot would start other daemons.
    std::os::unix::fs::symlink("elsewhere", workspace.path().join("shared/.git")).unwrap();
    let said = workspace.run(&["snapshot"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("cannot be protected from the guest"), "{said:?}");
    assert_eq!(workspace.guest("cat ~/shared/greeting"), super::workspace::GREETING);
    fs::remove_file(workspace.path().join("shared/.git")).unwrap();
    workspace.ok(&["snapshot", "--quiet"]);
    workspace.ok(&["down", "--quiet"]);
}

#[test]
fn no_workspace_is_made_below_a_share_of_a_running_guest() {
    let workspace = shared_whole();
    let below = workspace.path().join("below");
    fs::create_dir(&below).unwrap();
    let init = ["-C", "below", "init", "--simulator"];
    let said = workspace.run(&init);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("a running guest has"), "{said:?}");
    assert_eq!(fs::read_dir(&below).unwrap().count(), 0);
    // What is missing of a workspace that is masked can be made.
    workspace.ok(&["init"]);
    workspace.ok(&["down", "--quiet"]);
    workspace.ok(&init);
}
