//! The scripts of a person: in the guest, and on the host while `up` is at work.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::workspace::{GREETING, LIMIT, SECRET, Workspace};

/// A workspace whose configuration has more.
fn workspace(more: &str) -> Workspace {
    let workspace = Workspace::new("simulator", true);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n{more}")).unwrap();
    workspace
}

/// A script that writes down that it ran, with what it was given.
fn log(word: &str) -> String {
    format!("echo \"{word} ${{#TOKEN}} $(cat ~/shared/greeting)\" >> ~/log")
}

#[test]
fn scripts_run_in_the_guest_at_each_point_and_one_that_fails_is_told() {
    let [up, restore, snapshot] = ["up", "restore", "snapshot"].map(log);
    let workspace = workspace(&format!(
        "[guest.scripts]\n\
         after-up = ['''printf 'bad\\n\\033[31mluck\\n'; exit 3''', '''{up}''']\n\
         after-restore = ['''{restore}''']\n\
         before-snapshot = ['''{snapshot}''']\n"
    ));
    let told = workspace.ok(&["up"]).stderr;
    let notice = "script 1 of guest.scripts.after-up ended in the guest with exit status 3 (it said last: bad; [31mluck)";
    assert!(told.contains(notice), "{told}");
    let line = |word: &str| format!("{word} {} {GREETING}\n", SECRET.len());
    assert_eq!(workspace.guest("cat log"), line("up"));
    // A VM that runs already was not booted.
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot"]);
    assert_eq!(workspace.guest("cat log"), line("up") + &line("snapshot"));
    for command in [&["restore", "--replace"][..], &["up", "--snapshot"]] {
        workspace.guest("rm log");
        if command[0] == "up" {
            workspace.ok(&["down"]);
        }
        workspace.ok(command);
        let log = workspace.guest("cat log");
        assert!(log.ends_with(&line("restore")), "{log}");
        assert_eq!(log.lines().count(), 3, "{log}");
    }
    let journal = workspace.ok(&["journal", "--json"]).stdout;
    assert!(journal.contains("after-restore scripts"));
    assert!(!journal.contains("luck"), "{journal}");
    assert!(workspace.check());
}

/// A script does not outlive the nixbox that runs it. The recovery runs it again, and says so.
#[test]
fn after_a_kill_the_scripts_run_again_and_that_is_told() {
    let script = "if [ -e ~/shared/begun ]; then echo again > ~/log; exit; fi
        trap 'touch ~/shared/ended; exit' TERM; touch ~/shared/begun; sleep 1000 & wait";
    let workspace = workspace(&format!("[guest.scripts]\nafter-up = [\"\"\"{script}\"\"\"]\n"));
    let mut up = workspace.start(&["up"]);
    until_exists(&workspace.path().join("shared/begun"));
    up.kill().unwrap();
    up.wait().unwrap();
    until_exists(&workspace.path().join("shared/ended"));
    let said = workspace.ok(&["recover"]);
    let notice = "the scripts of guest.scripts.after-up may have run in the guest already, and are run again";
    assert!(said.stderr.contains(notice), "{said:?}");
    assert_eq!(workspace.guest("cat log"), "again\n");
    assert!(workspace.check());
}

fn until_exists(path: &Path) {
    let since = Instant::now();
    while !path.exists() {
        assert!(since.elapsed() < LIMIT, "{} was not made", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The VM of an `up` that has not ended can be used once its guest has everything.
#[test]
fn a_script_after_up_on_the_host_runs_commands_in_the_guest() {
    let script = "\"$NIXBOX\" run -- sh -c 'cat ~/shared/greeting; echo $TOKEN' > out 2>&1 && \
                  \"$NIXBOX\" status --json > status && exec \"$NIXBOX\" shell < /dev/null > shell 2>&1";
    let hooks = |script: &str| format!("[hooks]\npost-up = ['''{script}''']\n");
    for command in [&["up"][..], &["up", "--snapshot"], &["restore", "--replace"]] {
        let workspace = workspace("");
        if command != ["up"] {
            workspace.ok(&["up"]);
            workspace.ok(&["snapshot"]);
        }
        if command == ["up", "--snapshot"] {
            workspace.ok(&["down"]);
        }
        let config = workspace.nixbox().join("config.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("{text}\n{}", hooks(script))).unwrap();
        let said = workspace.ok(command);
        let read = |name: &str| fs::read_to_string(workspace.path().join(name)).unwrap();
        assert_eq!(read("out"), format!("{GREETING}{SECRET}\n"), "{command:?}: {said:?}");
        assert!(read("status").contains("\"operation\""), "{command:?}");
        assert!(workspace.check());
    }
}

/// What needs the workspace for itself is refused at once, and does not wait for the script that calls it.
#[test]
fn a_script_after_up_on_the_host_cannot_change_the_vm() {
    let workspace = workspace("[hooks]\npost-up = ['\"$NIXBOX\" down 2> out; echo $? >> out']\n");
    workspace.ok(&["up"]);
    let out = fs::read_to_string(workspace.path().join("out")).unwrap();
    assert!(out.ends_with("\n5\n"), "{out}");
    assert!(workspace.check());
}
