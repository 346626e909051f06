//! `nixbox demo` does what it says, and leaves nothing behind unless it is told to.

use std::process::Command;

fn demo(arguments: &[&str], directory: &std::path::Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_nixbox"))
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", directory)
        .env_remove("SUDO_UID")
        .env("NIXBOX_SCOPES", "none")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn demo_shows_a_kill_and_its_recovery_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let said = demo(&[], directory.path());
    for word in [
        "simulator",
        "snapshot: open",
        "intent only",
        "it would go back",
        "searched for the secret",
        "in all",
    ] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn demo_keep_leaves_a_workspace_with_a_running_vm() {
    let directory = tempfile::tempdir().unwrap();
    let said = demo(&["--keep"], directory.path());
    let workspace = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
    assert!(said.contains(workspace.to_str().unwrap()), "{said}");
    let nixbox = |words: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_nixbox")).args(words).current_dir(&workspace).output().unwrap()
    };
    let status: serde_json::Value = serde_json::from_slice(&nixbox(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["state"], "running");
    assert!(nixbox(&["down"]).status.success());
    let place = directory.path().canonicalize().unwrap();
    drop(directory);
    crate::workspace::forget_below(&place);
}
