//! What a guest, with root in it, reaches of the host through the shares.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::workspace::Workspace;

/// The usual configuration with shares of the workspace and of the directory above it.
fn configuration() -> String {
    let text = Workspace::configuration("");
    let (head, tail) = text.split_once("[[mounts]]").unwrap();
    let (_, tail) = tail.split_once("[guest]").unwrap();
    format!(
        "{head}[[mounts]]\nsource = \".\"\ntarget = \"~/workspace\"\n[[mounts]]\nsource = \"..\"\ntarget = \"~/above\"\n\
         [guest]{tail}"
    )
}

pub(super) fn a_guest_sees_copies_in_place_of_nixbox_and_changes_nothing_there() {
    // The directory above holds this workspace alone, so that no other scenario's masks count.
    let workspace = Workspace::new("trust/inner");
    workspace.configure(&configuration());
    let config = workspace.path.join(".nixbox/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    workspace.ok(&["up"]);
    for place in ["workspace", "above/inner"] {
        assert_eq!(
            workspace.guest(&format!("ls -A ~/{place}/.nixbox")),
            ".gitignore\nconfig.toml\n",
            "{place}"
        );
        assert_eq!(workspace.guest(&format!("cat ~/{place}/.nixbox/config.toml")), text, "{place}");
        for attempt in [
            "echo x >> P/config.toml",
            "rm P/config.toml",
            "touch P/journal",
            "mv P P.aside",
            "mkdir P/run",
            "chmod 777 P",
        ] {
            // As the user, and as root.
            let script = attempt.replace('P', &format!("/home/user/{place}/.nixbox"));
            let refused =
                workspace.run(&["run", "--", "sh", "-c", &format!("{script} || sudo -n sh -c '{script}'")]);
            assert_ne!(refused.code, Some(0), "{attempt}: {refused:?}");
        }
        // The directory that holds it cannot be moved away and replaced.
        if place == "above/inner" {
            let moved = workspace.run(&[
                "run",
                "--",
                "sudo",
                "-n",
                "mv",
                "/home/user/above/inner",
                "/home/user/above/x",
            ]);
            assert_ne!(moved.code, Some(0), "{moved:?}");
        }
    }
    assert_eq!(fs::read_to_string(&config).unwrap(), text);
    // What the guest makes elsewhere gives nobody privileges on the host.
    workspace.guest("cd ~/workspace && echo made > file && sudo -n sh -c 'chmod u+s file' && exit 1 || true");
    workspace.guest("cd ~/workspace && sudo -n sh -c 'mknod node c 1 3' && exit 1 || true");
    let made = workspace.path.join("file");
    assert_eq!(fs::read_to_string(&made).unwrap(), "made\n");
    assert_eq!(fs::metadata(&made).unwrap().mode() & 0o7000, 0);
    assert!(!workspace.path.join("node").exists());
    // The masks are there again after a roll-over and after a restore.
    workspace.ok(&["snapshot", "--name", "warm"]);
    let seen = "ls -A ~/workspace/.nixbox ~/above/inner/.nixbox | grep -c . || true";
    let before = workspace.guest(seen);
    workspace.ok(&["restore", "warm", "--replace"]);
    assert_eq!(workspace.guest(seen), before);
    assert_eq!(workspace.guest("ls -A ~/above/inner/.nixbox"), ".gitignore\nconfig.toml\n");
    // A `.nixbox` that the host made anew is not hidden. Commands that rely on it are refused, and `down` works.
    let nixbox = workspace.path.join(".nixbox");
    let aside = workspace.path.join("aside");
    fs::rename(&nixbox, &aside).unwrap();
    std::process::Command::new("cp").arg("-a").args([&aside, &nixbox]).status().unwrap();
    workspace.run(&["snapshot"]).failed(1, &["nixbox down"]);
    workspace.ok(&["down"]);
    fs::remove_dir_all(&aside).unwrap();
    workspace.assert_down();
    workspace.ok(&["up"]);
    assert_eq!(workspace.guest("ls -A ~/workspace/.nixbox"), ".gitignore\nconfig.toml\n");
    workspace.ok(&["down"]);
    workspace.assert_down();
}
