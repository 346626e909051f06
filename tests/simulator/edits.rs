//! What people do to a configuration, a key and the files of a workspace while its VM runs. The VM is never lost by it, and
//! `down` always works.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::workspace::{Said, Workspace};

/// v53, which rolls over, with a share.
fn up() -> Workspace {
    let workspace = Workspace::new("simulator-v53", true);
    workspace.ok(&["up"]);
    workspace
}

fn edit(workspace: &Workspace, from: &str, to: &str) {
    let path = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

/// The VM's files in `.nixbox/run` whose names begin like this.
fn files(workspace: &Workspace, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(workspace.state().join("run")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix)).collect()
}

/// `down` succeeds and leaves nothing.
fn goes_down(workspace: &Workspace) -> Said {
    let said = workspace.ok(&["down"]);
    assert!(files(workspace, "memory-").is_empty() && files(workspace, "built-").is_empty(), "{said:?}");
    assert_eq!(format!("{:?}", workspace.marked()), "[]", "{said:?}");
    said
}

#[test]
fn edits_wait_for_the_next_vm_and_status_names_them() {
    let workspace = up();
    edit(&workspace, "vcpus = 1", "vcpus = 2\nbacking = \"disk\"");
    edit(&workspace, "target = \"~/shared\"", "target = \"~/elsewhere\"\nreadonly = true");
    let status = workspace.status();
    let keys: Vec<&str> = status["pending_edits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|edit| edit["key"].as_str().unwrap())
        .collect();
    for key in ["mounts.0.readonly", "mounts.0.target", "vm.backing", "vm.vcpus"] {
        assert!(keys.contains(&key), "{key} is not in {keys:?}");
    }
    let told = workspace.ok(&["status"]).stdout;
    assert!(told.contains("vm.vcpus was edited from") && told.contains("the edit waits for"), "{told}");
    // The roll-over and the guest go by what was built.
    workspace.ok(&["snapshot"]);
    assert_eq!(workspace.guest("cat ~/shared/greeting"), crate::workspace::GREETING);
    goes_down(&workspace);
    workspace.ok(&["up"]);
    assert_eq!(workspace.status()["pending_edits"], serde_json::json!([]));
    assert_eq!(workspace.guest("cat ~/elsewhere/greeting"), crate::workspace::GREETING);
    goes_down(&workspace);
}

#[test]
fn a_vm_goes_down_with_a_configuration_that_cannot_be_used() {
    type Change = fn(&Workspace);
    let changes: [(&str, Change); 4] = [
        ("a typing error", |workspace| edit(workspace, "[vm]", "[vmm]")),
        ("no configuration", |workspace| fs::remove_file(workspace.nixbox().join("config.toml")).unwrap()),
        ("a secret that is gone", |workspace| {
            edit(workspace, "[env]", "[env]\nGONE = { from-env = \"NIXBOX_TEST_NOT_SET\" }");
        }),
        ("a key that others may read", |workspace| {
            for key in ["vm_key", "simulator_key", "key"] {
                let path = workspace.state().join("ssh").join(key);
                if path.exists() {
                    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
                }
            }
        }),
    ];
    for (what, change) in changes {
        let workspace = up();
        change(&workspace);
        assert_eq!(workspace.status()["state"], "running", "{what}");
        goes_down(&workspace);
    }
}

#[test]
fn commands_of_a_running_vm_need_no_configuration() {
    let workspace = up();
    edit(&workspace, "[vm]", "[vmm]");
    let status = workspace.status();
    assert_eq!(status["state"], "running");
    assert!(status["config_problem"].as_str().unwrap().contains("config.toml"), "{status}");
    assert_eq!(workspace.guest("cat ~/shared/greeting"), crate::workspace::GREETING);
    let refused = workspace.run(&["snapshot"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert_eq!(workspace.status()["state"], "running");
    goes_down(&workspace);
}

#[test]
fn a_record_that_is_damaged_or_missing_is_named_and_the_vm_goes_down() {
    for damage in [Some(""), Some("{\"format\": 9}"), Some("{\"format\": 1}"), None] {
        let workspace = up();
        let record = files(&workspace, "built-").remove(0);
        match damage {
            Some(text) => fs::write(&record, text).unwrap(),
            None => fs::remove_file(&record).unwrap(),
        }
        let refused = workspace.run(&["snapshot"]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("down"), "{refused:?}");
        let status = workspace.status();
        assert_eq!(
            (&status["state"], status["record_problem"].is_null()),
            (&"running".into(), damage.is_none())
        );
        goes_down(&workspace);
        workspace.ok(&["up"]);
        workspace.ok(&["snapshot"]);
        goes_down(&workspace);
    }
}

#[test]
fn a_vm_goes_down_though_its_journal_cannot_be_used() {
    for in_header in [false, true] {
        let workspace = up();
        workspace.ok(&["snapshot"]);
        let journal = fs::read_dir(workspace.state().join("journal"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.metadata().unwrap().len() > 0)
            .unwrap();
        let mut bytes = fs::read(&journal).unwrap();
        // The header has the version. A changed byte in the middle is followed by good records.
        let at = if in_header { 8 } else { bytes.len() / 2 };
        bytes[at] ^= 0x40;
        fs::write(&journal, &bytes).unwrap();
        let refused = workspace.run(&["snapshot"]);
        assert_eq!(refused.code, Some(4), "{refused:?}");
        let said = goes_down(&workspace);
        assert!(said.stderr.contains("left as it is"), "{said:?}");
        assert_eq!(fs::read(&journal).unwrap(), bytes);
        assert_eq!(files(&workspace, "disk-").len(), 1, "the disk is kept");
        assert_eq!(workspace.snapshots().len(), 1, "the snapshot is kept");
    }
}

#[test]
fn a_file_of_the_guest_that_nixbox_did_not_write_is_not_overwritten() {
    let workspace = up();
    workspace.guest("rm ~/.nixbox-injected; echo mine > ~/.env");
    let said = workspace.run(&["snapshot"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    for part in ["nixbox did not write ~/.env", "credentials.overwrite", "nothing was changed"] {
        assert!(said.stderr.contains(part), "{said:?}");
    }
    assert_eq!((workspace.guest("cat ~/.env"), workspace.snapshots().len()), ("mine\n".to_owned(), 0));
    edit(&workspace, "[env]", "[credentials]\noverwrite = [\"~/.env\"]\n\n[env]");
    workspace.ok(&["snapshot"]);
    assert_eq!(workspace.guest("echo $TOKEN"), format!("{}\n", crate::workspace::SECRET));
    goes_down(&workspace);
}
