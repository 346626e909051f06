//! What the follower does while a VM runs: the host gets addresses, routes and neighbours, and loses them.

use super::arena::{Arena, Guest, PEER, Way, ip};
use super::*;
use crate::world::Slot;

const SLOT: Slot = Slot::OWN_NETWORK;

/// A VM whose guest uses its network.
fn running(arena: &Arena, policy: impl Into<NetworkPolicy>) -> (HostNetwork, Guest) {
    let network = arena.network(policy);
    arena.on_host(network.build(SLOT, Generation(1))).unwrap();
    let guest = Guest::join(arena, SLOT);
    guest.lease();
    assert_eq!(arena.on_host(network.faults(SLOT)).unwrap(), []);
    (network, guest)
}

/// The addresses that the table in the namespace refuses.
fn refused(arena: &Arena) -> String {
    arena.tap_output(&format!("nft list set inet nixbox_vm64_{} refused", arena.workspace))
}

fn has_device(arena: &Arena, name: &str) -> bool {
    arena.host_output("ip -o link").contains(&format!(" {name}@"))
}

#[test]
fn an_address_that_the_host_gets_later_is_refused_without_the_hosts_tables() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let (network, guest) = running(&arena, NetworkMode::Open);
    // The table on the host refuses it at once, before anybody has heard of it.
    arena.host_run("ip addr add 9.77.0.1/32 dev lo");
    assert!(!guest.reaches(ip("9.77.0.1"), 80), "by the table of the host");
    arena.until("refused", || refused(&arena).contains("9.77.0.1"));
    arena.host_run("nft flush ruleset");
    assert!(arena.host_reaches(ip("9.77.0.1"), 80), "control: it listens");
    assert!(!guest.reaches(ip("9.77.0.1"), 80), "by the table in the namespace");

    arena.host_run("ip addr del 9.77.0.1/32 dev lo");
    arena.until("forgotten", || !refused(&arena).contains("9.77.0.1"));
    // Control: without the follower, and without the table on the host, a new address is open.
    arena.kill_follower();
    arena.host_run("ip addr add 9.78.0.1/32 dev lo");
    assert!(guest.reaches(ip("9.78.0.1"), 80));
    arena.on_host(network.repair(SLOT, Generation(1))).unwrap();
    assert!(!guest.reaches(ip("9.78.0.1"), 80), "what came meanwhile is known when the repair is done");
    assert!(guest.reaches(PEER, 80));
    drop(guest);
    arena.on_host(network.remove(SLOT)).unwrap();
}

/// A VPN, a neighbour and an address of the host come, which have the addresses of the uplink.
#[test]
fn the_uplink_makes_room_for_the_hosts_networks() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let before = arena.state();
    let (network, guest) = running(&arena, filtered(&["allowed.test"], &[80]));
    assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]));
    let comes = [
        ("ip route add 203.0.113.0/31 via 10.99.0.2", "nixbox-0", "nixbox-1"),
        ("ip neigh add 203.0.113.6 lladdr 02:00:00:00:99:01 dev up0", "nixbox-1", "nixbox-2"),
        ("ip addr add 203.0.113.9/30 dev up0", "nixbox-2", "nixbox-3"),
    ];
    for (command, from, to) in comes {
        assert!(has_device(&arena, from) && guest.reaches(PEER, 80), "before {command}");
        arena.host_run(command);
        arena.until("moved", || {
            let whole = arena.on_host(network.find(SLOT)).unwrap() == Presence::Whole;
            !has_device(&arena, from) && has_device(&arena, to) && whole
        });
        // The allowed addresses are still in their set: the guest does not ask for the name again.
        assert!(guest.reaches(PEER, 80), "after {command}");
        assert!(!guest.reaches(PEER, 443), "the filter stands after {command}");
    }
    assert!(
        arena.host_output("ip route get 203.0.113.1").contains("via 10.99.0.2"),
        "the VPN is not shadowed"
    );
    arena.host_run("ip route del 203.0.113.0/31");
    arena.host_run("ip neigh del 203.0.113.6 dev up0");
    arena.host_run("ip addr del 203.0.113.9/30 dev up0");
    drop(guest);
    arena.on_host(network.remove(SLOT)).unwrap();
    assert_eq!(arena.state(), before);
}

#[test]
fn without_a_free_pair_there_is_no_uplink_until_there_is_room() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let (network, guest) = running(&arena, NetworkMode::Open);
    assert!(guest.reaches(PEER, 80));
    arena.host_run("ip route add 203.0.113.0/24 via 10.99.0.2");
    arena.until("taken down", || !has_device(&arena, "nixbox-0"));
    assert!(
        arena.host_output("ip route get 203.0.113.1").contains("via 10.99.0.2"),
        "the host's networks win"
    );
    assert!(!guest.reaches(PEER, 80));
    let faults = || arena.on_host(network.faults(SLOT)).unwrap();
    arena.until("known", || faults() == [NetworkFault::NoFreeUplink]);
    // A repair has nothing to take either, and leaves the rest in order.
    arena.on_host(network.repair(SLOT, Generation(1))).unwrap();
    assert_eq!(faults(), [NetworkFault::NoFreeUplink]);
    assert!(guest.resolve("allowed.test").0 == 0, "names are resolved without an uplink");

    arena.host_run("ip route del 203.0.113.0/24");
    arena.until("made again", || faults().is_empty());
    assert!(guest.reaches(PEER, 80));
    drop(guest);
    arena.on_host(network.remove(SLOT)).unwrap();
}

#[test]
fn an_uplink_that_was_deleted_is_made_again() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let (network, guest) = running(&arena, NetworkMode::Open);
    arena.host_run("ip link delete nixbox-0");
    arena.until("made again", || arena.on_host(network.faults(SLOT)).unwrap().is_empty());
    assert!(guest.reaches(PEER, 80));
    drop(guest);
    arena.on_host(network.remove(SLOT)).unwrap();
}

/// A set that cannot be brought up to date lets nothing out.
#[test]
fn a_guest_whose_table_is_gone_is_cut_off_at_the_next_change() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let (network, guest) = running(&arena, NetworkMode::Open);
    let path = arena.namespace(arena.workspace).path().display().to_string();
    arena.host_run(&format!("nsenter --net={path} nft flush ruleset"));
    arena.host_run("ip addr add 10.77.0.1/32 dev lo");
    arena.until("cut", || arena.tap_output("ip -o link show uplink0").contains("state DOWN"));
    let problem = arena.runtime().join(follow_words::PROBLEM);
    arena.until("said", || std::fs::read_to_string(&problem).is_ok_and(|text| text.contains("firewall")));
    assert!(!guest.reaches(PEER, 80) && !guest.reaches(ip("10.77.0.1"), 80));
    let faults = arena.on_host(network.faults(SLOT)).unwrap();
    assert_eq!(faults, [NetworkFault::GuestFirewall, NetworkFault::Uplink]);
    arena.on_host(network.repair(SLOT, Generation(1))).unwrap();
    assert_eq!(arena.on_host(network.faults(SLOT)).unwrap(), []);
    assert!(guest.reaches(PEER, 80) && !guest.reaches(ip("10.77.0.1"), 80));
    drop(guest);
    arena.on_host(network.remove(SLOT)).unwrap();
}

/// More messages than a socket holds are a change, and no failure.
#[test]
fn messages_that_were_lost_are_a_change() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let routes: String = (0..4000u32)
        .map(|number| format!("route add blackhole 10.128.{}.{}/32\n", number / 256, number % 256))
        .collect();
    let batch = arena.runtime().join("routes");
    std::fs::write(&batch, routes).unwrap();
    arena.on_host(async {
        let pool = firewall::AddressRange::new(ip("203.0.113.0"), 24);
        let changes = changes::HostChanges::subscribe(pool).unwrap();
        arena.host_run(&format!("ip -batch {}", batch.display()));
        changes.next().await.unwrap();
        assert_eq!(changes.overflows(), 1);
    });
    std::fs::remove_file(batch).unwrap();
}
