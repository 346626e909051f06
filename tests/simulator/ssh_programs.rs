//! Programs that reach the guest through the entry of `nixbox ssh-config`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::workspace::Workspace;

/// Writes the entry to a file, and returns the file and the name of the host.
fn entry(workspace: &Workspace) -> (PathBuf, String) {
    let text = workspace.ok(&["ssh-config"]).stdout;
    let path = workspace.path().join("ssh entry");
    fs::write(&path, &text).unwrap();
    let host = text.lines().find_map(|line| line.strip_prefix("Host ")).unwrap();
    (path, host.split(' ').next().unwrap().to_owned())
}

/// Runs a program that starts ssh with the entry.
fn program(workspace: &Workspace, name: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(name);
    command.args(arguments).current_dir(workspace.path()).stdin(Stdio::null());
    command
        .env("NIXBOX_SCOPES", "none")
        .env("GIT_SSH_COMMAND", "ssh -F 'ssh entry'")
        .env("RSYNC_RSH", "ssh -F 'ssh entry'");
    command.output().unwrap()
}

#[track_caller]
fn ok(workspace: &Workspace, name: &str, arguments: &[&str]) -> String {
    let output = program(workspace, name, arguments);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name} {arguments:?}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

fn is_there(program: &str) -> bool {
    let there =
        std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|path| path.join(program).exists());
    if !there {
        println!("left out, because {program} is not installed");
    }
    there
}

#[test]
fn ssh_scp_rsync_and_git_reach_the_guest_through_the_entry() {
    let workspace = Workspace::new("simulator", false);
    let (path, host) = entry(&workspace);
    let path = path.to_str().unwrap();
    // The entry is right before there is a VM, and says what is missing.
    let refused = program(&workspace, "ssh", &["-F", path, &host, "true"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(255) && told.contains("nixbox up"), "{told}");

    workspace.ok(&["up"]);
    assert_eq!(ok(&workspace, "ssh", &["-F", path, &host, "pwd"]), workspace.guest("pwd"));
    fs::write(workspace.path().join("a file"), "content\n").unwrap();
    ok(&workspace, "scp", &["-O", "-q", "-F", path, "a file", &format!("{host}:copied")]);
    assert_eq!(workspace.guest("cat ~/copied"), "content\n");
    ok(&workspace, "scp", &["-O", "-q", "-F", path, &format!("{host}:copied"), "back"]);
    assert_eq!(fs::read_to_string(workspace.path().join("back")).unwrap(), "content\n");
    if is_there("rsync") {
        ok(&workspace, "rsync", &["-a", "shared/", &format!("{host}:synced/")]);
        assert_eq!(
            workspace.guest("cat ~/synced/greeting"),
            fs::read_to_string(workspace.path().join("shared/greeting")).unwrap()
        );
    }
    if is_there("git") {
        workspace.guest(
            "git init -q project && cd project && echo x > x && git add x &&
             git -c user.name=n -c user.email=e commit -q -m first",
        );
        let home = workspace.guest("echo $HOME");
        ok(&workspace, "git", &["clone", "-q", &format!("{host}:{}/project", home.trim()), "cloned"]);
        assert!(workspace.path().join("cloned/x").exists());
    }

    // It stays right for a restored guest, whose disk is another.
    workspace.ok(&["snapshot", "--name", "warm", "--stop"]);
    workspace.ok(&["up", "--snapshot", "warm"]);
    assert_eq!(ok(&workspace, "ssh", &["-F", path, &host, "cat copied"]), "content\n");
    workspace.ok(&["down"]);
}
