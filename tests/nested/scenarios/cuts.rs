//! nixbox, the daemons and the whole host killed while a guest is frozen or comes back, and what the next run makes of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::outside;
use crate::room::Room;

const MARK: &str = "od -An -N16 -tx1 /dev/urandom | tr -d ' \\n' > /tmp/nonce; cat /tmp/nonce";

/// Every so many events one is chosen; a campaign takes them all.
fn stride() -> usize {
    if std::env::var_os("NIXBOX_CAMPAIGN").is_some() { 1 } else { 13 }
}

fn listed(room: &Room) -> Vec<String> {
    let entries = fs::read_dir(room.path.join(".nixbox/snapshots")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with(".seen-"));
    names.sort();
    let foreign: Vec<_> = names.iter().filter(|name| name.parse::<u64>().is_err()).collect();
    assert!(foreign.is_empty(), "left in the list: {foreign:?}");
    names
}

/// Recovers, killed once on the way.
fn recover(room: &Room, kill_at: usize) {
    room.killed_at(kill_at, &["recover"]);
    room.ok(&["recover"]);
    assert_eq!(room.ok(&["recover", "--json"]).json()["result"], "nothing");
}

pub(super) fn kills_of_snapshot_restore_and_delete_are_recovered() {
    let room = Room::new("cuts");
    room.ok(&["up"]);
    let nonce = room.guest(MARK);
    let (mut event, mut kills, mut ended) = (1, 0, 0);
    while room.killed_at(event, &["snapshot"]) {
        let foreseen = room.ok(&["recover", "--dry-run", "--json"]).json();
        // Once its end is in the journal there is nothing to recover.
        if foreseen["operation"].is_null() {
            assert_eq!(listed(&room).len(), 1, "{foreseen}");
            ended += 1;
        } else {
            assert_eq!(foreseen["operation"]["operation"], "snapshot", "{foreseen}");
            assert_eq!(ended, 0, "{foreseen}");
        }
        recover(&room, 1 + event % 7);
        // Whatever was killed, the VM is not: it runs, with all that it had, or what is done is done.
        room.assert_up();
        assert_eq!(room.guest("cat /tmp/nonce"), nonce, "killed at {event}");
        for snapshot in listed(&room) {
            room.ok(&["snapshot", "delete", &snapshot]);
        }
        event += stride();
        kills += 1;
    }
    println!("{kills} kills of `snapshot`, the last at event {}", event.saturating_sub(stride()));
    assert!(event > 20, "{event}");
    room.ok(&["snapshot", "--name", "warm"]);
    room.ok(&["down"]);

    let (mut event, mut kills) = (4, 0);
    while room.killed_at(event, &["restore", "warm"]) {
        recover(&room, 1 + event % 7);
        if room.state() == "down" {
            room.assert_down();
        } else {
            room.assert_up();
            assert_eq!(room.guest("cat /tmp/nonce"), nonce, "killed at {event}");
            room.ok(&["down"]);
        }
        event += stride();
        kills += 1;
    }
    println!("{kills} kills of `restore`, the last at event {}", event.saturating_sub(stride()));
    assert!(event > 20, "{event}");
    room.assert_up();
    room.ok(&["snapshot", "verify", "warm"]);
    room.ok(&["down"]);

    let (mut event, mut back, mut gone) = (1, 0, 0);
    while room.killed_at(event, &["snapshot", "delete", "warm"]) {
        recover(&room, event);
        listed(&room);
        if room.run(&["snapshot", "inspect", "warm"]).code == Some(0) {
            room.ok(&["snapshot", "verify", "warm"]);
            back += 1;
        } else {
            room.run(&["snapshot", "delete", "warm"]).failed(3, &["there is no snapshot warm"]);
            gone += 1;
            room.ok(&["up"]);
            room.ok(&["snapshot", "--name", "warm", "--stop"]);
        }
        event += 1;
    }
    println!("`delete` killed at {event} events: {back} times the snapshot stayed, {gone} times it was gone");
    assert!(back > 0 && gone > 0);
    room.assert_down();
}

/// Runs nixbox until it says that a stage is done, and then does something to the host.
fn in_the_middle(room: &Room, command: &[&str], stage: &str, then: impl FnOnce()) -> Option<i32> {
    let mut child = room.nixbox(command).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let reached = lines.by_ref().map(Result::unwrap).any(|line| line.contains(stage));
    assert!(reached, "{command:?} ended before {stage:?}");
    then();
    for line in lines {
        println!("{}", line.unwrap());
    }
    child.wait().unwrap().code()
}

fn kill(room: &Room, role: &str) {
    let ours: Vec<_> = outside::processes()
        .into_iter()
        .filter(|process| process.workspace == room.id() && process.role.starts_with(role))
        .collect();
    assert!(!ours.is_empty(), "no {role} to kill");
    for process in ours {
        // Its children may have ended with it.
        std::process::Command::new("kill").args(["-9", &process.pid.to_string()]).status().unwrap();
    }
}

pub(super) fn daemons_killed_under_way_are_recovered() {
    let room = Room::new("daemons");
    room.ok(&["up"]);
    room.ok(&["snapshot", "--name", "warm"]);
    // The VM is gone with its VMM: nothing is left of it, and nothing is listed that is not whole.
    let code = in_the_middle(&room, &["snapshot"], "snapshot: pause", || kill(&room, "vmm"));
    assert_ne!(code, Some(0));
    room.ok(&["recover"]);
    room.assert_down();
    assert_eq!(listed(&room).len(), 1);
    for (command, stage, role) in [
        (["restore", "warm"], "restore: rebuild", "share-0"),
        (["restore", "warm"], "restore: claim slot", "vmm"),
        (["restore", "warm"], "restore: resume", "vmm"),
    ] {
        let code = in_the_middle(&room, &command, stage, || {
            // At the head of a stage it may not have been started yet: whoever comes later is hit.
            let there =
                || outside::processes().iter().any(|one| one.workspace == room.id() && one.role == role);
            while !there() {
                std::thread::yield_now();
            }
            kill(&room, role);
        });
        println!("{role} killed at {stage:?}: {code:?}");
        room.ok(&["recover"]);
        if room.state() != "down" {
            room.ok(&["down"]);
        }
        room.assert_down();
        assert_eq!(listed(&room).len(), 1);
    }
    room.ok(&["restore", "warm"]);
    room.assert_up();
    // Without its DHCP server a guest that runs goes on; the next VM has one again.
    kill(&room, "dhcp-");
    room.ok(&["snapshot", "--name", "later", "--stop"]);
    room.ok(&["restore", "later"]);
    room.assert_up();
    room.ok(&["down"]);
    room.assert_down();
}

/// A VM, a snapshot of it, and what tells its guest from another, on the disk.
fn warm(name: &str) -> Room {
    let room = Room::new(name);
    room.ok(&["up"]);
    fs::write(room.path.join("nonce"), room.guest(MARK)).unwrap();
    room.ok(&["snapshot", "--name", "warm"]);
    outside::must("sync", &[]);
    room
}

/// The host has booted again.
fn after_the_cut(name: &str) {
    let room = Room::existing(name);
    room.ok(&["recover"]);
    room.assert_down();
    assert_eq!(listed(&room).len(), 1, "the committed snapshot, and nothing else");
    room.ok(&["snapshot", "verify", "warm"]);
    room.ok(&["up", "--snapshot"]);
    let nonce = fs::read_to_string(room.path.join("nonce")).unwrap();
    assert_eq!(room.guest("cat /tmp/nonce"), nonce);
    room.assert_up();
    room.ok(&["down"]);
    room.assert_down();
}

/// Ends at a point of an operation, for the power to be cut there.
#[expect(clippy::zombie_processes, reason = "whoever works on it works on, until there is no power")]
fn cut(room: &Room, command: &[&str], stage: &str) {
    let mut child = room.nixbox(command).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.by_ref().map(Result::unwrap).any(|line| line.contains(stage)), "never {stage:?}");
}

pub(super) mod power_cut_in_a_capture {
    pub(in super::super) fn before() {
        let room = super::warm("cut-capture");
        super::cut(&room, &["snapshot"], "snapshot: pause");
    }

    pub(in super::super) fn after() {
        super::after_the_cut("cut-capture");
    }
}

pub(super) mod power_cut_in_a_restore {
    pub(in super::super) fn before() {
        let room = super::warm("cut-restore");
        room.ok(&["down"]);
        super::cut(&room, &["restore", "warm"], "restore: load");
    }

    pub(in super::super) fn after() {
        super::after_the_cut("cut-restore");
    }
}
