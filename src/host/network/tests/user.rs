//! Networks of an ordinary user, who has no capability: what the user can do, and what is left of it.

use super::arena::{Arena, Guest, PEER, PEER_OTHER, Way, ip};
use super::*;
use crate::host::process::ProcessMark;
use crate::testing::USER;

const SLOT: Slot = Slot::OWN_NETWORK;

fn presence(arena: &Arena, network: &HostNetwork) -> Presence {
    arena.on_host(network.find(SLOT)).unwrap()
}

/// The devices, addresses, routes and rules of the host.
fn of_host(arena: &Arena) -> String {
    [
        "ip -d -o link",
        "ip -o addr",
        "ip route show table all",
        "nft -s list ruleset",
        "sysctl net.ipv4.ip_forward",
    ]
    .map(|command| arena.host_output(command))
    .join("\n")
}

/// The processes with this mark.
fn pids(arena: &Arena, mark: &ProcessMark) -> Vec<u32> {
    let found = arena.on_host(async { marked::find(mark).unwrap() });
    found.iter().map(|process| process.pid()).collect()
}

/// The children of a process.
fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn nothing_of_the_host_changes_and_nothing_of_it_is_within_reach() {
    let Some(arena) = Arena::new(Way::User) else { return };
    arena.host_run("sysctl -qw net.ipv4.ip_forward=0");
    let before = of_host(&arena);
    for mode in [NetworkMode::Off, NetworkMode::Open] {
        let network = arena.network(mode);
        arena.on_host(network.build(SLOT, Generation(1))).unwrap();
        assert_eq!(of_host(&arena), before);
        let guest = Guest::join(&arena, SLOT);
        guest.lease();
        assert_eq!(guest.reaches(PEER, 80), mode == NetworkMode::Open);
        is_kept_in(&arena, &guest);
        // What a socket of the host takes for the host itself, and what pasta would map by default.
        for address in ["127.0.0.1", "0.0.0.0", "0.1.2.3", "203.0.113.1", "203.0.113.2", "203.0.113.77"] {
            assert!(!guest.reaches(ip(address), 80), "{address}");
            assert!(!guest.reaches_udp(ip(address), 443), "{address}");
        }
        let plan = network.plan(SLOT);
        assert_eq!(pids(&arena, &plan.uplink_mark(None)).len(), usize::from(mode == NetworkMode::Open));
        for mark in plan.daemon_marks() {
            for pid in pids(&arena, &mark) {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                let ids = format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}");
                assert!(status.contains(&ids), "{mark}: {status}");
            }
        }
        drop(guest);
        arena.on_host(network.remove(SLOT)).unwrap();
        assert_eq!(presence(&arena, &network), Presence::Absent);
        assert_eq!(of_host(&arena), before);
    }
}

/// An address that the host has got since is refused from the next build on.
#[test]
fn a_new_address_of_the_host_is_refused() {
    let Some(arena) = Arena::new(Way::User) else { return };
    let network = arena.network(NetworkMode::Open);
    arena.on_host(network.build(SLOT, Generation(1))).unwrap();
    let guest = Guest::join(&arena, SLOT);
    guest.lease();
    arena.host_run("ip addr add 10.77.0.1/24 dev up0");
    arena.on_host(network.build(SLOT, Generation(1))).unwrap();
    assert!(!guest.reaches(ip("10.77.0.1"), 80) && arena.host_reaches(ip("10.77.0.1"), 80));
    assert!(guest.reaches(PEER, 80));
    drop(guest);
    arena.on_host(network.remove(SLOT)).unwrap();
}

/// A crash, or another program, can leave each of these states.
#[test]
fn every_partial_state_of_an_ordinary_users_network_is_found_rebuilt_and_removed() {
    let Some(arena) = Arena::new(Way::User) else { return };
    let network = arena.network(filtered(&["allowed.test"], &[80]));
    let before = arena.state();
    let plan = network.plan(SLOT);
    let runtime = arena.runtime().display().to_string();
    let inside = [
        "ip link delete vm64".to_owned(),
        "ip link delete uplink0".to_owned(),
        "ip route delete default".to_owned(),
        "ip addr flush dev uplink0".to_owned(),
        format!("nft delete table inet {}", plan.table),
        "nft flush ruleset".to_owned(),
    ];
    let outside = [format!("rm {runtime}/firewall.json"), format!("rm {runtime}/keeper.sock")];
    let kill_all = |mark: ProcessMark| pids(&arena, &mark).into_iter().for_each(kill);
    let mut breakages: Vec<(String, Box<dyn Fn() + '_>)> = Vec::new();
    for command in &inside {
        breakages.push((command.clone(), Box::new(|| drop(arena.tap_output(command)))));
    }
    for command in &outside {
        breakages.push((command.clone(), Box::new(|| arena.host_run(command))));
    }
    breakages.push(("dnsmasq".to_owned(), Box::new(|| kill_all(plan.dhcp_mark(None)))));
    breakages.push(("the keeper".to_owned(), Box::new(|| kill_all(plan.keeper_mark(None)))));
    breakages.push(("the parent of pasta".to_owned(), Box::new(|| kill_all(plan.uplink_mark(None)))));
    breakages.push(("the holder".to_owned(), Box::new(|| kill_all(plan.holder_mark(None)))));
    breakages.push(("all".to_owned(), Box::new(|| plan.daemon_marks().into_iter().for_each(kill_all))));
    for (name, break_it) in &breakages {
        arena.on_host(network.build(SLOT, Generation(1))).unwrap();
        assert_eq!(presence(&arena, &network), Presence::Whole, "before {name}");
        break_it();
        assert_ne!(presence(&arena, &network), Presence::Whole, "{name}");
        arena.on_host(network.build(SLOT, Generation(2))).unwrap();
        assert_eq!(presence(&arena, &network), Presence::Whole, "after {name}");
        let guest = Guest::join(&arena, SLOT);
        guest.lease();
        assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]), "{name}");
        assert!(guest.reaches(PEER, 80) && !guest.reaches(PEER_OTHER, 80), "{name}");
        assert!(arena.nixbox_reaches(guest.address(), 22), "{name}");
        drop(guest);
        break_it();
        arena.on_host(network.remove(SLOT)).unwrap();
        assert_eq!(presence(&arena, &network), Presence::Absent, "{name}");
        assert_eq!(arena.state(), before, "{name}");
    }
}

/// Another holder enters the namespaces through a process that is in them, so the guest keeps its devices.
#[test]
fn nothing_is_lost_with_the_holder() {
    let Some(arena) = Arena::new(Way::User) else { return };
    let network = arena.network(NetworkMode::Open);
    arena.on_host(network.build(SLOT, Generation(1))).unwrap();
    let guest = Guest::join(&arena, SLOT);
    guest.lease();
    let plan = network.plan(SLOT);
    // Both states mean that packets pass. The kernel tells a moment later which of them a TAP has that was opened.
    let devices = || arena.tap_output("ip -o link").replace(" state UNKNOWN ", " state UP ");
    let before = devices();
    let [holder] = pids(&arena, &plan.holder_mark(None))[..] else { panic!("one holder") };
    kill(holder);
    assert!(guest.reaches(PEER, 80), "the guest does not need it");
    assert!(arena.nixbox_reaches(guest.address(), 22));
    assert_eq!(presence(&arena, &network), Presence::Partial);
    arena.on_host(network.build(SLOT, Generation(1))).unwrap();
    assert_eq!(presence(&arena, &network), Presence::Whole);
    assert_eq!(devices(), before);
    assert!(guest.reaches(PEER, 80));
    drop(guest);
    arena.on_host(network.remove(SLOT)).unwrap();
}

/// pasta has no mark of its own, so it must not outlive its parent, nor its parent pasta.
#[test]
fn pasta_and_its_parent_end_together() {
    let Some(arena) = Arena::new(Way::User) else { return };
    let network = arena.network(NetworkMode::Open);
    let plan = network.plan(SLOT);
    for pasta_first in [true, false] {
        arena.on_host(network.build(SLOT, Generation(1))).unwrap();
        let [parent] = pids(&arena, &plan.uplink_mark(None))[..] else { panic!("one parent") };
        let [pasta] = children(parent)[..] else { panic!("one pasta") };
        let open = |pid: u32| {
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
        };
        let (killed, other) = if pasta_first { (pasta, parent) } else { (parent, pasta) };
        let watched = open(other);
        kill(killed);
        let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        let mut ended = [rustix::event::PollFd::new(&watched, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut ended, Some(&limit)).unwrap(), 1, "{pasta_first}");
        assert_eq!(presence(&arena, &network), Presence::Partial);
        arena.on_host(network.remove(SLOT)).unwrap();
    }
}

#[test]
fn a_host_that_refuses_namespaces_is_told_what_helps() {
    for (obstacle, command) in [
        (NamespaceObstacle::Switch, "echo kernel.unprivileged_userns_clone=1 | sudo tee"),
        (
            NamespaceObstacle::Limit("user.max_net_namespaces"),
            "echo user.max_net_namespaces=15000 | sudo tee",
        ),
        (NamespaceObstacle::AppArmor, "sudo apparmor_parser -r /etc/apparmor.d/nixbox"),
        (NamespaceObstacle::Tun, "modprobe tun"),
    ] {
        assert!(obstacle.remedy().contains(command), "{}", obstacle.remedy());
    }
    let Some(arena) = Arena::new(Way::User) else { return };
    arena.on_host(rehearse()).unwrap();
}
