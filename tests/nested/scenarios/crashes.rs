//! nixbox killed, at every event of its operations and at any time, and what the next run makes of it.

use std::collections::BTreeMap;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::outside;
use crate::room::Room;

/// Whatever was killed, recovery comes to one of two ends, and is done then; even if it is killed itself on the way.
fn recover(room: &Room, kill_recovery_at: usize) {
    room.killed_at(kill_recovery_at, &["recover"]);
    room.ok(&["recover"]);
    match room.state().as_str() {
        "down" => room.assert_down(),
        _ => room.assert_up(),
    }
    assert_eq!(room.ok(&["recover", "--json"]).json()["result"], "nothing");
}

/// Of an ordinary run every so many events; a campaign takes them all.
fn stride() -> usize {
    if std::env::var_os("NIXBOX_CAMPAIGN").is_some() { 1 } else { 7 }
}

/// For each event of `up` one `up` that dies there, and for each of `down` one `down`, in as few VMs as that takes.
pub(super) fn every_kill_of_up_and_down_is_recovered() {
    let (mut up, mut down) = (1, 1);
    let (mut up_passed, mut down_passed) = (false, false);
    let mut room = Room::new("kill-1");
    while !(up_passed && down_passed) {
        if up_passed {
            room.ok(&["up"]);
        } else {
            up_passed = !room.killed_at(up, &["up"]);
            recover(&room, 1 + up % 5);
            up += stride();
        }
        if room.state() == "down" {
            continue;
        }
        while room.state() != "down" {
            if down_passed {
                room.ok(&["down"]);
            } else {
                down_passed = !room.killed_at(down, &["down"]);
                recover(&room, 1 + down % 5);
                down += stride();
            }
        }
        room.assert_down();
        // A disk that stays would spare the next `up` the making of one.
        room = Room::new(&format!("kill-{up}-{down}"));
    }
    println!("killed at every {}. of {up} events of `up` and {down} of `down`", stride());
    // The tables have more than these. A count near nothing would mean that nothing was killed.
    assert!(up > 20 && down > 12, "{up} {down}");
}

/// Numbers that look random, the same ones for a seed (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Something that can be done as it stands, or nearly.
fn any_command(random: &mut Random, down: bool) -> &'static [&'static str] {
    match (down, random.below(4)) {
        (true, 0) => &["up"],
        (true, 1) => &["restore"],
        (true, _) => &["up", "--snapshot"],
        (false, 0) => &["down"],
        (false, 1) => &["snapshot", "--stop"],
        (false, 2) => &["restore", "--replace"],
        (false, _) => &["snapshot"],
    }
}

/// Nothing is among the snapshots but those that are whole, as the file system has it and as nixbox reads them.
fn assert_snapshots(room: &Room) {
    let listed = room.ok(&["snapshot", "list", "--json"]).json();
    let mut whole = Vec::new();
    for one in listed.as_array().unwrap() {
        assert!(one.get("damaged").is_none(), "{one}");
        whole.push(one["id"].to_string());
    }
    for name in std::fs::read_dir(room.path.join(".nixbox/snapshots")).unwrap() {
        let name = name.unwrap().file_name().into_string().unwrap();
        let seen = name.strip_prefix(".seen-").and_then(|name| name.strip_suffix(".json"));
        let of = seen.unwrap_or(&name);
        assert!(whole.iter().any(|id| id == of), "{name} is no part of a snapshot: {whole:?}");
    }
}

/// Waits for the end of a process, but no longer than that; says whether it ended.
fn ends_within(child: &Child, limit: Duration) -> bool {
    let descriptor = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let limit = Timespec::try_from(limit).unwrap();
    rustix::event::poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

/// What is thought of as the longest that a command takes, in milliseconds, before it was seen to end.
const LONGEST: u64 = 12_000;

/// All operations but `delete`, killed after any time, and now and then a daemon instead. A third of the
/// commands comes to its end.
pub(super) fn random_kills_are_recovered() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = variable("NIXBOX_CAMPAIGN").unwrap_or(60);
    let seed = variable("NIXBOX_SEED").unwrap_or(0x2545_f491_4f6c_dd1d) | 1;
    println!("NIXBOX_CAMPAIGN={seconds} NIXBOX_SEED={seed}");
    let mut random = Random(seed);
    let room = Room::new("random");
    room.configure(&Room::configuration("[snapshot]\nkeep = 2"));
    // One that is never pruned, so that there is something to restore.
    room.ok(&["up"]);
    room.ok(&["snapshot", "--name", "warm", "--stop"]);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut rounds = 0;
    // Half as long again as each took when it last came to its end.
    let mut takes: BTreeMap<&[&str], u64> = BTreeMap::new();
    while Instant::now() < until {
        let command = any_command(&mut random, room.state() == "down");
        let wait = Duration::from_millis(random.below(takes.get(command).copied().unwrap_or(LONGEST)));
        let since = Instant::now();
        let mut child = room.nixbox(command).spawn().unwrap();
        if ends_within(&child, wait) && child.wait().unwrap().success() {
            takes.insert(command, 1 + since.elapsed().as_millis() as u64 * 3 / 2);
        }
        let victim = random.below(4);
        if victim == 0 {
            let all: Vec<_> =
                outside::processes().into_iter().filter(|process| process.workspace == room.id()).collect();
            if let Some(process) = all.get(random.below(all.len().max(1) as u64) as usize) {
                println!("kills {process:?}");
                // It may have ended by itself.
                let killed =
                    std::process::Command::new("kill").args(["-9", &process.pid.to_string()]).status();
                killed.unwrap();
            }
        } else {
            child.kill().unwrap();
        }
        println!("{command:?} after {wait:?}: {:?}", child.wait().unwrap());
        room.ok(&["recover"]);
        match room.state().as_str() {
            "down" => room.assert_down(),
            // A share daemon that was killed is not started again under a guest that has it mounted.
            _ if victim == 0 => {
                room.ok(&["down"]);
                room.assert_down();
            }
            _ => room.assert_up(),
        }
        assert_snapshots(&room);
        rounds += 1;
    }
    println!("{rounds} rounds");
    for one in room.ok(&["snapshot", "list", "--json"]).json().as_array().unwrap() {
        room.ok(&["snapshot", "verify", &one["id"].to_string()]);
    }
    room.ok(&["down"]);
    room.assert_down();
}
