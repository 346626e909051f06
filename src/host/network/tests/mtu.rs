//! How large packets may be on the way between a guest and the world.

use super::arena::{Arena, Guest, PEER, Way};
use super::*;

/// What the devices of the VM have.
fn mtus(arena: &Arena, way: Way) -> Vec<String> {
    let mut shown = vec![arena.tap_output("ip -o link show vm3")];
    if way == Way::Namespace {
        shown.push(arena.tap_output("ip -o link show uplink0"));
        shown.push(arena.host_output("ip -o link show nixbox-0"));
    }
    let mtu =
        |line: &String| line.split_whitespace().skip_while(|word| *word != "mtu").nth(1).unwrap().to_owned();
    shown.iter().map(mtu).collect()
}

#[track_caller]
fn assert_mtu(arena: &Arena, way: Way, mtu: u32) {
    assert!(mtus(arena, way).iter().all(|own| *own == mtu.to_string()), "{mtu}: {:?}", mtus(arena, way));
}

/// Some hundred packets of any size.
const BULK: usize = 1 << 20;

#[test]
fn the_devices_and_the_guest_have_the_mtu_of_the_route_to_the_world() {
    for way in [Way::Host, Way::Namespace] {
        let Some(arena) = Arena::new(way) else { return };
        arena.swallow(9100);
        let network = arena.network(NetworkMode::Open);
        arena.on_host(network.build(slot(3), Generation(1))).unwrap();
        assert_mtu(&arena, way, 1500);
        for mtu in [1280, 1500, 9000] {
            arena.set_world_mtu(mtu);
            // The devices stay, and what goes through them.
            let guest = Guest::join(&arena, slot(3));
            arena.on_host(network.build(slot(3), Generation(1))).unwrap();
            assert_eq!(arena.on_host(network.find(slot(3))).unwrap(), Presence::Whole);
            assert_mtu(&arena, way, mtu);
            assert_eq!(guest.lease().mtu, Some(mtu));
            guest.run(&format!("ip link set eth0 mtu {mtu}"));
            assert_eq!(guest.sends(PEER, 9100, BULK), Some(BULK), "{mtu}");
            assert_eq!(guest.largest_packet(PEER), mtu);
        }
        // A route may allow less than its device.
        arena.host_run("ip route replace default via 10.99.0.2 mtu 1400");
        assert_eq!(arena.on_host(network.find(slot(3))).unwrap(), Presence::Partial);
        arena.on_host(network.build(slot(3), Generation(1))).unwrap();
        assert_mtu(&arena, way, 1400);
        arena.host_run("ip route delete default");
        arena.on_host(network.build(slot(3), Generation(1))).unwrap();
        assert_mtu(&arena, way, 1500);
        arena.on_host(network.remove(slot(3))).unwrap();
    }
}

/// A guest of a snapshot that was made in another network, and a VPN that came after the VM.
#[test]
fn a_guest_with_a_larger_mtu_than_the_world_hears_of_it() {
    for way in [Way::Host, Way::Namespace] {
        for before in [false, true] {
            let Some(arena) = Arena::new(way) else { return };
            arena.swallow(9100);
            let network = arena.network(NetworkMode::Open);
            // The server outside believes that the way is as wide as ever, so it does not ask for smaller packets.
            let narrow = || {
                arena.host_run("ip link set up0 mtu 1280");
                arena.host_run("ip route replace default via 10.99.0.2");
            };
            if before {
                narrow();
            }
            arena.on_host(network.build(slot(3), Generation(1))).unwrap();
            let guest = Guest::join(&arena, slot(3));
            guest.lease();
            narrow();
            assert_eq!(guest.sends(PEER, 9100, BULK), Some(BULK));
            assert_eq!(guest.largest_packet(PEER), 1280, "{way:?}, a world that was so before: {before}");
            drop(guest);
            arena.on_host(network.remove(slot(3))).unwrap();
        }
    }
}
