//! A guest that boots and starts no SSH server.

use std::fs;

use crate::workspace::Workspace;

/// A workspace whose guest never answers.
fn silent() -> Workspace {
    let workspace = Workspace::new("simulator-v53", true);
    configure(&workspace, "init_on_free=1", "init_on_free=1 emergency");
    let path = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, format!("{text}[guest]\nready-timeout = \"4s\"\n")).unwrap();
    workspace
}

fn configure(workspace: &Workspace, from: &str, to: &str) {
    let path = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_guest_that_does_not_answer_is_shut_down_and_the_error_says_what_it_said_last() {
    let workspace = silent();
    let said = workspace.run(&["up"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    for words in [
        "waiting for the guest to answer SSH, for 4s, or longer while it writes to its console",
        "the guest did not answer, and its VM was shut down",
        "its console's last line then: Give root password for maintenance:",
        "ready-timeout",
        "--keep",
    ] {
        assert!(said.stderr.contains(words), "{words:?} is not in {}", said.stderr);
    }
    assert!(!said.stderr.contains('\x1b'), "{said:?}");
    assert_eq!(said.stderr.matches("SSH-ready failed: ").count(), 1, "waited for twice: {said:?}");
    assert_eq!(workspace.status()["state"], "down");
    assert_eq!(format!("{:?}", workspace.marked()), "[]");
    configure(&workspace, " emergency", "");
    workspace.ok(&["up"]);
    workspace.ok(&["down"]);
}

#[test]
fn with_keep_the_vm_is_left_running_until_down() {
    let workspace = silent();
    let said = workspace.run(&["up", "--keep"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("its VM was left running for you to look at"), "{said:?}");
    let status = workspace.status();
    assert_eq!((&status["state"], &status["vm"]["left_running"]), (&"running".into(), &true.into()));
    let log = fs::read_to_string(status["vm"]["serial_log"].as_str().unwrap()).unwrap();
    assert!(log.contains("emergency mode"), "{log}");
    for refused in [&["up"][..], &["up", "--snapshot"], &["snapshot"], &["restore"]] {
        let said = workspace.run(refused);
        assert!(said.code == Some(1) && said.stderr.contains("`nixbox down`"), "{refused:?}: {said:?}");
    }
    assert!(workspace.ok(&["recover"]).stderr.contains("nothing to recover"));
    assert_eq!(workspace.status()["state"], "running");
    workspace.ok(&["down"]);
    assert_eq!(format!("{:?}", workspace.marked()), "[]");
    configure(&workspace, " emergency", "");
    workspace.ok(&["up"]);
    workspace.ok(&["down"]);
}
