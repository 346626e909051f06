//! The disk of the session before a restore, as a person meets it.

use crate::workspace::Workspace;

#[test]
fn the_disk_before_a_restore_is_named_listed_and_gone_back_to() {
    let workspace = Workspace::new("simulator-v53", false);
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot"]);
    workspace.guest("echo 'a day of work' > work");
    workspace.ok(&["down"]);
    let said = workspace.ok(&["up", "--snapshot"]).stderr;
    assert!(said.contains("is kept: after `nixbox down`, `nixbox up --disk 1` goes back to it"), "{said}");
    assert!(workspace.guest("ls").lines().all(|name| name != "work"));
    let status = workspace.status();
    assert_eq!(status["vm"]["former_disk"], 1, "{status}");
    let refused = workspace.run(&["up", "--disk", "1"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("nixbox down"), "{refused:?}");
    workspace.ok(&["down"]);
    let status = workspace.status();
    assert_eq!(status["kept_disks"][0]["generation"], 1, "{status}");
    assert!(status["kept_disks"][0]["bytes"].as_u64().unwrap() > 0, "{status}");
    let told = workspace.ok(&["status"]).stdout;
    assert!(told.contains("kept disk: generation 1, ") && told.contains("`nixbox up --disk 1`"), "{told}");
    let unknown = workspace.run(&["up", "--disk", "77"]);
    assert!(
        unknown.code == Some(3) && unknown.stderr.contains("no disk of generation 77 is kept"),
        "{unknown:?}"
    );
    workspace.ok(&["up", "--disk", "1"]);
    assert_eq!(workspace.guest("cat work"), "a day of work\n");
    workspace.ok(&["down"]);
    let status = workspace.status();
    let kept = status["kept_disks"].as_array().unwrap();
    assert!(kept.len() == 1 && kept[0]["generation"] != 1, "{status}");
    workspace.ok(&["up"]);
    assert_eq!(workspace.guest("cat work"), "a day of work\n");
    workspace.ok(&["down"]);
}
