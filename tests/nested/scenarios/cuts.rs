//! nixbox, its daemons or the power of the whole host are killed during a snapshot or a restore, and the next run recovers.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::outside;
use crate::workspace::Workspace;

const MARK: &str = "od -An -N16 -tx1 /dev/urandom | tr -d ' \\n' > /tmp/nonce; cat /tmp/nonce";

/// An ordinary run kills at every 13th event, a campaign at every event.
fn stride() -> usize {
    if std::env::var_os("NIXBOX_CAMPAIGN").is_some() { 1 } else { 13 }
}

fn listed(workspace: &Workspace) -> Vec<String> {
    let entries = fs::read_dir(workspace.state_directory("snapshots")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with(".seen-"));
    names.sort();
    let foreign: Vec<_> = names.iter().filter(|name| name.parse::<u64>().is_err()).collect();
    assert!(foreign.is_empty(), "left in the list: {foreign:?}");
    names
}

/// Kills a recovery at this event, and then recovers.
fn recover(workspace: &Workspace, kill_at: usize) {
    workspace.killed_at(kill_at, &["recover"]);
    workspace.ok(&["recover"]);
    assert_eq!(workspace.ok(&["recover", "--json"]).json()["result"], "nothing");
}

pub(super) fn kills_of_snapshot_restore_and_delete_are_recovered() {
    let workspace = Workspace::new("cuts");
    workspace.ok(&["up"]);
    let nonce = workspace.guest(MARK);
    let (mut event, mut kills, mut ended) = (1, 0, 0);
    while workspace.killed_at(event, &["snapshot"]) {
        let foreseen = workspace.ok(&["recover", "--dry-run", "--json"]).json();
        // Once its end is in the journal there is nothing to recover.
        if foreseen["operation"].is_null() {
            assert_eq!(listed(&workspace).len(), 1, "{foreseen}");
            ended += 1;
        } else {
            assert_eq!(foreseen["operation"]["operation"], "snapshot", "{foreseen}");
            assert_eq!(ended, 0, "{foreseen}");
        }
        recover(&workspace, 1 + event % 7);
        // The VM runs on with everything that it had, wherever nixbox was killed.
        workspace.assert_up();
        assert_eq!(workspace.guest("cat /tmp/nonce"), nonce, "killed at {event}");
        for snapshot in listed(&workspace) {
            workspace.ok(&["snapshot", "delete", &snapshot]);
        }
        event += stride();
        kills += 1;
    }
    println!("{kills} kills of `snapshot`, the last at event {}", event.saturating_sub(stride()));
    assert!(event > 20, "{event}");
    workspace.ok(&["snapshot", "--name", "warm"]);
    workspace.ok(&["down"]);

    let (mut event, mut kills) = (4, 0);
    while workspace.killed_at(event, &["restore", "warm"]) {
        recover(&workspace, 1 + event % 7);
        if workspace.state() == "down" {
            workspace.assert_down();
        } else {
            workspace.assert_up();
            assert_eq!(workspace.guest("cat /tmp/nonce"), nonce, "killed at {event}");
            workspace.ok(&["down"]);
        }
        event += stride();
        kills += 1;
    }
    println!("{kills} kills of `restore`, the last at event {}", event.saturating_sub(stride()));
    assert!(event > 20, "{event}");
    workspace.assert_up();
    workspace.ok(&["snapshot", "verify", "warm"]);
    workspace.ok(&["down"]);

    let (mut event, mut back, mut gone) = (1, 0, 0);
    while workspace.killed_at(event, &["snapshot", "delete", "warm"]) {
        recover(&workspace, event);
        listed(&workspace);
        if workspace.run(&["snapshot", "inspect", "warm"]).code == Some(0) {
            workspace.ok(&["snapshot", "verify", "warm"]);
            back += 1;
        } else {
            workspace.run(&["snapshot", "delete", "warm"]).failed(3, &["there is no snapshot warm"]);
            gone += 1;
            workspace.ok(&["up"]);
            workspace.ok(&["snapshot", "--name", "warm", "--stop"]);
        }
        event += stride().min(3);
    }
    println!(
        "`delete` killed until event {event}: {back} times the snapshot stayed, {gone} times it was gone"
    );
    assert!(back > 0 && gone > 0);
    workspace.assert_down();
}

/// Runs nixbox until it says that a stage is done, does something to the host then, and returns how nixbox ends.
fn in_the_middle(workspace: &Workspace, command: &[&str], stage: &str, then: impl FnOnce()) -> Option<i32> {
    let mut child = workspace.nixbox(command).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let reached = lines.by_ref().map(Result::unwrap).any(|line| line.contains(stage));
    assert!(reached, "{command:?} ended before {stage:?}");
    then();
    for line in lines {
        println!("{}", line.unwrap());
    }
    child.wait().unwrap().code()
}

fn kill(workspace: &Workspace, role: &str) {
    let ours: Vec<_> = outside::processes()
        .into_iter()
        .filter(|process| process.workspace == workspace.id() && process.role.starts_with(role))
        .collect();
    assert!(!ours.is_empty(), "no {role} to kill");
    for process in ours {
        // Its children may have ended with it.
        std::process::Command::new("kill").args(["-9", &process.pid.to_string()]).status().unwrap();
    }
}

pub(super) fn daemons_killed_under_way_are_recovered() {
    let workspace = Workspace::new("daemons");
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "warm"]);
    // The VM is gone with its VMM: nothing is left of it, and nothing is listed that is not whole.
    let code = in_the_middle(&workspace, &["snapshot"], "snapshot: pause", || kill(&workspace, "vmm"));
    assert_ne!(code, Some(0));
    workspace.ok(&["recover"]);
    workspace.assert_down();
    assert_eq!(listed(&workspace).len(), 1);
    for (command, stage, role) in [
        (["restore", "warm"], "restore: rebuild", "share-0"),
        (["restore", "warm"], "restore: claim slot", "vmm"),
        (["restore", "warm"], "restore: resume", "vmm"),
    ] {
        let code = in_the_middle(&workspace, &command, stage, || {
            // When the stage before is done, the daemon may not have been started yet.
            let there =
                || outside::processes().iter().any(|one| one.workspace == workspace.id() && one.role == role);
            while !there() {
                std::thread::yield_now();
            }
            kill(&workspace, role);
        });
        println!("{role} killed at {stage:?}: {code:?}");
        workspace.ok(&["recover"]);
        if workspace.state() != "down" {
            workspace.ok(&["down"]);
        }
        workspace.assert_down();
        assert_eq!(listed(&workspace).len(), 1);
    }
    workspace.ok(&["restore", "warm"]);
    workspace.assert_up();
    // Without its DHCP server a guest that runs goes on; the next VM has one again.
    kill(&workspace, "dhcp-");
    workspace.ok(&["snapshot", "--name", "later", "--stop"]);
    workspace.ok(&["restore", "later"]);
    workspace.assert_up();
    workspace.ok(&["down"]);
    workspace.assert_down();
}

/// A VM with a snapshot, and a file on the disk that tells its guest from others.
fn warm(name: &str) -> Workspace {
    let workspace = Workspace::new(name);
    workspace.ok(&["up"]);
    fs::write(workspace.path.join("nonce"), workspace.guest(MARK)).unwrap();
    workspace.ok(&["snapshot", "--name", "warm"]);
    outside::must("sync", &[]);
    workspace
}

/// Checks a workspace after the host has booted again.
fn after_the_cut(name: &str) {
    let workspace = Workspace::existing(name);
    workspace.ok(&["recover"]);
    workspace.assert_down();
    assert_eq!(listed(&workspace).len(), 1, "the committed snapshot, and nothing else");
    workspace.ok(&["snapshot", "verify", "warm"]);
    workspace.ok(&["up", "--snapshot"]);
    let nonce = fs::read_to_string(workspace.path.join("nonce")).unwrap();
    assert_eq!(workspace.guest("cat /tmp/nonce"), nonce);
    workspace.assert_up();
    workspace.ok(&["down"]);
    workspace.assert_down();
}

/// Returns when an operation has done a stage, so that the power is cut there.
#[expect(clippy::zombie_processes, reason = "nixbox goes on until the power is cut")]
fn cut(workspace: &Workspace, command: &[&str], stage: &str) {
    let mut child = workspace.nixbox(command).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.by_ref().map(Result::unwrap).any(|line| line.contains(stage)), "never {stage:?}");
}

pub(super) mod power_cut_in_a_capture {
    pub(in super::super) fn before() {
        let workspace = super::warm("cut-capture");
        super::cut(&workspace, &["snapshot"], "snapshot: pause");
    }

    pub(in super::super) fn after() {
        super::after_the_cut("cut-capture");
    }
}

pub(super) mod power_cut_in_a_restore {
    pub(in super::super) fn before() {
        let workspace = super::warm("cut-restore");
        workspace.ok(&["down"]);
        super::cut(&workspace, &["restore", "warm"], "restore: load");
    }

    pub(in super::super) fn after() {
        super::after_the_cut("cut-restore");
    }
}
