//! What a network costs on a host with many processes.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::arena::{Arena, Way};
use super::*;
use crate::host::process::LISTINGS;

/// How many processes a busy host has more than another.
const MORE: usize = 600;

/// Processes that wait, with an environment as long as that of a desktop's.
struct Crowd(Vec<Child>);

impl Crowd {
    fn of(count: usize) -> Self {
        let one = |_| {
            let mut command = Command::new("sleep");
            command.arg("3600").env("FILLING", "x".repeat(4000)).stdin(Stdio::null());
            command.spawn().unwrap()
        };
        Self((0..count).map(one).collect())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// Neither a build nor a look reads what grows with the number of processes. The times are printed.
#[test]
fn a_build_costs_the_same_however_many_processes_there_are() {
    let mut times: Vec<(usize, Duration)> = Vec::new();
    for count in [0, MORE] {
        let Some(arena) = Arena::new(Way::Namespace) else { return };
        let crowd = Crowd::of(count);
        let network = arena.network(NetworkMode::Open);
        let slot = crate::world::Slot::OWN_NETWORK;
        let (built, listings) = arena.on_host(async {
            let (before, began) = (LISTINGS.get(), Instant::now());
            assert_eq!(network.find(slot).await.unwrap(), Presence::Absent);
            network.build(slot, Generation(1)).await.unwrap();
            let built = began.elapsed();
            assert_eq!(network.find(slot).await.unwrap(), Presence::Whole);
            network.faults(slot).await.unwrap();
            (built, LISTINGS.get() - before)
        });
        assert_eq!(listings, 0, "all processes were listed");
        times.push((count, built));
        arena.on_host(network.remove(slot)).unwrap();
        drop(crowd);
    }
    for (count, time) in times {
        println!("a network is built in {time:?} beside {count} more processes");
    }
}
