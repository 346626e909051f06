//! A configuration that came from elsewhere acts on the host only after a person has confirmed what it does.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::workspace::{Said, Workspace, nixbox_in};

/// The configuration of a stranger. Its scripts leave files in the workspace.
const STRANGE: &str = "vmm = \"simulator-v53\"\nmounts = []\n[vm]\nvcpus = 1\nmemory = \"64MiB\"\nkernel = \"image/kernel\"\n\
    cmdline = \"init_on_free=1\"\n[[disks]]\nimage = \"image/root.img\"\n\
    [env]\nTOKEN = { command = [\"sh\", \"-c\", \"touch sourced; echo s3cret-4711-of-the-host\"] }\n\
    [hooks]\npre-up = [\"touch ran\"]\npre-down = [\"touch ran-down\"]\n";

/// A directory with a configuration in it, as `git clone` makes it.
fn cloned() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let nixbox = directory.path().join(".nixbox");
    fs::create_dir(&nixbox).unwrap();
    fs::write(nixbox.join("config.toml"), STRANGE).unwrap();
    fs::set_permissions(&nixbox, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(nixbox.join("config.toml"), fs::Permissions::from_mode(0o644)).unwrap();
    directory
}

fn nixbox(directory: &tempfile::TempDir, arguments: &[&str]) -> Said {
    nixbox_in(directory.path(), arguments)
}

/// The same on a terminal, on which a person types this.
fn on_terminal(directory: &tempfile::TempDir, arguments: &str, typed: &str) -> Said {
    let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_nixbox"));
    let mut command = Command::new("script");
    command
        .args(["-qec", &line, "/dev/null"])
        .current_dir(directory.path())
        .env_remove("SUDO_UID")
        .env("NIXBOX_SCOPES", "none");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

fn refused(said: &Said, words: &[&str], not: &[&str]) {
    assert_eq!(said.code, Some(1), "{said:?}");
    for word in words {
        assert!(said.stderr.contains(word), "no {word:?} in {said:?}");
    }
    for word in not {
        assert!(!said.stderr.contains(word), "{word:?} in {said:?}");
    }
}

fn exists(directory: &tempfile::TempDir, name: &str) -> bool {
    directory.path().join(name).exists()
}

const ALL: [&str; 7] = [
    "has not been confirmed yet",
    "script 1 of hooks.pre-up: touch ran",
    "script 1 of hooks.pre-down: touch ran-down",
    "for env.TOKEN: sh -c 'touch sourced; echo s3cret-4711-of-the-host'",
    "the simulator is no sandbox",
    "nixbox trust",
    "--trust",
];

#[test]
fn a_strangers_configuration_is_obeyed_when_it_was_confirmed_and_no_sooner() {
    let directory = cloned();
    refused(&nixbox(&directory, &["init", "--simulator"]), &ALL, &[]);
    assert_eq!(fs::read_dir(directory.path().join(".nixbox")).unwrap().count(), 1, "nothing was made");

    let said = nixbox(&directory, &["init", "--simulator", "--trust"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains("touch ran"), "what was confirmed is named: {said:?}");
    assert_eq!(nixbox(&directory, &["up"]).code, Some(0));
    assert!(exists(&directory, "ran") && exists(&directory, "sourced"));

    let config = directory.path().join(".nixbox/config.toml");
    fs::write(&config, STRANGE.replace("touch ran-down", "touch other")).unwrap();
    for arguments in [&["snapshot"] as &[&str], &["restore", "--replace"], &["recover"], &["up"]] {
        refused(
            &nixbox(&directory, arguments),
            &["script 1 of hooks.pre-down: touch other"],
            &["touch ran", "sourced"],
        );
    }
    let waiting = nixbox(&directory, &["status", "--json"]).json()["unconfirmed"].clone();
    let waiting: Vec<_> =
        waiting.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect();
    assert!(waiting.len() == 1 && waiting[0].contains("touch other"), "{waiting:?}");
    let shown = nixbox(&directory, &["trust", "--json"]).json();
    assert_eq!((&shown["origin"], &shown["confirmed"]), (&"foreign".into(), &false.into()), "{shown}");
    let said = nixbox(&directory, &["down"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains("scripts of the configuration that are not run: 1"), "{said:?}");
    assert!(!exists(&directory, "other"));

    refused(&nixbox(&directory, &["trust"]), &["touch other"], &["touch ran"]);
    let said = nixbox(&directory, &["trust", "--yes"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        !said.stdout.contains("s3cret"),
        "what is confirmed already is shown without arguments: {said:?}"
    );
    assert_eq!(nixbox(&directory, &["up"]).code, Some(0));
    assert_eq!(nixbox(&directory, &["down"]).code, Some(0));
    assert!(exists(&directory, "other"));
}

#[test]
fn confirmations_that_came_with_a_workspace_confirm_nothing() {
    let directory = cloned();
    let id = format!("{:032x}\n", fastrand::u128(..));
    fs::write(directory.path().join(".nixbox/workspace-id"), id).unwrap();
    refused(&nixbox(&directory, &["init", "--simulator"]), &ALL, &[]);
    // The state of an earlier nixbox lies in the workspace, and so may confirmations.
    for name in ["journal", "run", "snapshots", "ssh"] {
        fs::create_dir(directory.path().join(".nixbox").join(name)).unwrap();
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(directory.path().join(".nixbox").join(name), private).unwrap();
    }
    let other = Workspace::new("simulator-v53", false);
    fs::write(other.nixbox().join("config.toml"), STRANGE).unwrap();
    other.ok(&["up"]);
    let confirmed = other.state().join("confirmed.json");
    assert!(fs::read_to_string(&confirmed).unwrap().contains("written-here"));
    fs::copy(&confirmed, directory.path().join(".nixbox/confirmed.json")).unwrap();
    for arguments in [&["init", "--simulator"] as &[&str], &["up"], &["recover"]] {
        refused(&nixbox(&directory, arguments), &ALL, &[]);
    }
    assert!(!exists(&directory, "ran"));
}

#[test]
fn a_person_is_asked_on_a_terminal_and_no_is_the_default() {
    let directory = cloned();
    for typed in ["\n", "n\n", "\x04"] {
        let said = on_terminal(&directory, "init --simulator", typed);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.stdout.contains("[y/N]") && said.stdout.contains("was not confirmed"), "{said:?}");
    }
    let said = on_terminal(&directory, "init --simulator", "y\n");
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = on_terminal(&directory, "up", "");
    assert!(said.code == Some(0) && !said.stdout.contains("[y/N]"), "{said:?}");
    assert_eq!(nixbox(&directory, &["down"]).code, Some(0));
    assert!(exists(&directory, "ran-down"));
}

#[test]
fn nothing_is_confirmed_of_a_configuration_that_cannot_be_read() {
    let directory = cloned();
    let config = directory.path().join(".nixbox/config.toml");
    fs::write(&config, format!("{STRANGE}more = 1\n")).unwrap();
    let said = nixbox(&directory, &["init", "--simulator", "--trust"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert_eq!(fs::read_dir(directory.path().join(".nixbox")).unwrap().count(), 1, "nothing was made");
    // Without the option, the workspace is made, and its configuration is refused later.
    assert_eq!(nixbox(&directory, &["init", "--simulator"]).code, Some(0));
    for arguments in [&["up", "--trust"] as &[&str], &["restore", "--trust"], &["trust", "--yes"]] {
        assert_eq!(nixbox(&directory, arguments).code, Some(2), "{arguments:?}");
    }
    fs::write(&config, STRANGE).unwrap();
    refused(&nixbox(&directory, &["up"]), &ALL, &[]);
}

#[test]
fn what_was_written_here_is_edited_without_a_confirmation_until_its_directory_is_made_anew() {
    let workspace = Workspace::new("simulator-v53", false);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}[hooks]\npre-up = [\"touch mine\"]\n")).unwrap();
    workspace.ok(&["up"]);
    workspace.ok(&["down"]);
    assert!(workspace.path().join("mine").exists());

    let aside = workspace.path().join("aside");
    fs::rename(workspace.nixbox(), &aside).unwrap();
    let copied = Command::new("cp").arg("-a").arg(&aside).arg(workspace.nixbox()).status();
    assert!(copied.unwrap().success());
    // The same actions need no other confirmation.
    workspace.ok(&["up"]);
    workspace.ok(&["down"]);
    fs::write(&config, format!("{text}[hooks]\npre-up = [\"touch theirs\"]\n")).unwrap();
    refused(&workspace.run(&["up"]), &["touch theirs"], &["touch mine", "the simulator"]);
    assert!(!workspace.path().join("theirs").exists());
    workspace.ok(&["up", "--trust"]);
    workspace.ok(&["down"]);
}

#[test]
fn a_configuration_that_others_may_write_is_not_obeyed() {
    let workspace = Workspace::new("simulator-v53", false);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}[hooks]\npre-down = [\"touch ran\"]\n")).unwrap();
    workspace.ok(&["up"]);
    for mode in [0o620, 0o602] {
        fs::set_permissions(&config, fs::Permissions::from_mode(mode)).unwrap();
        for arguments in [&["snapshot"] as &[&str], &["trust", "--yes"], &["up", "--trust"]] {
            let said = workspace.run(arguments);
            assert_ne!(said.code, Some(0), "{said:?}");
            assert!(
                said.stderr.contains("others may write") && said.stderr.contains("chmod go-w"),
                "{said:?}"
            );
        }
    }
    assert!(workspace.ok(&["down"]).stderr.contains("others may write"));
    assert!(!workspace.path().join("ran").exists());
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&config, Some(12345), None).unwrap();
        let said = workspace.run(&["up"]);
        assert!(said.code != Some(0) && said.stderr.contains("belongs to user 12345"), "{said:?}");
    }
}

#[test]
fn a_nixbox_directory_that_is_a_mount_point_is_refused() {
    let workspace = Workspace::new("simulator-v53", false);
    let script = "mount --bind other/.nixbox .nixbox && exec \"$0\" up";
    let other = workspace.path().join("other");
    fs::create_dir(&other).unwrap();
    let copied = Command::new("cp").arg("-a").arg(workspace.nixbox()).arg(&other).status();
    assert!(copied.unwrap().success());
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script, env!("CARGO_BIN_EXE_nixbox")]).current_dir(workspace.path());
    let said: Said = command.env_remove("SUDO_UID").env("NIXBOX_SCOPES", "none").output().unwrap().into();
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("is a mount point"), "{said:?}");
}

#[test]
fn a_script_that_the_guest_can_write_is_confirmed_again_when_the_guest_has_changed_it() {
    let workspace = Workspace::new("simulator-v53", true);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let hooks = "[hooks]\npre-up = [\"sh shared/setup\"]\npost-up = [\"sh shared/after\"]\npre-down = [\"sh shared/down\", \"touch said\"]\n";
    fs::write(&config, text.replace("[[disks]]", &format!("{hooks}[[disks]]"))).unwrap();
    for name in ["setup", "after", "down"] {
        fs::write(workspace.path().join("shared").join(name), format!("touch {name}")).unwrap();
    }
    // The owner of the workspace confirms the scripts, and not the rest.
    refused(
        &workspace.run(&["up"]),
        &["shared/setup\", which the guest can write", "shared/after", "shared/down"],
        &["no sandbox", "touch said"],
    );
    assert!(!workspace.path().join("setup").exists());
    workspace.ok(&["trust", "--yes"]);
    workspace.ok(&["up"]);
    assert!(workspace.path().join("setup").exists() && workspace.path().join("after").exists());

    workspace.guest("echo 'touch taken' > ~/shared/down");
    refused(&workspace.run(&["snapshot"]), &["shared/down"], &["shared/setup"]);
    let said = workspace.ok(&["down"]);
    assert!(said.stderr.contains("not run: 1"), "{said:?}");
    assert!(workspace.path().join("said").exists(), "the other script is run: {said:?}");
    assert!(!workspace.path().join("taken").exists() && !workspace.path().join("down").exists());
    refused(&workspace.run(&["up"]), &["shared/down"], &["shared/setup"]);
    workspace.ok(&["up", "--trust"]);
    workspace.ok(&["down"]);
    assert!(workspace.path().join("taken").exists());
}

#[test]
fn a_script_that_changes_after_the_command_has_begun_is_not_run() {
    let workspace = Workspace::new("simulator-v53", true);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    // The first script stands for a guest that waits for its moment.
    let hooks = "[hooks]\npre-up = [\"echo 'touch taken' > shared/setup\", \"sh shared/setup\"]\n";
    fs::write(&config, text.replace("[[disks]]", &format!("{hooks}[[disks]]"))).unwrap();
    fs::write(workspace.path().join("shared/setup"), "true").unwrap();
    workspace.ok(&["trust", "--yes"]);
    let said = workspace.run(&["up"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("script 2 of hooks.pre-up was not run"), "{said:?}");
    assert!(!workspace.path().join("taken").exists());
    assert!(!workspace.check());
}

#[test]
fn a_guest_that_puts_links_in_the_place_of_files_of_the_configuration_gains_nothing() {
    let workspace = Workspace::new("simulator-v53", true);
    let path = |name: &str| workspace.path().join(name);
    fs::create_dir(path("shared/data")).unwrap();
    fs::create_dir(path("elsewhere")).unwrap();
    fs::write(path("shared/token"), "token").unwrap();
    fs::write(path("elsewhere/key"), "of the host").unwrap();
    for name in ["kernel", "root.img"] {
        fs::copy(path("image").join(name), path("shared").join(name)).unwrap();
    }
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap().replace("\"image/", "\"shared/");
    let more = "[[mounts]]\nsource = \"shared/data\"\ntarget = \"~/data\"\n\
        [credentials]\nfiles = [{ source = \"shared/token\", target = \"~/token\" }]\n";
    fs::write(&config, format!("{text}{more}")).unwrap();
    workspace.ok(&["up"]);
    assert_eq!(workspace.guest("cat ~/token; touch ~/data/made"), "token");
    // The VMM reads its copies again when the guest reboots.
    let has_copies = || {
        let names = crate::workspace::names(&workspace.runtime());
        names.iter().any(|path| crate::workspace::name(path).starts_with("boot-"))
    };
    assert!(has_copies());
    for (name, target) in [("token", "elsewhere/key"), ("data", "elsewhere")] {
        let target = path(target).display().to_string();
        workspace.guest(&format!("cd ~/shared && mv {name} kept && ln -s {target} {name}"));
        refused(&workspace.run(&["snapshot"]), &[name, "leads through a link"], &["of the host"]);
        workspace.guest(&format!("cd ~/shared && rm {name} && mv kept {name}"));
    }
    workspace.ok(&["snapshot", "--stop"]);
    assert!(!workspace.runtime().exists() || !has_copies());
    // The image is read when there is no disk yet.
    let fresh = Workspace::new("simulator-v53", true);
    fs::copy(config, fresh.nixbox().join("config.toml")).unwrap();
    fs::create_dir(fresh.path().join("shared/data")).unwrap();
    for name in ["token", "kernel", "root.img"] {
        fs::copy(path("shared").join(name), fresh.path().join("shared").join(name)).unwrap();
    }
    for (workspace, name) in
        [(&workspace, "token"), (&workspace, "data"), (&workspace, "kernel"), (&fresh, "root.img")]
    {
        let path = |name: &str| workspace.path().join(name);
        let (here, kept) = (path("shared").join(name), path("shared/kept"));
        fs::rename(&here, &kept).unwrap();
        std::os::unix::fs::symlink(&kept, &here).unwrap();
        refused(&workspace.run(&["up"]), &[name, "leads through a link"], &[]);
        fs::remove_file(&here).unwrap();
        fs::rename(&kept, &here).unwrap();
    }
    workspace.ok(&["up"]);
    workspace.ok(&["down"]);
}

#[test]
fn a_script_in_a_share_of_the_running_vm_is_not_run_though_the_configuration_has_no_share_any_more() {
    let workspace = Workspace::new("simulator-v53", true);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let hooks = "[hooks]\npre-down = [\"sh shared/down\"]\n";
    fs::write(&config, text.replace("[[disks]]", &format!("{hooks}[[disks]]"))).unwrap();
    fs::write(workspace.path().join("shared/down"), "true").unwrap();
    workspace.ok(&["up", "--trust"]);
    workspace.guest("echo 'touch taken' > ~/shared/down");
    let (head, _) = text.split_once("[[mounts]]").unwrap();
    fs::write(&config, format!("mounts = []\n{}", head.replace("[[disks]]", &format!("{hooks}[[disks]]"))))
        .unwrap();
    let said = workspace.ok(&["down"]);
    assert!(said.stderr.contains("script 1 of hooks.pre-down was not run"), "{said:?}");
    assert!(!workspace.path().join("taken").exists());
}
