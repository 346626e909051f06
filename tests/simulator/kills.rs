//! nixbox killed at every event of every operation, and at random moments: after each, a recovery, and then all that must
//! hold, seen from outside.

use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::room::{Room, tell};

/// So many workspaces share the work: much of it is waiting.
const ROOMS: u64 = 5;

/// Runs an operation and has it killed at its first event, at its second, and so on, until it gets through. `prepare` makes
/// a fresh workspace one that `ready` brings to where the operation begins.
fn at_every_event(
    vmm: &str,
    operation: &[&str],
    prepare: impl Fn(&Room) + Sync,
    ready: impl Fn(&Room) + Sync,
) -> u64 {
    let since = Instant::now();
    let (kills, forward) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for first in 1..=ROOMS {
            let (kills, forward, prepare, ready) = (&kills, &forward, &prepare, &ready);
            scope.spawn(move || {
                let room = Room::new(vmm, true);
                prepare(&room);
                let mut at = first;
                loop {
                    ready(&room);
                    let before = room.is_up();
                    if !room.killed_at(operation, at) {
                        room.check();
                        return;
                    }
                    room.ok(&["recover"]);
                    forward.fetch_add(u64::from(room.check() != before), Ordering::Relaxed);
                    assert_eq!(room.ok(&["recover", "--json"]).json()["result"], "nothing");
                    kills.fetch_add(1, Ordering::Relaxed);
                    at += ROOMS;
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

fn nothing(_: &Room) {}

fn up(room: &Room) {
    room.ok(&["up", "--quiet"]);
}

fn down(room: &Room) {
    room.ok(&["down", "--quiet"]);
}

/// Up, and no snapshot left of the round before.
fn up_without_snapshots(room: &Room) {
    up(room);
    for id in room.snapshots() {
        room.ok(&["snapshot", "delete", &id]);
    }
}

#[test]
fn up_and_down_again() {
    assert!(at_every_event("simulator", &["up"], nothing, down) > 20);
    assert!(at_every_event("simulator", &["down"], nothing, up) > 10);
}

#[test]
fn snapshot_rolled_over() {
    assert!(at_every_event("simulator", &["snapshot"], nothing, up_without_snapshots) > 20);
}

#[test]
fn snapshot_in_place() {
    assert!(at_every_event("simulator-v54", &["snapshot"], nothing, up_without_snapshots) > 20);
}

#[test]
fn snapshot_detached() {
    assert!(at_every_event("simulator-v51", &["snapshot"], nothing, up_without_snapshots) > 25);
}

#[test]
fn snapshot_and_stop() {
    assert!(at_every_event("simulator", &["snapshot", "--stop"], nothing, up_without_snapshots) > 20);
}

fn warm(room: &Room) {
    up(room);
    room.guest("echo precious > ~/warm");
    room.ok(&["snapshot", "--name", "warm"]);
}

#[test]
fn restore_from_a_snapshot() {
    assert!(at_every_event("simulator", &["restore", "warm"], warm, down) > 25);
}

#[test]
fn restore_in_the_place_of_a_vm() {
    assert!(at_every_event("simulator", &["restore", "warm", "--replace"], warm, up) > 40);
}

#[test]
fn delete_a_snapshot() {
    let again = |room: &Room| {
        if room.snapshots().is_empty() {
            warm(room);
        }
    };
    assert!(at_every_event("simulator", &["snapshot", "delete", "warm"], nothing, again) > 3);
}

/// The recovery is killed at its first event, the recovery of that at its second, and so on.
#[test]
fn recoveries_are_killed_too() {
    let room = Room::new("simulator", true);
    up(&room);
    room.ok(&["snapshot", "--name", "warm"]);
    let mut kills = 0;
    for (operation, points) in [
        (&["up"][..], [12, 20]),
        (&["snapshot"], [14, 22]),
        (&["restore", "warm"], [16, 24]),
        (&["down"], [4, 9]),
    ] {
        for point in points {
            match operation {
                ["up"] | ["restore", _] => down(&room),
                _ => up(&room),
            }
            if !room.killed_at(operation, point) {
                continue;
            }
            let mut at = 1;
            while room.killed_at(&["recover"], at) {
                at += 1;
            }
            room.check();
            kills += at - 1;
        }
    }
    tell(&format!("{kills} recoveries killed"));
    assert!(kills > 10);
}

/// A generator of numbers that is the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn kill_after(mut nixbox: Child, delay: Duration) -> bool {
    // The moment is what is wanted here, not an event.
    std::thread::sleep(delay);
    nixbox.kill().unwrap();
    let status = nixbox.wait().unwrap();
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(9)
}

/// Whatever nixbox does just now, it is killed at a random moment of it.
fn at_random(vmm: &str, seed: u64, rounds: u32) -> u32 {
    let mut numbers = Numbers(seed);
    let room = Room::new(vmm, true);
    up(&room);
    room.ok(&["snapshot", "--name", "warm"]);
    let mut killed = 0;
    for round in 0..rounds {
        let is_up = room.is_up();
        let unnamed = room.snapshots().into_iter().find(|id| id != "2");
        let operation: Vec<&str> = match (is_up, numbers.below(6), &unnamed) {
            (true, 0 | 1, _) => vec!["down"],
            (true, 2, Some(id)) => vec!["snapshot", "delete", id],
            (true, 3, _) => vec!["snapshot", "--stop"],
            (true, ..) => vec!["snapshot"],
            (false, 0 | 1, _) => vec!["up"],
            (false, 2, Some(id)) => vec!["snapshot", "delete", id],
            (false, ..) => vec!["restore", "warm"],
        };
        let delay = Duration::from_micros(numbers.below(350_000));
        if kill_after(room.start(&operation), delay) {
            killed += 1;
        }
        room.ok(&["recover"]);
        println!("seed {seed}, round {round}: {operation:?} killed after {delay:?}");
        room.check();
    }
    killed
}

/// Some hundred kills in an ordinary run, as about every second round ends before it is killed; three times as many in a
/// campaign: `NIXBOX_CAMPAIGN=1 cargo test --features failpoints --test simulator random`.
fn rounds() -> u32 {
    if std::env::var_os("NIXBOX_CAMPAIGN").is_some() { 200 } else { 70 }
}

#[test]
fn at_random_moments_in_place() {
    tell(&format!("killed at random moments: {} times", at_random("simulator-v54", 1, rounds())));
}

#[test]
fn at_random_moments_rolled_over() {
    tell(&format!("killed at random moments: {} times", at_random("simulator-v53", 2, rounds())));
}

#[test]
fn at_random_moments_detached() {
    tell(&format!("killed at random moments: {} times", at_random("simulator-v51", 3, rounds())));
}
