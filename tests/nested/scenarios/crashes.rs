//! nixbox is killed at every event of its operations and at random times, and the next run recovers.

use std::collections::BTreeMap;
use std::process::Child;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use super::users;
use crate::outside;
use crate::workspace::Workspace;

/// Kills a recovery at this event, and recovers again: the VM is down or up then, and nothing is left to recover.
fn recover(workspace: &Workspace, kill_recovery_at: usize) {
    workspace.killed_at(kill_recovery_at, &["recover"]);
    workspace.ok(&["recover"]);
    match workspace.state().as_str() {
        "down" => workspace.assert_down(),
        _ => workspace.assert_up(),
    }
    assert_eq!(workspace.ok(&["recover", "--json"]).json()["result"], "nothing");
}

/// An ordinary run kills at every 17th event, a campaign at every event.
fn stride() -> usize {
    if std::env::var_os("NIXBOX_CAMPAIGN").is_some() { 1 } else { 17 }
}

pub(super) fn every_kill_of_up_and_down_is_recovered() {
    every_kill(Workspace::new);
}

/// The same without root's rights, with the holder of the namespaces and pasta.
pub(super) fn every_kill_of_up_and_down_of_an_ordinary_user_is_recovered() {
    every_kill(users::ordinary);
}

/// Kills one `up` at each event of `up`, and one `down` at each event of `down`, with as few VMs as that takes.
fn every_kill(new_workspace: fn(&str) -> Workspace) {
    let (mut up, mut down) = (1, 1);
    let (mut up_passed, mut down_passed) = (false, false);
    let mut workspace = new_workspace("kill-1");
    while !(up_passed && down_passed) {
        if up_passed {
            workspace.ok(&["up"]);
        } else {
            up_passed = !workspace.killed_at(up, &["up"]);
            recover(&workspace, 1 + up % 5);
            up += stride();
        }
        if workspace.state() == "down" {
            continue;
        }
        while workspace.state() != "down" {
            if down_passed {
                workspace.ok(&["down"]);
            } else {
                down_passed = !workspace.killed_at(down, &["down"]);
                recover(&workspace, 1 + down % 5);
                down += stride();
            }
        }
        workspace.assert_down();
        // A disk that stays would spare the next `up` the making of one.
        workspace = new_workspace(&format!("kill-{up}-{down}"));
    }
    println!("killed at every {}. of {up} events of `up` and {down} of `down`", stride());
    // The operations have more events than these. A lower count means that nothing was killed.
    assert!(up > 20 && down > 12, "{up} {down}");
}

/// A command that fits the state of the VM.
fn any_command(random: &mut Rng, down: bool) -> &'static [&'static str] {
    match (down, random.u8(..4)) {
        (true, 0) => &["up"],
        (true, 1) => &["restore"],
        (true, _) => &["up", "--snapshot"],
        (false, 0) => &["down"],
        (false, 1) => &["snapshot", "--stop"],
        (false, 2) => &["restore", "--replace"],
        (false, _) => &["snapshot"],
    }
}

/// Asserts that the directory of the snapshots has only whole snapshots, as nixbox reads them, and notes of them.
fn assert_snapshots(workspace: &Workspace) {
    let listed = workspace.ok(&["snapshot", "list", "--json"]).json();
    let mut whole = Vec::new();
    for one in listed.as_array().unwrap() {
        assert!(one.get("damaged").is_none(), "{one}");
        whole.push(one["id"].to_string());
    }
    for name in std::fs::read_dir(workspace.state_directory("snapshots")).unwrap() {
        let name = name.unwrap().file_name().into_string().unwrap();
        let seen = name.strip_prefix(".seen-").and_then(|name| name.strip_suffix(".json"));
        let of = seen.unwrap_or(&name);
        assert!(whole.iter().any(|id| id == of), "{name} is no part of a snapshot: {whole:?}");
    }
}

/// Waits for the end of a process for at most this time. Returns whether it ended.
fn ends_within(child: &Child, limit: Duration) -> bool {
    let descriptor = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let limit = Timespec::try_from(limit).unwrap();
    rustix::event::poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

/// The longest time in milliseconds after which a command is killed that has not been seen to end yet.
const LONGEST: u64 = 12_000;

/// Kills every operation but `delete` after random times, or one of its daemons instead. A third of the commands ends before it
/// is killed.
pub(super) fn random_kills_are_recovered() {
    random_kills(&Workspace::new("random"));
}

/// The same without root's rights: the holder of the namespaces, pasta and its parent are among the daemons.
pub(super) fn random_kills_of_an_ordinary_user_are_recovered() {
    random_kills(&users::ordinary("random"));
}

fn random_kills(workspace: &Workspace) {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = variable("NIXBOX_CAMPAIGN").unwrap_or(30);
    let seed = variable("NIXBOX_SEED").unwrap_or(0x2545_f491_4f6c_dd1d);
    println!("NIXBOX_CAMPAIGN={seconds} NIXBOX_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    workspace.configure(&Workspace::configuration("[snapshot]\nkeep = 2"));
    // A named snapshot is never pruned, so that there is always one to restore.
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "warm", "--stop"]);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut rounds = 0;
    // One and a half times as long as each command took when it last ended by itself.
    let mut takes: BTreeMap<&[&str], u64> = BTreeMap::new();
    while Instant::now() < until {
        let command = any_command(&mut random, workspace.state() == "down");
        let wait = Duration::from_millis(random.u64(..takes.get(command).copied().unwrap_or(LONGEST)));
        let since = Instant::now();
        let mut child = workspace.nixbox(command).spawn().unwrap();
        if ends_within(&child, wait) && child.wait().unwrap().success() {
            takes.insert(command, 1 + since.elapsed().as_millis() as u64 * 3 / 2);
        }
        let victim = random.u8(..4);
        if victim == 0 {
            let all: Vec<_> = outside::processes()
                .into_iter()
                .filter(|process| process.workspace == workspace.id())
                .collect();
            if let Some(process) = random.choice(&all) {
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
        workspace.ok(&["recover"]);
        match workspace.state().as_str() {
            "down" => workspace.assert_down(),
            // A share daemon that was killed is not started again under a guest that has it mounted.
            _ if victim == 0 => {
                workspace.ok(&["down"]);
                workspace.assert_down();
            }
            _ => workspace.assert_up(),
        }
        assert_snapshots(workspace);
        rounds += 1;
    }
    println!("{rounds} rounds");
    for one in workspace.ok(&["snapshot", "list", "--json"]).json().as_array().unwrap() {
        workspace.ok(&["snapshot", "verify", &one["id"].to_string()]);
    }
    workspace.ok(&["down"]);
    workspace.assert_down();
}
