//! What else happens to nixbox and its daemons: a VMM that stops answering or dies, two nixbox at once, a person who
//! interrupts, a disk that is full.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::room::{LIMIT, Room, names, skipped, tell};

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Those who only look say so at once, and whoever changes something next ends it: nobody has to kill it by hand.
#[test]
fn a_vmm_that_does_not_answer_is_ended_by_whatever_comes_next() {
    let room = Room::new("simulator", true);
    for (next, code, words) in [
        (&["recover"][..], 0, "a VM whose VMM did not answer any more was ended and cleared away"),
        (&["down"], 0, "waiting whether it will"),
        (&["snapshot"], 3, "no VM is running"),
    ] {
        room.ok(&["up"]);
        signal(room.vmm(), Signal::STOP);
        if code == 3 {
            assert_eq!(room.status()["state"], "silent");
            let foreseen = room.ok(&["recover", "--dry-run"]);
            assert!(foreseen.stdout.contains("does not answer"), "{foreseen:?}");
        }
        let said = room.run(next);
        assert_eq!(said.code, Some(code), "{said:?}");
        assert!(said.stderr.contains(words), "{said:?}");
        assert!(!room.check());
    }
}

/// One that stops for a moment is waited for.
#[test]
fn a_vmm_that_answers_late_is_no_loss() {
    let room = Room::new("simulator", true);
    room.ok(&["up"]);
    signal(room.vmm(), Signal::STOP);
    let mut recovering = room.command(&["recover"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(recovering.stderr.take().unwrap()), &mut line)
        .unwrap();
    assert!(line.contains("waiting whether it will"), "{line}");
    signal(room.vmm(), Signal::CONT);
    assert!(recovering.wait().unwrap().success());
    assert!(room.check());
}

#[test]
fn a_vmm_that_is_killed_is_cleared_away_by_whatever_comes_next() {
    let room = Room::new("simulator", true);
    for next in [&["recover"][..], &["down"], &["up"]] {
        room.ok(&["up"]);
        signal(room.vmm(), Signal::KILL);
        room.ok(next);
        assert_eq!(room.check(), next == ["up"]);
    }
}

/// A share daemon that is gone takes its share with it, and nothing else: whoever touches it waits, and is let go of by
/// the next boot.
#[test]
fn a_share_daemon_that_is_killed() {
    let room = Room::new("simulator", true);
    room.ok(&["up"]);
    let daemon = fs::read_to_string(room.runtime().join("share-0-1.pid")).unwrap();
    let daemon: serde_json::Value = serde_json::from_str(&daemon).unwrap();
    signal(i32::try_from(daemon["identity"]["pid"].as_i64().unwrap()).unwrap(), Signal::KILL);
    let mut reader = room
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
    room.ok(&["down"]);
    assert!(!room.check());
    assert!(!reader.wait().unwrap().success());
}

#[test]
fn two_at_once_in_one_workspace() {
    let room = Room::new("simulator", true);
    for operation in ["up", "down", "up"] {
        let all: Vec<_> = (0..4).map(|_| room.start(&[operation])).collect();
        let codes: Vec<_> = all.into_iter().map(|mut child| child.wait().unwrap().code()).collect();
        // Whoever came second was told so, or found it done.
        assert!(codes.iter().all(|code| matches!(code, Some(0 | 5))), "{codes:?}");
        assert!(codes.contains(&Some(0)), "{codes:?}");
        assert_eq!(room.check(), operation == "up");
    }
}

#[test]
fn several_workspaces_never_touch_each_others_things() {
    let rooms: Vec<Room> = (0..3).map(|_| Room::new("simulator", true)).collect();
    let all = |operation: &[&str], rooms: &[Room]| {
        let children: Vec<_> = rooms.iter().map(|room| room.start(operation)).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success(), "{operation:?}");
        }
    };
    all(&["up"], &rooms);
    all(&["snapshot"], &rooms[..2]);
    signal(rooms[0].vmm(), Signal::KILL);
    rooms[1].ok(&["down"]);
    assert!(rooms[2].check() && !rooms[1].check());
    rooms[0].ok(&["recover"]);
    assert!(!rooms[0].check() && rooms[2].check());
}

/// A person who interrupts once waits for the end of it; who interrupts twice leaves the rest to the next run.
#[cfg(feature = "failpoints")]
#[test]
fn interrupted_at_many_events() {
    let room = Room::new("simulator", true);
    room.ok(&["up"]);
    room.ok(&["snapshot", "--name", "warm"]);
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
                if room.status()["state"] != if begins_up { "running" } else { "down" } {
                    room.ok(if begins_up { &["up"] } else { &["down"] });
                }
                let mut command = room.command(operation);
                command.env("NIXBOX_INTERRUPT_AT", at.to_string()).env("NIXBOX_INTERRUPT", times);
                let said = crate::room::Said::from(command.output().unwrap());
                if !said.stderr.contains("interrupted") {
                    assert_eq!(said.code, Some(0), "{said:?}");
                    break;
                }
                interrupts += 1;
                assert!(matches!(said.code, Some(0 | 130)), "{operation:?} at {at}: {said:?}");
                if times == "twice" {
                    room.ok(&["recover"]);
                }
                room.check();
                at += if times == "twice" { 7 } else { 5 };
            }
        }
    }
    tell(&format!("{interrupts} interrupts"));
}

/// Mounts a small file system; `None` where this process may not.
fn small(room: &Room, directory: &str, size: &str) -> Option<Mounted> {
    let path = room.nixbox().join(directory);
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
fn a_disk_that_is_full() {
    let room = Room::new("simulator-v54", true);
    let Some(snapshots) = small(&room, "snapshots", "12m") else {
        skipped("a_disk_that_is_full", "the right to mount a tmpfs");
        return;
    };
    room.ok(&["up"]);
    let filler = snapshots.0.join("filler");
    let (mut failed, mut done) = (0, 0);
    for free in (0..12).map(|step| step * (64 << 10)) {
        fs::write(&filler, vec![1; (12 << 20) - free]).unwrap();
        let said = room.run(&["snapshot"]);
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
        assert!(room.check());
        for id in room.snapshots() {
            room.ok(&["snapshot", "delete", &id]);
        }
    }
    tell(&format!("{failed} snapshots found the disk full, {done} did not"));
    assert!(failed > 2 && done > 0);
    room.ok(&["down"]);
    drop(snapshots);
}

/// Nothing is begun that cannot be written down.
#[test]
fn a_journal_that_cannot_grow() {
    let room = Room::new("simulator", false);
    let Some(journal) = small(&room, "journal", "64k") else {
        skipped("a_journal_that_cannot_grow", "the right to mount a tmpfs");
        return;
    };
    let filler = journal.0.join("filler");
    let since = std::time::Instant::now();
    let mut refused = 0;
    for pages in (1..16).rev() {
        fs::write(&filler, vec![1; pages * 4096]).unwrap();
        let said = room.run(&["up"]);
        refused += u32::from(said.code != Some(0));
        fs::remove_file(&filler).unwrap();
        room.ok(&["recover"]);
        room.check();
        room.ok(&["down"]);
        assert!(since.elapsed() < LIMIT);
    }
    tell(&format!("{refused} times the journal was full"));
    assert!(refused > 0, "{:?}", names(&journal.0));
    drop(journal);
}
