//! Other firewalls of the host, as they write their rules. They need iptables too.

use super::arena::{Arena, Guest, PEER, PEER_OTHER, Way, ip};
use super::*;
use crate::testing::{Need, have};

fn have_iptables() -> bool {
    have(&["iptables-nft", "iptables-legacy", "iptables-legacy-save"].map(Need::Program))
}

/// What ufw makes of `ufw default deny routed`, and of a rule of the administrator's about one address.
const UFW: [&str; 9] = [
    "-P FORWARD DROP",
    "-N ufw-before-forward",
    "-N ufw-user-forward",
    "-A FORWARD -j ufw-before-forward",
    "-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A ufw-before-forward -m conntrack --ctstate INVALID -j DROP",
    "-A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT",
    "-A ufw-before-forward -j ufw-user-forward",
    "-A ufw-user-forward -d 10.99.0.3 -j DROP",
];

/// What Docker makes.
const DOCKER: [&str; 4] = [
    "-P FORWARD DROP",
    "-N DOCKER-USER",
    "-A FORWARD -j DOCKER-USER",
    "-A DOCKER-USER -s 10.0.0.0/8 -j RETURN",
];

/// All rules of both kinds of iptables, without counters.
fn rules(arena: &Arena) -> String {
    let listed = ["iptables-nft -S", "iptables-legacy -S"].map(|command| arena.host_output(command));
    listed.join("\n")
}

fn obstacle(arena: &Arena, way: Way) -> Option<obstacle::Obstacle> {
    let policy = NetworkMode::Open.into();
    let slot = (way == Way::Host).then(|| slot(2));
    arena.on_host(find_obstacle(&policy, slot)).unwrap()
}

#[test]
fn firewalls_that_offer_a_chain_let_the_vm_through() {
    if !have_iptables() {
        return;
    }
    for (way, program, words, chain) in [
        (Way::Namespace, "iptables-nft", &UFW[..], "ufw-user-forward"),
        (Way::Namespace, "iptables-legacy", &UFW[..], "ufw-user-forward"),
        (Way::Namespace, "iptables-nft", &DOCKER[..], "DOCKER-USER"),
        (Way::Namespace, "iptables-legacy", &DOCKER[..], "DOCKER-USER"),
        (Way::Host, "iptables-legacy", &DOCKER[..], "DOCKER-USER"),
    ] {
        let Some(arena) = Arena::new(way) else { return };
        for words in words {
            arena.host_run(&format!("{program} {words}"));
        }
        let (before, others) = (arena.state(), rules(&arena));
        assert_eq!(obstacle(&arena, way), None, "{program} {chain}");
        let network = arena.network(NetworkMode::Open);
        arena.on_host(network.build(slot(2), Generation(1))).unwrap();
        assert_eq!(arena.on_host(network.find(slot(2))).unwrap(), Presence::Whole);
        let guest = Guest::join(&arena, slot(2));
        guest.lease();
        assert!(guest.reaches(PEER, 80), "{program} {chain}");
        assert_eq!(
            guest.reaches(PEER_OTHER, 80),
            chain == "DOCKER-USER",
            "the administrator's own rule counts"
        );
        assert!(!arena.peer_reaches(guest.address(), 22));

        // Another firewall starts when the VM runs already.
        let late = if program == "iptables-nft" { "iptables-legacy" } else { "iptables-nft" };
        for words in DOCKER {
            arena.host_run(&format!("{late} {words}"));
        }
        assert!(!guest.reaches(PEER, 80), "control: {late} drops");
        assert_eq!(arena.on_host(network.find(slot(2))).unwrap(), Presence::Partial, "{late}");
        arena.on_host(network.build(slot(2), Generation(1))).unwrap();
        assert!(guest.reaches(PEER, 80), "{late}");

        // The firewall makes its chain anew.
        arena.host_run(&format!("{program} -F {chain}"));
        assert!(!guest.reaches(PEER, 80), "control: {program} {chain} drops");
        assert_eq!(arena.on_host(network.find(slot(2))).unwrap(), Presence::Partial);
        if let Some(words) = words.iter().find(|words| words.starts_with(&format!("-A {chain}"))) {
            arena.host_run(&format!("{program} {words}"));
        }
        arena.on_host(network.build(slot(2), Generation(1))).unwrap();
        assert!(guest.reaches(PEER, 80), "{program} {chain}");
        drop(guest);
        arena.on_host(network.remove(slot(2))).unwrap();
        assert!(!rules(&arena).contains("nixbox"), "{}", rules(&arena));
        for words in ["-P FORWARD ACCEPT", "-F FORWARD", "-F DOCKER-USER", "-X DOCKER-USER"] {
            arena.host_run(&format!("{late} {words}"));
        }
        assert_eq!(rules(&arena), others, "{program} {chain}");
        // iptables-nft leaves its tables.
        if late == "iptables-legacy" {
            assert_eq!(arena.state(), before, "{chain}");
        }
    }
}

/// At some of the places at which the build waits, among them those at which it waits for these rules.
#[test]
fn a_build_that_is_interrupted_leaves_no_rule_in_the_chains_of_others() {
    if !have_iptables() {
        return;
    }
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    for words in UFW {
        arena.host_run(&format!("iptables-nft {words}"));
    }
    for words in DOCKER {
        arena.host_run(&format!("iptables-legacy {words}"));
    }
    let network = arena.network(NetworkMode::Open);
    let (before, others) = (arena.state(), rules(&arena));
    let (mut polls, mut seen) = (1, 0);
    loop {
        let finished =
            arena.on_host(cut_off(network.build(slot(4), Generation(1)), polls)).transpose().unwrap();
        seen += usize::from(rules(&arena) != others);
        arena.on_host(network.remove(slot(4))).unwrap();
        assert_eq!((&arena.state(), &rules(&arena)), (&before, &others), "after {polls}");
        if finished.is_some() {
            break;
        }
        polls += 5;
    }
    assert!(seen > 1, "it was interrupted when rules were there: {seen}");
}

/// The command that is told is the one that helps.
#[test]
fn a_firewall_without_such_a_chain_is_named_with_what_lets_the_vm_through() {
    for (way, rules) in [
        (
            Way::Namespace,
            &["add chain inet mine across { type filter hook forward priority 0 ; policy drop ; }"][..],
        ),
        (
            Way::Namespace,
            &[
                "add chain ip mine across { type filter hook forward priority -5 ; }",
                "add rule ip mine across ct state established,related accept",
                "add rule ip mine across ct state vmap { invalid : drop }",
                "add rule ip mine across oifname != \"lo\" reject with icmp admin-prohibited",
            ],
        ),
        (
            Way::Host,
            &[
                "add chain inet mine inwards { type filter hook input priority 0 ; policy drop ; }",
                "add rule inet mine inwards ct state established,related accept",
                "add chain inet mine across { type filter hook forward priority 0 ; policy drop ; }",
            ],
        ),
    ] {
        let Some(arena) = Arena::new(way) else { return };
        // So that it is known by which device packets leave.
        arena.host_run("ip route add default via 10.99.0.2");
        assert_eq!(obstacle(&arena, way), None);
        let family = if rules[0].contains("inet") { "inet" } else { "ip" };
        arena.host_run(&format!("nft add table {family} mine"));
        for rule in rules {
            arena.host_run(&format!("nft '{rule}'"));
        }
        let network = arena.network(NetworkMode::Open);
        arena.on_host(network.build(slot(2), Generation(1))).unwrap();
        let guest = Guest::join(&arena, slot(2));
        if way == Way::Namespace {
            guest.lease();
            assert!(!guest.reaches(PEER, 80), "control: it drops");
        }
        let mut told = Vec::new();
        while let Some(obstacle) = obstacle(&arena, way) {
            assert!(obstacle.place().contains(&format!("in table {family} mine")), "{obstacle}");
            assert!(!told.contains(&obstacle), "{obstacle}");
            arena.host_run(obstacle.remedy().strip_prefix("sudo ").unwrap());
            told.push(obstacle);
        }
        assert!(!told.is_empty());
        if way == Way::Host {
            guest.lease();
        }
        assert_eq!(guest.resolve("www.anything.test").0, 0, "{told:?}");
        assert!(guest.reaches(PEER, 80), "{told:?}");
        drop(guest);
        arena.on_host(network.remove(slot(2))).unwrap();
    }
}

#[test]
fn devices_of_others_with_such_names_disturb_nobody() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    for name in ["nixbox-0", "vm64"] {
        arena.host_run(&format!("ip link add {name} type bridge"));
    }
    let before = arena.state();
    let network = arena.network(NetworkMode::Open);
    arena.on_host(network.build(Slot::OWN_NETWORK, Generation(1))).unwrap();
    assert_eq!(arena.on_host(network.find(Slot::OWN_NETWORK)).unwrap(), Presence::Whole);
    let device = arena.host_output("ip -o -4 addr show nixbox-1");
    assert!(device.contains(" 203.0.113.5/30 "), "{device}");
    let guest = Guest::join(&arena, Slot::OWN_NETWORK);
    guest.lease();
    assert!(guest.reaches(PEER, 80) && !guest.reaches(ip("203.0.113.5"), 80));
    drop(guest);
    arena.on_host(network.remove(Slot::OWN_NETWORK)).unwrap();
    assert_eq!(arena.state(), before);
}
