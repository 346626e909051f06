//! Which networks a guest reaches: public ones, and those of the host that its policy names.

use std::collections::BTreeSet;

use super::arena::{Arena, Guest, PEER, PEER_OTHER, REFUSED, Way, ip};
use super::*;
use crate::world::Transport;

const PUBLIC: &str = "8.8.4.4";
const PRIVATE: &str = "192.168.7.7";

/// A policy with these private networks.
fn with_networks(policy: impl Into<NetworkPolicy>, networks: &[&str]) -> NetworkPolicy {
    let host_networks = networks.iter().map(|network| network.parse().unwrap()).collect();
    NetworkPolicy { host_networks, ..policy.into() }
}

#[test]
fn open_mode_reaches_the_networks_of_the_host_that_are_named_and_no_others() {
    for way in Way::ALL {
        let Some(arena) = Arena::new(way) else { return };
        for address in [PUBLIC, PRIVATE] {
            arena.put_outside(ip(address));
        }
        for (networks, private, peer) in [
            (&[][..], false, false),
            (&["192.168.0.0/16"], true, false),
            (&["10.0.0.0/8", "10.99.0.0/24"], false, true),
        ] {
            let network = arena.network_of_policy(with_networks(NetworkMode::Open, networks));
            arena.on_host(network.build(slot(1), Generation(1))).unwrap();
            assert_eq!(arena.on_host(network.find(slot(1))).unwrap(), Presence::Whole);
            let guest = Guest::join(&arena, slot(1));
            guest.lease();
            assert!(guest.reaches(ip(PUBLIC), 80), "{networks:?}");
            assert_eq!(guest.reaches(ip(PRIVATE), 80), private, "{networks:?}");
            assert_eq!(guest.reaches(PEER, 80), peer, "{networks:?}");
            is_kept_in(&arena, &guest);
            drop(guest);
            arena.on_host(network.remove(slot(1))).unwrap();
        }
        assert!(arena.host_reaches(ip(PRIVATE), 80), "control: it is there");
    }
}

#[test]
fn addresses_at_which_clouds_give_credentials_are_reached_in_no_mode() {
    const METADATA: [&str; 4] = ["169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16"];
    for way in Way::ALL {
        let Some(arena) = Arena::new(way) else { return };
        for address in METADATA.into_iter().chain(["100.100.100.201"]) {
            // The arena has the first of them already.
            if address != METADATA[0] {
                arena.put_outside(ip(address));
            }
        }
        for policy in [NetworkMode::Off.into(), filtered(&["allowed.test"], &[80]), NetworkMode::Open.into()]
        {
            let policy = with_networks(policy, &["100.64.0.0/10"]);
            let open = policy.mode == NetworkMode::Open;
            let network = arena.network_of_policy(policy);
            arena.on_host(network.build(slot(1), Generation(1))).unwrap();
            let guest = Guest::join(&arena, slot(1));
            guest.lease();
            for name in ["alibaba.allowed.test", "azure.allowed.test", "cloud.allowed.test"] {
                guest.try_resolve(name);
            }
            for address in METADATA {
                assert!(!guest.reaches(ip(address), 80), "{address}");
                assert!(arena.host_reaches(ip(address), 80), "control: {address} is there");
            }
            assert_eq!(guest.reaches(ip("100.100.100.201"), 80), open, "its neighbour");
            drop(guest);
            arena.on_host(network.remove(slot(1))).unwrap();
        }
    }
}

/// The names of an allowed domain whose addresses are not public.
const REBINDING: [&str; 8] = [
    "private.allowed.test",
    "mixed.allowed.test",
    "loopback.allowed.test",
    "shared.allowed.test",
    "multicast.allowed.test",
    "unspecified.allowed.test",
    "mapped.allowed.test",
    "azure.allowed.test",
];

#[test]
fn answers_with_addresses_that_are_not_public_are_refused_and_open_nothing() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    for address in [PUBLIC, PRIVATE] {
        arena.put_outside(ip(address));
    }
    let set = format!("nft list set inet nixbox_vm1_{} allowed", arena.workspace);
    let policy = filtered(&["allowed.test"], &[80]);
    let network = arena.network_of_policy(policy.clone());
    arena.on_host(network.build(slot(1), Generation(1))).unwrap();
    let guest = Guest::join(&arena, slot(1));
    guest.lease();
    for name in REBINDING {
        assert_eq!(guest.resolve(name), (REFUSED, vec![]), "{name}");
    }
    assert!(!arena.tap_output(&set).contains("elements"), "dnsmasq has put none of them into the set");
    assert_eq!(guest.resolve("public.allowed.test"), (0, vec![ip(PUBLIC)]));
    assert!(arena.tap_output(&set).contains(PUBLIC), "control: this is how it shows");
    assert!(guest.reaches(ip(PUBLIC), 80) && !guest.reaches(ip(PRIVATE), 80));

    // The same answer of a network that the policy names. The keeper takes on what it is told now.
    let allowing = arena.network_of_policy(with_networks(policy, &["192.168.7.0/24"]));
    assert_eq!(arena.on_host(allowing.find(slot(1))).unwrap(), Presence::Partial);
    arena.on_host(allowing.build(slot(1), Generation(1))).unwrap();
    assert_eq!(arena.on_host(allowing.find(slot(1))).unwrap(), Presence::Whole);
    assert!(!guest.reaches(ip(PRIVATE), 80), "not before its name was resolved");
    assert_eq!(guest.resolve("private.allowed.test"), (0, vec![ip(PRIVATE)]));
    assert!(guest.reaches(ip(PRIVATE), 80));
    assert_eq!(guest.resolve("shared.allowed.test"), (REFUSED, vec![]));
    drop(guest);
    arena.on_host(allowing.remove(slot(1))).unwrap();
}

/// In the host's network there is no keeper. dnsmasq refuses what it knows, and the table refuses the rest.
#[test]
fn in_the_hosts_network_such_answers_open_nothing_either() {
    let Some(arena) = Arena::new(Way::Host) else { return };
    arena.put_outside(ip(PRIVATE));
    arena.put_outside(ip("100.64.9.9"));
    let policy = filtered(&["allowed.test"], &[80]);
    let network = arena.network_of_policy(policy.clone());
    arena.on_host(network.build(slot(1), Generation(1))).unwrap();
    let guest = Guest::join(&arena, slot(1));
    guest.lease();
    assert!(guest.resolve("private.allowed.test").1.is_empty());
    guest.try_resolve("shared.allowed.test");
    drop(guest);

    // With a network that is allowed, dnsmasq lets such answers pass, into its set too.
    let allowing = arena.network_of_policy(with_networks(policy, &["10.99.0.0/24"]));
    arena.on_host(allowing.build(slot(1), Generation(1))).unwrap();
    let guest = Guest::join(&arena, slot(1));
    guest.lease();
    for (name, address) in [("private.allowed.test", PRIVATE), ("shared.allowed.test", "100.64.9.9")] {
        assert_eq!(guest.resolve(name), (0, vec![ip(address)]));
        assert!(!guest.reaches(ip(address), 80), "{name}");
        assert!(arena.host_reaches(ip(address), 80), "control: {address} is there");
    }
    assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]));
    assert!(guest.reaches(PEER, 80));
    drop(guest);
    arena.on_host(allowing.remove(slot(1))).unwrap();
}

/// A LAN whose gateway and resolver have the address that nixbox gave its own end of a TAP before VMs had namespaces.
#[test]
fn a_lan_of_172_16_with_its_gateway_and_resolver_is_never_in_the_way() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    arena.put_outside(ip(PUBLIC));
    arena.join_lan("172.16.0.2/12", "172.16.0.1");
    arena.set_resolvers("nameserver 172.16.0.1\n");
    let before = arena.state();
    for (slot, networks) in [(slot(0), &[][..]), (Slot::OWN_NETWORK, &["172.16.0.0/12"])] {
        let network = arena.network_of_policy(with_networks(NetworkMode::Open, networks));
        arena.on_host(network.build(slot, Generation(1))).unwrap();
        assert!(arena.host_reaches(ip("172.16.0.1"), 80), "the host reaches its gateway");
        let guest = Guest::join(&arena, slot);
        guest.lease();
        assert!(guest.reaches(ip(PUBLIC), 80));
        assert_eq!(
            guest.resolve("public.allowed.test"),
            (0, vec![ip(PUBLIC)]),
            "its resolver is asked from the host"
        );
        assert_eq!(guest.reaches(ip("172.16.0.1"), 80), slot == Slot::OWN_NETWORK, "the LAN's gateway");
        assert!(!guest.reaches(ip("172.16.0.2"), 80), "the host");
        assert!(arena.host_reaches(ip("172.16.0.1"), 80));
        drop(guest);
        arena.on_host(network.remove(slot)).unwrap();
        assert_eq!(arena.state(), before);
    }
}

/// What a guest was refused is noted, in namespaces of both kinds: names by the keeper, packets by the rules.
#[test]
fn what_a_guest_was_refused_is_told() {
    for way in [Way::Namespace, Way::User] {
        let Some(arena) = Arena::new(way) else { return };
        let network = arena.network(filtered(&["allowed.test"], &[80]));
        arena.on_host(network.build(slot(1), Generation(1))).unwrap();
        let told = || arena.on_host(network.refused_traffic(slot(1))).unwrap();
        assert_eq!(told(), RefusedTraffic { destinations: vec![], names: Some(vec![]) }, "{way:?}");
        let guest = Guest::join(&arena, slot(1));
        guest.lease();
        assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]));
        assert!(guest.reaches(PEER, 80) && !guest.reaches(PEER, 443) && !guest.reaches(PEER_OTHER, 80));
        for _ in 0..2 {
            assert_eq!(guest.resolve("www.anything.test"), (REFUSED, vec![]), "{way:?}");
        }
        let RefusedTraffic { destinations, names } = told();
        let names: Vec<_> = names.unwrap().into_iter().map(|name| (name.name, name.times)).collect();
        assert_eq!(names, [("www.anything.test".to_owned(), 2)], "{way:?}");
        let destinations: BTreeSet<_> =
            destinations.into_iter().map(|one| (one.address, one.transport, one.port)).collect();
        for refused in [(PEER, Transport::Tcp, 443), (PEER_OTHER, Transport::Tcp, 80)] {
            assert!(destinations.contains(&refused), "{way:?}: {destinations:?}");
        }
        assert!(!destinations.contains(&(PEER, Transport::Tcp, 80)), "{way:?}: {destinations:?}");
        // An open network has no names, and the rules are new.
        let open = arena.network(NetworkMode::Open);
        arena.on_host(open.repair(slot(1), Generation(1))).unwrap();
        assert_eq!(arena.on_host(open.refused_traffic(slot(1))).unwrap().names, None, "{way:?}");
        assert_eq!(arena.on_host(open.faults(slot(1))).unwrap(), [], "{way:?}");
        drop(guest);
        arena.on_host(open.remove(slot(1))).unwrap();
        assert_eq!(arena.on_host(open.find(slot(1))).unwrap(), Presence::Absent);
    }
}
