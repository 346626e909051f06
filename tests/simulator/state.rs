//! The state of a workspace lies outside of its directory: it is moved there, it outlives the directory, and the VM can be
//! ended without the directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace::Workspace;

fn must(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// Gives a workspace that is down the form that an earlier nixbox gave it: the state is in `.nixbox`.
fn make_former(workspace: &Workspace) {
    let state = workspace.state();
    // An earlier nixbox did not remember what it had given to guests.
    fs::remove_file(state.join("known-values.json")).unwrap();
    for entry in fs::read_dir(&state).unwrap() {
        must("mv", &[&entry.unwrap().path(), &workspace.nixbox()]);
    }
    fs::remove_dir(&state).unwrap();
    let id = crate::workspace::name(&state);
    fs::remove_file(state.parent().unwrap().with_file_name("registry").join(format!("{id}.json"))).unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        crate::workspace::names(directory).iter().map(|path| crate::workspace::name(path)).collect();
    names.sort();
    names
}

fn warm() -> Workspace {
    let workspace = Workspace::new("simulator-v53", true);
    workspace.ok(&["up"]);
    workspace.guest("echo warm > ~/cache");
    workspace.ok(&["snapshot", "--name", "warm", "--stop"]);
    workspace
}

#[test]
fn the_state_of_an_earlier_nixbox_is_moved_out_of_the_workspace_and_serves_as_before() {
    let workspace = warm();
    make_former(&workspace);
    // A command that only reads leaves it where it is.
    assert_eq!(
        PathBuf::from(workspace.status_text("state_directory")),
        workspace.nixbox().canonicalize().unwrap()
    );
    let said = workspace.ok(&["restore", "warm"]);
    assert!(said.stderr.contains("the state of the workspace was moved to"), "{said:?}");
    assert_eq!(names(&workspace.nixbox()), [".gitignore", "config.toml", "workspace-id"]);
    assert_eq!(PathBuf::from(workspace.status_text("state_directory")), workspace.state());
    assert_eq!(workspace.guest("cat ~/cache"), "warm\n");
    assert!(workspace.check());
    workspace.ok(&["down"]);
    let said = workspace.ok(&["up", "--snapshot"]);
    assert!(!said.stderr.contains("was moved"), "{said:?}");
}

#[test]
fn a_half_moved_state_is_completed_by_the_next_command_that_changes_something() {
    let workspace = warm();
    make_former(&workspace);
    let (state, nixbox) = (workspace.state(), workspace.nixbox());
    let moving = state.with_file_name(format!(".moving-{}", crate::workspace::name(&state)));
    must("mkdir", &["-m".as_ref(), "700".as_ref(), &moving]);
    for name in ["snapshots", "journal"] {
        must("mv", &[&nixbox.join(name), &moving]);
    }
    let said = workspace.run(&["status"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("half moved"), "{said:?}");
    workspace.ok(&["recover"]);
    assert_eq!(names(&nixbox), [".gitignore", "config.toml", "workspace-id"]);
    assert!(!workspace.check());
    workspace.ok(&["restore", "warm"]);
    assert!(workspace.check());
}

#[test]
fn a_vm_whose_directory_was_deleted_is_ended_by_its_id_and_its_state_is_removed() {
    let workspace = warm();
    workspace.ok(&["up"]);
    let (state, id, runtime) = (workspace.state(), workspace.status_text("id"), workspace.runtime());
    let outside = |arguments: &[&str]| -> crate::workspace::Said {
        workspace.command(arguments).current_dir("/").output().unwrap().into()
    };
    let refused = outside(&["forget", &id]);
    assert!(refused.code == Some(1) && refused.stderr.contains("remove its directory first"), "{refused:?}");
    let running = outside(&["list", "--json"]).json();
    let running = running.as_array().unwrap().iter().find(|one| one["id"] == id.as_str()).unwrap();
    let bytes = |one: &serde_json::Value| one.as_u64().unwrap();
    let (occupied, promised) = (&running["memory"]["occupied_bytes"], &running["memory"]["promised_bytes"]);
    assert!(bytes(occupied) > 0 && bytes(occupied) <= bytes(promised), "{running}");
    assert!(bytes(&running["snapshots"]["occupied_bytes"]) > 0, "{running}");
    fs::remove_dir_all(workspace.path()).unwrap();
    let refused = outside(&["forget", &id]);
    assert!(refused.code == Some(1) && refused.stderr.contains("nixbox down --id"), "{refused:?}");
    let listed = || outside(&["list", "--json"]).json();
    let row = |listed: &serde_json::Value| {
        listed.as_array().unwrap().iter().find(|one| one["id"] == id.as_str()).cloned()
    };
    let gone = row(&listed()).unwrap();
    assert_eq!((&gone["state"], &gone["snapshots"]["count"]), (&"gone".into(), &1.into()), "{gone}");
    let ended = outside(&["down", "--id", &id]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(workspace.marked().is_empty());
    assert_eq!(workspace.memory_files(), Vec::<PathBuf>::new());
    let again = outside(&["down", "--id", &id, "--json"]);
    assert_eq!(again.json()["result"], "already");
    assert_eq!(row(&listed()).unwrap()["state_directory"], state.to_str().unwrap());
    let forgotten = outside(&["forget", &id]);
    assert_eq!(forgotten.code, Some(0), "{forgotten:?}");
    assert!(!state.exists() && row(&listed()).is_none());
    assert!(!runtime.exists(), "the logs are gone too");
    for arguments in [&["forget", &id] as &[&str], &["down", "--id", &id]] {
        let unknown = outside(arguments);
        assert!(unknown.code == Some(3) && unknown.stderr.contains("nixbox list"), "{unknown:?}");
    }
    let malformed = outside(&["down", "--id", "../../etc"]);
    assert!(malformed.code == Some(2) && malformed.stderr.contains("32 hexadecimal digits"), "{malformed:?}");
}

/// `git clean -fdx` on the host removes the file with the id, which is not in version control.
#[test]
fn a_running_vm_survives_the_removal_of_the_id() {
    let workspace = Workspace::new("simulator-v53", true);
    workspace.ok(&["up"]);
    fs::remove_file(workspace.nixbox().join("workspace-id")).unwrap();
    let refused = workspace.run(&["down"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("nixbox init"), "{refused:?}");
    workspace.ok(&["init"]);
    assert!(workspace.check(), "the VM runs on");
    workspace.ok(&["down"]);
}

#[test]
fn a_share_that_gives_access_to_the_state_is_refused() {
    let workspace = Workspace::new("simulator-v53", false);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let state = workspace.state();
    let registry = state.parent().unwrap().with_file_name("registry");
    for source in [state.as_path(), state.parent().unwrap(), &state.join("ssh"), &registry, "/".as_ref()] {
        let mounts = format!("[[mounts]]\nsource = {source:?}\ntarget = \"~/there\"\n");
        fs::write(&config, text.replace("mounts = []\n", "") + &mounts).unwrap();
        let refused = workspace.run(&["up"]);
        assert!(refused.code == Some(2) && refused.stderr.contains("must not reach"), "{refused:?}");
    }
    fs::write(&config, text).unwrap();
}

/// Runs nixbox in a mount namespace of its own, in which `prepare` was run with the registry as `$1`.
fn with_registry(workspace: &Workspace, prepare: &str, arguments: &[&str]) -> crate::workspace::Said {
    let registry = workspace.state().parent().unwrap().with_file_name("registry");
    let script = format!("set -e; {prepare}; shift; exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]).arg(registry);
    command.arg(env!("CARGO_BIN_EXE_nixbox")).args(arguments).current_dir(workspace.path());
    command.env_remove("SUDO_UID").env("NIXBOX_SCOPES", "none").output().unwrap().into()
}

/// Commands that act are refused with these words, `status` and `down` work, and the VM is as before.
fn refused_but_down_works(
    words: &str,
    nixbox: &dyn Fn(&Workspace, &[&str]) -> crate::workspace::Said,
    damage: &dyn Fn(&Workspace),
) {
    let workspace = Workspace::new("simulator-v53", true);
    workspace.ok(&["up"]);
    let vmm = workspace.vmm();
    damage(&workspace);
    for arguments in [&["up"] as &[&str], &["snapshot"], &["recover"]] {
        let refused = nixbox(&workspace, arguments);
        assert!(refused.code == Some(1) && refused.stderr.contains(words), "{words}: {refused:?}");
    }
    let status = nixbox(&workspace, &["status", "--json"]);
    assert_eq!((status.code, status.json()["state"].as_str()), (Some(0), Some("running")), "{status:?}");
    assert!(status.json()["not_the_workspace"].as_str().unwrap().contains(words), "{status:?}");
    assert_eq!(workspace.vmm(), vmm);
    let down = nixbox(&workspace, &["down"]);
    assert!(down.code == Some(0) && down.stderr.contains("without the registry"), "{words}: {down:?}");
    assert!(workspace.marked().is_empty());
    let registry = workspace.state().parent().unwrap().with_file_name("registry");
    fs::remove_file(registry.join(crate::workspace::name(&workspace.state()) + ".json")).unwrap();
    assert!(!workspace.check());
}

#[test]
fn a_vm_goes_down_with_a_registry_that_cannot_be_read() {
    let entry = |workspace: &Workspace| {
        let state = workspace.state();
        let name = format!("{}.json", crate::workspace::name(&state));
        state.parent().unwrap().with_file_name("registry").join(name)
    };
    let plain = |workspace: &Workspace, arguments: &[&str]| workspace.run(arguments);
    let write = |text: &'static str| move |workspace: &Workspace| fs::write(entry(workspace), text).unwrap();
    refused_but_down_works("is not an entry that nixbox wrote", &plain, &write("{\"format\":2,\"id\":"));
    refused_but_down_works("a newer nixbox wrote it", &plain, &write("{\"format\":3}"));
    let cut = |workspace: &Workspace| {
        let text = fs::read(entry(workspace)).unwrap();
        fs::write(entry(workspace), &text[..text.len() / 2]).unwrap();
    };
    refused_but_down_works("is not an entry that nixbox wrote", &plain, &cut);
    if !rustix::process::geteuid().is_root() {
        crate::workspace::skipped("a_vm_goes_down_with_a_registry_that_cannot_be_read", "root's rights");
        return;
    }
    let foreign =
        |workspace: &Workspace| std::os::unix::fs::chown(entry(workspace), Some(12345), None).unwrap();
    refused_but_down_works("belongs to user 12345", &plain, &foreign);
    let nothing = |_: &Workspace| {};
    let writable = |workspace: &Workspace, arguments: &[&str]| {
        with_registry(workspace, "mount -t tmpfs -o mode=777 none \"$1\"", arguments)
    };
    refused_but_down_works("others may write", &writable, &nothing);
    let full = |workspace: &Workspace, arguments: &[&str]| {
        let fill = "mount -t tmpfs -o size=4k,mode=700 none \"$1\"; touch \"$1/lock\"; chmod 600 \"$1/lock\"; \
                    head -c 4096 /dev/zero > \"$1/full\"";
        with_registry(workspace, fill, arguments)
    };
    let workspace = Workspace::new("simulator-v53", true);
    workspace.ok(&["up"]);
    let refused = full(&workspace, &["snapshot"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("No space left"), "{refused:?}");
    assert_eq!(full(&workspace, &["status", "--json"]).json()["state"], "running");
    let down = full(&workspace, &["down"]);
    assert!(down.code == Some(0) && down.stderr.contains("without the registry"), "{down:?}");
    assert!(!workspace.check());
}
