//! nixbox is killed at every event of every operation, and at random moments. After each kill a recovery runs, and then
//! everything that must hold is checked from outside.

use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::workspace::{Workspace, tell};

/// How many workspaces share the kills: most of the time of each is spent waiting.
const WORKSPACES: u64 = 5;

/// Runs an operation and kills it at its first event, at its second, and so on, until a run gets through. `prepare` is done
/// once in each workspace; `ready` brings the workspace to where the operation begins, before each run.
fn kill_at_every_event(
    vmm: &str,
    operation: &[&str],
    prepare: impl Fn(&Workspace) + Sync,
    ready: impl Fn(&Workspace) + Sync,
) -> u64 {
    let since = Instant::now();
    let (kills, forward) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for first in 1..=WORKSPACES {
            let (kills, forward, prepare, ready) = (&kills, &forward, &prepare, &ready);
            scope.spawn(move || {
                let workspace = Workspace::new(vmm, true);
                prepare(&workspace);
                let mut at = first;
                loop {
                    ready(&workspace);
                    let before = workspace.is_up();
                    if !workspace.killed_at(operation, at) {
                        workspace.check();
                        return;
                    }
                    workspace.ok(&["recover"]);
                    forward.fetch_add(u64::from(workspace.check() != before), Ordering::Relaxed);
                    assert_eq!(workspace.ok(&["recover", "--json"]).json()["result"], "nothing");
                    kills.fetch_add(1, Ordering::Relaxed);
                    at += WORKSPACES;
                }
            });
        }
    });
    let (kills, forward) = (kills.into_inner(), forward.into_inner());
    tell(&format!(
        "{vmm}, {operation:?}: killed at each of {kills} events; {forward} changed whether the VM is up ({:.0?})",
        since.elapsed()
    ));
    kills
}

fn nothing(_: &Workspace) {}

fn up(workspace: &Workspace) {
    workspace.ok(&["up", "--quiet"]);
}

fn down(workspace: &Workspace) {
    workspace.ok(&["down", "--quiet"]);
}

/// Brings the VM up, and deletes the snapshots of earlier runs.
fn up_without_snapshots(workspace: &Workspace) {
    up(workspace);
    for id in workspace.snapshots() {
        workspace.ok(&["snapshot", "delete", &id]);
    }
}

#[test]
fn kills_of_up_and_down_are_recovered() {
    assert!(kill_at_every_event("simulator", &["up"], nothing, down) > 20);
    assert!(kill_at_every_event("simulator", &["down"], nothing, up) > 10);
}

#[test]
fn kills_of_a_snapshot_with_roll_over_are_recovered() {
    assert!(kill_at_every_event("simulator", &["snapshot"], nothing, up_without_snapshots) > 20);
}

#[test]
fn kills_of_a_snapshot_in_place_are_recovered() {
    assert!(kill_at_every_event("simulator-v54", &["snapshot"], nothing, up_without_snapshots) > 20);
}

#[test]
fn kills_of_a_snapshot_with_detached_shares_are_recovered() {
    assert!(kill_at_every_event("simulator-v51", &["snapshot"], nothing, up_without_snapshots) > 25);
}

#[test]
fn kills_of_a_snapshot_that_stops_the_vm_are_recovered() {
    assert!(kill_at_every_event("simulator", &["snapshot", "--stop"], nothing, up_without_snapshots) > 20);
}

fn warm(workspace: &Workspace) {
    up(workspace);
    workspace.guest("echo precious > ~/warm");
    workspace.ok(&["snapshot", "--name", "warm"]);
}

#[test]
fn kills_of_a_restore_are_recovered() {
    assert!(kill_at_every_event("simulator", &["restore", "warm"], warm, down) > 25);
}

#[test]
fn kills_of_a_restore_over_a_running_vm_are_recovered() {
    assert!(kill_at_every_event("simulator", &["restore", "warm", "--replace"], warm, up) > 40);
}

#[test]
fn kills_of_a_snapshot_deletion_are_recovered() {
    let again = |workspace: &Workspace| {
        if workspace.snapshots().is_empty() {
            warm(workspace);
        }
    };
    assert!(kill_at_every_event("simulator", &["snapshot", "delete", "warm"], nothing, again) > 3);
}

/// The recovery is killed at its first event, the recovery of that at its second, and so on.
#[test]
fn kills_of_recoveries_are_recovered() {
    let workspace = Workspace::new("simulator", true);
    up(&workspace);
    workspace.ok(&["snapshot", "--name", "warm"]);
    let mut kills = 0;
    for (operation, points) in [
        (&["up"][..], [12, 20]),
        (&["snapshot"], [14, 22]),
        (&["restore", "warm"], [16, 24]),
        (&["down"], [4, 9]),
    ] {
        for point in points {
            match operation {
                ["up"] | ["restore", _] => down(&workspace),
                _ => up(&workspace),
            }
            if !workspace.killed_at(operation, point) {
                continue;
            }
            let mut at = 1;
            while workspace.killed_at(&["recover"], at) {
                at += 1;
            }
            workspace.check();
            kills += at - 1;
        }
    }
    tell(&format!("{kills} recoveries killed"));
    assert!(kills > 10);
}

fn kill_after(mut nixbox: Child, delay: Duration) -> bool {
    // The moment is what is wanted here, not an event.
    std::thread::sleep(delay);
    nixbox.kill().unwrap();
    let status = nixbox.wait().unwrap();
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(9)
}

/// Runs random operations and kills each at a random moment. Returns how many were killed before they ended.
fn kill_at_random_moments(vmm: &str, seed: u64, rounds: u32) -> u32 {
    let mut random = Rng::with_seed(seed);
    let workspace = Workspace::new(vmm, true);
    up(&workspace);
    workspace.ok(&["snapshot", "--name", "warm"]);
    let mut killed = 0;
    for round in 0..rounds {
        let is_up = workspace.is_up();
        let unnamed = workspace.snapshots().into_iter().find(|id| id != "2");
        let operation: Vec<&str> = match (is_up, random.u8(..6), &unnamed) {
            (true, 0 | 1, _) => vec!["down"],
            (true, 2, Some(id)) => vec!["snapshot", "delete", id],
            (true, 3, _) => vec!["snapshot", "--stop"],
            (true, ..) => vec!["snapshot"],
            (false, 0 | 1, _) => vec!["up"],
            (false, 2, Some(id)) => vec!["snapshot", "delete", id],
            (false, ..) => vec!["restore", "warm"],
        };
        let delay = Duration::from_micros(random.u64(..350_000));
        if kill_after(workspace.start(&operation), delay) {
            killed += 1;
        }
        workspace.ok(&["recover"]);
        println!("seed {seed}, round {round}: {operation:?} killed after {delay:?}");
        workspace.check();
    }
    killed
}

/// Some hundred kills in an ordinary run, as about every second round ends before it is killed; three times as many in a
/// campaign: `NIXBOX_CAMPAIGN=1 cargo test --features failpoints --test simulator random`.
fn rounds() -> u32 {
    if std::env::var_os("NIXBOX_CAMPAIGN").is_some() { 200 } else { 70 }
}

#[test]
fn random_kills_with_snapshots_in_place_are_recovered() {
    tell(&format!(
        "killed at random moments: {} times",
        kill_at_random_moments("simulator-v54", 1, rounds())
    ));
}

#[test]
fn random_kills_with_roll_over_are_recovered() {
    tell(&format!(
        "killed at random moments: {} times",
        kill_at_random_moments("simulator-v53", 2, rounds())
    ));
}

#[test]
fn random_kills_with_detached_shares_are_recovered() {
    tell(&format!(
        "killed at random moments: {} times",
        kill_at_random_moments("simulator-v51", 3, rounds())
    ));
}
