//! What shells complete, asked as their scripts ask, and in the shells that this machine has.

use std::process::Command;

use crate::workspace::Workspace;

/// The candidates for the last word of a command line.
fn candidates(workspace: &Workspace, line: &[&str]) -> Vec<String> {
    let mut command = workspace.command(&["--"]);
    command
        .args(line)
        .env("NIXBOX_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", (line.len() - 1).to_string());
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{line:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The words that bash completes, with nixbox on PATH.
fn in_bash(workspace: &Workspace, words: &[&str]) -> Vec<String> {
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "source <(nixbox completions bash); COMP_WORDS=({}); COMP_CWORD={}; \
         _clap_complete_nixbox nixbox '{}' ''; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted.join(" "),
        words.len() - 1,
        words.last().unwrap(),
    );
    let own = std::path::Path::new(env!("CARGO_BIN_EXE_nixbox")).parent().unwrap().to_owned();
    let path = std::env::join_paths(
        [own].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let output = Command::new("bash")
        .args(["--norc", "-c", &script])
        .current_dir(workspace.path())
        .env("PATH", path.unwrap())
        .env_remove("SUDO_UID")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn names_of_snapshots_are_completed_and_nothing_is_changed() {
    let workspace = Workspace::new("simulator-v53", false);
    assert!(candidates(&workspace, &["nixbox", "restore", ""]).iter().all(|word| word.starts_with('-')));
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "warm"]);
    workspace.ok(&["snapshot"]);
    let number = workspace.ok(&["snapshot", "list", "--json"]).json()[1]["id"].to_string();
    // The lock is not needed.
    let lock = nixbox::workspace::Workspace::find(
        workspace.path(),
        &nixbox::workspace::places::StatePlaces::of_this_user().unwrap(),
    );
    let lock = lock.unwrap().lock("a test").unwrap();
    for line in [
        &["nixbox", "restore", ""] as &[&str],
        &["nixbox", "up", "--snapshot", ""],
        &["nixbox", "snapshot", "delete", ""],
        &["nixbox", "snapshot", "verify", ""],
        &["nixbox", "-C", ".", "snapshot", "inspect", ""],
    ] {
        let found = candidates(&workspace, line);
        assert!(found.contains(&"warm".to_owned()) && found.contains(&number), "{line:?}: {found:?}");
    }
    assert_eq!(candidates(&workspace, &["nixbox", "restore", "w"]), ["warm"]);
    assert_eq!(in_bash(&workspace, &["nixbox", "restore", "w"]), ["warm"]);
    assert_eq!(in_bash(&workspace, &["nixbox", "snapshot", "ren"]), ["rename"]);
    // bash would run what is in the name of a file, were it put into the line.
    for name in ["zz$(touch owned)", "zz x", "zz;date"] {
        std::fs::create_dir(workspace.path().join(name)).unwrap();
    }
    for line in
        [&["nixbox", "-C", "z"] as &[&str], &["nixbox", "man", "z"], &["nixbox", "image", "import", "z"]]
    {
        assert_eq!(candidates(&workspace, line), Vec::<String>::new(), "{line:?}");
    }
    let script = workspace.ok(&["completions", "bash"]).stdout;
    assert!(script.contains("complete -o nospace -o bashdefault -o default "), "{script}");
    drop(lock);
    // Where there is no workspace nothing is said.
    let outside = tempfile::tempdir().unwrap();
    let line = ["nixbox", "-C", outside.path().to_str().unwrap(), "restore", ""];
    assert!(candidates(&workspace, &line).iter().all(|word| word.starts_with('-')));
    assert!(std::fs::read_dir(outside.path()).unwrap().next().is_none());
    workspace.ok(&["down"]);
}
