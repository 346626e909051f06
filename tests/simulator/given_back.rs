//! A guest that runs on after a snapshot has everything that the wipe has taken from it, in order; the snapshot has nothing
//! of it.

use std::fs;

use crate::workspace::{TYPED, Workspace, count, names};

/// A workspace whose guest has histories, a directory and a link that are wiped.
fn workspace(vmm: &str) -> Workspace {
    let workspace = Workspace::new(vmm, true);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "[credentials]\nwipe = [\"~/.docker\", \"~/linked\"]\n").unwrap();
    workspace.ok(&["up"]);
    workspace.guest(&format!(
        "mkdir -p -m 750 ~/.docker/sub; echo '{TYPED} 1' > ~/.docker/sub/config; chmod 640 ~/.docker/sub/config
         echo '{TYPED} 2' > ~/real; ln -s real ~/linked; echo 0 > ~/typed"
    ));
    workspace
}

/// Types a line in the guest, after a look at all that were typed before.
fn type_a_line(workspace: &Workspace) {
    check(workspace);
    workspace.guest(&format!(
        "n=$(($(cat ~/typed) + 1)); echo \"$n {TYPED}\" >> ~/.bash_history; echo \"$n {TYPED}\" >> ~/.docker/log; echo $n > ~/typed"
    ));
}

/// The guest has every line in order, and the rest of what is wiped.
fn check(workspace: &Workspace) {
    let told = workspace.guest(
        "cat ~/typed ~/.bash_history 2>/dev/null; echo; cat ~/.docker/log 2>/dev/null; echo
         cat ~/.docker/sub/config ~/linked ~/real; readlink ~/linked
         stat -c %a ~/.docker/sub ~/.docker/sub/config; ls -A ~ ~/.docker | grep -e nixbox-back -e before || true",
    );
    let typed: usize = told.lines().next().unwrap().parse().unwrap();
    let lines: String = (1..=typed).map(|line| format!("{line} {TYPED}\n")).collect();
    let rest = format!("{TYPED} 1\n{TYPED} 2\n{TYPED} 2\nreal\n750\n640\n");
    assert_eq!(told, format!("{typed}\n{lines}\n{lines}\n{rest}"));
}

#[test]
fn a_guest_that_runs_on_has_its_files_and_its_snapshot_has_none_of_them() {
    for vmm in ["simulator-v51", "simulator-v53", "simulator-v54"] {
        let workspace = workspace(vmm);
        for _ in 0..3 {
            type_a_line(&workspace);
            workspace.ok(&["snapshot"]);
        }
        type_a_line(&workspace);
        check(&workspace);
        // The line is found where the guest has it, and in no file of a snapshot.
        assert!(count(&workspace.memory_files()[0], TYPED) > 0);
        assert!(workspace.check());
        let newest = workspace.snapshots().into_iter().max_by_key(|id| id.parse::<u64>().unwrap()).unwrap();
        workspace.ok(&["restore", &newest, "--replace"]);
        assert_eq!(
            workspace
                .guest("cat ~/typed; ls -d ~/.bash_history ~/.docker ~/real ~/linked 2>/dev/null || true"),
            "3\n"
        );
        assert!(workspace.check());
    }
}

#[test]
fn a_snapshot_that_is_too_large_to_give_back_is_refused_and_leaves_the_guest_as_it_was() {
    let workspace = workspace("simulator");
    type_a_line(&workspace);
    workspace.guest("dd if=/dev/zero of=$HOME/.docker/layer bs=1 count=1 seek=40000000 2>/dev/null");
    let said = workspace.run(&["snapshot"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    for part in ["/.docker has ", "credentials.wipe", "nothing was changed"] {
        assert!(said.stderr.contains(part), "{said:?}");
    }
    workspace.guest("rm ~/.docker/layer");
    type_a_line(&workspace);
    assert!(workspace.check());
}

/// With `--stop`, and with a VMM that is killed, the backup goes with the RAM.
#[cfg(feature = "failpoints")]
#[test]
fn a_backup_goes_with_the_ram_of_a_vm_that_ends() {
    let workspace = workspace("simulator-v54");
    type_a_line(&workspace);
    workspace.ok(&["snapshot", "--stop"]);
    assert!(!workspace.check());
    workspace.ok(&["up"]);
    workspace.guest(&format!("echo '{TYPED}' > ~/.bash_history"));
    let mut at = 1;
    while backups(&workspace).is_empty() {
        assert!(workspace.killed_at(&["snapshot"], at), "no backup was seen");
        at += 1;
        if backups(&workspace).is_empty() {
            workspace.ok(&["recover"]);
        }
    }
    let vmm = rustix::process::Pid::from_raw(workspace.vmm()).unwrap();
    rustix::process::kill_process(vmm, rustix::process::Signal::KILL).unwrap();
    workspace.ok(&["recover"]);
    assert!(!workspace.check());
}

/// The files in the directory of the RAM that are no RAM.
#[cfg(feature = "failpoints")]
fn backups(workspace: &Workspace) -> Vec<std::path::PathBuf> {
    let of_run = names(&workspace.state().join("run"));
    let all = workspace.memory_files().into_iter().chain(of_run);
    all.filter(|path| path.extension().is_some_and(|kind| kind == "backup")).collect()
}

/// After each kill the guest goes on typing, if it runs, before the recovery.
#[cfg(feature = "failpoints")]
fn type_after_each_kill(workspace: &Workspace, seen: impl Fn(&Workspace)) -> (u32, u32) {
    let (mut at, mut typed, mut kept) = (1, 0, 0);
    loop {
        type_a_line(workspace);
        for id in workspace.snapshots() {
            workspace.ok(&["snapshot", "delete", &id]);
        }
        if !workspace.killed_at(&["snapshot"], at) {
            check(workspace);
            return (typed, kept);
        }
        at += 1;
        if !backups(workspace).is_empty() {
            kept += 1;
            seen(workspace);
        }
        // A guest that is paused, or is between two VMMs, answers nothing.
        if workspace.status()["state"] == "running" {
            let line = format!(
                "n=$(($(cat ~/typed) + 1)); echo \"$n {TYPED}\" >> ~/.bash_history; mkdir -p ~/.docker"
            );
            workspace.guest(&format!("{line}; echo \"$n {TYPED}\" >> ~/.docker/log; echo $n > ~/typed"));
            typed += 1;
        }
        workspace.ok(&["recover"]);
        check(workspace);
        assert_eq!(backups(workspace), Vec::<std::path::PathBuf>::new());
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn what_the_guest_writes_while_nixbox_is_dead_comes_after_what_it_had() {
    for vmm in ["simulator-v51", "simulator-v54"] {
        let workspace = workspace(vmm);
        let (typed, kept) = type_after_each_kill(&workspace, |_| ());
        assert!(typed > 10 && kept > 10, "{vmm}: {typed} lines typed, {kept} backups seen");
        assert!(workspace.check());
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn a_backup_beside_ram_on_disk_is_encrypted() {
    let probe = Workspace::new("simulator-v53", true);
    let config = probe.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("[vm]\n"), "{text}");
    fs::write(&config, text.replace("[vm]\n", "[vm]\nbacking = \"disk\"\n")).unwrap();
    probe.ok(&["up"]);
    probe.guest(&format!("echo '1 {TYPED}' > ~/.bash_history"));
    let mut kept = 0;
    let mut at = 1;
    while probe.killed_at(&["snapshot"], at) {
        at += 1;
        for backup in backups(&probe) {
            kept += 1;
            assert!(backup.starts_with(probe.state().join("run")), "{backup:?}");
            assert_eq!((count(&backup, TYPED), count(&backup, "bash_history")), (0, 0));
        }
        probe.ok(&["recover"]);
        assert_eq!(probe.guest("cat ~/.bash_history"), format!("1 {TYPED}\n"));
        assert_eq!(backups(&probe), Vec::<std::path::PathBuf>::new());
    }
    assert_eq!(probe.guest("cat ~/.bash_history"), format!("1 {TYPED}\n"));
    assert!(kept > 5, "{kept} backups seen");
}
