//! The network of a VM that runs is broken by somebody else, said to be so, and repaired under the guest.

use super::arena::{Arena, Guest, PEER, PEER_OTHER, Way, ip};
use super::*;
use crate::world::Slot;

const SLOT: Slot = Slot::OWN_NETWORK;

fn faults(arena: &Arena, network: &HostNetwork, slot: Slot) -> Vec<NetworkFault> {
    arena.on_host(network.faults(slot)).unwrap()
}

#[test]
fn what_is_broken_of_a_standing_network_is_named_and_repaired() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let network = arena.network(filtered(&["allowed.test"], &[80]));
    arena.on_host(network.build(SLOT, Generation(1))).unwrap();
    let guest = Guest::join(&arena, SLOT);
    guest.lease();
    let path = arena.namespace(arena.workspace).path().display().to_string();
    let inside = |command: &str| format!("nsenter --net={path} {command}");
    let (table, outer) =
        (format!("nixbox_vm64_{}", arena.workspace), format!("nixbox_uplink_{}", arena.workspace));
    let by_command = [
        (NetworkFault::Uplink, "ip link delete nixbox-0".to_owned()),
        (NetworkFault::Uplink, "ip link set nixbox-0 down".to_owned()),
        (NetworkFault::Uplink, inside("ip route delete default")),
        (NetworkFault::Overlap, "ip neigh add 203.0.113.2 lladdr 02:00:00:00:99:01 dev up0".to_owned()),
        (NetworkFault::HostFirewall, format!("nft delete table inet {outer}")),
        (NetworkFault::HostFirewall, "nft flush ruleset".to_owned()),
        (NetworkFault::GuestFirewall, inside("nft flush ruleset")),
        (NetworkFault::GuestFirewall, inside(&format!("nft insert rule inet {table} forward accept"))),
        (NetworkFault::Forwarding, "sysctl -qw net.ipv4.ip_forward=0".to_owned()),
        (NetworkFault::TapState, inside("ip addr flush dev vm64")),
        (NetworkFault::Namespace, format!("sh -c 'umount -l {path} && rm {path}'")),
    ];
    let commands = by_command.iter().map(|(fault, command)| {
        (*fault, command.as_str(), Box::new(|| arena.host_run(command)) as Box<dyn Fn()>)
    });
    let kills = [
        (NetworkFault::Dns, "kill dnsmasq", Box::new(|| arena.kill_daemons()) as Box<dyn Fn()>),
        (NetworkFault::Keeper, "kill the keeper", Box::new(|| arena.kill_keeper())),
        (NetworkFault::Follower, "kill the follower", Box::new(|| arena.kill_follower())),
    ];
    for (fault, name, break_it) in commands.chain(kills) {
        assert_eq!(faults(&arena, &network, SLOT), [], "before {name}");
        // The follower would repair some of it by itself.
        arena.kill_follower();
        break_it();
        let found = faults(&arena, &network, SLOT);
        assert!(found.contains(&fault), "{name}: {found:?}");
        arena.on_host(network.repair(SLOT, Generation(2))).unwrap();
        assert_eq!(faults(&arena, &network, SLOT), [], "after {name}");
        assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]), "{name}");
        assert!(guest.reaches(PEER, 80) && !guest.reaches(PEER_OTHER, 80), "{name}");
        is_kept_in(&arena, &guest);
    }
    drop(guest);
    arena.on_host(network.remove(SLOT)).unwrap();
}

/// A policy that was edited is a fault of each part that is for another one, and the repair brings the network to it under the
/// guest, in each direction.
#[test]
fn a_standing_network_is_brought_to_another_policy() {
    for way in [Way::Namespace, Way::User] {
        let Some(arena) = Arena::new(way) else { return };
        let first = arena.network(filtered(&["allowed.test"], &[80]));
        arena.on_host(first.build(SLOT, Generation(1))).unwrap();
        let guest = Guest::join(&arena, SLOT);
        guest.lease();
        let reload = |policy: NetworkPolicy| {
            let network = arena.network(policy);
            assert_ne!(faults(&arena, &network, SLOT), [], "{way:?}");
            arena.on_host(network.repair(SLOT, Generation(1))).unwrap();
            assert_eq!(faults(&arena, &network, SLOT), [], "{way:?}");
            network
        };
        let reaches = |name: &str, address, port| {
            guest.resolve(name);
            guest.reaches(address, port)
        };
        assert!(reaches("allowed.test", PEER, 80) && !reaches("allowed.test", PEER, 443));
        reload(filtered(&["allowed.test"], &[443]));
        assert!(!reaches("allowed.test", PEER, 80) && reaches("allowed.test", PEER, 443));
        reload(filtered(&["other.test"], &[443]));
        assert!(!reaches("allowed.test", PEER, 443));
        reload(NetworkMode::Open.into());
        assert!(reaches("allowed.test", PEER, 80) && reaches("www.anything.test", PEER_OTHER, 8080));
        is_kept_in(&arena, &guest);
        reload(NetworkMode::Off.into());
        assert!(!guest.reaches(PEER, 80));
        assert!(arena.nixbox_reaches(guest.address(), 22), "nixbox reaches the guest in each mode");
        let last = reload(filtered(&["allowed.test"], &[80]));
        assert!(reaches("allowed.test", PEER, 80) && !reaches("allowed.test", PEER, 443));
        is_kept_in(&arena, &guest);
        drop(guest);
        arena.on_host(last.remove(SLOT)).unwrap();
    }
}

/// The VMM cannot be given another TAP. Everything else is repaired, and what is left is said.
#[test]
fn a_tap_that_is_gone_is_said_and_not_made_anew_under_a_vm() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let network = arena.network(NetworkMode::Open);
    arena.on_host(network.build(SLOT, Generation(1))).unwrap();
    let guest = Guest::join(&arena, SLOT);
    arena.host_run(&format!(
        "nsenter --net={} ip link delete vm64",
        arena.namespace(arena.workspace).path().display()
    ));
    assert_eq!(faults(&arena, &network, SLOT)[0], NetworkFault::Tap);
    arena.on_host(network.repair(SLOT, Generation(1))).unwrap();
    assert!(faults(&arena, &network, SLOT).contains(&NetworkFault::Tap));
    drop(guest);
    // Without a VM it is made anew.
    arena.on_host(network.build(SLOT, Generation(2))).unwrap();
    assert_eq!(arena.on_host(network.find(SLOT)).unwrap(), Presence::Whole);
    assert_eq!(faults(&arena, &network, SLOT), [NetworkFault::Tap], "no VMM has it open");
    arena.on_host(network.remove(SLOT)).unwrap();
}

/// In the host's network there are the same parts but uplink, keeper and follower.
#[test]
fn the_network_of_a_user_without_root_is_repaired_too() {
    let Some(arena) = Arena::new(Way::Host) else { return };
    let network = arena.network(filtered(&["allowed.test"], &[80]));
    arena.on_host(network.build(slot(4), Generation(1))).unwrap();
    let guest = Guest::join(&arena, slot(4));
    guest.lease();
    let breakages: [(NetworkFault, Box<dyn Fn()>); 3] = [
        (NetworkFault::GuestFirewall, Box::new(|| arena.host_run("nft flush ruleset"))),
        (NetworkFault::Forwarding, Box::new(|| arena.host_run("sysctl -qw net.ipv4.ip_forward=0"))),
        (NetworkFault::Dns, Box::new(|| arena.kill_daemons())),
    ];
    for (fault, break_it) in breakages {
        break_it();
        assert_eq!(faults(&arena, &network, slot(4)), [fault]);
        arena.on_host(network.repair(slot(4), Generation(1))).unwrap();
        assert_eq!(faults(&arena, &network, slot(4)), []);
        assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]));
        assert!(guest.reaches(PEER, 80) && !guest.reaches(PEER_OTHER, 80));
    }
    drop(guest);
    arena.on_host(network.remove(slot(4))).unwrap();
}

/// What a guest can do whose tables are gone, on the host and in the namespace, until the next command repairs them.
#[test]
fn an_isolated_guest_reaches_nothing_whatever_is_flushed() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let network = arena.network(NetworkMode::Off);
    arena.on_host(network.build(SLOT, Generation(1))).unwrap();
    let guest = Guest::join(&arena, SLOT);
    guest.lease();
    let path = arena.namespace(arena.workspace).path().display().to_string();
    arena.host_run("nft flush ruleset");
    arena.host_run(&format!("nsenter --net={path} nft flush ruleset"));
    for address in [PEER, PEER_OTHER, ip("10.99.0.1"), ip("203.0.113.1")] {
        assert!(!guest.reaches(address, 80), "{address}");
    }
    assert_eq!(arena.sender_seen(), "", "nothing arrives outside");
    assert_eq!(faults(&arena, &network, SLOT), [NetworkFault::GuestFirewall]);
    arena.on_host(network.repair(SLOT, Generation(1))).unwrap();
    assert_eq!(faults(&arena, &network, SLOT), []);
    is_kept_in(&arena, &guest);
    drop(guest);
    arena.on_host(network.remove(SLOT)).unwrap();
}

/// Two processes that a record does not know of, because somebody has removed it, are ended before others are started.
#[test]
fn processes_that_their_records_lost_are_found_by_their_marks() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let (network, before) = (arena.network(NetworkMode::Open), arena.state());
    arena.on_host(network.build(SLOT, Generation(1))).unwrap();
    let guest = Guest::join(&arena, SLOT);
    guest.lease();
    for name in ["dnsmasq.process", "keeper.process"] {
        std::fs::remove_file(arena.runtime().join(name)).unwrap();
    }
    let found = faults(&arena, &network, SLOT);
    assert_eq!(found, [NetworkFault::Keeper, NetworkFault::Dns]);
    arena.on_host(network.repair(SLOT, Generation(1))).unwrap();
    assert_eq!(faults(&arena, &network, SLOT), []);
    assert_eq!(guest.resolve("allowed.test").0, 0);
    drop(guest);
    for name in ["dnsmasq.process", "keeper.process", "follower.process"] {
        std::fs::remove_file(arena.runtime().join(name)).unwrap();
    }
    arena.on_host(network.remove(SLOT)).unwrap();
    assert_eq!(arena.state(), before);
}
