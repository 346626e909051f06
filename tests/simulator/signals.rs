//! Other faults of nixbox and its daemons: a VMM that stops answering or dies, several commands at once, interrupts, and a
//! full disk.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::workspace::{LIMIT, Workspace, names, skipped, tell};

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// `status` and `recover --dry-run` report the VMM at once. The next command that changes something ends it, so that nobody
/// has to kill it by hand.
#[test]
fn a_vmm_that_does_not_answer_is_ended_by_the_next_command() {
    let workspace = Workspace::new("simulator", true);
    for (next, code, words) in [
        (&["recover"][..], 0, "a VM whose VMM did not answer any more was ended and cleared away"),
        (&["down"], 0, "waiting whether it will"),
        (&["snapshot"], 3, "no VM is running"),
    ] {
        workspace.ok(&["up"]);
        signal(workspace.vmm(), Signal::STOP);
        if code == 3 {
            assert_eq!(workspace.status()["state"], "silent");
            let foreseen = workspace.ok(&["recover", "--dry-run"]);
            assert!(foreseen.stdout.contains("does not answer"), "{foreseen:?}");
        }
        let said = workspace.run(next);
        assert_eq!(said.code, Some(code), "{said:?}");
        assert!(said.stderr.contains(words), "{said:?}");
        assert!(!workspace.check());
    }
}

/// A command that changes something waits for a VMM that stopped for a moment.
#[test]
fn a_vmm_that_answers_late_is_kept() {
    let workspace = Workspace::new("simulator", true);
    workspace.ok(&["up"]);
    signal(workspace.vmm(), Signal::STOP);
    let mut recovering = workspace.command(&["recover"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(recovering.stderr.take().unwrap()), &mut line)
        .unwrap();
    assert!(line.contains("waiting whether it will"), "{line}");
    signal(workspace.vmm(), Signal::CONT);
    assert!(recovering.wait().unwrap().success());
    assert!(workspace.check());
}

#[test]
fn a_killed_vmm_is_cleared_away_by_the_next_command() {
    let workspace = Workspace::new("simulator", true);
    for next in [&["recover"][..], &["down"], &["up"]] {
        workspace.ok(&["up"]);
        signal(workspace.vmm(), Signal::KILL);
        workspace.ok(next);
        assert_eq!(workspace.check(), next == ["up"]);
    }
}

/// A share daemon that dies takes its own share with it, and nothing else. A process in the guest that uses the share waits
/// until the VM goes down.
#[test]
fn a_killed_share_daemon_blocks_its_readers_until_down() {
    let workspace = Workspace::new("simulator", true);
    workspace.ok(&["up"]);
    let daemon = fs::read_to_string(workspace.runtime().join("share-0-1.pid")).unwrap();
    let daemon: serde_json::Value = serde_json::from_str(&daemon).unwrap();
    signal(i32::try_from(daemon["identity"]["pid"].as_i64().unwrap()).unwrap(), Signal::KILL);
    let mut reader = workspace
        .command(&[
            "run",
            "--",
            "sh",
            "-c",
            "until [ -p ~/shared/greeting ]; do :; done; echo waits; cat ~/shared/greeting",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(reader.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "waits\n");
    assert!(reader.try_wait().unwrap().is_none());
    workspace.ok(&["down"]);
    assert!(!workspace.check());
    assert!(!reader.wait().unwrap().success());
}

#[test]
fn simultaneous_commands_are_done_or_refused_as_locked() {
    let workspace = Workspace::new("simulator", true);
    for operation in ["up", "down", "up"] {
        let all: Vec<_> = (0..4).map(|_| workspace.start(&[operation])).collect();
        let codes: Vec<_> = all.into_iter().map(|mut child| child.wait().unwrap().code()).collect();
        // A command that did not get the lock was told so, or found its work done.
        assert!(codes.iter().all(|code| matches!(code, Some(0 | 5))), "{codes:?}");
        assert!(codes.contains(&Some(0)), "{codes:?}");
        assert_eq!(workspace.check(), operation == "up");
    }
}

#[test]
fn commands_leave_other_workspaces_alone() {
    let workspaces: Vec<Workspace> = (0..3).map(|_| Workspace::new("simulator", true)).collect();
    let all = |operation: &[&str], workspaces: &[Workspace]| {
        let children: Vec<_> = workspaces.iter().map(|workspace| workspace.start(operation)).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success(), "{operation:?}");
        }
    };
    all(&["up"], &workspaces);
    all(&["snapshot"], &workspaces[..2]);
    signal(workspaces[0].vmm(), Signal::KILL);
    workspaces[1].ok(&["down"]);
    assert!(workspaces[2].check() && !workspaces[1].check());
    workspaces[0].ok(&["recover"]);
    assert!(!workspaces[0].check() && workspaces[2].check());
}

/// After one interrupt nixbox rolls the operation back, or finishes it. After a second one it leaves that to the next run.
#[cfg(feature = "failpoints")]
#[test]
fn interrupted_operations_leave_a_consistent_workspace() {
    let workspace = Workspace::new("simulator", true);
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "warm"]);
    let mut interrupts = 0;
    for (operation, begins_up) in [
        (&["down"][..], true),
        (&["up"], false),
        (&["snapshot"], true),
        (&["down"], true),
        (&["restore", "warm"], false),
    ] {
        for times in ["once", "twice"] {
            let mut at = 1;
            loop {
                if workspace.status()["state"] != if begins_up { "running" } else { "down" } {
                    workspace.ok(if begins_up { &["up"] } else { &["down"] });
                }
                let mut command = workspace.command(operation);
                command.env("NIXBOX_INTERRUPT_AT", at.to_string()).env("NIXBOX_INTERRUPT", times);
                let said = crate::workspace::Said::from(command.output().unwrap());
                if !said.stderr.contains("interrupted") {
                    assert_eq!(said.code, Some(0), "{said:?}");
                    break;
                }
                interrupts += 1;
                assert!(matches!(said.code, Some(0 | 130)), "{operation:?} at {at}: {said:?}");
                if times == "twice" {
                    workspace.ok(&["recover"]);
                }
                workspace.check();
                at += if times == "twice" { 7 } else { 5 };
            }
        }
    }
    tell(&format!("{interrupts} interrupts"));
}

/// Mounts a small file system; `None` where this process may not.
fn small(workspace: &Workspace, directory: &str, size: &str) -> Option<Mounted> {
    let path = workspace.state().join(directory);
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs"])
        .arg(&path)
        .stderr(Stdio::null())
        .status();
    mounted.is_ok_and(|status| status.success()).then_some(Mounted(path))
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

#[test]
fn a_snapshot_on_a_full_disk_is_rolled_back() {
    let workspace = Workspace::new("simulator-v54", true);
    let Some(snapshots) = small(&workspace, "snapshots", "12m") else {
        skipped("a_snapshot_on_a_full_disk_is_rolled_back", "the right to mount a tmpfs");
        return;
    };
    workspace.ok(&["up"]);
    let filler = snapshots.0.join("filler");
    let (mut failed, mut done) = (0, 0);
    for free in (0..12).map(|step| step * (64 << 10)) {
        fs::write(&filler, vec![1; (12 << 20) - free]).unwrap();
        let said = workspace.run(&["snapshot"]);
        fs::remove_file(&filler).unwrap();
        match said.code {
            Some(0) => done += 1,
            code => {
                failed += 1;
                assert_eq!(code, Some(1), "{said:?}");
                assert!(
                    said.stderr.contains("No space left") || said.stderr.contains("are missing"),
                    "{said:?}"
                );
            }
        }
        assert!(workspace.check());
        for id in workspace.snapshots() {
            workspace.ok(&["snapshot", "delete", &id]);
        }
    }
    tell(&format!("{failed} snapshots found the disk full, {done} did not"));
    assert!(failed > 2 && done > 0);
    workspace.ok(&["down"]);
    drop(snapshots);
}

/// nixbox does not begin what it cannot write to the journal.
#[test]
fn an_operation_with_a_full_journal_is_recovered() {
    let workspace = Workspace::new("simulator", false);
    let Some(journal) = small(&workspace, "journal", "64k") else {
        skipped("an_operation_with_a_full_journal_is_recovered", "the right to mount a tmpfs");
        return;
    };
    let filler = journal.0.join("filler");
    let since = std::time::Instant::now();
    let mut refused = 0;
    for pages in (1..16).rev() {
        fs::write(&filler, vec![1; pages * 4096]).unwrap();
        let said = workspace.run(&["up"]);
        refused += u32::from(said.code != Some(0));
        fs::remove_file(&filler).unwrap();
        workspace.ok(&["recover"]);
        workspace.check();
        workspace.ok(&["down"]);
        assert!(since.elapsed() < LIMIT);
    }
    tell(&format!("{refused} times the journal was full"));
    assert!(refused > 0, "{:?}", names(&journal.0));
    drop(journal);
}
